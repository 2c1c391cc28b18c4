//! Many connections to one server, over as many rings as it takes, in one thread: the other end of a probe.

use std::cell::Cell;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use ring::{Connection, Doorbell, Event, EventBatch, KernelRing, Op, Ops, RingConfig};
use serde::{Deserialize, Serialize};

use crate::cpu::by_thread;
use crate::others::{Census, Shares};
use crate::server::{Process, Trouble, family_cpu_ns, softirq_ns};
use loadgen::run::cpu_seconds;

/// Connections of one ring. Its table may hold as many as a process may have descriptors, and a tenth is kept
/// free.
pub const PER_RING: u32 = 17_000;
/// Slots of a ring that serves so many.
pub const SLOTS: u32 = 18_900;

/// Connections that may be under way at once.
const CONNECTING_MAX: u32 = 512;
/// Few ports of each source address: with two thirds of them used, connecting becomes slow.
const PER_SOURCE: u32 = 4_000;

/// What a connection has come to.
pub enum News<'a> {
    Connected,
    /// Bytes, which may be read in place.
    Heard(&'a mut [u8]),
    Closed,
}

/// What is to be sent; buffers are used again.
#[derive(Default)]
pub struct Outbox {
    due: Vec<(u32, Vec<u8>)>,
    spare: Vec<Vec<u8>>,
}

impl Outbox {
    /// One word to the server from one connection.
    pub fn say(&mut self, who: u32, word: &[u8]) {
        self.say_with(who, |buffer| buffer.extend_from_slice(word));
    }

    /// The same, written in place.
    pub fn say_with(&mut self, who: u32, write: impl FnOnce(&mut Vec<u8>)) {
        let mut buffer = self.spare.pop().unwrap_or_default();
        write(&mut buffer);
        self.due.push((who, buffer));
    }
}

struct Part {
    ring: KernelRing,
    events: EventBatch,
    ops: Ops,
    /// Whose a slot is.
    owners: Vec<u32>,
}

/// The connections.
pub struct Crowd {
    parts: Vec<Part>,
    lines: Vec<Option<Connection>>,
    /// Whose last send the kernel has not taken yet.
    sending: Vec<bool>,
    pub outbox: Outbox,
    /// Sends that the kernel has not taken yet.
    unsent: u32,
    pub connected: u32,
}

/// Where connection `who` goes to and where it comes from.
pub type Reach<'a> = &'a dyn Fn(u32) -> (SocketAddr, Option<SocketAddr>);

/// All to one address; beyond what one source address should carry, from many.
pub fn to_one(server: SocketAddr) -> impl Fn(u32) -> (SocketAddr, Option<SocketAddr>) {
    move |who| {
        let source = (who >= PER_SOURCE).then(|| source(100, who / PER_SOURCE));
        (server, source.filter(|_| server.ip().is_loopback()))
    }
}

/// Spread over the rings of a raw server, [`PER_RING`] each.
pub fn to_rings(server: SocketAddr) -> impl Fn(u32) -> (SocketAddr, Option<SocketAddr>) {
    move |who| {
        let address = crate::raw::server::address_of(server, who / PER_RING);
        (address, Some(source(101, who % PER_RING / PER_SOURCE)))
    }
}

fn source(net: u8, number: u32) -> SocketAddr {
    SocketAddr::new(IpAddr::from([127, net, (number / 250) as u8, (number % 250 + 1) as u8]), 0)
}

impl Crowd {
    /// Room for `count` connections.
    pub fn new(count: u32) -> Result<Self, Trouble> {
        let rings = count.div_ceil(PER_RING).max(1);
        let per_ring = count.min(PER_RING);
        let config = if rings == 1 {
            RingConfig { completions: 16_384, receive_buffers: 4_096, ..RingConfig::default() }
        } else {
            RingConfig { submissions: 256, completions: 1_024, receive_buffers: 512, ..RingConfig::default() }
        };
        let connections_max = (per_ring + per_ring / 10 + 16).min(SLOTS);
        let config = RingConfig { connections_max, receive_buffer_bytes: 1_024, ..config };
        let part = |_| -> Result<Part, Trouble> {
            Ok(Part {
                ring: KernelRing::new(&config, Doorbell::new()?)?,
                events: EventBatch::with_capacity(1_024, 1 << 17),
                ops: Ops::with_capacity(1_024),
                owners: vec![u32::MAX; config.connections_max as usize],
            })
        };
        Ok(Self {
            parts: (0..rings).map(part).collect::<Result<_, _>>()?,
            lines: vec![None; count as usize],
            sending: vec![false; count as usize],
            outbox: Outbox::default(),
            unsent: 0,
            connected: 0,
        })
    }

    /// How many there are to be.
    pub fn len(&self) -> u32 {
        self.lines.len() as u32
    }

