//! Sessions: one client's frames in, letters out; letters in, frames out.
//!
//! A session lives where its connection was accepted and keeps only what the connection needs: its
//! counter of messages, what the client has not acknowledged, and, only while something is wrong,
//! whom it lags behind and which sends are held back. Nothing of it survives the connection.

use std::borrow::Cow;
use std::collections::VecDeque;

use slab::Slab;
use wire::close::CloseCode;
use wire::ids::{ChangeNumber, ClientMessageId, ConversationId, DeviceId, UserId};
use wire::mail::{self, Address, Letter, Mail, Request, SendMail, SessionAddress};
use wire::protocol::{
    ClientFrame, ErrorCode, ErrorFrame, Kind, Message, MessageItem, OpenResult, Opened, Page, Pull, PullRange, Send,
    ServerFrame, Stored, Summary, Target,
};

use crate::Counters;
use crate::effects::{ClientKey, Effects, Now};
use crate::limits::Limits;
use crate::record::{Class, Record, prefixed};

/// Who a client is, as its token says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    pub user: UserId,
    /// [`DeviceId`] 0 is the device of requests without a socket.
    pub device: DeviceId,
}

/// Names a session of this shard to the gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SessionKey(u32);

/// What a request's number says about the frame that its answer becomes: the two highest bits below
/// the one that gatherings use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Asked {
    Other = 0,
    Open = 1 << 29,
    List = 2 << 29,
    Changes = 3 << 29,
}

/// Lists of unacknowledged messages kept for the next session that needs one.
const SPARE_MAX: usize = 4_096;
const ASKED_BITS: u32 = 3 << 29;
/// In a request's number: its answer is a page or a list, many times as large as what asks for it.
const READ_BIT: u32 = 1 << 28;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Opening,
    Open,
    Rest,
}

#[derive(Debug)]
struct Session {
    client: ClientKey,
    user: UserId,
    device: DeviceId,
    generation: u32,
    /// Numbers its requests.
    number: u32,
    phase: Phase,
    /// Pages and lists that it waits for.
    reads: u16,
    /// Messages pushed on this connection.
    n: u64,
    /// Messages pushed and not acknowledged, the oldest first; the last has the number `n`.
    unacknowledged: Option<Box<Unacknowledged>>,
    trouble: Option<Box<Trouble>>,
}

/// What a session has while something is on its way to the client: lent by the shard, so that an idle
/// session holds nothing and a busy one allocates nothing.
#[derive(Debug, Default)]
struct Unacknowledged {
    messages: VecDeque<(ConversationId, u64)>,
}

/// What only a session in trouble has.
#[derive(Debug, Default)]
struct Trouble {
    lagging: bool,
    /// Conversations that it lags behind: the highest head, and whether it missed more since it was told.
    behind: Vec<(ConversationId, u64, bool)>,
    sends: Vec<HeldBack>,
}

/// P5: the sends of one conversation after a failure.
#[derive(Debug, Clone, Copy)]
struct HeldBack {
    conversation: ConversationId,
    /// Failures so far; carried by each send.
    fence: u32,
    /// The failed send that must come again, or be skipped, before others pass: of those that failed, the
    /// one that was sent first. With the number of its request.
    waits_for: Option<(u32, ClientMessageId)>,
}

/// All sessions of one shard.
#[derive(Debug)]
pub(crate) struct Sessions {
    shard: u16,
    limits: Limits,
    generation_of_store: u64,
    class: &'static str,
    slab: Slab<Session>,
    #[expect(clippy::vec_box, reason = "lent out and taken back box by box")]
    spare: Vec<Box<Unacknowledged>>,
    /// What a beat acknowledges; empty between beats, and its memory is kept.
    marks: Vec<(ConversationId, u64)>,
    generation: u32,
    random: u64,
    pub counters: Counters,
}

