//! Who sleeps, and how to wake them without ringing those who are awake.
//!
//! A shard sleeps in its ring until a completion or its doorbell. Others put something where it will
//! look (a batch into a channel, a completion into a queue) and then call [`Sleeper::notify`]. Ringing
//! costs a system call, so it happens only when the shard said that it sleeps, and once per sleep.
//!
//! ```text
//! the shard                                the other side
//! 1. asleep = true                         1. put the thing into its queue
//! 2. look into every queue once more       2. if asleep was true: asleep = false, ring
//! 3. nothing there: sleep in the ring
//! ```
//!
//! Each side writes one thing and then reads the other's. Both reading the old value would lose the
//! wake-up, and store buffers allow exactly that for acquire and release; a `SeqCst` fence between the
//! write and the read on each side forbids it. The doorbell itself remembers: rung between 2 and 3, it
//! ends the sleep at once. `tests/loom.rs` tries every interleaving.

#[cfg(not(loom))]
use std::sync::atomic::{AtomicBool, Ordering, fence};

#[cfg(loom)]
use loom::sync::atomic::{AtomicBool, Ordering, fence};

/// Rings a shard's doorbell: makes its ring return from sleep, now or at once when it next goes to sleep.
pub type Waker = Box<dyn Fn() + Send + Sync>;

/// Says whether one shard sleeps, to everyone who may have to wake it.
pub struct Sleeper {
    asleep: AtomicBool,
    waker: Waker,
    #[cfg(feature = "planted-bugs")]
    planted: Option<PlantedBug>,
}

/// A bug to be found by tests, to show that they would find a real one.
#[cfg(feature = "planted-bugs")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlantedBug {
    /// A shard looks for work before it says that it sleeps instead of after: only another thread at
    /// the wrong moment makes this show.
    WakeUpLostInRace,
    /// A batch without a request does not ring the doorbell.
    WakeUpForgotten,
    /// A reply is dropped when its mailbox is full.
    ReplyDropped,
}

impl Sleeper {
    /// A shard that is awake.
    pub fn new(waker: Waker) -> Self {
        Self {
            asleep: AtomicBool::new(false),
            waker,
            #[cfg(feature = "planted-bugs")]
            planted: None,
        }
    }

    /// The same with a bug in it.
    #[cfg(feature = "planted-bugs")]
    pub fn with_planted_bug(waker: Waker, planted: PlantedBug) -> Self {
        Self { planted: Some(planted), ..Self::new(waker) }
    }

    /// To be called by the shard alone, before it sleeps; `has_work` looks into every queue that others
    /// fill. `false`: there is work, do not sleep. After `true`, [`Self::woken`] must follow the sleep.
    pub fn prepare_to_sleep(&self, has_work: impl FnOnce() -> bool) -> bool {
        #[cfg(feature = "planted-bugs")]
        if self.planted == Some(PlantedBug::WakeUpLostInRace) {
            let sleeps = !has_work();
            self.asleep.store(sleeps, Ordering::Relaxed);
            return sleeps;
        }
        // A swap: see `woken`.
        self.asleep.swap(true, Ordering::AcqRel);
        // Pairs with the fence in `notify`: of the two sides at least one sees what the other wrote.
        fence(Ordering::SeqCst);
        if has_work() {
            // Whoever saw `true` meanwhile rings once too often, which costs a turn and no more.
            self.asleep.swap(false, Ordering::AcqRel);
            return false;
        }
        true
    }

    /// To be called by the shard alone, after it slept, before it looks for work.
    pub fn woken(&self) {
        // If another side saw `true` before, it rings for nothing. A swap, here and above: a plain store
        // leaves its order among the other sides' swaps open, and loom found a sleep that nobody ended.
        self.asleep.swap(false, Ordering::AcqRel);
    }

    /// To be called by anyone who has put work where the shard looks, after that. Says whether it rang.
    pub fn notify(&self) -> bool {
        // Pairs with the fence in `prepare_to_sleep`.
        fence(Ordering::SeqCst);
        // Reading first keeps the cache line shared while the shard is awake, which is nearly always.
        // Of several who see it asleep, the swap lets one ring.
        if self.asleep.load(Ordering::Relaxed) && self.asleep.swap(false, Ordering::AcqRel) {
            (self.waker)();
            return true;
        }
        false
    }
}

impl std::fmt::Debug for Sleeper {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Sleeper").field("asleep", &self.asleep).finish_non_exhaustive()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::AtomicU32;

    fn sleeper() -> (Sleeper, Arc<AtomicU32>) {
        let rung = Arc::new(AtomicU32::new(0));
        let bell = Arc::clone(&rung);
        (Sleeper::new(Box::new(move || _ = bell.fetch_add(1, Ordering::Relaxed))), rung)
    }

    #[test]
    fn the_doorbell_is_rung_once_per_sleep_and_never_while_awake() {
        let (sleeper, rung) = sleeper();
        assert!(!sleeper.notify());
        assert!(sleeper.prepare_to_sleep(|| false));
        assert!(sleeper.notify());
        assert!(!sleeper.notify());
        sleeper.woken();
        assert!(!sleeper.notify());
        assert_eq!(rung.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn whoever_finds_work_does_not_sleep() {
        let (sleeper, rung) = sleeper();
        assert!(!sleeper.prepare_to_sleep(|| true));
        assert!(!sleeper.notify());
        assert_eq!(rung.load(Ordering::Relaxed), 0);
    }
}
