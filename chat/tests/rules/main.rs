//! One shard's rules, seen from outside.

mod hostile;
mod world;
