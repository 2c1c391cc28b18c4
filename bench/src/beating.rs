//! T13: what an answered beat of an idle session costs, against a raw probe with as many cold sockets.

use clap::Args;
use loadgen::frames;
use loadgen::key::TokenKey;
use loadgen::random::Random;
use wire::writer::write_text_with;

use crate::contest;
use crate::crowd::{Crowd, PER_RING, SLOTS, to_one, to_rings};
use crate::figures::{Scratch, save};
use crate::loads::beats::{self, Beats};
use crate::loads::opening;
use crate::opened::Sessions;
use crate::server::{Process, Trouble};

#[derive(Debug, Clone, Args)]
pub struct Orders {
    /// Sessions, and as many sockets of the probe: 17 KB of kernel memory for a session and its like.
    #[arg(long, default_value_t = 15_000)]
    pub sessions: u32,
    /// Beats per second; every session's turn must come within 50 s, the other side's rounds included.
    #[arg(long)]
    pub rate: Option<f64>,
    #[arg(long, default_value_t = 5)]
    pub rounds: u32,
    /// Of each measurement.
    #[arg(long, default_value_t = 4)]
    pub seconds: u64,
    /// Shards of the server.
    #[arg(long, default_value_t = 1)]
    pub shards: u16,
}

/// Measures it.
pub fn run(orders: &Orders) -> Result<(), Trouble> {
    crate::cpu::pin(1);
    let count = orders.sessions;
    let rate = orders.rate.unwrap_or(f64::from(count) / 15.0);
    let method = format!(
        "{count} sessions of distinct users and as many raw sockets, both idle but for {rate:.0} beats per second in an order of \
         chance, gathered by the client for up to 50 ms, each answered. Server on core 0, client on core 1; processor time of all the \
         server's threads per beat; {} s a measurement. A beat and its answer are 34 and 30 bytes; the raw ring answers with as much \
         as it heard.",
        orders.seconds
    );
    println!("{method}\n");
    let mut beat = Vec::new();
    write_text_with(&mut beat, Some([1, 2, 3, 4]), |out| frames::beat(out, 0));
    let scratch = Scratch::new("beats")?;
    let shards = orders.shards.to_string();
    let ringway = Process::ringway(&scratch.path, Some(0), &["--shards", &shards])?;
    let mut sessions = Sessions::mint(&TokenKey::of_dev(&scratch.path)?, 1, count, &ringway);
    let mut open = Crowd::new(count)?;
    let rings = count.div_ceil(PER_RING).max(1);
    let slots = if rings == 1 { count + count / 10 + 64 } else { SLOTS };
    let raw = Process::raw(&["--rings", &rings.to_string(), "--slots", &slots.to_string(), "--tick-ms", "10"])?;
    let mut sockets = Crowd::new(count)?;
    sockets.connect(&to_rings(raw.address), |_, _, _| Ok(()))?;
    opening::open(&ringway, &mut open, &to_one(ringway.address), &mut sessions)?;
    drop(sessions);
    let mut random = Random::new(13, 13);
    let mut orders_of_chance = [Beats::new(count, &mut random), Beats::new(count, &mut random)];
    let outcome = contest::run(&["raw ring", "ringway"], 0, orders.rounds, |side| {
        let beats = &mut orders_of_chance[side];
        if side == 0 {
            beats.measure(&raw, &mut sockets, &beat, beat.len(), rate, orders.seconds)
        } else {
            beats.measure(&ringway, &mut open, &beat, beats::ANSWER_BYTES, rate, orders.seconds)
        }
    })?;
    outcome.show("raw ring");
    let mut result = outcome.to_json(&["raw ring"]);
    result["sessions"] = count.into();
    result["beats_per_second"] = rate.into();
    result["must"] = 1.25.into();
    let command = format!("cargo run --release -p bench -- beats --sessions {count}");
    println!("{}", save(&format!("beats-{count}"), &method, &command, result)?.display());
    Ok(())
}
