//! Phones against a server of a few lines that misbehaves on request: no socket, no clock.

use std::collections::HashMap;

use loadgen::body::Stamp;
use loadgen::client::{Account, Around, Client as _, Habits, Part, Want, audit};
use loadgen::credentials::{Credentials, Tokens};
use loadgen::drivers::ringway::{Phone, REPEAT_EVERY};
use loadgen::key::TokenKey;
use loadgen::link::{Ending, Link};
use loadgen::random::Random;
use loadgen::scenario::Protocol;
use loadgen::tally::Tally;
use wire::http::{HttpLimits, Progress, RequestReader};
use wire::ids::UserId;
use wire::reader::{Event, Input, Reader};
use wire::upgrade::{check_upgrade, write_switching};
use wire::websocket::{Limits, Role};
use wire::writer::write_text_with;

const MS: u64 = 1_000_000;

/// What the server does with a message.
#[derive(Clone, Copy, PartialEq)]
enum Mood {
    Stores,
    /// Stores and says nothing.
    Mute,
    /// Refuses, retryably, and then all that follows, until the refused one comes again (P5).
    Refuses,
}

/// One direct conversation, both users, and where their connections stand.
struct World {
    phones: [Phone; 2],
    /// Frames for each phone; a reader per connection.
    inbound: [Vec<u8>; 2],
    readers: [Option<Reader>; 2],
    log: Vec<(u8, String)>,
    by_id: HashMap<String, u64>,
    mood: Mood,
    refused: Option<String>,
    /// Pushes that never leave, by seq.
    swallowed: Vec<u64>,
    n: [u64; 2],
    now_ns: u64,
    habits: Habits,
    tokens: Tokens,
    part: Part,
    repeat_in: u32,
    random: Random,
    tally: Tally,
    body: String,
}

impl World {
    fn new() -> Self {
        let habits = Habits {
            host: "x".to_owned(),
            target: "/ws".to_owned(),
            protocol: Protocol::Ringway,
            domain: String::new(),
            password: String::new(),
            run: 7,
            payload_bytes: 64,
            in_flight_max: 4,
            send_within_ns: 100 * MS,
            conversations: 1,
            mark_ns: 1_000 * MS,
            backoff_ns: 100 * MS,
            backoff_ns_max: 1_000 * MS,
            resend: false,
            unix_ms: 1_700_000_000_000,
        };
        let mut world = Self {
            phones: [Phone::new(UserId(1), 0), Phone::new(UserId(2), 0)],
            inbound: [Vec::new(), Vec::new()],
            readers: [None, None],
            log: Vec::new(),
            by_id: HashMap::new(),
            mood: Mood::Stores,
            refused: None,
            swallowed: Vec::new(),
            n: [0, 0],
            now_ns: 0,
            habits,
            tokens: Credentials::from(TokenKey::of_secret(b"any secret", "dev", "issuer", "audience"))
                .mint(1, 2)
                .unwrap(),
            part: Part::Untouched,
            repeat_in: REPEAT_EVERY,
            random: Random::new(1, 1),
            tally: Tally::default(),
            body: String::new(),
        };
        world.pass(1);
        world
    }

