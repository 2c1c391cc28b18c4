//! Echo on busy connections: a raw ring against a raw epoll loop.

use super::{Orders, keep};
use crate::contest;
use crate::loads::echo::{self, Echoes};
use crate::server::{Process, Trouble};

pub(super) fn run(orders: &Orders) -> Result<(), Trouble> {
    for &connections in &orders.hot {
        println!("echo of 128 bytes on {connections} busy connections");
        let servers = [Process::raw(&["--slots", "18900"])?, Process::own(&["probe-epoll"])?];
        let mut echoes = Vec::new();
        for server in &servers {
            echoes.push(Echoes::open(server, false, connections, 128)?);
        }
        let outcome = contest::run(&["raw ring", "raw epoll"], echo::WARM_UP, orders.rounds * 4, |side| {
            echoes[side].measure(orders.moment())
        })?;
        outcome.show("raw ring");
        let mut result = outcome.to_json(&["raw ring"]);
        result["connections"] = connections.into();
        keep(&format!("hot-{connections}"), echo::METHOD, &format!("hot --hot {connections}"), result)?;
    }
    Ok(())
}
