//! A node: the store, all shards and the internal listener of one process, from start to end.

use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use chat::ChatConfig;
use ring::{Claim, Doorbell, KernelRing, RingConfig, RingError};
use shard_router::{MailLimits, Mailbox, Sleeper, Slot, SlotMap};
use storage::embedded::{EmbeddedConfig, EmbeddedStore};
use storage::postgres::{PostgresConfig, PostgresStore};
use storage::seam::{Class, StoreFacts};
use storage::store::{Started, Store};

use crate::auth::Authenticator;
use crate::config::{Backend, Config, RequiredClass};
use crate::driver::{Driver, DriverParts, Phase, PhaseCell, Published, StartLine};
use crate::internal::{Internal, Status};
use crate::rate::FrameRate;
use crate::shard::{ShardParts, ShardSettings};

/// How long the store may take for its last checkpoint.
const SHUTDOWN_MAX: Duration = Duration::from_secs(30);

/// Why a node does not start. Each says what it means and what to do.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A ring or a listener was refused.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// The store was refused.
    #[error(transparent)]
    Store(#[from] storage::embedded::StartError),
    /// The database was refused.
    #[error(transparent)]
    Postgres(#[from] storage::postgres::PostgresError),
    /// The internal listener was refused.
    #[error(
        "{address} cannot be listened on ({error}), so there would be no health checks and no metrics; stop whoever \
         has it or choose another address with RINGWAY_SERVER_INTERNAL or `server.internal`"
    )]
    Internal {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        error: std::io::Error,
    },
    /// The backend promises less than was asked for.
    #[error(
        "`storage.require_class` is \"d2\", and this backend acknowledges at class d1 ({0}): change that, choose \
         another backend, or ask for \"d1\""
    )]
    Class(String),
    /// The system gave no thread or no randomness.
    #[error("the process could not be set up: {0}; check its limits of threads and memory")]
    System(std::io::Error),
    /// A signal came first.
    #[error("told to stop before everything was recovered")]
    Interrupted,
}

/// A node that serves.
pub struct Node {
    address: SocketAddr,
    internal: SocketAddr,
    facts: StoreFacts,
    status: Arc<Status>,
    doorbells: Vec<Doorbell>,
    threads: Vec<JoinHandle<()>>,
}

/// Makes the data directory, so that keys can be put there before the store is.
pub fn make_directory(path: &Path) -> Result<(), storage::embedded::StartError> {
    let failed = |error| storage::embedded::StartError::Directory { path: path.display().to_string(), error };
    std::fs::create_dir_all(path).map_err(failed)
}

impl Node {
    /// Starts the store and every shard, or nothing. Returns once clients are served.
    pub fn start(config: &Config, auth: Authenticator) -> Result<Self, StartError> {
        probe_io_uring()?;
        // All shards listen on one port; the claim keeps other processes from joining them.
        let claim = claim(config.server.listen)?;
        let internal = Internal::bind(config.server.internal)
            .map_err(|error| StartError::Internal { address: config.server.internal, error })?;
        let shards = config.shards();
        let doorbells = (0..shards).map(|_| Doorbell::new()).collect::<Result<Vec<_>, _>>()?;
        let sleepers: Vec<_> = doorbells.iter().map(|doorbell| Arc::new(sleeper(doorbell))).collect();
        let Started { facts, class_reason, ports, store } = start_store(config, shards, &sleepers)?;
        if config.storage.require_class == RequiredClass::D2 && facts.class == Class::D1 {
            store.abandon();
            return Err(StartError::Class(class_reason.unwrap_or_else(|| "synced on one node's disk".to_owned())));
        }
        let map = Arc::new(SlotMap::single_node(shards, facts.epoch));
        let mailboxes = Mailbox::with_sleepers(&map, mail_limits(config), sleepers);
        let status = Arc::new(Status {
            phase: PhaseCell::default().into(),
            shards: (0..shards).map(|_| Arc::default()).collect(),
            store_counters: store.counters(),
            store: Mutex::new(Some(store)),
        });
        let mut node = Self {
            address: claim.address(),
            internal: internal.address(),
            facts: facts.clone(),
            status: Arc::clone(&status),
            doorbells,
            threads: Vec::new(),
        };
        internal.serve(Arc::clone(&status)).map_err(StartError::System)?;
        let auth = Arc::new(auth);
        let start_line = Arc::new(StartLine::new(&node.doorbells));
        let parts = mailboxes.into_iter().zip(ports).enumerate().map(|(number, (mailbox, port))| {
            let shard = ShardParts {
                settings: shard_settings(config, number as u16),
                chat: chat_config(config, number as u16, &map, &facts)?,
                facts: facts.clone(),
                auth: Arc::clone(&auth),
                mailbox,
            };
            Ok(DriverParts {
                ring: RingConfig { connections_max: ring_connections(config), ..RingConfig::default() },
                shard,
                port,
                listen: claim.address(),
                doorbell: node.doorbells[number].clone(),
                drain_ms: config.server.drain_s.get() as u32 * 1_000,
                start_line: Arc::clone(&start_line),
                phase: Arc::clone(&status.phase),
                published: Arc::clone(&status.shards[number]),
            })
        });
        let parts = parts.collect::<Result<Vec<_>, StartError>>()?;
        let begun = node.spawn(parts);
        drop::<Claim>(claim);
        match begun {
            Ok(()) => Ok(node),
            Err(error) => {
                node.abandon();
                Err(error)
            }
        }
    }

