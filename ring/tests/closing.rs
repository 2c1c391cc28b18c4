//! Connections end once, in the way that was asked for, and leave nothing behind.

mod common;

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use common::{PATIENCE, Shard, small};
use ring::{CloseReason, Op};

/// The stream ended in order: not by a reset, and without another byte.
fn assert_eof(stream: &mut TcpStream) {
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).expect("an orderly end");
    assert!(rest.is_empty());
}

fn reset_from_here(stream: TcpStream) {
    let socket = socket2::Socket::from(stream);
    socket.set_linger(Some(Duration::ZERO)).expect("linger is set");
}

#[test]
fn closing_ends_a_connection_whatever_is_armed_on_it() {
    let mut shard = Shard::new(&small(8));
    // Idle: a poll is armed.
    let mut idle = shard.connect();
    shard.run_until("accepted", |shard| shard.accepted.len() == 1);
    shard.turn(Duration::from_millis(5));
    let connection = shard.accepted[0];
    shard.op(Op::Close { connection });
    shard.run_until("idle closed", |shard| shard.closed.len() == 1);
    assert_eof(&mut idle);

    // Hot: a multishot receive is armed.
    let mut hot = shard.connect();
    shard.run_until("accepted", |shard| shard.accepted.len() == 2);
    let connection = shard.accepted[1];
    let mut bytes = 0;
    while shard.ring.counters().promoted == 0 {
        hot.write_all(&[1; 10]).expect("a write");
        bytes += 10;
        shard.run_until("read", |shard| shard.received[&connection].len() == bytes);
        shard.turn(Duration::from_millis(1));
    }
    shard.op(Op::Close { connection });
    shard.run_until("hot closed", |shard| shard.closed.len() == 2);
    assert_eof(&mut hot);

    // Stuck: a send waits for a peer that does not read.
    let mut stuck = shard.connect();
    shard.run_until("accepted", |shard| shard.accepted.len() == 3);
    let connection = shard.accepted[2];
    shard.op(Op::Send { connection, buffer: vec![3; 32 << 20] });
    for _ in 0..5 {
        shard.turn(Duration::from_millis(5));
    }
    shard.op(Op::Close { connection });
    shard.run_until("stuck closed", |shard| shard.closed.len() == 3);
    let mut rest = Vec::new();
    stuck.read_to_end(&mut rest).expect("an orderly end");
    assert!(!rest.is_empty() && rest.len() < 32 << 20);
    assert_eq!(shard.ring.connections(), 0);
    assert!(shard.closed.iter().all(|(_, why)| *why == CloseReason::Asked));
}

