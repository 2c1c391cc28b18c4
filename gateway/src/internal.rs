//! The internal listener: health and metrics, for operators' eyes only.
//!
//! One thread with plain blocking sockets and a deadline on each: a few small requests a minute need no
//! ring, and what the shards do to themselves must not silence it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use storage::counters::StoreCounters;
use storage::store::Store;
use wire::http::{HttpLimits, Method, Progress, RequestReader, Response, write_response};
use wire::json::encode_problem;

use crate::driver::{Phase, PhaseCell, Published};
use crate::metrics;

/// How long a peer may take for its request, and for one write of the answer: there is one thread for all.
const PATIENCE: Duration = Duration::from_secs(5);
/// Requests are heads without bodies.
const REQUEST_BYTES_MAX: usize = 16 * 1024;

/// What the internal listener reports on.
pub struct Status {
    /// Of the process.
    pub phase: Arc<PhaseCell>,
    /// What each shard last said about itself.
    pub shards: Vec<Arc<Mutex<Published>>>,
    /// What the store counts.
    pub store_counters: Arc<StoreCounters>,
    /// The store, until it is shut down.
    pub store: Mutex<Option<Store>>,
}

impl Status {
    /// Why clients should not be sent here, if they should not.
    fn trouble(&self) -> Option<String> {
        if self.phase.get() != Phase::Serving {
            return Some("the node is shutting down".to_owned());
        }
        let shards = || self.shards.iter().map(|shard| shard.lock().expect("nobody panics while holding it"));
        if shards().any(|shard| !shard.is_serving) {
            return Some("shards are still recovering".to_owned());
        }
        if shards().any(|shard| shard.is_fenced) {
            return Some("another process took over the storage".to_owned());
        }
        self.store.lock().expect("nobody panics while holding it").as_ref().and_then(Store::trouble)
    }
}

/// A bound listener that does not answer yet.
pub struct Internal {
    listener: TcpListener,
    address: SocketAddr,
}

impl Internal {
    /// Takes the address.
    pub fn bind(address: SocketAddr) -> std::io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        Ok(Self { address: listener.local_addr()?, listener })
    }

    /// The address, with the port that was chosen if 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers from a thread of its own, for as long as the process lives.
    pub fn serve(self, status: Arc<Status>) -> std::io::Result<()> {
        let answer = move || {
            for stream in self.listener.incoming() {
                match stream {
                    // A peer that goes away in the middle is no news.
                    Ok(stream) => drop(answer_one(stream, &status, PATIENCE)),
                    // Out of descriptors, most likely: looking again at once would only spin.
                    Err(_) => std::thread::sleep(Duration::from_millis(100)),
                }
            }
        };
        std::thread::Builder::new().name("internal".to_owned()).spawn(answer).map(drop)
    }
}

fn answer_one(mut stream: TcpStream, status: &Status, patience: Duration) -> std::io::Result<()> {
    let deadline = Instant::now() + patience;
    stream.set_write_timeout(Some(patience))?;
    let mut input = Vec::new();
    let mut reader = RequestReader::new();
    let mut chunk = [0; 4_096];
    let mut out = Vec::new();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        stream.set_read_timeout(Some(left))?;
        let read = stream.read(&mut chunk)?;
        if read == 0 || input.len() + read > REQUEST_BYTES_MAX {
            return Ok(());
        }
        input.extend_from_slice(&chunk[..read]);
        match reader.poll(&HttpLimits::default(), &input) {
            Ok(Progress::Incomplete | Progress::Continue) => {}
            Ok(Progress::Request(request)) => {
                let reads = matches!(request.method, Method::Get | Method::Head);
                write_answer(&mut out, &request.path, reads, status);
                break;
            }
            Err(error) => {
                problem(&mut out, error.status(), &error.to_string());
                break;
            }
        }
    }
    stream.write_all(&out)
}

fn write_answer(out: &mut Vec<u8>, path: &str, reads: bool, status: &Status) {
    let text = |content_type| Response { content_type, keep_alive: false, ..Response::default() };
    match path {
        _ if !reads => problem(out, 405, "Everything here is read with GET."),
        "/health/live" => write_response(out, &text("text/plain; charset=utf-8"), b"live\n"),
        "/health/ready" => match status.trouble() {
            None => write_response(out, &text("text/plain; charset=utf-8"), b"ready\n"),
            Some(trouble) => problem(out, 503, &trouble),
        },
        "/metrics" => {
            let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            write_response(out, &text(content_type), metrics::encode(status).as_bytes());
        }
        _ => problem(out, 404, "There is nothing at this address."),
    }
}

fn problem(out: &mut Vec<u8>, status: u16, detail: &str) {
    let mut body = Vec::new();
    encode_problem(&mut body, status, detail);
    let response =
        Response { status, content_type: "application/problem+json", keep_alive: false, ..Response::default() };
    write_response(out, &response, &body);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The next one in line is somebody's health check.
    #[test]
    fn a_request_that_trickles_is_given_up() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let trickle = std::thread::spawn(move || {
            // A line of eight kilobytes would be read; the end of the connection ends this first.
            let pieces = std::iter::repeat_n(b'x', REQUEST_BYTES_MAX);
            pieces
                .take_while(|byte| {
                    std::thread::sleep(Duration::from_millis(2));
                    peer.write_all(&[*byte]).is_ok()
                })
                .count()
        });
        let status = Status {
            phase: Arc::default(),
            shards: Vec::new(),
            store_counters: Arc::default(),
            store: Mutex::new(None),
        };
        let (stream, _) = listener.accept().unwrap();
        drop(answer_one(stream, &status, Duration::from_millis(100)));
        assert!(trickle.join().unwrap() < REQUEST_BYTES_MAX / 2, "it was read to the end");
    }
}
