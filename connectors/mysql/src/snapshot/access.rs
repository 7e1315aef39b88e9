//! Whether the user may read a table. The binlog contains every table, so the stream would emit
//! rows that a snapshot cannot read, and the other way round.

use std::sync::Arc;

use trunkline_connector::{Error, Result};

use super::describe::{self, TableDescription};
use super::select::quoted_table;
use crate::config::MysqlOptions;
use crate::connection::query::QueryConnection;
use crate::format::table::Table;
use crate::schema::charset::Charsets;
use crate::schema::table_name::TableName;

/// The access of the user to a table of the stream.
pub(crate) enum TableAccess {
    Readable(Arc<Table>),
    /// The user lacks a privilege.
    Unreadable,
    /// The table does not exist any more.
    Gone,
}

/// What a query for a table's rows shows.
#[derive(Debug, PartialEq, Eq)]
enum Probe {
    Readable,
    Denied,
    Gone,
}

/// The user's access to a table.
pub(crate) async fn access_to(
    options: &MysqlOptions,
    connection: &mut QueryConnection,
    charsets: &Charsets,
    name: &TableName,
) -> Result<TableAccess> {
    let described = describe::tables(options, connection, charsets, Some(name)).await?.pop();
    let probe = probe(connection, name).await?;
    Ok(match (probe, described) {
        (Probe::Readable, Some(description)) => TableAccess::Readable(Arc::clone(&description.table)),
        (Probe::Denied, _) => TableAccess::Unreadable,
        (Probe::Readable | Probe::Gone, _) => TableAccess::Gone,
    })
}

/// The described tables of which the user may read only some columns.
pub(crate) async fn partly_readable(
    connection: &mut QueryConnection,
    tables: &[Arc<TableDescription>],
) -> Result<Vec<TableName>> {
    let mut denied = Vec::new();
    if may_read_everything(connection).await? {
        return Ok(denied);
    }
    for description in tables {
        if probe(connection, &description.table.name).await? == Probe::Denied {
            denied.push(description.table.name.clone());
        }
    }
    Ok(denied)
}

/// The message about tables of which the user may read only some columns.
pub(crate) fn partly_readable_message(user: &str, tables: &[TableName]) -> String {
    let names: Vec<String> = tables.iter().map(ToString::to_string).collect();
    format!(
        "the user `{user}` may read only some columns of {}; the stream contains all of them, so its rows would differ from \
         those of the snapshot",
        names.join(", ")
    )
}

/// The statements that grant access to whole tables.
pub(crate) fn grants(user: &str, tables: &[TableName]) -> String {
    let grant = |name: &TableName| format!("GRANT SELECT ON {} TO '{user}'@'%';", quoted_table(name));
    tables.iter().map(grant).collect::<Vec<_>>().join(" ")
}

/// Rejects tables of which the user may read only some columns.
pub(crate) async fn check_columns(
    options: &MysqlOptions,
    connection: &mut QueryConnection,
    tables: &[Arc<TableDescription>],
) -> Result<()> {
    let denied = partly_readable(connection, tables).await?;
    if denied.is_empty() {
        return Ok(());
    }
    let user = &options.connection.address.user;
    let (server, why) = (connection.server_label(), partly_readable_message(user, &denied));
    Err(Error::config("mysql.column_privilege", format!("{server}: {why}; {}", grants(user, &denied))))
}

/// Whether the user may read every table. False negatives only cost time.
async fn may_read_everything(connection: &mut QueryConnection) -> Result<bool> {
    let grants = connection.query("SHOW GRANTS").await?;
    let grants: Vec<String> = grants.into_iter().flatten().flatten().map(|grant| grant.to_uppercase()).collect();
    let is_global = |grant: &String| {
        let (privileges, rest) = grant.split_once(" ON ").unwrap_or((grant.as_str(), ""));
        let privileges = privileges.trim_start_matches("GRANT ");
        let has_select = privileges.split(',').any(|it| matches!(it.trim(), "SELECT" | "ALL PRIVILEGES"));
        has_select && rest.starts_with("*.* TO ")
    };
    // Partial revokes restrict a global privilege.
    Ok(grants.iter().any(is_global) && !grants.iter().any(|grant| grant.starts_with("REVOKE ")))
}

/// Prepares a query for all columns of a table.
async fn probe(connection: &mut QueryConnection, name: &TableName) -> Result<Probe> {
    const TABLE_DENIED: u16 = 1142;
    const COLUMN_DENIED: u16 = 1143;
    const DATABASE_DENIED: u16 = 1044;
    const NO_SUCH_TABLE: u16 = 1146;
    const NO_SUCH_DATABASE: u16 = 1049;
    // One integer as the result: clients do not know the types of all columns.
    let sql = format!("SELECT COUNT(*) FROM (SELECT * FROM {} LIMIT 0) AS readable", quoted_table(name));
    match connection.try_execute(&sql).await {
        Ok(()) => Ok(Probe::Readable),
        Err(error) if [NO_SUCH_TABLE, NO_SUCH_DATABASE].iter().any(|number| error.is_server_error(*number)) => {
            Ok(Probe::Gone)
        }
        Err(error)
            if [TABLE_DENIED, COLUMN_DENIED, DATABASE_DENIED].iter().any(|number| error.is_server_error(*number)) =>
        {
            Ok(Probe::Denied)
        }
        Err(error) => Err(connection.error(&sql, error)),
    }
}
