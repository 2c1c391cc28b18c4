//! One timing wheel instead of a kernel timer per connection.
//!
//! Every entity (a connection, a session) is a small number and has at most one deadline. Arming,
//! moving and cancelling cost O(1) and twelve bytes per entity; expiring costs what is due, plus a
//! look at each tick that has passed.
//!
//! ```text
//! heads:  tick mod N -> first entity        links: entity -> next, previous, tick
//!   [..]--> 7 <--> 3 <--> 12
//! ```
//!
//! A hashed wheel rather than a hierarchical one: nearly all deadlines here lie within one turn of
//! the wheel, and an entity that lies further away is merely passed over once per turn.

/// No entity: the end of a list.
const NONE: u32 = u32::MAX;
/// `Link::previous` of an entity that is not armed.
const UNARMED: u32 = u32::MAX - 1;
/// Ticks beyond which a deadline is looked at before its time: their numbers wrap at 2^32.
const FAR: u64 = 1 << 30;

/// An entity's place in the list of its tick.
#[derive(Debug, Clone, Copy)]
struct Link {
    next: u32,
    previous: u32,
    /// The tick at which it is due, modulo 2^32.
    tick: u32,
}

/// At most one deadline for each of many small numbers.
#[derive(Debug)]
pub struct Wheel {
    tick_ms: u64,
    /// The first tick that has not been expired yet.
    cursor: u64,
    armed: usize,
    heads: Vec<u32>,
    /// One bit per head, so that the next deadline is found without walking the heads.
    occupied: Vec<u64>,
    links: Vec<Link>,
}

impl Wheel {
    /// A wheel that starts at `now_ms`, rounds deadlines up to `tick_ms` and has `ticks` lists. Room for
    /// `entities` is set aside, and used as far as they are; more are taken as well.
    ///
    /// `ticks` must be a power of two of at least 64; entities are best kept below
    /// `tick_ms * ticks` away.
    pub fn new(now_ms: u64, tick_ms: u64, ticks: usize, entities: usize) -> Self {
        assert!(ticks.is_power_of_two() && ticks >= 64, "the number of ticks is a power of two from 64");
        assert!(tick_ms > 0, "a tick takes time");
        Self {
            tick_ms,
            cursor: now_ms / tick_ms,
            armed: 0,
            heads: vec![NONE; ticks],
            occupied: vec![0; ticks / 64],
            links: Vec::with_capacity(entities),
        }
    }

    /// How many entities have a deadline.
    pub fn len(&self) -> usize {
        self.armed
    }

    /// Whether nothing has a deadline.
    pub fn is_empty(&self) -> bool {
        self.armed == 0
    }

    /// Bytes of memory held, for the memory metrics.
    pub fn memory_bytes(&self) -> usize {
        self.heads.capacity() * 4 + self.occupied.capacity() * 8 + self.links.len() * size_of::<Link>()
    }

    /// Whether `entity` has a deadline.
    pub fn is_armed(&self, entity: u32) -> bool {
        self.links.get(entity as usize).is_some_and(|link| link.previous != UNARMED)
    }

    /// Gives `entity` a deadline, instead of any that it had. It never expires before it, and at
    /// most one tick after. A deadline in the past expires at the next [`Self::expire`].
    pub fn set(&mut self, entity: u32, deadline_ms: u64) {
        self.set_tick(entity, deadline_ms.div_ceil(self.tick_ms).max(self.cursor));
    }

    fn set_tick(&mut self, entity: u32, tick: u64) {
        assert!(entity < UNARMED, "entities are small numbers");
        let index = entity as usize;
        if index >= self.links.len() {
            self.links.resize(index + 1, Link { next: NONE, previous: UNARMED, tick: 0 });
        }
        let link = self.links[index];
        if link.previous != UNARMED {
            if link.tick == tick as u32 {
                return;
            }
            self.unlink(entity);
        }
        self.link(entity, tick);
    }

