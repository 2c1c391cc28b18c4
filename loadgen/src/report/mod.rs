//! How a run is shown: live, exported while it goes on, as a table at its end, and as a page that compares.
//!
//! `recorder` follows a run from before its first connection and completes the engine's
//! [`result`](crate::result); the rest turns results into something to look at.

mod charts;
mod compare;
mod export;
mod format;
mod host;
mod html;
mod live;
pub mod page;
mod process;
mod recorder;
mod scrape;
mod table;

pub use html::page;
pub(crate) use process::resident_bytes;
pub use recorder::{OutputError, Outputs, Recorder};
