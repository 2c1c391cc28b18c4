//! A shard: one thread's connections and its part of the users and conversations.
//!
//! Pure: no clock, no I/O, no threads. A driver (or the simulator) hands it what happened and the time,
//! and gets back what is to be done.

use std::sync::Arc;

use chat::{Chat, ChatConfig, Now, Pressure};
use ring::{Event, EventBatch, Ops};
use shard_router::Mailbox;
use storage::seam::{StorageEvent, StorageRequest, StoreFacts};
use wire::close::CloseCode;
use wire::protocol::ServerFrame;

use crate::auth::Authenticator;
use crate::core::Core;
use crate::counters::ShardCounters;
use crate::http::Http;
use crate::rate::FrameRate;
use crate::table::{Deadline, NEVER, Stage};

/// Rounds of mail in one turn: enough for a message's whole way if all its owners are on this shard.
const MAIL_ROUNDS_MAX: u32 = 8;

/// How long turns may take before also sends are shed.
const LAG_MAX_MS: u64 = 500;

/// What a shard is told once, at its start.
#[derive(Debug, Clone)]
pub struct ShardSettings {
    /// Its number.
    pub shard: u16,
    /// What clients see as `node`.
    pub node: String,
    /// Connections that each table of its ring holds at most; their room is set aside at the start.
    pub connections_max: u32,
    /// Serve a plain echo at `/echo`.
    pub echo: bool,
    /// Origins that browsers may come from; none: all.
    pub allowed_origins: Vec<String>,
    /// Accept `?token=`.
    pub token_in_url: bool,
    /// Bytes of a message's body.
    pub body_bytes_max: usize,
    /// Bytes waiting for one client above which it is not read from.
    pub outbound_bytes_max: usize,
    /// From accept to the end of the first request, and from the first byte of a later one to its end.
    pub handshake_ms: u64,
    /// How long a peer may take nothing of what is sent to it.
    pub stall_ms: u64,
    /// How long a connection may wait for its next request, or for `open`.
    pub idle_ms: u64,
    /// How long a request over REST may take.
    pub request_ms: u64,
    /// Frames that one client may send.
    pub frames: FrameRate,
}

/// What a shard is made from.
pub struct ShardParts {
    /// Its settings.
    pub settings: ShardSettings,
    /// What its rules are made from.
    pub chat: ChatConfig,
    /// What the store is.
    pub facts: StoreFacts,
    /// Checks tokens; shared with the other shards, never changed.
    pub auth: Arc<Authenticator>,
    /// Its end of the mailboxes.
    pub mailbox: Mailbox,
}

/// What happened since the last turn. Keeps its memory.
#[derive(Debug, Default)]
pub struct Input {
    /// On the ring.
    pub ring: EventBatch,
    /// In storage, in order.
    pub storage: Vec<StorageEvent>,
    /// For how long at most what happened had to wait for this turn.
    pub lag_ms: u64,
}

/// What is to be done. Keeps its memory.
#[derive(Debug, Default)]
pub struct Output {
    /// By the ring, in order.
    pub ring: Ops,
    /// By storage, in order.
    pub storage: Vec<StorageRequest>,
}

/// One shard.
pub struct Shard {
    pub(crate) core: Core,
    pub(crate) chat: Chat,
    /// When clients that did not leave by themselves are closed.
    drain_deadline_ms: u64,
    #[cfg(feature = "planted-bugs")]
    drains_without_end: bool,
    due: Vec<u32>,
}

impl Shard {
    /// A shard without connections, whose slots wait for what storage recovers.
    pub fn new(parts: ShardParts, now: Now) -> Self {
        let ShardParts { settings, chat, facts, auth, mailbox } = parts;
        let seed = chat.seed.rotate_left(16);
        Self {
            chat: Chat::new(&chat),
            core: Core::new(settings, seed, facts, auth, mailbox, now),
            drain_deadline_ms: NEVER,
            #[cfg(feature = "planted-bugs")]
            drains_without_end: false,
            due: Vec::new(),
        }
    }

    /// One turn: everything that happened since the last, then everything it has to say.
    pub fn turn(&mut self, now: Now, input: &mut Input, output: &mut Output) {
        self.core.now = now;
        self.core.counters.turns += 1;
        std::mem::swap(&mut self.core.ops, &mut output.ring);
        std::mem::swap(&mut self.core.requests, &mut output.storage);
        self.feel_pressure(input.lag_ms);
        for event in input.storage.drain(..) {
            self.chat.storage(now, event, &mut self.core);
            self.settle();
        }
        while let Some(event) = input.ring.pop() {
            self.handle(event, &mut input.ring);
            self.settle();
        }
        self.expire();
        self.read_mail();
        self.chat.finish_turn(now, &mut self.core);
        self.settle();
        self.core.mailbox.flush();
        // Last, so that everything a turn has to say to one connection leaves in one send.
        self.core.flush();
        std::mem::swap(&mut self.core.requests, &mut output.storage);
        std::mem::swap(&mut self.core.ops, &mut output.ring);
    }

