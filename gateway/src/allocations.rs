//! Counts what each thread takes from the heap, for measurements: only with the feature `count-allocations`.

use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;

use mimalloc::MiMalloc;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

/// The allocator of the product, with a count per thread.
pub struct Counting;

/// How often the calling thread has allocated or grown something so far.
pub fn of_this_thread() -> u64 {
    COUNT.get()
}

fn count() {
    // A thread that is ending has nothing left to count with, and nobody left to tell.
    let _ = COUNT.try_with(|count| count.set(count.get() + 1));
}

// SAFETY: every call is passed on unchanged to the allocator of the product, which keeps the contract;
// counting allocates nothing, as the count is constant at the start and needs no destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as promised by the caller.
        unsafe { MiMalloc.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as promised by the caller.
        unsafe { MiMalloc.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as promised by the caller.
        unsafe { MiMalloc.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        count();
        // SAFETY: as promised by the caller.
        unsafe { MiMalloc.realloc(pointer, layout, bytes) }
    }
}
