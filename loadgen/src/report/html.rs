//! A page about one run, or about several.

use crate::report::charts;
use crate::report::compare::{self, groups};
use crate::report::format::{bytes, count, digits, duration, moment, ms, with_unit};
use crate::report::page::{Cell, Check, Page, Table, Tile};
use crate::result::{Host, RunResult};

/// A schedule error above this says that latencies are partly the generator's own.
const SCHEDULE_ERROR_MS_MAX: f64 = 5.0;

/// The page about these runs; there must be one at least.
pub fn page(runs: &[RunResult]) -> String {
    match runs {
        [run] => of_one(run),
        runs => of_several(runs),
    }
    .render()
}

fn of_one(run: &RunResult) -> Page {
    Page {
        title: format!("Capacity test: {}", run.label),
        subtitle: subtitle(run),
        passed: run.passed(),
        several: false,
        notices: notices(run).into_iter().map(|notice| notice.text).collect(),
        checks: checks(run),
        tiles: tiles(run),
        leading: [steps(run), latencies(run)].into_iter().flatten().collect(),
        charts: charts::of_run(run),
        tables: [memory(run), agents(run), errors(run)].into_iter().flatten().collect(),
        facts: vec![about_the_run(run), about_the_machine(run)],
        folded: [slabs(run), settings(std::slice::from_ref(run)), Some(counters(run)), growth(run)]
            .into_iter()
            .flatten()
            .collect(),
        texts: texts(run),
    }
}

fn of_several(runs: &[RunResult]) -> Page {
    let groups = groups(runs);
    let labels: Vec<_> = groups.iter().map(|group| group.label.as_str()).collect();
    let mut notices: Vec<String> = groups.iter().flat_map(|group| notices_of_all(&group.label, &group.runs)).collect();
    if different(runs, |run| machine(run)) {
        notices.push(
            "These runs are from different machines or kernels: only ratios within one mean anything.".to_owned(),
        );
    }
    Page {
        title: labels.join(" against "),
        subtitle: format!("{} runs compared", runs.len()),
        passed: runs.iter().all(RunResult::passed),
        several: true,
        notices,
        checks: groups.iter().flat_map(|group| checks_of_all(&group.label, &group.runs)).collect(),
        tiles: Vec::new(),
        leading: compare::tables(&groups),
        charts: compare::charts(&groups),
        tables: Vec::new(),
        facts: machines(runs),
        folded: [Some(list(runs)), settings(runs)].into_iter().flatten().collect(),
        texts: vec![("Run them again".to_owned(), commands(runs))],
    }
}

fn subtitle(run: &RunResult) -> String {
    let mut parts = vec![moment(run.began_unix_ms)];
    parts.extend(run.server.as_ref().map(|server| server.url.clone()));
    parts.push(format!("{} sessions", count(u64::from(run.open))));
    parts.push(duration(run.seconds));
    if let Some(generator) = run.generators.first() {
        let host = &generator.host;
        parts.push(format!("{} cores, Linux {}", host.cores, host.kernel));
    }
    parts.join(" · ")
}

/// What a reader must know before believing a run; the same kind in several runs is said once.
struct Notice {
    kind: &'static str,
    text: String,
}

