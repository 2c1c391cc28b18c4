//! Frames from clients: read without trusting a byte, written for clients of our own.
//!
//! A frame is read in two steps. First the object, flat, into one slot per known field: here the text
//! is judged (syntax, depth, repeated fields). Then the slots, by `type`: here the meaning is.
//! The field that was being read when something failed is the path that the client is told.

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use super::DecodeError;
use super::text::{change, close, conversation, decimal, message_id, number, number_if, open, string, string_if, word};
use crate::ids::{ClientMessageId, ConversationId, IdError};
use crate::protocol::{ClientFrame, ErrorCode, Kind, Open, Pull, PullRange, Send, Target};

/// Bytes of a signal's name.
pub const SIGNAL_NAME_BYTES_MAX: usize = 32;

macro_rules! fields {
    ($($variant:ident $name:literal,)*) => {
        /// The fields that any frame knows.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        enum Field { $($variant,)* }

        impl Field {
            const NAMES: &'static [&'static str] = &[$($name,)*];
            fn of(name: &str) -> Option<Self> { match name { $($name => Some(Self::$variant),)* _ => None } }
        }
    };
}

fields! {
    Type "type", Id "id", Skip "skip", To "to", Conv "conv", Kind "kind", Body "body", Text "text",
    ReplyTo "reply_to", TargetSeq "target_seq", Received "received", Delivered "delivered", Read "read",
    After "after", Before "before", Limit "limit", MinSeq "min_seq", Name "name", Token "token",
    Ticket "ticket", Device "device", ChangesAfter "changes_after", Window "window",
}

const FIELDS: usize = Field::Window as usize + 1;

/// The value of a known field. None of them is an array or an object.
#[derive(Debug, Clone, PartialEq)]
enum Scalar<'a> {
    Text(Cow<'a, str>),
    Number(u64),
    /// A boolean, or a number that is negative, fractional or too large.
    Other,
}

/// Reads a frame from a client. A body over `body_bytes_max` is refused as too large.
pub fn decode_client(text: &str, body_bytes_max: usize) -> Result<ClientFrame<'_>, DecodeError> {
    let mut draft = Draft::default();
    draft.read(text).and_then(|()| draft.frame(body_bytes_max)).map_err(|error| draft.sign(error))
}

/// Reads the body of `POST /v1/messages`: the fields of a `send`, its `type` and `id` optional.
pub fn decode_send(text: &str, body_bytes_max: usize) -> Result<Send<'_>, DecodeError> {
    let mut draft = Draft::default();
    draft.read(text).and_then(|()| draft.send_without_socket(body_bytes_max)).map_err(|error| draft.sign(error))
}

/// One slot per known field.
#[derive(Debug, Default)]
struct Draft<'a> {
    slots: [Option<Scalar<'a>>; FIELDS],
    /// Fields that came, `null` ones included: none may come twice.
    seen: u32,
    /// What is being read.
    at: At,
    id: Option<ClientMessageId>,
    conversation: Option<ConversationId>,
}

#[derive(Debug, Default)]
enum At {
    #[default]
    Whole,
    Field(Field),
    Unknown(String),
}

impl<'a> Draft<'a> {
    fn read(&mut self, text: &'a str) -> Result<(), DecodeError> {
        let mut deserializer = serde_json::Deserializer::from_str(text);
        let read = deserializer.deserialize_map(ObjectVisitor(self)).and_then(|()| {
            self.at = At::Whole;
            deserializer.end()
        });
        read.map_err(|error| {
            let path = match &self.at {
                At::Whole => "$".to_owned(),
                At::Field(field) => path_of(*field),
                At::Unknown(name) => format!("$.{name}"),
            };
            DecodeError { path: Some(path), ..bad_request(error.to_string()) }
        })
    }

