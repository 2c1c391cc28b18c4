//! `ringway-tune`: says what on this machine limits the number of sessions. It changes nothing.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tuning::{Machine, Report};

#[derive(Parser)]
#[command(
    name = "ringway-tune",
    version,
    about = "Says what on this machine limits the number of Ringway sessions, and what to do about it.",
    after_help = "Examples:\n  ringway-tune check                        what limits this machine\n  \
                  ringway-tune check --sessions 2000000     the same, with advice for two million\n  \
                  ringway-tune check --json | jq .limited_by"
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Reads the kernel's and the host's settings and adds them up; changes nothing.
    ///
    /// Limits are those of the calling process: run it as the server's user, from the same unit or
    /// container. Leaves with 1 if the server cannot run here, or if --sessions was given and they
    /// do not fit.
    #[command(after_help = "Examples:\n  ringway-tune check\n  ringway-tune check --sessions 250000 && echo fits\n  \
                            ringway-tune check --json | jq '.checks[] | select(.status == \"limits\")'")]
    Check {
        /// How many sessions are wanted; advice aims at them [default: 1000000]
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
        sessions: Option<u64>,
        /// Print JSON instead of text
        #[arg(long)]
        json: bool,
        /// Where `proc` and `sys` are
        #[arg(long, value_name = "DIR", default_value = "/")]
        root: PathBuf,
    },
}

fn main() -> ExitCode {
    let Command::Check { sessions, json, root } = Arguments::parse().command;
    let report = Report::new(&Machine::read(&root), sessions.unwrap_or(1_000_000));
    let text = if json {
        serde_json::to_string_pretty(&report).expect("a report has no keys but strings")
    } else {
        report.to_string()
    };
    // A reader that went away, as `head` does, is no error of ours.
    let _ = std::io::Write::write_all(&mut std::io::stdout(), format!("{text}\n").as_bytes());
    if report.runs() && (sessions.is_none() || report.fits()) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
