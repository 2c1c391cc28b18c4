//! One simulated user of Ringway: a client that keeps the rules of the protocol, without a socket or a clock.
//!
//! Bytes and times come in; bytes to send gather in the link. The rules, from `docs/protocol.md`:
//!
//! - A message at `have + 1` is applied, one below is dropped, one above is fetched by a pull first.
//! - What is not acknowledged is sent again with the same id, in the same order: after a cut, and after a
//!   retryable error once everything in flight has been answered.
//! - What was received is acknowledged by a beat within a second; without that, beats keep their interval.
//! - Reconnecting backs off with full jitter and resumes by `changes_after`; marks are repeated.

use std::collections::VecDeque;

use wire::ids::{ChangeNumber, ClientMessageId, ConversationId, UserId};
use wire::upgrade::SUBPROTOCOL_JSON;
use wire::writer::write_text_with;

use crate::acks::Ack;
use crate::body::Stamp;
use crate::client::{Account, Around, Client, Want};
use crate::frames::{self, Heard, Item};
use crate::ledger::{Arrival, Arrived, Written};
use crate::link::{ANSWER_NS_MAX, Link, MS, State};
use crate::random::hash;

/// The one device of each user, unless the token names another.
const DEVICE: u32 = 1;
/// One message in so many is repeated, where that is asked for.
pub const REPEAT_EVERY: u32 = 100;

/// A message without an answer.
#[derive(Debug, Clone, Copy)]
struct Unacked {
    id: ClientMessageId,
    stamp: Stamp,
    /// Which of the chats.
    chat: u16,
    was_sent: bool,
    /// Answered by a retryable error; sent again when the others in flight are answered too.
    failed: bool,
}

/// A message that is sent again on purpose, though it was acknowledged.
#[derive(Debug, Clone, Copy)]
struct Repeat {
    id: ClientMessageId,
    stamp: Stamp,
    chat: u16,
    /// What it was acknowledged as.
    seq: u64,
    is_sent: bool,
}

/// One conversation.
#[derive(Debug)]
struct Chat {
    peer: UserId,
    /// The highest seq below which nothing is missing.
    have: u64,
    /// The highest seq heard of.
    head: u64,
    pulling: bool,
    mark_at: Option<u64>,
    written: Written,
    arrived: Arrived,
}

/// From when to where a client that came back has to catch up.
#[derive(Debug, Clone, Copy)]
struct CatchUp {
    since_ns: u64,
    until: ChangeNumber,
}

/// What only those need who talk or are talked to.
#[derive(Debug, Default)]
struct Talk {
    chats: Vec<Chat>,
    /// In the order of sending; the first `in_flight` are with the server.
    unacked: VecDeque<Unacked>,
    in_flight: usize,
    failed: usize,
    repeats: Vec<Repeat>,
    oldest_sent_at: u64,
    /// After a retryable error: not before then.
    resend_at: Option<u64>,
    catch_up: Option<CatchUp>,
}

/// One simulated user.
#[derive(Debug)]
pub struct Phone {
    user: UserId,
    link: Link,
    change: Option<ChangeNumber>,
    generation: u64,
    received_n: u64,
    beat_at: u64,
    beat_ms: u32,
    offline_ms: u32,
    talk: Option<Box<Talk>>,
}

impl Client for Phone {
    const SUBPROTOCOL: Option<&'static str> = Some(SUBPROTOCOL_JSON);

    fn new(user: UserId, start_ns: u64) -> Self {
        Self {
            user,
            link: Link::new(start_ns),
            change: None,
            generation: 0,
            received_n: 0,
            beat_at: 0,
            beat_ms: 30_000,
            offline_ms: 60_000,
            talk: None,
        }
    }

    fn link(&self) -> &Link {
        &self.link
    }

    fn link_mut(&mut self) -> &mut Link {
        &mut self.link
    }

    fn is_settled(&self) -> bool {
        self.talk.as_ref().is_none_or(|talk| talk.unacked.is_empty() && talk.repeats.is_empty())
    }

    fn due_at(&self) -> u64 {
        let at = self.beat_at.min(self.offline_at());
        let Some(talk) = &self.talk else { return at };
        let at = if talk.awaits() { at.min(talk.oldest_sent_at + ANSWER_NS_MAX) } else { at };
        let mark_at = talk.chats.iter().filter_map(|chat| chat.mark_at).min();
        at.min(mark_at.unwrap_or(u64::MAX)).min(talk.resend_at.unwrap_or(u64::MAX))
    }

