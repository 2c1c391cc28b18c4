//! The reading side of the journal: what is on disk, where it ends, and what has to be replayed.
//!
//! [`scan`] only reads; [`resume`] cuts the tail and starts the segment of this boot. Between the two
//! the caller may still refuse, and nothing has changed.

use std::collections::VecDeque;

use crate::disk::{BLOCK_BYTES, Disk, DiskError};
use crate::journal::{Journal, JournalConfig, Resume, RollError, SyncFailed, Tail};
use crate::planted::Planted;
use crate::seam::{AppendGroup, Epoch, Part, Position};
use crate::segment::{
    BATCH_HEADER_BYTES, BatchHeader, BatchKind, CheckpointMark, FIRST_BATCH_OFFSET, FormatError, Identity, PART_BYTES,
    PartEntry, SLOTS, SegmentHeader, SlotState, TABLE_BYTES, blocks, decode_table, position, segment_name,
    segment_number, segment_of,
};

/// The file that says who the store is.
pub const IDENTITY_FILE: &str = "identity";
/// Bytes read at once.
const WINDOW_BYTES: usize = 1 << 20;

/// Why a journal was not opened. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The disk did not do what was asked.
    #[error("journal/{file}: {error}")]
    Disk {
        /// The file.
        file: String,
        /// What the system said.
        error: DiskError,
    },
    /// Written by a newer version of the program.
    #[error("journal/{file} has format version {version}, which this version of Ringway can not read")]
    Newer {
        /// The file.
        file: String,
        /// Its version.
        version: u32,
    },
    /// What was once durable is not what was written.
    #[error("journal/{file} is damaged at byte {offset}: {what}; run `ringway storage check`")]
    Damaged {
        /// The file.
        file: String,
        /// Where in it.
        offset: u64,
        /// What is wrong there.
        what: String,
    },
    /// Segments without an identity: not begun again as an empty store.
    #[error(
        "journal/identity is missing, but there are segments; restore it from a backup, or run `ringway storage check`"
    )]
    IdentityMissing,
    /// The segment of this boot could not be made.
    #[error("the journal can not begin a new segment: {0}; free some space and start again")]
    NoSegment(DiskError),
    /// A sync failed.
    #[error(transparent)]
    Sync(#[from] SyncFailed),
}

/// A batch behind the checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecoveredBatch {
    /// Where it lies.
    pub position: Position,
    parts: usize,
    body: Vec<u8>,
}

impl RecoveredBatch {
    /// Its parts, each as a group of its own, in order.
    pub fn groups(&self) -> impl Iterator<Item = AppendGroup> + '_ {
        let mut start = self.parts * PART_BYTES;
        (0..self.parts).map(move |index| {
            let entry = PartEntry::decode(&self.body, index);
            let bytes = self.body[start..start + entry.bytes as usize].to_vec();
            start += entry.bytes as usize;
            let part = Part {
                slot: entry.slot,
                epoch: entry.epoch,
                expected_lsn: entry.first_lsn,
                records: entry.records,
                bytes: 0..entry.bytes,
            };
            AppendGroup { ticket: 0, parts: vec![part], bytes }
        })
    }
}

/// What [`scan`] found.
#[derive(Debug)]
pub struct Scan {
    identity: Identity,
    /// Numbers of the segments that count, in order.
    segments: Vec<u32>,
    /// Files that count for nothing: half made segments, and removed ones whose removal was lost.
    leftovers: Vec<String>,
    spares: Vec<(String, u64)>,
    tail: Tail,
    /// Length of the last segment's file.
    tail_length: u64,
    epoch: Epoch,
    mark: CheckpointMark,
    slots: Vec<SlotState>,
    batches: Vec<RecoveredBatch>,
    bytes_since_checkpoint: u64,
    bytes_read: u64,
}

impl Scan {
    /// The newest checkpoint in the journal.
    pub fn checkpoint(&self) -> CheckpointMark {
        self.mark
    }

    /// Where the journal ends.
    pub fn tail(&self) -> Position {
        position(self.tail.segment, self.tail.offset)
    }

