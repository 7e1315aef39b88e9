//! Compaction: keeps only the last record of each key (`cleanup.policy=compact`).
//!
//! Compaction reads closed segments that are old enough and lie before every open transaction. It
//! reads them twice: first to find the last offset of each key, then to write the kept records to
//! new segments, which replace the old ones. Records keep their offsets, so gaps remain.
//!
//! - Records of aborted transactions are dropped, and so are their entries in the list of aborted
//!   transactions.
//! - Kept records of finished transactions become plain records: no producer, no markers. Readers
//!   see the same records, and recovery of the whole log finds no transaction without its end.
//! - A tombstone is kept for `delete.retention.ms` after the first compaction that saw it, so that
//!   readers see it. The time is stored in its batch (KIP-534).
//!
//! A crash can leave old segments next to the new one that covers them. The next start removes old
//! segments whose offsets are covered. An old segment that remains only restores records that later
//! ones replace.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::xxh3_128_with_seed;

use super::batch::{self, BatchHeader, DELETE_HORIZON, HEADER_LENGTH, LEADER_EPOCH, PATCHED_PREFIX};
use super::compression::compress;
use super::producer_state::AbortedTransaction;
use super::records::{Record, Records, decompress, put_varint};
use super::segment::{Segment, Walker, log_path};
use super::{PartitionLog, sync_directory};
use crate::clock::now_ms;
use crate::private_files;
use crate::topics::config::TopicConfig;

/// Limit on the keys of one round; the remaining segments wait for the next round. About 40 bytes
/// for each key.
const MAX_KEYS: usize = 1_000_000;

/// The input of a compaction.
#[derive(Debug)]
pub(crate) struct Plan {
    directory: PathBuf,
    sources: Vec<Source>,
    /// Records from here on were never compacted.
    dirty_from: i64,
    start_offset: i64,
    aborted: Vec<AbortedTransaction>,
    segment_bytes: u64,
    delete_retention_ms: i64,
}

/// A segment to read.
#[derive(Debug)]
struct Source {
    path: PathBuf,
    base_offset: i64,
    /// The base offset of the next segment.
    end_offset: i64,
    size: u64,
}

/// The output of a compaction, ready to replace its sources.
#[derive(Debug)]
pub(crate) struct Compacted {
    /// The number of segments, from the first, that it replaces.
    replaced: usize,
    segments: Vec<Segment>,
    cleaned_until: i64,
    next_horizon: Option<i64>,
}

impl PartitionLog {
    /// The next compaction, if it is worth its cost.
    pub(crate) fn plan_compaction(&self, config: &TopicConfig) -> Option<Plan> {
        let now = now_ms();
        let stable_end = self.last_stable_offset();
        let mut sources = Vec::new();
        let (mut dirty, mut total) = (0, 0);
        let mut is_overdue = self.next_horizon.is_some_and(|horizon| horizon <= now);
        for pair in self.segments.windows(2) {
            let (segment, end_offset) = (&pair[0], pair[1].base_offset);
            let is_old_enough = segment.max_timestamp <= now.saturating_sub(config.min_compaction_lag_ms);
            if end_offset > stable_end || !is_old_enough {
                break;
            }
            total += segment.size;
            if end_offset > self.cleaned_until {
                dirty += segment.size;
                is_overdue |= segment.max_timestamp < now.saturating_sub(config.max_compaction_lag_ms);
            }
            let path = segment.path().to_owned();
            sources.push(Source { path, base_offset: segment.base_offset, end_offset, size: segment.size });
        }
        let ratio = if total == 0 { 0.0 } else { dirty as f64 / total as f64 };
        let is_worth_it = dirty > 0 && ratio >= config.min_cleanable_dirty_ratio;
        if sources.is_empty() || !(is_worth_it || is_overdue) {
            return None;
        }
        Some(Plan {
            directory: self.directory.clone(),
            sources,
            dirty_from: self.cleaned_until,
            start_offset: self.start_offset,
            aborted: self.producers.aborted_in(0, stable_end),
            segment_bytes: config.segment_bytes,
            delete_retention_ms: config.delete_retention_ms,
        })
    }

