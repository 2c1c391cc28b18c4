//! T6 beside NATS JetStream: durable messages between two, one in flight per pair.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use loadgen::key::TokenKey;

use super::{Orders, Peers};
use crate::contest;
use crate::crowd::{Crowd, Outbox, to_one};
use crate::figures::{Scratch, save};
use crate::loads::opening::{self, Opening, Step};
use crate::loads::pairs::{self, Talk};
use crate::opened::Sessions;
use crate::routed::{Chat, number};
use crate::server::{Process, Trouble, pinned, two_free_ports};

const BODY_BYTES: usize = 128;

pub(super) fn run(orders: &Orders, peers: &Peers) -> Result<(), Trouble> {
    let connections = orders.connections / 2 * 2;
    let method = format!(
        "{connections} connections in pairs, one message of {BODY_BYTES} bytes in flight per pair; the next is sent when it is acknowledged \
         as kept. Both store on this disk and sync before they acknowledge. Server with all its threads on core 0, client on \
         core 1; processor time of all threads per message, {} s a measurement after 0.5 s of warming up. Ringway delivers when the \
         message is kept, NATS at once; every message must have been delivered.",
        orders.seconds
    );
    println!("{method}\n");
    let scratch = Scratch::new("peers-durable")?;
    let ringway = Process::ringway(&scratch.path.join("ringway"), Some(0), &["--shards", "1"])?;
    let mut sessions = Sessions::mint(&TokenKey::of_dev(&scratch.path.join("ringway"))?, 1, connections, &ringway);
    let mut ours = Crowd::new(connections)?;
    opening::open(&ringway, &mut ours, &to_one(ringway.address), &mut sessions)?;
    let mut chat = Chat::without_marks(connections);
    let mut names = vec!["ringway"];
    let mut theirs = None;
    for peer in &peers.had {
        let server = start(peer, &scratch)?;
        let (mut crowd, mut nats) = (Crowd::new(connections)?, Nats::new(connections));
        make_stream(&server)?;
        opening::open(&server, &mut crowd, &to_one(server.address), &mut nats)?;
        names.push(peer.name);
        theirs = Some((server, crowd, nats));
    }
    let (warm_up, seconds) = (Duration::from_millis(500), Duration::from_secs(orders.seconds));
    let outcome = contest::run(&names, 1, orders.rounds, |side| {
        if side == 0 {
            let sample = pairs::talk(&ringway, &mut ours, &mut chat, warm_up, seconds)?;
            chat.check_delivered()?;
            return Ok(sample);
        }
        let (server, crowd, nats) = theirs.as_mut().ok_or("it was not started")?;
        let sample = pairs::talk(server, crowd, nats, warm_up, seconds)?;
        nats.check_delivered()?;
        Ok(sample)
    })?;
    outcome.show("ringway");
    let mut result = outcome.to_json(&["ringway"]);
    result["connections"] = connections.into();
    result["peers"] = peers.to_json();
    let command = format!("cargo run --release -p bench -- peers durable --connections {connections}");
    println!("{}", save("peers-durable", &method, &command, result)?.display());
    Ok(())
}

fn start(peer: &super::Peer, scratch: &Scratch) -> Result<Process, Trouble> {
    let address = two_free_ports()?;
    let config = scratch.path.join("nats.conf");
    let store = scratch.path.join("nats");
    let text = format!(
        "listen: \"{address}\"\nmax_connections: 64000\njetstream {{\n  store_dir: {:?}\n  sync_interval: always\n}}\n",
        store.display().to_string()
    );
    std::fs::write(&config, text)?;
    let mut command: Command = pinned((peer.command)(address).get_program().as_ref(), Some(0));
    command.arg("-c").arg(&config).stderr(std::process::Stdio::null());
    Process::of_peer(command, address)
}

