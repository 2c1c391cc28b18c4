//! The embedded backend: the journal on its lane, the views behind it, and a port for each shard.
//!
//! Threads: one lane (journal, checkpoints), one writer of views, a few readers of views. Shards talk to
//! them only through their [`Port`].

mod lane_thread;
mod lock;
#[cfg(test)]
mod tests;
mod views_threads;

use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TrySendError, bounded, unbounded};

use crate::counters::StoreCounters;
use crate::disk::DiskError;
use crate::lane::{Ingest, LaneConfig};
use crate::recovery::{OpenError, Scan};
use crate::seam::{AppendGroup, Position, Run, StorageEvent, StorageRequest, StoreFacts, Ticket, ViewRead};
use crate::segment::SLOTS;
use crate::views::{Views, ViewsConfig, ViewsError};

pub(crate) use lock::DirectoryLock;

/// How the embedded store is started.
#[derive(Debug, Clone)]
pub struct EmbeddedConfig {
    /// Where it lives; made if it does not exist.
    pub directory: PathBuf,
    /// The lane, the journal and its checkpoints.
    pub lane: LaneConfig,
    /// The views. `expect_existing` is set by the store itself.
    pub views: ViewsConfig,
    /// Threads that read views.
    pub readers: usize,
    /// Reads that may wait, of all shards; above it a port takes no more.
    pub reads_waiting_max: usize,
}

impl EmbeddedConfig {
    /// Defaults, in this directory.
    pub fn new(directory: &Path) -> EmbeddedConfig {
        EmbeddedConfig {
            directory: directory.to_owned(),
            lane: LaneConfig::default(),
            views: ViewsConfig::default(),
            readers: 2,
            reads_waiting_max: 4096,
        }
    }
}

/// Why the store does not start. Each says what it means and what to do.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The directory can not be made or written.
    #[error("the data directory {path} can not be used: {error}")]
    Directory {
        /// The directory.
        path: String,
        /// What the system said.
        error: std::io::Error,
    },
    /// Another process has it.
    #[error("the data directory {path} is in use by process {pid}; stop that one first, or use another directory")]
    InUse {
        /// The directory.
        path: String,
        /// The other process.
        pid: String,
    },
    /// The lane's thread or ring can not be set up.
    #[error("{0}")]
    Lane(DiskError),
    /// The journal is not as it should be.
    #[error(transparent)]
    Journal(#[from] OpenError),
    /// The views are not as they should be.
    #[error(transparent)]
    Views(#[from] ViewsError),
    /// The views lack what the journal no longer has.
    #[error(
        "views are missing or older than the journal's checkpoint: they hold checkpoint {views}, the journal needs \
         {journal}; restore the directory from a backup (`ringway storage restore`)"
    )]
    ViewsOld {
        /// Checkpoint of the views.
        views: u64,
        /// Checkpoint of the journal.
        journal: u64,
    },
    /// The journal lacks what the views already have.
    #[error(
        "the journal ends before the views: its last part or the whole of it is missing; \
         restore the directory from a backup (`ringway storage restore`)"
    )]
    JournalOld,
    /// The map names a shard that has no waker.
    #[error("the map from slots to shards names shard {0}, which does not exist")]
    BadMap(u16),
}

/// Wakes a shard that may sleep; called after events were put into its port.
pub type Waker = Box<dyn Fn() + Send + Sync>;

/// A store that runs.
#[derive(Debug)]
pub struct Started {
    /// What the shards are told.
    pub facts: StoreFacts,
    /// One per shard, in order.
    pub ports: Vec<Port>,
    /// The handle that stops it.
    pub store: EmbeddedStore,
}

/// A shard's end of the store.
#[derive(Debug)]
pub struct Port {
    shard: u16,
    lane: Sender<LaneMessage>,
    reads: Sender<ReadJob>,
    events: Receiver<StorageEvent>,
}

impl Port {
    /// Hands a request over, or gives it back when the queue is full or the store has stopped.
    ///
    /// With at most one group in flight, only reads can find their queue full.
    pub fn submit(&self, request: StorageRequest) -> Result<(), StorageRequest> {
        let message = match request {
            StorageRequest::Read(ticket, read) => return self.submit_read(ticket, read),
            StorageRequest::Append(group) => LaneMessage::Append(self.shard, group),
            StorageRequest::Run { checkpoint, run } => LaneMessage::Run(self.shard, checkpoint, run),
            StorageRequest::Serving => LaneMessage::Serving(self.shard),
        };
        self.lane.try_send(message).map_err(|error| match error.into_inner() {
            LaneMessage::Append(_, group) => StorageRequest::Append(group),
            LaneMessage::Run(_, checkpoint, run) => StorageRequest::Run { checkpoint, run },
            _ => StorageRequest::Serving,
        })
    }

