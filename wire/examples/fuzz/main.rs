//! Throws mutated input at everything that reads bytes from the network, and checks what must hold.
//!
//! ```text
//! cargo run --release -p wire --example fuzz -- --target frame|http|json|all --seconds N [--seed S]
//! cargo run --release -p wire --example fuzz -- --target frame --input HEX      one input again
//! ```
//!
//! It starts from valid input and keeps what leads to an outcome not seen before. It knows the shape of
//! what it mutates (headers, lengths, tokens), and needs no compiler support. A failure prints the
//! input, for `--input` and for a test with a name.

#![expect(clippy::disallowed_methods, reason = "runs for a time, and only here is there a clock")]

mod frame;
mod http;
mod json;
mod mutate;

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use mutate::Rng;

/// One thing to be thrown at.
struct Target {
    name: &'static str,
    /// Valid input to start from.
    corpus: fn() -> Vec<Vec<u8>>,
    /// Pieces that mean something to the reader.
    dictionary: fn() -> Vec<Vec<u8>>,
    /// Checks one input, with randomness for where to cut it; says in a word what came of it, so that
    /// input with a new outcome is kept. Panics if something does not hold.
    check: fn(&[u8], &mut Rng) -> String,
}

const TARGETS: [Target; 3] = [
    Target { name: "frame", corpus: frame::corpus, dictionary: frame::dictionary, check: frame::check },
    Target { name: "http", corpus: http::corpus, dictionary: http::dictionary, check: http::check },
    Target { name: "json", corpus: json::corpus, dictionary: json::dictionary, check: json::check },
];

/// Input is kept up to this many; above it, new input replaces old.
const CORPUS_MAX: usize = 4_096;
const INPUT_BYTES_MAX: usize = 4_096;

fn main() -> ExitCode {
    let argument = |name: &str| {
        let mut arguments = std::env::args().skip_while(|argument| argument != name);
        arguments.next().and(arguments.next())
    };
    let wanted = argument("--target").unwrap_or_else(|| "all".to_owned());
    let seconds = argument("--seconds").map_or(Ok(10), |text| text.parse());
    let seed = argument("--seed").map_or(Ok(1), |text| text.parse());
    let (Ok(seconds), Ok(seed)) = (seconds, seed) else {
        eprintln!("--seconds and --seed take whole numbers");
        return ExitCode::FAILURE;
    };
    let targets: Vec<&Target> = TARGETS.iter().filter(|target| wanted == "all" || wanted == target.name).collect();
    if targets.is_empty() {
        eprintln!("no target `{wanted}`: there are frame, http, json and all");
        return ExitCode::FAILURE;
    }
    let passed = targets.into_iter().all(|target| match argument("--input") {
        Some(hex) => again(target, &hex),
        None => run(target, Duration::from_secs(seconds), seed),
    });
    if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// One input, where the cuts are random and so tried often.
fn again(target: &Target, hex: &str) -> bool {
    let Some(input) = from_hex(hex) else {
        eprintln!("--input takes pairs of hexadecimal digits");
        return false;
    };
    (0..10_000).all(|seed| holds(target, &input, &mut Rng(seed)).is_some())
}

fn run(target: &Target, time: Duration, seed: u64) -> bool {
    let mut rng = Rng(seed);
    let (mut corpus, dictionary) = ((target.corpus)(), (target.dictionary)());
    let valid = corpus.len();
    let mut outcomes = BTreeSet::new();
    for input in &corpus {
        let Some(outcome) = holds(target, input, &mut rng) else { return false };
        outcomes.insert(outcome);
    }
    let start = Instant::now();
    let mut inputs = 0_u64;
    while !inputs.is_multiple_of(64) || start.elapsed() < time {
        inputs += 1;
        // Half the time from what is valid: most of what is found is broken early on.
        let from = if rng.below(2) == 0 { valid } else { corpus.len() };
        let mut input = corpus[rng.below(from)].clone();
        for _ in 0..=rng.below(4) {
            mutate::mutate(&mut input, &corpus, &dictionary, &mut rng);
        }
        input.truncate(INPUT_BYTES_MAX);
        let Some(outcome) = holds(target, &input, &mut rng) else { return false };
        if outcomes.len() < CORPUS_MAX && outcomes.insert(outcome) {
            if corpus.len() < CORPUS_MAX {
                corpus.push(input);
            } else {
                let at = valid + rng.below(CORPUS_MAX - valid);
                corpus[at] = input;
            }
        }
    }
    println!("{}: {inputs} inputs, {} outcomes, seed {seed}: all held", target.name, outcomes.len());
    true
}

/// The outcome, or `None` after saying what failed.
fn holds(target: &Target, input: &[u8], rng: &mut Rng) -> Option<String> {
    let outcome = catch_unwind(AssertUnwindSafe(|| (target.check)(input, rng)));
    if outcome.is_err() {
        let hex = input.iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"));
        eprintln!("{}: failed with {:?}", target.name, String::from_utf8_lossy(input));
        eprintln!("again: cargo run --release -p wire --example fuzz -- --target {} --input {hex}", target.name);
    }
    outcome.ok()
}

fn from_hex(hex: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> = hex.chars().map(|c| c.to_digit(16).map(|digit| digit as u8)).collect();
    let (pairs, rest) = digits.as_ref()?.as_chunks::<2>();
    rest.is_empty().then(|| pairs.iter().map(|[high, low]| high << 4 | low).collect())
}
