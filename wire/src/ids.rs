//! The names of things: users, devices, conversations, messages, changes.
//!
//! In JSON every identifier is a string. Parsing is strict, so that one thing has exactly one name.

use std::fmt;

use rkyv::{Archive, Deserialize, Serialize};

/// A user: any 64-bit number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Archive, Serialize, Deserialize)]
pub struct UserId(pub u64);

/// One of a user's devices. Zero is the device of requests without a socket (REST).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Archive, Serialize, Deserialize)]
pub struct DeviceId(pub u32);

/// A conversation's name: it says by itself what kind it is and, if direct, who is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Archive, Serialize, Deserialize)]
pub enum ConversationId {
    /// Two users, the lower first: `dm.123.456`. A user may talk to themself: `dm.5.5`.
    Direct(UserId, UserId),
    /// A group: `gr.789`.
    Group(u64),
}

/// Sixteen bytes chosen by the client for one message; best a UUIDv7.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Archive, Serialize, Deserialize)]
pub struct ClientMessageId(pub [u8; 16]);

/// A place in a user's stream of changes: `"<epoch>.<counter>"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Archive, Serialize, Deserialize)]
pub struct ChangeNumber {
    /// Epoch of the user's slot when the number was given.
    pub epoch: u64,
    /// Counter within the epoch, from 1.
    pub counter: u64,
}

impl ConversationId {
    /// The direct conversation of two users, in either order.
    pub fn direct(one: UserId, other: UserId) -> Self {
        Self::Direct(one.min(other), one.max(other))
    }

    /// The other one's name, if this is a direct conversation that `user` is in.
    pub fn peer_of(self, user: UserId) -> Option<UserId> {
        match self {
            Self::Direct(low, high) if user == low => Some(high),
            Self::Direct(low, high) if user == high => Some(low),
            Self::Direct(..) | Self::Group(_) => None,
        }
    }

    /// Bytes of [`Self::key`].
    pub const KEY_BYTES: usize = 17;

    /// A fixed-size key that sorts by kind and number: a tag byte and two big-endian numbers.
    pub fn key(self) -> [u8; Self::KEY_BYTES] {
        let (tag, first, second) = match self {
            Self::Direct(low, high) => (0, low.0, high.0),
            Self::Group(group) => (1, group, 0),
        };
        let mut key = [0; Self::KEY_BYTES];
        key[0] = tag;
        key[1..9].copy_from_slice(&first.to_be_bytes());
        key[9..17].copy_from_slice(&second.to_be_bytes());
        key
    }

    /// The conversation that `key` names, unless it is not canonical.
    pub fn from_key(key: &[u8]) -> Option<Self> {
        let key: &[u8; Self::KEY_BYTES] = key.try_into().ok()?;
        let number = |at: usize| key[at..at + 8].iter().fold(0_u64, |n, &byte| n << 8 | u64::from(byte));
        match (key[0], number(1), number(9)) {
            (0, low, high) if low <= high => Some(Self::Direct(UserId(low), UserId(high))),
            (1, group, 0) => Some(Self::Group(group)),
            _ => None,
        }
    }
}

/// The text is not the one canonical name of anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a valid {0}")]
pub struct IdError(pub &'static str);

/// A decimal number as identifiers use it: no sign, no leading zero, no more than `u64`.
fn decimal(text: &str) -> Option<u64> {
    let canonical =
        !text.is_empty() && (text == "0" || !text.starts_with('0')) && text.bytes().all(|b| b.is_ascii_digit());
    canonical.then(|| text.parse().ok()).flatten()
}

impl std::str::FromStr for UserId {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        decimal(text).map(Self).ok_or(IdError("user id (a decimal number below 2^64, as a string)"))
    }
}

impl std::str::FromStr for DeviceId {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        decimal(text)
            .and_then(|n| u32::try_from(n).ok())
            .map(Self)
            .ok_or(IdError("device id (a decimal number below 2^32, as a string)"))
    }
}

impl std::str::FromStr for ConversationId {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let error = IdError("conversation id (`dm.LOWER.HIGHER` or `gr.NUMBER`)");
        let (kind, rest) = text.split_once('.').ok_or(error)?;
        match kind {
            "dm" => {
                let (low, high) = rest.split_once('.').ok_or(error)?;
                let (low, high) = (decimal(low).ok_or(error)?, decimal(high).ok_or(error)?);
                if low <= high { Ok(Self::Direct(UserId(low), UserId(high))) } else { Err(error) }
            }
            "gr" => decimal(rest).map(Self::Group).ok_or(error),
            _ => Err(error),
        }
    }
}

