//! From a send to its seq: dedup, proposal, group commit, publication.
//!
//! Two heads: a proposal takes the next seq at once, so that the sends of one turn go into one
//! journal group; nothing is shown, answered or counted before the group is committed. A refused
//! group takes its proposals back, and everything behind them.

use std::collections::VecDeque;

use storage_seam::{AppendGroup, Outcome, Part, Space, StorageRequest};
use wire::ids::{ChangeNumber, ClientMessageId, ConversationId, UserId};
use wire::mail::{Address, Fence, Hop, Letter, Mail, MessageMail, Request, SendMail};
use wire::protocol::{ErrorCode, Kind};

use crate::conversation::{Conversation, Proposed};
use crate::dedup::{self, Fingerprint, Used};
use crate::effects::{Effects, Now};
use crate::owner::{Owner, Phase, refuse, slot_of};
use crate::planted::planted;
use crate::pressure::{Pressure, Work};
use crate::record::{self, Class, Record, body_hash, prefixed};

/// A message between its proposal and its commit.
#[derive(Debug)]
pub(crate) struct Proposal {
    pub id: ClientMessageId,
    pub fingerprint: Fingerprint,
    /// Where the conversation stood before it.
    pub before: Proposed,
    /// In the group that storage has.
    pub submitted: bool,
    pub author: UserId,
    pub waiters: Waiters,
}

/// Everybody who sent an id and waits for the answer: the one who proposed it, and repeats. Repeats are
/// rare, so a proposal costs no allocation.
#[derive(Debug, Default)]
pub(crate) struct Waiters {
    first: Option<(Request, Fence)>,
    repeats: Vec<(Request, Fence)>,
}

impl Waiters {
    fn add(&mut self, waiter: (Request, Fence)) {
        if self.first.is_none() { self.first = Some(waiter) } else { self.repeats.push(waiter) }
    }

    fn all(self) -> impl Iterator<Item = (Request, Fence)> {
        self.first.into_iter().chain(self.repeats)
    }
}

/// Records on their way to the journal: one group with storage, the next one gathering.
#[derive(Debug, Default)]
pub(crate) struct Staging {
    /// Records of the next group, each behind its length.
    bytes: Vec<u8>,
    /// Which conversation each belongs to, where it lies, whether it is a message.
    items: Vec<Item>,
    /// When the oldest message was staged; read marks alone wait for company until they are due.
    in_flight_since: Option<u64>,
    /// When the waiters of the group in flight were last told that its outcome is unknown.
    given_up_at: Option<u64>,
    /// Somebody has sent an id of that group again since.
    joined: bool,
    spare: AppendGroup,
    ticket: u64,
}

#[derive(Debug, Clone, Copy)]
struct Item {
    conversation: ConversationId,
    slot: u16,
    start: u32,
    end: u32,
}

/// What storage says of a send's id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LookedUp {
    NotYet,
    Absent,
    Found(Used),
}

impl LookedUp {
    fn used(self) -> Option<Used> {
        if let Self::Found(used) = self { Some(used) } else { None }
    }
}

/// The id must be looked up in storage before the send can be decided.
pub(crate) struct LookupNeeded;

impl Owner {
    /// Decides on a send whose conversation is in memory.
    pub(crate) fn send<E: Effects>(
        &mut self,
        now: Now,
        send: &SendMail,
        body: &str,
        looked_up: LookedUp,
        fx: &mut E,
    ) -> Result<(), LookupNeeded> {
        let id = send.conversation;
        let hash = body_hash(send.kind, send.reply_to, send.target_seq, body.as_bytes());
        let key = dedup::key(id, send);
        let fingerprint = self.window.fingerprint(&key);
        let in_memory = self.window.get(fingerprint);
        let entry = self.loaded(id).expect("a send runs in memory");
        let state = entry.state.as_ref().expect("loaded");
        let (head, loaded_time_ms) = (state.head, entry.loaded_time_ms);
        let Some(ids_until_ms) = state.member(send.request.user).map(|author| author.ids_until_ms) else {
            refuse(fx, send.request, Some(id), Some(send), ErrorCode::NotFound, 0);
            return Ok(());
        };
        if let Some(used) = in_memory.or(looked_up.used()) {
            self.repeated(send, hash, used, fx);
            return Ok(());
        }
        if looked_up == LookedUp::NotYet && self.may_be_stored(id, loaded_time_ms, send) {
            return Err(LookupNeeded);
        }
        if send.target_seq > head || send.reply_to > head {
            refuse(fx, send.request, Some(id), Some(send), ErrorCode::BadCursor, 0);
        } else if self.is_unknowable(now, ids_until_ms, send.id, looked_up) {
            self.counters.ids_expired += 1;
            refuse(fx, send.request, Some(id), Some(send), ErrorCode::IdExpired, 0);
        } else {
            self.propose(now, send, body, hash, fingerprint, fx);
        }
        Ok(())
    }

