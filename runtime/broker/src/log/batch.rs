//! The record batch (magic 2), as far as a broker has to know it: its 61-byte header.
//!
//! A batch is stored exactly as its producer sent it. Two fields belong to the broker, the base offset and the partition
//! leader epoch, and both lie before the bytes that the checksum covers, so they are patched without touching the rest.
//! With `message.timestamp.type=LogAppendTime` the broker also owns the timestamps, and then it has to seal the batch anew.
//!
//! Layout: <https://kafka.apache.org/documentation/#recordbatch>. Transaction markers: KIP-98.

use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::ResponseError;

/// Bytes of the header, up to and including the number of records.
pub(crate) const HEADER_LENGTH: usize = 61;
/// The length field does not count itself and the base offset before it.
pub(crate) const LENGTH_PREFIX: usize = 12;
/// Where the bytes begin that the checksum covers; what is patched lies before.
const CRC_COVERED_FROM: usize = 21;
/// How many bytes of a stored batch are the broker's own: base offset, length, leader epoch.
pub(crate) const PATCHED_PREFIX: usize = 16;

const MAGIC_AT: usize = 16;
const CRC_AT: usize = 17;
const ATTRIBUTES_AT: usize = 21;
const MAX_TIMESTAMP_AT: usize = 35;

const CODEC_MASK: i16 = 0x07;
const LOG_APPEND_TIME: i16 = 0x08;
const TRANSACTIONAL: i16 = 0x10;
const CONTROL: i16 = 0x20;
/// KIP-534: the base timestamp is the time after which tombstones of this batch may go.
pub(crate) const DELETE_HORIZON: i16 = 0x40;

/// There is one node and so one leader epoch for ever.
pub(crate) const LEADER_EPOCH: i32 = 0;

/// The header of one record batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BatchHeader {
    pub(crate) base_offset: i64,
    /// Bytes after the length field.
    pub(crate) length: i32,
    pub(crate) magic: i8,
    pub(crate) crc: u32,
    pub(crate) attributes: i16,
    pub(crate) last_offset_delta: i32,
    pub(crate) base_timestamp: i64,
    pub(crate) max_timestamp: i64,
    pub(crate) producer_id: i64,
    pub(crate) producer_epoch: i16,
    pub(crate) base_sequence: i32,
    pub(crate) record_count: i32,
}

fn take<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

impl BatchHeader {
    /// Reads the header at the start of `bytes`; `None` when there are too few of them or the length field is nonsense.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let header = Self {
            base_offset: i64::from_be_bytes(take(bytes, 0)?),
            length: i32::from_be_bytes(take(bytes, 8)?),
            magic: i8::from_be_bytes(take(bytes, MAGIC_AT)?),
            crc: u32::from_be_bytes(take(bytes, CRC_AT)?),
            attributes: i16::from_be_bytes(take(bytes, ATTRIBUTES_AT)?),
            last_offset_delta: i32::from_be_bytes(take(bytes, 23)?),
            base_timestamp: i64::from_be_bytes(take(bytes, 27)?),
            max_timestamp: i64::from_be_bytes(take(bytes, MAX_TIMESTAMP_AT)?),
            producer_id: i64::from_be_bytes(take(bytes, 43)?),
            producer_epoch: i16::from_be_bytes(take(bytes, 51)?),
            base_sequence: i32::from_be_bytes(take(bytes, 53)?),
            record_count: i32::from_be_bytes(take(bytes, 57)?),
        };
        (header.length >= (HEADER_LENGTH - LENGTH_PREFIX) as i32).then_some(header)
    }

    /// Bytes of the whole batch.
    pub(crate) fn size(&self) -> usize {
        LENGTH_PREFIX + self.length as usize
    }

    pub(crate) fn last_offset(&self) -> i64 {
        self.base_offset + i64::from(self.last_offset_delta)
    }

    pub(crate) fn last_sequence(&self) -> i32 {
        advance_sequence(self.base_sequence, self.last_offset_delta)
    }

    pub(crate) fn codec(&self) -> i16 {
        self.attributes & CODEC_MASK
    }

    pub(crate) fn is_transactional(&self) -> bool {
        self.attributes & TRANSACTIONAL != 0
    }

    pub(crate) fn is_control(&self) -> bool {
        self.attributes & CONTROL != 0
    }

    pub(crate) fn has_producer(&self) -> bool {
        self.producer_id >= 0
    }

    /// The time after which tombstones of this batch may be removed, when compaction has set one.
    pub(crate) fn delete_horizon(&self) -> Option<i64> {
        (self.attributes & DELETE_HORIZON != 0).then_some(self.base_timestamp)
    }
}

/// Sequence numbers are 31 bits wide and start again at 0.
pub(crate) fn advance_sequence(sequence: i32, by: i32) -> i32 {
    ((i64::from(sequence) + i64::from(by)) % (i64::from(i32::MAX) + 1)) as i32
}

