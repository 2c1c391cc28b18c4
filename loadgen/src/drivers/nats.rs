//! A user of NATS over WebSocket: subscribes to a subject of its own, publishes to those of others.
//!
//! Core NATS acknowledges nothing and keeps nothing: what was published while its receiver was not there is lost, and
//! is counted so. What arrived counts as acknowledged, or no rate could be told.
//!
//! With JetStream a stream in files keeps all that is published to users, and answers each publication that names an
//! inbox. Receivers still subscribe to their subjects: nothing is read out of the stream, so that who was away misses
//! what came meanwhile, and a message may arrive before it is kept.
//!
//! ```text
//! SUB rw.7 1\r\n                                 user 7 hears what is published there
//! PUB rw.8 BYTES\r\n7 BODY\r\n                   user 7 writes to user 8, and says in the body who it is
//!
//! SUB rwjs.7 1\r\nSUB _INBOX.rw.7.> 2\r\n        with JetStream
//! PUB rwjs.8 _INBOX.rw.7.8.C BYTES\r\n7 BODY\r\n user 7's message number C to user 8
//! MSG _INBOX.rw.7.8.C 2 BYTES\r\n{\"stream\":..., \"seq\":...}\r\n
//! ```

use serde::Deserialize;
use wire::ids::UserId;
use wire::writer::{Opcode, write_frame};

use super::books::{Books, Letter};
use crate::body::Stamp;
use crate::client::{Account, Around, Client, Want};
use crate::link::{Link, MS, State};
use crate::scenario::Protocol;

/// What is longer than this is no message of ours.
const HELD_BYTES_MAX: usize = 1 << 20;
/// As the clients of NATS have it.
const PING_EVERY_NS: u64 = 120_000 * MS;
/// What the first user makes, unless it is there.
const STREAM: &str =
    r#"{"name":"ringway-loadgen","subjects":["rwjs.*"],"storage":"file","retention":"limits","num_replicas":1}"#;
/// Somebody made a stream of that name, or for these subjects, as he wanted it.
const STREAM_IS_THERE: [u32; 2] = [10_058, 10_065];
/// The subscriptions' numbers.
const MESSAGES: u32 = 1;
const ANSWERS: u32 = 2;

/// One simulated user.
#[derive(Debug)]
pub struct Nats {
    user: UserId,
    link: Link,
    ping_at: u64,
    /// A part of a message that has not all arrived: frames do not end where messages do.
    held: Vec<u8>,
    books: Books,
}

/// What the server says.
#[derive(Debug, PartialEq, Eq)]
enum Said<'a> {
    /// Its first word, with which it offers what it can.
    Info,
    Message {
        subject: &'a str,
        subscription: u32,
        /// Empty, unless the server has something to say in them.
        headers: &'a str,
        body: &'a str,
    },
    Ping,
    Pong,
    Error(&'a str),
    Other,
}

/// JetStream's answer to anything.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Answer {
    error: Option<Refusal>,
    duplicate: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Refusal {
    err_code: u32,
    description: String,
}

impl Client for Nats {
    const SUBPROTOCOL: Option<&'static str> = None;

    fn new(user: UserId, start_ns: u64) -> Self {
        Self { user, link: Link::new(start_ns), ping_at: u64::MAX, held: Vec::new(), books: Books::default() }
    }

    fn link(&self) -> &Link {
        &self.link
    }

    fn link_mut(&mut self) -> &mut Link {
        &mut self.link
    }

