//! The bounds of a replay: the offsets that its stage reads.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use trunkline_connector::{Batch, Result, SinkReplay, TopicPartition};

use super::pace::{Pace, Throttle};
use crate::dead_letters::Failed;
use crate::kafka::{GroupConsumer, PartitionBatches};

/// The records that a replay reads.
#[derive(Debug, Clone)]
pub struct Bounds {
    /// The id of the run.
    pub run: String,
    /// The first offset of each topic partition, and the offset after the last one.
    pub ranges: BTreeMap<TopicPartition, (i64, i64)>,
    /// How fast each task reads.
    pub pace: Pace,
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

#[cfg(test)]
mod tests {
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
            pace: Pace::default(),
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
        let mut bounds = Bounds { run: "r".to_owned(), ranges, pace: Pace::default(), failed: None, supersedes: None };
        assert_eq!(bounds.selected(&partition, &batch(0..10)), 10);
        bounds.failed = Some(Arc::new(failed));
        assert_eq!(bounds.selected(&partition, &batch(0..10)), 2);
        assert_eq!(bounds.selected(&partition, &batch(5..8)), 0);
        let mut records = batch(0..10);
        bounds.select(&partition, &mut records);
        assert_eq!(records.entries().iter().map(|entry| entry.offset).collect::<Vec<_>>(), [4, 8]);
    }
}