/// Whether the checksum of the batch that `bytes` holds, and nothing but it, is right.
pub(crate) fn checksum_matches(bytes: &[u8], header: &BatchHeader) -> bool {
    bytes.get(CRC_COVERED_FROM..header.size()).is_some_and(|covered| crc32c::crc32c(covered) == header.crc)
}

/// Why a batch was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) error: ResponseError,
    pub(crate) message: String,
}

impl Refusal {
    pub(crate) fn new(error: ResponseError, message: impl Into<String>) -> Self {
        Self { error, message: message.into() }
    }
}

/// Checks what a producer sent for one partition: exactly one batch, whole, with the right checksum, and with a header
/// that a client may write. Nothing here looks at single records.
pub(crate) fn validate_produced(records: &[u8], max_batch_bytes: usize) -> Result<BatchHeader, Refusal> {
    let magic = records.get(MAGIC_AT).copied();
    if let Some(0 | 1) = magic {
        return Err(Refusal::new(
            ResponseError::UnsupportedForMessageFormat,
            "message formats 0 and 1 are not supported, use record batches (magic 2)",
        ));
    }
    let Some(header) = BatchHeader::parse(records) else {
        return Err(Refusal::new(ResponseError::CorruptMessage, "the record batch is cut short"));
    };
    if header.magic != 2 {
        return Err(Refusal::new(ResponseError::InvalidRecord, format!("unknown magic byte {}", header.magic)));
    }
    if header.size() > records.len() {
        return Err(Refusal::new(ResponseError::CorruptMessage, "the record batch is cut short"));
    }
    if header.size() < records.len() {
        return Err(Refusal::new(
            ResponseError::InvalidRecord,
            "a produce request holds exactly one record batch for a partition",
        ));
    }
    if header.size() > max_batch_bytes {
        return Err(Refusal::new(
            ResponseError::MessageTooLarge,
            format!("the record batch has {} bytes, max.message.bytes is {max_batch_bytes}", header.size()),
        ));
    }
    if !checksum_matches(records, &header) {
        return Err(Refusal::new(ResponseError::CorruptMessage, "the checksum of the record batch is wrong"));
    }
    if header.codec() > 4 {
        return Err(Refusal::new(ResponseError::UnsupportedCompressionType, "unknown compression codec"));
    }
    if header.is_control() {
        return Err(Refusal::new(ResponseError::InvalidRecord, "clients may not write control records"));
    }
    let counted = i64::from(header.last_offset_delta) + 1;
    if header.record_count < 1 || counted != i64::from(header.record_count) {
        return Err(Refusal::new(
            ResponseError::InvalidRecord,
            format!("{} records, but offsets for {counted}", header.record_count),
        ));
    }
    let has_identity = header.producer_epoch >= 0 && header.base_sequence >= 0;
    if header.has_producer() && !has_identity || header.is_transactional() && !header.has_producer() {
        return Err(Refusal::new(
            ResponseError::InvalidRecord,
            "a producer id needs an epoch and a sequence, a transaction needs a producer id",
        ));
    }
    Ok(header)
}

/// The first bytes of `batch` as they are stored: with the broker's base offset and leader epoch.
pub(crate) fn patched_prefix(header: &BatchHeader, base_offset: i64) -> [u8; PATCHED_PREFIX] {
    let mut prefix = [0; PATCHED_PREFIX];
    prefix[..8].copy_from_slice(&base_offset.to_be_bytes());
    prefix[8..12].copy_from_slice(&header.length.to_be_bytes());
    prefix[12..].copy_from_slice(&LEADER_EPOCH.to_be_bytes());
    prefix
}

/// The same batch stamped with the broker's time, for `message.timestamp.type=LogAppendTime`.
pub(crate) fn stamped(records: &[u8], header: &BatchHeader, now: i64) -> (BatchHeader, Bytes) {
    let mut batch = BytesMut::from(records);
    let attributes = header.attributes | LOG_APPEND_TIME;
    batch[ATTRIBUTES_AT..ATTRIBUTES_AT + 2].copy_from_slice(&attributes.to_be_bytes());
    batch[MAX_TIMESTAMP_AT..MAX_TIMESTAMP_AT + 8].copy_from_slice(&now.to_be_bytes());
    let crc = reseal(&mut batch);
    (BatchHeader { attributes, max_timestamp: now, crc, ..*header }, batch.freeze())
}

/// Whether the timestamps of the records are to be read from the header.
pub(crate) fn has_log_append_time(header: &BatchHeader) -> bool {
    header.attributes & LOG_APPEND_TIME != 0
}

fn reseal(batch: &mut [u8]) -> u32 {
    let crc = crc32c::crc32c(&batch[CRC_COVERED_FROM..]);
    batch[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_be_bytes());
    crc
}

