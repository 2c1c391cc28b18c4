//! The PostgreSQL backend against a real server, and through a relay that loses what it is told to lose.

mod relay;
mod server;

use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::conformance::{self, Backend, Driver, End, Shards, slot_map};
use crate::seam::{Class, Outcome, ReadError, Refusal, Space, StorageEvent, StorageRequest, ViewRead};
use relay::{Loss, Relay};
use server::Server;

fn wakers(shards: u16) -> Vec<Waker> {
    (0..shards).map(|_| Box::new(|| {}) as Waker).collect()
}

/// Small enough that the tests live at the edges.
fn small(url: &str) -> PostgresConfig {
    PostgresConfig { checkpoint_bytes: 16 << 10, timeout_ms: 3_000, ..PostgresConfig::new(url) }
}

/// A store on a database of its own.
struct Postgres {
    config: PostgresConfig,
    started: Option<PostgresStarted>,
    /// Kept running while it is used.
    server: Arc<Server>,
}

impl Postgres {
    fn new(server: &Arc<Server>) -> Postgres {
        Postgres { config: small(&server.new_database()), started: None, server: Arc::clone(server) }
    }

    fn start(&mut self, shards: u16) {
        self.started = Some(PostgresStore::start(&self.config, &slot_map(shards), wakers(shards)).expect("starts"));
    }

    fn store(&self) -> &PostgresStore {
        &self.started.as_ref().expect("started").store
    }

    fn query(&self, question: &str) -> i64 {
        self.server.query(&self.config.url, question)
    }
}

impl Backend for Postgres {
    fn facts(&self) -> StoreFacts {
        self.started.as_ref().expect("started").facts.clone()
    }

    fn submit(&mut self, shard: u16, request: StorageRequest) {
        self.started.as_ref().expect("started").ports[shard as usize].submit(request).expect("queues have room");
    }

