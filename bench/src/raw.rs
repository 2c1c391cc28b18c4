//! What the kernel costs by itself: servers without a protocol, a table of connections or limits.
//!
//! Multishot accept into direct descriptors, multishot receive from provided buffers, and each answer is sent
//! from where it lies: nothing is copied in user space, which no server could go below.

pub mod epoll;
pub mod fanout;
pub mod hold;
pub mod server;
pub mod websocket;

use std::alloc::{Layout, alloc_zeroed};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsRawFd as _;
use std::rc::Rc;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::{BufRingEntry, Fd, Fixed};
use io_uring::{IoUring, cqueue, opcode, squeue};

const GROUP: u16 = 0;

/// Completions that one call brings out, as the product's ring has it.
const READY_MAX: usize = 1_024;

/// `io_uring_enter`: run what the kernel has put off for this thread.
const GETEVENTS: u32 = 1;

/// What a request was for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Request {
    Accept,
    Receive,
    Send,
    Close,
    Cancel,
}

const REQUESTS: [Request; 5] = [Request::Accept, Request::Receive, Request::Send, Request::Close, Request::Cancel];

/// What came back.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Completion {
    pub request: Request,
    /// The slot of a connection; of an accept, the result holds it.
    pub slot: u32,
    /// What the sender noted beside the slot: 24 bits.
    pub note: u32,
    pub result: i32,
    flags: u32,
}

impl Completion {
    /// Whether the same request will answer again.
    pub fn more(self) -> bool {
        cqueue::more(self.flags)
    }

    /// Which receive buffer it used.
    pub fn buffer(self) -> Option<u16> {
        cqueue::buffer_select(self.flags)
    }
}

/// One ring with a table of direct descriptors and one pool of receive buffers.
pub(crate) struct RawRing {
    ring: IoUring,
    pub buffers: Buffers,
    listener: Option<Rc<TcpListener>>,
}

impl RawRing {
    /// Of each buffer the kernel fills so many bytes at most; `room` more are behind them.
    pub fn new(slots: u32, buffers: u16, buffer_bytes: usize, room: usize) -> std::io::Result<Self> {
        let ring: IoUring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_cqsize(u32::from(buffers).clamp(1_024, 16_384) * 2)
            .build(u32::from(buffers).clamp(256, 4_096))?;
        ring.submitter().register_files_sparse(slots)?;
        let buffers = Buffers::new(&ring, buffers, buffer_bytes, room)?;
        Ok(Self { ring, buffers, listener: None })
    }

    /// Accepts whoever comes.
    pub fn listen(&mut self, address: SocketAddr) -> std::io::Result<()> {
        self.accept_from(listener(address)?)
    }

    /// The same, where others may accept too, one after the other.
    pub fn accept_from(&mut self, listener: Rc<TcpListener>) -> std::io::Result<()> {
        self.listener = Some(listener);
        self.accept()
    }

    /// Accepts no more; who is there already still comes.
    pub fn accept_no_more(&mut self) -> std::io::Result<()> {
        self.listener = None;
        let accept = (Request::Accept as u64) << 56;
        self.push(&opcode::AsyncCancel::new(accept).build(), Request::Cancel, 0, 0)
    }

    pub fn accept(&mut self) -> std::io::Result<()> {
        let Some(listener) = &self.listener else { return Ok(()) };
        let listener = Fd(listener.as_raw_fd());
        self.push(&opcode::AcceptMulti::new(listener).allocate_file_index(true).build(), Request::Accept, 0, 0)
    }

    pub fn receive(&mut self, slot: u32) -> std::io::Result<()> {
        self.push(&opcode::RecvMulti::new(Fixed(slot), GROUP).build(), Request::Receive, slot, 0)
    }

    /// The bytes must stay where they are until the completion: those of a receive buffer that was not given
    /// back, or some that live for ever.
    pub fn send(&mut self, slot: u32, start: *const u8, bytes: u32, note: u32) -> std::io::Result<()> {
        let send = opcode::Send::new(Fixed(slot), start, bytes).flags(libc::MSG_NOSIGNAL | libc::MSG_WAITALL).build();
        self.push(&send, Request::Send, slot, note)
    }

    pub fn close(&mut self, slot: u32) -> std::io::Result<()> {
        self.push(&opcode::Close::new(Fixed(slot)).build(), Request::Close, slot, 0)
    }

    fn push(&mut self, entry: &squeue::Entry, request: Request, slot: u32, note: u32) -> std::io::Result<()> {
        let entry = entry.clone().user_data((request as u64) << 56 | u64::from(note) << 32 | u64::from(slot));
        // SAFETY: every pointer in a request is to bytes that outlive it: see `send`.
        while unsafe { self.ring.submission().push(&entry) }.is_err() {
            self.ring.submit()?;
        }
        Ok(())
    }

