//! The PostgreSQL backend: journal and views in one database, behind the same ports as the embedded store.
//!
//! Threads: one lane (appends, one transaction for all that waits), one writer of views, a few readers.
//! Each has a connection of its own. What refuses an old owner is the condition on epoch and LSN in the
//! update of the slots' rows; the advisory lock only decides who tries. A server that meets a higher
//! epoch is *fenced*: it commits nothing any more, and its process should close its clients and end.

mod append;
mod lane;
mod schema;
mod session;
#[cfg(test)]
mod tests;
mod views;

use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::unbounded;
use tokio_postgres::{Client, Config};

use crate::counters::StoreCounters;
use crate::days::DAY_MS;
use crate::port::{Channels, Port, Threads, Waker};
use crate::seam::{Lsn, Run, Slot, StoreFacts};
use crate::segment::SLOTS;
use crate::views_threads;
use lane::Lane;
use schema::Opened;
use session::{Fault, Session};

/// Pause between attempts to get the lock.
const LOCK_PAUSE: Duration = Duration::from_millis(200);

/// How the store is reached and what it may use.
#[derive(Debug, Clone)]
pub struct PostgresConfig {
    /// `postgres://user:password@host:port/database`, or the key=value form of libpq. Without TLS.
    pub url: String,
    /// Threads that read views.
    pub readers: usize,
    /// Reads that may wait, of all shards; above it a port takes no more.
    pub reads_waiting_max: usize,
    /// Groups are merged into one transaction up to this.
    pub batch_bytes_max: usize,
    /// A checkpoint begins when the journal has grown by this.
    pub checkpoint_bytes: u64,
    /// A checkpoint begins after this time if anything is new.
    pub checkpoint_interval_ms: u64,
    /// A checkpoint that takes longer is reported as trouble.
    pub views_stall_ms: u64,
    /// Bounds each append and each read. A connection that does not answer in time is given up.
    pub timeout_ms: u64,
    /// Bounds a checkpoint's transaction and the start.
    pub checkpoint_timeout_ms: u64,
    /// How long a start waits for another server to let go of the database, as one does that is stopping.
    pub lock_wait_ms: u64,
    /// After that, take the database over: the other server is fenced. Otherwise the start is refused.
    pub take_over: bool,
    /// How long the store runs until the dedup rows that it takes go into another day. Other than a day only in
    /// tests: rows are promised to stay for seven.
    pub dedup_day_ms: u64,
}

impl PostgresConfig {
    /// Defaults, for this database.
    pub fn new(url: &str) -> PostgresConfig {
        PostgresConfig {
            url: url.to_owned(),
            readers: 2,
            reads_waiting_max: 4096,
            batch_bytes_max: 4 << 20,
            checkpoint_bytes: 32 << 20,
            checkpoint_interval_ms: 30_000,
            views_stall_ms: 60_000,
            timeout_ms: 5_000,
            checkpoint_timeout_ms: 120_000,
            lock_wait_ms: 2_000,
            take_over: true,
            dedup_day_ms: DAY_MS,
        }
    }
}

/// Why the store does not start. Each says what it means and what to do.
#[derive(Debug, thiserror::Error)]
pub enum PostgresError {
    /// The URL can not be read.
    #[error("`storage.postgres` is not a PostgreSQL address: {0}")]
    Url(String),
    /// It does not answer, or refuses.
    #[error("PostgreSQL can not be used: {0}; check that it runs, and `storage.postgres`")]
    Away(String),
    /// Another server holds the lock.
    #[error(
        "another Ringway server uses this database; stop it first. If it hangs or its machine is gone, end its \
         connections: SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'ringway'"
    )]
    InUse,
    /// A later version of Ringway made the tables.
    #[error("the tables have format {found}, this version knows up to {known}: use a newer ringway")]
    Newer {
        /// Format found.
        found: i32,
        /// Newest format known here.
        known: i32,
    },
    /// The tables contradict each other.
    #[error("the database is damaged: {0}; restore it from a backup")]
    Damaged(String),
    /// The map names a shard that has no waker.
    #[error("the map from slots to shards names shard {0}, which does not exist")]
    BadMap(u16),
}

impl From<Fault> for PostgresError {
    fn from(fault: Fault) -> PostgresError {
        PostgresError::Away(fault.to_string())
    }
}

impl From<tokio_postgres::Error> for PostgresError {
    fn from(error: tokio_postgres::Error) -> PostgresError {
        Fault::from(error).into()
    }
}

/// A store that runs.
#[derive(Debug)]
pub struct PostgresStarted {
    /// What the shards are told.
    pub facts: StoreFacts,
    /// Why the class is not D2, where it is not.
    pub class_reason: Option<String>,
    /// One per shard, in order.
    pub ports: Vec<Port>,
    /// The handle that stops it.
    pub store: PostgresStore,
}

/// The handle of a running store. Dropping it stops the threads without a last checkpoint.
#[derive(Debug)]
pub struct PostgresStore {
    threads: Threads,
    fence: Arc<Fence>,
}

