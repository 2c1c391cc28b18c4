//! WebSocket frames: the events must not depend on the cuts, and must be those that tungstenite sees.

use std::io;

use tungstenite::Message;
use tungstenite::protocol::{Role as TungsteniteRole, WebSocket, WebSocketConfig};
use wire::reader::{Event, Input, Reader};
use wire::websocket::{FrameError, Limits, Role};
use wire::writer::{Opcode, write_close, write_frame, write_header};

use crate::mutate::Rng;

const LIMITS: Limits = Limits { message_bytes_max: 2_000, fragments_max: 6 };

pub fn corpus() -> Vec<Vec<u8>> {
    let mut corpus = Vec::new();
    for mask in [None, Some([0; 4]), Some([1, 2, 3, 250])] {
        let mut add = |write: &dyn Fn(&mut Vec<u8>)| {
            // The first byte says whose frames these are.
            let mut input = vec![u8::from(mask.is_some())];
            write(&mut input);
            corpus.push(input);
        };
        add(&|out| write_frame(out, Opcode::Text, mask, "hello, κόσμε 𝄞".as_bytes()));
        add(&|out| write_frame(out, Opcode::Binary, mask, &[7; 200]));
        add(&|out| write_frame(out, Opcode::Ping, mask, b"ping"));
        add(&|out| write_frame(out, Opcode::Pong, mask, &[1; 125]));
        add(&|out| write_close(out, mask, 1000, "bye"));
        add(&|out| write_frame(out, Opcode::Close, mask, b""));
        add(&|out| {
            // Masked with zeroes or not at all, the payload is what it looks like.
            let mask = mask.map(|_| [0; 4]);
            write_header(out, Opcode::Text, false, mask, 2);
            out.extend_from_slice(b"a\xc3");
            write_frame(out, Opcode::Ping, mask, b"between");
            write_header(out, Opcode::Continuation, true, mask, 2);
            out.extend_from_slice(b"\xa9b");
            write_frame(out, Opcode::Text, mask, b"next");
        });
    }
    corpus
}

pub fn dictionary() -> Vec<Vec<u8>> {
    let headers: &[&[u8]] = &[
        b"\x81\x80\0\0\0\0",
        b"\x01\x81\0\0\0\0a",
        b"\x80\x81\0\0\0\0b",
        b"\x89\x80\0\0\0\0",
        b"\x81\x01a",
        b"\x01\x01a",
        b"\x80\x01b",
        b"\x00\x00",
        b"\x89\x00",
        b"\x88\x02\x03\xe8",
        b"\x88\x82\0\0\0\0\x03\xe8",
        b"\x82\xfe\x00\x7e\0\0\0\0",
        b"\x82\x7e\x00\x7e",
        b"\x82\xff\0\0\0\0\0\x01\0\0\0\0\0\0",
        b"\xf0\x9d\x84\x9e",
        b"\xed\xa0\x80",
        b"\xe2\x82",
    ];
    headers.iter().map(|header| header.to_vec()).collect()
}

pub fn check(input: &[u8], rng: &mut Rng) -> String {
    let Some((&whose, stream)) = input.split_first() else { return "empty".to_owned() };
    let role = if whose % 2 == 1 { Role::Server } else { Role::Client };
    let (whole, error) = events(stream, &[stream.len()], role);
    let cuts = rng.cuts(stream.len());
    let (in_pieces, error_in_pieces) = events(stream, &cuts, role);
    if error == Some(FrameError::BadText) {
        // Text is refused where its frame is whole, or at the bad byte if it came in parts. Both are
        // before anything else.
        assert_eq!(in_pieces, whole, "cut at {cuts:?}");
        assert_eq!(error_in_pieces, error, "cut at {cuts:?}");
    } else {
        assert_eq!((&in_pieces, error_in_pieces), (&whole, error), "cut at {cuts:?}");
    }
    compare_with_tungstenite(stream, role, &whole, error);
    let kinds: String = whole.iter().filter_map(|event| event.chars().next()).collect();
    let name = format!("{error:?}");
    format!("{role:?} {kinds} {}", name.split([' ', '{']).next().unwrap_or_default())
}

