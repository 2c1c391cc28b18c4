//! Frames as a client reads them: for the load generator, `ringway chat` and tests.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, Visitor};

use super::DecodeError;
use crate::ids::{ChangeNumber, ClientMessageId, ConversationId, DeviceId, UserId};
use crate::protocol::{
    ErrorCode, ErrorFrame, Kind, Message, MessageItem, OpenResult, Opened, Page, ServerFrame, Stored, Summary,
};

/// A [`ServerFrame`] that owns its lists. Texts without escapes are borrowed from the input.
#[derive(Debug, Clone, PartialEq)]
pub enum Received<'a> {
    Hello {
        node: Cow<'a, str>,
        generation: u64,
        beat_ms: u32,
        offline_ms: u32,
        class: Cow<'a, str>,
        body_bytes_max: u32,
    },
    Opened {
        session: Cow<'a, str>,
        ticket: Cow<'a, str>,
        user: UserId,
        device: DeviceId,
        result: OpenResult,
        change: ChangeNumber,
        conversations: Vec<Summary<'a>>,
        more: bool,
        ahead: bool,
    },
    Stored(Stored),
    Message(Message<'a>),
    Beat {
        received: u64,
    },
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
    Page {
        conversation: ConversationId,
        messages: Vec<MessageItem<'a>>,
        head: u64,
        more: bool,
        first_seq: u64,
        cursor: Option<u64>,
    },
    Changes {
        list: Vec<Summary<'a>>,
        next: ChangeNumber,
        too_old: bool,
    },
    Signal {
        conversation: ConversationId,
        from: UserId,
        name: Cow<'a, str>,
        body: Cow<'a, str>,
    },
    Lagging {
        conversation: ConversationId,
        head: u64,
    },
    Move {
        deadline_ms: u32,
        spread_ms: u32,
    },
    Auth {
        deadline_ms: u64,
    },
    Error(ErrorFrame<'a>),
    Conversations {
        list: Vec<Summary<'a>>,
        cursor: Option<Cow<'a, str>>,
    },
    /// A frame of a later server's: a client ignores it.
    Unknown(Cow<'a, str>),
}

/// Reads a frame from a server.
pub fn decode_server(text: &str) -> Result<Received<'_>, DecodeError> {
    let wrong = |message: String, path: String| DecodeError {
        code: ErrorCode::BadRequest,
        message,
        path: Some(path),
        id: None,
        conversation: None,
    };
    let flat: Flat<'_> = serde_json::from_str(text).map_err(|error| {
        // Once more with a record of the way, which costs too much to keep while all is well.
        let mut deserializer = serde_json::Deserializer::from_str(text);
        let path = match serde_path_to_error::deserialize::<_, Flat<'_>>(&mut deserializer) {
            Err(error) if error.path().to_string() != "." => format!("$.{}", error.path()),
            Ok(_) | Err(_) => "$".to_owned(),
        };
        wrong(error.to_string(), path)
    })?;
    let name = flat.name.0.clone();
    flat.frame().map_err(|field| wrong(format!("`{name}` needs the field"), format!("$.{field}")))
}

/// A text, borrowed where the input has no escapes in it.
#[derive(Debug, Clone, PartialEq)]
struct Text<'a>(Cow<'a, str>);

impl<'a, 'de: 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor;
        impl<'de> Visitor<'de> for TextVisitor {
            type Value = Text<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Borrowed(text)))
            }
            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(TextVisitor)
    }
}

/// Something that is written as a string and is not one.
#[derive(Debug, Clone, Copy)]
struct Word<T>(T);

impl<'de, T: FromStr<Err: fmt::Display>> Deserialize<'de> for Word<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct WordVisitor<T>(PhantomData<T>);
        impl<T: FromStr<Err: fmt::Display>> Visitor<'_> for WordVisitor<T> {
            type Value = Word<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an identifier as a string")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Self::Value, E> {
                text.parse().map(Word).map_err(E::custom)
            }
        }
        deserializer.deserialize_str(WordVisitor(PhantomData))
    }
}

