//! A simulated phone: it obeys the client rules of `docs/protocol.md`, and does now and then what no
//! decent phone would do but the server must bear.

mod doing;

use std::collections::BTreeMap;

use wire::close::CloseCode;
use wire::ids::{ChangeNumber, ConversationId, DeviceId, UserId};
use wire::json::{Received, decode_server, encode_client};
use wire::protocol::{ClientFrame, ErrorCode, ErrorFrame, MessageItem, Open, OpenResult, Stored, Summary};
use wire::reader::{Event, Input, Reader};
use wire::upgrade::{UpgradeRefused, UpgradeRequest, read_upgrade_response, write_upgrade_request};
use wire::websocket::{Limits, Role};
use wire::writer::write_text_with;

use crate::broken;
use crate::chat_log::{ChatLog, Expect, Way};
use crate::checker::{Change, Checker, Verdict, Violation};
use crate::rng::Rng;

/// How one phone behaves.
#[derive(Debug, Clone)]
pub struct Habits {
    /// Sends under way at the same time, per conversation.
    pub pipeline: usize,
    /// Ids that are not UUIDv7, in a thousand.
    pub random_ids: u32,
    /// How far its clock is off.
    pub clock_ms: i64,
    /// Gives up a failed send, in a thousand.
    pub skips: u32,
    /// Messages in one pull.
    pub page: u32,
    /// Sends a failed one again while others in front of it are still without an answer.
    pub hasty: bool,
    /// Gives up a connection that does not answer for so long.
    pub patience_ms: Option<u64>,
    /// For how long the server knows an id.
    pub window_ms: u64,
}

/// The times that a phone sees.
#[derive(Debug, Clone, Copy)]
pub struct Clocks {
    pub now_ms: u64,
    pub wall_ms: u64,
}

/// How far a connection is.
#[derive(Debug)]
enum Stage {
    Down,
    Shaking { nonce: [u8; 16], head: Vec<u8> },
    Opening { since_ms: u64, floors: BTreeMap<ConversationId, u64> },
    Open,
}

/// See the module.
#[derive(Debug)]
pub struct Phone {
    pub user: UserId,
    pub device: DeviceId,
    pub habits: Habits,
    rng: Rng,
    token: String,
    stage: Stage,
    reader: Reader,
    /// Bytes for the server.
    pub out: Vec<u8>,
    /// It has had enough of this connection.
    pub wants_cut: bool,
    /// No connection before then.
    pub down_until_ms: u64,
    failures: u32,
    generation: Option<u64>,
    /// The last change of which it has heard, on any connection.
    pub change: Option<ChangeNumber>,
    /// The last change on this connection.
    link_change: Option<ChangeNumber>,
    asked_changes: Option<AskedChanges>,
    pub chats: BTreeMap<ConversationId, ChatLog>,
    /// Messages received on this connection, and how many of them were acknowledged.
    n: u64,
    beaten: u64,
    beat_due_ms: u64,
    beat_asked_ms: Option<u64>,
    orders: u64,
    counter: u64,
    /// What the last snapshot said, for the audit.
    pub listed: BTreeMap<ConversationId, Listed>,
}

/// A list of changes that is being read, piece by piece.
#[derive(Debug)]
struct AskedChanges {
    /// Where it began, and where the next piece begins.
    first: ChangeNumber,
    after: ChangeNumber,
    limit: usize,
    listed: Vec<ConversationId>,
    since_ms: u64,
}

/// A summary without its message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listed {
    pub head: u64,
    pub unread: u64,
    pub read: u64,
    pub delivered: u64,
    pub read_all: u64,
    pub delivered_all: u64,
}

const BEAT_MS: u64 = 30_000;

impl Phone {
    /// A phone that has never been connected.
    pub fn new(user: UserId, device: DeviceId, token: String, habits: Habits, rng: Rng) -> Self {
        Self {
            user,
            device,
            habits,
            rng,
            token,
            stage: Stage::Down,
            reader: Reader::new(Role::Client),
            out: Vec::new(),
            wants_cut: false,
            down_until_ms: 0,
            failures: 0,
            generation: None,
            change: None,
            link_change: None,
            asked_changes: None,
            chats: BTreeMap::new(),
            n: 0,
            beaten: 0,
            beat_due_ms: 0,
            beat_asked_ms: None,
            orders: 0,
            counter: 0,
            listed: BTreeMap::new(),
        }
    }

