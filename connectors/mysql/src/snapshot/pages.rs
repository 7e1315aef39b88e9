//! Pages of rows: records with their keys, in the order in which they were read.

use std::collections::VecDeque;

use trunkline_connector::{Batch, SourceBatch};

use super::describe::TableDescription;
use super::select;
use super::tracker::ChangedKeys;
use crate::connection::protocol::result_set::Row;
use crate::decode::protocol::{self, TimestampEncoding};
use crate::decode::{Malformed, Value};
use crate::format::envelope::{Change, Emitter, Op, SourceBlock};
use crate::format::rejected::MalformedRows;
use crate::format::table::Table;
use crate::position::BinlogPosition;
use crate::schema::types::Column;

/// Limits of a page: those of the batch that it is emitted to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PageLimits {
    bytes: usize,
    rows: usize,
}

impl PageLimits {
    pub(crate) fn of(batch: &SourceBatch) -> Self {
        Self { bytes: batch.max_bytes, rows: batch.max_records }
    }
}

/// Records of rows, which an empty batch takes without a copy.
#[derive(Default)]
pub(crate) struct RowPage {
    records: SourceBatch,
    /// Whether each row was rejected.
    rejected: Vec<bool>,
    keys: Keys,
    /// The number of emitted or skipped rows, and of records and rejections among them.
    row: usize,
    record: usize,
    rejection: usize,
}

impl RowPage {
    /// An empty page with room for records.
    fn with_capacity(bytes: usize, records: usize) -> Self {
        let records = SourceBatch { records: Batch::with_capacity(bytes, records), ..SourceBatch::default() };
        Self { records, ..Self::default() }
    }

    /// The number of rows.
    pub(crate) fn rows(&self) -> usize {
        self.rejected.len()
    }

    /// The size of all records.
    pub(crate) fn bytes(&self) -> usize {
        self.records.bytes()
    }

    /// The key of the last emitted row.
    pub(crate) fn reached_key(&self) -> Option<Vec<String>> {
        Some(self.keys.of(self.row.checked_sub(1)?))
    }

    /// The key of the last row.
    pub(crate) fn last_key(&self) -> Option<Vec<String>> {
        Some(self.keys.of(self.rows().checked_sub(1)?))
    }

    /// Emits the rows whose keys have not changed. Returns whether it emitted all of them. If not,
    /// the batch is full, or so nearly full that the next batch takes the page without a copy.
    pub(crate) fn emit(&mut self, out: &mut SourceBatch, changed_keys: &ChangedKeys) -> bool {
        let fits = self.rows() <= out.max_records;
        if self.row == 0 && fits && changed_keys.is_empty() && self.records.rejected.is_empty() {
            if out.records.is_empty() {
                std::mem::swap(&mut out.records, &mut self.records.records);
                self.row = self.rows();
                return true;
            }
            if out.bytes() >= out.max_bytes / 4 {
                return false;
            }
        }
        while let Some(is_rejected) = self.rejected.get(self.row) {
            if out.is_full() {
                return false;
            }
            let rejected = &self.records.rejected;
            let record = match is_rejected {
                true => rejected.records.get(self.rejection),
                false => self.records.records.get(self.record),
            };
            if record.key().is_none_or(|key| !changed_keys.contains(key)) {
                match is_rejected {
                    true => out.rejected.push(record, rejected.reasons[self.rejection].clone()),
                    false => out.records.push_copy(record),
                }
            }
            self.rejection += usize::from(*is_rejected);
            self.record += usize::from(!is_rejected);
            self.row += 1;
        }
        true
    }
}

/// Keys of rows as SQL literals, in one text, because few of the many keys are read.
#[derive(Default)]
pub(crate) struct Keys {
    text: String,
    /// The end of each literal.
    ends: Vec<usize>,
    columns: usize,
}

impl Keys {
    /// Removes the keys after the first `rows`.
    fn truncate(&mut self, rows: usize) {
        self.ends.truncate(rows * self.columns);
        self.text.truncate(self.ends.last().copied().unwrap_or(0));
    }

