//! What is read from `/proc` and `/sys`. Whatever a kernel does not show is `None`, never a guess.

use std::fs;
use std::path::{Path, PathBuf};

const CAP_SYS_ADMIN: u32 = 21;

/// Used and allowed bytes of the innermost memory limit that binds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// The limit.
    pub limit_bytes: u64,
    /// What is in use below it.
    pub used_bytes: u64,
}

impl Memory {
    /// What may still be used.
    pub fn free_bytes(self) -> u64 {
        self.limit_bytes.saturating_sub(self.used_bytes)
    }
}

/// One machine, as this process sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Machine {
    /// As `uname -r` says.
    pub kernel: Option<String>,
    /// Processors that this process may use: a shard each.
    pub processors: Option<u64>,
    /// Memory that is free or can be freed.
    pub memory_available_bytes: Option<u64>,
    /// The tightest cgroup memory limit above this process.
    pub cgroup_memory: Option<Memory>,
    /// Descriptor limits of this process, soft and hard.
    pub descriptors: Option<(u64, u64)>,
    /// `fs.nr_open`, the most that a process's limit can be raised to.
    pub descriptors_max: Option<u64>,
    /// `fs.file-max`: open files of the whole machine, sockets included.
    pub files_max: Option<u64>,
    /// Open files of the whole machine at the moment.
    pub files_open: Option<u64>,
    /// Whether this process may pass `fs.file-max` and use a restricted io_uring.
    pub administrator: bool,
    /// Locked-memory limit of this process, soft.
    pub locked_bytes: Option<u64>,
    /// `kernel.io_uring_disabled`; absent on kernels that cannot refuse io_uring.
    pub io_uring_disabled: Option<u64>,
    /// `kernel.io_uring_group` is one of this process's groups.
    pub in_io_uring_group: bool,
    /// `net.core.somaxconn`.
    pub accept_backlog: Option<u64>,
    /// `net.ipv4.tcp_max_syn_backlog`.
    pub syn_backlog: Option<u64>,
    /// `net.ipv4.ip_local_port_range`.
    pub port_range: Option<(u64, u64)>,
    /// `net.ipv4.tcp_mem`, the third number, in pages.
    pub tcp_pages_max: Option<u64>,
    /// `net.ipv4.tcp_max_tw_buckets`.
    pub time_wait_max: Option<u64>,
    /// Buckets of the table in which the kernel finds a packet's socket.
    pub socket_buckets: Option<u64>,
    /// `nf_conntrack_max` and the connections tracked now; absent without the module.
    pub tracked: Option<(u64, u64)>,
}

impl Machine {
    /// Reads the machine whose root directory this is: `/`, or a test's.
    pub fn read(root: &Path) -> Self {
        let system = |name: &str| read(root, &format!("proc/sys/{name}"));
        let number = |name: &str| first_number(&system(name)?);
        let status = read(root, "proc/self/status").unwrap_or_default();
        Self {
            kernel: system("kernel/osrelease"),
            processors: field(&status, "Cpus_allowed_list:").and_then(count_list),
            memory_available_bytes: read(root, "proc/meminfo")
                .and_then(|text| first_number(field(&text, "MemAvailable:")?))
                .map(|kibibytes| kibibytes * 1024),
            cgroup_memory: cgroup_memory(root),
            descriptors: limits(root, "Max open files"),
            descriptors_max: number("fs/nr_open"),
            files_max: number("fs/file-max"),
            files_open: number("fs/file-nr"),
            administrator: field(&status, "CapEff:")
                .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
                .is_some_and(|mask| mask >> CAP_SYS_ADMIN & 1 == 1),
            locked_bytes: limits(root, "Max locked memory").map(|(soft, _)| soft),
            io_uring_disabled: number("kernel/io_uring_disabled"),
            in_io_uring_group: in_group(&status, system("kernel/io_uring_group")),
            accept_backlog: number("net/core/somaxconn"),
            syn_backlog: number("net/ipv4/tcp_max_syn_backlog"),
            port_range: system("net/ipv4/ip_local_port_range").and_then(|text| {
                let mut numbers = text.split_whitespace().map_while(|word| word.parse().ok());
                Some((numbers.next()?, numbers.next()?))
            }),
            tcp_pages_max: system("net/ipv4/tcp_mem").and_then(|text| text.split_whitespace().nth(2)?.parse().ok()),
            time_wait_max: number("net/ipv4/tcp_max_tw_buckets"),
            // Negative in a network namespace that shares its parent's table.
            socket_buckets: system("net/ipv4/tcp_ehash_entries")
                .and_then(|text| text.trim_start_matches('-').parse().ok()),
            tracked: number("net/netfilter/nf_conntrack_max").zip(number("net/netfilter/nf_conntrack_count")),
        }
    }
}

