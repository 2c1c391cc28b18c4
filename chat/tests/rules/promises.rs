//! Promises to clients that do nothing wrong, in bad times.

use chat::{Limits, SessionKey};
use storage_seam::{Outcome, Space, StorageEvent};
use wire::ids::{ChangeNumber, ClientMessageId, ConversationId, UserId};
use wire::mail::{self, Address, Letter, Mail};
use wire::protocol::{ClientFrame, Pull, PullRange};

use crate::world::{A, B, WALL_MS, World, count};

fn beat(world: &mut World, session: SessionKey, received: u64) {
    world.frame(session, &ClientFrame::Beat { received });
    world.settle();
}

/// What a beat acknowledged is acknowledged, whoever had no room for the mark meanwhile.
#[test]
fn a_delivered_mark_that_was_refused_is_given_again() {
    for is_full in
        [(|to| matches!(to, Address::User(_))) as fn(&Address) -> bool, |to| matches!(to, Address::Conversation(_))]
    {
        let mut world = World::new(Limits::default());
        let (a, b) = (world.open(1, A, 1, None), world.open(2, B, 1, None));
        world.send(a, B, "x");
        world.settle();
        world.take(1);
        world.take(2);
        world.out.is_full = is_full;
        beat(&mut world, b, 1);
        assert_eq!(count(&world.take(2), "error"), 0, "nobody asked for marks");
        world.out.is_full = |_| false;
        beat(&mut world, b, 1);
        assert_eq!(count(&world.take(1), r#""delivered_all":1"#), 1);
        beat(&mut world, b, 1);
        assert_eq!(count(&world.take(1), "tick"), 0);
    }
}

/// More than may be unacknowledged was on its way; when it is acknowledged, it was delivered.
#[test]
fn what_a_lagging_client_acknowledges_was_delivered() {
    let mut world = World::new(Limits { unacknowledged_max: 4, ..Limits::default() });
    let (a, b) = (world.open(1, A, 1, None), world.open(2, B, 1, None));
    for _ in 0..6 {
        world.send(a, B, "x");
    }
    world.settle();
    world.chat.drained(b, &mut world.out);
    world.settle();
    world.take(1);
    beat(&mut world, b, 5);
    assert_eq!(count(&world.take(1), r#""delivered_all":5"#), 1);
    world.take(2);
    world.send(a, B, "live again");
    world.settle();
    assert_eq!(count(&world.take(2), "live again"), 1);
}

fn pull_at(conversation: ConversationId, min_seq: u64) -> ClientFrame<'static> {
    ClientFrame::Pull(Pull { conversation, range: PullRange::After(0), limit: Some(10), min_seq: Some(min_seq) })
}

/// P8: who asks for what is not there yet gets it if it comes soon.
#[test]
fn a_read_that_is_ahead_waits_for_what_it_asks() {
    let mut world = World::new(Limits::default());
    let (a, b) = (world.open(1, A, 1, None), world.open(2, B, 1, None));
    let conversation = ConversationId::direct(A, B);
    world.appends_wait = true;
    world.send(a, B, "soon");
    world.settle();
    world.take(2);
    world.frame(b, &pull_at(conversation, 1));
    world.frame(b, &pull_at(conversation, 2));
    world.settle();
    assert_eq!(world.take(2), Vec::<String>::new());
    assert!(world.chat.deadline().is_some_and(|at| at <= world.now.monotonic_ms + 1_000));
    world.now.monotonic_ms += 900;
    let group = world.appends.pop().unwrap();
    world.answer(group, Outcome::Committed);
    world.settle();
    let told = world.take(2);
    assert_eq!((count(&told, r#""type":"page""#), count(&told, "behind")), (1, 0), "{told:?}");
    world.now.monotonic_ms += 100;
    world.settle();
    let told = world.take(2);
    assert_eq!((count(&told, r#""type":"page""#), count(&told, "behind")), (0, 1), "{told:?}");
    assert_eq!(world.chat.deadline().filter(|at| *at <= world.now.monotonic_ms), None);
}

/// Only so many may wait: the next is told at once, and those who wait are none the worse.
#[test]
fn a_read_that_finds_no_room_to_wait_is_told_that_it_is_ahead() {
    let mut world = World::new(Limits { pulls_max: 1, ..Limits::default() });
    let (a, b) = (world.open(1, A, 1, None), world.open(2, B, 1, None));
    world.frame(b, &pull_at(ConversationId::direct(A, B), 1));
    world.settle();
    assert!(world.take(2).iter().all(|frame| !frame.contains("behind")));
    world.frame(a, &pull_at(ConversationId::direct(A, B), 1));
    world.settle();
    assert_eq!(count(&world.take(1), "behind"), 1);
    world.send(a, B, "here it is");
    world.settle();
    assert_eq!(count(&world.take(2), r#""type":"page""#), 1);
    // Its place is free again at once: nobody holds it who has what they asked for.
    world.take(1);
    world.frame(a, &pull_at(ConversationId::direct(A, B), 2));
    world.settle();
    assert_eq!(count(&world.take(1), "behind"), 0);
    world.send(b, A, "and the next");
    world.settle();
    assert_eq!(count(&world.take(1), r#""type":"page""#), 1);
}

/// Who goes away waits for nothing, and holds no place that somebody else could have.
#[test]
fn a_client_that_goes_gives_up_the_places_where_it_waited() {
    let mut world = World::new(Limits { pulls_max: 2, ..Limits::default() });
    let (a, b) = (world.open(1, A, 1, None), world.open(2, B, 1, None));
    let waiting = |world: &World| world.chat.sizes().iter().find(|(name, _)| *name == "waiting_reads").unwrap().1;
    world.frame(b, &pull_at(ConversationId::direct(A, B), 1));
    world.frame(a, &pull_at(ConversationId::direct(A, B), 1));
    world.settle();
    assert_eq!(waiting(&world), 2);
    world.chat.closed(b, &mut world.out);
    world.settle();
    assert_eq!((waiting(&world), world.chat.counters().reads_left), (1, 1));
    world.send(a, B, "here it is");
    world.settle();
    assert_eq!((waiting(&world), count(&world.take(1), r#""type":"page""#)), (0, 1));
    assert_eq!(world.chat.deadline().filter(|at| *at <= world.now.monotonic_ms + 1_000), None);
}

/// P10: a client that comes back while storage is away is answered from memory, as far as that reaches.
#[test]
fn who_comes_back_while_storage_is_away_is_answered_from_memory() {
    let mut world = World::new(Limits { tail_letters_max: 4, ..Limits::default() });
    let (a, b) = (world.open(1, A, 1, None), world.open(2, B, 1, None));
    world.send(a, B, "x");
    world.settle();
    world.chat.closed(b, &mut world.out);
    world.send(a, B, "missed");
    world.settle();
    (world.reads_wait, world.appends_wait) = (true, true);
    let change = |counter| Some(ChangeNumber { epoch: 1, counter });
    for (client, after, result) in [(3, change(2), "replay"), (4, change(0), "delta")] {
        for _ in 0..6 * (client - 3) {
            world.reads_wait = false;
            world.appends_wait = false;
            world.send(a, B, "more than the tail holds");
            world.settle();
            (world.reads_wait, world.appends_wait) = (true, true);
        }
        let b = world.open(client, B, 1, after);
        let told = world.take(client);
        assert_eq!(count(&told, &format!(r#""result":"{result}""#)), 1, "{told:?}");
        assert!(world.reads.is_empty());
        world.chat.closed(b, &mut world.out);
        world.settle();
    }
}

/// Too much was lost on the way to say what: a conversation that was new then is listed all the same.
#[test]
fn a_new_conversation_whose_news_was_lost_is_listed() {
    let mut world = World::new(Limits::default());
    let a = world.open(1, A, 1, None);
    world.send(a, B, "x");
    // It is loaded, then proposed and committed; what its owner says of that is lost.
    for _ in 0..2 {
        world.settle_owners();
        world.chat.finish_turn(world.now, &mut world.out);
        for request in std::mem::take(&mut world.out.requests) {
            world.requested(request);
        }
    }
    let lost = |bytes: &Vec<u8>| matches!(mail::read(bytes).unwrap().0.mail, Mail::Message { user: B, .. });
    assert!(world.out.mail.iter().any(lost));
    world.out.mail.retain(|bytes| !lost(bytes));
    let mut all_lost = Vec::new();
    mail::write(&mut all_lost, &Letter { to: Address::Shard(0), mail: Mail::DirtyAll { from: 0 }, payload: &[] });
    world.out.mail_bytes += all_lost.len();
    world.out.mail.push_back(all_lost);
    world.settle();
    world.open(2, B, 1, None);
    let told = world.take(2);
    assert_eq!(count(&told, r#""conv":"dm.1.2""#), 1, "{told:?}");
}

/// A send under an id of that time; what it is answered with.
fn send_at(world: &mut World, (session, client): (SessionKey, u64), to: UserId, time_ms: u64, body: &str) -> String {
    let mut id = [1; 16];
    id[..6].copy_from_slice(&time_ms.to_be_bytes()[2..]);
    (id[6], id[8]) = (0x70, 0x80);
    world.take(client);
    world.send_as(session, ClientMessageId(id), to, body);
    world.settle();
    let frames = world.take(client);
    frames.into_iter().find(|frame| frame.contains("stored") || frame.contains("error")).expect("an answer")
}

#[test]
fn an_id_is_expired_when_it_may_be_forgotten_and_not_because_a_clock_says_so() {
    const DAY_MS: u64 = 24 * 3_600_000;
    let mut world = World::new(Limits { dedup_entries_max: 1, ..Limits::default() });
    let mine = (world.open(1, A, 1, None), 1);
    let theirs = (world.open(2, B, 1, None), 2);
    for (nth, body) in ["one", "two", "three"].into_iter().enumerate() {
        assert!(send_at(&mut world, mine, B, WALL_MS + nth as u64, body).contains("stored"));
        world.checkpoint();
    }
    // No memory of them, in conversations that are read again.
    world.checkpoint();
    // The server's clock jumps by a month: nothing is forgotten for that, and nothing too old.
    world.now.wall_ms += 30 * DAY_MS;
    assert!(send_at(&mut world, mine, B, WALL_MS, "one").contains("\"dup\":true"));
    assert!(send_at(&mut world, mine, B, WALL_MS + DAY_MS, "new").contains("\"seq\":4"));
    world.checkpoint();
    // The views forget, and say so.
    world.views.retain(|(space, _), _| *space != Space::Dedup);
    world.forgotten_until_ms = WALL_MS + 60 * DAY_MS;
    world.checkpoint();
    world.event(StorageEvent::CheckpointDone { checkpoint: 99, forgotten_until_ms: world.forgotten_until_ms });
    let refused = send_at(&mut world, mine, B, WALL_MS + 1, "two");
    assert!(refused.contains("id_expired"), "{refused}");
    // Though the server thinks that all this is long ago: no id as high was ever used by them.
    assert!(send_at(&mut world, mine, B, WALL_MS + DAY_MS + 1, "newer").contains("\"seq\":5"));
    assert!(send_at(&mut world, theirs, A, WALL_MS + 1, "my first").contains("\"seq\":6"));
    assert_eq!(world.chat.counters().ids_expired, 1);
}