    /// Appends the events that wait to `events`.
    pub fn poll(&mut self, events: &mut Vec<StorageEvent>) {
        events.extend(self.events.try_iter());
    }

    /// Whether events wait; for a shard that is about to sleep.
    pub fn has_events(&self) -> bool {
        !self.events.is_empty()
    }

    fn submit_read(&self, ticket: Ticket, read: ViewRead) -> Result<(), StorageRequest> {
        self.reads.try_send(ReadJob::Read(self.shard, ticket, read)).map_err(|error| match error {
            TrySendError::Full(job) | TrySendError::Disconnected(job) => match job {
                ReadJob::Read(_, ticket, read) => StorageRequest::Read(ticket, read),
                ReadJob::Stop => unreachable!("a port sends reads"),
            },
        })
    }
}

/// What the lane's thread is told.
#[derive(Debug)]
enum LaneMessage {
    Append(u16, AppendGroup),
    Run(u16, u64, Run),
    Serving(u16),
    /// The views have made a checkpoint durable.
    Ingested(u64),
    /// Make a last checkpoint, say so, and end.
    Close,
    /// End now, as after a crash.
    Stop,
}

#[derive(Debug)]
enum ReadJob {
    Read(u16, Ticket, ViewRead),
    Stop,
}

/// What all threads of a store share.
struct Shared {
    events: Vec<Sender<StorageEvent>>,
    wakers: Vec<Waker>,
    counters: Arc<StoreCounters>,
    /// Held by a reader from before it reads until its answer is on its way; see [`views_threads`].
    reads: RwLock<()>,
    started: Instant,
}

impl Shared {
    fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    fn send(&self, shard: u16, event: StorageEvent) {
        // A shard that is gone needs no answer.
        let _ = self.events[shard as usize].send(event);
    }

    fn wake(&self, shard: u16) {
        (self.wakers[shard as usize])();
    }
}

/// The handle of a running store. Dropping it stops the threads without a last checkpoint.
pub struct EmbeddedStore {
    shared: Arc<Shared>,
    views: Arc<Views>,
    lane: Sender<LaneMessage>,
    reads: Sender<ReadJob>,
    readers: usize,
    /// Each thread sends when it ends: true from a lane whose last checkpoint covers everything.
    ended: Receiver<Ended>,
    running: usize,
    stall_ms: u64,
    _lock: DirectoryLock,
}

/// A thread of the store ended.
enum Ended {
    Lane { clean: bool },
    Views,
}

impl std::fmt::Debug for EmbeddedStore {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("EmbeddedStore").field("threads", &self.running).finish_non_exhaustive()
    }
}

impl EmbeddedStore {
    /// Opens or makes the store and starts its threads. What was recovered waits in the ports.
    ///
    /// `shard_of_slot` has an entry for each of the 4,096 slots and may differ from start to start.
    pub fn start(config: &EmbeddedConfig, shard_of_slot: &[u16], wakers: Vec<Waker>) -> Result<Started, StartError> {
        assert_eq!(shard_of_slot.len(), SLOTS, "every slot has a shard");
        let shards = wakers.len();
        if let Some(&shard) = shard_of_slot.iter().find(|&&shard| shard as usize >= shards) {
            return Err(StartError::BadMap(shard));
        }
        let journal_directory = make_directories(&config.directory)?;
        let lock = DirectoryLock::take(&config.directory)?;
        let (senders, receivers): (Vec<_>, Vec<_>) = (0..shards).map(|_| unbounded()).unzip();
        let shared = Arc::new(Shared {
            events: senders,
            wakers,
            counters: Arc::new(StoreCounters::default()),
            reads: RwLock::new(()),
            started: Instant::now(),
        });
        // A shard has one group, one run and one `Serving` in flight at most.
        let (lane, lane_messages) = bounded(4 * shards + 16);
        let (reads, read_jobs) = bounded(config.reads_waiting_max);
        let (ended_sender, ended) = unbounded();
        let (ingests, ingest_jobs) = unbounded::<Ingest>();
        let opened = lane_thread::spawn(lane_thread::Setup {
            config: config.clone(),
            journal_directory,
            shard_of_slot: shard_of_slot.to_vec(),
            shared: Arc::clone(&shared),
            messages: lane_messages,
            ingests,
            ended: ended_sender.clone(),
        })?;
        let views = opened.views;
        let started = views_threads::spawn(
            &shared,
            &views,
            config.readers,
            &views_threads::Channels { ingest_jobs, read_jobs, lane: lane.clone(), ended: ended_sender },
        );
        let ports = receivers.into_iter().enumerate();
        let ports =
            ports.map(|(shard, events)| Port { shard: shard as u16, lane: lane.clone(), reads: reads.clone(), events });
        let ports = ports.collect();
        let store = EmbeddedStore {
            shared,
            views,
            lane,
            reads,
            readers: config.readers,
            ended,
            running: started + 1,
            stall_ms: config.lane.views_stall_ms,
            _lock: lock,
        };
        Ok(Started { facts: opened.facts, ports, store })
    }

