//! The HTTP side of a connection: requests are put together, routed and answered here. Some become
//! WebSockets (`upgrade.rs`), others are questions to the rules (`rest.rs`).

use std::borrow::Cow;
use std::panic::{AssertUnwindSafe, catch_unwind};

use chat::SessionKey;
use wire::http::{CONTINUE, HttpLimits, Method, Progress, Request, RequestReader, Response, write_response};
use wire::json::{encode_error_problem, encode_problem};
use wire::protocol::{ErrorCode, ErrorFrame};
use wire::websocket::Limits;

use crate::core::Core;
use crate::effects::error_frame;
use crate::shard::Shard;
use crate::table::{Deadline, Flag, Stage};

/// Bytes that a client may send ahead while its request is being answered.
const AHEAD_BYTES_MAX: usize = 64 * 1024;

/// A connection that speaks HTTP.
#[derive(Debug, Default)]
pub(crate) struct Http {
    reader: RequestReader,
    /// What has arrived of the next request.
    input: Vec<u8>,
    /// The rules are at work on a request.
    pub answering: Option<Answering>,
}

/// What the answer to a request needs to know of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Answering {
    pub session: SessionKey,
    pub reply: Reply,
}

/// How a request wants to be answered.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reply {
    pub keep_alive: bool,
    pub head_only: bool,
}

impl Reply {
    fn to(request: &Request<'_>) -> Self {
        Self { keep_alive: request.keep_alive, head_only: request.method == Method::Head }
    }
}

/// What becomes of a connection after a request.
pub(crate) enum Next {
    /// It waits for the next request.
    Request,
    /// It ends once the answer is sent.
    Close,
    /// It is a WebSocket now.
    Switched(Stage),
    /// The answer will come, now or in a later turn, through [`Core::answer`].
    Later,
}

impl Shard {
    /// Bytes arrived on a connection that speaks HTTP.
    pub(crate) fn http_received(&mut self, index: u32, bytes: &[u8]) {
        let mut kept = std::mem::take(&mut self.core.http(index).input);
        // Most requests arrive in one piece and are read where they lie.
        if kept.is_empty() {
            return self.read_requests(index, Cow::Borrowed(bytes));
        }
        kept.extend_from_slice(bytes);
        self.read_requests(index, Cow::Owned(kept));
    }

    /// Works on what has arrived, and keeps what is left in the memory that it is in.
    fn read_requests(&mut self, index: u32, input: Cow<'_, [u8]>) {
        // Taken out while it is worked on, and put back at the end unless the connection ends or changes.
        let mut reader = self.core.http(index).reader;
        let mut rest = &input[..];
        while !self.answers_first(index) && !rest.is_empty() {
            let body_bytes_max = Limits::for_bodies_of(self.core.settings.body_bytes_max as u32).message_bytes_max;
            let limits = HttpLimits { body_bytes_max, ..HttpLimits::default() };
            let Ok(polled) = catch_unwind(AssertUnwindSafe(|| reader.poll(&limits, rest))) else {
                return self.isolate(index);
            };
            match polled {
                Ok(Progress::Incomplete) => break,
                Ok(Progress::Continue) => {
                    self.core.queue(index).extend_from_slice(CONTINUE);
                    break;
                }
                Ok(Progress::Request(request)) => {
                    self.core.counters.http_requests += 1;
                    self.core.table.get(index).flags.lower(Flag::Arriving);
                    rest = &rest[request.bytes..];
                    match self.route(index, &request) {
                        Next::Request => self.core.await_request(index),
                        Next::Later => {
                            let deadline_ms = self.core.now.monotonic_ms + self.core.settings.request_ms;
                            self.core.set_deadline(index, deadline_ms);
                        }
                        Next::Close => return self.core.finish(index),
                        Next::Switched(stage) => return self.switch(index, stage, rest),
                    }
                }
                Err(error) => {
                    self.core.counters.http_malformed += 1;
                    let reply = Reply { keep_alive: false, head_only: false };
                    self.core.problem(index, reply, error.status(), &error.to_string(), &[]);
                    return self.core.finish(index);
                }
            }
        }
        let read = input.len() - rest.len();
        let left = match input {
            Cow::Borrowed(bytes) => bytes[read..].to_vec(),
            // Who waits for nothing holds nothing.
            Cow::Owned(kept) if read == kept.len() => Vec::new(),
            Cow::Owned(mut kept) => {
                kept.drain(..read);
                kept
            }
        };
        self.keep_input(index, reader, left);
    }

