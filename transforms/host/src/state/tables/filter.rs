//! Which keys a part of a table may have: a Bloom filter whose bits of a key are in one line of the
//! processor's cache (the split block filter of Parquet).

/// Bits for each key. With these, about 6 of 1,000 absent keys look present.
const BITS_PER_KEY: usize = 12;
const WORDS: usize = 8;
/// Bytes of a line.
const LINE_BYTES: usize = 4 * WORDS;
/// Odd factors, one for each word.
const SALTS: [u32; WORDS] =
    [0x47b6_137b, 0x4497_4d91, 0x8824_ad5b, 0xa2b7_289d, 0x7054_95c7, 0x2df1_424b, 0x9efc_4947, 0x5c6b_fb31];

#[derive(Clone, Copy, Default)]
#[repr(align(32))]
struct Line([u32; WORDS]);

/// A filter of hashes.
#[derive(Default)]
pub(super) struct Filter {
    lines: Vec<Line>,
}

impl Filter {
    pub(super) fn of(hashes: &[u64]) -> Self {
        let lines = (hashes.len() * BITS_PER_KEY).div_ceil(8 * LINE_BYTES);
        let mut lines = vec![Line::default(); lines];
        for hash in hashes {
            let place = place(*hash, lines.len());
            if let Some(Line(words)) = lines.get_mut(place) {
                words.iter_mut().zip(bits(*hash)).for_each(|(word, bit)| *word |= bit);
            }
        }
        Self { lines }
    }

    /// False if the hash is not among those of the filter. True may be wrong.
    pub(super) fn may_contain(&self, hash: u64) -> bool {
        let Some(Line(words)) = self.lines.get(place(hash, self.lines.len())) else { return false };
        let absent = words.iter().zip(bits(hash)).fold(0, |absent, (word, bit)| absent | (!word & bit));
        absent == 0
    }

    /// Its memory, and its size in a file.
    pub(super) fn bytes(&self) -> usize {
        self.lines.len() * LINE_BYTES
    }

    pub(super) fn write_to(&self, out: &mut Vec<u8>) {
        out.extend(self.lines.iter().flat_map(|Line(words)| words).flat_map(|word| word.to_le_bytes()));
    }

    pub(super) fn read_from(bytes: &[u8]) -> Self {
        let line = |bytes: &[u8; LINE_BYTES]| {
            let words = bytes.as_chunks::<4>().0;
            Line(std::array::from_fn(|word| words.get(word).map_or(0, |bytes| u32::from_le_bytes(*bytes))))
        };
        Self { lines: bytes.as_chunks::<LINE_BYTES>().0.iter().map(line).collect() }
    }
}

/// The line of a hash.
fn place(hash: u64, lines: usize) -> usize {
    (((hash >> 32) * lines as u64) >> 32) as usize
}

/// The bit of a hash in each word of its line.
fn bits(hash: u64) -> [u32; WORDS] {
    SALTS.map(|salt| 1 << ((hash as u32).wrapping_mul(salt) >> 27))
}

#[cfg(test)]
mod tests {
    use xxhash_rust::xxh3::xxh3_64;

    use super::*;

    #[test]
    fn a_filter_knows_its_keys_and_few_others_also_when_it_was_stored() {
        let hash = |number: u32| xxh3_64(&number.to_le_bytes());
        let hashes: Vec<u64> = (0..50_000).map(hash).collect();
        let mut stored = Vec::new();
        Filter::of(&hashes).write_to(&mut stored);
        let filter = Filter::read_from(&stored);
        assert!(hashes.iter().all(|hash| filter.may_contain(*hash)));
        let wrong = (50_000..150_000).filter(|number| filter.may_contain(hash(*number))).count();
        assert!(wrong < 1_000, "{wrong} of 100,000 other keys look present");
        assert_eq!((filter.bytes(), stored.len()), (stored.len(), 75_008));
        assert!(!Filter::of(&[]).may_contain(hash(1)));
    }
}
