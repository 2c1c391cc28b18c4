//! What a phone does by itself: sending in order, fetching what is missing, beats and marks; and, when it is
//! let, what a person or a strange client would do.

use std::borrow::Cow;

use wire::ids::{ChangeNumber, ClientMessageId, ConversationId, UserId};
use wire::protocol::{ClientFrame, Kind, Pull, PullRange, Send, Target};

use super::{BEAT_MS, Clocks, Phone, Stage};
use crate::chat_log::{Expect, Outgoing, Pulling, Way};
use crate::checker::Checker;

impl Phone {
    /// Everything that is due by now.
    pub fn tick(&mut self, clocks: Clocks, checker: &mut Checker) {
        if !self.is_open() {
            let late = matches!(&self.stage, Stage::Opening { since_ms, .. } if self.is_late(clocks, *since_ms));
            self.wants_cut |= late;
            return;
        }
        let ids: Vec<_> = self.chats.keys().copied().collect();
        for id in ids {
            self.send_due(clocks, id, checker);
            self.pull_due(clocks, id, checker);
            if self.chats[&id].marks_due_ms.is_some_and(|due_ms| due_ms <= clocks.now_ms) {
                self.repeat_marks(id, checker);
            }
        }
        if clocks.now_ms >= self.beat_due_ms {
            self.beat(clocks, checker);
        }
        let oldest =
            [self.asked_changes.as_ref().map(|asked| asked.since_ms), self.beat_asked_ms].into_iter().flatten().min();
        self.wants_cut |= oldest.is_some_and(|since_ms| self.is_late(clocks, since_ms));
    }

    fn is_late(&self, clocks: Clocks, since_ms: u64) -> bool {
        self.habits.patience_ms.is_some_and(|patience_ms| clocks.now_ms >= since_ms + patience_ms)
    }

    fn send_due(&mut self, clocks: Clocks, id: ConversationId, checker: &mut Checker) {
        let patience = self.habits.patience_ms;
        let pipeline = self.habits.pipeline;
        let (skips, hasty) = (self.habits.skips, self.habits.hasty);
        loop {
            self.give_up_old(clocks, id, checker);
            let roll = self.rng.per_mille(skips);
            // Not always: where there is room for one only, two at once never find any.
            let hasty = hasty && self.rng.one_in(2);
            let chat = self.chats.get_mut(&id).expect("one of the keys");
            let late = chat.outgoing.iter().any(|out| {
                matches!(out.way, Way::InFlight { since_ms } if patience.is_some_and(|p| clocks.now_ms >= since_ms + p))
            });
            self.wants_cut |= late;
            let in_flight = chat.in_flight();
            let Some(at) = chat.outgoing.iter().position(|out| !matches!(out.way, Way::InFlight { .. })) else {
                return;
            };
            // After a failure everything behind it fails too: those answers come before anything is sent again.
            let unanswered = if hasty { in_flight - at.min(in_flight) } else { in_flight };
            if chat.has_failed() && unanswered > 0 || in_flight >= pipeline {
                return;
            }
            let mut skip = chat.skip.take();
            if let Way::Failed { not_before_ms } = chat.outgoing[at].way {
                if roll {
                    let given_up = chat.outgoing.remove(at).expect("just found");
                    if self.rng.one_in(2) {
                        self.write(&ClientFrame::Skip { conversation: id, id: given_up.id });
                    } else {
                        self.chat(id).skip = Some(given_up.id);
                    }
                    continue;
                }
                if clocks.now_ms < not_before_ms {
                    chat.skip = skip;
                    return;
                }
            }
            let outgoing = &mut chat.outgoing[at];
            outgoing.way = Way::InFlight { since_ms: clocks.now_ms };
            outgoing.sent_ms.get_or_insert(clocks.now_ms);
            let outgoing = outgoing.clone();
            if outgoing.expect == Expect::Stored {
                self.orders += 1;
                checker.sends((id, self.user, self.device, outgoing.id), self.orders);
            }
            let target = match id.peer_of(self.user) {
                Some(peer) if self.rng.one_in(2) => Target::To(peer),
                _ => Target::Conversation(id),
            };
            let send = Send {
                id: Some(outgoing.id),
                skip: skip.take(),
                target,
                kind: outgoing.kind,
                body: Cow::Borrowed(&outgoing.body),
                reply_to: outgoing.reply_to,
                target_seq: outgoing.target_seq,
            };
            self.write(&ClientFrame::Send(send));
        }
    }

