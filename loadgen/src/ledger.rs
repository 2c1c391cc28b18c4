//! What one user wrote to another, and what of it arrived: the counters in the stamps of the bodies.
//!
//! The sender keeps [`Written`], the receiver [`Arrived`]; [`lost`] holds one against the other when all is over.

use serde::{Deserialize, Serialize};

/// More than these at once are not missing: their number is wrong.
const AHEAD_MAX: u32 = 1_000_000;

/// What a sender wrote to one receiver.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Written {
    /// The counter of the next message.
    pub next: u32,
    /// Counters of messages that nobody promised: refused for good, or without an answer.
    pub unpromised: Vec<u32>,
}

impl Written {
    /// A counter for one more message.
    pub fn count(&mut self) -> u32 {
        self.next += 1;
        self.next - 1
    }
}

/// What came of a message that arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// The next one, or one after it.
    InOrder,
    /// One that came after a later one.
    Reordered,
    /// One that was there already.
    Doubled,
    /// One so far ahead that nobody can have written it.
    Unwritten,
}

/// What a receiver got from one sender.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Arrived {
    /// Above every counter that came.
    pub next: u32,
    /// Counters below it that did not come.
    pub missing: Vec<u32>,
}

impl Arrived {
    /// Takes in a message.
    pub fn take_in(&mut self, counter: u32) -> Arrival {
        if counter >= self.next {
            if counter == u32::MAX || counter - self.next > AHEAD_MAX {
                return Arrival::Unwritten;
            }
            self.missing.extend(self.next..counter);
            self.next = counter + 1;
            return Arrival::InOrder;
        }
        let Some(at) = self.missing.iter().position(|&missing| missing == counter) else { return Arrival::Doubled };
        self.missing.swap_remove(at);
        Arrival::Reordered
    }
}

/// How many messages were promised and never arrived.
pub fn lost(written: &Written, arrived: &Arrived) -> u64 {
    let absent = arrived.missing.iter().copied().chain(arrived.next..written.next);
    absent.filter(|counter| !written.unpromised.contains(counter)).count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_did_not_arrive_is_lost_unless_nobody_promised_it() {
        let written = Written { next: 6, unpromised: vec![1, 5] };
        let mut arrived = Arrived::default();
        assert_eq!(lost(&written, &arrived), 4);
        assert_eq!(arrived.take_in(0), Arrival::InOrder);
        assert_eq!(arrived.take_in(3), Arrival::InOrder);
        assert_eq!(lost(&written, &arrived), 2);
        assert_eq!(arrived.take_in(2), Arrival::Reordered);
        assert_eq!(arrived.take_in(2), Arrival::Doubled);
        assert_eq!(arrived.take_in(u32::MAX), Arrival::Unwritten);
        assert_eq!(arrived.take_in(4), Arrival::InOrder);
        assert_eq!(lost(&written, &arrived), 0);
    }
}
