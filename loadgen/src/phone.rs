//! One simulated user: a client that keeps the rules of the protocol, without a socket or a clock.
//!
//! Bytes and times come in; bytes to send gather in `out`. The rules, from `docs/protocol.md`:
//!
//! - A message at `have + 1` is applied, one below is dropped, one above is fetched by a pull first.
//! - What is not acknowledged is sent again with the same id, in the same order: after a cut, and after a
//!   retryable error once everything in flight has been answered.
//! - What was received is acknowledged by a beat within a second; without that, beats keep their interval.
//! - Reconnecting backs off with full jitter and resumes by `changes_after`; marks are repeated.

use std::collections::VecDeque;

use wire::ids::{ChangeNumber, ClientMessageId, ConversationId, UserId};
use wire::reader::{Event, Input, Reader};
use wire::upgrade::{SUBPROTOCOL_JSON, UpgradeRequest, read_upgrade_response, write_upgrade_request};
use wire::websocket::{Limits, Role};
use wire::writer::{Opcode, write_close, write_frame, write_text_with};

use crate::acks::{Ack, AckWriter};
use crate::body::Stamp;
use crate::frames::{self, Heard, Item};
use crate::key::TokenKey;
use crate::random::{Random, hash};
use crate::tally::{Counts, Tally};

const MS: u64 = 1_000_000;
/// How long an answer may take before the connection is given up.
const ANSWER_NS_MAX: u64 = 10_000 * MS;
/// No server of ours sends longer frames: a page holds 100 messages of 64 KiB at most.
const LIMITS: Limits = Limits { message_bytes_max: 16 << 20, fragments_max: 32 };

/// What all phones have in common.
#[derive(Debug, Clone)]
pub struct Habits {
    /// `Host` of the server.
    pub host: String,
    /// Path of the WebSocket.
    pub target: String,
    /// Tells this run's messages from others'.
    pub run: u32,
    /// Bytes of a message's body.
    pub payload_bytes: usize,
    /// Messages that one phone has in flight; more wait, and their latency counts on.
    pub in_flight_max: usize,
    /// A read mark is sent this long after something was read; more that is read meanwhile rides along.
    pub mark_ns: u64,
    /// Back-off begins with this and doubles.
    pub backoff_ns: u64,
    /// Back-off ends with this.
    pub backoff_ns_max: u64,
    /// Every hundredth message is sent again after it was acknowledged, to see that it keeps its seq.
    pub resend: bool,
    /// Milliseconds since 1970 when the run began.
    pub unix_ms: u64,
}

/// What a phone needs from its thread.
pub struct Around<'a> {
    /// Nanoseconds since the run began.
    pub now_ns: u64,
    pub habits: &'a Habits,
    pub key: &'a TokenKey,
    pub random: &'a mut Random,
    pub tally: &'a mut Tally,
    pub acks: Option<&'a mut AckWriter>,
    /// Room to build a body in.
    pub body: &'a mut String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// To connect again then.
    Waiting {
        until_ns: u64,
    },
    /// Until then the connection must be made, upgraded and opened.
    Connecting {
        deadline_ns: u64,
    },
    Upgrading {
        deadline_ns: u64,
    },
    Opening {
        deadline_ns: u64,
    },
    Open,
    /// To be cut by whoever holds the socket.
    Broken,
    /// Told not to come back, or the run is over.
    Stopped,
}

/// What whoever holds the socket has to do for a phone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// Nothing but to send what is in `out`.
    Nothing,
    /// A connection.
    Connect,
    /// To be cut off from its connection.
    Cut,
}

/// A message without an answer.
#[derive(Debug, Clone, Copy)]
struct Unacked {
    id: ClientMessageId,
    stamp: Stamp,
    was_sent: bool,
    /// Answered by a retryable error; sent again when the others in flight are answered too.
    failed: bool,
}

