//! The owner of users: which sessions a user has, and the numbered stream of what concerns the user.
//!
//! Everything bound for a session passes here, in one order, so that an answer never overtakes an
//! earlier message. Each event gets a change number (epoch of the slot, counter) and stays in a short
//! tail, from which a reconnect is answered without a read. Nothing here survives a restart, and
//! nothing has to: a number from an older epoch is answered with a snapshot.

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::BuildHasher as _;

use hashbrown::HashTable;
use slab::Slab;
use wire::ids::{ChangeNumber, ConversationId, DeviceId, UserId};
use wire::mail::{self, Address, Fence, Hop, Letter, Mail, Request};
use wire::protocol::{ErrorCode, OpenResult};

use crate::devices::{UserSession, UserSessions};
use crate::effects::{Effects, Now};
use crate::fence::Fences;
use crate::gather::{Gather, Purpose};
use crate::limits::Limits;
use crate::planted::{Planted, planted};
use crate::pressure::Pressure;
use crate::tail::Tail;
use crate::{Counters, SeededState};

/// Numbers of requests that belong to a gathering, not to a session.
pub(crate) const GATHER_BIT: u32 = 1 << 31;
/// Checkpoints after which a new membership is surely in the views, whichever shard wrote it when.
const CHECKPOINTS_UNTIL_STORED: u64 = 4;

#[derive(Debug)]
struct User {
    id: UserId,
    sessions: UserSessions,
    tail: Option<Box<Tail>>,
    /// Nothing that concerns the user happened between it and the tail's floor.
    floor: u64,
}

// What every user costs here who is there or was, besides the index.
const _: () = assert!(size_of::<User>() <= 40);

/// All users of one shard.
#[derive(Debug)]
pub(crate) struct Users {
    pub limits: Limits,
    epoch: u64,
    /// The last change number given out by this shard; users share the counter.
    counter: u64,
    /// Where in `known` each user is. Only the places, as the ids are there: five bytes per bucket.
    places: HashTable<u32>,
    /// Room for all who may be known is set aside at the start: the system gives the memory once it is used, and
    /// nothing is ever copied to make room.
    known: Slab<User>,
    /// Users without a session, the longest idle first. May name users who came back.
    idle: VecDeque<UserId>,
    tails_bytes: usize,
    fences: Fences,
    pub gathers: Slab<Gather>,
    /// How many of them each user has.
    pub lists: HashMap<UserId, u32, SeededState>,
    pub pressure: Pressure,
    /// Gatherings that could not post all they wanted.
    pub stuck: Vec<usize>,
    /// When they try again if no mail brings a turn before: a full mailbox empties in its own time.
    pub stuck_until_ms: u64,
    /// Memberships that the views may lack.
    new_members: HashMap<UserId, HashSet<ConversationId, SeededState>, SeededState>,
    state: SeededState,
    new_members_order: VecDeque<(u64, UserId, ConversationId)>,
    checkpoints: u64,
    pub counters: Counters,
    planted: Planted,
}

impl Users {
    pub(crate) fn new(limits: Limits, epoch: u64, shards: u16, seed: u64) -> Self {
        let state = SeededState::new(seed);
        let fences = Fences::for_shards(shards, limits.requests_max, state);
        let known_max = (limits.sessions_max + limits.idle_users_max) as usize;
        Self {
            limits,
            epoch,
            counter: 0,
            places: HashTable::new(),
            known: Slab::with_capacity(known_max),
            idle: VecDeque::new(),
            tails_bytes: 0,
            fences,
            gathers: Slab::new(),
            lists: HashMap::with_hasher(state),
            pressure: Pressure::default(),
            stuck: Vec::new(),
            stuck_until_ms: 0,
            new_members: HashMap::with_hasher(state),
            state,
            new_members_order: VecDeque::new(),
            checkpoints: 0,
            counters: Counters::default(),
            planted: Planted::default(),
        }
    }

    fn place(&self, id: UserId) -> Option<usize> {
        let is_it = |&place: &u32| self.known[place as usize].id == id;
        self.places.find(self.state.hash_one(id), is_it).map(|&place| place as usize)
    }

    fn user(&self, id: UserId) -> Option<&User> {
        self.place(id).map(|place| &self.known[place])
    }

