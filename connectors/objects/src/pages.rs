//! Compresses pages with ZSTD contexts that all files of the process share.
//!
//! The library makes a compressor, and a decompressor that writing does not need, for each open
//! column. They take memory, and the time to make them: each asks the processor for its features,
//! which a virtual machine answers in 10 µs. Hence a column without a dictionary is written without
//! compression into a [`Chunk`], which compresses each page. What the library knows of the chunk is
//! corrected when it is complete. The file has the same bytes as with the library's compressors.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use parquet::arrow::arrow_writer::{
    ArrowColumnChunk, ArrowColumnWriter, ArrowLeafColumn, ArrowRowGroupWriterFactory, InMemoryPageStore, PageKey,
    PageStore, PageStoreArgs, PageStoreFactory,
};
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::{ParquetError, Result};
use parquet::file::properties::WriterProperties;
use zstd::bulk::Compressor;

/// Compressors that are kept while no thread needs them.
const KEPT: usize = 4;
/// The largest buffer that is kept with a compressor.
const KEPT_BYTES: usize = 4 << 20;

/// Compressors that no thread needs now.
static SPARE: Mutex<Vec<Zstd>> = Mutex::new(Vec::new());

/// Whether pages with this compression are compressed here.
pub(crate) fn is_shared(compression: Compression) -> bool {
    matches!(compression, Compression::ZSTD(_))
}

/// Makes the stores for the pages of the columns of a row group.
pub(crate) struct Stores {
    properties: Arc<WriterProperties>,
    level: Option<ZstdLevel>,
    /// What was made for the columns whose writers are being opened; `None` for a column that the
    /// library compresses.
    made: Mutex<Vec<Option<Arc<Mutex<Chunk>>>>>,
}

/// The writer of a column.
pub(crate) struct ColumnWriter {
    writer: ArrowColumnWriter,
    chunk: Option<Arc<Mutex<Chunk>>>,
}

/// The pages of a column that are compressed here.
struct Chunk {
    level: ZstdLevel,
    /// Header and data of each page.
    blobs: Vec<Bytes>,
    /// The size of each page, with its header.
    pages: Vec<usize>,
    /// Bytes of all pages, and how many they would be without compression.
    compressed: usize,
    plain: usize,
    /// Bytes that were passed to the store.
    passed: usize,
    /// Bytes in memory.
    memory: usize,
}

/// A column's pages as the library uses them.
struct Store(Arc<Mutex<Chunk>>);

impl Stores {
    /// Stores for files with these properties. `compression` is that of the pages.
    pub(crate) fn new(properties: &Arc<WriterProperties>, compression: Compression) -> Self {
        let level = match compression {
            Compression::ZSTD(level) => Some(level),
            _ => None,
        };
        Self { properties: Arc::clone(properties), level, made: Mutex::default() }
    }

    /// Opens the writers of a row group's columns. The factory uses these stores.
    pub(crate) fn open(&self, factory: &ArrowRowGroupWriterFactory, row_group: usize) -> Result<Vec<ColumnWriter>> {
        lock(&self.made).clear();
        let writers = factory.create_column_writers(row_group)?;
        let chunks = std::mem::take(&mut *lock(&self.made));
        if writers.len() != chunks.len() {
            return Err(ParquetError::General("the columns of a row group have other stores than expected".to_owned()));
        }
        Ok(writers.into_iter().zip(chunks).map(|(writer, chunk)| ColumnWriter { writer, chunk }).collect())
    }
}

impl ColumnWriter {
    pub(crate) fn write(&mut self, leaf: &ArrowLeafColumn) -> Result<()> {
        self.writer.write(leaf)
    }

    /// The complete column.
    pub(crate) fn close(self) -> Result<ArrowColumnChunk> {
        let mut complete = self.writer.close()?;
        if let Some(chunk) = self.chunk {
            lock(&chunk).correct(&mut complete)?;
        }
        Ok(complete)
    }

