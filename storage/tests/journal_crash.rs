//! The journal against crashes at every point, torn writes, full disks and failed writes.
//!
//! Aim: what was committed is there, in order and dense; what appears was submitted; a batch in flight
//! appears whole or not at all; opening twice finds the same.

use storage::disk::DiskError;
use storage::journal::{Journal, JournalConfig};
use storage::recovery::{self, OpenError, Opened};
use storage::seam::{AppendGroup, Outcome, Part};
use storage::segment::{Identity, SLOTS};
use storage::sim_disk::{SimDisk, SimFaults, SimRng};

const IDENTITY: Identity = Identity { generation: 7, store_key: 0x1234_5678_9abc_def0 };

fn config(rng: &mut SimRng) -> JournalConfig {
    // A checkpoint record takes 17 blocks, so that two to ten blocks are left for batches.
    JournalConfig { segment_bytes: 4096 * (20 + rng.below(8)), spares_max: rng.below(3) as usize }
}

/// What a batch carried: (slot, first LSN, bytes).
type Batch = Vec<(u16, u64, Vec<u8>)>;

/// What must be on disk.
struct Model {
    rng: SimRng,
    /// All batches ever committed, in order.
    committed: Vec<Batch>,
    /// Batches written at the tail since the last commit: at most one of them may appear.
    candidates: Vec<Batch>,
    next_lsn: Vec<u64>,
    /// Checkpoint number to the number of batches it covers; those that may have been recorded.
    checkpoints: Vec<(u64, usize)>,
    serial: u64,
}

impl Model {
    fn new(seed: u64) -> Model {
        Model {
            rng: SimRng::new(seed),
            committed: Vec::new(),
            candidates: Vec::new(),
            next_lsn: vec![0; SLOTS],
            checkpoints: vec![(0, 0)],
            serial: 0,
        }
    }

    /// Groups of a few shards; slots are few, so that they meet again.
    fn groups(&mut self, epoch: u64) -> Vec<AppendGroup> {
        let mut groups = Vec::new();
        for shard in 0..=self.rng.below(3) {
            let mut group = AppendGroup { ticket: shard, ..AppendGroup::default() };
            for slot in 0..=self.rng.below(3) {
                let slot = (shard * 4 + slot) as u16;
                let start = group.bytes.len() as u32;
                let records = 1 + self.rng.below(3) as u32;
                for _ in 0..records {
                    self.serial += 1;
                    let bytes = 8 + self.rng.below(900) as usize;
                    group.bytes.extend((bytes as u32).to_le_bytes());
                    let content = self.serial.to_le_bytes();
                    group.bytes.extend(content.iter().cycle().take(bytes));
                }
                let bytes = start..group.bytes.len() as u32;
                let expected_lsn = self.next_lsn[slot as usize];
                group.parts.push(Part { slot, epoch, expected_lsn, records, bytes });
            }
            groups.push(group);
        }
        groups
    }

    fn batch(groups: &[AppendGroup]) -> Batch {
        let parts = groups.iter().flat_map(|group| group.parts.iter().map(move |part| (group, part)));
        parts
            .map(|(group, part)| {
                let bytes = &group.bytes[part.bytes.start as usize..part.bytes.end as usize];
                (part.slot, part.expected_lsn, bytes.to_vec())
            })
            .collect()
    }

    fn advance(&mut self, groups: &[AppendGroup]) {
        for part in groups.iter().flat_map(|group| &group.parts) {
            self.next_lsn[part.slot as usize] += u64::from(part.records);
        }
    }

    /// Compares what was recovered; takes over a batch in flight that turned out to be there.
    fn check(&mut self, opened: &Opened<SimDisk>, context: &str) {
        let number = opened.journal.checkpoint().number;
        let covered = self.checkpoints.iter().find(|&&(known, _)| known == number);
        let covered = covered.unwrap_or_else(|| panic!("{context}: unknown checkpoint {number}")).1;
        let mut found: Vec<Batch> = Vec::new();
        for batch in &opened.recovered {
            let groups: Vec<AppendGroup> = batch.groups().collect();
            found.push(Model::batch(&groups));
            if covered + found.len() > self.committed.len() {
                self.advance(&groups);
            }
        }
        let expected = &self.committed[covered..];
        assert!(found.len() >= expected.len(), "{context}: {} of {} batches", found.len(), expected.len());
        assert_eq!(&found[..expected.len()], expected, "{context}: committed batches");
        match &found[expected.len()..] {
            [] => {}
            [extra] => {
                assert!(self.candidates.contains(extra), "{context}: a batch that was not in flight");
                self.committed.push(extra.clone());
            }
            more => panic!("{context}: {} batches too many", more.len()),
        }
        self.candidates.clear();
        self.checkpoints.retain(|&(known, _)| known == number);
        for slot in 0..16 {
            assert_eq!(opened.journal.next_lsn(slot), self.next_lsn[slot as usize], "{context}: slot {slot}");
        }
    }
}

