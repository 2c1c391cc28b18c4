//! One run on several machines: a coordinator, and agents that do what it says.
//!
//! Both speak lines of JSON over TCP. The coordinator mints all tokens and gives each agent its part of the users; an
//! agent measures with its own clock only, so a pair whose latency counts lives on one agent. Pairs whose two users are on
//! two agents (`sessions.cross_share`) count loss and order only: their books are compared when all is over.
//!
//! ```text
//! coordinator                      agent
//! job {scenario, tokens, ...}  ->
//!                              <-  ready                     all of them, before anybody connects
//! connect                      ->
//!                              <-  progress, once a second
//! begin                        ->                            when all sessions are open
//! finish                       ->                            when nobody misses anything
//!                              <-  done {tally, abroad}
//! ```
//!
//! Nothing is encrypted, and an agent does what whoever connects says: it is for networks of one's own.

use std::io::{BufReader, Write as _};
use std::net::{TcpListener, TcpStream, ToSocketAddrs as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, Sender, unbounded};
use serde::{Deserialize, Serialize};

use crate::client::{Account, audit};
use crate::credentials::{Credentials, Tokens};
use crate::interval::Interval;
use crate::random::Random;
use crate::result::RunResult;
use crate::run::{Conductor, Engine, Membership, Plan, RunError, Watch, cpu_seconds};
use crate::scenario::Scenario;
use crate::tally::Tally;
use crate::traffic::Abroad;
use crate::worker::{Ended, Progress};

/// How long an agent may take to answer before it counts as gone: it tells something every second.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// How long it may take to get ready: reading tokens is most of that.
const READY_MAX: Duration = Duration::from_mins(2);

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum ToAgent {
    Job(Box<Job>),
    Connect,
    Begin,
    Stop,
    Finish,
}

#[derive(Serialize, Deserialize)]
struct Job {
    scenario: String,
    tokens: Tokens,
    /// What all agents have in their messages.
    run: u32,
    abroad: Option<Abroad>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum FromAgent {
    Ready,
    Progress { tally: Tally, open: u32, was_open: u32, settled: bool, cpu_seconds: f64 },
    Done { tally: Tally, abroad: Vec<Account> },
    Failed { why: String },
}

fn write<T: Serialize>(stream: &mut TcpStream, message: &T) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(message).expect("a message is plain data");
    line.push(b'\n');
    stream.write_all(&line)
}

