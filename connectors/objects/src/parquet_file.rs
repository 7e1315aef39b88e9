//! Writes rows as the row groups of a Parquet file.
//!
//! An open writer of a column takes memory and time, and each batch has a fixed cost for each
//! column. With thousands of columns, a megabyte of rows is a few rows, so both would cost more
//! than the values. Hence:
//!
//! * Batches with few bytes in a column are joined before they are written.
//! * A row group that stays small is written column by column, when it is complete. Only a few
//!   writers are open at once. The rows take no more memory than in open writers, which hold the
//!   values of a page as they are, until the page is full.

use std::fs::File;
use std::io::sink;
use std::sync::Arc;

use arrow::array::{Array, AsArray as _, RecordBatch};
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Schema, SchemaRef};
use parquet::arrow::arrow_writer::{ArrowRowGroupWriterFactory, compute_leaves};
use parquet::arrow::{ArrowSchemaConverter, ArrowWriter};
use parquet::basic::Compression;
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::{KeyValue, ParquetMetaData};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;

use crate::pages::{ColumnWriter, Stores};

/// Batches are joined until a column has this many bytes on average.
const JOINED_COLUMN: usize = 8 << 10;
/// Limit on the bytes of batches that wait to be joined.
const MAX_JOINED: usize = 8 << 20;
/// Up to this many bytes in a column on average, no writers are opened for the rows of a row group.
const SMALL_COLUMN: usize = 40 << 10;
/// The same limit for all columns together, if most values are null: open writers hold nulls in
/// less memory than arrays do.
const MAX_SPARSE: usize = 8 << 20;
/// Columns whose writers are open at once.
const OPEN_COLUMNS: usize = 16;

/// See the module's header.
pub struct ParquetFile {
    file: SerializedFileWriter<File>,
    factory: ArrowRowGroupWriterFactory,
    stores: Arc<Stores>,
    schema: SchemaRef,
    /// Columns without further columns in them.
    leaves: usize,
    /// Rows of the row group, and their limit.
    rows: usize,
    max_rows: usize,
    /// Rows of the row group that no writer has, in order.
    joined: Batches,
    /// Small batches that follow them.
    small: Batches,
    /// The writers of the row group's columns.
    open: Option<Vec<ColumnWriter>>,
}

/// Batches in memory.
#[derive(Default)]
struct Batches {
    batches: Vec<RecordBatch>,
    memory: usize,
    /// Bytes of the values without nulls.
    values: usize,
}

impl Batches {
    fn push(&mut self, batch: RecordBatch) {
        self.memory += batch.get_array_memory_size();
        self.values += batch.columns().iter().map(|column| value_bytes(column.as_ref())).sum::<usize>();
        self.batches.push(batch);
    }
}

impl ParquetFile {
    /// A file with these columns. Columns whose properties are without a dictionary and without
    /// compression have `compression`.
    pub(crate) fn new(
        file: File,
        schema: &SchemaRef,
        properties: WriterProperties,
        compression: Compression,
    ) -> Result<Self> {
        let writer = ArrowWriter::try_new(file, Arc::clone(schema), Some(properties))?;
        let (file, factory) = writer.into_serialized_writer()?;
        let stores = Arc::new(Stores::new(file.properties(), compression));
        Ok(Self {
            leaves: file.schema_descr().num_columns().max(1),
            rows: 0,
            max_rows: file.properties().max_row_group_row_count().unwrap_or(usize::MAX),
            file,
            factory: factory.with_page_store_factory(stores.clone()),
            stores,
            schema: Arc::clone(schema),
            joined: Batches::default(),
            small: Batches::default(),
            open: None,
        })
    }

    /// Adds rows with the columns of the file.
    pub(crate) fn write(&mut self, mut batch: RecordBatch) -> Result<()> {
        while self.rows + batch.num_rows() >= self.max_rows {
            let fitting = self.max_rows - self.rows;
            self.add(batch.slice(0, fitting))?;
            batch = batch.slice(fitting, batch.num_rows() - fitting);
            self.flush()?;
        }
        self.add(batch)
    }

