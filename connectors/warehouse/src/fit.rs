//! What `validate --check` asks of tables that exist: whether records such as the newest ones of
//! the inputs fit them, and whether the sink may change them where they do not.

use arrow::array::{Array, RecordBatch};
use trunkline_connector::{Batch, PreflightIssue, Result, TopicPartition};

use crate::change::{Change, Operation};
use crate::convert::{accepts, longest, wider};
use crate::dialect::{Column, ColumnType, Dialect, Right};
use crate::intent::LoadMode;
use crate::layouts::{Layout, LayoutKey};
use crate::preflight::{GRANTABLE, issue};
use crate::sink::WarehouseSink;
use crate::tables::{Incoming, OnTypeChange, new_column, target_of};
use crate::write::Row;

/// The suffix of the names in statements that replace a column.
const BEFORE: &str = "_before";

/// A table, and what would have to change in it.
struct Needs {
    table: String,
    /// Statements that the sink would run.
    changes: Vec<String>,
    /// What the sink cannot change.
    misfits: Vec<PreflightIssue>,
}

impl WarehouseSink {
    /// Why records such as these could not be loaded into tables that exist.
    pub(crate) fn misfits(&mut self, records: &Batch) -> Result<Vec<PreflightIssue>> {
        let mut groups: Vec<(LayoutKey, Vec<Row<'_>>)> = Vec::new();
        for (index, record) in records.iter().enumerate() {
            // Records that no load takes become dead letters. Deletes and tombstones have parts of
            // rows.
            let (Ok(change), Ok(key)) = (Change::of(record), self.layout_key(record)) else { continue };
            if change.operation != Operation::Write {
                continue;
            }
            // Their columns are compared, and not their values.
            let row = Row { index: index as u32, change, changed_at: None, order: None };
            match groups.iter_mut().find(|(known, _)| *known == key) {
                Some((_, rows)) => rows.push(row),
                None => groups.push((key, vec![row])),
            }
        }
        let mut issues: Vec<PreflightIssue> = Vec::new();
        for (key, rows) in groups {
            match self.needs(records, &key, &rows) {
                Ok(Some(needs)) => issues.extend(self.issues_of(needs)?),
                Ok(None) => {}
                // The catalog hides the table: the message has the statement that shows it.
                Err(error) if GRANTABLE.contains(&error.code) => issues.push(issue(&error, None)),
                Err(error) => return Err(error),
            }
        }
        // The schemas of a topic may need the same.
        let mut seen = std::collections::HashSet::new();
        issues.retain(|issue| seen.insert((issue.code, issue.message.clone())));
        Ok(issues)
    }

    /// What a table needs for these rows; `None` if the sink would create it.
    fn needs(&mut self, records: &Batch, key: &LayoutKey, rows: &[Row<'_>]) -> Result<Option<Needs>> {
        let Some(existing) = self.sessions.run(|dialect, session| dialect.columns(session, &key.table))? else {
            return Ok(None);
        };
        let Some(layout) = self.layouts.get(key, self.schemas.as_ref())? else { return Ok(None) };
        let values: Vec<&[u8]> = rows.iter().map(|row| row.change.row).collect();
        let decoded = self.decoder.decode(&layout.columns, &std::sync::Arc::default(), &values);
        let rejected: Vec<usize> = decoded.rejected.iter().map(|(index, _)| *index as usize).collect();
        let kept: Vec<&Row<'_>> =
            rows.iter().enumerate().filter(|(index, _)| !rejected.contains(index)).map(|(_, row)| row).collect();
        let Some(batch) = decoded.batch.filter(|_| !kept.is_empty()) else { return Ok(None) };
        Ok(self.compare(records, key, &layout, &batch, &kept, &existing))
    }

    fn compare(
        &self,
        records: &Batch,
        key: &LayoutKey,
        layout: &Layout,
        batch: &RecordBatch,
        rows: &[&Row<'_>],
        existing: &[Column],
    ) -> Option<Needs> {
        let fields =
            if self.options.mode == LoadMode::Append { Vec::new() } else { self.key_fields(records, layout, rows) };
        let first = records.get(rows.first()?.index as usize);
        let partition = TopicPartition::new(first.topic(), 0);
        let system = self.system_columns(&partition, 0, records, layout, rows);
        let (incoming, key_columns) = self.incoming(batch, layout, &fields, &system).ok()?;
        let own = self.columns_of_the_sink(&system);
        let dialect = self.sessions.dialect().as_ref();
        let mut needs = Needs { table: key.table.clone(), changes: Vec::new(), misfits: Vec::new() };
        for column in &incoming {
            let Some(wanted) = new_column(dialect, column) else { continue };
            match target_of(existing, column, &incoming) {
                Some(have) => {
                    let on_type_change = self.tables.on_type_change_of(column, &key_columns);
                    needs.fit(dialect, on_type_change, have, column, &wanted.column_type);
                }
                None => needs.changes.extend(dialect.add_column(&key.table, &wanted)),
            }
        }
        for column in &own {
            match existing.iter().find(|have| have.name == column.name) {
                Some(have) if !holds(&have.column_type, &column.column_type) => needs.misfit(dialect, have, column),
                Some(_) => {}
                None => needs.changes.extend(dialect.add_column(&key.table, column)),
            }
        }
        let written: Vec<&String> = incoming
            .iter()
            .map(|column| target_of(existing, column, &incoming).map_or(&column.name, |found| &found.name))
            .chain(own.iter().map(|own| &own.name))
            .collect();
        let is_written = |name: &String| written.contains(&name);
        for column in existing.iter().filter(|have| !have.nullable && !have.has_default && !is_written(&have.name)) {
            match dialect.drop_not_null(&key.table, column) {
                Some(statements) => needs.changes.extend(statements),
                None => needs.required(dialect, column),
            }
        }
        Some(needs)
    }

    /// The rights on the rows of an existing table that the sink lacks.
    fn missing_rights(&mut self, table: &str) -> Result<Option<PreflightIssue>> {
        let mut missing = self.sessions.run(|dialect, session| dialect.missing_rights(session, table))?;
        missing.retain(|right| needed_rights(self.options.mode).contains(right));
        let grant = self.sessions.dialect().grant(Right::LoadTable(table));
        Ok((!missing.is_empty()).then(|| PreflightIssue {
            code: "warehouse.missing_right",
            message: format!("the sink lacks {} on the table {table}", missing.join(", ")),
            fix: grant.map(|grant| format!("run `{grant}`")),
        }))
    }

    /// What an administrator has to do.
    fn issues_of(&mut self, needs: Needs) -> Result<Vec<PreflightIssue>> {
        let Needs { table, changes, misfits } = needs;
        let mut issues = misfits;
        issues.extend(self.missing_rights(&table)?);
        if !changes.is_empty()
            && self.sessions.run(|dialect, session| dialect.may_alter(session, &table))? == Some(false)
        {
            let dialect = self.sessions.dialect();
            let grant = dialect.grant(Right::AlterTable(&table));
            let (here, qualified) = (dialect.quoted(&table), dialect.qualified(&table));
            let with_schema = |sql: &String| {
                ["TABLE", "UPDATE"].iter().fold(sql.clone(), |sql, word| {
                    sql.replace(&format!("{word} {here} "), &format!("{word} {qualified} "))
                })
            };
            let changes: Vec<String> = changes.iter().map(with_schema).collect();
            let grant = grant.map(|grant| format!("run `{grant}`, or ")).unwrap_or_default();
            issues.push(PreflightIssue {
                code: "warehouse.may_not_alter",
                message: format!("the records need changes of the table {table}, and the sink may not alter it"),
                fix: Some(format!("{grant}have the table's owner run `{}`", changes.join("; "))),
            });
        }
        Ok(issues)
    }
}

/// The rights on the rows of its table that a mode needs.
fn needed_rights(mode: LoadMode) -> &'static [&'static str] {
    match mode {
        LoadMode::Append => &["INSERT"],
        LoadMode::Upsert => &["SELECT", "INSERT", "DELETE"],
        LoadMode::UpsertSoft => &["SELECT", "INSERT", "UPDATE", "DELETE"],
        LoadMode::History => &["SELECT", "INSERT", "UPDATE"],
    }
}

/// A column holds all values of the other type.
fn holds(have: &ColumnType, own: &ColumnType) -> bool {
    matches!((have, own), (ColumnType::Text(_), ColumnType::Text(_)))
        || matches!((have, own), (ColumnType::Decimal(precision, 0), ColumnType::Integer(_)) if *precision >= 18)
        || wider(have, own).as_ref() == Some(have)
        || have == own
}

impl Needs {
    fn fit(
        &mut self,
        dialect: &dyn Dialect,
        on_type_change: OnTypeChange,
        have: &Column,
        incoming: &Incoming<'_>,
        wanted: &ColumnType,
    ) {
        let data_type = incoming.array.data_type();
        if accepts(data_type, &have.column_type) {
            return;
        }
        let to = wider(&have.column_type, wanted).filter(|to| accepts(data_type, to));
        let text = || dialect.column_type(&arrow::datatypes::DataType::Utf8, longest(incoming.array), false);
        let to = to.or_else(|| if on_type_change == OnTypeChange::Text { text() } else { None });
        let statements = to.and_then(|to| dialect.widen_column(&self.table, have, &to));
        let wanted =
            Column { name: have.name.clone(), column_type: wanted.clone(), nullable: true, has_default: false };
        match (statements, on_type_change) {
            (Some(statements), _) => self.changes.extend(statements),
            (None, OnTypeChange::NewColumn) => {
                let name = dialect.folded(&format!("{}_2", incoming.name));
                self.changes.extend(dialect.add_column(&self.table, &Column { name, ..wanted }));
            }
            (None, OnTypeChange::Stop | OnTypeChange::Text) => self.misfit(dialect, have, &wanted),
        }
    }

    /// A column has a type that does not hold the values.
    fn misfit(&mut self, dialect: &dyn Dialect, have: &Column, wanted: &Column) {
        let (table, name) = (dialect.qualified(&self.table), dialect.quoted(&have.name));
        let before = dialect.quoted(&format!("{}{BEFORE}", have.name));
        self.misfits.push(PreflightIssue {
            code: "warehouse.type_change",
            message: format!(
                "the column `{}` of the table {} has the type {}, and the records need {}",
                have.name,
                self.table,
                dialect.sql_type(&have.column_type),
                dialect.sql_type(&wanted.column_type)
            ),
            fix: Some(format!(
                "run `ALTER TABLE {table} RENAME COLUMN {name} TO {before}`: the sink adds the column with its type; or set \
                 `on_type_change`"
            )),
        });
    }

    /// A column takes no null, and the records have no value for it.
    fn required(&mut self, dialect: &dyn Dialect, have: &Column) {
        let (table, name) = (dialect.qualified(&self.table), dialect.quoted(&have.name));
        let before = dialect.quoted(&format!("{}{BEFORE}", have.name));
        let sql_type = dialect.sql_type(&have.column_type);
        self.misfits.push(PreflightIssue {
            code: "warehouse.required_column",
            message: format!(
                "the column `{}` of the table {} is NOT NULL without a default, and the records have no value for it",
                have.name, self.table
            ),
            fix: Some(format!(
                "run `ALTER TABLE {table} RENAME COLUMN {name} TO {before}; ALTER TABLE {table} ADD COLUMN {name} {sql_type}; \
                 UPDATE {table} SET {name} = {before}; ALTER TABLE {table} DROP COLUMN {before}`"
            )),
        });
    }
}
