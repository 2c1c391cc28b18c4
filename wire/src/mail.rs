//! Mail between shards, and later between nodes: what one owner tells another.
//!
//! A letter is a fixed-size head, archived by rkyv and checked before use, with the payload behind it:
//!
//! ```text
//! u32 LE  bytes of head + payload
//! u32 LE  bytes of head
//! ...     head: rkyv archive of (Address, Mail), alignment 1
//! ...     payload: message body, page of records, name and body of a signal
//! ```
//!
//! A batch is letters one behind the other. Reading borrows the payload and copies only the head;
//! writing appends to a buffer that the caller reuses. So a letter costs no allocation, and a shard
//! and a remote node read the same bytes.

use rkyv::rancor;
use rkyv::{Archive, Deserialize, Serialize};

use crate::ids::{ChangeNumber, ClientMessageId, ConversationId, DeviceId, UserId};
use crate::protocol::{ErrorCode, Kind, OpenResult};

/// Where a session, or one request over REST, is waiting: its shard and its place there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Archive, Serialize, Deserialize)]
pub struct SessionAddress {
    /// Shard that holds the connection.
    pub shard: u16,
    /// Place in that shard's table.
    pub index: u32,
    /// Tells apart the sessions that use the same place one after the other.
    pub generation: u32,
}

/// Whom a letter is for. The address alone decides the shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub enum Address {
    /// The owner of a user's slot.
    User(UserId),
    /// The owner of a conversation's slot.
    Conversation(ConversationId),
    /// The shard that holds a session.
    Session(SessionAddress),
    /// Every shard for itself: not used for letters that cross nodes.
    Shard(u16),
}

/// What a full mailbox does to a letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MailClass {
    /// May be refused where it is posted; each gets exactly one reply.
    Request,
    /// Never refused: its room was reserved when the request was admitted.
    Reply,
    /// Collapses to a dirty mark that is read again later, or is dropped if nothing is lost by that.
    Event,
}

/// Who asked, and which of the asker's questions an answer belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Request {
    /// Where the answer goes in the end.
    pub session: SessionAddress,
    /// The user that asks; answers travel by this user's owner.
    pub user: UserId,
    /// The device that asks.
    pub device: DeviceId,
    /// The session's own number for the question.
    pub number: u32,
}

/// Retryable failures in one conversation that a session knew of when it sent, counted apart by whose they were.
///
/// A send that does not know of the last failure of an owner there is answered `retry`, which keeps the order of
/// one sender (P5). One count for both would not do: a send that knows of the failure of one owner
/// could pass the other while that one's own refusal is still on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Archive, Serialize, Deserialize)]
pub struct Fence {
    /// Refused by the user's owner.
    pub user: u32,
    /// Refused by the conversation's owner.
    pub conversation: u32,
}

/// The owner that refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub enum Hop {
    /// The user's.
    User,
    /// The conversation's.
    Conversation,
}

impl Fence {
    /// What either of the two knows of.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        Self { user: self.user.max(other.user), conversation: self.conversation.max(other.conversation) }
    }

    /// The failures of that owner.
    pub fn of(&mut self, hop: Hop) -> &mut u32 {
        match hop {
            Hop::User => &mut self.user,
            Hop::Conversation => &mut self.conversation,
        }
    }
}

/// A message to be sequenced. Payload: the body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct SendMail {
    /// The sender.
    pub request: Request,
    /// The failures in this conversation that the sender knows of.
    pub fence: Fence,
    /// Where to.
    pub conversation: ConversationId,
    /// The client's id for it.
    pub id: ClientMessageId,
    /// What it is.
    pub kind: Kind,
    /// The message answered; 0 is none.
    pub reply_to: u64,
    /// The message edited, deleted, reacted to or pinned; 0 is none.
    pub target_seq: u64,
}

