//! The writing side of the journal: batches, segments, checkpoint records. Reading is in [`crate::recovery`].
//!
//! Plain code over [`Disk`]: no clock, no thread, no randomness. A commit has two phases, so that the
//! simulator can crash between them: [`Journal::begin`] writes, [`Journal::commit`] syncs.

use std::collections::VecDeque;

use crate::disk::{BLOCK_BYTES, Disk, DiskError};
use crate::seam::{AppendGroup, Epoch, Lsn, Outcome, Part, Position, Refusal, Slot};
use crate::segment::{
    BATCH_HEADER_BYTES, BatchHeader, BatchKind, CHECKPOINT_RECORD_BYTES, CheckpointMark, FIRST_BATCH_OFFSET, Identity,
    PART_BYTES, PartEntry, SLOTS, SegmentHeader, SlotState, TABLE_BYTES, blocks, encode_table, position, segment_name,
    segment_of, spare_name,
};

/// The smallest segment that a start on a full disk makes do with.
const SEGMENT_BYTES_MIN: u64 = FIRST_BATCH_OFFSET as u64 + CHECKPOINT_RECORD_BYTES + 4 * BLOCK_BYTES as u64;

/// Limits of a journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JournalConfig {
    /// Bytes of a segment, reserved when it is made. A batch that needs more gets a larger one.
    pub segment_bytes: u64,
    /// Removed segments kept for reuse: overwriting is cheaper than writing into fresh room.
    pub spares_max: usize,
}

impl Default for JournalConfig {
    fn default() -> JournalConfig {
        JournalConfig { segment_bytes: 64 << 20, spares_max: 1 }
    }
}

/// A sync failed. What the disk holds is unknown and must be read again by a new process: abort.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("sync of {file} failed: {error}; the process must not go on, recovery will read what is on disk")]
pub struct SyncFailed {
    /// What was to be synced.
    pub file: String,
    /// What the system said.
    pub error: DiskError,
}

/// Where the journal stands; what recovery found and the writer continues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tail {
    /// The segment written to.
    pub(crate) segment: u32,
    /// Where in it the next batch begins.
    pub(crate) offset: u32,
    /// Number of the next batch.
    pub(crate) number: u64,
    /// Checksum of the last batch.
    pub(crate) checksum: u32,
}

/// A batch that is written and not synced.
#[derive(Debug)]
#[must_use = "what was written must be committed"]
pub struct Pending {
    outcomes: Vec<Vec<Outcome>>,
    /// Tail after this batch; `None` if nothing was written.
    tail: Option<Tail>,
    mark: Option<CheckpointMark>,
    bytes: u64,
}

impl Pending {
    /// Whether there is something to sync.
    pub fn is_written(&self) -> bool {
        self.tail.is_some()
    }

