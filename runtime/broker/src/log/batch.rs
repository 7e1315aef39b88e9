//! The header of a record batch (magic 2): all that the broker needs to know about most batches.
//!
//! The broker stores a batch as received. It owns two fields, base offset and partition leader
//! epoch. Both lie before the bytes that the checksum covers, so patching them keeps the checksum
//! valid. With `message.timestamp.type=LogAppendTime` the broker also owns the timestamps and
//! recomputes the checksum.
//!
//! Layout: <https://kafka.apache.org/documentation/#recordbatch>. Transaction markers: KIP-98.

use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::ResponseError;

use crate::error::ApiError;

/// Length of the header, including the number of records.
pub(crate) const HEADER_LENGTH: usize = 61;
/// The length field counts neither itself nor the base offset before it.
pub(crate) const LENGTH_PREFIX: usize = 12;
/// First byte that the checksum covers. Patched fields lie before it.
const CRC_COVERED_FROM: usize = 21;
/// Length of the prefix that the broker writes: base offset, length, leader epoch.
pub(crate) const PATCHED_PREFIX: usize = 16;

const MAGIC_AT: usize = 16;
const CRC_AT: usize = 17;
const ATTRIBUTES_AT: usize = 21;
const MAX_TIMESTAMP_AT: usize = 35;

const CODEC_MASK: i16 = 0x07;
const LOG_APPEND_TIME: i16 = 0x08;
const TRANSACTIONAL: i16 = 0x10;
const CONTROL: i16 = 0x20;
/// KIP-534: the base timestamp is the time after which tombstones in this batch may be removed.
pub(crate) const DELETE_HORIZON: i16 = 0x40;

/// A single node never changes its leader epoch.
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
    /// Parses the header at the start of `bytes`. `None`: too few bytes, or an impossible length
    /// field.
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

    /// Length of the whole batch.
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

    /// The time after which tombstones in this batch may be removed, if compaction set one.
    pub(crate) fn delete_horizon(&self) -> Option<i64> {
        (self.attributes & DELETE_HORIZON != 0).then_some(self.base_timestamp)
    }
}

/// Sequence numbers have 31 bits and wrap to 0.
pub(crate) fn advance_sequence(sequence: i32, by: i32) -> i32 {
    ((i64::from(sequence) + i64::from(by)) % (i64::from(i32::MAX) + 1)) as i32
}

/// Whether the checksum of the batch in `bytes` is right.
pub(crate) fn checksum_matches(bytes: &[u8], header: &BatchHeader) -> bool {
    bytes.get(CRC_COVERED_FROM..header.size()).is_some_and(|covered| crc32c::crc32c(covered) == header.crc)
}

/// Checks the batch that a producer sent for one partition: exactly one complete batch, valid
/// checksum, valid header. [`validation`](super::validation) checks the records.
pub(crate) fn validate_produced(records: &[u8], max_batch_bytes: usize) -> Result<BatchHeader, ApiError> {
    let incomplete = || ApiError::new(ResponseError::InvalidRecord, "the record batch is incomplete");
    match records.get(MAGIC_AT) {
        Some(2) => {}
        Some(0 | 1) => {
            let message = "message formats 0 and 1 are not supported; use record batches (magic 2)";
            return Err(ApiError::new(ResponseError::InvalidRecord, message));
        }
        Some(magic) => {
            return Err(ApiError::new(ResponseError::CorruptMessage, format!("unknown magic byte {magic}")));
        }
        None => return Err(incomplete()),
    }
    let header = BatchHeader::parse(records).ok_or_else(incomplete)?;
    if header.size() > records.len() {
        return Err(incomplete());
    }
    if header.size() < records.len() {
        return Err(ApiError::new(
            ResponseError::InvalidRecord,
            "a produce request holds exactly one record batch for a partition",
        ));
    }
    if header.size() > max_batch_bytes {
        return Err(ApiError::new(
            ResponseError::MessageTooLarge,
            format!("the record batch has {} bytes, max.message.bytes is {max_batch_bytes}", header.size()),
        ));
    }
    if !checksum_matches(records, &header) {
        return Err(ApiError::new(ResponseError::CorruptMessage, "the checksum of the record batch is wrong"));
    }
    if header.codec() > 4 {
        return Err(ApiError::new(ResponseError::UnsupportedCompressionType, "unknown compression codec"));
    }
    if header.is_control() {
        return Err(ApiError::new(ResponseError::InvalidRecord, "clients may not write control records"));
    }
    if header.delete_horizon().is_some() {
        return Err(ApiError::new(ResponseError::InvalidRecord, "clients may not set a delete horizon"));
    }
    let counted = i64::from(header.last_offset_delta) + 1;
    if header.record_count < 1 || counted != i64::from(header.record_count) {
        return Err(ApiError::new(
            ResponseError::InvalidRecord,
            format!("{} records, but offsets for {counted}", header.record_count),
        ));
    }
    let has_identity = header.producer_epoch >= 0 && header.base_sequence >= 0;
    if header.has_producer() && !has_identity || header.is_transactional() && !header.has_producer() {
        return Err(ApiError::new(
            ResponseError::InvalidRecord,
            "a producer id needs an epoch and a sequence, a transaction needs a producer id",
        ));
    }
    Ok(header)
}