    /// Bytes of the column if it were complete now.
    pub(crate) fn bytes(&self) -> usize {
        let saved = self.chunk.as_ref().map_or(0, |chunk| lock(chunk).saved());
        self.writer.get_estimated_total_bytes().saturating_sub(saved)
    }

    /// Bytes of memory.
    pub(crate) fn memory(&self) -> usize {
        self.writer.memory_size()
    }
}

impl fmt::Debug for Stores {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Stores").field("level", &self.level).finish_non_exhaustive()
    }
}

impl PageStoreFactory for Stores {
    fn create(&self, args: &PageStoreArgs<'_>) -> Result<Box<dyn PageStore>> {
        let path = args.column_descriptor().path();
        let is_plain =
            self.properties.compression(path) == Compression::UNCOMPRESSED && !self.properties.dictionary_enabled(path);
        let chunk = self.level.filter(|_| is_plain).map(|level| {
            let chunk =
                Chunk { level, blobs: Vec::new(), pages: Vec::new(), compressed: 0, plain: 0, passed: 0, memory: 0 };
            Arc::new(Mutex::new(chunk))
        });
        lock(&self.made).push(chunk.clone());
        Ok(match chunk {
            Some(chunk) => Box::new(Store(chunk)),
            None => Box::<InMemoryPageStore>::default(),
        })
    }
}

impl PageStore for Store {
    fn put(&mut self, blob: Bytes) -> Result<PageKey> {
        let mut chunk = lock(&self.0);
        chunk.passed += blob.len();
        // Header and data follow one another.
        if chunk.blobs.len().is_multiple_of(2) {
            chunk.memory += blob.len();
            chunk.blobs.push(blob);
        } else {
            chunk.complete(&blob)?;
        }
        Ok(PageKey::new(chunk.blobs.len() as u64 - 1))
    }

    fn take(&mut self, key: PageKey) -> Result<Bytes> {
        let mut chunk = lock(&self.0);
        let blob = usize::try_from(key.get()).ok().and_then(|key| chunk.blobs.get_mut(key)).map(std::mem::take);
        let blob = blob.ok_or_else(|| ParquetError::General(format!("there is no page {}", key.get())))?;
        chunk.memory -= blob.len();
        Ok(blob)
    }

    fn memory_size(&self) -> usize {
        lock(&self.0).memory
    }
}

impl Chunk {
    /// Adds the data of a page, whose header is the last blob.
    fn complete(&mut self, data: &Bytes) -> Result<()> {
        let data_after = Zstd::compress(self.level, data)?;
        let header = self.blobs.pop().unwrap_or_default();
        let header_after = with_compressed_size(&header, data.len(), data_after.len())
            .ok_or_else(|| ParquetError::General("the header of a page has another form than expected".to_owned()))?;
        let bytes = header_after.len() + data_after.len();
        self.memory = self.memory - header.len() + bytes;
        self.compressed += bytes;
        self.plain += header_after.len() + data.len();
        self.pages.push(bytes);
        self.blobs.extend([header_after, data_after]);
        Ok(())
    }

    /// Bytes that compression has saved so far.
    fn saved(&self) -> usize {
        self.passed.saturating_sub(self.compressed)
    }

    /// Corrects what the library knows of the complete chunk.
    fn correct(&self, chunk: &mut ArrowColumnChunk) -> Result<()> {
        let close = chunk.close_mut();
        close.bytes_written = self.compressed as u64;
        close.metadata = close
            .metadata
            .clone()
            .into_builder()
            .set_compression(Compression::ZSTD(self.level))
            .set_total_compressed_size(self.compressed as i64)
            .set_total_uncompressed_size(self.plain as i64)
            .build()?;
        if let Some(index) = &mut close.offset_index {
            let mut offset = 0;
            for (location, bytes) in index.page_locations.iter_mut().zip(&self.pages) {
                location.offset = offset;
                location.compressed_page_size = i32::try_from(*bytes)
                    .map_err(|_| ParquetError::General(format!("a page has {bytes} bytes after compression")))?;
                offset += *bytes as i64;
            }
        }
        Ok(())
    }
}

