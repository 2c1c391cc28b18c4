//! How many frames one client may send.
//!
//! What a client has sent is a debt that it pays off by waiting. Looking it up for each frame would cost more
//! than many frames do, and a place for it in every connection would cost memory where nothing happens: so one
//! frame in sixteen, chosen by chance, pays for sixteen, and a debt is kept only while there is one.

use std::collections::BTreeMap;

use chat::ClientKey;

/// Frames that are paid for together, on average.
const SAMPLE: u32 = 16;
/// Times what may be owed at once at which a client is closed: it does not even heed what it is told.
const FLOOD: u64 = 8;

/// How many frames are allowed.
#[derive(Debug, Clone, Copy)]
pub struct FrameRate {
    /// In a second, for as long as one likes.
    pub per_second: u32,
    /// Beyond that, at once.
    pub at_once: u32,
}

/// What becomes of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Admission {
    Admitted,
    /// It is refused until then.
    Limited {
        after_ms: u32,
    },
    /// The client is closed.
    Flood,
}

/// The debts of one shard's clients.
pub(crate) struct Rate {
    frame_us: u64,
    debt_max_us: u64,
    /// Frames until the next one pays.
    left: u32,
    random: u64,
    /// Until when each has to wait to owe nothing, in microseconds of the monotonic clock.
    debts: BTreeMap<u64, u64>,
    /// Those who owe nothing any more are forgotten when there are so many.
    tidy_at: usize,
}

impl Rate {
    pub(crate) fn new(rate: FrameRate, seed: u64) -> Self {
        let frame_us = 1_000_000 / u64::from(rate.per_second.max(1));
        let debt_max_us = frame_us * u64::from(rate.at_once);
        Self { frame_us, debt_max_us, left: 1, random: seed, debts: BTreeMap::new(), tidy_at: 1_024 }
    }

    /// A frame has come. `is_limited`: the last one of this client was refused.
    pub(crate) fn charge(&mut self, now_ms: u64, client: ClientKey, is_limited: bool) -> Admission {
        self.left -= 1;
        if self.left == 0 {
            self.left = 1 + (self.next_random() % u64::from(2 * SAMPLE - 1)) as u32;
            return self.pay(now_ms * 1_000, client, u64::from(SAMPLE));
        }
        if is_limited { self.pay(now_ms * 1_000, client, 0) } else { Admission::Admitted }
    }

    fn pay(&mut self, now_us: u64, client: ClientKey, frames: u64) -> Admission {
        if self.debts.len() >= self.tidy_at {
            self.debts.retain(|_, until_us| *until_us > now_us);
            self.tidy_at = 2 * self.debts.len().max(512);
        }
        let until_us = self.debts.entry(client.0).or_default();
        *until_us = (*until_us).max(now_us) + frames * self.frame_us;
        let debt_us = *until_us - now_us;
        if debt_us > FLOOD * self.debt_max_us {
            Admission::Flood
        } else if debt_us > self.debt_max_us {
            Admission::Limited { after_ms: 1 + ((debt_us - self.debt_max_us) / 1_000) as u32 }
        } else {
            Admission::Admitted
        }
    }

    /// A client is gone.
    pub(crate) fn forget(&mut self, client: ClientKey) {
        if !self.debts.is_empty() {
            self.debts.remove(&client.0);
        }
    }

    /// splitmix64: nobody without the seed knows which frame pays.
    fn next_random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT: ClientKey = ClientKey(7);

    fn rate() -> Rate {
        Rate::new(FrameRate { per_second: 1_000, at_once: 10_000 }, 1)
    }

    #[test]
    fn who_keeps_to_the_rate_is_never_limited() {
        let mut rate = rate();
        for frame in 0..1_000_000 {
            assert_eq!(rate.charge(frame, CLIENT, false), Admission::Admitted, "frame {frame}");
        }
    }

    #[test]
    fn a_burst_passes_then_frames_are_refused_and_a_flood_is_closed() {
        let mut rate = rate();
        let first = |rate: &mut Rate, wanted: fn(Admission) -> bool| {
            (0..1_000_000_u64).find(|_| wanted(rate.charge(5, CLIENT, false))).expect("it comes")
        };
        let limited = first(&mut rate, |admission| matches!(admission, Admission::Limited { .. }));
        assert!((9_000..11_000).contains(&limited), "{limited}");
        // Somebody else is not to blame.
        assert!((0..100).all(|_| rate.charge(5, ClientKey(8), false) == Admission::Admitted));
        let Admission::Limited { after_ms } = rate.charge(5, CLIENT, true) else { panic!("still too many") };
        assert_eq!(rate.pay(1_000 * (5 + u64::from(after_ms)), CLIENT, 0), Admission::Admitted);
        let flood = first(&mut rate, |admission| admission == Admission::Flood);
        assert!((65_000..75_000).contains(&flood), "{flood}");
    }
}
