//! Incremental snapshots (`trunkline snapshot`): changes the stored position, so that the source
//! reads tables again.

use std::collections::BTreeSet;

use trunkline_connector::{Error, PositionChange, Result, SnapshotRequest};

use super::condition;
use crate::config::{MysqlOptions, SnapshotPolicy};
use crate::connection::query::QueryConnection;
use crate::position::{SnapshotProgress, StoredPosition, TablePosition, table_key};
use crate::schema::table_filter::TableFilter;
use crate::schema::table_name::TableName;

/// The changes of a stored position that make the source read the requested tables again.
pub(crate) fn request_snapshot(
    options: &MysqlOptions,
    request: &SnapshotRequest<'_>,
    stored: &[(String, Vec<u8>)],
) -> Result<Vec<PositionChange>> {
    if let Some(condition) = request.condition {
        let wrong = |why| Error::config("mysql.where", format!("`--where {condition}` {why}"));
        condition::check_syntax(condition).map_err(wrong)?;
    }
    let stored = StoredPosition::read(stored)?;
    if stored.stream.is_none() {
        let message = "the source has not started yet; its first start reads the tables anyway, except with `snapshot = \
                       \"never\"`; start it first";
        return Err(Error::config("mysql.not_begun", message));
    }
    let mut tables = BTreeSet::new();
    for glob in request.tables {
        tables.extend(matching_tables(options, glob, &stored)?);
    }
    let condition = request.condition.map(str::to_owned);
    let progress = SnapshotProgress { is_requested: true, condition, ..SnapshotProgress::default() };
    let value = TablePosition::Running(progress).to_bytes()?;
    Ok(tables.iter().map(|name| PositionChange { key: table_key(name), value: Some(value.clone()) }).collect())
}

/// The tables of the stored position that match a glob.
fn matching_tables(options: &MysqlOptions, glob: &String, stored: &StoredPosition) -> Result<Vec<TableName>> {
    let wrong = |why: &str| Error::config("mysql.tables", format!("`--tables {glob}` {why}"));
    let filter = TableFilter::new(std::slice::from_ref(glob)).map_err(|(_, why)| wrong(&why))?;
    // A source that takes no snapshots stores no tables, so the request names them.
    let is_name = options.snapshot == SnapshotPolicy::Never && !glob.contains(['*', '?', '[']);
    let named = glob.split_once('.').filter(|_| is_name).map(|(database, table)| TableName::new(database, table));
    let is_match = |name: &TableName| {
        let (database, table) = (&name.database, &name.table);
        filter.includes(database, table) && options.tables.includes(database, table)
    };
    let tables: Vec<TableName> = stored.tables.keys().cloned().chain(named).filter(is_match).collect();
    if tables.is_empty() {
        let known: Vec<String> = stored.tables.keys().map(ToString::to_string).collect();
        let known = if known.is_empty() { "none yet".to_owned() } else { known.join(", ") };
        return Err(wrong(&format!("matches no table of the source; tables with a snapshot: {known}")));
    }
    Ok(tables)
}

/// Asks the server whether it accepts a condition for the tables at these keys of the position.
pub(crate) async fn check_condition(options: &MysqlOptions, position_keys: &[&str], condition: &str) -> Result<()> {
    let mut connection = QueryConnection::open(&options.connection).await?;
    condition::check(&mut connection, position_keys, condition).await?;
    connection.close().await;
    Ok(())
}
