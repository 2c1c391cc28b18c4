//! The views of a process that is killed while it ingests: whatever the mark says is there, whole.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use storage::seam::{RowRef, Rows, Run, Space, ViewRead};
use storage::views::{Views, ViewsConfig};

const DIR: &str = "RINGWAY_TEST_VIEWS_DIR";
const ROWS: u64 = 3_000;
const KILLS: u64 = 12;

/// Every row holds the number of the checkpoint that wrote it. Each checkpoint replaces all heads, adds
/// history of its own and dedup rows, so that a checkpoint that is half there shows.
fn run_of(checkpoint: u64) -> Run {
    let mut refs = Vec::new();
    let mut arena = Vec::new();
    for number in 0..ROWS {
        let key = number.to_be_bytes();
        let own = [checkpoint.to_be_bytes(), key].concat();
        let value = checkpoint.to_le_bytes();
        let day = [1_760_000_000_000_u64.to_le_bytes(), value].concat();
        let rows: [(Space, &[u8], &[u8]); 3] =
            [(Space::Heads, &key, &value), (Space::History, &own, &value), (Space::Dedup, &own, &day)];
        for (space, key, value) in rows {
            let offset = arena.len() as u32;
            arena.extend_from_slice(key);
            arena.extend_from_slice(value);
            refs.push(RowRef { space, offset, key_bytes: key.len() as u16, value_bytes: value.len() as u32 });
        }
    }
    Run::of(arena, refs)
}

fn open(dir: &Path) -> Views {
    Views::open(dir, ViewsConfig { cache_bytes: 4 << 20, ..ViewsConfig::default() }).expect("the views open")
}

fn all(views: &Views, space: Space, start: &[u8], end: &[u8]) -> Rows {
    let (start, end) = (start.to_vec(), end.to_vec());
    views
        .read(&ViewRead::Range { space, start, end, rows_max: u32::MAX, bytes_max: u32::MAX, reverse: false })
        .expect("the views read")
}

/// The child: goes on from the mark until it is killed, and says each checkpoint that is durable.
#[test]
fn child_that_ingests_until_it_is_killed() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    let views = open(Path::new(&dir));
    let first = views.checkpoint().0 + 1;
    for checkpoint in first.. {
        views.ingest(checkpoint, checkpoint * 10, &[run_of(checkpoint)]).expect("ingestion");
        println!("\ndurable {checkpoint}");
    }
}

fn start_child(dir: &Path) -> Child {
    Command::new(std::env::current_exe().expect("this program has a path"))
        .args(["--exact", "child_that_ingests_until_it_is_killed", "--nocapture"])
        .env(DIR, dir)
        .stdout(Stdio::piped())
        .spawn()
        .expect("the child starts")
}

#[test]
fn a_killed_ingestion_leaves_whole_checkpoints() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut told = 0;
    for kill in 0..KILLS {
        let mut child = start_child(dir.path());
        let lines = BufReader::new(child.stdout.take().expect("its output is piped")).lines();
        let reports = lines.map_while(Result::ok).filter_map(|line| line.strip_prefix("durable ")?.parse::<u64>().ok());
        for checkpoint in reports.take(2) {
            told = checkpoint;
        }
        // Somewhere in the middle of the next ingestion, elsewhere each time.
        std::thread::sleep(std::time::Duration::from_micros(kill * 1_700));
        child.kill().expect("the child is killed");
        child.wait().expect("the child is gone");

        let views = open(dir.path());
        let (checkpoint, position) = views.checkpoint();
        assert!(checkpoint >= told, "kill {kill}: told {told}, found {checkpoint}");
        assert_eq!(position, checkpoint * 10);
        let expect_checkpoint = |checkpoint: u64, newest: bool| {
            let (from, to) = (checkpoint.to_be_bytes(), (checkpoint + 1).to_be_bytes());
            for space in [Space::History, Space::Dedup] {
                assert_eq!(all(&views, space, &from, &to).index.len() as u64, ROWS, "{checkpoint} {space:?}");
            }
            if newest {
                for (_, value) in all(&views, Space::Heads, &[0; 8], &[0xff; 8]).iter() {
                    let found = u64::from_le_bytes(value.try_into().expect("eight bytes"));
                    // A head may be of the checkpoint that was cut short: the journal still has it.
                    assert!(found == checkpoint || found == checkpoint + 1, "kill {kill}: {found} at {checkpoint}");
                }
            }
        };
        (1..checkpoint).for_each(|earlier| expect_checkpoint(earlier, false));
        expect_checkpoint(checkpoint, true);
        // What was cut short is repeated, and is then whole.
        views.ingest(checkpoint + 1, (checkpoint + 1) * 10, &[run_of(checkpoint + 1)]).expect("it is repeated");
        let heads = all(&views, Space::Heads, &[0; 8], &[0xff; 8]);
        assert_eq!(heads.index.len() as u64, ROWS);
        assert!(heads.iter().all(|(_, value)| value == (checkpoint + 1).to_le_bytes()));
        told = checkpoint + 1;
    }
}
