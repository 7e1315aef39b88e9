//! Writes a table.

use std::collections::hash_map::RandomState;
use std::fs::File;
use std::hash::BuildHasher as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::TableError;
use super::index::{Part, PartBuilder};
use super::table::{BLOCK_BYTES, MAGIC, REMOVED, ROW_HEAD, Table, block_checksum, write_index};

/// Rows of a part, whose hashes are in memory until it ends.
const PART_ROWS: usize = 1 << 16;
/// A part with large rows ends earlier. Its lengths have 32 bits.
const PART_BYTES: usize = 256 << 20;
/// Bytes that are written at once.
const BUFFER_BYTES: usize = 128 << 10;

/// A table that is being written. Removes the file if it is not finished.
pub(crate) struct TableWriter {
    file: Option<File>,
    path: PathBuf,
    number: u64,
    seed: u64,
    /// What is not in the file yet: whole blocks, and the rows of the current one.
    buffer: Vec<u8>,
    /// Where the buffer begins in the file.
    written: u64,
    /// Where the current block begins in the buffer.
    block: usize,
    /// Where its rows begin in it.
    rows: Vec<u16>,
    parts: Vec<Part>,
    /// The current part, and the hashes of its keys.
    part: PartBuilder,
    hashes: Vec<u64>,
    last_key: Vec<u8>,
}

impl TableWriter {
    pub(super) fn new(path: &Path, number: u64) -> Result<Self, TableError> {
        let file = File::options().read(true).write(true).create(true).truncate(true).open(path)?;
        Ok(Self {
            file: Some(file),
            path: path.to_owned(),
            number,
            seed: RandomState::new().hash_one(number),
            buffer: Vec::with_capacity(BUFFER_BYTES + 2 * BLOCK_BYTES),
            written: 0,
            block: 0,
            rows: Vec::new(),
            parts: Vec::new(),
            part: PartBuilder::default(),
            hashes: Vec::new(),
            last_key: Vec::new(),
        })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.hashes.is_empty() && self.parts.is_empty()
    }

    /// Adds a row whose key is greater than the one before; without a value, the key is removed.
    pub(crate) fn add(&mut self, key: &[u8], value: Option<&[u8]>) -> Result<(), TableError> {
        debug_assert!(self.is_empty() || *self.last_key < *key, "rows out of order");
        let key_len = u16::try_from(key.len()).map_err(|_| too_large("key", key.len()))?;
        let value_len = match value {
            Some(value) => {
                let len = u32::try_from(value.len()).ok().filter(|len| *len != REMOVED);
                len.ok_or_else(|| too_large("value", value.len()))?
            }
            None => REMOVED,
        };
        if self.rows.is_empty() {
            self.begin_block(key);
        }
        // A block ends after the row that fills it, so this is below `BLOCK_BYTES`.
        self.rows.push((self.buffer.len() - self.block) as u16);
        self.buffer.reserve(ROW_HEAD + key.len() + value.map_or(0, <[u8]>::len));
        self.buffer.extend_from_slice(&key_len.to_le_bytes());
        self.buffer.extend_from_slice(&value_len.to_le_bytes());
        self.buffer.extend_from_slice(key);
        self.buffer.extend_from_slice(value.unwrap_or_default());
        self.hashes.push(xxh3_64(key));
        self.last_key.clear();
        self.last_key.extend_from_slice(key);
        if self.buffer.len() - self.block >= BLOCK_BYTES {
            self.end_block()?;
        }
        Ok(())
    }

    fn begin_block(&mut self, key: &[u8]) {
        if self.hashes.len() >= PART_ROWS || self.part.bytes() >= PART_BYTES {
            self.end_part();
        }
        // As much of the key as is needed to be greater than the key before. The first key of a
        // part is whole, so that its separators have as many bytes in common as possible.
        let shared = self.last_key.iter().zip(key).take_while(|(a, b)| a == b).count();
        let len = if self.part.is_empty() { key.len() } else { key.len().min(shared + 1) };
        self.part.begin_block(&key[..len]);
    }

    fn end_block(&mut self) -> Result<(), TableError> {
        for row in &self.rows {
            self.buffer.extend_from_slice(&row.to_le_bytes());
        }
        let rows = self.rows.len() as u16;
        self.buffer.extend_from_slice(&rows.to_le_bytes());
        let start = self.written + self.block as u64;
        let checksum = block_checksum(&self.buffer[self.block..], self.seed, start);
        self.buffer.extend_from_slice(&checksum.to_le_bytes());
        self.rows.clear();
        self.block = self.buffer.len();
        self.part.end_block(self.written + self.block as u64);
        if self.buffer.len() >= BUFFER_BYTES { self.flush() } else { Ok(()) }
    }

    fn end_part(&mut self) {
        let next = PartBuilder::new(self.written + self.block as u64);
        self.parts.push(std::mem::replace(&mut self.part, next).finish(&self.hashes));
        self.hashes.clear();
    }

    fn flush(&mut self) -> Result<(), TableError> {
        if let Some(file) = &mut self.file {
            file.write_all(&self.buffer)?;
        }
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        self.block = 0;
        Ok(())
    }

    /// Writes the rest, and waits until the disk has all of it.
    pub(super) fn finish(mut self) -> Result<Table, TableError> {
        if !self.rows.is_empty() {
            self.end_block()?;
        }
        if !self.part.is_empty() {
            self.end_part();
        }
        self.flush()?;
        let index_at = self.written;
        self.buffer = write_index(&self.parts);
        let checksum = xxh3_64_with_seed(&self.buffer, self.seed);
        for number in [index_at, checksum, self.seed] {
            self.buffer.extend_from_slice(&number.to_le_bytes());
        }
        self.buffer.extend_from_slice(&MAGIC);
        self.flush()?;
        let Some(file) = &self.file else { return Err(too_large("table", 0)) };
        file.sync_data()?;
        let Some(file) = self.file.take() else { return Err(too_large("table", 0)) };
        let (path, parts) = (std::mem::take(&mut self.path), std::mem::take(&mut self.parts));
        Ok(Table::new(file, path, (self.number, self.seed, self.written), parts))
    }
}

impl Drop for TableWriter {
    fn drop(&mut self) {
        if self.file.take().is_some() {
            // Best effort: a file that remains is removed when the tables are opened.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn too_large(what: &str, len: usize) -> TableError {
    std::io::Error::other(format!("a {what} of {len} bytes does not fit into a table")).into()
}
