//! Accept and two round trips, with the bytes that an upgrade and an `open` have.

use super::{Orders, keep};
use crate::contest::{self, Sample};
use crate::crowd::{Crowd, to_one};
use crate::loads::opening::{self, Raw};
use crate::opened::{ANSWERS, WORDS};
use crate::server::{Process, Trouble};

pub(super) fn run(orders: &Orders) -> Result<(), Trouble> {
    const METHOD: &str = "Connections opened a window of 512 at once: accept, an upgrade's bytes in, those of its answer and of \
                          `hello` out, those of `open` in and of `opened` out. Server on core 0, client on core 1; processor \
                          time of the server per connection; cutting them off afterwards is not counted.";
    let count = orders.hot.iter().copied().max().unwrap_or(1_000).min(10_000);
    println!("accept and two round trips, {count} connections");
    let server = Process::steps(&ANSWERS)?;
    let outcome = contest::run(&["raw ring"], 0, orders.rounds, |_| {
        let mut crowd = Crowd::new(count)?;
        let mut raw = Raw::new(count, WORDS, ANSWERS);
        let spent = opening::open(&server, &mut crowd, &to_one(server.address), &mut raw)?;
        crowd.cut()?;
        Ok(Sample::of(&spent, u64::from(count)))
    })?;
    outcome.show("raw ring");
    let mut result = outcome.to_json(&["raw ring"]);
    result["connections"] = count.into();
    keep("accept", METHOD, "accept", result)
}
