//! [`TablePlan`]: where the next chunk of a table starts and ends.
//!
//! A single reader reads a chunk, and the next one starts after the chunk's last row. With several
//! readers a chunk has an upper bound before it is read, so that the next chunk can start at once.
//! The first chunk of a table has no bound, because it reveals the size of the rows, and most
//! tables have no second one.
//!
//! There are two ways to a bound. The reader asks the server for the key of the chunk's last row,
//! which costs the server about a tenth of the chunk's query. A key of one integer column needs no
//! question if most numbers are in use: a span of n numbers has at most n rows.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::chunk::{Chunk, Described, UpperBound};
use super::tracker::TableRequest;
use crate::format::table::Table;
use crate::position::KeyPosition;
use crate::schema::table_name::TableName;
use crate::schema::types::ColumnType;

/// The number of rows of a table's first chunk.
const FIRST_CHUNK_ROWS: usize = 256;

/// The plan of a table whose snapshot is running.
pub(super) struct TablePlan {
    table: Arc<Table>,
    condition: Option<String>,
    next: NextChunk,
    /// The table's description, and the version of the schema that it belongs to.
    described: Option<(u64, Described)>,
    max_rows: usize,
    /// The key is one integer column, and at least half of the numbers in the last chunk are keys.
    is_dense: bool,
}

/// The start of the next chunk.
enum NextChunk {
    /// After this key; without one, at the first row.
    After(Option<KeyPosition>),
    /// The read of the chunk after this key determines it.
    Unknown(Option<KeyPosition>),
    /// Every chunk was started.
    End,
}

/// A planned chunk.
pub(super) struct PlannedChunk {
    pub(super) request: TableRequest,
    pub(super) upper_bound: UpperBound,
    pub(super) described: Option<Described>,
    pub(super) max_rows: usize,
    /// Receives the bound that the reader looks up.
    pub(super) found_bound: Option<oneshot::Receiver<KeyPosition>>,
    /// The bound, if it is known.
    pub(super) end: Option<KeyPosition>,
}

impl TablePlan {
    pub(super) fn new(request: TableRequest) -> Self {
        let TableRequest { table, condition, after } = request;
        Self {
            table,
            condition,
            next: NextChunk::After(after),
            described: None,
            max_rows: FIRST_CHUNK_ROWS,
            is_dense: false,
        }
    }

    pub(super) fn table(&self) -> &TableName {
        &self.table.name
    }

    /// Whether a chunk can start.
    pub(super) fn is_ready(&self) -> bool {
        matches!(self.next, NextChunk::After(_))
    }

    /// Whether the next chunk depends on the read of the chunk after this key.
    pub(super) fn waits_for(&self, after: Option<&KeyPosition>) -> bool {
        matches!(&self.next, NextChunk::Unknown(awaited) if awaited.as_ref() == after)
    }

    /// Starts again with this request. The size of chunks remains.
    pub(super) fn restart(&mut self, request: TableRequest) {
        let max_rows = if request.after.is_some() { self.max_rows } else { FIRST_CHUNK_ROWS };
        *self = Self { max_rows, ..Self::new(request) };
    }

    /// The next chunk starts after this key.
    pub(super) fn continue_after(&mut self, after: Option<KeyPosition>) {
        self.next = NextChunk::After(after);
    }

    /// Every chunk was started.
    pub(super) fn end(&mut self) {
        self.next = NextChunk::End;
    }

    /// The next chunk, if it can start.
    pub(super) fn next_chunk(
        &mut self,
        is_parallel: bool,
        schema_version: u64,
        most_rows: usize,
    ) -> Option<PlannedChunk> {
        let NextChunk::After(after) = &self.next else { return None };
        let after = after.clone();
        self.next = NextChunk::Unknown(after.clone());
        let max_rows = self.max_rows.clamp(1, most_rows);
        let mut chunk = PlannedChunk {
            request: TableRequest { table: Arc::clone(&self.table), condition: self.condition.clone(), after },
            upper_bound: UpperBound::Rows,
            described: self
                .described
                .as_ref()
                .filter(|(version, _)| *version == schema_version)
                .map(|(_, described)| described.clone()),
            max_rows,
            found_bound: None,
            end: None,
        };
        // With a condition, the search for a bound may cost as much as the chunk.
        let is_bounded = is_parallel && self.condition.is_none();
        if let Some(after) = chunk.request.after.as_ref().filter(|_| is_bounded) {
            if let Some(bound) = self.computed_bound(after, max_rows) {
                self.next = NextChunk::After(Some(bound.clone()));
                chunk.end = Some(bound.clone());
                chunk.upper_bound = UpperBound::Key(bound);
            } else {
                let (sender, receiver) = oneshot::channel();
                chunk.upper_bound = UpperBound::LookUp(sender);
                chunk.found_bound = Some(receiver);
            }
        }
        Some(chunk)
    }

