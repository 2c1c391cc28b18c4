//! What each command does.

use std::io::Write as _;
use std::path::Path;

use gateway::config::Config;

pub(crate) mod chat;
mod chat_socket;
pub(crate) mod serve;
pub(crate) mod storage;
pub(crate) mod token;

/// Why a command did not do what it was asked: one sentence with what happened, what it means and what to do.
pub(crate) struct Failure(pub String);

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(error.to_string())
    }
}

/// How a command ends.
pub(crate) type Done = Result<(), Failure>;

/// Writes to standard output; a reader that stops reading is no failure.
pub(crate) fn print(text: &str) -> Done {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// Reads a configuration with the environment over it.
pub(crate) fn load_config(file: &Path, flags: &[(&str, String)]) -> Result<Config, Failure> {
    Ok(Config::load(Some(file), std::env::vars(), flags)?)
}

/// `ringway config check`.
pub(crate) fn check_config(file: &Path) -> Done {
    let config = load_config(file, &[])?;
    for key in &config.keys {
        std::fs::metadata(&key.file).map_err(|error| {
            Failure(format!("the key file {} of kid `{}` cannot be read: {error}", key.file.display(), key.kid))
        })?;
    }
    print(&format!(
        "{} is right: {} shard(s), listening on {}\n",
        file.display(),
        config.shards(),
        config.server.listen
    ))
}

/// `ringway version`.
pub(crate) fn version() -> Done {
    print(&format!(
        "ringway {}\ncommit   {}\nprofile  {}\ntarget   {}\nrustc    {}\n",
        env!("CARGO_PKG_VERSION"),
        env!("RINGWAY_BUILD_COMMIT"),
        env!("RINGWAY_BUILD_PROFILE"),
        env!("RINGWAY_BUILD_TARGET"),
        env!("RINGWAY_BUILD_RUSTC"),
    ))
}
