//! Which dedup rows are old enough to be forgotten, and what that makes unknowable
//! (`docs/decisions/0012-forgetting-by-uptime.md`).
//!
//! Rows lie in *days*: a day takes the rows of all checkpoints that end within so much *uptime*, which is how long
//! the store has run, over all its starts. A day is forgotten when the store has run for seven days, and a little,
//! since it took its last row. Uptime only grows, never faster than true time, and no wall clock has a part in it.
//!
//! ```text
//! uptime u64 | forgotten_at u64 | forgotten_highest u64 | forgotten_until u64 | days u32, of each: number u32, since u64, until u64, lowest u64, highest u64
//! ```
//!
//! All numbers are little-endian.

/// How long a day is, in milliseconds of uptime, unless tests make it shorter.
pub const DAY_MS: u64 = 24 * 60 * 60 * 1_000;
/// How many of them a row is kept after the store has it, and a part of one more.
const DAYS_KEPT: u64 = 7;
/// So much of a day is the views' to be behind the journal.
const PART_FOR_VIEWS: u64 = 24;

/// One day of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Day {
    /// Its name; later days have higher ones.
    pub(crate) number: u32,
    /// Uptime at its first rows.
    since_ms: u64,
    /// Uptime at its last rows.
    until_ms: u64,
    /// Lowest time of a record in it.
    lowest_ms: u64,
    /// Highest time of a record in it.
    highest_ms: u64,
}

/// The days that there are, in the order of their numbers, and what is known of those that were.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Days {
    uptime_ms: u64,
    /// Uptime at the last rows that were forgotten.
    forgotten_at_ms: u64,
    /// Highest time of a record that was forgotten.
    forgotten_highest_ms: u64,
    forgotten_until_ms: u64,
    kept: Vec<Day>,
}

impl Days {
    /// Days that a store of the first format had named after the times of their records. How long ago they took
    /// their last row nobody wrote down, so that they stay for as long as if it had been now.
    pub(crate) fn of_records(numbers: impl Iterator<Item = u32>) -> Days {
        let days = numbers.map(|number| {
            let lowest_ms = u64::from(number) * DAY_MS;
            Day { number, since_ms: 0, until_ms: 0, lowest_ms, highest_ms: lowest_ms + DAY_MS - 1 }
        });
        Days { kept: days.collect(), ..Days::default() }
    }

    /// For how long the store had run when this was written.
    pub(crate) fn uptime_ms(&self) -> u64 {
        self.uptime_ms
    }

    /// Numbers of the days that must be there.
    pub(crate) fn numbers(&self) -> impl Iterator<Item = u32> {
        self.kept.iter().map(|day| day.number)
    }

    /// Whether a day of that number was forgotten. One that is higher than all was never finished.
    pub(crate) fn is_forgotten(&self, number: u32) -> bool {
        self.kept.last().is_some_and(|newest| number < newest.number) && self.numbers().all(|known| known != number)
    }

    /// At this uptime, a checkpoint with rows of records between `lowest` and `highest` comes: the day that takes
    /// them, if there are rows. Days that are over go, but never the newest.
    pub(crate) fn checkpoint(&mut self, uptime_ms: u64, day_ms: u64, times: Option<(u64, u64)>) -> Option<u32> {
        self.uptime_ms = uptime_ms.max(self.uptime_ms);
        let into = times.map(|(lowest_ms, highest_ms)| self.take(day_ms, lowest_ms, highest_ms));
        let newest = self.kept.len().saturating_sub(1);
        let slack_ms = day_ms / PART_FOR_VIEWS;
        let stays = |day: &Day| day.until_ms + DAYS_KEPT * day_ms + slack_ms > self.uptime_ms;
        let gone = self.kept[..newest].iter().take_while(|day| !stays(day)).count();
        for day in self.kept.drain(..gone) {
            self.forgotten_at_ms = self.forgotten_at_ms.max(day.until_ms);
            self.forgotten_highest_ms = self.forgotten_highest_ms.max(day.highest_ms);
        }
        self.forgotten_until_ms = self.unknowable_until(slack_ms);
        into
    }

