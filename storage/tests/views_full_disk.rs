//! The views on a device that fills up: refused as full, whole all the time, and going on in the same
//! process once there is room.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use storage::seam::{RowRef, Run, Space, ViewRead};
use storage::views::{Views, ViewsConfig, ViewsError};

const ROWS: u64 = 6_000;

struct Mount(PathBuf);

impl Mount {
    fn new(dir: &Path, bytes: u64) -> Option<Mount> {
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "tmpfs"])
            .arg(dir)
            .status()
            .is_ok_and(|status| status.success());
        mounted.then(|| Mount(dir.to_owned()))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// The same keys each time, so that compaction can give back what earlier checkpoints took.
fn run_of(checkpoint: u64) -> Run {
    let mut arena = Vec::new();
    let mut rows = Vec::new();
    for number in 0..ROWS {
        let offset = arena.len() as u32;
        arena.extend_from_slice(&number.to_be_bytes());
        arena.extend_from_slice(&checkpoint.to_le_bytes());
        arena.extend((0..40_u64).map(|byte| (number.wrapping_mul(byte ^ checkpoint) >> 3) as u8));
        rows.push(RowRef { space: Space::Heads, offset, key_bytes: 8, value_bytes: 48 });
    }
    Run::of(arena, rows)
}

fn expect_all_rows_of(views: &Views, checkpoints: std::ops::RangeInclusive<u64>) {
    for number in (0..ROWS).step_by(97) {
        let key = number.to_be_bytes().to_vec();
        let rows = views.read(&ViewRead::Get { space: Space::Heads, key }).expect("reads go on");
        let (_, value) = rows.iter().next().expect("the row is there");
        let of = u64::from_le_bytes(value[..8].try_into().expect("eight bytes"));
        assert!(checkpoints.contains(&of), "row {number} is of {of}, not of {checkpoints:?}");
    }
}

/// Someone else's file takes what is left, but for half a run, so that an ingestion ends in its middle.
fn fill(ballast: &Path) {
    let mut file = OpenOptions::new().create(true).append(true).open(ballast).expect("it opens");
    let block = vec![0; 64 << 10];
    while file.write_all(&block).is_ok() {}
    let length = file.metadata().expect("it has a length").len();
    file.set_len(length.saturating_sub(160 << 10)).expect("it shrinks");
}

#[test]
fn a_full_disk_is_refused_and_survived() {
    let dir = tempfile::tempdir().expect("a directory");
    let Some(_mount) = Mount::new(dir.path(), 24 << 20) else {
        eprintln!("did not run: mounting a small tmpfs needs root");
        return;
    };
    let ballast = dir.path().join("ballast");
    // Few runs may wait, so that what compaction has not given back yet is a small part of the device.
    let config =
        ViewsConfig { table_bytes: 1 << 20, runs_waiting_max: 5, wait_ms_max: 60_000, ..ViewsConfig::default() };
    let views = Views::open(&dir.path().join("views"), config).expect("the views open");
    let mut checkpoint = 1;
    views.ingest(checkpoint, 1, &[run_of(checkpoint)]).expect("there is room");
    for round in 0..3 {
        let mut refused = 0;
        while refused < 6 {
            fill(&ballast);
            match views.ingest(checkpoint + 1, checkpoint + 1, &[run_of(checkpoint + 1)]) {
                Ok(()) => checkpoint += 1,
                Err(ViewsError::Full(_) | ViewsError::Unavailable(_)) => {
                    refused += 1;
                    // Nothing that was there has gone; of what was refused a part may show.
                    expect_all_rows_of(&views, checkpoint..=checkpoint + 1);
                }
                Err(other) => panic!("round {round}: {other}"),
            }
        }
        assert_eq!(views.checkpoint().0, checkpoint);
        std::fs::remove_file(&ballast).expect("room is made");

        checkpoint += 1;
        views.ingest(checkpoint, checkpoint, &[run_of(checkpoint)]).expect("it goes on by itself");
        expect_all_rows_of(&views, checkpoint..=checkpoint);
        for _ in 0..20 {
            checkpoint += 1;
            views.ingest(checkpoint, checkpoint, &[run_of(checkpoint)]).expect("compaction works again");
        }
        expect_all_rows_of(&views, checkpoint..=checkpoint);
    }
    drop(views);
    let views = Views::open(&dir.path().join("views"), ViewsConfig { expect_existing: true, ..ViewsConfig::default() })
        .expect("it opens again");
    assert_eq!(views.checkpoint().0, checkpoint);
    expect_all_rows_of(&views, checkpoint..=checkpoint);
}
