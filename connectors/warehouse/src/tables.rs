//! The target tables: created from the records' columns, and evolved with them.
//!
//! All DDL runs while records are written, outside of any load, and before the records are staged.
//! Several tasks may evolve a table at once: after a failed statement the catalog decides.

use std::collections::{HashMap, HashSet};

use arrow::array::{Array, ArrayRef};
use trunkline_connector::{Error, Result};

use crate::convert::{Converted, accepts, convert, longest, wider};
use crate::dialect::{Column, ColumnType, Dialect, Right, Session};
use crate::preflight::GRANTABLE;
use crate::replay::plain;
use crate::sessions::Sessions;

/// What happens when a column's values no longer fit its type, and no wider type keeps both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnTypeChange {
    /// The sink stops.
    Stop,
    /// The values go to another column, `{name}_2`.
    NewColumn,
    /// The column becomes text.
    Text,
}

/// A column of a batch, as it arrives.
pub(crate) struct Incoming<'a> {
    /// The name in the catalog.
    pub(crate) name: String,
    pub(crate) array: &'a ArrayRef,
    /// The source declares its text to be JSON.
    pub(crate) is_json: bool,
}

/// A converted column with its place in the target.
pub(crate) struct Fitted {
    /// The name of the incoming column.
    pub(crate) from: String,
    pub(crate) column: Column,
    pub(crate) converted: Converted,
}

/// The name of a table in the catalog, from the value of the option `table`. Characters that no
/// table has become `_`.
pub(crate) fn catalog_name(dialect: &dyn Dialect, table: &str) -> String {
    dialect.folded(&plain(table))
}

/// The column of a table with this name; else the only one whose name differs from it in case.
pub(crate) fn find_column<'c>(columns: &'c [Column], name: &str) -> Option<&'c Column> {
    columns.iter().find(|known| known.name == name).or_else(|| {
        let mut similar = columns.iter().filter(|known| differs_in_case(&known.name, name));
        similar.next().filter(|_| similar.next().is_none())
    })
}

/// The column of a table that takes one of these columns. The case of names matters only if two of
/// them differ in nothing else.
pub(crate) fn target_of<'c>(
    columns: &'c [Column],
    column: &Incoming<'_>,
    incoming: &[Incoming<'_>],
) -> Option<&'c Column> {
    let found = find_column(columns, &column.name)?;
    let is_alone = || incoming.iter().all(|other| !differs_in_case(&other.name, &column.name));
    (found.name == column.name || is_alone()).then_some(found)
}

fn differs_in_case(one: &str, other: &str) -> bool {
    one != other && (one.eq_ignore_ascii_case(other) || !one.is_ascii() && one.to_lowercase() == other.to_lowercase())
}

/// The known tables.
pub(crate) struct Tables {
    pub(crate) on_type_change: OnTypeChange,
    known: HashMap<String, Vec<Column>>,
}

impl Tables {
    pub(crate) fn new(on_type_change: OnTypeChange) -> Self {
        Self { on_type_change, known: HashMap::new() }
    }