/// Builds a batch out of a header and the (compressed) bytes of its records.
pub(crate) fn assemble(header: &BatchHeader, records: &[u8]) -> (BatchHeader, Bytes) {
    let mut batch = BytesMut::with_capacity(HEADER_LENGTH + records.len());
    batch.put_i64(header.base_offset);
    batch.put_i32((HEADER_LENGTH - LENGTH_PREFIX + records.len()) as i32);
    batch.put_i32(LEADER_EPOCH);
    batch.put_i8(2);
    batch.put_u32(0);
    batch.put_i16(header.attributes);
    batch.put_i32(header.last_offset_delta);
    batch.put_i64(header.base_timestamp);
    batch.put_i64(header.max_timestamp);
    batch.put_i64(header.producer_id);
    batch.put_i16(header.producer_epoch);
    batch.put_i32(header.base_sequence);
    batch.put_i32(header.record_count);
    batch.put_slice(records);
    let crc = reseal(&mut batch);
    let length = (batch.len() - LENGTH_PREFIX) as i32;
    (BatchHeader { length, crc, magic: 2, ..*header }, batch.freeze())
}

/// The control batch that ends a transaction in one partition (KIP-98): one record whose key says how it ended.
pub(crate) fn transaction_marker(
    producer_id: i64,
    producer_epoch: i16,
    commit: bool,
    now: i64,
) -> (BatchHeader, Bytes) {
    let mut record = BytesMut::with_capacity(24);
    record.put_i8(0); // attributes of the record
    record.put_i8(0); // timestamp delta
    record.put_i8(0); // offset delta
    record.put_i8(8); // key length 4, as a zig-zag varint
    record.put_i16(0); // key version
    record.put_i16(i16::from(commit));
    record.put_i8(12); // value length 6
    record.put_i16(0); // value version
    record.put_i32(0); // coordinator epoch
    record.put_i8(0); // no headers
    let mut records = BytesMut::with_capacity(25);
    records.put_i8((record.len() * 2) as i8);
    records.put_slice(&record);
    let header = BatchHeader {
        base_offset: 0,
        length: 0,
        magic: 2,
        crc: 0,
        attributes: TRANSACTIONAL | CONTROL,
        last_offset_delta: 0,
        base_timestamp: now,
        max_timestamp: now,
        producer_id,
        producer_epoch,
        base_sequence: -1,
        record_count: 1,
    };
    assemble(&header, &records)
}

/// Where the type of a marker written by [`transaction_marker`] is, and so whether it says commit.
pub(crate) fn marker_commits(batch: &[u8]) -> bool {
    const MARKER_TYPE_AT: usize = HEADER_LENGTH + 7;
    take(batch, MARKER_TYPE_AT).is_some_and(|bytes| i16::from_be_bytes(bytes) == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn produced(record_count: i32) -> (BatchHeader, Bytes) {
        let header = BatchHeader {
            base_offset: 0,
            length: 0,
            magic: 2,
            crc: 0,
            attributes: 0,
            last_offset_delta: record_count - 1,
            base_timestamp: 1,
            max_timestamp: 2,
            producer_id: -1,
            producer_epoch: -1,
            base_sequence: -1,
            record_count,
        };
        assemble(&header, b"records are not looked at")
    }

    #[test]
    fn what_is_assembled_validates_and_parses_back() {
        let (header, bytes) = produced(3);
        assert_eq!(validate_produced(&bytes, 1 << 20), Ok(header));
        let (marker, bytes) = transaction_marker(7, 1, true, 5);
        assert_eq!(BatchHeader::parse(&bytes), Some(marker));
        assert!(checksum_matches(&bytes, &marker) && marker.is_control() && marker_commits(&bytes));
        assert!(!marker_commits(&transaction_marker(7, 1, false, 5).1));
    }

    #[test]
    fn damage_is_refused_with_the_error_clients_expect() {
        let (_, bytes) = produced(3);
        let error = |bytes: &[u8], max| validate_produced(bytes, max).map_err(|refusal| refusal.error).err();
        for cut in 0..bytes.len() {
            let cut_error = error(&bytes[..cut], 1 << 20);
            assert_eq!(cut_error, Some(ResponseError::CorruptMessage), "cut at {cut}");
        }
        assert_eq!(error(&bytes, 20), Some(ResponseError::MessageTooLarge));
        let mut flipped = bytes.to_vec();
        flipped[70] ^= 1;
        assert_eq!(error(&flipped, 1 << 20), Some(ResponseError::CorruptMessage));
        let twice = [&bytes[..], &bytes[..]].concat();
        assert_eq!(error(&twice, 1 << 20), Some(ResponseError::InvalidRecord));
        let marker = transaction_marker(7, 1, true, 5).1;
        assert_eq!(error(&marker, 1 << 20), Some(ResponseError::InvalidRecord));
    }

    #[test]
    fn sequences_wrap_at_31_bits() {
        assert_eq!(advance_sequence(i32::MAX, 1), 0);
        assert_eq!(advance_sequence(i32::MAX - 1, 3), 1);
    }
}
