//! The server: its shards, their mailboxes and doorbells, and the store, all on one thread.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use chat::{ChatConfig, Limits, Now};
use gateway::auth::{Authenticator, TokenOrder, sign};
use gateway::config::KeyAlgorithm;
use gateway::shard::{Input, Output, Shard, ShardParts, ShardSettings};
use ring::EventBatch;
use shard_router::{Mailbox, SlotMap, Waker};
use storage::seam::{ReadError, StorageEvent, StorageRequest};
use storage::sim_store::{Crash, SimStore};

use wire::ids::{DeviceId, UserId};

use crate::broken;
use crate::bug::Bug;
use crate::checker::{Verdict, Violation};
use crate::net::Net;
use crate::plan::Plan;

/// The key that signs the phones' tokens.
const SECRET: &[u8; 32] = &[7; 32];
/// The same in base64url, as a key file has it.
const SECRET_TEXT: &str = "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc";
const ISSUER: &str = "sim";

/// A token that outlives every world.
pub fn token(user: UserId, device: DeviceId) -> String {
    let order = TokenOrder {
        kid: ISSUER,
        issuer: ISSUER,
        audience: ISSUER,
        user,
        device: Some(device),
        now_s: 1_700_000_000,
        ttl_s: 1_000_000_000,
    };
    sign(SECRET, &order)
}

fn authenticator() -> Arc<Authenticator> {
    static MADE: OnceLock<Arc<Authenticator>> = OnceLock::new();
    let make = || {
        let key = (ISSUER.to_owned(), KeyAlgorithm::Hs256, SECRET_TEXT.as_bytes().to_vec());
        Arc::new(Authenticator::new([key], ISSUER, ISSUER, SECRET).expect("the key is a key"))
    };
    Arc::clone(MADE.get_or_init(make))
}

fn settings(plan: &Plan, shard: u16) -> ShardSettings {
    ShardSettings {
        shard,
        node: "sim".into(),
        connections_max: 4_096,
        echo: false,
        allowed_origins: Vec::new(),
        token_in_url: false,
        body_bytes_max: plan.limits.body_bytes_max as usize,
        outbound_bytes_max: plan.limits.outbound_bytes_max as usize,
        handshake_ms: 5_000,
        stall_ms: 30_000,
        idle_ms: 30_000,
        request_ms: 10_000,
        frames: plan.frames,
    }
}

/// One shard and what its driver would have.
struct Host {
    shard: Shard,
    input: Input,
    output: Output,
    asleep: bool,
    bell: Arc<AtomicBool>,
}

/// See the module.
pub struct Node {
    hosts: Vec<Host>,
    /// All shards have been ready: they listen.
    listens: bool,
    /// They send their clients away and take no more.
    draining: bool,
    pub store: SimStore,
}

impl Node {
    /// A machine on which nothing runs.
    pub fn new(seed: u64, plan: &Plan) -> Self {
        Self { hosts: Vec::new(), listens: false, draining: false, store: SimStore::new(seed, plan.store.clone()) }
    }

    /// Starts the process.
    pub fn start(&mut self, plan: &Plan, shards: u16, seed: u64, now: Now, bug: Option<Bug>) -> Verdict {
        let map = SlotMap::single_node(shards, 1);
        let shard_of_slot: Vec<u16> =
            shard_router::Slot::all().map(|slot| map.shard_of_slot(slot).expect("the only node")).collect();
        let facts = self.store.start(now.monotonic_ms * 1_000, &shard_of_slot, shards);
        let facts = facts.map_err(|error| Violation(format!("the store does not start: {error}")))?;
        let bells: Vec<_> = (0..shards).map(|_| Arc::new(AtomicBool::new(false))).collect();
        let wakers = bells.iter().map(|bell| {
            let bell = Arc::clone(bell);
            Box::new(move || bell.store(true, Ordering::Relaxed)) as Waker
        });
        let mailboxes = Mailbox::for_all(&Arc::new(map.clone()), plan.mail, wakers.collect());
        let hosts = mailboxes.into_iter().zip(bells).enumerate();
        self.hosts = hosts
            .map(|(number, (mailbox, bell))| {
                let config = ChatConfig {
                    shard: number as u16,
                    slots: map.clone(),
                    facts: facts.clone(),
                    limits: Limits { requests_max: plan.mail.requests_max, ..plan.limits.clone() },
                    seed: seed ^ number as u64,
                };
                let settings = settings(plan, number as u16);
                let parts = ShardParts { settings, chat: config, facts: facts.clone(), auth: authenticator(), mailbox };
                let mut shard = Shard::new(parts, now);
                plant(&mut shard, bug);
                Host { shard, input: Input::default(), output: Output::default(), asleep: false, bell }
            })
            .collect();
        Ok(())
    }

    /// The process was told to stop: clients are sent away over so long.
    pub fn drain(&mut self, now: Now, spread_ms: u32) {
        self.listens = false;
        self.draining = true;
        for host in &mut self.hosts {
            host.shard.drain(now, spread_ms);
        }
    }

    /// Whether the process that runs was told to stop.
    pub fn is_draining(&self) -> bool {
        self.draining
    }

