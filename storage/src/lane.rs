//! What the journal lane decides: which groups share a batch, when a checkpoint begins, who is refused.
//!
//! Plain code over [`Disk`] and a time that is handed in. The embedded store's thread and the
//! simulator's store drive the same `Lane`.

use std::collections::VecDeque;

use crate::disk::Disk;
use crate::journal::{Frozen, Journal, JournalConfig, Pending, SyncFailed};
use crate::planted::Planted;
use crate::recovery::RecoveredBatch;
use crate::seam::{AppendGroup, Outcome, Position, Refusal, Run, Slot, StorageEvent};
use crate::segment::SLOTS;

/// Appends are refused when the journal holds this many times the bytes of a checkpoint.
const BEHIND_FACTOR: u64 = 4;
/// And from so many on the views no longer rest.
const URGENT_FACTOR: u64 = 2;
/// Segments without records come from restarts; so many are a reason for a checkpoint, which removes them.
const SEGMENTS_IDLE_MAX: usize = 8;
/// Pause before a checkpoint's record that found no room is written again.
const RECORD_RETRY_MS: u64 = 200;

/// A lane that has nothing to do for this long closes its last batch with a seal.
const SEAL_AFTER_MS: u64 = 100;

/// Limits of the lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaneConfig {
    /// Limits of the journal.
    pub journal: JournalConfig,
    /// A checkpoint begins when the journal has grown by this.
    pub checkpoint_bytes: u64,
    /// A checkpoint begins after this time if anything is new.
    pub checkpoint_interval_ms: u64,
    /// Views that do not answer for longer are reported as stalled.
    pub views_stall_ms: u64,
    /// Groups are merged into one batch up to this.
    pub batch_bytes_max: usize,
    /// Bugs for the simulator to find; without effect unless compiled in.
    pub planted: Planted,
}

impl Default for LaneConfig {
    fn default() -> LaneConfig {
        LaneConfig {
            journal: JournalConfig::default(),
            checkpoint_bytes: 64 << 20,
            checkpoint_interval_ms: 30_000,
            views_stall_ms: 60_000,
            batch_bytes_max: 4 << 20,
            planted: Planted::NONE,
        }
    }
}

/// Events for shards, in order.
pub type Outbox = Vec<(u16, StorageEvent)>;

/// What the views have to make durable.
#[derive(Debug, Clone)]
pub struct Ingest {
    /// Number of the checkpoint.
    pub checkpoint: u64,
    /// The journal up to here is covered.
    pub position: Position,
    /// Rows of all shards.
    pub runs: Vec<Run>,
}

/// What happened, for the counters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LaneCounts {
    /// Batches committed.
    pub batches: u64,
    /// Groups answered.
    pub groups: u64,
    /// Bytes written.
    pub bytes: u64,
    /// Parts refused because the disk was full.
    pub refused_full: u64,
    /// Parts refused because the views lag.
    pub refused_behind: u64,
    /// Parts refused because the disk failed or the store is closing.
    pub refused_unavailable: u64,
    /// Checkpoints done.
    pub checkpoints: u64,
    /// Segments removed.
    pub segments_removed: u64,
}

/// Where a checkpoint stands.
#[derive(Debug)]
enum Phase {
    Idle,
    /// Shards have been asked for their runs.
    Collecting {
        number: u64,
        frozen: Frozen,
        runs: Vec<Option<Run>>,
    },
    /// The views are being brought forward.
    Ingesting {
        number: u64,
        frozen: Frozen,
    },
    /// The views are durable; the record is to be written.
    Recording {
        number: u64,
        frozen: Frozen,
        not_before_ms: u64,
    },
}

#[derive(Debug)]
struct InFlight {
    pending: Pending,
    groups: Vec<AppendGroup>,
    shards: Vec<u16>,
}

/// See the module.
#[derive(Debug)]
pub struct Lane<D: Disk> {
    config: LaneConfig,
    journal: Journal<D>,
    queued: VecDeque<(u16, AppendGroup)>,
    in_flight: Option<InFlight>,
    serving: Vec<bool>,
    phase: Phase,
    /// When the phase began.
    phase_since_ms: u64,
    next_checkpoint: u64,
    /// What the views may forget once the shards know of it.
    forgotten_until_ms: u64,
    /// The last batch holds records and has no seal behind it.
    unsealed: bool,
    seal_at_ms: Option<u64>,
    closing: bool,
    counts: LaneCounts,
}

