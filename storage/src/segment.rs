//! The bytes of the journal: identity, segment headers, batch headers, the parts table, checkpoint tables.
//!
//! Bytes in, values out; `docs/storage.md` draws the layout. All numbers are little-endian.

use crate::disk::BLOCK_BYTES;
use crate::seam::{Epoch, Lsn, Part, Position, Slot};

/// Version of everything in the journal directory. Older ones are read, newer ones refused.
pub const FORMAT_VERSION: u32 = 1;
/// Number of slots in a checkpoint's table.
pub const SLOTS: usize = 4096;
/// Bytes of a batch's header; the parts table follows directly.
pub const BATCH_HEADER_BYTES: usize = 128;
/// Bytes of one entry of the parts table.
pub const PART_BYTES: usize = 32;
/// Bytes of a checkpoint's table.
pub const TABLE_BYTES: usize = SLOTS * 16;
/// Bytes of a whole checkpoint record: what each segment keeps free at its end.
pub const CHECKPOINT_RECORD_BYTES: u64 = blocks(BATCH_HEADER_BYTES + TABLE_BYTES) as u64;
/// Where the first batch of a segment lies.
pub const FIRST_BATCH_OFFSET: u32 = BLOCK_BYTES as u32;

const IDENTITY_MAGIC: [u8; 8] = *b"RWSTORE1";
const SEGMENT_MAGIC: [u8; 8] = *b"RWSEGMT1";
const BATCH_MAGIC: [u8; 8] = *b"RWBATCH1";

/// `bytes` rounded up to whole blocks.
pub const fn blocks(bytes: usize) -> usize {
    bytes.div_ceil(BLOCK_BYTES) * BLOCK_BYTES
}

/// The position of byte `offset` of segment `segment`.
pub const fn position(segment: u32, offset: u32) -> Position {
    (segment as u64) << 32 | offset as u64
}

/// The segment that a position lies in.
pub const fn segment_of(position: Position) -> u32 {
    (position >> 32) as u32
}

/// The byte of its segment that a position names.
pub const fn offset_of(position: Position) -> u32 {
    position as u32
}

/// The file that holds a segment.
pub fn segment_name(number: u32) -> String {
    format!("{number:010}.seg")
}

/// The file that keeps a removed segment's room for reuse.
pub fn spare_name(number: u32) -> String {
    format!("{number:010}.spare")
}

/// The number of the segment that a file holds.
pub fn segment_number(name: &str) -> Option<u32> {
    let digits = name.strip_suffix(".seg")?;
    (digits.len() == 10 && digits.bytes().all(|digit| digit.is_ascii_digit())).then(|| digits.parse().ok()).flatten()
}

/// Who this store is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Incarnation of the history; clients are told.
    pub generation: u64,
    /// Secret number in every header, so that nothing a user sends can look like one.
    pub store_key: u64,
}

/// The newest checkpoint that the writer of a header knew of. Number 0: none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CheckpointMark {
    /// Counts up; gaps are possible.
    pub number: u64,
    /// Everything before it is in the views; replay begins here.
    pub position: Position,
    /// Where its record lies.
    pub record: Position,
}

/// Block 0 of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Counts up by one from 1.
    pub number: u32,
    /// The boot that made it; all its batches are of this boot.
    pub epoch: Epoch,
    /// Number of its first batch.
    pub first_batch: u64,
    /// Where the segment before it ended.
    pub previous_end: u32,
    /// Checksum of the last batch before it.
    pub previous_checksum: u32,
    /// The newest checkpoint at that time.
    pub checkpoint: CheckpointMark,
}

/// What a batch carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BatchKind {
    /// Parts of slots.
    Records,
    /// A checkpoint's table.
    Checkpoint,
}

