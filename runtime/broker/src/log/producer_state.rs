//! The producers of a partition: recognises a batch sent twice, refuses sequence gaps and fenced
//! producers, and tracks open transactions.
//!
//! The rules are those of KIP-98, KIP-360 (an unknown producer may start at any sequence) and
//! Kafka's `ProducerAppendInfo`. The state is kept per partition because sequence numbers are.

use std::collections::{BTreeMap, HashMap, VecDeque};

use kafka_protocol::ResponseError;
use serde::{Deserialize, Serialize};

use super::batch::{BatchHeader, Marker, advance_sequence};
use crate::error::ApiError;

/// A producer has at most this many requests in flight, so a retry is among this many batches.
const RECENT_BATCHES: usize = 5;
/// Limit on producers, because any client can request producer ids. Beyond it the longest idle ones
/// are removed.
const MAX_PRODUCERS: usize = 100_000;
const NO_SEQUENCE: i32 = -1;
/// The producer has not ended a transaction.
pub(crate) const NO_COORDINATOR_EPOCH: i32 = -1;

fn no_coordinator_epoch() -> i32 {
    NO_COORDINATOR_EPOCH
}

/// One of the last batches of a producer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RecentBatch {
    pub(crate) base_sequence: i32,
    pub(crate) last_sequence: i32,
    pub(crate) base_offset: i64,
    pub(crate) timestamp: i64,
}

/// One producer in one partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Producer {
    pub(crate) epoch: i16,
    pub(crate) batches: VecDeque<RecentBatch>,
    /// First offset of the open transaction.
    pub(crate) transaction_start: Option<i64>,
    /// Wall clock of the last append, for expiry. The batch's own timestamps may be years old.
    pub(crate) last_timestamp: i64,
    /// The epoch of the coordinator in the last marker.
    #[serde(default = "no_coordinator_epoch")]
    pub(crate) coordinator_epoch: i32,
}

impl Producer {
    fn new(epoch: i16) -> Self {
        Self {
            epoch,
            batches: VecDeque::new(),
            transaction_start: None,
            last_timestamp: 0,
            coordinator_epoch: NO_COORDINATOR_EPOCH,
        }
    }

    pub(crate) fn last_sequence(&self) -> i32 {
        self.batches.back().map_or(NO_SEQUENCE, |batch| batch.last_sequence)
    }
}

/// An aborted transaction: `read_committed` readers skip this producer's records in this range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AbortedTransaction {
    pub(crate) producer_id: i64,
    pub(crate) first_offset: i64,
    /// Offset of the abort marker.
    pub(crate) last_offset: i64,
}

/// The result of the checks of a batch.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum SequenceCheck {
    Append,
    /// The log already has the batch, at this offset.
    Duplicate(RecentBatch),
}

/// All producers of one partition.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProducerStates {
    producers: HashMap<i64, Producer>,
    /// First offset of every open transaction, with its producer.
    open: BTreeMap<i64, i64>,
    aborted: Vec<AbortedTransaction>,
}

impl ProducerStates {
    /// Checks the sequence and the epoch of a batch before it is written.
    pub(crate) fn check(&self, header: &BatchHeader) -> Result<SequenceCheck, ApiError> {
        let Some(producer) = self.producers.get(&header.producer_id) else {
            return Ok(SequenceCheck::Append);
        };
        if header.producer_epoch < producer.epoch {
            return Err(ApiError::new(
                ResponseError::InvalidProducerEpoch,
                format!(
                    "epoch {} of producer {} was fenced by {}",
                    header.producer_epoch, header.producer_id, producer.epoch
                ),
            ));
        }
        if header.producer_epoch == producer.epoch {
            let same = producer.batches.iter().find(|batch| {
                (batch.base_sequence, batch.last_sequence) == (header.base_sequence, header.last_sequence())
            });
            if let Some(batch) = same {
                return Ok(SequenceCheck::Duplicate(*batch));
            }
        }
        let last_sequence =
            if header.producer_epoch == producer.epoch { producer.last_sequence() } else { NO_SEQUENCE };
        let expected = if last_sequence == NO_SEQUENCE { 0 } else { advance_sequence(last_sequence, 1) };
        if header.base_sequence != expected {
            return Err(ApiError::new(
                ResponseError::OutOfOrderSequenceNumber,
                format!("producer {} sent sequence {}, expected {expected}", header.producer_id, header.base_sequence),
            ));
        }
        if !header.is_transactional() && producer.transaction_start.is_some() {
            return Err(ApiError::new(
                ResponseError::InvalidTxnState,
                format!("producer {} has a transaction open and sent a batch outside of it", header.producer_id),
            ));
        }
        Ok(SequenceCheck::Append)
    }

