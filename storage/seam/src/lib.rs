//! The storage seam: what a shard may ask for and what it is told, by submission and completion.
//!
//! A shard submits [`StorageRequest`]s and finds [`StorageEvent`]s in its next turn. It never waits,
//! and storage never calls it. Storage knows slots, positions and ordered rows of bytes; it knows
//! nothing of conversations, so the same seam serves every backend and the simulator.
//!
//! The only commit point is the journal. Views are ordered maps that follow it: a shard keeps what it
//! committed in an overlay of its own until a checkpoint has made it durable in the views.

use std::ops::Range;
use std::sync::Arc;

/// Number of one of the 4,096 hash ranges, each with a journal of its own.
pub type Slot = u16;
/// Fencing number of a slot: an append of a lower epoch than the highest opened is refused.
pub type Epoch = u64;
/// Log sequence number: how many records a slot's journal holds; the next record gets this number.
pub type Lsn = u64;
/// A place in the physical journal. Grows with every commit; compares across slots of one backend.
pub type Position = u64;
/// Chosen by the shard, returned with the completion, never interpreted here.
pub type Ticket = u64;

/// How much a commit survives (P2 in `docs/architecture.md`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Synced on one node's disk: survives a crash and a power cut, is lost with the disk.
    D1,
    /// Committed by the storage engine's quorum or in its durable settings.
    D2,
}

/// What a store is, told to every shard before it serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreFacts {
    /// Incarnation of the history. It changes when history may have shrunk (restore, failover).
    pub generation: u64,
    /// Epoch at which every slot of this process was opened.
    pub epoch: Epoch,
    /// What an acknowledgement promises.
    pub class: Class,
}

/// One slot's share of a group commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// The slot whose journal grows.
    pub slot: Slot,
    /// The epoch at which the submitter owns the slot.
    pub epoch: Epoch,
    /// The LSN that the first record of this part must get.
    pub expected_lsn: Lsn,
    /// How many records `bytes` holds.
    pub records: u32,
    /// The records in [`AppendGroup::bytes`], each preceded by its length as a little-endian `u32`.
    pub bytes: Range<u32>,
}

/// Parts of many slots to be committed together, with one outcome each. A backend may split a group.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AppendGroup {
    /// Returned with the outcome.
    pub ticket: Ticket,
    /// At most one part per slot.
    pub parts: Vec<Part>,
    /// What all parts point into.
    pub bytes: Vec<u8>,
}

/// What became of one part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// In the journal, at the class of the store.
    Committed,
    /// A higher epoch owns the slot: nothing was written, nothing may be tried again.
    Fenced,
    /// The slot's LSN is not the expected one: nothing was written.
    Conflict,
    /// Nothing was written, and the same part may be submitted again later.
    Refused(Refusal),
}

/// Why a part was certainly not written. An outcome that is not certain is never reported to a shard:
/// the backend resolves it by reading at its own epoch first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// No room on the device.
    Full,
    /// Views lag so far behind the journal that it may not grow.
    ViewsBehind,
    /// The store does not answer or is shutting down.
    Unavailable,
}

/// The ordered maps a store keeps. Keys are compared as bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Space {
    /// Conversation and seq to the message record.
    History = 0,
    /// Conversation, user, device and client message id to the seq it got.
    Dedup = 1,
    /// Conversation to its head: seq, members, marks.
    Heads = 2,
    /// User and conversation to the fact of membership.
    Members = 3,
}

impl Space {
    /// All spaces, in the order in which a run is written.
    pub const ALL: [Space; 4] = [Space::History, Space::Dedup, Space::Heads, Space::Members];
}

/// Where a row of a run lies in its arena.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowRef {
    /// The map that it belongs to.
    pub space: Space,
    /// First byte of the key; the value follows the key directly.
    pub offset: u32,
    /// Bytes of key.
    pub key_bytes: u16,
    /// Bytes of value.
    pub value_bytes: u32,
}

/// Some rows of a run, and what they point into.
#[derive(Debug, Clone, Default)]
pub struct Chunk {
    /// Keys and values.
    pub bytes: Vec<u8>,
    /// The rows.
    pub rows: Vec<RowRef>,
}

impl Chunk {
    /// The key and the value of `row`.
    pub fn get(&self, row: RowRef) -> (&[u8], &[u8]) {
        let key = row.offset as usize;
        let value = key + row.key_bytes as usize;
        (&self.bytes[key..value], &self.bytes[value..value + row.value_bytes as usize])
    }
}

/// Rows that a shard hands to the views, unsorted. A later row of the same key replaces an earlier one.
#[derive(Debug, Clone, Default)]
pub struct Run {
    /// The rows, in pieces. Shared, because the shard reads from them until the checkpoint is done, and wants
    /// them back then: whoever brings the views forward lets go of them first.
    pub chunks: Arc<Vec<Chunk>>,
    /// For each slot with records in this run: the LSN up to which the run covers it. Backends
    /// whose checkpoint is per slot use it; the embedded one has a single physical position.
    pub covered: Vec<(Slot, Lsn)>,
}

