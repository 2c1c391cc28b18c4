//! `echo`: processor time per echo, ours over a raw ring's, in pairs of moments that lie side by side.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::json;

use crate::client::{Echoed, Lines, Load};
use crate::figures::{Scratch, bootstrap, median, save};
use crate::server::{Process, Trouble};

/// A pair in which others used more of the machine is dropped.
const FOREIGN_MAX: f64 = 0.05;
/// What the upper bound of the ratio must not exceed.
const MUST: f64 = 1.1;
const PAYLOAD_BYTES: usize = 64;

/// Asks both in turn until there are `rounds` pairs that nobody disturbed, and says what came of it.
pub fn run(connections: u32, rounds: u32, moment_ms: u64) -> Result<(), Trouble> {
    let method = format!(
        "{connections} connections to each, one {PAYLOAD_BYTES}-byte message in flight on each; server on core 0, client \
         on core 1; processor time of the server's threads and of its core's ksoftirqd, from all asleep to all asleep, over echoes.\nA raw io_uring \
         echo of the same bytes without a protocol, and `ringway dev --echo`, in turn, {moment_ms} ms each, after \
         two rounds of warming up; rounds with more than 5 % of the machine used by \
         others are dropped and repeated; ratios paired by round."
    );
    println!("{method}\n");
    let scratch = Scratch::new("echo")?;
    let ringway = Process::ringway(&scratch.path, Some(0), &["--shards", "1", "--echo"])?;
    let probe = Process::raw(&["--slots", "18900"])?;
    let mut client = Client::start(&probe, &ringway, connections, moment_ms)?;
    let (mut ratios, mut kept, mut dropped) = (Vec::new(), Vec::new(), Vec::new());
    println!("round   raw us   ringway us   ratio     raw/s   ringway/s   foreign");
    for round in 1..=rounds * 4 {
        let Round { raw, ringway } = client.next()?;
        let (raw_us, our_us) = (us_per_echo(&raw), us_per_echo(&ringway));
        let foreign = raw.foreign.max(ringway.foreign);
        let is_dropped = foreign > FOREIGN_MAX;
        println!(
            "{round:>5}  {raw_us:>7.3}  {our_us:>11.3}  {:>6.3}  {:>8.0}  {:>10.0}  {:>6.1} %{}",
            our_us / raw_us,
            raw.echoes as f64 / raw.seconds,
            ringway.echoes as f64 / ringway.seconds,
            foreign * 100.0,
            if is_dropped { "  dropped" } else { "" }
        );
        let figures = json!({ "raw_us": raw_us, "ringway_us": our_us, "ratio": our_us / raw_us, "foreign": foreign });
        if is_dropped {
            dropped.push(figures);
        } else {
            ratios.push(our_us / raw_us);
            kept.push(figures);
        }
        if ratios.len() as u32 == rounds {
            break;
        }
    }
    let void = ratios.len() < 5 || dropped.len() * 10 > (ratios.len() + dropped.len()) * 3;
    if ratios.is_empty() {
        return Err("every round was disturbed by others: run it again on a quiet machine".into());
    }
    let (low, high) = bootstrap(&ratios);
    println!("\nratio {:.3}, 95 % bounds {low:.3} to {high:.3}; must be at most {MUST}", median(&ratios));
    if void {
        println!("VOID: too many rounds were dropped; the figures stand only as an indication");
    }
    let result = json!({
        "ratio": median(&ratios), "ratio_low": low, "ratio_high": high, "must": MUST, "met": !void && high <= MUST,
        "void": void, "rounds": kept, "dropped": dropped, "connections": connections,
    });
    let name = format!("echo-{connections}");
    let command = format!("cargo run --release -p bench -- echo --connections {connections}");
    println!("{}", save(&name, &method, &command, result)?.display());
    Ok(())
}

fn us_per_echo(echoed: &Echoed) -> f64 {
    echoed.server_cpu_ns as f64 / echoed.echoes.max(1) as f64 / 1e3
}

/// One moment of each.
#[derive(serde::Serialize, serde::Deserialize)]
struct Round {
    raw: Echoed,
    ringway: Echoed,
}

/// The client in a process of its own, on core 1, which says a round per line. It ends with this value.
struct Client {
    child: Child,
    rounds: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Client {
    fn start(probe: &Process, ringway: &Process, connections: u32, moment_ms: u64) -> Result<Self, Trouble> {
        let mut command = Command::new("taskset");
        command.args(["-c", "1"]).arg(std::env::current_exe()?).arg("client-echo");
        command.args(["--raw", &probe.address.to_string(), "--raw-process", &probe.id().to_string()]);
        command.args(["--ringway", &ringway.address.to_string(), "--ringway-process", &ringway.id().to_string()]);
        command.args(["--connections", &connections.to_string(), "--moment-ms", &moment_ms.to_string()]);
        let mut child = command.stdout(Stdio::piped()).spawn()?;
        let rounds = BufReader::new(child.stdout.take().expect("it was asked for")).lines();
        Ok(Self { child, rounds })
    }

    fn next(&mut self) -> Result<Round, Trouble> {
        let line = self.rounds.next().ok_or("the client ended: what it said is above")??;
        Ok(serde_json::from_str(&line)?)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // It may have ended already, which is as well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whom the client asks, and how.
#[derive(clap::Args)]
pub struct ClientArguments {
    #[arg(long)]
    raw: SocketAddr,
    #[arg(long)]
    raw_process: u32,
    #[arg(long)]
    ringway: SocketAddr,
    #[arg(long)]
    ringway_process: u32,
    #[arg(long)]
    connections: u32,
    #[arg(long)]
    moment_ms: u64,
}

/// The client's process: asks in turn until it is stopped.
pub fn client(arguments: &ClientArguments) -> Result<(), Trouble> {
    const WARM_UP: usize = 2;
    let connections = arguments.connections;
    let open = |address, websocket, server| {
        Lines::open(Load { address, websocket, connections, payload_bytes: PAYLOAD_BYTES, server })
    };
    let mut raw = open(arguments.raw, false, arguments.raw_process)?;
    let mut ringway = open(arguments.ringway, true, arguments.ringway_process)?;
    let moment = Duration::from_millis(arguments.moment_ms);
    for number in 0_usize.. {
        // Always in this order: whoever is asked twice on end has the second moment cheaper.
        let round = Round { raw: raw.echo(moment)?, ringway: ringway.echo(moment)? };
        if number >= WARM_UP {
            println!("{}", serde_json::to_string(&round)?);
        }
    }
    Ok(())
}
