//! The lane's thread: one transaction for all that waits, one at a time.
//!
//! A group whose commit was not answered is *unresolved*: it is sent again, and found or added, before
//! anything else is. While the database is away, what is queued behind it is refused, since it was never
//! sent; the unresolved group has no answer until there is a certain one.

use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use tokio_postgres::Client;

use super::append::{Answer, AppendFault, Attempt, Wanted, append};
use super::schema::Opened;
use super::session::{Fault, STALE_WITHIN, Session, Timed};
use super::{CheckpointJob, Fence, PostgresConfig};
use crate::port::{Ended, LaneMessage, Shared};
use crate::seam::{AppendGroup, Epoch, Lsn, Outcome, Refusal, Run, Slot, StorageEvent};
use crate::segment::SLOTS;

/// Appends are refused when the journal holds this many times the bytes of a checkpoint.
const BEHIND_FACTOR: u64 = 4;
/// Pause between attempts to settle an unresolved group.
const RESOLVE_PAUSE: Duration = Duration::from_millis(50);

pub(super) struct Setup {
    pub(super) config: PostgresConfig,
    pub(super) session: Session,
    pub(super) shard_of_slot: Vec<u16>,
    pub(super) shared: Arc<Shared>,
    pub(super) fence: Arc<Fence>,
    pub(super) messages: Receiver<LaneMessage>,
    pub(super) jobs: Sender<CheckpointJob>,
    pub(super) ended: Sender<Ended>,
}

/// Groups that share a transaction.
struct Batch {
    groups: Vec<(u16, AppendGroup)>,
    attempt: Attempt,
}

/// Where a checkpoint stands.
enum Phase {
    Idle,
    /// Shards have been asked for their runs.
    Collecting {
        covered: Vec<(Slot, Lsn)>,
        bytes: u64,
        runs: Vec<Option<Run>>,
    },
    /// The views are being brought forward.
    Ingesting {
        covered: Vec<(Slot, Lsn)>,
        bytes: u64,
    },
}

pub(super) struct Lane {
    config: PostgresConfig,
    session: Session,
    shared: Arc<Shared>,
    fence: Arc<Fence>,
    messages: Receiver<LaneMessage>,
    jobs: Sender<CheckpointJob>,
    ended: Sender<Ended>,
    epoch: Epoch,
    next_lsn: Vec<Lsn>,
    checkpoint_lsn: Vec<Lsn>,
    /// Bytes of records that the views do not cover.
    lag_bytes: u64,
    queued: VecDeque<(u16, AppendGroup)>,
    unresolved: Option<Batch>,
    serving: Vec<bool>,
    phase: Phase,
    phase_since: Instant,
    /// Number of the last checkpoint that was begun. The tables do not keep it: it only pairs
    /// questions and answers of one process.
    checkpoint: u64,
    closing: bool,
    to_wake: Vec<bool>,
}

impl Lane {
    /// Puts what was recovered into the ports.
    pub(super) fn new(setup: Setup, opened: Opened) -> Lane {
        let Setup { config, session, shard_of_slot, shared, fence, messages, jobs, ended } = setup;
        let shards = shared.shards();
        let mut lane = Lane {
            config,
            session,
            shared,
            fence,
            messages,
            jobs,
            ended,
            epoch: opened.epoch,
            next_lsn: opened.next_lsn,
            checkpoint_lsn: opened.checkpoint_lsn,
            lag_bytes: opened.recovered.iter().map(|group| group.bytes.len() as u64).sum(),
            queued: VecDeque::new(),
            unresolved: None,
            serving: vec![false; shards],
            phase: Phase::Idle,
            phase_since: Instant::now(),
            checkpoint: 0,
            closing: false,
            to_wake: vec![false; shards],
        };
        for group in opened.recovered {
            lane.shared.counters.recovered(&group);
            lane.send(shard_of_slot[group.parts[0].slot as usize], StorageEvent::Recovered(group));
        }
        let forgotten_until_ms = opened.days.forgotten_until_ms();
        let mut tails = vec![Vec::new(); shards];
        for (slot, &lsn) in lane.next_lsn.iter().enumerate() {
            tails[shard_of_slot[slot] as usize].push((slot as Slot, lsn));
        }
        for (shard, tails) in tails.into_iter().enumerate() {
            lane.send(shard as u16, StorageEvent::RecoveredAll { tails, forgotten_until_ms });
        }
        lane.wake();
        lane
    }

