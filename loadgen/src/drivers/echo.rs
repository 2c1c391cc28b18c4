//! A user of a server that sends back what it gets: the plainest thing that a WebSocket server can do.
//!
//! A message to another user cannot be had there: each goes out and comes back on the same connection, which counts as
//! its delivery, and there are no acknowledgements.

use std::collections::VecDeque;

use wire::ids::UserId;
use wire::writer::write_text_with;

use crate::body::Stamp;
use crate::client::{Account, Around, Client, Want};
use crate::ledger::{Arrival, Arrived, Written};
use crate::link::{ANSWER_NS_MAX, Link, State};

/// One simulated user.
#[derive(Debug)]
pub struct Echo {
    user: UserId,
    link: Link,
    books: Option<Box<Books>>,
}

#[derive(Debug, Default)]
struct Books {
    waiting: VecDeque<Stamp>,
    /// Sent, and not back yet.
    in_flight: VecDeque<Stamp>,
    sent_at: u64,
    written: Written,
    arrived: Arrived,
}

impl Client for Echo {
    const SUBPROTOCOL: Option<&'static str> = None;

    fn new(user: UserId, start_ns: u64) -> Self {
        Self { user, link: Link::new(start_ns), books: None }
    }

    fn link(&self) -> &Link {
        &self.link
    }

    fn link_mut(&mut self) -> &mut Link {
        &mut self.link
    }

    fn upgraded(&mut self, around: &mut Around<'_>) {
        self.link.opened(around);
        self.send_waiting(around);
    }

    fn text(&mut self, text: &str, around: &mut Around<'_>) {
        let Some(stamp) = Stamp::read(text).filter(|stamp| stamp.run == around.habits.run) else {
            around.tally.counts.malformed += 1;
            return;
        };
        let books = self.books.get_or_insert_default();
        books.in_flight.retain(|sent| sent.counter != stamp.counter);
        books.sent_at = around.now_ns;
        match books.arrived.take_in(stamp.counter) {
            Arrival::InOrder => {}
            Arrival::Reordered => around.tally.counts.reordered += 1,
            Arrival::Doubled => {
                around.tally.counts.doubled += 1;
                return;
            }
        }
        around.tally.counts.acked += 1;
        around.delivered(stamp.due_ns, &self.link);
        self.send_waiting(around);
    }

    fn binary(&mut self, _: &[u8], around: &mut Around<'_>) {
        around.tally.counts.malformed += 1;
    }

    /// What was under way is gone: an echo keeps nothing, and whether it came back first nobody knows.
    fn taken_back(&mut self, around: &mut Around<'_>) {
        let Some(books) = &mut self.books else { return };
        around.tally.counts.unanswered += books.in_flight.len() as u64;
        books.written.unpromised.extend(books.in_flight.drain(..).map(|stamp| stamp.counter));
    }

    fn write_message(&mut self, _: UserId, due_ns: u64, around: &mut Around<'_>) {
        around.tally.counts.offered += 1;
        let books = self.books.get_or_insert_default();
        let counter = books.written.count();
        books.waiting.push_back(Stamp { run: around.habits.run, counter, due_ns });
        self.send_waiting(around);
    }

    fn give_up_unsent(&mut self, around: &mut Around<'_>) {
        let Some(books) = &mut self.books else { return };
        let given_up = books.waiting.len();
        books.written.next -= given_up as u32;
        books.waiting.clear();
        around.tally.counts.unsent += given_up as u64;
        around.tally.counts.late += given_up as u64;
    }

    fn due_at(&self) -> u64 {
        let waits = self.books.as_ref().filter(|books| !books.in_flight.is_empty());
        waits.map_or(u64::MAX, |books| books.sent_at + ANSWER_NS_MAX)
    }

    fn due(&mut self, around: &mut Around<'_>) -> Want {
        if self.due_at() > around.now_ns {
            return Want::Nothing;
        }
        around.tally.counts.timeouts += 1;
        self.link.state = State::Broken;
        Want::Cut
    }

    fn is_settled(&self) -> bool {
        self.books.as_ref().is_none_or(|books| books.waiting.is_empty() && books.in_flight.is_empty())
    }

    fn tell_unknown(&self, around: &mut Around<'_>) {
        let unanswered = self.books.as_ref().map_or(0, |books| books.in_flight.len());
        around.tally.counts.unanswered += unanswered as u64;
    }

    /// As of two users: what went out, and what came back.
    fn accounts(&self) -> Vec<Account> {
        let Some(books) = &self.books else { return Vec::new() };
        let mut written = books.written.clone();
        written.unpromised.extend(books.in_flight.iter().chain(&books.waiting).map(|stamp| stamp.counter));
        // Nobody else has this number, and it is above every user's.
        let mirror = UserId(!self.user.0);
        let there = Account { user: self.user, peer: mirror, written, arrived: Arrived::default() };
        let back =
            Account { user: mirror, peer: self.user, written: Written::default(), arrived: books.arrived.clone() };
        vec![there, back]
    }
}

impl Echo {
    fn send_waiting(&mut self, around: &mut Around<'_>) {
        let Some(books) = &mut self.books else { return };
        if !self.link.is_open() {
            return;
        }
        while books.in_flight.len() < around.habits.in_flight_max {
            let Some(stamp) = books.waiting.pop_front() else { return };
            if books.in_flight.is_empty() {
                books.sent_at = around.now_ns;
            }
            around.tally.counts.sent += 1;
            let waited_ns = around.now_ns.saturating_sub(stamp.due_ns);
            around.tally.counts.late += u64::from(waited_ns > around.habits.send_within_ns);
            books.in_flight.push_back(stamp);
            stamp.write(around.body, around.habits.payload_bytes);
            let mask = around.random.bytes();
            write_text_with(&mut self.link.out, Some(mask), |out| out.extend_from_slice(around.body.as_bytes()));
        }
    }
}
