//! Audits the output of a sink: its rows against the counters of the sink, which are committed with
//! the offsets (I3), and the offset ranges of files against each other. Rows of a table are counted
//! by their lineage columns.
//!
//! A topic has offsets without a row: markers of transactions, dropped records, dead letters. The
//! count decides therefore whether rows are missing, and the ranges show where.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;
use trunkline_connector::{OutputFile, OutputListing, RowCount, RowCounts, TopicPartition};

use super::run::RowChange;
use crate::checkpoint::IntentRecord;

/// At most this many ranges and pairs of a partition are listed.
pub const LISTED: usize = 20;

/// The result of an audit.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct Audit {
    /// Partitions of the sink's topics.
    pub partitions: Vec<PartitionAudit>,
    /// Files of the sink with records of partitions of which the cluster has no state.
    pub unknown: Vec<String>,
    /// Files that other programs wrote.
    pub foreign: Vec<String>,
    /// Files of other sinks.
    pub of_other_sinks: Vec<String>,
    /// Rows that do not name their records; `None` if the output is files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unnamed_rows: Option<u64>,
}

/// What is at the destination.
pub enum Output {
    /// Files.
    Files(OutputListing),
    /// Rows of tables.
    Rows(RowCounts),
}

/// The files of one partition.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct PartitionAudit {
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// The offset up to which the sink has committed.
    pub committed: i64,
    /// Number of files.
    pub files: usize,
    /// Rows in them.
    pub rows: u64,
    /// Rows that the sink has committed, after replays with `--supersede`.
    pub expected: u64,
    /// Offsets that no file covers, each from the first to the last one, the longest first. Empty
    /// if no row is missing.
    pub gaps: Vec<(i64, i64)>,
    /// Files with the same rows.
    pub copies: Vec<(String, String)>,
    /// Rows of a table whose offsets other rows have, beyond those that transforms emitted in
    /// addition.
    #[serde(skip_serializing_if = "is_zero")]
    pub duplicates: u64,
    /// Files with overlapping offsets, if there are more rows than were committed, or more than the
    /// offsets that they cover: then the position was moved back, or files were copied.
    pub overlaps: Vec<Overlap>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde requires")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// Two files with the same offsets.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Overlap {
    /// The files.
    pub files: (String, String),
    /// The first and the last offset that are in both of their ranges.
    pub offsets: (i64, i64),
}

impl PartitionAudit {
    /// Every committed row is there once.
    pub fn is_complete(&self) -> bool {
        self.rows == self.expected && self.duplicates == 0 && self.copies.is_empty() && self.overlaps.is_empty()
    }
}

impl Audit {
    /// Every committed row is there once.
    pub fn is_complete(&self) -> bool {
        self.unknown.is_empty() && self.partitions.iter().all(PartitionAudit::is_complete)
    }
}

/// Compares the output of `sink` (`{pipeline}.{component}`) with the rows of its intents. `changes`
/// are those of replays that have replaced output of the sink.
pub fn audit(
    sink: &str,
    component: &str,
    rows: &BTreeMap<TopicPartition, IntentRecord>,
    changes: &[RowChange],
    output: Output,
) -> Audit {
    match output {
        Output::Files(listing) => audit_files(sink, component, rows, changes, listing),
        Output::Rows(counts) => Audit {
            unnamed_rows: Some(counts.unnamed),
            partitions: rows
                .iter()
                .map(|(partition, row)| {
                    let own = counts.partitions.iter().filter(|count| count.partition == *partition);
                    audit_rows(partition, row.next, expected_rows(component, partition, row, changes), own)
                })
                .collect(),
            ..Audit::default()
        },
    }
}

