//! One entry of a slot's journal: what was decided, in bytes that never change their meaning.
//!
//! ```text
//!  0 u8   version (1)
//!  1 u8   class: 0 message (takes a seq), 1 control (takes an LSN only)
//!  2 u8   message: kind.  control: 0 read mark
//!  3 u8   reserved, 0
//!  4 u32  device of the author
//!  8 u64  message: seq.  read mark: the seq read
//! 16 u64  countable messages up to that seq
//! 24 u64  server time, milliseconds since 1970
//! 32 u64  author
//! 40 [16] client message id (control: zero)
//! 56 u64  hash of kind, references and body
//! 64 u64  message answered, 0 is none
//! 72 u64  message edited, deleted, reacted to or pinned, 0 is none
//! 80 [17] conversation key
//! 97 ...  body
//! ```
//!
//! All numbers are little-endian. The history view keeps the same bytes.

use wire::ids::{ClientMessageId, ConversationId, DeviceId, UserId};
use wire::protocol::Kind;

/// Bytes in front of the body.
pub const HEADER_BYTES: usize = 97;
const VERSION: u8 = 1;

/// What a record does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Takes the conversation's next seq.
    Message(Kind),
    /// Moves the author's read mark to `seq`.
    ReadMark,
}

/// A journal entry, its body borrowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record<'a> {
    pub class: Class,
    pub conversation: ConversationId,
    pub seq: u64,
    pub countable: u64,
    pub time_ms: u64,
    pub author: UserId,
    pub device: DeviceId,
    pub id: ClientMessageId,
    pub body_hash: u64,
    pub reply_to: u64,
    pub target_seq: u64,
    pub body: &'a str,
}

/// The bytes are not a record that this version understands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a valid record: {0}")]
pub struct RecordError(pub &'static str);

impl<'a> Record<'a> {
    /// Appends the record to `out`.
    pub fn write(&self, out: &mut Vec<u8>) {
        let (class, kind) = match self.class {
            Class::Message(kind) => (0, kind as u8),
            Class::ReadMark => (1, 0),
        };
        out.extend_from_slice(&[VERSION, class, kind, 0]);
        out.extend_from_slice(&self.device.0.to_le_bytes());
        for number in [self.seq, self.countable, self.time_ms, self.author.0] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(&self.id.0);
        for number in [self.body_hash, self.reply_to, self.target_seq] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(&self.conversation.key());
        out.extend_from_slice(self.body.as_bytes());
    }

    /// Reads a whole record.
    pub fn read(bytes: &'a [u8]) -> Result<Self, RecordError> {
        let (header, body) = bytes.split_at_checked(HEADER_BYTES).ok_or(RecordError("shorter than its header"))?;
        let number = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().expect("eight bytes"));
        if header[0] != VERSION {
            return Err(RecordError("unknown version"));
        }
        let class = match (header[1], header[2]) {
            (0, kind) => Class::Message(Kind::from_u8(kind).ok_or(RecordError("unknown kind"))?),
            (1, 0) => Class::ReadMark,
            _ => return Err(RecordError("unknown class")),
        };
        Ok(Self {
            class,
            conversation: ConversationId::from_key(&header[80..97]).ok_or(RecordError("conversation key"))?,
            seq: number(8),
            countable: number(16),
            time_ms: number(24),
            author: UserId(number(32)),
            device: DeviceId(u32::from_le_bytes(header[4..8].try_into().expect("four bytes"))),
            id: ClientMessageId(header[40..56].try_into().expect("sixteen bytes")),
            body_hash: number(56),
            reply_to: number(64),
            target_seq: number(72),
            body: std::str::from_utf8(body).map_err(|_| RecordError("body is not UTF-8"))?,
        })
    }
}

/// The hash that tells a repeated send from another message under the same id. It never changes:
/// rapidhash v3 of kind, references and body.
pub fn body_hash(kind: Kind, reply_to: u64, target_seq: u64, body: &[u8]) -> u64 {
    let of_body = rapidhash::v3::rapidhash_v3(body);
    let mut head = [0; 25];
    head[0] = kind as u8;
    head[1..9].copy_from_slice(&reply_to.to_le_bytes());
    head[9..17].copy_from_slice(&target_seq.to_le_bytes());
    head[17..25].copy_from_slice(&of_body.to_le_bytes());
    rapidhash::v3::rapidhash_v3(&head)
}

/// Appends `bytes` behind their length.
pub fn write_prefixed(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    out.extend_from_slice(bytes);
}

/// Splits what [`write_prefixed`] wrote; ends early if the last entry is cut short.
pub fn prefixed(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (length, rest) = bytes.split_at_checked(4)?;
        let length = u32::from_le_bytes(length.try_into().expect("four bytes")) as usize;
        let (entry, rest) = rest.split_at_checked(length)?;
        bytes = rest;
        Some(entry)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(body: &str) -> Record<'_> {
        Record {
            class: Class::Message(Kind::Text),
            conversation: ConversationId::direct(UserId(7), UserId(3)),
            seq: 11,
            countable: 9,
            time_ms: 1_700_000_000_000,
            author: UserId(7),
            device: DeviceId(2),
            id: ClientMessageId([5; 16]),
            body_hash: body_hash(Kind::Text, 0, 0, body.as_bytes()),
            reply_to: 4,
            target_seq: 0,
            body,
        }
    }

    #[test]
    fn a_record_reads_back_as_itself() {
        let mut bytes = Vec::new();
        record("grüße").write(&mut bytes);
        assert_eq!(Record::read(&bytes), Ok(record("grüße")));
        assert_eq!(bytes.len(), HEADER_BYTES + "grüße".len());
    }

    /// Journals outlive releases: these exact bytes must stay readable, with this meaning.
    #[test]
    fn the_bytes_of_version_1_stay_as_they_are() {
        let mut bytes = Vec::new();
        record("hi").write(&mut bytes);
        let hex: String = bytes.iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"));
        assert_eq!(
            hex,
            concat!(
                "01000000",
                "02000000",
                "0b00000000000000",
                "0900000000000000",
                "0068e5cf8b010000",
                "0700000000000000",
                "05050505050505050505050505050505",
                "HASH",
                "0400000000000000",
                "0000000000000000",
                "0000000000000000030000000000000007",
                "6869"
            )
            .replace(
                "HASH",
                &body_hash(Kind::Text, 0, 0, b"hi")
                    .to_le_bytes()
                    .iter()
                    .fold(String::new(), |h, b| h + &format!("{b:02x}"))
            )
        );
    }

    #[test]
    fn hashes_of_version_1_stay_as_they_are() {
        assert_eq!(body_hash(Kind::Text, 0, 0, b"hi"), 10_571_039_189_521_636_307);
    }

    #[test]
    fn cut_or_unknown_bytes_are_an_error() {
        let mut bytes = Vec::new();
        record("x").write(&mut bytes);
        for cut in 0..HEADER_BYTES {
            assert!(Record::read(&bytes[..cut]).is_err());
        }
        bytes[0] = 2;
        assert_eq!(Record::read(&bytes), Err(RecordError("unknown version")));
    }
}
