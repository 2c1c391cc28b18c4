//! What waits to be sent: one queue per connection that has something to say, lent from a pool.
//!
//! ```text
//! frames of this turn --> queue --(one Send per connection and turn)--> in flight --> Sent
//! ```
//!
//! While a send is outstanding, further frames gather in the queue and leave together in the next.

use crate::table::NONE;

/// Room of a new buffer: that of a frame or two, so that the first does not grow it step by step.
const BUFFER_BYTES_MIN: usize = 512;
/// A buffer with more room than this is not kept for others: one large page must not make every later
/// small frame cold.
const BUFFER_BYTES_MAX: usize = 16 * 1024;
/// Room that is kept for reuse, in all buffers together: after a storm of `open`s nothing else stays.
const KEPT_BYTES_MAX: usize = 4 * 1024 * 1024;

/// One connection's queue.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    /// Encoded and not yet handed to the ring.
    pub waiting: Vec<u8>,
    /// Bytes of the outstanding send; 0: none.
    pub in_flight: u32,
    /// When the peer last took something, or the send began.
    pub progress_ms: u64,
    next_free: u32,
}

impl Queue {
    /// Everything that this client has not taken yet.
    pub(crate) fn bytes(&self) -> usize {
        self.waiting.len() + self.in_flight as usize
    }
}

/// The queues of all connections that have something to say.
pub(crate) struct Outbound {
    queues: Vec<Queue>,
    free: u32,
    buffers: Vec<Vec<u8>>,
    kept_bytes: usize,
}

impl Outbound {
    pub(crate) fn new() -> Self {
        Self { queues: Vec::new(), free: NONE, buffers: Vec::new(), kept_bytes: 0 }
    }

    /// Lends an empty queue.
    pub(crate) fn lend(&mut self) -> u32 {
        if self.free == NONE {
            self.queues.push(Queue { next_free: NONE, ..Queue::default() });
            return self.queues.len() as u32 - 1;
        }
        let index = self.free;
        self.free = self.queues[index as usize].next_free;
        index
    }

    /// What waits in a queue, to be written to. It gets its room here: while a send is outstanding, most
    /// queues need none.
    pub(crate) fn waiting(&mut self, index: u32) -> &mut Vec<u8> {
        if self.queues[index as usize].waiting.capacity() == 0 {
            self.queues[index as usize].waiting = self.empty_buffer();
        }
        &mut self.queues[index as usize].waiting
    }

    /// Takes a queue back, whatever is in it.
    pub(crate) fn give_back(&mut self, index: u32) {
        let queue = &mut self.queues[index as usize];
        queue.in_flight = 0;
        queue.next_free = self.free;
        self.free = index;
        let waiting = std::mem::take(&mut queue.waiting);
        self.reuse(waiting);
    }

    pub(crate) fn get(&mut self, index: u32) -> &mut Queue {
        &mut self.queues[index as usize]
    }

    /// Takes all that waits in a queue, to be sent.
    pub(crate) fn take_waiting(&mut self, index: u32) -> Vec<u8> {
        let queue = &mut self.queues[index as usize];
        assert_eq!(queue.in_flight, 0, "one send per connection is outstanding");
        queue.in_flight = queue.waiting.len() as u32;
        std::mem::take(&mut queue.waiting)
    }

    /// Keeps a buffer that is done with, for the next.
    pub(crate) fn reuse(&mut self, mut buffer: Vec<u8>) {
        let room = buffer.capacity();
        if (1..=BUFFER_BYTES_MAX).contains(&room) && self.kept_bytes + room <= KEPT_BYTES_MAX {
            buffer.clear();
            self.kept_bytes += room;
            self.buffers.push(buffer);
        }
    }

    fn empty_buffer(&mut self) -> Vec<u8> {
        let Some(buffer) = self.buffers.pop() else { return Vec::with_capacity(BUFFER_BYTES_MIN) };
        self.kept_bytes -= buffer.capacity();
        buffer
    }

    /// Bytes of memory held.
    pub(crate) fn memory_bytes(&self) -> usize {
        let waiting: usize = self.queues.iter().map(|queue| queue.waiting.capacity()).sum();
        self.queues.capacity() * size_of::<Queue>() + waiting + self.kept_bytes
    }
}
