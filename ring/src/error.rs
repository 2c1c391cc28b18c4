//! What can go wrong with the ring itself, in sentences for whoever runs the process: what
//! happened, what it means and what to do. A single connection's troubles are events, not errors.

use std::io;
use std::net::SocketAddr;

/// The ring cannot be made, or cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// The kernel was told to refuse io_uring.
    #[error(
        "io_uring is switched off on this machine (kernel.io_uring_disabled = {setting}), so no \
         socket can be served; allow it with `sysctl kernel.io_uring_disabled=0`, or with \
         `kernel.io_uring_group` for this process's group"
    )]
    Disabled {
        /// The value of `kernel.io_uring_disabled`.
        setting: String,
    },
    /// A sandbox refuses io_uring.
    #[error(
        "io_uring was refused although kernel.io_uring_disabled allows it: a seccomp profile \
         forbids it, as those of container runtimes do, so no socket can be served; run with a \
         profile that allows io_uring_setup, io_uring_enter and io_uring_register"
    )]
    Forbidden,
    /// The kernel is too old.
    #[error("this kernel ({release}) lacks what the ring needs ({missing}); use Linux 6.1 or newer")]
    KernelTooOld {
        /// What `uname -r` says.
        release: String,
        /// What was asked for.
        missing: &'static str,
    },
    /// Memory for the queues was refused.
    #[error(
        "the kernel gave no memory for a ring of {submissions} submissions and {completions} \
         completions; raise the locked-memory limit (`ulimit -l`, LimitMEMLOCK=) or the memory \
         limit of the process, or make the queues smaller"
    )]
    NoMemory {
        /// Submission queue entries asked for.
        submissions: u32,
        /// Completion queue entries asked for.
        completions: u32,
    },
    /// The table of connections is larger than the process may have descriptors.
    #[error(
        "a table of {wanted} connections was refused because the process may hold only {limit} \
         descriptors; raise the limit (`ulimit -n`, LimitNOFILE=) or lower the number of \
         connections per shard"
    )]
    TableTooLarge {
        /// Connections asked for.
        wanted: u32,
        /// The process's descriptor limit.
        limit: u64,
    },
    /// Somebody already listens there.
    #[error(
        "{address} is already in use, so nothing can listen there; stop the process that has it \
         (`ss -ltnp 'sport = :{port}'` names it) or choose another address",
        port = address.port()
    )]
    AddressInUse {
        /// The address that was wanted.
        address: SocketAddr,
    },
    /// Listening failed for another reason.
    #[error(
        "cannot listen on {address}: {source}; check that this machine has the address and that the process may use the port"
    )]
    Listen {
        /// The address that was wanted.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// A ring can have only so many listeners.
    #[error("this ring already has {limit} listeners, as many as it can; listen on fewer addresses")]
    TooManyListeners {
        /// How many it can have.
        limit: usize,
    },
    /// A number in the configuration cannot be used.
    #[error("the ring's {setting} cannot be {value}: {rule}")]
    Config {
        /// Which number.
        setting: &'static str,
        /// Its value.
        value: u64,
        /// What it must be.
        rule: &'static str,
    },
    /// Anything else that the system said.
    #[error("{doing} failed: {source}; the ring cannot serve sockets without it")]
    System {
        /// What was being done.
        doing: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

impl RingError {
    /// Explains why `io_uring_setup` was refused.
    pub(crate) fn from_setup(source: io::Error, submissions: u32, completions: u32) -> Self {
        match source.raw_os_error() {
            Some(libc::EPERM) => match read_setting("/proc/sys/kernel/io_uring_disabled") {
                Some(setting) if setting != "0" => Self::Disabled { setting },
                _ => Self::Forbidden,
            },
            Some(libc::ENOSYS) => Self::Forbidden,
            Some(libc::EINVAL) => {
                Self::KernelTooOld { release: kernel_release(), missing: "IORING_SETUP_DEFER_TASKRUN" }
            }
            Some(libc::ENOMEM) => Self::NoMemory { submissions, completions },
            _ => Self::System { doing: "io_uring_setup", source },
        }
    }

    /// Explains why the table of direct descriptors was refused.
    pub(crate) fn from_table(source: io::Error, wanted: u32) -> Self {
        match source.raw_os_error() {
            Some(libc::EMFILE) => Self::TableTooLarge { wanted, limit: descriptor_limit() },
            _ => Self::System { doing: "registering the table of connections", source },
        }
    }

    /// Explains why an address cannot be listened on.
    pub(crate) fn from_listen(source: io::Error, address: SocketAddr) -> Self {
        if source.kind() == io::ErrorKind::AddrInUse {
            Self::AddressInUse { address }
        } else {
            Self::Listen { address, source }
        }
    }
}

fn read_setting(path: &str) -> Option<String> {
    std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

fn kernel_release() -> String {
    read_setting("/proc/sys/kernel/osrelease").unwrap_or_else(|| "unknown".to_owned())
}

/// The soft limit, from the one place that needs no unsafe call.
fn descriptor_limit() -> u64 {
    let limits = read_setting("/proc/self/limits").unwrap_or_default();
    limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))
        .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_what_to_do() {
        let address: SocketAddr = "127.0.0.1:8800".parse().expect("a literal address");
        let in_use = RingError::from_listen(io::Error::from_raw_os_error(libc::EADDRINUSE), address);
        assert!(in_use.to_string().contains("sport = :8800"), "{in_use}");
        let table = RingError::from_table(io::Error::from_raw_os_error(libc::EMFILE), 1 << 20);
        assert!(matches!(table, RingError::TableTooLarge { limit, .. } if limit > 0));
        let old = RingError::from_setup(io::Error::from_raw_os_error(libc::EINVAL), 1, 2);
        assert!(old.to_string().contains("Linux 6.1"), "{old}");
        let memory = RingError::from_setup(io::Error::from_raw_os_error(libc::ENOMEM), 1, 2);
        assert!(memory.to_string().contains("ulimit -l"), "{memory}");
    }
}
