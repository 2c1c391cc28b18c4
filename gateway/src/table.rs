//! The connections of one shard, small and dense.
//!
//! An idle session costs one [`Entry`] and twelve bytes in the wheel: it has no buffer, in or out. What a
//! busy one needs more is lent from pools and given back. An entry lies where its ring's slot says, and the
//! room of all is set aside at the start: the system gives the memory once it is used, and nothing is ever
//! copied to make room.

use chat::{ClientKey, SessionKey};
use ring::Connection;
use wire::reader::Reader;
use wire::websocket::Role;

use crate::auth;
use crate::http::Http;

/// No deadline.
pub(crate) const NEVER: u64 = u64::MAX;
/// No outbound queue.
pub(crate) const NONE: u32 = u32::MAX;

/// What a connection is at the moment.
pub(crate) enum Stage {
    /// Nobody's.
    Free,
    /// HTTP: a request is expected, arriving or being answered.
    Http(Box<Http>),
    /// A WebSocket that speaks the client protocol.
    Socket(Socket),
    /// A WebSocket that gets back what it sends.
    Echo(Resting),
    /// Its last bytes are on their way; whatever the peer still sends is ignored.
    Closing,
}

/// A WebSocket of the client protocol.
pub(crate) struct Socket {
    /// The session, once `open` came.
    pub session: Option<SessionKey>,
    rare: Option<Box<Rare>>,
}

/// What few WebSockets have, and those not for long.
#[derive(Default)]
struct Rare {
    reader: Resting,
    /// Who the client said it is at the upgrade; its `open` takes it.
    upgraded_as: Option<auth::Identity>,
}

/// A reader of frames between two receives. Between two frames there is nothing to remember.
#[derive(Default)]
pub(crate) struct Resting(Option<Box<Reader>>);

impl Resting {
    /// The reader, to be put back.
    pub(crate) fn take(&mut self) -> Reader {
        self.0.take().map_or_else(|| Reader::new(Role::Server), |reader| *reader)
    }

    /// Rests until more arrives.
    pub(crate) fn put(&mut self, reader: Reader) {
        if !reader.is_between_frames() {
            self.0 = Some(Box::new(reader));
        }
    }
}

impl Socket {
    /// A connection that was upgraded, by somebody who proved who they are or will with `open`.
    pub(crate) fn new(upgraded_as: Option<auth::Identity>) -> Self {
        let rare = upgraded_as.is_some().then(|| Box::new(Rare { upgraded_as, ..Rare::default() }));
        Self { session: None, rare }
    }

    /// Who the client said it is at the upgrade.
    pub(crate) fn upgraded_as(&self) -> Option<auth::Identity> {
        self.rare.as_ref().and_then(|rare| rare.upgraded_as)
    }

    /// From now on the session says who the client is.
    pub(crate) fn forget_upgrade(&mut self) {
        if let Some(rare) = &mut self.rare {
            rare.upgraded_as = None;
        }
        self.tidy();
    }

    /// The reader, to be put back.
    pub(crate) fn take_reader(&mut self) -> Reader {
        self.rare.as_mut().map_or_else(|| Reader::new(Role::Server), |rare| rare.reader.take())
    }

    /// Keeps the reader until more arrives, if there is anything to keep of it.
    pub(crate) fn put_reader(&mut self, reader: Reader) {
        if !reader.is_between_frames() {
            self.rare.get_or_insert_default().reader.put(reader);
        } else if self.rare.is_some() {
            self.tidy();
        }
    }

    fn tidy(&mut self) {
        self.rare.take_if(|rare| rare.reader.0.is_none() && rare.upgraded_as.is_none());
    }
}

/// What the wheel counts in, and every deadline with it.
pub(crate) const TICK_MS: u64 = 16;

/// A moment in a small field: a number of ticks that may wrap, as it lies within a year of now. Never before
/// the moment that it was made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Deadline(u32);

impl Deadline {
    pub(crate) const NEVER: Self = Self(u32::MAX);

    pub(crate) fn at(ms: u64) -> Self {
        let ticks = Self(ms.div_ceil(TICK_MS) as u32);
        // One tick in two years is named like `NEVER`: the next will do.
        if ticks == Self::NEVER { Self(0) } else { ticks }
    }

    pub(crate) fn is_due(self, now_ms: u64) -> bool {
        self.ms(now_ms) <= now_ms
    }

    /// The moment by the clock that says `now_ms`.
    pub(crate) fn ms(self, now_ms: u64) -> u64 {
        let now = now_ms / TICK_MS;
        let ahead = self.0.wrapping_sub(now as u32) as i32;
        if self == Self::NEVER { NEVER } else { now.saturating_add_signed(i64::from(ahead)) * TICK_MS }
    }
}

/// Seconds of pings that a peer may owe.
const PINGS_AT_ONCE: u16 = 20;

/// One connection. Field order and widths matter: see the assertion below.
pub(crate) struct Entry {
    pub connection: Connection,
    pub stage: Stage,
    /// Its queue in the pool of [`crate::outbound::Outbound`], while something waits to be sent.
    pub outbound: u32,
    /// When the present stage must have ended.
    pub deadline: Deadline,
    /// WebSocket: the second of this run's clock in which the client's token ends.
    expires_s: u32,
    /// WebSocket: the second, modulo 2^16, until when pings have been paid for.
    pings_until_s: u16,
    pub flags: Flags,
}

