//! Whichever store the configuration names, behind one handle.

use std::sync::Arc;
use std::time::Duration;

use crate::counters::StoreCounters;
use crate::embedded::{self, EmbeddedStore};
use crate::port::Port;
use crate::postgres::{PostgresStarted, PostgresStore};
use crate::seam::StoreFacts;

/// A store that runs.
#[derive(Debug)]
pub struct Started {
    /// What the shards are told.
    pub facts: StoreFacts,
    /// Why the backend acknowledges at a lower class than it can.
    pub class_reason: Option<String>,
    /// One per shard, in order.
    pub ports: Vec<Port>,
    /// The handle that stops it.
    pub store: Store,
}

impl From<embedded::Started> for Started {
    fn from(started: embedded::Started) -> Started {
        let embedded::Started { facts, ports, store } = started;
        Started { facts, class_reason: None, ports, store: Store::Embedded(store) }
    }
}

impl From<PostgresStarted> for Started {
    fn from(started: PostgresStarted) -> Started {
        let PostgresStarted { facts, class_reason, ports, store } = started;
        Started { facts, class_reason, ports, store: Store::Postgres(store) }
    }
}

/// The handle of a running store. Dropping it stops the threads without a last checkpoint.
#[derive(Debug)]
pub enum Store {
    /// The journal and views of this machine's disk.
    Embedded(EmbeddedStore),
    /// A PostgreSQL database.
    Postgres(PostgresStore),
}

impl Store {
    /// What the store counts.
    pub fn counters(&self) -> Arc<StoreCounters> {
        match self {
            Store::Embedded(store) => store.counters(),
            Store::Postgres(store) => store.counters(),
        }
    }

    /// Why the store is not healthy, in words, if it is not.
    pub fn trouble(&self) -> Option<String> {
        match self {
            Store::Embedded(store) => store.trouble(),
            Store::Postgres(store) => store.trouble(),
        }
    }

    /// Why this process may not serve any more: another has taken the store over. It is to close its
    /// clients resumably and end with a code of its own. A locked directory can not be taken over.
    pub fn fenced(&self) -> Option<&'static str> {
        match self {
            Store::Embedded(_) => None,
            Store::Postgres(store) => store.fenced(),
        }
    }

    /// Refuses new appends, makes a last checkpoint and stops; the shards must go on answering `Freeze`
    /// meanwhile. True: the next start has nothing to replay.
    pub fn shutdown(self, wait_max: Duration) -> bool {
        match self {
            Store::Embedded(store) => store.shutdown(wait_max),
            Store::Postgres(store) => store.shutdown(wait_max),
        }
    }

    /// Stops at once, without a checkpoint, as a crash would.
    pub fn abandon(self) {
        match self {
            Store::Embedded(store) => store.abandon(),
            Store::Postgres(store) => store.abandon(),
        }
    }
}
