//! The threads that touch the views: one that brings them forward and a few that read.
//!
//! A reader holds the gate (`Shared::reads`) from before it reads until its answer is in the shard's
//! stream. The writer passes the gate between the end of an ingestion and the lane's `CheckpointDone`. So
//! an answer from before the ingestion can not arrive after the shard has dropped its overlay.

use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};

use crate::lane::Ingest;
use crate::port::{Ended, LaneMessage, ReadJob, Shared};
use crate::scheduling;
use crate::seam::{ReadError, Rows, StorageEvent, ViewRead};
use crate::views::Views;

/// First pause after a failed ingestion; it doubles up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// What brings views forward.
pub(crate) trait ViewsWriter {
    /// What one checkpoint hands over.
    type Job;

    /// The number of the checkpoint that `job` belongs to.
    fn checkpoint_of(job: &Self::Job) -> u64;
    /// Makes it durable, at leisure while it is not `urgent`; on an error the same job comes again. Returns the
    /// time up to which dedup rows may be forgotten when all shards know of it.
    fn ingest(&mut self, job: &Self::Job, urgent: &dyn Fn() -> bool) -> Result<u64, String>;
}

/// What answers questions to views.
pub(crate) trait ViewsReader {
    /// An answer from what is durable.
    fn read(&mut self, question: &ViewRead) -> Result<Rows, ReadError>;
}

impl ViewsWriter for Arc<Views> {
    type Job = Ingest;

    fn checkpoint_of(job: &Ingest) -> u64 {
        job.checkpoint
    }

    fn ingest(&mut self, job: &Ingest, urgent: &dyn Fn() -> bool) -> Result<u64, String> {
        self.ingest_paced(job.checkpoint, job.position, &job.runs, urgent).map_err(|error| error.to_string())?;
        Ok(self.forgotten_until_ms())
    }
}

impl ViewsReader for Arc<Views> {
    fn read(&mut self, question: &ViewRead) -> Result<Rows, ReadError> {
        Views::read(self, question)
    }
}

pub(crate) struct Channels<J> {
    pub(crate) ingest_jobs: Receiver<J>,
    pub(crate) read_jobs: Receiver<ReadJob>,
    pub(crate) lane: Sender<LaneMessage>,
    pub(crate) ended: Sender<Ended>,
}

/// Starts the threads; returns how many.
pub(crate) fn spawn<W, R>(shared: &Arc<Shared>, writer: W, readers: Vec<R>, channels: Channels<W::Job>) -> usize
where
    W: ViewsWriter + Send + 'static,
    W::Job: Send + 'static,
    R: ViewsReader + Send + 'static,
{
    let Channels { ingest_jobs, read_jobs, lane, ended } = channels;
    let started = readers.len() + 1;
    for reader in readers {
        let (shared, jobs) = (Arc::clone(shared), read_jobs.clone());
        start("views-reader", ended.clone(), move || read(&shared, reader, &jobs));
    }
    let shared = Arc::clone(shared);
    start("views-writer", ended, move || {
        scheduling::work_in_background();
        write(&shared, writer, &ingest_jobs, &lane);
    });
    started
}

fn start(name: &str, ended: Sender<Ended>, body: impl FnOnce() + Send + 'static) {
    let thread = std::thread::Builder::new().name(name.to_owned());
    let spawned = thread.spawn(move || {
        body();
        let _ = ended.send(Ended::Views);
    });
    spawned.expect("the system gives a starting process a few threads");
}

/// Ends when the lane has.
fn write<W: ViewsWriter>(shared: &Shared, mut views: W, jobs: &Receiver<W::Job>, lane: &Sender<LaneMessage>) {
    let urgent = || shared.urgent.load(Ordering::Relaxed);
    'jobs: for job in jobs {
        let mut pause = RETRY_MIN;
        let checkpoint = W::checkpoint_of(&job);
        let forgotten_until_ms = loop {
            let error = match views.ingest(&job, &urgent) {
                Ok(forgotten_until_ms) => break forgotten_until_ms,
                Err(error) => error,
            };
            shared.counters.ingest_failures.add(1);
            tracing::warn!(%error, checkpoint, retry_ms = pause.as_millis() as u64, "views not ingested");
            // The lane is gone when nothing can come any more; nobody waits for this checkpoint then.
            if stopped_during(pause, jobs) {
                break 'jobs;
            }
            pause = (pause * 2).min(RETRY_MAX);
        };
        // The shards want their memory back when they hear of it.
        drop(job);
        drop(shared.reads.write().unwrap_or_else(PoisonError::into_inner));
        if lane.send(LaneMessage::Ingested { checkpoint, forgotten_until_ms }).is_err() {
            break;
        }
    }
}

/// Waits; true if the lane ended meanwhile. One checkpoint is on its way, so no other job can come.
fn stopped_during<J>(pause: Duration, jobs: &Receiver<J>) -> bool {
    matches!(jobs.recv_timeout(pause), Err(crossbeam_channel::RecvTimeoutError::Disconnected))
}

fn read(shared: &Shared, mut views: impl ViewsReader, jobs: &Receiver<ReadJob>) {
    for job in jobs {
        let ReadJob::Read(shard, ticket, question) = job else { return };
        {
            let _gate = shared.reads.read().unwrap_or_else(PoisonError::into_inner);
            let answer = views.read(&question);
            shared.counters.reads.add(1);
            if matches!(answer, Err(ReadError::Damaged(_))) {
                shared.counters.reads_damaged.add(1);
            }
            shared.send(shard, StorageEvent::Read(ticket, answer));
        }
        shared.wake(shard);
    }
}
