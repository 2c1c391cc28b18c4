//! What a user keeps of its messages where nothing is sent again after a cut: those that wait, those without an
//! answer, and what arrived from whom.

use std::collections::VecDeque;

use wire::ids::UserId;

use crate::body::Stamp;
use crate::client::{Account, Around, Want};
use crate::ledger::{Arrival, Arrived, Written};
use crate::link::{ANSWER_NS_MAX, Link, State};

/// A message on its way, and to whom.
#[derive(Debug, Clone, Copy)]
pub(super) struct Letter {
    pub(super) to: UserId,
    pub(super) stamp: Stamp,
}

/// All that a user wrote and got; nothing, until it has to do with a message.
#[derive(Debug, Default)]
pub(super) struct Books(Option<Box<Pages>>);

#[derive(Debug, Default)]
struct Pages {
    waiting: VecDeque<Letter>,
    /// Sent, and without an answer, in the order of sending.
    unanswered: VecDeque<Letter>,
    /// When the server last answered, or last had nothing to answer.
    answered_at: u64,
    peers: Vec<Peer>,
}

#[derive(Debug)]
struct Peer {
    user: UserId,
    written: Written,
    arrived: Arrived,
}

impl Books {
    fn pages(&mut self) -> &mut Pages {
        self.0.get_or_insert_default()
    }

    /// A message fell due.
    pub(super) fn write(&mut self, to: UserId, due_ns: u64, around: &mut Around<'_>) {
        around.tally.counts.offered += 1;
        let pages = self.pages();
        let counter = pages.peer(to).written.count();
        pages.waiting.push_back(Letter { to, stamp: Stamp { run: around.habits.run, counter, due_ns } });
    }

    /// The next message to send, its body being built; none if there is none, or too many have no answer.
    pub(super) fn next(&mut self, around: &mut Around<'_>) -> Option<Letter> {
        let pages = self.0.as_deref_mut()?;
        if pages.unanswered.len() >= around.habits.in_flight_max {
            return None;
        }
        let letter = pages.waiting.pop_front()?;
        let waited_ns = around.now_ns.saturating_sub(letter.stamp.due_ns);
        around.tally.counts.sent += 1;
        around.tally.counts.late += u64::from(waited_ns > around.habits.send_within_ns);
        letter.stamp.write(around.body, around.habits.payload_bytes);
        Some(letter)
    }

    /// The server owes an answer to this one.
    pub(super) fn expect_answer(&mut self, letter: Letter, now_ns: u64) {
        let pages = self.pages();
        if pages.unanswered.is_empty() {
            pages.answered_at = now_ns;
        }
        pages.unanswered.push_back(letter);
    }

    /// How many the server owes an answer to.
    pub(super) fn unanswered(&self) -> usize {
        self.0.as_ref().map_or(0, |pages| pages.unanswered.len())
    }

    /// The server keeps this one.
    pub(super) fn acknowledged(&mut self, to: UserId, counter: u32, around: &mut Around<'_>) {
        let pages = self.pages();
        if let Some(at) = pages.place(to, counter) {
            pages.acknowledge(at, around);
        }
    }

    /// This one is back, which answers it and promises nothing.
    pub(super) fn returned(&mut self, to: UserId, counter: u32, around: &mut Around<'_>) {
        let pages = self.pages();
        if let Some(at) = pages.place(to, counter) {
            pages.unanswered.remove(at);
            pages.answered_at = around.now_ns;
            around.tally.counts.acked += 1;
        }
    }

    /// The server keeps the oldest ones, so many.
    pub(super) fn acknowledged_oldest(&mut self, count: usize, around: &mut Around<'_>) {
        let pages = self.pages();
        for _ in 0..count.min(pages.unanswered.len()) {
            pages.acknowledge(0, around);
        }
    }

    /// The server does not keep this one.
    pub(super) fn refused(&mut self, to: UserId, counter: u32, around: &mut Around<'_>) {
        let pages = self.pages();
        if let Some(at) = pages.place(to, counter) {
            pages.unanswered.remove(at);
            pages.answered_at = around.now_ns;
        }
        around.tally.counts.failed += 1;
        pages.peer(to).written.unpromised.push(counter);
    }

