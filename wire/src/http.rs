//! HTTP/1.1 without I/O: requests in, responses out, over buffers that belong to the caller.
//!
//! One request at a time on a connection. Heads are read by httparse, once they are whole: a line
//! scanner finds their end, looking at each byte once however small the pieces are, and refuses what
//! is over a limit before anything is parsed. Ambiguity (two lengths, bare line feeds, spaces before
//! colons) is refused rather than resolved: two parsers that resolve it differently are a hole.
//!
//! No `Date` is sent, because this crate has no clock; RFC 9110, section 6.6.1 allows that.

use std::borrow::Cow;
use std::mem::MaybeUninit;

use memchr::memchr2;

/// How much one request may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HttpLimits {
    /// Bytes of the request line's target.
    pub target_bytes_max: u32,
    /// Bytes of one header line.
    pub line_bytes_max: u32,
    /// Bytes of the head.
    pub head_bytes_max: u32,
    /// Bytes of the body.
    pub body_bytes_max: u32,
}

impl Default for HttpLimits {
    fn default() -> Self {
        Self {
            target_bytes_max: 8 * 1024,
            line_bytes_max: 8 * 1024,
            head_bytes_max: 32 * 1024,
            // As many as a WebSocket message may have, for the same reason.
            body_bytes_max: crate::websocket::Limits::for_bodies_of(64 * 1024).message_bytes_max,
        }
    }
}

/// Header lines of one request.
pub const HEADERS_MAX: usize = 64;

/// A request that is refused before anything looks at what it asks for. The connection closes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HttpError {
    /// Section 9112-2.2: lines end with CR LF here.
    #[error("a line does not end with CR LF")]
    BareLineFeed,
    /// A zero byte.
    #[error("the head contains a zero byte")]
    ZeroByte,
    /// Not a request line and header lines.
    #[error("the request is malformed")]
    Malformed,
    /// Neither 1.0 nor 1.1.
    #[error("the HTTP version is not supported")]
    Version,
    /// RFC 9112, section 3.2: exactly one.
    #[error("there must be exactly one Host header")]
    Host,
    /// Two lengths, or one that is not a plain number.
    #[error("Content-Length is repeated or not a number")]
    BadLength,
    /// Both ways to delimit a body.
    #[error("Content-Length and Transfer-Encoding together")]
    TwoLengths,
    /// A body without a length up front.
    #[error("a body needs a Content-Length; transfer codings are not accepted")]
    LengthRequired,
    /// The path hides something behind percent signs, or climbs.
    #[error("the path is not acceptable")]
    BadPath,
    /// The request line.
    #[error("the request target is too long")]
    TargetTooLong,
    /// Lines, or all of them together.
    #[error("the header is too large")]
    HeadTooLarge,
    /// By its declared length; nothing was allocated for it.
    #[error("the body is too large")]
    BodyTooLarge,
}

impl HttpError {
    /// The status that the peer is told.
    pub fn status(self) -> u16 {
        match self {
            Self::BareLineFeed
            | Self::ZeroByte
            | Self::Malformed
            | Self::Host
            | Self::BadLength
            | Self::TwoLengths
            | Self::BadPath => 400,
            Self::LengthRequired => 411,
            Self::BodyTooLarge => 413,
            Self::TargetTooLong => 414,
            Self::HeadTooLarge => 431,
            Self::Version => 505,
        }
    }
}

/// What a request asks to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    Get,
    Head,
    Post,
    Put,
    Patch,
    Delete,
    Options,
    Other,
}

/// A request, borrowed from the input.
#[derive(Debug)]
pub struct Request<'a> {
    /// What to do.
    pub method: Method,
    /// To what: decoded, without `.` and `..`, beginning with a slash.
    pub path: Cow<'a, str>,
    /// What follows the question mark, not decoded; see [`Request::parameter`].
    pub query: &'a str,
    /// The connection may carry another request behind this one.
    pub keep_alive: bool,
    /// Whether the version is 1.1.
    pub is_1_1: bool,
    /// What came with it.
    pub body: &'a [u8],
    /// Bytes of head and body at the front of the input.
    pub bytes: usize,
    headers: Vec<httparse::Header<'a>>,
}

