//! Which message falls due when, from whom and to whom.

use std::io::{BufRead as _, Write as _};
use std::path::Path;

use serde::{Deserialize, Serialize};
use wire::ids::UserId;

use crate::random::Random;
use crate::scenario::{Pattern, Scenario};
use crate::schedule::{Arrivals, Schedule};

/// A part of a run's users: those of one thread.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Share {
    /// The place of its first user among those of this process, and how many there are.
    pub(crate) first_place: u32,
    pub(crate) users: u32,
    /// Of all users in the run.
    pub(crate) of: u32,
    /// Users that only talk among themselves.
    pub(crate) block: u32,
    /// How many others each talks to.
    pub(crate) conversations: u32,
    /// Those whose partner is with another agent.
    pub(crate) abroad: Option<Abroad>,
}

/// Users whose partner, at the same place, is with another agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Abroad {
    /// From this place on.
    pub(crate) from_place: u32,
    /// The other agent's first user.
    pub(crate) first_user: u64,
}

impl Share {
    /// Whether that user's partner is with another agent.
    pub(crate) fn is_abroad(self, index: u32) -> bool {
        self.abroad.is_some_and(|abroad| self.first_place + index >= abroad.from_place)
    }

    /// The partner with another agent.
    pub(crate) fn abroad_peer(self, index: u32) -> Option<UserId> {
        let abroad = self.abroad.filter(|_| self.is_abroad(index))?;
        Some(UserId(abroad.first_user + u64::from(self.first_place + index)))
    }

    /// Which part of all messages is its own.
    pub(crate) fn part(self) -> f64 {
        f64::from(self.users) / f64::from(self.of)
    }
}

/// The other user in the conversation of that number, from 1. A user is its peer's peer, whatever the number, and both
/// are in one group.
pub(crate) fn peer(index: u32, conversation: u32) -> u32 {
    index ^ conversation
}

/// A message that falls due: from and to among the share's users.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Due {
    pub(crate) at_ns: u64,
    pub(crate) from: u32,
    pub(crate) to: u32,
}

/// The stream of one share's messages.
pub(crate) struct Traffic {
    share: Share,
    source: Source,
    random: Random,
}

enum Source {
    Schedule {
        schedule: Schedule,
        pick: Pick,
    },
    /// What was recorded, the next one last.
    Recorded(Vec<Due>),
}

/// Who is next.
enum Pick {
    Uniform,
    /// The first of the first so many groups talk in this part of all cases.
    Hot {
        conversations: u32,
        part: f64,
    },
    /// The receivers, in an order that every round keeps: so each waits the same time for its next message.
    Permutation {
        order: Vec<u32>,
        next: u64,
    },
}

impl Traffic {
    /// That of a scenario, from `start_ns`.
    pub(crate) fn new(
        scenario: &Scenario,
        share: Share,
        recorded: Option<&[Due]>,
        start_ns: u64,
        mut random: Random,
    ) -> Self {
        let source = if let Some(recorded) = recorded {
            let own = share.first_place..share.first_place + share.users;
            let own = recorded.iter().filter(|due| own.contains(&due.from));
            let mut dues: Vec<_> = own
                .map(|due| Due {
                    at_ns: start_ns + due.at_ns,
                    from: due.from - share.first_place,
                    to: due.to.wrapping_sub(share.first_place),
                })
                .collect();
            dues.sort_by_key(|due| std::cmp::Reverse(due.at_ns));
            Source::Recorded(dues)
        } else {
            let pick = Pick::new(scenario, share, &mut random);
            let slopes = scenario.slopes().into_iter().map(|slope| slope.share(share.part())).collect();
            let arrivals =
                if matches!(pick, Pick::Permutation { .. }) { Arrivals::Constant } else { scenario.traffic.arrivals };
            let own = Random::new(random.draw(), 1);
            Source::Schedule { schedule: Schedule::new(arrivals, slopes, start_ns, own), pick }
        };
        Self { share, source, random }
    }

