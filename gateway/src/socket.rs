//! The WebSocket side of a connection: frames to the rules, pings answered, `open` and `auth` checked.

use std::panic::{AssertUnwindSafe, catch_unwind};

use chat::Effects;
use wire::close::CloseCode;
use wire::ids::DeviceId;
use wire::json::decode_client;
use wire::protocol::{ClientFrame, ErrorCode, ErrorFrame, Open, ServerFrame};
use wire::reader::{Event, Input};
use wire::websocket::{FrameError, Limits, close_code};
use wire::writer::{Opcode, write_close_answer, write_frame};

use crate::auth::Identity;
use crate::effects::error_frame;
use crate::rate::Admission;
use crate::shard::Shard;
use crate::table::{Deadline, Flag, NEVER, Socket, Stage};

/// `/echo` has limits of its own, wide enough for conformance suites.
const ECHO_LIMITS: Limits = Limits { message_bytes_max: 16 * 1024 * 1024, fragments_max: 1 << 20 };

impl Shard {
    /// Bytes arrived on a WebSocket of the client protocol.
    pub(crate) fn socket_received(&mut self, index: u32, bytes: &mut [u8]) {
        let limits = Limits::for_bodies_of(self.core.settings.body_bytes_max as u32);
        // Taken out while frames borrow from it, and put back unless the connection ends.
        let Some(socket) = self.socket(index) else { unreachable!("the caller looked") };
        let (mut reader, is_open) = (socket.take_reader(), socket.session.is_some());
        if is_open {
            let deadline_ms = self.core.now.monotonic_ms + crate::effects::OFFLINE_MS;
            self.core.table.get(index).deadline = Deadline::at(deadline_ms);
        }
        let mut input = Input::new(bytes);
        while self.socket(index).is_some() {
            match reader.next(limits, &mut input) {
                Ok(None) => {
                    if let Some(socket) = self.socket(index) {
                        socket.put_reader(reader);
                    }
                    return;
                }
                Ok(Some(Event::Text(text))) => self.text(index, text),
                Ok(Some(Event::Binary(_))) => self.core.close_socket(index, CloseCode::Unsupported),
                Ok(Some(Event::Ping(payload))) => {
                    if self.may_ping(index) {
                        self.answer_ping(index, payload);
                    }
                }
                Ok(Some(Event::Pong(_))) => {
                    self.core.counters.pongs += 1;
                    self.may_ping(index);
                }
                Ok(Some(Event::Close(close))) => self.answer_close(index, close.map(|close| close.code)),
                Err(error) => self.close_for(index, error),
            }
            self.settle();
        }
    }

    fn socket(&mut self, index: u32) -> Option<&mut Socket> {
        match &mut self.core.table.get(index).stage {
            Stage::Socket(socket) => Some(socket),
            _ => None,
        }
    }

    /// A frame of the client protocol.
    fn text(&mut self, index: u32, text: &str) {
        self.core.counters.frames_in += 1;
        let body_bytes_max = self.core.settings.body_bytes_max;
        match catch_unwind(AssertUnwindSafe(|| decode_client(text, body_bytes_max))) {
            Ok(Ok(frame)) if self.admits(index, &frame) => self.client_frame(index, &frame),
            Ok(Ok(_)) => {}
            Ok(Err(error)) => self.bad_frame(index, error.frame()),
            Err(_) => self.isolate(index),
        }
        if self.core.is_overfull(index) {
            self.core.counters.overfull += 1;
            self.core.cut(index);
        }
    }

    /// A frame that says nothing costs what any other does.
    fn bad_frame(&mut self, index: u32, error: ErrorFrame<'_>) {
        match self.charge(index) {
            Admission::Admitted => {
                self.core.counters.frames_bad += 1;
                self.tell(index, error);
            }
            Admission::Limited { after_ms } => {
                self.core.counters.rate_limited += 1;
                let limited = error_frame(ErrorCode::RateLimited, None, Some(after_ms));
                self.tell(index, ErrorFrame { id: error.id, conversation: error.conversation, ..limited });
            }
            Admission::Flood => {}
        }
    }

    /// Charges the client for a frame; closes if it floods.
    fn charge(&mut self, index: u32) -> Admission {
        let client = self.core.table.client(index);
        let flags = &mut self.core.table.get(index).flags;
        let admission = self.core.rate.charge(self.core.now.monotonic_ms, client, flags.has(Flag::Limited));
        match admission {
            Admission::Admitted => flags.lower(Flag::Limited),
            Admission::Limited { .. } => flags.raise(Flag::Limited),
            Admission::Flood => {
                self.core.counters.floods += 1;
                self.core.close_socket(index, CloseCode::Flood);
            }
        }
        admission
    }