    /// Sees to it that `entity` expires no later than if `deadline_ms` were set, and leaves an earlier deadline.
    pub fn set_no_later(&mut self, entity: u32, deadline_ms: u64) {
        let tick = deadline_ms.div_ceil(self.tick_ms).clamp(self.cursor, self.cursor + FAR);
        let link = self.links.get(entity as usize).filter(|link| link.previous != UNARMED);
        // Modulo 2^32, as in `expire_list`.
        if link.is_none_or(|link| (link.tick.wrapping_sub(tick as u32) as i32) > 0) {
            self.set_tick(entity, tick);
        }
    }

    /// Takes the deadline of `entity` away, if it has one.
    pub fn cancel(&mut self, entity: u32) {
        if self.is_armed(entity) {
            self.unlink(entity);
        }
    }

    /// Appends to `due` every entity whose deadline is at or before `now_ms`; they have none then.
    pub fn expire(&mut self, now_ms: u64, due: &mut Vec<u32>) {
        let now = now_ms / self.tick_ms;
        if now < self.cursor {
            return;
        }
        // After a long pause each list is visited once, not once for every turn that was missed.
        let last = now.min(self.cursor + self.heads.len() as u64 - 1);
        if self.armed > 0 {
            for tick in self.cursor..=last {
                let head = self.head_of(tick);
                if self.heads[head] != NONE {
                    self.expire_list(head, now, due);
                }
            }
        }
        self.cursor = now + 1;
    }

    /// A time at which [`Self::expire`] should be called: never after the earliest deadline is due,
    /// and before it only when all entities of an earlier list lie whole turns of the wheel away.
    pub fn next_deadline_ms(&self) -> Option<u64> {
        if self.armed == 0 {
            return None;
        }
        let ticks = self.heads.len();
        let start = self.head_of(self.cursor);
        let words = self.occupied.len();
        // The word of the cursor is looked at twice: first from the cursor on, at the end below it.
        for step in 0..=words {
            let word = (start / 64 + step) % words;
            let mut bits = self.occupied[word];
            if step == 0 {
                bits &= u64::MAX << (start % 64);
            }
            if bits != 0 {
                let head = word * 64 + bits.trailing_zeros() as usize;
                let ahead = (head + ticks - start) % ticks;
                return Some((self.cursor + ahead as u64) * self.tick_ms);
            }
        }
        unreachable!("an armed entity occupies a list");
    }

    fn head_of(&self, tick: u64) -> usize {
        tick as usize & (self.heads.len() - 1)
    }

    fn expire_list(&mut self, head: usize, now: u64, due: &mut Vec<u32>) {
        let mut entity = self.heads[head];
        while entity != NONE {
            let Link { next, tick, .. } = self.links[entity as usize];
            // Modulo 2^32: deadlines lie less than 2^31 ticks away in either direction.
            if (tick.wrapping_sub(now as u32) as i32) <= 0 {
                self.unlink(entity);
                due.push(entity);
            }
            entity = next;
        }
    }

    fn link(&mut self, entity: u32, tick: u64) {
        let head = self.head_of(tick);
        let next = std::mem::replace(&mut self.heads[head], entity);
        if next != NONE {
            self.links[next as usize].previous = entity;
        }
        self.links[entity as usize] = Link { next, previous: NONE, tick: tick as u32 };
        self.occupied[head / 64] |= 1 << (head % 64);
        self.armed += 1;
    }

