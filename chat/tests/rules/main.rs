//! One shard's rules, seen from outside.

mod hostile;
mod order;
mod promises;
mod world;
