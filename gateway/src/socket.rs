//! The WebSocket side of a connection.

use wire::close::CloseCode;
use wire::reader::{Event, Input};
use wire::websocket::{FrameError, Limits, close_code};
use wire::writer::{Opcode, write_close_answer, write_close_code, write_frame};

use crate::shard::Shard;
use crate::table::Stage;

/// `/echo` has limits of its own, wide enough for conformance suites.
const ECHO_LIMITS: Limits = Limits { message_bytes_max: 16 * 1024 * 1024, fragments_max: 1 << 20 };

impl Shard {
    /// Bytes arrived on a WebSocket that echoes.
    pub(crate) fn echo_received(&mut self, index: u32, bytes: &mut [u8]) {
        let Stage::Echo(mut reader) = std::mem::replace(&mut self.core.table.get(index).stage, Stage::Closing) else {
            unreachable!("the caller looked")
        };
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
        self.core.table.get(index).stage = Stage::Echo(reader);
    }

    fn echo(&mut self, index: u32, opcode: Opcode, payload: &[u8]) {
        self.core.counters.echoes += 1;
        write_frame(self.core.queue(index), opcode, None, payload);
    }

    pub(crate) fn answer_ping(&mut self, index: u32, payload: &[u8]) {
        self.core.counters.pings += 1;
        write_frame(self.core.queue(index), Opcode::Pong, None, payload);
    }

    /// The peer closes: its own code goes back, and our stream ends.
    pub(crate) fn answer_close(&mut self, index: u32, code: Option<u16>) {
        write_close_answer(self.core.queue(index), None, code);
        self.core.finish(index);
    }

    /// Closes with the code that tells of a frame that broke the rules.
    pub(crate) fn close_for(&mut self, index: u32, error: FrameError) {
        self.close_with(index, close_code(error));
    }

    /// Closes a WebSocket: what is queued goes first.
    pub(crate) fn close_with(&mut self, index: u32, code: CloseCode) {
        self.core.counters.close(code);
        write_close_code(self.core.queue(index), code);
        self.core.finish(index);
    }
}
