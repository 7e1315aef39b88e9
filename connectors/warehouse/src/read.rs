//! Reads the rows of tables, for `trunkline replay diff`: in parts of their offsets, so that few
//! are in memory.

use trunkline_connector::{Contents, EachContent, Error, OffsetRanges, Result, TopicPartition};

use crate::apply::filled;
use crate::config::Options;
use crate::dialect::{Column, Dialect, Session};
use crate::intent::LoadMode;
use crate::replay::condition;

/// Offsets of one query.
const OFFSETS: i64 = 10_000;

impl Options {
    /// How rows are compared; see [`SinkSpec::contents`](trunkline_connector::SinkSpec::contents).
    /// `folded` gives the name in the catalog.
    pub fn contents(&self, folded: impl Fn(&str) -> String) -> Option<Contents> {
        let is_readable = self.lineage && self.table.for_topic("").is_some();
        let key = if self.mode == LoadMode::Append { &[][..] } else { &self.key };
        is_readable.then(|| Contents {
            key: key.iter().map(|name| folded(name)).collect(),
            ignored: [filled::LOADED_AT, filled::DELETED_AT].map(&folded).to_vec(),
        })
    }
}

/// Reads the rows of offsets; see
/// [`SinkSpec::read_contents`](trunkline_connector::SinkSpec::read_contents). Rows of keys are read
/// beyond the ranges, too: a later record may have replaced one.
pub fn read_contents(
    dialect: &dyn Dialect,
    options: &Options,
    ranges: &OffsetRanges,
    each: EachContent<'_>,
) -> Result<u64> {
    let mut session = dialect.connect()?;
    let mut beyond = 0;
    for (table, ranges) in options.tables(dialect, ranges).unwrap_or_default() {
        // Nothing was written if there is no such table.
        let Some(mut columns) = dialect.columns(session.as_mut(), &table)? else { continue };
        columns.sort_by(|one, other| one.name.cmp(&other.name));
        let mut reader = TableReader { dialect, session: session.as_mut(), table: &table, columns };
        for (partition, range) in &ranges {
            beyond += reader.read(partition, *range, options.mode != LoadMode::Append, each)?;
        }
    }
    Ok(beyond)
}

struct TableReader<'a> {
    dialect: &'a dyn Dialect,
    session: &'a mut dyn Session,
    table: &'a str,
    /// In the order of their names.
    columns: Vec<Column>,
}

impl TableReader<'_> {
    fn read(
        &mut self,
        partition: &TopicPartition,
        (from, to): (i64, i64),
        reads_beyond: bool,
        each: EachContent<'_>,
    ) -> Result<u64> {
        let table = self.dialect.quoted(self.table);
        let offset = self.dialect.quoted(&self.dialect.folded("_offset"));
        let most = if reads_beyond { i64::MAX } else { to };
        let all = condition(self.dialect, "", partition, (from, most));
        let ends = self.session.query(&format!("SELECT MIN({offset}), MAX({offset}) FROM {table} WHERE {all}"))?;
        let end = |index: usize| ends.first()?.get(index)?.as_ref()?.parse::<i64>().ok();
        let (Some(mut first), Some(last)) = (end(0), end(1)) else { return Ok(0) };
        let text = |column: &Column| self.dialect.text_of(&column.column_type, &self.dialect.quoted(&column.name));
        let columns: Vec<String> = self.columns.iter().map(text).collect();
        let mut beyond = 0;
        while first <= last {
            let next = first.saturating_add(OFFSETS);
            let part = condition(self.dialect, "", partition, (first, next));
            let rows = self.session.query(&format!(
                "SELECT CASE WHEN {offset} >= {to} THEN 1 ELSE 0 END, {} FROM {table} WHERE {part}",
                columns.join(", ")
            ))?;
            for row in rows {
                let (is_beyond, values) = row.split_first().ok_or_else(|| unreadable(self.table))?;
                beyond += u64::from(is_beyond.as_deref() == Some("1"));
                let named = self.columns.iter().zip(values);
                let row: Vec<(&str, &str)> =
                    named.filter_map(|(column, value)| Some((column.name.as_str(), value.as_deref()?))).collect();
                each(self.table, &row)?;
            }
            first = next;
        }
        Ok(beyond)
    }
}

fn unreadable(table: &str) -> Error {
    Error::external(
        "warehouse.row_count",
        format!("the destination answered a row of {table} without columns: try it again"),
    )
}