/// The rows that the destination should hold, and how many of them transforms emitted in addition
/// to the records that they read.
pub fn expected_rows(
    component: &str,
    partition: &TopicPartition,
    row: &IntentRecord,
    changes: &[RowChange],
) -> (u64, u64) {
    let own_changes =
        || changes.iter().filter(|change| change.partition == partition.partition && change.topic == *partition.topic);
    let written = row.counters.0.get(component).map_or(0, |counters| counters.out)
        + own_changes().map(|change| change.added).sum::<u64>();
    let expected = written.saturating_sub(own_changes().map(|change| change.removed).sum());
    let extra = row.counters.0.values().map(|counters| counters.extra).sum::<u64>()
        + own_changes().map(|change| change.extra).sum::<u64>();
    (expected, extra)
}

fn audit_rows<'a>(
    partition: &TopicPartition,
    committed: i64,
    (expected, extra): (u64, u64),
    counts: impl Iterator<Item = &'a RowCount>,
) -> PartitionAudit {
    let mut audit = PartitionAudit {
        topic: partition.topic.to_string(),
        partition: partition.partition,
        committed,
        expected,
        ..PartitionAudit::default()
    };
    let (mut offsets, mut next) = (0, 0);
    for count in counts {
        audit.rows += count.rows;
        offsets += count.offsets;
        let (first, last) = count.extremes;
        audit.gaps.extend((first > next).then_some((next, first - 1)));
        audit.gaps.extend_from_slice(&count.gaps);
        next = next.max(last + 1);
    }
    audit.gaps.extend((next < committed).then_some((next, committed - 1)));
    audit.duplicates = audit.rows.saturating_sub(offsets + extra);
    if audit.rows - audit.duplicates < expected {
        audit.gaps.sort_by_key(|(first, last)| (first - last, *first));
        audit.gaps.truncate(LISTED);
    } else {
        // Offsets of markers, dropped records and dead letters.
        audit.gaps.clear();
    }
    audit
}

fn audit_files(
    sink: &str,
    component: &str,
    rows: &BTreeMap<TopicPartition, IntentRecord>,
    changes: &[RowChange],
    listing: OutputListing,
) -> Audit {
    let mut audit = Audit { foreign: listing.foreign, ..Audit::default() };
    let mut files: BTreeMap<TopicPartition, Vec<OutputFile>> = BTreeMap::new();
    for file in listing.files {
        if file.sink != sink {
            audit.of_other_sinks.push(file.name);
        } else if rows.contains_key(&file.partition) {
            files.entry(file.partition.clone()).or_default().push(file);
        } else {
            audit.unknown.push(file.name);
        }
    }
    for (partition, row) in rows {
        let own = files.remove(partition).unwrap_or_default();
        let expected = expected_rows(component, partition, row, changes);
        audit.partitions.push(audit_partition(partition, row.next, expected, own));
    }
    audit
}

fn audit_partition(
    partition: &TopicPartition,
    committed: i64,
    (expected, extra): (u64, u64),
    mut files: Vec<OutputFile>,
) -> PartitionAudit {
    files.sort_by_key(|file| (file.first, file.last));
    let rows = files.iter().map(|file| file.records).sum();
    let mut audit = PartitionAudit {
        topic: partition.topic.to_string(),
        partition: partition.partition,
        committed,
        files: files.len(),
        rows,
        expected,
        copies: copies(&files),
        ..PartitionAudit::default()
    };
    let copied: u64 = extra_rows(&files);
    if rows - copied < expected {
        audit.gaps = gaps(&files, committed);
    }
    if rows > expected || rows > covered(&files) + extra {
        audit.overlaps = overlaps(&files);
    }
    audit
}

/// Files with the same id.
fn copies(files: &[OutputFile]) -> Vec<(String, String)> {
    let mut known: HashMap<&str, &OutputFile> = HashMap::new();
    let mut found = Vec::new();
    for file in files {
        match known.get(file.id.as_str()) {
            Some(first) => found.push((first.name.clone(), file.name.clone())),
            None => drop(known.insert(&file.id, file)),
        }
    }
    found
}