    /// Records an appended data batch. Recovery calls it for every batch of a log.
    pub(crate) fn appended(&mut self, header: &BatchHeader, now: i64) {
        if !header.has_producer() {
            return;
        }
        self.evict_idle_producers(header.producer_id);
        let producer = self.producers.entry(header.producer_id).or_insert_with(|| Producer::new(header.producer_epoch));
        if producer.epoch != header.producer_epoch {
            producer.epoch = header.producer_epoch;
            producer.batches.clear();
        }
        if producer.batches.len() == RECENT_BATCHES {
            producer.batches.pop_front();
        }
        producer.batches.push_back(RecentBatch {
            base_sequence: header.base_sequence,
            last_sequence: header.last_sequence(),
            base_offset: header.base_offset,
            timestamp: header.max_timestamp,
        });
        producer.last_timestamp = now;
        if header.is_transactional() && producer.transaction_start.is_none() {
            producer.transaction_start = Some(header.base_offset);
            self.open.insert(header.base_offset, header.producer_id);
        }
    }

    /// Records an appended transaction marker.
    pub(crate) fn ended(&mut self, marker: &BatchHeader, contents: Marker, now: i64) {
        self.evict_idle_producers(marker.producer_id);
        let producer = self.producers.entry(marker.producer_id).or_insert_with(|| Producer::new(marker.producer_epoch));
        if marker.producer_epoch > producer.epoch {
            producer.epoch = marker.producer_epoch;
            producer.batches.clear();
        }
        producer.last_timestamp = now;
        producer.coordinator_epoch = contents.coordinator_epoch;
        let Some(first_offset) = producer.transaction_start.take() else {
            return;
        };
        self.open.remove(&first_offset);
        if !contents.commit {
            self.aborted.push(AbortedTransaction {
                producer_id: marker.producer_id,
                first_offset,
                last_offset: marker.base_offset,
            });
        }
    }

    /// Removes the longest idle producers when there are too many. Producers with an open
    /// transaction stay.
    fn evict_idle_producers(&mut self, producer_id: i64) {
        if self.producers.len() < MAX_PRODUCERS || self.producers.contains_key(&producer_id) {
            return;
        }
        let idle = self.producers.iter().filter(|(_, producer)| producer.transaction_start.is_none());
        // A tenth at once, so that the search does not run for every new producer.
        let mut by_age: Vec<(i64, i64)> = idle.map(|(id, producer)| (producer.last_timestamp, *id)).collect();
        by_age.sort_unstable();
        for (_, id) in by_age.iter().take(MAX_PRODUCERS / 10) {
            self.producers.remove(id);
        }
    }

    /// Removes producers that were idle since before `before`.
    pub(crate) fn expire(&mut self, before: i64) {
        self.producers.retain(|_, producer| producer.transaction_start.is_some() || producer.last_timestamp >= before);
    }

    /// Removes aborted transactions that lie before the start of the log.
    pub(crate) fn log_starts_at(&mut self, log_start: i64) {
        self.aborted.retain(|transaction| transaction.last_offset >= log_start);
    }

    /// Removes aborted transactions whose records and marker compaction has removed.
    pub(crate) fn forget_aborted_before(&mut self, offset: i64) {
        self.aborted.retain(|transaction| transaction.last_offset >= offset);
    }

    /// Offset of the first record of the earliest open transaction.
    pub(crate) fn first_open_offset(&self) -> Option<i64> {
        self.open.first_key_value().map(|(offset, _)| *offset)
    }

    /// First offset of the producer's open transaction in this partition.
    pub(crate) fn open_transaction(&self, producer_id: i64) -> Option<i64> {
        self.producers.get(&producer_id)?.transaction_start
    }

