//! Follows a run: shows it, exports it, and adds to its result what the engine does not know.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::interval::Interval;
use crate::report::export::{IntervalLog, JsonLines, LiveMetrics};
use crate::report::live::Live;
use crate::report::process;
use crate::report::scrape::{Metrics, Sample, Scraper};
use crate::result::{Brief, Generator, RunResult, Second, Server, SessionMemory};
use crate::target::Target;

/// The server's metrics that are kept by the second: how much it holds, and how far behind it is.
const KEPT: [&str; 6] = [
    "ringway_chat_sessions",
    "ringway_connections",
    "ringway_connection_bytes",
    "ringway_chat_overlay_bytes",
    "ringway_store_lag_bytes",
    "ringway_chat_awaited_reads",
];

/// Where a run's results go, and what is watched meanwhile.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Results")]
pub struct Outputs {
    /// Runs of one label are repetitions of one measurement, when reports compare; the scenario's name if not given.
    #[arg(long)]
    pub label: Option<String>,
    /// Writes the result to this file; `ringway-loadgen report` reads it.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Writes the result as one HTML page that needs nothing else.
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Writes an HdrHistogram interval log: all times in nanoseconds, by second and kind.
    #[arg(long, value_name = "FILE")]
    pub hlog: Option<PathBuf>,
    /// Writes a JSON line a second while it goes on; - is standard output.
    #[arg(long, value_name = "FILE")]
    pub export_jsonl: Option<PathBuf>,
    /// Serves live metrics for Prometheus at this address, under /metrics.
    #[arg(long, value_name = "ADDRESS")]
    pub prometheus: Option<SocketAddr>,
    /// Where the server's metrics are, such as <http://127.0.0.1:8801/metrics>; they are recorded beside ours.
    #[arg(long, value_name = "URL")]
    pub server_metrics: Option<String>,
    /// One more of the server's metrics to keep by the second, labels included; may be given again.
    #[arg(long, value_name = "NAME", requires = "server_metrics")]
    pub server_metric: Vec<String>,
    /// The server's process, if it is on this machine: its processor time and memory are recorded.
    #[arg(long, value_name = "PID")]
    pub server_pid: Option<u32>,
}

/// A result cannot be left where it was asked for.
#[derive(Debug, thiserror::Error)]
#[error("{what} cannot be written: {error}")]
pub struct OutputError {
    what: String,
    error: std::io::Error,
}

fn at(path: &Path) -> impl FnOnce(std::io::Error) -> OutputError {
    let what = path.display().to_string();
    move |error| OutputError { what, error }
}

/// Memory at one moment.
#[derive(Debug, Clone, Default)]
struct Held {
    slabs: Option<BTreeMap<String, i64>>,
    server: Option<u64>,
    generator: Option<u64>,
}

/// Follows one run from before its first connection.
pub struct Recorder {
    outputs: Outputs,
    url: String,
    began: SystemTime,
    live: Live,
    hlog: Option<IntervalLog>,
    lines: Option<JsonLines>,
    metrics: Option<LiveMetrics>,
    scraper: Option<Scraper>,
    /// What went wrong while writing; told at the end, for a full disk must not end a run.
    trouble: Option<OutputError>,
    series: Vec<Second>,
    empty: Held,
    full: Option<(u32, Held)>,
    /// The server when messages began to be due, and when the last did.
    due: Option<(Due, Due)>,
    generator_memory_max: Option<u64>,
}

#[derive(Debug, Clone)]
struct Due {
    at: f64,
    acked: u64,
    sample: Sample,
}

impl Recorder {
    /// Opens everything that was asked for. `name` stands in the live view until the result has a label.
    pub fn start(outputs: Outputs, name: &str, url: &str) -> Result<Self, OutputError> {
        // What cannot be written is said now, and not after an hour.
        for path in [&outputs.json, &outputs.report].into_iter().flatten() {
            let was_there = path.exists();
            File::options().append(true).create(true).open(path).map_err(at(path))?;
            if !was_there {
                // Whoever looks for it looks for a result.
                std::fs::remove_file(path).map_err(at(path))?;
            }
        }
        let began = SystemTime::now();
        let command = command();
        let hlog = outputs.hlog.as_deref().map(|path| IntervalLog::create(path, &command, began).map_err(at(path)));
        let lines = outputs.export_jsonl.as_deref().map(|path| JsonLines::create(path).map_err(at(path)));
        let metrics = match outputs.prometheus {
            Some(address) => {
                let named = |error| OutputError { what: address.to_string(), error };
                let (metrics, address) = LiveMetrics::serve(address).map_err(named)?;
                eprintln!("live metrics at http://{address}/metrics");
                Some(metrics)
            }
            None => None,
        };
        let scraper = if outputs.server_pid.is_some() || outputs.server_metrics.is_some() {
            let named = |error| OutputError { what: "a thread that looks at the server".to_owned(), error };
            let scraper = Scraper::start(outputs.server_pid, outputs.server_metrics.as_deref()).map_err(named)?;
            complain(&outputs, &scraper.latest());
            Some(scraper)
        } else {
            None
        };
        let empty = Held::now(outputs.server_pid);
        Ok(Self {
            url: url.to_owned(),
            began,
            live: Live::new(&format!("{name}, {url}")),
            hlog: hlog.transpose()?,
            lines: lines.transpose()?,
            metrics,
            scraper,
            trouble: None,
            series: Vec::new(),
            empty,
            full: None,
            due: None,
            generator_memory_max: None,
            outputs,
        })
    }

