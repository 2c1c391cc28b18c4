//! The client's half of the JSON protocol: what a phone says, and what it understands of what it hears.
//!
//! The server's half is in `wire`; this one is written apart from it on purpose, from the protocol's page:
//! a mistake that both halves shared would go unseen.

use std::borrow::Cow;
use std::fmt;
use std::io::Write as _;

use serde::Deserialize;
use serde::de::{Deserializer, Visitor};
use wire::ids::{ChangeNumber, ClientMessageId, ConversationId};

/// Text that borrows from the frame unless something in it is escaped.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Text<'a>(pub Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Borrowing;
        impl<'de> Visitor<'de> for Borrowing {
            type Value = Text<'de>;
            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("text")
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }
            fn visit_str<E>(self, text: &str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(Borrowing)
    }
}

/// A number, as a number or as a string: 64 bits do not fit into those of every reader.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Number(pub u64);

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl Visitor<'_> for Either {
            type Value = Number;
            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a number, or one in a string")
            }
            fn visit_u64<E>(self, number: u64) -> Result<Number, E> {
                Ok(Number(number))
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Number, E> {
                text.parse().map(Number).map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Either)
    }
}

/// Any frame from the server, as far as a phone looks at it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Heard<'a> {
    #[serde(rename = "type", borrow)]
    pub kind: Text<'a>,
    #[serde(borrow)]
    pub id: Option<Text<'a>>,
    #[serde(borrow)]
    pub conv: Option<Text<'a>>,
    #[serde(borrow)]
    pub from: Option<Text<'a>>,
    #[serde(borrow)]
    pub body: Option<Text<'a>>,
    #[serde(borrow)]
    pub change: Option<Text<'a>>,
    #[serde(borrow)]
    pub code: Option<Text<'a>>,
    #[serde(borrow)]
    pub result: Option<Text<'a>>,
    pub seq: Number,
    pub n: Number,
    pub time: Number,
    pub generation: Number,
    pub head: Number,
    pub beat_ms: u64,
    pub offline_ms: u64,
    pub after_ms: Option<u64>,
    pub spread_ms: u64,
    pub retryable: bool,
    pub dup: bool,
    pub more: bool,
    pub ahead: bool,
    #[serde(borrow)]
    pub conversations: Vec<Listed<'a>>,
    #[serde(borrow)]
    pub messages: Vec<Item<'a>>,
}

/// A conversation in a list.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Listed<'a> {
    #[serde(borrow)]
    pub conv: Text<'a>,
    pub head: Number,
}

/// A message in a page.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Item<'a> {
    pub seq: Number,
    #[serde(borrow)]
    pub from: Text<'a>,
    #[serde(borrow)]
    pub body: Text<'a>,
    #[serde(borrow)]
    pub id: Option<Text<'a>>,
    #[serde(borrow)]
    pub device: Text<'a>,
    pub time: Number,
}

impl<'a> Heard<'a> {
    /// Reads a frame.
    pub fn read(text: &'a str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(text)
    }
}

fn say(out: &mut Vec<u8>, arguments: fmt::Arguments<'_>) {
    out.write_fmt(arguments).expect("writing into a Vec does not fail");
}

/// `open`; the token went with the upgrade. A window as usual is not named.
pub fn open(out: &mut Vec<u8>, device: u32, changes_after: Option<ChangeNumber>, window: u32) {
    const USUAL: u32 = 20;
    say(out, format_args!(r#"{{"type":"open","device":"{device}""#));
    if let Some(change) = changes_after {
        say(out, format_args!(r#","changes_after":"{change}""#));
    }
    if window > USUAL {
        say(out, format_args!(r#","window":{window}"#));
    }
    out.push(b'}');
}

/// `send`; `body` must need no escapes.
pub fn send(out: &mut Vec<u8>, id: ClientMessageId, conversation: ConversationId, body: &str) {
    say(out, format_args!(r#"{{"type":"send","id":"{id}","conv":"{conversation}","kind":"text","body":"{body}"}}"#));
}

/// `beat`.
pub fn beat(out: &mut Vec<u8>, received: u64) {
    say(out, format_args!(r#"{{"type":"beat","received":{received}}}"#));
}

/// `mark`.
pub fn mark(out: &mut Vec<u8>, conversation: ConversationId, seq: u64) {
    say(out, format_args!(r#"{{"type":"mark","conv":"{conversation}","delivered":{seq},"read":{seq}}}"#));
}

/// `pull`, ascending.
pub fn pull(out: &mut Vec<u8>, conversation: ConversationId, after: u64) {
    say(out, format_args!(r#"{{"type":"pull","conv":"{conversation}","after":{after},"limit":100}}"#));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_understood_with_and_without_escapes_and_with_unknown_fields() {
        let heard = Heard::read(
            r#"{"type":"message","conv":"dm.1.2","seq":7,"body":"a \"b\"","n":"3","new":{"x":[1]},"change":"1.4"}"#,
        )
        .unwrap();
        assert_eq!((heard.kind.0.as_ref(), heard.seq.0, heard.n.0), ("message", 7, 3));
        assert_eq!(heard.body.unwrap().0, r#"a "b""#);
        let page = Heard::read(r#"{"type":"page","messages":[{"seq":1,"from":"9","body":"x"}],"more":true}"#).unwrap();
        assert_eq!((page.messages[0].seq.0, page.more), (1, true));
        assert!(Heard::read("7").is_err());
    }

    #[test]
    fn what_is_said_is_json() {
        let conversation = "dm.1.2".parse().unwrap();
        let mut out = Vec::new();
        open(&mut out, 1, Some(ChangeNumber { epoch: 1, counter: 2 }), 1);
        assert_eq!(out, br#"{"type":"open","device":"1","changes_after":"1.2"}"#);
        out.clear();
        send(&mut out, ClientMessageId([0; 16]), conversation, "hello");
        let value: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(value["id"], "00000000-0000-0000-0000-000000000000");
        for write in [beat as fn(&mut Vec<u8>, u64), |out, n| mark(out, "dm.1.2".parse().unwrap(), n)] {
            out.clear();
            write(&mut out, 5);
            assert!(serde_json::from_slice::<serde_json::Value>(&out).is_ok());
        }
    }
}