    fn push(&mut self, table: &Table, row: &[Value<'_>]) -> Result<(), Malformed> {
        self.columns = table.order.len();
        for index in &table.order {
            let value = row.get(*index).ok_or_else(|| Malformed::new("a row lacks its key"))?;
            select::write_literal(&mut self.text, &table.columns[*index].column_type, value)?;
            self.ends.push(self.text.len());
        }
        Ok(())
    }

    /// The key of a row; empty for a table without a key.
    pub(crate) fn of(&self, row: usize) -> Vec<String> {
        let literal = |index: usize| {
            let begin = index.checked_sub(1).map_or(0, |before| self.ends[before]);
            self.text[begin..self.ends[index]].to_owned()
        };
        (row * self.columns..(row + 1) * self.columns).map(literal).collect()
    }
}

/// Encodes rows to pages.
pub(crate) struct RowEncoder {
    emitter: Emitter,
    source_block: SourceBlock,
    /// The position in the binlog that the records name.
    at: BinlogPosition,
    /// Rows that cannot be decoded are rejected.
    rejects_malformed: bool,
    /// A row was rejected because it cannot be decoded.
    pub(crate) has_malformed: bool,
    limits: PageLimits,
    timestamps: TimestampEncoding,
    full: VecDeque<RowPage>,
    page: RowPage,
    count: u64,
    /// The size of the full pages.
    full_bytes: usize,
    /// The memory of the values of a row.
    values: Vec<Value<'static>>,
}

impl RowEncoder {
    pub(crate) fn new(
        emitter: Emitter,
        source_block: SourceBlock,
        at: &BinlogPosition,
        rejects_malformed: bool,
        (limits, timestamps): (PageLimits, TimestampEncoding),
    ) -> Self {
        Self {
            emitter,
            source_block,
            at: at.clone(),
            rejects_malformed,
            has_malformed: false,
            limits,
            timestamps,
            full: VecDeque::new(),
            page: RowPage::default(),
            count: 0,
            full_bytes: 0,
            values: Vec::new(),
        }
    }

    /// Allocates a page for this number of bytes at once, instead of step by step.
    pub(crate) fn expecting(mut self, bytes: usize) -> Self {
        self.page = RowPage::with_capacity(bytes.min(self.limits.bytes), 0);
        self
    }

    /// Adds a row.
    pub(crate) fn add(&mut self, table: &Table, row: Row<'_>) -> Result<(), Malformed> {
        match self.encode(table, row) {
            Err(error) if self.rejects_malformed => self.reject(table, row, &error)?,
            result => result?,
        }
        self.count += 1;
        let RowPage { records, rejected, .. } = &self.page;
        if records.bytes() >= self.limits.bytes || rejected.len() >= self.limits.rows {
            self.full_bytes += records.bytes();
            // Pages differ by the size of a row.
            let (bytes, rows) = (records.records.arena_bytes(), records.records.len());
            let next = RowPage::with_capacity(bytes + bytes / 16, rows + rows / 16);
            self.full.push_back(std::mem::replace(&mut self.page, next));
        }
        Ok(())
    }

    fn encode(&mut self, table: &Table, row: Row<'_>) -> Result<(), Malformed> {
        let mut values: Vec<Value<'_>> = std::mem::take(&mut self.values);
        values.reserve(table.columns.len());
        for (index, column) in table.columns.iter().enumerate() {
            values.push(read_value(row, index, column, self.timestamps)?);
        }
        let RowPage { records, rejected, keys, .. } = &mut self.page;
        let before = records.rejected.len();
        keys.push(table, &values)?;
        let change = Change { op: Op::Read, before: None, after: Some(&values), row: self.count };
        self.emitter.change(records, table, &self.source_block, change, |_| {})?;
        rejected.push(records.rejected.len() > before);
        // The same allocation, for values of another row.
        values.clear();
        self.values = values.into_iter().map(|_| Value::Null).collect();
        Ok(())
    }