/// One simulated user.
#[derive(Debug)]
pub struct Phone {
    user: UserId,
    peer: UserId,
    conversation: ConversationId,
    device: u32,
    state: State,
    reader: Option<Reader>,
    /// The answer to the upgrade, until it is whole.
    head: Vec<u8>,
    nonce: [u8; 16],
    /// To be sent.
    pub out: Vec<u8>,
    attempts: u32,
    begun_ns: u64,
    /// The server said when to come back.
    return_at: Option<u64>,

    /// The highest seq below which nothing is missing; none before the first `opened`.
    have: Option<u64>,
    /// The highest seq heard of.
    head_seq: u64,
    change: Option<ChangeNumber>,
    generation: u64,
    pulling: bool,
    received_n: u64,
    beaten_n: u64,
    marked: u64,
    beat_ns: u64,
    offline_ns: u64,
    beat_at: u64,
    mark_at: Option<u64>,
    heard_at: u64,

    /// In the order of sending; the first `in_flight` are with the server.
    unacked: VecDeque<Unacked>,
    in_flight: usize,
    failed: usize,
    oldest_sent_at: u64,
    /// After a retryable error: not before then.
    resend_at: Option<u64>,
    /// A message that was sent again though it had been acknowledged, and its seq.
    echo: Option<(ClientMessageId, u64)>,

    next_counter: u32,
    /// Counters of messages that the server refused for good.
    refused: Vec<u32>,
    /// The other's counter that comes next, and those below it that did not come.
    expected: u32,
    missing: Vec<u32>,
}

impl Phone {
    /// A user who talks to `peer` and connects at `start_ns`.
    pub fn new(user: UserId, peer: UserId, start_ns: u64) -> Self {
        Self {
            user,
            peer,
            conversation: ConversationId::direct(user, peer),
            device: 1,
            state: State::Waiting { until_ns: start_ns },
            reader: None,
            head: Vec::new(),
            nonce: [0; 16],
            out: Vec::new(),
            attempts: 0,
            begun_ns: 0,
            return_at: None,
            have: None,
            head_seq: 0,
            change: None,
            generation: 0,
            pulling: false,
            received_n: 0,
            beaten_n: 0,
            marked: 0,
            beat_ns: 30_000 * MS,
            offline_ns: 60_000 * MS,
            beat_at: 0,
            mark_at: None,
            heard_at: 0,
            unacked: VecDeque::new(),
            in_flight: 0,
            failed: 0,
            oldest_sent_at: 0,
            resend_at: None,
            echo: None,
            next_counter: 0,
            refused: Vec::new(),
            expected: 0,
            missing: Vec::new(),
        }
    }

    /// Whether its session is open.
    pub fn is_open(&self) -> bool {
        self.state == State::Open
    }

    /// Whether it has been open at least once.
    pub fn was_open(&self) -> bool {
        self.have.is_some()
    }

    /// Whether every message has its answer.
    pub fn is_settled(&self) -> bool {
        self.unacked.is_empty()
    }

    /// When [`Self::tick`] must be called next.
    pub fn wakes_at(&self) -> u64 {
        match self.state {
            State::Waiting { until_ns } => until_ns,
            State::Connecting { deadline_ns } | State::Upgrading { deadline_ns } | State::Opening { deadline_ns } => {
                deadline_ns
            }
            State::Broken | State::Stopped => u64::MAX,
            State::Open => {
                let mut at = self.beat_at.min(self.heard_at + self.offline_ns);
                if self.in_flight > 0 {
                    at = at.min(self.oldest_sent_at + ANSWER_NS_MAX);
                }
                at.min(self.mark_at.unwrap_or(u64::MAX)).min(self.resend_at.unwrap_or(u64::MAX))
            }
        }
    }