    /// Takes an interval in.
    pub fn take(&mut self, interval: &Interval) {
        let sample = self.scraper.as_ref().map(Scraper::latest).unwrap_or_default();
        let second = self.second(interval, &sample);
        self.generator_memory_max = self.generator_memory_max.max(second.generator_memory_bytes);
        self.note_due(interval, sample);
        self.weigh(interval);
        self.live.show(interval, &second);
        if let Some(metrics) = &mut self.metrics {
            metrics.take(interval);
        }
        let written = self.lines.as_mut().map_or(Ok(()), |lines| lines.write(&second));
        let logged = self.hlog.as_mut().map_or(Ok(()), |hlog| hlog.write(interval));
        if let Err(error) = written.and(logged) {
            let what = "what is exported meanwhile".to_owned();
            self.trouble.get_or_insert(OutputError { what, error });
        }
        self.series.push(second);
    }

    fn second(&self, interval: &Interval, sample: &Sample) -> Second {
        let (tally, counts) = (&interval.tally, &interval.tally.counts);
        let kept = |name: &&String| {
            KEPT.contains(&name.as_str()) || self.outputs.server_metric.iter().any(|more| more == *name)
        };
        Second {
            at: interval.at,
            length: interval.length,
            phase: interval.phase.clone(),
            open: interval.open,
            users: interval.users,
            offered: counts.offered,
            sent: counts.sent,
            acked: counts.acked,
            delivered: counts.delivered,
            errors: tally.errors.values().sum(),
            cut: counts.cut,
            unsent: counts.unsent,
            ack: Brief::of(&tally.ack),
            delivery: Brief::of(&tally.delivery),
            opening: Brief::of(&tally.opening),
            schedule_error: Brief::of(&tally.schedule),
            generator_cpu_percent: interval.generator_cpu_percent,
            generator_memory_bytes: process::resident_bytes(std::process::id()),
            server_cpu_percent: sample.cpu_percent,
            server_memory_bytes: sample.memory_bytes,
            server_metrics: sample
                .metrics
                .iter()
                .filter(|(name, _)| kept(name))
                .map(|(k, v)| (k.clone(), *v))
                .collect(),
        }
    }

    fn note_due(&mut self, interval: &Interval, sample: Sample) {
        if interval.seconds.is_none() || interval.phase == "answers" {
            return;
        }
        let now = Due { at: interval.at, acked: interval.total.acked, sample };
        match &mut self.due {
            Some((_, last)) => *last = now,
            none => *none = Some((now.clone(), now)),
        }
    }

    /// When all are open and nobody has said anything yet; again while that lasts, for memory settles.
    fn weigh(&mut self, interval: &Interval) {
        let is_quiet = interval.total.offered == interval.tally.counts.offered;
        let settles = interval.seconds.is_some_and(|seconds| seconds % 10 == 0);
        if interval.open > 0 && is_quiet && settles {
            self.full = Some((interval.open, Held::now(self.outputs.server_pid)));
        }
    }

    /// Completes the result, writes it wherever it was asked for, and prints the table.
    pub fn finish(mut self, result: &mut RunResult) -> Result<(), OutputError> {
        self.live.end();
        result.label = self.outputs.label.clone().unwrap_or_else(|| result.scenario.name.clone());
        result.command = command();
        result.began_unix_ms = self.began.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
        if result.generators.is_empty() {
            let mut this = Generator::this("");
            this.cpu_percent = result.generator_cpu_percent;
            this.busiest_thread_percent = result.busiest_thread_percent;
            this.memory_bytes_max = self.generator_memory_max;
            result.generators.push(this);
        }
        result.server = Some(self.server());
        result.memory = self.memory();
        result.series = std::mem::take(&mut self.series);
        // Standard output may be taken by lines for a program.
        if self.outputs.export_jsonl.as_deref() == Some(Path::new("-")) {
            eprintln!("{result}");
        } else {
            println!("{result}");
        }
        if let Some(path) = &self.outputs.json {
            result.write(path).map_err(at(path))?;
        }
        if let Some(path) = &self.outputs.report {
            std::fs::write(path, crate::report::html::page(std::slice::from_ref(result))).map_err(at(path))?;
        }
        self.trouble.map_or(Ok(()), Err)
    }

