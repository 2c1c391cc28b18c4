//! What the charts of a page show: numbers and names, drawn by `assets/report.js`.

use std::collections::BTreeSet;

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::result::{Brief, RunResult, Second};

/// Points of a line over time; more would only be drawn over each other.
const POINTS_MAX: usize = 600;
/// Points of a percentile line for each tenth of what is left.
const POINTS_PER_DECADE: usize = 24;

/// One chart.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Chart {
    pub id: String,
    #[serde(skip)]
    pub title: String,
    #[serde(skip)]
    pub note: String,
    /// What the horizontal axis is: `percentile`, `category`, or a unit.
    pub x: &'static str,
    #[serde(rename = "xLabel")]
    pub x_label: &'static str,
    /// Of the vertical axis.
    pub unit: &'static str,
    pub log: bool,
    pub xs: Vec<f64>,
    /// Of categories.
    pub names: Vec<String>,
    pub series: Vec<Line>,
    /// An upper line, a lower line and the colour between them.
    pub bands: Vec<(usize, usize, usize)>,
}

/// One line of a chart.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Line {
    pub label: String,
    pub colour: usize,
    pub dashed: bool,
    /// Only the edge of a band.
    pub hidden: bool,
    pub values: Vec<Option<f64>>,
}

impl Line {
    pub fn new(label: &str, colour: usize, values: Vec<Option<f64>>) -> Self {
        // Six digits: more are noise, and make the page large.
        let rounded = |value: f64| format!("{value:.5e}").parse().unwrap_or(value);
        let values = values.into_iter().map(|value| value.map(rounded)).collect();
        Self { label: label.to_owned(), colour, values, ..Self::default() }
    }

    pub fn dashed(self) -> Self {
        Self { dashed: true, ..self }
    }

    pub fn hidden(self) -> Self {
        Self { hidden: true, ..self }
    }

    fn says_something(&self) -> bool {
        self.values.iter().flatten().any(|value| *value != 0.0)
    }
}

/// Percentile lines over 1 / (1 - quantile), so that each step to the right is a tenth of what is left.
pub(super) fn percentiles(
    id: &str,
    title: &str,
    note: &str,
    of: &[(String, usize, bool, Histogram<u64>)],
) -> Option<Chart> {
    let most = of.iter().map(|(.., histogram)| histogram.len()).max().filter(|most| *most > 0)? as f64;
    let steps = (most.log10() * POINTS_PER_DECADE as f64).ceil() as usize;
    let mut xs: Vec<f64> = (0..=steps).map(|step| 10_f64.powf(step as f64 / POINTS_PER_DECADE as f64)).collect();
    xs.retain(|x| *x < most);
    xs.push(most);
    let line = |(label, colour, dashed, histogram): &(String, usize, bool, Histogram<u64>)| {
        let count = histogram.len() as f64;
        let value = |x: &f64| {
            // Beyond its own count a line has nothing to say but its longest, once.
            let inside = *x <= count * 10_f64.powf(1.0 / POINTS_PER_DECADE as f64);
            // One of `count` is as rare as anything can be: the longest.
            let quantile = if *x < count { 1.0 - 1.0 / x } else { 1.0 };
            inside.then(|| histogram.value_at_quantile(quantile) as f64 / 1e6)
        };
        Line { dashed: *dashed, ..Line::new(label, *colour, xs.iter().map(value).collect()) }
    };
    let series = of.iter().filter(|(.., histogram)| !histogram.is_empty()).map(line).collect();
    Some(Chart {
        id: id.to_owned(),
        title: title.to_owned(),
        note: note.to_owned(),
        x: "percentile",
        x_label: "percentile",
        unit: "ms",
        log: true,
        series,
        xs,
        ..Chart::default()
    })
}

/// All charts of one run that have something to show.
pub(super) fn of_run(run: &RunResult) -> Vec<Chart> {
    let series = thinned(&run.series);
    let mut charts = Vec::new();
    charts.extend(steps(run));
    charts.extend(by_percentile(run));
    charts.extend(over_time(&series));
    charts
}

fn by_percentile(run: &RunResult) -> Option<Chart> {
    let latency = &run.latency;
    let lines = [
        ("stored", 0, false, &latency.ack),
        ("delivered", 1, false, &latency.delivery),
        ("caught up", 3, false, &latency.catch_up),
        ("opening", 5, true, &latency.opening),
        ("schedule error", 2, true, &latency.schedule_error),
    ];
    let lines: Vec<_> = lines
        .into_iter()
        .filter_map(|(label, colour, dashed, of)| Some((label.to_owned(), colour, dashed, of.histogram()?)))
        .collect();
    let note = "How long the slowest took: each step to the right is a tenth of what is left.";
    percentiles("by-percentile", "Latency by percentile", note, &lines)
}

