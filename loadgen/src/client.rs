//! What the engine asks of a simulated user, whatever protocol it speaks over its WebSocket.
//!
//! A protocol is one file in `drivers/`: it says the first word, reads frames, writes messages and keeps what it
//! needs to find losses. Connecting, upgrading, backing off and ending are the same for all and live here.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use wire::ids::UserId;
use wire::reader::{Event, Input, Reader};
use wire::upgrade::{UpgradeRequest, read_upgrade_response, write_upgrade_request};
use wire::websocket::{Limits, Role};
use wire::writer::{Opcode, write_close, write_frame};

use crate::acks::AckWriter;
use crate::credentials::Tokens;
use crate::ledger::{Arrived, Written};
use crate::link::{ANSWER_NS_MAX, Ending, Link, State, Upgrade};
use crate::random::Random;
use crate::scenario::Protocol;
use crate::tally::{Counts, Tally};

/// No server of ours sends longer frames: a page holds 100 messages of 64 KiB at most.
const LIMITS: Limits = Limits { message_bytes_max: 16 << 20, fragments_max: 32 };

/// What all users have in common.
#[derive(Debug, Clone)]
pub struct Habits {
    /// `Host` of the server.
    pub host: String,
    /// Path of the WebSocket.
    pub target: String,
    /// What the server speaks.
    pub protocol: Protocol,
    /// With XMPP: where the users are.
    pub domain: String,
    /// With XMPP: what all of them sign in with.
    pub password: String,
    /// Tells this run's messages from others'.
    pub run: u32,
    /// Bytes of a message's body.
    pub payload_bytes: usize,
    /// Messages that one user has in flight; more wait, and their latency counts on.
    pub in_flight_max: usize,
    /// A message that leaves later than this after it was due counts as late.
    pub send_within_ns: u64,
    /// How many conversations a user has at most.
    pub conversations: u32,
    /// A read mark is sent this long after something was read; more that is read meanwhile rides along.
    pub mark_ns: u64,
    /// Back-off begins with this and doubles.
    pub backoff_ns: u64,
    /// Back-off ends with this.
    pub backoff_ns_max: u64,
    /// Every hundredth message is sent again after it was acknowledged, to see that it keeps its seq.
    pub resend: bool,
    /// Milliseconds since 1970 when the run began.
    pub unix_ms: u64,
}

/// Which part a user has in what the scenario does to some of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Part {
    /// Nothing is done to it or to those it talks to.
    #[default]
    Untouched,
    /// It is cut, leaves, or talks to one that does.
    Touched,
    /// It reads slowly.
    Slow,
    /// It talks to one on another machine, whose clock is not this one's.
    Abroad,
}

/// What a user needs from its thread.
pub struct Around<'a> {
    /// Nanoseconds since the run began.
    pub now_ns: u64,
    pub habits: &'a Habits,
    pub tokens: &'a Tokens,
    /// Where among the tokens this user's is.
    pub place: u32,
    pub part: Part,
    /// For those whose partner is on another machine: what to add to his times to have them in one's own.
    pub partner_ahead_ns: i64,
    /// Whether something has been done to others.
    pub disturbed: bool,
    pub random: &'a mut Random,
    pub tally: &'a mut Tally,
    pub acks: Option<&'a mut AckWriter>,
    /// Acknowledgements until the next message is repeated on purpose.
    pub repeat_in: &'a mut u32,
    /// Room to build a body in.
    pub body: &'a mut String,
}

impl Around<'_> {
    /// A message that was due then, by its sender's clock, has arrived in order.
    pub fn delivered(&mut self, due_ns: u64, link: &Link) {
        self.tally.counts.delivered += 1;
        let is_abroad = self.part == Part::Abroad;
        let due_ns = if is_abroad { due_ns.saturating_add_signed(self.partner_ahead_ns) } else { due_ns };
        // Clocks that are known to a certain error only may show the answer before the question.
        let took_ns = self.now_ns.saturating_sub(due_ns);
        if link.was_away(due_ns) {
            // Nobody could have had it sooner; how long catching up took is measured for itself.
            self.tally.counts.delivered_on_return += 1;
        } else if is_abroad {
            self.tally.counts.delivered_abroad += 1;
            self.tally.abroad.record(took_ns);
        } else if self.part == Part::Slow {
            self.tally.slow.record(took_ns);
        } else {
            self.tally.delivery.record(took_ns);
            if self.part == Part::Untouched && self.disturbed {
                self.tally.untouched.record(took_ns);
            }
        }
    }
}

/// What whoever holds the socket has to do for a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// Nothing but to send what is in `out`.
    Nothing,
    /// A connection.
    Connect,
    /// To be cut off from its connection.
    Cut,
}

/// What one user knows of what it wrote to another, and of what it got from there.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Account {
    #[serde(with = "as_number")]
    pub user: UserId,
    #[serde(with = "as_number")]
    pub peer: UserId,
    pub written: Written,
    pub arrived: Arrived,
}