    /// The batches behind the checkpoint, in order.
    pub fn batches(&self) -> &[RecoveredBatch] {
        &self.batches
    }

    /// Who the store is.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// Number of segments and bytes of batches read.
    pub fn size(&self) -> (usize, u64) {
        (self.segments.len(), self.bytes_read)
    }
}

/// A journal that is open, and what its shards have to apply before they serve.
#[derive(Debug)]
pub struct Opened<D: Disk> {
    /// For appending.
    pub journal: Journal<D>,
    /// Batches behind the checkpoint, durable, in order.
    pub recovered: Vec<RecoveredBatch>,
}

/// Makes an empty journal. The identity is written last: without it there is no store.
pub fn create<D: Disk>(disk: &mut D, config: JournalConfig, identity: Identity) -> Result<Opened<D>, OpenError> {
    let start = Resume {
        identity,
        epoch: 1,
        tail: Tail { segment: 0, offset: 0, number: 1, checksum: 0 },
        slots: vec![SlotState::default(); SLOTS],
        mark: CheckpointMark::default(),
        segments: VecDeque::new(),
        spares: Vec::new(),
        bytes_since_checkpoint: 0,
    };
    let journal = Journal::resume(disk, config, start)?;
    write_identity(disk, identity)?;
    Ok(Opened { journal, recovered: Vec::new() })
}

/// Replaces the identity file; `ringway storage restore` renews the generation with it.
pub fn write_identity<D: Disk>(disk: &mut D, identity: Identity) -> Result<(), OpenError> {
    let failed = |error| OpenError::Disk { file: IDENTITY_FILE.into(), error };
    let new = format!("{IDENTITY_FILE}.new");
    let mut block = vec![0; BLOCK_BYTES];
    identity.encode(&mut block);
    let file = disk.create(&new, BLOCK_BYTES as u64).map_err(failed)?;
    let written = disk.write_at(&file, 0, &block).and_then(|()| disk.sync(&file));
    disk.close(file);
    written.map_err(failed)?;
    disk.rename(&new, IDENTITY_FILE).map_err(failed)?;
    disk.sync_directory().map_err(failed)
}

/// Reads the whole journal. `Ok(None)`: there is none, and [`create`] may make one.
pub fn scan<D: Disk>(disk: &mut D, planted: Planted) -> Result<Option<Scan>, OpenError> {
    let names = disk.list().map_err(|error| OpenError::Disk { file: String::new(), error })?;
    if !names.iter().any(|name| name == IDENTITY_FILE) {
        refuse_orphans(disk, &names)?;
        return Ok(None);
    }
    let identity = read_identity(disk)?;
    let (segments, leftovers) = sort_names(&names);
    if segments.is_empty() {
        return Err(damaged(&segment_name(1), 0, "all segments are missing"));
    }
    let spares = spares(disk, &names);
    let mut files = Vec::new();
    for &number in &segments {
        files.push(Segment::open(disk, identity.store_key, number)?);
    }
    let first = files[0].header;
    let mut walk = Walk {
        identity,
        planted,
        tail: Tail {
            segment: first.number,
            offset: FIRST_BATCH_OFFSET,
            number: first.first_batch,
            checksum: first.previous_checksum,
        },
        epoch: first.epoch,
        mark: CheckpointMark::default(),
        mark_claimed: first.checkpoint.number,
        slots: vec![SlotState::default(); SLOTS],
        batches: Vec::new(),
        sizes: Vec::new(),
        bytes_read: 0,
    };
    for index in 0..files.len() {
        let successor = files.get(index + 1).map(|segment| segment.header);
        let segment = &mut files[index];
        walk.segment(disk, segment, successor)?;
    }
    let tail_length = files.last().map_or(0, |segment| segment.length);
    for segment in files {
        disk.close(segment.file);
    }
    walk.check_checkpoint(first.number)?;
    walk.replay_slots()?;
    Ok(Some(Scan {
        identity,
        segments,
        leftovers,
        spares,
        tail: walk.tail,
        tail_length,
        epoch: walk.epoch,
        mark: walk.mark,
        bytes_since_checkpoint: walk.sizes.iter().map(|&(_, bytes)| bytes).sum(),
        slots: walk.slots,
        batches: walk.batches,
        bytes_read: walk.bytes_read,
    }))
}

