//! One world: a server, its disk, its network and its clients, driven step by step from one seed.
//!
//! First everything goes wrong that the plan allows. Then the world calms down, every phone must come to
//! rest with the whole history, fresh phones read everything back, and the checker has the last word.

use chat::Now;
use storage::disk::DiskError;
use storage::sim_disk::SimFaults;
use storage::sim_store::Crash;
use wire::ids::{ConversationId, DeviceId, UserId};
use wire::reader::{Event, Input, Reader};
use wire::websocket::{Limits, Role};

use crate::broken;
use crate::bug::Bug;
use crate::checker::{Checker, Verdict};
use crate::net::{Net, Read};
use crate::node::{Node, token};
use crate::phone::{Clocks, Habits, Phone};
use crate::plan::Plan;
use crate::rng::Rng;

/// What a world did, for the report.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Figures {
    pub steps: u64,
    pub turns: u64,
    pub frames: u64,
    pub crashes: u64,
    pub messages: u64,
    /// When it ended, by its own clock.
    pub ended_us: u64,
}

/// One thing that could happen next.
#[derive(Debug, Clone, Copy)]
enum Action {
    Turn(usize),
    Store,
    Receive(usize),
    Take(usize),
    Read(usize),
    Phone(usize),
}

/// See the module.
pub struct World {
    plan: Plan,
    rng: Rng,
    node: Node,
    net: Net,
    phones: Vec<Phone>,
    /// The link of each phone.
    links: Vec<Option<usize>>,
    checker: Checker,
    bug: Option<Bug>,
    now_us: u64,
    /// What the server's wall clock shows beside the true one.
    wall_offset_ms: i64,
    is_calm: bool,
    calm_since_ms: u64,
    actions: Vec<Action>,
    disk_trouble_until_us: u64,
    /// The disk will die in a moment.
    dies: bool,
    pub figures: Figures,
    pub trace: bool,
}

/// The true time at which worlds begin.
const BEGIN_WALL_MS: u64 = 1_760_000_000_000;
/// In a calm world, everything is answered within this.
const ANSWER_MS: u64 = 20_000;

macro_rules! trace {
    ($world:expr, $($text:tt)*) => { if $world.trace { eprintln!("{:>10} {}", $world.now_us, format!($($text)*)) } };
}

impl World {
    /// The world of a seed.
    pub fn new(seed: u64, bug: Option<Bug>) -> Self {
        let mut rng = Rng::new(seed);
        let plan = Plan::new(&mut rng, bug);
        let node = Node::new(rng.number(), &plan);
        let mut world = Self {
            plan,
            rng,
            node,
            net: Net::default(),
            phones: Vec::new(),
            links: Vec::new(),
            checker: Checker::default(),
            bug,
            now_us: 1_000_000,
            wall_offset_ms: 0,
            is_calm: false,
            calm_since_ms: 0,
            actions: Vec::new(),
            disk_trouble_until_us: 0,
            dies: false,
            figures: Figures::default(),
            trace: false,
        };
        for user in world.plan.users.clone() {
            for device in 1..=world.plan.devices {
                world.add_phone(user, device);
            }
        }
        world
    }

    fn add_phone(&mut self, user: UserId, device: u32) {
        let rng = &mut self.rng;
        let habits = Habits {
            pipeline: rng.between(1, 4) as usize,
            random_ids: rng.pick(&[0, 0, 100, 1_000]),
            clock_ms: rng.pick(&[0, 0, 0, 3_600_000, -3_600_000, 864_000_000]),
            skips: rng.pick(&[0, 0, 200]),
            page: rng.between(1, 4) as u32,
            hasty: rng.one_in(3),
            window_ms: 7 * self.plan.store.dedup_day_ms,
            patience_ms: (!self.is_calm).then(|| rng.between(3_000, 15_000)),
        };
        let token = token(user, DeviceId(device));
        self.phones.push(Phone::new(user, DeviceId(device), token, habits, self.rng.fork()));
        self.links.push(None);
    }

    /// Runs it from beginning to end.
    pub fn run(&mut self) -> Verdict {
        let verdict = self.story();
        self.figures.frames = self.checker.frames;
        self.figures.messages = self.checker.messages();
        self.figures.ended_us = self.now_us;
        verdict
    }