    /// What falls due by time alone.
    pub fn tick(&mut self, around: &mut Around<'_>) -> Want {
        let now_ns = around.now_ns;
        match self.state {
            State::Waiting { until_ns } if until_ns <= now_ns => {
                self.state = State::Connecting { deadline_ns: now_ns + ANSWER_NS_MAX };
                self.begun_ns = now_ns;
                around.tally.counts.connects += 1;
                return Want::Connect;
            }
            State::Connecting { deadline_ns } | State::Upgrading { deadline_ns } | State::Opening { deadline_ns }
                if deadline_ns <= now_ns =>
            {
                around.tally.counts.timeouts += 1;
                return self.give_up();
            }
            State::Open => return self.tick_open(around),
            State::Broken => return Want::Cut,
            _ => {}
        }
        Want::Nothing
    }

    fn tick_open(&mut self, around: &mut Around<'_>) -> Want {
        let now_ns = around.now_ns;
        let unanswered = self.in_flight > 0 && self.oldest_sent_at + ANSWER_NS_MAX <= now_ns;
        if unanswered || self.heard_at + self.offline_ns <= now_ns {
            around.tally.counts.timeouts += 1;
            return self.give_up();
        }
        if self.mark_at.is_some_and(|at| at <= now_ns) {
            self.mark(around);
        }
        if self.beat_at <= now_ns {
            self.beat(around);
        }
        if self.resend_at.is_some_and(|at| at <= now_ns) && self.failed == self.in_flight {
            self.resend_at = None;
            self.take_back();
            self.send_waiting(around);
        }
        Want::Nothing
    }

    /// A connection stands: asks for the upgrade.
    pub fn connected(&mut self, around: &mut Around<'_>) {
        let State::Connecting { deadline_ns } = self.state else { return };
        self.state = State::Upgrading { deadline_ns };
        self.nonce = around.random.bytes();
        self.head.clear();
        self.out.clear();
        let token = around.key.token(self.user, self.device);
        write_upgrade_request(&mut self.out, &upgrade_request(around.habits, self.nonce, Some(&token)));
    }

    /// There is no connection any more, or there was none to be had.
    pub fn disconnected(&mut self, around: &mut Around<'_>) {
        if self.state == State::Stopped {
            return;
        }
        if matches!(self.state, State::Connecting { .. }) {
            around.tally.counts.connect_failures += 1;
        } else {
            around.tally.counts.cut += 1;
        }
        self.reader = None;
        self.head = Vec::new();
        self.out.clear();
        self.pulling = false;
        self.mark_at = None;
        self.resend_at = None;
        self.echo = None;
        self.take_back();
        let bound_ns = (around.habits.backoff_ns << self.attempts.min(20)).min(around.habits.backoff_ns_max);
        self.attempts += 1;
        let until_ns = self.return_at.take().unwrap_or_else(|| around.now_ns + around.random.below(bound_ns));
        self.state = State::Waiting { until_ns };
    }

    /// A message fell due. It is sent at once if it can be, and waits otherwise.
    pub fn write_message(&mut self, due_ns: u64, around: &mut Around<'_>) {
        around.tally.counts.offered += 1;
        let stamp = Stamp { run: around.habits.run, counter: self.next_counter, due_ns };
        self.next_counter += 1;
        let unix_ms = around.habits.unix_ms + around.now_ns / MS;
        let id = uuid::Builder::from_unix_timestamp_millis(unix_ms, &around.random.bytes()).into_uuid();
        let id = ClientMessageId(id.into_bytes());
        self.unacked.push_back(Unacked { id, stamp, was_sent: false, failed: false });
        self.send_waiting(around);
    }

    /// Gives up what was never sent; what was sent goes on waiting for its answer.
    pub fn give_up_unsent(&mut self, around: &mut Around<'_>) -> Want {
        while self.unacked.back().is_some_and(|unacked| !unacked.was_sent) {
            self.unacked.pop_back();
            // None of them was seen by anybody: their counters never were.
            self.next_counter -= 1;
            around.tally.counts.unsent += 1;
        }
        Want::Nothing
    }

    /// Ends the session in order; nothing follows.
    pub fn hang_up(&mut self, around: &mut Around<'_>) -> Want {
        let open = self.state == State::Open;
        self.state = State::Stopped;
        if open {
            write_close(&mut self.out, Some(around.random.bytes()), 1000, "");
            return Want::Nothing;
        }
        Want::Cut
    }

