//! The owner of conversations: for each slot of this shard, the conversations in memory, and the
//! commands that wait for one to be loaded.
//!
//! A command runs at once if its conversation is here and nothing waits in front of it; else it is
//! parked, in order, until the read that it waits for is answered.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use shard_router::{SLOTS, slot_of_conversation};
use slab::Slab;
use storage_seam::{Epoch, Lsn, ReadError, Rows, Slot, Space, StorageRequest, StoreFacts, Ticket, ViewRead};
use wire::ids::{ConversationId, DeviceId, UserId};
use wire::mail::{self, Address, Fence, Hop, Letter, Mail, Request, SendMail, SessionAddress};
use wire::protocol::ErrorCode;

use crate::begun::Begun;
use crate::conversation::{Conversation, Proposed};
use crate::dedup::{self, Used, Window};
use crate::effects::{Effects, Now};
use crate::fence::Fences;
use crate::limits::Limits;
use crate::members::NewMembers;
use crate::overlay::{Overlay, RowPlace};
use crate::planted::{Planted, planted};
use crate::pressure::{Pressure, Work};
use crate::reading::Reading;
use crate::record::Record;
use crate::sending::{LookedUp, Proposal, Staging};
use crate::waiting::WaitingReads;
use crate::{Counters, SeededState};

/// Whether a slot's commands may run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Recovered records are being applied.
    Opening,
    /// Open for commands.
    Serving,
    /// A higher epoch owns it.
    Fenced,
}

/// One slot that this shard owns.
#[derive(Debug)]
pub(crate) struct SlotState {
    pub phase: Phase,
    pub epoch: Epoch,
    pub next_lsn: Lsn,
    pub conversations: HashMap<ConversationId, Entry, SeededState>,
}

/// A conversation in memory, or on its way there.
#[derive(Debug)]
pub(crate) struct Entry {
    /// `None` while it is being read.
    pub state: Option<Conversation>,
    /// Behind the last proposal in flight.
    pub proposed: Proposed,
    /// Time of the last record that memory has not seen.
    pub loaded_time_ms: u64,
    pub parked: VecDeque<Parked>,
    /// Messages between proposal and commit, in seq order.
    pub pending: VecDeque<Proposal>,
    /// Seq of the first row in `recent`.
    pub recent_first: u64,
    /// History rows that the views may lack.
    pub recent: VecDeque<RowPlace>,
    /// Changed since the last freeze.
    pub dirty: bool,
    /// Generation of the overlay after which the views have all of it.
    pub frozen_in: Option<u32>,
    /// Used since the last look for something to let go.
    pub touched: bool,
}

/// A command that waits.
#[derive(Debug)]
pub(crate) struct Parked {
    pub what: Waiting,
    /// A send of the same sender that was in front of it has failed: it is refused when its turn comes (P5).
    pub held_back: bool,
    pub bytes: Vec<u8>,
}

#[derive(Debug)]
pub(crate) enum Waiting {
    /// A letter that has not been looked at.
    Letter,
    /// A send whose id is being looked up.
    Lookup,
    /// A send whose id has been looked up.
    LookedUp(LookedUp),
    /// A recovered record.
    Replay(Lsn),
}

/// What a ticket given to storage stands for.
#[derive(Debug)]
pub(crate) enum Awaited {
    Load(ConversationId),
    Lookup { conversation: ConversationId, key: [u8; dedup::KEY_BYTES], checkpoints: u64 },
    Reading(Reading),
}

/// All conversations of one shard.
#[derive(Debug)]
pub(crate) struct Owner {
    pub limits: Limits,
    pub facts: StoreFacts,
    pub slots: Vec<Option<Box<SlotState>>>,
    pub overlay: Overlay,
    pub window: Window,
    pub fences: Fences,
    pub staging: Staging,
    pub awaited: Slab<Awaited>,
    /// Changed since the last freeze.
    pub dirty: Vec<ConversationId>,
    /// Changed before the last freeze, their heads not handed over yet.
    pub closing: Vec<ConversationId>,
    /// Read marks that wait for their control record: when, whose.
    pub marks_due: VecDeque<(u64, ConversationId, UserId)>,
    /// The same, to find out whose wait already.
    pub marks_scheduled: HashSet<(ConversationId, UserId), SeededState>,
    pub conversations: usize,
    pub parked_bytes: usize,
    pub pulls: u32,
    /// Reads of what is not there yet.
    pub waiting: WaitingReads,
    pub members: NewMembers,
    pub begun: Begun,
    pub pressure: Pressure,
    /// Recovered records not yet applied; `None` before all have been delivered.
    pub replays: usize,
    pub all_recovered: bool,
    pub serving: bool,
    pub evict_at: usize,
    pub state: SeededState,
    pub counters: Counters,
    pub planted: Planted,
}