    /// Brings the table into a state that takes the columns, and converts them. `system` are the
    /// sink's own columns in the table. Columns without a typed value are left out.
    pub(crate) fn fit(
        &mut self,
        sessions: &mut Sessions,
        table: &str,
        incoming: &[Incoming<'_>],
        system: &[Column],
        key: &[String],
    ) -> Result<Vec<Fitted>> {
        let mut columns = match self.known.remove(table) {
            Some(columns) => columns,
            None => self.open(sessions, table, incoming, system, key)?,
        };
        let fitted = self.fit_columns(sessions, table, incoming, system, key, &mut columns)?;
        self.known.insert(table.to_owned(), columns);
        Ok(fitted)
    }

    /// What happens to a column whose values no longer fit. The columns of the key find the rows,
    /// so their values never go to other columns.
    pub(crate) fn on_type_change_of(&self, column: &Incoming<'_>, key: &[String]) -> OnTypeChange {
        match self.on_type_change {
            OnTypeChange::NewColumn if key.contains(&column.name) => OnTypeChange::Stop,
            other => other,
        }
    }

    /// Whether a table that was fitted has a column.
    pub(crate) fn has_column(&self, table: &str, name: &str) -> bool {
        self.known.get(table).is_some_and(|columns| columns.iter().any(|column| column.name == name))
    }

    /// Adds a column of the sink to a table that lacks it. Returns whether the table exists.
    pub(crate) fn add_missing(&mut self, sessions: &mut Sessions, table: &str, column: &Column) -> Result<bool> {
        let read = sessions.run(|dialect, session| dialect.columns(session, table))?;
        let Some(mut columns) = read else { return Ok(false) };
        if !columns.iter().any(|known| known.name == column.name) {
            add_column(sessions, table, column, &mut columns)?;
            self.known.insert(table.to_owned(), columns);
        }
        Ok(true)
    }

    /// Reads a table's columns; creates the table if it does not exist.
    fn open(
        &self,
        sessions: &mut Sessions,
        table: &str,
        incoming: &[Incoming<'_>],
        system: &[Column],
        key: &[String],
    ) -> Result<Vec<Column>> {
        sessions.run(|dialect, session| {
            if let Some(columns) = dialect.columns(session, table)? {
                return Ok(columns);
            }
            let mut columns: Vec<Column> = incoming.iter().filter_map(|column| new_column(dialect, column)).collect();
            columns.extend_from_slice(system);
            if columns.is_empty() {
                return Ok(columns);
            }
            let created = execute_all(session, &dialect.create_table(table, &columns, key));
            let read = |session: &mut dyn Session| dialect.columns(session, table);
            match created {
                Ok(()) => Ok(read(session)?.unwrap_or(columns)),
                // Another task may have created it at the same time. The failed session is not used
                // again.
                Err(error) => match read(dialect.connect()?.as_mut())? {
                    Some(columns) => Ok(columns),
                    None => Err(cannot_create(dialect, table, error)),
                },
            }
        })
    }

    fn fit_columns(
        &self,
        sessions: &mut Sessions,
        table: &str,
        incoming: &[Incoming<'_>],
        system: &[Column],
        key: &[String],
        columns: &mut Vec<Column>,
    ) -> Result<Vec<Fitted>> {
        for column in system {
            if !columns.iter().any(|known| known.name == column.name) {
                add_column(sessions, table, column, columns)?;
            }
        }
        let mut fitted = Vec::with_capacity(incoming.len());
        let mut used = HashSet::new();
        for column in incoming {
            let name = target_of(columns, column, incoming).map_or(&column.name, |target| &target.name).clone();
            let on_type_change = self.on_type_change_of(column, key);
            if let Some(fit) = Self::fit_column(sessions, table, column, name, on_type_change, columns)? {
                used.insert(fit.0.name.clone());
                fitted.push(Fitted { from: column.name.clone(), column: fit.0, converted: fit.1 });
            }
        }
        used.extend(system.iter().map(|column| column.name.clone()));
        for missing in columns.clone().iter().filter(|column| !used.contains(&column.name)) {
            if !missing.nullable && !missing.has_default {
                drop_not_null(sessions, table, missing, columns)?;
            }
        }
        Ok(fitted)
    }

    /// Brings the column of this name into a state that takes the values, and converts them.
    fn fit_column(
        sessions: &mut Sessions,
        table: &str,
        incoming: &Incoming<'_>,
        mut name: String,
        on_type_change: OnTypeChange,
        columns: &mut Vec<Column>,
    ) -> Result<Option<(Column, Converted)>> {
        let dialect = std::sync::Arc::clone(sessions.dialect());
        let mut suffix = 1;
        loop {
            let Some(have) = columns.iter().find(|column| column.name == name).cloned() else {
                let Some(column) = new_column(dialect.as_ref(), incoming) else { return Ok(None) };
                add_column(sessions, table, &Column { name: name.clone(), ..column }, columns)?;
                continue;
            };
            let wanted = new_column(dialect.as_ref(), incoming).map(|column| column.column_type);
            let Some(wanted) = wanted else { return Ok(None) };
            if accepts(incoming.array.data_type(), &have.column_type) {
                let convert = |column: &Column| {
                    convert(incoming.array, incoming.is_json, &column.column_type, dialect.as_ref()).map_err(|error| {
                        let message = format!("cannot convert the column {}: {error}", column.name);
                        Error::internal("warehouse.convert", message)
                    })
                };
                let converted = convert(&have)?;
                if converted.refused.is_empty() {
                    return Ok(Some((have, converted)));
                }
                // A wider column may take what this one refused.
                let Some(to) = wider(&have.column_type, &wanted).filter(|to| *to != have.column_type) else {
                    return Ok(Some((have, converted)));
                };
                if !widen(sessions, table, &have, &to, columns)? {
                    return Ok(Some((have, converted)));
                }
                continue;
            }
            let to = wider(&have.column_type, &wanted).filter(|to| accepts(incoming.array.data_type(), to));
            if let Some(to) = to
                && widen(sessions, table, &have, &to, columns)?
            {
                continue;
            }
            match on_type_change {
                OnTypeChange::Text => {
                    let text = dialect.column_type(&arrow::datatypes::DataType::Utf8, longest(incoming.array), false);
                    if let Some(text) = text
                        && widen(sessions, table, &have, &text, columns)?
                    {
                        continue;
                    }
                }
                OnTypeChange::NewColumn => {
                    suffix += 1;
                    name = dialect.folded(&format!("{}_{suffix}", incoming.name));
                    continue;
                }
                OnTypeChange::Stop => {}
            }
            return Err(type_change(table, &have, &dialect.sql_type(&have.column_type), &dialect.sql_type(&wanted)));
        }
    }
}

/// The error of a CREATE TABLE, with the statement that gives the missing right.
pub(crate) fn cannot_create(dialect: &dyn Dialect, table: &str, error: Error) -> Error {
    let creating = format!("creating the table {table}");
    // Snowflake shows a role no table on which it has no right.
    let exists = error.message().contains("already exists");
    let right = if exists { Right::LoadTable(table) } else { Right::CreateTables };
    match dialect.grant(right).filter(|_| GRANTABLE.contains(&error.code)) {
        Some(grant) => Error::external(error.code, format!("{creating}: {}: run `{grant}`", error.message())),
        None => error.context(creating),
    }
}

fn type_change(table: &str, column: &Column, have: &str, wanted: &str) -> Error {
    Error::config(
        "warehouse.type_change",
        format!(
            "the column `{}` of the table {table} has the type {have}, but the records now need {wanted}. Change the column by hand \
             (`trunkline validate --check` shows the statement), or set `on_type_change` to \"text\", or to \"new_column\" if the column is not part of the key",
            column.name
        ),
    )
}

pub(crate) fn new_column(dialect: &dyn Dialect, incoming: &Incoming<'_>) -> Option<Column> {
    let column_type = dialect.column_type(incoming.array.data_type(), longest(incoming.array), incoming.is_json)?;
    Some(Column { name: incoming.name.clone(), column_type, nullable: true, has_default: false })
}

fn execute_all(session: &mut dyn Session, statements: &[String]) -> Result<()> {
    statements.iter().try_for_each(|sql| session.execute(sql).map(drop))
}

/// Runs DDL and reads the columns again. A failed statement is fine if `done` holds afterwards:
/// another task was faster.
fn evolve(
    sessions: &mut Sessions,
    table: &str,
    columns: &mut Vec<Column>,
    statements: &[String],
    done: impl Fn(&[Column]) -> bool,
) -> Result<()> {
    let outcome = sessions.run(|_, session| execute_all(session, statements));
    let read = sessions.run(|dialect, session| dialect.columns(session, table))?;
    *columns = read.ok_or_else(|| {
        let message = format!("the table {table} was dropped while the sink used it; the sink creates it again");
        Error::external("warehouse.table_dropped", message)
    })?;
    match outcome {
        Err(error) if !done(columns) => Err(error.context(format!("changing the table {table}"))),
        _ => Ok(()),
    }
}

fn add_column(sessions: &mut Sessions, table: &str, column: &Column, columns: &mut Vec<Column>) -> Result<()> {
    let statements = sessions.dialect().add_column(table, column);
    tracing::info!(table, column = column.name, "a column is added");
    evolve(sessions, table, columns, &statements, |columns| columns.iter().any(|known| known.name == column.name))
}

/// Widens a column; false if the destination cannot.
fn widen(
    sessions: &mut Sessions,
    table: &str,
    column: &Column,
    to: &ColumnType,
    columns: &mut Vec<Column>,
) -> Result<bool> {
    let Some(statements) = sessions.dialect().widen_column(table, column, to) else { return Ok(false) };
    tracing::info!(table, column = column.name, to = sessions.dialect().sql_type(to), "a column is widened");
    let name = column.name.clone();
    let is_wider = |columns: &[Column]| {
        let found = columns.iter().find(|known| known.name == name);
        found.is_some_and(|known| wider(&known.column_type, to).is_some_and(|both| both == known.column_type))
    };
    evolve(sessions, table, columns, &statements, is_wider)?;
    Ok(columns.iter().any(|known| known.name == name && known.column_type != column.column_type))
}

fn drop_not_null(sessions: &mut Sessions, table: &str, column: &Column, columns: &mut Vec<Column>) -> Result<()> {
    let Some(statements) = sessions.dialect().drop_not_null(table, column) else {
        return Err(Error::config(
            "warehouse.required_column",
            format!(
                "the column `{}` of the table {table} is NOT NULL, and the records have no value for it: give it a default, or allow null",
                column.name
            ),
        ));
    };
    let name = column.name.clone();
    evolve(sessions, table, columns, &statements, |columns| {
        columns.iter().any(|known| known.name == name && known.nullable)
    })
}

/// Rows of the converted columns that are not staged, each with its reason: a value was refused, or
/// null is in a column that does not take it.
pub(crate) fn refused_rows(fitted: &[Fitted]) -> Vec<(usize, String)> {
    let mut refused = Vec::new();
    for Fitted { column, converted, .. } in fitted {
        let named = |(row, reason): &(usize, String)| (*row, format!("column `{}`: {reason}", column.name));
        refused.extend(converted.refused.iter().map(named));
        if !column.nullable && converted.array.null_count() > 0 {
            let nulls = (0..converted.array.len()).filter(|row| converted.array.is_null(*row));
            refused
                .extend(nulls.map(|row| (row, format!("column `{}`: null, but the column is NOT NULL", column.name))));
        }
    }
    refused.sort_by_key(|(row, _)| *row);
    refused.dedup_by_key(|(row, _)| *row);
    refused
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::Int64Array;

    use super::*;

    fn columns(names: &[&str]) -> Vec<Column> {
        let column = |name: &&str| Column {
            name: (*name).to_owned(),
            column_type: ColumnType::Integer(64),
            nullable: true,
            has_default: false,
        };
        names.iter().map(column).collect()
    }

    /// The columns of a table with these names that take columns of these names.
    fn targets(table: &[&str], incoming: &[&str]) -> Vec<Option<String>> {
        let array: ArrayRef = Arc::new(Int64Array::from(vec![1]));
        let incoming: Vec<Incoming<'_>> =
            incoming.iter().map(|name| Incoming { name: (*name).to_owned(), array: &array, is_json: false }).collect();
        let table = columns(table);
        let target = |column| target_of(&table, column, &incoming).map(|target| target.name.clone());
        incoming.iter().map(target).collect()
    }

    #[test]
    fn columns_of_another_case_are_used_where_they_are_meant() {
        let some = |name: &str| Some(name.to_owned());
        assert_eq!(targets(&["Id", "NAME"], &["ID", "NAME", "NEW"]), [some("Id"), some("NAME"), None]);
        assert_eq!(targets(&["Größe"], &["GRÖßE"]), [some("Größe")]);
        // An equal name comes first, and two columns never share one.
        assert_eq!(targets(&["id", "ID"], &["ID"]), [some("ID")]);
        assert_eq!(targets(&["ID"], &["id", "ID"]), [None, some("ID")]);
        assert_eq!(targets(&["ID"], &["id", "Id"]), [None, None]);
        // It is unknown which one is meant.
        assert_eq!(targets(&["id", "Id"], &["ID"]), [None]);
    }
}
