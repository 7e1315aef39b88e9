//! Statements in the binlog: the boundaries of transactions, and schema changes.

use std::sync::Arc;

use trunkline_connector::{Result, SourceBatch, json};

use super::{Follower, PreparedXa};
use crate::binlog::ddl::{self, Definition};
use crate::binlog::parse::{Query, Statement};
use crate::format::envelope::{Change, DefinitionRecord, Op, SourceBlock, SourceFields};
use crate::format::transaction_metadata::TransactionMetadata;
use crate::position::PartialTransaction;
use crate::schema::table_name::TableName;
use crate::snapshot::tracker::{SnapshotTracker, TableMode};

impl Follower {
    pub(super) fn query(
        &mut self,
        query: &Query<'_>,
        out: &mut SourceBatch,
        tracker: &mut SnapshotTracker,
    ) -> Result<()> {
        let statement = Statement::parse(query.text);
        if let Some(transaction) = &mut self.transaction {
            transaction.thread = Some(query.thread);
        }
        let has_begun = self.transaction.as_ref().is_some_and(|transaction| transaction.has_begun);
        if statement == Statement::CreateWithRows || !has_begun && statement.changes_schema() {
            self.emit_definition(query, out);
        }
        match statement {
            Statement::Begin | Statement::CreateWithRows => {
                if let Some(transaction) = &mut self.transaction {
                    transaction.has_begun = true;
                }
            }
            Statement::Commit => self.commit(out),
            Statement::Within => {}
            Statement::XaStart(id) => {
                self.prepared_xa.insert(id.clone(), PreparedXa { gtid: None, rows: Vec::new() });
                if let Some(transaction) = &mut self.transaction {
                    transaction.has_begun = true;
                    transaction.xa = Some(id);
                }
            }
            Statement::XaCommit(id) => {
                let prepared = self.prepared_xa.remove(&id).ok_or_else(|| {
                    let message = "an XA transaction is committed here that was prepared before the source started, so its rows \
                                   are unknown; create a source with another name";
                    self.stop("mysql.xa", message)
                })?;
                self.release(prepared, out);
            }
            Statement::XaRollback(id) => {
                self.prepared_gtids.extend(self.prepared_xa.remove(&id).and_then(|prepared| prepared.gtid));
                self.commit(out);
            }
            Statement::Truncate(database, table) => {
                tracker.schema_changed();
                let database = database.as_deref().unwrap_or(query.database);
                self.truncate(&TableName::new(database, table), out, tracker)?;
                self.commit(out);
            }
            Statement::Create if has_begun => {}
            Statement::Definition
                if has_begun && !tracker.may_affect(&self.options.tables, query.database, query.text) => {}
            Statement::Definition if has_begun => {
                let fix = self.dialect().set_global("binlog_format = 'ROW'");
                let message = format!(
                    "the binlog has a change as a statement instead of rows, because a session set binlog_format; {fix}, and create \
                     a source with another name"
                );
                return Err(self.stop("mysql.statement", &message));
            }
            Statement::Create => self.commit(out),
            Statement::Definition => {
                tracker.schema_changed();
                self.commit(out);
            }
        }
        Ok(())
    }

    /// Emits a schema change, if `ddl` is set and the statement affects a captured database.
    fn emit_definition(&mut self, query: &Query<'_>, out: &mut SourceBatch) {
        let Some((port, schema)) = &self.ddl else { return };
        // The schema change precedes the rows of its transaction. A transaction that was processed in part has emitted it.
        if self.transaction.as_ref().is_some_and(|transaction| transaction.skip.is_some()) {
            return;
        }
        let Some(definition) = Definition::parse(query.text) else { return };
        let status = query.status();
        let includes = |database: &str| self.options.tables.may_include_database(database);
        let Some((database, tables)) = definition.affected(query.database, &status.databases, includes) else { return };
        let charset = status.collation.and_then(|collation| self.server.charsets.by_collation(collation));
        let text = match charset {
            Some(charset) => charset.decode(query.text),
            None => String::from_utf8_lossy(query.text),
        };
        if ddl::may_contain_secret(&text) {
            out.dropped += 1;
            return;
        }
        let mut source_json = b"\"db\":".to_vec();
        json::write_string(&mut source_json, database);
        source_json.extend_from_slice(b",\"table\":");
        match tables.is_empty() {
            true => source_json.extend_from_slice(b"null"),
            false => json::write_string(&mut source_json, &tables.join(",")),
        }
        let record = DefinitionRecord { database, text: &text, port: *port, schema };
        let source_block = SourceBlock::of(&self.statement_source(), &source_json, false);
        self.emitter.definition(out, &source_block, &record);
        if let Some(transaction) = &self.transaction {
            // The rows of CREATE TABLE .. SELECT may follow.
            let counts = self.emitter.transaction.as_mut().map(TransactionMetadata::counts);
            let gtid = transaction.gtid_text.clone();
            self.position.partial = Some(PartialTransaction { gtid, events: 0, rows: 0, counts });
        }
    }

    fn truncate(&mut self, name: &TableName, out: &mut SourceBatch, tracker: &mut SnapshotTracker) -> Result<()> {
        if !self.options.tables.includes(&name.database, &name.table) || tracker.mode(name) == TableMode::Suppress {
            return Ok(());
        }
        // An unknown table did not exist when the source opened, and had no rows since.
        let Some(table) = tracker.known(name) else { return Ok(()) };
        if self.options.skips(Op::Truncate) {
            out.dropped += 1;
            return Ok(());
        }
        let source_block = SourceBlock::new(&self.statement_source(), &table);
        out.schemas.push(Arc::clone(&table.schema));
        let change = Change { op: Op::Truncate, before: None, after: None, row: 0 };
        let emitted = self.emitter.change(out, &table, &source_block, change, |_| {});
        emitted.map_err(|error| self.malformed("a TRUNCATE", &error))
    }

    /// The source of a statement that is not a row change.
    fn statement_source(&self) -> SourceFields<'_> {
        let transaction = self.transaction.as_ref();
        SourceFields {
            name: &self.options.name,
            committed_at: transaction.map_or(0, |transaction| transaction.committed_at),
            snapshot: false,
            server_id: self.server.server_id,
            gtid: transaction.and_then(|transaction| transaction.gtid_text.as_deref()),
            file: &self.reached.file,
            pos: self.reached.pos,
            thread: transaction.and_then(|transaction| transaction.thread),
            query: None,
        }
    }
}
