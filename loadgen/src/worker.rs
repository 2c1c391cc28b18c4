//! One thread of phones: a ring, a schedule and a wheel of deadlines.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use ring::{Connection, Doorbell, Event, EventBatch, KernelRing, Op, Ops, RingConfig};
use wire::ids::UserId;

use crate::acks::AckWriter;
use crate::body::STAMP_BYTES;
use crate::key::TokenKey;
use crate::phone::{Around, Habits, Phone, Want, audit};
use crate::random::Random;
use crate::schedule::{Arrivals, Schedule};
use crate::tally::Tally;

/// No phone.
const NOBODY: u32 = u32::MAX;
/// Connections from one source address: beyond two thirds of its ports, connecting becomes slow.
const CONNECTIONS_PER_SOURCE: u32 = 10_000;

/// How long what is in flight at the end may take at least.
const SETTLE_NS: u64 = 5_000_000_000;

/// What one thread is to do.
pub(crate) struct Orders {
    pub habits: Habits,
    pub key: TokenKey,
    pub server: SocketAddr,
    /// The first of this thread's users, and how many; pairs are never split over threads.
    pub first_user: u64,
    pub users: u32,
    /// This thread's first user's place among all.
    pub first_index: u32,
    pub connections_per_second: f64,
    pub rate: f64,
    pub arrivals: Arrivals,
    pub duration_ns: u64,
    pub drain_ns: u64,
    /// Due messages wait up to this long for each other, to share a turn.
    pub tick: Duration,
    pub random: Random,
    pub acks: Option<AckWriter>,
    pub clock: Instant,
    pub phase: Arc<Phase>,
    pub progress: Sender<Progress>,
}

/// What the threads share.
#[derive(Debug, Default)]
pub(crate) struct Phase {
    /// When messages begin to be due; 0 until that is known.
    pub start_ns: AtomicU64,
    /// To end early.
    pub stop: AtomicBool,
}

/// What a thread says each second.
pub(crate) struct Progress {
    pub worker: u32,
    /// Of the last second.
    pub tally: Tally,
    pub open: u32,
    pub was_open: u32,
}

/// Runs one thread to its end; what it measured since its last report comes back.
pub(crate) fn run(worker: u32, orders: Orders) -> Result<Tally, ring::RingError> {
    let config = RingConfig {
        connections_max: orders.users + 16,
        completions: 16_384,
        receive_buffers: 2_048,
        ..RingConfig::default()
    };
    let ring = KernelRing::new(&config, Doorbell::new()?)?;
    Worker::new(worker, ring, orders).run()
}

struct Worker {
    number: u32,
    ring: KernelRing,
    orders: Orders,
    phones: Vec<Line>,
    /// Which phone a slot of the ring belongs to.
    owners: Vec<u32>,
    /// Phones with something to send.
    talkative: Vec<u32>,
    /// Buffers that no phone needs at the moment.
    buffers: Vec<Vec<u8>>,
    wheel: Wheel,
    schedule: Option<Schedule>,
    /// Since the last report.
    tally: Tally,
    /// Acknowledged before that.
    acked: u64,
    body: String,
    now_ns: u64,
    reported_at: u64,
    flushed_at: u64,
    hung_up: bool,
    /// No more messages fall due.
    ended: bool,
    gave_up: bool,
}

/// A phone and its line to the server.
struct Line {
    phone: Phone,
    connection: Option<Connection>,
    is_sending: bool,
    is_talkative: bool,
    /// The wheel will look at it then.
    wheel_at: u64,
}

impl Worker {
    fn new(number: u32, ring: KernelRing, orders: Orders) -> Self {
        let mut wheel = Wheel::new();
        let line = |index: u32| {
            let place = f64::from(orders.first_index + index);
            let start_ns = (place / orders.connections_per_second * 1e9) as u64;
            let user = orders.first_user + u64::from(index);
            // The first user is odd in every pair's place, whatever its number.
            let peer = orders.first_user + u64::from(index ^ 1);
            Line {
                phone: Phone::new(UserId(user), UserId(peer), start_ns),
                connection: None,
                is_sending: false,
                is_talkative: false,
                wheel_at: start_ns,
            }
        };
        let phones: Vec<_> = (0..orders.users).map(line).collect();
        for (index, line) in phones.iter().enumerate() {
            wheel.add(index as u32, line.wheel_at);
        }
        Self {
            number,
            ring,
            phones,
            owners: vec![NOBODY; orders.users as usize + 16],
            talkative: Vec::new(),
            buffers: Vec::new(),
            wheel,
            schedule: None,
            tally: Tally::default(),
            acked: 0,
            body: String::with_capacity(orders.habits.payload_bytes.max(STAMP_BYTES)),
            now_ns: 0,
            reported_at: 0,
            flushed_at: 0,
            hung_up: false,
            ended: false,
            gave_up: false,
            orders,
        }
    }