/// The first bytes of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchHeader {
    /// What the body is.
    pub kind: BatchKind,
    /// The boot that wrote it.
    pub epoch: Epoch,
    /// Counts up by one over all segments.
    pub number: u64,
    /// Where it lies.
    pub position: Position,
    /// Everything before this was synced when it was written.
    pub synced: Position,
    /// The newest checkpoint; a checkpoint record names itself.
    pub checkpoint: CheckpointMark,
    /// Entries in the parts table.
    pub parts: u32,
    /// Bytes behind the header: the parts table and the parts.
    pub body_bytes: u32,
    /// Checksum of the batch before it.
    pub previous_checksum: u32,
    /// Checksum of the body.
    pub body_checksum: u32,
    /// Checksum of the header, and by it of everything before.
    pub checksum: u32,
}

impl BatchHeader {
    /// Bytes that the batch takes in its segment.
    pub fn stored_bytes(&self) -> u64 {
        blocks(BATCH_HEADER_BYTES + self.body_bytes as usize) as u64
    }
}

/// One slot's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SlotState {
    /// Highest epoch that appended or opened.
    pub epoch: Epoch,
    /// LSN of the next record.
    pub next_lsn: Lsn,
}

/// Why a header is not one of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// Not our magic, not our store, or a checksum that does not match.
    #[error("checksum or magic does not match")]
    Invalid,
    /// Written by a newer program.
    #[error("format version {0} is newer than this program's {FORMAT_VERSION}")]
    Newer(u32),
}

/// Fills numbers in from the front.
struct Writer<'a>(&'a mut [u8], usize);

impl Writer<'_> {
    fn bytes(&mut self, bytes: &[u8]) {
        self.0[self.1..self.1 + bytes.len()].copy_from_slice(bytes);
        self.1 += bytes.len();
    }
    fn u16(&mut self, value: u16) {
        self.bytes(&value.to_le_bytes());
    }
    fn u32(&mut self, value: u32) {
        self.bytes(&value.to_le_bytes());
    }
    fn u64(&mut self, value: u64) {
        self.bytes(&value.to_le_bytes());
    }
    fn mark(&mut self, mark: CheckpointMark) {
        self.u64(mark.number);
        self.u64(mark.position);
        self.u64(mark.record);
    }
}

/// Takes numbers from the front; callers have checked the length.
struct Reader<'a>(&'a [u8], usize);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let bytes = self.0[self.1..self.1 + N].try_into().expect("a slice of N bytes is an array of N");
        self.1 += N;
        bytes
    }
    fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.take())
    }
    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }
    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }
    fn mark(&mut self) -> CheckpointMark {
        CheckpointMark { number: self.u64(), position: self.u64(), record: self.u64() }
    }
}

impl Identity {
    /// Writes it into the first bytes of a zeroed block.
    pub fn encode(self, block: &mut [u8]) {
        let mut writer = Writer(block, 0);
        writer.bytes(&IDENTITY_MAGIC);
        writer.u32(FORMAT_VERSION);
        writer.u32(0);
        writer.u64(self.generation);
        writer.u64(self.store_key);
        seal(block, 32);
    }

    /// Reads it back.
    pub fn decode(block: &[u8]) -> Result<Identity, FormatError> {
        check(block, IDENTITY_MAGIC, 32)?;
        let mut reader = Reader(block, 16);
        Ok(Identity { generation: reader.u64(), store_key: reader.u64() })
    }
}

impl SegmentHeader {
    /// Writes it into the first bytes of a zeroed block.
    pub fn encode(&self, store_key: u64, block: &mut [u8]) {
        let mut writer = Writer(block, 0);
        writer.bytes(&SEGMENT_MAGIC);
        writer.u32(FORMAT_VERSION);
        writer.u32(self.number);
        writer.u64(store_key);
        writer.u64(self.epoch);
        writer.u64(self.first_batch);
        writer.u32(self.previous_end);
        writer.u32(self.previous_checksum);
        writer.mark(self.checkpoint);
        seal(block, 72);
    }

