//! Summaries of many values in little space. They can be merged, and their result does not depend
//! on the order of the values.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::number::Decimal;

/// Distinct values up to this number are counted exactly.
const MAX_EXACT: usize = 256;
/// The registers of the estimate: two to the power of this. The standard error is 1.6 %.
const PRECISION: u32 = 12;
const REGISTERS: usize = 1 << PRECISION;
/// Registers are stored as characters from this one, which need no escapes in JSON.
const FIRST: u8 = b'#';

/// The number of distinct values: hashes, and a HyperLogLog when there are many.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Distinct {
    /// The hashes in ascending order.
    Exact(Vec<u64>),
    /// A character for each register.
    Estimate(String),
}

impl Distinct {
    pub(super) fn new() -> Self {
        Self::Exact(Vec::new())
    }

    /// Adds a value.
    pub(super) fn add(&mut self, value: &[u8]) {
        self.add_hash(hash(value));
    }

    pub(super) fn merge(&mut self, other: &Self) {
        match other {
            Self::Exact(hashes) => hashes.iter().for_each(|hash| self.add_hash(*hash)),
            Self::Estimate(other) => {
                let mut registers = self.registers();
                for (register, other) in registers.iter_mut().zip(ranks(other)) {
                    *register = (*register).max(other);
                }
                *self = Self::of_registers(&registers);
            }
        }
    }

    pub(super) fn count(&self) -> u64 {
        match self {
            Self::Exact(hashes) => hashes.len() as u64,
            Self::Estimate(_) => estimate(&self.registers()),
        }
    }

    fn add_hash(&mut self, hash: u64) {
        match self {
            Self::Exact(hashes) => {
                if let Err(at) = hashes.binary_search(&hash) {
                    hashes.insert(at, hash);
                    if hashes.len() > MAX_EXACT {
                        *self = Self::of_registers(&self.registers());
                    }
                }
            }
            Self::Estimate(text) => {
                let (at, rank) = place(hash);
                let is_greater = text.as_bytes().get(at).is_some_and(|known| known.saturating_sub(FIRST) < rank);
                if is_greater {
                    text.replace_range(at..=at, char::from(FIRST + rank).encode_utf8(&mut [0; 4]));
                }
            }
        }
    }

    fn registers(&self) -> Vec<u8> {
        let mut registers = vec![0; REGISTERS];
        match self {
            Self::Exact(hashes) => {
                for (at, rank) in hashes.iter().map(|hash| place(*hash)) {
                    registers[at] = registers[at].max(rank);
                }
            }
            Self::Estimate(text) => registers.iter_mut().zip(ranks(text)).for_each(|(register, rank)| *register = rank),
        }
        registers
    }

    fn of_registers(registers: &[u8]) -> Self {
        Self::Estimate(registers.iter().map(|rank| char::from(FIRST + rank)).collect())
    }
}

fn ranks(text: &str) -> impl Iterator<Item = u8> {
    text.bytes().map(|byte| byte.saturating_sub(FIRST))
}

/// The register of a hash, and the position of the first 1 in its other bits.
fn place(hash: u64) -> (usize, u8) {
    let register = hash >> (64 - PRECISION);
    let rank = (hash << PRECISION).leading_zeros().min(64 - PRECISION) + 1;
    (usize::try_from(register).unwrap_or(0), u8::try_from(rank).unwrap_or(u8::MAX - FIRST))
}

/// FNV-1a, with the finalizer of SplitMix64 so that all bits depend on all bytes.
fn hash(value: &[u8]) -> u64 {
    let hash = value
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3));
    let hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

/// Flajolet and others, 2007, with linear counting for small numbers.
fn estimate(registers: &[u8]) -> u64 {
    let count = REGISTERS as f64;
    let sum: f64 = registers.iter().map(|rank| 0.5_f64.powi(i32::from(*rank))).sum();
    let raw = 0.7213 / (1.0 + 1.079 / count) * count * count / sum;
    let empty = registers.iter().filter(|rank| **rank == 0).count();
    let estimated = if raw <= 2.5 * count && empty > 0 { count * (count / empty as f64).ln() } else { raw };
    estimated.round() as u64
}

/// Bounds of neighbouring buckets have this ratio: a result differs by at most 1 % from a value of
/// the requested rank.
const RATIO: f64 = 1.01 / 0.99;
/// Buckets of positive and of negative numbers. The ones next to 0 are joined when there are more.
const MAX_BUCKETS: usize = 1024;

/// The distribution of numbers: a DDSketch.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Quantiles {
    /// The least and the greatest number.
    ends: Option<(Decimal, Decimal)>,
    zeros: u64,
    /// The counts of buckets: bucket n has the numbers from `RATIO` to the power of n-1 to that of
    /// n.
    positive: BTreeMap<i32, u64>,
    negative: BTreeMap<i32, u64>,
}

impl Quantiles {
    pub(super) fn new() -> Self {
        Self { ends: None, zeros: 0, positive: BTreeMap::new(), negative: BTreeMap::new() }
    }

    /// Adds a number.
    pub(super) fn add(&mut self, number: Decimal) {
        self.widen(number, number);
        let value = float(number);
        let bucket = (value.abs().ln() / RATIO.ln()).ceil() as i32;
        match value {
            value if value > 0.0 => add(&mut self.positive, bucket, 1),
            value if value < 0.0 => add(&mut self.negative, bucket, 1),
            _ => self.zeros += 1,
        }
    }

