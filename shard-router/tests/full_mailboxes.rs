//! What becomes of each class of mail when there is no room, on one thread and on several.

#![allow(clippy::disallowed_methods, reason = "the test is the driver: it owns the threads")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use shard_router::{MailLimits, Mailbox, Posted, SlotMap, Waker};
use wire::ids::{ChangeNumber, ClientMessageId, ConversationId, DeviceId, UserId};
use wire::mail::{Address, Letter, Mail, MessageMail, Request, SessionAddress};
use wire::protocol::Kind;

const TINY: MailLimits = MailLimits {
    requests_max: 3,
    request_bytes_max: 4_000,
    event_bytes_max: 400,
    batches_max: 1,
    dirty_max: 2,
    buffer_bytes_kept_max: 1 << 16,
};

fn mailboxes(shards: u16, limits: MailLimits) -> Vec<Mailbox> {
    let wakers = (0..shards).map(|_| Box::new(|| ()) as Waker).collect();
    Mailbox::for_all(&Arc::new(SlotMap::single_node(shards, 1)), limits, wakers)
}

fn pair() -> (Mailbox, Mailbox) {
    let [one, two] = <[Mailbox; 2]>::try_from(mailboxes(2, TINY)).expect("two shards");
    (one, two)
}

fn session(shard: u16) -> SessionAddress {
    SessionAddress { shard, index: 1, generation: 1 }
}

fn asked(by: u16, number: u32) -> Request {
    Request { session: session(by), user: UserId(1), device: DeviceId(1), number }
}

fn request(to: u16, number: u32) -> Letter<'static> {
    let mail = Mail::List { request: asked(1 - to, number), skip: 0, limit: 1 };
    Letter { to: Address::Shard(to), mail, payload: b"" }
}

fn reply(to: u16, number: u32) -> Letter<'static> {
    Letter { to: Address::Session(session(to)), mail: Mail::Marked { request: asked(to, number) }, payload: b"" }
}

fn conversation(number: u64) -> ConversationId {
    ConversationId::direct(UserId(number), UserId(1_000))
}

fn event(to: u16, number: u64, seq: u64) -> Letter<'static> {
    let message = MessageMail {
        conversation: conversation(number),
        seq,
        from: UserId(number),
        device: DeviceId(1),
        time_ms: 1,
        kind: Kind::Text,
        id: ClientMessageId([0; 16]),
        reply_to: 0,
        target_seq: 0,
    };
    let mail = Mail::Message { user: UserId(number), message, change: ChangeNumber::default() };
    Letter { to: Address::Session(session(to)), mail, payload: b"body" }
}

fn signal(to: u16) -> Letter<'static> {
    let mail = Mail::Signal { user: UserId(1), from: UserId(2), conversation: conversation(2), name_bytes: 4 };
    Letter { to: Address::Session(session(to)), mail, payload: b"name" }
}

fn take_all(mailbox: &mut Mailbox) -> Vec<Mail> {
    let mut mail = Vec::new();
    while let Some(batch) = mailbox.take() {
        mail.extend(batch.letters().map(|letter| letter.mail));
        mailbox.give_back(batch);
    }
    mail
}

/// Fills the channel and the batch behind it, with signals, of which no mark is left; says how many were taken.
fn fill(mailbox: &mut Mailbox, to: u16) -> usize {
    let mut taken = 0;
    for _ in 0..2 {
        while mailbox.post(&signal(to)) == Posted::Taken {
            taken += 1;
        }
        mailbox.flush();
    }
    assert!(mailbox.has_unsent());
    taken
}

/// Everything else that the one posted, as the other takes it.
fn drain(one: &mut Mailbox, two: &mut Mailbox) -> Vec<Mail> {
    let mut arrived = Vec::new();
    while one.has_unsent() {
        arrived.extend(take_all(two));
        one.flush();
    }
    arrived.extend(take_all(two));
    arrived
}