    /// Whether an id that is not known may have been, so long ago that the views have forgotten it.
    fn is_unknowable(&self, now: Now, ids_until_ms: u64, id: ClientMessageId, looked_up: LookedUp) -> bool {
        if planted!(self, ExpiredByClock) {
            return id.time_ms().is_some_and(|time| time + 7 * 24 * 3_600 * 1_000 < now.wall_ms);
        }
        looked_up == LookedUp::Absent && self.window.is_unknowable(ids_until_ms, id)
    }

    fn may_be_stored(&mut self, id: ConversationId, loaded_time_ms: u64, send: &SendMail) -> bool {
        let slot = self.slots[slot_of(id)].as_ref().expect("owned");
        let state = slot.conversations[&id].state.as_ref().expect("loaded");
        self.window.may_be_stored(state, loaded_time_ms, send.id)
    }

    /// The id was used before: the same answer, or a conflict.
    fn repeated<E: Effects>(&mut self, send: &SendMail, hash: u64, used: Used, fx: &mut E) {
        let id = send.conversation;
        if used.body_hash != hash {
            return refuse(fx, send.request, Some(id), Some(send), ErrorCode::IdConflict, 0);
        }
        if used.pending && !planted!(self, DupWhilePending) {
            let entry = self.loaded(id).expect("pending means loaded");
            let first = entry.state.as_ref().expect("loaded").head + 1;
            let proposal = entry.pending.get_mut((used.seq - first) as usize).expect("pending ids are proposals");
            proposal.waiters.add((send.request, send.fence));
            self.staging.joined = true;
            return;
        }
        self.counters.repeated += 1;
        Self::post_stored(send.request, send.id, id, (used.seq, used.time_ms, true), fx);
    }

    fn post_stored<E: Effects>(
        request: Request,
        id: ClientMessageId,
        conversation: ConversationId,
        (seq, time_ms, dup): (u64, u64, bool),
        fx: &mut E,
    ) {
        let mail = Mail::Stored { request, conversation, id, seq, time_ms, dup };
        fx.post(&Letter { to: Address::User(request.user), mail, payload: &[] });
    }

    fn propose<E: Effects>(
        &mut self,
        now: Now,
        send: &SendMail,
        body: &str,
        body_hash: u64,
        fingerprint: Fingerprint,
        fx: &mut E,
    ) {
        let id = send.conversation;
        let pending_max = self.limits.pending_per_conversation_max as usize;
        let over = self.staging.bytes.len() > self.limits.pending_bytes_max as usize
            || self.loaded(id).expect("loaded").pending.len() >= pending_max;
        if over || self.is_stalled(now) {
            self.counters.pending_refused += 1;
            let code = if over { ErrorCode::Overloaded } else { ErrorCode::Unavailable };
            return self.refuse_send(send, code, fx);
        }
        let before = self.loaded(id).expect("loaded").proposed;
        if before.head == 0 && !self.begun.may_begin(now.monotonic_ms, send.request.user) {
            self.counters.conversations_refused += 1;
            return refuse(fx, send.request, Some(id), Some(send), ErrorCode::TooManyConversations, 0);
        }
        let entry = self.loaded(id).expect("loaded");
        let record = Conversation::decide(&before, send, body, body_hash, now.wall_ms);
        entry.proposed = Proposed { head: record.seq, countable: record.countable, time_ms: record.time_ms };
        if planted!(self, AckBeforeCommit) {
            Self::post_stored(send.request, send.id, id, (record.seq, record.time_ms, false), fx);
        }
        if planted!(self, PublishBeforeCommit) {
            self.publish(&message_of(&record, send.kind), body, true, fx);
        }
        let entry = self.loaded(id).expect("loaded");
        let waiters = Waiters { first: Some((send.request, send.fence)), repeats: Vec::new() };
        entry.pending.push_back(Proposal {
            id: send.id,
            fingerprint,
            before,
            submitted: false,
            author: send.request.user,
            waiters,
        });
        let used = Used { seq: record.seq, body_hash, time_ms: record.time_ms, pending: true };
        self.window.propose(fingerprint, used);
        self.staging.add(&record);
    }

