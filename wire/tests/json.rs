//! Every frame survives being written and read, in both directions.

use std::borrow::Cow;

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use wire::ids::{ChangeNumber, ClientMessageId, ConversationId, DeviceId, UserId};
use wire::json::{Received, decode_client, decode_server, encode_client, encode_server};
use wire::protocol::{
    ClientFrame, ErrorCode, ErrorFrame, Kind, Message, MessageItem, Open, OpenResult, Pull, PullRange, Send, Stored,
    Summary, Target,
};

const BODY_BYTES_MAX: usize = 1 << 16;

/// Texts of every kind of character: plain, to be escaped, of several bytes.
fn text() -> impl Strategy<Value = Cow<'static, str>> {
    prop_oneof!["[ -~]{0,40}", any::<String>()].prop_map(Cow::Owned)
}

fn body() -> impl Strategy<Value = Cow<'static, str>> {
    text().prop_map(|text| if text.is_empty() { "x".into() } else { text })
}

fn user() -> impl Strategy<Value = UserId> {
    any::<u64>().prop_map(UserId)
}

fn conversation() -> impl Strategy<Value = ConversationId> {
    prop_oneof![
        (user(), user()).prop_map(|(one, other)| ConversationId::direct(one, other)),
        any::<u64>().prop_map(ConversationId::Group)
    ]
}

fn id() -> impl Strategy<Value = ClientMessageId> {
    any::<[u8; 16]>().prop_map(ClientMessageId)
}

fn change() -> impl Strategy<Value = ChangeNumber> {
    any::<(u64, u64)>().prop_map(|(epoch, counter)| ChangeNumber { epoch, counter })
}

fn kind() -> impl Strategy<Value = Kind> {
    proptest::sample::select(Kind::ALL)
}

fn send() -> impl Strategy<Value = Send<'static>> {
    let target = prop_oneof![user().prop_map(Target::To), conversation().prop_map(Target::Conversation)];
    (id(), option::of(id()), target, kind(), body(), option::of(any::<u64>()), any::<u64>()).prop_map(
        |(id, skip, target, kind, body, reply_to, target_seq)| {
            // The short form has no id and is always text.
            let short = id.0[0] % 4 == 0;
            let kind = if short { Kind::Text } else { kind };
            Send { id: (!short).then_some(id), skip, target, kind, body, reply_to, target_seq: Some(target_seq) }
        },
    )
}

fn client_frame() -> impl Strategy<Value = ClientFrame<'static>> {
    prop_oneof![
        (
            option::of(text()),
            option::of(text()),
            option::of(any::<u32>()),
            option::of(change()),
            option::of(any::<u32>())
        )
            .prop_map(|(token, ticket, device, changes_after, window)| {
                ClientFrame::Open(Open { token, ticket, device: device.map(DeviceId), changes_after, window })
            }),
        send().prop_map(ClientFrame::Send),
        any::<u64>().prop_map(|received| ClientFrame::Beat { received }),
        (conversation(), option::of(any::<u64>()), any::<u64>()).prop_map(|(conversation, delivered, read)| {
            ClientFrame::Mark { conversation, delivered, read: Some(read) }
        }),
        (conversation(), any::<bool>(), any::<Option<u64>>(), option::of(any::<u32>()), option::of(any::<u64>()))
            .prop_map(|(conversation, ascending, seq, limit, min_seq)| {
                let range = match (ascending, seq) {
                    (true, Some(after)) => PullRange::After(after),
                    (_, before) => PullRange::Before(before),
                };
                ClientFrame::Pull(Pull { conversation, range, limit, min_seq })
            }),
        (change(), option::of(any::<u32>())).prop_map(|(after, limit)| ClientFrame::Changes { after, limit }),
        (conversation(), "[a-z]{0,32}", text()).prop_map(|(conversation, name, body)| ClientFrame::Signal {
            conversation,
            name: name.into(),
            body
        }),
        text().prop_map(|token| ClientFrame::Auth { token }),
        (conversation(), id()).prop_map(|(conversation, id)| ClientFrame::Skip { conversation, id }),
    ]
}

fn item() -> impl Strategy<Value = MessageItem<'static>> {
    let (number, maybe) = (any::<u64>, || option::of(any::<u64>()));
    let numbers = (number(), number(), any::<u32>(), number(), maybe(), maybe());
    (numbers, kind(), text(), option::of(id())).prop_map(
        |((seq, from, device, time_ms, reply_to, target_seq), kind, body, id)| MessageItem {
            seq,
            from: UserId(from),
            device: DeviceId(device),
            time_ms,
            kind,
            body,
            reply_to,
            target_seq,
            id,
        },
    )
}

fn summary() -> impl Strategy<Value = Summary<'static>> {
    (conversation(), any::<[u64; 6]>(), option::of(item())).prop_map(|(conversation, numbers, last)| {
        let [head, unread, read, delivered, read_all, delivered_all] = numbers;
        Summary { conversation, head, unread, read, delivered, read_all, delivered_all, last }
    })
}

