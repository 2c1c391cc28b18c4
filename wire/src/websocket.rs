//! WebSocket (RFC 6455) without I/O: frames in and out of buffers that belong to the caller.
//!
//! ```text
//!  0               1               2               3
//! +-+-+-+-+-------+-+-------------+-------------------------------+
//! |F|R|R|R| opcode|M| length (7)  | length (16 or 64 bits, if     |
//! |I|S|S|S|  (4)  |A|             | the 7 bits say 126 or 127)    |
//! |N|V|V|V|       |S|             |                               |
//! +-+-+-+-+-------+K+-------------+-------------------------------+
//! | mask (4 bytes, if M: always from a client, never to one)      |
//! +---------------------------------------------------------------+
//! | payload, XORed with the mask                                  |
//! +---------------------------------------------------------------+
//! ```
//!
//! [`Decoder`] is the state of one direction of one connection, small and `Copy`. It borrows what it
//! can: a message that lies in the input whole and in one frame comes out as a slice of the input.
//! Anything else comes out in parts, as it arrives, each byte looked at once. `reader.rs` joins the
//! parts into messages and holds memory only while one is unfinished; `writer.rs` is the way out.
//!
//! Headers are read and written by tungstenite; masks, fragments, text, limits and closing are here.

use std::io::Cursor;

use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::{Control, Data, OpCode};

use crate::close::{self, CloseCode};
use crate::utf8::Utf8;

/// Bytes of the longest header.
pub const HEADER_BYTES_MAX: usize = 14;
/// Bytes of the longest payload of a control frame.
pub const CONTROL_BYTES_MAX: usize = 125;

/// Which end of the connection we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Reads masked frames, writes unmasked ones.
    Server,
    /// Reads unmasked frames, writes masked ones.
    Client,
}

/// How much one message may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one message, over all its fragments.
    pub message_bytes_max: u32,
    /// Frames of one message.
    pub fragments_max: u32,
}

impl Limits {
    /// Limits under which every body of up to `body_bytes_max` bytes can be sent as JSON: each of its
    /// bytes may be escaped in six, and the other fields need room. A body above it can then be answered
    /// with an error, which a client can tell from a broken connection.
    pub const fn for_bodies_of(body_bytes_max: u32) -> Self {
        Self { message_bytes_max: body_bytes_max.saturating_mul(6).saturating_add(16 * 1024), fragments_max: 32 }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self::for_bodies_of(64 * 1024)
    }
}

/// What a peer did that ends the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// RSV1 to RSV3 are for extensions, and none was agreed upon.
    #[error("a reserved bit is set")]
    ReservedBits,
    /// Opcodes 3 to 7 and 11 to 15.
    #[error("the opcode is reserved")]
    ReservedOpcode,
    /// Section 5.1: a client masks every frame.
    #[error("a frame from a client is not masked")]
    Unmasked,
    /// Section 5.1: a server masks none.
    #[error("a frame from a server is masked")]
    Masked,
    /// Section 5.2: the shortest form that fits, and never the highest bit.
    #[error("the length is not written in its one valid form")]
    BadLength,
    /// Section 5.5: at most 125 bytes, in one frame.
    #[error("a control frame is too long or fragmented")]
    BadControl,
    /// A continuation of nothing.
    #[error("a continuation frame without a message to continue")]
    StrayContinuation,
    /// A new message inside an unfinished one.
    #[error("a new message began before the last one ended")]
    Interleaved,
    /// One byte, or a number that may not travel.
    #[error("the close code is not valid")]
    BadCloseCode,
    /// In a message, at the first bad byte, or in the reason of a close.
    #[error("text is not UTF-8")]
    BadText,
    /// By what the header declares; nothing was allocated for it.
    #[error("a message of {bytes} bytes or more is over the limit of {bytes_max}")]
    TooLarge {
        /// Bytes so far, with those that the header declares.
        bytes: u64,
        /// The limit.
        bytes_max: u32,
    },
    /// More frames than one message may have.
    #[error("a message in more than {fragments_max} fragments")]
    TooManyFragments {
        /// The limit.
        fragments_max: u32,
    },
}

