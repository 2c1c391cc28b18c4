//! Frames to clients, written by hand: fan-out writes more of them than anything else.

use super::text::{
    change, close, close_array, conversation, decimal, flag, message_id, name, number, number_if, open, open_array,
    string, string_if, word,
};
use crate::protocol::{ErrorFrame, Message, MessageItem, OpenResult, Opened, Page, ServerFrame, Stored, Summary};

/// Appends a frame to a client as one JSON object.
pub fn encode_server(out: &mut Vec<u8>, frame: &ServerFrame<'_>) {
    open(out);
    match frame {
        ServerFrame::Hello { node, generation, beat_ms, offline_ms, class, body_bytes_max } => {
            word(out, "type", "hello");
            string(out, "node", node);
            decimal(out, "generation", *generation);
            number(out, "beat_ms", u64::from(*beat_ms));
            number(out, "offline_ms", u64::from(*offline_ms));
            string(out, "class", class);
            name(out, "limits");
            open(out);
            number(out, "body_bytes_max", u64::from(*body_bytes_max));
            close(out);
            out.push(b',');
        }
        ServerFrame::Opened(opened) => encode_opened(out, opened),
        ServerFrame::Stored(stored) => encode_stored(out, stored),
        ServerFrame::Message(message) => encode_message(out, message),
        ServerFrame::Beat { received } => {
            word(out, "type", "beat");
            number(out, "received", *received);
        }
        ServerFrame::Mark { conversation: conv, delivered, read, change: number } => {
            word(out, "type", "mark");
            conversation(out, "conv", *conv);
            number_if(out, "delivered", *delivered);
            number_if(out, "read", *read);
            change(out, "change", *number);
        }
        ServerFrame::Tick { conversation: conv, delivered_all, read_all, change: number_of_change } => {
            word(out, "type", "tick");
            conversation(out, "conv", *conv);
            number(out, "delivered_all", *delivered_all);
            number(out, "read_all", *read_all);
            change(out, "change", *number_of_change);
        }
        ServerFrame::Page(page) => encode_page(out, page),
        ServerFrame::Changes { list, next, too_old } => {
            word(out, "type", "changes");
            encode_summaries(out, "list", list);
            change(out, "next", *next);
            flag(out, "too_old", *too_old);
        }
        ServerFrame::Signal { conversation: conv, from, name, body } => {
            word(out, "type", "signal");
            conversation(out, "conv", *conv);
            decimal(out, "from", from.0);
            string(out, "name", name);
            string(out, "body", body);
        }
        ServerFrame::Lagging { conversation: conv, head } => {
            word(out, "type", "lagging");
            conversation(out, "conv", *conv);
            number(out, "head", *head);
        }
        ServerFrame::Move { deadline_ms, spread_ms } => {
            word(out, "type", "move");
            number(out, "deadline_ms", u64::from(*deadline_ms));
            number(out, "spread_ms", u64::from(*spread_ms));
        }
        ServerFrame::Auth { deadline_ms } => {
            word(out, "type", "auth");
            number(out, "deadline_ms", *deadline_ms);
        }
        ServerFrame::Error(error) => encode_error(out, error),
        ServerFrame::Conversations { list, cursor } => {
            word(out, "type", "conversations");
            encode_summaries(out, "list", list);
            string_if(out, "cursor", *cursor);
        }
    }
    close(out);
}

fn encode_opened(out: &mut Vec<u8>, opened: &Opened<'_>) {
    word(out, "type", "opened");
    string(out, "session", opened.session);
    string(out, "ticket", opened.ticket);
    decimal(out, "user", opened.user.0);
    decimal(out, "device", u64::from(opened.device.0));
    word(out, "result", open_result(opened.result));
    change(out, "change", opened.change);
    encode_summaries(out, "conversations", opened.conversations);
    flag(out, "more", opened.more);
    flag(out, "ahead", opened.ahead);
}

pub(super) fn open_result(result: OpenResult) -> &'static str {
    match result {
        OpenResult::Replay => "replay",
        OpenResult::Delta => "delta",
        OpenResult::Snapshot => "snapshot",
    }
}