/// Makes what was found durable, cuts what lies behind it, and opens the segment of this boot.
///
/// The order matters: nothing of what `scan` returned may be shown before this returns, since a part of
/// it may only be in a cache.
pub fn resume<D: Disk>(
    disk: &mut D,
    config: JournalConfig,
    scan: Scan,
    planted: Planted,
) -> Result<Opened<D>, OpenError> {
    let last = segment_name(scan.tail.segment);
    let failed = |error| OpenError::Disk { file: last.clone(), error };
    if !planted.serve_unsynced {
        let file = disk.open(&last).map_err(failed)?;
        let sync = |disk: &mut D| disk.sync(&file).map_err(|error| SyncFailed { file: last.clone(), error });
        sync(disk)?;
        if u64::from(scan.tail.offset) < scan.tail_length {
            disk.truncate(&file, u64::from(scan.tail.offset)).map_err(failed)?;
            sync(disk)?;
        }
        disk.close(file);
    }
    for name in &scan.leftovers {
        disk.remove(name).map_err(|error| OpenError::Disk { file: name.clone(), error })?;
    }
    // A spare may have its name from a process that died before the name was durable. Written to before that,
    // it could come back as the segment that it was, with another's header.
    disk.sync_directory().map_err(|error| SyncFailed { file: "the journal directory".into(), error })?;
    let mut segments: VecDeque<u32> = scan.segments.into();
    segments.pop_back();
    let found = Resume {
        identity: scan.identity,
        epoch: scan.epoch + 1,
        tail: scan.tail,
        slots: scan.slots,
        mark: scan.mark,
        segments,
        spares: scan.spares,
        bytes_since_checkpoint: scan.bytes_since_checkpoint,
    };
    let journal = Journal::resume(disk, config, found)?;
    Ok(Opened { journal, recovered: scan.batches })
}

/// [`scan`] and [`resume`], or [`create`] with `fresh` if there is no journal.
pub fn open<D: Disk>(disk: &mut D, config: JournalConfig, fresh: Identity) -> Result<Opened<D>, OpenError> {
    match scan(disk, Planted::NONE)? {
        Some(found) => resume(disk, config, found, Planted::NONE),
        None => create(disk, config, fresh),
    }
}

/// A segment being read.
struct Segment<F> {
    name: String,
    file: F,
    length: u64,
    header: SegmentHeader,
    window: Vec<u8>,
    window_start: u64,
}

impl<F> Segment<F> {
    fn open<D: Disk<File = F>>(disk: &mut D, store_key: u64, number: u32) -> Result<Segment<F>, OpenError> {
        let name = segment_name(number);
        let failed = |error| OpenError::Disk { file: name.clone(), error };
        let file = disk.open(&name).map_err(failed)?;
        let length = disk.length(&file).map_err(failed)?;
        if length < BLOCK_BYTES as u64 {
            return Err(damaged(&name, 0, "the file is shorter than its header"));
        }
        let mut block = vec![0; BLOCK_BYTES];
        disk.read_at(&file, 0, &mut block).map_err(failed)?;
        let header = match SegmentHeader::decode(store_key, &block) {
            Ok(header) if header.number == number => header,
            Ok(header) => {
                return Err(damaged(&name, 0, format!("its header says segment {}", header.number)));
            }
            Err(FormatError::Newer(version)) => {
                return Err(OpenError::Newer { file: name, version });
            }
            Err(FormatError::Invalid) => {
                return Err(damaged(&name, 0, "the segment's header is not valid"));
            }
        };
        Ok(Segment { name, file, length, header, window: Vec::new(), window_start: 0 })
    }

