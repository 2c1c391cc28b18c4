//! How a run ended, in words and as an exit code.

use std::fmt;

use crate::result::RunResult;

/// How a run ended. The worst that holds is the one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing is wrong, and all thresholds hold.
    Good,
    /// Messages were lost, doubled or reordered, or the server forgot some.
    Broken,
    /// A threshold does not hold.
    Breached,
    /// Messages were sent and never answered: whether the server kept them, nobody knows.
    Unknown,
    /// Nothing is wrong, but it was told to stop before its time.
    Stopped,
    /// Nothing is wrong with what was measured, but that is less than what was asked for.
    Short,
}

/// It did not run at all.
pub const COULD_NOT_RUN: u8 = 2;

/// All codes, with what they mean.
pub const CODES: [(u8, &str); 7] = [
    (0, "nothing was lost, doubled, reordered or forgotten, everything was sent and answered, and all thresholds hold"),
    (1, "messages were lost, doubled or reordered, or the server forgot what clients already had"),
    (COULD_NOT_RUN, "it could not run"),
    (3, "a threshold does not hold"),
    (4, "messages were sent and never answered: whether the server kept them is unknown"),
    (5, "it was told to stop before its time; nothing was wrong until then"),
    (
        6,
        "less was measured than was asked for: sessions did not open, or messages were not sent, refused or not written down",
    ),
];

impl Outcome {
    /// That of a result.
    pub fn of(result: &RunResult) -> Self {
        let counts = &result.counts;
        if !result.is_clean() {
            Self::Broken
        } else if result.thresholds.iter().any(|threshold| !threshold.passed) {
            Self::Breached
        } else if counts.unanswered + counts.repeats_unanswered > 0 {
            Self::Unknown
        } else if result.aborted.is_some() {
            Self::Stopped
        } else if result.never_opened() > 0 || counts.unsent + counts.failed + counts.unwritten > 0 {
            Self::Short
        } else {
            Self::Good
        }
    }

    /// As the process ends.
    pub fn code(self) -> u8 {
        match self {
            Self::Good => 0,
            Self::Broken => 1,
            Self::Breached => 3,
            Self::Unknown => 4,
            Self::Stopped => 5,
            Self::Short => 6,
        }
    }
}

/// What a number alone would not say.
pub struct InWords<'a>(pub &'a RunResult);

impl fmt::Display for InWords<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = &self.0.counts;
        let never_opened = self.0.never_opened();
        if never_opened > 0 {
            writeln!(f, "{never_opened} of {} sessions never opened.", self.0.users)?;
        }
        if counts.shrunk > 0 {
            writeln!(
                f,
                "The server forgot messages that clients already had, {} times: its history shrank.",
                counts.shrunk
            )?;
        }
        if counts.failed > 0 {
            writeln!(f, "{} messages were refused for good: the errors above say why.", counts.failed)?;
        }
        if counts.unwritten > 0 {
            writeln!(f, "Not all could be written down: `verify` would not see what is missing in the file.")?;
        }
        if counts.late > 0 {
            let unsent = counts.unsent;
            writeln!(f, "{} messages could not be sent in time, {unsent} of them not at all.", counts.late)?;
        }
        if counts.unanswered > 0 {
            writeln!(
                f,
                "{} messages were sent and never answered: whether the server kept them is unknown.",
                counts.unanswered
            )?;
        }
        if counts.repeats_sent > 0 {
            writeln!(
                f,
                "{} acknowledged messages were sent again on purpose: {} kept their seq, {} were not answered.",
                counts.repeats_sent, counts.repeats_kept, counts.repeats_unanswered
            )?;
        }
        let (code, text) =
            CODES.into_iter().find(|(code, _)| *code == Outcome::of(self.0).code()).expect("each has one");
        write!(f, "exit code {code}: {text}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::result::Threshold;

    #[test]
    fn the_worst_counts() {
        let mut result = RunResult::default();
        assert_eq!(Outcome::of(&result).code(), 0);
        for spoil in [
            (|result| (result.users, result.open) = (2, 1)) as fn(&mut RunResult),
            |result| result.counts.unsent = 1,
            |result| result.counts.failed = 1,
            |result| result.counts.unwritten = 1,
        ] {
            let mut result = result.clone();
            spoil(&mut result);
            assert_eq!(Outcome::of(&result).code(), 6);
            assert!(!result.passed());
        }
        // Who came late was there.
        let mut late = RunResult { users: 2, open: 1, ..result.clone() };
        (late.counts.opened, late.counts.reopened) = (3, 1);
        assert_eq!(Outcome::of(&late).code(), 0);
        result.counts.unsent = 1;
        result.aborted = Some("told".to_owned());
        assert_eq!(Outcome::of(&result).code(), 5);
        result.counts.unanswered = 1;
        assert_eq!(Outcome::of(&result).code(), 4);
        assert!(InWords(&result).to_string().contains("1 messages were sent and never answered"));
        let breached = Threshold {
            condition: "cut == 0".to_owned(),
            measured: Some(1.0),
            unit: String::new(),
            passed: false,
            note: None,
        };
        result.thresholds.push(breached);
        assert_eq!(Outcome::of(&result).code(), 3);
        for spoil in [
            (|result| result.counts.lost = 1) as fn(&mut RunResult),
            |result| result.counts.doubled = 1,
            |result| result.counts.reordered = 1,
            |result| result.counts.shrunk = 1,
        ] {
            let mut result = result.clone();
            spoil(&mut result);
            assert_eq!(Outcome::of(&result).code(), 1);
        }
        result.counts.shrunk = 2;
        assert!(InWords(&result).to_string().contains("forgot messages that clients already had, 2 times"));
    }
}
