//! The connections of one shard, small and dense.
//!
//! An idle session costs one [`Entry`], twelve bytes in the wheel and four in the index: it has no
//! buffer, in or out. What a busy one needs more is lent from pools and given back.

use chat::{ClientKey, SessionKey};
use ring::Connection;
use wire::ids::UserId;
use wire::reader::Reader;

use crate::auth;

use crate::http::Http;

/// No deadline.
pub(crate) const NEVER: u64 = u64::MAX;
/// No entry, no outbound queue.
pub(crate) const NONE: u32 = u32::MAX;

/// What a connection is at the moment.
pub(crate) enum Stage {
    /// Nobody's: the next free entry.
    Free(u32),
    /// HTTP: a request is expected, arriving or being answered.
    Http(Box<Http>),
    /// A WebSocket that speaks the client protocol.
    Socket(Socket),
    /// A WebSocket that gets back what it sends.
    Echo(Reader),
    /// Its last bytes are on their way; whatever the peer still sends is ignored.
    Closing,
}

/// A WebSocket of the client protocol.
pub(crate) struct Socket {
    pub reader: Reader,
    /// The session, once `open` came.
    pub session: Option<SessionKey>,
    /// The user of the session, whose new tokens it takes.
    pub user: UserId,
    /// Until when pings have been paid for: each costs a second, and a peer may owe twenty.
    pub pings_until_ms: u64,
    /// When the client's token ends, by the monotonic clock of this run.
    pub expires_ms: u64,
    /// Who the client said it is at the upgrade; its `open` takes it.
    pub upgraded_as: Option<Box<auth::Identity>>,
}

/// One connection.
pub(crate) struct Entry {
    pub connection: Connection,
    pub stage: Stage,
    /// Tells this tenant of the entry from the ones before; part of a `ClientKey`.
    pub generation: u32,
    /// Its queue in the pool of [`crate::outbound::Outbound`], while something waits to be sent.
    pub outbound: u32,
    /// When the present stage must have ended.
    pub deadline_ms: u64,
    /// When the wheel will look at it; never later than any deadline that it has.
    pub armed_ms: u64,
    pub flags: Flags,
}

/// What else is to be remembered of a connection.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Flags {
    /// In the list of those that this turn wrote to.
    pub dirty: bool,
    /// Reading is paused until its queue is shorter.
    pub paused: bool,
    /// To be shut down when its queue is empty.
    pub finish: bool,
    /// So much waited for it once that the rules made it lag; they want to know when nothing waits.
    pub pressed: bool,
    /// WebSocket: the client was told that its token ends.
    pub warned: bool,
    /// WebSocket: the session is open, so that the token's end matters.
    pub opened: bool,
    /// HTTP: at least one request was answered.
    pub served: bool,
    /// HTTP: a later request has begun to arrive.
    pub arriving: bool,
    /// The peer has finished sending.
    pub eof: bool,
}

/// All connections of a shard.
pub(crate) struct Table {
    entries: Vec<Entry>,
    free: u32,
    len: u32,
    /// Entry of each slot of each of the ring's tables.
    index: Vec<Vec<u32>>,
}

impl Table {
    pub(crate) fn new() -> Self {
        Self { entries: Vec::new(), free: NONE, len: 0, index: Vec::new() }
    }

    /// Connections held.
    pub(crate) fn len(&self) -> u32 {
        self.len
    }

    /// Bytes of memory held for entries, without what they lend.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.entries.capacity() * size_of::<Entry>()
            + self.index.iter().map(|slots| slots.capacity() * 4).sum::<usize>()
    }

    /// A new connection.
    pub(crate) fn insert(&mut self, connection: Connection, stage: Stage) -> u32 {
        let index = match self.free {
            NONE => {
                self.entries.push(Entry {
                    connection,
                    stage,
                    generation: 0,
                    outbound: NONE,
                    deadline_ms: NEVER,
                    armed_ms: NEVER,
                    flags: Flags::default(),
                });
                self.entries.len() as u32 - 1
            }
            index => {
                let entry = &mut self.entries[index as usize];
                let Stage::Free(next) = entry.stage else { unreachable!("the free list holds free entries") };
                self.free = next;
                entry.connection = connection;
                entry.stage = stage;
                index
            }
        };
        let (table, slot) = (usize::from(connection.table()), connection.slot() as usize);
        if self.index.len() <= table {
            self.index.resize_with(table + 1, Vec::new);
        }
        let slots = &mut self.index[table];
        if slots.len() <= slot {
            slots.resize(slot + 1, NONE);
        }
        assert_eq!(slots[slot], NONE, "the ring gave a slot to two connections at once");
        slots[slot] = index;
        self.len += 1;
        index
    }

    /// Forgets a connection whose handle has ended; its outbound queue must be given back already.
    pub(crate) fn remove(&mut self, index: u32) {
        let entry = &mut self.entries[index as usize];
        assert_eq!(entry.outbound, NONE, "the queue outlives its connection");
        let connection = entry.connection;
        entry.generation = entry.generation.wrapping_add(1);
        entry.stage = Stage::Free(self.free);
        entry.deadline_ms = NEVER;
        entry.armed_ms = NEVER;
        entry.flags = Flags::default();
        self.free = index;
        self.index[usize::from(connection.table())][connection.slot() as usize] = NONE;
        self.len -= 1;
    }

    /// The entry of a ring's handle, unless that handle has ended.
    pub(crate) fn find(&self, connection: Connection) -> Option<u32> {
        let index = *self.index.get(usize::from(connection.table()))?.get(connection.slot() as usize)?;
        (index != NONE && self.entries[index as usize].connection == connection).then_some(index)
    }

    /// The entry of a client, unless it is gone.
    pub(crate) fn find_client(&self, client: ClientKey) -> Option<u32> {
        let (index, generation) = (client.0 as u32, (client.0 >> 32) as u32);
        let entry = self.entries.get(index as usize)?;
        (entry.generation == generation && !matches!(entry.stage, Stage::Free(_))).then_some(index)
    }

    /// What the rules call the client of this entry.
    pub(crate) fn client(&self, index: u32) -> ClientKey {
        ClientKey(u64::from(self.entries[index as usize].generation) << 32 | u64::from(index))
    }

    pub(crate) fn get(&mut self, index: u32) -> &mut Entry {
        &mut self.entries[index as usize]
    }

    /// The entries in use.
    pub(crate) fn indices(&self) -> impl Iterator<Item = u32> + '_ {
        let used = |entry: &Entry| !matches!(entry.stage, Stage::Free(_));
        self.entries.iter().enumerate().filter(move |(_, entry)| used(entry)).map(|(index, _)| index as u32)
    }
}

// What an idle session costs here, besides the wheel and the index.
const _: () = assert!(size_of::<Entry>() <= 120);
