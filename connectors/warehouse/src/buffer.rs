//! The open files of one topic partition: rows that are not sealed yet.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::SchemaRef;
use trunkline_connector::{Buffered, Error, Result, io_error};
use trunkline_objects::{Encoders, Encoding};

use crate::apply::control;
use crate::intent::{FileColumn, LoadMode, PlannedFile};

/// Rows stay in memory up to this size; small loads of many tables need no encoder at the same
/// time.
const BATCHED_BYTES: usize = 1 << 20;

/// Where the rows of a file go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FileTarget {
    pub(crate) table: String,
    pub(crate) mode: LoadMode,
    pub(crate) key_columns: Vec<String>,
    pub(crate) columns: Vec<FileColumn>,
    pub(crate) fills_loaded_at: bool,
}

/// Empties a table.
pub(crate) struct Truncation {
    /// Rows that are newer than this order stay.
    pub(crate) until: Option<String>,
}

/// A file that takes rows.
struct OpenFile {
    target: FileTarget,
    truncates: Option<Truncation>,
    has_deletes: bool,
    temp: String,
    schema: Option<SchemaRef>,
    rows: u64,
    batches: Vec<RecordBatch>,
    bytes: usize,
    encoding: Option<Encoding>,
}

/// What files are made with.
pub(crate) struct FileContext<'a> {
    /// The scratch folder.
    pub(crate) folder: &'a Path,
    pub(crate) encoders: &'a Arc<Encoders>,
}

/// See the module's header.
#[derive(Default)]
pub(crate) struct PartitionBuffer {
    open: HashMap<String, OpenFile>,
    completed: Vec<PlannedFile>,
    /// Number of the next row: the order of the changes within a load.
    sequence: i64,
    next_offset: i64,
    rows: u64,
    /// A file could not be written: its rows are lost, and nothing of the buffer may be loaded.
    poisoned: bool,
}

impl PartitionBuffer {
    /// Numbers for this many rows.
    pub(crate) fn numbers(&mut self, rows: usize) -> std::ops::Range<i64> {
        let first = self.sequence;
        self.sequence += rows as i64;
        first..self.sequence
    }

    /// Adds rows to the open file of the table, or to a new one if its columns differ.
    pub(crate) fn add(
        &mut self,
        context: &FileContext<'_>,
        target: FileTarget,
        batch: RecordBatch,
        last_offset: i64,
    ) -> Result<()> {
        self.next_offset = self.next_offset.max(last_offset + 1);
        self.rows += batch.num_rows() as u64;
        self.poison_on_error(|buffer| {
            let file = buffer.open.get(&target.table);
            if file.is_some_and(|file| file.rows > 0 && file.target != target) {
                buffer.complete(context, &target.table)?;
            }
            let table = target.table.clone();
            let file = buffer.open.entry(table).or_insert_with(|| OpenFile::new(target.clone(), None));
            file.target = target;
            file.add(context, batch)
        })
    }

    /// Empties a table before the rows that follow.
    pub(crate) fn truncate(
        &mut self,
        context: &FileContext<'_>,
        target: FileTarget,
        truncation: Truncation,
        offset: i64,
    ) -> Result<()> {
        self.next_offset = self.next_offset.max(offset + 1);
        self.rows += 1;
        self.poison_on_error(|buffer| {
            buffer.complete(context, &target.table)?;
            buffer.open.insert(target.table.clone(), OpenFile::new(target, Some(truncation)));
            Ok(())
        })
    }

    fn poison_on_error(&mut self, work: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        if self.poisoned {
            return Err(Error::external(
                "warehouse.spool_broken",
                "an earlier error left rows of this topic partition half written; it is read again from its committed offset",
            ));
        }
        let outcome = work(self);
        self.poisoned = outcome.is_err();
        outcome
    }

    fn complete(&mut self, context: &FileContext<'_>, table: &str) -> Result<()> {
        if let Some(file) = self.open.remove(table)
            && let Some(file) = file.complete(context)?
        {
            self.completed.push(file);
        }
        Ok(())
    }

    /// Completes all files; returns them with the next offset. Those of one table are in order.
    pub(crate) fn seal(&mut self, context: &FileContext<'_>) -> Result<(Vec<PlannedFile>, i64)> {
        self.poison_on_error(|buffer| {
            let mut tables: Vec<String> = buffer.open.keys().cloned().collect();
            tables.sort_unstable();
            tables.iter().try_for_each(|table| buffer.complete(context, table))
        })?;
        (self.rows, self.sequence) = (0, 0);
        Ok((std::mem::take(&mut self.completed), self.next_offset))
    }

