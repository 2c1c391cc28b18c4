//! The embedded backend: the journal on its lane, the views behind it, and a port for each shard.
//!
//! Threads: one lane (journal, checkpoints), one writer of views, a few readers of views. Shards talk to
//! them only through their [`Port`].

mod lane_thread;
mod lock;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::unbounded;

use crate::counters::StoreCounters;
use crate::disk::DiskError;
use crate::lane::{Ingest, LaneConfig};
use crate::port::{Channels, Threads};
pub use crate::port::{Port, Waker};
use crate::recovery::{OpenError, Scan};
use crate::seam::{Position, StoreFacts};
use crate::segment::SLOTS;
use crate::views::{Views, ViewsConfig, ViewsError};
use crate::views_threads;
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

/// The handle of a running store. Dropping it stops the threads without a last checkpoint.
pub struct EmbeddedStore {
    threads: Threads,
    views: Arc<Views>,
    _lock: DirectoryLock,
}

impl std::fmt::Debug for EmbeddedStore {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("EmbeddedStore").field("threads", &self.threads).finish_non_exhaustive()
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
        let Channels { shared, ports, lane, lane_messages, reads, read_jobs } =
            Channels::new(wakers, config.reads_waiting_max);
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
        let readers = vec![Arc::clone(&views); config.readers];
        let channels = views_threads::Channels { ingest_jobs, read_jobs, lane: lane.clone(), ended: ended_sender };
        let started = views_threads::spawn(&shared, Arc::clone(&views), readers, channels);
        let threads = Threads {
            shared,
            lane,
            reads,
            readers: config.readers,
            ended,
            running: started + 1,
            stall_ms: config.lane.views_stall_ms,
        };
        let store = EmbeddedStore { threads, views, _lock: lock };
        Ok(Started { facts: opened.facts, ports, store })
    }

    /// What the store counts.
    pub fn counters(&self) -> Arc<StoreCounters> {
        self.threads.counters()
    }

    /// Why the store is not healthy, in words, if it is not.
    pub fn trouble(&self) -> Option<String> {
        self.threads.trouble()
    }

    /// Refuses new appends, makes a last checkpoint and stops; the shards must go on answering `Freeze`
    /// meanwhile. True: the next start has nothing to replay.
    pub fn shutdown(mut self, wait_max: Duration) -> bool {
        self.threads.shutdown(wait_max)
    }

    /// Stops at once, without a checkpoint, as a crash would.
    pub fn abandon(mut self) {
        self.threads.stop();
    }

    /// The views, for `ringway storage check`.
    pub fn views(&self) -> &Views {
        &self.views
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
