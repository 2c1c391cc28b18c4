//! The journal against flipped bits, missing files, newer formats, failed syncs and a full disk.

use storage::disk::{BLOCK_BYTES, Disk, DiskError};
use storage::journal::{Journal, JournalConfig};
use storage::planted::Planted;
use storage::recovery::{self, IDENTITY_FILE, OpenError, Opened};
use storage::seam::{AppendGroup, Outcome, Part, Refusal};
use storage::segment::{Identity, segment_name};
use storage::sim_disk::SimDisk;

const IDENTITY: Identity = Identity { generation: 7, store_key: 0x1234_5678_9abc_def0 };
/// Room for a checkpoint's record and five blocks.
const SEGMENT_BYTES: u64 = 23 * BLOCK_BYTES as u64;

fn config() -> JournalConfig {
    JournalConfig { segment_bytes: SEGMENT_BYTES, spares_max: 1 }
}

fn open(disk: &mut SimDisk) -> Result<Opened<SimDisk>, OpenError> {
    recovery::open(disk, config(), IDENTITY)
}

fn group(journal: &Journal<SimDisk>, slot: u16, bytes: usize) -> AppendGroup {
    let mut content = ((bytes - 4) as u32).to_le_bytes().to_vec();
    content.resize(bytes, slot as u8 ^ 0x5a);
    let part =
        Part { slot, epoch: journal.epoch(), expected_lsn: journal.next_lsn(slot), records: 1, bytes: 0..bytes as u32 };
    AppendGroup { ticket: 0, parts: vec![part], bytes: content }
}

fn append(disk: &mut SimDisk, journal: &mut Journal<SimDisk>, slot: u16, bytes: usize) -> Outcome {
    let groups = [group(journal, slot, bytes)];
    let pending = journal.begin(disk, &groups).expect("no sync fails");
    journal.commit(disk, pending).expect("no sync fails")[0][0]
}

fn recovered(opened: &Opened<SimDisk>) -> Vec<AppendGroup> {
    opened.recovered.iter().flat_map(recovery::RecoveredBatch::groups).collect()
}

/// A store with twelve batches in three segments, the last of them not full.
fn filled(seed: u64) -> SimDisk {
    let mut disk = SimDisk::new(seed);
    let mut journal = open(&mut disk).expect("opens").journal;
    for slot in 0..12 {
        assert_eq!(append(&mut disk, &mut journal, slot, 600), Outcome::Committed);
    }
    assert_eq!(journal.segments(), 3);
    disk
}

#[test]
fn a_flipped_bit_is_refused_or_harmless_but_for_the_very_last_batch() {
    let expected = recovered(&open(&mut filled(1)).expect("opens"));
    let mut refused = 0;
    for number in 1..=3 {
        for byte in (0..SEGMENT_BYTES).step_by(89) {
            let mut disk = filled(1);
            if !disk.flip_bit(&segment_name(number), byte, (byte % 8) as u8) {
                continue;
            }
            match open(&mut disk) {
                Ok(opened) => {
                    let found = recovered(&opened);
                    let last_is_cut = number == 3 && found[..] == expected[..11];
                    assert!(found == expected || last_is_cut, "segment {number}, byte {byte}");
                }
                Err(OpenError::Damaged { file, offset, .. }) => {
                    refused += 1;
                    assert_eq!(file, segment_name(number));
                    let block = byte / BLOCK_BYTES as u64 * BLOCK_BYTES as u64;
                    assert_eq!(offset, block, "the place of the damage is named");
                }
                Err(error) => panic!("segment {number}, byte {byte}: {error}"),
            }
        }
    }
    assert!(refused > 30, "only {refused} flips were seen");
}

