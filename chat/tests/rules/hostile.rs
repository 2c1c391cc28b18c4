//! What a hostile or unlucky client may not cause.

use std::collections::HashMap;

use chat::{ClientKey, Identity, Limits};
use storage_seam::{Outcome, ReadError, StorageEvent};
use wire::ids::{ChangeNumber, ClientMessageId, ConversationId, DeviceId, UserId};
use wire::mail::{self, Letter};
use wire::protocol::{ClientFrame, PullRange};

use crate::world::{A, B, World, count, pull};

/// A list is given up while owners of conversations still owe it summaries; the same session asks again.
#[test]
fn a_list_that_was_given_up_leaves_nothing_to_the_next_one() {
    let mut world = World::new(Limits::default());
    let a = world.open(1, A, 1, None);
    let start = ChangeNumber { epoch: 1, counter: 0 };
    for peer in 10..40 {
        world.send(a, UserId(peer), "x");
    }
    world.settle();
    world.take(1);
    let changes = ClientFrame::Changes { after: start, limit: None };
    world.frame(a, &changes);
    // The first letter is the question, then come the summaries that are asked for.
    let mut answers = Vec::new();
    while let Some(bytes) = world.out.mail.pop_front() {
        world.out.mail_bytes -= bytes.len();
        let (letter, _) = mail::read(&bytes).unwrap();
        if matches!(letter.mail, mail::Mail::Summary { .. }) {
            answers.push(bytes.clone());
            continue;
        }
        world.chat.letter(world.now, &letter, &mut world.out);
    }
    assert_eq!(answers.len(), 30);
    // One owner could not say; the others' answers come after the client asked once more.
    let (Letter { mail: mail::Mail::Summary { request, .. }, .. }, _) = mail::read(&answers[0]).unwrap() else {
        panic!("a summary")
    };
    let code = wire::protocol::ErrorCode::Overloaded;
    let (by, fence) = (mail::Hop::Conversation, mail::Fence::default());
    let refused = mail::Mail::Refused { request, conversation: None, id: None, code, after_ms: 0, by, fence };
    let letter = Letter { to: mail::Address::User(A), mail: refused, payload: &[] };
    world.chat.letter(world.now, &letter, &mut world.out);
    world.frame(a, &changes);
    let again: Vec<_> = world.out.mail.drain(..).collect();
    for bytes in again.iter().chain(&answers[..29]) {
        let (letter, _) = mail::read(bytes).unwrap();
        world.chat.letter(world.now, &letter, &mut world.out);
    }
    world.settle();
    let frames = world.take(1);
    assert_eq!(count(&frames, "overloaded"), 1);
    let list: Vec<_> = frames.iter().filter(|frame| frame.contains(r#""type":"changes""#)).collect();
    assert_eq!(list.len(), 1);
    for peer in 10..40 {
        assert_eq!(list[0].matches(&format!(r#""dm.1.{peer}","head""#)).count(), 1, "{}", list[0]);
    }
}

/// A mark far below the head, while the message it names is not yet in the views.
#[test]
fn a_mark_below_a_burst_that_no_checkpoint_has_covered() {
    let mut world = World::new(Limits::default());
    let (a, b) = (world.open(1, A, 1, None), world.open(2, B, 1, None));
    for _ in 0..100 {
        world.send(a, B, "x");
    }
    world.settle();
    world.take(2);
    let conversation = ConversationId::direct(A, B);
    world.frame(b, &ClientFrame::Mark { conversation, delivered: None, read: Some(10) });
    world.settle();
    assert_eq!(count(&world.take(2), "error"), 0);
    world.frame(b, &ClientFrame::Changes { after: ChangeNumber { epoch: 1, counter: 0 }, limit: None });
    world.settle();
    assert_eq!(count(&world.take(2), r#""unread":90"#), 1);
}

/// Whoever takes nothing holds little, whatever others push.
#[test]
fn nothing_that_others_push_grows_what_waits_for_a_slow_client() {
    let mut world = World::new(Limits::default());
    let (a, _) = (world.open(1, A, 1, None), world.open(2, B, 1, None));
    let conversation = ConversationId::direct(A, B);
    world.send(a, B, "x");
    world.settle();
    world.out.stuck.insert(2, 0);
    let body = "x".repeat(60_000);
    for _ in 0..100 {
        world.frame(a, &ClientFrame::Signal { conversation, name: "typing".into(), body: body.as_str().into() });
        world.settle();
    }
    assert!(world.out.stuck[&2] < 400_000, "{} bytes wait", world.out.stuck[&2]);
}

/// P5: an old failure that is told late does not let pass what follows a newer one.
#[test]
fn a_late_answer_does_not_open_the_fence_of_a_newer_failure() {
    let limits = Limits { pending_per_conversation_max: 1, ..Limits::default() };
    let mut world = World::new(limits);
    let (a, _) = (world.open(1, A, 1, None), world.open(2, B, 1, None));
    world.send(a, B, "first");
    world.settle();
    world.appends_wait = true;
    world.take(1);
    // In flight, and told to be unknown only later.
    world.send(a, B, "second");
    world.settle();
    let third = world.send(a, B, "third");
    world.settle();
    assert_eq!(count(&world.take(1), "overloaded"), 1);
    // It comes again and fails again; what follows it is on its way already when the stall is told.
    world.send_as(a, third, B, "third");
    let fourth = world.send(a, B, "fourth");
    for _ in 0..3 {
        world.step();
    }
    world.now.monotonic_ms += 2_000;
    world.chat.finish_turn(world.now, &mut world.out);
    world.appends_wait = false;
    let group = world.appends.pop().unwrap();
    world.answer(group, Outcome::Committed);
    world.settle();
    let frames = world.take(1);
    let stored = |id: ClientMessageId| frames.iter().any(|f| f.contains("stored") && f.contains(&id.to_string()));
    assert!(!stored(fourth), "{frames:?}");
}

/// Whose id cannot be looked up because the row is damaged is refused for good; later sends are not.
#[test]
fn a_send_refused_for_good_holds_nothing_back() {
    let mut world = World::new(Limits::default());
    let (a, _) = (world.open(1, A, 1, None), world.open(2, B, 1, None));
    world.send(a, B, "first");
    world.settle();
    world.take(1);
    world.reads_wait = true;
    // An id without a time is always looked up.
    world.send_as(a, ClientMessageId([1; 16]), B, "second");
    world.settle();
    let (ticket, _) = world.reads.pop().unwrap();
    world.event(StorageEvent::Read(ticket, Err(ReadError::Damaged("a row".to_owned()))));
    world.settle();
    world.reads_wait = false;
    assert_eq!(count(&world.take(1), "damaged"), 1);
    world.send(a, B, "third");
    world.settle();
    assert_eq!(count(&world.take(1), "stored"), 1);
}

/// Pages are a thousand times what asks for them.
#[test]
fn one_client_cannot_have_more_pages_on_their_way_than_a_few() {
    let mut world = World::new(Limits::default());
    let a = world.open(1, A, 1, None);
    let conversation = ConversationId::direct(A, B);
    for _ in 0..10 {
        world.send(a, B, &"x".repeat(60_000));
    }
    world.settle();
    world.out.mail_bytes_highest = 0;
    for _ in 0..1_000 {
        world.frame(a, &pull(conversation, PullRange::After(0)));
    }
    world.settle();
    assert!(world.out.mail_bytes_highest < 20_000_000, "{} bytes of mail", world.out.mail_bytes_highest);
    let frames = world.take(1);
    assert_eq!(count(&frames, r#""type":"page""#) + count(&frames, "overloaded"), 1_000);
    // Afterwards it may ask again.
    world.frame(a, &pull(conversation, PullRange::After(0)));
    world.settle();
    assert_eq!(count(&world.take(1), r#""type":"page""#), 1);
}

/// Downwards a page ends where it is full, and what was in memory then costs no more than a page.
#[test]
fn pages_downwards_are_whole_whatever_is_in_memory() {
    let mut world = World::new(Limits::default());
    let a = world.open(1, A, 1, None);
    let conversation = ConversationId::direct(A, B);
    for n in 1..=20_usize {
        world.send(a, B, &"x".repeat(1_000 * n));
        world.settle();
        if n == 10 {
            world.checkpoint();
        }
    }
    for upwards in [true, false] {
        let (mut seen, mut cursor) = (Vec::new(), None);
        loop {
            world.take(1);
            let range = if upwards { PullRange::After(cursor.unwrap_or(0)) } else { PullRange::Before(cursor) };
            world.frame(a, &pull(conversation, range));
            world.settle();
            let page = world.take(1).remove(0);
            assert!(page.len() < 80_000);
            let seqs = page.split(r#"{"seq":"#).skip(1);
            seen.extend(seqs.map(|rest| rest.split(',').next().unwrap().parse::<u64>().unwrap()));
            cursor = seen.last().copied();
            if !page.contains(r#""more":true"#) {
                break;
            }
        }
        if !upwards {
            seen.reverse();
        }
        assert_eq!(seen, (1..=20).collect::<Vec<_>>());
    }
}

/// P10: who sends again while the store is silent is told again, within the same time.
#[test]
fn a_repeat_that_joins_a_stalled_send_is_answered() {
    let mut world = World::new(Limits::default());
    let (a, _) = (world.open(1, A, 1, None), world.open(2, B, 1, None));
    world.send(a, B, "first");
    world.settle();
    world.take(1);
    world.appends_wait = true;
    let id = world.send(a, B, "second");
    world.settle();
    world.now.monotonic_ms += 2_000;
    world.settle();
    assert_eq!(count(&world.take(1), "unavailable"), 1);
    world.send_as(a, id, B, "second");
    world.settle();
    assert_eq!(count(&world.take(1), "unavailable"), 0);
    let deadline = world.chat.deadline().expect("somebody waits");
    assert!(deadline <= world.now.monotonic_ms + 2_000);
    world.now.monotonic_ms += 2_000;
    world.settle();
    assert_eq!(count(&world.take(1), "unavailable"), 1);
    world.send_as(a, id, B, "second");
    world.settle();
    let group = world.appends.pop().unwrap();
    world.answer(group, Outcome::Committed);
    world.settle();
    assert_eq!(count(&world.take(1), r#""seq":2"#), 1);
}

/// Users share the memory for what a resume is answered from, also while all of them are there.
#[test]
fn tails_of_users_who_are_there_stay_within_their_bound() {
    let limits = Limits { tails_bytes_max: 1 << 20, ..Limits::default() };
    let mut world = World::new(limits);
    let a = world.open(1, A, 1, None);
    let body = "x".repeat(60_000);
    for n in 0..100 {
        world.open(10 + n, UserId(10 + n), 1, None);
    }
    for n in 0..100 {
        world.send(a, UserId(10 + n), &body);
        for _ in 0..20 {
            world.send(a, UserId(10 + n), &"x".repeat(500));
        }
        world.settle();
    }
    let sizes: HashMap<_, _> = world.chat.sizes().into_iter().collect();
    assert!(sizes["tails_bytes"] <= (1 << 20) + 200_000, "{} bytes", sizes["tails_bytes"]);
}

/// Whoever has more conversations than lists read comes to the end of the pages.
#[test]
fn pages_of_a_list_end_though_some_conversations_are_over_the_limit() {
    let mut world = World::new(Limits { conversations_per_user_max: 3, ..Limits::default() });
    let a = world.open(1, A, 1, None);
    for peer in 10..15 {
        world.send(a, UserId(peer), "x");
    }
    world.settle();
    for covered in [false, true] {
        if covered {
            world.checkpoint();
        }
        for (cursor, more) in [("0", true), ("2", false), ("3", false)] {
            let rest = world.chat.rest(ClientKey(9), Identity { user: A, device: DeviceId(0) });
            world.frame(rest, &ClientFrame::Conversations { limit: Some(2), cursor: Some(cursor.into()) });
            world.settle();
            let answer = world.take(9).remove(0);
            assert_eq!(answer.contains(r#""cursor""#), more, "{answer}");
            world.chat.closed(rest, &mut world.out);
        }
    }
}

/// Who sent is gone before the commit, and the device is back on a new connection that knows nothing of it.
#[test]
fn a_device_that_came_back_hears_of_what_it_sent_on_its_last_connection() {
    let mut world = World::new(Limits::default());
    let (a, _) = (world.open(1, A, 1, None), world.open(2, B, 1, None));
    world.appends_wait = true;
    world.send(a, B, "cut off");
    world.settle();
    world.chat.closed(a, &mut world.out);
    world.open(3, A, 1, None);
    world.take(3);
    let group = world.appends.pop().unwrap();
    world.answer(group, Outcome::Committed);
    world.settle();
    let told = world.take(3);
    assert_eq!(count(&told, "lagging"), 1, "{told:?}");
}