/// The close code that tells the peer about `error`.
pub fn close_code(error: FrameError) -> CloseCode {
    match error {
        FrameError::ReservedBits
        | FrameError::ReservedOpcode
        | FrameError::Unmasked
        | FrameError::Masked
        | FrameError::BadLength
        | FrameError::BadControl
        | FrameError::StrayContinuation
        | FrameError::Interleaved
        | FrameError::BadCloseCode => CloseCode::Protocol,
        FrameError::BadText => CloseCode::BadText,
        FrameError::TooLarge { .. } | FrameError::TooManyFragments { .. } => CloseCode::TooBig,
    }
}

/// The reason of a close frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Close<'a> {
    /// The number.
    pub code: u16,
    /// For a person.
    pub reason: &'a str,
}

/// What came out of the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step<'a> {
    /// A whole text message.
    Text(&'a str),
    /// A whole binary message.
    Binary(&'a [u8]),
    /// The next bytes of a message that did not come in one piece; text is checked so far.
    Part {
        /// The bytes, unmasked.
        payload: &'a [u8],
        /// Whether the message is text.
        text: bool,
        /// Whether the message ends with them.
        last: bool,
    },
    /// To be answered by a pong with the same payload.
    Ping(&'a [u8]),
    /// An answer to a ping, or a sign of life.
    Pong(&'a [u8]),
    /// The peer closes. Whatever follows is swallowed.
    Close(Option<Close<'a>>),
}

/// One step of decoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decoded<'a> {
    /// Bytes at the front of the input that are done with.
    pub bytes: usize,
    /// What they said, if that is anything yet.
    pub step: Option<Step<'a>>,
}

/// A step before anything is borrowed for it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Found {
    pub(crate) what: What,
    pub(crate) start: usize,
    pub(crate) end: usize,
}

/// A step's kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum What {
    Text,
    Binary,
    Part { text: bool, last: bool },
    Ping,
    Pong,
    Close,
}

impl Found {
    /// The step, with its payload out of `input`. A whole text is checked here, once.
    pub(crate) fn step(self, input: &[u8]) -> Result<Step<'_>, FrameError> {
        let payload = &input[self.start..self.end];
        Ok(match self.what {
            What::Text => Step::Text(std::str::from_utf8(payload).map_err(|_| FrameError::BadText)?),
            What::Binary => Step::Binary(payload),
            What::Part { text, last } => Step::Part { payload, text, last },
            What::Ping => Step::Ping(payload),
            What::Pong => Step::Pong(payload),
            What::Close => Step::Close(read_close(payload)?),
        })
    }
}

/// The kind of message that is being received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Open {
    /// None.
    No,
    Text,
    Binary,
    /// A close frame came: the rest does not matter.
    Closed,
}

/// State of one receiving direction.
#[derive(Debug, Clone, Copy)]
pub struct Decoder {
    role: Role,
    open: Open,
    /// The frame in progress, or the last one, ends the message.
    is_final: bool,
    /// The header of the frame in progress was read; `left` bytes of its payload are to come.
    in_payload: bool,
    left: u32,
    /// Turned as bytes are consumed, so that its first byte belongs to the next byte of payload.
    mask: [u8; 4],
    message_bytes: u32,
    fragments: u32,
    utf8: Utf8,
}

// An idle connection holds this and nothing else.
const _: () = assert!(size_of::<Decoder>() <= 24);

impl Decoder {
    /// A connection whose handshake has just ended.
    pub fn new(role: Role) -> Self {
        Self {
            role,
            open: Open::No,
            is_final: true,
            in_payload: false,
            left: 0,
            mask: [0; 4],
            message_bytes: 0,
            fragments: 0,
            utf8: Utf8::default(),
        }
    }

    /// Whether a message has begun and not ended, so that parts of it may be with the caller.
    pub fn is_mid_message(&self) -> bool {
        matches!(self.open, Open::Text | Open::Binary)
    }

    /// Whether no frame and no message has begun that has not ended, and no close frame came.
    pub fn is_between_frames(&self) -> bool {
        self.open == Open::No && !self.in_payload
    }

