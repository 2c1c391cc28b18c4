//! A process to be measured: a server of ours, or the probe that it is held against.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use loadgen::random::Random;

/// What went wrong, in words.
pub type Trouble = Box<dyn std::error::Error + Send + Sync>;

/// A running process; it ends with this value.
pub struct Process {
    child: Child,
    /// Where it serves.
    pub address: SocketAddr,
    /// Where it answers questions about itself; the probe does not.
    pub internal: Option<SocketAddr>,
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already, which is as well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The release server beside this program.
pub fn ringway() -> Result<PathBuf, Trouble> {
    beside("ringway", "cargo build --release")
}

/// Another program beside this one, and how it is made.
pub fn beside(name: &str, made_by: &str) -> Result<PathBuf, Trouble> {
    let path = std::env::current_exe()?.with_file_name(name);
    if path.exists() {
        return Ok(path);
    }
    Err(format!("{} is not there: build it first, with `{made_by}`", path.display()).into())
}

/// `program` with `arguments`, on one core only if `core` says so.
pub fn pinned(program: &Path, core: Option<usize>) -> Command {
    let Some(core) = core else { return Command::new(program) };
    let mut command = Command::new("taskset");
    command.arg("-c").arg(core.to_string()).arg(program);
    command
}

impl Process {
    /// Starts `ringway dev`.
    pub fn ringway(data: &Path, core: Option<usize>, arguments: &[&str]) -> Result<Self, Trouble> {
        Self::ringway_of(&ringway()?, data, core, arguments)
    }

    /// Starts `dev` of some build of the server.
    pub fn ringway_of(program: &Path, data: &Path, core: Option<usize>, arguments: &[&str]) -> Result<Self, Trouble> {
        Self::ringway_with(program, data, core, arguments, &[])
    }

    /// Starts `ringway dev` for a measurement of memory. What is freed is given back at once: else it would be
    /// counted for a while longer. Pages have 4 KiB: huge ones would hide who uses how much of them. To be paid
    /// for with a page fault each time that one is needed again. Handshakes have a minute: what is asked is how large they are,
    /// and of a machine that is busy otherwise the client gets its part late.
    pub fn ringway_in_small_pages(data: &Path, core: Option<usize>, arguments: &[&str]) -> Result<Self, Trouble> {
        const ENVIRONMENT: [(&str, &str); 3] =
            [("MIMALLOC_PURGE_DELAY", "0"), ("MIMALLOC_ALLOW_THP", "0"), ("RINGWAY_LIMITS_HANDSHAKE_MS", "60000")];
        Self::ringway_with(&ringway()?, data, core, arguments, &ENVIRONMENT)
    }

    fn ringway_with(
        program: &Path,
        data: &Path,
        core: Option<usize>,
        arguments: &[&str],
        environment: &[(&str, &str)],
    ) -> Result<Self, Trouble> {
        let address = two_free_ports()?;
        let mut command = pinned(program, core);
        command.args(["dev", "--listen", &address.to_string(), "--data"]).arg(data).args(arguments);
        command.envs(environment.iter().copied());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let mut lines = BufReader::new(child.stdout.take().expect("it was asked for")).lines();
        let internal = lines.by_ref().map_while(Result::ok).find_map(|line| {
            let (_, rest) = line.split_once("http://").filter(|_| line.contains("internal"))?;
            rest.split(' ').next()?.parse().ok()
        });
        // Whatever else it says must go somewhere, or it would wait for a reader one day.
        std::thread::spawn(move || lines.for_each(drop));
        let process = Self { child, address, internal };
        process.wait_until_ready()?;
        Ok(process)
    }

    /// Starts a raw server of this program, on core 0.
    pub fn raw(arguments: &[&str]) -> Result<Self, Trouble> {
        Self::own(&[&["probe-raw"], arguments].concat())
    }

