//! The views against what `seam.rs` says of reads, and against damage.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use proptest::prelude::*;

use super::*;
use crate::seam::RowRef;

const DAY_MS: u64 = 86_400_000;

fn small() -> ViewsConfig {
    ViewsConfig { cache_bytes: 1 << 20, ..ViewsConfig::default() }
}

fn run_of<K: AsRef<[u8]>, V: AsRef<[u8]>>(rows: &[(Space, K, V)]) -> Run {
    let mut arena = Vec::new();
    let mut refs = Vec::new();
    for (space, key, value) in rows {
        let (key, value) = (key.as_ref(), value.as_ref());
        refs.push(RowRef {
            space: *space,
            offset: arena.len() as u32,
            key_bytes: key.len() as u16,
            value_bytes: value.len() as u32,
        });
        arena.extend_from_slice(key);
        arena.extend_from_slice(value);
    }
    Run::of(arena, refs)
}

fn get(views: &Views, space: Space, key: &[u8]) -> Option<Vec<u8>> {
    let rows = views.read(&ViewRead::Get { space, key: key.to_vec() }).unwrap();
    assert!(rows.index.len() <= 1 && !rows.more);
    rows.iter().next().map(|(found, value)| {
        assert_eq!(found, key);
        value.to_vec()
    })
}

fn range(views: &Views, space: Space, question: (&[u8], &[u8]), limits: (u32, u32), reverse: bool) -> Rows {
    let (start, end) = (question.0.to_vec(), question.1.to_vec());
    let (rows_max, bytes_max) = limits;
    views.read(&ViewRead::Range { space, start, end, rows_max, bytes_max, reverse }).unwrap()
}

fn keys(rows: &Rows) -> Vec<Vec<u8>> {
    rows.iter().map(|(key, _)| key.to_vec()).collect()
}

fn dedup_value(day: u64, seq: u8) -> Vec<u8> {
    let mut value = (day * DAY_MS + 1).to_le_bytes().to_vec();
    value.push(seq);
    value
}

/// The process was paused in the middle of a piece of work, or the disk is a hundred times slower than usual.
#[test]
fn an_ingestion_never_rests_for_long() {
    let pace = Pace { rests: 3, urgent: &|| false };
    let (usual, paused) = (Duration::from_millis(1), Duration::from_mins(1));
    assert_eq!(pace.rest_after(usual), 3 * usual);
    assert!(pace.rest_after(paused) < Duration::from_millis(100), "{:?}", pace.rest_after(paused));
}

/// Within a run, between runs of one call and between calls, the row that came last is the row.
#[test]
fn the_last_row_of_a_key_wins_everywhere() {
    let dir = tempfile::tempdir().unwrap();
    let views = Views::open(dir.path(), small()).unwrap();
    let first = run_of(&[(Space::Heads, "a", "1"), (Space::Heads, "b", "1"), (Space::Heads, "a", "2")]);
    let second = run_of(&[(Space::Heads, "b", "2"), (Space::History, "a", "other map")]);
    views.ingest(1, 10, &[first, second]).unwrap();
    assert_eq!(get(&views, Space::Heads, b"a").unwrap(), b"2");
    assert_eq!(get(&views, Space::Heads, b"b").unwrap(), b"2");
    assert_eq!(get(&views, Space::History, b"a").unwrap(), b"other map");
    for round in 0..30_u8 {
        let rows = [(Space::Heads, "a", [round]), (Space::Heads, "c", [round])];
        views.ingest(2 + u64::from(round), 20, &[run_of(&rows)]).unwrap();
        assert_eq!(get(&views, Space::Heads, b"a").unwrap(), [round]);
    }
    assert_eq!(get(&views, Space::Heads, b"b").unwrap(), b"2");
    drop(views);
    let views = Views::open(dir.path(), ViewsConfig { expect_existing: true, ..small() }).unwrap();
    assert_eq!(views.checkpoint(), (31, 20));
    assert_eq!(get(&views, Space::Heads, b"a").unwrap(), [29]);
    assert_eq!(get(&views, Space::Members, b"a"), None);
}

