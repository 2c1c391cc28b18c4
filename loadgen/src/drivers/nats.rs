//! A user of NATS over WebSocket: subscribes to a subject of its own, publishes to those of others.
//!
//! Core NATS acknowledges nothing and keeps nothing: what was published while its receiver was not there is lost, and
//! is counted so. What arrived counts as acknowledged, or no rate could be told.
//!
//! ```text
//! SUB rw.7 1\r\n                     user 7 hears what is published there
//! PUB rw.8 BYTES\r\n7 BODY\r\n       user 7 writes to user 8, and says in the body who it is
//! ```

use std::collections::VecDeque;

use wire::ids::UserId;
use wire::writer::{Opcode, write_frame};

use crate::body::Stamp;
use crate::client::{Account, Around, Client, Want};
use crate::ledger::{Arrival, Arrived, Written};
use crate::link::{Link, MS, State};

/// What is longer than this is no message of ours.
const HELD_BYTES_MAX: usize = 1 << 20;
const PING_EVERY_NS: u64 = 20_000 * MS;

/// One simulated user.
#[derive(Debug)]
pub struct Nats {
    user: UserId,
    link: Link,
    ping_at: u64,
    books: Option<Box<Books>>,
}

#[derive(Debug, Default)]
struct Books {
    /// A part of a message that has not all arrived: frames do not end where messages do.
    held: Vec<u8>,
    waiting: VecDeque<(UserId, Stamp)>,
    peers: Vec<Peer>,
}

#[derive(Debug)]
struct Peer {
    user: UserId,
    written: Written,
    arrived: Arrived,
}

