//! What Ringway is to reach, and how far it is: one row for each target, out of the result files.
//!
//! A row says what was measured, what it is held against in the same run, and whether the bound is met. A ratio meets
//! its bound when its upper 95 % bound does. What no result file holds was not measured, and neither was what only a
//! void run says.

use serde_json::Value;

use super::{Bounded, Figure, ratio, short};

/// Whether a target is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Met {
    Yes,
    No,
    NotMeasured,
    /// There is no bound.
    Measured,
}

impl Met {
    pub(super) fn text(self) -> &'static str {
        match self {
            Self::Yes => "met",
            Self::No => "not met",
            Self::NotMeasured => NOT_MEASURED,
            Self::Measured => "measured",
        }
    }

    /// One condition that fails is enough; otherwise all must be known.
    fn all(of: &[Option<bool>]) -> Self {
        if of.contains(&Some(false)) {
            Self::No
        } else if of.contains(&None) || of.is_empty() {
            Self::NotMeasured
        } else {
            Self::Yes
        }
    }
}

/// A row of the table.
#[derive(Debug)]
pub(super) struct Target {
    pub name: &'static str,
    pub what: String,
    pub ringway: String,
    pub floor: String,
    pub peer: String,
    pub must: String,
    pub met: Met,
}

pub(super) const COLUMNS: [&str; 7] = ["", "what", "Ringway", "floor", "best peer", "must", ""];

/// What stands where nothing was measured, and where there is nothing to measure.
const NOT_MEASURED: &str = "not measured";
const NONE: &str = "–";

impl Target {
    pub(super) fn cells(&self) -> [&str; 7] {
        [self.name, &self.what, &self.ringway, &self.floor, &self.peer, &self.must, self.met.text()]
    }
}

/// All rows, in the order of their numbers; the last are about the generator itself.
pub(super) fn all(figures: &[Figure]) -> Vec<Target> {
    let files = Files(figures);
    vec![
        files.user_memory(),
        files.kernel_memory(),
        files.echo(1_000),
        files.echo(15_000),
        files.routed(1_000),
        files.routed(15_000),
        files.durable(),
        files.latency("at_10000", "at 10,000/s"),
        files.latency("at_25000", "at 25,000/s"),
        files.latency("at_50000", "at 50,000/s"),
        files.latency("at_half", "at half of saturation"),
        files.latency("at_90_percent", "at 90 % of saturation"),
        files.opened(),
        files.calls(),
        files.beats(15_000),
        files.beats(200_000),
        files.beats(1_000_000),
        files.generator(),
        files.million(),
    ]
}

struct Files<'a>(&'a [Figure]);

/// One side of a run beside another, with the ratio of Ringway to it.
struct Beside<'a> {
    name: &'a str,
    us: f64,
    ratio: Option<Bounded>,
}

impl Beside<'_> {
    fn text(&self) -> String {
        let ratio = self.ratio.map_or(String::new(), |ratio| format!(": {}", times(ratio)));
        format!("{} {} µs{ratio}", self.name, short(self.us))
    }
}

impl Figure {
    fn side(&self, name: &str) -> Option<&Value> {
        self.sides().iter().find(|side| side["name"] == name && side["absent"].is_null())
    }

    /// Ringway's part of a contest, whatever exactly it is called.
    fn ours(&self) -> Option<&Value> {
        let is_ours = |side: &&Value| side["name"].as_str().is_some_and(|name| name.starts_with("ringway"));
        self.sides().iter().find(is_ours)
    }

    /// Another side, and the ratio of ours to it: as it was recorded, or the other way round.
    fn beside<'a>(&'a self, side: &'a Value) -> Option<Beside<'a>> {
        let name = side["name"].as_str()?;
        let ours = self.ours()?;
        let inverse = || {
            let over = ratio(&side["over"][ours["name"].as_str()?])?;
            Some(Bounded { median: 1.0 / over.median, low: 1.0 / over.high, high: 1.0 / over.low })
        };
        let ratio = ratio(&ours["over"][name]).or_else(inverse);
        Some(Beside { name, us: side["us"].as_f64()?, ratio })
    }

