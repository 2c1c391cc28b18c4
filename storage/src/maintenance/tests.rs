//! Check, backup and restore on stores that a real embedded store has written.

use std::collections::BTreeSet;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use super::*;
use crate::embedded::{EmbeddedConfig, EmbeddedStore, Started, Waker};
use crate::journal::JournalConfig;
use crate::seam::{AppendGroup, Outcome, Part, RowRef, Run, Space, StorageEvent, StorageRequest, StoreFacts, ViewRead};
use crate::segment::SLOTS;

fn small(dir: &Path) -> EmbeddedConfig {
    let mut config = EmbeddedConfig::new(dir);
    config.lane.journal = JournalConfig { segment_bytes: 128 << 10, spares_max: 1 };
    config.lane.checkpoint_bytes = 64 << 10;
    config
}

/// A store with one shard that keeps each record as a history row of the same bytes.
struct Node {
    started: Started,
    lsn: u64,
    fresh: Vec<[u8; 8]>,
    recovered: BTreeSet<[u8; 8]>,
    checkpoints_done: u64,
    /// Answers no `Freeze` any more, so that what is appended from now on stays in the journal alone.
    journal_only: bool,
}

impl Node {
    fn start(dir: &Path) -> Node {
        let wakers = vec![Box::new(|| {}) as Waker];
        let started = EmbeddedStore::start(&small(dir), &vec![0; SLOTS], wakers).expect("it starts");
        let mut node = Node {
            started,
            lsn: 0,
            fresh: Vec::new(),
            recovered: BTreeSet::new(),
            checkpoints_done: 0,
            journal_only: false,
        };
        node.until(|event| matches!(event, StorageEvent::RecoveredAll { .. }));
        node
    }

    fn facts(&self) -> StoreFacts {
        self.started.facts.clone()
    }

