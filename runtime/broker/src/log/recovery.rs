//! Opens a log: trusts the checkpoint, reads the log after it, cuts off a torn tail.
//!
//! A batch counts if it is complete, its checksum is right and its offset follows the previous one.
//! The first batch that does not count is a write that a crash interrupted. It was never
//! acknowledged, and it is cut off with everything behind it.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use super::batch::{BatchHeader, HEADER_LENGTH, Marker, checksum_matches};
use super::checkpoint;
use super::durability::Durability;
use super::segment::{Segment, index_path, log_path, read_index};
use super::{PartitionLog, sync_directory};
use crate::clock::now_ms;
use crate::log::producer_state::ProducerStates;
use crate::private_files;

const SCAN_BUFFER: usize = 1 << 20;

pub(super) fn open(directory: &Path, sync_each_append: bool) -> io::Result<PartitionLog> {
    private_files::create_directory(directory)?;
    let base_offsets = list_segments(directory)?;
    let checkpoint = checkpoint::read(directory);
    let start_offset = checkpoint.as_ref().map_or(0, |state| state.start_offset);
    let end_offset = checkpoint.as_ref().map_or(0, |state| state.end_offset);
    let mut log = empty_log(directory, start_offset);
    let mut unread = base_offsets.as_slice();
    if let Some(state) = checkpoint
        && let Some(segments) = trusted_segments(directory, &base_offsets, &state)
    {
        unread = &base_offsets[segments.len()..];
        let is_torn = continue_checkpoint(&mut log, segments, state)?;
        if is_torn {
            remove_after_tear(directory, unread)?;
            unread = &[];
        }
    }
    read_segments(&mut log, unread)?;

    match log.segments.last_mut() {
        Some(segment) => segment.open_for_append()?,
        None => {
            // Retention may have emptied the log: offsets continue.
            log.end_offset = log.end_offset.max(end_offset);
            log.segments.push(Segment::create(directory, log.end_offset)?);
            sync_directory(directory)?;
        }
    }
    if log.end_offset < end_offset {
        tracing::error!(
            directory = %directory.display(),
            end_offset = log.end_offset,
            expected = end_offset,
            "the log ends before its checkpoint: records were lost outside the broker; restore them from a backup"
        );
    }
    let first_base = log.segments.first().map_or(0, |segment| segment.base_offset);
    log.start_offset = log.start_offset.max(first_base).min(log.end_offset);
    let start_offset = log.start_offset;
    log.producers.log_starts_at(start_offset);
    if sync_each_append {
        let end_offset = log.end_offset;
        let active = log.active();
        log.durability = Some(Arc::new(Durability::open(active.file()?, end_offset, active.size)?));
    }
    Ok(log)
}

fn empty_log(directory: &Path, start_offset: i64) -> PartitionLog {
    PartitionLog {
        directory: directory.to_owned(),
        segments: Vec::new(),
        start_offset,
        end_offset: 0,
        producers: ProducerStates::default(),
        durability: None,
        segment_began: Instant::now(),
        cleaned_until: 0,
        next_horizon: None,
        bytes_since_checkpoint: 0,
        appended_since_checkpoint: None,
    }
}

/// Takes over the state of a checkpoint and reads its last segment from there on. Returns whether
/// the tail was torn.
fn continue_checkpoint(log: &mut PartitionLog, segments: Vec<Segment>, state: checkpoint::State) -> io::Result<bool> {
    log.segments = segments;
    log.producers = state.producers;
    log.end_offset = state.end_offset;
    log.cleaned_until = state.cleaned_until;
    let Some(mut last) = log.segments.pop() else { return Ok(false) };
    let is_torn = scan(log, &mut last)?;
    log.segments.push(last);
    Ok(is_torn)
}

/// Reads segments that no checkpoint describes.
fn read_segments(log: &mut PartitionLog, base_offsets: &[i64]) -> io::Result<()> {
    for (at, base_offset) in base_offsets.iter().enumerate() {
        let mut segment = Segment::describe(&log.directory, *base_offset);
        if *base_offset < log.end_offset {
            // A compaction was interrupted between writing a new segment and removing this one.
            tracing::warn!(path = %segment.path().display(), "removing a segment that a compacted one replaces");
            segment.remove()?;
            continue;
        }
        log.end_offset = *base_offset;
        let is_torn = scan(log, &mut segment)?;
        log.segments.push(segment);
        if is_torn {
            return remove_after_tear(&log.directory, &base_offsets[at + 1..]);
        }
    }
    Ok(())
}

