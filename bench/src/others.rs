//! What everybody else used of the machine while something was measured: every process that is not ours, in
//! nanoseconds. docs/decisions/0014 says why it is counted so.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use loadgen::process::cpu_ns;
use serde::{Deserialize, Serialize};

use crate::contest::FOREIGN_MAX;
use crate::server::cores;

/// Of the flags in `/proc/PID/stat`: a thread of the kernel.
const IS_KERNEL_THREAD: u64 = 0x0020_0000;
/// Times of children that ended come in such ticks.
const TICK_NS: u64 = 10_000_000;

/// The processor time of every process, at a moment.
pub struct Census {
    at: Instant,
    processes: HashMap<u32, Counted>,
}

/// One process until a moment.
struct Counted {
    parent: u32,
    is_kernel: bool,
    /// A thread of the kernel that goes on with network work: whoever causes it is charged for it elsewhere.
    is_softirq: bool,
    started: u64,
    /// Of all its threads, those that ended too.
    own_ns: u64,
    /// Of its children that ended, and theirs.
    children_ns: u64,
}

/// What was used between two moments, as parts of the whole machine's time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Shares {
    /// By processes that are not ours.
    pub others: f64,
    /// By threads of the kernel, which work for whoever gave them work: us, or others who are counted themselves.
    pub kernel: f64,
}

impl Census {
    /// All processes as they are now. It takes a millisecond for a hundred of them.
    pub fn now() -> Self {
        let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        let ids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        Self { at: Instant::now(), processes: ids.filter_map(|id| Some((id, Counted::now(id)?))).collect() }
    }

    /// What was used since `before` by whoever is neither this process nor of the families of `own`.
    pub fn since(&self, before: &Self, own: &[u32]) -> Shares {
        let whole = (self.at - before.at).as_nanos() as f64 * f64::from(cores());
        let used = self.each_since(before, own);
        let sum = |is_kernel: bool| {
            let of = used.iter().filter(|(id, _)| self.processes[id].is_kernel == is_kernel);
            of.map(|(_, ns)| *ns).sum::<u64>() as f64 / whole
        };
        Shares { others: sum(false), kernel: sum(true) }
    }

    /// The same, in nanoseconds, process by process.
    fn each_since(&self, before: &Self, own: &[u32]) -> Vec<(u32, u64)> {
        let ended = self.ended_since(before);
        let theirs = self.processes.iter().filter(|(id, of)| !of.is_softirq && !self.is_ours(**id, own));
        let used = theirs.map(|(id, now)| {
            let (own_ns, children_ns) = before.known(*id, now).map_or((0, 0), |was| (was.own_ns, was.children_ns));
            // What a child had used before is no news, though its parent hears of it only when it ends.
            let known = children_ns + ended.get(id).copied().unwrap_or(0);
            (*id, now.own_ns.saturating_sub(own_ns) + now.children_ns.saturating_sub(known))
        });
        used.collect()
    }

    /// What those that have ended since `before` had used until then, by the nearest ancestor that has not.
    fn ended_since(&self, before: &Self) -> HashMap<u32, u64> {
        let goes_on = |id: u32| {
            let was = before.processes.get(&id);
            was.is_some_and(|was| self.processes.get(&id).is_some_and(|now| now.started == was.started))
        };
        let mut ended = HashMap::new();
        for (id, was) in before.processes.iter().filter(|(id, _)| !goes_on(**id)) {
            let mut ancestor = *id;
            while let (false, Some(of)) = (goes_on(ancestor), before.processes.get(&ancestor)) {
                ancestor = of.parent;
            }
            *ended.entry(ancestor).or_default() += was.own_ns + was.children_ns;
        }
        ended
    }

    /// The process as it was, unless another had its number.
    fn known(&self, id: u32, now: &Counted) -> Option<&Counted> {
        self.processes.get(&id).filter(|was| was.started == now.started)
    }

