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
        Some(Self { fields: fields.clone(), columns, by_name, seen, objects: 0, validity: Vec::new(), nulls: 0 })
    }

    /// Reads an object and appends it.
    fn read(&mut self, scanner: &mut Scanner<'_>, scratch: &mut Vec<u8>) -> Result<(), Refused> {
        self.objects += 1;
        self.validity.push(true);
        let mut expected = 0;
        let mut members = 0;
        scanner.open_object()?;
        while let Some(name) = scanner.member()? {
            // Sources write members in the order of their columns.
            let index = match self.fields.get(expected) {
                Some(field) if field.name() == name => expected,
                _ => self.index_of(name).ok_or(Refused)?,
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

#[cfg(test)]
mod tests;