    fn story(&mut self) -> Verdict {
        trace!(self, "{:?}", self.plan);
        self.start()?;
        for _ in 0..self.plan.steps {
            self.trouble()?;
            self.step()?;
        }
        self.calm_down()?;
        self.settle()?;
        self.give_all_marks()?;
        self.everyone_has_everything()?;
        self.audit()?;
        if self.rng.one_in(2) {
            if self.rng.one_in(2) {
                self.drain_to_the_end()?;
            } else {
                self.restart_now()?;
            }
            self.settle()?;
            self.give_all_marks()?;
            self.audit()?;
        }
        self.checker.finish()?;
        self.everyone_leaves()
    }

    fn clocks(&self) -> Clocks {
        let now_ms = self.now_us / 1_000;
        Clocks { now_ms, wall_ms: BEGIN_WALL_MS + now_ms }
    }

    fn now(&self) -> Now {
        let clocks = self.clocks();
        Now { monotonic_ms: clocks.now_ms, wall_ms: clocks.wall_ms.saturating_add_signed(self.wall_offset_ms) }
    }

    fn start(&mut self) -> Verdict {
        let shards = if self.rng.one_in(3) { self.rng.between(1, 3) as u16 } else { self.plan.shards };
        let seed = self.rng.number();
        trace!(self, "start with {shards} shards");
        let started = self.node.start(&self.plan, shards, seed, self.now(), self.bug);
        if started.is_ok() || self.is_calm {
            return started;
        }
        // A disk in trouble may well refuse; when it is repaired, it may not.
        trace!(self, "{started:?}");
        self.node.store.disk().faults = SimFaults::default();
        self.dies = false;
        let how = self.any_crash();
        self.node.crash(how);
        self.node.start(&self.plan, shards, seed, self.now(), self.bug)
    }

    fn any_crash(&mut self) -> Crash {
        if self.rng.one_in(2) { Crash::Kill } else { Crash::PowerCut }
    }

    fn crash(&mut self, how: Crash) -> Verdict {
        trace!(self, "crash: {how:?}");
        self.figures.crashes += 1;
        for phone in 0..self.phones.len() {
            // What the kernel had taken still arrives when only the process dies.
            if let Some(link) = self.links[phone]
                && matches!(how, Crash::Kill)
                && self.net.can_read(link)
                && self.rng.one_in(2)
            {
                self.read(link, true)?;
            }
            if self.links[phone].take().is_some() {
                let clocks = self.clocks();
                self.phones[phone].cut(clocks);
            }
        }
        self.net.drop_all();
        self.node.crash(how);
        self.dies = false;
        Ok(())
    }

    fn act_now_and_then(&mut self) {
        if self.rng.per_mille(self.plan.acts) {
            let phone = self.rng.index(self.phones.len());
            let (clocks, users) = (self.clocks(), self.plan.users.clone());
            self.phones[phone].act(clocks, &users, &mut self.checker);
        }
    }

    /// What may go wrong now, does at times.
    fn trouble(&mut self) -> Verdict {
        self.act_now_and_then();
        if self.rng.per_mille(self.plan.cuts) {
            let phone = self.rng.index(self.phones.len());
            self.cut(phone);
        }
        if self.rng.below(10_000) < u64::from(self.plan.crashes) {
            self.restart()?;
        }
        if self.rng.below(10_000) < u64::from(self.plan.disk_faults) {
            self.disk_fault();
        }
        if self.dies && self.rng.one_in(20) {
            self.restart()?;
        }
        if self.disk_trouble_until_us < self.now_us {
            self.node.store.disk().faults.capacity_bytes = None;
        }
        if self.rng.below(10_000) < u64::from(self.plan.jumps) {
            self.jump();
        }
        Ok(())
    }

    fn restart(&mut self) -> Verdict {
        if self.node.listens() && self.rng.one_in(2) {
            self.drain();
            for _ in 0..self.rng.below(600) {
                if !self.node.is_draining() || self.node.is_drained() {
                    break;
                }
                self.act_now_and_then();
                self.step()?;
            }
        }
        self.restart_now()
    }

    /// The process is told to stop. Clients go on as if nothing were, and find out.
    fn drain(&mut self) {
        let spread_ms = self.rng.below(3_000) as u32;
        trace!(self, "drain over {spread_ms} ms");
        let now = self.now();
        self.node.drain(now, spread_ms);
    }

