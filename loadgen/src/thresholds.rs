//! Conditions that a run must meet: `delivery.p99 < 20ms`, `lost == 0`, `cpu < 80%`.
//!
//! ```text
//! condition = metric comparison value
//! metric    = distribution "." ("p50" | "p90" | "p99" | "p99.9" | "p99.99" | "max" | "count")
//!           | the name of a count | "offered" | "achieved" | "achieved_ratio" | "cpu" | "server_cpu" | "errors"
//! ```

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::span::Span;
use crate::tally::{Counts, Tally};

/// What a condition is about.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Metric {
    /// A quantile of a distribution of times; 1 is the longest.
    Quantile(&'static str, f64),
    /// How many times a distribution has.
    Times(&'static str),
    Count(&'static str),
    Errors,
    /// Messages per second that fell due, and that were stored.
    Offered,
    Achieved,
    /// The one as a part of the other, in per cent.
    AchievedRatio,
    /// Of one core, in per cent.
    Cpu,
    ServerCpu,
}

/// In what a value is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unit {
    Milliseconds,
    PerSecond,
    Percent,
    Number,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Comparison {
    Below,
    AtMost,
    Above,
    AtLeast,
    Equal,
    NotEqual,
}

/// A condition.
#[derive(Debug, Clone, PartialEq)]
pub struct Threshold {
    text: String,
    metric: Metric,
    comparison: Comparison,
    value: f64,
}

/// Why a text is no condition.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ThresholdError {
    /// Not three parts.
    #[error("`{0}` is no condition: write it like `delivery.p99 < 20ms` or `lost == 0`")]
    Form(String),
    /// No such metric.
    #[error("`{condition}`: there is no metric `{metric}`{suggestion}")]
    Metric {
        /// The whole.
        condition: String,
        /// The metric as written.
        metric: String,
        /// `; did you mean ...?`, or nothing.
        suggestion: String,
    },
    /// A value that the metric cannot have.
    #[error("`{condition}`: `{value}` is not {expected}")]
    Value {
        /// The whole.
        condition: String,
        /// The value as written.
        value: String,
        /// What it should be.
        expected: &'static str,
    },
}

/// What conditions are held against.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    pub tally: &'a Tally,
    /// Seconds in which messages were due, so far.
    pub seconds: f64,
    /// Of one core.
    pub cpu_percent: f64,
    /// Of one core, if the server's process is known.
    pub server_cpu_percent: Option<f64>,
    /// By how much the times of `abroad` may be wrong; none if nobody knows.
    pub abroad_error_ns: Option<u64>,
}

/// What came of a condition.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    /// In the unit of the metric; none if nothing was measured, which is a failure.
    pub measured: Option<f64>,
    pub passed: bool,
    /// What was done to what was measured before it was judged.
    pub note: Option<String>,
}

/// The distribution whose times lie between two clocks.
const ABROAD: &str = "abroad";
const QUANTILES: [(&str, f64); 6] =
    [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999), ("p99.99", 0.9999), ("max", 1.0)];
const PLAIN: [(&str, Metric); 6] = [
    ("errors", Metric::Errors),
    ("offered", Metric::Offered),
    ("achieved", Metric::Achieved),
    ("achieved_ratio", Metric::AchievedRatio),
    ("cpu", Metric::Cpu),
    ("server_cpu", Metric::ServerCpu),
];

/// All metrics, as they are written.
pub fn metrics() -> Vec<String> {
    let tally = Tally::default();
    let mut names = Vec::new();
    for (name, _) in tally.distributions() {
        names.extend(QUANTILES.iter().map(|(quantile, _)| format!("{name}.{quantile}")));
        names.push(format!("{name}.count"));
    }
    names.extend(PLAIN.iter().map(|(name, _)| (*name).to_owned()));
    names.extend(Counts::NAMES.iter().map(|(name, _)| (*name).to_owned()));
    names
}

