//! Reads that are ahead: whoever asks for a seq that is not there yet gets it if it comes soon (P8).

use std::collections::{BTreeMap, HashMap};

use wire::ids::ConversationId;

use crate::SeededState;
use crate::reading::Pull;

/// How long a read waits for its `min_seq`.
const WAIT_MS: u64 = 1_000;

/// Until when a read waits, and its number: the order in which they are given up.
type Place = (u64, u64);

/// The reads that wait, of one shard. A read that is answered has left nothing behind.
#[derive(Debug)]
pub(crate) struct WaitingReads {
    reads: BTreeMap<Place, Pull>,
    /// The places of each conversation's, in order.
    places: HashMap<ConversationId, Vec<Place>, SeededState>,
    /// Number of the next.
    next: u64,
}

impl WaitingReads {
    pub(crate) fn new(state: SeededState) -> Self {
        Self { reads: BTreeMap::new(), places: HashMap::with_hasher(state), next: 0 }
    }

    /// How many places are taken.
    pub(crate) fn len(&self) -> usize {
        self.reads.len()
    }

    pub(crate) fn add(&mut self, now_ms: u64, pull: &Pull) {
        let place = (now_ms + WAIT_MS, self.next);
        self.next += 1;
        self.reads.insert(place, *pull);
        self.places.entry(pull.conversation).or_default().push(place);
    }

    /// Takes the reads that a conversation of that head can answer.
    pub(crate) fn reached(&mut self, conversation: ConversationId, head: u64) -> Vec<Pull> {
        if self.reads.is_empty() {
            return Vec::new();
        }
        self.of(conversation, |pull| pull.min_seq <= head)
    }

    /// Takes the reads that have waited for long enough.
    pub(crate) fn late(&mut self, now_ms: u64) -> Vec<Pull> {
        let mut late = Vec::new();
        while let Some((_, pull)) = self.reads.first_key_value().filter(|(place, _)| place.0 <= now_ms) {
            late.extend(self.take(pull.conversation, &|place, _| place.0 <= now_ms));
        }
        late
    }

    /// Takes those of a conversation's reads that are meant, in order.
    pub(crate) fn of(&mut self, conversation: ConversationId, is_meant: impl Fn(&Pull) -> bool) -> Vec<Pull> {
        self.take(conversation, &|_, pull| is_meant(pull))
    }

    /// Seldom, and once for all callers: what is always asked for stays small.
    #[cold]
    fn take(&mut self, conversation: ConversationId, is_over: &dyn Fn(Place, &Pull) -> bool) -> Vec<Pull> {
        let (reads, Some(places)) = (&mut self.reads, self.places.get_mut(&conversation)) else { return Vec::new() };
        let over: Vec<_> = places.extract_if(.., |place| is_over(*place, &reads[place])).collect();
        if places.is_empty() {
            self.places.remove(&conversation);
        }
        over.iter().map(|place| reads.remove(place).expect("each place has its read")).collect()
    }

    /// When the next one has waited for long enough.
    pub(crate) fn deadline_ms(&self) -> Option<u64> {
        self.reads.first_key_value().map(|(place, _)| place.0)
    }
}