fn notices(run: &RunResult) -> Vec<Notice> {
    let mut notices = Vec::new();
    let mut say = |kind, text| notices.push(Notice { kind, text });
    if let Some(why) = &run.aborted {
        say("aborted", format!("It ended before its time: {why}."));
    }
    if run.generator_bound {
        let text = "Generator-bound: the generator itself was busy, so read every rate as “at least” and every latency \
                    as “at most”.";
        say("bound", text.to_owned());
    }
    let late = run.latency.schedule_error.p99;
    if late > SCHEDULE_ERROR_MS_MAX {
        say("late", format!("The generator was late by {} (p99), and the latencies hold that too.", ms(late)));
    }
    let counts = &run.counts;
    if counts.unsent > 0 {
        let [unsent, offered] = [counts.unsent, counts.offered].map(count);
        let text = format!(
            "{unsent} of {offered} messages that fell due could not be sent in time; they have no latency, and the \
             real ones are worse than those shown."
        );
        say("unsent", text);
    }
    if counts.unanswered > 0 {
        let unanswered = count(counts.unanswered);
        let text = format!(
            "{unanswered} messages were never answered: whether they were kept is unknown, and they have no latency."
        );
        say("unanswered", text);
    }
    if counts.failed > 0 {
        say("failed", format!("{} messages were refused for good.", count(counts.failed)));
    }
    if counts.unwritten > 0 {
        say(
            "unwritten",
            "Not all could be written down: `verify` would not see what is missing in the file.".to_owned(),
        );
    }
    if run.steps.iter().any(|step| step.kind == "measure" && !step.passed) {
        let text =
            "A lower rate than the highest did not hold when it was measured: the highest is not to be relied on.";
        say("steps", text.to_owned());
    }
    if run.open < run.users {
        let [open, users] = [run.open, run.users].map(|sessions| count(u64::from(sessions)));
        say("open", format!("Only {open} of {users} sessions were open when messages began."));
    }
    if run.generators.iter().any(|generator| generator.build.profile == "debug") {
        say("debug", "The generator was built without optimisation.".to_owned());
    }
    notices
}

/// Each kind once, in the words of the first run that has it.
fn notices_of_all(label: &str, runs: &[&RunResult]) -> Vec<String> {
    let mut kinds: Vec<(Notice, usize)> = Vec::new();
    for notice in runs.iter().flat_map(|run| notices(run)) {
        match kinds.iter_mut().find(|(first, _)| first.kind == notice.kind) {
            Some((_, times)) => *times += 1,
            None => kinds.push((notice, 1)),
        }
    }
    let said = |(notice, times): (Notice, usize)| format!("{label}, {times} of {} runs: {}", runs.len(), notice.text);
    kinds.into_iter().map(said).collect()
}

/// The scenario's conditions, then what must hold without being asked for.
fn checks(run: &RunResult) -> Vec<Check> {
    let mut checks: Vec<_> = run
        .thresholds
        .iter()
        .map(|threshold| Check {
            run: run.label.clone(),
            condition: threshold.condition.clone(),
            measured: measured(threshold.measured, &threshold.unit),
            passed: threshold.passed,
            note: threshold.note.clone(),
        })
        .collect();
    let counts = &run.counts;
    let broken = [
        ("lost", counts.lost),
        ("doubled", counts.doubled),
        ("reordered", counts.reordered),
        ("shrunk", counts.shrunk),
    ];
    for (name, value) in broken {
        let is_asked_for = run.thresholds.iter().any(|threshold| threshold.condition.split(' ').next() == Some(name));
        if !is_asked_for {
            checks.push(Check {
                run: run.label.clone(),
                condition: format!("{name} == 0"),
                measured: count(value),
                passed: value == 0,
                note: None,
            });
        }
    }
    checks
}

fn measured(value: Option<f64>, unit: &str) -> String {
    value.map_or_else(|| "not measured".to_owned(), |value| with_unit(value, unit))
}

/// Each condition once over all runs of a label, with the least and the most that was measured.
fn checks_of_all(label: &str, runs: &[&RunResult]) -> Vec<Check> {
    let mut checks: Vec<Check> = Vec::new();
    for threshold in runs.iter().flat_map(|run| &run.thresholds) {
        if checks.iter().any(|check| check.condition == threshold.condition) {
            continue;
        }
        let same: Vec<_> = runs
            .iter()
            .flat_map(|run| &run.thresholds)
            .filter(|other| other.condition == threshold.condition)
            .collect();
        let values = || same.iter().filter_map(|threshold| threshold.measured);
        let least = values().min_by(f64::total_cmp);
        let most = values().max_by(f64::total_cmp);
        let [low, high] = [least, most].map(|value| measured(value, &threshold.unit));
        let held = same.iter().filter(|threshold| threshold.passed).count();
        checks.push(Check {
            run: label.to_owned(),
            condition: threshold.condition.clone(),
            measured: if low == high { low } else { format!("{low} to {high}") },
            passed: held == same.len(),
            note: Some(format!("held in {held} of {} runs", same.len())),
        });
    }
    let wrong = |run: &&RunResult| run.counts.broken();
    let most = runs.iter().map(wrong).max().unwrap_or(0);
    checks.push(Check {
        run: label.to_owned(),
        condition: "nothing lost, doubled, reordered or forgotten".to_owned(),
        measured: count(most),
        passed: most == 0,
        note: Some(format!("held in {} of {} runs", runs.iter().filter(|run| wrong(run) == 0).count(), runs.len())),
    });
    checks
}

