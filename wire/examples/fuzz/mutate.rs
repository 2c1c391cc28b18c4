//! Randomness from a seed, and what it does to an input.

/// SplitMix64.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `end`; 0 if that is 0.
    pub fn below(&mut self, end: usize) -> usize {
        if end == 0 { 0 } else { (self.next() % end as u64) as usize }
    }

    pub fn pick<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len())]
    }

    /// Ends of pieces that `bytes` bytes are cut into: often few, sometimes each byte.
    pub fn cuts(&mut self, bytes: usize) -> Vec<usize> {
        if self.below(8) == 0 {
            return (1..=bytes).collect();
        }
        let mut cuts: Vec<usize> = (0..self.below(6)).map(|_| self.below(bytes + 1)).collect();
        cuts.push(bytes);
        cuts.sort_unstable();
        cuts
    }
}

const INTERESTING: [u8; 16] = [0, 1, 9, 10, 13, 32, 34, 58, 92, 0x7d, 0x7e, 0x7f, 0x80, 0xc3, 0xed, 0xff];

/// Changes `input` in one way.
pub fn mutate(input: &mut Vec<u8>, corpus: &[Vec<u8>], dictionary: &[Vec<u8>], rng: &mut Rng) {
    let at = rng.below(input.len() + 1);
    let to = at + rng.below((input.len() - at).min(32) + 1);
    match rng.below(10) {
        0 if at < input.len() => input[at] ^= 1 << rng.below(8),
        1 if at < input.len() => input[at] = *rng.pick(&INTERESTING),
        2 if at < input.len() => input[at] = input[at].wrapping_add(if rng.below(2) == 0 { 1 } else { 255 }),
        3 => drop(input.drain(at..to)),
        4 => {
            let again = input[at..to].to_vec();
            input.splice(at..at, again);
        }
        5 => {
            let other = rng.pick(corpus);
            let from = rng.below(other.len() + 1);
            input.truncate(at);
            input.extend_from_slice(&other[from..]);
        }
        6 => input.truncate(at),
        7 => input.insert(at, *rng.pick(&INTERESTING)),
        8 => {
            let word = rng.pick(dictionary);
            input.splice(at..to, word.iter().copied());
        }
        _ => {
            let word = rng.pick(dictionary);
            input.splice(at..at, word.iter().copied());
        }
    }
}
