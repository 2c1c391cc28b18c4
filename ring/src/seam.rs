//! The seam between what decides and what touches sockets: plain data in both directions.
//!
//! A driver hands a shard an [`EventBatch`] and the time, and gets [`Ops`] back. The kernel's ring
//! fills and empties these, and so does the simulator: nothing here knows the kernel.
//!
//! ```text
//! ring.wait(timeout, &mut events)?;      // what happened
//! shard.turn(now, &mut events, &mut ops); // what is decided
//! ring.submit(&mut ops);                 // what is done, in the order of the ops
//! ```
//!
//! The rules that both sides keep, in the kernel and in the simulation alike:
//!
//! - A handle begins with `Accepted` or `Connected` and ends with exactly one `Closed`. No event of
//!   that handle comes before or after. An op on a handle that has ended is ignored.
//! - At most one `Send` per connection is outstanding: until `Sent` gives its buffer back, the next
//!   must wait. A send that the connection did not outlive comes back in `Closed`.
//! - `Received` data of one connection comes in the order of the stream; after `Eof` comes none.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::ops::Range;

/// One connection of one ring: which table, which slot in it, and which of the slot's many lives.
///
/// The slot is dense and small, so a shard may index an array by it; the generation tells a handle
/// whose connection has ended from its slot's next tenant.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Connection(u64);

impl Connection {
    /// Slots are numbered below this bound, in every table.
    pub const SLOTS_MAX: u32 = 1 << 24;

    /// Names a connection. Rings and the simulator do this; everyone else only passes handles on.
    pub const fn new(table: u8, slot: u32, generation: u32) -> Self {
        assert!(slot < Self::SLOTS_MAX, "a slot has 24 bits");
        Self((table as u64) << 56 | (slot as u64) << 32 | generation as u64)
    }

    /// Which of the ring's tables holds it.
    pub const fn table(self) -> u8 {
        (self.0 >> 56) as u8
    }

    /// Its place in the table.
    pub const fn slot(self) -> u32 {
        (self.0 >> 32) as u32 & (Self::SLOTS_MAX - 1)
    }

    /// Which of the slot's tenants it is.
    pub const fn generation(self) -> u32 {
        self.0 as u32
    }

    /// The handle as a number, to be kept in a small field or sent to another shard.
    pub const fn to_bits(self) -> u64 {
        self.0
    }

    /// The handle that [`Self::to_bits`] gave.
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "connection {}/{}#{}", self.table(), self.slot(), self.generation())
    }
}

/// One listening socket of one ring, numbered from 0 in the order of listening.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ListenerId(pub u8);

/// Why a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseReason {
    /// [`Op::Close`] or [`Op::Reset`] asked for it.
    Asked,
    /// [`Op::Shutdown`] asked for it, and the peer finished as well: both streams ended in order.
    Finished,
    /// The peer cut it off.
    Reset,
    /// The peer stopped answering and the kernel gave up.
    TimedOut,
    /// Something else, by the system's error number.
    Failed {
        /// The error number, as in `std::io::Error::from_raw_os_error`.
        code: i32,
    },
}

/// Why [`Op::Connect`] came to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectError {
    /// Nobody listens there.
    Refused,
    /// Nobody answered.
    TimedOut,
    /// No local port is left for this pair of addresses, or the wanted one is in use.
    NoPort,
    /// The ring holds as many connections as it may.
    TableFull,
    /// Something else, by the system's error number.
    Failed {
        /// The error number, as in `std::io::Error::from_raw_os_error`.
        code: i32,
    },
}

/// Why a listener accepts nothing for the moment. New connections wait in the kernel's backlog.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AcceptPause {
    /// The ring holds as many connections as it may; accepting resumes when some have closed.
    TableFull,
    /// The system has no more descriptors or memory for sockets; it is asked again a little later.
    System,
}