/// Each command once.
fn commands(runs: &[RunResult]) -> String {
    let mut commands: Vec<&str> = Vec::new();
    for command in runs.iter().map(|run| run.command.as_str()) {
        if !commands.contains(&command) {
            commands.push(command);
        }
    }
    commands.join("\n")
}

fn tiles(run: &RunResult) -> Vec<Tile> {
    let at_least = if run.generator_bound { "at least " } else { "" };
    let (delivery, server, memory) = (&run.latency.delivery, run.server.as_ref(), run.memory.as_ref());
    let mut tiles = vec![("sessions open", Some(count(u64::from(run.open))))];
    if run.counts.offered > 0 {
        tiles.push(("stored", Some(format!("{at_least}{}/s", digits(run.achieved_per_second)))));
        tiles.push(("offered", Some(format!("{}/s", digits(run.offered_per_second)))));
    }
    if delivery.count > 0 {
        tiles.push(("delivered, p50", Some(ms(delivery.p50))));
        tiles.push(("delivered, p99", Some(ms(delivery.p99))));
        tiles.push(("delivered, p99.9", Some(ms(delivery.p99_9))));
    } else {
        tiles.push(("opening, p99", Some(ms(run.latency.opening.p99))));
    }
    tiles.push((
        "server CPU a message",
        server.and_then(|server| server.cpu_us_per_message).map(|us| format!("{} µs", digits(us))),
    ));
    tiles
        .push(("server CPU, of one core", server.and_then(|server| server.cpu_percent).map(|cpu| with_unit(cpu, "%"))));
    tiles.push(("server memory a session", memory.and_then(|memory| memory.server_bytes_per_session).map(bytes)));
    tiles.push(("kernel memory a session", memory.and_then(|memory| memory.kernel_bytes_per_session).map(bytes)));
    tiles.push(("generator CPU, of one core", Some(with_unit(run.generator_cpu_percent, "%"))));
    tiles.into_iter().filter_map(|(name, value)| Some(Tile { name: name.to_owned(), value: value? })).collect()
}

fn row(cells: impl IntoIterator<Item = String>) -> Vec<Cell> {
    cells.into_iter().map(|text| Cell { text, range: None }).collect()
}

