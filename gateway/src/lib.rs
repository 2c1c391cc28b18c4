//! The process: configuration, shards, listeners, REST, authentication and metrics.

pub mod auth;
pub mod config;