/// What answers a request that was not done.
pub(crate) fn refuse<E: Effects>(
    fx: &mut E,
    request: Request,
    conversation: Option<ConversationId>,
    send: Option<&SendMail>,
    code: ErrorCode,
    after_ms: u32,
) {
    let refused = Mail::Refused {
        request,
        conversation,
        id: send.map(|send| send.id),
        code,
        after_ms,
        by: Hop::Conversation,
        fence: send.map_or(Fence::default(), |send| send.fence),
    };
    fx.post(&Letter { to: Address::User(request.user), mail: refused, payload: &[] });
}

/// Answers a send that follows a failure of that number without knowing of it.
fn refuse_behind<E: Effects>(fx: &mut E, send: &SendMail, failed: u32) {
    let known = SendMail { fence: Fence { conversation: failed, ..send.fence }, ..*send };
    refuse(fx, send.request, Some(send.conversation), Some(&known), ErrorCode::Retry, 0);
}

/// The request in a letter to a conversation's owner, with its conversation.
pub(crate) fn request_of(mail: &Mail) -> Option<(Request, ConversationId)> {
    match *mail {
        Mail::Send(send) => Some((send.request, send.conversation)),
        Mail::Mark { request, conversation, .. }
        | Mail::Pull { request, conversation, .. }
        | Mail::Summarise { request, conversation } => Some((request, conversation)),
        _ => None,
    }
}

impl Owner {
    pub(crate) fn new(limits: Limits, facts: StoreFacts, shards: u16, seed: u64) -> Self {
        let state = SeededState::new(seed);
        let begun = Begun::new(&limits, shards, state);
        Self {
            window: Window::new(limits.dedup_entries_max, seed, state),
            fences: Fences::for_shards(shards, limits.requests_max, state),
            limits,
            facts,
            slots: (0..SLOTS).map(|_| None).collect(),
            overlay: Overlay::default(),
            staging: Staging::default(),
            awaited: Slab::new(),
            dirty: Vec::new(),
            closing: Vec::new(),
            marks_due: VecDeque::new(),
            marks_scheduled: HashSet::with_hasher(state),
            conversations: 0,
            parked_bytes: 0,
            pulls: 0,
            waiting: WaitingReads::new(state),
            members: NewMembers::default(),
            begun,
            pressure: Pressure::default(),
            replays: 0,
            all_recovered: false,
            serving: false,
            evict_at: 0,
            state,
            counters: Counters::default(),
            planted: Planted::default(),
        }
    }

    /// Begins to own a slot; its recovered records may follow.
    pub(crate) fn open_slot(&mut self, slot: Slot) {
        let conversations = HashMap::with_hasher(self.state);
        let opened = SlotState { phase: Phase::Opening, epoch: self.facts.epoch, next_lsn: 0, conversations };
        self.slots[usize::from(slot)] = Some(Box::new(opened));
    }

