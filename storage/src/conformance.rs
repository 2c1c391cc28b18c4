//! What every backend must do, as one suite over the seam.
//!
//! A backend is wrapped as a [`Backend`]; [`run`] plays the shards. A record here is a row: its bytes are the
//! length of the key, the key and the value. So what was committed can be looked for in what was
//! recovered, in the shard's own overlay, and in the views.

use std::collections::{BTreeMap, VecDeque};

use crate::seam::*;
use crate::segment::SLOTS;
use crate::sim_disk::SimRng;

/// How a store ends before it is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The process dies; nothing more is written.
    Kill,
    /// The machine dies; what was not synced may be lost. Where that can not be had, as `Kill`.
    PowerCut,
    /// Asked to: a last checkpoint, so that nothing is left to recover.
    Graceful,
}

/// A store under test. Its checkpoints are to be small: about 16 KiB of records each.
pub trait Backend {
    /// What the running store says of itself.
    fn facts(&self) -> StoreFacts;
    /// Hands a request over.
    fn submit(&mut self, shard: u16, request: StorageRequest);
    /// Lets a little time pass and appends what a shard is told.
    fn poll(&mut self, shard: u16, events: &mut Vec<StorageEvent>);
    /// Ends the store and starts it again with `shards` shards. Shards answer no `Freeze` meanwhile,
    /// except through `on_event` in a graceful end.
    fn restart(&mut self, end: End, shards: u16, driver: &mut Shards);
}

/// Which shard has a slot when there are `shards`.
pub fn shard_of_slot(slot: Slot, shards: u16) -> u16 {
    slot % shards
}

/// [`shard_of_slot`] for all slots.
pub fn slot_map(shards: u16) -> Vec<u16> {
    (0..SLOTS as Slot).map(|slot| shard_of_slot(slot, shards)).collect()
}

type Rows2 = BTreeMap<Vec<u8>, Vec<u8>>;

/// What a played shard knows.
#[derive(Debug, Default)]
struct Shard {
    tails: BTreeMap<Slot, Lsn>,
    recovered: Vec<(Slot, Lsn, Vec<u8>)>,
    recovered_all: bool,
    /// Applied, not handed over.
    fresh: Rows2,
    /// Handed over and not done.
    handed: VecDeque<(u64, Rows2)>,
    appended: Vec<(AppendGroup, Vec<Outcome>)>,
    asked: BTreeMap<Ticket, ViewRead>,
    answers: Vec<(Ticket, Result<Rows, ReadError>)>,
    checkpoints_done: u64,
    frozen: u64,
    forgotten_until_ms: u64,
}

/// All played shards.
#[derive(Debug, Default)]
pub struct Shards(Vec<Shard>);

impl Shards {
    /// How many there are.
    pub fn count(&self) -> u16 {
        self.0.len() as u16
    }

    /// Takes an event; the answer, if it wants one.
    pub fn on_event(&mut self, shard: u16, event: StorageEvent) -> Option<StorageRequest> {
        let shard = &mut self.0[shard as usize];
        match event {
            StorageEvent::Recovered(group) => {
                assert_eq!(group.parts.len(), 1, "one part per recovered event");
                assert!(!shard.recovered_all, "nothing is recovered behind RecoveredAll");
                let part = &group.parts[0];
                assert_eq!(part.bytes, 0..group.bytes.len() as u32);
                apply(&mut shard.fresh, &group.bytes);
                shard.recovered.push((part.slot, part.expected_lsn, group.bytes.clone()));
                None
            }
            StorageEvent::RecoveredAll { tails, forgotten_until_ms } => {
                shard.recovered_all = true;
                shard.forgotten_until_ms = forgotten_until_ms;
                shard.tails = tails.into_iter().collect();
                Some(StorageRequest::Serving)
            }
            StorageEvent::Appended { group, outcomes } => {
                assert_eq!(group.parts.len(), outcomes.len(), "an outcome per part");
                for (part, outcome) in group.parts.iter().zip(&outcomes) {
                    if *outcome == Outcome::Committed {
                        let bytes = &group.bytes[part.bytes.start as usize..part.bytes.end as usize];
                        apply(&mut shard.fresh, bytes);
                        shard.tails.insert(part.slot, part.expected_lsn + u64::from(part.records));
                    }
                }
                shard.appended.push((group, outcomes));
                None
            }
            StorageEvent::Read(ticket, answer) => {
                let question = shard.asked.remove(&ticket).expect("an answer to a question, once");
                shard.answers.push((ticket, answer.map(|rows| shard.merge(&question, &rows))));
                None
            }
            StorageEvent::Freeze { checkpoint } => {
                assert!(checkpoint > shard.frozen, "checkpoint numbers grow");
                shard.frozen = checkpoint;
                let rows = std::mem::take(&mut shard.fresh);
                let run = to_run(&rows);
                shard.handed.push_back((checkpoint, rows));
                Some(StorageRequest::Run { checkpoint, run })
            }
            StorageEvent::CheckpointDone { checkpoint, forgotten_until_ms } => {
                shard.forgotten_until_ms = forgotten_until_ms;
                let (handed, _) = shard.handed.pop_front().expect("a run was handed over");
                assert_eq!(handed, checkpoint, "checkpoints end in order");
                shard.checkpoints_done += 1;
                None
            }
        }
    }
}

