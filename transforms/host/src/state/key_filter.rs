//! The keys that a restore has written to the disk: a Bloom filter that grows.
//!
//! Most keys of a changelog occur once. The filter recognises a new key with one or two reads of
//! memory, where the tree has a filter for each of its tables.

use xxhash_rust::xxh3::xxh3_64;

/// Keys of the first part; each part has room for four times as many as the one before.
const FIRST_KEYS: usize = 1 << 13;
/// Bits for each key. A key has its bits in one word: with 16 bits for each, one of 100 new keys
/// looks known.
const BITS_PER_KEY: usize = 16;

#[derive(Debug, Default)]
pub(super) struct KeyFilter {
    parts: Vec<Part>,
}

#[derive(Debug)]
struct Part {
    words: Vec<u64>,
    /// Keys that it has room for.
    room: usize,
}

impl KeyFilter {
    pub(super) fn insert(&mut self, key: &[u8]) {
        if self.may_contain(key) {
            return;
        }
        if self.parts.last().is_none_or(|part| part.room == 0) {
            let keys = FIRST_KEYS << (2 * self.parts.len());
            self.parts.push(Part { words: vec![0; keys * BITS_PER_KEY / 64], room: keys });
        }
        let Some(part) = self.parts.last_mut() else { return };
        let (word, bits) = place(xxh3_64(key), part.words.len());
        part.words[word] |= bits;
        part.room -= 1;
    }

    /// False if the key was not inserted. True may be wrong.
    pub(super) fn may_contain(&self, key: &[u8]) -> bool {
        let hash = xxh3_64(key);
        self.parts.iter().rev().any(|part| {
            let (word, bits) = place(hash, part.words.len());
            part.words[word] & bits == bits
        })
    }

    /// Its memory.
    pub(super) fn bytes(&self) -> usize {
        self.parts.iter().map(|part| part.words.len() * 8).sum()
    }
}

/// The word of a hash, and its bits there. `words` is a power of two.
fn place(hash: u64, words: usize) -> (usize, u64) {
    let bit = |shift: u32| 1 << (hash >> shift & 63);
    let bits = bit(58) | bit(52) | bit(46) | bit(40);
    ((hash as usize) & (words - 1), bits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inserted_keys_are_known_and_few_others() {
        let mut filter = KeyFilter::default();
        let key = |number: u32| format!("key-{number}").into_bytes();
        (0..300_000).for_each(|number| filter.insert(&key(number)));
        assert!((0..300_000).all(|number| filter.may_contain(&key(number))));
        let known = (300_000..400_000).filter(|number| filter.may_contain(&key(*number))).count();
        assert!(known < 4_000, "{known} of 100,000 new keys look known");
        assert!(filter.bytes() <= 300_000 * 5, "{} bytes", filter.bytes());
        assert!(!KeyFilter::default().may_contain(b"key"));
    }
}
