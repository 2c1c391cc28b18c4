//! Machines made of files, and the real one.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use tuning::{Machine, Memory, Report, Status};

/// A machine with four processors and 16 GiB, on which everything is as large as it should be.
fn roomy() -> tempfile::TempDir {
    let root = tempfile::tempdir().expect("a directory");
    for (name, content) in [
        ("proc/sys/kernel/osrelease", "6.12.4-amd64\n"),
        ("proc/sys/kernel/io_uring_disabled", "0\n"),
        ("proc/sys/kernel/io_uring_group", "-1\n"),
        ("proc/sys/fs/nr_open", "1048576\n"),
        ("proc/sys/fs/file-max", "9223372036854775807\n"),
        ("proc/sys/fs/file-nr", "2112\t0\t9223372036854775807\n"),
        ("proc/sys/net/core/somaxconn", "4096\n"),
        ("proc/sys/net/ipv4/tcp_max_syn_backlog", "4096\n"),
        ("proc/sys/net/ipv4/ip_local_port_range", "32768\t60999\n"),
        ("proc/sys/net/ipv4/tcp_mem", "190000\t250000\t380000\n"),
        ("proc/sys/net/ipv4/tcp_max_tw_buckets", "262144\n"),
        ("proc/sys/net/ipv4/tcp_ehash_entries", "524288\n"),
        ("proc/meminfo", "MemTotal:       16000000 kB\nMemFree:  1 kB\nMemAvailable:   15000000 kB\n"),
        (
            "proc/self/status",
            "Name:\tx\nGid:\t1000\t1000\nGroups:\t27 990\nCapEff:\t0000000000000000\nCpus_allowed_list:\t0-3\n",
        ),
        (
            "proc/self/limits",
            "Limit                     Soft Limit           Hard Limit           Units     \n\
             Max open files            1048576              1048576              files     \n\
             Max locked memory         unlimited            unlimited            bytes     \n",
        ),
    ] {
        put(root.path(), name, content);
    }
    root
}

fn put(root: &Path, name: &str, content: &str) {
    let path = root.join(name);
    fs::create_dir_all(path.parent().expect("a file has a parent")).expect("directories");
    fs::write(path, content).expect("a file");
}

fn report(root: &Path) -> Report {
    Report::new(&Machine::read(root), 1_000_000)
}

fn status(report: &Report, name: &str) -> Status {
    let check = report.checks.iter().find(|check| check.name == name);
    check.unwrap_or_else(|| panic!("no check is called {name}")).status
}

fn action<'a>(report: &'a Report, name: &str) -> &'a str {
    let check = report.checks.iter().find(|check| check.name == name);
    &check.unwrap_or_else(|| panic!("no check is called {name}")).action
}

#[test]
fn on_a_roomy_machine_memory_ends_first() {
    let root = roomy();
    let report = report(root.path());
    assert!(report.runs() && report.fits());
    assert_eq!(report.limited_by, Some("memory"));
    // 15,000,000 KiB less a fifth and 256 MiB, by 4,116 + 256 bytes.
    assert_eq!(report.sessions_max, Some(2_749_214));
    assert!(report.verdict().contains("about 2,749,214 sessions; limited first by memory"));
    assert!(report.checks.iter().all(|check| check.status == Status::Enough), "{report}");
}

#[test]
fn a_descriptor_limit_is_counted_per_shard_and_told_with_the_number_to_set() {
    let root = roomy();
    put(root.path(), "proc/self/limits", "Max open files            1024                 524288               files\n");
    let report = report(root.path());
    assert_eq!(report.limited_by, Some("descriptors"));
    assert_eq!(report.sessions_max, Some(1_024 * 4 * 9 / 10));
    assert!(!report.fits() && report.runs());
    assert!(action(&report, "descriptors").contains("LimitNOFILE=277778"), "{report}");
    let two = Report::new(&Machine::read(root.path()), 8_000_000);
    assert!(action(&two, "descriptors").contains("fs.nr_open=2222223"), "{two}");
}

