//! What a member of a group has read and not processed yet: a batch for each partition, in memory that all of them share (I6).

use std::sync::Arc;

use trunkline_connector::{Batch, TopicPartition};

use super::records::{Partition, Record};

/// One batch for each partition that records came from.
#[derive(Default)]
pub struct PartitionBatches {
    batches: Vec<(TopicPartition, Batch)>,
    /// Batches that were cleared: whichever partition comes next gets their memory. If each kept its own, a member with many partitions would hold
    /// as many times what a round takes, because each of them fills a round now and then.
    spare: Vec<Batch>,
    last: usize,
    topic: u16,
}

impl PartitionBatches {
    /// The batches that are not empty. Cleared, their memory serves the next round.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (&TopicPartition, &mut Batch)> {
        self.batches.iter_mut().filter(|(_, batch)| !batch.is_empty()).map(|(claim, batch)| (&*claim, batch))
    }

    /// Sets aside the batches that were cleared; of their memory no more than `most` bytes are kept.
    pub(super) fn recycle(&mut self, most: usize) {
        let mut kept: usize = self.spare.iter().map(Batch::capacity).sum();
        for (_, mut batch) in self.batches.extract_if(.., |(_, batch)| batch.is_empty()) {
            if kept + batch.capacity() <= most {
                kept += batch.capacity();
                batch.reset();
                self.spare.push(batch);
            }
        }
    }

    /// Forgets a partition.
    pub fn remove(&mut self, claim: &TopicPartition) {
        self.batches.retain(|(known, _)| known != claim);
        self.last = 0;
    }

    /// Copies a record to the batch of its partition. `last` is the partition of the record before it, of the same round of taking.
    pub(super) fn push(&mut self, record: &Record<'_>, last: &mut Option<Partition>) {
        // Records come in runs of one partition.
        let partition = record.partition();
        if last.replace(partition) != Some(partition) {
            let (topic, number) = (record.topic(), partition.number);
            let is = |(claim, _): &(TopicPartition, Batch)| claim.partition == number && claim.topic.as_ref() == topic;
            self.last = self.batches.iter().position(is).unwrap_or_else(|| {
                let claim = TopicPartition { topic: Arc::from(topic), partition: number };
                self.batches.push((claim, self.spare.pop().unwrap_or_default()));
                self.batches.len() - 1
            });
            self.topic = self.batches[self.last].1.topic_index(topic);
        }
        record.push_to(&mut self.batches[self.last].1, self.topic);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_of_batches_is_shared_and_bounded() {
        let mut batches = PartitionBatches::default();
        let held = |batches: &PartitionBatches| -> usize {
            let held = batches.batches.iter().map(|(_, batch)| batch.capacity());
            held.chain(batches.spare.iter().map(Batch::capacity)).sum()
        };
        let fill = |batch: &mut Batch| {
            let mut record = batch.record();
            record.value(&vec![0; 1 << 20]);
            record.finish();
        };
        // Each partition fills a round now and then.
        for partition in 0..64 {
            let claim = TopicPartition { topic: Arc::from("logs"), partition };
            let mut batch = batches.spare.pop().unwrap_or_default();
            batch.topic_index("logs");
            fill(&mut batch);
            batches.batches.push((claim, batch));
            batches.iter_mut().for_each(|(_, batch)| batch.clear());
            batches.recycle(4 << 20);
            assert!(batches.batches.is_empty() && batches.spare[0].topics().is_empty());
            assert!(held(&batches) <= 4 << 20, "{} bytes", held(&batches));
        }
        // All at once: no more is kept than was asked for, and what was not processed stays.
        for partition in 0..64 {
            let mut batch = Batch::default();
            fill(&mut batch);
            if partition > 0 {
                batch.clear();
            }
            batches.batches.push((TopicPartition { topic: Arc::from("logs"), partition }, batch));
        }
        batches.recycle(4 << 20);
        assert_eq!(batches.iter_mut().map(|(claim, _)| claim.partition).collect::<Vec<_>>(), [0]);
        let spare: usize = batches.spare.iter().map(Batch::capacity).sum();
        assert!((1 << 20..=4 << 20).contains(&spare), "{spare} bytes");
    }
}