    /// Measures once per turn how near the shard is to its limits, for what it is to shed.
    fn feel_pressure(&mut self, lag_ms: u64) {
        let (requests, requests_max) = self.core.mailbox.fullest();
        let mail = Pressure::of(requests, requests_max);
        let lag = Pressure::of_all(lag_ms, LAG_MAX_MS);
        self.core.pressure = self.chat.pressure(self.core.now).max(mail).max(lag);
        self.chat.set_pressure(self.core.pressure);
    }

    /// Puts bugs into this shard's rules and mailboxes.
    #[cfg(feature = "planted-bugs")]
    pub fn plant(&mut self, rules: Option<chat::PlantedBug>, mail: Option<shard_router::PlantedBug>) {
        if let Some(bug) = rules {
            self.chat.plant(bug);
        }
        if let Some(bug) = mail {
            self.core.mailbox.plant(bug);
        }
    }

    /// Makes a drain ask clients to go and never insist.
    #[cfg(feature = "planted-bugs")]
    pub fn plant_drain_without_end(&mut self) {
        self.drains_without_end = true;
    }

    /// When the next turn is needed even if nothing happens, by the monotonic clock.
    pub fn next_deadline_ms(&self) -> Option<u64> {
        let drain = Some(self.drain_deadline_ms).filter(|deadline| *deadline != NEVER);
        [self.core.wheel.next_deadline_ms(), self.chat.deadline(), drain].into_iter().flatten().min()
    }

    /// Sends clients away, over `spread_ms`, and takes no new work. To be called between turns, once.
    pub fn drain(&mut self, now: Now, spread_ms: u32) {
        self.core.now = now;
        self.core.draining = true;
        self.drain_deadline_ms = now.monotonic_ms + u64::from(spread_ms);
        #[cfg(feature = "planted-bugs")]
        if self.drains_without_end {
            self.drain_deadline_ms = NEVER;
        }
        for index in self.core.table.indices().collect::<Vec<_>>() {
            match &self.core.table.get(index).stage {
                Stage::Socket(_) => {
                    let client = self.core.table.client(index);
                    let frame = ServerFrame::Move { deadline_ms: spread_ms, spread_ms };
                    chat::Effects::frame(&mut self.core, client, &frame);
                }
                Stage::Http(http) if http.answering.is_none() => self.core.finish(index),
                Stage::Echo(_) => self.core.close_socket(index, CloseCode::GoingAway),
                Stage::Http(_) | Stage::Closing | Stage::Free => {}
            }
        }
    }

    /// Whether nobody is connected and nothing waits for storage.
    pub fn is_drained(&self) -> bool {
        self.core.draining && self.core.table.len() == 0 && self.chat.is_quiet()
    }

    /// Whether everything recovered has been applied, so that clients can be served.
    pub fn is_serving(&self) -> bool {
        self.chat.is_serving()
    }

    /// Whether, beyond that, everything it had to tell other shards about what was recovered has left. A
    /// list may ask any shard: nobody is served before all have come so far.
    pub fn is_ready(&self) -> bool {
        self.is_serving() && !self.core.mailbox.has_unsent()
    }

    /// Whether another process took one of its slots: this one must make way.
    pub fn is_fenced(&self) -> bool {
        self.chat.is_fenced()
    }

    /// Its end of the mailboxes, for who puts it to sleep.
    pub fn mailbox(&self) -> &Mailbox {
        &self.core.mailbox
    }

    /// What it has counted.
    pub fn counters(&self) -> &ShardCounters {
        &self.core.counters
    }

    /// Its rules, for what they count and hold.
    pub fn chat(&self) -> &Chat {
        &self.chat
    }

    /// Connections held.
    pub fn connections(&self) -> u32 {
        self.core.table.len()
    }

    /// Bytes of memory held for connections, and how many of these for their queues.
    pub fn memory_bytes(&self) -> (usize, usize) {
        self.core.memory_bytes()
    }

