//! The range of a replay that supersedes files: it consists of whole files, ends where the live
//! sink is, and has no record that Kafka has deleted.

use std::collections::BTreeMap;

use trunkline_connector::{Error, OffsetRanges, OutputFile, Result, RowCount, RowCounts, TopicPartition};

use crate::checkpoint::{IntentRecord, IntentState};

/// Partitions with notes; further ones are counted.
const NOTED: usize = 10;

/// A partition of the range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requested {
    /// The topic partition.
    pub partition: TopicPartition,
    /// The first offset.
    pub from: i64,
    /// The offset after the last one.
    pub to: i64,
    /// The first offset that the topic still has.
    pub low: i64,
    /// The offset after its last record.
    pub high: i64,
    /// Rows that transforms emitted in addition to the records that they read.
    pub extra: u64,
    /// The live sink has written everything before this offset, and will write the rest.
    pub limit: i64,
}

/// What a replay replaces.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Replacement {
    /// The offsets to replay.
    pub ranges: BTreeMap<TopicPartition, (i64, i64)>,
    /// Files whose records are replayed.
    pub files: Vec<OutputFile>,
    /// Rows whose records are replayed, if the output is rows.
    pub rows: Vec<RowCount>,
    /// How the range differs from the request.
    pub notes: Vec<String>,
}

/// The offset up to which the output of a live sink is visible, by the row of its intent.
pub fn visible_up_to(row: Option<&IntentRecord>) -> i64 {
    match row {
        // Its output may not be visible yet.
        Some(row) if row.state == IntentState::Prepared => row.first,
        Some(row) => row.next,
        None => 0,
    }
}

/// Ends each partition where the live sink is.
pub fn limited(requested: &[Requested]) -> Result<Replacement> {
    let mut replacement = Replacement::default();
    let mut notes = Vec::new();
    for Requested { partition, from, to, limit, .. } in requested {
        if to > limit {
            notes.push(format!(
                "{partition}: the range ends at offset {limit} instead of {to}, because the live sink has not written the rest yet \
                 and will write it"
            ));
        }
        if *from < *to.min(limit) {
            replacement.ranges.insert(partition.clone(), (*from, *to.min(limit)));
        }
    }
    if replacement.ranges.is_empty() {
        let message =
            "the live sink has not written any record of the range yet: it will write them with today's transforms";
        return Err(Error::data("replay.empty", message));
    }
    replacement.notes = shortened(notes);
    Ok(replacement)
}

/// Checks the rows of the ranges of a replacement. `beyond` are rows with offsets that the topics
/// do not have.
pub fn check_rows(
    requested: &[Requested],
    ranges: &OffsetRanges,
    counts: &RowCounts,
    beyond: &RowCounts,
) -> Result<()> {
    if counts.unnamed > 0 {
        let message = format!(
            "the table has {} rows that do not name their records (`_topic`, `_partition` or `_offset` is null), and some of them may be              those of the range. Replay into another table with --into, or remove these rows",
            counts.unnamed
        );
        return Err(Error::config("replay.not_superseded", message));
    }
    if let Some(count) = beyond.partitions.first() {
        let message = format!(
            "the table {} has rows with offsets after the last one of {}: the topic was created again, so that the rows hold other              records than it has now, and are not replaced. Use --into",
            count.table, count.partition
        );
        return Err(Error::data("replay.output_changed", message));
    }
    for request in requested {
        let Some((from, to)) = ranges.get(&request.partition).copied() else { continue };
        let own = counts.partitions.iter().filter(|count| count.partition == request.partition);
        let rows = own.map(|count| count.rows).sum::<u64>();
        if rows > u64::try_from(to - from).unwrap_or(0) + request.extra {
            let message = format!(
                "the table holds {rows} rows with the offsets {from} to {} of {}, more than these offsets can have: the topic was created                  again, or records are there twice. They are not replaced: use `trunkline audit`, and --into",
                to - 1,
                request.partition
            );
            return Err(Error::data("replay.output_changed", message));
        }
    }
    Ok(())
}

