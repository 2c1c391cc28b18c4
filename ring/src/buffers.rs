//! The receive buffers that all connections of a ring share. The kernel picks one when data is
//! there, so that an idle connection owns none.
//!
//! ```text
//! entries: count x 16 bytes { address u64, length u32, id u16, (tail u16 in the first entry) }
//! memory:  count x bytes_each
//! ```

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::Submitter;
use io_uring::types::BufRingEntry;

use crate::error::RingError;

/// The one group of buffers; every receive names it.
pub(crate) const GROUP: u16 = 0;

/// Page-aligned memory that the kernel also reads and writes.
struct Region {
    start: NonNull<u8>,
    layout: Layout,
}

impl Region {
    fn new(bytes: usize) -> Self {
        let layout = Layout::from_size_align(bytes, 4_096).expect("a small, aligned region");
        // SAFETY: the layout is not empty: both callers multiply two numbers checked above zero.
        let start = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(start) else { handle_alloc_error(layout) };
        Self { start, layout }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout and freed only here.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}

/// The shared receive buffers.
pub(crate) struct ReceiveBuffers {
    entries: Region,
    memory: Region,
    count: u16,
    bytes_each: u32,
    tail: u16,
}

impl ReceiveBuffers {
    pub(crate) fn new(count: u16, bytes_each: u32) -> Self {
        Self {
            entries: Region::new(usize::from(count) * size_of::<BufRingEntry>()),
            memory: Region::new(usize::from(count) * bytes_each as usize),
            count,
            bytes_each,
            tail: 0,
        }
    }

    /// Lends the buffers to the kernel. They must outlive the ring: see `KernelRing`'s drop.
    pub(crate) fn register(&mut self, submitter: &Submitter<'_>) -> Result<(), RingError> {
        let address = self.entries.start.as_ptr() as u64;
        // SAFETY: the region is page-aligned, has `count` entries, and is freed only after the
        // ring has been shut down and the group unregistered.
        unsafe { submitter.register_buf_ring_with_flags(address, self.count, GROUP, 0) }
            .map_err(|source| RingError::System { doing: "registering the receive buffers", source })?;
        for id in 0..self.count {
            self.add(id);
        }
        self.publish();
        Ok(())
    }

    pub(crate) fn count(&self) -> u16 {
        self.count
    }

    /// The bytes that the kernel put into a buffer.
    pub(crate) fn bytes(&self, id: u16, length: u32) -> &[u8] {
        assert!(id < self.count && length <= self.bytes_each);
        let offset = usize::from(id) * self.bytes_each as usize;
        // SAFETY: inside the region by the assertion; initialised, as the region began zeroed;
        // and the kernel does not write to a buffer between its completion and `add`.
        unsafe { std::slice::from_raw_parts(self.memory.start.as_ptr().add(offset), length as usize) }
    }

    /// Puts a buffer back; the kernel sees it after [`Self::publish`].
    pub(crate) fn add(&mut self, id: u16) {
        assert!(id < self.count);
        let offset = usize::from(id) * self.bytes_each as usize;
        let index = usize::from(self.tail & (self.count - 1));
        // SAFETY: both pointers stay inside their regions, the kernel does not read entries at or
        // past the published tail, and no other reference to the entries exists.
        unsafe {
            let address = self.memory.start.as_ptr().add(offset) as u64;
            let entry = &mut *self.entries.start.cast::<BufRingEntry>().add(index).as_ptr();
            entry.set_addr(address);
            entry.set_len(self.bytes_each);
            entry.set_bid(id);
        }
        self.tail = self.tail.wrapping_add(1);
    }

    /// Shows the kernel every buffer that was put back.
    pub(crate) fn publish(&mut self) {
        let base = self.entries.start.cast::<BufRingEntry>().as_ptr();
        // SAFETY: the tail field lies in the first entry, which lives as long as `self`, is
        // aligned for u16, and is read concurrently only by the kernel.
        let tail = unsafe { AtomicU16::from_ptr(BufRingEntry::tail(base).cast_mut()) };
        tail.store(self.tail, Ordering::Release);
    }
}
