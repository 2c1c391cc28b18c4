//! Mail costs no heap once its buffers are travelling.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use shard_router::{MailLimits, Mailbox, Posted, SlotMap, Waker};
use wire::ids::{DeviceId, UserId};
use wire::mail::{Address, Letter, Mail, Request, SessionAddress};

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call is passed on unchanged to the system's allocator, which keeps the contract.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as promised by the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as promised by the caller.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as promised by the caller.
        unsafe { System.realloc(pointer, layout, bytes) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The only test of this file: the count is the whole process's.
#[test]
fn a_letter_there_and_back_allocates_nothing_in_steady_state() {
    let wakers = (0..2).map(|_| Box::new(|| ()) as Waker).collect();
    let mut boxes = Mailbox::for_all(&Arc::new(SlotMap::single_node(2, 1)), MailLimits::default(), wakers);
    let turns = |boxes: &mut [Mailbox], turns| {
        for _ in 0..turns {
            for shard in 0..2 {
                turn(&mut boxes[usize::from(shard)], 1 - shard);
            }
        }
    };
    turns(&mut boxes, 100);
    let (before, buffers) = (ALLOCATIONS.load(Ordering::Relaxed), boxes[0].counters().buffers);
    turns(&mut boxes, 1_000);
    assert_eq!(ALLOCATIONS.load(Ordering::Relaxed), before);
    assert_eq!(boxes[0].counters().buffers, buffers);
}

/// Answers what came in, and asks ten new things with bodies.
fn turn(mailbox: &mut Mailbox, other: u16) {
    while let Some(batch) = mailbox.take() {
        for letter in batch.letters() {
            if let Mail::List { request, .. } = letter.mail {
                let to = Address::Session(request.session);
                let reply = Letter { to, mail: Mail::Marked { request }, payload: letter.payload };
                assert_eq!(mailbox.post(&reply), Posted::Taken);
            }
        }
        mailbox.give_back(batch);
    }
    for number in 0..10 {
        let session = SessionAddress { shard: mailbox.shard(), index: 1, generation: 1 };
        let request = Request { session, user: UserId(1), device: DeviceId(1), number };
        let mail = Mail::List { request, skip: 0, limit: 1 };
        assert_eq!(mailbox.post(&Letter { to: Address::Shard(other), mail, payload: &[b'x'; 128] }), Posted::Taken);
    }
    mailbox.flush();
}
