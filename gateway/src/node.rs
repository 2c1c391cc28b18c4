//! A node: all shards of one process, from start to end.

use std::net::SocketAddr;
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use ring::{Doorbell, RingConfig, RingError};

use crate::config::Config;
use crate::driver::{Driver, DriverSettings, Phase, PhaseCell, Published};
use crate::shard::ShardSettings;

/// Why a node does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The rings refused.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// The system gave no thread.
    #[error("a thread for a shard could not be started: {0}")]
    Thread(std::io::Error),
}

/// A node that serves.
pub struct Node {
    address: SocketAddr,
    phase: Arc<PhaseCell>,
    doorbells: Vec<Doorbell>,
    published: Vec<Arc<Mutex<Published>>>,
    threads: Vec<JoinHandle<Result<(), RingError>>>,
}

impl Node {
    /// Starts every shard, or none.
    pub fn start(config: &Config) -> Result<Self, StartError> {
        // All shards listen on one port; the claim keeps other processes from joining them.
        let claim = ring::claim(config.server.listen)?;
        let shards = config.shards();
        let phase = Arc::new(PhaseCell::default());
        let mut node = Self {
            address: claim.address(),
            phase: Arc::clone(&phase),
            doorbells: Vec::new(),
            published: Vec::new(),
            threads: Vec::new(),
        };
        let (report, reports) = mpsc::channel();
        for number in 0..shards {
            let doorbell = Doorbell::new()?;
            let published = Arc::<Mutex<Published>>::default();
            let settings = DriverSettings {
                ring: RingConfig { connections_max: ring_connections(config), ..RingConfig::default() },
                shard: shard_settings(config),
                listen: claim.address(),
                doorbell: doorbell.clone(),
                phase: Arc::clone(&phase),
                published: Arc::clone(&published),
            };
            node.doorbells.push(doorbell);
            node.published.push(published);
            let report = report.clone();
            let thread = std::thread::Builder::new()
                .name(format!("shard-{number}"))
                .spawn(move || {
                    let driver = match Driver::new(settings) {
                        Ok(driver) => driver,
                        Err(error) => {
                            let _ = report.send(Err(error));
                            return Ok(());
                        }
                    };
                    let _ = report.send(Ok(()));
                    drop(report);
                    driver.run()
                })
                .map_err(StartError::Thread)?;
            node.threads.push(thread);
        }
        drop(report);
        for outcome in reports.iter().take(usize::from(shards)) {
            if let Err(error) = outcome {
                node.stop()?;
                return Err(error.into());
            }
        }
        Ok(node)
    }

    /// Where clients connect to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What the shards last said about themselves.
    pub fn published(&self) -> &[Arc<Mutex<Published>>] {
        &self.published
    }

    /// Ends all shards and waits for them.
    pub fn stop(self) -> Result<(), RingError> {
        self.advance(Phase::Stopping);
        for thread in self.threads {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        Ok(())
    }

    fn advance(&self, phase: Phase) {
        self.phase.advance(phase);
        for doorbell in &self.doorbells {
            doorbell.ring();
        }
    }
}

/// A ring's table is bounded by the process's descriptor limit, whatever the configuration hopes for.
fn ring_connections(config: &Config) -> u32 {
    let wanted = config.server.connections_max.get();
    wanted.min(descriptors_max().saturating_sub(64).max(1)) as u32
}

/// The descriptors that this process may hold.
fn descriptors_max() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid place for the one struct that the call writes.
    let failed = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0;
    if failed { 1_024 } else { limit.rlim_cur }
}

fn shard_settings(config: &Config) -> ShardSettings {
    ShardSettings {
        echo: config.server.echo,
        outbound_bytes_max: config.limits.outbound_bytes_max.get() as usize,
        request_bytes_max: config.limits.body_bytes_max.get() as u32 * 2,
        handshake_ms: config.limits.handshake_ms.get(),
        stall_ms: config.limits.stall_ms.get(),
        idle_ms: config.limits.idle_ms.get(),
        request_ms: config.limits.request_ms.get(),
    }
}