    fn due(&mut self, around: &mut Around<'_>) -> Want {
        let now_ns = around.now_ns;
        let unanswered =
            self.talk.as_ref().is_some_and(|talk| talk.awaits() && talk.oldest_sent_at + ANSWER_NS_MAX <= now_ns);
        if unanswered || self.offline_at() <= now_ns {
            around.tally.counts.timeouts += 1;
            self.link.state = State::Broken;
            return Want::Cut;
        }
        if self.beat_at <= now_ns {
            self.beat(around);
        }
        self.mark_what_was_read(around);
        if let Some(talk) = &mut self.talk
            && talk.resend_at.is_some_and(|at| at <= now_ns)
            && talk.failed == talk.in_flight
        {
            talk.resend_at = None;
            talk.take_back();
            self.send_waiting(around);
        }
        Want::Nothing
    }

    fn upgraded(&mut self, around: &mut Around<'_>) {
        self.received_n = 0;
        let (change, window) = (self.change, around.habits.conversations);
        let device = device(around);
        self.say(around, |out| frames::open(out, device, change, window));
    }

    fn text(&mut self, text: &str, around: &mut Around<'_>) {
        match Heard::read(text) {
            Ok(heard) => self.heard(&heard, around),
            Err(_) => around.tally.counts.malformed += 1,
        }
    }

    fn binary(&mut self, _: &[u8], around: &mut Around<'_>) {
        around.tally.counts.malformed += 1;
    }

    /// The number alone says what to do next.
    fn closing(&mut self, code: u16, around: &mut Around<'_>) {
        around.tally.error(&format!("close {code}"));
        self.link.state = match code {
            4200..=4299 => State::Stopped,
            _ => State::Broken,
        };
        if (4100..=4199).contains(&code) {
            self.change = None;
        }
    }

    fn taken_back(&mut self, _: &mut Around<'_>) {
        let Some(talk) = &mut self.talk else { return };
        talk.resend_at = None;
        talk.catch_up = None;
        for chat in &mut talk.chats {
            chat.pulling = false;
            chat.mark_at = None;
        }
        talk.take_back();
    }

    fn write_message(&mut self, to: UserId, due_ns: u64, around: &mut Around<'_>) {
        around.tally.counts.offered += 1;
        let user = self.user;
        let talk = self.talk.get_or_insert_default();
        let chat = talk.chat(user, to);
        let stamp = Stamp { run: around.habits.run, counter: talk.chats[chat].written.count(), due_ns };
        let unix_ms = around.habits.unix_ms + around.now_ns / MS;
        let id = uuid::Builder::from_unix_timestamp_millis(unix_ms, &around.random.bytes()).into_uuid();
        let id = ClientMessageId(id.into_bytes());
        talk.unacked.push_back(Unacked { id, stamp, chat: chat as u16, was_sent: false, failed: false });
        self.send_waiting(around);
    }

    fn give_up_unsent(&mut self, around: &mut Around<'_>) {
        let Some(talk) = &mut self.talk else { return };
        while talk.unacked.back().is_some_and(|unacked| !unacked.was_sent) {
            let unacked = talk.unacked.pop_back().expect("there is one");
            // None of them was seen by anybody: their counters never were.
            talk.chats[unacked.chat as usize].written.next -= 1;
            around.tally.counts.unsent += 1;
            around.tally.counts.late += 1;
        }
    }

    fn tell_unknown(&self, around: &mut Around<'_>) {
        let Some(talk) = &self.talk else { return };
        around.tally.counts.unanswered += talk.unacked.len() as u64;
        around.tally.counts.repeats_unanswered += talk.repeats.len() as u64;
        for unacked in &talk.unacked {
            self.write_down(unacked.id, unacked.stamp, talk.chats[unacked.chat as usize].peer, None, around);
        }
    }

    fn accounts(&self) -> Vec<Account> {
        let Some(talk) = &self.talk else { return Vec::new() };
        let account = |(number, chat): (usize, &Chat)| {
            let mut written = chat.written.clone();
            let open = talk.unacked.iter().filter(|unacked| unacked.chat as usize == number);
            written.unpromised.extend(open.map(|unacked| unacked.stamp.counter));
            Account { user: self.user, peer: chat.peer, written, arrived: chat.arrived.clone() }
        };
        talk.chats.iter().enumerate().map(account).collect()
    }
}

