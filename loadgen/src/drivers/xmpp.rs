//! A user of XMPP over WebSocket (RFC 7395): signs in by name and password, binds a resource, is there, and asks for
//! stream management (XEP-0198).
//!
//! What the server says to have handled counts as acknowledged: there is at most one question at a time, and whoever
//! has sent more meanwhile asks again when it is answered. Nothing is read out of the server's archive, and no stream is
//! resumed: who was away misses what came meanwhile, unless the server sends it by itself.
//!
//! ```text
//! <message to='8@domain' type='chat' id='C'><body>BODY</body></message>    message number C to user 8
//! <r/>  <a h='17'/>                                                        how much of it was handled?
//! ```

use std::collections::VecDeque;
use std::fmt;
use std::io::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use quick_xml::escape::{escape, resolve_predefined_entity};
use quick_xml::events::{BytesStart, Event};
use quick_xml::{Reader, XmlVersion};
use wire::ids::UserId;
use wire::writer::write_text_with;

use super::books::{Books, Letter};
use crate::body::Stamp;
use crate::client::{Account, Around, Client, Want};
use crate::link::{Link, State};

/// The one device of each user.
const RESOURCE: &str = "1";
const CLIENT: &str = "jabber:client";
const FRAMING: &str = "urn:ietf:params:xml:ns:xmpp-framing";
const SASL: &str = "urn:ietf:params:xml:ns:xmpp-sasl";
const BIND: &str = "urn:ietf:params:xml:ns:xmpp-bind";
const STANZAS: &str = "urn:ietf:params:xml:ns:xmpp-stanzas";
const STREAM_MANAGEMENT: &str = "urn:xmpp:sm:3";

/// One simulated user.
#[derive(Debug)]
pub struct Xmpp {
    user: UserId,
    link: Link,
    /// Whether the server knows who it is.
    is_signed_in: bool,
    /// Whether a question is open how much was handled.
    has_asked: bool,
    /// Stanzas since stream management began: those that came, that were sent, and that the server has handled.
    received: u32,
    sent: u32,
    handled: u32,
    /// Numbers of those sent that are no messages.
    others: VecDeque<u32>,
    books: Books,
}

/// What the server says, as far as anybody looks at it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Stanza {
    name: String,
    kind: String,
    from: String,
    id: String,
    handled: Option<u32>,
    /// Name of the first thing in it.
    first: String,
    body: String,
}

impl Client for Xmpp {
    const SUBPROTOCOL: Option<&'static str> = Some("xmpp");

    fn new(user: UserId, start_ns: u64) -> Self {
        Self {
            user,
            link: Link::new(start_ns),
            is_signed_in: false,
            has_asked: false,
            received: 0,
            sent: 0,
            handled: 0,
            others: VecDeque::new(),
            books: Books::default(),
        }
    }

    fn link(&self) -> &Link {
        &self.link
    }

    fn link_mut(&mut self) -> &mut Link {
        &mut self.link
    }

    fn upgraded(&mut self, around: &mut Around<'_>) {
        self.open_stream(around);
    }

    fn text(&mut self, text: &str, around: &mut Around<'_>) {
        let mut reader = Reader::from_str(text);
        loop {
            match read(&mut reader) {
                Ok(None) => return,
                Ok(Some(stanza)) => self.heard(&stanza, around),
                Err(_) => {
                    around.tally.counts.malformed += 1;
                    return;
                }
            }
        }
    }

    fn binary(&mut self, _: &[u8], around: &mut Around<'_>) {
        around.tally.counts.malformed += 1;
    }

    fn farewell(&mut self, around: &mut Around<'_>) {
        self.say(around, format_args!("<close xmlns='{FRAMING}'/>"));
    }

    fn taken_back(&mut self, around: &mut Around<'_>) {
        (self.is_signed_in, self.has_asked) = (false, false);
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
        self.books.answer_due_at()
    }

