//! The ring over the kernel: what it holds, and the loop that turns completions into events.
//! Reading, writing, closing and connecting each have a file of their own.

use std::cell::UnsafeCell;
use std::collections::VecDeque;
use std::marker::PhantomData;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use slab::Slab;

use crate::accept::{Around, Listeners};
use crate::buffers::ReceiveBuffers;
use crate::config::RingConfig;
use crate::connect::Connecting;
use crate::counters::RingCounters;
use crate::doorbell::Doorbell;
use crate::error::RingError;
use crate::queue::{Completion, Key, Queue, Request};
use crate::seam::{CloseReason, Event, EventBatch, ListenerId, Op, Ops};
use crate::send::Outgoing;
use crate::table::Table;

/// Connections that are expected to be busy at once; more make the lists grow, once.
const BUSY_AT_ONCE: usize = 1_024;

/// One io_uring, its connections and its listeners. It belongs to the thread that made it.
pub struct KernelRing {
    pub(crate) queue: Queue,
    pub(crate) table: Table,
    pub(crate) sends: Slab<Outgoing>,
    /// Boxed, so that an address stays where the kernel will read it.
    pub(crate) connects: Slab<Box<Connecting>>,
    pub(crate) buffers: ReceiveBuffers,
    listeners: Listeners,
    doorbell: Doorbell,
    /// The kernel writes the doorbell's count here; nobody reads it.
    doorbell_count: Box<UnsafeCell<u64>>,
    doorbell_armed: bool,
    /// Slots whose reading is to be armed before the next wait.
    pub(crate) arming: Vec<u32>,
    /// Slots with data to be read, in the order in which they had it.
    pub(crate) readable: VecDeque<u32>,
    /// Slots with a multishot receive, looked at in turn to see whether they have gone quiet.
    pub(crate) hot: VecDeque<u32>,
    pub(crate) swept_ms: u32,
    /// Events that arose while ops were taken.
    pub(crate) early: Vec<Event>,
    pub(crate) wait_number: u16,
    started: Instant,
    pub(crate) now_ms: u32,
    pub(crate) counters: RingCounters,
    pub(crate) config: RingConfig,
    /// SINGLE_ISSUER: the kernel refuses requests from any other thread.
    _bound_to_thread: PhantomData<*mut ()>,
}

impl KernelRing {
    /// Makes a ring for the calling thread, woken by `doorbell`.
    pub fn new(config: &RingConfig, doorbell: Doorbell) -> Result<Self, RingError> {
        config.check()?;
        let queue = Queue::new(config)?;
        let mut buffers = ReceiveBuffers::new(config.receive_buffers, config.receive_buffer_bytes);
        buffers.register(&queue.submitter())?;
        let busy = BUSY_AT_ONCE.min(config.connections_max as usize);
        Ok(Self {
            queue,
            table: Table::new(config.connections_max),
            sends: Slab::with_capacity(busy),
            connects: Slab::new(),
            buffers,
            listeners: Listeners::default(),
            doorbell,
            doorbell_count: Box::new(UnsafeCell::new(0)),
            doorbell_armed: false,
            arming: Vec::with_capacity(busy),
            readable: VecDeque::with_capacity(busy),
            hot: VecDeque::with_capacity(busy),
            swept_ms: 0,
            early: Vec::new(),
            wait_number: 0,
            started: Instant::now(),
            now_ms: 0,
            counters: RingCounters::default(),
            config: *config,
            _bound_to_thread: PhantomData,
        })
    }

    /// Listens on an address, shared with the other rings of this process by `SO_REUSEPORT`.
    /// Says which address it is, in case port 0 was asked for.
    ///
    /// [`crate::claim`] the address once per process first.
    pub fn listen(&mut self, address: SocketAddr) -> Result<(ListenerId, SocketAddr), RingError> {
        self.listeners.add(address, self.config.listen_backlog)
    }

