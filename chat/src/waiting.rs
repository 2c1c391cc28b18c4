//! Reads that are ahead: whoever asks for a seq that is not there yet gets it if it comes soon (P8).

use std::collections::{HashMap, VecDeque};

use wire::ids::ConversationId;

use crate::SeededState;
use crate::reading::Pull;

/// How long a read waits for its `min_seq`.
const WAIT_MS: u64 = 1_000;

/// The reads that wait, of one shard.
#[derive(Debug)]
pub(crate) struct WaitingReads {
    reads: HashMap<ConversationId, Vec<(u64, Pull)>, SeededState>,
    /// When to look at which conversation, in order; it may have been answered before.
    due: VecDeque<(u64, ConversationId)>,
}

impl WaitingReads {
    pub(crate) fn new(state: SeededState) -> Self {
        Self { reads: HashMap::with_hasher(state), due: VecDeque::new() }
    }

    /// How many places are taken.
    pub(crate) fn len(&self) -> usize {
        self.due.len()
    }

    pub(crate) fn add(&mut self, now_ms: u64, pull: &Pull) {
        let until_ms = now_ms + WAIT_MS;
        self.due.push_back((until_ms, pull.conversation));
        self.reads.entry(pull.conversation).or_default().push((until_ms, *pull));
    }

    /// Takes the reads that a conversation of that head can answer.
    pub(crate) fn reached(&mut self, conversation: ConversationId, head: u64) -> Vec<Pull> {
        if self.reads.is_empty() {
            return Vec::new();
        }
        self.take(conversation, |_, pull| pull.min_seq <= head)
    }

    /// Takes the reads that have waited for long enough.
    pub(crate) fn late(&mut self, now_ms: u64) -> Vec<Pull> {
        let mut late = Vec::new();
        while let Some((_, conversation)) = self.due.pop_front_if(|due| due.0 <= now_ms) {
            late.extend(self.take(conversation, |until_ms, _| until_ms <= now_ms));
        }
        late
    }

    fn take(&mut self, conversation: ConversationId, is_over: impl Fn(u64, &Pull) -> bool) -> Vec<Pull> {
        let Some(waiting) = self.reads.get_mut(&conversation) else { return Vec::new() };
        let taken = waiting.extract_if(.., |(until_ms, pull)| is_over(*until_ms, pull)).map(|(_, pull)| pull).collect();
        if waiting.is_empty() {
            self.reads.remove(&conversation);
        }
        taken
    }

    /// When the next one has waited for long enough.
    pub(crate) fn deadline_ms(&self) -> Option<u64> {
        self.due.front().map(|due| due.0)
    }
}
