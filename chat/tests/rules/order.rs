//! The sends of one connection in one conversation keep their order (P5).

use chat::{Chat, ChatConfig, Limits};
use shard_router::{MailLimits, SlotMap};
use storage_seam::{Class, Outcome, ReadError, Refusal, Rows, StorageEvent, StoreFacts};
use wire::ids::{ClientMessageId, ConversationId, DeviceId, UserId};
use wire::mail::{Address, Fence, Letter, Mail, Request, SendMail, SessionAddress};
use wire::protocol::{ClientFrame, Kind};

use crate::world::{A, B, World, count};

/// One send is refused by the conversation's owner, the next by somebody nearer, whose answer comes first; the
/// client sends that one again before it knows of the other.
fn a_nearer_refusal_comes_first(is_full: fn(&Address) -> bool) {
    let mut world = World::new(Limits { pending_per_conversation_max: 1, ..Limits::default() });
    let (a, _) = (world.open(1, A, 1, None), world.open(2, B, 1, None));
    world.appends_wait = true;
    world.send(a, B, "in flight");
    world.settle();
    let first = world.send(a, B, "first");
    world.step();
    world.out.is_full = is_full;
    let second = world.send(a, B, "second");
    world.settle_owners();
    world.out.is_full = |_| false;
    // What the nearer one says overtakes what the other one said.
    let far = world.out.mail.iter().position(|letter| contains(letter, &first.0)).expect("its refusal is on its way");
    let far = world.out.mail.remove(far).unwrap();
    while !world.out.mail.is_empty() {
        world.step();
    }
    assert_eq!(count(&world.take(1), "overloaded"), 1);
    let group = world.appends.pop().unwrap();
    world.appends_wait = false;
    world.answer(group, Outcome::Committed);
    world.send_as(a, second, B, "second");
    world.settle_owners();
    world.out.mail.push_front(far);
    world.settle();
    let told = world.take(1);
    assert!(!told.iter().any(|f| f.contains("stored") && f.contains(&second.to_string())), "{told:?}");
    assert_eq!(count(&told, r#""code":"retry""#), 1, "{told:?}");
    world.send_as(a, first, B, "first");
    world.settle();
    world.send_as(a, second, B, "second");
    world.settle();
    let told = world.take(1);
    let seq = |n: u64, id: &str| told.iter().any(|f| f.contains(id) && f.contains(&format!(r#""seq":{n},"#)));
    assert!(seq(2, &first.to_string()) && seq(3, &second.to_string()), "{told:?}");
}

fn contains(letter: &[u8], part: &[u8]) -> bool {
    letter.windows(part.len()).any(|window| window == part)
}

#[test]
fn a_send_refused_on_the_way_does_not_pass_one_refused_behind_it() {
    a_nearer_refusal_comes_first(|to| matches!(to, Address::Conversation(_)));
}

#[test]
fn a_send_refused_at_once_does_not_pass_one_refused_behind_it() {
    a_nearer_refusal_comes_first(|to| matches!(to, Address::User(_)));
}

/// Failures in more conversations than may be remembered, each resolved before the next.
fn many_resolved_failures(is_full: fn(&Address) -> bool, skips: bool) {
    let mut world = World::new(Limits::default());
    let a = world.open(1, A, 1, None);
    for peer in 10..210 {
        world.out.is_full = is_full;
        let id = world.send(a, UserId(peer), "x");
        world.settle();
        world.out.is_full = |_| false;
        if skips {
            world.frame(a, &ClientFrame::Skip { conversation: ConversationId::direct(A, UserId(peer)), id });
        } else {
            world.send_as(a, id, UserId(peer), "x");
        }
        world.settle();
    }
    assert_eq!(world.out.closed, []);
    world.take(1);
    let mut asked_again = 0;
    for peer in 10..210 {
        let id = world.send(a, UserId(peer), "y");
        world.settle();
        // Where the session has forgotten the failure, the owner that remembers it asks once more.
        if count(&world.take(1), r#""code":"retry""#) > 0 {
            asked_again += 1;
            world.send_as(a, id, UserId(peer), "y");
        }
        world.send(a, UserId(peer), "z");
        world.settle();
        assert!(count(&world.take(1), r#""type":"stored""#) > 0);
    }
    assert!(asked_again <= if skips { 200 - 63 } else { 0 }, "{asked_again}");
    assert_eq!(world.out.closed, []);
}

#[test]
fn failures_in_many_conversations_that_were_all_resolved_do_no_harm() {
    for skips in [false, true] {
        many_resolved_failures(|to| matches!(to, Address::User(_)), skips);
        many_resolved_failures(|to| matches!(to, Address::Conversation(_)), skips);
    }
}

/// The second send fails and comes again; the first, in front of it all the time, fails only then.
#[test]
fn a_send_that_fails_after_a_later_one_came_again_is_waited_for() {
    let mut world = World::new(Limits { parked_bytes_max: 2_500, ..Limits::default() });
    let a = world.open(1, A, 1, None);
    let body = "x".repeat(1_000);
    world.reads_wait = true;
    world.send(a, UserId(9), &body);
    let first = world.send(a, B, &body);
    let second = world.send(a, B, &body);
    world.settle();
    assert_eq!(count(&world.take(1), "overloaded"), 1);
    // The other conversation is there: now there is room.
    let mut reads = std::mem::take(&mut world.reads).into_iter();
    let mut answer = |world: &mut World, answer| {
        let (ticket, _) = reads.next().expect("two conversations are read");
        world.event(StorageEvent::Read(ticket, answer));
        world.settle();
    };
    answer(&mut world, Ok(Rows::default()));
    world.send_as(a, second, B, &body);
    world.settle();
    answer(&mut world, Err(ReadError::Unavailable("away".to_owned())));
    world.reads_wait = false;
    let told = world.take(1);
    assert_eq!(count(&told, r#""code":"unavailable""#), 2, "{told:?}");
    world.send_as(a, second, B, &body);
    world.settle();
    assert_eq!(count(&world.take(1), r#""code":"retry""#), 1);
    world.send_as(a, first, B, &body);
    world.send_as(a, second, B, &body);
    world.settle();
    let told = world.take(1);
    let seq = |n: u64, id: &str| told.iter().any(|f| f.contains(id) && f.contains(&format!(r#""seq":{n},"#)));
    assert!(seq(1, &first.to_string()) && seq(2, &second.to_string()), "{told:?}");
}

/// So many sends may be in flight from all shards of a node to one, and storage may refuse all of them at once.
#[test]
fn the_order_of_each_sender_survives_when_everybody_fails_at_once() {
    const SHARDS: u16 = 8;
    const SESSIONS: u32 = 70_000;
    assert!(SESSIONS < u32::from(SHARDS) * MailLimits::default().requests_max);
    let slots = SlotMap::single_node(SHARDS, 1);
    let tails = slots.slots_of_shard(0).map(|slot| (slot.number(), 0)).collect();
    let facts = StoreFacts { generation: 9, epoch: 1, class: Class::D1 };
    let is_here = |peer: &u64| slots.shard_of(Address::Conversation(ConversationId::direct(A, UserId(*peer)))) == 0;
    let peers: Vec<_> = (10..).filter(is_here).take(SESSIONS.div_ceil(4_096) as usize).collect();
    let config = ChatConfig { shard: 0, slots: slots.clone(), facts, limits: Limits::default(), seed: 7 };
    let mut world = World { chat: Chat::new(&config), ..World::new(Limits::default()) };
    world.event(StorageEvent::RecoveredAll { tails, forgotten_until_ms: 0 });
    world.settle();
    world.appends_wait = true;
    let send = |world: &mut World, session: u32, id: u8| {
        let conversation = ConversationId::direct(A, UserId(peers[session as usize % peers.len()]));
        let request = Request {
            session: SessionAddress { shard: session as u16 % SHARDS, index: session, generation: 1 },
            user: A,
            device: DeviceId(1 + session),
            number: u32::from(id),
        };
        let (fence, id, kind) = (Fence::default(), ClientMessageId([id; 16]), Kind::Text);
        let send = SendMail { request, fence, conversation, id, kind, reply_to: 0, target_seq: 0 };
        let letter = Letter { to: Address::Conversation(conversation), mail: Mail::Send(send), payload: b"x" };
        world.chat.letter(world.now, &letter, &mut world.out);
        for request in std::mem::take(&mut world.out.requests) {
            world.requested(request);
        }
    };
    for session in 0..SESSIONS {
        send(&mut world, session, 1);
    }
    world.chat.finish_turn(world.now, &mut world.out);
    for request in std::mem::take(&mut world.out.requests) {
        world.requested(request);
    }
    let group = world.appends.pop().expect("one group");
    world.answer(group, Outcome::Refused(Refusal::Full));
    world.out.mail.clear();
    world.appends_wait = false;
    for session in 0..SESSIONS {
        send(&mut world, session, 2);
    }
    world.chat.finish_turn(world.now, &mut world.out);
    assert!(world.out.requests.is_empty(), "the second message of somebody passes the first");
    assert_eq!(world.chat.counters().messages, 0);
}
