//! docs/protocol.md says what the code does: its tables and its examples are compared.

use serde_json::Value;
use wire::close::{AfterClose, CloseCode};
use wire::json::{decode_client, decode_server, encode_client, encode_server};
use wire::protocol::ErrorCode;

const PAGE: &str = include_str!("../../docs/protocol.md");

/// The rows of the one table whose head begins with these words.
fn table(head: &str) -> Vec<&'static str> {
    let mut lines = PAGE.lines().skip_while(|line| !line.starts_with(head));
    assert!(lines.next().is_some(), "there is no table with the head {head}");
    lines.skip(1).take_while(|line| line.starts_with('|')).collect()
}

/// The code blocks with this word behind their opening fence.
fn blocks(info: &str) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut lines = PAGE.lines();
    while let Some(line) = lines.next() {
        if let Some(found) = line.strip_prefix("```").filter(|found| !found.is_empty()) {
            let block: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
            if found == info {
                blocks.push(block.join("\n"));
            }
        }
    }
    blocks
}

#[test]
fn the_table_of_errors_lists_all_of_them() {
    let rows: Vec<String> = ErrorCode::ALL
        .iter()
        .map(|code| {
            let retryable = if code.retryable() { "yes" } else { "no" };
            format!("| `{}` | {} | {retryable} | {} |", code.as_str(), code.status(), code.meaning())
        })
        .collect();
    assert_eq!(table("| code | HTTP status"), rows, "it should be:\n{}", rows.join("\n"));
}

#[test]
fn the_table_of_close_codes_lists_all_of_them() {
    let rows: Vec<String> = CloseCode::ALL
        .iter()
        .map(|code| {
            let then = match code.after() {
                AfterClose::Resume => "open again",
                AfterClose::Afresh => "open afresh",
                AfterClose::Stop => "stop",
            };
            format!("| {} | {then} | {} |", code.number(), code.meaning())
        })
        .collect();
    assert_eq!(table("| code | then"), rows, "it should be:\n{}", rows.join("\n"));
}

#[test]
fn examples_of_the_client_are_frames_that_the_server_takes() {
    let mut types = Vec::new();
    for example in blocks("json client") {
        let frame = decode_client(&example, 1 << 16).unwrap_or_else(|error| panic!("{example}\n{error}"));
        let mut written = Vec::new();
        encode_client(&mut written, &frame);
        assert_same(&example, &written);
        types.push(type_of(&example));
    }
    types.sort_unstable();
    assert_eq!(types, ["auth", "beat", "changes", "mark", "message", "open", "pull", "send", "signal", "skip"]);
}

#[test]
fn examples_of_the_server_are_frames_that_it_writes() {
    let mut types = Vec::new();
    for example in blocks("json server") {
        let frame = decode_server(&example).unwrap_or_else(|error| panic!("{example}\n{error}"));
        let mut written = Vec::new();
        encode_server(&mut written, &frame.as_frame().unwrap_or_else(|| panic!("{example}\nis not a known frame")));
        assert_same(&example, &written);
        types.push(type_of(&example));
    }
    types.sort_unstable();
    let all = [
        "auth",
        "beat",
        "changes",
        "conversations",
        "error",
        "hello",
        "lagging",
        "mark",
        "message",
        "move",
        "opened",
        "page",
        "signal",
        "stored",
        "tick",
    ];
    assert_eq!(types, all);
}

fn type_of(example: &str) -> String {
    let value: Value = serde_json::from_str(example).unwrap();
    value["type"].as_str().unwrap().to_owned()
}

/// Nothing in the example was overlooked when it was read.
fn assert_same(example: &str, written: &[u8]) {
    let (example, written): (Value, Value) =
        (serde_json::from_str(example).unwrap(), serde_json::from_slice(written).unwrap());
    assert_eq!(example, written);
}
