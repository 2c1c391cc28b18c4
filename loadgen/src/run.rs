//! A whole run: threads of users, progress while they talk, and what came of it.

use std::cell::RefCell;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};

use crate::acks::AckWriter;
use crate::client::{Habits, audit};
use crate::credentials::{Credentials, CredentialsError, Tokens};
use crate::drivers::echo::Echo;
use crate::drivers::nats::Nats;
use crate::drivers::ringway::Phone;
use crate::drivers::xmpp::Xmpp;
use crate::interval::Interval;
use crate::process;
use crate::random::Random;
use crate::result::{self, FORMAT, Latencies, RunResult};
use crate::scenario::{Kind, Protocol, Scenario, ScenarioError, Sessions};
use crate::span::Span;
use crate::tally::Tally;
use crate::target::{Target, TargetError};
use crate::thresholds::{Facts, Threshold};
use crate::tls::TlsError;
use crate::traffic::{Abroad, Record, Recorded, Share, read_record};
use crate::worker::{self, Ended, Orders, Phase, Progress};

/// What a run is made of.
#[derive(Clone)]
pub struct Plan {
    pub scenario: Scenario,
    pub credentials: Credentials,
    /// Where acknowledged messages are written down.
    pub acks: Option<PathBuf>,
}

impl Plan {
    /// A plan for pairs with everything at its default but where to and for whom.
    pub fn new(url: &str, credentials: impl Into<Credentials>, users: u32) -> Self {
        let mut scenario = Kind::Pairs.defaults();
        url.clone_into(&mut scenario.server.url);
        scenario.sessions.users = users;
        scenario.traffic.rate = 0.0;
        Self { scenario, credentials: credentials.into(), acks: None }
    }
}

