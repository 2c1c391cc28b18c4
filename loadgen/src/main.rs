//! `ringway-loadgen`: simulated users against a server, and what the server kept of what it promised.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use loadgen::key::{KeyError, TokenKey};
use loadgen::report::{Outputs, Recorder, page};
use loadgen::result::RunResult;
use loadgen::run::{Plan, run};
use loadgen::schedule::Arrivals;
use loadgen::verify::verify;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Simulated users for Ringway.
#[derive(Parser)]
#[command(name = "ringway-loadgen", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Pairs of users chat: open loop, latencies from when a message was due.
    ///
    /// Exit code 0: nothing lost, doubled or reordered; 1: something was; 2: it could not run.
    Run(Box<RunArguments>),
    /// Reads back every message that a run saw acknowledged.
    ///
    /// Exit code 0: all there, once; 1: something is missing, changed or doubled; 2: could not be checked.
    Verify(VerifyArguments),
    /// Makes one HTML page of results that `--json` wrote; several are compared.
    ///
    /// Results of one label are repetitions and share a column, with bounds; labels stand against the first; several
    /// commits make a trend. Exit code 0: written; 2: it could not be.
    Report(ReportArguments),
}

#[derive(Args)]
struct ReportArguments {
    /// Results, in the order in which they are to stand.
    #[arg(required = true, value_name = "FILE")]
    results: Vec<PathBuf>,
    /// The page.
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
}

#[derive(Args)]
struct KeyArguments {
    /// Data directory of a `ringway dev` server: signs the users' tokens with its key.
    #[arg(long, value_name = "DIR", conflicts_with = "jwt_key", required_unless_present = "jwt_key")]
    data: Option<PathBuf>,
    /// File with an HS256 secret in base64url that the server knows.
    #[arg(long, value_name = "FILE")]
    jwt_key: Option<PathBuf>,
    /// Name of the key in `--jwt-key`.
    #[arg(long, default_value = "dev")]
    kid: String,
    /// Issuer that the server expects with `--jwt-key`.
    #[arg(long, default_value = "ringway-dev")]
    issuer: String,
    /// Audience that the server expects with `--jwt-key`.
    #[arg(long, default_value = "ringway")]
    audience: String,
}

impl KeyArguments {
    fn key(&self) -> Result<TokenKey, KeyError> {
        match (&self.data, &self.jwt_key) {
            (Some(data), _) => TokenKey::of_dev(data),
            (None, Some(file)) => TokenKey::of_file(file, &self.kid, &self.issuer, &self.audience),
            (None, None) => unreachable!("clap demands one of the two"),
        }
    }
}

#[derive(Args)]
struct RunArguments {
    /// Address of the server.
    #[arg(long, default_value = "ws://127.0.0.1:8800")]
    url: String,
    #[command(flatten)]
    key: KeyArguments,
    /// How many users; an even number.
    #[arg(long, default_value_t = 100)]
    users: u32,
    /// Number of the first user; it talks to the next, and so on in pairs.
    #[arg(long, default_value_t = 1)]
    first_user: u64,
    /// Messages per second, over all users.
    #[arg(long, default_value_t = 100.0)]
    rate: f64,
    /// How long messages fall due: a number and ms, s, m or h.
    #[arg(long, default_value = "10s", value_parser = duration)]
    duration: Duration,
    /// Only open sessions and beat; with --hold.
    #[arg(long)]
    idle: bool,
    /// How long to hold idle sessions.
    #[arg(long, default_value = "30s", value_parser = duration, requires = "idle")]
    hold: Duration,
    /// How fast sessions open.
    #[arg(long, default_value_t = 5_000.0)]
    connections_per_second: f64,
    /// How long to wait for all sessions to open before messages begin anyway.
    #[arg(long, default_value = "60s", value_parser = duration)]
    ramp: Duration,
    /// How long to wait for answers at the end.
    #[arg(long, default_value = "10s", value_parser = duration)]
    drain: Duration,
    /// Bytes of a message.
    #[arg(long, default_value_t = 128)]
    payload_bytes: usize,
    /// Messages in flight per user; more wait, and their latency counts on.
    #[arg(long, default_value_t = 32)]
    in_flight: usize,
    /// How long after reading a read mark is sent.
    #[arg(long, default_value = "1s", value_parser = duration)]
    mark_every: Duration,
    /// Where reconnecting begins to back off; it doubles, with full jitter.
    #[arg(long, default_value = "1s", value_parser = duration)]
    backoff: Duration,
    /// Where backing off ends.
    #[arg(long, default_value = "60s", value_parser = duration)]
    backoff_max: Duration,
    /// Messages evenly spaced instead of independent of each other.
    #[arg(long)]
    constant: bool,
    /// Appends every acknowledged message to this file.
    #[arg(long, value_name = "FILE")]
    acks: Option<PathBuf>,
    /// Threads, each with a ring of its own.
    #[arg(long, default_value_t = 1)]
    threads: u32,
    /// Where chance begins.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Sends every hundredth message again after it was acknowledged: it must keep its seq.
    #[arg(long)]
    resend: bool,
    /// How long due messages wait for each other, to share a turn.
    #[arg(long, default_value = "250us", value_parser = duration)]
    tick: Duration,
    #[command(flatten)]
    outputs: Outputs,
}