    /// `bytes` from `offset` on; `None` if the file ends before.
    fn get<D: Disk<File = F>>(&mut self, disk: &mut D, offset: u64, bytes: usize) -> Result<Option<&[u8]>, OpenError> {
        let end = offset + bytes as u64;
        if end > self.length {
            return Ok(None);
        }
        if offset < self.window_start || end > self.window_start + self.window.len() as u64 {
            let whole = blocks(bytes).max(WINDOW_BYTES).min((self.length - offset) as usize);
            // A file whose length is no multiple of a block was cut by someone else; its last part is no batch.
            let whole = if whole < blocks(bytes) {
                return Ok(None);
            } else {
                whole / BLOCK_BYTES * BLOCK_BYTES
            };
            self.window.resize(whole, 0);
            self.window_start = offset;
            if let Err(error) = disk.read_at(&self.file, offset, &mut self.window) {
                self.window.clear();
                return Err(OpenError::Disk { file: self.name.clone(), error });
            }
        }
        let start = (offset - self.window_start) as usize;
        Ok(Some(&self.window[start..start + bytes]))
    }
}

/// The walk over all segments.
struct Walk {
    identity: Identity,
    planted: Planted,
    tail: Tail,
    epoch: Epoch,
    mark: CheckpointMark,
    /// Newest checkpoint that any header speaks of.
    mark_claimed: u64,
    slots: Vec<SlotState>,
    batches: Vec<RecoveredBatch>,
    /// Position and stored bytes of every batch of records at or behind the checkpoint.
    sizes: Vec<(Position, u64)>,
    bytes_read: u64,
}

impl Walk {
    fn segment<D: Disk>(
        &mut self,
        disk: &mut D,
        segment: &mut Segment<D::File>,
        successor: Option<SegmentHeader>,
    ) -> Result<(), OpenError> {
        self.enter(segment)?;
        let end = successor.map_or(segment.length, |header| u64::from(header.previous_end));
        while u64::from(self.tail.offset) < end {
            let offset = u64::from(self.tail.offset);
            match self.batch(disk, segment)? {
                Ok(()) => {}
                Err(what) if successor.is_some() => {
                    return Err(damaged(&segment.name, offset, what));
                }
                Err(what) => return self.accept_end(disk, segment, &what),
            }
        }
        if u64::from(self.tail.offset) == end {
            return Ok(());
        }
        Err(damaged(&segment.name, end, "a batch reaches over the end that the next segment names"))
    }

    /// Checks that a segment continues what was read so far.
    fn enter<F>(&mut self, segment: &Segment<F>) -> Result<(), OpenError> {
        let header = segment.header;
        let continues = header.first_batch == self.tail.number && header.previous_checksum == self.tail.checksum;
        if !continues || header.epoch < self.epoch {
            return Err(damaged(&segment.name, 0, "the segment does not continue the one before it"));
        }
        self.epoch = header.epoch;
        self.mark_claimed = self.mark_claimed.max(header.checkpoint.number);
        self.tail.segment = header.number;
        self.tail.offset = FIRST_BATCH_OFFSET;
        Ok(())
    }

    /// Takes the batch at the tail; the inner error says why there is none.
    fn batch<D: Disk>(
        &mut self,
        disk: &mut D,
        segment: &mut Segment<D::File>,
    ) -> Result<Result<(), String>, OpenError> {
        let offset = u64::from(self.tail.offset);
        let Some(bytes) = segment.get(disk, offset, BLOCK_BYTES)? else {
            return Ok(Err("the file ends inside a batch".into()));
        };
        let Some(header) = BatchHeader::decode(self.identity.store_key, bytes) else {
            return Ok(Err("no valid batch header".into()));
        };
        if !self.belongs(&header) {
            return Ok(Err(format!("a batch of another place or time, number {}", header.number)));
        }
        if !self.continues_chain(&header) {
            // Never a torn tail: it was written when the one before it had been synced, and that is gone.
            let what = format!("batch {} follows another batch than the one before it", header.number);
            return Err(damaged(&segment.name, offset, what));
        }
        let stored = header.stored_bytes();
        let Some(bytes) = segment.get(disk, offset, stored as usize)? else {
            return Ok(Err("the file ends inside a batch".into()));
        };
        let body = &bytes[BATCH_HEADER_BYTES..BATCH_HEADER_BYTES + header.body_bytes as usize];
        if crc32fast::hash(body) != header.body_checksum {
            return Ok(Err("the checksum of the batch does not match".into()));
        }
        if !body_is_whole(&header, body) {
            return Ok(Err("the parts do not fill the batch".into()));
        }
        self.take(&header, body);
        self.tail.offset += stored as u32;
        Ok(Ok(()))
    }

