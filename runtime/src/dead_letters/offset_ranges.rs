//! [`OffsetRanges`]: the offsets of a partition that were handled.

use serde::{Deserialize, Serialize};

/// Ranges of offsets, each from its first offset to the one after its last: sorted, and without
/// overlaps. The JSON is a list of pairs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct OffsetRanges(Vec<(i64, i64)>);

impl OffsetRanges {
    /// Whether an offset is in a range.
    pub fn contains(&self, offset: i64) -> bool {
        let after = self.0.partition_point(|(from, _)| *from <= offset);
        after > 0 && offset < self.0[after - 1].1
    }

    /// The first offset, and the one after the last; `None` if there are none.
    pub fn ends(&self) -> Option<(i64, i64)> {
        Some((self.0.first()?.0, self.0.last()?.1))
    }

    /// Those from `from` to before `to`.
    pub fn within(&self, from: i64, to: i64) -> Self {
        let cut = self.0.iter().map(|(first, end)| (*first.max(&from), *end.min(&to)));
        Self(cut.filter(|(first, end)| first < end).collect())
    }

    /// Number of offsets.
    pub fn count(&self) -> u64 {
        self.0.iter().map(|(from, to)| from.abs_diff(*to)).sum()
    }

    /// Adds the offsets from `from` to before `to`.
    pub fn insert(&mut self, from: i64, to: i64) {
        if from >= to {
            return;
        }
        let first = self.0.partition_point(|(_, end)| *end < from);
        let last = self.0.partition_point(|(begin, _)| *begin <= to);
        let (mut from, mut to) = (from, to);
        if first < last {
            from = from.min(self.0[first].0);
            to = to.max(self.0[last - 1].1);
        }
        self.0.splice(first..last, [(from, to)]);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn adjacent_ranges_are_one() {
        let mut ranges = OffsetRanges::default();
        ranges.insert(5, 6);
        ranges.insert(7, 8);
        ranges.insert(6, 7);
        ranges.insert(9, 9);
        assert_eq!(ranges, OffsetRanges(vec![(5, 8)]));
        assert_eq!(serde_json::to_string(&ranges).unwrap(), "[[5,8]]");
        ranges.insert(9, 10);
        assert_eq!((ranges.ends(), ranges.count()), (Some((5, 10)), 4));
        assert_eq!(ranges.within(6, 20), OffsetRanges(vec![(6, 8), (9, 10)]));
        assert_eq!(ranges.within(8, 9), OffsetRanges::default());
    }

    proptest! {
        #[test]
        fn ranges_hold_exactly_what_was_added(added in prop::collection::vec((0_i64..40, 0_i64..6), 0..20)) {
            let mut ranges = OffsetRanges::default();
            let mut expected = std::collections::BTreeSet::new();
            for (from, len) in added {
                ranges.insert(from, from + len);
                expected.extend(from..from + len);
            }
            for offset in 0..50 {
                prop_assert_eq!(ranges.contains(offset), expected.contains(&offset));
            }
            for pair in ranges.0.windows(2) {
                prop_assert!(pair[0].1 < pair[1].0);
            }
        }
    }
}
