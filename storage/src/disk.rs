//! The seam below the journal: files in one flat directory, by plain calls that return when they are done.
//!
//! Journal format, segment roll, checkpoint and recovery are plain code over this trait, so that the
//! simulated disk attacks exactly what the real one runs.

/// Everything the journal reads and writes starts and ends on this many bytes (direct I/O).
pub const BLOCK_BYTES: usize = 4096;

/// Why the disk did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DiskError {
    /// No room, no inodes left, or a quota reached.
    #[error("no space left on the device")]
    Full,
    /// There is no such file.
    #[error("no such file")]
    NotFound,
    /// Anything else that the system said.
    #[error("{0}")]
    Io(String),
}

impl From<std::io::Error> for DiskError {
    fn from(error: std::io::Error) -> DiskError {
        match error.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT) => DiskError::Full,
            Some(libc::ENOENT) => DiskError::NotFound,
            _ => DiskError::Io(error.to_string()),
        }
    }
}

/// One directory on one device. Offsets and lengths are multiples of [`BLOCK_BYTES`].
pub trait Disk {
    /// An open file.
    type File: std::fmt::Debug;

    /// Makes an empty file of this length, its room reserved, and replaces any file of that name.
    fn create(&mut self, name: &str, bytes: u64) -> Result<Self::File, DiskError>;
    /// Opens a file for reading and writing.
    fn open(&mut self, name: &str) -> Result<Self::File, DiskError>;
    /// Closes a file. What was not synced stays unsynced.
    fn close(&mut self, file: Self::File);
    /// The length of a file.
    fn length(&mut self, file: &Self::File) -> Result<u64, DiskError>;
    /// Cuts a file at `bytes`.
    fn truncate(&mut self, file: &Self::File, bytes: u64) -> Result<(), DiskError>;
    /// Writes all of `bytes`, or says why not; then any part of them may have been written.
    fn write_at(&mut self, file: &Self::File, offset: u64, bytes: &[u8]) -> Result<(), DiskError>;
    /// Fills `into`; a file that ends before is an error.
    fn read_at(&mut self, file: &Self::File, offset: u64, into: &mut [u8]) -> Result<(), DiskError>;
    /// Makes the file's content durable. After an error nothing is known about what was written.
    fn sync(&mut self, file: &Self::File) -> Result<(), DiskError>;
    /// Makes names durable: what was created, renamed or removed.
    fn sync_directory(&mut self) -> Result<(), DiskError>;
    /// Gives a file another name and replaces any file of that name.
    fn rename(&mut self, from: &str, to: &str) -> Result<(), DiskError>;
    /// Removes a file.
    fn remove(&mut self, name: &str) -> Result<(), DiskError>;
    /// All names, sorted.
    fn list(&mut self) -> Result<Vec<String>, DiskError>;
}