    fn run(mut self) -> Result<Tally, ring::RingError> {
        let (mut events, mut ops) = (EventBatch::with_capacity(4_096, 1 << 20), Ops::with_capacity(4_096));
        let mut over_at = None;
        loop {
            self.ring.wait(Some(self.patience()), &mut events)?;
            self.look_at_the_clock();
            while let Some(event) = events.pop() {
                self.handle(event, &mut events, &mut ops);
            }
            self.look_at_the_clock();
            self.write_due();
            self.expire(&mut ops);
            self.send(&mut ops);
            self.ring.submit(&mut ops);
            self.report();
            if over_at.is_none() && self.is_over(&mut ops) {
                self.hang_up(&mut ops);
                self.ring.submit(&mut ops);
                over_at = Some(self.now_ns + 1_000_000_000);
            }
            if over_at.is_some_and(|at| at <= self.now_ns || self.ring.connections() == 0) {
                return Ok(self.finish());
            }
        }
    }

    fn look_at_the_clock(&mut self) {
        self.now_ns = self.orders.clock.elapsed().as_nanos() as u64;
    }

    /// Until a message or a deadline is due; the wheel is coarse, and turns are shared.
    fn patience(&self) -> Duration {
        let due = self.schedule.as_ref().and_then(Schedule::next).unwrap_or(u64::MAX);
        let until = due.min(self.wheel.next_at());
        Duration::from_nanos(until.saturating_sub(self.now_ns)).max(self.orders.tick)
    }

    fn handle(&mut self, event: Event, events: &mut EventBatch, ops: &mut Ops) {
        match event {
            Event::Connected { connection, token } => {
                let index = token as u32;
                self.owners[connection.slot() as usize] = index;
                let line = &mut self.phones[index as usize];
                line.connection = Some(connection);
                line.is_sending = false;
                if self.hung_up {
                    ops.push(Op::Reset { connection });
                } else {
                    self.with_phone(index, ops, |phone, around| {
                        phone.connected(around);
                        Want::Nothing
                    });
                }
            }
            Event::ConnectFailed { token, .. } => self.with_phone(token as u32, ops, |phone, around| {
                phone.disconnected(around);
                Want::Nothing
            }),
            Event::Received { connection, range } => {
                let Some(index) = self.owner(connection) else { return };
                // Each piece is read at a time of its own: a turn over thousands of them is long.
                self.look_at_the_clock();
                let bytes = events.data_mut(range);
                self.with_phone(index, ops, |phone, around| phone.received(bytes, around));
            }
            Event::Sent { connection, mut buffer } => {
                buffer.clear();
                self.buffers.push(buffer);
                let Some(index) = self.owner(connection) else { return };
                self.phones[index as usize].is_sending = false;
                self.note_talkative(index);
            }
            Event::Eof { connection } => ops.push(Op::Close { connection }),
            Event::Closed { connection, buffer, .. } => {
                if let Some(mut buffer) = buffer {
                    buffer.clear();
                    self.buffers.push(buffer);
                }
                let Some(index) = self.owner(connection) else { return };
                self.owners[connection.slot() as usize] = NOBODY;
                let line = &mut self.phones[index as usize];
                line.connection = None;
                line.is_sending = false;
                self.with_phone(index, ops, |phone, around| {
                    phone.disconnected(around);
                    Want::Nothing
                });
            }
            Event::SendProgress { .. }
            | Event::Doorbell
            | Event::Accepted { .. }
            | Event::AcceptPaused { .. }
            | Event::AcceptResumed { .. } => {}
        }
    }

    fn owner(&self, connection: Connection) -> Option<u32> {
        let index = self.owners[connection.slot() as usize];
        let is_its = index != NOBODY && self.phones[index as usize].connection == Some(connection);
        is_its.then_some(index)
    }

