//! How near a shard is to its limits, and what it therefore refuses (P13, `docs/decisions/0010-shedding.md`).
//!
//! The pressure is how full the fullest of the shard's bounded things is, in sixteenths. Each kind of work is
//! shed from its own mark on, the least missed first. Acknowledgements, answers, pushes, and sessions whose
//! handshake was accepted are never shed.

/// Kinds of work that may be shed, in that order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Work {
    /// Typing and the like.
    Signal,
    /// Marks.
    Receipt,
    /// Pages of history and lists.
    Scan,
    /// Connections that want to become sessions.
    Handshake,
    /// Messages.
    Send,
}

impl Work {
    /// The pressure from which on it is shed.
    fn mark(self) -> u8 {
        match self {
            Self::Signal => 8,
            Self::Receipt => 10,
            Self::Scan => 12,
            Self::Handshake => 14,
            Self::Send => Pressure::FULL,
        }
    }
}

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Pressure(u8);

impl Pressure {
    const FULL: u8 = 16;

    /// Of something that is full at `max` and refuses sends by itself then.
    pub fn of(held: u64, max: u64) -> Self {
        Self::of_all(held, max).min(Self(Self::FULL - 1))
    }

    /// Of something that nothing else keeps from growing: at `max` also sends are shed.
    pub fn of_all(held: u64, max: u64) -> Self {
        let sixteenths = held.saturating_mul(u64::from(Self::FULL)) / max.max(1);
        Self(sixteenths.min(u64::from(Self::FULL)) as u8)
    }

    /// As much of it as does not shed work of that kind.
    #[must_use]
    pub fn below(self, work: Work) -> Self {
        Self(self.0.min(work.mark() - 1))
    }

    /// Whether work of that kind is refused.
    pub fn sheds(self, work: Work) -> bool {
        self.0 >= work.mark()
    }

    /// In sixteenths.
    pub fn level(self) -> u8 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Work; 5] = [Work::Signal, Work::Receipt, Work::Scan, Work::Handshake, Work::Send];

    #[test]
    fn work_is_shed_in_its_order_and_nothing_below_half() {
        let mut shed_before = 0;
        for held in 0..=200 {
            let shed = ALL.iter().filter(|work| Pressure::of_all(held, 100).sheds(**work)).count();
            assert!(ALL[..shed].iter().all(|work| Pressure::of_all(held, 100).sheds(*work)), "in order at {held}");
            assert!(shed >= shed_before && shed <= shed_before + 1, "one after the other at {held}");
            assert!(held >= 50 || shed == 0);
            assert!(held < 100 || shed == 5);
            shed_before = shed;
        }
    }

    #[test]
    fn what_has_a_limit_of_its_own_leaves_sends_to_it() {
        assert!(!Pressure::of(u64::MAX, 1).sheds(Work::Send) && Pressure::of(u64::MAX, 1).sheds(Work::Handshake));
    }
}
