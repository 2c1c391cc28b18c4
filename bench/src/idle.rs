//! `idle`: what an idle session costs, by owner, in user space and in the kernel; and what a burst leaves behind.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use loadgen::key::TokenKey;
use loadgen::result::RunResult;
use loadgen::run::{Plan, RunError, run as hold};
use loadgen::span::Span;
use serde_json::{Value, json};
use wire::ids::UserId;

use crate::crowd::{Crowd, to_one};
use crate::figures::{Scratch, field, intercept, median, save, slab_bytes, slope};
use crate::server::{Process, Trouble};

/// Sessions at the first point: by then buffers and pools are as large as opening makes them.
const FIRST: u32 = 5_000;
const STEP: u32 = 2_000;
const LAST: u32 = 15_000;
/// What the slope must not exceed.
const MUST: f64 = 256.0;
const CONNECTIONS: &str = "ringway_connection_bytes";
const QUEUES: &str = "ringway_queue_bytes";
/// Threads that send the burst.
const SENDERS: u32 = 16;
/// Caches that change for other reasons than a connection's: names that somebody looked up, and connections that ended.
const OF_OTHERS: [&str; 3] = ["dentry", "proc_inode_cache", "tw_sock_TCP"];

/// What the server says that it uses, by owner; the ring's part is the size of its slot.
const OWNERS: [(&str, &str); 4] = [
    (CONNECTIONS, "gateway: entry and wheel"),
    (QUEUES, "gateway: queues kept for reuse"),
    ("ringway_chat_sessions_bytes", "sessions"),
    ("ringway_chat_users_bytes", "users, with their index"),
];

/// The server at rest with so many sessions.
struct Point {
    sessions: f64,
    /// Bytes.
    pss: f64,
    /// Bytes that a counting server holds of the heap, by the size of the pieces.
    heap: BTreeMap<String, f64>,
    owners: [f64; OWNERS.len()],
    /// Of the phones, in this process.
    phones: f64,
}

impl Point {
    fn take(server: &Process) -> Self {
        let text = server.metrics();
        let value = |line: &str, name: &str| line.strip_prefix(name)?.strip_prefix(' ')?.parse::<f64>().ok();
        let metric = |name: &str| text.lines().find_map(|line| value(line, name)).unwrap_or(f64::NAN);
        let of_queues = metric(QUEUES);
        let of = |name: &str| if name == CONNECTIONS { metric(name) - of_queues } else { metric(name) };
        let heap = text.lines().filter_map(|line| {
            let (size, bytes) = line.strip_prefix("ringway_heap_bytes{up_to=\"")?.split_once("\"}")?;
            Some((size.to_owned(), bytes.trim().parse().ok()?))
        });
        Self {
            sessions: metric("ringway_chat_sessions"),
            pss: server.anonymous_kib() as f64 * 1_024.0,
            heap: heap.collect(),
            owners: OWNERS.map(|(name, _)| of(name)),
            phones: field("/proc/self/smaps_rollup", "Pss_Anon:") as f64 * 1_024.0,
        }
    }

    fn heap_bytes(&self) -> f64 {
        if self.heap.is_empty() { f64::NAN } else { self.heap.values().sum() }
    }
}