    /// Whether it would end by itself: nobody is connected and nothing waits for storage.
    pub fn is_drained(&self) -> bool {
        self.hosts.iter().all(|host| host.shard.is_drained())
    }

    /// Ends the process or the machine.
    pub fn crash(&mut self, how: Crash) {
        self.hosts.clear();
        self.listens = false;
        self.draining = false;
        self.store.crash(how);
    }

    /// Shards that run; none while the process is down.
    pub fn shards(&self) -> usize {
        self.hosts.len()
    }

    /// Whether the shards take connections: they have applied what was recovered.
    pub fn listens(&self) -> bool {
        self.listens
    }

    /// Nothing waits for its commit or for a read.
    pub fn is_quiet(&self) -> bool {
        self.hosts.iter().map(|host| host.shard.chat()).all(|chat| {
            let waits = |name: &str| matches!(name, "awaited_reads" | "parked_bytes");
            chat.is_quiet() && chat.sizes().iter().all(|&(name, held)| held == 0 || !waits(name))
        })
    }

    /// Where what happens to a shard's connections is told.
    pub fn events(&mut self, shard: usize) -> &mut EventBatch {
        &mut self.hosts[shard].input.ring
    }

    /// Whether a shard's thread would be awake.
    pub fn is_runnable(&self, shard: usize, now_us: u64) -> bool {
        let host = &self.hosts[shard];
        !host.asleep
            || host.bell.load(Ordering::Relaxed)
            || !host.input.ring.is_empty()
            || !host.input.storage.is_empty()
            || self.store.has_events(shard as u16)
            || host.shard.next_deadline_ms().is_some_and(|due_ms| due_ms * 1_000 <= now_us)
    }

    /// Lets a shard take its turn.
    pub fn turn(&mut self, shard: usize, now: Now, lag_ms: u64, net: &mut Net) {
        let host = &mut self.hosts[shard];
        if std::mem::take(&mut host.asleep) {
            host.shard.mailbox().woken();
        }
        host.bell.store(false, Ordering::Relaxed);
        self.store.poll(shard as u16, &mut host.input.storage);
        host.input.lag_ms = lag_ms;
        host.shard.turn(now, &mut host.input, &mut host.output);
        host.input.ring.clear();
        net.submit(&mut host.output.ring, &mut host.input.ring);
        for request in host.output.storage.drain(..) {
            if let Err(StorageRequest::Read(ticket, _)) = self.store.submit(shard as u16, request) {
                let full = ReadError::Unavailable("too many reads wait".into());
                host.input.storage.push(StorageEvent::Read(ticket, Err(full)));
            }
        }
        self.listens |= !self.draining && self.hosts.iter().all(|host| host.shard.is_ready());
        let host = &mut self.hosts[shard];
        let (input, store) = (&host.input, &self.store);
        let has_work = || !input.storage.is_empty() || !input.ring.is_empty() || store.has_events(shard as u16);
        host.asleep = host.shard.mailbox().prepare_to_sleep(has_work);
    }

    /// When anything is due though nothing happens.
    pub fn next_due_us(&self) -> Option<u64> {
        let shards = self.hosts.iter().filter_map(|host| host.shard.next_deadline_ms()).map(|ms| ms * 1_000).min();
        [shards, self.store.next_step_us()].into_iter().flatten().min()
    }

    /// No shard runs: none of them may have slept over something.
    pub fn nobody_overslept(&mut self) -> Verdict {
        for (number, host) in self.hosts.iter_mut().enumerate() {
            if host.shard.mailbox().has_mail() {
                broken!("shard {number} sleeps, has mail, and was not woken");
            }
        }
        Ok(())
    }

    /// Nobody is connected and nothing is going on: everything that was held has been given back.
    pub fn is_back_to_nothing(&mut self) -> Verdict {
        let shards = self.hosts.len() as u16;
        for (number, host) in self.hosts.iter_mut().enumerate() {
            for (name, held) in host.shard.chat().sizes() {
                let may_stay = matches!(name, "users" | "idle_users" | "users_bytes" | "tails_bytes" | "conversations");
                if held > 0 && !may_stay {
                    broken!("shard {number} still holds {held} {name}");
                }
            }
            if host.shard.connections() > 0 || !host.shard.chat().is_quiet() {
                broken!("shard {number} still holds {} connections", host.shard.connections());
            }
            for other in 0..shards {
                let outstanding = host.shard.mailbox().outstanding(other);
                if outstanding > 0 {
                    broken!("{outstanding} requests of shard {number} to shard {other} were never answered");
                }
            }
        }
        Ok(())
    }
}

#[cfg(feature = "planted-bugs")]
fn plant(shard: &mut Shard, bug: Option<Bug>) {
    shard.plant(bug.and_then(Bug::of_chat), bug.and_then(Bug::of_mail));
    if bug == Some(Bug::DrainWithoutEnd) {
        shard.plant_drain_without_end();
    }
}

#[cfg(not(feature = "planted-bugs"))]
fn plant(_shard: &mut Shard, bug: Option<Bug>) {
    assert!(bug.is_none(), "bugs need the feature `planted-bugs`");
}