impl Sessions {
    pub(crate) fn new(shard: u16, limits: Limits, store: u64, class: &'static str, seed: u64) -> Self {
        Self {
            shard,
            // As with users: nothing is copied to make room.
            slab: Slab::with_capacity(limits.sessions_max as usize),
            limits,
            generation_of_store: store,
            class,
            spare: Vec::new(),
            marks: Vec::new(),
            generation: 0,
            random: seed,
            counters: Counters::default(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.slab.len()
    }

    /// Bytes of memory used for what every session has.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.slab.len() * size_of::<Session>()
    }

    fn add(&mut self, client: ClientKey, who: Identity, phase: Phase) -> SessionKey {
        self.generation = self.generation.wrapping_add(1);
        let session = Session {
            client,
            user: who.user,
            device: who.device,
            generation: self.generation,
            number: 0,
            phase,
            reads: 0,
            n: 0,
            unacknowledged: None,
            trouble: None,
        };
        SessionKey(self.slab.insert(session) as u32)
    }

    /// A client whose token has been checked opens its session.
    pub(crate) fn open<E: Effects>(
        &mut self,
        client: ClientKey,
        who: Identity,
        after: Option<ChangeNumber>,
        window: Option<u32>,
        fx: &mut E,
    ) -> SessionKey {
        let key = self.add(client, who, Phase::Opening);
        let request = self.request(key, Asked::Open);
        let mail = Mail::Open { request, after, window: window.unwrap_or(20).clamp(1, 100) };
        if !fx.post(&Letter { to: Address::User(who.user), mail, payload: &[] }) {
            self.counters.mailbox_refused += 1;
            self.error(key, None, None, ErrorCode::Overloaded, 1_000, fx);
            fx.close(client, CloseCode::Overloaded);
        }
        key
    }

    /// A client asks over REST: no `open`, no pushes, one answer per question.
    pub(crate) fn rest(&mut self, client: ClientKey, who: Identity) -> SessionKey {
        self.add(client, who, Phase::Rest)
    }

    pub(crate) fn identity(&self, key: SessionKey) -> Identity {
        let session = &self.slab[key.0 as usize];
        Identity { user: session.user, device: session.device }
    }

    /// The client is gone.
    pub(crate) fn closed<E: Effects>(&mut self, key: SessionKey, fx: &mut E) {
        let request = self.request(key, Asked::Other);
        let session = self.slab.remove(key.0 as usize);
        if session.phase != Phase::Rest {
            fx.post(&Letter { to: Address::User(session.user), mail: Mail::Detach { request }, payload: &[] });
        }
    }

    fn request(&mut self, key: SessionKey, asked: Asked) -> Request {
        let session = &mut self.slab[key.0 as usize];
        session.number = session.number.wrapping_add(1) & !(ASKED_BITS | READ_BIT | crate::users::GATHER_BIT);
        Request {
            session: SessionAddress { shard: self.shard, index: key.0, generation: session.generation },
            user: session.user,
            device: session.device,
            number: session.number | asked as u32,
        }
    }

    /// A frame from the client. `open` and `auth` are the gateway's.
    pub(crate) fn frame<E: Effects>(&mut self, now: Now, key: SessionKey, frame: &ClientFrame<'_>, fx: &mut E) {
        let session = &self.slab[key.0 as usize];
        if session.phase == Phase::Opening {
            let id = if let ClientFrame::Send(send) = frame { send.id } else { None };
            return self.error(key, id, None, ErrorCode::NotOpen, 0, fx);
        }
        match frame {
            ClientFrame::Send(send) => self.send(now, key, send, fx),
            ClientFrame::Beat { received } => self.beat(key, *received, fx),
            ClientFrame::Mark { conversation, delivered, read } => {
                self.mark(key, *conversation, delivered.unwrap_or(0), read.unwrap_or(0), fx);
            }
            ClientFrame::Pull(pull) => self.pull(key, pull, fx),
            ClientFrame::Changes { after, limit } => {
                let Some(request) = self.read_request(key, Asked::Changes, None, fx) else { return };
                let mail = Mail::Changes { request, after: *after, limit: limit.unwrap_or(100) };
                self.ask_to_read(key, mail, fx);
            }
            ClientFrame::Signal { conversation, name, body } => self.signal(key, *conversation, name, body, fx),
            ClientFrame::Skip { conversation, id } => self.skip(key, *conversation, *id),
            ClientFrame::Conversations { limit, cursor } => {
                let skip = cursor.as_deref().map_or(Ok(0), str::parse);
                let Ok(skip) = skip else {
                    return self.error(key, None, None, ErrorCode::BadRequest, 0, fx);
                };
                let Some(request) = self.read_request(key, Asked::List, None, fx) else { return };
                let mail = Mail::List { request, skip, limit: limit.unwrap_or(20).clamp(1, 100) };
                self.ask_to_read(key, mail, fx);
            }
            ClientFrame::Open(_) | ClientFrame::Auth { .. } => {
                self.error(key, None, None, ErrorCode::AlreadyOpen, 0, fx);
            }
        }
    }

    /// Posts a request; `false`: the mailbox is full, and the client has been told.
    fn ask<E: Effects>(&mut self, key: SessionKey, to: Address, mail: Mail, payload: &[u8], fx: &mut E) -> bool {
        let taken = fx.post(&Letter { to, mail, payload });
        if !taken {
            self.counters.mailbox_refused += 1;
            let id = if let Mail::Send(send) = mail { Some(send.id) } else { None };
            let conversation = crate::owner::request_of(&mail).map(|(_, conversation)| conversation);
            self.error(key, id, conversation, ErrorCode::Overloaded, 1_000, fx);
        }
        taken
    }

    fn send<E: Effects>(&mut self, now: Now, key: SessionKey, send: &Send<'_>, fx: &mut E) {
        let user = self.slab[key.0 as usize].user;
        let conversation = match send.target {
            Target::To(peer) => ConversationId::direct(user, peer),
            Target::Conversation(conversation) => conversation,
        };
        let refused = if send.body.is_empty() {
            Some(ErrorCode::Empty)
        } else if send.body.len() > self.limits.body_bytes_max as usize {
            Some(ErrorCode::TooLarge)
        } else if matches!(send.kind, Kind::System | Kind::Edit | Kind::Delete | Kind::Pin) {
            // Reserved: who may do it needs rules about members that direct conversations do not have.
            Some(ErrorCode::BadRequest)
        } else if !is_party(conversation, user) {
            Some(ErrorCode::NotFound)
        } else {
            None
        };
        if let Some(code) = refused {
            // Of these only a reserved kind is a bad request: what the decoder finds comes with its own path.
            let path = (code == ErrorCode::BadRequest).then_some("$.kind");
            return self.error_at(key, send.id, Some(conversation), code, 0, path, fx);
        }
        let id = send.id.unwrap_or_else(|| self.new_id(now));
        let Some(fence) = self.fence(key, conversation, id, send.skip) else {
            self.counters.sends_held_back += 1;
            return self.error(key, Some(id), Some(conversation), ErrorCode::Retry, 0, fx);
        };
        let request = self.request(key, Asked::Other);
        let mail = SendMail {
            request,
            fence,
            conversation,
            id,
            kind: send.kind,
            reply_to: send.reply_to.unwrap_or(0),
            target_seq: send.target_seq.unwrap_or(0),
        };
        if !self.ask(key, Address::User(user), Mail::Send(mail), send.body.as_bytes(), fx) {
            self.send_failed(key, conversation, (request.number, id, fence), fx);
        }
    }

    /// The number of failures that a send must carry; `None`: it is held back behind a failed one.
    fn fence(
        &mut self,
        key: SessionKey,
        conversation: ConversationId,
        id: ClientMessageId,
        skip: Option<ClientMessageId>,
    ) -> Option<u32> {
        let session = &mut self.slab[key.0 as usize];
        let Some(held) = session.trouble.as_mut().and_then(|trouble| trouble.held(conversation)) else {
            return Some(0);
        };
        if held.waits_for.is_some_and(|(_, failed)| failed == id || Some(failed) == skip) {
            held.waits_for = None;
        }
        held.waits_for.is_none().then_some(held.fence)
    }

    fn skip(&mut self, key: SessionKey, conversation: ConversationId, id: ClientMessageId) {
        let trouble = self.slab[key.0 as usize].trouble.as_mut();
        if let Some(held) = trouble.and_then(|trouble| trouble.held(conversation))
            && held.waits_for.is_some_and(|(_, failed)| failed == id)
        {
            held.waits_for = None;
        }
    }

    /// A send failed retryably: what the client sent behind it is held back until it comes again.
    fn send_failed<E: Effects>(
        &mut self,
        key: SessionKey,
        conversation: ConversationId,
        (number, id, fence): (u32, ClientMessageId, u32),
        fx: &mut E,
    ) {
        let session = &mut self.slab[key.0 as usize];
        if session.phase == Phase::Rest {
            return;
        }
        let trouble = session.trouble.get_or_insert_default();
        let waits_for = Some((number, id));
        match trouble.held(conversation) {
            // Answers need not come in the order of the sends: one that was sent earlier comes again first.
            Some(held) if fence < held.fence => {
                if held.waits_for.is_some_and(|(later, _)| number < later) {
                    held.waits_for = waits_for;
                }
            }
            Some(held) => (held.fence, held.waits_for) = (fence + 1, waits_for),
            None => trouble.sends.push(HeldBack { conversation, fence: fence + 1, waits_for }),
        }
        if trouble.sends.len() > self.limits.tracked_per_session_max as usize {
            self.counters.too_slow += 1;
            fx.close(session.client, CloseCode::Overloaded);
        }
    }

    /// A UUIDv7 for the hand-written form that brings none.
    fn new_id(&mut self, now: Now) -> ClientMessageId {
        let mut id = [0; 16];
        for half in id.chunks_mut(8) {
            // splitmix64
            self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.random;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            half.copy_from_slice(&(z ^ (z >> 31)).to_be_bytes());
        }
        id[..6].copy_from_slice(&now.wall_ms.to_be_bytes()[2..]);
        id[6] = 0x70 | id[6] & 0x0f;
        id[8] = 0x80 | id[8] & 0x3f;
        ClientMessageId(id)
    }

    /// Cumulative receipt: everything up to `received` has reached the device.
    fn beat<E: Effects>(&mut self, key: SessionKey, received: u64, fx: &mut E) {
        let session = &mut self.slab[key.0 as usize];
        if received > session.n {
            self.counters.bad_cursor += 1;
            return self.error(key, None, None, ErrorCode::BadCursor, 0, fx);
        }
        let mut lent = session.unacknowledged.take().unwrap_or_else(|| self.spare.pop().unwrap_or_default());
        let kept = (session.n - received).min(lent.messages.len() as u64) as usize;
        let acknowledged = lent.messages.len() - kept;
        let mut marks = std::mem::take(&mut self.marks);
        for (conversation, seq) in lent.messages.drain(..acknowledged) {
            match marks.iter_mut().rev().find(|mark| mark.0 == conversation) {
                Some(mark) => mark.1 = mark.1.max(seq),
                None => marks.push((conversation, seq)),
            }
        }
        let caught_up = kept <= self.limits.unacknowledged_max as usize / 2;
        if kept > 0 {
            session.unacknowledged = Some(lent);
        } else if self.spare.len() < SPARE_MAX {
            self.spare.push(lent);
        }
        for (conversation, delivered) in marks.drain(..) {
            let request = self.request(key, Asked::Other);
            let mail = Mail::Mark { request, conversation, delivered, read: 0 };
            // A mark that finds no room is repeated by the next one.
            fx.post(&Letter { to: Address::User(request.user), mail, payload: &[] });
        }
        self.marks = marks;
        let client = self.slab[key.0 as usize].client;
        let queued = fx.frame(client, &ServerFrame::Beat { received });
        // With more than that queued, `drained` comes when it has gone: between the two there is no gap.
        if caught_up && queued <= self.limits.outbound_bytes_max as usize {
            self.drained(key, fx);
        }
    }

    fn mark<E: Effects>(
        &mut self,
        key: SessionKey,
        conversation: ConversationId,
        delivered: u64,
        read: u64,
        fx: &mut E,
    ) {
        let request = self.request(key, Asked::Other);
        if !is_party(conversation, request.user) {
            return self.error(key, None, Some(conversation), ErrorCode::NotFound, 0, fx);
        }
        let mail = Mail::Mark { request, conversation, delivered, read };
        self.ask(key, Address::User(request.user), mail, &[], fx);
    }

    fn pull<E: Effects>(&mut self, key: SessionKey, pull: &Pull, fx: &mut E) {
        if !is_party(pull.conversation, self.slab[key.0 as usize].user) {
            return self.error(key, None, Some(pull.conversation), ErrorCode::NotFound, 0, fx);
        }
        let Some(request) = self.read_request(key, Asked::Other, Some(pull.conversation), fx) else { return };
        let (ascending, from) = match pull.range {
            PullRange::After(seq) => (true, seq),
            // Nothing lies below the first message.
            PullRange::Before(Some(0)) => (true, u64::MAX - 1),
            PullRange::Before(seq) => (false, seq.unwrap_or(0)),
        };
        let mail = Mail::Pull {
            request,
            conversation: pull.conversation,
            ascending,
            from,
            limit: pull.limit.unwrap_or(50).clamp(1, 100),
            min_seq: pull.min_seq.unwrap_or(0),
        };
        self.ask_to_read(key, mail, fx);
    }

    /// Begins a request whose answer is large; `None`: too many are under way, and the client has been told.
    fn read_request<E: Effects>(
        &mut self,
        key: SessionKey,
        asked: Asked,
        conversation: Option<ConversationId>,
        fx: &mut E,
    ) -> Option<Request> {
        let session = &mut self.slab[key.0 as usize];
        if session.reads >= self.limits.reads_per_session_max {
            self.counters.pulls_refused += 1;
            self.error(key, None, conversation, ErrorCode::Overloaded, 1_000, fx);
            return None;
        }
        session.reads += 1;
        let request = self.request(key, asked);
        Some(Request { number: request.number | READ_BIT, ..request })
    }

    fn ask_to_read<E: Effects>(&mut self, key: SessionKey, mail: Mail, fx: &mut E) {
        let user = self.slab[key.0 as usize].user;
        if !self.ask(key, Address::User(user), mail, &[], fx) {
            self.slab[key.0 as usize].reads -= 1;
        }
    }

    fn signal<E: Effects>(
        &mut self,
        key: SessionKey,
        conversation: ConversationId,
        name: &str,
        body: &str,
        fx: &mut E,
    ) {
        let request = self.request(key, Asked::Other);
        if !is_party(conversation, request.user) {
            return self.error(key, None, Some(conversation), ErrorCode::NotFound, 0, fx);
        }
        if name.len() + body.len() > self.limits.body_bytes_max as usize {
            return self.error(key, None, Some(conversation), ErrorCode::TooLarge, 0, fx);
        }
        let mail = Mail::Signalling { request, conversation, name_bytes: name.len() as u32 };
        let payload = [name.as_bytes(), body.as_bytes()].concat();
        fx.post(&Letter { to: Address::User(request.user), mail, payload: &payload });
    }

    /// A letter for a session; one for a session that is gone is dropped.
    pub(crate) fn letter<E: Effects>(&mut self, address: SessionAddress, letter: &Letter<'_>, fx: &mut E) {
        let key = SessionKey(address.index);
        if self.slab.get(address.index as usize).is_none_or(|session| session.generation != address.generation) {
            return;
        }
        let client = self.slab[address.index as usize].client;
        if let Mail::Page { request, .. } | Mail::Listed { request, .. } | Mail::Refused { request, .. } = letter.mail
            && request.number & READ_BIT != 0
        {
            self.slab[address.index as usize].reads -= 1;
        }
        match letter.mail {
            Mail::Message { message, change, .. } => self.push(key, &message, change, letter.payload, fx),
            Mail::Stored { conversation, id, seq, time_ms, dup, .. } => {
                let (generation, class) = (self.generation_of_store, self.class);
                let stored = Stored { id, conversation, seq, generation, time_ms, class, dup };
                fx.frame(client, &ServerFrame::Stored(stored));
            }
            Mail::Tick { conversation, .. } | Mail::MarkMoved { conversation, .. } if self.is_lagging(key) => {
                self.fall_behind(key, conversation, 0, fx);
            }
            Mail::Dirty { conversation, head, .. } if self.is_lagging(key) => {
                self.fall_behind(key, conversation, head, fx);
            }
            // Nobody misses a signal.
            Mail::Signal { .. } if self.is_lagging(key) => {}
            Mail::Tick { conversation, delivered_all, read_all, change, .. } => {
                let tick = ServerFrame::Tick { conversation, delivered_all, read_all, change };
                let queued = fx.frame(client, &tick);
                self.pushed(key, queued);
            }
            Mail::MarkMoved { conversation, delivered, read, change, .. } => {
                let mark = |seq: u64| (seq > 0).then_some(seq);
                let (delivered, read) = (mark(delivered), mark(read));
                let queued = fx.frame(client, &ServerFrame::Mark { conversation, delivered, read, change });
                self.pushed(key, queued);
            }
            Mail::Signal { from, conversation, name_bytes, .. } => {
                let (name, body) = letter.payload.split_at(name_bytes as usize);
                let (name, body) = (text(name), text(body));
                let queued = fx.frame(client, &ServerFrame::Signal { conversation, from, name, body });
                self.pushed(key, queued);
            }
            Mail::Dirty { conversation, head, .. } => {
                let queued = fx.frame(client, &ServerFrame::Lagging { conversation, head });
                self.pushed(key, queued);
            }
            Mail::Page { request, conversation, head, first_seq, more } => {
                let own = request.user;
                let messages: Vec<_> = prefixed(letter.payload).map(|row| item_of(row, own)).collect();
                let cursor = messages.last().map(|message| message.seq);
                let page = Page { conversation, messages: &messages, head, more, first_seq, cursor };
                fx.frame(client, &ServerFrame::Page(page));
            }
            Mail::Listed { request, .. } => self.listed(key, request, &letter.mail, letter.payload, fx),
            Mail::Refused { request, conversation, id, code, after_ms, fence } => {
                // `retry` only says that an earlier one failed, which is known by then.
                if let (Some(conversation), Some(id)) = (conversation, id)
                    && code.retryable()
                    && code != ErrorCode::Retry
                {
                    self.send_failed(key, conversation, (request.number, id, fence), fx);
                }
                self.counters.bad_cursor += u64::from(code == ErrorCode::BadCursor);
                self.error(key, id, conversation, code, after_ms, fx);
                if request.number & ASKED_BITS == Asked::Open as u32 {
                    let too_many = code == ErrorCode::TooManySessions;
                    fx.close(client, if too_many { CloseCode::TooManySessions } else { CloseCode::Overloaded });
                }
            }
            Mail::Marked { .. } => {}
            Mail::Superseded { .. } => fx.close(client, CloseCode::Superseded),
            Mail::OpenAgain { .. } => fx.close(client, CloseCode::Overloaded),
            ref other => unreachable!("not for a session: {other:?}"),
        }
    }

    /// Pushes a message, or, if the client reads too slowly, only the news that there is one.
    fn push<E: Effects>(
        &mut self,
        key: SessionKey,
        message: &mail::MessageMail,
        change: ChangeNumber,
        body: &[u8],
        fx: &mut E,
    ) {
        let (conversation, seq) = (message.conversation, message.seq);
        if self.is_lagging(key) {
            return self.fall_behind(key, conversation, seq, fx);
        }
        let session = &mut self.slab[key.0 as usize];
        session.n += 1;
        let lent = session.unacknowledged.get_or_insert_with(|| self.spare.pop().unwrap_or_default());
        lent.messages.push_back((conversation, seq));
        let unacknowledged = lent.messages.len();
        let own = session.user == message.from;
        let item = MessageItem {
            seq,
            from: message.from,
            device: message.device,
            time_ms: message.time_ms,
            kind: message.kind,
            body: Cow::Borrowed(text(body)),
            reply_to: (message.reply_to > 0).then_some(message.reply_to),
            target_seq: (message.target_seq > 0).then_some(message.target_seq),
            id: own.then_some(message.id),
        };
        let frame = ServerFrame::Message(Message { conversation, item, change, n: session.n });
        let queued = fx.frame(session.client, &frame);
        self.counters.delivered += 1;
        if unacknowledged > self.limits.unacknowledged_max as usize {
            self.begin_to_lag(key);
        } else {
            self.pushed(key, queued);
        }
    }

    fn is_lagging(&self, key: SessionKey) -> bool {
        self.slab[key.0 as usize].trouble.as_ref().is_some_and(|trouble| trouble.lagging)
    }

    /// Something that the client did not ask for was queued for it, whatever it was.
    fn pushed(&mut self, key: SessionKey, queued: usize) {
        if queued > self.limits.outbound_bytes_max as usize {
            self.begin_to_lag(key);
        }
    }

    fn begin_to_lag(&mut self, key: SessionKey) {
        self.slab[key.0 as usize].trouble.get_or_insert_default().lagging = true;
        self.counters.lagging += 1;
    }

    fn fall_behind<E: Effects>(&mut self, key: SessionKey, conversation: ConversationId, head: u64, fx: &mut E) {
        let session = &mut self.slab[key.0 as usize];
        let behind = &mut session.trouble.as_mut().expect("checked by the caller").behind;
        if let Some(known) = behind.iter_mut().find(|known| known.0 == conversation) {
            (known.1, known.2) = (known.1.max(head), true);
            return;
        }
        behind.push((conversation, head, false));
        fx.frame(session.client, &ServerFrame::Lagging { conversation, head });
        if behind.len() > self.limits.tracked_per_session_max as usize {
            self.counters.too_slow += 1;
            fx.close(session.client, CloseCode::TooSlow);
        }
    }

    /// Everything queued for the client has gone: it is told how far it is behind, and pushes go on.
    pub(crate) fn drained<E: Effects>(&mut self, key: SessionKey, fx: &mut E) {
        let half = self.limits.unacknowledged_max as usize / 2;
        let session = &mut self.slab[key.0 as usize];
        let Some(trouble) = session.trouble.as_mut().filter(|trouble| trouble.lagging) else { return };
        // It reads but does not acknowledge; what it was not sent it pulls.
        session.unacknowledged.take_if(|lent| lent.messages.len() > half);
        trouble.lagging = false;
        for (conversation, head, missed_more) in std::mem::take(&mut trouble.behind) {
            if missed_more {
                fx.frame(session.client, &ServerFrame::Lagging { conversation, head });
            }
        }
        if trouble.sends.is_empty() {
            session.trouble = None;
        }
    }

    fn listed<E: Effects>(&mut self, key: SessionKey, request: Request, mail: &Mail, payload: &[u8], fx: &mut E) {
        let Mail::Listed { result, change, more, next, ahead, .. } = *mail else {
            unreachable!("matched by the caller")
        };
        let session = &mut self.slab[key.0 as usize];
        let list: Vec<_> = mail::letters(payload)
            .filter_map(|letter| {
                let letter = letter.expect("written by a shard of this process");
                let Mail::Summary { summary, .. } = letter.mail else { return None };
                Some(summary_of(&summary, letter.payload, request.user))
            })
            .collect();
        let asked = request.number & ASKED_BITS;
        if asked == Asked::Open as u32 {
            session.phase = Phase::Open;
            let opened = Opened {
                session: "",
                ticket: "",
                user: session.user,
                device: session.device,
                result,
                change,
                conversations: &list,
                more,
                ahead,
            };
            fx.frame(session.client, &ServerFrame::Opened(opened));
        } else if asked == Asked::Changes as u32 {
            let too_old = result == OpenResult::Snapshot;
            fx.frame(session.client, &ServerFrame::Changes { list: &list, next: change, too_old });
        } else {
            let cursor = more.then(|| next.to_string());
            fx.frame(session.client, &ServerFrame::Conversations { list: &list, cursor: cursor.as_deref() });
        }
    }

    /// Events were lost on their way here: every session opens again.
    pub(crate) fn resync_all<E: Effects>(&mut self, fx: &mut E) {
        for (_, session) in self.slab.iter().filter(|(_, session)| session.phase != Phase::Rest) {
            fx.close(session.client, CloseCode::Overloaded);
        }
    }

    fn error<E: Effects>(
        &mut self,
        key: SessionKey,
        id: Option<ClientMessageId>,
        conversation: Option<ConversationId>,
        code: ErrorCode,
        after_ms: u32,
        fx: &mut E,
    ) {
        self.error_at(key, id, conversation, code, after_ms, None, fx);
    }

    #[allow(clippy::too_many_arguments, reason = "the fields of one frame, and whom it goes to")]
    fn error_at<E: Effects>(
        &mut self,
        key: SessionKey,
        id: Option<ClientMessageId>,
        conversation: Option<ConversationId>,
        code: ErrorCode,
        after_ms: u32,
        path: Option<&'static str>,
        fx: &mut E,
    ) {
        let client = self.slab[key.0 as usize].client;
        let error = ErrorFrame {
            id,
            conversation,
            code,
            message: Cow::Borrowed(code.meaning()),
            after_ms: code.retryable().then_some(after_ms),
            path: path.map(Cow::Borrowed),
        };
        fx.frame(client, &ServerFrame::Error(error));
    }
}

impl Trouble {
    fn held(&mut self, conversation: ConversationId) -> Option<&mut HeldBack> {
        self.sends.iter_mut().find(|held| held.conversation == conversation)
    }
}

/// Whether the name alone rules the user out; who is in a group only its owner knows.
fn is_party(conversation: ConversationId, user: UserId) -> bool {
    matches!(conversation, ConversationId::Group(_)) || conversation.peer_of(user).is_some()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("text was checked where it entered")
}

fn item_of(row: &[u8], own: UserId) -> MessageItem<'_> {
    let record = Record::read(row).expect("checked by the conversation's owner");
    let Class::Message(kind) = record.class else { unreachable!("only messages are in history") };
    MessageItem {
        seq: record.seq,
        from: record.author,
        device: record.device,
        time_ms: record.time_ms,
        kind,
        body: Cow::Borrowed(record.body),
        reply_to: (record.reply_to > 0).then_some(record.reply_to),
        target_seq: (record.target_seq > 0).then_some(record.target_seq),
        id: (record.author == own).then_some(record.id),
    }
}

fn summary_of<'a>(summary: &mail::SummaryMail, last: &'a [u8], own: UserId) -> Summary<'a> {
    Summary {
        conversation: summary.conversation,
        head: summary.head,
        unread: summary.unread,
        read: summary.read,
        delivered: summary.delivered,
        read_all: summary.read_all,
        delivered_all: summary.delivered_all,
        last: (!last.is_empty()).then(|| item_of(last, own)),
    }
}
