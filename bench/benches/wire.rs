//! What it costs to read and write what clients say: `cargo bench -p bench --bench wire`.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use wire::http::{HttpLimits, Progress, RequestReader};
use wire::ids::{ChangeNumber, ClientMessageId, ConversationId, DeviceId, UserId};
use wire::json::{decode_client, decode_server, encode_server};
use wire::protocol::{Kind, Message, MessageItem, ServerFrame, Stored};
use wire::reader::{Input, Reader};
use wire::websocket::{Limits, Role, mask_in_place};
use wire::writer::{Opcode, write_frame, write_text_with};

const BODY_BYTES: usize = 128;

/// As a client of ours writes it, with a body of 128 bytes.
fn a_send() -> String {
    let body = "x".repeat(BODY_BYTES);
    format!(
        r#"{{"type":"send","id":"018f0e2a-7c11-7abc-8def-0123456789ab","to":"123456","kind":"text","body":"{body}"}}"#
    )
}

fn a_message(body: &str) -> ServerFrame<'_> {
    ServerFrame::Message(Message {
        conversation: ConversationId::direct(UserId(123_456), UserId(654_321)),
        item: MessageItem {
            seq: 1_234,
            from: UserId(654_321),
            device: DeviceId(1),
            time_ms: 1_732_363_200_000,
            kind: Kind::Text,
            body: body.into(),
            reply_to: None,
            target_seq: None,
            id: None,
        },
        change: ChangeNumber { epoch: 3, counter: 1_057 },
        n: 17,
    })
}

const STORED: ServerFrame<'_> = ServerFrame::Stored(Stored {
    id: ClientMessageId([7; 16]),
    conversation: ConversationId::Direct(UserId(123_456), UserId(654_321)),
    seq: 1_234,
    generation: 7_203_941,
    time_ms: 1_732_363_200_000,
    class: "d1",
    dup: false,
});

fn frames(c: &mut Criterion) {
    let mut group = c.benchmark_group("frames");
    for (name, bytes) in [("64 bytes", 64), ("4 KiB", 4 << 10)] {
        let mut whole = Vec::new();
        write_frame(&mut whole, Opcode::Text, Some([1, 2, 3, 4]), "x".repeat(bytes).as_bytes());
        group.throughput(Throughput::Bytes(bytes as u64));
        // Unmasking happens in place: each round needs its frame masked again.
        group.bench_function(format!("read, {name}"), |b| {
            let mut reader = Reader::new(Role::Server);
            b.iter_batched_ref(
                || whole.clone(),
                |frame| {
                    let mut input = Input::new(frame);
                    black_box(reader.next(Limits::default(), &mut input)).is_ok()
                },
                BatchSize::SmallInput,
            );
        });
        group.bench_function(format!("write, {name}"), |b| {
            let payload = vec![b'x'; bytes];
            let mut out = Vec::with_capacity(8 << 10);
            b.iter(|| {
                out.clear();
                write_frame(&mut out, Opcode::Text, None, black_box(&payload));
            });
        });
    }
    group.throughput(Throughput::Bytes(64 << 10));
    group.bench_function("unmask 64 KiB", |b| {
        let mut payload = vec![b'x'; 64 << 10];
        b.iter(|| mask_in_place(black_box(&mut payload), [1, 2, 3, 4]));
    });
    group.finish();
}

fn json(c: &mut Criterion) {
    let mut group = c.benchmark_group("json");
    let (send, body) = (a_send(), "x".repeat(BODY_BYTES));
    let (beat, mark) =
        (r#"{"type":"beat","received":123456}"#, r#"{"type":"mark","conv":"dm.123456.654321","read":42}"#);
    for (name, text) in [("send", &*send), ("beat", beat), ("mark", mark)] {
        group.bench_function(format!("read {name}"), |b| b.iter(|| decode_client(black_box(text), 1 << 16).is_ok()));
    }
    let message = a_message(&body);
    for (name, frame) in [("message", &message), ("stored", &STORED), ("beat", &ServerFrame::Beat { received: 17 })] {
        group.bench_function(format!("write {name}, framed"), |b| {
            let mut out = Vec::with_capacity(8 << 10);
            b.iter(|| {
                out.clear();
                write_text_with(&mut out, None, |out| encode_server(out, black_box(frame)));
            });
        });
        let mut out = Vec::new();
        encode_server(&mut out, frame);
        let text = String::from_utf8(out).expect("JSON is text");
        group.bench_function(format!("client reads {name}"), |b| b.iter(|| decode_server(black_box(&text)).is_ok()));
    }
    group.finish();
}

fn http(c: &mut Criterion) {
    let head = "GET /ws HTTP/1.1\r\nHost: localhost:8800\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    c.bench_function("http/upgrade request", |b| {
        b.iter(|| {
            let mut reader = RequestReader::new();
            let progress = reader.poll(&HttpLimits::default(), black_box(head.as_bytes()));
            matches!(progress, Ok(Progress::Request(_)))
        });
    });
}

criterion_group!(benches, frames, json, http);
criterion_main!(benches);