    /// A message of this run arrived; says whether it is the first of its kind.
    pub(super) fn arrived(&mut self, from: UserId, stamp: Stamp, link: &Link, around: &mut Around<'_>) -> bool {
        match self.pages().peer(from).arrived.take_in(stamp.counter) {
            Arrival::InOrder => {}
            Arrival::Reordered => around.tally.counts.reordered += 1,
            Arrival::Doubled => {
                around.tally.counts.doubled += 1;
                return false;
            }
            Arrival::Unwritten => {
                around.tally.counts.malformed += 1;
                return false;
            }
        }
        around.delivered(stamp.due_ns, link);
        true
    }

    /// The connection is gone: whether the server took what it did not answer, nobody knows.
    pub(super) fn taken_back(&mut self, around: &mut Around<'_>) {
        let Some(pages) = self.0.as_deref_mut() else { return };
        around.tally.counts.unanswered += pages.unanswered.len() as u64;
        while let Some(Letter { to, stamp }) = pages.unanswered.pop_front() {
            pages.peer(to).written.unpromised.push(stamp.counter);
        }
    }

    /// What was never sent was never written.
    pub(super) fn give_up_unsent(&mut self, around: &mut Around<'_>) {
        let Some(pages) = self.0.as_deref_mut() else { return };
        around.tally.counts.unsent += pages.waiting.len() as u64;
        around.tally.counts.late += pages.waiting.len() as u64;
        while let Some(Letter { to, .. }) = pages.waiting.pop_back() {
            pages.peer(to).written.next -= 1;
        }
    }

    /// When the server has owed an answer for too long.
    pub(super) fn answer_due_at(&self) -> u64 {
        let waits = self.0.as_ref().filter(|pages| !pages.unanswered.is_empty());
        waits.map_or(u64::MAX, |pages| pages.answered_at + ANSWER_NS_MAX)
    }

    /// Breaks off if it has.
    pub(super) fn give_up_in_time(&self, link: &mut Link, around: &mut Around<'_>) -> Want {
        if self.answer_due_at() > around.now_ns {
            return Want::Nothing;
        }
        around.tally.counts.timeouts += 1;
        link.state = State::Broken;
        Want::Cut
    }

    /// Whether everything was sent and has its answer.
    pub(super) fn is_settled(&self) -> bool {
        self.0.as_ref().is_none_or(|pages| pages.waiting.is_empty() && pages.unanswered.is_empty())
    }

    /// All is over.
    pub(super) fn tell_unknown(&self, around: &mut Around<'_>) {
        around.tally.counts.unanswered += self.unanswered() as u64;
    }

    /// What `user` wrote to whom, and what it got from there.
    pub(super) fn accounts(&self, user: UserId) -> Vec<Account> {
        let Some(pages) = self.0.as_deref() else { return Vec::new() };
        let account = |peer: &Peer| {
            let mut written = peer.written.clone();
            let open = pages.waiting.iter().chain(&pages.unanswered).filter(|letter| letter.to == peer.user);
            written.unpromised.extend(open.map(|letter| letter.stamp.counter));
            Account { user, peer: peer.user, written, arrived: peer.arrived.clone() }
        };
        pages.peers.iter().map(account).collect()
    }
}

impl Pages {
    fn peer(&mut self, user: UserId) -> &mut Peer {
        let at = self.peers.iter().position(|peer| peer.user == user).unwrap_or_else(|| {
            self.peers.push(Peer { user, written: Written::default(), arrived: Arrived::default() });
            self.peers.len() - 1
        });
        &mut self.peers[at]
    }

    fn place(&self, to: UserId, counter: u32) -> Option<usize> {
        self.unanswered.iter().position(|letter| letter.to == to && letter.stamp.counter == counter)
    }

    fn acknowledge(&mut self, at: usize, around: &mut Around<'_>) {
        let Some(letter) = self.unanswered.remove(at) else { return };
        self.answered_at = around.now_ns;
        around.tally.counts.acked += 1;
        around.tally.ack.record(around.now_ns.saturating_sub(letter.stamp.due_ns));
    }
}
