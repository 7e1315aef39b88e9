//! Where the blocks of a table are, and which block may have a key.
//!
//! The index of a table stays in memory, so it is small: 13 bytes for a block, and the filter.
//! Together, two to three bytes for a row of 80 bytes.

use std::cmp::Ordering;
use std::ops::Range;

use super::filter::Filter;

/// The length of a separator that does not fit into its word.
const LONG: u8 = 9;
/// Bytes of a word.
const WORD: usize = 8;

/// Consecutive blocks of a table, and a filter of their keys.
///
/// Each block has a *separator*: a key that is not greater than its keys, and greater than those of
/// the block before.
pub(super) struct Part {
    /// Where the first block starts in the file.
    start: u64,
    /// Where each block ends, from there on.
    ends: Vec<u32>,
    /// The bytes that all separators begin with.
    common: Vec<u8>,
    /// The eight bytes of each separator after these, with zeros behind a shorter one.
    words: Vec<u64>,
    /// How many bytes each separator has after the common ones, or [`LONG`].
    lens: Vec<u8>,
    /// Those of long separators, with the numbers of their blocks.
    long: Vec<(u32, Box<[u8]>)>,
    filter: Filter,
}

/// The blocks of a part that is being written.
#[derive(Default)]
pub(super) struct PartBuilder {
    start: u64,
    ends: Vec<u32>,
    /// The separators, one after the other, and where each ends.
    separators: Vec<u8>,
    separator_ends: Vec<u32>,
}

impl PartBuilder {
    /// A part whose first block starts here.
    pub(super) fn new(start: u64) -> Self {
        Self { start, ..Self::default() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.separator_ends.is_empty()
    }

    /// Bytes of the blocks and separators.
    pub(super) fn bytes(&self) -> usize {
        self.separators.len() + self.ends.last().map_or(0, |end| *end as usize)
    }

    pub(super) fn begin_block(&mut self, separator: &[u8]) {
        self.separators.extend_from_slice(separator);
        self.separator_ends.push(self.separators.len() as u32);
    }

    /// The block ends here in the file.
    pub(super) fn end_block(&mut self, end: u64) {
        self.ends.push((end - self.start) as u32);
    }

    pub(super) fn finish(self, hashes: &[u64]) -> Part {
        let mut start = 0;
        let separators: Vec<&[u8]> = self
            .separator_ends
            .iter()
            .map(|end| {
                let separator = self.separators.get(start..*end as usize).unwrap_or_default();
                start = *end as usize;
                separator
            })
            .collect();
        let (first, last) = match separators.as_slice() {
            [] => Default::default(),
            [first, .., last] => (*first, *last),
            [only] => (*only, *only),
        };
        // They are sorted, so those between begin with the same bytes, too.
        let common = first.iter().zip(last).take_while(|(a, b)| a == b).count();
        let rests = separators.iter().map(|separator| separator.get(common..).unwrap_or_default());
        let is_long = |rest: &[u8]| rest.len() > WORD;
        let long = rests.clone().enumerate().filter(|(_, rest)| is_long(rest));
        Part {
            start: self.start,
            ends: self.ends,
            common: first.get(..common).unwrap_or_default().to_vec(),
            words: rests.clone().map(word).collect(),
            lens: rests.clone().map(|rest| if is_long(rest) { LONG } else { rest.len() as u8 }).collect(),
            long: long.map(|(block, rest)| (block as u32, Box::from(rest))).collect(),
            filter: Filter::of(hashes),
        }
    }
}

impl Part {
    /// Whether the part may have a key with this hash.
    pub(super) fn may_contain(&self, hash: u64) -> bool {
        self.filter.may_contain(hash)
    }

    /// Number of blocks.
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// Where a block is in the file.
    pub(super) fn place(&self, block: usize) -> Option<Range<u64>> {
        let start = block.checked_sub(1).and_then(|before| self.ends.get(before)).map_or(0, |end| u64::from(*end));
        Some(self.start + start..self.start + u64::from(*self.ends.get(block)?))
    }

    /// The end of the last block of at least one from `block` on that end before `limit`.
    pub(super) fn end_of_blocks(&self, block: usize, limit: u64) -> Option<u64> {
        let fitting = self.ends.partition_point(|end| self.start + u64::from(*end) <= limit);
        Some(self.place(fitting.saturating_sub(1).max(block))?.end)
    }

    /// Whether the first separator is not greater than a key.
    pub(super) fn begins_before(&self, key: &[u8]) -> bool {
        let (start, rest) = key.split_at(self.common.len().min(key.len()));
        let first = self.words.first().copied().unwrap_or_default();
        match start.cmp(&self.common).reverse().then_with(|| first.cmp(&word(rest))) {
            Ordering::Less => true,
            Ordering::Greater => false,
            Ordering::Equal => self.is_separator_at_most(0, rest),
        }
    }

    /// The only block that may have a key; `None` if all keys are greater.
    pub(super) fn block_of(&self, key: &[u8]) -> Option<usize> {
        let (start, rest) = key.split_at(self.common.len().min(key.len()));
        let after = match start.cmp(&self.common) {
            Ordering::Less => 0,
            Ordering::Greater => self.words.len(),
            Ordering::Equal => {
                let word = word(rest);
                let lower = self.words.partition_point(|other| *other < word);
                let equal = self.words.get(lower..)?.iter().take_while(|other| **other == word).count();
                // Most words are different. Of equal ones, the rests are compared.
                let (mut from, mut to) = (lower, lower + equal);
                while from < to {
                    let middle = from.midpoint(to);
                    if self.is_separator_at_most(middle, rest) { from = middle + 1 } else { to = middle }
                }
                from
            }
        };
        after.checked_sub(1)
    }