impl Talk {
    /// The chat of `user` with `peer`, a new one if there is none.
    fn chat(&mut self, user: UserId, peer: UserId) -> usize {
        debug_assert_ne!(user, peer, "nobody talks to himself");
        self.chats.iter().position(|chat| chat.peer == peer).unwrap_or_else(|| {
            self.chats.push(Chat {
                peer,
                have: 0,
                head: 0,
                pulling: false,
                mark_at: None,
                written: Written::default(),
                arrived: Arrived::default(),
            });
            self.chats.len() - 1
        })
    }

    /// Whether the server owes an answer.
    fn awaits(&self) -> bool {
        self.in_flight > 0 || self.repeats.iter().any(|repeat| repeat.is_sent)
    }

    /// Nothing is with the server any more; all of it will be sent again, in order.
    fn take_back(&mut self) {
        self.in_flight = 0;
        self.failed = 0;
        for unacked in &mut self.unacked {
            unacked.failed = false;
        }
        for repeat in &mut self.repeats {
            repeat.is_sent = false;
        }
    }
}

fn device(around: &Around<'_>) -> u32 {
    around.tokens.owner(around.place).map_or(DEVICE, |(_, device)| device)
}

/// The other member of a direct conversation.
fn peer_in(conversation: ConversationId, user: UserId) -> Option<UserId> {
    match conversation {
        ConversationId::Direct(one, other) if one == user => Some(other),
        ConversationId::Direct(one, other) if other == user => Some(one),
        _ => None,
    }
}

impl Phone {
    fn offline_at(&self) -> u64 {
        self.link.heard_at + u64::from(self.offline_ms) * MS
    }

    fn heard(&mut self, heard: &Heard<'_>, around: &mut Around<'_>) {
        match heard.kind.0.as_ref() {
            "message" => self.message(heard, around),
            "stored" => self.stored(heard, around),
            "tick" => {
                around.tally.counts.ticks += 1;
                self.note_change(heard, around);
            }
            "mark" => self.note_change(heard, around),
            "beat" | "auth" | "signal" | "changes" => {}
            "page" => self.page(heard, around),
            "hello" => {
                self.beat_ms = heard.beat_ms.clamp(1, u64::from(u32::MAX)) as u32;
                self.offline_ms = heard.offline_ms.clamp(1, u64::from(u32::MAX)) as u32;
                self.note_generation(heard.generation.0, around);
            }
            "opened" => self.opened(heard, around),
            "lagging" => {
                around.tally.counts.lagging += 1;
                if let Some(chat) = self.chat_of(heard) {
                    self.note_head(chat, heard.head.0, around);
                }
            }
            "move" => {
                around.tally.counts.moves += 1;
                let spread_ns = around.random.below(heard.spread_ms.max(1).saturating_mul(MS));
                self.link.break_off(Some(around.now_ns.saturating_add(spread_ns)));
            }
            "error" => self.error(heard, around),
            _ => around.tally.counts.malformed += 1,
        }
    }

    /// The chat that a frame is about; a new one if there is none yet.
    fn chat_of(&mut self, heard: &Heard<'_>) -> Option<usize> {
        self.chat_named(&heard.conv.as_ref()?.0)
    }

    fn chat_named(&mut self, name: &str) -> Option<usize> {
        let user = self.user;
        let peer = peer_in(name.parse().ok()?, user)?;
        Some(self.talk.get_or_insert_default().chat(user, peer))
    }