#[test]
fn a_flipped_bit_in_a_sealed_last_batch_is_refused() {
    let mut last = None;
    for byte in (0..BLOCK_BYTES as u64).step_by(31) {
        let mut disk = SimDisk::new(1);
        let mut journal = open(&mut disk).expect("opens").journal;
        assert_eq!(append(&mut disk, &mut journal, 1, 3_000), Outcome::Committed);
        assert_eq!(journal.seal(&mut disk), Ok(None));
        disk.kill();
        assert!(disk.flip_bit(&segment_name(1), BLOCK_BYTES as u64 + byte, 5));
        match open(&mut disk) {
            Ok(opened) => assert_eq!(opened.journal.next_lsn(1), 1, "byte {byte} is behind the batch's own bytes"),
            Err(OpenError::Damaged { .. }) => last = Some(byte),
            Err(error) => panic!("byte {byte}: {error}"),
        }
    }
    assert!(last.is_some_and(|byte| byte > 3_000), "flips are seen up to the last byte of the batch, not {last:?}");
}

#[test]
fn damage_before_a_valid_batch_names_the_file_the_place_and_the_command() {
    let mut disk = filled(1);
    assert!(disk.flip_bit(&segment_name(3), BLOCK_BYTES as u64 + 200, 3));
    let error = open(&mut disk).expect_err("a batch follows the damaged one").to_string();
    for part in ["0000000003.seg", "byte 4096", "ringway storage check", "follows"] {
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn missing_files_are_refused_and_never_an_empty_history() {
    for number in [1, 2] {
        let mut disk = filled(1);
        disk.remove(&segment_name(number)).expect("it is there");
        let error = open(&mut disk).map(|_| ()).expect_err("a segment is missing");
        assert!(error.to_string().contains("missing"), "{error}");
    }
    let mut disk = filled(1);
    for number in 1..=3 {
        disk.remove(&segment_name(number)).expect("it is there");
    }
    assert!(matches!(open(&mut disk), Err(OpenError::Damaged { .. })));
    let mut disk = filled(1);
    disk.remove(IDENTITY_FILE).expect("it is there");
    assert_eq!(open(&mut disk).map(|_| ()), Err(OpenError::IdentityMissing));
}

#[test]
fn a_newer_format_is_named_in_every_file() {
    for name in [IDENTITY_FILE.to_owned(), segment_name(1), segment_name(3)] {
        let mut disk = filled(1);
        // The version, 1, lies at byte 8; it becomes 3.
        assert!(disk.flip_bit(&name, 8, 1));
        let error = open(&mut disk).map(|_| ()).expect_err("a newer format");
        assert_eq!(error, OpenError::Newer { file: name, version: 3 });
    }
}

#[test]
fn a_segment_of_another_store_is_refused() {
    let mut disk = filled(1);
    let mut other = SimDisk::new(2);
    let identity = Identity { store_key: 99, ..IDENTITY };
    recovery::open(&mut other, config(), identity).expect("opens");
    let foreign = other.open(&segment_name(1)).expect("it is there");
    let mut block = vec![0; BLOCK_BYTES];
    other.read_at(&foreign, 0, &mut block).expect("reads");
    let file = disk.open(&segment_name(2)).expect("it is there");
    disk.write_at(&file, 0, &block).expect("writes");
    assert!(matches!(open(&mut disk), Err(OpenError::Damaged { offset: 0, .. })));
}

#[test]
fn a_failed_sync_ends_the_process_and_nothing_is_told() {
    for seed in 0..200 {
        let mut disk = filled(seed);
        let mut opened = open(&mut disk).expect("opens");
        let before = recovered(&opened);
        let groups = [group(&opened.journal, 3, 5_000)];
        let pending = opened.journal.begin(&mut disk, &groups).expect("writes");
        disk.faults.fail_next_sync = true;
        let failed = opened.journal.commit(&mut disk, pending).expect_err("the sync failed");
        assert!(failed.to_string().contains("must not go on"), "{failed}");
        disk.kill();
        let after = recovered(&open(&mut disk).expect("opens"));
        assert_eq!(after[..before.len()], before[..], "seed {seed}");
        assert!(after.len() <= before.len() + 1);
    }
}

#[test]
fn a_full_disk_refuses_and_room_heals_it() {
    let mut disk = filled(1);
    let mut journal = open(&mut disk).expect("opens").journal;
    disk.faults.capacity_bytes = Some(disk.used_bytes());
    let mut committed = 0;
    let mut outcome = append(&mut disk, &mut journal, 20, 600);
    while outcome == Outcome::Committed {
        committed += 1;
        outcome = append(&mut disk, &mut journal, 20, 600);
    }
    assert_eq!(outcome, Outcome::Refused(Refusal::Full));
    assert!(committed > 0, "the segment's room was reserved when it was made");
    assert_eq!(journal.next_lsn(20), committed, "a refused part moves nothing");
    assert_eq!(append(&mut disk, &mut journal, 20, 600), Outcome::Refused(Refusal::Full), "as long as it is full");
    // The checkpoint's record still fits, and lets old segments go: the disk heals itself.
    let frozen = journal.freeze();
    assert_eq!(journal.record_checkpoint(&mut disk, 1, &frozen), Ok(None));
    assert!(journal.remove_covered(&mut disk).expect("removes") > 0);
    assert_eq!(append(&mut disk, &mut journal, 20, 600), Outcome::Committed);
    disk.power_cut();
    let opened = open(&mut disk).expect("opens");
    assert_eq!(opened.journal.next_lsn(20), committed + 1);
    assert_eq!(opened.journal.next_lsn(3), 1, "from the checkpoint's table");
}

#[test]
fn a_store_starts_on_a_disk_that_is_full() {
    let config = JournalConfig { segment_bytes: 60 * BLOCK_BYTES as u64, spares_max: 0 };
    let mut disk = SimDisk::new(1);
    let mut journal = recovery::open(&mut disk, config.clone(), IDENTITY).expect("opens").journal;
    assert_eq!(append(&mut disk, &mut journal, 1, 30_000), Outcome::Committed);
    disk.faults.capacity_bytes = Some(disk.used_bytes());
    disk.power_cut();
    let mut journal = recovery::open(&mut disk, config.clone(), IDENTITY).expect("opens").journal;
    assert_eq!(journal.next_lsn(1), 1);
    while append(&mut disk, &mut journal, 2, 600) == Outcome::Committed {}
    assert_eq!(append(&mut disk, &mut journal, 2, 600), Outcome::Refused(Refusal::Full));
    disk.faults.capacity_bytes = None;
    assert_eq!(append(&mut disk, &mut journal, 2, 600), Outcome::Committed);
    disk.power_cut();
    recovery::open(&mut disk, config, IDENTITY).expect("opens");
}

#[test]
fn a_write_that_fails_is_overwritten_by_the_next() {
    for seed in 0..300 {
        let mut disk = SimDisk::new(seed);
        let mut journal = open(&mut disk).expect("opens").journal;
        assert_eq!(append(&mut disk, &mut journal, 1, 600), Outcome::Committed);
        disk.faults.fail_next_write = Some(DiskError::Io("injected".into()));
        assert_eq!(append(&mut disk, &mut journal, 2, 9_000), Outcome::Refused(Refusal::Unavailable));
        assert_eq!(journal.next_lsn(2), 0);
        assert_eq!(append(&mut disk, &mut journal, 3, 600), Outcome::Committed);
        disk.power_cut();
        let slots: Vec<u16> =
            recovered(&open(&mut disk).expect("opens")).iter().map(|group| group.parts[0].slot).collect();
        assert_eq!(slots, [1, 3], "seed {seed}");
    }
}

#[test]
fn a_batch_larger_than_a_segment_gets_one_of_its_own() {
    let mut disk = SimDisk::new(1);
    let mut journal = open(&mut disk).expect("opens").journal;
    for (slot, bytes) in [(1, 100), (2, 400_000), (3, 100), (4, 150_000)] {
        assert_eq!(append(&mut disk, &mut journal, slot, bytes), Outcome::Committed);
    }
    disk.power_cut();
    let lengths: Vec<usize> = recovered(&open(&mut disk).expect("opens")).iter().map(|g| g.bytes.len()).collect();
    assert_eq!(lengths, [100, 400_000, 100, 150_000]);
}

#[test]
fn reading_changes_nothing() {
    let mut disk = filled(1);
    disk.kill();
    let before = disk.list();
    let first = recovery::scan(&mut disk, Planted::NONE).expect("reads").expect("a journal");
    let second = recovery::scan(&mut disk, Planted::NONE).expect("reads").expect("a journal");
    assert_eq!(first.batches(), second.batches());
    assert_eq!(first.tail(), second.tail());
    assert_eq!(disk.list(), before);
}

#[test]
fn segments_do_not_pile_up_when_checkpoints_come() {
    let mut disk = SimDisk::new(1);
    let mut journal = open(&mut disk).expect("opens").journal;
    let mut removed = 0;
    for round in 1..=40 {
        for _ in 0..6 {
            assert_eq!(append(&mut disk, &mut journal, 9, 600), Outcome::Committed);
        }
        let frozen = journal.freeze();
        assert_eq!(journal.record_checkpoint(&mut disk, round, &frozen), Ok(None));
        removed += journal.remove_covered(&mut disk).expect("removes");
        assert!(journal.segments() <= 3, "{} segments", journal.segments());
    }
    assert!(removed >= 10, "{removed} segments removed");
    assert!(disk.used_bytes() <= 6 * SEGMENT_BYTES);
    disk.power_cut();
    let opened = open(&mut disk).expect("opens");
    assert_eq!(opened.journal.next_lsn(9), 240);
    assert!(opened.recovered.is_empty());
}

/// A disk that loses a write which it said was synced, and shows what lay there before. Each batch is whole
/// in itself, at its place, of this boot, with the right number: only the chain tells.
#[test]
fn a_lost_write_that_uncovers_an_older_batch_is_seen_by_the_chain() {
    let mut tried = 0;
    for seed in 0..100 {
        let mut disk = SimDisk::new(seed);
        let mut journal = open(&mut disk).expect("opens").journal;
        assert_eq!(append(&mut disk, &mut journal, 1, 600), Outcome::Committed);
        let place = journal.position() & u64::from(u32::MAX);
        disk.faults.fail_next_write = Some(DiskError::Io("injected".into()));
        assert_eq!(append(&mut disk, &mut journal, 2, 600), Outcome::Refused(Refusal::Unavailable));
        let file = disk.open(&segment_name(1)).expect("it is there");
        let mut refused = vec![0; BLOCK_BYTES];
        disk.read_at(&file, place, &mut refused).expect("reads");
        for slot in [3, 4] {
            assert_eq!(append(&mut disk, &mut journal, slot, 600), Outcome::Committed);
        }
        // Only when the failed write had reached the disk whole.
        if refused[700..].contains(&(2 ^ 0x5a)) && refused[..8] == *b"RWBATCH1" {
            tried += 1;
            disk.write_at(&file, place, &refused).expect("writes");
            assert!(matches!(open(&mut disk), Err(OpenError::Damaged { .. })), "seed {seed}");
        }
    }
    assert!(tried > 10, "only {tried} refused batches were whole");
}

/// A segment becomes a spare, the process dies before that name is durable, the next one uses the spare, and
/// the machine loses power: the old name must not come back with the new header.
#[test]
fn a_spare_is_not_written_to_before_its_name_is_durable() {
    for (seed, dies_after) in (0..10).flat_map(|seed| (0..40).map(move |operations| (seed, operations))) {
        let mut disk = filled(seed);
        let mut journal = open(&mut disk).expect("opens").journal;
        let frozen = journal.freeze();
        assert_eq!(journal.record_checkpoint(&mut disk, 1, &frozen), Ok(None));
        // The segment is opened, measured and renamed; then the directory can not be synced any more.
        disk.faults.dies_after = Some(3);
        journal.remove_covered(&mut disk).expect_err("the machine is dead");
        disk.kill();
        disk.faults.dies_after = Some(dies_after);
        let _ = open(&mut disk);
        disk.power_cut();
        let opened = open(&mut disk).unwrap_or_else(|error| panic!("seed {seed}, {dies_after}: {error}"));
        assert_eq!(opened.journal.next_lsn(11), 1);
    }
}
