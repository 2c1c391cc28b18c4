//! The simulator's store: the real lane, journal and recovery on a [`SimDisk`], and views in ordered maps.
//!
//! One thread, no clock of its own: [`SimStore::step`] is told the time, and everything random comes from
//! the seed. Shards see exactly the events that the embedded store sends, with latencies of its kind.

use std::collections::{BTreeMap, VecDeque};

use crate::days::{DAY_MS, Days};
use crate::embedded::{StartError, check_views};
use crate::journal::{JournalConfig, SyncFailed};
use crate::lane::{Ingest, Lane, LaneConfig, LaneCounts, Outbox, recovered_events};
use crate::recovery::{self, Opened};
use crate::seam::{
    Class, Position, ReadError, Rows, Run, Space, StorageEvent, StorageRequest, StoreFacts, Ticket, ViewRead,
};
use crate::segment::Identity;
use crate::sim_disk::{SimDisk, SimRng};

/// A span of microseconds from which latencies are drawn.
pub type Latency = std::ops::Range<u64>;

/// How the simulated store behaves.
#[derive(Debug, Clone)]
pub struct SimStoreConfig {
    /// The lane; its `planted` bugs work with the feature `planted-bugs`.
    pub lane: LaneConfig,
    /// From write to synced.
    pub commit_us: Latency,
    /// From a read to its answer.
    pub read_us: Latency,
    /// From the last run to durable views.
    pub ingest_us: Latency,
    /// Reads that may wait, of all shards; above it a request is given back.
    pub reads_waiting_max: usize,
    /// One read in so many is answered `Unavailable`; 0: none.
    pub read_fails_one_in: u64,
    /// How long the store runs until the dedup rows that it takes go into another day.
    pub dedup_day_ms: u64,
}

impl Default for SimStoreConfig {
    fn default() -> SimStoreConfig {
        SimStoreConfig {
            lane: LaneConfig {
                journal: JournalConfig { segment_bytes: 192 << 10, spares_max: 1 },
                checkpoint_bytes: 32 << 10,
                checkpoint_interval_ms: 2_000,
                ..LaneConfig::default()
            },
            commit_us: 200..2_000,
            read_us: 20..3_000,
            ingest_us: 1_000..50_000,
            reads_waiting_max: 4096,
            read_fails_one_in: 0,
            dedup_day_ms: DAY_MS,
        }
    }
}

/// How a simulated process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Crash {
    /// The process dies; what it wrote can be read, but may not be durable.
    Kill,
    /// The machine dies; what was not synced is lost or torn.
    PowerCut,
}

/// A read on its way.
#[derive(Debug)]
struct PendingRead {
    answer_at_us: u64,
    shard: u16,
    ticket: Ticket,
    question: ViewRead,
    /// Already read, not yet delivered: an ingestion may pass in between.
    early: Option<Result<Rows, ReadError>>,
}

/// An ingestion on its way.
#[derive(Debug)]
enum Ingesting {
    /// Rows become visible at one moment and durable at a later one.
    Running { visible_at_us: u64, done_at_us: u64, ingest: Ingest },
    /// Durable; answers that were read before are being delivered first.
    Gate { until_us: u64, checkpoint: u64 },
}

/// What runs while the process lives.
#[derive(Debug)]
struct Process {
    lane: Lane<SimDisk>,
    commit_at_us: Option<u64>,
    ingesting: Option<Ingesting>,
    reads: Vec<PendingRead>,
    ports: Vec<VecDeque<StorageEvent>>,
}

/// See the module.
#[derive(Debug)]
pub struct SimStore {
    config: SimStoreConfig,
    rng: SimRng,
    disk: SimDisk,
    views: SimViews,
    process: Option<Process>,
    facts: StoreFacts,
    now_us: u64,
    out: Outbox,
}

impl SimStore {
    /// A new machine with an empty disk; [`SimStore::start`] makes the store.
    pub fn new(seed: u64, config: SimStoreConfig) -> SimStore {
        let mut rng = SimRng::new(seed);
        let disk = SimDisk::new(rng.draw());
        let facts = StoreFacts { generation: 0, epoch: 0, class: Class::D1 };
        let views = SimViews::default();
        SimStore { config, rng, disk, views, process: None, facts, now_us: 0, out: Outbox::new() }
    }

