//! Two rings on two threads that wait for each other all the time: whatever one of them forgets
//! stops both.

mod common;

use std::net::SocketAddr;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use common::{PATIENCE, Shard};
use ring::{Connection, Doorbell, Event, EventBatch, KernelRing, Op, Ops, RingConfig};

const CONNECTIONS: u64 = 3_000;
const ECHOES_EACH: u64 = 5;

fn config() -> RingConfig {
    RingConfig { connections_max: CONNECTIONS as u32 + 64, ..RingConfig::default() }
}

/// Opens all connections, a few hundred at a time, and sends on each again when its echo came.
fn peers(address: SocketAddr) -> JoinHandle<u64> {
    std::thread::spawn(move || {
        let doorbell = Doorbell::new().expect("a doorbell");
        let mut ring = KernelRing::new(&config(), doorbell).expect("a ring");
        let (mut events, mut ops) = (EventBatch::default(), Ops::default());
        let deadline = Instant::now() + PATIENCE;
        let (mut asked, mut open, mut echoes) = (0, 0, 0);
        let send = |connection: Connection| Op::Send { connection, buffer: vec![7; 128] };
        let mut counted = vec![0; CONNECTIONS as usize];
        while echoes < CONNECTIONS * ECHOES_EACH {
            assert!(Instant::now() < deadline, "{asked} asked, {open} open, {echoes} echoes");
            while asked < CONNECTIONS && asked < open + 200 {
                ops.push(Op::Connect { token: asked, address, source: None });
                asked += 1;
            }
            ring.submit(&mut ops);
            ring.wait(Some(Duration::from_millis(100)), &mut events).expect("a wait");
            while let Some(event) = events.pop() {
                match event {
                    Event::Connected { connection, .. } => {
                        open += 1;
                        ops.push(send(connection));
                    }
                    Event::Received { connection, .. } => {
                        echoes += 1;
                        let counted = &mut counted[connection.slot() as usize];
                        *counted += 1;
                        if *counted < ECHOES_EACH {
                            ops.push(send(connection));
                        }
                    }
                    Event::Sent { .. } => {}
                    other => panic!("unexpected: {other:?}"),
                }
            }
        }
        echoes
    })
}

#[test]
fn two_rings_that_wait_for_each_other_never_both_wait() {
    let mut shard = Shard::new(&config());
    shard.echo = true;
    let peers = peers(shard.address);
    shard.run_until("every echo", |_| peers.is_finished());
    assert_eq!(peers.join().expect("the peers"), CONNECTIONS * ECHOES_EACH);
    shard.run_until("all gone", |shard| shard.closed.len() as u64 == CONNECTIONS);
}