    /// The server speaks first.
    fn upgraded(&mut self, _: &mut Around<'_>) {}

    fn text(&mut self, text: &str, around: &mut Around<'_>) {
        self.binary(text.as_bytes(), around);
    }

    fn binary(&mut self, bytes: &[u8], around: &mut Around<'_>) {
        if self.held.is_empty() {
            let read = self.hear(bytes, around);
            self.held.extend_from_slice(&bytes[read..]);
        } else {
            let mut held = std::mem::take(&mut self.held);
            held.extend_from_slice(bytes);
            let read = self.hear(&held, around);
            held.drain(..read);
            if !held.is_empty() {
                self.held = held;
            }
        }
        if self.held.len() > HELD_BYTES_MAX {
            around.tally.counts.malformed += 1;
            self.link.state = State::Broken;
        }
    }

    fn taken_back(&mut self, around: &mut Around<'_>) {
        self.held = Vec::new();
        self.books.taken_back(around);
    }

    fn write_message(&mut self, to: UserId, due_ns: u64, around: &mut Around<'_>) {
        self.books.write(to, due_ns, around);
        self.send_waiting(around);
    }

    fn give_up_unsent(&mut self, around: &mut Around<'_>) {
        self.books.give_up_unsent(around);
    }

    fn due_at(&self) -> u64 {
        self.ping_at.min(self.books.answer_due_at())
    }

    fn due(&mut self, around: &mut Around<'_>) -> Want {
        if self.ping_at <= around.now_ns {
            self.ping_at = around.now_ns + PING_EVERY_NS;
            around.tally.counts.beats += 1;
            self.say(around, b"PING\r\n");
        }
        self.books.give_up_in_time(&mut self.link, around)
    }

    fn is_settled(&self) -> bool {
        self.books.is_settled()
    }

    fn tell_unknown(&self, around: &mut Around<'_>) {
        self.books.tell_unknown(around);
    }

    fn accounts(&self) -> Vec<Account> {
        self.books.accounts(self.user)
    }
}

impl Nats {
    /// All that is whole; says how many bytes that were.
    fn hear(&mut self, bytes: &[u8], around: &mut Around<'_>) -> usize {
        let mut at = 0;
        while let Some((said, length)) = read(&bytes[at..]) {
            at += length;
            match said {
                Said::Info => self.greet(around),
                Said::Message { subscription: MESSAGES, body, .. } => self.message(body, around),
                Said::Message { subscription: ANSWERS, subject, headers, body } => {
                    self.answer(subject, headers, body, around);
                }
                Said::Ping => self.say(around, b"PONG\r\n"),
                Said::Pong => self.pong(around),
                Said::Error(why) => around.tally.error(why),
                Said::Message { .. } => around.tally.counts.malformed += 1,
                Said::Other => {}
            }
        }
        at
    }

    /// Who it is, and what it wants to hear.
    fn greet(&mut self, around: &mut Around<'_>) {
        const CONNECT: &str = r#"CONNECT {"verbose":false,"pedantic":false,"headers":true,"no_responders":true,"lang":"ringway-loadgen","version":"1","protocol":1}"#;
        // The server says it again whenever what it can has changed.
        if !matches!(self.link.state, State::Opening { .. }) {
            return;
        }
        let user = self.user;
        let hello = if !keeps(around) {
            format!("{CONNECT}\r\nSUB rw.{user} {MESSAGES}\r\nPING\r\n")
        } else if around.place > 0 {
            format!("{CONNECT}\r\nSUB rwjs.{user} {MESSAGES}\r\nSUB _INBOX.rw.{user}.> {ANSWERS}\r\nPING\r\n")
        } else {
            // The PING follows when the stream is there.
            format!(
                "{CONNECT}\r\nSUB rwjs.{user} {MESSAGES}\r\nSUB _INBOX.rw.{user}.> {ANSWERS}\r\n\
                 PUB $JS.API.STREAM.CREATE.ringway-loadgen _INBOX.rw.{user}.stream {}\r\n{STREAM}\r\n",
                STREAM.len()
            )
        };
        self.say(around, hello.as_bytes());
    }

    /// All that was said before was heard.
    fn pong(&mut self, around: &mut Around<'_>) {
        if matches!(self.link.state, State::Opening { .. }) {
            self.link.opened(around);
            self.ping_at = around.now_ns + around.random.below(PING_EVERY_NS);
            self.send_waiting(around);
        }
    }

    fn message(&mut self, body: &str, around: &mut Around<'_>) {
        // Who wrote it stands ahead of the stamp.
        let Some((from, body)) = body.split_once(' ').and_then(|(from, body)| Some((from.parse().ok()?, body))) else {
            around.tally.counts.malformed += 1;
            return;
        };
        let Some(stamp) = Stamp::read(body).filter(|stamp| stamp.run == around.habits.run) else { return };
        let is_new = self.books.arrived(from, stamp, &self.link, around);
        if is_new && !keeps(around) {
            // Nothing else says that it was taken.
            around.tally.counts.acked += 1;
        }
    }

    /// JetStream answered: about the stream, or about a message.
    fn answer(&mut self, subject: &str, headers: &str, body: &str, around: &mut Around<'_>) {
        let refusal = match serde_json::from_str::<Answer>(body) {
            Ok(answer) => {
                around.tally.counts.dup_acks += u64::from(answer.duplicate);
                answer.error
            }
            // `NATS/1.0 503`: nobody there who could answer.
            Err(_) => Some(Refusal { err_code: 0, description: headers.lines().next().unwrap_or_default().to_owned() }),
        };
        let refusal = refusal.filter(|refusal| !STREAM_IS_THERE.contains(&refusal.err_code));
        if let Some(refusal) = &refusal {
            around.tally.error(&format!("JetStream: {}", refusal.description));
        }
        let mut names = subject.rsplit('.');
        match (names.next(), names.next().and_then(|to| to.parse().ok())) {
            (Some("stream"), _) => self.say(around, b"PING\r\n"),
            (Some(counter), Some(to)) => {
                let Ok(counter) = counter.parse() else { return };
                match refusal {
                    None => self.books.acknowledged(to, counter, around),
                    Some(_) => self.books.refused(to, counter, around),
                }
                self.send_waiting(around);
            }
            _ => around.tally.counts.malformed += 1,
        }
    }

