//! Echo and answered beats on sockets that nobody has touched for a while.

use loadgen::random::Random;
use serde_json::json;

use super::{Orders, fits_in_memory, keep};
use crate::contest;
use crate::crowd::{Crowd, News, PER_RING, SLOTS, to_rings};
use crate::figures::field;
use crate::loads::beats::Beats;
use crate::loads::burst;
use crate::server::{Process, Trouble};

/// As the protocol has a beat, with its frame.
const BEAT_BYTES: usize = 6 + r#"{"type":"beat","received":0}"#.len();

pub(super) fn run(orders: &Orders) -> Result<(), Trouble> {
    const METHOD: &str = "Raw rings with direct descriptors on both ends, 17,000 connections each, in one thread each; server on \
                          core 0, client on core 1, multishot receive armed on every socket.\nEcho: 128 bytes by burst and drain, \
                          10,000 sockets at a time, every socket once a round in an order of chance; of more \
                          than 200,000 so many that chance names anew each round. Beats: 34 bytes and as \
                          many back at a steady rate in an order of chance, gathered for up to 50 ms.";
    let count = orders.connections;
    fits_in_memory(count)?;
    println!("echo and beats on {count} cold sockets");
    let rings = count.div_ceil(PER_RING).max(1);
    let slots = if rings == 1 { count + count / 10 + 64 } else { SLOTS };
    let server = Process::raw(&["--rings", &rings.to_string(), "--slots", &slots.to_string()])?;
    let slab_before = field("/proc/meminfo", "Slab:");
    let mut crowd = Crowd::new(count)?;
    crowd.connect(&to_rings(server.address), |_, news, _| match news {
        News::Closed => Err("the probe hung up".into()),
        _ => Ok(()),
    })?;
    let slab = (field("/proc/meminfo", "Slab:") - slab_before) as f64 * 1_024.0 / f64::from(count);
    println!("{count} connected over {rings} rings; {slab:.0} bytes of slab for both ends of each");
    let mut random = Random::new(7, 7);
    // The first pass meets page tables and caches that no later one does.
    burst::drain(&server, &mut crowd, &mut random, &[b'x'; 128], 128)?;
    let mut beats = Beats::new(count, &mut random);
    let rate = orders.beats.unwrap_or(f64::from(count) / 30.0);
    let outcome = contest::run(&["echo", "answered beat"], 0, orders.rounds, |side| {
        if side == 0 {
            return burst::drain(&server, &mut crowd, &mut random, &[b'x'; 128], 128);
        }
        // An echo answers with as much as it heard.
        beats.measure(&server, &mut crowd, &[b'x'; BEAT_BYTES], BEAT_BYTES, rate, orders.seconds)
    })?;
    outcome.show("echo");
    let mut result = outcome.to_json(&["echo"]);
    result["connections"] = count.into();
    result["rings"] = rings.into();
    result["beats_per_second"] = rate.into();
    result["slab_bytes_per_connection_both_ends"] = json!(slab);
    keep(&format!("cold-{count}"), METHOD, &format!("cold --connections {count}"), result)
}
