//! Stores that earlier versions wrote are opened, and keep what they held.
//!
//! `fixtures/vN.tar.gz` holds a directory as `examples/make_fixture.rs` of that version made it: thirty records
//! below a checkpoint, thirty behind it.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use storage::embedded::{EmbeddedConfig, EmbeddedStore, Started, Waker};
use storage::seam::{AppendGroup, Outcome, Part, Space, StorageEvent, StorageRequest, ViewRead};
use storage::segment::{FORMAT_VERSION, SLOTS};

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures");

#[test]
fn a_store_of_every_earlier_version_opens_with_all_it_held() {
    for version in 1..=FORMAT_VERSION {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let archive = Path::new(FIXTURES).join(format!("v{version}.tar.gz"));
        let unpacked = Command::new("tar").arg("-xzf").arg(&archive).arg("-C").arg(directory.path()).status();
        assert!(unpacked.expect("tar runs").success(), "{}", archive.display());
        // Twice, since the first opening may have changed something.
        check(directory.path(), 10);
        check(directory.path(), 11);
    }
}

/// Opens a store whose slots hold 20 records, and slot 1 as many as `recovered` says more; appends one.
fn check(directory: &Path, recovered: u32) {
    let waker: Waker = Box::new(|| {});
    let config = EmbeddedConfig::new(directory);
    let started = EmbeddedStore::start(&config, &vec![0; SLOTS], vec![waker]).expect("starts");
    let Started { facts, mut ports, store } = started;
    let mut port = ports.pop().expect("one shard");
    let mut pending = Vec::new();
    port.poll(&mut pending);
    let mut events = pending.into_iter();
    let mut found = 0;
    let tails = loop {
        match events.next().expect("everything recovered is there when the store has started") {
            StorageEvent::Recovered(group) if group.parts[0].slot == 1 => {
                assert!(group.parts[0].expected_lsn >= 10, "the first ten are below the checkpoint");
                found += group.parts[0].records;
            }
            StorageEvent::Recovered(_) => {}
            StorageEvent::RecoveredAll { tails, .. } => break tails,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(found, recovered);
    let tail = |slot| tails.iter().find(|(found, _)| *found == slot).expect("all slots").1;
    assert_eq!((tail(1), tail(2), tail(4095), tail(0)), (10 + u64::from(recovered), 20, 20, 0));
    for key in ["1.0", "2.9", "4095.5"] {
        port.submit(StorageRequest::Read(1, ViewRead::Get { space: Space::History, key: key.into() })).expect("room");
        let StorageEvent::Read(1, Ok(rows)) = next(&mut port) else { panic!("the row of {key}") };
        let rows: Vec<(&[u8], &[u8])> = rows.iter().collect();
        assert_eq!(rows, [(key.as_bytes(), key.as_bytes())]);
    }
    let part = Part { slot: 1, epoch: facts.epoch, expected_lsn: tail(1), records: 1, bytes: 0..7 };
    let bytes = b"\x03\0\0\0new".to_vec();
    port.submit(StorageRequest::Append(AppendGroup { ticket: 1, parts: vec![part], bytes })).expect("room");
    let StorageEvent::Appended { outcomes, .. } = next(&mut port) else { panic!("an outcome") };
    assert_eq!(outcomes, [Outcome::Committed]);
    store.abandon();
}

fn next(port: &mut storage::embedded::Port) -> StorageEvent {
    let patience = Instant::now() + Duration::from_mins(1);
    let mut events = Vec::new();
    while events.is_empty() {
        assert!(Instant::now() < patience, "no answer");
        std::thread::yield_now();
        port.poll(&mut events);
    }
    events.remove(0)
}
