//! Rows events. A batch may end after any row.

use std::sync::Arc;

use trunkline_connector::{Error, Result, SourceBatch};

use super::rejected::remove_records_after;
use super::{Follower, OpenRows};
use crate::binlog::parse::RowsKind;
use crate::binlog::table_cache::{CapturedTable, MappedTable};
use crate::decode::rows::{RowsHeader, read_changed_row, read_row};
use crate::decode::{Bytes, Malformed, Value};
use crate::format::envelope::{Change, MAX_RECORDS_PER_CHANGE, Op, SourceBlock, SourceFields};
use crate::format::table::Table;
use crate::format::transaction_metadata::TransactionMetadata;
use crate::position::PartialTransaction;
use crate::replication::event_frame::Event;
use crate::schema::column_mode::ColumnMode;
use crate::schema::table_name::TableName;
use crate::snapshot::tracker::{SnapshotTracker, TableMode};

/// What happens to the rows of an event.
struct RowsPlan {
    mode: TableMode,
    /// `skipped_operations` has the operation.
    is_skipped: bool,
    /// The number of rows at the start that were processed before a restart; `u64::MAX` for all.
    skip_rows: u64,
    /// Other events may have the position of this one, so its rows are counted.
    shares_position: bool,
}

impl Follower {
    pub(super) fn open_rows(&mut self, event: Event, kind: RowsKind, out: &mut SourceBatch) -> Result<()> {
        let (header, mapped) = match self.read_header(&event, kind) {
            Ok(header) => header,
            Err(error) if self.rejects_malformed() && self.reject_event(&event, &error, out) => return Ok(()),
            Err(error) => return Err(self.malformed("a rows event", &error)),
        };
        if let Some(captured) = mapped.captured.as_ref().filter(|_| !header.is_full) {
            return Err(self.incomplete_image(&captured.table.name));
        }
        let Some(transaction) = &mut self.transaction else {
            return Err(self.stop("mysql.lost_events", "rows outside of a transaction: the connection lost events"));
        };
        let index = transaction.events;
        transaction.events += 1;
        if mapped.captured.is_none() {
            return Ok(());
        }
        let query = transaction.query.clone();
        let (at, source_block) = (header.rows_at, None);
        let open = OpenRows { event, mapped, kind, query, index, at, row: 0, first_row: 0, source_block };
        match transaction.xa.as_ref().and_then(|id| self.prepared_xa.get_mut(id)) {
            Some(prepared) => prepared.rows.push(open),
            None => self.rows.push_back(open),
        }
        Ok(())
    }

    /// Reads the header of a rows event, and finds its table.
    fn read_header(&self, event: &Event, kind: RowsKind) -> Result<(RowsHeader, Arc<MappedTable>), Malformed> {
        let images = if kind.op == Op::Update { 2 } else { 1 };
        let header = RowsHeader::read(event.data(), images, kind.extra)?;
        let Some(mapped) = self.tables.get(header.table).cloned() else {
            return Err(Malformed(format!("no table map has the number {}", header.table)));
        };
        if let Some(CapturedTable { table, storage }) = &mapped.captured
            && header.columns != storage.len()
        {
            let (columns, mapped) = (header.columns, storage.len());
            return Err(Malformed(format!("{}: {columns} columns, {mapped} in its table map", table.name)));
        }
        Ok((header, mapped))
    }

    /// The error of an incomplete row image: the missing values are nowhere else in the binlog.
    fn incomplete_image(&self, name: &TableName) -> Error {
        let fix = self.dialect().set_global("binlog_row_image = 'FULL'");
        let message = format!(
            "a change of {name} lacks columns, because a session set binlog_row_image to MINIMAL or NOBLOB; {fix}, prevent \
             sessions from changing it, and create a source with another name"
        );
        self.stop("mysql.row_image", &message)
    }

    /// Emits rows of the open events, until all are emitted or the batch is full.
    pub(crate) fn emit_rows(&mut self, out: &mut SourceBatch, tracker: &mut SnapshotTracker) -> Result<()> {
        while let Some(mut open) = self.rows.pop_front() {
            match self.emit_event(&mut open, out, tracker) {
                Ok(true) => {}
                Ok(false) => {
                    self.rows.push_front(open);
                    return Ok(());
                }
                Err(error) => return Err(self.malformed("a row", &error)),
            }
        }
        if self.ends_after_rows {
            self.commit(out);
        }
        Ok(())
    }

    /// Emits rows of an event. Returns whether it emitted all of them.
    fn emit_event(
        &mut self,
        open: &mut OpenRows,
        out: &mut SourceBatch,
        tracker: &mut SnapshotTracker,
    ) -> Result<bool, Malformed> {
        let Some(plan) = self.plan_rows(open, tracker) else { return Ok(true) };
        let first = open.row;
        let result = self.emit_planned(open, &plan, out, tracker);
        // After an error too: the batch keeps the rows before it.
        if open.row > first && open.row >= plan.skip_rows {
            let (events, rows) = if result == Ok(true) { (open.index + 1, 0) } else { (open.index, open.row) };
            let counts = self.emitter.transaction.as_mut().map(TransactionMetadata::counts);
            let gtid = self.transaction.as_ref().and_then(|transaction| transaction.gtid_text.clone());
            self.position.partial = Some(PartialTransaction { gtid, events, rows, counts });
        }
        if result == Ok(true)
            && let Some(transaction) = &mut self.transaction
        {
            transaction.numbered = (self.reached.pos, open.first_row + open.row);
        }
        result
    }

