//! What came of a run, for people at a terminal.

use std::fmt;

use crate::result::RunResult;

impl fmt::Display for RunResult {
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
            ("stored", &self.latency.ack),
            ("delivered", &self.latency.delivery),
            ("untouched", &self.latency.untouched),
            ("slow readers", &self.latency.slow),
            ("caught up", &self.latency.catch_up),
            ("open again", &self.latency.resume),
            ("schedule error", &self.latency.schedule_error),
            ("opening", &self.latency.opening),
        ];
        for (name, q) in rows.iter().filter(|(_, q)| q.count > 0) {
            writeln!(
                f,
                "{name:<14} {:>7.2}  {:>7.2}  {:>7.2}  {:>7.2}  {:>7.2}  {:>7.2}  {:>9}",
                q.p50, q.p90, q.p99, q.p99_9, q.p99_99, q.max, q.count
            )?;
        }
        if let Some(abroad) = &self.latency.abroad {
            write!(f, "{:<14}", "from abroad")?;
            for time in abroad.quantiles() {
                write!(f, " {:>7} ", time.map_or_else(|| "below".to_owned(), |ms| format!("{ms:.2}")))?;
            }
            writeln!(f, " {:>9}", abroad.count)?;
            let error = abroad.error_ms;
            writeln!(
                f,
                "from abroad: right to within {error:.3} ms; \"below\" is below the clocks' error of {error:.3} ms"
            )?;
        }
        for agent in self.generators.iter().filter(|agent| !agent.name.is_empty()) {
            write!(f, "agent {}: {:.0} % of a core, ", agent.name, agent.cpu_percent)?;
            write!(f, "its busiest thread {:.0} %", agent.busiest_thread_percent)?;
            if let Some((offset, error)) = agent.clock_offset_ms {
                write!(f, ", its clock {offset:+.3} ms \u{b1} {error:.3} ms")?;
            }
            writeln!(f)?;
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
        for threshold in &self.thresholds {
            let verdict = if threshold.passed { "pass" } else { "FAIL" };
            let measured = threshold.measured.map_or_else(|| "not measured".to_owned(), |value| format!("{value:.2}"));
            write!(f, "\n{verdict}  {}: {measured} {}", threshold.condition, threshold.unit)?;
            if let Some(note) = &threshold.note {
                write!(f, " ({note})")?;
            }
        }
        if let Some(why) = &self.aborted {
            write!(f, "\nended before its time: {why}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::result::{Abroad, Generator};

    #[test]
    fn between_agents_only_what_is_known_is_a_number() {
        let mut result = RunResult::default();
        assert!(!result.to_string().contains("abroad"));
        let abroad = Abroad { count: 7, error_ms: 1.5, p99: Some(4.25), max: Some(9.0), ..Abroad::default() };
        result.latency.abroad = Some(abroad);
        let clock_offset_ms = Some((-2e8, 0.04));
        result.generators.push(Generator { name: "a:1".to_owned(), clock_offset_ms, ..Generator::default() });
        let said = result.to_string();
        let row: Vec<_> =
            said.lines().find(|line| line.starts_with("from abroad ")).unwrap().split_whitespace().collect();
        assert_eq!(row[2..], ["below", "below", "4.25", "below", "below", "9.00", "7"]);
        assert!(said.contains("below the clocks' error of 1.500 ms"), "{said}");
        assert!(said.contains("agent a:1: ") && said.contains("-200000000.000 ms \u{b1} 0.040 ms"), "{said}");
    }
}
