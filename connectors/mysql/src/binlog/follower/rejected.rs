//! `on_malformed = "dead_letter"` for rows of the binlog: see [`MalformedRows`].

use trunkline_connector::SourceBatch;

use super::Follower;
use crate::decode::Malformed;
use crate::format::rejected::MalformedRows;
use crate::format::table::Table;
use crate::format::transaction_metadata::TransactionMetadata;
use crate::position::{BinlogPosition, PartialTransaction};
use crate::replication::event_frame::Event;

impl Follower {
    /// Whether bytes that cannot be decoded are rejected, and do not stop the source.
    pub(super) fn rejects_malformed(&self) -> bool {
        self.options.rejects_malformed()
    }

    /// Rejects bytes of a rows event: a row, or the rows from one on whose ends are unknown.
    pub(super) fn reject_rows(
        &self,
        out: &mut SourceBatch,
        table: Option<&Table>,
        (row, bytes): (u64, &[u8]),
        error: &Malformed,
    ) {
        let BinlogPosition { file, pos } = &self.reached;
        let name = table.map_or_else(|| "an unknown table".to_owned(), |table| table.name.to_string());
        let message = format!("row {row} of an event of {name} at {file}:{pos} cannot be decoded: {error}");
        let transaction = self.transaction.as_ref();
        let has_hidden = table.map_or(!self.options.columns.is_empty(), Table::has_hidden_columns);
        let rows = MalformedRows {
            table,
            key: None,
            bytes: (!has_hidden).then_some(bytes),
            file,
            pos: *pos,
            row,
            gtid: transaction.and_then(|transaction| transaction.gtid_text.as_deref()),
            is_snapshot: false,
            time: transaction.map_or(0, |transaction| transaction.committed_at),
        };
        rows.reject(&mut out.rejected, message);
    }

    /// Rejects a rows event whose table or columns are unknown. Returns whether it could: the rows
    /// of a prepared XA transaction have no place before its outcome.
    pub(super) fn reject_event(&mut self, event: &Event, error: &Malformed, out: &mut SourceBatch) -> bool {
        let Some(transaction) = self.transaction.as_mut().filter(|transaction| transaction.xa.is_none()) else {
            return false;
        };
        let index = transaction.events;
        transaction.events += 1;
        if transaction.skip.as_ref().is_some_and(|skip| index < skip.events) {
            return true;
        }
        let gtid = transaction.gtid_text.clone();
        self.reject_rows(out, None, (0, event.data()), error);
        let counts = self.emitter.transaction.as_mut().map(TransactionMetadata::counts);
        self.position.partial = Some(PartialTransaction { gtid, events: index + 1, rows: 0, counts });
        true
    }
}

/// Removes the records after the first `count`: a row is rejected as a whole.
pub(super) fn remove_records_after(count: usize, out: &mut SourceBatch) {
    let mut entries = out.records.take_entries();
    entries.truncate(count);
    out.records.set_entries(entries);
}
