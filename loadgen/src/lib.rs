//! The other side: many simulated users who really chat, over the same ring and codec as the server.
//!
//! `scenario` says what is to happen and `thresholds` what must come of it; `client` is what a simulated user is, and
//! `drivers` are those of each protocol; `worker` gives a thread of them rings, `traffic` and `disturbance`; `run` puts
//! threads together and tells an `interval` a second; `verify` reads back what a server promised to keep. `result` is what
//! came of a run, and `report` shows it.

pub mod acks;
pub mod agents;
pub mod body;
pub mod burst;
pub mod client;
pub mod credentials;
mod disturbance;
pub mod drivers;
pub mod frames;
pub mod http;
pub mod interval;
pub mod key;
pub mod ledger;
pub mod link;
mod openings;
pub mod outcome;
pub mod process;
pub mod random;
pub mod report;
pub mod result;
pub mod run;
pub mod saturate;
pub mod scenario;
pub mod schedule;
pub mod span;
pub mod tally;
pub mod target;
pub mod thresholds;
pub mod tls;
mod traffic;
pub mod verify;
mod wheel;
mod worker;