    fn poll(&mut self, shard: u16, events: &mut Vec<StorageEvent>) {
        let port = &mut self.started.as_mut().expect("started").ports[shard as usize];
        port.poll(events);
        if events.is_empty() {
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    fn restart(&mut self, end: End, shards: u16, driver: &mut Shards) {
        if let Some(PostgresStarted { store, mut ports, .. }) = self.started.take() {
            if end == End::Graceful {
                let stopping = std::thread::spawn(move || store.shutdown(Duration::from_mins(1)));
                while !stopping.is_finished() {
                    for (shard, port) in ports.iter_mut().enumerate() {
                        let mut events = Vec::new();
                        port.poll(&mut events);
                        for answer in events.into_iter().filter_map(|event| driver.on_event(shard as u16, event)) {
                            let _ = port.submit(answer);
                        }
                    }
                }
                assert!(stopping.join().expect("no panic"), "a clean end");
            } else {
                store.abandon();
            }
        }
        self.start(shards);
    }
}

/// A server to test against, or a loud word that there is none.
fn server() -> Option<Arc<Server>> {
    let server = Server::start();
    if server.is_none() {
        eprintln!("NOT RUN: PostgreSQL is missing; install Debian's `postgresql`");
    }
    server.map(Arc::new)
}

#[test]
fn postgres_conforms() {
    let Some(server) = server() else { return };
    conformance::run(1, || Postgres::new(&server));
}

#[test]
fn postgres_forgets_only_what_it_says() {
    let Some(server) = server() else { return };
    conformance::run_forgetting(1, || {
        let mut postgres = Postgres::new(&server);
        postgres.config.dedup_day_ms = 50;
        postgres
    });
}

#[test]
fn tables_of_the_first_format_are_taken_over_with_their_days() {
    let Some(server) = server() else { return };
    let mut postgres = Postgres::new(&server);
    postgres.start(1);
    postgres.started.take().expect("started").store.abandon();
    postgres.query("WITH a AS (UPDATE ringway_meta SET format = 1 RETURNING 1) SELECT count(*) FROM a");
    postgres.server.execute(&postgres.config.url, "ALTER TABLE ringway_meta DROP COLUMN days");
    postgres.server.execute(
        &postgres.config.url,
        "INSERT INTO ringway_dedup SELECT sha256(d::text::bytea), '', d FROM generate_series(19000, 19003) d",
    );
    postgres.start(1);
    assert_eq!(postgres.query("SELECT format::bigint FROM ringway_meta"), 2);
    assert_eq!(postgres.query("SELECT count(*) FROM ringway_dedup"), 4, "they stay for a week");
}

#[test]
fn the_class_follows_the_servers_settings() {
    let Some(server) = server() else { return };
    let mut postgres = Postgres::new(&server);
    postgres.start(1);
    assert_eq!(postgres.facts().class, Class::D2);
    postgres.started = None;
    let database = postgres.config.url.clone();
    // Off would lose what was acknowledged; the store turns it on for itself.
    let off = format!("{database}?options=-c%20synchronous_commit%3Doff");
    let started = PostgresStore::start(&small(&off), &slot_map(1), wakers(1)).expect("starts");
    assert_eq!((started.facts.class, &started.class_reason), (Class::D2, &None));
    drop(started);
    server.restart_with(&["-c", "fsync=off"]);
    let started = PostgresStore::start(&small(&database), &slot_map(1), wakers(1)).expect("starts");
    assert_eq!(started.facts.class, Class::D1);
    assert_eq!(started.class_reason.as_deref(), Some("fsync is off"));
}

/// Two servers on one database: the lock decides who tries, the epoch refuses the older one.
#[test]
fn the_older_owner_is_refused() {
    let Some(server) = server() else { return };
    let mut older = Postgres::new(&server);
    let url = older.config.url.clone();
    let mut driver = Driver::new(&mut older, 1, 1);
    let group = driver.random_group(0);
    assert!(driver.append(0, group).iter().all(|&outcome| outcome == Outcome::Committed));

    let mut config = PostgresConfig { lock_wait_ms: 300, take_over: false, ..small(&url) };
    let refused = PostgresStore::start(&config, &slot_map(1), wakers(1)).expect_err("in use");
    assert!(matches!(refused, PostgresError::InUse), "{refused}");
    config.take_over = true;
    let newer = PostgresStore::start(&config, &slot_map(1), wakers(1)).expect("starts");
    assert!(newer.facts.epoch > driver.backend.facts().epoch);
    assert_eq!(newer.facts.generation, driver.backend.facts().generation);

    let before = driver.backend.query("SELECT count(*) FROM ringway_journal");
    assert_eq!(driver.backend.store().fenced(), None);
    for _ in 0..2 {
        let group = driver.random_group(0);
        assert!(driver.append(0, group).iter().all(|&outcome| outcome == Outcome::Fenced));
        assert_eq!(driver.backend.store().fenced(), Some("another server has taken over the database"));
    }
    assert!(driver.backend.store().trouble().is_some());
    assert_eq!(driver.backend.query("SELECT count(*) FROM ringway_journal"), before, "nothing was written");
    drop(newer);
    // Its process would end now; the next start is an owner again, and knows all.
    driver.restart(End::Kill, 1);
    driver.check_rows();
}

/// The commit was done and its answer lost; the commit itself was lost. Both are settled by reading.
#[test]
fn a_lost_answer_to_a_commit_is_settled_by_reading() {
    let Some(server) = server() else { return };
    for loss in [Loss::Answer, Loss::Commit] {
        let mut postgres = Postgres::new(&server);
        let relay = Relay::start(server.port());
        postgres.config.url = relay.url(&postgres.config.url);
        postgres.config.checkpoint_bytes = 1 << 20;
        let mut driver = Driver::new(&mut postgres, 1, 2);
        for round in 0..5 {
            relay.lose(loss);
            let group = driver.random_group(0);
            let parts = group.parts.len() as i64;
            let before = driver.backend.query("SELECT count(*) FROM ringway_journal");
            let outcomes = driver.append(0, group);
            assert!(outcomes.iter().all(|&outcome| outcome == Outcome::Committed), "{loss:?} {round}: {outcomes:?}");
            assert_eq!(relay.losses(), round + 1, "the relay did lose it");
            let after = driver.backend.query("SELECT count(*) FROM ringway_journal");
            assert_eq!(after - before, parts, "once, {loss:?}");
        }
        driver.check_rows();
        driver.restart(End::Kill, 1);
        driver.check_rows();
        postgres.started = None;
    }
}

/// The answer is lost, and before it can be read another server takes over. What is in the journal of the
/// own epoch is committed; what is not will never be.
#[test]
fn a_lost_answer_is_settled_after_a_take_over_too() {
    let Some(server) = server() else { return };
    for (loss, expected) in [(Loss::Answer, Outcome::Committed), (Loss::Commit, Outcome::Fenced)] {
        let mut postgres = Postgres::new(&server);
        let direct = postgres.config.url.clone();
        let relay = Relay::start(server.port());
        postgres.config.url = relay.url(&direct);
        let mut driver = Driver::new(&mut postgres, 1, 3);
        relay.lose_and_stay_down(loss);
        let group = driver.random_group(0);
        let ticket = driver.submit(0, group);
        while relay.losses() == 0 {
            driver.poll();
        }
        let config = PostgresConfig { take_over: true, lock_wait_ms: 0, ..small(&direct) };
        let newer = PostgresStore::start(&config, &slot_map(1), wakers(1)).expect("starts");
        relay.up();
        let outcomes = driver.outcomes(0, ticket);
        assert!(outcomes.iter().all(|&outcome| outcome == expected), "{loss:?}: {outcomes:?}");
        drop(newer);
        driver.restart(End::Kill, 1);
        driver.check_rows();
        postgres.started = None;
    }
}

/// Gone for a while: refused soon and certainly, nothing lost, and going on by itself.
#[test]
fn a_store_that_is_gone_is_refused_and_comes_back() {
    let Some(server) = server() else { return };
    let mut postgres = Postgres::new(&server);
    let relay = Relay::start(server.port());
    postgres.config.url = relay.url(&postgres.config.url);
    let mut driver = Driver::new(&mut postgres, 2, 4);
    driver.append_through_checkpoints(1);
    for _ in 0..2 {
        relay.down();
        for _ in 0..20 {
            let group = driver.random_group(1);
            let parts = group.parts.len();
            assert_eq!(driver.append(1, group), vec![Outcome::Refused(Refusal::Unavailable); parts]);
        }
        assert_eq!(driver.backend.store().fenced(), None);
        relay.up();
        let back = (0..2_000).any(|_| {
            std::thread::sleep(Duration::from_millis(5));
            let group = driver.random_group(0);
            driver.append(0, group)[0] == Outcome::Committed
        });
        assert!(back, "appends work again");
        driver.check_rows();
        driver.append_through_checkpoints(1);
    }
    driver.restart(End::Kill, 2);
    driver.check_rows();
    postgres.started = None;
}

#[test]
fn nothing_committed_is_lost_when_postgres_is_killed() {
    let Some(server) = server() else { return };
    let mut postgres = Postgres::new(&server);
    let mut driver = Driver::new(&mut postgres, 2, 5);
    for round in 0..5 {
        for _ in 0..10 {
            for shard in 0..2 {
                let group = driver.random_group(shard);
                driver.append(shard, group);
            }
        }
        let group = driver.random_group(0);
        let ticket = driver.submit(0, group);
        std::thread::sleep(Duration::from_micros(300 * round));
        server.kill_and_start();
        driver.outcomes(0, ticket);
        let back = (0..2_000).any(|_| {
            std::thread::sleep(Duration::from_millis(5));
            let group = driver.random_group(1);
            driver.append(1, group)[0] == Outcome::Committed
        });
        assert!(back, "appends work again");
        driver.check_rows();
    }
    driver.append_through_checkpoints(2);
    driver.restart(End::Kill, 3);
    driver.check_rows();
    assert_eq!(driver.backend.facts().class, Class::D2);
    postgres.started = None;
}

#[test]
fn newer_and_contradicting_tables_are_refused() {
    let Some(server) = server() else { return };
    let mut postgres = Postgres::new(&server);
    postgres.config.checkpoint_bytes = 1 << 20;
    let mut driver = Driver::new(&mut postgres, 1, 6);
    let group = driver.random_group(0);
    driver.append(0, group);
    postgres.started = None;
    let refused = |postgres: &Postgres| {
        PostgresStore::start(&postgres.config, &slot_map(1), wakers(1)).expect_err("refused").to_string()
    };
    postgres.query("WITH a AS (UPDATE ringway_meta SET format = format + 1 RETURNING 1) SELECT count(*) FROM a");
    assert!(refused(&postgres).contains("use a newer ringway"));
    postgres.query("WITH a AS (UPDATE ringway_meta SET format = format - 1 RETURNING 1) SELECT count(*) FROM a");
    postgres.query("WITH a AS (DELETE FROM ringway_journal RETURNING 1) SELECT count(*) FROM a");
    assert!(refused(&postgres).contains("damaged"));
    postgres.query("WITH a AS (DELETE FROM ringway_slots WHERE id = 7 RETURNING 1) SELECT count(*) FROM a");
    assert!(refused(&postgres).contains("4095 rows"));
    // A row that changed by itself.
    let mut damaged = Postgres::new(&server);
    damaged.config.checkpoint_bytes = 1 << 20;
    let mut driver = Driver::new(&mut damaged, 1, 7);
    let group = driver.random_group(0);
    driver.append(0, group);
    damaged.started = None;
    damaged.query(
        "WITH a AS (UPDATE ringway_journal SET bytes = set_byte(bytes, 9, get_byte(bytes, 9) # 1) RETURNING 1) \
         SELECT count(*) FROM a",
    );
    assert!(refused(&damaged).contains("checksum"));
    // A promoted standby may lack the end of history: the generation says so.
    let mut promoted = Postgres::new(&server);
    promoted.start(1);
    let before = promoted.facts();
    promoted.started = None;
    promoted.query("WITH a AS (UPDATE ringway_meta SET timeline = 'another' RETURNING 1) SELECT count(*) FROM a");
    promoted.start(1);
    assert_ne!(promoted.facts().generation, before.generation);
}

#[test]
fn a_changed_row_of_the_views_is_damaged_and_not_an_answer() {
    let Some(server) = server() else { return };
    let mut postgres = Postgres::new(&server);
    postgres.start(1);
    postgres
        .query("WITH a AS (INSERT INTO ringway_heads VALUES ('k', 'not sealed') RETURNING 1) SELECT count(*) FROM a");
    let port = &mut postgres.started.as_mut().expect("started").ports[0];
    let get = ViewRead::Get { space: Space::Heads, key: b"k".to_vec() };
    let (start, end) = (b"a".to_vec(), b"z".to_vec());
    let range = ViewRead::Range { space: Space::Heads, start, end, rows_max: 5, bytes_max: 100, reverse: false };
    for question in [get, range] {
        port.submit(StorageRequest::Read(1, question)).expect("room");
        let answer = loop {
            let mut events = Vec::new();
            port.poll(&mut events);
            let answered = events.into_iter().find(|event| matches!(event, StorageEvent::Read(..)));
            if let Some(StorageEvent::Read(_, answer)) = answered {
                break answer;
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        assert_eq!(answer, Err(ReadError::Damaged("row 6b of heads".to_owned())));
    }
}
