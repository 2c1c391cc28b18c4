//! What shards and a store's threads share, whatever the backend: ports, messages and wakers.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TrySendError, bounded, unbounded};

use crate::counters::StoreCounters;
use crate::seam::{AppendGroup, Run, StorageEvent, StorageRequest, Ticket, ViewRead};

/// Wakes a shard that may sleep; called after events were put into its port.
pub type Waker = Box<dyn Fn() + Send + Sync>;

/// A shard's end of the store.
#[derive(Debug)]
pub struct Port {
    shard: u16,
    lane: Sender<LaneMessage>,
    reads: Sender<ReadJob>,
    events: Receiver<StorageEvent>,
}

impl Port {
    /// Hands a request over, or gives it back when the queue is full or the store has stopped.
    ///
    /// With at most one group in flight, only reads can find their queue full.
    pub fn submit(&self, request: StorageRequest) -> Result<(), StorageRequest> {
        let message = match request {
            StorageRequest::Read(ticket, read) => return self.submit_read(ticket, read),
            StorageRequest::Append(group) => LaneMessage::Append(self.shard, group),
            StorageRequest::Run { checkpoint, run } => LaneMessage::Run(self.shard, checkpoint, run),
            StorageRequest::Serving => LaneMessage::Serving(self.shard),
        };
        self.lane.try_send(message).map_err(|error| match error.into_inner() {
            LaneMessage::Append(_, group) => StorageRequest::Append(group),
            LaneMessage::Run(_, checkpoint, run) => StorageRequest::Run { checkpoint, run },
            _ => StorageRequest::Serving,
        })
    }

    /// Appends the events that wait to `events`.
    pub fn poll(&mut self, events: &mut Vec<StorageEvent>) {
        events.extend(self.events.try_iter());
    }

    /// Whether events wait; for a shard that is about to sleep.
    pub fn has_events(&self) -> bool {
        !self.events.is_empty()
    }

    fn submit_read(&self, ticket: Ticket, read: ViewRead) -> Result<(), StorageRequest> {
        self.reads.try_send(ReadJob::Read(self.shard, ticket, read)).map_err(|error| match error {
            TrySendError::Full(job) | TrySendError::Disconnected(job) => match job {
                ReadJob::Read(_, ticket, read) => StorageRequest::Read(ticket, read),
                ReadJob::Stop => unreachable!("a port sends reads"),
            },
        })
    }
}

/// What the lane's thread is told.
#[derive(Debug)]
pub(crate) enum LaneMessage {
    Append(u16, AppendGroup),
    Run(u16, u64, Run),
    Serving(u16),
    /// The views have made a checkpoint durable.
    Ingested {
        checkpoint: u64,
        forgotten_until_ms: u64,
    },
    /// Make a last checkpoint, say so, and end.
    Close,
    /// End now, as after a crash.
    Stop,
}

#[derive(Debug)]
pub(crate) enum ReadJob {
    Read(u16, Ticket, ViewRead),
    Stop,
}

/// What all threads of a store share.
pub(crate) struct Shared {
    events: Vec<Sender<StorageEvent>>,
    wakers: Vec<Waker>,
    pub(crate) counters: Arc<StoreCounters>,
    /// Held by a reader from before it reads until its answer is on its way; see `views_threads`.
    pub(crate) reads: RwLock<()>,
    /// The views are not to rest: the journal has gone on far, or waits for its end.
    pub(crate) urgent: AtomicBool,
    started: Instant,
}

/// The channels between the shards and a store's threads.
pub(crate) struct Channels {
    pub(crate) shared: Arc<Shared>,
    pub(crate) ports: Vec<Port>,
    pub(crate) lane: Sender<LaneMessage>,
    pub(crate) lane_messages: Receiver<LaneMessage>,
    pub(crate) reads: Sender<ReadJob>,
    pub(crate) read_jobs: Receiver<ReadJob>,
}

