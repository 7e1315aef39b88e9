//! The distinct keys of a batch, so that state is read and written once for each of them.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// Keys in the order in which they were added first.
#[derive(Debug, Default)]
pub(crate) struct DistinctKeys<'k> {
    keys: Vec<&'k [u8]>,
    positions: HashMap<&'k [u8], usize, BuildHasherDefault<KeyHasher>>,
}

impl<'k> DistinctKeys<'k> {
    /// Adds a key, unless it is known. Returns its position.
    pub(crate) fn add(&mut self, key: &'k [u8]) -> usize {
        *self.positions.entry(key).or_insert_with(|| {
            self.keys.push(key);
            self.keys.len() - 1
        })
    }

    /// The keys, by position.
    pub(crate) fn keys(&self) -> &[&'k [u8]] {
        &self.keys
    }
}

/// A fast hash. Keys that collide cost time, which the size of a batch bounds.
#[derive(Debug, Default)]
struct KeyHasher(u64);

impl KeyHasher {
    fn add(&mut self, word: u64) {
        let product = (self.0 ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = product ^ (product >> 32);
    }
}

impl Hasher for KeyHasher {
    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks();
        words.iter().for_each(|word| self.add(u64::from_le_bytes(*word)));
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        self.add(u64::from_le_bytes(last));
    }

    fn write_usize(&mut self, length: usize) {
        self.add(length as u64);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
