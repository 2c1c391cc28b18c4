//! The handshake that turns an HTTP connection into a WebSocket, from both ends (RFC 6455, section 4).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tungstenite::handshake::derive_accept_key;

use crate::http::{Method, Request, write_header, write_status_line};

/// The subprotocol whose frames are JSON texts.
pub const SUBPROTOCOL_JSON: &str = "ringway.v1.json";

/// What a client offered of subprotocols.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subprotocol {
    /// Nothing: the frames are JSON, and the answer names none.
    NotOffered,
    /// `ringway.v1.json` was among them.
    Json,
    /// Only others. A browser would end a connection that agreed to none of them.
    Unknown,
}

/// A handshake that may be accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Upgrade<'a> {
    /// `Sec-WebSocket-Key`.
    pub key: &'a str,
    /// What frames the client wants to speak in.
    pub subprotocol: Subprotocol,
}

/// Why a handshake is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UpgradeError {
    /// An ordinary request to the address of the WebSocket.
    #[error("this address speaks WebSocket: the request must ask for an upgrade")]
    NotAnUpgrade,
    /// Not GET.
    #[error("a WebSocket handshake is a GET request")]
    Method,
    /// HTTP/1.0.
    #[error("a WebSocket handshake needs HTTP/1.1")]
    HttpVersion,
    /// A body.
    #[error("a WebSocket handshake has no body")]
    Body,
    /// Missing, repeated, or not 16 bytes in base64.
    #[error("there must be one Sec-WebSocket-Key of 16 bytes in base64")]
    Key,
    /// Missing or repeated.
    #[error("there must be one Sec-WebSocket-Version")]
    VersionMissing,
    /// Not 13.
    #[error("only version 13 of the WebSocket protocol is spoken")]
    Version,
}

impl UpgradeError {
    /// The status that the peer is told.
    pub fn status(self) -> u16 {
        match self {
            // For clients that could do better: the headers name the version that is spoken.
            Self::Version => 426,
            Self::NotAnUpgrade | Self::Method | Self::HttpVersion | Self::Body | Self::Key | Self::VersionMissing => {
                400
            }
        }
    }

    /// Header lines that belong to that status.
    pub fn headers(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::NotAnUpgrade | Self::Version => {
                &[("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Version", "13")]
            }
            Self::Method | Self::HttpVersion | Self::Body | Self::Key | Self::VersionMissing => &[],
        }
    }
}

/// Checks the handshake in a request. Extensions are declined by not naming them in the answer.
pub fn check_upgrade<'a>(request: &Request<'a>) -> Result<Upgrade<'a>, UpgradeError> {
    if !request.header_has("upgrade", "websocket") || !request.header_has("connection", "upgrade") {
        return Err(UpgradeError::NotAnUpgrade);
    }
    if request.method != Method::Get {
        return Err(UpgradeError::Method);
    }
    if !request.is_1_1 {
        return Err(UpgradeError::HttpVersion);
    }
    if !request.body.is_empty() {
        return Err(UpgradeError::Body);
    }
    match request.header("sec-websocket-version") {
        Ok(Some("13")) => {}
        Ok(Some(_)) => return Err(UpgradeError::Version),
        Ok(None) | Err(_) => return Err(UpgradeError::VersionMissing),
    }
    let key = request.header("sec-websocket-key").ok().flatten().ok_or(UpgradeError::Key)?;
    let mut nonce = [0; 18];
    if key.len() != 24 || STANDARD.decode_slice(key, &mut nonce) != Ok(16) {
        return Err(UpgradeError::Key);
    }
    Ok(Upgrade { key, subprotocol: choose_subprotocol(request) })
}

fn choose_subprotocol(request: &Request<'_>) -> Subprotocol {
    let mut offered = request.header_words("sec-websocket-protocol");
    if request.header_values("sec-websocket-protocol").next().is_none() {
        Subprotocol::NotOffered
    } else if offered.any(|name| name == SUBPROTOCOL_JSON) {
        Subprotocol::Json
    } else {
        Subprotocol::Unknown
    }
}

