//! Deletes of rows that a snapshot no longer finds.
//!
//! A snapshot emits the rows that exist. A row that vanished without a change event (after a gap in
//! the stream, a swapped table) stays in the topic. Its key is recognised by its last record, which
//! was written before the snapshot began: every existing row has a newer one, from the snapshot or
//! from a change.
//!
//! The protocol, in the position of the source task (key `deletes/{table}`):
//!
//! 1. Before the snapshot, the ends of the topic's partitions are stored.
//! 2. The transaction with the last rows of the snapshot marks them as due.
//! 3. The task compares the keys, writes the deletes and removes the entry. After a crash it starts
//!    again here: keys that were deleted already have a newer record.
//!
//! The task processes no change meanwhile, so the deletes precede all later changes of their keys.
//!
//! Memory is bounded (I6): the hashes of keys lie in files, one bucket of them is in memory.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufReader, BufWriter, Read as _, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use trunkline_connector::{Batch, Error, IncrementalSnapshots, PositionChange, RecordRef, Result, Template, io_error};

use super::stop_signal::StopSignal;
use crate::kafka::{Cluster, topic_reader};
use crate::plan::{Headers, topic_of_headers};

/// Precedes the keys of entries in a source's position.
const PREFIX: &str = "deletes/";

/// Records in a bucket, on average.
const BUCKET_RECORDS: u64 = 250_000;
const MAX_BUCKETS: u64 = 256;

/// Gone rows that are deleted in one pass over the topic.
const MAX_GONE: usize = 500_000;

/// Deletes are sent in batches of this size.
const BATCH_BYTES: usize = 1 << 20;

/// Deletes to come of the rows that the snapshot of one table does not find.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PendingDeletes {
    topic: String,
    /// The ends of the topic's partitions before the snapshot.
    ends: Vec<i64>,
    /// The snapshot is complete.
    #[serde(default)]
    pub(crate) is_due: bool,
    /// Rows were rejected: they exist, but have no newer record, so nothing is deleted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) has_rejected: bool,
}

impl PendingDeletes {
    /// Notes the ends of the table's topic. Call it before the snapshot emits the first row.
    pub(crate) fn begin(
        cluster: &Cluster,
        topic: &Template,
        snapshots: &dyn IncrementalSnapshots,
        table: &str,
    ) -> Result<Self> {
        let topic = topic_of(topic, snapshots, table)?;
        let ends = topic_reader::ends(cluster, &topic)?;
        Ok(Self { topic, ends, is_due: false, has_rejected: false })
    }

    /// The change of the position that stores it.
    pub(crate) fn stored(&self, table: &str) -> Result<PositionChange> {
        let value = serde_json::to_vec(self).map_err(|error| Error::internal("source.deletes", error.to_string()))?;
        Ok(PositionChange { key: format!("{PREFIX}{table}"), value: Some(value) })
    }

    /// The change of the position that removes it.
    pub(crate) fn removed(table: &str) -> PositionChange {
        PositionChange { key: format!("{PREFIX}{table}"), value: None }
    }

    /// The entries of a position, by table.
    pub(crate) fn read(position: &[(String, Vec<u8>)]) -> Result<BTreeMap<String, Self>> {
        let entries = position.iter().filter_map(|(key, value)| Some((key.strip_prefix(PREFIX)?, value)));
        let parse = |(table, value): (&str, &Vec<u8>)| match serde_json::from_slice(value) {
            Ok(pending) => Ok((table.to_owned(), pending)),
            Err(error) => Err(Error::data(
                "source.deletes",
                format!("the position `{PREFIX}{table}` cannot be read ({error}): was it written by a newer version?"),
            )),
        };
        entries.map(parse).collect()
    }

    /// Notes rejected records of the table with these headers, while its snapshot runs. Returns
    /// whether the entry changed.
    pub(super) fn note_rejected(&mut self, rejected: &Batch, headers: &Headers) -> bool {
        let is_of_table =
            |record: RecordRef<'_>| headers.iter().all(|(name, value)| record.header(name) == Some(value.as_bytes()));
        let is_first = !self.has_rejected && !self.is_due && rejected.iter().any(is_of_table);
        self.has_rejected |= is_first;
        is_first
    }

    /// The topic.
    pub(super) fn topic(&self) -> &str {
        &self.topic
    }

