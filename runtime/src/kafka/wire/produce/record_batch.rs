//! Batches of records as brokers store them (magic 2).
//!
//! Source: <https://kafka.apache.org/documentation/#recordbatch>.

use std::io::{self, Write as _};

use flate2::Compression;
use flate2::write::GzEncoder;
use lz4::{BlockMode, BlockSize, ContentChecksum, EncoderBuilder};
use trunkline_connector::batch::Headers;

use crate::kafka::producer::ProducerRecord;

/// Length of a batch's header.
const HEADER_BYTES: usize = 61;

/// Positions in the header.
const BATCH_LENGTH: usize = 8;
const LEADER_EPOCH: usize = 12;
const MAGIC: usize = 16;
const CRC: usize = 17;
const ATTRIBUTES: usize = 21;
const LAST_OFFSET_DELTA: usize = 23;
const FIRST_TIMESTAMP: usize = 27;
const MAX_TIMESTAMP: usize = 35;
const PRODUCER_ID: usize = 43;
const PRODUCER_EPOCH: usize = 51;
const BASE_SEQUENCE: usize = 53;
const RECORD_COUNT: usize = 57;

/// The attribute of a batch that belongs to a transaction.
const TRANSACTIONAL: u8 = 0x10;

/// Upper limit on the bytes of a record before its key: five numbers.
const PREFIX_BYTES: usize = 5 + 1 + 10 + 5 + 5;

/// How a batch is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::kafka) enum Codec {
    None,
    Gzip(u32),
    Snappy,
    Lz4(u32),
    Zstd(i32),
}

impl Codec {
    /// The codec by the name and level of the properties `compression.type` and
    /// `compression.level`. A level of -1 is the codec's default.
    pub(in crate::kafka) fn of(name: &str, level: i32) -> Self {
        let positive = u32::try_from(level).ok();
        match name {
            "gzip" => Self::Gzip(positive.map_or(Compression::default().level(), |level| level.min(9))),
            "snappy" => Self::Snappy,
            "lz4" => Self::Lz4(positive.map_or(0, |level| level.min(12))),
            "zstd" => Self::Zstd(positive.map_or(zstd::DEFAULT_COMPRESSION_LEVEL, |level| level.min(22) as i32)),
            _ => Self::None,
        }
    }

    fn attribute(self) -> i16 {
        match self {
            Self::None => 0,
            Self::Gzip(_) => 1,
            Self::Snappy => 2,
            Self::Lz4(_) => 3,
            Self::Zstd(_) => 4,
        }
    }

    /// Appends the compressed bytes to `out`.
    fn compress(self, bytes: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
        match self {
            Self::None => out.extend_from_slice(bytes),
            Self::Gzip(level) => {
                let mut encoder = GzEncoder::new(out, Compression::new(level));
                encoder.write_all(bytes)?;
                encoder.finish()?;
            }
            Self::Snappy => out.extend_from_slice(&snap::raw::Encoder::new().compress_vec(bytes)?),
            Self::Lz4(level) => {
                let mut encoder = EncoderBuilder::new()
                    .level(level)
                    .block_mode(BlockMode::Independent)
                    .block_size(BlockSize::Max64KB)
                    .checksum(ContentChecksum::NoChecksum)
                    .build(out)?;
                encoder.write_all(bytes)?;
                encoder.finish().1?;
            }
            Self::Zstd(level) => out.extend_from_slice(&zstd::bulk::compress(bytes, level)?),
        }
        Ok(())
    }
}

/// A producer as brokers know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::kafka) struct Identity {
    pub(in crate::kafka) id: i64,
    pub(in crate::kafka) epoch: i16,
}

impl Identity {
    /// No producer, or one that has no identity yet.
    pub(in crate::kafka) const NONE: Self = Self { id: -1, epoch: -1 };
}

/// Collects the records of a batch.
#[derive(Default)]
pub(in crate::kafka) struct BatchWriter {
    /// The encoded records.
    buffer: Vec<u8>,
    records: i32,
    first_timestamp: i64,
    max_timestamp: i64,
    /// Bytes of the largest record's key and value.
    largest: usize,
}

