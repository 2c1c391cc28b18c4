//! A shard with the least around the rules: handshake, frames, letters, storage. For worlds that look at
//! the rules alone; `gateway.rs` runs the real shard.

use std::collections::BTreeMap;

use chat::{Chat, ChatConfig, ClientKey, Effects, Identity, Now, SessionKey};
use ring::{Connection, Event, EventBatch, Op, Ops};
use shard_router::{Mailbox, Posted};
use storage::seam::{StorageEvent, StorageRequest};
use wire::close::CloseCode;
use wire::ids::{DeviceId, UserId};
use wire::json::{decode_client, encode_server};
use wire::mail::Letter;
use wire::protocol::{ClientFrame, ServerFrame};
use wire::reader::{self, Input, Reader};
use wire::upgrade::write_switching;
use wire::websocket::{Limits, Role};
use wire::writer::{write_close_code, write_text_with};

#[derive(Debug)]
enum Stage {
    Shaking(Vec<u8>),
    Greeted,
    Session(SessionKey),
}

#[derive(Debug)]
struct Client {
    stage: Stage,
    reader: Reader,
    who: Identity,
    waiting: Vec<u8>,
    in_flight: usize,
    /// To be ended when everything is sent, and whether the ring was told.
    finish: bool,
    finished: bool,
}

/// What the rules reach the world through.
#[derive(Debug)]
struct Outside {
    clients: BTreeMap<u64, Client>,
    mailbox: Mailbox,
    requests: Vec<StorageRequest>,
    generation: u64,
    body_bytes_max: u32,
}

/// See the module.
#[derive(Debug)]
pub struct Thin {
    pub chat: Chat,
    outside: Outside,
}

impl Effects for Outside {
    fn frame(&mut self, client: ClientKey, frame: &ServerFrame<'_>) -> usize {
        let Some(client) = self.clients.get_mut(&client.0).filter(|client| !client.finish) else { return 0 };
        write_text_with(&mut client.waiting, None, |out| encode_server(out, frame));
        client.waiting.len() + client.in_flight
    }

    fn close(&mut self, client: ClientKey, code: CloseCode) {
        let Some(client) = self.clients.get_mut(&client.0).filter(|client| !client.finish) else { return };
        write_close_code(&mut client.waiting, code);
        client.finish = true;
    }

    fn post(&mut self, letter: &Letter<'_>) -> bool {
        self.mailbox.post(letter) != Posted::Refused
    }

    fn storage(&mut self, request: StorageRequest) {
        self.requests.push(request);
    }
}

impl Thin {
    /// A shard that waits for its recovered records.
    pub fn new(config: &ChatConfig, mailbox: Mailbox) -> Self {
        let outside = Outside {
            clients: BTreeMap::new(),
            mailbox,
            requests: Vec::new(),
            generation: config.facts.generation,
            body_bytes_max: config.limits.body_bytes_max,
        };
        Self { chat: Chat::new(config), outside }
    }

    /// One turn.
    pub fn turn(&mut self, now: Now, events: &mut EventBatch, stored: &mut Vec<StorageEvent>, ops: &mut Ops) {
        while let Some(batch) = self.outside.mailbox.take() {
            for letter in batch.letters() {
                self.chat.letter(now, &letter, &mut self.outside);
            }
            self.outside.mailbox.give_back(batch);
        }
        for event in stored.drain(..) {
            self.chat.storage(now, event, &mut self.outside);
        }
        while let Some(event) = events.pop() {
            self.event(now, event, events);
        }
        events.clear();
        self.chat.finish_turn(now, &mut self.outside);
        self.flush(ops);
        self.outside.mailbox.flush();
    }

    fn event(&mut self, now: Now, event: Event, events: &mut EventBatch) {
        match event {
            Event::Accepted { connection, .. } => {
                let client = Client {
                    stage: Stage::Shaking(Vec::new()),
                    reader: Reader::new(Role::Server),
                    who: Identity { user: UserId(0), device: DeviceId(0) },
                    waiting: Vec::new(),
                    in_flight: 0,
                    finish: false,
                    finished: false,
                };
                self.outside.clients.insert(connection.to_bits(), client);
            }
            Event::Received { connection, range } => self.received(now, connection, events.data_mut(range)),
            Event::Eof { connection } => {
                if let Some(client) = self.outside.clients.get_mut(&connection.to_bits()) {
                    client.finish = true;
                }
            }
            Event::Sent { connection, .. } => {
                if let Some(client) = self.outside.clients.get_mut(&connection.to_bits()) {
                    client.in_flight = 0;
                    if let (Stage::Session(session), true) = (&client.stage, client.waiting.is_empty()) {
                        let session = *session;
                        self.chat.drained(session, &mut self.outside);
                    }
                }
            }
            Event::Closed { connection, .. } => {
                let client = self.outside.clients.remove(&connection.to_bits()).expect("a handle ends once");
                if let Stage::Session(session) = client.stage {
                    self.chat.closed(session, &mut self.outside);
                }
            }
            _ => {}
        }
    }