    pub(super) fn run(mut self) {
        loop {
            let first = self.next_message();
            for message in first.into_iter().chain(self.messages.clone().try_iter()) {
                if !self.take(message) {
                    return self.end(false);
                }
            }
            self.resolve();
            while self.unresolved.is_none() && !self.queued.is_empty() {
                self.commit_queued();
                self.wake();
            }
            if self.unresolved.is_some() {
                // Never sent, so certainly not written: these need not wait for the database to come back.
                self.refuse_queued(Refusal::Unavailable);
            }
            self.tick();
            self.wake();
            self.publish();
            if self.closing && self.fence.reason().is_some() {
                // No checkpoint of this server will ever be taken.
                self.refuse_queued(Refusal::Unavailable);
                return self.end(false);
            }
            if self.closing && self.unresolved.is_none() && matches!(self.phase, Phase::Idle) && self.lag_bytes == 0 {
                return self.end(true);
            }
        }
    }

    fn next_message(&self) -> Option<LaneMessage> {
        let wait = if self.unresolved.is_some() {
            RESOLVE_PAUSE
        } else if !matches!(self.phase, Phase::Idle) || !self.may_begin() {
            Duration::from_mins(1)
        } else if self.is_due() {
            Duration::ZERO
        } else {
            self.interval().saturating_sub(self.phase_since.elapsed())
        };
        match self.messages.recv_timeout(wait) {
            Ok(message) => Some(message),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => Some(LaneMessage::Stop),
        }
    }

    /// False: the store is to end.
    fn take(&mut self, message: LaneMessage) -> bool {
        match message {
            LaneMessage::Append(shard, group) => self.queued.push_back((shard, group)),
            LaneMessage::Serving(shard) => self.serving[shard as usize] = true,
            LaneMessage::Run(shard, checkpoint, run) => self.collect(shard, checkpoint, run),
            LaneMessage::Ingested { checkpoint, forgotten_until_ms } => self.ingested(checkpoint, forgotten_until_ms),
            LaneMessage::Close => self.closing = true,
            LaneMessage::Stop => return false,
        }
        true
    }

    fn commit_queued(&mut self) {
        if self.closing {
            return self.refuse_queued(Refusal::Unavailable);
        }
        if self.lag_bytes >= BEHIND_FACTOR * self.config.checkpoint_bytes {
            return self.refuse_queued(Refusal::ViewsBehind);
        }
        let batch = Batch { groups: self.next_groups(), attempt: Attempt::First };
        self.send_batch(batch);
    }

    /// As many groups as share a transaction: no slot twice, and not too many bytes.
    fn next_groups(&mut self) -> Vec<(u16, AppendGroup)> {
        let mut taken = vec![false; SLOTS];
        let mut bytes = 0;
        let mut groups = Vec::new();
        while let Some((_, group)) = self.queued.front() {
            let fits = groups.is_empty() || bytes + group.bytes.len() <= self.config.batch_bytes_max;
            if !fits || group.parts.iter().any(|part| taken[part.slot as usize]) {
                break;
            }
            group.parts.iter().for_each(|part| taken[part.slot as usize] = true);
            bytes += group.bytes.len();
            groups.extend(self.queued.pop_front());
        }
        groups
    }

    fn resolve(&mut self) {
        if let Some(batch) = self.unresolved.take() {
            self.send_batch(batch);
        }
    }

