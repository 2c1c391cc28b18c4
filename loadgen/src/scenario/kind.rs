//! The scenarios that come with it: each is a set of defaults.

use serde::{Deserialize, Serialize};

use super::{
    Abort, Churn, CredentialKeys, Offline, Pattern, Phase, Protocol, Saturate, Scenario, ServerKeys, Sessions,
    SlowReaders, Storm, Traffic,
};
use crate::span::Span;

/// A scenario that comes with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Sessions open, and beat.
    Idle,
    /// Pairs of users chat.
    Pairs,
    /// A few conversations have most of the messages.
    Hot,
    /// Some are away for a while, and catch up.
    Offline,
    /// Many are cut at once, and come back.
    Storm,
    /// Users come and go.
    Churn,
    /// Some read slowly.
    SlowReaders,
    /// Ramp, steady, spike, decline; users come and go meanwhile.
    Day,
    /// Every user gets a message within a stated time.
    Permutation,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Idle,
        Self::Pairs,
        Self::Hot,
        Self::Offline,
        Self::Storm,
        Self::Churn,
        Self::SlowReaders,
        Self::Day,
        Self::Permutation,
    ];

    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Pairs => "pairs",
            Self::Hot => "hot",
            Self::Offline => "offline",
            Self::Storm => "storm",
            Self::Churn => "churn",
            Self::SlowReaders => "slow-readers",
            Self::Day => "day",
            Self::Permutation => "permutation",
        }
    }

    /// The one that is written so.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// All names, for people.
    pub fn names() -> String {
        Self::ALL.map(Self::name).join(", ")
    }

    /// A scenario with every table: what a table has that a file only begins.
    pub(super) fn every() -> Scenario {
        Scenario {
            storm: Some(Storm::default()),
            churn: Some(Churn::default()),
            offline: Some(Offline::default()),
            slow_readers: Some(SlowReaders::default()),
            ..Self::Pairs.defaults()
        }
    }

    /// What it is when nothing else is said.
    pub fn defaults(self) -> Scenario {
        let plain = Scenario {
            kind: self,
            name: self.name().to_owned(),
            protocol: Protocol::Ringway,
            seed: 1,
            thresholds: Vec::new(),
            server: ServerKeys::default(),
            credentials: CredentialKeys::default(),
            sessions: Sessions::default(),
            traffic: Traffic::default(),
            phases: Vec::new(),
            storm: None,
            churn: None,
            offline: None,
            slow_readers: None,
            abort: Abort::default(),
            saturate: Saturate::default(),
        };
        let traffic = Traffic::default();
        match self {
            Self::Pairs => plain,
            Self::Idle => Scenario { traffic: Traffic { rate: 0.0, duration: Span::s(30), ..traffic }, ..plain },
            Self::Hot => Scenario { traffic: Traffic { pattern: Pattern::Hot, ..traffic }, ..plain },
            Self::Offline => Scenario { offline: Some(Offline::default()), ..plain },
            Self::Storm => Scenario { storm: Some(Storm::default()), ..plain },
            Self::Churn => Scenario { churn: Some(Churn::default()), ..plain },
            Self::SlowReaders => Scenario { slow_readers: Some(SlowReaders::default()), ..plain },
            Self::Day => Scenario {
                phases: [("ramp", 60, 0.0, 100.0), ("steady", 120, 100.0, 100.0), ("spike", 30, 300.0, 300.0)]
                    .into_iter()
                    .chain([("after", 60, 100.0, 100.0), ("decline", 60, 100.0, 0.0)])
                    .map(|(name, seconds, from, to)| Phase {
                        name: name.to_owned(),
                        duration: Span::s(seconds),
                        from,
                        to,
                    })
                    .collect(),
                churn: Some(Churn { per_second: 1.0, away: Span::s(5), ..Churn::default() }),
                ..plain
            },
            Self::Permutation => Scenario {
                traffic: Traffic { pattern: Pattern::Permutation, duration: Span::s(30), ..traffic },
                ..plain
            },
        }
    }
}
