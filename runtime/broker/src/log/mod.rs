//! The log of one partition: segments of record batches, the state of their producers, and what
//! readers may see.
//!
//! - The **end** is the offset of the next record. With one node it is also the high watermark.
//! - The **last stable offset** is the start of the first open transaction, or the end.
//!   `read_committed` readers see nothing from there on (KIP-98).
//! - The **start** moves up with retention and DeleteRecords, never down.
//!
//! An append ends in the page cache: it survives the death of the process. With
//! [`FlushPolicy::Always`](crate::FlushPolicy::Always) the producer then waits for the disk (see
//! `durability`). A **checkpoint** (see `checkpoint`) syncs the log and shortens the next start.

pub(crate) mod batch;
pub(crate) mod checkpoint;
mod compaction;
mod compression;
pub(crate) mod durability;
pub(crate) mod producer_state;
mod read;
pub(crate) mod records;
mod recovery;
mod retention;
pub(crate) mod segment;
pub(crate) mod validation;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use kafka_protocol::ResponseError;

use self::batch::{BatchHeader, Marker, PATCHED_PREFIX};
use self::durability::Durability;
use self::producer_state::{ProducerStates, SequenceCheck};
pub(crate) use self::read::{Isolation, Slice};
use self::segment::Segment;
use crate::clock::now_ms;
use crate::error::ApiError;
use crate::topics::config::{TimestampType, TopicConfig};

/// The position of an appended batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Appended {
    pub(crate) base_offset: i64,
    /// The broker's time with `LogAppendTime`; else -1.
    pub(crate) append_time: i64,
    /// The batch is durable when all records before this offset are.
    pub(crate) end_offset: i64,
}

/// The log of one partition.
#[derive(Debug)]
pub(crate) struct PartitionLog {
    directory: PathBuf,
    /// Never empty. The last segment is active: batches are appended to it.
    segments: Vec<Segment>,
    start_offset: i64,
    end_offset: i64,
    producers: ProducerStates,
    /// Tracks the synced part of the log, with [`FlushPolicy::Always`](crate::FlushPolicy::Always).
    durability: Option<Arc<Durability>>,
    /// When the active segment got its first batch.
    segment_began: Instant,
    /// All records before this offset were compacted.
    cleaned_until: i64,
    /// When the first tombstone that compaction has seen may be removed.
    next_horizon: Option<i64>,
    /// Bytes appended since the last checkpoint, and the time of the first append.
    bytes_since_checkpoint: u64,
    appended_since_checkpoint: Option<Instant>,
}

impl PartitionLog {
    /// Opens the log in `directory`, creates it if missing, and cuts off an incomplete write.
    pub(crate) fn open(directory: &Path, sync_each_append: bool) -> io::Result<Self> {
        recovery::open(directory, sync_each_append)
    }

    pub(crate) fn start_offset(&self) -> i64 {
        self.start_offset
    }

    /// The end of the log for clients. With [`FlushPolicy::Always`](crate::FlushPolicy::Always)
    /// unsynced records are not visible.
    pub(crate) fn end_offset(&self) -> i64 {
        self.durability.as_ref().map_or(self.end_offset, |durability| durability.durable_end())
    }

    pub(crate) fn last_stable_offset(&self) -> i64 {
        let end_offset = self.end_offset();
        self.producers.first_open_offset().map_or(end_offset, |first_open| first_open.min(end_offset))
    }

    pub(crate) fn durability(&self) -> Option<Arc<Durability>> {
        self.durability.clone()
    }

    pub(crate) fn producers(&self) -> &ProducerStates {
        &self.producers
    }

    /// Size of all segments in bytes.
    pub(crate) fn size(&self) -> u64 {
        self.segments.iter().map(|segment| segment.size).sum()
    }