    /// How near the next group is to its limit, and the one in flight to the time in which senders want an answer.
    /// Beyond that, storage is away, which is no overload: what needs none goes on, and who wants to connect may (P10).
    pub(crate) fn staged_pressure(&self, now: Now) -> Pressure {
        let bytes = Pressure::of(self.staging.bytes.len() as u64, u64::from(self.limits.pending_bytes_max));
        let since = self.staging.in_flight_since.filter(|_| !self.is_stalled(now)).unwrap_or(now.monotonic_ms);
        let age = Pressure::of(now.monotonic_ms.saturating_sub(since), self.limits.commit_wait_ms);
        bytes.max(age.below(Work::Handshake))
    }

    /// Whether storage has owed an answer for longer than a send may wait (P10).
    fn is_stalled(&self, now: Now) -> bool {
        self.staging.in_flight_since.is_some_and(|since| now.monotonic_ms >= since + self.limits.commit_wait_ms)
    }

    /// When the group in flight will have kept its senders waiting too long.
    pub(crate) fn stall_deadline(&self) -> Option<u64> {
        let staging = &self.staging;
        let since = match staging.given_up_at {
            // Who has joined since then waits no longer than who was there before.
            Some(at) => Some(at).filter(|_| staging.joined),
            None => staging.in_flight_since,
        };
        Some(since? + self.limits.commit_wait_ms)
    }

    /// Nothing is staged or in flight.
    pub(crate) fn is_quiet(&self) -> bool {
        self.staging.in_flight_since.is_none() && self.staging.items.is_empty()
    }

    /// Stages the control record of a read mark that is due.
    pub(crate) fn stage_read_mark(&mut self, now: Now, id: ConversationId, user: UserId) {
        let Some(entry) = self.loaded(id) else { return };
        let state = entry.state.as_ref().expect("loaded");
        let Some(member) = state.member(user) else { return };
        let record = state.decide_read_mark(member, now.wall_ms);
        self.staging.add(&record);
    }

    /// Hands the next group to storage, unless it still has the last one.
    pub(crate) fn submit<E: Effects>(&mut self, now: Now, fx: &mut E) {
        if self.staging.in_flight_since.is_some() || self.staging.items.is_empty() || !self.serving {
            return;
        }
        let mut group = self.staging.take_group();
        for part in &mut group.parts {
            let slot = self.slots[usize::from(part.slot)].as_ref().expect("staged for owned slots");
            part.epoch = slot.epoch;
            part.expected_lsn = slot.next_lsn;
        }
        let mut items = std::mem::take(&mut self.staging.items);
        for item in items.drain(..) {
            if let Some(entry) = self.loaded(item.conversation) {
                for proposal in entry.pending.iter_mut().rev().take_while(|proposal| !proposal.submitted) {
                    proposal.submitted = true;
                }
            }
        }
        // Nothing was staged meanwhile; the memory goes back for the next group.
        self.staging.items = items;
        self.staging.in_flight_since = Some(now.monotonic_ms);
        self.staging.given_up_at = None;
        self.counters.groups += 1;
        fx.storage(StorageRequest::Append(group));
    }

