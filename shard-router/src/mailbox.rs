//! Mailboxes: how the shards of one node talk. One bounded channel per ordered pair of shards, a shard
//! and itself included, filled with a batch per turn.
//!
//! What a full mailbox does depends on the class of the letter (`docs/decisions/0003-mail.md`):
//!
//! - A **request** is refused where it is posted. Each hop counts what is outstanding; the count falls
//!   when the letter that ends the request is taken in.
//! - A **reply** is always taken. There are no more of them than requests were admitted.
//! - An **event** collapses into a dirty mark, which leaves as [`Mail::Dirty`] when there is room, or
//!   is dropped if it was only a signal. When there are too many marks, one [`Mail::DirtyAll`] stands for all.
//!
//! So posting always ends at once, and handling mail never waits for room to send: two shards whose
//! mailboxes to each other are full both go on.
//!
//! Buffers travel: a batch that has been read goes back to its sender, so that nothing is allocated once
//! the buffers have grown to what the load needs.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use wire::ids::{ConversationId, UserId};
use wire::mail::{self, Address, Letter, Mail, MailClass, SessionAddress};

#[cfg(feature = "planted-bugs")]
use crate::sleeper::PlantedBug;
use crate::sleeper::{Sleeper, Waker};
use crate::slot::SlotMap;

/// What the mailbox of one pair of shards may hold.
#[derive(Debug, Clone, Copy)]
pub struct MailLimits {
    /// Requests from one shard to another that have not been answered yet; as many again for those that
    /// are asked in order to answer one.
    pub requests_max: u32,
    /// A request is refused when this much waits to leave. Above `event_bytes_max`, since requests are
    /// what people wait for.
    pub request_bytes_max: usize,
    /// An event collapses when this much waits to leave.
    pub event_bytes_max: usize,
    /// Batches that have left and were not taken in yet.
    pub batches_max: usize,
    /// Dirty marks that wait to leave.
    pub dirty_max: usize,
    /// Buffers that grew beyond this are freed instead of being used again.
    pub buffer_bytes_kept_max: usize,
}

impl Default for MailLimits {
    fn default() -> Self {
        Self {
            requests_max: 16_384,
            request_bytes_max: 8 << 20,
            event_bytes_max: 4 << 20,
            batches_max: 8,
            dirty_max: 16_384,
            buffer_bytes_kept_max: 1 << 20,
        }
    }
}

/// What became of a letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Posted {
    /// It is on its way.
    Taken,
    /// A request for which there is no room: answer it here, with `overloaded`.
    Refused,
    /// An event for which there is no room: a dirty mark or nothing went instead of it.
    Collapsed,
}

/// What has happened in a mailbox since it was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MailCounters {
    /// Letters that were taken, dirty marks included.
    pub letters: u64,
    /// Batches that left.
    pub batches: u64,
    /// Batches that could not leave because the channel was full; each is counted once per attempt.
    pub batches_held: u64,
    /// Requests refused because too many were outstanding or too much waited to leave.
    pub requests_refused: u64,
    /// Events that became dirty marks.
    pub events_collapsed: u64,
    /// Signals that were dropped.
    pub signals_dropped: u64,
    /// Times that there were too many dirty marks, so that one letter stood for all.
    pub dirty_all: u64,
    /// Doorbells rung.
    pub doorbells: u64,
    /// Buffers allocated; stands still once they are travelling.
    pub buffers: u64,
}

/// Letters that came from one shard, in the order in which it posted them.
#[derive(Debug)]
pub struct Batch {
    /// Who posted them.
    pub from: u16,
    bytes: Vec<u8>,
    /// How many of them end a request, counted by the sender so that taking in need not read them.
    ends_requests: u32,
    #[cfg(feature = "planted-bugs")]
    has_request: bool,
}

impl Batch {
    fn new(from: u16, bytes: Vec<u8>) -> Self {
        Self {
            from,
            bytes,
            ends_requests: 0,
            #[cfg(feature = "planted-bugs")]
            has_request: false,
        }
    }