    /// In a calm world a drain ends, whatever is under way when it begins.
    fn drain_to_the_end(&mut self) -> Verdict {
        const STEPS_MAX: u32 = 1_000_000;
        const DRAIN_US: u64 = 60_000_000;
        self.drain();
        let until_us = self.now_us + DRAIN_US;
        for _ in 0..STEPS_MAX {
            if self.node.is_drained() {
                return self.restart_now();
            }
            if self.now_us >= until_us {
                break;
            }
            self.act_now_and_then();
            self.step()?;
        }
        broken!("a drain does not end");
    }

    fn restart_now(&mut self) -> Verdict {
        let how = if self.dies { Crash::PowerCut } else { self.any_crash() };
        self.crash(how)?;
        if self.rng.one_in(3) {
            self.now_us += self.rng.below(5_000_000);
        }
        self.start()
    }

    fn disk_fault(&mut self) {
        let fault = self.rng.below(5);
        let operations = self.rng.below(30);
        let span_us = self.rng.below(3_000_000);
        let now_us = self.now_us;
        let disk = self.node.store.disk();
        match fault {
            0 | 1 => {
                disk.faults.capacity_bytes = Some(disk.used_bytes());
                self.disk_trouble_until_us = now_us + span_us;
            }
            2 => disk.faults.fail_next_write = Some(DiskError::Full),
            3 => disk.faults.fail_next_sync = true,
            _ => {
                disk.faults.dies_after = Some(operations);
                self.dies = true;
            }
        }
        trace!(self, "disk fault {fault}");
    }

    fn jump(&mut self) {
        match self.rng.below(3) {
            0 => {
                const HOUR_MS: i64 = 3_600_000;
                self.checker.clocks_jumped = true;
                self.wall_offset_ms = self.rng.pick(&[0, HOUR_MS, -HOUR_MS, 8 * 24 * HOUR_MS, -8 * 24 * HOUR_MS]);
            }
            // The process was paused.
            _ => self.now_us += self.rng.below(4_000_000),
        }
        trace!(self, "clocks jump: wall {} ms off", self.wall_offset_ms);
    }

    fn cut(&mut self, phone: usize) {
        let Some(link) = self.links[phone].take() else { return };
        let reset = self.rng.one_in(2);
        trace!(self, "phone {phone} leaves link {link}, reset {reset}");
        if let Some(shard) = self.net.link(link).map(|link| link.shard) {
            self.net.leave(link, reset, self.node.events(shard));
        }
        let clocks = self.clocks();
        self.phones[phone].cut(clocks);
    }

    /// One thing happens. `false`: nothing could, and time does not help.
    fn step(&mut self) -> Verdict<bool> {
        self.figures.steps += 1;
        self.collect();
        if self.actions.is_empty() {
            return self.pass_time();
        }
        let action = self.actions[self.rng.index(self.actions.len())];
        self.act(action)?;
        if self.rng.one_in(4) {
            self.now_us += self.rng.below(400);
        }
        Ok(true)
    }

    fn collect(&mut self) {
        let mut actions = std::mem::take(&mut self.actions);
        actions.clear();
        for shard in 0..self.node.shards() {
            if self.node.is_runnable(shard, self.now_us) {
                actions.push(Action::Turn(shard));
            }
        }
        if self.node.store.next_step_us().is_some_and(|due_us| due_us <= self.now_us) {
            actions.push(Action::Store);
        }
        let numbers: Vec<usize> = self.net.numbers().collect();
        for link in numbers {
            if self.net.can_receive(link) {
                actions.push(Action::Receive(link));
            }
            if self.net.can_take(link) {
                actions.push(Action::Take(link));
            }
            let slow = !self.is_calm && self.net.link(link).is_some_and(|link| link.slow);
            if self.net.can_read(link) && (!slow || self.rng.one_in(16)) {
                actions.push(Action::Read(link));
            }
        }
        let now_ms = self.now_us / 1_000;
        for (number, phone) in self.phones.iter().enumerate() {
            let due = phone.next_due_ms().is_some_and(|due_ms| due_ms <= now_ms);
            if due || !phone.out.is_empty() || phone.wants_cut {
                actions.push(Action::Phone(number));
            }
        }
        self.actions = actions;
    }

