//! How far a thread's connections are, counted as they change; and those that wait because too many are being made.

use std::collections::VecDeque;

use ring::ConnectError;

use crate::link::{Link, State};

/// Counts that would take too long to be taken anew with a million connections.
#[derive(Debug)]
pub(crate) struct Openings {
    /// Open now, and at least once.
    pub open: u32,
    pub was_open: u32,
    /// Begun, and not open yet.
    under_way: u32,
    under_way_max: u32,
    postponed: VecDeque<u32>,
}

/// What is counted of one connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Standing {
    open: u32,
    was_open: u32,
    under_way: u32,
}

impl Standing {
    pub fn of(link: &Link) -> Self {
        let under_way =
            matches!(link.state, State::Connecting { .. } | State::Upgrading { .. } | State::Opening { .. });
        Self { open: u32::from(link.is_open()), was_open: u32::from(link.was_open()), under_way: u32::from(under_way) }
    }
}

impl Openings {
    /// No more than so many, at least one, are made at once.
    pub fn new(under_way_max: u32) -> Self {
        Self { open: 0, was_open: 0, under_way: 0, under_way_max, postponed: VecDeque::new() }
    }

    /// One connection stands where it did not before.
    pub fn changed(&mut self, before: Standing, now: Standing) {
        self.open = self.open + now.open - before.open;
        self.was_open = self.was_open + now.was_open - before.was_open;
        self.under_way = self.under_way + now.under_way - before.under_way;
    }

    /// Whether a connection that is due has to wait for others; it is kept in mind.
    pub fn postpones(&mut self, index: u32, link: &Link) -> bool {
        let waits = matches!(link.state, State::Waiting { .. }) && self.under_way >= self.under_way_max;
        if waits {
            self.postponed.push_back(index);
        }
        waits
    }

    /// Who had to wait and may begin now, the first first.
    pub fn next(&mut self) -> Option<u32> {
        if self.under_way < self.under_way_max { self.postponed.pop_front() } else { None }
    }
}

/// Why there is no connection.
pub(crate) fn in_words(error: ConnectError) -> String {
    match error {
        ConnectError::Refused => "nobody listens there".to_owned(),
        ConnectError::TimedOut => "nobody answers there".to_owned(),
        ConnectError::NoPort => "no port is left to connect from: name more `server.sources`".to_owned(),
        ConnectError::TableFull => "the table of connections is full".to_owned(),
        ConnectError::Failed { code } => std::io::Error::from_raw_os_error(code).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_beyond_the_bound_wait_and_begin_in_their_order() {
        let (waiting, mut begun) = (Link::new(0), Link::new(0));
        begun.state = State::Connecting { deadline_ns: 1 };
        let mut openings = Openings::new(1);
        assert!(!openings.postpones(0, &waiting));
        openings.changed(Standing::of(&waiting), Standing::of(&begun));
        assert!(openings.postpones(1, &waiting) && openings.postpones(2, &waiting));
        // What is under way already has its own deadline to keep.
        assert!(!openings.postpones(0, &begun));
        assert_eq!(openings.next(), None);
        let mut open = Link::new(0);
        open.state = State::Open;
        openings.changed(Standing::of(&begun), Standing::of(&open));
        assert_eq!((openings.open, openings.next(), openings.next()), (1, Some(1), Some(2)));
        openings.changed(Standing::of(&open), Standing::of(&waiting));
        assert_eq!((openings.open, openings.next()), (0, None));
    }
}