    fn floor(&self, name: &str) -> Option<Beside<'_>> {
        self.beside(self.side(name)?)
    }

    /// The cheapest of those that are neither ours nor a probe.
    fn best_peer(&self) -> Option<Beside<'_>> {
        let is_peer = |side: &&Value| {
            let name = side["name"].as_str().unwrap_or_default();
            !name.starts_with("ringway") && !name.starts_with("raw ")
        };
        let peers = self.sides().iter().filter(is_peer).filter_map(|side| self.beside(side));
        peers.min_by(|one, other| one.us.total_cmp(&other.us))
    }

    /// Whether the upper bound of a ratio is at most so much; unknown after a void run.
    fn holds(&self, beside: Option<&Beside<'_>>, most: f64) -> Option<bool> {
        beside.and_then(|beside| beside.ratio).filter(|_| !self.is_void()).map(|ratio| ratio.high <= most)
    }

    fn ours_us(&self) -> String {
        let void = if self.is_void() { " (void)" } else { "" };
        let us = self.ours().and_then(|ours| ours["us"].as_f64());
        us.map_or(NOT_MEASURED.to_owned(), |us| format!("{} µs{void}", short(us)))
    }
}

/// A ratio and its bounds.
fn times(of: Bounded) -> String {
    let [median, low, high] = [of.median, of.low, of.high].map(short);
    if low == high { format!("{median}x") } else { format!("{median}x ({low} to {high})") }
}

fn text(beside: Option<&Beside<'_>>) -> String {
    beside.map_or(NOT_MEASURED.to_owned(), Beside::text)
}

/// A number of a result, or that it was not measured.
fn number(value: Option<f64>, unit: &str) -> String {
    value.map_or(NOT_MEASURED.to_owned(), |value| format!("{}{unit}", short(value)))
}