impl PostgresStore {
    /// Connects, takes the database over and starts the threads. What was recovered waits in the ports.
    ///
    /// `shard_of_slot` has an entry for each of the 4,096 slots and may differ from start to start.
    pub fn start(
        config: &PostgresConfig,
        shard_of_slot: &[u16],
        wakers: Vec<Waker>,
    ) -> Result<PostgresStarted, PostgresError> {
        assert_eq!(shard_of_slot.len(), SLOTS, "every slot has a shard");
        if let Some(&shard) = shard_of_slot.iter().find(|&&shard| shard as usize >= wakers.len()) {
            return Err(PostgresError::BadMap(shard));
        }
        let address = address(config)?;
        let mut session = Session::new(address.clone(), Duration::from_millis(config.checkpoint_timeout_ms))?;
        let mut opened = take_over(config, &mut session)?;
        session.set_timeout(Duration::from_millis(config.timeout_ms));
        let facts = StoreFacts { generation: opened.generation, epoch: opened.epoch, class: opened.class };
        let class_reason = opened.class_reason.take();
        if let Some(reason) = &class_reason {
            tracing::warn!(%reason, "acknowledgements are of class D1 only");
        }
        let Channels { shared, ports, lane, lane_messages, reads, read_jobs } =
            Channels::new(wakers, config.reads_waiting_max);
        let (ended_sender, ended) = unbounded();
        let (jobs, ingest_jobs) = unbounded();
        let fence = Arc::new(Fence::default());
        let writer = views::Writer {
            session: Session::new(address.clone(), Duration::from_millis(config.checkpoint_timeout_ms))?,
            epoch: opened.epoch,
            fence: Arc::clone(&fence),
            opened: (Instant::now(), opened.days.uptime_ms()),
            days: opened.days.clone(),
            day_ms: config.dedup_day_ms,
            drops: true,
        };
        let readers = (0..config.readers).map(|_| {
            let session = Session::new(address.clone(), Duration::from_millis(config.timeout_ms))?;
            Ok(views::Reader { session })
        });
        let readers = readers.collect::<Result<Vec<_>, Fault>>()?;
        let setup = lane::Setup {
            config: config.clone(),
            session,
            shard_of_slot: shard_of_slot.to_vec(),
            shared: Arc::clone(&shared),
            fence: Arc::clone(&fence),
            messages: lane_messages,
            jobs,
            ended: ended_sender.clone(),
        };
        let thread = thread::Builder::new().name("postgres".to_owned());
        let runs = Lane::new(setup, opened);
        thread.spawn(move || runs.run()).map_err(|error| PostgresError::Away(format!("no thread: {error}")))?;
        let channels = views_threads::Channels { ingest_jobs, read_jobs, lane: lane.clone(), ended: ended_sender };
        let started = views_threads::spawn(&shared, writer, readers, channels);
        let threads = Threads {
            shared,
            lane,
            reads,
            readers: config.readers,
            ended,
            running: started + 1,
            stall_ms: config.views_stall_ms,
        };
        Ok(PostgresStarted { facts, class_reason, ports, store: PostgresStore { threads, fence } })
    }

    /// Why this server may not serve any more, once another has taken over or history has shrunk. The
    /// process is to close its clients resumably and end; a start of its own accord would be a tug of war.
    pub fn fenced(&self) -> Option<&'static str> {
        self.fence.reason()
    }

    /// What the store counts.
    pub fn counters(&self) -> Arc<StoreCounters> {
        self.threads.counters()
    }

    /// Why the store is not healthy, in words, if it is not.
    pub fn trouble(&self) -> Option<String> {
        self.fenced().map(str::to_owned).or_else(|| self.threads.trouble())
    }

    /// Refuses new appends, makes a last checkpoint and stops; the shards must go on answering `Freeze`
    /// meanwhile. True: the next start has nothing to replay.
    pub fn shutdown(mut self, wait_max: Duration) -> bool {
        self.threads.shutdown(wait_max)
    }

    /// Stops at once, without a checkpoint, as a crash would.
    pub fn abandon(mut self) {
        self.threads.stop();
    }
}

/// What the views' writer is handed.
struct CheckpointJob {
    checkpoint: u64,
    runs: Vec<Run>,
    /// Slots that grew, and up to where.
    covered: Vec<(Slot, Lsn)>,
}

/// Raised once, by whichever thread learns it first.
#[derive(Debug, Default)]
struct Fence(OnceLock<&'static str>);

impl Fence {
    fn raise(&self, reason: &'static str) {
        if self.0.set(reason).is_ok() {
            tracing::error!(reason, "this server is fenced");
        }
    }

    fn reason(&self) -> Option<&'static str> {
        self.0.get().copied()
    }
}

fn address(config: &PostgresConfig) -> Result<Config, PostgresError> {
    let mut address: Config =
        config.url.parse().map_err(|error: tokio_postgres::Error| PostgresError::Url(error.to_string()))?;
    if address.get_connect_timeout().is_none() {
        // A shard holds what it may hold for two seconds: by then it should know that nobody is there.
        address.connect_timeout(Duration::from_millis(1_500));
    }
    address.keepalives_idle(Duration::from_secs(5)).tcp_user_timeout(Duration::from_millis(config.timeout_ms));
    Ok(address)
}

fn take_over(config: &PostgresConfig, session: &mut Session) -> Result<Opened, PostgresError> {
    let deadline = Instant::now() + Duration::from_millis(config.lock_wait_ms);
    while !session.simply(async |client: &Client| schema::try_lock(client).await)? {
        if Instant::now() >= deadline && config.take_over {
            tracing::warn!("another server holds the database and will be fenced");
            break;
        }
        if Instant::now() >= deadline {
            return Err(PostgresError::InUse);
        }
        thread::sleep(LOCK_PAUSE);
    }
    let random = getrandom::u64().map_err(|error| PostgresError::Away(format!("no randomness: {error}")))?;
    // Clients see it as a positive number.
    let generation = random >> 1 | 1;
    session.call(async |client: &Client| schema::take_over(client, generation).await).map_err(|failed| match failed {
        session::Timed::Said(error) => error,
        session::Timed::Out => PostgresError::Away("it does not answer".to_owned()),
    })
}