    fn opened(&mut self, heard: &Heard<'_>, around: &mut Around<'_>) {
        let is_first = !self.link.was_open();
        self.link.opened(around);
        let mut heads = Vec::new();
        for listed in heard.conversations.iter().filter(|listed| listed.head.0 > 0) {
            heads.extend(self.chat_named(&listed.conv.0).map(|chat| (chat, listed.head.0)));
        }
        let now_ns = around.now_ns;
        if let Some(talk) = &mut self.talk {
            for &(number, head) in &heads {
                let chat = &mut talk.chats[number];
                if is_first {
                    // What was written before the run is none of its business.
                    chat.have = head;
                } else if head < chat.have {
                    around.tally.counts.shrunk += 1;
                    chat.have = head;
                    chat.head = head;
                }
            }
            if heard.ahead {
                around.tally.counts.shrunk += u64::from(heads.is_empty());
            }
            for chat in talk.chats.iter_mut().filter(|chat| chat.have > 0) {
                chat.mark_at = Some(now_ns + around.habits.mark_ns);
            }
        }
        // A replay follows as live frames; whoever took its end for granted would skip what a cut swallows.
        let replays = heard.result.as_ref().is_some_and(|result| result.0 == "replay") && self.change.is_some();
        if !is_first {
            let until = heard.change.as_ref().and_then(|change| change.0.parse().ok()).filter(|_| replays);
            let catch_up = CatchUp { since_ns: self.link.begun_ns, until: until.unwrap_or_default() };
            self.talk.get_or_insert_default().catch_up = Some(catch_up);
        }
        if !replays {
            self.note_change(heard, around);
        }
        for (chat, head) in heads {
            self.note_head(chat, head, around);
        }
        // What was heard of before the cut and not fetched yet.
        for chat in 0..self.talk.as_ref().map_or(0, |talk| talk.chats.len()) {
            self.note_head(chat, 0, around);
        }
        self.see_whether_caught_up(around);
        self.beat_at = now_ns + around.random.below(u64::from(self.beat_ms) * MS);
        self.send_waiting(around);
    }

    fn message(&mut self, heard: &Heard<'_>, around: &mut Around<'_>) {
        self.received_n = self.received_n.max(heard.n.0);
        // Within a second, at a moment of its own.
        let soon = around.now_ns + 200 * MS + around.random.below(600 * MS);
        self.beat_at = self.beat_at.min(soon);
        if let Some(chat) = self.chat_of(heard) {
            let body = heard.body.as_ref().map_or("", |body| &body.0);
            let from = heard.from.as_ref().and_then(|from| from.0.parse().ok());
            self.take_in(chat, heard.seq.0, from, body, around);
        }
        self.note_change(heard, around);
    }

    fn page(&mut self, heard: &Heard<'_>, around: &mut Around<'_>) {
        let Some(number) = self.chat_of(heard) else { return };
        let chat = self.chat_mut(number);
        chat.pulling = false;
        let before = chat.have;
        for Item { seq, from, body, .. } in &heard.messages {
            self.take_in(number, seq.0, from.0.parse().ok(), &body.0, around);
        }
        // A page that brought nothing is not asked for again at once, or both ends would do nothing else.
        if self.chat_mut(number).have > before {
            self.note_head(number, heard.head.0, around);
        }
        self.see_whether_caught_up(around);
    }

    fn chat_mut(&mut self, number: usize) -> &mut Chat {
        &mut self.talk.as_mut().expect("a chat has a talk").chats[number]
    }

    /// The client rule: drop, apply, or fetch what is missing.
    fn take_in(&mut self, number: usize, seq: u64, from: Option<UserId>, body: &str, around: &mut Around<'_>) {
        let chat = self.chat_mut(number);
        if seq <= chat.have {
            around.tally.counts.repeats += 1;
        } else if seq - 1 == chat.have {
            chat.have = seq;
            chat.head = chat.head.max(seq);
            if from == Some(chat.peer) {
                chat.mark_at.get_or_insert(around.now_ns + around.habits.mark_ns);
                self.apply(number, body, around);
            }
        } else {
            around.tally.counts.gaps += 1;
            self.note_head(number, seq, around);
        }
    }

    /// The other user's next message.
    fn apply(&mut self, number: usize, body: &str, around: &mut Around<'_>) {
        let Some(stamp) = Stamp::read(body).filter(|stamp| stamp.run == around.habits.run) else { return };
        match self.chat_mut(number).arrived.take_in(stamp.counter) {
            Arrival::InOrder => {}
            Arrival::Reordered => around.tally.counts.reordered += 1,
            Arrival::Doubled => {
                around.tally.counts.doubled += 1;
                return;
            }
            Arrival::Unwritten => {
                around.tally.counts.malformed += 1;
                return;
            }
        }
        around.delivered(stamp.due_ns, &self.link);
    }