    /// Keeps what has arrived of the next request.
    fn keep_input(&mut self, index: u32, reader: RequestReader, input: Vec<u8>) {
        let now_ms = self.core.now.monotonic_ms;
        let waits = self.answers_first(index);
        if waits && input.len() > AHEAD_BYTES_MAX {
            self.core.counters.overfull += 1;
            return self.core.cut(index);
        }
        let flags = &mut self.core.table.get(index).flags;
        if waits && flags.take(Flag::Arriving) {
            // It is not the client that keeps it from arriving.
            self.core.await_request(index);
        }
        let flags = &mut self.core.table.get(index).flags;
        // A later request has as long as the first one had, from its first byte on.
        if !waits && !input.is_empty() && flags.has(Flag::Served) && !flags.has(Flag::Arriving) {
            flags.raise(Flag::Arriving);
            let deadline_ms = now_ms + self.core.settings.handshake_ms;
            self.core.set_deadline(index, deadline_ms);
        }
        let http = self.core.http(index);
        (http.reader, http.input) = (reader, input);
    }

    /// Whether the next request has to wait: for the answer to the one before, or until the client has taken
    /// enough of its answers.
    fn answers_first(&mut self, index: u32) -> bool {
        self.core.http(index).answering.is_some() || self.core.is_pressed(index)
    }

    /// On with what the client asked while it had to wait.
    pub(crate) fn read_ahead(&mut self, index: u32) {
        if self.answers_first(index) {
            return;
        }
        let ahead = std::mem::take(&mut self.core.http(index).input);
        if !ahead.is_empty() {
            self.read_requests(index, Cow::Owned(ahead));
        }
        if let Stage::Http(_) = self.core.table.get(index).stage
            && self.core.table.get(index).flags.has(Flag::Eof)
            && !self.answers_first(index)
        {
            self.core.finish(index);
        }
    }

    /// The peer has finished sending: what it asked is still answered.
    pub(crate) fn http_eof(&mut self, index: u32) {
        self.core.table.get(index).flags.raise(Flag::Eof);
        if !self.answers_first(index) {
            self.core.finish(index);
        }
    }

    /// The deadline of the request has passed.
    pub(crate) fn http_late(&mut self, index: u32) {
        let http = self.core.http(index);
        if let Some(Answering { session, reply }) = http.answering.take() {
            self.core.detached.push(session);
            self.core.counters.request_timeouts += 1;
            self.core.error_problem(index, reply, &error_frame(ErrorCode::Unavailable, None, Some(1_000)));
            return self.go_on(index, reply.keep_alive);
        }
        let flags = self.core.table.get(index).flags;
        if flags.has(Flag::Served) && !flags.has(Flag::Arriving) && self.core.queued_bytes(index) > 0 {
            // It still takes its answer; whether it does, `stall_ms` sees.
            return self.core.await_request(index);
        }
        if flags.has(Flag::Served) && !flags.has(Flag::Arriving) {
            self.core.counters.idle_timeouts += 1;
        } else {
            self.core.counters.handshake_timeouts += 1;
        }
        self.core.cut(index);
    }

    /// The answer to a request is written: on to the next one, or to the end.
    pub(crate) fn go_on(&mut self, index: u32, keep_alive: bool) {
        if !keep_alive || self.core.draining {
            return self.core.finish(index);
        }
        self.core.await_request(index);
        self.read_ahead(index);
    }

