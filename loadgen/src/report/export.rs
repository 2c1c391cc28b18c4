//! What leaves while a run goes on: an interval log of histograms, a JSON line a second, metrics for Prometheus.

use std::fs::File;
use std::io::{BufWriter, Read as _, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{IntervalLogWriterBuilder, IntervalLogWriterError, Tag};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::interval::Interval;
use crate::result::Second;
use crate::tally::Times;

/// The distributions of an interval, by the names that they have everywhere.
fn named(interval: &Interval) -> [(&'static str, &Times); 5] {
    let tally = &interval.tally;
    [
        ("ack", &tally.ack),
        ("delivery", &tally.delivery),
        ("catch_up", &tally.catch_up),
        ("opening", &tally.opening),
        ("schedule_error", &tally.schedule),
    ]
}

/// An HdrHistogram interval log: for each interval a line for each distribution, by tag; in nanoseconds.
#[derive(Debug)]
pub struct IntervalLog {
    file: BufWriter<File>,
}

impl IntervalLog {
    /// Begins a file.
    pub fn create(path: &Path, comment: &str, began: SystemTime) -> std::io::Result<Self> {
        let mut file = BufWriter::new(File::create(path)?);
        IntervalLogWriterBuilder::new()
            .add_comment(comment)
            .add_comment("values in nanoseconds; one line for each tag and interval")
            .with_start_time(began)
            .with_base_time(began)
            .begin_log_with(&mut file, &mut V2DeflateSerializer::new())?;
        // The legend that other readers look for.
        writeln!(file, "\"StartTimestamp\",\"Interval_Length\",\"Interval_Max\",\"Interval_Compressed_Histogram\"")?;
        Ok(Self { file })
    }

    /// Writes what an interval brought; what brought nothing is left out.
    pub fn write(&mut self, interval: &Interval) -> std::io::Result<()> {
        let length = Duration::from_secs_f64(interval.length.max(0.0));
        let start = Duration::from_secs_f64(interval.at.max(0.0)).saturating_sub(length);
        let mut serializer = V2DeflateSerializer::new();
        // Without anything to say at its head it writes none: this goes on where the last interval ended.
        let mut writer = IntervalLogWriterBuilder::new().begin_log_with(&mut self.file, &mut serializer)?;
        // Between two clocks a time is no more exact than the result says, and no quantile of it is published.
        let all = named(interval).into_iter().chain([("abroad", &interval.tally.abroad)]);
        for (name, times) in all.filter(|(_, times)| times.count() > 0) {
            writer.write_histogram(times.histogram(), start, length, Tag::new(name)).map_err(|error| match error {
                IntervalLogWriterError::IoError(error) => error,
                IntervalLogWriterError::SerializeError(error) => std::io::Error::other(error.to_string()),
            })?;
        }
        self.file.flush()
    }
}

/// A JSON line a second, each a [`Second`].
pub struct JsonLines(Box<dyn Write>);

impl JsonLines {
    /// To a file, or to standard output for `-`.
    pub fn create(path: &Path) -> std::io::Result<Self> {
        if path.as_os_str() == "-" {
            return Ok(Self(Box::new(std::io::stdout())));
        }
        Ok(Self(Box::new(BufWriter::new(File::create(path)?))))
    }

    /// Writes a line, and lets it go at once: somebody follows.
    pub fn write(&mut self, second: &Second) -> std::io::Result<()> {
        let line = serde_json::to_string(second).expect("a second is plain data");
        writeln!(self.0, "{line}")?;
        self.0.flush()
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Quantile {
    of: &'static str,
    quantile: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct What {
    what: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Code {
    code: String,
}

/// A count and its name.
type Counted = (&'static str, fn(&Interval) -> u64);

/// How often what happened, by the names of the result.
const COUNTED: [Counted; 11] = [
    ("offered", |interval| interval.tally.counts.offered),
    ("sent", |interval| interval.tally.counts.sent),
    ("acked", |interval| interval.tally.counts.acked),
    ("delivered", |interval| interval.tally.counts.delivered),
    ("unsent", |interval| interval.tally.counts.unsent),
    ("unanswered", |interval| interval.tally.counts.unanswered),
    ("lost", |interval| interval.tally.counts.lost),
    ("doubled", |interval| interval.tally.counts.doubled),
    ("reordered", |interval| interval.tally.counts.reordered),
    ("cut", |interval| interval.tally.counts.cut),
    ("opened", |interval| interval.tally.counts.opened),
];

/// Live metrics, for a scraper.
#[derive(Debug)]
pub struct LiveMetrics {
    text: Arc<Mutex<String>>,
    registry: Registry,
    events: Family<What, Counter>,
    errors: Family<Code, Counter>,
    sessions: Family<What, Gauge>,
    quantiles: Family<Quantile, Gauge<f64, std::sync::atomic::AtomicU64>>,
    cpu: Gauge<f64, std::sync::atomic::AtomicU64>,
}

impl LiveMetrics {
    /// Serves at `http://ADDRESS/metrics` until the process ends. A port of 0 is replaced by one that is free.
    pub fn serve(address: SocketAddr) -> std::io::Result<(Self, SocketAddr)> {
        let listener = TcpListener::bind(address)?;
        let address = listener.local_addr()?;
        let text = Arc::new(Mutex::new(String::new()));
        let shared = Arc::clone(&text);
        std::thread::Builder::new().name("metrics".to_owned()).spawn(move || {
            for stream in listener.incoming().flatten() {
                let text = shared.lock().expect("nobody panics holding it").clone();
                // A scraper that hangs up has lost a scrape, and comes again.
                let _ = answer(stream, &text);
            }
        })?;
        let mut metrics = Self {
            text,
            registry: Registry::with_prefix("ringway_loadgen"),
            events: Family::default(),
            errors: Family::default(),
            sessions: Family::default(),
            quantiles: Family::default(),
            cpu: Gauge::default(),
        };
        let registry = &mut metrics.registry;
        registry.register("events", "What happened, by the names of the result", metrics.events.clone());
        registry.register("errors", "Errors by code, and closes by number", metrics.errors.clone());
        registry.register("sessions", "Sessions open and wanted", metrics.sessions.clone());
        registry.register("latency_seconds", "Times of the last second by quantile", metrics.quantiles.clone());
        registry.register("cpu_percent", "Processor of the generator, of one core", metrics.cpu.clone());
        metrics.publish();
        Ok((metrics, address))
    }

    /// Takes an interval in.
    pub fn take(&mut self, interval: &Interval) {
        for (what, count) in COUNTED {
            self.events.get_or_create(&What { what }).inc_by(count(interval));
        }
        for (code, count) in &interval.tally.errors {
            self.errors.get_or_create(&Code { code: code.clone() }).inc_by(*count);
        }
        self.sessions.get_or_create(&What { what: "open" }).set(i64::from(interval.open));
        self.sessions.get_or_create(&What { what: "wanted" }).set(i64::from(interval.users));
        self.cpu.set(interval.generator_cpu_percent);
        for (of, times) in named(interval).into_iter().filter(|(_, times)| times.count() > 0) {
            for (quantile, part) in [("0.5", 0.5), ("0.9", 0.9), ("0.99", 0.99), ("0.999", 0.999), ("1", 1.0)] {
                self.quantiles.get_or_create(&Quantile { of, quantile }).set(times.quantile_ms(part) / 1e3);
            }
        }
        self.publish();
    }

    fn publish(&self) {
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("writing to a string does not fail");
        *self.text.lock().expect("nobody panics holding it") = text;
    }
}

fn answer(mut stream: TcpStream, text: &str) -> std::io::Result<()> {
    const HEAD_BYTES_MAX: usize = 8_192;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    stream.set_write_timeout(Some(Duration::from_secs(2)))?;
    let (mut head, mut piece) = (Vec::new(), [0; 1_024]);
    while !head.windows(4).any(|four| four == b"\r\n\r\n") && head.len() < HEAD_BYTES_MAX {
        match stream.read(&mut piece)? {
            0 => return Ok(()),
            bytes => head.extend_from_slice(&piece[..bytes]),
        }
    }
    let (status, body) = if head.starts_with(b"GET /metrics") { ("200 OK", text) } else { ("404 Not Found", "") };
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interval() -> Interval {
        let mut interval = Interval { phase: "messages".to_owned(), at: 2.0, length: 1.0, ..Interval::default() };
        interval.tally.counts.acked = 3;
        interval.tally.error("unavailable");
        for ms in [1, 2, 3] {
            interval.tally.ack.record(ms * 1_000_000);
        }
        interval
    }

    #[test]
    fn a_scraper_sees_what_has_been_counted() {
        let (mut metrics, address) = LiveMetrics::serve("127.0.0.1:0".parse().unwrap()).unwrap();
        metrics.take(&interval());
        metrics.take(&interval());
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let seen = crate::report::scrape::parse(&text);
        assert!((seen["ringway_loadgen_events_total{what=\"acked\"}"] - 6.0).abs() < 1e-9, "{text}");
        assert!((seen["ringway_loadgen_errors_total{code=\"unavailable\"}"] - 2.0).abs() < 1e-9, "{text}");
        let p50 = seen["ringway_loadgen_latency_seconds{of=\"ack\",quantile=\"0.5\"}"];
        assert!((p50 - 0.002).abs() < 1e-5, "{text}");
    }

    #[test]
    fn an_interval_log_has_a_line_for_each_distribution_that_was_not_empty() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.hlog");
        let mut log = IntervalLog::create(&path, "a run", SystemTime::UNIX_EPOCH).unwrap();
        log.write(&interval()).unwrap();
        log.write(&interval()).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().filter(|line| line.starts_with("Tag=ack,1.000,1.000,")).count(), 2, "{text}");
        assert!(!text.contains("Tag=delivery"), "{text}");
    }
}
