//! The two queues shared with the kernel: requests in, completions out. It knows what a request
//! looks like and nothing about what it is for.
//!
//! A request is named by a [`Key`], which comes back with each of its completions:
//!
//! ```text
//! 63      56 55            32 31                    0
//! | request |      slot      |      generation       |
//! ```

use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

use io_uring::types::{CancelBuilder, DestinationSlot, Fd, Fixed, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};

use crate::RingConfig;
use crate::buffers::GROUP;
use crate::counters::RingCounters;
use crate::error::RingError;

/// Completions that one call brings out, if the queues are large enough.
const READY_MAX: usize = 1_024;

/// What a request was for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Request {
    /// Waits until an idle connection has something to read. One shot.
    Poll = 1,
    /// Reads once, now, into one shared buffer.
    ReceiveOnce,
    /// Reads whenever there is data, until it ends by itself or is cancelled.
    ReceiveMany,
    Send,
    /// Makes an ordinary descriptor of a connection for a moment: `shutdown(2)` needs one.
    Install,
    /// Finishes our stream where `Install` is not to be had.
    ShutdownWrite,
    /// Connects to nowhere, which makes TCP cut the connection off.
    Disconnect,
    /// Frees the slot.
    Release,
    Connect,
    /// Its slot is a place in the accept pool.
    Accept,
    Doorbell,
    /// Ends another request; its own answer says nothing that the other's does not.
    Cancel,
}

impl Request {
    const ALL: [Self; 12] = [
        Self::Poll,
        Self::ReceiveOnce,
        Self::ReceiveMany,
        Self::Send,
        Self::Install,
        Self::ShutdownWrite,
        Self::Disconnect,
        Self::Release,
        Self::Connect,
        Self::Accept,
        Self::Doorbell,
        Self::Cancel,
    ];
}

/// Names one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Key {
    pub(crate) request: Request,
    pub(crate) slot: u32,
    pub(crate) generation: u32,
}

impl Key {
    pub(crate) fn new(request: Request, slot: u32, generation: u32) -> Self {
        Self { request, slot, generation }
    }

    fn to_bits(self) -> u64 {
        (self.request as u64) << 56 | u64::from(self.slot) << 32 | u64::from(self.generation)
    }

    fn from_bits(bits: u64) -> Self {
        Self {
            request: Request::ALL[(bits >> 56) as usize - 1],
            slot: (bits >> 32) as u32 & 0x00ff_ffff,
            generation: bits as u32,
        }
    }
}

/// One answer of the kernel.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Completion {
    pub(crate) key: Key,
    /// The result, or the error number.
    pub(crate) result: Result<u32, i32>,
    flags: u32,
}

impl Completion {
    /// Whether the same request will answer again.
    pub(crate) fn more(&self) -> bool {
        cqueue::more(self.flags)
    }

    /// Which receive buffer it used.
    pub(crate) fn buffer(&self) -> Option<u16> {
        cqueue::buffer_select(self.flags)
    }

    /// Whether the socket had more to read right after.
    pub(crate) fn has_more_data(&self) -> bool {
        cqueue::sock_nonempty(self.flags)
    }
}

/// The kernel's two queues, and the completions taken from it that are not handled yet.
pub(crate) struct Queue {
    ring: IoUring,
    taken: VecDeque<Completion>,
    /// With this many completions ready no more are looked for, so that turns stay short and
    /// neither the queue nor the receive buffers run out meanwhile.
    ready_max: usize,
    /// A destination without a family: connecting there disconnects.
    nowhere: Box<libc::sockaddr>,
}

impl Queue {
    pub(crate) fn new(config: &RingConfig) -> Result<Self, RingError> {
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_submit_all()
            .setup_clamp()
            .setup_cqsize(config.completions)
            .dontfork()
            .build(config.submissions)
            .map_err(|source| RingError::from_setup(source, config.submissions, config.completions))?;
        if !ring.params().is_feature_nodrop() || !ring.params().is_feature_ext_arg() {
            return Err(RingError::System {
                doing: "asking io_uring for timeouts and loss-free completions",
                source: io::ErrorKind::Unsupported.into(),
            });
        }
        ring.submitter()
            .register_files_sparse(config.connections_max)
            .map_err(|source| RingError::from_table(source, config.connections_max))?;
        Ok(Self {
            ring,
            taken: VecDeque::with_capacity(config.completions as usize),
            ready_max: READY_MAX.min(config.completions as usize / 2).min(usize::from(config.receive_buffers) / 2),
            nowhere: Box::new(libc::sockaddr { sa_family: libc::AF_UNSPEC as u16, sa_data: [0; 14] }),
        })
    }