    /// The letters, oldest first.
    pub fn letters(&self) -> impl Iterator<Item = Letter<'_>> {
        // Both ends are this process; bytes that do not read back are a bug of ours.
        mail::letters(&self.bytes).map(|letter| letter.expect("a batch holds what a shard of this process wrote"))
    }

    /// The letters as they were written.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// One shard's end of all its mailboxes.
#[derive(Debug)]
pub struct Mailbox {
    shard: u16,
    map: Arc<SlotMap>,
    limits: MailLimits,
    outboxes: Box<[Outbox]>,
    inboxes: Box<[Inbox]>,
    /// Every shard's, by number; one's own among them.
    sleepers: Box<[Arc<Sleeper>]>,
    /// Where `take` goes on: the inbox, and how many batches came out of it in this round.
    next: (usize, usize),
    counters: MailCounters,
    #[cfg(feature = "planted-bugs")]
    planted: Option<PlantedBug>,
}

/// The way to one shard.
#[derive(Debug)]
struct Outbox {
    to: u16,
    /// The batch in the making.
    batch: Batch,
    outstanding: u32,
    /// Of whom, in which conversation, up to which head. Empty in quiet times; it allocates only when
    /// things collapse. Ordered, so that a simulation replays from its seed.
    dirty: BTreeMap<(Option<SessionAddress>, UserId, ConversationId), u64>,
    all_dirty: bool,
    channel: Sender<Batch>,
    /// Buffers that come back.
    empties: Receiver<Vec<u8>>,
    /// The sender holds a batch for which the channel had no room, and wants to be rung when there is.
    held: Arc<AtomicBool>,
}

/// The way from one shard.
#[derive(Debug)]
struct Inbox {
    channel: Receiver<Batch>,
    empties: Sender<Vec<u8>>,
    held: Arc<AtomicBool>,
}

impl Mailbox {
    /// The mailboxes of all shards of a node, by number. `wakers` ring their doorbells.
    pub fn for_all(map: &Arc<SlotMap>, limits: MailLimits, wakers: Vec<Waker>) -> Vec<Self> {
        let sleepers = wakers.into_iter().map(|waker| Arc::new(Sleeper::new(waker))).collect();
        Self::with_sleepers(map, limits, sleepers)
    }

    /// The same with sleepers that were made before.
    pub fn with_sleepers(map: &Arc<SlotMap>, limits: MailLimits, sleepers: Vec<Arc<Sleeper>>) -> Vec<Self> {
        let shards = usize::from(map.shards());
        assert_eq!(sleepers.len(), shards, "every shard has a doorbell");
        assert!(limits.requests_max > 0 && limits.batches_max > 0, "a mailbox without room passes nothing on");
        assert!(limits.request_bytes_max > 0 && limits.event_bytes_max > 0, "the first letter always finds room");
        let sleepers: Box<[_]> = sleepers.into();
        let mut outboxes: Vec<Vec<_>> = (0..shards).map(|_| Vec::with_capacity(shards)).collect();
        let mut inboxes: Vec<Vec<_>> = (0..shards).map(|_| Vec::with_capacity(shards)).collect();
        for (from, outboxes) in outboxes.iter_mut().enumerate() {
            for (to, inboxes) in inboxes.iter_mut().enumerate() {
                let (outbox, inbox) = pair(from as u16, to as u16, &limits);
                outboxes.push(outbox);
                inboxes.push(inbox);
            }
        }
        let ends = outboxes.into_iter().zip(inboxes).enumerate();
        ends.map(|(shard, (outboxes, inboxes))| Self {
            shard: shard as u16,
            map: Arc::clone(map),
            limits,
            outboxes: outboxes.into(),
            inboxes: inboxes.into(),
            sleepers: sleepers.clone(),
            next: (0, 0),
            counters: MailCounters::default(),
            #[cfg(feature = "planted-bugs")]
            planted: None,
        })
        .collect()
    }

