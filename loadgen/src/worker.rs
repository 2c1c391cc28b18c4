//! One thread of simulated users: rings, a schedule and a wheel of deadlines.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use ring::{Connection, Doorbell, Event, EventBatch, KernelRing, Op, Ops, RingConfig};
use wire::ids::UserId;

use crate::acks::AckWriter;
use crate::body::STAMP_BYTES;
use crate::client::{Account, Around, Client, Habits, Part, Want};
use crate::credentials::Tokens;
use crate::disturbance::{self, Act, Disturbance};
use crate::link::{Ending, MS};
use crate::openings::{Openings, Standing, in_words};
use crate::process;
use crate::random::Random;
use crate::scenario::{Proxy, Scenario};
use crate::tally::Tally;
use crate::target::Target;
use crate::tls::{Session, Tls};
use crate::traffic::{Due, Record, Recorded, Share, Traffic, peer};
use crate::wheel::Wheel;

mod ending;

/// Nobody.
const NOBODY: u32 = u32::MAX;
/// How often each ring has a turn, whether or not it asks for one.
const ALL_EVERY_NS: u64 = 100 * MS;
/// How often the books are looked at, whether all has arrived.
const AUDIT_EVERY_NS: u64 = 20 * MS;

/// What one thread is to do.
pub(crate) struct Orders {
    pub number: u32,
    pub scenario: Arc<Scenario>,
    pub habits: Habits,
    pub tokens: Arc<Tokens>,
    pub target: Arc<Target>,
    pub tls: Option<Tls>,
    /// Its users; those who only talk among themselves are never split over threads.
    pub share: Share,
    pub recorded: Option<Recorded>,
    pub record: Option<Record>,
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
    /// With partners on another machine: what to add to the times of their run to have them in this one's. Known before
    /// `start_ns` is.
    pub partner_ahead_ns: AtomicI64,
    /// To end early.
    pub stop: AtomicBool,
    /// Not to end although all is settled: others are not.
    pub hold: AtomicBool,
    /// Which burst is asked for: one message into each open session.
    pub burst: AtomicU32,
    /// Grow by one with each burst of each thread: when the kernel has taken it, and when all of it has its answer and
    /// its receiver.
    pub burst_taken: AtomicU64,
    pub burst_done: AtomicU64,
}

/// What a thread says each second.
pub(crate) struct Progress {
    pub worker: u32,
    /// Of the last second.
    pub tally: Tally,
    pub open: u32,
    pub was_open: u32,
    /// Nothing is missing, as far as this thread knows.
    pub settled: bool,
    /// Of another process, since it began; 0 for a thread of this one.
    pub cpu_seconds: f64,
}

/// What a thread leaves behind: what it measured since its last report, and accounts with users elsewhere.
pub(crate) struct Ended {
    pub tally: Tally,
    pub abroad: Vec<Account>,
}

/// Runs one thread to its end.
pub(crate) fn run<C: Client>(orders: Orders) -> Result<Ended, ring::RingError> {
    let tables = orders.share.users.div_ceil(orders.scenario.sessions.table).max(1);
    let each = orders.share.users.div_ceil(tables);
    let mut rings: Vec<KernelRing> = Vec::new();
    for _ in 0..tables {
        let config = RingConfig {
            // A tenth of each table stays free: slots are given back late, and a storm takes many at once.
            connections_max: (each + each / 9 + 16).min(19_900),
            // One ring may have it all; many share what memory there is.
            completions: if tables == 1 { 16_384 } else { 4_096 },
            receive_buffers: if tables == 1 { 2_048 } else { 128 },
            ..RingConfig::default()
        };
        let mut ring = KernelRing::new(&config, Doorbell::new()?)?;
        if let Some(first) = rings.first() {
            ring.announce_at(first.doorbell())?;
        }
        rings.push(ring);
    }
    Worker::<C>::new(rings, each, orders).run()
}

