//! Encodes rows into a file in a thread of the runtime's pool while the sink decodes the next rows:
//! encoding and compression are half of a sink's work.
//!
//! Each file has a queue, and at most one thread works on it, so rows keep their order. The waiting
//! rows of all files of a sink are bounded (I6): `add` waits while there are too many. The next
//! call of `add`, `spill` or `finish` returns an error of the thread.

use std::collections::VecDeque;
use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, SchemaRef};
use parquet::basic::Compression;
use parquet::errors::ParquetError;
use parquet::file::properties::{WriterProperties, WriterPropertiesBuilder};
use parquet::schema::types::ColumnPath;
use tokio::runtime::Handle;
use trunkline_connector::{Error, Result, io_error};

use crate::columns::conform_batch;
use crate::dictionaries::outgrown;
use crate::options::WriterOptions;
use crate::pages::is_shared;
use crate::parquet_file::ParquetFile;

/// Limit on the bytes of waiting rows: one or two batches, so that both threads stay busy.
const MOST_WAITING: usize = 2 << 20;

/// Limit on the columns of a file that have a dictionary. The table of each dictionary takes 73 KB
/// from its first value on, so 4,000 columns would take 290 MB for each open file (I6).
const MAX_DICTIONARIES: usize = 128;

/// A page is complete at this many bytes. An open page is in memory without compression: with the
/// library's megabyte, the pages of a hundred sinks would take 200 MB (I6). Numbers never reach it,
/// because a page has at most 20,000 rows.
const PAGE_BYTES: usize = 256 << 10;

/// State that the files of a sink share.
pub struct Encoders {
    runtime: Handle,
    /// How the files are written.
    pub options: WriterOptions,
    waiting: Mutex<usize>,
    encoded: Condvar,
}

impl Encoders {
    /// Encodes in the blocking threads of `runtime`.
    pub fn new(runtime: Handle, options: WriterOptions) -> Self {
        Self { runtime, options, waiting: Mutex::new(0), encoded: Condvar::new() }
    }

    /// Waits until there is room for these rows.
    fn admit(self: &Arc<Self>, batch: RecordBatch) -> Rows {
        let bytes = batch.get_array_memory_size();
        let mut waiting = lock(&self.waiting);
        while *waiting > 0 && *waiting + bytes > MOST_WAITING {
            waiting = self.encoded.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
        *waiting += bytes;
        Rows { batch, bytes, encoders: Arc::clone(self) }
    }
}

/// Rows that wait or are being encoded.
struct Rows {
    batch: RecordBatch,
    bytes: usize,
    encoders: Arc<Encoders>,
}

impl Drop for Rows {
    fn drop(&mut self) {
        *lock(&self.encoders.waiting) -= self.bytes;
        self.encoders.encoded.notify_all();
    }
}

/// A file that is being written.
pub struct Encoding {
    shared: Arc<Shared>,
}

struct Shared {
    encoders: Arc<Encoders>,
    schema: SchemaRef,
    temp: PathBuf,
    state: Mutex<State>,
    idle: Condvar,
}

struct State {
    /// Empty after an error, because waiting rows keep the other files from adding rows.
    queue: VecDeque<Rows>,
    /// A thread works on the queue or was requested.
    at_work: bool,
    /// Taken out while a batch is encoded.
    writer: Option<Box<ParquetFile>>,
    error: Option<Error>,
    /// Bytes of the file, and of memory, after the last batch.
    bytes: usize,
    memory: usize,
}

impl Encoding {
    /// Creates the file, for rows of which `first` are the first ones.
    pub fn create(temp: PathBuf, schema: &SchemaRef, encoders: &Arc<Encoders>, first: &[RecordBatch]) -> Result<Self> {
        let file = File::create_new(&temp).map_err(|error| io_error("create", &temp, &error))?;
        let properties = properties(schema, &encoders.options, first);
        let mut shared = Shared {
            encoders: Arc::clone(encoders),
            schema: Arc::clone(schema),
            temp,
            state: Mutex::new(State {
                queue: VecDeque::new(),
                at_work: false,
                writer: None,
                error: None,
                bytes: 0,
                memory: 0,
            }),
            idle: Condvar::new(),
        };
        let writer = ParquetFile::new(file, schema, properties, encoders.options.compression);
        let writer = writer.map_err(|error| shared.failed(&error))?;
        shared.state.get_mut().unwrap_or_else(PoisonError::into_inner).writer = Some(Box::new(writer));
        Ok(Self { shared: Arc::new(shared) })
    }

