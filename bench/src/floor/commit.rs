//! How often the disk commits: a write at the end of a file and its sync, one after the other.

use std::fs::OpenOptions;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use loadgen::process::thread_cpu_ns;

use super::{Orders, keep};
use crate::contest::{self, Sample};
use crate::cpu::pin;
use crate::crowd::Stretch;
use crate::server::Trouble;

const BYTES: usize = 16 << 10;
const FILE_BYTES: u64 = 64 << 20;

pub(super) fn run(orders: &Orders) -> Result<(), Trouble> {
    const METHOD: &str = "pwrite of 16 KiB at the next place of a file that was written before, and fdatasync, one after the other on \
                          core 0; with nothing else to do, with core 1 busy, and with core 0 shared with a busy thread. \
                          Processor time of the writing thread per commit; commits per second of the clock.";
    let directory = orders.disk.clone().unwrap_or_else(|| std::path::PathBuf::from("target"));
    std::fs::create_dir_all(&directory)?;
    let path = directory.join(format!("bench-commit-{}", std::process::id()));
    println!("commits on the disk of {}", directory.display());
    let file = OpenOptions::new().create(true).truncate(true).write(true).open(&path)?;
    // As the journal has it: the file's blocks are there already, and only their contents change.
    let zeros = vec![0_u8; 1 << 20];
    for at in (0..FILE_BYTES).step_by(zeros.len()) {
        file.write_all_at(&zeros, at)?;
    }
    file.sync_all()?;
    let measured = contest::run(&["idle", "other core busy", "same core busy"], 0, orders.rounds, |side| {
        let stop = Arc::new(AtomicBool::new(false));
        let spinner = (side > 0).then(|| {
            let (stop, core) = (Arc::clone(&stop), 2 - side);
            std::thread::spawn(move || {
                pin(core);
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            })
        });
        let sample = commit(&file, Duration::from_secs(orders.seconds));
        stop.store(true, Ordering::Relaxed);
        if let Some(spinner) = spinner {
            spinner.join().map_err(|_| "the spinning thread panicked")?;
        }
        sample
    });
    std::fs::remove_file(&path)?;
    let outcome = measured?;
    outcome.show("idle");
    keep("commit", METHOD, "commit", outcome.to_json(&["idle"]))
}

fn commit(file: &std::fs::File, length: Duration) -> Result<Sample, Trouble> {
    pin(0);
    let block = vec![b'x'; BYTES];
    let (mut commits, mut at, begun) = (0_u64, 0, Instant::now());
    let (stretch, before) = (Stretch::of(&[]), thread_cpu_ns());
    while begun.elapsed() < length {
        file.write_all_at(&block, at)?;
        // SAFETY: the descriptor is the file's, which is open.
        if unsafe { libc::fdatasync(file.as_raw_fd()) } != 0 {
            return Err(std::io::Error::last_os_error().into());
        }
        commits += 1;
        at = (at + BYTES as u64) % FILE_BYTES;
    }
    let us = (thread_cpu_ns() - before) as f64 / commits as f64 / 1e3;
    let spent = stretch.end();
    pin(1);
    Ok(Sample { us, ..Sample::of(&spent, commits) })
}