/// A header or parameter that may come once came twice, or is not text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("repeated or unreadable")]
pub struct Ambiguous;

impl<'a> Request<'a> {
    /// All values of a header, in order.
    pub fn header_values(&self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        self.headers.iter().filter(move |header| header.name.eq_ignore_ascii_case(name)).map(|header| header.value)
    }

    /// The value of a header that may come once.
    pub fn header(&self, name: &str) -> Result<Option<&'a str>, Ambiguous> {
        let mut values = self.header_values(name);
        let Some(value) = values.next() else { return Ok(None) };
        if values.next().is_some() {
            return Err(Ambiguous);
        }
        std::str::from_utf8(value).map(|value| Some(value.trim())).map_err(|_| Ambiguous)
    }

    /// Whether one of a header's comma-separated words is `word`.
    pub fn header_has(&self, name: &str, word: &str) -> bool {
        self.header_words(name).any(|found| found.eq_ignore_ascii_case(word))
    }

    /// The comma-separated words of a header, over all its lines.
    pub fn header_words(&self, name: &str) -> impl Iterator<Item = &'a str> {
        self.header_values(name)
            .filter_map(|value| std::str::from_utf8(value).ok())
            .flat_map(|value| value.split(','))
            .map(str::trim)
    }

    /// The token of `Authorization: Bearer`.
    pub fn bearer(&self) -> Result<Option<&'a str>, Ambiguous> {
        let Some(value) = self.header("authorization")? else { return Ok(None) };
        let Some((scheme, token)) = value.split_once(' ') else { return Ok(None) };
        Ok(scheme.eq_ignore_ascii_case("bearer").then(|| token.trim()))
    }

    /// A query parameter that may come once, decoded.
    pub fn parameter(&self, name: &str) -> Result<Option<Cow<'a, str>>, Ambiguous> {
        let mut found = None;
        for pair in self.query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            if percent_decode(key, true).ok_or(Ambiguous)? == name {
                let value = percent_decode(value, true).ok_or(Ambiguous)?;
                if found.replace(value).is_some() {
                    return Err(Ambiguous);
                }
            }
        }
        Ok(found)
    }

    /// Whether it asks for another protocol on this connection.
    pub fn asks_for_upgrade(&self) -> bool {
        self.header_values("upgrade").next().is_some()
    }
}

/// What a connection has said so far of its next request.
#[derive(Debug)]
pub enum Progress<'a> {
    /// More input is needed.
    Incomplete,
    /// More input is needed, and the client waits to be told so: write [`CONTINUE`]. Said once.
    Continue,
    /// The request, whole.
    Request(Request<'a>),
}

/// What a client waits for that sent `Expect: 100-continue`.
pub const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// How far the next request of a connection has been looked at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RequestReader {
    /// Bytes that need not be looked at again.
    scanned: u32,
    /// Where the line begins that `scanned` lies in.
    line_start: u32,
    /// Lines that have ended.
    lines: u16,
    told_to_continue: bool,
    /// Bytes of the whole request, once its head was read.
    bytes: Option<u32>,
}

impl RequestReader {
    /// Nothing seen of the next request.
    pub fn new() -> Self {
        Self::default()
    }

