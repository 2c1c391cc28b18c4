//! How Ringway touches the kernel's sockets: one io_uring per thread, plain synchronous code.
//!
//! This crate acts and decides nothing. What happened and what is to be done cross the [seam] as
//! plain data, so that the simulator can stand in for the kernel.

pub mod seam;

pub use seam::{
    AcceptPause, CloseReason, ConnectError, Connection, Event, EventBatch, ListenerId, Op, Ops,
};
