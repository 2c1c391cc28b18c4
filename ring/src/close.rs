//! Ending connections without leaking them.
//!
//! A slot must not be freed while a request on it is pending: the request would keep the socket
//! open for ever. Cancelling requests by name costs more the more are armed, so instead the
//! socket itself is made to end them: `shutdown(2)` through an ordinary descriptor that exists for
//! a moment (the kernel's own shutdown request goes through a worker thread), or TCP's disconnect.
//! Both are flat. When the last completion is in, the slot is released.

use std::net::Shutdown;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use socket2::Socket;

use crate::kernel::KernelRing;
use crate::queue::{Completion, Key, Request};
use crate::seam::{CloseReason, Connection, Event, EventBatch};
use crate::table::{NO_SEND, Reading, Stage};

impl KernelRing {
    pub(crate) fn close(&mut self, connection: Connection) {
        match self.table.find(connection) {
            Some((index, _)) => self.begin_close(index, CloseReason::Asked),
            None => self.counters.stale_ops += 1,
        }
    }

    pub(crate) fn reset(&mut self, connection: Connection) {
        let Some((index, slot)) = self.table.find(connection) else {
            self.counters.stale_ops += 1;
            return;
        };
        match slot.stage {
            Stage::Open | Stage::Draining => {
                slot.stage = Stage::Closing;
                slot.set_reason(CloseReason::Asked);
                self.disconnect(index);
            }
            Stage::Closing => self.disconnect(index),
            Stage::Free | Stage::Promised | Stage::Releasing => {}
        }
    }

    pub(crate) fn shutdown(&mut self, connection: Connection) {
        let Some((index, slot)) = self.table.find(connection) else {
            self.counters.stale_ops += 1;
            return;
        };
        if slot.stage != Stage::Open {
            return;
        }
        slot.stage = Stage::Draining;
        let sending = slot.send != NO_SEND;
        self.unpause(index);
        if !sending {
            self.finish(index);
        }
    }

    /// Everything is sent: finishes our stream.
    pub(crate) fn finish(&mut self, index: u32) {
        if self.table.slot(index).ended {
            // Both streams are over, and freeing the socket finishes ours.
            self.begin_close(index, CloseReason::Finished);
        } else {
            self.install(index);
        }
    }

    /// Our stream is finished, or cannot be because the connection is gone, which reading tells.
    pub(crate) fn finished(&mut self, index: u32) {
        let slot = self.table.slot(index);
        slot.finished = true;
        if slot.ended {
            self.begin_close(index, CloseReason::Finished);
        }
    }

    /// Begins to end a connection; does nothing if that has begun.
    pub(crate) fn begin_close(&mut self, index: u32, reason: CloseReason) {
        let slot = self.table.slot(index);
        if !matches!(slot.stage, Stage::Open | Stage::Draining) {
            return;
        }
        slot.stage = Stage::Closing;
        slot.set_reason(reason);
        // A read under way ends by itself; what waits for the peer has to be made to end.
        let waits =
            matches!(slot.reading, Reading::Polled | Reading::Many | Reading::Cancelling) || slot.send != NO_SEND;
        if slot.pending > 0 && waits {
            self.install(index);
        }
        self.release_if_quiet(index);
    }

    pub(crate) fn release_if_quiet(&mut self, index: u32) {
        let slot = self.table.slot(index);
        if slot.stage == Stage::Closing && slot.pending == 0 {
            slot.stage = Stage::Releasing;
            let key = Key::new(Request::Release, index, slot.generation);
            self.queue.release(key, &mut self.counters);
        }
    }

    pub(crate) fn released(&mut self, index: u32, events: &mut EventBatch) {
        let connection = self.table.handle(index);
        let buffer = self.unsent(index);
        let slot = self.table.slot(index);
        if slot.stage == Stage::Releasing {
            self.counters.closed += 1;
            events.push(Event::Closed { connection, reason: slot.reason(), buffer });
        }
        self.table.free(index);
    }

    fn install(&mut self, index: u32) {
        let slot = self.table.slot(index);
        if std::mem::replace(&mut slot.installing, true) {
            return;
        }
        slot.pending += 1;
        let key = Key::new(Request::Install, index, slot.generation);
        self.queue.install(key, &mut self.counters);
    }

    pub(crate) fn installed(&mut self, index: u32, completion: &Completion) {
        let slot = self.table.slot(index);
        slot.installing = false;
        let closing = slot.stage == Stage::Closing;
        match completion.result {
            Ok(descriptor) => {
                // SAFETY: the kernel has just made this descriptor for us and for nobody else.
                let owned = unsafe { OwnedFd::from_raw_fd(descriptor as RawFd) };
                let how = if closing { Shutdown::Both } else { Shutdown::Write };
                // It fails only if the connection is gone already, which is as good.
                let _ = Socket::from(owned).shutdown(how);
                if !closing {
                    self.finished(index);
                }
            }
            // No descriptor is left for a moment, or the kernel is older than 6.8.
            Err(_) if closing => self.disconnect(index),
            Err(_) => self.shut_down_write(index),
        }
    }

    fn disconnect(&mut self, index: u32) {
        let slot = self.table.slot(index);
        slot.pending += 1;
        let key = Key::new(Request::Disconnect, index, slot.generation);
        self.queue.disconnect(key, &mut self.counters);
    }

    fn shut_down_write(&mut self, index: u32) {
        let slot = self.table.slot(index);
        slot.pending += 1;
        let key = Key::new(Request::ShutdownWrite, index, slot.generation);
        self.queue.shutdown_write(key, &mut self.counters);
    }
}
