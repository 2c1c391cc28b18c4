//! Bytes in and out over real sockets.

mod common;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::time::Duration;

use common::{Shard, small};
use ring::{ConnectError, Op};

/// Cuts and coalescing belong to the network; what comes back must not depend on them.
#[test]
fn an_echo_gives_back_every_byte_however_the_stream_is_cut() {
    let mut shard = Shard::new(&small(8));
    shard.echo = true;
    let stream = shard.connect();
    let payload: Vec<u8> = (0..100_000_u32).map(|n| (n * 7 % 251) as u8).collect();
    let expected = payload.clone();
    let peer = std::thread::spawn(move || {
        let mut writer = stream.try_clone().expect("a second handle");
        let sender = std::thread::spawn(move || {
            let mut rest = &payload[..];
            let mut cut = 1;
            while !rest.is_empty() {
                let (piece, after) = rest.split_at(cut.min(rest.len()));
                writer.write_all(piece).expect("a write");
                rest = after;
                cut = cut * 5 % 1_499 + 1;
            }
            writer.shutdown(Shutdown::Write).expect("an end");
        });
        let mut back = Vec::new();
        (&stream).read_to_end(&mut back).expect("the echo");
        sender.join().expect("the sender");
        back
    });
    shard.run_until("the echo is over", |shard| shard.closed.len() == 1);
    assert_eq!(peer.join().expect("the peer"), expected);
    let counters = shard.ring.counters();
    assert_eq!(counters.bytes_in, 100_000);
    assert_eq!(counters.bytes_out, 100_000);
}

#[test]
fn a_reader_that_is_slow_gets_everything_by_short_writes() {
    let mut shard = Shard::new(&small(4));
    let mut stream = shard.connect();
    shard.run_until("accepted", |shard| shard.accepted.len() == 1);
    let connection = shard.accepted[0];
    let payload: Vec<u8> = (0..32 << 20_u32).map(|n| (n % 253) as u8).collect();
    shard.op(Op::Send { connection, buffer: payload.clone() });
    // The kernel takes what fits and no more as long as nobody reads.
    for _ in 0..10 {
        shard.turn(Duration::from_millis(10));
    }
    assert!(shard.sent.is_empty(), "more than fits was taken");
    let reader = std::thread::spawn(move || {
        let mut back = vec![0; 32 << 20];
        stream.read_exact(&mut back).expect("everything");
        back
    });
    shard.run_until("everything sent", |shard| shard.sent.len() == 1);
    assert!(reader.join().expect("the reader") == payload, "other bytes");
    assert_eq!(shard.sent[0], (connection, 32 << 20));
    let counters = shard.ring.counters();
    assert!(counters.short_writes > 0);
    assert!(shard.progress > 0 && shard.progress < 32 << 20);
    assert_eq!(counters.bytes_out, 32 << 20);
}

#[test]
fn a_paused_connection_is_not_read_and_loses_nothing() {
    let mut shard = Shard::new(&small(4));
    let mut stream = shard.connect();
    shard.run_until("accepted", |shard| shard.accepted.len() == 1);
    let connection = shard.accepted[0];
    shard.op(Op::PauseReceive { connection });
    stream.write_all(&[7; 5_000]).expect("a write");
    for _ in 0..10 {
        shard.turn(Duration::from_millis(5));
    }
    assert!(shard.received[&connection].is_empty());
    shard.op(Op::ResumeReceive { connection });
    shard.run_until("all read", |shard| shard.received[&connection].len() == 5_000);
}

#[test]
fn a_hot_connection_can_be_paused_and_read_again() {
    let mut shard = Shard::new(&small(4));
    let mut stream = shard.connect();
    shard.run_until("accepted", |shard| shard.accepted.len() == 1);
    let connection = shard.accepted[0];
    let mut bytes = 0;
    while shard.ring.counters().promoted == 0 {
        stream.write_all(&[1; 10]).expect("a write");
        bytes += 10;
        shard.run_until("read", |shard| shard.received[&connection].len() == bytes);
        shard.turn(Duration::from_millis(1));
    }
    shard.op(Op::PauseReceive { connection });
    for _ in 0..5 {
        shard.turn(Duration::from_millis(5));
    }
    stream.write_all(&[2; 3_000]).expect("a write");
    for _ in 0..5 {
        shard.turn(Duration::from_millis(5));
    }
    assert_eq!(shard.received[&connection].len(), bytes);
    shard.op(Op::ResumeReceive { connection });
    shard.run_until("all read", |shard| shard.received[&connection].len() == bytes + 3_000);
}

#[test]
fn a_connection_that_goes_quiet_goes_back_to_polling() {
    let mut config = small(4);
    config.hot_idle_ms = 200;
    let mut shard = Shard::new(&config);
    shard.echo = true;
    let mut stream = shard.connect();
    let mut piece = [0; 16];
    for _ in 0..50 {
        stream.write_all(&piece).expect("a write");
        shard.run_until("echoed", |shard| {
            let counters = shard.ring.counters();
            counters.bytes_in == counters.bytes_out && counters.bytes_in % 16 == 0
        });
        shard.turn(Duration::from_millis(1));
    }
    assert!(shard.ring.counters().promoted > 0);
    shard.run_until("cooled", |shard| shard.ring.counters().demoted == 1);
    let before = shard.ring.counters().bytes_in;
    stream.write_all(&[9; 16]).expect("a write");
    shard.run_until("read again", |shard| shard.ring.counters().bytes_in > before);
    for _ in 0..51 {
        shard.turn(Duration::from_millis(1));
        stream.read_exact(&mut piece).expect("every echo");
    }
    assert_eq!(piece, [9; 16]);
}

/// A ring talks to itself, as a load generator's ring talks to a server's.
#[test]
fn a_connect_opens_a_connection_or_says_why_not() {
    let mut shard = Shard::new(&small(80));
    let (address, source) = (shard.address, "127.0.0.9:0".parse().ok());
    shard.op(Op::Connect { token: 5, address, source });
    shard.run_until("both ends", |shard| shard.connected.len() == 1 && shard.accepted.len() == 1);
    let (token, ours) = shard.connected[0];
    assert_eq!(token, 5);
    shard.op(Op::Send { connection: ours, buffer: b"through two ends of one ring".to_vec() });
    let theirs = shard.accepted[0];
    shard.run_until("arrived", |shard| shard.received[&theirs].len() == 28);

    let nobody = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.local_addr().expect("an address")
    };
    shard.op(Op::Connect { token: 6, address: nobody, source: None });
    shard.run_until("refused", |shard| shard.failed.len() == 1);
    assert_eq!(shard.failed[0], (6, ConnectError::Refused));
    // The accepts hold 64 of the 80 slots, two connections 2.
    for token in 100..120 {
        shard.op(Op::Connect { token, address, source: None });
    }
    shard.run_until("too many", |shard| shard.failed.contains(&(119, ConnectError::TableFull)));
}
