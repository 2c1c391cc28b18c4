//! The embedded store on real files.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tempfile::TempDir;

use super::*;
use crate::conformance::{self, Backend, Driver, End, Shards, slot_map};
use crate::journal::JournalConfig;
use crate::seam::{Outcome, Refusal, Space, StorageEvent, StorageRequest, ViewRead};
use crate::segment::{CHECKPOINT_RECORD_BYTES, FIRST_BATCH_OFFSET};

/// Small enough that the tests live at the edges: a checkpoint every 16 KiB, segments of 128 KiB.
fn small(directory: &Path) -> EmbeddedConfig {
    let mut config = EmbeddedConfig::new(directory);
    config.lane.journal = JournalConfig { segment_bytes: 128 << 10, spares_max: 1 };
    config.lane.checkpoint_bytes = 16 << 10;
    config
}

fn wakers(shards: u16) -> Vec<Waker> {
    (0..shards).map(|_| Box::new(|| {}) as Waker).collect()
}

struct Embedded {
    config: EmbeddedConfig,
    started: Option<Started>,
    /// Where to copy the views to when the store ends.
    copy_views_to: Option<PathBuf>,
    _directory: TempDir,
}

impl Embedded {
    fn new() -> Embedded {
        let directory = tempfile::tempdir().expect("a temporary directory");
        Embedded { config: small(directory.path()), started: None, copy_views_to: None, _directory: directory }
    }

    fn store(&self) -> &EmbeddedStore {
        &self.started.as_ref().expect("started").store
    }

    /// Kills the store and says why it does not start again.
    fn refusal(&mut self) -> String {
        self.started.take().expect("started").store.abandon();
        self.start().expect_err("refused").to_string()
    }

    fn start(&self) -> Result<Started, StartError> {
        EmbeddedStore::start(&self.config, &slot_map(1), wakers(1))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.config.directory.join(name)
    }
}

impl Backend for Embedded {
    fn facts(&self) -> StoreFacts {
        self.started.as_ref().expect("started").facts.clone()
    }

    fn submit(&mut self, shard: u16, request: StorageRequest) {
        self.started.as_ref().expect("started").ports[shard as usize].submit(request).expect("queues have room");
    }

    fn poll(&mut self, shard: u16, events: &mut Vec<StorageEvent>) {
        let port = &mut self.started.as_mut().expect("started").ports[shard as usize];
        port.poll(events);
        if events.is_empty() {
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    fn restart(&mut self, end: End, shards: u16, driver: &mut Shards) {
        if let Some(Started { store, mut ports, .. }) = self.started.take() {
            if end == End::Graceful {
                let stopping = std::thread::spawn(move || store.shutdown(Duration::from_mins(1)));
                while !stopping.is_finished() {
                    for (shard, port) in ports.iter_mut().enumerate() {
                        let mut events = Vec::new();
                        port.poll(&mut events);
                        let answers = events.into_iter().filter_map(|event| driver.on_event(shard as u16, event));
                        answers.for_each(|answer| drop(port.submit(answer)));
                    }
                }
                assert!(stopping.join().expect("no panic"), "a clean end");
            } else {
                store.abandon();
            }
        }
        if let Some(to) = self.copy_views_to.take() {
            let copied = std::process::Command::new("cp").arg("-a").args([self.path("views"), to]).status();
            assert!(copied.expect("cp runs").success());
        }
        self.started = Some(EmbeddedStore::start(&self.config, &slot_map(shards), wakers(shards)).expect("starts"));
    }
}

#[test]
fn the_embedded_store_conforms() {
    conformance::run(1, Embedded::new);
}

#[test]
fn the_embedded_store_forgets_only_what_it_says() {
    conformance::run_forgetting(1, || {
        let mut embedded = Embedded::new();
        embedded.config.views.dedup_day_ms = 20;
        embedded
    });
}

#[test]
fn a_second_process_is_told_who_has_the_directory() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let config = small(directory.path());
    let first = EmbeddedStore::start(&config, &slot_map(1), wakers(1)).expect("starts");
    let refused = EmbeddedStore::start(&config, &slot_map(1), wakers(1)).expect_err("in use");
    assert!(refused.to_string().contains(&format!("in use by process {}", std::process::id())), "{refused}");
    drop(first);
    EmbeddedStore::start(&config, &slot_map(1), wakers(1)).expect("free again");
}

#[test]
fn a_shard_is_woken_for_what_it_is_sent() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let woken = Arc::new(AtomicU64::new(0));
    let waker = {
        let woken = Arc::clone(&woken);
        Box::new(move || {
            woken.fetch_add(1, Ordering::SeqCst);
        }) as Waker
    };
    let mut started = EmbeddedStore::start(&small(directory.path()), &slot_map(1), vec![waker]).expect("starts");
    let port = &mut started.ports[0];
    let mut events = Vec::new();
    port.poll(&mut events);
    assert!(matches!(events[..], [StorageEvent::RecoveredAll { .. }]));
    let before = woken.load(Ordering::SeqCst);
    let read = ViewRead::Get { space: Space::History, key: vec![1] };
    port.submit(StorageRequest::Read(5, read)).expect("room");
    while woken.load(Ordering::SeqCst) == before {
        std::thread::yield_now();
    }
    events.clear();
    port.poll(&mut events);
    assert!(matches!(events[..], [StorageEvent::Read(5, Ok(_))]), "{events:?}");
}

