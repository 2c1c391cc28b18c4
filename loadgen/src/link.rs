//! Where a simulated user's connection stands, and when it is made again. No protocol and no socket.

use wire::reader::Reader;

use crate::client::Around;

/// Nanoseconds in a millisecond.
pub const MS: u64 = 1_000_000;
/// How long an answer may take before the connection is given up.
pub const ANSWER_NS_MAX: u64 = 10_000 * MS;

/// Where it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// To connect then.
    Waiting {
        /// When.
        until_ns: u64,
    },
    /// Until then the connection must be made, upgraded and opened.
    Connecting {
        /// When it is given up.
        deadline_ns: u64,
    },
    /// The upgrade was asked for.
    Upgrading {
        /// When it is given up.
        deadline_ns: u64,
    },
    /// Frames go back and forth, but no messages yet.
    Opening {
        /// When it is given up.
        deadline_ns: u64,
    },
    /// Messages may be sent.
    Open,
    /// It said that it goes; the server has until then to agree.
    Leaving {
        /// When it is cut.
        deadline_ns: u64,
    },
    /// To be cut by whoever holds the socket.
    Broken,
    /// Told not to come back, or the run is over.
    Stopped,
}

/// How a connection is to end on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// In order, by a close frame.
    InOrder,
    /// By a reset, and the time until it is open again counts.
    Storm,
    /// By a reset.
    Reset,
}

/// One user's connection.
#[derive(Debug)]
pub struct Link {
    /// Where it stands.
    pub state: State,
    /// To be sent.
    pub out: Vec<u8>,
    /// Frames, once it is upgraded.
    pub(crate) reader: Option<Reader>,
    /// The answer to the upgrade, until it is whole.
    pub(crate) upgrade: Option<Box<Upgrade>>,
    /// When the connection was to begin.
    pub begun_ns: u64,
    /// When the last bytes came.
    pub heard_at: u64,
    /// When it was cut, if the time until it is open again counts; 0 if not.
    cut_at: u64,
    /// It, or the plan, knows when to come back.
    return_at: Option<u64>,
    /// It was away on purpose, from when until when.
    pub absent: (u64, u64),
    attempts: u8,
    was_open: bool,
    on_purpose: bool,
}

/// An upgrade under way.
#[derive(Debug, Default)]
pub(crate) struct Upgrade {
    pub(crate) nonce: [u8; 16],
    pub(crate) head: Vec<u8>,
}

impl Link {
    /// To connect at `start_ns`.
    pub fn new(start_ns: u64) -> Self {
        Self {
            state: State::Waiting { until_ns: start_ns },
            out: Vec::new(),
            reader: None,
            upgrade: None,
            begun_ns: start_ns,
            heard_at: 0,
            cut_at: 0,
            return_at: None,
            absent: (0, 0),
            attempts: 0,
            was_open: false,
            on_purpose: false,
        }
    }

    /// Whether messages may be sent.
    pub fn is_open(&self) -> bool {
        self.state == State::Open
    }

    /// Whether it has been open at least once.
    pub fn was_open(&self) -> bool {
        self.was_open
    }

    /// The protocol has opened its session.
    pub fn opened(&mut self, around: &mut Around<'_>) {
        self.state = State::Open;
        self.attempts = 0;
        let tally = &mut *around.tally;
        tally.counts.opened += 1;
        tally.opening.record(around.now_ns.saturating_sub(self.begun_ns));
        tally.counts.reopened += u64::from(std::mem::replace(&mut self.was_open, true));
        let cut_at = std::mem::take(&mut self.cut_at);
        if cut_at > 0 {
            tally.resume.record(around.now_ns.saturating_sub(cut_at));
        }
    }

    /// Whether the message was due while it was away on purpose.
    pub fn was_away(&self, due_ns: u64) -> bool {
        (self.absent.0..self.absent.1).contains(&due_ns)
    }

    /// The server said when to come back.
    pub fn break_off(&mut self, return_at: Option<u64>) {
        self.return_at = return_at.or(self.return_at);
        self.state = State::Broken;
    }

    /// Marks the connection to end on purpose; says whether there is one, or will be.
    pub(crate) fn leave(&mut self, until_ns: u64, ending: Ending, now_ns: u64) -> bool {
        if ending == Ending::Storm {
            self.cut_at = now_ns;
        } else {
            self.absent = (now_ns, until_ns);
        }
        match &mut self.state {
            State::Waiting { until_ns: waits } => {
                *waits = until_ns;
                false
            }
            State::Stopped => false,
            State::Leaving { .. } | State::Broken => {
                self.return_at = Some(until_ns);
                true
            }
            _ => {
                self.on_purpose = true;
                self.return_at = Some(until_ns);
                true
            }
        }
    }

    /// The connection has ended, or there was none to be had: when to try again.
    pub(crate) fn ended(&mut self, around: &mut Around<'_>) {
        let on_purpose = std::mem::take(&mut self.on_purpose);
        let counts = &mut around.tally.counts;
        if on_purpose {
            counts.ended_on_purpose += 1;
        } else if matches!(self.state, State::Connecting { .. }) {
            counts.connect_failures += 1;
        } else {
            counts.cut += 1;
            if self.was_open && self.cut_at == 0 {
                self.cut_at = around.now_ns;
            }
        }
        self.reader = None;
        self.upgrade = None;
        self.out.clear();
        let bound_ns = (around.habits.backoff_ns << self.attempts.min(20)).min(around.habits.backoff_ns_max);
        self.attempts = self.attempts.saturating_add(u8::from(!on_purpose));
        let until_ns = self.return_at.take().unwrap_or_else(|| around.now_ns + around.random.below(bound_ns));
        self.state = State::Waiting { until_ns };
    }
}
