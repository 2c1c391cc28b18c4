//! When messages are due. The schedule never looks at replies: a server that stalls meets all that fell
//! due meanwhile, and each of those counts its latency from when it was due.

use crate::random::Random;

/// How due times follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrivals {
    /// Independent of each other, as the messages of many people are.
    Poisson,
    /// Evenly spaced.
    Constant,
}

/// A stream of due times in nanoseconds.
#[derive(Debug)]
pub struct Schedule {
    arrivals: Arrivals,
    /// Mean nanoseconds between two; none if nothing is ever due.
    gap_ns: Option<f64>,
    /// A fraction is kept, or a rate that does not divide a second would drift.
    next_ns: f64,
    end_ns: u64,
    random: Random,
}

impl Schedule {
    /// `rate` per second, from `start_ns` until `end_ns`.
    pub fn new(arrivals: Arrivals, rate: f64, start_ns: u64, end_ns: u64, random: Random) -> Self {
        let gap_ns = (rate > 0.0).then(|| 1e9 / rate);
        let mut schedule = Self { arrivals, gap_ns, next_ns: start_ns as f64, end_ns, random };
        schedule.advance();
        schedule
    }

    /// The next due time up to now, taken off the stream.
    pub fn due(&mut self, now_ns: u64) -> Option<u64> {
        let next = self.next()?;
        (next <= now_ns).then(|| {
            self.advance();
            next
        })
    }

    /// The next due time; none when the stream has ended.
    pub fn next(&self) -> Option<u64> {
        let next = self.next_ns as u64;
        (self.gap_ns.is_some() && next < self.end_ns).then_some(next)
    }

    fn advance(&mut self) {
        let Some(gap_ns) = self.gap_ns else { return };
        self.next_ns += match self.arrivals {
            Arrivals::Constant => gap_ns,
            // 1 - unit is never 0, whose logarithm would be infinite.
            Arrivals::Poisson => -(1.0 - self.random.unit()).ln() * gap_ns,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn all(arrivals: Arrivals, rate: f64, asked_ns: impl Fn(usize) -> u64) -> Vec<u64> {
        let mut schedule = Schedule::new(arrivals, rate, SECOND, 11 * SECOND, Random::new(1, 1));
        let mut times = Vec::new();
        while schedule.next().is_some() {
            times.extend(schedule.due(asked_ns(times.len())));
        }
        times
    }

    #[test]
    fn the_due_times_are_the_same_whoever_asks_and_when() {
        for arrivals in [Arrivals::Poisson, Arrivals::Constant] {
            let prompt = all(arrivals, 1_000.0, |_| 20 * SECOND);
            // Asked as by a generator that was stalled for most of the time.
            let mut schedule = Schedule::new(arrivals, 1_000.0, SECOND, 11 * SECOND, Random::new(1, 1));
            let mut stalled = Vec::new();
            for now in [2, 2, 9, 30].map(|second| second * SECOND) {
                while let Some(due) = schedule.due(now) {
                    assert!(due <= now);
                    stalled.push(due);
                }
            }
            assert_eq!(prompt, stalled);
        }
    }

    #[test]
    fn the_rate_is_what_was_asked_for() {
        assert_eq!(all(Arrivals::Constant, 300.0, |_| 20 * SECOND).len(), 2_999);
        // 3,000 expected, standard deviation 55.
        let poisson = all(Arrivals::Poisson, 300.0, |_| 20 * SECOND).len();
        assert!((2_670..=3_330).contains(&poisson), "{poisson}");
    }

    #[test]
    fn no_rate_is_nothing_due() {
        let mut schedule = Schedule::new(Arrivals::Poisson, 0.0, 0, SECOND, Random::new(1, 1));
        assert_eq!((schedule.next(), schedule.due(u64::MAX)), (None, None));
    }
}
