//! Keeps one sender's order across a failure (P5).
//!
//! A session numbers its failures per conversation. When a hop refuses a send retryably it remembers
//! the number that the send carried; whatever arrives behind it with a number not above that one was
//! sent before the client knew, and is answered `retry`. A send with a higher number comes from a
//! client that knows, and clears the memory. Sends in flight are bounded, so the table is.

use std::collections::{HashMap, VecDeque};

use crate::SeededState;
use wire::ids::ConversationId;
use wire::mail::{SendMail, SessionAddress};

type Key = (SessionAddress, ConversationId);

/// The failures that one hop remembers.
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

    /// Whether `send` follows a failure that its sender did not know of.
    pub fn blocks(&mut self, send: &SendMail) -> bool {
        if self.failed.is_empty() {
            return false;
        }
        let key = (send.request.session, send.conversation);
        match self.failed.get(&key) {
            Some(&(failed, _)) if send.fence <= failed => true,
            Some(_) => {
                self.failed.remove(&key);
                false
            }
            None => false,
        }
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
    use wire::ids::{ClientMessageId, DeviceId, UserId};
    use wire::mail::Request;
    use wire::protocol::Kind;

    use super::*;

    fn send(index: u32, fence: u32) -> SendMail {
        let session = SessionAddress { shard: 0, index, generation: 1 };
        SendMail {
            request: Request { session, user: UserId(1), device: DeviceId(1), number: 1 },
            fence,
            conversation: ConversationId::direct(UserId(1), UserId(2)),
            id: ClientMessageId([0; 16]),
            kind: Kind::Text,
            reply_to: 0,
            target_seq: 0,
        }
    }

    #[test]
    fn a_new_failure_outlives_the_place_in_line_of_the_old_one() {
        let mut fences = Fences::new(2, SeededState::new(1));
        let fail = |fences: &mut Fences, index, fence| {
            let send = send(index, fence);
            fences.failed(send.request.session, send.conversation, fence);
        };
        fail(&mut fences, 1, 0);
        assert!(!fences.blocks(&send(1, 1)), "a sender that knows passes");
        fail(&mut fences, 1, 1);
        fail(&mut fences, 2, 0);
        assert!(fences.blocks(&send(1, 1)) && fences.blocks(&send(2, 0)));
    }
}