/// Every field of every frame.
#[derive(Deserialize)]
struct Flat<'a> {
    #[serde(rename = "type", borrow)]
    name: Text<'a>,
    conv: Option<Word<ConversationId>>,
    seq: Option<u64>,
    from: Option<Word<UserId>>,
    device: Option<Word<DeviceId>>,
    time: Option<u64>,
    kind: Option<Word<Kind>>,
    #[serde(borrow)]
    body: Option<Text<'a>>,
    reply_to: Option<u64>,
    target_seq: Option<u64>,
    id: Option<Word<ClientMessageId>>,
    change: Option<Word<ChangeNumber>>,
    n: Option<u64>,
    generation: Option<Word<u64>>,
    #[serde(borrow)]
    class: Option<Text<'a>>,
    dup: Option<bool>,
    received: Option<u64>,
    delivered: Option<u64>,
    read: Option<u64>,
    delivered_all: Option<u64>,
    read_all: Option<u64>,
    #[serde(borrow)]
    messages: Option<Vec<Item<'a>>>,
    head: Option<u64>,
    more: Option<bool>,
    first_seq: Option<u64>,
    /// A seq in `page`, a text in `conversations`.
    #[serde(borrow)]
    cursor: Option<Cursor<'a>>,
    #[serde(borrow)]
    list: Option<Vec<FlatSummary<'a>>>,
    next: Option<Word<ChangeNumber>>,
    too_old: Option<bool>,
    #[serde(rename = "name", borrow)]
    signal: Option<Text<'a>>,
    deadline_ms: Option<u64>,
    spread_ms: Option<u32>,
    #[serde(deserialize_with = "error_code", default)]
    code: Option<ErrorCode>,
    #[serde(borrow)]
    message: Option<Text<'a>>,
    after_ms: Option<u32>,
    #[serde(borrow)]
    path: Option<Text<'a>>,
    #[serde(borrow)]
    node: Option<Text<'a>>,
    beat_ms: Option<u32>,
    offline_ms: Option<u32>,
    limits: Option<FlatLimits>,
    #[serde(borrow)]
    session: Option<Text<'a>>,
    #[serde(borrow)]
    ticket: Option<Text<'a>>,
    user: Option<Word<UserId>>,
    #[serde(borrow)]
    result: Option<Text<'a>>,
    #[serde(borrow)]
    conversations: Option<Vec<FlatSummary<'a>>>,
    ahead: Option<bool>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Cursor<'a> {
    Seq(u64),
    #[serde(borrow)]
    Text(Text<'a>),
}

#[derive(Deserialize)]
struct FlatLimits {
    body_bytes_max: u32,
}

#[derive(Deserialize)]
struct Item<'a> {
    seq: u64,
    from: Word<UserId>,
    device: Word<DeviceId>,
    time: u64,
    kind: Word<Kind>,
    #[serde(borrow)]
    body: Text<'a>,
    reply_to: Option<u64>,
    target_seq: Option<u64>,
    id: Option<Word<ClientMessageId>>,
}

#[derive(Deserialize)]
struct FlatSummary<'a> {
    conv: Word<ConversationId>,
    head: u64,
    unread: u64,
    read: u64,
    delivered: u64,
    read_all: u64,
    delivered_all: u64,
    #[serde(borrow)]
    last: Option<Item<'a>>,
}

fn error_code<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<ErrorCode>, D::Error> {
    let text = Text::deserialize(deserializer)?;
    match ErrorCode::ALL.iter().find(|code| code.as_str() == text.0) {
        Some(code) => Ok(Some(*code)),
        None => Err(D::Error::custom("an error code of a later server's")),
    }
}

impl<'a> From<Item<'a>> for MessageItem<'a> {
    fn from(item: Item<'a>) -> Self {
        Self {
            seq: item.seq,
            from: item.from.0,
            device: item.device.0,
            time_ms: item.time,
            kind: item.kind.0,
            body: item.body.0,
            reply_to: item.reply_to,
            target_seq: item.target_seq,
            id: item.id.map(|id| id.0),
        }
    }
}