impl Shard {
    /// What a shard sees: the views' answer with its own rows on top, at the moment the answer comes.
    fn merge(&self, question: &ViewRead, rows: &Rows) -> Rows {
        let asked = |asked: &[u8]| match question {
            ViewRead::Get { space, key } => SPACES.contains(space) && asked == key,
            ViewRead::Range { space, start, end, .. } => {
                *space == Space::History && asked >= &start[..] && asked < &end[..]
            }
        };
        let mut merged: Rows2 = rows.iter().map(|(key, value)| (key.to_vec(), value.to_vec())).collect();
        let own = self.handed.iter().map(|(_, rows)| rows).chain([&self.fresh]);
        let own = own.flatten().filter(|(key, _)| asked(key));
        merged.extend(own.map(|(key, value)| (key.clone(), value.clone())));
        let mut answer = Rows { more: rows.more, ..Rows::default() };
        for (key, value) in &merged {
            answer.push(key, value);
        }
        answer
    }
}

/// One record: the row (key, value).
fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let bytes = 2 + key.len() + value.len();
    let mut record = (bytes as u32).to_le_bytes().to_vec();
    record.extend((key.len() as u16).to_le_bytes());
    record.extend(key);
    record.extend(value);
    record
}

fn apply(rows: &mut Rows2, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let (length, rest) = bytes.split_at(4);
        let (record, rest) = rest.split_at(u32::from_le_bytes(length.try_into().expect("four bytes")) as usize);
        let key_bytes = u16::from_le_bytes([record[0], record[1]]) as usize;
        rows.insert(record[2..2 + key_bytes].to_vec(), record[2 + key_bytes..].to_vec());
        bytes = rest;
    }
}

/// Each row goes into both.
const SPACES: [Space; 2] = [Space::History, Space::Dedup];

fn to_run(rows: &Rows2) -> Run {
    let mut refs = Vec::new();
    let mut arena = Vec::new();
    for (key, value) in rows {
        refs.extend(SPACES.map(|space| RowRef {
            space,
            offset: arena.len() as u32,
            key_bytes: key.len() as u16,
            value_bytes: value.len() as u32,
        }));
        arena.extend_from_slice(key);
        arena.extend_from_slice(value);
    }
    Run::of(arena, refs)
}

fn key(slot: Slot, lsn: Lsn) -> Vec<u8> {
    let mut key = slot.to_be_bytes().to_vec();
    key.extend(lsn.to_be_bytes());
    key
}

/// A backend, its played shards, and everything that was ever committed.
pub(crate) struct Driver<'a, B: Backend> {
    pub(crate) backend: &'a mut B,
    pub(crate) shards: Shards,
    committed: BTreeMap<(Slot, Lsn), Vec<u8>>,
    ticket: Ticket,
    records: u64,
    rng: SimRng,
    /// `Some`: runs are not handed over, as by a shard that hangs.
    pub(crate) held: Option<Vec<(u16, StorageRequest)>>,
}

/// Time of the record before the first.
const TIME_BEGINS_MS: u64 = 1 << 40;
/// Polls before an answer counts as never coming.
const POLLS_MAX: u32 = 200_000;

