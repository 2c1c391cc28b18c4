//! `bench floor`: what the kernel costs without any protocol, which is what every other figure is held against.

mod cold;
mod commit;
mod fanout;
mod hot;
mod opening;
mod relay;

use std::time::Duration;

use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use crate::figures::save;
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
    let mut settings = json!({ "tcp_rmem": sysctl("net/ipv4/tcp_rmem"), "tcp_wmem": sysctl("net/ipv4/tcp_wmem") });
    settings["tcp_mem"] = sysctl("net/ipv4/tcp_mem").into();
    settings["somaxconn"] = sysctl("net/core/somaxconn").into();
    let mut result = result;
    result["settings"] = settings;
    let command = format!("cargo run --release -p bench -- floor {arguments}");
    println!("{}\n", save(&format!("floor-{name}"), method, &command, result)?.display());
    Ok(())
}

fn sysctl(name: &str) -> String {
    std::fs::read_to_string(format!("/proc/sys/{name}")).unwrap_or_default().trim().replace('\t', " ")
}
