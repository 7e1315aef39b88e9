//! `trunkline trace --file --row`: the record that a row of a file was made from.
//!
//! A file names the first and the last offset of its rows, and their number. If each offset between
//! them has a row, the row names its offset. Otherwise markers of transactions and dropped records
//! lie between, and the records of these offsets pass today's transforms: if they result in as many
//! rows, the rows are those of the file, in the same order (I5).

use trunkline_connector::{Batch, Error, OutputFile, Result, TopicPartition};

use crate::kafka::{Cluster, topic_reader};
use crate::plan::{Pipeline, SinkPlan};
use crate::stage::InspectedStage;

/// Records that pass the transforms at once.
const BATCH_RECORDS: usize = 1_000;

/// The offset of the record behind a row, counted from 0, of a file of one of the pipeline's sinks.
pub(super) fn find(cluster: &Cluster, pipeline: &Pipeline, file: &str, row: u64) -> Result<(TopicPartition, i64)> {
    let (sink, found) = file_of(pipeline, file)?;
    if row >= found.records {
        let message =
            format!("{} has {} rows, the first of which is 0: there is no row {row}", found.name, found.records);
        return Err(Error::config("cli.no_row", message));
    }
    let offset = match direct(&found, row) {
        Some(offset) => offset,
        None => through_transforms(cluster, sink, &found, row)?,
    };
    Ok((found.partition, offset))
}

/// The file of a sink with this name, path or key.
fn file_of<'p>(pipeline: &'p Pipeline, file: &str) -> Result<(&'p SinkPlan, OutputFile)> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(|error| Error::external("environment.runtime", format!("cannot start a thread: {error}")))?;
    let absolute = std::path::absolute(file).map(|path| path.display().to_string()).unwrap_or_default();
    let mut matches = Vec::new();
    for sink in &pipeline.sinks {
        let name = format!("{}.{}", pipeline.name, sink.name);
        let listing = sink.spec.list_output(runtime.handle())?.unwrap_or_default();
        let is_meant = |found: &OutputFile| found.sink == name && is_named(&found.name, file, &absolute);
        matches.extend(listing.files.into_iter().filter(is_meant).map(|found| (sink, found)));
    }
    if matches.len() == 1 {
        return Ok(matches.remove(0));
    }
    let message = match matches.len() {
        0 => format!(
            "no sink of the pipeline `{}` has written a file `{file}`: write its path or key as `trunkline trace --record` prints it, or its \
             name",
            pipeline.name
        ),
        _ => format!(
            "several sinks of the pipeline `{}` have a file `{file}`: write its whole path or key",
            pipeline.name
        ),
    };
    Err(Error::config("cli.no_row", message))
}

fn is_named(found: &str, file: &str, absolute: &str) -> bool {
    found == file || found == absolute || found.ends_with(&format!("/{file}"))
}

/// The offset of a row in a file without holes.
fn direct(file: &OutputFile, row: u64) -> Option<i64> {
    let offsets = u64::try_from(file.last - file.first).ok()? + 1;
    (offsets == file.records).then(|| file.first + row as i64)
}

fn through_transforms(cluster: &Cluster, sink: &SinkPlan, file: &OutputFile, row: u64) -> Result<i64> {
    let mut stage = InspectedStage::of_sink(sink)?;
    let (mut batch, mut offsets) = (Batch::default(), Vec::new());
    let mut process = |batch: &mut Batch| {
        let outcome = stage.process(&file.partition, batch, &mut |out| {
            offsets.extend(out.entries().iter().map(|entry| entry.offset));
            Ok(())
        });
        batch.clear();
        outcome
    };
    let (topic, partition) = (&file.partition.topic, file.partition.partition);
    topic_reader::scan_range(cluster, topic, partition, (file.first, file.last + 1), &mut |record| {
        batch.push_copy(record);
        if batch.len() >= BATCH_RECORDS { process(&mut batch) } else { Ok(()) }
    })?;
    if !batch.is_empty() {
        process(&mut batch)?;
    }
    if offsets.len() as u64 == file.records
        && let Some(offset) = offsets.get(row as usize)
    {
        return Ok(*offset);
    }
    let message = format!(
        "the row cannot be assigned to a record: {} has {} rows of the offsets {} to {} of {}, and today's transforms make {} of these \
         records. Other files have the others (`path`), the transforms have changed, or records were deleted. Look for the record with \
         `trunkline tap` or `trunkline replay --to-stdout`, and name it with --record",
        file.name,
        file.records,
        file.first,
        file.last,
        file.partition,
        offsets.len()
    );
    Err(Error::data("cli.no_row", message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_of_a_file_without_holes_has_its_offset() {
        let file = |records| OutputFile {
            name: "lake/day=1/a.parquet".to_owned(),
            id: String::new(),
            sink: "p.lake".to_owned(),
            partition: TopicPartition::new("t", 0),
            first: 100,
            last: 119,
            records,
        };
        assert_eq!((direct(&file(20), 17), direct(&file(19), 17)), (Some(117), None));
    }

    #[test]
    fn a_file_is_named_by_its_path_key_or_name() {
        let found = "/lake/day=1/a.parquet";
        for file in ["/lake/day=1/a.parquet", "a.parquet", "day=1/a.parquet"] {
            assert!(is_named(found, file, ""), "{file}");
        }
        assert!(is_named(found, "./a.parquet", "/lake/day=1/a.parquet"));
        assert!(!is_named(found, "b.parquet", "") && !is_named(found, "parquet", ""));
    }
}