/// One stream for all users, in files.
fn make_stream(server: &Process) -> Result<(), Trouble> {
    let stream = r#"{"name":"CHAT","subjects":["u.*"],"storage":"file","retention":"limits","num_replicas":1}"#;
    let mut socket = TcpStream::connect(server.address)?;
    socket.set_read_timeout(Some(Duration::from_secs(10)))?;
    let (api, bytes) = ("$JS.API.STREAM.CREATE.CHAT", stream.len());
    write!(socket, "CONNECT {{\"verbose\":false}}\r\nSUB made 1\r\nPUB {api} made {bytes}\r\n{stream}\r\n")?;
    let (mut said, mut piece) = (Vec::new(), [0; 4_096]);
    while !said.windows(9).any(|window| window == b"MSG made ") || !said.ends_with(b"}\r\n") {
        let bytes = socket.read(&mut piece)?;
        if bytes == 0 {
            return Err("NATS hung up".into());
        }
        said.extend_from_slice(&piece[..bytes]);
    }
    let said = String::from_utf8_lossy(&said);
    if said.contains("\"error\"") { Err(format!("no stream: {said}").into()) } else { Ok(()) }
}

/// Clients in NATS's own protocol.
struct Nats {
    body: Vec<u8>,
    carries: Vec<Vec<u8>>,
    sent: u64,
    delivered: u64,
}

impl Nats {
    fn new(connections: u32) -> Self {
        Self { body: vec![b'x'; BODY_BYTES], carries: vec![Vec::new(); connections as usize], sent: 0, delivered: 0 }
    }

    fn check_delivered(&self) -> Result<(), Trouble> {
        let (sent, delivered) = (self.sent, self.delivered);
        if sent == delivered { Ok(()) } else { Err(format!("{delivered} of {sent} messages were delivered").into()) }
    }
}

impl Opening for Nats {
    fn first(&mut self, who: u32, out: &mut Vec<u8>) {
        let hello = format!("CONNECT {{\"verbose\":false}}\r\nSUB u.{who} 1\r\nSUB ack.{who} 2\r\nPING\r\n");
        out.extend_from_slice(hello.as_bytes());
    }

    fn heard(&mut self, who: u32, bytes: &[u8]) -> Result<Step, Trouble> {
        let carry = &mut self.carries[who as usize];
        carry.extend_from_slice(bytes);
        let is_open = carry.ends_with(b"PONG\r\n");
        if is_open {
            carry.clear();
        }
        Ok(if is_open { Step::IsOpen } else { Step::Waits })
    }

    fn second(&mut self, _: u32, _: &mut Vec<u8>) {}
}

impl Talk for Nats {
    fn send(&mut self, pair: u32, out: &mut Vec<u8>) {
        self.sent += 1;
        let (from, to) = (2 * pair, 2 * pair + 1);
        out.extend_from_slice(format!("PUB u.{to} ack.{from} {BODY_BYTES}\r\n").as_bytes());
        out.extend_from_slice(&self.body);
        out.extend_from_slice(b"\r\n");
    }

    fn heard(&mut self, who: u32, bytes: &mut [u8], outbox: &mut Outbox) -> Result<bool, Trouble> {
        let carry = &mut self.carries[who as usize];
        carry.extend_from_slice(bytes);
        let (mut at, mut is_complete) = (0, false);
        while let Some(end) = carry[at..].windows(2).position(|window| window == b"\r\n") {
            let line = &carry[at..at + end];
            let after = at + end + 2;
            if line.starts_with(b"MSG ") {
                let text = String::from_utf8_lossy(line);
                let length: usize = text.rsplit(' ').next().ok_or("a message without a length")?.parse()?;
                if carry.len() < after + length + 2 {
                    break;
                }
                let body = &carry[after..after + length];
                if text.starts_with("MSG ack.") {
                    number(body, b"\"seq\":").ok_or_else(|| String::from_utf8_lossy(body).into_owned())?;
                    is_complete = true;
                } else {
                    self.delivered += 1;
                }
                at = after + length + 2;
                continue;
            }
            match line {
                b"PING" => outbox.say(who, b"PONG\r\n"),
                b"-ERR" => return Err(String::from_utf8_lossy(line).into_owned().into()),
                _ => {}
            }
            at = after;
        }
        carry.drain(..at);
        Ok(is_complete)
    }
}
