//! `bench floor`: what the kernel costs without any protocol, which is what every other figure is held against.

mod cold;
mod commit;
mod fanout;
mod hot;
mod opening;
mod relay;

use std::time::Duration;

use clap::{Args, ValueEnum};
use serde_json::Value;

use crate::figures::{field, save};
use crate::server::Trouble;

/// The probes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Probe {
    /// Echo over a ring and over epoll, every connection busy.
    Hot,
    /// Echo on sockets in random order, by burst and drain; and answered beats on the same sockets.
    Cold,
    /// Five frames between two connections.
    Relay,
    /// Accept and two round trips.
    Accept,
    /// The same message to many, at each merge factor.
    Fanout,
    /// Write and sync.
    Commit,
}

/// What to measure, and how much of it.
#[derive(Debug, Clone, Args)]
pub struct Orders {
    /// Which probes; all of them if none is named.
    #[arg(value_enum)]
    pub probes: Vec<Probe>,
    /// Numbers of busy connections, up to 15,000 each.
    #[arg(long, value_delimiter = ',', default_values_t = [1_000, 15_000])]
    pub hot: Vec<u32>,
    /// Cold sockets: 8.5 KB of kernel memory each, so that a million take 9 GB.
    #[arg(long, default_value_t = 100_000)]
    pub connections: u32,
    /// Answered beats per second on the cold sockets; as if each beat every 30 s, if not given.
    #[arg(long)]
    pub beats: Option<f64>,
    #[arg(long, default_value_t = 5)]
    pub rounds: u32,
    /// Of each measurement.
    #[arg(long, default_value_t = 2)]
    pub seconds: u64,
    /// Directory for the disk's probe: the working directory's `target`, if not given.
    #[arg(long)]
    pub disk: Option<std::path::PathBuf>,
}

impl Orders {
    /// A measurement of those that come in pairs lying side by side.
    fn moment(&self) -> Duration {
        Duration::from_millis(self.seconds * 1_000 / 5)
    }
}

/// Runs the probes.
pub fn run(orders: &Orders) -> Result<(), Trouble> {
    crate::cpu::pin(1);
    let all = Probe::value_variants();
    let probes = if orders.probes.is_empty() { all } else { &orders.probes };
    for probe in probes {
        match probe {
            Probe::Hot => hot::run(orders)?,
            Probe::Cold => cold::run(orders)?,
            Probe::Relay => relay::run(orders)?,
            Probe::Accept => opening::run(orders)?,
            Probe::Fanout => fanout::run(orders)?,
            Probe::Commit => commit::run(orders)?,
        }
    }
    Ok(())
}

/// Prints and saves what a probe found.
fn keep(name: &str, method: &str, arguments: &str, result: Value) -> Result<(), Trouble> {
    let mut result = result;
    result["settings"] = settings();
    let command = format!("cargo run --release -p bench -- floor {arguments}");
    println!("{}\n", save(&format!("floor-{name}"), method, &command, result)?.display());
    Ok(())
}

/// Of the kernel, as far as they bound what connections cost.
pub(crate) fn settings() -> Value {
    let names = ["net/ipv4/tcp_rmem", "net/ipv4/tcp_wmem", "net/ipv4/tcp_mem", "net/core/somaxconn"];
    let named = names.map(|name| (name.rsplit('/').next().unwrap_or(name).to_owned(), sysctl(name).into()));
    Value::Object(named.into_iter().collect())
}

/// Fails, with a sentence, where so many connections with both of their ends would not fit.
pub(crate) fn fits_in_memory(connections: u32) -> Result<(), Trouble> {
    /// A pair of ends, with room for what is not counted in it.
    const KIB_PER_CONNECTION: f64 = 9.0;
    let (wanted, free) = (f64::from(connections) * KIB_PER_CONNECTION, field("/proc/meminfo", "MemAvailable:") as f64);
    if wanted <= free * 0.9 {
        return Ok(());
    }
    Err(format!(
        "{connections} connections need {:.1} GB and {:.1} GB are free: name a smaller number with --connections",
        wanted / 1e6,
        free / 1e6
    )
    .into())
}

fn sysctl(name: &str) -> String {
    std::fs::read_to_string(format!("/proc/sys/{name}")).unwrap_or_default().trim().replace('\t', " ")
}
