//! The client protocol, version 1: what a frame means, apart from how it is written.
//!
//! JSON (`json.rs`) and later Protobuf are twins: both read into and write from these types, and
//! nothing above this crate knows which of them a client speaks. Values borrow from the input.

use std::borrow::Cow;

use rkyv::{Archive, Deserialize, Serialize};

use crate::ids::{ChangeNumber, ClientMessageId, ConversationId, DeviceId, UserId};

/// What a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Archive, Serialize, Deserialize)]
#[repr(u8)]
pub enum Kind {
    Text = 0,
    Image = 1,
    Video = 2,
    Audio = 3,
    File = 4,
    Edit = 5,
    Delete = 6,
    Reaction = 7,
    Pin = 8,
    System = 9,
    Cipher = 10,
}

/// A frame from a client.
#[derive(Debug, Clone, PartialEq)]
pub enum ClientFrame<'a> {
    Open(Open<'a>),
    Send(Send<'a>),
    /// `received`: the highest `n` of this connection that the client has received.
    Beat {
        received: u64,
    },
    Mark {
        conversation: ConversationId,
        delivered: Option<u64>,
        read: Option<u64>,
    },
    Pull(Pull),
    /// The conversations that changed after `after`.
    Changes {
        after: ChangeNumber,
        limit: Option<u32>,
    },
    Signal {
        conversation: ConversationId,
        name: Cow<'a, str>,
        body: Cow<'a, str>,
    },
    Auth {
        token: Cow<'a, str>,
    },
    /// Gives up a send that failed retryably, so that later ones may pass (P5).
    Skip {
        conversation: ConversationId,
        id: ClientMessageId,
    },
    /// REST only: `GET /v1/conversations`.
    Conversations {
        limit: Option<u32>,
        cursor: Option<Cow<'a, str>>,
    },
}

/// Opens a session.
#[derive(Debug, Clone, PartialEq)]
pub struct Open<'a> {
    /// A JWT, unless the upgrade carried one.
    pub token: Option<Cow<'a, str>>,
    /// A resume ticket from an earlier `opened`.
    pub ticket: Option<Cow<'a, str>>,
    /// The device, unless the token names it.
    pub device: Option<DeviceId>,
    /// The last change that the client has; none asks for a snapshot.
    pub changes_after: Option<ChangeNumber>,
    /// How many conversations a snapshot may list at first.
    pub window: Option<u32>,
}

/// A message on its way in.
#[derive(Debug, Clone, PartialEq)]
pub struct Send<'a> {
    /// The client's id for this message; none only in the hand-written short form.
    pub id: Option<ClientMessageId>,
    /// An earlier id of this conversation that the client gives up (P5).
    pub skip: Option<ClientMessageId>,
    /// Where to.
    pub target: Target,
    /// What it is.
    pub kind: Kind,
    /// The text, or what the kind says.
    pub body: Cow<'a, str>,
    /// The message answered.
    pub reply_to: Option<u64>,
    /// The message edited, deleted, reacted to or pinned.
    pub target_seq: Option<u64>,
}

/// A conversation by its name, or a direct one by the other user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    To(UserId),
    Conversation(ConversationId),
}

/// A range of a conversation's messages: gap fill and history are one operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pull {
    /// Whose messages.
    pub conversation: ConversationId,
    /// Which of them.
    pub range: PullRange,
    /// Clamped to 1..=100.
    pub limit: Option<u32>,
    /// The answer must include this seq, or say `behind` (P8).
    pub min_seq: Option<u64>,
}

/// Messages above or below a seq.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PullRange {
    /// Ascending from the first above it.
    After(u64),
    /// Descending from the last below it; none is the end.
    Before(Option<u64>),
}

