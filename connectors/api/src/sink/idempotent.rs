//! Sinks whose destination makes repeated writes harmless.

use serde_json::Value;

use crate::batch::{Batch, RecordRef};
use crate::error::Result;
use crate::rejection::{Reason, Rejections};
use crate::sink::TopicPartition;

/// Writes records to a destination where a repeated write changes nothing: every record has an
/// identity there (a document id, a primary key, an idempotency key).
///
/// The runtime batches the records, calls `deliver` from threads of the task, retries it with
/// backoff, and commits the offsets of the acknowledged prefix of each topic partition together
/// with counters and dead letters (I2 c).
pub trait IdempotentSink: Send + Sync {
    /// Delivers the [pending](Delivery::pending) records and returns when the destination has
    /// acknowledged them durably.
    ///
    /// `Ok` acknowledges every record that was not [rejected](Delivery::reject). On an external
    /// error the runtime calls `deliver` again with the same records, without those that were
    /// [acknowledged](Delivery::acknowledge) or rejected. A call that cannot finish returns an
    /// error within a minute.
    ///
    /// A task that lost a topic partition may still deliver it for a moment while the next owner
    /// does too. A destination where order matters must therefore compare versions, for example
    /// offsets, and refuse the older write.
    fn deliver(&self, delivery: &mut Delivery) -> Result<()>;

    /// What the sink must know of the records that it has seen in a topic partition, when a task
    /// continues there after a restart. The runtime stores it in the transaction that commits the
    /// offsets. It may cover records after these offsets.
    fn state(&self, partition: &TopicPartition) -> Option<Value> {
        let _ = partition;
        None
    }

    /// The topic partition was assigned to this task. `state` is what its last owner stored; `None`
    /// if it stored nothing, or if another client moved the offsets since.
    fn restore(&self, partition: &TopicPartition, state: Option<&Value>) {
        let _ = (partition, state);
    }

    /// How many deliveries may be in flight at once. By default one after the other.
    fn in_flight(&self) -> InFlight {
        InFlight { deliveries: 1, per_partition: 1 }
    }
}

/// Limits on concurrent deliveries of one task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InFlight {
    /// Concurrent calls of [`IdempotentSink::deliver`].
    pub deliveries: usize,
    /// Those that may hold records of the same topic partition. Above 1, a retry may deliver a
    /// record after its successors, so the destination must compare versions.
    pub per_partition: usize,
}

/// The records of one topic partition in a [`Delivery`], in order of offsets.
#[derive(Debug)]
pub struct PartitionRecords {
    /// The topic partition.
    pub partition: TopicPartition,
    /// Its records.
    pub records: Batch,
}

/// Records to deliver in one call, with the outcome of each.
#[derive(Debug, Default)]
pub struct Delivery {
    partitions: Vec<PartitionRecords>,
    /// One for each record of `partitions`.
    outcomes: Vec<Vec<Outcome>>,
    pending: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Outcome {
    Pending,
    Acknowledged,
    Rejected(Reason),
}

/// A record that was neither acknowledged nor rejected yet.
#[derive(Clone, Copy)]
pub struct PendingRecord<'a> {
    /// Identifies the record in its [`Delivery`].
    pub index: RecordIndex,
    /// The topic partition that the record was read from.
    pub partition: &'a TopicPartition,
    /// The record.
    pub record: RecordRef<'a>,
}

/// Identifies a record in a [`Delivery`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RecordIndex {
    partition: u32,
    record: u32,
}

impl Delivery {
    /// A delivery of these records, all of them pending.
    pub fn new(partitions: Vec<PartitionRecords>) -> Self {
        let outcomes: Vec<_> = partitions.iter().map(|part| vec![Outcome::Pending; part.records.len()]).collect();
        let pending = outcomes.iter().map(Vec::len).sum();
        Self { partitions, outcomes, pending }
    }

