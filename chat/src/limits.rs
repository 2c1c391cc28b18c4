//! How much one shard's rules may hold. Each limit says what happens when it is reached.

use shard_router::MailLimits;

/// Caps of one shard. Whatever is refused, cut or closed because of one is counted in [`crate::Counters`]; what is only
/// forgotten, to be read again, shows in what the shard holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Sessions of this shard, whose room is set aside at the start. Who accepts connections keeps to it.
    pub sessions_max: u32,
    /// Sessions of one user; one more is refused with `too_many_sessions`.
    pub sessions_per_user_max: u32,
    /// Conversations that a user's list reads; further ones are left out of lists.
    pub conversations_per_user_max: u32,
    /// Bytes of a message body; a longer one is `too_large`.
    pub body_bytes_max: u32,
    /// Messages of one conversation between proposal and commit; one more is `overloaded`.
    pub pending_per_conversation_max: u32,
    /// Bytes of records between proposal and commit; beyond it a send is `overloaded`.
    pub pending_bytes_max: u32,
    /// Bytes of commands that wait for a conversation to load; beyond it a command is `overloaded`.
    pub parked_bytes_max: u32,
    /// Conversations that one user may begin in a window; a send that would begin one more is
    /// `too_many_conversations`.
    pub new_conversations_max: u32,
    /// How long such a window is.
    pub new_conversations_window_ms: u64,
    /// Lists that are made for one user at the same time, and as many again for those that open a session; one
    /// more is `overloaded`.
    pub lists_per_user_max: u32,
    /// Reads of history under way; one more is `overloaded`. Scans are shed before sends.
    pub pulls_max: u32,
    /// Pages and lists that one session may have asked for and not been given; one more is `overloaded`.
    pub reads_per_session_max: u16,
    /// Bytes of records in one page; the page ends there and says that there is more.
    pub page_bytes_max: u32,
    /// Conversations kept in memory; above it those that are idle and checkpointed are let go.
    pub conversations_max: u32,
    /// Users without a session who are remembered for a cheap resume.
    pub idle_users_max: u32,
    /// Entries of the dedup window kept in memory; older ones are looked up in storage.
    pub dedup_entries_max: u32,
    /// Letters in a user's tail of changes; an older resume gets a delta.
    pub tail_letters_max: u32,
    /// Bytes in a user's tail of changes.
    pub tail_bytes_max: u32,
    /// Bytes of all tails; at it the tails of idle users go first, and then each user's oldest letters for the newest.
    pub tails_bytes_max: u32,
    /// Conversations whose change is remembered per user; an older resume gets a snapshot.
    pub changed_max: u32,
    /// Bytes queued for a client above which it is lagging.
    pub outbound_bytes_max: u32,
    /// Messages pushed to a session and not acknowledged, above which it is lagging.
    pub unacknowledged_max: u32,
    /// Conversations that one lagging or failing session is told about; above it the session is closed.
    pub tracked_per_session_max: u32,
    /// Heads of changed conversations that one turn hands to a checkpoint; the next turn goes on.
    pub heads_per_turn_max: u32,
    /// How long a send may wait for its commit before it is answered `unavailable`.
    pub commit_wait_ms: u64,
    /// Requests that one shard may have under way to another, as the mailboxes have it: an owner remembers the
    /// failures of as many senders as can fail at once.
    pub requests_max: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            sessions_max: 16_384,
            sessions_per_user_max: 16,
            conversations_per_user_max: 5_000,
            body_bytes_max: 64 << 10,
            pending_per_conversation_max: 4_096,
            pending_bytes_max: 32 << 20,
            parked_bytes_max: 32 << 20,
            new_conversations_max: 10_000,
            new_conversations_window_ms: 3_600_000,
            lists_per_user_max: 32,
            pulls_max: 1_024,
            reads_per_session_max: 64,
            page_bytes_max: 64 << 10,
            conversations_max: 500_000,
            idle_users_max: 500_000,
            dedup_entries_max: 1 << 20,
            tail_letters_max: 64,
            tail_bytes_max: 16 << 10,
            tails_bytes_max: 64 << 20,
            changed_max: 64,
            outbound_bytes_max: 256 << 10,
            unacknowledged_max: 1_024,
            tracked_per_session_max: 64,
            heads_per_turn_max: 256,
            commit_wait_ms: 2_000,
            requests_max: MailLimits::default().requests_max,
        }
    }
}
