//! The HTTP side of a connection: requests are put together, routed and answered here, and some become
//! WebSockets. What REST requests do is in `rest.rs`.

use std::panic::{AssertUnwindSafe, catch_unwind};

use wire::http::{CONTINUE, HttpError, HttpLimits, Method, Progress, Request, RequestReader};
use wire::reader::Reader;
use wire::upgrade::{check_upgrade, write_switching};
use wire::websocket::Role;

use crate::problem::{Problem, write_problem};
use crate::shard::Shard;
use crate::table::{NEVER, Stage};

/// Bytes that a client may send ahead while its request is being answered.
const AHEAD_BYTES_MAX: usize = 64 * 1024;

/// A connection that speaks HTTP.
#[derive(Debug, Default)]
pub(crate) struct Http {
    reader: RequestReader,
    /// What has arrived of the next request.
    input: Vec<u8>,
    /// A request is being answered: its answer comes in a later turn.
    pub answering: Option<Answering>,
}

/// What its answer needs to know of a request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Answering {
    pub keep_alive: bool,
    pub head_only: bool,
}

/// What becomes of a connection after a request.
enum Next {
    /// It waits for the next request.
    Request,
    /// It ends once the answer is sent.
    Close,
    /// It is a WebSocket now.
    Switched(Stage),
    /// The answer will come later.
    Later(Answering),
}

impl Shard {
    /// Bytes arrived on a connection that speaks HTTP.
    pub(crate) fn http_received(&mut self, index: u32, bytes: &[u8]) {
        // Taken out while it is worked on, and put back at the end unless the connection ends or changes.
        let Stage::Http(mut http) = std::mem::replace(&mut self.core.table.get(index).stage, Stage::Closing) else {
            unreachable!("the caller looked")
        };
        let held = std::mem::take(&mut http.input);
        let joined;
        // Most requests arrive in one piece and are read where they lie.
        let mut rest = if held.is_empty() {
            bytes
        } else {
            joined = [&held[..], bytes].concat();
            &joined[..]
        };
        while http.answering.is_none() && !rest.is_empty() {
            let limits = HttpLimits { body_bytes_max: self.core.settings.request_bytes_max, ..HttpLimits::default() };
            let polled = catch_unwind(AssertUnwindSafe(|| http.reader.poll(&limits, rest)));
            let Ok(polled) = polled else { return self.isolate(index) };
            match polled {
                Ok(Progress::Incomplete) => break,
                Ok(Progress::Continue) => {
                    self.core.queue(index).extend_from_slice(CONTINUE);
                    break;
                }
                Ok(Progress::Request(request)) => {
                    self.core.counters.requests += 1;
                    rest = &rest[request.bytes..];
                    match self.route(index, &request) {
                        Next::Request => self.await_request(index),
                        Next::Later(answering) => {
                            http.answering = Some(answering);
                            let deadline_ms = self.core.now.monotonic_ms + self.core.settings.request_ms;
                            self.core.set_deadline(index, deadline_ms);
                        }
                        Next::Close => return self.core.finish(index),
                        Next::Switched(stage) => return self.switch(index, stage, rest),
                    }
                }
                Err(error) => return self.refuse_malformed(index, error),
            }
        }
        if http.answering.is_some() && rest.len() > AHEAD_BYTES_MAX {
            return self.core.cut(index);
        }
        if !rest.is_empty() && http.answering.is_none() {
            self.begin_request_deadline(index);
        }
        http.input = rest.to_vec();
        self.core.table.get(index).stage = Stage::Http(http);
    }

    /// The peer has finished sending: what it asked is still answered.
    pub(crate) fn http_eof(&mut self, index: u32) {
        let entry = self.core.table.get(index);
        entry.flags.eof = true;
        let Stage::Http(http) = &entry.stage else { unreachable!("the caller looked") };
        if http.answering.is_none() {
            self.core.finish(index);
        }
    }

    /// The stage's deadline has passed.
    pub(crate) fn http_late(&mut self, index: u32) {
        let Stage::Http(http) = &self.core.table.get(index).stage else { unreachable!("the caller looked") };
        if let Some(answering) = http.answering {
            self.core.counters.request_timeouts += 1;
            let problem = Problem::of_code(wire::protocol::ErrorCode::Unavailable, "The answer took too long.");
            self.answer_problem(index, answering, &Problem { after_ms: Some(1_000), ..problem });
            return;
        }
        let is_idle = http.input.is_empty();
        if self.core.table.get(index).flags.served && is_idle {
            self.core.counters.idle_timeouts += 1;
        } else {
            self.core.counters.handshake_timeouts += 1;
        }
        self.core.cut(index);
    }

