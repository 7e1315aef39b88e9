//! The sink's memory of deleted keys: a table with the order of each delete.
//!
//! A hard delete removes the row, and the row's order with it. A change from before the delete that
//! arrives late (a redriven dead letter, a replay, a topic with more partitions than before) would
//! bring the row back. So the transaction that deletes a row also notes the hash of its key with
//! the order of the delete, and older changes of this key are dropped. Notes are removed after
//! `remember_deletes`.
//!
//! One table for all tables of the sink: its columns never change, whatever happens to theirs. See
//! `docs/adr/030-deleted-keys.md`.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use arrow::array::{ArrayRef, StringBuilder};
use arrow::error::ArrowError;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use trunkline_connector::Result;
use xxhash_rust::xxh3::xxh3_128;

use crate::apply::timestamp;
use crate::dialect::{Column, ColumnType, Dialect, Session};
use crate::load::run;
use crate::order;

/// Length of a key's hash, as hexadecimal digits.
pub(crate) const KEY_LENGTH: u32 = 32;

/// See the module's header.
#[derive(Clone)]
pub(crate) struct Deletes {
    /// Its name in the catalog.
    table: String,
    /// What the names of tables begin with: the run of a replay, which may end before a delete.
    scope: String,
    keep: Duration,
    /// The table was seen, and nothing has failed since then.
    exists: Arc<AtomicBool>,
}

impl Deletes {
    pub(crate) fn new(table: String, scope: String, keep: Duration) -> Self {
        Self { table, scope, keep, exists: Arc::default() }
    }

    fn table_literal(&self, dialect: &dyn Dialect, table: &str) -> String {
        dialect.literal(&format!("{}{table}", self.scope))
    }

    /// Creates the table unless it exists.
    pub(crate) fn create(&self, dialect: &dyn Dialect, session: &mut dyn Session) -> Result<()> {
        if self.exists.load(Ordering::Relaxed) {
            return Ok(());
        }
        if dialect.columns(session, &self.table)?.is_none() {
            let column = |name: &str, column_type| Column {
                name: dialect.folded(name),
                column_type,
                nullable: true,
                has_default: false,
            };
            let columns = [
                column("table_name", ColumnType::Text(300)),
                column("row_key", ColumnType::Text(KEY_LENGTH)),
                column("source_order", ColumnType::Text(order::LENGTH)),
                column("removed_at", ColumnType::Timestamp),
            ];
            // Two tasks may do so at the same time: the second one fails, and its load is repeated.
            run(session, &dialect.create_table(&self.table, &columns, &[]))?;
        }
        self.exists.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// The next load looks for the table again: it may have been dropped.
    pub(crate) fn forget(&self) {
        self.exists.store(false, Ordering::Relaxed);
    }

    /// The statement that drops staged changes from before the delete of their key. `staging`,
    /// `key` and `order` are SQL.
    pub(crate) fn drop_late(
        &self,
        dialect: &dyn Dialect,
        table: &str,
        (staging, key, order): (&str, &str, &str),
        or_equal: bool,
    ) -> String {
        let (deletes, than) = (dialect.quoted(&self.table), if or_equal { ">=" } else { ">" });
        let [table_name, row_key, source_order, _] = names(dialect);
        format!(
            "DELETE FROM {staging} USING {deletes} WHERE {deletes}.{table_name} = {} AND {deletes}.{row_key} = {staging}.{key} AND \
             {deletes}.{source_order} {than} {staging}.{order}",
            self.table_literal(dialect, table)
        )
    }

    /// The statements that note the deletes in a staging table, and remove old notes.
    pub(crate) fn note(
        &self,
        dialect: &dyn Dialect,
        table: &str,
        (staging, key, order): (&str, &str, &str),
        deleted: &str,
        now: &str,
    ) -> [String; 2] {
        let names = names(dialect);
        let (deletes, removed_at) = (dialect.quoted(&self.table), &names[3]);
        let oldest = SystemTime::now().checked_sub(self.keep).unwrap_or(SystemTime::UNIX_EPOCH);
        [
            format!(
                "INSERT INTO {deletes} ({}) SELECT {}, {key}, MAX({order}), {now} FROM {staging} WHERE {deleted} AND {order} IS NOT \
                 NULL GROUP BY {key}",
                names.join(", "),
                self.table_literal(dialect, table)
            ),
            format!("DELETE FROM {deletes} WHERE {removed_at} < {}", timestamp(dialect, oldest)),
        ]
    }
}

fn names(dialect: &dyn Dialect) -> [String; 4] {
    ["table_name", "row_key", "source_order", "removed_at"].map(|name| dialect.quoted(&dialect.folded(name)))
}

/// The hashes of keys, whose fields are these columns. The values are those of the records, so that
/// a wider column of the table changes nothing.
pub(crate) fn key_hashes(fields: &[&ArrayRef], rows: usize) -> Result<ArrayRef, ArrowError> {
    let options = FormatOptions::default();
    let formatters = fields.iter().map(|field| ArrayFormatter::try_new(field.as_ref(), &options));
    let formatters = formatters.collect::<Result<Vec<_>, _>>()?;
    let mut hashes = StringBuilder::with_capacity(rows, rows * KEY_LENGTH as usize);
    let (mut text, mut value) = (String::new(), String::new());
    for row in 0..rows {
        text.clear();
        for formatter in &formatters {
            value.clear();
            // With its length, so that different keys have different texts.
            write!(value, "{}", formatter.value(row))
                .and_then(|()| write!(text, "{}:{value}", value.len()))
                .map_err(|error| ArrowError::ComputeError(format!("a field of the key cannot be shown: {error}")))?;
        }
        hashes.append_value(format!("{:032x}", xxh3_128(text.as_bytes())));
    }
    Ok(Arc::new(hashes.finish()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{AsArray, Int32Array, Int64Array, StringArray};

    fn hashes(fields: &[ArrayRef]) -> Vec<String> {
        let fields: Vec<&ArrayRef> = fields.iter().collect();
        let hashes = key_hashes(&fields, fields[0].len()).unwrap();
        hashes.as_string::<i32>().iter().map(|hash| hash.unwrap().to_owned()).collect()
    }

    #[test]
    fn a_key_has_one_hash_whatever_the_type_of_its_integers() {
        let narrow = hashes(&[Arc::new(Int32Array::from(vec![1, 2, -3]))]);
        assert_eq!(narrow, hashes(&[Arc::new(Int64Array::from(vec![1, 2, -3]))]));
        assert!(narrow.iter().all(|hash| hash.len() == KEY_LENGTH as usize));
        assert_ne!(narrow[0], narrow[1]);
    }

    #[test]
    fn fields_are_not_confused_with_their_neighbours() {
        let of = |left: &str, right: &str| {
            hashes(&[Arc::new(StringArray::from(vec![left])), Arc::new(StringArray::from(vec![right]))])
        };
        assert_ne!(of("a", "bc"), of("ab", "c"));
        assert_ne!(of("", "1:a"), of("1:a", ""));
    }
}
