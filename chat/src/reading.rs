//! Marks, pages of history, summaries and signals: what a conversation's owner answers without
//! giving out a seq.

use storage_seam::{ReadError, Rows, Space, StorageRequest, ViewRead};
use wire::ids::{ChangeNumber, ConversationId, UserId};
use wire::mail::{Address, Letter, Mail, Request, SessionAddress, SummaryMail};
use wire::protocol::ErrorCode;

use crate::effects::{Effects, Now};
use crate::owner::{Awaited, Owner, refuse, slot_of, ticket_of};
use crate::record::{HEADER_BYTES, Record, prefixed, write_prefixed};

/// How long a read mark may gather company before its control record is staged.
const MARK_DELAY_MS: u64 = 1_000;

/// A range of messages that somebody wants.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pull {
    pub request: Request,
    pub conversation: ConversationId,
    pub ascending: bool,
    /// Above it when ascending; below it, or the end if 0, when descending.
    pub from: u64,
    pub limit: u32,
    pub min_seq: u64,
}

/// What a read of the history view is for.
#[derive(Debug)]
pub(crate) enum Reading {
    /// The stored part of a page, and, in its order, the part that was in the overlay when it was asked for.
    Page { pull: Pull, lowest: u64, highest: u64, stored_highest: u64, recent: Vec<u8> },
    /// The message at a read mark, for the number of countable messages up to it.
    Mark { request: Request, conversation: ConversationId, delivered: u64, read: u64 },
}

impl Owner {
    /// Moves a member's marks.
    pub(crate) fn mark<E: Effects>(
        &mut self,
        now: Now,
        request: Request,
        id: ConversationId,
        delivered: u64,
        read: u64,
        fx: &mut E,
    ) {
        let state = self.loaded(id).expect("marks run in memory").state.as_ref().expect("loaded");
        let Some(member) = state.member(request.user) else {
            return refuse(fx, request, Some(id), None, ErrorCode::NotFound, 0);
        };
        if delivered > state.head || read > state.head {
            return refuse(fx, request, Some(id), None, ErrorCode::BadCursor, 0);
        }
        let countable = if read > member.read { state.countable_at(read) } else { Some(0) };
        let countable = countable.or_else(|| self.countable_of_recent(id, read));
        match countable {
            Some(countable) => self.take_mark(now, request, id, (delivered, read, countable), fx),
            None => {
                self.read_history(
                    id,
                    (read, read),
                    true,
                    Reading::Mark { request, conversation: id, delivered, read },
                    fx,
                );
            }
        }
    }

    /// Countable messages up to `seq`, if the views may still lack that message.
    fn countable_of_recent(&mut self, id: ConversationId, seq: u64) -> Option<u64> {
        let overlay = &self.overlay;
        let slot = self.slots[slot_of(id)].as_mut().expect("owned");
        let entry = slot.conversations.get_mut(&id).expect("marks run in memory");
        entry.trim_recent(overlay);
        let nth = seq.checked_sub(entry.recent_first)?;
        let row = overlay.get(*entry.recent.get(nth as usize)?).expect("recent rows are held");
        Some(Record::read(row).expect("written by this shard").countable)
    }

    fn take_mark<E: Effects>(
        &mut self,
        now: Now,
        request: Request,
        id: ConversationId,
        (delivered, read, countable): (u64, u64, u64),
        fx: &mut E,
    ) {
        let user = request.user;
        let state = self.loaded(id).expect("marks run in memory").state.as_mut().expect("loaded");
        let moved = state.take_marks(user, delivered, read, countable);
        if moved.delivered || moved.read {
            self.set_dirty(id);
        }
        if moved.read {
            self.schedule_mark(now, id, user);
            let mail = Mail::MarkMoved {
                user,
                device: request.device,
                conversation: id,
                delivered: 0,
                read,
                change: ChangeNumber::default(),
            };
            fx.post(&Letter { to: Address::User(user), mail, payload: &[] });
        }
        if moved.ticks {
            self.send_ticks(id, Some(user), fx);
        }
        fx.post(&Letter { to: Address::User(user), mail: Mail::Marked { request }, payload: &[] });
    }

