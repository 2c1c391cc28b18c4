//! From unsorted runs to sorted rows: one list per map, each key once, the last value of it.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use super::ViewsError;
use crate::seam::{Chunk, Run, Space};

const DAY_MS: u64 = 24 * 60 * 60 * 1_000;

/// The day, counted from 1970, on which a dedup row was written. Its value begins with the server's
/// time in milliseconds, little-endian.
pub(crate) fn day_of(key: &[u8], value: &[u8]) -> Result<u32, ViewsError> {
    let time = value
        .first_chunk::<8>()
        .ok_or_else(|| ViewsError::BadRow(format!("dedup row {} does not begin with its time", hex(key))))?;
    u32::try_from(u64::from_le_bytes(*time) / DAY_MS)
        .map_err(|_| ViewsError::BadRow(format!("dedup row {} is of no possible day", hex(key))))
}

/// The day of a clock that shows `now_ms`.
pub(crate) fn day_at(now_ms: u64) -> u32 {
    u32::try_from(now_ms / DAY_MS).unwrap_or(u32::MAX)
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

/// The rows of several runs, by map; dedup rows by day as well.
pub(crate) struct Sorted<'a> {
    /// Of all runs, in order.
    chunks: Vec<&'a Chunk>,
    plain: [Vec<Entry>; Space::ALL.len()],
    dedup: BTreeMap<u32, Vec<Entry>>,
}

impl<'a> Sorted<'a> {
    pub(crate) fn new(runs: &'a [Run]) -> Result<Sorted<'a>, ViewsError> {
        let chunks: Vec<_> = runs.iter().flat_map(|run| run.chunks.iter()).collect();
        let mut plain = Space::ALL.map(|_| Vec::new());
        let mut dedup: BTreeMap<u32, Vec<Entry>> = BTreeMap::new();
        for (chunk_number, chunk) in chunks.iter().enumerate() {
            for (row_number, &row) in chunk.rows.iter().enumerate() {
                let (key, value) = chunk.get(row);
                let entry = Entry { prefix: prefix_of(key), chunk: chunk_number as u32, row: row_number as u32 };
                if row.space == Space::Dedup {
                    dedup.entry(day_of(key, value)?).or_default().push(entry);
                } else {
                    plain[row.space as usize].push(entry);
                }
            }
        }
        for list in plain.iter_mut().chain(dedup.values_mut()) {
            sort_and_keep_last(&chunks, list);
        }
        Ok(Sorted { chunks, plain, dedup })
    }

    /// Days that have dedup rows.
    pub(crate) fn days(&self) -> impl Iterator<Item = u32> {
        self.dedup.keys().copied()
    }

    /// Rows of a map other than dedup, in key order, each key once.
    pub(crate) fn plain(&self, space: Space) -> impl ExactSizeIterator<Item = (&'a [u8], &'a [u8])> {
        self.plain[space as usize].iter().map(|entry| row_of(&self.chunks, *entry))
    }

    /// Dedup rows of one day, in key order, each key once.
    pub(crate) fn dedup(&self, day: u32) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        self.dedup.get(&day).into_iter().flatten().map(|entry| row_of(&self.chunks, *entry))
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
