//! The whole server in one thread on a simulated ring, network, disk and clock, from one seed.
//!
//! A [`world::World`] is drawn from its seed, lives through everything that may go wrong, and is then
//! judged: phones record what they were told, and [`checker`] holds it against the promises. The same
//! seed gives the same world, so that a violation replays from its number.

pub mod bug;
pub mod chat_log;
pub mod checker;
pub mod net;
pub mod node;
pub mod phone;
pub mod plan;
pub mod rng;
pub mod world;