    fn user_mut(&mut self, id: UserId) -> Option<&mut User> {
        self.place(id).map(|place| &mut self.known[place])
    }

    /// Begins to remember a user.
    fn know(&mut self, id: UserId) -> usize {
        let user = User { id, sessions: UserSessions::None, tail: None, floor: self.counter };
        let place = self.known.insert(user);
        let hash_again = |&place: &u32| self.state.hash_one(self.known[place as usize].id);
        self.places.insert_unique(self.state.hash_one(id), place as u32, hash_again);
        place
    }

    /// Forgets a user.
    fn forget(&mut self, place: usize) {
        let user = self.known.remove(place);
        let is_it = |&at: &u32| at as usize == place;
        self.places.find_entry(self.state.hash_one(user.id), is_it).expect("who is known has a place").remove();
        self.tails_bytes -= user.tail.map_or(0, |tail| tail.memory_bytes());
    }

    pub(crate) fn now_change(&self) -> ChangeNumber {
        ChangeNumber { epoch: self.epoch, counter: self.counter }
    }

    #[cfg(feature = "planted-bugs")]
    pub(crate) fn plant(&mut self, bug: crate::PlantedBug) {
        self.planted.0 = Some(bug);
        if bug == crate::PlantedBug::ChangeReused {
            self.epoch = 1;
        }
    }

    /// A letter for a user's owner.
    pub(crate) fn letter<E: Effects>(&mut self, now: Now, user: UserId, letter: &Letter<'_>, fx: &mut E) {
        match letter.mail {
            Mail::Open { request, after, window } => self.open(request, after, window, fx),
            Mail::Detach { request } => self.detach(request),
            Mail::List { request, skip, limit } => {
                self.gather(request, Purpose::List { skip, limit }, fx);
            }
            Mail::Changes { request, after, limit } => self.changes(request, after, limit, fx),
            Mail::Send(_) | Mail::Mark { .. } | Mail::Pull { .. } | Mail::Signalling { .. } | Mail::Left { .. } => {
                self.pass_on(letter, fx);
            }
            Mail::Summary { request, .. } => self.summarised(request, letter, fx),
            Mail::Refused { request, code, .. } if request.number & GATHER_BIT != 0 => {
                self.summary_refused(request, code, fx);
            }
            Mail::Stored { request, conversation, seq, .. } => {
                fx.post(&Letter { to: Address::Session(request.session), ..*letter });
                self.tell_successor(request, conversation, seq, fx);
            }
            Mail::Marked { request } | Mail::Page { request, .. } | Mail::Refused { request, .. } => {
                fx.post(&Letter { to: Address::Session(request.session), ..*letter });
            }
            Mail::Message { .. } | Mail::Tick { .. } | Mail::MarkMoved { .. } | Mail::Dirty { .. } => {
                self.event(user, letter, fx);
            }
            Mail::Signal { .. } => self.push_to_sessions(user, letter, None, fx),
            Mail::Summarise { .. }
            | Mail::Listed { .. }
            | Mail::Superseded { .. }
            | Mail::OpenAgain { .. }
            | Mail::DirtyAll { .. }
            | Mail::TellMembers { .. }
            | Mail::NewMembers { .. } => {
                unreachable!("not for a user's owner: {:?}", letter.mail)
            }
        }
        let _ = now;
    }

    /// A request on its way from a session to a conversation's owner.
    fn pass_on<E: Effects>(&mut self, letter: &Letter<'_>, fx: &mut E) {
        let (request, conversation) = match letter.mail {
            Mail::Signalling { request, conversation, .. } | Mail::Left { request, conversation } => {
                (request, conversation)
            }
            ref mail => crate::owner::request_of(mail).expect("matched by the caller"),
        };
        let send = if let Mail::Send(send) = &letter.mail { Some(send) } else { None };
        let behind = send.and_then(|send| self.fences.blocks(request.session, conversation, send.fence.user));
        if behind.is_none() && fx.post(&Letter { to: Address::Conversation(conversation), ..*letter }) {
            if let Some(send) = send {
                self.fences.passes(request.session, conversation, send.fence.user);
            }
            return;
        }
        let mut fence = send.map_or(Fence::default(), |send| send.fence);
        if let Some(failed) = behind {
            fence.user = failed;
        } else {
            self.counters.mailbox_refused += 1;
            if send.is_some() {
                fence.user = self.fences.failed(request.session, conversation, fence.user);
            }
        }
        let mail = Mail::Refused {
            request,
            conversation: Some(conversation),
            id: send.map(|send| send.id),
            code: if behind.is_some() { ErrorCode::Retry } else { ErrorCode::Overloaded },
            after_ms: if behind.is_some() { 0 } else { 1_000 },
            by: Hop::User,
            fence,
        };
        fx.post(&Letter { to: Address::Session(request.session), mail, payload: &[] });
    }

