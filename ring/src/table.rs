//! The slots of a ring's connections: small, so that a million idle ones cost little.

use crate::seam::CloseReason;
use crate::{Connection, queue};

/// No send is outstanding.
pub(crate) const NO_SEND: u32 = u32::MAX;

/// The only table so far; further ones belong to further rings behind the same handles.
const TABLE: u8 = 0;

/// What a slot is for at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Nobody's.
    Free,
    /// Waits for an accept or a connect; no handle of it is known outside.
    Promised,
    /// In use.
    Open,
    /// `Shutdown` was asked for: send the rest, then read and discard until the peer finishes.
    Draining,
    /// On its way out: waits for the kernel's last completions.
    Closing,
    /// Handed to the kernel to be freed.
    Releasing,
}

/// How a connection's incoming stream is being read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reading {
    /// Not at all: nothing is armed, or the stream ended.
    Off,
    /// To be armed before the next wait: what a turn closes need not be armed first.
    Arming,
    /// A poll is armed.
    Polled,
    /// Data is there; waits for its turn to get a buffer.
    Readable,
    /// One receive is under way.
    Once,
    /// A multishot receive is armed.
    Many,
    /// A multishot receive was cancelled and has not ended yet.
    Cancelling,
}

/// One connection. Field order and widths matter: see the assertion below.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) generation: u32,
    /// Where in the ring's sends its outstanding one is.
    pub(crate) send: u32,
    /// When it last received, in the ring's own milliseconds.
    pub(crate) received_ms: u32,
    reason: i32,
    /// Which wait counted the buffers in `burst`.
    pub(crate) burst_wait: u16,
    /// Buffers it used in one wait.
    pub(crate) burst: u16,
    /// Requests with the kernel, other than the one that frees the slot.
    pub(crate) pending: u8,
    /// Consecutive receives that came soon after one another.
    pub(crate) heat: u8,
    pub(crate) stage: Stage,
    pub(crate) reading: Reading,
    pub(crate) paused: bool,
    /// The peer finished its stream.
    pub(crate) ended: bool,
    /// Our stream is finished.
    pub(crate) finished: bool,
    /// It is in the ring's list of hot connections.
    pub(crate) listed_hot: bool,
    /// An ordinary descriptor of it is being made.
    pub(crate) installing: bool,
}

/// Bytes of user space that a ring holds for an idle connection.
pub const CONNECTION_BYTES: usize = size_of::<Slot>();

const _: () = assert!(size_of::<Slot>() <= 32);

/// Reasons that are no error of the system's.
const ASKED: i32 = 0;
const FINISHED: i32 = -1;
const RESET: i32 = -2;
const TIMED_OUT: i32 = -3;

impl Slot {
    /// Why it ends, in half of the reason's own width.
    pub(crate) fn reason(&self) -> CloseReason {
        match self.reason {
            ASKED => CloseReason::Asked,
            FINISHED => CloseReason::Finished,
            RESET => CloseReason::Reset,
            TIMED_OUT => CloseReason::TimedOut,
            code => CloseReason::Failed { code },
        }
    }

    pub(crate) fn set_reason(&mut self, reason: CloseReason) {
        self.reason = match reason {
            CloseReason::Asked => ASKED,
            CloseReason::Finished => FINISHED,
            CloseReason::Reset => RESET,
            CloseReason::TimedOut => TIMED_OUT,
            CloseReason::Failed { code } => code,
        };
    }

    fn new() -> Self {
        Self {
            generation: 0,
            send: NO_SEND,
            received_ms: 0,
            reason: ASKED,
            burst_wait: 0,
            burst: 0,
            pending: 0,
            heat: 0,
            stage: Stage::Free,
            reading: Reading::Off,
            paused: false,
            ended: false,
            finished: false,
            listed_hot: false,
            installing: false,
        }
    }
}

