//! The file of acknowledged messages: one JSON object a line, written as they are acknowledged.
//!
//! A line is what the server promised: this message, at this seq, for as long as its durability class says. At the
//! end of a run come those that were sent and never answered, with seq 0: nobody promised them.

use std::fs::File;
use std::io::{BufRead, BufReader, Write as _};
use std::path::Path;

use crossbeam_channel::Sender;
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

/// Where acknowledged messages go.
#[derive(Debug)]
enum Sink {
    File(File),
    /// To whoever hands them to the coordinator of several machines. It takes no more than it can hand over, and whoever
    /// has more waits.
    Coordinator(Sender<String>),
}

/// Appends acknowledged messages to the file. Threads share it: the file is opened for appending, and
/// whole lines go down in one write.
#[derive(Debug)]
pub struct AckWriter {
    sink: Sink,
    lines: Vec<u8>,
}

impl AckWriter {
    /// Appends to `file`.
    pub fn new(file: File) -> Self {
        Self { sink: Sink::File(file), lines: Vec::new() }
    }

    /// Hands pieces of whole lines to whoever brings them to the file.
    pub(crate) fn handing_over(pieces: Sender<String>) -> Self {
        Self { sink: Sink::Coordinator(pieces), lines: Vec::new() }
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

    /// Notes whole lines that another has noted.
    pub(crate) fn note_lines(&mut self, lines: &str) {
        self.lines.extend_from_slice(lines.as_bytes());
    }

    /// Hands what was noted to the system, so that it survives this process; or on to the coordinator.
    pub fn flush(&mut self) -> std::io::Result<()> {
        // What failed half-way is not begun again: it would stand in the middle of a line.
        let lines = std::mem::take(&mut self.lines);
        match &mut self.sink {
            _ if lines.is_empty() => Ok(()),
            Sink::File(file) => file.write_all(&lines),
            Sink::Coordinator(pieces) => {
                let lines = std::str::from_utf8(&lines).expect("JSON is text");
                let mut sent = pieces_of(lines).map(|piece| pieces.send(piece.to_owned()));
                sent.all(|sent| sent.is_ok()).then_some(()).ok_or_else(|| std::io::ErrorKind::BrokenPipe.into())
            }
        }
    }
}

/// Whole lines, no more at once than others can wait for.
fn pieces_of(mut lines: &str) -> impl Iterator<Item = &str> {
    const PIECE_BYTES_MAX: usize = 64 << 10;
    std::iter::from_fn(move || {
        let most = &lines.as_bytes()[..lines.len().min(PIECE_BYTES_MAX)];
        let end = most.iter().rposition(|&byte| byte == b'\n').or_else(|| lines.find('\n'))? + 1;
        let (piece, rest) = lines.split_at(end);
        lines = rest;
        Some(piece)
    })
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

/// Reads all lines, and says whether the last one is cut: whoever wrote it was killed, or had no room left.
pub fn read(path: &Path) -> Result<(Vec<Ack>, bool), AcksError> {
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
    Ok((acks, !line.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ack(seq: u64) -> Ack {
        Ack {
            conversation: "d:1:2".to_owned(),
            seq,
            id: "0".repeat(36),
            generation: 1,
            time: 2,
            sender: 1,
            device: 1,
            body: "0".repeat(16),
        }
    }

    #[test]
    fn a_cut_last_line_is_left_out_and_told() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("acks");
        let mut writer = AckWriter::new(AckWriter::open(&path).unwrap());
        (1..=2).for_each(|seq| writer.note(&ack(seq)));
        writer.flush().unwrap();
        assert_eq!(read(&path).unwrap(), (vec![ack(1), ack(2)], false));
        let whole = std::fs::metadata(&path).unwrap().len();
        File::options().write(true).open(&path).unwrap().set_len(whole - 1).unwrap();
        assert_eq!(read(&path).unwrap(), (vec![ack(1)], true));
    }

    /// Many at once go in pieces of whole lines, each waits until there is room for it, and none is left out.
    #[test]
    fn what_is_handed_over_is_whole_and_in_its_order() {
        let (pieces, waiting) = crossbeam_channel::bounded(1);
        let mut writer = AckWriter::handing_over(pieces);
        let noting = std::thread::spawn(move || {
            for seq in 1..=2_000 {
                writer.note(&ack(seq));
            }
            writer.flush().unwrap();
        });
        let mut seqs = Vec::new();
        for (number, piece) in waiting.iter().enumerate() {
            assert!(piece.len() <= 64 << 10 && piece.ends_with('\n'), "{number}");
            seqs.extend(piece.lines().map(|line| serde_json::from_str::<Ack>(line).unwrap().seq));
        }
        noting.join().unwrap();
        assert_eq!(seqs, (1..=2_000).collect::<Vec<_>>());
    }

    #[test]
    fn whoever_has_nobody_to_hand_them_to_says_so() {
        let (pieces, _) = crossbeam_channel::bounded(1);
        let mut writer = AckWriter::handing_over(pieces);
        writer.note_lines("one\n");
        assert!(writer.flush().is_err());
    }
}
