//! Several sides measured in turn, A B A B, so that what changes about the machine meets all of them.
//!
//! Ratios are paired by round. A round in which others used more than 5 % of the machine is dropped and listed;
//! when more than three in ten were dropped, the run is void.

use std::time::Instant;

use serde_json::{Map, Value, json};

use crate::figures::{bootstrap, median};
use crate::others::steal_ns;
use crate::server::{Trouble, cores};

/// More than this part of the machine used by others, and a round does not count.
pub const FOREIGN_MAX: f64 = 0.05;

/// One side in one round.
#[derive(Debug, Clone, Default)]
pub struct Sample {
    /// Processor time per unit of work, in microseconds.
    pub us: f64,
    /// Units per second of the clock.
    pub per_second: f64,
    /// Processor time of other processes, as a part of the whole machine's.
    pub foreign: f64,
    /// What else is worth keeping.
    pub more: Map<String, Value>,
}

/// What came of all rounds.
pub struct Outcome {
    pub sides: Vec<Side>,
    pub dropped: Vec<Value>,
    pub attempts: usize,
    pub kept: usize,
}

/// A side and its samples, one for each round that was kept.
pub struct Side {
    pub name: String,
    pub samples: Vec<Sample>,
    /// Why it took part no longer.
    pub failed: Option<String>,
}

/// A median with the bounds between which it lies with 95 % confidence.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ratio {
    pub median: f64,
    pub low: f64,
    pub high: f64,
}

/// Runs until `rounds` were kept, after some of warming up, at most half as many again. A side that fails takes part no longer. When none
/// was kept, the figures are those of the dropped ones, and void.
pub fn run(
    names: &[&str],
    warm_up: u32,
    rounds: u32,
    mut measure: impl FnMut(usize) -> Result<Sample, Trouble>,
) -> Result<Outcome, Trouble> {
    let side = |name: &&str| Side { name: (*name).to_owned(), samples: Vec::new(), failed: None };
    // Better an indication, marked as void, than nothing.
    let mut disturbed = Vec::new();
    let mut outcome = Outcome { sides: names.iter().map(side).collect(), dropped: Vec::new(), attempts: 0, kept: 0 };
    let row = |cells: Vec<String>| cells.iter().fold(String::new(), |row, cell| format!("{row} {cell:>17}"));
    println!("us per unit; round{}", row(names.iter().map(|name| (*name).to_owned()).collect()));
    for round in 0..warm_up + rounds + rounds.div_ceil(2) {
        let (mut samples, stolen, begun) = (Vec::new(), steal_ns(), Instant::now());
        for (at, side) in outcome.sides.iter_mut().enumerate() {
            let sample = match side.failed {
                None => measure(at),
                Some(_) => Err("".into()),
            };
            if let (Err(trouble), None) = (&sample, &side.failed) {
                println!("{} takes part no longer: {trouble}", side.name);
                side.failed = Some(trouble.to_string());
            }
            samples.push(sample.ok());
        }
        if samples.iter().all(Option::is_none) {
            return Err("no side could be measured".into());
        }
        if round < warm_up {
            continue;
        }
        // What was stolen comes in ticks: a round is long enough for them, and one side is not. Nor is less than a second.
        let round_ns = begun.elapsed().as_nanos().max(1_000_000_000) as f64 * f64::from(cores());
        let steal = (steal_ns() - stolen) as f64 / round_ns;
        let foreign = samples.iter().flatten().map(|sample| sample.foreign).fold(0.0, f64::max) + steal;
        let is_dropped = foreign > FOREIGN_MAX;
        let shown =
            |sample: &Option<Sample>| sample.as_ref().map_or("-".to_owned(), |sample| format!("{:.3}", sample.us));
        println!(
            "{:>18}{}  others {:.1} %{}",
            round - warm_up + 1,
            row(samples.iter().map(shown).collect()),
            foreign * 100.0,
            if is_dropped { ", dropped" } else { "" }
        );
        outcome.attempts += 1;
        if is_dropped {
            let us: Vec<_> = samples.iter().map(|sample| sample.as_ref().map(|sample| sample.us)).collect();
            outcome.dropped.push(json!({ "round": round - warm_up + 1, "us": us, "foreign": foreign, "steal": steal }));
            disturbed.push(samples);
            continue;
        }
        for (side, sample) in outcome.sides.iter_mut().zip(samples) {
            side.samples.extend(sample);
        }
        outcome.kept += 1;
        if outcome.kept == rounds as usize {
            break;
        }
    }
    if outcome.kept == 0 {
        for samples in disturbed {
            outcome.sides.iter_mut().zip(samples).for_each(|(side, sample)| side.samples.extend(sample));
        }
    }
    // Pairs need both: what a side measured before it failed would be paired with other rounds.
    outcome.sides.iter_mut().filter(|side| side.failed.is_some()).for_each(|side| side.samples.clear());
    Ok(outcome)
}

impl Outcome {
    /// Whether too much was dropped, or too little is left, to believe it.
    pub fn is_void(&self) -> bool {
        self.kept < 5 || self.dropped.len() * 10 > self.attempts * 3
    }

    fn side(&self, name: &str) -> Option<&Side> {
        self.sides.iter().find(|side| side.name == name && !side.samples.is_empty())
    }

    /// One side's processor time over another's, paired by round.
    pub fn ratio(&self, of: &str, over: &str) -> Option<Ratio> {
        let pairs = self.side(of)?.samples.iter().zip(&self.side(over)?.samples);
        let ratios: Vec<_> = pairs.map(|(of, over)| of.us / over.us).collect();
        let (low, high) = bootstrap(&ratios);
        Some(Ratio { median: median(&ratios), low, high })
    }

