//! The records that a group member has read and not processed yet: a batch for each partition. All
//! batches share their memory (I6).

use trunkline_connector::{Batch, TopicPartition};

/// One batch for each partition that records came from.
#[derive(Default)]
pub struct PartitionBatches {
    batches: Vec<(TopicPartition, Batch)>,
    /// Cleared batches, for the next partitions that need one. If each partition kept its batch, a
    /// member would hold the memory of one polling round per partition, because each partition
    /// fills a round now and then.
    spare: Vec<Batch>,
    /// The place of the batch that was asked for last.
    last: usize,
}

impl PartitionBatches {
    /// The batches that are not empty. A batch that the caller clears is reused in the next round.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (&TopicPartition, &mut Batch)> {
        self.batches.iter_mut().filter(|(_, batch)| !batch.is_empty()).map(|(partition, batch)| (&*partition, batch))
    }

    /// Collects cleared batches for reuse, up to `max_bytes` of their memory, or one batch of up to
    /// twice as many: a batch of large records.
    pub(super) fn recycle(&mut self, max_bytes: usize) {
        let mut kept: usize = self.spare.iter().map(Batch::capacity).sum();
        for (_, mut batch) in self.batches.extract_if(.., |(_, batch)| batch.is_empty()) {
            let most = if kept == 0 { 2 * max_bytes } else { max_bytes };
            if kept + batch.capacity() <= most {
                kept += batch.capacity();
                batch.reset();
                self.spare.push(batch);
            }
        }
    }

    /// Releases the memory that is kept for the next records.
    pub fn release(&mut self) {
        self.spare = Vec::new();
    }

    /// Discards a partition's batch.
    pub fn remove(&mut self, partition: &TopicPartition) {
        self.batches.retain(|(known, _)| known != partition);
        self.last = 0;
    }

    /// The batch of a partition, and the index of its topic in it.
    pub(super) fn of(&mut self, partition: &TopicPartition) -> (&mut Batch, u16) {
        let is_last = self.batches.get(self.last).is_some_and(|(known, _)| known == partition);
        if !is_last {
            self.last = self.batches.iter().position(|(known, _)| known == partition).unwrap_or_else(|| {
                self.batches.push((partition.clone(), self.spare.pop().unwrap_or_default()));
                self.batches.len() - 1
            });
        }
        let batch = &mut self.batches[self.last].1;
        let topic = batch.topic_index(&partition.topic);
        (batch, topic)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

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
        for number in 0..64 {
            let partition = TopicPartition { topic: Arc::from("logs"), partition: number };
            let mut batch = batches.spare.pop().unwrap_or_default();
            batch.topic_index("logs");
            fill(&mut batch);
            batches.batches.push((partition, batch));
            batches.iter_mut().for_each(|(_, batch)| batch.clear());
            batches.recycle(4 << 20);
            assert!(batches.batches.is_empty() && batches.spare[0].topics().is_empty());
            assert!(held(&batches) <= 4 << 20, "{} bytes", held(&batches));
        }
        // All partitions at once: idle memory stays within its limit, and unprocessed records are
        // kept.
        for partition in 0..64 {
            let mut batch = Batch::default();
            fill(&mut batch);
            if partition > 0 {
                batch.clear();
            }
            batches.batches.push((TopicPartition { topic: Arc::from("logs"), partition }, batch));
        }
        batches.recycle(4 << 20);
        assert_eq!(batches.iter_mut().map(|(partition, _)| partition.partition).collect::<Vec<_>>(), [0]);
        let spare: usize = batches.spare.iter().map(Batch::capacity).sum();
        assert!((1 << 20..=4 << 20).contains(&spare), "{spare} bytes");
    }
}
