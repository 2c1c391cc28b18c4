//! T5: what a message between two users costs the shard, against a raw relay of the same five frames.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;
use loadgen::frames;
use loadgen::key::TokenKey;
use serde_json::json;
use wire::ids::{ChangeNumber, ClientMessageId, ConversationId, DeviceId, UserId};
use wire::json::encode_server;
use wire::protocol::{Kind, Message, MessageItem, ServerFrame, Stored};
use wire::writer::write_text_with;

use crate::calls::Calls;
use crate::contest;
use crate::crowd::{Crowd, Outbox, to_one};
use crate::figures::{Scratch, median, save};
use crate::loads::opening;
use crate::loads::pairs::{self, Raw, Sizes, Talk};
use crate::opened::Sessions;
use crate::server::{Process, Trouble};

const BODY_BYTES: usize = 128;
const MASK: [u8; 4] = [1, 2, 3, 4];
/// A beat after so many messages: a session with many more unacknowledged ones would be lagging.
const BEAT_EVERY: u64 = 256;

#[derive(Debug, Clone, Args)]
pub struct Orders {
    /// Busy connections, up to 15,000.
    #[arg(long, default_value_t = 1_000)]
    pub connections: u32,
    #[arg(long, default_value_t = 7)]
    pub rounds: u32,
    /// Of each measurement.
    #[arg(long, default_value_t = 3)]
    pub seconds: u64,
}

/// Measures it.
pub fn run(orders: &Orders) -> Result<(), Trouble> {
    crate::cpu::pin(1);
    let connections = orders.connections / 2 * 2;
    let sizes = five_frames();
    let method = format!(
        "{connections} connections in pairs, one message of {BODY_BYTES} bytes in flight per pair: send in, message and stored out, mark \
         in, tick out; a beat in 256. `ringway dev --shards 1` with durable storage, its shard on core 0 with all of its other \
         threads, client on core 1. Processor time of the thread of the shard and its core's ksoftirqd over that of a raw relay of frames of the \
         same sizes ({sizes:?}); journal and views apart. {} s a measurement after 0.5 s of warming up. System calls of the relay, and of the \
         shard's thread, are counted by the kernel in a measurement of their own.",
        orders.seconds
    );
    println!("{method}\n");
    let relay = Process::relay(sizes)?;
    let mut tied = Crowd::new(connections)?;
    pairs::tie(&mut tied, &relay)?;
    let mut raw = Raw::new(connections, sizes);
    let scratch = Scratch::new("routed")?;
    let ringway = Process::ringway(&scratch.path, Some(0), &["--shards", "1"])?;
    let mut sessions = Sessions::mint(&TokenKey::of_dev(&scratch.path)?, 1, connections, &ringway);
    let mut crowd = Crowd::new(connections)?;
    opening::open(&ringway, &mut crowd, &to_one(ringway.address), &mut sessions)?;
    let mut chat = Chat::new(connections);
    let seconds = Duration::from_secs(orders.seconds);
    let names = ["raw relay", "ringway shard"];
    let outcome = contest::run(&names, 0, orders.rounds, |side| {
        if side == 0 {
            return pairs::talk(&relay, &mut tied, &mut raw, Duration::from_millis(500), seconds);
        }
        let mut sample = pairs::talk(&ringway, &mut crowd, &mut chat, Duration::from_millis(500), seconds)?;
        sample.more.insert("us_all_threads".to_owned(), sample.us.into());
        let of = |name: &str| sample.more.get(name).and_then(serde_json::Value::as_f64);
        let shard = of("us_shard-0").ok_or("the shard's thread has no name that is known here")?;
        // The relay's figure has it too.
        sample.us = shard + of("us_ksoftirqd").unwrap_or(0.0);
        Ok(sample)
    })?;
    outcome.show("raw relay");
    for side in &outcome.sides[1..] {
        let mut threads: Vec<_> = side.samples.iter().flat_map(|sample| sample.more.keys()).collect();
        threads.sort();
        threads.dedup();
        for thread in threads.iter().filter(|name| name.starts_with("us_")) {
            let us: Vec<_> = side.samples.iter().filter_map(|sample| sample.more.get(*thread)?.as_f64()).collect();
            println!("  {:<18} {:>8.3} us a message", &thread[3..], median(&us));
        }
    }
    // Apart, since counting makes them dearer.
    let warm_up = Duration::from_millis(500);
    let counted = |server: &Process, name: &str, crowd: &mut Crowd, talk: &mut dyn Talk| {
        let calls = Calls::of_threads(server.id(), |thread| thread.starts_with(name))?;
        let sample = pairs::talk_counted(server, crowd, talk, warm_up, seconds, Some(&calls))?;
        println!("  {:<18} {:>8.3} system calls a message", name, sample.more["calls"].as_f64().unwrap_or(f64::NAN));
        Ok::<_, Trouble>(sample.more["calls"].clone())
    };
    let calls = counted(&relay, "", &mut tied, &mut raw)
        .and_then(|relay| Ok((relay, counted(&ringway, "shard-0", &mut crowd, &mut chat)?)));
    let mut result = outcome.to_json(&["raw relay"]);
    match calls {
        Ok((relay, shard)) => result["calls"] = json!({ "raw relay": relay, "ringway shard": shard }),
        Err(trouble) => println!("system calls were not counted: {trouble}"),
    }
    result["connections"] = connections.into();
    result["must"] = 1.5.into();
    let command = format!("cargo run --release -p bench -- routed --connections {connections}");
    println!("{}", save(&format!("routed-{connections}"), &method, &command, result)?.display());
    Ok(())
}

