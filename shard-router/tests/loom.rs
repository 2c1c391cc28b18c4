//! The sleep and wake protocol under every interleaving that the memory model allows:
//!
//! ```text
//! RUSTFLAGS="--cfg loom" cargo test -p shard-router --release --features planted-bugs --test loom --target-dir target/loom
//! ```
//!
//! Channels are modelled by a locked counter: their own correctness is crossbeam's affair.

#![cfg(loom)]
#![allow(clippy::disallowed_methods, reason = "the test is the driver: it owns the threads")]

use loom::sync::atomic::{AtomicU32, Ordering};
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;
use shard_router::{Sleeper, Waker};

/// A doorbell that remembers, as an eventfd does.
#[derive(Default)]
struct Doorbell {
    rung: Mutex<bool>,
    changed: Condvar,
}

impl Doorbell {
    fn ring(&self) {
        *self.rung.lock().unwrap() = true;
        self.changed.notify_one();
    }

    fn wait(&self) {
        let mut rung = self.rung.lock().unwrap();
        while !*rung {
            rung = self.changed.wait(rung).unwrap();
        }
        *rung = false;
    }
}

fn waker(doorbell: &Arc<Doorbell>) -> Waker {
    let doorbell = Arc::clone(doorbell);
    Box::new(move || doorbell.ring())
}

/// `senders` threads put one thing each where the shard looks; the shard sleeps until it has all.
///
/// With more than one sender there are too many interleavings to try all: there, those with up to three
/// preemptions are tried.
fn shard_gets_everything(make: fn(Waker) -> Sleeper, senders: u32) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = (senders > 1).then_some(3);
    builder.check(move || {
        let doorbell = Arc::new(Doorbell::default());
        let sleeper = Arc::new(make(waker(&doorbell)));
        let queue = Arc::new(Mutex::new(0));
        let threads: Vec<_> = (0..senders)
            .map(|_| {
                let (sleeper, queue) = (Arc::clone(&sleeper), Arc::clone(&queue));
                thread::spawn(move || {
                    *queue.lock().unwrap() += 1;
                    sleeper.notify();
                })
            })
            .collect();
        let mut taken = 0;
        while taken < senders {
            taken += std::mem::take(&mut *queue.lock().unwrap());
            if taken < senders && sleeper.prepare_to_sleep(|| *queue.lock().unwrap() > 0) {
                doorbell.wait();
            }
            sleeper.woken();
        }
        for thread in threads {
            thread.join().unwrap();
        }
    });
}

#[test]
fn nothing_put_before_a_notify_is_slept_through() {
    shard_gets_everything(Sleeper::new, 1);
}

#[test]
fn nothing_is_slept_through_when_two_put_at_once() {
    shard_gets_everything(Sleeper::new, 2);
}

/// The way back: a sender that sleeps on a full channel is rung when its reader has made room. This is
/// `Outbox::flush` and `Mailbox::taken_in` with the channel as a number.
#[test]
fn a_sender_that_waits_for_room_is_woken() {
    loom::model(|| {
        let doorbell = Arc::new(Doorbell::default());
        let sleeper = Arc::new(Sleeper::new(waker(&doorbell)));
        let in_channel = Arc::new(AtomicU32::new(1));
        let held = Arc::new(loom::sync::atomic::AtomicBool::new(false));
        let reader = {
            let (sleeper, in_channel, held) = (Arc::clone(&sleeper), Arc::clone(&in_channel), Arc::clone(&held));
            thread::spawn(move || {
                in_channel.fetch_sub(1, Ordering::AcqRel);
                loom::sync::atomic::fence(Ordering::SeqCst);
                if held.load(Ordering::Relaxed) && held.swap(false, Ordering::Relaxed) {
                    sleeper.notify();
                }
            })
        };
        let is_full = || in_channel.load(Ordering::Acquire) == 1;
        let flush = || {
            if is_full() {
                held.store(true, Ordering::Relaxed);
                loom::sync::atomic::fence(Ordering::SeqCst);
                if is_full() {
                    return false;
                }
                held.store(false, Ordering::Relaxed);
            }
            true
        };
        while !flush() {
            if sleeper.prepare_to_sleep(|| !is_full()) {
                doorbell.wait();
            }
            sleeper.woken();
        }
        reader.join().unwrap();
    });
}

#[cfg(feature = "planted-bugs")]
#[test]
#[should_panic(expected = "deadlock")]
fn a_planted_lost_wake_up_is_found() {
    let make = |waker| Sleeper::with_planted_bug(waker, shard_router::PlantedBug::WakeUpLostInRace);
    shard_gets_everything(make, 1);
}
