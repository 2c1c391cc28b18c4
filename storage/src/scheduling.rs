//! How the kernel shares the processor between the store's threads and all others. Asked for, not relied on:
//! a kernel that knows no better runs them as any other thread.

/// What the lane wants to run for at once. Below the usual slice of about three milliseconds, so that a thread
/// that has just been given the core makes way when a write or a sync is done, and not a slice later.
const SHORT_SLICE_NS: u64 = 100_000;
/// How nice the threads are that nobody waits for.
const NICE_IN_BACKGROUND: libc::c_int = 5;

/// `struct sched_attr` of the kernel, in its first version.
#[repr(C)]
struct SchedAttr {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

/// The calling thread works for microseconds at a time, and others wait for it each time.
pub(crate) fn work_in_short_slices() {
    let attributes = SchedAttr {
        size: size_of::<SchedAttr>() as u32,
        policy: libc::SCHED_OTHER as u32,
        flags: 0,
        nice: 0,
        priority: 0,
        runtime: SHORT_SLICE_NS,
        deadline: 0,
        period: 0,
    };
    // SAFETY: the attributes are read, and are as long as they say.
    unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
}

/// The calling thread, and those that it starts, get less of a busy machine than others.
pub(crate) fn work_in_background() {
    // SAFETY: numbers only. Zero means the calling thread.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE_IN_BACKGROUND) };
}
