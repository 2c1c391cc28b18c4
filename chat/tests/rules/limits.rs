//! Limits on what one user may ask of a shard, and what a shard under pressure puts off.

use chat::{ClientKey, Identity, Limits, Pressure};
use storage_seam::{Outcome, Refusal, Rows, StorageEvent};
use wire::ids::{DeviceId, UserId};
use wire::protocol::ClientFrame;

use crate::world::{A, B, World, count};

#[test]
fn a_user_begins_only_so_many_conversations_in_a_while() {
    let limits = Limits { new_conversations_max: 3, new_conversations_window_ms: 60_000, ..Limits::default() };
    let mut world = World::new(limits);
    let (a, b) = (world.open(1, A, 1, None), world.open(2, B, 1, None));
    let told = |world: &mut World, what: &str| {
        world.settle();
        count(&world.take(1), what)
    };
    // What storage refuses was not begun.
    world.appends_wait = true;
    world.send(a, UserId(9), "x");
    world.settle();
    world.appends_wait = false;
    let group = world.appends.pop().unwrap();
    world.answer(group, Outcome::Refused(Refusal::Full));
    assert_eq!(told(&mut world, "unavailable"), 1);
    for peer in 10..15 {
        world.send(a, UserId(peer), "x");
    }
    world.settle();
    let frames = world.take(1);
    assert_eq!((count(&frames, r#""stored""#), count(&frames, "too_many_conversations")), (3, 2), "{frames:?}");
    // Those that there are go on, those that others begin too.
    world.send(a, UserId(10), "y");
    world.send(b, A, "hello");
    assert_eq!(told(&mut world, r#""stored""#), 1);
    world.send(a, B, "hello to you");
    assert_eq!(told(&mut world, r#""stored""#), 1);
    world.send(a, UserId(20), "x");
    assert_eq!(told(&mut world, "too_many_conversations"), 1);
    world.now.monotonic_ms += 60_000;
    world.send(a, UserId(20), "x");
    assert_eq!(told(&mut world, r#""stored""#), 1);
    assert_eq!(world.chat.counters().conversations_refused, 3);
}

#[test]
fn only_so_many_lists_are_made_for_one_user_at_once() {
    let mut world = World::new(Limits { lists_per_user_max: 2, ..Limits::default() });
    world.reads_wait = true;
    for client in 1..=5 {
        let rest = world.chat.rest(ClientKey(client), Identity { user: A, device: DeviceId(0) });
        world.frame(rest, &ClientFrame::Conversations { limit: None, cursor: None });
    }
    world.settle();
    let refused = (1..=5).filter(|client| count(&world.take(*client), "overloaded") == 1).count();
    assert_eq!((refused, world.chat.counters().lists_refused), (3, 3));
    // Sessions that open have room of their own, and so has everybody else.
    world.open(10, A, 1, None);
    world.open(11, A, 2, None);
    world.open(12, A, 3, None);
    world.open(13, B, 1, None);
    assert_eq!(world.out.closed.len(), 1);
    world.reads_wait = false;
    for (ticket, _) in std::mem::take(&mut world.reads) {
        world.event(StorageEvent::Read(ticket, Ok(Rows::default())));
    }
    world.settle();
    for client in [10, 11, 13] {
        assert_eq!(count(&world.take(client), "opened"), 1);
    }
    let rest = world.chat.rest(ClientKey(9), Identity { user: A, device: DeviceId(0) });
    world.frame(rest, &ClientFrame::Conversations { limit: None, cursor: None });
    world.settle();
    assert_eq!(count(&world.take(9), "conversations"), 1);
}

/// P13: a mark may wait, what it acknowledges is not forgotten.
#[test]
fn a_mark_that_was_shed_goes_with_a_later_beat() {
    let mut world = World::new(Limits::default());
    let (a, b) = (world.open(1, A, 1, None), world.open(2, B, 1, None));
    world.send(a, B, "x");
    world.settle();
    world.chat.set_pressure(Pressure::of(10, 16));
    world.frame(b, &ClientFrame::Beat { received: 1 });
    world.settle();
    assert_eq!(count(&world.take(1), r#""type":"tick""#), 0);
    assert_eq!(world.chat.counters().shed_receipts, 1);
    world.chat.set_pressure(Pressure::default());
    world.frame(b, &ClientFrame::Beat { received: 1 });
    world.settle();
    assert_eq!(count(&world.take(1), r#""delivered_all":1"#), 1);
    assert_eq!(count(&world.take(2), "error"), 0);
}

#[test]
fn a_list_that_leaves_something_out_is_counted() {
    let mut world = World::new(Limits { conversations_per_user_max: 2, ..Limits::default() });
    let a = world.open(1, A, 1, None);
    let list = |world: &mut World| {
        let rest = world.chat.rest(ClientKey(9), Identity { user: A, device: DeviceId(0) });
        world.frame(rest, &ClientFrame::Conversations { limit: None, cursor: None });
        world.settle();
        world.take(9).concat().matches(r#""conv""#).count()
    };
    for peer in 10..13 {
        world.send(a, UserId(peer), "x");
        world.settle();
        let all = peer - 9;
        assert_eq!(list(&mut world) as u64, all.min(2));
        assert_eq!(world.chat.counters().lists_cut, all.saturating_sub(2));
    }
}
