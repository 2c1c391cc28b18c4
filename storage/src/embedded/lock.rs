//! One process per data directory.

use std::fs::{File, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::Path;

use super::StartError;

/// Held while the store runs. The kernel lets go of it however the process ends.
#[derive(Debug)]
pub(crate) struct DirectoryLock {
    _file: File,
}

impl DirectoryLock {
    /// Takes the lock, or says who has it.
    pub(crate) fn take(directory: &Path) -> Result<DirectoryLock, StartError> {
        let path = directory.display().to_string();
        let failed = |error| StartError::Directory { path: path.clone(), error };
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(directory.join("lock"))
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                let known = file.read_to_string(&mut pid).is_ok_and(|bytes| bytes > 0);
                let pid = if known { pid.trim().to_owned() } else { "(unknown)".to_owned() };
                return Err(StartError::InUse { path, pid });
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        // Only to name the owner to whoever comes second: a full disk is no reason not to start.
        let written =
            file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{}", std::process::id()));
        if let Err(error) = written {
            tracing::warn!(%error, "the pid can not be written into the lock file");
        }
        Ok(DirectoryLock { _file: file })
    }
}