    /// Between two requests of one connection.
    fn await_request(&mut self, index: u32) {
        self.core.table.get(index).flags.served = true;
        let deadline_ms = self.core.now.monotonic_ms + self.core.settings.idle_ms;
        self.core.set_deadline(index, deadline_ms);
    }

    /// A later request has as long as the first one had, from its first byte on.
    fn begin_request_deadline(&mut self, index: u32) {
        let until_ms = self.core.now.monotonic_ms + self.core.settings.handshake_ms;
        let entry = self.core.table.get(index);
        if entry.flags.served && !entry.flags.arriving {
            entry.flags.arriving = true;
            self.core.set_deadline(index, until_ms);
        }
    }

    /// The answer to a request is written: on to the next one, or to the end.
    pub(crate) fn answered(&mut self, index: u32, keep_alive: bool) {
        let entry = self.core.table.get(index);
        entry.flags.arriving = false;
        if !keep_alive || entry.flags.eof {
            return self.core.finish(index);
        }
        let Stage::Http(http) = &mut entry.stage else { return };
        http.answering = None;
        let ahead = std::mem::take(&mut http.input);
        self.await_request(index);
        if !ahead.is_empty() {
            self.http_received(index, &ahead);
        }
    }

    /// Answers a request that was left for later with a problem.
    pub(crate) fn answer_problem(&mut self, index: u32, answering: Answering, problem: &Problem<'_>) {
        self.count_problem(problem);
        let keep_alive = answering.keep_alive && !self.draining;
        write_problem(self.core.queue(index), problem, keep_alive, answering.head_only);
        self.answered(index, keep_alive);
    }

    fn route(&mut self, index: u32, request: &Request<'_>) -> Next {
        self.core.table.get(index).flags.arriving = false;
        match request.path.as_ref() {
            "/echo" if self.core.settings.echo => self.upgrade_echo(index, request),
            _ => self.refuse(index, request, &Problem::new(404, "no_such_page", "There is nothing at this address.")),
        }
    }

    /// Answers a request with a problem; the connection goes on.
    fn refuse(&mut self, index: u32, request: &Request<'_>, problem: &Problem<'_>) -> Next {
        self.count_problem(problem);
        let keep_alive = request.keep_alive && !self.draining;
        write_problem(self.core.queue(index), problem, keep_alive, request.method == Method::Head);
        if keep_alive { Next::Request } else { Next::Close }
    }

    fn count_problem(&mut self, problem: &Problem<'_>) {
        self.core.counters.status(problem.status);
        if let Some(code) = wire::protocol::ErrorCode::ALL.iter().find(|code| code.as_str() == problem.code) {
            self.core.counters.error(*code);
        }
    }

    /// What is not HTTP, or too much of it, ends the connection: where the next request would begin is
    /// anybody's guess.
    fn refuse_malformed(&mut self, index: u32, error: HttpError) {
        self.core.counters.http_malformed += 1;
        let detail = error.to_string();
        let problem = Problem::new(error.status(), "malformed_request", &detail);
        self.count_problem(&problem);
        write_problem(self.core.queue(index), &problem, false, false);
        self.core.finish(index);
    }

    fn upgrade_echo(&mut self, index: u32, request: &Request<'_>) -> Next {
        match check_upgrade(request) {
            Ok(upgrade) => {
                self.core.counters.upgrades += 1;
                write_switching(self.core.queue(index), upgrade.key, None);
                Next::Switched(Stage::Echo(Reader::new(Role::Server)))
            }
            Err(error) => self.refuse_upgrade(index, request, error),
        }
    }

    fn refuse_upgrade(&mut self, index: u32, request: &Request<'_>, error: wire::upgrade::UpgradeError) -> Next {
        self.core.counters.upgrades_refused += 1;
        let detail = error.to_string();
        let problem = Problem { headers: error.headers(), ..Problem::new(error.status(), "bad_handshake", &detail) };
        self.refuse(index, request, &problem)
    }

    /// The connection is a WebSocket from the byte behind the request on.
    fn switch(&mut self, index: u32, stage: Stage, rest: &[u8]) {
        let entry = self.core.table.get(index);
        entry.stage = stage;
        entry.deadline_ms = NEVER;
        entry.flags.served = false;
        self.switched(index);
        if !rest.is_empty() {
            self.received(index, &mut rest.to_vec());
        }
    }
}