    /// Bytes arrived.
    pub fn received(&mut self, bytes: &mut [u8], around: &mut Around<'_>) -> Want {
        around.tally.counts.bytes_in += bytes.len() as u64;
        self.heard_at = around.now_ns;
        match self.state {
            State::Upgrading { .. } => self.upgrading(bytes, around),
            State::Opening { .. } | State::Open => self.read_frames(bytes, around),
            _ => {}
        }
        if self.state == State::Broken { Want::Cut } else { Want::Nothing }
    }

    fn upgrading(&mut self, bytes: &[u8], around: &mut Around<'_>) {
        self.head.extend_from_slice(bytes);
        match read_upgrade_response(&self.head, &upgrade_request(around.habits, self.nonce, None)) {
            Ok(None) => {}
            Ok(Some(head_bytes)) => {
                let State::Upgrading { deadline_ns } = self.state else { return };
                self.state = State::Opening { deadline_ns };
                self.reader = Some(Reader::new(Role::Client));
                self.received_n = 0;
                self.beaten_n = 0;
                let (device, change) = (self.device, self.change);
                self.say(around, |out| frames::open(out, device, change));
                let mut rest = std::mem::take(&mut self.head);
                self.read_frames(&mut rest[head_bytes..], around);
            }
            Err(error) => {
                around.tally.error(&error.to_string());
                self.state = State::Broken;
            }
        }
    }

    fn read_frames(&mut self, bytes: &mut [u8], around: &mut Around<'_>) {
        let Some(mut reader) = self.reader.take() else { return };
        let mut input = Input::new(bytes);
        loop {
            match reader.next(LIMITS, &mut input) {
                Ok(None) => break,
                Ok(Some(Event::Text(text))) => match Heard::read(text) {
                    Ok(heard) => self.heard(&heard, around),
                    Err(_) => around.tally.counts.malformed += 1,
                },
                Ok(Some(Event::Ping(payload))) => {
                    write_frame(&mut self.out, Opcode::Pong, Some(around.random.bytes()), payload);
                }
                Ok(Some(Event::Close(close))) => self.closing(close.map_or(1005, |close| close.code), around),
                Ok(Some(Event::Binary(_) | Event::Pong(_))) => {}
                Err(error) => {
                    around.tally.error(&error.to_string());
                    self.state = State::Broken;
                    break;
                }
            }
            if !matches!(self.state, State::Opening { .. } | State::Open) {
                break;
            }
        }
        self.reader = Some(reader);
    }

    /// The number alone says what to do next.
    fn closing(&mut self, code: u16, around: &mut Around<'_>) {
        around.tally.error(&format!("close {code}"));
        self.state = match code {
            4200..=4299 => State::Stopped,
            _ => State::Broken,
        };
        if (4100..=4199).contains(&code) {
            self.change = None;
        }
    }

    fn heard(&mut self, heard: &Heard<'_>, around: &mut Around<'_>) {
        match heard.kind.0.as_ref() {
            "message" => self.message(heard, around),
            "stored" => self.stored(heard, around),
            "tick" => {
                around.tally.counts.ticks += 1;
                self.note_change(heard);
            }
            "mark" => self.note_change(heard),
            "beat" | "auth" | "signal" | "changes" => {}
            "page" => self.page(heard, around),
            "hello" => {
                self.beat_ns = heard.beat_ms.max(1) * MS;
                self.offline_ns = heard.offline_ms.max(1) * MS;
                self.note_generation(heard.generation.0, around);
            }
            "opened" => self.opened(heard, around),
            "lagging" => {
                around.tally.counts.lagging += 1;
                self.note_head(heard.head.0, around);
            }
            "move" => {
                around.tally.counts.moves += 1;
                self.return_at = Some(around.now_ns + around.random.below(heard.spread_ms.max(1) * MS));
                self.state = State::Broken;
            }
            "error" => self.error(heard, around),
            _ => around.tally.counts.malformed += 1,
        }
    }

