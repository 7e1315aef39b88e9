//! One segment of a partition's log: a file of record batches with a sparse index in memory.
//!
//! The index has an entry for the first batch in every [`INDEX_INTERVAL`] bytes. An entry also has
//! the largest timestamp *before* its batch, so that the same index finds an offset and the first
//! batch with a timestamp of at least t. Between two entries the headers in the file are read.
//!
//! The file is opened for appending, so a write always lands at the end. A partial write (a full
//! disk) is cut off before the next one.

use std::fs::File;
use std::io::{self, IoSlice, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::batch::{BatchHeader, HEADER_LENGTH};
use crate::private_files::{open_for_append, options};

/// Bytes of the log for each index entry.
pub(crate) const INDEX_INTERVAL: u64 = 32 << 10;
const ENTRY_LENGTH: usize = 24;
const NO_TIMESTAMP: i64 = -1;

/// The position of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct IndexEntry {
    pub(crate) base_offset: i64,
    pub(crate) position: u64,
    /// Largest timestamp of all earlier batches of the segment.
    pub(crate) max_timestamp_before: i64,
}

/// A batch with its position in the segment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LocatedBatch {
    pub(crate) header: BatchHeader,
    pub(crate) position: u64,
}

/// One file of the log.
#[derive(Debug)]
pub(crate) struct Segment {
    path: PathBuf,
    pub(crate) base_offset: i64,
    pub(crate) size: u64,
    pub(crate) max_timestamp: i64,
    pub(crate) index: Vec<IndexEntry>,
    /// The number of index entries in the index file.
    pub(crate) indexed_on_disk: usize,
    /// The number of bytes that the last checkpoint covers.
    pub(crate) saved_size: u64,
    /// Open while the segment is active. Other segments are opened for each read.
    file: Option<Arc<File>>,
    /// A partial write after `size` could not be cut off yet.
    has_partial_write: bool,
    next_index_at: u64,
}

/// A segment's file is named after its base offset.
pub(crate) fn log_path(directory: &Path, base_offset: i64) -> PathBuf {
    directory.join(format!("{base_offset:020}.log"))
}

pub(crate) fn index_path(log_path: &Path) -> PathBuf {
    log_path.with_extension("index")
}

impl Segment {
    /// Creates an empty active segment.
    pub(crate) fn create(directory: &Path, base_offset: i64) -> io::Result<Self> {
        let mut segment = Self::describe(directory, base_offset);
        // An existing file belongs to a segment that never held an acknowledged record.
        let file = open_for_append(&segment.path)?;
        file.set_len(0)?;
        segment.file = Some(Arc::new(file));
        Ok(segment)
    }

    /// A segment whose contents recovery fills in.
    pub(crate) fn describe(directory: &Path, base_offset: i64) -> Self {
        Self {
            path: log_path(directory, base_offset),
            base_offset,
            size: 0,
            max_timestamp: NO_TIMESTAMP,
            index: Vec::new(),
            indexed_on_disk: 0,
            saved_size: 0,
            file: None,
            has_partial_write: false,
            next_index_at: 0,
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes this the active segment.
    pub(crate) fn open_for_append(&mut self) -> io::Result<()> {
        self.file = Some(Arc::new(open_for_append(&self.path)?));
        Ok(())
    }

    /// Closes the file.
    pub(crate) fn seal(&mut self) {
        self.file = None;
        self.index.shrink_to_fit();
    }

    /// The file, for reading.
    pub(crate) fn file(&self) -> io::Result<Arc<File>> {
        match &self.file {
            Some(file) => Ok(Arc::clone(file)),
            None => Ok(Arc::new(File::open(&self.path)?)),
        }
    }

    /// Appends one batch, given in two parts. A failed append leaves no bytes.
    pub(crate) fn append(&mut self, header: &BatchHeader, prefix: &[u8], rest: &[u8]) -> io::Result<()> {
        let Some(file) = self.file.clone() else {
            return Err(io::Error::other("the segment is sealed"));
        };
        if self.has_partial_write {
            file.set_len(self.size)?;
            self.has_partial_write = false;
        }
        if let Err(error) = write_all(&file, prefix, rest) {
            self.has_partial_write = file.set_len(self.size).is_err();
            return Err(error);
        }
        self.record(header);
        Ok(())
    }

    /// Adds the batch that follows the known ones in the file.
    pub(crate) fn record(&mut self, header: &BatchHeader) {
        if self.size >= self.next_index_at {
            self.index.push(IndexEntry {
                base_offset: header.base_offset,
                position: self.size,
                max_timestamp_before: self.max_timestamp,
            });
            self.next_index_at = self.size + INDEX_INTERVAL;
        }
        self.size += header.size() as u64;
        self.max_timestamp = self.max_timestamp.max(header.max_timestamp);
    }

    /// Sets the known part of the segment, from a checkpoint.
    pub(crate) fn resume(&mut self, index: Vec<IndexEntry>, size: u64, max_timestamp: i64) {
        self.next_index_at = index.last().map_or(0, |entry| entry.position + INDEX_INTERVAL);
        self.indexed_on_disk = index.len();
        self.index = index;
        self.size = size;
        self.saved_size = size;
        self.max_timestamp = max_timestamp;
    }

    /// The first batch that contains `offset` or a later one.
    pub(crate) fn locate(&self, offset: i64) -> io::Result<Option<LocatedBatch>> {
        let after = self.index.partition_point(|entry| entry.base_offset <= offset);
        let from = after.checked_sub(1).map_or(0, |at| self.index[at].position);
        self.walk_from(from, |header| header.last_offset() >= offset)
    }

    /// The first batch with a timestamp of at least `timestamp`.
    pub(crate) fn locate_timestamp(&self, timestamp: i64) -> io::Result<Option<LocatedBatch>> {
        if self.max_timestamp < timestamp {
            return Ok(None);
        }
        let after = self.index.partition_point(|entry| entry.max_timestamp_before < timestamp);
        let from = after.checked_sub(1).map_or(0, |at| self.index[at].position);
        self.walk_from(from, |header| header.max_timestamp >= timestamp)
    }

    /// The first batch from `position` on that `wanted` accepts.
    fn walk_from(&self, position: u64, wanted: impl Fn(&BatchHeader) -> bool) -> io::Result<Option<LocatedBatch>> {
        let file = self.file()?;
        let mut walker = Walker::new(&file, position, self.size);
        while let Some(located) = walker.next()? {
            if wanted(&located.header) {
                return Ok(Some(located));
            }
        }
        Ok(None)
    }

    /// The largest indexed batch position after `above` and at most `limit`.
    pub(crate) fn boundary(&self, above: u64, limit: u64) -> Option<u64> {
        if limit >= self.size {
            return Some(self.size);
        }
        let after = self.index.partition_point(|entry| entry.position <= limit);
        let entry = self.index.get(after.checked_sub(1)?)?;
        (entry.position > above).then_some(entry.position)
    }

    /// The bytes of a batch.
    pub(crate) fn read_batch(&self, located: &LocatedBatch) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; located.header.size()];
        self.file()?.read_exact_at(&mut bytes, located.position)?;
        Ok(bytes)
    }