    fn stored(&mut self, heard: &Heard<'_>, around: &mut Around<'_>) {
        let Some(id) = heard.id.as_ref().and_then(|id| id.0.parse().ok()) else {
            around.tally.counts.malformed += 1;
            return;
        };
        self.note_generation(heard.generation.0, around);
        let seq = heard.seq.0;
        if let Some(number) = self.chat_of(heard) {
            let chat = self.chat_mut(number);
            if chat.have.checked_add(1) == Some(seq) {
                chat.have = seq;
            }
            self.note_head(number, seq, around);
        }
        let Some(talk) = &mut self.talk else { return };
        if let Some(at) = talk.repeats.iter().position(|repeat| repeat.id == id) {
            let repeat = talk.repeats.swap_remove(at);
            let counts = &mut around.tally.counts;
            *(if seq == repeat.seq && heard.dup { &mut counts.repeats_kept } else { &mut counts.doubled }) += 1;
            return;
        }
        let Some(at) = talk.unacked.iter().position(|unacked| unacked.id == id) else { return };
        let unacked = talk.unacked.remove(at).expect("it was found there");
        talk.in_flight -= usize::from(at < talk.in_flight);
        talk.failed -= usize::from(unacked.failed);
        talk.oldest_sent_at = around.now_ns;
        around.tally.counts.acked += 1;
        around.tally.counts.dup_acks += u64::from(heard.dup);
        around.tally.ack.record(around.now_ns.saturating_sub(unacked.stamp.due_ns));
        if around.habits.resend {
            *around.repeat_in -= 1;
            if *around.repeat_in == 0 {
                *around.repeat_in = REPEAT_EVERY;
                around.tally.counts.repeats_sent += 1;
                let Unacked { id, stamp, chat, .. } = unacked;
                talk.repeats.push(Repeat { id, stamp, chat, seq, is_sent: false });
            }
        }
        let peer = talk.chats[unacked.chat as usize].peer;
        self.write_down(id, unacked.stamp, peer, Some(heard), around);
        self.send_waiting(around);
    }

    /// Into the file: what was acknowledged, or, without an answer, what nobody knows about.
    fn write_down(
        &self,
        id: ClientMessageId,
        stamp: Stamp,
        peer: UserId,
        heard: Option<&Heard<'_>>,
        around: &mut Around<'_>,
    ) {
        let device = device(around);
        let Some(acks) = around.acks.as_deref_mut() else { return };
        stamp.write(around.body, around.habits.payload_bytes);
        acks.note(&Ack {
            conversation: ConversationId::direct(self.user, peer).to_string(),
            seq: heard.map_or(0, |heard| heard.seq.0),
            id: id.to_string(),
            generation: heard.map_or(self.generation, |heard| heard.generation.0),
            time: heard.map_or(0, |heard| heard.time.0),
            sender: self.user.0,
            device,
            body: format!("{:016x}", hash(around.body.as_bytes())),
        });
    }

    fn error(&mut self, heard: &Heard<'_>, around: &mut Around<'_>) {
        let code = heard.code.as_ref().map_or("none", |code| &code.0);
        around.tally.error(code);
        let wait_ns = heard.after_ms.unwrap_or(1_000).max(1).saturating_mul(MS);
        let again_at = (around.now_ns + wait_ns / 2).saturating_add(around.random.below(wait_ns));
        if let State::Opening { .. } = self.link.state {
            self.link.state = State::Broken;
            return;
        }
        let Some(talk) = &mut self.talk else { return };
        let id: Option<ClientMessageId> = heard.id.as_ref().and_then(|id| id.0.parse().ok());
        if let Some(at) = talk.repeats.iter().position(|repeat| Some(repeat.id) == id) {
            if heard.retryable {
                talk.repeats[at].is_sent = false;
                talk.resend_at = Some(again_at.max(talk.resend_at.unwrap_or(0)));
            } else {
                // It was stored once, and its repetition must say so.
                talk.repeats.swap_remove(at);
                around.tally.counts.doubled += 1;
            }
        } else if let Some(at) = talk.unacked.iter().position(|unacked| Some(unacked.id) == id) {
            if heard.retryable {
                talk.failed += usize::from(at < talk.in_flight && !talk.unacked[at].failed);
                talk.unacked[at].failed = true;
                talk.resend_at = Some(again_at.max(talk.resend_at.unwrap_or(0)));
            } else {
                let refused = talk.unacked.remove(at).expect("it was found there");
                talk.in_flight -= usize::from(at < talk.in_flight);
                talk.failed -= usize::from(refused.failed);
                talk.chats[refused.chat as usize].written.unpromised.push(refused.stamp.counter);
                around.tally.counts.failed += 1;
            }
        } else if let Some(chat) = self.chat_of(heard) {
            // Most likely the pull's: it is asked again at the next sign of a gap.
            self.chat_mut(chat).pulling = false;
        }
    }

