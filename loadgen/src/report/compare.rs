//! Several runs beside each other: repetitions under one label, labels against the first, commits in their order.

use hdrhistogram::Histogram;

use crate::random::Random;
use crate::report::charts::{Chart, Line, percentiles};
use crate::report::format::{digits, with_unit};
use crate::report::page::{Cell, Range, Table};
use crate::result::{Distribution, RunResult};

/// With fewer runs the interval is from the least to the most.
const BOOTSTRAP_RUNS_MIN: usize = 5;

/// A figure that runs are compared by.
struct Measure {
    name: &'static str,
    unit: &'static str,
    of: fn(&RunResult) -> Option<f64>,
}

const MEASURES: [Measure; 19] = [
    Measure { name: "offered", unit: "/s", of: |run| positive(run.offered_per_second) },
    Measure { name: "stored", unit: "/s", of: |run| positive(run.achieved_per_second) },
    Measure { name: "delivered p50", unit: "ms", of: |run| part(&run.latency.delivery, |d| d.p50) },
    Measure { name: "delivered p99", unit: "ms", of: |run| part(&run.latency.delivery, |d| d.p99) },
    Measure { name: "delivered p99.9", unit: "ms", of: |run| part(&run.latency.delivery, |d| d.p99_9) },
    Measure { name: "delivered max", unit: "ms", of: |run| part(&run.latency.delivery, |d| d.max) },
    Measure { name: "stored p50", unit: "ms", of: |run| part(&run.latency.ack, |d| d.p50) },
    Measure { name: "stored p99", unit: "ms", of: |run| part(&run.latency.ack, |d| d.p99) },
    Measure { name: "stored p99.9", unit: "ms", of: |run| part(&run.latency.ack, |d| d.p99_9) },
    Measure { name: "caught up p99", unit: "ms", of: |run| part(&run.latency.catch_up, |d| d.p99) },
    Measure { name: "opening p99", unit: "ms", of: |run| part(&run.latency.opening, |d| d.p99) },
    Measure { name: "schedule error p99", unit: "ms", of: |run| part(&run.latency.schedule_error, |d| d.p99) },
    Measure { name: "sessions", unit: "", of: |run| Some(f64::from(run.open)) },
    Measure { name: "server CPU", unit: "%", of: |run| run.server.as_ref()?.cpu_percent },
    Measure { name: "server CPU a message", unit: "µs", of: |run| run.server.as_ref()?.cpu_us_per_message },
    Measure { name: "server memory a session", unit: "bytes", of: |run| run.memory.as_ref()?.server_bytes_per_session },
    Measure { name: "kernel memory a session", unit: "bytes", of: |run| run.memory.as_ref()?.kernel_bytes_per_session },
    Measure { name: "generator CPU", unit: "%", of: |run| Some(run.generator_cpu_percent) },
    Measure { name: "lost, doubled, reordered, forgotten", unit: "", of: |run| Some(run.counts.broken() as f64) },
];

fn positive(value: f64) -> Option<f64> {
    (value > 0.0).then_some(value)
}

fn part(of: &Distribution, part: fn(&Distribution) -> f64) -> Option<f64> {
    (of.count > 0).then(|| part(of))
}

/// Runs of one label, in the order in which labels first appear.
pub(super) struct Group<'a> {
    pub label: String,
    pub runs: Vec<&'a RunResult>,
}

pub(super) fn groups(runs: &[RunResult]) -> Vec<Group<'_>> {
    let mut groups: Vec<Group<'_>> = Vec::new();
    for run in runs {
        match groups.iter_mut().find(|group| group.label == run.label) {
            Some(group) => group.runs.push(run),
            None => groups.push(Group { label: run.label.clone(), runs: vec![run] }),
        }
    }
    groups
}