    /// Puts a letter into the batch for its destination, or does what the class says if that is full.
    #[must_use = "a refused request must be answered"]
    pub fn post(&mut self, letter: &Letter<'_>) -> Posted {
        let to = usize::from(self.map.shard_of(letter.to));
        let outbox = &mut self.outboxes[to];
        match letter.mail.class() {
            MailClass::Request => {
                // What is asked in order to answer a request needs room of its own: else requests that wait for
                // it could hold all the room there is, for ever.
                let is_nested = matches!(letter.mail, Mail::Summarise { .. });
                let requests_max = self.limits.requests_max.saturating_mul(1 + u32::from(is_nested));
                if outbox.outstanding >= requests_max || outbox.batch.bytes.len() >= self.limits.request_bytes_max {
                    self.counters.requests_refused += 1;
                    return Posted::Refused;
                }
                outbox.outstanding += 1;
                #[cfg(feature = "planted-bugs")]
                {
                    outbox.batch.has_request = true;
                }
            }
            MailClass::Reply => {
                #[cfg(feature = "planted-bugs")]
                if self.planted == Some(PlantedBug::ReplyDropped)
                    && outbox.batch.bytes.len() >= self.limits.event_bytes_max
                {
                    return Posted::Taken;
                }
                outbox.batch.ends_requests += u32::from(letter.mail.ends_request());
            }
            MailClass::Event => {
                if !outbox.has_room_for_events(&self.limits) {
                    outbox.collapse(letter, &self.limits, &mut self.counters);
                    return Posted::Collapsed;
                }
            }
        }
        mail::write(&mut outbox.batch.bytes, letter);
        self.counters.letters += 1;
        Posted::Taken
    }

    /// Lets everything leave for which there is room, and wakes those who sleep. To be called at the end
    /// of each turn; what finds no room leaves at the end of a later one.
    pub fn flush(&mut self) {
        for to in 0..self.outboxes.len() {
            let outbox = &mut self.outboxes[to];
            let mut left = false;
            #[cfg(feature = "planted-bugs")]
            let silent = self.planted == Some(PlantedBug::WakeUpForgotten) && !outbox.batch.has_request;
            while outbox.flush(self.shard, &self.limits, &mut self.counters) {
                left = true;
            }
            #[cfg(feature = "planted-bugs")]
            if silent {
                continue;
            }
            if left && self.sleepers[to].notify() {
                self.counters.doorbells += 1;
            }
        }
    }

    /// Takes a batch in, if there is one; to be given back with [`Self::give_back`] when it has been read.
    ///
    /// `None` ends a round. A round takes no more from each shard than the channel holds, so that a loop
    /// over this ends even while others go on posting.
    pub fn take(&mut self) -> Option<Batch> {
        while self.next.0 < self.inboxes.len() {
            let (from, taken) = self.next;
            if taken < self.limits.batches_max
                && let Ok(batch) = self.inboxes[from].channel.try_recv()
            {
                self.next.1 += 1;
                self.taken_in(from, &batch);
                return Some(batch);
            }
            self.next = (from + 1, 0);
        }
        self.next = (0, 0);
        None
    }

    /// Gives a batch's buffer back to its sender.
    pub fn give_back(&mut self, batch: Batch) {
        let Batch { from, mut bytes, .. } = batch;
        if bytes.capacity() <= self.limits.buffer_bytes_kept_max {
            bytes.clear();
            // No room, or nobody there any more: the buffer is freed.
            let _ = self.inboxes[usize::from(from)].empties.try_send(bytes);
        }
    }

    /// To be called before sleeping, after [`Self::flush`]. `false`: there is mail, or `has_other_work`
    /// says so; do not sleep. After `true`, [`Self::woken`] must follow the sleep.
    pub fn prepare_to_sleep(&self, has_other_work: impl FnOnce() -> bool) -> bool {
        // A batch may have found room since it was held: whoever made the room saw us awake and did not ring.
        let has_work = || self.has_mail() || self.can_flush() || has_other_work();
        self.sleepers[usize::from(self.shard)].prepare_to_sleep(has_work)
    }