    /// At most one control record per member, conversation and delay: it keeps where the mark then is.
    pub(crate) fn schedule_mark(&mut self, now: Now, id: ConversationId, user: UserId) {
        if self.marks_scheduled.insert((id, user)) {
            self.marks_due.push_back((now.monotonic_ms + MARK_DELAY_MS, id, user));
        }
    }

    /// Stages the control records of the marks that are due.
    pub(crate) fn stage_due_marks(&mut self, now: Now) {
        while let Some((_, id, user)) = self.marks_due.pop_front_if(|due| due.0 <= now.monotonic_ms) {
            self.marks_scheduled.remove(&(id, user));
            self.stage_read_mark(now, id, user);
        }
    }

    /// Tells the members, except the one who moved, that the lowest marks are higher.
    pub(crate) fn send_ticks<E: Effects>(&mut self, id: ConversationId, mover: Option<UserId>, fx: &mut E) {
        let state = self.loaded(id).expect("ticks follow a change").state.as_ref().expect("loaded");
        let (delivered_all, read_all) = (state.delivered_all.value, state.read_all.value);
        for user in state.members.iter().map(|member| member.user).filter(|&user| Some(user) != mover) {
            let change = ChangeNumber::default();
            let mail = Mail::Tick { user, conversation: id, delivered_all, read_all, change };
            fx.post(&Letter { to: Address::User(user), mail, payload: &[] });
        }
    }

    /// Answers with a page of messages, from the overlay, the views, or both.
    pub(crate) fn pull<E: Effects>(&mut self, now: Now, pull: &Pull, fx: &mut E) {
        let id = pull.conversation;
        let bytes_max = self.limits.page_bytes_max as usize;
        let overlay = &self.overlay;
        let slot = self.slots[slot_of(id)].as_mut().expect("owned");
        let entry = slot.conversations.get_mut(&id).expect("pulls run in memory");
        entry.trim_recent(overlay);
        let state = entry.state.as_ref().expect("loaded");
        let Some(member) = state.member(pull.request.user) else {
            return refuse(fx, pull.request, Some(id), None, ErrorCode::NotFound, 0);
        };
        if pull.min_seq > state.head {
            return self.pull_later(now, pull, fx);
        }
        let limit = u64::from(pull.limit.clamp(1, 100));
        let (lowest, highest) = if pull.ascending {
            let lowest = pull.from.max(member.joined).saturating_add(1);
            (lowest, state.head.min(lowest.saturating_add(limit - 1)))
        } else {
            let highest = if pull.from == 0 { state.head } else { state.head.min(pull.from - 1) };
            ((highest + 1).saturating_sub(limit).max(member.joined + 1), highest)
        };
        let stored_highest = highest.min(entry.recent_first - 1);
        let mut recent = Vec::new();
        let mut add = |seq: u64| {
            let place = entry.recent[(seq - entry.recent_first) as usize];
            write_prefixed(&mut recent, overlay.get(place).expect("recent rows are held"));
            recent.len() <= bytes_max
        };
        let mut in_memory = lowest.max(entry.recent_first)..=highest;
        let fits = if pull.ascending { in_memory.all(&mut add) } else { in_memory.rev().all(&mut add) };
        // Downwards, what is in memory comes first and may be a page by itself.
        if lowest > stored_highest || lowest > highest || (!pull.ascending && !fits) {
            return self.answer_page(pull, &Rows::default(), &recent, (lowest, highest), fx);
        }
        if self.pulls >= self.limits.pulls_max {
            self.counters.pulls_refused += 1;
            return refuse(fx, pull.request, Some(id), None, ErrorCode::Overloaded, 1_000);
        }
        self.pulls += 1;
        let reading = Reading::Page { pull: *pull, lowest, highest, stored_highest, recent };
        self.read_history(id, (lowest, stored_highest), pull.ascending, reading, fx);
    }

