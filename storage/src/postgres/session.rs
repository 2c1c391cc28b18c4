//! One connection to PostgreSQL for one thread, used by plain blocking calls.
//!
//! The driver wants tokio; each thread has a small runtime of its own that runs only inside a call. A
//! connection that failed or took too long is dropped, and the next call connects again, but not before
//! its back-off has passed: until then the answer is that the database is away.

use std::fmt;
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Config, NoTls};

const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(2);

/// A call that fails sooner may have found a connection that ended while nobody used it; it is worth
/// one more try. One that took longer has used up its caller's patience.
pub(super) const STALE_WITHIN: Duration = Duration::from_millis(500);

/// Why a call has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Fault {
    /// The database has no room. It said so, and the transaction is undone.
    #[error("{0}")]
    Full(String),
    /// Not reached, lost, too slow, or refused. What had been sent may or may not have been done.
    #[error("{0}")]
    Away(String),
}

impl From<tokio_postgres::Error> for Fault {
    fn from(error: tokio_postgres::Error) -> Fault {
        let text = match error.as_db_error() {
            Some(said) => format!("PostgreSQL says: {} ({})", said.message(), said.code().code()),
            None => error.to_string(),
        };
        match error.code() {
            Some(code) if *code == SqlState::DISK_FULL => Fault::Full(text),
            _ => Fault::Away(text),
        }
    }
}

pub(super) struct Session {
    runtime: Runtime,
    config: Config,
    client: Option<Client>,
    timeout: Duration,
    backoff: Duration,
    not_before: Option<Instant>,
    last_fault: Fault,
}

impl fmt::Debug for Session {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Session").field("connected", &self.client.is_some()).finish_non_exhaustive()
    }
}

impl Session {
    /// Not connected yet. `timeout` bounds each call.
    pub(super) fn new(config: Config, timeout: Duration) -> Result<Session, Fault> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Fault::Away(format!("no runtime for the database driver: {error}")))?;
        Ok(Session {
            runtime,
            config,
            client: None,
            timeout,
            backoff: BACKOFF_MIN,
            not_before: None,
            last_fault: Fault::Away("not connected yet".to_owned()),
        })
    }

    /// Bounds each call from now on.
    pub(super) fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    /// Connects if there is no living connection. True: this one is new, and what was known of the
    /// database should be looked at again.
    pub(super) fn connect(&mut self) -> Result<bool, Fault> {
        if self.client.as_ref().is_some_and(|client| !client.is_closed()) {
            return Ok(false);
        }
        self.client = None;
        if self.not_before.is_some_and(|at| Instant::now() < at) {
            return Err(self.last_fault.clone());
        }
        let connected = self.runtime.block_on(async {
            let limit = tokio::time::timeout(self.timeout, open(&self.config));
            limit.await.unwrap_or_else(|_| Err(Fault::Away("PostgreSQL does not answer".to_owned())))
        });
        match connected {
            Ok(client) => {
                self.client = Some(client);
                self.backoff = BACKOFF_MIN;
                self.not_before = None;
                Ok(true)
            }
            Err(fault) => {
                self.not_before = Some(Instant::now() + self.backoff);
                self.backoff = (self.backoff * 2).min(BACKOFF_MAX);
                self.last_fault = fault.clone();
                Err(fault)
            }
        }
    }

    /// Does `work` on the connection, connecting first if need be. After an error the connection is
    /// dropped: the server undoes what was not committed.
    pub(super) fn call<T, E: From<Fault>>(
        &mut self,
        work: impl AsyncFnOnce(&Client) -> Result<T, E>,
    ) -> Result<T, Timed<E>> {
        self.connect().map_err(|fault| Timed::Said(fault.into()))?;
        let client = self.client.as_ref().expect("connected a moment ago");
        let done = self.runtime.block_on(async { tokio::time::timeout(self.timeout, work(client)).await });
        let done = match done {
            Ok(done) => done.map_err(Timed::Said),
            Err(_) => Err(Timed::Out),
        };
        if done.is_err() {
            self.client = None;
        }
        done
    }

    /// [`Session::call`] for work of which it does not matter how far it came.
    pub(super) fn simply<T>(&mut self, work: impl AsyncFnOnce(&Client) -> Result<T, Fault>) -> Result<T, Fault> {
        self.call(work).map_err(|error| match error {
            Timed::Said(fault) => fault,
            Timed::Out => Fault::Away("PostgreSQL does not answer".to_owned()),
        })
    }
}

/// How a call failed.
#[derive(Debug)]
pub(super) enum Timed<E> {
    /// By its own account.
    Said(E),
    /// Its time was over.
    Out,
}

/// Settings that the promises rest on, whatever the server's or the user's defaults are.
///
/// A transaction that a lost connection left behind holds its slots' rows; the timeouts bound for how long.
const SETTINGS: &str = "\
    SET application_name TO 'ringway'; \
    SET client_min_messages TO warning; \
    SET default_transaction_isolation TO 'read committed'; \
    SET lock_timeout TO '10s'; \
    SET idle_in_transaction_session_timeout TO '10s'; \
    SET tcp_keepalives_idle TO 3; SET tcp_keepalives_interval TO 2; SET tcp_keepalives_count TO 3; \
    DO $$ BEGIN IF current_setting('synchronous_commit') = 'off' \
    THEN SET synchronous_commit TO on; END IF; END $$";

async fn open(config: &Config) -> Result<Client, Fault> {
    let (client, connection) = config.connect(NoTls).await?;
    // Ends with the client, or when the server hangs up; the client then says that it is closed.
    tokio::spawn(connection);
    client.batch_execute(SETTINGS).await?;
    Ok(client)
}