    /// Whether it has no connection.
    pub fn is_down(&self) -> bool {
        matches!(self.stage, Stage::Down)
    }

    /// Whether its session works.
    pub fn is_open(&self) -> bool {
        matches!(self.stage, Stage::Open)
    }

    /// A new connection: the handshake goes out.
    pub fn connect(&mut self) {
        let mut nonce = [0; 16];
        nonce[..8].copy_from_slice(&self.rng.number().to_le_bytes());
        self.out.clear();
        self.reader = Reader::new(Role::Client);
        self.wants_cut = false;
        write_upgrade_request(&mut self.out, &upgrade(nonce, &self.token));
        self.stage = Stage::Shaking { nonce, head: Vec::new() };
    }

    /// The connection is gone.
    pub fn cut(&mut self, clocks: Clocks) {
        self.stage = Stage::Down;
        self.out.clear();
        self.wants_cut = false;
        self.link_change = None;
        self.asked_changes = None;
        self.n = 0;
        self.beaten = 0;
        self.beat_asked_ms = None;
        self.failures = (self.failures + 1).min(6);
        self.down_until_ms = clocks.now_ms + self.rng.below(20 << self.failures);
        for chat in self.chats.values_mut() {
            chat.cut();
        }
    }

    fn write(&mut self, frame: &ClientFrame<'_>) {
        let mask = (self.rng.number() as u32).to_le_bytes();
        write_text_with(&mut self.out, Some(mask), |out| encode_client(out, frame));
    }

    /// Bytes from the server.
    pub fn receive(&mut self, clocks: Clocks, bytes: &mut [u8], checker: &mut Checker) -> Verdict {
        if let Stage::Shaking { nonce, head } = &mut self.stage {
            head.extend_from_slice(bytes);
            let answer = read_upgrade_response(head, &upgrade(*nonce, &self.token));
            let length = match answer {
                Ok(Some(length)) => length,
                Ok(None) => return Ok(()),
                // Too slow for the server's patience, or the server is leaving.
                Err(UpgradeRefused::Status(408 | 503)) => {
                    self.wants_cut = true;
                    return Ok(());
                }
                Err(error) => broken!("handshake: {error}"),
            };
            let mut rest = head.split_off(length);
            self.open(clocks, checker);
            return if rest.is_empty() { Ok(()) } else { self.frames(clocks, &mut rest, checker) };
        }
        self.frames(clocks, bytes, checker)
    }

    fn frames(&mut self, clocks: Clocks, bytes: &mut [u8], checker: &mut Checker) -> Verdict {
        let limits = Limits { message_bytes_max: 1 << 20, fragments_max: 4 };
        let mut reader = std::mem::replace(&mut self.reader, Reader::new(Role::Client));
        let mut input = Input::new(bytes);
        let mut verdict = Ok(());
        while verdict.is_ok() && !self.wants_cut {
            match reader.next(limits, &mut input) {
                Ok(None) => break,
                Ok(Some(Event::Text(text))) => {
                    checker.frames += 1;
                    verdict = match decode_server(text) {
                        Ok(frame) => self.frame(clocks, &frame, checker),
                        Err(error) => Err(Violation(format!("a frame that cannot be read: {error}: {text}"))),
                    };
                }
                Ok(Some(Event::Close(close))) => verdict = self.closed(close.map(|close| close.code)),
                Ok(Some(Event::Ping(_) | Event::Pong(_) | Event::Binary(_))) => {}
                Err(error) => verdict = Err(Violation(format!("the server broke the framing: {error}"))),
            }
        }
        self.reader = reader;
        verdict
    }