impl Channels {
    /// One port per waker.
    pub(crate) fn new(wakers: Vec<Waker>, reads_waiting_max: usize) -> Channels {
        let shards = wakers.len();
        let (senders, receivers): (Vec<_>, Vec<_>) = (0..shards).map(|_| unbounded()).unzip();
        let shared = Arc::new(Shared {
            events: senders,
            wakers,
            counters: Arc::new(StoreCounters::default()),
            reads: RwLock::new(()),
            urgent: AtomicBool::new(false),
            started: Instant::now(),
        });
        // A shard has one group, one run and one `Serving` in flight at most.
        let (lane, lane_messages) = bounded(4 * shards + 16);
        let (reads, read_jobs) = bounded(reads_waiting_max);
        let ports = receivers.into_iter().enumerate();
        let ports =
            ports.map(|(shard, events)| Port { shard: shard as u16, lane: lane.clone(), reads: reads.clone(), events });
        Channels { ports: ports.collect(), shared, lane, lane_messages, reads, read_jobs }
    }
}

impl Shared {
    pub(crate) fn shards(&self) -> usize {
        self.events.len()
    }

    pub(crate) fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    pub(crate) fn send(&self, shard: u16, event: StorageEvent) {
        // A shard that is gone needs no answer.
        let _ = self.events[shard as usize].send(event);
    }

    pub(crate) fn wake(&self, shard: u16) {
        (self.wakers[shard as usize])();
    }
}

/// A thread of the store ended.
pub(crate) enum Ended {
    Lane {
        /// The last checkpoint covers everything.
        clean: bool,
    },
    Views,
}

/// The threads of a running store: one lane, one writer of views, some readers.
pub(crate) struct Threads {
    pub(crate) shared: Arc<Shared>,
    pub(crate) lane: Sender<LaneMessage>,
    pub(crate) reads: Sender<ReadJob>,
    pub(crate) readers: usize,
    /// Each thread sends when it ends.
    pub(crate) ended: Receiver<Ended>,
    pub(crate) running: usize,
    pub(crate) stall_ms: u64,
}

impl std::fmt::Debug for Threads {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Threads").field("running", &self.running).finish_non_exhaustive()
    }
}

impl Threads {
    pub(crate) fn counters(&self) -> Arc<StoreCounters> {
        Arc::clone(&self.shared.counters)
    }

    /// Why the store is not healthy, in words, if it is not.
    pub(crate) fn trouble(&self) -> Option<String> {
        let since = self.shared.counters.checkpoint_since_ms.get();
        let waited = self.shared.now_ms().saturating_sub(since.saturating_sub(1));
        (since > 0 && waited > self.stall_ms).then(|| format!("views stalled for {} s", waited / 1000))
    }

    /// Asks for a last checkpoint and stops. True: the next start has nothing to replay.
    pub(crate) fn shutdown(&mut self, wait_max: Duration) -> bool {
        let deadline = Instant::now() + wait_max;
        let _ = self.lane.send_timeout(LaneMessage::Close, wait_max);
        let clean = loop {
            match self.ended.recv_deadline(deadline) {
                Ok(Ended::Lane { clean }) => {
                    self.running -= 1;
                    break clean;
                }
                Ok(Ended::Views) => self.running -= 1,
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break false,
            }
        };
        self.stop();
        clean
    }

    /// Ends all threads; waits for them, but not for ever: what is below may hang.
    pub(crate) fn stop(&mut self) {
        const WAIT_MAX: Duration = Duration::from_secs(15);
        let deadline = Instant::now() + WAIT_MAX;
        let _ = self.lane.send_timeout(LaneMessage::Stop, WAIT_MAX);
        for _ in 0..self.readers {
            let _ = self.reads.send_timeout(ReadJob::Stop, WAIT_MAX);
        }
        while self.running > 0 {
            if self.ended.recv_deadline(deadline).is_err() {
                tracing::error!(threads = self.running, "the store's threads do not end");
                return;
            }
            self.running -= 1;
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        if self.running > 0 {
            self.stop();
        }
    }
}