    /// Starts the shards' threads and waits until all of them listen.
    fn spawn(&mut self, parts: Vec<DriverParts>) -> Result<(), StartError> {
        let (report, reports) = mpsc::channel();
        for (number, parts) in parts.into_iter().enumerate() {
            let report = report.clone();
            let thread = std::thread::Builder::new().name(format!("shard-{number}"));
            self.threads.push(thread.spawn(move || run_shard(parts, &report)).map_err(StartError::System)?);
        }
        drop(report);
        reports.iter().take(self.threads.len()).collect()
    }

    /// Where clients connect to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where health and metrics are.
    pub fn internal(&self) -> SocketAddr {
        self.internal
    }

    /// What the store is.
    pub fn facts(&self) -> &StoreFacts {
        &self.facts
    }

    /// Whether another process took this one's slots.
    pub fn is_fenced(&self) -> bool {
        let store = self.status.store.lock().expect("nobody panics while holding it");
        let fenced = store.as_ref().and_then(Store::fenced).is_some();
        fenced || self.status.shards.iter().any(|shard| published(shard).is_fenced)
    }

    /// Takes no more connections and sends away those there are.
    pub fn drain(&self) {
        self.advance(Phase::Draining);
    }

    /// Whether everybody has gone.
    pub fn is_drained(&self) -> bool {
        self.status.shards.iter().all(|shard| published(shard).is_drained)
    }

    /// Makes a last checkpoint, and ends all threads. True: the next start has nothing to replay.
    pub fn stop(mut self) -> bool {
        let store = self.status.store.lock().expect("nobody panics while holding it").take();
        // The shards go on meanwhile: the last checkpoint is made of what they hand over.
        let clean = store.is_some_and(|store| store.shutdown(SHUTDOWN_MAX));
        self.advance(Phase::Stopping);
        for thread in std::mem::take(&mut self.threads) {
            thread.join().expect("a shard that panics ends the process");
        }
        clean
    }

    /// Ends all threads without a last checkpoint: shards that never began could not contribute to it.
    fn abandon(mut self) {
        if let Some(store) = self.status.store.lock().expect("nobody panics while holding it").take() {
            store.abandon();
        }
        self.advance(Phase::Stopping);
        for thread in std::mem::take(&mut self.threads) {
            thread.join().expect("a shard that panics ends the process");
        }
    }

    fn advance(&self, phase: Phase) {
        self.status.phase.advance(phase);
        for doorbell in &self.doorbells {
            doorbell.ring();
        }
    }
}

/// Makes a small ring and lets it go: where io_uring is refused, this says so in a sentence, before the
/// store's own ring would end the process.
fn probe_io_uring() -> Result<(), RingError> {
    let small = RingConfig {
        connections_max: 1,
        submissions: 4,
        completions: 8,
        receive_buffers: 1,
        receive_buffer_bytes: 64,
        ..RingConfig::default()
    };
    KernelRing::new(&small, Doorbell::new()?).map(drop)
}

/// Takes the public address. A process that was killed is gone before its ring is: the kernel ends the
/// ring's requests, and with them its listeners, a moment later.
fn claim(address: SocketAddr) -> Result<Claim, RingError> {
    const TRIES: u32 = 30;
    for _ in 1..TRIES {
        match ring::claim(address) {
            Err(RingError::AddressInUse { .. }) => std::thread::sleep(Duration::from_millis(100)),
            claimed => return claimed,
        }
    }
    ring::claim(address)
}

fn published(shard: &Mutex<Published>) -> std::sync::MutexGuard<'_, Published> {
    shard.lock().expect("nobody panics while holding it")
}

