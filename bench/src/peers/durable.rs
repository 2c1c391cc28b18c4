//! T6 beside other people's servers that keep messages: the load generator's pairs of users on each, in turn.

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use loadgen::credentials::Credentials;
use loadgen::key::TokenKey;
use loadgen::result::{Distribution, RunResult};
use loadgen::run::Plan;
use loadgen::scenario::Protocol;
use loadgen::span::Span;
use serde_json::json;

use super::ejabberd::{self, Ejabberd};
use super::{Orders, Peer, Peers, install};
use crate::contest::{self, Outcome, Sample};
use crate::crowd::Stretch;
use crate::figures::{Scratch, median, save};
use crate::server::{Process, Trouble, pinned, two_free_ports};

/// So fast sessions open on all sides: none has to be quicker than that.
const SESSIONS_PER_SECOND: f64 = 1_000.0;
/// More than any of them takes, each user with one message in flight.
const MORE_THAN_ANY: f64 = 60_000.0;
/// At the beginning and at the end of a run, whose processor time does not count.
const APART: u64 = 2;

/// A server with all its processes, and what is said to it.
struct Side {
    servers: Servers,
    plan: Plan,
}

enum Servers {
    One(Process),
    Two(Box<Ejabberd>),
}

impl Servers {
    /// Of each of its processes that others do not come from.
    fn ids(&self) -> Vec<u32> {
        match self {
            Self::One(server) => vec![server.id()],
            Self::Two(both) => vec![both.ejabberd.id(), both.postgres.0.id()],
        }
    }
}

pub(super) fn run(orders: &Orders, peers: &Peers) -> Result<(), Trouble> {
    let users = orders.connections / 2 * 2;
    let load = if orders.rate > 0.0 {
        format!("{:.0} messages of 128 bytes a second over all, open loop, latency from when one was due", orders.rate)
    } else {
        "one message of 128 bytes in flight for each, and more due than any server takes".to_owned()
    };
    let method = format!(
        "{users} users in pairs, {load}; the same generator on all sides (`ringway-loadgen`), over WebSocket. All store on this disk and \
         sync before they acknowledge. The server's processes on core 0, the generator on core 1; processor time of all of the \
         server's processes and of its core's ksoftirqd per acknowledged message, {} s a measurement, sessions being open for a second \
         already. What is lost, doubled, reordered or not acknowledged ends a server's part.",
        orders.seconds
    );
    println!("{method}\n");
    let scratch = Scratch::new("peers-durable")?;
    let (mut names, mut sides, mut failed) =
        (vec!["ringway"], vec![ringway(&scratch.path, orders, users)?], Vec::new());
    for peer in &peers.had {
        match start(peer, &scratch.path, orders, users) {
            Ok(side) => {
                sides.push(side);
                names.push(peer.name);
            }
            Err(trouble) => {
                println!("!!! {} is absent: {trouble}", peer.name);
                failed.push(json!({ "name": peer.name, "absent": trouble.to_string() }));
            }
        }
    }
    let outcome = contest::run(&names, 1, orders.rounds, |side| measure(&sides[side]))?;
    outcome.show("ringway");
    if orders.rate > 0.0 {
        show_latencies(&outcome);
    }
    let mut result = outcome.to_json(&["ringway"]);
    result["connections"] = users.into();
    result["offered_per_second"] = if orders.rate > 0.0 { json!(orders.rate) } else { json!(null) };
    result["peers"] = peers.to_json();
    result["did_not_start"] = failed.into();
    let command =
        format!("cargo run --release -p bench -- peers durable --connections {users} --rate {:.0}", orders.rate);
    let load = if orders.rate > 0.0 { format!("{:.0}", orders.rate) } else { "saturated".to_owned() };
    println!("{}", save(&format!("peers-durable-{load}"), &method, &command, result)?.display());
    Ok(())
}

fn ringway(scratch: &Path, orders: &Orders, users: u32) -> Result<Side, Trouble> {
    let data = scratch.join("ringway");
    let server = Process::ringway(&data, Some(0), &["--shards", "1"])?;
    let mut plan = plan(Protocol::Ringway, &server, orders, users);
    plan.credentials = TokenKey::of_dev(&data)?.into();
    Ok(Side { servers: Servers::One(server), plan })
}