    /// What is asked for is not there yet.
    fn pull_later<E: Effects>(&mut self, now: Now, pull: &Pull, fx: &mut E) {
        if self.waiting.len() < self.limits.pulls_max as usize {
            self.counters.reads_waited += 1;
            return self.waiting.add(now.monotonic_ms, pull);
        }
        self.counters.pulls_refused += 1;
        Self::say_behind(pull, fx);
    }

    fn say_behind<E: Effects>(pull: &Pull, fx: &mut E) {
        refuse(fx, pull.request, Some(pull.conversation), None, ErrorCode::Behind, 1_000);
    }

    /// A conversation has a higher head: answers who waited for it.
    pub(crate) fn pull_what_waited<E: Effects>(&mut self, now: Now, id: ConversationId, head: u64, fx: &mut E) {
        for pull in self.waiting.reached(id, head) {
            self.pull(now, &pull, fx);
        }
    }

    /// A session is gone: its reads give up their places. They are answered like all others, since an answer
    /// gives back the room of its request.
    pub(crate) fn give_up_reads_of<E: Effects>(&mut self, session: SessionAddress, id: ConversationId, fx: &mut E) {
        for pull in self.waiting.of(id, |pull| pull.request.session == session) {
            self.counters.reads_left += 1;
            Self::say_behind(&pull, fx);
        }
    }

    /// Answers who has waited for long enough.
    pub(crate) fn give_up_waiting<E: Effects>(&mut self, now: Now, fx: &mut E) {
        for pull in self.waiting.late(now.monotonic_ms) {
            Self::say_behind(&pull, fx);
        }
    }

    /// Reads no more than a page, from the end at which the page begins.
    fn read_history<E: Effects>(
        &mut self,
        id: ConversationId,
        (lowest, highest): (u64, u64),
        ascending: bool,
        reading: Reading,
        fx: &mut E,
    ) {
        let key = |seq: u64| [&id.key()[..], &seq.to_be_bytes()].concat();
        let ticket = self.awaited.insert(Awaited::Reading(reading));
        let range = ViewRead::Range {
            space: Space::History,
            start: key(lowest),
            end: key(highest + 1),
            rows_max: (highest - lowest + 1) as u32,
            bytes_max: self.limits.page_bytes_max,
            reverse: !ascending,
        };
        fx.storage(StorageRequest::Read(ticket_of(ticket), range));
    }

    /// The history view has answered.
    pub(crate) fn read<E: Effects>(&mut self, now: Now, reading: Reading, answer: Result<Rows, ReadError>, fx: &mut E) {
        let (request, id, wanted, ascending) = match &reading {
            Reading::Page { pull, lowest, stored_highest, .. } => {
                self.pulls -= 1;
                (pull.request, pull.conversation, *lowest..=*stored_highest, pull.ascending)
            }
            Reading::Mark { request, conversation, read, .. } => (*request, *conversation, *read..=*read, true),
        };
        let rows = match answer {
            Ok(rows) if ascending && is_dense(&rows, id, wanted.clone()) => rows,
            Ok(rows) if !ascending && is_dense(&rows, id, wanted.clone().rev()) => rows,
            other => {
                self.counters.read_errors += 1;
                let code = match other {
                    Err(ReadError::Unavailable(_)) => ErrorCode::Unavailable,
                    // A hole in the history is damage, never a short page (P16).
                    Ok(_) | Err(ReadError::Damaged(_)) => ErrorCode::Damaged,
                };
                return refuse(fx, request, Some(id), None, code, 1_000);
            }
        };
        match reading {
            Reading::Page { pull, lowest, highest, recent, .. } => {
                self.answer_page(&pull, &rows, &recent, (lowest, highest), fx);
            }
            Reading::Mark { delivered, read, .. } => {
                let (_, row) = rows.iter().next().expect("dense over one seq");
                let record = Record::read(row).expect("checked to be dense");
                // A conversation stays in memory only while it is used: ask for it again.
                if self.loaded(id).is_some() {
                    self.take_mark(now, request, id, (delivered, read, record.countable), fx);
                } else {
                    refuse(fx, request, Some(id), None, ErrorCode::Unavailable, 100);
                }
            }
        }
    }

