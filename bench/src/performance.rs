//! One page of all figures, as Markdown and as HTML, out of the files in `bench/results` and nothing else.

mod targets;

use std::path::{Path, PathBuf};

use loadgen::report::page::{Cell, Page, Range, Table};
use serde_json::Value;

use self::targets::{COLUMNS, Met};

use crate::server::Trouble;

/// Which results, and where the pages go.
#[derive(Debug, clap::Args)]
pub struct Orders {
    /// Directory of the results.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/results"))]
    results: PathBuf,
    /// Directory for `performance.md` and `performance.html`.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs"))]
    output: PathBuf,
}

/// One result file.
struct Figure {
    name: String,
    result: Value,
}

/// Writes both pages.
pub fn run(orders: &Orders) -> Result<(), Trouble> {
    let figures = read(&orders.results)?;
    if figures.is_empty() {
        return Err(format!("{} holds no results", orders.results.display()).into());
    }
    for (name, text) in [("performance.md", markdown(&figures)), ("performance.html", page(&figures).render())] {
        let path = orders.output.join(name);
        std::fs::write(&path, text)?;
        println!("{}", path.display());
    }
    Ok(())
}

/// By name, so that the same files give the same pages.
fn read(directory: &Path) -> Result<Vec<Figure>, Trouble> {
    let mut figures = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            let named = |error: serde_json::Error| format!("{}: {error}", path.display());
            let result = serde_json::from_str(&std::fs::read_to_string(&path)?).map_err(named)?;
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            figures.push(Figure { name, result });
        }
    }
    figures.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(figures)
}

/// A median and its bounds.
#[derive(Clone, Copy)]
struct Bounded {
    median: f64,
    low: f64,
    high: f64,
}

impl Figure {
    fn text(&self, key: &str) -> &str {
        self.result[key].as_str().unwrap_or_default()
    }

    fn is_void(&self) -> bool {
        self.result["void"].as_bool().unwrap_or(false)
    }

    fn sides(&self) -> &[Value] {
        self.result["sides"].as_array().map_or(&[], Vec::as_slice)
    }

