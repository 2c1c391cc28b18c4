//! The pieces of a message's way, each by itself and ready to run: for instruction counts and for criterion.
//!
//! Everything is seeded and nothing asks a clock or the system, so that a count is the same on every run.

use std::collections::VecDeque;
use std::sync::Arc;

use chat::{Chat, ChatConfig, ClientKey, Effects, Identity, Limits, Now, SessionKey};
use shard_router::{MailLimits, Mailbox, SlotMap};
use storage::disk::{Disk, DiskError};
use storage::journal::{Journal, JournalConfig};
use storage::seam::{AppendGroup, Class, Outcome, Part, Run, StorageEvent, StorageRequest, StoreFacts};
use storage::{recovery, segment};
use wire::close::CloseCode;
use wire::ids::{ChangeNumber, ClientMessageId, ConversationId, DeviceId, UserId};
use wire::json::{decode_client, encode_server};
use wire::mail::{self, Address, Letter, Mail};
use wire::protocol::{ClientFrame, Kind, Message, MessageItem, ServerFrame};
use wire::reader::{Event, Input, Reader};
use wire::websocket::{Limits as FrameLimits, Role, mask_in_place};
use wire::writer::write_text_with;

const BODY_BYTES: usize = 128;
const MASK: [u8; 4] = [1, 2, 3, 4];
/// Messages of one run of a piece that works on many.
pub const MESSAGES: u32 = 256;
const NOW: Now = Now { monotonic_ms: 1_000, wall_ms: 1_732_363_200_000 };

/// A `send` as it comes off the network: masked, in a frame.
pub fn masked_send() -> Vec<u8> {
    let (conversation, body) = (ConversationId::direct(UserId(1), UserId(2)), "x".repeat(BODY_BYTES));
    let mut frame = Vec::new();
    write_text_with(&mut frame, Some(MASK), |out| {
        loadgen::frames::send(out, ClientMessageId([7; 16]), conversation, &body);
    });
    frame
}

/// Frame and JSON of one `send`; whether it was one.
pub fn decode(mut frame: Vec<u8>) -> bool {
    let mut reader = Reader::new(Role::Server);
    let mut input = Input::new(&mut frame);
    let Ok(Some(Event::Text(text))) = reader.next(FrameLimits::default(), &mut input) else { return false };
    matches!(decode_client(text, 1 << 16), Ok(ClientFrame::Send(_)))
}

/// A page of payload.
pub fn payload() -> Vec<u8> {
    vec![b'x'; 4 << 10]
}

/// Unmasks it.
pub fn mask(mut payload: Vec<u8>) -> Vec<u8> {
    mask_in_place(&mut payload, MASK);
    payload
}

/// A buffer that needs no growing.
pub fn room() -> Vec<u8> {
    Vec::with_capacity(1 << 10)
}

/// One `message` in JSON in a frame.
pub fn encode(mut out: Vec<u8>) -> Vec<u8> {
    const BODY: &str = match std::str::from_utf8(&[b'x'; BODY_BYTES]) {
        Ok(body) => body,
        Err(_) => unreachable!(),
    };
    let item = MessageItem {
        seq: 1_234,
        from: UserId(654_321),
        device: DeviceId(1),
        time_ms: NOW.wall_ms,
        kind: Kind::Text,
        body: BODY.into(),
        reply_to: None,
        target_seq: None,
        id: None,
    };
    let conversation = ConversationId::direct(UserId(123_456), UserId(654_321));
    let message = Message { conversation, item, change: ChangeNumber { epoch: 3, counter: 1_057 }, n: 17 };
    write_text_with(&mut out, None, |out| encode_server(out, &ServerFrame::Message(message)));
    out
}

/// The mailboxes of a node with two shards.
pub fn mailboxes() -> Vec<Mailbox> {
    let map = Arc::new(SlotMap::single_node(2, 1));
    let wakers = (0..2).map(|_| Box::new(|| ()) as shard_router::Waker).collect();
    Mailbox::for_all(&map, MailLimits::default(), wakers)
}

