//! The process: configuration, shards, listeners, REST, authentication and metrics.
//!
//! [`shard`] decides, and is pure: no clock, no I/O, no threads, so that the simulator runs the very
//! same code. [`driver`] owns the loop of one shard, [`node`] starts and stops them all.

#[cfg(feature = "count-allocations")]
pub mod allocations;
pub mod auth;
pub mod config;
mod core;
pub mod counters;
pub mod driver;
mod effects;
mod http;
pub mod internal;
mod metrics;
pub mod node;
mod outbound;
pub mod rate;
mod rest;
pub mod shard;
mod socket;
mod table;
mod upgrade;
