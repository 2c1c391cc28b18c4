//! How many conversations each user has begun lately: a bound on what one of them can do to strangers.
//!
//! Each shard counts for the conversations that it owns. Conversations spread over the shards by a hash, so
//! each shard's share is a little more than its part: who begins no more than allowed hardly ever meets it, and
//! who tries everything gets a little more than allowed.

use std::collections::HashMap;

use wire::ids::UserId;

use crate::SeededState;
use crate::limits::Limits;

/// See the module.
#[derive(Debug)]
pub(crate) struct Begun {
    /// How many one user may begin here in one window.
    share: u32,
    window_ms: u64,
    /// Number of the window that is counted.
    window: u64,
    counts: HashMap<UserId, u32, SeededState>,
    users_max: usize,
}

impl Begun {
    pub(crate) fn new(limits: &Limits, shards: u16, state: SeededState) -> Self {
        Self {
            share: share(limits.new_conversations_max, u32::from(shards)),
            window_ms: limits.new_conversations_window_ms.max(1),
            window: 0,
            counts: HashMap::with_hasher(state),
            users_max: limits.idle_users_max.max(1) as usize,
        }
    }

    /// Counts one more, unless the user has begun enough.
    pub(crate) fn may_begin(&mut self, now_ms: u64, user: UserId) -> bool {
        let window = now_ms / self.window_ms;
        if window != self.window || self.counts.len() >= self.users_max {
            // So many are not spam by one: the count begins again.
            (self.window, self.counts) = (window, HashMap::with_hasher(*self.counts.hasher()));
        }
        let count = self.counts.entry(user).or_default();
        let may = *count < self.share;
        *count += u32::from(may);
        may
    }

    /// What was counted did not come to be.
    pub(crate) fn take_back(&mut self, user: UserId) {
        if let Some(count) = self.counts.get_mut(&user) {
            *count = count.saturating_sub(1);
        }
    }
}

/// One shard's part of `max`, and three standard deviations.
fn share(max: u32, shards: u32) -> u32 {
    let part = max.div_ceil(shards);
    if shards == 1 { part } else { part.saturating_add(3 * part.isqrt() + 1) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_shard_counts_exactly_and_many_a_little_more() {
        assert_eq!(share(1_000, 1), 1_000);
        for shards in 2..64 {
            let all = share(10_000, shards) * shards;
            assert!((10_000..=15_000).contains(&all), "{shards}: {all}");
        }
    }
}