    /// When the next one is due.
    pub(crate) fn next(&self) -> Option<u64> {
        match &self.source {
            Source::Schedule { schedule, .. } => schedule.next(),
            Source::Recorded(dues) => dues.last().map(|due| due.at_ns),
        }
    }

    /// The next one that is due by now.
    pub(crate) fn due(&mut self, now_ns: u64) -> Option<Due> {
        match &mut self.source {
            Source::Recorded(dues) => dues.pop_if(|due| due.at_ns <= now_ns),
            Source::Schedule { schedule, pick } => {
                let at_ns = schedule.due(now_ns)?;
                let (from, to) = pick.next(self.share, &mut self.random);
                Some(Due { at_ns, from, to })
            }
        }
    }
}

impl Pick {
    fn new(scenario: &Scenario, share: Share, random: &mut Random) -> Self {
        let traffic = &scenario.traffic;
        match traffic.pattern {
            Pattern::Uniform => Self::Uniform,
            Pattern::Hot => {
                let conversations = (f64::from(traffic.hot_conversations) * share.part()).round() as u32;
                Self::Hot { conversations: conversations.clamp(1, share.users / share.block), part: traffic.hot_share }
            }
            Pattern::Permutation => {
                let mut order: Vec<u32> = (0..share.users).collect();
                for at in (1..order.len()).rev() {
                    order.swap(at, random.below(at as u64 + 1) as usize);
                }
                Self::Permutation { order, next: 0 }
            }
        }
    }

    fn next(&mut self, share: Share, random: &mut Random) -> (u32, u32) {
        match self {
            Self::Hot { conversations, part } if random.unit() < *part => {
                let first = random.below(u64::from(*conversations)) as u32 * share.block;
                let turn = random.below(2) as u32;
                (first + turn, first + (turn ^ 1))
            }
            Self::Uniform | Self::Hot { .. } => {
                let from = random.below(u64::from(share.users)) as u32;
                (from, peer(from, 1 + random.below(u64::from(share.conversations)) as u32))
            }
            Self::Permutation { order, next } => {
                let (round, at) = (*next / order.len() as u64, (*next % order.len() as u64) as usize);
                *next += 1;
                let to = order[at];
                (peer(to, 1 + (round % u64::from(share.conversations)) as u32), to)
            }
        }
    }
}

/// Writes down what fell due: nanoseconds since messages began, and the places of sender and receiver.
pub(crate) struct Record {
    file: std::fs::File,
    lines: Vec<u8>,
}

impl Record {
    pub(crate) fn new(file: std::fs::File) -> Self {
        Self { file, lines: Vec::new() }
    }

    pub(crate) fn note(&mut self, since_ns: u64, from: u32, to: u32) {
        writeln!(self.lines, "{since_ns} {from} {to}").expect("writing into a Vec does not fail");
    }

    pub(crate) fn flush(&mut self) -> std::io::Result<()> {
        self.file.write_all(&self.lines)?;
        self.lines.clear();
        Ok(())
    }
}

/// What was recorded, for all threads.
pub(crate) type Recorded = std::sync::Arc<Vec<Due>>;

