//! Part of Ringway.

pub mod wheel;