    fn opened(&mut self, heard: &Heard<'_>, around: &mut Around<'_>) {
        self.state = State::Open;
        self.attempts = 0;
        around.tally.counts.opened += 1;
        around.tally.opening.record(around.now_ns.saturating_sub(self.begun_ns));
        let ours = self.conversation.to_string();
        let listed = heard.conversations.iter().find(|listed| listed.conv.0 == ours).map(|listed| listed.head.0);
        if let Some(have) = self.have {
            around.tally.counts.reopened += 1;
            if heard.ahead || listed.is_some_and(|head| head < have) {
                around.tally.counts.shrunk += 1;
                self.have = Some(listed.unwrap_or(0).min(have));
                self.head_seq = self.have.unwrap_or(0);
            }
        } else {
            // What was written before the run is none of its business.
            self.have = Some(listed.unwrap_or(0));
            self.marked = listed.unwrap_or(0);
        }
        // A replay follows as live frames; whoever took its end for granted would skip what a cut swallows.
        if heard.result.as_ref().is_none_or(|result| result.0 != "replay") || self.change.is_none() {
            self.note_change(heard);
        }
        self.note_head(listed.unwrap_or(self.head_seq), around);
        self.beat_at = around.now_ns + around.random.below(self.beat_ns);
        self.mark_at = self.have.filter(|&have| have > 0).map(|_| around.now_ns + around.habits.mark_ns);
        self.send_waiting(around);
    }

    fn message(&mut self, heard: &Heard<'_>, around: &mut Around<'_>) {
        self.received_n = self.received_n.max(heard.n.0);
        // Within a second, at a moment of its own.
        let soon = around.now_ns + 200 * MS + around.random.below(600 * MS);
        self.beat_at = self.beat_at.min(soon);
        self.note_change(heard);
        if heard.conv.as_ref().and_then(|conv| conv.0.parse().ok()) != Some(self.conversation) {
            return;
        }
        let body = heard.body.as_ref().map_or("", |body| &body.0);
        let from = heard.from.as_ref().and_then(|from| from.0.parse().ok());
        self.take_in(heard.seq.0, from, body, around);
    }

    fn page(&mut self, heard: &Heard<'_>, around: &mut Around<'_>) {
        self.pulling = false;
        let before = self.have;
        for Item { seq, from, body, .. } in &heard.messages {
            self.take_in(seq.0, from.0.parse().ok(), &body.0, around);
        }
        // A page that brought nothing is not asked for again at once, or both ends would do nothing else.
        if self.have > before {
            self.note_head(heard.head.0, around);
        }
    }

    /// The client rule: drop, apply, or fetch what is missing.
    fn take_in(&mut self, seq: u64, from: Option<UserId>, body: &str, around: &mut Around<'_>) {
        let have = self.have.unwrap_or(0);
        if seq <= have {
            around.tally.counts.repeats += 1;
        } else if seq == have + 1 {
            self.have = Some(seq);
            self.head_seq = self.head_seq.max(seq);
            if from == Some(self.peer) {
                self.mark_at.get_or_insert(around.now_ns + around.habits.mark_ns);
                self.apply(body, around);
            }
        } else {
            around.tally.counts.gaps += 1;
            self.note_head(seq, around);
        }
    }

    /// The other user's next message.
    fn apply(&mut self, body: &str, around: &mut Around<'_>) {
        let Some(stamp) = Stamp::read(body).filter(|stamp| stamp.run == around.habits.run) else { return };
        if stamp.counter >= self.expected {
            self.missing.extend(self.expected..stamp.counter);
            self.expected = stamp.counter + 1;
        } else if let Some(at) = self.missing.iter().position(|&missing| missing == stamp.counter) {
            self.missing.swap_remove(at);
            around.tally.counts.reordered += 1;
        } else {
            around.tally.counts.doubled += 1;
            return;
        }
        around.tally.counts.delivered += 1;
        around.tally.delivery.record(around.now_ns.saturating_sub(stamp.due_ns));
    }

