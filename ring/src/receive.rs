//! Reading. An idle connection has a poll armed, which costs the kernel a quarter of what a
//! waiting receive costs, and no buffer. One that receives again and again gets a multishot
//! receive, which saves a request per message; it loses it when it goes quiet or takes more than
//! its share of the buffers.

use crate::kernel::{KernelRing, reason_of};
use crate::queue::{Completion, Key, Request};
use crate::seam::{CloseReason, Connection, Event, EventBatch};
use crate::table::{Reading, Stage};

/// Receives that follow one another within this time make a connection warmer.
const WARM_GAP_MS: u32 = 1_000;

/// So many of them make it hot.
const HOT: u8 = 3;

/// How often hot connections are looked at, and how many at least.
const SWEEP_EVERY_MS: u32 = 100;
const SWEEP_AT_LEAST: usize = 64;

impl KernelRing {
    /// Arms what was left to be armed until the turn is over.
    pub(crate) fn arm_reading(&mut self) {
        let mut arming = std::mem::take(&mut self.arming);
        for index in arming.drain(..) {
            let slot = self.table.slot(index);
            if slot.reading != Reading::Arming {
                continue;
            }
            if slot.paused || !matches!(slot.stage, Stage::Open | Stage::Draining) {
                slot.reading = Reading::Off;
                continue;
            }
            slot.pending += 1;
            let generation = slot.generation;
            if slot.heat >= HOT {
                slot.reading = Reading::Many;
                if !std::mem::replace(&mut slot.listed_hot, true) {
                    self.hot.push_back(index);
                }
                self.counters.promoted += 1;
                let key = Key::new(Request::ReceiveMany, index, generation);
                self.queue.receive_many(key, &mut self.counters);
            } else {
                slot.reading = Reading::Polled;
                let key = Key::new(Request::Poll, index, generation);
                self.queue.poll_readable(key, &mut self.counters);
            }
        }
        // Nothing was added meanwhile; the memory goes back for the next turn.
        self.arming = arming;
    }

    /// Reads from the connections that have data, oldest first, and from no more than there are
    /// buffers for: the rest keeps its place. Half of the buffers stay for the hot ones.
    pub(crate) fn read_some(&mut self) {
        let mut left = (self.buffers.count() / 2).max(1);
        while left > 0 {
            let Some(index) = self.readable.pop_front() else {
                return;
            };
            let slot = self.table.slot(index);
            if slot.reading != Reading::Readable {
                continue;
            }
            if slot.paused || !matches!(slot.stage, Stage::Open | Stage::Draining) {
                slot.reading = Reading::Off;
                continue;
            }
            left -= 1;
            slot.reading = Reading::Once;
            slot.pending += 1;
            let key = Key::new(Request::ReceiveOnce, index, slot.generation);
            self.queue.receive_once(key, &mut self.counters);
        }
    }

    pub(crate) fn polled(&mut self, index: u32, completion: &Completion) {
        // An error of the poll is an error of the socket; reading tells which.
        self.read_on(index, completion.result != Err(libc::ECANCELED));
    }

    pub(crate) fn received_once(&mut self, index: u32, completion: &Completion, events: &mut EventBatch) {
        match completion.result {
            Ok(0) => self.ended(index, events),
            Ok(bytes) => {
                let now_ms = self.now_ms;
                let more = completion.has_more_data();
                let slot = self.table.slot(index);
                if now_ms.wrapping_sub(slot.received_ms) > WARM_GAP_MS {
                    slot.heat = 0;
                } else if !more {
                    // A stream that never runs dry is served better, and more fairly, one
                    // buffer at a time.
                    slot.heat = slot.heat.saturating_add(1);
                }
                self.deliver(index, completion, bytes, events);
                self.read_on(index, more);
            }
            Err(code) => self.read_failed(index, code),
        }
    }

    pub(crate) fn received_many(&mut self, index: u32, completion: &Completion, events: &mut EventBatch) {
        match completion.result {
            Ok(0) => self.ended(index, events),
            Ok(bytes) => {
                self.deliver(index, completion, bytes, events);
                if completion.more() {
                    self.restrain(index);
                } else {
                    // Ended by the kernel for its own reasons, such as a full completion queue.
                    self.read_on(index, false);
                }
            }
            Err(code) => self.read_failed(index, code),
        }
    }

    fn deliver(&mut self, index: u32, completion: &Completion, bytes: u32, events: &mut EventBatch) {
        self.counters.bytes_in += u64::from(bytes);
        let connection = self.table.handle(index);
        let slot = self.table.slot(index);
        slot.received_ms = self.now_ms;
        if slot.stage == Stage::Open {
            let id = completion.buffer().expect("received bytes have a buffer");
            events.push_received(connection, self.buffers.bytes(id, bytes));
        }
    }

