//! What is said: WebSocket frames, HTTP heads, the client protocol and the mail between shards.
//!
//! Bytes in, values out. No sockets, no clock, no users.

pub mod close;
pub mod http;
pub mod ids;
pub mod mail;
pub mod protocol;
pub mod reader;
pub mod upgrade;
pub mod utf8;
pub mod websocket;
pub mod writer;