    /// Plans the rows of an event; `None` if the source does not capture its table.
    fn plan_rows(&mut self, open: &mut OpenRows, tracker: &SnapshotTracker) -> Option<RowsPlan> {
        let (captured, transaction) = (open.mapped.captured.as_ref()?, self.transaction.as_ref()?);
        let table = &captured.table;
        if let Some(metadata) = &mut self.emitter.transaction {
            metadata.select_table(&table.name);
        }
        if open.source_block.is_none() {
            let fields = SourceFields {
                name: &self.options.name,
                committed_at: transaction.committed_at,
                snapshot: false,
                server_id: open.event.header().server_id(),
                gtid: transaction.gtid_text.as_deref(),
                file: &self.reached.file,
                pos: self.reached.pos,
                thread: transaction.thread,
                query: open.query.as_deref(),
            };
            open.source_block = Some(SourceBlock::new(&fields, table));
            let (pos, rows) = transaction.numbered;
            open.first_row = if pos == self.reached.pos { rows } else { 0 };
        }
        let skip_rows = match &transaction.skip {
            Some(skip) if open.index < skip.events => u64::MAX,
            Some(skip) if open.index == skip.events => skip.rows,
            _ => 0,
        };
        let is_skipped = self.options.skips(open.kind.op);
        let shares_position = self.reached.pos as u32 != open.event.header().log_pos();
        Some(RowsPlan { mode: tracker.mode(&table.name), is_skipped, skip_rows, shares_position })
    }

    fn emit_planned(
        &mut self,
        open: &mut OpenRows,
        plan: &RowsPlan,
        out: &mut SourceBatch,
        tracker: &mut SnapshotTracker,
    ) -> Result<bool, Malformed> {
        let (Some(captured), Some(source_block)) = (&open.mapped.captured, &open.source_block) else { return Ok(true) };
        let table = &captured.table;
        let mut bytes = Bytes::new(&open.event.data()[open.at..]);
        let (mut before, mut after) = (Vec::new(), Vec::new());
        let result = loop {
            if bytes.is_empty() || (plan.skip_rows == u64::MAX && !plan.shares_position) {
                break Ok(true);
            }
            let records = out.records.len() + out.rejected.len();
            if out.is_full() || (records > 0 && records + MAX_RECORDS_PER_CHANGE > out.max_records) {
                break Ok(false);
            }
            let mut rest = bytes;
            let emitted = out.records.len();
            let mut result = read_images(&mut rest, open.kind, captured, &mut before, &mut after);
            let is_read = result.is_ok();
            let is_new = open.row >= plan.skip_rows && plan.mode != TableMode::Suppress;
            let is_dropped = plan.is_skipped
                || plan.mode == TableMode::Unreadable
                || self.options.skip_unchanged && open.kind.op == Op::Update && is_unchanged(table, &before, &after);
            if is_new && is_dropped && result.is_ok() {
                // The key is not tracked, so a row of a chunk remains the only record of it.
                out.dropped += 1;
            } else if is_new {
                let change = Change {
                    op: open.kind.op,
                    before: (open.kind.op != Op::Create).then_some(before.as_slice()),
                    after: (open.kind.op != Op::Delete).then_some(after.as_slice()),
                    row: open.first_row + open.row,
                };
                let on_key = |key: &[u8]| {
                    if plan.mode == TableMode::EmitAndTrack {
                        tracker.key_changed(&table.name, key);
                    }
                };
                result = result.and_then(|()| self.emitter.change(out, table, source_block, change, on_key));
            }
            if let Err(error) = result {
                if !self.rejects_malformed() {
                    break Err(error);
                }
                // Without the end of the row, the rows after it are unknown too.
                rest = if is_read { rest } else { Bytes::new(&[]) };
                remove_records_after(emitted, out);
                if is_new {
                    let row = &bytes.rest()[..bytes.rest().len() - rest.rest().len()];
                    self.reject_rows(out, Some(table), (open.row, row), &error);
                    // Its key is unknown, so a chunk that is being read is read again.
                    tracker.schema_changed();
                }
            }
            if rest.rest().len() == bytes.rest().len() {
                // A table without columns does not exist. Such rows would never end.
                break Err(Malformed::new("a row is empty"));
            }
            bytes = rest;
            open.row += 1;
        };
        open.at = open.event.data().len() - bytes.rest().len();
        result
    }
}

/// Reads the images of the next row.
fn read_images<'a>(
    bytes: &mut Bytes<'a>,
    kind: RowsKind,
    captured: &CapturedTable,
    before: &mut Vec<Value<'a>>,
    after: &mut Vec<Value<'a>>,
) -> Result<(), Malformed> {
    if kind.op != Op::Create {
        read_row(bytes, &captured.storage, before)?;
    }
    if kind.op != Op::Delete {
        match kind.partial {
            true => read_changed_row(bytes, &captured.storage, before, after)?,
            false => read_row(bytes, &captured.storage, after)?,
        }
    }
    Ok(())
}

/// Whether the included columns of a row are unchanged.
fn is_unchanged(table: &Table, before: &[Value<'_>], after: &[Value<'_>]) -> bool {
    let columns = table.columns.iter().zip(before.iter().zip(after));
    // JSON encoded as differences has changed, so it must not equal its before image.
    columns.filter(|(column, _)| column.mode != ColumnMode::Exclude).all(|(_, (before, after))| before == after)
}