fn events(stream: &[u8], cuts: &[usize], role: Role) -> (Vec<String>, Option<FrameError>) {
    let mut reader = Reader::new(role);
    let mut events = Vec::new();
    let mut start = 0;
    for &end in cuts {
        let mut piece = stream[start..end].to_vec();
        start = end;
        let mut input = Input::new(&mut piece);
        loop {
            match reader.next(LIMITS, &mut input) {
                Ok(Some(event)) => events.push(describe(event)),
                Ok(None) => break,
                Err(error) => return (events, Some(error)),
            }
        }
        assert!(reader.held_bytes() <= 16 * 1024, "holds {} bytes", reader.held_bytes());
    }
    (events, None)
}

fn describe(event: Event<'_>) -> String {
    match event {
        Event::Text(text) => format!("text {text}"),
        Event::Binary(payload) => format!("binary {payload:?}"),
        Event::Ping(payload) => format!("ing {payload:?}"),
        Event::Pong(payload) => format!("ong {payload:?}"),
        Event::Close(close) => format!("close {:?}", close.map(|close| (close.code, close.reason.to_owned()))),
    }
}

/// A stream that ends with "nothing more yet", and takes whatever is written.
struct Stream<'a>(&'a [u8]);

impl io::Read for Stream<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.0.read(buffer)? {
            0 => Err(io::ErrorKind::WouldBlock.into()),
            bytes => Ok(bytes),
        }
    }
}

impl io::Write for Stream<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What we are told, tungstenite is told, up to the first fault. Where we refuse, it may be more patient:
/// it takes lengths that are longer than need be, as many fragments as come, and text that is bad and
/// not yet whole.
fn compare_with_tungstenite(stream: &[u8], role: Role, ours: &[String], error: Option<FrameError>) {
    let limit = Some(LIMITS.message_bytes_max as usize);
    let config = WebSocketConfig::default().max_message_size(limit).max_frame_size(limit);
    let role = if role == Role::Server { TungsteniteRole::Server } else { TungsteniteRole::Client };
    let mut socket = WebSocket::from_raw_socket(Stream(stream), role, Some(config));
    let mut theirs = Vec::new();
    let mut waits = false;
    while theirs.len() < ours.len() + 1 {
        match socket.read() {
            Ok(Message::Text(text)) => theirs.push(format!("text {text}")),
            Ok(Message::Binary(payload)) => theirs.push(format!("binary {:?}", &payload[..])),
            Ok(Message::Ping(payload)) => theirs.push(format!("ing {:?}", &payload[..])),
            Ok(Message::Pong(payload)) => theirs.push(format!("ong {:?}", &payload[..])),
            Ok(Message::Close(frame)) => {
                let frame = frame.map(|frame| (u16::from(frame.code), frame.reason.to_string()));
                theirs.push(format!("close {frame:?}"));
                break;
            }
            Ok(Message::Frame(_)) => unreachable!("never read"),
            Err(tungstenite::Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                waits = true;
                break;
            }
            Err(_) => break,
        }
    }
    // It does not know 1014, which the registry of close codes has since 2016.
    if let (Some(their), Some(our)) = (theirs.last_mut(), ours.last())
        && our.starts_with("close Some((1014,")
        && their.starts_with("close Some((1002,")
    {
        their.clone_from(our);
    }
    match error {
        None => {
            assert_eq!(theirs, ours);
            let closed = ours.last().is_some_and(|event| event.starts_with("close"));
            assert!(waits || closed, "tungstenite refuses what we take");
        }
        Some(_) => assert!(theirs.starts_with(ours), "{error:?}: {theirs:?} is not as {ours:?}"),
    }
}