    /// Reads it back; one of another store is invalid.
    pub fn decode(store_key: u64, block: &[u8]) -> Result<SegmentHeader, FormatError> {
        check(block, SEGMENT_MAGIC, 72)?;
        let mut reader = Reader(block, 12);
        let number = reader.u32();
        if reader.u64() != store_key {
            return Err(FormatError::Invalid);
        }
        Ok(SegmentHeader {
            number,
            epoch: reader.u64(),
            first_batch: reader.u64(),
            previous_end: reader.u32(),
            previous_checksum: reader.u32(),
            checkpoint: reader.mark(),
        })
    }
}

impl BatchHeader {
    /// Writes it into the first bytes of a batch and fills in its checksum.
    pub fn encode(&mut self, store_key: u64, batch: &mut [u8]) {
        let mut writer = Writer(batch, 0);
        writer.bytes(&BATCH_MAGIC);
        writer.u64(store_key);
        writer.u32(match self.kind {
            BatchKind::Records => 1,
            BatchKind::Checkpoint => 2,
        });
        writer.u32(self.parts);
        writer.u64(self.epoch);
        writer.u64(self.number);
        writer.u64(self.position);
        writer.u64(self.synced);
        writer.mark(self.checkpoint);
        writer.u32(self.body_bytes);
        writer.u32(self.previous_checksum);
        writer.u32(self.body_checksum);
        self.checksum = crc32fast::hash(&batch[..BATCH_CHECKSUM_OFFSET]);
        Writer(batch, BATCH_CHECKSUM_OFFSET).u32(self.checksum);
        batch[BATCH_CHECKSUM_OFFSET + 4..BATCH_HEADER_BYTES].fill(0);
    }

    /// Reads one whose own checksum matches. Whether it belongs where it lies is for the caller to say.
    pub fn decode(store_key: u64, batch: &[u8]) -> Option<BatchHeader> {
        let header = batch.get(..BATCH_HEADER_BYTES)?;
        let mut reader = Reader(header, 8);
        if header[..8] != BATCH_MAGIC || reader.u64() != store_key {
            return None;
        }
        let kind = match reader.u32() {
            1 => BatchKind::Records,
            2 => BatchKind::Checkpoint,
            _ => return None,
        };
        let decoded = BatchHeader {
            kind,
            parts: reader.u32(),
            epoch: reader.u64(),
            number: reader.u64(),
            position: reader.u64(),
            synced: reader.u64(),
            checkpoint: reader.mark(),
            body_bytes: reader.u32(),
            previous_checksum: reader.u32(),
            body_checksum: reader.u32(),
            checksum: reader.u32(),
        };
        (decoded.checksum == crc32fast::hash(&header[..BATCH_CHECKSUM_OFFSET])).then_some(decoded)
    }
}

const BATCH_CHECKSUM_OFFSET: usize = 92;

/// Writes the checksum of the first `bytes` behind them.
fn seal(block: &mut [u8], bytes: usize) {
    let checksum = crc32fast::hash(&block[..bytes]);
    Writer(block, bytes).u32(checksum);
}

/// Checks magic, version (at byte 8) and checksum of the first `bytes`.
fn check(block: &[u8], magic: [u8; 8], bytes: usize) -> Result<(), FormatError> {
    if block.len() < bytes + 4 || block[..8] != magic {
        return Err(FormatError::Invalid);
    }
    // Before the checksum: a newer version may be longer and keep its checksum elsewhere.
    let version = Reader(block, 8).u32();
    if version > FORMAT_VERSION {
        return Err(FormatError::Newer(version));
    }
    if Reader(block, bytes).u32() != crc32fast::hash(&block[..bytes]) {
        return Err(FormatError::Invalid);
    }
    Ok(())
}

/// An entry of the parts table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartEntry {
    /// The slot.
    pub slot: Slot,
    /// Records in it.
    pub records: u32,
    /// Bytes of it, behind those of the parts before.
    pub bytes: u32,
    /// Epoch of its submitter.
    pub epoch: Epoch,
    /// LSN of its first record.
    pub first_lsn: Lsn,
}

