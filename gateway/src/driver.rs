//! The loop of one shard: its thread sleeps in its own ring and nowhere else.
//!
//! The driver decides nothing. It reads the clock, hands the shard what happened, and hands the ring and
//! storage what is to be done.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use chat::Now;
use ring::{Doorbell, EventBatch, KernelRing, ListenerId, RingConfig, RingCounters, RingError};
use shard_router::MailCounters;
use storage::port::Port;
use storage::seam::{Outcome, ReadError, Refusal, StorageEvent, StorageRequest};

use crate::counters::ShardCounters;
use crate::shard::{Input, Output, Shard, ShardParts};

/// Beyond the time that clients were given to leave, they get this long to answer our closing.
const DRAIN_GRACE_MS: u64 = 6_000;

/// How far the process has come on its way to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Phase {
    /// It serves.
    Serving = 0,
    /// It takes no more connections and sends away those it has.
    Draining = 1,
    /// The shards' threads end.
    Stopping = 2,
}

/// The phase, shared by all threads of the process. Whoever moves it rings every doorbell.
#[derive(Debug, Default)]
pub struct PhaseCell(AtomicU8);

impl PhaseCell {
    /// The phase now.
    pub fn get(&self) -> Phase {
        match self.0.load(Ordering::Acquire) {
            0 => Phase::Serving,
            1 => Phase::Draining,
            _ => Phase::Stopping,
        }
    }

    /// Moves on; never back.
    pub fn advance(&self, phase: Phase) {
        self.0.fetch_max(phase as u8, Ordering::AcqRel);
    }
}

/// Reads both clocks.
#[derive(Debug, Clone, Copy)]
struct Clock {
    started: Instant,
}

impl Clock {
    fn start() -> Self {
        Self { started: Instant::now() }
    }

    fn now(self) -> Now {
        let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Now { monotonic_ms: self.monotonic_ms(), wall_ms: wall.as_millis() as u64 }
    }

    fn monotonic_ms(self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }
}

/// Where the shards of a node wait for each other: none listens before all are ready, because what one
/// serves may be what another still recovers.
pub struct StartLine {
    missing: AtomicUsize,
    doorbells: Vec<Doorbell>,
}

impl StartLine {
    /// For as many shards as there are doorbells.
    pub fn new(doorbells: &[Doorbell]) -> Self {
        Self { missing: AtomicUsize::new(doorbells.len()), doorbells: doorbells.to_vec() }
    }

    /// Another shard is ready; the last one wakes the others.
    fn arrive(&self) {
        if self.missing.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.doorbells.iter().for_each(Doorbell::ring);
        }
    }

    fn is_open(&self) -> bool {
        self.missing.load(Ordering::Acquire) == 0
    }
}

/// What one shard's thread needs to begin.
pub struct DriverParts {
    /// Limits of its ring.
    pub ring: RingConfig,
    /// The shard to be.
    pub shard: ShardParts,
    /// Its end of the store.
    pub port: Port,
    /// Where it listens, beside the other shards.
    pub listen: SocketAddr,
    /// Wakes it.
    pub doorbell: Doorbell,
    /// Over how long it sends its clients away at the end.
    pub drain_ms: u32,
    /// Where it waits for the other shards.
    pub start_line: Arc<StartLine>,
    /// Tells it when to end.
    pub phase: Arc<PhaseCell>,
    /// What it says about itself, about once a second.
    pub published: Arc<Mutex<Published>>,
}