impl Run {
    /// A run of one piece.
    pub fn of(bytes: Vec<u8>, rows: Vec<RowRef>) -> Run {
        Run { chunks: Arc::new(vec![Chunk { bytes, rows }]), covered: Vec::new() }
    }

    /// The rows, each with its map, key and value.
    pub fn rows(&self) -> impl Iterator<Item = (Space, &[u8], &[u8])> {
        self.chunks.iter().flat_map(|chunk| {
            chunk.rows.iter().map(|&row| {
                let (key, value) = chunk.get(row);
                (row.space, key, value)
            })
        })
    }
}

/// A question to the views. Answers do not contain what is only in a shard's overlay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ViewRead {
    /// The value of one key.
    Get {
        /// The map.
        space: Space,
        /// The whole key.
        key: Vec<u8>,
    },
    /// Rows with `start <= key < end`, in key order or from the end.
    Range {
        /// The map.
        space: Space,
        /// First key wanted.
        start: Vec<u8>,
        /// First key no longer wanted.
        end: Vec<u8>,
        /// Most rows to return.
        rows_max: u32,
        /// Stop after the row that reaches this many bytes of values.
        bytes_max: u32,
        /// From the end towards the start.
        reverse: bool,
    },
}

/// Rows found, in the order asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rows {
    /// Keys and values, each value directly behind its key.
    pub bytes: Vec<u8>,
    /// Where they lie: (first byte of key, bytes of key, bytes of value).
    pub index: Vec<(u32, u16, u32)>,
    /// There are more rows in the range than the limits allowed.
    pub more: bool,
}

impl Rows {
    /// Adds a row behind the others.
    pub fn push(&mut self, key: &[u8], value: &[u8]) {
        self.index.push((self.bytes.len() as u32, key.len() as u16, value.len() as u32));
        self.bytes.extend_from_slice(key);
        self.bytes.extend_from_slice(value);
    }

    /// The rows as (key, value).
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&[u8], &[u8])> + ExactSizeIterator {
        self.index.iter().map(|&(offset, key_bytes, value_bytes)| {
            let key = offset as usize;
            let value = key + key_bytes as usize;
            (&self.bytes[key..value], &self.bytes[value..value + value_bytes as usize])
        })
    }
}

/// Why a view could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// A checksum did not match: the row exists and cannot be trusted. Never answered as absent.
    #[error("stored data is damaged: {0}; run `ringway storage check`")]
    Damaged(String),
    /// The store does not answer; the same read may be tried later.
    #[error("storage does not answer: {0}")]
    Unavailable(String),
}

/// What a shard asks of storage.
#[derive(Debug)]
pub enum StorageRequest {
    /// Commit a group. At most one group per shard is in flight.
    Append(AppendGroup),
    /// Read a view.
    Read(Ticket, ViewRead),
    /// The answer to [`StorageEvent::Freeze`]: everything that the shard applied up to the marker.
    Run {
        /// The checkpoint asked for.
        checkpoint: u64,
        /// The rows; may be empty.
        run: Run,
    },
    /// Everything recovered has been applied: checkpoints may begin.
    Serving,
}

/// What storage tells a shard.
#[derive(Debug)]
pub enum StorageEvent {
    /// Records found behind the last checkpoint at start-up, for this shard's slots, in journal order,
    /// one event per part. `group.parts` holds exactly one part; its records are committed and synced.
    Recovered(AppendGroup),
    /// All `Recovered` events have been delivered. `tails` holds the next LSN of each slot of this shard.
    RecoveredAll {
        /// Slot and the LSN of its next record.
        tails: Vec<(Slot, Lsn)>,
        /// As in [`StorageEvent::CheckpointDone`].
        forgotten_until_ms: u64,
    },
    /// A group's outcomes, in the order of its parts; the group is returned for reuse.
    Appended {
        /// The group as submitted.
        group: AppendGroup,
        /// One outcome per part.
        outcomes: Vec<Outcome>,
    },
    /// A read's answer.
    Read(Ticket, Result<Rows, ReadError>),
    /// A marker in the stream of `Appended` events: the journal up to here becomes checkpoint number
    /// `checkpoint`. The shard answers with everything that it has applied from earlier events and not
    /// handed over before.
    Freeze {
        /// Counts up by one.
        checkpoint: u64,
    },
    /// The checkpoint is durable in the views and in the journal: its run may be forgotten.
    CheckpointDone {
        /// Its number.
        checkpoint: u64,
        /// From now on, [`Space::Dedup`] rows whose value begins with a time up to this one may be absent though
        /// they were written. Never rows of the last seven days, whatever the clocks do; and nobody is told of
        /// an absence before this.
        forgotten_until_ms: u64,
    },
}
