//! A conversation's state, and the one way in which it changes.
//!
//! `decide` turns a command into a record and changes nothing; `apply` turns a committed record into
//! state. The live path, recovery and the simulator use the same `apply`. Direct conversations are
//! the case of two members: marks, minimum and unread know nothing of how many there are.

use wire::ids::{ConversationId, DeviceId, UserId};
use wire::mail::SendMail;
use wire::protocol::Kind;

use crate::record::{Class, Record};

/// Members whose marks are kept, and what each has seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    pub user: UserId,
    /// Nothing at or below it is shown to the member.
    pub joined: u64,
    pub delivered: u64,
    pub read: u64,
    /// Countable messages up to `read`; unread = countable(head) - this.
    pub countable_read: u64,
    /// Highest time of any id under which the member has sent something here.
    pub ids_until_ms: u64,
}

/// The lowest mark of all members and how many stand at it, so that a mark that moves costs O(1)
/// except when the last one leaves the minimum: then one scan, once per advance of the minimum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Minimum {
    pub value: u64,
    at_value: u32,
}

/// Number of the newest seqs for which it is remembered whether they count as unread.
const COUNTED_RECENTLY: u64 = 64;
/// Bytes of the last message's body that lists show.
const PREVIEW_BYTES_MAX: usize = 400;

/// Everything a conversation's owner knows of it, at one committed point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conversation {
    pub id: ConversationId,
    /// LSN behind the last record applied; records below it have been applied.
    pub next_lsn: u64,
    /// Seq of the last message; 0 is none.
    pub head: u64,
    /// Messages up to `head` that count as unread.
    pub countable: u64,
    /// Time of the last message: never falls.
    pub time_ms: u64,
    /// Bit n: message `head - n` counts as unread.
    counted: u64,
    /// No client message id with a time above this has ever been recorded ahead of its record's time.
    pub ids_ahead_until_ms: u64,
    pub members: Vec<Member>,
    pub delivered_all: Minimum,
    pub read_all: Minimum,
    /// Record of the last countable message, its body cut to a preview.
    pub last: Vec<u8>,
}

/// Where the next proposal stands: behind everything committed and everything still in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Proposed {
    pub head: u64,
    pub countable: u64,
    pub time_ms: u64,
}

/// What moved when a mark was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Moved {
    pub delivered: bool,
    pub read: bool,
    /// A minimum moved: ticks are due.
    pub ticks: bool,
}

impl Conversation {
    /// A conversation in which nothing has been said. `None` for a group: those are created, not implied.
    pub fn new(id: ConversationId) -> Option<Self> {
        let ConversationId::Direct(low, high) = id else { return None };
        let member = |user| Member { user, joined: 0, delivered: 0, read: 0, countable_read: 0, ids_until_ms: 0 };
        let members = if low == high { vec![member(low)] } else { vec![member(low), member(high)] };
        let mut new = Self {
            id,
            next_lsn: 0,
            head: 0,
            countable: 0,
            time_ms: 0,
            counted: 0,
            ids_ahead_until_ms: 0,
            members,
            delivered_all: Minimum::default(),
            read_all: Minimum::default(),
            last: Vec::new(),
        };
        new.count_minima();
        Some(new)
    }

    /// The member that `user` is, if any.
    pub fn member(&self, user: UserId) -> Option<&Member> {
        self.members.binary_search_by_key(&user, |member| member.user).ok().map(|at| &self.members[at])
    }

    /// Where a first proposal would stand.
    pub fn proposed(&self) -> Proposed {
        Proposed { head: self.head, countable: self.countable, time_ms: self.time_ms }
    }

    /// Messages that `member` has not read.
    pub fn unread(&self, member: &Member) -> u64 {
        self.countable - member.countable_read
    }