/// Opens sessions in steps and reads memory at each, then lets them chat and rest; a fresh server each round.
pub fn run(rounds: u32, rest: u64) -> Result<(), Trouble> {
    let method = format!(
        "Sessions of distinct users without conversations, one shard, opened by token, 1,000 a second, and beating every \
         30 s; from {FIRST} to {LAST} in steps of {STEP} the server's Pss_Anon (/proc/PID/smaps_rollup) is read, {rest} s \
         after the last opened.\nThe median of the slopes between all pairs of points (Theil-Sen): a buffer that grows \
         or goes once moves a few of them only. The allocator gives freed pages back at once (MIMALLOC_PURGE_DELAY=0) \
         and takes 4 KiB pages (MIMALLOC_ALLOW_THP=0): with transparent huge ones all {LAST} sessions lie in two or \
         three pages of 2 MiB, and the figure would be how those were rounded.\nKernel: growth of the slab caches \
         between the first and the last point, per session with both of its ends; less that of as many plain sockets, accepted \
         and held by a process that waits for none of them, with the same ends on the client's side: what remains is what the \
         server's way of waiting adds to a socket.\nThen \
         every user sends a message to another over REST, and {rest} s later memory is read again."
    );
    println!("{method}\n");
    // First, since sockets of a server that ended are taken apart long after it, and would count as growth that was not.
    let plain = plain_sockets(rest)?;
    let rounds = (1..=rounds).map(|round| one_round(round, rest)).collect::<Result<Vec<_>, _>>()?;
    let of =
        |name: &str| median(&rounds.iter().map(|round| round[name].as_f64().unwrap_or(f64::NAN)).collect::<Vec<_>>());
    let bytes = of("bytes_per_session");
    println!("\n{bytes:.0} bytes per session; must be at most {MUST:.0}");
    let added = added(&rounds, &plain);
    let sum: f64 = added.values().sum();
    println!("kernel, added to a socket: {sum:.0} bytes ({}); must be at most 300", listed_map(&added));
    let result = json!({
        "kernel_plain_bytes": plain.values().sum::<f64>(), "kernel_plain_by_cache": plain, "kernel_added_bytes": added,
        "bytes_per_session": bytes, "used_bytes_per_session": of("used_bytes_per_session"),
        "heap_bytes_per_session": of("heap_bytes_per_session"), "fixed_bytes": of("fixed_bytes"),
        "must": MUST, "met": bytes <= MUST, "rounds": rounds,
    });
    println!("{}", save("idle", &method, "cargo run --release -p bench -- idle", result)?.display());
    Ok(())
}

fn one_round(round: u32, rest: u64) -> Result<Value, Trouble> {
    let scratch = Scratch::new("idle")?;
    let server = Process::ringway_in_small_pages(&scratch.path, None, &["--shards", "1"])?;
    let key = TokenKey::of_dev(&scratch.path)?;
    let stop = Arc::new(AtomicBool::new(false));
    let (mut phones, mut points, mut slabs) = (Vec::new(), Vec::new(), Vec::new());
    let mut open = 0;
    for sessions in (FIRST..=LAST).step_by(STEP as usize) {
        phones.push(hold_sessions(&server, &key, open + 1, sessions - open, &stop)?);
        open = sessions;
        std::thread::sleep(Duration::from_secs(rest));
        let point = Point::take(&server);
        if (point.sessions - f64::from(open)).abs() > 0.5 {
            return Err(format!("{} sessions were open instead of {open}", point.sessions).into());
        }
        points.push(point);
        slabs.push(slab_bytes());
    }
    let figures =
        |of: &dyn Fn(&Point) -> f64| points.iter().map(|point| (point.sessions, of(point))).collect::<Vec<_>>();
    let (pss, heap) = (figures(&|point| point.pss), figures(&Point::heap_bytes));
    let kib: Vec<_> = points.iter().map(|point| (point.pss / 1_024.0) as u64).collect();
    println!(
        "round {round}: KiB {kib:?}, {:.0} bytes per session and {:.1} MiB fixed; phones {:.0} bytes each",
        slope(&pss),
        intercept(&pss) / 1_048_576.0,
        slope(&figures(&|point| point.phones)),
    );
    let mut owners = BTreeMap::from([("ring: slot", ring::CONNECTION_BYTES as f64)]);
    owners
        .extend(OWNERS.iter().enumerate().map(|(at, (_, owner))| (*owner, slope(&figures(&|point| point.owners[at])))));
    let used: f64 = owners.values().sum();
    println!("  used {used:.0}, by owner: {}", listed(owners.iter().map(|(owner, bytes)| (*owner, *bytes))));
    let classes = points.iter().flat_map(|point| point.heap.keys()).collect::<std::collections::BTreeSet<_>>();
    let by_size = classes
        .into_iter()
        .map(|class| (class.as_str(), slope(&figures(&|point| point.heap.get(class).copied().unwrap_or(0.0)))));
    let by_size: Vec<_> = by_size.filter(|(_, bytes)| bytes.abs() >= 1.0).collect();
    println!("  heap {:.0}, by size of pieces up to: {}", slope(&heap), listed(by_size.iter().copied()));
    let kernel = kernel_growth(&slabs);
    println!("  kernel, both ends: {}", listed_map(&kernel));
    let before = points.pop().expect("there are several points");
    let burst = burst(&server, &key, &before, rest)?;
    stop.store(true, Ordering::Relaxed);
    for thread in phones {
        thread.join().map_err(|_| "a thread of phones panicked")??;
    }
    Ok(json!({
        "kib": kib, "bytes_per_session": slope(&pss), "fixed_bytes": intercept(&pss),
        "used_bytes_per_session": used, "by_owner": owners, "heap_bytes_per_session": slope(&heap),
        "kernel_bytes": kernel, "burst": burst,
    }))
}

