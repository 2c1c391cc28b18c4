//! Client frames: what is taken must be JSON to another reader too, and survive being written again.

use wire::json::{decode_client, decode_send, decode_server, encode_client, encode_server};

use crate::mutate::Rng;

const BODY_BYTES_MAX: usize = 200;

pub fn corpus() -> Vec<Vec<u8>> {
    let id = "018f0e2a-7c11-7abc-8def-0123456789ab";
    [
        r#"{"type":"open","token":"a.b.c","device":"7","changes_after":"1.5","window":20}"#,
        r#"{"type":"send","id":"ID","to":"456","kind":"text","body":"hello \u00e9\ud834\udd1e\n","reply_to":3}"#,
        r#"{"type":"send","id":"ID","skip":"ID","conv":"dm.1.2","kind":"delete","target_seq":7}"#,
        r#"{"type":"message","to":"456","text":"hello"}"#,
        r#"{"type":"beat","received":18446744073709551615}"#,
        r#"{"type":"mark","conv":"gr.789","delivered":5,"read":null}"#,
        r#"{"type":"pull","conv":"dm.1.2","after":0,"limit":100,"min_seq":9}"#,
        r#"{"type":"pull","conv":"dm.1.2","before":7,"x":{"y":[1,-2.5e3,true,null,"z"]}}"#,
        r#"{"type":"changes","after":"1.9","limit":3}"#,
        r#"{"type":"signal","conv":"dm.1.2","name":"typing","body":""}"#,
        r#"{"type":"auth","token":"a.b.c"}"#,
        r#"{"type":"skip","conv":"dm.1.2","id":"AY8OKnwReryN7wEjRWeJqw"}"#,
        r#"{"type":"stored","id":"ID","conv":"dm.1.2","seq":1,"generation":"9","time":1,"class":"d1","dup":true}"#,
        r#"{"type":"message","conv":"dm.1.2","seq":1,"from":"1","device":"2","time":3,"kind":"text","body":"x","change":"1.1","n":1}"#,
        r#"{"type":"page","conv":"dm.1.2","messages":[],"head":0,"more":false,"first_seq":1,"cursor":1}"#,
    ]
    .into_iter()
    .map(|text| text.replace("ID", id).into_bytes())
    .collect()
}

pub fn dictionary() -> Vec<Vec<u8>> {
    [
        "\"type\":",
        "\"to\":\"1\",",
        "\"conv\":\"dm.1.2\",",
        "\"id\":",
        "null",
        "1e400",
        "\"x\":1e400,",
        "\"x\":\"\\ud800\",",
        "-1",
        "1.5",
        "\\ud800",
        "\\u0000",
        "\\\"",
        "[[[[[[[[[[[[[[[[",
        "{\"a\":{\"a\":{\"a\":{\"a\":",
        "18446744073709551616",
        "\"\"",
        ",",
        "}",
        "\"x\":",
        "\"body\":\"b\",",
        "\"after\":1,",
        "\"before\":1,",
        "true",
        "\u{feff}",
        "𝄞",
    ]
    .into_iter()
    .map(|word| word.as_bytes().to_vec())
    .collect()
}

pub fn check(input: &[u8], _: &mut Rng) -> String {
    let Ok(text) = std::str::from_utf8(input) else { return "not text".to_owned() };
    let value = serde_json::from_str::<serde_json::Value>(text);
    let _ = decode_send(text, BODY_BYTES_MAX);
    if let Ok(received) = decode_server(text)
        && let Some(frame) = received.as_frame()
    {
        let mut out = Vec::new();
        encode_server(&mut out, &frame);
        let again = std::str::from_utf8(&out).expect("JSON is text");
        assert_eq!(decode_server(again).as_ref(), Ok(&received), "{again}");
    }
    match decode_client(text, BODY_BYTES_MAX) {
        Ok(frame) => {
            assert!(value.is_ok_and(|value| value.is_object()), "taken, and not JSON to others");
            let mut out = Vec::new();
            encode_client(&mut out, &frame);
            let again = std::str::from_utf8(&out).expect("JSON is text");
            assert_eq!(decode_client(again, BODY_BYTES_MAX).as_ref(), Ok(&frame), "{again}");
            let name = format!("{frame:?}");
            name.split(['(', ' ']).next().unwrap_or_default().to_owned()
        }
        Err(error) => {
            let path = error.path.expect("each error says where");
            assert!(path.starts_with('$') && path.len() < 64, "{path}");
            // The words of the message only, or each line and column would be an outcome.
            let message: String = error.message.chars().filter(char::is_ascii_lowercase).take(16).collect();
            format!("{} {message}", error.code.as_str())
        }
    }
}