    fn received(&mut self, now: Now, connection: Connection, bytes: &mut [u8]) {
        let key = ClientKey(connection.to_bits());
        let Some(client) = self.outside.clients.get_mut(&key.0) else { return };
        if client.finish {
            return;
        }
        let mut rest;
        let mut input = match &mut client.stage {
            Stage::Shaking(head) => {
                head.extend_from_slice(bytes);
                let Some(end) = head.windows(4).position(|four| four == b"\r\n\r\n") else { return };
                rest = head.split_off(end + 4);
                let head = String::from_utf8(std::mem::take(head)).expect("phones write text");
                let header = |name: &str| {
                    let line = head.lines().find_map(|line| line.strip_prefix(name)).expect("phones send it");
                    line.trim().to_owned()
                };
                let token = header("Authorization: Bearer");
                let (user, device) = token.split_once('.').expect("the world's own token");
                client.who =
                    Identity { user: user.parse().expect("a user"), device: device.parse().expect("a device") };
                write_switching(&mut client.waiting, &header("Sec-WebSocket-Key:"), Some("ringway.v1.json"));
                client.stage = Stage::Greeted;
                let generation = self.outside.generation;
                let body_bytes_max = self.outside.body_bytes_max;
                let hello = ServerFrame::Hello {
                    node: "sim",
                    generation,
                    beat_ms: 30_000,
                    offline_ms: 60_000,
                    class: "d1",
                    body_bytes_max,
                };
                self.outside.frame(key, &hello);
                Input::new(&mut rest)
            }
            _ => Input::new(bytes),
        };
        let mut reader = std::mem::replace(
            &mut self.outside.clients.get_mut(&key.0).expect("seen above").reader,
            Reader::new(Role::Server),
        );
        loop {
            match reader.next(Limits::default(), &mut input) {
                Ok(Some(reader::Event::Text(text))) => self.text(now, key, text),
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(error) => panic!("phones keep the framing: {error}"),
            }
        }
        if let Some(client) = self.outside.clients.get_mut(&key.0) {
            client.reader = reader;
        }
    }

    fn text(&mut self, now: Now, key: ClientKey, text: &str) {
        let client = self.outside.clients.get_mut(&key.0).expect("it is being read");
        if client.finish {
            return;
        }
        let frame = decode_client(text, self.outside.body_bytes_max as usize).expect("phones write valid frames");
        match (&client.stage, frame) {
            (Stage::Greeted, ClientFrame::Open(open)) => {
                let who = client.who;
                let session = self.chat.open(key, who, open.changes_after, open.window, &mut self.outside);
                self.outside.clients.get_mut(&key.0).expect("seen above").stage = Stage::Session(session);
            }
            (Stage::Session(session), frame) => {
                let session = *session;
                self.chat.frame(now, session, &frame, &mut self.outside);
            }
            (stage, frame) => panic!("phones open first: {frame:?} at {stage:?}"),
        }
    }

    fn flush(&mut self, ops: &mut Ops) {
        for (&bits, client) in &mut self.outside.clients {
            let connection = Connection::from_bits(bits);
            if client.in_flight == 0 && !client.waiting.is_empty() {
                client.in_flight = client.waiting.len();
                ops.push(Op::Send { connection, buffer: std::mem::take(&mut client.waiting) });
            }
            if client.finish && client.waiting.is_empty() && !std::mem::replace(&mut client.finished, true) {
                ops.push(Op::Shutdown { connection });
            }
        }
    }

    /// What the rules asked of storage in this turn.
    pub fn requests(&mut self) -> std::vec::Drain<'_, StorageRequest> {
        self.outside.requests.drain(..)
    }

    /// Its mailbox.
    pub fn mailbox(&mut self) -> &mut Mailbox {
        &mut self.outside.mailbox
    }

    /// Connections held.
    pub fn connections(&self) -> usize {
        self.outside.clients.len()
    }
}