    /// The server closes. What it says of us must not be that we broke its rules.
    fn closed(&mut self, code: Option<u16>) -> Verdict {
        self.wants_cut = true;
        let known = CloseCode::ALL.iter().find(|known| Some(known.number()) == code);
        match known {
            Some(
                CloseCode::Protocol
                | CloseCode::Unsupported
                | CloseCode::BadText
                | CloseCode::TooBig
                | CloseCode::Internal
                | CloseCode::Unauthorized
                | CloseCode::InvalidSession
                | CloseCode::TokenExpired,
            )
            | None => broken!("phone {}/{} was closed with {code:?}", self.user, self.device),
            Some(_) => Ok(()),
        }
    }

    fn open(&mut self, clocks: Clocks, checker: &Checker) {
        let open = Open { token: None, ticket: None, device: None, changes_after: self.change, window: Some(50) };
        self.write(&ClientFrame::Open(open));
        let floors = checker.conversations_of(self.user).map(|id| (id, checker.shown(id))).collect();
        self.stage = Stage::Opening { since_ms: clocks.now_ms, floors };
        self.beat_due_ms = clocks.now_ms + self.rng.below(BEAT_MS);
    }

    fn frame(&mut self, clocks: Clocks, frame: &Received<'_>, checker: &mut Checker) -> Verdict {
        let is_open = self.is_open();
        match frame {
            Received::Hello { generation, .. } => self.greeted(*generation),
            Received::Opened { user, device, result, change, conversations, more, ahead, .. } => {
                if (*user, *device) != (self.user, self.device) {
                    broken!("opened as {user}/{device}, and this is {}/{}", self.user, self.device);
                }
                if *ahead || *more {
                    broken!("opened says ahead {ahead}, more {more}");
                }
                return self.opened(clocks, *result, *change, conversations, checker);
            }
            Received::Error(error) => return self.refused(clocks, error, checker),
            // It stays for as long as it may; who does not leave is sent away.
            Received::Move { .. } => {}
            _ if !is_open => broken!("a frame before `opened`: {frame:?}"),
            Received::Stored(stored) => return self.stored(stored, checker),
            Received::Message(message) => {
                if message.n != self.n + 1 {
                    broken!("message number {} follows {}", message.n, self.n);
                }
                self.n += 1;
                let (id, seq) = (message.conversation, message.item.seq);
                self.changed(message.change, Change::Message(id, seq), checker)?;
                checker.message(self.user, id, &message.item)?;
                if self.beaten + 1 == self.n {
                    self.beat_due_ms = self.beat_due_ms.min(clocks.now_ms + self.rng.below(1_000));
                }
                let chat = self.chat(id);
                chat.unbeaten = chat.unbeaten.max(seq);
                chat.take(seq);
                self.check_own(id, &message.item)?;
            }
            Received::Beat { received } => {
                if *received > self.n {
                    broken!("a beat for {received} of {} messages", self.n);
                }
                self.beat_asked_ms = None;
            }
            Received::Mark { conversation, delivered, read, change } => {
                let (delivered, read) = (delivered.unwrap_or(0), read.unwrap_or(0));
                self.changed(*change, Change::Mark(*conversation, read), checker)?;
                checker.own_marks(self.user, *conversation, delivered, read)?;
                let chat = self.chat(*conversation);
                chat.read = chat.read.max(read);
            }
            Received::Tick { conversation, delivered_all, read_all, change } => {
                self.changed(*change, Change::Tick(*conversation, *delivered_all, *read_all), checker)?;
                checker.ticks(self.user, *conversation, *delivered_all, *read_all)?;
                let (tick, chat) = ((*delivered_all, *read_all), self.chat(*conversation));
                if tick.0 < chat.tick.0 || tick.1 < chat.tick.1 {
                    broken!("{conversation}: ticks fell from {:?} to {tick:?}", chat.tick);
                }
                chat.tick = tick;
            }
            Received::Page { .. } => return self.page(frame, checker),
            Received::Changes { list, next, too_old } => {
                for summary in list {
                    self.summary(summary, 0, checker)?;
                }
                let Some(mut asked) = self.asked_changes.take() else { broken!("changes that nobody asked for") };
                if *too_old {
                    return Ok(());
                }
                asked.listed.extend(list.iter().map(|summary| summary.conversation));
                if list.len() < asked.limit {
                    return checker.covers(self.user, asked.first, *next, &asked.listed);
                }
                asked.after = *next;
                self.ask_changes(clocks, asked);
            }
            Received::Signal { conversation, from, .. } => {
                Checker::party(self.user, *conversation)?;
                Checker::party(*from, *conversation)?;
            }
            Received::Lagging { conversation, head } => {
                Checker::party(self.user, *conversation)?;
                let chat = self.chat(*conversation);
                chat.head = chat.head.max(*head);
                if self.asked_changes.is_none()
                    && let Some(after) = self.change
                {
                    self.begin_changes(clocks, after);
                }
            }
            Received::Auth { .. } => {}
            Received::Conversations { .. } | Received::Unknown(_) => broken!("not a frame for a socket: {frame:?}"),
        }
        Ok(())
    }