    /// The record that `send` becomes, next in line behind `proposed`. Changes nothing.
    pub fn decide<'a>(proposed: &Proposed, send: &SendMail, body: &'a str, body_hash: u64, wall_ms: u64) -> Record<'a> {
        Record {
            class: Class::Message(send.kind),
            conversation: send.conversation,
            seq: proposed.head + 1,
            countable: proposed.countable + u64::from(send.kind.countable()),
            time_ms: wall_ms.max(proposed.time_ms),
            author: send.request.user,
            device: send.request.device,
            id: send.id,
            body_hash,
            reply_to: send.reply_to,
            target_seq: send.target_seq,
            body,
        }
    }

    /// The control record that keeps `member`'s read mark.
    pub fn decide_read_mark(&self, member: &Member, wall_ms: u64) -> Record<'static> {
        Record {
            class: Class::ReadMark,
            conversation: self.id,
            seq: member.read,
            countable: member.countable_read,
            time_ms: wall_ms.max(self.time_ms),
            author: member.user,
            device: DeviceId(0),
            id: wire::ids::ClientMessageId([0; 16]),
            body_hash: 0,
            reply_to: 0,
            target_seq: 0,
            body: "",
        }
    }

    /// Takes a committed record. `false`: it had been applied before, and nothing changed.
    ///
    /// A hole in seq is our bug or damaged storage and stops the process: going on would give a
    /// seq twice.
    pub fn apply(&mut self, lsn: u64, record: &Record<'_>) -> bool {
        if lsn < self.next_lsn {
            return false;
        }
        self.next_lsn = lsn + 1;
        match record.class {
            Class::Message(kind) => self.apply_message(kind, record),
            Class::ReadMark => {
                self.take_marks(record.author, 0, record.seq, record.countable);
            }
        }
        true
    }

    fn apply_message(&mut self, kind: Kind, record: &Record<'_>) {
        assert_eq!(record.seq, self.head + 1, "{}: a record does not follow its predecessor", self.id);
        self.head = record.seq;
        self.countable = record.countable;
        self.time_ms = self.time_ms.max(record.time_ms);
        self.counted = self.counted << 1 | u64::from(kind.countable());
        if let Some(id_ms) = record.id.time_ms() {
            if id_ms > record.time_ms {
                self.ids_ahead_until_ms = self.ids_ahead_until_ms.max(id_ms);
            }
            if let Ok(author) = self.members.binary_search_by_key(&record.author, |member| member.user) {
                let author = &mut self.members[author];
                author.ids_until_ms = author.ids_until_ms.max(id_ms);
            }
        }
        if kind.countable() {
            self.last.clear();
            let body = &record.body[..record.body.floor_char_boundary(PREVIEW_BYTES_MAX)];
            Record { body, ..*record }.write(&mut self.last);
        }
        // Whoever writes has read what was there.
        self.take_marks(record.author, record.seq, record.seq, record.countable);
    }

    /// Countable messages up to `seq`, if it lies near enough to the head to be remembered.
    pub fn countable_at(&self, seq: u64) -> Option<u64> {
        let behind = self.head - seq;
        match behind {
            0 => Some(self.countable),
            _ if seq == 0 => Some(0),
            1..COUNTED_RECENTLY => {
                let newer = self.counted & ((1 << behind) - 1);
                Some(self.countable - u64::from(newer.count_ones()))
            }
            _ => None,
        }
    }

    /// Moves `user`'s marks forward, never back; read implies delivered.
    pub fn take_marks(&mut self, user: UserId, delivered: u64, read: u64, countable_read: u64) -> Moved {
        let Ok(at) = self.members.binary_search_by_key(&user, |member| member.user) else {
            return Moved::default();
        };
        let member = &mut self.members[at];
        let (old_delivered, old_read) = (member.delivered, member.read);
        member.delivered = old_delivered.max(delivered).max(read);
        if read > old_read {
            member.read = read;
            member.countable_read = countable_read;
        }
        let mut moved = Moved { delivered: member.delivered > old_delivered, read: read > old_read, ticks: false };
        if moved.delivered {
            moved.ticks |= self.delivered_all.leave(old_delivered, self.members.iter().map(|m| m.delivered));
        }
        if moved.read {
            moved.ticks |= self.read_all.leave(old_read, self.members.iter().map(|m| m.read));
        }
        moved
    }

    fn count_minima(&mut self) {
        self.delivered_all = Minimum::of(self.members.iter().map(|m| m.delivered));
        self.read_all = Minimum::of(self.members.iter().map(|m| m.read));
    }
}

