//! The records of a producer that no broker has acknowledged yet: for each partition an open batch,
//! batches that are ready, and batches in flight.
//!
//! Idempotence (KIP-98): each batch has a sequence number, given when it is first sent. A broker
//! accepts a partition's batches only in this order, and drops repeated ones, as long as at most
//! five are in flight.

use std::collections::{HashMap, VecDeque};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;

use super::record_batch::{BatchWriter, Codec, Identity, SealedBatch};
use crate::backoff::Backoff;
use crate::kafka::producer::ProducerRecord;

/// Batches of a partition in flight at most: a broker remembers this many.
pub(in crate::kafka::wire) const MAX_IN_FLIGHT: usize = 5;

/// Buffers that are kept for the next batches, and the largest that is kept. A batch that is sealed
/// because it is full is followed by another one, so one buffer is enough.
const KEPT_BUFFERS: usize = 1;
const KEPT_BUFFER_BYTES: usize = 2 << 20;

/// Records, by topic partition.
pub(in crate::kafka) struct SendBuffer {
    codec: Codec,
    batch_bytes: usize,
    batch_records: i32,
    topics: Vec<Topic>,
    by_name: HashMap<String, usize>,
    /// The topic of the last record.
    last: usize,
    partitions: Vec<Partition>,
    /// Partitions with an open batch.
    open: Vec<usize>,
    /// Partitions with batches that are ready.
    ready: VecDeque<usize>,
    /// Bytes of the open batches, uncompressed.
    open_bytes: usize,
    /// Bytes of all other batches, compressed.
    sealed_bytes: usize,
    spare: Vec<Vec<u8>>,
    scratch: Vec<u8>,
}

struct Topic {
    name: String,
    /// The place of each partition in `partitions`.
    partitions: Vec<Option<usize>>,
}

/// A topic partition.
pub(in crate::kafka::wire) struct Partition {
    topic: usize,
    number: i32,
    open: BatchWriter,
    ready: VecDeque<Ready>,
    in_flight: VecDeque<Sent>,
    /// Requests in flight with a batch of this partition.
    requests: usize,
    next_sequence: i32,
    /// Whether the partition is a part of the open transaction.
    is_added: bool,
    /// A batch in flight was not accepted: all are sent again once no request is in flight.
    is_rejected: bool,
    /// No request before this time.
    not_before: Option<Instant>,
    backoff: Backoff,
}

enum Ready {
    New(SealedBatch),
    /// A batch that has its sequence number.
    Again(Sent),
}

/// A batch in flight.
#[derive(Clone)]
pub(in crate::kafka::wire) struct Sent {
    pub(in crate::kafka::wire) bytes: Bytes,
    pub(in crate::kafka::wire) sequence: i32,
    pub(in crate::kafka::wire) largest: usize,
}

impl SendBuffer {
    /// `batch_bytes`: a batch is closed before it exceeds this, uncompressed; a larger record is
    /// alone in its batch.
    pub(in crate::kafka) fn new(codec: Codec, batch_bytes: usize, batch_records: i32) -> Self {
        Self {
            codec,
            batch_bytes,
            batch_records,
            topics: Vec::new(),
            by_name: HashMap::new(),
            last: 0,
            partitions: Vec::new(),
            open: Vec::new(),
            ready: VecDeque::new(),
            open_bytes: 0,
            sealed_bytes: 0,
            spare: Vec::new(),
            scratch: Vec::new(),
        }
    }

    /// Memory of all batches, in bytes.
    pub(in crate::kafka) fn bytes(&self) -> usize {
        self.open_bytes + self.sealed_bytes
    }

    /// Whether every record is acknowledged.
    pub(in crate::kafka) fn is_empty(&self) -> bool {
        self.open.is_empty() && self.sealed_bytes == 0
    }

    /// Whether batches wait to be sent.
    pub(in crate::kafka::wire) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Appends a record to its partition's open batch. Returns whether a batch became ready.
    pub(in crate::kafka) fn append(&mut self, record: &ProducerRecord<'_>) -> bool {
        let at = self.partition_of(record.topic, record.partition);
        let size = BatchWriter::size_of(record);
        let is_full = |open: &BatchWriter, more: usize| {
            open.bytes() + more > self.batch_bytes || open.records() >= self.batch_records
        };
        let open = &self.partitions[at].open;
        let mut has_sealed = false;
        if !open.is_empty() && is_full(open, size) {
            self.seal(at);
            self.open.retain(|other| *other != at);
            has_sealed = true;
        }
        let open = &mut self.partitions[at].open;
        if open.is_empty() {
            if let Some(buffer) = self.spare.pop() {
                *open = BatchWriter::over(buffer);
            }
            self.open.push(at);
        }
        let before = open.bytes();
        open.append(record, record.timestamp.unwrap_or_else(now));
        self.open_bytes += open.bytes() - before;
        has_sealed
    }

