//! Sessions: one client's frames in, letters out; letters in, frames out.
//!
//! A session lives where its connection was accepted and keeps only what the connection needs: its
//! counter of messages, what the client has not acknowledged, and, only while something is wrong,
//! whom it lags behind and which sends are held back. Nothing of it survives the connection.

mod beats;
mod sends;

use std::borrow::Cow;
use std::collections::BTreeMap;

use slab::Slab;
use wire::close::CloseCode;
use wire::ids::{ChangeNumber, ClientMessageId, ConversationId, DeviceId, UserId};
use wire::mail::{self, Address, Letter, Mail, Request, SessionAddress};
use wire::protocol::{
    ClientFrame, ErrorCode, ErrorFrame, Message, MessageItem, OpenResult, Opened, Page, Pull, PullRange, ServerFrame,
    Stored, Summary,
};

use crate::Counters;
use crate::effects::{ClientKey, Effects, Now};
use crate::held_back::{FailedSend, HeldSends};
use crate::limits::Limits;
use crate::pressure::{Pressure, Work};
use crate::receipts::Receipts;
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

/// Receipts kept for the next session that needs some.
const SPARE_MAX: usize = 4_096;
const ASKED_BITS: u32 = 3 << 29;
/// In a request's number: its answer is a page or a list, many times as large as what asks for it.
const READ_BIT: u32 = 1 << 28;
/// In a request's number: it is a mark that a beat gave, and the client is not told of its answer.
const BEAT_BIT: u32 = 1 << 27;
/// The rest of a request's number.
const NUMBER_MASK: u32 = BEAT_BIT - 1;

/// Whether the request of number `one` was made before that of number `other`.
pub(crate) fn is_before(one: u32, other: u32) -> bool {
    let ahead = other.wrapping_sub(one) & NUMBER_MASK;
    (1..=NUMBER_MASK / 2).contains(&ahead)
}

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
    /// Of what was pushed; the last message there has the number `n`.
    receipts: Option<Box<Receipts>>,
    trouble: Option<Box<Trouble>>,
}

/// What only a session in trouble has.
#[derive(Debug, Default)]
struct Trouble {
    lagging: bool,
    /// Conversations that it lags behind: the highest head, and whether it missed more since it was told.
    behind: Vec<(ConversationId, u64, bool)>,
    sends: HeldSends,
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
    spare: Vec<Box<Receipts>>,
    /// Reads with a `min_seq` that are under way, by the place of their session: one that goes tells those who hold
    /// a place for it. Few ask so, and each of them no more than `reads_per_session_max`.
    ahead: BTreeMap<u32, Vec<(u32, ConversationId)>>,
    generation: u32,
    random: u64,
    pub pressure: Pressure,
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
            ahead: BTreeMap::new(),
            generation: 0,
            random: seed,
            pressure: Pressure::default(),
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
            receipts: None,
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
        for (_, conversation) in self.ahead.remove(&key.0).unwrap_or_default() {
            let mail = Mail::Left { request, conversation };
            fx.post(&Letter { to: Address::User(session.user), mail, payload: &[] });
        }
        if session.phase != Phase::Rest {
            fx.post(&Letter { to: Address::User(session.user), mail: Mail::Detach { request }, payload: &[] });
        }
    }

    fn request(&mut self, key: SessionKey, asked: Asked) -> Request {
        let session = &mut self.slab[key.0 as usize];
        session.number = session.next_number();
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
        if self.sheds(frame) {
            // Nobody misses a signal.
            if !matches!(frame, ClientFrame::Signal { .. }) {
                self.refuse(now, key, frame, (ErrorCode::Overloaded, 1_000), fx);
            }
            return;
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
                    return self.error_at(key, None, None, ErrorCode::BadRequest, 0, Some("cursor"), fx);
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

    /// Whether the shard is too near its limits for such work.
    fn sheds(&mut self, frame: &ClientFrame<'_>) -> bool {
        let (work, count) = match frame {
            ClientFrame::Signal { .. } => (Work::Signal, &mut self.counters.shed_signals),
            ClientFrame::Mark { .. } => (Work::Receipt, &mut self.counters.shed_receipts),
            ClientFrame::Pull(_) | ClientFrame::Changes { .. } | ClientFrame::Conversations { .. } => {
                (Work::Scan, &mut self.counters.shed_scans)
            }
            ClientFrame::Send(_) => (Work::Send, &mut self.counters.shed_sends),
            ClientFrame::Beat { .. } | ClientFrame::Skip { .. } | ClientFrame::Open(_) | ClientFrame::Auth { .. } => {
                return false;
            }
        };
        let sheds = self.pressure.sheds(work);
        *count += u64::from(sheds);
        sheds
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
        if self.ask_to_read(key, mail, fx) && pull.min_seq.is_some() {
            self.ahead.entry(key.0).or_default().push((request.number, pull.conversation));
        }
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

    fn ask_to_read<E: Effects>(&mut self, key: SessionKey, mail: Mail, fx: &mut E) -> bool {
        let user = self.slab[key.0 as usize].user;
        let asked = self.ask(key, Address::User(user), mail, &[], fx);
        if !asked {
            self.slab[key.0 as usize].reads -= 1;
        }
        asked
    }

    /// A read was answered.
    fn has_read(&mut self, key: SessionKey, number: u32) {
        self.slab[key.0 as usize].reads -= 1;
        if let Some(ahead) = self.ahead.get_mut(&key.0) {
            ahead.retain(|(of, _)| *of != number);
            if ahead.is_empty() {
                self.ahead.remove(&key.0);
            }
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
            self.has_read(key, request.number);
        }
        match letter.mail {
            Mail::Message { message, change, .. } => self.push(key, &message, change, letter.payload, fx),
            Mail::Stored { request, conversation, id, seq, time_ms, dup } => {
                self.send_passed(key, conversation, request.number);
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
            Mail::Refused { request, code, .. } if request.number & BEAT_BIT != 0 => {
                self.mark_refused(key, request.number, code);
            }
            Mail::Refused { request, conversation, id, code, after_ms, by, fence } => {
                if let (Some(conversation), Some(id)) = (conversation, id) {
                    let send = FailedSend { conversation, id, number: request.number, fence };
                    self.send_refused(key, send, by, code, fx);
                }
                self.counters.bad_cursor += u64::from(code == ErrorCode::BadCursor);
                self.error(key, id, conversation, code, after_ms, fx);
                if request.number & ASKED_BITS == Asked::Open as u32 {
                    let too_many = code == ErrorCode::TooManySessions;
                    fx.close(client, if too_many { CloseCode::TooManySessions } else { CloseCode::Overloaded });
                }
            }
            Mail::Marked { request } if request.number & BEAT_BIT != 0 => self.mark_settled(key, request.number),
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
        let receipts = session.receipts.get_or_insert_with(|| self.spare.pop().unwrap_or_default());
        receipts.unacknowledged.push_back((conversation, seq));
        let unacknowledged = receipts.unacknowledged.len();
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

impl Session {
    /// The number of the next request.
    fn next_number(&self) -> u32 {
        self.number.wrapping_add(1) & NUMBER_MASK
    }

    /// Forgets the trouble that is over.
    fn tidy(&mut self) {
        self.trouble.take_if(|trouble| !trouble.lagging && trouble.sends.is_empty());
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
