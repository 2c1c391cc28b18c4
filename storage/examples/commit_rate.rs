//! How fast groups commit on this disk, beside the floor: the same writes and syncs without a store.
//!
//! `cargo run --release -p storage --example commit_rate -- DIR [SECONDS]`
//!
//! One shard, one group in flight, as a busy shard keeps it. Records of 200 bytes over many slots, rows of
//! the same size to the views. Prints commits and records per second, and CPU of the whole process per
//! record, for several sizes of group.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::{Duration, Instant};

use storage::embedded::{EmbeddedConfig, EmbeddedStore, Port, Started, Waker};
use storage::seam::{AppendGroup, Outcome, Part, Refusal, RowRef, Run, Space, StorageEvent, StorageRequest};

const RECORD_BYTES: usize = 200;
const SLOTS: u16 = 4096;
const BEHIND: Outcome = Outcome::Refused(Refusal::ViewsBehind);

fn main() {
    let mut arguments = std::env::args().skip(1);
    let directory = arguments.next().expect("usage: commit_rate DIR [SECONDS]");
    let seconds: u64 = arguments.next().map_or(5, |text| text.parse().expect("seconds are a number"));
    println!("records of {RECORD_BYTES} bytes; {seconds} s each");
    println!("{:>10} {:>12} {:>12} {:>14} {:>14}", "group", "commits/s", "floor/s", "records/s", "CPU us/record");
    for records in [1, 16, 128, 1024] {
        let path = Path::new(&directory).join(format!("commit-rate-{records}"));
        let floor = floor(&path, records, Duration::from_secs(seconds));
        let measured = measure(&path, records, Duration::from_secs(seconds));
        std::fs::remove_dir_all(&path).expect("removes what it made");
        let (commits, cpu_us) = measured;
        let per_second = commits as f64 / seconds as f64;
        println!(
            "{records:>10} {per_second:>12.0} {floor:>12.0} {:>14.0} {:>14.2}",
            per_second * records as f64,
            cpu_us / (commits as f64 * records as f64)
        );
    }
}

/// Appends and syncs of a plain file, as large as the batches of the store.
fn floor(directory: &Path, records: usize, time: Duration) -> f64 {
    std::fs::create_dir_all(directory).expect("makes the directory");
    let mut file = File::create(directory.join("floor")).expect("creates");
    let bytes = vec![7; (128 + records * (32 + RECORD_BYTES)).next_multiple_of(4096)];
    let (begun, mut syncs) = (Instant::now(), 0);
    while begun.elapsed() < time / 4 {
        file.write_all(&bytes).expect("writes");
        // SAFETY: the descriptor is open for as long as `file` lives.
        assert_eq!(unsafe { libc::fdatasync(file.as_raw_fd()) }, 0);
        syncs += 1;
    }
    f64::from(syncs) / begun.elapsed().as_secs_f64()
}

/// Commits and microseconds of CPU.
fn measure(directory: &Path, records: usize, time: Duration) -> (u64, f64) {
    let thread = std::thread::current();
    let waker: Waker = Box::new(move || thread.unpark());
    let config = EmbeddedConfig::new(&directory.join("data"));
    let started = EmbeddedStore::start(&config, &vec![0; SLOTS as usize], vec![waker]).expect("starts");
    let Started { facts, mut ports, store } = started;
    let mut port = ports.pop().expect("one shard");
    let mut shard = Shard { epoch: facts.epoch, lsns: vec![0; SLOTS as usize], next_slot: 0, rows: Rows::default() };
    let (begun, cpu) = (Instant::now(), cpu_us());
    let mut commits = 0;
    let mut events = Vec::new();
    send(&port, StorageRequest::Append(shard.group(records, AppendGroup::default())));
    while begun.elapsed() < time {
        port.poll(&mut events);
        if events.is_empty() {
            std::thread::park();
        }
        for event in events.drain(..) {
            match event {
                // The views can not take half a million rows a second for long: what P10 bounds.
                StorageEvent::Appended { group, outcomes } if outcomes[0] == BEHIND => {
                    std::thread::sleep(Duration::from_millis(1));
                    send(&port, StorageRequest::Append(group));
                }
                StorageEvent::Appended { group, outcomes } => {
                    assert!(outcomes.iter().all(|outcome| *outcome == Outcome::Committed), "{outcomes:?}");
                    commits += 1;
                    shard.rows.take(&group);
                    send(&port, StorageRequest::Append(shard.group(records, group)));
                }
                StorageEvent::Freeze { checkpoint } => {
                    send(&port, StorageRequest::Run { checkpoint, run: shard.rows.run() });
                }
                StorageEvent::RecoveredAll { .. } => send(&port, StorageRequest::Serving),
                StorageEvent::Recovered(_) | StorageEvent::Read(..) | StorageEvent::CheckpointDone { .. } => {}
            }
        }
    }
    let used = cpu_us() - cpu;
    store.abandon();
    (commits, used)
}

fn send(port: &Port, request: StorageRequest) {
    port.submit(request).expect("one group is in flight");
}

struct Shard {
    epoch: u64,
    lsns: Vec<u64>,
    next_slot: u16,
    rows: Rows,
}

impl Shard {
    /// One record in each of the next slots, in the room of a group that is done.
    fn group(&mut self, records: usize, mut group: AppendGroup) -> AppendGroup {
        group.parts.clear();
        group.bytes.clear();
        for _ in 0..records {
            let slot = self.next_slot;
            self.next_slot = (slot + 1) % SLOTS;
            let start = group.bytes.len() as u32;
            group.bytes.extend(((RECORD_BYTES - 4) as u32).to_le_bytes());
            group.bytes.extend(slot.to_be_bytes());
            group.bytes.extend(self.lsns[slot as usize].to_be_bytes());
            group.bytes.resize(start as usize + RECORD_BYTES, 7);
            let expected_lsn = self.lsns[slot as usize];
            self.lsns[slot as usize] += 1;
            let bytes = start..start + RECORD_BYTES as u32;
            group.parts.push(Part { slot, epoch: self.epoch, expected_lsn, records: 1, bytes });
        }
        group
    }
}

/// Rows that are not handed over yet: one per record, its slot and LSN the key.
#[derive(Default)]
struct Rows {
    arena: Vec<u8>,
    rows: Vec<RowRef>,
}

impl Rows {
    fn take(&mut self, group: &AppendGroup) {
        for part in &group.parts {
            let offset = self.arena.len() as u32;
            self.arena.extend_from_slice(&group.bytes[part.bytes.start as usize + 4..part.bytes.end as usize]);
            let value_bytes = RECORD_BYTES as u32 - 14;
            self.rows.push(RowRef { space: Space::History, offset, key_bytes: 10, value_bytes });
        }
    }

    fn run(&mut self) -> Run {
        let rows = std::mem::take(self);
        Run::of(rows.arena, rows.rows)
    }
}

/// CPU of this process so far, kernel included.
fn cpu_us() -> f64 {
    // SAFETY: `rusage` is plain numbers, and the call fills it in.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        assert_eq!(libc::getrusage(libc::RUSAGE_SELF, &raw mut usage), 0);
        usage
    };
    let micros = |time: libc::timeval| time.tv_sec as f64 * 1e6 + time.tv_usec as f64;
    micros(usage.ru_utime) + micros(usage.ru_stime)
}