    /// Appends a client's batch. `records` is one batch that
    /// [`validate_produced`](batch::validate_produced) accepted with `header`.
    pub(crate) fn append(
        &mut self,
        header: &BatchHeader,
        records: &[u8],
        config: &TopicConfig,
    ) -> Result<Appended, ApiError> {
        if header.has_producer()
            && let SequenceCheck::Duplicate(batch) = self.producers.check(header)?
        {
            // The first copy may not be on disk yet.
            return Ok(Appended { base_offset: batch.base_offset, append_time: -1, end_offset: self.end_offset });
        }
        let result = match config.timestamp_type {
            TimestampType::CreateTime => self.write(header, records, config).map(|base_offset| (base_offset, -1)),
            TimestampType::LogAppendTime => {
                let now = now_ms();
                let (header, records) = batch::with_append_time(records, header, now);
                self.write(&header, &records, config).map(|base_offset| (base_offset, now))
            }
        };
        let (base_offset, append_time) = result.map_err(|error| self.storage_error(&error))?;
        self.producers.appended(&BatchHeader { base_offset, ..*header }, now_ms());
        Ok(Appended { base_offset, append_time, end_offset: self.end_offset })
    }

    /// Ends the open transaction of a producer in this partition and returns the end of its marker.
    /// Writes nothing if no transaction is open, so that a crash recovery can repeat the call.
    pub(crate) fn end_transaction(
        &mut self,
        producer_id: i64,
        producer_epoch: i16,
        marker: Marker,
        config: &TopicConfig,
    ) -> Result<i64, ApiError> {
        if self.producers.open_transaction(producer_id).is_none() {
            return Ok(self.end_offset);
        }
        let (header, batch) = batch::transaction_marker(producer_id, producer_epoch, marker, now_ms());
        let base_offset = self.write(&header, &batch, config).map_err(|error| self.storage_error(&error))?;
        self.producers.ended(&BatchHeader { base_offset, ..header }, marker, now_ms());
        Ok(self.end_offset)
    }

    /// Removes producers that were idle since before `before`.
    pub(crate) fn expire_producers(&mut self, before: i64) {
        self.producers.expire(before);
    }

    fn storage_error(&self, error: &io::Error) -> ApiError {
        tracing::error!(directory = %self.directory.display(), %error, "cannot write to the log");
        ApiError::new(ResponseError::KafkaStorageError, format!("cannot write to the log: {error}"))
    }

    /// Appends a batch and assigns its offset.
    fn write(&mut self, header: &BatchHeader, bytes: &[u8], config: &TopicConfig) -> io::Result<i64> {
        if let Some(durability) = &self.durability {
            durability.check()?;
        }
        self.roll_if_due(header.size() as u64, config)?;
        let base_offset = self.end_offset;
        let stored = BatchHeader { base_offset, ..*header };
        let prefix = batch::patched_prefix(header, base_offset);
        self.active().append(&stored, &prefix, &bytes[PATCHED_PREFIX..])?;
        self.end_offset = stored.last_offset() + 1;
        let size = self.active().size;
        if let Some(durability) = &self.durability {
            durability.appended(self.end_offset, size);
        }
        self.bytes_since_checkpoint += header.size() as u64;
        self.appended_since_checkpoint.get_or_insert_with(Instant::now);
        Ok(base_offset)
    }

    fn active(&mut self) -> &mut Segment {
        let last = self.segments.len() - 1;
        &mut self.segments[last]
    }

    fn roll_if_due(&mut self, incoming: u64, config: &TopicConfig) -> io::Result<()> {
        let size = self.active().size;
        if size == 0 {
            self.segment_began = Instant::now();
            return Ok(());
        }
        let is_full = size + incoming > config.segment_bytes;
        let is_old = self.segment_began.elapsed().as_millis() as i64 >= config.segment_ms;
        if is_full || is_old { self.roll() } else { Ok(()) }
    }

    /// Starts a new segment. The next checkpoint syncs the old one, so that a roll costs a producer
    /// nothing, unless producers wait for the disk anyway.
    fn roll(&mut self) -> io::Result<()> {
        let segment = Segment::create(&self.directory, self.end_offset)?;
        if let Some(durability) = &self.durability {
            sync_directory(&self.directory)?;
            durability.roll(segment.file()?)?;
        }
        self.active().seal();
        self.segments.push(segment);
        self.segment_began = Instant::now();
        Ok(())
    }
}

/// Syncs the entries of a directory.
pub(crate) fn sync_directory(directory: &Path) -> io::Result<()> {
    std::fs::File::open(directory)?.sync_all()
}