    /// Whether there are none to be.
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// Connects all, in order, a window of them at once. `react` hears what comes meanwhile.
    pub fn connect(
        &mut self,
        reach: Reach<'_>,
        react: impl FnMut(u32, News<'_>, &mut Outbox) -> Result<(), Trouble>,
    ) -> Result<(), Trouble> {
        self.connect_until(None, reach, react)
    }

    /// The same, where a connection leaves the window only when it is among those that are `through`: the kernel connects
    /// without the server, which would be left with all of them at once, each with a deadline.
    pub fn connect_until(
        &mut self,
        through: Option<&Cell<u32>>,
        reach: Reach<'_>,
        mut react: impl FnMut(u32, News<'_>, &mut Outbox) -> Result<(), Trouble>,
    ) -> Result<(), Trouble> {
        let (mut next, mut said, begun) = (0_u32, Instant::now(), Instant::now());
        while self.connected < self.len() {
            let through = through.map_or(self.connected, Cell::get);
            while next < self.len() && next.saturating_sub(through) < CONNECTING_MAX {
                let (address, source) = reach(next);
                let part = &mut self.parts[(next / PER_RING) as usize];
                part.ops.push(Op::Connect { token: u64::from(next), address, source });
                next += 1;
            }
            self.turn(Duration::from_millis(20), &mut react)?;
            if said.elapsed() > Duration::from_secs(5) {
                said = Instant::now();
                eprintln!("  {} of {} connected", self.connected, self.len());
            }
            if begun.elapsed() > Duration::from_mins(4) {
                return Err(format!("only {} of {} connected within 4 minutes", self.connected, self.len()).into());
            }
        }
        Ok(())
    }

    /// Sends what is due, waits a while for news at most, and tells of it. Says how much there was.
    pub fn turn(
        &mut self,
        patience: Duration,
        mut react: impl FnMut(u32, News<'_>, &mut Outbox) -> Result<(), Trouble>,
    ) -> Result<usize, Trouble> {
        // A ring takes one send of a connection at a time.
        for (who, buffer) in std::mem::take(&mut self.outbox.due) {
            let part = &mut self.parts[(who / PER_RING) as usize];
            match self.lines[who as usize] {
                Some(_) if self.sending[who as usize] => self.outbox.due.push((who, buffer)),
                Some(connection) => {
                    part.ops.push(Op::Send { connection, buffer });
                    self.sending[who as usize] = true;
                    self.unsent += 1;
                }
                None => {}
            }
        }
        let alone = self.parts.len() == 1;
        let mut news = 0;
        for part in &mut self.parts {
            part.ring.submit(&mut part.ops);
            part.ring.wait(Some(if alone { patience } else { Duration::ZERO }), &mut part.events)?;
            news += part.events.len();
            while let Some(event) = part.events.pop() {
                let owner = |connection: Connection| part.owners[connection.slot() as usize];
                match event {
                    Event::Connected { connection, token } => {
                        let who = token as u32;
                        part.owners[connection.slot() as usize] = who;
                        self.lines[who as usize] = Some(connection);
                        self.connected += 1;
                        react(who, News::Connected, &mut self.outbox)?;
                    }
                    Event::Received { connection, range } => {
                        react(owner(connection), News::Heard(part.events.data_mut(range)), &mut self.outbox)?;
                    }
                    Event::Sent { connection, mut buffer } => {
                        self.unsent -= 1;
                        self.sending[owner(connection) as usize] = false;
                        buffer.clear();
                        self.outbox.spare.push(buffer);
                    }
                    Event::Eof { connection } => part.ops.push(Op::Close { connection }),
                    Event::Closed { connection, buffer, .. } => {
                        self.unsent -= u32::from(buffer.is_some());
                        let who = owner(connection);
                        self.lines[who as usize] = None;
                        self.sending[who as usize] = false;
                        self.connected -= 1;
                        react(who, News::Closed, &mut self.outbox)?;
                    }
                    Event::ConnectFailed { error, .. } => return Err(format!("cannot connect: {error:?}").into()),
                    _ => {}
                }
            }
        }
        if news == 0 && !alone {
            std::thread::sleep(patience.min(Duration::from_millis(1)));
        }
        Ok(news)
    }

    /// Until the kernel has taken everything that was said.
    pub fn flush(&mut self) -> Result<(), Trouble> {
        let begun = Instant::now();
        while self.unsent > 0 || !self.outbox.due.is_empty() {
            self.turn(Duration::from_millis(1), |_, news, _| match news {
                News::Closed => Err("the server hung up".into()),
                _ => Ok(()),
            })?;
            if begun.elapsed() > Duration::from_secs(30) {
                return Err("what was said does not leave".into());
            }
        }
        Ok(())
    }

    /// Cuts all off, and waits until they are gone.
    pub fn cut(&mut self) -> Result<(), Trouble> {
        for (who, line) in self.lines.iter().enumerate() {
            if let Some(connection) = *line {
                self.parts[who / PER_RING as usize].ops.push(Op::Reset { connection });
            }
        }
        let begun = Instant::now();
        while self.connected > 0 {
            self.turn(Duration::from_millis(20), |_, _, _| Ok(()))?;
            if begun.elapsed() > Duration::from_mins(1) {
                return Err("the connections do not end".into());
            }
        }
        Ok(())
    }
}

/// Fails when something has taken too long; the time that anything takes is not judged.
pub struct Deadline(Instant);

impl Deadline {
    pub fn seconds(seconds: u64) -> Self {
        Self(Instant::now() + Duration::from_secs(seconds))
    }

    /// Whether there is time left; what for, if not.
    pub fn check(&self, what: impl FnOnce() -> String) -> Result<(), Trouble> {
        if Instant::now() > self.0 { Err(what().into()) } else { Ok(()) }
    }
}

/// A stretch of time in which processor time is counted.
pub struct Stretch {
    servers: Vec<u32>,
    /// Whose time is nobody's else, though it is not the server's.
    beside: Vec<u32>,
    all: Census,
    counters: Counters,
}

/// At a moment.
struct Counters {
    at: Instant,
    server_ns: u64,
    threads: Vec<(String, u64)>,
    client_s: f64,
}

impl Counters {
    fn now(servers: &[u32]) -> Self {
        // The server is on core 0, the client on core 1, each with the kernel's thread for its network work.
        let softirq = softirq_ns(0);
        let mut threads: Vec<_> = servers.iter().flat_map(|server| by_thread(*server)).collect();
        threads.push(("ksoftirqd".to_owned(), softirq));
        Self {
            at: Instant::now(),
            server_ns: servers.iter().copied().map(family_cpu_ns).sum::<u64>() + softirq,
            threads,
            client_s: cpu_seconds() + softirq_ns(1) as f64 / 1e9,
        }
    }
}

/// What was spent in it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Spent {
    pub seconds: f64,
    pub server_ns: u64,
    /// The server's threads apart, by name.
    pub threads: Vec<(String, u64)>,
    pub client_ns: u64,
    pub shares: Shares,
}

impl Spent {
    /// Together with another stretch; threads are not told apart any more.
    pub fn add(&mut self, more: &Self) {
        self.seconds += more.seconds;
        self.server_ns += more.server_ns;
        self.threads.clear();
        self.client_ns += more.client_ns;
        // Each counts as long as it took.
        let part = more.seconds / self.seconds;
        self.shares.others += (more.shares.others - self.shares.others) * part;
        self.shares.kernel += (more.shares.kernel - self.shares.kernel) * part;
    }
}

impl Stretch {
    /// From now on.
    pub fn begin(server: &Process) -> Self {
        Self::of(&[server.id()])
    }

    /// Of a server's processes, with those that come from them.
    pub fn of(servers: &[u32]) -> Self {
        let all = Census::now();
        Self { servers: servers.to_vec(), beside: Vec::new(), all, counters: Counters::now(servers) }
    }

    /// Another process that belongs to the measurement.
    #[must_use]
    pub fn beside(mut self, process: u32) -> Self {
        self.beside.push(process);
        self
    }

    /// Until now. Everybody is counted before the beginning and after the end, which costs this process some time.
    pub fn end(&self) -> Spent {
        let (now, was) = (Counters::now(&self.servers), &self.counters);
        let own = [&self.servers[..], &self.beside].concat();
        let before = |name: &str| was.threads.iter().find(|(other, _)| other == name).map_or(0, |(_, ns)| *ns);
        let threads = now.threads.iter().map(|(name, ns)| (name.clone(), ns.saturating_sub(before(name)))).collect();
        Spent {
            seconds: (now.at - was.at).as_secs_f64(),
            server_ns: now.server_ns.saturating_sub(was.server_ns),
            threads,
            client_ns: ((now.client_s - was.client_s) * 1e9) as u64,
            shares: Census::now().since(&self.all, &own),
        }
    }
}

/// Stops a server's process, so that what is sent to it waits in its sockets, or lets it go on.
pub fn stop(server: &Process, stop: bool) {
    let signal = if stop { libc::SIGSTOP } else { libc::SIGCONT };
    // SAFETY: the call takes no pointers; the process is our child, which is not reaped before it is dropped.
    unsafe { libc::kill(server.id() as libc::pid_t, signal) };
    if stop {
        let stat = format!("/proc/{}/stat", server.id());
        let is_stopped = || std::fs::read_to_string(&stat).is_ok_and(|text| text.contains(") T "));
        for _ in 0..1_000 {
            if is_stopped() {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