fn read(root: &Path, name: &str) -> Option<String> {
    let text = fs::read_to_string(root.join(name)).ok()?;
    Some(text.trim().to_owned())
}

fn first_number(text: &str) -> Option<u64> {
    text.split_whitespace().next()?.parse().ok()
}

/// The rest of the line that begins with `name`.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

/// Soft and hard limit; `unlimited` is the largest number.
fn limits(root: &Path, name: &str) -> Option<(u64, u64)> {
    let text = read(root, "proc/self/limits")?;
    let mut words = field(&text, name)?.split_whitespace().map(|word| match word {
        "unlimited" => Some(u64::MAX),
        word => word.parse().ok(),
    });
    Some((words.next()??, words.next()??))
}

/// How many numbers a list such as `0-3,8` names.
fn count_list(list: &str) -> Option<u64> {
    list.split(',')
        .map(|part| match part.split_once('-') {
            None => part.trim().parse::<u64>().ok().map(|_| 1),
            Some((first, last)) => {
                let (first, last) = (first.trim().parse::<u64>().ok()?, last.trim().parse::<u64>().ok()?);
                (first <= last).then(|| last - first + 1)
            }
        })
        .sum()
}

fn in_group(status: &str, group: Option<String>) -> bool {
    let Some(group) = group.filter(|group| !group.starts_with('-')) else {
        return false;
    };
    ["Gid:", "Groups:"]
        .iter()
        .filter_map(|name| field(status, name))
        .flat_map(str::split_whitespace)
        .any(|own| own == group)
}

/// The tightest limit of this process's cgroup and all above it, in either version.
fn cgroup_memory(root: &Path) -> Option<Memory> {
    let memberships = read(root, "proc/self/cgroup")?;
    memberships
        .lines()
        .filter_map(|line| {
            let mut parts = line.splitn(3, ':').skip(1);
            let (controllers, path) = (parts.next()?, parts.next()?);
            if controllers.is_empty() {
                let mount = ["sys/fs/cgroup/unified", "sys/fs/cgroup"]
                    .into_iter()
                    .find(|mount| root.join(mount).join("cgroup.controllers").exists())?;
                tightest(&root.join(mount), path, "memory.max", "memory.current")
            } else if controllers.split(',').any(|controller| controller == "memory") {
                let mount = root.join("sys/fs/cgroup/memory");
                tightest(&mount, path, "memory.limit_in_bytes", "memory.usage_in_bytes")
            } else {
                None
            }
        })
        .min_by_key(|memory| memory.free_bytes())
}

fn tightest(mount: &Path, path: &str, limit: &str, usage: &str) -> Option<Memory> {
    let group: PathBuf = mount.join(path.trim_start_matches('/'));
    group
        .ancestors()
        .take_while(|directory| directory.starts_with(mount))
        .filter_map(|directory| {
            let limit_bytes = fs::read_to_string(directory.join(limit)).ok()?.trim().parse().ok()?;
            let used_bytes = fs::read_to_string(directory.join(usage)).ok()?.trim().parse().ok()?;
            // The first version writes "no limit" as a number near the largest.
            (limit_bytes < 1 << 62).then_some(Memory { limit_bytes, used_bytes })
        })
        .min_by_key(|memory| memory.free_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_processors_is_counted() {
        assert_eq!(count_list("0-3,8"), Some(5));
        assert_eq!(count_list("0"), Some(1));
        assert_eq!(count_list("3-1"), None);
        assert_eq!(count_list("none"), None);
    }

    #[test]
    fn a_group_counts_only_if_one_is_named() {
        let status = "Gid:\t1000\t1000\nGroups:\t27 990\n";
        assert!(in_group(status, Some("990".to_owned())));
        assert!(!in_group(status, Some("-1".to_owned())));
        assert!(!in_group(status, Some("99".to_owned())));
        assert!(!in_group(status, None));
    }
}
