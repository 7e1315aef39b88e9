//! The sealed records of an idempotent sink, and which of them the next delivery holds.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use trunkline_connector::{CommitPolicy, Delivery, InFlight, TopicPartition};

use crate::checkpoint::Counters;
use crate::stage::dead_letters::DeadLetters;

/// Parts of a topic partition, for each delivery in flight, that may follow one that is not
/// acknowledged: bounds what a crash repeats while a destination refuses a record for long.
const MAX_PARTS: usize = 16;

/// The parts that are not committed yet, in order within each topic partition.
pub(super) struct Parts {
    by_partition: BTreeMap<TopicPartition, VecDeque<Part>>,
    limits: InFlight,
    policy: CommitPolicy,
}

/// Sealed records of one topic partition, with all that their commit covers.
pub(super) struct Part {
    pub(super) number: u64,
    pub(super) state: PartState,
    /// The offset after the last record.
    pub(super) next: i64,
    /// When its first record was written to its topic.
    pub(super) oldest: Option<Instant>,
    /// Bytes of the records that are not acknowledged.
    pub(super) bytes: usize,
    pub(super) counters: Counters,
    pub(super) dead_letters: DeadLetters,
}

pub(super) enum PartState {
    /// Waits for a free delivery.
    Sealed(Delivery),
    /// The destination refused these records for now.
    Returned {
        records: Delivery,
        /// From then on they join a delivery of other records.
        joins: Instant,
        /// From then on they are sent alone.
        alone: Instant,
    },
    /// In the delivery with this number.
    InFlight(u64),
    /// Acknowledged, with the rejections routed.
    Acknowledged,
}

impl Part {
    /// The records that wait for a delivery.
    fn waiting(&self) -> Option<&Delivery> {
        match &self.state {
            PartState::Sealed(records) | PartState::Returned { records, .. } => Some(records),
            PartState::InFlight(_) | PartState::Acknowledged => None,
        }
    }

    /// Moves the waiting records into a delivery.
    fn take(&mut self, delivery: u64) -> Option<Delivery> {
        match std::mem::replace(&mut self.state, PartState::InFlight(delivery)) {
            PartState::Sealed(records) | PartState::Returned { records, .. } => Some(records),
            other => {
                self.state = other;
                None
            }
        }
    }
}

/// The parts of the next delivery.
#[derive(Default)]
struct Choice {
    parts: Vec<(TopicPartition, u64)>,
    bytes: u64,
    records: u64,
}

impl Choice {
    fn add(&mut self, partition: &TopicPartition, part: &Part) {
        self.parts.push((partition.clone(), part.number));
        self.bytes += part.bytes as u64;
        self.records += part.waiting().map_or(0, Delivery::pending_len) as u64;
    }

    fn has(&self, part: &Part) -> bool {
        self.parts.iter().any(|(_, number)| *number == part.number)
    }

    fn is_full(&self, policy: &CommitPolicy) -> bool {
        self.bytes >= policy.bytes || self.records >= policy.records
    }
}

impl Parts {
    pub(super) fn new(limits: InFlight, policy: CommitPolicy) -> Self {
        Self { by_partition: BTreeMap::new(), limits, policy }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_partition.is_empty()
    }

    /// Adds the next part of a topic partition.
    pub(super) fn push(&mut self, partition: &TopicPartition, part: Part) {
        self.by_partition.entry(partition.clone()).or_default().push_back(part);
    }

    /// The part with this number.
    pub(super) fn get_mut(&mut self, partition: &TopicPartition, number: u64) -> Option<&mut Part> {
        self.by_partition.get_mut(partition)?.iter_mut().find(|part| part.number == number)
    }

    /// Drops the parts of a topic partition.
    pub(super) fn remove(&mut self, partition: &TopicPartition) {
        self.by_partition.remove(partition);
    }

    /// The acknowledged parts of each topic partition before the first other one.
    pub(super) fn prefixes(&self) -> BTreeMap<&TopicPartition, Vec<&Part>> {
        let prefixes = self.by_partition.iter().map(|(partition, parts)| {
            let prefix = parts.iter().take_while(|part| matches!(part.state, PartState::Acknowledged));
            (partition, prefix.collect::<Vec<_>>())
        });
        prefixes.filter(|(_, parts)| !parts.is_empty()).collect()
    }

    /// Removes and returns the first parts of a topic partition.
    pub(super) fn drain(&mut self, partition: &TopicPartition, count: usize) -> Vec<Part> {
        let Some(parts) = self.by_partition.get_mut(partition) else { return Vec::new() };
        let drained = parts.drain(..count.min(parts.len())).collect();
        if parts.is_empty() {
            self.by_partition.remove(partition);
        }
        drained
    }

    /// Records wait for a delivery.
    pub(super) fn has_waiting(&self) -> bool {
        self.by_partition.values().flatten().any(|part| part.waiting().is_some())
    }

