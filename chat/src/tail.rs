//! What lately concerned a user: the events themselves, from which a reconnect is answered without a read, and, for
//! longer, which conversations changed.
//!
//! ```text
//! dropped | counter letter | counter letter | ... | room
//!         start                                   end
//! ```
//!
//! One buffer, so that an event costs no allocation. It grows while the tails of all users together may; a full
//! one loses its oldest letters to the newest.

use wire::ids::ConversationId;
use wire::mail::{self, Letter};

use crate::limits::Limits;

/// Room of a buffer that begins: for an event or two.
const BYTES_MIN: usize = 512;
/// Bytes of a change counter, in front of its letter.
const COUNTER_BYTES: usize = size_of::<u64>();

/// What a user with recent events has; a user without has none of it.
#[derive(Debug)]
pub(crate) struct Tail {
    letters: Vec<u8>,
    /// What is in front of it has been dropped.
    start: usize,
    count: u32,
    /// All changes above it are in `letters`.
    pub floor: u64,
    /// Conversations by the counter of their last change.
    pub changed: Vec<(ConversationId, u64)>,
    /// All changes above it are in `changed`.
    pub changed_floor: u64,
}

impl Tail {
    /// A tail of which nothing is known at or below `floor`.
    pub(crate) fn new(floor: u64) -> Self {
        Self { letters: Vec::new(), start: 0, count: 0, floor, changed: Vec::new(), changed_floor: floor }
    }

