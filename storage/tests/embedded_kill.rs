//! The embedded store of a process that is killed, again and again: what it acknowledged is there.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use storage::embedded::{EmbeddedConfig, EmbeddedStore, Port, Started, Waker};
use storage::journal::JournalConfig;
use storage::seam::{AppendGroup, Outcome, Part, RowRef, Run, Slot, Space, StorageEvent, StorageRequest, ViewRead};
use storage::segment::SLOTS;

const DIR: &str = "RINGWAY_TEST_STORE_DIR";
const ACKED: &str = "RINGWAY_TEST_STORE_ACKED";
const SLOT: Slot = 77;
const KILLS: u64 = 20;

/// Record number `lsn`, and the value of its row; the row's key is the LSN.
fn value(lsn: u64) -> Vec<u8> {
    let bytes = 8 + (lsn * 37 % 500) as usize;
    lsn.to_le_bytes().into_iter().cycle().take(bytes).collect()
}

/// A shard with one slot.
struct Shard {
    port: Port,
    epoch: u64,
    next_lsn: u64,
    /// First record that came from the journal; those before it must be in the views.
    first_recovered: Option<u64>,
    fresh: BTreeMap<u64, Vec<u8>>,
    told: bool,
}

impl Shard {
    fn start(directory: &Path) -> (Shard, EmbeddedStore) {
        let mut config = EmbeddedConfig::new(directory);
        config.lane.journal = JournalConfig { segment_bytes: 256 << 10, spares_max: 1 };
        config.lane.checkpoint_bytes = 96 << 10;
        let thread = std::thread::current();
        let waker: Waker = Box::new(move || thread.unpark());
        let started = EmbeddedStore::start(&config, &vec![0; SLOTS], vec![waker]).expect("starts after a kill");
        let Started { facts, mut ports, store } = started;
        let port = ports.pop().expect("one shard");
        let shard =
            Shard { port, epoch: facts.epoch, next_lsn: 0, first_recovered: None, fresh: BTreeMap::new(), told: false };
        (shard, store)
    }

    fn submit(&self, request: StorageRequest) {
        self.port.submit(request).expect("queues have room");
    }

    /// Waits for one event that `wanted` maps to something, and answers what comes before it.
    fn wait<T>(&mut self, mut wanted: impl FnMut(&StorageEvent) -> Option<T>) -> T {
        let mut found = None;
        let mut events = Vec::new();
        while found.is_none() {
            self.port.poll(&mut events);
            if events.is_empty() {
                std::thread::park();
            }
            for event in events.drain(..) {
                found = found.or(wanted(&event));
                self.on_event(event);
            }
        }
        found.expect("the loop ends with it")
    }

    fn on_event(&mut self, event: StorageEvent) {
        match event {
            StorageEvent::Recovered(group) => {
                let first = group.parts[0].expected_lsn;
                self.first_recovered.get_or_insert(first);
                self.apply(first, &group.bytes);
            }
            StorageEvent::RecoveredAll { tails, .. } => {
                self.next_lsn = tails[SLOT as usize].1;
                self.told = true;
                self.submit(StorageRequest::Serving);
            }
            StorageEvent::Appended { group, outcomes } => {
                assert_eq!(outcomes, [Outcome::Committed]);
                self.apply(group.parts[0].expected_lsn, &group.bytes);
                self.next_lsn += u64::from(group.parts[0].records);
            }
            StorageEvent::Freeze { checkpoint } => {
                let mut rows = Vec::new();
                let mut arena = Vec::new();
                for (lsn, value) in std::mem::take(&mut self.fresh) {
                    let (offset, value_bytes) = (arena.len() as u32, value.len() as u32);
                    rows.push(RowRef { space: Space::History, offset, key_bytes: 8, value_bytes });
                    arena.extend(lsn.to_be_bytes());
                    arena.extend(value);
                }
                self.submit(StorageRequest::Run { checkpoint, run: Run::of(arena, rows) });
            }
            StorageEvent::Read(..) | StorageEvent::CheckpointDone { .. } => {}
        }
    }

