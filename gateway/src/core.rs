//! The connections of a shard with all that hangs on them: queues, deadlines, counts.
//!
//! Everything here is about bytes and time; what the bytes mean is in `http.rs`, `socket.rs` and
//! `rest.rs`. The rules reach their clients through this (`effects.rs`).

use crate::auth::Authenticator;
use std::sync::Arc;

use chat::wheel::Wheel;
use chat::{Now, Pressure, SessionKey};
use ring::{Connection, Op, Ops};
use shard_router::Mailbox;
use storage::seam::{StorageRequest, StoreFacts};

use crate::counters::ShardCounters;
use crate::outbound::Outbound;
use crate::rate::Rate;
use crate::shard::ShardSettings;
use crate::table::{Deadline, Flag, NEVER, NONE, Stage, TICK_MS, Table};

/// How long a peer may take to finish a connection that we have finished.
const CLOSE_MS: u64 = 5_000;
/// Times the limit of waiting bytes at which a connection is cut off, whatever the rules say.
const OVERFULL: usize = 16;

pub(crate) struct Core {
    pub settings: ShardSettings,
    pub table: Table,
    pub outbound: Outbound,
    pub wheel: Wheel,
    pub rate: Rate,
    /// How near the shard is to its limits, measured once per turn.
    pub pressure: Pressure,
    pub counters: ShardCounters,
    pub now: Now,
    pub facts: StoreFacts,
    pub auth: Arc<Authenticator>,
    pub mailbox: Mailbox,
    /// The caller's during a turn.
    pub ops: Ops,
    /// The caller's during a turn.
    pub requests: Vec<StorageRequest>,
    /// Sessions whose client is gone, to be told to the rules when they are not at work.
    pub detached: Vec<SessionKey>,
    /// Entries whose request over REST has been answered, to go on with when nobody is at work on them.
    pub answered: Vec<u32>,
    /// No new work: the node is going away.
    pub draining: bool,
    /// Entries that this turn wrote to or finished.
    dirty: Vec<u32>,
}

impl Core {
    pub(crate) fn new(
        settings: ShardSettings,
        seed: u64,
        facts: StoreFacts,
        auth: Arc<Authenticator>,
        mailbox: Mailbox,
        now: Now,
    ) -> Self {
        Self {
            table: Table::new(settings.connections_max),
            // A turn of 65 s: beats, stalls and handshakes lie within it.
            wheel: Wheel::new(now.monotonic_ms, TICK_MS, 4_096, settings.connections_max as usize),
            rate: Rate::new(settings.frames, seed),
            pressure: Pressure::default(),
            settings,
            facts,
            auth,
            mailbox,
            requests: Vec::new(),
            detached: Vec::new(),
            answered: Vec::new(),
            draining: false,
            outbound: Outbound::new(),
            counters: ShardCounters::default(),
            now,
            ops: Ops::default(),
            dirty: Vec::new(),
        }
    }

    /// Where bytes for a connection are written to; they leave at the end of the turn.
    pub(crate) fn queue(&mut self, index: u32) -> &mut Vec<u8> {
        self.mark_dirty(index);
        let entry = self.table.get(index);
        if entry.outbound == NONE {
            entry.outbound = self.outbound.lend();
        }
        self.outbound.waiting(entry.outbound)
    }

    /// Bytes that a client has not taken yet.
    pub(crate) fn queued_bytes(&mut self, index: u32) -> usize {
        match self.table.get(index).outbound {
            NONE => 0,
            queue => self.outbound.get(queue).bytes(),
        }
    }

    /// Ends a connection once everything queued has been sent.
    pub(crate) fn finish(&mut self, index: u32) {
        let deadline_ms = self.now.monotonic_ms + CLOSE_MS;
        self.detach(index);
        let entry = self.table.get(index);
        entry.stage = Stage::Closing;
        entry.flags.raise(Flag::Finish);
        self.mark_dirty(index);
        self.set_deadline(index, deadline_ms);
    }

    /// Ends a connection at once. `Closed` will follow.
    pub(crate) fn cut(&mut self, index: u32) {
        self.detach(index);
        let entry = self.table.get(index);
        entry.stage = Stage::Closing;
        entry.flags.lower(Flag::Finish);
        entry.deadline = Deadline::NEVER;
        let connection = entry.connection;
        // Bytes that wait for a dead peer would only hold memory; without any, end in order.
        let waits = self.queued_bytes(index) > 0;
        self.ops.push(if waits { Op::Reset { connection } } else { Op::Close { connection } });
        let queue = self.table.get(index).outbound;
        if queue != NONE {
            self.outbound.get(queue).waiting.clear();
        }
    }

    /// Whatever session hangs on the connection ends; the rules are told as soon as they are not at work.
    fn detach(&mut self, index: u32) {
        let session = match &mut self.table.get(index).stage {
            Stage::Socket(socket) => socket.session.take(),
            Stage::Http(http) => http.answering.take().map(|answering| answering.session),
            Stage::Free | Stage::Echo(_) | Stage::Closing => None,
        };
        self.detached.extend(session);
    }

    /// Sets when the present stage must have ended.
    pub(crate) fn set_deadline(&mut self, index: u32, deadline_ms: u64) {
        self.table.get(index).deadline = Deadline::at(deadline_ms);
        self.arm(index, deadline_ms);
    }

    /// Sees to it that the wheel looks at the entry no later than `at_ms`. Moving a deadline back costs
    /// nothing: the wheel then looks too early once.
    pub(crate) fn arm(&mut self, index: u32, at_ms: u64) {
        self.wheel.set_no_later(index, at_ms);
    }