fn server_frame() -> impl Strategy<Value = Received<'static>> {
    let class = || proptest::sample::select(&["d0", "d1", "d2"][..]);
    let result = proptest::sample::select(&[OpenResult::Replay, OpenResult::Delta, OpenResult::Snapshot][..]);
    prop_oneof![
        (text(), any::<u64>(), any::<u32>(), any::<u32>(), class(), any::<u32>()).prop_map(
            |(node, generation, beat_ms, offline_ms, class, body_bytes_max)| Received::Hello {
                node,
                generation,
                beat_ms,
                offline_ms,
                class: class.into(),
                body_bytes_max
            }
        ),
        ((text(), text(), user(), any::<u32>()), result, change(), vec(summary(), 0..4), any::<(bool, bool)>())
            .prop_map(|((session, ticket, user, device), result, change, conversations, (more, ahead))| {
                Received::Opened {
                    session,
                    ticket,
                    user,
                    device: DeviceId(device),
                    result,
                    change,
                    conversations,
                    more,
                    ahead,
                }
            }),
        (id(), conversation(), any::<[u64; 3]>(), class(), any::<bool>()).prop_map(
            |(id, conversation, [seq, generation, time_ms], class, dup)| {
                Received::Stored(Stored { id, conversation, seq, generation, time_ms, class, dup })
            }
        ),
        (conversation(), item(), change(), any::<u64>())
            .prop_map(|(conversation, item, change, n)| Received::Message(Message { conversation, item, change, n })),
        any::<u64>().prop_map(|received| Received::Beat { received }),
        (conversation(), option::of(any::<u64>()), option::of(any::<u64>()), change()).prop_map(
            |(conversation, delivered, read, change)| Received::Mark { conversation, delivered, read, change }
        ),
        (conversation(), any::<u64>(), any::<u64>(), change()).prop_map(
            |(conversation, delivered_all, read_all, change)| {
                Received::Tick { conversation, delivered_all, read_all, change }
            }
        ),
        (conversation(), vec(item(), 0..4), any::<u64>(), any::<bool>(), any::<u64>(), option::of(any::<u64>()))
            .prop_map(|(conversation, messages, head, more, first_seq, cursor)| Received::Page {
                conversation,
                messages,
                head,
                more,
                first_seq,
                cursor
            }),
        (vec(summary(), 0..4), change(), any::<bool>()).prop_map(|(list, next, too_old)| Received::Changes {
            list,
            next,
            too_old
        }),
        (conversation(), user(), text(), text()).prop_map(|(conversation, from, name, body)| Received::Signal {
            conversation,
            from,
            name,
            body
        }),
        (conversation(), any::<u64>()).prop_map(|(conversation, head)| Received::Lagging { conversation, head }),
        any::<(u32, u32)>().prop_map(|(deadline_ms, spread_ms)| Received::Move { deadline_ms, spread_ms }),
        any::<u64>().prop_map(|deadline_ms| Received::Auth { deadline_ms }),
        (
            option::of(id()),
            option::of(conversation()),
            proptest::sample::select(ErrorCode::ALL),
            text(),
            option::of(any::<u32>()),
            option::of(text())
        )
            .prop_map(|(id, conversation, code, message, after_ms, path)| {
                Received::Error(ErrorFrame { id, conversation, code, message, after_ms, path })
            }),
        (vec(summary(), 0..4), option::of(text())).prop_map(|(list, cursor)| Received::Conversations { list, cursor }),
    ]
}

proptest! {
    #[test]
    fn a_frame_from_a_client_comes_out_as_it_went_in(frame in client_frame()) {
        let mut out = Vec::new();
        encode_client(&mut out, &frame);
        let text = std::str::from_utf8(&out).unwrap();
        prop_assert_eq!(decode_client(text, BODY_BYTES_MAX), Ok(frame), "{}", text);
    }

    #[test]
    fn a_frame_to_a_client_comes_out_as_it_went_in(frame in server_frame()) {
        let mut out = Vec::new();
        encode_server(&mut out, &frame.as_frame().unwrap());
        let text = std::str::from_utf8(&out).unwrap();
        prop_assert_eq!(decode_server(text), Ok(frame), "{}", text);
    }

    /// Any text is a frame or an error with a place in it; none is a panic.
    #[test]
    fn no_text_is_too_strange(text in any::<String>(), field in "(type|to|conv|id|body|after|x)", value in ".{0,8}") {
        for text in [text, format!(r#"{{"type":"send","{field}":{value}}}"#)] {
            if let Err(error) = decode_client(&text, BODY_BYTES_MAX) {
                prop_assert!(error.path.is_some());
            }
            let _ = decode_server(&text);
        }
    }
}

#[test]
fn a_frame_of_a_later_server_is_told_apart_from_a_broken_one() {
    assert_eq!(decode_server(r#"{"type":"dance","x":1}"#), Ok(Received::Unknown("dance".into())));
    let error = decode_server(r#"{"type":"page","conv":"dm.1.2","messages":[{"seq":"1"}]}"#).unwrap_err();
    assert_eq!(error.path.as_deref(), Some("$.messages[0].seq"));
    let error = decode_server(r#"{"type":"beat"}"#).unwrap_err();
    assert_eq!(error.path.as_deref(), Some("$.received"));
}
