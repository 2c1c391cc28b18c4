//! What a run is to do: a TOML file, or flags, or both.
//!
//! Every key has a default that depends on the kind of scenario; the file is laid over those, and flags over the
//! file. What comes of it can be written down again, whole, and gives the same run.

use std::path::Path;

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

pub use keys::{
    Abort, Churn, CredentialKeys, Offline, Pattern, Phase, Proxy, Saturate, ServerKeys, Sessions, SlowReaders, Storm,
    Traffic,
};
pub use kind::Kind;

use crate::schedule::Slope;
use crate::span::Span;
use crate::thresholds::{Threshold, ThresholdError};

mod keys;
mod kind;

/// A whole scenario, everything decided.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// What the others' defaults are.
    pub kind: Kind,
    /// What reports call it.
    pub name: String,
    /// The protocol: what the server is.
    pub protocol: Protocol,
    /// Where chance begins.
    pub seed: u64,
    /// Conditions such as `delivery.p99 < 20ms`.
    pub thresholds: Vec<Threshold>,
    pub server: ServerKeys,
    pub credentials: CredentialKeys,
    pub sessions: Sessions,
    pub traffic: Traffic,
    /// Instead of one even rate.
    #[serde(default, rename = "phase", skip_serializing_if = "Vec::is_empty")]
    pub phases: Vec<Phase>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storm: Option<Storm>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub churn: Option<Churn>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offline: Option<Offline>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slow_readers: Option<SlowReaders>,
    pub abort: Abort,
    pub saturate: Saturate,
}

/// What the server speaks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// Ringway's.
    #[default]
    Ringway,
    /// Any WebSocket that sends back what it gets: a user talks to himself.
    Echo,
    /// NATS over WebSocket: publish to subscriber.
    Nats,
    /// The same, with a stream that keeps what is published and acknowledges it.
    JetStream,
    /// XMPP over WebSocket, with stream management.
    Xmpp,
}

/// Why there is no scenario.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScenarioError {
    /// The file is not readable.
    #[error("{path} cannot be read: {error}; a scenario is a file, or one of {}", Kind::names())]
    File {
        /// Which.
        path: String,
        /// Why.
        error: String,
    },
    /// It is not TOML, or a value is of another type than its key wants.
    #[error("{place}: {error}")]
    Toml {
        /// The file, or the command line.
        place: String,
        /// What the parser says, with the line.
        error: String,
    },
    /// A key that there is not.
    #[error("{place}: there is no key `{key}`{suggestion}")]
    Unknown {
        /// The file, or the command line.
        place: String,
        /// The key, with its table.
        key: String,
        /// `; did you mean ...?`, or nothing.
        suggestion: String,
    },
    /// A condition that makes no sense.
    #[error(transparent)]
    Threshold(#[from] ThresholdError),
    /// Values that are right each for itself, and wrong together.
    #[error("{0}")]
    Together(String),
}

/// Tables that a file may have, with their keys and what these are.
type Section = (&'static str, &'static [(&'static str, &'static str)]);

/// Every table with its keys, in the order of the reference.
pub const SECTIONS: &[Section] = &[
    (
        "",
        &[
            ("kind", "The scenario whose defaults the rest of the file is laid over."),
            ("name", "What reports call it; the kind, unless it says something else."),
            ("protocol", "What the server speaks: `ringway`, `echo`, `nats`, `jetstream` or `xmpp`."),
            ("seed", "Where chance begins."),
            ("thresholds", "A list of conditions, each as text."),
        ],
    ),
    ("server", ServerKeys::KEYS),
    ("credentials", CredentialKeys::KEYS),
    ("sessions", Sessions::KEYS),
    ("traffic", Traffic::KEYS),
    ("phase", Phase::KEYS),
    ("storm", Storm::KEYS),
    ("churn", Churn::KEYS),
    ("offline", Offline::KEYS),
    ("slow_readers", SlowReaders::KEYS),
    ("abort", Abort::KEYS),
    ("saturate", Saturate::KEYS),
];

impl Scenario {
    /// That of `file_or_kind`, with `flags` (`traffic.rate = 100`, one assignment each) laid over it.
    pub fn load(file_or_kind: Option<&str>, flags: &[String]) -> Result<Self, ScenarioError> {
        let (mut written, place) = match file_or_kind {
            None => (Table::new(), String::new()),
            Some(name) => match Kind::named(name) {
                Some(kind) => (Table::from_iter([("kind".to_owned(), Value::from(kind.name()))]), name.to_owned()),
                None => (read(Path::new(name))?, name.to_owned()),
            },
        };
        check_keys(&written, &place)?;
        for flag in flags {
            let place = "the command line".to_owned();
            let table: Table = toml::from_str(flag)
                .map_err(|error| ScenarioError::Toml { place: place.clone(), error: error.message().to_owned() })?;
            check_keys(&table, &place)?;
            lay_over(&mut written, table);
        }
        Self::of_table(written, &place)
    }