fn over_time(seconds: &[Second]) -> Vec<Chart> {
    let xs: Vec<f64> = seconds.iter().map(|second| (second.at * 100.0).round() / 100.0).collect();
    let line = |label: &str, colour, value: &dyn Fn(&Second) -> Option<f64>| {
        Line::new(label, colour, seconds.iter().map(value).collect())
    };
    let rate = |label: &str, colour, count: &dyn Fn(&Second) -> u64| {
        line(label, colour, &|second| Some(count(second) as f64 / second.length.max(1e-3)))
    };
    let chart = |id: &str, title: &str, note: &str, unit, log, lines: Vec<Line>| Chart {
        id: id.to_owned(),
        title: title.to_owned(),
        note: note.to_owned(),
        x: "s",
        x_label: "time",
        unit,
        log,
        xs: xs.clone(),
        series: lines.into_iter().filter(Line::says_something).collect(),
        ..Chart::default()
    };
    // A distribution that nobody was waiting for has no line; zero cannot stand on a logarithmic axis.
    let brief = |label: &str, colour, of: fn(&Second) -> Option<Brief>, part: fn(Brief) -> f64| {
        line(label, colour, &|second| of(second).map(part).filter(|ms| *ms > 0.0))
    };
    let mut charts = vec![
        chart(
            "latency",
            "Latency over time",
            "Of the messages of each second, from when they were due.",
            "ms",
            true,
            vec![
                brief("delivered p50", 2, |second| second.delivery, |brief| brief.p50),
                brief("delivered p99", 1, |second| second.delivery, |brief| brief.p99),
                brief("delivered max", 4, |second| second.delivery, |brief| brief.max),
                brief("stored p99", 0, |second| second.ack, |brief| brief.p99),
                brief("schedule error p99", 5, |second| second.schedule_error, |brief| brief.p99).dashed(),
            ],
        ),
        chart(
            "rate",
            "Offered and achieved rate",
            "Where the lines part, more fell due than was stored.",
            "/s",
            false,
            vec![
                rate("offered", 1, &|second| second.offered).dashed(),
                rate("stored", 0, &|second| second.acked),
                rate("delivered", 2, &|second| second.delivered),
            ],
        ),
        chart(
            "connections",
            "Connections",
            "Sessions that were open, and those that should have been.",
            "",
            false,
            vec![
                line("wanted", 1, &|second| Some(f64::from(second.users))).dashed(),
                line("open", 0, &|second| Some(f64::from(second.open))),
            ],
        ),
        chart(
            "cpu",
            "CPU",
            "Of one core, the kernel’s part included. On loopback the sender pays for the receiver.",
            "%",
            false,
            vec![
                line("server", 0, &|second| second.server_cpu_percent),
                line("generator", 1, &|second| Some(second.generator_cpu_percent)).dashed(),
            ],
        ),
        chart(
            "memory",
            "Memory",
            "Resident in the processes; the kernel’s part is in the table of memory per session.",
            "bytes",
            false,
            vec![
                line("server", 0, &|second| second.server_memory_bytes.map(|bytes| bytes as f64)),
                line("generator", 1, &|second| second.generator_memory_bytes.map(|bytes| bytes as f64)).dashed(),
            ],
        ),
        chart(
            "errors",
            "What went wrong",
            "By the second.",
            "/s",
            false,
            vec![
                rate("errors", 4, &|second| second.errors),
                rate("cut", 1, &|second| second.cut),
                rate("unsent", 3, &|second| second.unsent),
            ],
        ),
    ];
    for (id, title, is_of) in [
        ("server-bytes", "The server’s own metrics: bytes", true),
        ("server-counts", "The server’s own metrics: counts", false),
    ] {
        let names = seconds.iter().flat_map(|second| second.server_metrics.keys());
        let names: BTreeSet<_> = names.filter(|name| name.contains("bytes") == is_of).collect();
        let lines = names.iter().enumerate().map(|(at, name)| {
            let label = name.strip_prefix("ringway_").unwrap_or(name);
            line(label, at, &|second| second.server_metrics.get(name.as_str()).copied())
        });
        let unit = if is_of { "bytes" } else { "" };
        charts.push(chart(id, title, "As the server counted them.", unit, false, lines.collect()));
    }
    charts.retain(|chart| !chart.series.is_empty());
    charts
}