    /// The second step: what the fields mean together.
    fn frame(&mut self, body_bytes_max: usize) -> Result<ClientFrame<'a>, DecodeError> {
        let name = self.text(Field::Type)?.ok_or_else(|| missing(Field::Type))?;
        match &*name {
            "send" => {
                let id = self.id(Field::Id)?.ok_or_else(|| missing(Field::Id))?;
                let kind = self.kind()?.ok_or_else(|| missing(Field::Kind))?;
                self.send(Some(id), kind, Field::Body, body_bytes_max).map(ClientFrame::Send)
            }
            "message" => {
                let id = self.id(Field::Id)?;
                self.send(id, Kind::Text, Field::Text, body_bytes_max).map(ClientFrame::Send)
            }
            "beat" => Ok(ClientFrame::Beat { received: self.required_number(Field::Received)? }),
            "mark" => {
                let conversation = self.required_conversation()?;
                let (delivered, read) = (self.number(Field::Delivered)?, self.number(Field::Read)?);
                if delivered.is_none() && read.is_none() {
                    return Err(missing(Field::Read));
                }
                Ok(ClientFrame::Mark { conversation, delivered, read })
            }
            "pull" => self.pull().map(ClientFrame::Pull),
            "signal" => self.signal(body_bytes_max),
            "changes" => Ok(ClientFrame::Changes {
                after: self.parsed(Field::After)?.ok_or_else(|| missing(Field::After))?,
                limit: self.small(Field::Limit)?,
            }),
            "skip" => Ok(ClientFrame::Skip {
                conversation: self.required_conversation()?,
                id: self.id(Field::Id)?.ok_or_else(|| missing(Field::Id))?,
            }),
            "open" => Ok(ClientFrame::Open(Open {
                token: self.text(Field::Token)?,
                ticket: self.text(Field::Ticket)?,
                device: self.parsed(Field::Device)?,
                changes_after: self.parsed(Field::ChangesAfter)?,
                window: self.small(Field::Window)?,
            })),
            "auth" => Ok(ClientFrame::Auth { token: self.text(Field::Token)?.ok_or_else(|| missing(Field::Token))? }),
            _ => Err(DecodeError {
                code: ErrorCode::UnknownType,
                ..wrong(Field::Type, "there is no such frame".to_owned())
            }),
        }
    }

    fn send_without_socket(&mut self, body_bytes_max: usize) -> Result<Send<'a>, DecodeError> {
        let id = self.id(Field::Id)?;
        let kind = self.kind()?.unwrap_or(Kind::Text);
        let text = self.slots[Field::Body as usize].is_none() && self.slots[Field::Text as usize].is_some();
        self.send(id, kind, if text { Field::Text } else { Field::Body }, body_bytes_max)
    }

    fn send(
        &mut self,
        id: Option<ClientMessageId>,
        kind: Kind,
        body: Field,
        body_bytes_max: usize,
    ) -> Result<Send<'a>, DecodeError> {
        let target = match (self.conversation()?, self.parsed(Field::To)?) {
            (Some(_), Some(_)) => return Err(wrong(Field::To, "either `to` or `conv`, not both".to_owned())),
            (Some(conversation), None) => Target::Conversation(conversation),
            (None, Some(user)) => Target::To(user),
            (None, None) => return Err(missing(Field::To)),
        };
        let text = self.text(body)?;
        if text.is_none() && kind != Kind::Delete {
            return Err(missing(body));
        }
        if text.as_ref().is_some_and(|text| text.is_empty()) && kind != Kind::Delete {
            return Err(DecodeError { code: ErrorCode::Empty, ..wrong(body, "the body is empty".to_owned()) });
        }
        let text = within(text.unwrap_or_default(), body, body_bytes_max)?;
        let target_seq = self.number(Field::TargetSeq)?;
        let needs_target = matches!(kind, Kind::Edit | Kind::Delete | Kind::Reaction | Kind::Pin);
        if needs_target && target_seq.is_none() {
            return Err(missing(Field::TargetSeq));
        }
        Ok(Send {
            id,
            skip: self.parsed(Field::Skip)?,
            target,
            kind,
            body: text,
            reply_to: self.number(Field::ReplyTo)?,
            target_seq,
        })
    }

    fn pull(&mut self) -> Result<Pull, DecodeError> {
        let conversation = self.required_conversation()?;
        let range = match (self.number(Field::After)?, self.number(Field::Before)?) {
            (Some(_), Some(_)) => {
                return Err(wrong(Field::Before, "either `after` or `before`, not both".to_owned()));
            }
            (Some(after), None) => PullRange::After(after),
            (None, before) => PullRange::Before(before),
        };
        Ok(Pull { conversation, range, limit: self.small(Field::Limit)?, min_seq: self.number(Field::MinSeq)? })
    }

    fn signal(&mut self, body_bytes_max: usize) -> Result<ClientFrame<'a>, DecodeError> {
        let conversation = self.required_conversation()?;
        let name = self.text(Field::Name)?.ok_or_else(|| missing(Field::Name))?;
        let name = within(name, Field::Name, SIGNAL_NAME_BYTES_MAX)?;
        let body = within(self.text(Field::Body)?.unwrap_or_default(), Field::Body, body_bytes_max)?;
        Ok(ClientFrame::Signal { conversation, name, body })
    }

    fn take(&mut self, field: Field) -> Option<Scalar<'a>> {
        self.slots[field as usize].take()
    }

    fn text(&mut self, field: Field) -> Result<Option<Cow<'a, str>>, DecodeError> {
        match self.take(field) {
            None => Ok(None),
            Some(Scalar::Text(text)) => Ok(Some(text)),
            Some(Scalar::Number(_) | Scalar::Other) => Err(wrong(field, "this must be a string".to_owned())),
        }
    }

    fn number(&mut self, field: Field) -> Result<Option<u64>, DecodeError> {
        match self.take(field) {
            None => Ok(None),
            Some(Scalar::Number(number)) => Ok(Some(number)),
            Some(Scalar::Text(_) | Scalar::Other) => {
                Err(wrong(field, "this must be a whole number from 0 to 2^64 - 1".to_owned()))
            }
        }
    }

    fn required_number(&mut self, field: Field) -> Result<u64, DecodeError> {
        self.number(field)?.ok_or_else(|| missing(field))
    }

    /// A number that is clamped by whoever uses it.
    fn small(&mut self, field: Field) -> Result<Option<u32>, DecodeError> {
        Ok(self.number(field)?.map(|number| u32::try_from(number).unwrap_or(u32::MAX)))
    }

    fn parsed<T: std::str::FromStr<Err = IdError>>(&mut self, field: Field) -> Result<Option<T>, DecodeError> {
        let Some(text) = self.text(field)? else { return Ok(None) };
        text.parse().map(Some).map_err(|error: IdError| wrong(field, error.to_string()))
    }

    fn id(&mut self, field: Field) -> Result<Option<ClientMessageId>, DecodeError> {
        self.id = self.parsed(field)?;
        Ok(self.id)
    }

    fn kind(&mut self) -> Result<Option<Kind>, DecodeError> {
        self.parsed(Field::Kind)
    }

    fn conversation(&mut self) -> Result<Option<ConversationId>, DecodeError> {
        self.conversation = self.parsed(Field::Conv)?;
        Ok(self.conversation)
    }

    fn required_conversation(&mut self) -> Result<ConversationId, DecodeError> {
        self.conversation()?.ok_or_else(|| missing(Field::Conv))
    }

    /// Puts into an error which message it is about, whatever else was wrong with it.
    fn sign(&mut self, mut error: DecodeError) -> DecodeError {
        error.id = self.id.or_else(|| self.parsed(Field::Id).ok().flatten());
        error.conversation = self.conversation.or_else(|| self.parsed(Field::Conv).ok().flatten());
        error
    }
}

