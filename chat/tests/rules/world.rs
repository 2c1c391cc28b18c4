//! One shard's rules in a world made by hand: storage and mail do what the test says.

use std::collections::{BTreeMap, HashMap, VecDeque};

use chat::{Chat, ChatConfig, ClientKey, Effects, Identity, Limits, Now, SessionKey};
use shard_router::SlotMap;
use storage_seam::{AppendGroup, Class, Outcome, Rows, Run, Space, StorageEvent, StorageRequest, StoreFacts};
use storage_seam::{Ticket, ViewRead};
use wire::close::CloseCode;
use wire::ids::{ChangeNumber, ClientMessageId, ConversationId, DeviceId, UserId};
use wire::json::encode_server;
use wire::mail::{self, Address, Letter, MailClass};
use wire::protocol::{ClientFrame, Kind, Pull, PullRange, Send, ServerFrame, Target};

pub const A: UserId = UserId(1);
pub const B: UserId = UserId(2);
pub const WALL_MS: u64 = 1_700_000_000_000;

/// What the rules reach the world through.
pub struct Outside {
    pub mail: VecDeque<Vec<u8>>,
    /// Frames to each client.
    pub frames: HashMap<u64, Vec<String>>,
    /// Bytes that wait for a client that takes nothing; others have none.
    pub stuck: HashMap<u64, usize>,
    pub closed: Vec<(u64, CloseCode)>,
    pub requests: Vec<StorageRequest>,
    pub mail_bytes: usize,
    pub mail_bytes_highest: usize,
    /// Whose mailbox takes no request.
    pub is_full: fn(&Address) -> bool,
}

impl Default for Outside {
    fn default() -> Self {
        Self {
            mail: VecDeque::new(),
            frames: HashMap::default(),
            stuck: HashMap::default(),
            closed: Vec::new(),
            requests: Vec::new(),
            mail_bytes: 0,
            mail_bytes_highest: 0,
            is_full: |_| false,
        }
    }
}

impl Effects for Outside {
    fn frame(&mut self, client: ClientKey, frame: &ServerFrame<'_>) -> usize {
        let mut text = Vec::new();
        encode_server(&mut text, frame);
        let waiting = self.stuck.get_mut(&client.0).map_or(0, |waiting| {
            *waiting += text.len();
            *waiting
        });
        self.frames.entry(client.0).or_default().push(String::from_utf8(text).unwrap());
        waiting
    }

    fn close(&mut self, client: ClientKey, code: CloseCode) {
        self.closed.push((client.0, code));
    }

    fn post(&mut self, letter: &Letter<'_>) -> bool {
        if letter.mail.class() == MailClass::Request && (self.is_full)(&letter.to) {
            return false;
        }
        let mut bytes = Vec::new();
        mail::write(&mut bytes, letter);
        self.mail_bytes += bytes.len();
        self.mail_bytes_highest = self.mail_bytes_highest.max(self.mail_bytes);
        self.mail.push_back(bytes);
        true
    }

    fn storage(&mut self, request: StorageRequest) {
        self.requests.push(request);
    }
}

pub struct World {
    pub chat: Chat,
    pub out: Outside,
    pub now: Now,
    pub views: BTreeMap<(Space, Vec<u8>), Vec<u8>>,
    /// Storage takes groups and does not answer.
    pub appends_wait: bool,
    pub appends: Vec<AppendGroup>,
    pub reads_wait: bool,
    pub reads: Vec<(Ticket, ViewRead)>,
    pub runs: Vec<(u64, Run)>,
    pub checkpoints: u64,
    /// What the views have forgotten, as they tell with the next checkpoint.
    pub forgotten_until_ms: u64,
    pub ids: u64,
}

impl World {
    pub fn new(limits: Limits) -> Self {
        let slots = SlotMap::single_node(1, 1);
        let tails = slots.slots_of_shard(0).map(|slot| (slot.number(), 0)).collect();
        let facts = StoreFacts { generation: 9, epoch: 1, class: Class::D1 };
        let mut world = Self {
            chat: Chat::new(&ChatConfig { shard: 0, slots, facts, limits, seed: 7 }),
            out: Outside::default(),
            now: Now { monotonic_ms: 1_000, wall_ms: WALL_MS },
            views: BTreeMap::new(),
            appends_wait: false,
            appends: Vec::new(),
            reads_wait: false,
            reads: Vec::new(),
            runs: Vec::new(),
            checkpoints: 0,
            forgotten_until_ms: 0,
            ids: 0,
        };
        world.chat.storage(world.now, StorageEvent::RecoveredAll { tails, forgotten_until_ms: 0 }, &mut world.out);
        world.settle();
        world
    }

    pub fn event(&mut self, event: StorageEvent) {
        self.chat.storage(self.now, event, &mut self.out);
    }

    /// Delivers the oldest letter.
    pub fn step(&mut self) {
        self.deliver(0);
    }

    fn deliver(&mut self, at: usize) {
        let bytes = self.out.mail.remove(at).expect("a letter is on its way");
        self.out.mail_bytes -= bytes.len();
        let (letter, _) = mail::read(&bytes).unwrap();
        self.chat.letter(self.now, &letter, &mut self.out);
    }