/// A frame to a client.
#[derive(Debug, Clone, PartialEq)]
pub enum ServerFrame<'a> {
    Hello {
        node: &'a str,
        generation: u64,
        beat_ms: u32,
        offline_ms: u32,
        class: &'a str,
        body_bytes_max: u32,
    },
    Opened(Opened<'a>),
    Stored(Stored),
    Message(Message<'a>),
    Beat {
        received: u64,
    },
    /// A mark of one of the user's other devices.
    Mark {
        conversation: ConversationId,
        delivered: Option<u64>,
        read: Option<u64>,
        change: ChangeNumber,
    },
    Tick {
        conversation: ConversationId,
        delivered_all: u64,
        read_all: u64,
        change: ChangeNumber,
    },
    Page(Page<'a>),
    Changes {
        list: &'a [Summary<'a>],
        next: ChangeNumber,
        too_old: bool,
    },
    Signal {
        conversation: ConversationId,
        from: UserId,
        name: &'a str,
        body: &'a str,
    },
    Lagging {
        conversation: ConversationId,
        head: u64,
    },
    Move {
        deadline_ms: u32,
        spread_ms: u32,
    },
    /// The token expires soon, or has been replaced: `deadline_ms` from now.
    Auth {
        deadline_ms: u64,
    },
    Error(ErrorFrame<'a>),
    /// REST only.
    Conversations {
        list: &'a [Summary<'a>],
        cursor: Option<&'a str>,
    },
}

/// How `changes_after` was answered: exactly one of three.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub enum OpenResult {
    /// Every change after it follows as live frames.
    Replay,
    /// `conversations` lists those that changed after it; pull them.
    Delta,
    /// `conversations` lists all, up to the window.
    Snapshot,
}

/// The session works.
#[derive(Debug, Clone, PartialEq)]
pub struct Opened<'a> {
    pub session: &'a str,
    pub ticket: &'a str,
    pub user: UserId,
    pub device: DeviceId,
    pub result: OpenResult,
    pub change: ChangeNumber,
    pub conversations: &'a [Summary<'a>],
    /// More conversations than the window; `GET /v1/conversations` pages through them.
    pub more: bool,
    /// What the client sent as `changes_after` is above what the server has (restored store).
    pub ahead: bool,
}

/// One conversation in a list.
#[derive(Debug, Clone, PartialEq)]
pub struct Summary<'a> {
    pub conversation: ConversationId,
    pub head: u64,
    pub unread: u64,
    pub read: u64,
    pub delivered: u64,
    /// Lowest read and delivered marks of the other members: the ticks.
    pub read_all: u64,
    pub delivered_all: u64,
    pub last: Option<MessageItem<'a>>,
}

/// Tick one: the message is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    pub id: ClientMessageId,
    pub conversation: ConversationId,
    pub seq: u64,
    pub generation: u64,
    pub time_ms: u64,
    /// `"d1"` or `"d2"`.
    pub class: &'static str,
    pub dup: bool,
}

/// A message as history keeps it.
#[derive(Debug, Clone, PartialEq)]
pub struct MessageItem<'a> {
    pub seq: u64,
    pub from: UserId,
    pub device: DeviceId,
    pub time_ms: u64,
    pub kind: Kind,
    pub body: Cow<'a, str>,
    pub reply_to: Option<u64>,
    pub target_seq: Option<u64>,
    /// Only to the author's own devices.
    pub id: Option<ClientMessageId>,
}

/// A message pushed to a session.
#[derive(Debug, Clone, PartialEq)]
pub struct Message<'a> {
    /// Where it belongs.
    pub conversation: ConversationId,
    /// The message.
    pub item: MessageItem<'a>,
    /// The user's change number.
    pub change: ChangeNumber,
    /// Counter of this connection.
    pub n: u64,
}

/// A page of history.
#[derive(Debug, Clone, PartialEq)]
pub struct Page<'a> {
    pub conversation: ConversationId,
    pub messages: &'a [MessageItem<'a>],
    pub head: u64,
    /// The range goes on behind the last message of this page.
    pub more: bool,
    /// The lowest seq that the server still keeps.
    pub first_seq: u64,
    /// Hand it back as `after` or `before` to go on (a seq).
    pub cursor: Option<u64>,
}

/// What went wrong with one frame.
#[derive(Debug, Clone, PartialEq)]
pub struct ErrorFrame<'a> {
    /// The client's message id, if the frame had one.
    pub id: Option<ClientMessageId>,
    /// The conversation, if the frame had one.
    pub conversation: Option<ConversationId>,
    /// What it is.
    pub code: ErrorCode,
    /// For a person.
    pub message: Cow<'a, str>,
    /// When to try again, for retryable codes.
    pub after_ms: Option<u32>,
    /// Where in the frame, as a JSON path.
    pub path: Option<Cow<'a, str>>,
}