    /// The key that at most `max_rows` rows precede, if most numbers are keys.
    fn computed_bound(&self, after: &KeyPosition, max_rows: usize) -> Option<KeyPosition> {
        let number = integer(&self.table, after).filter(|_| self.is_dense)?;
        let bound = number.checked_add(i64::try_from(max_rows).ok()?)?;
        Some(KeyPosition { literals: vec![bound.to_string()], columns: after.columns.clone() })
    }

    /// Learns from a chunk: the description of the table, if the schema has not changed since the
    /// chunk's request; the size of the rows; the use of numbers between the chunk's bounds.
    pub(super) fn learn(
        &mut self,
        chunk: &Chunk,
        after: Option<&KeyPosition>,
        schema_version: u64,
        chunk_bytes: usize,
    ) {
        self.table = Arc::clone(chunk.table());
        self.described = Some((schema_version, chunk.described.clone()));
        let rows = chunk.rows();
        if let Some(row_bytes) = chunk.bytes().checked_div(rows) {
            self.max_rows = (chunk_bytes / row_bytes.max(1)).clamp(1, chunk.max_rows.saturating_mul(4));
        }
        let end = chunk.end_key();
        self.is_dense = after
            .zip(end.as_ref())
            .and_then(|(after, end)| integer(&self.table, end)?.checked_sub(integer(&self.table, after)?))
            .and_then(|span| usize::try_from(span).ok())
            .is_some_and(|span| rows >= span.div_ceil(2));
    }
}

/// The number of a key that is one integer column.
fn integer(table: &Table, key: &KeyPosition) -> Option<i64> {
    let ([index], [literal]) = (table.order.as_slice(), key.literals.as_slice()) else { return None };
    let is_integer = matches!(table.columns.get(*index)?.column_type, ColumnType::Int { .. });
    literal.parse().ok().filter(|_| is_integer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::options::{BinaryFormat, DecimalFormat, Envelope, FormatOptions, TimeFormat, ZeroDates};
    use crate::schema::types::Column;

    fn plan(column_type: ColumnType, after: Option<&str>) -> TablePlan {
        let format = FormatOptions {
            envelope: Envelope::Row,
            decimals: DecimalFormat::String,
            binary: BinaryFormat::Base64,
            zero_dates: ZeroDates::Null,
            times: TimeFormat::Iso,
            transaction_block: false,
            query: false,
        };
        let columns = vec![Column::new("id".to_owned(), column_type, false)];
        let table = Arc::new(Table::new(TableName::new("d", "t"), columns, vec![0], format).unwrap());
        let after = after.map(|literal| KeyPosition { literals: vec![literal.to_owned()], columns: None });
        TablePlan::new(TableRequest { table, condition: None, after })
    }

    fn int() -> ColumnType {
        ColumnType::Int { bytes: 8, unsigned: false }
    }

    #[test]
    fn the_first_chunk_and_those_of_one_reader_have_no_bound() {
        for (after, is_parallel, condition) in
            [(None, true, None), (Some("5"), false, None), (Some("5"), true, Some("a"))]
        {
            let mut plan = plan(int(), after);
            plan.condition = condition.map(str::to_owned);
            plan.is_dense = true;
            let chunk = plan.next_chunk(is_parallel, 0, 4096).unwrap();
            assert!(matches!(chunk.upper_bound, UpperBound::Rows) && chunk.found_bound.is_none(), "{after:?}");
            // The next chunk waits for this one.
            assert!(!plan.is_ready() && plan.next_chunk(is_parallel, 0, 4096).is_none());
            assert!(plan.waits_for(chunk.request.after.as_ref()));
        }
    }

    #[test]
    fn bounds_of_dense_numbers_are_computed_and_others_looked_up() {
        let mut dense = plan(int(), Some("-10"));
        dense.is_dense = true;
        for end in ["90", "190", "290"] {
            let chunk = dense.next_chunk(true, 0, 100).unwrap();
            assert!(matches!(&chunk.upper_bound, UpperBound::Key(key) if key.literals == [end]), "{end}");
            assert_eq!(chunk.end.unwrap().literals, [end]);
        }
        let text = ColumnType::Binary;
        let cases =
            [(int(), "7", false), (text, "x'37'", true), (int(), "9223372036854775800", true), (int(), "1e3", true)];
        for (column_type, after, is_dense) in cases {
            let mut plan = plan(column_type, Some(after));
            plan.is_dense = is_dense;
            let chunk = plan.next_chunk(true, 0, 100).unwrap();
            assert!(matches!(chunk.upper_bound, UpperBound::LookUp(_)) && chunk.end.is_none(), "{after}");
            assert!(!plan.is_ready());
        }
    }
}