    /// A group's outcomes.
    pub(crate) fn appended<E: Effects>(&mut self, now: Now, mut group: AppendGroup, outcomes: &[Outcome], fx: &mut E) {
        assert_eq!(group.parts.len(), outcomes.len(), "storage answers every part");
        self.staging.in_flight_since = None;
        let mut refused = false;
        for (part, &outcome) in group.parts.iter().zip(outcomes) {
            let bytes = &group.bytes[part.bytes.start as usize..part.bytes.end as usize];
            match outcome {
                Outcome::Committed => self.committed(now, part, bytes, fx),
                Outcome::Fenced | Outcome::Conflict => {
                    self.slots[usize::from(part.slot)].as_mut().expect("owned").phase = Phase::Fenced;
                    self.counters.fenced += 1;
                    self.not_written(now, bytes, ErrorCode::NotOwner, fx);
                    refused = true;
                }
                Outcome::Refused(_) => {
                    self.counters.appends_refused += 1;
                    self.not_written(now, bytes, ErrorCode::Unavailable, fx);
                    refused = true;
                }
            }
        }
        if refused {
            // What was staged behind a refused proposal counts on its seq.
            self.take_back_staged(now, ErrorCode::Unavailable, fx);
        }
        group.parts.clear();
        group.bytes.clear();
        self.staging.spare = group;
    }

    fn committed<E: Effects>(&mut self, now: Now, part: &Part, bytes: &[u8], fx: &mut E) {
        let slot = self.slots[usize::from(part.slot)].as_mut().expect("owned");
        slot.next_lsn = part.expected_lsn + u64::from(part.records);
        for (lsn, bytes) in (part.expected_lsn..).zip(prefixed(bytes)) {
            let record = Record::read(bytes).expect("written by this shard");
            if record.class == Class::ReadMark && self.loaded(record.conversation).is_none() {
                // Let go of meanwhile, after a checkpoint that holds the mark: nothing is left to be done.
                continue;
            }
            self.apply(lsn, &record, bytes, true, fx);
            if matches!(record.class, Class::Message(_)) {
                self.pull_what_waited(now, record.conversation, record.seq, fx);
            }
        }
    }

    /// Records that were certainly not written: their proposals go back, and those behind them.
    fn not_written<E: Effects>(&mut self, now: Now, bytes: &[u8], code: ErrorCode, fx: &mut E) {
        for bytes in prefixed(bytes) {
            let record = Record::read(bytes).expect("written by this shard");
            match record.class {
                Class::Message(_) => self.take_back(record.conversation, true, code, fx),
                Class::ReadMark => self.schedule_mark(now, record.conversation, record.author),
            }
        }
    }

    /// Takes back everything that storage has not been given.
    fn take_back_staged<E: Effects>(&mut self, now: Now, code: ErrorCode, fx: &mut E) {
        let bytes = std::mem::take(&mut self.staging.bytes);
        for item in std::mem::take(&mut self.staging.items) {
            let record = Record::read(&bytes[item.start as usize..item.end as usize]).expect("written by this shard");
            match record.class {
                Class::Message(_) => self.take_back(item.conversation, false, code, fx),
                Class::ReadMark => self.schedule_mark(now, record.conversation, record.author),
            }
        }
        self.staging.bytes = bytes;
        self.staging.bytes.clear();
    }

    /// Takes back a conversation's proposals, all or those not submitted, and answers who waits.
    fn take_back<E: Effects>(&mut self, id: ConversationId, submitted: bool, code: ErrorCode, fx: &mut E) {
        let Some(entry) = self.loaded(id) else { return };
        let mut taken = VecDeque::new();
        while let Some(proposal) = entry.pending.pop_back_if(|last| submitted || !last.submitted) {
            entry.proposed = proposal.before;
            taken.push_front(proposal);
        }
        for proposal in &taken {
            let used = self.window.get(proposal.fingerprint);
            self.window.take_back(proposal.fingerprint);
            debug_assert!(used.is_some_and(|used| used.pending));
            if proposal.before.head == 0 {
                self.begun.take_back(proposal.author);
            }
        }
        self.answer_waiters(id, taken.into_iter().map(|proposal| (proposal.id, proposal.waiters)), code, fx);
    }