#[test]
fn a_reset_cuts_the_peer_off() {
    let mut shard = Shard::new(&small(4));
    let mut stream = shard.connect();
    shard.run_until("accepted", |shard| shard.accepted.len() == 1);
    shard.turn(Duration::from_millis(5));
    let connection = shard.accepted[0];
    shard.op(Op::Reset { connection });
    shard.run_until("closed", |shard| shard.closed.len() == 1);
    let error = stream.read(&mut [0]).expect_err("a reset");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[test]
fn a_peer_that_resets_is_reported_once() {
    let mut shard = Shard::new(&small(4));
    let stream = shard.connect();
    shard.run_until("accepted", |shard| shard.accepted.len() == 1);
    shard.turn(Duration::from_millis(5));
    reset_from_here(stream);
    shard.run_until("closed", |shard| shard.closed.len() == 1);
    assert_eq!(shard.closed, [(shard.accepted[0], CloseReason::Reset)], "once, and why");
    // Too late, and harmless.
    let connection = shard.accepted[0];
    shard.op(Op::Close { connection });
    shard.op(Op::Send { connection, buffer: b"late".to_vec() });
    shard.turn(Duration::from_millis(5));
    assert_eq!(shard.closed.len(), 1);
    assert_eq!(shard.ring.counters().stale_ops, 2);
}

#[test]
fn a_reset_while_a_send_is_stuck_gives_the_connection_up() {
    let mut shard = Shard::new(&small(4));
    let stream = shard.connect();
    shard.run_until("accepted", |shard| shard.accepted.len() == 1);
    let connection = shard.accepted[0];
    shard.op(Op::Send { connection, buffer: vec![3; 32 << 20] });
    for _ in 0..5 {
        shard.turn(Duration::from_millis(5));
    }
    reset_from_here(stream);
    shard.run_until("closed", |shard| shard.closed.len() == 1);
    assert_eq!(shard.closed, [(connection, CloseReason::Reset)]);
    assert!(shard.sent.is_empty());
}

/// What the peer still sends must not turn the end into a reset that destroys our last words.
#[test]
fn a_shutdown_says_its_last_words_to_a_peer_that_keeps_sending() {
    let mut shard = Shard::new(&small(4));
    let mut stream = shard.connect();
    shard.run_until("accepted", |shard| shard.accepted.len() == 1);
    let connection = shard.accepted[0];
    stream.write_all(&vec![1; 50_000]).expect("a write");
    shard.ops.push(Op::Send { connection, buffer: b"last words".to_vec() });
    shard.op(Op::Shutdown { connection });
    let peer = std::thread::spawn(move || {
        for _ in 0..20 {
            stream.write_all(&[2; 1_000]).expect("the peer may write");
        }
        let mut heard = Vec::new();
        stream.read_to_end(&mut heard).expect("an orderly end");
        heard
    });
    shard.run_until("closed", |shard| shard.closed.len() == 1);
    assert_eq!(peer.join().expect("the peer"), b"last words");
    assert_eq!(shard.closed, [(connection, CloseReason::Finished)]);
    assert_eq!(shard.ring.counters().bytes_in, 70_000);
}

#[test]
fn a_shutdown_that_the_peer_ignores_ends_with_a_close() {
    let mut shard = Shard::new(&small(4));
    let mut stream = shard.connect();
    shard.run_until("accepted", |shard| shard.accepted.len() == 1);
    let connection = shard.accepted[0];
    shard.op(Op::Shutdown { connection });
    assert_eof_while_turning(&mut shard, &mut stream);
    assert!(shard.closed.is_empty(), "the peer has not finished");
    shard.op(Op::Close { connection });
    shard.run_until("closed", |shard| shard.closed.len() == 1);
    assert_eq!(shard.ring.connections(), 0);
}

fn assert_eof_while_turning(shard: &mut Shard, stream: &mut TcpStream) {
    for _ in 0..5 {
        shard.turn(Duration::from_millis(5));
    }
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    assert_eof(stream);
}

/// A slot's next tenant hears nothing of what its predecessor left behind.
#[test]
fn a_slot_used_again_belongs_to_its_new_tenant_only() {
    let mut shard = Shard::new(&small(1));
    for round in 0..200 {
        let mut stream = shard.connect();
        shard.run_until("accepted", |shard| shard.accepted.len() == round + 1);
        stream.write_all(&[round as u8]).expect("a write");
        if round % 2 == 0 {
            let connection = shard.accepted[round];
            shard.run_until("read", |shard| shard.received[&connection] == [round as u8]);
        }
        if round % 3 == 0 {
            reset_from_here(stream);
        } else {
            let connection = shard.accepted[round];
            shard.op(Op::Close { connection });
        }
        shard.run_until("closed", |shard| shard.closed.len() == round + 1);
        assert_eq!(shard.closed[round].0, shard.accepted[round]);
        assert_eq!(shard.accepted[round].slot(), 0);
    }
    assert_eq!(shard.ring.counters().stale_completions, 0);
}

#[test]
fn a_ring_that_goes_away_ends_its_connections() {
    let mut shard = Shard::new(&small(8));
    let mut stuck = shard.connect();
    let mut idle = shard.connect();
    shard.run_until("accepted", |shard| shard.accepted.len() == 2);
    let connection = shard.accepted[0];
    shard.op(Op::Send { connection, buffer: vec![3; 32 << 20] });
    shard.turn(Duration::from_millis(5));
    let address = shard.address;
    drop(shard);
    let mut rest = Vec::new();
    let _ = stuck.read_to_end(&mut rest);
    let _ = idle.read_to_end(&mut rest);
    assert!(TcpStream::connect(address).is_err(), "the listener is gone");
}