fn start(peer: &Peer, scratch: &Path, orders: &Orders, users: u32) -> Result<Side, Trouble> {
    if peer.name == "ejabberd" {
        let both = ejabberd::start(scratch, users)?;
        let mut plan = plan(Protocol::Xmpp, &both.ejabberd, orders, users);
        plan.scenario.server.domain = Some("localhost".to_owned());
        return Ok(Side { servers: Servers::Two(Box::new(both)), plan });
    }
    let (address, own) = (two_free_ports()?, two_free_ports()?);
    let mut command = pinned((peer.command)(address).get_program().as_ref(), Some(0));
    command.arg("-c").arg(install::configurations().join("nats.conf")).arg("-sd").arg(scratch.join("nats"));
    command.args(["-p", &own.port().to_string()]).env("WEBSOCKET_PORT", address.port().to_string());
    command.stderr(Stdio::null());
    let server = Process::of_peer(command, address)?;
    let plan = plan(Protocol::JetStream, &server, orders, users);
    Ok(Side { servers: Servers::One(server), plan })
}

fn plan(protocol: Protocol, server: &Process, orders: &Orders, users: u32) -> Plan {
    let mut plan = Plan::new(&format!("ws://{}", server.address), Credentials::None, users);
    plan.scenario.protocol = protocol;
    plan.scenario.sessions.connections_per_second = SESSIONS_PER_SECOND;
    let traffic = &mut plan.scenario.traffic;
    traffic.rate = orders.rate;
    traffic.duration = Span::s(orders.seconds + APART);
    if orders.rate <= 0.0 {
        (traffic.rate, traffic.in_flight, traffic.drain) = (MORE_THAN_ANY, 1, Span::s(1));
    }
    plan
}

/// One run, from opening all sessions to the last answer; what counts is the middle of it.
fn measure(side: &Side) -> Result<Sample, Trouble> {
    let ids = side.servers.ids();
    let duration = side.plan.scenario.duration().0.as_secs();
    // The generator tells once a second: what it counted between two of these moments, and what was used meanwhile.
    let (mut begun, mut ended) = (None, None);
    let result = loadgen::run::run(&side.plan, &Arc::new(AtomicBool::new(false)), |interval| {
        let Some(seconds) = interval.seconds.filter(|seconds| *seconds < duration) else { return };
        let acked = interval.total.acked;
        match &begun {
            None => begun = Some((Stretch::of(&ids), acked)),
            Some((stretch, before)) if seconds + 1 == duration => ended = Some((stretch.end(), acked - before)),
            Some(_) => {}
        }
    })?;
    must_be_whole(&result)?;
    let (spent, messages) = ended.ok_or("the run was too short to be measured: two seconds at least")?;
    let mut sample = Sample::of(&spent, messages);
    for (name, of) in [("ack_ms", &result.latency.ack), ("delivery_ms", &result.latency.delivery)] {
        sample.more.insert(name.to_owned(), json!(Distribution { histogram: String::new(), ..of.clone() }));
    }
    sample.more.insert("offered_per_second".to_owned(), result.offered_per_second.into());
    sample.more.insert("generator_bound".to_owned(), result.generator_bound.into());
    Ok(sample)
}

fn must_be_whole(result: &RunResult) -> Result<(), Trouble> {
    let counts = &result.counts;
    if result.is_clean() && counts.unanswered == 0 && counts.failed == 0 && result.open == result.users {
        return Ok(());
    }
    Err(format!("not all was opened, acknowledged and delivered, once and in order:\n{result}").into())
}

/// Medians of the rounds' quantiles.
fn show_latencies(outcome: &Outcome) {
    println!("\n{:<20} {:>22} {:>22}", "ms", "acknowledged p50, p99", "delivered p50, p99");
    for side in &outcome.sides {
        let of = |name: &str, quantile: &str| {
            let values: Vec<_> =
                side.samples.iter().filter_map(|sample| sample.more[name][quantile].as_f64()).collect();
            median(&values)
        };
        let both = |name: &str| format!("{:.2}, {:.2}", of(name, "p50"), of(name, "p99"));
        println!("{:<20} {:>22} {:>22}", side.name, both("ack_ms"), both("delivery_ms"));
    }
}
