//! Where the processor time and the bytes of one durable message go: per thread, per kind of row, and what the
//! disk itself does without us.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::server::{Process, Trouble};

/// What is counted by the server itself, and how it is shown.
const COUNTED: [(&str, &str); 5] = [
    ("ringway_store_bytes_total", "bytes of journal"),
    ("ringway_store_batches_total", "syncs"),
    ("ringway_ring_system_calls_total", "calls of io_uring_enter"),
    ("ringway_ring_bytes_in_total", "bytes received"),
    ("ringway_ring_bytes_out_total", "bytes sent"),
];

/// Rows of the views, by the part of their name in the metrics.
const ROWS: [&str; 4] = ["history", "dedup", "head", "member"];

/// What a server has used so far.
pub struct Used {
    /// Processor time by the name of the thread, in nanoseconds.
    threads: BTreeMap<String, u64>,
    counted: [f64; COUNTED.len()],
    rows: [(f64, f64); ROWS.len()],
}

impl Used {
    /// Until now.
    pub fn now(server: &Process) -> Self {
        let mut threads = BTreeMap::new();
        for task in std::fs::read_dir(format!("/proc/{}/task", server.id())).into_iter().flatten().flatten() {
            let read = |file: &str| std::fs::read_to_string(task.path().join(file)).unwrap_or_default();
            let name = read("comm").trim().trim_end_matches(|c: char| c.is_ascii_digit() || c == '-').to_owned();
            let spent: u64 = read("schedstat").split(' ').next().and_then(|ns| ns.parse().ok()).unwrap_or(0);
            *threads.entry(name).or_default() += spent;
        }
        let row = |name: &str| {
            let bytes = server.metric(&format!("ringway_store_{name}_row_bytes_total"));
            (server.metric(&format!("ringway_store_{name}_rows_total")), bytes)
        };
        Self { threads, counted: COUNTED.map(|(name, _)| server.metric(name)), rows: ROWS.map(row) }
    }

    /// What was used between `before` and now, per message.
    pub fn since(&self, before: &Self, messages: f64) -> Budget {
        let spent = |(name, ns): (&String, &u64)| {
            let us = (ns.saturating_sub(before.threads.get(name).copied().unwrap_or(0))) as f64 / 1e3 / messages;
            (name.clone(), us)
        };
        let counted = std::array::from_fn(|at| (self.counted[at] - before.counted[at]) / messages);
        // The views follow at checkpoints: what they were handed is counted by the messages among it.
        let handed = self.rows[0].0 - before.rows[0].0;
        let rows = std::array::from_fn(|at| {
            let (rows, bytes) = (self.rows[at].0 - before.rows[at].0, self.rows[at].1 - before.rows[at].1);
            (rows / handed, bytes / handed)
        });
        Budget { threads: self.threads.iter().map(spent).collect(), counted, rows }
    }
}

/// What one message costs.
pub struct Budget {
    threads: BTreeMap<String, f64>,
    counted: [f64; COUNTED.len()],
    rows: [(f64, f64); ROWS.len()],
}

impl Budget {
    /// The table; `generator_us` is the processor time of the other side.
    pub fn print(&self, generator_us: f64) {
        for (name, us) in self.threads.iter().filter(|(_, us)| **us >= 0.01) {
            println!("  {us:>8.2} us   thread {name}");
        }
        println!("  {:>8.2} us   server, all threads", self.threads.values().sum::<f64>());
        println!("  {generator_us:>8.2} us   generator");
        for ((_, what), counted) in COUNTED.iter().zip(self.counted) {
            println!("  {counted:>8.3}      {what}");
        }
        for (name, (rows, bytes)) in ROWS.iter().zip(self.rows) {
            if rows.is_finite() {
                println!("  {rows:>8.3}      {name} rows, {bytes:.0} bytes");
            }
        }
    }

    /// For the file of results.
    pub fn to_json(&self) -> Value {
        let counted: BTreeMap<_, _> = COUNTED.iter().map(|(_, what)| *what).zip(self.counted).collect();
        let rows: BTreeMap<_, _> = ROWS.iter().zip(self.rows).collect();
        json!({ "thread_us": self.threads, "counted": counted, "rows_and_bytes": rows })
    }
}

/// Bytes of one write of the probe: what a batch of a few messages takes in the journal.
const BLOCK: usize = 4_096;

#[repr(align(4096))]
struct Aligned([u8; BLOCK]);

/// How often a second this disk takes a block and has it synced, one after the other, with nothing of ours: in room
/// that was written before, as a segment that is used again.
pub fn commits_per_second(directory: &Path) -> Result<f64, Trouble> {
    const BLOCKS: u64 = 4_096;
    let path = directory.join("probe");
    let file = OpenOptions::new()
        .create(true)
        .truncate(true)
        .read(true)
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(&path)?;
    let block = Box::new(Aligned([7; BLOCK]));
    let write = |at: u64| -> Result<(), Trouble> {
        // SAFETY: the descriptor is open and the block is readable and aligned as direct I/O wants it.
        let written = unsafe {
            libc::pwrite(file.as_raw_fd(), block.0.as_ptr().cast(), BLOCK, (at * BLOCK as u64) as libc::off_t)
        };
        if written == BLOCK as isize { Ok(()) } else { Err(std::io::Error::last_os_error().into()) }
    };
    (0..BLOCKS).try_for_each(write)?;
    file.sync_all()?;
    let (begun, mut commits) = (Instant::now(), 0);
    while begun.elapsed() < Duration::from_secs(1) {
        write(commits % BLOCKS)?;
        file.sync_data()?;
        commits += 1;
    }
    let rate = commits as f64 / begun.elapsed().as_secs_f64();
    std::fs::remove_file(path)?;
    Ok(rate)
}
