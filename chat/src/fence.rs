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
    failed: HashMap<Key, u32, SeededState>,
    order: VecDeque<Key>,
    max: usize,
}

impl Fences {
    /// `max` must exceed the requests that can be in flight to this hop.
    pub fn new(max: usize, state: SeededState) -> Self {
        Self { failed: HashMap::with_hasher(state), order: VecDeque::new(), max }
    }

    /// Whether `send` follows a failure that its sender did not know of.
    pub fn blocks(&mut self, send: &SendMail) -> bool {
        if self.failed.is_empty() {
            return false;
        }
        let key = (send.request.session, send.conversation);
        match self.failed.get(&key) {
            Some(&failed) if send.fence <= failed => true,
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
        if let Some(failed) = self.failed.get_mut(&key) {
            // An older send may fail later than a newer one: what the newer one blocks stays blocked.
            *failed = fence.max(*failed);
        } else {
            self.failed.insert(key, fence);
            self.order.push_back(key);
        }
        while self.order.len() > self.max {
            let oldest = self.order.pop_front().expect("longer than max");
            self.failed.remove(&oldest);
        }
    }
}
