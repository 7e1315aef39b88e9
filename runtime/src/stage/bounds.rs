//! The bounds of a replay: the offsets that its stage reads, and how fast.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use trunkline_connector::{Batch, Result, SinkReplay, TopicPartition};

use crate::dead_letters::Failed;
use crate::kafka::{GroupConsumer, PartitionBatches};

/// The records that a replay reads.
#[derive(Debug, Clone)]
pub struct Bounds {
    /// The id of the run.
    pub run: String,
    /// The first offset of each topic partition, and the offset after the last one.
    pub ranges: BTreeMap<TopicPartition, (i64, i64)>,
    /// Records per second of each task.
    pub rate: Option<TaskRate>,
    /// Only records with dead letters, if it is a replay of them.
    pub failed: Option<Arc<Failed>>,
    /// The live sink as `{cluster}.{pipeline}.{sink}`, if the replay takes the place of what it
    /// wrote. Prepared output is not committed then: it is collected.
    pub supersedes: Option<String>,
}

impl Bounds {
    /// The replay, as sinks know it.
    pub(super) fn sink_replay(&self) -> SinkReplay {
        SinkReplay {
            run: self.run.clone(),
            supersedes: self.supersedes.is_some(),
            ranges: self.ranges.clone(),
            earlier: BTreeSet::new(),
        }
    }

    /// The topics to subscribe to.
    pub(super) fn topics(&self) -> Vec<String> {
        let topics: BTreeSet<&str> = self.ranges.keys().map(|partition| partition.topic.as_ref()).collect();
        topics.into_iter().map(str::to_owned).collect()
    }

    /// The offsets at which the replay ends.
    pub(super) fn ends(&self) -> BTreeMap<TopicPartition, i64> {
        self.ranges.iter().map(|(partition, (_, end))| (partition.clone(), *end)).collect()
    }

    /// Drops the records that the replay does not select. The caller counts their offsets as
    /// processed.
    pub(super) fn select(&self, partition: &TopicPartition, batch: &mut Batch) {
        if let Some(failed) = &self.failed {
            batch.retain(|record| failed.contains(partition, record.entry().offset));
        }
    }

    /// The number of records in a batch that the replay selects.
    fn selected(&self, partition: &TopicPartition, batch: &Batch) -> usize {
        match &self.failed {
            Some(failed) => batch.entries().iter().filter(|entry| failed.contains(partition, entry.offset)).count(),
            None => batch.len(),
        }
    }

    /// Drops the records that the replay does not read, and fetches no more from partitions that
    /// are complete. Returns the number of the other records.
    pub(super) fn apply(
        &self,
        batches: &mut PartitionBatches,
        consumer: &GroupConsumer,
        throttle: Option<&mut Throttle>,
    ) -> Result<usize> {
        let (mut kept, mut selected, mut complete) = (0, 0, Vec::new());
        for (partition, batch) in batches.iter_mut() {
            if self.retain(partition, batch) {
                complete.push(partition.clone());
            }
            kept += batch.len();
            selected += self.selected(partition, batch);
        }
        if !complete.is_empty() {
            consumer.pause_partitions(&complete);
        }
        if let Some(throttle) = throttle {
            throttle.count(selected);
        }
        Ok(kept)
    }

    /// Drops the records outside of the range. Returns whether the topic partition is complete: no
    /// later record is in the range.
    fn retain(&self, partition: &TopicPartition, batch: &mut Batch) -> bool {
        let Some((from, to)) = self.ranges.get(partition).copied() else {
            batch.clear();
            return true;
        };
        let is_complete = batch.entries().last().is_some_and(|last| last.offset >= to - 1);
        let is_outside = |offset: i64| !(from..to).contains(&offset);
        let ends = [batch.entries().first(), batch.entries().last()];
        if ends.into_iter().flatten().any(|entry| is_outside(entry.offset)) {
            batch.retain(|record| !is_outside(record.entry().offset));
        }
        is_complete
    }
}

/// The records per second of each task of a run. It changes when processes join the run or leave
/// it: all tasks together keep to the rate of the run. Clones share it.
#[derive(Debug, Clone)]
pub struct TaskRate {
    /// A thousandth of a record per second: a task may have less than one.
    thousandths: Arc<AtomicU64>,
}

impl TaskRate {
    /// The share of each of `tasks` tasks.
    pub fn new(total: NonZeroU64, tasks: usize) -> Self {
        let this = Self { thousandths: Arc::default() };
        this.share(total, tasks);
        this
    }