impl<'a> From<FlatSummary<'a>> for Summary<'a> {
    fn from(summary: FlatSummary<'a>) -> Self {
        Self {
            conversation: summary.conv.0,
            head: summary.head,
            unread: summary.unread,
            read: summary.read,
            delivered: summary.delivered,
            read_all: summary.read_all,
            delivered_all: summary.delivered_all,
            last: summary.last.map(Into::into),
        }
    }
}

fn summaries(list: Option<Vec<FlatSummary<'_>>>) -> Vec<Summary<'_>> {
    list.unwrap_or_default().into_iter().map(Into::into).collect()
}

impl<'a> Flat<'a> {
    /// The frame, or the name of the field that it lacks.
    fn frame(self) -> Result<Received<'a>, &'static str> {
        let conversation = self.conv.map(|conv| conv.0).ok_or("conv");
        let change = self.change.map(|change| change.0).ok_or("change");
        Ok(match &*self.name.0 {
            "message" => Received::Message(Message {
                conversation: conversation?,
                change: change?,
                n: self.n.ok_or("n")?,
                item: MessageItem {
                    seq: self.seq.ok_or("seq")?,
                    from: self.from.ok_or("from")?.0,
                    device: self.device.ok_or("device")?.0,
                    time_ms: self.time.ok_or("time")?,
                    kind: self.kind.ok_or("kind")?.0,
                    body: self.body.ok_or("body")?.0,
                    reply_to: self.reply_to,
                    target_seq: self.target_seq,
                    id: self.id.map(|id| id.0),
                },
            }),
            "stored" => Received::Stored(Stored {
                id: self.id.ok_or("id")?.0,
                conversation: conversation?,
                seq: self.seq.ok_or("seq")?,
                generation: self.generation.ok_or("generation")?.0,
                time_ms: self.time.ok_or("time")?,
                class: class(&self.class.ok_or("class")?.0).ok_or("class")?,
                dup: self.dup.unwrap_or(false),
            }),
            "beat" => Received::Beat { received: self.received.ok_or("received")? },
            "tick" => Received::Tick {
                conversation: conversation?,
                delivered_all: self.delivered_all.ok_or("delivered_all")?,
                read_all: self.read_all.ok_or("read_all")?,
                change: change?,
            },
            "mark" => Received::Mark {
                conversation: conversation?,
                delivered: self.delivered,
                read: self.read,
                change: change?,
            },
            "page" => Received::Page {
                conversation: conversation?,
                messages: self.messages.ok_or("messages")?.into_iter().map(Into::into).collect(),
                head: self.head.ok_or("head")?,
                more: self.more.ok_or("more")?,
                first_seq: self.first_seq.ok_or("first_seq")?,
                cursor: match self.cursor {
                    Some(Cursor::Seq(seq)) => Some(seq),
                    Some(Cursor::Text(_)) => return Err("cursor"),
                    None => None,
                },
            },
            "changes" => Received::Changes {
                list: summaries(self.list),
                next: self.next.ok_or("next")?.0,
                too_old: self.too_old.unwrap_or(false),
            },
            "signal" => Received::Signal {
                conversation: conversation?,
                from: self.from.ok_or("from")?.0,
                name: self.signal.ok_or("name")?.0,
                body: self.body.ok_or("body")?.0,
            },
            "lagging" => Received::Lagging { conversation: conversation?, head: self.head.ok_or("head")? },
            "error" => Received::Error(ErrorFrame {
                id: self.id.map(|id| id.0),
                conversation: conversation.ok(),
                code: self.code.ok_or("code")?,
                message: self.message.ok_or("message")?.0,
                after_ms: self.after_ms,
                path: self.path.map(|path| path.0),
            }),
            "move" => Received::Move {
                deadline_ms: self.deadline_ms.and_then(|ms| u32::try_from(ms).ok()).ok_or("deadline_ms")?,
                spread_ms: self.spread_ms.ok_or("spread_ms")?,
            },
            "auth" => Received::Auth { deadline_ms: self.deadline_ms.ok_or("deadline_ms")? },
            "hello" => Received::Hello {
                node: self.node.ok_or("node")?.0,
                generation: self.generation.ok_or("generation")?.0,
                beat_ms: self.beat_ms.ok_or("beat_ms")?,
                offline_ms: self.offline_ms.ok_or("offline_ms")?,
                class: self.class.ok_or("class")?.0,
                body_bytes_max: self.limits.ok_or("limits")?.body_bytes_max,
            },
            "opened" => Received::Opened {
                session: self.session.ok_or("session")?.0,
                ticket: self.ticket.ok_or("ticket")?.0,
                user: self.user.ok_or("user")?.0,
                device: self.device.ok_or("device")?.0,
                result: open_result(&self.result.ok_or("result")?.0).ok_or("result")?,
                change: change?,
                conversations: summaries(self.conversations),
                more: self.more.unwrap_or(false),
                ahead: self.ahead.unwrap_or(false),
            },
            "conversations" => Received::Conversations {
                list: summaries(self.list),
                cursor: match self.cursor {
                    Some(Cursor::Text(text)) => Some(text.0),
                    Some(Cursor::Seq(_)) => return Err("cursor"),
                    None => None,
                },
            },
            _ => Received::Unknown(self.name.0),
        })
    }
}

fn class(text: &str) -> Option<&'static str> {
    ["d1", "d2", "d0"].into_iter().find(|class| *class == text)
}

