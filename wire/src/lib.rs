//! What is said: WebSocket frames, HTTP heads, the client protocol and the mail between shards.
//!
//! Bytes in, values out. No sockets, no clock, no users.
//!
//! | module | what |
//! | --- | --- |
//! | [`http`], [`upgrade`] | requests, responses, the handshake, from both ends |
//! | [`websocket`], [`reader`], [`writer`], [`utf8`] | frames in, whole messages in, frames out |
//! | [`protocol`], [`ids`], [`close`] | what clients and servers tell each other, and why they part |
//! | [`json`] | how that is written |
//! | [`mail`] | what owners tell each other |

pub mod close;
pub mod http;
pub mod ids;
pub mod json;
pub mod mail;
pub mod protocol;
pub mod reader;
pub mod upgrade;
pub mod utf8;
pub mod websocket;
pub mod writer;
