//! [`RefusedRows`]: rows that the destination refuses for a reason that the sink does not check.
//!
//! The sink learns of them in `prepare`, when it no longer has their records. It notes them here
//! and ends the call with [`READ_AGAIN`]. The stage opens the sink again at the committed offsets,
//! and `write` rejects the noted rows. So the dead letters, the counters (I3) and the offsets move
//! in one Kafka transaction (I2 a), and the others are loaded once. A task that dies in between
//! leaves nothing: the next owner finds the same rows.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use trunkline_connector::{Error, READ_AGAIN, Reason, TopicPartition};

use crate::bisect::Refusal;

/// The codes of errors of statements that say that a value was refused, and not the statement, its
/// columns or the right to run it.
const REFUSALS: [&str; 2] = ["redshift.data_refused", "snowflake.data_refused"];

/// Whether an error says that the destination refused a value.
pub(crate) fn is_refusal(error: &Error) -> bool {
    REFUSALS.contains(&error.code)
}

/// A row that the sink's own checks let pass.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct RowId {
    offset: i64,
    table: String,
    /// The rows of the same record before it in this table: a transform may make several.
    number: u32,
}

/// The refused rows that the tasks of a sink in this process know. A connector keeps them as long
/// as its options.
#[derive(Debug, Default)]
pub struct RefusedRows(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    partitions: HashMap<TopicPartition, BTreeMap<RowId, Reason>>,
    /// Rows of a table that were refused one after the other, and none accepted in between.
    series: HashMap<String, u64>,
}

/// What a load must leave out.
pub(crate) struct RefusedInFile {
    pub(crate) partition: TopicPartition,
    pub(crate) table: String,
    pub(crate) rows: Vec<RefusedRow>,
}

/// A refused row of a staged file.
pub(crate) struct RefusedRow {
    pub(crate) offset: i64,
    /// The rows of the same offset before it in the file.
    pub(crate) number: u32,
    pub(crate) reason: String,
}

/// Counts the rows of each record while they are written.
#[derive(Default)]
pub(crate) struct RowCounter(HashMap<(TopicPartition, String), (i64, u32)>);

impl RowCounter {
    /// The number of a row of this offset within its table.
    fn next(&mut self, partition: &TopicPartition, table: &str, offset: i64) -> u32 {
        let last = self.0.entry((partition.clone(), table.to_owned())).or_insert((offset, 0));
        if last.0 != offset {
            *last = (offset, 0);
        }
        last.1 += 1;
        last.1 - 1
    }
}

impl RefusedRows {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes refused rows. Returns the error that ends the call: the stage reads their records
    /// again.
    pub(crate) fn note(&self, dialect: &str, files: &[RefusedInFile]) -> Error {
        let mut known = self.known();
        let mut more = 0;
        for RefusedInFile { partition, table, rows } in files {
            let noted = known.partitions.entry(partition.clone()).or_default();
            // The rows that were noted before are not in the file.
            let before: Vec<RowId> = noted.keys().cloned().collect();
            for RefusedRow { offset, number, reason } in rows {
                let is_before = |at: u32| {
                    before.binary_search(&RowId { offset: *offset, table: table.clone(), number: at }).is_ok()
                };
                let free = (0..).filter(|at| !is_before(*at)).nth(*number as usize).unwrap_or_default();
                let reason = Reason::new("warehouse.row_refused", format!("{dialect} refused the row: {reason}"));
                let id = RowId { offset: *offset, table: table.clone(), number: free };
                more += u64::from(noted.insert(id, reason).is_none());
            }
        }
        if more == 0 {
            let message = format!("{dialect} refused rows that were left out before: please report this");
            return Error::internal("warehouse.batch", message);
        }
        let places: Vec<String> =
            files.iter().map(|file| format!("{} of {} for {}", file.rows.len(), file.partition, file.table)).collect();
        let message =
            format!("{dialect} refused rows ({}); the records are read again without them", places.join(", "));
        Error::data(READ_AGAIN, message)
    }

    /// The rows that are left out, each with its reason. `offsets` has the rows that the sink's own
    /// checks let pass, and `counter` has seen those before them, if one of the partition is known.
    pub(crate) fn reasons(
        &self,
        partition: &TopicPartition,
        table: &str,
        offsets: impl Iterator<Item = (usize, i64)>,
        counter: &mut RowCounter,
    ) -> Vec<(usize, Reason)> {
        let known = self.known();
        let Some(noted) = known.partitions.get(partition).filter(|noted| !noted.is_empty()) else { return Vec::new() };
        let reason = |(row, offset): (usize, i64)| {
            let number = counter.next(partition, table, offset);
            let id = RowId { offset, table: table.to_owned(), number };
            noted.get(&id).map(|reason| (row, reason.clone()))
        };
        offsets.filter_map(reason).collect()
    }

    /// The rows before this offset are decided.
    pub(crate) fn forget(&self, partition: &TopicPartition, next_offset: i64) {
        if let Some(noted) = self.known().partitions.get_mut(partition) {
            noted.retain(|row, _| row.offset >= next_offset);
        }
    }

    /// The destination accepted rows of a table, or refused this number of them and no other.
    pub(crate) fn judge(&self, table: &str, refusal: Refusal) {
        let mut known = self.known();
        match refusal {
            Refusal::Some => {
                known.series.remove(table);
            }
            Refusal::All(rows) => *known.series.entry(table.to_owned()).or_default() += rows,
        }
    }

    /// The rows of a table that were refused since the last one that was accepted.
    pub(crate) fn series(&self, table: &str) -> u64 {
        self.known().series.get(table).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn partition() -> TopicPartition {
        TopicPartition::new("t", 0)
    }

    fn refused(offset: i64, number: u32) -> [RefusedInFile; 1] {
        let row = RefusedRow { offset, number, reason: "why".to_owned() };
        [RefusedInFile { partition: partition(), table: "a".to_owned(), rows: vec![row] }]
    }

    /// The positions of the rows that are left out, for rows of these offsets.
    fn left_out(known: &RefusedRows, table: &str, offsets: &[i64]) -> Vec<usize> {
        let found = known.reasons(&partition(), table, offsets.iter().copied().enumerate(), &mut RowCounter::default());
        found.into_iter().map(|(row, _)| row).collect()
    }

    #[test]
    fn each_row_of_a_record_has_its_number() {
        let known = RefusedRows::default();
        let offsets = [4, 5, 5, 5, 6];
        assert_eq!(known.note("x", &refused(5, 1)).code, READ_AGAIN);
        assert_eq!(left_out(&known, "a", &offsets), [2]);
        // The file without it has two rows of the offset: its second one is the record's third.
        assert_eq!(known.note("x", &refused(5, 1)).code, READ_AGAIN);
        assert_eq!(left_out(&known, "a", &offsets), [2, 3]);
        assert_eq!(known.note("x", &refused(5, 0)).code, READ_AGAIN);
        assert_eq!(left_out(&known, "a", &offsets), [1, 2, 3]);
        assert_eq!(left_out(&known, "b", &offsets), [0; 0]);
        known.forget(&partition(), 6);
        assert_eq!(left_out(&known, "a", &offsets), [0; 0]);
    }

    #[test]
    fn a_call_without_progress_is_an_error() {
        let known = RefusedRows::default();
        let none = [RefusedInFile { partition: partition(), table: "a".to_owned(), rows: Vec::new() }];
        assert_eq!(known.note("x", &none).code, "warehouse.batch");
    }
}