    /// A letter for a conversation's owner.
    pub(crate) fn letter<E: Effects>(&mut self, now: Now, letter: &Letter<'_>, fx: &mut E) {
        let Address::Conversation(id) = letter.to else { unreachable!("the shard sorts letters by address") };
        if let Mail::Left { request, .. } = letter.mail {
            return self.give_up_reads_of(request.session, id, fx);
        }
        if let Err((code, after_ms)) = self.may_run(id) {
            return self.refuse_letter(letter, code, after_ms, fx);
        }
        if self.sheds(&letter.mail) {
            return self.refuse_letter(letter, ErrorCode::Overloaded, 1_000, fx);
        }
        if let Mail::Send(send) = &letter.mail
            && let Some(failed) = self.fences.blocks(send.request.session, id, send.fence.conversation)
        {
            return refuse_behind(fx, send, failed);
        }
        if matches!(id, ConversationId::Group(_)) {
            return self.refuse_letter(letter, ErrorCode::NotFound, 0, fx);
        }
        let entry = self.entry(id, fx);
        entry.touched = true;
        if entry.state.is_some() && entry.parked.is_empty() {
            self.run(now, letter, LookedUp::NotYet, fx);
        } else {
            self.park(id, Waiting::Letter, letter, fx);
        }
    }

    /// Whether the shard is too near its limits for such work.
    fn sheds(&mut self, mail: &Mail) -> bool {
        let (work, count) = match mail {
            Mail::Signalling { .. } => (Work::Signal, &mut self.counters.shed_signals),
            Mail::Mark { .. } => (Work::Receipt, &mut self.counters.shed_receipts),
            Mail::Pull { .. } => (Work::Scan, &mut self.counters.shed_scans),
            _ => return false,
        };
        let sheds = self.pressure.sheds(work);
        *count += u64::from(sheds);
        sheds
    }

    /// How near to its limits is what waits here.
    pub(crate) fn own_pressure(&self, now: Now) -> Pressure {
        Pressure::of(self.parked_bytes as u64, u64::from(self.limits.parked_bytes_max)).max(self.staged_pressure(now))
    }

    fn may_run(&self, id: ConversationId) -> Result<(), (ErrorCode, u32)> {
        match self.slots[slot_of(id)].as_ref().map(|slot| slot.phase) {
            Some(Phase::Serving) => Ok(()),
            Some(Phase::Opening) => Err((ErrorCode::Unavailable, 500)),
            Some(Phase::Fenced) | None => Err((ErrorCode::NotOwner, 1_000)),
        }
    }

    /// Answers a letter with an error; later sends of the same sender are then held back (P5).
    pub(crate) fn refuse_letter<E: Effects>(
        &mut self,
        letter: &Letter<'_>,
        code: ErrorCode,
        after_ms: u32,
        fx: &mut E,
    ) {
        let Some((request, id)) = request_of(&letter.mail) else { return };
        let mut send = if let Mail::Send(send) = letter.mail { Some(send) } else { None };
        if let Some(send) = &mut send
            && code.retryable()
        {
            send.fence.conversation = self.fences.failed(request.session, id, send.fence.conversation);
        }
        refuse(fx, request, Some(id), send.as_ref(), code, after_ms);
    }