    /// The records that the destination has not decided about yet, in order within each topic
    /// partition.
    pub fn pending(&self) -> impl Iterator<Item = PendingRecord<'_>> {
        self.partitions.iter().zip(&self.outcomes).zip(0..).flat_map(|((part, outcomes), partition)| {
            part.records.iter().zip(outcomes).zip(0..).filter(|((_, outcome), _)| **outcome == Outcome::Pending).map(
                move |((record, _), index)| PendingRecord {
                    index: RecordIndex { partition, record: index },
                    partition: &part.partition,
                    record,
                },
            )
        })
    }

    /// Number of pending records.
    pub fn pending_len(&self) -> usize {
        self.pending
    }

    /// Bytes of all records, as the byte budget counts them (I6).
    pub fn bytes(&self) -> usize {
        self.partitions.iter().map(|part| part.records.bytes()).sum()
    }

    /// Number of records before this one with the same topic partition and offset: a transform may
    /// emit several for one. All records of an offset are in the same delivery, so the number is
    /// the same in each delivery of the record.
    pub fn ordinal_in_offset(&self, index: RecordIndex) -> usize {
        let Some(part) = self.partitions.get(index.partition as usize) else { return 0 };
        let entries = part.records.entries().get(..=index.record as usize).unwrap_or_default();
        let Some((entry, before)) = entries.split_last() else { return 0 };
        before.iter().rev().take_while(|earlier| earlier.offset == entry.offset).count()
    }

    /// The destination has the record. Needed only where others of the same delivery must be sent
    /// again.
    pub fn acknowledge(&mut self, index: RecordIndex) {
        self.decide(index, Outcome::Acknowledged);
    }

    /// The destination refuses the record for good. The stage treats it as the component's
    /// `on_error` says.
    pub fn reject(&mut self, index: RecordIndex, reason: Reason) {
        self.decide(index, Outcome::Rejected(reason));
    }

    /// The topic partitions of the delivery.
    pub fn partitions(&self) -> &[PartitionRecords] {
        &self.partitions
    }

    /// Adds the rejected records of the topic partition with this index in
    /// [`partitions`](Delivery::partitions) to `rejected`.
    pub fn rejections(&self, partition: usize, rejected: &mut Rejections) {
        let (Some(part), Some(outcomes)) = (self.partitions.get(partition), self.outcomes.get(partition)) else {
            return;
        };
        for (record, outcome) in part.records.iter().zip(outcomes) {
            if let Outcome::Rejected(reason) = outcome {
                rejected.push(record, reason.clone());
            }
        }
    }

    fn decide(&mut self, index: RecordIndex, decided: Outcome) {
        let outcomes = self.outcomes.get_mut(index.partition as usize);
        if let Some(outcome) = outcomes.and_then(|outcomes| outcomes.get_mut(index.record as usize))
            && *outcome == Outcome::Pending
        {
            *outcome = decided;
            self.pending -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delivery() -> Delivery {
        let part = |partition| {
            let mut records = Batch::default();
            let topic = records.topic_index("t");
            for offset in 0..3 {
                let mut record = records.record();
                record.read_from(topic, partition, offset).value(b"v");
                record.finish();
            }
            PartitionRecords { partition: TopicPartition::new("t", partition), records }
        };
        Delivery::new(vec![part(0), part(1)])
    }

    fn pending(delivery: &Delivery) -> Vec<(i32, i64)> {
        delivery.pending().map(|pending| (pending.partition.partition, pending.record.entry().offset)).collect()
    }

    #[test]
    fn only_undecided_records_are_pending() {
        let mut delivery = delivery();
        assert_eq!(pending(&delivery), [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]);
        let indexes: Vec<RecordIndex> = delivery.pending().map(|pending| pending.index).collect();
        delivery.acknowledge(indexes[1]);
        delivery.reject(indexes[5], Reason::new("x.y", "too large"));
        assert_eq!(pending(&delivery), [(0, 0), (0, 2), (1, 0), (1, 1)]);
        assert_eq!(delivery.pending_len(), 4);
        // The first decision stands.
        delivery.acknowledge(indexes[5]);
        let mut rejected = Rejections::default();
        delivery.rejections(0, &mut rejected);
        assert!(rejected.is_empty());
        delivery.rejections(1, &mut rejected);
        assert_eq!(rejected.iter().map(|(record, _)| record.entry().offset).collect::<Vec<_>>(), [2]);
        assert_eq!(delivery.pending_len(), 4);
    }

    #[test]
    fn records_of_one_offset_are_numbered() {
        let mut records = Batch::default();
        for offset in [3, 3, 3, 5, 6, 6] {
            let mut record = records.record();
            record.read_from(0, 0, offset).value(b"v");
            record.finish();
        }
        let mut delivery = Delivery::new(vec![PartitionRecords { partition: TopicPartition::new("t", 0), records }]);
        let indexes: Vec<RecordIndex> = delivery.pending().map(|pending| pending.index).collect();
        // Decided records count too: a retry gives the same numbers.
        delivery.acknowledge(indexes[0]);
        let ordinals: Vec<usize> = indexes.iter().map(|index| delivery.ordinal_in_offset(*index)).collect();
        assert_eq!(ordinals, [0, 1, 2, 0, 0, 1]);
    }
}