    /// Delivers everything to owners; what is for sessions stays on its way, in order.
    pub fn settle_owners(&mut self) {
        let to_owner =
            |bytes: &Vec<u8>| !matches!(mail::read(bytes).unwrap().0, Letter { to: Address::Session(_), .. });
        while let Some(at) = self.out.mail.iter().position(to_owner) {
            self.deliver(at);
        }
    }

    /// Turns until nothing more happens at this moment.
    pub fn settle(&mut self) {
        loop {
            while !self.out.mail.is_empty() {
                self.step();
            }
            self.chat.finish_turn(self.now, &mut self.out);
            let requests = std::mem::take(&mut self.out.requests);
            if requests.is_empty() && self.out.mail.is_empty() {
                return;
            }
            for request in requests {
                self.requested(request);
            }
        }
    }

    /// What the rules asked of storage reaches it.
    pub fn requested(&mut self, request: StorageRequest) {
        match request {
            StorageRequest::Append(group) if self.appends_wait => self.appends.push(group),
            StorageRequest::Append(group) => self.answer(group, Outcome::Committed),
            StorageRequest::Read(ticket, read) if self.reads_wait => self.reads.push((ticket, read)),
            StorageRequest::Read(ticket, read) => {
                let rows = self.look(&read);
                self.event(StorageEvent::Read(ticket, Ok(rows)));
            }
            StorageRequest::Run { checkpoint, run } => self.runs.push((checkpoint, run)),
            StorageRequest::Serving => {}
        }
    }

    pub fn answer(&mut self, group: AppendGroup, outcome: Outcome) {
        let outcomes = vec![outcome; group.parts.len()];
        self.event(StorageEvent::Appended { group, outcomes });
    }

    pub fn look(&self, read: &ViewRead) -> Rows {
        let mut rows = Rows::default();
        match read {
            ViewRead::Get { space, key } => {
                if let Some(value) = self.views.get(&(*space, key.clone())) {
                    rows.push(key, value);
                }
            }
            ViewRead::Range { space, start, end, rows_max, bytes_max, reverse } => {
                let range = self.views.range((*space, start.clone())..(*space, end.clone()));
                let found: Box<dyn Iterator<Item = _>> = if *reverse { Box::new(range.rev()) } else { Box::new(range) };
                let mut bytes = 0;
                for ((_, key), value) in found {
                    if rows.index.len() == *rows_max as usize || bytes >= *bytes_max as usize {
                        rows.more = true;
                        break;
                    }
                    bytes += value.len();
                    rows.push(key, value);
                }
            }
        }
        rows
    }

    /// Everything committed goes into the views.
    pub fn checkpoint(&mut self) {
        self.checkpoints += 1;
        self.event(StorageEvent::Freeze { checkpoint: self.checkpoints });
        self.settle();
        for (checkpoint, run) in std::mem::take(&mut self.runs) {
            for (space, key, value) in run.rows() {
                self.views.insert((space, key.to_vec()), value.to_vec());
            }
            drop(run);
            self.event(StorageEvent::CheckpointDone { checkpoint, forgotten_until_ms: self.forgotten_until_ms });
        }
        self.settle();
    }

    pub fn open(&mut self, client: u64, user: UserId, device: u32, after: Option<ChangeNumber>) -> SessionKey {
        let who = Identity { user, device: DeviceId(device) };
        let session = self.chat.open(ClientKey(client), who, after, None, &mut self.out);
        self.settle();
        session
    }

    pub fn frame(&mut self, session: SessionKey, frame: &ClientFrame<'_>) {
        self.chat.frame(self.now, session, frame, &mut self.out);
    }

    /// Sends under the next id, which says when it was made.
    pub fn send(&mut self, session: SessionKey, to: UserId, body: &str) -> ClientMessageId {
        self.ids += 1;
        let mut id = [0; 16];
        id[..6].copy_from_slice(&self.now.wall_ms.to_be_bytes()[2..]);
        id[6] = 0x70;
        id[8] = 0x80;
        id[12..].copy_from_slice(&(self.ids as u32).to_be_bytes());
        self.send_as(session, ClientMessageId(id), to, body);
        ClientMessageId(id)
    }

    pub fn send_as(&mut self, session: SessionKey, id: ClientMessageId, to: UserId, body: &str) {
        let send = Send {
            id: Some(id),
            skip: None,
            target: Target::To(to),
            kind: Kind::Text,
            body: body.into(),
            reply_to: None,
            target_seq: None,
        };
        self.frame(session, &ClientFrame::Send(send));
    }

    pub fn take(&mut self, client: u64) -> Vec<String> {
        self.out.frames.remove(&client).unwrap_or_default()
    }
}

pub fn pull(conversation: ConversationId, range: PullRange) -> ClientFrame<'static> {
    ClientFrame::Pull(Pull { conversation, range, limit: Some(100), min_seq: None })
}

pub fn count(frames: &[String], what: &str) -> usize {
    frames.iter().filter(|frame| frame.contains(what)).count()
}
