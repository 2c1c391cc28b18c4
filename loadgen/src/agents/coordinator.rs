//! The coordinator's side: shares a run out, follows it, and puts together what came of it.

use std::fs::File;
use std::io::BufReader;
use std::net::{TcpStream, ToSocketAddrs as _};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, unbounded};

use super::clocks::{Clock, Exchange, Offset};
use super::{FromAgent, Job, LOAD_BYTES_MAX, READY_MAX, SILENCE_MAX, ToAgent, WORD_BYTES_MAX, read, write};
use crate::acks::AckWriter;
use crate::client::{Account, audit, audit_pairs};
use crate::interval::Interval;
use crate::process;
use crate::random::Random;
use crate::result::{Generator, RunResult};
use crate::run::{Conductor, Plan, RunError, Watch};
use crate::scenario::Scenario;
use crate::tally::{Busy, Tally};
use crate::traffic::Abroad;
use crate::worker::{Ended, Progress};

/// How often each clock is asked for.
const EXCHANGES: usize = 16;

/// An agent, as it is spoken to.
struct Agent {
    address: String,
    stream: TcpStream,
    reader: BufReader<TcpStream>,
    generator: Generator,
}

impl Agent {
    /// Gives it its job.
    fn hire(address: &str, job: Job) -> Result<Self, RunError> {
        let failed = |error| RunError::Agent { agent: address.to_owned(), why: format!("{error}") };
        let mut stream = connect(address).map_err(failed)?;
        write(&mut stream, &ToAgent::Job(Box::new(job))).map_err(failed)?;
        let reader = BufReader::new(stream.try_clone().map_err(failed)?);
        Ok(Self { address: address.to_owned(), stream, reader, generator: Generator::default() })
    }

    fn failed(&self, why: &impl ToString) -> RunError {
        RunError::Agent { agent: self.address.clone(), why: why.to_string() }
    }

    /// What it says next, within that time and in so many bytes.
    fn hear(&mut self, patience: Duration, bytes_max: u64) -> Result<FromAgent, RunError> {
        let heard = self.stream.set_read_timeout(Some(patience)).and_then(|()| read(&mut self.reader, bytes_max));
        match heard.map_err(|error| self.failed(&format!("it is gone: {error}")))? {
            FromAgent::Failed { why } => Err(self.failed(&why)),
            said => Ok(said),
        }
    }

    /// Waits until it is ready.
    fn ready(&mut self) -> Result<(), RunError> {
        let FromAgent::Ready { generator } = self.hear(READY_MAX, WORD_BYTES_MAX)? else {
            return Err(self.out_of_turn());
        };
        self.generator = Generator { name: self.address.clone(), ..*generator };
        Ok(())
    }

    /// How far its clock is ahead.
    fn measure(&mut self) -> Result<Offset, RunError> {
        let mut exchanges = [Exchange { asked: 0, said: 0, heard: 0 }; EXCHANGES];
        for exchange in &mut exchanges {
            let asked = process::monotonic_ns();
            write(&mut self.stream, &ToAgent::Clock).map_err(|error| self.failed(&error))?;
            let FromAgent::Clock { ns: said } = self.hear(SILENCE_MAX, WORD_BYTES_MAX)? else {
                return Err(self.out_of_turn());
            };
            *exchange = Exchange { asked, said, heard: process::monotonic_ns() };
        }
        Ok(Offset::of(&exchanges).expect("there are some"))
    }

    /// Lets its users connect, and hears when its run began.
    fn connect(&mut self) -> Result<u64, RunError> {
        write(&mut self.stream, &ToAgent::Connect).map_err(|error| self.failed(&error))?;
        let FromAgent::Connected { began_ns } = self.hear(READY_MAX, WORD_BYTES_MAX)? else {
            return Err(self.out_of_turn());
        };
        Ok(began_ns)
    }

    fn out_of_turn(&self) -> RunError {
        self.failed(&"it does not do as agents do")
    }

    /// Follows it to its end.
    fn listen(
        &mut self,
        number: u32,
        progress: &Sender<Progress>,
        mut acks: Option<AckWriter>,
    ) -> Result<Ended, RunError> {
        let mut busy = Busy::default();
        loop {
            match self.hear(SILENCE_MAX, LOAD_BYTES_MAX)? {
                FromAgent::Progress { tally, open, was_open, settled, cpu_seconds } => {
                    busy.merge(tally.busy);
                    let heard = Progress { worker: number, tally, open, was_open, settled, cpu_seconds };
                    // Whoever follows the run ends last.
                    let _ = progress.send(heard);
                }
                FromAgent::Acks { lines } => {
                    let Some(acks) = acks.as_mut().filter(|_| lines.ends_with('\n')) else {
                        return Err(self.out_of_turn());
                    };
                    acks.note_lines(&lines);
                    acks.flush().map_err(RunError::Acks)?;
                }
                FromAgent::Done { tally, abroad, memory_bytes_max } => {
                    self.generator.memory_bytes_max = memory_bytes_max;
                    busy.merge(tally.busy);
                    self.generator.cpu_percent = busy.sum * 100.0;
                    self.generator.busiest_thread_percent = busy.most * 100.0;
                    return Ok(Ended { tally, abroad });
                }
                _ => return Err(self.out_of_turn()),
            }
        }
    }
}

