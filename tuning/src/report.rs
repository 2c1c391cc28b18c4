//! The checks added up, for people and for programs.

use std::fmt::{self, Display, Formatter};

use serde::Serialize;

use crate::checks::{Check, Status, check};
use crate::machine::Machine;

/// What this machine can hold, and why not more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Sessions asked for; advice aims at them.
    pub sessions_wanted: u64,
    /// Sessions that fit; `None` if nothing that was shown limits them.
    pub sessions_max: Option<u64>,
    /// The check that ends first.
    pub limited_by: Option<&'static str>,
    /// Everything that was looked at.
    pub checks: Vec<Check>,
}

impl Report {
    /// Checks a machine for so many sessions.
    pub fn new(machine: &Machine, sessions: u64) -> Self {
        let checks = check(machine, sessions);
        let first = checks
            .iter()
            .filter_map(|check| Some((check.sessions_max?, check.name)))
            .min_by_key(|(sessions_max, _)| *sessions_max);
        Self {
            sessions_wanted: sessions,
            sessions_max: first.map(|(sessions_max, _)| sessions_max),
            limited_by: first.map(|(_, name)| name),
            checks,
        }
    }

    /// Whether the sessions asked for fit.
    pub fn fits(&self) -> bool {
        self.sessions_max.is_none_or(|sessions_max| sessions_max >= self.sessions_wanted)
    }

    /// Whether the server runs here at all.
    pub fn runs(&self) -> bool {
        self.checks.iter().all(|check| check.status != Status::Refuses)
    }

    /// The one sentence that matters.
    pub fn verdict(&self) -> String {
        match (self.sessions_max, self.limited_by) {
            (Some(0), Some(name)) if !self.runs() => {
                format!("this machine can hold no sessions: {name} refuses the server")
            }
            (Some(sessions_max), Some(name)) => {
                format!("this machine can hold about {} sessions; limited first by {name}", grouped(sessions_max))
            }
            _ => "nothing that this machine shows limits the number of sessions".to_owned(),
        }
    }
}

impl Display for Report {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        for check in &self.checks {
            let mark = match check.status {
                Status::Enough => "ok     ",
                Status::Costs => "costs  ",
                Status::Limits => "limits ",
                Status::Refuses => "refuses",
                Status::Unknown => "unknown",
            };
            write!(formatter, "{mark}  {}: {}", check.name, check.value)?;
            if let Some(sessions_max) = check.sessions_max {
                write!(formatter, " -> {} sessions", grouped(sessions_max))?;
            }
            writeln!(formatter, "\n           {}", check.meaning)?;
            if !check.action.is_empty() {
                writeln!(formatter, "           do: {}", check.action)?;
            }
        }
        write!(formatter, "\n{}", self.verdict())
    }
}

/// `1234567` as `1,234,567`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::with_capacity(digits.len() * 4 / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_by_thousands() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1_234_567), "1,234,567");
    }

    #[test]
    fn a_machine_that_shows_nothing_is_not_judged() {
        let report = Report::new(&Machine::default(), 1_000);
        assert_eq!(report.sessions_max, None);
        assert!(report.runs() && report.fits());
        assert!(report.verdict().starts_with("nothing"));
    }
}