/// What a shard has said about itself, for metrics and for whoever waits for it.
#[derive(Debug, Clone, Default)]
pub struct Published {
    /// The shard's own counts.
    pub shard: ShardCounters,
    /// Its rules'.
    pub chat: chat::Counters,
    /// What its rules hold, by name.
    pub sizes: Vec<(&'static str, u64)>,
    /// Its mailboxes'.
    pub mail: MailCounters,
    /// Its ring's.
    pub ring: RingCounters,
    /// What its thread took from the heap, by count.
    #[cfg(feature = "count-allocations")]
    pub allocations: u64,
    /// Connections held.
    pub connections: u32,
    /// Bytes of memory held for them.
    pub connection_bytes: usize,
    /// Of these, for their queues.
    pub queue_bytes: usize,
    /// It listens.
    pub is_serving: bool,
    /// Nobody is connected any more, and nothing waits for storage.
    pub is_drained: bool,
    /// Another process took its slots.
    pub is_fenced: bool,
}

/// A shard with all that it needs, on its own thread.
pub struct Driver {
    ring: KernelRing,
    shard: Shard,
    port: Port,
    listen: SocketAddr,
    listener: Option<ListenerId>,
    clock: Clock,
    input: Input,
    output: Output,
    /// Reads of the recovery for which there was no room yet: while it reads back the journal, nobody
    /// could be told to come again, and there are as many as conversations in it.
    unread: VecDeque<StorageRequest>,
    drain_ms: u32,
    /// Draining ends here, whoever is still there.
    drained_by_ms: Option<u64>,
    start_line: Arc<StartLine>,
    phase: Arc<PhaseCell>,
    published: Arc<Mutex<Published>>,
    published_ms: u64,
    turn_began_ms: u64,
    turn_took_ms: u64,
}

impl Driver {
    /// Makes the ring. To be called on the thread that will [`Self::begin`] and [`Self::run`].
    pub fn new(parts: DriverParts) -> Result<Self, RingError> {
        let ring = KernelRing::new(&parts.ring, parts.doorbell)?;
        let clock = Clock::start();
        Ok(Self {
            ring,
            shard: Shard::new(parts.shard, clock.now()),
            port: parts.port,
            listen: parts.listen,
            listener: None,
            clock,
            input: Input {
                ring: EventBatch::with_capacity(4_096, 1 << 20),
                storage: Vec::with_capacity(64),
                lag_ms: 0,
            },
            unread: VecDeque::new(),
            output: Output::default(),
            drain_ms: parts.drain_ms,
            drained_by_ms: None,
            start_line: parts.start_line,
            phase: parts.phase,
            published: parts.published,
            published_ms: 0,
            turn_began_ms: 0,
            turn_took_ms: 0,
        })
    }

    /// Applies what storage recovered, waits for the other shards, then listens. `false`: the process was
    /// told to stop meanwhile.
    pub fn begin(&mut self) -> Result<bool, RingError> {
        let mut has_arrived = false;
        while !self.start_line.is_open() {
            self.step()?;
            if self.phase.get() != Phase::Serving {
                return Ok(false);
            }
            if !has_arrived && self.shard.is_ready() {
                has_arrived = true;
                self.start_line.arrive();
            }
        }
        self.listener = Some(self.ring.listen(self.listen)?.0);
        self.publish(self.clock.now());
        Ok(true)
    }

    /// Serves until the phase says to stop.
    pub fn run(&mut self) -> Result<(), RingError> {
        while self.phase.get() != Phase::Stopping {
            self.step()?;
        }
        Ok(())
    }

    /// One sleep and one turn.
    fn step(&mut self) -> Result<(), RingError> {
        let port = &self.port;
        let sleeps = self.shard.mailbox().prepare_to_sleep(|| port.has_events()) && self.input.storage.is_empty();
        let slept_from_ms = sleeps.then(|| self.clock.monotonic_ms());
        let patience = slept_from_ms.map_or(Duration::ZERO, |now_ms| self.patience(now_ms));
        self.ring.wait(Some(patience), &mut self.input.ring)?;
        self.shard.mailbox().woken();
        let now = self.clock.now();
        self.measure_lag(now, slept_from_ms.unwrap_or(now.monotonic_ms));
        self.obey_phase(now);
        self.port.poll(&mut self.input.storage);
        self.shard.turn(now, &mut self.input, &mut self.output);
        self.ring.submit(&mut self.output.ring);
        self.unread.extend(self.output.storage.drain(..));
        hand_over(&mut self.unread, &self.port, self.shard.is_serving(), &mut self.input.storage);
        if now.monotonic_ms >= self.published_ms + 1_000 || self.drained_by_ms.is_some() {
            self.publish(now);
        }
        Ok(())
    }

    /// What happens during a turn waits for the next. One long turn may have been a pause of the process: only
    /// two of them are a lag.
    fn measure_lag(&mut self, now: Now, turn_ended_ms: u64) {
        let took_ms = turn_ended_ms.saturating_sub(self.turn_began_ms);
        self.input.lag_ms = took_ms.min(self.turn_took_ms);
        (self.turn_began_ms, self.turn_took_ms) = (now.monotonic_ms, took_ms);
    }

    /// How long it may sleep if nothing happens.
    fn patience(&self, now_ms: u64) -> Duration {
        let deadline_ms = self.shard.next_deadline_ms().unwrap_or(u64::MAX);
        // Metrics want to be told about once a second, also when nobody comes.
        Duration::from_millis(deadline_ms.saturating_sub(now_ms).min(1_000))
    }

    fn obey_phase(&mut self, now: Now) {
        if self.phase.get() == Phase::Serving || self.drained_by_ms.is_some() {
            return;
        }
        if let Some(listener) = self.listener.take() {
            self.ring.stop_listening(listener);
        }
        self.shard.drain(now, self.drain_ms);
        self.drained_by_ms = Some(now.monotonic_ms + u64::from(self.drain_ms) + DRAIN_GRACE_MS);
    }