    /// Bytes that the batch takes in the journal.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// The state of the journal at a position, taken when a checkpoint begins and written when it is done.
#[derive(Debug, Clone)]
pub struct Frozen {
    position: Position,
    slots: Vec<SlotState>,
    bytes_total: u64,
}

impl Frozen {
    /// Everything before it is covered.
    pub fn position(&self) -> Position {
        self.position
    }
}

/// The journal of one store, open for appending.
#[derive(Debug)]
pub struct Journal<D: Disk> {
    config: JournalConfig,
    identity: Identity,
    epoch: Epoch,
    file: D::File,
    /// Bytes of the current segment's file.
    segment_length: u64,
    tail: Tail,
    slots: Vec<SlotState>,
    mark: CheckpointMark,
    /// Older segments, oldest first.
    covered_later: VecDeque<u32>,
    /// Files that may be reused, with their length.
    spares: Vec<(String, u64)>,
    /// The batch being built; its room is kept.
    buffer: Vec<u8>,
    in_flight: bool,
    /// Bytes of all batches of records that this process knows of; only differences mean something.
    bytes_total: u64,
    bytes_total_at_mark: u64,
}

/// What recovery found, for [`Journal::resume`].
pub(crate) struct Resume {
    pub(crate) identity: Identity,
    pub(crate) epoch: Epoch,
    pub(crate) tail: Tail,
    pub(crate) slots: Vec<SlotState>,
    pub(crate) mark: CheckpointMark,
    pub(crate) segments: VecDeque<u32>,
    pub(crate) spares: Vec<(String, u64)>,
    pub(crate) bytes_since_checkpoint: u64,
}

/// Why there is no new segment.
pub(crate) enum RollError {
    Disk(DiskError),
    Sync(SyncFailed),
}

impl<D: Disk> Journal<D> {
    /// Goes on behind what recovery found, in a new segment: its header makes the boot epoch durable.
    pub(crate) fn resume(disk: &mut D, config: JournalConfig, mut found: Resume) -> Result<Journal<D>, RollError> {
        for slot in &mut found.slots {
            slot.epoch = slot.epoch.max(found.epoch);
        }
        let mut made = make_segment(disk, &config, &mut found, 0);
        let mut smaller = config.clone();
        while matches!(made, Err(RollError::Disk(DiskError::Full))) && smaller.segment_bytes > SEGMENT_BYTES_MIN {
            // On a full disk recovery has just freed what lay behind the cut: enough to start and to read,
            // and for the checkpoint that lets old segments go.
            smaller.segment_bytes = (smaller.segment_bytes / 2).max(SEGMENT_BYTES_MIN);
            made = make_segment(disk, &smaller, &mut found, 0);
        }
        let made = made?;
        Ok(Journal {
            config,
            identity: found.identity,
            epoch: found.epoch,
            file: made.file,
            segment_length: made.length,
            tail: made.tail,
            slots: found.slots,
            mark: found.mark,
            covered_later: found.segments,
            spares: found.spares,
            buffer: Vec::new(),
            in_flight: false,
            bytes_total: found.bytes_since_checkpoint,
            bytes_total_at_mark: 0,
        })
    }

    /// The epoch at which this boot opened all slots.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Who the store is.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// LSN of a slot's next record.
    pub fn next_lsn(&self, slot: Slot) -> Lsn {
        self.slots[slot as usize].next_lsn
    }

    /// The newest checkpoint on disk.
    pub fn checkpoint(&self) -> CheckpointMark {
        self.mark
    }

    /// Where the next batch begins.
    pub fn position(&self) -> Position {
        position(self.tail.segment, self.tail.offset)
    }

    /// Bytes of records behind the newest checkpoint: what a restart replays.
    pub fn bytes_since_checkpoint(&self) -> u64 {
        self.bytes_total - self.bytes_total_at_mark
    }

    /// Number of segments on disk.
    pub fn segments(&self) -> usize {
        self.covered_later.len() + 1
    }

    /// Raises a slot's epoch: once this returns, no append of a lower one is accepted.
    pub fn open_slot(&mut self, slot: Slot, epoch: Epoch) -> Lsn {
        let state = &mut self.slots[slot as usize];
        state.epoch = state.epoch.max(epoch);
        state.next_lsn
    }

    /// First phase: checks the parts against the slots and writes the accepted ones at the tail.
    ///
    /// Slots move on at once, since only one batch is in flight and a failed sync ends the process.
    pub fn begin(&mut self, disk: &mut D, groups: &[AppendGroup]) -> Result<Pending, SyncFailed> {
        assert!(!self.in_flight, "one batch at a time");
        let mut undo: Vec<(Slot, SlotState)> = Vec::new();
        let mut outcomes: Vec<Vec<Outcome>> = Vec::with_capacity(groups.len());
        for group in groups {
            outcomes.push(group.parts.iter().map(|part| accept(&mut self.slots, part, &mut undo)).collect());
        }
        if undo.is_empty() {
            return Ok(Pending { outcomes, tail: None, mark: None, bytes: 0 });
        }
        self.fill_records(groups, &outcomes, undo.len());
        match self.write(disk, BatchKind::Records, undo.len() as u32, self.mark) {
            Ok((tail, bytes)) => Ok(Pending { outcomes, tail: Some(tail), mark: None, bytes }),
            Err(RollError::Sync(failed)) => Err(failed),
            Err(RollError::Disk(error)) => {
                let refusal = refusal(&error);
                for (slot, state) in undo.into_iter().rev() {
                    self.slots[slot as usize] = state;
                }
                for outcome in outcomes.iter_mut().flatten().filter(|outcome| **outcome == Outcome::Committed) {
                    *outcome = Outcome::Refused(refusal);
                }
                Ok(Pending { outcomes, tail: None, mark: None, bytes: 0 })
            }
        }
    }