    fn take(&mut self, day_ms: u64, lowest_ms: u64, highest_ms: u64) -> u32 {
        let now_ms = self.uptime_ms;
        match self.kept.last_mut() {
            Some(day) if now_ms < day.since_ms + day_ms => {
                day.until_ms = now_ms;
                day.lowest_ms = day.lowest_ms.min(lowest_ms);
                day.highest_ms = day.highest_ms.max(highest_ms);
                day.number
            }
            last => {
                let number = last.map_or(1, |day| day.number + 1);
                self.kept.push(Day { number, since_ms: now_ms, until_ms: now_ms, lowest_ms, highest_ms });
                number
            }
        }
    }

    /// The highest time of what was forgotten; or less, if a clock was ahead when that was recorded. For each day
    /// that is kept also says what time it can have been when the last of the forgotten rows came: at least as much
    /// true time has passed between the two as uptime. The lowest of all these is wrong only when a clock was ahead
    /// for all days that are kept, or behind; behind errs towards taking an old id for a new one.
    fn unknowable_until(&self, slack_ms: u64) -> u64 {
        let by_day = |day: &Day| (day.lowest_ms + slack_ms).saturating_sub(day.since_ms - self.forgotten_at_ms);
        self.kept.iter().map(by_day).fold(self.forgotten_highest_ms, u64::min)
    }

    /// Rows of records up to this time may have been forgotten.
    pub(crate) fn forgotten_until_ms(&self) -> u64 {
        self.forgotten_until_ms
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        for number in [self.uptime_ms, self.forgotten_at_ms, self.forgotten_highest_ms, self.forgotten_until_ms] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(&(self.kept.len() as u32).to_le_bytes());
        for day in &self.kept {
            out.extend_from_slice(&day.number.to_le_bytes());
            for number in [day.since_ms, day.until_ms, day.lowest_ms, day.highest_ms] {
                out.extend_from_slice(&number.to_le_bytes());
            }
        }
    }

    /// Reads what `encode` wrote; `None` if it is not that.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Days> {
        let mut rest = bytes;
        let mut known = Days {
            uptime_ms: take_u64(&mut rest)?,
            forgotten_at_ms: take_u64(&mut rest)?,
            forgotten_highest_ms: take_u64(&mut rest)?,
            forgotten_until_ms: take_u64(&mut rest)?,
            kept: Vec::new(),
        };
        let count = take_u32(&mut rest)?;
        for _ in 0..count {
            known.kept.push(Day {
                number: take_u32(&mut rest)?,
                since_ms: take_u64(&mut rest)?,
                until_ms: take_u64(&mut rest)?,
                lowest_ms: take_u64(&mut rest)?,
                highest_ms: take_u64(&mut rest)?,
            });
        }
        rest.is_empty().then_some(known)
    }
}

fn take_u32(rest: &mut &[u8]) -> Option<u32> {
    let (taken, behind) = rest.split_first_chunk()?;
    *rest = behind;
    Some(u32::from_le_bytes(*taken))
}

