//! The agent's side: takes a job, does it, and tells how it goes.

use std::io::BufReader;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, bounded};
use serde::Serialize;

use super::{FromAgent, Job, LOAD_BYTES_MAX, READY_MAX, SILENCE_MAX, ToAgent, WORD_BYTES_MAX, read};
use crate::credentials::Credentials;
use crate::process;
use crate::report::resident_bytes;
use crate::result::Generator;
use crate::run::{Conductor as _, Engine, Membership, Plan, cpu_seconds};
use crate::scenario::Scenario;
use crate::tally::Tally;
use crate::worker::{Ended, Phase, Progress};

/// Pieces of the file of acknowledged messages that may wait for the coordinator; then users wait.
const PIECES_MAX: usize = 16;

/// The connection to the coordinator: several threads have something to tell, each a line at a time.
#[derive(Clone)]
struct Coordinator(Arc<Mutex<TcpStream>>);

impl Coordinator {
    fn tell<T: Serialize>(&self, message: &T) -> std::io::Result<()> {
        super::write(&mut self.0.lock().expect("nobody panics while holding it"), message)
    }

    /// Says what is to be told when it is its turn.
    fn tell_with(&self, message: impl FnOnce() -> FromAgent) -> std::io::Result<()> {
        let mut stream = self.0.lock().expect("nobody panics while holding it");
        super::write(&mut stream, &message())
    }

    fn fail(&self, why: &impl ToString) -> std::io::Result<()> {
        self.tell(&FromAgent::Failed { why: why.to_string() })
    }
}

/// Serves one coordinator after the other, until `stop`.
pub fn serve(listener: &TcpListener, stop: &AtomicBool) -> std::io::Result<()> {
    serve_within(listener, stop, SILENCE_MAX)
}

