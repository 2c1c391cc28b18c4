//! T9: how long a durable message takes, open loop, beside a raw relay of its five frames at the same rates.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::Args;
use loadgen::key::TokenKey;
use loadgen::result::{Distribution, RunResult};
use loadgen::run::{Plan, cpu_seconds};
use loadgen::span::Span;
use serde_json::{Map, Value, json};

use crate::contest::FOREIGN_MAX;
use crate::crowd::{Crowd, Stretch};
use crate::figures::{Scratch, save};
use crate::loads::{pairs, relayed};
use crate::routed::five_frames;
use crate::server::{Process, Trouble};

/// A client that uses more of its core is what limits the rate.
const BOUND_PERCENT: f64 = 90.0;
/// Less of what was due, and it was not reached.
const REACHED: f64 = 0.99;

#[derive(Debug, Clone, Args)]
pub struct Orders {
    #[arg(long, default_value_t = 10_000)]
    pub users: u32,
    /// Messages per second; half and 90 % of saturation come on top.
    #[arg(long, value_delimiter = ',', default_values_t = [10_000, 25_000, 50_000])]
    pub rates: Vec<u32>,
    /// Of each measurement.
    #[arg(long, default_value_t = 8)]
    pub seconds: u64,
}

/// Measures it.
pub fn run(orders: &Orders) -> Result<(), Trouble> {
    crate::cpu::pin(1);
    let users = orders.users / 2 * 2;
    let method = format!(
        "{users} sessions in pairs, 128-byte messages over JSON, synced on this disk before `stored`; `ringway dev --shards 1` with all \
         of its threads on core 0, ringway-loadgen on core 1, {} s a rate. Saturated with one message in flight per session; then open loop, \
         messages due by chance (Poisson), latency from when a message was due until the other has it. Before each rate the same \
         rate over a raw relay of the five frames on as many connections, from a client without books. A client above {BOUND_PERCENT:.0} % of \
         its core is what limited the rate.",
        orders.seconds
    );
    println!("{method}\n");
    let sizes = five_frames();
    let relay = Process::relay(sizes)?;
    let mut tied = Crowd::new(users)?;
    pairs::tie(&mut tied, &relay)?;
    let scratch = Scratch::new("latency")?;
    let server = Process::ringway(&scratch.path, Some(0), &["--shards", "1"])?;
    let most = chat(&server, &scratch.path, users, None, orders.seconds)?;
    let saturation = most["stored_per_second"].as_f64().unwrap_or(0.0);
    show("saturated", &most);
    let mut rates: Vec<_> = orders.rates.iter().map(|rate| (format!("at_{rate}"), f64::from(*rate))).collect();
    rates.extend([("at_half".to_owned(), saturation / 2.0), ("at_90_percent".to_owned(), saturation * 0.9)]);
    // The server is not overloaded before the last of them.
    rates.sort_by(|one, other| one.1.total_cmp(&other.1));
    let mut result = Map::new();
    result.insert("saturated".to_owned(), most);
    for (name, rate) in rates {
        let floor = relay_at(&relay, &mut tied, rate, orders.seconds)?;
        show(&format!("relay {name}"), &floor);
        let ours = chat(&server, &scratch.path, users, Some(rate), orders.seconds)?;
        show(&name, &ours);
        result.insert(format!("relay_{name}"), floor);
        result.insert(name, ours);
    }
    result.insert("connections".to_owned(), users.into());
    println!("{}", save("latency", &method, "cargo run --release -p bench -- latency", result.into())?.display());
    Ok(())
}

fn relay_at(relay: &Process, tied: &mut Crowd, rate: f64, seconds: u64) -> Result<Value, Trouble> {
    let (stretch, cpu) = (Stretch::begin(relay), cpu_seconds());
    let relayed = relayed::relay(tied, five_frames(), rate, seconds)?;
    let percent = (cpu_seconds() - cpu) / seconds as f64 * 100.0;
    let spent = stretch.end();
    let (offered, delivered) = (relayed.offered as f64, relayed.delivered as f64);
    Ok(json!({
        "offered_per_second": offered / seconds as f64, "stored_per_second": delivered / seconds as f64,
        "reached": delivered >= REACHED * offered, "generator_bound": percent > BOUND_PERCENT,
        "generator_cpu_percent": percent, "delivery_ms": quantiles(&Distribution::of(&relayed.delivery)),
        "schedule_error_ms": quantiles(&Distribution::of(&relayed.schedule_error)),
        "server_cpu_us_per_message": spent.server_ns as f64 / 1e3 / offered,
        "foreign": spent.shares.others, "disturbed": spent.shares.others > FOREIGN_MAX,
    }))
}

/// At a rate, or with one message in flight for each.
fn chat(server: &Process, data: &Path, users: u32, rate: Option<f64>, seconds: u64) -> Result<Value, Trouble> {
    let mut plan = Plan::new(&format!("ws://{}", server.address), TokenKey::of_dev(data)?, users);
    let traffic = &mut plan.scenario.traffic;
    (traffic.rate, traffic.duration) = (rate.unwrap_or(60_000.0), Span::s(seconds));
    if rate.is_none() {
        (traffic.in_flight, traffic.drain) = (1, Span::s(1));
    }
    let (mut begun, mut ended) = (None, None);
    let report = loadgen::run::run(&plan, &Arc::new(AtomicBool::new(false)), |interval| {
        let Some(now) = interval.seconds.filter(|now| *now < seconds) else { return };
        let acked = interval.total.acked;
        match &begun {
            None => begun = Some((Stretch::begin(server), acked)),
            Some((stretch, before)) if now + 1 == seconds => ended = Some((stretch.end(), acked - before)),
            Some(_) => {}
        }
    })?;
    if !report.is_clean() {
        return Err(format!("messages were lost, doubled or reordered:\n{report}").into());
    }
    let (spent, messages) = ended.ok_or("the run was too short to be measured: three seconds at least")?;
    let RunResult { offered_per_second, achieved_per_second, generator_cpu_percent, generator_bound, .. } = report;
    Ok(json!({
        "offered_per_second": offered_per_second, "stored_per_second": achieved_per_second,
        "reached": achieved_per_second >= REACHED * offered_per_second, "generator_bound": generator_bound,
        "generator_cpu_percent": generator_cpu_percent, "delivery_ms": quantiles(&report.latency.delivery),
        "schedule_error_ms": quantiles(&report.latency.schedule_error),
        "server_cpu_us_per_message": spent.server_ns as f64 / 1e3 / messages as f64,
        "foreign": spent.shares.others, "disturbed": spent.shares.others > FOREIGN_MAX,
    }))
}

/// Without the histogram.
fn quantiles(of: &Distribution) -> Distribution {
    Distribution { histogram: String::new(), ..of.clone() }
}

fn show(name: &str, load: &Value) {
    let ms = |quantile: &str| load["delivery_ms"][quantile].as_f64().unwrap_or(f64::NAN);
    let number = |key: &str| load[key].as_f64().unwrap_or(f64::NAN);
    let why = match (load["reached"] == true, load["generator_bound"] == true) {
        (_, true) => ", generator-bound",
        (false, false) => ", server saturated below it",
        (true, false) => "",
    };
    println!(
        "{:<20} {:>7.0}/s of {:>7.0}{why}; p50 {:.2}, p99 {:.2}, p99.9 {:.2} ms; others {:.1} %",
        name.replace('_', " "),
        number("stored_per_second"),
        number("offered_per_second"),
        ms("p50"),
        ms("p99"),
        ms("p99_9"),
        number("foreign") * 100.0
    );
}
