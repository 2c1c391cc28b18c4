//! One check per setting: what it is, what it means for sessions, and what to do.

use serde::Serialize;

use crate::machine::Machine;

/// Kernel memory of one accepted, idle TCP socket with a poll armed, measured on Linux 6.18 as
/// growth of the named slab caches.
const KERNEL_BYTES_PER_SESSION: u64 = 3_860 + 256;

/// What the server itself holds for an idle session.
const SERVER_BYTES_PER_SESSION: u64 = 256;

/// What the server holds before the first session.
const SERVER_BYTES_FIXED: u64 = 256 << 20;

/// Of the memory left, this part stays for buffers, journal and page cache.
const MEMORY_RESERVE_PERCENT: u64 = 20;

/// New connections spread unevenly over the shards' tables, so a part of each stays free.
const TABLE_FREE_PERCENT: u64 = 10;

/// The journal's executor refuses to start with less.
const LOCKED_BYTES_MIN: u64 = 512 << 10;

/// The backlog that the server asks for.
const BACKLOG_WANTED: u64 = 4_096;

/// How a setting stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Enough for the sessions asked for.
    Enough,
    /// Works, and costs something.
    Costs,
    /// Holds fewer sessions than asked for.
    Limits,
    /// The server does not run like this.
    Refuses,
    /// The kernel does not show it.
    Unknown,
}

/// What was found about one setting.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// A short, stable name.
    pub name: &'static str,
    /// Its value, with unit.
    pub value: String,
    /// How it stands.
    pub status: Status,
    /// Sessions that it leaves room for, if it limits them at all.
    pub sessions_max: Option<u64>,
    /// What the value means for sessions.
    pub meaning: String,
    /// What to do, empty if nothing.
    pub action: String,
}

/// All checks, for so many wanted sessions.
pub fn check(machine: &Machine, sessions: u64) -> Vec<Check> {
    vec![
        kernel(machine),
        io_uring(machine),
        locked_memory(machine),
        descriptors(machine, sessions),
        files(machine, sessions),
        memory(machine, sessions),
        cgroup(machine, sessions),
        tracking(machine, sessions),
        socket_table(machine, sessions),
        tcp_memory(machine, sessions),
        backlog(machine),
        syn_backlog(machine),
        ports(machine, sessions),
        time_wait(machine, sessions),
    ]
}

fn unknown(name: &'static str, what: &str) -> Check {
    Check {
        name,
        value: "not shown".to_owned(),
        status: Status::Unknown,
        sessions_max: None,
        meaning: format!("this system does not show {what}, so it is left out of the sum"),
        action: String::new(),
    }
}

/// A check whose value is a number of sessions.
fn capacity(
    name: &'static str,
    value: String,
    sessions: (u64, u64),
    meaning: String,
    action: impl FnOnce() -> String,
) -> Check {
    let (sessions_max, wanted) = sessions;
    let enough = sessions_max >= wanted;
    Check {
        name,
        value,
        status: if enough { Status::Enough } else { Status::Limits },
        sessions_max: Some(sessions_max),
        meaning,
        action: if enough { String::new() } else { action() },
    }
}

fn kernel(machine: &Machine) -> Check {
    let Some(release) = machine.kernel.clone() else {
        return unknown("kernel", "its version");
    };
    let mut numbers = release.split(|character: char| !character.is_ascii_digit()).map_while(|part| part.parse().ok());
    let version: (u32, u32) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let (status, meaning, action) = if version < (6, 1) {
        (Status::Refuses, "io_uring here lacks deferred task work, which the server needs", "boot Linux 6.1 or newer")
    } else if version < (6, 8) {
        (
            Status::Costs,
            "the server runs; ending a connection takes a kernel worker thread each time",
            "boot Linux 6.8 or newer if connections come and go a lot",
        )
    } else {
        (Status::Enough, "has everything that the server uses", "")
    };
    Check {
        name: "kernel",
        value: release,
        status,
        sessions_max: (status == Status::Refuses).then_some(0),
        meaning: meaning.to_owned(),
        action: action.to_owned(),
    }
}

