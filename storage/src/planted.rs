//! Bugs that the simulator must be able to find, compiled in only with the feature `planted-bugs`.
//!
//! Without the feature every switch is constantly off and the branches vanish.

/// Which bugs are switched on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Planted {
    /// Recovery shows what was written without syncing it first.
    pub serve_unsynced: bool,
    /// Recovery takes any batch whose own checksums match, whatever its place in the chain.
    pub stale_tail: bool,
    /// The checkpoint is recorded before the views are durable.
    pub checkpoint_ahead: bool,
    /// Dedup rows are forgotten by the times of records, which a clock that jumped has made.
    pub forgets_by_records: bool,
}

impl Planted {
    /// No bugs.
    pub const NONE: Planted =
        Planted { serve_unsynced: false, stale_tail: false, checkpoint_ahead: false, forgets_by_records: false };

    /// `self` with the feature, [`Planted::NONE`] without it.
    #[must_use]
    pub fn effective(self) -> Planted {
        if cfg!(feature = "planted-bugs") { self } else { Planted::NONE }
    }
}
