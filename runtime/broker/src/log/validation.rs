//! Validation of the records in a produced batch, as Kafka's `LogValidator` does it.
//!
//! A batch with false contents would be stored for ever and stop every consumer that reads it. So
//! every length, count and offset is checked before the batch is appended. Compressed records are
//! decompressed as a stream, so that the memory for it does not depend on the batch.

use std::io::{self, BufRead, BufReader, Read};

use kafka_protocol::ResponseError;

use super::batch::{BatchHeader, HEADER_LENGTH, has_log_append_time};
use super::compression::{decompressed_snappy, decompressing_reader};
use crate::error::ApiError;
use crate::topics::config::{TimestampType, TopicConfig};

/// Limit on the decompressed size of a batch.
const MAX_DECOMPRESSED: u64 = 1 << 30;
/// The same for Snappy, which is decompressed in memory.
const MAX_DECOMPRESSED_IN_MEMORY: u64 = 128 << 20;
const BUFFER: usize = 32 << 10;
const NO_TIMESTAMP: i64 = -1;

/// Checks all records of a batch whose header was checked. Returns their largest timestamp.
pub(crate) fn validate_records(
    header: &BatchHeader,
    batch: &[u8],
    config: &TopicConfig,
    now: i64,
) -> Result<i64, ApiError> {
    let rules = Rules::new(header, config, now)?;
    let body = batch.get(HEADER_LENGTH..).unwrap_or_default();
    let unreadable = |error: io::Error| invalid(format!("cannot decompress the records: {error}"));
    match header.codec() {
        0 => rules.check_all(Slice { bytes: body, position: 0 }),
        2 => {
            let decompressed = decompressed_snappy(body, MAX_DECOMPRESSED_IN_MEMORY).map_err(unreadable)?;
            rules.check_all(Slice { bytes: &decompressed, position: 0 })
        }
        codec => {
            let reader = decompressing_reader(codec, body).map_err(unreadable)?;
            rules.check_all(Stream { reader: BufReader::with_capacity(BUFFER, reader), position: 0 })
        }
    }
}

fn invalid(message: impl Into<String>) -> ApiError {
    ApiError::new(ResponseError::InvalidRecord, message)
}

/// The rules for the records of one batch.
struct Rules {
    record_count: i32,
    base_timestamp: i64,
    needs_keys: bool,
    /// The allowed timestamps, if the topic uses those of producers.
    timestamps: Option<(i64, i64)>,
}

impl Rules {
    fn new(header: &BatchHeader, config: &TopicConfig, now: i64) -> Result<Self, ApiError> {
        // The producer's own timestamps lose the type, see `with_producer_timestamps`.
        if has_log_append_time(header) && config.timestamp_type == TimestampType::LogAppendTime {
            let message = "a producer must not set the timestamp type LogAppendTime";
            return Err(ApiError::new(ResponseError::InvalidTimestamp, message));
        }
        let earliest = now.saturating_sub(config.timestamp_before_max_ms);
        let latest = now.saturating_add(config.timestamp_after_max_ms);
        Ok(Self {
            record_count: header.record_count,
            base_timestamp: header.base_timestamp,
            needs_keys: config.cleanup_compact,
            timestamps: (config.timestamp_type == TimestampType::CreateTime).then_some((earliest, latest)),
        })
    }

    fn check_all(&self, mut source: impl Source) -> Result<i64, ApiError> {
        let mut max_timestamp = NO_TIMESTAMP;
        for index in 0..self.record_count {
            let record = read_record(&mut source).map_err(|error| invalid(format!("record {index}: {error}")))?;
            max_timestamp = max_timestamp.max(self.check(index, &record)?);
        }
        match source.is_at_end() {
            Ok(true) => Ok(max_timestamp),
            Ok(false) => Err(invalid(format!("bytes follow the {} records of the batch", self.record_count))),
            Err(error) => Err(invalid(format!("cannot decompress the records: {error}"))),
        }
    }

    /// Checks one record and returns its timestamp.
    fn check(&self, index: i32, record: &RecordFields) -> Result<i64, ApiError> {
        if record.offset_delta != i64::from(index) {
            return Err(invalid(format!("record {index} has the offset delta {}", record.offset_delta)));
        }
        if self.needs_keys && !record.has_key {
            return Err(invalid(format!("record {index}: a compacted topic does not accept a record without a key")));
        }
        let timestamp = self.base_timestamp.wrapping_add(record.timestamp_delta);
        if let Some((earliest, latest)) = self.timestamps
            && timestamp != NO_TIMESTAMP
            && !(earliest..=latest).contains(&timestamp)
        {
            let message = format!(
                "record {index}: the timestamp {timestamp} is outside the allowed range {earliest} to {latest}"
            );
            return Err(ApiError::new(ResponseError::InvalidTimestamp, message));
        }
        Ok(timestamp)
    }
}

