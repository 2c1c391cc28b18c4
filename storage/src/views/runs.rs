//! From unsorted runs to sorted rows: one list per map, each key once, the last value of it.

use std::cmp::Ordering;

use super::ViewsError;
use crate::seam::{Chunk, Run, Space};

/// No clock shows this.
const TIME_MAX: u64 = 1 << 60;

/// The time of its record, with which the value of a dedup row begins: milliseconds, little-endian.
fn time_of(key: &[u8], value: &[u8]) -> Result<u64, ViewsError> {
    let time = value.first_chunk().map(|time| u64::from_le_bytes(*time)).filter(|&time| time < TIME_MAX);
    time.ok_or_else(|| ViewsError::BadRow(format!("dedup row {} does not begin with a time", hex(key))))
}

/// Lower-case hexadecimal, for naming keys.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// A row on its way into a map. Rows move while they are sorted, so this is small and carries the
/// first bytes of the key, which decide most comparisons without touching the arena.
#[derive(Clone, Copy)]
struct Entry {
    prefix: u64,
    chunk: u32,
    row: u32,
}

/// The rows of several runs, by map.
pub(crate) struct Sorted<'a> {
    /// Of all runs, in order.
    chunks: Vec<&'a Chunk>,
    lists: [Vec<Entry>; Space::ALL.len()],
    /// Lowest and highest time of a dedup row.
    times: Option<(u64, u64)>,
}

impl<'a> Sorted<'a> {
    pub(crate) fn new(runs: &'a [Run]) -> Result<Sorted<'a>, ViewsError> {
        let chunks: Vec<_> = runs.iter().flat_map(|run| run.chunks.iter()).collect();
        let mut lists = Space::ALL.map(|_| Vec::new());
        let mut times: Option<(u64, u64)> = None;
        for (chunk_number, chunk) in chunks.iter().enumerate() {
            for (row_number, &row) in chunk.rows.iter().enumerate() {
                let (key, value) = chunk.get(row);
                let entry = Entry { prefix: prefix_of(key), chunk: chunk_number as u32, row: row_number as u32 };
                if row.space == Space::Dedup {
                    let time = time_of(key, value)?;
                    times = Some(times.map_or((time, time), |(low, high)| (low.min(time), high.max(time))));
                }
                lists[row.space as usize].push(entry);
            }
        }
        for list in &mut lists {
            sort_and_keep_last(&chunks, list);
        }
        Ok(Sorted { chunks, lists, times })
    }

    /// Lowest and highest time of the records that dedup rows speak of, if there are any.
    pub(crate) fn times(&self) -> Option<(u64, u64)> {
        self.times
    }

    /// Rows of a map, in key order, each key once.
    pub(crate) fn rows(&self, space: Space) -> impl ExactSizeIterator<Item = (&'a [u8], &'a [u8])> {
        self.lists[space as usize].iter().map(|entry| row_of(&self.chunks, *entry))
    }
}

fn row_of<'a>(chunks: &[&'a Chunk], entry: Entry) -> (&'a [u8], &'a [u8]) {
    let chunk = chunks[entry.chunk as usize];
    chunk.get(chunk.rows[entry.row as usize])
}

fn prefix_of(key: &[u8]) -> u64 {
    let mut bytes = [0; 8];
    let length = key.len().min(8);
    bytes[..length].copy_from_slice(&key[..length]);
    u64::from_be_bytes(bytes)
}

/// Ascending by key; of equal keys only the row that came last remains.
fn sort_and_keep_last(chunks: &[&Chunk], list: &mut Vec<Entry>) {
    let compare_keys = |a: &Entry, b: &Entry| -> Ordering {
        a.prefix.cmp(&b.prefix).then_with(|| row_of(chunks, *a).0.cmp(row_of(chunks, *b).0))
    };
    // The latest of equal keys comes first, because `dedup_by` keeps the first.
    list.sort_unstable_by(|a, b| compare_keys(a, b).then_with(|| (b.chunk, b.row).cmp(&(a.chunk, a.row))));
    list.dedup_by(|later, first| compare_keys(later, first).is_eq());
}