    /// What the store counts.
    pub fn counters(&self) -> Arc<StoreCounters> {
        Arc::clone(&self.shared.counters)
    }

    /// Why the store is not healthy, in words, if it is not.
    pub fn trouble(&self) -> Option<String> {
        let since = self.shared.counters.checkpoint_since_ms.get();
        let waited = self.shared.now_ms().saturating_sub(since.saturating_sub(1));
        (since > 0 && waited > self.stall_ms).then(|| format!("views stalled for {} s", waited / 1000))
    }

    /// Refuses new appends, makes a last checkpoint and stops; the shards must go on answering `Freeze`
    /// meanwhile. True: the next start has nothing to replay.
    pub fn shutdown(mut self, wait_max: Duration) -> bool {
        let deadline = Instant::now() + wait_max;
        let _ = self.lane.send_timeout(LaneMessage::Close, wait_max);
        let clean = loop {
            match self.ended.recv_deadline(deadline) {
                Ok(Ended::Lane { clean }) => {
                    self.running -= 1;
                    break clean;
                }
                Ok(Ended::Views) => self.running -= 1,
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break false,
            }
        };
        self.stop();
        clean
    }

    /// Stops at once, without a checkpoint, as a crash would.
    pub fn abandon(mut self) {
        self.stop();
    }

    /// Ends all threads; waits for them, but not for ever: fjall may hang.
    fn stop(&mut self) {
        const WAIT_MAX: Duration = Duration::from_secs(15);
        let deadline = Instant::now() + WAIT_MAX;
        let _ = self.lane.send_timeout(LaneMessage::Stop, WAIT_MAX);
        for _ in 0..self.readers {
            let _ = self.reads.send_timeout(ReadJob::Stop, WAIT_MAX);
        }
        while self.running > 0 {
            if self.ended.recv_deadline(deadline).is_err() {
                tracing::error!(threads = self.running, "the store's threads do not end");
                return;
            }
            self.running -= 1;
        }
    }

    /// The views, for `ringway storage check`.
    pub fn views(&self) -> &Views {
        &self.views
    }
}

impl Drop for EmbeddedStore {
    fn drop(&mut self) {
        if self.running > 0 {
            self.stop();
        }
    }
}

/// `DATA` and `DATA/journal`, with their names synced.
fn make_directories(data: &Path) -> Result<PathBuf, StartError> {
    let journal = data.join("journal");
    let made = std::fs::create_dir_all(&journal).and_then(|()| {
        std::fs::File::open(data)?.sync_all()?;
        let parent = data.parent().filter(|parent| !parent.as_os_str().is_empty());
        std::fs::File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
    });
    made.map_err(|error| StartError::Directory { path: data.display().to_string(), error })?;
    Ok(journal)
}

/// Whether journal and views belong together. Views may be ahead by what a crash kept out of the journal's
/// record; never behind it, since the journal below it is gone; and never beyond its end.
pub(crate) fn check_views(journal: Option<&Scan>, (checkpoint, position): (u64, Position)) -> Result<(), StartError> {
    let recorded = journal.map_or(0, |scan| scan.checkpoint().number);
    if checkpoint < recorded {
        return Err(StartError::ViewsOld { views: checkpoint, journal: recorded });
    }
    if checkpoint > 0 && position > journal.map_or(0, Scan::tail) {
        return Err(StartError::JournalOld);
    }
    Ok(())
}
