//! The result document: what `--json F` writes and `ringway-loadgen report` reads.
//!
//! Two hands fill it. The **engine** (`run`, and whatever drives scenarios) knows what was asked for and what
//! came of it: `scenario`, `thresholds`, `steps`, sessions, rates, `counts`, `errors`, `latency`, `aborted`. The
//! **recorder** (`report::recorder`) hears of every [`Interval`](crate::interval::Interval) and knows what is around
//! the engine: `series`, `generators`, `server`, `memory`, `label`, `command`, `began_unix_ms`.
//!
//! Times are milliseconds unless a name says otherwise. A field that was not measured is absent, never zero.
//! A field that is added later has `#[serde(default)]`, so that old documents are read; one whose meaning
//! changes raises [`FORMAT`].

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Deserializer, Serializer as _, V2DeflateSerializer};
use serde::{Deserialize, Serialize};

use crate::outcome::Outcome;
use crate::tally::{Counts, Tally, Times};

/// What these documents are numbered with.
pub const FORMAT: u32 = 1;

/// A whole run.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct RunResult {
    /// [`FORMAT`] when it was written.
    pub format: u32,
    /// Runs of one label are repetitions of one measurement: `--label`, otherwise the scenario's name.
    #[serde(default)]
    pub label: String,
    pub scenario: Scenario,
    /// The command line that runs it again, quoted for a shell; no credential stands in it, only names of files.
    #[serde(default)]
    pub command: String,
    /// Milliseconds since 1970.
    #[serde(default)]
    pub began_unix_ms: u64,
    /// Why it ended before its time, if it did: a breached threshold, a signal.
    #[serde(default)]
    pub aborted: Option<String>,
    /// In the scenario's order.
    #[serde(default)]
    pub thresholds: Vec<Threshold>,
    /// Sessions asked for, and open when messages began.
    pub users: u32,
    pub open: u32,
    pub payload_bytes: usize,
    pub seed: u64,
    /// How long messages fell due.
    pub seconds: f64,
    /// Messages per second that fell due, and that were stored meanwhile.
    pub offered_per_second: f64,
    pub achieved_per_second: f64,
    /// Whether the generator was too busy for the rate to say more than "at least".
    pub generator_bound: bool,
    /// Of one core, over all generators, while messages were due.
    pub generator_cpu_percent: f64,
    /// Of its core, the busiest thread of all generators in the same time.
    #[serde(default)]
    pub busiest_thread_percent: f64,
    pub counts: Counts,
    /// Errors by code, and closes by number.
    pub errors: BTreeMap<String, u64>,
    pub latency: Latencies,
    /// What `saturate` tried, in its order; empty for every other run.
    #[serde(default)]
    pub steps: Vec<Step>,
    /// One entry a second.
    #[serde(default)]
    pub series: Vec<Second>,
    /// One for each agent; one in all for a run without agents.
    #[serde(default)]
    pub generators: Vec<Generator>,
    #[serde(default)]
    pub server: Option<Server>,
    #[serde(default)]
    pub memory: Option<SessionMemory>,
}

/// What was asked for.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Scenario {
    /// `pairs`, `idle`, or the name in the file.
    pub name: String,
    /// The whole of it, defaults and flags applied, as TOML that `run` would take.
    pub toml: String,
}

/// A condition of the scenario, and whether it held.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Threshold {
    /// As it was written: `delivery.p99 < 20ms`.
    pub condition: String,
    /// The left side as measured over the whole run, in the unit of the condition; absent if nothing was measured,
    /// which is a failure.
    pub measured: Option<f64>,
    /// `ms`, `/s`, `%`, or empty for a count.
    pub unit: String,
    pub passed: bool,
    /// Why the number says less than it seems to: `generator-bound, at least`.
    #[serde(default)]
    pub note: Option<String>,
}

/// All distributions of times.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Latencies {
    /// From when a message was due until `stored`.
    pub ack: Distribution,
    /// From when a message was due until its receiver had it.
    pub delivery: Distribution,
    /// From the beginning of a connection until `opened`.
    pub opening: Distribution,
    /// The generator's own lateness: above a few milliseconds, the others say little of the server.
    pub schedule_error: Distribution,
    /// From the beginning of a connection until nothing that the client missed is missing any more.
    #[serde(default)]
    pub catch_up: Distribution,
    /// From when a session was cut until it was open again.
    #[serde(default)]
    pub resume: Distribution,
    /// As `delivery`: for those to whom the scenario does nothing, since it first did something to others.
    #[serde(default)]
    pub untouched: Distribution,
    /// As `delivery`: for slow readers.
    #[serde(default)]
    pub slow: Distribution,
    /// As `delivery`: from users of other agents. Absent if no agent's users talk to another's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub abroad: Option<Abroad>,
}

