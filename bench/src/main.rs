//! `cargo run --release -p bench -- WHAT`: one figure each, with its method; `--help` lists them.
//!
//! Build the server first: `cargo build --release`.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use bench::figures::{Scratch, save};
use bench::server::{Process, Trouble, cpu_ns};
use bench::spending::{Budget, Used, commits_per_second};
use bench::{echo, idle, restart};
use clap::{Parser, Subcommand};
use loadgen::key::TokenKey;
use loadgen::result::{Distribution, RunResult};
use loadgen::run::{Plan, run};
use loadgen::span::Span;
use serde_json::json;

#[derive(Parser)]
#[command(name = "bench")]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Processor time per echo of 64 bytes, against a raw ring in the same run.
    Echo {
        #[arg(long, default_value_t = 1_000)]
        connections: u32,
        #[arg(long, default_value_t = 60)]
        rounds: u32,
        /// How long each is asked in a round.
        #[arg(long, default_value_t = 400)]
        moment_ms: u64,
    },
    /// User bytes per idle session: the slope from 5,000 to 15,000 sessions, by owner.
    Idle {
        #[arg(long, default_value_t = 2)]
        rounds: u32,
        /// Seconds of idling before memory is read.
        #[arg(long, default_value_t = 30)]
        rest: u64,
    },
    /// Durable messages per second: saturated, and at a given rate with its latencies.
    Durable {
        #[arg(long, default_value_t = 10_000)]
        users: u32,
        #[arg(long, default_value_t = 20_000.0)]
        rate: f64,
        #[arg(long, default_value_t = 10)]
        seconds: u64,
    },
    /// Time until a killed server serves again, with a tenth of the conversations and with all.
    Restart {
        #[arg(long, default_value_t = 1_000_000)]
        conversations: u32,
    },
    /// System calls and allocations per routed message.
    Syscalls {
        #[arg(long, default_value_t = 10_000)]
        users: u32,
        #[arg(long, default_value_t = 10)]
        seconds: u64,
    },
    /// What the kernel costs without a protocol: hot and cold echo, relay, accept, fan-out, commits.
    Floor(bench::floor::Orders),
    /// Ringway and other people's servers, in turn.
    Peers(bench::peers::Orders),
    /// Processor time per message between two users, against a raw relay of the same five frames.
    Routed(bench::routed::Orders),
    /// How long durable messages take at several rates, open loop, beside a raw relay.
    Latency(bench::latency::Orders),
    /// Processor time from accept to `opened`, against a raw probe with the same words.
    Opened(bench::opened::Orders),
    /// Processor time per answered beat of idle sessions, against a raw probe.
    Beats(bench::beating::Orders),
    /// What ringway-loadgen itself costs: processor time per echo over the raw client's, memory per idle session.
    Generator(bench::generator::Orders),
    /// A million sockets held by one process of ringway-loadgen, against a raw probe.
    Million(bench::million::Orders),
    /// Instruction counts, held against the recorded ones.
    Budgets(bench::budgets::Orders),
    /// One page of all results, as docs/performance.md and docs/performance.html.
    Performance(bench::performance::Orders),
    #[command(hide = true)]
    ProbeRaw(bench::raw::server::Orders),
    #[command(hide = true)]
    ProbeEpoll {
        #[arg(long)]
        listen: SocketAddr,
    },
    #[command(hide = true)]
    ProbeFanout {
        #[arg(long)]
        listen: SocketAddr,
        #[arg(long)]
        connections: u32,
    },
    #[command(hide = true)]
    ProbeHold {
        #[arg(long)]
        listen: SocketAddr,
    },
}