    /// Lets a phone do something, and does what it wants.
    fn with_phone(&mut self, index: u32, ops: &mut Ops, act: impl FnOnce(&mut Phone, &mut Around<'_>) -> Want) {
        let line = &mut self.phones[index as usize];
        let mut around = Around {
            now_ns: self.now_ns,
            habits: &self.orders.habits,
            key: &self.orders.key,
            random: &mut self.orders.random,
            tally: &mut self.tally,
            acks: self.orders.acks.as_mut(),
            body: &mut self.body,
        };
        let want = act(&mut line.phone, &mut around);
        match (want, line.connection) {
            (Want::Connect, _) => {
                let source = source(self.orders.server, self.orders.first_index + index);
                ops.push(Op::Connect { token: u64::from(index), address: self.orders.server, source });
            }
            // What is being connected still will end by itself, in success or failure.
            (Want::Cut, Some(connection)) => ops.push(Op::Reset { connection }),
            (Want::Cut, None) | (Want::Nothing, _) => {}
        }
        let wakes_at = line.phone.wakes_at();
        if wakes_at < line.wheel_at {
            line.wheel_at = wakes_at;
            self.wheel.add(index, wakes_at);
        }
        self.note_talkative(index);
    }

    fn note_talkative(&mut self, index: u32) {
        let line = &mut self.phones[index as usize];
        if !line.phone.out.is_empty() && !line.is_sending && !line.is_talkative {
            line.is_talkative = true;
            self.talkative.push(index);
        }
    }

    /// Everything that fell due since the last turn.
    fn write_due(&mut self) {
        if self.schedule.is_none() {
            let start_ns = self.orders.phase.start_ns.load(Ordering::Acquire);
            if start_ns == 0 {
                return;
            }
            let end_ns = start_ns + self.orders.duration_ns;
            let random = self.orders.random.clone();
            self.orders.random.draw();
            self.schedule = Some(Schedule::new(self.orders.arrivals, self.orders.rate, start_ns, end_ns, random));
        }
        while let Some(due_ns) = self.schedule.as_mut().and_then(|schedule| schedule.due(self.now_ns)) {
            self.tally.schedule.record(self.now_ns - due_ns);
            let index = self.orders.random.below(u64::from(self.orders.users)) as u32;
            self.with_phone(index, &mut Ops::default(), |phone, around| {
                phone.write_message(due_ns, around);
                Want::Nothing
            });
        }
    }

    fn expire(&mut self, ops: &mut Ops) {
        let mut due = std::mem::take(&mut self.wheel.due);
        self.wheel.advance(self.now_ns, &mut due);
        for index in due.drain(..) {
            let line = &mut self.phones[index as usize];
            line.wheel_at = u64::MAX;
            self.with_phone(index, ops, Phone::tick);
        }
        self.wheel.due = due;
    }

    fn send(&mut self, ops: &mut Ops) {
        for index in self.talkative.drain(..) {
            let line = &mut self.phones[index as usize];
            line.is_talkative = false;
            if let Some(connection) = line.connection
                && !line.is_sending
                && !line.phone.out.is_empty()
            {
                line.is_sending = true;
                let buffer = std::mem::replace(&mut line.phone.out, self.buffers.pop().unwrap_or_default());
                self.tally.counts.bytes_out += buffer.len() as u64;
                ops.push(Op::Send { connection, buffer });
            }
            // A phone with nothing to say keeps no buffer.
            if line.phone.out.is_empty() && line.phone.out.capacity() > 0 {
                self.buffers.push(std::mem::take(&mut line.phone.out));
            }
        }
    }

    fn report(&mut self) {
        const EVERY_NS: u64 = 1_000_000_000;
        const FLUSH_NS: u64 = 5_000_000;
        if self.now_ns >= self.flushed_at + FLUSH_NS {
            self.flushed_at = self.now_ns;
            self.flush_acks();
        }
        // Who has hung up has none open, and what is left comes back at the end.
        if self.hung_up || self.now_ns < self.reported_at + EVERY_NS {
            return;
        }
        self.reported_at = self.now_ns;
        let open = self.phones.iter().filter(|line| line.phone.is_open()).count() as u32;
        let was_open = self.phones.iter().filter(|line| line.phone.was_open()).count() as u32;
        self.acked += self.tally.counts.acked;
        let tally = std::mem::take(&mut self.tally);
        let progress = Progress { worker: self.number, tally, open, was_open };
        // Whoever listened may have gone first.
        let _ = self.orders.progress.send(progress);
    }

    /// Over when told so; or after the last message fell due, when all have their answers and receivers.
    /// What has not been sent by the end of the drain is given up, and what has been has as long again.
    fn is_over(&mut self, ops: &mut Ops) -> bool {
        if self.orders.phase.stop.load(Ordering::Relaxed) {
            return true;
        }
        let start_ns = self.orders.phase.start_ns.load(Ordering::Acquire);
        let end_ns = start_ns + self.orders.duration_ns;
        if start_ns == 0 || self.now_ns < end_ns {
            return false;
        }
        if !self.ended {
            self.ended = true;
            self.tally.counts.acked_in_time = self.acked + self.tally.counts.acked;
        }
        if self.now_ns >= end_ns + self.orders.drain_ns && !self.gave_up {
            self.gave_up = true;
            for index in 0..self.phones.len() as u32 {
                self.with_phone(index, ops, Phone::give_up_unsent);
            }
        }
        self.now_ns >= end_ns + self.orders.drain_ns + SETTLE_NS.max(self.orders.drain_ns) || self.nothing_left()
    }

    fn nothing_left(&self) -> bool {
        self.phones.iter().all(|line| line.phone.is_settled()) && {
            let mut tally = crate::tally::Counts::default();
            self.audit(&mut tally);
            tally.lost == 0
        }
    }

    fn audit(&self, counts: &mut crate::tally::Counts) {
        for pair in self.phones.chunks_exact(2) {
            audit(&pair[0].phone, &pair[1].phone, counts);
            audit(&pair[1].phone, &pair[0].phone, counts);
        }
    }

    fn hang_up(&mut self, ops: &mut Ops) {
        self.hung_up = true;
        // Counted before the phones forget what they wait for.
        let mut counts = self.tally.counts;
        self.audit(&mut counts);
        self.tally.counts = counts;
        for index in 0..self.phones.len() as u32 {
            self.with_phone(index, ops, Phone::hang_up);
        }
        self.send(ops);
    }

    fn flush_acks(&mut self) {
        if let Some(acks) = &mut self.orders.acks
            && let Err(error) = acks.flush()
        {
            self.tally.error(&format!("the file of acknowledged messages cannot be written: {error}"));
        }
    }

    fn finish(mut self) -> Tally {
        self.flush_acks();
        self.tally
    }
}

/// On loopback every 10,000 connections come from an address of their own.
fn source(server: SocketAddr, index: u32) -> Option<SocketAddr> {
    let IpAddr::V4(address) = server.ip() else { return None };
    let number = index / CONNECTIONS_PER_SOURCE;
    let source = Ipv4Addr::new(127, 0, 1 + (number >> 8) as u8, 1 + (number & 0xff) as u8);
    address.is_loopback().then_some(SocketAddr::new(source.into(), 0))
}

/// Deadlines to a few milliseconds. A phone may be in it more than once; looking too often does no harm.
struct Wheel {
    slots: Vec<Vec<u32>>,
    /// The slot that is looked at next, counted from the beginning of the run.
    next: u64,
    due: Vec<u32>,
}

impl Wheel {
    const SLOT_NS: u64 = 8_000_000;
    const SLOTS: u64 = 8_192;

