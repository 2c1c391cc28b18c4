//! Deadlines of many users, to a few milliseconds.

/// A user may be in it more than once; looking too often does no harm.
pub(crate) struct Wheel {
    slots: Vec<Vec<u32>>,
    /// The slot that is looked at next, counted from the beginning of the run.
    next: u64,
    pub(crate) due: Vec<u32>,
}

impl Wheel {
    const SLOT_NS: u64 = 8_000_000;
    const SLOTS: u64 = 8_192;

    pub(crate) fn new() -> Self {
        Self { slots: vec![Vec::new(); Self::SLOTS as usize], next: 0, due: Vec::new() }
    }

    pub(crate) fn next_at(&self) -> u64 {
        self.next * Self::SLOT_NS
    }

    pub(crate) fn add(&mut self, index: u32, at_ns: u64) {
        if at_ns == u64::MAX {
            return;
        }
        // What lies beyond the wheel is looked at when the wheel comes round, and put further then.
        let slot = at_ns.div_ceil(Self::SLOT_NS).clamp(self.next, self.next + Self::SLOTS - 1);
        self.slots[(slot % Self::SLOTS) as usize].push(index);
    }

    pub(crate) fn advance(&mut self, now_ns: u64, due: &mut Vec<u32>) {
        while self.next_at() <= now_ns {
            due.append(&mut self.slots[(self.next % Self::SLOTS) as usize]);
            self.next += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wheel_gives_each_back_in_its_time_and_the_distant_ones_early() {
        let mut wheel = Wheel::new();
        wheel.add(1, 0);
        wheel.add(2, 100_000_000);
        wheel.add(3, u64::MAX - 1);
        wheel.add(4, u64::MAX);
        let mut due = Vec::new();
        wheel.advance(0, &mut due);
        assert_eq!(due, [1]);
        wheel.advance(99_000_000, &mut due);
        assert_eq!(due, [1]);
        wheel.advance(104_000_000, &mut due);
        assert_eq!(due, [1, 2]);
        wheel.advance(Wheel::SLOTS * Wheel::SLOT_NS, &mut due);
        assert_eq!(due, [1, 2, 3]);
    }
}
