//! One conversation as one phone has it: what was applied, what is held back, what is on its way out.

use std::collections::{BTreeSet, VecDeque};

use wire::ids::ClientMessageId;
use wire::protocol::Kind;

/// What the phone expects of a send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// Some seq.
    Stored,
    /// This seq again: the id was acknowledged before.
    Again(u64),
    /// A conflict: the id was acknowledged with another body.
    Conflict,
}

/// Where a send is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Never sent on this connection.
    Fresh,
    /// Sent; no answer yet.
    InFlight { since_ms: u64 },
    /// Answered with an error; not again before then.
    Failed { not_before_ms: u64 },
}

/// A message on its way out.
#[derive(Debug, Clone)]
pub struct Outgoing {
    pub id: ClientMessageId,
    pub kind: Kind,
    pub body: String,
    pub reply_to: Option<u64>,
    pub target_seq: Option<u64>,
    pub expect: Expect,
    pub way: Way,
    /// When it was written, by the true clock.
    pub written_ms: u64,
    /// When it was first sent, by the true clock.
    pub sent_ms: Option<u64>,
}

/// A pull that has not been answered.
#[derive(Debug, Clone, Copy)]
pub struct Pulling {
    pub after: Option<u64>,
    pub before: Option<u64>,
    /// What had been shown to anyone when it was asked.
    pub floor: u64,
    pub since_ms: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub struct ChatLog {
    /// Messages 1..=have were applied.
    pub have: u64,
    /// Higher ones that wait for those between.
    held: BTreeSet<u64>,
    /// The highest seq heard of.
    pub head: u64,
    pub outgoing: VecDeque<Outgoing>,
    /// Acknowledged sends, to be repeated on purpose.
    pub acknowledged: Vec<(Outgoing, u64)>,
    /// Failed sends that were given up on this connection, to be told in the next send.
    pub skip: Option<ClientMessageId>,
    pub pulling: Option<Pulling>,
    pub pull_not_before_ms: u64,
    /// An error came that may have been for the pull or for something else.
    pub is_ambiguous: bool,
    /// Something was refused that may have been marks: they are given again then.
    pub marks_due_ms: Option<u64>,
    /// Own marks as this device knows and gave them.
    pub read: u64,
    /// The ticks told on this connection.
    pub tick: (u64, u64),
    /// Received on this connection and not acknowledged by a beat.
    pub unbeaten: u64,
}

impl ChatLog {
    /// A message arrived, pushed or pulled.
    pub fn take(&mut self, seq: u64) {
        self.head = self.head.max(seq);
        if seq == self.have + 1 {
            self.have = seq;
            while self.held.remove(&(self.have + 1)) {
                self.have += 1;
            }
        } else if seq > self.have {
            self.held.insert(seq);
        }
    }

    /// Whether something is known to be missing.
    pub fn has_hole(&self) -> bool {
        self.have < self.head
    }

    /// Nothing of it is left to be sent, asked or fetched.
    pub fn is_at_rest(&self) -> bool {
        self.outgoing.is_empty() && self.pulling.is_none() && !self.has_hole() && self.marks_due_ms.is_none()
    }

    /// The connection is gone: what was under way is not any more.
    pub fn cut(&mut self) {
        self.pulling = None;
        self.pull_not_before_ms = 0;
        self.skip = None;
        self.is_ambiguous = false;
        self.marks_due_ms = None;
        self.tick = (0, 0);
        self.unbeaten = 0;
        for outgoing in &mut self.outgoing {
            outgoing.way = Way::Fresh;
        }
    }

    /// Whether some send failed and has not been sent again.
    pub fn has_failed(&self) -> bool {
        self.outgoing.iter().any(|outgoing| matches!(outgoing.way, Way::Failed { .. }))
    }

    /// Sends without an answer.
    pub fn in_flight(&self) -> usize {
        self.outgoing.iter().filter(|outgoing| matches!(outgoing.way, Way::InFlight { .. })).count()
    }

    /// The conversation is gone from the server: everything of it is read again.
    pub fn forget_history(&mut self) {
        self.have = 0;
        self.head = 0;
        self.held.clear();
        self.acknowledged.clear();
    }
}