    /// A table of all sides, with their ratios to `base`.
    pub fn show(&self, base: &str) {
        println!("\n{:<20} {:>10} {:>22} {:>10}   over {base} (95 % bounds)", "", "median us", "range", "per second");
        for side in &self.sides {
            if let Some(failed) = &side.failed {
                println!("{:<20} absent: {failed}", side.name);
                continue;
            }
            let us: Vec<_> = side.samples.iter().map(|sample| sample.us).collect();
            let rate: Vec<_> = side.samples.iter().map(|sample| sample.per_second).collect();
            let (least, most) = us.iter().fold((f64::MAX, f64::MIN), |(low, high), us| (low.min(*us), high.max(*us)));
            let ratio = self.ratio(&side.name, base).filter(|_| side.name != base);
            println!(
                "{:<20} {:>10.3} {:>22} {:>10.0}   {}",
                side.name,
                median(&us),
                format!("{least:.3} to {most:.3}"),
                median(&rate),
                ratio.map_or(String::new(), |ratio| ratio.to_string())
            );
        }
        if !self.dropped.is_empty() {
            let rounds: Vec<_> = self.dropped.iter().map(|dropped| dropped["round"].to_string()).collect();
            println!("dropped rounds: {}", rounds.join(", "));
        }
        if self.is_void() {
            println!(
                "VOID: {} of {} rounds were kept, and at least 5 must be; an indication at most",
                self.kept, self.attempts
            );
        }
    }

    /// All of it for a result file, with ratios to each of `bases`.
    pub fn to_json(&self, bases: &[&str]) -> Value {
        let side = |side: &Side| {
            let us: Vec<_> = side.samples.iter().map(|sample| sample.us).collect();
            let rate: Vec<_> = side.samples.iter().map(|sample| sample.per_second).collect();
            let rounds = side.samples.iter().map(|sample| {
                let mut round = sample.more.clone();
                round.insert("us".to_owned(), json!(sample.us));
                round.insert("per_second".to_owned(), json!(sample.per_second));
                round.insert("foreign".to_owned(), json!(sample.foreign));
                Value::Object(round)
            });
            let rounds: Vec<_> = rounds.collect();
            let over = bases.iter().filter(|base| **base != side.name);
            let over = over.map(|base| ((*base).to_owned(), json!(self.ratio(&side.name, base).map(Ratio::to_json))));
            let over: Map<String, Value> = over.collect();
            json!({
                "name": side.name, "absent": side.failed, "us": (!us.is_empty()).then(|| median(&us)),
                "per_second": (!rate.is_empty()).then(|| median(&rate)), "rounds": rounds,
                "over": over,
            })
        };
        json!({
            "sides": self.sides.iter().map(side).collect::<Vec<_>>(), "dropped": self.dropped,
            "rounds_kept": self.kept, "rounds_run": self.attempts, "void": self.is_void(),
        })
    }
}

impl Ratio {
    /// For a result file.
    pub fn to_json(self) -> Value {
        json!({ "median": self.median, "low": self.low, "high": self.high })
    }
}

impl std::fmt::Display for Ratio {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{:.3} ({:.3} to {:.3})", self.median, self.low, self.high)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(us: f64, foreign: f64) -> Sample {
        Sample { us, per_second: 1e6 / us, foreign, more: Map::new() }
    }

    #[test]
    fn a_disturbed_round_is_dropped_and_another_takes_its_place() {
        let mut calls = 0;
        let outcome = run(&["a", "b"], 0, 5, |side| {
            calls += 1;
            Ok(sample(1.0 + side as f64, if calls == 3 { 0.2 } else { 0.0 }))
        })
        .unwrap();
        assert_eq!((outcome.kept, outcome.attempts, outcome.dropped.len()), (5, 6, 1));
        assert!(!outcome.is_void());
        assert_eq!(outcome.ratio("b", "a"), Some(Ratio { median: 2.0, low: 2.0, high: 2.0 }));
    }

    #[test]
    fn a_run_with_too_much_dropped_is_void() {
        let mut calls = 0;
        let outcome = run(&["a"], 0, 6, |_| {
            calls += 1;
            Ok(sample(1.0, if calls % 3 == 0 { 0.2 } else { 0.0 }))
        })
        .unwrap();
        assert_eq!((outcome.kept, outcome.attempts), (6, 8));
        assert!(!outcome.is_void());
        let mut calls = 0;
        let outcome = run(&["a"], 0, 6, |_| {
            calls += 1;
            Ok(sample(1.0, if calls % 2 == 0 { 0.2 } else { 0.0 }))
        })
        .unwrap();
        assert_eq!((outcome.kept, outcome.attempts), (5, 9));
        assert!(outcome.is_void());
        let outcome = run(&["a"], 0, 6, |_| Ok(sample(1.0, 0.2))).unwrap();
        assert_eq!((outcome.kept, outcome.sides[0].samples.len()), (0, 9));
        assert!(outcome.is_void());
    }

    #[test]
    fn a_side_that_fails_is_absent_and_the_others_go_on() {
        let outcome =
            run(&["a", "b"], 0, 5, |side| if side == 1 { Err("it fell over".into()) } else { Ok(sample(1.0, 0.0)) })
                .unwrap();
        assert_eq!(outcome.sides[1].failed.as_deref(), Some("it fell over"));
        assert_eq!(outcome.ratio("b", "a"), None);
        assert_eq!(outcome.sides[0].samples.len(), 5);
    }
}
