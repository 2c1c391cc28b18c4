//! One thread, several rings: it sleeps in the first, and the others wake it.

use std::io::Write as _;
use std::net::TcpListener;
use std::time::Duration;

use ring::{Doorbell, Event, EventBatch, KernelRing, Op, Ops, RingConfig};

#[test]
fn what_happens_on_one_ring_wakes_the_one_that_is_slept_in() {
    let config = RingConfig { connections_max: 4, ..RingConfig::default() };
    let make = || KernelRing::new(&config, Doorbell::new().expect("a doorbell")).expect("a ring");
    let (mut slept_in, mut other) = (make(), make());
    other.announce_at(slept_in.doorbell()).expect("an announcement");
    let (mut events, mut ops) = (EventBatch::default(), Ops::default());
    let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
    other.wait(Some(Duration::ZERO), &mut events).expect("a turn");
    assert!(!other.has_work(), "nothing has happened yet");

    let address = listener.local_addr().expect("its address");
    ops.push(Op::Connect { token: 1, address, source: None });
    other.submit(&mut ops);
    assert!(other.has_work(), "the kernel has not been told yet");
    other.wait(Some(Duration::from_secs(20)), &mut events).expect("a turn");
    assert!(matches!(events.pop(), Some(Event::Connected { .. })));
    let (mut peer, _) = listener.accept().expect("it is connected");
    // Reading is armed late; and what was announced so far has been heard.
    while other.has_work() {
        other.wait(Some(Duration::ZERO), &mut events).expect("a turn");
    }
    while {
        slept_in.wait(Some(Duration::ZERO), &mut events).expect("a turn");
        !events.is_empty()
    } {}

    let writer = std::thread::spawn(move || {
        // Most likely it sleeps by then; if not, the announcement waits for it.
        std::thread::sleep(Duration::from_millis(50));
        peer.write_all(b"hello").expect("room for five bytes");
        peer
    });
    slept_in.wait(Some(Duration::from_secs(20)), &mut events).expect("a turn");
    assert_eq!(events.pop(), Some(Event::Doorbell), "nothing else can have woken it");
    let mut received = Vec::new();
    while received.len() < 5 {
        assert!(other.has_work(), "it was announced");
        other.wait(Some(Duration::ZERO), &mut events).expect("a turn");
        while let Some(event) = events.pop() {
            if let Event::Received { range, .. } = event {
                received.extend_from_slice(events.data(range));
            }
        }
    }
    assert_eq!(received, b"hello");
    drop(writer.join().expect("writing does not fail"));
}