    fn with(&mut self, who: usize, act: impl FnOnce(&mut Phone, &mut Around<'_>) -> Want) -> Want {
        let mut around = Around {
            now_ns: self.now_ns,
            habits: &self.habits,
            tokens: &self.tokens,
            place: who as u32,
            part: self.part,
            partner_ahead_ns: 0,
            disturbed: true,
            repeat_in: &mut self.repeat_in,
            random: &mut self.random,
            tally: &mut self.tally,
            acks: None,
            body: &mut self.body,
        };
        act(&mut self.phones[who], &mut around)
    }

    fn write(&mut self, who: usize) {
        let due_ns = self.now_ns;
        self.with(who, |phone, around| {
            phone.write_message(UserId(2 - who as u64), due_ns, around);
            Want::Nothing
        });
    }

    fn cut(&mut self, who: usize) {
        self.readers[who] = None;
        self.inbound[who].clear();
        self.with(who, |phone, around| {
            phone.disconnected(around);
            Want::Nothing
        });
    }

    /// Time goes on, and everything that is said is heard.
    fn pass(&mut self, ms: u64) {
        for _ in 0..ms {
            self.now_ns += MS;
            for who in 0..2 {
                match self.with(who, Phone::tick) {
                    Want::Connect => {
                        self.with(who, Phone::connected);
                    }
                    Want::Cut => self.cut(who),
                    Want::Nothing => {}
                }
            }
            for _ in 0..4 {
                for who in 0..2 {
                    self.serve(who);
                    let mut bytes = std::mem::take(&mut self.inbound[who]);
                    if !bytes.is_empty()
                        && self.with(who, |phone, around| phone.received(&mut bytes, around)) == Want::Cut
                    {
                        self.cut(who);
                    }
                }
            }
        }
    }

    fn serve(&mut self, who: usize) {
        let mut bytes = std::mem::take(&mut self.phones[who].link_mut().out);
        if bytes.is_empty() {
            return;
        }
        let Some(mut reader) = self.readers[who].take() else {
            let Ok(Progress::Request(request)) = RequestReader::new().poll(&HttpLimits::default(), &bytes) else {
                panic!("the phone begins with a request");
            };
            write_switching(&mut self.inbound[who], check_upgrade(&request).unwrap().key, None);
            self.n[who] = 0;
            self.readers[who] = Some(Reader::new(Role::Server));
            return;
        };
        let mut input = Input::new(&mut bytes);
        let mut frames = Vec::new();
        while let Some(event) = reader.next(Limits::default(), &mut input).unwrap() {
            if let Event::Text(text) = event {
                frames.push(serde_json::from_str::<serde_json::Value>(text).unwrap());
            }
        }
        self.readers[who] = Some(reader);
        for frame in frames {
            self.answer(who, &frame);
        }
    }

    fn say(&mut self, who: usize, text: &str) {
        if self.readers[who].is_some() {
            write_text_with(&mut self.inbound[who], None, |out| out.extend_from_slice(text.as_bytes()));
        }
    }

    fn answer(&mut self, who: usize, frame: &serde_json::Value) {
        match frame["type"].as_str().unwrap() {
            "open" => {
                let listed = format!(r#"{{"conv":"dm.1.2","head":{}}}"#, self.log.len());
                self.say(who, &format!(r#"{{"type":"opened","result":"delta","conversations":[{listed}]}}"#));
            }
            "send" => self.store(who, frame["id"].as_str().unwrap(), frame["body"].as_str().unwrap()),
            "pull" => {
                let after = frame["after"].as_u64().unwrap() as usize;
                let items: Vec<_> = (after..self.log.len().min(after + 3))
                    .map(|at| {
                        let (from, body) = &self.log[at];
                        format!(r#"{{"seq":{},"from":"{}","body":"{body}"}}"#, at + 1, from + 1)
                    })
                    .collect();
                let (items, head) = (items.join(","), self.log.len());
                self.say(who, &format!(r#"{{"type":"page","conv":"dm.1.2","messages":[{items}],"head":{head}}}"#));
            }
            _ => {}
        }
    }

    fn store(&mut self, who: usize, id: &str, body: &str) {
        if self.mood == Mood::Refuses && self.refused.is_none() {
            self.refused = Some(id.to_owned());
            self.mood = Mood::Stores;
            return self.refuse(who, id);
        }
        if self.refused.as_deref() == Some(id) {
            self.refused = None;
        } else if self.refused.is_some() {
            return self.refuse(who, id);
        }
        let first = self.by_id.get(id).copied();
        let seq = first.unwrap_or_else(|| {
            self.log.push((who as u8, body.to_owned()));
            self.by_id.insert(id.to_owned(), self.log.len() as u64);
            self.log.len() as u64
        });
        if self.mood != Mood::Mute {
            let dup = first.is_some();
            self.say(who, &format!(r#"{{"type":"stored","id":"{id}","conv":"dm.1.2","seq":{seq},"dup":{dup}}}"#));
        }
        if first.is_none() && !self.swallowed.contains(&seq) {
            let to = 1 - who;
            self.n[to] += 1;
            let (n, from) = (self.n[to], who + 1);
            let rest = format!(r#""seq":{seq},"from":"{from}","body":"{body}","n":{n}"#);
            self.say(to, &format!(r#"{{"type":"message","conv":"dm.1.2",{rest}}}"#));
        }
    }

    fn refuse(&mut self, who: usize, id: &str) {
        self.say(who, &format!(r#"{{"type":"error","id":"{id}","code":"retry","retryable":true,"after_ms":20}}"#));
    }

    /// The counters of a user's messages, in the order in which the server has them.
    fn order(&self, who: u8) -> Vec<u32> {
        let own = self.log.iter().filter(|(from, _)| *from == who);
        own.map(|(_, body)| Stamp::read(body).unwrap().counter).collect()
    }

    /// Lost, doubled, reordered, unanswered; none of which may be.
    fn harm(&mut self) -> [u64; 4] {
        let before = self.tally.counts;
        for who in 0..2 {
            self.with(who, |phone, around| {
                phone.tell_unknown(around);
                Want::Nothing
            });
        }
        let mut counts = std::mem::replace(&mut self.tally.counts, before);
        let account = |who: usize| self.phones[who].accounts().pop();
        match (account(0), account(1)) {
            (Some(one), Some(other)) => audit(&one, &other, &mut counts),
            (Some(one), None) | (None, Some(one)) => audit(&one, &Account::unheard_of(&one), &mut counts),
            (None, None) => {}
        }
        [counts.lost, counts.doubled, counts.reordered, counts.unanswered + counts.repeats_unanswered]
    }
}

#[test]
fn two_phones_chat() {
    let mut world = World::new();
    for _ in 0..10 {
        world.write(0);
        world.write(1);
        world.pass(3);
    }
    assert_eq!(world.harm(), [0; 4]);
    let counts = world.tally.counts;
    assert_eq!((counts.acked, counts.delivered, counts.cut), (20, 20, 0), "{counts:?}");
}

/// Nothing is lost between the two, both have it; what they have the server has not.
#[test]
fn a_server_that_forgets_what_clients_have_is_seen_when_they_come_back() {
    let mut world = World::new();
    for _ in 0..3 {
        world.write(0);
        world.pass(3);
    }
    world.cut(1);
    world.pass(400);
    assert_eq!((world.tally.counts.reopened, world.tally.counts.broken()), (1, 0));
    world.log.truncate(1);
    world.cut(1);
    world.pass(400);
    assert_eq!(world.harm(), [0; 4]);
    assert_eq!((world.tally.counts.shrunk, world.tally.counts.broken()), (1, 1));
}

/// The schedule goes on while nothing is answered, and everything that fell due meanwhile counts from then.
#[test]
fn a_server_that_stalls_shows_in_the_tail() {
    let mut world = World::new();
    let mut held = Vec::new();
    for step in 0..1_000 {
        world.write(0);
        held.append(&mut world.phones[0].link_mut().out);
        if (500..700).contains(&step) {
            // The other end stands still: nothing of what was said is heard.
            world.now_ns += MS;
        } else {
            std::mem::swap(&mut held, &mut world.phones[0].link_mut().out);
            world.pass(1);
        }
    }
    world.pass(200);
    assert_eq!(world.harm(), [0; 4]);
    assert_eq!(world.tally.ack.count(), 1_000);
    // 200 of the 1,000 waited up to 200 ms: evenly spread, so the 90th in a hundred waited some 100 ms.
    assert!(world.tally.ack.quantile_ms(0.5) < 5.0);
    assert!(world.tally.ack.quantile_ms(0.9) > 80.0, "{}", world.tally.ack.quantile_ms(0.9));
    assert!(world.tally.ack.quantile_ms(1.0) > 180.0);
}

#[test]
fn what_a_cut_left_unanswered_is_sent_again_with_its_id_and_order() {
    let mut world = World::new();
    world.mood = Mood::Mute;
    for _ in 0..3 {
        world.write(0);
    }
    world.pass(1);
    world.cut(0);
    world.write(0);
    world.mood = Mood::Stores;
    world.pass(400);
    assert_eq!(world.order(0), [0, 1, 2, 3]);
    assert_eq!(world.harm(), [0; 4]);
    let counts = world.tally.counts;
    assert_eq!((counts.acked, counts.dup_acks, counts.resent, counts.reopened), (4, 3, 3, 1), "{counts:?}");
}

#[test]
fn no_answer_for_ten_seconds_is_a_cut() {
    let mut world = World::new();
    world.mood = Mood::Mute;
    world.write(0);
    while world.tally.counts.timeouts == 0 {
        world.pass(1);
    }
    assert!(world.now_ns >= 10_000 * MS);
    world.mood = Mood::Stores;
    world.pass(1_000);
    assert_eq!(world.harm(), [0; 4]);
}

#[test]
fn a_retryable_error_does_not_change_the_order() {
    let mut world = World::new();
    world.write(0);
    world.pass(1);
    world.mood = Mood::Refuses;
    for _ in 0..6 {
        world.write(0);
    }
    world.pass(200);
    assert_eq!(world.order(0), [0, 1, 2, 3, 4, 5, 6]);
    assert_eq!(world.harm(), [0; 4]);
    assert_eq!(world.tally.errors["retry"], 4);
}

#[test]
fn a_gap_is_pulled_before_anything_above_it_is_shown() {
    let mut world = World::new();
    world.swallowed = (2..=9).collect();
    for _ in 0..10 {
        world.write(0);
    }
    world.pass(10);
    assert_eq!(world.harm(), [0; 4]);
    assert_eq!(world.tally.counts.delivered, 10);
    assert!(world.tally.counts.pulls >= 3);
}

/// The check has teeth: a push that nothing follows is a loss, and it is seen.
#[test]
fn what_never_arrives_is_counted_as_lost() {
    let mut world = World::new();
    world.swallowed = vec![2];
    for _ in 0..2 {
        world.write(0);
        world.pass(1);
    }
    assert_eq!(world.harm(), [1, 0, 0, 0]);
}

#[test]
fn a_message_with_two_seqs_is_counted_as_doubled() {
    let mut world = World::new();
    world.mood = Mood::Mute;
    world.write(0);
    world.pass(1);
    world.by_id.clear();
    world.mood = Mood::Stores;
    world.cut(0);
    world.pass(300);
    assert_eq!(world.harm(), [0, 1, 0, 0]);
}

/// More fell due than could be sent: giving the rest up is no loss.
#[test]
fn what_was_never_sent_can_be_given_up() {
    let mut world = World::new();
    world.mood = Mood::Mute;
    for _ in 0..10 {
        world.write(0);
    }
    world.with(0, |phone, around| {
        phone.give_up_unsent(around);
        Want::Nothing
    });
    world.mood = Mood::Stores;
    assert_eq!((world.tally.counts.unsent, world.harm()), (6, [0, 0, 0, 4]));
    world.cut(0);
    world.pass(300);
    assert_eq!(world.harm(), [0; 4]);
    assert_eq!(world.tally.counts.acked, 4);
}

/// Away on purpose is no cut, and what was due meanwhile is in no distribution but arrives.
#[test]
fn who_was_away_catches_up() {
    let mut world = World::new();
    world.write(0);
    world.pass(5);
    let until = world.now_ns + 200 * MS;
    assert_eq!(world.with(1, |phone, around| phone.leave(until, Ending::Reset, around)), Want::Cut);
    world.cut(1);
    for _ in 0..20 {
        world.write(0);
        world.pass(2);
    }
    assert_eq!(world.tally.counts.delivered, 1);
    world.pass(300);
    assert_eq!(world.harm(), [0; 4]);
    let counts = world.tally.counts;
    assert_eq!((counts.cut, counts.ended_on_purpose, counts.reopened), (0, 1, 1), "{counts:?}");
    assert_eq!((counts.delivered, counts.delivered_on_return, world.tally.delivery.count()), (21, 20, 1));
    assert_eq!((world.tally.catch_up.count(), world.tally.resume.count()), (1, 0));
}

#[test]
fn a_storm_counts_from_the_cut_until_the_session_is_open_again() {
    let mut world = World::new();
    world.write(0);
    world.pass(5);
    let until = world.now_ns + 150 * MS;
    world.with(1, |phone, around| phone.leave(until, Ending::Storm, around));
    world.cut(1);
    world.pass(300);
    assert_eq!((world.tally.resume.count(), world.tally.counts.ended_on_purpose), (1, 1));
    assert!((150.0..160.0).contains(&world.tally.resume.quantile_ms(1.0)));
    // One that nobody planned counts as well, back-off and all.
    world.cut(1);
    world.pass(300);
    assert_eq!((world.tally.resume.count(), world.tally.counts.cut), (2, 1));
}

#[test]
fn one_message_in_a_hundred_is_repeated_and_must_keep_its_seq() {
    let mut world = World::new();
    world.habits.resend = true;
    for _ in 0..2 * REPEAT_EVERY {
        world.write(0);
        world.pass(1);
    }
    assert_eq!(world.harm(), [0; 4]);
    let counts = world.tally.counts;
    assert_eq!((counts.repeats_sent, counts.repeats_kept, counts.acked), (2, 2, u64::from(2 * REPEAT_EVERY)));
}

/// A repetition that a cut swallows is sent again; one that nobody answers is not known to be kept.
#[test]
fn a_repetition_outlives_a_cut_and_needs_an_answer() {
    let mut world = World::new();
    world.habits.resend = true;
    world.repeat_in = 1;
    world.write(0);
    world.pass(1);
    world.cut(0);
    world.pass(300);
    assert_eq!((world.tally.counts.repeats_kept, world.harm()), (1, [0; 4]));
    world.repeat_in = 1;
    world.write(0);
    world.serve(0);
    world.mood = Mood::Mute;
    world.pass(100);
    assert_eq!((world.tally.counts.repeats_kept, world.harm()), (1, [0, 0, 0, 1]));
}

#[test]
fn a_repetition_with_another_seq_is_counted_as_doubled() {
    let mut world = World::new();
    world.habits.resend = true;
    world.repeat_in = 1;
    world.write(0);
    world.serve(0);
    world.by_id.clear();
    world.pass(100);
    assert!(world.harm()[1] > 0);
}

#[test]
fn what_leaves_late_is_counted_apart() {
    let mut world = World::new();
    world.mood = Mood::Mute;
    for _ in 0..6 {
        world.write(0);
    }
    world.pass(200);
    world.mood = Mood::Stores;
    world.cut(0);
    world.pass(300);
    assert_eq!((world.tally.counts.late, world.harm()), (2, [0; 4]));
}

/// Which distributions have a time of a message that was delivered to a user with that part.
fn distributions_of(part: Part, disturbed: bool, prepare: impl FnOnce(&mut Link)) -> Vec<(&'static str, f64)> {
    let World { habits, tokens, mut random, .. } = World::new();
    let (mut tally, mut body, mut repeat_in) = (Tally::default(), String::new(), REPEAT_EVERY);
    let mut link = Link::new(0);
    prepare(&mut link);
    let mut around = Around {
        now_ns: 5_000 * MS,
        habits: &habits,
        tokens: &tokens,
        place: 0,
        part,
        partner_ahead_ns: 2_000 * MS as i64,
        disturbed,
        random: &mut random,
        tally: &mut tally,
        acks: None,
        repeat_in: &mut repeat_in,
        body: &mut body,
    };
    around.delivered(1_000 * MS, &link);
    assert_eq!(tally.counts.delivered, 1);
    assert_eq!(tally.counts.delivered_abroad, tally.abroad.count());
    let named = tally.distributions().into_iter().filter(|(_, times)| times.count() > 0);
    named.map(|(name, times)| (name, (times.quantile_ms(1.0) / 1e3).round())).collect()
}

#[test]
fn each_delivery_is_where_it_belongs() {
    let plain = |part, disturbed| distributions_of(part, disturbed, |_| {});
    assert_eq!(plain(Part::Untouched, false), [("delivery", 4.0)]);
    assert_eq!(plain(Part::Untouched, true), [("delivery", 4.0), ("untouched", 4.0)]);
    assert_eq!(plain(Part::Touched, true), [("delivery", 4.0)]);
    assert_eq!(plain(Part::Slow, true), [("slow", 4.0)]);
    // Its sender's clock is two seconds behind: it was due two seconds later than it says.
    assert_eq!(plain(Part::Abroad, true), [("abroad", 2.0)]);
    // Who was away on purpose when it was due had it as soon as could be; by the receiver's clock, whoever sent it.
    for part in [Part::Untouched, Part::Touched, Part::Slow] {
        assert_eq!(distributions_of(part, true, |link| link.absent = (900 * MS, 1_100 * MS)), []);
    }
    assert_eq!(distributions_of(Part::Abroad, true, |link| link.absent = (900 * MS, 1_100 * MS)).len(), 1);
    assert_eq!(distributions_of(Part::Abroad, true, |link| link.absent = (2_900 * MS, 3_100 * MS)), []);
}

/// Cut by the server or by a storm counts until it is open again, once; leaving on purpose does not.
#[test]
fn only_who_was_cut_resumes() {
    let resumed = |end: &dyn Fn(&mut World)| {
        let mut world = World::new();
        assert_eq!((world.tally.opening.count(), world.tally.resume.count()), (2, 0));
        world.pass(500);
        end(&mut world);
        world.pass(5_000);
        assert_eq!((world.tally.counts.reopened, world.tally.opening.count()), (1, 3));
        (world.tally.resume.count(), world.tally.resume.quantile_ms(1.0).round())
    };
    let leave = |ending: Ending| {
        move |world: &mut World| {
            let until_ns = world.now_ns + 1_000 * MS;
            if world.with(1, |phone, around| phone.leave(until_ns, ending, around)) == Want::Cut {
                world.cut(1);
            }
        }
    };
    assert_eq!(resumed(&|world| world.cut(1)).0, 1);
    let (count, ms) = resumed(&leave(Ending::Storm));
    assert!(count == 1 && (1_000.0..1_010.0).contains(&ms), "{count} {ms}");
    assert_eq!(resumed(&leave(Ending::Reset)).0, 0);
}

/// Numbers as large as they can be, where a server may name any: none of them is anybody's fault but its own.
#[test]
fn absurd_numbers_do_no_harm() {
    const MOST: u64 = u64::MAX;
    for frame in [
        format!(r#"{{"type":"move","spread_ms":{MOST}}}"#),
        format!(r#"{{"type":"error","code":"retry","retryable":true,"after_ms":{MOST}}}"#),
        format!(r#"{{"type":"hello","beat_ms":{MOST},"offline_ms":{MOST}}}"#),
        format!(r#"{{"type":"opened","conversations":[{{"conv":"dm.1.2","head":{MOST}}}]}}"#),
        format!(r#"{{"type":"message","conv":"dm.1.2","seq":{MOST},"n":{MOST},"from":"2","body":"x"}}"#),
        format!(r#"{{"type":"stored","conv":"dm.1.2","seq":{MOST},"id":"00000000-0000-0000-0000-000000000000"}}"#),
        format!(r#"{{"type":"message","conv":"dm.1.2","seq":1,"from":"2","body":"00000007ffffffff{:016x}"}}"#, 0),
    ] {
        let mut world = World::new();
        for _ in 0..2 {
            world.with(0, |phone, around| {
                phone.text(&frame, around);
                Want::Nothing
            });
        }
        world.with(0, |phone, around| {
            phone.text(r#"{"type":"message","conv":"dm.1.2","seq":1,"from":"2","body":"x"}"#, around);
            Want::Nothing
        });
        world.pass(10);
    }
}