    /// Sends failed when their turn came: those of the same senders that wait behind them are held back too.
    /// All failures of one moment come together, so that what waits is looked through once. Their fences become
    /// what their senders are to be told.
    pub(crate) fn hold_back<'a>(&mut self, id: ConversationId, failed: impl Iterator<Item = (Request, &'a mut Fence)>) {
        let mut fences: BTreeMap<SessionAddress, u32> = BTreeMap::new();
        // A request over REST is a session of its own: nothing comes behind it.
        for (request, fence) in failed.filter(|(request, _)| request.device != DeviceId(0)) {
            fence.conversation = self.fences.failed(request.session, id, fence.conversation);
            fences.insert(request.session, fence.conversation);
        }
        let Some(entry) = self.loaded(id).filter(|_| !fences.is_empty()) else { return };
        for parked in entry.parked.iter_mut().filter(|parked| !matches!(parked.what, Waiting::Replay(_))) {
            if let Mail::Send(send) = own_letter(&parked.bytes).mail
                && let Some(&fence) = fences.get(&send.request.session)
                && send.fence.conversation <= fence
            {
                parked.held_back = true;
            }
        }
    }

    /// Refuses a send whose turn had come.
    pub(crate) fn refuse_send<E: Effects>(&mut self, send: &SendMail, code: ErrorCode, fx: &mut E) {
        let mut send = *send;
        if code.retryable() {
            self.hold_back(send.conversation, std::iter::once((send.request, &mut send.fence)));
        }
        refuse(fx, send.request, Some(send.conversation), Some(&send), code, 1_000);
    }

    /// The conversation's entry; asks storage for its head if it is not in memory.
    pub(crate) fn entry<E: Effects>(&mut self, id: ConversationId, fx: &mut E) -> &mut Entry {
        let slot = self.slots[slot_of(id)].as_mut().expect("letters are for owned slots");
        slot.conversations.entry(id).or_insert_with(|| {
            self.conversations += 1;
            let ticket = self.awaited.insert(Awaited::Load(id));
            let read = ViewRead::Get { space: Space::Heads, key: id.key().to_vec() };
            fx.storage(StorageRequest::Read(ticket_of(ticket), read));
            Entry {
                state: None,
                proposed: Proposed { head: 0, countable: 0, time_ms: 0 },
                loaded_time_ms: 0,
                parked: VecDeque::new(),
                pending: VecDeque::new(),
                recent_first: 1,
                recent: VecDeque::new(),
                dirty: false,
                frozen_in: None,
                touched: true,
            }
        })
    }

    /// The entry of a conversation that is in memory.
    pub(crate) fn loaded(&mut self, id: ConversationId) -> Option<&mut Entry> {
        let slot = self.slots[slot_of(id)].as_mut()?;
        slot.conversations.get_mut(&id).filter(|entry| entry.state.is_some())
    }

    fn park<E: Effects>(&mut self, id: ConversationId, what: Waiting, letter: &Letter<'_>, fx: &mut E) {
        if self.parked_bytes + letter.payload.len() > self.limits.parked_bytes_max as usize {
            self.counters.parked_refused += 1;
            return self.refuse_letter(letter, ErrorCode::Overloaded, 1_000, fx);
        }
        let mut bytes = Vec::with_capacity(letter.payload.len() + 256);
        mail::write(&mut bytes, letter);
        self.parked_bytes += bytes.len();
        self.counters.parked += 1;
        self.entry(id, fx).parked.push_back(Parked { what, held_back: false, bytes });
    }

    /// Runs a command of a conversation that is in memory.
    fn run<E: Effects>(&mut self, now: Now, letter: &Letter<'_>, looked_up: LookedUp, fx: &mut E) {
        match letter.mail {
            Mail::Send(send) => {
                self.fences.passes(send.request.session, send.conversation, send.fence.conversation);
                let body = std::str::from_utf8(letter.payload).expect("sessions pass on UTF-8 only");
                if self.send(now, &send, body, looked_up, fx).is_err() {
                    self.look_up(&send, letter, fx);
                }
            }
            Mail::Mark { request, conversation, delivered, read } => {
                self.mark(now, request, conversation, delivered, read, fx);
            }
            Mail::Pull { request, conversation, ascending, from, limit, min_seq } => {
                let pull = crate::reading::Pull { request, conversation, ascending, from, limit, min_seq };
                self.pull(now, &pull, fx);
            }
            Mail::Summarise { request, conversation } => self.summarise(request, conversation, fx),
            Mail::Signalling { request, conversation, name_bytes } => {
                self.signal(request, conversation, name_bytes, letter.payload, fx);
            }
            ref other => unreachable!("not for a conversation's owner: {other:?}"),
        }
    }

    /// Parks a send in front of everything else until storage has said whether its id was used.
    fn look_up<E: Effects>(&mut self, send: &SendMail, letter: &Letter<'_>, fx: &mut E) {
        let key = dedup::key(send.conversation, send);
        let checkpoints = self.window.checkpoints;
        let ticket = self.awaited.insert(Awaited::Lookup { conversation: send.conversation, key, checkpoints });
        fx.storage(StorageRequest::Read(ticket_of(ticket), ViewRead::Get { space: Space::Dedup, key: key.to_vec() }));
        let mut bytes = Vec::with_capacity(letter.payload.len() + 256);
        mail::write(&mut bytes, letter);
        self.parked_bytes += bytes.len();
        self.counters.lookups += 1;
        let entry = self.loaded(send.conversation).expect("a send runs in memory");
        entry.parked.push_front(Parked { what: Waiting::Lookup, held_back: false, bytes });
    }

    /// Runs what waited, in order, until something has to wait again.
    fn resume<E: Effects>(&mut self, now: Now, id: ConversationId, fx: &mut E) {
        loop {
            let Some(entry) = self.loaded(id) else { return };
            if entry.parked.front().is_none_or(|parked| matches!(parked.what, Waiting::Lookup)) {
                return;
            }
            let Parked { what, held_back, bytes } = entry.parked.pop_front().expect("seen in front");
            self.parked_bytes -= bytes.len();
            if held_back {
                // The failure itself was remembered when it happened.
                if let Mail::Send(send) = &own_letter(&bytes).mail {
                    refuse_behind(fx, send, send.fence.conversation);
                }
                continue;
            }
            match what {
                Waiting::Replay(lsn) => self.replay(lsn, &bytes, fx),
                Waiting::Letter => self.run(now, &own_letter(&bytes), LookedUp::NotYet, fx),
                Waiting::LookedUp(used) => self.run(now, &own_letter(&bytes), used, fx),
                Waiting::Lookup => unreachable!("checked above"),
            }
        }
    }

    /// An answer from the views.
    pub(crate) fn answered<E: Effects>(
        &mut self,
        now: Now,
        ticket: Ticket,
        answer: Result<Rows, ReadError>,
        fx: &mut E,
    ) {
        match self.awaited.remove((ticket >> 1) as usize) {
            Awaited::Load(id) => self.loaded_from(now, id, &answer, fx),
            Awaited::Lookup { conversation, key, checkpoints } => {
                self.looked_up(now, conversation, (key, checkpoints), answer, fx);
            }
            Awaited::Reading(reading) => self.read(now, reading, answer, fx),
        }
    }

    fn loaded_from<E: Effects>(&mut self, now: Now, id: ConversationId, answer: &Result<Rows, ReadError>, fx: &mut E) {
        let state = match answer {
            Ok(rows) => match rows.iter().next() {
                None => Ok(Conversation::new(id).expect("groups are refused before they are loaded")),
                Some((_, row)) => Conversation::read_head(id, row)
                    .ok_or_else(|| ReadError::Damaged(format!("the head of {id} cannot be read"))),
            },
            Err(error) => Err(error.clone()),
        };
        match state {
            Ok(state) => {
                let slot = self.slots[slot_of(id)].as_mut().expect("loads are for owned slots");
                let entry = slot.conversations.get_mut(&id).expect("an entry waits for its load");
                entry.proposed = state.proposed();
                entry.loaded_time_ms = state.time_ms;
                entry.recent_first = state.head + 1;
                entry.state = Some(state);
                self.counters.loads += 1;
                self.resume(now, id, fx);
            }
            Err(error) => self.load_failed(id, &error, fx),
        }
    }

    fn load_failed<E: Effects>(&mut self, id: ConversationId, error: &ReadError, fx: &mut E) {
        let slot = self.slots[slot_of(id)].as_mut().expect("loads are for owned slots");
        let entry = slot.conversations.remove(&id).expect("an entry waits for its load");
        // A checkpoint would pass over records that were not applied: they would be lost without a trace.
        let replaying = entry.parked.iter().any(|parked| matches!(parked.what, Waiting::Replay(_)));
        if replaying && matches!(error, ReadError::Unavailable(_)) {
            // Nothing is served before this is known, so there is nothing else to do than to ask again.
            slot.conversations.insert(id, entry);
            let ticket = ticket_of(self.awaited.insert(Awaited::Load(id)));
            let read = ViewRead::Get { space: Space::Heads, key: id.key().to_vec() };
            return fx.storage(StorageRequest::Read(ticket, read));
        }
        assert!(!replaying, "cannot recover {id}: {error}");
        self.conversations -= 1;
        let code = match error {
            ReadError::Damaged(_) => ErrorCode::Damaged,
            ReadError::Unavailable(_) => ErrorCode::Unavailable,
        };
        self.counters.read_errors += 1;
        for Parked { bytes, .. } in entry.parked {
            self.parked_bytes -= bytes.len();
            self.refuse_letter(&own_letter(&bytes), code, 1_000, fx);
        }
    }

    fn looked_up<E: Effects>(
        &mut self,
        now: Now,
        id: ConversationId,
        (key, checkpoints): ([u8; dedup::KEY_BYTES], u64),
        answer: Result<Rows, ReadError>,
        fx: &mut E,
    ) {
        let found = match answer {
            Ok(rows) => match rows.iter().next().map(|(_, row)| Used::from_row(row)) {
                None => Ok(LookedUp::Absent),
                Some(Some(used)) => Ok(LookedUp::Found(used)),
                Some(None) => Err(ErrorCode::Damaged),
            },
            Err(ReadError::Damaged(_)) => Err(ErrorCode::Damaged),
            Err(ReadError::Unavailable(_)) => Err(ErrorCode::Unavailable),
        };
        if found == Ok(LookedUp::Absent) && self.window.checkpoints != checkpoints {
            // The answer may be older than a checkpoint after which memory forgot: ask again.
            let checkpoints = self.window.checkpoints;
            let ticket = self.awaited.insert(Awaited::Lookup { conversation: id, key, checkpoints });
            fx.storage(StorageRequest::Read(
                ticket_of(ticket),
                ViewRead::Get { space: Space::Dedup, key: key.to_vec() },
            ));
            return;
        }
        let Some(entry) = self.loaded(id) else { return };
        match found {
            Ok(used) => entry.parked.front_mut().expect("the send waits in front").what = Waiting::LookedUp(used),
            Err(code) => {
                let parked = entry.parked.pop_front().expect("the send waits in front");
                self.parked_bytes -= parked.bytes.len();
                self.counters.read_errors += 1;
                if let Mail::Send(send) = own_letter(&parked.bytes).mail {
                    self.refuse_send(&send, code, fx);
                }
            }
        }
        self.resume(now, id, fx);
    }

    /// A record found behind the last checkpoint.
    pub(crate) fn recovered<E: Effects>(&mut self, now: Now, lsn: Lsn, bytes: &[u8], fx: &mut E) {
        let record = Record::read(bytes)
            .unwrap_or_else(|error| panic!("a journal record passed its checksum and cannot be read: {error}"));
        self.replays += 1;
        self.parked_bytes += bytes.len();
        let entry = self.entry(record.conversation, fx);
        entry.parked.push_back(Parked { what: Waiting::Replay(lsn), held_back: false, bytes: bytes.to_vec() });
        if entry.state.is_some() {
            self.resume(now, record.conversation, fx);
        }
    }

    fn replay<E: Effects>(&mut self, lsn: Lsn, bytes: &[u8], fx: &mut E) {
        let record = Record::read(bytes).expect("read once before it was parked");
        if !planted!(self, SeqReused) {
            self.apply(lsn, &record, bytes, false, fx);
        }
        self.replays -= 1;
        self.begin_serving(fx);
    }

    /// All recovered records have been delivered; `tails` are the LSNs from which the slots go on. The views may
    /// have forgotten ids of records up to `unknowable_until_ms`.
    pub(crate) fn recovered_all<E: Effects>(&mut self, tails: &[(Slot, Lsn)], unknowable_until_ms: u64, fx: &mut E) {
        self.window.unknowable_until_ms = unknowable_until_ms;
        for &(slot, next_lsn) in tails {
            if let Some(slot) = &mut self.slots[usize::from(slot)] {
                slot.next_lsn = next_lsn;
            }
        }
        self.all_recovered = true;
        self.begin_serving(fx);
    }

    fn begin_serving<E: Effects>(&mut self, fx: &mut E) {
        if self.serving || !self.all_recovered || self.replays > 0 {
            return;
        }
        self.serving = true;
        for slot in self.slots.iter_mut().flatten().filter(|slot| slot.phase == Phase::Opening) {
            slot.phase = Phase::Serving;
        }
        fx.storage(StorageRequest::Serving);
    }

    /// Storage asks for everything up to here; [`Owner::hand_over`] gives it.
    pub(crate) fn freeze(&mut self, checkpoint: u64) {
        assert!(self.closing.is_empty(), "one checkpoint at a time");
        std::mem::swap(&mut self.dirty, &mut self.closing);
        let covered = self.slots.iter().enumerate().filter_map(|(number, slot)| {
            slot.as_ref().filter(|slot| slot.next_lsn > 0).map(|slot| (number as Slot, slot.next_lsn))
        });
        self.overlay.freeze(checkpoint, covered.collect());
        self.window.freeze(checkpoint);
    }

    /// Adds some heads to the generation that closes, and hands it over with the last of them.
    ///
    /// A head may be later than the freeze: the journal still has what it is ahead by, and applying that again
    /// changes nothing.
    pub(crate) fn hand_over<E: Effects>(&mut self, fx: &mut E) {
        if !self.overlay.is_closing() {
            return;
        }
        for _ in 0..self.limits.heads_per_turn_max {
            let Some(id) = self.closing.pop() else { break };
            let slot = self.slots[slot_of(id)].as_mut().expect("dirty means owned");
            let Some(entry) = slot.conversations.get_mut(&id) else { continue };
            let state = entry.state.as_ref().expect("dirty means loaded");
            let generation = self.overlay.push_closing(Space::Heads, &id.key(), |out| state.write_head(out));
            entry.dirty = false;
            // Its newest messages may be in the generation that grows, and must be found until that is done.
            entry.frozen_in = Some(entry.recent.back().map_or(generation, |place| place.generation().max(generation)));
        }
        if self.closing.is_empty() {
            let (checkpoint, run) = self.overlay.close();
            fx.storage(StorageRequest::Run { checkpoint, run });
        }
    }

    /// A checkpoint is durable.
    pub(crate) fn checkpoint_done(&mut self, checkpoint: u64, unknowable_until_ms: u64) {
        self.overlay.done(checkpoint);
        self.window.done(checkpoint, unknowable_until_ms);
        self.members.done(&self.overlay);
    }

    /// Marks a conversation as changed.
    pub(crate) fn set_dirty(&mut self, id: ConversationId) {
        let entry = self.loaded(id).expect("only what is loaded changes");
        if !entry.dirty {
            entry.dirty = true;
            self.dirty.push(id);
        }
    }

    /// Lets go of idle conversations while there are too many: a few slots per call, round and round.
    pub(crate) fn let_go(&mut self) {
        const SLOTS_PER_CALL: usize = 64;
        let mut left = SLOTS_PER_CALL;
        while self.conversations > self.limits.conversations_max as usize && left > 0 {
            left -= 1;
            self.evict_at = (self.evict_at + 1) % self.slots.len();
            let overlay = &self.overlay;
            if let Some(slot) = &mut self.slots[self.evict_at] {
                let before = slot.conversations.len();
                slot.conversations.retain(|_, entry| !entry.may_go(overlay));
                self.conversations -= before - slot.conversations.len();
            }
        }
    }
}