    /// Looks at `input`: everything that arrived since the last request, what was seen before included.
    ///
    /// After a request, the caller removes its `bytes` from the front; this state has begun anew.
    pub fn poll<'a>(&mut self, limits: &HttpLimits, input: &'a [u8]) -> Result<Progress<'a>, HttpError> {
        if let Some(bytes) = self.bytes {
            if input.len() < bytes as usize {
                return Ok(Progress::Incomplete);
            }
        } else if !self.scan(limits, input)? {
            return Ok(Progress::Incomplete);
        }
        let request = parse(&input[..self.scanned as usize], limits)?;
        let (request, body_bytes) = request;
        let head_bytes = self.scanned as usize;
        let bytes = head_bytes + body_bytes;
        if input.len() < bytes {
            self.bytes = Some(bytes as u32);
            let waits = request.header_has("expect", "100-continue") && request.is_1_1;
            let tell = waits && input.len() == head_bytes && !std::mem::replace(&mut self.told_to_continue, true);
            return Ok(if tell { Progress::Continue } else { Progress::Incomplete });
        }
        *self = Self::new();
        Ok(Progress::Request(Request { body: &input[head_bytes..bytes], bytes, ..request }))
    }

    /// Whether anything of a request has arrived, so that silence now is a slow client and not an idle one.
    pub fn has_begun(self) -> bool {
        self.scanned > 0
    }

    /// Goes on looking for the empty line; `true` once `scanned` is the length of the head.
    fn scan(&mut self, limits: &HttpLimits, input: &[u8]) -> Result<bool, HttpError> {
        loop {
            let from = self.scanned as usize;
            let Some(end) = memchr2(b'\n', 0, &input[from..]) else {
                self.check_line(limits, input.len())?;
                self.scanned = input.len() as u32;
                return Ok(false);
            };
            let end = from + end;
            if input[end] == 0 {
                return Err(HttpError::ZeroByte);
            }
            let line = &input[self.line_start as usize..end];
            if line.last() != Some(&b'\r') {
                return Err(HttpError::BareLineFeed);
            }
            self.check_line(limits, end)?;
            self.scanned = end as u32 + 1;
            if line.len() == 1 {
                // An empty line before the request line may be skipped (RFC 9112, section 2.2), or not.
                return if self.lines > 0 { Ok(true) } else { Err(HttpError::Malformed) };
            }
            self.lines += 1;
            self.line_start = self.scanned;
            if usize::from(self.lines) > HEADERS_MAX + 1 {
                return Err(HttpError::HeadTooLarge);
            }
        }
    }

    /// The limits, for a line that reaches up to `end`.
    fn check_line(self, limits: &HttpLimits, end: usize) -> Result<(), HttpError> {
        // Room for the method and the version beside the target.
        const REQUEST_LINE_BYTES: u32 = 32;
        let line_bytes = end as u32 - self.line_start;
        if self.lines == 0 && line_bytes > limits.target_bytes_max + REQUEST_LINE_BYTES {
            return Err(HttpError::TargetTooLong);
        }
        if (self.lines > 0 && line_bytes > limits.line_bytes_max) || end as u32 > limits.head_bytes_max {
            return Err(HttpError::HeadTooLarge);
        }
        Ok(())
    }
}

/// Reads a whole head; with it, how many bytes of body follow.
fn parse<'a>(head: &'a [u8], limits: &HttpLimits) -> Result<(Request<'a>, usize), HttpError> {
    let mut headers = [const { MaybeUninit::uninit() }; HEADERS_MAX];
    let mut parsed = httparse::Request::new(&mut []);
    match parsed.parse_with_uninit_headers(head, &mut headers) {
        Ok(httparse::Status::Complete(bytes)) if bytes == head.len() => {}
        Err(httparse::Error::Version) => return Err(HttpError::Version),
        Err(httparse::Error::TooManyHeaders) => return Err(HttpError::HeadTooLarge),
        Ok(_) | Err(_) => return Err(HttpError::Malformed),
    }
    let (Some(method), Some(target), Some(version)) = (parsed.method, parsed.path, parsed.version) else {
        return Err(HttpError::Malformed);
    };
    if target.len() > limits.target_bytes_max as usize {
        return Err(HttpError::TargetTooLong);
    }
    let (path, query) = split_target(target)?;
    let mut request = Request {
        method: read_method(method),
        path: decode_path(path)?,
        query,
        keep_alive: false,
        is_1_1: version == 1,
        body: &[],
        bytes: 0,
        headers: parsed.headers.to_vec(),
    };
    let hosts = request.header_values("host").count();
    if hosts > 1 || (hosts == 0 && request.is_1_1) {
        return Err(HttpError::Host);
    }
    request.keep_alive = request.is_1_1 && !request.header_has("connection", "close");
    let body_bytes = body_length(&request)?;
    if body_bytes > u64::from(limits.body_bytes_max) {
        return Err(HttpError::BodyTooLarge);
    }
    Ok((request, body_bytes as usize))
}

