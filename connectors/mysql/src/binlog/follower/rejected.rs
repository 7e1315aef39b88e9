//! `on_malformed = "dead_letter"`: rows that cannot be decoded are rejected with their bytes and
//! their place in the binlog, and the source continues after them.

use trunkline_connector::{Reason, SourceBatch};

use super::Follower;
use crate::config::OnMalformed;
use crate::decode::Malformed;
use crate::format::table::Table;
use crate::format::transaction_metadata::TransactionMetadata;
use crate::position::{BinlogPosition, PartialTransaction};
use crate::replication::event_frame::Event;

/// Header with the binlog file of rejected bytes.
const BINLOG_FILE: &str = "trunkline.binlog_file";
/// Header with the end of their event in the file.
const BINLOG_POS: &str = "trunkline.binlog_pos";
/// Header with the index of their first row within the event.
const ROW: &str = "trunkline.row";
/// Header with the GTID of their transaction.
const GTID: &str = "trunkline.gtid";

impl Follower {
    /// Whether bytes that cannot be decoded are rejected, and do not stop the source.
    pub(super) fn rejects_malformed(&self) -> bool {
        self.options.on_malformed == OnMalformed::DeadLetter
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
        out.rejected.push_with(Reason::new("mysql.malformed", message), |record| {
            record.value(bytes).timestamp(transaction.map_or(0, |transaction| transaction.committed_at));
            if let Some(table) = table {
                record.ordering_key(table.ordering_key).header_block(&table.tombstone_headers);
            }
            record.header(BINLOG_FILE, Some(file.as_bytes())).header(BINLOG_POS, Some(pos.to_string().as_bytes()));
            record.header(ROW, Some(row.to_string().as_bytes()));
            if let Some(gtid) = transaction.and_then(|transaction| transaction.gtid_text.as_deref()) {
                record.header(GTID, Some(gtid.as_bytes()));
            }
        });
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