fn open_result(text: &str) -> Option<OpenResult> {
    [OpenResult::Replay, OpenResult::Delta, OpenResult::Snapshot]
        .into_iter()
        .find(|result| super::server::open_result(*result) == text)
}

impl Received<'_> {
    /// The frame as a server would write it; `None` for one that is not known.
    pub fn as_frame(&self) -> Option<ServerFrame<'_>> {
        Some(match self {
            Self::Hello { node, generation, beat_ms, offline_ms, class, body_bytes_max } => ServerFrame::Hello {
                node,
                generation: *generation,
                beat_ms: *beat_ms,
                offline_ms: *offline_ms,
                class,
                body_bytes_max: *body_bytes_max,
            },
            Self::Opened { session, ticket, user, device, result, change, conversations, more, ahead } => {
                ServerFrame::Opened(Opened {
                    session,
                    ticket,
                    user: *user,
                    device: *device,
                    result: *result,
                    change: *change,
                    conversations,
                    more: *more,
                    ahead: *ahead,
                })
            }
            Self::Stored(stored) => ServerFrame::Stored(*stored),
            Self::Message(message) => ServerFrame::Message(message.clone()),
            Self::Beat { received } => ServerFrame::Beat { received: *received },
            Self::Mark { conversation, delivered, read, change } => {
                ServerFrame::Mark { conversation: *conversation, delivered: *delivered, read: *read, change: *change }
            }
            Self::Tick { conversation, delivered_all, read_all, change } => ServerFrame::Tick {
                conversation: *conversation,
                delivered_all: *delivered_all,
                read_all: *read_all,
                change: *change,
            },
            Self::Page { conversation, messages, head, more, first_seq, cursor } => ServerFrame::Page(Page {
                conversation: *conversation,
                messages,
                head: *head,
                more: *more,
                first_seq: *first_seq,
                cursor: *cursor,
            }),
            Self::Changes { list, next, too_old } => ServerFrame::Changes { list, next: *next, too_old: *too_old },
            Self::Signal { conversation, from, name, body } => {
                ServerFrame::Signal { conversation: *conversation, from: *from, name, body }
            }
            Self::Lagging { conversation, head } => ServerFrame::Lagging { conversation: *conversation, head: *head },
            Self::Move { deadline_ms, spread_ms } => {
                ServerFrame::Move { deadline_ms: *deadline_ms, spread_ms: *spread_ms }
            }
            Self::Auth { deadline_ms } => ServerFrame::Auth { deadline_ms: *deadline_ms },
            Self::Error(error) => ServerFrame::Error(error.clone()),
            Self::Conversations { list, cursor } => ServerFrame::Conversations { list, cursor: cursor.as_deref() },
            Self::Unknown(_) => return None,
        })
    }
}