/// What happened since the last turn.
///
/// Not `Clone`: `Sent` and `Closed` carry the one copy of a buffer back to its owner.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// A peer connected to one of our listeners.
    Accepted {
        /// The new connection.
        connection: Connection,
        /// The listener it came through.
        listener: ListenerId,
        /// Where it comes from.
        peer: SocketAddr,
    },
    /// An [`Op::Connect`] succeeded.
    Connected {
        /// The new connection.
        connection: Connection,
        /// The op's token.
        token: u64,
    },
    /// An [`Op::Connect`] failed; there is no connection and nothing to close.
    ConnectFailed {
        /// The op's token.
        token: u64,
        /// What went wrong.
        error: ConnectError,
    },
    /// Bytes arrived. They live in the batch until it is cleared: see [`EventBatch::data_mut`].
    Received {
        /// Where they came from.
        connection: Connection,
        /// Where they are in the batch's data.
        range: Range<u32>,
    },
    /// The peer has finished sending; it may still be reading.
    Eof {
        /// Whose stream ended.
        connection: Connection,
    },
    /// The kernel took a part of the outstanding send and waits for the peer to make room.
    /// Only of interest to whoever tells a slow peer from a dead one.
    SendProgress {
        /// The slow connection.
        connection: Connection,
        /// Bytes taken since the last word on this send.
        bytes: u32,
    },
    /// The kernel has taken the whole buffer. That the peer has it is not said.
    Sent {
        /// Whose send it was.
        connection: Connection,
        /// The buffer, contents and all, to be used again.
        buffer: Vec<u8>,
    },
    /// The connection is gone and its handle with it.
    Closed {
        /// The handle that ends here.
        connection: Connection,
        /// Why.
        reason: CloseReason,
        /// The buffer of a send that was cut short, to be used again.
        buffer: Option<Vec<u8>>,
    },
    /// Somebody rang the doorbell, once or more often since the last turn.
    Doorbell,
    /// A listener stopped accepting.
    AcceptPaused {
        /// Which listener.
        listener: ListenerId,
        /// Why.
        cause: AcceptPause,
    },
    /// A listener that was paused accepts again.
    AcceptResumed {
        /// Which listener.
        listener: ListenerId,
    },
}

/// Everything that happened since the last turn, with the bytes that arrived.
///
/// Received bytes are copied here once, so that the ring's few receive buffers go back to the
/// kernel at once and a shard may unmask in place. Both parts keep their memory between turns.
#[derive(Debug, Default)]
pub struct EventBatch {
    events: VecDeque<Event>,
    data: Vec<u8>,
}

impl EventBatch {
    /// A batch with room for this many events and received bytes; it grows if it must.
    pub fn with_capacity(events: usize, data_bytes: usize) -> Self {
        Self { events: VecDeque::with_capacity(events), data: Vec::with_capacity(data_bytes) }
    }

    /// Appends an event that carries no data.
    pub fn push(&mut self, event: Event) {
        self.events.push_back(event);
    }

    /// Copies `bytes` into the batch and appends the [`Event::Received`] that tells of them.
    pub fn push_received(&mut self, connection: Connection, bytes: &[u8]) {
        let start = self.data.len() as u32;
        self.data.extend_from_slice(bytes);
        let end = u32::try_from(self.data.len()).expect("a batch holds less than 4 GiB");
        self.events.push_back(Event::Received { connection, range: start..end });
    }

    /// Takes the oldest event. The data of a `Received` stays readable until [`Self::clear`].
    pub fn pop(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// The bytes of an [`Event::Received`].
    pub fn data(&self, range: Range<u32>) -> &[u8] {
        &self.data[range.start as usize..range.end as usize]
    }

    /// The bytes of an [`Event::Received`], to be decoded where they lie.
    pub fn data_mut(&mut self, range: Range<u32>) -> &mut [u8] {
        &mut self.data[range.start as usize..range.end as usize]
    }

    /// Bytes received in this batch.
    pub fn data_bytes(&self) -> usize {
        self.data.len()
    }

    /// The events not yet taken, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &Event> {
        self.events.iter()
    }

