//! The file of acknowledged messages: one JSON object a line, written as they are acknowledged.
//!
//! A line is what the server promised: this message, at this seq, for as long as its durability class says. At the
//! end of a run come those that were sent and never answered, with seq 0: nobody promised them.

use std::fs::File;
use std::io::{BufRead, BufReader, Write as _};
use std::path::Path;

use serde::{Deserialize, Serialize};

/// One acknowledged message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ack {
    /// The conversation's name.
    pub conversation: String,
    /// Its place there; 0 if it never was answered.
    pub seq: u64,
    /// The client's id, as a UUID.
    pub id: String,
    /// The server's generation.
    pub generation: u64,
    /// The server's time, in milliseconds since 1970.
    pub time: u64,
    /// Who sent it.
    pub sender: u64,
    /// From which device.
    pub device: u32,
    /// FNV-1a of the body, 16 hex digits.
    pub body: String,
}

impl Ack {
    /// Whether nobody knows what became of it.
    pub fn is_unknown(&self) -> bool {
        self.seq == 0
    }
}

/// Appends acknowledged messages to the file. Threads share it: the file is opened for appending, and
/// whole lines go down in one write.
#[derive(Debug)]
pub struct AckWriter {
    file: File,
    lines: Vec<u8>,
}

impl AckWriter {
    /// Appends to `file`.
    pub fn new(file: File) -> Self {
        Self { file, lines: Vec::new() }
    }

    /// Opens the file that several writers share.
    pub fn open(path: &Path) -> std::io::Result<File> {
        File::options().create(true).append(true).open(path)
    }

    /// Notes a message.
    pub fn note(&mut self, ack: &Ack) {
        serde_json::to_writer(&mut self.lines, ack).expect("writing into a Vec does not fail");
        self.lines.push(b'\n');
    }

    /// Hands what was noted to the system, so that it survives this process.
    pub fn flush(&mut self) -> std::io::Result<()> {
        // What failed half-way is not begun again: it would stand in the middle of a line.
        let lines = std::mem::take(&mut self.lines);
        if lines.is_empty() { Ok(()) } else { self.file.write_all(&lines) }
    }
}

/// Why a file of acknowledged messages cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AcksError {
    /// Not readable.
    #[error("the file of acknowledged messages cannot be read: {0}")]
    File(#[from] std::io::Error),
    /// Something else is in it.
    #[error("line {line} is not an acknowledged message: {error}")]
    Line {
        /// Which, from 1.
        line: usize,
        /// What is wrong.
        error: serde_json::Error,
    },
}

/// Reads all lines. The last may be cut, if whoever wrote it was killed.
pub fn read(path: &Path) -> Result<Vec<Ack>, AcksError> {
    let mut acks = Vec::new();
    let mut reader = BufReader::new(File::open(path)?);
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        reader.read_until(b'\n', &mut line)?;
        if line.last() != Some(&b'\n') {
            break;
        }
        acks.push(serde_json::from_slice(&line).map_err(|error| AcksError::Line { line: number, error })?);
    }
    Ok(acks)
}