    /// Lays a table over the defaults of the kind that it names.
    fn of_table(written: Table, place: &str) -> Result<Self, ScenarioError> {
        let toml_error = |error: toml::de::Error| ScenarioError::Toml {
            place: if place.is_empty() { "the command line".to_owned() } else { place.to_owned() },
            error: error.to_string().trim_end().to_owned(),
        };
        let kind = match written.get("kind") {
            None => Kind::Pairs,
            Some(kind) => kind.clone().try_into().map_err(toml_error)?,
        };
        let mut whole = Table::try_from(kind.defaults()).expect("a scenario can be written");
        for name in ["storm", "churn", "offline", "slow_readers"] {
            if written.contains_key(name) && !whole.contains_key(name) {
                let own = Table::try_from(Kind::every()).expect("a scenario can be written").remove(name);
                whole.insert(name.to_owned(), own.expect("every scenario has all tables"));
            }
        }
        lay_over(&mut whole, written);
        let scenario: Self = whole.try_into().map_err(toml_error)?;
        scenario.check()?;
        Ok(scenario)
    }

    /// Everything, as TOML that gives the same scenario.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("a scenario can be written")
    }

    /// Reads what [`Self::to_toml`] wrote.
    pub fn of_toml(text: &str) -> Result<Self, ScenarioError> {
        let toml =
            |error: toml::de::Error| ScenarioError::Toml { place: "scenario".to_owned(), error: error.to_string() };
        let scenario: Self = toml::from_str(text).map_err(toml)?;
        scenario.check()?;
        Ok(scenario)
    }

    /// The rates, one after the other.
    pub fn slopes(&self) -> Vec<Slope> {
        if self.traffic.pattern == Pattern::Permutation {
            let rate = f64::from(self.sessions.users) / self.traffic.every.0.as_secs_f64();
            return vec![Slope::even(rate, self.traffic.duration.ns())];
        }
        if self.phases.is_empty() {
            return vec![Slope::even(self.traffic.rate, self.traffic.duration.ns())];
        }
        let slope = |phase: &Phase| Slope { length_ns: phase.duration.ns(), from: phase.from, to: phase.to };
        self.phases.iter().map(slope).collect()
    }

    /// How long messages fall due.
    pub fn duration(&self) -> Span {
        if self.traffic.replay.is_some() {
            // The record's own, as a run has found it.
            return self.traffic.duration;
        }
        Span(self.slopes().iter().map(|slope| std::time::Duration::from_nanos(slope.length_ns)).sum())
    }

    /// What the part of the run is called in which `since` the beginning lies.
    pub fn phase_name(&self, since: std::time::Duration) -> &str {
        if since >= self.duration().0 {
            return "answers";
        }
        let mut end = std::time::Duration::ZERO;
        for phase in &self.phases {
            end += phase.duration.0;
            if since < end {
                return &phase.name;
            }
        }
        "messages"
    }

    fn check(&self) -> Result<(), ScenarioError> {
        let refuse = |why: String| Err(ScenarioError::Together(why));
        let Sessions { users, conversations, threads, connections_per_second, cross_share, .. } = self.sessions;
        if conversations == 0 || conversations > 100 {
            return refuse(format!("sessions.conversations cannot be {conversations}: it must be from 1 to 100"));
        }
        let block = self.sessions.block();
        if users == 0 || !users.is_multiple_of(block) {
            return refuse(format!(
                "{users} users with {conversations} conversations each make no groups of {block}: name a multiple of {block}, for pairs an even number"
            ));
        }
        if threads == 0 || threads > users / block {
            return refuse(format!("{threads} threads: there must be at least one, and a group of {block} for each"));
        }
        if !connections_per_second.is_normal() || connections_per_second < 0.0 {
            return refuse("sessions.connections_per_second must be a number above zero".to_owned());
        }
        let rates = self.slopes();
        let is_rate = |rate: f64| rate.is_finite() && rate >= 0.0;
        if rates.iter().any(|slope| !is_rate(slope.from) || !is_rate(slope.to)) || self.traffic.in_flight == 0 {
            return refuse("rates must be numbers from zero on, and traffic.in_flight must be above it".to_owned());
        }
        if self.duration().ns() == 0 {
            return refuse("traffic.duration must be above zero, or nothing would be measured".to_owned());
        }
        let shares = [
            ("sessions.cross_share", cross_share),
            ("traffic.hot_share", self.traffic.hot_share),
            ("storm.share", self.storm.as_ref().map_or(0.0, |storm| storm.share)),
            ("offline.share", self.offline.as_ref().map_or(0.0, |offline| offline.share)),
            ("slow_readers.share", self.slow_readers.as_ref().map_or(0.0, |slow| slow.share)),
        ];
        if let Some((name, share)) = shares.iter().find(|(_, share)| !(0.0..=1.0).contains(share)) {
            return refuse(format!("{name} cannot be {share}: it must be from 0 to 1"));
        }
        if self.offline.as_ref().is_some_and(|offline| offline.share > 0.5) {
            return refuse("offline.share can be 0.5 at most: somebody must write to those who are away".to_owned());
        }
        if self.offline.as_ref().is_some_and(|offline| offline.until <= offline.from) {
            return refuse("offline.until must be after offline.from".to_owned());
        }
        if self.slow_readers.as_ref().is_some_and(|slow| slow.bytes_per_second == 0) {
            return refuse("slow_readers.bytes_per_second must be above zero".to_owned());
        }
        if self.storm.as_ref().is_some_and(|storm| storm.every.0 < std::time::Duration::from_millis(1)) {
            return refuse("storm.every must be at least 1ms".to_owned());
        }
        if self.traffic.pattern == Pattern::Permutation && self.traffic.every.ns() == 0 {
            return refuse("traffic.every must be above zero".to_owned());
        }
        Ok(())
    }
}