impl Minimum {
    fn of(marks: impl Iterator<Item = u64> + Clone) -> Self {
        let value = marks.clone().min().unwrap_or(0);
        Self { value, at_value: marks.filter(|&mark| mark == value).count() as u32 }
    }

    /// A mark that stood at `old` went up; `true` if the minimum went up with it.
    fn leave(&mut self, old: u64, marks: impl Iterator<Item = u64> + Clone) -> bool {
        if old != self.value {
            return false;
        }
        self.at_value -= 1;
        if self.at_value > 0 {
            return false;
        }
        *self = Self::of(marks);
        true
    }
}

// The row of the `Heads` view.
//
// u8 version (2), then little-endian u64: next_lsn, head, countable, time, counted, ids_ahead_until;
// u32 members, each six u64: user, joined, delivered, read, countable_read, ids_until; then the last record behind
// its length. Version 1 has no ids_until.
const HEAD_VERSION: u8 = 2;

impl Conversation {
    /// Appends the row that `read_head` reads.
    pub fn write_head(&self, out: &mut Vec<u8>) {
        out.push(HEAD_VERSION);
        for number in [self.next_lsn, self.head, self.countable, self.time_ms, self.counted, self.ids_ahead_until_ms] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(&(self.members.len() as u32).to_le_bytes());
        for member in &self.members {
            let Member { user, joined, delivered, read, countable_read, ids_until_ms } = *member;
            for number in [user.0, joined, delivered, read, countable_read, ids_until_ms] {
                out.extend_from_slice(&number.to_le_bytes());
            }
        }
        crate::record::write_prefixed(out, &self.last);
    }

    /// Reads a row of the `Heads` view; `None` if it is not one.
    pub fn read_head(id: ConversationId, row: &[u8]) -> Option<Self> {
        let mut rest = row;
        let version = take(&mut rest, 1)?[0];
        if !(1..=HEAD_VERSION).contains(&version) {
            return None;
        }
        let [next_lsn, head, countable, time_ms, counted, ids_ahead_until_ms] = numbers(&mut rest)?;
        let count = u32::from_le_bytes(take(&mut rest, 4)?.try_into().ok()?);
        let mut members = Vec::new();
        for _ in 0..count {
            let [user, joined, delivered, read, countable_read] = numbers(&mut rest)?;
            let ids_until_ms = match version {
                1 => time_ms.max(ids_ahead_until_ms),
                _ => numbers::<1>(&mut rest)?[0],
            };
            members.push(Member { user: UserId(user), joined, delivered, read, countable_read, ids_until_ms });
        }
        let bytes = u32::from_le_bytes(take(&mut rest, 4)?.try_into().ok()?);
        let last = take(&mut rest, bytes as usize)?;
        if !last.is_empty() {
            Record::read(last).ok()?;
        }
        let mut read = Self {
            id,
            next_lsn,
            head,
            countable,
            time_ms,
            counted,
            ids_ahead_until_ms,
            members,
            delivered_all: Minimum::default(),
            read_all: Minimum::default(),
            last: last.to_vec(),
        };
        read.count_minima();
        Some(read)
    }
}

fn take<'a>(rest: &mut &'a [u8], bytes: usize) -> Option<&'a [u8]> {
    let (taken, behind) = rest.split_at_checked(bytes)?;
    *rest = behind;
    Some(taken)
}