fn read<T: for<'a> Deserialize<'a>>(reader: &mut impl std::io::BufRead) -> std::io::Result<T> {
    let mut line = Vec::new();
    if reader.read_until(b'\n', &mut line)? == 0 {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    serde_json::from_slice(&line).map_err(|error| std::io::Error::new(std::io::ErrorKind::InvalidData, error))
}

// ------------------------------------------------------------------------------------------------- the agent

/// Serves one coordinator after the other, until `stop`.
pub fn serve(listener: &TcpListener, stop: &AtomicBool) -> std::io::Result<()> {
    listener.set_nonblocking(true)?;
    while !stop.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((stream, coordinator)) => {
                eprintln!("a run for {coordinator}");
                match serve_one(stream, stop) {
                    Ok(()) => eprintln!("the run for {coordinator} is over"),
                    Err(error) => eprintln!("the run for {coordinator} ended: {error}"),
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                std::thread::sleep(Duration::from_millis(50));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn serve_one(mut stream: TcpStream, stop: &AtomicBool) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let ToAgent::Job(job) = read(&mut reader)? else {
        return write(&mut stream, &FromAgent::Failed { why: "a job must come first".to_owned() });
    };
    let Job { scenario, tokens, run, abroad } = *job;
    let scenario = match Scenario::of_toml(&scenario) {
        Ok(scenario) => scenario,
        Err(error) => return write(&mut stream, &FromAgent::Failed { why: error.to_string() }),
    };
    write(&mut stream, &FromAgent::Ready)?;
    let ToAgent::Connect = read(&mut reader)? else { return Ok(()) };
    let plan = Plan { scenario, credentials: Credentials::None, acks: None };
    let engine = match Engine::start(&plan, Membership { tokens: Some(tokens), run: Some(run), abroad }) {
        Ok(engine) => engine,
        Err(error) => return write(&mut stream, &FromAgent::Failed { why: error.to_string() }),
    };
    let phase = Arc::clone(&engine.phase);
    let clock = engine.clock;
    let orders = std::thread::spawn(move || {
        loop {
            match read(&mut reader) {
                Ok(ToAgent::Begin) => {
                    phase.start_ns.store(clock.elapsed().as_nanos() as u64 + 1, Ordering::Release);
                }
                Ok(ToAgent::Finish) => phase.hold.store(false, Ordering::Relaxed),
                // A coordinator that is gone wants nothing any more.
                Ok(_) | Err(_) => return phase.stop.store(true, Ordering::Relaxed),
            }
        }
    });
    tell(&plan, &engine, &mut stream, stop)?;
    let message = match engine.join() {
        Ok(all) => {
            let mut done = Ended { tally: Tally::default(), abroad: Vec::new() };
            for ended in all {
                done.tally.merge(&ended.tally);
                done.abroad.extend(ended.abroad);
            }
            FromAgent::Done { tally: done.tally, abroad: done.abroad }
        }
        Err(error) => FromAgent::Failed { why: error.to_string() },
    };
    write(&mut stream, &message)?;
    // Whoever listens for orders ends when the coordinator hangs up.
    let _ = orders.join();
    Ok(())
}

/// Tells the coordinator how it goes, each time all threads have told of a second.
fn tell(plan: &Plan, engine: &Engine, stream: &mut TcpStream, stop: &AtomicBool) -> std::io::Result<()> {
    let threads = plan.scenario.sessions.threads as usize;
    let cpu_before = cpu_seconds();
    let mut latest: Vec<Option<Progress>> = (0..threads).map(|_| None).collect();
    let mut told = vec![false; threads];
    let mut tally = Tally::default();
    loop {
        match engine.shown.recv_timeout(Duration::from_millis(100)) {
            Ok(progress) => {
                let worker = progress.worker as usize;
                tally.merge(&progress.tally);
                told[worker] = true;
                latest[worker] = Some(progress);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        if stop.load(Ordering::Relaxed) {
            engine.stop();
        }
        if told.iter().all(|told| *told) {
            told.fill(false);
            let sum = |of: fn(&Progress) -> u32| latest.iter().flatten().map(of).sum();
            let message = FromAgent::Progress {
                tally: std::mem::take(&mut tally),
                open: sum(|progress| progress.open),
                was_open: sum(|progress| progress.was_open),
                settled: latest.iter().all(|latest| latest.as_ref().is_some_and(|latest| latest.settled)),
                cpu_seconds: cpu_seconds() - cpu_before,
            };
            if let Err(error) = write(stream, &message) {
                engine.stop();
                return Err(error);
            }
        }
    }
    let rest =
        FromAgent::Progress { tally, open: 0, was_open: 0, settled: true, cpu_seconds: cpu_seconds() - cpu_before };
    write(stream, &rest)
}

// ------------------------------------------------------------------------------------------- the coordinator

struct Agents {
    streams: Mutex<Vec<TcpStream>>,
}

impl Agents {
    fn tell(&self, message: &ToAgent) {
        let mut streams = self.streams.lock().expect("nobody panics while holding it");
        for stream in streams.iter_mut() {
            // One that is gone is noticed by whoever listens to it.
            let _ = write(stream, message);
        }
    }
}

impl Conductor for Agents {
    fn begin(&self) {
        self.tell(&ToAgent::Begin);
    }

    fn stop(&self) {
        self.tell(&ToAgent::Stop);
    }

    fn finish(&self) {
        self.tell(&ToAgent::Finish);
    }

    fn cpu_seconds(&self, latest: &[Option<Progress>]) -> f64 {
        latest.iter().flatten().map(|progress| progress.cpu_seconds).sum()
    }
}

/// Runs the plan on agents; otherwise as [`crate::run::run`].
pub fn run(
    plan: &Plan,
    agents: &[String],
    stop: &Arc<AtomicBool>,
    mut show: impl FnMut(&Interval),
) -> Result<RunResult, RunError> {
    let parts = parts(&plan.scenario, agents.len() as u32)?;
    let sessions = &plan.scenario.sessions;
    let tokens = plan.credentials.mint(sessions.first_user, sessions.users)?;
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let run = Random::new(plan.scenario.seed, since.as_nanos() as u64).draw() as u32;
    let mut streams = Vec::new();
    for (address, (scenario, abroad)) in agents.iter().zip(parts) {
        let failed = |error: std::io::Error| RunError::Agent { agent: address.clone(), why: error.to_string() };
        let mut stream = connect(address).map_err(failed)?;
        let first_place = (scenario.sessions.first_user - sessions.first_user) as u32;
        let tokens = tokens.part(first_place, scenario.sessions.users);
        let job = Job { scenario: scenario.to_toml(), tokens, run, abroad };
        write(&mut stream, &ToAgent::Job(Box::new(job))).map_err(failed)?;
        streams.push(stream);
    }
    for (address, stream) in agents.iter().zip(&streams) {
        let failed = |why: String| RunError::Agent { agent: address.clone(), why };
        stream.set_read_timeout(Some(READY_MAX)).map_err(|error| failed(error.to_string()))?;
        // Unbuffered as good as: nothing follows before it is told to connect.
        match read(&mut BufReader::new(stream)).map_err(|error| failed(error.to_string()))? {
            FromAgent::Ready => {}
            FromAgent::Failed { why } => return Err(failed(why)),
            _ => return Err(failed("it does not do as agents do".to_owned())),
        }
    }
    let (progress, shown) = unbounded();
    let mut listeners = Vec::new();
    for (number, (address, stream)) in agents.iter().zip(&streams).enumerate() {
        let io = |error: std::io::Error| RunError::Agent { agent: address.clone(), why: error.to_string() };
        let (stream, progress, address) = (stream.try_clone().map_err(io)?, progress.clone(), address.clone());
        stream.set_read_timeout(Some(SILENCE_MAX)).map_err(io)?;
        listeners.push(std::thread::spawn(move || {
            listen(number as u32, stream, &progress).map_err(|why| RunError::Agent { agent: address, why })
        }));
    }
    drop(progress);
    let conductor = Agents { streams: Mutex::new(streams) };
    conductor.tell(&ToAgent::Connect);
    let members = agents.len() as u32;
    let threads = members * plan.scenario.sessions.threads;
    let mut watch = Watch::new(&plan.scenario, &conductor, members, threads, stop, Instant::now());
    watch.until_all_ended(&shown, &mut show);
    let mut abroad = Vec::new();
    for listener in listeners {
        let ended = listener.join().expect("listening does not panic")?;
        watch.since.merge(&ended.tally);
        abroad.extend(ended.abroad);
    }
    settle(abroad, &mut watch.since);
    watch.finish(&mut show)
}

fn connect(address: &str) -> std::io::Result<TcpStream> {
    let address = address.to_socket_addrs()?.next().ok_or(std::io::ErrorKind::NotFound)?;
    let stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn listen(number: u32, stream: TcpStream, progress: &Sender<Progress>) -> Result<Ended, String> {
    let mut reader = BufReader::new(stream);
    loop {
        match read(&mut reader).map_err(|error| format!("it is gone: {error}"))? {
            FromAgent::Progress { tally, open, was_open, settled, cpu_seconds } => {
                let heard = Progress { worker: number, tally, open, was_open, settled, cpu_seconds };
                // Whoever follows the run ends last.
                let _ = progress.send(heard);
            }
            FromAgent::Done { tally, abroad } => return Ok(Ended { tally, abroad }),
            FromAgent::Failed { why } => return Err(why),
            FromAgent::Ready => {}
        }
    }
}

/// Compares the books of pairs across agents.
fn settle(accounts: Vec<Account>, tally: &mut Tally) {
    let mut open = std::collections::HashMap::new();
    for account in accounts {
        match open.remove(&(account.peer, account.user)) {
            Some(other) => audit(&account, &other, &mut tally.counts),
            None => {
                open.insert((account.user, account.peer), account);
            }
        }
    }
    for account in open.into_values() {
        audit(&account, &account.unheard_of(), &mut tally.counts);
    }
}

/// What each agent does: a part of the users, and of all rates.
fn parts(whole: &Scenario, agents: u32) -> Result<Vec<(Scenario, Option<Abroad>)>, RunError> {
    let refuse = |why: String| Err(RunError::Scenario(crate::scenario::ScenarioError::Together(why)));
    let sessions = &whole.sessions;
    let (block, cross) = (sessions.block(), sessions.cross_share > 0.0);
    if agents == 0 || !sessions.users.is_multiple_of(agents * block) {
        return refuse(format!("{} users cannot be shared by {agents} agents in groups of {block}", sessions.users));
    }
    if cross && !agents.is_multiple_of(2) {
        return refuse(format!("pairs across agents need an even number of these, not {agents}"));
    }
    if whole.traffic.record.is_some() || whole.traffic.replay.is_some() {
        return refuse("traffic.record and traffic.replay are for one process".to_owned());
    }
    let users = sessions.users / agents;
    let first_user = |agent: u32| sessions.first_user + u64::from(agent) * u64::from(users);
    let own = f64::from(users) / f64::from(sessions.users);
    let part = |agent: u32| {
        let mut part = whole.clone();
        part.seed = Random::new(whole.seed, u64::from(agent) + 1_000).draw() >> 1;
        part.thresholds.clear();
        part.sessions.users = users;
        part.sessions.first_user = first_user(agent);
        part.sessions.connections_per_second *= own;
        part.traffic.rate *= own;
        part.traffic.hot_conversations = (f64::from(whole.traffic.hot_conversations) * own).ceil() as u32;
        for phase in &mut part.phases {
            phase.from *= own;
            phase.to *= own;
        }
        if let Some(churn) = &mut part.churn {
            churn.per_second *= own;
        }
        let abroad = (f64::from(users) * sessions.cross_share) as u32 / block * block;
        // The users at the end of one agent's, and of its neighbour's, at the same places.
        let abroad = cross.then(|| Abroad { from_place: users - abroad, first_user: first_user(agent ^ 1) });
        (part, abroad)
    };
    Ok((0..agents).map(part).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::Kind;

    #[test]
    fn parts_make_up_the_whole() {
        let mut whole = Kind::Day.defaults();
        whole.sessions.users = 1_000;
        whole.sessions.cross_share = 0.1;
        let parts = parts(&whole, 2).unwrap();
        let sum = |of: fn(&Scenario) -> f64| parts.iter().map(|(part, _)| of(part)).sum::<f64>();
        assert!((sum(|part| f64::from(part.sessions.users)) - 1_000.0).abs() < 1e-9);
        assert!((sum(|part| part.sessions.connections_per_second) - 5_000.0).abs() < 1e-9);
        assert!((sum(|part| part.phases[2].to) - whole.phases[2].to).abs() < 1e-9);
        assert!((sum(|part| part.churn.as_ref().unwrap().per_second) - 1.0).abs() < 1e-9);
        assert_eq!(parts[0].1, Some(Abroad { from_place: 450, first_user: 501 }));
        assert_eq!(parts[1].1, Some(Abroad { from_place: 450, first_user: 1 }));
        assert_eq!(parts[1].0.sessions.first_user, 501);
        assert!(super::parts(&whole, 3).is_err());
    }

    #[test]
    fn books_across_agents_are_compared() {
        let account = |user, peer, next, arrived| {
            let written = crate::ledger::Written { next, unpromised: Vec::new() };
            let arrived = crate::ledger::Arrived { next: arrived, missing: Vec::new() };
            Account { user: wire::ids::UserId(user), peer: wire::ids::UserId(peer), written, arrived }
        };
        let lost = |accounts| {
            let mut tally = Tally::default();
            settle(accounts, &mut tally);
            tally.counts.lost
        };
        assert_eq!(lost(vec![account(1, 2, 5, 3), account(2, 1, 3, 5)]), 0);
        assert_eq!(lost(vec![account(1, 2, 5, 3), account(2, 1, 4, 3)]), 3);
        assert_eq!(lost(vec![account(1, 2, 5, 0)]), 5);
    }
}