    /// Takes no more connections through a listener. Connections that it brought live on; one
    /// that was being accepted may still appear.
    pub fn stop_listening(&mut self, listener: ListenerId) {
        self.listeners.stop(listener, &mut self.queue, &mut self.counters);
    }

    /// Rings another ring's doorbell whenever something happens here. So a thread sleeps in one ring and serves several,
    /// whose tables together hold more connections than the process may have descriptors.
    ///
    /// This ring must have a doorbell of its own.
    pub fn announce_at(&mut self, doorbell: &Doorbell) -> Result<(), RingError> {
        let announced = self.queue.announce(doorbell.descriptor());
        announced.map_err(|source| RingError::System { doing: "registering an eventfd for completions", source })
    }

    /// Whether [`Self::wait`] has something to do that it would not have to wait for. Costs no system call, and may say
    /// no for up to 100 ms where only a quiet connection is to be made cheap again.
    pub fn has_work(&mut self) -> bool {
        !(self.early.is_empty() && self.arming.is_empty() && self.readable.is_empty()) || self.queue.has_work()
    }

    /// The doorbell that wakes this ring.
    pub fn doorbell(&self) -> &Doorbell {
        &self.doorbell
    }

    /// What the ring has done so far.
    pub fn counters(&self) -> RingCounters {
        self.counters
    }

    /// Connections held at the moment.
    pub fn connections(&self) -> u32 {
        self.table.open
    }

    /// Hands everything submitted to the kernel and fills `events` with what happened since the
    /// last wait. What was in the batch is forgotten.
    ///
    /// Returns as soon as there is an event, when `timeout` has passed (`None`: never), or when
    /// a signal came whose handler does not ask for restarts; whoever handles others rings the
    /// doorbell.
    pub fn wait(&mut self, timeout: Option<Duration>, events: &mut EventBatch) -> Result<(), RingError> {
        events.clear();
        self.wait_number = self.wait_number.wrapping_add(1);
        let begun = Instant::now();
        let mut now = begun;
        loop {
            self.now_ms = now.duration_since(self.started).as_millis() as u32;
            self.prepare(events);
            let left = timeout.map(|timeout| timeout.saturating_sub(now.duration_since(begun)));
            let patience = self.patience(left, events);
            let came = self.queue.enter(patience, &mut self.counters)?;
            let slept_from = std::mem::replace(&mut now, Instant::now());
            self.now_ms = now.duration_since(self.started).as_millis() as u32;
            self.reap(events);
            let slept = now.duration_since(slept_from);
            if !events.is_empty() || timeout.is_some_and(|timeout| now.duration_since(begun) >= timeout) {
                return Ok(());
            }
            if came == 0 && patience.is_none_or(|patience| slept < patience) {
                self.counters.interrupted += 1;
                return Ok(());
            }
        }
    }

    /// Takes all ops, in order. They reach the kernel with the next [`Self::wait`].
    pub fn submit(&mut self, ops: &mut Ops) {
        for op in ops.drain() {
            match op {
                Op::Send { connection, buffer } => self.send(connection, buffer),
                Op::Close { connection } => self.close(connection),
                Op::Reset { connection } => self.reset(connection),
                Op::Shutdown { connection } => self.shutdown(connection),
                Op::Connect { token, address, source } => self.connect(token, address, source),
                Op::PauseReceive { connection } => self.pause_receive(connection),
                Op::ResumeReceive { connection } => self.resume_receive(connection),
            }
        }
    }

    /// Everything that is armed late on purpose: a turn has had its say by now.
    fn prepare(&mut self, events: &mut EventBatch) {
        for event in self.early.drain(..) {
            events.push(event);
        }
        self.arm_doorbell();
        self.listeners.arm(
            &mut Around {
                queue: &mut self.queue,
                table: &mut self.table,
                counters: &mut self.counters,
                now_ms: self.now_ms,
            },
            events,
        );
        self.sweep_hot();
        self.arm_reading();
        self.read_some();
    }

