//! Where a run took place: the machine, its kernel's settings, and this build.

use std::collections::BTreeMap;
use std::fs::read_to_string;

use crate::result::{Build, Generator, Host};

/// Settings that bound what can be measured, each with the file that says it.
const SETTINGS: [(&str, &str); 27] = [
    ("fs.file-max", "/proc/sys/fs/file-max"),
    ("fs.nr_open", "/proc/sys/fs/nr_open"),
    ("kernel.io_uring_disabled", "/proc/sys/kernel/io_uring_disabled"),
    ("kernel.perf_event_paranoid", "/proc/sys/kernel/perf_event_paranoid"),
    ("net.core.netdev_max_backlog", "/proc/sys/net/core/netdev_max_backlog"),
    ("net.core.rmem_max", "/proc/sys/net/core/rmem_max"),
    ("net.core.somaxconn", "/proc/sys/net/core/somaxconn"),
    ("net.core.wmem_max", "/proc/sys/net/core/wmem_max"),
    ("net.ipv4.ip_local_port_range", "/proc/sys/net/ipv4/ip_local_port_range"),
    ("net.ipv4.tcp_child_ehash_entries", "/proc/sys/net/ipv4/tcp_child_ehash_entries"),
    ("net.ipv4.tcp_congestion_control", "/proc/sys/net/ipv4/tcp_congestion_control"),
    ("net.ipv4.tcp_ehash_entries", "/proc/sys/net/ipv4/tcp_ehash_entries"),
    ("net.ipv4.tcp_fin_timeout", "/proc/sys/net/ipv4/tcp_fin_timeout"),
    ("net.ipv4.tcp_max_syn_backlog", "/proc/sys/net/ipv4/tcp_max_syn_backlog"),
    ("net.ipv4.tcp_max_tw_buckets", "/proc/sys/net/ipv4/tcp_max_tw_buckets"),
    ("net.ipv4.tcp_mem", "/proc/sys/net/ipv4/tcp_mem"),
    ("net.ipv4.tcp_rmem", "/proc/sys/net/ipv4/tcp_rmem"),
    ("net.ipv4.tcp_tw_reuse", "/proc/sys/net/ipv4/tcp_tw_reuse"),
    ("net.ipv4.tcp_wmem", "/proc/sys/net/ipv4/tcp_wmem"),
    ("net.netfilter.nf_conntrack_max", "/proc/sys/net/netfilter/nf_conntrack_max"),
    ("vm.max_map_count", "/proc/sys/vm/max_map_count"),
    ("vm.overcommit_memory", "/proc/sys/vm/overcommit_memory"),
    ("vm.swappiness", "/proc/sys/vm/swappiness"),
    ("transparent hugepages", "/sys/kernel/mm/transparent_hugepage/enabled"),
    ("processor frequency governor", "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
    ("cgroup cpu.max", "/sys/fs/cgroup/cpu.max"),
    ("cgroup memory.max", "/sys/fs/cgroup/memory.max"),
];

impl Host {
    /// This machine, as this process sees it.
    pub fn this() -> Self {
        Self {
            name: line("/proc/sys/kernel/hostname"),
            processor: after("/proc/cpuinfo", "model name", ':'),
            cores: cores(),
            cores_allowed: std::thread::available_parallelism().map_or(1, |cores| cores.get() as u32),
            memory_bytes: kib(&after("/proc/meminfo", "MemTotal", ':')),
            kernel: line("/proc/sys/kernel/osrelease"),
            distribution: after("/etc/os-release", "PRETTY_NAME", '=').trim_matches('"').to_owned(),
            settings: settings(),
        }
    }
}

impl Build {
    /// This program.
    pub fn this() -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            commit: env!("RINGWAY_BUILD_COMMIT").to_owned(),
            profile: env!("RINGWAY_BUILD_PROFILE").to_owned(),
            target: env!("RINGWAY_BUILD_TARGET").to_owned(),
            rustc: env!("RINGWAY_BUILD_RUSTC").to_owned(),
        }
    }
}

impl Generator {
    /// This process on this machine; what it used is for whoever measured it to say.
    pub fn this(name: &str) -> Self {
        Self { name: name.to_owned(), build: Build::this(), host: Host::this(), ..Self::default() }
    }
}

fn settings() -> BTreeMap<String, String> {
    let mut settings: BTreeMap<_, _> = SETTINGS
        .iter()
        .map(|(name, path)| ((*name).to_owned(), line(path)))
        .filter(|(_, value)| !value.is_empty())
        .collect();
    // "Max open files            20000                20000                files"
    let limits = read_to_string("/proc/self/limits").unwrap_or_default();
    for (row, name) in [("Max open files", "limit of open files"), ("Max locked memory", "limit of locked memory")] {
        if let Some(rest) = limits.lines().find_map(|line| line.strip_prefix(row)) {
            let values: Vec<_> = rest.split_whitespace().take(2).collect();
            settings.insert(name.to_owned(), format!("{} (soft), {} (hard)", values[0], values[values.len() - 1]));
        }
    }
    settings
}

/// The first line of a file, its blanks made one; empty if it cannot be read.
fn line(path: &str) -> String {
    let text = read_to_string(path).unwrap_or_default();
    text.lines().next().unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ")
}

/// What stands behind a name in a file of names and values.
fn after(path: &str, name: &str, separator: char) -> String {
    let text = read_to_string(path).unwrap_or_default();
    let value = text.lines().find_map(|line| {
        let (key, value) = line.split_once(separator)?;
        (key.trim() == name).then(|| value.trim().to_owned())
    });
    value.unwrap_or_default()
}

fn kib(text: &str) -> u64 {
    text.split_whitespace().next().and_then(|number| number.parse::<u64>().ok()).unwrap_or(0) * 1_024
}

fn cores() -> u32 {
    let text = read_to_string("/proc/stat").unwrap_or_default();
    text.lines().filter(|line| line.starts_with("cpu") && !line.starts_with("cpu ")).count().max(1) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_known() {
        let host = Host::this();
        assert!(host.cores > 0 && host.cores_allowed > 0 && host.memory_bytes > 0, "{host:?}");
        assert!(!host.kernel.is_empty(), "{host:?}");
        assert!(host.settings.contains_key("limit of open files"), "{host:?}");
        assert!(!Build::this().version.is_empty());
    }
}
