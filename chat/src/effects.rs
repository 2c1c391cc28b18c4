//! What the rules may cause: everything that leaves this crate leaves through [`Effects`].

use storage_seam::StorageRequest;
use wire::close::CloseCode;
use wire::mail::Letter;
use wire::protocol::ServerFrame;

/// The time of one turn, read once by the driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Now {
    /// For timers and order: never goes back; its zero is arbitrary.
    pub monotonic_ms: u64,
    /// For people: milliseconds since 1970. May jump; nothing is ordered, fenced or deduplicated by it.
    pub wall_ms: u64,
}

/// A client of this shard, as the gateway knows it. Opaque here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ClientKey(pub u64);

/// What a shard's rules ask of the shard. The gateway implements it, and so does every test.
pub trait Effects {
    /// Encodes `frame` for a client and queues it; returns the bytes that now wait for this client.
    ///
    /// `Opened` comes with empty `session` and `ticket`, which the gateway fills in.
    fn frame(&mut self, client: ClientKey, frame: &ServerFrame<'_>) -> usize;
    /// Closes a client after what is queued for it has been sent.
    fn close(&mut self, client: ClientKey, code: CloseCode);
    /// Posts a letter to whoever owns its address; `false`: the mailbox is full and the request refused.
    /// Replies and events are always taken (events may collapse, see `docs/decisions/0003-mail.md`).
    fn post(&mut self, letter: &Letter<'_>) -> bool;
    /// Submits a request to storage.
    fn storage(&mut self, request: StorageRequest);
}
