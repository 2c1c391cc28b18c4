//! Alone in its process, because it takes the process's descriptors away and sends it signals.

mod common;

use std::io::{ErrorKind, Read};
use std::net::Shutdown;
use std::time::{Duration, Instant};

use common::{PATIENCE, Shard, small};
use ring::{CloseReason, EventBatch, Op};

/// Direct descriptors are not the process's, so connections are accepted and served without any;
/// ending one the usual way takes an ordinary descriptor for a moment, and does without if need be.
#[test]
fn connections_come_and_go_when_the_process_has_no_descriptor_left() {
    let mut shard = Shard::new(&small(70));
    let mut streams: Vec<_> = (0..3).map(|_| shard.connect()).collect();
    let before = leave_no_descriptor();
    shard.run_until("accepted", |shard| shard.accepted.len() == 3);
    shard.turn(Duration::from_millis(5));

    let finished = shard.accepted[0];
    shard.op(Op::Shutdown { connection: finished });
    for _ in 0..5 {
        shard.turn(Duration::from_millis(5));
    }
    let mut rest = Vec::new();
    streams[0].read_to_end(&mut rest).expect("an orderly end");
    streams[0].shutdown(Shutdown::Write).expect("the peer's end");
    shard.run_until("finished", |shard| shard.closed.len() == 1);
    assert_eq!(shard.closed[0], (finished, CloseReason::Finished));

    let closed = shard.accepted[1];
    shard.op(Op::Close { connection: closed });
    shard.run_until("closed", |shard| shard.closed.len() == 2);
    assert_eq!(shard.closed[1], (closed, CloseReason::Asked));
    let error = streams[1].read(&mut [0]).expect_err("a reset");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);

    // A connect does need one, for as long as it takes to make the socket.
    let address = shard.address;
    shard.op(Op::Connect { token: 1, address, source: None });
    shard.run_until("failed", |shard| !shard.failed.is_empty());
    set_descriptor_limit(before);
    shard.op(Op::Connect { token: 2, address, source: None });
    shard.run_until("connected", |shard| shard.connected.len() == 1);

    a_signal_ends_a_wait_and_harms_nothing(&mut shard);
}

fn a_signal_ends_a_wait_and_harms_nothing(shard: &mut Shard) {
    extern "C" fn heard(_: libc::c_int) {}
    let handler: extern "C" fn(libc::c_int) = heard;
    // SAFETY: the handler does nothing, nobody else in this process uses SIGUSR1, and a zeroed
    // action has no flags: with SA_RESTART the kernel would go on waiting by itself.
    let waiting = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as libc::sighandler_t;
        assert_eq!(libc::sigaction(libc::SIGUSR1, &raw const action, std::ptr::null_mut()), 0);
        libc::pthread_self()
    };
    let signaller = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(50));
        // SAFETY: the thread waits for this one below, so it still exists.
        unsafe { libc::pthread_kill(waiting, libc::SIGUSR1) }
    });
    let begun = Instant::now();
    let mut events = EventBatch::default();
    while shard.ring.counters().interrupted == 0 {
        assert!(begun.elapsed() < PATIENCE, "the signal was not noticed");
        shard.ring.wait(Some(PATIENCE), &mut events).expect("a signal is not an error");
    }
    assert_eq!(signaller.join().expect("the signaller"), 0);
    let connection = shard.accepted[2];
    shard.op(Op::Close { connection });
    shard.run_until("closed", |shard| shard.closed.len() == 3);
}

/// Gives the limit that was in force.
fn leave_no_descriptor() -> libc::rlim_t {
    let highest = std::fs::read_dir("/proc/self/fd")
        .expect("descriptors")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<libc::rlim_t>().ok())
        .max()
        .expect("at least one");
    // The listing itself used the highest one, or one below it: fill what is free.
    let before = set_descriptor_limit(highest + 1);
    while let Ok(file) = std::fs::File::open("/dev/null") {
        std::mem::forget(file);
    }
    before
}

fn set_descriptor_limit(soft: libc::rlim_t) -> libc::rlim_t {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls get a valid structure that lives through the call.
    unsafe {
        assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit), 0);
        let before = std::mem::replace(&mut limit.rlim_cur, soft);
        assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit), 0);
        before
    }
}
