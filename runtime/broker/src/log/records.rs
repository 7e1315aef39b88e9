//! The records inside a stored batch. They are read only for the exact answer to "the offset at
//! this time", and for compaction.
//!
//! Stored bytes are not trusted, because older versions did not validate them: decompression stops
//! at [`MAX_DECOMPRESSED`], and every length is checked.

use std::borrow::Cow;
use std::io::{self, Read};

use super::batch::{BatchHeader, HEADER_LENGTH, has_log_append_time};
use super::compression::{decompressed_snappy, decompressing_reader, too_large};

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
        2 => decompressed_snappy(body, MAX_DECOMPRESSED)?,
        codec => read_limited(decompressing_reader(codec, body)?)?,
    };
    Ok(Cow::Owned(decompressed))
}

fn read_limited(reader: impl Read) -> io::Result<Vec<u8>> {
    let mut decompressed = Vec::new();
    reader.take(MAX_DECOMPRESSED + 1).read_to_end(&mut decompressed)?;
    if decompressed.len() as u64 > MAX_DECOMPRESSED { Err(too_large()) } else { Ok(decompressed) }
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