/// What `saturate` tried, by rate.
fn steps(run: &RunResult) -> Option<Chart> {
    let mut steps: Vec<_> = run.steps.iter().collect();
    steps.sort_by(|one, other| one.offered_per_second.total_cmp(&other.offered_per_second));
    let line = |label, colour, value: fn(&&crate::result::Step) -> f64| {
        Line::new(label, colour, steps.iter().map(|step| Some(value(step)).filter(|ms| *ms > 0.0)).collect())
    };
    let series = vec![
        line("delivered p50", 2, |step| step.latency.delivery.p50),
        line("delivered p99", 1, |step| step.latency.delivery.p99),
        line("delivered p99.9", 4, |step| step.latency.delivery.p99_9),
    ];
    (!steps.is_empty()).then(|| Chart {
        id: "steps".to_owned(),
        title: "Latency by rate".to_owned(),
        note: "Every rate that was tried.".to_owned(),
        x: "/s",
        x_label: "offered",
        unit: "ms",
        log: true,
        xs: steps.iter().map(|step| step.offered_per_second).collect(),
        series: series.into_iter().filter(Line::says_something).collect(),
        ..Chart::default()
    })
}

/// At most `POINTS_MAX` of them: neighbours made one. Counts are summed, longest times stay the longest.
fn thinned(seconds: &[Second]) -> Vec<Second> {
    // What came after the last whole second is too short for rates to mean anything.
    let seconds: Vec<_> = seconds.iter().filter(|second| second.length >= 0.3).collect();
    let size = seconds.len().div_ceil(POINTS_MAX).max(1);
    seconds
        .chunks(size)
        .map(|chunk| {
            let mut one = chunk[chunk.len() - 1].clone();
            for earlier in &chunk[..chunk.len() - 1] {
                one.length += earlier.length;
                one.offered += earlier.offered;
                one.sent += earlier.sent;
                one.acked += earlier.acked;
                one.delivered += earlier.delivered;
                one.errors += earlier.errors;
                one.cut += earlier.cut;
                one.unsent += earlier.unsent;
                for (into, from) in [
                    (&mut one.ack, earlier.ack),
                    (&mut one.delivery, earlier.delivery),
                    (&mut one.opening, earlier.opening),
                    (&mut one.schedule_error, earlier.schedule_error),
                ] {
                    *into = worse(*into, from);
                }
            }
            one
        })
        .collect()
}

fn worse(one: Option<Brief>, other: Option<Brief>) -> Option<Brief> {
    match (one, other) {
        (Some(one), Some(other)) => {
            Some(Brief { p50: one.p50.max(other.p50), p99: one.p99.max(other.p99), max: one.max.max(other.max) })
        }
        (one, other) => one.or(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thinning_keeps_what_happened_and_the_longest() {
        let seconds: Vec<_> = (0..POINTS_MAX as u64 * 3)
            .map(|at| Second {
                at: at as f64,
                length: 1.0,
                acked: 2,
                ack: Some(Brief { p50: 1.0, p99: 2.0, max: at as f64 }),
                ..Second::default()
            })
            .collect();
        let thin = thinned(&seconds);
        assert_eq!(thin.len(), POINTS_MAX);
        assert_eq!(thin.iter().map(|second| second.acked).sum::<u64>(), 2 * seconds.len() as u64);
        assert!((thin[POINTS_MAX - 1].ack.unwrap().max - (seconds.len() - 1) as f64).abs() < 1e-9);
    }

    #[test]
    fn a_percentile_line_ends_with_the_longest_and_stops_at_its_count() {
        let mut small = Histogram::new_with_bounds(1, 1_000_000_000, 3).unwrap();
        let mut large = small.clone();
        for ms in 1..=10_u64 {
            small.record(ms * 1_000_000).unwrap();
        }
        for ms in 1..=900_u64 {
            large.record(ms * 1_000_000).unwrap();
        }
        let lines = [("s".to_owned(), 0, false, small), ("l".to_owned(), 1, false, large)];
        let chart = percentiles("p", "", "", &lines).unwrap();
        let last = |at: usize| chart.series[at].values.iter().flatten().copied().next_back().unwrap();
        assert!((last(0) - 10.0).abs() < 0.1 && (last(1) - 900.0).abs() < 1.0, "{} {}", last(0), last(1));
        assert_eq!(chart.series[0].values.last(), Some(&None));
        assert_eq!(percentiles("p", "", "", &[]).map(|chart| chart.id), None);
    }
}