/// A message that was committed. Payload: the body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct MessageMail {
    /// Where it belongs.
    pub conversation: ConversationId,
    /// Its place there.
    pub seq: u64,
    /// Who wrote it.
    pub from: UserId,
    /// On which device.
    pub device: DeviceId,
    /// When, by the server: milliseconds since 1970.
    pub time_ms: u64,
    /// What it is.
    pub kind: Kind,
    /// The client's id for it.
    pub id: ClientMessageId,
    /// The message answered; 0 is none.
    pub reply_to: u64,
    /// The message edited, deleted, reacted to or pinned; 0 is none.
    pub target_seq: u64,
}

/// State of a conversation as one member sees it. Payload: the record of the last message, if any.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct SummaryMail {
    pub conversation: ConversationId,
    pub head: u64,
    pub unread: u64,
    pub read: u64,
    pub delivered: u64,
    pub read_all: u64,
    pub delivered_all: u64,
    /// Time of the last message, for sorting; 0 if there is none.
    pub time_ms: u64,
}

/// Everything one owner says to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub enum Mail {
    // Requests: from a session to its user's owner, and on to a conversation's owner.
    /// Open a session. `after` is what the client has; `None` asks for a snapshot.
    Open { request: Request, after: Option<ChangeNumber>, window: u32 },
    /// Sequence a message.
    Send(SendMail),
    /// Move the asker's marks.
    Mark { request: Request, conversation: ConversationId, delivered: u64, read: u64 },
    /// Read messages: above `from` ascending, or below it (0: the end) descending.
    Pull { request: Request, conversation: ConversationId, ascending: bool, from: u64, limit: u32, min_seq: u64 },
    /// List what changed after.
    Changes { request: Request, after: ChangeNumber, limit: u32 },
    /// List the user's conversations, the most recently active first, `skip` of them left out.
    List { request: Request, skip: u32, limit: u32 },
    /// Say how the conversation looks to `request.user`; asked by the user's owner for a list.
    Summarise { request: Request, conversation: ConversationId },

    // Replies: each ends one request.
    /// The message has a seq and is committed.
    Stored { request: Request, conversation: ConversationId, id: ClientMessageId, seq: u64, time_ms: u64, dup: bool },
    /// The marks have been taken, or there was nothing to move.
    Marked { request: Request },
    /// A page. Payload: records, each behind its length as a little-endian u32, in the order asked for.
    Page { request: Request, conversation: ConversationId, head: u64, first_seq: u64, more: bool },
    /// Answer to `Summarise`.
    Summary { request: Request, summary: SummaryMail },
    /// Answer to `Open`, `List` and `Changes`. Payload: letters `Summary`, one behind the other.
    /// `next` is how many of the list to skip to go on behind it.
    Listed { request: Request, result: OpenResult, change: ChangeNumber, more: bool, next: u32, ahead: bool },
    /// It was not done. `id` is the message's. `fence` is the send's, but for the owner that refused: there it is
    /// the number of this failure, or with `retry` of the one that stands in the way.
    Refused {
        request: Request,
        conversation: Option<ConversationId>,
        id: Option<ClientMessageId>,
        code: ErrorCode,
        after_ms: u32,
        by: Hop,
        fence: Fence,
    },

    // Events: from a conversation's owner to each member's owner, and on to the sessions.
    /// Push a message to a user; on its way to a session it carries the user's change number.
    Message { user: UserId, message: MessageMail, change: ChangeNumber },
    /// The lowest marks of the others moved.
    Tick { user: UserId, conversation: ConversationId, delivered_all: u64, read_all: u64, change: ChangeNumber },
    /// The user's own marks moved (told to the user's other devices; `device` moved them).
    MarkMoved {
        user: UserId,
        device: DeviceId,
        conversation: ConversationId,
        delivered: u64,
        read: u64,
        change: ChangeNumber,
    },
    /// Something not stored, from another member. Payload: name, then body.
    Signal { user: UserId, from: UserId, conversation: ConversationId, name_bytes: u32 },
    /// Events for this user and conversation did not fit into a mailbox: the head is at least this.
    Dirty { user: UserId, conversation: ConversationId, head: u64 },
    /// Events from that shard were lost, and so many that not even whose they were is known. Whoever gets
    /// this tells the sessions of its users, and the sessions it holds, to open again, and answers from
    /// no tail of changes that was begun before.
    DirtyAll { from: u16 },
    /// Who asked to read this conversation has gone: nobody waits for what is not there yet.
    Left { request: Request, conversation: ConversationId },
    /// A signal on its way to the conversation's owner. Payload: name, then body.
    Signalling { request: Request, conversation: ConversationId, name_bytes: u32 },

    // Housekeeping between a session and its user's owner.
    /// The session is gone. Posted as a reply: `Open` reserved its room.
    Detach { request: Request },
    /// Another connection of the same device took over: close with the code for it.
    Superseded { session: SessionAddress },
    /// What concerns the user may have been missed: close so that the client opens again.
    OpenAgain { session: SessionAddress },

    // Between shards, after a `DirtyAll`. Posted as replies: one is on its way per pair of shards.
    /// Tell again who is new in which conversation, from that number on: the news was lost on its way to shard `to`.
    TellMembers { to: u16, from: u64 },
    /// Who is new in which conversation of shard `from`; `next` asks for more. Payload: users and conversations by
    /// their keys.
    NewMembers { from: u16, next: u64 },
}