fn within(text: Cow<'_, str>, field: Field, bytes_max: usize) -> Result<Cow<'_, str>, DecodeError> {
    if text.len() <= bytes_max {
        return Ok(text);
    }
    let message = format!("{} bytes are over the limit of {bytes_max}", text.len());
    Err(DecodeError { code: ErrorCode::TooLarge, ..wrong(field, message) })
}

fn bad_request(message: String) -> DecodeError {
    DecodeError { code: ErrorCode::BadRequest, message, path: None, id: None, conversation: None }
}

fn wrong(field: Field, message: String) -> DecodeError {
    DecodeError { path: Some(path_of(field)), ..bad_request(message) }
}

fn missing(field: Field) -> DecodeError {
    wrong(field, "this field is missing".to_owned())
}

fn path_of(field: Field) -> String {
    format!("$.{}", Field::NAMES[field as usize])
}

/// Reads the object into the slots.
struct ObjectVisitor<'d, 'a>(&'d mut Draft<'a>);

impl<'a> Visitor<'a> for ObjectVisitor<'_, 'a> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<M: MapAccess<'a>>(self, mut map: M) -> Result<(), M::Error> {
        let draft = self.0;
        while let Some(key) = map.next_key_seed(KeySeed)? {
            match key {
                Key::Known(field) => {
                    draft.at = At::Field(field);
                    let bit = 1 << field as u32;
                    if draft.seen & bit != 0 {
                        return Err(M::Error::custom("the field comes twice"));
                    }
                    draft.seen |= bit;
                    draft.slots[field as usize] = map.next_value_seed(ScalarSeed)?;
                }
                Key::Unknown(name) => {
                    draft.at = At::Unknown(name);
                    map.next_value_seed(IgnoredSeed)?;
                }
            }
            draft.at = At::Whole;
        }
        Ok(())
    }
}