    /// One producer.
    pub(crate) fn get(&self, producer_id: i64) -> Option<&Producer> {
        self.producers.get(&producer_id)
    }

    /// Aborted transactions that overlap the offsets from `from` to before `until`.
    pub(crate) fn aborted_in(&self, from: i64, until: i64) -> Vec<AbortedTransaction> {
        // Markers are written in order of offset, so the list is sorted by last offset.
        let start = self.aborted.partition_point(|transaction| transaction.last_offset < from);
        self.aborted[start..].iter().filter(|transaction| transaction.first_offset < until).copied().collect()
    }

    /// Every producer, for introspection.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (i64, &Producer)> {
        self.producers.iter().map(|(id, producer)| (*id, producer))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(
        producer_epoch: i16,
        base_sequence: i32,
        count: i32,
        base_offset: i64,
        transactional: bool,
    ) -> BatchHeader {
        BatchHeader {
            base_offset,
            length: 100,
            magic: 2,
            crc: 0,
            attributes: if transactional { 0x10 } else { 0 },
            last_offset_delta: count - 1,
            base_timestamp: 0,
            max_timestamp: 1,
            producer_id: 9,
            producer_epoch,
            base_sequence,
            record_count: count,
        }
    }

    fn error(states: &ProducerStates, header: &BatchHeader) -> Option<ResponseError> {
        states.check(header).err().map(|error| error.code)
    }

    #[test]
    fn a_retried_batch_gets_its_first_offset() {
        let mut states = ProducerStates::default();
        for number in 0..6 {
            let header = batch(0, number * 10, 10, i64::from(number) * 10, false);
            assert_eq!(states.check(&header), Ok(SequenceCheck::Append));
            states.appended(&header, 0);
        }
        let again = states.check(&batch(0, 20, 10, 0, false));
        assert!(matches!(again, Ok(SequenceCheck::Duplicate(RecentBatch { base_offset: 20, .. }))));
        // Only five batches are kept. An older one is out of order.
        assert_eq!(error(&states, &batch(0, 0, 10, 0, false)), Some(ResponseError::OutOfOrderSequenceNumber));
        assert_eq!(error(&states, &batch(0, 70, 1, 0, false)), Some(ResponseError::OutOfOrderSequenceNumber));
        assert_eq!(states.check(&batch(0, 60, 1, 0, false)), Ok(SequenceCheck::Append));
    }

    #[test]
    fn an_older_epoch_is_fenced_and_a_newer_one_starts_at_zero() {
        let mut states = ProducerStates::default();
        states.appended(&batch(3, 0, 1, 0, false), 0);
        assert_eq!(error(&states, &batch(2, 1, 1, 0, false)), Some(ResponseError::InvalidProducerEpoch));
        assert_eq!(error(&states, &batch(4, 1, 1, 0, false)), Some(ResponseError::OutOfOrderSequenceNumber));
        assert_eq!(states.check(&batch(4, 0, 1, 0, false)), Ok(SequenceCheck::Append));
    }

    #[test]
    fn sequences_wrap_to_zero() {
        let mut states = ProducerStates::default();
        states.appended(&batch(0, i32::MAX - 1, 2, 0, false), 0);
        assert_eq!(states.check(&batch(0, 0, 1, 2, false)), Ok(SequenceCheck::Append));
    }

    #[test]
    fn a_transaction_is_open_from_its_first_record_to_its_marker() {
        let mut states = ProducerStates::default();
        states.appended(&batch(0, 0, 5, 100, true), 0);
        states.appended(&batch(0, 5, 5, 105, true), 0);
        assert_eq!(states.first_open_offset(), Some(100));
        assert_eq!(error(&states, &batch(0, 10, 1, 110, false)), Some(ResponseError::InvalidTxnState));
        states.ended(&batch(0, -1, 1, 110, true), Marker::of_coordinator(false), 0);
        assert_eq!(states.first_open_offset(), None);
        assert_eq!(states.aborted_in(100, 111).len(), 1);
        assert_eq!(states.aborted_in(0, 100).len(), 0);
        assert_eq!(states.aborted_in(111, 120).len(), 0);
        states.log_starts_at(111);
        assert_eq!(states.aborted_in(0, 111).len(), 0);
    }
}
