//! What the rules cause: frames and closes go to the shard's own clients, letters to the mailbox, and
//! questions to storage.

use chat::{ClientKey, Effects};
use shard_router::Posted;
use storage::seam::StorageRequest;
use wire::close::CloseCode;
use wire::json::encode_server;
use wire::mail::Letter;
use wire::protocol::{ErrorCode, ErrorFrame, Opened, ServerFrame};
use wire::writer::{write_close_code, write_text_with};

use crate::core::Core;
use crate::table::{Flag, Stage};

impl Effects for Core {
    fn frame(&mut self, client: ClientKey, frame: &ServerFrame<'_>) -> usize {
        let Some(index) = self.table.find_client(client) else { return 0 };
        match self.table.get(index).stage {
            Stage::Socket(_) => match self.refused_instead(index, frame) {
                Some(error) => self.write_frame(index, client, &ServerFrame::Error(error)),
                None => self.write_frame(index, client, frame),
            },
            Stage::Http(_) => self.answer(index, frame),
            // The rules learn of it in a moment; what they say until then has nobody to hear it.
            Stage::Closing | Stage::Echo(_) | Stage::Free => return 0,
        }
        self.queued_bytes(index)
    }

    fn close(&mut self, client: ClientKey, code: CloseCode) {
        let Some(index) = self.table.find_client(client) else { return };
        match self.table.get(index).stage {
            Stage::Socket(_) => self.close_socket(index, code),
            Stage::Http(_) => {
                let error = error_frame(ErrorCode::Overloaded, None, Some(1_000));
                self.answer(index, &ServerFrame::Error(error));
            }
            Stage::Closing | Stage::Echo(_) | Stage::Free => {}
        }
    }

    fn post(&mut self, letter: &Letter<'_>) -> bool {
        self.mailbox.post(letter) != Posted::Refused
    }

    fn storage(&mut self, request: StorageRequest) {
        self.requests.push(request);
    }
}

impl Core {
    /// Writes a frame to a WebSocket.
    fn write_frame(&mut self, index: u32, client: ClientKey, frame: &ServerFrame<'_>) {
        self.counters.frames_out += 1;
        match frame {
            ServerFrame::Opened(opened) => return self.write_opened(index, client, opened),
            ServerFrame::Error(error) => self.counters.error(error.code),
            _ => {}
        }
        write_text_with(self.queue(index), None, |out| encode_server(out, frame));
        if self.queued_bytes(index) > self.settings.outbound_bytes_max {
            self.table.get(index).flags.raise(Flag::Pressed);
        }
    }

    /// What a client gets instead of a further large answer while it has not taken the last ones: they are many
    /// times as large as what asks for them, and many may be asked for at once.
    fn refused_instead(&mut self, index: u32, frame: &ServerFrame<'_>) -> Option<ErrorFrame<'static>> {
        let conversation = match frame {
            ServerFrame::Page(page) => Some(page.conversation),
            ServerFrame::Changes { .. } => None,
            _ => return None,
        };
        if !self.is_pressed(index) {
            return None;
        }
        self.counters.answers_refused += 1;
        Some(ErrorFrame { conversation, ..error_frame(ErrorCode::Overloaded, None, Some(1_000)) })
    }

    /// The session works: it gets its name and its ticket, and from now on its token's end matters.
    fn write_opened(&mut self, index: u32, client: ClientKey, opened: &Opened<'_>) {
        let (expires_ms, now) = (self.table.get(index).expires_ms(), self.now);
        let expires_wall_ms = now.wall_ms.saturating_add(expires_ms.saturating_sub(now.monotonic_ms));
        let ticket = self.auth.issue_ticket(opened.user, opened.device, expires_wall_ms, now.wall_ms);
        let session = format!("{}-{:x}", self.settings.shard, client.0);
        let opened = ServerFrame::Opened(Opened { session: &session, ticket: &ticket, ..opened.clone() });
        write_text_with(self.queue(index), None, |out| encode_server(out, &opened));
        self.table.get(index).flags.raise(Flag::Opened);
        self.heard_from(index);
        self.arm(index, self.warn_ms(expires_ms));
    }

    /// Closes a WebSocket: what is queued goes first.
    pub(crate) fn close_socket(&mut self, index: u32, code: CloseCode) {
        self.counters.close(code);
        write_close_code(self.queue(index), code);
        self.finish(index);
    }

    /// The client gave a sign of life.
    pub(crate) fn heard_from(&mut self, index: u32) {
        let deadline_ms = self.now.monotonic_ms + OFFLINE_MS;
        self.set_deadline(index, deadline_ms);
    }

    /// When a client is told that its token ends.
    pub(crate) fn warn_ms(&self, expires_ms: u64) -> u64 {
        expires_ms.saturating_sub(EXPIRY_WARNING_MS).max(self.now.monotonic_ms)
    }

    /// Milliseconds of the monotonic clock at which a moment of the wall clock comes, if neither is set
    /// meanwhile.
    pub(crate) fn monotonic(&self, wall_ms: u64) -> u64 {
        self.now.monotonic_ms + wall_ms.saturating_sub(self.now.wall_ms)
    }
}

/// How often a client is to beat.
pub(crate) const BEAT_MS: u32 = 30_000;
/// How long a silent client counts as there.
pub(crate) const OFFLINE_MS: u64 = 60_000;
/// How long before its token ends a client is asked for a new one.
pub(crate) const EXPIRY_WARNING_MS: u64 = 30_000;

/// An error of the gateway's own.
pub(crate) fn error_frame(code: ErrorCode, path: Option<&'static str>, after_ms: Option<u32>) -> ErrorFrame<'static> {
    ErrorFrame {
        id: None,
        conversation: None,
        code,
        message: code.meaning().into(),
        after_ms,
        path: path.map(Into::into),
    }
}