    /// Second phase: syncs, and returns an outcome per part of each group given to [`Journal::begin`].
    pub fn commit(&mut self, disk: &mut D, pending: Pending) -> Result<Vec<Vec<Outcome>>, SyncFailed> {
        if let Some(tail) = pending.tail {
            disk.sync(&self.file).map_err(|error| SyncFailed { file: segment_name(self.tail.segment), error })?;
            self.in_flight = false;
            self.tail = tail;
            match pending.mark {
                // Not counted: else each checkpoint would be a reason for the next.
                Some(mark) => self.mark = mark,
                None => self.bytes_total += pending.bytes,
            }
        }
        Ok(pending.outcomes)
    }

    /// Commits an empty batch behind the last one. Without it a bit that flips in the last batch looks like a
    /// torn write and would be cut; with it, like the damage that it is.
    pub fn seal(&mut self, disk: &mut D) -> Result<Option<Refusal>, SyncFailed> {
        assert!(!self.in_flight, "a seal comes between batches");
        self.buffer.clear();
        self.buffer.resize(BATCH_HEADER_BYTES, 0);
        match self.write(disk, BatchKind::Records, 0, self.mark) {
            Ok((tail, _)) => {
                // Not counted: a seal is nothing that a checkpoint would have to cover.
                self.commit(disk, Pending { outcomes: Vec::new(), tail: Some(tail), mark: None, bytes: 0 })?;
                Ok(None)
            }
            Err(RollError::Sync(failed)) => Err(failed),
            Err(RollError::Disk(error)) => Ok(Some(refusal(&error))),
        }
    }

    /// The state up to which a checkpoint that begins now will reach.
    pub fn freeze(&self) -> Frozen {
        assert!(!self.in_flight, "a checkpoint begins between batches");
        Frozen { position: self.position(), slots: self.slots.clone(), bytes_total: self.bytes_total }
    }

    /// Commits the record of a checkpoint that the views have made durable.
    ///
    /// `Ok(Some(_))`: no room or no disk now; the checkpoint stands in the views and may be recorded later.
    pub fn record_checkpoint(
        &mut self,
        disk: &mut D,
        number: u64,
        frozen: &Frozen,
    ) -> Result<Option<Refusal>, SyncFailed> {
        assert!(!self.in_flight, "a checkpoint is recorded between batches");
        assert!(number > self.mark.number, "checkpoint numbers only grow");
        self.buffer.clear();
        self.buffer.resize(BATCH_HEADER_BYTES + TABLE_BYTES, 0);
        encode_table(&frozen.slots, &mut self.buffer[BATCH_HEADER_BYTES..]);
        // Its own place is filled in by `write`, which knows it after a roll.
        let mark = CheckpointMark { number, position: frozen.position, record: 0 };
        match self.write(disk, BatchKind::Checkpoint, 0, mark) {
            Ok((tail, bytes)) => {
                let record = position(self.tail.segment, self.tail.offset);
                let mark = CheckpointMark { record, ..mark };
                self.commit(disk, Pending { outcomes: Vec::new(), tail: Some(tail), mark: Some(mark), bytes })?;
                self.bytes_total_at_mark = frozen.bytes_total;
                Ok(None)
            }
            Err(RollError::Sync(failed)) => Err(failed),
            Err(RollError::Disk(error)) => Ok(Some(refusal(&error))),
        }
    }