    pub(super) fn merge(&mut self, other: &Self) {
        if let Some((least, greatest)) = other.ends {
            self.widen(least, greatest);
        }
        self.zeros += other.zeros;
        other.positive.iter().for_each(|(bucket, count)| add(&mut self.positive, *bucket, *count));
        other.negative.iter().for_each(|(bucket, count)| add(&mut self.negative, *bucket, *count));
    }

    /// The number that `percent` of the numbers do not exceed, as JSON.
    pub(super) fn percentile(&self, percent: f64) -> Option<String> {
        let (least, greatest) = self.ends?;
        let count: u64 = self.zeros + self.positive.values().chain(self.negative.values()).sum::<u64>();
        let rank = ((percent / 100.0 * count as f64).ceil() as u64).clamp(1, count.max(1));
        // Both ends are exact.
        if rank == 1 {
            return Some(least.to_string());
        }
        if rank == count {
            return Some(greatest.to_string());
        }
        let estimate = self.estimate(rank).clamp(float(least), float(greatest).max(float(least)));
        // Four significant digits; more would only look exact.
        let rounded: f64 = format!("{estimate:.3e}").parse().unwrap_or(estimate);
        Some(rounded.to_string())
    }

    fn estimate(&self, rank: u64) -> f64 {
        let middle = |bucket: i32| 2.0 * RATIO.powi(bucket) / (RATIO + 1.0);
        let negative = self.negative.iter().rev().map(|(bucket, count)| (-middle(*bucket), *count));
        let positive = self.positive.iter().map(|(bucket, count)| (middle(*bucket), *count));
        let mut seen = 0;
        let mut last = 0.0;
        for (value, count) in negative.chain([(0.0, self.zeros)]).chain(positive) {
            seen += count;
            if count > 0 {
                last = value;
            }
            if seen >= rank {
                break;
            }
        }
        last
    }

    fn widen(&mut self, least: Decimal, greatest: Decimal) {
        self.ends = Some(match self.ends {
            None => (least, greatest),
            Some((known_least, known_greatest)) => (known_least.min(least), known_greatest.max(greatest)),
        });
    }
}

fn add(buckets: &mut BTreeMap<i32, u64>, bucket: i32, count: u64) {
    *buckets.entry(bucket).or_default() += count;
    while buckets.len() > MAX_BUCKETS {
        let Some((_, joined)) = buckets.pop_first() else { break };
        if let Some(mut next) = buckets.first_entry() {
            *next.get_mut() += joined;
        }
    }
}

/// The nearest finite number.
fn float(number: Decimal) -> f64 {
    number.to_string().parse().unwrap_or(0.0_f64).clamp(-f64::MAX, f64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_distinct_values_are_counted_exactly_and_many_are_estimated() {
        let of = |values: std::ops::Range<u32>| {
            let mut distinct = Distinct::new();
            values.chain(0..10).for_each(|value| distinct.add(value.to_string().as_bytes()));
            distinct
        };
        assert_eq!((of(0..200).count(), of(0..256).count()), (200, 256));
        for count in [257, 1_000, 20_000, 200_000] {
            let error = (of(0..count).count() as f64 - f64::from(count)).abs() / f64::from(count);
            assert!(error < 0.05, "{count}: {error}");
        }
        for (left, right) in [(0..100, 50..150), (0..100, 50..1_000), (0..1_000, 500..600), (0..3_000, 2_000..9_000)] {
            let mut merged = of(left.clone());
            merged.merge(&of(right.clone()));
            assert_eq!(merged, of(left.start..right.end.max(left.end)), "{left:?} {right:?}");
        }
    }

    #[test]
    fn percentiles_are_within_one_percent() {
        let mut quantiles = Quantiles::new();
        assert_eq!(quantiles.percentile(50.0), None);
        let mut other = Quantiles::new();
        for number in 1..=10_000_i64 {
            if number % 3 == 0 { &mut other } else { &mut quantiles }.add(Decimal::from(number));
        }
        quantiles.merge(&other);
        for (percent, expected) in [(0.0, 1.0), (1.0, 100.0), (50.0, 5_000.0), (99.0, 9_900.0), (100.0, 10_000.0)] {
            let found: f64 = quantiles.percentile(percent).unwrap().parse().unwrap();
            assert!((found / expected - 1.0).abs() <= 0.011, "{percent}: {found}");
        }
        let mut signed = Quantiles::new();
        (-50..=50).for_each(|number| signed.add(Decimal::from(number)));
        assert_eq!(signed.percentile(50.0).as_deref(), Some("0"));
        assert_eq!(signed.percentile(0.0).as_deref(), Some("-50"));
        let tenth: f64 = signed.percentile(10.0).unwrap().parse().unwrap();
        assert!((tenth / -40.0 - 1.0).abs() <= 0.011, "{tenth}");
    }

    #[test]
    fn the_number_of_buckets_is_bounded() {
        let mut quantiles = Quantiles::new();
        for exponent in -300..300 {
            for digit in 1..10 {
                quantiles.add(Decimal::parse(&format!("{digit}e{exponent}")).unwrap());
            }
        }
        assert_eq!(quantiles.positive.len(), MAX_BUCKETS);
        let found: f64 = quantiles.percentile(90.0).unwrap().parse().unwrap();
        assert!((1e239..=1e241).contains(&found), "{found}");
    }
}