impl Metric {
    fn named(name: &str) -> Option<Self> {
        if let Some((_, metric)) = PLAIN.iter().find(|(plain, _)| *plain == name) {
            return Some(*metric);
        }
        if let Some((count, _)) = Counts::NAMES.iter().find(|(count, _)| *count == name) {
            return Some(Self::Count(count));
        }
        let (distribution, part) = name.split_once('.')?;
        let tally = Tally::default();
        let (distribution, _) = tally.distributions().into_iter().find(|(known, _)| *known == distribution)?;
        if part == "count" {
            return Some(Self::Times(distribution));
        }
        let (_, quantile) = QUANTILES.iter().find(|(known, _)| *known == part)?;
        Some(Self::Quantile(distribution, *quantile))
    }

    fn unit(self) -> Unit {
        match self {
            Self::Quantile(..) => Unit::Milliseconds,
            Self::Times(_) | Self::Count(_) | Self::Errors => Unit::Number,
            Self::Offered | Self::Achieved => Unit::PerSecond,
            Self::AchievedRatio | Self::Cpu | Self::ServerCpu => Unit::Percent,
        }
    }

    fn of(self, facts: &Facts<'_>) -> Option<f64> {
        let times = |name| {
            let all = facts.tally.distributions();
            all.into_iter().find(|(known, _)| *known == name).map(|(_, times)| times)
        };
        let counts = &facts.tally.counts;
        let seconds = facts.seconds.max(1e-9);
        match self {
            Self::Quantile(name, quantile) => {
                times(name).filter(|times| times.count() > 0).map(|times| times.quantile_ms(quantile))
            }
            Self::Times(name) => times(name).map(|times| times.count() as f64),
            Self::Count(name) => counts.named(name).map(|count| count as f64),
            Self::Errors => Some(facts.tally.errors.values().sum::<u64>() as f64),
            Self::Offered => Some(counts.offered as f64 / seconds),
            Self::Achieved => Some(counts.acked_in_time as f64 / seconds),
            Self::AchievedRatio => {
                (counts.offered > 0).then(|| counts.acked_in_time as f64 / counts.offered as f64 * 100.0)
            }
            Self::Cpu => Some(facts.cpu_percent),
            Self::ServerCpu => facts.server_cpu_percent,
        }
    }

    /// Whether it can only grow while the run goes on.
    fn only_grows(self) -> bool {
        matches!(self, Self::Count(_) | Self::Errors | Self::Times(_))
    }
}

impl Comparison {
    fn holds(self, measured: f64, value: f64) -> bool {
        match self {
            Self::Below => measured < value,
            Self::AtMost => measured <= value,
            Self::Above => measured > value,
            Self::AtLeast => measured >= value,
            Self::Equal => (measured - value).abs() < 1e-9,
            Self::NotEqual => (measured - value).abs() >= 1e-9,
        }
    }
}

impl Threshold {
    /// Whether it holds.
    pub fn judge(&self, facts: &Facts<'_>) -> Verdict {
        let Some(measured) = self.metric.of(facts) else {
            return Verdict { measured: None, passed: false, note: None };
        };
        if let Metric::Quantile(ABROAD, _) = self.metric {
            return self.judge_across_clocks(measured, facts.abroad_error_ns);
        }
        Verdict { measured: Some(measured), passed: self.comparison.holds(measured, self.value), note: None }
    }

    /// Between two clocks the condition must hold whichever way they are wrong. What is not above their error is no
    /// number to be shown.
    fn judge_across_clocks(&self, measured: f64, error_ns: Option<u64>) -> Verdict {
        let Some(error) = error_ns.map(|ns| ns as f64 / 1e6) else {
            return Verdict { measured: None, passed: false, note: Some("the clocks were not measured".to_owned()) };
        };
        let safe = match self.comparison {
            Comparison::Below | Comparison::AtMost => measured + error,
            Comparison::Above | Comparison::AtLeast => measured - error,
            Comparison::Equal | Comparison::NotEqual => measured,
        };
        let passed = match self.comparison {
            Comparison::Equal => (measured - self.value).abs() + error < 1e-9,
            Comparison::NotEqual => (measured - self.value).abs() - error >= 1e-9,
            comparison => comparison.holds(safe, self.value),
        };
        if measured <= error {
            return Verdict { measured: None, passed, note: Some(format!("below the clocks' error of {error:.3} ms")) };
        }
        let note = format!("the clocks' error of {error:.3} ms is counted against it");
        Verdict { measured: Some(safe), passed, note: Some(note) }
    }