#[test]
fn an_ingestion_may_be_repeated() {
    let dir = tempfile::tempdir().unwrap();
    let views = Views::open(dir.path(), small()).unwrap();
    let run = run_of(&[
        (Space::History, "k".to_owned(), b"v".to_vec()),
        (Space::Dedup, "id".to_owned(), dedup_value(20_000, 1)),
    ]);
    for _ in 0..5 {
        views.ingest(1, 7, std::slice::from_ref(&run)).unwrap();
        assert_eq!(views.checkpoint(), (1, 7));
        assert_eq!(keys(&range(&views, Space::History, (b"", b"z"), (10, 1_000), false)), [b"k"]);
        assert_eq!(keys(&range(&views, Space::Dedup, (b"", b"z"), (10, 1_000), false)), [b"id"]);
    }
    views.ingest(2, 9, &[]).unwrap();
    assert_eq!(views.checkpoint(), (2, 9));
}

#[test]
fn a_range_keeps_to_its_bounds_and_limits() {
    let dir = tempfile::tempdir().unwrap();
    let views = Views::open(dir.path(), small()).unwrap();
    let rows: Vec<_> = (0..10_u8).map(|n| (Space::History, [n], [n; 10])).collect();
    views.ingest(1, 1, &[run_of(&rows)]).unwrap();
    let ask = |start: u8, end: u8, limits: (u32, u32), reverse: bool| {
        let rows = range(&views, Space::History, (&[start], &[end]), limits, reverse);
        (keys(&rows).concat(), rows.more)
    };
    let all = (100, 10_000);
    assert_eq!(ask(2, 5, all, false), (vec![2, 3, 4], false));
    assert_eq!(ask(2, 5, all, true), (vec![4, 3, 2], false));
    assert_eq!(ask(2, 5, (2, 10_000), false), (vec![2, 3], true));
    assert_eq!(ask(2, 5, (3, 10_000), false), (vec![2, 3, 4], false));
    assert_eq!(ask(2, 5, (2, 10_000), true), (vec![4, 3], true));
    // The row that reaches the bytes is the last; one row is always given.
    assert_eq!(ask(0, 10, (100, 1), false), (vec![0], true));
    assert_eq!(ask(0, 10, (100, 20), false), (vec![0, 1], true));
    assert_eq!(ask(0, 10, (100, 21), false), (vec![0, 1, 2], true));
    assert_eq!(ask(8, 10, (100, 20), false), (vec![8, 9], false));
    // Nothing wanted, nothing there, and bounds the wrong way round.
    assert_eq!(ask(0, 10, (0, 100), false), (vec![], true));
    assert_eq!(ask(50, 60, all, false), (vec![], false));
    assert_eq!(ask(5, 5, all, false), (vec![], false));
    assert_eq!(ask(5, 2, all, true), (vec![], false));
}

#[test]
fn a_row_without_bytes_is_a_row() {
    let dir = tempfile::tempdir().unwrap();
    let views = Views::open(dir.path(), small()).unwrap();
    views.ingest(1, 1, &[run_of(&[(Space::Members, "k", "")])]).unwrap();
    assert_eq!(get(&views, Space::Members, b"k").unwrap(), b"");
}

/// Ingests a dedup row of that day of a clock, when the store has run for another day.
fn another_day(views: &Views, day: u64) {
    views.pass(DAY_MS);
    let rows = [(Space::Dedup, format!("id-{day}"), dedup_value(day, 1))];
    views.ingest(day, day, &[run_of(&rows)]).unwrap();
}

fn there(views: &Views) -> Vec<u64> {
    let is_there = |day: &u64| get(views, Space::Dedup, format!("id-{day}").as_bytes()).is_some();
    (20_000..20_100).filter(is_there).collect()
}

#[test]
fn dedup_rows_leave_by_whole_days_and_not_before_that_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let views = Views::open(dir.path(), small()).unwrap();
    (20_000..20_008).for_each(|day| another_day(&views, day));
    assert_eq!(there(&views), (20_000..20_008).collect::<Vec<_>>());
    assert_eq!(views.forgotten_until_ms(), 0);
    for day in 20_008..20_012 {
        another_day(&views, day);
        let told = views.forgotten_until_ms();
        assert_eq!(told, (day - 8) * DAY_MS + 1, "the day that is over");
        assert_eq!(there(&views), (day - 8..=day).collect::<Vec<_>>(), "and it is still there");
    }
    drop(views);
    let views = Views::open(dir.path(), ViewsConfig { expect_existing: true, ..small() }).unwrap();
    assert_eq!(views.forgotten_until_ms(), 20_003 * DAY_MS + 1);
    views.ingest(20_012, 1, &[]).unwrap();
    assert_eq!(there(&views), (20_004..20_012).collect::<Vec<_>>());
    // What is written again, for instance from a journal that is replayed, is new.
    let rows = [(Space::Dedup, "id-20000", dedup_value(20_000, 1))];
    views.ingest(20_013, 1, &[run_of(&rows)]).unwrap();
    assert_eq!(there(&views).first(), Some(&20_000));
}

