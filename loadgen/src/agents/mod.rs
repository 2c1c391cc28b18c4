//! One run on several machines: a coordinator, and agents that do what it says.
//!
//! Both speak lines of JSON over TCP. The coordinator mints all tokens and gives each agent its part of the users; an
//! agent measures with its own clock. Of pairs whose two users are on two agents (`sessions.cross_share`) the books are
//! compared when all is over, and their latency is a distribution of its own (`abroad`): the coordinator measures all
//! clocks, as `clocks.rs` says, and tells each agent what its partner's times are in its own.
//!
//! ```text
//! coordinator                      agent
//! job {scenario, tokens, ...}  ->
//!                              <-  ready                     all of them, before anybody connects
//! clock                        ->
//!                              <-  clock {ns}                several times, one agent after the other
//! connect                      ->
//!                              <-  connected {began_ns}
//!                              <-  progress, once a second
//!                              <-  acks, as they are acknowledged, if they are wanted
//! begin {ahead_ns}             ->                            when all sessions are open
//! finish                       ->                            when nobody misses anything
//!                              <-  done {tally, abroad}
//! clock                        ->                            as before, when all are done
//! ```
//!
//! Acknowledged messages are never dropped for want of room: a coordinator that does not keep up with its file does not
//! read, the agent's few waiting pieces fill, and its users stand still, which its schedule error shows.
//!
//! Nothing is encrypted, and an agent does what whoever connects says: it is for networks of one's own.

mod agent;
mod clocks;
mod coordinator;

use std::io::{BufRead, Error, ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::client::Account;
use crate::credentials::Tokens;
use crate::result::Generator;
use crate::tally::Tally;
use crate::traffic::Abroad;

pub use agent::serve;
pub use coordinator::run;

/// How long one side may take to say or to take something before it counts as gone: agents tell something every second.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// How long an agent may take to get ready, and then wait for the others: reading tokens is most of that.
const READY_MAX: Duration = Duration::from_mins(2);
/// What a job may take, the tokens of a million users, and what a run tells, the books of as many.
const LOAD_BYTES_MAX: u64 = 1 << 30;
/// What anything else may take. Whoever says more is neither a coordinator nor an agent.
const WORD_BYTES_MAX: u64 = 1 << 20;

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum ToAgent {
    Job(Box<Job>),
    Clock,
    Connect,
    Begin {
        /// What to add to the times of the partner's run to have them in one's own.
        ahead_ns: i64,
    },
    Stop,
    Finish,
}

#[derive(Serialize, Deserialize)]
struct Job {
    scenario: String,
    tokens: Tokens,
    /// What all agents have in their messages.
    run: u32,
    abroad: Option<Abroad>,
    /// Whether acknowledged messages are wanted.
    acks: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum FromAgent {
    Ready {
        generator: Box<Generator>,
    },
    Clock {
        /// `CLOCK_MONOTONIC`.
        ns: u64,
    },
    Connected {
        /// When its run began, by the same clock.
        began_ns: u64,
    },
    Progress {
        tally: Tally,
        open: u32,
        was_open: u32,
        settled: bool,
        cpu_seconds: f64,
    },
    /// Whole lines of the file of acknowledged messages.
    Acks {
        lines: String,
    },
    Done {
        tally: Tally,
        abroad: Vec<Account>,
        memory_bytes_max: Option<u64>,
    },
    Failed {
        why: String,
    },
}

fn write<T: Serialize>(stream: &mut TcpStream, message: &T) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(message).expect("a message is plain data");
    line.push(b'\n');
    stream.write_all(&line)
}

/// Reads a line of so many bytes at most.
fn read<T: for<'a> Deserialize<'a>>(reader: &mut impl BufRead, bytes_max: u64) -> std::io::Result<T> {
    let mut line = Vec::new();
    let read = reader.take(bytes_max).read_until(b'\n', &mut line);
    // What a timeout is called by the system says nothing to people.
    read.map_err(|error| match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => Error::new(ErrorKind::TimedOut, "it said nothing for too long"),
        _ => error,
    })?;
    if line.last() == Some(&b'\n') {
        serde_json::from_slice(&line).map_err(|error| Error::new(ErrorKind::InvalidData, error))
    } else if line.len() as u64 == bytes_max {
        Err(Error::new(ErrorKind::InvalidData, format!("a line of more than {bytes_max} bytes")))
    } else {
        Err(ErrorKind::UnexpectedEof.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_without_an_end_is_not_read_on() {
        let mut endless = std::io::BufReader::new(std::io::repeat(b'x').take(1 << 26));
        let error = read::<ToAgent>(&mut endless, 1_000).err().unwrap();
        assert_eq!(error.to_string(), "a line of more than 1000 bytes");
        let read = |bytes: &[u8], bytes_max| read::<ToAgent>(&mut &*bytes, bytes_max);
        assert!(matches!(read(b"\"stop\"\n", 7), Ok(ToAgent::Stop)));
        assert!(read(b"\"stop\"\n", 6).is_err());
        // One that is cut is none, whatever it may say.
        assert_eq!(read(b"\"stop\"", 1_000).err().unwrap().kind(), ErrorKind::UnexpectedEof);
    }
}
