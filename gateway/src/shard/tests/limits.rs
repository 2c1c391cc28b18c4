//! What a hostile or hapless peer can make a shard hold or do.

use super::*;

#[test]
fn frames_that_cannot_be_read_are_frames_too() {
    let mut world = world();
    let mallory = world.open(1, 3_600);
    for _ in 0..2_000 {
        world.say(mallory, r#"{"type":"nothing like it"}"#);
    }
    let heard = world.heard(mallory);
    let count = |what: &str| heard.iter().filter(|text| text.contains(what)).count();
    assert!((800..1_200).contains(&count("unknown_type")), "{} looked at", count("unknown_type"));
    assert_eq!(count("unknown_type") + count("rate_limited"), 2_000);
    assert!(world.shard.counters().rate_limited > 0);
    for _ in 0..12_000 {
        world.say(mallory, "no JSON");
    }
    assert_eq!(world.heard(mallory).last().unwrap(), "close 4008");
    assert_eq!(world.shard.counters().floods, 1);
}

/// Debts are kept in sixteen bits of a second: after eighteen hours they begin again.
#[test]
fn a_new_connection_owes_no_pings_whatever_the_clock_shows() {
    for uptime_s in [65_515, 65_516, 65_530, 65_535, 65_536, 131_060] {
        let mut world = world();
        world.pass(uptime_s * 1_000 - 1_000);
        let alice = world.upgrade("/ws");
        for _ in 0..20 {
            world.receive(alice, &frame(Opcode::Ping, b"x"));
        }
        let pongs = world.heard(alice).iter().filter(|text| text.starts_with("Pong")).count();
        assert_eq!(pongs, 20, "after {uptime_s} s");
    }
}

/// The ring needs a turn or two to end a connection.
#[test]
fn who_takes_nothing_is_cut_off_once() {
    let mut world = world();
    let mallory = world.upgrade("/echo");
    world.peers_read = false;
    world.receive(mallory, &frame(Opcode::Binary, &[0; 1_000]));
    world.now.monotonic_ms += 30_100;
    let mut resets = 0;
    for _ in 0..5 {
        world.shard.turn(world.now, &mut world.input, &mut world.output);
        resets += world.output.ring.drain().filter(|op| matches!(op, Op::Reset { .. })).count();
        world.now.monotonic_ms += 20;
    }
    assert_eq!((resets, world.shard.counters().stalled), (1, 1));
    assert!(world.shard.next_deadline_ms().is_none_or(|due_ms| due_ms > world.now.monotonic_ms), "it spins meanwhile");
}

#[test]
fn a_session_that_takes_nothing_is_told_so_if_it_wakes_up() {
    for wakes_up in [false, true] {
        let mut world = world();
        let (alice, bob) = (world.open(1, 3_600), world.open(2, 3_600));
        world.peers_read = false;
        world.say(alice, r#"{"type":"message","to":"2","text":"hello"}"#);
        for _ in 0..3 {
            world.pass(10_000);
            world.say(bob, r#"{"type":"beat","received":0}"#);
        }
        world.pass(100);
        assert!(!world.ended(bob) && world.shard.counters().stalled == 2);
        if wakes_up {
            let buffer = world.outstanding[bob.slot() as usize].take().unwrap();
            world.input.ring.push(Event::Sent { connection: bob, buffer });
            world.turn();
            assert_eq!(world.heard(bob).last().unwrap(), "close 4002");
        } else {
            world.pass(5_100);
            assert!(world.ops.contains(&Op::Reset { connection: bob }), "what waits for it is forgotten");
        }
    }
}

/// A page is many times as large as what asks for it.
#[test]
fn pages_that_a_client_does_not_take_are_not_kept_for_it() {
    const PULLS: usize = 60;
    let mut world = world();
    let (alice, mallory) = (world.open(1, 3_600), world.open(2, 3_600));
    let text = "\\u0001".repeat(1_000);
    for _ in 0..8 {
        world.say(alice, &format!(r#"{{"type":"message","to":"2","text":"{text}"}}"#));
        world.say(mallory, r#"{"type":"beat","received":0}"#);
    }
    world.pass(1_000);
    let page = 8 * 6_200;
    world.peers_read = false;
    let pulls: Vec<u8> = (0..PULLS).flat_map(|_| frame(Opcode::Text, br#"{"type":"pull","conv":"dm.1.2"}"#)).collect();
    world.receive(mallory, &pulls);
    let index = world.shard.core.table.find(mallory).unwrap();
    let held = world.shard.core.queued_bytes(index);
    assert!(held > page && held < 8_192 + page + PULLS * 300, "{held} bytes wait for one client");
    world.peers_read = true;
    let buffer = world.outstanding[mallory.slot() as usize].take().unwrap();
    world.input.ring.push(Event::Sent { connection: mallory, buffer });
    world.turn();
    let heard = world.heard(mallory);
    let count = |what: &str| heard.iter().filter(|text| text.contains(what)).count();
    assert_eq!(count(r#""type":"page""#) + count(r#""conv":"dm.1.2","code":"overloaded""#), PULLS);
    assert_eq!(world.shard.counters().answers_refused as usize, count("overloaded"));
    world.say(mallory, r#"{"type":"pull","conv":"dm.1.2"}"#);
    assert!(world.heard(mallory).last().unwrap().contains(r#""type":"page""#), "and now there is room");
}

/// P12 over REST: who asks and does not take the answers is not answered further.
#[test]
fn requests_in_a_row_wait_for_their_answers_to_be_taken() {
    const REQUESTS: usize = 50;
    let mut world = world();
    let alice = world.open(1, 3_600);
    for _ in 0..8 {
        world.say(alice, &format!(r#"{{"type":"message","to":"2","text":"{}"}}"#, "x".repeat(1_000)));
    }
    let head = format!("HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\n\r\n", world.token(1, 60));
    let page = format!("GET /v1/conversations/dm.1.2/messages?limit=8 {head}");
    let nothing = "GET /v1/nothing HTTP/1.1\r\nHost: x\r\n\r\n";
    for request in [page.as_str(), nothing] {
        for ends in [false, true] {
            world.peers_read = false;
            let mallory = world.accept();
            let index = world.shard.core.table.find(mallory).unwrap();
            let requests = request.repeat(REQUESTS);
            for piece in requests.as_bytes().chunks(4_096) {
                world.receive(mallory, piece);
            }
            if ends {
                world.input.ring.push(Event::Eof { connection: mallory });
                world.turn();
            }
            let held = world.shard.core.queued_bytes(index);
            assert!(held < 3 * 8_192, "{held} bytes wait for one client");
            // It goes on taking, slowly but surely, and gets everything.
            for _ in 0..100 {
                // Behind the last answer there is less patience.
                world.pass(if ends { 1_000 } else { 20_000 });
                if let Some(buffer) = world.outstanding[mallory.slot() as usize].take() {
                    world.input.ring.push(Event::Sent { connection: mallory, buffer });
                    world.turn();
                }
            }
            let answers = String::from_utf8_lossy(&world.sent[mallory.slot() as usize]).into_owned();
            assert_eq!(answers.matches("HTTP/1.1 ").count(), REQUESTS, "{ends}");
            assert!(!world.ops.contains(&Op::Reset { connection: mallory }));
        }
    }
}
