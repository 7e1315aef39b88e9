//! Rows events, and the rows of those that are open: a batch may end after any of them.

use trunkline_connector::{Result, SourceBatch};

use super::{Follower, OpenRows};
use crate::binlog::parse::RowsKind;
use crate::binlog::table_cache::Taken;
use crate::decode::rows::{RowsHead, read_changed_row, read_row};
use crate::decode::{Bytes, Malformed, Value};
use crate::format::envelope::{Change, MOST_RECORDS, Op, Origin, OriginParts};
use crate::format::table::Table;
use crate::format::transaction_metadata::Marks;
use crate::position::Part;
use crate::replication::event_frame::Event;
use crate::schema::column_filter::Shown;
use crate::snapshot::tracker::{Progress, Watch};

impl Follower {
    pub(super) fn open_rows(&mut self, event: Event, kind: RowsKind) -> Result<()> {
        let images = if kind.op == Op::Update { 2 } else { 1 };
        let head = RowsHead::read(event.data(), images, kind.extra);
        let head = head.map_err(|error| self.malformed("a rows event", &error))?;
        let Some(mapped) = self.tables.get(head.table_id).cloned() else {
            let error = Malformed(format!("no table map for the number {}", head.table_id));
            return Err(self.malformed("a rows event", &error));
        };
        if let Some(taken) = &mapped.taken {
            self.check(&head, taken)?;
        }
        let Some(transaction) = &mut self.transaction else {
            return Err(self.stop("mysql.lost_events", "rows outside of a transaction"));
        };
        let index = transaction.events;
        transaction.events += 1;
        if mapped.taken.is_none() {
            return Ok(());
        }
        let query = transaction.query.clone();
        let open = OpenRows { event, mapped, kind, query, index, at: head.rows_at, row: 0, origin: None };
        match transaction.xa.as_ref().and_then(|id| self.held.get_mut(id)) {
            Some(held) => held.rows.push(open),
            None => self.rows.push_back(open),
        }
        Ok(())
    }

    /// Refuses images that do not hold the whole row: what is missing in them is nowhere else in the binlog.
    fn check(&self, head: &RowsHead, taken: &Taken) -> Result<()> {
        let name = taken.table.full_name();
        if head.columns != taken.storage.len() {
            let error =
                Malformed(format!("{name}: {} columns, {} in its table map", head.columns, taken.storage.len()));
            return Err(self.malformed("a rows event", &error));
        }
        if !head.full {
            let message = format!(
                "a change of {name} does not hold the whole row (some session set binlog_row_image to MINIMAL or NOBLOB). SET PERSIST binlog_row_image = \
                 'FULL', keep sessions from changing it, and begin anew with a source of another name"
            );
            return Err(self.stop("mysql.row_image", &message));
        }
        Ok(())
    }

    /// Hands out rows of the open events until there are none or the batch is full.
    pub(crate) fn hand_out(&mut self, out: &mut SourceBatch, progress: &mut Progress) -> Result<()> {
        while let Some(mut open) = self.rows.pop_front() {
            let result = self.hand_out_of(&mut open, out, progress);
            match result {
                Ok(true) => {}
                Ok(false) => {
                    self.rows.push_front(open);
                    return Ok(());
                }
                Err(error) => return Err(self.malformed("a row", &error)),
            }
        }
        if self.ends {
            self.commit(out);
        }
        Ok(())
    }

    /// Hands out rows of one event; says whether it was all of them.
    fn hand_out_of(
        &mut self,
        open: &mut OpenRows,
        out: &mut SourceBatch,
        progress: &mut Progress,
    ) -> Result<bool, Malformed> {
        let (Some(taken), Some(transaction)) = (&open.mapped.taken, &self.transaction) else { return Ok(true) };
        let table = &taken.table;
        let full_name = table.full_name();
        let watch = progress.watch(&full_name);
        if let Some(marks) = &mut self.emitter.marks {
            marks.turn_to(&full_name);
        }
        let skipped = self.options.skips(open.kind.op);
        let pass_over = match &transaction.skip {
            Some(part) if open.index < part.events => u64::MAX,
            Some(part) if open.index == part.events => part.rows,
            _ => 0,
        };
        if open.origin.is_none() {
            let parts = OriginParts {
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
            open.origin = Some(Origin::new(&parts, table));
        }
        let Some(origin) = &open.origin else { return Ok(true) };
        let mut bytes = Bytes::new(&open.event.data()[open.at..]);
        let (mut before, mut after) = (Vec::new(), Vec::new());
        let first = open.row;
        let whole = loop {
            if bytes.is_empty() || pass_over == u64::MAX {
                break Ok(true);
            }
            let records = out.records.len() + out.rejected.len();
            if out.is_full() || (records > 0 && records + MOST_RECORDS > out.max_records) {
                break Ok(false);
            }
            let mut rest = bytes;
            let mut read = Ok(());
            if open.kind.op != Op::Create {
                read = read_row(&mut rest, &taken.storage, &mut before);
            }
            if open.kind.op != Op::Delete {
                read = read.and_then(|()| {
                    if open.kind.partial {
                        read_changed_row(&mut rest, &taken.storage, &before, &mut after)
                    } else {
                        read_row(&mut rest, &taken.storage, &mut after)
                    }
                });
            }
            let left_out = skipped
                || self.options.skip_unchanged && open.kind.op == Op::Update && is_unchanged(table, &before, &after);
            if open.row >= pass_over && watch != Watch::Suppress && left_out && read.is_ok() {
                // Its key is not noted either: the row of a chunk is then all that comes of it.
                out.dropped += 1;
            } else if open.row >= pass_over && watch != Watch::Suppress {
                let change = Change {
                    op: open.kind.op,
                    before: (open.kind.op != Op::Create).then_some(before.as_slice()),
                    after: (open.kind.op != Op::Delete).then_some(after.as_slice()),
                    row: open.row,
                };
                let touched = |key: &[u8]| {
                    if watch == Watch::Record {
                        progress.touched(key);
                    }
                };
                read = read.and_then(|()| self.emitter.change(out, table, origin, change, touched));
            }
            if let Err(error) = read {
                break Err(error);
            }
            if rest.rest().len() == bytes.rest().len() {
                // Of a table without columns, which does not exist: there would be no end of them.
                break Err(Malformed::new("a row of no bytes"));
            }
            bytes = rest;
            open.row += 1;
        };
        open.at = open.event.data().len() - bytes.rest().len();
        // After an error too: what was handed out before it is kept.
        if open.row > first && open.row >= pass_over {
            let (events, rows) = if whole == Ok(true) { (open.index + 1, 0) } else { (open.index, open.row) };
            let counts = self.emitter.marks.as_mut().map(Marks::counts);
            self.position.part = Some(Part { gtid: transaction.gtid_text.clone(), events, rows, counts });
        }
        whole
    }
}

/// Is nothing that is written of a row different?
fn is_unchanged(table: &Table, before: &[Value<'_>], after: &[Value<'_>]) -> bool {
    let columns = table.columns.iter().zip(before.iter().zip(after));
    // JSON given as differences has some: it is not the same as what it is made of.
    columns.filter(|(column, _)| column.shown != Shown::LeftOut).all(|(_, (before, after))| before == after)
}
