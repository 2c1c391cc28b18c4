//! A store that does not answer is no overload (P10), however long it lasts.

use chat::{Limits, Work};
use wire::ids::ConversationId;
use wire::protocol::ClientFrame;

use crate::world::{A, B, World, count};

#[test]
fn connections_and_typing_go_on_while_storage_is_away() {
    let mut world = World::new(Limits { commit_wait_ms: 2_000, ..Limits::default() });
    let (a, b) = (world.open(1, A, 1, None), world.open(2, B, 1, None));
    world.send(a, B, "x");
    world.settle();
    world.appends_wait = true;
    world.send(a, B, "waits");
    world.settle();
    for age_ms in [100, 1_000, 1_999, 2_000, 5_000, 600_000] {
        let since_ms = world.now.monotonic_ms;
        world.now.monotonic_ms = 1_000 + age_ms;
        assert!(world.now.monotonic_ms > since_ms);
        let pressure = world.chat.pressure(world.now);
        world.chat.set_pressure(pressure);
        world.settle();
        assert!(!pressure.sheds(Work::Handshake), "nobody may come back after {age_ms} ms");
        world.take(1);
        let conversation = ConversationId::direct(A, B);
        world.frame(b, &ClientFrame::Signal { conversation, name: "typing".into(), body: "".into() });
        world.frame(b, &ClientFrame::Mark { conversation, delivered: Some(1), read: None });
        world.settle();
        let typing = count(&world.take(1), r#""type":"signal""#);
        let refused = count(&world.take(2), "overloaded");
        // A slow store is spared for a moment, and not for longer than senders wait.
        let is_spared = (1_000..2_000).contains(&age_ms);
        assert_eq!((typing, refused > 0), (usize::from(!is_spared), age_ms == 1_999), "after {age_ms} ms");
    }
    // Of sends it says what there is to say.
    world.send(b, A, "later");
    world.settle();
    let told = world.take(2);
    assert_eq!((count(&told, "unavailable"), count(&told, "overloaded")), (1, 0), "{told:?}");
}
