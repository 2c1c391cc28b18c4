//! How long a server takes to serve again after kill -9, with few conversations and with many.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use loadgen::key::TokenKey;
use serde_json::{Value, json};
use wire::ids::UserId;

use crate::figures::{Scratch, field, save};
use crate::server::{Process, Trouble};

/// Conversations of one sender: as many as a user's list reads.
const OF_ONE_SENDER: u32 = 5_000;
const FIRST_RECIPIENT: u64 = 1_000_000_000;
const CLIENTS: u32 = 64;

/// Fills a server to a tenth of `conversations` and then to all, each with one message, and kills and starts it
/// at both.
pub fn run(conversations: u32) -> Result<(), Trouble> {
    let method = format!(
        "One message into each of {conversations} conversations over REST, {CLIENTS} at a time, embedded storage, one \
         shard; after a tenth of them and after all the server is killed with SIGKILL and started again in the same directory. \
         Time from the start of the process until /health/ready says so; what it replayed by its own count; \
         memory as Pss_Anon when it is ready. A thousand of the messages are read back then."
    );
    println!("{method}\n");
    let scratch = Scratch::new("restart")?;
    let mut rows = Vec::new();
    let mut from = 0;
    let mut server = Process::ringway(&scratch.path, None, &["--shards", "1"])?;
    for to in [conversations / 10, conversations] {
        let begun = Instant::now();
        fill(&server, &scratch.path, from..to)?;
        println!("{to} conversations, filled in {:.0} s", begun.elapsed().as_secs_f64());
        let (journal, views) = (bytes_below(&scratch.path.join("journal")), bytes_below(&scratch.path.join("views")));
        drop(server);
        let begun = Instant::now();
        server = Process::ringway(&scratch.path, None, &["--shards", "1"])?;
        let seconds = begun.elapsed().as_secs_f64();
        let count = |name: &str| server.metric(&format!("ringway_store_{name}"));
        let (records, bytes) = (count("recovered_records_total"), count("recovered_bytes_total"));
        let memory_kib = server.anonymous_kib();
        let peak_kib = field(&format!("/proc/{}/status", server.id()), "VmHWM:");
        println!(
            "  ready after {seconds:.2} s: {records:.0} records ({:.1} MiB) replayed, {} MiB of memory ({} at most), journal {} MiB, views {} MiB",
            bytes / f64::from(1 << 20),
            memory_kib >> 10,
            peak_kib >> 10,
            journal >> 20,
            views >> 20
        );
        read_back(&server, &scratch.path, to)?;
        println!("  a thousand of them read back");
        rows.push(json!({
            "conversations": to, "ready_seconds": seconds, "replayed_records": records, "replayed_bytes": bytes,
            "memory_kib": memory_kib, "memory_peak_kib": peak_kib, "journal_bytes": journal, "views_bytes": views,
        }));
        from = to;
    }
    let command = format!("cargo run --release -p bench -- restart --conversations {conversations}");
    println!("{}", save("restart", &method, &command, json!({ "rounds": Value::from(rows) }))?.display());
    Ok(())
}

fn sender(conversation: u32) -> u64 {
    1 + u64::from(conversation / OF_ONE_SENDER)
}

fn recipient(conversation: u32) -> u64 {
    FIRST_RECIPIENT + u64::from(conversation)
}

fn fill(server: &Process, data: &Path, range: std::ops::Range<u32>) -> Result<(), Trouble> {
    let next = AtomicU32::new(range.start);
    let (key, address) = (TokenKey::of_dev(data)?, server.address);
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| {
                scope.spawn(|| -> Result<(), Trouble> {
                    let mut client = Client::new(address);
                    loop {
                        let conversation = next.fetch_add(1, Ordering::Relaxed);
                        if conversation >= range.end {
                            return Ok(());
                        }
                        client.sign_in(&key, sender(conversation));
                        let message = json!({ "to": recipient(conversation).to_string(), "body": "hello" });
                        client.ask("POST", "/v1/messages", &message.to_string())?;
                    }
                })
            })
            .collect();
        clients.into_iter().try_for_each(|client| client.join().map_err(|_| "a client panicked")?)
    })
}

fn read_back(server: &Process, data: &Path, conversations: u32) -> Result<(), Trouble> {
    let key = TokenKey::of_dev(data)?;
    let mut client = Client::new(server.address);
    for conversation in (0..conversations).step_by((conversations / 1_000).max(1) as usize) {
        let (sender, recipient) = (sender(conversation), recipient(conversation));
        client.sign_in(&key, sender);
        let answer = client.ask("GET", &format!("/v1/conversations/dm.{sender}.{recipient}/messages"), "")?;
        if !answer.contains("\"hello\"") {
            return Err(format!("the message from {sender} to {recipient} is not there: {answer}").into());
        }
    }
    Ok(())
}

/// A connection that is kept, and somebody's token.
struct Client {
    address: SocketAddr,
    stream: Option<TcpStream>,
    user: u64,
    token: String,
    answer: Vec<u8>,
}

impl Client {
    fn new(address: SocketAddr) -> Self {
        Self { address, stream: None, user: 0, token: String::new(), answer: Vec::new() }
    }

    fn sign_in(&mut self, key: &TokenKey, user: u64) {
        if self.user != user {
            self.user = user;
            self.token = key.token(UserId(user), 1);
        }
    }

    /// The answer's body. Whoever is told to come again does.
    fn ask(&mut self, method: &str, path: &str, body: &str) -> Result<String, Trouble> {
        const ATTEMPTS: u32 = 50;
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {}\r\nContent-Length: {}\r\n\r\n{body}",
            self.token,
            body.len()
        );
        for _ in 0..ATTEMPTS {
            let (status, body) = self.exchange(&request)?;
            match status {
                200..=299 => return Ok(body),
                429 | 503 => std::thread::sleep(Duration::from_millis(100)),
                _ => return Err(format!("{method} {path} was answered {status}: {body}").into()),
            }
        }
        Err(format!("{method} {path} was refused {ATTEMPTS} times").into())
    }

    fn exchange(&mut self, request: &str) -> Result<(u16, String), Trouble> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            none => none.insert(TcpStream::connect(self.address)?),
        };
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        stream.write_all(request.as_bytes())?;
        self.answer.clear();
        loop {
            let mut bytes = [0; 4_096];
            let count = stream.read(&mut bytes)?;
            if count == 0 {
                return Err("the server closed the connection".into());
            }
            self.answer.extend_from_slice(&bytes[..count]);
            if let Some(answer) = whole(&self.answer) {
                return Ok(answer);
            }
        }
    }
}

/// Status and body, once all of it is there.
fn whole(answer: &[u8]) -> Option<(u16, String)> {
    let head_bytes = answer.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let head = std::str::from_utf8(&answer[..head_bytes]).ok()?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let length: usize = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
    })?;
    let body = answer.get(head_bytes..head_bytes + length)?;
    Some((status, String::from_utf8_lossy(body).into_owned()))
}

/// Bytes of all files in a directory and below, as the disk has them.
pub fn bytes_below(directory: &Path) -> u64 {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let bytes = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(about) if about.is_dir() => bytes_below(&entry.path()),
        Ok(about) => std::os::unix::fs::MetadataExt::blocks(&about) * 512,
        Err(_) => 0,
    };
    entries.map(bytes).sum()
}