    /// Adds rows to the row group.
    fn add(&mut self, batch: RecordBatch) -> Result<()> {
        if batch.num_rows() == 0 {
            return Ok(());
        }
        self.rows += batch.num_rows();
        self.small.push(batch);
        if self.small.memory < (self.leaves * JOINED_COLUMN).min(MAX_JOINED) {
            return Ok(());
        }
        self.join()?;
        let Batches { memory, values, .. } = self.joined;
        let small = self.leaves * SMALL_COLUMN;
        let limit = if memory <= 2 * values { small } else { small.min(MAX_SPARSE) };
        if memory > limit { self.write_joined() } else { Ok(()) }
    }

    /// Joins the small batches.
    fn join(&mut self) -> Result<()> {
        let Batches { mut batches, .. } = std::mem::take(&mut self.small);
        let batch = match batches.len() {
            0 | 1 => batches.pop(),
            _ => Some(concat_batches(&self.schema, &batches)?),
        };
        drop(batches);
        let Some(batch) = batch else { return Ok(()) };
        match &mut self.open {
            Some(writers) => write_columns(&self.schema, writers, &batch),
            None => {
                self.joined.push(batch);
                Ok(())
            }
        }
    }

    /// Opens the writers of all columns, and gives them the rows.
    fn write_joined(&mut self) -> Result<()> {
        let mut writers = self.stores.open(&self.factory, self.row_groups())?;
        for batch in std::mem::take(&mut self.joined).batches {
            write_columns(&self.schema, &mut writers, &batch)?;
        }
        self.open = Some(writers);
        Ok(())
    }

    /// Completes the row group.
    pub(crate) fn flush(&mut self) -> Result<()> {
        self.join()?;
        self.rows = 0;
        if let Some(writers) = self.open.take() {
            let mut row_group = self.file.next_row_group()?;
            for writer in writers {
                writer.close()?.append_to_row_group(&mut row_group)?;
            }
            row_group.close()?;
            return Ok(());
        }
        let Batches { batches, .. } = std::mem::take(&mut self.joined);
        if batches.is_empty() {
            return Ok(());
        }
        let (properties, index) = (Arc::clone(self.file.properties()), self.row_groups());
        let mut row_group = self.file.next_row_group()?;
        for first in (0..self.schema.fields().len()).step_by(OPEN_COLUMNS) {
            let columns: Vec<usize> = (first..self.schema.fields().len().min(first + OPEN_COLUMNS)).collect();
            let part = Arc::new(self.schema.project(&columns)?);
            let mut writers = writers_of(&part, &properties, &self.stores, index)?;
            for batch in &batches {
                write_columns(&part, &mut writers, &batch.project(&columns)?)?;
            }
            for writer in writers {
                writer.close()?.append_to_row_group(&mut row_group)?;
            }
        }
        row_group.close()?;
        Ok(())
    }

    /// Number of complete row groups.
    fn row_groups(&self) -> usize {
        self.file.flushed_row_groups().len()
    }

    /// Bytes of the row group if it were completed now, at most.
    pub(crate) fn row_group_bytes(&self) -> usize {
        let open = self.open.iter().flatten().map(ColumnWriter::bytes).sum::<usize>();
        open + self.joined.values + self.small.values
    }

    /// Bytes of the file if it were completed now, at most.
    pub(crate) fn bytes(&self) -> usize {
        self.file.bytes_written() + self.row_group_bytes()
    }

    /// Bytes of memory.
    pub(crate) fn memory(&self) -> usize {
        let open = self.open.iter().flatten().map(ColumnWriter::memory).sum::<usize>();
        // Metadata of the row groups written so far grows with them, a few hundred bytes a column.
        let metadata = self.row_groups() * self.leaves * 512;
        open + self.joined.memory + self.small.memory + metadata
    }

    /// Adds an entry to the metadata in the file's footer.
    pub fn append_key_value_metadata(&mut self, entry: KeyValue) {
        self.file.append_key_value_metadata(entry);
    }

    /// Writes the rest and the footer.
    pub fn finish(mut self) -> Result<ParquetMetaData, ParquetError> {
        self.flush()?;
        self.file.finish()
    }
}

/// Writes the columns of rows with this schema.
fn write_columns(schema: &Schema, writers: &mut [ColumnWriter], batch: &RecordBatch) -> Result<()> {
    let mut writers = writers.iter_mut();
    for (field, column) in schema.fields().iter().zip(batch.columns()) {
        for leaf in compute_leaves(field, column)? {
            let writer = writers.next().ok_or_else(|| ParquetError::General("a column has no writer".to_owned()))?;
            writer.write(&leaf)?;
        }
    }
    Ok(())
}

