//! The floor: an echo straight on io_uring, with no protocol, no table of connections and no limits.
//!
//! Multishot accept into direct descriptors, multishot receive from provided buffers, and each buffer is sent
//! back as it lies and then lent again: nothing is copied in user space, which no server could go below.

use std::alloc::{Layout, alloc_zeroed};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::{BufRingEntry, Fd, Fixed};
use io_uring::{IoUring, cqueue, opcode, squeue};

use crate::server::Trouble;

const BUFFERS: u16 = 4_096;
const BUFFER_BYTES: usize = 256;
const GROUP: u16 = 0;

const ACCEPT: u64 = 1 << 56;
const RECEIVE: u64 = 2 << 56;
const SEND: u64 = 3 << 56;
const CLOSE: u64 = 4 << 56;

/// Buffers shared with the kernel. They live as long as the process: the probe never ends by itself.
struct Buffers {
    entries: *mut BufRingEntry,
    memory: *mut u8,
    tail: u16,
}

impl Buffers {
    fn new(ring: &IoUring) -> std::io::Result<Self> {
        let allocate = |bytes| {
            let layout = Layout::from_size_align(bytes, 4_096).expect("a small, aligned region");
            // SAFETY: the layout is not empty.
            let start = unsafe { alloc_zeroed(layout) };
            assert!(!start.is_null(), "out of memory");
            start
        };
        let entries = allocate(usize::from(BUFFERS) * size_of::<BufRingEntry>());
        let memory = allocate(usize::from(BUFFERS) * BUFFER_BYTES);
        // SAFETY: the region is page-aligned, has that many entries and is never freed.
        unsafe { ring.submitter().register_buf_ring_with_flags(entries as u64, BUFFERS, GROUP, 0)? };
        #[allow(clippy::cast_ptr_alignment, reason = "the region is page-aligned")]
        let mut buffers = Self { entries: entries.cast(), memory, tail: 0 };
        for id in 0..BUFFERS {
            buffers.add(id);
        }
        buffers.publish();
        Ok(buffers)
    }

    fn start(&self, id: u16) -> *mut u8 {
        // SAFETY: ids are below `BUFFERS`.
        unsafe { self.memory.add(usize::from(id) * BUFFER_BYTES) }
    }

    fn add(&mut self, id: u16) {
        let index = usize::from(self.tail & (BUFFERS - 1));
        // SAFETY: the index is inside the region, and the kernel reads no entry at or past the tail.
        let entry = unsafe { &mut *self.entries.add(index) };
        entry.set_addr(self.start(id) as u64);
        entry.set_len(BUFFER_BYTES as u32);
        entry.set_bid(id);
        self.tail = self.tail.wrapping_add(1);
    }

    fn publish(&self) {
        // SAFETY: the tail lies in the first entry; the kernel reads it with acquire.
        unsafe {
            let tail = BufRingEntry::tail(self.entries).cast::<AtomicU16>();
            (*tail).store(self.tail, Ordering::Release);
        }
    }
}

fn push(ring: &mut IoUring, entry: &squeue::Entry) -> std::io::Result<()> {
    // SAFETY: every pointer in a request is into the buffers, which are never freed.
    while unsafe { ring.submission().push(entry) }.is_err() {
        ring.submit()?;
    }
    Ok(())
}

/// Echoes until the process is killed.
pub fn serve(address: SocketAddr) -> Result<(), Trouble> {
    let listener = TcpListener::bind(address)?;
    // Accepted sockets inherit it.
    let on: libc::c_int = 1;
    // SAFETY: the option's value is an int that lives through the call.
    unsafe {
        let (value, bytes) = ((&raw const on).cast(), size_of::<libc::c_int>() as u32);
        libc::setsockopt(listener.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_NODELAY, value, bytes);
        libc::listen(listener.as_raw_fd(), 4_096);
    }
    let mut ring: IoUring = IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_taskrun_flag()
        .setup_cqsize(16_384)
        .build(4_096)?;
    ring.submitter().register_files_sparse(16_384)?;
    let mut buffers = Buffers::new(&ring)?;
    let accept = opcode::AcceptMulti::new(Fd(listener.as_raw_fd())).allocate_file_index(true).build().user_data(ACCEPT);
    push(&mut ring, &accept)?;
    let mut completions = Vec::with_capacity(16_384);
    loop {
        ring.submit_and_wait(1)?;
        completions.extend(ring.completion().map(|entry| (entry.user_data(), entry.result(), entry.flags())));
        for (data, result, flags) in completions.drain(..) {
            let slot = data as u32;
            match data & 0xff << 56 {
                ACCEPT if result >= 0 => push(&mut ring, &receive(result as u32))?,
                RECEIVE => {
                    let ended = !cqueue::more(flags);
                    match (cqueue::buffer_select(flags), result) {
                        (Some(id), 1..) => {
                            let place = u64::from(id) << 32 | u64::from(slot);
                            let send = opcode::Send::new(Fixed(slot), buffers.start(id), result as u32);
                            push(&mut ring, &send.build().user_data(SEND | place))?;
                        }
                        (_, error) if error < 0 && error != -libc::ENOBUFS => close(&mut ring, slot)?,
                        (_, 0) => close(&mut ring, slot)?,
                        _ => {}
                    }
                    if ended && (result > 0 || result == -libc::ENOBUFS) {
                        push(&mut ring, &receive(slot))?;
                    }
                }
                SEND => buffers.add((data >> 32) as u16),
                _ => {}
            }
        }
        buffers.publish();
    }
}

fn receive(slot: u32) -> squeue::Entry {
    opcode::RecvMulti::new(Fixed(slot), GROUP).build().user_data(RECEIVE | u64::from(slot))
}

fn close(ring: &mut IoUring, slot: u32) -> std::io::Result<()> {
    push(ring, &opcode::Close::new(Fixed(slot)).build().user_data(CLOSE))
}
