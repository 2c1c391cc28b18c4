//! The lane's thread: owns the journal, blocks when there is nothing to do, and takes all that waits at once.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use super::{EmbeddedConfig, StartError, check_views};
use crate::disk::DiskError;
use crate::glommio_disk::GlommioDisk;
use crate::journal::SyncFailed;
use crate::lane::{Ingest, Lane, LaneCounts, Outbox, recovered_events};
use crate::planted::Planted;
use crate::port::{Ended, LaneMessage, Shared};
use crate::recovery::{self, Opened};
use crate::scheduling;
use crate::seam::{Class, StorageEvent, StoreFacts};
use crate::segment::Identity;
use crate::views::{Views, ViewsConfig};

/// What the thread is given.
pub(super) struct Setup {
    pub(super) config: EmbeddedConfig,
    pub(super) journal_directory: PathBuf,
    pub(super) shard_of_slot: Vec<u16>,
    pub(super) shared: Arc<Shared>,
    pub(super) messages: Receiver<LaneMessage>,
    pub(super) ingests: Sender<Ingest>,
    pub(super) ended: Sender<Ended>,
}

/// What it says when it is ready.
pub(super) struct Ready {
    pub(super) facts: StoreFacts,
    pub(super) views: Arc<Views>,
}

/// Starts the thread and waits until the journal is open and everything recovered is in the ports.
pub(super) fn spawn(setup: Setup) -> Result<Ready, StartError> {
    let (answer, ready) = bounded(1);
    let thread = std::thread::Builder::new().name("journal".to_owned());
    let spawned = thread.spawn(move || {
        // A failed assertion here must not leave shards waiting on a store that will never answer.
        let guard = AbortOnPanic;
        match LaneThread::open(setup) {
            Ok((lane, opened)) => {
                let _ = answer.send(Ok(opened));
                // Only now: the threads of the views were started from here, and would have had the same.
                scheduling::work_in_short_slices();
                lane.run();
            }
            Err(error) => {
                let _ = answer.send(Err(error));
            }
        }
        std::mem::forget(guard);
    });
    spawned.map_err(|error| StartError::Lane(DiskError::Io(format!("no thread for the journal: {error}"))))?;
    ready.recv().expect("the thread answers before it ends")
}

struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        tracing::error!("the journal's thread failed an assertion: aborting, recovery will read what is on disk");
        std::process::abort();
    }
}

struct LaneThread {
    lane: Lane<GlommioDisk>,
    disk: GlommioDisk,
    shared: Arc<Shared>,
    messages: Receiver<LaneMessage>,
    ingests: Sender<Ingest>,
    ended: Sender<Ended>,
    out: Outbox,
    /// Shards that were sent something since they were last woken.
    to_wake: Vec<bool>,
    /// What has been added to the counters.
    counted: LaneCounts,
}

/// What a message asks for beyond being noted.
enum After {
    GoOn,
    End,
}

impl LaneThread {
    fn open(setup: Setup) -> Result<(LaneThread, Ready), StartError> {
        let Setup { config, journal_directory, shard_of_slot, shared, messages, ingests, ended } = setup;
        let mut disk = GlommioDisk::new(&journal_directory).map_err(StartError::Lane)?;
        let (opened, views) = open_both(&mut disk, &config)?;
        let Opened { journal, recovered } = opened;
        let facts = StoreFacts { generation: journal.identity().generation, epoch: journal.epoch(), class: Class::D1 };
        let shards = shared.shards();
        let mut out = Outbox::new();
        recovered_events(recovered, &journal, views.forgotten_until_ms(), &shard_of_slot, shards, &mut out);
        for (_, event) in &out {
            if let StorageEvent::Recovered(group) = event {
                shared.counters.recovered(group);
            }
        }
        let lane = Lane::new(config.lane, journal, shards, views.checkpoint().0, shared.now_ms());
        let mut thread = LaneThread {
            lane,
            disk,
            shared,
            messages,
            ingests,
            ended,
            out,
            to_wake: vec![false; shards],
            counted: LaneCounts::default(),
        };
        thread.deliver();
        Ok((thread, Ready { facts, views: Arc::new(views) }))
    }

    fn run(mut self) {
        loop {
            if let Some(message) = self.next_message()
                && matches!(self.take(message), After::End)
            {
                return self.end(false);
            }
            while let Ok(message) = self.messages.try_recv() {
                if matches!(self.take(message), After::End) {
                    return self.end(false);
                }
            }
            if let Err(failed) = self.work() {
                // Not retried: a second sync may succeed although the first lost the pages.
                tracing::error!(%failed, "aborting");
                std::process::abort();
            }
            self.deliver();
            if self.lane.is_closed() {
                return self.end(true);
            }
        }
    }

    /// Sleeps until there is a message, or until the lane's own time has come: `None`.
    fn next_message(&self) -> Option<LaneMessage> {
        let Some(at_ms) = self.lane.next_tick_ms() else {
            // Ports and the store's handle hold senders, so this fails only when all are gone.
            return Some(self.messages.recv().unwrap_or(LaneMessage::Stop));
        };
        let wait = Duration::from_millis(at_ms.saturating_sub(self.shared.now_ms()));
        match self.messages.recv_timeout(wait) {
            Ok(message) => Some(message),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => Some(LaneMessage::Stop),
        }
    }

