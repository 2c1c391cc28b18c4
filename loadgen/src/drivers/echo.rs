//! A user of a server that sends back what it gets: the plainest thing that a WebSocket server can do.
//!
//! A message to another user cannot be had there: each goes out and comes back on the same connection, which counts as
//! its delivery, and there are no acknowledgements.

use wire::ids::UserId;
use wire::writer::write_text_with;

use super::books::Books;
use crate::body::Stamp;
use crate::client::{Account, Around, Client, Want};
use crate::ledger::{Arrived, Written};
use crate::link::Link;

/// One simulated user.
#[derive(Debug)]
pub struct Echo {
    user: UserId,
    link: Link,
    books: Books,
}

impl Client for Echo {
    const SUBPROTOCOL: Option<&'static str> = None;

    fn new(user: UserId, start_ns: u64) -> Self {
        Self { user, link: Link::new(start_ns), books: Books::default() }
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
        self.books.returned(self.mirror(), stamp.counter, around);
        self.books.arrived(self.mirror(), stamp, &self.link, around);
        self.send_waiting(around);
    }

    fn binary(&mut self, _: &[u8], around: &mut Around<'_>) {
        around.tally.counts.malformed += 1;
    }

    fn taken_back(&mut self, around: &mut Around<'_>) {
        self.books.taken_back(around);
    }

    fn write_message(&mut self, _: UserId, due_ns: u64, around: &mut Around<'_>) {
        self.books.write(self.mirror(), due_ns, around);
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

    /// As of two users: what went out, and what came back.
    fn accounts(&self) -> Vec<Account> {
        let apart = |both: Account| {
            let there = Account { arrived: Arrived::default(), ..both.clone() };
            let back = Account { user: both.peer, peer: both.user, written: Written::default(), arrived: both.arrived };
            [there, back]
        };
        self.books.accounts(self.user).into_iter().flat_map(apart).collect()
    }
}

impl Echo {
    /// Whom it talks to. Nobody else has this number, and it is above every user's.
    fn mirror(&self) -> UserId {
        UserId(!self.user.0)
    }

    fn send_waiting(&mut self, around: &mut Around<'_>) {
        if !self.link.is_open() {
            return;
        }
        while let Some(letter) = self.books.next(around) {
            self.books.expect_answer(letter, around.now_ns);
            let mask = around.random.bytes();
            write_text_with(&mut self.link.out, Some(mask), |out| out.extend_from_slice(around.body.as_bytes()));
        }
    }
}
