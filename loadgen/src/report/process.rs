//! What a process and the kernel hold and use, out of /proc.

use std::collections::BTreeMap;
use std::fs::read_to_string;

/// Caches of the kernel that grow with connections. Others are left out: anything may fill them.
const CACHES: [&str; 16] = [
    "TCP",
    "TCPv6",
    "sock_inode_cache",
    "filp",
    "dentry",
    "request_sock_TCP",
    "request_sock_TCPv6",
    "tw_sock_TCP",
    "tcp_bind_bucket",
    "tcp_bind2_bucket",
    "eventpoll_epi",
    "eventpoll_pwq",
    "skbuff_head_cache",
    "skbuff_small_head",
    "io_kiocb",
    "io_async_poll",
];

/// Processor time of a process so far in seconds, threads that ended and the kernel's part included.
pub fn cpu_seconds(pid: u32) -> Option<f64> {
    let text = read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name stands in parentheses and may hold anything, parentheses too.
    let fields: Vec<_> = text[text.rfind(')')? + 1..].split_whitespace().collect();
    // Fields 14 and 15 of proc_pid_stat(5); the third comes first here.
    let ticks = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
    // SAFETY: no pointers; an unknown name would give -1.
    let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) }.max(1);
    Some(ticks as f64 / per_second as f64)
}

/// Resident memory of a process in bytes.
pub fn resident_bytes(pid: u32) -> Option<u64> {
    kib_field(&format!("/proc/{pid}/status"), "VmRSS:")
}

/// Proportional set size of a process in bytes: each page by its share.
pub fn proportional_bytes(pid: u32) -> Option<u64> {
    kib_field(&format!("/proc/{pid}/smaps_rollup"), "Pss:")
}

fn kib_field(path: &str, name: &str) -> Option<u64> {
    let text = read_to_string(path).ok()?;
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(rest.split_whitespace().next()?.parse::<u64>().ok()? * 1_024)
}

/// Bytes of each of the kernel's caches that connections fill; none without the right to read them.
pub fn slabs() -> Option<BTreeMap<String, i64>> {
    // SAFETY: no pointers.
    let page_bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) }.max(1);
    Some(parse_slabs(&read_to_string("/proc/slabinfo").ok()?, page_bytes))
}

/// name active_objs num_objs objsize objperslab pagesperslab : tunables 3 numbers : slabdata active num shared
fn parse_slabs(text: &str, page_bytes: i64) -> BTreeMap<String, i64> {
    let bytes = |line: &str| -> Option<(String, i64)> {
        let fields: Vec<_> = line.split_whitespace().collect();
        let name = fields.first().filter(|name| CACHES.contains(name))?;
        let pages: i64 = fields.get(5)?.parse().ok()?;
        let slabs: i64 = fields.get(14)?.parse().ok()?;
        Some(((*name).to_owned(), pages * slabs * page_bytes))
    };
    text.lines().filter_map(bytes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_something() {
        let pid = std::process::id();
        assert!(cpu_seconds(pid).is_some());
        assert!(resident_bytes(pid).unwrap() > 0);
        assert_eq!(cpu_seconds(u32::MAX), None);
        assert_eq!(resident_bytes(u32::MAX), None);
    }

    #[test]
    fn only_named_caches_are_counted() {
        let text = "slabinfo - version: 2.1\n\
            # name            <active_objs> <num_objs> <objsize> <objperslab> <pagesperslab> : tunables\n\
            TCP 10 13 2432 13 8 : tunables 0 0 0 : slabdata 3 3 0\n\
            kmalloc-64 1 1 64 64 1 : tunables 0 0 0 : slabdata 9 9 0\n\
            filp cut short\n";
        assert_eq!(parse_slabs(text, 4_096), BTreeMap::from([("TCP".to_owned(), 3 * 8 * 4_096)]));
    }
}
