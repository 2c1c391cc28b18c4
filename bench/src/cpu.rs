//! Processor time, apart by thread, and which core this thread may use.

use crate::server::cores;

/// Processor time of each thread of a process, by name; those of one name together.
pub fn by_thread(process: u32) -> Vec<(String, u64)> {
    let mut times: Vec<(String, u64)> = Vec::new();
    let Ok(threads) = std::fs::read_dir(format!("/proc/{process}/task")) else { return times };
    for thread in threads.flatten() {
        let name = std::fs::read_to_string(thread.path().join("comm")).unwrap_or_default().trim().to_owned();
        let schedstat = std::fs::read_to_string(thread.path().join("schedstat")).unwrap_or_default();
        let ns = schedstat.split(' ').next().and_then(|field| field.parse().ok()).unwrap_or(0);
        match times.iter_mut().find(|(other, _)| *other == name) {
            Some((_, sum)) => *sum += ns,
            None => times.push((name, ns)),
        }
    }
    times
}

/// Keeps the calling thread on a core, where the machine has more than one.
pub fn pin(core: usize) {
    if cores() < 2 {
        return;
    }
    // SAFETY: the set is a plain value that lives through the call.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(core, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set);
    }
}
