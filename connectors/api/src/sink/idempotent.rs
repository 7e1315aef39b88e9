//! Sinks whose destination makes repeated writes harmless.

use serde_json::Value;

use crate::batch::{Batch, RecordRef};
use crate::error::Result;
use crate::rejection::{Reason, Rejections};
use crate::sink::TopicPartition;

/// Writes records to a destination where a repeated write changes nothing: every record has an
/// identity there (a document id, a primary key, an idempotency key).
///
/// The runtime batches the records, calls `deliver` from threads of the task, sends undecided
/// records again, and commits the offsets of the acknowledged prefix of each topic partition
/// together with counters and dead letters (I2 c).
pub trait IdempotentSink: Send + Sync {
    /// Delivers the [pending](Delivery::pending) records and returns when the destination has
    /// acknowledged them durably.
    ///
    /// `Ok` acknowledges every record that was not [rejected](Delivery::reject). After an external
    /// error the runtime delivers the records again that were neither
    /// [acknowledged](Delivery::acknowledge) nor rejected: together with later records if the call
    /// decided about most of them, otherwise alone and with backoff. A call that cannot finish
    /// returns an error within a minute.
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
    /// In a box: most records have another outcome, and there is one for each record.
    Rejected(Box<Reason>),
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

    /// Number of all records.
    pub fn len(&self) -> usize {
        self.outcomes.iter().map(Vec::len).sum()
    }

    /// It has no records.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
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
        self.decide(index, Outcome::Rejected(Box::new(reason)));
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
                rejected.push(record, reason.as_ref().clone());
            }
        }
    }

    /// Adds the records of another delivery, after those that are here. For the runtime, which
    /// sends records again together with later ones.
    pub fn append(&mut self, other: Self) {
        self.partitions.extend(other.partitions);
        self.outcomes.extend(other.outcomes);
        self.pending += other.pending;
    }

    /// Divides it into a delivery for each of its [`partitions`](Delivery::partitions).
    pub fn into_partitions(self) -> impl Iterator<Item = Self> {
        self.partitions.into_iter().zip(self.outcomes).map(|(part, outcomes)| {
            let pending = outcomes.iter().filter(|outcome| **outcome == Outcome::Pending).count();
            Self { partitions: vec![part], outcomes: vec![outcomes], pending }
        })
    }

    /// The batches of its records, for their memory.
    pub fn into_batches(self) -> impl Iterator<Item = Batch> {
        self.partitions.into_iter().map(|part| part.records)
    }

    /// Frees the memory of decided records, which the caller is done with. A decided record with
    /// the offset of a pending one stays, because
    /// [`ordinal_in_offset`](Delivery::ordinal_in_offset) counts it; it counts as acknowledged.
    pub fn release_decided(&mut self) {
        for (part, outcomes) in self.partitions.iter_mut().zip(&mut self.outcomes) {
            let (mut records, mut kept) = (Batch::default(), Vec::new());
            let entries = part.records.entries();
            let mut first = 0;
            for same in entries.chunk_by(|one, next| one.offset == next.offset) {
                let range = first..first + same.len();
                first = range.end;
                let same = outcomes.get(range.clone()).unwrap_or_default();
                if same.contains(&Outcome::Pending) {
                    range.for_each(|record| records.push_copy(part.records.get(record)));
                    let as_kept = |outcome: &Outcome| match outcome {
                        Outcome::Pending => Outcome::Pending,
                        Outcome::Acknowledged | Outcome::Rejected(_) => Outcome::Acknowledged,
                    };
                    kept.extend(same.iter().map(as_kept));
                }
            }
            (part.records, *outcomes) = (records, kept);
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

    #[test]
    fn undecided_records_are_sent_again_with_later_ones() {
        let mut first = delivery();
        let indexes: Vec<RecordIndex> = first.pending().map(|pending| pending.index).collect();
        first.acknowledge(indexes[0]);
        first.reject(indexes[2], Reason::new("x.y", "too large"));
        (3..6).for_each(|record| first.acknowledge(indexes[record]));
        let mut parts: Vec<Delivery> = first.into_partitions().collect();
        assert_eq!(parts.iter().map(Delivery::pending_len).collect::<Vec<_>>(), [1, 0]);
        let before = parts[0].bytes();
        parts[0].release_decided();
        assert!(parts[0].bytes() < before);
        assert_eq!(pending(&parts[0]), [(0, 1)]);
        let mut again = parts.swap_remove(0);
        again.append(delivery());
        assert_eq!(again.pending_len(), 7);
        assert_eq!(pending(&again)[..3], [(0, 1), (0, 0), (0, 1)]);
        let last = again.pending().last().map(|pending| pending.index).unwrap();
        again.reject(last, Reason::new("x.y", "too large"));
        let mut rejected = Rejections::default();
        (0..2).for_each(|index| again.rejections(index, &mut rejected));
        assert!(rejected.is_empty(), "the rejection of the first attempt was reported then");
        again.rejections(2, &mut rejected);
        assert_eq!(rejected.len(), 1);
    }

    #[test]
    fn released_records_keep_their_numbers() {
        let mut records = Batch::default();
        for offset in [3, 3, 4, 5, 5] {
            let mut record = records.record();
            record.read_from(0, 0, offset).value(b"v");
            record.finish();
        }
        let mut delivery = Delivery::new(vec![PartitionRecords { partition: TopicPartition::new("t", 0), records }]);
        let indexes: Vec<RecordIndex> = delivery.pending().map(|pending| pending.index).collect();
        [0, 2, 4].into_iter().for_each(|record| delivery.acknowledge(indexes[record]));
        delivery.release_decided();
        let numbered: Vec<(i64, usize)> = delivery
            .pending()
            .map(|pending| (pending.record.entry().offset, delivery.ordinal_in_offset(pending.index)))
            .collect();
        assert_eq!(numbered, [(3, 1), (5, 0)]);
        assert_eq!((delivery.pending_len(), delivery.partitions()[0].records.len()), (2, 4));
    }
}
