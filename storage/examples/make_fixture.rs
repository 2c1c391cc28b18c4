//! Writes the store that `tests/format.rs` opens: some records below a checkpoint, some behind it.
//!
//! `cargo run -p storage --example make_fixture -- storage/tests/fixtures/vN`, once for each version of the
//! format, before it changes. The test then opens the directories of all versions that there ever were.

use std::path::Path;
use std::time::Duration;

use storage::embedded::{EmbeddedConfig, EmbeddedStore, Started, Waker};
use storage::seam::{AppendGroup, Part, RowRef, Run, Space, StorageEvent, StorageRequest};
use storage::segment::SLOTS;

/// Small, since it goes into the repository.
const SEGMENT_BYTES: u64 = 80 << 10;

fn main() {
    let directory = std::env::args().nth(1).expect("usage: make_fixture DIR");
    let mut config = EmbeddedConfig::new(Path::new(&directory));
    config.lane.journal.segment_bytes = SEGMENT_BYTES;
    append(&config, 0, true);
    append(&config, 10, false);
}

/// Ten records each of slots 1, 2 and 4095, from `lsn` on. Record and row: `slot.lsn`.
fn append(config: &EmbeddedConfig, lsn: u64, checkpoint: bool) {
    let waker: Waker = Box::new(|| {});
    let started = EmbeddedStore::start(config, &vec![0; SLOTS], vec![waker]).expect("starts");
    let Started { facts, mut ports, store } = started;
    let mut port = ports.pop().expect("one shard");
    let mut group = AppendGroup::default();
    let mut arena = Vec::new();
    let mut rows = Vec::new();
    for slot in [1, 2, 4095] {
        let start = group.bytes.len() as u32;
        for lsn in lsn..lsn + 10 {
            let record = format!("{slot}.{lsn}");
            group.bytes.extend((record.len() as u32).to_le_bytes());
            group.bytes.extend(record.bytes());
            let offset = arena.len() as u32;
            let bytes = record.len();
            rows.push(RowRef { space: Space::History, offset, key_bytes: bytes as u16, value_bytes: bytes as u32 });
            arena.extend(format!("{record}{record}").bytes());
        }
        let bytes = start..group.bytes.len() as u32;
        group.parts.push(Part { slot, epoch: facts.epoch, expected_lsn: lsn, records: 10, bytes });
    }
    let mut run = Run::of(arena, rows);
    port.submit(StorageRequest::Append(group)).expect("room");
    let mut stopping = None;
    let mut store = Some(store);
    let mut events = Vec::new();
    while stopping.as_ref().is_none_or(|thread: &std::thread::JoinHandle<()>| !thread.is_finished()) {
        port.poll(&mut events);
        for event in events.drain(..) {
            match event {
                StorageEvent::RecoveredAll { .. } => port.submit(StorageRequest::Serving).expect("room"),
                StorageEvent::Appended { outcomes, .. } => {
                    println!("{outcomes:?}");
                    let store = store.take().expect("one group");
                    stopping = Some(std::thread::spawn(move || {
                        if checkpoint {
                            assert!(store.shutdown(Duration::from_mins(1)), "a clean end");
                        } else {
                            store.abandon();
                        }
                    }));
                }
                StorageEvent::Freeze { checkpoint } => {
                    let run = std::mem::take(&mut run);
                    port.submit(StorageRequest::Run { checkpoint, run }).expect("room");
                }
                _ => {}
            }
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}