    fn partition_of(&mut self, topic: &str, number: i32) -> usize {
        if self.topics.get(self.last).is_none_or(|last| last.name != topic) {
            self.last = match self.by_name.get(topic) {
                Some(known) => *known,
                None => {
                    self.by_name.insert(topic.to_owned(), self.topics.len());
                    self.topics.push(Topic { name: topic.to_owned(), partitions: Vec::new() });
                    self.topics.len() - 1
                }
            };
        }
        let topic = &mut self.topics[self.last];
        // The partition was chosen among those of the topic.
        let index = usize::try_from(number).unwrap_or(0);
        if topic.partitions.len() <= index {
            topic.partitions.resize(index + 1, None);
        }
        *topic.partitions[index].get_or_insert_with(|| {
            self.partitions.push(Partition::new(self.last, number));
            self.partitions.len() - 1
        })
    }

    fn seal(&mut self, at: usize) {
        let partition = &mut self.partitions[at];
        let open = std::mem::take(&mut partition.open);
        self.open_bytes -= open.bytes();
        let (sealed, buffer) = open.seal(self.codec, &mut self.scratch);
        if self.scratch.capacity() > KEPT_BUFFER_BYTES {
            self.scratch = Vec::new();
        }
        if self.spare.len() < KEPT_BUFFERS && buffer.capacity() <= KEPT_BUFFER_BYTES {
            self.spare.push(buffer);
        }
        self.sealed_bytes += sealed.bytes();
        if partition.ready.is_empty() {
            self.ready.push_back(at);
        }
        partition.ready.push_back(Ready::New(sealed));
    }

    /// Makes all open batches ready.
    pub(in crate::kafka) fn seal_all(&mut self) {
        for at in std::mem::take(&mut self.open) {
            self.seal(at);
        }
    }

    /// Makes the larger ones of the open batches ready, until they have at most `bytes`.
    pub(in crate::kafka) fn seal_largest(&mut self, bytes: usize) {
        while self.open_bytes > bytes && !self.open.is_empty() {
            let mean = self.open_bytes / self.open.len();
            let open = std::mem::take(&mut self.open);
            for at in open {
                if self.partitions[at].open.bytes() >= mean {
                    self.seal(at);
                } else {
                    self.open.push(at);
                }
            }
        }
    }

    /// Discards all batches. Returns whether a batch with a sequence number was discarded: then the
    /// next number of its partition is unknown.
    pub(in crate::kafka) fn discard(&mut self) -> bool {
        let mut has_numbered = false;
        for partition in &mut self.partitions {
            has_numbered |=
                !partition.in_flight.is_empty() || partition.ready.iter().any(|batch| matches!(batch, Ready::Again(_)));
            partition.open = BatchWriter::default();
            partition.ready.clear();
            partition.in_flight.clear();
            partition.requests = 0;
            partition.is_rejected = false;
            partition.not_before = None;
        }
        self.open.clear();
        self.ready.clear();
        (self.open_bytes, self.sealed_bytes) = (0, 0);
        has_numbered
    }

    /// Starts the sequence numbers of all partitions again, for a producer with a new epoch.
    pub(in crate::kafka) fn restart_sequences(&mut self) {
        self.partitions.iter_mut().for_each(|partition| partition.next_sequence = 0);
    }

    /// No partition is a part of the next transaction yet.
    pub(in crate::kafka) fn end_transaction(&mut self) {
        self.partitions.iter_mut().for_each(|partition| partition.is_added = false);
    }

    pub(in crate::kafka::wire) fn partition(&mut self, at: usize) -> &mut Partition {
        &mut self.partitions[at]
    }

    /// Notes that partitions are a part of the open transaction.
    pub(in crate::kafka::wire) fn set_added(&mut self, partitions: &[usize]) {
        partitions.iter().for_each(|at| self.partitions[*at].is_added = true);
    }

    pub(in crate::kafka::wire) fn topic(&self, at: usize) -> &str {
        &self.topics[self.partitions[at].topic].name
    }

    pub(in crate::kafka::wire) fn number(&self, at: usize) -> i32 {
        self.partitions[at].number
    }

    /// Partitions with records that are no part of the open transaction yet.
    pub(in crate::kafka::wire) fn not_added(&self) -> Vec<usize> {
        let with_records = self.ready.iter().chain(&self.open).copied();
        let mut found: Vec<usize> = with_records.filter(|at| !self.partitions[*at].is_added).collect();
        found.sort_unstable();
        found.dedup();
        found
    }