    fn take(&mut self, message: LaneMessage) -> After {
        match message {
            LaneMessage::Append(shard, group) => self.lane.submit(shard, group),
            LaneMessage::Serving(shard) => self.lane.serving(shard),
            LaneMessage::Run(shard, checkpoint, run) => {
                let now_ms = self.shared.now_ms();
                if let Some(ingest) = self.lane.run(shard, checkpoint, run, now_ms) {
                    self.shared.counters.handed_over(&ingest.runs);
                    // The writer ends only after this thread.
                    let _ = self.ingests.send(ingest);
                }
            }
            LaneMessage::Ingested { checkpoint, forgotten_until_ms } => {
                self.lane.ingested(checkpoint, forgotten_until_ms, self.shared.now_ms());
            }
            LaneMessage::Close => self.lane.close(),
            LaneMessage::Stop => return After::End,
        }
        After::GoOn
    }

    /// One batch, and what checkpoints need.
    fn work(&mut self) -> Result<(), SyncFailed> {
        while self.lane.has_work() {
            let begun = Instant::now();
            if self.lane.write(&mut self.disk, &mut self.out)? {
                self.lane.commit(&mut self.disk, &mut self.out)?;
                self.shared.counters.committed(begun.elapsed());
            }
            self.deliver();
        }
        self.lane.tick(self.shared.now_ms(), &mut self.disk, &mut self.out)
    }

    /// Puts events into the ports, then wakes each shard that got some, once.
    fn deliver(&mut self) {
        for (shard, event) in self.out.drain(..) {
            self.shared.send(shard, event);
            self.to_wake[shard as usize] = true;
        }
        for (shard, wake) in self.to_wake.iter_mut().enumerate() {
            if std::mem::take(wake) {
                self.shared.wake(shard as u16);
            }
        }
        self.publish_counts();
    }

    fn publish_counts(&mut self) {
        let (now, before) = (self.lane.counts(), self.counted);
        let counters = &self.shared.counters;
        counters.batches.add(now.batches - before.batches);
        counters.groups.add(now.groups - before.groups);
        counters.bytes.add(now.bytes - before.bytes);
        counters.refused_full.add(now.refused_full - before.refused_full);
        counters.refused_behind.add(now.refused_behind - before.refused_behind);
        counters.refused_unavailable.add(now.refused_unavailable - before.refused_unavailable);
        counters.segments_removed.add(now.segments_removed - before.segments_removed);
        counters.lag_bytes.set(self.lane.journal().bytes_since_checkpoint());
        self.shared.urgent.store(self.lane.is_urgent(), Ordering::Relaxed);
        counters.segments.set(self.lane.journal().segments() as u64);
        let now_ms = self.shared.now_ms();
        let since = counters.checkpoint_since_ms.get();
        if now.checkpoints > before.checkpoints {
            counters.checkpoints.add(now.checkpoints - before.checkpoints);
            counters.checkpoint_ms.set(now_ms.saturating_sub(since.saturating_sub(1)));
        }
        match (self.lane.checkpoint_waits(), since) {
            (true, 0) => counters.checkpoint_since_ms.set(now_ms + 1),
            (false, _) => counters.checkpoint_since_ms.set(0),
            (true, _) => {}
        }
        self.counted = now;
    }

    fn end(mut self, clean: bool) {
        self.deliver();
        self.lane.into_journal().close(&mut self.disk);
        drop(self.disk);
        let _ = self.ended.send(Ended::Lane { clean });
    }
}

/// Reads the journal, opens the views, checks that they fit together, and only then changes anything.
fn open_both(disk: &mut GlommioDisk, config: &EmbeddedConfig) -> Result<(Opened<GlommioDisk>, Views), StartError> {
    let scan = recovery::scan(disk, Planted::NONE)?;
    let journal_checkpoint = scan.as_ref().map_or(0, |scan| scan.checkpoint().number);
    let views_config = ViewsConfig { expect_existing: journal_checkpoint > 0, ..config.views.clone() };
    // fjall starts its compaction here, and a thread is as nice as the one that started it.
    let open = || {
        scheduling::work_in_background();
        Views::open(&config.directory.join("views"), views_config)
    };
    let opened = std::thread::scope(|scope| scope.spawn(open).join());
    let views = opened.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    check_views(scan.as_ref(), views.checkpoint())?;
    let journal_config = config.lane.journal.clone();
    let opened = match scan {
        Some(found) => recovery::resume(disk, journal_config, found, Planted::NONE)?,
        None => recovery::create(disk, journal_config, random_identity()?)?,
    };
    Ok((opened, views))
}

fn random_identity() -> Result<Identity, StartError> {
    let random =
        || getrandom::u64().map_err(|error| StartError::Lane(DiskError::Io(format!("no randomness: {error}"))));
    // Zero is what an empty block holds.
    Ok(Identity { generation: random()?.max(1), store_key: random()?.max(1) })
}