/// Reads what [`Record`] wrote, at least one message; places must be below `users`.
pub(crate) fn read_record(path: &Path, users: u32) -> std::io::Result<Vec<Due>> {
    /// Nobody waits for thirty years.
    const AT_NS_MAX: u64 = 1_000_000_000_000_000_000;
    let bad = |number: usize| {
        let path = path.display();
        let why = format!("{path}, line {number}: not a time and two users of this run, as `record` writes them");
        std::io::Error::new(std::io::ErrorKind::InvalidData, why)
    };
    let mut dues = Vec::new();
    for (number, line) in std::io::BufReader::new(std::fs::File::open(path)?).lines().enumerate() {
        let line = line?;
        let mut parts = line.split(' ').map(str::parse::<u64>);
        let (Some(Ok(at_ns)), Some(Ok(from)), Some(Ok(to)), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(bad(number + 1));
        };
        if from.max(to) >= u64::from(users) || from == to || at_ns > AT_NS_MAX {
            return Err(bad(number + 1));
        }
        dues.push(Due { at_ns, from: from as u32, to: to as u32 });
    }
    if dues.is_empty() {
        let why = format!("{}: no message is recorded there", path.display());
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, why));
    }
    Ok(dues)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::Kind;
    use crate::span::Span;

    const SECOND: u64 = 1_000_000_000;

    fn all(scenario: &Scenario, share: Share) -> Vec<Due> {
        let mut traffic = Traffic::new(scenario, share, None, SECOND, Random::new(1, 1));
        std::iter::from_fn(|| traffic.due(u64::MAX)).collect()
    }

    /// In each window as long as stated, everybody gets one message, and writes one.
    #[test]
    fn a_permutation_serves_everybody_within_the_stated_time() {
        for conversations in [1, 2, 7] {
            let mut scenario = Kind::Permutation.defaults();
            scenario.traffic.every = Span::s(3);
            scenario.traffic.duration = Span::s(60);
            scenario.sessions.users = 48;
            scenario.sessions.conversations = conversations;
            let block = scenario.sessions.block();
            let share = Share { first_place: 0, users: 48, of: 48, block, conversations, abroad: None };
            let dues = all(&scenario, share);
            assert!(dues.len() >= 19 * 48, "{}", dues.len());
            let mut last = [SECOND; 48];
            for due in &dues {
                let to = due.to as usize;
                assert!(due.at_ns - last[to] <= 3 * SECOND + 2, "{due:?} after {}", last[to]);
                assert_eq!(due.from / block, due.to / block);
                last[to] = due.at_ns;
            }
            assert!(last.iter().all(|&last| last >= 58 * SECOND));
            for round in dues.chunks_exact(48) {
                let mut senders: Vec<_> = round.iter().map(|due| due.from).collect();
                senders.sort_unstable();
                assert_eq!(senders, (0..48).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn hot_conversations_have_their_part() {
        let mut scenario = Kind::Hot.defaults();
        scenario.traffic.rate = 1_000.0;
        let share = Share { first_place: 0, users: 1_000, of: 1_000, block: 2, conversations: 1, abroad: None };
        let dues = all(&scenario, share);
        let hot = dues.iter().filter(|due| due.from < 20).count();
        assert!((0.88..0.93).contains(&(hot as f64 / dues.len() as f64)), "{hot} of {}", dues.len());
        // Half of the users are another thread's: so is half of the rate.
        let half = all(&scenario, Share { users: 500, ..share });
        assert!((0.45..0.55).contains(&(half.len() as f64 / dues.len() as f64)));
    }

    #[test]
    fn what_was_recorded_is_sent_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("record");
        let mut record = Record::new(std::fs::File::create(&path).unwrap());
        let share = Share { first_place: 0, users: 8, of: 8, block: 2, conversations: 1, abroad: None };
        let dues = all(&Kind::Pairs.defaults(), share);
        for due in &dues {
            record.note(due.at_ns - SECOND, due.from, due.to);
        }
        record.flush().unwrap();
        let recorded = read_record(&path, 8).unwrap();
        let mut traffic = Traffic::new(&Kind::Idle.defaults(), share, Some(&recorded), SECOND, Random::new(9, 9));
        assert_eq!(traffic.next(), Some(dues[0].at_ns));
        assert_eq!(traffic.due(SECOND), None);
        let again: Vec<_> = std::iter::from_fn(|| traffic.due(u64::MAX)).collect();
        assert_eq!(again, dues);
        assert!(read_record(&path, 7).unwrap_err().to_string().contains("line"));
    }
}