#[test]
fn a_request_is_refused_at_its_origin_until_an_earlier_one_has_ended() {
    let (mut one, mut two) = pair();
    for number in 0..3 {
        assert_eq!(one.post(&request(1, number)), Posted::Taken);
    }
    assert_eq!(one.post(&request(1, 3)), Posted::Refused);
    one.flush();
    assert_eq!(take_all(&mut two).len(), 3);
    // Delivered is not answered.
    assert_eq!(one.post(&request(1, 3)), Posted::Refused);
    assert_eq!(two.post(&reply(0, 0)), Posted::Taken);
    two.flush();
    assert_eq!(one.outstanding(1), 3);
    assert_eq!(take_all(&mut one), [reply(0, 0).mail]);
    assert_eq!(one.outstanding(1), 2);
    assert_eq!(one.post(&request(1, 3)), Posted::Taken);
    assert_eq!(one.post(&request(1, 4)), Posted::Refused);
    assert_eq!(one.counters().requests_refused, 3);
}

/// A detach ends no request: its room was reserved by the `Open`, whose own reply gave the credit back.
#[test]
fn only_what_ends_a_request_gives_credit_back() {
    let (mut one, mut two) = pair();
    assert_eq!(one.post(&request(1, 0)), Posted::Taken);
    one.flush();
    take_all(&mut two);
    let detach = Letter { mail: Mail::Detach { request: asked(0, 0) }, ..reply(0, 0) };
    assert_eq!(two.post(&detach), Posted::Taken);
    two.flush();
    take_all(&mut one);
    assert_eq!(one.outstanding(1), 1);
}

#[test]
fn replies_are_taken_and_arrive_however_full_the_mailbox_is() {
    let (mut one, mut two) = pair();
    let signals = fill(&mut one, 1);
    for number in 0..50 {
        let detach = Letter { mail: Mail::Detach { request: asked(1, number) }, ..reply(1, number) };
        assert_eq!(one.post(&detach), Posted::Taken);
    }
    let arrived = drain(&mut one, &mut two);
    assert_eq!(arrived.iter().filter(|mail| matches!(mail, Mail::Detach { .. })).count(), 50);
    assert_eq!(arrived.len(), signals + 50);
}

#[test]
fn events_without_room_arrive_as_one_mark_per_conversation_before_anything_newer() {
    let (mut one, mut two) = pair();
    let signals = fill(&mut one, 1);
    for (number, seq) in [(1, 5), (2, 7), (1, 2), (2, 9)] {
        assert_eq!(one.post(&event(1, number, seq)), Posted::Collapsed);
    }
    assert_eq!(take_all(&mut two).len(), signals / 2);
    // There is room in the channel now, but the marks have not left: what is newer must not overtake them.
    assert_eq!(one.post(&event(1, 1, 6)), Posted::Collapsed);
    one.flush();
    assert_eq!(one.post(&event(1, 1, 7)), Posted::Taken);
    let mut arrived = drain(&mut one, &mut two);
    arrived.retain(|mail| !matches!(mail, Mail::Signal { .. }));
    let mark = |number, head| Mail::Dirty { user: UserId(number), conversation: conversation(number), head };
    assert_eq!(arrived, [mark(1, 6), mark(2, 9), event(1, 1, 7).mail]);
    assert_eq!(one.counters().events_collapsed, 5);
    assert_eq!(one.counters().signals_dropped, 2);
}