    /// To be called after sleeping, before anything else.
    pub fn woken(&self) {
        self.sleepers[usize::from(self.shard)].woken();
    }

    /// What wakes this shard, for others that bring it work.
    pub fn sleeper(&self) -> Arc<Sleeper> {
        Arc::clone(&self.sleepers[usize::from(self.shard)])
    }

    /// Whether a batch is there to be taken.
    pub fn has_mail(&self) -> bool {
        self.inboxes.iter().any(|inbox| !inbox.channel.is_empty())
    }

    /// Whether something found no room to leave.
    pub fn has_unsent(&self) -> bool {
        self.outboxes.iter().any(Outbox::has_unsent)
    }

    /// Whether [`Self::flush`] would let something leave that was held before.
    fn can_flush(&self) -> bool {
        self.outboxes.iter().any(|outbox| outbox.has_unsent() && !outbox.channel.is_full())
    }

    /// What the fullest of the mailboxes holds of what makes it refuse requests, and at how much it does.
    pub fn fullest(&self) -> (u64, u64) {
        let requests = self.outboxes.iter().map(|outbox| outbox.outstanding).max().unwrap_or(0);
        let bytes = self.outboxes.iter().map(|outbox| outbox.batch.bytes.len()).max().unwrap_or(0);
        let requests = (u64::from(requests), u64::from(self.limits.requests_max));
        let bytes = (bytes as u64, self.limits.request_bytes_max as u64);
        if requests.0 * bytes.1 >= bytes.0 * requests.1 { requests } else { bytes }
    }

    /// Requests posted to that shard that it has not answered yet.
    pub fn outstanding(&self, to: u16) -> u32 {
        self.outboxes[usize::from(to)].outstanding
    }

    /// This shard's number.
    pub fn shard(&self) -> u16 {
        self.shard
    }

    /// Where slots are served.
    pub fn map(&self) -> &SlotMap {
        &self.map
    }

    /// What has happened so far.
    pub fn counters(&self) -> MailCounters {
        self.counters
    }

    /// Puts a bug into this shard's mailboxes.
    #[cfg(feature = "planted-bugs")]
    pub fn plant(&mut self, bug: PlantedBug) {
        self.planted = Some(bug);
    }

    /// The channel has room again and requests have ended.
    fn taken_in(&mut self, from: usize, batch: &Batch) {
        let outbox = &mut self.outboxes[from];
        debug_assert!(outbox.outstanding >= batch.ends_requests, "more replies than requests from shard {from}");
        outbox.outstanding = outbox.outstanding.saturating_sub(batch.ends_requests);
        // The counterpart of the fence in `Outbox::flush`: either the sender's second attempt finds the
        // room that was just made, or this sees that it waits for room.
        fence(Ordering::SeqCst);
        let held = &self.inboxes[from].held;
        if held.load(Ordering::Relaxed) && held.swap(false, Ordering::Relaxed) && self.sleepers[from].notify() {
            self.counters.doorbells += 1;
        }
    }
}

fn pair(from: u16, to: u16, limits: &MailLimits) -> (Outbox, Inbox) {
    let (channel, inbox) = bounded(limits.batches_max);
    // One in the making, some in the channel, and as many again with the reader.
    let (back, empties) = bounded(2 * limits.batches_max + 1);
    let held = Arc::new(AtomicBool::new(false));
    let outbox = Outbox {
        to,
        batch: Batch::new(from, Vec::new()),
        outstanding: 0,
        dirty: BTreeMap::new(),
        all_dirty: false,
        channel,
        empties,
        held: Arc::clone(&held),
    };
    (outbox, Inbox { channel: inbox, empties: back, held })
}