/// The rows of copies.
fn extra_rows(files: &[OutputFile]) -> u64 {
    let mut known = std::collections::HashSet::new();
    files.iter().filter(|file| !known.insert(file.id.as_str())).map(|file| file.records).sum()
}

/// The offsets below `committed` that no file covers. `files` are sorted by their first offsets.
fn gaps(files: &[OutputFile], committed: i64) -> Vec<(i64, i64)> {
    let mut gaps = Vec::new();
    let mut next = 0;
    for file in files {
        if file.first > next {
            gaps.push((next, file.first - 1));
        }
        next = next.max(file.last + 1);
    }
    if next < committed {
        gaps.push((next, committed - 1));
    }
    gaps.sort_by_key(|(first, last)| (first - last, *first));
    gaps.truncate(LISTED);
    gaps
}

/// The number of offsets that at least one file covers. `files` are sorted by their first offsets.
fn covered(files: &[OutputFile]) -> u64 {
    let (mut covered, mut next) = (0, 0);
    for file in files {
        covered += (file.last + 1 - file.first.max(next)).max(0);
        next = next.max(file.last + 1);
    }
    u64::try_from(covered).unwrap_or(0)
}

/// Neighbours whose ranges overlap.
fn overlaps(files: &[OutputFile]) -> Vec<Overlap> {
    let overlapping = files.windows(2).filter(|pair| pair[1].first <= pair[0].last).map(|pair| Overlap {
        files: (pair[0].name.clone(), pair[1].name.clone()),
        offsets: (pair[1].first, pair[0].last.min(pair[1].last)),
    });
    overlapping.take(LISTED).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::{ComponentCounters, Counters, IntentState};

    fn file(name: &str, first: i64, last: i64, records: u64) -> OutputFile {
        OutputFile {
            name: name.to_owned(),
            id: name.trim_end_matches('x').to_owned(),
            sink: "p.lake".to_owned(),
            partition: TopicPartition::new("t", 0),
            first,
            last,
            records,
        }
    }

    fn of(files: Vec<OutputFile>, next: i64, out: u64) -> Audit {
        changed(files, next, out, &[])
    }

    fn changed(files: Vec<OutputFile>, next: i64, out: u64, changes: &[RowChange]) -> Audit {
        let mut counters = Counters::default();
        *counters.of("lake") = ComponentCounters { out, ..Default::default() };
        let row = IntentRecord {
            state: IntentState::Committed,
            payload: serde_json::Value::Null,
            first: 0,
            next,
            counters,
            sink_state: None,
        };
        let rows = BTreeMap::from([(TopicPartition::new("t", 0), row)]);
        audit(
            "p.lake",
            "lake",
            &rows,
            changes,
            Output::Files(OutputListing { files, foreign: vec!["README".to_owned()] }),
        )
    }

    /// The audit of a table with these counts of partition 0.
    fn of_rows(rows: u64, offsets: u64, extremes: (i64, i64), gaps: &[(i64, i64)], out: u64) -> PartitionAudit {
        let mut counters = Counters::default();
        *counters.of("dw") = ComponentCounters { out, ..Default::default() };
        let row = IntentRecord {
            state: IntentState::Committed,
            payload: serde_json::Value::Null,
            first: 0,
            next: 20,
            counters,
            sink_state: None,
        };
        let partition = TopicPartition::new("t", 0);
        let intents = BTreeMap::from([(partition.clone(), row)]);
        let count = RowCount { table: "w".to_owned(), partition, rows, offsets, extremes, gaps: gaps.to_vec() };
        let counts = RowCounts { partitions: vec![count], unnamed: 0 };
        audit("p.dw", "dw", &intents, &[], Output::Rows(counts)).partitions.remove(0)
    }

    #[test]
    fn rows_of_a_table_are_counted_by_their_offsets() {
        let complete = of_rows(18, 18, (0, 18), &[(5, 5)], 18);
        assert!(complete.is_complete() && complete.gaps.is_empty(), "{complete:?}");
        let missing = of_rows(15, 15, (3, 18), &[(5, 5)], 18);
        assert!(!missing.is_complete());
        assert_eq!(missing.gaps, [(0, 2), (5, 5), (19, 19)]);
        // A row that is there twice does not make up for a missing one.
        let twice = of_rows(18, 17, (0, 18), &[(5, 6)], 18);
        assert_eq!((twice.is_complete(), twice.duplicates, twice.gaps[0]), (false, 1, (5, 6)));
    }

    #[test]
    fn offsets_of_markers_are_no_gap() {
        let found = of(vec![file("b", 6, 9, 4), file("a", 0, 4, 5)], 11, 9);
        assert!(found.is_complete(), "{found:?}");
        assert_eq!((found.partitions[0].rows, found.foreign.as_slice()), (9, &["README".to_owned()][..]));
    }

    #[test]
    fn replays_that_replaced_files_change_the_number_of_rows() {
        // The transforms of the replay drop three of five rows.
        let change = RowChange { topic: "t".to_owned(), partition: 0, removed: 5, added: 2, extra: 0 };
        let files = || vec![file("new", 0, 4, 2), file("b", 6, 9, 4)];
        assert!(changed(files(), 11, 9, std::slice::from_ref(&change)).is_complete());
        assert!(!of(files(), 11, 9).is_complete());
        let other = RowChange { partition: 1, ..change.clone() };
        assert!(!changed(files(), 11, 9, &[other]).is_complete());
        // Transforms that emit more rows than they read.
        let more = RowChange { added: 12, extra: 7, ..change };
        assert!(changed(vec![file("new", 0, 4, 12), file("b", 6, 9, 4)], 11, 9, &[more]).is_complete());
    }

    #[test]
    fn a_missing_file_is_a_gap() {
        let found = of(vec![file("a", 0, 4, 5), file("c", 21, 22, 2)], 24, 20);
        assert!(!found.is_complete());
        assert_eq!(found.partitions[0].gaps, [(5, 20), (23, 23)]);
        assert_eq!(of(Vec::new(), 24, 20).partitions[0].gaps, [(0, 23)]);
    }

    #[test]
    fn a_copy_is_reported_even_if_it_makes_up_for_a_missing_file() {
        let found = of(vec![file("a", 0, 4, 5), file("ax", 0, 4, 5)], 11, 10);
        assert!(!found.is_complete());
        assert_eq!(found.partitions[0].copies, [("a".to_owned(), "ax".to_owned())]);
        assert_eq!(found.partitions[0].gaps, [(5, 10)]);
    }

    #[test]
    fn files_with_further_rows_overlap() {
        let found = of(vec![file("a", 0, 4, 5), file("b", 3, 9, 7)], 10, 10);
        assert_eq!(found.partitions[0].overlaps.len(), 1);
        assert_eq!(found.partitions[0].overlaps[0].offsets, (3, 4));
        // The position was moved back, and the counters hold both deliveries.
        let again = of(vec![file("a", 0, 4, 5), file("b", 0, 4, 5)], 5, 10);
        assert_eq!(again.partitions[0].overlaps[0].offsets, (0, 4));
        // Files of several paths share a range.
        assert!(of(vec![file("a", 0, 8, 5), file("b", 1, 9, 5)], 10, 10).is_complete());
    }

    #[test]
    fn files_without_state_and_files_of_other_sinks_are_named() {
        let mut other = file("o", 0, 1, 2);
        other.sink = "p.copy".to_owned();
        let mut unknown = file("u", 0, 1, 2);
        unknown.partition = TopicPartition::new("t", 7);
        let found = of(vec![other, unknown], 0, 0);
        assert_eq!((found.of_other_sinks, found.unknown), (vec!["o".to_owned()], vec!["u".to_owned()]));
    }
}