    /// Sends a batch; answers its groups, or keeps it as unresolved.
    fn send_batch(&mut self, batch: Batch) {
        let begun = Instant::now();
        let mut transacted = self.transact(&batch);
        if matches!(transacted, Err(AppendFault::BeforeCommit(Fault::Away(_)))) && begun.elapsed() < STALE_WITHIN {
            // Nothing was written, and it may only be news of a connection that ended while nobody asked.
            transacted = self.transact(&batch);
        }
        match transacted {
            Ok(answer) => {
                self.shared.counters.committed(begun.elapsed());
                self.answer(batch, &answer);
            }
            Err(AppendFault::BeforeCommit(fault)) if batch.attempt == Attempt::First => {
                tracing::warn!(%fault, "append refused");
                let refusal = if matches!(fault, Fault::Full(_)) { Refusal::Full } else { Refusal::Unavailable };
                batch.groups.into_iter().for_each(|(shard, group)| self.refuse(shard, group, refusal));
            }
            Err(AppendFault::BeforeCommit(fault) | AppendFault::Unknown(fault)) => {
                if batch.attempt == Attempt::First {
                    tracing::warn!(%fault, "a commit was not answered: its end will be read");
                }
                self.unresolved = Some(Batch { attempt: Attempt::Again, ..batch });
            }
        }
    }

    fn transact(&mut self, batch: &Batch) -> Result<Answer, AppendFault> {
        // What belongs to an epoch below this server's own needs no question.
        let epoch = self.epoch;
        let mut wanted: Vec<Wanted<'_>> = Vec::new();
        for (_, group) in &batch.groups {
            wanted.extend(group.parts.iter().filter(|part| part.epoch >= epoch).map(|part| Wanted {
                slot: part.slot,
                lsn: part.expected_lsn,
                records: part.records,
                bytes: &group.bytes[part.bytes.start as usize..part.bytes.end as usize],
            }));
        }
        if wanted.is_empty() {
            return Ok(Answer::default());
        }
        let committing = Cell::new(false);
        let (attempt, parts, flag) = (batch.attempt, wanted.as_slice(), &committing);
        self.session.call(async |client: &Client| append(client, epoch, parts, attempt, flag).await).map_err(|failed| {
            match failed {
                Timed::Said(fault) => fault,
                Timed::Out => {
                    let fault = Fault::Away("PostgreSQL does not answer".to_owned());
                    if committing.get() { AppendFault::Unknown(fault) } else { AppendFault::BeforeCommit(fault) }
                }
            }
        })
    }

    fn answer(&mut self, batch: Batch, answer: &Answer) {
        if answer.fenced {
            self.fence.raise("another server has taken over the database");
        }
        for &(slot, lsn) in &answer.next_lsn {
            let known = &mut self.next_lsn[slot as usize];
            if lsn < *known {
                // A failover that lost its tail. What was acknowledged is gone; only a start says so to clients.
                self.fence.raise("the database has lost what it had committed; a new start renews the generation");
            }
            *known = lsn;
        }
        let counters = Arc::clone(&self.shared.counters);
        counters.batches.add(1);
        let mut decided = answer.outcomes.iter();
        for (shard, group) in batch.groups {
            let outcome = |part: &crate::seam::Part| {
                if part.epoch < self.epoch { Outcome::Fenced } else { *decided.next().expect("an outcome per part") }
            };
            let outcomes: Vec<Outcome> = group.parts.iter().map(outcome).collect();
            for (part, outcome) in group.parts.iter().zip(&outcomes) {
                if *outcome == Outcome::Committed {
                    let bytes = u64::from(part.bytes.end - part.bytes.start);
                    counters.bytes.add(bytes);
                    self.lag_bytes += bytes;
                }
            }
            counters.groups.add(1);
            self.send(shard, StorageEvent::Appended { group, outcomes });
        }
    }

    fn refuse_queued(&mut self, refusal: Refusal) {
        for (shard, group) in std::mem::take(&mut self.queued) {
            self.refuse(shard, group, refusal);
        }
    }

    fn refuse(&mut self, shard: u16, group: AppendGroup, refusal: Refusal) {
        let counters = &self.shared.counters;
        let parts = group.parts.len() as u64;
        match refusal {
            Refusal::Full => counters.refused_full.add(parts),
            Refusal::ViewsBehind => counters.refused_behind.add(parts),
            Refusal::Unavailable => counters.refused_unavailable.add(parts),
        }
        let outcomes = vec![Outcome::Refused(refusal); group.parts.len()];
        self.send(shard, StorageEvent::Appended { group, outcomes });
    }