/// The first bytes of the stored batch: with the broker's base offset and leader epoch.
pub(crate) fn patched_prefix(header: &BatchHeader, base_offset: i64) -> [u8; PATCHED_PREFIX] {
    let mut prefix = [0; PATCHED_PREFIX];
    prefix[..8].copy_from_slice(&base_offset.to_be_bytes());
    prefix[8..12].copy_from_slice(&header.length.to_be_bytes());
    prefix[12..].copy_from_slice(&LEADER_EPOCH.to_be_bytes());
    prefix
}

/// The same batch with the broker's time, for `message.timestamp.type=LogAppendTime`.
pub(crate) fn with_append_time(records: &[u8], header: &BatchHeader, now: i64) -> (BatchHeader, Bytes) {
    let mut batch = BytesMut::from(records);
    let attributes = header.attributes | LOG_APPEND_TIME;
    batch[ATTRIBUTES_AT..ATTRIBUTES_AT + 2].copy_from_slice(&attributes.to_be_bytes());
    batch[MAX_TIMESTAMP_AT..MAX_TIMESTAMP_AT + 8].copy_from_slice(&now.to_be_bytes());
    let crc = update_checksum(&mut batch);
    (BatchHeader { attributes, max_timestamp: now, crc, ..*header }, batch.freeze())
}

/// The same batch with the timestamp type CreateTime and another largest timestamp. Some producers
/// write a wrong one, and retention and the search for timestamps rely on it.
pub(crate) fn with_producer_timestamps(
    records: &[u8],
    header: &BatchHeader,
    max_timestamp: i64,
) -> (BatchHeader, Bytes) {
    let mut batch = BytesMut::from(records);
    let attributes = header.attributes & !LOG_APPEND_TIME;
    batch[ATTRIBUTES_AT..ATTRIBUTES_AT + 2].copy_from_slice(&attributes.to_be_bytes());
    batch[MAX_TIMESTAMP_AT..MAX_TIMESTAMP_AT + 8].copy_from_slice(&max_timestamp.to_be_bytes());
    let crc = update_checksum(&mut batch);
    (BatchHeader { attributes, max_timestamp, crc, ..*header }, batch.freeze())
}

/// Whether the header's max timestamp is the timestamp of all records.
pub(crate) fn has_log_append_time(header: &BatchHeader) -> bool {
    header.attributes & LOG_APPEND_TIME != 0
}

fn update_checksum(batch: &mut [u8]) -> u32 {
    let crc = crc32c::crc32c(&batch[CRC_COVERED_FROM..]);
    batch[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_be_bytes());
    crc
}

/// Builds a batch from a header and the (compressed) bytes of its records.
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
    let crc = update_checksum(&mut batch);
    let length = (batch.len() - LENGTH_PREFIX) as i32;
    (BatchHeader { length, crc, magic: 2, ..*header }, batch.freeze())
}

/// The contents of a transaction marker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Marker {
    pub(crate) commit: bool,
    pub(crate) coordinator_epoch: i32,
}

