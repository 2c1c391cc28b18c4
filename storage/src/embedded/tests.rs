//! The embedded store on real files.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tempfile::TempDir;

use super::*;
use crate::conformance::{self, Backend, End, Shards, slot_map};
use crate::journal::JournalConfig;
use crate::seam::Space;

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
    directory: TempDir,
    started: Option<Started>,
}

impl Embedded {
    fn new() -> Embedded {
        Embedded { directory: tempfile::tempdir().expect("a temporary directory"), started: None }
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
        let config = small(self.directory.path());
        self.started = Some(EmbeddedStore::start(&config, &slot_map(shards), wakers(shards)).expect("starts"));
    }
}

#[test]
fn the_embedded_store_conforms() {
    conformance::run(1, Embedded::new);
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
