//! The records inside a batch. They are read only for validation, for the exact answer to "the
//! offset at this time", and for compaction.
//!
//! Produced bytes are not trusted: decompression stops at [`MAX_DECOMPRESSED`], and every length is
//! checked.

use std::borrow::Cow;
use std::io::{self, Read};

use kafka_protocol::ResponseError;

use super::batch::{BatchHeader, HEADER_LENGTH, has_log_append_time};
use crate::error::ApiError;

/// Limit on the decompressed size of a batch.
const MAX_DECOMPRESSED: u64 = 128 << 20;

/// One record, as far as the broker needs it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Record<'batch> {
    pub(crate) attributes: u8,
    pub(crate) timestamp_delta: i64,
    pub(crate) offset_delta: i64,
    pub(crate) key: Option<&'batch [u8]>,
    pub(crate) is_tombstone: bool,
    /// The bytes after the timestamp delta.
    pub(crate) after_timestamp: &'batch [u8],
}

/// The decompressed records of a batch.
pub(crate) fn decompress<'batch>(header: &BatchHeader, batch: &'batch [u8]) -> io::Result<Cow<'batch, [u8]>> {
    let body = batch.get(HEADER_LENGTH..).ok_or(io::ErrorKind::UnexpectedEof)?;
    let decompressed = match header.codec() {
        0 => return Ok(Cow::Borrowed(body)),
        1 => read_limited(flate2::read::MultiGzDecoder::new(body))?,
        2 => snappy(body)?,
        3 => read_limited(lz4::Decoder::new(body)?)?,
        4 => read_limited(zstd::stream::read::Decoder::with_buffer(body)?)?,
        codec => return Err(io::Error::other(format!("unknown codec {codec}"))),
    };
    Ok(Cow::Owned(decompressed))
}

fn read_limited(reader: impl Read) -> io::Result<Vec<u8>> {
    let mut decompressed = Vec::new();
    reader.take(MAX_DECOMPRESSED + 1).read_to_end(&mut decompressed)?;
    if decompressed.len() as u64 > MAX_DECOMPRESSED { Err(too_large()) } else { Ok(decompressed) }
}

fn too_large() -> io::Error {
    io::Error::other("the batch is too large when decompressed")
}

/// Java clients write Snappy in blocks after a header, others write one raw block.
fn snappy(body: &[u8]) -> io::Result<Vec<u8>> {
    const JAVA_MAGIC: &[u8] = b"\x82SNAPPY\0";
    const JAVA_HEADER: usize = 16;
    let block = |block: &[u8]| {
        if snap::raw::decompress_len(block)? as u64 > MAX_DECOMPRESSED {
            return Err(too_large());
        }
        Ok(snap::raw::Decoder::new().decompress_vec(block)?)
    };
    if !body.starts_with(JAVA_MAGIC) {
        return block(body);
    }
    let mut rest = body.get(JAVA_HEADER..).ok_or(io::ErrorKind::UnexpectedEof)?;
    let mut decompressed = Vec::new();
    while let Some((length, after)) = rest.split_first_chunk::<4>() {
        let length = u32::from_be_bytes(*length) as usize;
        let compressed = after.get(..length).ok_or(io::ErrorKind::UnexpectedEof)?;
        decompressed.extend(block(compressed)?);
        if decompressed.len() as u64 > MAX_DECOMPRESSED {
            return Err(too_large());
        }
        rest = &after[length..];
    }
    Ok(decompressed)
}

/// Compresses records. Snappy is written as one raw block, which every client reads.
pub(crate) fn compress(codec: i16, records: Vec<u8>) -> io::Result<Vec<u8>> {
    use std::io::Write;
    match codec {
        0 => Ok(records),
        1 => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
            encoder.write_all(&records)?;
            encoder.finish()
        }
        2 => Ok(snap::raw::Encoder::new().compress_vec(&records)?),
        3 => {
            let mut encoder = lz4::EncoderBuilder::new().block_mode(lz4::BlockMode::Independent).build(Vec::new())?;
            encoder.write_all(&records)?;
            let (compressed, result) = encoder.finish();
            result.map(|()| compressed)
        }
        4 => zstd::stream::encode_all(&records[..], 0),
        codec => Err(io::Error::other(format!("unknown codec {codec}"))),
    }
}

