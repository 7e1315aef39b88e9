//! A table: a file of rows in the order of their keys, which never changes.
//!
//! # File
//! - Blocks of about [`BLOCK_BYTES`], one after the other: rows (length of the key in 2 bytes, of
//!   the value in 4, key, value; the length `u32::MAX` marks a removed key), where each row starts
//!   (2 bytes), their number (2 bytes), and a checksum (8 bytes).
//! - The index: for each part of the table, where its blocks are, what separates them, and a filter
//!   of its keys.
//! - The tail of [`TAIL_BYTES`]: the offset of the index, its checksum, a seed, [`MAGIC`].
//!
//! Numbers are little-endian. The seed is random, and part of each checksum, so that a block of
//! another file or place is not taken for one of this table.
//!
//! # Memory
//! The index stays in memory: two to three bytes for each row. So a lookup reads one block.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::TableError;
use super::index::{Part, Reader};

/// Size at which a block ends.
pub(super) const BLOCK_BYTES: usize = 1 << 10;
/// Bytes of a row before its key.
pub(super) const ROW_HEAD: usize = 6;
/// The length of the value of a removed key.
pub(super) const REMOVED: u32 = u32::MAX;
const CHECKSUM_BYTES: usize = 8;
pub(super) const TAIL_BYTES: usize = 32;
/// The last bytes of a table; the digit is the version of the format.
pub(super) const MAGIC: [u8; 8] = *b"TLSTATE1";
/// Bytes that a cursor reads at once: at first, and later, unless a block is larger.
const MIN_AHEAD: usize = 4 << 10;
const MAX_AHEAD: usize = 64 << 10;

/// An open table.
pub(super) struct Table {
    file: File,
    path: PathBuf,
    number: u64,
    seed: u64,
    bytes: u64,
    parts: Vec<Part>,
    index_bytes: usize,
}

/// What a table has for a key.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Lookup {
    Absent,
    Removed,
    /// Where its value is in the buffer.
    Value(Range<usize>),
}

/// A row: a key, and its value unless it was removed.
pub(super) type Row<'b> = (&'b [u8], Option<&'b [u8]>);

impl Table {
    /// Opens a table of this size and seed.
    pub(super) fn open(path: &Path, number: u64, bytes: u64, seed: u64) -> Result<Self, TableError> {
        let file = File::open(path)?;
        let damaged = |what: &str| TableError::Damaged(format!("{} {what}", path.display()));
        if file.metadata()?.len() != bytes {
            return Err(damaged("has another length"));
        }
        let tail_at = bytes.checked_sub(TAIL_BYTES as u64).ok_or_else(|| damaged("is too short"))?;
        let mut tail = [0; TAIL_BYTES];
        file.read_exact_at(&mut tail, tail_at)?;
        let mut tail = Reader(&tail);
        let (index_at, checksum, its_seed) = (tail.u64(), tail.u64(), tail.u64());
        if tail.0 != MAGIC || its_seed != Some(seed) {
            return Err(damaged("is not the expected table"));
        }
        let index_len = index_at.and_then(|at| tail_at.checked_sub(at)).and_then(|len| usize::try_from(len).ok());
        let mut index = vec![0; index_len.ok_or_else(|| damaged("has no index"))?];
        file.read_exact_at(&mut index, index_at.unwrap_or(0))?;
        if Some(xxh3_64_with_seed(&index, seed)) != checksum {
            return Err(damaged("has a damaged index"));
        }
        let parts = read_index(&mut Reader(&index)).ok_or_else(|| damaged("has an unknown index"))?;
        Ok(Self::new(file, path.to_owned(), (number, seed, bytes), parts))
    }

    pub(super) fn new(file: File, path: PathBuf, (number, seed, bytes): (u64, u64, u64), parts: Vec<Part>) -> Self {
        let index_bytes = parts.iter().map(Part::bytes).sum();
        Self { file, path, number, seed, bytes, parts, index_bytes }
    }

    pub(super) fn number(&self) -> u64 {
        self.number
    }

    pub(super) fn seed(&self) -> u64 {
        self.seed
    }