/// Writers of some columns of a file.
fn writers_of(
    part: &SchemaRef,
    properties: &Arc<WriterProperties>,
    stores: &Arc<Stores>,
    row_group: usize,
) -> Result<Vec<ColumnWriter>> {
    let columns = ArrowSchemaConverter::new().with_coerce_types(properties.coerce_types()).convert(part)?;
    // The library makes writers for all columns of a file. This file is never written.
    let file = SerializedFileWriter::new(sink(), columns.root_schema_ptr(), Arc::clone(properties))?;
    let factory = ArrowRowGroupWriterFactory::new(&file, Arc::clone(part)).with_page_store_factory(stores.clone());
    stores.open(&factory, row_group)
}

/// Bytes of the values without nulls, as a page holds them before it is compressed.
fn value_bytes(array: &dyn Array) -> usize {
    let values = array.len() - array.null_count();
    match array.data_type() {
        DataType::Boolean => values.div_ceil(8),
        DataType::Utf8 => text_bytes(array.as_string::<i32>().value_offsets()) + 4 * values,
        DataType::Binary => text_bytes(array.as_binary::<i32>().value_offsets()) + 4 * values,
        DataType::Struct(_) => array.as_struct().columns().iter().map(|column| value_bytes(column.as_ref())).sum(),
        DataType::List(_) => {
            let list = array.as_list::<i32>();
            let range = text_bytes(list.value_offsets());
            value_bytes(list.values().as_ref()) * range / list.values().len().max(1)
        }
        other => other.primitive_width().unwrap_or(0) * values,
    }
}