fn take_u64(rest: &mut &[u8]) -> Option<u64> {
    let (taken, behind) = rest.split_first_chunk()?;
    *rest = behind;
    Some(u64::from_le_bytes(*taken))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A store that takes a row a quarter of a day, and what each row is: (uptime, time of its record, its day).
    struct Store {
        days: Days,
        rows: Vec<(u64, u64, u32)>,
        uptime_ms: u64,
    }

    const BEGIN: u64 = 20_000 * DAY_MS;
    const STEP: u64 = DAY_MS / 4;

    impl Store {
        fn new() -> Store {
            Store { days: Days::default(), rows: Vec::new(), uptime_ms: 0 }
        }

        /// `wall` makes the true time what the server's clock shows.
        fn run(&mut self, days: u64, wall: impl Fn(u64) -> u64) {
            for _ in 0..days * DAY_MS / STEP {
                self.uptime_ms += STEP;
                let time = wall(BEGIN + self.uptime_ms);
                let day = self.days.checkpoint(self.uptime_ms, DAY_MS, Some((time, time))).unwrap();
                self.rows.push((self.uptime_ms, time, day));
                self.nothing_is_forgotten_too_early();
            }
        }

        fn nothing_is_forgotten_too_early(&self) {
            for &(at_ms, _, day) in &self.rows {
                let is_young = self.uptime_ms < at_ms + 7 * DAY_MS;
                assert!(!is_young || self.days.numbers().any(|number| number == day), "a row of day {day} is gone");
                assert!(!is_young || !self.days.is_forgotten(day));
            }
            assert!(self.days.numbers().count() <= 9);
        }

        fn now(&self) -> u64 {
            BEGIN + self.uptime_ms
        }
    }

    #[test]
    fn by_a_right_clock_exactly_what_is_gone_is_unknowable() {
        let mut store = Store::new();
        store.run(5, |now| now);
        assert_eq!(store.days.forgotten_until_ms(), 0, "nothing is gone");
        store.run(20, |now| now);
        let gone = store.rows.iter().filter(|(.., day)| store.days.is_forgotten(*day));
        assert_eq!(store.days.forgotten_until_ms(), gone.map(|&(_, time, _)| time).max().unwrap());
        assert!(store.days.forgotten_until_ms() + 9 * DAY_MS > store.now());
    }

    #[test]
    fn whatever_the_clock_does_nothing_is_forgotten_too_early() {
        let month = 30 * DAY_MS;
        let flapping = |now: u64| if (now / STEP).is_multiple_of(2) { now } else { now + now % 97 * DAY_MS };
        let clocks: [&dyn Fn(u64) -> u64; 5] =
            [&|now| now + month, &|now| now - month, &flapping, &|_| 0, &|now| BEGIN * 2 - now];
        for clock in clocks {
            let mut store = Store::new();
            store.run(9, |now| now);
            store.run(12, clock);
            store.run(12, |now| now);
        }
    }

    #[test]
    fn a_clock_that_was_wrong_for_less_than_a_week_makes_nothing_young_unknowable() {
        for wrong in [10 * DAY_MS, 1_000 * DAY_MS] {
            let mut store = Store::new();
            store.run(9, |now| now);
            for day in 0..20 {
                store.run(1, |now| if day < 6 { now + wrong } else { now });
                assert!(store.days.forgotten_until_ms() + 7 * DAY_MS < store.now(), "{day} days after");
            }
        }
    }

    #[test]
    fn who_was_silent_for_long_makes_nothing_young_unknowable() {
        let mut store = Store::new();
        store.run(9, |now| now);
        let before = store.now();
        store.uptime_ms += 30 * DAY_MS;
        store.run(1, |now| now);
        assert!(store.days.forgotten_until_ms() > before - 2 * DAY_MS);
        assert!(store.days.forgotten_until_ms() <= before, "and what was written just before is old");
    }

    #[test]
    fn days_of_the_first_format_stay_as_long_as_new_ones() {
        let mut days = Days::of_records([19_000, 20_000, 20_030].into_iter());
        assert_eq!(days.checkpoint(7 * DAY_MS, DAY_MS, Some((1, 2))), Some(20_031));
        assert_eq!(days.numbers().count(), 4);
        assert_eq!(days.checkpoint(8 * DAY_MS, DAY_MS, None), None);
        assert_eq!(days.numbers().collect::<Vec<_>>(), [20_031]);
        assert!(days.is_forgotten(19_000) && !days.is_forgotten(20_031) && !days.is_forgotten(20_032));
    }

    #[test]
    fn days_read_back_as_themselves() {
        let mut store = Store::new();
        store.run(12, |now| now);
        let mut bytes = Vec::new();
        store.days.encode(&mut bytes);
        assert_eq!(Days::decode(&bytes), Some(store.days));
        assert!((0..bytes.len()).all(|cut| Days::decode(&bytes[..cut]).is_none()));
    }
}