    /// Size of the file.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Memory of the index.
    pub(super) fn index_bytes(&self) -> usize {
        self.index_bytes
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Looks for a key with this hash, and reads its block into a buffer.
    pub(super) fn get(&self, key: &[u8], hash: u64, buffer: &mut Vec<u8>) -> Result<Lookup, TableError> {
        let Some(part) = self.part_of(key).and_then(|part| self.parts.get(part)) else { return Ok(Lookup::Absent) };
        if !part.may_contain(hash) {
            return Ok(Lookup::Absent);
        }
        let place = part.block_of(key).and_then(|block| part.place(block));
        let Some(place) = place else { return Ok(Lookup::Absent) };
        let len = (place.end - place.start) as usize;
        if buffer.len() < len {
            buffer.resize(len, 0);
        }
        let buffer = &mut buffer[..len];
        self.file.read_exact_at(buffer, place.start)?;
        let block = self.check(buffer, place.start)?;
        let (at, is_equal) = block.search(key).ok_or_else(|| self.damaged(place.start))?;
        if !is_equal {
            return Ok(Lookup::Absent);
        }
        let (_, value) = block.row_place(at).ok_or_else(|| self.damaged(place.start))?;
        Ok(value.map_or(Lookup::Removed, Lookup::Value))
    }

    /// The part that has a key, if the table has it.
    fn part_of(&self, key: &[u8]) -> Option<usize> {
        let after = match self.parts.as_slice() {
            [_] => 1,
            parts => parts.partition_point(|part| part.begins_before(key)),
        };
        after.checked_sub(1)
    }

    /// The content of a block, without its checksum, which is verified.
    fn check<'b>(&self, bytes: &'b [u8], start: u64) -> Result<Block<'b>, TableError> {
        let (content, checksum) = bytes.split_last_chunk::<CHECKSUM_BYTES>().ok_or_else(|| self.damaged(start))?;
        if block_checksum(content, self.seed, start) != u64::from_le_bytes(*checksum) {
            return Err(self.damaged(start));
        }
        Block::new(content).ok_or_else(|| self.damaged(start))
    }

    fn damaged(&self, start: u64) -> TableError {
        TableError::Damaged(format!("{} has a damaged block at byte {start}", self.path.display()))
    }
}

/// The checksum of a block that starts at this byte of the file.
pub(super) fn block_checksum(content: &[u8], seed: u64, start: u64) -> u64 {
    xxh3_64_with_seed(content, seed ^ start)
}

/// The index as it is in the file.
pub(super) fn write_index(parts: &[Part]) -> Vec<u8> {
    let mut out = Vec::with_capacity(parts.iter().map(Part::bytes).sum());
    out.extend((parts.len() as u64).to_le_bytes());
    parts.iter().for_each(|part| part.write_to(&mut out));
    out
}

fn read_index(index: &mut Reader<'_>) -> Option<Vec<Part>> {
    let parts = index.u64()?;
    (0..parts).map(|_| Part::read_from(index)).collect()
}

/// The content of a block, without its checksum.
#[derive(Clone, Copy)]
struct Block<'b> {
    rows: &'b [u8],
    starts: &'b [[u8; 2]],
}

impl<'b> Block<'b> {
    fn new(content: &'b [u8]) -> Option<Self> {
        let (rest, count) = content.split_last_chunk::<2>()?;
        let starts = rest.len().checked_sub(2 * usize::from(u16::from_le_bytes(*count)))?;
        let (rows, starts) = rest.split_at(starts);
        Some(Self { rows, starts: starts.as_chunks().0 })
    }

    /// Where a row, its key and its value are; of a removed key, the value is `None`.
    fn row_place(&self, at: usize) -> Option<(Range<usize>, Option<Range<usize>>)> {
        let start = usize::from(u16::from_le_bytes(*self.starts.get(at)?));
        let head = self.rows.get(start..start + ROW_HEAD)?;
        let key_end = start + ROW_HEAD + usize::from(u16::from_le_bytes(*head.first_chunk()?));
        let value_len = u32::from_le_bytes(*head.last_chunk()?);
        let value = (value_len != REMOVED).then(|| key_end..key_end + value_len as usize);
        let end = value.as_ref().map_or(key_end, |value| value.end);
        (end <= self.rows.len()).then_some((start + ROW_HEAD..key_end, value))
    }

    fn key(&self, at: usize) -> Option<&'b [u8]> {
        let start = usize::from(u16::from_le_bytes(*self.starts.get(at)?));
        let row = self.rows.get(start..)?;
        let len = usize::from(u16::from_le_bytes(*row.first_chunk()?));
        row.get(ROW_HEAD..ROW_HEAD + len)
    }

    /// The first row whose key is not less than this one, and whether it is equal.
    fn search(&self, key: &[u8]) -> Option<(usize, bool)> {
        let (mut from, mut to) = (0, self.starts.len());
        while from < to {
            let middle = from.midpoint(to);
            match self.key(middle)?.cmp(key) {
                std::cmp::Ordering::Less => from = middle + 1,
                std::cmp::Ordering::Equal => return Some((middle, true)),
                std::cmp::Ordering::Greater => to = middle,
            }
        }
        Some((from, false))
    }
}