fn read_method(method: &str) -> Method {
    match method {
        "GET" => Method::Get,
        "HEAD" => Method::Head,
        "POST" => Method::Post,
        "PUT" => Method::Put,
        "PATCH" => Method::Patch,
        "DELETE" => Method::Delete,
        "OPTIONS" => Method::Options,
        _ => Method::Other,
    }
}

fn body_length(request: &Request<'_>) -> Result<u64, HttpError> {
    let mut lengths = request.header_values("content-length");
    let length = lengths.next();
    if length.is_some() && request.header_values("transfer-encoding").next().is_some() {
        return Err(HttpError::TwoLengths);
    }
    if request.header_values("transfer-encoding").next().is_some() {
        return Err(HttpError::LengthRequired);
    }
    let Some(length) = length else { return Ok(0) };
    let digits = !length.is_empty() && length.iter().all(u8::is_ascii_digit);
    if lengths.next().is_some() || !digits {
        return Err(HttpError::BadLength);
    }
    let digits = std::str::from_utf8(length).expect("ASCII digits");
    // More digits than fit are a length all the same, and too large.
    Ok(digits.parse().unwrap_or(u64::MAX))
}

/// Path and query of a target in origin form, or in absolute form (RFC 9112, section 3.2.2).
fn split_target(target: &str) -> Result<(&str, &str), HttpError> {
    let target = match target.strip_prefix("http://").or_else(|| target.strip_prefix("https://")) {
        Some(rest) => rest.find('/').map_or("/", |slash| &rest[slash..]),
        None => target,
    };
    if !target.starts_with('/') || target.contains('#') {
        return Err(HttpError::BadPath);
    }
    Ok(target.split_once('?').unwrap_or((target, "")))
}

/// Decodes a path; refuses whatever would mean something else after decoding than before.
fn decode_path(path: &str) -> Result<Cow<'_, str>, HttpError> {
    let decoded = percent_decode(path, false).ok_or(HttpError::BadPath)?;
    let hides = decoded.bytes().filter(|byte| matches!(byte, b'/' | b'\\' | b'.' | b'%')).count()
        != path.bytes().filter(|byte| matches!(byte, b'/' | b'.')).count();
    let climbs = decoded.split('/').any(|segment| segment == "." || segment == "..");
    if hides || climbs || decoded.contains(|c: char| c.is_control()) {
        return Err(HttpError::BadPath);
    }
    Ok(decoded)
}

/// `None` if a percent sign is not followed by two digits, or what comes out is not UTF-8.
fn percent_decode(text: &str, plus_is_space: bool) -> Option<Cow<'_, str>> {
    if !text.bytes().any(|byte| byte == b'%' || (plus_is_space && byte == b'+')) {
        return Some(Cow::Borrowed(text));
    }
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => {
                let high = (bytes.next()? as char).to_digit(16)?;
                let low = (bytes.next()? as char).to_digit(16)?;
                (high << 4 | low) as u8
            }
            b'+' if plus_is_space => b' ',
            byte => byte,
        });
    }
    String::from_utf8(decoded).ok().map(Cow::Owned)
}

/// What a response says before its body.
#[derive(Debug, Clone, Copy)]
pub struct Response<'a> {
    /// The status.
    pub status: u16,
    /// `Content-Type`, if there is a body.
    pub content_type: &'a str,
    /// Further header lines.
    pub headers: &'a [(&'a str, &'a str)],
    /// Whether the connection goes on.
    pub keep_alive: bool,
    /// Leaves the body out and its length in, as the answer to HEAD wants.
    pub head_only: bool,
}

impl Default for Response<'_> {
    fn default() -> Self {
        Self { status: 200, content_type: "application/json", headers: &[], keep_alive: true, head_only: false }
    }
}

