//! `ringway`: the command line. What the commands do is in `command/`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod command;

#[cfg(not(feature = "count-allocations"))]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[cfg(feature = "count-allocations")]
#[global_allocator]
static ALLOCATOR: gateway::allocations::Counting = gateway::allocations::Counting;

/// How long the allocator keeps a page that was freed before it gives it back to the kernel.
const PURGE_DELAY_MS: std::ffi::c_long = 5_000;

/// Buffers that come and go with the load would otherwise be given back after some milliseconds, and the
/// kernel would clear them again before each use, which costs more than a quarter of a shard's time under
/// load. `MIMALLOC_PURGE_DELAY` in the environment still decides.
fn keep_freed_pages() {
    /// `mi_option_purge_delay` in mimalloc.h, which the crate does not name.
    const PURGE_DELAY: std::ffi::c_int = 15;
    // SAFETY: sets a number, before there is a second thread.
    unsafe { libmimalloc_sys::mi_option_set_default(PURGE_DELAY, PURGE_DELAY_MS) }
}

/// A self-hosted chat backend: WebSocket and REST, every acknowledged message kept.
#[derive(Parser)]
#[command(name = "ringway", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start a server for development: everything in one directory, on a loopback address.
    #[command(after_help = "Examples:\n  \
        ringway dev\n  \
        ringway dev --listen 127.0.0.1:9000 --data /tmp/ringway --shards 1\n  \
        ringway dev --echo      (and a plain echo at ws://127.0.0.1:8800/echo)\n\n\
        Ctrl-C or SIGTERM sends clients away and stops with a last checkpoint, a second one at once; one that comes\n\
        before everything was recovered ends the start, and the next start recovers it.")]
    Dev(command::serve::DevArguments),
    /// Start a server as a configuration says.
    #[command(after_help = "Examples:\n  \
        ringway config default > ringway.toml\n  \
        ringway serve --config ringway.toml\n  \
        RINGWAY_LOG_FORMAT=json ringway serve --config ringway.toml\n\n\
        SIGTERM sends clients away and stops with a last checkpoint, a second one at once; one that comes before\n\
        everything was recovered ends the start, and the next start recovers it.")]
    Serve(command::serve::ServeArguments),
    /// Make a token for a user and print it, and nothing else.
    #[command(after_help = "Examples:\n  \
        ringway token --data ringway-data --user 1\n  \
        ringway token --data ringway-data --user 1 --device 7 --ttl 30d\n  \
        ringway token --config ringway.toml --user 1      (signs with the file's first HS256 key)")]
    Token(command::token::Arguments),
    /// Talk to another user in this terminal.
    #[command(after_help = "Examples:\n  \
        ringway chat --token $(ringway token --data ringway-data --user 1) --to 2\n  \
        ringway chat --url ws://127.0.0.1:8800 --token TOKEN --to 1")]
    Chat(command::chat::Arguments),
    /// Show, check or document the configuration.
    #[command(after_help = "Examples:\n  \
        ringway config default > ringway.toml\n  \
        ringway config check --config ringway.toml\n  \
        ringway config doc")]
    Config {
        #[command(subcommand)]
        what: ConfigCommand,
    },
    /// Check, back up or restore a store that no server has open.
    #[command(after_help = "Examples:\n  \
        ringway storage check --data ringway-data\n  \
        ringway storage backup --data ringway-data --to backup-2026-01-31\n  \
        ringway storage restore --from backup-2026-01-31 --data ringway-data")]
    Storage {
        #[command(subcommand)]
        task: command::storage::Task,
    },
    /// Print the version with the facts of this build.
    #[command(after_help = "Examples:\n  ringway version")]
    Version,
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// Print a file with every setting at its default.
    Default,
    /// Read a file and the environment, and say whether they are right.
    Check {
        /// The file.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Print the reference, as docs/configuration.md has it.
    Doc,
}

fn main() -> ExitCode {
    keep_freed_pages();
    let done = match Cli::parse().command {
        Command::Dev(arguments) => command::serve::dev(&arguments),
        Command::Serve(arguments) => command::serve::serve(&arguments),
        Command::Token(arguments) => command::token::run(&arguments),
        Command::Chat(arguments) => command::chat::run(&arguments),
        Command::Config { what: ConfigCommand::Default } => command::print(&gateway::config::default_toml()),
        Command::Config { what: ConfigCommand::Doc } => command::print(&gateway::config::reference()),
        Command::Config { what: ConfigCommand::Check { config } } => command::check_config(&config),
        Command::Storage { task } => command::storage::run(&task),
        Command::Version => command::version(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(command::Failure(sentence)) => {
            eprintln!("ringway: {sentence}");
            ExitCode::FAILURE
        }
    }
}