impl Mail {
    /// What a full mailbox does to it.
    pub fn class(&self) -> MailClass {
        match self {
            Self::Open { .. }
            | Self::Send(_)
            | Self::Mark { .. }
            | Self::Pull { .. }
            | Self::Changes { .. }
            | Self::List { .. }
            | Self::Summarise { .. } => MailClass::Request,
            Self::Stored { .. }
            | Self::Marked { .. }
            | Self::Page { .. }
            | Self::Summary { .. }
            | Self::Listed { .. }
            | Self::Refused { .. }
            | Self::Detach { .. }
            | Self::Superseded { .. }
            | Self::OpenAgain { .. }
            | Self::TellMembers { .. }
            | Self::NewMembers { .. } => MailClass::Reply,
            Self::Message { .. }
            | Self::Tick { .. }
            | Self::MarkMoved { .. }
            | Self::Signal { .. }
            | Self::Dirty { .. }
            | Self::DirtyAll { .. }
            | Self::Left { .. }
            | Self::Signalling { .. } => MailClass::Event,
        }
    }

    /// Whether this letter ends a request, and so gives back the credit of one.
    pub fn ends_request(&self) -> bool {
        let is_own = matches!(
            self,
            Self::Detach { .. }
                | Self::Superseded { .. }
                | Self::OpenAgain { .. }
                | Self::TellMembers { .. }
                | Self::NewMembers { .. }
        );
        self.class() == MailClass::Reply && !is_own
    }
}

/// One letter, its payload borrowed from the batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Letter<'a> {
    /// Whom it is for.
    pub to: Address,
    /// What it says.
    pub mail: Mail,
    /// What goes with it.
    pub payload: &'a [u8],
}