/// Two sessions of one user on one shard are told apart, and so is the user's owner.
#[test]
fn marks_go_where_their_events_would_have_gone() {
    let (mut one, mut two) = pair();
    fill(&mut one, 1);
    let user = (0..100).map(UserId).find(|&user| one.map().shard_of(Address::User(user)) == 1).expect("half of all");
    let mail = Mail::Tick {
        user,
        conversation: conversation(1),
        delivered_all: 1,
        read_all: 1,
        change: ChangeNumber::default(),
    };
    let there = |index| Address::Session(SessionAddress { shard: 1, index, generation: 9 });
    for to in [there(4), Address::User(user)] {
        assert_eq!(one.post(&Letter { to, mail, payload: b"" }), Posted::Collapsed);
    }
    let mut addressed = Vec::new();
    while one.has_unsent() {
        one.flush();
        while let Some(batch) = two.take() {
            let marks = batch.letters().filter(|letter| matches!(letter.mail, Mail::Dirty { .. }));
            addressed.extend(marks.map(|letter| letter.to));
            two.give_back(batch);
        }
    }
    while let Some(batch) = two.take() {
        addressed.extend(batch.letters().map(|letter| letter.to));
    }
    assert_eq!(addressed, [Address::User(user), there(4)]);
}

#[test]
fn one_letter_stands_for_all_when_there_are_too_many_dirty_marks() {
    let (mut one, mut two) = pair();
    fill(&mut one, 1);
    for number in 1..=4 {
        assert_eq!(one.post(&event(1, number, 1_000)), Posted::Collapsed);
    }
    assert_eq!(one.counters().dirty_all, 1);
    let mut arrived = drain(&mut one, &mut two);
    arrived.retain(|mail| !matches!(mail, Mail::Signal { .. }));
    assert_eq!(arrived, [Mail::DirtyAll { from: 0 }]);
    assert_eq!(one.post(&event(1, 1, 1_001)), Posted::Taken);
}

#[test]
fn a_shard_posts_to_itself_by_the_same_rules() {
    let mut mailbox = mailboxes(1, TINY).pop().expect("one shard");
    let request = Letter { mail: Mail::List { request: asked(0, 1), skip: 0, limit: 1 }, ..request(0, 1) };
    assert_eq!(mailbox.post(&request), Posted::Taken);
    assert!(mailbox.take().is_none(), "mail leaves when it is flushed, not before");
    mailbox.flush();
    assert!(!mailbox.prepare_to_sleep(|| false));
    assert_eq!(take_all(&mut mailbox), [request.mail]);
    assert_eq!(mailbox.outstanding(0), 1);
    assert_eq!(mailbox.post(&reply(0, 1)), Posted::Taken);
    mailbox.flush();
    assert_eq!(take_all(&mut mailbox).len(), 1);
    assert_eq!(mailbox.outstanding(0), 0);
}

/// Whoever goes to sleep holding a batch that found no room is rung when there is room.
#[test]
fn taking_from_a_full_channel_wakes_its_sleeping_sender() {
    let rung = Arc::new(AtomicU64::new(0));
    let bell = Arc::clone(&rung);
    let wakers: Vec<Waker> = vec![Box::new(move || _ = bell.fetch_add(1, Ordering::Relaxed)), Box::new(|| ())];
    let mut boxes = Mailbox::for_all(&Arc::new(SlotMap::single_node(2, 1)), TINY, wakers);
    let mut two = boxes.pop().expect("two shards");
    let mut one = boxes.pop().expect("two shards");
    fill(&mut one, 1);
    assert!(one.prepare_to_sleep(|| false));
    take_all(&mut two);
    assert_eq!(rung.load(Ordering::Relaxed), 1);
    one.woken();
    one.flush();
    assert_eq!(two.counters().doorbells, 1);
    assert!(two.has_mail());
}

/// Two threads drown each other in mail through mailboxes of one batch, and sleep whenever they can. Both
/// get everything that must arrive, in order; neither ever waits inside `post` or `flush`.
#[test]
fn two_shards_whose_mailboxes_are_full_both_go_on() {
    const REQUESTS: u32 = 20_000;
    let bells: Vec<_> = (0..2).map(|_| crossbeam_channel::bounded::<()>(1)).collect();
    let wakers =
        bells.iter().map(|(ring, _)| ring.clone()).map(|ring| Box::new(move || _ = ring.try_send(())) as Waker);
    let boxes = Mailbox::for_all(&Arc::new(SlotMap::single_node(2, 1)), TINY, wakers.collect());
    let threads: Vec<_> = boxes
        .into_iter()
        .zip(bells.iter().map(|(_, bell)| bell.clone()))
        .map(|(mailbox, bell)| std::thread::spawn(move || drown(mailbox, &bell, REQUESTS)))
        .collect();
    for thread in threads {
        let (replies, refused, mailbox) = thread.join().expect("the shard ran to its end");
        assert_eq!(replies, REQUESTS);
        assert!(refused > 0, "the test never met a full mailbox");
        assert!(mailbox.counters().events_collapsed > 0, "{:?}", mailbox.counters());
    }
}