impl<D: Disk> Lane<D> {
    /// A lane for `shards` shards. `views_checkpoint` is the newest number that the views have seen: a
    /// number is never used twice, or an ingestion whose record was lost could be taken for another.
    pub fn new(config: LaneConfig, journal: Journal<D>, shards: usize, views_checkpoint: u64, now_ms: u64) -> Lane<D> {
        let next_checkpoint = journal.checkpoint().number.max(views_checkpoint) + 1;
        Lane {
            config,
            journal,
            queued: VecDeque::new(),
            in_flight: None,
            serving: vec![false; shards],
            phase: Phase::Idle,
            phase_since_ms: now_ms,
            next_checkpoint,
            forgotten_until_ms: 0,
            unsealed: false,
            seal_at_ms: None,
            closing: false,
            counts: LaneCounts::default(),
        }
    }

    /// The journal.
    pub fn journal(&self) -> &Journal<D> {
        &self.journal
    }

    /// What happened so far.
    pub fn counts(&self) -> LaneCounts {
        self.counts
    }

    /// A shard has a group to commit.
    pub fn submit(&mut self, shard: u16, group: AppendGroup) {
        self.queued.push_back((shard, group));
    }

    /// A shard has applied what was recovered.
    pub fn serving(&mut self, shard: u16) {
        self.serving[shard as usize] = true;
    }

    /// From now on appends are refused and a last checkpoint covers everything.
    pub fn close(&mut self) {
        self.closing = true;
    }

    /// Closing, and the next start will have nothing to replay.
    pub fn is_closed(&self) -> bool {
        self.closing && self.is_idle() && self.journal.bytes_since_checkpoint() == 0
    }

    /// Nothing is queued or in flight, and no checkpoint is on its way.
    pub fn is_idle(&self) -> bool {
        self.queued.is_empty() && self.in_flight.is_none() && matches!(self.phase, Phase::Idle)
    }

    /// Something waits to be written.
    pub fn has_work(&self) -> bool {
        !self.queued.is_empty()
    }

    /// A checkpoint has been waiting for shards or views for too long.
    pub fn views_stalled(&self, now_ms: u64) -> bool {
        let waiting = matches!(self.phase, Phase::Collecting { .. } | Phase::Ingesting { .. });
        waiting && now_ms.saturating_sub(self.phase_since_ms) > self.config.views_stall_ms
    }

    /// The views are to hurry: the next checkpoint is due as well, or this is the last.
    pub fn is_urgent(&self) -> bool {
        self.closing || self.journal.bytes_since_checkpoint() >= URGENT_FACTOR * self.config.checkpoint_bytes
    }

    /// A checkpoint is on its way.
    pub fn checkpoint_waits(&self) -> bool {
        !matches!(self.phase, Phase::Idle)
    }

    /// Writes a batch of what is queued. True: it has to be committed next.
    pub fn write(&mut self, disk: &mut D, out: &mut Outbox) -> Result<bool, SyncFailed> {
        assert!(self.in_flight.is_none(), "one batch at a time");
        if let Some(refusal) = self.refusal() {
            self.refuse_queued(refusal, out);
        }
        let mut bytes = 0;
        let mut groups = Vec::with_capacity(self.queued.len());
        let mut shards = Vec::with_capacity(self.queued.len());
        while let Some((_, group)) = self.queued.front()
            && (groups.is_empty() || bytes + group.bytes.len() <= self.config.batch_bytes_max)
        {
            bytes += group.bytes.len();
            let (shard, group) = self.queued.pop_front().expect("looked at a moment ago");
            shards.push(shard);
            groups.push(group);
        }
        if groups.is_empty() {
            return Ok(false);
        }
        let pending = self.journal.begin(disk, &groups)?;
        let written = pending.is_written();
        self.in_flight = Some(InFlight { pending, groups, shards });
        if !written {
            self.commit(disk, out)?;
        }
        Ok(written)
    }