    /// Nobody repeats an id for as long as the server is sure to know it: half of that is enough, as the last of
    /// them may be on its way for a while.
    fn give_up_old(&mut self, clocks: Clocks, id: ConversationId, checker: &mut Checker) {
        let window_ms = self.habits.window_ms;
        let is_old = |out: &Outgoing| {
            let waits = !matches!(out.way, Way::InFlight { .. });
            waits && out.sent_ms.is_some_and(|sent_ms| clocks.now_ms > sent_ms + window_ms / 2)
        };
        while let Some(at) = self.chat(id).outgoing.iter().position(is_old) {
            let old = self.chat(id).outgoing.remove(at).expect("just found");
            if old.expect == Expect::Stored {
                checker.gives_up(&(id, self.user, self.device, old.id));
            }
            if matches!(old.way, Way::Failed { .. }) {
                self.write(&ClientFrame::Skip { conversation: id, id: old.id });
            }
        }
    }

    fn pull_due(&mut self, clocks: Clocks, id: ConversationId, checker: &Checker) {
        let chat = &self.chats[&id];
        self.wants_cut |= chat.pulling.is_some_and(|pulling| self.is_late(clocks, pulling.since_ms));
        if chat.has_hole() && chat.pulling.is_none() && clocks.now_ms >= chat.pull_not_before_ms {
            self.pull(clocks, id, PullRange::After(self.chats[&id].have), checker);
        }
    }

    fn pull(&mut self, clocks: Clocks, id: ConversationId, range: PullRange, checker: &Checker) {
        let floor = checker.shown(id);
        let (after, before) = match range {
            PullRange::After(after) => (Some(after), None),
            PullRange::Before(before) => (None, before),
        };
        let limit = Some(self.habits.page);
        let min_seq = self.rng.one_in(3).then_some(floor);
        self.chat(id).pulling = Some(Pulling { after, before, floor, since_ms: clocks.now_ms });
        self.write(&ClientFrame::Pull(Pull { conversation: id, range, limit, min_seq }));
    }

    fn beat(&mut self, clocks: Clocks, checker: &mut Checker) {
        self.beat_due_ms = clocks.now_ms + BEAT_MS;
        self.beaten = self.n;
        self.beat_asked_ms.get_or_insert(clocks.now_ms);
        for (id, chat) in &mut self.chats {
            let delivered = std::mem::take(&mut chat.unbeaten);
            if delivered > 0 {
                checker.gives_marks(self.user, *id, delivered, 0);
            }
        }
        self.write(&ClientFrame::Beat { received: self.n });
    }

    /// Gives the marks of a conversation again, as after each `opened`.
    pub fn repeat_marks(&mut self, id: ConversationId, checker: &mut Checker) {
        let chat = self.chat(id);
        chat.marks_due_ms = None;
        let (have, read) = (chat.have, chat.read);
        self.give_marks(id, have, read, checker);
    }

    fn give_marks(&mut self, id: ConversationId, delivered: u64, read: u64, checker: &mut Checker) {
        if delivered == 0 && read == 0 {
            return;
        }
        checker.gives_marks(self.user, id, delivered, read);
        let mark = |seq: u64| (seq > 0).then_some(seq);
        self.write(&ClientFrame::Mark { conversation: id, delivered: mark(delivered), read: mark(read) });
    }