    /// A session wants to be told what concerns its user, from `after` on.
    fn open<E: Effects>(&mut self, request: Request, after: Option<ChangeNumber>, window: u32, fx: &mut E) {
        let (counter, sessions_max) = (self.counter, self.limits.sessions_per_user_max as usize);
        let place = self.place(request.user).unwrap_or_else(|| self.know(request.user));
        let user = &mut self.known[place];
        if let Some(superseded) = user.sessions.remove(|session| session.device == request.device) {
            let session = superseded.address();
            self.counters.sessions_superseded += 1;
            fx.post(&Letter { to: Address::Session(session), mail: Mail::Superseded { session }, payload: &[] });
        }
        if user.sessions.as_slice().len() >= sessions_max {
            self.counters.sessions_refused += 1;
            return refuse_session(request, ErrorCode::TooManySessions, fx);
        }
        user.sessions.push(UserSession::new(request.session, request.device));
        self.counters.sessions_opened += 1;
        let ahead = after.is_some_and(|after| after > ChangeNumber { epoch: self.epoch, counter });
        let reach = after.filter(|after| !ahead && after.epoch == self.epoch).map(|after| after.counter);
        match reach {
            Some(after) if user.has_tail_after(after) || planted!(self, HoleShownAsComplete) => {
                self.counters.replays += 1;
                self.opened(request, OpenResult::Replay, after, &[], false, false, fx);
            }
            Some(after) if user.tail.as_ref().is_some_and(|tail| after >= tail.changed_floor) => {
                self.counters.deltas += 1;
                let changed = user.changed_after(after).into_iter().map(|(conversation, _)| conversation).collect();
                self.gather(request, Purpose::Delta { changed }, fx);
            }
            _ => {
                self.counters.snapshots += 1;
                self.gather(request, Purpose::Snapshot { window, ahead }, fx);
            }
        }
    }

    /// Sends the one answer to `open`, then everything that happened after `since`.
    #[expect(clippy::too_many_arguments, reason = "the fields of one letter")]
    pub(crate) fn opened<E: Effects>(
        &mut self,
        request: Request,
        result: OpenResult,
        since: u64,
        summaries: &[u8],
        more: bool,
        ahead: bool,
        fx: &mut E,
    ) {
        let change = ChangeNumber { epoch: self.epoch, counter: since };
        let mail = Mail::Listed { request, result, change, more, next: 0, ahead };
        let to = Address::Session(request.session);
        fx.post(&Letter { to, mail, payload: summaries });
        let Some(user) = self.user_mut(request.user) else { return };
        let mut sessions = user.sessions.as_mut_slice().iter_mut();
        let Some(session) = sessions.find(|session| session.address() == request.session) else { return };
        session.opening = false;
        let missed = user.tail.iter().flat_map(|tail| tail.letters()).filter(|(counter, _)| *counter > since);
        for (_, letter) in missed {
            fx.post(&Letter { to, ..letter });
        }
    }

    /// Whether everything after `since` can still be sent from the tail.
    pub(crate) fn has_tail_after(&self, user: UserId, since: u64) -> bool {
        self.user(user).is_some_and(|user| user.has_tail_after(since))
    }

    fn changes<E: Effects>(&mut self, request: Request, after: ChangeNumber, limit: u32, fx: &mut E) {
        let changed = self
            .user(request.user)
            .filter(|user| {
                after.epoch == self.epoch && after.counter <= self.counter && user.has_changes_after(after.counter)
            })
            .map(|user| user.changed_after(after.counter));
        if let Some(mut changed) = changed {
            let limit = limit.clamp(1, 100) as usize;
            changed.sort_unstable_by_key(|&(_, counter)| counter);
            // What is left out must lie above the number that the client goes on from.
            let upto = if changed.len() > limit { changed[limit - 1].1 } else { self.counter };
            changed.truncate(limit);
            let changed = changed.into_iter().map(|(conversation, _)| conversation).collect();
            return self.gather(request, Purpose::Changes { changed, upto }, fx);
        }
        let (change, result) = (self.now_change(), OpenResult::Snapshot);
        let mail = Mail::Listed { request, result, change, more: false, next: 0, ahead: false };
        fx.post(&Letter { to: Address::Session(request.session), mail, payload: &[] });
    }

