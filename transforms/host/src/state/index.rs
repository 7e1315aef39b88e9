//! Finds the slots of keys by their hashes.
//!
//! The index has eight bytes for each bucket and no keys, so that a lookup reads one line of memory
//! here and one in the slot. A map with keys would read at least one more, and in a large state
//! each of them is a miss of the processor's cache.

use super::slots::SlotId;

/// The slot of a bucket without one.
const VACANT: SlotId = SlotId::MAX;
const MIN_BUCKETS: usize = 16;

/// An open-addressing table with linear probing. The caller compares keys.
#[derive(Debug, Default)]
pub(super) struct SlotIndex {
    /// None, or a power of two, of which at least three eighths are vacant.
    buckets: Vec<Bucket>,
    len: usize,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    hash: u32,
    slot: SlotId,
}

impl SlotIndex {
    /// Number of slots.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The slots, in no order.
    pub(super) fn slots(&self) -> impl Iterator<Item = SlotId> {
        self.buckets.iter().map(|bucket| bucket.slot).filter(|slot| *slot != VACANT)
    }

    /// The first slot with this hash that `is_wanted` accepts.
    pub(super) fn find(&self, hash: u32, mut is_wanted: impl FnMut(SlotId) -> bool) -> Option<SlotId> {
        let mask = self.buckets.len().wrapping_sub(1);
        let mut at = hash as usize & mask;
        loop {
            let bucket = self.buckets.get(at)?;
            if bucket.slot == VACANT {
                return None;
            }
            if bucket.hash == hash && is_wanted(bucket.slot) {
                return Some(bucket.slot);
            }
            at = (at + 1) & mask;
        }
    }

    /// Reads the bucket at which [`SlotIndex::find`] starts.
    pub(super) fn touch(&self, hash: u32) -> u32 {
        self.buckets.get(hash as usize & self.buckets.len().wrapping_sub(1)).map_or(0, |bucket| bucket.hash)
    }

    /// Adds a slot that the index does not have.
    pub(super) fn insert(&mut self, hash: u32, slot: SlotId) {
        if (self.len + 1) * 8 > self.buckets.len() * 5 {
            self.grow();
        }
        self.len += 1;
        self.place(Bucket { hash, slot });
    }

    /// Removes a slot. The buckets after it move back, so that no search ends too early.
    pub(super) fn remove(&mut self, hash: u32, slot: SlotId) {
        let mask = self.buckets.len().wrapping_sub(1);
        let mut hole = hash as usize & mask;
        loop {
            match self.buckets.get(hole) {
                Some(bucket) if bucket.slot == slot => break,
                Some(bucket) if bucket.slot != VACANT => hole = (hole + 1) & mask,
                _ => return,
            }
        }
        self.len -= 1;
        let mut at = (hole + 1) & mask;
        while self.buckets[at].slot != VACANT {
            let wanted = self.buckets[at].hash as usize & mask;
            // How far its search has gone, and how far it would go to the hole.
            if at.wrapping_sub(wanted) & mask >= at.wrapping_sub(hole) & mask {
                self.buckets[hole] = self.buckets[at];
                hole = at;
            }
            at = (at + 1) & mask;
        }
        self.buckets[hole].slot = VACANT;
    }

    fn grow(&mut self) {
        let buckets = (self.buckets.len() * 2).max(MIN_BUCKETS);
        let before = std::mem::replace(&mut self.buckets, vec![Bucket { hash: 0, slot: VACANT }; buckets]);
        before.into_iter().filter(|bucket| bucket.slot != VACANT).for_each(|bucket| self.place(bucket));
    }

    /// Stores a bucket in the first vacant place of its search.
    fn place(&mut self, bucket: Bucket) {
        let mask = self.buckets.len() - 1;
        let mut at = bucket.hash as usize & mask;
        while self.buckets[at].slot != VACANT {
            at = (at + 1) & mask;
        }
        self.buckets[at] = bucket;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Few hashes, so that many slots have the same or neighbouring buckets.
        #[test]
        fn index_agrees_with_a_map(steps in proptest::collection::vec((0..90u32, 0..12u32, any::<bool>()), 0..300)) {
            let mut index = SlotIndex::default();
            let mut model = BTreeMap::new();
            for (slot, hash, inserts) in steps {
                let hash = if hash > 6 { u32::MAX - hash } else { hash };
                match model.get(&slot) {
                    Some(known) => {
                        index.remove(*known, slot);
                        model.remove(&slot);
                    }
                    None if inserts => {
                        index.insert(hash, slot);
                        model.insert(slot, hash);
                    }
                    None => index.remove(hash, slot),
                }
                prop_assert_eq!(index.len(), model.len());
                let mut slots: Vec<SlotId> = index.slots().collect();
                slots.sort_unstable();
                prop_assert_eq!(slots, model.keys().copied().collect::<Vec<_>>());
                for (slot, hash) in &model {
                    prop_assert_eq!(index.find(*hash, |found| found == *slot), Some(*slot));
                    prop_assert_eq!(index.find(hash ^ 0x100, |found| found == *slot), None);
                }
            }
        }
    }
}
