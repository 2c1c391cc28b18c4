//! What was measured: one tally per thread, merged at the end.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;

/// Longest time that is told apart from longer ones: ten minutes.
const NS_MAX: u64 = 600_000_000_000;

/// Times in nanoseconds, to three digits.
#[derive(Debug, Clone)]
pub struct Times(Histogram<u64>);

impl Default for Times {
    fn default() -> Self {
        Self(Histogram::new_with_bounds(1, NS_MAX, 3).expect("the bounds are valid"))
    }
}

impl Times {
    /// Takes one time in.
    pub fn record(&mut self, ns: u64) {
        self.0.saturating_record(ns.max(1));
    }

    /// Takes another's times in.
    pub fn merge(&mut self, other: &Self) {
        self.0.add(&other.0).expect("all have the same bounds");
    }

    /// The time below which that part of all lies; in milliseconds. 1 is the longest.
    pub fn quantile_ms(&self, quantile: f64) -> f64 {
        self.0.value_at_quantile(quantile) as f64 / 1e6
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// All of them, in nanoseconds.
    pub fn histogram(&self) -> &Histogram<u64> {
        &self.0
    }
}

macro_rules! counts {
    ($($name:ident $doc:literal,)*) => {
        /// How often what happened.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
        #[serde(default)]
        pub struct Counts { $(#[doc = $doc] pub $name: u64,)* }

        impl Counts {
            /// Adds another's.
            pub fn merge(&mut self, other: &Self) { $(self.$name += other.$name;)* }
        }
    };
}

counts! {
    offered "Messages that fell due.",
    sent "Messages handed to a connection for the first time.",
    resent "Messages handed to a connection again, after a cut or an error.",
    acked "Messages that the server said it stored.",
    acked_in_time "Of these, while messages fell due.",
    dup_acks "Answers `dup`: it was stored the first time already.",
    delivered "Messages that reached their receiver, in order, from the other user.",
    repeats "Messages that came again below what the client had; dropped, as the protocol says.",
    gaps "Messages above the next one; answered by a pull.",
    failed "Messages refused for good.",
    unsent "Messages given up before they were sent: more fell due than the server could take.",
    unanswered "Messages without any answer when the run ended.",
    lost "Acknowledged messages that their receiver never got.",
    doubled "Messages with two seqs.",
    reordered "Messages that came after a later one of the same sender.",
    connects "Connections begun.",
    connect_failures "Connections that could not be made.",
    opened "Sessions opened.",
    reopened "Sessions opened again, after the first.",
    cut "Connections that ended without being asked to.",
    timeouts "Connections given up because the server did not answer.",
    moves "`move` frames.",
    lagging "`lagging` frames.",
    pulls "`pull` frames sent.",
    beats "`beat` frames sent.",
    marks "`mark` frames sent.",
    ticks "`tick` frames received.",
    generations "Times the server's generation changed.",
    shrunk "Times a conversation's head fell below what the client had.",
    malformed "Frames that were not understood.",
    bytes_in "Bytes received.",
    bytes_out "Bytes sent.",
}

/// Everything that one thread measured.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    pub counts: Counts,
    /// From when a message was due until `stored`.
    pub ack: Times,
    /// From when a message was due until its receiver had it.
    pub delivery: Times,
    /// From when a message was due until the generator saw to it: its own lateness.
    pub schedule: Times,
    /// From the beginning of a connection until `opened`.
    pub opening: Times,
    /// From the beginning of a connection until nothing that the client missed is missing any more.
    pub catch_up: Times,
    /// Errors by code, and closes by number.
    pub errors: BTreeMap<String, u64>,
}

impl Tally {
    /// Counts an error.
    pub fn error(&mut self, code: &str) {
        if let Some(count) = self.errors.get_mut(code) {
            *count += 1;
        } else {
            self.errors.insert(code.to_owned(), 1);
        }
    }

    /// Takes another's in.
    pub fn merge(&mut self, other: &Self) {
        self.counts.merge(&other.counts);
        self.ack.merge(&other.ack);
        self.delivery.merge(&other.delivery);
        self.schedule.merge(&other.schedule);
        self.opening.merge(&other.opening);
        self.catch_up.merge(&other.catch_up);
        for (code, count) in &other.errors {
            *self.errors.entry(code.clone()).or_default() += count;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_of_merged_times_are_those_of_all() {
        let (mut all, mut part) = (Times::default(), Times::default());
        for ms in 1..=1_000_u64 {
            if ms % 2 == 0 { &mut all } else { &mut part }.record(ms * 1_000_000);
        }
        all.merge(&part);
        assert_eq!(all.count(), 1_000);
        for (quantile, ms) in [(0.5, 500.0), (0.99, 990.0), (1.0, 1_000.0)] {
            let measured = all.quantile_ms(quantile);
            assert!((measured - ms).abs() <= ms / 500.0, "{quantile}: {measured}");
        }
        // Beyond what it tells apart it still counts.
        all.record(u64::MAX);
        assert!(all.quantile_ms(1.0) >= 600_000.0);
    }
}
