//! T4: processor time per echo.

use std::time::Duration;

use serde_json::json;

use super::{Orders, Peers, start};
use crate::contest;
use crate::figures::{Scratch, save};
use crate::loads::echo::{self, Echoes};
use crate::server::{Process, Trouble};

const PAYLOAD_BYTES: usize = 128;

pub(super) fn run(orders: &Orders, peers: &Peers) -> Result<(), Trouble> {
    let connections = orders.connections;
    println!("echo of {PAYLOAD_BYTES} bytes on {connections} busy connections\n{}", echo::METHOD);
    let scratch = Scratch::new("peers-echo")?;
    let mut servers = vec![Process::raw(&["--slots", "18900"])?, Process::own(&["probe-epoll"])?];
    servers.push(Process::ringway(&scratch.path, Some(0), &["--shards", "1", "--echo"])?);
    let (mut names, mut failed) = (vec!["raw ring", "raw epoll", "ringway"], Vec::new());
    for peer in &peers.had {
        match start(peer) {
            Ok(server) => {
                servers.push(server);
                names.push(peer.name);
            }
            Err(trouble) => failed.push(json!({ "name": peer.name, "absent": trouble.to_string() })),
        }
    }
    let mut echoes = Vec::new();
    for (side, server) in servers.iter().enumerate() {
        echoes.push(Echoes::open(server, side >= 2, connections, PAYLOAD_BYTES));
    }
    let moment = Duration::from_millis(orders.seconds * 1_000 / 5);
    let outcome = contest::run(&names, echo::WARM_UP, orders.rounds * 4, |side| match &mut echoes[side] {
        Ok(echoes) => echoes.measure(moment),
        Err(trouble) => Err(trouble.to_string().into()),
    })?;
    outcome.show("raw ring");
    for peer in &names[3..] {
        if let Some(ratio) = outcome.ratio("ringway", peer) {
            println!("ringway over {peer}: {ratio}");
        }
    }
    let mut result = outcome.to_json(&names);
    result["connections"] = connections.into();
    result["peers"] = peers.to_json();
    result["did_not_start"] = failed.into();
    let (rounds, seconds) = (orders.rounds, orders.seconds);
    let command = format!(
        "cargo run --release -p bench -- peers echo --connections {connections} --rounds {rounds} --seconds {seconds}"
    );
    println!("{}", save(&format!("peers-echo-{connections}"), echo::METHOD, &command, result)?.display());
    Ok(())
}
