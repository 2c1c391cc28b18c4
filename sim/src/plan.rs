//! What one world is like: everything is drawn from its seed before it begins.

use chat::Limits;
use gateway::rate::FrameRate;
use shard_router::MailLimits;
use storage::days::DAY_MS;
use storage::journal::JournalConfig;
use storage::lane::LaneConfig;
use storage::sim_store::SimStoreConfig;
use wire::ids::UserId;

use crate::bug::Bug;
use crate::rng::Rng;

/// So short that a phone may wait for an answer for a while and has its id known all the same.
const DEDUP_DAY_MS_MIN: u64 = 10_000;

/// One world's size, limits and misfortunes.
#[derive(Debug, Clone)]
pub struct Plan {
    pub shards: u16,
    pub users: Vec<UserId>,
    /// Devices of each user.
    pub devices: u32,
    pub limits: Limits,
    pub mail: MailLimits,
    pub store: SimStoreConfig,
    /// Steps before everything calms down.
    pub steps: u64,
    /// In a thousand steps: something done by a phone.
    pub acts: u32,
    /// In a thousand steps: a connection cut.
    pub cuts: u32,
    /// In ten thousand steps: a crash of the process or of the machine.
    pub crashes: u32,
    /// In ten thousand steps: trouble with the disk.
    pub disk_faults: u32,
    /// In ten thousand steps: the clocks jump.
    pub jumps: u32,
    /// In a thousand connections: read slowly.
    pub slow: u32,
    /// For how long turns take at most, as the shards are told.
    pub lag_ms: u64,
    /// Frames that one phone may send.
    pub frames: FrameRate,
}

impl Plan {
    /// The world of a seed; `bug` only chooses among the switches of the store.
    pub fn new(rng: &mut Rng, bug: Option<Bug>) -> Self {
        let users = rng.between(2, 4);
        // Small numbers for readers of traces, spread over the slots all the same.
        let users = (0..users).map(|n| UserId(n * 100 + rng.between(1, 99))).collect();
        let quiet = rng.one_in(4);
        Self {
            shards: rng.between(1, 3) as u16,
            users,
            devices: rng.between(1, 2) as u32,
            limits: limits(rng),
            mail: mail(rng),
            store: store(rng, bug),
            steps: rng.between(300, 1_200),
            acts: rng.between(20, 200) as u32,
            cuts: if quiet { 0 } else { rng.below(12) as u32 },
            crashes: if quiet { 0 } else { rng.below(60) as u32 },
            disk_faults: if rng.one_in(2) { 0 } else { rng.below(100) as u32 },
            jumps: if rng.one_in(2) { 0 } else { rng.below(60) as u32 },
            slow: if rng.one_in(2) { 0 } else { 400 },
            lag_ms: if rng.one_in(4) { 600 } else { 0 },
            frames: frames(rng),
        }
    }
}

/// Few enough now and then for phones to be refused, and to be closed.
fn frames(rng: &mut Rng) -> FrameRate {
    if rng.one_in(4) {
        FrameRate { per_second: 50, at_once: 32 }
    } else {
        FrameRate { per_second: 10_000, at_once: 40_000 }
    }
}

/// Tiny limits, so that every world lives at its edges; now and then the usual ones.
fn limits(rng: &mut Rng) -> Limits {
    if rng.one_in(8) {
        return Limits::default();
    }
    Limits {
        sessions_max: 16,
        sessions_per_user_max: 4,
        conversations_per_user_max: 100,
        body_bytes_max: 100,
        pending_per_conversation_max: rng.between(1, 6) as u32,
        pending_bytes_max: rng.between(200, 2_000) as u32,
        parked_bytes_max: rng.between(200, 2_000) as u32,
        new_conversations_max: 1_000,
        new_conversations_window_ms: 3_600_000,
        lists_per_user_max: rng.between(1, 4) as u32,
        pulls_max: rng.between(1, 4) as u32,
        page_bytes_max: rng.between(100, 600) as u32,
        conversations_max: rng.between(1, 6) as u32,
        idle_users_max: rng.between(1, 3) as u32,
        dedup_entries_max: rng.between(1, 12) as u32,
        tail_letters_max: rng.between(1, 8) as u32,
        tail_bytes_max: rng.between(300, 3_000) as u32,
        tails_bytes_max: rng.between(500, 5_000) as u32,
        changed_max: rng.between(1, 4) as u32,
        outbound_bytes_max: rng.between(400, 3_000) as u32,
        unacknowledged_max: rng.between(2, 12) as u32,
        tracked_per_session_max: rng.between(5, 8) as u32,
        reads_per_session_max: rng.between(1, 4) as u16,
        commit_wait_ms: rng.between(50, 2_000),
        heads_per_turn_max: rng.between(1, 4) as u32,
        // What the mailboxes have, which the node knows.
        ..Limits::default()
    }
}

fn mail(rng: &mut Rng) -> MailLimits {
    if rng.one_in(4) {
        return MailLimits::default();
    }
    let event_bytes_max = rng.between(200, 2_000) as usize;
    MailLimits {
        requests_max: rng.between(2, 12) as u32,
        request_bytes_max: event_bytes_max * 2,
        event_bytes_max,
        batches_max: rng.between(1, 3) as usize,
        dirty_max: if rng.one_in(3) { rng.between(1, 4) } else { rng.between(32, 64) } as usize,
        buffer_bytes_kept_max: 1 << 16,
    }
}

fn store(rng: &mut Rng, bug: Option<Bug>) -> SimStoreConfig {
    let slow_commits = rng.one_in(6);
    let slow_views = rng.one_in(6);
    SimStoreConfig {
        lane: LaneConfig {
            journal: JournalConfig { segment_bytes: 192 << 10, spares_max: rng.below(2) as usize },
            checkpoint_bytes: rng.between(8, 64) << 10,
            checkpoint_interval_ms: rng.between(100, 3_000),
            views_stall_ms: 60_000,
            batch_bytes_max: if rng.one_in(4) { 512 } else { 4 << 20 },
            planted: bug.map_or(storage::planted::Planted::NONE, Bug::of_store),
        },
        commit_us: if slow_commits { 200..3_000_000 } else { 50..2_000 },
        read_us: 20..3_000,
        ingest_us: if slow_views { 1_000..2_000_000 } else { 500..50_000 },
        reads_waiting_max: if rng.one_in(4) { 2 } else { 4_096 },
        read_fails_one_in: if rng.one_in(4) { rng.between(5, 50) } else { 0 },
        dedup_day_ms: if rng.one_in(2) { rng.between(DEDUP_DAY_MS_MIN, 4 * DEDUP_DAY_MS_MIN) } else { DAY_MS },
    }
}
