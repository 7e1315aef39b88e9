//! Histograms of durations, for the metrics.

use std::time::Duration;

/// How long something took, each time: a histogram.
#[derive(Debug, Clone)]
pub struct Durations {
    /// The limits of the buckets, in milliseconds.
    pub limits: &'static [u64; 10],
    /// The number of each bucket: those that took at most its limit, and more than the limit of the
    /// bucket before.
    pub counts: [u64; 10],
    /// All of them, also beyond the last limit.
    pub count: u64,
    /// The time that all of them took.
    pub sum: Duration,
}

impl Durations {
    /// Limits for commits.
    pub const COMMITS: &'static [u64; 10] = &[10, 25, 50, 100, 250, 500, 1_000, 2_500, 10_000, 60_000];

    /// Limits for batches.
    pub const BATCHES: &'static [u64; 10] = &[1, 2, 5, 10, 25, 50, 100, 250, 1_000, 10_000];

    /// Limits for the time from the first topic to the destination.
    pub const END_TO_END: &'static [u64; 10] = &[50, 100, 250, 500, 1_000, 2_500, 10_000, 60_000, 600_000, 3_600_000];

    /// No durations yet.
    pub fn new(limits: &'static [u64; 10]) -> Self {
        Self { limits, counts: [0; 10], count: 0, sum: Duration::ZERO }
    }

    pub(super) fn add(&mut self, took: Duration) {
        if let Some(bucket) = self.limits.iter().position(|limit| took <= Duration::from_millis(*limit)) {
            self.counts[bucket] += 1;
        }
        self.count += 1;
        self.sum += took;
    }
}

impl Default for Durations {
    fn default() -> Self {
        Self::new(Self::COMMITS)
    }
}
