//! Tables that are full, buffers that run out, threads that ring.

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use common::{Shard, loopback, small};
use ring::{Doorbell, EventBatch, KernelRing, Op, RingError};

#[test]
fn accepting_pauses_when_the_table_is_full_and_resumes_when_it_is_not() {
    let mut shard = Shard::new(&small(3));
    let mut streams: Vec<TcpStream> = (0..5).map(|_| shard.connect()).collect();
    shard.run_until("full", |shard| shard.pauses == 1);
    let turns = shard.turns;
    for _ in 0..10 {
        shard.turn(Duration::from_millis(10));
    }
    assert_eq!(shard.turns - turns, 10, "a full table does not spin");
    assert_eq!(shard.accepted.len(), 3);
    assert_eq!(shard.ring.counters().accept_errors, 0);
    // The two that waited in the backlog come when there is room for them.
    for place in 0..2 {
        let connection = shard.accepted[place];
        shard.op(Op::Close { connection });
    }
    shard.run_until("resumed", |shard| shard.accepted.len() == 5 && shard.resumes > 0);
    let connection = shard.accepted[4];
    shard.op(Op::Send { connection, buffer: b"welcome".to_vec() });
    shard.run_until("sent", |shard| shard.sent.len() == 1);
    let mut welcome = [0; 7];
    streams[4].read_exact(&mut welcome).expect("the last one");
    assert_eq!(&welcome, b"welcome");
}