    /// Replaces the sources by the compacted segments. The caller has prevented changes of the
    /// sources.
    pub(crate) fn install(&mut self, compacted: Compacted) -> io::Result<()> {
        for segment in &compacted.segments {
            std::fs::rename(temporary_path(segment.path()), segment.path())?;
        }
        let kept = self.segments.split_off(compacted.replaced);
        let replaced = std::mem::replace(&mut self.segments, compacted.segments);
        let new_bases: Vec<i64> = self.segments.iter().map(|segment| segment.base_offset).collect();
        self.segments.extend(kept);
        self.cleaned_until = compacted.cleaned_until;
        self.next_horizon = compacted.next_horizon;
        self.producers.forget_aborted_before(compacted.cleaned_until);
        // Oldest first: a value must not outlive the tombstone behind it.
        for segment in replaced.iter().filter(|segment| !new_bases.contains(&segment.base_offset)) {
            segment.remove()?;
        }
        sync_directory(&self.directory)
    }
}

fn temporary_path(log_path: &Path) -> PathBuf {
    log_path.with_extension("log.new")
}

impl Plan {
    /// Reads the sources and writes the kept records.
    pub(crate) fn run(mut self) -> io::Result<Compacted> {
        let latest = self.collect_latest_offsets()?;
        let now = now_ms();
        let mut next_horizon: Option<i64> = None;
        let mut output = SegmentWriter::new(&self.directory, self.sources[0].base_offset, self.segment_bytes)?;
        for source in &self.sources {
            source.for_each(|header, bytes| {
                let Some((header, kept)) = self.keep(&latest, header, bytes, now) else { return Ok(()) };
                if let Some(horizon) = header.delete_horizon() {
                    next_horizon = Some(next_horizon.map_or(horizon, |next| next.min(horizon)));
                }
                output.write(&header, &kept)
            })?;
        }
        let cleaned_until = self.sources.last().map_or(self.dirty_from, |source| source.end_offset);
        Ok(Compacted { replaced: self.sources.len(), segments: output.finish()?, cleaned_until, next_horizon })
    }

    /// The last offset of each key in segments that were never compacted. Drops the last sources
    /// when there are too many keys.
    fn collect_latest_offsets(&mut self) -> io::Result<LatestOffsets> {
        let mut latest = LatestOffsets { seed: now_ms() as u64, offsets: HashMap::new() };
        let mut count = 0;
        for source in &self.sources {
            if source.end_offset > self.dirty_from {
                if count > 0 && latest.offsets.len() >= MAX_KEYS {
                    break;
                }
                source.for_each(|header, bytes| {
                    if header.is_control() || self.is_aborted(header) {
                        return Ok(());
                    }
                    // A batch that cannot be decompressed is kept and replaces nothing.
                    let Ok(records) = decompress(header, bytes) else { return Ok(()) };
                    for record in Records::new(&records) {
                        if let Some(key) = record.key {
                            latest.learn(key, header.base_offset.wrapping_add(record.offset_delta));
                        }
                    }
                    Ok(())
                })?;
            }
            count += 1;
        }
        self.sources.truncate(count);
        Ok(latest)
    }

    fn is_aborted(&self, header: &BatchHeader) -> bool {
        header.is_transactional()
            && self.aborted.iter().any(|transaction| {
                transaction.producer_id == header.producer_id
                    && (transaction.first_offset..=transaction.last_offset).contains(&header.base_offset)
            })
    }