enum Key {
    Known(Field),
    /// Its first characters, for the path.
    Unknown(String),
}

struct KeySeed;

impl<'a> DeserializeSeed<'a> for KeySeed {
    type Value = Key;
    fn deserialize<D: Deserializer<'a>>(self, deserializer: D) -> Result<Key, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for KeySeed {
    type Value = Key;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a field name")
    }
    fn visit_str<E>(self, name: &str) -> Result<Key, E> {
        Ok(Field::of(name).map_or_else(|| Key::Unknown(name[..name.floor_char_boundary(32)].to_owned()), Key::Known))
    }
}

/// Reads the value of a known field; `null` is the same as leaving the field out.
struct ScalarSeed;

impl<'a> DeserializeSeed<'a> for ScalarSeed {
    type Value = Option<Scalar<'a>>;
    fn deserialize<D: Deserializer<'a>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'a> Visitor<'a> for ScalarSeed {
    type Value = Option<Scalar<'a>>;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string or a number")
    }
    fn visit_borrowed_str<E>(self, text: &'a str) -> Result<Self::Value, E> {
        Ok(Some(Scalar::Text(Cow::Borrowed(text))))
    }
    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Some(Scalar::Text(Cow::Owned(text.to_owned()))))
    }
    fn visit_u64<E>(self, number: u64) -> Result<Self::Value, E> {
        Ok(Some(Scalar::Number(number)))
    }
    fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
        Ok(Some(Scalar::Other))
    }
    fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
        Ok(Some(Scalar::Other))
    }
    fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
        Ok(Some(Scalar::Other))
    }
    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }
}

/// Reads a value that nobody asked for as strictly as any other.
///
/// `serde::de::IgnoredAny` would not do: with it, serde_json counts no levels and checks no numbers.
struct IgnoredSeed;

impl<'a> DeserializeSeed<'a> for IgnoredSeed {
    type Value = ();
    fn deserialize<D: Deserializer<'a>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'a> Visitor<'a> for IgnoredSeed {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }
    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }
    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }
    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }
    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }
    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }
    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
    fn visit_seq<S: SeqAccess<'a>>(self, mut seq: S) -> Result<(), S::Error> {
        while seq.next_element_seed(IgnoredSeed)?.is_some() {}
        Ok(())
    }
    fn visit_map<M: MapAccess<'a>>(self, mut map: M) -> Result<(), M::Error> {
        while map.next_key_seed(IgnoredSeed)?.is_some() {
            map.next_value_seed(IgnoredSeed)?;
        }
        Ok(())
    }
}

/// Appends a frame of a client's as one JSON object.
///
/// A `Send` without an id is written in the short form. `Conversations` is a request over REST: it is
/// written for completeness, and no server takes it from a socket.
pub fn encode_client(out: &mut Vec<u8>, frame: &ClientFrame<'_>) {
    open(out);
    match frame {
        ClientFrame::Open(frame) => {
            word(out, "type", "open");
            string_if(out, "token", frame.token.as_deref());
            string_if(out, "ticket", frame.ticket.as_deref());
            if let Some(device) = frame.device {
                decimal(out, "device", u64::from(device.0));
            }
            if let Some(after) = frame.changes_after {
                change(out, "changes_after", after);
            }
            number_if(out, "window", frame.window.map(u64::from));
        }
        ClientFrame::Send(send) => encode_send(out, send),
        ClientFrame::Beat { received } => {
            word(out, "type", "beat");
            number(out, "received", *received);
        }
        ClientFrame::Mark { conversation: conv, delivered, read } => {
            word(out, "type", "mark");
            conversation(out, "conv", *conv);
            number_if(out, "delivered", *delivered);
            number_if(out, "read", *read);
        }
        ClientFrame::Pull(pull) => {
            word(out, "type", "pull");
            conversation(out, "conv", pull.conversation);
            match pull.range {
                PullRange::After(after) => number(out, "after", after),
                PullRange::Before(before) => number_if(out, "before", before),
            }
            number_if(out, "limit", pull.limit.map(u64::from));
            number_if(out, "min_seq", pull.min_seq);
        }
        ClientFrame::Changes { after, limit } => {
            word(out, "type", "changes");
            change(out, "after", *after);
            number_if(out, "limit", limit.map(u64::from));
        }
        ClientFrame::Signal { conversation: conv, name, body } => {
            word(out, "type", "signal");
            conversation(out, "conv", *conv);
            string(out, "name", name);
            string(out, "body", body);
        }
        ClientFrame::Auth { token } => {
            word(out, "type", "auth");
            string(out, "token", token);
        }
        ClientFrame::Skip { conversation: conv, id } => {
            word(out, "type", "skip");
            conversation(out, "conv", *conv);
            message_id(out, "id", *id);
        }
        ClientFrame::Conversations { limit, cursor } => {
            word(out, "type", "conversations");
            number_if(out, "limit", limit.map(u64::from));
            string_if(out, "cursor", cursor.as_deref());
        }
    }
    close(out);
}