/// Extends each partition to whole files. `files` are those of the live sink.
pub fn widened(requested: &[Requested], files: Vec<OutputFile>) -> Result<Replacement> {
    let mut replacement = limited(requested)?;
    let mut notes = Vec::new();
    let mut by_partition: BTreeMap<TopicPartition, Vec<OutputFile>> = BTreeMap::new();
    for file in files.into_iter().filter(|file| replacement.ranges.contains_key(&file.partition)) {
        by_partition.entry(file.partition.clone()).or_default().push(file);
    }
    for request in requested {
        let Some(range) = replacement.ranges.get_mut(&request.partition) else { continue };
        let own = by_partition.remove(&request.partition).unwrap_or_default();
        let whole = whole_files(*range, &own);
        check(request, *range, whole, &own)?;
        if whole != *range {
            notes.push(format!(
                "{}: the range {} to {} is extended to {} to {}, so that it consists of whole files",
                request.partition,
                range.0,
                range.1 - 1,
                whole.0,
                whole.1 - 1
            ));
        }
        *range = whole;
        replacement.files.extend(own.into_iter().filter(|file| is_in(file, whole)));
    }
    replacement.notes.extend(shortened(notes));
    Ok(replacement)
}

/// The smallest range with this one in which no file begins or ends outside.
fn whole_files(range: (i64, i64), files: &[OutputFile]) -> (i64, i64) {
    let (mut from, mut to) = range;
    // Files of several paths overlap each other: each extension may reach another file.
    loop {
        let before = (from, to);
        for file in files.iter().filter(|file| is_in(file, before)) {
            from = from.min(file.first);
            to = to.max(file.last + 1);
        }
        if before == (from, to) {
            return before;
        }
    }
}

/// Whether a file has records of a range.
pub fn is_in(file: &OutputFile, (from, to): (i64, i64)) -> bool {
    file.first < to && file.last >= from
}

fn check(request: &Requested, range: (i64, i64), whole: (i64, i64), files: &[OutputFile]) -> Result<()> {
    let Requested { partition, low, high, limit, extra, .. } = request;
    let own = || files.iter().filter(|file| is_in(file, whole));
    if whole.0 < *low {
        let lost = own().filter(|file| file.first < *low);
        let next = lost.clone().map(|file| file.last + 1).max().unwrap_or(*low);
        let name = lost.map(|file| file.name.as_str()).next().unwrap_or_default();
        let message = format!(
            "{name} begins before offset {low}, and the topic {partition} has no earlier record any more: replacing the file would \
             lose rows. Begin at offset {next} or later, or use --into"
        );
        return Err(Error::data("replay.deleted", message));
    }
    if let Some(file) = own().find(|file| file.last >= *high) {
        let message = format!(
            "{} ends after the last offset of {partition}: the topic was created again, so the file holds other records than the \
             topic has now, and is not replaced. Use --into",
            file.name
        );
        return Err(Error::data("replay.output_changed", message));
    }
    let (rows, offsets) = (own().map(|file| file.records).sum::<u64>(), u64::try_from(whole.1 - whole.0).unwrap_or(0));
    if rows > offsets + extra {
        let message = format!(
            "the files with the offsets {} to {} of {partition} hold {rows} rows, more than these offsets can have: the topic was created \
             again, so that files hold other records than it has now, or records are there twice. They are not replaced: use \
             `trunkline audit` to see which overlap, and --into",
            whole.0,
            whole.1 - 1
        );
        return Err(Error::data("replay.output_changed", message));
    }
    if whole.1 > *limit {
        let beyond = own().find(|file| file.last >= *limit);
        let name = beyond.map(|file| file.name.as_str()).unwrap_or_default();
        let message = format!(
            "{name} ends after offset {limit} of {partition}, where the live sink is: its position was moved back, and it writes these \
             records again. Wait until it has passed the end of the file"
        );
        return Err(Error::data("replay.output_changed", message));
    }
    debug_assert!(whole.0 <= range.0 && whole.1 >= range.1);
    Ok(())
}