    /// Sends what waits, if nothing speaks against it.
    fn send_waiting(&mut self, around: &mut Around<'_>) {
        let Some(talk) = &mut self.talk else { return };
        if self.link.state != State::Open || talk.resend_at.is_some() {
            return;
        }
        if !talk.awaits() {
            talk.oldest_sent_at = around.now_ns;
        }
        let out = &mut self.link.out;
        for repeat in talk.repeats.iter_mut().filter(|repeat| !repeat.is_sent) {
            repeat.is_sent = true;
            let peer = talk.chats[repeat.chat as usize].peer;
            say_message(out, repeat.id, ConversationId::direct(self.user, peer), repeat.stamp, around);
        }
        while talk.in_flight < talk.unacked.len().min(around.habits.in_flight_max) {
            let unacked = &mut talk.unacked[talk.in_flight];
            let again = std::mem::replace(&mut unacked.was_sent, true);
            let counts = &mut around.tally.counts;
            if again {
                counts.resent += 1;
            } else {
                counts.sent += 1;
                let waited_ns = around.now_ns.saturating_sub(unacked.stamp.due_ns);
                counts.late += u64::from(waited_ns > around.habits.send_within_ns);
            }
            talk.in_flight += 1;
            let peer = talk.chats[unacked.chat as usize].peer;
            say_message(out, unacked.id, ConversationId::direct(self.user, peer), unacked.stamp, around);
        }
    }

    fn mark_what_was_read(&mut self, around: &mut Around<'_>) {
        let Some(talk) = &mut self.talk else { return };
        for chat in &mut talk.chats {
            if chat.mark_at.is_some_and(|at| at <= around.now_ns) {
                chat.mark_at = None;
                around.tally.counts.marks += 1;
                let conversation = ConversationId::direct(self.user, chat.peer);
                let (mask, have) = (around.random.bytes(), chat.have);
                write_text_with(&mut self.link.out, Some(mask), |out| frames::mark(out, conversation, have));
            }
        }
    }

    fn beat(&mut self, around: &mut Around<'_>) {
        self.beat_at = around.now_ns + u64::from(self.beat_ms) * MS;
        around.tally.counts.beats += 1;
        let received = self.received_n;
        self.say(around, |out| frames::beat(out, received));
    }

    /// Something exists at `head`: if that is not the next or before, it is fetched.
    fn note_head(&mut self, number: usize, head: u64, around: &mut Around<'_>) {
        let open = self.link.is_open();
        let chat = self.chat_mut(number);
        chat.head = chat.head.max(head);
        if chat.head > chat.have && !chat.pulling && open {
            chat.pulling = true;
            around.tally.counts.pulls += 1;
            let (peer, have) = (chat.peer, chat.have);
            let conversation = ConversationId::direct(self.user, peer);
            self.say(around, |out| frames::pull(out, conversation, have));
        }
    }

    fn note_change(&mut self, heard: &Heard<'_>, around: &mut Around<'_>) {
        if let Some(change) = heard.change.as_ref().and_then(|change| change.0.parse().ok()) {
            self.change = Some(change);
            self.see_whether_caught_up(around);
        }
    }

    /// Once nothing is missing of what there was when it came back.
    fn see_whether_caught_up(&mut self, around: &mut Around<'_>) {
        let Some(talk) = &mut self.talk else { return };
        let Some(catch_up) = talk.catch_up else { return };
        let complete = talk.chats.iter().all(|chat| chat.have >= chat.head);
        if complete && self.change.unwrap_or_default() >= catch_up.until {
            talk.catch_up = None;
            around.tally.catch_up.record(around.now_ns.saturating_sub(catch_up.since_ns));
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
        write_text_with(&mut self.link.out, Some(around.random.bytes()), write);
    }
}

fn say_message(
    out: &mut Vec<u8>,
    id: ClientMessageId,
    conversation: ConversationId,
    stamp: Stamp,
    around: &mut Around<'_>,
) {
    stamp.write(around.body, around.habits.payload_bytes);
    let mask = around.random.bytes();
    write_text_with(out, Some(mask), |out| frames::send(out, id, conversation, around.body));
}
