//! REST: a request is a frame, its answer another. Each is a client of the rules for as long as it takes.

use std::panic::{AssertUnwindSafe, catch_unwind};

use chat::Identity;
use wire::http::{Method, Request, Response};
use wire::ids::{ConversationId, DeviceId};
use wire::json::{decode_send, encode_server};
use wire::protocol::{ClientFrame, ErrorCode, Pull, PullRange, ServerFrame};

use crate::core::Core;
use crate::effects::error_frame;
use crate::http::{Next, Reply};
use crate::shard::Shard;

/// Where in a request the trouble is.
struct BadParameter(&'static str);

impl Shard {
    /// A request to `/v1/` and `path`.
    pub(crate) fn rest(&mut self, index: u32, request: &Request<'_>, path: &str) -> Next {
        let reads = matches!(request.method, Method::Get | Method::Head);
        let history = path.strip_prefix("conversations/").and_then(|rest| rest.strip_suffix("/messages"));
        match (path, history) {
            ("messages", _) if request.method == Method::Post => self.rest_send(index, request),
            ("messages", _) => self.refuse(index, request, 405, "Messages are sent with POST.", &[("Allow", "POST")]),
            ("conversations", _) | (_, Some(_)) if !reads => {
                self.refuse(index, request, 405, "This is read with GET.", &[("Allow", "GET, HEAD")])
            }
            ("conversations", _) => self.ask_rest(index, request, read_list(request)),
            (_, Some(conversation)) => self.ask_rest(index, request, read_pull(request, conversation)),
            _ => self.refuse(index, request, 404, "There is nothing at this address.", &[]),
        }
    }

    fn rest_send(&mut self, index: u32, request: &Request<'_>) -> Next {
        let body_bytes_max = self.core.settings.body_bytes_max;
        let Some(who) = self.rest_identity(request) else { return self.refuse_unauthorized(index, request) };
        let Ok(text) = std::str::from_utf8(request.body) else {
            return self.refuse_with(index, request, &error_frame(ErrorCode::BadRequest, Some("$"), None));
        };
        match catch_unwind(AssertUnwindSafe(|| decode_send(text, body_bytes_max))) {
            Ok(Ok(send)) => self.ask(index, request, who, &ClientFrame::Send(send)),
            Ok(Err(error)) => {
                self.core.counters.frames_bad += 1;
                self.refuse_with(index, request, &error.frame())
            }
            Err(_) => {
                self.core.counters.isolated_panics += 1;
                self.refuse(index, request, 400, "The body cannot be read.", &[])
            }
        }
    }

    fn ask_rest(&mut self, index: u32, request: &Request<'_>, frame: Result<ClientFrame<'_>, BadParameter>) -> Next {
        let Some(who) = self.rest_identity(request) else { return self.refuse_unauthorized(index, request) };
        match frame {
            Ok(frame) => self.ask(index, request, who, &frame),
            Err(BadParameter(path)) => {
                self.core.counters.frames_bad += 1;
                self.refuse_with(index, request, &error_frame(ErrorCode::BadRequest, Some(path), None))
            }
        }
    }

    /// Asks the rules. Their answer may come within this call.
    fn ask(&mut self, index: u32, request: &Request<'_>, who: Identity, frame: &ClientFrame<'_>) -> Next {
        let client = self.core.table.client(index);
        let session = self.chat.rest(client, who);
        self.answer_later(index, request, session);
        self.chat.frame(self.core.now, session, frame, &mut self.core);
        Next::Later
    }

    fn rest_identity(&mut self, request: &Request<'_>) -> Option<Identity> {
        let token = request.bearer().ok().flatten();
        let Some(token) = token else {
            self.core.counters.auth_missing += 1;
            return None;
        };
        let identity = self.core.check_token(token)?;
        Some(Identity { user: identity.user, device: DeviceId(0) })
    }

    fn refuse_unauthorized(&mut self, index: u32, request: &Request<'_>) -> Next {
        self.refuse_with(index, request, &error_frame(ErrorCode::Unauthorized, None, None))
    }
}

impl Core {
    /// The rules answered a request.
    pub(crate) fn answer(&mut self, index: u32, frame: &ServerFrame<'_>) {
        let Some(answering) = self.http(index).answering else { return };
        if self.answered.contains(&index) {
            return;
        }
        self.write_answer(index, answering.reply, frame);
        self.answered.push(index);
    }

    fn write_answer(&mut self, index: u32, reply: Reply, frame: &ServerFrame<'_>) {
        let status = match frame {
            ServerFrame::Error(error) => return self.error_problem(index, reply, error),
            ServerFrame::Stored(stored) if !stored.dup => 201,
            _ => 200,
        };
        self.respond(index, reply, &Response { status, ..Response::default() }, |body| encode_server(body, frame));
    }
}

/// `GET /v1/conversations?limit=&cursor=`.
fn read_list<'a>(request: &Request<'a>) -> Result<ClientFrame<'a>, BadParameter> {
    let cursor = request.parameter("cursor").map_err(|_| BadParameter("cursor"))?;
    Ok(ClientFrame::Conversations { limit: read_limit(request)?, cursor })
}

/// `GET /v1/conversations/{id}/messages?after=&before=&limit=&min_seq=`.
fn read_pull<'a>(request: &Request<'a>, conversation: &str) -> Result<ClientFrame<'a>, BadParameter> {
    let conversation: ConversationId = conversation.parse().map_err(|_| BadParameter("conversation"))?;
    let range = match (read_number(request, "after")?, read_number(request, "before")?) {
        (Some(_), Some(_)) => return Err(BadParameter("before")),
        (Some(after), None) => PullRange::After(after),
        (None, before) => PullRange::Before(before),
    };
    let (limit, min_seq) = (read_limit(request)?, read_number(request, "min_seq")?);
    Ok(ClientFrame::Pull(Pull { conversation, range, limit, min_seq }))
}

/// Any number: the rules clamp it to what they give.
fn read_limit(request: &Request<'_>) -> Result<Option<u32>, BadParameter> {
    Ok(read_number(request, "limit")?.map(|limit| limit.min(u64::from(u32::MAX)) as u32))
}

fn read_number(request: &Request<'_>, name: &'static str) -> Result<Option<u64>, BadParameter> {
    let text = request.parameter(name).map_err(|_| BadParameter(name))?;
    let Some(text) = text else { return Ok(None) };
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten().map(Some).ok_or(BadParameter(name))
}