    /// Whether a batch belongs here: a stale one, of an earlier life of this room, does not.
    fn belongs(&self, header: &BatchHeader) -> bool {
        let here = position(self.tail.segment, self.tail.offset);
        let fits = header.position == here && header.epoch == self.epoch && header.number == self.tail.number;
        fits || self.planted.stale_tail
    }

    /// Whether a batch that belongs here was written behind the one that was read before it.
    fn continues_chain(&self, header: &BatchHeader) -> bool {
        header.previous_checksum == self.tail.checksum || self.planted.stale_tail
    }

    fn take(&mut self, header: &BatchHeader, body: &[u8]) {
        self.tail.number = header.number + 1;
        self.tail.checksum = header.checksum;
        self.mark_claimed = self.mark_claimed.max(header.checkpoint.number);
        self.bytes_read += header.stored_bytes();
        let here = position(self.tail.segment, self.tail.offset);
        match header.kind {
            // A seal: nothing to replay.
            BatchKind::Records if header.parts == 0 => {}
            BatchKind::Records => {
                self.sizes.push((here, header.stored_bytes()));
                self.batches.push(RecoveredBatch { position: here, parts: header.parts as usize, body: body.to_vec() });
            }
            BatchKind::Checkpoint => {
                self.mark = header.checkpoint;
                self.slots = decode_table(body);
                self.batches.retain(|batch| batch.position >= header.checkpoint.position);
                self.sizes.retain(|&(place, _)| place >= header.checkpoint.position);
            }
        }
    }

    /// The last segment's first invalid batch: a torn tail, unless something valid follows it.
    fn accept_end<D: Disk>(
        &mut self,
        disk: &mut D,
        segment: &mut Segment<D::File>,
        what: &str,
    ) -> Result<(), OpenError> {
        let cut = u64::from(self.tail.offset);
        let mut offset = cut + BLOCK_BYTES as u64;
        while let Some(bytes) = segment.get(disk, offset, BLOCK_BYTES)? {
            if let Some(header) = BatchHeader::decode(self.identity.store_key, bytes)
                && header.position == position(segment.header.number, offset as u32)
                && header.epoch == segment.header.epoch
                && header.number > self.tail.number
            {
                // It was written after everything before it had been synced.
                return Err(damaged(&segment.name, cut, format!("{what}, but batch {} follows", header.number)));
            }
            offset += BLOCK_BYTES as u64;
        }
        Ok(())
    }

    /// The newest checkpoint that any header names must have been found, with everything behind it.
    fn check_checkpoint(&self, first_segment: u32) -> Result<(), OpenError> {
        let name = segment_name(first_segment);
        if self.planted.stale_tail {
            return Ok(());
        }
        if self.mark.number < self.mark_claimed {
            let what = format!("the record of checkpoint {} is missing", self.mark_claimed);
            return Err(damaged(&name, 0, what));
        }
        let begins = if self.mark.number == 0 { 1 } else { segment_of(self.mark.position) };
        if first_segment > begins {
            let what = format!("segments {begins} to {} are missing", first_segment - 1);
            return Err(damaged(&segment_name(begins), 0, what));
        }
        Ok(())
    }

    /// Moves the slots from the checkpoint's table to the tail.
    fn replay_slots(&mut self) -> Result<(), OpenError> {
        for batch in &self.batches {
            for index in 0..batch.parts {
                let part = PartEntry::decode(&batch.body, index);
                let state = &mut self.slots[part.slot as usize];
                let continues = part.first_lsn == state.next_lsn && part.epoch >= state.epoch;
                if !continues && !self.planted.stale_tail {
                    let (segment, offset) = (segment_of(batch.position), batch.position as u32);
                    let what = format!("slot {} does not continue at LSN {}", part.slot, state.next_lsn);
                    return Err(damaged(&segment_name(segment), u64::from(offset), what));
                }
                *state = SlotState { epoch: part.epoch, next_lsn: part.first_lsn + u64::from(part.records) };
            }
        }
        Ok(())
    }
}

