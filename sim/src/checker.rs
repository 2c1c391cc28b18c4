//! What clients saw, held against the promises.
//!
//! Phones report everything that they are shown or told. What can be judged at once is; what needs the
//! whole history waits for [`Checker::finish`].

use std::collections::{BTreeMap, BTreeSet, HashMap};

use wire::ids::{ChangeNumber, ClientMessageId, ConversationId, DeviceId, UserId};
use wire::protocol::{Kind, MessageItem, Stored, Summary};

/// A promise was broken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Violation(pub String);

/// Whether everything was as promised.
pub type Verdict<T = ()> = Result<T, Violation>;

/// Ends in a [`Violation`].
#[macro_export]
macro_rules! broken {
    ($($text:tt)*) => { return Err($crate::checker::Violation(format!($($text)*))) };
}

/// Names one send for ever.
pub type SendKey = (ConversationId, UserId, DeviceId, ClientMessageId);

/// A message as history keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    pub from: UserId,
    pub device: DeviceId,
    pub time_ms: u64,
    pub kind: Kind,
    pub body: String,
    pub reply_to: Option<u64>,
    pub target_seq: Option<u64>,
}

/// What a change number stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    Message(ConversationId, u64),
    Tick(ConversationId, u64, u64),
    Mark(ConversationId, u64),
}

impl Change {
    fn conversation(self) -> ConversationId {
        match self {
            Self::Message(id, _) | Self::Tick(id, ..) | Self::Mark(id, _) => id,
        }
    }
}

/// Highest marks that a user's devices have given.
#[derive(Debug, Clone, Copy, Default)]
struct Marks {
    delivered: u64,
    read: u64,
}

/// A tick or mark as it was told, with what the devices had given by then.
#[derive(Debug)]
struct Told {
    conversation: ConversationId,
    /// Whose mark it speaks of.
    of: UserId,
    delivered: u64,
    read: u64,
    given: Marks,
}

/// A summary as it was told to a user.
#[derive(Debug)]
struct ToldSummary {
    conversation: ConversationId,
    head: u64,
    unread: u64,
    read: u64,
    last: Option<u64>,
}

/// Everything that clients saw and said in one world.
#[derive(Debug, Default)]
pub struct Checker {
    messages: BTreeMap<(ConversationId, u64), Item>,
    /// Highest seq that anyone was shown or told.
    shown: BTreeMap<ConversationId, u64>,
    /// The seq that a send got, whoever told it.
    seqs: HashMap<SendKey, u64>,
    /// Acknowledged sends: seq, time, body as its sender knows it.
    acked: BTreeMap<SendKey, (u64, u64, String)>,
    /// In which order a device first sent its messages.
    orders: HashMap<SendKey, u64>,
    /// Every id under which a user ever sent something.
    sent: BTreeMap<(ConversationId, UserId), BTreeSet<ClientMessageId>>,
    changes: BTreeMap<(UserId, ChangeNumber), Change>,
    marks: BTreeMap<(ConversationId, UserId), Marks>,
    told: Vec<Told>,
    summaries: Vec<ToldSummary>,
    /// The server's wall clock was changed.
    pub clocks_jumped: bool,
    /// Frames that phones have been sent.
    pub frames: u64,
}

impl Checker {
    /// Nothing to anyone who is not in it.
    pub fn party(user: UserId, id: ConversationId) -> Verdict {
        if id.peer_of(user).is_none() {
            broken!("user {user} was told of {id}, in which they are not");
        }
        Ok(())
    }

    /// A message was shown to `viewer`: it is the one that everybody else saw in this place.
    pub fn message(&mut self, viewer: UserId, id: ConversationId, item: &MessageItem<'_>) -> Verdict {
        Self::party(viewer, id)?;
        if item.seq == 0 {
            broken!("{id}: a message with seq 0");
        }
        if let Some(first) = self.messages.get(&(id, item.seq)) {
            let same = first.from == item.from
                && first.device == item.device
                && first.time_ms == item.time_ms
                && first.kind == item.kind
                && first.body == item.body
                && first.reply_to == item.reply_to
                && first.target_seq == item.target_seq;
            if !same {
                broken!("{id}: message {} was {first:?}, and now is {item:?}", item.seq);
            }
        } else {
            let kept = Item {
                from: item.from,
                device: item.device,
                time_ms: item.time_ms,
                kind: item.kind,
                body: item.body.to_string(),
                reply_to: item.reply_to,
                target_seq: item.target_seq,
            };
            self.messages.insert((id, item.seq), kept);
        }
        self.showed(id, item.seq);
        match item.id {
            Some(message) if viewer == item.from => self.seq_of((id, item.from, item.device, message), item.seq),
            Some(_) => broken!("{id}: message {} shows its author's id to {viewer}", item.seq),
            None => Ok(()),
        }
    }