    fn until(&mut self, wanted: impl Fn(&StorageEvent) -> bool) -> StorageEvent {
        loop {
            let mut events = Vec::new();
            self.started.ports[0].poll(&mut events);
            let mut found = None;
            for event in events {
                match &event {
                    StorageEvent::Recovered(group) => {
                        let record = group.bytes[4..].try_into().expect("a row");
                        self.recovered.insert(record);
                        self.fresh.push(record);
                    }
                    // Before a `Freeze` that follows in the same poll: its run covers this record.
                    StorageEvent::Appended { group, .. } => {
                        self.fresh.push(group.bytes[4..].try_into().expect("a row"));
                    }
                    StorageEvent::RecoveredAll { tails, .. } => {
                        self.lsn = tails.iter().find(|(slot, _)| *slot == 7).map_or(0, |&(_, lsn)| lsn);
                        self.started.ports[0].submit(StorageRequest::Serving).expect("room");
                    }
                    StorageEvent::CheckpointDone { .. } => self.checkpoints_done += 1,
                    StorageEvent::Freeze { checkpoint } if !self.journal_only => {
                        let run = run_of(&std::mem::take(&mut self.fresh));
                        let answer = StorageRequest::Run { checkpoint: *checkpoint, run };
                        self.started.ports[0].submit(answer).expect("room");
                    }
                    _ => {}
                }
                if wanted(&event) {
                    found = Some(event);
                }
            }
            if let Some(event) = found {
                return event;
            }
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    fn append(&mut self, count: u64) {
        for _ in 0..count {
            let record = self.lsn.to_be_bytes();
            let mut bytes = 8_u32.to_le_bytes().to_vec();
            bytes.extend_from_slice(&record);
            let part = Part { slot: 7, epoch: self.facts().epoch, expected_lsn: self.lsn, records: 1, bytes: 0..12 };
            let group = AppendGroup { ticket: self.lsn, parts: vec![part], bytes };
            self.started.ports[0].submit(StorageRequest::Append(group)).expect("room");
            let answer = self.until(|event| matches!(event, StorageEvent::Appended { .. }));
            let StorageEvent::Appended { outcomes, .. } = answer else { unreachable!("waited for") };
            assert_eq!(outcomes, [Outcome::Committed]);
            self.lsn += 1;
        }
    }

    fn rows_in_views(&mut self) -> BTreeSet<[u8; 8]> {
        let (start, end) = (vec![0; 8], vec![0xff; 8]);
        let (rows_max, bytes_max) = (u32::MAX, u32::MAX);
        let read = ViewRead::Range { space: Space::History, start, end, rows_max, bytes_max, reverse: false };
        self.started.ports[0].submit(StorageRequest::Read(1, read)).expect("room");
        match self.until(|event| matches!(event, StorageEvent::Read(..))) {
            StorageEvent::Read(_, rows) => {
                let rows = rows.expect("it reads");
                rows.iter().map(|(key, _)| key.try_into().expect("eight bytes")).collect()
            }
            _ => unreachable!("waited for"),
        }
    }
}

fn run_of(records: &[[u8; 8]]) -> Run {
    let row = |at: usize| RowRef { space: Space::History, offset: 16 * at as u32, key_bytes: 8, value_bytes: 8 };
    let arena = records.iter().flat_map(|record| [*record, *record]).flatten().collect();
    Run::of(arena, (0..records.len()).map(row).collect())
}

/// 60 records: some in the views, some only in the journal.
fn store() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    let mut node = Node::start(dir.path());
    while node.checkpoints_done == 0 {
        assert!(node.lsn < 50, "no checkpoint");
        node.append(1);
        std::thread::sleep(Duration::from_millis(5));
    }
    node.journal_only = true;
    node.append(60 - node.lsn);
    node.started.store.abandon();
    dir
}

fn flip(path: &Path, offset: u64) {
    let file = File::options().read(true).write(true).open(path).expect("it opens");
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).expect("it reads");
    file.write_all_at(&[byte[0] ^ 4], offset).expect("it writes");
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).expect("it lists").flatten() {
        if entry.path().is_dir() { found.extend(files(&entry.path())) } else { found.push(entry.path()) }
    }
    found.sort();
    found
}

#[test]
fn a_sound_store_is_called_sound() {
    let dir = store();
    let report = check(dir.path()).expect("it is checked");
    assert!(report.is_sound(), "{report}");
    assert!(report.checkpoint > 0 && report.replayed > 0 && report.rows > 0, "{report}");
    assert!(report.to_string().ends_with("sound"));
    let mut node = Node::start(dir.path());
    assert_eq!(node.lsn, 60);
    assert_eq!(node.rows_in_views().len() as u64, report.rows);
}

#[test]
fn a_store_in_use_and_no_store_are_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    assert!(matches!(check(dir.path()), Err(MaintenanceError::NoStore(_))));
    assert!(files(dir.path()).is_empty(), "asking changes nothing");
    let _node = Node::start(dir.path());
    let target = dir.path().join("backup");
    for refused in [check(dir.path()), backup(dir.path(), &target), restore(dir.path(), &target)] {
        let refused = refused.expect_err("in use").to_string();
        assert!(refused.contains(&std::process::id().to_string()), "{refused}");
    }
}

