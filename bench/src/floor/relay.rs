//! The five frames of a routed message, relayed without reading them.

use std::time::Duration;

use super::{Orders, keep};
use crate::contest;
use crate::crowd::Crowd;
use crate::loads::pairs::{self, Raw};
use crate::routed::five_frames;
use crate::server::{Process, Trouble};

pub(super) fn run(orders: &Orders) -> Result<(), Trouble> {
    const METHOD: &str = "Pairs of connections with one message in flight each: send in, message and stored out, mark in, tick \
                          out, each of the size that the protocol gives it with a body of 128 bytes. Server on core 0, client \
                          on core 1; processor time of the server per message, after 1 s of warming up.";
    let sizes = five_frames();
    println!("relay of five frames: {sizes:?}");
    for &connections in &orders.hot {
        let connections = connections / 2 * 2;
        let server = Process::relay(sizes)?;
        let mut crowd = Crowd::new(connections)?;
        pairs::tie(&mut crowd, &server)?;
        let mut raw = Raw::new(connections, sizes);
        let seconds = Duration::from_secs(orders.seconds);
        let outcome = contest::run(&["raw relay"], 0, orders.rounds, |_| {
            pairs::talk(&server, &mut crowd, &mut raw, Duration::from_millis(500), seconds)
        })?;
        outcome.show("raw relay");
        let mut result = outcome.to_json(&["raw relay"]);
        result["connections"] = connections.into();
        keep(&format!("relay-{connections}"), METHOD, &format!("relay --hot {connections}"), result)?;
    }
    Ok(())
}
