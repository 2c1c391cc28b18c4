//! What the simulated users write: a stamp that says when and by which count, and then filler.
//!
//! ```text
//! 8 hex digits   the run, so that leftovers of an earlier one are told apart
//! 8 hex digits   counts the messages of one sender, from 0
//! 16 hex digits  when it was due: nanoseconds since the run began
//! ...            filler up to the wanted size
//! ```

use std::fmt::Write as _;

/// Bytes of the stamp, and so of the smallest body.
pub const STAMP_BYTES: usize = 32;

/// What a body says of its message. It also is all that is needed to write the body again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    pub run: u32,
    pub counter: u32,
    pub due_ns: u64,
}

impl Stamp {
    /// Writes the body into `out`, whose contents it replaces.
    pub fn write(self, out: &mut String, bytes: usize) {
        const FILLER: &str = "the quick brown fox jumps over the lazy dog, and then it does so again ";
        out.clear();
        write!(out, "{:08x}{:08x}{:016x}", self.run, self.counter, self.due_ns).expect("writing to a String");
        while out.len() < bytes {
            out.push_str(&FILLER[..FILLER.len().min(bytes - out.len())]);
        }
    }

    /// Reads the stamp of a body; none if it is not one of ours.
    pub fn read(body: &str) -> Option<Self> {
        let part = |range: std::ops::Range<usize>| u64::from_str_radix(body.get(range)?, 16).ok();
        Some(Self { run: part(0..8)? as u32, counter: part(8..16)? as u32, due_ns: part(16..32)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_reads_back_from_a_body_of_any_size() {
        let stamp = Stamp { run: 0xfeed_0001, counter: 77, due_ns: u64::MAX - 1 };
        let mut body = String::new();
        for bytes in [0, 32, 33, 128, 1_000] {
            stamp.write(&mut body, bytes);
            assert_eq!(body.len(), bytes.max(STAMP_BYTES));
            assert_eq!(Stamp::read(&body), Some(stamp));
        }
        assert_eq!(Stamp::read("hello"), None);
        assert_eq!(Stamp::read("ééééééééééééééééééééé"), None);
    }
}