/// A clock that shows another month at every look must not cost the promise of seven days.
#[test]
fn clocks_that_jump_forget_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let views = Views::open(dir.path(), small()).unwrap();
    let days = [20_000, 20_050, 20_001, 20_090, 20_030, 20_060, 20_099, 20_003];
    for day in days {
        another_day(&views, day);
    }
    assert_eq!(there(&views).len(), 8);
    another_day(&views, 20_004);
    assert_eq!(there(&views).len(), 9);
    assert!(views.forgotten_until_ms() <= 20_000 * DAY_MS + 1, "at most the first");
    another_day(&views, 20_005);
    assert_eq!(there(&views).len(), 9);
    assert!(views.forgotten_until_ms() <= 20_001 * DAY_MS);
}

#[test]
fn days_of_the_first_format_are_read_and_stay_for_seven() {
    let dir = tempfile::tempdir().unwrap();
    let views = Views::open(dir.path(), small()).unwrap();
    another_day(&views, 20_000);
    drop(views);
    // As the first format marked it: the map's name is the day of its rows.
    let mark = Mark { days: Days::of_records([1].into_iter()), ..Mark::read(dir.path()).unwrap().unwrap() };
    mark.write(dir.path()).unwrap();
    let views = Views::open(dir.path(), ViewsConfig { expect_existing: true, ..small() }).unwrap();
    (20_001..20_009).for_each(|day| another_day(&views, day));
    assert_eq!(there(&views), (20_000..20_009).collect::<Vec<_>>());
    another_day(&views, 20_009);
    assert_eq!(there(&views).first(), Some(&20_001));
}

#[test]
fn the_newest_day_of_a_dedup_key_counts_and_ranges_cross_days() {
    let dir = tempfile::tempdir().unwrap();
    let views = Views::open(dir.path(), small()).unwrap();
    let days: [&[(&str, u8)]; 3] = [&[("a", 1), ("b", 3)], &[("a", 2)], &[("c", 4)]];
    for (number, day) in days.into_iter().enumerate() {
        views.pass(DAY_MS);
        let rows: Vec<_> = day.iter().map(|&(key, seq)| (Space::Dedup, key, dedup_value(20_000, seq))).collect();
        views.ingest(number as u64 + 1, 1, &[run_of(&rows)]).unwrap();
    }
    assert_eq!(get(&views, Space::Dedup, b"a").unwrap(), dedup_value(20_000, 2));
    let all = range(&views, Space::Dedup, (b"a", b"z"), (10, 1_000), false);
    assert_eq!(keys(&all), [b"a", b"b", b"c"]);
    assert_eq!(all.iter().next().unwrap().1, dedup_value(20_000, 2));
    let last = range(&views, Space::Dedup, (b"a", b"z"), (2, 1_000), true);
    assert_eq!((keys(&last), last.more), (vec![b"c".to_vec(), b"b".to_vec()], true));
}

#[test]
fn a_dedup_row_without_a_time_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let views = Views::open(dir.path(), small()).unwrap();
    for value in [&b"short"[..], &[0xff; 9]] {
        let run = run_of(&[(Space::Dedup, "k", value)]);
        assert!(matches!(views.ingest(1, 1, &[run]), Err(ViewsError::BadRow(_))));
    }
    assert_eq!(views.checkpoint(), (0, 0));
}

/// Every table file of the maps.
fn tables(dir: &Path) -> Vec<PathBuf> {
    let keyspaces = dir.join("rows/keyspaces");
    let mut found = Vec::new();
    for keyspace in fs::read_dir(keyspaces).unwrap() {
        let keyspace = keyspace.unwrap();
        if keyspace.file_name() != "0" {
            let tables = fs::read_dir(keyspace.path().join("tables")).unwrap();
            found.extend(tables.map(|table| table.unwrap().path()));
        }
    }
    found
}

