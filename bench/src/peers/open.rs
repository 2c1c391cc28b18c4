//! T10 for libraries: from accept over the upgrade to the first echo.

use serde_json::json;
use wire::upgrade::{UpgradeRequest, write_switching, write_upgrade_request};
use wire::writer::{Opcode, write_frame};

use super::{Orders, Peers, start};
use crate::contest::{self, Sample};
use crate::crowd::{Crowd, Spent, to_one};
use crate::figures::{Scratch, save};
use crate::loads::opening::{self, Opening, Raw, Step};
use crate::server::{Process, Trouble};

const ANSWER_BYTES: usize = 4 + 128;

pub(super) fn run(orders: &Orders, peers: &Peers) -> Result<(), Trouble> {
    const METHOD: &str = "Connections opened a window of 512 at once: accept, upgrade in, 101 out, a frame of 128 bytes in, its echo \
                          out; when all are open they are cut off, and it begins again, until the passes of a measurement took 2 s \
                          or what `--seconds` says. Server on core 0, client on core 1; processor time of the server's threads per connection. Cutting \
                          them off afterwards is not counted.";
    let count = orders.connections.min(15_000);
    println!("accept, upgrade and one echo, {count} connections\n{METHOD}");
    let scratch = Scratch::new("peers-open")?;
    let (words, answers) = Upgraded::sizes();
    let mut servers = vec![Process::steps(&answers)?];
    servers.push(Process::ringway(&scratch.path, Some(0), &["--shards", "1", "--echo"])?);
    let (mut names, mut failed) = (vec!["raw ring", "ringway"], Vec::new());
    for peer in &peers.had {
        match start(peer) {
            Ok(server) => {
                servers.push(server);
                names.push(peer.name);
            }
            Err(trouble) => failed.push(json!({ "name": peer.name, "absent": trouble.to_string() })),
        }
    }
    let outcome = contest::run(&names, 0, orders.rounds, |side| {
        let (server, mut total, mut passes) = (&servers[side], Spent::default(), 0);
        while total.seconds < orders.seconds as f64 {
            let mut crowd = Crowd::new(count)?;
            let mut raw = Raw::new(count, words, answers);
            let mut upgraded = Upgraded::new(count, server);
            let opening: &mut dyn Opening = if side == 0 { &mut raw } else { &mut upgraded };
            total.add(&opening::open(server, &mut crowd, &to_one(server.address), opening)?);
            crowd.cut()?;
            passes += 1;
        }
        Ok(Sample::of(&total, passes * u64::from(count)))
    })?;
    outcome.show("raw ring");
    let mut result = outcome.to_json(&names);
    result["connections"] = count.into();
    result["peers"] = peers.to_json();
    result["did_not_start"] = failed.into();
    let command = format!("cargo run --release -p bench -- peers open --connections {count}");
    println!("{}", save("peers-open", METHOD, &command, result)?.display());
    Ok(())
}

/// A WebSocket that is upgraded and echoes once.
pub(super) struct Upgraded {
    host: String,
    heard: Vec<Vec<u8>>,
    /// The frame that is echoed; empty if the upgrade alone is wanted.
    frame: Vec<u8>,
}

impl Upgraded {
    pub(super) fn new(count: u32, server: &Process) -> Self {
        let mut frame = Vec::new();
        write_frame(&mut frame, Opcode::Binary, Some([1, 2, 3, 4]), &[b'x'; 128]);
        Self { host: server.address.to_string(), heard: vec![Vec::new(); count as usize], frame }
    }

    /// Bytes of the words and answers, as Ringway has them.
    fn sizes() -> ([usize; 2], [usize; 2]) {
        let (mut upgrade, mut switching) = (Vec::new(), Vec::new());
        write_upgrade_request(&mut upgrade, &request("127.0.0.1:30000", 0));
        write_switching(&mut switching, "dGhlIHNhbXBsZSBub25jZQ==", None);
        ([upgrade.len(), 8 + 128], [switching.len(), ANSWER_BYTES])
    }
}

fn request(host: &str, who: u32) -> UpgradeRequest<'_> {
    let mut nonce = *b"an echo's nonce!";
    nonce[..4].copy_from_slice(&who.to_le_bytes());
    UpgradeRequest { host, target: "/echo", nonce, subprotocol: None, bearer: None }
}

impl Opening for Upgraded {
    fn first(&mut self, who: u32, out: &mut Vec<u8>) {
        write_upgrade_request(out, &request(&self.host, who));
    }

    fn heard(&mut self, who: u32, bytes: &[u8]) -> Result<Step, Trouble> {
        let heard = &mut self.heard[who as usize];
        let was_upgraded = heard.windows(4).any(|window| window == b"\r\n\r\n");
        heard.extend_from_slice(bytes);
        let Some(end) = heard.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(Step::Waits) };
        if !heard.starts_with(b"HTTP/1.1 101") {
            return Err(String::from_utf8_lossy(heard).into_owned().into());
        }
        if !was_upgraded {
            return Ok(Step::SaysSecond);
        }
        let is_whole = heard.len() == end + 4 + ANSWER_BYTES;
        if is_whole {
            *heard = Vec::new();
        }
        Ok(if is_whole { Step::IsOpen } else { Step::Waits })
    }

    fn second(&mut self, _: u32, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.frame);
    }
}