    /// Hands over what was pushed and brings what has come, sleeping until there is something if `wait`.
    pub fn turn(&mut self, wait: bool, taken: &mut Vec<Completion>) -> std::io::Result<()> {
        self.buffers.publish();
        let pushed = self.ring.submission().len();
        if wait {
            unless_interrupted(self.ring.submit_and_wait(1))?;
        } else if pushed > 0 || self.ring.submission().taskrun() {
            // SAFETY: no argument points anywhere.
            unless_interrupted(unsafe {
                self.ring.submitter().enter::<libc::sigset_t>(pushed as u32, 0, GETEVENTS, None)
            })?;
        }
        // A call runs a few dozen pieces of what was put off, or as many as it waits for: ask for those that are
        // there, which never sleeps, and more come with them.
        let mut ready = self.ring.completion().len();
        while ready < READY_MAX && self.ring.submission().taskrun() {
            unless_interrupted(self.ring.submit_and_wait(ready))?;
            let before = std::mem::replace(&mut ready, self.ring.completion().len());
            if ready == before {
                break;
            }
        }
        let buffers = &mut self.buffers;
        taken.extend(self.ring.completion().map(|entry| {
            buffers.taken += u16::from(cqueue::buffer_select(entry.flags()).is_some());
            let data = entry.user_data();
            Completion {
                request: REQUESTS[(data >> 56) as usize],
                slot: data as u32,
                note: (data >> 32) as u32 & 0x00ff_ffff,
                result: entry.result(),
                flags: entry.flags(),
            }
        }));
        Ok(())
    }
}

/// A listener whose sockets send at once.
pub(crate) fn listener(address: SocketAddr) -> std::io::Result<Rc<TcpListener>> {
    let listener = TcpListener::bind(address)?;
    // Accepted sockets inherit it.
    let on: libc::c_int = 1;
    // SAFETY: the option's value is an int that lives through the call.
    unsafe {
        let (value, bytes) = ((&raw const on).cast(), size_of::<libc::c_int>() as u32);
        libc::setsockopt(listener.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_NODELAY, value, bytes);
        libc::listen(listener.as_raw_fd(), 4_096);
    }
    Ok(Rc::new(listener))
}

/// A process that is stopped and goes on is interrupted in what it was waiting for.
fn unless_interrupted(outcome: std::io::Result<usize>) -> std::io::Result<()> {
    match outcome {
        Err(error) if error.kind() != std::io::ErrorKind::Interrupted => Err(error),
        _ => Ok(()),
    }
}

/// Buffers shared with the kernel. They live as long as the process: a probe never ends by itself.
pub(crate) struct Buffers {
    entries: *mut BufRingEntry,
    memory: *mut u8,
    count: u16,
    /// Of each: what the kernel may fill, and with the room behind it.
    bytes: usize,
    whole: usize,
    tail: u16,
    /// Not with the kernel.
    taken: u16,
}

impl Buffers {
    fn new(ring: &IoUring, count: u16, bytes: usize, room: usize) -> std::io::Result<Self> {
        let whole = bytes + room;
        let entries = for_ever(usize::from(count) * size_of::<BufRingEntry>());
        let memory = for_ever(usize::from(count) * whole);
        // SAFETY: the region is page-aligned, has that many entries and is never freed.
        unsafe { ring.submitter().register_buf_ring_with_flags(entries as u64, count, GROUP, 0)? };
        #[allow(clippy::cast_ptr_alignment, reason = "the region is page-aligned")]
        let mut buffers = Self { entries: entries.cast(), memory, count, bytes, whole, tail: 0, taken: count };
        for id in 0..count {
            buffers.give_back(id);
        }
        buffers.publish();
        Ok(buffers)
    }

    pub fn start(&self, id: u16) -> *mut u8 {
        assert!(id < self.count, "the kernel names our buffers");
        // SAFETY: the id is below `count`.
        unsafe { self.memory.add(usize::from(id) * self.whole) }
    }

    /// What was received into a buffer.
    pub fn bytes(&self, id: u16, bytes: usize) -> &[u8] {
        assert!(bytes <= self.bytes, "the kernel fills one buffer at most");
        // SAFETY: inside the region, and the kernel writes only to buffers that were given back.
        unsafe { std::slice::from_raw_parts(self.start(id), bytes) }
    }

    /// All of a buffer that something was received into, to be written over.
    pub fn room(&mut self, id: u16) -> &mut [u8] {
        // SAFETY: inside the region, borrowed as a whole, and the kernel writes only to buffers that were given back.
        unsafe { std::slice::from_raw_parts_mut(self.start(id), self.whole) }
    }

    pub fn give_back(&mut self, id: u16) {
        let index = usize::from(self.tail & (self.count - 1));
        let start = self.start(id) as u64;
        // SAFETY: the index is inside the region, and the kernel reads no entry at or past the tail.
        let entry = unsafe { &mut *self.entries.add(index) };
        entry.set_addr(start);
        entry.set_len(self.bytes as u32);
        entry.set_bid(id);
        self.tail = self.tail.wrapping_add(1);
        self.taken -= 1;
    }

    /// How many the kernel may still fill.
    pub fn left(&self) -> u16 {
        self.count - self.taken
    }

    fn publish(&self) {
        // SAFETY: the tail lies in the first entry; the kernel reads it with acquire.
        unsafe {
            let tail = BufRingEntry::tail(self.entries).cast::<AtomicU16>();
            (*tail).store(self.tail, Ordering::Release);
        }
    }
}

/// Zeros on pages of their own that are never freed.
pub(crate) fn for_ever(bytes: usize) -> *mut u8 {
    let layout = Layout::from_size_align(bytes, 4_096).expect("a small, aligned region");
    // SAFETY: the layout is not empty.
    let start = unsafe { alloc_zeroed(layout) };
    assert!(!start.is_null(), "out of memory");
    start
}
