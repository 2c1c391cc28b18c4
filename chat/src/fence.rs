//! Keeps one sender's order across a failure (P5).
//!
//! A session counts the failures in a conversation, apart for each owner on the way. When an owner refuses a
//! send retryably it remembers the count of its own failures that the send carried; whatever arrives behind it
//! with a count not above that one was sent before the client knew, and is answered `retry`. A send with a
//! higher count comes from a client that knows, and clears the memory. Sends in flight are bounded, so the
//! table is.

use std::collections::{HashMap, VecDeque};

use crate::SeededState;
use wire::ids::ConversationId;
use wire::mail::SessionAddress;

type Key = (SessionAddress, ConversationId);

/// The failures that one owner remembers.
#[derive(Debug)]
pub struct Fences {
    /// The number that failed, and which entry of `order` stands for it.
    failed: HashMap<Key, (u32, u64), SeededState>,
    order: VecDeque<(Key, u64)>,
    stamp: u64,
    max: usize,
}

impl Fences {
    /// `max` must exceed the requests that can be in flight to this hop.
    pub fn new(max: usize, state: SeededState) -> Self {
        Self { failed: HashMap::with_hasher(state), order: VecDeque::new(), stamp: 0, max }
    }

    /// The failure that a send follows without knowing of it; `fence` is how many of this owner's it knows.
    pub fn blocks(&mut self, session: SessionAddress, conversation: ConversationId, fence: u32) -> Option<u32> {
        if self.failed.is_empty() {
            return None;
        }
        let key = (session, conversation);
        let failed = self.failed.get(&key)?.0;
        if fence <= failed {
            return Some(failed);
        }
        self.failed.remove(&key);
        None
    }

    /// `send` was refused and its sender will be told to try again.
    pub fn failed(&mut self, session: SessionAddress, conversation: ConversationId, fence: u32) {
        let key = (session, conversation);
        if let Some((failed, _)) = self.failed.get_mut(&key) {
            // An older send may fail later than a newer one: what the newer one blocks stays blocked.
            *failed = fence.max(*failed);
        } else {
            self.stamp += 1;
            self.failed.insert(key, (fence, self.stamp));
            self.order.push_back((key, self.stamp));
        }
        while self.order.len() > self.max {
            let (oldest, stamp) = self.order.pop_front().expect("longer than max");
            // The same sender may have failed again since: that failure is not the oldest.
            if self.failed.get(&oldest).is_some_and(|entry| entry.1 == stamp) {
                self.failed.remove(&oldest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use wire::ids::UserId;

    use super::*;

    #[test]
    fn a_new_failure_outlives_the_place_in_line_of_the_old_one() {
        let conversation = ConversationId::direct(UserId(1), UserId(2));
        let session = |index| SessionAddress { shard: 0, index, generation: 1 };
        let mut fences = Fences::new(2, SeededState::new(1));
        fences.failed(session(1), conversation, 0);
        assert_eq!(fences.blocks(session(1), conversation, 1), None, "a sender that knows passes");
        fences.failed(session(1), conversation, 1);
        fences.failed(session(2), conversation, 0);
        assert_eq!(fences.blocks(session(1), conversation, 1), Some(1));
        assert_eq!(fences.blocks(session(2), conversation, 0), Some(0));
    }
}
