//! The log of one partition: segments of record batches, the producers that wrote them, and what readers may see.
//!
//! - The **end** is where the next record goes. With one node it is also the high watermark.
//! - The **last stable offset** is where the first open transaction begins, or the end: readers at `read_committed` see
//!   nothing from there on (KIP-98).
//! - The **start** moves up with retention and DeleteRecords, never down.
//!
//! What an append has written is in the page cache when it returns: it survives the death of the process. With
//! [`FlushPolicy::Always`](crate::FlushPolicy::Always) whoever asked for it then waits for the device (see `device`). A **checkpoint** (see `checkpoint`) makes
//! everything before it durable and spares a start from reading it.

pub(crate) mod batch;
pub(crate) mod checkpoint;
mod compaction;
pub(crate) mod device;
pub(crate) mod producer_state;
mod read;
pub(crate) mod records;
mod recovery;
mod retention;
pub(crate) mod segment;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use kafka_protocol::ResponseError;

use self::batch::{BatchHeader, PATCHED_PREFIX, Refusal};
use self::device::Device;
use self::producer_state::{ProducerStates, Verdict};
pub(crate) use self::read::{Isolation, Slice};
use self::segment::Segment;
use crate::clock::now_ms;
use crate::topics::config::{TimestampType, TopicConfig};

/// Where an appended batch went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Appended {
    pub(crate) base_offset: i64,
    /// The broker's time, when the topic wants that one; else -1.
    pub(crate) append_time: i64,
    /// When everything before this offset is durable, the batch is.
    pub(crate) end_offset: i64,
}

/// The log of one partition.
#[derive(Debug)]
pub(crate) struct PartitionLog {
    directory: PathBuf,
    /// Never empty; the last one is appended to.
    segments: Vec<Segment>,
    start_offset: i64,
    end_offset: i64,
    producers: ProducerStates,
    /// What is on the device, if that is waited for.
    device: Option<Arc<Device>>,
    /// When the segment that is appended to got its first batch.
    segment_began: Instant,
    /// Everything before this offset has been through compaction.
    cleaned_until: i64,
    /// When the first tombstone that compaction has seen may go.
    next_horizon: Option<i64>,
    /// Bytes appended since the last checkpoint, and when the first of them was.
    unchecked_bytes: u64,
    unchecked_since: Option<Instant>,
}

impl PartitionLog {
    /// Opens the log in `directory`, creating it when there is none, and cuts off what was never acknowledged.
    pub(crate) fn open(directory: &Path, sync_each_append: bool) -> io::Result<Self> {
        recovery::open(directory, sync_each_append)
    }

    pub(crate) fn start_offset(&self) -> i64 {
        self.start_offset
    }

    /// Where the log ends for everybody outside: what is not on the device is not there yet, if that is waited for.
    pub(crate) fn end_offset(&self) -> i64 {
        self.device.as_ref().map_or(self.end_offset, |device| device.durable_end())
    }

    pub(crate) fn last_stable_offset(&self) -> i64 {
        let end_offset = self.end_offset();
        self.producers.first_open_offset().map_or(end_offset, |first_open| first_open.min(end_offset))
    }

    pub(crate) fn device(&self) -> Option<Arc<Device>> {
        self.device.clone()
    }

    pub(crate) fn producers(&self) -> &ProducerStates {
        &self.producers
    }

    /// Bytes of all segments.
    pub(crate) fn size(&self) -> u64 {
        self.segments.iter().map(|segment| segment.size).sum()
    }

    /// Appends what a client produced. `records` is one batch that
    /// [`validate_produced`](batch::validate_produced) accepted with `header`.
    pub(crate) fn append(
        &mut self,
        header: &BatchHeader,
        records: &[u8],
        config: &TopicConfig,
    ) -> Result<Appended, Refusal> {
        if header.has_producer()
            && let Verdict::Duplicate(batch) = self.producers.check(header)?
        {
            // The first one may not be on the device yet.
            return Ok(Appended { base_offset: batch.base_offset, append_time: -1, end_offset: self.end_offset });
        }
        let result = match config.timestamp_type {
            TimestampType::CreateTime => {
                check_timestamps(header, config)?;
                self.write(header, records, config).map(|base_offset| (base_offset, -1))
            }
            TimestampType::LogAppendTime => {
                let now = now_ms();
                let (header, records) = batch::stamped(records, header, now);
                self.write(&header, &records, config).map(|base_offset| (base_offset, now))
            }
        };
        let (base_offset, append_time) = result.map_err(|error| self.storage_error(&error))?;
        self.producers.appended(&BatchHeader { base_offset, ..*header }, now_ms());
        Ok(Appended { base_offset, append_time, end_offset: self.end_offset })
    }