    /// Syncs the batch in flight and answers its groups.
    pub fn commit(&mut self, disk: &mut D, out: &mut Outbox) -> Result<(), SyncFailed> {
        let Some(InFlight { pending, groups, shards }) = self.in_flight.take() else {
            return Ok(());
        };
        if pending.is_written() {
            self.unsealed = true;
            self.seal_at_ms = None;
            self.counts.batches += 1;
            self.counts.bytes += pending.bytes();
        }
        let outcomes = self.journal.commit(disk, pending)?;
        for ((group, outcomes), shard) in groups.into_iter().zip(outcomes).zip(shards) {
            self.count(&outcomes);
            out.push((shard, StorageEvent::Appended { group, outcomes }));
        }
        Ok(())
    }

    /// Begins a checkpoint when one is due, and records one that the views have finished. Between batches.
    pub fn tick(&mut self, now_ms: u64, disk: &mut D, out: &mut Outbox) -> Result<(), SyncFailed> {
        assert!(self.in_flight.is_none(), "checkpoints begin and end between batches");
        match &self.phase {
            Phase::Idle if self.is_due(now_ms) => self.freeze(now_ms, out),
            Phase::Recording { not_before_ms, .. } if *not_before_ms <= now_ms => self.record(now_ms, disk, out)?,
            _ => {}
        }
        self.seal(now_ms, disk)
    }

    /// Seals the last batch when nothing has followed it for a while.
    fn seal(&mut self, now_ms: u64, disk: &mut D) -> Result<(), SyncFailed> {
        if !self.unsealed {
            return Ok(());
        }
        let at_ms = *self.seal_at_ms.get_or_insert(now_ms + SEAL_AFTER_MS);
        if at_ms <= now_ms {
            // One that finds no room is not tried again before there is a batch that needs it.
            self.journal.seal(disk)?;
            self.unsealed = false;
            self.seal_at_ms = None;
        }
        Ok(())
    }

    /// When [`Lane::tick`] has something to do without anything else happening.
    pub fn next_tick_ms(&self) -> Option<u64> {
        [self.next_checkpoint_tick_ms(), self.seal_at_ms].into_iter().flatten().min()
    }

    fn next_checkpoint_tick_ms(&self) -> Option<u64> {
        match &self.phase {
            Phase::Idle if !self.may_begin() => None,
            Phase::Idle if self.closing || self.grown() => Some(0),
            Phase::Idle => Some(self.phase_since_ms + self.config.checkpoint_interval_ms),
            Phase::Recording { not_before_ms, .. } => Some(*not_before_ms),
            Phase::Collecting { .. } | Phase::Ingesting { .. } => None,
        }
    }

    /// A shard hands over its rows. `Some`: all have, and the views are to ingest them.
    pub fn run(&mut self, shard: u16, checkpoint: u64, run: Run, now_ms: u64) -> Option<Ingest> {
        let Phase::Collecting { number, runs, .. } = &mut self.phase else { return None };
        if *number != checkpoint {
            return None;
        }
        runs[shard as usize] = Some(run);
        if runs.iter().any(Option::is_none) {
            return None;
        }
        let Phase::Collecting { number, frozen, runs } = std::mem::replace(&mut self.phase, Phase::Idle) else {
            unreachable!("matched above");
        };
        let ingest = Ingest { checkpoint, position: frozen.position(), runs: runs.into_iter().flatten().collect() };
        self.phase_since_ms = now_ms;
        self.phase = if self.config.planted.effective().checkpoint_ahead {
            Phase::Recording { number, frozen, not_before_ms: now_ms }
        } else {
            Phase::Ingesting { number, frozen }
        };
        Some(ingest)
    }

    /// The views have made a checkpoint durable; [`Lane::tick`] records it, and then tells the shards what may be
    /// forgotten.
    pub fn ingested(&mut self, checkpoint: u64, forgotten_until_ms: u64, now_ms: u64) {
        self.forgotten_until_ms = forgotten_until_ms;
        match std::mem::replace(&mut self.phase, Phase::Idle) {
            Phase::Ingesting { number, frozen } if number == checkpoint => {
                self.phase = Phase::Recording { number, frozen, not_before_ms: now_ms };
            }
            other => self.phase = other,
        }
    }

    /// Gives the journal back.
    pub fn into_journal(self) -> Journal<D> {
        self.journal
    }

    fn is_new(&self) -> bool {
        self.journal.bytes_since_checkpoint() > 0 || self.journal.segments() > SEGMENTS_IDLE_MAX
    }