/// Appends the answer that accepts a handshake. Frames follow it.
pub fn write_switching(out: &mut Vec<u8>, key: &str, subprotocol: Option<&str>) {
    write_status_line(out, 101);
    write_header(out, "Upgrade", "websocket");
    write_header(out, "Connection", "Upgrade");
    write_header(out, "Sec-WebSocket-Accept", &derive_accept_key(key.as_bytes()));
    if let Some(name) = subprotocol {
        write_header(out, "Sec-WebSocket-Protocol", name);
    }
    out.extend_from_slice(b"\r\n");
}

/// What a client asks with.
#[derive(Debug, Clone, Copy)]
pub struct UpgradeRequest<'a> {
    /// `Host`: name or address, with the port unless it is the usual one.
    pub host: &'a str,
    /// Path and query.
    pub target: &'a str,
    /// Sixteen random bytes, new for each connection.
    pub nonce: [u8; 16],
    /// A subprotocol to offer.
    pub subprotocol: Option<&'a str>,
    /// A token for `Authorization: Bearer`.
    pub bearer: Option<&'a str>,
}

/// Appends a client's handshake.
pub fn write_upgrade_request(out: &mut Vec<u8>, request: &UpgradeRequest<'_>) {
    out.extend_from_slice(b"GET ");
    out.extend_from_slice(request.target.as_bytes());
    out.extend_from_slice(b" HTTP/1.1\r\n");
    write_header(out, "Host", request.host);
    write_header(out, "Upgrade", "websocket");
    write_header(out, "Connection", "Upgrade");
    write_header(out, "Sec-WebSocket-Version", "13");
    write_header(out, "Sec-WebSocket-Key", &STANDARD.encode(request.nonce));
    if let Some(name) = request.subprotocol {
        write_header(out, "Sec-WebSocket-Protocol", name);
    }
    if let Some(token) = request.bearer {
        write_header(out, "Authorization", &format!("Bearer {token}"));
    }
    out.extend_from_slice(b"\r\n");
}

/// Why a client does not take an answer for the WebSocket that it asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UpgradeRefused {
    /// Another status: the server's reason is in the body behind the head.
    #[error("the server answered with status {0}")]
    Status(u16),
    /// Not HTTP, or a head that is too long.
    #[error("the answer is not an HTTP response")]
    Malformed,
    /// 101, but not to this handshake, or with an extension or subprotocol that was not offered.
    #[error("the answer does not fit the handshake: {0}")]
    Mismatch(&'static str),
}

/// Reads the answer to a handshake: the bytes of its head, once whole. Frames follow them.
pub fn read_upgrade_response(input: &[u8], request: &UpgradeRequest<'_>) -> Result<Option<usize>, UpgradeRefused> {
    const HEAD_BYTES_MAX: usize = 16 * 1024;
    let Some(head) = read_response_head(input)? else {
        return if input.len() > HEAD_BYTES_MAX { Err(UpgradeRefused::Malformed) } else { Ok(None) };
    };
    if head.status != 101 {
        return Err(UpgradeRefused::Status(head.status));
    }
    let accept = derive_accept_key(STANDARD.encode(request.nonce).as_bytes());
    if head.accept.as_deref() != Some(accept.as_str()) {
        return Err(UpgradeRefused::Mismatch("Sec-WebSocket-Accept"));
    }
    if !head.is_websocket {
        return Err(UpgradeRefused::Mismatch("Upgrade"));
    }
    if head.has_extensions {
        return Err(UpgradeRefused::Mismatch("Sec-WebSocket-Extensions"));
    }
    if head.subprotocol.is_some() && head.subprotocol.as_deref() != request.subprotocol {
        return Err(UpgradeRefused::Mismatch("Sec-WebSocket-Protocol"));
    }
    Ok(Some(head.bytes))
}

/// The head of a response, as far as a client of ours needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResponseHead {
    /// The status.
    pub status: u16,
    /// Bytes of the head.
    pub bytes: usize,
    /// Bytes of the body behind it, by `Content-Length`.
    pub body_bytes: usize,
    /// Whether the server closes the connection behind it.
    pub closes: bool,
    accept: Option<String>,
    subprotocol: Option<String>,
    is_websocket: bool,
    has_extensions: bool,
}

