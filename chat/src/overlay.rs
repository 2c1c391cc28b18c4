//! Rows that are committed and not yet in the views.
//!
//! Rows gather in the generation that grows. At a freeze that generation ends; it still takes the heads of
//! the conversations that changed in it, some per turn, and then becomes a [`Run`], still readable here,
//! until storage says that its checkpoint is done. Then it is forgotten as a whole.
//!
//! A generation is made of chunks of one size, which are used again: one buffer that doubles would be copied
//! as a whole in the middle of a turn, and fresh pages cost more than all else that is done with a row.

use std::collections::VecDeque;
use std::sync::Arc;

use storage_seam::{Chunk, RowRef, Run, Slot, Space};

const CHUNK_BITS: u32 = 20;
/// Bytes of a chunk. A row that is larger gets one of its own.
const CHUNK_BYTES: usize = 1 << CHUNK_BITS;

/// Where a row's value lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowPlace {
    generation: u32,
    /// The chunk's number in the upper bits, the first byte in it in the lower.
    address: u32,
    bytes: u32,
}

impl RowPlace {
    /// The generation that the row is in.
    pub fn generation(&self) -> u32 {
        self.generation
    }

    fn value_in(self, chunks: &[Chunk]) -> &[u8] {
        let first = self.address as usize & (CHUNK_BYTES - 1);
        &chunks[(self.address >> CHUNK_BITS) as usize].bytes[first..first + self.bytes as usize]
    }
}

/// A generation that has ended and not yet been handed over.
#[derive(Debug)]
struct Closing {
    generation: u32,
    checkpoint: u64,
    chunks: Vec<Chunk>,
    covered: Vec<(Slot, u64)>,
}

#[derive(Debug)]
struct Frozen {
    generation: u32,
    checkpoint: u64,
    chunks: Arc<Vec<Chunk>>,
}

/// All rows of one shard that the views may lack.
#[derive(Debug, Default)]
pub struct Overlay {
    /// Number of the generation that grows.
    generation: u32,
    growing: Vec<Chunk>,
    closing: Option<Closing>,
    frozen: VecDeque<Frozen>,
    /// Empty chunks, no more than the last generation needed.
    spare: Vec<Chunk>,
    /// A row in the making.
    scratch: Vec<u8>,
}

impl Overlay {
    /// Adds a row to the growing generation.
    pub fn push(&mut self, space: Space, key: &[u8], value: &[u8]) -> RowPlace {
        let address = append(&mut self.growing, &mut self.spare, space, key, value);
        RowPlace { generation: self.generation, address, bytes: value.len() as u32 }
    }

    /// Adds a row whose value `write` appends to the generation that closes; returns that generation.
    pub fn push_closing(&mut self, space: Space, key: &[u8], write: impl FnOnce(&mut Vec<u8>)) -> u32 {
        self.scratch.clear();
        write(&mut self.scratch);
        let closing = self.closing.as_mut().expect("a generation closes");
        append(&mut closing.chunks, &mut self.spare, space, key, &self.scratch);
        closing.generation
    }

    /// The value at `place`, unless its checkpoint is done: then it is in the views.
    pub fn get(&self, place: RowPlace) -> Option<&[u8]> {
        if place.generation == self.generation {
            return Some(place.value_in(&self.growing));
        }
        if let Some(closing) = &self.closing
            && closing.generation == place.generation
        {
            return Some(place.value_in(&closing.chunks));
        }
        Some(place.value_in(&self.frozen.iter().find(|frozen| frozen.generation == place.generation)?.chunks))
    }

    /// Whether the row at `place` is still kept here.
    pub fn holds(&self, place: RowPlace) -> bool {
        !self.is_done(place.generation)
    }

    /// Whether the generation of that number has become durable in the views.
    pub fn is_done(&self, generation: u32) -> bool {
        let closing = self.closing.as_ref().map_or(self.generation, |closing| closing.generation);
        generation < self.frozen.front().map_or(closing, |oldest| oldest.generation)
    }

    /// Ends the growing generation. It takes heads until [`Overlay::close`].
    pub fn freeze(&mut self, checkpoint: u64, covered: Vec<(Slot, u64)>) {
        assert!(self.closing.is_none(), "one checkpoint at a time");
        let chunks = std::mem::take(&mut self.growing);
        self.closing = Some(Closing { generation: self.generation, checkpoint, chunks, covered });
        self.generation += 1;
    }

    /// Whether a generation has ended and not yet been handed over.
    pub fn is_closing(&self) -> bool {
        self.closing.is_some()
    }

    /// Hands over the generation that closes, and the number of its checkpoint.
    pub fn close(&mut self) -> (u64, Run) {
        let Closing { generation, checkpoint, chunks, covered } = self.closing.take().expect("a generation closes");
        let chunks = Arc::new(chunks);
        self.frozen.push_back(Frozen { generation, checkpoint, chunks: Arc::clone(&chunks) });
        (checkpoint, Run { chunks, covered })
    }