    /// Compares a separator with the rest of a key that has the same word.
    fn is_separator_at_most(&self, block: usize, rest: &[u8]) -> bool {
        match self.lens.get(block) {
            Some(&LONG) => {
                let at = self.long.binary_search_by_key(&block, |(long, _)| *long as usize);
                at.is_ok_and(|at| *self.long[at].1 <= *rest)
            }
            // The shorter one is the other with fewer zeros.
            len => len.is_some_and(|len| usize::from(*len) <= rest.len()),
        }
    }

    /// Its memory.
    pub(super) fn bytes(&self) -> usize {
        let long: usize = self.long.iter().map(|(_, rest)| rest.len() + size_of::<(u32, Box<[u8]>)>()).sum();
        13 * self.ends.len() + self.common.len() + long + self.filter.bytes()
    }

    /// Appends the part as it is in the file.
    pub(super) fn write_to(&self, out: &mut Vec<u8>) {
        out.extend(self.start.to_le_bytes());
        for len in [self.common.len(), self.ends.len(), self.long.len(), self.filter.bytes()] {
            out.extend((len as u32).to_le_bytes());
        }
        out.extend(&self.common);
        out.extend(self.ends.iter().flat_map(|end| end.to_le_bytes()));
        out.extend(self.words.iter().flat_map(|word| word.to_le_bytes()));
        out.extend(&self.lens);
        for (block, rest) in &self.long {
            out.extend(block.to_le_bytes());
            out.extend((rest.len() as u32).to_le_bytes());
            out.extend(&**rest);
        }
        self.filter.write_to(out);
    }

    pub(super) fn read_from(index: &mut Reader<'_>) -> Option<Self> {
        let start = index.u64()?;
        let mut len = || Some(index.u32()? as usize);
        let (common, blocks, long, filter) = (len()?, len()?, len()?, len()?);
        let common = index.bytes(common)?.to_vec();
        let ends = index.bytes(blocks.checked_mul(4)?)?.as_chunks().0;
        let words = index.bytes(blocks.checked_mul(8)?)?.as_chunks().0;
        let lens = index.bytes(blocks)?.to_vec();
        let mut long_one = || {
            let (block, len) = (index.u32()?, index.u32()?);
            Some((block, Box::from(index.bytes(len as usize)?)))
        };
        let long = (0..long).map(|_| long_one()).collect::<Option<_>>()?;
        let ends: Vec<u32> = ends.iter().map(|end| u32::from_le_bytes(*end)).collect();
        let words = words.iter().map(|word| u64::from_le_bytes(*word)).collect();
        let filter = Filter::read_from(index.bytes(filter)?);
        ends.is_sorted().then_some(Self { start, ends, common, words, lens, long, filter })
    }
}

/// The first eight bytes, as a number that has their order.
fn word(rest: &[u8]) -> u64 {
    if let Some(word) = rest.first_chunk() {
        return u64::from_be_bytes(*word);
    }
    let mut word = [0; WORD];
    word[..rest.len()].copy_from_slice(rest);
    u64::from_be_bytes(word)
}

/// Reads numbers from the front of bytes.
pub(super) struct Reader<'b>(pub(super) &'b [u8]);

impl<'b> Reader<'b> {
    pub(super) fn bytes(&mut self, len: usize) -> Option<&'b [u8]> {
        let (bytes, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(bytes)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(*self.bytes(4)?.first_chunk()?))
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(*self.bytes(8)?.first_chunk()?))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Separators with zeros, equal words and more bytes than a word has.
        #[test]
        fn the_block_of_a_key_is_that_of_the_last_separator_before_it(
            separators in proptest::collection::btree_set(proptest::collection::vec(0..2u8, 0..11), 1..40),
            common in proptest::collection::vec(0..2u8, 0..3),
            keys in proptest::collection::vec(proptest::collection::vec(0..2u8, 0..13), 1..40),
        ) {
            let separators: Vec<Vec<u8>> = separators.iter().map(|rest| [&*common, rest].concat()).collect();
            let mut builder = PartBuilder::new(1000);
            for (block, separator) in (1u64..).zip(&separators) {
                builder.begin_block(separator);
                builder.end_block(1000 + 10 * block);
            }
            let mut stored = Vec::new();
            builder.finish(&[1, 2]).write_to(&mut stored);
            let part = Part::read_from(&mut Reader(&stored)).unwrap();
            for key in keys.iter().chain(&separators) {
                let expected = separators.iter().rposition(|separator| separator <= key);
                prop_assert_eq!(part.block_of(key), expected);
                prop_assert_eq!(part.begins_before(key), expected.is_some());
            }
            let last = separators.len() - 1;
            prop_assert_eq!(part.place(last), Some(1000 + 10 * last as u64..1010 + 10 * last as u64));
            prop_assert_eq!(part.end_of_blocks(0, 1000), Some(1010));
            prop_assert_eq!(part.end_of_blocks(0, u64::MAX), Some(1010 + 10 * last as u64));
            for cut in 0..stored.len() {
                prop_assert!(Part::read_from(&mut Reader(&stored[..cut])).is_none());
            }
        }
    }
}