fn listed<'a>(of: impl Iterator<Item = (&'a str, f64)>) -> String {
    let all: Vec<_> = of.map(|(name, bytes)| format!("{name} {bytes:.1}")).collect();
    if all.is_empty() { "nothing".to_owned() } else { all.join(", ") }
}

fn listed_map(of: &BTreeMap<String, f64>) -> String {
    listed(of.iter().map(|(name, bytes)| (name.as_str(), *bytes)))
}

type Held = std::thread::JoinHandle<Result<RunResult, RunError>>;

/// Opens sessions that stay until `stop`; returns when all are open.
fn hold_sessions(
    server: &Process,
    key: &TokenKey,
    first_user: u32,
    users: u32,
    stop: &Arc<AtomicBool>,
) -> Result<Held, Trouble> {
    let mut plan = Plan::new(&format!("ws://{}", server.address), key.clone(), users);
    plan.scenario.sessions.first_user = u64::from(first_user);
    plan.scenario.sessions.connections_per_second = 1_000.0;
    plan.scenario.traffic.duration = Span::s(3_600);
    let stop = Arc::clone(stop);
    let (opened, all_open) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        hold(&plan, &stop, |line| {
            if line.open == line.users {
                // Whoever waited has gone on after the first.
                let _ = opened.send(());
            }
        })
    });
    all_open.recv_timeout(Duration::from_mins(1)).map_err(|_| "not all sessions could be opened within a minute")?;
    Ok(thread)
}

/// Every user sends one message to the next one of its pair; both have it pushed to their sessions.
fn burst(server: &Process, key: &TokenKey, before: &Point, rest: u64) -> Result<Value, Trouble> {
    let address = server.address;
    let sent = std::thread::scope(|scope| {
        let senders: Vec<_> = (0..SENDERS)
            .map(|sender| {
                scope.spawn(move || (sender + 1..=LAST).step_by(SENDERS as usize).try_for_each(send_with(address, key)))
            })
            .collect();
        senders.into_iter().try_for_each(|sender| sender.join().expect("a sender does not panic"))
    });
    sent?;
    std::thread::sleep(Duration::from_secs(rest));
    let after = Point::take(server);
    let per_session = |bytes: f64| bytes / f64::from(LAST);
    let metric = |name| server.metric(name);
    let (tails, conversations) = (metric("ringway_chat_tails_bytes"), metric("ringway_chat_conversations"));
    let queues = after.owners[1] - before.owners[1];
    let grown = per_session(after.pss - before.pss);
    println!(
        "  after a burst: {grown:+.0} bytes per session; queues kept {:+.0}, letters kept for who comes back {:.0}, \
         conversations in memory {:.2}",
        per_session(queues),
        per_session(tails),
        per_session(conversations),
    );
    let grown_by_size = after
        .heap
        .iter()
        .map(|(size, bytes)| (size.as_str(), per_session(bytes - before.heap.get(size).copied().unwrap_or(0.0))));
    let by_size: Vec<_> = grown_by_size.filter(|(_, bytes)| bytes.abs() >= 8.0).collect();
    println!("  of it on the heap, by size of pieces up to: {}", listed(by_size.iter().copied()));
    Ok(json!({
        "bytes_per_session_more": grown, "heap_bytes_per_session_more": per_session(after.heap_bytes() - before.heap_bytes()),
        "queue_bytes_per_session_more": per_session(queues), "tail_bytes_per_session": per_session(tails),
        "conversations_per_session": per_session(conversations),
    }))
}