/// Appends a response.
pub fn write_response(out: &mut Vec<u8>, response: &Response<'_>, body: &[u8]) {
    write_status_line(out, response.status);
    for (name, value) in response.headers {
        write_header(out, name, value);
    }
    if !body.is_empty() {
        write_header(out, "Content-Type", response.content_type);
        write_header(out, "X-Content-Type-Options", "nosniff");
    }
    write_header(out, "Content-Length", &body.len().to_string());
    if !response.keep_alive {
        write_header(out, "Connection", "close");
    }
    out.extend_from_slice(b"\r\n");
    if !response.head_only {
        out.extend_from_slice(body);
    }
}

pub(crate) fn write_status_line(out: &mut Vec<u8>, status: u16) {
    out.extend_from_slice(b"HTTP/1.1 ");
    // A status has three digits.
    out.extend([100, 10, 1].map(|place| b'0' + (status / place % 10) as u8));
    out.push(b' ');
    out.extend_from_slice(reason_phrase(status).as_bytes());
    out.extend_from_slice(b"\r\n");
}

pub(crate) fn write_header(out: &mut Vec<u8>, name: &str, value: &str) {
    debug_assert!(!value.contains(['\r', '\n']), "header values are ours, not the peer's");
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value.as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// The words behind a status.
pub fn reason_phrase(status: u16) -> &'static str {
    match status {
        101 => "Switching Protocols",
        200 => "OK",
        201 => "Created",
        204 => "No Content",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        409 => "Conflict",
        411 => "Length Required",
        413 => "Content Too Large",
        414 => "URI Too Long",
        415 => "Unsupported Media Type",
        426 => "Upgrade Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        503 => "Service Unavailable",
        505 => "HTTP Version Not Supported",
        _ => "Other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Method, path, query, body and whether the connection goes on.
    type Seen = (Method, String, String, Vec<u8>, bool);

    /// The request, or the status of the refusal.
    fn read(bytes: &[u8]) -> Result<Option<Seen>, u16> {
        read_in_pieces(bytes, bytes.len().max(1))
    }

    fn read_in_pieces(bytes: &[u8], piece_bytes: usize) -> Result<Option<Seen>, u16> {
        let mut reader = RequestReader::new();
        for end in (piece_bytes..bytes.len()).step_by(piece_bytes).chain([bytes.len()]) {
            if let Progress::Request(request) =
                reader.poll(&HttpLimits::default(), &bytes[..end]).map_err(HttpError::status)?
            {
                return Ok(Some((
                    request.method,
                    request.path.to_string(),
                    request.query.to_owned(),
                    request.body.to_vec(),
                    request.keep_alive,
                )));
            }
        }
        Ok(None)
    }

    #[test]
    fn a_request_reads_the_same_in_pieces_of_any_size() {
        let bytes = b"POST /v1/messages?a=%20b HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbody";
        let whole = read(bytes).unwrap().unwrap();
        assert_eq!(whole, (Method::Post, "/v1/messages".into(), "a=%20b".into(), b"body".to_vec(), true));
        for piece_bytes in 1..bytes.len() {
            assert_eq!(read_in_pieces(bytes, piece_bytes).unwrap(), Some(whole.clone()), "{piece_bytes}");
        }
        for cut in 0..bytes.len() {
            assert_eq!(read(&bytes[..cut]), Ok(None), "{cut}");
        }
    }

    #[test]
    fn ambiguity_is_refused() {
        let status = |lines: &str| {
            let text = format!("GET / HTTP/1.1\r\nHost: x\r\n{lines}\r\n");
            let whole = read(text.as_bytes()).err();
            assert_eq!(read_in_pieces(text.as_bytes(), 1).err(), whole, "{lines}");
            whole
        };
        assert_eq!(status(""), None);
        assert_eq!(status("Content-Length: 1\r\nTransfer-Encoding: chunked\r\n"), Some(400));
        assert_eq!(status("Content-Length: 1\r\nContent-Length: 1\r\n"), Some(400));
        assert_eq!(status("Content-Length: 1, 1\r\n"), Some(400));
        assert_eq!(status("Content-Length: +1\r\n"), Some(400));
        assert_eq!(status("Content-Length: \r\n"), Some(400));
        assert_eq!(status("Transfer-Encoding: chunked\r\n"), Some(411));
        assert_eq!(status("Content-Length: 99999999999999999999999\r\n"), Some(413));
        assert_eq!(status("A: b\nC: d\r\n"), Some(400));
        assert_eq!(status("A: b\0\r\n"), Some(400));
        assert_eq!(status("A : b\r\n"), Some(400));
        assert_eq!(status("A: b\r\n folded\r\n"), Some(400));
        assert_eq!(status("A: b\rc\r\n"), Some(400));
        assert_eq!(status("no colon\r\n"), Some(400));
        assert_eq!(status("Host: y\r\n"), Some(400));
        assert_eq!(status(&format!("A: {}\r\n", "b".repeat(8_192))), Some(431));
        assert_eq!(status(&"A: b\r\n".repeat(64)), Some(431));
        assert_eq!(status(&"A: b\r\n".repeat(63)), None);
        assert_eq!(status(&format!("A: {}\r\n", "b".repeat(8_000)).repeat(5)), Some(431));
        assert_eq!(read(b"GET / HTTP/1.1\r\n\r\n"), Err(400));
        assert_eq!(read(b"GET / HTTP/2.0\r\nHost: x\r\n\r\n"), Err(505));
        assert_eq!(read(b"\r\n"), Err(400));
        assert_eq!(read(b"\0"), Err(400));
        let long = format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "a".repeat(16_384));
        assert_eq!(read(long.as_bytes()), Err(414));
    }

    #[test]
    fn paths_say_what_they_mean() {
        let path = |path: &str| {
            read(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).map(|request| request.unwrap().1)
        };
        assert_eq!(path("/v1/conversations/dm.1.2/messages?x"), Ok("/v1/conversations/dm.1.2/messages".into()));
        assert_eq!(path("/a%20%c3%a9"), Ok("/a é".into()));
        assert_eq!(path("http://host:1/a?b"), Ok("/a".into()));
        for bad in [
            "/%2e%2e/x",
            "/%2E/x",
            "/a/../b",
            "/./a",
            "/a%00",
            "/a%2fb",
            "/a%5cb",
            "/a%",
            "/a%zz",
            "/%ff",
            "*",
            "/%252e",
        ] {
            assert_eq!(path(bad), Err(400), "{bad}");
        }
    }

    #[test]
    fn parameters_come_once_and_decoded() {
        let bytes = b"GET /?a=1&b=x+y%26&c=1&c=2&d HTTP/1.1\r\nHost: x\r\nAuthorization: bearer abc\r\n\r\n";
        let mut reader = RequestReader::new();
        let Ok(Progress::Request(request)) = reader.poll(&HttpLimits::default(), bytes) else { panic!() };
        assert_eq!(request.parameter("a").unwrap().as_deref(), Some("1"));
        assert_eq!(request.parameter("b").unwrap().as_deref(), Some("x y&"));
        assert_eq!(request.parameter("c"), Err(Ambiguous));
        assert_eq!(request.parameter("d").unwrap().as_deref(), Some(""));
        assert_eq!(request.parameter("e"), Ok(None));
        assert_eq!(request.bearer(), Ok(Some("abc")));
    }

    #[test]
    fn a_client_that_waits_to_be_told_is_told_once() {
        let head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n";
        let mut reader = RequestReader::new();
        let limits = HttpLimits::default();
        assert!(matches!(reader.poll(&limits, head), Ok(Progress::Continue)));
        assert!(matches!(reader.poll(&limits, head), Ok(Progress::Incomplete)));
        let whole = [&head[..], b"ok"].concat();
        assert!(matches!(reader.poll(&limits, &whole), Ok(Progress::Request(request)) if request.body == b"ok"));
        assert_eq!(reader, RequestReader::new());
    }
}