    /// The encoded index entries that the index file does not have yet.
    pub(crate) fn unsaved_index(&self) -> Vec<u8> {
        encode_index(&self.index[self.indexed_on_disk..])
    }

    /// Removes the files.
    pub(crate) fn remove(&self) -> io::Result<()> {
        // The log first: the next start ignores an index without a log, but reads a log without an
        // index in full.
        std::fs::remove_file(&self.path)?;
        match std::fs::remove_file(index_path(&self.path)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

fn write_all(mut file: &File, prefix: &[u8], rest: &[u8]) -> io::Result<()> {
    let mut slices = [IoSlice::new(prefix), IoSlice::new(rest)];
    let mut remaining = &mut slices[..];
    while !remaining.is_empty() {
        match file.write_vectored(remaining) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => IoSlice::advance_slices(&mut remaining, written),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

pub(crate) fn encode_index(entries: &[IndexEntry]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(entries.len() * ENTRY_LENGTH);
    for entry in entries {
        bytes.extend_from_slice(&entry.base_offset.to_le_bytes());
        bytes.extend_from_slice(&entry.position.to_le_bytes());
        bytes.extend_from_slice(&entry.max_timestamp_before.to_le_bytes());
    }
    bytes
}

/// Reads the first `count` entries of an index file. `None`: the file has fewer.
pub(crate) fn read_index(log_path: &Path, count: usize) -> Option<Vec<IndexEntry>> {
    if count == 0 {
        return Some(Vec::new());
    }
    let bytes = std::fs::read(index_path(log_path)).ok()?;
    let wanted = bytes.get(..count * ENTRY_LENGTH)?;
    let number = |entry: &[u8], at: usize| entry[at..at + 8].try_into().map(i64::from_le_bytes).unwrap_or_default();
    let decode = |entry: &[u8]| IndexEntry {
        base_offset: number(entry, 0),
        position: number(entry, 8) as u64,
        max_timestamp_before: number(entry, 16),
    };
    Some(wanted.chunks_exact(ENTRY_LENGTH).map(decode).collect())
}

/// Writes `bytes` after the first `entries_before` entries of the index file and cuts off the rest.
pub(crate) fn write_index(log_path: &Path, entries_before: usize, bytes: &[u8]) -> io::Result<()> {
    let file = options().write(true).create(true).truncate(false).open(index_path(log_path))?;
    let position = (entries_before * ENTRY_LENGTH) as u64;
    file.write_all_at(bytes, position)?;
    file.set_len(position + bytes.len() as u64)
}

/// Reads the headers of a segment, many small batches with one read.
pub(crate) struct Walker<'file> {
    file: &'file File,
    position: u64,
    end: u64,
    buffer: Vec<u8>,
    buffer_at: u64,
}

const WALK_BUFFER: usize = 8 << 10;

impl<'file> Walker<'file> {
    pub(crate) fn new(file: &'file File, position: u64, end: u64) -> Self {
        Self { file, position, end, buffer: Vec::new(), buffer_at: 0 }
    }

    /// The next batch. `None`: the end, or an incomplete batch.
    pub(crate) fn next(&mut self) -> io::Result<Option<LocatedBatch>> {
        if self.position + HEADER_LENGTH as u64 > self.end {
            return Ok(None);
        }
        let buffered_until = self.buffer_at + self.buffer.len() as u64;
        if self.position < self.buffer_at || self.position + HEADER_LENGTH as u64 > buffered_until {
            let length = (self.end - self.position).min(WALK_BUFFER as u64) as usize;
            self.buffer.resize(length, 0);
            self.file.read_exact_at(&mut self.buffer, self.position)?;
            self.buffer_at = self.position;
        }
        let at = (self.position - self.buffer_at) as usize;
        let Some(header) = BatchHeader::parse(&self.buffer[at..]) else {
            return Ok(None);
        };
        let located = LocatedBatch { header, position: self.position };
        let next = self.position + header.size() as u64;
        if next > self.end {
            return Ok(None);
        }
        self.position = next;
        Ok(Some(located))
    }
}