/// Sends a user's message, over one connection for all calls.
fn send_with(address: SocketAddr, key: &TokenKey) -> impl FnMut(u32) -> Result<(), Trouble> {
    let mut connection: Option<BufReader<TcpStream>> = None;
    move |user| {
        let stream = match &mut connection {
            Some(stream) => stream,
            None => connection.insert(BufReader::new(TcpStream::connect(address)?)),
        };
        // One and two, three and four: each has one conversation.
        let peer = ((user - 1) ^ 1) + 1;
        let body = format!("{{\"to\":\"{peer}\",\"body\":\"{}\"}}", "x".repeat(100));
        let token = key.token(UserId(u64::from(user)), 9);
        let head = format!(
            "POST /v1/messages HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {token}\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.get_mut().write_all(format!("{head}{body}").as_bytes())?;
        read_answer(stream)
    }
}

fn read_answer(stream: &mut BufReader<TcpStream>) -> Result<(), Trouble> {
    let (mut line, mut bytes, mut status) = (String::new(), 0, None);
    loop {
        line.clear();
        if stream.read_line(&mut line)? == 0 {
            return Err("the server hung up on a sender".into());
        }
        let line = line.trim_end().to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        status.get_or_insert_with(|| line.clone());
        if let Some(length) = line.strip_prefix("content-length:") {
            bytes = length.trim().parse()?;
        }
    }
    let mut body = vec![0; bytes];
    stream.read_exact(&mut body)?;
    match status {
        Some(line) if line.contains(" 20") => Ok(()),
        status => Err(format!("{status:?}: {}", String::from_utf8_lossy(&body)).into()),
    }
}

/// As many connections as the points are apart, to a process that waits for none of them.
fn plain_sockets(rest: u64) -> Result<BTreeMap<String, f64>, Trouble> {
    let server = Process::own(&["probe-hold"])?;
    let mut crowd = Crowd::new(LAST - FIRST)?;
    let before = slab_bytes();
    crowd.connect(&to_one(server.address), |_, _, _| Ok(()))?;
    for _ in 0..rest {
        crowd.turn(Duration::from_secs(1), |_, _, _| Ok(()))?;
    }
    Ok(kernel_growth(&[before, slab_bytes()]))
}

/// What sessions have of the kernel over what plain sockets have of it.
fn added(rounds: &[Value], plain: &BTreeMap<String, f64>) -> BTreeMap<String, f64> {
    let caches = rounds.iter().filter_map(|round| round["kernel_bytes"].as_object()).flat_map(|caches| caches.keys());
    let caches: std::collections::BTreeSet<_> = caches.collect();
    let of = |cache: &String| {
        let bytes: Vec<_> = rounds.iter().map(|round| round["kernel_bytes"][cache].as_f64().unwrap_or(0.0)).collect();
        (cache.clone(), median(&bytes) - plain.get(cache).copied().unwrap_or(0.0))
    };
    caches.into_iter().map(of).filter(|(_, bytes)| *bytes >= 8.0).collect()
}

/// Which caches grew with the sessions, by how much per session and both of its ends.
fn kernel_growth(slabs: &[BTreeMap<String, f64>]) -> BTreeMap<String, f64> {
    let (Some(first), Some(last)) = (slabs.first(), slabs.last()) else { return BTreeMap::new() };
    let grown = last.iter().map(|(cache, bytes)| {
        let more = bytes - first.get(cache).copied().unwrap_or(0.0);
        (cache.clone(), more / f64::from(LAST - FIRST))
    });
    grown.filter(|(cache, bytes)| *bytes >= 8.0 && !OF_OTHERS.contains(&cache.as_str())).collect()
}
