//! What a view row costs: ingested in sorted runs, as the views do it, against batched upserts.
//!
//! `cargo run --release -p storage --example views_by_runs -- runs|upserts DIR [MESSAGES] [TABLE_MIB]`
//!
//! Each message makes a history row and a dedup row, spread over 500,000 conversations; a checkpoint
//! is 200,000 rows. The processor time is that of the whole process, so compaction counts. Figures and
//! what followed from them: `docs/decisions/0002-views-by-sorted-runs.md`.

use std::path::Path;
use std::time::{Duration, Instant};

use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};
use storage::seam::{RowRef, Run, Space, ViewRead};
use storage::views::{Views, ViewsConfig};

const CONVERSATIONS: u64 = 500_000;
const MESSAGES_PER_CHECKPOINT: u64 = 100_000;
const READS: u64 = 20_000;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let number = |at: usize, default: u64| arguments.get(at).map_or(default, |text| text.parse().expect("a number"));
    let (Some(how), Some(dir)) = (arguments.get(1), arguments.get(2)) else {
        eprintln!("usage: views_by_runs runs|upserts DIR [MESSAGES] [TABLE_MIB]");
        std::process::exit(2);
    };
    let messages = number(3, 2_000_000);
    let table_mib = number(4, ViewsConfig::default().table_bytes >> 20);
    match how.as_str() {
        "runs" => by_runs(Path::new(dir), messages, table_mib << 20),
        "upserts" => by_upserts(Path::new(dir), messages),
        other => panic!("unknown way {other}"),
    }
}

fn by_runs(dir: &Path, messages: u64, table_bytes: u64) {
    let config = ViewsConfig { table_bytes, ..ViewsConfig::default() };
    let views = Views::open(dir, config).expect("views open");
    let mut random = Random(1);
    let started = Start::now();
    let mut longest = Duration::ZERO;
    for checkpoint in 0..messages / MESSAGES_PER_CHECKPOINT {
        let run = run_of_messages(&mut random, checkpoint * MESSAGES_PER_CHECKPOINT);
        let before = Instant::now();
        views.ingest(checkpoint, checkpoint, &[run]).expect("ingestion");
        longest = longest.max(before.elapsed());
    }
    started.report("rows written", messages * 2);
    until_quiet();
    started.report("rows written and compacted", messages * 2);
    println!("longest ingestion {} ms", longest.as_millis());
    measure_reads(|question| views.read(question).expect("read").index.len());
    println!("runs waiting for compaction {}", views.runs_waiting());
    print_disk(dir);
}

fn by_upserts(dir: &Path, messages: u64) {
    let database = Database::builder(dir)
        .cache_size(ViewsConfig::default().cache_bytes)
        .worker_threads(1)
        .open()
        .expect("database opens");
    let options = || KeyspaceCreateOptions::default().max_memtable_size(32 << 20);
    let history = database.keyspace("history", options).expect("history");
    let dedup = database.keyspace("dedup", options).expect("dedup");
    let of = |space: Space| -> &Keyspace { if space == Space::History { &history } else { &dedup } };
    let mut random = Random(1);
    let started = Start::now();
    let mut longest = Duration::ZERO;
    for checkpoint in 0..messages / MESSAGES_PER_CHECKPOINT {
        let run = run_of_messages(&mut random, checkpoint * MESSAGES_PER_CHECKPOINT);
        let before = Instant::now();
        let rows: Vec<_> = run.rows().collect();
        for rows in rows.chunks(1_000) {
            let mut batch = database.batch();
            for &(space, key, value) in rows {
                let mut stored = value.to_vec();
                stored.extend_from_slice(&crc32fast::hash(value).to_le_bytes());
                batch.insert(of(space), key, stored);
            }
            batch.commit().expect("batch");
        }
        database.persist(PersistMode::SyncAll).expect("sync");
        longest = longest.max(before.elapsed());
    }
    started.report("rows written", messages * 2);
    until_quiet();
    started.report("rows written and compacted", messages * 2);
    println!("longest checkpoint {} ms", longest.as_millis());
    measure_reads(|question| match question {
        ViewRead::Get { space, key } => usize::from(of(*space).get(key).expect("read").is_some()),
        ViewRead::Range { space, start, end, .. } => {
            of(*space).range(start.as_slice()..end.as_slice()).filter_map(|row| row.into_inner().ok()).count()
        }
    });
    print_disk(dir);
}