    fn detach(&mut self, request: Request) {
        let Some(user) = self.user_mut(request.user) else { return };
        user.sessions.remove(|session| session.address() == request.session);
        if user.sessions.is_empty() {
            self.idle.push_back(request.user);
        }
        self.forget_idle(0);
    }

    /// Forgets users who have been without a session for the longest time, down to the limits, with so much room
    /// for tails to grow.
    fn forget_idle(&mut self, growth: usize) {
        while self.idle.len() > self.limits.idle_users_max as usize
            || (self.tails_bytes + growth > self.limits.tails_bytes_max as usize && !self.idle.is_empty())
        {
            let oldest = self.idle.pop_front().expect("not empty");
            if let Some(place) = self.place(oldest).filter(|&place| self.known[place].sessions.is_empty()) {
                self.forget(place);
            }
        }
    }

    /// Something concerns a user: number it, remember it, push it.
    fn event<E: Effects>(&mut self, id: UserId, letter: &Letter<'_>, fx: &mut E) {
        let (conversation, author_device, is_new) = match letter.mail {
            Mail::Message { message, .. } => {
                let own = (message.from == id).then_some(message.device);
                (message.conversation, own, message.seq == 1)
            }
            Mail::MarkMoved { conversation, device, .. } => (conversation, Some(device), false),
            Mail::Tick { conversation, .. } => (conversation, None, false),
            Mail::Dirty { conversation, .. } => (conversation, None, true),
            ref other => unreachable!("not an event: {other:?}"),
        };
        if is_new {
            self.note_membership(id, conversation);
        }
        // Counted even for a user whom nobody remembers: their next `open` must see that its number is old.
        self.counter += 1;
        let Some(place) = self.place(id) else { return };
        let change = ChangeNumber { epoch: self.epoch, counter: self.counter };
        let letter = Letter { mail: with_change(letter.mail, change), ..*letter };
        let floor = self.known[place].floor;
        let tail = self.known[place].tail.get_or_insert_with(|| Box::new(Tail::new(floor)));
        let before = tail.memory_bytes();
        tail.note(self.counter, conversation, self.limits.changed_max as usize);
        let growth = tail.make_way(mail::letter_bytes(letter.payload.len()), &self.limits);
        self.tails_bytes = self.tails_bytes + tail.memory_bytes() - before;
        if growth > 0 {
            self.forget_idle(growth);
            if self.place(id).is_none() {
                // Not there, and forgotten just now.
                return;
            }
        }
        let room = (self.limits.tails_bytes_max as usize).saturating_sub(self.tails_bytes);
        let tail = self.known[place].tail.as_mut().expect("made above");
        let before = tail.memory_bytes();
        tail.push(self.counter, &letter, growth.min(room));
        self.tails_bytes = self.tails_bytes + tail.memory_bytes() - before;
        self.push_to_sessions(id, &letter, author_device, fx);
    }

    /// Posts to the user's open sessions, except to the device that caused it.
    fn push_to_sessions<E: Effects>(&self, user: UserId, letter: &Letter<'_>, except: Option<DeviceId>, fx: &mut E) {
        let Some(user) = self.user(user) else { return };
        let sessions = user.sessions.as_slice().iter();
        for session in sessions.filter(|session| !session.opening && Some(session.device) != except) {
            fx.post(&Letter { to: Address::Session(session.address()), ..*letter });
        }
    }

    /// The answer to a send goes to the session that sent, and the message to the user's other devices. If
    /// the device has come back on a new session meanwhile, nobody has told that one.
    fn tell_successor<E: Effects>(&self, request: Request, conversation: ConversationId, seq: u64, fx: &mut E) {
        let Some(user) = self.user(request.user) else { return };
        let now = user.sessions.as_slice().iter().find(|session| session.device == request.device);
        // One that is opening gets the message out of the tail.
        if let Some(session) = now.filter(|session| session.address() != request.session && !session.opening) {
            let mail = Mail::Dirty { user: request.user, conversation, head: seq };
            fx.post(&Letter { to: Address::Session(session.address()), mail, payload: &[] });
        }
    }