    /// Something is new, nothing is unresolved, and every shard has applied what was recovered.
    fn may_begin(&self) -> bool {
        self.lag_bytes > 0 && self.unresolved.is_none() && self.serving.iter().all(|&serving| serving)
    }

    fn interval(&self) -> Duration {
        Duration::from_millis(self.config.checkpoint_interval_ms)
    }

    fn is_due(&self) -> bool {
        let grown = self.lag_bytes >= self.config.checkpoint_bytes;
        self.may_begin() && (grown || self.closing || self.phase_since.elapsed() >= self.interval())
    }

    /// Begins a checkpoint when one is due.
    fn tick(&mut self) {
        if !matches!(self.phase, Phase::Idle) || !self.is_due() {
            return;
        }
        self.checkpoint += 1;
        let checkpoint = self.checkpoint;
        let grown = (0..SLOTS).filter(|&slot| self.next_lsn[slot] > self.checkpoint_lsn[slot]);
        let covered = grown.map(|slot| (slot as Slot, self.next_lsn[slot])).collect();
        let shards = self.serving.len();
        self.phase = Phase::Collecting { covered, bytes: self.lag_bytes, runs: vec![None; shards] };
        self.phase_since = Instant::now();
        (0..shards as u16).for_each(|shard| self.send(shard, StorageEvent::Freeze { checkpoint }));
    }

    fn collect(&mut self, shard: u16, checkpoint: u64, run: Run) {
        let Phase::Collecting { runs, .. } = &mut self.phase else { return };
        if checkpoint != self.checkpoint {
            return;
        }
        runs[shard as usize] = Some(run);
        if runs.iter().any(Option::is_none) {
            return;
        }
        let Phase::Collecting { covered, bytes, runs } = std::mem::replace(&mut self.phase, Phase::Idle) else {
            unreachable!("matched above");
        };
        let job = CheckpointJob { checkpoint, runs: runs.into_iter().flatten().collect(), covered: covered.clone() };
        self.phase = Phase::Ingesting { covered, bytes };
        self.shared.counters.handed_over(&job.runs);
        // The writer ends only after this thread.
        let _ = self.jobs.send(job);
    }

    fn ingested(&mut self, checkpoint: u64, forgotten_until_ms: u64) {
        let Phase::Ingesting { covered, bytes } = std::mem::replace(&mut self.phase, Phase::Idle) else { return };
        for (slot, lsn) in covered {
            self.checkpoint_lsn[slot as usize] = lsn;
        }
        self.lag_bytes -= bytes;
        let counters = &self.shared.counters;
        counters.checkpoints.add(1);
        counters.checkpoint_ms.set(self.phase_since.elapsed().as_millis() as u64);
        self.phase_since = Instant::now();
        for shard in 0..self.serving.len() as u16 {
            self.send(shard, StorageEvent::CheckpointDone { checkpoint, forgotten_until_ms });
        }
    }

    fn send(&mut self, shard: u16, event: StorageEvent) {
        self.shared.send(shard, event);
        self.to_wake[shard as usize] = true;
    }

    fn wake(&mut self) {
        for (shard, wake) in self.to_wake.iter_mut().enumerate() {
            if std::mem::take(wake) {
                self.shared.wake(shard as u16);
            }
        }
    }

    fn publish(&self) {
        let counters = &self.shared.counters;
        counters.lag_bytes.set(self.lag_bytes);
        match (&self.phase, counters.checkpoint_since_ms.get()) {
            (Phase::Idle, _) => counters.checkpoint_since_ms.set(0),
            (_, 0) => counters.checkpoint_since_ms.set(self.shared.now_ms() + 1),
            _ => {}
        }
    }

    fn end(mut self, clean: bool) {
        self.wake();
        let _ = self.ended.send(Ended::Lane { clean });
    }
}