/// All slots of a ring.
pub(crate) struct Table {
    /// Grows to the most ever used at once; the memory behind it is reserved from the start.
    slots: Vec<Slot>,
    free: Vec<u32>,
    slots_max: u32,
    /// Slots whose handle is known outside.
    pub(crate) open: u32,
}

impl Table {
    pub(crate) fn new(slots_max: u32) -> Self {
        Self {
            slots: Vec::with_capacity(slots_max as usize),
            free: Vec::with_capacity(slots_max as usize),
            slots_max,
            open: 0,
        }
    }

    /// Takes a free slot, the last one given back first: its memory is warm.
    pub(crate) fn promise(&mut self) -> Option<u32> {
        let index = match self.free.pop() {
            Some(index) => index,
            None if self.slots.len() < self.slots_max as usize => {
                self.slots.push(Slot::new());
                self.slots.len() as u32 - 1
            }
            None => return None,
        };
        let slot = &mut self.slots[index as usize];
        assert_eq!(slot.stage, Stage::Free, "slot {index} is not free");
        slot.stage = Stage::Promised;
        Some(index)
    }

    /// A promised slot got its connection.
    pub(crate) fn open(&mut self, index: u32, now_ms: u32) -> Connection {
        self.open += 1;
        let slot = &mut self.slots[index as usize];
        assert_eq!(slot.stage, Stage::Promised, "slot {index} was not promised");
        slot.stage = Stage::Open;
        slot.reading = Reading::Arming;
        slot.received_ms = now_ms;
        self.handle(index)
    }

    /// Gives a slot back. Whatever still names this tenant is stale from here on.
    pub(crate) fn free(&mut self, index: u32) {
        let slot = &mut self.slots[index as usize];
        assert_ne!(slot.stage, Stage::Free, "slot {index} is already free");
        assert_eq!(slot.pending, 0, "slot {index} still has requests");
        if slot.stage != Stage::Promised {
            self.open -= 1;
        }
        *slot = Slot {
            generation: slot.generation.wrapping_add(1),
            // A list of hot connections may still name the slot; that entry is dropped when met.
            listed_hot: slot.listed_hot,
            ..Slot::new()
        };
        self.free.push(index);
    }

    pub(crate) fn handle(&self, index: u32) -> Connection {
        Connection::new(TABLE, index, self.slots[index as usize].generation)
    }

    pub(crate) fn slot(&mut self, index: u32) -> &mut Slot {
        &mut self.slots[index as usize]
    }

    /// The slot that a request's completion is for, unless its tenant has changed.
    pub(crate) fn tenant(&mut self, key: queue::Key) -> Option<&mut Slot> {
        self.slots
            .get_mut(key.slot as usize)
            .filter(|slot| slot.generation == key.generation && slot.stage != Stage::Free)
    }

    /// The slot of a handle, unless the connection has ended.
    pub(crate) fn find(&mut self, connection: Connection) -> Option<(u32, &mut Slot)> {
        let index = connection.slot();
        let slot = self.slots.get_mut(index as usize)?;
        let known = !matches!(slot.stage, Stage::Free | Stage::Promised);
        (connection.table() == TABLE && known && slot.generation == connection.generation()).then_some((index, slot))
    }

    /// Whether another connection fits.
    pub(crate) fn has_room(&self) -> bool {
        !self.free.is_empty() || self.slots.len() < self.slots_max as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_does_not_find_its_slots_next_tenant() {
        let mut table = Table::new(1);
        let index = table.promise().expect("one slot");
        assert_eq!(table.promise(), None);
        let first = table.open(index, 0);
        assert!(table.find(first).is_some());
        table.free(index);
        assert!(table.find(first).is_none());
        let again = table.promise().expect("the slot is free again");
        assert!(table.find(first).is_none(), "promised to somebody else");
        let second = table.open(again, 0);
        assert_eq!(second.slot(), first.slot());
        assert!(table.find(first).is_none());
        assert!(table.find(second).is_some());
        assert_eq!(table.open, 1);
    }
}