impl Files<'_> {
    fn find(&self, name: &str) -> Option<&Figure> {
        self.0.iter().find(|figure| figure.name == name)
    }

    fn number(&self, name: &str, path: &str) -> Option<f64> {
        self.find(name)?.result.pointer(path)?.as_f64()
    }

    fn user_memory(&self) -> Target {
        let ours = self.number("idle", "/bytes_per_session");
        let peer = self.find("peers-idle").and_then(|figure| {
            let others = figure.sides().iter().filter(|side| side["name"] != "ringway sessions");
            let named = others.filter_map(|side| Some((side["name"].as_str()?, side["user_bytes"].as_f64()?)));
            named.min_by(|one, other| one.1.total_cmp(&other.1))
        });
        Target {
            name: "T1",
            what: "user-space bytes per idle session, from 5,000 to 15,000 sessions; a peer's connection knows no user"
                .to_owned(),
            ringway: number(ours, " B"),
            floor: NONE.to_owned(),
            peer: peer.map_or(NOT_MEASURED.to_owned(), |(name, bytes)| format!("{name} {} B", short(bytes))),
            must: "at most 256 B".to_owned(),
            met: Met::all(&[ours.map(|bytes| bytes <= 256.0)]),
        }
    }

    fn kernel_memory(&self) -> Target {
        let added = self.find("idle").and_then(|figure| figure.result["kernel_added_bytes"].as_object());
        let mut caches: Vec<_> =
            added.into_iter().flatten().filter_map(|(name, bytes)| Some((name.as_str(), bytes.as_f64()?))).collect();
        caches.sort_by(|one, other| other.1.total_cmp(&one.1));
        let sum = added.map(|_| caches.iter().map(|(_, bytes)| bytes).sum::<f64>());
        let named = caches.iter().map(|(name, bytes)| format!("{name} {}", short(*bytes))).collect::<Vec<_>>();
        let of = if named.is_empty() { String::new() } else { format!(" ({})", named.join(", ")) };
        let plain = self.number("idle", "/kernel_plain_bytes");
        let peers = self.find("peers-idle").map_or(&[][..], Figure::sides);
        let epoll = peers.iter().filter_map(|side| side["kernel_epoll_bytes"].as_f64()).find(|bytes| *bytes > 0.0);
        Target {
            name: "T2",
            what: "kernel bytes that waiting for an idle socket adds to it, by slab cache".to_owned(),
            ringway: sum.map_or(NOT_MEASURED.to_owned(), |sum| format!("{} B{of}", short(sum))),
            floor: plain.map_or(NOT_MEASURED.to_owned(), |bytes| format!("a pair of plain sockets {} B", short(bytes))),
            peer: epoll.map_or(NOT_MEASURED.to_owned(), |bytes| format!("epoll {} B", short(bytes))),
            must: "at most 300 B".to_owned(),
            met: Met::all(&[sum.map(|bytes| bytes <= 300.0)]),
        }
    }

    fn echo(&self, connections: u32) -> Target {
        let run = self.find(&format!("peers-echo-{connections}"));
        let floor = run.and_then(|run| run.floor("raw ring"));
        let best = run.and_then(Figure::best_peer);
        let named = run.and_then(|run| run.floor("uWebSockets"));
        let holds = |beside: Option<&Beside<'_>>, most| run.and_then(|run| run.holds(beside, most));
        let mut row = Target {
            name: "T4",
            what: format!("processor time per echo of 128 bytes, {} hot connections", thousands(connections)),
            ringway: run.map_or(NOT_MEASURED.to_owned(), Figure::ours_us),
            floor: text(floor.as_ref()),
            peer: text(best.as_ref()),
            must: "at most 1.1x the raw ring, 1x uWebSockets".to_owned(),
            met: Met::all(&[holds(floor.as_ref(), 1.1), holds(named.as_ref(), 1.0)]),
        };
        if let (None, Some(alone)) = (run, self.find(&format!("echo-{connections}"))) {
            row.beside_the_floor_alone(alone);
        }
        row
    }

    fn routed(&self, connections: u32) -> Target {
        let run = self.find(&format!("routed-{connections}"));
        let relay = run.and_then(|run| run.floor("raw relay"));
        Target {
            name: "T5",
            what: format!(
                "processor time of the shard per routed message of five frames, {} hot connections",
                thousands(connections)
            ),
            ringway: run.map_or(NOT_MEASURED.to_owned(), Figure::ours_us),
            floor: text(relay.as_ref()),
            peer: NONE.to_owned(),
            must: "at most 1.5x the raw relay".to_owned(),
            met: Met::all(&[run.and_then(|run| run.holds(relay.as_ref(), 1.5))]),
        }
    }

    fn durable(&self) -> Target {
        let us = self.number("durable", "/saturated/server_cpu_us_per_message");
        let rate = self.number("durable", "/saturated/stored_per_second");
        let p99 = self.number("durable", "/at_half/delivery_ms/p99");
        let beside = self.find("peers-durable-saturated").and_then(|run| Some((run.best_peer()?, run)));
        let peer = beside.map_or(NOT_MEASURED.to_owned(), |(peer, run)| {
            let users = run.result["connections"].as_u64().map_or(String::new(), |users| thousands(users as u32));
            format!("{}, Ringway's {}, both with {users} connections", peer.text(), run.ours_us())
        });
        let disk = self.number("durable", "/disk_commits_per_second");
        let ringway = match (us, rate, p99) {
            (Some(us), Some(rate), Some(p99)) => {
                format!("{} µs at {}/s; p99 {} ms at half", short(us), short(rate), short(p99))
            }
            _ => NOT_MEASURED.to_owned(),
        };
        Target {
            name: "T6",
            what: "durable messages between two, saturated, one in flight each, 10,000 connections: server's processor time, all threads"
                .to_owned(),
            ringway,
            floor: disk.map_or(NOT_MEASURED.to_owned(), |rate| format!("the disk: {} commits/s", short(rate))),
            peer,
            must: "at most 25 µs, at least 30,000/s, p99 at half at most 20 ms".to_owned(),
            met: Met::all(&[
                us.map(|us| us <= 25.0),
                rate.map(|rate| rate >= 30_000.0),
                p99.map(|p99| p99 <= 20.0),
            ]),
        }
    }

    /// At one of the loads of `latency`, which is called so and shown so.
    fn latency(&self, load: &str, shown: &str) -> Target {
        let run = self.find("latency");
        let part = |name: &str| run.map(|run| &run.result[name]).filter(|part| part["delivery_ms"].is_object());
        let (ours, relay) = (part(load), part(&format!("relay_{load}")));
        let quantiles = |of: Option<&Value>| ["p50", "p99", "p99_9"].map(|name| of?["delivery_ms"][name].as_f64());
        let (measured, floor) = (quantiles(ours), quantiles(relay));
        let all = |of: [Option<f64>; 3]| of.iter().map(|ms| ms.map(short)).collect::<Option<Vec<_>>>();
        let ms = |of| all(of).map_or(NOT_MEASURED.to_owned(), |all| format!("{} ms", all.join(", ")));
        let ratios = std::array::from_fn(|at| Some(measured[at]? / floor[at]?));
        let ratios = all(ratios).map_or(String::new(), |all| format!(": {}x", all.join("x, ")));
        let is = |of: Option<&Value>, key: &str| of.map(|of| of[key] == true);
        let within = |at: usize| measured[at].map(|ms: f64| ms <= [4.0, 10.0, 25.0][at]);
        let met = match (is(ours, "disturbed"), is(ours, "generator_bound"), is(ours, "reached")) {
            (Some(false), Some(false), Some(true)) => Met::all(&[within(0), within(1), within(2)]),
            (Some(false), Some(false), Some(false)) => Met::No,
            _ => Met::NotMeasured,
        };
        let rate = ours.and_then(|ours| ours["offered_per_second"].as_f64());
        let rate = rate.filter(|_| !load.ends_with("000")).map_or(String::new(), |rate| format!(", {}/s", short(rate)));
        Target {
            name: "T9",
            what: format!("delivery of durable messages {shown}{rate}, open loop, 10,000 connections: p50, p99, p99.9"),
            ringway: format!("{}{}", ms(measured), ours.map_or(String::new(), short_of)),
            floor: match relay {
                None => NOT_MEASURED.to_owned(),
                Some(relay) => format!("raw relay {}{}{ratios}", ms(floor), short_of(relay)),
            },
            peer: NONE.to_owned(),
            must: "at most 4, 10, 25 ms; of signals, which are not stored, at most 2x the relay's: there are none yet"
                .to_owned(),
            met,
        }
    }

    fn opened(&self) -> Target {
        let run = self.find("opened");
        let floor = run.and_then(|run| run.floor("raw ring"));
        let beside = self.find("peers-open").and_then(|run| Some((run.best_peer()?, run)));
        let peer = beside.map_or(NOT_MEASURED.to_owned(), |(peer, run)| {
            format!("{}, Ringway's {}, both from accept to an echo", peer.text(), run.ours_us())
        });
        Target {
            name: "T10",
            what: "processor time from accept to an open session, HS256".to_owned(),
            ringway: run.map_or(NOT_MEASURED.to_owned(), Figure::ours_us),
            floor: text(floor.as_ref()),
            peer,
            must: "at most 1.5x the raw ring".to_owned(),
            met: Met::all(&[run.and_then(|run| run.holds(floor.as_ref(), 1.5))]),
        }
    }

    fn calls(&self) -> Target {
        let calls = self.number("syscalls", "/shard_calls_per_message");
        let allocations = self.number("syscalls", "/shard_allocations_per_message");
        let relay = self.number("routed-1000", "/calls/raw relay");
        let ringway = match calls {
            None => NOT_MEASURED.to_owned(),
            Some(calls) => format!("{}; {}", number(allocations, ""), short(calls)),
        };
        Target {
            name: "T12",
            what: "heap allocations and system calls of the shard per routed message, saturated".to_owned(),
            ringway,
            floor: relay.map_or(NOT_MEASURED.to_owned(), |calls| format!("raw relay {} calls", short(calls))),
            peer: NONE.to_owned(),
            must: "0; at most 0.1".to_owned(),
            // Counted over some hundred thousand messages: a table that doubles is less than one in ten thousand.
            met: Met::all(&[allocations.map(|each| each < 0.000_05), calls.map(|calls| calls <= 0.1)]),
        }
    }

    fn beats(&self, sessions: u32) -> Target {
        let run = self.find(&format!("beats-{sessions}"));
        let floor = run.and_then(|run| run.floor("raw ring"));
        Target {
            name: "T13",
            what: format!("processor time per answered beat, {} sessions in an order of chance", thousands(sessions)),
            ringway: run.map_or(NOT_MEASURED.to_owned(), Figure::ours_us),
            floor: text(floor.as_ref()),
            peer: NONE.to_owned(),
            must: "at most 1.25x the raw ring".to_owned(),
            met: Met::all(&[run.and_then(|run| run.holds(floor.as_ref(), 1.25))]),
        }
    }

    /// What the measuring itself costs: not held against a bound.
    fn generator(&self) -> Target {
        let of = |path: &str| self.number("generator", path);
        let ringway = match (of("/steady/generator_us"), of("/saturated/generator_us"), of("/user_bytes_per_session")) {
            (Some(steady), Some(saturated), Some(bytes)) => format!(
                "{} µs steady, {} µs saturated; {} B of user space, {} B of the kernel",
                short(steady),
                short(saturated),
                short(bytes),
                number(of("/kernel_bytes_per_session"), "")
            ),
            _ => NOT_MEASURED.to_owned(),
        };
        let floor = match (of("/steady/client_us"), of("/saturated/client_us")) {
            (Some(steady), Some(saturated)) => {
                format!("raw client {} µs steady, {} µs saturated", short(steady), short(saturated))
            }
            _ => NOT_MEASURED.to_owned(),
        };
        let met = if ringway == NOT_MEASURED { Met::NotMeasured } else { Met::Measured };
        Target {
            name: "generator",
            what: "ringway-loadgen's own processor time per echo, and memory per idle session".to_owned(),
            ringway,
            floor,
            peer: NONE.to_owned(),
            must: NONE.to_owned(),
            met,
        }
    }

    fn million(&self) -> Target {
        let of = |path: &str| self.number("million", path);
        let count = |path: &str| of(path).map_or(NOT_MEASURED.to_owned(), |count| thousands(count as u32));
        let held = of("/held");
        let clean = held.map(|held| {
            held >= 1_000_000.0 && ["/cut", "/lost"].iter().all(|path| of(path).is_some_and(|count| count < 0.5))
        });
        let ringway = if held.is_some() {
            format!("{} held by one process, {} cut, {} lost", count("/held"), count("/cut"), count("/lost"))
        } else {
            NOT_MEASURED.to_owned()
        };
        Target {
            name: "million",
            what: "raw sockets held by one process of ringway-loadgen against the probe".to_owned(),
            ringway,
            floor: NONE.to_owned(),
            peer: NONE.to_owned(),
            must: "1,000,000, none cut or lost".to_owned(),
            met: Met::all(&[clean]),
        }
    }
}

impl Target {
    /// Of a run that had no peers, with messages of 64 bytes.
    fn beside_the_floor_alone(&mut self, run: &Figure) {
        let floor = run.floor("raw ring");
        self.ringway = format!("{}, 64 bytes", run.ours_us());
        self.floor = text(floor.as_ref());
        self.met = Met::all(&[run.holds(floor.as_ref(), 1.1), None]);
    }
}

/// Why a rate was not offered, or not kept up with; nothing if it was.
fn short_of(load: &Value) -> String {
    let rate = load["stored_per_second"].as_f64().map_or(String::new(), short);
    let mut out = match (load["generator_bound"] == true, load["reached"] == true) {
        (true, _) => format!("; generator-bound at {rate}/s"),
        (false, false) => format!("; saturated below it, at {rate}/s"),
        (false, true) => String::new(),
    };
    if load["disturbed"] == true {
        out.push_str("; disturbed by others");
    }
    out
}

fn thousands(count: u32) -> String {
    let (digits, mut out) = (count.to_string(), String::new());
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}
