//! The generator's half of the protocol is written apart from the server's: they must agree.

use loadgen::frames::{self, Heard};
use wire::ids::{ChangeNumber, ClientMessageId, ConversationId, DeviceId, UserId};
use wire::json::{decode_client, encode_server};
use wire::protocol::{
    ClientFrame, Kind, Message, MessageItem, Open, OpenResult, Opened, Pull, PullRange, Send, ServerFrame, Stored,
    Summary, Target,
};

const CONVERSATION: ConversationId = ConversationId::Direct(UserId(1), UserId(2));
const CHANGE: ChangeNumber = ChangeNumber { epoch: 3, counter: 4 };
const ID: ClientMessageId = ClientMessageId([7; 16]);

fn understood(say: impl FnOnce(&mut Vec<u8>)) -> String {
    let mut out = Vec::new();
    say(&mut out);
    String::from_utf8(out).unwrap()
}

#[test]
fn the_server_understands_what_a_phone_says() {
    let open = understood(|out| frames::open(out, 1, Some(CHANGE), 30));
    let expected =
        Open { token: None, ticket: None, device: Some(DeviceId(1)), changes_after: Some(CHANGE), window: Some(30) };
    assert_eq!(decode_client(&open, 1_000).unwrap(), ClientFrame::Open(expected));
    let send = understood(|out| frames::send(out, ID, CONVERSATION, "hello"));
    let expected = Send {
        id: Some(ID),
        skip: None,
        target: Target::Conversation(CONVERSATION),
        kind: Kind::Text,
        body: "hello".into(),
        reply_to: None,
        target_seq: None,
    };
    assert_eq!(decode_client(&send, 1_000).unwrap(), ClientFrame::Send(expected));
    let beat = understood(|out| frames::beat(out, 9));
    assert_eq!(decode_client(&beat, 1_000).unwrap(), ClientFrame::Beat { received: 9 });
    let mark = understood(|out| frames::mark(out, CONVERSATION, 5));
    let expected = ClientFrame::Mark { conversation: CONVERSATION, delivered: Some(5), read: Some(5) };
    assert_eq!(decode_client(&mark, 1_000).unwrap(), expected);
    let pull = understood(|out| frames::pull(out, CONVERSATION, 8));
    let range = PullRange::After(8);
    let expected = Pull { conversation: CONVERSATION, range, limit: Some(100), min_seq: None };
    assert_eq!(decode_client(&pull, 1_000).unwrap(), ClientFrame::Pull(expected));
}

#[test]
fn a_phone_understands_what_the_server_says() {
    let said = |frame: &ServerFrame<'_>| understood(|out| encode_server(out, frame));
    let item = MessageItem {
        seq: 6,
        from: UserId(2),
        device: DeviceId(1),
        time_ms: 1_700_000_000_000,
        kind: Kind::Text,
        body: "hi \"you\"".into(),
        reply_to: None,
        target_seq: None,
        id: Some(ID),
    };
    let message = Message { conversation: CONVERSATION, item: item.clone(), change: CHANGE, n: 11 };
    let text = said(&ServerFrame::Message(message));
    let heard = Heard::read(&text).unwrap();
    assert_eq!((heard.kind.0.as_ref(), heard.seq.0, heard.n.0), ("message", 6, 11));
    assert_eq!(heard.conv.unwrap().0, "dm.1.2");
    assert_eq!(heard.from.unwrap().0, "2");
    assert_eq!(heard.body.unwrap().0, "hi \"you\"");
    assert_eq!(heard.change.unwrap().0, "3.4");

    let generation = u64::MAX - 1;
    let stored = Stored {
        id: ID,
        conversation: CONVERSATION,
        seq: 6,
        generation,
        time_ms: 1_700_000_000_000,
        class: "d1",
        dup: true,
    };
    let text = said(&ServerFrame::Stored(stored));
    let heard = Heard::read(&text).unwrap();
    assert_eq!((heard.seq.0, heard.generation.0, heard.dup), (6, generation, true));
    assert_eq!(heard.id.unwrap().0, ID.to_string());

    let summary = Summary {
        conversation: CONVERSATION,
        head: 6,
        unread: 1,
        read: 1,
        delivered: 1,
        read_all: 1,
        delivered_all: 1,
        last: Some(item),
    };
    let opened = Opened {
        session: "s",
        ticket: "t",
        user: UserId(1),
        device: DeviceId(1),
        result: OpenResult::Delta,
        change: CHANGE,
        conversations: &[summary],
        more: false,
        ahead: false,
    };
    let text = said(&ServerFrame::Opened(opened));
    let heard = Heard::read(&text).unwrap();
    assert_eq!((heard.kind.0.as_ref(), heard.conversations[0].head.0), ("opened", 6));
    assert_eq!(heard.conversations[0].conv.0, "dm.1.2");
}