    /// The partitions with batches that may be sent now.
    pub(in crate::kafka::wire) fn sendable(&self, now: Instant) -> Vec<usize> {
        self.ready.iter().copied().filter(|at| self.partitions[*at].is_sendable(now)).collect()
    }

    /// When the next partition may be tried again, of those that wait for it.
    pub(in crate::kafka::wire) fn next_attempt(&self, now: Instant) -> Option<Instant> {
        self.ready.iter().filter_map(|at| self.partitions[*at].not_before).filter(|time| *time > now).min()
    }

    /// Takes the next batch of a partition, to be sent.
    pub(in crate::kafka::wire) fn take(&mut self, at: usize, producer: Identity) -> Option<Sent> {
        let partition = &mut self.partitions[at];
        let sent = match partition.ready.pop_front()? {
            Ready::Again(sent) => sent,
            Ready::New(sealed) => {
                let (sequence, records, largest) = (partition.next_sequence, sealed.records, sealed.largest);
                // After the largest number follows zero.
                partition.next_sequence = sequence.wrapping_add(records) & i32::MAX;
                Sent { bytes: Bytes::from(sealed.stamp(producer, sequence)), sequence, largest }
            }
        };
        if partition.ready.is_empty() {
            self.ready.retain(|other| *other != at);
        }
        let partition = &mut self.partitions[at];
        partition.in_flight.push_back(sent.clone());
        partition.requests += 1;
        partition.not_before = None;
        Some(sent)
    }

    /// Notes that a batch was acknowledged. An earlier one may have been stored and answered with
    /// an error: it is sent again, and the broker knows it.
    pub(in crate::kafka::wire) fn acknowledge(&mut self, at: usize, sequence: i32) {
        let partition = &mut self.partitions[at];
        partition.requests = partition.requests.saturating_sub(1);
        if let Some(found) = partition.in_flight.iter().position(|sent| sent.sequence == sequence)
            && let Some(sent) = partition.in_flight.remove(found)
        {
            self.sealed_bytes -= sent.bytes.len();
            partition.backoff.reset();
        }
        self.send_again_if_due(at);
    }

    /// Notes that the request of a batch has failed, in a way that lets it be sent again.
    pub(in crate::kafka::wire) fn reject(&mut self, at: usize) {
        let partition = &mut self.partitions[at];
        partition.requests = partition.requests.saturating_sub(1);
        partition.is_rejected = true;
        self.send_again_if_due(at);
    }

    fn send_again_if_due(&mut self, at: usize) {
        let partition = &mut self.partitions[at];
        if !partition.is_rejected || partition.requests > 0 {
            return;
        }
        partition.is_rejected = false;
        partition.delay();
        if partition.in_flight.is_empty() {
            return;
        }
        if partition.ready.is_empty() {
            self.ready.push_back(at);
        }
        while let Some(sent) = partition.in_flight.pop_back() {
            partition.ready.push_front(Ready::Again(sent));
        }
    }

    /// Whether a batch is the first one of its partition that is not acknowledged.
    pub(in crate::kafka::wire) fn is_first(&self, at: usize, sequence: i32) -> bool {
        self.partitions[at].in_flight.front().is_some_and(|first| first.sequence == sequence)
    }

    /// The largest record of a batch in flight.
    pub(in crate::kafka::wire) fn largest(&self, at: usize, sequence: i32) -> usize {
        let found = self.partitions[at].in_flight.iter().find(|sent| sent.sequence == sequence);
        found.map_or(0, |sent| sent.largest)
    }
}

impl Partition {
    fn new(topic: usize, number: i32) -> Self {
        Self {
            topic,
            number,
            open: BatchWriter::default(),
            ready: VecDeque::new(),
            in_flight: VecDeque::new(),
            requests: 0,
            next_sequence: 0,
            is_added: false,
            is_rejected: false,
            not_before: None,
            backoff: Backoff::new(super::FIRST_RETRY, super::MAX_RETRY),
        }
    }

    fn is_sendable(&self, now: Instant) -> bool {
        !self.is_rejected && self.requests < MAX_IN_FLIGHT && self.not_before.is_none_or(|time| time <= now)
    }

    /// Delays the next attempt.
    pub(in crate::kafka::wire) fn delay(&mut self) {
        self.not_before = Some(Instant::now() + self.backoff.advance());
    }
}