    fn begin_changes(&mut self, clocks: Clocks, after: ChangeNumber) {
        let limit = self.rng.between(1, 3) as usize;
        let asked = AskedChanges { first: after, after, limit, listed: Vec::new(), since_ms: clocks.now_ms };
        self.ask_changes(clocks, asked);
    }

    fn ask_changes(&mut self, clocks: Clocks, asked: AskedChanges) {
        self.write(&ClientFrame::Changes { after: asked.after, limit: Some(asked.limit as u32) });
        self.asked_changes = Some(AskedChanges { since_ms: clocks.now_ms, ..asked });
    }

    fn greeted(&mut self, generation: u64) {
        if self.generation.is_some_and(|known| known != generation) {
            // Another history: everything that was known of the old one goes.
            self.change = None;
            self.chats.values_mut().for_each(ChatLog::forget_history);
        }
        self.generation = Some(generation);
    }

    fn chat(&mut self, id: ConversationId) -> &mut ChatLog {
        self.chats.entry(id).or_default()
    }

    /// A message of this device's own must be one that it sent.
    fn check_own(&mut self, id: ConversationId, item: &MessageItem<'_>) -> Verdict {
        if item.from == self.user && item.device == self.device && item.id.is_none() {
            broken!("{id}: the author is shown message {} without its id", item.seq);
        }
        Ok(())
    }

    fn changed(&mut self, number: ChangeNumber, change: Change, checker: &mut Checker) -> Verdict {
        if self.link_change.is_some_and(|last| number <= last) {
            broken!("user {}: change {number} comes after {:?}", self.user, self.link_change);
        }
        self.link_change = Some(number);
        self.change = Some(number);
        checker.change(self.user, number, change)
    }

