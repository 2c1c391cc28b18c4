//! A whole run: threads of phones, progress while they talk, and what came of it.

use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crossbeam_channel::{Receiver, RecvTimeoutError, unbounded};

use crate::acks::AckWriter;
use crate::interval::Interval;
use crate::key::TokenKey;
use crate::phone::Habits;
use crate::random::Random;
use crate::result::{FORMAT, Latencies, RunResult, Scenario};
use crate::schedule::Arrivals;
use crate::tally::Tally;
use crate::worker::{self, Orders, Phase, Progress};

/// What a run is made of.
#[derive(Clone)]
pub struct Plan {
    pub url: String,
    pub key: TokenKey,
    /// An even number: they talk in pairs.
    pub users: u32,
    pub first_user: u64,
    /// Messages per second over all users; 0 if they only hold their sessions.
    pub rate: f64,
    pub duration: Duration,
    pub connections_per_second: f64,
    /// How long to wait for all sessions to open before messages begin anyway.
    pub ramp_max: Duration,
    /// How long to wait for answers at the end.
    pub drain: Duration,
    pub payload_bytes: usize,
    pub in_flight_max: usize,
    pub mark_every: Duration,
    pub backoff: Duration,
    pub backoff_max: Duration,
    pub arrivals: Arrivals,
    pub acks: Option<PathBuf>,
    pub threads: u32,
    pub seed: u64,
    pub resend: bool,
    pub tick: Duration,
}

impl Plan {
    /// A plan with everything at its default but where to and for whom.
    pub fn new(url: &str, key: TokenKey, users: u32) -> Self {
        Self {
            url: url.to_owned(),
            key,
            users,
            first_user: 1,
            rate: 0.0,
            duration: Duration::from_secs(10),
            connections_per_second: 5_000.0,
            ramp_max: Duration::from_mins(1),
            drain: Duration::from_secs(10),
            payload_bytes: 128,
            in_flight_max: 32,
            mark_every: Duration::from_secs(1),
            backoff: Duration::from_secs(1),
            backoff_max: Duration::from_mins(1),
            arrivals: Arrivals::Poisson,
            acks: None,
            threads: 1,
            seed: 1,
            resend: false,
            tick: Duration::from_micros(250),
        }
    }
}

/// Why a run did not take place.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The address makes no sense.
    #[error("{0} is no address of a server: it must look like ws://127.0.0.1:8800")]
    Url(String),
    /// A number makes no sense.
    #[error("{0}")]
    Plan(String),
    /// The ring.
    #[error(transparent)]
    Ring(#[from] ring::RingError),
    /// The file of acknowledged messages.
    #[error("the file of acknowledged messages cannot be opened: {0}")]
    Acks(std::io::Error),
    /// A thread.
    #[error("a thread cannot be started: {0}")]
    Thread(std::io::Error),
    /// Nobody could connect.
    #[error("no session could be opened at {url}: {why}")]
    Unreachable {
        /// Where.
        url: String,
        /// The errors that were seen.
        why: String,
    },
}

/// Host and port, and the address behind them.
pub fn resolve(url: &str) -> Result<(String, SocketAddr), RunError> {
    let error = || RunError::Url(url.to_owned());
    let rest = url.strip_prefix("ws://").or_else(|| url.strip_prefix("http://")).ok_or_else(error)?;
    let host = rest.split('/').next().unwrap_or_default();
    let with_port = if host.contains(':') { host.to_owned() } else { format!("{host}:80") };
    let address = with_port.to_socket_addrs().map_err(|_| error())?.next().ok_or_else(error)?;
    Ok((host.to_owned(), address))
}

