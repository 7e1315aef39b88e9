//! One segment of a partition's log: a file of record batches, and a sparse index of it in memory.
//!
//! The index has an entry for the first batch in every [`INDEX_INTERVAL`] bytes. An entry also carries the largest
//! timestamp *before* its batch, so that the same index answers "which batch holds this offset" and "where is the first
//! batch with a timestamp of at least t". Between two entries the headers in the file are walked.
//!
//! The file is append-only. It is opened for appending, so a write always lands at the end, and a write that failed half
//! way (a full disk) is cut off before the next one.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::batch::{BatchHeader, HEADER_LENGTH};

/// Bytes of the log for one entry of the index.
pub(crate) const INDEX_INTERVAL: u64 = 32 << 10;
const ENTRY_LENGTH: usize = 24;
const NO_TIMESTAMP: i64 = -1;

/// Where a batch is, for one batch out of many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct IndexEntry {
    pub(crate) base_offset: i64,
    pub(crate) position: u64,
    /// Largest timestamp of all batches of the segment before this one.
    pub(crate) max_timestamp_before: i64,
}

/// A batch found by walking a segment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Located {
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
    /// How many entries of the index are in the index file.
    pub(crate) indexed_on_disk: usize,
    /// How much of the file the last checkpoint covers.
    pub(crate) saved_size: u64,
    /// Open while this is the segment that is appended to; others are opened for each read.
    file: Option<Arc<File>>,
    /// A write failed half way and the bytes after `size` could not be cut off yet.
    has_debris: bool,
    next_index_at: u64,
}

/// The name of a segment's file says the offset it begins with.
pub(crate) fn log_path(directory: &Path, base_offset: i64) -> PathBuf {
    directory.join(format!("{base_offset:020}.log"))
}

pub(crate) fn index_path(log_path: &Path) -> PathBuf {
    log_path.with_extension("index")
}

impl Segment {
    /// Creates an empty segment that can be appended to.
    pub(crate) fn create(directory: &Path, base_offset: i64) -> io::Result<Self> {
        let mut segment = Self::describe(directory, base_offset);
        // Whatever is there is the debris of a segment that never held an acknowledged record.
        let file = open_for_append(&segment.path)?;
        file.set_len(0)?;
        segment.file = Some(Arc::new(file));
        Ok(segment)
    }

    /// A segment whose contents are filled in by recovery.
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
            has_debris: false,
            next_index_at: 0,
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes this the segment that is appended to.
    pub(crate) fn open_for_append(&mut self) -> io::Result<()> {
        self.file = Some(Arc::new(open_for_append(&self.path)?));
        Ok(())
    }

    /// Keeps the file no longer open.
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

    /// Writes one batch, given in two parts, to the end. If it fails, nothing has been written.
    pub(crate) fn append(&mut self, header: &BatchHeader, prefix: &[u8], rest: &[u8]) -> io::Result<()> {
        let Some(file) = self.file.clone() else {
            return Err(io::Error::other("the segment is sealed"));
        };
        if self.has_debris {
            file.set_len(self.size)?;
            self.has_debris = false;
        }
        if let Err(error) = write_all(&file, prefix, rest) {
            self.has_debris = file.set_len(self.size).is_err();
            return Err(error);
        }
        self.record(header);
        Ok(())
    }

    /// Takes a batch into account that is in the file right after those known.
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

    /// Continues after a known part: recovery has the index entries up to `size`.
    pub(crate) fn resume(&mut self, index: Vec<IndexEntry>, size: u64, max_timestamp: i64) {
        self.next_index_at = index.last().map_or(0, |entry| entry.position + INDEX_INTERVAL);
        self.indexed_on_disk = index.len();
        self.index = index;
        self.size = size;
        self.saved_size = size;
        self.max_timestamp = max_timestamp;
    }

    /// The first batch that holds `offset` or one after it.
    pub(crate) fn locate(&self, offset: i64) -> io::Result<Option<Located>> {
        let after = self.index.partition_point(|entry| entry.base_offset <= offset);
        let from = after.checked_sub(1).map_or(0, |at| self.index[at].position);
        self.walk_from(from, |header| header.last_offset() >= offset)
    }

    /// The first batch with a timestamp of at least `timestamp`.
    pub(crate) fn locate_timestamp(&self, timestamp: i64) -> io::Result<Option<Located>> {
        if self.max_timestamp < timestamp {
            return Ok(None);
        }
        let after = self.index.partition_point(|entry| entry.max_timestamp_before < timestamp);
        let from = after.checked_sub(1).map_or(0, |at| self.index[at].position);
        self.walk_from(from, |header| header.max_timestamp >= timestamp)
    }

    /// The first batch at or after `position` that `wanted` accepts.
    fn walk_from(&self, position: u64, wanted: impl Fn(&BatchHeader) -> bool) -> io::Result<Option<Located>> {
        let file = self.file()?;
        let mut walker = Walker::new(&file, position, self.size);
        while let Some(located) = walker.next()? {
            if wanted(&located.header) {
                return Ok(Some(located));
            }
        }
        Ok(None)
    }

    /// The largest position of a batch's start that is known without reading, after `above` and at most `limit`.
    pub(crate) fn boundary(&self, above: u64, limit: u64) -> Option<u64> {
        if limit >= self.size {
            return Some(self.size);
        }
        let after = self.index.partition_point(|entry| entry.position <= limit);
        let entry = self.index.get(after.checked_sub(1)?)?;
        (entry.position > above).then_some(entry.position)
    }

    /// The bytes of a batch.
    pub(crate) fn read_batch(&self, located: &Located) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; located.header.size()];
        self.file()?.read_exact_at(&mut bytes, located.position)?;
        Ok(bytes)
    }

    /// The index entries that the index file does not have yet, as they are stored.
    pub(crate) fn unsaved_index(&self) -> Vec<u8> {
        encode_index(&self.index[self.indexed_on_disk..])
    }

    /// Removes the files.
    pub(crate) fn remove(&self) -> io::Result<()> {
        // The log first: an index without a log is ignored at the next start, the other way round costs a scan.
        std::fs::remove_file(&self.path)?;
        match std::fs::remove_file(index_path(&self.path)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

fn open_for_append(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).append(true).create(true).open(path)
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

/// Reads the first `count` entries of an index file; `None` when it has fewer.
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

/// Writes `bytes` into the index file behind the first `entries_before` entries, and nothing after them.
pub(crate) fn write_index(log_path: &Path, entries_before: usize, bytes: &[u8]) -> io::Result<()> {
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(index_path(log_path))?;
    let position = (entries_before * ENTRY_LENGTH) as u64;
    file.write_all_at(bytes, position)?;
    file.set_len(position + bytes.len() as u64)
}

/// Walks the headers of a segment with few reads: headers of small batches come many at a time.
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

    /// The next batch, or `None` at the end or where no whole batch follows.
    pub(crate) fn next(&mut self) -> io::Result<Option<Located>> {
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
        let located = Located { header, position: self.position };
        let next = self.position + header.size() as u64;
        if next > self.end {
            return Ok(None);
        }
        self.position = next;
        Ok(Some(located))
    }
}