    /// Does something, if it is connected or wants to write.
    pub fn act(&mut self, clocks: Clocks, peers: &[UserId], checker: &mut Checker) {
        let peer = self.rng.pick(peers);
        let id = ConversationId::direct(self.user, peer);
        match self.rng.below(16) {
            0..8 => self.compose(clocks, id),
            _ if !self.is_open() => {}
            8..10 => {
                let chat = self.chat(id);
                chat.read = chat.read.max(chat.have);
                let read = chat.read;
                self.give_marks(id, 0, read, checker);
            }
            10 => {
                // Far above anything: no state may change.
                self.write(&ClientFrame::Mark { conversation: id, delivered: Some(1 << 40), read: Some(1 << 41) });
            }
            11 => {
                let head = self.chat(id).head;
                let before = if head > 1 && self.rng.one_in(2) { Some(self.rng.between(2, head + 1)) } else { None };
                if self.chat(id).pulling.is_none() {
                    self.pull(clocks, id, PullRange::Before(before), checker);
                }
            }
            12 => self.repeat(clocks, id),
            13 => self.write(&ClientFrame::Signal { conversation: id, name: "typing".into(), body: "".into() }),
            14 => {
                if let (Some(after), None) = (self.change, &self.asked_changes) {
                    let after = ChangeNumber { counter: after.counter.saturating_sub(self.rng.below(4)), ..after };
                    self.begin_changes(clocks, after);
                }
            }
            _ => self.beat(clocks, checker),
        }
    }

    fn compose(&mut self, clocks: Clocks, id: ConversationId) {
        const WAITING_MAX: usize = 6;
        if self.chat(id).outgoing.len() >= WAITING_MAX {
            return;
        }
        self.counter += 1;
        let message_id = self.new_id(clocks);
        let head = self.chat(id).have;
        let reaction = head > 0 && self.rng.one_in(6);
        let padding = if self.rng.one_in(8) { 40 } else { 0 };
        let body = format!("{}.{}.{}{:padding$}", self.user, self.device, self.counter, "");
        let target_seq = reaction.then(|| self.rng.between(1, head));
        let reply_to = (head > 0 && self.rng.one_in(6)).then(|| self.rng.between(1, head));
        let kind = if reaction { Kind::Reaction } else { Kind::Text };
        let way = Way::Fresh;
        let outgoing = Outgoing {
            id: message_id,
            kind,
            body,
            reply_to,
            target_seq,
            expect: Expect::Stored,
            way,
            written_ms: clocks.now_ms,
            sent_ms: None,
        };
        self.chat(id).outgoing.push_back(outgoing);
    }

    /// Sends something again that was acknowledged long ago, with the same body or with another.
    fn repeat(&mut self, clocks: Clocks, id: ConversationId) {
        let same = self.rng.one_in(2);
        let random = self.rng.number() as usize;
        let window_ms = self.habits.window_ms;
        let chat = self.chat(id);
        chat.acknowledged.retain(|(out, _)| out.sent_ms.is_some_and(|ms| clocks.now_ms <= ms + window_ms / 2));
        if chat.acknowledged.is_empty() || chat.outgoing.len() > 2 {
            return;
        }
        let (mut outgoing, seq) = chat.acknowledged[random % chat.acknowledged.len()].clone();
        if chat.outgoing.iter().any(|waiting| waiting.id == outgoing.id) {
            return;
        }
        outgoing.way = Way::Fresh;
        outgoing.expect = if same { Expect::Again(seq) } else { Expect::Conflict };
        if !same {
            outgoing.body.push('!');
        }
        chat.outgoing.push_back(outgoing);
    }

    fn new_id(&mut self, clocks: Clocks) -> ClientMessageId {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&self.rng.number().to_be_bytes());
        id[8..].copy_from_slice(&self.rng.number().to_be_bytes());
        if self.rng.per_mille(self.habits.random_ids) {
            id[6] = 0x40 | id[6] & 0x0f;
        } else {
            let time_ms = clocks.wall_ms.saturating_add_signed(self.habits.clock_ms);
            id[..6].copy_from_slice(&time_ms.to_be_bytes()[2..]);
            id[6] = 0x70 | id[6] & 0x0f;
        }
        id[8] = 0x80 | id[8] & 0x3f;
        ClientMessageId(id)
    }
}
