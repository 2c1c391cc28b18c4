//! The server seen from beside: its process, and its metrics over HTTP, once a second from a thread of its own.
//! A server that stalls stalls this thread and nothing else.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::report::process;

/// Metrics by name, labels included.
pub type Metrics = BTreeMap<String, f64>;

const EVERY: Duration = Duration::from_millis(500);
const PATIENCE: Duration = Duration::from_secs(2);
/// More than any server's metrics take; what comes beyond it is not read.
const ANSWER_BYTES_MAX: u64 = 8 << 20;

/// What was seen last.
#[derive(Debug, Clone, Default)]
pub struct Sample {
    /// Of one core, since the sample before.
    pub cpu_percent: Option<f64>,
    pub cpu_seconds: Option<f64>,
    pub memory_bytes: Option<u64>,
    pub metrics: Metrics,
}

/// Looks at the server until it is dropped.
#[derive(Debug)]
pub struct Scraper {
    latest: Arc<Mutex<Sample>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Scraper {
    /// Looks at a process, at metrics, or at both.
    pub fn start(pid: Option<u32>, metrics_url: Option<&str>) -> std::io::Result<Self> {
        let latest = Arc::new(Mutex::new(look(pid, metrics_url)));
        let stop = Arc::new(AtomicBool::new(false));
        let (url, shared, stopped) = (metrics_url.map(str::to_owned), Arc::clone(&latest), Arc::clone(&stop));
        let thread = std::thread::Builder::new().name("scraper".to_owned()).spawn(move || {
            let mut before = (Instant::now(), shared.lock().expect("nobody panics holding it").cpu_seconds);
            while !stopped.load(Ordering::Relaxed) {
                std::thread::park_timeout(EVERY);
                let mut sample = look(pid, url.as_deref());
                let now = Instant::now();
                let seconds = (now - before.0).as_secs_f64();
                sample.cpu_percent =
                    sample.cpu_seconds.zip(before.1).map(|(cpu, then)| (cpu - then) / seconds.max(1e-3) * 100.0);
                before = (now, sample.cpu_seconds);
                *shared.lock().expect("nobody panics holding it") = sample;
            }
        })?;
        Ok(Self { latest, stop, thread: Some(thread) })
    }

    /// What was seen last, at most a second ago unless the server stalls.
    pub fn latest(&self) -> Sample {
        self.latest.lock().expect("nobody panics holding it").clone()
    }
}

impl Drop for Scraper {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // A panic there has been printed; the run's result stands without it.
            let _ = thread.join();
        }
    }
}

fn look(pid: Option<u32>, metrics_url: Option<&str>) -> Sample {
    Sample {
        cpu_percent: None,
        cpu_seconds: pid.and_then(process::cpu_seconds),
        memory_bytes: pid.and_then(process::resident_bytes),
        metrics: metrics_url.and_then(|url| get(url).ok()).map(|text| parse(&text)).unwrap_or_default(),
    }
}

/// The body of what stands at a URL.
fn get(url: &str) -> std::io::Result<String> {
    let rest = url.strip_prefix("http://").unwrap_or(url);
    let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let path = if path.is_empty() { "/metrics" } else { path };
    let address = host.to_socket_addrs()?.next().ok_or(std::io::ErrorKind::AddrNotAvailable)?;
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {host}\r\nAccept: text/plain\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").ok_or(std::io::ErrorKind::InvalidData)?;
    let ok = head.split_whitespace().nth(1) == Some("200");
    if ok { Ok(body.to_owned()) } else { Err(std::io::ErrorKind::InvalidData.into()) }
}

/// `name{label="value"} number [timestamp]`, one a line; the rest is comment.
pub(super) fn parse(text: &str) -> Metrics {
    let sample = |line: &str| -> Option<(String, f64)> {
        let name_bytes = if line.contains('{') { line.rfind('}')? + 1 } else { line.find(' ')? };
        let (name, rest) = line.split_at(name_bytes);
        let value: f64 = rest.split_whitespace().next()?.parse().ok()?;
        (!line.starts_with('#') && value.is_finite()).then(|| (name.to_owned(), value))
    };
    text.lines().filter_map(sample).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_read_with_labels_and_without() {
        let text = "# HELP a b 1\na_total 3\nb{code=\"4 0\"} 1.5 1700000000\nc NaN\nnothing\n{\n";
        let expected = [("a_total", 3.0), ("b{code=\"4 0\"}", 1.5)];
        assert_eq!(parse(text), expected.into_iter().map(|(name, value)| (name.to_owned(), value)).collect());
    }

    #[test]
    fn a_server_that_is_not_there_is_no_error() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        drop(listener);
        let scraper = Scraper::start(Some(std::process::id()), Some(&url)).unwrap();
        let sample = scraper.latest();
        assert!(sample.metrics.is_empty() && sample.cpu_seconds.is_some());
    }
}
