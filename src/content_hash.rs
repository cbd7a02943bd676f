//! A 64-bit hash that recognizes equal content: data sets and weights of a run that is resumed.
//!
//! It reads about as fast as memory delivers (four independent lanes of 64-bit words) and is the same on every machine.
//! It protects against mistakes, not against forgery.

const LANES: usize = 4;
const BLOCK: usize = 8 * LANES;
/// Odd constants with well-spread bits: the fractional digits of the golden ratio, and of √2, √3 and √5.
const FACTORS: [u64; LANES] =
    [0x9e37_79b9_7f4a_7c15, 0x6a09_e667_f3bc_c909, 0xbb67_ae85_84ca_a73b, 0x3c6e_f372_fe94_f82b];

/// The state of a hash over bytes that arrive in pieces. The pieces' sizes do not matter.
pub(crate) struct ContentHash {
    lanes: [u64; LANES],
    pending: Vec<u8>,
    length: u64,
}

impl ContentHash {
    pub(crate) fn new() -> Self {
        Self { lanes: FACTORS, pending: Vec::with_capacity(BLOCK), length: 0 }
    }

    /// Adds bytes.
    pub(crate) fn add(&mut self, mut bytes: &[u8]) {
        self.length += bytes.len() as u64;
        if !self.pending.is_empty() {
            let taken = bytes.len().min(BLOCK - self.pending.len());
            self.pending.extend_from_slice(&bytes[..taken]);
            bytes = &bytes[taken..];
            if self.pending.len() < BLOCK {
                return;
            }
            let block = std::mem::take(&mut self.pending);
            self.mix(&block);
        }
        let whole = bytes.len() - bytes.len() % BLOCK;
        self.mix(&bytes[..whole]);
        self.pending.extend_from_slice(&bytes[whole..]);
    }

    /// Adds numbers.
    pub(crate) fn add_words(&mut self, words: &[u32]) {
        for word in words {
            self.add(&word.to_le_bytes());
        }
    }

    /// Returns the hash as 16 hexadecimal digits.
    pub(crate) fn finish(mut self) -> String {
        if !self.pending.is_empty() {
            let mut block = std::mem::take(&mut self.pending);
            block.resize(BLOCK, 0);
            self.mix(&block);
        }
        let mut hash = self.length;
        for lane in self.lanes {
            hash = (hash ^ lane).wrapping_mul(FACTORS[0]);
            hash ^= hash >> 29;
        }
        format!("{hash:016x}")
    }

    /// Mixes whole blocks in.
    fn mix(&mut self, blocks: &[u8]) {
        for block in blocks.chunks_exact(BLOCK) {
            for (lane, word) in block.chunks_exact(8).enumerate() {
                let word = u64::from_le_bytes([
                    word[0], word[1], word[2], word[3], word[4], word[5], word[6], word[7],
                ]);
                let mixed = (self.lanes[lane] ^ word).wrapping_mul(FACTORS[lane]);
                self.lanes[lane] = mixed ^ mixed >> 32;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(pieces: &[&[u8]]) -> String {
        let mut hash = ContentHash::new();
        for piece in pieces {
            hash.add(piece);
        }
        hash.finish()
    }

    #[test]
    fn pieces_do_not_matter_but_every_byte_does() {
        let bytes: Vec<u8> = (0..200).map(|i| (i * 7 % 251) as u8).collect();
        let whole = hash(&[&bytes]);
        for cut in [1, 31, 32, 33, 100, 199] {
            assert_eq!(hash(&[&bytes[..cut], &bytes[cut..]]), whole, "cut at {cut}");
        }
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert_ne!(hash(&[&changed]), whole, "byte {at}");
        }
        assert_ne!(hash(&[&bytes, &[0]]), whole, "a trailing zero counts");
        assert_ne!(hash(&[]), hash(&[&[0]]));
    }
}
