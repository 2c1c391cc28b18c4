//! `sim`: runs worlds by their seeds and says what broke.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use sim::bug::Bug;
use sim::checker::Violation;
use sim::world::{Figures, World};

/// Runs simulated worlds and holds what their clients saw against the promises.
#[derive(Debug, Parser)]
#[command(name = "sim")]
struct Arguments {
    /// How many seeds to run.
    #[arg(long, default_value_t = 1_000)]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Plant this bug (needs the feature `planted-bugs`).
    #[arg(long, value_parser = bug)]
    bug: Option<Bug>,
    /// Plant each bug in turn; each must be found within the seeds.
    #[arg(long)]
    all_bugs: bool,
    /// Say everything that happens.
    #[arg(long)]
    trace: bool,
}

fn bug(name: &str) -> Result<Bug, String> {
    let names: Vec<_> = Bug::ALL.iter().map(|bug| bug.name()).collect();
    if cfg!(not(feature = "planted-bugs")) {
        return Err("bugs are compiled in only with `--features planted-bugs`".into());
    }
    Bug::named(name).ok_or_else(|| format!("the bugs are: {}", names.join(", ")))
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    std::panic::set_hook(Box::new(|_| {}));
    if arguments.all_bugs { find_all(&arguments) } else { run(&arguments) }
}

/// Runs one world; a panic is a violation like any other.
fn world(seed: u64, bug: Option<Bug>, trace: bool) -> (Result<(), Violation>, Figures) {
    let mut figures = Figures::default();
    let verdict = catch_unwind(AssertUnwindSafe(|| {
        let mut world = World::new(seed, bug);
        world.trace = trace;
        let verdict = world.run();
        figures = world.figures;
        verdict
    }));
    let verdict = verdict.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Err(Violation(format!("panic: {}", text.unwrap_or_default())))
    });
    (verdict, figures)
}

fn run(arguments: &Arguments) -> ExitCode {
    let started = Instant::now();
    let mut all = Figures::default();
    let to = arguments.from + arguments.seeds;
    for seed in arguments.from..to {
        let (verdict, figures) = world(seed, arguments.bug, arguments.trace);
        all.add(&figures);
        if let Err(violation) = verdict {
            let bug = arguments.bug.map_or(String::new(), |bug| format!(" --bug {}", bug.name()));
            let features = if arguments.bug.is_some() { " --features planted-bugs" } else { "" };
            println!("seed {seed}: {violation}");
            println!("replay: cargo run --release -p sim{features} -- --seeds 1 --from {seed}{bug} --trace");
            return ExitCode::FAILURE;
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    println!(
        "{} seeds from {} without a violation: {:.0} seeds/s, {} messages, {} frames, {} turns, {} crashes",
        arguments.seeds,
        arguments.from,
        arguments.seeds as f64 / seconds,
        all.messages,
        all.frames,
        all.turns,
        all.crashes,
    );
    ExitCode::SUCCESS
}

fn find_all(arguments: &Arguments) -> ExitCode {
    if cfg!(not(feature = "planted-bugs")) {
        println!("bugs are compiled in only with `--features planted-bugs`");
        return ExitCode::FAILURE;
    }
    let mut missed = 0;
    for &bug in Bug::ALL {
        let seeds = arguments.from..arguments.from + arguments.seeds;
        let found = seeds.clone().find_map(|seed| Some((seed, world(seed, Some(bug), false).0.err()?)));
        match found {
            Some((seed, violation)) => {
                let text: String = violation.0.chars().take(150).collect();
                println!("{:32} found by seed {seed}, number {}: {text}", bug.name(), seed - arguments.from + 1);
            }
            None => {
                missed += 1;
                println!("{:32} NOT FOUND in {} seeds", bug.name(), arguments.seeds);
            }
        }
    }
    if missed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
