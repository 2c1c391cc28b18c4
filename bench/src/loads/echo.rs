//! One message in flight on each connection, as fast as they come back.

use std::time::Duration;

use crate::client::{Lines, Load};
use crate::contest::Sample;
use crate::server::{Process, Trouble};

/// How it is measured, for whoever reads the result.
pub const METHOD: &str = "One message in flight on each connection, server on core 0, client on core 1. All servers hold their \
                          connections all the time and are asked in turn, for a moment each, from all asleep to all asleep; \
                          processor time of the server's threads, the kernel's part included, over echoes.";

/// Rounds that do not count.
pub const WARM_UP: u32 = 2;

/// The connections to one server.
pub struct Echoes(Lines);

impl Echoes {
    /// Connects, and upgrades a WebSocket at `/echo`.
    pub fn open(server: &Process, websocket: bool, connections: u32, payload_bytes: usize) -> Result<Self, Trouble> {
        let load = Load { address: server.address, websocket, connections, payload_bytes, server: server.id() };
        Lines::open(load).map(Self)
    }

    /// A moment.
    pub fn measure(&mut self, moment: Duration) -> Result<Sample, Trouble> {
        let echoed = self.0.echo(moment)?;
        Ok(Sample::of(&echoed.spent, echoed.echoes))
    }
}
