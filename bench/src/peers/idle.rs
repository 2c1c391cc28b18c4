//! T1 and T2 for libraries: what an idle connection holds of user space, and what the kernel adds to it.

use std::time::Duration;

use loadgen::key::TokenKey;
use serde_json::json;

use super::open::Upgraded;
use super::{Peers, start};
use crate::crowd::{Crowd, to_one};
use crate::figures::{Scratch, save, slope};
use crate::loads::opening::{self, Opening};
use crate::opened::Sessions;
use crate::server::{Process, Trouble};

const STEP: u32 = 2_500;
const STEPS: u32 = 6;

pub(super) fn run(peers: &Peers) -> Result<(), Trouble> {
    let method = format!(
        "Connections that echoed once and then are idle (Ringway: sessions of distinct users, opened by token), every {STEP} up to {}: \
         2 s after the last, the server's Pss_Anon (/proc/PID/smaps_rollup) and the kernel's named caches for epoll and io_uring \
         are read. The median of the slopes between all pairs of points. One server at a time.",
        STEP * STEPS
    );
    println!("{method}\n");
    let mut rows = Vec::new();
    let scratch = Scratch::new("peers-idle")?;
    let ringway = Process::ringway_in_small_pages(&scratch.path, Some(0), &["--shards", "1"])?;
    let key = TokenKey::of_dev(&scratch.path)?;
    let mut first_user = 1;
    rows.push(measure("ringway sessions", &ringway, |count| {
        let sessions = Sessions::mint(&key, first_user, count, &ringway);
        first_user += u64::from(count);
        Box::new(sessions)
    })?);
    drop(ringway);
    for peer in &peers.had {
        let row =
            start(peer).and_then(|server| measure(peer.name, &server, |count| Box::new(Upgraded::new(count, &server))));
        rows.push(row.unwrap_or_else(|trouble| {
            println!("{:<20} absent: {trouble}", peer.name);
            json!({ "name": peer.name, "absent": trouble.to_string() })
        }));
    }
    let result = json!({ "sides": rows, "step": STEP, "peers": peers.to_json() });
    println!("{}", save("peers-idle", &method, "cargo run --release -p bench -- peers idle", result)?.display());
    Ok(())
}

fn measure(
    name: &str,
    server: &Process,
    mut opening: impl FnMut(u32) -> Box<dyn Opening>,
) -> Result<serde_json::Value, Trouble> {
    let (mut crowds, mut user, mut kernel) = (Vec::new(), Vec::new(), Vec::new());
    for step in 1..=STEPS {
        let mut crowd = Crowd::new(STEP)?;
        opening::open(server, &mut crowd, &to_one(server.address), opening(STEP).as_mut())?;
        crowds.push(crowd);
        std::thread::sleep(Duration::from_secs(2));
        let connections = f64::from(step * STEP);
        if server.internal.is_some() && server.metric("ringway_connections") < connections {
            return Err("sessions ended while others were being opened: the machine is too busy for this".into());
        }
        user.push((connections, server.anonymous_kib() as f64 * 1_024.0));
        kernel.push((connections, epoll_bytes()));
    }
    let (bytes, epoll) = (slope(&user), slope(&kernel));
    println!("{name:<20} {bytes:>8.0} bytes of user space, {epoll:>5.0} of epoll in the kernel, per connection");
    Ok(json!({ "name": name, "user_bytes": bytes, "kernel_epoll_bytes": epoll, "points": user }))
}

/// What the kernel's caches for watched descriptors hold.
fn epoll_bytes() -> f64 {
    let text = std::fs::read_to_string("/proc/slabinfo").unwrap_or_default();
    let held = text.lines().filter(|line| line.starts_with("eventpoll_")).map(|line| {
        let field = |at: usize| line.split_whitespace().nth(at).and_then(|text| text.parse::<f64>().ok());
        field(1).unwrap_or(0.0) * field(3).unwrap_or(0.0)
    });
    held.sum()
}
