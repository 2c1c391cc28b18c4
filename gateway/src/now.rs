//! The time of one turn.

/// The time of one turn, read once by the driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Now {
    /// For timers and order: never goes back; its zero is arbitrary.
    pub monotonic_ms: u64,
    /// For people: milliseconds since 1970. May jump.
    pub wall_ms: u64,
}
