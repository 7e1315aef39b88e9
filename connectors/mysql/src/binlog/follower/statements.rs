//! Statements in the binlog: where transactions begin and end, and what they define.

use std::sync::Arc;

use trunkline_connector::{Result, SourceBatch, json};

use super::{Follower, Held};
use crate::binlog::ddl::{self, Definition};
use crate::binlog::parse::{Query, Statement};
use crate::format::envelope::{Change, DefinitionRecord, Op, Origin, OriginParts};
use crate::format::transaction_metadata::Marks;
use crate::position::Part;
use crate::snapshot::tracker::{Progress, Watch};

impl Follower {
    pub(super) fn query(&mut self, query: &Query<'_>, out: &mut SourceBatch, progress: &mut Progress) -> Result<()> {
        let statement = Statement::of(query.text);
        if let Some(transaction) = &mut self.transaction {
            transaction.thread = Some(query.thread);
        }
        let begun = self.transaction.as_ref().is_some_and(|transaction| transaction.begun);
        if statement == Statement::CreateWithRows || !begun && statement.defines() {
            self.defined(query, out);
        }
        match statement {
            Statement::Begin | Statement::CreateWithRows => {
                if let Some(transaction) = &mut self.transaction {
                    transaction.begun = true;
                }
            }
            Statement::Commit => self.commit(out),
            Statement::Within => {}
            Statement::XaStart(id) => {
                self.held.insert(id.clone(), Held { gtid: None, rows: Vec::new() });
                if let Some(transaction) = &mut self.transaction {
                    transaction.begun = true;
                    transaction.xa = Some(id);
                }
            }
            Statement::XaCommit(id) => {
                let held = self.held.remove(&id).ok_or_else(|| {
                    self.stop(
                        "mysql.xa",
                        "a distributed transaction is committed that was prepared before this source began: its rows are not known. Begin anew with a \
                         source of another name",
                    )
                })?;
                self.release(held, out);
            }
            Statement::XaRollback(id) => {
                self.also_done.extend(self.held.remove(&id).and_then(|held| held.gtid));
                self.commit(out);
            }
            Statement::Truncate(database, table) => {
                progress.definition_changed();
                let database = database.as_deref().unwrap_or(query.database);
                self.truncated(database, &table, out, progress)?;
                self.commit(out);
            }
            Statement::Create if begun => {}
            Statement::Definition if begun && !progress.concerns(&self.options.tables, query.database, query.text) => {}
            Statement::Definition if begun => {
                let message = "a change is in the binlog as a statement, not as rows (some session set binlog_format). SET PERSIST binlog_format = 'ROW', \
                     and begin anew with a source of another name";
                return Err(self.stop("mysql.statement", message));
            }
            Statement::Create => self.commit(out),
            Statement::Definition => {
                progress.definition_changed();
                self.commit(out);
            }
        }
        Ok(())
    }

    /// Hands out a change of definitions, if it is of a kind and a database that are taken.
    fn defined(&mut self, query: &Query<'_>, out: &mut SourceBatch) {
        let Some((port, schema)) = &self.ddl else { return };
        // It comes before all else of its transaction: what follows a part of one has seen it handed out.
        if self.transaction.as_ref().is_some_and(|transaction| transaction.skip.is_some()) {
            return;
        }
        let Some(definition) = Definition::of(query.text) else { return };
        let status = query.status();
        let takes = |database: &str| self.options.tables.may_take_of(database);
        let Some((database, tables)) = definition.concerning(query.database, &status.databases, takes) else { return };
        let charset = status.collation.and_then(|collation| self.server.charsets.by_collation(collation));
        let text = match charset {
            Some(charset) => charset.decode(query.text),
            None => String::from_utf8_lossy(query.text),
        };
        if ddl::may_hold_secret(&text) {
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
        let origin = Origin::of(&self.origin_of_statement(), &source_json, false);
        self.emitter.definition(out, &origin, &record);
        if let Some(transaction) = &self.transaction {
            // Rows may follow: of CREATE TABLE .. SELECT.
            let counts = self.emitter.marks.as_mut().map(Marks::counts);
            self.position.part = Some(Part { gtid: transaction.gtid_text.clone(), events: 0, rows: 0, counts });
        }
    }

    fn truncated(&mut self, database: &str, name: &str, out: &mut SourceBatch, progress: &mut Progress) -> Result<()> {
        let full_name = format!("{database}.{name}");
        if !self.options.tables.takes(database, name) || progress.watch(&full_name) == Watch::Suppress {
            return Ok(());
        }
        // What is not known now was not there when the source opened, and no row of it has come since: there is nothing to take away.
        let Some(table) = progress.known(&full_name) else { return Ok(()) };
        if self.options.skips(Op::Truncate) {
            out.dropped += 1;
            return Ok(());
        }
        let origin = Origin::new(&self.origin_of_statement(), &table);
        out.schemas.push(Arc::clone(&table.schema));
        let change = Change { op: Op::Truncate, before: None, after: None, row: 0 };
        self.emitter.change(out, &table, &origin, change, |_| {}).map_err(|error| self.malformed("a TRUNCATE", &error))
    }

    /// Where a statement comes from that is no change of rows.
    fn origin_of_statement(&self) -> OriginParts<'_> {
        let transaction = self.transaction.as_ref();
        OriginParts {
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
