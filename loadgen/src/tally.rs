//! What was measured: one tally per thread, merged at the end.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Deserializer as Unpacker, Serializer as _, V2DeflateSerializer};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Longest time that is told apart from longer ones: ten minutes.
const NS_MAX: u64 = 600_000_000_000;

/// How many kinds of errors are told apart, what the rest is called, and how much of one is kept.
const ERROR_KINDS_MAX: usize = 100;
const OTHER_ERRORS: &str = "errors of other kinds";
const ERROR_CHARS_MAX: usize = 200;

/// Times in nanoseconds, to three digits. One without times holds no memory: threads tell of each second.
#[derive(Debug, Clone, Default)]
pub struct Times(Option<Box<Histogram<u64>>>);

fn no_times() -> Histogram<u64> {
    Histogram::new_with_bounds(1, NS_MAX, 3).expect("the bounds are valid")
}

impl Times {
    fn some(&mut self) -> &mut Histogram<u64> {
        self.0.get_or_insert_with(|| Box::new(no_times()))
    }

    /// Takes one time in.
    pub fn record(&mut self, ns: u64) {
        self.some().saturating_record(ns.max(1));
    }

    /// Takes another's times in.
    pub fn merge(&mut self, other: &Self) {
        if let Some(other) = &other.0 {
            self.some().add(&**other).expect("all have the same bounds");
        }
    }

    /// Those of a histogram with these bounds.
    pub fn of_histogram(histogram: Histogram<u64>) -> Option<Self> {
        let (low, high, digits) = (histogram.low(), histogram.high(), histogram.sigfig());
        ((low, high, digits) == (1, NS_MAX, 3)).then(|| Self(Some(Box::new(histogram))))
    }

    /// The time below which that part of all lies; in milliseconds. 1 is the longest.
    pub fn quantile_ms(&self, quantile: f64) -> f64 {
        self.histogram().value_at_quantile(quantile) as f64 / 1e6
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.0.as_ref().map_or(0, |histogram| histogram.len())
    }

    /// All of them, in nanoseconds.
    pub fn histogram(&self) -> &Histogram<u64> {
        static EMPTY: LazyLock<Histogram<u64>> = LazyLock::new(no_times);
        self.0.as_deref().unwrap_or(&EMPTY)
    }
}

/// All of them, to the last one: HdrHistogram V2, deflated, base64.
impl Serialize for Times {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut bytes = Vec::new();
        if let Some(histogram) = &self.0 {
            V2DeflateSerializer::new().serialize(histogram, &mut bytes).expect("a vector takes all bytes");
        }
        serializer.serialize_str(&STANDARD.encode(bytes))
    }
}

impl<'de> Deserialize<'de> for Times {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error;
        let bytes = STANDARD.decode(String::deserialize(deserializer)?).map_err(Error::custom)?;
        if bytes.is_empty() {
            return Ok(Self::default());
        }
        let histogram =
            Unpacker::new().deserialize(&mut bytes.as_slice()).map_err(|_| Error::custom("no histogram"))?;
        Self::of_histogram(histogram).ok_or_else(|| Error::custom("a histogram with other bounds"))
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

            /// All names, each with what it counts.
            pub const NAMES: &[(&str, &str)] = &[$((stringify!($name), $doc),)*];

            /// A count by its name.
            pub fn named(&self, name: &str) -> Option<u64> {
                match name {
                    $(stringify!($name) => Some(self.$name),)*
                    _ => None,
                }
            }
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
    delivered_on_return "Of these, due while their receiver was away on purpose; they are in no distribution.",
    delivered_abroad "Of these, from users of other agents; their times are a distribution of their own.",
    repeats "Messages that came again below what the client had; dropped, as the protocol says.",
    gaps "Messages above the next one; answered by a pull.",
    late "Messages that could not be sent in time: later than allowed after they were due, or never.",
    failed "Messages refused for good.",
    unsent "Messages given up before they were sent: more fell due than the server could take.",
    unanswered "Messages without any answer when the run ended.",
    repeats_sent "Acknowledged messages that were sent again on purpose.",
    repeats_kept "Of these, answered with the seq that they had.",
    repeats_unanswered "Of these, without an answer when the run ended.",
    lost "Acknowledged messages that their receiver never got.",
    doubled "Messages with two seqs.",
    reordered "Messages that came after a later one of the same sender.",
    connects "Connections begun.",
    connect_failures "Connections that could not be made.",
    opened "Sessions opened.",
    reopened "Sessions opened again, after the first.",
    cut "Connections that ended without being asked to.",
    ended_on_purpose "Connections that the scenario ended.",
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
    unwritten "Times the file of acknowledged messages, or the record, could not be written.",
    bytes_in "Bytes received.",
    bytes_out "Bytes sent.",
}

impl Counts {
    /// What no server that keeps its promises does: messages lost, doubled, reordered, and histories forgotten.
    pub fn broken(&self) -> u64 {
        self.lost + self.doubled + self.reordered + self.shrunk
    }
}

/// Which part of a core threads used while messages were due.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Busy {
    /// The busiest of them: what keeps others idle does not help it.
    pub most: f64,
    /// All together.
    pub sum: f64,
}

