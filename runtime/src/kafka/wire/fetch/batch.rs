//! One record batch in the answer of a fetch: its header, and its records.
//!
//! What a broker sends is not trusted: every length is checked, and so is the checksum.
//!
//! Layout: <https://kafka.apache.org/documentation/#recordbatch>.

use std::fmt;

use trunkline_connector::Batch;

use crate::kafka::packed_headers::{PACKED, unpack};

/// Length of the header, including the number of records.
pub(in crate::kafka::wire) const HEADER_LENGTH: usize = 61;
/// The length field counts neither itself nor the base offset before it.
const LENGTH_PREFIX: usize = 12;
/// First byte that the checksum covers.
const CRC_COVERED_FROM: usize = 21;
const MAGIC_AT: usize = 16;

const CODEC_MASK: i16 = 0x07;
const LOG_APPEND_TIME: i16 = 0x08;
const TRANSACTIONAL: i16 = 0x10;
const CONTROL: i16 = 0x20;

/// The type of the control record that ends an aborted transaction.
const ABORT: i16 = 0;

/// Why a batch cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::kafka::wire) enum Defect {
    /// A message format of Kafka before 0.11.
    OldFormat(i8),
    Checksum,
    Malformed,
    Compression(String),
}

impl fmt::Display for Defect {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OldFormat(magic) => write!(
                formatter,
                "it has message format {magic}, of Kafka before 0.11, which is not supported: copy the topic to a new one \
                 with a client that reads it"
            ),
            Self::Checksum => formatter.write_str("its checksum is wrong: it was damaged on a disk or on its way"),
            Self::Malformed => formatter.write_str("it contains bytes that are no record"),
            Self::Compression(reason) => write!(formatter, "it cannot be decompressed: {reason}"),
        }
    }
}

/// What a reader needs of the header of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::kafka::wire) struct BatchHeader {
    pub(in crate::kafka::wire) base_offset: i64,
    /// Bytes of the whole batch.
    pub(in crate::kafka::wire) size: usize,
    attributes: i16,
    last_offset_delta: i32,
    base_timestamp: i64,
    max_timestamp: i64,
    pub(in crate::kafka::wire) producer_id: i64,
    pub(in crate::kafka::wire) record_count: i32,
}

fn take<const N: usize>(bytes: &[u8; HEADER_LENGTH], at: usize) -> [u8; N] {
    let mut taken = [0; N];
    taken.copy_from_slice(&bytes[at..at + N]);
    taken
}

impl BatchHeader {
    /// The header of the first batch; `None` if there is no complete batch: a broker cuts its
    /// answer off at the limit of the request.
    pub(in crate::kafka::wire) fn parse(bytes: &[u8]) -> Result<Option<Self>, Defect> {
        match bytes.get(MAGIC_AT) {
            None => return Ok(None),
            Some(2) => {}
            Some(magic @ (0 | 1)) => return Err(Defect::OldFormat(*magic as i8)),
            Some(_) => return Err(Defect::Malformed),
        }
        let Some(header) = bytes.first_chunk::<HEADER_LENGTH>() else { return Ok(None) };
        let length = i32::from_be_bytes(take(header, 8));
        let size = usize::try_from(length).map_err(|_| Defect::Malformed)? + LENGTH_PREFIX;
        if size < HEADER_LENGTH {
            return Err(Defect::Malformed);
        }
        if bytes.len() < size {
            return Ok(None);
        }
        let this = Self {
            base_offset: i64::from_be_bytes(take(header, 0)),
            size,
            attributes: i16::from_be_bytes(take(header, 21)),
            last_offset_delta: i32::from_be_bytes(take(header, 23)),
            base_timestamp: i64::from_be_bytes(take(header, 27)),
            max_timestamp: i64::from_be_bytes(take(header, 35)),
            producer_id: i64::from_be_bytes(take(header, 43)),
            record_count: i32::from_be_bytes(take(header, 57)),
        };
        let has_offsets = this.base_offset >= 0 && this.last_offset_delta >= 0 && this.record_count >= 0;
        let ends = this.base_offset.checked_add(i64::from(this.last_offset_delta) + 1).is_some();
        if has_offsets && ends { Ok(Some(this)) } else { Err(Defect::Malformed) }
    }

    /// Checks the checksum of the batch.
    pub(in crate::kafka::wire) fn check(bytes: &[u8]) -> Result<(), Defect> {
        let stored = bytes.get(MAGIC_AT + 1..).and_then(|rest| rest.first_chunk()).map(|crc| u32::from_be_bytes(*crc));
        let computed = bytes.get(CRC_COVERED_FROM..).map(crc32c::crc32c);
        if stored.is_some() && stored == computed { Ok(()) } else { Err(Defect::Checksum) }
    }

    /// The offset after the batch. It counts records that compaction has removed.
    pub(in crate::kafka::wire) fn next_offset(&self) -> i64 {
        self.base_offset + i64::from(self.last_offset_delta) + 1
    }

    pub(in crate::kafka::wire) fn codec(&self) -> i16 {
        self.attributes & CODEC_MASK
    }