    /// The kept part of a batch, if any.
    fn keep(
        &self,
        latest: &LatestOffsets,
        header: &BatchHeader,
        bytes: &[u8],
        now: i64,
    ) -> Option<(BatchHeader, Vec<u8>)> {
        if header.is_control() || self.is_aborted(header) {
            return None;
        }
        let Ok(records) = decompress(header, bytes) else {
            return Some(without_producer(header, &bytes[HEADER_LENGTH..]));
        };
        let is_past_horizon = header.delete_horizon().is_some_and(|horizon| horizon <= now);
        let mut walker = Records::new(&records);
        let mut kept: Vec<Record<'_>> = Vec::new();
        let mut count = 0;
        for record in walker.by_ref() {
            count += 1;
            let offset = header.base_offset.wrapping_add(record.offset_delta);
            let is_latest = record.key.is_some_and(|key| latest.is_latest(key, offset));
            let is_expired = record.is_tombstone && is_past_horizon;
            if is_latest && !is_expired && offset >= self.start_offset {
                kept.push(record);
            }
        }
        if !walker.is_exhausted() {
            return Some(without_producer(header, &bytes[HEADER_LENGTH..]));
        }
        if kept.is_empty() {
            return None;
        }
        let has_tombstones = kept.iter().any(|record| record.is_tombstone);
        let needs_horizon = has_tombstones && header.delete_horizon().is_none();
        if kept.len() == count && !needs_horizon {
            return Some(without_producer(header, &bytes[HEADER_LENGTH..]));
        }
        let horizon = needs_horizon.then(|| now.saturating_add(self.delete_retention_ms));
        let rewritten = rewrite(header, &kept, horizon);
        // Compression in memory does not fail. If it did, the whole batch would be kept.
        Some(rewritten.unwrap_or_else(|_| without_producer(header, &bytes[HEADER_LENGTH..])))
    }
}

/// The same records in a batch without a producer.
fn without_producer(header: &BatchHeader, body: &[u8]) -> (BatchHeader, Vec<u8>) {
    const TRANSACTIONAL: i16 = 0x10;
    let plain = BatchHeader {
        attributes: header.attributes & !TRANSACTIONAL,
        producer_id: -1,
        producer_epoch: -1,
        base_sequence: -1,
        ..*header
    };
    let (plain, bytes) = batch::assemble(&plain, body);
    (plain, bytes.to_vec())
}

/// A batch with fewer records. A horizon replaces the base timestamp, so the records' timestamps
/// are rewritten relative to it.
fn rewrite(header: &BatchHeader, kept: &[Record<'_>], horizon: Option<i64>) -> io::Result<(BatchHeader, Vec<u8>)> {
    let base_timestamp = horizon.unwrap_or(header.base_timestamp);
    let shift = header.base_timestamp.wrapping_sub(base_timestamp);
    let mut records = Vec::new();
    let mut body = Vec::new();
    for record in kept {
        body.clear();
        body.push(record.attributes);
        put_varint(&mut body, record.timestamp_delta.wrapping_add(shift));
        body.extend_from_slice(record.after_timestamp);
        put_varint(&mut records, body.len() as i64);
        records.extend_from_slice(&body);
    }
    let header = BatchHeader {
        attributes: if horizon.is_some() { header.attributes | DELETE_HORIZON } else { header.attributes },
        base_timestamp,
        record_count: kept.len() as i32,
        ..*header
    };
    Ok(without_producer(&header, &compress(header.codec(), records)?))
}

/// The last offset of each key, by a 128-bit hash whose seed no client knows.
struct LatestOffsets {
    seed: u64,
    offsets: HashMap<u128, i64>,
}

impl LatestOffsets {
    fn learn(&mut self, key: &[u8], offset: i64) {
        self.offsets.insert(xxh3_128_with_seed(key, self.seed), offset);
    }

    fn is_latest(&self, key: &[u8], offset: i64) -> bool {
        self.offsets.get(&xxh3_128_with_seed(key, self.seed)).is_none_or(|latest| offset >= *latest)
    }
}

impl Source {
    fn for_each(&self, mut work: impl FnMut(&BatchHeader, &[u8]) -> io::Result<()>) -> io::Result<()> {
        let file = File::open(&self.path)?;
        let mut walker = Walker::new(&file, 0, self.size);
        let mut bytes = Vec::new();
        while let Some(located) = walker.next()? {
            bytes.resize(located.header.size(), 0);
            file.read_exact_at(&mut bytes, located.position)?;
            work(&located.header, &bytes)?;
        }
        Ok(())
    }
}

/// Writes segments under temporary names.
struct SegmentWriter<'plan> {
    directory: &'plan Path,
    segment_bytes: u64,
    segment: Segment,
    file: BufWriter<File>,
    finished: Vec<Segment>,
}