/// The commit that was measured: the server's, or else the generator's, which is usually built beside it.
pub(super) fn commit(run: &RunResult) -> String {
    let version = run.server.as_ref().map(|server| server.version.as_str()).unwrap_or_default();
    let mut words = version.split_whitespace().skip_while(|word| *word != "commit").skip(1);
    let own = || run.generators.first().map(|generator| generator.build.commit.clone()).unwrap_or_default();
    words.next().map_or_else(own, str::to_owned)
}

/// A median and what it lies between.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Estimate {
    middle: f64,
    low: f64,
    high: f64,
}

impl Estimate {
    fn of(values: &[f64]) -> Self {
        let middle = median(values);
        if values.len() < BOOTSTRAP_RUNS_MIN {
            return Self { middle, low: least(values), high: most(values) };
        }
        let (low, high) = bounds(|random| median(&resampled(values, random)));
        Self { middle, low, high }
    }

    /// Of one against another, by their medians.
    fn ratio(values: &[f64], base: &[f64]) -> Option<Self> {
        let middle = median(values) / median(base);
        let (low, high) = if values.len().min(base.len()) < BOOTSTRAP_RUNS_MIN {
            (least(values) / most(base), most(values) / least(base))
        } else {
            bounds(|random| median(&resampled(values, random)) / median(&resampled(base, random)))
        };
        [middle, low, high].iter().all(|value| value.is_finite()).then_some(Self { middle, low, high })
    }
}

fn least(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::INFINITY, f64::min)
}

fn most(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::NEG_INFINITY, f64::max)
}

/// The middle one; the mean of the middle two.
fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

fn resampled(values: &[f64], random: &mut Random) -> Vec<f64> {
    values.iter().map(|_| values[random.below(values.len() as u64) as usize]).collect()
}

/// Between which values 95 % of what is drawn lies.
fn bounds(mut draw: impl FnMut(&mut Random) -> f64) -> (f64, f64) {
    const DRAWS: usize = 4_000;
    // The same page from the same files.
    let mut random = Random::new(1, 1);
    let mut drawn: Vec<_> = (0..DRAWS).map(|_| draw(&mut random)).collect();
    drawn.sort_by(f64::total_cmp);
    (drawn[DRAWS * 25 / 1_000], drawn[DRAWS * 975 / 1_000])
}

fn values(runs: &[&RunResult], measure: &Measure) -> Vec<f64> {
    runs.iter().filter_map(|run| (measure.of)(run)).collect()
}