    fn handle(&mut self, event: Event, events: &mut EventBatch) {
        match event {
            Event::Accepted { connection, .. } => {
                self.core.counters.accepted += 1;
                let index = self.core.table.insert(connection, Stage::Http(Box::<Http>::default()));
                let now_ms = self.core.now.monotonic_ms;
                self.core.table.get(index).begin_without_debts(now_ms);
                self.core.set_deadline(index, now_ms + self.core.settings.handshake_ms);
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
            Event::Sent { connection, buffer } => {
                if let Some(session) = self.core.sent(connection, buffer) {
                    self.chat.drained(session, &mut self.core);
                } else if let Some(index) = self.core.table.find(connection)
                    && let Stage::Http(_) = self.core.table.get(index).stage
                {
                    self.read_ahead(index);
                }
            }
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
            Stage::Socket(_) => self.socket_received(index, bytes),
            Stage::Echo(_) => self.echo_received(index, bytes),
            Stage::Closing => {}
            Stage::Free => unreachable!("a handle leads to no free entry"),
        }
    }

    fn eof(&mut self, index: u32) {
        match self.core.table.get(index).stage {
            Stage::Http(_) => self.http_eof(index),
            Stage::Socket(_) | Stage::Echo(_) => self.core.finish(index),
            Stage::Closing => {}
            Stage::Free => unreachable!("a handle leads to no free entry"),
        }
    }

    /// A decoder panicked over what a peer sent: that connection ends, and nobody else notices.
    pub(crate) fn isolate(&mut self, index: u32) {
        self.core.counters.isolated_panics += 1;
        self.core.cut(index);
    }

    /// What had to wait until the rules, or whoever reads a connection, were done.
    pub(crate) fn settle(&mut self) {
        while let Some(session) = self.core.detached.pop() {
            self.chat.closed(session, &mut self.core);
        }
        while let Some(index) = self.core.answered.pop() {
            if let Stage::Http(http) = &mut self.core.table.get(index).stage
                && let Some(answering) = http.answering.take()
            {
                self.chat.closed(answering.session, &mut self.core);
                self.go_on(index, answering.reply.keep_alive);
            }
        }
    }

    fn read_mail(&mut self) {
        let now = self.core.now;
        for _ in 0..MAIL_ROUNDS_MAX {
            self.core.mailbox.flush();
            let mut any = false;
            while let Some(batch) = self.core.mailbox.take() {
                any = true;
                for letter in batch.letters() {
                    self.chat.letter(now, &letter, &mut self.core);
                    self.settle();
                }
                self.core.mailbox.give_back(batch);
            }
            if !any {
                return;
            }
        }
    }

    fn expire(&mut self) {
        let mut due = std::mem::take(&mut self.due);
        self.core.wheel.expire(self.core.now.monotonic_ms, &mut due);
        for index in due.drain(..) {
            self.look_at(index);
            self.settle();
        }
        self.due = due;
        if self.drain_deadline_ms <= self.core.now.monotonic_ms {
            self.drain_deadline_ms = NEVER;
            self.close_those_who_stayed();
        }
    }

    /// The wheel says that one of an entry's deadlines may have passed.
    fn look_at(&mut self, index: u32) {
        let now_ms = self.core.now.monotonic_ms;
        self.core.table.get(index).forget_paid_pings(now_ms);
        if self.core.stalls_ms(index) <= now_ms {
            self.core.counters.stalled += 1;
            match self.core.table.get(index).stage {
                // Should it wake up after all, it is to know that it may come again.
                Stage::Socket(_) => self.core.close_socket(index, CloseCode::TooSlow),
                _ => self.core.cut(index),
            }
        }
        self.look_at_token(index);
        if self.core.table.get(index).deadline.is_due(now_ms) {
            self.core.table.get(index).deadline = Deadline::NEVER;
            match self.core.table.get(index).stage {
                Stage::Http(_) => self.http_late(index),
                Stage::Socket(_) => self.socket_late(index),
                Stage::Closing => self.core.cut(index),
                Stage::Echo(_) | Stage::Free => {}
            }
        }
        let deadline_ms = self.core.table.get(index).deadline.ms(now_ms);
        let next_ms = deadline_ms.min(self.core.stalls_ms(index)).min(self.token_deadline_ms(index));
        if next_ms != NEVER {
            self.core.arm(index, next_ms);
        }
    }

    fn close_those_who_stayed(&mut self) {
        for index in self.core.table.indices().collect::<Vec<_>>() {
            match self.core.table.get(index).stage {
                Stage::Socket(_) => self.core.close_socket(index, CloseCode::Moved),
                Stage::Http(_) => self.core.cut(index),
                Stage::Echo(_) | Stage::Closing | Stage::Free => {}
            }
        }
        self.settle();
    }
}

#[cfg(test)]
mod tests;
