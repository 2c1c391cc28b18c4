//! Messages between two over a raw relay, open loop: the latency of the five frames without a protocol.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use loadgen::random::Random;
use loadgen::schedule::{Arrivals, Schedule, Slope};
use loadgen::tally::Times;

use super::burst::shuffled;
use super::pairs::{Raw, Sizes, Talk as _};
use crate::crowd::{Crowd, Deadline, News};
use crate::server::Trouble;

/// What came of it.
#[derive(Debug, Default)]
pub struct Relayed {
    pub offered: u64,
    /// While messages were due.
    pub delivered: u64,
    /// From when a message was due until the other end had it.
    pub delivery: Times,
    /// From when it was due until it was handed to the ring.
    pub schedule_error: Times,
}

/// `rate` messages a second for so long, on pairs that are tied; the next message of a pair waits for the tick of its last.
pub fn relay(crowd: &mut Crowd, sizes: Sizes, rate: f64, seconds: u64) -> Result<Relayed, Trouble> {
    /// As ringway-loadgen's tick.
    const PATIENCE: Duration = Duration::from_micros(250);
    let mut raw = Raw::new(crowd.len(), sizes);
    let slope = Slope::even(rate, seconds * 1_000_000_000);
    let mut schedule = Schedule::new(Arrivals::Poisson, vec![slope], 0, Random::new(9, 9));
    let mut free = VecDeque::from(shuffled(crowd.len() / 2, &mut Random::new(9, 10)));
    let mut due_at = vec![0; free.len()];
    let (mut waiting, mut busy, mut relayed) = (VecDeque::new(), 0, Relayed::default());
    let (begun, length) = (Instant::now(), Duration::from_secs(seconds));
    let now = || begun.elapsed().as_nanos() as u64;
    let deadline = Deadline::seconds(seconds + 30);
    while begun.elapsed() < length || busy > 0 || !waiting.is_empty() {
        while let Some(due) = schedule.due(now()) {
            relayed.offered += 1;
            waiting.push_back(due);
        }
        while let (Some(due), Some(pair)) = (waiting.front().copied(), free.front().copied()) {
            waiting.pop_front();
            free.pop_front();
            due_at[pair as usize] = due;
            relayed.schedule_error.record(now() - due);
            crowd.outbox.say_with(2 * pair, |out| raw.send(pair, out));
            busy += 1;
        }
        let rest = schedule.next().map_or(PATIENCE, |next| Duration::from_nanos(next.saturating_sub(now())));
        crowd.turn(rest.min(PATIENCE), |who, news, outbox| {
            match news {
                News::Heard(bytes) => {
                    let is_complete = raw.heard(who, bytes, outbox)?;
                    if raw.has_heard_all(who) && !who.is_multiple_of(2) {
                        relayed.delivery.record(now() - due_at[who as usize / 2]);
                        relayed.delivered += u64::from(begun.elapsed() < length);
                    }
                    if is_complete {
                        free.push_back(who / 2);
                        busy -= 1;
                    }
                }
                News::Closed => return Err("the relay hung up".into()),
                News::Connected => {}
            }
            Ok(())
        })?;
        deadline.check(|| format!("{} messages do not come through the relay", busy + waiting.len()))?;
    }
    Ok(relayed)
}