    fn showed(&mut self, id: ConversationId, seq: u64) {
        let shown = self.shown.entry(id).or_default();
        *shown = seq.max(*shown);
    }

    /// The highest seq that anyone knows of by now.
    pub fn shown(&self, id: ConversationId) -> u64 {
        self.shown.get(&id).copied().unwrap_or(0)
    }

    /// Different messages that were shown.
    pub fn messages(&self) -> u64 {
        self.messages.len() as u64
    }

    /// The conversations of `user` in which something was shown.
    pub fn conversations_of(&self, user: UserId) -> impl Iterator<Item = ConversationId> + '_ {
        self.shown.keys().copied().filter(move |id| id.peer_of(user).is_some())
    }

    fn seq_of(&mut self, key: SendKey, seq: u64) -> Verdict {
        match self.seqs.insert(key, seq) {
            Some(first) if first != seq => {
                broken!("{}: {}'s message {} got seq {first} and seq {seq}", key.0, key.1, key.3)
            }
            _ => Ok(()),
        }
    }

    /// A device sends a message for the first time, as its `order`th.
    pub fn sends(&mut self, key: SendKey, order: u64) {
        self.orders.entry(key).or_insert(order);
        self.sent.entry((key.0, key.1)).or_default().insert(key.3);
    }

    /// A device will not send a message again, though it may still be stored.
    pub fn gives_up(&mut self, key: &SendKey) {
        self.orders.remove(key);
    }

    /// Whether an id that is younger than the server's memory may be refused as too old for it: by its own time
    /// it must be old, which of those whose clocks are not behind takes a jump of the server's; and a younger one
    /// of its author must have been there, whatever the clocks show.
    pub fn may_expire(&self, key: &SendKey, is_behind: bool) -> bool {
        let own = self.sent.get(&(key.0, key.1));
        let younger = own.is_some_and(|ids| ids.iter().any(|id| *id != key.3 && id.time_ms() >= key.3.time_ms()));
        key.3.time_ms().is_some() && younger && (is_behind || self.clocks_jumped)
    }

    /// A send was acknowledged.
    pub fn stored(&mut self, user: UserId, device: DeviceId, stored: &Stored, body: &str) -> Verdict {
        let key = (stored.conversation, user, device, stored.id);
        self.seq_of(key, stored.seq)?;
        self.showed(stored.conversation, stored.seq);
        self.acked.entry(key).or_insert_with(|| (stored.seq, stored.time_ms, body.to_owned()));
        Ok(())
    }

    /// A numbered change was told to `user`: the number stands for this and for nothing else.
    pub fn change(&mut self, user: UserId, number: ChangeNumber, change: Change) -> Verdict {
        if let Some(first) = self.changes.insert((user, number), change)
            && first != change
        {
            broken!("user {user}: change {number} was {first:?}, and now is {change:?}");
        }
        Ok(())
    }

    /// A list of what changed above `after` and up to `next` names all of it.
    pub fn covers(&self, user: UserId, after: ChangeNumber, next: ChangeNumber, listed: &[ConversationId]) -> Verdict {
        if after.epoch != next.epoch || after >= next {
            return Ok(());
        }
        let above = ChangeNumber { counter: after.counter + 1, ..after };
        for ((_, number), change) in self.changes.range((user, above)..=(user, next)) {
            if !listed.contains(&change.conversation()) {
                broken!("user {user}: the list from {after} to {next} lacks {change:?} of {number}");
            }
        }
        Ok(())
    }

    /// A device gives its marks.
    pub fn gives_marks(&mut self, user: UserId, id: ConversationId, delivered: u64, read: u64) {
        let marks = self.marks.entry((id, user)).or_default();
        marks.delivered = marks.delivered.max(delivered).max(read);
        marks.read = marks.read.max(read);
    }

    fn given(&self, user: UserId, id: ConversationId) -> Marks {
        self.marks.get(&(id, user)).copied().unwrap_or_default()
    }

    /// `viewer` is told how far everybody else in the conversation is.
    pub fn ticks(&mut self, viewer: UserId, id: ConversationId, delivered: u64, read: u64) -> Verdict {
        Self::party(viewer, id)?;
        let of = id.peer_of(viewer).expect("a party has a peer");
        self.told.push(Told { conversation: id, of, delivered, read, given: self.given(of, id) });
        Ok(())
    }

    /// `viewer` is told of their own marks.
    pub fn own_marks(&mut self, viewer: UserId, id: ConversationId, delivered: u64, read: u64) -> Verdict {
        Self::party(viewer, id)?;
        self.told.push(Told { conversation: id, of: viewer, delivered, read, given: self.given(viewer, id) });
        Ok(())
    }

    /// A summary was shown to `user`, who asked when the head was at least `floor`.
    pub fn summary(&mut self, user: UserId, summary: &Summary<'_>, floor: u64) -> Verdict {
        let id = summary.conversation;
        Self::party(user, id)?;
        if summary.head < floor {
            broken!("{id}: a list says head {} when {floor} had been shown", summary.head);
        }
        self.showed(id, summary.head);
        if let Some(last) = &summary.last {
            self.message(user, id, last)?;
        }
        self.own_marks(user, id, summary.delivered, summary.read)?;
        self.ticks(user, id, summary.delivered_all, summary.read_all)?;
        self.summaries.push(ToldSummary {
            conversation: id,
            head: summary.head,
            unread: summary.unread,
            read: summary.read,
            last: summary.last.as_ref().map(|last| last.seq),
        });
        Ok(())
    }

    fn authored(&self, id: ConversationId, user: UserId) -> u64 {
        let of = self.messages.range((id, 0)..=(id, u64::MAX)).rev();
        of.filter(|(_, item)| item.from == user).map(|((_, seq), _)| *seq).next().unwrap_or(0)
    }

    /// Where the marks of `user` must stand once everything has been told and repeated.
    pub fn final_marks(&self, user: UserId, id: ConversationId) -> (u64, u64) {
        let (given, authored) = (self.given(user, id), self.authored(id, user));
        (given.delivered.max(authored), given.read.max(authored))
    }

    /// Messages above `read` and up to `head` that count as unread.
    pub fn countable(&self, id: ConversationId, read: u64, head: u64) -> u64 {
        if read >= head {
            return 0;
        }
        self.messages.range((id, read + 1)..=(id, head)).filter(|(_, item)| item.kind.countable()).count() as u64
    }

    /// The last word: everything that needs the whole history, which has just been read back.
    pub fn finish(&self) -> Verdict {
        self.histories_are_dense()?;
        self.acknowledged_is_kept()?;
        self.senders_kept_their_order()?;
        for told in &self.told {
            let authored = self.authored(told.conversation, told.of);
            let (delivered_max, read_max) = (told.given.delivered.max(authored), told.given.read.max(authored));
            if told.delivered > delivered_max || told.read > read_max {
                broken!("marks that nobody gave were told: {told:?}, wrote up to {authored}");
            }
        }
        for told in &self.summaries {
            let unread = self.countable(told.conversation, told.read, told.head);
            let countable =
                |seq: &u64| self.messages.get(&(told.conversation, *seq)).is_some_and(|i| i.kind.countable());
            let last = (1..=told.head).rev().find(countable);
            if unread != told.unread || last != told.last {
                broken!("a list is wrong: {told:?}; unread is {unread}, the last message {last:?}");
            }
        }
        Ok(())
    }

    fn histories_are_dense(&self) -> Verdict {
        for (&id, &head) in &self.shown {
            let mut time_ms = 0;
            for seq in 1..=head {
                let Some(item) = self.messages.get(&(id, seq)) else {
                    broken!("{id}: {head} was shown, and message {seq} is not in its history");
                };
                if item.time_ms < time_ms {
                    broken!("{id}: the time of message {seq} falls");
                }
                time_ms = item.time_ms;
            }
        }
        Ok(())
    }

    fn acknowledged_is_kept(&self) -> Verdict {
        for ((id, user, device, message), (seq, time_ms, body)) in &self.acked {
            let Some(item) = self.messages.get(&(*id, *seq)) else {
                broken!("{id}: {user}'s acknowledged message {seq} is lost");
            };
            if item.from != *user || item.device != *device || item.body != *body || item.time_ms != *time_ms {
                broken!("{id}: {user}/{device} was told that {message} ({body}) is {seq}, which is {item:?}");
            }
        }
        // Every id was read back by its author: two seqs for one id were found on the way, one seq for two here.
        let mut owners: HashMap<(ConversationId, u64), SendKey> = HashMap::new();
        for (key, seq) in &self.seqs {
            if let Some(other) = owners.insert((key.0, *seq), *key) {
                broken!("{}: seq {seq} was given to {other:?} and {key:?}", key.0);
            }
        }
        Ok(())
    }

    fn senders_kept_their_order(&self) -> Verdict {
        let sent =
            self.orders.iter().filter_map(|(key, order)| Some((key.0, key.1, key.2, *self.seqs.get(key)?, *order)));
        let mut sent: Vec<_> = sent.collect();
        sent.sort_unstable();
        for pair in sent.windows(2) {
            let (one, next) = (pair[0], pair[1]);
            if (one.0, one.1, one.2) == (next.0, next.1, next.2) && one.4 > next.4 {
                broken!(
                    "{}: {}/{} sent number {} before {}, and history has them the other way",
                    one.0,
                    one.1,
                    one.2,
                    next.4,
                    one.4
                );
            }
        }
        Ok(())
    }
}