    /// Removes the segments that lie wholly below the checkpoint; returns how many went.
    ///
    /// What can not be removed is tried again at the next checkpoint: a segment too many does no harm.
    pub fn remove_covered(&mut self, disk: &mut D) -> Result<usize, SyncFailed> {
        let mut removed = 0;
        while let Some(&number) = self.covered_later.front()
            && number < segment_of(self.mark.position)
            && self.retire(disk, number).is_ok()
        {
            self.covered_later.pop_front();
            removed += 1;
        }
        if removed > 0 {
            // Before a spare is written to: else its old name could come back with a new content.
            disk.sync_directory().map_err(|error| SyncFailed { file: "the journal directory".into(), error })?;
        }
        Ok(removed)
    }

    /// Keeps a segment as a spare, or removes it.
    fn retire(&mut self, disk: &mut D, number: u32) -> Result<(), DiskError> {
        let name = segment_name(number);
        if self.spares.len() < self.config.spares_max
            && let Some(length) = self.length_for_reuse(disk, &name)
        {
            let spare = spare_name(number);
            disk.rename(&name, &spare)?;
            self.spares.push((spare, length));
            return Ok(());
        }
        disk.remove(&name)
    }

    /// Closes the file; nothing is in flight.
    pub fn close(self, disk: &mut D) {
        disk.close(self.file);
    }

    /// Only segments of the usual size are kept: one cut by a recovery would have to grow again.
    fn length_for_reuse(&self, disk: &mut D, name: &str) -> Option<u64> {
        let file = disk.open(name).ok()?;
        let length = disk.length(&file);
        disk.close(file);
        length.ok().filter(|&length| length == self.config.segment_bytes)
    }

    fn fill_records(&mut self, groups: &[AppendGroup], outcomes: &[Vec<Outcome>], accepted: usize) {
        let buffer = &mut self.buffer;
        buffer.clear();
        buffer.resize(BATCH_HEADER_BYTES + accepted * PART_BYTES, 0);
        let mut entry = BATCH_HEADER_BYTES;
        for (group, outcomes) in groups.iter().zip(outcomes) {
            for (part, _) in group.parts.iter().zip(outcomes).filter(|(_, o)| **o == Outcome::Committed) {
                PartEntry::of(part).encode(&mut buffer[entry..entry + PART_BYTES]);
                entry += PART_BYTES;
                buffer.extend_from_slice(&group.bytes[part.bytes.start as usize..part.bytes.end as usize]);
            }
        }
    }

    /// Writes the batch in the buffer; returns the tail behind it and its bytes.
    fn write(
        &mut self,
        disk: &mut D,
        kind: BatchKind,
        parts: u32,
        mut checkpoint: CheckpointMark,
    ) -> Result<(Tail, u64), RollError> {
        let body_bytes = self.buffer.len() - BATCH_HEADER_BYTES;
        let stored = blocks(self.buffer.len());
        self.buffer.resize(stored, 0);
        self.make_room(disk, kind, stored as u64)?;
        let here = self.position();
        if kind == BatchKind::Checkpoint {
            checkpoint.record = here;
        }
        let body = BATCH_HEADER_BYTES..BATCH_HEADER_BYTES + body_bytes;
        let mut header = BatchHeader {
            kind,
            epoch: self.epoch,
            number: self.tail.number,
            position: here,
            synced: here,
            checkpoint,
            parts,
            body_bytes: body_bytes as u32,
            previous_checksum: self.tail.checksum,
            body_checksum: crc32fast::hash(&self.buffer[body]),
            checksum: 0,
        };
        header.encode(self.identity.store_key, &mut self.buffer);
        disk.write_at(&self.file, u64::from(self.tail.offset), &self.buffer).map_err(RollError::Disk)?;
        self.in_flight = true;
        let tail = Tail {
            segment: self.tail.segment,
            offset: self.tail.offset + stored as u32,
            number: header.number + 1,
            checksum: header.checksum,
        };
        Ok((tail, stored as u64))
    }