    fn new() -> Self {
        Self { slots: vec![Vec::new(); Self::SLOTS as usize], next: 0, due: Vec::new() }
    }

    fn next_at(&self) -> u64 {
        self.next * Self::SLOT_NS
    }

    fn add(&mut self, index: u32, at_ns: u64) {
        if at_ns == u64::MAX {
            return;
        }
        // What lies beyond the wheel is looked at when the wheel comes round, and put further then.
        let slot = at_ns.div_ceil(Self::SLOT_NS).clamp(self.next, self.next + Self::SLOTS - 1);
        self.slots[(slot % Self::SLOTS) as usize].push(index);
    }

    fn advance(&mut self, now_ns: u64, due: &mut Vec<u32>) {
        while self.next_at() <= now_ns {
            due.append(&mut self.slots[(self.next % Self::SLOTS) as usize]);
            self.next += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wheel_gives_each_back_in_its_time_and_the_distant_ones_early() {
        let mut wheel = Wheel::new();
        wheel.add(1, 0);
        wheel.add(2, 100_000_000);
        wheel.add(3, u64::MAX - 1);
        wheel.add(4, u64::MAX);
        let mut due = Vec::new();
        wheel.advance(0, &mut due);
        assert_eq!(due, [1]);
        wheel.advance(99_000_000, &mut due);
        assert_eq!(due, [1]);
        wheel.advance(104_000_000, &mut due);
        assert_eq!(due, [1, 2]);
        wheel.advance(Wheel::SLOTS * Wheel::SLOT_NS, &mut due);
        assert_eq!(due, [1, 2, 3]);
    }

    #[test]
    fn loopback_connections_come_from_many_addresses() {
        let server = "127.0.0.1:8800".parse().unwrap();
        let text = |index| source(server, index).unwrap().to_string();
        assert_eq!((text(9_999), text(10_000)), ("127.0.1.1:0".to_owned(), "127.0.1.2:0".to_owned()));
        assert_eq!(source("192.0.2.1:80".parse().unwrap(), 1), None);
    }
}