/// Whoever has no job for so long is no coordinator, and others may be waiting.
fn serve_within(listener: &TcpListener, stop: &AtomicBool, silence_max: Duration) -> std::io::Result<()> {
    listener.set_nonblocking(true)?;
    while !stop.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((stream, coordinator)) => {
                eprintln!("a run for {coordinator}");
                match serve_one(stream, stop, silence_max) {
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

fn serve_one(stream: TcpStream, stop: &AtomicBool, silence_max: Duration) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    // One that takes nothing for so long is as good as gone, and so is one that has nothing to say before the run.
    stream.set_write_timeout(Some(SILENCE_MAX))?;
    stream.set_read_timeout(Some(silence_max))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let coordinator = Coordinator(Arc::new(Mutex::new(stream)));
    let ToAgent::Job(job) = read(&mut reader, LOAD_BYTES_MAX)? else {
        return coordinator.fail(&"a job must come first");
    };
    let Job { scenario, tokens, run, abroad, acks } = *job;
    let scenario = match Scenario::of_toml(&scenario) {
        Ok(scenario) => scenario,
        Err(error) => return coordinator.fail(&error),
    };
    coordinator.tell(&FromAgent::Ready { generator: Box::new(Generator::this("")) })?;
    reader.get_ref().set_read_timeout(Some(READY_MAX))?;
    loop {
        match read(&mut reader, WORD_BYTES_MAX)? {
            ToAgent::Clock => coordinator.tell(&FromAgent::Clock { ns: process::monotonic_ns() })?,
            ToAgent::Connect => break,
            _ => return Ok(()),
        }
    }
    // A run may be long, and there is nothing to be said to whoever takes part in it.
    reader.get_ref().set_read_timeout(None)?;
    let (pieces, waiting) = acks.then(|| bounded(PIECES_MAX)).unzip();
    let plan = Plan { scenario, credentials: Credentials::None, acks: None };
    let engine = match Engine::start(
        &plan,
        Membership { tokens: Some(tokens), run: Some(run), abroad, acks: pieces, recorded: None },
    ) {
        Ok(engine) => engine,
        Err(error) => return coordinator.fail(&error),
    };
    let told = take_part(&plan, &engine, reader, waiting, &coordinator, stop);
    if told.is_err() {
        // Nobody hears of this run any more: it ends before another one begins.
        engine.stop();
        let _ = engine.join();
        let _ = coordinator.0.lock().expect("nobody panics while holding it").shutdown(Shutdown::Both);
    }
    told
}

/// Does its part of the run, and tells what came of it.
fn take_part(
    plan: &Plan,
    engine: &Engine,
    reader: BufReader<TcpStream>,
    waiting: Option<Receiver<String>>,
    coordinator: &Coordinator,
    stop: &AtomicBool,
) -> std::io::Result<()> {
    let began_ns = process::monotonic_ns() - engine.clock.elapsed().as_nanos() as u64;
    coordinator.tell(&FromAgent::Connected { began_ns })?;
    let orders = obey(reader, coordinator.clone(), engine);
    let acks = waiting.map(|waiting| hand_over(waiting, coordinator.clone(), Arc::clone(&engine.phase)));
    let memory_bytes_max = tell(plan, engine, coordinator, stop)?;
    let ended = engine.join();
    if let Some(acks) = acks {
        // All of them go before the word that it is done.
        acks.join().expect("handing over does not panic")?;
    }
    let message = match ended {
        Ok(all) => {
            let mut done = Ended { tally: Tally::default(), abroad: Vec::new() };
            for ended in all {
                done.tally.merge(&ended.tally);
                done.abroad.extend(ended.abroad);
            }
            FromAgent::Done { tally: done.tally, abroad: done.abroad, memory_bytes_max }
        }
        Err(error) => FromAgent::Failed { why: error.to_string() },
    };
    coordinator.tell(&message)?;
    // Whoever listens for orders ends when the coordinator hangs up.
    let _ = orders.join();
    Ok(())
}

/// Does what the coordinator says, until it hangs up.
fn obey(mut reader: BufReader<TcpStream>, coordinator: Coordinator, engine: &Engine) -> JoinHandle<()> {
    let (phase, clock) = (Arc::clone(&engine.phase), engine.clock);
    std::thread::spawn(move || {
        loop {
            match read(&mut reader, WORD_BYTES_MAX) {
                Ok(ToAgent::Begin { ahead_ns }) => {
                    phase.partner_ahead_ns.store(ahead_ns, Ordering::Relaxed);
                    phase.start_ns.store(clock.elapsed().as_nanos() as u64 + 1, Ordering::Release);
                }
                Ok(ToAgent::Finish) => phase.hold.store(false, Ordering::Relaxed),
                Ok(ToAgent::Stop) => phase.stop.store(true, Ordering::Relaxed),
                // Read only once nobody else is telling anything: waiting for that would widen the error.
                Ok(ToAgent::Clock) => {
                    let _ = coordinator.tell_with(|| FromAgent::Clock { ns: process::monotonic_ns() });
                }
                // A coordinator that is gone wants nothing any more.
                Ok(_) | Err(_) => return phase.stop.store(true, Ordering::Relaxed),
            }
        }
    })
}

/// Hands acknowledged messages to the coordinator, until all threads have ended.
fn hand_over(
    waiting: Receiver<String>,
    coordinator: Coordinator,
    phase: Arc<Phase>,
) -> JoinHandle<std::io::Result<()>> {
    std::thread::spawn(move || {
        for lines in waiting {
            let told = coordinator.tell(&FromAgent::Acks { lines });
            if told.is_err() {
                phase.stop.store(true, Ordering::Relaxed);
                return told;
            }
        }
        Ok(())
    })
}

/// Tells the coordinator how it goes, each time all threads have told of a second; says how much memory it took at most.
fn tell(plan: &Plan, engine: &Engine, coordinator: &Coordinator, stop: &AtomicBool) -> std::io::Result<Option<u64>> {
    let mut memory_bytes_max = None;
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
            memory_bytes_max = memory_bytes_max.max(resident_bytes(std::process::id()));
            let sum = |of: fn(&Progress) -> u32| latest.iter().flatten().map(of).sum();
            let message = FromAgent::Progress {
                tally: std::mem::take(&mut tally),
                open: sum(|progress| progress.open),
                was_open: sum(|progress| progress.was_open),
                settled: latest.iter().all(|latest| latest.as_ref().is_some_and(|latest| latest.settled)),
                cpu_seconds: cpu_seconds() - cpu_before,
            };
            if let Err(error) = coordinator.tell(&message) {
                engine.stop();
                return Err(error);
            }
        }
    }
    let rest =
        FromAgent::Progress { tally, open: 0, was_open: 0, settled: true, cpu_seconds: cpu_seconds() - cpu_before };
    coordinator.tell(&rest)?;
    Ok(memory_bytes_max)
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::*;

    /// Whoever connects and says nothing is hung up on, and the next one is heard.
    #[test]
    fn strangers_do_not_keep_an_agent() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let stop = AtomicBool::new(false);
        let connect = || {
            let stream = TcpStream::connect(address).unwrap();
            stream.set_read_timeout(Some(SILENCE_MAX)).unwrap();
            stream
        };
        std::thread::scope(|scope| {
            scope.spawn(|| serve_within(&listener, &stop, Duration::from_millis(50)).unwrap());
            let mut silent = connect();
            let is_hung_up_on = silent.read(&mut [0]).is_ok_and(|bytes| bytes == 0);
            let mut other = connect();
            other.write_all(b"\"connect\"\n").unwrap();
            let mut answer = String::new();
            let is_heard = other.read_to_string(&mut answer).is_ok();
            // Before anything fails: a thread that nobody stops would keep the test.
            stop.store(true, Ordering::Relaxed);
            assert!(is_hung_up_on && is_heard && answer.contains("a job must come first"), "{answer}");
        });
    }
}