    /// Begins a new segment if the batch does not fit. The last room of a segment is for a checkpoint:
    /// on a full disk it is what lets old segments go.
    fn make_room(&mut self, disk: &mut D, kind: BatchKind, stored: u64) -> Result<(), RollError> {
        let reserve = if kind == BatchKind::Checkpoint { 0 } else { CHECKPOINT_RECORD_BYTES };
        if u64::from(self.tail.offset) + stored + reserve <= self.segment_length {
            return Ok(());
        }
        let mut found = Resume {
            identity: self.identity,
            epoch: self.epoch,
            tail: self.tail,
            slots: Vec::new(),
            mark: self.mark,
            segments: std::mem::take(&mut self.covered_later),
            spares: std::mem::take(&mut self.spares),
            bytes_since_checkpoint: 0,
        };
        let made = make_segment(disk, &self.config, &mut found, stored + reserve);
        self.covered_later = found.segments;
        self.spares = found.spares;
        let made = made?;
        disk.close(std::mem::replace(&mut self.file, made.file));
        self.segment_length = made.length;
        self.tail = made.tail;
        Ok(())
    }
}

struct MadeSegment<F> {
    file: F,
    length: u64,
    tail: Tail,
}

/// Makes the segment behind `found.tail`. Once its name is durable the earlier one is closed for ever at that tail.
fn make_segment<D: Disk>(
    disk: &mut D,
    config: &JournalConfig,
    found: &mut Resume,
    bytes_needed: u64,
) -> Result<MadeSegment<D::File>, RollError> {
    let length =
        (config.segment_bytes.max(bytes_needed + u64::from(FIRST_BATCH_OFFSET))).next_multiple_of(BLOCK_BYTES as u64);
    let number = found.tail.segment + 1;
    let name = segment_name(number);
    let new_name = format!("{name}.new");
    let header = SegmentHeader {
        number,
        epoch: found.epoch,
        first_batch: found.tail.number,
        previous_end: found.tail.offset,
        previous_checksum: found.tail.checksum,
        checkpoint: found.mark,
    };
    let file = match found.spares.iter().position(|&(_, spare_length)| spare_length == length) {
        Some(index) => {
            disk.rename(&found.spares[index].0, &new_name).map_err(RollError::Disk)?;
            found.spares.remove(index);
            disk.open(&new_name)
        }
        None => disk.create(&new_name, length),
    }
    .map_err(RollError::Disk)?;
    let mut block = vec![0; BLOCK_BYTES];
    header.encode(found.identity.store_key, &mut block);
    if let Err(error) = disk.write_at(&file, 0, &block) {
        disk.close(file);
        // If this fails too, the next attempt replaces the file.
        let _ = disk.remove(&new_name);
        return Err(RollError::Disk(error));
    }
    let failed = |error: DiskError| RollError::Sync(SyncFailed { file: name.clone(), error });
    disk.sync(&file).map_err(failed)?;
    disk.rename(&new_name, &name).map_err(RollError::Disk)?;
    disk.sync_directory().map_err(failed)?;
    if found.tail.segment > 0 {
        found.segments.push_back(found.tail.segment);
    }
    let tail = Tail { segment: number, offset: FIRST_BATCH_OFFSET, ..found.tail };
    Ok(MadeSegment { file, length, tail })
}

/// Decides a part and moves its slot on.
fn accept(slots: &mut [SlotState], part: &Part, undo: &mut Vec<(Slot, SlotState)>) -> Outcome {
    assert!((part.slot as usize) < SLOTS, "slots are below 4,096");
    let state = &mut slots[part.slot as usize];
    if part.epoch < state.epoch {
        return Outcome::Fenced;
    }
    if part.expected_lsn != state.next_lsn {
        return Outcome::Conflict;
    }
    undo.push((part.slot, *state));
    *state = SlotState { epoch: part.epoch, next_lsn: state.next_lsn + u64::from(part.records) };
    Outcome::Committed
}

fn refusal(error: &DiskError) -> Refusal {
    match error {
        DiskError::Full => Refusal::Full,
        DiskError::NotFound | DiskError::Io(_) => Refusal::Unavailable,
    }
}