    fn answer_page<E: Effects>(
        &mut self,
        pull: &Pull,
        stored: &Rows,
        recent: &[u8],
        (lowest, highest): (u64, u64),
        fx: &mut E,
    ) {
        let id = pull.conversation;
        let Some(entry) = self.loaded(id) else {
            return refuse(fx, pull.request, Some(id), None, ErrorCode::Unavailable, 100);
        };
        let head = entry.state.as_ref().expect("loaded").head;
        let joined = entry.state.as_ref().expect("loaded").member(pull.request.user).map_or(0, |member| member.joined);
        let bytes_max = self.limits.page_bytes_max as usize;
        let mut page = Vec::new();
        let mut last = None;
        let mut add = |row: &[u8]| {
            let fits = page.is_empty() || page.len() + row.len() <= bytes_max;
            if fits {
                write_prefixed(&mut page, row);
                last = Some(u64::from_le_bytes(row[8..16].try_into().expect("rows are records")));
            }
            fits
        };
        let stored = stored.iter().map(|(_, row)| row);
        if pull.ascending {
            let _ = stored.chain(prefixed(recent)).all(&mut add);
        } else {
            let _ = prefixed(recent).chain(stored).all(&mut add);
        }
        let more = match last {
            Some(last) if pull.ascending => last < head,
            Some(last) => last > joined + 1,
            None => lowest <= highest,
        };
        let mail = Mail::Page { request: pull.request, conversation: id, head, first_seq: joined + 1, more };
        fx.post(&Letter { to: Address::User(pull.request.user), mail, payload: &page });
    }

    /// Says how the conversation looks to a member.
    pub(crate) fn summarise<E: Effects>(&mut self, request: Request, id: ConversationId, fx: &mut E) {
        let state = self.loaded(id).expect("summaries run in memory").state.as_ref().expect("loaded");
        let Some(member) = state.member(request.user) else {
            return refuse(fx, request, Some(id), None, ErrorCode::NotFound, 0);
        };
        let summary = SummaryMail {
            conversation: id,
            head: state.head,
            unread: state.unread(member),
            read: member.read,
            delivered: member.delivered,
            read_all: state.read_all.value,
            delivered_all: state.delivered_all.value,
            time_ms: state.time_ms,
        };
        let mail = Mail::Summary { request, summary };
        fx.post(&Letter { to: Address::User(request.user), mail, payload: &state.last });
    }

    /// Passes something that is not stored to the other members.
    pub(crate) fn signal<E: Effects>(
        &mut self,
        request: Request,
        id: ConversationId,
        name_bytes: u32,
        payload: &[u8],
        fx: &mut E,
    ) {
        let state = self.loaded(id).expect("signals run in memory").state.as_ref().expect("loaded");
        if state.member(request.user).is_none() {
            return;
        }
        for user in state.members.iter().map(|member| member.user).filter(|&user| user != request.user) {
            let mail = Mail::Signal { user, from: request.user, conversation: id, name_bytes };
            fx.post(&Letter { to: Address::User(user), mail, payload });
        }
    }
}

/// Whether the rows are exactly the messages wanted, in that order, or as many of them as one read may bring.
fn is_dense(rows: &Rows, id: ConversationId, mut wanted: impl Iterator<Item = u64>) -> bool {
    let all = rows.iter().all(|(key, row)| {
        let seq = wanted.next();
        key.len() == 25
            && row.len() >= HEADER_BYTES
            && key[..17] == id.key()
            && seq.is_some_and(|seq| {
                key[17..] == seq.to_be_bytes() && Record::read(row).is_ok_and(|r| r.seq == seq && r.conversation == id)
            })
    });
    all && (wanted.next().is_none() || (rows.more && !rows.index.is_empty()))
}
