//! JSON written by hand: fields one behind the other, each with a comma behind it.

use crate::ids::{ChangeNumber, ClientMessageId, ConversationId};

/// Opens an object.
pub(super) fn open(out: &mut Vec<u8>) {
    out.push(b'{');
}

/// Closes an object: the comma behind its last field becomes the brace.
pub(super) fn close(out: &mut Vec<u8>) {
    close_with(out, b'}');
}

/// Opens an array as a field.
pub(super) fn open_array(out: &mut Vec<u8>, key: &str) {
    name(out, key);
    out.push(b'[');
}

/// Closes an array that is a field.
pub(super) fn close_array(out: &mut Vec<u8>) {
    close_with(out, b']');
    out.push(b',');
}

fn close_with(out: &mut Vec<u8>, end: u8) {
    match out.last_mut() {
        Some(comma) if *comma == b',' => *comma = end,
        _ => out.push(end),
    }
}

/// The name of a field; its value follows.
pub(super) fn name(out: &mut Vec<u8>, key: &str) {
    out.push(b'"');
    out.extend_from_slice(key.as_bytes());
    out.extend_from_slice(b"\":");
}

pub(super) fn number(out: &mut Vec<u8>, key: &str, value: u64) {
    name(out, key);
    digits(out, value);
    out.push(b',');
}

pub(super) fn number_if(out: &mut Vec<u8>, key: &str, value: Option<u64>) {
    if let Some(value) = value {
        number(out, key, value);
    }
}

pub(super) fn flag(out: &mut Vec<u8>, key: &str, value: bool) {
    name(out, key);
    out.extend_from_slice(if value { b"true," } else { b"false," });
}

pub(super) fn string(out: &mut Vec<u8>, key: &str, value: &str) {
    name(out, key);
    out.push(b'"');
    escaped(out, value);
    out.extend_from_slice(b"\",");
}

pub(super) fn string_if(out: &mut Vec<u8>, key: &str, value: Option<&str>) {
    if let Some(value) = value {
        string(out, key, value);
    }
}

/// A text that is known to need no escapes.
pub(super) fn word(out: &mut Vec<u8>, key: &str, value: &str) {
    name(out, key);
    out.push(b'"');
    out.extend_from_slice(value.as_bytes());
    out.extend_from_slice(b"\",");
}

/// A number as a string, as identifiers are.
pub(super) fn decimal(out: &mut Vec<u8>, key: &str, value: u64) {
    name(out, key);
    out.push(b'"');
    digits(out, value);
    out.extend_from_slice(b"\",");
}

pub(super) fn conversation(out: &mut Vec<u8>, key: &str, value: ConversationId) {
    name(out, key);
    match value {
        ConversationId::Direct(low, high) => {
            out.extend_from_slice(b"\"dm.");
            digits(out, low.0);
            out.push(b'.');
            digits(out, high.0);
        }
        ConversationId::Group(group) => {
            out.extend_from_slice(b"\"gr.");
            digits(out, group);
        }
    }
    out.extend_from_slice(b"\",");
}

pub(super) fn change(out: &mut Vec<u8>, key: &str, value: ChangeNumber) {
    name(out, key);
    out.push(b'"');
    digits(out, value.epoch);
    out.push(b'.');
    digits(out, value.counter);
    out.extend_from_slice(b"\",");
}

pub(super) fn message_id(out: &mut Vec<u8>, key: &str, value: ClientMessageId) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut uuid = [b'-'; 36];
    let mut to = 0;
    for byte in value.0 {
        if matches!(to, 8 | 13 | 18 | 23) {
            to += 1;
        }
        uuid[to] = HEX[usize::from(byte >> 4)];
        uuid[to + 1] = HEX[usize::from(byte & 15)];
        to += 2;
    }
    name(out, key);
    out.push(b'"');
    out.extend_from_slice(&uuid);
    out.extend_from_slice(b"\",");
}

fn digits(out: &mut Vec<u8>, mut value: u64) {
    let mut buffer = [0; 20];
    let mut from = buffer.len();
    loop {
        from -= 1;
        buffer[from] = b'0' + (value % 10) as u8;
        value /= 10;
        if value == 0 {
            break;
        }
    }
    out.extend_from_slice(&buffer[from..]);
}

fn must_escape(byte: u8) -> bool {
    byte < 0x20 || byte == b'"' || byte == b'\\'
}

fn escaped(out: &mut Vec<u8>, text: &str) {
    let bytes = text.as_bytes();
    // Without an early exit, so that the compiler looks at many bytes at a time.
    let plain = !bytes.iter().fold(false, |found, &byte| found | must_escape(byte));
    if plain {
        out.extend_from_slice(bytes);
        return;
    }
    for &byte in bytes {
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            0..0x20 => {
                const HEX: &[u8; 16] = b"0123456789abcdef";
                out.extend_from_slice(b"\\u00");
                out.push(HEX[usize::from(byte >> 4)]);
                out.push(HEX[usize::from(byte & 15)]);
            }
            byte => out.push(byte),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_back() {
        let every: String = (0..0x180).filter_map(char::from_u32).collect();
        let mut out = Vec::new();
        open(&mut out);
        string(&mut out, "a", &every);
        number(&mut out, "b", u64::MAX);
        number(&mut out, "c", 0);
        decimal(&mut out, "d", 1_234_567_890);
        message_id(&mut out, "e", ClientMessageId([0xab; 16]));
        open_array(&mut out, "f");
        close_array(&mut out);
        close(&mut out);
        let value: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(value["a"], every);
        assert_eq!(value["b"], u64::MAX);
        assert_eq!(value["c"], 0);
        assert_eq!(value["d"], "1234567890");
        assert_eq!(value["e"], ClientMessageId([0xab; 16]).to_string());
        assert_eq!(value["f"], serde_json::json!([]));
    }
}
