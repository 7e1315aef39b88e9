//! JSON rows to columns in one pass, without the tape of Arrow's decoder.
//!
//! [`DirectDecoder`] reads the usual form of each type, which Trunkline's own sources write. It
//! refuses a chunk with any other value, and Arrow's decoder then decides about it: what a value
//! means, and which error it has, is defined in one place.

mod builder;
mod scan;

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, StructArray};
use arrow::buffer::NullBuffer;
use arrow::datatypes::{Fields, SchemaRef};
use trunkline_connector::json::plain_len;

use self::builder::Column;
use self::scan::{Refused, Scanner};
use super::layout::ColumnLayout;

/// Names of objects with more columns are looked up in a map.
const SEARCHED_NAMES: usize = 16;

/// Decodes rows of one layout.
pub(super) struct DirectDecoder {
    schema: SchemaRef,
    root: Object,
    scratch: Vec<u8>,
}

impl DirectDecoder {
    /// A decoder for the layout; `None` if a column has a type that this module does not read.
    pub(super) fn new(layout: &ColumnLayout) -> Option<Self> {
        let root = Object::new(layout.fields())?;
        Some(Self { schema: Arc::clone(&layout.schema), root, scratch: Vec::new() })
    }

    /// The rows of a chunk; `None` if a value has an unusual form.
    pub(super) fn decode(&mut self, records: &[&[u8]]) -> Option<RecordBatch> {
        self.root.reserve(records.len(), records.iter().map(|record| record.len()).sum());
        let rows = records.iter().try_for_each(|record| self.row(record));
        // Also after a refusal: the next chunk starts with empty columns.
        let (columns, _) = self.root.finish();
        rows.ok()?;
        RecordBatch::try_new(Arc::clone(&self.schema), columns).ok()
    }

    fn row(&mut self, record: &[u8]) -> Result<(), Refused> {
        let mut scanner = Scanner::new(std::str::from_utf8(record).map_err(|_| Refused)?);
        self.root.read(&mut scanner, &mut self.scratch)?;
        scanner.end()
    }
}

/// The columns of an object's members.
pub(super) struct Object {
    fields: Fields,
    columns: Vec<Column>,
    /// `,"name":` of each column; `None` if JSON escapes the name.
    names: Vec<Option<Box<[u8]>>>,
    /// By name, if there are many.
    by_name: Option<std::collections::HashMap<Box<str>, usize>>,
    /// The number of the last object that had the member.
    seen: Vec<u64>,
    objects: u64,
    validity: Vec<bool>,
    nulls: usize,
}

impl Object {
    fn new(fields: &Fields) -> Option<Self> {
        let columns: Vec<Column> = fields.iter().map(|field| Column::new(field)).collect::<Option<_>>()?;
        let by_name = (fields.len() > SEARCHED_NAMES)
            .then(|| fields.iter().enumerate().map(|(index, field)| (field.name().as_str().into(), index)).collect());
        let seen = vec![0; columns.len()];
        let names = fields.iter().map(|field| member_start(field.name())).collect();
        let fields = fields.clone();
        Some(Self { fields, columns, names, by_name, seen, objects: 0, validity: Vec::new(), nulls: 0 })
    }

    /// Makes room for the objects of a chunk with this number of bytes, so that the columns do not
    /// grow step by step.
    fn reserve(&mut self, objects: usize, chunk_bytes: usize) {
        self.validity.reserve(objects);
        self.columns.iter_mut().for_each(|column| column.reserve(objects, chunk_bytes));
    }

    /// Reads an object and appends it.
    fn read(&mut self, scanner: &mut Scanner<'_>, scratch: &mut Vec<u8>) -> Result<(), Refused> {
        self.objects += 1;
        self.validity.push(true);
        let mut expected = 0;
        let mut members = 0;
        scanner.open_object()?;
        loop {
            // Sources write members in the order of their columns.
            let index = match self.names.get(expected) {
                Some(Some(name)) if scanner.known_member(name) => expected,
                _ => match scanner.member()? {
                    Some(name) => self.index_of(name).ok_or(Refused)?,
                    None => break,
                },
            };
            expected = index + 1;
            members += 1;
            // Arrow's decoder decides which of two members with one name counts.
            if std::mem::replace(&mut self.seen[index], self.objects) == self.objects {
                return Err(Refused);
            }
            if scanner.null() {
                self.append_null(index)?;
            } else {
                self.columns[index].read(scanner, scratch)?;
            }
        }
        if members < self.columns.len() {
            for index in 0..self.columns.len() {
                if self.seen[index] != self.objects {
                    self.append_null(index)?;
                }
            }
        }
        Ok(())
    }

    fn index_of(&self, name: &str) -> Option<usize> {
        match &self.by_name {
            Some(by_name) => by_name.get(name).copied(),
            None => self.fields.iter().position(|field| field.name() == name),
        }
    }

    fn append_null(&mut self, index: usize) -> Result<(), Refused> {
        if !self.fields[index].is_nullable() {
            return Err(Refused);
        }
        self.columns[index].append_null();
        Ok(())
    }

    /// Appends a null object. Its members are null, also those that are required in an object.
    fn append_null_object(&mut self) {
        self.validity.push(false);
        self.nulls += 1;
        self.columns.iter_mut().for_each(Column::append_null);
    }

    /// The columns of the members, and which objects are null.
    fn finish(&mut self) -> (Vec<ArrayRef>, Option<NullBuffer>) {
        let columns = self.columns.iter_mut().map(Column::finish).collect();
        let nulls = (self.nulls > 0).then(|| NullBuffer::from(self.validity.as_slice()));
        self.validity.clear();
        self.nulls = 0;
        (columns, nulls)
    }

    fn finish_struct(&mut self) -> ArrayRef {
        let rows = self.validity.len();
        let (columns, nulls) = self.finish();
        if columns.is_empty() {
            return Arc::new(StructArray::new_empty_fields(rows, nulls));
        }
        match StructArray::try_new(self.fields.clone(), columns, nulls) {
            Ok(array) => Arc::new(array),
            // The columns of a refused chunk have unequal lengths. The chunk is discarded.
            Err(_) => Arc::new(StructArray::new_null(self.fields.clone(), 0)),
        }
    }
}

/// `,"name":`, unless JSON escapes the name.
fn member_start(name: &str) -> Option<Box<[u8]>> {
    (plain_len(name.as_bytes()) == name.len()).then(|| format!(",\"{name}\":").into_bytes().into())
}

#[cfg(test)]
mod tests;