/// Goes through the rows of a table in their order.
pub(super) struct Cursor {
    table: Arc<Table>,
    /// Consecutive blocks, the first of which starts at this byte of the file.
    buffer: Vec<u8>,
    buffer_start: u64,
    /// Bytes to read at once.
    ahead: usize,
    part: usize,
    /// The number of the block in its part.
    block: usize,
    /// Where its content is in the buffer.
    content: Range<usize>,
    row: usize,
    rows: usize,
    /// Where the key and the value of the row are in the buffer.
    key: Range<usize>,
    value: Option<Range<usize>>,
    is_at_end: bool,
}

impl Cursor {
    /// At the first row whose key is not less than `start`.
    pub(super) fn new(table: Arc<Table>, start: &[u8]) -> Result<Self, TableError> {
        let part = table.part_of(start).unwrap_or(0);
        let block = table.parts.get(part).and_then(|part| part.block_of(start)).unwrap_or(0);
        let mut this = Self {
            table,
            buffer: Vec::new(),
            buffer_start: 0,
            ahead: MIN_AHEAD,
            part,
            block,
            content: 0..0,
            row: 0,
            rows: 0,
            key: 0..0,
            value: None,
            is_at_end: false,
        };
        this.load()?;
        if !this.is_at_end {
            let block = this.content();
            let found = block.and_then(|block| block.search(start));
            (this.row, _) = found.ok_or_else(|| this.damaged())?;
            this.settle()?;
        }
        Ok(this)
    }

    /// Whether it is past the last row.
    pub(super) fn is_at_end(&self) -> bool {
        self.is_at_end
    }

    pub(super) fn key(&self) -> &[u8] {
        &self.buffer[self.key.clone()]
    }

    pub(super) fn row(&self) -> Row<'_> {
        (self.key(), self.value.clone().map(|value| &self.buffer[value]))
    }

    pub(super) fn advance(&mut self) -> Result<(), TableError> {
        self.row += 1;
        self.settle()
    }

    /// Finds the row in its block, or the first one of the next block.
    fn settle(&mut self) -> Result<(), TableError> {
        while self.row >= self.rows && !self.is_at_end {
            self.block += 1;
            self.load()?;
        }
        if self.is_at_end {
            return Ok(());
        }
        let (key, value) = self.content().and_then(|block| block.row_place(self.row)).ok_or_else(|| self.damaged())?;
        let base = self.content.start;
        self.key = base + key.start..base + key.end;
        self.value = value.map(|value| base + value.start..base + value.end);
        Ok(())
    }

    /// Makes the first row of the block the current one, or that of the next part.
    fn load(&mut self) -> Result<(), TableError> {
        if self.table.parts.get(self.part).is_some_and(|part| self.block >= part.len()) {
            (self.part, self.block) = (self.part + 1, 0);
        }
        let part = self.table.parts.get(self.part);
        let Some((part, place)) = part.and_then(|part| Some((part, part.place(self.block)?))) else {
            self.is_at_end = true;
            return Ok(());
        };
        let buffer_end = self.buffer_start + self.buffer.len() as u64;
        if place.start < self.buffer_start || place.end > buffer_end {
            let end = part.end_of_blocks(self.block, place.start + self.ahead as u64).unwrap_or(place.end);
            self.buffer.resize((end - place.start) as usize, 0);
            self.table.file.read_exact_at(&mut self.buffer, place.start)?;
            self.buffer_start = place.start;
            self.ahead = (2 * self.ahead).min(MAX_AHEAD);
        }
        let from = (place.start - self.buffer_start) as usize;
        let to = (place.end - self.buffer_start) as usize;
        self.rows = self.table.check(&self.buffer[from..to], place.start)?.starts.len();
        (self.content, self.row) = (from..to - CHECKSUM_BYTES, 0);
        Ok(())
    }

    fn content(&self) -> Option<Block<'_>> {
        Block::new(&self.buffer[self.content.clone()])
    }

    fn damaged(&self) -> TableError {
        self.table.damaged(self.buffer_start + self.content.start as u64)
    }
}