    /// How many events are not yet taken.
    pub fn len(&self) -> usize {
        self.events.len()
    }

    /// Whether every event has been taken.
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// Forgets everything and keeps the memory.
    pub fn clear(&mut self) {
        self.events.clear();
        self.data.clear();
    }
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub enum Op {
    /// Send the whole buffer. At most one is outstanding per connection.
    Send {
        /// To whom.
        connection: Connection,
        /// What; it comes back in [`Event::Sent`] or [`Event::Closed`].
        buffer: Vec<u8>,
    },
    /// End the connection now. What the kernel already took is still delivered and the peer sees
    /// the stream end in order, unless bytes from the peer were still unread (then TCP resets).
    Close {
        /// Which.
        connection: Connection,
    },
    /// Cut the connection off: TCP resets, and the kernel forgets whatever was not yet delivered.
    /// For a peer that is dead or hostile, whose unsent bytes would only hold memory.
    Reset {
        /// Which.
        connection: Connection,
    },
    /// End the connection in order: when the outstanding send is done, finish our stream, read and
    /// discard until the peer finishes too, then close. Whoever asks owns the deadline and issues
    /// [`Op::Close`] when it passes.
    Shutdown {
        /// Which.
        connection: Connection,
    },
    /// Open a connection.
    Connect {
        /// Comes back in [`Event::Connected`] or [`Event::ConnectFailed`].
        token: u64,
        /// Where to.
        address: SocketAddr,
        /// From which local address; port 0 means any port of it.
        source: Option<SocketAddr>,
    },
    /// Stop reading from a connection, so that the peer feels it. A few pieces that the kernel had
    /// already handed over may still arrive.
    PauseReceive {
        /// Which.
        connection: Connection,
    },
    /// Read again.
    ResumeReceive {
        /// Which.
        connection: Connection,
    },
}

/// What one turn wants done, in order. Keeps its memory between turns.
#[derive(Debug, Default)]
pub struct Ops {
    ops: Vec<Op>,
}

impl Ops {
    /// Room for this many ops; it grows if it must.
    pub fn with_capacity(ops: usize) -> Self {
        Self { ops: Vec::with_capacity(ops) }
    }

    /// Appends an op.
    pub fn push(&mut self, op: Op) {
        self.ops.push(op);
    }

    /// Takes all ops, oldest first, and keeps the memory.
    pub fn drain(&mut self) -> std::vec::Drain<'_, Op> {
        self.ops.drain(..)
    }

    /// The ops, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &Op> {
        self.ops.iter()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.ops.len()
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_keeps_its_three_parts_apart() {
        for (table, slot, generation) in [(0, 0, 0), (255, Connection::SLOTS_MAX - 1, u32::MAX), (3, 18_999, 7)] {
            let connection = Connection::new(table, slot, generation);
            assert_eq!(connection.table(), table);
            assert_eq!(connection.slot(), slot);
            assert_eq!(connection.generation(), generation);
            assert_eq!(Connection::from_bits(connection.to_bits()), connection);
        }
    }

    #[test]
    fn received_bytes_stay_readable_after_their_event_was_taken() {
        let mut batch = EventBatch::default();
        let connection = Connection::new(0, 1, 2);
        batch.push_received(connection, b"one");
        batch.push_received(connection, b"two");
        let mut seen = Vec::new();
        while let Some(event) = batch.pop() {
            let Event::Received { range, .. } = event else {
                panic!("only received events were pushed");
            };
            batch.data_mut(range.clone()).make_ascii_uppercase();
            seen.extend_from_slice(batch.data(range));
        }
        assert_eq!(seen, b"ONETWO");
        batch.clear();
        assert_eq!(batch.data_bytes(), 0);
    }
}