    fn is_ours(&self, id: u32, own: &[u32]) -> bool {
        let mut next = Some(id);
        while let Some(ancestor) = next {
            if own.contains(&ancestor) {
                return true;
            }
            next = self.processes.get(&ancestor).map(|of| of.parent);
        }
        // Its children are servers: one that is not measured now is as foreign as any.
        id == std::process::id()
    }
}

impl Counted {
    fn now(id: u32) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
        // The name may have anything in it.
        let (name, rest) = stat.rsplit_once(") ")?;
        let fields: Vec<&str> = rest.split(' ').collect();
        let field = |at: usize| fields.get(at)?.parse::<u64>().ok();
        Some(Self {
            parent: field(1)? as u32,
            is_kernel: field(6)? & IS_KERNEL_THREAD != 0,
            is_softirq: name.contains("(ksoftirqd/"),
            started: field(19)?,
            own_ns: cpu_ns(id)?,
            children_ns: (field(13)? + field(14)?) * TICK_NS,
        })
    }
}

/// Waits until nobody is busy but this process: a server that was measured before may still put things away. Where others
/// do not rest, it gives up after a while: what they do then is counted.
pub fn until_quiet() {
    const PATIENCE: Duration = Duration::from_secs(5);
    const LOOK: Duration = Duration::from_millis(50);
    let begun = Instant::now();
    loop {
        let before = Census::now();
        std::thread::sleep(LOOK);
        if Census::now().since(&before, &[]).others < FOREIGN_MAX / 2.0 || begun.elapsed() > PATIENCE {
            return;
        }
    }
}