fn io_uring(machine: &Machine) -> Check {
    let (refused, value) = match machine.io_uring_disabled {
        None => (false, "cannot be disabled".to_owned()),
        Some(0) => (false, "0 (allowed)".to_owned()),
        Some(1) => (!machine.administrator && !machine.in_io_uring_group, "1 (allowed to some)".to_owned()),
        Some(other) => (true, format!("{other} (refused to all)")),
    };
    Check {
        name: "io_uring_disabled",
        value,
        status: if refused { Status::Refuses } else { Status::Enough },
        sessions_max: refused.then_some(0),
        meaning: if refused {
            "the kernel refuses io_uring to this user, and the server has no other driver yet".to_owned()
        } else {
            "this user may use io_uring; a container's seccomp profile may still refuse it".to_owned()
        },
        action: if refused {
            "sysctl -w kernel.io_uring_disabled=0, or put the user into kernel.io_uring_group".to_owned()
        } else {
            String::new()
        },
    }
}

fn locked_memory(machine: &Machine) -> Check {
    let Some(bytes) = machine.locked_bytes else {
        return unknown("memlock", "the locked-memory limit");
    };
    let enough = bytes >= LOCKED_BYTES_MIN;
    Check {
        name: "memlock",
        value: if bytes == u64::MAX { "unlimited".to_owned() } else { format!("{} KiB", bytes >> 10) },
        status: if enough { Status::Enough } else { Status::Refuses },
        sessions_max: (!enough).then_some(0),
        meaning: "the journal's writer needs 512 KiB; sessions need none of it".to_owned(),
        action: if enough { String::new() } else { "LimitMEMLOCK=8M in the unit, or ulimit -l 8192".to_owned() },
    }
}

fn descriptors(machine: &Machine, sessions: u64) -> Check {
    let Some((soft, hard)) = machine.descriptors else {
        return unknown("descriptors", "the process's descriptor limit");
    };
    let shards = machine.processors.unwrap_or(1);
    let usable = |limit: u64| {
        let all = u128::from(limit) * u128::from(shards) * u128::from(100 - TABLE_FREE_PERCENT) / 100;
        u64::try_from(all).unwrap_or(u64::MAX)
    };
    let wanted = (sessions * 100).div_ceil(shards * (100 - TABLE_FREE_PERCENT));
    let meaning = format!(
        "each shard's table holds as many connections as the process may have descriptors: {shards} shards, \
         {TABLE_FREE_PERCENT} % kept free because connections spread unevenly"
    );
    capacity("descriptors", format!("{soft} (hard {hard})"), (usable(soft), sessions), meaning, || {
        let ceiling = machine.descriptors_max.map_or_else(String::new, |max| {
            if wanted > max { format!("; first sysctl -w fs.nr_open={wanted}, which is {max}") } else { String::new() }
        });
        format!("LimitNOFILE={wanted} in the unit, or ulimit -n {wanted}, for {sessions} sessions{ceiling}")
    })
}

fn files(machine: &Machine, sessions: u64) -> Check {
    let (Some(max), Some(open)) = (machine.files_max, machine.files_open) else {
        return unknown("file-max", "the machine's limit of open files");
    };
    let value = format!("{max} ({open} open)");
    if machine.administrator {
        return Check {
            name: "file-max",
            value,
            status: Status::Enough,
            sessions_max: None,
            meaning: "each session is an open file; the limit does not bind a process with CAP_SYS_ADMIN".to_owned(),
            action: String::new(),
        };
    }
    let meaning = "each session is an open file of the whole machine".to_owned();
    capacity("file-max", value, (max.saturating_sub(open), sessions), meaning, || {
        let wanted = open + sessions + sessions / 10;
        format!("sysctl -w fs.file-max={wanted}")
    })
}

