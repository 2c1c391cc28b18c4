//! What another process on this machine uses, and stopping and continuing it.

use std::io;

/// Nanoseconds of processor time of all threads of a process so far, those that ended too, the kernel's part included;
/// none if there is no such process.
pub fn cpu_ns(pid: u32) -> Option<u64> {
    /// Linux gives no higher numbers; what is higher would be folded into another clock.
    const PID_MAX: u32 = 1 << 22;
    // 0 would be the caller.
    let pid = Some(pid).filter(|pid| (1..=PID_MAX).contains(pid))?.cast_signed();
    let mut clock = 0;
    // SAFETY: the call fills a value of its own.
    (unsafe { libc::clock_getcpuclockid(pid, &raw mut clock) } == 0).then(|| clock_ns(clock)).flatten()
}

/// Nanoseconds since the machine began to run, by the clock that nobody sets.
pub(crate) fn monotonic_ns() -> u64 {
    clock_ns(libc::CLOCK_MONOTONIC).expect("it exists on every Linux")
}

/// Nanoseconds of processor time of the calling thread so far, the kernel's part included.
pub fn thread_cpu_ns() -> u64 {
    clock_ns(libc::CLOCK_THREAD_CPUTIME_ID).expect("it exists on every Linux")
}

fn clock_ns(clock: libc::clockid_t) -> Option<u64> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call fills a struct of its own.
    let told = unsafe { libc::clock_gettime(clock, &raw mut time) } == 0;
    told.then_some(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
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
        assert_eq!([u32::MAX, i32::MAX as u32, 1 << 22, 0].map(cpu_ns), [None; 4]);
    }
}
