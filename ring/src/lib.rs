//! How Ringway touches the kernel's sockets: one io_uring per thread, plain synchronous code.
//!
//! This crate acts and decides nothing. What happened and what is to be done cross the [seam] as
//! plain data, so that the simulator can stand in for the kernel.
//!
//! ```no_run
//! use ring::{Doorbell, EventBatch, KernelRing, Ops, RingConfig};
//!
//! # fn main() -> Result<(), ring::RingError> {
//! let mut ring = KernelRing::new(&RingConfig::default(), Doorbell::new()?)?;
//! let claim = ring::claim("127.0.0.1:8800".parse().expect("a literal address"))?;
//! ring.listen(claim.address())?;
//! let (mut events, mut ops) = (EventBatch::default(), Ops::default());
//! loop {
//!     ring.wait(None, &mut events)?;
//!     // shard.turn(now, &mut events, &mut ops);
//!     ring.submit(&mut ops);
//! }
//! # }
//! ```

mod accept;
mod buffers;
mod close;
mod config;
mod connect;
mod counters;
mod doorbell;
mod error;
mod kernel;
mod queue;
mod receive;
pub mod seam;
mod send;
mod table;

pub use accept::{Claim, claim};
pub use config::RingConfig;
pub use counters::RingCounters;
pub use doorbell::Doorbell;
pub use error::RingError;
pub use kernel::KernelRing;
pub use seam::{AcceptPause, CloseReason, ConnectError, Connection, Event, EventBatch, ListenerId, Op, Ops};
pub use table::CONNECTION_BYTES;
