//! The loop of one shard: its thread sleeps in its own ring and nowhere else.
//!
//! The driver decides nothing. It reads the clock, hands the shard what happened, and hands the ring
//! what is to be done.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant, SystemTime};

use ring::{Doorbell, EventBatch, KernelRing, ListenerId, Ops, RingConfig, RingError};

use crate::now::Now;
use crate::shard::{Shard, ShardSettings};

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
pub struct Clock {
    started: Instant,
}

impl Clock {
    /// Begins at a second, so that "long ago" can be said.
    pub fn start() -> Self {
        Self { started: Instant::now().checked_sub(Duration::from_secs(1)).unwrap_or_else(Instant::now) }
    }

    /// The time.
    pub fn now(&self) -> Now {
        let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Now { monotonic_ms: self.started.elapsed().as_millis() as u64, wall_ms: wall.as_millis() as u64 }
    }
}

/// What one shard's thread needs to begin.
pub struct DriverSettings {
    /// Limits of its ring.
    pub ring: RingConfig,
    /// Limits of its shard.
    pub shard: ShardSettings,
    /// Where it listens, beside the other shards.
    pub listen: SocketAddr,
    /// Wakes it.
    pub doorbell: Doorbell,
    /// Tells it when to end.
    pub phase: Arc<PhaseCell>,
    /// What it says about itself, about once a second.
    pub published: Arc<std::sync::Mutex<Published>>,
}

/// What a shard has said about itself, for metrics.
#[derive(Debug, Clone, Default)]
pub struct Published {
    /// The shard's own counts.
    pub shard: crate::counters::ShardCounters,
    /// Its ring's.
    pub ring: ring::RingCounters,
    /// Connections held.
    pub connections: u32,
    /// Bytes of memory held for them.
    pub memory_bytes: usize,
}

/// A shard with all that it needs, on its own thread.
pub struct Driver {
    ring: KernelRing,
    shard: Shard,
    listener: Option<ListenerId>,
    clock: Clock,
    settings: DriverSettings,
    published_ms: u64,
}

impl Driver {
    /// Makes the ring and listens. To be called on the thread that will [`Self::run`].
    pub fn new(settings: DriverSettings) -> Result<Self, RingError> {
        let mut ring = KernelRing::new(&settings.ring, settings.doorbell.clone())?;
        let (listener, _) = ring.listen(settings.listen)?;
        let clock = Clock::start();
        let shard = Shard::new(settings.shard.clone(), clock.now());
        Ok(Self { ring, shard, listener: Some(listener), clock, settings, published_ms: 0 })
    }

    /// Serves until the phase says to stop.
    pub fn run(mut self) -> Result<(), RingError> {
        let mut events = EventBatch::with_capacity(4_096, 1 << 20);
        let mut ops = Ops::with_capacity(4_096);
        while self.settings.phase.get() != Phase::Stopping {
            self.ring.wait(Some(self.patience()), &mut events)?;
            let now = self.clock.now();
            self.obey_phase();
            self.shard.turn(now, &mut events, &mut ops);
            self.ring.submit(&mut ops);
            self.publish(now);
        }
        Ok(())
    }

    /// How long it may sleep if nothing happens.
    fn patience(&self) -> Duration {
        let now_ms = self.clock.now().monotonic_ms;
        let deadline_ms = self.shard.next_deadline_ms().unwrap_or(u64::MAX);
        // Metrics want to be told about once a second, also when nobody comes.
        Duration::from_millis(deadline_ms.saturating_sub(now_ms).min(1_000))
    }

    fn obey_phase(&mut self) {
        if self.settings.phase.get() >= Phase::Draining
            && let Some(listener) = self.listener.take()
        {
            self.ring.stop_listening(listener);
        }
    }

    fn publish(&mut self, now: Now) {
        if now.monotonic_ms < self.published_ms + 1_000 {
            return;
        }
        self.published_ms = now.monotonic_ms;
        let mut published = self.settings.published.lock().expect("nobody panics while holding it");
        published.shard.clone_from(self.shard.counters());
        published.ring = self.ring.counters();
        published.connections = self.shard.connections();
        published.memory_bytes = self.shard.memory_bytes();
    }
}
