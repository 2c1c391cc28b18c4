//! How a run looks while it goes on: a few lines that are drawn over on a terminal, a line a second anywhere else.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::interval::Interval;
use crate::result::Second;

/// Columns of the small charts: a second each.
const COLUMNS: usize = 40;

/// What stands before the first line.
const MARGIN_COLUMNS: usize = 2;

/// Draws on standard error.
#[derive(Debug)]
pub struct Live {
    /// None where there is no terminal.
    bar: Option<ProgressBar>,
    view: View,
}

/// What the lines say; it draws nothing itself.
#[derive(Debug, Default)]
struct View {
    title: String,
    achieved: VecDeque<f64>,
    p99: VecDeque<f64>,
}

impl Live {
    /// With that in its first line.
    pub fn new(title: &str) -> Self {
        let view = View { title: title.to_owned(), ..View::default() };
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            bar.set_style(ProgressStyle::with_template("{spinner} {msg}").expect("the template is valid"));
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        Self { bar, view }
    }

    /// Shows another second.
    pub fn show(&mut self, interval: &Interval, second: &Second) {
        match &self.bar {
            Some(bar) => {
                // Asked for each time: windows are made wider.
                let (_, columns) = console::Term::stderr().size();
                let lines = self.view.lines(interval, second);
                bar.set_message(cut(&lines, usize::from(columns).saturating_sub(MARGIN_COLUMNS)));
            }
            None => eprintln!("{interval}"),
        }
    }

    /// Takes the lines away, so that the result stands where they stood.
    pub fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl View {
    fn lines(&mut self, interval: &Interval, second: &Second) -> String {
        let counts = &interval.tally.counts;
        keep(&mut self.achieved, interval.per_second(counts.acked) as f64);
        keep(&mut self.p99, second.ack.map_or(0.0, |ack| ack.p99));
        let mut out = format!("{}   {}   {:.0} s\n", self.title, interval.phase, interval.at);
        let row = |out: &mut String, name: &str, text: &str| {
            let _ = writeln!(out, "  {name:<10} {text}");
        };
        let total = &interval.total;
        let sessions =
            format!("{} of {} open, {} reopened, {} cut", interval.open, interval.users, total.reopened, total.cut);
        row(&mut out, "sessions", &sessions);
        let rates = [counts.offered, counts.acked, counts.delivered].map(|count| interval.per_second(count));
        let rate = format!("{}/s offered, {}/s stored, {}/s delivered", rates[0], rates[1], rates[2]);
        row(&mut out, "rate", &rate);
        row(&mut out, "", &spark(&self.achieved));
        for (name, brief) in [("stored", second.ack), ("delivered", second.delivery)] {
            if let Some(brief) = brief {
                row(&mut out, name, &format!("p50 {:.2}  p99 {:.2}  max {:.2} ms", brief.p50, brief.p99, brief.max));
            }
        }
        row(&mut out, "stored p99", &spark(&self.p99));
        let late = second.schedule_error.map_or(0.0, |brief| brief.p99);
        row(
            &mut out,
            "generator",
            &format!("{:.0} % of a core, late by {late:.2} ms (p99)", second.generator_cpu_percent),
        );
        row(&mut out, "wrong", &wrong(interval));
        if let Some(server) = server(second) {
            row(&mut out, "server", &server);
        }
        out
    }
}

/// What should not be; errors since the beginning would hide that they are over.
fn wrong(interval: &Interval) -> String {
    let total = &interval.total;
    let counts = [
        ("lost", total.lost),
        ("doubled", total.doubled),
        ("reordered", total.reordered),
        ("unsent", total.unsent),
        ("timeouts", total.timeouts),
    ];
    let counts = counts.into_iter().filter(|(_, count)| *count > 0).map(|(name, count)| format!("{name} {count}"));
    let errors = interval.tally.errors.iter().map(|(code, count)| format!("{code}: {count}/s"));
    let all = counts.chain(errors).collect::<Vec<_>>().join(", ");
    if all.is_empty() { "nothing".to_owned() } else { all }
}

/// The same lines, none longer than that: one that wraps would be drawn over wrongly. What is cut ends in an ellipsis.
fn cut(lines: &str, columns: usize) -> String {
    let cut = |line: &str| match line.char_indices().nth(columns) {
        None => line.to_owned(),
        Some(_) => line.chars().take(columns.saturating_sub(1)).chain(['…']).collect(),
    };
    lines.lines().map(cut).collect::<Vec<_>>().join("\n")
}

fn mib(bytes: f64) -> String {
    format!("{:.1} MiB", bytes / f64::from(1 << 20))
}

/// The server's own numbers, as far as they are known.
fn server(second: &Second) -> Option<String> {
    let cpu = second.server_cpu_percent.map(|percent| format!("{percent:.0} % of a core"));
    let memory = second.server_memory_bytes.map(|bytes| mib(bytes as f64));
    let metrics = second.server_metrics.iter().map(|(name, value)| {
        let name = name.strip_prefix("ringway_").unwrap_or(name);
        // A name says its unit last, and labels follow it.
        let is_bytes = name.split('{').next().is_some_and(|name| name.ends_with("_bytes"));
        if is_bytes { format!("{name} {}", mib(*value)) } else { format!("{name} {value}") }
    });
    let parts: Vec<_> = cpu.into_iter().chain(memory).chain(metrics).collect();
    (!parts.is_empty()).then(|| parts.join(", "))
}

fn keep(values: &mut VecDeque<f64>, value: f64) {
    if values.len() == COLUMNS {
        values.pop_front();
    }
    values.push_back(value);
}

/// A column a value, the highest as high as a line.
fn spark(values: &VecDeque<f64>) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let max = values.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
    values.iter().map(|value| BARS[((value / max * 7.0).round() as usize).min(7)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::result::Brief;

    #[test]
    fn the_lines_say_what_is_wrong_and_how_the_server_is() {
        let mut view = View { title: "pairs".to_owned(), ..View::default() };
        let mut interval = Interval { phase: "messages".to_owned(), length: 1.0, ..Interval::default() };
        interval.tally.counts.acked = 500;
        interval.tally.error("unavailable");
        interval.total.lost = 2;
        let second = Second {
            ack: Some(Brief { p50: 1.0, p99: 2.0, max: 3.0 }),
            server_cpu_percent: Some(12.0),
            server_memory_bytes: Some(3 << 20),
            server_metrics: [
                ("ringway_connections".to_owned(), 7.0),
                ("ringway_store_lag_bytes{shard=\"0\"}".to_owned(), 1_572_864.0),
            ]
            .into(),
            ..Second::default()
        };
        let lines = view.lines(&interval, &second);
        for part in [
            "500/s stored",
            "lost 2, unavailable: 1/s",
            "12 % of a core, 3.0 MiB, connections 7, ",
            " 1.5 MiB",
            "p99 2.00",
        ] {
            assert!(lines.contains(part), "{part} in {lines}");
        }
        for _ in 0..100 {
            assert!(view.lines(&interval, &second).contains(&"█".repeat(view.p99.len())));
        }
        assert_eq!(view.p99.len(), COLUMNS);
    }

    #[test]
    fn no_line_is_wider_than_the_terminal() {
        assert_eq!(cut("▁▂▃▄\n  server 12345\n", 8), "▁▂▃▄\n  serve…");
        assert_eq!(cut("12345678\n\n9", 8), "12345678\n\n9");
    }
}
