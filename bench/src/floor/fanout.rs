//! One message to many: what each delivery costs when several share a send.

use std::io::{BufRead as _, BufReader, Write as _};
use std::time::Duration;

use super::{Orders, keep};
use crate::contest::{self, Sample};
use crate::crowd::{Crowd, Deadline, News, Stretch, to_one};
use crate::raw::fanout::MESSAGE_BYTES;
use crate::server::{Process, Trouble};

const MERGES: [u32; 4] = [1, 8, 32, 64];

pub(super) fn run(orders: &Orders) -> Result<(), Trouble> {
    const METHOD: &str = "100 rooms of 100, every member on a connection of its own: passes over all of them, one send each, of 1, 8, \
                          32 or 64 messages of 132 bytes. Server on core 0, client on core 1; processor time of the sending \
                          thread per message delivered.";
    let count = orders.hot.iter().copied().max().unwrap_or(1_000).min(10_000);
    println!("fan-out to {count} connections");
    let mut server = Process::own(&["probe-fanout", "--connections", &count.to_string()])?;
    let (mut input, output) = server.pipes().ok_or("the probe has pipes")?;
    let mut said = BufReader::new(output).lines();
    let mut crowd = Crowd::new(count)?;
    crowd.connect(&to_one(server.address), |_, _, _| Ok(()))?;
    if said.next().transpose()?.as_deref() != Some("ready") {
        return Err("the probe did not become ready".into());
    }
    let names = MERGES.map(|merge| format!("merged {merge}"));
    let outcome = contest::run(&names.each_ref().map(String::as_str), 0, orders.rounds, |side| {
        let merge = MERGES[side];
        let passes = 256 / merge;
        let bytes = u64::from(count * passes) * u64::from(merge * MESSAGE_BYTES);
        let stretch = Stretch::begin(&server);
        writeln!(input, "{merge} {passes}")?;
        input.flush()?;
        let (mut heard, deadline) = (0, Deadline::seconds(60));
        while heard < bytes {
            crowd.turn(Duration::from_millis(5), |_, news, _| {
                match news {
                    News::Heard(bytes) => heard += bytes.len() as u64,
                    News::Closed => return Err("the probe hung up".into()),
                    News::Connected => {}
                }
                Ok(())
            })?;
            deadline.check(|| format!("{heard} of {bytes} bytes were delivered"))?;
        }
        let ns: u64 = said.next().ok_or("the probe ended")??.parse()?;
        let deliveries = u64::from(count * passes * merge);
        let us = ns as f64 / deliveries as f64 / 1e3;
        Ok(Sample { us, ..Sample::of(&stretch.end(), deliveries) })
    })?;
    outcome.show("merged 1");
    let mut result = outcome.to_json(&["merged 1"]);
    result["connections"] = count.into();
    keep("fanout", METHOD, "fanout", result)
}