/// All figures of all labels, and each label against the first.
pub(super) fn tables(groups: &[Group<'_>]) -> Vec<Table> {
    let mut tables = vec![figures(groups)];
    if groups.len() > 1 {
        tables.push(ratios(groups));
    }
    tables
}

fn figures(groups: &[Group<'_>]) -> Table {
    let heading = |group: &Group<'_>| {
        let runs = group.runs.len();
        format!("{} ({runs} run{})", group.label, if runs == 1 { "" } else { "s" })
    };
    let mut columns = vec![String::new()];
    columns.extend(groups.iter().map(heading));
    let row = |measure: &Measure| {
        let cells: Vec<_> = groups.iter().map(|group| values(&group.runs, measure)).collect();
        let some = cells.iter().any(|values| !values.is_empty());
        let cell = |values: Vec<f64>| {
            if values.is_empty() {
                return Cell::text("–");
            }
            let estimate = Estimate::of(&values);
            let middle = with_unit(estimate.middle, measure.unit);
            let [low, high] = [estimate.low, estimate.high].map(|value| with_unit(value, measure.unit));
            if low == high {
                return Cell::text(&middle);
            }
            Cell::text(&format!("{middle}  ({low} to {high})"))
        };
        some.then(|| std::iter::once(Cell::text(measure.name)).chain(cells.into_iter().map(cell)).collect())
    };
    Table {
        title: "Side by side".to_owned(),
        note: format!(
            "The median of the runs of a label; in parentheses what it lies between: 95 % bounds by resampling from \
             {BOOTSTRAP_RUNS_MIN} runs on, the least and the most with fewer."
        ),
        columns,
        rows: MEASURES.iter().filter_map(row).collect(),
        numbers: true,
        ..Table::default()
    }
}

fn ratios(groups: &[Group<'_>]) -> Table {
    let base = &groups[0];
    let mut columns = vec![String::new()];
    columns.extend(groups[1..].iter().map(|group| group.label.clone()));
    let row = |measure: &Measure| {
        let against = values(&base.runs, measure);
        let cells: Vec<_> =
            groups[1..].iter().map(|group| Estimate::ratio(&values(&group.runs, measure), &against)).collect();
        let some = cells.iter().any(Option::is_some);
        let cell = |estimate: Option<Estimate>| match estimate {
            None => Cell::text("–"),
            Some(Estimate { middle, low, high }) => Cell {
                text: format!("{}  ({} to {})", digits(middle), digits(low), digits(high)),
                range: Some(Range::of_ratio(low, middle, high)),
            },
        };
        some.then(|| std::iter::once(Cell::text(measure.name)).chain(cells.into_iter().map(cell)).collect())
    };
    Table {
        title: format!("Against {}", base.label),
        note:
            "Ratios of medians, with the same kind of bounds. The line is the interval from a quarter to four times, \
               its tick is 1: where the interval does not touch the tick, the difference is more than chance."
                .to_owned(),
        columns,
        rows: MEASURES.iter().filter_map(row).collect(),
        numbers: true,
        ..Table::default()
    }
}

/// Latencies of all labels over each other, and trends where there is more than one commit.
pub(super) fn charts(groups: &[Group<'_>]) -> Vec<Chart> {
    let merged = |of: fn(&RunResult) -> &Distribution| -> Vec<(String, usize, bool, Histogram<u64>)> {
        let line = |(at, group): (usize, &Group<'_>)| {
            let mut all: Option<Histogram<u64>> = None;
            for histogram in group.runs.iter().filter_map(|run| of(run).histogram()) {
                match &mut all {
                    // Two of different bounds cannot be added exactly; then the page shows the first.
                    Some(all) => drop(all.add(&histogram)),
                    none => *none = Some(histogram),
                }
            }
            Some((group.label.clone(), at, false, all?))
        };
        groups.iter().enumerate().filter_map(line).collect()
    };
    let note = "All runs of a label together.";
    let mut charts = Vec::new();
    charts.extend(percentiles(
        "delivered-by-percentile",
        "Delivered, by percentile",
        note,
        &merged(|run| &run.latency.delivery),
    ));
    charts.extend(percentiles("stored-by-percentile", "Stored, by percentile", note, &merged(|run| &run.latency.ack)));
    charts.extend(percentiles(
        "opening-by-percentile",
        "Opening, by percentile",
        note,
        &merged(|run| &run.latency.opening),
    ));
    charts.extend(trends(groups));
    charts
}

/// A figure over commits in the order in which they were first measured.
fn trends(groups: &[Group<'_>]) -> Vec<Chart> {
    let mut runs: Vec<_> = groups.iter().flat_map(|group| group.runs.iter().copied()).collect();
    runs.sort_by_key(|run| run.began_unix_ms);
    let mut commits: Vec<String> = Vec::new();
    for name in runs.iter().map(|run| commit(run)) {
        if !commits.contains(&name) {
            commits.push(name);
        }
    }
    if commits.len() < 2 {
        return Vec::new();
    }
    let shown = ["delivered p99", "stored", "server CPU a message", "server memory a session", "opening p99"];
    let chart = |measure: &Measure| {
        let (mut series, mut bands) = (Vec::new(), Vec::new());
        for (at, group) in groups.iter().enumerate() {
            let estimate = |name: &String| {
                let runs: Vec<_> = group.runs.iter().copied().filter(|run| commit(run) == *name).collect();
                let values = values(&runs, measure);
                (!values.is_empty()).then(|| Estimate::of(&values))
            };
            let estimates: Vec<_> = commits.iter().map(estimate).collect();
            let line = |label: &str, part: fn(&Estimate) -> f64| {
                Line::new(label, at, estimates.iter().map(|estimate| estimate.as_ref().map(part)).collect())
            };
            let first = series.len();
            series.push(line(&group.label, |estimate| estimate.middle));
            series.push(line("high", |estimate| estimate.high).hidden());
            series.push(line("low", |estimate| estimate.low).hidden());
            bands.push((first + 1, first + 2, at));
        }
        Chart {
            id: format!("trend-{}", measure.name.replace([' ', '.'], "-")),
            title: format!("Trend: {}", measure.name),
            note: "By commit, in the order of measuring; the band is the interval of each.".to_owned(),
            x: "category",
            x_label: "commit",
            unit: measure.unit,
            xs: (0..commits.len()).map(|at| at as f64).collect(),
            names: commits.iter().map(|name| name.chars().take(7).collect()).collect(),
            series,
            bands,
            ..Chart::default()
        }
    };
    let has_values = |measure: &&Measure| runs.iter().any(|run| (measure.of)(run).is_some());
    MEASURES.iter().filter(|measure| shown.contains(&measure.name)).filter(has_values).map(chart).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::result::Generator;

    fn run(label: &str, commit: &str, rate: f64, at: u64) -> RunResult {
        let mut run =
            RunResult { label: label.to_owned(), achieved_per_second: rate, began_unix_ms: at, ..RunResult::default() };
        let mut generator = Generator::default();
        generator.build.commit = commit.to_owned();
        run.generators.push(generator);
        run
    }

    #[test]
    fn few_runs_have_their_extremes_and_many_have_bounds_within_them() {
        assert_eq!(Estimate::of(&[3.0, 1.0, 2.0]), Estimate { middle: 2.0, low: 1.0, high: 3.0 });
        let many: Vec<f64> = (1..=21).map(f64::from).collect();
        let estimate = Estimate::of(&many);
        assert!((estimate.middle - 11.0).abs() < 1e-9, "{estimate:?}");
        assert!(
            estimate.low > 1.0 && estimate.low < 11.0 && estimate.high > 11.0 && estimate.high < 21.0,
            "{estimate:?}"
        );
        assert_eq!(Estimate::ratio(&[2.0], &[0.0]), None);
        assert_eq!(Estimate::ratio(&[2.0, 4.0], &[1.0, 2.0]), Some(Estimate { middle: 2.0, low: 1.0, high: 4.0 }));
    }

    #[test]
    fn runs_of_a_label_are_one_column_and_commits_are_in_the_order_of_time() {
        let runs = [run("b", "second", 20.0, 2), run("a", "first", 10.0, 1), run("b", "first", 22.0, 0)];
        let groups = groups(&runs);
        assert_eq!(groups.iter().map(|group| group.runs.len()).collect::<Vec<_>>(), [2, 1]);
        let table = figures(&groups);
        let row = table.rows.iter().find(|row| row[0].text == "stored").unwrap();
        assert_eq!(row[1].text, "21/s  (20/s to 22/s)");
        assert_eq!(row[2].text, "10/s");
        let trend = trends(&groups).into_iter().find(|chart| chart.id == "trend-stored").unwrap();
        assert_eq!(trend.names, ["first", "second"]);
        assert_eq!(trend.series[3].values, [Some(10.0), None]);
    }

    #[test]
    fn the_servers_commit_counts_before_the_generators() {
        let mut run = run("a", "generator", 1.0, 0);
        assert_eq!(commit(&run), "generator");
        run.server = Some(crate::result::Server { version: "version 1 commit abc".to_owned(), ..Default::default() });
        assert_eq!(commit(&run), "abc");
    }
}