#[derive(Args)]
struct VerifyArguments {
    /// The file that `run --acks` wrote.
    #[arg(long, value_name = "FILE")]
    acks: PathBuf,
    /// Address of the server.
    #[arg(long, default_value = "ws://127.0.0.1:8800")]
    url: String,
    #[command(flatten)]
    key: KeyArguments,
    /// Connections that read at once.
    #[arg(long, default_value_t = 4)]
    threads: usize,
}

fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Run(arguments) => run_command(&arguments),
        Command::Verify(arguments) => verify_command(&arguments),
        Command::Report(arguments) => report_command(&arguments),
    }
}

/// It did not even begin, or cannot be told.
fn could_not(error: &dyn std::error::Error) -> ExitCode {
    eprintln!("ringway-loadgen: {error}");
    ExitCode::from(2)
}

fn run_command(arguments: &RunArguments) -> ExitCode {
    let key = match arguments.key.key() {
        Ok(key) => key,
        Err(error) => return could_not(&error),
    };
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        if let Err(error) = signal_hook::flag::register(signal, Arc::clone(&stop)) {
            return could_not(&error);
        }
    }
    let name = if arguments.idle { "idle" } else { "pairs" };
    let mut recorder = match Recorder::start(arguments.outputs.clone(), name, &arguments.url) {
        Ok(recorder) => recorder,
        Err(error) => return could_not(&error),
    };
    let mut result = match run(&arguments.plan(key), &stop, |interval| recorder.take(interval)) {
        Ok(result) => result,
        Err(error) => return could_not(&error),
    };
    if let Err(error) = recorder.finish(&mut result) {
        return could_not(&error);
    }
    if result.passed() { ExitCode::SUCCESS } else { ExitCode::from(1) }
}

impl RunArguments {
    fn plan(&self, key: TokenKey) -> Plan {
        Plan {
            first_user: self.first_user,
            rate: if self.idle { 0.0 } else { self.rate },
            duration: if self.idle { self.hold } else { self.duration },
            connections_per_second: self.connections_per_second,
            ramp_max: self.ramp,
            drain: self.drain,
            payload_bytes: self.payload_bytes,
            in_flight_max: self.in_flight,
            mark_every: self.mark_every,
            backoff: self.backoff,
            backoff_max: self.backoff_max,
            arrivals: if self.constant { Arrivals::Constant } else { Arrivals::Poisson },
            acks: self.acks.clone(),
            threads: self.threads,
            seed: self.seed,
            resend: self.resend,
            tick: self.tick,
            ..Plan::new(&self.url, key, self.users)
        }
    }
}

fn verify_command(arguments: &VerifyArguments) -> ExitCode {
    let key = match arguments.key.key() {
        Ok(key) => key,
        Err(error) => return could_not(&error),
    };
    match verify(&arguments.acks, &arguments.url, &key, arguments.threads) {
        Ok(findings) => {
            println!("{findings}");
            if findings.is_good() { ExitCode::SUCCESS } else { ExitCode::from(1) }
        }
        Err(error) => could_not(&error),
    }
}

fn report_command(arguments: &ReportArguments) -> ExitCode {
    let results: Result<Vec<_>, _> = arguments.results.iter().map(|path| RunResult::read(path)).collect();
    let results = match results {
        Ok(results) => results,
        Err(error) => return could_not(&error),
    };
    match std::fs::write(&arguments.output, page(&results)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => could_not(&error),
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| format!("{text} is no time: write 500ms, 10s, 5m or 1h"))?;
    match unit {
        "us" => Ok(Duration::from_micros(number)),
        "ms" => Ok(Duration::from_millis(number)),
        "" | "s" => Ok(Duration::from_secs(number)),
        "m" => Ok(Duration::from_secs(number * 60)),
        "h" => Ok(Duration::from_secs(number * 3_600)),
        _ => Err(format!("{text} is no time: write 500ms, 10s, 5m or 1h")),
    }
}
