//! What one ring may hold; all of it is reserved when the ring is made.

use crate::Connection;
use crate::error::RingError;

/// The limits of one ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingConfig {
    /// Connections held at once. At most the process's descriptor limit. When it is reached,
    /// accepting pauses and `Connect` fails with `TableFull`.
    pub connections_max: u32,
    /// Entries of the submission queue. A full queue costs an extra system call, nothing else.
    pub submissions: u32,
    /// Entries of the completion queue. Past it the kernel keeps completions in its own memory,
    /// which is slower and counted as `completion_overflows`.
    pub completions: u32,
    /// Receive buffers shared by all connections, a power of two up to 32,768.
    pub receive_buffers: u16,
    /// Bytes of one receive buffer; no piece of received data is longer.
    pub receive_buffer_bytes: u32,
    /// Connections that wait in the kernel, per listener, to be accepted.
    pub listen_backlog: u32,
    /// A connection that received nothing for so long goes back to the small idle state.
    pub hot_idle_ms: u32,
}

impl Default for RingConfig {
    fn default() -> Self {
        Self {
            connections_max: 16_384,
            submissions: 1_024,
            completions: 8_192,
            receive_buffers: 1_024,
            receive_buffer_bytes: 2_048,
            listen_backlog: 4_096,
            hot_idle_ms: 3_000,
        }
    }
}

impl RingConfig {
    /// Checks what the kernel would refuse with less of an explanation.
    pub(crate) fn check(&self) -> Result<(), RingError> {
        let rules: [(&'static str, u32, bool, &'static str); 5] = [
            (
                "connections_max",
                self.connections_max,
                (1..Connection::SLOTS_MAX).contains(&self.connections_max),
                "it must be from 1 to 16,777,215",
            ),
            ("submissions", self.submissions, (2..=32_768).contains(&self.submissions), "it must be from 2 to 32,768"),
            (
                "completions",
                self.completions,
                (self.submissions..=65_536).contains(&self.completions),
                "it must be at least the number of submissions and at most 65,536",
            ),
            (
                "receive_buffers",
                u32::from(self.receive_buffers),
                self.receive_buffers.is_power_of_two() && self.receive_buffers <= 32_768,
                "it must be a power of two up to 32,768",
            ),
            (
                "receive_buffer_bytes",
                self.receive_buffer_bytes,
                (64..=1 << 20).contains(&self.receive_buffer_bytes),
                "it must be from 64 to 1,048,576",
            ),
        ];
        match rules.into_iter().find(|(_, _, holds, _)| !holds) {
            None => Ok(()),
            Some((setting, value, _, rule)) => Err(RingError::Config { setting, value: u64::from(value), rule }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_cannot_be_used_is_named_with_its_rule() {
        assert!(RingConfig::default().check().is_ok());
        let config = RingConfig { receive_buffers: 100, ..RingConfig::default() };
        let error = config.check().expect_err("100 is not a power of two");
        assert!(error.to_string().contains("receive_buffers cannot be 100"));
    }
}