    fn answer_waiters<E: Effects>(
        &mut self,
        conversation: ConversationId,
        waiters: impl Iterator<Item = (ClientMessageId, Waiters)>,
        code: ErrorCode,
        fx: &mut E,
    ) {
        let mut all: Vec<_> = waiters.flat_map(|(id, waiters)| waiters.all().map(move |waiter| (id, waiter))).collect();
        self.hold_back(conversation, all.iter_mut().map(|(_, (request, fence))| (*request, fence)));
        for (id, (request, fence)) in all {
            let (conversation, id, by) = (Some(conversation), Some(id), Hop::Conversation);
            let refused = Mail::Refused { request, conversation, id, code, after_ms: 1_000, by, fence };
            fx.post(&Letter { to: Address::User(request.user), mail: refused, payload: &[] });
        }
    }

    /// P10: who has waited too long is told that the outcome is unknown. The group stays with storage;
    /// a repeat of the same id joins it.
    pub(crate) fn give_up<E: Effects>(&mut self, now: Now, fx: &mut E) {
        if self.stall_deadline().is_none_or(|deadline| now.monotonic_ms < deadline) {
            return;
        }
        self.counters.stalls += u64::from(self.staging.given_up_at.is_none());
        self.staging.given_up_at = Some(now.monotonic_ms);
        self.staging.joined = false;
        self.take_back_staged(now, ErrorCode::Unavailable, fx);
        let mut waiting = Vec::new();
        for slot in self.slots.iter_mut().flatten() {
            // Few of all conversations have something pending, and the others need not be sorted.
            for (&id, entry) in slot.conversations.iter_mut().filter(|(_, entry)| !entry.pending.is_empty()) {
                let waiters = entry.pending.iter_mut().map(|p| (p.id, std::mem::take(&mut p.waiters)));
                waiting.push((id, waiters.collect::<Vec<_>>()));
            }
        }
        // The order of a hash map is no order: sort, so that one seed gives one history.
        waiting.sort_by_key(|(conversation, _)| *conversation);
        for (conversation, waiters) in waiting {
            self.answer_waiters(conversation, waiters.into_iter(), ErrorCode::Unavailable, fx);
        }
    }

    /// Takes a committed record into the state, into the rows for the views, and tells who must know.
    pub(crate) fn apply<E: Effects>(&mut self, lsn: u64, record: &Record<'_>, bytes: &[u8], live: bool, fx: &mut E) {
        let id = record.conversation;
        let slot = self.slots[slot_of(id)].as_mut().expect("owned");
        let entry = slot.conversations.get_mut(&id).expect("records are applied in memory");
        let state = entry.state.as_mut().expect("records are applied in memory");
        let delivered_all = state.delivered_all.value;
        let read_all = state.read_all.value;
        let is_new = state.apply(lsn, record);
        assert!(is_new || !live, "what is committed now was not known before");
        if let Class::Message(kind) = record.class {
            let ticks = state.delivered_all.value > delivered_all || state.read_all.value > read_all;
            entry.trim_recent(&self.overlay);
            let mut key = [0; 25];
            key[..17].copy_from_slice(&id.key());
            key[17..].copy_from_slice(&record.seq.to_be_bytes());
            // A crash may have left the views a head without the rows below it: what the journal still has
            // is written again, whatever the head says.
            if entry.recent.is_empty() {
                entry.recent_first = record.seq;
            }
            entry.recent.push_back(self.overlay.push(Space::History, &key, bytes));
            self.message_applied(kind, record, live, fx);
            if live && ticks {
                self.send_ticks(id, None, fx);
            }
        }
        self.set_dirty(id);
    }

