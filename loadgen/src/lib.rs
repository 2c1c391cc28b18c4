//! The other side: many simulated users who really chat, over the same ring and codec as the server.
//!
//! `phone` keeps the rules of the protocol without a socket; `worker` gives a thread of phones a ring and a
//! schedule; `run` puts threads together and tells an `interval` a second; `verify` reads
//! back what a server promised to keep. `result` is what came of a run, and `report` shows it.

pub mod acks;
pub mod body;
pub mod frames;
pub mod http;
pub mod interval;
pub mod key;
pub mod phone;
pub mod random;
pub mod report;
pub mod result;
pub mod run;
pub mod schedule;
pub mod tally;
pub mod verify;
mod worker;
