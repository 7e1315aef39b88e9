//! The lag of a stage that reads topics: records that its group has not committed.

use std::time::{Duration, Instant};

use trunkline_connector::{SourceLag, TopicPartition};

use super::status::StageStatus;
use crate::kafka::GroupConsumer;

/// Time between two updates of the status: the client is asked for each partition.
const INTERVAL: Duration = Duration::from_secs(1);
/// Updates take at most this part of the time: the client searches the topics for each partition,
/// so that thousands of topics take long.
const TIME_DIVISOR: u32 = 50;
/// The longest time between two updates.
const MAX_INTERVAL: Duration = Duration::from_secs(30);

/// Updates the lag in the status of a stage, once per interval.
pub(super) struct LagReport {
    due: Instant,
}

impl LagReport {
    pub(super) fn new() -> Self {
        Self { due: Instant::now() }
    }

    /// Sums up the lag of these topic partitions: each with its committed offset, and whether
    /// records after it wait for a commit.
    pub(super) fn update<'p>(
        &mut self,
        status: &StageStatus,
        consumer: &GroupConsumer,
        partitions: impl Iterator<Item = (&'p TopicPartition, i64, bool)>,
    ) {
        let begun = Instant::now();
        if begun < self.due {
            return;
        }
        let positions = consumer.positions();
        let known = partitions.filter_map(|(partition, committed, pending)| {
            let high = consumer.high_watermark(partition)?;
            // A committed offset does not cover the marker at the end of its transaction.
            let is_caught_up = !pending && positions.get(partition).is_some_and(|position| *position >= high);
            Some(if is_caught_up { 0 } else { u64::try_from(high - committed.max(0)).unwrap_or(0) })
        });
        status.set_lag(SourceLag { records: Some(known.sum()), ..SourceLag::default() });
        self.due = Instant::now() + (begun.elapsed() * TIME_DIVISOR).clamp(INTERVAL, MAX_INTERVAL);
    }
}