/// Runs the plan; `show` is called about once a second. `stop` ends it early.
pub fn run(plan: &Plan, stop: &Arc<AtomicBool>, mut show: impl FnMut(&Interval)) -> Result<RunResult, RunError> {
    let (host, server) = resolve(&plan.url)?;
    check(plan)?;
    let acks = plan.acks.as_deref().map(AckWriter::open).transpose().map_err(RunError::Acks)?;
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let habits = Habits {
        host,
        target: "/ws".to_owned(),
        // Two runs with one seed still write different bodies.
        run: Random::new(plan.seed, since.as_nanos() as u64).draw() as u32,
        payload_bytes: plan.payload_bytes,
        in_flight_max: plan.in_flight_max,
        mark_ns: plan.mark_every.as_nanos() as u64,
        backoff_ns: plan.backoff.as_nanos() as u64,
        backoff_ns_max: plan.backoff_max.as_nanos() as u64,
        resend: plan.resend,
        unix_ms: since.as_millis() as u64,
    };
    let phase = Arc::new(Phase::default());
    let (progress, shown) = unbounded();
    let clock = Instant::now();
    let mut threads = Vec::new();
    let mut first_index = 0;
    for worker in 0..plan.threads {
        let pairs = plan.users / 2;
        let users = 2 * (pairs / plan.threads + u32::from(worker < pairs % plan.threads));
        let orders = Orders {
            habits: habits.clone(),
            key: plan.key.clone(),
            server,
            first_user: plan.first_user + u64::from(first_index),
            users,
            first_index,
            connections_per_second: plan.connections_per_second,
            rate: plan.rate * f64::from(users) / f64::from(plan.users),
            arrivals: plan.arrivals,
            duration_ns: plan.duration.as_nanos() as u64,
            drain_ns: plan.drain.as_nanos() as u64,
            tick: plan.tick,
            random: Random::new(plan.seed, u64::from(worker) + 1),
            acks: match &acks {
                Some(file) => Some(AckWriter::new(file.try_clone().map_err(RunError::Acks)?)),
                None => None,
            },
            clock,
            phase: Arc::clone(&phase),
            progress: progress.clone(),
        };
        first_index += users;
        let thread = std::thread::Builder::new().name(format!("phones-{worker}"));
        threads.push(thread.spawn(move || worker::run(worker, orders)).map_err(RunError::Thread)?);
    }
    drop(progress);
    let mut watch = Watch::new(plan, &phase, stop, clock);
    watch.until_all_ended(&shown, &mut show);
    for thread in threads {
        watch.since.merge(&thread.join().expect("a thread of phones does not panic")?);
    }
    // What came after the last second that all told of, the losses among it.
    show(&watch.interval());
    if watch.total.counts.opened == 0 {
        return Err(RunError::Unreachable { url: plan.url.clone(), why: why(&watch.total) });
    }
    Ok(result(plan, &watch.total, &watch.measured))
}

/// The engine's part of the result.
fn result(plan: &Plan, tally: &Tally, measured: &Measured) -> RunResult {
    let seconds = measured.seconds.max(1e-9);
    let cpu_percent = measured.cpu_seconds / seconds * 100.0;
    RunResult {
        format: FORMAT,
        scenario: Scenario { name: if plan.rate > 0.0 { "pairs" } else { "idle" }.to_owned(), toml: String::new() },
        users: plan.users,
        open: measured.open,
        payload_bytes: plan.payload_bytes,
        seed: plan.seed,
        seconds: measured.seconds,
        offered_per_second: tally.counts.offered as f64 / seconds,
        achieved_per_second: tally.counts.acked_in_time as f64 / seconds,
        generator_bound: cpu_percent > 90.0 * f64::from(plan.threads),
        generator_cpu_percent: cpu_percent,
        counts: tally.counts,
        errors: tally.errors.clone(),
        latency: Latencies::of(tally),
        ..RunResult::default()
    }
}

fn check(plan: &Plan) -> Result<(), RunError> {
    let refuse = |why: String| Err(RunError::Plan(why));
    if plan.users < 2 || !plan.users.is_multiple_of(2) {
        return refuse(format!("{} users cannot talk in pairs: name an even number", plan.users));
    }
    if plan.threads == 0 || plan.threads > plan.users / 2 {
        return refuse(format!("{} threads: there must be at least one, and a pair for each", plan.threads));
    }
    if plan.connections_per_second <= 0.0 || plan.rate < 0.0 || plan.in_flight_max == 0 {
        return refuse("rates and the number in flight must be above zero".to_owned());
    }
    Ok(())
}

fn why(tally: &Tally) -> String {
    if tally.errors.is_empty() {
        return "nobody listens there, or nobody answers".to_owned();
    }
    tally.errors.iter().map(|(code, count)| format!("{code} ({count})")).collect::<Vec<_>>().join(", ")
}

/// What was measured apart from the phones.
#[derive(Debug, Clone, Copy, Default)]
pub struct Measured {
    /// Seconds in which messages were due.
    pub seconds: f64,
    /// Of the generator, in the same time.
    pub cpu_seconds: f64,
    /// How many sessions were open when messages began.
    pub open: u32,
}