fn read(path: &Path) -> Result<Table, ScenarioError> {
    let place = path.display().to_string();
    let text = std::fs::read_to_string(path)
        .map_err(|error| ScenarioError::File { path: place.clone(), error: error.to_string() })?;
    toml::from_str(&text)
        .map_err(|error: toml::de::Error| ScenarioError::Toml { place, error: error.to_string().trim_end().to_owned() })
}

fn lay_over(under: &mut Table, over: Table) {
    for (key, value) in over {
        match (under.get_mut(&key), value) {
            (Some(Value::Table(under)), Value::Table(over)) => lay_over(under, over),
            // A whole number where a fraction may stand.
            (Some(under @ Value::Float(_)), Value::Integer(number)) => *under = Value::Float(number as f64),
            (_, value) => {
                under.insert(key, value);
            }
        }
    }
}

/// A key that nothing reads would be a setting that does not hold: it is refused, with the likeliest other one.
fn check_keys(written: &Table, place: &str) -> Result<(), ScenarioError> {
    let top = SECTIONS[0].1.iter().map(|(name, _)| *name).chain(SECTIONS[1..].iter().map(|(name, _)| *name));
    let top: Vec<_> = top.collect();
    for (key, value) in written {
        if !top.contains(&key.as_str()) {
            return Err(unknown(place, key, &every_key()));
        }
        let Some((_, keys)) = SECTIONS[1..].iter().find(|(name, _)| name == key) else { continue };
        let tables = match value {
            Value::Table(table) => vec![table],
            Value::Array(tables) => tables.iter().filter_map(Value::as_table).collect(),
            _ => continue,
        };
        for name in tables.iter().flat_map(|table| table.keys()) {
            if !keys.iter().any(|(known, _)| known == name) {
                return Err(unknown(place, &format!("{key}.{name}"), &every_key()));
            }
        }
    }
    Ok(())
}

/// All keys, with their tables.
fn every_key() -> Vec<String> {
    let names = |(table, keys): &Section| -> Vec<String> {
        let within =
            keys.iter().map(|(key, _)| if table.is_empty() { (*key).to_owned() } else { format!("{table}.{key}") });
        within.chain((!table.is_empty()).then(|| (*table).to_owned())).collect()
    };
    SECTIONS.iter().flat_map(names).collect()
}

