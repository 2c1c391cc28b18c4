//! Counts what each thread takes from the heap, and what the process holds of it by the size of the pieces, for
//! measurements: only with the feature `count-allocations`.

use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;
use std::sync::atomic::{AtomicI64, Ordering};

use mimalloc::MiMalloc;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

/// Pieces up to here are counted by sixteens, larger ones by powers of two.
const SMALL_BYTES_MAX: usize = 1_024;
const SMALL_CLASSES: usize = SMALL_BYTES_MAX / 16;
const CLASSES: usize = SMALL_CLASSES + 64;

/// Bytes held now in pieces of each class, by whichever thread: what one took another may give back.
static HELD: [AtomicI64; CLASSES] = [const { AtomicI64::new(0) }; CLASSES];

/// The allocator of the product, with a count per thread and one of what is held.
pub struct Counting;

/// How often the calling thread has allocated or grown something so far.
pub fn of_this_thread() -> u64 {
    COUNT.get()
}

/// Bytes that the process holds now, by the size up to which the pieces are; only sizes that are held.
pub fn held() -> impl Iterator<Item = (u64, i64)> {
    let bound = |class: usize| match class.checked_sub(SMALL_CLASSES) {
        None => (class as u64 + 1) * 16,
        Some(power) => 1 << power,
    };
    HELD.iter().enumerate().map(move |(at, bytes)| (bound(at), bytes.load(Ordering::Relaxed))).filter(|of| of.1 != 0)
}

fn count() {
    // A thread that is ending has nothing left to count with, and nobody left to tell.
    let _ = COUNT.try_with(|count| count.set(count.get() + 1));
}

fn hold(bytes: usize, sign: i64) {
    let class = match bytes {
        0..=SMALL_BYTES_MAX => bytes.saturating_sub(1) / 16,
        _ => SMALL_CLASSES + bytes.next_power_of_two().trailing_zeros() as usize,
    };
    HELD[class].fetch_add(sign * bytes as i64, Ordering::Relaxed);
}

// SAFETY: every call is passed on unchanged to the allocator of the product, which keeps the contract;
// counting allocates nothing, as the count is constant at the start and needs no destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        hold(layout.size(), 1);
        // SAFETY: as promised by the caller.
        unsafe { MiMalloc.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        hold(layout.size(), 1);
        // SAFETY: as promised by the caller.
        unsafe { MiMalloc.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        hold(layout.size(), -1);
        // SAFETY: as promised by the caller.
        unsafe { MiMalloc.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        count();
        hold(layout.size(), -1);
        hold(bytes, 1);
        // SAFETY: as promised by the caller.
        unsafe { MiMalloc.realloc(pointer, layout, bytes) }
    }
}
