//! `ringway-loadgen`: simulated users against a server, and what the server kept of what it promised.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::{Args, Parser, Subcommand};
use loadgen::agents;
use loadgen::burst::burst_drain;
use loadgen::interval::Interval;
use loadgen::outcome::{COULD_NOT_RUN, InWords, Outcome};
use loadgen::report::{Outputs, Recorder, page};
use loadgen::result::{RunResult, Step};
use loadgen::run::{Plan, run};
use loadgen::saturate::saturate;
use loadgen::scenario::Scenario;
use loadgen::verify::verify;

use crate::arguments::{CredentialArguments, ScenarioArguments, ServerArguments, credentials};

mod arguments;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const EXAMPLES: &str = "\
Examples:
  ringway-loadgen run --data ringway-data --users 1000 --rate 500 --duration 20s --report first.html
  ringway-loadgen saturate --data ringway-data --users 10000 --threshold 'delivery.p99 < 20ms'
  ringway-loadgen help run        all flags of a command, with more examples";
const RUN_EXAMPLES: &str = "\
Examples:
  A server that `ringway dev` started here, and a page of how it was:
    ringway-loadgen run --data ringway-data --users 1000 --rate 500 --duration 20s --report first.html
  A guard for a deployment, against a server elsewhere:
    ringway-loadgen run --url wss://chat.example.org --jwt-key key.pem --kid one --users 200 \\
        --threshold 'delivery.p99 < 20ms' --threshold 'lost == 0' --set abort.on_breach=true
  With tokens as somebody else makes them:
    ringway-loadgen run --url wss://chat.example.org --tokens tokens.txt --users 200
  A scenario of its own: write one down, change it, run it, and read back what was acknowledged:
    ringway-loadgen run --scenario storm --users 2000 --print-scenario >mine.toml
    ringway-loadgen run --scenario mine.toml --data ringway-data --acks acks
    ringway-loadgen verify --acks acks --data ringway-data";
const AGENT_EXAMPLES: &str = "\
Example:
  On each of two machines, and then on a third one or one of them:
    ringway-loadgen agent --listen 192.0.2.1:9000
    ringway-loadgen run --agents 192.0.2.1:9000,192.0.2.2:9000 --url ws://192.0.2.9:8800 --jwt-key key --users 10000";
const SATURATE_EXAMPLES: &str = "\
Examples:
  ringway-loadgen saturate --data ringway-data --users 10000 --threshold 'delivery.p99 < 20ms' --report capacity.html
  Between two rates, ten seconds each:
    ringway-loadgen saturate --data ringway-data --users 1000 --threshold 'delivery.p99 < 20ms' \\
        --set saturate.from=2000 --set saturate.to=50000 --set saturate.probe=10s";
const BURST_EXAMPLES: &str = "\
Example:
  ringway-loadgen burst-drain --data ringway-data --users 1000 --server-pid $(pgrep -x ringway)";
const VERIFY_EXAMPLES: &str = "\
Example:
  ringway-loadgen run --data ringway-data --acks acks
  ringway-loadgen verify --acks acks --data ringway-data";
const REPORT_EXAMPLES: &str = "\
Example:
  ringway-loadgen report before-1.json before-2.json after-1.json after-2.json -o compared.html";

