//! The numbers worth keeping: how each is measured, and what it is held against.
//!
//! Every figure is a ratio to a floor measured in the same run, or says the load that it was measured under.
//! Results go to `bench/results/`, with the commit, the machine and the kernel.

pub mod beating;
pub mod budgets;
pub mod calls;
pub mod client;
pub mod contest;
pub mod cpu;
pub mod crowd;
pub mod echo;
pub mod figures;
pub mod floor;
pub mod generator;
pub mod idle;
pub mod latency;
pub mod loads;
pub mod million;
pub mod opened;
pub mod others;
pub mod peers;
pub mod performance;
pub mod pieces;
pub mod raw;
pub mod restart;
pub mod routed;
pub mod server;
pub mod spending;
