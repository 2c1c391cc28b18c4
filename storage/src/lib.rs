//! Where Ringway keeps what it acknowledged: the journal (the commit point) and the views that follow it.

pub use storage_seam as seam;

pub mod views;