fn encode_stored(out: &mut Vec<u8>, stored: &Stored) {
    word(out, "type", "stored");
    message_id(out, "id", stored.id);
    conversation(out, "conv", stored.conversation);
    number(out, "seq", stored.seq);
    decimal(out, "generation", stored.generation);
    number(out, "time", stored.time_ms);
    word(out, "class", stored.class);
    if stored.dup {
        flag(out, "dup", true);
    }
}

fn encode_message(out: &mut Vec<u8>, message: &Message<'_>) {
    word(out, "type", "message");
    conversation(out, "conv", message.conversation);
    encode_item(out, &message.item);
    change(out, "change", message.change);
    number(out, "n", message.n);
}

/// The fields of a message, without the braces.
fn encode_item(out: &mut Vec<u8>, item: &MessageItem<'_>) {
    number(out, "seq", item.seq);
    decimal(out, "from", item.from.0);
    decimal(out, "device", u64::from(item.device.0));
    number(out, "time", item.time_ms);
    word(out, "kind", item.kind.as_str());
    string(out, "body", &item.body);
    number_if(out, "reply_to", item.reply_to);
    number_if(out, "target_seq", item.target_seq);
    if let Some(id) = item.id {
        message_id(out, "id", id);
    }
}

fn encode_page(out: &mut Vec<u8>, page: &Page<'_>) {
    word(out, "type", "page");
    conversation(out, "conv", page.conversation);
    open_array(out, "messages");
    for item in page.messages {
        open(out);
        encode_item(out, item);
        close(out);
        out.push(b',');
    }
    close_array(out);
    number(out, "head", page.head);
    flag(out, "more", page.more);
    number(out, "first_seq", page.first_seq);
    number_if(out, "cursor", page.cursor);
}

fn encode_summaries(out: &mut Vec<u8>, key: &str, list: &[Summary<'_>]) {
    open_array(out, key);
    for summary in list {
        open(out);
        conversation(out, "conv", summary.conversation);
        number(out, "head", summary.head);
        number(out, "unread", summary.unread);
        number(out, "read", summary.read);
        number(out, "delivered", summary.delivered);
        number(out, "read_all", summary.read_all);
        number(out, "delivered_all", summary.delivered_all);
        if let Some(last) = &summary.last {
            name(out, "last");
            open(out);
            encode_item(out, last);
            close(out);
            out.push(b',');
        }
        close(out);
        out.push(b',');
    }
    close_array(out);
}

fn encode_error(out: &mut Vec<u8>, error: &ErrorFrame<'_>) {
    word(out, "type", "error");
    if let Some(id) = error.id {
        message_id(out, "id", id);
    }
    if let Some(conv) = error.conversation {
        conversation(out, "conv", conv);
    }
    word(out, "code", error.code.as_str());
    string(out, "message", &error.message);
    flag(out, "retryable", error.code.retryable());
    number_if(out, "after_ms", error.after_ms.map(u64::from));
    string_if(out, "path", error.path.as_deref());
}

/// Appends an RFC 9457 problem document for an error of the protocol's.
pub fn encode_error_problem(out: &mut Vec<u8>, error: &ErrorFrame<'_>) {
    open(out);
    word(out, "type", "about:blank");
    word(out, "title", crate::http::reason_phrase(error.code.status()));
    number(out, "status", u64::from(error.code.status()));
    string(out, "detail", &error.message);
    word(out, "code", error.code.as_str());
    flag(out, "retryable", error.code.retryable());
    if let Some(id) = error.id {
        message_id(out, "id", id);
    }
    if let Some(conv) = error.conversation {
        conversation(out, "conv", conv);
    }
    number_if(out, "after_ms", error.after_ms.map(u64::from));
    string_if(out, "path", error.path.as_deref());
    close(out);
}

/// Appends an RFC 9457 problem document for a request that never reached the protocol.
pub fn encode_problem(out: &mut Vec<u8>, status: u16, detail: &str) {
    open(out);
    word(out, "type", "about:blank");
    word(out, "title", crate::http::reason_phrase(status));
    number(out, "status", u64::from(status));
    string(out, "detail", detail);
    close(out);
}