macro_rules! codes {
    ($($variant:ident $text:literal $status:literal $retryable:literal $doc:literal,)*) => {
        /// Every error that a client can be answered with.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Archive, Serialize, Deserialize)]
        #[repr(u8)]
        pub enum ErrorCode { $(#[doc = $doc] $variant,)* }

        impl ErrorCode {
            /// All of them, for the table in docs/protocol.md.
            pub const ALL: &'static [ErrorCode] = &[$(ErrorCode::$variant,)*];
            /// The word on the wire.
            pub fn as_str(self) -> &'static str { match self { $(Self::$variant => $text,)* } }
            /// The HTTP status of the same error over REST.
            pub fn status(self) -> u16 { match self { $(Self::$variant => $status,)* } }
            /// Whether sending the same again can succeed.
            pub fn retryable(self) -> bool { match self { $(Self::$variant => $retryable,)* } }
            /// One sentence on what it means.
            pub fn meaning(self) -> &'static str { match self { $(Self::$variant => $doc,)* } }
            /// The code of that number, as mail carries it.
            pub fn from_u8(number: u8) -> Option<Self> { Self::ALL.get(usize::from(number)).copied() }
        }
    };
}

codes! {
    BadRequest "bad_request" 400 false "The frame is not what the protocol allows; `path` says where.",
    UnknownType "unknown_type" 400 false "No frame has this `type`.",
    Empty "empty" 400 false "The body is empty.",
    TooLarge "too_large" 413 false "The body is over the limit that `hello` named.",
    NotFound "not_found" 404 false "No such conversation for this user.",
    BadCursor "bad_cursor" 400 false "The mark or cursor is outside the conversation.",
    IdConflict "id_conflict" 409 false "This client message id was used for another body.",
    IdExpired "id_expired" 409 false "This client message id is older than the dedup window.",
    Behind "behind" 503 true "The server has not reached `min_seq` yet.",
    Retry "retry" 503 true "An earlier send of this connection failed here: send that one again first, or skip it.",
    Unavailable "unavailable" 503 true "Storage does not answer; whether the message was kept is unknown. Send it again with the same id.",
    Overloaded "overloaded" 503 true "The server is refusing new work; nothing was kept.",
    RateLimited "rate_limited" 429 true "Too many frames; slow down.",
    Damaged "damaged" 500 false "Stored data failed its checksum; the operator must run `ringway storage check`.",
    NotOpen "not_open" 409 false "The session is not open: send `open` first.",
    AlreadyOpen "already_open" 409 false "The session is already open.",
    Unauthorized "unauthorized" 401 false "The token is missing, invalid or expired.",
    InvalidSession "invalid_session" 401 false "The resume ticket is not valid; open with a token.",
    TooManySessions "too_many_sessions" 429 true "The user has as many sessions as allowed.",
    TooManyConversations "too_many_conversations" 429 false "The user has begun as many conversations as allowed for now.",
    NotOwner "not_owner" 503 true "Another node owns this conversation now; reconnect.",
}

macro_rules! kinds {
    ($($variant:ident $text:literal,)*) => {
        impl Kind {
            /// All kinds, by number.
            pub const ALL: &'static [Kind] = &[$(Kind::$variant,)*];
            /// The word on the wire.
            pub fn as_str(self) -> &'static str { match self { $(Self::$variant => $text,)* } }
            /// The kind of that number, as records and mail carry it.
            pub fn from_u8(number: u8) -> Option<Self> { Self::ALL.get(usize::from(number)).copied() }
            /// Whether it counts as unread. Edits, deletions, reactions and pins take a seq and do not count.
            pub fn countable(self) -> bool {
                !matches!(self, Self::Edit | Self::Delete | Self::Reaction | Self::Pin | Self::System)
            }
        }
        impl std::str::FromStr for Kind {
            type Err = crate::ids::IdError;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                match text { $($text => Ok(Self::$variant),)* _ => Err(crate::ids::IdError("message kind")) }
            }
        }
    };
}

kinds! {
    Text "text", Image "image", Video "video", Audio "audio", File "file", Edit "edit", Delete "delete",
    Reaction "reaction", Pin "pin", System "system", Cipher "cipher",
}