struct Worker<C> {
    rings: Vec<KernelRing>,
    /// What is to be done on each ring.
    ops: Vec<Ops>,
    /// Users on each ring.
    each: u32,
    orders: Orders,
    lines: Vec<Line<C>>,
    /// Whose a slot of a ring is.
    owners: Vec<Vec<u32>>,
    /// Those with something to send.
    talkative: Vec<u32>,
    /// Buffers that nobody needs at the moment.
    buffers: Vec<Vec<u8>>,
    wheel: Wheel,
    /// Until when slow readers have read what they got, and whom to let read again, the first on top.
    slow: HashMap<u32, u64>,
    pauses: BinaryHeap<Reverse<(u64, u32)>>,
    traffic: Option<Traffic>,
    disturbance: Option<Disturbance>,
    /// Since the last report.
    tally: Tally,
    /// Acknowledged before that.
    acked: u64,
    openings: Openings,
    repeat_in: u32,
    body: String,
    now_ns: u64,
    all_had_at: u64,
    reported_at: u64,
    flushed_at: u64,
    audited_at: u64,
    /// Bursts that were written, that the kernel has taken, and that are done with.
    bursts: [u32; 3],
    /// Accounts with users who are not here.
    abroad: Vec<Account>,
    settled: bool,
    hung_up: bool,
    /// Processor time of this thread when messages began to be due, and when that was.
    began: Option<(u64, u64)>,
    /// No more messages fall due.
    ended: bool,
    gave_up: bool,
    /// When it heard that it is to stop.
    stopped_at: Option<u64>,
}

/// A user and the line to the server.
struct Line<C> {
    client: C,
    connection: Option<Connection>,
    tls: Option<Box<Session>>,
    /// The wheel will look at it then.
    wheel_at: u64,
    part: Part,
    is_sending: bool,
    is_talkative: bool,
    is_paused: bool,
}

impl<C: Client> Worker<C> {
    fn new(rings: Vec<KernelRing>, each: u32, orders: Orders) -> Self {
        let mut wheel = Wheel::new();
        let share = orders.share;
        let per_second = orders.scenario.sessions.connections_per_second;
        let line = |index: u32| {
            // Threads take turns, so that the rate is even whoever has how many.
            let order = f64::from(index) * f64::from(share.of) / f64::from(share.users);
            let start_ns = (order / per_second * 1e9) as u64;
            Line {
                client: C::new(user_of(&orders, index), start_ns),
                connection: None,
                tls: None,
                wheel_at: start_ns,
                part: if share.is_abroad(index) {
                    Part::Abroad
                } else {
                    disturbance::part(&orders.scenario, share.first_place + index)
                },
                is_sending: false,
                is_talkative: false,
                is_paused: false,
            }
        };
        let lines: Vec<_> = (0..share.users).map(line).collect();
        for (index, line) in lines.iter().enumerate() {
            wheel.add(index as u32, line.wheel_at);
        }
        Self {
            ops: rings.iter().map(|_| Ops::with_capacity(1_024)).collect(),
            owners: rings.iter().map(|_| Vec::new()).collect(),
            rings,
            each,
            lines,
            talkative: Vec::new(),
            buffers: Vec::new(),
            wheel,
            slow: HashMap::new(),
            pauses: BinaryHeap::new(),
            traffic: None,
            disturbance: None,
            tally: Tally::default(),
            acked: 0,
            openings: Openings::new(
                orders.scenario.sessions.under_way.div_ceil(orders.scenario.sessions.threads).max(1),
            ),
            repeat_in: crate::drivers::ringway::REPEAT_EVERY,
            body: String::with_capacity(orders.habits.payload_bytes.max(STAMP_BYTES)),
            now_ns: 0,
            all_had_at: 0,
            reported_at: 0,
            flushed_at: 0,
            audited_at: 0,
            bursts: [0; 3],
            abroad: Vec::new(),
            settled: false,
            hung_up: false,
            began: None,
            ended: false,
            gave_up: false,
            stopped_at: None,
            orders,
        }
    }

    fn run(mut self) -> Result<Ended, ring::RingError> {
        let mut events = EventBatch::with_capacity(4_096, 1 << 20);
        let mut over_at = None;
        loop {
            // Now and then all have a turn, if only to see which connections have gone quiet.
            let all = self.now_ns >= self.all_had_at + ALL_EVERY_NS;
            if all {
                self.all_had_at = self.now_ns;
            }
            for ring in 0..self.rings.len() {
                if ring > 0 && !all && !self.rings[ring].has_work() {
                    continue;
                }
                // The first is slept in, and the others ring its bell; what they have to tell the kernel goes first.
                let sleeps = ring == 0 && !self.rings[1..].iter_mut().any(KernelRing::has_work);
                let patience = if sleeps { self.patience() } else { Duration::ZERO };
                self.rings[ring].wait(Some(patience), &mut events)?;
                self.look_at_the_clock();
                while let Some(event) = events.pop() {
                    self.handle(ring, event, &mut events);
                }
            }
            self.look_at_the_clock();
            self.disturb();
            self.write_due();
            self.burst();
            self.expire();
            self.send();
            self.submit();
            self.report();
            if over_at.is_none() && self.is_over() {
                self.hang_up();
                self.submit();
                over_at = Some(self.now_ns + 1_000 * MS);
            }
            if over_at.is_some_and(|at| at <= self.now_ns || self.rings.iter().all(|ring| ring.connections() == 0)) {
                return Ok(self.finish());
            }
        }
    }