/// One life of the process, until the machine dies or the time is over.
fn live(disk: &mut SimDisk, journal: &mut Journal<SimDisk>, model: &mut Model) {
    let mut frozen = None;
    for _ in 0..model.rng.below(40) {
        match model.rng.below(8) {
            0 => {
                // Batches come between the moment of a checkpoint and its record.
                let Some((number, frozen)) = frozen.take() else {
                    let number = model.checkpoints.iter().map(|&(number, _)| number).max().unwrap_or(0) + 1;
                    model.checkpoints.push((number, model.committed.len()));
                    frozen = Some((number, journal.freeze()));
                    continue;
                };
                match journal.record_checkpoint(disk, number, &frozen) {
                    Ok(None) => model.checkpoints.retain(|&(known, _)| known == number),
                    Ok(Some(_)) => {}
                    Err(_) => return,
                }
                if journal.remove_covered(disk).is_err() {
                    return;
                }
            }
            // A seal may be anywhere between batches, and torn as any.
            2 if model.rng.one_in(2) => {
                if journal.seal(disk).is_err() {
                    return;
                }
            }
            1 => match model.rng.below(6) {
                0 => disk.faults.fail_next_sync = true,
                1 => disk.faults.capacity_bytes = Some(disk.used_bytes() + 4096 * model.rng.below(30)),
                2 => disk.faults.capacity_bytes = None,
                _ => disk.faults.fail_next_write = Some(DiskError::Io("injected".into())),
            },
            _ => {
                let groups = model.groups(journal.epoch());
                model.candidates.push(Model::batch(&groups));
                let Ok(pending) = journal.begin(disk, &groups) else {
                    return;
                };
                if !pending.is_written() {
                    continue;
                }
                let Ok(outcomes) = journal.commit(disk, pending) else {
                    return;
                };
                assert!(outcomes.iter().flatten().all(|&outcome| outcome == Outcome::Committed));
                model.committed.push(Model::batch(&groups));
                model.candidates.clear();
                model.advance(&groups);
            }
        }
    }
}

fn crash(disk: &mut SimDisk, rng: &mut SimRng) {
    if rng.one_in(2) { disk.power_cut() } else { disk.kill() }
}

fn open(disk: &mut SimDisk, config: &JournalConfig) -> Result<Opened<SimDisk>, OpenError> {
    recovery::open(disk, config.clone(), IDENTITY)
}

/// `SEED=n`: that one. `SEEDS=n`: so many, for a longer run.
fn seeds() -> std::ops::Range<u64> {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    match number("SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SEEDS").unwrap_or(400),
    }
}

#[test]
fn what_was_committed_survives_any_crash_and_nothing_else_appears() {
    for seed in seeds() {
        let mut model = Model::new(seed);
        let mut disk = SimDisk::new(seed);
        let config = config(&mut model.rng);
        let mut last_epoch = 0;
        for life in 0..6 {
            let context = format!("life {life}; replay with SEED={seed}");
            disk.faults.dies_after = (model.rng.below(3) > 0).then(|| model.rng.below(120));
            let opened = open(&mut disk, &config);
            match opened {
                Ok(mut opened) => {
                    model.check(&opened, &context);
                    assert!(opened.journal.epoch() > last_epoch, "{context}: boot epochs grow");
                    last_epoch = opened.journal.epoch();
                    live(&mut disk, &mut opened.journal, &mut model);
                }
                Err(error) => {
                    assert!(error.to_string().contains("machine is dead"), "{context}: {error}");
                }
            }
            disk.faults = SimFaults::default();
            crash(&mut disk, &mut model.rng);
        }
        let context = format!("end; replay with SEED={seed}");
        let opened = open(&mut disk, &config).unwrap_or_else(|error| panic!("{context}: {error}"));
        model.check(&opened, &context);
        let first = opened.recovered;
        crash(&mut disk, &mut model.rng);
        let second = open(&mut disk, &config).expect("opened a moment ago").recovered;
        assert_eq!(first, second, "{context}: the second recovery equals the first");
    }
}
