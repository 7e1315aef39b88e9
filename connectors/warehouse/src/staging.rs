//! Staging: COPY of the files of loads into staging tables, before the loads are prepared.
//!
//! The destination refuses here what it would refuse in the load, so that a prepared load can
//! always be committed. A refused file is searched for its refused rows
//! ([`bisect`](crate::bisect)), with files of parts of it. The load uses the staging tables if it
//! runs in the same session; another task, or another session, copies the files again.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::arrow::{ArrowWriter, ProjectionMask};
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;
use trunkline_connector::{Error, Result, failpoint, io_error};

use crate::apply::{control, lineage};
use crate::bisect::{Found, MAX_REFUSED, Refusal, find_refused};
use crate::dialect::Dialect;
use crate::intent::{Committable, Plan, PlannedFile, manifest_key};
use crate::load::{Loader, PendingLoad};
use crate::refused::{RefusedInFile, RefusedRow, RefusedRows, is_refusal};
use crate::sessions::Sessions;
use crate::stage::{Stage, StagedFile};

/// Brings files into the stage and into staging tables.
pub(crate) struct Staging {
    pub(crate) loader: Loader,
    pub(crate) stage: Arc<dyn Stage>,
    /// The scratch folder, which has the files.
    pub(crate) folder: PathBuf,
    pub(crate) refused: Arc<RefusedRows>,
    /// The sink is gone.
    pub(crate) is_cancelled: Arc<AtomicBool>,
}

/// Uploads a file with what its COPY needs.
pub(crate) fn upload(stage: &dyn Stage, dialect: &dyn Dialect, path: &Path, file: &PlannedFile) -> Result<()> {
    let Some(key) = &file.key else { return Ok(()) };
    stage.put_file(key, path)?;
    let staged = StagedFile { key: key.clone(), url: stage.url(key), bytes: file.bytes, rows: file.rows };
    match dialect.manifest(&[staged]) {
        Some(manifest) => stage.put_bytes(&manifest_key(key), manifest.as_bytes()),
        None => Ok(()),
    }
}

impl Staging {
    /// Copies the files of loads. An error with the code
    /// [`READ_AGAIN`](trunkline_connector::READ_AGAIN): rows were refused and noted.
    pub(crate) fn run(&self, sessions: &mut Sessions, loads: &[PendingLoad]) -> Result<()> {
        match self.loader.stage(sessions, loads) {
            Err(error) if is_refusal(&error) => {
                tracing::info!(%error, "the warehouse refused a file, which is searched for the refused rows");
            }
            other => {
                other?;
                self.staged_files(loads).for_each(|(_, file)| self.refused.judge(&file.table, Refusal::Some));
                return Ok(());
            }
        }
        failpoint!("warehouse.search.before")?;
        let mut found = Vec::new();
        for (load, file) in self.staged_files(loads) {
            found.extend(self.search(sessions, load, file)?);
        }
        if found.is_empty() {
            // The files were accepted one by one.
            return self.loader.stage(sessions, loads);
        }
        failpoint!("warehouse.search.after")?;
        Err(self.refused.note(sessions.dialect().name(), &found))
    }