    /// How long the kernel may let us sleep.
    fn patience(&self, left: Option<Duration>, events: &EventBatch) -> Option<Duration> {
        if !events.is_empty() || self.queue.has_next() {
            return Some(Duration::ZERO);
        }
        // A millisecond is added because the ring's clock has cut off a part of one.
        let retry = self.listeners.retry_in_ms(self.now_ms).map(|ms| Duration::from_millis(u64::from(ms) + 1));
        match (left, retry) {
            (Some(left), Some(retry)) => Some(left.min(retry)),
            (left, retry) => left.or(retry),
        }
    }

    fn reap(&mut self, events: &mut EventBatch) {
        while let Some(completion) = self.queue.next() {
            self.handle(&completion, events);
            if let Some(id) = completion.buffer() {
                self.buffers.add(id);
            }
        }
        self.buffers.publish();
    }

    fn handle(&mut self, completion: &Completion, events: &mut EventBatch) {
        let key = completion.key;
        match key.request {
            Request::Accept => return self.accepted(completion, events),
            Request::Doorbell => return self.rang(events),
            Request::Cancel => return,
            _ => {}
        }
        let Some(slot) = self.table.tenant(key) else {
            self.counters.stale_completions += 1;
            return;
        };
        if key.request != Request::Release && !completion.more() {
            slot.pending -= 1;
        }
        match key.request {
            Request::Poll => self.polled(key.slot, completion),
            Request::ReceiveOnce => self.received_once(key.slot, completion, events),
            Request::ReceiveMany => self.received_many(key.slot, completion, events),
            Request::Send => self.sent(key.slot, completion, events),
            Request::Install => self.installed(key.slot, completion),
            Request::ShutdownWrite => self.finished(key.slot),
            Request::Release => return self.released(key.slot, events),
            Request::Connect => return self.connected(key.slot, completion, events),
            Request::Disconnect | Request::Accept | Request::Doorbell | Request::Cancel => {}
        }
        self.release_if_quiet(key.slot);
    }

    fn accepted(&mut self, completion: &Completion, events: &mut EventBatch) {
        let opened = self.listeners.completed(
            completion,
            &mut Around {
                queue: &mut self.queue,
                table: &mut self.table,
                counters: &mut self.counters,
                now_ms: self.now_ms,
            },
            events,
        );
        self.arming.extend(opened);
    }

    fn arm_doorbell(&mut self) {
        if self.doorbell_armed {
            return;
        }
        self.doorbell_armed = true;
        let key = Key::new(Request::Doorbell, 0, 0);
        // SAFETY: the count is boxed, nobody else touches it, and it outlives the request: a
        // ring that goes away ends its requests first.
        unsafe {
            self.queue.read_event(key, self.doorbell.descriptor(), self.doorbell_count.get(), &mut self.counters);
        }
    }

    fn rang(&mut self, events: &mut EventBatch) {
        self.doorbell_armed = false;
        self.counters.doorbells += 1;
        events.push(Event::Doorbell);
    }
}

impl Drop for KernelRing {
    fn drop(&mut self) {
        if !self.queue.shut_down() {
            // The kernel may still use this memory, so nobody else ever may.
            std::mem::forget(std::mem::take(&mut self.sends));
            std::mem::forget(std::mem::take(&mut self.connects));
            std::mem::forget(std::mem::take(&mut self.listeners));
            std::mem::forget(std::mem::take(&mut self.doorbell_count));
            let none = ReceiveBuffers::new(1, 64);
            std::mem::forget(std::mem::replace(&mut self.buffers, none));
        }
    }
}

/// What an error on an established connection means.
pub(crate) fn reason_of(code: i32) -> CloseReason {
    match code {
        libc::ECONNRESET | libc::EPIPE | libc::ENOTCONN => CloseReason::Reset,
        libc::ETIMEDOUT => CloseReason::TimedOut,
        code => CloseReason::Failed { code },
    }
}
