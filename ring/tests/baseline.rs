//! Alone in its process, because it counts the process's descriptors.

mod common;

use std::io::Read;
use std::time::Duration;

use common::{Shard, small};
use ring::{Op, RingConfig};

fn sockets_in_use() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("descriptors").count()
}

#[test]
fn two_thousand_connections_come_and_go_five_times_and_nothing_is_left() {
    const CONNECTIONS: usize = 2_000;
    let config = RingConfig { connections_max: CONNECTIONS as u32 + 64, ..small(1) };
    let mut shard = Shard::new(&config);
    shard.turn(Duration::ZERO);
    let baseline = sockets_in_use();
    for round in 1..=5 {
        let mut streams = Vec::new();
        while streams.len() < CONNECTIONS {
            streams.push(shard.connect());
            shard.turn(Duration::ZERO);
        }
        shard.run_until("all accepted", |shard| shard.accepted.len() == CONNECTIONS * round);
        assert_eq!(shard.ring.connections() as usize, CONNECTIONS);
        for connection in shard.accepted.split_off(CONNECTIONS * (round - 1)) {
            shard.ops.push(Op::Close { connection });
            shard.accepted.push(connection);
        }
        shard.ring.submit(&mut shard.ops);
        shard.run_until("all closed", |shard| shard.closed.len() == CONNECTIONS * round);
        for stream in &mut streams {
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest).expect("an orderly end");
            assert!(rest.is_empty());
        }
        assert_eq!(shard.ring.connections(), 0);
        drop(streams);
    }
    assert_eq!(sockets_in_use(), baseline);
    let counters = shard.ring.counters();
    assert_eq!(counters.accepted, counters.closed);
    assert_eq!(counters.stale_completions, 0);
}