    pub(crate) fn submitter(&self) -> io_uring::Submitter<'_> {
        self.ring.submitter()
    }

    /// The oldest completion not yet handled.
    pub(crate) fn next(&mut self) -> Option<Completion> {
        self.taken.pop_front()
    }

    /// Whether the kernel has something to be taken, or waits to be told something. Costs no system call.
    pub(crate) fn has_work(&mut self) -> bool {
        if !self.taken.is_empty() || !self.ring.completion().is_empty() {
            return true;
        }
        let submission = self.ring.submission();
        !submission.is_empty() || submission.taskrun() || submission.cq_overflow()
    }

    /// Has the kernel count up an eventfd whenever a completion is there, or can be brought out.
    pub(crate) fn announce(&self, event: RawFd) -> io::Result<()> {
        self.ring.submitter().register_eventfd(event)
    }

    /// Whether there is one: a full submission queue may have brought it in passing.
    pub(crate) fn has_next(&self) -> bool {
        !self.taken.is_empty()
    }

    /// Hands all requests to the kernel and takes all completions there are. Sleeps until there
    /// is one, at most for `patience` (`None`: for ever), unless `patience` is zero.
    ///
    /// Says how many came. Running out of time and being interrupted by a signal are not errors,
    /// and cannot be told from the result: a call that submitted something says only that.
    pub(crate) fn enter(
        &mut self,
        patience: Option<Duration>,
        counters: &mut RingCounters,
    ) -> Result<usize, RingError> {
        let submissions = self.ring.submission().len();
        let submitter = self.ring.submitter();
        let outcome = match patience {
            None => submitter.submit_and_wait(1),
            Some(Duration::ZERO) => submitter.submit(),
            Some(patience) => {
                let timeout = Timespec::from(patience);
                submitter.submit_with_args(1, &SubmitArgs::new().timespec(&timeout))
            }
        };
        counters.system_calls += 1;
        counters.submissions += submissions as u64;
        judge(outcome)?;
        self.bring_out(counters)?;
        Ok(self.take(counters))
    }

    /// Brings out the finished work that the kernel still holds. It runs a few dozen pieces per
    /// call, or as many as the call waits for: so each call asks for what is already there, which
    /// never sleeps, and doubles it.
    ///
    /// It ends when a call brings nothing: the kernel's flag alone may stay up with no work behind
    /// it until more comes, and more may only come when we have gone on.
    fn bring_out(&mut self, counters: &mut RingCounters) -> Result<(), RingError> {
        let mut ready = self.ring.completion().len();
        while ready < self.ready_max && self.ring.submission().taskrun() {
            counters.system_calls += 1;
            judge(self.ring.submitter().submit_and_wait(ready))?;
            let before = std::mem::replace(&mut ready, self.ring.completion().len());
            if ready == before {
                break;
            }
        }
        Ok(())
    }

    fn take(&mut self, counters: &mut RingCounters) -> usize {
        if self.ring.submission().cq_overflow() {
            counters.completion_overflows += 1;
        }
        let before = self.taken.len();
        self.taken.extend(self.ring.completion().map(|entry| {
            let result = entry.result();
            Completion {
                key: Key::from_bits(entry.user_data()),
                result: u32::try_from(result).map_err(|_| -result),
                flags: entry.flags(),
            }
        }));
        let came = self.taken.len() - before;
        counters.completions += came as u64;
        came
    }

    pub(crate) fn poll_readable(&mut self, key: Key, counters: &mut RingCounters) {
        let events = (libc::POLLIN | libc::POLLRDHUP) as u32;
        self.push_plain(opcode::PollAdd::new(Fixed(key.slot), events).build(), key, counters);
    }

    pub(crate) fn receive_once(&mut self, key: Key, counters: &mut RingCounters) {
        let entry = opcode::Recv::new(Fixed(key.slot), std::ptr::null_mut(), 0)
            .buf_group(GROUP)
            .flags(libc::MSG_DONTWAIT)
            .build()
            .flags(squeue::Flags::BUFFER_SELECT);
        self.push_plain(entry, key, counters);
    }

    pub(crate) fn receive_many(&mut self, key: Key, counters: &mut RingCounters) {
        let entry = opcode::RecvMulti::new(Fixed(key.slot), GROUP).build();
        self.push_plain(entry, key, counters);
    }

    pub(crate) fn install(&mut self, key: Key, counters: &mut RingCounters) {
        self.push_plain(opcode::FixedFdInstall::new(Fixed(key.slot), 0).build(), key, counters);
    }

    pub(crate) fn shutdown_write(&mut self, key: Key, counters: &mut RingCounters) {
        self.push_plain(opcode::Shutdown::new(Fixed(key.slot), libc::SHUT_WR).build(), key, counters);
    }

    pub(crate) fn disconnect(&mut self, key: Key, counters: &mut RingCounters) {
        let length = size_of::<libc::sockaddr>() as libc::socklen_t;
        let nowhere: *const libc::sockaddr = &raw const *self.nowhere;
        // SAFETY: the address is boxed, never written, and lives as long as the ring.
        unsafe { self.connect(key, nowhere, length, counters) }
    }

    pub(crate) fn release(&mut self, key: Key, counters: &mut RingCounters) {
        self.push_plain(opcode::Close::new(Fixed(key.slot)).build(), key, counters);
    }

    pub(crate) fn cancel(&mut self, target: Key, counters: &mut RingCounters) {
        let key = Key::new(Request::Cancel, target.slot, target.generation);
        self.push_plain(opcode::AsyncCancel::new(target.to_bits()).build(), key, counters);
    }

    /// # Safety
    ///
    /// The bytes must stay where they are, unchanged, until the request's completion.
    pub(crate) unsafe fn send(&mut self, key: Key, bytes: *const u8, length: u32, counters: &mut RingCounters) {
        let entry = opcode::Send::new(Fixed(key.slot), bytes, length).flags(libc::MSG_NOSIGNAL).build();
        // SAFETY: the caller keeps the bytes.
        unsafe { self.push(entry, key, counters) }
    }

    /// # Safety
    ///
    /// The address must stay where it is until the request's completion.
    pub(crate) unsafe fn connect(
        &mut self,
        key: Key,
        address: *const libc::sockaddr,
        length: libc::socklen_t,
        counters: &mut RingCounters,
    ) {
        let entry = opcode::Connect::new(Fixed(key.slot), address, length).build();
        // SAFETY: the caller keeps the address.
        unsafe { self.push(entry, key, counters) }
    }

    /// Accepts one connection into `slot`.
    ///
    /// # Safety
    ///
    /// Address and length must be writable, and used by nobody else, until the completion.
    pub(crate) unsafe fn accept(
        &mut self,
        key: Key,
        listener: RawFd,
        slot: u32,
        address: *mut libc::sockaddr,
        length: *mut libc::socklen_t,
        counters: &mut RingCounters,
    ) {
        let target = DestinationSlot::try_from_slot_target(slot).expect("a slot has 24 bits");
        let entry = opcode::Accept::new(Fd(listener), address, length).file_index(Some(target)).build();
        // SAFETY: the caller keeps address and length.
        unsafe { self.push(entry, key, counters) }
    }

    /// Waits for an eventfd's counter to be above zero, and takes it.
    ///
    /// # Safety
    ///
    /// `count` must be writable, and used by nobody else, until the completion.
    pub(crate) unsafe fn read_event(&mut self, key: Key, event: RawFd, count: *mut u64, counters: &mut RingCounters) {
        let entry = opcode::Read::new(Fd(event), count.cast(), size_of::<u64>() as u32).build();
        // SAFETY: the caller keeps the counter.
        unsafe { self.push(entry, key, counters) }
    }

    /// Puts a ready socket into a slot.
    pub(crate) fn fill_slot(&self, slot: u32, descriptor: RawFd) -> io::Result<()> {
        self.ring.submitter().register_files_update(slot, &[descriptor]).map(drop)
    }

    /// Ends every request and gives up the table, so that nothing that a request points at is
    /// used any more. Says whether the kernel confirmed it.
    pub(crate) fn shut_down(&mut self) -> bool {
        // Requests still in the queue have to be with the kernel before it can cancel them.
        let mut counters = RingCounters::default();
        while !self.ring.submission().is_empty() {
            if self.enter(Some(Duration::ZERO), &mut counters).is_err() {
                return false;
            }
            self.taken.clear();
        }
        let submitter = self.ring.submitter();
        let cancelled = submitter.register_sync_cancel(None, CancelBuilder::any());
        let all_ended = match cancelled {
            Ok(()) => true,
            Err(error) => error.raw_os_error() == Some(libc::ENOENT),
        };
        all_ended && submitter.unregister_buf_ring(GROUP).is_ok() && submitter.unregister_files().is_ok()
    }

    /// For requests that point at no memory of ours.
    fn push_plain(&mut self, entry: squeue::Entry, key: Key, counters: &mut RingCounters) {
        // SAFETY: the request holds no pointers.
        unsafe { self.push(entry, key, counters) }
    }

    /// # Safety
    ///
    /// Whatever the entry points at must be valid until the request's last completion.
    unsafe fn push(&mut self, entry: squeue::Entry, key: Key, counters: &mut RingCounters) {
        let entry = entry.user_data(key.to_bits());
        // SAFETY: the caller keeps what the entry points at.
        while unsafe { self.ring.submission().push(&entry) }.is_err() {
            // Full: let the kernel take what is there. Completions that come are kept in `taken`.
            self.enter(Some(Duration::ZERO), counters).expect("a ring that was made can be entered");
        }
    }
}

fn judge(outcome: io::Result<usize>) -> Result<(), RingError> {
    match outcome.map_err(|error| (error.raw_os_error(), error)) {
        // EAGAIN and EBUSY: the kernel is short of memory or its completions have overflowed;
        // with those taken, the next call submits what this one left.
        Ok(_) | Err((Some(libc::ETIME | libc::EINTR | libc::EAGAIN | libc::EBUSY), _)) => Ok(()),
        Err((_, source)) => Err(RingError::System { doing: "io_uring_enter", source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_survives_the_kernel() {
        for request in Request::ALL {
            for (slot, generation) in [(0, 0), (0x00ff_ffff, u32::MAX), (18_999, 1)] {
                let key = Key::new(request, slot, generation);
                assert_eq!(Key::from_bits(key.to_bits()), key);
            }
        }
    }
}
