//! Burst and drain: the server is stopped, one message is put into each of many sockets, it is let go, and its
//! processor time is counted until all are answered. The generator cannot be the limit, and no turn is shared by
//! luck.

use std::time::Duration;

use loadgen::random::Random;

use crate::contest::Sample;
use crate::crowd::{Crowd, Deadline, News, Spent, Stretch, stop};
use crate::server::{Process, Trouble};

/// Sockets that hold an unread message at once: each is charged a page.
const BURST: usize = 10_000;

/// Sockets that one measurement goes through, of more in an order of chance: with a million it would take minutes.
const SOCKETS_MAX: usize = 200_000;

/// Everyone once, in an order of chance.
pub fn shuffled(count: u32, random: &mut Random) -> Vec<u32> {
    let mut order: Vec<_> = (0..count).collect();
    for at in (1..order.len()).rev() {
        order.swap(at, random.below(at as u64 + 1) as usize);
    }
    order
}

/// Each connection, or each of so many that chance names, sends `word` once and must hear `answer_bytes`.
pub fn drain(
    server: &Process,
    crowd: &mut Crowd,
    random: &mut Random,
    word: &[u8],
    answer_bytes: usize,
) -> Result<Sample, Trouble> {
    let mut total = Spent::default();
    let mut order = shuffled(crowd.len(), random);
    order.truncate(SOCKETS_MAX);
    for burst in order.chunks(BURST) {
        stop(server, true);
        let stretch = Stretch::begin(server);
        for who in burst {
            crowd.outbox.say(*who, word);
        }
        let put = crowd.flush();
        stop(server, false);
        put?;
        let (mut left, deadline) = (burst.len() * answer_bytes, Deadline::seconds(60));
        while left > 0 {
            crowd.turn(Duration::from_millis(5), |_, news, _| {
                match news {
                    News::Heard(bytes) => left = left.saturating_sub(bytes.len()),
                    News::Closed => return Err("the server hung up".into()),
                    News::Connected => {}
                }
                Ok(())
            })?;
            deadline.check(|| format!("{left} bytes of answers have not come"))?;
        }
        stop(server, true);
        total.add(&stretch.end());
        stop(server, false);
    }
    Ok(Sample::of(&total, order.len() as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everyone_comes_once() {
        let mut order = shuffled(1_000, &mut Random::new(1, 1));
        assert_ne!(order, (0..1_000).collect::<Vec<_>>());
        order.sort_unstable();
        assert_eq!(order, (0..1_000).collect::<Vec<_>>());
    }
}