impl Busy {
    /// That of one thread, which had so much processor time in that time.
    pub fn of_thread(cpu_ns: u64, ns: u64) -> Self {
        let part = cpu_ns as f64 / ns.max(1) as f64;
        Self { most: part, sum: part }
    }

    /// Takes that of other threads in.
    pub fn merge(&mut self, other: Self) {
        self.most = self.most.max(other.most);
        self.sum += other.sum;
    }
}

/// Everything that one thread measured.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
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
    /// From when a connection was cut until its session was open again.
    pub resume: Times,
    /// Delivery to those to whom nothing is done, since something was first done to others.
    pub untouched: Times,
    /// Delivery to slow readers, which the other distributions leave out.
    pub slow: Times,
    /// Delivery from users of other agents, as far as clocks are known; the other distributions leave it out.
    pub abroad: Times,
    /// Errors by code, and closes by number.
    pub errors: BTreeMap<String, u64>,
    /// Known once no more messages fall due.
    pub busy: Busy,
}

impl Tally {
    /// Counts an error. Servers may say what they like: it is kept short, without what a terminal would obey, and beyond
    /// some kinds all others are one.
    pub fn error(&mut self, code: &str) {
        if let Some(count) = self.errors.get_mut(code) {
            *count += 1;
            return;
        }
        let shown = |c: char| if c.is_control() { '\u{fffd}' } else { c };
        let mut code: String = code.chars().take(ERROR_CHARS_MAX).map(shown).collect();
        if self.errors.len() >= ERROR_KINDS_MAX && !self.errors.contains_key(&code) {
            OTHER_ERRORS.clone_into(&mut code);
        }
        *self.errors.entry(code).or_default() += 1;
    }

    /// The distributions by name.
    pub fn distributions(&self) -> [(&'static str, &Times); 9] {
        [
            ("ack", &self.ack),
            ("delivery", &self.delivery),
            ("untouched", &self.untouched),
            ("slow", &self.slow),
            ("abroad", &self.abroad),
            ("catch_up", &self.catch_up),
            ("resume", &self.resume),
            ("opening", &self.opening),
            ("schedule_error", &self.schedule),
        ]
    }

    /// Takes another's in.
    pub fn merge(&mut self, other: &Self) {
        self.counts.merge(&other.counts);
        self.ack.merge(&other.ack);
        self.delivery.merge(&other.delivery);
        self.schedule.merge(&other.schedule);
        self.opening.merge(&other.opening);
        self.catch_up.merge(&other.catch_up);
        self.resume.merge(&other.resume);
        self.untouched.merge(&other.untouched);
        self.slow.merge(&other.slow);
        self.abroad.merge(&other.abroad);
        self.busy.merge(other.busy);
        for (code, count) in &other.errors {
            let is_kept = self.errors.len() < ERROR_KINDS_MAX || self.errors.contains_key(code);
            *self.errors.entry(if is_kept { code.as_str() } else { OTHER_ERRORS }.to_owned()).or_default() += count;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tally_survives_being_sent() {
        let mut tally = Tally::default();
        for ns in 1..100_000_u64 {
            tally.delivery.record(ns * ns);
        }
        tally.counts.lost = 7;
        tally.error("retry");
        let sent: Tally = serde_json::from_str(&serde_json::to_string(&tally).unwrap()).unwrap();
        assert_eq!(sent.delivery.histogram(), tally.delivery.histogram());
        assert_eq!((sent.counts, sent.errors, sent.ack.count()), (tally.counts, tally.errors, 0));
    }

    /// One thread at its limit among idle ones, or on one agent among idle ones, is not hidden by their mean.
    #[test]
    fn the_busiest_thread_of_all_counts() {
        let agent = |parts: &[u64]| {
            let mut tally = Tally::default();
            for percent in parts {
                let busy = Busy::of_thread(percent * 10, 1_000);
                tally.merge(&Tally { busy, ..Tally::default() });
            }
            tally
        };
        let mut all = Tally::default();
        for parts in [&[10, 20][..], &[97, 0], &[1, 2]] {
            all.merge(&agent(parts));
        }
        assert!((all.busy.most - 0.97).abs() < 1e-9 && (all.busy.sum - 1.30).abs() < 1e-9, "{:?}", all.busy);
        assert_eq!(Busy::of_thread(0, 0), Busy::default());
    }

    #[test]
    fn what_a_server_says_is_bounded_and_does_not_reach_the_terminal() {
        let mut tally = Tally::default();
        tally.error("\u{1b}]0;owned\u{7}");
        assert_eq!(tally.errors.keys().next().unwrap(), "\u{fffd}]0;owned\u{fffd}");
        for number in 0..10_000 {
            tally.error(&format!("{number:x<1000}"));
        }
        let mut merged = Tally::default();
        for number in 0..200 {
            let mut other = Tally::default();
            other.error(&format!("{number}"));
            merged.merge(&other);
        }
        merged.merge(&tally);
        for tally in [&tally, &merged] {
            assert!(tally.errors.len() <= ERROR_KINDS_MAX + 1 && tally.errors.contains_key(OTHER_ERRORS));
            assert!(tally.errors.keys().all(|code| code.len() <= ERROR_CHARS_MAX));
        }
        assert_eq!(merged.errors.values().sum::<u64>(), 10_201);
    }

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