fn numbers<const N: usize>(rest: &mut &[u8]) -> Option<[u64; N]> {
    let mut all = [0; N];
    for number in &mut all {
        *number = u64::from_le_bytes(take(rest, 8)?.try_into().ok()?);
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::ids::ClientMessageId;

    const A: UserId = UserId(1);
    const B: UserId = UserId(2);

    fn say(conversation: &mut Conversation, author: UserId, kind: Kind, time_ms: u64) {
        let record = Record {
            class: Class::Message(kind),
            conversation: conversation.id,
            seq: conversation.head + 1,
            countable: conversation.countable + u64::from(kind.countable()),
            time_ms,
            author,
            device: DeviceId(1),
            id: ClientMessageId([0; 16]),
            body_hash: 0,
            reply_to: 0,
            target_seq: 0,
            body: "x",
        };
        assert!(conversation.apply(conversation.next_lsn, &record));
    }

    #[test]
    fn unread_counts_what_counts_and_a_send_reads() {
        let mut c = Conversation::new(ConversationId::direct(A, B)).unwrap();
        for kind in [Kind::Text, Kind::Reaction, Kind::Text] {
            say(&mut c, A, kind, 5);
        }
        assert_eq!(c.unread(c.member(B).unwrap()), 2);
        assert_eq!(c.unread(c.member(A).unwrap()), 0);
        assert_eq!(c.countable_at(1), Some(1));
        c.take_marks(B, 0, 1, 1);
        assert_eq!(c.unread(c.member(B).unwrap()), 1);
        say(&mut c, B, Kind::Text, 5);
        assert_eq!(c.unread(c.member(B).unwrap()), 0);
    }

    #[test]
    fn ticks_follow_the_slowest_and_marks_never_fall() {
        let mut c = Conversation::new(ConversationId::direct(A, B)).unwrap();
        say(&mut c, A, Kind::Text, 5);
        say(&mut c, A, Kind::Text, 5);
        assert_eq!(c.read_all.value, 0);
        assert_eq!(c.take_marks(B, 2, 0, 0), Moved { delivered: true, read: false, ticks: true });
        assert_eq!(c.take_marks(B, 1, 0, 0), Moved::default());
        assert_eq!(c.take_marks(B, 0, 2, 2), Moved { delivered: false, read: true, ticks: true });
        assert_eq!((c.delivered_all.value, c.read_all.value), (2, 2));
    }

    #[test]
    fn applying_twice_changes_nothing() {
        let mut c = Conversation::new(ConversationId::direct(A, B)).unwrap();
        say(&mut c, A, Kind::Text, 5);
        let before = c.clone();
        let record = c.decide_read_mark(&c.members[0], 9);
        assert!(!c.apply(0, &record));
        assert_eq!(c, before);
    }

    fn head_of_version_1(c: &Conversation) -> Vec<u8> {
        let mut row = vec![1];
        for number in [c.next_lsn, c.head, c.countable, c.time_ms, c.counted, c.ids_ahead_until_ms] {
            row.extend_from_slice(&number.to_le_bytes());
        }
        row.extend_from_slice(&(c.members.len() as u32).to_le_bytes());
        for m in &c.members {
            for number in [m.user.0, m.joined, m.delivered, m.read, m.countable_read] {
                row.extend_from_slice(&number.to_le_bytes());
            }
        }
        crate::record::write_prefixed(&mut row, &c.last);
        row
    }

    #[test]
    fn heads_read_back_as_themselves() {
        let mut c = Conversation::new(ConversationId::direct(A, B)).unwrap();
        say(&mut c, A, Kind::Text, 5);
        c.take_marks(B, 1, 0, 0);
        let mut row = Vec::new();
        c.write_head(&mut row);
        assert_eq!(Conversation::read_head(c.id, &row), Some(c.clone()));
        let one = head_of_version_1(&c);
        let read = Conversation::read_head(c.id, &one).unwrap();
        assert!(read.members.iter().all(|member| member.ids_until_ms == 5), "as high as a record may have been");
        assert_eq!((read.head, read.last), (c.head, c.last));
        for cut in 0..row.len() {
            assert_eq!(Conversation::read_head(ConversationId::direct(A, B), &row[..cut]), None);
        }
    }
}
