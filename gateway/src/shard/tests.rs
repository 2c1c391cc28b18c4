//! The shard with everything around it made by hand: time, ring and storage are a few lines each.

mod limits;

use ring::{CloseReason, Connection, ListenerId, Op};
use shard_router::{MailLimits, SlotMap};
use storage::seam::{Class, Outcome, Rows};
use wire::ids::{DeviceId, UserId};
use wire::reader::{Event as Frame, Input as FrameInput, Reader};
use wire::websocket::{Limits, Role};
use wire::writer::{Opcode, write_frame};

use super::*;
use crate::auth::{TokenOrder, sign};
use crate::config::KeyAlgorithm;

const WALL_MS: u64 = 1_700_000_000_000;
const SECRET: [u8; 32] = [7; 32];
const PEER: &str = "127.0.0.1:1";

/// A shard, and what it was made to do.
struct World {
    shard: Shard,
    now: Now,
    input: Input,
    output: Output,
    /// Operations in the order in which they came, sends left out.
    ops: Vec<Op>,
    /// Bytes sent on each connection.
    sent: Vec<Vec<u8>>,
    /// Sends that the peer has not taken.
    outstanding: Vec<Option<Vec<u8>>>,
    /// Whether peers take what is sent to them.
    peers_read: bool,
}

fn settings() -> ShardSettings {
    ShardSettings {
        shard: 0,
        node: "test".to_owned(),
        connections_max: 2_048,
        echo: true,
        allowed_origins: Vec::new(),
        token_in_url: false,
        body_bytes_max: 1_024,
        outbound_bytes_max: 8_192,
        handshake_ms: 5_000,
        stall_ms: 30_000,
        idle_ms: 30_000,
        request_ms: 10_000,
        frames: FrameRate { per_second: 100, at_once: 1_000 },
    }
}

fn world() -> World {
    let now = Now { monotonic_ms: 1_000, wall_ms: WALL_MS };
    let facts = StoreFacts { generation: 9, epoch: 1, class: Class::D1 };
    let map = Arc::new(SlotMap::single_node(1, 1));
    let mailbox = Mailbox::for_all(&map, MailLimits::default(), vec![Box::new(|| {})]).remove(0);
    let secret = base64::Engine::encode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, SECRET).into_bytes();
    let keys = [("k".to_owned(), KeyAlgorithm::Hs256, secret)];
    let auth = Arc::new(Authenticator::new(keys, "i", "a", &[1; 32]).unwrap());
    let slots = SlotMap::clone(&map);
    let chat = ChatConfig { shard: 0, slots, facts: facts.clone(), limits: chat::Limits::default(), seed: 1 };
    let shard = Shard::new(ShardParts { settings: settings(), chat, facts, auth, mailbox }, now);
    let mut world = World {
        shard,
        now,
        input: Input::default(),
        output: Output::default(),
        ops: Vec::new(),
        sent: Vec::new(),
        outstanding: Vec::new(),
        peers_read: true,
    };
    let tails = map.slots_of_shard(0).map(|slot| (slot.number(), 0)).collect();
    world.input.storage.push(StorageEvent::RecoveredAll { tails, forgotten_until_ms: 0 });
    world.turn();
    assert!(world.shard.is_serving());
    world
}

impl World {
    /// Turns until nothing more happens at this moment.
    fn turn(&mut self) {
        for _ in 0..20 {
            self.shard.turn(self.now, &mut self.input, &mut self.output);
            for op in self.output.ring.drain() {
                match op {
                    Op::Send { connection, buffer } => {
                        let slot = connection.slot() as usize;
                        assert!(self.outstanding[slot].is_none(), "one send is outstanding");
                        self.sent[slot].extend_from_slice(&buffer);
                        if self.peers_read {
                            self.input.ring.push(Event::Sent { connection, buffer });
                        } else {
                            self.outstanding[slot] = Some(buffer);
                        }
                    }
                    Op::Close { connection } | Op::Reset { connection } => {
                        let buffer = self.outstanding[connection.slot() as usize].take();
                        self.input.ring.push(Event::Closed { connection, reason: CloseReason::Asked, buffer });
                        self.ops.push(op);
                    }
                    other => self.ops.push(other),
                }
            }
            for request in self.output.storage.drain(..) {
                match request {
                    StorageRequest::Append(group) => {
                        let outcomes = vec![Outcome::Committed; group.parts.len()];
                        self.input.storage.push(StorageEvent::Appended { group, outcomes });
                    }
                    StorageRequest::Read(ticket, _) => {
                        self.input.storage.push(StorageEvent::Read(ticket, Ok(Rows::default())));
                    }
                    StorageRequest::Run { .. } | StorageRequest::Serving => {}
                }
            }
            if self.input.ring.is_empty() && self.input.storage.is_empty() && !self.shard.mailbox().has_mail() {
                return;
            }
        }
        panic!("the shard does not come to rest");
    }