fn main() -> ExitCode {
    let done = match Arguments::parse().what {
        What::Echo { connections, rounds, moment_ms } => echo::run(connections, rounds, moment_ms),
        What::Idle { rounds, rest } => idle::run(rounds, rest),
        What::Durable { users, rate, seconds } => durable(users, rate, seconds),
        What::Restart { conversations } => restart::run(conversations),
        What::Syscalls { users, seconds } => syscalls(users, seconds),
        What::Floor(orders) => bench::floor::run(&orders),
        What::Peers(orders) => bench::peers::run(&orders),
        What::Routed(orders) => bench::routed::run(&orders),
        What::Latency(orders) => bench::latency::run(&orders),
        What::Opened(orders) => bench::opened::run(&orders),
        What::Beats(orders) => bench::beating::run(&orders),
        What::Generator(orders) => bench::generator::run(&orders),
        What::Million(orders) => bench::million::run(&orders),
        What::Budgets(orders) => bench::budgets::run(&orders),
        What::Performance(orders) => bench::performance::run(&orders),
        What::ProbeRaw(orders) => bench::raw::server::serve(&orders),
        What::ProbeEpoll { listen } => bench::raw::epoll::serve(listen),
        What::ProbeFanout { listen, connections } => bench::raw::fanout::serve(listen, connections),
        What::ProbeHold { listen } => bench::raw::hold::serve(listen),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(trouble) => {
            eprintln!("bench: {trouble}");
            ExitCode::FAILURE
        }
    }
}

/// A run of messages, and what the server spent on it.
struct Spent {
    report: RunResult,
    /// Of all threads, per stored message, while messages were due.
    cpu_us: f64,
    /// System calls of the shard's ring, per stored message.
    calls: f64,
    /// What the shard took from the heap, per stored message; not a number unless the server counts it.
    allocations: f64,
    /// Where it went.
    budget: Budget,
}

fn chat(server: &Process, scratch: &Scratch, mut plan: Plan) -> Result<Spent, Trouble> {
    let mut begun = None;
    let mut spent = [f64::NAN; 3];
    let mut budget = None;
    plan.credentials = TokenKey::of_dev(&scratch.path)?.into();
    plan.scenario.server.url = format!("ws://{}", server.address);
    let metric = |name| server.metric(name);
    let now = || {
        let cpu_us = cpu_ns(server.id()) as f64 / 1e3;
        [cpu_us, metric("ringway_ring_system_calls_total"), metric("ringway_allocations_total")]
    };
    let mut stored = 0;
    let report = run(&plan, &Arc::new(AtomicBool::new(false)), |line| {
        if line.seconds.is_none_or(|seconds| seconds >= plan.scenario.duration().0.as_secs()) {
            return;
        }
        match &begun {
            None => begun = Some((now(), Used::now(server))),
            Some((before, used)) => {
                stored += line.tally.counts.acked;
                let now = now();
                spent = std::array::from_fn(|at| (now[at] - before[at]) / stored as f64);
                budget = Some(Used::now(server).since(used, stored as f64));
            }
        }
    })?;
    if !report.is_clean() {
        return Err(format!("messages were lost, doubled or reordered:\n{report}").into());
    }
    let [cpu_us, calls, allocations] = spent;
    let budget = budget.ok_or("the run was too short to be measured: two seconds at least")?;
    Ok(Spent { report, cpu_us, calls, allocations, budget })
}

fn plan(users: u32, first_user: u64, rate: f64, seconds: u64) -> Plan {
    let nobody = TokenKey::of_secret(b"replaced by the server's", "", "", "");
    let mut plan = Plan::new("", nobody, users);
    plan.scenario.sessions.first_user = first_user;
    plan.scenario.traffic.rate = rate;
    plan.scenario.traffic.duration = Span::s(seconds);
    plan
}

/// One message in flight for each, and more due than can be stored.
fn flood(users: u32, seconds: u64) -> Plan {
    let mut plan = plan(users, 1, 60_000.0, seconds);
    plan.scenario.traffic.in_flight = 1;
    plan.scenario.traffic.drain = Span::s(1);
    plan
}

