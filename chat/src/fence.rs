//! Keeps one sender's order across a failure (P5).
//!
//! A session counts the failures in a conversation, apart for each owner on the way. When an owner refuses a
//! send retryably it numbers that failure and tells the number; whatever comes behind it with a count not above
//! that was sent before the client knew, and is answered `retry`. When a send with a higher count, from a client
//! that knows, has had its turn, the memory is cleared. Sends in flight are bounded, so the table is.

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
    /// For an owner to which so many shards send, each with so many requests under way: room for twice the sends that all their mailboxes can hold, as one
    /// fault of storage may fail them all.
    pub fn for_shards(shards: u16, requests_max: u32, state: SeededState) -> Self {
        Self::new(2 * usize::from(shards) * requests_max as usize, state)
    }

    /// `max` must exceed the requests that can be in flight to this hop.
    pub fn new(max: usize, state: SeededState) -> Self {
        Self { failed: HashMap::with_hasher(state), order: VecDeque::new(), stamp: 0, max }
    }

    /// The failure that a send follows without knowing of it; `fence` is how many of this owner's it knows.
    pub fn blocks(&self, session: SessionAddress, conversation: ConversationId, fence: u32) -> Option<u32> {
        if self.failed.is_empty() {
            return None;
        }
        let failed = self.failed.get(&(session, conversation))?.0;
        (fence <= failed).then_some(failed)
    }

    /// A send has its turn that nothing blocks: everything in front of it has had its own.
    pub fn passes(&mut self, session: SessionAddress, conversation: ConversationId, fence: u32) {
        if !self.failed.is_empty()
            && self.failed.get(&(session, conversation)).is_some_and(|(failed, _)| fence > *failed)
        {
            self.failed.remove(&(session, conversation));
        }
    }

    /// A send was refused and its sender will be told to try again. Says the number of this failure: one more than
    /// that of the last, for who sent with that one known may not know of this one.
    pub fn failed(&mut self, session: SessionAddress, conversation: ConversationId, fence: u32) -> u32 {
        let key = (session, conversation);
        let number = if let Some((failed, _)) = self.failed.get_mut(&key) {
            *failed = fence.max(*failed + 1);
            *failed
        } else {
            self.stamp += 1;
            self.failed.insert(key, (fence, self.stamp));
            self.order.push_back((key, self.stamp));
            fence
        };
        // What has passed meanwhile holds no place in line. The same sender may have failed again since: that failure
        // is not the oldest.
        while let Some(&(oldest, stamp)) = self.order.front() {
            let is_over = self.failed.get(&oldest).is_none_or(|entry| entry.1 != stamp);
            if !is_over && self.order.len() <= self.max {
                break;
            }
            self.order.pop_front();
            if !is_over {
                self.failed.remove(&oldest);
            }
        }
        number
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
        fences.passes(session(1), conversation, 1);
        fences.failed(session(1), conversation, 1);
        fences.failed(session(2), conversation, 0);
        assert_eq!(fences.blocks(session(1), conversation, 1), Some(1));
        assert_eq!(fences.blocks(session(2), conversation, 0), Some(0));
    }

    #[test]
    fn an_owner_remembers_twice_what_the_mailboxes_can_hold() {
        let conversation = ConversationId::direct(UserId(1), UserId(2));
        let session = |index| SessionAddress { shard: 0, index, generation: 1 };
        let mut fences = Fences::for_shards(3, 2, SeededState::new(1));
        for index in 0..13 {
            fences.failed(session(index), conversation, 0);
        }
        assert_eq!(fences.blocks(session(0), conversation, 0), None);
        assert_eq!(fences.blocks(session(1), conversation, 0), Some(0));
    }

    #[test]
    fn who_knows_of_one_failure_does_not_know_of_the_next() {
        let conversation = ConversationId::direct(UserId(1), UserId(2));
        let session = SessionAddress { shard: 0, index: 1, generation: 1 };
        let mut fences = Fences::new(8, SeededState::new(1));
        // The second send fails at once and comes again; the first, in front of it all the time, fails then.
        assert_eq!(fences.failed(session, conversation, 0), 0);
        assert_eq!(fences.blocks(session, conversation, 1), None);
        assert_eq!(fences.failed(session, conversation, 0), 1);
        assert_eq!(fences.blocks(session, conversation, 1), Some(1));
    }
}