    fn due(&mut self, around: &mut Around<'_>) -> Want {
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

impl Xmpp {
    fn heard(&mut self, stanza: &Stanza, around: &mut Around<'_>) {
        if matches!(stanza.name.as_str(), "message" | "presence" | "iq") {
            self.received = self.received.wrapping_add(1);
        }
        match stanza.name.as_str() {
            "features" if self.is_signed_in => self.bind(around),
            "features" => self.sign_in(around),
            "success" => {
                self.is_signed_in = true;
                self.open_stream(around);
            }
            "iq" => self.request_or_answer(stanza, around),
            "enabled" => self.begin(around),
            "message" => self.message(stanza, around),
            "r" => {
                let received = self.received;
                self.say(around, format_args!("<a xmlns='{STREAM_MANAGEMENT}' h='{received}'/>"));
            }
            "a" => self.count_handled(stanza, around),
            "failure" | "failed" | "error" => {
                around.tally.error(&format!("{}: {}", stanza.name, stanza.first));
                self.link.state = State::Broken;
            }
            _ => {}
        }
    }

    fn open_stream(&mut self, around: &mut Around<'_>) {
        let domain = &around.habits.domain;
        self.say(around, format_args!("<open xmlns='{FRAMING}' to='{}' version='1.0'/>", escape(domain)));
    }

    fn sign_in(&mut self, around: &mut Around<'_>) {
        let words = STANDARD.encode(format!("\0{}\0{}", self.user, around.habits.password));
        self.say(around, format_args!("<auth xmlns='{SASL}' mechanism='PLAIN'>{words}</auth>"));
    }

    fn bind(&mut self, around: &mut Around<'_>) {
        let bind = format_args!("<bind xmlns='{BIND}'><resource>{RESOURCE}</resource></bind>");
        self.say(around, format_args!("<iq xmlns='{CLIENT}' type='set' id='bind'>{bind}</iq>"));
    }

    fn request_or_answer(&mut self, stanza: &Stanza, around: &mut Around<'_>) {
        match stanza.kind.as_str() {
            // Presence goes first: what the server has to say to it is not among what is counted.
            "result" if stanza.id == "bind" => {
                self.say(around, format_args!("<presence xmlns='{CLIENT}'/>"));
                self.say(around, format_args!("<enable xmlns='{STREAM_MANAGEMENT}'/>"));
            }
            "error" => {
                around.tally.error(&format!("iq {}: {}", stanza.id, stanza.first));
                self.link.state = State::Broken;
            }
            // That it is not served is an answer too, and to a ping (XEP-0199) as good as any.
            "get" | "set" => {
                let no = format_args!("<error type='cancel'><service-unavailable xmlns='{STANZAS}'/></error>");
                let (to, id) = (escape(&stanza.from), escape(&stanza.id));
                self.say(around, format_args!("<iq xmlns='{CLIENT}' type='error' to='{to}' id='{id}'>{no}</iq>"));
                self.sent = self.sent.wrapping_add(1);
                self.others.push_back(self.sent);
            }
            _ => {}
        }
    }

    /// Stream management counts from here.
    fn begin(&mut self, around: &mut Around<'_>) {
        (self.received, self.sent, self.handled) = (0, 0, 0);
        self.others.clear();
        self.link.opened(around);
        self.send_waiting(around);
    }

    fn message(&mut self, stanza: &Stanza, around: &mut Around<'_>) {
        let peer = stanza.from.split('@').next().and_then(|name| name.parse().ok());
        let Some(peer) = peer else {
            around.tally.counts.malformed += 1;
            return;
        };
        if stanza.kind == "error" {
            around.tally.error(&format!("message: {}", stanza.first));
            if let Ok(counter) = stanza.id.parse() {
                self.books.refused(peer, counter, around);
            }
        } else if let Some(stamp) = Stamp::read(&stanza.body).filter(|stamp| stamp.run == around.habits.run) {
            self.books.arrived(peer, stamp, &self.link, around);
        }
    }

    /// The server has handled everything up to there.
    fn count_handled(&mut self, stanza: &Stanza, around: &mut Around<'_>) {
        let Some(handled) = stanza.handled.filter(|&handled| is_between(self.handled, handled, self.sent)) else {
            // An answer to what was never said, or fewer than before, acknowledges nothing.
            around.tally.counts.malformed += 1;
            return;
        };
        let mut messages = 0;
        while self.handled != handled {
            self.handled = self.handled.wrapping_add(1);
            match self.others.front() {
                Some(other) if *other == self.handled => drop(self.others.pop_front()),
                _ => messages += 1,
            }
        }
        self.has_asked = false;
        self.books.acknowledged_oldest(messages, around);
        self.send_waiting(around);
    }

    fn send_waiting(&mut self, around: &mut Around<'_>) {
        if !self.link.is_open() {
            return;
        }
        while let Some(letter) = self.books.next(around) {
            let Letter { to, stamp } = letter;
            let (domain, counter) = (escape(&around.habits.domain), stamp.counter);
            let head = format_args!("<message xmlns='{CLIENT}' to='{to}@{domain}' type='chat' id='{counter}'>");
            let mask = around.random.bytes();
            write_text_with(&mut self.link.out, Some(mask), |out| {
                write!(out, "{head}<body>{}</body></message>", around.body).expect("writing into a Vec does not fail");
            });
            self.sent = self.sent.wrapping_add(1);
            self.books.expect_answer(letter, around.now_ns);
        }
        if self.books.unanswered() > 0 && !self.has_asked {
            self.has_asked = true;
            self.say(around, format_args!("<r xmlns='{STREAM_MANAGEMENT}'/>"));
        }
    }

    fn say(&mut self, around: &mut Around<'_>, words: fmt::Arguments<'_>) {
        let mask = around.random.bytes();
        write_text_with(&mut self.link.out, Some(mask), |out| {
            out.write_fmt(words).expect("writing into a Vec does not fail");
        });
    }
}

impl Stanza {
    fn of(start: &BytesStart<'_>) -> Result<Self, quick_xml::Error> {
        let mut stanza = Self { name: local_name(start), ..Self::default() };
        for attribute in start.attributes() {
            let attribute = attribute?;
            let value = attribute.normalized_value(XmlVersion::Explicit1_0)?.into_owned();
            match attribute.key.as_ref() {
                "type" => stanza.kind = value,
                "from" => stanza.from = value,
                "id" => stanza.id = value,
                "h" => stanza.handled = value.parse().ok(),
                _ => {}
            }
        }
        Ok(stanza)
    }
}

/// Whether a number lies from `first` to `last`, both of which may have come round.
fn is_between(first: u32, number: u32, last: u32) -> bool {
    number.wrapping_sub(first) <= last.wrapping_sub(first)
}

fn local_name(start: &BytesStart<'_>) -> String {
    start.local_name().as_ref().to_owned()
}

/// The next stanza; none at the end.
fn read(reader: &mut Reader<&[u8]>) -> Result<Option<Stanza>, quick_xml::Error> {
    let mut stanza: Option<Stanza> = None;
    let (mut depth, mut in_body) = (0, false);
    loop {
        let event = reader.read_event()?;
        let is_empty = matches!(event, Event::Empty(_));
        match &event {
            Event::Start(start) | Event::Empty(start) => {
                match &mut stanza {
                    None => stanza = Some(Stanza::of(start)?),
                    Some(stanza) if depth == 1 => {
                        let name = local_name(start);
                        in_body = name == "body" && !is_empty;
                        if stanza.first.is_empty() {
                            stanza.first = name;
                        }
                    }
                    Some(_) => {}
                }
                depth += usize::from(!is_empty);
            }
            Event::End(_) => {
                depth -= 1;
                in_body = false;
            }
            Event::Text(text) if in_body => {
                stanza.get_or_insert_default().body.push_str(&text.xml10_content());
            }
            Event::GeneralRef(reference) if in_body => {
                let body = &mut stanza.get_or_insert_default().body;
                match reference.resolve_char_ref()? {
                    Some(char) => body.push(char),
                    None => body.push_str(resolve_predefined_entity(&reference.xml10_content()).unwrap_or_default()),
                }
            }
            Event::Eof => return Ok(None),
            _ => {}
        }
        if depth == 0 && stanza.is_some() {
            return Ok(stanza);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(text: &str) -> Vec<Stanza> {
        let mut reader = Reader::from_str(text);
        std::iter::from_fn(|| read(&mut reader).unwrap()).collect()
    }

    #[test]
    fn only_what_was_sent_can_be_handled() {
        assert!(is_between(3, 3, 7) && is_between(3, 7, 7) && is_between(u32::MAX, 1, 2));
        assert!(!is_between(3, 2, 7) && !is_between(3, 8, 7) && !is_between(u32::MAX, u32::MAX - 1, 2));
    }

    #[test]
    fn stanzas_are_read_as_far_as_anybody_looks_at_them() {
        let message = "<message xmlns='jabber:client' from='8@x/1' id='3'><archived id='9'/><body>a &lt;b&gt; &#99;</body>\
                       <stanza-id id='9'><body>no</body></stanza-id></message>";
        let text = format!("{message}<a xmlns='urn:xmpp:sm:3' h='17'/><stream:features><bind/></stream:features>");
        let stanza = |name: &str| Stanza { name: name.to_owned(), ..Stanza::default() };
        assert_eq!(
            all(&text),
            [
                Stanza {
                    from: "8@x/1".to_owned(),
                    id: "3".to_owned(),
                    first: "archived".to_owned(),
                    body: "a <b> c".to_owned(),
                    ..stanza("message")
                },
                Stanza { handled: Some(17), ..stanza("a") },
                Stanza { first: "bind".to_owned(), ..stanza("features") },
            ]
        );
        assert!(read(&mut Reader::from_str("<message><body>")).unwrap().is_none());
        assert!(read(&mut Reader::from_str("<message></body>")).is_err());
    }
}
