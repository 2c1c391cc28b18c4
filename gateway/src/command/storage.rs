//! `ringway storage`: what an operator does with a store that no server has open.

use std::path::PathBuf;

use storage::maintenance::{Report, backup, check, restore};

use super::{Done, Failure, print};

#[derive(clap::Subcommand)]
pub(crate) enum Task {
    /// Read everything that a store holds and say what is damaged. Fails if anything is.
    Check {
        /// The data directory.
        #[arg(long, value_name = "DIR", default_value = "ringway-data")]
        data: PathBuf,
    },
    /// Copy a store to an empty directory, and check the copy.
    Backup {
        /// The data directory.
        #[arg(long, value_name = "DIR", default_value = "ringway-data")]
        data: PathBuf,
        /// Where the copy goes: a directory that is empty or does not exist.
        #[arg(long, value_name = "DIR")]
        to: PathBuf,
    },
    /// Make a data directory of a backup. Its generation is new, so that clients read their history again.
    Restore {
        /// The backup.
        #[arg(long, value_name = "DIR")]
        from: PathBuf,
        /// The data directory to be: one that is empty or does not exist.
        #[arg(long, value_name = "DIR", default_value = "ringway-data")]
        data: PathBuf,
    },
}

pub(crate) fn run(task: &Task) -> Done {
    match task {
        Task::Check { data } => said(&check(data)?),
        Task::Backup { data, to } => said(&backup(data, to)?),
        Task::Restore { from, data } => said(&restore(from, data)?),
    }
}

fn said(report: &Report) -> Done {
    print(&format!("{report}\n"))?;
    if report.is_sound() {
        return Ok(());
    }
    Err(Failure("the store is damaged: keep a copy of the directory, and restore the last backup".to_owned()))
}
