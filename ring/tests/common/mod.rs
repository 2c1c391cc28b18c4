//! A ring with the smallest possible shard on top, and peers made of ordinary sockets.

#![allow(dead_code, reason = "each test program uses its part")]

use std::collections::{HashMap, HashSet};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use ring::{CloseReason, Connection, Doorbell, Event, EventBatch, KernelRing, Op, Ops, RingConfig};

/// How long a test waits for what must happen before it says that it did not.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) fn loopback() -> SocketAddr {
    "127.0.0.1:0".parse().expect("a literal address")
}

/// Small limits, so that the tests live at the edges.
pub(crate) fn small(connections_max: u32) -> RingConfig {
    RingConfig {
        connections_max,
        submissions: 64,
        completions: 128,
        receive_buffers: 16,
        receive_buffer_bytes: 256,
        ..RingConfig::default()
    }
}

/// Echoes if told to, and keeps what happened for the test to look at.
pub(crate) struct Shard {
    pub(crate) ring: KernelRing,
    pub(crate) address: SocketAddr,
    pub(crate) echo: bool,
    pub(crate) events: EventBatch,
    pub(crate) ops: Ops,
    pub(crate) accepted: Vec<Connection>,
    pub(crate) received: HashMap<Connection, Vec<u8>>,
    pub(crate) ended: Vec<Connection>,
    pub(crate) sent: Vec<(Connection, usize)>,
    pub(crate) closed: Vec<(Connection, CloseReason)>,
    pub(crate) progress: u64,
    pub(crate) doorbells: u64,
    pub(crate) connected: Vec<(u64, Connection)>,
    pub(crate) failed: Vec<(u64, ring::ConnectError)>,
    pub(crate) pauses: u32,
    pub(crate) resumes: u32,
    pub(crate) turns: u64,
    queued: HashMap<Connection, Vec<u8>>,
    sending: HashSet<Connection>,
}

impl Shard {
    pub(crate) fn new(config: &RingConfig) -> Self {
        let mut ring = KernelRing::new(config, Doorbell::new().expect("a doorbell")).expect("a ring");
        let (_, address) = ring.listen(loopback()).expect("a listener");
        Self {
            ring,
            address,
            echo: false,
            events: EventBatch::default(),
            ops: Ops::default(),
            accepted: Vec::new(),
            received: HashMap::new(),
            ended: Vec::new(),
            sent: Vec::new(),
            closed: Vec::new(),
            progress: 0,
            doorbells: 0,
            connected: Vec::new(),
            failed: Vec::new(),
            pauses: 0,
            resumes: 0,
            turns: 0,
            queued: HashMap::new(),
            sending: HashSet::new(),
        }
    }

    pub(crate) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).expect("a connection");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream
    }

    /// One turn of the loop that a driver runs.
    pub(crate) fn turn(&mut self, timeout: Duration) {
        self.turns += 1;
        self.ring.wait(Some(timeout), &mut self.events).expect("a wait");
        while let Some(event) = self.events.pop() {
            self.handle(event);
        }
        if self.echo {
            self.flush();
        }
        self.ring.submit(&mut self.ops);
    }

    /// Runs until the condition holds; fails the test if it never does.
    pub(crate) fn run_until(&mut self, what: &str, mut done: impl FnMut(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !done(self) {
            assert!(Instant::now() < deadline, "never happened: {what}");
            self.turn(Duration::from_millis(20));
        }
    }

    pub(crate) fn op(&mut self, op: Op) {
        self.ops.push(op);
        self.ring.submit(&mut self.ops);
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Accepted { connection, peer, .. } => {
                assert!(peer.ip().is_loopback() && peer.port() != 0);
                self.begin(connection);
                self.accepted.push(connection);
            }
            Event::Connected { connection, token } => {
                self.begin(connection);
                self.connected.push((token, connection));
            }
            Event::ConnectFailed { token, error } => self.failed.push((token, error)),
            Event::Received { connection, range } => {
                assert!(!self.ended.contains(&connection), "data after the end");
                let bytes = self.events.data(range);
                if self.echo {
                    let queued = self.queued.entry(connection).or_default();
                    queued.extend_from_slice(bytes);
                } else {
                    let received = self.received.get_mut(&connection);
                    received.expect("a live handle").extend_from_slice(bytes);
                }
            }
            Event::Eof { connection } => {
                self.ended.push(connection);
                if self.echo {
                    self.ops.push(Op::Shutdown { connection });
                }
            }
            Event::SendProgress { bytes, .. } => self.progress += u64::from(bytes),
            Event::Sent { connection, buffer } => {
                self.sending.remove(&connection);
                self.sent.push((connection, buffer.len()));
            }
            Event::Closed { connection, reason, .. } => {
                self.sending.remove(&connection);
                self.queued.remove(&connection);
                let known = self.received.remove(&connection);
                assert!(known.is_some(), "{connection:?} closed twice or never open");
                self.closed.push((connection, reason));
            }
            Event::Doorbell => self.doorbells += 1,
            Event::AcceptPaused { .. } => self.pauses += 1,
            Event::AcceptResumed { .. } => self.resumes += 1,
        }
    }

    fn begin(&mut self, connection: Connection) {
        let earlier = self.received.insert(connection, Vec::new());
        assert!(earlier.is_none(), "{connection:?} began twice");
    }

    fn flush(&mut self) {
        for (connection, bytes) in &mut self.queued {
            if !bytes.is_empty() && !self.sending.contains(connection) {
                self.sending.insert(*connection);
                self.ops.push(Op::Send { connection: *connection, buffer: std::mem::take(bytes) });
            }
        }
    }
}