    fn stored(&mut self, heard: &Heard<'_>, around: &mut Around<'_>) {
        let Some(id) = heard.id.as_ref().and_then(|id| id.0.parse().ok()) else {
            around.tally.counts.malformed += 1;
            return;
        };
        self.note_generation(heard.generation.0, around);
        let seq = heard.seq.0;
        if seq == self.have.unwrap_or(0) + 1 {
            self.have = Some(seq);
        }
        self.note_head(seq, around);
        if let Some((echo, first_seq)) = self.echo
            && echo == id
        {
            self.echo = None;
            around.tally.counts.doubled += u64::from(seq != first_seq || !heard.dup);
            return;
        }
        let Some(at) = self.unacked.iter().position(|unacked| unacked.id == id) else { return };
        let unacked = self.unacked.remove(at).expect("it was found there");
        self.in_flight -= usize::from(at < self.in_flight);
        self.failed -= usize::from(unacked.failed);
        self.oldest_sent_at = around.now_ns;
        around.tally.counts.acked += 1;
        around.tally.counts.dup_acks += u64::from(heard.dup);
        let took_ns = around.now_ns.saturating_sub(unacked.stamp.due_ns);
        around.tally.ack.record(took_ns);
        self.write_down(&unacked, heard, around);
        if around.habits.resend && unacked.stamp.counter % 100 == 99 && self.echo.is_none() {
            self.echo = Some((id, seq));
            around.tally.counts.resent += 1;
            self.say_message(id, unacked.stamp, around);
        }
        self.send_waiting(around);
    }

    fn write_down(&self, unacked: &Unacked, heard: &Heard<'_>, around: &mut Around<'_>) {
        let Some(acks) = around.acks.as_deref_mut() else { return };
        unacked.stamp.write(around.body, around.habits.payload_bytes);
        acks.note(&Ack {
            conversation: self.conversation.to_string(),
            seq: heard.seq.0,
            id: unacked.id.to_string(),
            generation: heard.generation.0,
            time: heard.time.0,
            sender: self.user.0,
            device: self.device,
            body: format!("{:016x}", hash(around.body.as_bytes())),
        });
    }

    fn error(&mut self, heard: &Heard<'_>, around: &mut Around<'_>) {
        let code = heard.code.as_ref().map_or("none", |code| &code.0);
        around.tally.error(code);
        let wait_ns = heard.after_ms.unwrap_or(1_000).max(1) * MS;
        let wait_ns = wait_ns / 2 + around.random.below(wait_ns);
        if let State::Opening { .. } = self.state {
            self.state = State::Broken;
            return;
        }
        let id: Option<ClientMessageId> = heard.id.as_ref().and_then(|id| id.0.parse().ok());
        if self.echo.is_some_and(|(echo, _)| Some(echo) == id) {
            self.echo = None;
            return;
        }
        if let Some(at) = self.unacked.iter().position(|unacked| Some(unacked.id) == id) {
            if heard.retryable {
                self.failed += usize::from(at < self.in_flight && !self.unacked[at].failed);
                self.unacked[at].failed = true;
                self.resend_at = Some((around.now_ns + wait_ns).max(self.resend_at.unwrap_or(0)));
            } else {
                let refused = self.unacked.remove(at).expect("it was found there");
                self.in_flight -= usize::from(at < self.in_flight);
                self.failed -= usize::from(refused.failed);
                self.refused.push(refused.stamp.counter);
                around.tally.counts.failed += 1;
            }
        } else if self.pulling {
            // Most likely the pull's: it is asked again at the next sign of a gap.
            self.pulling = false;
        }
    }