/// Simulated users for Ringway.
#[derive(Parser)]
#[command(name = "ringway-loadgen", version, after_help = EXAMPLES)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Users chat as a scenario says: open loop, latencies from when a message was due.
    ///
    /// Exit code 0: all good; 1: messages were lost, doubled or reordered, or the server forgot what clients already had;
    /// 2: it could not run; 3: a threshold does not hold; 4: messages were never answered, and whether they were kept is
    /// unknown; 5: it was told to stop; 6: less was measured than was asked for.
    #[command(after_long_help = RUN_EXAMPLES)]
    Run(Box<RunArguments>),
    /// Does a part of runs that a coordinator on another machine begins (`run --agents`).
    #[command(after_long_help = AGENT_EXAMPLES)]
    Agent(AgentArguments),
    /// Finds the highest rate that meets the thresholds, and measures at 10, 25, 50, 75 and 90 % of it.
    ///
    /// Exit codes as of `run`, for the highest good rate; 2 if there is none.
    #[command(after_long_help = SATURATE_EXAMPLES)]
    Saturate(Box<RunArguments>),
    /// Stops the server, puts one message into each session's socket, lets it go on, and counts its processor time.
    ///
    /// Exit code 0: counted, and nothing lost, doubled or reordered; 1: something was; 2: it could not run.
    #[command(after_long_help = BURST_EXAMPLES)]
    BurstDrain(Box<BurstArguments>),
    /// Reads back every message that a run saw acknowledged.
    ///
    /// Exit code 0: all there, once; 1: something is missing, changed or doubled; 2: could not be checked; 4: all there,
    /// but the run also left messages without an answer.
    #[command(after_long_help = VERIFY_EXAMPLES)]
    Verify(Box<VerifyArguments>),
    /// Makes one HTML page of results that `--json` wrote; several are compared.
    ///
    /// Results of one label are repetitions and share a column, with bounds; labels stand against the first; several
    /// commits make a trend. Exit code 0: written; 2: it could not be.
    #[command(after_long_help = REPORT_EXAMPLES)]
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
struct RunArguments {
    #[command(flatten)]
    scenario: ScenarioArguments,
    /// Writes the scenario as it would run, and does not run it.
    #[arg(long)]
    print_scenario: bool,
    /// Agents that share the run: addresses with ports, separated by commas.
    #[arg(long, value_name = "A,B", value_delimiter = ',')]
    agents: Vec<String>,
    /// Appends every acknowledged message to this file, of all agents too, and at the end those without an answer.
    #[arg(long, value_name = "FILE")]
    acks: Option<PathBuf>,
    #[command(flatten)]
    outputs: Outputs,
}

#[derive(Args)]
struct AgentArguments {
    /// Where to wait for coordinators. Nothing is encrypted, and whoever connects is obeyed: not on a public address.
    #[arg(long, value_name = "ADDRESS")]
    listen: SocketAddr,
}

#[derive(Args)]
struct BurstArguments {
    #[command(flatten)]
    scenario: ScenarioArguments,
    /// The server's process, on this machine.
    #[arg(long, value_name = "PID")]
    server_pid: Option<u32>,
    /// How many bursts are counted.
    #[arg(long, default_value_t = 5)]
    bursts: u32,
    /// Writes the result to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Args)]
struct VerifyArguments {
    /// The file that `run --acks` wrote.
    #[arg(long, value_name = "FILE")]
    acks: PathBuf,
    #[command(flatten)]
    server: ServerArguments,
    #[command(flatten)]
    credentials: CredentialArguments,
    /// Connections that read at once.
    #[arg(long, default_value_t = 4)]
    threads: usize,
}

type Failure = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    let code = match Arguments::parse().command {
        Command::Run(arguments) => run_command(&arguments),
        Command::Agent(arguments) => agent_command(&arguments),
        Command::Saturate(arguments) => saturate_command(&arguments),
        Command::BurstDrain(arguments) => burst_command(&arguments),
        Command::Report(arguments) => report_command(&arguments),
        Command::Verify(arguments) => verify_command(*arguments),
    };
    ExitCode::from(code.unwrap_or_else(|error| {
        eprintln!("ringway-loadgen: {error}");
        COULD_NOT_RUN
    }))
}

fn run_command(arguments: &RunArguments) -> Result<u8, Failure> {
    let scenario = arguments.scenario.scenario()?;
    if arguments.print_scenario {
        print!("{}", scenario.to_toml());
        return Ok(0);
    }
    let (plan, mut recorder) = prepare(scenario, arguments)?;
    let stop = stop_on_signals()?;
    let result = if arguments.agents.is_empty() {
        run(&plan, &stop, |interval| recorder.take(interval))?
    } else {
        agents::run(&plan, &arguments.agents, &stop, |interval| recorder.take(interval))?
    };
    conclude(result, recorder)
}

