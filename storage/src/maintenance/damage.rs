//! Every damaged place of a journal, where recovery stops at the first.
//!
//! Recovery must not go on behind damage; this does, since it only talks. It looks at each batch alone:
//! is the header whole, is the body what the header says, and does something valid follow what is not.

use std::fs;
use std::path::Path;

use super::{Place, Report};
use crate::disk::BLOCK_BYTES;
use crate::recovery::{IDENTITY_FILE, OpenError};
use crate::seam::Slot;
use crate::segment::{
    BATCH_HEADER_BYTES, BatchHeader, BatchKind, FIRST_BATCH_OFFSET, Identity, PART_BYTES, PartEntry, SLOTS,
    SegmentHeader, position, segment_name, segment_number,
};

/// Adds every damaged place of the journal in `journal` to the report, and counts what is whole.
pub(super) fn name_all(journal: &Path, report: &mut Report) {
    let identity = fs::read(journal.join(IDENTITY_FILE)).map(|bytes| Identity::decode(&bytes));
    let Ok(Ok(identity)) = identity else { return };
    let entries = fs::read_dir(journal).into_iter().flatten().flatten();
    let mut numbers: Vec<u32> = entries.filter_map(|entry| segment_number(entry.file_name().to_str()?)).collect();
    numbers.sort_unstable();
    let mut previous_end = None;
    for &number in &numbers {
        let file = file_of(number);
        let Ok(bytes) = fs::read(journal.join(segment_name(number))) else {
            report.add(at(&file, 0, Vec::new()), "the file can not be read");
            previous_end = None;
            continue;
        };
        let header = SegmentHeader::decode(identity.store_key, &bytes[..bytes.len().min(BLOCK_BYTES)]);
        match (&header, previous_end) {
            (Err(error), _) => report.add(at(&file, 0, Vec::new()), format!("the segment's header: {error}")),
            (Ok(header), Some((before, end))) if u64::from(header.previous_end) > end => {
                let what = format!("the segment ends early: the next one says byte {}", header.previous_end);
                report.add(at(&file_of(before), end, Vec::new()), what);
            }
            _ => {}
        }
        report.segments += 1;
        let segment = Segment { number, file, bytes: &bytes, store_key: identity.store_key };
        previous_end = Some((number, segment.name_damage(report)));
    }
}

/// Where recovery stopped.
pub(super) fn place_of(error: &OpenError) -> Place {
    match error {
        OpenError::Damaged { file, offset, .. } => at(&format!("journal/{file}"), *offset, Vec::new()),
        OpenError::Disk { file, .. } | OpenError::Newer { file, .. } => at(&format!("journal/{file}"), 0, Vec::new()),
        _ => Place::Store,
    }
}

fn at(file: &str, offset: u64, slots: Vec<Slot>) -> Place {
    Place::Journal { file: file.to_owned(), offset, slots }
}

fn file_of(number: u32) -> String {
    format!("journal/{}", segment_name(number))
}

struct Segment<'a> {
    number: u32,
    file: String,
    bytes: &'a [u8],
    store_key: u64,
}

impl Segment<'_> {
    /// Returns where the last batch ends that could be made out.
    fn name_damage(&self, report: &mut Report) -> u64 {
        let mut offset = FIRST_BATCH_OFFSET as usize;
        while offset < self.bytes.len() {
            if let Some(header) = self.header_at(offset) {
                self.check_body(&header, offset, report);
                offset += header.stored_bytes() as usize;
                continue;
            }
            // A torn or unwritten end has nothing valid behind it; damage has.
            let Some(next) = self.next_header(offset) else { break };
            let what = format!("{} bytes that are no batch, and a batch behind them", next - offset);
            report.add(at(&self.file, offset as u64, Vec::new()), what);
            offset = next;
        }
        offset as u64
    }

    fn header_at(&self, offset: usize) -> Option<BatchHeader> {
        let header = BatchHeader::decode(self.store_key, self.bytes.get(offset..)?)?;
        // Room is reused: a batch that says another place is of an earlier life.
        (header.position == position(self.number, offset as u32)).then_some(header)
    }

    fn next_header(&self, offset: usize) -> Option<usize> {
        (offset + BLOCK_BYTES..self.bytes.len()).step_by(BLOCK_BYTES).find(|&at| self.header_at(at).is_some())
    }

    fn check_body(&self, header: &BatchHeader, offset: usize, report: &mut Report) {
        let start = offset + BATCH_HEADER_BYTES;
        let Some(body) = self.bytes.get(start..start + header.body_bytes as usize) else {
            report.add(at(&self.file, offset as u64, Vec::new()), "the file ends inside a batch");
            return;
        };
        if crc32fast::hash(body) == header.body_checksum {
            report.journal_bytes += header.stored_bytes();
            return;
        }
        let slots = if header.kind == BatchKind::Records { slots_of(header, body) } else { Vec::new() };
        let what = format!("the checksum of batch {} does not match", header.number);
        report.add(at(&self.file, offset as u64, slots), what);
    }
}

/// Slots that a damaged batch speaks of, as far as its table can be believed.
fn slots_of(header: &BatchHeader, body: &[u8]) -> Vec<Slot> {
    let parts = (header.parts as usize).min(body.len() / PART_BYTES);
    let slots = (0..parts).map(|index| PartEntry::decode(body, index).slot);
    let mut slots: Vec<Slot> = slots.filter(|&slot| (slot as usize) < SLOTS).collect();
    slots.sort_unstable();
    slots.dedup();
    slots
}
