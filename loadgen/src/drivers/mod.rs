//! The protocols that simulated users speak, one file each.

pub mod echo;
pub mod nats;
pub mod ringway;
