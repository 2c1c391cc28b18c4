//! The client protocol as JSON: one object per text frame, its `type` first by custom, not by rule.
//!
//! - [`decode_client`] and [`encode_server`] are the server's side, [`encode_client`] and
//!   [`decode_server`] a client's. Each frame survives its pair.
//! - Identifiers, change numbers and generations are strings; seqs, counters and milliseconds are
//!   numbers. One thing has one form: a user id written as a number is refused, because a client in
//!   JavaScript would sooner or later round it.
//! - Reading borrows from the text whatever holds no escapes. Writing appends to the caller's buffer.
//! - Fields that are not known are ignored, but they must be JSON that can be held: not deeper than
//!   128 levels, no number beyond what a double holds, no half of a surrogate pair.

mod client;
mod received;
mod server;
mod text;

pub use client::{SIGNAL_NAME_BYTES_MAX, decode_client, decode_send, encode_client};
pub use received::{Received, decode_server};
pub use server::{encode_error_problem, encode_problem, encode_server};

use crate::ids::{ClientMessageId, ConversationId};
use crate::protocol::{ErrorCode, ErrorFrame};

/// Why a text is not a frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {message}{}", code.as_str(), path.as_ref().map(|path| format!(" at {path}")).unwrap_or_default())]
pub struct DecodeError {
    /// What the client is told.
    pub code: ErrorCode,
    /// For a person.
    pub message: String,
    /// Where: `$` for the whole, `$.to` for a field.
    pub path: Option<String>,
    /// The client's message id, if that much could be read.
    pub id: Option<ClientMessageId>,
    /// The conversation, if that much could be read.
    pub conversation: Option<ConversationId>,
}

impl DecodeError {
    /// The frame that says so.
    pub fn frame(&self) -> ErrorFrame<'_> {
        ErrorFrame {
            id: self.id,
            conversation: self.conversation,
            code: self.code,
            message: self.message.as_str().into(),
            after_ms: None,
            path: self.path.as_deref().map(Into::into),
        }
    }
}