    /// Ends the open transaction of a producer in this partition, and says where its marker ends. Without one there is nothing to end, and nothing is
    /// written: this makes the completion of a transaction repeatable after a crash.
    pub(crate) fn end_transaction(
        &mut self,
        producer_id: i64,
        producer_epoch: i16,
        commit: bool,
        config: &TopicConfig,
    ) -> Result<i64, Refusal> {
        if self.producers.open_transaction(producer_id).is_none() {
            return Ok(self.end_offset);
        }
        let (header, marker) = batch::transaction_marker(producer_id, producer_epoch, commit, now_ms());
        let base_offset = self.write(&header, &marker, config).map_err(|error| self.storage_error(&error))?;
        self.producers.ended(&BatchHeader { base_offset, ..header }, commit, now_ms());
        Ok(self.end_offset)
    }

    /// Forgets producers that were idle since before `before`.
    pub(crate) fn expire_producers(&mut self, before: i64) {
        self.producers.expire(before);
    }

    fn storage_error(&self, error: &io::Error) -> Refusal {
        tracing::error!(directory = %self.directory.display(), %error, "cannot write to the log");
        Refusal::new(ResponseError::KafkaStorageError, format!("cannot write to the log: {error}"))
    }

    /// Writes a batch to the end and gives it its offset.
    fn write(&mut self, header: &BatchHeader, bytes: &[u8], config: &TopicConfig) -> io::Result<i64> {
        if let Some(device) = &self.device {
            device.check()?;
        }
        self.roll_if_due(header.size() as u64, config)?;
        let base_offset = self.end_offset;
        let stored = BatchHeader { base_offset, ..*header };
        let prefix = batch::patched_prefix(header, base_offset);
        self.active().append(&stored, &prefix, &bytes[PATCHED_PREFIX..])?;
        self.end_offset = stored.last_offset() + 1;
        let size = self.active().size;
        if let Some(device) = &self.device {
            device.appended(self.end_offset, size);
        }
        self.unchecked_bytes += header.size() as u64;
        self.unchecked_since.get_or_insert_with(Instant::now);
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

    /// Begins a new segment. Syncing the old one is left to the next checkpoint, so that a roll costs a producer nothing;
    /// unless the device is waited for anyway.
    fn roll(&mut self) -> io::Result<()> {
        let segment = Segment::create(&self.directory, self.end_offset)?;
        if let Some(device) = &self.device {
            sync_directory(&self.directory)?;
            device.roll(segment.file()?)?;
        }
        self.active().seal();
        self.segments.push(segment);
        self.segment_began = Instant::now();
        Ok(())
    }
}

/// Refuses a batch whose timestamps are too far off. Looks at the first and the largest one, which the header has.
fn check_timestamps(header: &BatchHeader, config: &TopicConfig) -> Result<(), Refusal> {
    let now = now_ms();
    let earliest = now.saturating_sub(config.timestamp_before_max_ms);
    let latest = now.saturating_add(config.timestamp_after_max_ms);
    let oldest = header.base_timestamp.min(header.max_timestamp);
    if oldest < earliest || header.max_timestamp > latest {
        let message =
            format!("a timestamp from {oldest} to {} is not within {earliest} and {latest}", header.max_timestamp);
        return Err(Refusal::new(ResponseError::InvalidTimestamp, message));
    }
    Ok(())
}

/// Makes the names in a directory durable.
pub(crate) fn sync_directory(directory: &Path) -> io::Result<()> {
    std::fs::File::open(directory)?.sync_all()
}