    /// Rejects a row that cannot be decoded. A row whose position among the others is unknown stops
    /// the snapshot: it could not continue after it.
    fn reject(&mut self, table: &Table, row: Row<'_>, error: &Malformed) -> Result<(), Malformed> {
        let RowPage { records, rejected, keys, .. } = &mut self.page;
        keys.truncate(rejected.len());
        let mut values = vec![Value::Null; table.columns.len()];
        for index in &table.order {
            values[*index] = read_value(row, *index, &table.columns[*index], self.timestamps)?;
        }
        keys.push(table, &values)?;
        let is_read = |index: &usize| {
            let value = read_value(row, *index, &table.columns[*index], self.timestamps).ok();
            value.map(|value| values[*index] = value).is_some()
        };
        let key = if table.key.iter().all(is_read) { self.emitter.key(table, &values) } else { None };
        let bytes = if table.has_hidden_columns() { None } else { Some(packed_row(row)) };
        let BinlogPosition { file, pos } = &self.at;
        let message =
            format!("a row of {} that the snapshot read at {file}:{pos} cannot be decoded: {error}", table.name);
        let rows = MalformedRows {
            table: Some(table),
            key: key.as_deref(),
            bytes: bytes.as_deref(),
            file,
            pos: *pos,
            row: self.count,
            gtid: None,
            is_snapshot: true,
            time: self.source_block.committed_at,
        };
        rows.reject(&mut records.rejected, message);
        rejected.push(true);
        self.has_malformed = true;
        Ok(())
    }

    /// The number of added rows.
    pub(crate) fn count(&self) -> usize {
        usize::try_from(self.count).unwrap_or(usize::MAX)
    }

    /// The size of all added rows.
    pub(crate) fn bytes(&self) -> usize {
        self.full_bytes + self.page.bytes()
    }

    /// The next full page.
    pub(crate) fn next_full(&mut self) -> Option<RowPage> {
        self.full.pop_front()
    }

    /// The remaining pages.
    pub(crate) fn finish(&mut self) -> VecDeque<RowPage> {
        if self.page.rows() > 0 {
            self.full.push_back(std::mem::take(&mut self.page));
        }
        std::mem::take(&mut self.full)
    }
}

/// The key in a row that has nothing else, as SQL literals.
pub(crate) fn key_literals(description: &TableDescription, row: Row<'_>) -> Result<Vec<String>, Malformed> {
    let (table, timestamps) = (&description.table, description.timestamps());
    let literal = |(index, column): (usize, &usize)| {
        let column = &table.columns[*column];
        let mut literal = String::new();
        select::write_literal(&mut literal, &column.column_type, &read_value(row, index, column, timestamps)?)?;
        Ok(literal)
    };
    table.order.iter().enumerate().map(literal).collect()
}

/// The value of a column at this index of a row.
#[inline]
fn read_value<'a>(
    row: Row<'a>,
    index: usize,
    column: &Column,
    timestamps: TimestampEncoding,
) -> Result<Value<'a>, Malformed> {
    match row.value(index)? {
        Some(bytes) => {
            protocol::read(&column.column_type, timestamps, bytes).map_err(|error| in_column(column, &error))
        }
        None => Ok(Value::Null),
    }
}

#[cold]
fn in_column(column: &Column, error: &Malformed) -> Malformed {
    Malformed(format!("column `{}`: {error}", column.name))
}

/// The columns of a row as the protocol's length-encoded strings; the byte 0xfb stands for null.
fn packed_row(row: Row<'_>) -> Vec<u8> {
    let mut packed = Vec::new();
    for value in row.values() {
        match value {
            Some(bytes) => {
                write_packed_length(&mut packed, bytes.len());
                packed.extend_from_slice(bytes);
            }
            None => packed.push(0xfb),
        }
    }
    packed
}

/// Writes a length-encoded integer.
fn write_packed_length(out: &mut Vec<u8>, length: usize) {
    let bytes = (length as u64).to_le_bytes();
    match length {
        0..=0xfa => out.push(bytes[0]),
        0xfb..=0xffff => {
            out.push(0xfc);
            out.extend_from_slice(&bytes[..2]);
        }
        0x1_0000..=0xff_ffff => {
            out.push(0xfd);
            out.extend_from_slice(&bytes[..3]);
        }
        _ => {
            out.push(0xfe);
            out.extend_from_slice(&bytes);
        }
    }
}