    fn publish(&mut self, now: Now) {
        self.published_ms = now.monotonic_ms;
        let is_late = self.drained_by_ms.is_some_and(|by_ms| by_ms <= now.monotonic_ms);
        let mut published = self.published.lock().expect("nobody panics while holding it");
        published.shard.clone_from(self.shard.counters());
        published.chat = self.shard.chat().counters();
        published.sizes.clear();
        published.sizes.extend(self.shard.chat().sizes());
        published.mail = self.shard.mailbox().counters();
        published.ring = self.ring.counters();
        #[cfg(feature = "count-allocations")]
        {
            published.allocations = crate::allocations::of_this_thread();
        }
        published.connections = self.shard.connections();
        (published.connection_bytes, published.queue_bytes) = self.shard.memory_bytes();
        published.is_serving = self.listener.is_some();
        published.is_drained = self.shard.is_drained() || is_late;
        published.is_fenced = self.shard.is_fenced();
    }
}

/// Hands requests to storage, in order. What it does not take is answered; but a shard that does not serve yet
/// is not refused a read: that one and what is behind it stay, and are tried again in the next turn.
fn hand_over(requests: &mut VecDeque<StorageRequest>, port: &Port, is_serving: bool, answers: &mut Vec<StorageEvent>) {
    while let Some(request) = requests.pop_front() {
        let Err(returned) = port.submit(request) else { continue };
        if !is_serving && matches!(returned, StorageRequest::Read(..)) {
            requests.push_front(returned);
            return;
        }
        answers.extend(unavailable(returned));
    }
}

/// What a shard is told of a request that storage did not take: its queue is full, or it has stopped.
fn unavailable(request: StorageRequest) -> Option<StorageEvent> {
    match request {
        StorageRequest::Read(ticket, _) => {
            let error = ReadError::Unavailable("too many reads are waiting".to_owned());
            Some(StorageEvent::Read(ticket, Err(error)))
        }
        StorageRequest::Append(group) => {
            let outcomes = vec![Outcome::Refused(Refusal::Unavailable); group.parts.len()];
            Some(StorageEvent::Appended { group, outcomes })
        }
        // Only a store that has stopped refuses these, and then no checkpoint waits for them.
        StorageRequest::Run { .. } | StorageRequest::Serving => None,
    }
}

#[cfg(test)]
mod tests {
    use storage::embedded::{EmbeddedConfig, EmbeddedStore, Started};
    use storage::seam::{Space, Ticket, ViewRead};

    use super::*;

    /// A store whose queue holds so many reads.
    fn store(directory: &std::path::Path, readers: usize, reads_waiting_max: usize) -> Started {
        let config = EmbeddedConfig { readers, reads_waiting_max, ..EmbeddedConfig::new(directory) };
        EmbeddedStore::start(&config, &[0; 4_096], vec![Box::new(|| {})]).expect("starts")
    }

    fn reads(count: Ticket) -> VecDeque<StorageRequest> {
        let read = |ticket| StorageRequest::Read(ticket, ViewRead::Get { space: Space::Heads, key: vec![1] });
        (0..count).map(read).collect()
    }

    /// A journal may hold more conversations than reads may wait. Refused, a recovery would have to give up.
    #[test]
    fn reads_of_a_recovery_wait_for_room() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut store = store(directory.path(), 1, 2);
        let (mut waiting, mut told) = (reads(500), Vec::new());
        while told.len() < 500 {
            hand_over(&mut waiting, &store.ports[0], false, &mut told);
            store.ports[0].poll(&mut told);
            told.retain(|event| matches!(event, StorageEvent::Read(..)));
        }
        assert!(waiting.is_empty());
        let is_answered =
            |event: &StorageEvent| matches!(event, StorageEvent::Read(_, Ok(rows)) if rows.index.is_empty());
        assert!(told.iter().all(is_answered), "each is answered, and none is refused");
    }

    /// Whoever asks while the shard serves can be told to come again, and nothing piles up.
    #[test]
    fn reads_of_a_shard_that_serves_are_refused_when_there_is_no_room() {
        let directory = tempfile::tempdir().expect("a directory");
        // Nobody reads, so there is room for none.
        let store = store(directory.path(), 0, 2);
        let (mut waiting, mut told) = (reads(5), Vec::new());
        hand_over(&mut waiting, &store.ports[0], false, &mut told);
        assert_eq!((waiting.len(), told.len()), (5, 0));
        hand_over(&mut waiting, &store.ports[0], true, &mut told);
        let refused = |event: &StorageEvent| match event {
            StorageEvent::Read(ticket, Err(ReadError::Unavailable(_))) => Some(*ticket),
            _ => None,
        };
        assert_eq!(told.iter().map(refused).collect::<Vec<_>>(), (0..5).map(Some).collect::<Vec<_>>());
        assert!(waiting.is_empty());
    }
}
