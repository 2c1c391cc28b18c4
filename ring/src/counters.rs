//! What a ring has done, to be read by metrics and tests.

/// Counts since the ring was made. They only grow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RingCounters {
    /// Connections accepted.
    pub accepted: u64,
    /// Connections opened by `Connect`.
    pub connected: u64,
    /// Connections closed, whoever began it.
    pub closed: u64,
    /// Bytes received, those discarded after `Shutdown` included.
    pub bytes_in: u64,
    /// Bytes that the kernel took.
    pub bytes_out: u64,
    /// Calls of `io_uring_enter`.
    pub system_calls: u64,
    /// Requests handed to the kernel.
    pub submissions: u64,
    /// Completions taken from the kernel.
    pub completions: u64,
    /// Times the completion queue was found to have overflowed into the kernel's memory.
    pub completion_overflows: u64,
    /// Waits that ended early with nothing to tell, as a signal makes them.
    pub interrupted: u64,
    /// Completions of a slot's earlier tenant, which were ignored.
    pub stale_completions: u64,
    /// Ops on a connection that had already ended, which were ignored.
    pub stale_ops: u64,
    /// Sends that the kernel took only in part, so that the rest was sent again.
    pub short_writes: u64,
    /// Times a connection had data and no receive buffer was left.
    pub buffers_exhausted: u64,
    /// Connections that went from idle to hot: from a poll to a multishot receive.
    pub promoted: u64,
    /// Connections that went from hot back to idle.
    pub demoted: u64,
    /// Connections that lost their multishot receive because they used too many buffers at once.
    pub greedy: u64,
    /// Times a listener paused.
    pub accept_pauses: u64,
    /// Accepts that failed, for lack of descriptors, of memory or otherwise.
    pub accept_errors: u64,
    /// Connects that failed.
    pub connect_errors: u64,
    /// Doorbell rings that woke this ring.
    pub doorbells: u64,
}