impl Outbox {
    /// Events keep their order with dirty marks: none is taken while a mark waits.
    fn has_room_for_events(&self, limits: &MailLimits) -> bool {
        self.batch.bytes.len() < limits.event_bytes_max && !self.has_marks()
    }

    fn has_marks(&self) -> bool {
        self.all_dirty || !self.dirty.is_empty()
    }

    fn has_unsent(&self) -> bool {
        !self.batch.bytes.is_empty() || self.has_marks()
    }

    /// Keeps what must not be lost of an event for which there is no room.
    fn collapse(&mut self, letter: &Letter<'_>, limits: &MailLimits, counters: &mut MailCounters) {
        let (user, conversation, head) = match letter.mail {
            Mail::Message { user, ref message, .. } => (user, message.conversation, message.seq),
            Mail::Dirty { user, conversation, head } => (user, conversation, head),
            // Marks have no head; whoever reads the mark looks at all there is to know.
            Mail::Tick { user, conversation, .. } | Mail::MarkMoved { user, conversation, .. } => {
                (user, conversation, 0)
            }
            Mail::DirtyAll { .. } => return self.collapse_all(counters),
            // Nothing is lost: what waits for who has gone waits its time out.
            Mail::Left { .. } => return,
            _ => {
                counters.signals_dropped += 1;
                return;
            }
        };
        counters.events_collapsed += 1;
        if self.all_dirty {
            return;
        }
        let session = match letter.to {
            Address::Session(session) => Some(session),
            _ => None,
        };
        let key = (session, user, conversation);
        if let Some(mark) = self.dirty.get_mut(&key) {
            *mark = head.max(*mark);
        } else if self.dirty.len() < limits.dirty_max {
            self.dirty.insert(key, head);
        } else {
            self.collapse_all(counters);
        }
    }

    fn collapse_all(&mut self, counters: &mut MailCounters) {
        counters.dirty_all += u64::from(!self.all_dirty);
        self.all_dirty = true;
        self.dirty.clear();
    }

    /// Lets one batch leave and puts dirty marks into the next. `false`: there is nothing, or no room.
    fn flush(&mut self, from: u16, limits: &MailLimits, counters: &mut MailCounters) -> bool {
        if self.batch.bytes.is_empty() {
            return false;
        }
        if self.channel.is_full() {
            self.held.store(true, Ordering::Relaxed);
            // The counterpart of the fence in `Mailbox::taken_in`.
            fence(Ordering::SeqCst);
            if self.channel.is_full() {
                counters.batches_held += 1;
                return false;
            }
            self.held.store(false, Ordering::Relaxed);
        }
        let bytes = self.empties.try_recv().unwrap_or_else(|_| {
            counters.buffers += 1;
            Vec::new()
        });
        let batch = std::mem::replace(&mut self.batch, Batch::new(from, bytes));
        match self.channel.try_send(batch) {
            // Without its reader, as when the process stops, a letter has nobody left to concern.
            Ok(()) | Err(TrySendError::Disconnected(_)) => {}
            Err(TrySendError::Full(_)) => unreachable!("nobody else sends into this channel"),
        }
        counters.batches += 1;
        self.write_marks(from, limits, counters);
        true
    }

    /// Dirty marks go first into a fresh batch, so that they leave in bounded time.
    fn write_marks(&mut self, from: u16, limits: &MailLimits, counters: &mut MailCounters) {
        let batch = &mut self.batch.bytes;
        if std::mem::take(&mut self.all_dirty) {
            let mail = Mail::DirtyAll { from };
            mail::write(batch, &Letter { to: Address::Shard(self.to), mail, payload: b"" });
            counters.letters += 1;
        }
        while batch.len() < limits.event_bytes_max
            && let Some(((session, user, conversation), head)) = self.dirty.pop_first()
        {
            let to = session.map_or(Address::User(user), Address::Session);
            let mail = Mail::Dirty { user, conversation, head };
            mail::write(batch, &Letter { to, mail, payload: b"" });
            counters.letters += 1;
        }
    }
}