    /// Bytes of memory held for letters.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.letters.capacity()
    }

    /// The letters kept, the oldest first, with their counters.
    pub(crate) fn letters(&self) -> impl Iterator<Item = (u64, Letter<'_>)> {
        let mut rest = &self.letters[self.start..];
        std::iter::from_fn(move || {
            let (counter, behind) = rest.split_first_chunk()?;
            let (letter, bytes) = mail::read(behind).expect("written by this shard");
            rest = &behind[bytes..];
            Some((u64::from_le_bytes(*counter), letter))
        })
    }

    /// Notes that a conversation changed.
    pub(crate) fn note(&mut self, counter: u64, conversation: ConversationId, changed_max: usize) {
        match self.changed.iter_mut().find(|(known, _)| *known == conversation) {
            Some(known) => known.1 = counter,
            None => self.changed.push((conversation, counter)),
        }
        if self.changed.len() > changed_max {
            let oldest = (0..self.changed.len()).min_by_key(|&at| self.changed[at].1).expect("not empty");
            self.changed_floor = self.changed.swap_remove(oldest).1;
        }
    }

    /// Drops what is more than a tail may hold with a further letter of so many bytes. Says by how much the buffer
    /// would have to grow to lose no more than that.
    pub(crate) fn make_way(&mut self, letter_bytes: usize, limits: &Limits) -> usize {
        let wanted = COUNTER_BYTES + letter_bytes;
        let bytes_max = limits.tail_bytes_max as usize;
        while self.count > 0 && (self.count >= limits.tail_letters_max || self.live_bytes() + wanted > bytes_max) {
            self.drop_oldest();
        }
        if self.letters.capacity() > 2 * bytes_max {
            // One long message must not make a short tail large for ever.
            self.close_up();
            self.letters.shrink_to(2 * bytes_max);
        }
        if self.fits(wanted) || self.fits_closed_up(wanted) {
            return 0;
        }
        let capacity = self.letters.capacity();
        (2 * capacity).max(self.live_bytes() + wanted).max(BYTES_MIN) - capacity
    }

    /// Keeps a letter, in a buffer that grows by at most `growth` bytes: if those are fewer than
    /// [`Self::make_way`] asked for, older letters go.
    pub(crate) fn push(&mut self, counter: u64, letter: &Letter<'_>, growth: usize) {
        let wanted = COUNTER_BYTES + mail::letter_bytes(letter.payload.len());
        if !self.fits(wanted) {
            if !self.fits_closed_up(wanted) && self.live_bytes() + wanted <= self.letters.capacity() + growth {
                self.close_up();
                self.letters.reserve_exact(self.letters.capacity() + growth - self.letters.len());
            }
            while !self.fits(wanted) && !self.fits_closed_up(wanted) && self.count > 0 {
                self.drop_oldest();
            }
            self.close_up();
        }
        if !self.fits(wanted) {
            // Nothing is left to be dropped: who asks for what came before it is told what changed.
            self.floor = counter;
            return;
        }
        self.letters.extend_from_slice(&counter.to_le_bytes());
        mail::write(&mut self.letters, letter);
        self.count += 1;
    }

    fn live_bytes(&self) -> usize {
        self.letters.len() - self.start
    }

    fn fits(&self, wanted: usize) -> bool {
        self.letters.len() + wanted <= self.letters.capacity()
    }

    /// Whether closing up makes enough room: a quarter of the buffer, or it would have to be done for every letter.
    fn fits_closed_up(&self, wanted: usize) -> bool {
        let capacity = self.letters.capacity();
        let live_max = if self.count == 0 { capacity } else { capacity / 4 * 3 };
        self.live_bytes() + wanted <= live_max
    }

    /// Moves what is kept to the front.
    fn close_up(&mut self) {
        self.letters.drain(..self.start);
        self.start = 0;
    }

    fn drop_oldest(&mut self) {
        let (counter, behind) = self.letters[self.start..].split_first_chunk().expect("a letter is kept");
        self.floor = u64::from_le_bytes(*counter);
        self.start += COUNTER_BYTES + mail::front_bytes(behind).expect("written by this shard");
        self.count -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::ids::{ChangeNumber, UserId};
    use wire::mail::{Address, Mail};

    const USER: UserId = UserId(1);

    fn letter(payload: &[u8]) -> Letter<'_> {
        let conversation = ConversationId::direct(USER, UserId(2));
        let mail =
            Mail::Tick { user: USER, conversation, delivered_all: 0, read_all: 0, change: ChangeNumber::default() };
        Letter { to: Address::User(USER), mail, payload }
    }

    /// Pushes letters 1 to `count`, each of which may grow the buffer by what `room` leaves of it.
    fn filled(count: u64, payload_bytes: usize, room: usize, limits: &Limits) -> Tail {
        let payload = vec![b'x'; payload_bytes];
        let mut tail = Tail::new(0);
        for counter in 1..=count {
            let letter = letter(&payload);
            let growth = tail.make_way(mail::letter_bytes(payload_bytes), limits);
            let left = room.saturating_sub(tail.memory_bytes());
            tail.push(counter, &letter, growth.min(left));
            assert!(tail.memory_bytes() <= room, "{} bytes", tail.memory_bytes());
            let kept: Vec<_> = tail.letters().map(|(counter, letter)| (counter, letter.payload.len())).collect();
            let expected: Vec<_> = (tail.floor + 1..=counter).map(|counter| (counter, payload_bytes)).collect();
            assert_eq!(kept, expected, "nothing above the floor is missing");
        }
        tail
    }

    #[test]
    fn all_above_the_floor_is_kept_whatever_the_limits() {
        for (letters, bytes) in [(1, 1 << 20), (3, 1 << 20), (64, 1_000), (1 << 20, 300), (1 << 20, 10)] {
            for payload_bytes in [0, 1, 100, 900, 5_000] {
                let limits = Limits { tail_letters_max: letters, tail_bytes_max: bytes, ..Limits::default() };
                for room in [0, 100, 600, 1_200, 10_000, usize::MAX] {
                    filled(200, payload_bytes, room, &limits);
                }
            }
        }
    }

    #[test]
    fn with_room_a_tail_holds_as_many_letters_as_it_may() {
        let limits = Limits { tail_letters_max: 64, tail_bytes_max: 1 << 20, ..Limits::default() };
        let tail = filled(500, 100, usize::MAX, &limits);
        assert_eq!((tail.letters().count(), tail.floor), (64, 436));
    }

    #[test]
    fn a_full_tail_keeps_the_newest_and_does_not_grow() {
        let limits = Limits { tail_letters_max: 64, tail_bytes_max: 1 << 20, ..Limits::default() };
        let tail = filled(500, 100, 4_000, &limits);
        assert!(tail.letters().count() >= 10, "{} letters", tail.letters().count());
    }

    #[test]
    fn one_long_message_does_not_make_a_tail_large_for_ever() {
        let limits = Limits { tail_letters_max: 64, tail_bytes_max: 100_000, ..Limits::default() };
        let mut tail = filled(1, 90_000, usize::MAX, &limits);
        let limits = Limits { tail_bytes_max: 1_000, ..limits };
        let growth = tail.make_way(mail::letter_bytes(1), &limits);
        tail.push(2, &letter(b"x"), growth);
        assert!(tail.memory_bytes() <= 2_000);
        assert_eq!(tail.letters().count(), 1);
    }
}
