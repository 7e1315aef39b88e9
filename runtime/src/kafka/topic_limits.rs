//! The largest record that each topic accepts, and the size of a record as the broker will see it.
//!
//! A broker compares `max.message.bytes` with the size of a compressed batch. A refused batch fails
//! its whole transaction, so the producer measures each large record before it sends it. A record
//! of more than [`BATCH_BYTES`] is alone in its batch.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use trunkline_connector::Error;
use trunkline_connector::batch::Headers;

use super::producer::ProducerRecord;

/// The largest record of topics that Trunkline creates, where the broker permits it.
pub const MAX_RECORD_BYTES: usize = 64 << 20;

/// A batch of records is sent when it has this size.
pub(super) const BATCH_BYTES: usize = 1_000_000;

/// Upper limit on the batch header and the fields of one record other than key, value and headers.
const OVERHEAD: usize = 128;

/// Upper limit on the length of one length field.
const LENGTH_FIELD: usize = 5;

/// librdkafka compresses in blocks of this size, and each has a length field of 4 bytes.
const LZ4_BLOCK: usize = 64 << 10;
const LZ4_BLOCK_HEADER: usize = 4;
const LZ4_FRAME: usize = 19;

/// The limits that are known, shared by all clients of a cluster.
#[derive(Clone, Default)]
pub(super) struct TopicLimits {
    limits: Arc<Mutex<HashMap<String, Limit>>>,
}

/// The limit of one topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limit {
    /// The topic's `max.message.bytes`.
    pub(super) bytes: usize,
    /// The broker has refused a record that should have fitted compressed: from then on,
    /// uncompressed sizes count.
    pub(super) is_strict: bool,
}

impl TopicLimits {
    /// Notes a topic's `max.message.bytes`. What was learned from a refusal stays valid unless the
    /// limit was raised.
    pub(super) fn set(&self, topic: &str, bytes: usize) {
        let mut limits = self.lock();
        let known = limits.get(topic).is_some_and(|known| known.bytes == bytes);
        if !known {
            limits.insert(topic.to_owned(), Limit { bytes, is_strict: false });
        }
    }

    /// The limit of a topic, if it is known.
    pub(super) fn get(&self, topic: &str) -> Option<Limit> {
        self.lock().get(topic).copied()
    }

    /// The size of a producer's batches: no topic refuses a batch because of records that it would
    /// accept one by one.
    pub(super) fn batch_bytes(&self) -> usize {
        let smallest = self.lock().values().map(|limit| limit.bytes.saturating_sub(OVERHEAD)).min();
        smallest.map_or(BATCH_BYTES, |bytes| bytes.clamp(OVERHEAD, BATCH_BYTES))
    }

    /// Notes that a broker refused a batch that contained a record of `bytes`, from a producer with
    /// `batch_bytes`.
    pub(super) fn note_refusal(&self, topic: &str, bytes: usize, batch_bytes: usize) {
        let mut limits = self.lock();
        let known = limits.get(topic).map_or(MAX_RECORD_BYTES, |limit| limit.bytes);
        // A record that is smaller than a batch was probably not alone in it.
        let accepted = if bytes < batch_bytes / 2 { batch_bytes / 2 } else { bytes.saturating_sub(1) };
        limits.insert(topic.to_owned(), Limit { bytes: known.min(accepted), is_strict: true });
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Limit>> {
        // Each change is one insert, which a panic cannot leave incomplete.
        self.limits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A record that its topic does not accept because of its size. Nothing was sent, and the
/// transaction can continue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordTooLarge {
    /// The topic.
    pub topic: String,
    /// Size of the record: key, value, headers and their encoding.
    pub bytes: usize,
    /// The largest record that the topic accepts.
    pub limit: usize,
}

impl fmt::Display for RecordTooLarge {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { topic, bytes, limit } = self;
        write!(formatter, "the record has {bytes} bytes and topic `{topic}` accepts {limit}")?;
        if *bytes > MAX_RECORD_BYTES {
            return write!(formatter, "; Trunkline sends records of up to {MAX_RECORD_BYTES} bytes");
        }
        // A round figure above the size: the next record may be a little larger.
        let raised = bytes.next_power_of_two().clamp(1 << 20, MAX_RECORD_BYTES);
        write!(
            formatter,
            "; to raise the limit: kafka-configs.sh --bootstrap-server BROKER --alter --entity-type topics \
             --entity-name {topic} --add-config max.message.bytes={raised}"
        )
    }
}

/// Why a record was not sent.
#[derive(Debug)]
pub enum SendError {
    /// The topic does not accept the record: a data error of this record. The transaction can
    /// continue.
    TooLarge(RecordTooLarge),
    /// The transaction has failed.
    Failed(Error),
}

impl From<Error> for SendError {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// For callers to whom every refusal is an error: those that write Trunkline's own state.
impl From<SendError> for Error {
    fn from(error: SendError) -> Self {
        match error {
            SendError::TooLarge(refused) => Self::data("kafka.record_too_large", refused.to_string()),
            SendError::Failed(error) => error,
        }
    }
}

/// Whether a record may be larger than `bytes`, by an estimate that costs nothing per header.
pub(super) fn is_larger_than(record: &ProducerRecord<'_>, bytes: usize) -> bool {
    let more: usize = record.more_headers.iter().map(|(name, value)| name.len() + value.len() + 2 * LENGTH_FIELD).sum();
    // A batch writes longer length fields than a message does.
    let headers = record.headers.len() + more;
    OVERHEAD + record.key.map_or(0, <[u8]>::len) + record.value.map_or(0, <[u8]>::len) + headers > bytes
}

/// Checks that a topic accepts a record. `compresses`: the producer compresses at least as well as
/// lz4.
pub(super) fn check(record: &ProducerRecord<'_>, limit: Option<Limit>, compresses: bool) -> Result<(), RecordTooLarge> {
    let bytes = encoded_bytes(record);
    let allowed = limit.map_or(MAX_RECORD_BYTES, |limit| limit.bytes.min(MAX_RECORD_BYTES));
    if bytes <= allowed {
        return Ok(());
    }
    let may_fit = compresses && bytes <= MAX_RECORD_BYTES && limit.is_some_and(|limit| !limit.is_strict);
    if may_fit && compressed_bytes(record, bytes) <= allowed {
        return Ok(());
    }
    Err(RecordTooLarge { topic: record.topic.to_owned(), bytes, limit: allowed })
}

/// Size of a batch with this record alone, uncompressed.
fn encoded_bytes(record: &ProducerRecord<'_>) -> usize {
    let headers = Headers::over(record.headers).map(|(name, value)| name.len() + value.map_or(0, <[u8]>::len));
    let more = record.more_headers.iter().map(|(name, value)| name.len() + value.len());
    let headers: usize = headers.chain(more).map(|bytes| bytes + 2 * LENGTH_FIELD).sum();
    OVERHEAD + record.key.map_or(0, <[u8]>::len) + record.value.map_or(0, <[u8]>::len) + headers
}

/// Size of a batch with this record alone, of which the value is compressed as librdkafka does it.
/// The rest counts as it is.
fn compressed_bytes(record: &ProducerRecord<'_>, encoded_bytes: usize) -> usize {
    let value = record.value.unwrap_or_default();
    let compressed: usize = value
        .chunks(LZ4_BLOCK)
        .map(|block| {
            let size = lz4::block::compress(block, None, false).map_or(block.len(), |compressed| compressed.len());
            size.min(block.len()) + LZ4_BLOCK_HEADER
        })
        .sum();
    encoded_bytes - value.len() + LZ4_FRAME + compressed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(value: &[u8]) -> ProducerRecord<'_> {
        ProducerRecord {
            topic: "logs",
            partition: 0,
            timestamp: None,
            key: Some(b"key"),
            value: Some(value),
            headers: &[],
            more_headers: &[("name", b"value")],
        }
    }

