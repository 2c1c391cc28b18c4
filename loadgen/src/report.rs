//! What came of a run: for people a table, for programs JSON.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use crate::run::{Measured, Plan};
use crate::tally::{Counts, Tally, Times};

/// One second of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    /// Since messages began; none before that.
    pub seconds: Option<u64>,
    pub open: u32,
    pub users: u32,
    pub offered: u64,
    pub acked: u64,
    pub delivered: u64,
    pub ack_p50_ms: f64,
    pub ack_p99_ms: f64,
    pub cut: u64,
    pub doubled: u64,
    pub reordered: u64,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(seconds) = self.seconds else {
            return write!(f, "opening  {} of {} sessions, {} cut", self.open, self.users, self.cut);
        };
        write!(
            f,
            "{seconds:>5} s  open {}/{}  offered {}/s  stored {}/s  delivered {}/s  ack p50 {:.2} ms, p99 {:.2} ms",
            self.open, self.users, self.offered, self.acked, self.delivered, self.ack_p50_ms, self.ack_p99_ms
        )?;
        for (what, count) in [("cut", self.cut), ("doubled", self.doubled), ("reordered", self.reordered)] {
            if count > 0 {
                write!(f, "  {what} {count}")?;
            }
        }
        Ok(())
    }
}

/// A distribution of times, in milliseconds.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Quantiles {
    pub count: u64,
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub p99_9: f64,
    pub p99_99: f64,
    pub max: f64,
}

impl Quantiles {
    fn of(times: &Times) -> Self {
        Self {
            count: times.count(),
            p50: times.quantile_ms(0.5),
            p90: times.quantile_ms(0.9),
            p99: times.quantile_ms(0.99),
            p99_9: times.quantile_ms(0.999),
            p99_99: times.quantile_ms(0.9999),
            max: times.quantile_ms(1.0),
        }
    }
}

/// The whole result.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub users: u32,
    pub open: u32,
    pub payload_bytes: usize,
    pub seed: u64,
    pub seconds: f64,
    /// Messages per second that fell due, and that were stored.
    pub offered_per_second: f64,
    pub achieved_per_second: f64,
    pub ack_ms: Quantiles,
    pub delivery_ms: Quantiles,
    /// The generator's own lateness: above a few milliseconds, the latencies say little of the server.
    pub schedule_error_ms: Quantiles,
    pub opening_ms: Quantiles,
    pub counts: Counts,
    pub errors: BTreeMap<String, u64>,
    /// Of one core, while messages were due.
    pub generator_cpu_percent: f64,
    /// Whether the generator was too busy for the rate to say more than "at least".
    pub generator_bound: bool,
}

impl Report {
    pub(crate) fn new(plan: &Plan, tally: &Tally, measured: &Measured) -> Self {
        let seconds = measured.seconds.max(1e-9);
        let cpu_percent = measured.cpu_seconds / seconds * 100.0;
        Self {
            users: plan.users,
            open: measured.open,
            payload_bytes: plan.payload_bytes,
            seed: plan.seed,
            seconds: measured.seconds,
            offered_per_second: tally.counts.offered as f64 / seconds,
            achieved_per_second: tally.counts.acked_in_time as f64 / seconds,
            ack_ms: Quantiles::of(&tally.ack),
            delivery_ms: Quantiles::of(&tally.delivery),
            schedule_error_ms: Quantiles::of(&tally.schedule),
            opening_ms: Quantiles::of(&tally.opening),
            counts: tally.counts,
            errors: tally.errors.clone(),
            generator_cpu_percent: cpu_percent,
            generator_bound: cpu_percent > 90.0 * f64::from(plan.threads),
        }
    }

    /// Whether nothing was lost, doubled or reordered.
    pub fn is_clean(&self) -> bool {
        self.counts.lost == 0 && self.counts.doubled == 0 && self.counts.reordered == 0
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = &self.counts;
        writeln!(f, "sessions   {} open of {} users", self.open, self.users)?;
        writeln!(
            f,
            "rate       {:.0}/s offered, {:.0}/s stored, over {:.1} s, {} bytes each",
            self.offered_per_second, self.achieved_per_second, self.seconds, self.payload_bytes
        )?;
        let at_least = if self.generator_bound { "; generator-bound: read the rate as \"at least\"" } else { "" };
        writeln!(f, "generator  {:.0} % of a core{at_least}", self.generator_cpu_percent)?;
        writeln!(f, "\nms                p50      p90      p99    p99.9   p99.99      max      count")?;
        let rows = [
            ("stored", &self.ack_ms),
            ("delivered", &self.delivery_ms),
            ("schedule error", &self.schedule_error_ms),
            ("opening", &self.opening_ms),
        ];
        for (name, q) in rows {
            writeln!(
                f,
                "{name:<14} {:>7.2}  {:>7.2}  {:>7.2}  {:>7.2}  {:>7.2}  {:>7.2}  {:>9}",
                q.p50, q.p90, q.p99, q.p99_9, q.p99_99, q.max, q.count
            )?;
        }
        writeln!(f, "\nlost {}, doubled {}, reordered {}", counts.lost, counts.doubled, counts.reordered)?;
        writeln!(
            f,
            "offered {}, stored {} ({} of them dup), delivered {}, sent again {}, refused {}, unsent {}, unanswered {}",
            counts.offered,
            counts.acked,
            counts.dup_acks,
            counts.delivered,
            counts.resent,
            counts.failed,
            counts.unsent,
            counts.unanswered
        )?;
        writeln!(
            f,
            "cut {}, timeouts {}, reopened {}, pulls {}, lagging {}, generations changed {}, malformed {}",
            counts.cut,
            counts.timeouts,
            counts.reopened,
            counts.pulls,
            counts.lagging,
            counts.generations,
            counts.malformed
        )?;
        for (code, count) in &self.errors {
            writeln!(f, "error {code}: {count}")?;
        }
        Ok(())
    }
}