    /// The columns of its rows.
    pub fn schema(&self) -> &SchemaRef {
        &self.shared.schema
    }

    /// Adds rows whose columns are among those of the file. Waits while too many rows wait.
    pub fn add(&self, batch: RecordBatch) -> Result<()> {
        let rows = self.shared.encoders.admit(batch);
        let mut state = lock(&self.shared.state);
        if let Some(error) = state.error.take() {
            return Err(error);
        }
        state.queue.push_back(rows);
        if !state.at_work {
            state.at_work = true;
            let work = Work { shared: Arc::clone(&self.shared), done: false };
            self.shared.encoders.runtime.spawn_blocking(move || work.run());
        }
        Ok(())
    }

    /// Bytes of the file if it were completed now, without the waiting rows.
    pub fn bytes(&self) -> usize {
        lock(&self.shared.state).bytes
    }

    /// Bytes in memory.
    pub fn memory(&self) -> usize {
        let state = lock(&self.shared.state);
        state.memory + state.queue.iter().map(|rows| rows.bytes).sum::<usize>()
    }

    /// Writes the rows in memory to the file.
    pub fn spill(&self) -> Result<()> {
        let mut state = self.idle()?;
        let State { writer: Some(writer), .. } = &mut *state else { return Err(lost()) };
        writer.flush().map_err(|error| self.shared.failed(&error))?;
        (state.bytes, state.memory) = (writer.bytes(), writer.memory());
        Ok(())
    }

    /// Returns the writer with all rows.
    pub fn finish(self) -> Result<Box<ParquetFile>> {
        self.idle()?.writer.take().ok_or_else(lost)
    }

    /// Waits until no row waits.
    fn idle(&self) -> Result<MutexGuard<'_, State>> {
        let mut state = lock(&self.shared.state);
        while state.at_work {
            state = self.shared.idle.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        match state.error.take() {
            Some(error) => Err(error),
            None => Ok(state),
        }
    }

    /// An error of the file's writer.
    pub fn failed(temp: &std::path::Path, error: &ParquetError) -> Error {
        if let ParquetError::External(source) = error
            && let Some(io) = source.downcast_ref::<std::io::Error>()
        {
            return io_error("write", temp, io);
        }
        Error::internal("s3.encode", format!("cannot encode Parquet: {error}"))
    }
}

impl Drop for Encoding {
    fn drop(&mut self) {
        // The rest of the rows is discarded.
        lock(&self.shared.state).queue.clear();
    }
}

impl Shared {
    fn encode(&self, writer: &mut ParquetFile, batch: &RecordBatch) -> Result<()> {
        let conformed = conform_batch(batch, &self.schema).map_err(|error| {
            Error::internal("s3.conform", format!("rows do not fit the columns made for them: {error}"))
        })?;
        writer.write(conformed).map_err(|error| self.failed(&error))?;
        if writer.row_group_bytes() >= self.encoders.options.row_group {
            writer.flush().map_err(|error| self.failed(&error))?;
        }
        Ok(())
    }