/// Letters for users of both shards: posted, handed over, and read by who owns them. How many arrived.
pub fn route(mailboxes: &mut [Mailbox]) -> u32 {
    let [one, other] = mailboxes else { return 0 };
    let conversation = ConversationId::direct(UserId(1), UserId(2));
    for user in (0..u64::from(MESSAGES)).map(UserId) {
        // An event is never refused, only a request is.
        let _ = one.post(&Letter {
            to: Address::User(user),
            mail: Mail::Dirty { user, conversation, head: 1 },
            payload: &[],
        });
    }
    one.flush();
    let mut arrived = 0;
    for mailbox in [one, other] {
        while let Some(batch) = mailbox.take() {
            arrived += batch.letters().count() as u32;
            mailbox.give_back(batch);
        }
    }
    arrived
}

/// One shard's rules with two users, whose storage answers at once.
pub struct Rules {
    chat: Chat,
    around: Around,
    session: SessionKey,
    bodies: Vec<ClientMessageId>,
}

#[derive(Default)]
struct Around {
    mail: VecDeque<Vec<u8>>,
    spare: Vec<Vec<u8>>,
    requests: Vec<StorageRequest>,
    frames: u32,
    run: Option<Run>,
}

impl Effects for Around {
    fn frame(&mut self, _: ClientKey, _: &ServerFrame<'_>) -> usize {
        self.frames += 1;
        0
    }

    fn close(&mut self, _: ClientKey, _: CloseCode) {}

    fn post(&mut self, letter: &Letter<'_>) -> bool {
        let mut bytes = self.spare.pop().unwrap_or_default();
        mail::write(&mut bytes, letter);
        self.mail.push_back(bytes);
        true
    }

    fn storage(&mut self, request: StorageRequest) {
        self.requests.push(request);
    }
}

/// Rules in whose memory the conversation already is.
pub fn rules() -> Rules {
    let slots = SlotMap::single_node(1, 1);
    let tails = slots.slots_of_shard(0).map(|slot| (slot.number(), 0)).collect();
    let facts = StoreFacts { generation: 9, epoch: 1, class: Class::D1 };
    let mut chat = Chat::new(&ChatConfig { shard: 0, slots, facts, limits: Limits::default(), seed: 7 });
    let mut around = Around::default();
    chat.storage(NOW, StorageEvent::RecoveredAll { tails, forgotten_until_ms: 0 }, &mut around);
    let mut open = |client, user| {
        let who = Identity { user: UserId(user), device: DeviceId(1) };
        chat.open(ClientKey(client), who, None, None, &mut around)
    };
    let (session, _) = (open(1, 1), open(2, 2));
    let id = |number: u32| {
        let time = u128::from(NOW.wall_ms) << 80;
        ClientMessageId((time | 7 << 76 | 2 << 62 | u128::from(number)).to_be_bytes())
    };
    let mut rules = Rules { chat, around, session, bodies: (0..=MESSAGES).map(id).collect() };
    rules.settle();
    rules.send(MESSAGES as usize);
    rules.settle();
    rules.around.frames = 0;
    rules
}

/// Messages in one turn: checked, sequenced, grouped, committed, applied, and told to both sides. How many frames.
pub fn sequence(rules: &mut Rules) -> u32 {
    for number in 0..MESSAGES as usize {
        rules.send(number);
    }
    rules.settle();
    rules.around.frames
}

/// Rules that have something for the views.
pub fn rules_with_messages() -> Rules {
    let mut rules = rules();
    sequence(&mut rules);
    rules
}

/// Everything applied since the last checkpoint as one run for the views. How many rows.
pub fn view_run(rules: &mut Rules) -> usize {
    rules.chat.storage(NOW, StorageEvent::Freeze { checkpoint: 1 }, &mut rules.around);
    rules.settle();
    rules.around.run.as_ref().map_or(0, |run| run.rows().count())
}

impl Rules {
    fn send(&mut self, number: usize) {
        let body = [b'x'; BODY_BYTES];
        let send = wire::protocol::Send {
            id: Some(self.bodies[number]),
            skip: None,
            target: wire::protocol::Target::To(UserId(2)),
            kind: Kind::Text,
            body: std::str::from_utf8(&body).expect("ASCII").into(),
            reply_to: None,
            target_seq: None,
        };
        self.chat.frame(NOW, self.session, &ClientFrame::Send(send), &mut self.around);
    }

