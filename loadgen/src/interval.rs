//! What the engine tells about once a second, to whoever draws, exports or records it.

use std::fmt;

use crate::tally::{Counts, Tally};

/// About a second of a run.
#[derive(Debug, Clone, Default)]
pub struct Interval {
    /// What the scenario calls this part of it: `opening` until messages are due, `messages`, `answers` after them,
    /// or a name of its own.
    pub phase: String,
    /// Its end, in seconds since the run began, and how long it was.
    pub at: f64,
    pub length: f64,
    /// Whole seconds since messages began; none before that.
    pub seconds: Option<u64>,
    pub open: u32,
    /// How many sessions are wanted.
    pub users: u32,
    /// What happened in it, over all threads and agents.
    pub tally: Tally,
    /// What happened since the run began.
    pub total: Counts,
    /// Of one core, over all generators.
    pub generator_cpu_percent: f64,
}

impl fmt::Display for Interval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(seconds) = self.seconds else {
            return write!(f, "{:<8} {} of {} sessions, {} cut", self.phase, self.open, self.users, self.total.cut);
        };
        let (counts, ack) = (&self.tally.counts, &self.tally.ack);
        write!(
            f,
            "{seconds:>5} s  open {}/{}  offered {}/s  stored {}/s  delivered {}/s  ack p50 {:.2} ms, p99 {:.2} ms",
            self.open,
            self.users,
            self.per_second(counts.offered),
            self.per_second(counts.acked),
            self.per_second(counts.delivered),
            ack.quantile_ms(0.5),
            ack.quantile_ms(0.99)
        )?;
        let total = &self.total;
        for (what, count) in [("cut", total.cut), ("doubled", total.doubled), ("reordered", total.reordered)] {
            if count > 0 {
                write!(f, "  {what} {count}")?;
            }
        }
        Ok(())
    }
}

impl Interval {
    /// A count of this interval as a rate.
    pub fn per_second(&self, count: u64) -> u64 {
        (count as f64 / self.length.max(1e-3)).round() as u64
    }
}