/// What lies between the first and the last offset.
fn text_bytes(offsets: &[i32]) -> usize {
    match offsets {
        [first, .., last] => last.abs_diff(*first) as usize,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, BooleanArray, Int64Array, ListArray, StringArray, StructArray};
    use arrow::datatypes::Int64Type;
    use parquet::basic::ZstdLevel;
    use parquet::schema::types::ColumnPath;

    use super::*;

    fn zstd() -> Compression {
        Compression::ZSTD(ZstdLevel::default())
    }

    /// Rows with `columns` columns of all kinds.
    fn rows(columns: usize, numbers: std::ops::Range<i64>) -> RecordBatch {
        let numbers: Vec<i64> = numbers.collect();
        let column = |index: usize| -> ArrayRef {
            let value = |number: &i64| number * 31 + index as i64;
            match index % 5 {
                0 => Arc::new(numbers.iter().map(|n| (n % 3 > 0).then(|| value(n))).collect::<Int64Array>()),
                1 => Arc::new(numbers.iter().map(|n| Some(format!("text {}", value(n) % 50))).collect::<StringArray>()),
                2 => Arc::new(numbers.iter().map(|n| Some(n % 2 == 0)).collect::<BooleanArray>()),
                3 => Arc::new(ListArray::from_iter_primitive::<Int64Type, _, _>(
                    numbers.iter().map(|n| (n % 4 > 0).then(|| vec![Some(value(n)); (n % 3) as usize])),
                )),
                _ => {
                    let member: ArrayRef = Arc::new(numbers.iter().map(value).collect::<Int64Array>());
                    let other: ArrayRef =
                        Arc::new(numbers.iter().map(|n| Some(n.to_string())).collect::<StringArray>());
                    Arc::new(StructArray::try_from(vec![("a", member), ("b", other)]).unwrap())
                }
            }
        };
        RecordBatch::try_from_iter_with_nullable((0..columns).map(|i| (format!("c{i}"), column(i), true))).unwrap()
    }

    /// Properties of columns with this compression. Every other top-level column has a dictionary.
    fn properties(compression: Compression) -> WriterProperties {
        let properties = WriterProperties::builder()
            .set_dictionary_enabled(false)
            .set_compression(compression)
            .set_data_page_size_limit(20_000)
            .set_max_row_group_row_count(Some(10_000));
        let with_dictionary = (0..100).step_by(2).map(|index| ColumnPath::from(format!("c{index}")));
        let properties = with_dictionary.fold(properties, |properties, column| {
            properties.set_column_dictionary_enabled(column.clone(), true).set_column_compression(column, zstd())
        });
        properties.build()
    }

    /// The file of the library's writer, which has all columns open.
    fn expected(groups: &[Vec<RecordBatch>]) -> Vec<u8> {
        let mut writer = ArrowWriter::try_new(Vec::new(), groups[0][0].schema(), Some(properties(zstd()))).unwrap();
        for group in groups {
            group.iter().for_each(|batch| writer.write(batch).unwrap());
            writer.flush().unwrap();
        }
        writer.into_inner().unwrap()
    }

    /// Writes row groups; `check` sees the file after each batch.
    fn written(groups: &[Vec<RecordBatch>], mut check: impl FnMut(&ParquetFile)) -> Vec<u8> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let schema = groups[0][0].schema();
        let file = File::create_new(&path).unwrap();
        let mut file = ParquetFile::new(file, &schema, properties(Compression::UNCOMPRESSED), zstd()).unwrap();
        for group in groups {
            for batch in group {
                file.write(batch.clone()).unwrap();
                check(&file);
            }
            file.flush().unwrap();
            assert_eq!(file.row_group_bytes(), 0);
        }
        file.finish().unwrap();
        std::fs::read(path).unwrap()
    }

    #[test]
    fn a_small_row_group_opens_no_writers_and_has_the_same_bytes() {
        let groups = [0, 1000].map(|start| (0..9).map(|i| rows(100, start + i * 7..start + i * 7 + 7)).collect());
        let mut was_joined = false;
        let found = written(&groups, |file| {
            assert!(file.open.is_none());
            was_joined |= !file.joined.batches.is_empty();
        });
        assert!(was_joined);
        assert!(found == expected(&groups));
    }

    #[test]
    fn rows_of_a_large_row_group_go_to_open_writers() {
        // 100 columns with 1,000 rows at a time: joined after one or two batches, and open after
        // about 5,000 rows.
        let groups = [(0..9).map(|i| rows(100, i * 1000..i * 1000 + 1000)).collect()];
        let (mut was_joined, mut most) = (false, 0);
        let found = written(&groups, |file| {
            was_joined |= !file.joined.batches.is_empty();
            most = most.max(file.joined.memory + file.small.memory);
            assert!(file.bytes() > 0 && file.memory() >= file.joined.memory);
        });
        assert!(was_joined && most < 100 * 2 * SMALL_COLUMN, "{most} bytes");
        assert!(found == expected(&groups));
    }

    #[test]
    fn row_groups_have_a_limit_of_rows() {
        let groups = [vec![rows(3, 0..4000), rows(3, 4000..25_000), rows(3, 25_000..30_000)]];
        assert!(written(&groups, |_| {}) == expected(&groups));
    }

    #[test]
    fn sparse_rows_are_not_held_as_arrays() {
        let value: ArrayRef = Arc::new(Int64Array::from(vec![Some(1); 100]));
        let null: ArrayRef = Arc::new(Int64Array::from(vec![None; 100]));
        let column = |index: usize| if index < 10 { Arc::clone(&value) } else { Arc::clone(&null) };
        let batch = RecordBatch::try_from_iter_with_nullable((0..3000).map(|i| (format!("c{i}"), column(i), true)));
        let batch = batch.unwrap();
        let mut most = 0;
        let groups = [vec![batch; 20]];
        let found = written(&groups, |file| most = most.max(file.joined.memory + file.small.memory));
        assert!(most <= MAX_SPARSE + MAX_JOINED, "{most} bytes");
        assert!(found == expected(&groups));
    }

    #[test]
    fn bytes_of_values() {
        let batch = rows(5, 0..100);
        let bytes: Vec<usize> = batch.columns().iter().map(|column| value_bytes(column.as_ref())).collect();
        let list = batch.column(3).as_list::<i32>().values().len() * 8;
        // 66 numbers; 100 texts of 6 or 7 bytes; 100 bits; lists; 100 numbers and texts.
        assert_eq!((bytes[0], bytes[2], bytes[3], bytes[4]), (66 * 8, 13, list, 800 + 190 + 400));
        assert!((1000..=1100).contains(&bytes[1]), "{}", bytes[1]);
        let half = batch.slice(0, 50);
        assert!(value_bytes(half.column(1).as_ref()) < bytes[1] / 2 + 50);
    }
}