/// Follows the threads: says when messages begin, and shows how it goes.
struct Watch<'a> {
    plan: &'a Plan,
    phase: &'a Phase,
    stop: &'a AtomicBool,
    clock: Instant,
    latest: Vec<Option<Progress>>,
    told: Vec<bool>,
    /// Since the last interval that was shown, and since the beginning.
    since: Tally,
    total: Tally,
    shown_at: f64,
    shown_cpu: f64,
    begun: Option<(Instant, f64)>,
    measured: Measured,
}

impl<'a> Watch<'a> {
    fn new(plan: &'a Plan, phase: &'a Phase, stop: &'a AtomicBool, clock: Instant) -> Self {
        let latest = (0..plan.threads).map(|_| None).collect();
        Self {
            plan,
            phase,
            stop,
            clock,
            latest,
            told: vec![false; plan.threads as usize],
            since: Tally::default(),
            total: Tally::default(),
            shown_at: 0.0,
            shown_cpu: cpu_seconds(),
            begun: None,
            measured: Measured::default(),
        }
    }

    fn until_all_ended(&mut self, shown: &Receiver<Progress>, show: &mut impl FnMut(&Interval)) {
        loop {
            match shown.recv_timeout(Duration::from_millis(100)) {
                Ok(progress) => {
                    let worker = progress.worker as usize;
                    self.since.merge(&progress.tally);
                    self.latest[worker] = Some(progress);
                    self.told[worker] = true;
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if self.stop.load(Ordering::Relaxed) {
                self.phase.stop.store(true, Ordering::Relaxed);
            }
            self.begin_if_ready();
            self.end_measuring();
            // When every thread has told of another second.
            if self.told.iter().all(|told| *told) {
                self.told.fill(false);
                show(&self.interval());
            }
        }
        if let Some((begun, cpu)) = self.begun
            && self.measured.seconds == 0.0
        {
            self.measured.seconds = begun.elapsed().as_secs_f64();
            self.measured.cpu_seconds = cpu_seconds() - cpu;
        }
    }

    fn sum(&self, of: impl Fn(&Progress) -> u32) -> u32 {
        self.latest.iter().flatten().map(of).sum()
    }

    fn begin_if_ready(&mut self) {
        let all_open = self.sum(|progress| progress.was_open) == self.plan.users;
        let some_open = self.sum(|progress| progress.was_open) > 0;
        let waited = self.clock.elapsed();
        if self.begun.is_none() && (all_open || waited > self.plan.ramp_max) {
            if !some_open {
                self.phase.stop.store(true, Ordering::Relaxed);
            }
            self.measured.open = self.sum(|progress| progress.open);
            self.begun = Some((Instant::now(), cpu_seconds()));
            self.phase.start_ns.store(waited.as_nanos() as u64 + 1, Ordering::Release);
        }
    }

    fn end_measuring(&mut self) {
        if let Some((begun, cpu)) = self.begun
            && self.measured.seconds == 0.0
            && begun.elapsed() >= self.plan.duration
        {
            self.measured.seconds = self.plan.duration.as_secs_f64();
            self.measured.cpu_seconds = cpu_seconds() - cpu;
        }
    }

    fn interval(&mut self) -> Interval {
        let tally = std::mem::take(&mut self.since);
        self.total.merge(&tally);
        let (at, cpu) = (self.clock.elapsed().as_secs_f64(), cpu_seconds());
        let length = at - self.shown_at;
        let seconds = self.begun.map(|(begun, _)| begun.elapsed().as_secs());
        let phase = match seconds {
            None => "opening",
            Some(_) if self.measured.seconds == 0.0 => "messages",
            Some(_) => "answers",
        };
        let interval = Interval {
            phase: phase.to_owned(),
            at,
            length,
            seconds,
            open: self.sum(|progress| progress.open),
            users: self.plan.users,
            tally,
            total: self.total.counts,
            generator_cpu_percent: (cpu - self.shown_cpu) / length.max(1e-3) * 100.0,
        };
        (self.shown_at, self.shown_cpu) = (at, cpu);
        interval
    }
}

/// Processor time of this process so far, the kernel's part included.
pub fn cpu_seconds() -> f64 {
    // SAFETY: the call fills a struct of its own; zeros are a valid value of it.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &raw mut usage);
        usage
    };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_with_and_without_a_path() {
        for url in ["ws://127.0.0.1:8800", "ws://127.0.0.1:8800/ws", "http://127.0.0.1:8800/"] {
            let (host, address) = resolve(url).unwrap();
            assert_eq!((host.as_str(), address.port()), ("127.0.0.1:8800", 8800));
        }
        assert!(resolve("127.0.0.1:8800").is_err());
        assert!(resolve("ws://").is_err());
    }
}
