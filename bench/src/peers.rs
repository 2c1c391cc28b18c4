//! `bench peers`: Ringway beside other people's servers, in turn and in one run.

mod durable;
mod echo;
mod ejabberd;
mod idle;
mod install;
mod open;

use std::net::SocketAddr;
use std::process::Command;

use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use crate::server::Trouble;

/// What is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Match {
    /// Processor time per echo of 128 bytes, every connection busy.
    Echo,
    /// Processor time from accept over the upgrade to the first echo.
    Open,
    /// User-space bytes per idle connection.
    Idle,
    /// Durable messages between two: processor time and rate.
    Durable,
}

#[derive(Debug, Clone, Args)]
pub struct Orders {
    /// What to compare; `echo` if nothing is named.
    #[arg(value_enum)]
    pub matches: Vec<Match>,
    /// Busy connections, up to 15,000.
    #[arg(long, default_value_t = 1_000)]
    pub connections: u32,
    #[arg(long, default_value_t = 5)]
    pub rounds: u32,
    /// Of each measurement.
    #[arg(long, default_value_t = 2)]
    pub seconds: u64,
    /// Durable messages a second, over all users; 0 for as many as the server takes.
    #[arg(long, default_value_t = 300.0)]
    pub rate: f64,
    /// Only these peers, by name; all if none is named.
    #[arg(long, value_delimiter = ',')]
    pub peers: Vec<String>,
    /// Install the peers and stop.
    #[arg(long)]
    pub install: bool,
}

/// A server of somebody else's, ready to be started.
pub struct Peer {
    pub name: &'static str,
    pub version: String,
    /// What it does not do that Ringway does, and how it is set up.
    pub lacks: &'static str,
    /// Starts it on an address.
    command: Box<dyn Fn(SocketAddr) -> Command>,
}

/// Peers that were to be had, and those that were not, with the reason.
pub struct Peers {
    pub had: Vec<Peer>,
    pub absent: Vec<(&'static str, String)>,
}

impl Peers {
    fn show(&self) {
        for peer in &self.had {
            println!("{} {}: {}", peer.name, peer.version, peer.lacks);
        }
        for (name, why) in &self.absent {
            println!("!!! {name} is absent: {why}");
        }
        println!();
    }

    fn to_json(&self) -> Value {
        let had =
            self.had.iter().map(|peer| json!({ "name": peer.name, "version": peer.version, "lacks": peer.lacks }));
        let absent = self.absent.iter().map(|(name, why)| json!({ "name": name, "absent": why }));
        had.chain(absent).collect()
    }
}

/// Compares.
pub fn run(orders: &Orders) -> Result<(), Trouble> {
    let matches = if orders.matches.is_empty() { &[Match::Echo][..] } else { &orders.matches };
    for which in matches {
        let peers = match which {
            Match::Durable => install::durable(&orders.peers),
            Match::Echo | Match::Open | Match::Idle => install::websocket(&orders.peers),
        };
        peers.show();
        if orders.install {
            continue;
        }
        crate::cpu::pin(1);
        match which {
            Match::Echo => echo::run(orders, &peers)?,
            Match::Open => open::run(orders, &peers)?,
            Match::Idle => idle::run(&peers)?,
            Match::Durable => durable::run(orders, &peers)?,
        }
    }
    Ok(())
}

/// Starts a peer on core 0.
fn start(peer: &Peer) -> Result<crate::server::Process, Trouble> {
    let address = crate::server::two_free_ports()?;
    let wanted = (peer.command)(address);
    let mut command = crate::server::pinned(wanted.get_program().as_ref(), Some(0));
    command.args(wanted.get_args());
    if let Some(directory) = wanted.get_current_dir() {
        command.current_dir(directory);
    }
    crate::server::Process::of_peer(command, address)
}
