//! The other end of an echo: connections with one message in flight each, as fast as they come back.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use loadgen::run::cpu_seconds;
use ring::{Connection, Doorbell, Event, EventBatch, KernelRing, Op, Ops, RingConfig};
use serde::{Deserialize, Serialize};
use wire::upgrade::{UpgradeRequest, read_upgrade_response, write_upgrade_request};
use wire::writer::{Opcode, write_frame};

use crate::server::{Trouble, cores, cpu_ns, machine_cpu_ns};

/// What to echo, and for how long.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    pub address: SocketAddr,
    /// A WebSocket at `/echo`; otherwise the same bytes without a handshake.
    pub websocket: bool,
    pub connections: u32,
    pub payload_bytes: usize,
    pub warm_up: Duration,
    pub measure: Duration,
    /// Whose processor time is counted.
    pub server: u32,
}

/// What came of it.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Echoed {
    pub echoes: u64,
    pub seconds: f64,
    pub server_cpu_ns: u64,
    pub client_cpu_ns: u64,
    /// Processor time of everybody else, as a part of the whole machine's.
    pub foreign: f64,
}

const NONCE: [u8; 16] = *b"an echo's nonce!";

/// Where one connection stands.
#[derive(Debug, Clone)]
struct Line {
    connection: Option<Connection>,
    head: Vec<u8>,
    ready: bool,
    /// Bytes of the answer that have not come.
    left: usize,
}

/// Echoes and counts.
pub fn run(load: &Load) -> Result<Echoed, Trouble> {
    let config = RingConfig {
        connections_max: load.connections + 8,
        completions: 16_384,
        receive_buffers: 4_096,
        receive_buffer_bytes: 512,
        ..RingConfig::default()
    };
    let mut ring = KernelRing::new(&config, Doorbell::new()?)?;
    let (mut events, mut ops) = (EventBatch::with_capacity(8_192, 1 << 20), Ops::with_capacity(8_192));
    let mut frame = Vec::new();
    write_frame(&mut frame, Opcode::Binary, Some([1, 2, 3, 4]), &vec![b'x'; load.payload_bytes]);
    // A server's frame carries no mask.
    let answer_bytes = if load.websocket { frame.len() - 4 } else { frame.len() };
    let host = load.address.to_string();
    let upgrade = UpgradeRequest { host: &host, target: "/echo", nonce: NONCE, subprotocol: None, bearer: None };
    let line = Line { connection: None, head: Vec::new(), ready: false, left: 0 };
    let mut lines = vec![line; load.connections as usize];
    let mut owners = vec![u32::MAX; load.connections as usize + 8];
    let mut spare: Vec<Vec<u8>> = Vec::new();
    for token in 0..u64::from(load.connections) {
        ops.push(Op::Connect { token, address: load.address, source: None });
    }
    ring.submit(&mut ops);
    let (mut ready, mut echoes) = (0, 0_u64);
    let mut begun: Option<Begun> = None;
    let deadline = Instant::now() + Duration::from_secs(30) + load.warm_up + load.measure;
    let mut warm_at = None;
    loop {
        ring.wait(Some(Duration::from_millis(100)), &mut events)?;
        while let Some(event) = events.pop() {
            match event {
                Event::Connected { connection, token } => {
                    owners[connection.slot() as usize] = token as u32;
                    let line = &mut lines[token as usize];
                    line.connection = Some(connection);
                    if load.websocket {
                        let mut buffer = spare.pop().unwrap_or_default();
                        write_upgrade_request(&mut buffer, &upgrade);
                        ops.push(Op::Send { connection, buffer });
                    } else {
                        line.ready = true;
                        ready += 1;
                    }
                }
                Event::Received { connection, range } => {
                    let line = &mut lines[owners[connection.slot() as usize] as usize];
                    if !line.ready {
                        line.head.extend_from_slice(events.data(range));
                        if read_upgrade_response(&line.head, &upgrade)?.is_some() {
                            line.ready = true;
                            line.head = Vec::new();
                            ready += 1;
                        }
                        continue;
                    }
                    line.left = line.left.checked_sub(range.len()).ok_or("the server said more than it was sent")?;
                    if line.left == 0 {
                        echoes += 1;
                        say(connection, &frame, &mut spare, &mut ops);
                        line.left = answer_bytes;
                    }
                }
                Event::Sent { mut buffer, .. } => {
                    buffer.clear();
                    spare.push(buffer);
                }
                Event::ConnectFailed { error, .. } => return Err(format!("a connection failed: {error:?}").into()),
                Event::Closed { reason, .. } => return Err(format!("the server hung up: {reason:?}").into()),
                _ => {}
            }
        }
        let now = Instant::now();
        if warm_at.is_none() && ready == load.connections {
            for line in &mut lines {
                line.left = answer_bytes;
                say(line.connection.expect("it is ready"), &frame, &mut spare, &mut ops);
            }
            warm_at = Some(now + load.warm_up);
        }
        ring.submit(&mut ops);
        match &begun {
            None if warm_at.is_some_and(|at| at <= now) => begun = Some(Begun::now(load, echoes)),
            Some(begun) if begun.at.elapsed() >= load.measure => return Ok(begun.until_now(load, echoes)),
            _ if now > deadline => return Err("not all connections could be made".into()),
            _ => {}
        }
    }
}

fn say(connection: Connection, frame: &[u8], spare: &mut Vec<Vec<u8>>, ops: &mut Ops) {
    let mut buffer = spare.pop().unwrap_or_default();
    buffer.extend_from_slice(frame);
    ops.push(Op::Send { connection, buffer });
}

/// Where counting began.
struct Begun {
    at: Instant,
    echoes: u64,
    server_ns: u64,
    client_s: f64,
    machine_ns: u64,
}

impl Begun {
    fn now(load: &Load, echoes: u64) -> Self {
        let (server_ns, client_s, machine_ns) = (cpu_ns(load.server), cpu_seconds(), machine_cpu_ns());
        Self { at: Instant::now(), echoes, server_ns, client_s, machine_ns }
    }

    fn until_now(&self, load: &Load, echoes: u64) -> Echoed {
        let now = Self::now(load, echoes);
        let seconds = (now.at - self.at).as_secs_f64();
        let (server, client) = (now.server_ns - self.server_ns, ((now.client_s - self.client_s) * 1e9) as u64);
        let others = (now.machine_ns - self.machine_ns).saturating_sub(server + client) as f64;
        Echoed {
            echoes: now.echoes - self.echoes,
            seconds,
            server_cpu_ns: server,
            client_cpu_ns: client,
            foreign: others / (seconds * f64::from(cores()) * 1e9),
        }
    }
}
