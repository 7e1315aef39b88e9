//! Tables that somebody has read once more (`trunkline snapshot`), all of their rows or those that fulfil a condition.
//!
//! A condition is the operator's own SQL and runs as the source's user. It stands in parentheses in each query, so it must be whole by itself: one that
//! closed them early would change which rows come after a key.

use std::collections::BTreeSet;

use sqlx::AssertSqlSafe;
use sqlx::mysql::MySqlConnection;
use trunkline_connector::{Error, PositionChange, Result, SnapshotRequest};

use crate::config::{MysqlOptions, Snapshot as When};
use crate::connection::connect::{close, is_server_error, query_connection, query_error, server};
use crate::position::{TablePosition, read_position, table_key, table_of};
use crate::schema::table_filter::Selection;
use crate::snapshot::select;

/// No such table: that is not the condition's fault.
const NO_TABLE: u16 = 1146;

/// The changes of a stored position by which the tables that globs choose are read once more.
pub(crate) fn read_again(
    options: &MysqlOptions,
    wanted: &SnapshotRequest<'_>,
    stored: &[(String, Vec<u8>)],
) -> Result<Vec<PositionChange>> {
    if let Some(condition) = wanted.condition {
        stands_alone(condition).map_err(|why| Error::config("mysql.where", format!("`--where {condition}` {why}")))?;
    }
    let (stream, known) = read_position(stored)?;
    if stream.is_none() {
        let message = "the source has not run yet: its first start reads the tables anyway, or, with `snapshot = \"never\"`, must come first";
        return Err(Error::config("mysql.not_begun", message));
    }
    let mut chosen_tables = BTreeSet::new();
    for glob in wanted.tables {
        let wrong = |why: &str| Error::config("mysql.tables", format!("`--tables {glob}`: {why}"));
        let selection = Selection::new(std::slice::from_ref(glob)).map_err(|(_, why)| wrong(&why))?;
        let takes = |name: &str| {
            let taken = |(database, table)| selection.takes(database, table) && options.tables.takes(database, table);
            name.split_once('.').is_some_and(taken)
        };
        // Of a source that reads no tables by itself nobody knows which there are: a name is taken at its word.
        let is_name = options.snapshot == When::Never && !glob.contains(['*', '?', '[']);
        let chosen: Vec<String> = known
            .keys()
            .map(String::as_str)
            .chain(is_name.then_some(glob.as_str()))
            .filter(|name| takes(name))
            .map(str::to_owned)
            .collect();
        if chosen.is_empty() {
            let names: Vec<&str> = known.keys().map(String::as_str).collect();
            let why = format!(
                "the source takes no such table; a snapshot has read {}",
                if names.is_empty() { "none yet".to_owned() } else { names.join(", ") }
            );
            return Err(wrong(&why));
        }
        chosen_tables.extend(chosen);
    }
    let again = match wanted.condition {
        Some(condition) => TablePosition::Where { condition: condition.to_owned(), after: Vec::new() },
        None => TablePosition::Again(Vec::new()),
    };
    let again = again.to_bytes()?;
    Ok(chosen_tables.iter().map(|name| PositionChange { key: table_key(name), value: Some(again.clone()) }).collect())
}

/// Is a condition whole by itself? If not, the end of the sentence "the condition ...".
fn stands_alone(condition: &str) -> Result<(), String> {
    let mut depth = 0usize;
    let mut quote = None;
    let bytes = condition.as_bytes();
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        let next = bytes.get(at + 1);
        match (quote, byte) {
            // A doubled quote ends the text and begins it anew, which comes to the same.
            (Some(open), byte) if open == *byte => quote = None,
            (Some(b'\'' | b'"'), b'\\') => at += 1,
            (Some(_), _) => {}
            (None, b'\'' | b'"' | b'`') => quote = Some(*byte),
            (None, b';') => return Err("has a `;`: one condition is expected, and nothing after it".to_owned()),
            (None, b'#') => return Err("has a comment".to_owned()),
            (None, b'-') if next == Some(&b'-') => return Err("has a comment (`--`)".to_owned()),
            (None, b'/') if next == Some(&b'*') => return Err("has a comment (`/*`)".to_owned()),
            (None, b'(') => depth += 1,
            (None, b')') => {
                depth = depth.checked_sub(1).ok_or("closes a parenthesis that it has not opened")?;
            }
            _ => {}
        }
        at += 1;
    }
    match (quote, depth) {
        _ if condition.trim().is_empty() => Err("is empty: what follows WHERE is expected".to_owned()),
        (Some(quote), _) => Err(format!("has a text that does not end: a {} is missing", char::from(quote))),
        (None, 0) => Ok(()),
        (None, _) => Err("has a parenthesis that is not closed".to_owned()),
    }
}

/// Asks the server whether it understands the condition for these tables (keys of the position).
pub(crate) async fn check_condition(options: &MysqlOptions, parts: &[&str], condition: &str) -> Result<()> {
    let mut connection = query_connection(options).await?;
    for table in parts.iter().filter_map(|part| table_of(part)) {
        let Some((database, name)) = table.split_once('.') else { continue };
        if let Err(why) = try_condition(options, &mut connection, database, name, condition).await? {
            let message = format!("`--where {condition}`: {} does not take it for {table}: {why}", server(options));
            return Err(Error::config("mysql.where", message));
        }
    }
    close(connection).await;
    Ok(())
}

/// Does the server understand a condition for a table? The inner error is what it said.
pub(crate) async fn try_condition(
    options: &MysqlOptions,
    connection: &mut MySqlConnection,
    database: &str,
    name: &str,
    condition: &str,
) -> Result<Result<(), String>> {
    let table = format!("{}.{}", select::quoted(database), select::quoted(name));
    // As a prepared statement: the server takes one only, whatever the condition holds.
    let sql = format!("SELECT 1 FROM {table} WHERE {} LIMIT 0", select::in_parentheses(condition));
    match sqlx::query(AssertSqlSafe(sql)).persistent(false).fetch_all(connection).await {
        Ok(_) => Ok(Ok(())),
        Err(error) if is_server_error(&error, NO_TABLE) => Ok(Ok(())),
        Err(sqlx::Error::Database(error)) => Ok(Err(error.message().to_owned())),
        Err(error) => Err(query_error(options, "try a condition", &error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_stands_alone() {
        for right in [
            "total > 100",
            "(a OR b) AND c IN (1, 2)",
            "n = ';' OR n = ')' OR n = '--'",
            "n = 'it''s' AND `#` = 1",
            r"n = '\')'",
        ] {
            assert_eq!(stands_alone(right), Ok(()), "{right}");
        }
        for wrong in
            ["", "  ", "1; DROP TABLE t", "a) OR (b", "(a", "a -- b", "a # b", "a /* b", "n = 'x", r"n = 'x\'", "a)"]
        {
            assert!(stands_alone(wrong).is_err(), "{wrong}");
        }
    }
}