    fn failed(&self, error: &ParquetError) -> Error {
        Encoding::failed(&self.temp, error)
    }
}

/// A thread's work on a file's queue. Dropping it wakes all waiters, so that they do not wait
/// forever after a panic, or when the runtime discards work that has not started.
struct Work {
    shared: Arc<Shared>,
    done: bool,
}

impl Work {
    fn run(mut self) {
        loop {
            let mut state = lock(&self.shared.state);
            let Some(rows) = state.queue.pop_front() else {
                // Under the same lock as the check: rows that are added later request another
                // thread.
                state.at_work = false;
                self.done = true;
                self.shared.idle.notify_all();
                return;
            };
            // Only `finish` removes it, and adds no rows after that.
            let Some(mut writer) = state.writer.take() else { return };
            drop(state);
            let outcome = self.shared.encode(&mut writer, &rows.batch);
            drop(rows);
            let mut state = lock(&self.shared.state);
            (state.bytes, state.memory) = (writer.bytes(), writer.memory());
            state.writer = Some(writer);
            if let Err(error) = outcome {
                state.queue.clear();
                state.error = Some(error);
            }
        }
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        let mut state = lock(&self.shared.state);
        state.queue.clear();
        state.error.get_or_insert_with(lost);
        state.at_work = false;
        self.shared.idle.notify_all();
    }
}

/// How a file with these columns is written. Columns whose values do not repeat have no dictionary.
/// In a wide file, the first columns of text have one, because text repeats more often than
/// numbers. Columns without a dictionary are compressed by [`ParquetFile`] if that is possible.
fn properties(schema: &SchemaRef, options: &WriterOptions, first: &[RecordBatch]) -> WriterProperties {
    let compression = options.compression;
    let without_dictionary = if is_shared(compression) { Compression::UNCOMPRESSED } else { compression };
    let properties = WriterProperties::builder()
        .set_data_page_size_limit(PAGE_BYTES)
        .set_created_by(concat!("trunkline version ", env!("CARGO_PKG_VERSION")).to_owned());
    let column = |name: &str| ColumnPath::new(vec![name.to_owned()]);
    let with = |properties: WriterPropertiesBuilder, name: &str, has_dictionary: bool| {
        let compression = if has_dictionary { compression } else { without_dictionary };
        properties
            .set_column_dictionary_enabled(column(name), has_dictionary)
            .set_column_compression(column(name), compression)
    };
    if schema.flattened_fields().len() <= MAX_DICTIONARIES {
        let properties = properties.set_compression(compression);
        return outgrown(schema, first).into_iter().fold(properties, |all, name| with(all, name, false)).build();
    }
    let properties = properties.set_compression(without_dictionary).set_dictionary_enabled(false);
    let texts = schema.fields().iter().filter(|field| *field.data_type() == DataType::Utf8).take(MAX_DICTIONARIES);
    texts.fold(properties, |all, field| with(all, field.name(), true)).build()
}

fn lost() -> Error {
    Error::internal("s3.encoder", "the encoding thread ended early; the rows are read again from the committed offset")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // The state changes by single assignments, so a panic leaves it consistent.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, Int64Array, StringArray};

    use super::*;

    #[test]
    fn a_file_of_many_columns_needs_little_memory() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let options = WriterOptions { compression: Compression::SNAPPY, row_group: 128 << 20 };
        let encoders = Arc::new(Encoders::new(runtime.handle().clone(), options));
        let numbers: ArrayRef = Arc::new(Int64Array::from(vec![1, 2]));
        let texts: ArrayRef = Arc::new(StringArray::from(vec!["a", "b"]));
        let columns = (0..4000).map(|index| {
            let column = if index % 2 == 0 { &numbers } else { &texts };
            (format!("c{index}"), Arc::clone(column))
        });
        let batch = RecordBatch::try_from_iter(columns).unwrap();
        let encoding = Encoding::create(folder.path().join("wide"), &batch.schema(), &encoders, &[]).unwrap();
        encoding.add(batch).unwrap();
        drop(encoding.idle().unwrap());
        let memory = encoding.memory();
        assert!(memory < 16 << 20, "{memory} bytes");
        let metadata = encoding.finish().unwrap().finish().unwrap();
        let has_dictionary = |index: usize| metadata.row_group(0).column(index).dictionary_page_offset().is_some();
        assert!(!has_dictionary(0) && has_dictionary(1) && has_dictionary(255) && !has_dictionary(257));
    }
}
