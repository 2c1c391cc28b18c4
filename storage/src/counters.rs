//! Plain counters of a store: written by its threads, read by whoever shows them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::seam::{AppendGroup, Run, Space};

/// Buckets of the sync-time histogram: bucket n counts syncs below 2^n microseconds, the last all others.
pub const SYNC_BUCKETS: usize = 24;

/// A number that goes up, or a gauge that is set.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Counts.
    pub fn add(&self, amount: u64) {
        self.0.fetch_add(amount, Ordering::Relaxed);
    }

    /// Replaces the value.
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// The value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What a store counts.
#[derive(Debug, Default)]
pub struct StoreCounters {
    /// Batches committed, each with one sync.
    pub batches: Counter,
    /// Groups answered.
    pub groups: Counter,
    /// Bytes written to the journal.
    pub bytes: Counter,
    /// Microseconds in write and sync.
    pub commit_us: Counter,
    /// Commits by time, see [`SYNC_BUCKETS`].
    pub commit_us_log2: [Counter; SYNC_BUCKETS],
    /// Records that the start found behind the last checkpoint and handed to the shards again.
    pub recovered_records: Counter,
    /// Bytes of them.
    pub recovered_bytes: Counter,
    /// Bytes of journal that the views do not cover (view lag; what a restart replays).
    pub lag_bytes: Counter,
    /// Segments on disk.
    pub segments: Counter,
    /// Segments removed since the start.
    pub segments_removed: Counter,
    /// Checkpoints done since the start.
    pub checkpoints: Counter,
    /// Milliseconds that the last checkpoint took, from freeze to record.
    pub checkpoint_ms: Counter,
    /// Since when (milliseconds of the store's own clock, plus 1) a checkpoint is on its way; 0: none.
    pub checkpoint_since_ms: Counter,
    /// Rows handed to the views, by [`crate::seam::Space`]; those that a later one replaces count too.
    pub rows: [Counter; Space::ALL.len()],
    /// Bytes of their keys and values.
    pub row_bytes: [Counter; Space::ALL.len()],
    /// Ingestions that failed and were tried again.
    pub ingest_failures: Counter,
    /// Parts refused because the disk was full.
    pub refused_full: Counter,
    /// Parts refused because the views lag.
    pub refused_behind: Counter,
    /// Parts refused because the disk failed or the store was closing.
    pub refused_unavailable: Counter,
    /// Reads answered.
    pub reads: Counter,
    /// Reads that found damage.
    pub reads_damaged: Counter,
}

impl StoreCounters {
    /// Counts what a start found and hands to the shards again.
    pub(crate) fn recovered(&self, group: &AppendGroup) {
        self.recovered_records.add(group.parts.iter().map(|part| u64::from(part.records)).sum());
        self.recovered_bytes.add(group.bytes.len() as u64);
    }

    /// Counts what the views are handed.
    pub(crate) fn handed_over(&self, runs: &[Run]) {
        let mut sums = Space::ALL.map(|_| (0, 0));
        for row in runs.iter().flat_map(|run| run.chunks.iter()).flat_map(|chunk| &chunk.rows) {
            let (rows, bytes) = &mut sums[row.space as usize];
            *rows += 1;
            *bytes += u64::from(row.key_bytes) + u64::from(row.value_bytes);
        }
        for (space, (rows, bytes)) in sums.into_iter().enumerate() {
            self.rows[space].add(rows);
            self.row_bytes[space].add(bytes);
        }
    }

    /// Counts one commit.
    pub fn committed(&self, took: Duration) {
        let us = took.as_micros().min(u128::from(u64::MAX)) as u64;
        self.commit_us.add(us);
        let bucket = (u64::BITS - us.leading_zeros()) as usize;
        self.commit_us_log2[bucket.min(SYNC_BUCKETS - 1)].add(1);
    }
}
