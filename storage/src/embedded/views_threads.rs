//! The threads that touch the views: one that brings them forward and a few that read.
//!
//! A reader holds the gate (`Shared::reads`) from before it reads until its answer is in the shard's
//! stream. The writer passes the gate between the end of an ingestion and the lane's `CheckpointDone`. So
//! an answer from before the ingestion can not arrive after the shard has dropped its overlay.

use std::sync::Arc;
use std::sync::PoisonError;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crossbeam_channel::{Receiver, Sender};

use super::{Ended, LaneMessage, ReadJob, Shared};
use crate::lane::Ingest;
use crate::seam::{ReadError, StorageEvent};
use crate::views::Views;

/// First pause after a failed ingestion; it doubles up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);

pub(super) struct Channels {
    pub(super) ingest_jobs: Receiver<Ingest>,
    pub(super) read_jobs: Receiver<ReadJob>,
    pub(super) lane: Sender<LaneMessage>,
    pub(super) ended: Sender<Ended>,
}

/// Starts the threads; returns how many.
pub(super) fn spawn(shared: &Arc<Shared>, views: &Arc<Views>, readers: usize, channels: &Channels) -> usize {
    let writer = {
        let (shared, views) = (Arc::clone(shared), Arc::clone(views));
        let (jobs, lane) = (channels.ingest_jobs.clone(), channels.lane.clone());
        move || write(&shared, &views, &jobs, &lane)
    };
    start("views-writer", channels.ended.clone(), writer);
    for _ in 0..readers {
        let (shared, views) = (Arc::clone(shared), Arc::clone(views));
        let jobs = channels.read_jobs.clone();
        start("views-reader", channels.ended.clone(), move || read(&shared, &views, &jobs));
    }
    readers + 1
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
fn write(shared: &Shared, views: &Views, jobs: &Receiver<Ingest>, lane: &Sender<LaneMessage>) {
    'jobs: for job in jobs {
        let mut pause = RETRY_MIN;
        while let Err(error) = views.ingest(job.checkpoint, job.position, &job.runs) {
            shared.counters.ingest_failures.add(1);
            tracing::warn!(%error, checkpoint = job.checkpoint, retry_ms = pause.as_millis() as u64, "views not ingested");
            // The lane is gone when nothing can come any more; nobody waits for this checkpoint then.
            if stopped_during(pause, jobs) {
                break 'jobs;
            }
            pause = (pause * 2).min(RETRY_MAX);
        }
        drop(shared.reads.write().unwrap_or_else(PoisonError::into_inner));
        if lane.send(LaneMessage::Ingested(job.checkpoint)).is_err() {
            break;
        }
        expire(views);
    }
}

/// Waits; true if the lane ended meanwhile. One checkpoint is on its way, so no other job can come.
fn stopped_during(pause: Duration, jobs: &Receiver<Ingest>) -> bool {
    matches!(jobs.recv_timeout(pause), Err(crossbeam_channel::RecvTimeoutError::Disconnected))
}

/// Drops days of dedup rows that are over. Once per checkpoint is often enough and costs nothing.
fn expire(views: &Views) {
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
    match views.expire(now_ms) {
        Ok(0) => {}
        Ok(days) => tracing::info!(days, "old dedup rows dropped"),
        Err(error) => tracing::warn!(%error, "old dedup rows not dropped"),
    }
}

fn read(shared: &Shared, views: &Views, jobs: &Receiver<ReadJob>) {
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