    /// Divides the rate of the run among this many tasks.
    pub fn share(&self, total: NonZeroU64, tasks: usize) {
        let share = total.get().saturating_mul(1_000) / (tasks.max(1) as u64);
        self.thousandths.store(share.max(1), Ordering::Relaxed);
    }

    fn per_second(&self) -> f64 {
        self.thousandths.load(Ordering::Relaxed) as f64 / 1_000.0
    }
}

/// Limits records per second. A pause is not made up for: the speed never exceeds the limit by more
/// than one second's records.
pub(super) struct Throttle {
    rate: TaskRate,
    refilled: Instant,
    available: f64,
}

impl Throttle {
    pub(super) fn new(rate: TaskRate) -> Self {
        Self { rate, refilled: Instant::now(), available: 0.0 }
    }

    fn available(&self) -> f64 {
        let rate = self.rate.per_second();
        (self.available + self.refilled.elapsed().as_secs_f64() * rate).min(rate.max(1.0))
    }

    /// The records that may be read now.
    pub(super) fn allowance(&self) -> usize {
        self.available().max(0.0) as usize
    }

    /// Records were selected.
    fn count(&mut self, records: usize) {
        if records > 0 {
            self.available = self.available() - records as f64;
            self.refilled = Instant::now();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn batch(offsets: std::ops::Range<i64>) -> Batch {
        let mut batch = Batch::default();
        let topic = batch.topic_index("t");
        for offset in offsets {
            let mut record = batch.record();
            record.read_from(topic, 0, offset);
            record.finish();
        }
        batch
    }

    #[test]
    fn records_outside_of_the_range_are_dropped() {
        let partition = TopicPartition::new("t", 0);
        let bounds = Bounds {
            run: "r".to_owned(),
            ranges: BTreeMap::from([(partition.clone(), (3, 7))]),
            rate: None,
            failed: None,
            supersedes: None,
        };
        let retained = |partition: &TopicPartition, offsets| {
            let mut batch = batch(offsets);
            let is_complete = bounds.retain(partition, &mut batch);
            (batch.entries().iter().map(|entry| entry.offset).collect::<Vec<_>>(), is_complete)
        };
        assert_eq!(retained(&partition, 3..6), (vec![3, 4, 5], false));
        assert_eq!(retained(&partition, 5..7), (vec![5, 6], true));
        assert_eq!(retained(&partition, 1..9), (vec![3, 4, 5, 6], true));
        assert_eq!(retained(&partition, 7..9), (vec![], true));
        assert_eq!(retained(&TopicPartition::new("t", 1), 3..6), (vec![], true));
    }

    #[test]
    fn records_without_a_dead_letter_do_not_count_towards_the_rate() {
        let partition = TopicPartition::new("t", 0);
        let failed = Failed::of([(partition.clone(), 4), (partition.clone(), 8)]);
        let ranges = BTreeMap::from([(partition.clone(), (0, 10))]);
        let mut bounds = Bounds { run: "r".to_owned(), ranges, rate: None, failed: None, supersedes: None };
        assert_eq!(bounds.selected(&partition, &batch(0..10)), 10);
        bounds.failed = Some(Arc::new(failed));
        assert_eq!(bounds.selected(&partition, &batch(0..10)), 2);
        assert_eq!(bounds.selected(&partition, &batch(5..8)), 0);
        let mut records = batch(0..10);
        bounds.select(&partition, &mut records);
        assert_eq!(records.entries().iter().map(|entry| entry.offset).collect::<Vec<_>>(), [4, 8]);
    }

    #[test]
    fn the_rate_bounds_the_records_of_a_second() {
        let total = NonZeroU64::new(100).unwrap();
        let rate = TaskRate::new(total, 1);
        let mut throttle = Throttle::new(rate.clone());
        let long_ago = || Instant::now().checked_sub(Duration::from_secs(60)).unwrap();
        throttle.refilled = long_ago();
        assert_eq!(throttle.allowance(), 100);
        throttle.count(100);
        assert!(throttle.allowance() < 50, "{}", throttle.allowance());
        // Another process has joined the run.
        rate.share(total, 4);
        throttle.refilled = long_ago();
        assert_eq!(throttle.allowance(), 25);
        // A share below one record per second is not rounded up, and does not stop the task.
        rate.share(NonZeroU64::MIN, 4);
        assert_eq!(throttle.allowance(), 1);
        throttle.count(1);
        throttle.refilled = Instant::now().checked_sub(Duration::from_secs(2)).unwrap();
        assert_eq!(throttle.allowance(), 0);
    }
}