    fn send_waiting(&mut self, around: &mut Around<'_>) {
        if !self.link.is_open() {
            return;
        }
        while let Some(letter) = self.books.next(around) {
            let Letter { to, stamp } = letter;
            let from = format!("{} ", self.user);
            stamp.write(around.body, around.habits.payload_bytes.saturating_sub(from.len()));
            let bytes = from.len() + around.body.len();
            let subjects = if keeps(around) {
                self.books.expect_answer(letter, around.now_ns);
                format!("rwjs.{to} _INBOX.rw.{}.{to}.{}", self.user, stamp.counter)
            } else {
                format!("rw.{to}")
            };
            let publication = format!("PUB {subjects} {bytes}\r\n{from}{}\r\n", around.body);
            self.say(around, publication.as_bytes());
        }
    }

    fn say(&mut self, around: &mut Around<'_>, bytes: &[u8]) {
        write_frame(&mut self.link.out, Opcode::Binary, Some(around.random.bytes()), bytes);
    }
}

/// Whether a stream keeps what is published.
fn keeps(around: &Around<'_>) -> bool {
    around.habits.protocol == Protocol::JetStream
}

/// The first thing that the server says, and how long it is; none if it has not all arrived.
fn read(bytes: &[u8]) -> Option<(Said<'_>, usize)> {
    let end = bytes.windows(2).position(|two| two == b"\r\n")?;
    let line = std::str::from_utf8(&bytes[..end]).unwrap_or_default();
    let length = end + 2;
    let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
    let said = match word {
        "INFO" => Said::Info,
        "PING" => Said::Ping,
        "PONG" => Said::Pong,
        "-ERR" => Said::Error(rest),
        "MSG" | "HMSG" => {
            let sizes = if word == "MSG" { 1 } else { 2 };
            let fields: Vec<_> = rest.split(' ').collect();
            let number = |from_end: usize| fields.get(fields.len().checked_sub(from_end)?)?.parse().ok();
            let bytes_all: usize = number(1).unwrap_or(0);
            let bytes_of_headers = if sizes == 2 { number(2).unwrap_or(0).min(bytes_all) } else { 0 };
            // A size that nothing has never arrives, and what is held meanwhile has a bound.
            let end = length.checked_add(bytes_all)?;
            let payload = bytes.get(length..end)?;
            bytes.get(end..end + 2)?;
            let (headers, body) = payload.split_at(bytes_of_headers);
            let said = Said::Message {
                subject: fields[0],
                subscription: fields.get(1).and_then(|number| number.parse().ok()).unwrap_or(0),
                headers: std::str::from_utf8(headers).unwrap_or_default(),
                body: std::str::from_utf8(body).unwrap_or_default(),
            };
            return Some((said, end + 2));
        }
        _ => Said::Other,
    };
    Some((said, length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_that_cannot_be_do_no_harm() {
        for line in ["MSG", "HMSG", "HMSG x", "MSG a 1 18446744073709551615", "MSG a 1 18446744073709551590"] {
            let _ = read(format!("{line}\r\n{:100}", "").as_bytes());
        }
    }

    #[test]
    fn what_the_server_says_is_read_in_pieces() {
        let all = b"INFO {}\r\nPING\r\nMSG rw.8 1 5\r\nhel\r\n\r\nMSG rwjs.8 1 _INBOX.x 2\r\nhi\r\n\
                    HMSG _INBOX.rw.7.8.3 2 16 16\r\nNATS/1.0 503\r\n\r\n\r\n-ERR 'no'\r\nPONG\r\n+OK\r\n";
        let mut seen = Vec::new();
        let mut at = 0;
        for end in 0..=all.len() {
            while let Some((said, length)) = read(&all[at..end]) {
                seen.push(said);
                at += length;
            }
        }
        let message = |subject, subscription, headers, body| Said::Message { subject, subscription, headers, body };
        assert_eq!(
            seen,
            [
                Said::Info,
                Said::Ping,
                message("rw.8", 1, "", "hel\r\n"),
                message("rwjs.8", 1, "", "hi"),
                message("_INBOX.rw.7.8.3", 2, "NATS/1.0 503\r\n\r\n", ""),
                Said::Error("'no'"),
                Said::Pong,
                Said::Other,
            ]
        );
    }
}