/// The table and the parts must fill the body exactly; slots must exist.
fn body_is_whole(header: &BatchHeader, body: &[u8]) -> bool {
    if header.kind == BatchKind::Checkpoint {
        return body.len() == TABLE_BYTES;
    }
    let parts = header.parts as usize;
    let Some(table_bytes) = parts.checked_mul(PART_BYTES).filter(|&bytes| bytes <= body.len()) else {
        return false;
    };
    let entries = (0..parts).map(|index| PartEntry::decode(body, index));
    let slots_exist = entries.clone().all(|entry| (entry.slot as usize) < SLOTS);
    slots_exist && entries.map(|entry| entry.bytes as usize).sum::<usize>() == body.len() - table_bytes
}

fn read_identity<D: Disk>(disk: &mut D) -> Result<Identity, OpenError> {
    let failed = |error| OpenError::Disk { file: IDENTITY_FILE.into(), error };
    let file = disk.open(IDENTITY_FILE).map_err(failed)?;
    let mut block = vec![0; BLOCK_BYTES];
    let read = disk.read_at(&file, 0, &mut block);
    disk.close(file);
    read.map_err(failed)?;
    Identity::decode(&block).map_err(|error| match error {
        FormatError::Newer(version) => OpenError::Newer { file: IDENTITY_FILE.into(), version },
        FormatError::Invalid => damaged(IDENTITY_FILE, 0, error.to_string()),
    })
}

/// Without an identity, only what a crash during creation leaves behind may be there: no batch.
fn refuse_orphans<D: Disk>(disk: &mut D, names: &[String]) -> Result<(), OpenError> {
    for name in names.iter().filter(|name| segment_number(name).is_some()) {
        let failed = |error| OpenError::Disk { file: name.clone(), error };
        let file = disk.open(name).map_err(failed)?;
        let mut block = vec![0; BLOCK_BYTES];
        // One that is too short for a batch has none.
        let read = disk.read_at(&file, u64::from(FIRST_BATCH_OFFSET), &mut block);
        disk.close(file);
        let has_batch = read.is_ok() && block.iter().any(|&byte| byte != 0);
        if has_batch || segment_number(name) != Some(1) {
            return Err(OpenError::IdentityMissing);
        }
    }
    Ok(())
}

/// The segments numbered without a gap up to the highest, and the names that count for nothing.
fn sort_names(names: &[String]) -> (Vec<u32>, Vec<String>) {
    let mut numbers: Vec<u32> = names.iter().filter_map(|name| segment_number(name)).collect();
    numbers.sort_unstable();
    let gap = (1..numbers.len()).rev().find(|&index| numbers[index] != numbers[index - 1] + 1);
    let counted = numbers.split_off(gap.unwrap_or(0));
    // Below a gap lies what was removed, and whose removal a power cut undid. A gap that is damage
    // shows when the checkpoint turns out to lie below it.
    let below = numbers.into_iter().map(segment_name);
    let unfinished = names.iter().filter(|name| name.strip_suffix(".new").is_some()).cloned();
    (counted, below.chain(unfinished).collect())
}

fn spares<D: Disk>(disk: &mut D, names: &[String]) -> Vec<(String, u64)> {
    let mut spares = Vec::new();
    for name in names.iter().filter(|name| name.strip_suffix(".spare").is_some()) {
        // One that can not be read is not used, and does no harm.
        if let Ok(file) = disk.open(name) {
            if let Ok(length) = disk.length(&file) {
                spares.push((name.clone(), length));
            }
            disk.close(file);
        }
    }
    spares
}

fn damaged(file: &str, offset: u64, what: impl Into<String>) -> OpenError {
    OpenError::Damaged { file: file.into(), offset, what: what.into() }
}

impl From<RollError> for OpenError {
    fn from(error: RollError) -> OpenError {
        match error {
            RollError::Disk(error) => OpenError::NoSegment(error),
            RollError::Sync(failed) => OpenError::Sync(failed),
        }
    }
}