    /// Starts the process; what was recovered waits in the ports. An error is what an operator would see.
    pub fn start(&mut self, now_us: u64, shard_of_slot: &[u16], shards: u16) -> Result<StoreFacts, StartError> {
        assert!(self.process.is_none(), "crashed or closed before");
        self.now_us = now_us;
        let planted = self.config.lane.planted.effective();
        let scan = recovery::scan(&mut self.disk, planted)?;
        if !planted.checkpoint_ahead {
            check_views(scan.as_ref(), (self.views.checkpoint, self.views.position))?;
        }
        let journal_config = self.config.lane.journal.clone();
        let opened = if let Some(found) = scan {
            recovery::resume(&mut self.disk, journal_config, found, planted)?
        } else {
            let identity = Identity { generation: self.rng.draw().max(1), store_key: self.rng.draw().max(1) };
            recovery::create(&mut self.disk, journal_config, identity)?
        };
        let Opened { journal, recovered } = opened;
        self.facts = StoreFacts { generation: journal.identity().generation, epoch: journal.epoch(), class: Class::D1 };
        recovered_events(
            recovered,
            &journal,
            self.views.days.forgotten_until_ms(),
            shard_of_slot,
            shards as usize,
            &mut self.out,
        );
        let lane = Lane::new(self.config.lane.clone(), journal, shards as usize, self.views.checkpoint, now_us / 1000);
        self.views.opened = (now_us / 1000, self.views.days.uptime_ms());
        self.process = Some(Process {
            lane,
            commit_at_us: None,
            ingesting: None,
            reads: Vec::new(),
            ports: (0..shards).map(|_| VecDeque::new()).collect(),
        });
        self.deliver();
        Ok(self.facts.clone())
    }

    /// What the store is.
    pub fn facts(&self) -> StoreFacts {
        self.facts.clone()
    }

    /// The disk, for faults.
    pub fn disk(&mut self) -> &mut SimDisk {
        &mut self.disk
    }

    /// What the lane did since the start.
    pub fn counts(&self) -> LaneCounts {
        self.process.as_ref().map_or_else(LaneCounts::default, |process| process.lane.counts())
    }

    /// A shard asks; given back when the queue is full or nothing runs.
    pub fn submit(&mut self, shard: u16, request: StorageRequest) -> Result<(), StorageRequest> {
        let Some(process) = &mut self.process else { return Err(request) };
        match request {
            StorageRequest::Append(group) => process.lane.submit(shard, group),
            StorageRequest::Serving => process.lane.serving(shard),
            StorageRequest::Run { checkpoint, run } => {
                if let Some(ingest) = process.lane.run(shard, checkpoint, run, self.now_us / 1000) {
                    let done_at_us = self.now_us + draw(&mut self.rng, &self.config.ingest_us);
                    let visible_at_us = self.now_us + self.rng.below(done_at_us - self.now_us + 1);
                    process.ingesting = Some(Ingesting::Running { visible_at_us, done_at_us, ingest });
                }
            }
            StorageRequest::Read(ticket, question) => {
                if process.reads.len() >= self.config.reads_waiting_max {
                    return Err(StorageRequest::Read(ticket, question));
                }
                let answer_at_us = self.now_us + draw(&mut self.rng, &self.config.read_us);
                let one_in = self.config.read_fails_one_in;
                let early = if one_in > 0 && self.rng.one_in(one_in) {
                    Some(Err(ReadError::Unavailable("injected".into())))
                } else {
                    self.rng.one_in(2).then(|| Ok(self.views.read(&question)))
                };
                process.reads.push(PendingRead { answer_at_us, shard, ticket, question, early });
            }
        }
        Ok(())
    }

    /// Appends what a shard is told to `events`.
    pub fn poll(&mut self, shard: u16, events: &mut Vec<StorageEvent>) {
        if let Some(process) = &mut self.process {
            events.extend(process.ports[shard as usize].drain(..));
        }
    }

    /// Whether something waits for a shard.
    pub fn has_events(&self, shard: u16) -> bool {
        self.process.as_ref().is_some_and(|process| !process.ports[shard as usize].is_empty())
    }

