//! `ringway-loadgen` as a process of its own against the raw probe; and `bench generator`: what it costs itself.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use clap::Args;
use loadgen::result::RunResult;
use serde_json::{Map, Value, json};
use wire::upgrade::{UpgradeRequest, write_upgrade_request};
use wire::writer::write_frame;

use crate::client::{Lines, Load};
use crate::contest::{self, Sample};
use crate::crowd::{Crowd, to_one};
use crate::figures::{Scratch, field, save, slab_bytes};
use crate::loads::beats::Beats;
use crate::loads::opening::{self, Opening, Step};
use crate::server::{Process, Trouble, beside, pinned, softirq_ns};

/// Its process, following a scenario.
pub struct Generator {
    child: Child,
    seconds: Receiver<Value>,
    deadline: Instant,
    json: std::path::PathBuf,
}

/// What the generator said.
pub enum Said {
    /// How it was in the last second.
    Second(Value),
    Nothing,
    Ended,
}

impl Drop for Generator {
    fn drop(&mut self) {
        // It may have ended already, which is as well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Generator {
    /// Starts it against a WebSocket that echoes. `flags` are those of `ringway-loadgen run`; it must have ended
    /// within `patience`.
    pub fn start(
        server: &Process,
        scratch: &Scratch,
        core: Option<usize>,
        flags: &[String],
        patience: Duration,
    ) -> Result<Self, Trouble> {
        let json = scratch.path.join("result.json");
        let mut command = pinned(&beside("ringway-loadgen", "cargo build --release -p loadgen")?, core);
        // Pages of 4 KiB: with huge ones a figure of its memory would be how those were rounded.
        command.env("MIMALLOC_ALLOW_THP", "0");
        command.args(["run", "--set", "protocol=echo", "--export-jsonl", "-", "--url"]);
        command.arg(format!("ws://{}/echo", server.address)).arg("--json").arg(&json).args(flags);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let lines = BufReader::new(child.stdout.take().expect("it was asked for")).lines();
        let (told, seconds) = channel();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                // Whoever listened may have gone first.
                let _ = told.send(serde_json::from_str(&line).unwrap_or_default());
            }
        });
        Ok(Self { child, seconds, deadline: Instant::now() + patience, json })
    }

    /// Its process id: that of `taskset` before, which becomes it.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it says of its next second; none when it has ended.
    pub fn next_second(&mut self) -> Result<Option<Value>, Trouble> {
        match self.next_within(self.deadline.saturating_duration_since(Instant::now())) {
            Said::Second(second) => Ok(Some(second)),
            Said::Ended => Ok(None),
            Said::Nothing => Err("the generator did not end in its time".into()),
        }
    }

    /// The same, if it says anything within such a time.
    pub fn next_within(&mut self, patience: Duration) -> Said {
        match self.seconds.recv_timeout(patience) {
            Ok(second) => Said::Second(second),
            Err(RecvTimeoutError::Disconnected) => Said::Ended,
            Err(RecvTimeoutError::Timeout) => Said::Nothing,
        }
    }

    /// Until all are open, or it begins without the others. The last second that it told of.
    pub fn until_begun(&mut self) -> Result<Value, Trouble> {
        loop {
            let second = self.next_second()?.ok_or("the generator ended before its sessions were open")?;
            if second["phase"] != "opening" {
                return Ok(second);
            }
        }
    }

    /// To its end.
    pub fn finish(mut self) -> Result<RunResult, Trouble> {
        while self.next_second()?.is_some() {}
        self.child.wait()?;
        Ok(RunResult::read(&self.json)?)
    }
}

impl Process {
    /// The raw probe as a WebSocket that echoes, for so many connections at one address.
    pub fn websocket_probe(connections: u32) -> Result<(Self, u32), Trouble> {
        /// A tenth of each table, and what is on the way while a ring hands over to the next.
        const PER_RING: u32 = 15_900;
        let rings = connections.div_ceil(PER_RING).max(1);
        let rings_text = rings.to_string();
        let server = Self::raw(&["--serve", "websocket", "--one-address", "--slots", "18900", "--rings", &rings_text])?;
        Ok((server, rings))
    }
}

#[derive(Debug, Clone, Args)]
pub struct Orders {
    /// Busy connections.
    #[arg(long, default_value_t = 1_000)]
    pub connections: u32,
    /// Echoes per second of the steady part.
    #[arg(long, default_value_t = 20_000)]
    pub rate: u32,
    /// Idle sessions, from which to which their memory is read.
    #[arg(long, value_delimiter = ',', default_values_t = [5_000, 15_000])]
    pub idle: Vec<u32>,
    #[arg(long, default_value_t = 5)]
    pub rounds: u32,
    /// Of each measurement.
    #[arg(long, default_value_t = 3)]
    pub seconds: u64,
}

const PAYLOAD_BYTES: usize = 128;
/// How long due messages wait for each other, on both sides.
const TICK: Duration = Duration::from_micros(250);