    /// Takes the next step at the front of `input`, unmasking in place.
    ///
    /// Zero bytes and no step mean that more input is needed; what is left over then is less than
    /// [`HEADER_BYTES_MAX`] + [`CONTROL_BYTES_MAX`] bytes, and the caller shows it again with more
    /// behind it. Bytes that were consumed are never shown again.
    pub fn decode<'a>(&mut self, limits: Limits, input: &'a mut [u8]) -> Result<Decoded<'a>, FrameError> {
        let (bytes, found) = self.advance(limits, input)?;
        let step = found.map(|found| found.step(input)).transpose()?;
        Ok(Decoded { bytes, step })
    }

    /// The same without borrowing: what was found, and where in `input` its payload lies.
    pub(crate) fn advance(&mut self, limits: Limits, input: &mut [u8]) -> Result<(usize, Option<Found>), FrameError> {
        if self.open == Open::Closed {
            return Ok((input.len(), None));
        }
        if self.in_payload {
            return self.part(input, 0);
        }
        let mut cursor = Cursor::new(&*input);
        let (header, length) = match FrameHeader::parse(&mut cursor) {
            Ok(Some(parsed)) => parsed,
            Ok(None) => return Ok((0, None)),
            // The only fault that it reports by itself; a cursor over a slice has no I/O errors.
            Err(_) => return Err(FrameError::ReservedOpcode),
        };
        let header_bytes = cursor.position() as usize;
        self.check(&header, length, header_bytes)?;
        match header.opcode {
            OpCode::Control(opcode) => self.control(opcode, &header, length, header_bytes, input),
            OpCode::Data(opcode) => {
                self.begin(opcode, header.is_final, length, limits)?;
                self.mask = header.mask.unwrap_or_default();
                let whole = header.is_final && opcode != Data::Continue;
                if whole && input.len() - header_bytes >= length as usize {
                    return Ok(self.whole(input, header_bytes, length as usize));
                }
                self.left = length as u32;
                self.in_payload = true;
                self.part(input, header_bytes)
            }
        }
    }

    /// What must hold for every frame.
    fn check(self, header: &FrameHeader, length: u64, header_bytes: usize) -> Result<(), FrameError> {
        if header.rsv1 || header.rsv2 || header.rsv3 {
            return Err(FrameError::ReservedBits);
        }
        match (self.role, header.mask) {
            (Role::Server, None) => return Err(FrameError::Unmasked),
            (Role::Client, Some(_)) => return Err(FrameError::Masked),
            (Role::Server, Some(_)) | (Role::Client, None) => {}
        }
        if length >> 63 != 0 || header.len(length) != header_bytes {
            return Err(FrameError::BadLength);
        }
        Ok(())
    }

    /// A data frame's header: is it allowed here, and may the message be as large as this makes it?
    fn begin(&mut self, opcode: Data, is_final: bool, length: u64, limits: Limits) -> Result<(), FrameError> {
        match (opcode, self.open) {
            (Data::Continue, Open::Text | Open::Binary) => {}
            (Data::Continue, _) => return Err(FrameError::StrayContinuation),
            (_, Open::Text | Open::Binary) => return Err(FrameError::Interleaved),
            (Data::Text, _) => self.open = Open::Text,
            (Data::Binary, _) => self.open = Open::Binary,
            (Data::Reserved(_), _) => return Err(FrameError::ReservedOpcode),
        }
        if opcode != Data::Continue {
            self.message_bytes = 0;
            self.fragments = 0;
            self.utf8 = Utf8::default();
        }
        let bytes = u64::from(self.message_bytes).saturating_add(length);
        if bytes > u64::from(limits.message_bytes_max) {
            return Err(FrameError::TooLarge { bytes, bytes_max: limits.message_bytes_max });
        }
        self.message_bytes = bytes as u32;
        self.fragments += 1;
        if self.fragments > limits.fragments_max {
            return Err(FrameError::TooManyFragments { fragments_max: limits.fragments_max });
        }
        self.is_final = is_final;
        Ok(())
    }

    /// The common case: the whole message lies in the input.
    fn whole(&mut self, input: &mut [u8], header_bytes: usize, length: usize) -> (usize, Option<Found>) {
        let bytes = header_bytes + length;
        self.unmask(&mut input[header_bytes..bytes]);
        let what = if self.open == Open::Text { What::Text } else { What::Binary };
        self.open = Open::No;
        (bytes, Some(Found { what, start: header_bytes, end: bytes }))
    }

    /// As much of the payload of the frame in progress as has arrived, from `start` on.
    fn part(&mut self, input: &mut [u8], start: usize) -> Result<(usize, Option<Found>), FrameError> {
        let arrived = (input.len() - start).min(self.left as usize);
        let bytes = start + arrived;
        self.left -= arrived as u32;
        if arrived == 0 && self.left > 0 {
            return Ok((bytes, None));
        }
        let payload = &mut input[start..bytes];
        self.unmask(payload);
        let text = self.open == Open::Text;
        if text {
            self.utf8.push(payload).map_err(|_| FrameError::BadText)?;
        }
        self.in_payload = self.left > 0;
        let last = !self.in_payload && self.is_final;
        if last {
            if text && !self.utf8.is_complete() {
                return Err(FrameError::BadText);
            }
            self.open = Open::No;
        }
        Ok((bytes, Some(Found { what: What::Part { text, last }, start, end: bytes })))
    }

    fn control(
        &mut self,
        opcode: Control,
        header: &FrameHeader,
        length: u64,
        header_bytes: usize,
        input: &mut [u8],
    ) -> Result<(usize, Option<Found>), FrameError> {
        if !header.is_final || length > CONTROL_BYTES_MAX as u64 {
            return Err(FrameError::BadControl);
        }
        let bytes = header_bytes + length as usize;
        let Some(payload) = input.get_mut(header_bytes..bytes) else {
            return Ok((0, None));
        };
        // The mask of a message in progress must survive: a control frame has one of its own.
        mask_in_place(payload, header.mask.unwrap_or_default());
        let what = match opcode {
            Control::Ping => What::Ping,
            Control::Pong => What::Pong,
            Control::Close => {
                self.open = Open::Closed;
                What::Close
            }
            Control::Reserved(_) => return Err(FrameError::ReservedOpcode),
        };
        Ok((bytes, Some(Found { what, start: header_bytes, end: bytes })))
    }

    /// Unmasks the next bytes of payload and turns the mask to fit what follows them.
    fn unmask(&mut self, payload: &mut [u8]) {
        if self.role == Role::Server {
            mask_in_place(payload, self.mask);
            self.mask.rotate_left(payload.len() % 4);
        }
    }
}

