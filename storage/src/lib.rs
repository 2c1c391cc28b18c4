//! Where Ringway keeps what it acknowledged: the journal (the commit point) and the views that follow it.

pub use storage_seam as seam;

mod checked;
#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
pub mod counters;
pub mod days;
pub mod disk;
pub mod embedded;
pub mod glommio_disk;
pub mod journal;
pub mod lane;
pub mod maintenance;
pub mod planted;
pub mod port;
pub mod postgres;
pub mod recovery;
mod scheduling;
pub mod segment;
pub mod sim_disk;
pub mod sim_store;
pub mod store;
mod taken;
pub mod views;
mod views_threads;