    /// When [`SimStore::step`] has something to do, if no shard asks for more. May lie in the past.
    pub fn next_step_us(&self) -> Option<u64> {
        let process = self.process.as_ref()?;
        if process.commit_at_us.is_none() && process.lane.has_work() {
            return Some(self.now_us);
        }
        let ingest = match &process.ingesting {
            Some(Ingesting::Running { visible_at_us, done_at_us, ingest }) => {
                Some(if self.views.shows(ingest) { *done_at_us } else { *visible_at_us })
            }
            Some(Ingesting::Gate { until_us, .. }) => Some(*until_us),
            None => None,
        };
        // The lane's own time counts only between batches.
        let tick = process.lane.next_tick_ms().filter(|_| process.commit_at_us.is_none()).map(|ms| ms * 1000);
        let reads = process.reads.iter().map(|read| read.answer_at_us).min();
        [process.commit_at_us, ingest, tick, reads].into_iter().flatten().min()
    }

    /// Does everything that is due at `now_us`. An error: the process aborts, call [`SimStore::crash`].
    pub fn step(&mut self, now_us: u64) -> Result<(), SyncFailed> {
        self.now_us = self.now_us.max(now_us);
        let Some(process) = &mut self.process else { return Ok(()) };
        answer_reads(process, &self.views, self.now_us, &mut self.out);
        ingest(process, &mut self.views, &self.config, self.now_us);
        if process.commit_at_us.is_some_and(|at| at <= self.now_us) {
            process.commit_at_us = None;
            process.lane.commit(&mut self.disk, &mut self.out)?;
        }
        if process.commit_at_us.is_none() {
            process.lane.tick(self.now_us / 1000, &mut self.disk, &mut self.out)?;
            if process.lane.write(&mut self.disk, &mut self.out)? {
                process.commit_at_us = Some(self.now_us + draw(&mut self.rng, &self.config.commit_us));
            }
        }
        self.deliver();
        Ok(())
    }

    /// Refuses new appends and makes a last checkpoint, as the shards answer; see [`SimStore::is_closed`].
    pub fn close(&mut self) {
        if let Some(process) = &mut self.process {
            process.lane.close();
        }
    }

    /// The last checkpoint is done: the process may end and the next start replays nothing.
    pub fn is_closed(&self) -> bool {
        self.process.as_ref().is_some_and(|process| process.lane.is_closed())
    }

    /// Ends the process at once. What was submitted and not answered has an unknown fate.
    pub fn crash(&mut self, how: Crash) {
        self.process = None;
        self.out.clear();
        match how {
            Crash::Kill => self.disk.kill(),
            Crash::PowerCut => self.disk.power_cut(),
        }
        self.views.crash(&mut self.rng);
    }

    fn deliver(&mut self) {
        if let Some(process) = &mut self.process {
            for (shard, event) in self.out.drain(..) {
                process.ports[shard as usize].push_back(event);
            }
        }
    }
}

fn draw(rng: &mut SimRng, latency: &Latency) -> u64 {
    latency.start + rng.below((latency.end - latency.start).max(1))
}

fn answer_reads(process: &mut Process, views: &SimViews, now_us: u64, out: &mut Outbox) {
    // In the order in which they are due, as several readers would.
    process.reads.sort_by_key(|read| read.answer_at_us);
    let due = process.reads.partition_point(|read| read.answer_at_us <= now_us);
    for read in process.reads.drain(..due) {
        let answer = read.early.unwrap_or_else(|| Ok(views.read(&read.question)));
        out.push((read.shard, StorageEvent::Read(read.ticket, answer)));
    }
}

/// Brings an ingestion forward. `CheckpointDone` may not overtake an answer that was read before it.
fn ingest(process: &mut Process, views: &mut SimViews, config: &SimStoreConfig, now_us: u64) {
    if let Some(Ingesting::Running { visible_at_us, done_at_us, ingest }) = &process.ingesting {
        if *visible_at_us <= now_us && !views.shows(ingest) {
            views.show(ingest, config, now_us / 1000);
        }
        if *done_at_us <= now_us {
            views.make_durable(ingest, config, now_us / 1000);
            let checkpoint = ingest.checkpoint;
            let early = process.reads.iter().filter(|read| read.early.is_some());
            let until_us = early.map(|read| read.answer_at_us).max().unwrap_or(now_us);
            process.ingesting = Some(Ingesting::Gate { until_us, checkpoint });
        }
    }
    if let Some(Ingesting::Gate { until_us, checkpoint }) = process.ingesting
        && until_us <= now_us
    {
        process.ingesting = None;
        process.lane.ingested(checkpoint, views.days.forgotten_until_ms(), now_us / 1000);
    }
}