impl BatchWriter {
    /// A writer over a buffer of another one, which is empty.
    pub(in crate::kafka) fn over(buffer: Vec<u8>) -> Self {
        Self { buffer, ..Self::default() }
    }

    pub(in crate::kafka) fn is_empty(&self) -> bool {
        self.records == 0
    }

    pub(in crate::kafka) fn records(&self) -> i32 {
        self.records
    }

    /// Bytes of the encoded records.
    pub(in crate::kafka) fn bytes(&self) -> usize {
        self.buffer.len()
    }

    /// Upper limit on the encoded size of a record with these headers, in the form of a batch.
    pub(in crate::kafka) fn size_of(record: &ProducerRecord<'_>) -> usize {
        let more: usize = record.more_headers.iter().map(|(name, value)| name.len() + value.len() + 10).sum();
        // A header takes 8 bytes for its lengths in a batch, and at most 10 here.
        let headers = record.headers.len() + record.headers.len() / 4 + more;
        PREFIX_BYTES + 10 + record.key.map_or(0, <[u8]>::len) + record.value.map_or(0, <[u8]>::len) + headers
    }

    /// Appends a record. `timestamp`: milliseconds since the epoch.
    pub(in crate::kafka) fn append(&mut self, record: &ProducerRecord<'_>, timestamp: i64) {
        if self.records == 0 {
            (self.first_timestamp, self.max_timestamp) = (timestamp, timestamp);
        }
        self.max_timestamp = self.max_timestamp.max(timestamp);
        let (key, value) = (record.key.unwrap_or_default(), record.value.unwrap_or_default());
        let (mut count, mut header_bytes) = (record.more_headers.len(), 0);
        let mut headers = Headers::over(record.headers);
        while let Some((name, value)) = headers.next_raw() {
            count += 1;
            header_bytes += sized(name.len()) + value.map_or(1, |value| sized(value.len()));
        }
        for (name, value) in record.more_headers {
            header_bytes += sized(name.len()) + sized(value.len());
        }
        let delta = timestamp.wrapping_sub(self.first_timestamp);
        let offset = i64::from(self.records);
        let key_len = record.key.map_or(-1, |key| key.len() as i64);
        let value_len = record.value.map_or(-1, |value| value.len() as i64);
        let fixed = 1 + varint_len(delta) + varint_len(offset) + varint_len(key_len) + varint_len(value_len);
        let length = fixed + key.len() + value.len() + varint_len(count as i64) + header_bytes;
        self.buffer.reserve(length + 5);
        let out = &mut self.buffer;
        put_varint(out, length as i64);
        out.push(0);
        put_varint(out, delta);
        put_varint(out, offset);
        put_varint(out, key_len);
        out.extend_from_slice(key);
        put_varint(out, value_len);
        out.extend_from_slice(value);
        put_varint(out, count as i64);
        let mut headers = Headers::over(record.headers);
        while let Some((name, value)) = headers.next_raw() {
            put_header(out, name, value);
        }
        for (name, value) in record.more_headers {
            put_header(out, name.as_bytes(), Some(value));
        }
        self.records += 1;
        self.largest = self.largest.max(key.len() + value.len());
    }