fn shortened(mut notes: Vec<String>) -> Vec<String> {
    if notes.len() > NOTED {
        let more = notes.len() - NOTED;
        notes.truncate(NOTED);
        notes.push(format!(".. and the same for {more} more partitions"));
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Counters;

    fn file(name: &str, first: i64, last: i64) -> OutputFile {
        OutputFile {
            name: name.to_owned(),
            id: name.to_owned(),
            sink: "p.lake".to_owned(),
            partition: TopicPartition::new("t", 0),
            first,
            last,
            records: 1,
        }
    }

    fn requested(from: i64, to: i64, low: i64, limit: i64) -> [Requested; 1] {
        [Requested { partition: TopicPartition::new("t", 0), from, to, low, high: 60, extra: 0, limit }]
    }

    /// The range, the names of the files, and the number of notes.
    type Found = ((i64, i64), Vec<String>, usize);

    /// What is replaced, or the code of the error.
    fn of(requested: &[Requested], files: &[OutputFile]) -> Result<Found, &'static str> {
        let found = widened(requested, files.to_vec()).map_err(|error| error.code)?;
        let names = found.files.into_iter().map(|file| file.name).collect();
        Ok((found.ranges[&TopicPartition::new("t", 0)], names, found.notes.len()))
    }

    #[test]
    fn a_range_is_extended_to_whole_files_through_files_that_overlap() {
        // Files of two paths: b reaches into the range, and a overlaps b only.
        let files = [file("a", 0, 8), file("b", 3, 12), file("c", 13, 19), file("d", 20, 29)];
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert_eq!(of(&requested(10, 15, 0, 30), &files), Ok(((0, 20), names(&["a", "b", "c"]), 1)));
        assert_eq!(of(&requested(13, 20, 0, 30), &files), Ok(((13, 20), names(&["c"]), 0)));
        assert_eq!(of(&requested(13, 21, 0, 30), &files), Ok(((13, 30), names(&["c", "d"]), 1)));
        // Offsets without rows are no file.
        assert_eq!(of(&requested(30, 33, 0, 40), &files), Ok(((30, 33), Vec::new(), 0)));
    }

    #[test]
    fn records_that_the_live_sink_has_not_written_are_left_to_it() {
        let files = [file("a", 0, 9)];
        let (range, _, notes) = of(&requested(0, 50, 0, 10), &files).unwrap();
        assert_eq!((range, notes), ((0, 10), 1));
        assert_eq!(of(&requested(10, 50, 0, 10), &files), Err("replay.empty"));
    }

    #[test]
    fn a_file_is_not_replaced_if_some_of_its_records_are_not_replayed() {
        let files = [file("a", 0, 9), file("b", 10, 19)];
        // Retention has deleted the first records of the file.
        assert_eq!(of(&requested(4, 15, 4, 20), &files), Err("replay.deleted"));
        let error = widened(&requested(4, 15, 4, 20), files.to_vec()).unwrap_err().to_string();
        assert!(error.contains("Begin at offset 10"), "{error}");
        assert_eq!(of(&requested(10, 15, 4, 20), &files).unwrap().0, (10, 20));
        // The live sink writes the end of the file again.
        assert_eq!(of(&requested(12, 15, 0, 16), &files), Err("replay.output_changed"));
    }

    #[test]
    fn files_of_an_earlier_topic_are_not_replaced() {
        let old = OutputFile { records: 70, ..file("old", 0, 69) };
        assert_eq!(of(&requested(0, 10, 0, 100), &[old]), Err("replay.output_changed"));
        // The new topic has reached the end of the old file.
        let full = |name| OutputFile { records: 20, ..file(name, 0, 19) };
        assert_eq!(of(&requested(0, 10, 0, 30), &[full("old"), full("new")]), Err("replay.output_changed"));
        assert_eq!(of(&requested(0, 10, 0, 30), &[full("new")]).unwrap().0, (0, 20));
        // A transform emits two rows for some records.
        let mut emitting = requested(0, 10, 0, 30);
        emitting[0].extra = 5;
        let more = OutputFile { records: 25, ..file("more", 0, 19) };
        assert_eq!(of(&emitting, std::slice::from_ref(&more)).unwrap().0, (0, 20));
        assert_eq!(of(&requested(0, 10, 0, 30), &[more]), Err("replay.output_changed"));
    }

    #[test]
    fn prepared_output_may_not_be_visible_yet() {
        let row = |state| IntentRecord {
            state,
            payload: serde_json::Value::Null,
            first: 5,
            next: 9,
            counters: Counters::default(),
            sink_state: None,
        };
        assert_eq!(visible_up_to(Some(&row(IntentState::Prepared))), 5);
        assert_eq!(visible_up_to(Some(&row(IntentState::Committed))), 9);
        assert_eq!(visible_up_to(None), 0);
    }
}