impl Process {
    /// A raw relay of frames of such sizes.
    pub fn relay(sizes: Sizes) -> Result<Self, Trouble> {
        let answers = format!("{},{},{}", sizes.message, sizes.stored, sizes.tick);
        Self::raw(&["--serve", "relay", "--sizes", &answers, "--slots", "18900"])
    }
}

/// How long the frames of a routed message are, with everything around them.
pub fn five_frames() -> Sizes {
    let conversation = ConversationId::direct(UserId(1_000_000), UserId(1_000_001));
    let (time_ms, change) = (1_732_363_200_000, ChangeNumber { epoch: 1, counter: 1_234 });
    let (id, body) = (ClientMessageId([7; 16]), "x".repeat(BODY_BYTES));
    let item = MessageItem {
        seq: 123,
        from: UserId(1_000_000),
        device: DeviceId(1),
        time_ms,
        kind: Kind::Text,
        body: (&*body).into(),
        reply_to: None,
        target_seq: None,
        id: None,
    };
    let served = |frame: &ServerFrame<'_>| {
        let mut out = Vec::new();
        write_text_with(&mut out, None, |out| encode_server(out, frame));
        out.len()
    };
    let said = |write: &dyn Fn(&mut Vec<u8>)| {
        let mut out = Vec::new();
        write_text_with(&mut out, Some(MASK), |out| write(out));
        out.len()
    };
    Sizes {
        send: said(&|out| frames::send(out, id, conversation, &body)),
        message: served(&ServerFrame::Message(Message { conversation, item, change, n: 123 })),
        stored: served(&ServerFrame::Stored(Stored {
            id,
            conversation,
            seq: 123,
            generation: 1_234_567,
            time_ms,
            class: "d1",
            dup: false,
        })),
        mark: said(&|out| frames::mark(out, conversation, 123)),
        tick: served(&ServerFrame::Tick { conversation, delivered_all: 123, read_all: 123, change }),
    }
}

/// Pairs of users of Ringway.
struct Chat {
    body: String,
    unix_ms: u64,
    counter: u64,
    ends: Vec<End>,
}

#[derive(Debug, Clone, Default)]
struct End {
    /// A frame that has not all come.
    carry: Vec<u8>,
    /// The pair's message in flight: what the sender has heard of it.
    stored_seq: Option<u64>,
    read_all: u64,
    /// Messages heard, for the next beat.
    received: u64,
}

impl Chat {
    fn new(connections: u32) -> Self {
        let unix_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
        let (body, ends) = ("x".repeat(BODY_BYTES), vec![End::default(); connections as usize]);
        Self { body, unix_ms, counter: 0, ends }
    }
}

fn conversation(pair: u32) -> ConversationId {
    ConversationId::direct(UserId(u64::from(2 * pair) + 1), UserId(u64::from(2 * pair) + 2))
}

impl Talk for Chat {
    fn send(&mut self, pair: u32, out: &mut Vec<u8>) {
        self.counter += 1;
        // A UUIDv7: the server forgets ids by the time in them.
        let id = u128::from(self.unix_ms) << 80 | 7 << 76 | 2 << 62 | u128::from(self.counter);
        let id = ClientMessageId(id.to_be_bytes());
        self.ends[2 * pair as usize].stored_seq = None;
        write_text_with(out, Some(MASK), |out| frames::send(out, id, conversation(pair), &self.body));
    }