    /// Compresses the records to a batch. Returns it, and the buffer for the next one.
    pub(in crate::kafka) fn seal(mut self, codec: Codec, scratch: &mut Vec<u8>) -> (SealedBatch, Vec<u8>) {
        scratch.clear();
        scratch.resize(HEADER_BYTES, 0);
        // Compression into memory does not fail. What does not get smaller is sent as it is.
        let is_compressed = codec != Codec::None
            && codec.compress(&self.buffer, scratch).is_ok()
            && scratch.len() < HEADER_BYTES + self.buffer.len();
        if !is_compressed {
            scratch.truncate(HEADER_BYTES);
            scratch.extend_from_slice(&self.buffer);
        }
        let attributes = if is_compressed { codec.attribute() } else { 0 };
        let mut bytes = scratch.as_slice().to_vec();
        let length = (bytes.len() - LEADER_EPOCH) as i32;
        put(&mut bytes, BATCH_LENGTH, length.to_be_bytes());
        put(&mut bytes, LEADER_EPOCH, (-1_i32).to_be_bytes());
        put(&mut bytes, MAGIC, [2]);
        put(&mut bytes, ATTRIBUTES, attributes.to_be_bytes());
        put(&mut bytes, LAST_OFFSET_DELTA, (self.records - 1).to_be_bytes());
        put(&mut bytes, FIRST_TIMESTAMP, self.first_timestamp.to_be_bytes());
        put(&mut bytes, MAX_TIMESTAMP, self.max_timestamp.to_be_bytes());
        put(&mut bytes, RECORD_COUNT, self.records.to_be_bytes());
        let sealed = SealedBatch { bytes, records: self.records, largest: self.largest };
        self.buffer.clear();
        (sealed, self.buffer)
    }
}

/// A batch that is complete, except for its place in the partition's sequence.
pub(in crate::kafka) struct SealedBatch {
    bytes: Vec<u8>,
    pub(in crate::kafka) records: i32,
    /// Bytes of the largest record's key and value.
    pub(in crate::kafka) largest: usize,
}

impl SealedBatch {
    /// Size of the batch.
    pub(in crate::kafka) fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// The batch with its transactional producer and the sequence number of its first record.
    pub(in crate::kafka) fn stamp(mut self, producer: Identity, sequence: i32) -> Vec<u8> {
        self.bytes[ATTRIBUTES + 1] |= TRANSACTIONAL;
        self.finish(producer, sequence)
    }

    /// The batch without a transaction.
    pub(in crate::kafka) fn without_transaction(self) -> Vec<u8> {
        self.finish(Identity::NONE, -1)
    }

    fn finish(mut self, producer: Identity, sequence: i32) -> Vec<u8> {
        put(&mut self.bytes, PRODUCER_ID, producer.id.to_be_bytes());
        put(&mut self.bytes, PRODUCER_EPOCH, producer.epoch.to_be_bytes());
        put(&mut self.bytes, BASE_SEQUENCE, sequence.to_be_bytes());
        let crc = crc32c::crc32c(&self.bytes[ATTRIBUTES..]);
        put(&mut self.bytes, CRC, crc.to_be_bytes());
        self.bytes
    }
}

fn put<const N: usize>(bytes: &mut [u8], at: usize, value: [u8; N]) {
    bytes[at..at + N].copy_from_slice(&value);
}

/// The length of bytes with their length.
fn sized(len: usize) -> usize {
    varint_len(len as i64) + len
}

fn put_header(out: &mut Vec<u8>, name: &[u8], value: Option<&[u8]>) {
    put_varint(out, name.len() as i64);
    out.extend_from_slice(name);
    put_varint(out, value.map_or(-1, |value| value.len() as i64));
    out.extend_from_slice(value.unwrap_or_default());
}

fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

fn varint_len(value: i64) -> usize {
    (70 - (zigzag(value) | 1).leading_zeros() as usize) / 7
}

