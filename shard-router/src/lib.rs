//! Who owns what, and how owners talk: slots, the shards that serve them, and the mailboxes between shards.
//!
//! Nothing here does I/O, asks for the time or starts a thread; locks do not occur. See
//! `docs/decisions/0003-mail.md` for why there are three classes of mail.

mod mailbox;
mod sleeper;
mod slot;

pub use mailbox::{Batch, MailCounters, MailLimits, Mailbox, Posted};
#[cfg(feature = "planted-bugs")]
pub use sleeper::PlantedBug;
pub use sleeper::{Sleeper, Waker};
pub use slot::{SLOTS, Slot, SlotMap, SlotOwner, slot_of_conversation, slot_of_user};