    fn unlink(&mut self, entity: u32) {
        let Link { next, previous, tick } = self.links[entity as usize];
        let head = self.head_of(u64::from(tick));
        if next != NONE {
            self.links[next as usize].previous = previous;
        }
        if previous == NONE {
            self.heads[head] = next;
            if next == NONE {
                self.occupied[head / 64] &= !(1 << (head % 64));
            }
        } else {
            self.links[previous as usize].next = next;
        }
        self.links[entity as usize].previous = UNARMED;
        self.armed -= 1;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn expired(wheel: &mut Wheel, now_ms: u64) -> Vec<u32> {
        let mut due = Vec::new();
        wheel.expire(now_ms, &mut due);
        due.sort_unstable();
        due
    }

    #[test]
    fn nothing_expires_early_and_everything_within_a_tick() {
        let mut wheel = Wheel::new(1_000, 10, 64, 8);
        wheel.set(1, 1_005);
        wheel.set(2, 1_010);
        wheel.set(3, 900);
        assert_eq!(expired(&mut wheel, 1_004), [3]);
        assert_eq!(wheel.next_deadline_ms(), Some(1_010));
        assert_eq!(expired(&mut wheel, 1_009), [0_u32; 0]);
        assert_eq!(expired(&mut wheel, 1_010), [1, 2]);
        assert!(wheel.is_empty());
        assert_eq!(wheel.next_deadline_ms(), None);
    }

    #[test]
    fn a_moved_deadline_counts_once_and_a_cancelled_one_not_at_all() {
        let mut wheel = Wheel::new(0, 1, 64, 8);
        wheel.set(5, 10);
        wheel.set(5, 30);
        wheel.set(6, 10);
        wheel.cancel(6);
        wheel.cancel(7);
        assert_eq!(wheel.len(), 1);
        assert_eq!(expired(&mut wheel, 29), [0_u32; 0]);
        assert_eq!(expired(&mut wheel, 30), [5]);
    }

    #[test]
    fn a_later_deadline_does_not_move_an_earlier_one_however_far_it_is() {
        let mut wheel = Wheel::new(0, 16, 64, 8);
        wheel.set_no_later(1, 160);
        for later_ms in [161, 60_000, 1 << 34, 1 << 36, 3 << 35, u64::MAX >> 1] {
            wheel.set_no_later(1, later_ms);
        }
        wheel.set_no_later(2, 1_000);
        wheel.set_no_later(2, 32);
        wheel.set_no_later(3, u64::MAX >> 1);
        assert_eq!(expired(&mut wheel, 32), [2]);
        assert_eq!(expired(&mut wheel, 160), [1]);
        assert_eq!(expired(&mut wheel, 86_400_000), [0_u32; 0]);
        assert_eq!(wheel.len(), 1);
    }

    #[test]
    fn a_pause_longer_than_the_wheel_misses_nothing() {
        let mut wheel = Wheel::new(0, 1, 64, 8);
        for entity in 0..200 {
            wheel.set(entity, u64::from(entity) * 3);
        }
        assert_eq!(expired(&mut wheel, 10_000).len(), 200);
    }

    /// Random sets, cancels and jumps against an ordered map that cannot be wrong.
    #[test]
    fn the_wheel_agrees_with_an_ordered_map() {
        let mut wheel = Wheel::new(0, 7, 64, 8);
        let mut model: BTreeMap<u32, u64> = BTreeMap::new();
        let (mut now, mut state) = (0_u64, 0x9e37_79b9_7f4a_7c15_u64);
        let mut random = |below: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % below
        };
        for _ in 0..50_000 {
            match random(4) {
                0 | 1 => {
                    let (entity, deadline) = (random(60) as u32, now + random(1_000));
                    wheel.set(entity, deadline);
                    // The first tick not yet expired is the soonest that anything can be due.
                    model.insert(entity, deadline.div_ceil(7).max(wheel.cursor) * 7);
                }
                2 => {
                    let entity = random(60) as u32;
                    wheel.cancel(entity);
                    model.remove(&entity);
                }
                _ => {
                    let pause = if random(50) == 0 { 2_000 } else { 40 };
                    now += random(pause);
                    if let Some(next) = wheel.next_deadline_ms() {
                        let earliest = model.values().copied().min().expect("both are armed or neither");
                        assert!(next <= earliest, "woken at {next}, due at {earliest}");
                    }
                    let due: Vec<u32> = model.iter().filter(|(_, at)| **at <= now).map(|(e, _)| *e).collect();
                    model.retain(|_, at| *at > now);
                    assert_eq!(expired(&mut wheel, now), due);
                }
            }
            assert_eq!(wheel.len(), model.len());
        }
    }
}
