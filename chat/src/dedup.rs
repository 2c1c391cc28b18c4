//! One client message id, one seq: the window of ids that is kept in memory (P6).
//!
//! Every id that is pending, or committed and not yet checkpointed, is here; so are the newest of the
//! others, up to a cap. Older ones are in the `Dedup` view. A lookup there costs a read, so the time
//! that a UUIDv7 carries is used to see that it cannot help: an id recorded earlier than memory
//! reaches has a time of at most the time of its record, or of the conversation's highest id that was
//! ahead of its record. Only times of records are compared, never the present clock.

use std::collections::{HashMap, VecDeque};

use rapidhash::v3::{RapidSecrets, rapidhash_v3_seeded};
use wire::ids::{ClientMessageId, ConversationId};
use wire::mail::SendMail;

use crate::SeededState;
use crate::conversation::Conversation;

/// Bytes of a key of the `Dedup` view: conversation, user, device, client message id.
pub const KEY_BYTES: usize = 17 + 8 + 4 + 16;

/// Key of the `Dedup` view.
pub fn key(conversation: ConversationId, send: &SendMail) -> [u8; KEY_BYTES] {
    let mut key = [0; KEY_BYTES];
    key[..17].copy_from_slice(&conversation.key());
    key[17..25].copy_from_slice(&send.request.user.0.to_be_bytes());
    key[25..29].copy_from_slice(&send.request.device.0.to_be_bytes());
    key[29..].copy_from_slice(&send.id.0);
    key
}

/// What an id was used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Used {
    pub seq: u64,
    pub body_hash: u64,
    pub time_ms: u64,
    /// Proposed and not committed.
    pub pending: bool,
}

impl Used {
    /// Bytes of a row of the `Dedup` view: time (its first eight bytes by contract), seq, hash.
    pub fn row(&self) -> [u8; 24] {
        let mut row = [0; 24];
        row[..8].copy_from_slice(&self.time_ms.to_le_bytes());
        row[8..16].copy_from_slice(&self.seq.to_le_bytes());
        row[16..].copy_from_slice(&self.body_hash.to_le_bytes());
        row
    }

    /// Reads a row of the `Dedup` view.
    pub fn from_row(row: &[u8]) -> Option<Self> {
        let row: &[u8; 24] = row.try_into().ok()?;
        let number = |at: usize| u64::from_le_bytes(row[at..at + 8].try_into().expect("eight bytes"));
        Some(Self { time_ms: number(0), seq: number(8), body_hash: number(16), pending: false })
    }
}

/// Two keyed 64-bit hashes of a key: nobody without the seeds can make two keys meet.
pub type Fingerprint = u128;

/// The ids in memory.
#[derive(Debug)]
pub struct Window {
    secrets: [RapidSecrets; 2],
    used: HashMap<Fingerprint, Used, SeededState>,
    /// Committed ids in the order of their commit.
    order: VecDeque<Fingerprint>,
    entries_max: usize,
    /// Committed ids ever, and how many of them were covered by the last freeze and the last checkpoint.
    committed: u64,
    frozen: VecDeque<(u64, u64)>,
    covered: u64,
    forgotten: u64,
    /// Highest record time of any id that was forgotten.
    forgotten_until_ms: u64,
    /// Checkpoints done; an absent row read before the last one may meanwhile be present.
    pub checkpoints: u64,
    /// The views may have forgotten ids of records up to this time.
    pub unknowable_until_ms: u64,
}

impl Window {
    /// `seed` must be unknown to clients.
    pub fn new(entries_max: u32, seed: u64, state: SeededState) -> Self {
        Self {
            secrets: [RapidSecrets::seed(seed), RapidSecrets::seed(!seed)],
            used: HashMap::with_hasher(state),
            order: VecDeque::new(),
            entries_max: entries_max as usize,
            committed: 0,
            frozen: VecDeque::new(),
            covered: 0,
            forgotten: 0,
            forgotten_until_ms: 0,
            checkpoints: 0,
            unknowable_until_ms: 0,
        }
    }