    fn act(&mut self, action: Action) -> Verdict {
        match action {
            Action::Turn(shard) => {
                self.figures.turns += 1;
                let now = self.now();
                let lag_ms = if self.is_calm { 0 } else { self.rng.below(self.plan.lag_ms + 1) };
                self.node.turn(shard, now, lag_ms, &mut self.net);
            }
            Action::Store => {
                if let Err(error) = self.node.store.step(self.now_us) {
                    trace!(self, "the process aborts: {error}");
                    return self.restart_now();
                }
            }
            Action::Receive(link) => {
                if let Some(shard) = self.net.link(link).map(|link| link.shard) {
                    self.net.receive(link, &mut self.rng, self.is_calm, self.node.events(shard));
                }
            }
            Action::Take(link) => {
                if let Some(shard) = self.net.link(link).map(|link| link.shard) {
                    self.net.take(link, &mut self.rng, self.is_calm, self.node.events(shard));
                }
            }
            Action::Read(link) => self.read(link, self.is_calm)?,
            Action::Phone(phone) => self.phone(phone),
        }
        Ok(())
    }

    fn read(&mut self, link: usize, all: bool) -> Verdict {
        let phone = self.net.link(link).expect("it can be read").phone;
        match self.net.read(link, &mut self.rng, all) {
            Read::Bytes(mut bytes) => {
                trace!(self, "phone {phone} reads {}", String::from_utf8_lossy(&bytes));
                let clocks = self.clocks();
                self.phones[phone].receive(clocks, &mut bytes, &mut self.checker)
            }
            Read::End => {
                trace!(self, "phone {phone} reads the end");
                self.cut(phone);
                Ok(())
            }
        }
    }

    fn phone(&mut self, phone: usize) {
        let clocks = self.clocks();
        if self.phones[phone].wants_cut {
            return self.cut(phone);
        }
        if self.phones[phone].is_down() {
            if self.node.shards() > 0 && clocks.now_ms >= self.phones[phone].down_until_ms {
                let shard = self.rng.index(self.node.shards());
                if !self.node.listens() {
                    // Nobody is there yet: refused at once.
                    self.phones[phone].cut(clocks);
                    return;
                }
                let slow = self.rng.per_mille(self.plan.slow);
                let link = self.net.connect(phone, shard, slow, self.node.events(shard));
                trace!(self, "phone {phone} connects by link {link} to shard {shard}");
                self.links[phone] = Some(link);
                self.phones[phone].connect();
            }
            return;
        }
        self.phones[phone].tick(clocks, &mut self.checker);
        if let Some(link) = self.links[phone] {
            let mut out = std::mem::take(&mut self.phones[phone].out);
            if self.trace {
                self.trace_writes(phone, &out);
            }
            self.net.write(link, &mut out);
            self.phones[phone].out = out;
        }
    }

    fn trace_writes(&self, phone: usize, out: &[u8]) {
        let mut copy = out.to_vec();
        let (mut reader, mut input) = (Reader::new(Role::Server), Input::new(&mut copy));
        while let Ok(Some(event)) = reader.next(Limits::default(), &mut input) {
            if let Event::Text(text) = event {
                trace!(self, "phone {phone} writes {text}");
            }
        }
    }

    /// Nothing can happen before some moment: it comes.
    fn pass_time(&mut self) -> Verdict<bool> {
        self.node.nobody_overslept()?;
        let phones = self.phones.iter().filter_map(Phone::next_due_ms).map(|ms| ms * 1_000).min();
        let due_us = [phones, self.node.next_due_us()].into_iter().flatten().min();
        let Some(due_us) = due_us else { return Ok(false) };
        if self.is_calm {
            for phone in &self.phones {
                if let Some((since_ms, what)) = phone.waits_for()
                    && self.now_us / 1_000 > since_ms.max(self.calm_since_ms) + ANSWER_MS
                {
                    broken!("{}/{} waits since {since_ms} ms for an answer: {what}", phone.user, phone.device);
                }
            }
        }
        self.now_us = due_us.max(self.now_us + 1);
        Ok(true)
    }

    /// From now on nothing goes wrong any more.
    fn calm_down(&mut self) -> Verdict {
        trace!(self, "the world calms down");
        if self.dies || self.rng.one_in(2) {
            self.restart()?;
        }
        self.is_calm = true;
        // What was asked before may have been on its way for as long as a slow link likes.
        self.calm_since_ms = self.now_us / 1_000;
        self.wall_offset_ms = 0;
        self.node.store.disk().faults = SimFaults::default();
        for phone in &mut self.phones {
            phone.habits.patience_ms = None;
        }
        Ok(())
    }

