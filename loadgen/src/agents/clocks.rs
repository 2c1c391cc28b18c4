//! What one machine's clock shows when another's shows something else, and by how much that may be wrong.
//!
//! One side asks, the other answers with its clock. The answer was given somewhere between question and reply, so that the
//! other clock is what it said less the middle of the two, give or take half of what lies between them, whatever each way
//! took (F. Cristian, "Probabilistic clock synchronization", 1989; RFC 5905, section 8, has the same estimate). Anything
//! that delays an answer only widens that error, and of several exchanges the quickest has the least. Clocks drift, so it
//! is asked before a run and after it, and the error of the first estimate is widened until it covers the second as well.
//!
//! All clocks here are the machines' `CLOCK_MONOTONIC`, in nanoseconds: nobody sets them while they run.

use serde::{Deserialize, Serialize};

/// A question, the answer to it, and when each of them was there, in nanoseconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Exchange {
    /// By the clock of whoever asks.
    pub asked: u64,
    /// By the other.
    pub said: u64,
    /// By the clock of whoever asks.
    pub heard: u64,
}

/// How far another clock is ahead of one's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Offset {
    pub ns: i64,
    /// It is at most so much more or less.
    pub error_ns: u64,
}

impl Exchange {
    fn offset(self) -> Offset {
        let took_ns = self.heard.saturating_sub(self.asked);
        let middle_ns = self.asked + took_ns / 2;
        Offset { ns: self.said.wrapping_sub(middle_ns) as i64, error_ns: took_ns.div_ceil(2) }
    }
}

impl Offset {
    /// That of the quickest exchange; none if there was none.
    pub fn of(exchanges: &[Exchange]) -> Option<Self> {
        exchanges.iter().map(|exchange| exchange.offset()).min_by_key(|offset| offset.error_ns)
    }

    /// The same offset, its error as wide as it must be for all that a later measurement allows.
    pub fn covering(self, later: Self) -> Self {
        let apart_ns = self.ns.abs_diff(later.ns);
        Self { ns: self.ns, error_ns: self.error_ns.max(apart_ns.saturating_add(later.error_ns)) }
    }

    /// By how much what one clock says of the other may be wrong, when both are known to a third.
    pub fn error_between(self, other: Self) -> u64 {
        self.error_ns.saturating_add(other.error_ns)
    }

    /// In milliseconds, with its error.
    pub fn ms(self) -> (f64, f64) {
        (self.ns as f64 / 1e6, self.error_ns as f64 / 1e6)
    }
}

/// An agent's clocks: how far the machine's is ahead of the coordinator's, and what it showed when the run's began.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    pub offset: Offset,
    pub began_ns: u64,
}

impl Clock {
    /// What to add to a time in the run of `partner` to have it in this one's.
    pub fn ahead_of(self, partner: Self) -> i64 {
        let in_coordinators = |clock: Self| i128::from(clock.began_ns) - i128::from(clock.offset.ns);
        // Both are near each other: the runs of all agents begin together.
        (in_coordinators(partner) - in_coordinators(self)) as i64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    /// An exchange with a clock that is ahead by so much, each way taking its time.
    fn exchange(asked: u64, ahead_ns: i64, there_ns: u64, back_ns: u64) -> Exchange {
        let at_ns = asked + there_ns;
        Exchange { asked, said: at_ns.wrapping_add_signed(ahead_ns), heard: at_ns + back_ns }
    }

    fn holds(offset: Offset, ahead_ns: i64) -> bool {
        offset.ns.abs_diff(ahead_ns) <= offset.error_ns
    }

    #[test]
    fn the_error_covers_ways_of_any_length() {
        let days_ns = 200_000_000 * MS as i64;
        for ahead_ns in [0, 1, -1, days_ns, -days_ns] {
            for (there_ns, back_ns) in [(0, 0), (MS, MS), (1, 9 * MS), (9 * MS + 1, 0), (0, 500 * MS)] {
                let offset = exchange(days_ns as u64 * 2, ahead_ns, there_ns, back_ns).offset();
                assert!(holds(offset, ahead_ns), "{ahead_ns} {there_ns} {back_ns}: {offset:?}");
                // No wider than it must be.
                assert!(offset.error_ns <= (there_ns + back_ns).div_ceil(2), "{offset:?}");
            }
        }
    }

    #[test]
    fn the_quickest_exchange_counts_and_a_late_answer_does_no_harm() {
        let late = exchange(10 * MS, 5, 1_000 * MS, 0);
        let quick = exchange(2_000 * MS, 5, MS, MS);
        assert_eq!(Offset::of(&[late, quick, late]), Some(Offset { ns: 5, error_ns: MS }));
        assert_eq!(Offset::of(&[late]).unwrap().error_ns, 500 * MS);
        assert_eq!(Offset::of(&[]), None);
    }

    /// The other clock gains a millisecond while the run goes on: whenever a message was due, the error covers it.
    #[test]
    fn drift_widens_the_error() {
        let first = exchange(1_000 * MS, 7 * MS as i64, MS / 2, MS / 10).offset();
        let later = exchange(60_000 * MS, 8 * MS as i64, MS / 10, MS / 2).offset();
        let both = first.covering(later);
        assert_eq!(both.ns, first.ns);
        for ahead_ns in (7 * MS..=8 * MS).step_by(100_000) {
            assert!(holds(both, ahead_ns as i64), "{ahead_ns}: {both:?}");
        }
        assert!(!holds(first, 8 * MS as i64) && both.error_ns < 2 * MS);
        // One that did not drift is not made better by measuring worse.
        assert_eq!(first.covering(first), first);
    }

    #[test]
    fn partners_know_each_others_time() {
        // One machine has been up for days, the other for a minute; the second began 3 ms later.
        let one = Clock { offset: Offset { ns: 200_000_000 * MS as i64, error_ns: 2 }, began_ns: 200_000_100 * MS };
        let other = Clock { offset: Offset { ns: -(5 * MS as i64), error_ns: 3 }, began_ns: 98 * MS };
        assert_eq!(one.ahead_of(other), 3 * MS as i64);
        assert_eq!(other.ahead_of(one), -3 * MS as i64);
        assert_eq!(one.offset.error_between(other.offset), 5);
    }
}
