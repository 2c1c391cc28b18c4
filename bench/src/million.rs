//! `bench million`: one process of the generator holds as many sockets as it is told, against the raw probe.

use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use crate::figures::{Scratch, field, save};
use crate::floor::{fits_in_memory, settings};
use crate::generator::{Generator, Idle, Said};
use crate::server::{Process, Trouble};

#[derive(Debug, Clone, Args)]
pub struct Orders {
    /// Sockets: 8.5 KB of kernel memory each, both ends together, so that a million take 9 GB.
    #[arg(long, default_value_t = 1_000_000)]
    pub connections: u32,
    /// How fast they are made.
    #[arg(long, default_value_t = 20_000)]
    pub connections_per_second: u32,
    /// Threads of the generator.
    #[arg(long, default_value_t = 2)]
    pub threads: u32,
    /// Echoes per second while they are held, each on a socket of chance.
    #[arg(long, default_value_t = 1_000)]
    pub rate: u32,
    /// How long they are held.
    #[arg(long, default_value_t = 30)]
    pub seconds: u64,
}

/// Connections in one table of the generator's descriptors; a ninth more stays free.
const TABLE: u32 = 17_000;

/// Connections that are being made at once: fewer than one of the probe's tables has to spare.
const UNDER_WAY: u32 = 1_024;

/// Measures it.
pub fn run(orders: &Orders) -> Result<(), Trouble> {
    let count = orders.connections;
    let method = format!(
        "One process of ringway-loadgen with {} threads opens {count} WebSockets, at most {}/s and {UNDER_WAY} at once, to a raw probe that knows the upgrade and sends \
         frames back, one thread over several rings; both have the descriptors of any process, and more sockets than that in the \
         tables of their rings, {TABLE} in each of the generator's and a ninth more free. They are held for {} s, with {} echoes a second \
         on sockets of chance. Half-way Pss_Anon of both (/proc/PID/smaps_rollup) and the kernel's slab caches are read.",
        orders.threads, orders.connections_per_second, orders.seconds, orders.rate,
    );
    println!("{method}\n");
    fits_in_memory(count)?;
    let scratch = Scratch::new("million")?;
    let (server, server_rings) = Process::websocket_probe(count)?;
    let before = Idle::now(server.id(), &server);
    let ramp = u64::from(count / orders.connections_per_second.max(1)) * 2 + 10;
    let flags = [
        format!("--users={count}"),
        format!("--connections-per-second={}", orders.connections_per_second),
        format!("--threads={}", orders.threads),
        format!("--set=sessions.table={TABLE}"),
        format!("--ramp={ramp}s"),
        format!("--rate={}", orders.rate),
        format!("--duration={}s", orders.seconds),
        format!("--set=sessions.under_way={UNDER_WAY}"),
        "--drain=5s".to_owned(),
    ];
    // Closing takes as long as opening did.
    let patience = Duration::from_secs(2 * ramp + orders.seconds + 60);
    let mut generator = Generator::start(&server, &scratch, None, &flags, patience)?;
    let descriptors = descriptors(generator.id());
    let begun = generator.until_begun()?;
    let opened_s = begun["at"].as_f64().unwrap_or(f64::NAN);
    println!("{} open after {opened_s:.0} s", begun["open"]);
    let mut held = begun["open"].as_u64().unwrap_or(0);
    let mut idle = None;
    loop {
        // Who has said goodbye to all tells of no more seconds.
        let second = match generator.next_within(Duration::from_secs(4)) {
            Said::Second(second) => second,
            Said::Nothing if idle.is_none() => continue,
            Said::Nothing | Said::Ended => break,
        };
        let since = second["at"].as_f64().unwrap_or(0.0) - opened_s;
        if since < orders.seconds as f64 {
            held = held.min(second["open"].as_u64().unwrap_or(0));
        }
        if idle.is_none() && since * 2.0 >= orders.seconds as f64 {
            idle = Some(Idle::now(generator.id(), &server));
        }
    }
    let idle = idle.ok_or("the generator ended before its time")?;
    // Nothing is asked of it any more, and two processes close their ends faster than one that answers a million goodbyes.
    drop(server);
    let ran = generator.finish()?;
    let each = f64::from(count);
    let caches = idle.caches_since(&before, each);
    let kernel: f64 = caches.values().filter_map(Value::as_f64).sum();
    let generator_rings = orders.threads * count.div_ceil(orders.threads).div_ceil(TABLE);
    let result = json!({
        "connections": count, "held": held, "cut": ran.counts.cut, "timeouts": ran.counts.timeouts,
        "connect_failures": ran.counts.connect_failures, "lost": ran.counts.lost, "doubled": ran.counts.doubled,
        "unanswered": ran.counts.unanswered, "echoes": ran.counts.delivered,
        "seconds_to_open": opened_s, "opened_per_second": held as f64 / opened_s,
        "echo_ms": { "p50": ran.latency.delivery.p50, "p99": ran.latency.delivery.p99, "max": ran.latency.delivery.max },
        "schedule_error_p99_ms": ran.latency.schedule_error.p99,
        "generator_cpu_percent": ran.generator_cpu_percent, "generator_bound": ran.generator_bound,
        "generator_bytes_each": idle.generator_bytes / each, "server_bytes_each": idle.server_bytes / each,
        "kernel_bytes_each_both_ends": kernel, "kernel_by_cache": caches,
        "generator_rings": generator_rings, "server_rings": server_rings, "descriptor_limit": descriptors,
        "errors": ran.errors, "settings": settings(),
    });
    println!(
        "{held} of {count} held, {} cut, {} lost of {} echoes; opened in {opened_s:.0} s\nper socket: generator {:.0} bytes, probe {:.0}, \
         kernel {kernel:.0} of both ends; {generator_rings} and {server_rings} rings under a limit of {descriptors} descriptors",
        ran.counts.cut,
        ran.counts.lost + ran.counts.unanswered,
        ran.counts.offered,
        idle.generator_bytes / each,
        idle.server_bytes / each,
    );
    let name = if count == 1_000_000 { "million".to_owned() } else { format!("million-{count}") };
    let command = format!("cargo run --release -p bench -- million --connections {count}");
    println!("{}", save(&name, &method, &command, result)?.display());
    if held < u64::from(count) || ran.counts.cut > 0 || ran.counts.unanswered > 0 || !ran.is_clean() {
        return Err(format!("not all were held, or something was lost:\n{ran}").into());
    }
    Ok(())
}

/// How many descriptors a process may have.
fn descriptors(process: u32) -> u64 {
    field(&format!("/proc/{process}/limits"), "Max open files")
}
