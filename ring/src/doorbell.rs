//! Wakes a sleeping ring from any thread. When to ring, and whether the other side sleeps at all,
//! is decided elsewhere; a ring between two waits is kept and never lost.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use crate::error::RingError;

/// A handle that wakes one ring. Clones wake the same ring.
#[derive(Debug, Clone)]
pub struct Doorbell {
    event: Arc<File>,
}

impl Doorbell {
    /// Makes a doorbell, to be given to one ring and, as clones, to everyone who may wake it.
    pub fn new() -> Result<Self, RingError> {
        // SAFETY: `eventfd` takes no pointers; its result is checked before it is used.
        let descriptor = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
        if descriptor < 0 {
            return Err(RingError::System {
                doing: "making an eventfd for the doorbell",
                source: std::io::Error::last_os_error(),
            });
        }
        // SAFETY: the descriptor was just made and nobody else owns it.
        let owned = unsafe { OwnedFd::from_raw_fd(descriptor) };
        Ok(Self { event: Arc::new(File::from(owned)) })
    }

    /// Wakes the ring, or lets its next wait return at once.
    pub fn ring(&self) {
        // The only failures are an interruption, which `write_all` retries, and a counter at
        // 2^64 - 1 rings that nobody took, which the ring would hear all the same.
        (&*self.event).write_all(&1_u64.to_ne_bytes()).expect("an eventfd takes eight bytes");
    }

    pub(crate) fn descriptor(&self) -> RawFd {
        self.event.as_raw_fd()
    }
}