impl Entry {
    /// Whether nothing is lost when the entry is forgotten; notes that it was looked at.
    fn may_go(&mut self, overlay: &Overlay) -> bool {
        let idle = !std::mem::take(&mut self.touched)
            && self.state.is_some()
            && !self.dirty
            && self.parked.is_empty()
            && self.pending.is_empty();
        idle && self.frozen_in.is_none_or(|generation| overlay.is_done(generation))
    }

    /// Drops the places of rows that the views have.
    pub(crate) fn trim_recent(&mut self, overlay: &Overlay) {
        while self.recent.front().is_some_and(|&place| !overlay.holds(place)) {
            self.recent.pop_front();
            self.recent_first += 1;
        }
        if self.recent.is_empty() && self.recent.capacity() > 64 {
            self.recent = VecDeque::new();
        }
    }
}

/// A conversation's place in the table of slots.
pub(crate) fn slot_of(id: ConversationId) -> usize {
    usize::from(slot_of_conversation(id).number())
}

/// The ticket of an awaited answer: the lowest bit tells the owner of conversations from that of users.
pub(crate) fn ticket_of(key: usize) -> Ticket {
    (key as Ticket) << 1
}

/// A letter that this shard wrote itself.
pub(crate) fn own_letter(bytes: &[u8]) -> Letter<'_> {
    mail::read(bytes).expect("written by this shard").0
}
