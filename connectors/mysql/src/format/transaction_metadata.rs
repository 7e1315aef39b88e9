//! Transaction metadata in Debezium's format: a `BEGIN` and an `END` record per transaction, the
//! latter with the number of changes per table, and in each change its position within the
//! transaction.
//!
//! A transaction without a captured change has no records. The position of the source includes the
//! counts of a transaction that was emitted in part, so that the counts cover the whole transaction
//! after a restart.

use std::collections::BTreeMap;

use trunkline_connector::{Batch, headers, json};

use crate::schema::table_name::TableName;

/// The number of changes per table ([key](TableName::key)) in a transaction.
pub(crate) type Counts = BTreeMap<String, u64>;

/// What all transaction records have in common.
#[derive(Debug)]
pub(crate) struct MarkerFormat {
    /// The output port.
    pub(crate) port: u16,
    /// The id of the schema.
    pub(crate) schema: String,
}

/// The metadata of the transaction whose changes are being emitted.
#[derive(Debug)]
pub(crate) struct TransactionMetadata {
    /// As JSON.
    id: Vec<u8>,
    /// Milliseconds since the Unix epoch.
    committed_at: i64,
    counts: Counts,
    total: u64,
    /// The table whose changes are being emitted, and its count.
    current: (Option<TableName>, u64),
}

impl TransactionMetadata {
    /// Continues after the changes in `counts`, which were emitted before a restart.
    pub(crate) fn new(id: &str, committed_at: i64, counts: Counts) -> Self {
        let mut quoted = Vec::new();
        json::write_string(&mut quoted, id);
        Self { id: quoted, committed_at, total: counts.values().sum(), counts, current: (None, 0) }
    }

    /// Selects the table of the changes that follow.
    pub(crate) fn select_table(&mut self, table: &TableName) {
        if self.current.0.as_ref() != Some(table) {
            self.store_current();
            self.current = (Some(table.clone()), self.counts.get(&table.key()).copied().unwrap_or(0));
        }
    }

    fn store_current(&mut self) {
        if let (Some(table), count @ 1..) = &self.current {
            self.counts.insert(table.key(), *count);
        }
    }

    /// Counts a change. The first change writes the `BEGIN` record.
    pub(crate) fn count(&mut self, markers: &mut Batch, format: &MarkerFormat) {
        if self.total == 0 {
            self.write_marker(markers, format, "BEGIN", "null,\"data_collections\":null".to_owned());
        }
        self.total += 1;
        self.current.1 += 1;
    }

    /// Appends the `transaction` block of the last counted change.
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

    /// The counts so far.
    pub(crate) fn counts(&mut self) -> Counts {
        self.store_current();
        self.counts.clone()
    }

    /// Writes the `END` record, unless the transaction had no changes.
    pub(crate) fn end(mut self, markers: &mut Batch, format: &MarkerFormat) {
        self.store_current();
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
        self.write_marker(markers, format, "END", String::from_utf8_lossy(&rest).into_owned());
    }

    fn write_marker(&self, markers: &mut Batch, format: &MarkerFormat, status: &str, counts: String) {
        let id = String::from_utf8_lossy(&self.id);
        let ts_ms = self.committed_at;
        let mut record = markers.record();
        record.key(format!("{{\"id\":{id}}}").as_bytes());
        let value = format!("{{\"status\":\"{status}\",\"id\":{id},\"ts_ms\":{ts_ms},\"event_count\":{counts}}}");
        record.value(value.as_bytes()).timestamp(ts_ms).port(format.port);
        record.header(headers::SCHEMA, Some(format.schema.as_bytes()));
        record.finish();
    }
}
