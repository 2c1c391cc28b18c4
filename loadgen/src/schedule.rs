//! When messages are due. The schedule never looks at replies: a server that stalls meets all that fell
//! due meanwhile, and each of those counts its latency from when it was due.

use serde::{Deserialize, Serialize};

use crate::random::Random;

/// How due times follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Arrivals {
    /// Independent of each other, as the messages of many people are.
    Poisson,
    /// Evenly spaced.
    Constant,
}

/// A part of a run, over which the rate goes evenly from one value to another.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Slope {
    /// How long it lasts.
    pub length_ns: u64,
    /// Messages per second at its beginning and at its end.
    pub from: f64,
    pub to: f64,
}

impl Slope {
    /// An even rate.
    pub fn even(rate: f64, length_ns: u64) -> Self {
        Self { length_ns, from: rate, to: rate }
    }

    /// The same with a part of the rate.
    #[must_use]
    pub fn share(self, part: f64) -> Self {
        Self { from: self.from * part, to: self.to * part, ..self }
    }

    /// How many messages fall due in it, on average.
    fn messages(self) -> f64 {
        f64::midpoint(self.from, self.to) * self.length_ns as f64 / 1e9
    }

    /// When, in nanoseconds from its beginning, so many messages have fallen due.
    fn time_of(self, messages: f64) -> f64 {
        let seconds = self.length_ns as f64 / 1e9;
        let rise = (self.to - self.from) / seconds;
        // from * t + rise / 2 * t^2 = messages, in the form that a rise of nothing does not divide by.
        let root = (self.from * self.from + 2.0 * rise * messages).max(0.0).sqrt();
        2.0 * messages / (self.from + root) * 1e9
    }
}

/// A stream of due times in nanoseconds.
#[derive(Debug)]
pub struct Schedule {
    arrivals: Arrivals,
    slopes: Vec<Slope>,
    /// The slope that the next one lies in, and when it began.
    slope: usize,
    begun_ns: u64,
    /// Messages that fell due since then, the next one included.
    messages: f64,
    next_ns: Option<u64>,
    random: Random,
}

impl Schedule {
    /// Slopes one after the other, from `start_ns`.
    pub fn new(arrivals: Arrivals, slopes: Vec<Slope>, start_ns: u64, random: Random) -> Self {
        let mut schedule =
            Self { arrivals, slopes, slope: 0, begun_ns: start_ns, messages: 0.0, next_ns: None, random };
        schedule.advance();
        schedule
    }

    /// The next due time up to now, taken off the stream.
    pub fn due(&mut self, now_ns: u64) -> Option<u64> {
        let next = self.next_ns.filter(|&next| next <= now_ns)?;
        self.advance();
        Some(next)
    }

    /// The next due time; none when the stream has ended.
    pub fn next(&self) -> Option<u64> {
        self.next_ns
    }

    fn advance(&mut self) {
        self.messages += match self.arrivals {
            Arrivals::Constant => 1.0,
            // 1 - unit is never 0, whose logarithm would be infinite.
            Arrivals::Poisson => -(1.0 - self.random.unit()).ln(),
        };
        self.next_ns = loop {
            let Some(slope) = self.slopes.get(self.slope) else { break None };
            // What does not fit into this slope begins the next.
            if self.messages < slope.messages() {
                break Some(self.begun_ns + slope.time_of(self.messages) as u64);
            }
            self.messages -= slope.messages();
            self.begun_ns += slope.length_ns;
            self.slope += 1;
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn all(arrivals: Arrivals, slopes: &[Slope], asked_ns: impl Fn(usize) -> u64) -> Vec<u64> {
        let mut schedule = Schedule::new(arrivals, slopes.to_vec(), SECOND, Random::new(1, 1));
        let (mut due, mut asked) = (Vec::new(), 0);
        while schedule.next().is_some() {
            while let Some(at) = schedule.due(asked_ns(asked)) {
                due.push(at);
            }
            asked += 1;
        }
        due
    }

    #[test]
    fn the_rate_is_kept_and_does_not_depend_on_when_it_is_asked() {
        for arrivals in [Arrivals::Constant, Arrivals::Poisson] {
            let even = [Slope::even(1_000.0, 10 * SECOND)];
            let often = all(arrivals, &even, |asked| asked as u64 * 1_000_000);
            let rarely = all(arrivals, &even, |asked| asked as u64 * 3 * SECOND);
            assert_eq!(often, rarely);
            assert!((9_700..10_300).contains(&often.len()), "{}", often.len());
            assert!(often.is_sorted() && often.iter().all(|&at| (SECOND..11 * SECOND).contains(&at)));
        }
    }

    #[test]
    fn constant_arrivals_are_evenly_spaced() {
        let due = all(Arrivals::Constant, &[Slope::even(4.0, SECOND)], |_| u64::MAX);
        assert_eq!(due, [SECOND * 5 / 4, SECOND * 6 / 4, SECOND * 7 / 4]);
    }

    /// A ramp from nothing gives half as many as its end would, and three quarters of them in its second half.
    #[test]
    fn a_slope_rises_evenly_and_the_next_goes_on_from_it() {
        let slopes = [
            Slope { length_ns: 10 * SECOND, from: 0.0, to: 1_000.0 },
            Slope::even(0.0, 5 * SECOND),
            Slope { length_ns: 10 * SECOND, from: 1_000.0, to: 0.0 },
        ];
        for arrivals in [Arrivals::Constant, Arrivals::Poisson] {
            let due = all(arrivals, &slopes, |_| u64::MAX);
            let count = |from: u64, to: u64| {
                due.iter().filter(|&&at| (SECOND + from * SECOND..SECOND + to * SECOND).contains(&at)).count()
            };
            assert!((4_800..5_200).contains(&count(0, 10)), "{}", count(0, 10));
            assert!((3_600..3_900).contains(&count(5, 10)), "{}", count(5, 10));
            assert_eq!(count(10, 15), 0);
            assert!((4_800..5_200).contains(&count(15, 25)), "{}", count(15, 25));
            assert!((3_600..3_900).contains(&count(15, 20)), "{}", count(15, 20));
        }
    }

    #[test]
    fn without_a_rate_nothing_is_due() {
        let mut schedule = Schedule::new(Arrivals::Poisson, vec![Slope::even(0.0, u64::MAX / 2)], 0, Random::new(1, 1));
        assert_eq!((schedule.next(), schedule.due(u64::MAX)), (None, None));
    }
}
