//! The highest rate that meets the thresholds, by bisection, and how it is at parts of that.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::interval::Interval;
use crate::result::{RunResult, Step};
use crate::run::{Plan, RunError, run};
use crate::scenario::{Pattern, Saturate, ScenarioError};

/// At which parts of the highest rate it is measured.
const PARTS: [f64; 5] = [0.1, 0.25, 0.5, 0.75, 0.9];
/// Less than this part of what was due is not that rate.
const ACHIEVED_MIN: f64 = 0.95;
/// More than this part that could not be sent in time is not that rate either.
const LATE_MAX: f64 = 0.01;

/// Looks for the highest rate, and measures at parts of it; `step` hears of each rate that was tried. The result is that
/// of the highest good one, with all steps.
pub fn saturate(
    plan: &Plan,
    stop: &Arc<AtomicBool>,
    mut show: impl FnMut(&Interval),
    mut step: impl FnMut(&Step),
) -> Result<RunResult, RunError> {
    check(plan)?;
    let saturate = plan.scenario.saturate.clone();
    let mut steps = Vec::new();
    let mut attempt = |kind: &str, fraction, rate: f64| -> Result<(RunResult, bool), RunError> {
        let mut plan = plan.clone();
        plan.scenario.traffic.rate = rate;
        plan.scenario.traffic.duration = saturate.probe;
        let result = run(&plan, stop, &mut show)?;
        let mut tried = judge(kind, fraction, &result);
        if stop.load(Ordering::Relaxed) {
            // What was cut short says nothing of its rate.
            tried.passed = false;
            tried.breached = Some("it was told to stop".to_owned());
        }
        step(&tried);
        let passed = tried.passed;
        steps.push(tried);
        Ok((result, passed))
    };
    let mut best: Option<RunResult> = None;
    let (mut good, mut bad, mut rate) = (0.0, None, saturate.from);
    let mut bound = false;
    while !stop.load(Ordering::Relaxed) {
        let (result, passed) = attempt("search", None, rate)?;
        if passed {
            good = rate;
            best = Some(result);
        } else {
            bad = Some(rate);
            bound = result.generator_bound;
        }
        rate = match bad {
            None if good >= saturate.to => break,
            None => (good * 2.0).min(saturate.to),
            Some(bad) if good == 0.0 && bad < 1.0 => break,
            Some(bad) if good == 0.0 => bad / 2.0,
            Some(bad) if (bad - good) / good <= saturate.precision => break,
            Some(bad) => f64::midpoint(good, bad),
        };
    }
    if best.is_none() && stop.load(Ordering::Relaxed) {
        return Err(RunError::InVain("it was told to stop before any rate was found good".to_owned()));
    }
    let Some(mut best) = best else {
        let why = "no rate meets the thresholds: look at the steps, and begin lower with saturate.from";
        return Err(RunError::InVain(why.to_owned()));
    };
    for part in PARTS {
        if !stop.load(Ordering::Relaxed) {
            attempt("measure", Some(part), good * part)?;
        }
    }
    // What failed above it failed for want of generator, or nothing did: more may be possible.
    best.generator_bound |= bound || bad.is_none();
    if best.generator_bound {
        for threshold in &mut best.thresholds {
            threshold.note.get_or_insert_with(|| "generator-bound, at least".to_owned());
        }
    }
    if stop.load(Ordering::Relaxed) {
        best.aborted = Some("it was told to stop: the highest rate may be higher".to_owned());
    }
    best.steps = steps;
    Ok(best)
}

fn check(plan: &Plan) -> Result<(), RunError> {
    let scenario = &plan.scenario;
    let traffic = &scenario.traffic;
    let by_rate = scenario.phases.is_empty() && traffic.pattern != Pattern::Permutation && traffic.replay.is_none();
    let why = if by_rate && traffic.rate > 0.0 {
        let Saturate { from, to, precision, probe } = &scenario.saturate;
        let is_sound = *from > 0.0 && to.is_finite() && *precision > 0.0 && probe.ns() > 0;
        (!is_sound).then_some("saturate.from, .precision and .probe must be above zero, and .to a number")
    } else {
        Some("saturate looks for one even rate: it takes no phases, no permutation, no replay and no idle scenario")
    };
    why.map_or(Ok(()), |why| Err(ScenarioError::Together(why.to_owned()).into()))
}

fn judge(kind: &str, fraction: Option<f64>, result: &RunResult) -> Step {
    let counts = &result.counts;
    let of_offered = |count: u64| count as f64 / counts.offered.max(1) as f64;
    let achieved = result.achieved_per_second / result.offered_per_second.max(1e-9);
    let breached = if !result.is_clean() {
        Some("messages were lost, doubled, reordered or forgotten".to_owned())
    } else if let Some(threshold) = result.thresholds.iter().find(|threshold| !threshold.passed) {
        Some(threshold.condition.clone())
    } else if achieved < ACHIEVED_MIN {
        Some(format!("{:.0} % of what was due was stored meanwhile", achieved * 100.0))
    } else if of_offered(counts.late) > LATE_MAX {
        Some(format!("{:.1} % could not be sent in time", of_offered(counts.late) * 100.0))
    } else if counts.unanswered > 0 {
        Some(format!("{} messages were never answered", counts.unanswered))
    } else if !result.passed() {
        Some("sessions did not open, or messages were not sent or refused".to_owned())
    } else {
        None
    };
    Step {
        kind: kind.to_owned(),
        fraction,
        offered_per_second: result.offered_per_second,
        achieved_per_second: result.achieved_per_second,
        passed: breached.is_none(),
        breached,
        generator_bound: result.generator_bound,
        generator_cpu_percent: result.generator_cpu_percent,
        server_cpu_percent: result.server.as_ref().and_then(|server| server.cpu_percent),
        latency: result.latency.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::Kind;

    #[test]
    fn a_rate_is_good_when_nothing_speaks_against_it() {
        let mut result = RunResult { offered_per_second: 100.0, achieved_per_second: 99.0, ..RunResult::default() };
        result.counts.offered = 1_000;
        assert!(judge("search", None, &result).passed);
        let spoilt = |spoil: fn(&mut RunResult)| {
            let mut result = result.clone();
            spoil(&mut result);
            judge("search", None, &result).breached
        };
        assert!(spoilt(|result| result.counts.lost = 1).unwrap().contains("lost"));
        assert!(spoilt(|result| result.achieved_per_second = 90.0).unwrap().contains("90 %"));
        assert!(spoilt(|result| result.counts.late = 11).unwrap().contains("in time"));
        assert!(spoilt(|result| result.counts.unanswered = 1).unwrap().contains("never answered"));
        assert!(spoilt(|result| result.counts.unsent = 1).unwrap().contains("not sent"));
        assert!(spoilt(|result| result.users = 2).unwrap().contains("did not open"));
    }

    #[test]
    fn what_has_no_rate_of_its_own_is_not_searched() {
        let plan = |kind: Kind| {
            let scenario = kind.defaults();
            Plan { scenario, credentials: crate::credentials::Credentials::None, acks: None }
        };
        assert!(check(&plan(Kind::Pairs)).is_ok());
        for kind in [Kind::Permutation, Kind::Day, Kind::Idle] {
            assert!(check(&plan(kind)).is_err());
        }
        let mut never_ends = plan(Kind::Pairs);
        never_ends.scenario.saturate.precision = 0.0;
        assert!(check(&never_ends).is_err());
    }
}