    pub(in crate::kafka::wire) fn is_transactional(&self) -> bool {
        self.attributes & TRANSACTIONAL != 0
    }

    pub(in crate::kafka::wire) fn is_control(&self) -> bool {
        self.attributes & CONTROL != 0
    }
}

/// The rest of the records of a batch.
pub(in crate::kafka::wire) struct Records<'b> {
    rest: &'b [u8],
}

impl<'b> Records<'b> {
    /// Over decompressed records.
    pub(in crate::kafka::wire) fn new(rest: &'b [u8]) -> Self {
        Self { rest }
    }

    /// The number of bytes that were not read yet.
    pub(in crate::kafka::wire) fn left(&self) -> usize {
        self.rest.len()
    }

    /// Copies the next record to `batch` unless its offset is below `from`. Returns its offset and
    /// the bytes of its key and value.
    #[inline]
    pub(in crate::kafka::wire) fn copy_next(
        &mut self,
        header: &BatchHeader,
        from: i64,
        batch: &mut Batch,
        (topic, partition): (u16, i32),
    ) -> Result<(i64, usize), Defect> {
        let length = length(varint(&mut self.rest)?)?;
        let (mut rest, after) = self.rest.split_at_checked(length).ok_or(Defect::Malformed)?;
        self.rest = after;
        let _attributes = byte(&mut rest)?;
        let timestamp_delta = varint(&mut rest)?;
        let offset_delta = varint(&mut rest)?;
        if !(0..=i64::from(header.last_offset_delta)).contains(&offset_delta) {
            return Err(Defect::Malformed);
        }
        let offset = header.base_offset + offset_delta;
        if offset < from {
            return Ok((offset, 0));
        }
        let timestamp = if header.attributes & LOG_APPEND_TIME == 0 {
            header.base_timestamp.wrapping_add(timestamp_delta)
        } else {
            header.max_timestamp
        };
        let key = optional_bytes(&mut rest)?;
        let value = optional_bytes(&mut rest)?;
        let mut record = batch.record();
        record.read_from(topic, partition, offset);
        if timestamp >= 0 {
            record.timestamp(timestamp);
        }
        if let Some(key) = key {
            record.key(key);
        }
        if let Some(value) = value {
            record.value(value);
        }
        for _ in 0..length_of_headers(&mut rest)? {
            let name = optional_bytes(&mut rest)?.ok_or(Defect::Malformed)?;
            match optional_bytes(&mut rest)? {
                Some(packed)
                    if name == PACKED.as_bytes() && record.header_block_with(|block| unpack(packed, block)) => {}
                value => {
                    record.header(&String::from_utf8_lossy(name), value);
                }
            }
        }
        record.finish();
        Ok((offset, key.map_or(0, <[u8]>::len) + value.map_or(0, <[u8]>::len)))
    }

    /// Whether the first record is the marker of an aborted transaction.
    pub(in crate::kafka::wire) fn is_abort(&self) -> Result<bool, Defect> {
        let mut rest = self.rest;
        let length = length(varint(&mut rest)?)?;
        let mut rest = rest.get(..length).ok_or(Defect::Malformed)?;
        let _attributes = byte(&mut rest)?;
        let (_timestamp_delta, _offset_delta) = (varint(&mut rest)?, varint(&mut rest)?);
        let key = optional_bytes(&mut rest)?.ok_or(Defect::Malformed)?;
        let kind = key.get(2..4).and_then(|kind| kind.first_chunk()).ok_or(Defect::Malformed)?;
        Ok(i16::from_be_bytes(*kind) == ABORT)
    }
}

#[inline]
fn byte(rest: &mut &[u8]) -> Result<u8, Defect> {
    let (byte, after) = rest.split_first().ok_or(Defect::Malformed)?;
    *rest = after;
    Ok(*byte)
}

/// A zig-zag variable-length integer. Most have one or two bytes.
#[inline]
fn varint(rest: &mut &[u8]) -> Result<i64, Defect> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let next = byte(rest)?;
        value |= u64::from(next & 0x7f) << shift;
        if next & 0x80 == 0 {
            return Ok((value >> 1) as i64 ^ -((value & 1) as i64));
        }
    }
    Err(Defect::Malformed)
}

#[inline]
fn length(value: i64) -> Result<usize, Defect> {
    usize::try_from(value).map_err(|_| Defect::Malformed)
}

/// Each header has at least two bytes.
#[inline]
fn length_of_headers(rest: &mut &[u8]) -> Result<usize, Defect> {
    let count = length(varint(rest)?)?;
    if count <= rest.len() / 2 { Ok(count) } else { Err(Defect::Malformed) }
}

/// Bytes after their length; `None` is null.
#[inline]
fn optional_bytes<'b>(rest: &mut &'b [u8]) -> Result<Option<&'b [u8]>, Defect> {
    let length = varint(rest)?;
    if length < 0 {
        return Ok(None);
    }
    let (bytes, after) =
        rest.split_at_checked(usize::try_from(length).map_err(|_| Defect::Malformed)?).ok_or(Defect::Malformed)?;
    *rest = after;
    Ok(Some(bytes))
}