    /// When the outstanding send will have stalled; [`NEVER`] without one, and where the end has begun, which has a
    /// deadline of its own or needs none.
    pub(crate) fn stalls_ms(&mut self, index: u32) -> u64 {
        let entry = self.table.get(index);
        match entry.outbound {
            NONE => NEVER,
            _ if matches!(entry.stage, Stage::Closing) => NEVER,
            queue => {
                let queue = self.outbound.get(queue);
                if queue.in_flight == 0 { NEVER } else { queue.progress_ms + self.settings.stall_ms }
            }
        }
    }

    /// The kernel took everything. Says whose session wants to know that nothing waits any more.
    pub(crate) fn sent(&mut self, connection: Connection, buffer: Vec<u8>) -> Option<SessionKey> {
        self.outbound.reuse(buffer);
        let index = self.table.find(connection)?;
        let queue = self.table.get(index).outbound;
        assert_ne!(queue, NONE, "a send is outstanding");
        let state = self.outbound.get(queue);
        state.in_flight = 0;
        let is_empty = state.waiting.is_empty();
        self.mark_dirty(index);
        let entry = self.table.get(index);
        match &entry.stage {
            Stage::Socket(socket) if is_empty && entry.flags.take(Flag::Pressed) => socket.session,
            _ => None,
        }
    }

    /// The kernel took a part: the peer is slow, and alive.
    pub(crate) fn progressed(&mut self, connection: Connection) {
        let Some(index) = self.table.find(connection) else { return };
        let queue = self.table.get(index).outbound;
        if queue != NONE {
            self.outbound.get(queue).progress_ms = self.now.monotonic_ms;
        }
    }

    /// The handle has ended: everything that the connection held is given back.
    pub(crate) fn forget(&mut self, index: u32, buffer: Option<Vec<u8>>) {
        if let Some(buffer) = buffer {
            self.outbound.reuse(buffer);
        }
        self.detach(index);
        let queue = std::mem::replace(&mut self.table.get(index).outbound, NONE);
        if queue != NONE {
            self.outbound.give_back(queue);
        }
        self.wheel.cancel(index);
        self.rate.forget(self.table.client(index));
        self.table.remove(index);
        self.counters.ended += 1;
    }

    /// Sends what this turn had to say: one send per connection.
    pub(crate) fn flush(&mut self) {
        let mut dirty = std::mem::take(&mut self.dirty);
        for index in dirty.drain(..) {
            // A connection may have ended in the turn that wrote to it, and the entry be another's now.
            if self.table.get(index).flags.take(Flag::Dirty) {
                self.flush_one(index);
            }
        }
        self.dirty = dirty;
    }

    fn flush_one(&mut self, index: u32) {
        let entry = self.table.get(index);
        let connection = entry.connection;
        if entry.outbound != NONE {
            let queue = entry.outbound;
            let state = self.outbound.get(queue);
            if state.in_flight == 0 && !state.waiting.is_empty() {
                state.progress_ms = self.now.monotonic_ms;
                let buffer = self.outbound.take_waiting(queue);
                self.counters.sends += 1;
                self.counters.send_bytes += buffer.len() as u64;
                self.ops.push(Op::Send { connection, buffer });
                self.arm(index, self.now.monotonic_ms + self.settings.stall_ms);
            }
            let state = self.outbound.get(queue);
            let (bytes, waiting) = (state.bytes(), state.waiting.len());
            if bytes == 0 {
                self.table.get(index).outbound = NONE;
                self.outbound.give_back(queue);
            }
            self.balance(index, bytes);
            if waiting > 0 {
                return;
            }
        }
        // The ring ends our stream behind the outstanding send, if there is one.
        if self.table.get(index).flags.take(Flag::Finish) {
            self.ops.push(Op::Shutdown { connection });
        }
    }

    /// A client that does not take its answers is not asked for more questions.
    fn balance(&mut self, index: u32, bytes: usize) {
        let bytes_max = self.settings.outbound_bytes_max;
        let entry = self.table.get(index);
        let connection = entry.connection;
        if matches!(entry.stage, Stage::Closing) {
            return;
        }
        if entry.flags.has(Flag::Paused) && bytes < bytes_max / 2 {
            entry.flags.lower(Flag::Paused);
            let is_session = matches!(&entry.stage, Stage::Socket(socket) if socket.session.is_some());
            self.ops.push(Op::ResumeReceive { connection });
            if is_session {
                // Its beats may have waited to be read for as long as it was paused.
                self.heard_from(index);
            }
        } else if !entry.flags.has(Flag::Paused) && bytes > bytes_max {
            entry.flags.raise(Flag::Paused);
            self.counters.reading_paused += 1;
            self.ops.push(Op::PauseReceive { connection });
        }
    }

    /// Whether more waits for a client than it may leave waiting.
    pub(crate) fn is_pressed(&mut self, index: u32) -> bool {
        self.queued_bytes(index) > self.settings.outbound_bytes_max
    }

    /// Whether so much waits for a client that the rules' own limit must have failed.
    pub(crate) fn is_overfull(&mut self, index: u32) -> bool {
        self.queued_bytes(index) > self.settings.outbound_bytes_max * OVERFULL
    }

    fn mark_dirty(&mut self, index: u32) {
        let flags = &mut self.table.get(index).flags;
        if !flags.has(Flag::Dirty) {
            flags.raise(Flag::Dirty);
            self.dirty.push(index);
        }
    }

    /// Bytes of memory held for connections, and how many of these for their queues.
    pub(crate) fn memory_bytes(&self) -> (usize, usize) {
        let queues = self.outbound.memory_bytes();
        (self.table.memory_bytes() + self.wheel.memory_bytes() + queues, queues)
    }
}
