//! Bugs that the simulator must find, compiled in only with the feature `planted-bugs`.

/// A bug to be found by tests, to show that they would find a real one.
#[cfg(feature = "planted-bugs")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlantedBug {
    /// A send is acknowledged when it is proposed.
    AckBeforeCommit,
    /// A message is pushed when it is proposed.
    PublishBeforeCommit,
    /// Recovered messages are passed over, so that their seqs are given again.
    SeqReused,
    /// Recovered messages leave no trace among the used ids.
    DedupForgotten,
    /// A repeated send is acknowledged while the first is still uncommitted.
    DupWhilePending,
    /// A resume is answered from a tail that does not reach back far enough.
    HoleShownAsComplete,
    /// Change numbers begin again at the same epoch after a restart.
    ChangeReused,
    /// Whether an id is too old is judged by the present clock.
    ExpiredByClock,
}

/// Which bug is planted, if any; without the feature always none, at no cost.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Planted(#[cfg(feature = "planted-bugs")] pub Option<PlantedBug>);

/// Whether that bug is planted: constantly false without the feature.
macro_rules! planted {
    ($at:expr, $bug:ident) => {{
        #[cfg(feature = "planted-bugs")]
        {
            $at.planted.0 == Some($crate::planted::PlantedBug::$bug)
        }
        #[cfg(not(feature = "planted-bugs"))]
        {
            let _ = &$at.planted;
            false
        }
    }};
}
pub(crate) use planted;