fn drown(mut mailbox: Mailbox, bell: &crossbeam_channel::Receiver<()>, requests: u32) -> (u32, u64, Mailbox) {
    let other = 1 - mailbox.shard();
    let (mut posted, mut replied, mut answered, mut refused) = (0, 0, 0, 0);
    let (mut event_seq, mut seen_seq) = (0, 0);
    while replied < requests || answered < requests || mailbox.has_unsent() {
        let mut to_answer = Vec::new();
        while let Some(batch) = mailbox.take() {
            for letter in batch.letters() {
                match letter.mail {
                    Mail::List { request, .. } => to_answer.push(request.number),
                    Mail::Marked { request } => {
                        assert_eq!(request.number, replied, "replies come in the order in which they were posted");
                        replied += 1;
                    }
                    Mail::Message { message: MessageMail { seq, .. }, .. } | Mail::Dirty { head: seq, .. } => {
                        assert!(seq > seen_seq, "{seq} after {seen_seq}");
                        seen_seq = seq;
                    }
                    other => panic!("{other:?}"),
                }
            }
            mailbox.give_back(batch);
        }
        for number in to_answer {
            assert_eq!(number, answered, "requests come in the order in which they were posted");
            answered += 1;
            assert_eq!(mailbox.post(&reply(other, number)), Posted::Taken);
        }
        while posted < requests && mailbox.post(&request(other, posted)) == Posted::Taken {
            posted += 1;
        }
        refused += u64::from(posted < requests);
        if posted < requests {
            for _ in 0..3 {
                event_seq += 1;
                let _ = mailbox.post(&event(other, 1, event_seq));
            }
        }
        mailbox.flush();
        let done = replied == requests && answered == requests && !mailbox.has_unsent();
        if !done && mailbox.prepare_to_sleep(|| false) {
            bell.recv().expect("the doorbell outlives the shard");
        }
        mailbox.woken();
    }
    (replied, refused, mailbox)
}

#[cfg(feature = "planted-bugs")]
#[test]
fn a_planted_dropped_reply_is_noticed() {
    let (mut one, mut two) = pair();
    one.plant(shard_router::PlantedBug::ReplyDropped);
    fill(&mut one, 1);
    assert_eq!(one.post(&reply(1, 1)), Posted::Taken);
    let arrived = drain(&mut one, &mut two);
    assert!(!arrived.iter().any(|mail| matches!(mail, Mail::Marked { .. })));
}

#[cfg(feature = "planted-bugs")]
#[test]
fn a_planted_forgotten_wake_up_leaves_a_sleeper_with_mail() {
    let rung = Arc::new(AtomicU64::new(0));
    let bell = Arc::clone(&rung);
    let wakers: Vec<Waker> = vec![Box::new(|| ()), Box::new(move || _ = bell.fetch_add(1, Ordering::Relaxed))];
    let mut boxes = Mailbox::for_all(&Arc::new(SlotMap::single_node(2, 1)), TINY, wakers);
    boxes[0].plant(shard_router::PlantedBug::WakeUpForgotten);
    assert!(boxes[1].prepare_to_sleep(|| false));
    assert_eq!(boxes[0].post(&event(1, 1, 1)), Posted::Taken);
    boxes[0].flush();
    assert!(boxes[1].has_mail());
    assert_eq!(rung.load(Ordering::Relaxed), 0);
}