/// Two bits in two batches: both are named, with their slots, where recovery names the first.
#[test]
fn every_damaged_batch_is_named() {
    let dir = store();
    // Blocks that begin with a batch of records; the last of a file may count as a torn tail.
    let batches_of = |path: &PathBuf| -> Vec<usize> {
        let bytes = fs::read(path).expect("it reads");
        let is_batch = |at: &usize| bytes[*at..].starts_with(b"RWBATCH1") && bytes[*at + 16] == 1;
        (4096..bytes.len()).step_by(4096).filter(is_batch).collect()
    };
    let mut segments = files(&dir.path().join("journal"));
    segments.retain(|path| path.extension().is_some_and(|extension| extension == "seg"));
    let segment = segments.into_iter().max_by_key(|path| batches_of(path).len()).expect("there is a segment");
    let batches = batches_of(&segment);
    assert!(batches.len() > 8);
    let (first, second) = (batches[1], batches[5]);
    flip(&segment, first as u64 + 128 + 32 + 5);
    flip(&segment, second as u64 + 3);
    let report = check(dir.path()).expect("it is checked");
    let places: Vec<&Place> = report.findings.iter().map(|finding| &finding.place).collect();
    let file = format!("journal/{}", segment.file_name().expect("a name").display());
    let expected = [
        Place::Journal { file: file.clone(), offset: first as u64, slots: vec![7] },
        Place::Journal { file, offset: second as u64, slots: vec![] },
    ];
    assert_eq!(places, expected.iter().collect::<Vec<_>>(), "{report}");
    let refused = backup(dir.path(), &dir.path().with_extension("backup"));
    assert!(matches!(refused, Err(MaintenanceError::Damaged { .. })));
}

#[test]
fn damaged_and_missing_views_are_named() {
    let dir = store();
    let tables = files(&dir.path().join("views/rows/keyspaces"));
    let table = tables.iter().find(|path| {
        path.parent().is_some_and(|parent| parent.ends_with("tables"))
            && !path.starts_with(dir.path().join("views/rows/keyspaces/0"))
    });
    flip(table.expect("there is a table"), 40);
    let report = check(dir.path()).expect("it is checked");
    assert!(matches!(report.findings[..], [Finding { place: Place::View { .. }, .. }]), "{report}");
    fs::remove_dir_all(dir.path().join("views")).expect("removed");
    let report = check(dir.path()).expect("it is checked");
    assert!(!report.is_sound() && report.to_string().contains("missing"), "{report}");
}

#[test]
fn a_restored_backup_holds_everything_under_another_generation() {
    let dir = store();
    fs::write(dir.path().join("key"), "secret").expect("it writes");
    let places = tempfile::tempdir().expect("a directory");
    let (copy, again) = (places.path().join("backup"), places.path().join("again"));
    let report = backup(dir.path(), &copy).expect("it is backed up");
    assert!(report.is_sound());
    let before = {
        let mut node = Node::start(dir.path());
        node.append(5);
        node.facts()
    };
    fs::create_dir(&again).expect("made");
    fs::write(again.join("something"), "else").expect("it writes");
    assert!(matches!(restore(&copy, &again), Err(MaintenanceError::NotEmpty(_))));
    assert!(matches!(backup(dir.path(), &again), Err(MaintenanceError::NotEmpty(_))));
    fs::remove_file(again.join("something")).expect("removed");
    restore(&copy, &again).expect("it is restored");
    assert_eq!(fs::read_to_string(again.join("key")).expect("it reads"), "secret");
    let mut node = Node::start(&again);
    assert_eq!(node.lsn, 60);
    assert_ne!(node.facts().generation, before.generation);
    // A crash may leave rows in both.
    assert_eq!(node.rows_in_views().union(&node.recovered).count(), 60);
    node.append(3);
}

#[test]
fn a_damaged_backup_is_not_restored() {
    let dir = store();
    let places = tempfile::tempdir().expect("a directory");
    let (copy, again) = (places.path().join("backup"), places.path().join("again"));
    backup(dir.path(), &copy).expect("it is backed up");
    flip(&copy.join("views/MARK"), 17);
    let refused = restore(&copy, &again).expect_err("damaged").to_string();
    assert!(refused.contains("MARK"), "{refused}");
    assert!(!again.exists(), "nothing is left of it");
    // Into a directory that was there, which then stays, empty.
    fs::create_dir(&again).expect("made");
    restore(&copy, &again).expect_err("damaged");
    assert!(files(&again).is_empty());
    assert!(matches!(backup(dir.path(), &dir.path().join("in/side")), Err(MaintenanceError::Inside(_))));
}
