//! What another process on this machine uses, and stopping and continuing it.

use std::fs;
use std::io;

/// Nanoseconds of processor time of all threads of a process so far, the kernel's part included; none if there is no
/// such process, or it may not be looked at.
pub fn cpu_ns(pid: u32) -> Option<u64> {
    let mut sum = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task")).ok()? {
        // A thread may end while it is looked at.
        let Ok(text) = fs::read_to_string(task.ok()?.path().join("schedstat")) else { continue };
        sum += text.split_whitespace().next()?.parse::<u64>().ok()?;
    }
    Some(sum)
}

/// Nanoseconds since the machine began to run, by the clock that nobody sets.
pub(crate) fn monotonic_ns() -> u64 {
    clock_ns(libc::CLOCK_MONOTONIC)
}

/// Nanoseconds of processor time of the calling thread so far, the kernel's part included.
pub(crate) fn thread_cpu_ns() -> u64 {
    clock_ns(libc::CLOCK_THREAD_CPUTIME_ID)
}

fn clock_ns(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call fills a struct of its own; both clocks exist on every Linux.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Stops a process where it stands, as `kill -STOP` does; dropping this lets it go on.
#[derive(Debug)]
pub struct Stopped(i32);

impl Stopped {
    /// Stops it.
    pub fn new(pid: u32) -> io::Result<Self> {
        let pid = i32::try_from(pid).map_err(|_| io::ErrorKind::InvalidInput)?;
        signal(pid, libc::SIGSTOP)?;
        Ok(Self(pid))
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        // It may have been killed meanwhile; then there is nobody to let go on.
        let _ = signal(self.0, libc::SIGCONT);
    }
}

fn signal(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: `kill` takes no pointers.
    let result = unsafe { libc::kill(pid, signal) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_of_this_process_grows_and_that_of_none_is_not_known() {
        let before = cpu_ns(std::process::id()).unwrap();
        let mut number = 1_u64;
        while cpu_ns(std::process::id()).unwrap() == before {
            number = number.wrapping_mul(3);
        }
        assert_ne!(number, 0);
        assert_eq!(cpu_ns(u32::MAX), None);
    }
}