/// One flipped bit anywhere in a table: an error at opening or at reading, or the right answer; never
/// a wrong value and never an absent row.
#[test]
fn a_flipped_bit_in_a_table_is_never_an_answer() {
    let dir = tempfile::tempdir().unwrap();
    let rows: Vec<_> = (0..200_u8).map(|n| (Space::History, [n; 4], [n; 40])).collect();
    Views::open(dir.path(), small()).unwrap().ingest(1, 1, &[run_of(&rows)]).unwrap();
    let path = tables(dir.path()).pop().unwrap();
    let good = fs::read(&path).unwrap();
    let mut damage_seen = 0;
    for at in (0..good.len()).step_by(good.len() / 36) {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        fs::write(&path, &bad).unwrap();
        let Ok(views) = Views::open(dir.path(), ViewsConfig { expect_existing: true, ..small() }) else {
            damage_seen += 1;
            continue;
        };
        for n in (0..200_u8).step_by(7) {
            match views.read(&ViewRead::Get { space: Space::History, key: vec![n; 4] }) {
                Ok(rows) => assert_eq!(rows.iter().next().unwrap().1, [n; 40], "byte {at}, row {n}"),
                Err(ReadError::Damaged(what)) => {
                    assert!(what.contains("history"), "{what}");
                    damage_seen += 1;
                }
                Err(other) => panic!("{other}"),
            }
        }
    }
    assert!(damage_seen > 10, "{damage_seen}");
}

/// A value that fjall believes and we do not: its checksum does not belong to its key.
#[test]
fn a_wrong_checksum_names_map_and_key() {
    let dir = tempfile::tempdir().unwrap();
    let views = Views::open(dir.path(), small()).unwrap();
    views.ingest(1, 1, &[run_of(&[(Space::Heads, "k1", "v"), (Space::Heads, "k2", "v")])]).unwrap();
    {
        let engine = views.current().unwrap();
        let stored = engine.plain(Space::Heads).get("k1").unwrap().unwrap();
        let mut ingestion = engine.plain(Space::Heads).start_ingestion().unwrap();
        ingestion.write("k2", stored).unwrap();
        ingestion.finish().unwrap();
    }
    let read = views.read(&ViewRead::Get { space: Space::Heads, key: b"k2".to_vec() });
    assert_eq!(read, Err(ReadError::Damaged("row 6b32 of heads".to_owned())));
    let everything = ViewRead::Range {
        space: Space::Heads,
        start: b"a".to_vec(),
        end: b"z".to_vec(),
        rows_max: 10,
        bytes_max: 100,
        reverse: false,
    };
    assert_eq!(views.read(&everything), Err(ReadError::Damaged("row 6b32 of heads".to_owned())));
    let mut damage = Vec::new();
    let good = views.verify(&mut |space, what| damage.push((space, what))).unwrap();
    assert_eq!((good, damage), (1, vec![(Space::Heads, "row with key 6b32".to_owned())]));
}

#[test]
fn what_should_be_there_is_never_created_anew() {
    let dir = tempfile::tempdir().unwrap();
    let expecting = || ViewsConfig { expect_existing: true, ..small() };
    let missing = |path: &Path| matches!(Views::open(path, expecting()), Err(ViewsError::Missing(_)));
    assert!(missing(dir.path()));
    assert!(missing(&dir.path().join("nowhere")));
    let run = run_of(&[(Space::Dedup, "id", dedup_value(20_000, 1))]);
    Views::open(dir.path(), small()).unwrap().ingest(1, 1, &[run]).unwrap();
    // Each thing that a store is made of, taken away alone.
    let keyspaces = dir.path().join("rows/keyspaces");
    let mut parts = vec![dir.path().join("rows"), dir.path().join("rows/version"), keyspaces.clone()];
    parts.extend(fs::read_dir(&keyspaces).unwrap().map(|entry| entry.unwrap().path()));
    parts.extend(tables(dir.path()));
    assert!(parts.len() >= 8, "{parts:?}");
    for part in parts {
        let copy = tempfile::tempdir().unwrap();
        let target = copy.path().join("views");
        let status = std::process::Command::new("cp").arg("-a").args([dir.path(), &target]).status().unwrap();
        assert!(status.success());
        let gone = target.join(part.strip_prefix(dir.path()).unwrap());
        if gone.is_dir() {
            fs::remove_dir_all(&gone).unwrap();
        } else {
            fs::remove_file(&gone).unwrap();
        }
        for config in [expecting(), small()] {
            let opened = Views::open(&target, config);
            assert!(
                matches!(opened, Err(ViewsError::Missing(_) | ViewsError::Damaged(_))),
                "without {} it opened",
                gone.display()
            );
        }
    }
}