fn sessions_in(free_bytes: u64) -> u64 {
    let usable = free_bytes / 100 * (100 - MEMORY_RESERVE_PERCENT);
    usable.saturating_sub(SERVER_BYTES_FIXED) / (KERNEL_BYTES_PER_SESSION + SERVER_BYTES_PER_SESSION)
}

fn bytes_for(sessions: u64) -> u64 {
    let needed = sessions * (KERNEL_BYTES_PER_SESSION + SERVER_BYTES_PER_SESSION) + SERVER_BYTES_FIXED;
    needed / (100 - MEMORY_RESERVE_PERCENT) * 100
}

fn memory(machine: &Machine, sessions: u64) -> Check {
    let Some(bytes) = machine.memory_available_bytes else {
        return unknown("memory", "the memory available");
    };
    let meaning = format!(
        "an idle session takes {KERNEL_BYTES_PER_SESSION} bytes of the kernel and {SERVER_BYTES_PER_SESSION} of the \
         server, which itself takes {} MiB; {MEMORY_RESERVE_PERCENT} % is kept for traffic and files",
        SERVER_BYTES_FIXED >> 20
    );
    capacity("memory", format!("{} MiB available", bytes >> 20), (sessions_in(bytes), sessions), meaning, || {
        format!("{sessions} sessions take about {} MiB: add memory or spread over nodes", bytes_for(sessions) >> 20)
    })
}

fn cgroup(machine: &Machine, sessions: u64) -> Check {
    let Some(memory) = machine.cgroup_memory else {
        return Check {
            name: "cgroup memory",
            value: "no limit".to_owned(),
            status: Status::Enough,
            sessions_max: None,
            meaning: "no control group limits this process's memory".to_owned(),
            action: String::new(),
        };
    };
    let value = format!("{} MiB ({} in use)", memory.limit_bytes >> 20, memory.used_bytes >> 20);
    let meaning = "the kernel's memory for sockets counts towards the control group's limit".to_owned();
    capacity("cgroup memory", value, (sessions_in(memory.free_bytes()), sessions), meaning, || {
        format!("MemoryMax={}M in the unit, or as much for the container", bytes_for(sessions) >> 20)
    })
}

fn tracking(machine: &Machine, sessions: u64) -> Check {
    let free = |value: String, meaning: &str| Check {
        name: "nf_conntrack",
        value,
        status: Status::Enough,
        sessions_max: None,
        meaning: meaning.to_owned(),
        action: String::new(),
    };
    let Some((max, count)) = machine.tracked else {
        return free("not loaded".to_owned(), "the firewall tracks no connections");
    };
    let value = format!("{max} ({count} tracked)");
    if count == 0 {
        return free(value, "no rule tracks connections here; once one does, this number limits sessions");
    }
    let meaning = "each session takes an entry; when they are used up, new connections are dropped".to_owned();
    capacity("nf_conntrack", value, (max.saturating_sub(count), sessions), meaning, || {
        let wanted = count + sessions + sessions / 10;
        format!(
            "sysctl -w net.netfilter.nf_conntrack_max={wanted}, or a notrack rule for the server's port, \
             which also saves its cost per packet"
        )
    })
}

fn socket_table(machine: &Machine, sessions: u64) -> Check {
    let Some(buckets) = machine.socket_buckets else {
        return unknown("socket table", "the size of the table of TCP connections");
    };
    let wanted = sessions.max(1).next_power_of_two();
    let enough = sessions <= buckets * 2;
    Check {
        name: "socket table",
        value: format!("{buckets} buckets"),
        status: if enough { Status::Enough } else { Status::Costs },
        sessions_max: None,
        meaning: format!(
            "the kernel looks for a packet's socket here; {sessions} sessions make chains of about {}, and each \
             step may be a cache miss",
            sessions.div_ceil(buckets.max(1))
        ),
        action: if enough {
            String::new()
        } else {
            format!(
                "boot with thash_entries={wanted}, or run in a network namespace made after sysctl -w \
                 net.ipv4.tcp_child_ehash_entries={wanted}"
            )
        },
    }
}