/// What the server says.
#[derive(Debug, PartialEq, Eq)]
enum Said<'a> {
    Message(&'a str),
    Ping,
    Error(&'a str),
    Other,
}

impl Client for Nats {
    const SUBPROTOCOL: Option<&'static str> = None;

    fn new(user: UserId, start_ns: u64) -> Self {
        Self { user, link: Link::new(start_ns), ping_at: u64::MAX, books: None }
    }

    fn link(&self) -> &Link {
        &self.link
    }

    fn link_mut(&mut self) -> &mut Link {
        &mut self.link
    }

    /// The server speaks first: `INFO`.
    fn upgraded(&mut self, _: &mut Around<'_>) {}

    fn text(&mut self, text: &str, around: &mut Around<'_>) {
        self.binary(text.as_bytes(), around);
    }

    fn binary(&mut self, bytes: &[u8], around: &mut Around<'_>) {
        let mut held = self.books.get_or_insert_default().held.split_off(0);
        held.extend_from_slice(bytes);
        let mut at = 0;
        while let Some((said, length)) = read(&held[at..]) {
            at += length;
            match said {
                Said::Message(body) => self.message(body, around),
                Said::Ping => self.say(around, b"PONG\r\n"),
                Said::Error(why) => around.tally.error(why),
                Said::Other => {}
            }
        }
        held.drain(..at);
        if held.len() > HELD_BYTES_MAX {
            around.tally.counts.malformed += 1;
            self.link.state = State::Broken;
        } else if !held.is_empty() {
            self.books.get_or_insert_default().held = held;
        }
        if matches!(self.link.state, State::Opening { .. }) && at > 0 {
            self.open(around);
        }
    }

    fn taken_back(&mut self, _: &mut Around<'_>) {
        if let Some(books) = &mut self.books {
            books.held.clear();
        }
    }

    fn write_message(&mut self, to: UserId, due_ns: u64, around: &mut Around<'_>) {
        around.tally.counts.offered += 1;
        let books = self.books.get_or_insert_default();
        let counter = books.peer(to).written.count();
        books.waiting.push_back((to, Stamp { run: around.habits.run, counter, due_ns }));
        self.send_waiting(around);
    }

    fn give_up_unsent(&mut self, around: &mut Around<'_>) {
        let Some(books) = &mut self.books else { return };
        around.tally.counts.unsent += books.waiting.len() as u64;
        around.tally.counts.late += books.waiting.len() as u64;
        while let Some((to, _)) = books.waiting.pop_back() {
            books.peer(to).written.next -= 1;
        }
    }

    fn due_at(&self) -> u64 {
        self.ping_at
    }

    fn due(&mut self, around: &mut Around<'_>) -> Want {
        if self.ping_at <= around.now_ns {
            self.ping_at = around.now_ns + PING_EVERY_NS;
            around.tally.counts.beats += 1;
            self.say(around, b"PING\r\n");
        }
        Want::Nothing
    }

    fn is_settled(&self) -> bool {
        self.books.as_ref().is_none_or(|books| books.waiting.is_empty())
    }

    fn tell_unknown(&self, _: &mut Around<'_>) {}

    fn accounts(&self) -> Vec<Account> {
        let peers = self.books.iter().flat_map(|books| &books.peers);
        let account = |peer: &Peer| Account {
            user: self.user,
            peer: peer.user,
            written: peer.written.clone(),
            arrived: peer.arrived.clone(),
        };
        peers.map(account).collect()
    }
}

impl Books {
    fn peer(&mut self, user: UserId) -> &mut Peer {
        let at = self.peers.iter().position(|peer| peer.user == user).unwrap_or_else(|| {
            self.peers.push(Peer { user, written: Written::default(), arrived: Arrived::default() });
            self.peers.len() - 1
        });
        &mut self.peers[at]
    }
}

impl Nats {
    /// `CONNECT`, and the subject of its own.
    fn open(&mut self, around: &mut Around<'_>) {
        const CONNECT: &str =
            r#"CONNECT {"verbose":false,"pedantic":false,"lang":"ringway-loadgen","version":"1","protocol":1}"#;
        let hello = format!("{CONNECT}\r\nSUB rw.{} 1\r\n", self.user);
        self.say(around, hello.as_bytes());
        self.link.opened(around);
        self.ping_at = around.now_ns + around.random.below(PING_EVERY_NS);
        self.send_waiting(around);
    }

    fn message(&mut self, body: &str, around: &mut Around<'_>) {
        // Who wrote it stands behind the stamp.
        let Some((from, body)) = body.split_once(' ').and_then(|(from, body)| Some((from.parse().ok()?, body))) else {
            around.tally.counts.malformed += 1;
            return;
        };
        let Some(stamp) = Stamp::read(body).filter(|stamp| stamp.run == around.habits.run) else { return };
        match self.books.get_or_insert_default().peer(from).arrived.take_in(stamp.counter) {
            Arrival::InOrder => {}
            Arrival::Reordered => around.tally.counts.reordered += 1,
            Arrival::Doubled => {
                around.tally.counts.doubled += 1;
                return;
            }
        }
        // Nothing else says that it was taken.
        around.tally.counts.acked += 1;
        around.delivered(stamp.due_ns, &self.link);
    }

    fn send_waiting(&mut self, around: &mut Around<'_>) {
        if !self.link.is_open() {
            return;
        }
        let user = self.user;
        while let Some((to, stamp)) = self.books.as_mut().and_then(|books| books.waiting.pop_front()) {
            around.tally.counts.sent += 1;
            let waited_ns = around.now_ns.saturating_sub(stamp.due_ns);
            around.tally.counts.late += u64::from(waited_ns > around.habits.send_within_ns);
            let from = format!("{user} ");
            stamp.write(around.body, around.habits.payload_bytes.saturating_sub(from.len()));
            let bytes = from.len() + around.body.len();
            let publication = format!("PUB rw.{to} {bytes}\r\n{from}{}\r\n", around.body);
            self.say(around, publication.as_bytes());
        }
    }

    fn say(&mut self, around: &mut Around<'_>, bytes: &[u8]) {
        write_frame(&mut self.link.out, Opcode::Binary, Some(around.random.bytes()), bytes);
    }
}

/// The first thing that the server says, and how long it is; none if it has not all arrived.
fn read(bytes: &[u8]) -> Option<(Said<'_>, usize)> {
    let end = bytes.windows(2).position(|two| two == b"\r\n")?;
    let line = std::str::from_utf8(&bytes[..end]).unwrap_or_default();
    let length = end + 2;
    if let Some(of_message) = line.strip_prefix("MSG ") {
        let payload: usize = of_message.rsplit(' ').next().and_then(|bytes| bytes.parse().ok()).unwrap_or(0);
        let body = bytes.get(length..length + payload)?;
        bytes.get(length + payload..length + payload + 2)?;
        return Some((Said::Message(std::str::from_utf8(body).unwrap_or_default()), length + payload + 2));
    }
    let said = match line {
        "PING" => Said::Ping,
        line => line.strip_prefix("-ERR ").map_or(Said::Other, Said::Error),
    };
    Some((said, length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_server_says_is_read_in_pieces() {
        let all = b"INFO {}\r\nPING\r\nMSG rw.8 1 5\r\nhel\r\n\r\n-ERR 'no'\r\nPONG\r\n";
        let mut seen = Vec::new();
        let mut at = 0;
        for end in 0..=all.len() {
            while let Some((said, length)) = read(&all[at..end]) {
                seen.push(format!("{said:?}"));
                at += length;
            }
        }
        assert_eq!(seen, ["Other", "Ping", "Message(\"hel\\r\\n\")", "Error(\"'no'\")", "Other"]);
    }
}