    /// The fingerprint of a key.
    pub fn fingerprint(&self, key: &[u8; KEY_BYTES]) -> Fingerprint {
        let [one, other] = &self.secrets;
        u128::from(rapidhash_v3_seeded(key, one)) << 64 | u128::from(rapidhash_v3_seeded(key, other))
    }

    /// What memory knows.
    pub fn get(&self, fingerprint: Fingerprint) -> Option<Used> {
        self.used.get(&fingerprint).copied()
    }

    /// Whether `id`, unknown here, could be in the views: only then is a read worth it.
    pub fn may_be_stored(&self, conversation: &Conversation, loaded_time_ms: u64, id: ClientMessageId) -> bool {
        let reach = loaded_time_ms.max(self.forgotten_until_ms).max(conversation.ids_ahead_until_ms);
        conversation.head > 0 && id.time_ms().is_none_or(|time| time <= reach)
    }

    /// Whether `id`, found neither here nor in the views, may be one that the views have forgotten: they have
    /// forgotten records of its time, and its author has sent under an id as high, `ids_until_ms`. The one compares it with the
    /// server's clock, the other with its author's, and by one clock alone that jumped no new id is refused.
    pub fn is_unknowable(&self, ids_until_ms: u64, id: ClientMessageId) -> bool {
        id.time_ms().is_some_and(|time| time <= self.unknowable_until_ms.min(ids_until_ms))
    }

    /// An id is proposed.
    pub fn propose(&mut self, fingerprint: Fingerprint, used: Used) {
        self.used.insert(fingerprint, Used { pending: true, ..used });
    }

    /// A proposal was taken back.
    pub fn take_back(&mut self, fingerprint: Fingerprint) {
        self.used.remove(&fingerprint);
    }

    /// An id was committed, live or in recovery.
    pub fn commit(&mut self, fingerprint: Fingerprint, used: Used) {
        self.used.insert(fingerprint, Used { pending: false, ..used });
        self.order.push_back(fingerprint);
        self.committed += 1;
        while self.used.len() > self.entries_max && self.forgotten < self.covered {
            let oldest = self.order.pop_front().expect("covered ids are in order");
            self.forgotten += 1;
            if let Some(used) = self.used.remove(&oldest) {
                self.forgotten_until_ms = self.forgotten_until_ms.max(used.time_ms);
            }
        }
    }

    /// What has been committed so far goes into `checkpoint`.
    pub fn freeze(&mut self, checkpoint: u64) {
        self.frozen.push_back((checkpoint, self.committed));
    }

    /// `checkpoint` is durable: what it covers may be forgotten. So may the views what is not above
    /// `unknowable_until_ms`.
    pub fn done(&mut self, checkpoint: u64, unknowable_until_ms: u64) {
        self.unknowable_until_ms = unknowable_until_ms;
        while let Some(&(number, committed)) = self.frozen.front()
            && number <= checkpoint
        {
            self.covered = committed;
            self.frozen.pop_front();
        }
        self.checkpoints += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn used(time_ms: u64) -> Used {
        Used { seq: 1, body_hash: 2, time_ms, pending: false }
    }

    #[test]
    fn nothing_is_forgotten_before_its_checkpoint() {
        let mut window = Window::new(2, 1, SeededState::new(1));
        for n in 0..5 {
            window.commit(n, used(n as u64));
        }
        assert!((0..5).all(|n| window.get(n).is_some()));
        window.freeze(1);
        window.commit(5, used(5));
        window.done(1, 0);
        window.commit(6, used(6));
        assert_eq!((0..7).filter(|&n| window.get(n).is_some()).collect::<Vec<_>>(), [5, 6]);
        assert_eq!(window.forgotten_until_ms, 4);
    }

    #[test]
    fn rows_read_back() {
        assert_eq!(Used::from_row(&used(9).row()), Some(used(9)));
    }
}
