//! The rules: conversations, sequencing, receipts, lists, sessions, limits.
//!
//! Plain synchronous state machines: time, letters, frames and answers of storage come in; letters,
//! frames and questions to storage go out through [`Effects`]. No I/O, no clock, no threads.
//!
//! Three parts, each reached by the address of a letter: the owner of conversations (`owner`,
//! `sending`, `reading`), the owner of users (`users`, `gather`), the sessions (`sessions`).

mod begun;
mod conversation;
mod dedup;
mod devices;
mod effects;
mod fence;
mod gather;
mod held_back;
mod limits;
mod members;
mod overlay;
mod owner;
mod planted;
mod pressure;
mod reading;
mod receipts;
mod record;
mod sending;
mod sessions;
mod shard;
mod tail;
mod users;
mod waiting;
pub mod wheel;

pub use effects::{ClientKey, Effects, Now};
pub use limits::Limits;
#[cfg(feature = "planted-bugs")]
pub use planted::PlantedBug;
pub use pressure::{Pressure, Work};
pub use record::{Record, RecordError};
pub use sessions::{Identity, SessionKey};
pub use shard::{Chat, ChatConfig};

use std::hash::BuildHasher;

/// Hashes for maps, seeded by the caller: the same seed gives the same run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SeededState(u64);

impl SeededState {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }
}

impl BuildHasher for SeededState {
    type Hasher = rapidhash::fast::RapidHasher<'static>;
    fn build_hasher(&self) -> Self::Hasher {
        rapidhash::fast::RapidHasher::new(self.0)
    }
}

macro_rules! counters {
    ($($name:ident $doc:literal,)*) => {
        /// What the rules counted since the start. Only ever grows.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        pub struct Counters { $(#[doc = $doc] pub $name: u64,)* }

        impl Counters {
            /// Name, value and meaning of each.
            pub fn all(&self) -> impl Iterator<Item = (&'static str, u64, &'static str)> {
                [$((stringify!($name), self.$name, $doc),)*].into_iter()
            }
            /// Adds another's counts.
            pub fn add(&mut self, other: &Self) { $(self.$name += other.$name;)* }
        }
    };
}

counters! {
    messages "Messages committed.",
    repeated "Sends answered from the dedup window.",
    ids_expired "Sends refused because their id may have been used and forgotten.",
    groups "Groups submitted to the journal.",
    loads "Conversations read into memory.",
    lookups "Client message ids looked up in storage.",
    parked "Commands that waited for storage.",
    parked_refused "Commands refused because too many bytes were waiting for storage.",
    pending_refused "Sends refused because too much was waiting for its commit, or storage stalled.",
    pulls_refused "Reads of history refused because too many were under way.",
    reads_waited "Reads of history that waited for a seq that was not there yet.",
    reads_left "Reads that waited for a seq when their client went away.",
    appends_refused "Parts of groups that storage refused.",
    fenced "Parts refused because another owner has the slot.",
    stalls "Times that a commit took longer than a send may wait.",
    read_errors "Reads that failed or found damage.",
    mailbox_refused "Requests refused because a mailbox was full.",
    sessions_opened "Sessions opened.",
    sessions_superseded "Sessions closed because the same device came again.",
    sessions_refused "Sessions refused because the user had too many.",
    replays "Opens answered from the tail.",
    deltas "Opens answered with the changed conversations.",
    snapshots "Opens answered with all conversations.",
    delivered "Messages pushed to sessions.",
    lagging "Times that a session began to lag.",
    too_slow "Sessions closed because too much was waiting for them.",
    bad_cursor "Marks and cursors outside their conversation.",
    sends_held_back "Sends answered `retry` behind a failed one.",
    lists_cut "Lists that leave conversations out because their user has too many.",
    lists_refused "Lists refused because too many were being made for their user.",
    conversations_refused "Sends refused because their author had begun enough conversations.",
    shed_signals "Signals dropped because the shard was under pressure.",
    shed_receipts "Marks refused or put off because the shard was under pressure.",
    shed_scans "Pages and lists refused because the shard was under pressure.",
    shed_sends "Sends refused because the shard was under pressure.",
    marks_put_off "Marks given by beats that were refused, and go with a later beat.",
}