/// The fields of a record that the rules need.
struct RecordFields {
    timestamp_delta: i64,
    offset_delta: i64,
    has_key: bool,
}

/// Reads one record: <https://kafka.apache.org/documentation/#record>.
fn read_record(source: &mut impl Source) -> io::Result<RecordFields> {
    let length = varint(source)?;
    let length = u64::try_from(length).map_err(|_| malformed("its length is negative"))?;
    let end = source.position() + length;
    source.byte()?; // attributes
    let timestamp_delta = varlong(source)?;
    let offset_delta = i64::from(varint(source)?);
    let key_length = varint(source)?;
    skip(source, key_length, end, "key")?;
    let value_length = varint(source)?;
    skip(source, value_length, end, "value")?;
    let header_count = varint(source)?;
    if header_count < 0 {
        return Err(malformed("its header count is negative"));
    }
    for _ in 0..header_count {
        let name_length = varint(source)?;
        if name_length < 0 {
            return Err(malformed("a header has no key"));
        }
        skip(source, name_length, end, "header key")?;
        let value_length = varint(source)?;
        skip(source, value_length, end, "header value")?;
    }
    if source.position() != end {
        return Err(malformed("its length differs from the length of its fields"));
    }
    Ok(RecordFields { timestamp_delta, offset_delta, has_key: key_length >= 0 })
}

fn malformed(message: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

/// Skips a field. A negative length is null.
fn skip(source: &mut impl Source, length: i32, end: u64, field: &str) -> io::Result<()> {
    let Ok(length) = u64::try_from(length) else { return Ok(()) };
    if source.position() + length > end {
        return Err(malformed(&format!("its {field} is longer than the record")));
    }
    source.skip(length)
}

/// A zig-zag varint of at most five bytes.
fn varint(source: &mut impl Source) -> io::Result<i32> {
    i32::try_from(varlong(source)?).map_err(|_| malformed("a length or count is out of range"))
}

/// A zig-zag varint of at most ten bytes.
fn varlong(source: &mut impl Source) -> io::Result<i64> {
    let mut value: u64 = 0;
    for shift in (0..64).step_by(7) {
        let byte = source.byte()?;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok((value >> 1) as i64 ^ -((value & 1) as i64));
        }
    }
    Err(malformed("a number is too long"))
}

/// The decompressed bytes of a batch.
trait Source {
    fn byte(&mut self) -> io::Result<u8>;
    fn skip(&mut self, length: u64) -> io::Result<()>;
    /// The number of bytes read.
    fn position(&self) -> u64;
    fn is_at_end(&mut self) -> io::Result<bool>;
}

fn too_short() -> io::Error {
    malformed("the batch ends inside the record")
}

struct Slice<'batch> {
    bytes: &'batch [u8],
    position: usize,
}

impl Source for Slice<'_> {
    fn byte(&mut self) -> io::Result<u8> {
        let byte = *self.bytes.get(self.position).ok_or_else(too_short)?;
        self.position += 1;
        Ok(byte)
    }

    fn skip(&mut self, length: u64) -> io::Result<()> {
        let position = usize::try_from(length).ok().and_then(|length| self.position.checked_add(length));
        self.position = position.filter(|position| *position <= self.bytes.len()).ok_or_else(too_short)?;
        Ok(())
    }

    fn position(&self) -> u64 {
        self.position as u64
    }

    fn is_at_end(&mut self) -> io::Result<bool> {
        Ok(self.position == self.bytes.len())
    }
}

struct Stream<R> {
    reader: BufReader<R>,
    position: u64,
}

impl<R: Read> Source for Stream<R> {
    fn byte(&mut self) -> io::Result<u8> {
        let byte = *self.reader.fill_buf()?.first().ok_or_else(too_short)?;
        self.reader.consume(1);
        self.position += 1;
        Ok(byte)
    }

    fn skip(&mut self, mut length: u64) -> io::Result<()> {
        if self.position + length > MAX_DECOMPRESSED {
            return Err(malformed("the decompressed batch is larger than 1 GiB"));
        }
        self.position += length;
        while length > 0 {
            let available = self.reader.fill_buf()?.len() as u64;
            if available == 0 {
                return Err(too_short());
            }
            let taken = available.min(length);
            self.reader.consume(taken as usize);
            length -= taken;
        }
        Ok(())
    }

    fn position(&self) -> u64 {
        self.position
    }

    fn is_at_end(&mut self) -> io::Result<bool> {
        Ok(self.reader.fill_buf()?.is_empty())
    }
}