/// Why a run did not take place.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The address makes no sense.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// The scenario makes no sense.
    #[error(transparent)]
    Scenario(#[from] ScenarioError),
    /// TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// There are no tokens.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// The ring.
    #[error(transparent)]
    Ring(#[from] ring::RingError),
    /// The file of acknowledged messages.
    #[error("the file of acknowledged messages cannot be written: {0}")]
    Acks(std::io::Error),
    /// What is to be recorded, or was.
    #[error("the record of messages cannot be used: {0}")]
    Record(std::io::Error),
    /// An agent.
    #[error("the agent {agent}: {why}")]
    Agent {
        /// Which.
        agent: String,
        /// What happened.
        why: String,
    },
    /// The server's process.
    #[error("the server's process {pid} cannot be stopped and counted: {error}")]
    Process {
        /// Which.
        pid: u32,
        /// Why.
        error: std::io::Error,
    },
    /// What was to happen did not, in time.
    #[error("{0}")]
    InVain(String),
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

/// Runs the plan; `show` is called about once a second. `stop` ends it early.
pub fn run(plan: &Plan, stop: &Arc<AtomicBool>, mut show: impl FnMut(&Interval)) -> Result<RunResult, RunError> {
    let (plan, recorded) = with_record(plan)?;
    let engine = Engine::start(&plan, Membership { recorded, ..Membership::default() })?;
    let threads = plan.scenario.sessions.threads;
    let mut watch = Watch::new(&plan.scenario, &engine, threads, stop, engine.clock);
    watch.until_all_ended(&engine.shown, &mut show);
    for ended in engine.join()? {
        watch.since.merge(&ended.tally);
        for account in &ended.abroad {
            // Nobody else takes part in this run: what went there is lost.
            audit(account, &account.unheard_of(), &mut watch.since.counts);
        }
    }
    watch.finish(&mut show)
}

/// The plan, as long as what it replays, and that.
fn with_record(plan: &Plan) -> Result<(Plan, Option<Recorded>), RunError> {
    let mut plan = plan.clone();
    let Some(path) = &plan.scenario.traffic.replay else { return Ok((plan, None)) };
    let recorded = read_record(path, plan.scenario.sessions.users).map_err(RunError::Record)?;
    let last_ns = recorded.iter().map(|due| due.at_ns).max().unwrap_or_default();
    // The last one falls due within it.
    plan.scenario.traffic.duration = Span(Duration::from_nanos(last_ns + 1));
    Ok((plan, Some(Arc::new(recorded))))
}

/// What one process has from a run of several, or from files that were read before.
#[derive(Default)]
pub(crate) struct Membership {
    /// Tokens of its users, if they are minted already.
    pub(crate) tokens: Option<Tokens>,
    /// What all have in their messages.
    pub(crate) run: Option<u32>,
    pub(crate) abroad: Option<Abroad>,
    /// Where acknowledged messages are handed to, if they are wanted.
    pub(crate) acks: Option<Sender<String>>,
    /// What falls due instead of what the scenario says.
    pub(crate) recorded: Option<Recorded>,
}

/// Threads of users at work.
pub(crate) struct Engine {
    pub(crate) phase: Arc<Phase>,
    pub(crate) clock: Instant,
    pub(crate) shown: Receiver<Progress>,
    threads: RefCell<Vec<JoinHandle<Result<Ended, ring::RingError>>>>,
}

impl Engine {
    /// Mints all tokens, starts the clock and the threads. Messages begin when the phase says so.
    pub(crate) fn start(plan: &Plan, membership: Membership) -> Result<Self, RunError> {
        let scenario = Arc::new(plan.scenario.clone());
        let target = Arc::new(Target::of(&scenario)?);
        let tls = target.tls(&scenario)?;
        let (sessions, traffic) = (&scenario.sessions, &scenario.traffic);
        let mint = || plan.credentials.mint(sessions.first_user, sessions.users);
        let tokens = Arc::new(membership.tokens.map_or_else(mint, Ok)?);
        let acks = plan.acks.as_deref().map(AckWriter::open).transpose().map_err(RunError::Acks)?;
        let append = |path: &PathBuf| File::options().create(true).append(true).open(path);
        let record = traffic.record.as_ref().map(append).transpose().map_err(RunError::Record)?;
        let mut habits = habits(&scenario, &target);
        habits.run = membership.run.unwrap_or(habits.run);
        let phase = Arc::new(Phase::default());
        phase.hold.store(membership.abroad.is_some(), Ordering::Relaxed);
        let (progress, shown) = unbounded();
        let clock = Instant::now();
        let mut threads = Vec::new();
        let mut first_place = 0;
        for number in 0..sessions.threads {
            let share = Share { abroad: membership.abroad, ..share(sessions, number, first_place) };
            first_place += share.users;
            let copy = |file: &Option<File>| file.as_ref().map(File::try_clone).transpose();
            let orders = Orders {
                number,
                scenario: Arc::clone(&scenario),
                habits: habits.clone(),
                tokens: Arc::clone(&tokens),
                target: Arc::clone(&target),
                tls: tls.clone(),
                share,
                recorded: membership.recorded.clone(),
                record: copy(&record).map_err(RunError::Record)?.map(Record::new),
                random: Random::new(scenario.seed, u64::from(number) + 1),
                acks: match &membership.acks {
                    Some(pieces) => Some(AckWriter::handing_over(pieces.clone())),
                    None => copy(&acks).map_err(RunError::Acks)?.map(AckWriter::new),
                },
                clock,
                phase: Arc::clone(&phase),
                progress: progress.clone(),
            };
            let thread = std::thread::Builder::new().name(format!("users-{number}"));
            let work = match scenario.protocol {
                Protocol::Ringway => worker::run::<Phone>,
                Protocol::Echo => worker::run::<Echo>,
                Protocol::Nats | Protocol::JetStream => worker::run::<Nats>,
                Protocol::Xmpp => worker::run::<Xmpp>,
            };
            threads.push(thread.spawn(move || work(orders)).map_err(RunError::Thread)?);
        }
        Ok(Self { phase, clock, shown, threads: RefCell::new(threads) })
    }

    /// Waits for all threads.
    pub(crate) fn join(&self) -> Result<Vec<Ended>, RunError> {
        let ended = |thread: JoinHandle<_>| thread.join().expect("a thread of users does not panic");
        Ok(self.threads.take().into_iter().map(ended).collect::<Result<_, ring::RingError>>()?)
    }
}

/// What tells the users when messages begin and end: threads of this process, or agents.
pub(crate) trait Conductor {
    /// Messages begin to be due.
    fn begin(&self);
    /// It ends now.
    fn stop(&self);
    /// Everybody has everything: it may end.
    fn finish(&self);
    /// Processor time of all generators, given what each told last.
    fn cpu_seconds(&self, latest: &[Option<Progress>]) -> f64;
}

impl Conductor for Engine {
    fn begin(&self) {
        self.phase.start_ns.store(self.clock.elapsed().as_nanos() as u64 + 1, Ordering::Release);
    }

    fn stop(&self) {
        self.phase.stop.store(true, Ordering::Relaxed);
    }

    fn finish(&self) {
        self.phase.hold.store(false, Ordering::Relaxed);
    }

    fn cpu_seconds(&self, _: &[Option<Progress>]) -> f64 {
        cpu_seconds()
    }
}

fn habits(scenario: &Scenario, target: &Target) -> Habits {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let (sessions, traffic) = (&scenario.sessions, &scenario.traffic);
    Habits {
        host: target.host.clone(),
        target: target.path.clone(),
        protocol: scenario.protocol,
        domain: scenario.server.domain.clone().unwrap_or_else(|| target.name.clone()),
        password: scenario.credentials.password.clone(),
        // Two runs with one seed still write different bodies.
        run: Random::new(scenario.seed, since.as_nanos() as u64).draw() as u32,
        payload_bytes: traffic.payload_bytes,
        in_flight_max: traffic.in_flight,
        send_within_ns: traffic.send_within.ns(),
        conversations: sessions.conversations,
        mark_ns: traffic.mark_every.ns(),
        backoff_ns: sessions.backoff.ns(),
        backoff_ns_max: sessions.backoff_max.ns(),
        resend: traffic.resend,
        unix_ms: since.as_millis() as u64,
    }
}

/// The users of one thread: whole groups, and as many as the others have.
fn share(sessions: &Sessions, number: u32, first_place: u32) -> Share {
    let block = sessions.block();
    let blocks = sessions.users / block;
    let users = block * (blocks / sessions.threads + u32::from(number < blocks % sessions.threads));
    Share { first_place, users, of: sessions.users, block, conversations: sessions.conversations, abroad: None }
}

/// Why the generator, and not the server, may have been the limit; none if it was not.
fn bound_by(tally: &Tally) -> Option<String> {
    const BUSY_MAX: f64 = 0.9;
    const SCHEDULE_ERROR_MS_MAX: f64 = 20.0;
    let schedule_ms = tally.schedule.quantile_ms(0.99);
    if tally.busy.most > BUSY_MAX {
        let percent = tally.busy.most * 100.0;
        Some(format!("generator-bound, at least: its busiest thread was {percent:.0} % busy"))
    } else if schedule_ms > SCHEDULE_ERROR_MS_MAX {
        Some(format!(
            "generator-bound, at least: one message in a hundred fell due {schedule_ms:.0} ms before it noticed"
        ))
    } else {
        None
    }
}

/// The engine's part of the result.
fn result(scenario: &Scenario, tally: &Tally, measured: &Measured, abroad_error_ns: Option<u64>) -> RunResult {
    let seconds = measured.seconds.max(1e-9);
    let cpu_percent = measured.cpu_seconds / seconds * 100.0;
    let bound = bound_by(tally);
    let server_cpu_percent = measured.server_cpu_seconds.map(|cpu| cpu / seconds * 100.0);
    let facts = Facts { tally, seconds, cpu_percent, server_cpu_percent, abroad_error_ns };
    let judge = |threshold: &Threshold| {
        let verdict = threshold.judge(&facts);
        // What ended the run is a breach, though it may have come right again while the answers were waited for.
        let ended_it = measured.breached.as_deref() == Some(threshold.text());
        result::Threshold {
            condition: threshold.text().to_owned(),
            measured: verdict.measured,
            unit: threshold.unit().to_owned(),
            passed: verdict.passed && !ended_it,
            note: [ended_it.then(|| "its breach ended the run".to_owned()), verdict.note, bound.clone()]
                .into_iter()
                .flatten()
                .reduce(|one, other| format!("{one}; {other}")),
        }
    };
    RunResult {
        format: FORMAT,
        scenario: result::Scenario { name: scenario.name.clone(), toml: scenario.to_toml() },
        aborted: measured.aborted.clone(),
        thresholds: scenario.thresholds.iter().map(judge).collect(),
        users: scenario.sessions.users,
        open: measured.open,
        payload_bytes: scenario.traffic.payload_bytes,
        seed: scenario.seed,
        seconds: measured.seconds,
        offered_per_second: tally.counts.offered as f64 / seconds,
        achieved_per_second: tally.counts.acked_in_time as f64 / seconds,
        generator_bound: bound.is_some(),
        generator_cpu_percent: cpu_percent,
        busiest_thread_percent: tally.busy.most * 100.0,
        counts: tally.counts,
        errors: tally.errors.clone(),
        latency: Latencies::of(tally, abroad_error_ns),
        ..RunResult::default()
    }
}

fn why(tally: &Tally) -> String {
    if tally.errors.is_empty() {
        return "nobody listens there, or nobody answers".to_owned();
    }
    tally.errors.iter().map(|(code, count)| format!("{code} ({count})")).collect::<Vec<_>>().join(", ")
}

/// What was measured apart from the phones.
#[derive(Debug, Clone, Default)]
pub struct Measured {
    /// Seconds in which messages were due.
    pub seconds: f64,
    /// Of the generator, in the same time.
    pub cpu_seconds: f64,
    /// Of the server, in the same time, if its process is known.
    pub server_cpu_seconds: Option<f64>,
    /// How many sessions were open when messages began.
    pub open: u32,
    /// Why it ended before its time.
    pub aborted: Option<String>,
    /// The condition whose breach that was.
    pub breached: Option<String>,
}

/// Follows threads or agents: says when messages begin, and shows how it goes.
pub(crate) struct Watch<'a> {
    scenario: &'a Scenario,
    conductor: &'a dyn Conductor,
    stop: &'a AtomicBool,
    clock: Instant,
    latest: Vec<Option<Progress>>,
    told: Vec<bool>,
    /// How often in a row all said that nothing is missing.
    settled: u32,
    /// Since the last interval that was shown, and since the beginning.
    pub(crate) since: Tally,
    total: Tally,
    /// With users on several agents that talk to each other: by how much their times may be wrong.
    pub(crate) abroad_error_ns: Option<u64>,
    shown_at: f64,
    shown_cpu: f64,
    begun: Option<Begun>,
    measured: Measured,
}

/// When messages began, and what had been used by then.
#[derive(Clone, Copy)]
struct Begun {
    at: Instant,
    cpu_seconds: f64,
    server_cpu_ns: Option<u64>,
}

impl<'a> Watch<'a> {
    /// Follows so many members: threads or agents.
    pub(crate) fn new(
        scenario: &'a Scenario,
        conductor: &'a dyn Conductor,
        members: u32,
        stop: &'a AtomicBool,
        clock: Instant,
    ) -> Self {
        Self {
            scenario,
            conductor,
            stop,
            clock,
            latest: (0..members).map(|_| None).collect(),
            told: vec![false; members as usize],
            settled: 0,
            since: Tally::default(),
            total: Tally::default(),
            abroad_error_ns: None,
            shown_at: 0.0,
            shown_cpu: conductor.cpu_seconds(&[]),
            begun: None,
            measured: Measured::default(),
        }
    }

    /// Until nobody tells anything any more.
    pub(crate) fn until_all_ended(&mut self, shown: &Receiver<Progress>, show: &mut impl FnMut(&Interval)) {
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
                self.abort("it was told to stop");
            }
            self.begin_if_ready();
            self.end_measuring(false);
            // When everybody has told of another second.
            if self.told.iter().all(|told| *told) {
                self.told.fill(false);
                show(&self.interval());
                self.abort_if_breached();
                self.finish_if_settled();
            }
        }
        self.end_measuring(true);
    }

    /// What came of it, once all that was measured is in `since`.
    pub(crate) fn finish(mut self, show: &mut impl FnMut(&Interval)) -> Result<RunResult, RunError> {
        // What came after the last second that all told of, the losses among it.
        show(&self.interval());
        if self.total.counts.opened == 0 {
            return Err(RunError::Unreachable { url: self.scenario.server.url.clone(), why: why(&self.total) });
        }
        Ok(result(self.scenario, &self.total, &self.measured, self.abroad_error_ns))
    }

    fn abort(&mut self, why: &str) {
        if self.measured.aborted.is_none() {
            self.measured.aborted = Some(why.to_owned());
            // What follows is the end, and no part of what is measured.
            self.end_measuring(true);
        }
        self.conductor.stop();
    }

    /// A threshold that is breached beyond repair ends the run, if that is wanted and the grace is over.
    fn abort_if_breached(&mut self) {
        let (abort, Some(begun)) = (&self.scenario.abort, self.begun) else { return };
        if !abort.on_breach || begun.at.elapsed() < abort.grace.0 || self.measured.aborted.is_some() {
            return;
        }
        let used = self.used_since(begun);
        let percent = |cpu: f64| cpu / used.seconds.max(1e-9) * 100.0;
        let facts = Facts {
            tally: &self.total,
            seconds: used.seconds,
            cpu_percent: percent(used.cpu_seconds),
            server_cpu_percent: used.server_cpu_seconds.map(percent),
            abroad_error_ns: self.abroad_error_ns,
        };
        if let Some(breached) = self.scenario.thresholds.iter().find(|threshold| threshold.is_breached_early(&facts)) {
            let breached = breached.text().to_owned();
            self.abort(&format!("`{breached}` was breached"));
            self.measured.breached = Some(breached);
        }
    }

    /// Twice in a row, so that what was on the way has arrived.
    fn finish_if_settled(&mut self) {
        let all = self.latest.iter().all(|latest| latest.as_ref().is_some_and(|latest| latest.settled));
        self.settled = if all { self.settled + 1 } else { 0 };
        if self.settled == 2 {
            self.conductor.finish();
        }
    }

    fn sum(&self, of: impl Fn(&Progress) -> u32) -> u32 {
        self.latest.iter().flatten().map(of).sum()
    }

    fn begin_if_ready(&mut self) {
        let was_open = self.sum(|progress| progress.was_open);
        let all_open = was_open == self.scenario.sessions.users;
        if self.begun.is_none() && (all_open || self.clock.elapsed() > self.scenario.sessions.ramp.0) {
            if was_open == 0 {
                self.conductor.stop();
            }
            self.measured.open = self.sum(|progress| progress.open);
            let cpu_seconds = self.conductor.cpu_seconds(&self.latest);
            let server_cpu_ns = self.scenario.server.pid.and_then(process::cpu_ns);
            self.begun = Some(Begun { at: Instant::now(), cpu_seconds, server_cpu_ns });
            self.conductor.begin();
        }
    }

    fn used_since(&self, begun: Begun) -> Measured {
        let server_now = self.scenario.server.pid.and_then(process::cpu_ns);
        let server = begun.server_cpu_ns.zip(server_now).map(|(then, now)| now.saturating_sub(then) as f64 / 1e9);
        Measured {
            seconds: begun.at.elapsed().as_secs_f64(),
            cpu_seconds: self.conductor.cpu_seconds(&self.latest) - begun.cpu_seconds,
            server_cpu_seconds: server,
            ..self.measured.clone()
        }
    }

    fn end_measuring(&mut self, at_once: bool) {
        let duration = self.scenario.duration().0;
        if let Some(begun) = self.begun
            && self.measured.seconds == 0.0
            && (at_once || begun.at.elapsed() >= duration)
        {
            self.measured = self.used_since(begun);
            if !at_once {
                self.measured.seconds = duration.as_secs_f64();
            }
        }
    }

    fn interval(&mut self) -> Interval {
        let tally = std::mem::take(&mut self.since);
        self.total.merge(&tally);
        let (at, cpu) = (self.clock.elapsed().as_secs_f64(), self.conductor.cpu_seconds(&self.latest));
        let length = at - self.shown_at;
        let seconds = self.begun.map(|begun| begun.at.elapsed().as_secs());
        let phase = self.begun.map_or("opening", |begun| self.scenario.phase_name(begun.at.elapsed()));
        let interval = Interval {
            phase: phase.to_owned(),
            at,
            length,
            seconds,
            open: self.sum(|progress| progress.open),
            users: self.scenario.sessions.users,
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
    use crate::tally::Busy;

    #[test]
    fn a_replay_is_as_long_as_its_record() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("record");
        std::fs::write(&path, "5 0 1\n600000000000 1 0\n7 0 1\n").unwrap();
        for kind in [Kind::Pairs, Kind::Day] {
            let mut plan = Plan::new("ws://127.0.0.1:9", Credentials::None, 8);
            plan.scenario = Scenario { sessions: plan.scenario.sessions, ..kind.defaults() };
            let own = plan.scenario.duration();
            assert!(with_record(&plan).is_ok_and(|(plan, none)| plan.scenario.duration() == own && none.is_none()));
            plan.scenario.traffic.replay = Some(path.clone());
            let (plan, recorded) = with_record(&plan).unwrap();
            assert_eq!((plan.scenario.duration().ns(), recorded.unwrap().len()), (600_000_000_001, 3));
            assert_eq!(plan.scenario.phase_name(Duration::from_secs(599)), "messages");
            assert_eq!(plan.scenario.phase_name(Duration::from_secs(601)), "answers");
        }
        let mut plan = Plan::new("ws://127.0.0.1:9", Credentials::None, 8);
        std::fs::write(&path, "").unwrap();
        plan.scenario.traffic.replay = Some(path.clone());
        assert!(with_record(&plan).err().unwrap().to_string().contains("no message"));
        std::fs::write(&path, format!("{} 0 1\n", u64::MAX)).unwrap();
        assert!(with_record(&plan).err().unwrap().to_string().contains("line 1"));
    }

    #[test]
    fn one_thread_at_its_limit_is_enough() {
        let bound = |most: f64| bound_by(&Tally { busy: Busy { most, sum: most }, ..Tally::default() });
        assert_eq!(bound(0.89), None);
        assert!(bound(0.97).unwrap().contains("busiest thread was 97 % busy"));
        let mut late = Tally::default();
        late.schedule.record(21_000_000);
        assert!(bound_by(&late).unwrap().contains("21 ms before it noticed"));
        // The result and every threshold of it say so.
        let mut scenario = Kind::Pairs.defaults();
        scenario.thresholds = vec!["lost == 0".parse().unwrap()];
        let busy = Tally { busy: Busy { most: 0.97, sum: 1.0 }, ..Tally::default() };
        let result = super::result(&scenario, &busy, &Measured::default(), None);
        assert!(result.generator_bound && (result.busiest_thread_percent - 97.0).abs() < 1e-9);
        assert!(result.thresholds[0].note.as_deref().unwrap().contains("generator-bound"));
    }
}