    fn server(&self) -> Server {
        let mut server = Server {
            url: self.url.clone(),
            pid: self.outputs.server_pid,
            metrics_url: self.outputs.server_metrics.clone(),
            memory_bytes_max: self.series.iter().filter_map(|second| second.server_memory_bytes).max(),
            ..Server::default()
        };
        let Some((first, last)) = &self.due else { return server };
        server.version = version(&last.sample.metrics);
        let seconds = last.at - first.at;
        if let Some((from, to)) = first.sample.cpu_seconds.zip(last.sample.cpu_seconds)
            && seconds > 0.0
        {
            server.cpu_percent = Some((to - from) / seconds * 100.0);
            let messages = last.acked - first.acked;
            server.cpu_us_per_message = (messages > 0).then(|| (to - from) * 1e6 / messages as f64);
        }
        let growth = |(name, to): (&String, &f64)| {
            let grown = to - first.sample.metrics.get(name)?;
            (grown != 0.0).then(|| (name.clone(), grown))
        };
        server.metrics_growth = last.sample.metrics.iter().filter_map(growth).collect();
        server
    }

    fn memory(&self) -> Option<SessionMemory> {
        let (sessions, full) = self.full.as_ref()?;
        let each = |grown: f64| grown / f64::from(*sessions);
        let grown = |full: Option<u64>, empty: Option<u64>| Some(each(full? as f64 - empty? as f64));
        let kernel_slabs = full.slabs.clone().zip(self.empty.slabs.as_ref()).map(|(mut slabs, before)| {
            for (name, bytes) in &mut slabs {
                *bytes -= before.get(name).copied().unwrap_or(0);
            }
            slabs.retain(|_, bytes| *bytes != 0);
            slabs
        });
        Some(SessionMemory {
            sessions: *sessions,
            kernel_bytes_per_session: kernel_slabs.as_ref().map(|slabs| each(slabs.values().sum::<i64>() as f64)),
            kernel_slabs,
            server_bytes_per_session: grown(full.server, self.empty.server),
            generator_bytes_per_session: grown(full.generator, self.empty.generator),
            both_ends: Target::of_url(&self.url, None, "/").is_ok_and(|target| target.address.ip().is_loopback()),
        })
    }
}

impl Held {
    fn now(server: Option<u32>) -> Self {
        Self {
            slabs: process::slabs(),
            server: server.and_then(process::proportional_bytes),
            generator: process::proportional_bytes(std::process::id()),
        }
    }
}

/// What was named and is not there leaves holes in the page: whoever named it hears of it at once.
fn complain(outputs: &Outputs, sample: &Sample) {
    if let Some(url) = outputs.server_metrics.as_ref().filter(|_| sample.metrics.is_empty()) {
        eprintln!(
            "ringway-loadgen: there are no metrics at {url} (yet): what is not there will be missing in the result"
        );
    }
    if let Some(pid) = outputs.server_pid.filter(|_| sample.cpu_seconds.is_none()) {
        eprintln!(
            "ringway-loadgen: there is no process {pid}: the server's processor time will be missing in the result"
        );
    }
}

/// Labels of `ringway_build_info`, as Prometheus' own convention has it.
fn version(metrics: &Metrics) -> String {
    let labels = metrics.keys().find_map(|name| name.strip_prefix("ringway_build_info{")?.strip_suffix('}'));
    labels
        .unwrap_or_default()
        .replace(['"', ','], " ")
        .replace('=', " ")
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
}

/// This process's command line, quoted for a shell.
fn command() -> String {
    std::env::args().map(|argument| quoted(&argument)).collect::<Vec<_>>().join(" ")
}

fn quoted(argument: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+".contains(c);
    if !argument.is_empty() && argument.chars().all(plain) {
        return argument.to_owned();
    }
    format!("'{}'", argument.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_can_be_pasted() {
        assert_eq!(quoted("--url=ws://127.0.0.1:8800"), "--url=ws://127.0.0.1:8800");
        assert_eq!(quoted("it's here"), r"'it'\''s here'");
        assert_eq!(quoted(""), "''");
    }

    #[test]
    fn a_version_is_what_the_build_says() {
        let name = "ringway_build_info{version=\"0.1.0\",commit=\"abc\"}".to_owned();
        assert_eq!(version(&Metrics::from([(name, 1.0)])), "version 0.1.0 commit abc");
        assert_eq!(version(&Metrics::new()), "");
    }
}