#[test]
fn deleted_views_are_refused_and_not_an_empty_history() {
    let mut embedded = Embedded::new();
    Driver::new(&mut embedded, 1, 1).append_through_checkpoints(2);
    embedded.started.take().expect("started").store.abandon();
    std::fs::remove_dir_all(embedded.path("views")).expect("removes");
    let refused = embedded.start().expect_err("refused").to_string();
    assert!(refused.contains("missing"), "{refused}");
}

#[test]
fn views_of_an_earlier_day_are_refused() {
    let mut embedded = Embedded::new();
    let mut driver = Driver::new(&mut embedded, 1, 1);
    driver.append_through_checkpoints(1);
    driver.backend.copy_views_to = Some(driver.backend.path("old"));
    driver.restart(End::Kill, 1);
    driver.append_through_checkpoints(2);
    embedded.started.take().expect("started").store.abandon();
    std::fs::remove_dir_all(embedded.path("views")).expect("removes");
    std::fs::rename(embedded.path("old"), embedded.path("views")).expect("renames");
    let refused = embedded.start().expect_err("refused").to_string();
    assert!(refused.contains("older than the journal's checkpoint"), "{refused}");
}

#[test]
fn a_deleted_journal_is_refused_while_there_are_views() {
    let mut embedded = Embedded::new();
    Driver::new(&mut embedded, 1, 1).append_through_checkpoints(1);
    std::fs::remove_dir_all(embedded.path("journal")).expect("removes");
    let refused = embedded.refusal();
    assert!(refused.contains("the journal ends before the views"), "{refused}");
    assert!(!embedded.path("journal/identity").exists(), "and no new one is begun");
}

#[test]
fn a_shard_that_hangs_bounds_the_journal_and_all_goes_on_when_it_answers() {
    let mut embedded = Embedded::new();
    embedded.config.lane.views_stall_ms = 0;
    let mut driver = Driver::new(&mut embedded, 1, 1);
    driver.held = Some(Vec::new());
    let outcome = loop {
        let group = driver.random_group(0);
        let outcomes = driver.append(0, group);
        if outcomes[0] != Outcome::Committed {
            break outcomes[0];
        }
    };
    assert_eq!(outcome, Outcome::Refused(Refusal::ViewsBehind));
    let counters = driver.backend.store().counters();
    let bound = 4 * driver.backend.config.lane.checkpoint_bytes;
    assert!(counters.lag_bytes.get() >= bound && counters.lag_bytes.get() < bound + (64 << 10));
    assert!(counters.refused_behind.get() > 0);
    while driver.backend.store().trouble().is_none() {
        driver.poll();
    }
    driver.check_rows();
    driver.release();
    while driver.checkpoints_done() == 0 {
        driver.poll();
    }
    driver.append_through_checkpoints(2);
    driver.check_rows();
    driver.restart(End::Kill, 1);
    driver.check_rows();
}