// What an idle session costs here, besides the wheel.
const _: () = assert!(size_of::<Entry>() <= 40);

impl Entry {
    const FREE: Self = Self {
        connection: Connection::new(0, 0, 0),
        stage: Stage::Free,
        outbound: NONE,
        deadline: Deadline::NEVER,
        expires_s: u32::MAX,
        pings_until_s: 0,
        flags: Flags(0),
    };

    /// When the client's token ends; a part of a second is not its.
    pub(crate) fn expires_ms(&self) -> u64 {
        if self.expires_s == u32::MAX { NEVER } else { u64::from(self.expires_s) * 1_000 }
    }

    /// A token that ends in 136 years of uptime does not end.
    pub(crate) fn set_expires_ms(&mut self, ms: u64) {
        self.expires_s = u32::try_from(ms / 1_000).unwrap_or(u32::MAX);
    }

    /// A new connection owes nothing.
    pub(crate) fn begin_without_debts(&mut self, now_ms: u64) {
        self.pings_until_s = (now_ms / 1_000) as u16;
    }

    /// Whether the peer may ping once more: each costs a second of patience.
    pub(crate) fn pays_for_ping(&mut self, now_ms: u64) -> bool {
        let owed = self.owed_pings(now_ms);
        self.pings_until_s = ((now_ms / 1_000) as u16).wrapping_add(owed + 1);
        owed < PINGS_AT_ONCE
    }

    /// Seconds of pings that are still to be paid for.
    fn owed_pings(&self, now_ms: u64) -> u16 {
        let owed = self.pings_until_s.wrapping_sub((now_ms / 1_000) as u16);
        // Anything else lies in the past.
        if owed <= PINGS_AT_ONCE { owed } else { 0 }
    }

    /// To be called more often than a number of sixteen bits counts in seconds, lest what was paid for long ago
    /// look like a debt.
    pub(crate) fn forget_paid_pings(&mut self, now_ms: u64) {
        if self.owed_pings(now_ms) == 0 {
            self.begin_without_debts(now_ms);
        }
    }
}

/// What else is to be remembered of a connection.
#[derive(Debug, Clone, Copy)]
#[repr(u16)]
pub(crate) enum Flag {
    /// In the list of those that this turn wrote to.
    Dirty = 1,
    /// Reading is paused until its queue is shorter.
    Paused = 1 << 1,
    /// To be shut down when its queue is empty.
    Finish = 1 << 2,
    /// So much waited for it once that the rules made it lag; they want to know when nothing waits.
    Pressed = 1 << 3,
    /// WebSocket: the client was told that its token ends.
    Warned = 1 << 4,
    /// WebSocket: the session is open, so that the token's end matters.
    Opened = 1 << 5,
    /// HTTP: at least one request was answered.
    Served = 1 << 6,
    /// HTTP: a later request has begun to arrive.
    Arriving = 1 << 7,
    /// The peer has finished sending.
    Eof = 1 << 8,
    /// WebSocket: it sends too many frames, and the last one was refused.
    Limited = 1 << 9,
}

/// The flags that are up.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Flags(u16);

impl Flags {
    pub(crate) fn has(self, flag: Flag) -> bool {
        self.0 & flag as u16 != 0
    }

    pub(crate) fn raise(&mut self, flag: Flag) {
        self.0 |= flag as u16;
    }

    pub(crate) fn lower(&mut self, flag: Flag) {
        self.0 &= !(flag as u16);
    }

    /// Lowers a flag; whether it was up.
    pub(crate) fn take(&mut self, flag: Flag) -> bool {
        let was_up = self.has(flag);
        self.lower(flag);
        was_up
    }
}

/// All connections of a shard.
pub(crate) struct Table {
    /// By the ring's table and slot.
    entries: Vec<Entry>,
    slots_max: u32,
    len: u32,
}

impl Table {
    /// A table for rings whose tables have `slots_max` slots each; the first one's room is set aside.
    pub(crate) fn new(slots_max: u32) -> Self {
        Self { entries: Vec::with_capacity(slots_max as usize), slots_max, len: 0 }
    }

    /// Connections held.
    pub(crate) fn len(&self) -> u32 {
        self.len
    }