/// The bytes are not a letter. Between shards of one process that is a bug; between nodes, an alarm.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("malformed mail: {0}")]
pub struct MailError(pub &'static str);

#[derive(Archive, Serialize, Deserialize)]
struct Head {
    to: Address,
    mail: Mail,
}

/// Bytes in front of head and payload.
const PREFIX_BYTES: usize = 8;

/// Bytes that a letter with so much payload takes: what is said has always the same size.
pub const fn letter_bytes(payload_bytes: usize) -> usize {
    PREFIX_BYTES + size_of::<ArchivedHead>() + payload_bytes
}

/// How many bytes the letter at the front of `batch` takes, without a look at what it says.
pub fn front_bytes(batch: &[u8]) -> Option<usize> {
    let all_bytes = u32::from_le_bytes(*batch.first_chunk()?);
    Some(PREFIX_BYTES + all_bytes as usize)
}

/// Appends `letter` to `batch`.
pub fn write(batch: &mut Vec<u8>, letter: &Letter<'_>) {
    let start = batch.len();
    batch.extend_from_slice(&[0; PREFIX_BYTES]);
    let head = Head { to: letter.to, mail: letter.mail };
    // The writer takes the vector and gives it back: rkyv appends behind what is there.
    let taken = std::mem::take(batch);
    *batch = rkyv::api::high::to_bytes_in::<_, rancor::Panic>(&head, taken).expect("writing to memory does not fail");
    let head_bytes = batch.len() - start - PREFIX_BYTES;
    batch.extend_from_slice(letter.payload);
    let all_bytes = batch.len() - start - PREFIX_BYTES;
    batch[start..start + 4].copy_from_slice(&(all_bytes as u32).to_le_bytes());
    batch[start + 4..start + 8].copy_from_slice(&(head_bytes as u32).to_le_bytes());
}

/// Reads the letter at the front of `batch`; also says how many bytes it took.
pub fn read(batch: &[u8]) -> Result<(Letter<'_>, usize), MailError> {
    let (prefix, rest) = batch.split_at_checked(PREFIX_BYTES).ok_or(MailError("shorter than its prefix"))?;
    let number = |at: usize| u32::from_le_bytes(prefix[at..at + 4].try_into().expect("four bytes")) as usize;
    let (all_bytes, head_bytes) = (number(0), number(4));
    let letter = rest.get(..all_bytes).ok_or(MailError("shorter than it says"))?;
    let (head, payload) = letter.split_at_checked(head_bytes).ok_or(MailError("head longer than the letter"))?;
    let head = rkyv::from_bytes::<Head, rancor::Failure>(head).map_err(|_| MailError("head fails validation"))?;
    Ok((Letter { to: head.to, mail: head.mail, payload }, PREFIX_BYTES + all_bytes))
}

/// The letters of a batch, in order; ends at the first malformed one, which it yields as an error.
pub fn letters(mut batch: &[u8]) -> impl Iterator<Item = Result<Letter<'_>, MailError>> {
    std::iter::from_fn(move || {
        if batch.is_empty() {
            return None;
        }
        match read(batch) {
            Ok((letter, bytes)) => {
                batch = &batch[bytes..];
                Some(Ok(letter))
            }
            Err(error) => {
                batch = &[];
                Some(Err(error))
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letters_of_every_size() -> Vec<(Letter<'static>, usize)> {
        let request = Request {
            session: SessionAddress { shard: 1, index: 2, generation: 3 },
            user: UserId(4),
            device: DeviceId(5),
            number: 6,
        };
        let conversation = ConversationId::direct(UserId(4), UserId(9));
        [&b""[..], b"x", b"a longer payload of an odd length, so that what follows is not aligned"]
            .into_iter()
            .map(|payload| {
                let mail = Mail::Pull { request, conversation, ascending: true, from: 7, limit: 8, min_seq: 9 };
                (Letter { to: Address::Conversation(conversation), mail, payload }, payload.len())
            })
            .collect()
    }

    #[test]
    fn letters_come_out_as_they_went_in_wherever_they_lie() {
        let mut batch = Vec::new();
        let sent = letters_of_every_size();
        for (letter, payload_bytes) in &sent {
            let start = batch.len();
            write(&mut batch, letter);
            let bytes = batch.len() - start;
            assert_eq!((letter_bytes(*payload_bytes), front_bytes(&batch[start..])), (bytes, Some(bytes)));
        }
        let read: Vec<_> = letters(&batch).map(Result::unwrap).collect();
        assert_eq!(read, sent.iter().map(|(letter, _)| *letter).collect::<Vec<_>>());
    }

    #[test]
    fn cut_or_altered_bytes_are_an_error_or_another_letter_but_never_a_panic() {
        let mut batch = Vec::new();
        write(&mut batch, &letters_of_every_size()[2].0);
        for cut in 0..batch.len() {
            assert!(read(&batch[..cut]).is_err(), "cut at {cut}");
        }
        for at in 0..batch.len() {
            for bit in 0..8 {
                let mut altered = batch.clone();
                altered[at] ^= 1 << bit;
                let _ = read(&altered);
            }
        }
    }
}