mod as_number {
    use serde::{Deserialize, Deserializer, Serializer};
    use wire::ids::UserId;

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
    pub(super) fn serialize<S: Serializer>(user: &UserId, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(user.0)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<UserId, D::Error> {
        u64::deserialize(deserializer).map(UserId)
    }
}

impl Account {
    /// What the other would say who has not even heard of this one.
    #[must_use]
    pub fn unheard_of(&self) -> Self {
        Self { user: self.peer, peer: self.user, written: Written::default(), arrived: Arrived::default() }
    }
}

/// One simulated user. The methods without a body are the protocol's.
pub trait Client: Sized + Send {
    /// The subprotocol that it offers.
    const SUBPROTOCOL: Option<&'static str>;

    /// A user who connects at `start_ns`.
    fn new(user: UserId, start_ns: u64) -> Self;

    /// Its connection.
    fn link(&self) -> &Link;

    /// Its connection.
    fn link_mut(&mut self) -> &mut Link;

    /// The WebSocket stands: says what the protocol says first.
    fn upgraded(&mut self, around: &mut Around<'_>);

    /// A text frame.
    fn text(&mut self, text: &str, around: &mut Around<'_>);

    /// A binary frame.
    fn binary(&mut self, bytes: &[u8], around: &mut Around<'_>);

    /// A close frame, with its number; it may keep the user from coming back.
    fn closing(&mut self, code: u16, around: &mut Around<'_>) {
        around.tally.error(&format!("close {code}"));
        self.link_mut().state = State::Broken;
    }

    /// What the protocol says last, before a connection ends in order.
    fn farewell(&mut self, _: &mut Around<'_>) {}

    /// The connection is gone: nothing is with the server any more.
    fn taken_back(&mut self, around: &mut Around<'_>);

    /// A message fell due. It is sent at once if it can be, and waits otherwise.
    fn write_message(&mut self, to: UserId, due_ns: u64, around: &mut Around<'_>);

    /// Gives up what was never sent; what was sent goes on waiting for its answer.
    fn give_up_unsent(&mut self, around: &mut Around<'_>);

    /// While open: when [`Self::due`] must be called next.
    fn due_at(&self) -> u64;

    /// While open: what falls due by time alone.
    fn due(&mut self, around: &mut Around<'_>) -> Want;

    /// Whether every message has its answer.
    fn is_settled(&self) -> bool;

    /// All is over: counts, and writes down, what was sent and never answered.
    fn tell_unknown(&self, around: &mut Around<'_>);

    /// What it wrote to whom, and what it got from there.
    fn accounts(&self) -> Vec<Account>;

    /// When [`Self::tick`] must be called next.
    fn wakes_at(&self) -> u64 {
        match self.link().state {
            State::Waiting { until_ns } => until_ns,
            State::Connecting { deadline_ns }
            | State::Upgrading { deadline_ns }
            | State::Opening { deadline_ns }
            | State::Leaving { deadline_ns } => deadline_ns,
            State::Broken | State::Stopped => u64::MAX,
            State::Open => self.due_at(),
        }
    }

    /// What falls due by time alone.
    fn tick(&mut self, around: &mut Around<'_>) -> Want {
        let now_ns = around.now_ns;
        let link = self.link_mut();
        match link.state {
            State::Waiting { until_ns } if until_ns <= now_ns => {
                link.state = State::Connecting { deadline_ns: now_ns + ANSWER_NS_MAX };
                // From when it was to begin: a generator that comes late is not the server's merit.
                link.begun_ns = until_ns;
                around.tally.counts.connects += 1;
                Want::Connect
            }
            State::Connecting { deadline_ns } | State::Upgrading { deadline_ns } | State::Opening { deadline_ns }
                if deadline_ns <= now_ns =>
            {
                around.tally.counts.timeouts += 1;
                link.state = State::Broken;
                Want::Cut
            }
            State::Leaving { deadline_ns } if deadline_ns <= now_ns => Want::Cut,
            State::Open => self.due(around),
            State::Broken => Want::Cut,
            _ => Want::Nothing,
        }
    }

    /// A connection stands: asks for the upgrade.
    fn connected(&mut self, around: &mut Around<'_>) -> Want {
        let link = self.link_mut();
        let State::Connecting { deadline_ns } = link.state else { return Want::Cut };
        link.state = State::Upgrading { deadline_ns };
        let nonce = around.random.bytes();
        link.out.clear();
        let token = around.tokens.get(around.place);
        let request = upgrade_request(around.habits, nonce, Self::SUBPROTOCOL, token.as_deref());
        write_upgrade_request(&mut link.out, &request);
        link.upgrade = Some(Box::new(Upgrade { nonce, head: Vec::new() }));
        Want::Nothing
    }

    /// There is no connection any more, or there was none to be had.
    fn disconnected(&mut self, around: &mut Around<'_>) {
        if self.link().state == State::Stopped {
            return;
        }
        self.link_mut().ended(around);
        self.taken_back(around);
    }

    /// Leaves on purpose, to come back then.
    fn leave(&mut self, until_ns: u64, ending: Ending, around: &mut Around<'_>) -> Want {
        let link = self.link_mut();
        let open = link.is_open();
        if !link.leave(until_ns, ending, around.now_ns) {
            return Want::Nothing;
        }
        if open && ending == Ending::InOrder {
            self.farewell(around);
            let link = self.link_mut();
            link.state = State::Leaving { deadline_ns: around.now_ns + ANSWER_NS_MAX };
            write_close(&mut link.out, Some(around.random.bytes()), 1000, "");
            return Want::Nothing;
        }
        link.state = State::Broken;
        Want::Cut
    }

    /// Ends the session in order; nothing follows.
    fn hang_up(&mut self, around: &mut Around<'_>) -> Want {
        let link = self.link_mut();
        let open = link.is_open();
        link.state = State::Stopped;
        if open {
            self.farewell(around);
            let link = self.link_mut();
            write_close(&mut link.out, Some(around.random.bytes()), 1000, "");
            return Want::Nothing;
        }
        Want::Cut
    }

    /// Bytes arrived.
    fn received(&mut self, bytes: &mut [u8], around: &mut Around<'_>) -> Want {
        around.tally.counts.bytes_in += bytes.len() as u64;
        self.link_mut().heard_at = around.now_ns;
        match self.link().state {
            State::Upgrading { .. } => self.upgrading(bytes, around),
            State::Opening { .. } | State::Open | State::Leaving { .. } => self.read_frames(bytes, around),
            _ => {}
        }
        if self.link().state == State::Broken { Want::Cut } else { Want::Nothing }
    }

    /// A part of the answer to the upgrade.
    fn upgrading(&mut self, bytes: &[u8], around: &mut Around<'_>) {
        let Some(mut upgrade) = self.link_mut().upgrade.take() else { return };
        upgrade.head.extend_from_slice(bytes);
        let request = upgrade_request(around.habits, upgrade.nonce, Self::SUBPROTOCOL, None);
        match read_upgrade_response(&upgrade.head, &request) {
            Ok(None) => self.link_mut().upgrade = Some(upgrade),
            Ok(Some(head_bytes)) => {
                let link = self.link_mut();
                let State::Upgrading { deadline_ns } = link.state else { return };
                link.state = State::Opening { deadline_ns };
                link.reader = Some(Reader::new(Role::Client));
                self.upgraded(around);
                self.read_frames(&mut upgrade.head[head_bytes..], around);
            }
            Err(error) => {
                around.tally.error(&error.to_string());
                self.link_mut().state = State::Broken;
            }
        }
    }

    /// Frames, or parts of them.
    fn read_frames(&mut self, bytes: &mut [u8], around: &mut Around<'_>) {
        let Some(mut reader) = self.link_mut().reader.take() else { return };
        let mut input = Input::new(bytes);
        loop {
            match reader.next(LIMITS, &mut input) {
                Ok(None) => break,
                Ok(Some(Event::Text(text))) => self.text(text, around),
                Ok(Some(Event::Binary(bytes))) => self.binary(bytes, around),
                Ok(Some(Event::Ping(payload))) => {
                    let mask = around.random.bytes();
                    write_frame(&mut self.link_mut().out, Opcode::Pong, Some(mask), payload);
                }
                Ok(Some(Event::Close(_))) if matches!(self.link().state, State::Leaving { .. }) => {}
                Ok(Some(Event::Close(close))) => self.closing(close.map_or(1005, |close| close.code), around),
                Ok(Some(Event::Pong(_))) => {}
                Err(error) => {
                    around.tally.error(&error.to_string());
                    self.link_mut().state = State::Broken;
                    break;
                }
            }
            if !matches!(self.link().state, State::Opening { .. } | State::Open | State::Leaving { .. }) {
                break;
            }
        }
        self.link_mut().reader = Some(reader);
    }
}

fn upgrade_request<'a>(
    habits: &'a Habits,
    nonce: [u8; 16],
    subprotocol: Option<&'a str>,
    bearer: Option<&'a str>,
) -> UpgradeRequest<'a> {
    UpgradeRequest { host: &habits.host, target: &habits.target, nonce, subprotocol, bearer }
}

/// Holds both halves of each conversation against each other; those come back whose other half is not among them.
pub fn audit_pairs(accounts: impl IntoIterator<Item = Account>, counts: &mut Counts) -> Vec<Account> {
    let mut open: HashMap<(UserId, UserId), Account> = HashMap::new();
    for account in accounts {
        match open.remove(&(account.peer, account.user)) {
            Some(other) => audit(&account, &other, counts),
            None => drop(open.insert((account.user, account.peer), account)),
        }
    }
    open.into_values().collect()
}

/// Holds what each wrote to the other against what arrived; messages that nobody answered are not lost but unknown.
pub fn audit(one: &Account, other: &Account, counts: &mut Counts) {
    counts.lost +=
        crate::ledger::lost(&one.written, &other.arrived) + crate::ledger::lost(&other.written, &one.arrived);
}