/// Appends a number in the encoding of protocol buffers (`sint64`).
fn put_varint(out: &mut Vec<u8>, value: i64) {
    let mut rest = zigzag(value);
    if rest < 0x80 {
        out.push(rest as u8);
        return;
    }
    let (mut bytes, mut len) = ([0; 10], 0);
    while rest >= 0x80 {
        bytes[len] = rest as u8 | 0x80;
        rest >>= 7;
        len += 1;
    }
    bytes[len] = rest as u8;
    out.extend_from_slice(&bytes[..=len]);
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use kafka_protocol::records::RecordBatchDecoder;
    use trunkline_connector::batch::write_header;

    use super::*;

    fn record<'a>(key: Option<&'a [u8]>, value: Option<&'a [u8]>, headers: &'a [u8]) -> ProducerRecord<'a> {
        ProducerRecord {
            topic: "t",
            partition: 0,
            timestamp: None,
            key,
            value,
            headers,
            more_headers: &[("more", b"m")],
        }
    }

    /// Another implementation reads what this one writes.
    #[test]
    fn batches_are_read_by_another_decoder_with_every_codec() {
        let mut headers = Vec::new();
        write_header(&mut headers, "trunkline", Some(b"schema=1"));
        write_header(&mut headers, "nothing", None);
        let long = vec![b'x'; 300_000];
        let codecs = [("none", -1), ("gzip", 6), ("snappy", -1), ("lz4", -1), ("lz4", 9), ("zstd", 3)];
        for (name, level) in codecs {
            let mut writer = BatchWriter::default();
            writer.append(&record(Some(b"k"), Some(b"v"), &headers), 1_700_000_000_000);
            writer.append(&record(None, None, &[]), 1_699_999_999_000);
            writer.append(&record(Some(b""), Some(&long), &[]), 1_700_000_100_000);
            for at in 0..200 {
                let value = format!("value {at}");
                writer.append(&record(Some(b"k"), Some(value.as_bytes()), &headers), 1_700_000_000_000 + at);
            }
            assert!(writer.bytes() > long.len());
            let (sealed, buffer) = writer.seal(Codec::of(name, level), &mut Vec::new());
            assert!(buffer.is_empty() && sealed.records == 203 && sealed.largest == long.len(), "{name}");
            assert_eq!(sealed.bytes() < 100_000, name != "none", "{name}: {}", sealed.bytes());
            let bytes = sealed.stamp(Identity { id: 7, epoch: 3 }, 41);
            let decoded = RecordBatchDecoder::decode(&mut Bytes::from(bytes)).unwrap();
            assert_eq!(decoded.records.len(), 203, "{name}");
            let first = &decoded.records[0];
            assert!(first.transactional && !first.control);
            assert_eq!((first.producer_id, first.producer_epoch, first.sequence), (7, 3, 41));
            assert_eq!((first.offset, first.timestamp), (0, 1_700_000_000_000));
            assert_eq!((first.key.as_deref(), first.value.as_deref()), (Some(&b"k"[..]), Some(&b"v"[..])));
            let names: Vec<(&str, Option<&[u8]>)> =
                first.headers.iter().map(|(name, value)| (name.as_str(), value.as_deref())).collect();
            let expected: [(&str, Option<&[u8]>); 3] =
                [("trunkline", Some(b"schema=1")), ("nothing", None), ("more", Some(b"m"))];
            assert_eq!(names, expected);
            let second = &decoded.records[1];
            assert_eq!((&second.key, &second.value, second.timestamp), (&None, &None, 1_699_999_999_000));
            let third = &decoded.records[2];
            assert_eq!((third.key.as_deref(), third.value.as_deref()), (Some(&b""[..]), Some(&long[..])));
            assert_eq!(decoded.records[202].offset, 202);
            assert_eq!(decoded.records[202].value.as_deref(), Some(&b"value 199"[..]));
        }
    }

    #[test]
    fn sizes_are_upper_limits() {
        let mut headers = Vec::new();
        for at in 0..20 {
            write_header(&mut headers, "a", Some(&vec![b'y'; at * 10]));
            write_header(&mut headers, "", None);
        }
        for (key, value) in [(None, None), (Some(&b"key"[..]), Some(&b"value"[..]))] {
            let record = record(key, value, &headers);
            let mut writer = BatchWriter::default();
            writer.append(&record, 5);
            assert!(writer.bytes() <= BatchWriter::size_of(&record), "{}", writer.bytes());
        }
    }

    #[test]
    fn numbers_have_the_length_that_was_computed() {
        for shift in 0..63 {
            for value in [1_i64 << shift, -(1 << shift), (1 << shift) - 1] {
                let mut out = Vec::new();
                put_varint(&mut out, value);
                assert_eq!(out.len(), varint_len(value), "{value}");
            }
        }
        assert_eq!(varint_len(i64::MIN), 10);
    }
}