    pub(crate) fn buffered(&self) -> Buffered {
        let completed: u64 = self.completed.iter().map(|file| file.bytes).sum();
        let open: usize = self.open.values().map(OpenFile::bytes).sum();
        Buffered {
            bytes: completed + open as u64,
            records: self.rows.max(u64::from(self.poisoned)),
            open_files: self.open.values().filter(|file| file.encoding.is_some()).count(),
        }
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        self.open.values().map(OpenFile::memory_bytes).sum()
    }

    /// Writes the files that hold at least this many bytes in memory to disk.
    pub(crate) fn spill(&mut self, context: &FileContext<'_>, least: usize) -> Result<()> {
        self.poison_on_error(|buffer| {
            let mut large = buffer.open.values_mut().filter(|file| file.memory_bytes() >= least);
            large.try_for_each(|file| file.spill(context))
        })
    }

    /// The largest number of bytes that a file holds in memory.
    pub(crate) fn largest_file(&self) -> usize {
        self.open.values().map(OpenFile::memory_bytes).max().unwrap_or(0)
    }

    /// Removes the local files.
    pub(crate) fn remove_files(&self, folder: &Path) {
        let completed = self.completed.iter().map(|file| file.temp.as_str());
        let open = self.open.values().map(|file| file.temp.as_str());
        // They may not exist yet; the scratch folder is emptied at the next start anyway.
        completed.chain(open).for_each(|temp| drop(std::fs::remove_file(folder.join(temp))));
    }
}

impl OpenFile {
    fn new(target: FileTarget, truncates: Option<Truncation>) -> Self {
        let temp = format!("{}.parquet", uuid::Uuid::new_v4().simple());
        let (batches, encoding) = (Vec::new(), None);
        Self { target, truncates, has_deletes: false, temp, schema: None, rows: 0, batches, bytes: 0, encoding }
    }

    fn bytes(&self) -> usize {
        self.bytes + self.encoding.as_ref().map_or(0, Encoding::bytes)
    }

    fn memory_bytes(&self) -> usize {
        self.bytes + self.encoding.as_ref().map_or(0, Encoding::memory)
    }

    fn add(&mut self, context: &FileContext<'_>, batch: RecordBatch) -> Result<()> {
        self.rows += batch.num_rows() as u64;
        self.has_deletes = self.has_deletes || has_deletes(&batch);
        self.schema.get_or_insert_with(|| batch.schema());
        if let Some(encoding) = &self.encoding {
            return encoding.add(batch);
        }
        self.bytes += batch.get_array_memory_size();
        self.batches.push(batch);
        if self.bytes >= BATCHED_BYTES { self.encode(context) } else { Ok(()) }
    }

    /// Starts to encode.
    fn encode(&mut self, context: &FileContext<'_>) -> Result<()> {
        let Some(schema) = &self.schema else { return Ok(()) };
        if self.encoding.is_none() {
            let temp = context.folder.join(&self.temp);
            self.encoding = Some(Encoding::create(temp, schema, context.encoders, &self.batches)?);
        }
        self.bytes = 0;
        let batches = std::mem::take(&mut self.batches);
        match &self.encoding {
            Some(encoding) => batches.into_iter().try_for_each(|batch| encoding.add(batch)),
            None => Ok(()),
        }
    }

    fn spill(&mut self, context: &FileContext<'_>) -> Result<()> {
        self.encode(context)?;
        self.encoding.as_ref().map_or(Ok(()), Encoding::spill)
    }

    /// `None`: the file has no rows, and its table stays as it is.
    fn complete(mut self, context: &FileContext<'_>) -> Result<Option<PlannedFile>> {
        self.encode(context)?;
        let path = context.folder.join(&self.temp);
        let mut bytes = 0;
        if let Some(encoding) = self.encoding.take() {
            encoding.finish()?.finish().map_err(|error| Encoding::failed(&path, &error))?;
            bytes = std::fs::metadata(&path).map_err(|error| io_error("look at", &path, &error))?.len();
        }
        if self.rows == 0 && self.truncates.is_none() {
            return Ok(None);
        }
        Ok(Some(PlannedFile {
            key: (self.rows > 0).then(String::new),
            temp: self.temp,
            bytes,
            rows: self.rows,
            table: self.target.table,
            mode: self.target.mode,
            key_columns: self.target.key_columns,
            columns: self.target.columns,
            has_deletes: self.has_deletes,
            fills_loaded_at: self.target.fills_loaded_at,
            truncates: self.truncates.is_some(),
            truncates_until: self.truncates.and_then(|truncation| truncation.until),
        }))
    }
}

/// Whether a row of a batch deletes its key.
fn has_deletes(batch: &RecordBatch) -> bool {
    let names = batch.schema_ref().fields().iter().map(|field| field.name());
    // The destination's case rule has changed the name.
    let found = names.zip(batch.columns()).find(|(name, _)| name.eq_ignore_ascii_case(control::DELETED));
    found.and_then(|(_, column)| column.as_boolean_opt()).is_some_and(|deleted| deleted.true_count() > 0)
}
