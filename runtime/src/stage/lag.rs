//! The lag of a stage that reads topics: records that its group has not committed.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use trunkline_connector::{RecordRef, SourceLag, TopicPartition};

use super::status::StageStatus;
use crate::kafka::GroupConsumer;

/// Time between two updates of the status: the client is asked for each partition.
const INTERVAL: Duration = Duration::from_secs(1);
/// Updates take at most this part of the time: the client searches the topics for each partition,
/// so that thousands of topics take long.
const TIME_DIVISOR: u32 = 50;
/// The longest time between two updates.
const MAX_INTERVAL: Duration = Duration::from_secs(30);

/// A topic partition of a stage.
pub(super) struct Uncommitted<'p> {
    pub(super) partition: &'p TopicPartition,
    pub(super) committed: i64,
    /// Records after the committed offset wait for a commit.
    pub(super) is_pending: bool,
    /// When the first of them was written to its topic.
    pub(super) oldest: Option<Instant>,
}

/// Updates the lag in the status of a stage, once per interval.
pub(super) struct LagReport {
    due: Instant,
}

impl LagReport {
    pub(super) fn new() -> Self {
        Self { due: Instant::now() }
    }

    /// Sums up the lag of these topic partitions. Its age is that of the oldest record that was
    /// read and not committed.
    pub(super) fn update<'p>(
        &mut self,
        status: &StageStatus,
        consumer: &GroupConsumer,
        partitions: impl Iterator<Item = Uncommitted<'p>>,
    ) {
        let begun = Instant::now();
        if begun < self.due {
            return;
        }
        let partitions: Vec<Uncommitted<'_>> = partitions.collect();
        let positions = consumer.positions(partitions.iter().map(|uncommitted| uncommitted.partition));
        let (mut records, mut oldest) = (0, None);
        for (Uncommitted { partition, committed, is_pending, oldest: own }, position) in
            partitions.into_iter().zip(positions)
        {
            let Some(high) = consumer.high_watermark(partition) else { continue };
            oldest = oldest.into_iter().chain(own).min();
            // A committed offset does not cover the marker at the end of its transaction.
            let is_caught_up = !is_pending && position.is_some_and(|position| position >= high);
            records += if is_caught_up { 0 } else { u64::try_from(high - committed.max(0)).unwrap_or(0) };
        }
        let age = match oldest {
            Some(oldest) => Some(oldest.elapsed()),
            // It is unknown while nothing of a backlog was read.
            None => (records == 0).then_some(Duration::ZERO),
        };
        status.set_lag(SourceLag { records: Some(records), age, ..SourceLag::default() });
        self.due = Instant::now() + (begun.elapsed() * TIME_DIVISOR).clamp(INTERVAL, MAX_INTERVAL);
    }
}

/// When a record was written to its topic, by its timestamp; now if it has none, or one in the
/// future.
pub(super) fn written_at(record: RecordRef<'_>) -> Instant {
    let now = Instant::now();
    now.checked_sub(time_in_topic(record)).unwrap_or(now)
}

/// How long a record has been in its topic, by its timestamp; zero if it has none, or one in the
/// future.
pub(super) fn time_in_topic(record: RecordRef<'_>) -> Duration {
    let written =
        record.timestamp().and_then(|milliseconds| u64::try_from(milliseconds).ok()).map(Duration::from_millis);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    written.map_or(Duration::ZERO, |written| now.saturating_sub(written))
}
