//! `echo`: processor time per echo, ours over a raw ring's, in pairs of moments that lie side by side.

use std::time::Duration;

use crate::contest;
use crate::figures::{Scratch, save};
use crate::loads::echo::{self, Echoes};
use crate::server::{Process, Trouble};

/// What the upper bound of the ratio must not exceed.
const MUST: f64 = 1.1;
const PAYLOAD_BYTES: usize = 64;

/// Asks both in turn until there are `rounds` pairs that nobody disturbed, and says what came of it.
pub fn run(connections: u32, rounds: u32, moment_ms: u64) -> Result<(), Trouble> {
    crate::cpu::pin(1);
    let method = format!(
        "{connections} connections to each, {PAYLOAD_BYTES} bytes a message, {moment_ms} ms a moment: a raw io_uring echo of the same \
         bytes without a protocol, and `ringway dev --echo`.\n{}",
        echo::METHOD
    );
    println!("{method}\n");
    let scratch = Scratch::new("echo")?;
    let ringway = Process::ringway(&scratch.path, Some(0), &["--shards", "1", "--echo"])?;
    let raw = Process::raw(&["--slots", "18900"])?;
    let mut sides = [
        Echoes::open(&raw, false, connections, PAYLOAD_BYTES)?,
        Echoes::open(&ringway, true, connections, PAYLOAD_BYTES)?,
    ];
    let moment = Duration::from_millis(moment_ms);
    let outcome = contest::run(&["raw ring", "ringway"], echo::WARM_UP, rounds, |side| sides[side].measure(moment))?;
    outcome.show("raw ring");
    let mut result = outcome.to_json(&["raw ring"]);
    result["connections"] = connections.into();
    result["must"] = MUST.into();
    let command = format!("cargo run --release -p bench -- echo --connections {connections}");
    println!("{}", save(&format!("echo-{connections}"), &method, &command, result)?.display());
    Ok(())
}
