//! Errors over HTTP: RFC 9457 problem documents.

use serde_json::json;
use wire::http::{Response, write_response};
use wire::protocol::ErrorCode;

/// What an HTTP client is told went wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem<'a> {
    pub status: u16,
    /// The same word as in an error frame, or one for what only HTTP has.
    pub code: &'a str,
    /// For a person.
    pub detail: &'a str,
    /// Where in the request, if it is known.
    pub path: Option<&'a str>,
    /// Whether sending the same again can succeed.
    pub retryable: bool,
    /// When to try again.
    pub after_ms: Option<u32>,
    /// Further header lines.
    pub headers: &'a [(&'a str, &'a str)],
}

impl<'a> Problem<'a> {
    /// A problem that only HTTP has.
    pub(crate) fn new(status: u16, code: &'a str, detail: &'a str) -> Self {
        Self { status, code, detail, path: None, retryable: false, after_ms: None, headers: &[] }
    }

    /// The problem that is an error frame elsewhere.
    pub(crate) fn of_code(code: ErrorCode, detail: &'a str) -> Self {
        let detail = if detail.is_empty() { code.meaning() } else { detail };
        Self { retryable: code.retryable(), ..Self::new(code.status(), code.as_str(), detail) }
    }
}

/// Appends the response that tells of `problem`.
pub(crate) fn write_problem(out: &mut Vec<u8>, problem: &Problem<'_>, keep_alive: bool, head_only: bool) {
    let mut body = json!({
        "type": "about:blank",
        "title": wire::http::reason_phrase(problem.status),
        "status": problem.status,
        "code": problem.code,
        "detail": problem.detail,
        "retryable": problem.retryable,
    });
    if let Some(path) = problem.path {
        body["path"] = path.into();
    }
    if let Some(after_ms) = problem.after_ms {
        body["after_ms"] = after_ms.into();
    }
    let mut headers = problem.headers.to_vec();
    let seconds = problem.after_ms.map(|ms| ms.div_ceil(1000).max(1).to_string());
    if let Some(seconds) = &seconds {
        headers.push(("Retry-After", seconds));
    }
    if problem.status == 401 {
        headers.push(("WWW-Authenticate", "Bearer"));
    }
    let response = Response {
        status: problem.status,
        content_type: "application/problem+json",
        headers: &headers,
        keep_alive,
        head_only,
    };
    write_response(out, &response, body.to_string().as_bytes());
}