    fn apply(&mut self, first: u64, mut bytes: &[u8]) {
        let mut lsn = first;
        while !bytes.is_empty() {
            let (length, rest) = bytes.split_at(4);
            let (record, rest) = rest.split_at(u32::from_le_bytes(length.try_into().expect("four bytes")) as usize);
            assert_eq!(record, value(lsn), "record {lsn}");
            self.fresh.insert(lsn, record.to_vec());
            (bytes, lsn) = (rest, lsn + 1);
        }
    }

    /// Everything below what was recovered is in the views, whole and in order.
    fn check_views(&mut self) {
        let end = self.first_recovered.unwrap_or(self.next_lsn);
        let range = ViewRead::Range {
            space: Space::History,
            start: vec![0; 8],
            end: end.to_be_bytes().to_vec(),
            rows_max: u32::MAX,
            bytes_max: u32::MAX,
            reverse: false,
        };
        self.submit(StorageRequest::Read(1, range));
        let rows = self.wait(|event| match event {
            StorageEvent::Read(1, answer) => Some(answer.clone().expect("the views answer")),
            _ => None,
        });
        assert_eq!(rows.index.len() as u64, end, "rows below the first recovered record");
        for (lsn, (key, found)) in rows.iter().enumerate() {
            assert_eq!((key, found), (&(lsn as u64).to_be_bytes()[..], &value(lsn as u64)[..]));
        }
    }

    fn append(&mut self, records: u64) {
        let mut group = AppendGroup::default();
        for lsn in self.next_lsn..self.next_lsn + records {
            let record = value(lsn);
            group.bytes.extend((record.len() as u32).to_le_bytes());
            group.bytes.extend(record);
        }
        let bytes = 0..group.bytes.len() as u32;
        let (epoch, expected_lsn) = (self.epoch, self.next_lsn);
        group.parts.push(Part { slot: SLOT, epoch, expected_lsn, records: records as u32, bytes });
        self.submit(StorageRequest::Append(group));
        self.wait(|event| matches!(event, StorageEvent::Appended { .. }).then_some(()));
    }
}

/// The child: checks what it finds, then appends and says what is acknowledged, until it is killed.
#[test]
fn child_that_appends_until_it_is_killed() {
    let Some(directory) = std::env::var_os(DIR) else { return };
    let acked: u64 = std::env::var(ACKED).expect("told").parse().expect("a number");
    let (mut shard, store) = Shard::start(Path::new(&directory));
    shard.wait(|event| matches!(event, StorageEvent::RecoveredAll { .. }).then_some(()));
    assert!(shard.told && shard.next_lsn >= acked, "{} records of {acked} acknowledged", shard.next_lsn);
    shard.check_views();
    println!("\nchecked {}", shard.next_lsn);
    for round in 0.. {
        shard.append(1 + round % 40);
        println!("\nacked {}", shard.next_lsn);
    }
    drop(store);
}

fn start_child(directory: &Path, acked: u64) -> Child {
    Command::new(std::env::current_exe().expect("this program has a path"))
        .args(["--exact", "child_that_appends_until_it_is_killed", "--nocapture"])
        .env(DIR, directory)
        .env(ACKED, acked.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the child starts")
}

#[test]
fn what_was_acknowledged_survives_twenty_kills() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut acked = 0;
    for kill in 0..KILLS {
        let mut child = start_child(directory.path(), acked);
        let mut checked = false;
        let mut reports = 10 + kill * 7 % 60;
        for line in BufReader::new(child.stdout.take().expect("its output is piped")).lines() {
            let line = line.expect("the pipe is read");
            checked |= line.starts_with("checked ");
            if let Some(number) = line.strip_prefix("acked ") {
                acked = number.parse().expect("a number");
                reports -= 1;
            }
            if reports == 0 {
                break;
            }
        }
        child.kill().expect("it runs");
        child.wait().expect("it ends");
        assert!(checked, "kill {kill}: the child found what was acknowledged");
    }
    assert!(acked > 1_000, "only {acked} records were appended");
}