/// What a hypervisor kept from this machine so far, in nanoseconds. It comes in ticks of 10 ms, too coarse for anything
/// shorter than a round.
pub fn steal_ns() -> u64 {
    let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    // cpu, user, nice, system, idle, iowait, irq, softirq, steal
    let steal = text.lines().next().and_then(|line| line.split_whitespace().nth(8)?.parse::<u64>().ok());
    steal.unwrap_or(0) * TICK_NS
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt as _;
    use std::process::{Child, Command, Stdio};

    use super::*;
    use loadgen::process::thread_cpu_ns;

    /// Enough that nothing else is mistaken for it.
    const ENOUGH_NS: u64 = 300_000_000;
    /// What ticks and a process's beginning and end may hide.
    const COARSE_NS: u64 = 40_000_000;

    /// A shell in a group of its own, ended at the latest with the test.
    struct Shell(Child);

    impl Shell {
        fn start(script: &str) -> Self {
            let mut command = Command::new("sh");
            Self(command.args(["-c", script]).stdin(Stdio::null()).process_group(0).spawn().unwrap())
        }

        fn id(&self) -> u32 {
            self.0.id()
        }

        fn signal(&self, signal: i32) {
            // SAFETY: the call takes no pointers; the group's leader is our child, which has not been waited for.
            unsafe { libc::kill(-(self.id() as libc::pid_t), signal) };
        }

        /// Lets it work until it and its children used enough, and stops all of them.
        fn work(&self) {
            let children = || Counted::now(self.id()).map_or(0, |now| now.own_ns + now.children_ns);
            while children() < ENOUGH_NS {
                std::thread::sleep(Duration::from_millis(5));
            }
            self.signal(libc::SIGSTOP);
            self.until_stopped();
        }

        /// Its first child, once that has used enough.
        fn busy_child(&self) -> u32 {
            let path = format!("/proc/{0}/task/{0}/children", self.id());
            let child = || std::fs::read_to_string(&path).ok()?.split_whitespace().next()?.parse::<u32>().ok();
            loop {
                if let Some(child) = child().filter(|child| cpu_ns(*child) >= Some(ENOUGH_NS)) {
                    return child;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        }

        fn until_stopped(&self) {
            let state = || std::fs::read_to_string(format!("/proc/{}/stat", self.id())).unwrap();
            while !state().contains(") T ") {
                std::thread::sleep(Duration::from_millis(1));
            }
        }

        /// Ends it; what it and its children used in its life, as the kernel tells whoever waits for it.
        fn end(self) -> u64 {
            self.signal(libc::SIGKILL);
            // SAFETY: a plain value, which the call fills.
            let usage = unsafe {
                let mut usage: libc::rusage = std::mem::zeroed();
                libc::wait4(self.id() as libc::pid_t, std::ptr::null_mut(), 0, &raw mut usage);
                usage
            };
            let ns = |time: libc::timeval| time.tv_sec as u64 * 1_000_000_000 + time.tv_usec as u64 * 1_000;
            ns(usage.ru_utime) + ns(usage.ru_stime)
        }
    }

    impl Drop for Shell {
        fn drop(&mut self) {
            self.signal(libc::SIGKILL);
        }
    }

    fn of(id: u32, used: &[(u32, u64)]) -> Option<u64> {
        used.iter().find(|(other, _)| *other == id).map(|(_, ns)| *ns)
    }

    fn assert_seen(seen: Option<u64>, told: u64) {
        assert!(told >= 4 * COARSE_NS, "{told}");
        assert!(seen.is_some_and(|seen| seen.abs_diff(told) < COARSE_NS), "{seen:?} seen of {told}");
    }

    #[test]
    fn a_process_that_spins_is_seen_unless_it_is_measured() {
        let before = Census::now();
        let spinning = Shell::start("while :; do :; done");
        spinning.work();
        let now = Census::now();
        let (foreign, measured) = (now.each_since(&before, &[]), now.each_since(&before, &[spinning.id()]));
        assert_eq!(of(spinning.id(), &measured), None);
        let shares = now.since(&before, &[]);
        assert!(shares.others > 0.0 && shares.kernel >= 0.0, "{shares:?}");
        let id = spinning.id();
        assert_seen(of(id, &foreign), spinning.end());
    }

    #[test]
    fn what_a_measured_server_starts_is_not_seen_either() {
        let before = Census::now();
        let server = Shell::start("sh -c 'while :; do :; done' & wait");
        let (child, now) = (server.busy_child(), Census::now());
        assert_eq!(of(child, &now.each_since(&before, &[server.id()])), None);
        assert!(of(child, &now.each_since(&before, &[])) >= Some(ENOUGH_NS));
        server.end();
    }

    #[test]
    fn our_own_threads_are_not_seen() {
        let before = Census::now();
        std::thread::spawn(|| while thread_cpu_ns() < ENOUGH_NS {}).join().unwrap();
        assert!(cpu_ns(std::process::id()) >= Some(ENOUGH_NS));
        assert_eq!(of(std::process::id(), &Census::now().each_since(&before, &[])), None);
    }

    #[test]
    fn children_too_short_to_be_met_are_seen_in_their_parent() {
        let before = Census::now();
        let busy = Shell::start("i=0; while [ $i -lt 1000 ]; do sh -c :; i=$((i+1)); done; kill -STOP $$");
        busy.until_stopped();
        let now = Census::now();
        let id = busy.id();
        let seen = of(id, &now.each_since(&before, &[]));
        assert!(seen > cpu_ns(id), "more than its own");
        assert_seen(seen, busy.end());
    }

    #[test]
    fn what_a_child_used_before_is_no_news_when_it_ends() {
        let parent = Shell::start("sh -c 'trap exit TERM; while :; do :; done' & wait; while :; do sleep 1; done");
        let (spinning, before) = (parent.busy_child(), Census::now());
        // SAFETY: the call takes no pointers; the process is waited for by its parent, which is stopped by nobody.
        unsafe { libc::kill(spinning as libc::pid_t, libc::SIGTERM) };
        while Counted::now(parent.id()).unwrap().children_ns < ENOUGH_NS - COARSE_NS {
            std::thread::sleep(Duration::from_millis(5));
        }
        let seen = of(parent.id(), &Census::now().each_since(&before, &[])).unwrap();
        let whole = Counted::now(parent.id()).unwrap().children_ns;
        assert!(seen < whole / 2, "{seen} of {whole}");
        parent.end();
    }
}