    /// Bytes that no algorithm compresses.
    fn noise(bytes: usize) -> Vec<u8> {
        let mut state = 1_u64;
        let next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        };
        std::iter::repeat_with(next).take(bytes).collect()
    }

    #[test]
    fn records_above_the_limit_of_their_topic_are_refused_with_both_sizes() {
        let limit = Some(Limit { bytes: 1 << 20, is_strict: false });
        assert_eq!(check(&record(&noise((1 << 20) - 1000)), limit, true), Ok(()));
        let refused = check(&record(&noise(2 << 20)), limit, true).unwrap_err();
        assert_eq!((refused.topic.as_str(), refused.limit), ("logs", 1 << 20));
        assert!(refused.bytes > 2 << 20 && refused.bytes < (2 << 20) + 1000, "{refused:?}");
        let message = Error::from(SendError::TooLarge(refused)).to_string();
        assert!(message.contains("accepts 1048576") && message.contains("--entity-name logs"), "{message}");
        assert!(message.contains("max.message.bytes=4194304"), "{message}");
    }

    #[test]
    fn a_compressible_record_counts_with_its_compressed_size_until_the_broker_refuses_one() {
        let limits = TopicLimits::default();
        limits.set("logs", 1 << 20);
        let value = vec![b'x'; 8 << 20];
        assert_eq!(check(&record(&value), limits.get("logs"), true), Ok(()));
        assert!(check(&record(&value), limits.get("logs"), false).is_err());
        limits.note_refusal("logs", value.len(), BATCH_BYTES);
        assert!(check(&record(&value), limits.get("logs"), true).is_err());
        // Reading the same limit again does not undo it, a raised one does.
        limits.set("logs", 1 << 20);
        assert!(check(&record(&value), limits.get("logs"), true).is_err());
        limits.set("logs", 16 << 20);
        assert_eq!(check(&record(&value), limits.get("logs"), true), Ok(()));
    }

    #[test]
    fn no_record_is_larger_than_the_client_permits() {
        let value = vec![b'x'; MAX_RECORD_BYTES];
        for limit in [None, Some(Limit { bytes: usize::MAX, is_strict: false })] {
            let refused = check(&record(&value), limit, true).unwrap_err();
            assert_eq!(refused.limit, MAX_RECORD_BYTES);
            assert!(!refused.to_string().contains("kafka-configs"), "{refused}");
        }
        assert_eq!(check(&record(&value[..MAX_RECORD_BYTES - 1000]), None, true), Ok(()));
    }

    #[test]
    fn batches_fit_the_topic_with_the_smallest_limit() {
        let limits = TopicLimits::default();
        assert_eq!(limits.batch_bytes(), BATCH_BYTES);
        limits.set("large", 64 << 20);
        assert_eq!(limits.batch_bytes(), BATCH_BYTES);
        limits.set("small", 100_000);
        assert_eq!(limits.batch_bytes(), 100_000 - OVERHEAD);
    }

    #[test]
    fn refusals_of_unknown_limits_converge() {
        let limits = TopicLimits::default();
        // A batch of small records: the next producer's batches are half as large.
        limits.note_refusal("logs", 100, BATCH_BYTES);
        assert_eq!(limits.get("logs").unwrap().bytes, BATCH_BYTES / 2);
        assert!(limits.batch_bytes() < BATCH_BYTES / 2);
        // One large record: it is refused from now on.
        limits.note_refusal("other", 3 << 20, BATCH_BYTES);
        assert!(
            check(&ProducerRecord { topic: "other", ..record(&noise(3 << 20)) }, limits.get("other"), true).is_err()
        );
    }
}