impl<'a, B: Backend> Driver<'a, B> {
    pub(crate) fn new(backend: &'a mut B, shards: u16, seed: u64) -> Driver<'a, B> {
        let mut driver = Driver {
            backend,
            shards: Shards::default(),
            committed: BTreeMap::new(),
            ticket: 0,
            records: 0,
            rng: SimRng::new(seed),
            held: None,
        };
        driver.restart(End::Kill, shards);
        driver
    }

    fn count(&self) -> u16 {
        self.shards.count()
    }

    fn shard_of(&self, slot: Slot) -> u16 {
        shard_of_slot(slot, self.count())
    }

    pub(crate) fn poll(&mut self) {
        (0..self.count()).for_each(|shard| self.poll_shard(shard));
    }

    fn poll_shard(&mut self, shard: u16) {
        let mut events = Vec::new();
        self.backend.poll(shard, &mut events);
        for event in events {
            match (self.shards.on_event(shard, event), &mut self.held) {
                (Some(request @ StorageRequest::Run { .. }), Some(held)) => held.push((shard, request)),
                (Some(request), _) => self.backend.submit(shard, request),
                (None, _) => {}
            }
        }
    }

    /// Hands over what was held.
    #[cfg(test)]
    pub(crate) fn release(&mut self) {
        for (shard, request) in self.held.take().unwrap_or_default() {
            self.backend.submit(shard, request);
        }
    }

    #[cfg(test)]
    pub(crate) fn checkpoints_done(&self) -> u64 {
        self.shards.0[0].checkpoints_done
    }

    fn poll_until(&mut self, what: &str, done: impl Fn(&Shards) -> bool) {
        for _ in 0..POLLS_MAX {
            if done(&self.shards) {
                return;
            }
            self.poll();
        }
        panic!("no answer: {what}");
    }

    /// Ends and starts the store; afterwards every committed record must be where it belongs.
    pub(crate) fn restart(&mut self, end: End, shards: u16) {
        let before = (!self.shards.0.is_empty()).then(|| self.backend.facts());
        self.backend.restart(end, shards, &mut self.shards);
        self.shards = Shards((0..shards).map(|_| Shard::default()).collect());
        self.poll_until("RecoveredAll", |shards| shards.0.iter().all(|shard| shard.recovered_all));
        let facts = self.backend.facts();
        if let Some(before) = before {
            assert!(facts.epoch > before.epoch, "each start has a higher epoch");
            assert_eq!(facts.generation, before.generation, "a restart is no new history");
            assert_eq!(facts.class, before.class);
        }
        self.check_recovered(end);
    }

    fn check_recovered(&mut self, end: End) {
        for (number, shard) in self.shards.0.iter().enumerate() {
            assert_eq!(shard.tails.len(), (0..SLOTS as Slot).filter(|&s| self.shard_of(s) as usize == number).count());
            if end == End::Graceful {
                assert!(shard.recovered.is_empty(), "nothing to recover after a graceful end");
            }
            let mut next: BTreeMap<Slot, Lsn> = BTreeMap::new();
            for (slot, lsn, bytes) in &shard.recovered {
                assert_eq!(self.shard_of(*slot) as usize, number, "recovered at the slot's shard");
                let mut rows = Rows2::new();
                apply(&mut rows, bytes);
                if let Some(expected) = next.get(slot) {
                    assert_eq!(lsn, expected, "recovered parts of slot {slot} are dense");
                }
                next.insert(*slot, lsn + rows.len() as u64);
            }
            for (slot, lsn) in next {
                assert_eq!(shard.tails[&slot], lsn, "the tail of slot {slot}");
            }
        }
        // What was in flight when it ended and turned out to be there is committed now.
        for shard in &self.shards.0 {
            for (slot, first, bytes) in &shard.recovered {
                let mut rows = Rows2::new();
                apply(&mut rows, bytes);
                for (offset, (found, value)) in rows.into_iter().enumerate() {
                    let lsn = first + offset as u64;
                    assert_eq!(found, key(*slot, lsn), "a record at its own LSN");
                    let known = self.committed.entry((*slot, lsn)).or_insert_with(|| value.clone());
                    assert_eq!(*known, value, "slot {slot}, LSN {lsn}");
                }
            }
        }
        let mut tails: BTreeMap<Slot, Lsn> = BTreeMap::new();
        for &(slot, lsn) in self.committed.keys() {
            assert_eq!(tails.insert(slot, lsn + 1).unwrap_or(0), lsn, "committed records are dense");
        }
        for slot in 0..SLOTS as Slot {
            let tail = self.shards.0[self.shard_of(slot) as usize].tails[&slot];
            assert_eq!(tail, tails.get(&slot).copied().unwrap_or(0), "the tail of slot {slot}");
        }
    }

    /// `records` of a slot, to be appended at `lsn`.
    fn part(&mut self, group: &mut AppendGroup, slot: Slot, epoch: Epoch, lsn: Lsn, records: u32) {
        let start = group.bytes.len() as u32;
        for offset in 0..u64::from(records) {
            // No two are the same, and as a time it grows, faster than any store runs.
            self.records += 1;
            let serial = (TIME_BEGINS_MS + 60_000 * self.records).to_le_bytes();
            let length = 8 + self.rng.below(200) as usize;
            let value: Vec<u8> = serial.iter().copied().cycle().take(length).collect();
            group.bytes.extend(record(&key(slot, lsn + offset), &value));
        }
        let bytes = start..group.bytes.len() as u32;
        group.parts.push(Part { slot, epoch, expected_lsn: lsn, records, bytes });
    }

    pub(crate) fn submit(&mut self, shard: u16, mut group: AppendGroup) -> Ticket {
        self.ticket += 1;
        group.ticket = self.ticket;
        self.backend.submit(shard, StorageRequest::Append(group));
        self.ticket
    }

    pub(crate) fn outcomes(&mut self, shard: u16, ticket: Ticket) -> Vec<Outcome> {
        self.poll_until("Appended", |shards| {
            shards.0[shard as usize].appended.iter().any(|(group, _)| group.ticket == ticket)
        });
        let appended = &mut self.shards.0[shard as usize].appended;
        let index = appended.iter().position(|(group, _)| group.ticket == ticket).expect("waited for");
        let (group, outcomes) = appended.remove(index);
        for (part, _) in group.parts.iter().zip(&outcomes).filter(|(_, outcome)| **outcome == Outcome::Committed) {
            let mut rows = Rows2::new();
            apply(&mut rows, &group.bytes[part.bytes.start as usize..part.bytes.end as usize]);
            for (offset, value) in rows.into_values().enumerate() {
                self.committed.insert((part.slot, part.expected_lsn + offset as u64), value);
            }
        }
        outcomes
    }

    pub(crate) fn append(&mut self, shard: u16, group: AppendGroup) -> Vec<Outcome> {
        let ticket = self.submit(shard, group);
        self.outcomes(shard, ticket)
    }

    fn tail(&self, slot: Slot) -> Lsn {
        self.shards.0[self.shard_of(slot) as usize].tails[&slot]
    }

    /// One group of a shard, over a few of its slots.
    pub(crate) fn random_group(&mut self, shard: u16) -> AppendGroup {
        let epoch = self.backend.facts().epoch;
        let mut group = AppendGroup::default();
        for slot in 0..=self.rng.below(3) as u16 {
            let slot = slot * 7 * self.count() + shard;
            let lsn = self.tail(slot);
            let records = 1 + self.rng.below(4) as u32;
            self.part(&mut group, slot, epoch, lsn, records);
        }
        group
    }

    fn read(&mut self, shard: u16, read: ViewRead) -> Rows {
        self.ticket += 1;
        let ticket = self.ticket;
        self.shards.0[shard as usize].asked.insert(ticket, read.clone());
        self.backend.submit(shard, StorageRequest::Read(ticket, read));
        self.poll_until("Read", |shards| shards.0[shard as usize].answers.iter().any(|(t, _)| *t == ticket));
        let answers = &mut self.shards.0[shard as usize].answers;
        let index = answers.iter().position(|(t, _)| *t == ticket).expect("waited for");
        answers.remove(index).1.expect("the views answer")
    }

    /// Every committed record is found by its slot's shard, in its overlay or in the views.
    pub(crate) fn check_rows(&mut self) {
        let mut slots: Vec<Slot> = self.committed.keys().map(|&(slot, _)| slot).collect();
        slots.dedup();
        for slot in slots {
            let question = ViewRead::Range {
                space: Space::History,
                start: key(slot, 0),
                end: key(slot, u64::MAX),
                rows_max: u32::MAX,
                bytes_max: u32::MAX,
                reverse: false,
            };
            let rows = self.read(self.shard_of(slot), question);
            let found: Vec<(Vec<u8>, Vec<u8>)> = rows.iter().map(|(k, v)| (k.to_vec(), v.to_vec())).collect();
            let expected = self.committed.range((slot, 0)..=(slot, u64::MAX));
            let expected: Vec<_> = expected.map(|(&(slot, lsn), value)| (key(slot, lsn), value.clone())).collect();
            assert!(found == expected, "slot {slot}: {} rows of {}", found.len(), expected.len());
        }
    }

    /// Every committed record has its dedup row, or is from a time of which its shard was told. Whether there are
    /// such.
    fn check_dedup(&mut self) -> bool {
        let mut forgotten = false;
        for ((slot, lsn), value) in self.committed.clone() {
            let shard = self.shard_of(slot);
            let rows = self.read(shard, ViewRead::Get { space: Space::Dedup, key: key(slot, lsn) });
            let time = u64::from_le_bytes(*value.first_chunk().expect("its time"));
            if let Some((_, found)) = rows.iter().next() {
                assert!(found == value, "slot {slot}, LSN {lsn}");
            } else {
                let told = self.shards.0[shard as usize].forgotten_until_ms;
                assert!(time <= told, "slot {slot}, LSN {lsn}: a row of {time} is gone, told was {told}");
                forgotten = true;
            }
        }
        forgotten
    }

    /// Appends until `more` further checkpoints are done.
    pub(crate) fn append_through_checkpoints(&mut self, more: u64) {
        let target = self.shards.0[0].checkpoints_done + more;
        for _ in 0..10_000 {
            if self.shards.0.iter().all(|shard| shard.checkpoints_done >= target) {
                return;
            }
            for shard in 0..self.count() {
                let group = self.random_group(shard);
                let outcomes = self.append(shard, group);
                let refused = Outcome::Refused(Refusal::ViewsBehind);
                assert!(outcomes.iter().all(|o| [Outcome::Committed, refused].contains(o)), "{outcomes:?}");
                if outcomes.contains(&refused) {
                    // Only time helps.
                    self.poll();
                }
            }
        }
        panic!("no checkpoint, however much was appended");
    }
}

/// Runs the whole suite; `new` gives an empty store that has not been started.
pub fn run<B: Backend>(seed: u64, mut new: impl FnMut() -> B) {
    lsns_are_dense_and_a_wrong_one_is_a_conflict(&mut new(), seed);
    a_lower_epoch_is_fenced_and_each_part_has_its_own_outcome(&mut new(), seed);
    what_was_committed_is_recovered_in_order(&mut new(), seed);
    a_checkpoint_moves_rows_into_the_views(&mut new(), seed);
    a_graceful_end_leaves_nothing_to_recover(&mut new(), seed);
    reads_keep_their_limits_in_both_directions(&mut new(), seed);
    shards_may_change_in_number(&mut new(), seed);
    a_read_never_misses_what_a_checkpoint_is_moving(&mut new(), seed);
    nothing_committed_is_lost_over_many_crashes(&mut new(), seed);
}

/// The same for stores of `new` whose dedup days are so short that they forget within moments.
pub fn run_forgetting<B: Backend>(seed: u64, mut new: impl FnMut() -> B) {
    let backend = &mut new();
    let mut driver = Driver::new(backend, 2, seed);
    let mut forgets = 0;
    for round in 0..1_000 {
        driver.append_through_checkpoints(1);
        forgets += u32::from(driver.check_dedup());
        if round % 5 == 4 {
            let end = [End::Kill, End::Graceful, End::PowerCut][round / 5 % 3];
            driver.restart(end, 1 + (round % 3) as u16);
            driver.check_dedup();
        }
        if forgets >= 4 && round >= 15 {
            return;
        }
    }
    panic!("nothing is ever forgotten");
}

fn lsns_are_dense_and_a_wrong_one_is_a_conflict<B: Backend>(backend: &mut B, seed: u64) {
    let mut driver = Driver::new(backend, 2, seed);
    let epoch = driver.backend.facts().epoch;
    for (lsn, expected) in [
        (0, Outcome::Committed),
        (0, Outcome::Conflict),
        (3, Outcome::Conflict),
        (2, Outcome::Committed),
        (4, Outcome::Committed),
    ] {
        let mut group = AppendGroup::default();
        driver.part(&mut group, 6, epoch, lsn, 2);
        assert_eq!(driver.append(0, group), [expected], "at LSN {lsn}");
    }
    driver.check_rows();
    driver.restart(End::Kill, 2);
    assert_eq!(driver.tail(6), 6);
}

fn a_lower_epoch_is_fenced_and_each_part_has_its_own_outcome<B: Backend>(backend: &mut B, seed: u64) {
    let mut driver = Driver::new(backend, 1, seed);
    let old = driver.backend.facts().epoch;
    driver.restart(End::Kill, 1);
    let epoch = driver.backend.facts().epoch;
    let mut group = AppendGroup::default();
    driver.part(&mut group, 1, old, 0, 1);
    driver.part(&mut group, 2, epoch, 0, 1);
    driver.part(&mut group, 3, epoch, 9, 1);
    driver.part(&mut group, 4, epoch, 0, 3);
    let expected = [Outcome::Fenced, Outcome::Committed, Outcome::Conflict, Outcome::Committed];
    assert_eq!(driver.append(0, group), expected);
    let mut group = AppendGroup::default();
    driver.part(&mut group, 1, old, 0, 1);
    assert_eq!(driver.append(0, group), [Outcome::Fenced], "a group that is fenced as a whole");
    driver.check_rows();
    driver.restart(End::Kill, 1);
    assert_eq!((driver.tail(1), driver.tail(2), driver.tail(3), driver.tail(4)), (0, 1, 0, 3));
}

fn what_was_committed_is_recovered_in_order<B: Backend>(backend: &mut B, seed: u64) {
    let mut driver = Driver::new(backend, 3, seed);
    for _ in 0..5 {
        // Groups of all shards at once, so that they may share a batch.
        let tickets: Vec<(u16, Ticket)> = (0..3)
            .map(|shard| {
                let group = driver.random_group(shard);
                (shard, driver.submit(shard, group))
            })
            .collect();
        for (shard, ticket) in tickets {
            let outcomes = driver.outcomes(shard, ticket);
            assert!(outcomes.iter().all(|&outcome| outcome == Outcome::Committed));
        }
    }
    for end in [End::Kill, End::PowerCut, End::Kill] {
        driver.restart(end, 3);
        driver.check_rows();
    }
}

fn a_checkpoint_moves_rows_into_the_views<B: Backend>(backend: &mut B, seed: u64) {
    let mut driver = Driver::new(backend, 2, seed);
    driver.append_through_checkpoints(3);
    driver.check_rows();
    assert!(!driver.check_dedup());
    let records = driver.committed.len();
    driver.restart(End::PowerCut, 2);
    let recovered: usize = driver.shards.0.iter().map(|shard| shard.fresh.len()).sum();
    assert!(recovered < records, "{recovered} of {records} records recovered in spite of checkpoints");
    driver.check_rows();
    driver.append_through_checkpoints(1);
    driver.check_rows();
}

fn a_graceful_end_leaves_nothing_to_recover<B: Backend>(backend: &mut B, seed: u64) {
    let mut driver = Driver::new(backend, 2, seed);
    for _ in 0..4 {
        let group = driver.random_group(1);
        driver.append(1, group);
        driver.restart(End::Graceful, 2);
        driver.check_rows();
    }
    // Nothing new: the end is as graceful.
    driver.restart(End::Graceful, 2);
    driver.check_rows();
}

fn reads_keep_their_limits_in_both_directions<B: Backend>(backend: &mut B, seed: u64) {
    let mut driver = Driver::new(backend, 1, seed);
    let epoch = driver.backend.facts().epoch;
    let mut group = AppendGroup::default();
    driver.part(&mut group, 5, epoch, 0, 20);
    driver.append(0, group);
    driver.restart(End::Graceful, 1);
    let question = |rows_max, bytes_max, reverse| ViewRead::Range {
        space: Space::History,
        start: key(5, 2),
        end: key(5, 12),
        rows_max,
        bytes_max,
        reverse,
    };
    let lsns = |rows: &Rows| -> Vec<u64> {
        rows.iter().map(|(key, _)| u64::from_be_bytes(key[2..].try_into().expect("eight bytes"))).collect()
    };
    let rows = driver.read(0, question(100, u32::MAX, false));
    assert_eq!((lsns(&rows), rows.more), ((2..12).collect(), false));
    let rows = driver.read(0, question(10, u32::MAX, false));
    assert_eq!((lsns(&rows).len(), rows.more), (10, false), "exactly as many as there are");
    let rows = driver.read(0, question(3, u32::MAX, false));
    assert_eq!((lsns(&rows), rows.more), (vec![2, 3, 4], true));
    // The driver sorts what it merges, so a reverse answer shows by which rows it holds.
    let rows = driver.read(0, question(3, u32::MAX, true));
    assert_eq!((lsns(&rows), rows.more), (vec![9, 10, 11], true));
    let rows = driver.read(0, question(100, 1, false));
    assert_eq!((lsns(&rows), rows.more), (vec![2], true), "the row that reaches the limit is the last");
    let rows = driver.read(0, ViewRead::Get { space: Space::History, key: key(5, 7) });
    assert_eq!(lsns(&rows), [7]);
    let rows = driver.read(0, ViewRead::Get { space: Space::Heads, key: key(5, 7) });
    assert_eq!(lsns(&rows), [0_u64; 0], "spaces are apart");
}

fn shards_may_change_in_number<B: Backend>(backend: &mut B, seed: u64) {
    let mut driver = Driver::new(backend, 1, seed);
    for (round, shards) in [3, 2, 5, 1].into_iter().enumerate() {
        for _ in 0..10 {
            for shard in 0..driver.count() {
                let group = driver.random_group(shard);
                driver.append(shard, group);
            }
        }
        driver.restart(if round == 2 { End::Graceful } else { End::Kill }, shards);
        driver.check_rows();
    }
}

fn a_read_never_misses_what_a_checkpoint_is_moving<B: Backend>(backend: &mut B, seed: u64) {
    let mut driver = Driver::new(backend, 1, seed);
    let mut rounds = 0;
    while driver.shards.0[0].checkpoints_done < 6 {
        rounds += 1;
        assert!(rounds < 20_000, "no checkpoint, however much was appended");
        let group = driver.random_group(0);
        let ticket = driver.submit(0, group);
        let known: Vec<((Slot, Lsn), Vec<u8>)> =
            driver.committed.iter().rev().take(5).map(|(place, value)| (*place, value.clone())).collect();
        for ((slot, lsn), value) in known {
            let rows = driver.read(0, ViewRead::Get { space: Space::History, key: key(slot, lsn) });
            let found = rows.iter().find(|(found, _)| *found == key(slot, lsn)).map(|(_, value)| value.to_vec());
            assert_eq!(found, Some(value), "slot {slot}, LSN {lsn}");
        }
        driver.outcomes(0, ticket);
    }
}

fn nothing_committed_is_lost_over_many_crashes<B: Backend>(backend: &mut B, seed: u64) {
    let mut driver = Driver::new(backend, 2, seed);
    for round in 0..12 {
        for _ in 0..driver.rng.below(60) {
            let shard = driver.rng.below(u64::from(driver.count())) as u16;
            let group = driver.random_group(shard);
            driver.append(shard, group);
        }
        // One more, whose fate is not known when the store ends.
        let group = driver.random_group(0);
        driver.submit(0, group);
        for _ in 0..driver.rng.below(4) {
            driver.poll_shard(0);
        }
        let decided: Vec<Ticket> = driver.shards.0[0].appended.iter().map(|(group, _)| group.ticket).collect();
        for ticket in decided {
            driver.outcomes(0, ticket);
        }
        let end = [End::Kill, End::PowerCut][round % 2];
        driver.restart(end, 1 + (round % 3) as u16);
        driver.check_rows();
    }
}