    fn route(&mut self, index: u32, request: &Request<'_>) -> Next {
        match request.path.as_ref() {
            "/ws" => self.upgrade(index, request),
            "/echo" if self.core.settings.echo => self.upgrade_echo(index, request),
            path => match path.strip_prefix("/v1/") {
                Some(rest) => self.rest(index, request, rest),
                None => self.refuse(index, request, 404, "There is nothing at this address.", &[]),
            },
        }
    }

    /// Answers a request with a problem; the connection goes on.
    pub(crate) fn refuse(
        &mut self,
        index: u32,
        request: &Request<'_>,
        status: u16,
        detail: &str,
        headers: &[(&str, &str)],
    ) -> Next {
        let reply = Reply::to(request);
        self.core.problem(index, reply, status, detail, headers);
        self.after(reply)
    }

    /// Answers a request with a problem that is an error frame elsewhere; the connection goes on.
    pub(crate) fn refuse_with(&mut self, index: u32, request: &Request<'_>, error: &ErrorFrame<'_>) -> Next {
        let reply = Reply::to(request);
        self.core.error_problem(index, reply, error);
        self.after(reply)
    }

    fn after(&self, reply: Reply) -> Next {
        if reply.keep_alive && !self.core.draining { Next::Request } else { Next::Close }
    }

    /// The rules get to work on a request.
    pub(crate) fn answer_later(&mut self, index: u32, request: &Request<'_>, session: SessionKey) {
        self.core.http(index).answering = Some(Answering { session, reply: Reply::to(request) });
    }

    /// The connection is a WebSocket from the byte behind the request on.
    fn switch(&mut self, index: u32, stage: Stage, rest: &[u8]) {
        let entry = self.core.table.get(index);
        entry.stage = stage;
        entry.deadline = Deadline::NEVER;
        self.greet(index);
        if !rest.is_empty() {
            self.received(index, &mut rest.to_vec());
        }
    }
}

impl Core {
    /// The HTTP state of a connection that is known to speak it.
    pub(crate) fn http(&mut self, index: u32) -> &mut Http {
        match &mut self.table.get(index).stage {
            Stage::Http(http) => http,
            _ => unreachable!("the caller knows that it speaks HTTP"),
        }
    }

    /// Between two requests of one connection.
    fn await_request(&mut self, index: u32) {
        self.table.get(index).flags.raise(Flag::Served);
        let deadline_ms = self.now.monotonic_ms + self.settings.idle_ms;
        self.set_deadline(index, deadline_ms);
    }

    /// Writes a response whose body `write` appends.
    pub(crate) fn respond(
        &mut self,
        index: u32,
        reply: Reply,
        response: &Response<'_>,
        write: impl FnOnce(&mut Vec<u8>),
    ) {
        self.counters.status(response.status);
        let keep_alive = reply.keep_alive && !self.draining;
        let mut body = Vec::new();
        write(&mut body);
        write_response(self.queue(index), &Response { keep_alive, head_only: reply.head_only, ..*response }, &body);
    }

    /// Writes a problem that only HTTP has.
    pub(crate) fn problem(&mut self, index: u32, reply: Reply, status: u16, detail: &str, headers: &[(&str, &str)]) {
        let response = Response { status, content_type: PROBLEM, headers, ..Response::default() };
        self.respond(index, reply, &response, |body| encode_problem(body, status, detail));
    }

    /// Writes a problem that is an error frame elsewhere.
    pub(crate) fn error_problem(&mut self, index: u32, reply: Reply, error: &ErrorFrame<'_>) {
        self.counters.error(error.code);
        let seconds = error.after_ms.map(|ms| ms.div_ceil(1_000).max(1).to_string());
        let retry_after = [("Retry-After", seconds.as_deref().unwrap_or_default())];
        let headers: &[_] = match error.code {
            ErrorCode::Unauthorized => &[("WWW-Authenticate", "Bearer")],
            _ if seconds.is_some() => &retry_after,
            _ => &[],
        };
        let response = Response { status: error.code.status(), content_type: PROBLEM, headers, ..Response::default() };
        self.respond(index, reply, &response, |body| encode_error_problem(body, error));
    }
}

const PROBLEM: &str = "application/problem+json";