#[test]
fn two_at_once_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let views = Views::open(dir.path(), small()).unwrap();
    assert!(matches!(Views::open(dir.path(), small()), Err(ViewsError::Locked)));
    drop(views);
    Views::open(dir.path(), small()).unwrap();
}

#[test]
fn reopening_keeps_everything_while_readers_read() {
    let dir = tempfile::tempdir().unwrap();
    let views = Views::open(dir.path(), small()).unwrap();
    views.ingest(1, 5, &[run_of(&[(Space::Heads, "k", "v")])]).unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    // A reading waits for the reopening rather than failing.
                    assert_eq!(get(&views, Space::Heads, b"k").unwrap(), b"v");
                }
            });
        }
        for _ in 0..5 {
            views.reopen().unwrap();
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    assert_eq!(views.checkpoint(), (1, 5));
    assert_eq!(get(&views, Space::Heads, b"k").unwrap(), b"v");
}

#[derive(Debug, Clone)]
struct Step {
    rows: Vec<(u8, u8, u8)>,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let rows = prop::collection::vec((0..3_u8, 0..12_u8, any::<u8>()), 0..20);
    prop::collection::vec(rows.prop_map(|rows| Step { rows }), 1..6)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever is ingested in whatever portions, the views answer like an ordered map.
    #[test]
    fn the_views_are_an_ordered_map(
        steps in steps(),
        asked in prop::collection::vec((0..13_u8, 0..13_u8, 0..6_u32, 0..60_u32, any::<bool>()), 8),
    ) {
        const SPACES: [Space; 3] = [Space::History, Space::Heads, Space::Dedup];
        let dir = tempfile::tempdir().unwrap();
        let views = Views::open(dir.path(), small()).unwrap();
        let mut model: BTreeMap<(Space, Vec<u8>), Vec<u8>> = BTreeMap::new();
        for (number, step) in steps.iter().enumerate() {
            // A key's dedup day is its own, as a client id keeps the time of its first row.
            let rows: Vec<_> = step
                .rows
                .iter()
                .map(|&(space, key, value)| {
                    (SPACES[usize::from(space)], vec![key], dedup_value(20_000 + u64::from(key % 3), value))
                })
                .collect();
            for (space, key, value) in &rows {
                model.insert((*space, key.clone()), value.clone());
            }
            views.ingest(number as u64, number as u64, &[run_of(&rows)]).unwrap();
        }
        for space in SPACES {
            for key in 0..13_u8 {
                prop_assert_eq!(get(&views, space, &[key]), model.get(&(space, vec![key])).cloned());
            }
            for &(start, end, rows_max, bytes_max, reverse) in &asked {
                let rows = range(&views, space, (&[start], &[end]), (rows_max, bytes_max), reverse);
                let mut within: Vec<_> = model
                    .iter()
                    .filter(|((of, key), _)| *of == space && start <= key[0] && key[0] < end)
                    .map(|((_, key), value)| (key.clone(), value.clone()))
                    .collect();
                if reverse {
                    within.reverse();
                }
                let mut taken = 0;
                let mut bytes = 0;
                while taken < within.len()
                    && taken < rows_max as usize
                    && (taken == 0 || bytes < bytes_max as usize)
                {
                    bytes += within[taken].1.len();
                    taken += 1;
                }
                prop_assert_eq!(rows.more, taken < within.len());
                within.truncate(taken);
                let found: Vec<_> = rows.iter().map(|(key, value)| (key.to_vec(), value.to_vec())).collect();
                prop_assert_eq!(found, within);
            }
        }
    }
}