fn unknown(place: &str, key: &str, known: &[String]) -> ScenarioError {
    let last = |key: &str| key.rsplit('.').next().unwrap_or_default().to_owned();
    // The same name in another table is the likeliest mistake; then a slip of the pen.
    let same = known.iter().find(|other| last(other) == last(key));
    let near = || {
        let likeness = |other: &&String| strsim::jaro_winkler(&last(key), &last(other));
        let best = known.iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b)))?;
        (likeness(&best) > 0.8).then_some(best)
    };
    let suggestion = same.or_else(near).map_or_else(String::new, |best| format!("; did you mean `{best}`?"));
    ScenarioError::Unknown { place: place.to_owned(), key: key.to_owned(), suggestion }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Scenario, String> {
        let written: Table = toml::from_str(text).unwrap();
        check_keys(&written, "x.toml")
            .and_then(|()| Scenario::of_table(written, "x.toml"))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_written_down_gives_the_same_scenario() {
        for kind in Kind::ALL {
            let scenario = Scenario::load(Some(kind.name()), &[]).unwrap();
            assert_eq!(Scenario::of_toml(&scenario.to_toml()).unwrap(), scenario);
            assert_eq!(load(&scenario.to_toml()).unwrap(), scenario);
        }
    }

    #[test]
    fn flags_go_over_the_file_and_the_file_over_the_kind() {
        let flags = ["sessions.users = 8".to_owned(), "storm.jitter = '2s'".to_owned()];
        let scenario = Scenario::load(Some("storm"), &flags).unwrap();
        assert_eq!(scenario.sessions.users, 8);
        let storm = scenario.storm.unwrap();
        assert_eq!((storm.jitter, storm.at), (Span::s(2), Kind::Storm.defaults().storm.unwrap().at));
        // A kind without storms gets the defaults of the rest of the table.
        assert!((load("kind = 'pairs'\n[storm]\nshare = 0.25").unwrap().storm.unwrap().share - 0.25).abs() < 1e-9);
        assert!((load("[traffic]\nrate = 7").unwrap().traffic.rate - 7.0).abs() < 1e-9);
    }

    #[test]
    fn a_key_that_there_is_not_is_refused_with_the_likeliest_other() {
        let error = |text| load(text).unwrap_err();
        assert!(error("[traffic]\nrato = 7").contains("no key `traffic.rato`; did you mean `traffic.rate`?"));
        assert!(error("[sessions]\nrate = 7").contains("did you mean `traffic.rate`?"));
        assert!(error("users = 7").contains("did you mean `sessions.users`?"));
        assert!(error("[trafic]\nrate = 7").contains("did you mean `traffic`?"));
        assert!(error("[[phase]]\nname = 'a'\nlenght = '1s'").contains("no key `phase.lenght`"));
        assert!(error("[traffic]\nxyzzy = 7").ends_with("no key `traffic.xyzzy`"));
    }

    #[test]
    fn values_that_cannot_be_are_named() {
        let error = |text: &str| load(text).unwrap_err();
        assert!(error("[sessions]\nusers = 7").contains("an even number"));
        assert!(error("[traffic]\nduration = '7d'").contains("7d is no time"));
        assert!(error("[storm]\nshare = 2").contains("storm.share cannot be 2"));
        assert!(error("thresholds = ['delivery.p98 < 1ms']").contains("p98"));
        assert!(error("kind = 'pears'").contains("pears"));
        for number in ["inf", "nan"] {
            assert!(error(&format!("[traffic]\nrate = {number}")).contains("rates"), "{number}");
            assert!(
                error(&format!("[sessions]\nconnections_per_second = {number}")).contains("connections_per_second")
            );
        }
        assert!(error("[traffic]\nduration = '0s'").contains("above zero"));
        assert!(error("[sessions]\nconversations = 4294967295").contains("from 1 to 100"));
        assert!(error("[offline]\nfrom = '5s'\nuntil = '5s'").contains("after"));
    }

    /// The reference is the code's own words.
    #[test]
    fn the_reference_has_every_key_kind_and_code() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/loadgen.md");
        let text = std::fs::read_to_string(path).unwrap();
        for (table, keys) in &SECTIONS[1..] {
            assert!(text.contains(&format!("[{table}]")), "{table}");
            for (key, what) in *keys {
                let row = |line: &&str| {
                    line.starts_with(&format!("| `{key}` |")) && line.ends_with(&format!("| {} |", what.trim()))
                };
                assert!(text.lines().any(|line| row(&line)), "{table}.{key}: {what}");
            }
        }
        for kind in Kind::ALL {
            assert!(text.contains(&format!("| `{}` |", kind.name())), "{}", kind.name());
        }
        for (code, what) in crate::outcome::CODES {
            assert!(text.contains(&format!("| {code} | {what} |")), "{code}");
        }
        for (name, _) in crate::tally::Tally::default().distributions() {
            assert!(text.contains(&format!("| `{name}` |")), "{name}");
        }
    }

    #[test]
    fn phases_follow_each_other() {
        let scenario = Scenario::load(Some("day"), &[]).unwrap();
        assert!(scenario.phases.len() >= 4);
        assert_eq!(scenario.phase_name(std::time::Duration::ZERO), "ramp");
        assert_eq!(scenario.phase_name(scenario.duration().0), "answers");
    }
}
