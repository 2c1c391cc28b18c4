//! What the machine allows: reads the kernel's and the host's settings, and says how many
//! sessions they leave room for, which of them ends first, and what to do about it.
//!
//! It reads files below a root directory and changes nothing, so that a test can hand it any
//! machine.

mod checks;
mod machine;
mod report;

pub use checks::{Check, Status, check};
pub use machine::{Machine, Memory};
pub use report::Report;