/// What a row was before an ingestion that may be lost.
type Undo = (Space, Vec<u8>, Option<Vec<u8>>);

/// An ingestion that is visible and not durable.
#[derive(Debug)]
struct Visible {
    checkpoint: u64,
    undo: Vec<Undo>,
    days: Days,
}

/// Ordered maps that can fall back to before an ingestion that was not durable.
#[derive(Debug, Default)]
struct SimViews {
    maps: [BTreeMap<Vec<u8>, Vec<u8>>; Space::ALL.len()],
    checkpoint: u64,
    position: Position,
    visible: Option<Visible>,
    /// Days of dedup rows, and which of them each row is in.
    days: Days,
    day_of: BTreeMap<Vec<u8>, u32>,
    /// When the process began, and the uptime then.
    opened: (u64, u64),
}

impl SimViews {
    fn shows(&self, ingest: &Ingest) -> bool {
        self.visible.as_ref().is_some_and(|visible| visible.checkpoint == ingest.checkpoint)
    }

    fn show(&mut self, ingest: &Ingest, config: &SimStoreConfig, now_ms: u64) {
        self.drop_forgotten();
        let mut undo = Vec::new();
        let rows = || ingest.runs.iter().flat_map(Run::rows);
        let times = rows().filter(|(space, ..)| *space == Space::Dedup).map(|(.., value)| time_of(value));
        let times = times.fold(None, |all: Option<(u64, u64)>, time| {
            Some(all.map_or((time, time), |(low, high)| (low.min(time), high.max(time))))
        });
        let (opened_ms, uptime_ms) = self.opened;
        let mut days = self.days.clone();
        let day = days.checkpoint(uptime_ms + now_ms - opened_ms, config.dedup_day_ms, times);
        for (space, key, value) in rows() {
            let before = self.maps[space as usize].insert(key.to_vec(), value.to_vec());
            undo.push((space, key.to_vec(), before));
            if let (Space::Dedup, Some(day)) = (space, day) {
                self.day_of.insert(key.to_vec(), day);
            }
        }
        if let (Some((_, newest_ms)), true) = (times, config.lane.planted.effective().forgets_by_records) {
            let oldest_ms = newest_ms.saturating_sub(7 * DAY_MS);
            self.maps[Space::Dedup as usize].retain(|_, value| time_of(value) >= oldest_ms);
        }
        self.visible = Some(Visible { checkpoint: ingest.checkpoint, undo, days });
    }

    /// Only with the next checkpoint: until then every shard has been told.
    fn drop_forgotten(&mut self) {
        let (days, rows) = (&self.days, &mut self.maps[Space::Dedup as usize]);
        self.day_of.retain(|key, day| {
            let gone = days.is_forgotten(*day);
            if gone {
                rows.remove(key);
            }
            !gone
        });
    }

    fn make_durable(&mut self, ingest: &Ingest, config: &SimStoreConfig, now_ms: u64) {
        if !self.shows(ingest) {
            self.show(ingest, config, now_ms);
        }
        self.days = self.visible.take().expect("just shown").days;
        self.checkpoint = ingest.checkpoint;
        self.position = ingest.position;
    }

    /// Rows of an unfinished ingestion are lost or kept, map by map; its mark is lost.
    fn crash(&mut self, rng: &mut SimRng) {
        let Some(Visible { undo, .. }) = self.visible.take() else { return };
        let lost: Vec<bool> = Space::ALL.iter().map(|_| rng.one_in(2)).collect();
        for (space, key, before) in undo.into_iter().rev().filter(|(space, ..)| lost[*space as usize]) {
            match before {
                Some(value) => self.maps[space as usize].insert(key, value),
                None => self.maps[space as usize].remove(&key),
            };
        }
    }