    /// Starts a part of this program as a server of its own, on core 0. It says when it listens.
    pub fn own(arguments: &[&str]) -> Result<Self, Trouble> {
        let address = two_free_ports()?;
        let mut command = pinned(&std::env::current_exe()?, Some(0));
        command.args(arguments).args(["--listen", &address.to_string()]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        // Unbuffered, so that whatever follows the first line is still there for whoever asked for the pipe.
        let output = child.stdout.as_mut().expect("it was asked for");
        let mut byte = [0];
        while output.read(&mut byte)? == 1 && byte != *b"\n" {}
        let process = Self { child, address, internal: None };
        if byte == *b"\n" { Ok(process) } else { Err(format!("{} did not begin", arguments[0]).into()) }
    }

    /// Starts somebody else's server, which must listen on `address`.
    pub fn of_peer(mut command: Command, address: SocketAddr) -> Result<Self, Trouble> {
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
        let process = Self { child, address, internal: None };
        process.wait_until_ready()?;
        Ok(process)
    }

    /// What it reads and what it says.
    pub fn pipes(&mut self) -> Option<(ChildStdin, ChildStdout)> {
        Some((self.child.stdin.take()?, self.child.stdout.take()?))
    }

    fn wait_until_ready(&self) -> Result<(), Trouble> {
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(30) {
            let ready = match self.internal {
                Some(internal) => get(internal, "/health/ready").is_ok_and(|answer| answer.contains(" 200 ")),
                None => TcpStream::connect(self.address).is_ok(),
            };
            if ready {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Err("the server did not become ready within 30 s".into())
    }

    /// Ends it by a signal, and waits until it has ended.
    pub fn end(&mut self, signal: i32) {
        // SAFETY: the call takes no pointers; the process is our child, which is not reaped before this.
        unsafe { libc::kill(self.id() as libc::pid_t, signal) };
        let _ = self.child.wait();
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// All of its metrics, as it writes them.
    pub fn metrics(&self) -> String {
        self.internal.map(|internal| get(internal, "/metrics").unwrap_or_default()).unwrap_or_default()
    }

    /// One of its metrics.
    pub fn metric(&self, name: &str) -> f64 {
        let text = self.metrics();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
        line.unwrap_or(f64::NAN)
    }

    /// Private and shared anonymous memory, each page by its share: KiB.
    pub fn anonymous_kib(&self) -> u64 {
        crate::figures::field(&format!("/proc/{}/smaps_rollup", self.id()), "Pss_Anon:")
    }
}

/// Processor time of all threads of a process, in nanoseconds, the kernel's part included.
pub fn cpu_ns(process: u32) -> u64 {
    loadgen::process::cpu_ns(process).unwrap_or(0)
}

/// The same of a process and all that come from it, in nanoseconds; of those that have ended, as the kernel adds them up
/// in ticks of 10 ms.
pub fn family_cpu_ns(process: u32) -> u64 {
    let threads = std::fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    let children: String =
        threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok()).collect();
    let of_children: u64 = children.split_whitespace().filter_map(|id| id.parse().ok()).map(family_cpu_ns).sum();
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    // Behind the name, which may have anything in it: cutime and cstime are the 14th and 15th from there.
    let fields = stat.rsplit(") ").next().unwrap_or_default().split(' ');
    let ended: u64 = fields.skip(13).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
    cpu_ns(process) + of_children + ended * 10_000_000
}

/// Processor time of the kernel's thread that goes on with a core's network work when there is too much of it
/// for whoever caused it: on loopback that is who sends from this core, so the time belongs to it.
pub fn softirq_ns(core: u32) -> u64 {
    static FOUND: Mutex<BTreeMap<u32, u32>> = Mutex::new(BTreeMap::new());
    let mut found = FOUND.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(number) = found.get(&core) {
        return cpu_ns(*number);
    }
    let name = format!("ksoftirqd/{core}\n");
    let Ok(processes) = std::fs::read_dir("/proc") else { return 0 };
    let numbers = processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    // Such threads are among the first of all; whatever else has many numbers is not looked at.
    let kernel: Vec<u32> = numbers.filter(|number: &u32| *number < 1_000).collect();
    let is_it = |number: &&u32| std::fs::read_to_string(format!("/proc/{number}/comm")).is_ok_and(|comm| comm == name);
    kernel.iter().find(is_it).map_or(0, |number| {
        found.insert(core, *number);
        cpu_ns(*number)
    })
}

/// The machine's cores, whichever of them this process may use.
pub fn cores() -> u32 {
    let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let of_one = |line: &&str| line.starts_with("cpu") && !line.starts_with("cpu ");
    text.lines().filter(of_one).count().max(1) as u32
}

fn get(address: SocketAddr, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// A port whose successor is free as well: `dev` takes both. Below the range from which the system takes ports of
/// outgoing connections, which tens of thousands of them fill.
pub fn two_free_ports() -> Result<SocketAddr, Trouble> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let mut random = Random::new(now.as_nanos() as u64, u64::from(std::process::id()));
    let is_free = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
    for _ in 0..1_000 {
        let port = 12_000 + 2 * random.below(10_000) as u16;
        if is_free(port) && is_free(port + 1) {
            return Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        }
    }
    Err("no two free ports beside each other".into())
}