    /// Bytes of the records that wait for a delivery.
    pub(super) fn waiting_bytes(&self) -> usize {
        self.by_partition.values().flatten().filter(|part| part.waiting().is_some()).map(|part| part.bytes).sum()
    }

    /// When the first record of a topic partition was written to its topic.
    pub(super) fn oldest(&self, partition: &TopicPartition) -> Option<Instant> {
        self.by_partition.get(partition)?.iter().filter_map(|part| part.oldest).min()
    }

    /// Bytes of memory in use.
    pub(super) fn memory_bytes(&self) -> usize {
        self.by_partition.values().flatten().map(|part| part.bytes + part.dead_letters.bytes()).sum()
    }

    /// Moves the records of the next delivery, `number`, out of their parts. Returns the parts, in
    /// the order of the delivery's topic partitions; `None` if there is nothing to deliver now.
    pub(super) fn take_delivery(&mut self, number: u64, now: Instant) -> Option<(Delivery, Vec<u64>)> {
        let chosen = self.choose(now);
        let mut delivery = Delivery::default();
        for (partition, part) in &chosen {
            if let Some(records) = self.get_mut(partition, *part).and_then(|part| part.take(number)) {
                delivery.append(records);
            }
        }
        let parts: Vec<u64> = chosen.into_iter().map(|(_, part)| part).collect();
        (!parts.is_empty()).then_some((delivery, parts))
    }

    /// The parts of the next delivery: those with refused records that are due, and at most one
    /// other part of each topic partition.
    fn choose(&self, now: Instant) -> Vec<(TopicPartition, u64)> {
        let mut choice = Choice::default();
        let mut goes_alone = false;
        // Where only one delivery of a topic partition may be in flight, its records stay in order
        // (I5): a part is chosen together with all before it that are not acknowledged.
        let is_ordered = self.limits.per_partition == 1;
        let free = || self.by_partition.iter().filter(|(_, parts)| in_flight(parts) < self.limits.per_partition);
        for (partition, parts) in free() {
            for part in parts {
                match part.state {
                    PartState::Returned { joins, alone, .. } if joins <= now && !choice.is_full(&self.policy) => {
                        goes_alone |= alone <= now;
                        choice.add(partition, part);
                    }
                    PartState::Acknowledged => {}
                    _ if is_ordered => break,
                    _ => {}
                }
            }
        }
        goes_alone |= choice.is_full(&self.policy);
        let refused = choice.parts.len();
        for (partition, parts) in free() {
            let is_open = |part: &&Part| !matches!(part.state, PartState::Acknowledged);
            let mut open = parts.iter().skip_while(|part| !is_open(part)).enumerate();
            let sealed = open.find(|(_, part)| matches!(part.state, PartState::Sealed(_)));
            let Some((_, sealed)) = sealed.filter(|(before, _)| *before < MAX_PARTS * self.limits.deliveries) else {
                continue;
            };
            let earlier = || parts.iter().take_while(|part| part.number != sealed.number).filter(is_open);
            let passes = is_ordered && !earlier().all(|part| choice.has(part));
            if !passes && !choice.is_full(&self.policy) {
                choice.add(partition, sealed);
            }
        }
        if choice.parts.len() == refused && !goes_alone { Vec::new() } else { choice.parts }
    }
}