    fn settle(&mut self) {
        loop {
            while let Some(mut bytes) = self.around.mail.pop_front() {
                let (letter, _) = mail::read(&bytes).expect("it was just written");
                self.chat.letter(NOW, &letter, &mut self.around);
                bytes.clear();
                self.around.spare.push(bytes);
            }
            self.chat.finish_turn(NOW, &mut self.around);
            let requests = std::mem::take(&mut self.around.requests);
            if requests.is_empty() && self.around.mail.is_empty() {
                return;
            }
            for request in requests {
                match request {
                    StorageRequest::Append(group) => {
                        let outcomes = vec![Outcome::Committed; group.parts.len()];
                        let event = StorageEvent::Appended { group, outcomes };
                        self.chat.storage(NOW, event, &mut self.around);
                    }
                    StorageRequest::Read(ticket, _) => {
                        let event = StorageEvent::Read(ticket, Ok(storage::seam::Rows::default()));
                        self.chat.storage(NOW, event, &mut self.around);
                    }
                    StorageRequest::Run { run, .. } => self.around.run = Some(run),
                    StorageRequest::Serving => {}
                }
            }
        }
    }
}

/// A disk that forgets what it is given.
#[derive(Debug)]
pub struct Nowhere;

impl Disk for Nowhere {
    type File = ();

    fn create(&mut self, _: &str, _: u64) -> Result<(), DiskError> {
        Ok(())
    }

    fn open(&mut self, _: &str) -> Result<(), DiskError> {
        Err(DiskError::NotFound)
    }

    fn close(&mut self, (): ()) {}

    fn length(&mut self, (): &()) -> Result<u64, DiskError> {
        Ok(64 << 20)
    }

    fn truncate(&mut self, (): &(), _: u64) -> Result<(), DiskError> {
        Ok(())
    }

    fn write_at(&mut self, (): &(), _: u64, _: &[u8]) -> Result<(), DiskError> {
        Ok(())
    }

    fn read_at(&mut self, (): &(), _: u64, _: &mut [u8]) -> Result<(), DiskError> {
        Err(DiskError::NotFound)
    }

    fn sync(&mut self, (): &()) -> Result<(), DiskError> {
        Ok(())
    }

    fn sync_directory(&mut self) -> Result<(), DiskError> {
        Ok(())
    }

    fn rename(&mut self, _: &str, _: &str) -> Result<(), DiskError> {
        Ok(())
    }

    fn remove(&mut self, _: &str) -> Result<(), DiskError> {
        Ok(())
    }

    fn list(&mut self) -> Result<Vec<String>, DiskError> {
        Ok(Vec::new())
    }
}

/// A journal, and a group of records for it in as many slots.
pub fn journal() -> (Journal<Nowhere>, Vec<AppendGroup>) {
    const RECORD_BYTES: u32 = 4 + 220;
    let identity = segment::Identity { generation: 1, store_key: 2 };
    let opened = recovery::create(&mut Nowhere, JournalConfig::default(), identity);
    let mut journal = opened.expect("this disk refuses nothing").journal;
    let part = |slot: u32| {
        journal.open_slot(slot as u16, 1);
        let start = slot * RECORD_BYTES;
        Part { slot: slot as u16, epoch: 1, expected_lsn: 0, records: 1, bytes: start..start + RECORD_BYTES }
    };
    let parts: Vec<_> = (0..MESSAGES).map(part).collect();
    let mut bytes = vec![b'x'; (MESSAGES * RECORD_BYTES) as usize];
    for record in bytes.chunks_mut(RECORD_BYTES as usize) {
        record[..4].copy_from_slice(&(RECORD_BYTES - 4).to_le_bytes());
    }
    (journal, vec![AppendGroup { ticket: 1, parts, bytes }])
}

/// The group as one batch. How many parts were committed.
pub fn journal_append((journal, groups): &mut (Journal<Nowhere>, Vec<AppendGroup>)) -> usize {
    let Ok(pending) = journal.begin(&mut Nowhere, groups) else { return 0 };
    let Ok(outcomes) = journal.commit(&mut Nowhere, pending) else { return 0 };
    outcomes.iter().flatten().filter(|outcome| **outcome == Outcome::Committed).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A piece that does nothing would have a splendid count.
    #[test]
    fn every_piece_does_its_work() {
        assert!(decode(masked_send()));
        assert_eq!(mask(mask(payload())), payload());
        assert!(encode(room()).len() > BODY_BYTES);
        assert_eq!(route(&mut mailboxes()), MESSAGES);
        // `stored` to one and `message` to the other.
        assert_eq!(sequence(&mut rules()), 2 * MESSAGES);
        assert!(view_run(&mut rules_with_messages()) > 2 * MESSAGES as usize);
        assert_eq!(journal_append(&mut journal()), MESSAGES as usize);
    }
}