    fn pass(&mut self, ms: u64) {
        let until = self.now.monotonic_ms + ms;
        while self.now.monotonic_ms < until {
            let next = self.shard.next_deadline_ms().unwrap_or(until).clamp(self.now.monotonic_ms + 1, until);
            self.now.wall_ms += next - self.now.monotonic_ms;
            self.now.monotonic_ms = next;
            self.turn();
        }
    }

    fn accept(&mut self) -> Connection {
        let connection = Connection::new(0, self.sent.len() as u32, 1);
        self.sent.push(Vec::new());
        self.outstanding.push(None);
        let peer = PEER.parse().unwrap();
        self.input.ring.push(Event::Accepted { connection, listener: ListenerId(0), peer });
        self.turn();
        connection
    }

    fn receive(&mut self, connection: Connection, bytes: &[u8]) {
        self.input.ring.push_received(connection, bytes);
        self.turn();
    }

    fn say(&mut self, connection: Connection, text: &str) {
        self.receive(connection, &frame(Opcode::Text, text.as_bytes()));
    }

    /// A WebSocket that has not been opened.
    fn upgrade(&mut self, path: &str) -> Connection {
        let connection = self.accept();
        let head = format!(
            "GET {path} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\
             \r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        self.receive(connection, head.as_bytes());
        connection
    }

    /// An open session of a user, whose token lives for a while.
    fn open(&mut self, user: u64, ttl_s: u64) -> Connection {
        let connection = self.upgrade("/ws");
        let token = self.token(user, ttl_s);
        self.say(connection, &format!(r#"{{"type":"open","device":"1","token":"{token}"}}"#));
        assert!(self.heard(connection).iter().any(|text| text.contains(r#""opened""#)));
        connection
    }

    fn token(&self, user: u64, ttl_s: u64) -> String {
        let now_s = self.now.wall_ms / 1_000;
        let (user, device) = (UserId(user), Some(DeviceId(1)));
        sign(&SECRET, &TokenOrder { kid: "k", issuer: "i", audience: "a", user, device, now_s, ttl_s })
    }

    /// What was said on a WebSocket, closes as their numbers.
    fn heard(&self, connection: Connection) -> Vec<String> {
        let bytes = &self.sent[connection.slot() as usize];
        let head = bytes.windows(4).position(|four| four == b"\r\n\r\n").expect("an answer to the handshake") + 4;
        let mut frames = bytes[head..].to_vec();
        let (mut reader, mut input) = (Reader::new(Role::Client), FrameInput::new(&mut frames));
        let limits = Limits { message_bytes_max: 1 << 20, fragments_max: 1 };
        let mut heard = Vec::new();
        while let Some(frame) = reader.next(limits, &mut input).unwrap() {
            heard.push(match frame {
                Frame::Text(text) => text.to_owned(),
                Frame::Close(close) => close.map_or("close".to_owned(), |close| format!("close {}", close.code)),
                other => format!("{other:?}"),
            });
        }
        heard
    }

    fn ended(&self, connection: Connection) -> bool {
        self.ops.iter().any(|op| match op {
            Op::Close { connection: ended } | Op::Reset { connection: ended } => *ended == connection,
            _ => false,
        })
    }
}

fn frame(opcode: Opcode, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    write_frame(&mut out, opcode, Some([1, 2, 3, 4]), payload);
    out
}

#[test]
fn a_handshake_has_five_seconds_however_it_trickles() {
    let mut world = world();
    let (silent, slow) = (world.accept(), world.accept());
    for byte in b"GET /ws HTTP/1.1\r\n".iter().cycle().take(50) {
        world.receive(slow, &[*byte]);
        world.pass(99);
    }
    assert!(!world.ended(silent) && !world.ended(slow));
    world.pass(100);
    assert!(world.ended(silent) && world.ended(slow));
    assert_eq!(world.shard.counters().handshake_timeouts, 2);
    assert_eq!(world.shard.connections(), 0);
}

#[test]
fn everything_said_to_one_client_in_a_turn_leaves_in_one_send() {
    let mut world = world();
    let alice = world.open(1, 3_600);
    let before = world.shard.counters().sends;
    let pings: Vec<u8> = (0..10).flat_map(|n| frame(Opcode::Ping, &[n])).collect();
    world.receive(alice, &pings);
    assert_eq!(world.shard.counters().sends, before + 1);
    assert_eq!(world.heard(alice).iter().filter(|text| text.starts_with("Pong")).count(), 10);
}

#[test]
fn a_message_reaches_the_other_one_and_the_ack_its_sender() {
    let mut world = world();
    let (alice, bob) = (world.open(1, 3_600), world.open(2, 3_600));
    world.say(alice, r#"{"type":"message","to":"2","text":"hello"}"#);
    assert!(world.heard(alice).iter().any(|text| text.contains(r#""stored""#) && text.contains(r#""seq":1"#)));
    assert!(world.heard(bob).iter().any(|text| text.contains(r#""message""#) && text.contains("hello")));
}

#[test]
fn a_request_over_rest_is_answered_when_it_is_stored_and_the_next_goes_on() {
    let mut world = world();
    let connection = world.accept();
    let body = r#"{"to":"2","body":"hello"}"#;
    let request = format!(
        "POST /v1/messages HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\nContent-Length: {}\r\n\r\n{body}",
        world.token(1, 60),
        body.len()
    );
    // Two at once: the second waits for the answer to the first.
    world.receive(connection, format!("{request}{request}").as_bytes());
    let answers = String::from_utf8(world.sent[0].clone()).unwrap();
    assert_eq!(answers.matches("HTTP/1.1 201 Created").count(), 2, "{answers}");
    assert!(answers.find(r#""seq":1"#) < answers.find(r#""seq":2"#), "{answers}");
    assert_eq!(world.shard.chat().sizes().iter().find(|size| size.0 == "sessions").unwrap().1, 0);
}

#[test]
fn twenty_pings_at_once_are_answered_and_then_one_a_second() {
    let mut world = world();
    let alice = world.upgrade("/ws");
    for _ in 0..20 {
        world.receive(alice, &frame(Opcode::Ping, b"x"));
    }
    world.pass(1_000);
    world.receive(alice, &frame(Opcode::Pong, b"x"));
    assert_eq!(world.heard(alice).iter().filter(|text| text.starts_with("Pong")).count(), 20);
    world.receive(alice, &frame(Opcode::Ping, b"x"));
    assert_eq!(world.heard(alice).last().unwrap(), "close 4008");
    assert_eq!(world.shard.counters().floods, 1);
}

#[test]
fn a_client_that_takes_nothing_is_not_read_from_and_then_cut_off() {
    let mut world = world();
    let mallory = world.upgrade("/echo");
    world.peers_read = false;
    for _ in 0..20 {
        world.receive(mallory, &frame(Opcode::Binary, &[0; 1_000]));
    }
    assert!(world.ops.contains(&Op::PauseReceive { connection: mallory }));
    world.pass(29_000);
    assert!(!world.ended(mallory));
    world.pass(1_100);
    assert!(world.ops.contains(&Op::Reset { connection: mallory }), "what waits for it is forgotten");
    assert_eq!(world.shard.counters().stalled, 1);
    assert_eq!(world.shard.connections(), 0);
}

#[test]
fn a_client_that_reads_again_is_read_from_again() {
    let mut world = world();
    let slow = world.upgrade("/echo");
    world.peers_read = false;
    for _ in 0..10 {
        world.receive(slow, &frame(Opcode::Binary, &[0; 1_000]));
    }
    world.peers_read = true;
    let buffer = world.outstanding[slow.slot() as usize].take().unwrap();
    world.input.ring.push(Event::Sent { connection: slow, buffer });
    world.turn();
    assert_eq!(world.ops.last(), Some(&Op::ResumeReceive { connection: slow }));
}

#[test]
fn a_close_waits_behind_what_is_being_sent() {
    let mut world = world();
    let alice = world.upgrade("/echo");
    world.peers_read = false;
    world.receive(alice, &frame(Opcode::Text, b"first"));
    world.receive(alice, &frame(Opcode::Close, b"\x03\xe8"));
    assert!(!world.ops.contains(&Op::Shutdown { connection: alice }), "the close frame is not on its way yet");
    let buffer = world.outstanding[alice.slot() as usize].take().unwrap();
    world.input.ring.push(Event::Sent { connection: alice, buffer });
    world.turn();
    assert_eq!(world.ops.last(), Some(&Op::Shutdown { connection: alice }));
    assert_eq!(world.heard(alice).last().unwrap(), "close 1000");
}

#[test]
fn a_token_that_ends_is_announced_and_a_new_one_keeps_the_session() {
    let mut world = world();
    let (alice, bob) = (world.open(1, 50), world.open(2, 50));
    let beat = r#"{"type":"beat","received":0}"#;
    world.pass(20_500);
    for client in [alice, bob] {
        assert!(world.heard(client).iter().any(|text| text.contains(r#""auth""#)), "thirty seconds before");
        world.say(client, beat);
    }
    let token = world.token(1, 3_600);
    world.say(alice, &format!(r#"{{"type":"auth","token":"{token}"}}"#));
    // Somebody else's token is no token for this session.
    let other = world.token(1, 3_600);
    world.say(bob, &format!(r#"{{"type":"auth","token":"{other}"}}"#));
    assert!(world.heard(bob).last().unwrap().contains("unauthorized"));
    // Nor is one for another device of the same user.
    let (user, device, now_s) = (UserId(2), Some(DeviceId(2)), world.now.wall_ms / 1_000);
    let order = TokenOrder { kid: "k", issuer: "i", audience: "a", user, device, now_s, ttl_s: 3_600 };
    world.say(bob, &format!(r#"{{"type":"auth","token":"{}"}}"#, sign(&SECRET, &order)));
    assert!(world.heard(bob).last().unwrap().contains("unauthorized"));
    world.pass(36_000);
    assert_eq!(world.heard(bob).last().unwrap(), "close 4101");
    world.say(alice, beat);
    assert!(world.heard(alice).last().unwrap().contains(r#""beat""#));
}

#[test]
fn a_client_that_stays_silent_is_gone_after_a_minute() {
    let mut world = world();
    let (unopened, alice) = (world.upgrade("/ws"), world.open(1, 3_600));
    world.pass(30_100);
    assert_eq!(world.heard(unopened).last().unwrap(), "close 4004");
    world.say(alice, r#"{"type":"beat","received":0}"#);
    world.pass(59_900);
    assert!(!world.heard(alice).last().unwrap().starts_with("close"));
    world.pass(200);
    assert_eq!(world.heard(alice).last().unwrap(), "close 4003");
}

/// What it says while we do not read from it cannot be heard; only whether it takes something counts.
#[test]
fn a_client_that_is_not_read_from_is_not_called_silent() {
    let mut world = world();
    let (alice, bob) = (world.open(1, 3_600), world.open(2, 3_600));
    world.peers_read = false;
    for _ in 0..100 {
        world.say(bob, &format!(r#"{{"type":"pull","conv":"dm.1.2","x":"{}"}}"#, "x".repeat(100)));
        world.say(bob, r#"{"type":"nothing like it"}"#);
    }
    assert!(world.ops.contains(&Op::PauseReceive { connection: bob }));
    for _ in 0..10 {
        world.pass(20_000);
        world.say(alice, r#"{"type":"beat","received":0}"#);
        // It takes a little: that is progress, and all that can be known.
        for connection in [alice, bob] {
            world.input.ring.push(Event::SendProgress { connection, bytes: 1 });
        }
        world.turn();
    }
    assert!(!world.ended(bob) && !world.heard(bob).iter().any(|text| text.starts_with("close")));
    world.peers_read = true;
    for _ in 0..2 {
        if let Some(buffer) = world.outstanding[bob.slot() as usize].take() {
            world.input.ring.push(Event::Sent { connection: bob, buffer });
        }
        world.turn();
    }
    assert!(world.ops.contains(&Op::ResumeReceive { connection: bob }));
    world.pass(59_900);
    assert!(!world.heard(bob).iter().any(|text| text.starts_with("close")));
    world.pass(200);
    assert_eq!(world.heard(bob).last().unwrap(), "close 4003");
}

#[test]
fn too_many_frames_are_refused_and_a_flood_is_closed() {
    let mut world = world();
    let alice = world.open(1, 3_600);
    let send = |n: u32| {
        format!(r#"{{"type":"send","id":"018f0e2a-7c11-7abc-8def-{n:012}","to":"2","kind":"text","body":"x"}}"#)
    };
    for n in 0..2_000 {
        world.say(alice, &send(n));
    }
    let heard = world.heard(alice);
    let count = |what: &str| heard.iter().filter(|text| text.contains(what)).count();
    assert!((800..1_200).contains(&count(r#""stored""#)), "{} stored", count(r#""stored""#));
    assert!(count("rate_limited") > 0);
    // The first that was refused comes again before any other passes.
    let first = count(r#""stored""#) as u32;
    assert_eq!(count(r#""code":"retry""#) + count("rate_limited") + count(r#""stored""#), 2_000);
    world.pass(20_000);
    world.say(alice, &send(first + 1));
    assert!(world.heard(alice).last().unwrap().contains(r#""code":"retry""#));
    world.say(alice, &send(first));
    assert!(world.heard(alice).last().unwrap().contains(r#""stored""#));
    for n in 0..12_000 {
        world.say(alice, &send(n));
    }
    assert_eq!(world.heard(alice).last().unwrap(), "close 4008");
    assert!(world.shard.counters().rate_limited > 0 && world.shard.counters().floods == 1);
}

/// P13: each kind of work in its turn, and nothing that was accepted before.
#[test]
fn under_pressure_a_shard_sheds_in_order() {
    let mut world = world();
    let (alice, bob) = (world.open(1, 3_600), world.open(2, 3_600));
    world
        .say(alice, r#"{"type":"send","id":"018f0e2a-7c11-7abc-8def-000000000000","to":"2","kind":"text","body":"x"}"#);
    let mut id = 0;
    for lag_ms in (0..=600).step_by(25) {
        world.input.lag_ms = lag_ms;
        world.say(bob, r#"{"type":"signal","conv":"dm.1.2","name":"typing","body":""}"#);
        let signal = world.heard(alice).last().unwrap().contains("typing");
        world.say(bob, r#"{"type":"mark","conv":"dm.1.2","read":1}"#);
        let mark = !world.heard(bob).last().unwrap().contains("overloaded");
        world.say(bob, r#"{"type":"pull","conv":"dm.1.2"}"#);
        let pull = world.heard(bob).last().unwrap().contains("page");
        let handshake = world.upgrade("/ws");
        let handshake = world.sent[handshake.slot() as usize].starts_with(b"HTTP/1.1 101");
        id += 1;
        let send =
            format!(r#"{{"type":"send","id":"018f0e2a-7c11-7abc-8def-{id:012}","to":"2","kind":"text","body":"x"}}"#);
        world.say(alice, &send);
        let stored = world.heard(alice).last().unwrap().contains("stored");
        let done = [signal, mark, pull, handshake, stored];
        let shed = [250, 325, 375, 450, 500].map(|from_ms| lag_ms >= from_ms);
        assert_eq!(done, shed.map(|shed| !shed), "at {lag_ms} ms");
        // Acknowledgements go on, whatever else does not.
        world.say(bob, r#"{"type":"beat","received":1}"#);
        assert!(world.heard(bob).last().unwrap().contains("beat"));
        if stored {
            world.say(alice, r#"{"type":"beat","received":0}"#);
        }
    }
    let chat = world.shard.chat().counters();
    assert!(chat.shed_signals > chat.shed_receipts && chat.shed_receipts > chat.shed_scans);
    assert!(chat.shed_scans > world.shard.counters().shed_handshakes && chat.shed_sends > 0);
}

#[test]
fn draining_tells_everybody_and_closes_those_who_stay() {
    let mut world = world();
    let alice = world.open(1, 3_600);
    let idle = world.accept();
    world.shard.drain(world.now, 2_000);
    world.turn();
    assert!(world.heard(alice).last().unwrap().contains(r#""move""#));
    world.pass(2_100);
    assert_eq!(world.heard(alice).last().unwrap(), "close 4001");
    for connection in [alice, idle] {
        world.input.ring.push(Event::Closed { connection, reason: CloseReason::Finished, buffer: None });
    }
    world.turn();
    assert!(world.shard.is_drained());
}

#[test]
fn an_idle_session_costs_no_buffer() {
    const SESSIONS: usize = 1_024;
    let mut world = world();
    for user in 0..SESSIONS {
        world.open(user as u64 + 1, 3_600);
    }
    // The wheel's heads and the first buffers are the shard's, whoever is connected.
    let fixed = 32 * 1_024;
    let connection = (world.shard.memory_bytes().0 - fixed) / SESSIONS;
    let size = |name| world.shard.chat().sizes().iter().find(|size| size.0 == name).expect("it is counted").1;
    let [session, user] = ["sessions_bytes", "users_bytes"].map(|name| size(name) as usize / SESSIONS);
    let all = ring::CONNECTION_BYTES + connection + session + user;
    assert!(connection <= 64, "{connection} bytes for the connection of an idle session");
    assert!(all <= 200, "{all} bytes for an idle session: {connection}, {session} and {user}");
}