#[test]
fn a_doorbell_wakes_a_sleeping_ring_and_no_ring_is_lost() {
    const RINGS: u64 = 100_000;
    let doorbell = Doorbell::new().expect("a doorbell");
    let mut ring = KernelRing::new(&small(1), doorbell.clone()).expect("a ring");
    let (posted, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let seen = Arc::new(AtomicU64::new(0));
    let ringer = {
        let (posted, seen, stop) = (posted.clone(), seen.clone(), stop.clone());
        std::thread::spawn(move || {
            for round in 1..=RINGS {
                posted.store(round, Ordering::Release);
                doorbell.ring();
                // Now and then waits until it was heard, so that the ring falls asleep again.
                while round % 4 == 0 && seen.load(Ordering::Acquire) < round {
                    if stop.load(Ordering::Acquire) {
                        return;
                    }
                    std::thread::yield_now();
                }
            }
        })
    };
    let mut events = EventBatch::default();
    while seen.load(Ordering::Acquire) < RINGS {
        ring.wait(Some(common::PATIENCE), &mut events).expect("a wait");
        if events.is_empty() {
            stop.store(true, Ordering::Release);
            panic!("a ring was lost after {}", seen.load(Ordering::Acquire));
        }
        seen.store(posted.load(Ordering::Acquire), Ordering::Release);
    }
    ringer.join().expect("the ringer");
    assert!(ring.counters().doorbells >= RINGS / 4);
}

#[test]
fn a_greedy_sender_does_not_starve_a_hundred_modest_ones() {
    let mut shard = Shard::new(&small(200));
    shard.echo = true;
    let mut modest: Vec<TcpStream> = (0..100).map(|_| shard.connect()).collect();
    let greedy = shard.connect();
    shard.run_until("accepted", |shard| shard.accepted.len() == 101);
    let stop = Arc::new(AtomicBool::new(false));
    let flood = {
        let (mut writer, stop) = (greedy.try_clone().expect("a handle"), stop.clone());
        std::thread::spawn(move || {
            let flood = vec![0; 65_536];
            while !stop.load(Ordering::Acquire) && writer.write_all(&flood).is_ok() {}
        })
    };
    let drain = std::thread::spawn(move || {
        let mut sink = vec![0; 65_536];
        while let Ok(1..) = (&greedy).read(&mut sink) {}
    });
    let (handed, peers_done) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let peers = {
        let (handed, peers_done) = (handed.clone(), peers_done.clone());
        std::thread::spawn(move || {
            for round in 0..50_u8 {
                for stream in &mut modest {
                    stream.write_all(&[round; 100]).expect("a write");
                }
                for stream in &mut modest {
                    let mut back = [0; 100];
                    stream.read_exact(&mut back).expect("its echo");
                    assert_eq!(back, [round; 100]);
                    handed.fetch_add(1, Ordering::AcqRel);
                }
            }
            peers_done.store(true, Ordering::Release);
        })
    };
    shard.run_until("every modest echo", |_| peers_done.load(Ordering::Acquire) || peers.is_finished());
    peers.join().expect("the peers");
    assert_eq!(handed.load(Ordering::Acquire), 5_000);
    stop.store(true, Ordering::Release);
    let greedy = shard.accepted[100];
    shard.echo = false;
    shard.op(Op::Reset { connection: greedy });
    shard.run_until("the flood is over", |shard| !shard.closed.is_empty());
    flood.join().expect("the flood");
    drain.join().expect("the drain");
}

/// Twice as many connections with data as there are buffers, again and again.
#[test]
fn running_out_of_buffers_delays_and_loses_nothing() {
    let mut config = small(200);
    config.receive_buffers = 4;
    config.completions = 64;
    let mut shard = Shard::new(&config);
    let mut streams: Vec<TcpStream> = (0..100).map(|_| shard.connect()).collect();
    shard.run_until("accepted", |shard| shard.accepted.len() == 100);
    for round in 1..=20 {
        for stream in &mut streams {
            stream.write_all(&[round as u8; 700]).expect("a write");
        }
        shard.run_until("all read", |shard| shard.received.values().all(|bytes| bytes.len() == round * 700));
    }
    assert_eq!(shard.ring.counters().bytes_in, 100 * 20 * 700);
    assert!(shard.ring.counters().buffers_exhausted > 0);
}

#[test]
fn a_second_server_on_a_claimed_address_is_told_so() {
    let claim = ring::claim(loopback()).expect("a free port");
    let shards: Vec<_> = (0..2)
        .map(|_| {
            let doorbell = Doorbell::new().expect("a doorbell");
            let mut ring = KernelRing::new(&small(4), doorbell).expect("a ring");
            ring.listen(claim.address()).expect("both shards listen");
            ring
        })
        .collect();
    let while_claimed = ring::claim(claim.address()).expect_err("it is ours");
    assert!(matches!(while_claimed, RingError::AddressInUse { .. }));
    let address = claim.address();
    drop(claim);
    let while_served = ring::claim(address).expect_err("it is served");
    assert!(while_served.to_string().contains("already in use"));
    drop(shards);
    ring::claim(address).expect("free again");
}

#[test]
fn a_listener_that_stopped_refuses_and_its_connections_live_on() {
    let mut shard = Shard::new(&small(8));
    shard.echo = true;
    let mut stream = shard.connect();
    shard.run_until("accepted", |shard| shard.accepted.len() == 1);
    shard.ring.stop_listening(ring::ListenerId(0));
    for _ in 0..5 {
        shard.turn(Duration::from_millis(5));
    }
    assert!(TcpStream::connect(shard.address).is_err());
    stream.write_all(b"still here").expect("a write");
    shard.run_until("echoed", |shard| shard.ring.counters().bytes_out == 10);
    let mut back = [0; 10];
    stream.read_exact(&mut back).expect("the echo");
    assert_eq!(&back, b"still here");
}

#[test]
fn a_wait_ends_when_its_time_is_over() {
    let mut shard = Shard::new(&small(1));
    shard.turn(Duration::ZERO);
    shard.turn(Duration::from_millis(30));
    assert!(shard.events.is_empty());
}

#[test]
fn accepted_sockets_do_not_delay_small_messages() {
    // TCP_NODELAY is set on the listener only: this is the kernel's promise that it is inherited.
    let listener = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    listener.set_tcp_nodelay(true).expect("nodelay");
    listener.bind(&loopback().into()).expect("a port");
    listener.listen(1).expect("a listener");
    let address = listener.local_addr().expect("an address");
    let _peer = TcpStream::connect(address.as_socket().expect("IP")).expect("a connection");
    let (accepted, _) = listener.accept().expect("an accept");
    assert!(accepted.tcp_nodelay().expect("the option"));
}

#[test]
fn a_hot_connection_that_takes_too_many_buffers_goes_back_to_one_at_a_time() {
    let mut shard = Shard::new(&small(8));
    let mut stream = shard.connect();
    shard.run_until("accepted", |shard| shard.accepted.len() == 1);
    let connection = shard.accepted[0];
    let mut bytes = 0;
    while shard.ring.counters().greedy == 0 {
        assert!(bytes < 10_000_000, "never called greedy");
        // Three modest pieces make it hot, then it takes all sixteen buffers at once.
        for length in [10, 10, 10, 10, 4_096] {
            stream.write_all(&vec![1; length]).expect("a write");
            bytes += length;
            shard.run_until("read", |shard| shard.received[&connection].len() == bytes);
            shard.turn(Duration::from_millis(1));
        }
    }
    assert_eq!(shard.ring.counters().bytes_in, bytes as u64);
}

#[test]
fn completions_that_overflow_are_late_and_not_lost() {
    let mut config = small(200);
    config.submissions = 64;
    config.completions = 64;
    let mut shard = Shard::new(&config);
    let mut streams: Vec<TcpStream> = (0..100).map(|_| shard.connect()).collect();
    shard.run_until("accepted", |shard| shard.accepted.len() == 100);
    shard.turn(Duration::from_millis(5));
    // A full queue of sends completes at once, and all the polls with it.
    for stream in &mut streams {
        stream.write_all(b"to the ring").expect("a write");
    }
    for connection in &shard.accepted[..64] {
        shard.ops.push(Op::Send { connection: *connection, buffer: b"to the peer".to_vec() });
    }
    shard.ring.submit(&mut shard.ops);
    shard.run_until("everything", |shard| shard.sent.len() == 64 && shard.ring.counters().bytes_in == 100 * 11);
    for stream in &mut streams[..64] {
        let mut piece = [0; 11];
        stream.read_exact(&mut piece).expect("its piece");
        assert_eq!(&piece, b"to the peer");
    }
    assert!(shard.ring.counters().completion_overflows > 0, "the test did not overflow anything");
}

/// A full submission queue is emptied in the middle of things, and what completes right then must
/// not wait for something else to happen.
#[test]
fn nothing_is_slept_on_that_completed_while_requests_were_queued() {
    let mut config = small(80);
    config.submissions = 2;
    config.completions = 4;
    let mut shard = Shard::new(&config);
    // It is in the backlog when the first of 64 accepts goes to the kernel, two at a time.
    let _stream = shard.connect();
    let begun = std::time::Instant::now();
    shard.turn(common::PATIENCE);
    assert_eq!(shard.accepted.len(), 1);
    assert!(begun.elapsed() < common::PATIENCE, "it was told only when the time was over");
}
