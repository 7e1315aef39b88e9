//! Rows that were read, as records, with their keys.

use std::collections::{HashSet, VecDeque};

use sqlx::Row as _;
use sqlx::mysql::MySqlRow;
use trunkline_connector::SourceBatch;

use super::select;
use crate::decode::{Malformed, Value, protocol};
use crate::format::envelope::{Change, Emitter, Op, Origin};
use crate::format::table::Table;

/// Records of rows, in order: what is handed out in one piece, if it can be.
#[derive(Default)]
pub(crate) struct Portion {
    records: SourceBatch,
    /// Per row whether it was set aside.
    rejected: Vec<bool>,
    keys: Keys,
    /// Rows handed out or passed over, and how many of them were records and rejections.
    row: usize,
    record: usize,
    rejection: usize,
}

impl Portion {
    /// Rows, set aside or not.
    pub(crate) fn rows(&self) -> usize {
        self.rejected.len()
    }

    /// Bytes of all records.
    pub(crate) fn bytes(&self) -> usize {
        self.records.bytes()
    }

    /// The key of the last row that was handed out; nothing while none was.
    pub(crate) fn reached(&self) -> Option<Vec<String>> {
        Some(self.keys.of(self.row.checked_sub(1)?))
    }

    /// The key of the last row.
    pub(crate) fn last(&self) -> Option<Vec<String>> {
        Some(self.keys.of(self.rows().checked_sub(1)?))
    }

    /// Hands out rows but those with a key that was touched; says whether it was all of them. If not, the batch is full, or so nearly that
    /// the next one had better take the rest in one piece.
    pub(crate) fn hand_out(&mut self, out: &mut SourceBatch, touched: &HashSet<Vec<u8>>) -> bool {
        let fits = self.rows() <= out.max_records;
        if self.row == 0 && fits && touched.is_empty() && self.records.rejected.is_empty() {
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
            let aside = &self.records.rejected;
            let record = match is_rejected {
                true => aside.records.get(self.rejection),
                false => self.records.records.get(self.record),
            };
            if record.key().is_none_or(|key| !touched.contains(key)) {
                match is_rejected {
                    true => out.rejected.push(record, aside.reasons[self.rejection].clone()),
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

/// Keys of rows as SQL literals: all in one text, because there are as many as rows and hardly any is asked for.
#[derive(Default)]
pub(crate) struct Keys {
    text: String,
    /// Where each literal ends.
    ends: Vec<usize>,
    columns: usize,
}

impl Keys {
    fn push(&mut self, table: &Table, row: &[Value<'_>]) -> Result<(), Malformed> {
        self.columns = table.key.len();
        for index in &table.key {
            let value = row.get(*index).ok_or_else(|| Malformed::new("a row without its key"))?;
            select::write_literal(&mut self.text, &table.columns[*index].kind, value)?;
            self.ends.push(self.text.len());
        }
        Ok(())
    }

    /// The key of a row; nothing if it has none.
    pub(crate) fn of(&self, row: usize) -> Vec<String> {
        let literal = |index: usize| {
            let begin = index.checked_sub(1).map_or(0, |before| self.ends[before]);
            self.text[begin..self.ends[index]].to_owned()
        };
        (row * self.columns..(row + 1) * self.columns).map(literal).collect()
    }
}

/// Makes records of rows.
pub(crate) struct Maker {
    emitter: Emitter,
    origin: Origin,
    /// A portion is full at so many bytes, or so many rows.
    most: (usize, usize),
    full: VecDeque<Portion>,
    portion: Portion,
    count: u64,
}

impl Maker {
    /// Makes portions of so many bytes, or so many rows.
    pub(crate) fn new(emitter: Emitter, origin: Origin, most: (usize, usize)) -> Self {
        Self { emitter, origin, most, full: VecDeque::new(), portion: Portion::default(), count: 0 }
    }

    /// Adds a row.
    pub(crate) fn add(&mut self, table: &Table, row: &MySqlRow) -> Result<(), Malformed> {
        let mut values = Vec::with_capacity(table.columns.len());
        for (index, column) in table.columns.iter().enumerate() {
            let raw: Result<Option<&[u8]>, _> = raw_bytes(row, index);
            values.push(match raw.map_err(|error| Malformed(error.to_string()))? {
                Some(bytes) => protocol::read(&column.kind, bytes)
                    .map_err(|error| Malformed(format!("column `{}`: {error}", column.name)))?,
                None => Value::Null,
            });
        }
        let Portion { records, rejected, keys, .. } = &mut self.portion;
        let before = records.rejected.len();
        let change = Change { op: Op::Read, before: None, after: Some(&values), row: self.count };
        self.emitter.change(records, table, &self.origin, change, |_| {})?;
        rejected.push(records.rejected.len() > before);
        keys.push(table, &values)?;
        self.count += 1;
        if records.bytes() >= self.most.0 || rejected.len() >= self.most.1 {
            self.full.push_back(std::mem::take(&mut self.portion));
        }
        Ok(())
    }

    /// Rows that were added.
    pub(crate) fn count(&self) -> usize {
        usize::try_from(self.count).unwrap_or(usize::MAX)
    }

    /// A portion that is full.
    pub(crate) fn next_full(&mut self) -> Option<Portion> {
        self.full.pop_front()
    }

    /// Everything that is left.
    pub(crate) fn finish(&mut self) -> VecDeque<Portion> {
        if self.portion.rows() > 0 {
            self.full.push_back(std::mem::take(&mut self.portion));
        }
        std::mem::take(&mut self.full)
    }
}

/// The bytes of a value as they came. sqlx takes a zero date for null; its bytes are there nevertheless.
fn raw_bytes(row: &MySqlRow, index: usize) -> Result<Option<&[u8]>, sqlx::Error> {
    let raw = row.try_get_raw(index)?;
    Ok(<&[u8] as sqlx::Decode<'_, sqlx::MySql>>::decode(raw).ok())
}