    /// Forgets what checkpoint `checkpoint` and earlier ones made durable.
    pub fn done(&mut self, checkpoint: u64) {
        while let Some(oldest) = self.frozen.pop_front_if(|oldest| oldest.checkpoint <= checkpoint) {
            self.spare.truncate(oldest.chunks.len());
            // Whoever brought the views forward has let go of it, or it is not worth waiting for.
            let chunks = Arc::try_unwrap(oldest.chunks).unwrap_or_default();
            let room = chunks.len().saturating_sub(self.spare.len());
            let usual = chunks.into_iter().filter(|chunk| chunk.bytes.capacity() == CHUNK_BYTES);
            self.spare.extend(usual.take(room).map(|mut chunk| {
                chunk.bytes.clear();
                chunk.rows.clear();
                chunk
            }));
        }
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        let closing = self.closing.as_ref().map_or(&[][..], |closing| &closing.chunks);
        let frozen = self.frozen.iter().flat_map(|frozen| frozen.chunks.iter());
        self.growing.iter().chain(closing).chain(frozen).map(|chunk| chunk.bytes.len()).sum()
    }
}

/// Adds a row behind the others; returns the address of its value.
fn append(chunks: &mut Vec<Chunk>, spare: &mut Vec<Chunk>, space: Space, key: &[u8], value: &[u8]) -> u32 {
    let bytes = key.len() + value.len();
    if chunks.last().is_none_or(|last| last.bytes.len() + bytes > CHUNK_BYTES) {
        let fresh = || Chunk { bytes: Vec::with_capacity(CHUNK_BYTES.max(bytes)), rows: Vec::new() };
        chunks.push(spare.pop_if(|_| bytes <= CHUNK_BYTES).unwrap_or_else(fresh));
    }
    let number = chunks.len() as u32 - 1;
    assert!(number < 1 << (32 - CHUNK_BITS), "checkpoints come long before four gigabytes");
    let chunk = chunks.last_mut().expect("made if there was none");
    let offset = chunk.bytes.len() as u32;
    chunk.bytes.extend_from_slice(key);
    chunk.bytes.extend_from_slice(value);
    chunk.rows.push(RowRef { space, offset, key_bytes: key.len() as u16, value_bytes: value.len() as u32 });
    // The key is at the end of a chunk only if the value is empty, and then nobody looks.
    number << CHUNK_BITS | (offset + key.len() as u32) & (CHUNK_BYTES as u32 - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_readable_until_their_checkpoint_is_done() {
        let mut overlay = Overlay::default();
        let first = overlay.push(Space::History, b"k", b"one");
        overlay.freeze(1, Vec::new());
        let second = overlay.push(Space::History, b"k", b"two");
        assert_eq!(overlay.push_closing(Space::Heads, b"h", |out| out.extend(b"head")), first.generation());
        assert_eq!((overlay.get(first), overlay.get(second)), (Some(&b"one"[..]), Some(&b"two"[..])));
        let (checkpoint, run) = overlay.close();
        let rows: Vec<_> = run.rows().collect();
        assert_eq!(rows, [(Space::History, &b"k"[..], &b"one"[..]), (Space::Heads, b"h", b"head")]);
        assert_eq!((overlay.get(first), overlay.get(second)), (Some(&b"one"[..]), Some(&b"two"[..])));
        overlay.done(checkpoint);
        assert_eq!((overlay.get(first), overlay.holds(first), overlay.holds(second)), (None, false, true));
    }

    /// Rows of every size, one larger than a chunk among them, are found at their places.
    #[test]
    fn rows_of_every_size_are_found_again() {
        let mut overlay = Overlay::default();
        let sizes = [1, 100_000, 900_000, CHUNK_BYTES, CHUNK_BYTES - 1, 3 * CHUNK_BYTES, 7, 500_000, 500_000, 600_000];
        let value = |nth: usize| vec![nth as u8 + 1; sizes[nth]];
        let places: Vec<_> = (0..sizes.len()).map(|nth| overlay.push(Space::History, b"k", &value(nth))).collect();
        overlay.freeze(1, Vec::new());
        let (_, run) = overlay.close();
        for (nth, ((_, key, row), place)) in run.rows().zip(places).enumerate() {
            assert_eq!(
                (key, row, overlay.get(place)),
                (&b"k"[..], &value(nth)[..], Some(&value(nth)[..])),
                "row {nth}"
            );
        }
        assert_eq!(overlay.bytes(), sizes.iter().sum::<usize>() + sizes.len());
    }

    /// What one generation took serves the next ones; what a large one took does not stay for ever.
    #[test]
    fn chunks_are_used_again_and_not_hoarded() {
        let mut overlay = Overlay::default();
        let mut known = Vec::new();
        for (checkpoint, rows) in [(1, 8), (2, 8), (3, 8), (4, 2), (5, 2)] {
            for _ in 0..rows {
                overlay.push(Space::History, b"k", &vec![1; CHUNK_BYTES - 1]);
            }
            overlay.freeze(checkpoint, Vec::new());
            let (_, run) = overlay.close();
            let addresses: Vec<_> = run.chunks.iter().map(|chunk| chunk.bytes.as_ptr() as usize).collect();
            let fresh = addresses.iter().filter(|address| !known.contains(*address)).count();
            assert_eq!(fresh, if checkpoint == 1 { 8 } else { 0 }, "checkpoint {checkpoint}");
            known.extend(addresses);
            drop(run);
            overlay.done(checkpoint);
            assert_eq!(overlay.spare.len(), rows, "checkpoint {checkpoint}");
        }
        assert_eq!(overlay.bytes(), 0);
    }
}