    fn opened(
        &mut self,
        clocks: Clocks,
        result: OpenResult,
        change: ChangeNumber,
        list: &[Summary<'_>],
        checker: &mut Checker,
    ) -> Verdict {
        let Stage::Opening { floors, .. } = std::mem::replace(&mut self.stage, Stage::Open) else {
            broken!("opened twice");
        };
        self.failures = 0;
        let listed: Vec<_> = list.iter().map(|summary| summary.conversation).collect();
        if let Some(after) = self.change {
            checker.covers(self.user, after, change, &listed)?;
        }
        if result == OpenResult::Snapshot {
            self.listed.clear();
        }
        for summary in list {
            self.summary(summary, floors.get(&summary.conversation).copied().unwrap_or(0), checker)?;
        }
        self.change = Some(change);
        self.link_change = Some(change);
        // With a little spread, as phones with many conversations should.
        for chat in self.chats.values_mut().filter(|chat| chat.have > 0 || chat.read > 0) {
            chat.marks_due_ms = Some(clocks.now_ms + self.rng.below(50));
        }
        Ok(())
    }

    fn summary(&mut self, summary: &Summary<'_>, floor: u64, checker: &mut Checker) -> Verdict {
        checker.summary(self.user, summary, floor)?;
        let listed = Listed {
            head: summary.head,
            unread: summary.unread,
            read: summary.read,
            delivered: summary.delivered,
            read_all: summary.read_all,
            delivered_all: summary.delivered_all,
        };
        self.listed.insert(summary.conversation, listed);
        let chat = self.chat(summary.conversation);
        chat.head = chat.head.max(summary.head);
        chat.read = chat.read.max(summary.read);
        Ok(())
    }

    fn stored(&mut self, stored: &Stored, checker: &mut Checker) -> Verdict {
        if Some(stored.generation) != self.generation || stored.class != "d1" {
            broken!("stored at generation {} with class {}", stored.generation, stored.class);
        }
        let (user, device) = (self.user, self.device);
        let chat = self.chat(stored.conversation);
        // An answer may come twice: to the send and to its repetition.
        let Some(at) = chat.outgoing.iter().position(|outgoing| outgoing.id == stored.id) else { return Ok(()) };
        let outgoing = chat.outgoing.remove(at).expect("just found");
        match outgoing.expect {
            Expect::Stored => checker.stored(user, device, stored, &outgoing.body)?,
            Expect::Again(seq) if seq == stored.seq && stored.dup => {}
            Expect::Again(_) | Expect::Conflict => broken!("{outgoing:?} was answered with {stored:?}"),
        }
        chat.head = chat.head.max(stored.seq);
        if chat.acknowledged.len() < 8 && outgoing.expect == Expect::Stored {
            chat.acknowledged.push((outgoing, stored.seq));
        }
        Ok(())
    }

    fn refused(&mut self, clocks: Clocks, error: &ErrorFrame<'_>, checker: &Checker) -> Verdict {
        // Impatient while everything goes wrong, as asked once the world is calm.
        let haste = if self.habits.patience_ms.is_some() { 10 } else { 1 };
        let not_before_ms = clocks.now_ms + u64::from(error.after_ms.unwrap_or(0)) / haste + self.rng.below(40);
        match error.code {
            ErrorCode::Retry
            | ErrorCode::Unavailable
            | ErrorCode::Overloaded
            | ErrorCode::RateLimited
            | ErrorCode::IdConflict
            | ErrorCode::IdExpired
            | ErrorCode::BadCursor
            | ErrorCode::TooManySessions => {}
            _ => broken!("phone {}/{}: {error:?}", self.user, self.device),
        }
        let Some(id) = error.id else {
            self.refused_other(error, not_before_ms);
            return Ok(());
        };
        let chats = self.chats.iter_mut();
        let mut chats = chats.filter(|(conversation, _)| error.conversation.is_none_or(|of| of == **conversation));
        let found = chats.find_map(|(of, chat)| Some((chat.outgoing.iter().position(|out| out.id == id)?, *of, chat)));
        let Some((at, conversation, chat)) = found else { return Ok(()) };
        let outgoing = &mut chat.outgoing[at];
        if error.code.retryable() {
            outgoing.way = Way::Failed { not_before_ms };
            return Ok(());
        }
        let expected = match error.code {
            ErrorCode::IdConflict => outgoing.expect == Expect::Conflict,
            ErrorCode::IdExpired => {
                let key = (conversation, self.user, self.device, id);
                let is_old = clocks.now_ms >= outgoing.written_ms + self.habits.window_ms;
                let is_behind = self.habits.clock_ms < 0;
                outgoing.expect == Expect::Stored && (is_old || checker.may_expire(&key, is_behind))
            }
            _ => false,
        };
        if !expected {
            broken!("{outgoing:?} was answered with {error:?}");
        }
        chat.outgoing.remove(at);
        Ok(())
    }

    fn refused_other(&mut self, error: &ErrorFrame<'_>, not_before_ms: u64) {
        if error.code == ErrorCode::BadCursor {
            return;
        }
        match error.conversation {
            Some(id) => {
                let chat = self.chat(id);
                chat.pulling = None;
                chat.is_ambiguous = true;
                chat.pull_not_before_ms = not_before_ms;
                chat.marks_due_ms.get_or_insert(not_before_ms);
            }
            None => self.asked_changes = None,
        }
    }

    fn page(&mut self, frame: &Received<'_>, checker: &mut Checker) -> Verdict {
        let Received::Page { conversation: id, messages, head, more, first_seq, .. } = frame else {
            unreachable!("matched by the caller")
        };
        let (id, head, more, first) = (*id, *head, *more, *first_seq);
        for item in messages {
            checker.message(self.user, id, item)?;
            self.check_own(id, item)?;
        }
        let seqs: Vec<u64> = messages.iter().map(|item| item.seq).collect();
        let chat = self.chat(id);
        if let (Some(asked), false) = (chat.pulling.take(), chat.is_ambiguous) {
            let dense = match (asked.after, asked.before) {
                (Some(after), _) => {
                    let ends = seqs.last().map_or(head <= after, |&last| more == (last < head));
                    ends && seqs.iter().copied().eq(after + 1..=after + seqs.len() as u64)
                }
                (None, before) => {
                    // The head may have grown between the reading and the answer.
                    let highest = seqs.first().copied().unwrap_or(0);
                    let begins = highest >= before.map_or(asked.floor, |before| asked.floor.min(before - 1));
                    let within = before.is_none_or(|before| highest < before);
                    let ends = seqs.last().is_none_or(|&last| more == (last > first));
                    begins && within && ends && seqs.iter().copied().eq((1..=highest).rev().take(seqs.len()))
                }
            };
            if !dense || head < asked.floor {
                broken!("{id}: the page for {asked:?} has {seqs:?}, head {head}, first {first}, more {more}");
            }
        }
        chat.head = chat.head.max(head);
        for seq in seqs {
            chat.take(seq);
        }
        Ok(())
    }

    /// The oldest question without an answer: what it is and since when.
    pub fn waits_for(&self) -> Option<(u64, String)> {
        let mut waits: Option<(u64, String)> = None;
        let mut note = |since_ms: u64, what: &dyn Fn() -> String| {
            if waits.as_ref().is_none_or(|(oldest, _)| since_ms < *oldest) {
                waits = Some((since_ms, what()));
            }
        };
        if let Stage::Opening { since_ms, .. } = &self.stage {
            note(*since_ms, &|| "open".into());
        }
        if let Some(asked) = &self.asked_changes {
            note(asked.since_ms, &|| "changes".into());
        }
        if let Some(since_ms) = self.beat_asked_ms {
            note(since_ms, &|| "beat".into());
        }
        for (id, chat) in &self.chats {
            if let Some(pulling) = chat.pulling {
                note(pulling.since_ms, &|| format!("pull of {id}: {pulling:?}"));
            }
            for outgoing in &chat.outgoing {
                if let Way::InFlight { since_ms } = outgoing.way {
                    note(since_ms, &|| format!("send to {id}: {outgoing:?}"));
                }
            }
        }
        waits
    }

    /// When it has something to do though nothing happens.
    pub fn next_due_ms(&self) -> Option<u64> {
        if self.is_down() {
            return Some(self.down_until_ms);
        }
        if !self.is_open() {
            return None;
        }
        let mut due_ms = self.beat_due_ms;
        for chat in self.chats.values() {
            if chat.has_hole() && chat.pulling.is_none() {
                due_ms = due_ms.min(chat.pull_not_before_ms);
            }
            due_ms = due_ms.min(chat.marks_due_ms.unwrap_or(u64::MAX));
            if chat.in_flight() == 0
                && let Some(Way::Failed { not_before_ms }) = chat.outgoing.front().map(|outgoing| outgoing.way)
            {
                due_ms = due_ms.min(not_before_ms);
            }
        }
        Some(due_ms)
    }

    /// Why it has not come to rest, for a report.
    pub fn describe(&self) -> String {
        let chats: Vec<_> = self.chats.iter().filter(|(_, chat)| !chat.is_at_rest()).collect();
        format!(
            "{}/{} {:?}, beaten {} of {}, changes {:?}, {chats:?}",
            self.user, self.device, self.stage, self.beaten, self.n, self.asked_changes
        )
    }

    /// Nothing is left to be sent, asked or fetched.
    pub fn is_settled(&self) -> bool {
        let settled = |chat: &ChatLog| chat.is_at_rest();
        self.is_open() && self.asked_changes.is_none() && self.beaten == self.n && self.chats.values().all(settled)
    }
}

fn upgrade(nonce: [u8; 16], token: &str) -> UpgradeRequest<'_> {
    UpgradeRequest {
        host: "sim",
        target: "/ws",
        nonce,
        subprotocol: Some("ringway.v1.json"),
        bearer: (!token.is_empty()).then_some(token),
    }
}
