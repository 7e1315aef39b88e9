//! Conditions of requested snapshots (`trunkline snapshot --where`).
//!
//! A condition is the operator's SQL, and runs as the source's user. Each query contains it in
//! parentheses, so it must be complete by itself: one that closed the parentheses early would
//! change which rows follow a key.

use trunkline_connector::{Error, Result};

use super::select::quoted_table;
use crate::connection::protocol::ProtocolError;
use crate::connection::query::QueryConnection;
use crate::position::table_of;
use crate::schema::table_name::TableName;

/// The server's error for a missing table, which is not an error of the condition.
const NO_SUCH_TABLE: u16 = 1146;

/// Checks that a condition is complete by itself. An error is the end of the sentence "`--where ..`
/// ...".
pub(super) fn check_syntax(condition: &str) -> Result<(), String> {
    let mut depth = 0usize;
    let mut quote = None;
    let bytes = condition.as_bytes();
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        let next = bytes.get(at + 1);
        match (quote, byte) {
            // A doubled quote ends the text and starts it again, with the same effect.
            (Some(open), byte) if open == *byte => quote = None,
            (Some(b'\'' | b'"'), b'\\') => at += 1,
            (Some(_), _) => {}
            (None, b'\'' | b'"' | b'`') => quote = Some(*byte),
            (None, b';') => return Err("contains `;`: write one condition without it".to_owned()),
            (None, b'#') => return Err("contains a comment (`#`)".to_owned()),
            (None, b'-') if next == Some(&b'-') => return Err("contains a comment (`--`)".to_owned()),
            (None, b'/') if next == Some(&b'*') => return Err("contains a comment (`/*`)".to_owned()),
            (None, b'(') => depth += 1,
            (None, b')') => {
                depth = depth.checked_sub(1).ok_or("closes a parenthesis that it did not open")?;
            }
            _ => {}
        }
        at += 1;
    }
    match (quote, depth) {
        _ if condition.trim().is_empty() => Err("is empty: write the condition that follows WHERE".to_owned()),
        (Some(quote), _) => Err(format!("has an unterminated string: add a {}", char::from(quote))),
        (None, 0) => Ok(()),
        (None, _) => Err("has an unclosed parenthesis".to_owned()),
    }
}

/// Asks the server whether it accepts a condition for the tables at these keys of the position.
pub(super) async fn check(connection: &mut QueryConnection, position_keys: &[&str], condition: &str) -> Result<()> {
    for table in position_keys.iter().filter_map(|key| table_of(key)) {
        if let Err(why) = try_on_server(connection, &table, condition).await? {
            let server = connection.server_label();
            let message =
                format!("`--where {condition}`: {server} rejects it for {table}: {why}; correct the condition");
            return Err(Error::config("mysql.where", message));
        }
    }
    Ok(())
}

/// Asks the server whether it accepts a condition for a table. The inner error is the server's.
pub(super) async fn try_on_server(
    connection: &mut QueryConnection,
    table: &TableName,
    condition: &str,
) -> Result<Result<(), String>> {
    // A prepared statement is a single statement, whatever the condition contains.
    let sql = format!("SELECT 1 FROM {} WHERE ({condition}) LIMIT 0", quoted_table(table));
    let result = match connection.select(&sql).await {
        Ok(()) => connection.skip_rows().await,
        failed => failed,
    };
    match result {
        Ok(()) => Ok(Ok(())),
        Err(error) if error.is_server_error(NO_SUCH_TABLE) => Ok(Ok(())),
        Err(ProtocolError::Server(error)) => Ok(Err(error.message)),
        Err(error) => Err(connection.error("try a condition", error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_complete_conditions_are_accepted() {
        for right in [
            "total > 100",
            "(a OR b) AND c IN (1, 2)",
            "n = ';' OR n = ')' OR n = '--'",
            "n = 'it''s' AND `#` = 1",
            r"n = '\')'",
        ] {
            assert_eq!(check_syntax(right), Ok(()), "{right}");
        }
        for wrong in
            ["", "  ", "1; DROP TABLE t", "a) OR (b", "(a", "a -- b", "a # b", "a /* b", "n = 'x", r"n = 'x\'", "a)"]
        {
            assert!(check_syntax(wrong).is_err(), "{wrong}");
        }
    }
}