    /// Whether what was measured so far is already too much: a distribution that is too slow, a count that only
    /// grows. What is merely not enough yet is no breach before the end.
    pub fn is_breached_early(&self, facts: &Facts<'_>) -> bool {
        let upper = matches!(self.comparison, Comparison::Below | Comparison::AtMost);
        let exact = self.comparison == Comparison::Equal && self.metric.only_grows();
        let Some(measured) = self.metric.of(facts) else { return false };
        if let Metric::Quantile(ABROAD, _) = self.metric {
            return upper && !self.judge(facts).passed;
        }
        if exact { measured > self.value } else { upper && !self.comparison.holds(measured, self.value) }
    }

    /// As it is written.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// What its numbers are in: `ms`, `/s`, `%`, or nothing for a count.
    pub fn unit(&self) -> &'static str {
        match self.metric.unit() {
            Unit::Milliseconds => "ms",
            Unit::PerSecond => "/s",
            Unit::Percent => "%",
            Unit::Number => "",
        }
    }
}

impl FromStr for Threshold {
    type Err = ThresholdError;

    fn from_str(text: &str) -> Result<Self, ThresholdError> {
        const COMPARISONS: [(&str, Comparison); 6] = [
            ("<=", Comparison::AtMost),
            (">=", Comparison::AtLeast),
            ("==", Comparison::Equal),
            ("!=", Comparison::NotEqual),
            ("<", Comparison::Below),
            (">", Comparison::Above),
        ];
        let condition = text.to_owned();
        let form = || ThresholdError::Form(condition.clone());
        let at = text.find(['<', '>', '=', '!']).ok_or_else(form)?;
        let (sign, comparison) =
            COMPARISONS.into_iter().find(|(sign, _)| text[at..].starts_with(sign)).ok_or_else(form)?;
        let (name, value) = (text[..at].trim(), text[at + sign.len()..].trim());
        if name.is_empty() || value.is_empty() {
            return Err(form());
        }
        let metric = Metric::named(name).ok_or_else(|| ThresholdError::Metric {
            condition: condition.clone(),
            metric: name.to_owned(),
            suggestion: suggestion(name),
        })?;
        match parse(value, metric.unit()) {
            Ok(value) => Ok(Self { text: condition, metric, comparison, value }),
            Err(expected) => Err(ThresholdError::Value { condition, value: value.to_owned(), expected }),
        }
    }
}

fn parse(text: &str, unit: Unit) -> Result<f64, &'static str> {
    let number = |text: &str| text.trim().parse::<f64>().ok().filter(|number| number.is_finite());
    match unit {
        // Without a unit it would be anybody's guess.
        Unit::Milliseconds => {
            let has_unit = text.ends_with(|c: char| c.is_ascii_alphabetic());
            let span = text.parse::<Span>().ok().filter(|_| has_unit);
            span.map(|span| span.ns() as f64 / 1e6).ok_or("a time such as 20ms or 1.5s")
        }
        Unit::PerSecond => number(text.strip_suffix("/s").unwrap_or(text)).ok_or("a rate such as 5000 or 5000/s"),
        Unit::Percent => number(text.strip_suffix('%').unwrap_or(text)).ok_or("a part such as 80%"),
        Unit::Number => number(text).ok_or("a number"),
    }
}

fn suggestion(name: &str) -> String {
    let known = metrics();
    let best = known.iter().max_by(|a, b| strsim::jaro_winkler(name, a).total_cmp(&strsim::jaro_winkler(name, b)));
    best.filter(|best| strsim::jaro_winkler(name, best) > 0.8)
        .map_or_else(String::new, |best| format!("; did you mean `{best}`?"))
}

impl fmt::Display for Threshold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Serialize for Threshold {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for Threshold {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(text: &str, tally: &Tally) -> (Option<f64>, bool, bool) {
        let threshold: Threshold = text.parse().unwrap();
        let facts = Facts { tally, seconds: 10.0, cpu_percent: 75.0, server_cpu_percent: None, abroad_error_ns: None };
        let Verdict { measured, passed, .. } = threshold.judge(&facts);
        (measured, passed, threshold.is_breached_early(&facts))
    }