/// Milliseconds since the epoch.
fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRODUCER: Identity = Identity { id: 1, epoch: 0 };

    fn buffer(batch_bytes: usize) -> SendBuffer {
        SendBuffer::new(Codec::None, batch_bytes, 10_000)
    }

    fn append(buffer: &mut SendBuffer, topic: &str, partition: i32, value: &[u8]) -> bool {
        buffer.append(&ProducerRecord {
            topic,
            partition,
            timestamp: Some(1),
            key: None,
            value: Some(value),
            headers: &[],
            more_headers: &[],
        })
    }

    /// Takes all batches that may be sent: their partitions and sequence numbers.
    fn take_all(buffer: &mut SendBuffer) -> Vec<(usize, i32)> {
        let mut taken = Vec::new();
        loop {
            let sendable = buffer.sendable(Instant::now() + std::time::Duration::from_secs(60));
            if sendable.is_empty() {
                return taken;
            }
            for at in sendable {
                taken.push((at, buffer.take(at, PRODUCER).unwrap().sequence));
            }
        }
    }

    #[test]
    fn batches_are_numbered_in_their_order_and_five_are_in_flight() {
        let mut buffer = buffer(100);
        for _ in 0..7 {
            append(&mut buffer, "a", 0, &[0; 60]);
        }
        append(&mut buffer, "a", 1, b"x");
        assert_eq!(buffer.not_added(), [0, 1]);
        buffer.set_added(&[0, 1]);
        assert_eq!(buffer.not_added(), [0; 0]);
        buffer.seal_all();
        assert_eq!(take_all(&mut buffer), [(0, 0), (1, 0), (0, 1), (0, 2), (0, 3), (0, 4)]);
        buffer.acknowledge(0, 0);
        assert_eq!(take_all(&mut buffer), [(0, 5)]);
        (1..6).for_each(|sequence| buffer.acknowledge(0, sequence));
        buffer.acknowledge(1, 0);
        assert_eq!(take_all(&mut buffer), [(0, 6)]);
        assert!(!buffer.is_empty());
        buffer.acknowledge(0, 6);
        assert!(buffer.is_empty() && buffer.bytes() == 0);
    }

    #[test]
    fn batches_behind_a_rejected_one_are_sent_again_in_their_order() {
        let mut buffer = buffer(100);
        for _ in 0..4 {
            append(&mut buffer, "a", 0, &[0; 60]);
        }
        buffer.seal_all();
        assert_eq!(take_all(&mut buffer).len(), 4);
        buffer.acknowledge(0, 0);
        buffer.reject(0);
        assert!(buffer.is_first(0, 1) && !buffer.is_first(0, 2));
        append(&mut buffer, "a", 0, &[0; 60]);
        buffer.seal_all();
        assert_eq!(take_all(&mut buffer), [], "requests with batches of the partition are in flight");
        // This one was stored: its repetition is dropped by the broker.
        buffer.acknowledge(0, 2);
        buffer.reject(0);
        assert!(buffer.next_attempt(Instant::now()).is_some());
        assert_eq!(take_all(&mut buffer), [(0, 1), (0, 3), (0, 4)]);
    }

    #[test]
    fn discarded_batches_with_a_number_are_reported() {
        let mut buffer = buffer(100);
        append(&mut buffer, "a", 0, b"1");
        buffer.seal_all();
        assert!(!buffer.discard());
        append(&mut buffer, "a", 0, b"1");
        buffer.seal_all();
        assert_eq!(take_all(&mut buffer), [(0, 0)]);
        assert!(buffer.discard() && buffer.is_empty() && !buffer.discard());
        append(&mut buffer, "a", 0, b"1");
        buffer.seal_all();
        assert_eq!(take_all(&mut buffer), [(0, 1)]);
        buffer.acknowledge(0, 1);
        buffer.restart_sequences();
        append(&mut buffer, "a", 0, b"1");
        buffer.seal_all();
        assert_eq!(take_all(&mut buffer), [(0, 0)]);
    }

    #[test]
    fn sequence_numbers_start_again_after_the_largest() {
        let mut buffer = buffer(1000);
        append(&mut buffer, "a", 0, b"1");
        buffer.partition(0).next_sequence = i32::MAX;
        append(&mut buffer, "a", 0, b"2");
        buffer.seal_all();
        assert_eq!(take_all(&mut buffer), [(0, i32::MAX)]);
        append(&mut buffer, "a", 0, b"3");
        buffer.seal_all();
        assert_eq!(take_all(&mut buffer), [(0, 1)]);
    }

    #[test]
    fn the_larger_batches_make_room() {
        let mut buffer = buffer(100_000);
        for partition in 0..10 {
            append(&mut buffer, "a", partition, &vec![0; 100 * (partition as usize + 1)]);
        }
        buffer.seal_largest(1000);
        assert!(buffer.open_bytes <= 1000 && !buffer.open.is_empty(), "{}", buffer.open_bytes);
        assert!(buffer.sealed_bytes > 4000);
        buffer.seal_largest(0);
        assert!(buffer.open.is_empty());
    }
}
