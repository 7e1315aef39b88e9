//! Whether the server writes the changes of databases to its binlog. A server that does not looks
//! healthy, and never sends them.

use std::collections::BTreeSet;

use trunkline_connector::{Error, Result};

use super::dialect::Dialect;
use super::query::QueryConnection;

/// A reason why the binlog lacks changes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct UnloggedChanges {
    pub(crate) code: &'static str,
    /// The reason. It follows the name of the server.
    pub(crate) message: String,
    pub(crate) fix: String,
}

impl UnloggedChanges {
    pub(crate) fn into_error(self, connection: &QueryConnection) -> Error {
        let Self { message, fix, .. } = self;
        Error::config("mysql.unlogged", format!("{}: {message}; {fix}", connection.server_label()))
    }
}

/// The reasons why the binlog lacks changes of these databases.
pub(crate) async fn unlogged_changes(
    connection: &mut QueryConnection,
    databases: &BTreeSet<String>,
) -> Result<Vec<UnloggedChanges>> {
    let mut problems = Vec::new();
    problems.extend(filtered(connection, databases).await?);
    problems.extend(replicated(connection).await?);
    Ok(problems)
}

/// `binlog_do_db` and `binlog_ignore_db`, which only this statement shows.
async fn filtered(connection: &mut QueryConnection, databases: &BTreeSet<String>) -> Result<Option<UnloggedChanges>> {
    let mut status = connection.query("SHOW BINARY LOG STATUS").await;
    if status.as_ref().is_err_and(|error| error.code == "mysql.query") {
        status = connection.query("SHOW MASTER STATUS").await;
    }
    let Some(row) = status?.into_iter().next() else { return Ok(None) };
    let list = |index: usize| -> Vec<String> {
        let text = row.get(index).cloned().flatten().unwrap_or_default();
        text.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
    };
    let (only, ignored) = (list(2), list(3));
    let is_unlogged = |name: &&String| ignored.contains(name) || !only.is_empty() && !only.contains(name);
    let unlogged: Vec<&str> = databases.iter().filter(is_unlogged).map(String::as_str).collect();
    if unlogged.is_empty() {
        return Ok(None);
    }
    let option = if ignored.is_empty() { "binlog-do-db" } else { "binlog-ignore-db" };
    Ok(Some(UnloggedChanges {
        code: "mysql.check.binlog_filter",
        message: format!("the binlog excludes the databases {}, so their changes never arrive", unlogged.join(", ")),
        fix: format!(
            "change `{option}` in the server's configuration and restart it, or exclude the databases from `tables`"
        ),
    }))
}

/// A replica that does not log the changes that it replicates.
async fn replicated(connection: &mut QueryConnection) -> Result<Option<UnloggedChanges>> {
    let (variables, statements): (_, &[&str]) = match connection.dialect() {
        Dialect::MySql => {
            ("('log_replica_updates', 'log_slave_updates')", &["SHOW REPLICA STATUS", "SHOW SLAVE STATUS"])
        }
        Dialect::MariaDb => ("('log_slave_updates')", &["SHOW ALL SLAVES STATUS"]),
    };
    let rows = connection.query(&format!("SHOW GLOBAL VARIABLES WHERE Variable_name IN {variables}")).await?;
    let is_off = |row: &Vec<Option<String>>| row.get(1).and_then(Option::as_deref) == Some("OFF");
    if !rows.iter().any(is_off) {
        return Ok(None);
    }
    let mut is_replica = false;
    for statement in statements {
        match connection.query(statement).await {
            Ok(rows) => {
                is_replica = !rows.is_empty();
                break;
            }
            // The privilege for the status is not required otherwise.
            Err(error) if matches!(error.code, "mysql.query" | "mysql.privilege") => {}
            Err(error) => return Err(error),
        }
    }
    if !is_replica && connection.dialect() == Dialect::MariaDb {
        let replicated = connection.query_one("SELECT @@GLOBAL.gtid_slave_pos").await?;
        is_replica = replicated.is_some_and(|gtids| !gtids.is_empty());
    }
    Ok(is_replica.then(|| UnloggedChanges {
        code: "mysql.check.log_replica_updates",
        message:
            "the server is a replica that does not write the replicated changes to its binlog, so they never arrive"
                .to_owned(),
        fix: match connection.dialect() {
            Dialect::MySql => {
                "set `log_replica_updates = ON` in its configuration and restart it, or point `url` to its source"
            }
            Dialect::MariaDb => {
                "set `log_slave_updates = ON` in its configuration and restart it, or point `url` to its primary"
            }
        }
        .to_owned(),
    }))
}