/// The base offsets of all segments, in order. Removes leftovers of interrupted work.
fn list_segments(directory: &Path) -> io::Result<Vec<i64>> {
    let mut base_offsets = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        let extension = path.extension().and_then(|extension| extension.to_str());
        let base_offset = path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse::<i64>().ok());
        match (extension, base_offset) {
            (Some("log"), Some(base_offset)) => base_offsets.push(base_offset),
            (Some("index"), Some(base_offset)) if !log_path(directory, base_offset).exists() => {
                std::fs::remove_file(&path)?;
            }
            (Some("new"), _) => std::fs::remove_file(&path)?,
            _ => {}
        }
    }
    base_offsets.sort_unstable();
    Ok(base_offsets)
}

/// The segments of the checkpoint, if the files match it. Segments at the front may have been
/// removed since.
fn trusted_segments(directory: &Path, on_disk: &[i64], state: &checkpoint::State) -> Option<Vec<Segment>> {
    let first = *on_disk.first()?;
    let kept: Vec<_> = state.segments.iter().filter(|segment| segment.base_offset >= first).collect();
    let mut segments = Vec::with_capacity(kept.len());
    for (at, described) in kept.iter().enumerate() {
        if on_disk.get(at) != Some(&described.base_offset) {
            tracing::warn!(
                directory = %directory.display(),
                base_offset = described.base_offset,
                "a segment of the checkpoint is missing; reading the whole log"
            );
            return None;
        }
        let path = log_path(directory, described.base_offset);
        let length = std::fs::metadata(&path).ok()?.len();
        let is_last = at + 1 == kept.len();
        if length < described.size || !is_last && length != described.size {
            tracing::warn!(path = %path.display(), length, expected = described.size, "segment size differs from the checkpoint; reading the whole log");
            return None;
        }
        let index = read_index(&path, described.index_entries)?;
        let mut segment = Segment::describe(directory, described.base_offset);
        segment.resume(index, described.size, described.max_timestamp);
        segments.push(segment);
    }
    (!segments.is_empty()).then_some(segments)
}

/// Reads a segment's file after its known part. Returns whether the tail was torn.
fn scan(log: &mut PartitionLog, segment: &mut Segment) -> io::Result<bool> {
    let mut file = File::open(segment.path())?;
    let length = file.metadata()?.len();
    if length == segment.size {
        return Ok(false);
    }
    let now = now_ms();
    file.seek(SeekFrom::Start(segment.size))?;
    let mut buffer: Vec<u8> = Vec::with_capacity(SCAN_BUFFER.min((length - segment.size) as usize));
    let mut at = 0;
    loop {
        if let Some(header) = whole_batch(&buffer[at..], log.end_offset) {
            let bytes = &buffer[at..at + header.size()];
            segment.record(&header);
            if header.is_control() {
                log.producers.ended(&header, Marker::read(bytes), now);
            } else {
                log.producers.appended(&header, now);
            }
            log.end_offset = header.last_offset() + 1;
            at += header.size();
            continue;
        }
        buffer.drain(..at);
        at = 0;
        // A batch larger than the buffer announces its size. The file must contain that many bytes.
        let announced = BatchHeader::parse(&buffer).map_or(HEADER_LENGTH, |header| header.size());
        let is_complete = buffer.len() >= announced.max(HEADER_LENGTH);
        let wanted = announced.max(SCAN_BUFFER).saturating_sub(buffer.len()) as u64;
        let read = if is_complete { 0 } else { Read::by_ref(&mut file).take(wanted).read_to_end(&mut buffer)? };
        if read == 0 {
            break;
        }
    }
    if segment.size == length {
        return Ok(false);
    }
    tracing::warn!(
        path = %segment.path().display(),
        cut = length - segment.size,
        kept = segment.size,
        end_offset = log.end_offset,
        "the last write was torn; cutting it off",
    );
    let file = File::options().write(true).open(segment.path())?;
    file.set_len(segment.size)?;
    file.sync_all()?;
    Ok(true)
}

/// The header of the batch at the start of `bytes`, if the batch is complete, undamaged, and
/// continues the log.
fn whole_batch(bytes: &[u8], end_offset: i64) -> Option<BatchHeader> {
    let header = BatchHeader::parse(bytes)?;
    let is_next = header.magic == 2 && header.base_offset >= end_offset && header.last_offset_delta >= 0;
    let is_here = header.size() <= bytes.len();
    (is_next && is_here && checksum_matches(bytes, &header)).then_some(header)
}

/// Segments behind a tear were not acknowledged, or lie behind a gap.
fn remove_after_tear(directory: &Path, base_offsets: &[i64]) -> io::Result<()> {
    for base_offset in base_offsets {
        let path = log_path(directory, *base_offset);
        tracing::warn!(path = %path.display(), "removing a segment behind a torn one");
        std::fs::remove_file(&path)?;
        if index_path(&path).exists() {
            std::fs::remove_file(index_path(&path))?;
        }
    }
    Ok(())
}