    fn heard(&mut self, who: u32, bytes: &mut [u8], outbox: &mut Outbox) -> Result<bool, Trouble> {
        let end = &mut self.ends[who as usize];
        let mut carry = std::mem::take(&mut end.carry);
        let is_complete = each_frame(&mut carry, bytes, |text| {
            match kind(text) {
                b"message" => {
                    let seq = number(text, b"\"seq\":").ok_or("a message without a seq")?;
                    end.received += 1;
                    outbox.say_with(who, |out| {
                        write_text_with(out, Some(MASK), |out| frames::mark(out, conversation(who / 2), seq));
                        if end.received.is_multiple_of(BEAT_EVERY) {
                            write_text_with(out, Some(MASK), |out| frames::beat(out, end.received));
                        }
                    });
                }
                b"stored" => end.stored_seq = Some(number(text, b"\"seq\":").ok_or("a `stored` without a seq")?),
                b"tick" => end.read_all = number(text, b"\"read_all\":").ok_or("a tick without a mark")?,
                b"beat" => return Ok(false),
                _ => return Err(format!("unexpected: {}", String::from_utf8_lossy(text)).into()),
            }
            Ok(match kind(text) {
                b"message" => false,
                _ => end.stored_seq.is_some_and(|seq| end.read_all >= seq),
            })
        })?;
        self.ends[who as usize].carry = carry;
        Ok(is_complete)
    }
}

/// Reads a server's frames, from what was left and what came; leaves the rest. Says whether any frame was the
/// awaited one.
pub(crate) fn each_frame(
    carry: &mut Vec<u8>,
    bytes: &[u8],
    mut read: impl FnMut(&[u8]) -> Result<bool, Trouble>,
) -> Result<bool, Trouble> {
    let joined;
    let mut rest = if carry.is_empty() {
        bytes
    } else {
        carry.extend_from_slice(bytes);
        joined = std::mem::take(carry);
        &joined
    };
    let mut is_awaited = false;
    loop {
        let (head, length) = match *rest {
            [_, length @ 0..=125, ..] => (2, usize::from(length)),
            [_, 126, high, low, ..] => (4, usize::from(u16::from_be_bytes([high, low]))),
            [_, 127..=255, ..] => return Err("a frame longer than any that is awaited".into()),
            _ => break,
        };
        if rest.len() < head + length {
            break;
        }
        is_awaited |= read(&rest[head..head + length])?;
        rest = &rest[head + length..];
    }
    carry.extend_from_slice(rest);
    Ok(is_awaited)
}

/// The `type` of a frame of ours, which comes first.
pub(crate) fn kind(text: &[u8]) -> &[u8] {
    let rest = text.strip_prefix(br#"{"type":""#).unwrap_or_default();
    rest.split(|byte| *byte == b'"').next().unwrap_or_default()
}

/// The number behind a name.
fn number(text: &[u8], name: &[u8]) -> Option<u64> {
    let at = text.windows(name.len()).position(|window| window == name)?;
    let digits = text[at + name.len()..].iter().take_while(|byte| byte.is_ascii_digit());
    Some(digits.fold(0, |number, digit| number * 10 + u64::from(digit - b'0')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_read_wherever_the_stream_is_cut() {
        let texts =
            [r#"{"type":"tick","read_all":12}"#.to_owned(), format!(r#"{{"type":"x","pad":"{}"}}"#, "x".repeat(300))];
        let mut stream = Vec::new();
        for text in &texts {
            write_text_with(&mut stream, None, |out| out.extend_from_slice(text.as_bytes()));
        }
        for cut in 0..=stream.len() {
            let (mut carry, mut seen) = (Vec::new(), Vec::new());
            for part in [&stream[..cut], &stream[cut..]] {
                each_frame(&mut carry, part, |text| {
                    seen.push(String::from_utf8(text.to_vec()).unwrap());
                    Ok(false)
                })
                .unwrap();
            }
            assert_eq!(seen, texts, "cut at {cut}");
        }
        assert_eq!(
            (kind(texts[0].as_bytes()), number(texts[0].as_bytes(), b"\"read_all\":")),
            (&b"tick"[..], Some(12))
        );
    }
}