fn tcp_memory(machine: &Machine, sessions: u64) -> Check {
    let Some(pages) = machine.tcp_pages_max else {
        return unknown("tcp_mem", "the limit of memory for TCP data");
    };
    // A page holds one session's unread or unsent data: every twentieth session at once is a lot.
    let enough = pages >= sessions / 20;
    Check {
        name: "tcp_mem",
        value: format!("{pages} pages"),
        status: if enough { Status::Enough } else { Status::Costs },
        sessions_max: None,
        meaning: format!(
            "idle sessions use none; {pages} sessions may have unread or unsent data at once before TCP throttles all"
        ),
        action: if enough {
            String::new()
        } else {
            let pages = sessions / 20;
            format!("sysctl -w net.ipv4.tcp_mem='{} {} {pages}'", pages / 2, pages * 3 / 4)
        },
    }
}

fn backlog(machine: &Machine) -> Check {
    let Some(backlog) = machine.accept_backlog else {
        return unknown("somaxconn", "the limit of a listener's backlog");
    };
    burst(
        "somaxconn",
        backlog,
        "connections wait here, per shard, to be accepted; when a crowd reconnects the rest is dropped and retries \
         after a second",
        "net.core.somaxconn",
    )
}

fn syn_backlog(machine: &Machine) -> Check {
    let Some(backlog) = machine.syn_backlog else {
        return unknown("tcp_max_syn_backlog", "the limit of half-open connections");
    };
    burst(
        "tcp_max_syn_backlog",
        backlog,
        "half-open connections wait here, per shard, while the network answers; beyond it SYN cookies take over",
        "net.ipv4.tcp_max_syn_backlog",
    )
}

fn burst(name: &'static str, backlog: u64, meaning: &str, setting: &str) -> Check {
    let enough = backlog >= BACKLOG_WANTED;
    Check {
        name,
        value: backlog.to_string(),
        status: if enough { Status::Enough } else { Status::Costs },
        sessions_max: None,
        meaning: meaning.to_owned(),
        action: if enough { String::new() } else { format!("sysctl -w {setting}={BACKLOG_WANTED}") },
    }
}

fn ports(machine: &Machine, sessions: u64) -> Check {
    let Some((first, last)) = machine.port_range else {
        return unknown("port range", "the range of local ports");
    };
    let ports = (last + 1).saturating_sub(first);
    // Beyond two thirds the kernel searches long for a free port: 25,100 connects a second became 636.
    let usable = (ports * 2 / 3).max(1);
    let addresses = sessions.div_ceil(usable);
    Check {
        name: "port range",
        value: format!("{first}-{last} ({ports} ports)"),
        status: Status::Enough,
        sessions_max: None,
        meaning: format!(
            "does not limit a server; a proxy or load generator on this machine opens about {usable} connections per \
             source address before connects become slow"
        ),
        action: if addresses > 1 {
            format!("a proxy or generator in front of {sessions} sessions needs {addresses} source addresses")
        } else {
            String::new()
        },
    }
}

fn time_wait(machine: &Machine, sessions: u64) -> Check {
    let Some(max) = machine.time_wait_max else {
        return unknown("tcp_max_tw_buckets", "the limit of connections in TIME-WAIT");
    };
    let enough = max >= sessions.min(262_144);
    Check {
        name: "tcp_max_tw_buckets",
        value: max.to_string(),
        status: if enough { Status::Enough } else { Status::Costs },
        sessions_max: None,
        meaning: "connections that the server closed first rest here for a minute; above it they are forgotten early, \
                  which is harmless except to late packets"
            .to_owned(),
        action: if enough { String::new() } else { "sysctl -w net.ipv4.tcp_max_tw_buckets=262144".to_owned() },
    }
}
