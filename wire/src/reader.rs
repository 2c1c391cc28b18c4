//! Whole WebSocket messages out of a stream that is cut anywhere.
//!
//! What arrives whole is borrowed from the caller's buffer. What does not is kept here until it is
//! whole, and then forgotten: an idle connection holds no buffer.

use crate::websocket::{
    CONTROL_BYTES_MAX, Close, Decoder, Found, FrameError, HEADER_BYTES_MAX, Limits, Role, Step, What,
};

/// A message or a control frame, whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event<'a> {
    /// A text message.
    Text(&'a str),
    /// A binary message.
    Binary(&'a [u8]),
    /// To be answered by a pong with the same payload.
    Ping(&'a [u8]),
    /// An answer to a ping, or a sign of life.
    Pong(&'a [u8]),
    /// The peer closes. Whatever follows is swallowed.
    Close(Option<Close<'a>>),
}

/// Bytes that arrived, and how many of them are done with.
#[derive(Debug)]
pub struct Input<'a> {
    bytes: &'a mut [u8],
    at: usize,
}

impl<'a> Input<'a> {
    /// All of `bytes`, none done.
    pub fn new(bytes: &'a mut [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// Whether all is done.
    pub fn is_empty(&self) -> bool {
        self.at == self.bytes.len()
    }
}

/// A [`Decoder`] that joins what comes in parts.
///
/// While nothing is unfinished it is the decoder and one empty pointer.
#[derive(Debug)]
pub struct Reader {
    decoder: Decoder,
    held: Option<Box<Held>>,
}

/// What is kept of an unfinished frame or message.
#[derive(Debug, Default)]
struct Held {
    /// An unfinished header or control frame; never longer than one.
    input: Vec<u8>,
    /// The parts of an unfinished message. Grows with what arrives, not with what was declared.
    message: Vec<u8>,
    /// The last event was read from `input`, so that it is forgotten at the next call.
    input_done: bool,
    /// The same of `message`.
    message_done: bool,
}

/// Where the next event lies.
enum Lies {
    Input(Found),
    HeldInput(Found),
    Message { text: bool },
}

impl Reader {
    /// A connection whose handshake has just ended.
    pub fn new(role: Role) -> Self {
        Self { decoder: Decoder::new(role), held: None }
    }

    /// Whether nothing has begun that has not ended: a new reader could go on in its place.
    pub fn is_between_frames(&self) -> bool {
        self.held.is_none() && self.decoder.is_between_frames()
    }

    /// Heap bytes that it holds now.
    pub fn held_bytes(&self) -> usize {
        self.held.as_ref().map_or(0, |held| size_of::<Held>() + held.input.capacity() + held.message.capacity())
    }

    /// The next event; `None` once `input` is used up.
    ///
    /// To be called until it says `None`: only then has all that is unfinished been kept, and the
    /// memory of what was finished been given back.
    pub fn next<'a>(&'a mut self, limits: Limits, input: &'a mut Input<'_>) -> Result<Option<Event<'a>>, FrameError> {
        self.forget_what_was_read();
        let Some(lies) = self.find(limits, input)? else {
            return Ok(None);
        };
        let step = match lies {
            Lies::Input(found) => found.step(input.bytes)?,
            Lies::HeldInput(found) => found.step(&self.held.as_ref().expect("found in it").input)?,
            Lies::Message { text } => {
                let message = &self.held.as_ref().expect("found in it").message;
                if text {
                    // Checked part by part already; looking once more is how it becomes a `str`.
                    Step::Text(std::str::from_utf8(message).map_err(|_| FrameError::BadText)?)
                } else {
                    Step::Binary(message)
                }
            }
        };
        Ok(Some(match step {
            Step::Text(text) => Event::Text(text),
            Step::Binary(payload) | Step::Part { payload, .. } => Event::Binary(payload),
            Step::Ping(payload) => Event::Ping(payload),
            Step::Pong(payload) => Event::Pong(payload),
            Step::Close(close) => Event::Close(close),
        }))
    }

    /// Decodes up to the next event, keeping parts of messages on the way.
    fn find(&mut self, limits: Limits, input: &mut Input<'_>) -> Result<Option<Lies>, FrameError> {
        while !input.is_empty() {
            let in_held = self.held.as_ref().is_some_and(|held| !held.input.is_empty());
            let found = if in_held { self.find_in_held(limits, input)? } else { self.find_in_input(limits, input)? };
            let Some(found) = found else { continue };
            if let What::Part { text, last } = found.what {
                self.keep_part(found, in_held, input.bytes);
                if last {
                    self.held.as_mut().expect("the part was put there").message_done = true;
                    return Ok(Some(Lies::Message { text }));
                }
            } else if in_held {
                self.held.as_mut().expect("found in it").input_done = true;
                return Ok(Some(Lies::HeldInput(found)));
            } else {
                return Ok(Some(Lies::Input(found)));
            }
        }
        Ok(None)
    }

    /// Nothing was begun: decodes where the bytes lie, and keeps the beginning of what they end with.
    fn find_in_input(&mut self, limits: Limits, input: &mut Input<'_>) -> Result<Option<Found>, FrameError> {
        let rest = &mut input.bytes[input.at..];
        let (bytes, found) = self.decoder.advance(limits, rest)?;
        if bytes == 0 && found.is_none() {
            self.held.get_or_insert_default().input.extend_from_slice(rest);
            input.at = input.bytes.len();
            return Ok(None);
        }
        let found = found.map(|found| Found { start: found.start + input.at, end: found.end + input.at, ..found });
        input.at += bytes;
        Ok(found)
    }

    /// A header or control frame was begun: tops it up to the longest that it can be, and gives back
    /// what it did not need.
    fn find_in_held(&mut self, limits: Limits, input: &mut Input<'_>) -> Result<Option<Found>, FrameError> {
        let held = &mut self.held.as_mut().expect("the caller looked").input;
        let room = HEADER_BYTES_MAX + CONTROL_BYTES_MAX - held.len();
        let more = room.min(input.bytes.len() - input.at);
        held.extend_from_slice(&input.bytes[input.at..input.at + more]);
        input.at += more;
        let (bytes, found) = self.decoder.advance(limits, held)?;
        if bytes > 0 {
            // A frame that was too short before is not done before the first new byte.
            input.at -= held.len() - bytes;
            held.truncate(bytes);
        }
        if bytes > 0 && found.is_none() {
            held.clear();
        }
        Ok(found)
    }

    fn keep_part(&mut self, part: Found, in_held: bool, input: &[u8]) {
        let held = self.held.get_or_insert_default();
        if in_held {
            held.message.extend_from_slice(&held.input[part.start..part.end]);
            held.input.clear();
        } else {
            held.message.extend_from_slice(&input[part.start..part.end]);
        }
    }

    fn forget_what_was_read(&mut self) {
        let Some(held) = self.held.as_mut() else { return };
        if std::mem::take(&mut held.input_done) {
            held.input.clear();
        }
        if std::mem::take(&mut held.message_done) {
            held.message.clear();
        }
        if held.input.is_empty() && !self.decoder.is_mid_message() {
            self.held = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::writer::{Opcode, write_frame, write_header};

    const LIMITS: Limits = Limits { message_bytes_max: 1 << 20, fragments_max: 32 };

    /// All events of `bytes` in pieces that end at `cuts`, written down.
    fn events(bytes: &[u8], cuts: &[usize], role: Role) -> Vec<String> {
        let mut reader = Reader::new(role);
        let mut events = Vec::new();
        let mut start = 0;
        for end in cuts.iter().copied().chain([bytes.len()]) {
            let mut piece = bytes[start..end].to_vec();
            start = end;
            let mut input = Input::new(&mut piece);
            loop {
                match reader.next(LIMITS, &mut input) {
                    Ok(Some(event)) => events.push(format!("{event:?}")),
                    Ok(None) => break,
                    Err(error) => {
                        events.push(format!("{error:?}"));
                        return events;
                    }
                }
            }
        }
        events.push(format!("{} held", reader.held_bytes()));
        events
    }

    /// Fragments with a ping between them, an empty message, a long one, a close.
    fn conversation(mask: Option<[u8; 4]>) -> Vec<u8> {
        let mut bytes = Vec::new();
        write_frame(&mut bytes, Opcode::Text, mask, "first, whole".as_bytes());
        write_frame(&mut bytes, Opcode::Text, mask, b"");
        for (opcode, last, payload) in [
            (Opcode::Text, false, &b"a \xc3"[..]),
            (Opcode::Continuation, false, b""),
            (Opcode::Continuation, true, b"\xa9 b"),
        ] {
            let start = bytes.len();
            write_header(&mut bytes, opcode, last, mask, payload.len());
            let header = bytes.len() - start;
            bytes.extend_from_slice(payload);
            crate::websocket::mask_in_place(&mut bytes[start + header..], mask.unwrap_or_default());
            write_frame(&mut bytes, Opcode::Ping, mask, b"between");
        }
        write_frame(&mut bytes, Opcode::Binary, mask, &[7; 300]);
        write_frame(&mut bytes, Opcode::Pong, mask, &[8; 125]);
        write_frame(&mut bytes, Opcode::Close, mask, b"\x03\xe8bye");
        bytes.extend_from_slice(b"\xff\xff\xff");
        bytes
    }

    #[test]
    fn events_do_not_depend_on_where_the_stream_is_cut() {
        for (role, mask) in [(Role::Server, Some([1, 2, 3, 250])), (Role::Client, None)] {
            let bytes = conversation(mask);
            let whole = events(&bytes, &[], role);
            assert_eq!(whole.len(), 10, "{whole:?}");
            assert!(whole[9].starts_with("0 held"), "{whole:?}");
            let each: Vec<usize> = (0..bytes.len()).collect();
            assert_eq!(events(&bytes, &each, role), whole);
            for cut in 0..bytes.len() {
                for and in [0, 1, 3, 140] {
                    let cuts = [cut, (cut + and).min(bytes.len())];
                    assert_eq!(events(&bytes, &cuts, role), whole, "cut at {cuts:?}");
                }
            }
        }
    }

    #[test]
    fn bad_text_in_a_fragment_is_refused_before_the_message_ends() {
        let mut bytes = Vec::new();
        write_header(&mut bytes, Opcode::Text, false, None, 100);
        bytes.extend_from_slice(b"good \xed\xa0");
        assert_eq!(events(&bytes, &[], Role::Client), ["BadText"]);
    }

    #[test]
    fn a_declared_length_allocates_nothing() {
        let mut bytes = Vec::new();
        write_header(&mut bytes, Opcode::Binary, true, None, LIMITS.message_bytes_max as usize);
        bytes.push(1);
        let mut reader = Reader::new(Role::Client);
        assert_eq!(reader.next(LIMITS, &mut Input::new(&mut bytes)), Ok(None));
        assert!(reader.held_bytes() < 200, "{}", reader.held_bytes());
    }
}
