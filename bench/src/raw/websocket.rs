//! The least that a WebSocket server can do: the upgrade, and frames back as they came, in the buffer they came in.
//!
//! ```text
//! in    head | length | mask | payload, masked
//! out   head | length | payload            four bytes shorter, so it fits where it came
//! ```

use wire::upgrade::write_switching;

/// Bytes of the longest frame or request that is understood; what comes after half of one is put behind it.
pub const FRAME_BYTES_MAX: usize = 512;

const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// What became of the bytes at the front of a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turned {
    /// These many, from the start, are to be sent.
    pub out: usize,
    /// These many were understood; what follows is the beginning of something.
    pub used: usize,
}

/// Writes the answer to an upgrade over it; none if it is none. `filled` bytes have come.
pub fn upgrade(buffer: &mut [u8], filled: usize) -> Option<Turned> {
    const KEY: &[u8] = b"sec-websocket-key:";
    let request = &buffer[..filled];
    if !request.windows(4).any(|window| window == b"\r\n\r\n") {
        return Some(Turned { out: 0, used: 0 });
    }
    let line = request
        .split(|byte| *byte == b'\n')
        .find(|line| line.len() > KEY.len() && line[..KEY.len()].eq_ignore_ascii_case(KEY))?;
    let key = std::str::from_utf8(&line[KEY.len()..]).ok()?.trim();
    let mut answer = Vec::new();
    write_switching(&mut answer, key, None);
    buffer.get_mut(..answer.len())?.copy_from_slice(&answer);
    Some(Turned { out: answer.len(), used: filled })
}

/// Makes of all whole frames in the buffer those that go back; none if it holds something else.
pub fn turn_around(buffer: &mut [u8]) -> Option<Turned> {
    let mut turned = Turned { out: 0, used: 0 };
    loop {
        let rest = &buffer[turned.used..];
        let (head, length) = match *rest {
            [_, length @ 0x80..=0xfd, ..] => (2, usize::from(length & 0x7f)),
            [_, 0xfe, high, low, ..] => (4, usize::from(u16::from_be_bytes([high, low]))),
            [_, 0xfe] | [_, 0xfe, _] | [_] | [] => return Some(turned),
            // Not masked, or longer than any that is understood.
            _ => return None,
        };
        if head + 4 + length > FRAME_BYTES_MAX {
            return None;
        }
        let Some(&[a, b, c, d]) = rest.get(head..head + 4) else { return Some(turned) };
        if rest.len() < head + 4 + length {
            return Some(turned);
        }
        let (from, first) = (turned.used, buffer[turned.used]);
        turned.used += head + 4 + length;
        let opcode = first & 0x0f;
        if opcode == PONG {
            continue;
        }
        let mask = [a, b, c, d];
        for (at, byte) in buffer[from + head + 4..from + head + 4 + length].iter_mut().enumerate() {
            *byte ^= mask[at % 4];
        }
        // Each byte moves towards the front, the first one first.
        buffer.copy_within(from..from + head, turned.out);
        buffer[turned.out] = if opcode == PING { first & 0xf0 | PONG } else { first };
        buffer[turned.out + 1] &= 0x7f;
        buffer.copy_within(from + head + 4..from + head + 4 + length, turned.out + head);
        turned.out += head + length;
        if opcode == CLOSE {
            return Some(turned);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::upgrade::{UpgradeRequest, read_upgrade_response, write_upgrade_request};
    use wire::writer::{Opcode, write_frame};

    #[test]
    fn an_upgrade_is_answered_when_it_is_whole() {
        let request = UpgradeRequest {
            host: "a:1",
            target: "/echo",
            nonce: *b"0123456789abcdef",
            subprotocol: None,
            bearer: None,
        };
        let mut buffer = Vec::new();
        write_upgrade_request(&mut buffer, &request);
        let filled = buffer.len();
        buffer.resize(1_024, 0);
        assert_eq!(upgrade(&mut buffer, filled - 1), Some(Turned { out: 0, used: 0 }));
        let Turned { out, used } = upgrade(&mut buffer, filled).unwrap();
        assert_eq!(used, filled);
        assert_eq!(read_upgrade_response(&buffer[..out], &request).unwrap(), Some(out));
        assert_eq!(upgrade(&mut b"GET / HTTP/1.1\r\n\r\n".to_vec(), 18), None);
    }

    #[test]
    fn frames_come_back_without_their_mask_wherever_the_stream_is_cut() {
        let payloads = [&b"short"[..], &[b'x'; 200], b"", &[7; 125], &[8; 126]];
        let (mut stream, mut wanted) = (Vec::new(), Vec::new());
        for payload in payloads {
            write_frame(&mut stream, Opcode::Binary, Some([1, 2, 3, 4]), payload);
            write_frame(&mut wanted, Opcode::Binary, None, payload);
        }
        write_frame(&mut stream, Opcode::Ping, Some([5, 6, 7, 8]), b"there?");
        write_frame(&mut wanted, Opcode::Pong, None, b"there?");
        for cut in 0..=stream.len() {
            let (mut back, mut carry) = (Vec::new(), Vec::new());
            for part in [&stream[..cut], &stream[cut..]] {
                carry.extend_from_slice(part);
                let Turned { out, used } = turn_around(&mut carry).unwrap();
                back.extend_from_slice(&carry[..out]);
                carry.drain(..used);
            }
            assert_eq!((back, carry.len()), (wanted.clone(), 0), "cut at {cut}");
        }
    }

    #[test]
    fn what_is_no_frame_of_a_client_is_refused() {
        assert_eq!(turn_around(&mut [0x82, 5, 1, 2, 3]), None);
        assert_eq!(turn_around(&mut [0x82, 0xff, 0, 0, 0]), None);
        assert_eq!(turn_around(&mut [0x82, 0xfe, 0x10, 0, 0, 0, 0, 0]), None);
    }
}
