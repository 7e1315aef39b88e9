//! Markers of transactions, as Debezium writes them: a record when one begins and one when it ends, which tells how many changes of which tables it had; and
//! in each of these changes which one of its transaction it is.
//!
//! A transaction in which nothing is taken has no markers. One whose rows are handed out in parts has its counts in the position, so that they are
//! those of the whole transaction, wherever it was stopped.

use std::collections::BTreeMap;

use arrow::datatypes::{DataType, Field, Schema as ArrowSchema};
use std::sync::Arc;
use trunkline_connector::{Batch, Error, Result, Schema, headers, json};

/// How many changes each table (by its full name) has had in a transaction.
pub(crate) type Counts = BTreeMap<String, u64>;

/// The transaction whose changes are being handed out.
#[derive(Debug)]
pub(crate) struct Marks {
    /// As JSON.
    id: Vec<u8>,
    /// When it was committed, in milliseconds.
    committed_at: i64,
    counts: Counts,
    total: u64,
    /// The table whose rows are handed out, and its count.
    current: (String, u64),
}

impl Marks {
    /// Goes on after what has been counted already.
    pub(crate) fn new(id: &str, committed_at: i64, counts: Counts) -> Self {
        let mut quoted = Vec::new();
        json::write_string(&mut quoted, id);
        Self { id: quoted, committed_at, total: counts.values().sum(), counts, current: (String::new(), 0) }
    }

    /// The changes that follow are of this table.
    pub(crate) fn turn_to(&mut self, table: &str) {
        if self.current.0 != table {
            self.put_back();
            self.current = (table.to_owned(), self.counts.get(table).copied().unwrap_or(0));
        }
    }

    fn put_back(&mut self) {
        if self.current.1 > 0 {
            self.counts.insert(self.current.0.clone(), self.current.1);
        }
    }

    /// Counts a change. The first one of the transaction is preceded by the marker of its beginning.
    pub(crate) fn count(&mut self, markers: &mut Batch, style: &MarkerStyle) {
        if self.total == 0 {
            self.marker(markers, style, "BEGIN", "null,\"data_collections\":null".to_owned());
        }
        self.total += 1;
        self.current.1 += 1;
    }

    /// Appends the block of the change that was counted last.
    pub(crate) fn write_block(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"id\":");
        out.extend_from_slice(&self.id);
        let mut number = itoa::Buffer::new();
        out.extend_from_slice(b",\"total_order\":");
        out.extend_from_slice(number.format(self.total).as_bytes());
        out.extend_from_slice(b",\"data_collection_order\":");
        out.extend_from_slice(number.format(self.current.1).as_bytes());
        out.push(b'}');
    }

    /// What has been counted.
    pub(crate) fn counts(&mut self) -> Counts {
        self.put_back();
        self.counts.clone()
    }

    /// The marker of the end, of a transaction that had changes.
    pub(crate) fn end(mut self, markers: &mut Batch, style: &MarkerStyle) {
        self.put_back();
        if self.total == 0 {
            return;
        }
        let mut rest = format!("{},\"data_collections\":", self.total).into_bytes();
        let mut separator = b'[';
        for (table, count) in &self.counts {
            rest.push(separator);
            separator = b',';
            rest.extend_from_slice(b"{\"data_collection\":");
            json::write_string(&mut rest, table);
            rest.extend_from_slice(format!(",\"event_count\":{count}}}").as_bytes());
        }
        rest.push(b']');
        self.marker(markers, style, "END", String::from_utf8_lossy(&rest).into_owned());
    }

    fn marker(&self, markers: &mut Batch, style: &MarkerStyle, status: &str, counts: String) {
        let id = String::from_utf8_lossy(&self.id);
        let ts_ms = self.committed_at;
        let mut record = markers.record();
        record.key(format!("{{\"id\":{id}}}").as_bytes());
        let value = format!("{{\"status\":\"{status}\",\"id\":{id},\"ts_ms\":{ts_ms},\"event_count\":{counts}}}");
        record.value(value.as_bytes()).timestamp(ts_ms).port(style.port);
        record.header(headers::SCHEMA, Some(style.schema.as_bytes()));
        record.finish();
    }
}

/// What all markers have in common.
#[derive(Debug)]
pub(crate) struct MarkerStyle {
    /// The output port that they leave by.
    pub(crate) port: u16,
    /// The id of their schema.
    pub(crate) schema: String,
}

/// The schema of markers.
pub(crate) fn schema() -> Result<Schema> {
    let collection =
        vec![Field::new("data_collection", DataType::Utf8, false), Field::new("event_count", DataType::Int64, false)];
    let collections = Field::new("item", DataType::Struct(collection.into()), false);
    let fields = vec![
        Field::new("status", DataType::Utf8, false),
        Field::new("id", DataType::Utf8, false),
        Field::new("ts_ms", DataType::Int64, false),
        Field::new("event_count", DataType::Int64, true),
        Field::new("data_collections", DataType::List(Arc::new(collections)), true),
    ];
    Schema::new(Arc::new(ArrowSchema::new(fields))).map_err(|error| Error::internal("mysql.schema", error.to_string()))
}

/// The block of a change, as its schema has it.
pub(crate) fn block_field() -> Field {
    let block = vec![
        Field::new("id", DataType::Utf8, false),
        Field::new("total_order", DataType::Int64, false),
        Field::new("data_collection_order", DataType::Int64, false),
    ];
    Field::new("transaction", DataType::Struct(block.into()), true)
}
