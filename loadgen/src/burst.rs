//! What a message costs the server, without any idle time in it: the server is stopped, one message is put into each of
//! N sockets, it goes on, and its processor time is counted until all have their answers and receivers.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::process::{self, Stopped};
use crate::run::{Conductor as _, Engine, Membership, Plan, RunError};
use crate::scenario::ScenarioError;
use crate::span::Span;
use crate::tally::Tally;

/// Marks, beats and ticks of one burst are over before the next one is counted.
const REST: Duration = Duration::from_millis(2_500);
/// How long the kernel may take to accept a burst, and the server to drain it.
const WAIT_MAX: Duration = Duration::from_mins(1);

/// What came of it.
#[derive(Debug, Clone, Serialize)]
pub struct BurstDrain {
    pub sessions: u32,
    pub payload_bytes: usize,
    /// Microseconds of the server's processor time per message, burst by burst; the first one, in which conversations
    /// are made, is not among them.
    pub cpu_us_per_message: Vec<f64>,
    pub median_cpu_us_per_message: f64,
    /// Seconds from when the server went on until all was drained.
    pub seconds: Vec<f64>,
    /// Of all bursts, the first one too.
    pub stored: u64,
    pub delivered: u64,
    pub lost: u64,
    pub doubled: u64,
    pub reordered: u64,
}

impl fmt::Display for BurstDrain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let least = self.cpu_us_per_message.iter().copied().fold(f64::INFINITY, f64::min);
        let most = self.cpu_us_per_message.iter().copied().fold(0.0, f64::max);
        writeln!(
            f,
            "{} messages of {} bytes in {} sockets while the server stood still, {} times",
            self.sessions,
            self.payload_bytes,
            self.sessions,
            self.cpu_us_per_message.len()
        )?;
        write!(
            f,
            "server: {:.2} us of processor time per message, from {least:.2} to {most:.2}\nlost {}, doubled {}, reordered {}",
            self.median_cpu_us_per_message, self.lost, self.doubled, self.reordered
        )
    }
}

/// Runs so many bursts against the server's process.
pub fn burst_drain(plan: &Plan, bursts: u32, stop: &AtomicBool) -> Result<BurstDrain, RunError> {
    let refuse = |why: &str| RunError::Scenario(ScenarioError::Together(why.to_owned()));
    let pid = plan.scenario.server.pid.ok_or_else(|| refuse("name the server's process: --server-pid"))?;
    let failed = |error| RunError::Process { pid, error };
    let cpu_ns = || process::cpu_ns(pid).ok_or_else(|| failed(std::io::ErrorKind::NotFound.into()));
    cpu_ns()?;
    let mut plan = plan.clone();
    plan.scenario.traffic.rate = 0.0;
    plan.scenario.phases.clear();
    plan.scenario.traffic.duration = Span::s(24 * 3_600);
    let (sessions, threads) = (plan.scenario.sessions.users, plan.scenario.sessions.threads);
    let engine = Engine::start(&plan, Membership::default())?;
    let mut tally = Tally::default();
    wait_until_open(&engine, &plan, stop, &mut tally)?;
    let (mut cpu_us_per_message, mut seconds) = (Vec::new(), Vec::new());
    for burst in 1..=bursts + 1 {
        rest(&engine, &mut tally);
        let told = u64::from(burst) * u64::from(threads);
        let wait = |of: &std::sync::atomic::AtomicU64, what: &str| {
            let begun = Instant::now();
            while of.load(Ordering::Acquire) < told {
                if begun.elapsed() > WAIT_MAX || stop.load(Ordering::Relaxed) {
                    engine.stop();
                    return Err(RunError::InVain(format!("burst {burst}: {what} within {WAIT_MAX:?}")));
                }
                std::thread::sleep(Duration::from_micros(200));
            }
            Ok(())
        };
        let stopped = Stopped::new(pid).map_err(failed)?;
        engine.phase.burst.store(burst, Ordering::Release);
        wait(&engine.phase.burst_taken, "not all messages could be put into the sockets")?;
        let before = cpu_ns()?;
        let begun = Instant::now();
        drop(stopped);
        wait(&engine.phase.burst_done, "not all messages were stored and delivered")?;
        let spent_us = cpu_ns()?.saturating_sub(before) as f64 / 1e3;
        if burst > 1 {
            cpu_us_per_message.push(spent_us / f64::from(sessions));
            seconds.push(begun.elapsed().as_secs_f64());
        }
    }
    engine.stop();
    while let Ok(progress) = engine.shown.recv() {
        tally.merge(&progress.tally);
    }
    for ended in engine.join()? {
        tally.merge(&ended.tally);
    }
    let mut sorted = cpu_us_per_message.clone();
    sorted.sort_by(f64::total_cmp);
    let counts = &tally.counts;
    Ok(BurstDrain {
        sessions,
        payload_bytes: plan.scenario.traffic.payload_bytes,
        median_cpu_us_per_message: sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN),
        cpu_us_per_message,
        seconds,
        stored: counts.acked,
        delivered: counts.delivered,
        lost: counts.lost,
        doubled: counts.doubled,
        reordered: counts.reordered,
    })
}

fn wait_until_open(engine: &Engine, plan: &Plan, stop: &AtomicBool, tally: &mut Tally) -> Result<(), RunError> {
    let sessions = &plan.scenario.sessions;
    let mut open = vec![0; sessions.threads as usize];
    loop {
        if let Ok(progress) = engine.shown.recv_timeout(Duration::from_millis(100)) {
            open[progress.worker as usize] = progress.open;
            tally.merge(&progress.tally);
        }
        let all = open.iter().sum::<u32>();
        if all == sessions.users {
            return Ok(());
        }
        if engine.clock.elapsed() > sessions.ramp.0 || stop.load(Ordering::Relaxed) {
            engine.stop();
            let why = format!("{all} of {} sessions were open in time, and a burst needs all", sessions.users);
            return Err(RunError::InVain(why));
        }
    }
}

fn rest(engine: &Engine, tally: &mut Tally) {
    let begun = Instant::now();
    while let Some(left) = REST.checked_sub(begun.elapsed()) {
        if let Ok(progress) = engine.shown.recv_timeout(left) {
            tally.merge(&progress.tally);
        }
    }
}
