//! `sim`: runs worlds by their seeds and says what broke.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use clap::Parser;
use sim::bug::Bug;
use sim::checker::Violation;
use sim::world::{Figures, World};

/// Worlds are made and dropped by the hundred per second.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

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

/// Runs worlds on all cores, each world on one thread; the lowest seed that fails is the one told of.
fn search(from: u64, seeds: u64, bug: Option<Bug>, trace: bool) -> (Option<(u64, Violation)>, Figures) {
    let next = AtomicU64::new(from);
    let lowest = AtomicU64::new(from + seeds);
    let all = Mutex::new((None::<(u64, Violation)>, Figures::default()));
    let work = || {
        let mut sum = Figures::default();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= lowest.load(Ordering::Relaxed) {
                break;
            }
            let (verdict, figures) = world(seed, bug, trace);
            sum.add(&figures);
            if let Err(violation) = verdict {
                lowest.fetch_min(seed, Ordering::Relaxed);
                let mut all = all.lock().expect("nobody panics while holding it");
                if all.0.as_ref().is_none_or(|(known, _)| seed < *known) {
                    all.0 = Some((seed, violation));
                }
            }
        }
        all.lock().expect("nobody panics while holding it").1.add(&sum);
    };
    let threads = if trace { 1 } else { std::thread::available_parallelism().map_or(1, usize::from) };
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    all.into_inner().expect("nobody panics while holding it")
}

fn run(arguments: &Arguments) -> ExitCode {
    let started = Instant::now();
    let (found, all) = search(arguments.from, arguments.seeds, arguments.bug, arguments.trace);
    if let Some((seed, violation)) = found {
        let bug = arguments.bug.map_or(String::new(), |bug| format!(" --bug {}", bug.name()));
        let features = if arguments.bug.is_some() { " --features planted-bugs" } else { "" };
        println!("seed {seed}: {violation}");
        println!("replay: cargo run --release -p sim{features} -- --seeds 1 --from {seed}{bug} --trace");
        return ExitCode::FAILURE;
    }
    println!(
        "{} seeds from {} without a violation: {:.0} seeds/s, {} messages, {} frames, {} turns, {} crashes",
        arguments.seeds,
        arguments.from,
        arguments.seeds as f64 / started.elapsed().as_secs_f64(),
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
        let (found, _) = search(arguments.from, arguments.seeds, Some(bug), false);
        if let Some((seed, violation)) = found {
            let text: String = violation.0.chars().take(150).collect();
            println!("{:32} found by seed {seed}, number {}: {text}", bug.name(), seed - arguments.from + 1);
        } else {
            missed += 1;
            println!("{:32} NOT FOUND in {} seeds", bug.name(), arguments.seeds);
        }
    }
    if missed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