impl Marker {
    /// A marker of this broker's coordinator, which never changes its epoch.
    pub(crate) fn of_coordinator(commit: bool) -> Self {
        Self { commit, coordinator_epoch: 0 }
    }

    /// Reads a batch written by [`transaction_marker`].
    pub(crate) fn read(batch: &[u8]) -> Self {
        const TYPE_AT: usize = HEADER_LENGTH + 7;
        const COORDINATOR_EPOCH_AT: usize = HEADER_LENGTH + 12;
        Self {
            commit: take(batch, TYPE_AT).is_some_and(|bytes| i16::from_be_bytes(bytes) == 1),
            coordinator_epoch: take(batch, COORDINATOR_EPOCH_AT).map_or(0, i32::from_be_bytes),
        }
    }
}

/// The control batch that ends a transaction in one partition (KIP-98). The key of its single
/// record is the outcome.
pub(crate) fn transaction_marker(
    producer_id: i64,
    producer_epoch: i16,
    marker: Marker,
    now: i64,
) -> (BatchHeader, Bytes) {
    let mut record = BytesMut::with_capacity(24);
    record.put_i8(0); // attributes of the record
    record.put_i8(0); // timestamp delta
    record.put_i8(0); // offset delta
    record.put_i8(8); // key length 4, as a zig-zag varint
    record.put_i16(0); // key version
    record.put_i16(i16::from(marker.commit));
    record.put_i8(12); // value length 6
    record.put_i16(0); // value version
    record.put_i32(marker.coordinator_epoch);
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

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: Marker = Marker { commit: true, coordinator_epoch: 3 };

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
        assemble(&header, b"the header test ignores records")
    }

    #[test]
    fn assembled_batches_validate_and_parse() {
        let (header, bytes) = produced(3);
        assert_eq!(validate_produced(&bytes, 1 << 20), Ok(header));
        let (marker, bytes) = transaction_marker(7, 1, COMMIT, 5);
        assert_eq!(BatchHeader::parse(&bytes), Some(marker));
        assert!(checksum_matches(&bytes, &marker) && marker.is_control());
        assert_eq!(Marker::read(&bytes), COMMIT);
        let abort = Marker { commit: false, coordinator_epoch: 9 };
        assert_eq!(Marker::read(&transaction_marker(7, 1, abort, 5).1), abort);
    }

    #[test]
    fn damaged_batches_are_refused_with_kafkas_error_codes() {
        let (_, bytes) = produced(3);
        let error = |bytes: &[u8], max| validate_produced(bytes, max).map_err(|error| error.code).err();
        for cut in 0..bytes.len() {
            let cut_error = error(&bytes[..cut], 1 << 20);
            assert_eq!(cut_error, Some(ResponseError::InvalidRecord), "cut at {cut}");
        }
        assert_eq!(error(&bytes, 20), Some(ResponseError::MessageTooLarge));
        let mut flipped = bytes.to_vec();
        flipped[70] ^= 1;
        assert_eq!(error(&flipped, 1 << 20), Some(ResponseError::CorruptMessage));
        let with_magic = |magic: u8| {
            let mut other = bytes.to_vec();
            other[MAGIC_AT] = magic;
            error(&other, 1 << 20)
        };
        assert_eq!(
            [0, 1, 3, 255].map(with_magic).map(Option::unwrap),
            [
                ResponseError::InvalidRecord,
                ResponseError::InvalidRecord,
                ResponseError::CorruptMessage,
                ResponseError::CorruptMessage,
            ]
        );
        let twice = [&bytes[..], &bytes[..]].concat();
        assert_eq!(error(&twice, 1 << 20), Some(ResponseError::InvalidRecord));
        let marker = transaction_marker(7, 1, COMMIT, 5).1;
        assert_eq!(error(&marker, 1 << 20), Some(ResponseError::InvalidRecord));
    }

    #[test]
    fn sequences_wrap_at_31_bits() {
        assert_eq!(advance_sequence(i32::MAX, 1), 0);
        assert_eq!(advance_sequence(i32::MAX - 1, 3), 1);
    }
}
