//! System calls of a server, whoever wrote it: the kernel counts them at its tracepoint `raw_syscalls:sys_enter`.
//!
//! See perf_event_open(2). It needs root and tracefs, and makes each call dearer: nothing is timed meanwhile.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::FromRawFd as _;

use crate::server::Trouble;

/// Where the kernel says the tracepoint's number.
const NUMBERS: [&str; 2] = [
    "/sys/kernel/tracing/events/raw_syscalls/sys_enter/id",
    "/sys/kernel/debug/tracing/events/raw_syscalls/sys_enter/id",
];
const PERF_TYPE_TRACEPOINT: u32 = 2;

/// The first version of the kernel's `perf_event_attr`; zeros mean: count, from now on, that thread only.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    kind: u32,
    size: u32,
    number: u64,
    rest: [u64; 6],
}

/// Counters of some of a process's threads.
pub struct Calls(Vec<File>);

impl Calls {
    /// Counts from now on what threads do whose name is told so.
    ///
    /// # Errors
    ///
    /// Where the kernel has no such tracepoint, or does not let us, and where there is no such thread.
    pub fn of_threads(process: u32, is_meant: impl Fn(&str) -> bool) -> Result<Self, Trouble> {
        let number = NUMBERS.iter().find_map(|path| std::fs::read_to_string(path).ok()?.trim().parse().ok());
        let number = number.ok_or("tracefs is not there, or not to be read: mount it, and be root")?;
        let attributes = Attributes {
            kind: PERF_TYPE_TRACEPOINT,
            size: size_of::<Attributes>() as u32,
            number,
            ..Attributes::default()
        };
        let mut counters = Vec::new();
        for thread in std::fs::read_dir(format!("/proc/{process}/task"))? {
            let path = thread?.path();
            // One may end while they are looked at.
            let Ok(name) = std::fs::read_to_string(path.join("comm")) else { continue };
            let id = path.file_name().and_then(|name| name.to_str()?.parse::<libc::pid_t>().ok());
            let Some(id) = id.filter(|_| is_meant(name.trim())) else { continue };
            // SAFETY: the attributes live through the call and say how large they are; the file that comes of it is ours.
            let counter = unsafe { libc::syscall(libc::SYS_perf_event_open, &raw const attributes, id, -1, -1, 0) };
            if counter < 0 {
                return Err(format!("perf_event_open: {}", std::io::Error::last_os_error()).into());
            }
            // SAFETY: as above.
            counters.push(unsafe { File::from_raw_fd(counter as i32) });
        }
        if counters.is_empty() { Err("there is no such thread".into()) } else { Ok(Self(counters)) }
    }

    /// How many there were since.
    ///
    /// # Errors
    ///
    /// When the kernel does not tell.
    pub fn so_far(&self) -> Result<u64, Trouble> {
        let mut sum = 0;
        for mut counter in &self.0 {
            let mut count = [0; 8];
            counter.read_exact(&mut count)?;
            sum += u64::from_ne_bytes(count);
        }
        Ok(sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where the machine does not allow it, it says so.
    #[test]
    fn calls_are_counted_by_thread() {
        let (ready, wait) = std::sync::mpsc::channel();
        let (go, gone) = std::sync::mpsc::channel::<()>();
        let calling = std::thread::Builder::new().name("calling".to_owned()).spawn(move || {
            ready.send(()).unwrap();
            gone.recv().unwrap();
            for _ in 0..1_000 {
                // SAFETY: the call has no arguments.
                unsafe { libc::syscall(libc::SYS_getppid) };
            }
            ready.send(()).unwrap();
            gone.recv().unwrap();
        });
        wait.recv().unwrap();
        let counted = Calls::of_threads(std::process::id(), |name| name == "calling");
        go.send(()).unwrap();
        wait.recv().unwrap();
        match counted {
            // What the channels and their futexes take comes on top.
            Ok(calls) => assert!((1_000..1_100).contains(&calls.so_far().unwrap())),
            Err(trouble) => {
                let why = trouble.to_string();
                let is_forbidden =
                    ["mount it, and be root", "not permitted", "denied"].iter().any(|end| why.contains(end));
                assert!(is_forbidden, "{why}");
            }
        }
        go.send(()).unwrap();
        calling.unwrap().join().unwrap();
        assert!(Calls::of_threads(std::process::id(), |_| false).is_err());
    }
}
