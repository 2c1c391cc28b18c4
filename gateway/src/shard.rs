//! A shard: one thread's connections and its part of the users and conversations.
//!
//! Pure: no clock, no I/O, no threads. A driver (or the simulator) hands it what happened and the time,
//! and gets back what is to be done.

use crate::now::Now;
use ring::{Event, EventBatch, Ops};

use crate::core::Core;
use crate::http::Http;
use crate::table::{NEVER, Stage};

/// What a shard is told once, at its start.
#[derive(Debug, Clone)]
pub struct ShardSettings {
    /// Serve a plain echo at `/echo`.
    pub echo: bool,
    /// Bytes waiting for one client above which it is not read from.
    pub outbound_bytes_max: usize,
    /// Bytes of the body of a request.
    pub request_bytes_max: u32,
    /// From accept to the end of the first request, and from the first byte of a later one to its end.
    pub handshake_ms: u64,
    /// How long a peer may take nothing of what is sent to it.
    pub stall_ms: u64,
    /// How long a connection may wait for its next request, or for `open`.
    pub idle_ms: u64,
    /// How long a request over REST may take.
    pub request_ms: u64,
}

/// One shard.
pub struct Shard {
    pub(crate) core: Core,
    pub(crate) draining: bool,
    due: Vec<u32>,
}

impl Shard {
    /// A shard without connections.
    pub fn new(settings: ShardSettings, now: Now) -> Self {
        Self { core: Core::new(settings, now), draining: false, due: Vec::new() }
    }

    /// One turn: everything that happened since the last, then everything it has to say.
    pub fn turn(&mut self, now: Now, events: &mut EventBatch, ops: &mut Ops) {
        self.core.now = now;
        self.core.counters.turns += 1;
        std::mem::swap(&mut self.core.ops, ops);
        while let Some(event) = events.pop() {
            self.handle(event, events);
        }
        self.expire();
        // Last, so that everything a turn has to say to one connection leaves in one send.
        self.core.flush();
        std::mem::swap(&mut self.core.ops, ops);
    }

    /// When the next turn is needed even if nothing happens, by the monotonic clock.
    pub fn next_deadline_ms(&self) -> Option<u64> {
        self.core.wheel.next_deadline_ms()
    }

    /// What it has counted.
    pub fn counters(&self) -> &crate::counters::ShardCounters {
        &self.core.counters
    }

    /// Connections held.
    pub fn connections(&self) -> u32 {
        self.core.table.len()
    }

    /// Bytes of memory held for connections.
    pub fn memory_bytes(&self) -> usize {
        self.core.memory_bytes()
    }

    fn handle(&mut self, event: Event, events: &mut EventBatch) {
        match event {
            Event::Accepted { connection, .. } => {
                self.core.counters.accepted += 1;
                let index = self.core.table.insert(connection, Stage::Http(Box::<Http>::default()));
                let deadline_ms = self.core.now.monotonic_ms + self.core.settings.handshake_ms;
                self.core.set_deadline(index, deadline_ms);
            }
            Event::Received { connection, range } => {
                if let Some(index) = self.core.table.find(connection) {
                    self.received(index, events.data_mut(range));
                }
            }
            Event::Eof { connection } => {
                if let Some(index) = self.core.table.find(connection) {
                    self.eof(index);
                }
            }
            Event::SendProgress { connection, .. } => self.core.progressed(connection),
            Event::Sent { connection, buffer } => self.core.sent(connection, buffer),
            Event::Closed { connection, buffer, .. } => {
                if let Some(index) = self.core.table.find(connection) {
                    self.core.forget(index, buffer);
                }
            }
            // The mailbox is looked at every turn, and listeners are the driver's.
            Event::Doorbell | Event::AcceptPaused { .. } | Event::AcceptResumed { .. } => {}
            Event::Connected { .. } | Event::ConnectFailed { .. } => unreachable!("a shard connects to nobody"),
        }
    }

    /// Bytes arrived, whatever the connection is.
    pub(crate) fn received(&mut self, index: u32, bytes: &mut [u8]) {
        match self.core.table.get(index).stage {
            Stage::Http(_) => self.http_received(index, bytes),
            Stage::Echo(_) => self.echo_received(index, bytes),
            Stage::Closing => {}
            Stage::Free(_) => unreachable!("a handle leads to no free entry"),
        }
    }

    fn eof(&mut self, index: u32) {
        match self.core.table.get(index).stage {
            Stage::Http(_) => self.http_eof(index),
            Stage::Echo(_) => self.core.finish(index),
            Stage::Closing => {}
            Stage::Free(_) => unreachable!("a handle leads to no free entry"),
        }
    }

    /// A connection has just become a WebSocket.
    pub(crate) fn switched(&mut self, _index: u32) {}

    /// A decoder panicked over what a peer sent: that connection ends, and nobody else notices.
    pub(crate) fn isolate(&mut self, index: u32) {
        self.core.counters.isolated_panics += 1;
        self.core.cut(index);
    }

    fn expire(&mut self) {
        let mut due = std::mem::take(&mut self.due);
        self.core.wheel.expire(self.core.now.monotonic_ms, &mut due);
        for index in due.drain(..) {
            self.look_at(index);
        }
        self.due = due;
    }

    /// The wheel says that one of an entry's deadlines may have passed.
    fn look_at(&mut self, index: u32) {
        let now_ms = self.core.now.monotonic_ms;
        self.core.table.get(index).armed_ms = NEVER;
        if self.core.stalls_ms(index) <= now_ms {
            self.core.counters.stalled += 1;
            self.core.cut(index);
        }
        if self.core.table.get(index).deadline_ms <= now_ms {
            self.core.table.get(index).deadline_ms = NEVER;
            match self.core.table.get(index).stage {
                Stage::Http(_) => self.http_late(index),
                Stage::Closing => self.core.cut(index),
                Stage::Echo(_) | Stage::Free(_) => {}
            }
        }
        let next_ms = self.core.table.get(index).deadline_ms.min(self.core.stalls_ms(index));
        if next_ms != NEVER {
            self.core.arm(index, next_ms);
        }
    }
}