    fn tally() -> Tally {
        let mut tally = Tally::default();
        for ms in 1..=100 {
            tally.delivery.record(ms * 1_000_000);
        }
        tally.counts.lost = 2;
        tally.counts.offered = 1_000;
        tally.counts.acked_in_time = 900;
        tally
    }

    #[test]
    fn conditions_hold_or_do_not() {
        let tally = tally();
        for (text, passed) in [
            ("delivery.p99 < 100ms", true),
            ("delivery.p99 < 0.05s", false),
            ("delivery.max<=101ms", true),
            ("delivery.count >= 100", true),
            ("lost == 0", false),
            ("lost != 0", true),
            ("lost <= 2", true),
            ("achieved > 89/s", true),
            ("achieved_ratio >= 99%", false),
            ("cpu < 80%", true),
            ("errors == 0", true),
        ] {
            assert_eq!(judge(text, &tally).1, passed, "{text}");
        }
    }

    /// 10 ms, give or take 2, and 1 ms, which is no number.
    #[test]
    fn times_between_clocks_are_judged_on_the_safe_side() {
        let mut tally = Tally::default();
        tally.abroad.record(1_000_000);
        for _ in 0..9 {
            tally.abroad.record(10_000_000);
        }
        let judge = |text: &str, abroad_error_ns| {
            let threshold: Threshold = text.parse().unwrap();
            let facts =
                Facts { tally: &tally, seconds: 1.0, cpu_percent: 0.0, server_cpu_percent: None, abroad_error_ns };
            (threshold.judge(&facts), threshold.is_breached_early(&facts))
        };
        for (text, passed) in [
            ("abroad.p99 < 13ms", true),
            ("abroad.p99 < 11ms", false),
            ("abroad.p99 <= 11ms", false),
            ("abroad.p99 > 7ms", true),
            ("abroad.p99 > 9ms", false),
            ("abroad.p99 >= 9ms", false),
            ("abroad.p99 == 10ms", false),
            ("abroad.p99 != 11ms", false),
            ("abroad.p99 != 20ms", true),
            ("abroad.count == 10", true),
        ] {
            assert_eq!(judge(text, Some(2_000_000)).0.passed, passed, "{text}");
        }
        let (known, _) = judge("abroad.p99 < 13ms", Some(2_000_000));
        assert!((known.measured.unwrap() - 12.0).abs() < 0.1 && known.note.unwrap().contains("error of 2.000 ms"));
        assert!(judge("abroad.p99 < 11ms", Some(2_000_000)).1 && !judge("abroad.p99 > 20ms", Some(2_000_000)).1);
        let (hidden, _) = judge("abroad.p50 < 13ms", Some(20_000_000));
        assert_eq!((hidden.measured, hidden.passed), (None, false));
        let (hidden, _) = judge("abroad.p50 < 31ms", Some(20_000_000));
        assert_eq!((hidden.measured, hidden.passed), (None, true));
        assert!(hidden.note.unwrap().contains("below the clocks' error of 20.000 ms"));
        assert!(!judge("abroad.p50 < 1h", None).0.passed);
    }

    #[test]
    fn what_was_not_measured_does_not_pass() {
        assert_eq!(judge("ack.p50 < 1h", &tally()), (None, false, false));
        assert_eq!(judge("server_cpu < 100%", &tally()), (None, false, false));
    }

    #[test]
    fn only_too_much_is_a_breach_before_the_end() {
        let tally = tally();
        assert!(judge("delivery.p99 < 5ms", &tally).2);
        assert!(judge("lost == 0", &tally).2);
        assert!(!judge("lost == 5", &tally).2);
        assert!(!judge("achieved > 5000", &tally).2);
    }

    #[test]
    fn what_is_no_condition_is_refused_in_words() {
        let error = |text: &str| text.parse::<Threshold>().unwrap_err().to_string();
        assert!(error("delivery.p99").contains("write it like"));
        assert!(error("< 5").contains("write it like"));
        assert!(error("delivery.p98 < 5ms").contains("did you mean `delivery.p9"));
        assert!(error("lots == 0").contains("did you mean `lost`?"));
        assert!(error("delivery.p99 < 20").contains("a time such as 20ms"));
        assert!(error("lost == none").contains("is not a number"));
        assert!(error("lost = 0").contains("write it like"));
    }
}
