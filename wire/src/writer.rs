//! WebSocket frames into a buffer of the caller's, one behind the other.
//!
//! A server writes frames without a mask; a client gives each a mask of its own, which it draws from
//! a source that nobody else can predict (section 10.3), because this crate has no randomness.

use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::{Control, Data, OpCode};

use crate::close::CloseCode;
use crate::websocket::{CONTROL_BYTES_MAX, mask_in_place};

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opcode {
    /// Goes on with the message before.
    Continuation,
    /// UTF-8.
    Text,
    /// Anything.
    Binary,
    /// Ends the connection.
    Close,
    /// Asks for a pong.
    Ping,
    /// Answers a ping.
    Pong,
}

impl Opcode {
    fn of_tungstenite(self) -> OpCode {
        match self {
            Self::Continuation => OpCode::Data(Data::Continue),
            Self::Text => OpCode::Data(Data::Text),
            Self::Binary => OpCode::Data(Data::Binary),
            Self::Close => OpCode::Control(Control::Close),
            Self::Ping => OpCode::Control(Control::Ping),
            Self::Pong => OpCode::Control(Control::Pong),
        }
    }
}

/// Appends a header. With a mask, the caller masks the payload that it puts behind it.
pub fn write_header(out: &mut Vec<u8>, opcode: Opcode, is_final: bool, mask: Option<[u8; 4]>, payload_bytes: usize) {
    let header = FrameHeader { is_final, opcode: opcode.of_tungstenite(), mask, ..FrameHeader::default() };
    header.format(payload_bytes as u64, out).expect("writing into a Vec does not fail");
}

/// Appends a whole frame.
pub fn write_frame(out: &mut Vec<u8>, opcode: Opcode, mask: Option<[u8; 4]>, payload: &[u8]) {
    write_header(out, opcode, true, mask, payload.len());
    let start = out.len();
    out.extend_from_slice(payload);
    if let Some(mask) = mask {
        mask_in_place(&mut out[start..], mask);
    }
}

/// Appends a text frame whose payload `write` appends: encoded in place, without a buffer between.
pub fn write_text_with(out: &mut Vec<u8>, mask: Option<[u8; 4]>, write: impl FnOnce(&mut Vec<u8>)) {
    // Most payloads are 126 to 65,535 bytes long, so that room for that header is right at once.
    const LIKELY: usize = 4;
    let mask_bytes = mask.map_or(0, |mask| mask.len());
    let start = out.len();
    out.resize(start + LIKELY + mask_bytes, 0);
    let payload = out.len();
    write(out);
    let payload_bytes = out.len() - payload;

    let header = FrameHeader { is_final: true, opcode: OpCode::Data(Data::Text), mask, ..FrameHeader::default() };
    let header_bytes = header.len(payload_bytes as u64);
    let moved = start + header_bytes;
    if moved > payload {
        out.resize(out.len() + (moved - payload), 0);
    }
    if moved != payload {
        out.copy_within(payload..payload + payload_bytes, moved);
        out.truncate(moved + payload_bytes);
    }
    header.format(payload_bytes as u64, &mut &mut out[start..moved]).expect("the header fits the room made for it");
    if let Some(mask) = mask {
        mask_in_place(&mut out[moved..], mask);
    }
}

/// Appends a close frame; of a reason that is too long, as many characters as fit.
pub fn write_close(out: &mut Vec<u8>, mask: Option<[u8; 4]>, code: u16, reason: &str) {
    let mut payload = [0; CONTROL_BYTES_MAX];
    let reason = &reason.as_bytes()[..reason.floor_char_boundary(CONTROL_BYTES_MAX - 2)];
    let bytes = 2 + reason.len();
    payload[..2].copy_from_slice(&code.to_be_bytes());
    payload[2..bytes].copy_from_slice(reason);
    write_frame(out, Opcode::Close, mask, &payload[..bytes]);
}

/// Appends a close frame of the server's.
pub fn write_close_code(out: &mut Vec<u8>, code: CloseCode) {
    write_close(out, None, code.number(), code.reason());
}

/// Appends the answer to a peer's close frame: its own code back, or none if it gave none.
pub fn write_close_answer(out: &mut Vec<u8>, mask: Option<[u8; 4]>, code: Option<u16>) {
    match code {
        Some(code) => write_close(out, mask, code, ""),
        None => write_frame(out, Opcode::Close, mask, &[]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_written_in_place_is_the_same_frame() {
        for bytes in [0, 1, 125, 126, 127, 65_535, 65_536, 70_000] {
            for mask in [None, Some([9, 8, 7, 6])] {
                let text = "x".repeat(bytes);
                let (mut in_place, mut whole) = (b"before".to_vec(), b"before".to_vec());
                write_text_with(&mut in_place, mask, |out| out.extend_from_slice(text.as_bytes()));
                write_frame(&mut whole, Opcode::Text, mask, text.as_bytes());
                assert!(in_place == whole, "{bytes} bytes, mask {mask:?}");
            }
        }
    }

    #[test]
    fn a_reason_that_is_too_long_is_cut_between_characters() {
        let mut out = Vec::new();
        write_close(&mut out, None, 4001, &"é".repeat(100));
        assert_eq!(out.len(), 2 + 2 + 122);
        assert!(std::str::from_utf8(&out[4..]).is_ok());
    }
}