impl Latencies {
    /// Those of a tally; between agents the clocks may be wrong by so much.
    pub fn of(tally: &Tally, abroad_error_ns: Option<u64>) -> Self {
        Self {
            abroad: abroad_error_ns.map(|error_ns| Abroad::of(&tally.abroad, error_ns)),
            ack: Distribution::of(&tally.ack),
            delivery: Distribution::of(&tally.delivery),
            opening: Distribution::of(&tally.opening),
            schedule_error: Distribution::of(&tally.schedule),
            catch_up: Distribution::of(&tally.catch_up),
            resume: Distribution::of(&tally.resume),
            untouched: Distribution::of(&tally.untouched),
            slow: Distribution::of(&tally.slow),
        }
    }

    /// Each with the name that it has in conditions, tags and tables.
    pub fn named(&self) -> [(&'static str, &Distribution); 8] {
        [
            ("ack", &self.ack),
            ("delivery", &self.delivery),
            ("untouched", &self.untouched),
            ("slow", &self.slow),
            ("catch_up", &self.catch_up),
            ("resume", &self.resume),
            ("opening", &self.opening),
            ("schedule_error", &self.schedule_error),
        ]
    }
}

/// A distribution of times, in milliseconds, and all of it as a histogram.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Distribution {
    pub count: u64,
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub p99_9: f64,
    pub p99_99: f64,
    pub max: f64,
    /// Nanoseconds: HdrHistogram V2, deflated, base64, as in interval logs. Empty if nothing was counted.
    #[serde(default)]
    pub histogram: String,
}

impl Distribution {
    /// That of these times.
    pub fn of(times: &Times) -> Self {
        if times.count() == 0 {
            return Self::default();
        }
        let mut bytes = Vec::new();
        V2DeflateSerializer::new().serialize(times.histogram(), &mut bytes).expect("a vector takes all bytes");
        Self {
            count: times.count(),
            p50: times.quantile_ms(0.5),
            p90: times.quantile_ms(0.9),
            p99: times.quantile_ms(0.99),
            p99_9: times.quantile_ms(0.999),
            p99_99: times.quantile_ms(0.9999),
            max: times.quantile_ms(1.0),
            histogram: STANDARD.encode(bytes),
        }
    }

    /// The histogram in nanoseconds; none if nothing was counted, or if it is not one.
    pub fn histogram(&self) -> Option<Histogram<u64>> {
        let bytes = STANDARD.decode(&self.histogram).ok().filter(|bytes| !bytes.is_empty())?;
        Deserializer::new().deserialize(&mut bytes.as_slice()).ok()
    }
}

/// Times between two clocks that are known to a certain error only. What is not above it is no number: it is absent.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Abroad {
    pub count: u64,
    /// Each time may be so much longer or shorter.
    pub error_ms: f64,
    pub p50: Option<f64>,
    pub p90: Option<f64>,
    pub p99: Option<f64>,
    pub p99_9: Option<f64>,
    pub p99_99: Option<f64>,
    pub max: Option<f64>,
    /// As those of the other distributions; its times are no more exact than these.
    pub histogram: String,
}

impl Abroad {
    /// That of these times.
    pub fn of(times: &Times, error_ns: u64) -> Self {
        let Distribution { count, p50, p90, p99, p99_9, p99_99, max, histogram } = Distribution::of(times);
        let error_ms = error_ns as f64 / 1e6;
        let known = |ms: f64| (ms > error_ms).then_some(ms);
        Self {
            count,
            error_ms,
            p50: known(p50),
            p90: known(p90),
            p99: known(p99),
            p99_9: known(p99_9),
            p99_99: known(p99_99),
            max: known(max),
            histogram,
        }
    }

    /// From the shortest to the longest.
    pub fn quantiles(&self) -> [Option<f64>; 6] {
        [self.p50, self.p90, self.p99, self.p99_9, self.p99_99, self.max]
    }
}