    /// Steps until every phone has come to rest.
    ///
    /// What counts is the world's own time: slow storage and small limits leave a few phones with
    /// thousands of refusals to repeat before the last message is through. The count of steps
    /// catches only a world whose time does not pass.
    fn settle(&mut self) -> Verdict {
        const STEPS_MAX: u64 = 1_000_000;
        const REST_MS: u64 = 600_000;
        let until_us = self.now_us + REST_MS * 1_000;
        for _ in 0..STEPS_MAX {
            self.step()?;
            if self.now_us > until_us {
                break;
            }
            if self.phones.iter().all(Phone::is_settled) && self.is_quiet() {
                return Ok(());
            }
        }
        let restless: Vec<_> = self.phones.iter().filter(|phone| !phone.is_settled()).map(Phone::describe).collect();
        broken!("the world does not come to rest: {restless:?}, {:?}", self.actions)
    }

    /// Nothing is going on except what time will bring.
    fn is_quiet(&mut self) -> bool {
        self.collect();
        // What its author gave up may still be with storage.
        self.actions.is_empty() && self.node.is_quiet()
    }

    fn give_all_marks(&mut self) -> Verdict {
        for phone in 0..self.phones.len() {
            let ids: Vec<_> = self.phones[phone].chats.keys().copied().collect();
            for id in ids {
                self.phones[phone].repeat_marks(id, &mut self.checker);
                self.settle()?;
            }
        }
        Ok(())
    }

    fn everyone_has_everything(&self) -> Verdict {
        for phone in &self.phones {
            for id in self.checker.conversations_of(phone.user) {
                let have = phone.chats.get(&id).map_or(0, |chat| chat.have);
                if have != self.checker.shown(id) {
                    broken!(
                        "{}/{} rests with {have} of {} messages of {id}",
                        phone.user,
                        phone.device,
                        self.checker.shown(id)
                    );
                }
            }
        }
        Ok(())
    }

    /// Fresh phones read everything back.
    fn audit(&mut self) -> Verdict {
        let residents = self.phones.len();
        for user in self.plan.users.clone() {
            self.add_phone(user, 90);
        }
        self.settle()?;
        for phone in &self.phones[residents..] {
            let user = phone.user;
            for id in self.checker.conversations_of(user) {
                let head = self.checker.shown(id);
                let have = phone.chats.get(&id).map_or(0, |chat| chat.have);
                let Some(listed) = phone.listed.get(&id) else { broken!("{user}: {id} is not listed") };
                if have != head || listed.head != head {
                    broken!("{id}: {user} reads back {have}, is told of {}, and {head} were shown", listed.head);
                }
                self.marks_are_right(user, id, phone)?;
            }
        }
        for phone in residents..self.phones.len() {
            self.cut(phone);
        }
        self.phones.truncate(residents);
        self.links.truncate(residents);
        self.settle()
    }

    fn marks_are_right(&self, user: UserId, id: ConversationId, phone: &Phone) -> Verdict {
        let listed = phone.listed[&id];
        let (delivered, read) = self.checker.final_marks(user, id);
        let peer = self.checker.final_marks(id.peer_of(user).expect("a party"), id);
        let unread = self.checker.countable(id, read, listed.head);
        let right = listed.read == read
            && listed.delivered == delivered
            && listed.unread == unread
            && listed.read_all == read.min(peer.1)
            && listed.delivered_all == delivered.min(peer.0);
        if !right {
            broken!(
                "{id}: {user} is told {listed:?}, and it is read {read}, delivered {delivered}, unread {unread}, peer {peer:?}"
            );
        }
        Ok(())
    }

    fn everyone_leaves(&mut self) -> Verdict {
        for phone in 0..self.phones.len() {
            self.cut(phone);
        }
        self.phones.clear();
        self.links.clear();
        // Long enough for every timer and a last checkpoint.
        let until_us = self.now_us + 120_000_000;
        while self.now_us < until_us && self.step()? {}
        if !self.net.is_empty() {
            broken!("{} connections outlive their phones", self.net.len());
        }
        self.node.is_back_to_nothing()
    }
}

impl Figures {
    /// Adds another world's.
    pub fn add(&mut self, other: &Self) {
        self.steps += other.steps;
        self.turns += other.turns;
        self.frames += other.frames;
        self.crashes += other.crashes;
        self.messages += other.messages;
    }
}