    /// Whether the client may send a frame now; tells it if not. What only takes load away is counted, and never
    /// refused.
    fn admits(&mut self, index: u32, frame: &ClientFrame<'_>) -> bool {
        let after_ms = match self.charge(index) {
            Admission::Admitted => return true,
            Admission::Limited { after_ms } => after_ms,
            Admission::Flood => return false,
        };
        let session = self.socket(index).and_then(|socket| socket.session);
        match (frame, session) {
            (ClientFrame::Beat { .. } | ClientFrame::Skip { .. } | ClientFrame::Auth { .. }, _) => return true,
            (frame, Some(session)) => {
                let error = (ErrorCode::RateLimited, after_ms);
                self.chat.refuse(self.core.now, session, frame, error, &mut self.core);
            }
            (_, None) => self.tell(index, error_frame(ErrorCode::RateLimited, None, Some(after_ms))),
        }
        self.core.counters.rate_limited += 1;
        false
    }

    fn client_frame(&mut self, index: u32, frame: &ClientFrame<'_>) {
        let session = self.socket(index).and_then(|socket| socket.session);
        match (session, frame) {
            (Some(_), ClientFrame::Open(_)) => self.tell(index, error_frame(ErrorCode::AlreadyOpen, None, None)),
            (Some(_), ClientFrame::Auth { token }) => self.renew_token(index, token),
            (Some(session), frame) => self.chat.frame(self.core.now, session, frame, &mut self.core),
            (None, ClientFrame::Open(open)) => self.open(index, open),
            (None, _) => self.tell(index, error_frame(ErrorCode::NotOpen, None, None)),
        }
    }

    fn tell(&mut self, index: u32, error: ErrorFrame<'_>) {
        let client = self.core.table.client(index);
        self.core.frame(client, &ServerFrame::Error(error));
    }

    /// Tells what is wrong with the first `open`, and closes: by the number the client knows what to get.
    fn refuse_open(&mut self, index: u32, code: ErrorCode, close: CloseCode) {
        self.tell(index, error_frame(code, None, None));
        self.core.close_socket(index, close);
    }

    fn open(&mut self, index: u32, open: &Open<'_>) {
        let upgraded_as = self.socket(index).and_then(|socket| socket.upgraded_as());
        let identity = match (&open.ticket, &open.token, upgraded_as) {
            (Some(ticket), _, upgraded_as) => {
                let resumed = self.core.check_ticket(ticket);
                // A ticket is for the one device that it was made for, whoever else the client also is.
                let fits = resumed.filter(|resumed| {
                    upgraded_as.is_none_or(|upgraded| upgraded.user == resumed.user)
                        && open.device.is_none_or(|device| resumed.device == Some(device))
                });
                let Some(identity) = fits else {
                    return self.refuse_open(index, ErrorCode::InvalidSession, CloseCode::InvalidSession);
                };
                Some(identity)
            }
            (None, Some(token), _) => self.core.check_token(token),
            (None, None, Some(identity)) => Some(identity),
            (None, None, None) => {
                self.core.counters.auth_missing += 1;
                None
            }
        };
        let Some(identity) = identity else {
            return self.refuse_open(index, ErrorCode::Unauthorized, CloseCode::Unauthorized);
        };
        let device = match (identity.device, open.device) {
            (Some(own), Some(claimed)) if own != claimed => {
                self.core.counters.auth_wrong_device += 1;
                return self.refuse_open(index, ErrorCode::Unauthorized, CloseCode::Unauthorized);
            }
            (own, claimed) => own.or(claimed),
        };
        match device {
            // Zero is the device of requests without a socket.
            None | Some(DeviceId(0)) => self.tell(index, error_frame(ErrorCode::BadRequest, Some("$.device"), None)),
            Some(device) => self.open_as(index, identity, device, open),
        }
    }

    fn open_as(&mut self, index: u32, identity: Identity, device: DeviceId, open: &Open<'_>) {
        let expires_ms = self.core.monotonic(identity.expires_ms);
        self.core.table.get(index).set_expires_ms(expires_ms);
        if let Some(socket) = self.socket(index) {
            socket.forget_upgrade();
        }
        let client = self.core.table.client(index);
        let who = chat::Identity { user: identity.user, device };
        let session = self.chat.open(client, who, open.changes_after, open.window, &mut self.core);
        match self.socket(index) {
            Some(socket) => {
                socket.session = Some(session);
                self.core.heard_from(index);
            }
            // The rules refused it at once, and closed.
            None => self.core.detached.push(session),
        }
    }

    /// A new token on a living connection.
    fn renew_token(&mut self, index: u32, token: &str) {
        let Some(session) = self.socket(index).and_then(|socket| socket.session) else { return };
        let chat::Identity { user, device } = self.chat.identity(session);
        let renewed = self.core.check_token(token);
        let renewed = renewed.filter(|token| token.user == user && token.device.is_none_or(|own| own == device));
        let Some(renewed) = renewed else {
            return self.tell(index, error_frame(ErrorCode::Unauthorized, None, None));
        };
        let expires_ms = self.core.monotonic(renewed.expires_ms);
        let deadline_ms = expires_ms.saturating_sub(self.core.now.monotonic_ms);
        let entry = self.core.table.get(index);
        entry.set_expires_ms(expires_ms);
        entry.flags.lower(Flag::Warned);
        self.core.arm(index, self.core.warn_ms(expires_ms));
        let client = self.core.table.client(index);
        self.core.frame(client, &ServerFrame::Auth { deadline_ms });
    }