fn read_close(payload: &[u8]) -> Result<Option<Close<'_>>, FrameError> {
    let (code, reason) = match payload {
        [] => return Ok(None),
        [_] => return Err(FrameError::BadCloseCode),
        [high, low, reason @ ..] => (u16::from_be_bytes([*high, *low]), reason),
    };
    if !close::is_allowed_on_the_wire(code) {
        return Err(FrameError::BadCloseCode);
    }
    let reason = std::str::from_utf8(reason).map_err(|_| FrameError::BadText)?;
    Ok(Some(Close { code, reason }))
}

/// XORs `payload` with `mask`, repeated. Doing it twice gives the original.
pub fn mask_in_place(payload: &mut [u8], mask: [u8; 4]) {
    let [a, b, c, d] = mask;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (words, tail) = payload.as_chunks_mut::<8>();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ wide).to_ne_bytes();
    }
    // Eight is a multiple of four: the tail begins at the first byte of the mask again.
    for (byte, key) in tail.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= key;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { message_bytes_max: 1_000, fragments_max: 3 };

    /// What the first frame that is not in order leads to.
    fn refusal(role: Role, bytes: &[u8]) -> Result<(), FrameError> {
        let mut bytes = bytes.to_vec();
        let mut decoder = Decoder::new(role);
        let mut at = 0;
        loop {
            let decoded = decoder.decode(LIMITS, &mut bytes[at..])?;
            if decoded.bytes == 0 && decoded.step.is_none() {
                return Ok(());
            }
            at += decoded.bytes;
        }
    }

    #[test]
    fn each_fault_is_named_as_soon_as_its_header_is_there() {
        use FrameError::*;
        let cases: &[(&[u8], FrameError)] = &[
            (b"\xc1\x80\0\0\0\0", ReservedBits),
            (b"\xa1\x80\0\0\0\0", ReservedBits),
            (b"\x91\x80\0\0\0\0", ReservedBits),
            (b"\x83\x80\0\0\0\0", ReservedOpcode),
            (b"\x8b\x80\0\0\0\0", ReservedOpcode),
            (b"\x81\x00", Unmasked),
            (b"\x81\xfe\x00\x7d\0\0\0\0", BadLength),
            (b"\x81\xff\0\0\0\0\0\0\xff\xff\0\0\0\0", BadLength),
            (b"\x81\xff\x80\0\0\0\0\0\0\0\0\0\0\0", BadLength),
            (b"\x81\xff\0\0\0\0\x04\0\0\0\0\0\0\0", TooLarge { bytes: 64 << 20, bytes_max: 1_000 }),
            (b"\x81\xff\x7f\xff\xff\xff\xff\xff\xff\xff\0\0\0\0", TooLarge { bytes: u64::MAX >> 1, bytes_max: 1_000 }),
            (b"\x89\xfe\x00\x7e\0\0\0\0", BadControl),
            (b"\x09\x80\0\0\0\0", BadControl),
            (b"\x80\x80\0\0\0\0", StrayContinuation),
            (b"\x01\x80\0\0\0\0\x81\x80\0\0\0\0", Interleaved),
            (b"\x88\x81\0\0\0\0x", BadCloseCode),
            (b"\x88\x82\0\0\0\0\x03\xed", BadCloseCode),
            (b"\x88\x83\0\0\0\0\x03\xe8\xff", BadText),
            (b"\x81\x81\0\0\0\0\xff", BadText),
            (b"\x81\x82\0\0\0\0\xc3", BadText),
        ];
        for (bytes, error) in &cases[..cases.len() - 1] {
            assert_eq!(refusal(Role::Server, bytes), Err(*error), "{bytes:x?}");
        }
        // Half a character may still become one.
        assert_eq!(refusal(Role::Server, cases[cases.len() - 1].0), Ok(()));
        assert_eq!(refusal(Role::Client, b"\x81\x80\0\0\0\0"), Err(Masked));
        assert_eq!(
            refusal(Role::Client, &[&b"\x01\x00"[..], b"\x00\x00", b"\x00\x00", b"\x00\x00"].concat()),
            Err(TooManyFragments { fragments_max: 3 })
        );
    }

    #[test]
    fn a_message_may_not_grow_past_the_limit_by_fragments() {
        let mut bytes = b"\x02\x7e\x03\x00".to_vec();
        bytes.extend([0; 0x300]);
        bytes.extend(b"\x80\x7e\x03\x00");
        assert_eq!(refusal(Role::Client, &bytes), Err(FrameError::TooLarge { bytes: 0x600, bytes_max: 1_000 }));
    }

    #[test]
    fn masking_is_the_same_at_every_length_and_twice_gives_the_original() {
        for bytes in 0..70 {
            let original: Vec<u8> = (0..bytes).collect();
            let mut masked = original.clone();
            mask_in_place(&mut masked, [0xa5, 0x5a, 1, 0xff]);
            for (at, byte) in masked.iter().enumerate() {
                assert_eq!(*byte, original[at] ^ [0xa5, 0x5a, 1, 0xff][at % 4]);
            }
            mask_in_place(&mut masked, [0xa5, 0x5a, 1, 0xff]);
            assert_eq!(masked, original);
        }
    }

    #[test]
    fn every_error_has_the_code_that_the_rfc_gives_it() {
        assert_eq!(close_code(FrameError::Unmasked).number(), 1002);
        assert_eq!(close_code(FrameError::BadText).number(), 1007);
        assert_eq!(close_code(FrameError::TooManyFragments { fragments_max: 1 }).number(), 1009);
    }
}