fn columns(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn latencies(run: &RunResult) -> Option<Table> {
    let said = |name| match name {
        "ack" => "stored",
        "delivery" => "delivered",
        "untouched" => "delivered to the untouched",
        "slow" => "delivered to slow readers",
        "catch_up" => "caught up",
        "resume" => "open again",
        "schedule_error" => "schedule error",
        name => name,
    };
    let mut rows: Vec<_> = run
        .latency
        .named()
        .into_iter()
        .filter(|(_, of)| of.count > 0)
        .map(|(name, of)| {
            let times = [of.p50, of.p90, of.p99, of.p99_9, of.p99_99, of.max].map(ms);
            row([said(name).to_owned()].into_iter().chain(times).chain([count(of.count)]))
        })
        .collect();
    let mut note = String::new();
    if let Some(abroad) = &run.latency.abroad {
        let error = ms(abroad.error_ms);
        note = format!(
            "Delivered from other agents: right to within {error}; “below” is below the clocks’ error of {error}."
        );
        let times = abroad.quantiles().map(|time| time.map_or_else(|| "below".to_owned(), ms));
        let name = "delivered from other agents".to_owned();
        rows.push(row([name].into_iter().chain(times).chain([count(abroad.count)])));
    }
    (!rows.is_empty()).then(|| Table {
        title: "Latency".to_owned(),
        note,
        columns: columns(&["", "p50", "p90", "p99", "p99.9", "p99.99", "max", "count"]),
        rows,
        numbers: true,
        ..Table::default()
    })
}

fn steps(run: &RunResult) -> Option<Table> {
    let rows: Vec<_> = run
        .steps
        .iter()
        .map(|step| {
            let what = match step.fraction {
                Some(fraction) => format!("{} % of the highest", digits(fraction * 100.0)),
                None => step.kind.clone(),
            };
            let at_least = if step.generator_bound { ", generator-bound" } else { "" };
            let delivery = &step.latency.delivery;
            let verdict = if step.passed { "held".to_owned() } else { step.breached.clone().unwrap_or_default() };
            row([
                what,
                with_unit(step.offered_per_second, "/s"),
                with_unit(step.achieved_per_second, "/s"),
                ms(delivery.p50),
                ms(delivery.p99),
                ms(delivery.p99_9),
                step.server_cpu_percent.map_or_else(|| "–".to_owned(), |cpu| with_unit(cpu, "%")),
                with_unit(step.generator_cpu_percent, "%"),
                format!("{verdict}{at_least}"),
            ])
        })
        .collect();
    (!rows.is_empty()).then(|| Table {
        title: "Every rate that was tried".to_owned(),
        note: "The highest rate that meets the thresholds is found by bisection; then parts of it are measured."
            .to_owned(),
        columns: columns(&[
            "",
            "offered",
            "stored",
            "p50",
            "p99",
            "p99.9",
            "server CPU",
            "generator CPU",
            "thresholds",
        ]),
        rows,
        numbers: true,
        ..Table::default()
    })
}

fn memory(run: &RunResult) -> Option<Table> {
    let memory = run.memory.as_ref()?;
    let whose =
        if memory.both_ends { "both ends: server’s and generator’s sockets" } else { "the generator’s sockets" };
    let mut rows = Vec::new();
    let mut push = |name: &str, each: Option<f64>, what: &str| {
        rows.extend(each.map(|each| row([name.to_owned(), bytes(each).replace(' ', "\u{a0}"), what.to_owned()])));
    };
    push("server, user space", memory.server_bytes_per_session, "growth of proportional set size");
    push("generator, user space", memory.generator_bytes_per_session, "growth of proportional set size");
    push("kernel", memory.kernel_bytes_per_session, whose);
    (!rows.is_empty()).then(|| Table {
        title: "Memory per session".to_owned(),
        note: format!(
            "Memory with {} sessions open and nothing said yet, less memory before the first, by their number. What is \
             held once for all is in it: with few sessions these figures are too large.",
            count(u64::from(memory.sessions))
        ),
        columns: columns(&["", "bytes", "of"]),
        rows,
        ..Table::default()
    })
}

/// The kernel's part by cache.
fn slabs(run: &RunResult) -> Option<Table> {
    let memory = run.memory.as_ref()?;
    let slabs = memory.kernel_slabs.as_ref().filter(|slabs| !slabs.is_empty())?;
    let each = |grown: &i64| bytes(*grown as f64 / f64::from(memory.sessions.max(1)));
    Some(Table {
        title: "Kernel memory per session, by slab cache".to_owned(),
        is_printed: true,
        note: "Caches that connections fill; others are left out, for anything may fill them.".to_owned(),
        columns: columns(&["", "a session"]),
        rows: slabs.iter().map(|(name, grown)| row([name.clone(), each(grown)])).collect(),
        numbers: true,
    })
}

fn agents(run: &RunResult) -> Option<Table> {
    let rows: Vec<_> = run
        .generators
        .iter()
        .map(|agent| {
            let offset = agent
                .clock_offset_ms
                .map_or_else(|| "–".to_owned(), |(offset, error)| format!("{} ± {} ms", digits(offset), digits(error)));
            row([
                agent.name.clone(),
                agent.host.name.clone(),
                with_unit(agent.cpu_percent, "%"),
                with_unit(agent.busiest_thread_percent, "%"),
                agent.memory_bytes_max.map_or_else(|| "–".to_owned(), |most| bytes(most as f64)),
                offset,
            ])
        })
        .collect();
    (rows.len() > 1).then(|| Table {
        title: "Agents".to_owned(),
        note: String::new(),
        columns: columns(&["", "host", "CPU", "busiest thread", "memory", "clock offset"]),
        rows,
        numbers: true,
        ..Table::default()
    })
}

fn errors(run: &RunResult) -> Option<Table> {
    (!run.errors.is_empty()).then(|| Table {
        title: "Errors".to_owned(),
        note: String::new(),
        columns: columns(&["", "count"]),
        rows: run.errors.iter().map(|(code, times)| row([code.clone(), count(*times)])).collect(),
        numbers: true,
        ..Table::default()
    })
}

fn counters(run: &RunResult) -> Table {
    let value = serde_json::to_value(run.counts).expect("counts are plain data");
    let counts = value.as_object().expect("counts are a struct");
    Table {
        title: "All counters".to_owned(),
        is_printed: true,
        note: String::new(),
        columns: columns(&["", "count"]),
        rows: counts
            .iter()
            .map(|(name, value)| row([name.replace('_', " "), count(value.as_u64().unwrap_or(0))]))
            .collect(),
        numbers: true,
    }
}

/// A row for each setting, a column for each machine that has it otherwise.
fn settings(runs: &[RunResult]) -> Option<Table> {
    let mut hosts: Vec<&Host> = Vec::new();
    for host in runs.iter().flat_map(|run| &run.generators).map(|generator| &generator.host) {
        if !hosts.iter().any(|other| other.settings == host.settings) {
            hosts.push(host);
        }
    }
    let names: std::collections::BTreeSet<_> = hosts.iter().flat_map(|host| host.settings.keys()).collect();
    let mut columns = vec![String::new()];
    columns.extend(hosts.iter().map(|host| host.name.clone()));
    (!names.is_empty()).then(|| Table {
        title: "Kernel settings and limits".to_owned(),
        is_printed: true,
        note: "Of the generator’s machine. What a kernel does not have is left out.".to_owned(),
        columns,
        rows: names
            .into_iter()
            .map(|name| {
                let value = |host: &&Host| host.settings.get(name).cloned().unwrap_or_else(|| "–".to_owned());
                row([name.clone()].into_iter().chain(hosts.iter().map(value)))
            })
            .collect(),
        ..Table::default()
    })
}

fn growth(run: &RunResult) -> Option<Table> {
    let grown = &run.server.as_ref()?.metrics_growth;
    (!grown.is_empty()).then(|| Table {
        title: "The server’s own metrics: what changed while messages were due".to_owned(),
        note: String::new(),
        columns: columns(&["", "by"]),
        rows: grown.iter().map(|(name, by)| row([name.clone(), digits(*by)])).collect(),
        numbers: true,
        ..Table::default()
    })
}

fn about_the_run(run: &RunResult) -> Vec<(String, String)> {
    let server = run.server.as_ref();
    let known =
        |text: Option<&str>, otherwise: &str| text.filter(|text| !text.is_empty()).unwrap_or(otherwise).to_owned();
    let build = run.generators.first().map(|generator| {
        let build = &generator.build;
        format!("{}, commit {}, {}, {}, {}", build.version, build.commit, build.profile, build.target, build.rustc)
    });
    let mut facts = vec![
        ("scenario", run.scenario.name.clone()),
        ("server", known(server.map(|server| server.url.as_str()), "unknown")),
        (
            "server’s version",
            known(
                server.map(|server| server.version.as_str()),
                "unknown: --server-metrics was not given, or does not say",
            ),
        ),
        ("generator", known(build.as_deref(), "unknown")),
        ("began", moment(run.began_unix_ms)),
        ("messages due for", duration(run.seconds)),
        ("bytes a message", run.payload_bytes.to_string()),
        ("seed", run.seed.to_string()),
    ];
    if let Some(memory) = server.and_then(|server| server.memory_bytes_max) {
        facts.push(("server’s memory, at most", bytes(memory as f64)));
    }
    facts.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

fn about_the_machine(run: &RunResult) -> Vec<(String, String)> {
    run.generators.first().map(|generator| machine_facts(&generator.host)).unwrap_or_default()
}

fn machine_facts(host: &Host) -> Vec<(String, String)> {
    let cores = if host.cores == host.cores_allowed {
        host.cores.to_string()
    } else {
        format!("{}, of which the generator may use {}", host.cores, host.cores_allowed)
    };
    let facts = [
        ("machine", host.name.clone()),
        ("processor", host.processor.clone()),
        ("cores", cores),
        ("memory", bytes(host.memory_bytes as f64)),
        ("kernel", host.kernel.clone()),
        ("distribution", host.distribution.clone()),
    ];
    facts.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

fn machine(run: &RunResult) -> Option<(&str, &str, u32)> {
    let host = &run.generators.first()?.host;
    Some((&host.processor, &host.kernel, host.cores))
}

fn different<'a, T: PartialEq>(runs: &'a [RunResult], of: impl Fn(&'a RunResult) -> T) -> bool {
    runs.iter().any(|run| of(run) != of(&runs[0]))
}

fn machines(runs: &[RunResult]) -> Vec<Vec<(String, String)>> {
    let mut groups: Vec<Vec<(String, String)>> = Vec::new();
    for facts in runs.iter().map(about_the_machine) {
        if !facts.is_empty() && !groups.contains(&facts) {
            groups.push(facts);
        }
    }
    groups
}

fn list(runs: &[RunResult]) -> Table {
    Table {
        title: "Runs".to_owned(),
        note: String::new(),
        columns: columns(&["", "began", "commit", "sessions", "offered", "stored", "delivered p99", ""]),
        rows: runs
            .iter()
            .map(|run| {
                row([
                    run.label.clone(),
                    moment(run.began_unix_ms),
                    compare::commit(run),
                    count(u64::from(run.open)),
                    with_unit(run.offered_per_second, "/s"),
                    with_unit(run.achieved_per_second, "/s"),
                    ms(run.latency.delivery.p99),
                    if run.passed() { "passed" } else { "failed" }.to_owned(),
                ])
            })
            .collect(),
        numbers: true,
        ..Table::default()
    }
}

fn texts(run: &RunResult) -> Vec<(String, String)> {
    let mut texts = vec![("Run it again".to_owned(), run.command.clone())];
    if !run.scenario.toml.is_empty() {
        texts.push(("Scenario".to_owned(), run.scenario.toml.clone()));
    }
    texts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::result::{FORMAT, Threshold};

    fn run() -> RunResult {
        RunResult { format: FORMAT, label: "pairs".to_owned(), users: 2, open: 2, ..RunResult::default() }
    }

    #[test]
    fn thresholds_come_first_and_one_breach_fails_the_page() {
        let mut run = run();
        assert!(of_one(&run).passed);
        run.thresholds.push(Threshold {
            condition: "delivery.p99 < 20ms".to_owned(),
            measured: Some(31.0),
            unit: "ms".to_owned(),
            passed: false,
            note: None,
        });
        let html = page(std::slice::from_ref(&run));
        let place = |what: &str| html.find(what).unwrap_or_else(|| panic!("{what} is missing"));
        assert!(place("delivery.p99") < place("Where and how"));
        assert!(html.contains("verdict bad") && html.contains("31 ms"));
    }

    #[test]
    fn between_agents_only_what_is_known_is_a_number() {
        let mut run = run();
        let abroad = crate::result::Abroad { count: 7, error_ms: 1.5, max: Some(4.25), ..Default::default() };
        run.latency.abroad = Some(abroad);
        let table = latencies(&run).unwrap();
        let cells: Vec<_> = table.rows[0].iter().map(|cell| cell.text.as_str()).collect();
        assert_eq!(cells[1..], ["below", "below", "below", "below", "below", "4.25 ms", "7"]);
        assert!(table.note.contains("below the clocks’ error of 1.5 ms"));
    }

    #[test]
    fn what_makes_figures_doubtful_is_said_above_them() {
        let mut run = run();
        run.generator_bound = true;
        run.open = 1;
        run.counts.unsent = 3;
        run.counts.unanswered = 1;
        run.counts.failed = 1;
        run.counts.unwritten = 1;
        run.steps.push(crate::result::Step { kind: "measure".to_owned(), ..Default::default() });
        run.latency.schedule_error.p99 = 6.0;
        assert_eq!(notices(&run).len(), 8);
        run.counts.lost = 1;
        assert!(!of_one(&run).passed);
        let both = of_several(&[run.clone(), run]);
        assert!(!both.passed);
        assert_eq!((both.notices.len(), both.checks.len()), (8, 1), "{both:?}");
    }
}