    /// The wheel looks at a WebSocket: is its token about to end?
    pub(crate) fn look_at_token(&mut self, index: u32) {
        let now_ms = self.core.now.monotonic_ms;
        let Some((expires_ms, is_warned)) = self.token_end(index) else { return };
        if expires_ms + self.core.auth.leeway_ms() <= now_ms {
            self.core.counters.tokens_expired += 1;
            self.core.close_socket(index, CloseCode::TokenExpired);
        } else if !is_warned && self.core.warn_ms(expires_ms) <= now_ms {
            self.core.table.get(index).flags.raise(Flag::Warned);
            let client = self.core.table.client(index);
            self.core.frame(client, &ServerFrame::Auth { deadline_ms: expires_ms.saturating_sub(now_ms) });
        }
    }

    /// When the wheel has to look at the token again.
    pub(crate) fn token_deadline_ms(&mut self, index: u32) -> u64 {
        match self.token_end(index) {
            None => NEVER,
            Some((expires_ms, true)) => expires_ms + self.core.auth.leeway_ms(),
            Some((expires_ms, false)) => self.core.warn_ms(expires_ms),
        }
    }

    /// When the token of an open session ends, if it does, and whether the client was told.
    fn token_end(&mut self, index: u32) -> Option<(u64, bool)> {
        let entry = self.core.table.get(index);
        let is_open = matches!(entry.stage, Stage::Socket(_)) && entry.flags.has(Flag::Opened);
        Some((entry.expires_ms(), entry.flags.has(Flag::Warned))).filter(|end| is_open && end.0 != NEVER)
    }

    /// The stage's deadline has passed: no `open`, or no sign of life.
    pub(crate) fn socket_late(&mut self, index: u32) {
        let is_open = self.socket(index).is_some_and(|socket| socket.session.is_some());
        if is_open && self.core.table.get(index).flags.has(Flag::Paused) {
            // Nothing is read from it, so its silence says nothing; whether it takes anything, `stall_ms` sees.
            return self.core.heard_from(index);
        }
        self.core.counters.idle_timeouts += 1;
        self.core.close_socket(index, if is_open { CloseCode::Idle } else { CloseCode::OpenTimeout });
    }

    /// Whether the peer may ping once more; closes if not.
    fn may_ping(&mut self, index: u32) -> bool {
        let now_ms = self.core.now.monotonic_ms;
        if self.socket(index).is_none() {
            return false;
        }
        if self.core.table.get(index).pays_for_ping(now_ms) {
            return true;
        }
        self.core.counters.floods += 1;
        self.core.close_socket(index, CloseCode::Flood);
        false
    }

    fn answer_ping(&mut self, index: u32, payload: &[u8]) {
        self.core.counters.pings += 1;
        write_frame(self.core.queue(index), Opcode::Pong, None, payload);
    }

    /// The peer closes: its own code goes back, and our stream ends.
    fn answer_close(&mut self, index: u32, code: Option<u16>) {
        write_close_answer(self.core.queue(index), None, code);
        self.core.finish(index);
    }

    /// Closes with the code that tells of a frame that broke the rules.
    fn close_for(&mut self, index: u32, error: FrameError) {
        self.core.close_socket(index, close_code(error));
    }

    /// Bytes arrived on a WebSocket that echoes.
    pub(crate) fn echo_received(&mut self, index: u32, bytes: &mut [u8]) {
        let Stage::Echo(resting) = &mut self.core.table.get(index).stage else { unreachable!("the caller looked") };
        let mut reader = resting.take();
        let mut input = Input::new(bytes);
        loop {
            match reader.next(ECHO_LIMITS, &mut input) {
                Ok(None) => break,
                Ok(Some(Event::Text(text))) => self.echo(index, Opcode::Text, text.as_bytes()),
                Ok(Some(Event::Binary(payload))) => self.echo(index, Opcode::Binary, payload),
                Ok(Some(Event::Ping(payload))) => self.answer_ping(index, payload),
                Ok(Some(Event::Pong(_))) => self.core.counters.pongs += 1,
                Ok(Some(Event::Close(close))) => return self.answer_close(index, close.map(|close| close.code)),
                Err(error) => return self.close_for(index, error),
            }
        }
        if let Stage::Echo(resting) = &mut self.core.table.get(index).stage {
            resting.put(reader);
        }
    }

    fn echo(&mut self, index: u32, opcode: Opcode, payload: &[u8]) {
        self.core.counters.echoes += 1;
        write_frame(self.core.queue(index), opcode, None, payload);
    }
}