    /// What it took to measure it, in a line each.
    fn facts(&self) -> Vec<(String, String)> {
        let result = &self.result;
        let gib = result["memory_kib"].as_f64().unwrap_or(0.0) / 1_048_576.0;
        let clean = if result["worktree_clean"].as_bool() == Some(true) { "" } else { ", with changes" };
        let dropped = result["dropped"].as_array().map_or(0, Vec::len);
        let mut facts = vec![
            ("command", self.text("command").to_owned()),
            ("commit", format!("{}{clean}", self.text("commit"))),
            ("measured", self.text("date").to_owned()),
            (
                "machine",
                format!(
                    "{}, {} cores, {gib:.0} GiB, Linux {}",
                    self.text("processor"),
                    result["cores"],
                    self.text("kernel")
                ),
            ),
        ];
        if dropped > 0 {
            facts.push(("rounds dropped", dropped.to_string()));
        }
        let settings = result["settings"].as_object().into_iter().flatten();
        let settings: Vec<_> = settings.map(|(name, value)| format!("{name} = {}", plain(value))).collect();
        if !settings.is_empty() {
            facts.push(("settings", settings.join("; ")));
        }
        facts.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    fn tables(&self) -> Vec<Table> {
        let mut tables = Vec::new();
        if self.sides().is_empty() {
            tables.push(self.loads().unwrap_or_else(|| self.scalars()));
        } else {
            tables.push(self.contest());
        }
        tables.extend(self.rounds());
        tables.extend(self.absent());
        for table in &mut tables {
            table.title.clone_from(&self.name);
        }
        tables
    }

    /// Sides that were measured in turn, and their ratios.
    fn contest(&self) -> Table {
        let mut bases: Vec<&String> = Vec::new();
        for base in self.sides().iter().filter_map(|side| side["over"].as_object()).flat_map(|over| over.keys()) {
            if !bases.contains(&base) {
                bases.push(base);
            }
        }
        let is_idle = self.sides().iter().any(|side| side.get("user_bytes").is_some());
        let mut columns = vec![String::new()];
        let shown: &[(&str, &str)] = if is_idle {
            &[("user_bytes", "user bytes a session"), ("kernel_epoll_bytes", "kernel bytes for epoll")]
        } else {
            &[("us", "µs of CPU each"), ("per_second", "a second")]
        };
        columns.extend(shown.iter().map(|(_, name)| (*name).to_owned()));
        columns.extend(bases.iter().map(|base| format!("over {base} (95 % bounds)")));
        let row = |side: &Value| {
            let mut row = vec![Cell::text(side["name"].as_str().unwrap_or_default())];
            if let Some(why) = side["absent"].as_str() {
                row.push(Cell::text(&format!("absent: {why}")));
                row.resize_with(columns.len(), || Cell::text(""));
                return row;
            }
            row.extend(shown.iter().map(|(key, _)| Cell::text(&side[*key].as_f64().map_or("–".to_owned(), short))));
            row.extend(bases.iter().map(|base| match ratio(&side["over"][base.as_str()]) {
                Some(of) => Cell { text: bounded(of), range: Some(Range::of_ratio(of.low, of.median, of.high)) },
                None => Cell::text("–"),
            }));
            row
        };
        let rows = self.sides().iter().map(row).collect();
        Table { columns, rows, numbers: true, ..Table::default() }
    }

    /// Messages at several rates.
    fn loads(&self) -> Option<Table> {
        let loads = self.result.as_object()?.iter().filter(|(_, load)| load.get("stored_per_second").is_some());
        let rows: Vec<_> = loads
            .map(|(name, load)| {
                let bound = if load["generator_bound"] == true { "at least " } else { "" };
                let number = |value: &Value| value.as_f64().map_or("–".to_owned(), short);
                let delivery = &load["delivery_ms"];
                [
                    name.replace('_', " "),
                    number(&load["offered_per_second"]),
                    format!("{bound}{}", number(&load["stored_per_second"])),
                    number(&delivery["p50"]),
                    number(&delivery["p99"]),
                    number(&delivery["p99_9"]),
                    number(&load["server_cpu_us_per_message"]),
                    number(&load["generator_cpu_percent"]),
                ]
                .map(|text| Cell::text(&text))
                .into()
            })
            .collect();
        let columns =
            ["", "offered/s", "stored/s", "p50 ms", "p99 ms", "p99.9 ms", "server µs each", "generator CPU %"];
        let columns = columns.map(str::to_owned).into();
        (!rows.is_empty()).then(|| Table { columns, rows, numbers: true, ..Table::default() })
    }

    /// All plain numbers of a result without a shape of its own.
    fn scalars(&self) -> Table {
        const ABOUT: [&str; 3] = ["cores", "memory_kib", "must"];
        let rows = numbers(&self.result, "").into_iter().filter(|(name, _)| !ABOUT.contains(&name.as_str()));
        let rows = rows.map(|(name, value)| vec![Cell::text(&name.replace('_', " ")), Cell::text(&short(value))]);
        let columns = vec![String::new(), "measured".to_owned()];
        Table { columns, rows: rows.collect(), numbers: true, ..Table::default() }
    }

    /// What each round said, where there are few of them and no sides; what is listed by name, with a row each.
    fn rounds(&self) -> Option<Table> {
        const SHOWN_MAX: usize = 8;
        let rounds = self.result["rounds"].as_array().filter(|rounds| rounds.len() <= SHOWN_MAX)?;
        let mut rows: Vec<Vec<Cell>> = Vec::new();
        for (at, round) in rounds.iter().enumerate() {
            for (name, value) in numbers(round, "") {
                let name = name.replace('_', " ");
                let place = rows.iter().position(|row| row[0].text == name).unwrap_or_else(|| {
                    rows.push(vec![Cell::text(&name)]);
                    rows.len() - 1
                });
                rows[place].resize_with(at + 1, || Cell::text("–"));
                rows[place].push(Cell::text(&short(value)));
            }
        }
        for row in &mut rows {
            row.resize_with(rounds.len() + 1, || Cell::text("–"));
        }
        let mut columns = vec![String::new()];
        columns.extend((1..=rounds.len()).map(|round| format!("round {round}")));
        (!rows.is_empty()).then(|| Table { columns, rows, numbers: true, ..Table::default() })
    }

    /// What peers lack, and those that could not be had: absent is not beaten.
    fn absent(&self) -> Option<Table> {
        let row = |peer: &Value| {
            let version = peer["version"].as_str().map_or(String::new(), |version| format!("{version}; "));
            let said = match (peer["absent"].as_str(), &peer["lacks"]) {
                (Some(why), _) => format!("absent: {why}"),
                (None, lacks) => format!("{version}lacks: {}", plain(lacks)),
            };
            vec![Cell::text(peer["name"].as_str().unwrap_or_default()), Cell::text(&said)]
        };
        let peers = ["peers", "did_not_start"].iter().filter_map(|key| self.result[*key].as_array()).flatten();
        let rows: Vec<_> = peers.map(row).collect();
        let columns = vec!["peer".to_owned(), String::new()];
        (!rows.is_empty()).then(|| Table { columns, rows, ..Table::default() })
    }
}

/// All plain numbers in it, those of what has a name of its own too.
fn numbers(of: &Value, within: &str) -> Vec<(String, f64)> {
    let named = |name: &str| if within.is_empty() { name.replace('_', " ") } else { format!("{within}: {name}") };
    let each = of.as_object().into_iter().flatten().flat_map(|(name, value)| match value.as_f64() {
        Some(number) => vec![(if within.is_empty() { name.clone() } else { named(name) }, number)],
        None if name == "settings" => Vec::new(),
        None => numbers(value, &named(name)),
    });
    each.collect()
}

fn ratio(value: &Value) -> Option<Bounded> {
    let number = |key: &str| value[key].as_f64();
    Some(Bounded { median: number("median")?, low: number("low")?, high: number("high")? })
}

fn bounded(of: Bounded) -> String {
    let [median, low, high] = [of.median, of.low, of.high].map(short);
    if low == high { median } else { format!("{median} ({low} to {high})") }
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Four digits at most behind the point, and none behind large numbers.
fn short(value: f64) -> String {
    let decimals = match value.abs() {
        v if v >= 1_000.0 => 0,
        v if v >= 10.0 => 1,
        _ => 3,
    };
    let text = format!("{value:.decimals$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

const INTRODUCTION: &str = "Every figure is a ratio to something measured in the same run, or says the load that it was \
    measured under. A ratio meets its bound when its upper 95 % bound does. Figures of one machine: context, no records.";

const TARGETS: &str = "What is to be reached, and how far it is";

fn page(figures: &[Figure]) -> Page {
    let targets = targets::all(figures);
    let void = figures.iter().filter(|figure| figure.is_void()).map(|figure| &figure.name);
    let rows = targets.iter().map(|target| target.cells().map(Cell::text).into());
    let columns = COLUMNS.map(str::to_owned).into();
    let first = Table { title: TARGETS.to_owned(), columns, rows: rows.collect(), ..Table::default() };
    let mut tables = vec![first];
    for figure in figures {
        let mut own = figure.tables();
        figure.text("method").clone_into(&mut own[0].note);
        let facts = figure.facts().into_iter().map(|(name, value)| vec![Cell::text(&name), Cell::text(&value)]);
        let columns = vec![String::new(), String::new()];
        own.push(Table { title: String::new(), columns, rows: facts.collect(), ..Table::default() });
        for more in &mut own[1..] {
            more.title = String::new();
        }
        tables.append(&mut own);
    }
    Page {
        title: "Performance of Ringway".to_owned(),
        subtitle: INTRODUCTION.to_owned(),
        passed: targets.iter().all(|target| matches!(target.met, Met::Yes | Met::Measured)),
        notices: void.map(|name| format!("{name} is void: too many rounds were disturbed by others.")).collect(),
        leading: tables,
        ..Page::default()
    }
}

fn markdown(figures: &[Figure]) -> String {
    use std::fmt::Write as _;
    let mut out = format!(
        "# Performance\n\nMade by `cargo run --release -p bench -- performance` from the files in `bench/results`; do not \
         edit. As a page: [performance.html](performance.html).\n\n{INTRODUCTION}\n\n## {TARGETS}\n\n| {} |\n| {} |\n",
        COLUMNS.join(" | "),
        COLUMNS.map(|_| "---").join(" | "),
    );
    for target in targets::all(figures) {
        let cells = target.cells().map(cell);
        let met = if target.met == Met::No { "**not met**" } else { target.met.text() };
        let _ = writeln!(out, "| {} | {met} |", cells[..cells.len() - 1].join(" | "));
    }
    for figure in figures {
        let _ = write!(out, "\n## {}\n\n{}\n", figure.name, figure.text("method"));
        for table in figure.tables() {
            let names: Vec<_> = table.columns.iter().map(|name| cell(name)).collect();
            let rule = vec!["---"; names.len()].join(" | ");
            let _ = write!(out, "\n| {} |\n| {rule} |\n", names.join(" | "));
            for row in &table.rows {
                let row: Vec<_> = row.iter().map(|part| cell(&part.text)).collect();
                let _ = writeln!(out, "| {} |", row.join(" | "));
            }
        }
        out.push('\n');
        for (name, value) in figure.facts() {
            let _ = writeln!(out, "- {name}: {value}");
        }
    }
    out
}

/// Text that cannot end its cell.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn figure(name: &str, result: Value) -> Figure {
        Figure { name: name.to_owned(), result }
    }

    fn contest(high: f64, void: bool) -> Figure {
        let over = json!({ "raw relay": { "median": 1.1, "low": 1.0, "high": high } });
        let raw = json!({ "name": "raw relay", "absent": null, "us": 4.0, "over": {} });
        let ringway = json!({ "name": "ringway shard", "absent": null, "us": 4.5, "per_second": 1000.0, "over": over });
        let gone = json!({ "name": "ws", "absent": "npm | cannot be run", "over": {} });
        let peers = json!([{ "name": "ws", "version": "8", "lacks": "users" }]);
        figure(
            "routed-1000",
            json!({ "must": 1.5, "void": void, "sides": [raw, ringway, gone], "peers": peers, "cores": 2 }),
        )
    }

    fn row(figures: &[Figure], name: &str) -> targets::Target {
        targets::all(figures).into_iter().find(|target| target.name == name).unwrap()
    }

    #[test]
    fn a_ratio_meets_its_bound_with_its_upper_bound_in_a_run_that_counts() {
        let met = |high, void| row(&[contest(high, void)], "T5").met;
        assert_eq!(met(1.4, false), Met::Yes);
        assert_eq!(met(1.6, false), Met::No);
        assert_eq!(met(1.4, true), Met::NotMeasured);
        assert_eq!(row(&[], "T5").met, Met::NotMeasured);
    }

    #[test]
    fn an_echo_must_be_as_cheap_as_the_peer_too_and_no_absent_one_is_beaten() {
        let side = |name: &str, us: f64, to_peer: f64| {
            let of = |median: f64| json!({ "median": median, "low": median, "high": median });
            json!({ "name": name, "absent": null, "us": us, "over": { "raw ring": of(1.05), "ringway": of(to_peer) } })
        };
        let run = |theirs: Value| {
            let ours = json!({ "name": "ringway", "absent": null, "us": 4.0,
                "over": { "raw ring": { "median": 1.05, "low": 1.0, "high": 1.08 } } });
            let sides = json!([side("raw ring", 3.8, 0.95), ours, side("ws", 9.0, 2.2), theirs]);
            row(&[figure("peers-echo-1000", json!({ "sides": sides }))], "T4")
        };
        let beaten = run(side("uWebSockets", 5.0, 1.25));
        assert_eq!((beaten.met, beaten.peer.as_str()), (Met::Yes, "uWebSockets 5 µs: 0.8x"));
        assert_eq!(run(side("uWebSockets", 3.0, 0.75)).met, Met::No);
        let absent = run(json!({ "name": "uWebSockets", "absent": "no wheel", "over": {} }));
        assert_eq!((absent.met, absent.peer.starts_with("ws 9 µs")), (Met::NotMeasured, true));
    }

    #[test]
    fn one_condition_that_fails_is_enough_and_a_missing_one_is_no_success() {
        let latency = |p99: f64, generator_bound: bool, reached: bool| {
            let load = |p99: f64| {
                json!({ "delivery_ms": { "p50": 1.0, "p99": p99, "p99_9": 20.0 }, "generator_bound": generator_bound,
                    "reached": reached, "disturbed": false, "stored_per_second": 9_000.0 })
            };
            row(&[figure("latency", json!({ "at_10000": load(p99), "relay_at_10000": load(2.0) }))], "T9")
        };
        let met = latency(9.0, false, true);
        assert_eq!(
            (met.met, &*met.ringway, &*met.floor),
            (Met::Yes, "1, 9, 20 ms", "raw relay 1, 2, 20 ms: 1x, 4.5x, 1x")
        );
        assert_eq!(latency(11.0, false, true).met, Met::No);
        let bound = latency(9.0, true, true);
        assert_eq!((bound.met, &*bound.ringway), (Met::NotMeasured, "1, 9, 20 ms; generator-bound at 9000/s"));
        let saturated = latency(9.0, false, false);
        assert_eq!((saturated.met, &*saturated.ringway), (Met::No, "1, 9, 20 ms; saturated below it, at 9000/s"));
        let syscalls = |calls: f64| {
            figure("syscalls", json!({ "shard_allocations_per_message": null, "shard_calls_per_message": calls }))
        };
        assert_eq!(row(&[syscalls(0.05)], "T12").met, Met::NotMeasured);
        let relay = figure("routed-1000", json!({ "calls": { "raw relay": 0.5 } }));
        assert_eq!(row(&[syscalls(0.05), relay], "T12").floor, "raw relay 0.5 calls");
        assert_eq!(row(&[syscalls(0.2)], "T12").met, Met::No);
    }

    #[test]
    fn both_pages_say_the_same_and_nobody_absent_is_beaten() {
        let figures = [contest(1.6, false)];
        let (text, html) = (markdown(&figures), page(&figures).render());
        for part in [
            "raw relay 4 µs: 1.1x (1 to 1.6)",
            "1.1 (1 to 1.6)",
            "absent: npm",
            "8; lacks: users",
            "not measured",
            "over raw relay",
        ] {
            assert!(text.contains(part) && html.contains(part), "{part} in {text}");
        }
        assert!(text.contains("npm \\| cannot") && text.contains("**not met**"));
    }

    #[test]
    fn the_best_peer_that_keeps_messages_stands_beside_the_durable_ones() {
        let over = json!({ "ringway": { "median": 8.0, "low": 7.0, "high": 10.0 } });
        let sides = json!([
            { "name": "ringway", "absent": null, "us": 18.0, "over": {} },
            { "name": "NATS JetStream", "absent": null, "us": 144.0, "over": over },
            { "name": "ejabberd", "absent": "it fell over", "us": null, "over": {} },
        ]);
        let run = figure("peers-durable-saturated", json!({ "sides": sides, "connections": 1000 }));
        let peer = row(&[run], "T6").peer;
        assert!(peer.starts_with("NATS JetStream 144 µs: 0.125x"), "{peer}");
        assert!(peer.ends_with("Ringway's 18 µs, both with 1,000 connections"), "{peer}");
        assert_eq!(row(&[], "T6").peer, "not measured");
    }

    #[test]
    fn numbers_keep_the_names_around_them() {
        let of = json!({ "a": 1.0, "kernel_bytes": { "TCP": 2.0, "x_y": { "z": 3.0 } }, "list": [4.0], "settings": { "n": 5.0 } });
        let found = numbers(&of, "");
        let names: Vec<_> = found.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["a", "kernel bytes: TCP", "kernel bytes: x_y: z"]);
    }
}