    fn look_at_the_clock(&mut self) {
        self.now_ns = self.orders.clock.elapsed().as_nanos() as u64;
    }

    fn submit(&mut self) {
        for (ring, ops) in self.rings.iter_mut().zip(&mut self.ops) {
            ring.submit(ops);
        }
    }

    /// Until a message or a deadline is due; the wheel is coarse, and turns are shared.
    fn patience(&self) -> Duration {
        let due = self.traffic.as_ref().and_then(Traffic::next).unwrap_or(u64::MAX);
        let disturbance = self.disturbance.as_ref().and_then(Disturbance::next).unwrap_or(u64::MAX);
        let until = due.min(disturbance).min(self.wheel.next_at());
        Duration::from_nanos(until.saturating_sub(self.now_ns)).max(self.orders.scenario.traffic.tick.0)
    }

    fn ring_of(&self, index: u32) -> usize {
        (index / self.each) as usize
    }

    fn push(&mut self, index: u32, op: Op) {
        let ring = self.ring_of(index);
        self.ops[ring].push(op);
    }

    fn handle(&mut self, ring: usize, event: Event, events: &mut EventBatch) {
        match event {
            Event::Connected { connection, token } => self.connected(ring, connection, token as u32),
            Event::ConnectFailed { token, error } => self.with(token as u32, |client, around| {
                around.tally.error(&format!("connect: {}", in_words(error)));
                client.disconnected(around);
                Want::Nothing
            }),
            Event::Received { connection, range } => {
                let Some(index) = self.owner(ring, connection) else { return };
                // Each piece is read at a time of its own: a turn over thousands of them is long.
                self.look_at_the_clock();
                let bytes = events.data_mut(range);
                if self.lines[index as usize].part == Part::Slow {
                    self.slow_down(index, connection, bytes.len());
                }
                if self.lines[index as usize].tls.is_none() {
                    self.with(index, |client, around| client.received(bytes, around));
                } else {
                    self.received_sealed(index, bytes);
                }
            }
            Event::Sent { connection, buffer } => {
                self.keep(buffer);
                let Some(index) = self.owner(ring, connection) else { return };
                self.lines[index as usize].is_sending = false;
                self.note_talkative(index);
            }
            Event::Eof { connection } => self.ops[ring].push(Op::Close { connection }),
            Event::Closed { connection, buffer, .. } => {
                if let Some(buffer) = buffer {
                    self.keep(buffer);
                }
                let Some(index) = self.owner(ring, connection) else { return };
                self.owners[ring][connection.slot() as usize] = NOBODY;
                let line = &mut self.lines[index as usize];
                line.connection = None;
                line.tls = None;
                line.is_sending = false;
                line.is_paused = false;
                self.with(index, |client, around| {
                    client.disconnected(around);
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

    fn connected(&mut self, ring: usize, connection: Connection, index: u32) {
        let (slot, owners) = (connection.slot() as usize, &mut self.owners[ring]);
        if owners.len() <= slot {
            owners.resize(slot + 1, NOBODY);
        }
        owners[slot] = index;
        let line = &mut self.lines[index as usize];
        line.connection = Some(connection);
        line.is_sending = false;
        if self.hung_up {
            self.ops[ring].push(Op::Reset { connection });
            return;
        }
        if let Some(tls) = &self.orders.tls {
            match tls.session() {
                Ok(session) => line.tls = Some(session),
                Err(error) => self.tally.error(&error.to_string()),
            }
        }
        if self.orders.target.proxy != Proxy::None {
            // Ahead of TLS too: the proxy that a load balancer is does not take part in it.
            let mut buffer = self.buffers.pop().unwrap_or_default();
            self.orders.target.write_proxy_header(&mut buffer, self.orders.share.first_place + index);
            line.is_sending = true;
            self.ops[ring].push(Op::Send { connection, buffer });
        }
        self.with(index, C::connected);
    }

    fn received_sealed(&mut self, index: u32, bytes: &[u8]) {
        let mut plain = self.buffers.pop().unwrap_or_default();
        let session = self.lines[index as usize].tls.as_mut().expect("whoever asks has looked");
        match session.open(bytes, &mut plain) {
            Ok(()) => self.with(index, |client, around| client.received(&mut plain, around)),
            Err(error) => {
                self.tally.error(&format!("TLS: {error}"));
                self.with(index, |client, _| {
                    client.link_mut().break_off(None);
                    Want::Cut
                });
            }
        }
        self.keep(plain);
    }

    fn keep(&mut self, mut buffer: Vec<u8>) {
        buffer.clear();
        self.buffers.push(buffer);
    }

    fn owner(&self, ring: usize, connection: Connection) -> Option<u32> {
        let index = *self.owners[ring].get(connection.slot() as usize)?;
        let is_its = index != NOBODY && self.lines[index as usize].connection == Some(connection);
        is_its.then_some(index)
    }

    /// A slow reader has got so much: it reads on when it is through with that.
    fn slow_down(&mut self, index: u32, connection: Connection, bytes: usize) {
        /// What is shorter than this is not worth a pause.
        const WORTH_NS: u64 = 20 * MS;
        let Some(slow) = &self.orders.scenario.slow_readers else { return };
        let took_ns = bytes as u64 * 1_000_000_000 / u64::from(slow.bytes_per_second);
        let through_at = self.slow.entry(index).or_default();
        *through_at = (*through_at).max(self.now_ns) + took_ns;
        let through_at = *through_at;
        let line = &mut self.lines[index as usize];
        if through_at > self.now_ns + WORTH_NS && !line.is_paused && line.client.link().is_open() {
            line.is_paused = true;
            self.pauses.push(Reverse((through_at, index)));
            self.push(index, Op::PauseReceive { connection });
        }
    }

    fn end_pauses(&mut self) {
        while self.pauses.peek().is_some_and(|Reverse((at, _))| *at <= self.now_ns) {
            let Some(Reverse((_, index))) = self.pauses.pop() else { return };
            let through_at = self.slow.get(&index).copied().unwrap_or(0);
            if through_at > self.now_ns {
                // More came that had been on its way already.
                self.pauses.push(Reverse((through_at, index)));
                continue;
            }
            let line = &mut self.lines[index as usize];
            if std::mem::take(&mut line.is_paused)
                && let Some(connection) = line.connection
            {
                self.push(index, Op::ResumeReceive { connection });
            }
        }
    }

    /// Lets a user do something, and does what it wants.
    fn with(&mut self, index: u32, act: impl FnOnce(&mut C, &mut Around<'_>) -> Want) {
        let line = &mut self.lines[index as usize];
        let place = self.orders.share.first_place + index;
        let mut around = Around {
            now_ns: self.now_ns,
            habits: &self.orders.habits,
            tokens: &self.orders.tokens,
            place,
            part: line.part,
            partner_ahead_ns: self.orders.phase.partner_ahead_ns.load(Ordering::Relaxed),
            disturbed: self.disturbance.as_ref().is_some_and(|disturbance| disturbance.has_begun),
            random: &mut self.orders.random,
            tally: &mut self.tally,
            acks: self.orders.acks.as_mut(),
            repeat_in: &mut self.repeat_in,
            body: &mut self.body,
        };
        let before = Standing::of(line.client.link());
        let want = act(&mut line.client, &mut around);
        self.openings.changed(before, Standing::of(line.client.link()));
        let connection = line.connection;
        let wakes_at = line.client.wakes_at();
        if wakes_at < line.wheel_at {
            line.wheel_at = wakes_at;
            self.wheel.add(index, wakes_at);
        }
        match (want, connection) {
            (Want::Connect, _) => {
                let (address, source) = (self.orders.target.address, self.orders.target.source(place));
                self.push(index, Op::Connect { token: u64::from(index), address, source });
            }
            // What is being connected still will end by itself, in success or failure.
            (Want::Cut, Some(connection)) => self.push(index, Op::Reset { connection }),
            (Want::Cut, None) | (Want::Nothing, _) => {}
        }
        self.note_talkative(index);
    }

    fn note_talkative(&mut self, index: u32) {
        let line = &mut self.lines[index as usize];
        let wants = !line.client.link().out.is_empty() || line.tls.as_ref().is_some_and(|tls| tls.wants_write());
        if wants && !line.is_sending && !line.is_talkative {
            line.is_talkative = true;
            self.talkative.push(index);
        }
    }

    /// What messages and disturbances there will be, once it is known when they begin.
    fn begin(&mut self) -> bool {
        if self.traffic.is_some() {
            return true;
        }
        let start_ns = self.orders.phase.start_ns.load(Ordering::Acquire);
        if start_ns == 0 {
            return false;
        }
        let (scenario, share) = (&self.orders.scenario, self.orders.share);
        let recorded = self.orders.recorded.as_deref().map(Vec::as_slice);
        self.began = Some((process::thread_cpu_ns(), self.now_ns));
        let mut random = || Random::new(self.orders.random.draw(), 1);
        self.disturbance = Some(Disturbance::new(scenario, share.part(), start_ns, random()));
        self.traffic = Some(Traffic::new(scenario, share, recorded, start_ns, random()));
        true
    }

    /// Everything that fell due since the last turn.
    fn write_due(&mut self) {
        if self.hung_up || self.stopped_at.is_some() || !self.begin() {
            return;
        }
        let start_ns = self.orders.phase.start_ns.load(Ordering::Acquire);
        while let Some(Due { at_ns, from, to }) = self.traffic.as_mut().and_then(|traffic| traffic.due(self.now_ns)) {
            self.tally.schedule.record(self.now_ns - at_ns);
            let (from, to) = self.somebody_there(from, to);
            if let Some(record) = &mut self.orders.record {
                let first = self.orders.share.first_place;
                record.note(at_ns - start_ns, first + from, first.wrapping_add(to));
            }
            self.write(at_ns, from, to);
        }
    }

    fn write(&mut self, due_ns: u64, from: u32, to: u32) {
        let to = self.orders.share.abroad_peer(from).unwrap_or_else(|| user_of(&self.orders, to));
        self.with(from, |client, around| {
            client.write_message(to, due_ns, around);
            Want::Nothing
        });
    }

    /// Who is away on purpose writes nothing: his partner does.
    fn somebody_there(&self, from: u32, to: u32) -> (u32, u32) {
        let is_away =
            |index: u32| self.lines.get(index as usize).is_some_and(|line| line.client.link().absent.1 > self.now_ns);
        let partner = from ^ 1;
        if is_away(from) && !is_away(partner) && (partner as usize) < self.lines.len() {
            (partner, from)
        } else {
            (from, to)
        }
    }

    /// One message into each open session, when that is asked for.
    fn burst(&mut self) {
        let asked = self.orders.phase.burst.load(Ordering::Acquire);
        if asked == 0 {
            return;
        }
        let [written, taken, done] = self.bursts;
        if asked != written {
            self.bursts[0] = asked;
            for index in 0..self.lines.len() as u32 {
                if self.lines[index as usize].client.link().is_open() {
                    self.write(self.now_ns, index, peer(index, 1));
                }
            }
        } else if asked != taken {
            if !self.lines.iter().any(|line| line.is_sending || line.is_talkative) {
                self.bursts[1] = asked;
                self.orders.phase.burst_taken.fetch_add(1, Ordering::Release);
            }
        } else if asked != done && self.now_ns >= self.audited_at + AUDIT_EVERY_NS {
            self.audited_at = self.now_ns;
            if self.lines.iter().all(|line| line.client.is_settled()) && self.lost() == 0 {
                self.bursts[2] = asked;
                self.orders.phase.burst_done.fetch_add(1, Ordering::Release);
            }
        }
    }

    /// Does to users what the scenario says.
    fn disturb(&mut self) {
        self.end_pauses();
        while let Some(act) = self.disturbance.as_mut().and_then(|disturbance| disturbance.due(self.now_ns)) {
            match act {
                Act::Storm { jitter_ns } => {
                    self.send_away(disturbance::is_in_storms, self.now_ns, jitter_ns, Ending::Storm);
                }
                Act::GoOffline { until_ns, jitter_ns } => {
                    self.send_away(disturbance::goes_offline, until_ns, jitter_ns, Ending::InOrder);
                }
                Act::Churn { away_ns, in_order } => {
                    let index = self.orders.random.below(self.lines.len() as u64) as u32;
                    let ending = if in_order { Ending::InOrder } else { Ending::Reset };
                    let until_ns = self.now_ns + away_ns;
                    // Who is away already does not leave once more.
                    if self.lines[index as usize].client.link().is_open() {
                        self.with(index, |client, around| client.leave(until_ns, ending, around));
                    }
                }
            }
        }
    }

    fn send_away(&mut self, whom: fn(&Scenario, u32) -> bool, until_ns: u64, jitter_ns: u64, ending: Ending) {
        for index in 0..self.lines.len() as u32 {
            if whom(&self.orders.scenario, self.orders.share.first_place + index) {
                let until_ns = until_ns + self.orders.random.below(jitter_ns);
                self.with(index, |client, around| client.leave(until_ns, ending, around));
            }
        }
    }

    fn expire(&mut self) {
        let mut due = std::mem::take(&mut self.wheel.due);
        self.wheel.advance(self.now_ns, &mut due);
        for index in due.drain(..) {
            let line = &mut self.lines[index as usize];
            line.wheel_at = u64::MAX;
            if !self.openings.postpones(index, line.client.link()) {
                self.with(index, C::tick);
            }
        }
        self.wheel.due = due;
        while let Some(index) = self.openings.next() {
            self.with(index, C::tick);
        }
    }

    fn send(&mut self) {
        let mut talkative = std::mem::take(&mut self.talkative);
        for index in talkative.drain(..) {
            let line = &mut self.lines[index as usize];
            line.is_talkative = false;
            let out = &mut line.client.link_mut().out;
            if let Some(connection) = line.connection.filter(|_| !line.is_sending) {
                let mut buffer = self.buffers.pop().unwrap_or_default();
                match &mut line.tls {
                    None => std::mem::swap(out, &mut buffer),
                    Some(tls) => {
                        if let Err(error) = tls.seal(out, &mut buffer) {
                            self.tally.error(&format!("TLS: {error}"));
                        }
                    }
                }
                if buffer.is_empty() {
                    self.buffers.push(buffer);
                } else {
                    line.is_sending = true;
                    self.tally.counts.bytes_out += buffer.len() as u64;
                    self.push(index, Op::Send { connection, buffer });
                }
            }
            // Who has nothing to say keeps no buffer.
            let out = &mut self.lines[index as usize].client.link_mut().out;
            if out.is_empty() && out.capacity() > 0 {
                self.buffers.push(std::mem::take(out));
            }
        }
        self.talkative = talkative;
    }

    fn report(&mut self) {
        const EVERY_NS: u64 = 1_000 * MS;
        const FLUSH_NS: u64 = 5 * MS;
        if self.now_ns >= self.flushed_at + FLUSH_NS {
            self.flushed_at = self.now_ns;
            self.flush_files();
        }
        // Who has hung up has none open, and what is left comes back at the end.
        if self.hung_up || self.now_ns < self.reported_at + EVERY_NS {
            return;
        }
        self.reported_at = self.now_ns;
        self.acked += self.tally.counts.acked;
        let tally = std::mem::take(&mut self.tally);
        let (Openings { open, was_open, .. }, worker, settled) = (&self.openings, self.orders.number, self.settled);
        let progress = Progress { worker, tally, open: *open, was_open: *was_open, settled, cpu_seconds: 0.0 };
        // Whoever listened may have gone first.
        let _ = self.orders.progress.send(progress);
    }

    fn flush_files(&mut self) {
        let acks = self.orders.acks.as_mut().map(AckWriter::flush);
        let record = self.orders.record.as_mut().map(Record::flush);
        for (what, written) in [("the file of acknowledged messages", acks), ("the record", record)] {
            if let Some(Err(error)) = written {
                self.tally.counts.unwritten += 1;
                self.tally.error(&format!("{what} cannot be written: {error}"));
            }
        }
    }
}

/// The user at a place among a thread's, or beside them.
fn user_of(orders: &Orders, index: u32) -> UserId {
    orders.tokens.user(orders.share.first_place.wrapping_add(index), orders.scenario.sessions.first_user)
}