/// What is to be run, and who follows it.
fn prepare(mut scenario: Scenario, arguments: &RunArguments) -> Result<(Plan, Recorder), Failure> {
    let mut outputs = arguments.outputs.clone();
    outputs.server_pid = outputs.server_pid.or(scenario.server.pid);
    outputs.server_metrics = outputs.server_metrics.or_else(|| scenario.server.metrics.clone());
    scenario.server.pid = outputs.server_pid;
    let recorder = Recorder::start(outputs, &scenario.name, &scenario.server.url)?;
    let credentials = credentials(&scenario)?;
    Ok((Plan { scenario, credentials, acks: arguments.acks.clone() }, recorder))
}

fn stop_on_signals() -> Result<Arc<AtomicBool>, Failure> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }
    Ok(stop)
}

fn conclude(mut result: RunResult, recorder: Recorder) -> Result<u8, Failure> {
    recorder.finish(&mut result)?;
    eprintln!("\n{}", InWords(&result));
    Ok(Outcome::of(&result).code())
}

fn agent_command(arguments: &AgentArguments) -> Result<u8, Failure> {
    let listener = TcpListener::bind(arguments.listen)?;
    eprintln!("ready for coordinators at {}", listener.local_addr()?);
    agents::serve(&listener, &*stop_on_signals()?)?;
    Ok(0)
}

fn saturate_command(arguments: &RunArguments) -> Result<u8, Failure> {
    let (plan, mut recorder) = prepare(arguments.scenario.scenario()?, arguments)?;
    let step = |step: &Step| {
        let what = step.fraction.map_or_else(|| step.kind.clone(), |part| format!("at {:.0} %", part * 100.0));
        let why = step.breached.as_deref().unwrap_or("good");
        let bound = if step.generator_bound { " (generator-bound)" } else { "" };
        let (ack, delivery) = (&step.latency.ack, &step.latency.delivery);
        eprintln!(
            "{what:<8} {:>8.0}/s offered {:>8.0}/s stored  ack p50 {:.2} ms p99 {:.2} ms  delivery p99 {:.2} ms  {why}{bound}",
            step.offered_per_second, step.achieved_per_second, ack.p50, ack.p99, delivery.p99
        );
    };
    // One run after the other, each with a clock of its own; whoever follows them sees one time.
    let (mut before, mut last) = (0.0, 0.0);
    let follow = |interval: &Interval| {
        if interval.at < last {
            before += last;
        }
        last = interval.at;
        recorder.take(&Interval { at: before + interval.at, ..interval.clone() });
    };
    let result = saturate(&plan, &stop_on_signals()?, follow, step)?;
    conclude(result, recorder)
}

fn burst_command(arguments: &BurstArguments) -> Result<u8, Failure> {
    let mut scenario = arguments.scenario.scenario()?;
    scenario.server.pid = arguments.server_pid.or(scenario.server.pid);
    let credentials = credentials(&scenario)?;
    let plan = Plan { scenario, credentials, acks: None };
    let drained = burst_drain(&plan, arguments.bursts, &*stop_on_signals()?)?;
    println!("{drained}");
    if let Some(path) = &arguments.json {
        std::fs::write(path, serde_json::to_string_pretty(&drained)? + "\n")?;
    }
    Ok(u8::from(drained.lost + drained.doubled + drained.reordered > 0))
}

fn report_command(arguments: &ReportArguments) -> Result<u8, Failure> {
    let results: Result<Vec<_>, _> = arguments.results.iter().map(|path| RunResult::read(path)).collect();
    let output = &arguments.output;
    std::fs::write(output, page(&results?)).map_err(|error| format!("{}: {error}", output.display()))?;
    Ok(0)
}

fn verify_command(arguments: VerifyArguments) -> Result<u8, Failure> {
    let scenario = ScenarioArguments::of(arguments.server, arguments.credentials).scenario()?;
    let findings = verify(&arguments.acks, &scenario, &credentials(&scenario)?, arguments.threads)?;
    println!("{findings}");
    Ok(findings.code())
}