impl std::str::FromStr for ChangeNumber {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let error = IdError("change number (`EPOCH.COUNTER`)");
        let (epoch, counter) = text.split_once('.').ok_or(error)?;
        Ok(Self { epoch: decimal(epoch).ok_or(error)?, counter: decimal(counter).ok_or(error)? })
    }
}

impl std::str::FromStr for ClientMessageId {
    type Err = IdError;
    /// Either a UUID (36 characters) or base64url without padding (22 characters).
    fn from_str(text: &str) -> Result<Self, IdError> {
        let error = IdError("client message id (a UUID, or 16 bytes in base64url without padding)");
        if text.len() == 36 { parse_uuid(text).ok_or(error) } else { parse_base64url(text).ok_or(error) }
    }
}

fn parse_uuid(text: &str) -> Option<ClientMessageId> {
    let mut id = [0; 16];
    let mut nibbles = 0;
    for (at, byte) in text.bytes().enumerate() {
        if matches!(at, 8 | 13 | 18 | 23) {
            if byte != b'-' {
                return None;
            }
            continue;
        }
        let digit = (byte as char).to_digit(16)? as u8;
        id[nibbles / 2] |= if nibbles % 2 == 0 { digit << 4 } else { digit };
        nibbles += 1;
    }
    Some(ClientMessageId(id))
}

fn parse_base64url(text: &str) -> Option<ClientMessageId> {
    use base64::Engine as _;
    let mut id = [0; 18];
    if text.len() != 22 {
        return None;
    }
    let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode_slice(text, &mut id).ok()?;
    (bytes == 16).then(|| ClientMessageId(id[..16].try_into().expect("a slice of sixteen bytes")))
}

impl ClientMessageId {
    /// Milliseconds since 1970 that a UUIDv7 carries; `None` for any other id. A hint only: clients may lie.
    pub fn time_ms(self) -> Option<u64> {
        let version_7 = self.0[6] >> 4 == 7 && self.0[8] >> 6 == 0b10;
        version_7.then(|| self.0[..6].iter().fold(0, |ms, &byte| ms << 8 | u64::from(byte)))
    }
}

impl fmt::Display for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for ConversationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Direct(low, high) => write!(f, "dm.{low}.{high}"),
            Self::Group(group) => write!(f, "gr.{group}"),
        }
    }
}

impl fmt::Display for ChangeNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch, self.counter)
    }
}

impl fmt::Display for ClientMessageId {
    /// As a UUID.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, byte) in self.0.iter().enumerate() {
            if matches!(at, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_reads_back_as_itself_and_nothing_else_is_accepted() {
        for name in ["dm.1.2", "dm.5.5", "dm.0.18446744073709551615", "gr.7"] {
            assert_eq!(name.parse::<ConversationId>().unwrap().to_string(), name);
        }
        for bad in
            ["dm.2.1", "dm.01.2", "dm.1", "dm.1.2.3", "gr.", "gr.-1", "gr.+1", "xx.1", "", "dm.1.18446744073709551616"]
        {
            assert!(bad.parse::<ConversationId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn keys_read_back_and_refuse_what_is_not_canonical() {
        let id = ConversationId::direct(UserId(9), UserId(3));
        assert_eq!(ConversationId::from_key(&id.key()), Some(id));
        let mut swapped = id.key();
        swapped[1..17].rotate_left(8);
        assert_eq!(ConversationId::from_key(&swapped), None);
    }

    #[test]
    fn message_ids_come_as_uuid_or_base64url() {
        let uuid: ClientMessageId = "018f0e2a-7c11-7abc-8def-0123456789ab".parse().unwrap();
        assert_eq!(uuid.to_string(), "018f0e2a-7c11-7abc-8def-0123456789ab");
        assert_eq!(uuid.time_ms(), Some(0x018f_0e2a_7c11));
        assert_eq!("AY8OKnwReryN7wEjRWeJqw".parse::<ClientMessageId>().unwrap(), uuid);
        for bad in
            ["", "AY8OKnwReryN7wEjRWeJq", "018f0e2a-7c11-7abc-8def-0123456789a", "018f0e2a_7c11-7abc-8def-0123456789ab"]
        {
            assert!(bad.parse::<ClientMessageId>().is_err(), "{bad}");
        }
    }
}