    fn read(&self, question: &ViewRead) -> Rows {
        let mut rows = Rows::default();
        match question {
            ViewRead::Get { space, key } => {
                if let Some(value) = self.maps[*space as usize].get(key) {
                    rows.push(key, value);
                }
            }
            ViewRead::Range { space, start, end, rows_max, bytes_max, reverse } => {
                if start >= end {
                    return rows;
                }
                let found = self.maps[*space as usize].range(start.clone()..end.clone());
                let limits = (*rows_max, *bytes_max);
                if *reverse { fill(&mut rows, found.rev(), limits) } else { fill(&mut rows, found, limits) }
            }
        }
        rows
    }
}

/// The time of its record, with which a dedup row begins.
fn time_of(value: &[u8]) -> u64 {
    u64::from_le_bytes(*value.first_chunk().expect("dedup rows begin with their time"))
}

/// Takes rows until a limit is reached; the row that reaches the limit of bytes is the last.
fn fill<'a>(
    rows: &mut Rows,
    found: impl Iterator<Item = (&'a Vec<u8>, &'a Vec<u8>)>,
    (rows_max, bytes_max): (u32, u32),
) {
    let mut bytes = 0;
    for (key, value) in found {
        if rows.index.len() >= rows_max as usize || bytes >= bytes_max as usize {
            rows.more = true;
            return;
        }
        bytes += value.len();
        rows.push(key, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::{self, Backend, End, Shards, slot_map};
    use crate::planted::Planted;

    struct Simulated {
        store: SimStore,
        now_us: u64,
    }

    impl Simulated {
        fn new(seed: u64, planted: Planted) -> Simulated {
            let mut config = SimStoreConfig::default();
            config.lane.planted = planted;
            config.lane.checkpoint_bytes = 16 << 10;
            Simulated { store: SimStore::new(seed, config), now_us: 0 }
        }

        fn step(&mut self) {
            // As a simulator's clock does: to the next thing that is due.
            self.now_us = self.store.next_step_us().unwrap_or(self.now_us).max(self.now_us);
            self.store.step(self.now_us).expect("no sync fails here");
        }
    }

    impl Backend for Simulated {
        fn facts(&self) -> StoreFacts {
            self.store.facts()
        }

        fn submit(&mut self, shard: u16, request: StorageRequest) {
            self.store.submit(shard, request).expect("queues have room");
        }

        fn poll(&mut self, shard: u16, events: &mut Vec<StorageEvent>) {
            self.step();
            self.store.poll(shard, events);
        }

        fn restart(&mut self, end: End, shards: u16, driver: &mut Shards) {
            if end == End::Graceful {
                self.store.close();
                while !self.store.is_closed() {
                    self.step();
                    let mut events = Vec::new();
                    for shard in 0..driver.count() {
                        self.store.poll(shard, &mut events);
                        for event in events.drain(..) {
                            if let Some(answer) = driver.on_event(shard, event) {
                                self.store.submit(shard, answer).expect("queues have room");
                            }
                        }
                    }
                }
            }
            self.store.crash(if end == End::Kill { Crash::Kill } else { Crash::PowerCut });
            self.store.start(self.now_us, &slot_map(shards), shards).expect("starts");
        }
    }

    fn run_suite(seed: u64, planted: Planted) {
        let mut part = 0;
        conformance::run(seed, || {
            part += 1;
            Simulated::new(seed * 100 + part, planted)
        });
    }

    #[test]
    fn the_simulated_store_conforms() {
        let from = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok());
        for seed in from.map_or(0..10, |seed: u64| seed..seed + 1) {
            println!("replay with SEED={seed}");
            run_suite(seed, Planted::NONE);
        }
    }

    #[test]
    fn the_simulated_store_forgets_only_what_it_says() {
        conformance::run_forgetting(7, || {
            let mut simulated = Simulated::new(7, Planted::NONE);
            simulated.store.config.dedup_day_ms = 50;
            simulated
        });
    }

    /// The suite is worth having because it sees these.
    #[cfg(feature = "planted-bugs")]
    #[test]
    fn the_suite_finds_each_planted_bug() {
        for planted in [
            Planted { serve_unsynced: true, ..Planted::NONE },
            Planted { stale_tail: true, ..Planted::NONE },
            Planted { checkpoint_ahead: true, ..Planted::NONE },
        ] {
            let found = (0..50).find(|&seed| std::panic::catch_unwind(|| run_suite(seed, planted)).is_err());
            println!("{planted:?} found with seed {found:?}");
            assert!(found.is_some(), "{planted:?} was not found");
        }
    }
}