fn durable(users: u32, rate: f64, seconds: u64) -> Result<(), Trouble> {
    let method = format!(
        "{users} sessions in pairs, 128-byte messages over JSON, embedded storage on this disk (d1: synced before \
         `stored`), server and generator on the same cores, {seconds} s each.\nSaturated: one message in flight per \
         session and more due than can be stored. Then {rate:.0}/s and half of saturation, open loop, latency from when \
         a message was due. Processor time of all the server's threads per stored message."
    );
    println!("{method}\n");
    let scratch = Scratch::new("durable")?;
    let floor = commits_per_second(&scratch.path)?;
    println!("this disk    {floor:>7.0}/s writes of 4 KiB, each synced");
    let server = Process::ringway(&scratch.path, None, &["--shards", "1"])?;
    let flood = flood(users, seconds);
    let saturated = chat(&server, &scratch, flood)?;
    let most = saturated.report.achieved_per_second;
    show("saturated", &saturated, false);
    let at_rate = chat(&server, &scratch, plan(users, 1_000_001, rate, seconds))?;
    show(&format!("at {rate:.0}/s"), &at_rate, true);
    let half = chat(&server, &scratch, plan(users, 2_000_001, (most / 2.0).round(), seconds))?;
    show("at half", &half, true);
    let figures = |spent: &Spent| {
        json!({
            "offered_per_second": spent.report.offered_per_second,
            "stored_per_second": spent.report.achieved_per_second,
            "ack_ms": quantiles(&spent.report.latency.ack),
            "delivery_ms": quantiles(&spent.report.latency.delivery),
            "schedule_error_ms": quantiles(&spent.report.latency.schedule_error),
            "server_cpu_us_per_message": spent.cpu_us,
            "budget": spent.budget.to_json(),
            "generator_cpu_percent": spent.report.generator_cpu_percent,
            "generator_bound": spent.report.generator_bound,
            "errors": spent.report.errors,
        })
    };
    let result = json!({
        "disk_commits_per_second": floor,
        "saturated": figures(&saturated), "at_rate": figures(&at_rate), "at_half": figures(&half),
        "must_per_second": 20_000, "met": at_rate.report.achieved_per_second >= 0.99 * rate || most >= 20_000.0,
    });
    println!("{}", save("durable", &method, "cargo run --release -p bench -- durable", result)?.display());
    Ok(())
}

/// Without the histogram.
fn quantiles(of: &Distribution) -> Distribution {
    Distribution { histogram: String::new(), ..of.clone() }
}

fn show(what: &str, spent: &Spent, latencies: bool) {
    let report = &spent.report;
    print!(
        "{what:<12} {:>7.0}/s stored, server {:.1} us a message, generator {:.0} % of a core",
        report.achieved_per_second, spent.cpu_us, report.generator_cpu_percent
    );
    if latencies {
        let ack = &report.latency.ack;
        print!("; stored p50 {:.2} ms, p99 {:.2} ms, p99.9 {:.2} ms", ack.p50, ack.p99, ack.p99_9);
    }
    println!();
    spent.budget.print(report.generator_cpu_percent * 1e4 / report.achieved_per_second);
}

fn syscalls(users: u32, seconds: u64) -> Result<(), Trouble> {
    let method = format!(
        "{users} sessions in pairs, saturated with one message in flight each, {seconds} s: calls of io_uring_enter by \
         the shard (its own count, in /metrics) per stored message, and what the shard took from the heap, if the server was \
         built with `--features count-allocations`; in a second run of the same users, so that their \
         conversations are in memory.\nA message is a send in, stored and a message out, \
         and its share of marks, ticks and beats."
    );
    println!("{method}\n");
    let scratch = Scratch::new("syscalls")?;
    let server = Process::ringway(&scratch.path, None, &["--shards", "1"])?;
    let flood = flood(users, seconds);
    // Once to bring every conversation into memory, and once to count.
    chat(&server, &scratch, flood.clone())?;
    let saturated = chat(&server, &scratch, flood)?;
    println!(
        "{:.3} system calls per message at {:.0}/s; must be at most 0.1",
        saturated.calls, saturated.report.achieved_per_second
    );
    if saturated.allocations.is_nan() {
        println!(
            "allocations: not counted; `cargo build --release --features count-allocations` makes a server that does"
        );
    } else {
        println!("{:.4} allocations per message; must be 0", saturated.allocations);
    }
    let result = json!({
        "shard_allocations_per_message": saturated.allocations,
        "shard_calls_per_message": saturated.calls, "stored_per_second": saturated.report.achieved_per_second,
        "must": 0.1, "met": saturated.calls <= 0.1,
    });
    println!("{}", save("syscalls", &method, "cargo run --release -p bench -- syscalls", result)?.display());
    Ok(())
}