    /// Bytes of memory used for entries, without what they lend.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.entries.len() * size_of::<Entry>()
    }

    fn index(&self, connection: Connection) -> u32 {
        u32::from(connection.table()) * self.slots_max + connection.slot()
    }

    /// A new connection.
    pub(crate) fn insert(&mut self, connection: Connection, stage: Stage) -> u32 {
        assert!(connection.slot() < self.slots_max, "the ring has no more slots than it was made with");
        let index = self.index(connection);
        if self.entries.len() <= index as usize {
            self.entries.resize_with(index as usize + 1, || Entry::FREE);
        }
        let entry = &mut self.entries[index as usize];
        assert!(matches!(entry.stage, Stage::Free), "the ring gave a slot to two connections at once");
        (entry.connection, entry.stage) = (connection, stage);
        self.len += 1;
        index
    }

    /// Forgets a connection whose handle has ended; its outbound queue must be given back already.
    pub(crate) fn remove(&mut self, index: u32) {
        let entry = &mut self.entries[index as usize];
        assert_eq!(entry.outbound, NONE, "the queue outlives its connection");
        *entry = Entry::FREE;
        self.len -= 1;
    }

    /// The entry of a ring's handle, unless that handle has ended.
    pub(crate) fn find(&self, connection: Connection) -> Option<u32> {
        let index = self.index(connection);
        let entry = self.entries.get(index as usize)?;
        (entry.connection == connection && !matches!(entry.stage, Stage::Free)).then_some(index)
    }

    /// The entry of a client, unless it is gone.
    pub(crate) fn find_client(&self, client: ClientKey) -> Option<u32> {
        self.find(Connection::from_bits(client.0))
    }

    /// What the rules call the client of this entry.
    pub(crate) fn client(&self, index: u32) -> ClientKey {
        ClientKey(self.entries[index as usize].connection.to_bits())
    }

    pub(crate) fn get(&mut self, index: u32) -> &mut Entry {
        &mut self.entries[index as usize]
    }

    /// The entries in use.
    pub(crate) fn indices(&self) -> impl Iterator<Item = u32> + '_ {
        let used = |entry: &Entry| !matches!(entry.stage, Stage::Free);
        self.entries.iter().enumerate().filter(move |(_, entry)| used(entry)).map(|(index, _)| index as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_is_never_early_and_at_most_a_tick_late_however_long_the_process_runs() {
        let year_ms = 366 * 86_400_000;
        for now_ms in [0, 1, 15, 16, 1_000, u64::from(u32::MAX) * TICK_MS - 40_000, 9 * year_ms] {
            for after_ms in [0, 1, 15, 16, 17, 30_000, 60_000, 600_000] {
                let deadline = Deadline::at(now_ms + after_ms);
                let ms = deadline.ms(now_ms);
                assert!(
                    (now_ms + after_ms..=now_ms + after_ms + 2 * TICK_MS).contains(&ms),
                    "{now_ms} {after_ms} {ms}"
                );
                assert!(deadline.is_due(ms), "{now_ms} {after_ms}");
                assert!(ms == 0 || !deadline.is_due(ms - 1), "{now_ms} {after_ms}");
            }
        }
        assert_eq!(Deadline::NEVER.ms(5), NEVER);
        assert!(!Deadline::NEVER.is_due(u64::MAX - 1));
    }

    #[test]
    fn twenty_pings_at_once_then_one_a_second() {
        let mut entry = Entry::FREE;
        let now_ms = 123_456_000;
        for ping in 0..20 {
            assert!(entry.pays_for_ping(now_ms), "ping {ping}");
        }
        assert!(!entry.pays_for_ping(now_ms));
        let mut entry = Entry::FREE;
        for second in 0..200_000 {
            assert!(entry.pays_for_ping(now_ms + second * 1_000), "after {second} s");
        }
    }

    #[test]
    fn what_was_paid_for_long_ago_is_no_debt() {
        let mut entry = Entry::FREE;
        for now_s in [100_u64, 165_000] {
            for _ in 0..20 {
                assert!(entry.pays_for_ping(now_s * 1_000));
            }
            for minute in 1..(65_536 * 2 / 60) {
                let now_ms = (now_s + minute * 60) * 1_000;
                entry.forget_paid_pings(now_ms);
                assert_eq!(entry.owed_pings(now_ms), 0, "after {minute} minutes");
            }
        }
    }

    #[test]
    fn a_token_loses_a_part_of_a_second_and_never_gains_one() {
        let mut entry = Entry::FREE;
        assert_eq!(entry.expires_ms(), NEVER);
        entry.set_expires_ms(61_999);
        assert_eq!(entry.expires_ms(), 61_000);
        entry.set_expires_ms(u64::MAX);
        assert_eq!(entry.expires_ms(), NEVER);
    }

    #[test]
    fn a_handle_does_not_find_its_slots_next_tenant() {
        let mut table = Table::new(4);
        let handle = |table, slot, generation| Connection::new(table, slot, generation);
        let first = table.insert(handle(0, 3, 1), Stage::Closing);
        // A second ring's table lies behind the first.
        let other = table.insert(handle(1, 3, 1), Stage::Closing);
        assert_ne!(first, other);
        assert_eq!(table.find(handle(0, 3, 1)), Some(first));
        assert_eq!(table.find(handle(1, 3, 1)), Some(other));
        assert_eq!(table.find(handle(0, 2, 0)), None);
        assert_eq!(table.find(handle(0, 0, 0)), None, "a free entry is nobody's");
        let client = table.client(first);
        table.remove(first);
        assert_eq!(table.find(handle(0, 3, 1)), None);
        assert_eq!(table.insert(handle(0, 3, 2), Stage::Closing), first);
        assert_eq!(table.find_client(client), None);
        assert_eq!((table.len(), table.indices().count()), (2, 2));
    }
}
