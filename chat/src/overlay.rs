//! Rows that are committed and not yet in the views.
//!
//! Rows gather in one arena per checkpoint. At a freeze the arena becomes a [`Run`], still readable
//! here, until storage says that its checkpoint is done; then it is forgotten as a whole.

use std::collections::VecDeque;
use std::sync::Arc;

use storage_seam::{RowRef, Run, Slot, Space};

/// Where a row's value lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowPlace {
    generation: u32,
    offset: u32,
    bytes: u32,
}

#[derive(Debug)]
struct Frozen {
    generation: u32,
    checkpoint: u64,
    arena: Arc<Vec<u8>>,
}

/// All rows of one shard that the views may lack.
#[derive(Debug, Default)]
pub struct Overlay {
    /// Number of the generation that grows.
    generation: u32,
    arena: Vec<u8>,
    rows: Vec<RowRef>,
    frozen: VecDeque<Frozen>,
}

impl Overlay {
    /// Adds a row to the growing generation.
    pub fn push(&mut self, space: Space, key: &[u8], value: &[u8]) -> RowPlace {
        let offset = self.arena.len();
        self.arena.extend_from_slice(key);
        self.arena.extend_from_slice(value);
        self.add_ref(space, offset, key.len(), value.len())
    }

    /// Adds a row whose value `write` appends.
    pub fn push_with(&mut self, space: Space, key: &[u8], write: impl FnOnce(&mut Vec<u8>)) -> RowPlace {
        let offset = self.arena.len();
        self.arena.extend_from_slice(key);
        write(&mut self.arena);
        let value_bytes = self.arena.len() - offset - key.len();
        self.add_ref(space, offset, key.len(), value_bytes)
    }

    fn add_ref(&mut self, space: Space, offset: usize, key_bytes: usize, value_bytes: usize) -> RowPlace {
        let offset = u32::try_from(offset).expect("checkpoints come long before four gigabytes");
        self.rows.push(RowRef { space, offset, key_bytes: key_bytes as u16, value_bytes: value_bytes as u32 });
        RowPlace { generation: self.generation, offset: offset + key_bytes as u32, bytes: value_bytes as u32 }
    }

    /// The value at `place`, unless its checkpoint is done: then it is in the views.
    pub fn get(&self, place: RowPlace) -> Option<&[u8]> {
        let arena = if place.generation == self.generation {
            &self.arena
        } else {
            &self.frozen.iter().find(|frozen| frozen.generation == place.generation)?.arena
        };
        Some(&arena[place.offset as usize..(place.offset + place.bytes) as usize])
    }

    /// Whether the row at `place` is still kept here.
    pub fn holds(&self, place: RowPlace) -> bool {
        place.generation >= self.frozen.front().map_or(self.generation, |oldest| oldest.generation)
    }

    /// Number of the generation that grows: what is written now is frozen with it.
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// Whether the generation of that number has become durable in the views.
    pub fn is_done(&self, generation: u32) -> bool {
        !self.holds(RowPlace { generation, offset: 0, bytes: 0 })
    }

    /// Ends the growing generation and hands it over.
    pub fn freeze(&mut self, checkpoint: u64, covered: Vec<(Slot, u64)>) -> Run {
        let arena = Arc::new(std::mem::take(&mut self.arena));
        self.frozen.push_back(Frozen { generation: self.generation, checkpoint, arena: Arc::clone(&arena) });
        self.generation += 1;
        Run { arena, rows: std::mem::take(&mut self.rows), covered }
    }

    /// Forgets what checkpoint `checkpoint` and earlier ones made durable.
    pub fn done(&mut self, checkpoint: u64) {
        while self.frozen.front().is_some_and(|oldest| oldest.checkpoint <= checkpoint) {
            self.frozen.pop_front();
        }
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.arena.len() + self.frozen.iter().map(|frozen| frozen.arena.len()).sum::<usize>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_readable_until_their_checkpoint_is_done() {
        let mut overlay = Overlay::default();
        let first = overlay.push(Space::History, b"k", b"one");
        let run = overlay.freeze(1, Vec::new());
        let second = overlay.push(Space::History, b"k", b"two");
        assert_eq!(run.get(run.rows[0]), (&b"k"[..], &b"one"[..]));
        assert_eq!((overlay.get(first), overlay.get(second)), (Some(&b"one"[..]), Some(&b"two"[..])));
        overlay.done(1);
        assert_eq!((overlay.get(first), overlay.holds(first), overlay.holds(second)), (None, false, true));
    }
}