fn connect(address: &str) -> std::io::Result<TcpStream> {
    let address = address.to_socket_addrs()?.next().ok_or(std::io::ErrorKind::NotFound)?;
    let stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Where orders for all agents go.
struct Agents {
    streams: Mutex<Vec<TcpStream>>,
    clocks: Vec<Clock>,
}

/// The agent where the partners of that one's users are.
fn partner(agent: usize) -> usize {
    agent ^ 1
}

/// By how much times between partners may be wrong: as of the two who know least of each other.
fn error_of(clocks: &[Clock]) -> u64 {
    let pairs = clocks.chunks_exact(2).map(|pair| pair[0].offset.error_between(pair[1].offset));
    pairs.max().unwrap_or(0)
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
        let mut streams = self.streams.lock().expect("nobody panics while holding it");
        for (number, stream) in streams.iter_mut().enumerate() {
            // One without a partner has nobody whose times it could ask for.
            let ahead_ns = self.clocks.get(partner(number)).map_or(0, |partner| self.clocks[number].ahead_of(*partner));
            let _ = write(stream, &ToAgent::Begin { ahead_ns });
        }
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
///
/// If one of them is lost, the others are stopped, and the run fails in its name; the file of acknowledged messages then
/// holds what was told until then.
pub fn run(
    plan: &Plan,
    agents: &[String],
    stop: &Arc<AtomicBool>,
    mut show: impl FnMut(&Interval),
) -> Result<RunResult, RunError> {
    let acks = plan.acks.as_deref().map(AckWriter::open).transpose().map_err(RunError::Acks)?;
    let mut agents = hire(plan, agents)?;
    for agent in &mut agents {
        agent.ready()?;
    }
    // While nobody has anything else to do.
    let offsets = agents.iter_mut().map(Agent::measure).collect::<Result<Vec<_>, _>>()?;
    let connected = |(agent, offset): (&mut Agent, _)| Ok(Clock { offset, began_ns: agent.connect()? });
    let mut clocks = agents.iter_mut().zip(offsets).map(connected).collect::<Result<Vec<_>, RunError>>()?;
    let members = agents.len() as u32;
    let streams = agents.iter().map(|agent| agent.stream.try_clone().map_err(|error| agent.failed(&error)));
    let streams = Mutex::new(streams.collect::<Result<_, _>>()?);
    let conductor = Arc::new(Agents { streams, clocks: clocks.clone() });
    let (progress, shown) = unbounded();
    let listeners = follow(agents, &conductor, &progress, acks.as_ref())?;
    drop(progress);
    let mut watch = Watch::new(&plan.scenario, &*conductor, members, stop, Instant::now());
    let is_abroad = plan.scenario.sessions.cross_share > 0.0;
    watch.abroad_error_ns = is_abroad.then(|| error_of(&clocks));
    watch.until_all_ended(&shown, &mut show);
    // All of them first: each writes down what it is told to its end, whoever else is lost.
    let ended: Vec<_> = listeners.into_iter().map(|each| each.join().expect("listening does not panic")).collect();
    let (mut abroad, mut generators) = (Vec::new(), Vec::new());
    for (ended, clock) in ended.into_iter().zip(&mut clocks) {
        let (mut agent, ended) = ended?;
        watch.since.merge(&ended.tally);
        abroad.extend(ended.abroad);
        clock.offset = clock.offset.covering(agent.measure()?);
        agent.generator.clock_offset_ms = Some(clock.offset.ms());
        generators.push(agent.generator);
    }
    settle(abroad, &mut watch.since);
    watch.abroad_error_ns = is_abroad.then(|| error_of(&clocks));
    Ok(RunResult { generators, ..watch.finish(&mut show)? })
}

/// Gives each agent its part.
fn hire(plan: &Plan, agents: &[String]) -> Result<Vec<Agent>, RunError> {
    let parts = parts(&plan.scenario, agents.len() as u32)?;
    let sessions = &plan.scenario.sessions;
    let tokens = plan.credentials.mint(sessions.first_user, sessions.users)?;
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let run = Random::new(plan.scenario.seed, since.as_nanos() as u64).draw() as u32;
    let hired = agents.iter().zip(parts).map(|(address, (scenario, abroad))| {
        let first_place = (scenario.sessions.first_user - sessions.first_user) as u32;
        let tokens = tokens.part(first_place, scenario.sessions.users);
        Agent::hire(address, Job { scenario: scenario.to_toml(), tokens, run, abroad, acks: plan.acks.is_some() })
    });
    hired.collect()
}

type Listener = JoinHandle<Result<(Agent, Ended), RunError>>;

/// Listens to each agent in a thread of its own; one that is lost ends the run for all.
fn follow(
    agents: Vec<Agent>,
    conductor: &Arc<Agents>,
    progress: &Sender<Progress>,
    acks: Option<&File>,
) -> Result<Vec<Listener>, RunError> {
    let listener = |(number, mut agent): (usize, Agent)| {
        let (progress, conductor) = (progress.clone(), Arc::clone(conductor));
        let acks = acks.map(File::try_clone).transpose().map_err(RunError::Acks)?.map(AckWriter::new);
        Ok(std::thread::spawn(move || match agent.listen(number as u32, &progress, acks) {
            Ok(ended) => Ok((agent, ended)),
            Err(error) => {
                conductor.stop();
                Err(error)
            }
        }))
    };
    agents.into_iter().enumerate().map(listener).collect()
}

/// Compares the books of pairs across agents.
fn settle(accounts: Vec<Account>, tally: &mut Tally) {
    for account in audit_pairs(accounts, &mut tally.counts) {
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
