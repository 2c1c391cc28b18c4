//! One shard's rules, seen from outside.

mod away;
mod hostile;
mod limits;
mod order;
mod promises;
mod world;