/// The header of a page with another compressed size. `None` if it does not begin with the page's
/// type and its size `plain`, twice, in Thrift's compact protocol.
fn with_compressed_size(header: &[u8], plain: usize, compressed: usize) -> Option<Bytes> {
    /// The next field, an i32.
    const NEXT_I32: u8 = 0x15;
    let mut rest = header;
    let mut start = 0;
    let mut found = [0; 3];
    for value in &mut found {
        start = header.len() - rest.len();
        rest = rest.strip_prefix(&[NEXT_I32])?;
        let length = 1 + rest.iter().position(|byte| byte & 0x80 == 0)?;
        let (bytes, after) = rest.split_at_checked(length)?;
        *value = bytes.iter().rev().fold(0, |value, byte| value << 7 | u64::from(byte & 0x7f));
        rest = after;
    }
    // Signed numbers are encoded as 0, -1, 1, -2, ..
    let twice = |bytes: usize| 2 * bytes as u64;
    if found[1..] != [twice(plain); 2] {
        return None;
    }
    let mut changed = Vec::with_capacity(header.len());
    changed.extend_from_slice(&header[..=start]);
    let mut left = twice(compressed);
    while left >= 0x80 {
        changed.push(left as u8 | 0x80);
        left >>= 7;
    }
    changed.push(left as u8);
    changed.extend_from_slice(rest);
    Some(changed.into())
}

/// A compressor, and a buffer for what it writes.
struct Zstd {
    level: i32,
    compressor: Compressor<'static>,
    buffer: Vec<u8>,
}

impl Zstd {
    fn compress(level: ZstdLevel, data: &[u8]) -> Result<Bytes> {
        let level = level.compression_level();
        let spare = {
            let mut spare = lock(&SPARE);
            let place = spare.iter().position(|zstd| zstd.level == level);
            place.map(|place| spare.swap_remove(place))
        };
        let mut zstd = match spare {
            Some(zstd) => zstd,
            None => Self { level, compressor: Compressor::new(level)?, buffer: Vec::new() },
        };
        zstd.buffer.clear();
        zstd.buffer.reserve(zstd::zstd_safe::compress_bound(data.len()));
        zstd.compressor.compress_to_buffer(data, &mut zstd.buffer)?;
        let compressed = Bytes::copy_from_slice(&zstd.buffer);
        if zstd.buffer.capacity() > KEPT_BYTES {
            zstd.buffer = Vec::new();
        }
        let mut spare = lock(&SPARE);
        if spare.len() >= KEPT {
            // It may be of a level that is not used any more.
            spare.remove(0);
        }
        spare.push(zstd);
        Ok(compressed)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic while a page is added loses the page, and the file is abandoned by its owner.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_in_a_header_is_replaced() {
        // Type 0, 300 and 300 bytes, and a struct.
        let header = [0x15, 0, 0x15, 0xd8, 4, 0x15, 0xd8, 4, 0x2c, 1, 2];
        let changed = with_compressed_size(&header, 300, 20).unwrap();
        assert_eq!(changed[..], [0x15, 0, 0x15, 0xd8, 4, 0x15, 40, 0x2c, 1, 2]);
        let changed = with_compressed_size(&header, 300, 40_000).unwrap();
        assert_eq!(changed[..], [0x15, 0, 0x15, 0xd8, 4, 0x15, 0x80, 0xf1, 4, 0x2c, 1, 2]);
        assert_eq!(with_compressed_size(&header, 301, 20), None);
        assert_eq!(with_compressed_size(&header[..6], 300, 20), None);
        assert_eq!(with_compressed_size(&[0x25; 12], 300, 20), None);
    }

    #[test]
    fn compressors_are_used_again() {
        let level = ZstdLevel::try_new(7).unwrap();
        let data = vec![7; 100_000];
        let compressed: Vec<Bytes> = (0..3).map(|_| Zstd::compress(level, &data).unwrap()).collect();
        assert!(compressed.iter().all(|bytes| zstd::bulk::decompress(bytes, 100_000).unwrap() == data));
        assert!(lock(&SPARE).len() <= KEPT);
    }
}
