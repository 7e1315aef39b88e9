//! Reads the rows of visible objects as text, for comparisons.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;

use arrow::array::Array;
use arrow::record_batch::RecordBatch;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use tokio::runtime::Handle;
use trunkline_connector::{EachRow, Error, Result, io_error};
use trunkline_objects::{BucketOptions, Failure, connect};

/// Rows that are decoded at once.
const BATCH: usize = 1024;

/// Reads a file of a directory.
pub(crate) fn of_file(name: &str, each: EachRow<'_>) -> Result<()> {
    let file = File::open(name).map_err(|error| io_error("read", Path::new(name), &error))?;
    read(name, file, each)
}

/// Reads an object of a bucket, which is first copied to a temporary file in `scratch`.
pub(crate) fn of_object(
    options: &BucketOptions,
    name: &str,
    scratch: &Path,
    runtime: &Handle,
    each: EachRow<'_>,
) -> Result<()> {
    let key = name.strip_prefix(&format!("s3://{}/", options.bucket)).unwrap_or(name);
    let path = scratch.join(format!("{}.parquet", uuid::Uuid::new_v4().simple()));
    let failed = |error: &std::io::Error| io_error("write", &path, error);
    let mut file =
        File::options().read(true).write(true).create_new(true).open(&path).map_err(|error| failed(&error))?;
    // The open file is enough.
    std::fs::remove_file(&path).map_err(|error| failed(&error))?;
    let client = runtime.block_on(connect(options))?;
    runtime.block_on(async {
        let request = client.get_object().bucket(&options.bucket).key(key).send().await;
        let answer = request.map_err(|error| Failure::from_sdk(&error).into_error(&format!("read {name}")))?;
        let mut body = answer.body;
        while let Some(bytes) = body.next().await {
            let bytes = bytes
                .map_err(|error| Error::external("s3.bad_answer", format!("cannot read {name}: {error}; try again")))?;
            file.write_all(&bytes).map_err(|error| failed(&error))?;
        }
        Ok::<_, Error>(())
    })?;
    read(name, file, each)
}

fn read(name: &str, file: File, each: EachRow<'_>) -> Result<()> {
    let unreadable = |error: &dyn std::fmt::Display| {
        Error::data("s3.unreadable_object", format!("{name} cannot be read as Parquet: {error}"))
    };
    let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|error| unreadable(&error))?;
    let reader = builder.with_batch_size(BATCH).build().map_err(|error| unreadable(&error))?;
    for batch in reader {
        rows(&batch.map_err(|error| unreadable(&error))?, each, &unreadable)?;
    }
    Ok(())
}

fn rows(batch: &RecordBatch, each: EachRow<'_>, unreadable: &dyn Fn(&dyn std::fmt::Display) -> Error) -> Result<()> {
    let (schema, options) = (batch.schema(), FormatOptions::default());
    let mut columns = Vec::with_capacity(batch.num_columns());
    for (field, array) in schema.fields().iter().zip(batch.columns()) {
        let formatter = ArrayFormatter::try_new(array.as_ref(), &options).map_err(|error| unreadable(&error))?;
        columns.push((field.name().as_str(), array, formatter));
    }
    columns.sort_by_key(|(name, ..)| *name);
    let mut texts = vec![String::new(); columns.len()];
    for row in 0..batch.num_rows() {
        for ((_, array, formatter), text) in columns.iter().zip(&mut texts) {
            text.clear();
            if array.is_valid(row) {
                write!(text, "{}", formatter.value(row)).map_err(|_| unreadable(&"a value has no text"))?;
            }
        }
        let present = columns.iter().zip(&texts).filter(|((_, array, _), _)| array.is_valid(row));
        let cells: Vec<(&str, &str)> = present.map(|((name, ..), text)| (*name, text.as_str())).collect();
        each(&cells)?;
    }
    Ok(())
}