/// Measures it.
pub fn run(orders: &Orders) -> Result<(), Trouble> {
    crate::cpu::pin(1);
    let method = format!(
        "ringway-loadgen with one thread on core 1 against the raw probe as a WebSocket that echoes, on core 0: {PAYLOAD_BYTES} \
         bytes on {} connections, and in turn the raw client of the probes, which keeps no books, no schedule of each \
         message and no histogram. Steady: {}/s, those due within {} us together. Saturated: one in flight on each connection, \
         and for ringway-loadgen as many due as the raw client had echoed. {} s each; processor time of the client's side, \
         with that of its core's ksoftirqd, per echo.\nMemory: Pss_Anon and slab caches while {:?} sessions are open and idle, for \
         3 s; the differences by session. The kernel's are of both ends.",
        orders.connections,
        orders.rate,
        TICK.as_micros(),
        orders.seconds,
        orders.idle,
    );
    println!("{method}\n");
    let scratch = Scratch::new("generator")?;
    let steady = steady(orders, &scratch)?;
    let saturated = saturated(orders, &scratch)?;
    let mut result = memory(orders, &scratch)?;
    result["connections"] = orders.connections.into();
    result["void"] = (steady["void"] == true || saturated["void"] == true).into();
    result["steady"] = steady;
    result["saturated"] = saturated;
    println!("{}", save("generator", &method, "cargo run --release -p bench -- generator", result)?.display());
    Ok(())
}

const SIDES: [&str; 2] = ["raw client", "ringway-loadgen"];

/// What both sides cost, and their ratio.
fn compared(outcome: &contest::Outcome) -> Value {
    outcome.show(SIDES[0]);
    let all = outcome.to_json(&SIDES[..1]);
    json!({
        "client_us": all["sides"][0]["us"], "generator_us": all["sides"][1]["us"],
        "client_per_second": all["sides"][0]["per_second"], "generator_per_second": all["sides"][1]["per_second"],
        "over": all["sides"][1]["over"][SIDES[0]], "void": all["void"],
    })
}

/// The client's processor time is what is measured here.
fn of_client(sample: Sample) -> Result<Sample, Trouble> {
    let us = sample.more.get("client_us").and_then(Value::as_f64).ok_or("the client was not measured")?;
    Ok(Sample { us, ..sample })
}

fn steady(orders: &Orders, scratch: &Scratch) -> Result<Value, Trouble> {
    println!("steady, {}/s", orders.rate);
    let (server, _) = Process::websocket_probe(2 * orders.connections)?;
    let mut crowd = Crowd::new(orders.connections)?;
    opening::open(&server, &mut crowd, &to_one(server.address), &mut Upgrades(server.address.to_string()))?;
    let mut frame = Vec::new();
    write_frame(&mut frame, wire::writer::Opcode::Text, Some([1, 2, 3, 4]), &[b'x'; PAYLOAD_BYTES]);
    let mut beats = Beats::new(orders.connections, &mut loadgen::random::Random::new(1, 1)).together(TICK);
    let outcome = contest::run(&SIDES, 0, orders.rounds, |side| {
        if side == 0 {
            let rate = f64::from(orders.rate);
            // A server's frame carries no mask.
            return of_client(beats.measure(&server, &mut crowd, &frame, frame.len() - 4, rate, orders.seconds)?);
        }
        generator_echoes(orders, &server, scratch, f64::from(orders.rate), 32)
    })?;
    Ok(compared(&outcome))
}

/// Connections that want no more than to be WebSockets. The answer is shorter than any piece that a network cuts.
struct Upgrades(String);

impl Opening for Upgrades {
    fn first(&mut self, _: u32, out: &mut Vec<u8>) {
        let nonce = *b"a raw client who";
        let upgrade = UpgradeRequest { host: &self.0, target: "/echo", nonce, subprotocol: None, bearer: None };
        write_upgrade_request(out, &upgrade);
    }

    fn heard(&mut self, _: u32, bytes: &[u8]) -> Result<Step, Trouble> {
        if bytes.starts_with(b"HTTP/1.1 101") && bytes.ends_with(b"\r\n\r\n") {
            return Ok(Step::IsOpen);
        }
        Err(String::from_utf8_lossy(bytes).into_owned().into())
    }

    fn second(&mut self, _: u32, _: &mut Vec<u8>) {}
}

fn saturated(orders: &Orders, scratch: &Scratch) -> Result<Value, Trouble> {
    println!("saturated");
    let (server, _) = Process::websocket_probe(2 * orders.connections)?;
    let (address, connections) = (server.address, orders.connections);
    let load = Load { address, websocket: true, connections, payload_bytes: PAYLOAD_BYTES, server: server.id() };
    let mut lines = Lines::open(load)?;
    let mut rate = 0.0;
    let outcome = contest::run(&SIDES, 0, orders.rounds, |side| {
        if side == 1 {
            return generator_echoes(orders, &server, scratch, rate, 1);
        }
        let echoed = lines.echo(Duration::from_secs(orders.seconds))?;
        rate = (echoed.echoes as f64 / echoed.spent.seconds).round();
        of_client(Sample::of(&echoed.spent, echoed.echoes))
    })?;
    Ok(compared(&outcome))
}

