//! Writing: one outstanding send per connection, finished here when the kernel takes it in parts.

use crate::kernel::{KernelRing, reason_of};
use crate::queue::{Completion, Key, Request};
use crate::seam::{Connection, Event, EventBatch};
use crate::table::{NO_SEND, Stage};

/// A buffer on its way into the kernel.
pub(crate) struct Outgoing {
    buffer: Vec<u8>,
    taken: usize,
}

impl KernelRing {
    pub(crate) fn send(&mut self, connection: Connection, buffer: Vec<u8>) {
        let Some((index, slot)) = self.table.find(connection) else {
            self.counters.stale_ops += 1;
            return;
        };
        if slot.stage != Stage::Open {
            // It ended while the turn was deciding. The buffer goes back with `Closed`.
            self.counters.stale_ops += 1;
            if slot.send == NO_SEND {
                slot.send = self.sends.insert(Outgoing { buffer, taken: 0 }) as u32;
            }
            return;
        }
        assert_eq!(slot.send, NO_SEND, "{connection:?} already has a send outstanding");
        slot.send = self.sends.insert(Outgoing { buffer, taken: 0 }) as u32;
        self.send_rest(index);
    }

    /// Hands the kernel what it has not taken yet.
    fn send_rest(&mut self, index: u32) {
        let slot = self.table.slot(index);
        slot.pending += 1;
        let outgoing = &self.sends[slot.send as usize];
        let rest = &outgoing.buffer[outgoing.taken..];
        let length = u32::try_from(rest.len()).unwrap_or(u32::MAX >> 1);
        let key = Key::new(Request::Send, index, slot.generation);
        // SAFETY: the buffer is owned by `sends` and neither changed nor freed before this
        // request's completion; moving the `Vec` itself does not move its bytes.
        unsafe {
            self.queue.send(key, rest.as_ptr(), length, &mut self.counters);
        }
    }

    pub(crate) fn sent(&mut self, index: u32, completion: &Completion, events: &mut EventBatch) {
        let connection = self.table.handle(index);
        let slot = self.table.slot(index);
        let closing = !matches!(slot.stage, Stage::Open | Stage::Draining);
        match completion.result {
            Ok(bytes) => {
                self.counters.bytes_out += u64::from(bytes);
                let outgoing = &mut self.sends[slot.send as usize];
                outgoing.taken += bytes as usize;
                if closing {
                    return;
                }
                if outgoing.taken < outgoing.buffer.len() {
                    self.counters.short_writes += 1;
                    events.push(Event::SendProgress { connection, bytes });
                    self.send_rest(index);
                    return;
                }
                let buffer = self.sends.remove(slot.send as usize).buffer;
                slot.send = NO_SEND;
                let draining = slot.stage == Stage::Draining;
                events.push(Event::Sent { connection, buffer });
                if draining {
                    self.finish(index);
                }
            }
            Err(libc::EINTR | libc::EAGAIN) if !closing => self.send_rest(index),
            Err(code) => self.begin_close(index, reason_of(code)),
        }
    }

    /// Takes back the buffer of a send that was cut short.
    pub(crate) fn unsent(&mut self, index: u32) -> Option<Vec<u8>> {
        let slot = self.table.slot(index);
        let send = std::mem::replace(&mut slot.send, NO_SEND);
        (send != NO_SEND).then(|| self.sends.remove(send as usize).buffer)
    }
}