    fn message_applied<E: Effects>(&mut self, kind: Kind, record: &Record<'_>, live: bool, fx: &mut E) {
        let id = record.conversation;
        let message = message_of(record, kind);
        let key = dedup::key(id, &send_of(&message));
        let used = Used { seq: record.seq, body_hash: record.body_hash, time_ms: record.time_ms, pending: false };
        let fingerprint = self.window.fingerprint(&key);
        if live || !planted!(self, DedupForgotten) {
            self.overlay.push(Space::Dedup, &key, &used.row());
            self.window.commit(fingerprint, used);
        }
        self.counters.messages += u64::from(live);
        let entry = self.loaded(id).expect("just applied");
        if live {
            let proposal = entry.pending.pop_front().expect("a live record was proposed");
            assert_eq!(proposal.fingerprint, fingerprint, "commits come in the order of proposals");
            if proposal.waiters.first.is_none() {
                // Its author was told that the outcome is unknown, and may have given up.
                let mail = Mail::Dirty { user: record.author, conversation: id, head: record.seq };
                fx.post(&Letter { to: Address::User(record.author), mail, payload: &[] });
            }
            for (nth, (request, _)) in proposal.waiters.all().enumerate() {
                Self::post_stored(request, record.id, id, (record.seq, record.time_ms, nth > 0), fx);
            }
        } else {
            entry.proposed = entry.state.as_ref().expect("just applied").proposed();
        }
        self.publish(&message, record.body, live, fx);
    }

    /// Tells every member's owner: the message itself, or after recovery only that there is something.
    fn publish<E: Effects>(&mut self, message: &MessageMail, body: &str, live: bool, fx: &mut E) {
        let id = message.conversation;
        let slot = self.slots[slot_of(id)].as_ref().expect("owned");
        let state = slot.conversations[&id].state.as_ref().expect("just applied");
        for member in &state.members {
            let user = member.user;
            if message.seq == member.joined + 1 {
                let mut key = [0; 25];
                key[..8].copy_from_slice(&user.0.to_be_bytes());
                key[8..].copy_from_slice(&id.key());
                let row = self.overlay.push(Space::Members, &key, &member.joined.to_le_bytes());
                self.members.add(row.generation(), user, id);
            }
            let (mail, payload) = if live {
                let mail = Mail::Message { user, message: *message, change: ChangeNumber::default() };
                (mail, body.as_bytes())
            } else if message.seq == member.joined + 1 {
                (Mail::Dirty { user, conversation: id, head: message.seq }, &[][..])
            } else {
                continue;
            };
            fx.post(&Letter { to: Address::User(user), mail, payload });
        }
    }
}

fn message_of(record: &Record<'_>, kind: Kind) -> MessageMail {
    MessageMail {
        conversation: record.conversation,
        seq: record.seq,
        from: record.author,
        device: record.device,
        time_ms: record.time_ms,
        kind,
        id: record.id,
        reply_to: record.reply_to,
        target_seq: record.target_seq,
    }
}

/// A send as far as its dedup key goes.
fn send_of(message: &MessageMail) -> SendMail {
    SendMail {
        request: Request {
            session: wire::mail::SessionAddress { shard: 0, index: 0, generation: 0 },
            user: message.from,
            device: message.device,
            number: 0,
        },
        fence: Fence::default(),
        conversation: message.conversation,
        id: message.id,
        kind: message.kind,
        reply_to: message.reply_to,
        target_seq: message.target_seq,
    }
}

impl Staging {
    fn add(&mut self, record: &Record<'_>) {
        let start = self.bytes.len() as u32;
        record.write(&mut self.bytes);
        let slot = slot_of(record.conversation) as u16;
        self.items.push(Item { conversation: record.conversation, slot, start, end: self.bytes.len() as u32 });
    }

    /// The staged records sorted by slot, each slot's in the order in which they were staged.
    fn take_group(&mut self) -> AppendGroup {
        let mut group = std::mem::take(&mut self.spare);
        self.ticket += 1;
        group.ticket = self.ticket;
        // A stable sort would allocate.
        self.items.sort_unstable_by_key(|item| (item.slot, item.start));
        for items in self.items.chunk_by(|one, other| one.slot == other.slot) {
            let start = group.bytes.len() as u32;
            for item in items {
                record::write_prefixed(&mut group.bytes, &self.bytes[item.start as usize..item.end as usize]);
            }
            group.parts.push(Part {
                slot: items[0].slot,
                epoch: 0,
                expected_lsn: 0,
                records: items.len() as u32,
                bytes: start..group.bytes.len() as u32,
            });
        }
        self.bytes.clear();
        group
    }
}