    /// Passes the deletes of the rows that are gone to `emit`, in batches. All records of the
    /// snapshot must be committed.
    pub(super) fn find(
        &self,
        search: &Search<'_>,
        table: &str,
        mut emit: impl FnMut(&Batch) -> Result<()>,
    ) -> Result<()> {
        let headers = search.snapshots.record_headers(table);
        let buckets = Buckets::fill(self, search, &headers)?;
        let mut gone: Vec<(i32, i64)> = Vec::new();
        for bucket in buckets.paths() {
            gone.extend(gone_keys(&bucket)?);
            if gone.len() >= MAX_GONE {
                self.delete(search, &std::mem::take(&mut gone), &mut emit)?;
            }
        }
        self.delete(search, &gone, &mut emit)
    }

    /// Reads these records again and deletes their rows.
    fn delete(
        &self,
        search: &Search<'_>,
        gone: &[(i32, i64)],
        emit: &mut impl FnMut(&Batch) -> Result<()>,
    ) -> Result<()> {
        let mut by_partition: BTreeMap<i32, Vec<i64>> = BTreeMap::new();
        for (partition, offset) in gone {
            by_partition.entry(*partition).or_default().push(*offset);
        }
        let mut deletes = Batch::default();
        for (partition, mut offsets) in by_partition {
            offsets.sort_unstable();
            let end = offsets.last().map_or(0, |last| last + 1);
            topic_reader::scan_range(search.cluster, &self.topic, partition, (offsets[0], end), &mut |record| {
                search.check_stop()?;
                if offsets.binary_search(&record.entry().offset).is_ok() {
                    search.snapshots.delete(record, search.now, &mut deletes);
                }
                if deletes.bytes() >= BATCH_BYTES {
                    emit(&deletes)?;
                    deletes.clear();
                }
                Ok(())
            })?;
        }
        if deletes.is_empty() { Ok(()) } else { emit(&deletes) }
    }
}

/// What a search for gone rows needs.
pub(super) struct Search<'a> {
    pub(super) cluster: &'a Cluster,
    pub(super) snapshots: &'a dyn IncrementalSnapshots,
    pub(super) scratch: &'a Path,
    pub(super) stop: &'a StopSignal,
    /// Milliseconds since the Unix epoch.
    pub(super) now: i64,
}

impl Search<'_> {
    fn check_stop(&self) -> Result<()> {
        match self.stop.is_set() {
            true => Err(Error::external("source.deletes", "stopped while it searched for deleted rows")),
            false => Ok(()),
        }
    }
}

/// The topic of all records of a table.
fn topic_of(topic: &Template, snapshots: &dyn IncrementalSnapshots, table: &str) -> Result<String> {
    match topic_of_headers(topic, &snapshots.record_headers(table)) {
        Some(topic) => Ok(topic),
        None => Err(Error::config(
            "source.deletes_topic",
            format!(
                "the topic `{}` depends on the records, so the rows that a table has lost cannot be found in one topic",
                topic.source()
            ),
        )),
    }
}

/// The keys of a topic's records, distributed over files by their hash.
struct Buckets {
    folder: PathBuf,
    count: u64,
}

/// Size of an entry: the hash of the key, whether the record is new, partition and offset.
const ENTRY_BYTES: usize = 16 + 1 + 4 + 8;

impl Buckets {
    fn fill(pending: &PendingDeletes, search: &Search<'_>, headers: &[(&str, String)]) -> Result<Self> {
        let ends = topic_reader::ends(search.cluster, &pending.topic)?;
        let records: u64 = ends.iter().map(|end| u64::try_from(*end).unwrap_or(0)).sum();
        let buckets =
            Self { folder: search.scratch.join("deletes"), count: (records / BUCKET_RECORDS + 1).min(MAX_BUCKETS) };
        let failed = |error: std::io::Error| io_error("write", &buckets.folder, &error);
        std::fs::create_dir_all(&buckets.folder).map_err(failed)?;
        let files =
            buckets.paths().map(|path| File::create(path).map(BufWriter::new)).collect::<std::io::Result<Vec<_>>>();
        let mut files = files.map_err(failed)?;
        for (partition, end) in (0..).zip(&ends) {
            let old_end = pending.ends.get(partition as usize).copied().unwrap_or(0);
            topic_reader::scan_range(search.cluster, &pending.topic, partition, (0, *end), &mut |record| {
                search.check_stop()?;
                let Some(key) = record.key().filter(|_| has_headers(record, headers)) else { return Ok(()) };
                let hash = xxhash_rust::xxh3::xxh3_128(key);
                let mut entry = [0; ENTRY_BYTES];
                entry[..16].copy_from_slice(&hash.to_le_bytes());
                entry[16] = u8::from(record.entry().offset >= old_end);
                entry[17..21].copy_from_slice(&partition.to_le_bytes());
                entry[21..].copy_from_slice(&record.entry().offset.to_le_bytes());
                let bucket = usize::try_from(hash % u128::from(buckets.count)).unwrap_or(0);
                files[bucket].write_all(&entry).map_err(failed)
            })?;
        }
        files.iter_mut().try_for_each(std::io::Write::flush).map_err(failed)?;
        Ok(buckets)
    }