/// A rate that `saturate` tried.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Step {
    /// `search` while the highest rate is looked for, `measure` at a part of it.
    pub kind: String,
    /// The part of the highest rate: 0.1 to 0.9. Absent while searching.
    #[serde(default)]
    pub fraction: Option<f64>,
    pub offered_per_second: f64,
    pub achieved_per_second: f64,
    /// Whether all thresholds held, and the first that did not.
    pub passed: bool,
    #[serde(default)]
    pub breached: Option<String>,
    pub generator_bound: bool,
    pub generator_cpu_percent: f64,
    /// Of one core; absent where the server's process is not known.
    #[serde(default)]
    pub server_cpu_percent: Option<f64>,
    pub latency: Latencies,
}

/// One second of the run.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Second {
    /// Its end, in seconds since the run began.
    pub at: f64,
    /// How long it really was; counts are of that time.
    pub length: f64,
    /// What the scenario calls this part of it: `opening`, `messages`, `answers`, `spike`.
    pub phase: String,
    pub open: u32,
    /// How many sessions are wanted at that time.
    pub users: u32,
    /// Messages in this second.
    pub offered: u64,
    pub sent: u64,
    pub acked: u64,
    pub delivered: u64,
    /// Events in this second.
    pub errors: u64,
    pub cut: u64,
    pub unsent: u64,
    pub ack: Option<Brief>,
    pub delivery: Option<Brief>,
    pub opening: Option<Brief>,
    pub schedule_error: Option<Brief>,
    /// Of one core, over all generators.
    pub generator_cpu_percent: f64,
    pub generator_memory_bytes: Option<u64>,
    pub server_cpu_percent: Option<f64>,
    /// Resident, of the server's process.
    pub server_memory_bytes: Option<u64>,
    /// The server's own metrics that say how it is.
    #[serde(default)]
    pub server_metrics: BTreeMap<String, f64>,
}

/// A second's distribution, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Brief {
    pub p50: f64,
    pub p99: f64,
    pub max: f64,
}

impl Brief {
    /// None if there are no times.
    pub fn of(times: &Times) -> Option<Self> {
        let quantile = |quantile| times.quantile_ms(quantile);
        (times.count() > 0).then(|| Self { p50: quantile(0.5), p99: quantile(0.99), max: quantile(1.0) })
    }
}

/// A process that made load.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Generator {
    /// The agent's name; empty for a run without agents.
    pub name: String,
    pub build: Build,
    /// Of one core, while messages were due.
    pub cpu_percent: f64,
    /// Of its core, the busiest thread in the same time.
    #[serde(default)]
    pub busiest_thread_percent: f64,
    pub memory_bytes_max: Option<u64>,
    /// How far its clock is ahead of the coordinator's, and by how much that may be wrong.
    #[serde(default)]
    pub clock_offset_ms: Option<(f64, f64)>,
    pub host: Host,
}

/// Which build it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Build {
    pub version: String,
    pub commit: String,
    pub profile: String,
    pub target: String,
    pub rustc: String,
}

/// A machine, as far as it matters.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    pub name: String,
    pub processor: String,
    /// Of the machine, and those that the process may use.
    pub cores: u32,
    pub cores_allowed: u32,
    pub memory_bytes: u64,
    pub kernel: String,
    pub distribution: String,
    /// Kernel settings and limits that bound what can be measured, by name.
    pub settings: BTreeMap<String, String>,
}

/// What is known of the server.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Server {
    /// Where clients connected.
    pub url: String,
    /// As its metrics or its program say it; empty if they do not.
    pub version: String,
    pub pid: Option<u32>,
    /// Where its metrics were asked for.
    pub metrics_url: Option<String>,
    /// Of one core, all threads and the kernel's part included, while messages were due.
    pub cpu_percent: Option<f64>,
    /// The same, per stored message.
    pub cpu_us_per_message: Option<f64>,
    pub memory_bytes_max: Option<u64>,
    /// Metrics that changed while messages were due: by how much.
    #[serde(default)]
    pub metrics_growth: BTreeMap<String, f64>,
}

/// What a session costs: memory when all were open less memory before the first, by the number of sessions.
/// Where generator and server share a machine, the kernel's part is that of both ends.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct SessionMemory {
    pub sessions: u32,
    /// Named caches of the kernel's slab allocator: bytes that they grew by. Absent without the right to read them.
    #[serde(default)]
    pub kernel_slabs: Option<BTreeMap<String, i64>>,
    pub kernel_bytes_per_session: Option<f64>,
    /// Growth of proportional set size by session.
    pub server_bytes_per_session: Option<f64>,
    pub generator_bytes_per_session: Option<f64>,
    /// Whether both ends are on this machine, so that the kernel's part is of two sockets.
    pub both_ends: bool,
}