    /// Takes the multishot receive from a connection that has used more than its share of the
    /// buffers in this wait.
    fn restrain(&mut self, index: u32) {
        let share = (self.buffers.count() / 8).max(2);
        let wait_number = self.wait_number;
        let slot = self.table.slot(index);
        if slot.burst_wait != wait_number {
            slot.burst_wait = wait_number;
            slot.burst = 0;
        }
        slot.burst = slot.burst.saturating_add(1);
        if slot.burst > share && slot.reading == Reading::Many {
            self.counters.greedy += 1;
            self.cool(index);
        }
    }

    /// Ends a multishot receive; the connection goes on with polls.
    fn cool(&mut self, index: u32) {
        let slot = self.table.slot(index);
        slot.reading = Reading::Cancelling;
        slot.heat = 0;
        let key = Key::new(Request::ReceiveMany, index, slot.generation);
        self.queue.cancel(key, &mut self.counters);
    }

    fn read_failed(&mut self, index: u32, code: i32) {
        match code {
            libc::ENOBUFS => {
                self.counters.buffers_exhausted += 1;
                // Not hot again at once: that would fail again at once.
                self.table.slot(index).heat = 0;
                self.read_on(index, true);
            }
            libc::EINTR => self.read_on(index, true),
            libc::EAGAIN | libc::ECANCELED => self.read_on(index, false),
            code => {
                self.table.slot(index).reading = Reading::Off;
                self.begin_close(index, reason_of(code));
            }
        }
    }

    /// Nothing is armed any more: decides what comes next.
    fn read_on(&mut self, index: u32, data_waits: bool) {
        let slot = self.table.slot(index);
        let wanted = matches!(slot.stage, Stage::Open | Stage::Draining);
        if !wanted || slot.paused || slot.ended {
            slot.reading = Reading::Off;
        } else if data_waits {
            slot.reading = Reading::Readable;
            self.readable.push_back(index);
        } else {
            slot.reading = Reading::Arming;
            self.arming.push(index);
        }
    }

    /// The peer has finished its stream.
    fn ended(&mut self, index: u32, events: &mut EventBatch) {
        let connection = self.table.handle(index);
        let slot = self.table.slot(index);
        slot.reading = Reading::Off;
        slot.ended = true;
        match slot.stage {
            Stage::Open => events.push(Event::Eof { connection }),
            Stage::Draining if slot.finished => self.begin_close(index, CloseReason::Finished),
            _ => {}
        }
    }

    pub(crate) fn pause_receive(&mut self, connection: Connection) {
        let Some((index, slot)) = self.table.find(connection) else {
            self.counters.stale_ops += 1;
            return;
        };
        if slot.stage == Stage::Open {
            slot.paused = true;
            // An armed poll may stay: when it fires, nothing is read.
            if slot.reading == Reading::Many {
                self.cool(index);
            }
        }
    }

    pub(crate) fn resume_receive(&mut self, connection: Connection) {
        let Some((index, _)) = self.table.find(connection) else {
            self.counters.stale_ops += 1;
            return;
        };
        self.unpause(index);
    }

    /// Reads again, unless there is nothing more to come or it never stopped.
    pub(crate) fn unpause(&mut self, index: u32) {
        let slot = self.table.slot(index);
        slot.paused = false;
        if slot.reading == Reading::Off {
            self.read_on(index, false);
        }
    }

    /// Now and then, sends hot connections that went quiet back to polling. Cancelling costs more
    /// the more is armed, so each round looks at a part of them only.
    pub(crate) fn sweep_hot(&mut self) {
        if self.now_ms.wrapping_sub(self.swept_ms) < SWEEP_EVERY_MS {
            return;
        }
        self.swept_ms = self.now_ms;
        let looks = SWEEP_AT_LEAST.max(self.hot.len() / 16).min(self.hot.len());
        for _ in 0..looks {
            let Some(index) = self.hot.pop_front() else {
                return;
            };
            let quiet_ms = self.config.hot_idle_ms;
            let now_ms = self.now_ms;
            let slot = self.table.slot(index);
            if slot.reading != Reading::Many {
                slot.listed_hot = false;
            } else if now_ms.wrapping_sub(slot.received_ms) < quiet_ms {
                self.hot.push_back(index);
            } else {
                slot.listed_hot = false;
                self.counters.demoted += 1;
                self.cool(index);
            }
        }
    }
}