#[test]
fn a_control_group_limits_memory_in_either_version_and_at_any_height() {
    let root = roomy();
    put(root.path(), "proc/self/cgroup", "0::/system.slice/ringway.service\n");
    put(root.path(), "sys/fs/cgroup/cgroup.controllers", "memory\n");
    put(root.path(), "sys/fs/cgroup/system.slice/memory.max", "2147483648\n");
    put(root.path(), "sys/fs/cgroup/system.slice/memory.current", "1073741824\n");
    put(root.path(), "sys/fs/cgroup/system.slice/ringway.service/memory.max", "max\n");
    put(root.path(), "sys/fs/cgroup/system.slice/ringway.service/memory.current", "4096\n");
    let limit = Memory { limit_bytes: 2 << 30, used_bytes: 1 << 30 };
    assert_eq!(Machine::read(root.path()).cgroup_memory, Some(limit));
    assert_eq!(report(root.path()).limited_by, Some("cgroup memory"));

    let root = roomy();
    put(root.path(), "proc/self/cgroup", "4:cpu,memory:/docker/1\n1:name=systemd:/\n");
    put(root.path(), "sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
    put(root.path(), "sys/fs/cgroup/memory/memory.usage_in_bytes", "5000\n");
    put(root.path(), "sys/fs/cgroup/memory/docker/1/memory.limit_in_bytes", "2147483648\n");
    put(root.path(), "sys/fs/cgroup/memory/docker/1/memory.usage_in_bytes", "1073741824\n");
    assert_eq!(Machine::read(root.path()).cgroup_memory, Some(limit));
}

#[test]
fn what_refuses_the_server_leaves_room_for_nobody() {
    for (name, content, check) in [
        ("proc/sys/kernel/osrelease", "5.15.0-generic\n", "kernel"),
        ("proc/sys/kernel/io_uring_disabled", "2\n", "io_uring_disabled"),
        ("proc/sys/kernel/io_uring_disabled", "1\n", "io_uring_disabled"),
        ("proc/self/limits", "Max locked memory         65536                65536                bytes\n", "memlock"),
    ] {
        let root = roomy();
        put(root.path(), name, content);
        let report = report(root.path());
        assert_eq!(status(&report, check), Status::Refuses);
        assert_eq!((report.sessions_max, report.limited_by), (Some(0), Some(check)));
        assert!(!report.runs());
        assert!(report.verdict().contains("no sessions"), "{}", report.verdict());
        assert!(!action(&report, check).is_empty());
    }
}

#[test]
fn io_uring_for_some_is_io_uring_for_its_group_and_for_administrators() {
    let root = roomy();
    put(root.path(), "proc/sys/kernel/io_uring_disabled", "1\n");
    put(root.path(), "proc/sys/kernel/io_uring_group", "990\n");
    assert!(report(root.path()).runs());
    put(root.path(), "proc/sys/kernel/io_uring_group", "-1\n");
    assert!(!report(root.path()).runs());
    put(root.path(), "proc/self/status", "CapEff:\t000001ffffffffff\nCpus_allowed_list:\t0-3\n");
    assert!(report(root.path()).runs());
}

#[test]
fn open_files_limit_ordinary_users_only() {
    let root = roomy();
    put(root.path(), "proc/sys/fs/file-max", "100000\n");
    let ordinary = report(root.path());
    assert_eq!(ordinary.limited_by, Some("file-max"));
    assert_eq!(ordinary.sessions_max, Some(100_000 - 2_112));
    put(root.path(), "proc/self/status", "CapEff:\t000001ffffffffff\nCpus_allowed_list:\t0-3\n");
    assert_eq!(report(root.path()).limited_by, Some("memory"));
}

#[test]
fn a_firewall_that_tracks_connections_limits_them_and_an_unused_one_does_not() {
    let root = roomy();
    put(root.path(), "proc/sys/net/netfilter/nf_conntrack_max", "262144\n");
    put(root.path(), "proc/sys/net/netfilter/nf_conntrack_count", "0\n");
    assert_eq!(report(root.path()).limited_by, Some("memory"));
    put(root.path(), "proc/sys/net/netfilter/nf_conntrack_count", "144\n");
    let tracked = report(root.path());
    assert_eq!((tracked.limited_by, tracked.sessions_max), (Some("nf_conntrack"), Some(262_000)));
}

#[test]
fn what_costs_without_limiting_says_what_to_do() {
    let root = roomy();
    put(root.path(), "proc/sys/kernel/osrelease", "6.1.0-28-amd64\n");
    put(root.path(), "proc/sys/net/core/somaxconn", "128\n");
    put(root.path(), "proc/sys/net/ipv4/tcp_max_syn_backlog", "512\n");
    put(root.path(), "proc/sys/net/ipv4/tcp_mem", "9000\t12000\t18000\n");
    put(root.path(), "proc/sys/net/ipv4/tcp_max_tw_buckets", "4096\n");
    put(root.path(), "proc/sys/net/ipv4/tcp_ehash_entries", "-262144\n");
    let report = report(root.path());
    for name in ["kernel", "somaxconn", "tcp_max_syn_backlog", "tcp_mem", "tcp_max_tw_buckets", "socket table"] {
        assert_eq!(status(&report, name), Status::Costs, "{name}");
        assert!(!action(&report, name).is_empty(), "{name}");
    }
    assert_eq!(report.limited_by, Some("memory"));
    assert!(action(&report, "port range").contains("54 source addresses"), "{report}");
}

#[test]
fn nonsense_in_a_file_is_unknown_and_not_a_panic() {
    let root = roomy();
    for name in ["proc/self/limits", "proc/self/status", "proc/meminfo", "proc/self/cgroup"] {
        put(root.path(), name, "\u{0}::: 99999999999999999999 -\n");
    }
    put(root.path(), "proc/sys/kernel/osrelease", "\n");
    put(root.path(), "proc/sys/net/ipv4/ip_local_port_range", "9\n");
    let report = report(root.path());
    assert_eq!(status(&report, "memory"), Status::Unknown);
    assert_eq!(status(&report, "port range"), Status::Unknown);
    assert_eq!(status(&report, "descriptors"), Status::Unknown);
}

fn tune(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ringway-tune")).args(arguments).output().expect("the program starts")
}

#[test]
fn the_real_machine_gets_an_answer_in_words_and_in_json() {
    let words = tune(&["check"]);
    let text = String::from_utf8(words.stdout).expect("text");
    assert!(text.contains("this machine can hold"), "{text}");
    let json = tune(&["check", "--json", "--sessions", "1"]);
    let report: serde_json::Value = serde_json::from_slice(&json.stdout).expect("JSON");
    assert!(report["sessions_max"].as_u64().is_some());
    assert_eq!(report["checks"].as_array().map(Vec::len), Some(14));
}

#[test]
fn the_exit_code_says_whether_the_wanted_sessions_fit() {
    let root = roomy();
    let root = root.path().to_str().expect("a name in UTF-8");
    assert!(tune(&["check", "--root", root]).status.success());
    assert!(tune(&["check", "--root", root, "--sessions", "2000000"]).status.success());
    assert_eq!(tune(&["check", "--root", root, "--sessions", "3000000"]).status.code(), Some(1));
    assert_eq!(tune(&["check", "--sessions", "many"]).status.code(), Some(2));
    let help = String::from_utf8(tune(&["check", "--help"]).stdout).expect("text");
    assert!(help.contains("Examples:"), "{help}");
}