    fn grown(&self) -> bool {
        self.journal.bytes_since_checkpoint() >= self.config.checkpoint_bytes
    }

    fn is_due(&self, now_ms: u64) -> bool {
        let waited = now_ms.saturating_sub(self.phase_since_ms) >= self.config.checkpoint_interval_ms;
        self.may_begin() && (self.grown() || waited || self.closing)
    }

    /// Something is new, and every shard can say what: what was recovered is part of its run only when
    /// it has been applied.
    fn may_begin(&self) -> bool {
        self.is_new() && self.serving.iter().all(|&serving| serving)
    }

    fn freeze(&mut self, now_ms: u64, out: &mut Outbox) {
        let number = self.next_checkpoint;
        self.next_checkpoint += 1;
        let shards = self.serving.len();
        self.phase = Phase::Collecting { number, frozen: self.journal.freeze(), runs: vec![None; shards] };
        self.phase_since_ms = now_ms;
        out.extend((0..shards as u16).map(|shard| (shard, StorageEvent::Freeze { checkpoint: number })));
    }

    fn record(&mut self, now_ms: u64, disk: &mut D, out: &mut Outbox) -> Result<(), SyncFailed> {
        let Phase::Recording { number, frozen, not_before_ms } = &mut self.phase else { return Ok(()) };
        let checkpoint = *number;
        if let Some(refusal) = self.journal.record_checkpoint(disk, checkpoint, frozen)? {
            tracing::warn!(checkpoint, ?refusal, "the checkpoint's record can not be written now");
            *not_before_ms = now_ms + RECORD_RETRY_MS;
            return Ok(());
        }
        self.phase = Phase::Idle;
        self.phase_since_ms = now_ms;
        // The record closes what lies before it as a seal would.
        self.unsealed = false;
        self.seal_at_ms = None;
        self.counts.checkpoints += 1;
        let done = || StorageEvent::CheckpointDone { checkpoint, forgotten_until_ms: self.forgotten_until_ms };
        out.extend((0..self.serving.len() as u16).map(|shard| (shard, done())));
        self.counts.segments_removed += self.journal.remove_covered(disk)? as u64;
        Ok(())
    }

    /// Why nothing may be appended now.
    fn refusal(&self) -> Option<Refusal> {
        if self.closing {
            return Some(Refusal::Unavailable);
        }
        let bound = BEHIND_FACTOR * self.config.checkpoint_bytes;
        (self.journal.bytes_since_checkpoint() >= bound).then_some(Refusal::ViewsBehind)
    }

    fn refuse_queued(&mut self, refusal: Refusal, out: &mut Outbox) {
        for (shard, group) in std::mem::take(&mut self.queued) {
            let outcomes = vec![Outcome::Refused(refusal); group.parts.len()];
            self.count(&outcomes);
            out.push((shard, StorageEvent::Appended { group, outcomes }));
        }
    }

    fn count(&mut self, outcomes: &[Outcome]) {
        self.counts.groups += 1;
        for outcome in outcomes {
            match outcome {
                Outcome::Refused(Refusal::Full) => self.counts.refused_full += 1,
                Outcome::Refused(Refusal::ViewsBehind) => self.counts.refused_behind += 1,
                Outcome::Refused(Refusal::Unavailable) => self.counts.refused_unavailable += 1,
                Outcome::Committed | Outcome::Fenced | Outcome::Conflict => {}
            }
        }
    }
}

/// Tells each shard what was recovered for its slots: the parts in order, then where each slot stands and what
/// the views may have forgotten.
pub fn recovered_events<D: Disk>(
    recovered: Vec<RecoveredBatch>,
    journal: &Journal<D>,
    forgotten_until_ms: u64,
    shard_of_slot: &[u16],
    shards: usize,
    out: &mut Outbox,
) {
    for batch in recovered {
        for group in batch.groups() {
            out.push((shard_of_slot[group.parts[0].slot as usize], StorageEvent::Recovered(group)));
        }
    }
    let mut tails = vec![Vec::new(); shards];
    for slot in 0..SLOTS as Slot {
        tails[shard_of_slot[slot as usize] as usize].push((slot, journal.next_lsn(slot)));
    }
    for (shard, tails) in tails.into_iter().enumerate() {
        out.push((shard as u16, StorageEvent::RecoveredAll { tails, forgotten_until_ms }));
    }
}