    fn note_membership(&mut self, user: UserId, conversation: ConversationId) {
        let known = self.new_members.entry(user).or_insert_with(|| HashSet::with_hasher(self.state));
        if known.insert(conversation) {
            self.new_members_order.push_back((self.checkpoints, user, conversation));
        }
    }

    /// The news of new conversations had been lost on its way, and is told again.
    pub(crate) fn hear_of_members<E: Effects>(&mut self, members: &[u8], fx: &mut E) {
        for (user, conversation) in crate::members::read(members) {
            if self.new_members.get(&user).is_none_or(|known| !known.contains(&conversation)) {
                let mail = Mail::Dirty { user, conversation, head: 1 };
                self.event(user, &Letter { to: Address::User(user), mail, payload: &[] }, fx);
            }
        }
    }

    /// Conversations of `user` that the views may lack.
    pub(crate) fn new_memberships(&self, user: UserId) -> impl Iterator<Item = ConversationId> {
        self.new_members.get(&user).into_iter().flatten().copied()
    }

    pub(crate) fn checkpoint_done(&mut self) {
        self.checkpoints += 1;
        while let Some((_, user, conversation)) =
            self.new_members_order.pop_front_if(|entry| entry.0 + CHECKPOINTS_UNTIL_STORED <= self.checkpoints)
        {
            if let Some(known) = self.new_members.get_mut(&user) {
                known.remove(&conversation);
                if known.is_empty() {
                    self.new_members.remove(&user);
                }
            }
        }
    }

    /// Events from one shard were lost: nobody may believe the tail, and every session opens again.
    pub(crate) fn resync_all<E: Effects>(&mut self, fx: &mut E) {
        self.counter += 1;
        let mut sessions = Vec::new();
        for (_, user) in &mut self.known {
            user.floor = self.counter;
            self.tails_bytes -= user.tail.take().map_or(0, |tail| tail.memory_bytes());
            sessions.extend(user.sessions.as_slice().iter().map(UserSession::address));
        }
        for session in sessions {
            fx.post(&Letter { to: Address::Session(session), mail: Mail::OpenAgain { session }, payload: &[] });
        }
    }

    pub(crate) fn counter(&self) -> u64 {
        self.counter
    }

    /// Bytes of memory used for what every user has.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.known.len() * size_of::<User>() + self.places.allocation_size()
    }

    /// Users known, users without a session, and bytes of tails.
    pub(crate) fn sizes(&self) -> (usize, usize, usize) {
        (self.known.len(), self.idle.len(), self.tails_bytes)
    }
}

impl User {
    fn has_tail_after(&self, counter: u64) -> bool {
        counter >= self.tail.as_ref().map_or(self.floor, |tail| tail.floor)
    }

    fn has_changes_after(&self, counter: u64) -> bool {
        counter >= self.tail.as_ref().map_or(self.floor, |tail| tail.changed_floor)
    }

    fn changed_after(&self, counter: u64) -> Vec<(ConversationId, u64)> {
        let changed = self.tail.iter().flat_map(|tail| &tail.changed);
        changed.filter(|(_, at)| *at > counter).copied().collect()
    }
}

fn with_change(mail: Mail, change: ChangeNumber) -> Mail {
    match mail {
        Mail::Message { user, message, .. } => Mail::Message { user, message, change },
        Mail::Tick { user, conversation, delivered_all, read_all, .. } => {
            Mail::Tick { user, conversation, delivered_all, read_all, change }
        }
        Mail::MarkMoved { user, device, conversation, delivered, read, .. } => {
            Mail::MarkMoved { user, device, conversation, delivered, read, change }
        }
        other => other,
    }
}

pub(crate) fn refuse_session<E: Effects>(request: Request, code: ErrorCode, fx: &mut E) {
    let (by, fence) = (Hop::User, Fence::default());
    let mail = Mail::Refused { request, conversation: None, id: None, code, after_ms: 1_000, by, fence };
    fx.post(&Letter { to: Address::Session(request.session), mail, payload: &[] });
}