impl<'plan> SegmentWriter<'plan> {
    fn new(directory: &'plan Path, base_offset: i64, segment_bytes: u64) -> io::Result<Self> {
        let file = create(directory, base_offset)?;
        let segment = Segment::describe(directory, base_offset);
        Ok(Self { directory, segment_bytes, segment, file, finished: Vec::new() })
    }

    fn write(&mut self, header: &BatchHeader, bytes: &[u8]) -> io::Result<()> {
        if self.segment.size > 0 && self.segment.size + bytes.len() as u64 > self.segment_bytes {
            sync(&mut self.file)?;
            self.file = create(self.directory, header.base_offset)?;
            let next = Segment::describe(self.directory, header.base_offset);
            self.finished.push(std::mem::replace(&mut self.segment, next));
        }
        debug_assert_eq!(bytes[12..PATCHED_PREFIX], LEADER_EPOCH.to_be_bytes());
        self.file.write_all(bytes)?;
        self.segment.record(header);
        Ok(())
    }

    fn finish(mut self) -> io::Result<Vec<Segment>> {
        sync(&mut self.file)?;
        self.finished.push(self.segment);
        Ok(self.finished)
    }
}

fn create(directory: &Path, base_offset: i64) -> io::Result<BufWriter<File>> {
    Ok(BufWriter::new(private_files::create(&temporary_path(&log_path(directory, base_offset)))?))
}

