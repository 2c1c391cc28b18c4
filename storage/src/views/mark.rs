//! The views' own small file: format version, how far the views have followed the journal, and which
//! days of dedup rows must be there.
//!
//! ```text
//! magic "RWVIEWS\0" | version u32 | 0 u32 | checkpoint u64 | position u64 | days (see `days.rs`) | crc32
//! version 1: magic | version u32 | days u32 | checkpoint u64 | position u64 | day u32 * days | crc32
//! ```
//!
//! All numbers are little-endian; the checksum covers everything before it. The file is replaced by
//! rename, so that it is always one whole state, and it is written last: whoever reads it may rely on
//! every row that it speaks of.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use super::ViewsError;
use crate::days::Days;

const MAGIC: &[u8; 8] = b"RWVIEWS\0";
const FILE: &str = "MARK";
const FILE_NEXT: &str = "MARK.next";
const HEAD_BYTES: usize = 32;

/// The newest layout of the views' directory that this program knows.
pub const VIEWS_FORMAT: u32 = 2;

/// How far the views have come.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) checkpoint: u64,
    pub(super) position: u64,
    /// Days of dedup rows that must be present.
    pub(super) days: Days,
}

impl Mark {
    /// The mark in `dir`, or `None` where there is no such file.
    pub(super) fn read(dir: &Path) -> Result<Option<Mark>, ViewsError> {
        let path = dir.join(FILE);
        match fs::read(&path) {
            Ok(bytes) => Mark::decode(&bytes)
                .map_err(|error| match error {
                    ViewsError::Damaged(what) => ViewsError::Damaged(format!("{}: {what}", path.display())),
                    other => other,
                })
                .map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(ViewsError::from_io(&error)),
        }
    }

    /// Replaces the mark in `dir`; durable when this returns.
    pub(super) fn write(&self, dir: &Path) -> Result<(), ViewsError> {
        let replace = || -> io::Result<()> {
            let next = dir.join(FILE_NEXT);
            let mut file = File::create(&next)?;
            file.write_all(&self.encode())?;
            file.sync_all()?;
            fs::rename(&next, dir.join(FILE))?;
            sync_dir(dir)
        };
        replace().map_err(|error| ViewsError::from_io(&error))
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEAD_BYTES + 512);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VIEWS_FORMAT.to_le_bytes());
        bytes.extend_from_slice(&0_u32.to_le_bytes());
        bytes.extend_from_slice(&self.checkpoint.to_le_bytes());
        bytes.extend_from_slice(&self.position.to_le_bytes());
        self.days.encode(&mut bytes);
        bytes.extend_from_slice(&crc32fast::hash(&bytes).to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Result<Mark, ViewsError> {
        let damaged = |what: &str| ViewsError::Damaged(what.to_owned());
        if bytes.len() < HEAD_BYTES + 4 || &bytes[..8] != MAGIC {
            return Err(damaged("not a mark of the views"));
        }
        // The version comes before the checksum: a later layout may be checked in another way.
        let found = u32_at(bytes, 8);
        if found > VIEWS_FORMAT {
            return Err(ViewsError::TooNew { found, known: VIEWS_FORMAT });
        }
        let body = bytes.len() - 4;
        if crc32fast::hash(&bytes[..body]) != u32_at(bytes, body) {
            return Err(damaged("checksum does not match"));
        }
        let days = match found {
            1 if body == HEAD_BYTES + 4 * u32_at(bytes, 12) as usize => {
                Some(Days::of_records((HEAD_BYTES..body).step_by(4).map(|at| u32_at(bytes, at))))
            }
            2 => Days::decode(&bytes[HEAD_BYTES..body]),
            _ => None,
        };
        let days = days.ok_or_else(|| damaged("impossible version or length"))?;
        Ok(Mark { checkpoint: u64_at(bytes, 16), position: u64_at(bytes, 24), days })
    }
}

/// Makes the names in `dir` durable.
pub(super) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark() -> Mark {
        let mut days = Days::default();
        days.checkpoint(5, 10, Some((1_000, 2_000)));
        days.checkpoint(20, 10, Some((3_000, 4_000)));
        Mark { checkpoint: 7, position: 1 << 40, days }
    }

    #[test]
    fn a_mark_of_the_first_version_is_read() {
        let mut bytes = MAGIC.to_vec();
        for number in [1_u32, 2, 7, 0, 9, 0, 20_000, 20_001] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(&crc32fast::hash(&bytes).to_le_bytes());
        let mark = Mark::decode(&bytes).unwrap();
        assert_eq!((mark.checkpoint, mark.position), (7, 9));
        assert_eq!(mark.days, Days::of_records([20_000, 20_001].into_iter()));
    }

    #[test]
    fn a_mark_survives_being_written_and_read() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Mark::read(dir.path()).unwrap(), None);
        mark().write(dir.path()).unwrap();
        assert_eq!(Mark::read(dir.path()).unwrap(), Some(mark()));
    }

    /// Whatever single bit flips, the mark is refused rather than believed.
    #[test]
    fn no_flipped_bit_goes_unnoticed() {
        let good = mark().encode();
        for bit in 0..good.len() * 8 {
            let mut bytes = good.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(Mark::decode(&bytes).is_err(), "bit {bit}");
        }
        for length in 0..good.len() {
            assert!(Mark::decode(&good[..length]).is_err(), "{length} bytes");
        }
    }

    #[test]
    fn a_later_version_is_named_as_such() {
        let mut bytes = mark().encode();
        bytes[8..12].copy_from_slice(&(VIEWS_FORMAT + 1).to_le_bytes());
        assert!(matches!(
            Mark::decode(&bytes),
            Err(ViewsError::TooNew { found, known }) if found == known + 1
        ));
    }
}