/// A shard's thread. What goes wrong before it serves is reported; what goes wrong later ends the process.
fn run_shard(parts: DriverParts, report: &mpsc::Sender<Result<(), StartError>>) {
    let ran = catch_unwind(AssertUnwindSafe(|| {
        let mut driver = match Driver::new(parts) {
            Ok(driver) => driver,
            Err(error) => return drop(report.send(Err(error.into()))),
        };
        match driver.begin() {
            Ok(true) => drop(report.send(Ok(()))),
            Ok(false) => drop(report.send(Err(StartError::Interrupted))),
            Err(error) => drop(report.send(Err(error.into()))),
        }
        // Also after a failed start: the store's last checkpoint is made of what the shards hand over.
        if let Err(error) = driver.run() {
            tracing::error!(%error, "a shard cannot go on, and the process ends; start it again");
            std::process::exit(1);
        }
    }));
    if ran.is_err() {
        // An assertion of the sequencer failed: what it would acknowledge next could not be trusted. The
        // journal has what was acknowledged so far.
        eprintln!(
            "ringway: a shard met a fault of its own (above) and the process ends, so that nothing wrong is \
             acknowledged; start it again, and report the fault"
        );
        std::process::abort();
    }
}

fn sleeper(doorbell: &Doorbell) -> Sleeper {
    let doorbell = doorbell.clone();
    Sleeper::new(Box::new(move || doorbell.ring()))
}

fn start_store(config: &Config, shards: u16, sleepers: &[Arc<Sleeper>]) -> Result<Started, StartError> {
    // The epoch is not known before the store is open, and does not matter to who gets which slot.
    let map = SlotMap::single_node(shards, 0);
    let shard_of_slot: Vec<u16> =
        Slot::all().map(|slot| map.shard_of_slot(slot).expect("the only node has all slots")).collect();
    let wakers = sleepers.iter().map(|sleeper| {
        let sleeper = Arc::clone(sleeper);
        Box::new(move || _ = sleeper.notify()) as storage::embedded::Waker
    });
    match config.storage.backend {
        Backend::Embedded => {
            let embedded = EmbeddedConfig::new(&config.storage.data);
            Ok(EmbeddedStore::start(&embedded, &shard_of_slot, wakers.collect())?.into())
        }
        Backend::Postgres => {
            let url = config.storage.postgres.get().expect("a configuration without it is refused");
            let postgres = PostgresConfig { take_over: config.storage.take_over, ..PostgresConfig::new(url) };
            Ok(PostgresStore::start(&postgres, &shard_of_slot, wakers.collect())?.into())
        }
    }
}

fn mail_limits(config: &Config) -> MailLimits {
    let bytes = (config.limits.mailbox_mb_max.get() as usize) << 20;
    MailLimits { request_bytes_max: bytes, event_bytes_max: bytes / 2, ..MailLimits::default() }
}

fn chat_config(config: &Config, shard: u16, map: &SlotMap, facts: &StoreFacts) -> Result<ChatConfig, StartError> {
    let mut seed = [0; 8];
    getrandom::fill(&mut seed).map_err(|error| StartError::System(error.into()))?;
    let limits = chat::Limits {
        sessions_max: ring_connections(config),
        sessions_per_user_max: config.limits.sessions_per_user_max.get() as u32,
        conversations_per_user_max: config.limits.conversations_per_user_max.get() as u32,
        body_bytes_max: config.limits.body_bytes_max.get() as u32,
        outbound_bytes_max: config.limits.outbound_bytes_max.get() as u32,
        new_conversations_max: config.limits.new_conversations_max.get() as u32,
        new_conversations_window_ms: config.limits.new_conversations_window_s.get() * 1_000,
        pending_bytes_max: (config.limits.pending_mb_max.get() as u32) << 20,
        lists_per_user_max: config.limits.lists_per_user_max.get() as u32,
        requests_max: mail_limits(config).requests_max,
        ..chat::Limits::default()
    };
    Ok(ChatConfig { shard, slots: map.clone(), facts: facts.clone(), limits, seed: u64::from_ne_bytes(seed) })
}

fn shard_settings(config: &Config, shard: u16) -> ShardSettings {
    ShardSettings {
        shard,
        node: config.server.node.clone(),
        connections_max: ring_connections(config),
        echo: config.server.echo,
        allowed_origins: config.server.allowed_origins.get().to_vec(),
        token_in_url: config.auth.token_in_url,
        body_bytes_max: config.limits.body_bytes_max.get() as usize,
        outbound_bytes_max: config.limits.outbound_bytes_max.get() as usize,
        handshake_ms: config.limits.handshake_ms.get(),
        stall_ms: config.limits.stall_ms.get(),
        idle_ms: config.limits.idle_ms.get(),
        request_ms: config.limits.request_ms.get(),
        frames: FrameRate {
            per_second: config.limits.frames_per_second.get() as u32,
            at_once: config.limits.frames_at_once.get() as u32,
        },
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
