//! What a scenario does to some of its users while the others chat: storms, churn, absence, slow readers.

use crate::client::Part;
use crate::random::Random;
use crate::scenario::Scenario;
use crate::schedule::{Arrivals, Schedule, Slope};

/// What is to be done now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Act {
    /// Cut those who are in storms; each comes back within so many nanoseconds.
    Storm { jitter_ns: u64 },
    /// Those who go offline leave, and come back then, within so many nanoseconds.
    GoOffline { until_ns: u64, jitter_ns: u64 },
    /// Somebody leaves, and comes back after so many nanoseconds.
    Churn { away_ns: u64, in_order: bool },
}

/// The disturbances of one thread's users.
pub(crate) struct Disturbance {
    /// The next one last.
    timed: Vec<(u64, Act)>,
    churn: Option<(Schedule, Act)>,
    /// Something was done.
    pub(crate) has_begun: bool,
}

impl Disturbance {
    /// Those of a scenario, for a part of its users, from `start_ns`.
    pub(crate) fn new(scenario: &Scenario, part: f64, start_ns: u64, random: Random) -> Self {
        let mut timed = Vec::new();
        if let Some(storm) = &scenario.storm {
            for time in 0..u64::from(storm.times) {
                let at_ns = start_ns + storm.at.ns() + time * storm.every.ns();
                timed.push((at_ns, Act::Storm { jitter_ns: storm.jitter.ns() }));
            }
        }
        if let Some(offline) = &scenario.offline {
            let until_ns = start_ns + offline.until.ns();
            timed.push((start_ns + offline.from.ns(), Act::GoOffline { until_ns, jitter_ns: offline.jitter.ns() }));
        }
        timed.sort_by_key(|(at_ns, _)| std::cmp::Reverse(*at_ns));
        let churn = scenario.churn.as_ref().map(|churn| {
            let slope = Slope::even(churn.per_second * part, scenario.duration().ns());
            let act = Act::Churn { away_ns: churn.away.ns(), in_order: churn.in_order };
            (Schedule::new(Arrivals::Poisson, vec![slope], start_ns, random), act)
        });
        // Slow readers are slow from the beginning.
        Self { timed, churn, has_begun: scenario.slow_readers.is_some() }
    }

    /// When the next one is due.
    pub(crate) fn next(&self) -> Option<u64> {
        let timed = self.timed.last().map(|(at_ns, _)| *at_ns);
        let churn = self.churn.as_ref().and_then(|(schedule, _)| schedule.next());
        timed.into_iter().chain(churn).min()
    }

    /// The next one that is due by now.
    pub(crate) fn due(&mut self, now_ns: u64) -> Option<Act> {
        let timed = self.timed.pop_if(|(at_ns, _)| *at_ns <= now_ns).map(|(_, act)| act);
        let churn = || self.churn.as_mut().and_then(|(schedule, act)| schedule.due(now_ns).map(|_| *act));
        let act = timed.or_else(churn);
        self.has_begun |= act.is_some();
        act
    }
}

/// Whether that number is among a part of all numbers. The part is spread evenly, so that it is as large as it says in
/// every stretch of them.
fn is_among(number: u32, part: f64) -> bool {
    // What a fraction lacks in its last digit must not make one less.
    let below = |number: u32| (f64::from(number) * part + 1e-6).floor();
    below(number + 1) > below(number)
}

/// Whether storms cut that user: whole groups, so that the others have nothing to do with them.
pub(crate) fn is_in_storms(scenario: &Scenario, place: u32) -> bool {
    scenario.storm.as_ref().is_some_and(|storm| is_among(place / scenario.sessions.block(), storm.share))
}

/// Whether that user goes offline: every second one at most, so that there is somebody to write to him.
pub(crate) fn goes_offline(scenario: &Scenario, place: u32) -> bool {
    scenario.offline.as_ref().is_some_and(|offline| place % 2 == 1 && is_among(place / 2, 2.0 * offline.share))
}

/// What part a user has in it.
pub(crate) fn part(scenario: &Scenario, place: u32) -> Part {
    let block = scenario.sessions.block();
    let first = place - place % block;
    if scenario.slow_readers.as_ref().is_some_and(|slow| is_among(place, slow.share)) {
        Part::Slow
    } else if is_in_storms(scenario, place) || (first..first + block).any(|other| goes_offline(scenario, other)) {
        Part::Touched
    } else {
        Part::Untouched
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::Kind;

    #[test]
    fn a_part_is_exactly_as_large_as_it_says() {
        for (part, of, count) in
            [(0.5, 16, 8), (0.1, 1_000, 100), (0.25, 32, 8), (1.0, 7, 7), (0.0, 7, 0), (0.3, 10, 3)]
        {
            assert_eq!((0..of).filter(|&number| is_among(number, part)).count(), count, "{part} of {of}");
        }
    }

    #[test]
    fn parts_are_as_large_as_they_say() {
        let part_of = |is: &dyn Fn(u32) -> bool| f64::from((0..10_000).filter(|&place| is(place)).count() as u32) / 1e4;
        let storm = Kind::Storm.defaults();
        assert!((part_of(&|place| is_in_storms(&storm, place)) - 0.5).abs() < 0.01);
        assert!((0..10_000).all(|place| is_in_storms(&storm, place) == is_in_storms(&storm, place ^ 1)));
        let offline = Kind::Offline.defaults();
        assert!((part_of(&|place| goes_offline(&offline, place)) - 0.25).abs() < 0.01);
        assert!((0..10_000).all(|place| !(goes_offline(&offline, place) && goes_offline(&offline, place ^ 1))));
        let slow = Kind::SlowReaders.defaults();
        assert!((part_of(&|place| part(&slow, place) == Part::Slow) - 0.1).abs() < 0.01);
    }

    #[test]
    fn everything_happens_once_in_its_order() {
        let mut scenario = Kind::Storm.defaults();
        scenario.storm.as_mut().unwrap().times = 2;
        scenario.offline = Some(crate::scenario::Offline::default());
        let mut disturbance = Disturbance::new(&scenario, 1.0, 1_000, Random::new(1, 1));
        assert!(!disturbance.has_begun);
        let mut seen = Vec::new();
        while let Some(at) = disturbance.next() {
            seen.extend(disturbance.due(at));
            assert_eq!(disturbance.due(at), None);
        }
        assert!(matches!(seen[..], [Act::GoOffline { .. }, Act::Storm { .. }, Act::Storm { .. }]));
        assert!(disturbance.has_begun);
    }
}
