//! HTTP heads: a request must not depend on the cuts, and never be longer than its input.

use wire::http::{HttpError, HttpLimits, Progress, RequestReader};
use wire::upgrade::{check_upgrade, read_response_head};

use crate::mutate::Rng;

const LIMITS: HttpLimits =
    HttpLimits { target_bytes_max: 200, line_bytes_max: 200, head_bytes_max: 1_000, body_bytes_max: 500 };

pub fn corpus() -> Vec<Vec<u8>> {
    let requests: &[&[u8]] = &[
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /v1/conversations?limit=20&cursor=%61 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer a.b.c\r\n\r\n",
        b"POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbodyGET / HTTP/1.1\r\nHost: y\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nExpect: 100-continue\r\nConnection: close\r\n\r\nbody",
        b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n\
          Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
          Sec-WebSocket-Protocol: ringway.v1.json\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n",
        b"GET http://x/a%20b HTTP/1.0\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    ];
    requests.iter().map(|request| request.to_vec()).collect()
}

pub fn dictionary() -> Vec<Vec<u8>> {
    let words: &[&[u8]] = &[
        b"\r\n",
        b"\n",
        b"\r",
        b"\r\n\r\n",
        b": ",
        b"Transfer-Encoding: chunked\r\n",
        b"Content-Length: 1\r\n",
        b"Content-Length: 99999999999999999999\r\n",
        b"Host: x\r\n",
        b"Upgrade: websocket\r\n",
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
        b"Sec-WebSocket-Version: 8\r\n",
        b"Expect: 100-continue\r\n",
        b"%2e%2e",
        b"%00",
        b"%2f",
        b"/../",
        b"HTTP/1.1",
        b"HTTP/1.0",
        b"GET ",
        b" \t",
        b"?a=b&a=c",
        b"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    ];
    words.iter().map(|word| word.to_vec()).collect()
}

pub fn check(input: &[u8], rng: &mut Rng) -> String {
    if let Ok(Some(head)) = read_response_head(input) {
        assert!(head.bytes <= input.len());
    }
    let cuts = rng.cuts(input.len());
    let (whole, error) = requests(input, &[input.len()]);
    let (in_pieces, error_in_pieces) = requests(input, &cuts);
    assert_eq!(in_pieces, whole, "cut at {cuts:?}");
    // In pieces another fault of the same request may be seen first, but never none.
    assert_eq!(error_in_pieces.is_some(), error.is_some(), "cut at {cuts:?}");
    let kinds: Vec<&str> = whole.iter().map(|request| request.split(' ').next().unwrap_or_default()).collect();
    format!("{kinds:?} {error:?}")
}

/// All requests of a connection, and what ended it.
fn requests(input: &[u8], cuts: &[usize]) -> (Vec<String>, Option<HttpError>) {
    let mut reader = RequestReader::new();
    let mut requests = Vec::new();
    let mut start = 0;
    for &end in cuts {
        loop {
            match reader.poll(&LIMITS, &input[start..end]) {
                Ok(Progress::Incomplete) => break,
                Ok(Progress::Continue) => {}
                Ok(Progress::Request(request)) => {
                    assert!(request.bytes > 0 && request.bytes <= end - start);
                    assert!(request.path.starts_with('/') && !request.path.split('/').any(|segment| segment == ".."));
                    let upgrade = check_upgrade(&request).map_err(wire::upgrade::UpgradeError::status);
                    requests.push(format!(
                        "{:?} {:?} {:?} {:?} {} {:?} {:?} {:?}",
                        request.method,
                        request.path,
                        request.query,
                        request.body,
                        request.keep_alive,
                        upgrade,
                        request.bearer(),
                        request.parameter("limit")
                    ));
                    start += request.bytes;
                }
                Err(error) => return (requests, Some(error)),
            }
        }
    }
    (requests, None)
}