/// Why a file is no result.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It cannot be read.
    #[error("{path}: {error}")]
    Io {
        /// Which.
        path: String,
        /// Why.
        error: std::io::Error,
    },
    /// It is something else.
    #[error("{path} is no result of ringway-loadgen: {error}")]
    Malformed {
        /// Which.
        path: String,
        /// Why.
        error: serde_json::Error,
    },
    /// It is from another age.
    #[error("{path} has format {found}; this program reads {FORMAT}")]
    Format {
        /// Which.
        path: String,
        /// What it says.
        found: u32,
    },
}

impl RunResult {
    /// Reads a file.
    pub fn read(path: &std::path::Path) -> Result<Self, ReadError> {
        #[derive(Deserialize)]
        struct Stamped {
            format: u32,
        }
        let named = || path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|error| ReadError::Io { path: named(), error })?;
        let malformed = |error| ReadError::Malformed { path: named(), error };
        // The number first: a later format need not look like this one.
        match serde_json::from_str::<Stamped>(&text).map_err(malformed)?.format {
            FORMAT => serde_json::from_str(&text).map_err(malformed),
            found => Err(ReadError::Format { path: named(), found }),
        }
    }

    /// Writes a file.
    pub fn write(&self, path: &std::path::Path) -> std::io::Result<()> {
        let text = serde_json::to_string_pretty(self).expect("a result is plain data");
        std::fs::write(path, text + "\n")
    }

    /// Whether nothing was lost, doubled, reordered or forgotten.
    pub fn is_clean(&self) -> bool {
        self.counts.broken() == 0
    }

    /// How many sessions were wanted and never open.
    pub fn never_opened(&self) -> u64 {
        let opened = (self.counts.opened - self.counts.reopened).max(u64::from(self.open));
        u64::from(self.users).saturating_sub(opened)
    }

    /// Whether it is as good as a run can be: what a page says is what the exit code says.
    pub fn passed(&self) -> bool {
        Outcome::of(self) == Outcome::Good
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_survives_being_written() {
        let mut times = Times::default();
        for ms in 1..=1_000_u64 {
            times.record(ms * 1_000_000);
        }
        let written = Distribution::of(&times);
        let read: Distribution = serde_json::from_str(&serde_json::to_string(&written).unwrap()).unwrap();
        assert_eq!(read, written);
        assert_eq!(read.histogram().unwrap(), *times.histogram());
        assert_eq!(Distribution::of(&Times::default()).histogram(), None);
        assert_eq!(Distribution { histogram: "AAAA".to_owned(), ..Distribution::default() }.histogram(), None);
    }

    #[test]
    fn what_is_not_above_the_clocks_error_is_not_shown() {
        let mut times = Times::default();
        for ms in 1..=100_u64 {
            times.record(ms * 1_000_000);
        }
        let abroad = Abroad::of(&times, 90_500_000);
        assert_eq!((abroad.count, abroad.p50, abroad.p90), (100, None, None));
        assert!(abroad.p99.unwrap() > 90.0 && abroad.max.unwrap() > 99.0);
        let written = serde_json::to_value(&abroad).unwrap();
        assert!(written["p50"].is_null() && (written["error_ms"].as_f64().unwrap() - 90.5).abs() < 1e-9);
        assert_eq!(Abroad::of(&times, 200_000_000).quantiles(), [None; 6]);
        assert!(Abroad::of(&times, 10).quantiles().iter().all(Option::is_some));
        assert_eq!(Abroad::of(&Times::default(), 0).quantiles(), [None; 6]);
    }

    #[test]
    fn a_document_survives_and_another_format_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.json");
        let mut result = RunResult { format: FORMAT, users: 4, ..RunResult::default() };
        result.counts.acked = 7;
        result.write(&path).unwrap();
        let read = RunResult::read(&path).unwrap();
        assert_eq!((read.users, read.counts.acked), (4, 7));
        RunResult { format: FORMAT + 1, ..result }.write(&path).unwrap();
        assert!(matches!(RunResult::read(&path), Err(ReadError::Format { found, .. }) if found == FORMAT + 1));
        std::fs::write(&path, "[]").unwrap();
        assert!(matches!(RunResult::read(&path), Err(ReadError::Malformed { .. })));
    }
}