/// Iterates over records until the end, or until bytes that are not a record.
pub(crate) struct Records<'batch> {
    rest: &'batch [u8],
}

impl<'batch> Records<'batch> {
    pub(crate) fn new(decompressed: &'batch [u8]) -> Self {
        Self { rest: decompressed }
    }

    /// Whether all bytes were records.
    pub(crate) fn is_exhausted(&self) -> bool {
        self.rest.is_empty()
    }
}

impl<'batch> Iterator for Records<'batch> {
    type Item = Record<'batch>;

    fn next(&mut self) -> Option<Record<'batch>> {
        let mut rest = self.rest;
        let length = usize::try_from(varint(&mut rest)?).ok()?;
        let body = rest.get(..length)?;
        let record = parse(body)?;
        self.rest = &rest[length..];
        Some(record)
    }
}

fn parse(body: &[u8]) -> Option<Record<'_>> {
    let (attributes, mut rest) = body.split_first()?;
    let timestamp_delta = varint(&mut rest)?;
    let after_timestamp = rest;
    let offset_delta = varint(&mut rest)?;
    let key = optional_bytes(&mut rest)?;
    let value = optional_bytes(&mut rest)?;
    Some(Record {
        attributes: *attributes,
        timestamp_delta,
        offset_delta,
        key,
        is_tombstone: value.is_none(),
        after_timestamp,
    })
}

/// Length-prefixed bytes; the inner `None` is null.
fn optional_bytes<'batch>(rest: &mut &'batch [u8]) -> Option<Option<&'batch [u8]>> {
    let length = varint(rest)?;
    if length < 0 {
        return Some(None);
    }
    let (bytes, after) = rest.split_at_checked(usize::try_from(length).ok()?)?;
    *rest = after;
    Some(Some(bytes))
}

/// A zig-zag variable-length integer.
fn varint(rest: &mut &[u8]) -> Option<i64> {
    let mut value: u64 = 0;
    for shift in (0..64).step_by(7) {
        let (byte, after) = rest.split_first()?;
        *rest = after;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some((value >> 1) as i64 ^ -((value & 1) as i64));
        }
    }
    None
}

/// Writes a zig-zag variable-length integer.
pub(crate) fn put_varint(bytes: &mut Vec<u8>, value: i64) {
    let mut value = (value << 1 ^ value >> 63) as u64;
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

/// The (timestamp, offset) of the first record from `from_offset` on that is not older than
/// `timestamp`.
pub(crate) fn first_at(header: &BatchHeader, batch: &[u8], timestamp: i64, from_offset: i64) -> Option<(i64, i64)> {
    let records = decompress(header, batch).ok()?;
    let stamp = |record: &Record<'_>| {
        if has_log_append_time(header) {
            header.max_timestamp
        } else {
            header.base_timestamp.wrapping_add(record.timestamp_delta)
        }
    };
    Records::new(&records)
        .map(|record| (stamp(&record), header.base_offset.wrapping_add(record.offset_delta)))
        .find(|(stamp, offset)| *stamp >= timestamp && *offset >= from_offset)
}

/// Refuses a batch for a compacted topic that has a record without a key: nothing could ever
/// replace it.
pub(crate) fn check_keys(header: &BatchHeader, batch: &[u8]) -> Result<(), ApiError> {
    let refuse = |message: &str| ApiError::new(ResponseError::InvalidRecord, message);
    let records = decompress(header, batch).map_err(|error| refuse(&format!("cannot read the records: {error}")))?;
    let mut walker = Records::new(&records);
    let mut count = 0;
    for record in walker.by_ref() {
        if record.key.is_none() {
            return Err(refuse("Compacted topic cannot accept message without key"));
        }
        count += 1;
    }
    if walker.is_exhausted() && count == header.record_count {
        return Ok(());
    }
    Err(refuse("the records are not what the batch header says"))
}