    fn staged_files<'l>(&self, loads: &'l [PendingLoad]) -> impl Iterator<Item = (&'l PendingLoad, &'l PlannedFile)> {
        let files = |load: &'l PendingLoad| load.committable.plan.files.iter().map(move |file| (load, file));
        loads.iter().flat_map(files).filter(|(_, file)| file.key.is_some())
    }

    /// The refused rows of a file.
    fn search(&self, sessions: &mut Sessions, load: &PendingLoad, file: &PlannedFile) -> Result<Option<RefusedInFile>> {
        let whole = self.part(load, file.clone());
        match self.loader.stage(sessions, &[whole]) {
            Err(error) if is_refusal(&error) => {}
            other => return other.map(|()| None),
        }
        let series = self.refused.series(&file.table);
        let searched = find_refused(file.rows, series, &mut |range| self.probe(sessions, load, file, range));
        let (found, refusal) = searched?;
        self.refused.judge(&file.table, refusal);
        let offsets = self.offsets(sessions.dialect().as_ref(), file)?;
        let offset = |row: u64| usize::try_from(row).ok().and_then(|row| offsets.get(row).copied()).unwrap_or(-1);
        let partition = load.partition();
        let rows = match found {
            Found::Rows(rows) => rows,
            Found::TooMany(row, reason) => {
                let (table, rows, offset) = (&file.table, file.rows, offset(row));
                return Err(Error::data(
                    "warehouse.too_many_refused",
                    format!(
                        "the warehouse refused too many of the {rows} rows of a file for the table {table}: all of the first, or more than \
                         {MAX_REFUSED}. The first is from offset {offset} of {partition}: {reason}. Nothing of the file was loaded, and no \
                         record went to the dead letters: correct the table or the records, and start the pipeline again"
                    ),
                ));
            }
        };
        let row = |(row, reason): (u64, String)| {
            let own = offset(row);
            let before = (0..row).rev().take_while(|earlier| offset(*earlier) == own).count();
            RefusedRow { offset: own, number: u32::try_from(before).unwrap_or(u32::MAX), reason }
        };
        let rows = rows.into_iter().map(row).collect();
        Ok(Some(RefusedInFile { partition, table: file.table.clone(), rows }))
    }

    /// Why a range of rows is refused.
    fn probe(
        &self,
        sessions: &mut Sessions,
        load: &PendingLoad,
        file: &PlannedFile,
        range: Range<u64>,
    ) -> Result<Option<String>> {
        if self.is_cancelled.load(Ordering::Relaxed) {
            return Err(Error::external("warehouse.load", "the search for refused rows ends, because the sink does"));
        }
        let path = self.folder.join(format!("{}.probe", file.temp));
        let key = file.key.as_ref().map(|key| format!("{}-probe.parquet", key.trim_end_matches(".parquet")));
        let rows = range.end - range.start;
        let bytes = copy_rows(&self.folder.join(&file.temp), &path, range)?;
        let part = PlannedFile { key, bytes, rows, ..file.clone() };
        let uploaded = upload(self.stage.as_ref(), sessions.dialect().as_ref(), &path, &part);
        drop(std::fs::remove_file(&path));
        let part = self.part(load, part);
        let staged = uploaded.and_then(|()| self.loader.stage(sessions, std::slice::from_ref(&part)));
        failpoint!("warehouse.probe.copied")?;
        self.stage.remove(&part.committable.plan.keys())?;
        failpoint!("warehouse.probe.after")?;
        match staged {
            Ok(()) => Ok(None),
            Err(error) if is_refusal(&error) => Ok(Some(error.message().to_owned())),
            Err(error) => Err(error),
        }
    }

    /// A load of one file.
    fn part(&self, load: &PendingLoad, file: PlannedFile) -> PendingLoad {
        let plan = Plan { files: vec![file], ..load.committable.plan.clone() };
        PendingLoad::new(&Committable { plan, ..load.committable.clone() }, |key| self.stage.url(key))
    }

    /// The offsets of the rows of a file.
    fn offsets(&self, dialect: &dyn Dialect, file: &PlannedFile) -> Result<Vec<i64>> {
        let path = self.folder.join(&file.temp);
        let broken = |error: &dyn std::fmt::Display| unreadable(&path, error);
        let names = [lineage::OFFSET, control::OFFSET].map(|name| dialect.folded(name));
        let builder = reader(&path)?;
        let column = builder.schema().fields().iter().position(|field| names.contains(field.name()));
        let column = column.ok_or_else(|| broken(&"it has no column with offsets"))?;
        let mask = ProjectionMask::roots(builder.parquet_schema(), [column]);
        let mut offsets = Vec::new();
        for batch in builder.with_projection(mask).build().map_err(|error| broken(&error))? {
            let batch = batch.map_err(|error| broken(&error))?;
            let column = batch.column(0).as_primitive_opt::<Int64Type>();
            offsets.extend_from_slice(column.ok_or_else(|| broken(&"its offsets are no integers"))?.values());
        }
        Ok(offsets)
    }
}

fn reader(path: &Path) -> Result<ParquetRecordBatchReaderBuilder<File>> {
    let file = File::open(path).map_err(|error| io_error("read", path, &error))?;
    ParquetRecordBatchReaderBuilder::try_new(file).map_err(|error| unreadable(path, &error))
}

/// Writes some rows of a file to another one; returns its size.
fn copy_rows(from: &Path, to: &Path, range: Range<u64>) -> Result<u64> {
    let number = |rows: u64| usize::try_from(rows).unwrap_or(usize::MAX);
    let builder = reader(from)?;
    let schema = Arc::clone(builder.schema());
    let builder = builder.with_offset(number(range.start)).with_limit(number(range.end - range.start));
    let batches = builder.build().map_err(|error| unreadable(from, &error))?;
    let created = File::create(to).map_err(|error| io_error("create", to, &error))?;
    let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
    let failed = |error: parquet::errors::ParquetError| io_error("write", to, &std::io::Error::other(error));
    let mut writer = ArrowWriter::try_new(created, schema, Some(properties)).map_err(failed)?;
    for batch in batches {
        writer.write(&batch.map_err(|error| unreadable(from, &error))?).map_err(failed)?;
    }
    writer.close().map_err(failed)?;
    Ok(std::fs::metadata(to).map_err(|error| io_error("look at", to, &error))?.len())
}

fn unreadable(path: &Path, error: &dyn std::fmt::Display) -> Error {
    let message = format!("cannot read the rows of {}, which the warehouse refused: {error}", path.display());
    Error::external("warehouse.spool_broken", message)
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, Int64Array, RecordBatch};

    use super::*;

    #[test]
    fn parts_of_a_file_have_its_rows() {
        let folder = std::env::temp_dir().join(format!("trunkline-staging-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let (whole, part) = (folder.join("whole"), folder.join("part"));
        let numbers: ArrayRef = Arc::new(Int64Array::from_iter_values(0..5_000));
        let batch = RecordBatch::try_from_iter([("id", numbers)]).unwrap();
        let properties = WriterProperties::builder().set_max_row_group_row_count(Some(1_500)).build();
        let mut writer = ArrowWriter::try_new(File::create(&whole).unwrap(), batch.schema(), Some(properties)).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
        for range in [0..5_000, 1_499..1_501, 4_999..5_000, 0..1] {
            let bytes = copy_rows(&whole, &part, range.clone()).unwrap();
            assert_eq!(bytes, std::fs::metadata(&part).unwrap().len());
            let batches: Vec<RecordBatch> = reader(&part).unwrap().build().unwrap().map(Result::unwrap).collect();
            let found: Vec<i64> = batches
                .iter()
                .flat_map(|batch| batch.column(0).as_primitive::<Int64Type>().values().to_vec())
                .collect();
            assert_eq!(found, (range.start as i64..range.end as i64).collect::<Vec<_>>());
        }
        std::fs::remove_dir_all(folder).unwrap();
    }
}
