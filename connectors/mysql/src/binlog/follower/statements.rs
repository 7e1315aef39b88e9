//! Statements in the binlog: the boundaries of transactions, and schema changes.

use std::sync::Arc;

use trunkline_connector::{Result, SourceBatch, json};

use super::{Follower, PreparedXa};
use crate::binlog::ddl::{self, Definition};
use crate::binlog::effects::{Effect, effects_of};
use crate::binlog::parse::{Query, Statement};
use crate::format::envelope::{Change, DefinitionRecord, Op, SourceBlock, SourceFields};
use crate::format::transaction_metadata::TransactionMetadata;
use crate::position::{BinlogPosition, PartialTransaction};
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
            self.apply_effects(query, out, tracker)?;
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
                if is_about_privileges(query.text) {
                    tracker.privileges_changed();
                }
                self.commit(out);
            }
        }
        Ok(())
    }

    /// Applies the effects of a schema change on the set of tables, and warns of rows that vanish
    /// without a delete event.
    fn apply_effects(&self, query: &Query<'_>, out: &mut SourceBatch, tracker: &mut SnapshotTracker) -> Result<()> {
        let includes = |name: &TableName| self.options.tables.includes(&name.database, &name.table);
        let effects = effects_of(query.text, query.database);
        if effects.iter().any(|effect| !matches!(effect, Effect::Created(_) | Effect::MaybeCreated(_))) {
            tracker.schema_changed();
        }
        for effect in effects {
            match effect {
                Effect::Created(name) if includes(&name) => tracker.table_created(&name, out)?,
                Effect::MaybeCreated(name) if includes(&name) => tracker.table_appeared(&name),
                Effect::Replaced(name) if includes(&name) => {
                    if tracker.known(&name).is_some() {
                        self.warn_removed_rows(&name, "CREATE OR REPLACE TABLE");
                    }
                    tracker.table_created(&name, out)?;
                }
                Effect::Dropped(name) if includes(&name) => {
                    if tracker.known(&name).is_some() {
                        self.warn_removed_rows(&name, "DROP TABLE");
                    }
                    tracker.table_dropped(&name, out);
                }
                Effect::DatabaseDropped(database) => {
                    for name in tracker.tables_of(&database) {
                        self.warn_removed_rows(&name, "DROP DATABASE");
                        tracker.table_dropped(&name, out);
                    }
                }
                Effect::RowsRemoved(name, clause) if tracker.known(&name).is_some() => {
                    self.warn_removed_rows(&name, clause);
                }
                Effect::Renamed(pairs) => self.apply_renames(&pairs, out, tracker),
                _ => {}
            }
        }
        Ok(())
    }

    /// Applies the renames of a statement. A table that takes the name of another one in the same
    /// statement is the other one's successor (an online schema change): it keeps the position.
    fn apply_renames(&self, pairs: &[(TableName, TableName)], out: &mut SourceBatch, tracker: &mut SnapshotTracker) {
        let includes = |name: &TableName| self.options.tables.includes(&name.database, &name.table);
        for (from, _) in pairs {
            let is_replaced = pairs.iter().any(|(_, to)| to == from);
            if is_replaced && tracker.known(from).is_some() {
                self.warn_removed_rows(from, "RENAME TABLE, which replaced the table by another one,");
            } else if includes(from) {
                if tracker.known(from).is_some() {
                    self.warn_removed_rows(from, "RENAME TABLE");
                }
                tracker.table_dropped(from, out);
            }
        }
        for (_, to) in pairs {
            if includes(to) {
                tracker.table_appeared(to);
            }
        }
    }

    /// Warns that a statement removed rows without delete events.
    fn warn_removed_rows(&self, name: &TableName, statement: &str) {
        let BinlogPosition { file, pos } = &self.reached;
        tracing::warn!(
            source = self.options.name,
            code = "mysql.rows_removed",
            "{statement} at {file}:{pos} removed or replaced rows of {name} without delete events, so its topic still has records of \
             rows that no longer exist; to delete them: `trunkline snapshot --with-deletes --tables {name}`"
        );
    }

    /// Emits a schema change, if `ddl` is set and the statement affects a captured database.
    fn emit_definition(&mut self, query: &Query<'_>, out: &mut SourceBatch) {
        let Some((port, schema)) = &self.ddl else { return };
        // The schema change precedes the rows of its transaction. A transaction that was processed
        // in part has emitted it.
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

/// Whether a statement may change which tables the user may read.
fn is_about_privileges(text: &[u8]) -> bool {
    let start = String::from_utf8_lossy(text.get(..5).unwrap_or(text)).to_ascii_uppercase();
    ["GRANT", "SET D"].contains(&start.as_str())
}