/// A disk of a few MiB that can be filled; unmounted when dropped.
struct SmallDisk(TempDir);

impl SmallDisk {
    /// `None` without the right to mount.
    fn mount(bytes: &str) -> Option<SmallDisk> {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let options = format!("size={bytes}");
        let mut mount = std::process::Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &options, "ringway-test"]).arg(directory.path());
        mount.stderr(std::process::Stdio::null());
        mount.status().is_ok_and(|status| status.success()).then_some(SmallDisk(directory))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[test]
fn a_disk_that_fills_up_refuses_appends_and_heals_when_there_is_room() {
    let Some(disk) = SmallDisk::mount("24m") else {
        eprintln!("NOT RUN: filling a disk needs the right to mount a small one (run as root)");
        return;
    };
    let mut embedded = Embedded::new();
    embedded.config.directory = disk.0.path().join("data");
    let mut driver = Driver::new(&mut embedded, 1, 1);
    driver.append_through_checkpoints(2);
    // Something else takes all the room there is.
    let filler = disk.0.path().join("filler");
    fill(&filler);
    let refused = loop {
        let group = driver.random_group(0);
        let outcomes = driver.append(0, group);
        if outcomes[0] != Outcome::Committed {
            break outcomes[0];
        }
    };
    // Either the journal has no room, or the views have not and it may not run ahead of them.
    assert!(matches!(refused, Outcome::Refused(Refusal::Full | Refusal::ViewsBehind)), "{refused:?}");
    driver.check_rows();
    for _ in 0..20 {
        let group = driver.random_group(0);
        driver.append(0, group);
    }
    std::fs::remove_file(&filler).expect("removes");
    // By itself: nobody restarts anything.
    let healed = (0..10_000).any(|_| {
        let group = driver.random_group(0);
        std::thread::sleep(Duration::from_millis(2));
        driver.append(0, group)[0] == Outcome::Committed
    });
    assert!(healed, "appends work again when there is room");
    driver.check_rows();
    driver.restart(End::Kill, 1);
    driver.check_rows();
    driver.append_through_checkpoints(1);
    driver.restart(End::Graceful, 1);
    driver.check_rows();
    embedded.started = None;
}

fn fill(path: &Path) {
    let mut file = std::fs::File::create(path).expect("creates");
    let zeros = vec![0; 4096];
    while std::io::Write::write_all(&mut file, &zeros).is_ok() {}
}

/// What a start replays is bounded by the checkpoints, not by what the store holds.
#[test]
fn a_restart_replays_what_is_behind_the_checkpoint_however_much_there_is() {
    let mut embedded = Embedded::new();
    let checkpoint_bytes = embedded.config.lane.checkpoint_bytes;
    let segment_bytes = embedded.config.lane.journal.segment_bytes;
    let mut driver = Driver::new(&mut embedded, 1, 1);
    let mut appended = 0;
    for checkpoints in [2, 40] {
        while driver.checkpoints_done() < checkpoints {
            let group = driver.random_group(0);
            appended += group.bytes.len() as u64;
            driver.append(0, group);
        }
        driver.restart(End::Kill, 1);
        let counters = driver.backend.store().counters();
        let replayed = counters.recovered_bytes.get();
        assert!(replayed <= 4 * checkpoint_bytes, "{replayed} bytes after {appended}");
        assert!(appended < 8 * checkpoint_bytes || replayed < appended / 2, "{replayed} bytes after {appended}");
        // What may lie behind the checkpoint and a batch more; the segment that the checkpoint began in, the one
        // that it ended in, and the one of this start.
        let room = segment_bytes - CHECKPOINT_RECORD_BYTES - u64::from(FIRST_BATCH_OFFSET);
        let segments = (4 * checkpoint_bytes + (64 << 10)) / room + 3;
        assert!(counters.segments.get() <= segments, "{} segments after {appended} bytes", counters.segments.get());
    }
}