/// Reads the head of a response, once it is whole.
pub fn read_response_head(input: &[u8]) -> Result<Option<ResponseHead>, UpgradeRefused> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut response = httparse::Response::new(&mut headers);
    let bytes = match response.parse(input) {
        Ok(httparse::Status::Complete(bytes)) => bytes,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(_) => return Err(UpgradeRefused::Malformed),
    };
    let text = |name: &str| {
        let header = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name))?;
        std::str::from_utf8(header.value).ok().map(str::trim)
    };
    Ok(Some(ResponseHead {
        status: response.code.ok_or(UpgradeRefused::Malformed)?,
        bytes,
        body_bytes: text("content-length").map_or(Ok(0), str::parse).map_err(|_| UpgradeRefused::Malformed)?,
        closes: text("connection").is_some_and(|value| value.eq_ignore_ascii_case("close")),
        accept: text("sec-websocket-accept").map(str::to_owned),
        subprotocol: text("sec-websocket-protocol").map(str::to_owned),
        is_websocket: text("upgrade").is_some_and(|value| value.eq_ignore_ascii_case("websocket")),
        has_extensions: text("sec-websocket-extensions").is_some(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::{HttpLimits, Progress, RequestReader};

    /// The status of the answer to a handshake made of these lines.
    fn status(head: &str) -> u16 {
        let head = format!("{head}\r\n\r\n");
        match RequestReader::new().poll(&HttpLimits::default(), head.as_bytes()) {
            Ok(Progress::Request(request)) => check_upgrade(&request).map_or_else(UpgradeError::status, |_| 101),
            other => panic!("{other:?}"),
        }
    }

    const GOOD: &str = "GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: WebSocket\r\nConnection: keep-alive, Upgrade\r\n\
                        Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==";

    #[test]
    fn handshakes_are_answered_as_the_rfc_says() {
        assert_eq!(status(GOOD), 101);
        assert_eq!(status(&GOOD.replace("GET", "POST")), 400);
        assert_eq!(status(&GOOD.replace("HTTP/1.1", "HTTP/1.0")), 400);
        assert_eq!(status(&GOOD.replace("Version: 13", "Version: 8")), 426);
        assert_eq!(status(&GOOD.replace("Sec-WebSocket-Version: 13\r\n", "")), 400);
        assert_eq!(status(&GOOD.replace("Sec-WebSocket-Key: ", "Other: ")), 400);
        assert_eq!(status(&GOOD.replace("dGhl", "")), 400);
        assert_eq!(status(&format!("{GOOD}\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==")), 400);
        assert_eq!(status(&GOOD.replace("Upgrade: WebSocket\r\n", "")), 400);
    }

    #[test]
    fn both_ends_agree() {
        let offer = UpgradeRequest {
            host: "localhost:8800",
            target: "/ws",
            nonce: *b"the sample nonce",
            subprotocol: Some(SUBPROTOCOL_JSON),
            bearer: Some("token"),
        };
        let mut asked = Vec::new();
        write_upgrade_request(&mut asked, &offer);
        let mut reader = RequestReader::new();
        let Ok(Progress::Request(request)) = reader.poll(&HttpLimits::default(), &asked) else { panic!() };
        let upgrade = check_upgrade(&request).unwrap();
        assert_eq!(upgrade.subprotocol, Subprotocol::Json);
        assert_eq!(request.bearer(), Ok(Some("token")));
        let mut answer = Vec::new();
        write_switching(&mut answer, upgrade.key, Some(SUBPROTOCOL_JSON));
        let text = String::from_utf8(answer.clone()).unwrap();
        assert!(text.contains("Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"), "{text}");
        for cut in 0..answer.len() {
            assert_eq!(read_upgrade_response(&answer[..cut], &offer), Ok(None));
        }
        assert_eq!(read_upgrade_response(&answer, &offer), Ok(Some(answer.len())));
        let other = UpgradeRequest { nonce: [0; 16], ..offer };
        assert_eq!(read_upgrade_response(&answer, &other), Err(UpgradeRefused::Mismatch("Sec-WebSocket-Accept")));
        assert_eq!(
            read_upgrade_response(b"HTTP/1.1 401 Unauthorized\r\n\r\n", &offer),
            Err(UpgradeRefused::Status(401))
        );
    }
}