fn encode_send(out: &mut Vec<u8>, send: &Send<'_>) {
    let short = send.id.is_none() && send.kind == Kind::Text;
    word(out, "type", if short { "message" } else { "send" });
    if let Some(id) = send.id {
        message_id(out, "id", id);
    }
    if let Some(skip) = send.skip {
        message_id(out, "skip", skip);
    }
    match send.target {
        Target::To(user) => decimal(out, "to", user.0),
        Target::Conversation(conv) => conversation(out, "conv", conv),
    }
    if !short {
        word(out, "kind", send.kind.as_str());
    }
    string(out, if short { "text" } else { "body" }, &send.body);
    number_if(out, "reply_to", send.reply_to);
    number_if(out, "target_seq", send.target_seq);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::UserId;

    const ID: &str = "018f0e2a-7c11-7abc-8def-0123456789ab";

    fn refusal(text: &str) -> (ErrorCode, String) {
        match decode_client(text, 100) {
            Ok(frame) => panic!("{text} was read as {frame:?}"),
            Err(error) => (error.code, error.path.unwrap()),
        }
    }

    #[test]
    fn the_short_form_is_a_send_without_an_id() {
        let frame = decode_client(r#"{"type":"message","to":"456","text":"hello"}"#, 100).unwrap();
        let ClientFrame::Send(send) = frame else { panic!() };
        assert_eq!(
            (send.id, send.target, send.kind, &*send.body),
            (None, Target::To(UserId(456)), Kind::Text, "hello")
        );
        assert!(matches!(send.body, Cow::Borrowed(_)));
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        use ErrorCode::{BadRequest, Empty, TooLarge, UnknownType};
        let deep = format!(r#"{{"type":"beat","x":{}{}}}"#, "[".repeat(10_000), "]".repeat(10_000));
        let deep_objects = format!(r#"{{"type":"beat","x":{}1{}}}"#, r#"{"a":"#.repeat(10_000), "}".repeat(10_000));
        let large = format!(r#"{{"type":"message","to":"1","text":"{}"}}"#, "a".repeat(101));
        let cases = [
            ("", BadRequest, "$"),
            ("[]", BadRequest, "$"),
            ("null", BadRequest, "$"),
            (&"[".repeat(10_000), BadRequest, "$"),
            (&deep, BadRequest, "$.x"),
            (&deep_objects, BadRequest, "$.x"),
            (r#"{"type":"beat","received":1} x"#, BadRequest, "$"),
            (r#"{"type":"beat","received":1}{}"#, BadRequest, "$"),
            (r#"{"type":"beat","received":1"#, BadRequest, "$"),
            (r#"{"type":"beat","received":1e400}"#, BadRequest, "$.received"),
            (r#"{"type":"beat","x":1e400}"#, BadRequest, "$.x"),
            (r#"{"type":"beat","received":-1}"#, BadRequest, "$.received"),
            (r#"{"type":"beat","received":1.5}"#, BadRequest, "$.received"),
            (r#"{"type":"beat","received":18446744073709551616}"#, BadRequest, "$.received"),
            (r#"{"type":"beat","received":"1"}"#, BadRequest, "$.received"),
            (r#"{"type":"beat","received":[1]}"#, BadRequest, "$.received"),
            (r#"{"type":"beat"}"#, BadRequest, "$.received"),
            (r#"{"type":"beat","received":1,"received":1}"#, BadRequest, "$.received"),
            (r#"{"type":"beat","type":"beat","received":1}"#, BadRequest, "$.type"),
            (r#"{"type":"beat","received":null,"received":1}"#, BadRequest, "$.received"),
            (r#"{"received":1}"#, BadRequest, "$.type"),
            (r#"{"type":"dance"}"#, UnknownType, "$.type"),
            (r#"{"type":7}"#, BadRequest, "$.type"),
            (r#"{"type":"message","to":456,"text":"x"}"#, BadRequest, "$.to"),
            (r#"{"type":"message","to":"0456","text":"x"}"#, BadRequest, "$.to"),
            (r#"{"type":"message","to":"456","conv":"dm.1.2","text":"x"}"#, BadRequest, "$.to"),
            (r#"{"type":"message","conv":"dm.2.1","text":"x"}"#, BadRequest, "$.conv"),
            (r#"{"type":"message","text":"x"}"#, BadRequest, "$.to"),
            (r#"{"type":"message","to":"456","text":"\ud800"}"#, BadRequest, "$.text"),
            (r#"{"type":"message","to":"456","x":"\ud800"}"#, BadRequest, "$.x"),
            (r#"{"type":"message","to":"456","text":""}"#, Empty, "$.text"),
            (r#"{"type":"message","to":"456"}"#, BadRequest, "$.text"),
            (&large, TooLarge, "$.text"),
            (r#"{"type":"send","to":"456","kind":"text","body":"x"}"#, BadRequest, "$.id"),
            (r#"{"type":"send","id":"x","to":"456","kind":"text","body":"x"}"#, BadRequest, "$.id"),
            (r#"{"type":"pull","conv":"dm.1.2","after":1,"before":2}"#, BadRequest, "$.before"),
            (r#"{"type":"mark","conv":"dm.1.2"}"#, BadRequest, "$.read"),
            (r#"{"type":"open","device":7}"#, BadRequest, "$.device"),
            (r#"{"type":"changes","after":5}"#, BadRequest, "$.after"),
        ];
        for (text, code, path) in cases {
            assert_eq!(refusal(text), (code, path.to_owned()), "{}", &text[..text.len().min(80)]);
        }
        assert_eq!(
            refusal(&format!(r#"{{"type":"send","id":"{ID}","to":"4","kind":"delete","body":""}}"#)),
            (BadRequest, "$.target_seq".to_owned())
        );
    }

    #[test]
    fn an_error_names_the_message_that_it_is_about() {
        let text = format!(r#"{{"type":"send","conv":"dm.1.2","kind":"text","id":"{ID}","body":7}}"#);
        let error = decode_client(&text, 100).unwrap_err();
        assert_eq!(error.id, Some(ID.parse().unwrap()));
        assert_eq!(error.conversation, Some("dm.1.2".parse().unwrap()));
        let error = decode_client(&text.replace("7}", "\"\u{7}\"}"), 100).unwrap_err();
        assert_eq!(error.id, Some(ID.parse().unwrap()), "{error}");
    }

    #[test]
    fn null_is_the_same_as_nothing_and_unknown_fields_are_ignored() {
        let text = r#"{"x":{"y":[1,{"z":null}]},"type":"pull","before":null,"conv":"dm.1.2","limit":1000000000000}"#;
        assert_eq!(
            decode_client(text, 100).unwrap(),
            ClientFrame::Pull(Pull {
                conversation: "dm.1.2".parse().unwrap(),
                range: PullRange::Before(None),
                limit: Some(u32::MAX),
                min_seq: None
            })
        );
    }

    #[test]
    fn a_delete_needs_no_body() {
        let text = format!(r#"{{"type":"send","id":"{ID}","to":"4","kind":"delete","target_seq":3}}"#);
        assert!(matches!(decode_client(&text, 100), Ok(ClientFrame::Send(send)) if send.body.is_empty()));
    }

    #[test]
    fn a_send_over_rest_needs_neither_type_nor_id() {
        let send = decode_send(r#"{"to":"456","body":"hello"}"#, 100).unwrap();
        assert_eq!((send.id, send.kind, &*send.body), (None, Kind::Text, "hello"));
    }
}
