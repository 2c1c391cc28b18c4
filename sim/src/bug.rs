//! Bugs planted on purpose, to show that the simulator finds them.

use storage::planted::Planted;

macro_rules! bugs {
    ($($variant:ident $name:literal,)*) => {
        /// A planted bug. They are compiled in only with the feature `planted-bugs`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Bug { $(#[doc = $name] $variant,)* }

        impl Bug {
            /// All of them.
            pub const ALL: &'static [Bug] = &[$(Bug::$variant,)*];
            /// Its name on the command line.
            pub fn name(self) -> &'static str { match self { $(Self::$variant => $name,)* } }
        }
    };
}

bugs! {
    AckBeforeCommit "ack-before-commit",
    PublishBeforeCommit "publish-before-commit",
    SeqReused "seq-reused-after-crash",
    DedupForgotten "dedup-forgotten-after-restart",
    DupWhilePending "dup-answered-while-pending",
    HoleShownAsComplete "hole-shown-as-complete",
    ChangeReused "change-number-reused",
    WakeUpLost "wake-up-lost",
    ReplyDropped "reply-dropped-on-full-mailbox",
    ServeUnsynced "unsynced-served-after-restart",
    CheckpointAhead "checkpoint-ahead-of-views",
    StaleTail "stale-tail-resurrected",
    ForgetsByRecords "ids-forgotten-by-a-jump",
    ExpiredByClock "new-id-expired-by-a-jump",
    DrainWithoutEnd "drain-without-end",
}

impl Bug {
    /// The bug of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|bug| bug.name() == name)
    }

    /// The switches of the store for it.
    pub fn of_store(self) -> Planted {
        Planted {
            serve_unsynced: self == Self::ServeUnsynced,
            stale_tail: self == Self::StaleTail,
            checkpoint_ahead: self == Self::CheckpointAhead,
            forgets_by_records: self == Self::ForgetsByRecords,
        }
    }

    /// The bug of the rules, if it is one of theirs.
    #[cfg(feature = "planted-bugs")]
    pub fn of_chat(self) -> Option<chat::PlantedBug> {
        Some(match self {
            Self::AckBeforeCommit => chat::PlantedBug::AckBeforeCommit,
            Self::PublishBeforeCommit => chat::PlantedBug::PublishBeforeCommit,
            Self::SeqReused => chat::PlantedBug::SeqReused,
            Self::DedupForgotten => chat::PlantedBug::DedupForgotten,
            Self::DupWhilePending => chat::PlantedBug::DupWhilePending,
            Self::HoleShownAsComplete => chat::PlantedBug::HoleShownAsComplete,
            Self::ChangeReused => chat::PlantedBug::ChangeReused,
            Self::ExpiredByClock => chat::PlantedBug::ExpiredByClock,
            _ => return None,
        })
    }

    /// The bug of the mailboxes, if it is one of theirs.
    #[cfg(feature = "planted-bugs")]
    pub fn of_mail(self) -> Option<shard_router::PlantedBug> {
        Some(match self {
            Self::WakeUpLost => shard_router::PlantedBug::WakeUpForgotten,
            Self::ReplyDropped => shard_router::PlantedBug::ReplyDropped,
            _ => return None,
        })
    }
}