fn sync(file: &mut BufWriter<File>) -> io::Result<()> {
    file.flush()?;
    file.get_ref().sync_data()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topics::config::test_config as config;

    /// One batch of records (key, value), uncompressed or compressed.
    fn produced(codec: i16, records: &[(&str, Option<&str>)], producer: Option<(i64, i32)>) -> (BatchHeader, Vec<u8>) {
        let mut body = Vec::new();
        for (at, (key, value)) in records.iter().enumerate() {
            let mut record = vec![0u8];
            put_varint(&mut record, 0);
            put_varint(&mut record, at as i64);
            put_varint(&mut record, key.len() as i64);
            record.extend_from_slice(key.as_bytes());
            put_varint(&mut record, value.map_or(-1, |value| value.len() as i64));
            record.extend_from_slice(value.unwrap_or_default().as_bytes());
            put_varint(&mut record, 0);
            put_varint(&mut body, record.len() as i64);
            body.extend_from_slice(&record);
        }
        let header = BatchHeader {
            base_offset: 0,
            length: 0,
            magic: 2,
            crc: 0,
            attributes: codec | if producer.is_some() { 0x10 } else { 0 },
            last_offset_delta: records.len() as i32 - 1,
            base_timestamp: 1000,
            max_timestamp: 1000,
            producer_id: producer.map_or(-1, |(id, _)| id),
            producer_epoch: if producer.is_some() { 0 } else { -1 },
            base_sequence: producer.map_or(-1, |(_, sequence)| sequence),
            record_count: records.len() as i32,
        };
        let (header, bytes) = batch::assemble(&header, &compress(codec, body).unwrap());
        (header, bytes.to_vec())
    }

    /// All records in the log: (offset, key, value is null).
    fn contents(log: &PartitionLog) -> Vec<(i64, String, bool)> {
        let mut found = Vec::new();
        for segment in &log.segments {
            let source = Source { path: segment.path().into(), base_offset: 0, end_offset: 0, size: segment.size };
            let collect = |header: &BatchHeader, bytes: &[u8]| {
                assert!(batch::checksum_matches(bytes, header));
                if !header.is_control() {
                    let records = decompress(header, bytes)?;
                    for record in Records::new(&records) {
                        let key = String::from_utf8_lossy(record.key.unwrap()).into_owned();
                        found.push((header.base_offset + record.offset_delta, key, record.is_tombstone));
                    }
                }
                Ok(())
            };
            source.for_each(collect).unwrap();
        }
        found
    }

    fn compact(log: &mut PartitionLog, config: &TopicConfig) {
        let plan = log.plan_compaction(config).unwrap();
        let compacted = plan.run().unwrap();
        log.install(compacted).unwrap();
    }

    #[test]
    fn the_last_value_of_each_key_is_kept_at_its_offset() {
        for codec in 0..=4 {
            let directory = tempfile::tempdir().unwrap();
            let mut log = PartitionLog::open(directory.path(), false).unwrap();
            let config = config(&[("cleanup.policy", "compact"), ("internal.segment.bytes", "200")]);
            let mut append = |records: &[(&str, Option<&str>)]| {
                let (header, bytes) = produced(codec, records, None);
                log.append(&header, &bytes, &config).unwrap();
            };
            append(&[("a", Some("1")), ("b", Some("1")), ("c", Some("1"))]);
            append(&[("a", Some("2")), ("d", Some("1"))]);
            append(&[("b", None)]);
            append(&[("e", Some("1"))]);
            for _ in 0..4 {
                append(&[("z", Some("1"))]);
            }
            compact(&mut log, &config);
            let kept = contents(&log);
            let expected = [(2, "c", false), (3, "a", false), (4, "d", false), (5, "b", true), (6, "e", false)];
            for (offset, key, is_tombstone) in expected {
                assert!(kept.contains(&(offset, key.to_string(), is_tombstone)), "codec {codec}: {kept:?}");
            }
            assert!(kept.iter().all(|(offset, ..)| *offset >= 2), "codec {codec}: {kept:?}");
            // A reopened log has the same contents.
            drop(log);
            let log = PartitionLog::open(directory.path(), false).unwrap();
            assert_eq!(contents(&log), kept);
            assert_eq!(log.end_offset(), 11);
        }
    }

    #[test]
    fn compaction_removes_expired_tombstones_and_aborted_records() {
        let directory = tempfile::tempdir().unwrap();
        let mut log = PartitionLog::open(directory.path(), false).unwrap();
        let pairs = [("cleanup.policy", "compact"), ("internal.segment.bytes", "150"), ("delete.retention.ms", "0")];
        let config = config(&pairs);
        let mut sequence = 0;
        let mut append = |log: &mut PartitionLog, producer: i64, records: &[(&str, Option<&str>)]| {
            let (header, bytes) = produced(0, records, Some((producer, sequence)));
            log.append(&header, &bytes, &config).unwrap();
            sequence += records.len() as i32;
        };
        append(&mut log, 7, &[("a", Some("1"))]);
        append(&mut log, 7, &[("a", None)]);
        log.end_transaction(7, 0, batch::Marker::of_coordinator(true), &config).unwrap();
        append(&mut log, 7, &[("a", Some("never"))]);
        log.end_transaction(7, 0, batch::Marker::of_coordinator(false), &config).unwrap();
        append(&mut log, 7, &[("open", Some("1"))]);
        let (header, bytes) = produced(0, &[("z", Some("1"))], None);
        for _ in 0..3 {
            log.append(&header, &bytes, &config).unwrap();
        }
        compact(&mut log, &config);
        let keys =
            |log: &PartitionLog| contents(log).into_iter().map(|(offset, key, _)| (offset, key)).collect::<Vec<_>>();
        assert_eq!(keys(&log)[..2], [(1, "a".to_string()), (5, "open".to_string())]);
        assert_eq!(log.last_stable_offset(), 5);
        assert_eq!(log.producers().aborted_in(0, 100).len(), 0);
        compact(&mut log, &config);
        assert_eq!(keys(&log)[0], (5, "open".to_string()));
        // Recovery of the whole log finds the open transaction and no other.
        drop(log);
        let _ = std::fs::remove_file(directory.path().join("checkpoint.json"));
        let log = PartitionLog::open(directory.path(), false).unwrap();
        assert_eq!(log.last_stable_offset(), 5);
        assert_eq!(keys(&log)[0], (5, "open".to_string()));
    }
}