/// The deliveries in flight that hold records of a topic partition.
fn in_flight(parts: &VecDeque<Part>) -> usize {
    let mut deliveries: Vec<u64> = parts
        .iter()
        .filter_map(|part| match part.state {
            PartState::InFlight(delivery) => Some(delivery),
            _ => None,
        })
        .collect();
    deliveries.sort_unstable();
    deliveries.dedup();
    deliveries.len()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use trunkline_connector::{Batch, PartitionRecords};

    use super::*;

    const IDLE: Duration = Duration::from_millis(100);

    fn parts(per_partition: usize) -> Parts {
        let policy = CommitPolicy { records: 10, idle: IDLE, ..CommitPolicy::default() };
        Parts::new(InFlight { deliveries: 4, per_partition }, policy)
    }

    fn partition(number: i32) -> TopicPartition {
        TopicPartition::new("t", number)
    }

    fn records(number: i32, offsets: std::ops::Range<i64>) -> Delivery {
        let mut records = Batch::default();
        let topic = records.topic_index("t");
        for offset in offsets {
            let mut record = records.record();
            record.read_from(topic, number, offset).value(b"v");
            record.finish();
        }
        Delivery::new(vec![PartitionRecords { partition: partition(number), records }])
    }

    /// Adds a part of a topic partition; its number is its first offset.
    fn seal(parts: &mut Parts, number: i32, offsets: std::ops::Range<i64>) {
        let part = Part {
            number: offsets.start as u64,
            next: offsets.end,
            oldest: None,
            bytes: 100,
            state: PartState::Sealed(records(number, offsets)),
            counters: Counters::default(),
            dead_letters: DeadLetters::default(),
        };
        parts.push(&partition(number), part);
    }

    /// The destination refused the records of a part from this offset on.
    fn refuse(parts: &mut Parts, number: i32, part: u64, offsets: std::ops::Range<i64>, joins: Instant) {
        let part = parts.get_mut(&partition(number), part).unwrap();
        part.state = PartState::Returned { records: records(number, offsets), joins, alone: joins + IDLE };
    }

    fn acknowledge(parts: &mut Parts, number: i32, part: u64) {
        parts.get_mut(&partition(number), part).unwrap().state = PartState::Acknowledged;
    }

    /// The offsets of the next delivery.
    fn next(parts: &mut Parts, delivery: u64, now: Instant) -> Vec<i64> {
        let Some((delivery, _)) = parts.take_delivery(delivery, now) else { return Vec::new() };
        delivery.pending().map(|pending| pending.record.entry().offset).collect()
    }

    #[test]
    fn refused_records_join_the_next_delivery() {
        let (mut parts, now) = (parts(4), Instant::now());
        seal(&mut parts, 0, 0..4);
        assert_eq!(next(&mut parts, 1, now), [0, 1, 2, 3]);
        refuse(&mut parts, 0, 0, 2..4, now + IDLE);
        // Their pause is not over: they do not keep later records waiting.
        seal(&mut parts, 0, 4..6);
        assert_eq!(next(&mut parts, 2, now), [4, 5]);
        seal(&mut parts, 0, 6..8);
        assert_eq!(next(&mut parts, 3, now + IDLE), [2, 3, 6, 7]);
        // Offsets are committed behind the acknowledged prefix only.
        acknowledge(&mut parts, 0, 4);
        assert!(parts.prefixes().is_empty());
        acknowledge(&mut parts, 0, 0);
        let prefix = parts.prefixes().remove(&partition(0)).unwrap();
        assert_eq!(prefix.iter().map(|part| part.next).collect::<Vec<_>>(), [4, 6]);
        assert_eq!(parts.drain(&partition(0), 2).len(), 2);
        assert!(!parts.is_empty() && parts.prefixes().is_empty());
    }

    #[test]
    fn refused_records_go_alone_if_no_others_follow_or_they_fill_a_delivery() {
        let (mut parts, now) = (parts(4), Instant::now());
        seal(&mut parts, 0, 0..4);
        seal(&mut parts, 1, 100..120);
        assert_eq!(next(&mut parts, 1, now).len(), 24);
        refuse(&mut parts, 0, 0, 3..4, now);
        assert_eq!(next(&mut parts, 2, now + IDLE / 2), [0; 0]);
        assert!(parts.has_waiting());
        assert_eq!(next(&mut parts, 2, now + IDLE), [3]);
        refuse(&mut parts, 1, 100, 105..120, now);
        assert_eq!(next(&mut parts, 3, now).len(), 15);
    }

    #[test]
    fn with_one_delivery_per_partition_no_record_passes_a_refused_one() {
        let (mut parts, now) = (parts(1), Instant::now());
        seal(&mut parts, 0, 0..4);
        seal(&mut parts, 0, 4..8);
        seal(&mut parts, 1, 100..101);
        assert_eq!(next(&mut parts, 1, now), [0, 1, 2, 3, 100]);
        // The first delivery is in flight.
        assert_eq!(next(&mut parts, 2, now), [0; 0]);
        refuse(&mut parts, 0, 0, 1..3, now + IDLE);
        acknowledge(&mut parts, 1, 100);
        seal(&mut parts, 1, 101..102);
        assert_eq!(next(&mut parts, 2, now), [101], "the other topic partition continues");
        assert_eq!(next(&mut parts, 3, now + IDLE), [1, 2, 4, 5, 6, 7]);
        // Both parts were refused in part, and the first one fills a delivery.
        seal(&mut parts, 0, 8..9);
        refuse(&mut parts, 0, 0, 1..12, now);
        refuse(&mut parts, 0, 4, 5..6, now);
        assert_eq!(next(&mut parts, 4, now + IDLE), (1..12).collect::<Vec<_>>());
        assert_eq!(next(&mut parts, 5, now + IDLE), [0; 0]);
    }

    #[test]
    fn few_parts_pass_one_that_is_refused_for_long() {
        let (mut parts, now) = (parts(4), Instant::now());
        seal(&mut parts, 0, 0..1);
        assert_eq!(next(&mut parts, 1, now), [0]);
        let later = now + Duration::from_secs(3600);
        refuse(&mut parts, 0, 0, 0..1, later);
        let most = (MAX_PARTS * 4) as i64;
        for offset in 1..=most + 5 {
            seal(&mut parts, 0, offset..offset + 1);
            let expected = if offset < most { vec![offset] } else { Vec::new() };
            assert_eq!(next(&mut parts, offset as u64 + 1, now), expected);
            if offset < most {
                acknowledge(&mut parts, 0, offset as u64);
            }
        }
        assert_eq!(next(&mut parts, 1, later + IDLE), [0]);
    }
}
