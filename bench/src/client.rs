//! The other end of an echo: connections with one message in flight each, as fast as they come back.
//!
//! Both servers hold their connections all the time, and are asked in turn, for a moment each: whatever else the
//! machine does meets both alike, and a pair of moments lies so close together that it cannot have changed much.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use ring::{Connection, Doorbell, Event, EventBatch, KernelRing, Op, Ops, RingConfig};
use serde::{Deserialize, Serialize};
use wire::upgrade::{UpgradeRequest, read_upgrade_response, write_upgrade_request};
use wire::writer::{Opcode, write_frame};

use crate::crowd::{Spent, Stretch};
use crate::server::Trouble;

/// Who echoes.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    pub address: SocketAddr,
    /// A WebSocket at `/echo`; otherwise the same bytes without a handshake.
    pub websocket: bool,
    pub connections: u32,
    pub payload_bytes: usize,
    /// Whose processor time is counted.
    pub server: u32,
}

/// What came of one moment.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Echoed {
    pub echoes: u64,
    pub spent: Spent,
}

const NONCE: [u8; 16] = *b"an echo's nonce!";
/// A server that has answered everything still takes back its buffers: then it sleeps, and its processor time is exact.
const REST: Duration = Duration::from_millis(10);

/// Where one connection stands.
#[derive(Debug, Clone)]
struct Line {
    connection: Connection,
    head: Vec<u8>,
    /// Bytes of the answer that have not come.
    left: usize,
}

/// All connections to one server.
pub struct Lines {
    load: Load,
    ring: KernelRing,
    events: EventBatch,
    ops: Ops,
    frame: Vec<u8>,
    answer_bytes: usize,
    each: Vec<Line>,
    /// Line of each slot of the ring.
    owners: Vec<u32>,
    spare: Vec<Vec<u8>>,
}

impl Lines {
    /// Connects, and upgrades if the server wants it.
    pub fn open(load: Load) -> Result<Self, Trouble> {
        let config = RingConfig {
            connections_max: load.connections + 8,
            completions: 16_384,
            receive_buffers: 4_096,
            receive_buffer_bytes: 512,
            ..RingConfig::default()
        };
        let mut frame = Vec::new();
        write_frame(&mut frame, Opcode::Binary, Some([1, 2, 3, 4]), &vec![b'x'; load.payload_bytes]);
        let mut lines = Self {
            load,
            ring: KernelRing::new(&config, Doorbell::new()?)?,
            events: EventBatch::with_capacity(8_192, 1 << 20),
            ops: Ops::with_capacity(8_192),
            // A server's frame carries no mask.
            answer_bytes: if load.websocket { frame.len() - 4 } else { frame.len() },
            frame,
            each: Vec::with_capacity(load.connections as usize),
            owners: vec![u32::MAX; load.connections as usize + 8],
            spare: Vec::new(),
        };
        lines.connect()?;
        Ok(lines)
    }

    fn connect(&mut self) -> Result<(), Trouble> {
        let host = self.load.address.to_string();
        let upgrade = UpgradeRequest { host: &host, target: "/echo", nonce: NONCE, subprotocol: None, bearer: None };
        for token in 0..u64::from(self.load.connections) {
            self.ops.push(Op::Connect { token, address: self.load.address, source: None });
        }
        let deadline = Instant::now() + Duration::from_secs(30);
        let mut ready = 0;
        while ready < self.load.connections {
            self.ring.submit(&mut self.ops);
            self.ring.wait(Some(Duration::from_millis(100)), &mut self.events)?;
            while let Some(event) = self.events.pop() {
                match event {
                    Event::Connected { connection, .. } => {
                        self.owners[connection.slot() as usize] = self.each.len() as u32;
                        self.each.push(Line { connection, head: Vec::new(), left: 0 });
                        if self.load.websocket {
                            let mut buffer = Vec::new();
                            write_upgrade_request(&mut buffer, &upgrade);
                            self.ops.push(Op::Send { connection, buffer });
                        } else {
                            ready += 1;
                        }
                    }
                    Event::Received { connection, range } => {
                        let line = &mut self.each[self.owners[connection.slot() as usize] as usize];
                        line.head.extend_from_slice(self.events.data(range));
                        if read_upgrade_response(&line.head, &upgrade)?.is_some() {
                            line.head = Vec::new();
                            ready += 1;
                        }
                    }
                    other => self.take(other)?,
                }
            }
            if Instant::now() > deadline {
                return Err("not all connections could be made".into());
            }
        }
        Ok(())
    }

    /// Echoes on all connections for as long, and until the last echo has come back.
    pub fn echo(&mut self, wanted: Duration) -> Result<Echoed, Trouble> {
        let (stretch, begun) = (Stretch::of(&[self.load.server]), Instant::now());
        for at in 0..self.each.len() {
            self.say(at);
        }
        let (mut echoes, mut outstanding) = (0, self.each.len());
        while outstanding > 0 {
            self.ring.submit(&mut self.ops);
            self.ring.wait(Some(Duration::from_secs(10)), &mut self.events)?;
            if self.events.is_empty() {
                return Err("the server does not answer".into());
            }
            let goes_on = begun.elapsed() < wanted;
            while let Some(event) = self.events.pop() {
                let Event::Received { connection, range } = event else {
                    self.take(event)?;
                    continue;
                };
                let at = self.owners[connection.slot() as usize] as usize;
                let left = &mut self.each[at].left;
                *left = left.checked_sub(range.len()).ok_or("the server said more than it was sent")?;
                if *left > 0 {
                    continue;
                }
                echoes += 1;
                if goes_on { self.say(at) } else { outstanding -= 1 }
            }
        }
        std::thread::sleep(REST);
        Ok(Echoed { echoes, spent: stretch.end() })
    }

    fn say(&mut self, at: usize) {
        let line = &mut self.each[at];
        line.left = self.answer_bytes;
        let mut buffer = self.spare.pop().unwrap_or_default();
        buffer.extend_from_slice(&self.frame);
        self.ops.push(Op::Send { connection: line.connection, buffer });
    }

    fn take(&mut self, event: Event) -> Result<(), Trouble> {
        match event {
            Event::Sent { mut buffer, .. } => {
                buffer.clear();
                self.spare.push(buffer);
                Ok(())
            }
            Event::ConnectFailed { error, .. } => Err(format!("a connection failed: {error:?}").into()),
            Event::Closed { reason, .. } => Err(format!("the server hung up: {reason:?}").into()),
            _ => Ok(()),
        }
    }
}