/// ringway-loadgen for as long; the processor time is its own, while messages were due.
fn generator_echoes(
    orders: &Orders,
    server: &Process,
    scratch: &Scratch,
    rate: f64,
    in_flight: u32,
) -> Result<Sample, Trouble> {
    let flags = [
        format!("--users={}", orders.connections),
        format!("--rate={rate}"),
        format!("--duration={}s", orders.seconds),
        format!("--payload-bytes={PAYLOAD_BYTES}"),
        format!("--in-flight={in_flight}"),
        format!("--tick={}us", TICK.as_micros()),
        "--drain=1s".to_owned(),
    ];
    let mut generator = Generator::start(server, scratch, Some(1), &flags, Duration::from_secs(60 + orders.seconds))?;
    generator.until_begun()?;
    let stretch = crate::crowd::Stretch::begin(server).beside(generator.id());
    let softirq = softirq_ns(1);
    let result = generator.finish()?;
    let (softirq, spent) = (softirq_ns(1) - softirq, stretch.end());
    let answered = result.achieved_per_second * result.seconds;
    if answered < 1.0 || !result.is_clean() {
        return Err(format!("the echoes were not as they should be:\n{result}").into());
    }
    let own_ns = result.generator_cpu_percent / 100.0 * result.seconds * 1e9;
    let mut sample = Sample::of(&spent, answered as u64);
    sample.more.insert("schedule_error_p99_ms".to_owned(), result.latency.schedule_error.p99.into());
    Ok(Sample { us: (own_ns + softirq as f64) / answered / 1e3, per_second: result.achieved_per_second, ..sample })
}

/// How the names of caches begin that connections fill; others grow with anything.
const CACHES: [&str; 9] =
    ["TCP", "sock_inode_cache", "filp", "dentry", "lsm_", "io_kiocb", "eventpoll_", "skbuff_", "kmalloc-"];

/// What one process holds of sessions that are open and idle.
pub struct Idle {
    pub generator_bytes: f64,
    pub server_bytes: f64,
    pub slabs: std::collections::BTreeMap<String, f64>,
}

impl Idle {
    /// As it is now.
    pub fn now(generator: u32, server: &Process) -> Self {
        Self {
            generator_bytes: field(&format!("/proc/{generator}/smaps_rollup"), "Pss_Anon:") as f64 * 1_024.0,
            server_bytes: server.anonymous_kib() as f64 * 1_024.0,
            slabs: slab_bytes(),
        }
    }

    /// Caches of connections that have grown since `before`, by how much per session; what is below eight bytes is noise.
    pub fn caches_since(&self, before: &Self, sessions: f64) -> Map<String, Value> {
        let more = |(cache, bytes): (&String, &f64)| {
            let more = (bytes - before.slabs.get(cache).copied().unwrap_or(0.0)) / sessions;
            let is_theirs = CACHES.iter().any(|name| cache.starts_with(name)) && !cache.contains("rcl");
            (is_theirs && more >= 8.0).then(|| (cache.clone(), more.into()))
        };
        self.slabs.iter().filter_map(more).collect()
    }
}

fn memory(orders: &Orders, scratch: &Scratch) -> Result<Value, Trouble> {
    let mut points = Vec::new();
    for &sessions in &orders.idle {
        let (server, _) = Process::websocket_probe(sessions)?;
        let flags = [
            "--scenario=idle".to_owned(),
            format!("--users={sessions}"),
            "--duration=5s".to_owned(),
            "--drain=1s".to_owned(),
        ];
        let mut generator = Generator::start(&server, scratch, Some(1), &flags, Duration::from_mins(2))?;
        generator.until_begun()?;
        std::thread::sleep(Duration::from_secs(3));
        points.push((f64::from(sessions), Idle::now(generator.id(), &server)));
        let result = generator.finish()?;
        if result.open != sessions || result.counts.cut > 0 {
            return Err(format!("not all of {sessions} were open:\n{result}").into());
        }
    }
    let [(fewer, before), .., (more, after)] = &points[..] else {
        return Err("two numbers of idle sessions are needed".into());
    };
    let sessions = more - fewer;
    let user = (after.generator_bytes - before.generator_bytes) / sessions;
    let caches = after.caches_since(before, sessions);
    let kernel: f64 = caches.values().filter_map(Value::as_f64).sum();
    println!("idle: {user:.0} bytes of user space and, of both ends, {kernel:.0} of the kernel per session");
    Ok(json!({
        "user_bytes_per_session": user, "kernel_bytes_per_session": kernel, "kernel_by_cache": caches,
        "fixed_bytes": before.generator_bytes - user * fewer,
    }))
}
