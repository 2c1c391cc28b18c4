//! Alone in its process, because it counts what the ring's thread allocates.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use common::{loopback, small};
use ring::{Doorbell, Event, EventBatch, KernelRing, Op, Ops};

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every call goes to the system's allocator as it came; counting touches a thread-local
// number that needs no memory.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
        // SAFETY: as the caller promised.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as the caller promised.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
        // SAFETY: as the caller promised.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// An echo whose buffers go round: the ring's own part must not allocate once it is warm.
#[test]
fn a_warm_ring_allocates_nothing() {
    const PEERS: usize = 20;
    let mut ring = KernelRing::new(&small(100), Doorbell::new().expect("a doorbell")).expect("a ring");
    let (_, address) = ring.listen(loopback()).expect("a listener");
    let peers = std::thread::spawn(move || {
        let mut streams: Vec<TcpStream> =
            (0..PEERS).map(|_| TcpStream::connect(address).expect("a connection")).collect();
        for _ in 0..500 {
            for stream in &mut streams {
                stream.write_all(&[5; 100]).expect("a write");
            }
            for stream in &mut streams {
                stream.read_exact(&mut [0; 100]).expect("its echo");
            }
        }
    });
    let (mut events, mut ops) = (EventBatch::with_capacity(256, 65_536), Ops::with_capacity(256));
    let mut buffers: Vec<Vec<u8>> = (0..100).map(|_| Vec::with_capacity(256)).collect();
    let (mut echoed, mut closed, mut warm) = (0, 0, None);
    while closed < PEERS {
        ring.wait(Some(Duration::from_millis(100)), &mut events).expect("a wait");
        while let Some(event) = events.pop() {
            match event {
                Event::Received { connection, range } => {
                    let mut buffer = buffers.pop().expect("one outstanding send per peer");
                    buffer.extend_from_slice(events.data(range));
                    ops.push(Op::Send { connection, buffer });
                }
                Event::Sent { mut buffer, .. } => {
                    echoed += 1;
                    buffer.clear();
                    buffers.push(buffer);
                }
                Event::Eof { connection } => ops.push(Op::Close { connection }),
                Event::Closed { .. } => closed += 1,
                _ => {}
            }
        }
        ring.submit(&mut ops);
        if echoed >= PEERS * 100 {
            warm.get_or_insert_with(|| ALLOCATIONS.get());
        }
    }
    peers.join().expect("the peers");
    assert_eq!(echoed, PEERS * 500);
    assert_eq!(ALLOCATIONS.get(), warm.expect("it got warm"), "allocations by the warm ring");
}