/// A run as a shard would hand it over: in the order of the messages.
fn run_of_messages(random: &mut Random, first_seq: u64) -> Run {
    let mut arena = Vec::new();
    let mut rows = Vec::new();
    let mut add = |space: Space, key: &[&[u8]], value: &[u8]| {
        let offset = arena.len() as u32;
        for part in key {
            arena.extend_from_slice(part);
        }
        let key_bytes = (arena.len() - offset as usize) as u16;
        arena.extend_from_slice(value);
        rows.push(RowRef { space, offset, key_bytes, value_bytes: value.len() as u32 });
    };
    let mut text = [0; 168];
    for seq in first_seq..first_seq + MESSAGES_PER_CHECKPOINT {
        let conversation = conversation(random.next());
        for word in text.chunks_mut(8) {
            word.copy_from_slice(&random.next().to_le_bytes());
        }
        add(Space::History, &[&conversation, &seq.to_be_bytes()], &text);
        let mut known = [0; 24];
        known[..8].copy_from_slice(&1_760_000_000_000_u64.to_le_bytes());
        known[8..16].copy_from_slice(&seq.to_le_bytes());
        add(Space::Dedup, &[&conversation, &random.next().to_be_bytes(), &seq.to_be_bytes()], &known);
    }
    Run::of(arena, rows)
}

fn conversation(number: u64) -> [u8; 16] {
    let low = (number % CONVERSATIONS).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut bytes = [7; 16];
    bytes[..8].copy_from_slice(&low.to_be_bytes());
    bytes
}

fn measure_reads(read: impl Fn(&ViewRead) -> usize) {
    let mut random = Random(2);
    let before = Start::now();
    let mut found = 0;
    for _ in 0..READS {
        let start = conversation(random.next());
        let mut end = start;
        end[15] += 1;
        let (start, end) = (start.to_vec(), end.to_vec());
        let range =
            ViewRead::Range { space: Space::History, start, end, rows_max: 50, bytes_max: 1 << 20, reverse: false };
        found += read(&range);
    }
    before.report("conversation prefixes read", READS);
    println!("rows per prefix {:.1}", found as f64 / READS as f64);
    let before = Start::now();
    for _ in 0..READS {
        let mut key = conversation(random.next()).to_vec();
        key.extend_from_slice(&[0xee; 16]);
        read(&ViewRead::Get { space: Space::Dedup, key });
    }
    before.report("missing dedup keys looked up", READS);
}

/// Compaction has no end to wait for that can be asked; it is over when no processor time is used.
fn until_quiet() {
    loop {
        let before = cpu();
        std::thread::sleep(Duration::from_secs(1));
        if cpu().saturating_sub(before) < Duration::from_millis(10) {
            return;
        }
    }
}

struct Start {
    cpu: Duration,
    wall: Instant,
}

impl Start {
    fn now() -> Start {
        Start { cpu: cpu(), wall: Instant::now() }
    }

    fn report(&self, what: &str, units: u64) {
        let cpu = cpu().saturating_sub(self.cpu).as_secs_f64() * 1e6 / units as f64;
        let wall = self.wall.elapsed().as_secs_f64();
        println!("{what}: {units}, {cpu:.2} us of processor each, {wall:.1} s");
    }
}

fn cpu() -> Duration {
    // SAFETY: all-zero is a valid `rusage`, and the call only writes into it.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        assert_eq!(libc::getrusage(libc::RUSAGE_SELF, &raw mut usage), 0);
        usage
    };
    let of = |time: libc::timeval| Duration::new(time.tv_sec as u64, time.tv_usec as u32 * 1_000);
    of(usage.ru_utime) + of(usage.ru_stime)
}

fn print_disk(dir: &Path) {
    fn bytes(dir: &Path) -> u64 {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        let size = |entry: std::fs::DirEntry| match entry.metadata() {
            Ok(meta) if meta.is_dir() => bytes(&entry.path()),
            Ok(meta) => meta.len(),
            Err(_) => 0,
        };
        entries.map(size).sum()
    }
    println!("on disk {} MiB", bytes(dir) >> 20);
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    for line in status.lines().filter(|line| line.starts_with("VmHWM")) {
        println!("{line}");
    }
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}