    /// Sends what waits, if nothing speaks against it.
    fn send_waiting(&mut self, around: &mut Around<'_>) {
        if self.state != State::Open || self.resend_at.is_some() {
            return;
        }
        while self.in_flight < self.unacked.len().min(around.habits.in_flight_max) {
            if self.in_flight == 0 {
                self.oldest_sent_at = around.now_ns;
            }
            let unacked = &mut self.unacked[self.in_flight];
            let again = std::mem::replace(&mut unacked.was_sent, true);
            let (id, stamp) = (unacked.id, unacked.stamp);
            let counts = &mut around.tally.counts;
            *(if again { &mut counts.resent } else { &mut counts.sent }) += 1;
            self.in_flight += 1;
            self.say_message(id, stamp, around);
        }
    }

    fn say_message(&mut self, id: ClientMessageId, stamp: Stamp, around: &mut Around<'_>) {
        stamp.write(around.body, around.habits.payload_bytes);
        let (conversation, mask) = (self.conversation, around.random.bytes());
        write_text_with(&mut self.out, Some(mask), |out| frames::send(out, id, conversation, around.body));
    }

    fn mark(&mut self, around: &mut Around<'_>) {
        self.mark_at = None;
        let have = self.have.unwrap_or(0);
        self.marked = have;
        around.tally.counts.marks += 1;
        let conversation = self.conversation;
        self.say(around, |out| frames::mark(out, conversation, have));
    }

    fn beat(&mut self, around: &mut Around<'_>) {
        self.beaten_n = self.received_n;
        self.beat_at = around.now_ns + self.beat_ns;
        around.tally.counts.beats += 1;
        let received = self.received_n;
        self.say(around, |out| frames::beat(out, received));
    }

    /// Something exists at `head`: if that is not the next or before, it is fetched.
    fn note_head(&mut self, head: u64, around: &mut Around<'_>) {
        self.head_seq = self.head_seq.max(head);
        let have = self.have.unwrap_or(0);
        if self.head_seq > have && !self.pulling && self.state == State::Open {
            self.pulling = true;
            around.tally.counts.pulls += 1;
            let conversation = self.conversation;
            self.say(around, |out| frames::pull(out, conversation, have));
        }
    }

    fn note_change(&mut self, heard: &Heard<'_>) {
        if let Some(change) = heard.change.as_ref().and_then(|change| change.0.parse().ok()) {
            self.change = Some(change);
        }
    }

    fn note_generation(&mut self, generation: u64, around: &mut Around<'_>) {
        if self.generation != 0 && generation != 0 && generation != self.generation {
            around.tally.counts.generations += 1;
        }
        if generation != 0 {
            self.generation = generation;
        }
    }

    fn say(&mut self, around: &mut Around<'_>, write: impl FnOnce(&mut Vec<u8>)) {
        write_text_with(&mut self.out, Some(around.random.bytes()), write);
    }

    /// Nothing is with the server any more; all of it will be sent again, in order.
    fn take_back(&mut self) {
        self.in_flight = 0;
        self.failed = 0;
        for unacked in &mut self.unacked {
            unacked.failed = false;
        }
    }

    fn give_up(&mut self) -> Want {
        self.state = State::Broken;
        Want::Cut
    }
}

fn upgrade_request<'a>(habits: &'a Habits, nonce: [u8; 16], bearer: Option<&'a str>) -> UpgradeRequest<'a> {
    let (host, target) = (&habits.host, &habits.target);
    UpgradeRequest { host, target, nonce, subprotocol: Some(SUBPROTOCOL_JSON), bearer }
}

/// Counts, when all is over, what `sender` was promised and `receiver` never got.
pub fn audit(sender: &Phone, receiver: &Phone, counts: &mut Counts) {
    counts.unanswered += sender.unacked.len() as u64;
    let promised = |counter: &u32| {
        !sender.refused.contains(counter) && !sender.unacked.iter().any(|unacked| unacked.stamp.counter == *counter)
    };
    let absent = receiver.missing.iter().copied().chain(receiver.expected..sender.next_counter);
    counts.lost += absent.filter(promised).count() as u64;
}