impl PartEntry {
    /// The entry for a part that a shard submitted.
    pub fn of(part: &Part) -> PartEntry {
        PartEntry {
            slot: part.slot,
            records: part.records,
            bytes: part.bytes.end - part.bytes.start,
            epoch: part.epoch,
            first_lsn: part.expected_lsn,
        }
    }

    /// Appends it to a table.
    pub fn encode(&self, table: &mut [u8]) {
        let mut writer = Writer(table, 0);
        writer.u16(self.slot);
        writer.u16(0);
        writer.u32(self.records);
        writer.u32(self.bytes);
        writer.u32(0);
        writer.u64(self.epoch);
        writer.u64(self.first_lsn);
    }

    /// Reads entry number `index` of a body that holds at least `index + 1`.
    pub fn decode(body: &[u8], index: usize) -> PartEntry {
        let mut reader = Reader(body, index * PART_BYTES);
        let slot = reader.u16();
        reader.u16();
        let records = reader.u32();
        let bytes = reader.u32();
        reader.u32();
        PartEntry { slot, records, bytes, epoch: reader.u64(), first_lsn: reader.u64() }
    }
}

/// Writes a checkpoint's table.
pub fn encode_table(slots: &[SlotState], body: &mut [u8]) {
    let mut writer = Writer(body, 0);
    for slot in slots {
        writer.u64(slot.epoch);
        writer.u64(slot.next_lsn);
    }
}

/// Reads a checkpoint's table of [`TABLE_BYTES`].
pub fn decode_table(body: &[u8]) -> Vec<SlotState> {
    let mut reader = Reader(body, 0);
    (0..SLOTS).map(|_| SlotState { epoch: reader.u64(), next_lsn: reader.u64() }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MARK: CheckpointMark = CheckpointMark { number: 3, position: 7 << 32, record: 9 << 32 };

    #[test]
    fn headers_survive_encoding_and_any_flipped_bit_is_seen() {
        let mut block = vec![0; BLOCK_BYTES];
        let segment = SegmentHeader {
            number: 5,
            epoch: 2,
            first_batch: 77,
            previous_end: 8192,
            previous_checksum: 0xdead_beef,
            checkpoint: MARK,
        };
        segment.encode(99, &mut block);
        assert_eq!(SegmentHeader::decode(99, &block), Ok(segment));
        assert_eq!(SegmentHeader::decode(98, &block), Err(FormatError::Invalid));
        let mut batch = BatchHeader {
            kind: BatchKind::Checkpoint,
            epoch: 2,
            number: 78,
            position: position(5, 4096),
            synced: position(5, 4096),
            checkpoint: MARK,
            parts: 0,
            body_bytes: 65_536,
            previous_checksum: 4,
            body_checksum: 5,
            checksum: 0,
        };
        let mut bytes = vec![0; BATCH_HEADER_BYTES];
        batch.encode(99, &mut bytes);
        assert_eq!(BatchHeader::decode(99, &bytes), Some(batch));
        for bit in 0..(BATCH_CHECKSUM_OFFSET + 4) * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(BatchHeader::decode(99, &bytes), None, "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn a_newer_version_is_named_and_not_called_damage() {
        let mut block = vec![0; BLOCK_BYTES];
        Identity { generation: 1, store_key: 2 }.encode(&mut block);
        assert!(Identity::decode(&block).is_ok());
        block[8] = 2;
        assert_eq!(Identity::decode(&block), Err(FormatError::Newer(2)));
    }

    #[test]
    fn names_of_segments_are_read_back_and_others_are_not() {
        assert_eq!(segment_number(&segment_name(12)), Some(12));
        for name in ["12.seg", "0000000012.seg.new", "0000000012.spare", "identity", "+000000012.seg"] {
            assert_eq!(segment_number(name).filter(|&n| segment_name(n) == name), None, "{name}");
        }
    }
}