    fn paths(&self) -> impl Iterator<Item = PathBuf> {
        (0..self.count).map(|number| self.folder.join(number.to_string()))
    }
}

impl Drop for Buckets {
    fn drop(&mut self) {
        // Scratch space is cleared at the next start, too.
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Whether a record has all of these headers.
fn has_headers(record: RecordRef<'_>, expected: &[(&str, String)]) -> bool {
    expected.iter().all(|(name, value)| record.headers().any(|found| found == (*name, Some(value.as_bytes()))))
}

/// The last records of the keys of a bucket that have no new record.
fn gone_keys(path: &Path) -> Result<Vec<(i32, i64)>> {
    let failed = |error: std::io::Error| io_error("read", path, &error);
    let mut file = BufReader::new(File::open(path).map_err(failed)?);
    // The last record of each key; `None` if it is new.
    let mut last: HashMap<[u8; 16], Option<(i32, i64)>> = HashMap::new();
    let mut entry = [0; ENTRY_BYTES];
    loop {
        match file.read_exact(&mut entry) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => break,
            Err(error) => return Err(failed(error)),
        }
        let (mut hash, mut partition, mut offset) = ([0; 16], [0; 4], [0; 8]);
        hash.copy_from_slice(&entry[..16]);
        partition.copy_from_slice(&entry[17..21]);
        offset.copy_from_slice(&entry[21..]);
        let position = (i32::from_le_bytes(partition), i64::from_le_bytes(offset));
        let known = last.entry(hash).or_insert(Some(position));
        *known = match (entry[16], *known) {
            (0, Some(_)) => Some(position),
            _ => None,
        };
    }
    Ok(last.into_values().flatten().collect())
}

/// The position of the source without these entries, which the source does not know.
pub(super) fn without_entries(position: &[(String, Vec<u8>)]) -> Vec<(String, Vec<u8>)> {
    position.iter().filter(|(key, _)| !key.starts_with(PREFIX)).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bucket(entries: &[(u8, bool, i64)]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        for (key, is_new, offset) in entries {
            let mut entry = [0; ENTRY_BYTES];
            entry[0] = *key;
            entry[16] = u8::from(*is_new);
            entry[21..].copy_from_slice(&offset.to_le_bytes());
            file.write_all(&entry).unwrap();
        }
        file
    }

    #[test]
    fn keys_without_a_new_record_are_gone() {
        let file = bucket(&[(1, false, 1), (2, false, 2), (1, false, 3), (3, false, 4), (2, true, 9), (4, true, 10)]);
        let mut gone = gone_keys(file.path()).unwrap();
        gone.sort_unstable();
        assert_eq!(gone, [(0, 3), (0, 4)], "the last record of each");
    }

    #[test]
    fn entries_are_read_from_the_position_and_hidden_from_the_source() {
        let pending = PendingDeletes { topic: "p.a.b".to_owned(), ends: vec![3, 0], is_due: true, has_rejected: false };
        let PositionChange { key, value } = pending.stored("table/a.b").unwrap();
        let position = vec![("stream".to_owned(), b"{}".to_vec()), (key, value.unwrap())];
        assert_eq!(PendingDeletes::read(&position).unwrap(), BTreeMap::from([("table/a.b".to_owned(), pending)]));
        assert_eq!(without_entries(&position), position[..1]);
    }

    #[test]
    fn only_rejected_rows_of_the_table_keep_its_rows() {
        let headers = |table: &str| vec![("trunkline.database", "a".to_owned()), ("trunkline.table", table.to_owned())];
        let rejected = |table: &str| {
            let mut batch = Batch::default();
            let mut record = batch.record();
            for (name, value) in headers(table) {
                record.header(name, Some(value.as_bytes()));
            }
            record.finish();
            batch
        };
        let stored = r#"{"topic":"p.a.b","ends":[3]}"#;
        let mut pending: PendingDeletes = serde_json::from_str(stored).unwrap();
        assert!(!pending.note_rejected(&rejected("c"), &headers("b")) && !pending.has_rejected);
        assert!(pending.note_rejected(&rejected("b"), &headers("b")) && pending.has_rejected);
        assert!(!pending.note_rejected(&rejected("b"), &headers("b")), "it is stored once");
        let mut pending: PendingDeletes = serde_json::from_str(stored).unwrap();
        pending.is_due = true;
        assert!(!pending.note_rejected(&rejected("b"), &headers("b")), "after the snapshot");
    }
}
