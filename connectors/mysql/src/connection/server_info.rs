//! The facts that a source asks of its server once: flavor, character sets, and the retention of
//! the binlog.

use std::sync::Arc;
use std::time::Duration;

use trunkline_connector::{Error, Result};

use super::charsets::read_single_byte_table;
use super::dialect::{Dialect, ServerFlavor};
use super::query::QueryConnection;
use crate::schema::charset::{Charset, Charsets};

/// The facts of a server.
pub(crate) struct ServerInfo {
    pub(crate) charsets: Arc<Charsets>,
    pub(crate) flavor: ServerFlavor,
    pub(crate) server_id: u32,
    /// Distinguishes the server from others, across restarts.
    pub(crate) identity: String,
    /// How long the server keeps its binlog; `None` if it purges nothing by itself.
    pub(crate) retention: Option<Duration>,
}

impl ServerInfo {
    /// Asks the server, and rejects one that cannot be followed.
    pub(crate) async fn read(connection: &mut QueryConnection) -> Result<Self> {
        let dialect = connection.dialect();
        let (gtid_mode, uuid) = match dialect {
            Dialect::MySql => ("@@GLOBAL.gtid_mode", "@@GLOBAL.server_uuid"),
            // The servers of a replication topology have different numbers.
            Dialect::MariaDb => ("NULL", "CONCAT('mariadb-', @@GLOBAL.server_id)"),
        };
        let sql = format!("SELECT @@GLOBAL.log_bin, {gtid_mode}, @@GLOBAL.server_id, @@GLOBAL.binlog_format, {uuid}");
        let row = connection.query(&sql).await?.into_iter().next().unwrap_or_default();
        let value = |index: usize| row.get(index).and_then(Option::as_deref).unwrap_or_default();
        if value(0) != "1" {
            return Err(unusable(connection, "the binlog is off; start the server with `log_bin`"));
        }
        if value(3) != "ROW" {
            let fix = dialect.set_global("binlog_format = 'ROW'");
            return Err(unusable(connection, &format!("binlog_format is {}; {fix}", value(3))));
        }
        Ok(Self {
            charsets: Arc::new(read_charsets(connection).await?),
            flavor: match (dialect, value(1)) {
                (Dialect::MariaDb, _) => ServerFlavor::MariaDb,
                (Dialect::MySql, "ON") => ServerFlavor::MySql,
                (Dialect::MySql, _) => ServerFlavor::MySqlWithoutGtids,
            },
            server_id: value(2).parse().unwrap_or(0),
            identity: value(4).to_owned(),
            retention: read_retention(connection).await?,
        })
    }
}

/// The error of a server that cannot be followed.
pub(super) fn unusable(connection: &QueryConnection, why: &str) -> Error {
    Error::config("mysql.server", format!("{} cannot be followed: {why}", connection.server_label()))
}

async fn read_retention(connection: &mut QueryConnection) -> Result<Option<Duration>> {
    // Some servers lack the second variable.
    let sql =
        "SHOW GLOBAL VARIABLES WHERE Variable_name IN ('binlog_expire_logs_seconds', 'binlog_expire_logs_auto_purge')";
    let rows = connection.query(sql).await?;
    let value = |name: &str| {
        let row = rows.iter().find(|row| row.first().and_then(Option::as_deref) == Some(name))?;
        row.get(1).and_then(Option::as_deref)
    };
    if value("binlog_expire_logs_auto_purge") == Some("OFF") {
        return Ok(None);
    }
    let seconds =
        value("binlog_expire_logs_seconds").and_then(|seconds| seconds.parse().ok()).filter(|seconds| *seconds > 0);
    Ok(seconds.map(Duration::from_secs))
}

async fn read_charsets(connection: &mut QueryConnection) -> Result<Charsets> {
    // A collation of MariaDB may apply to several character sets, with a number for each pair. Some
    // versions lack the numbers in the second table.
    let all = "SELECT ID, CHARACTER_SET_NAME FROM information_schema.COLLATIONS";
    let pairs = "SELECT ID, CHARACTER_SET_NAME FROM information_schema.COLLATION_CHARACTER_SET_APPLICABILITY";
    let is_mariadb = connection.dialect() == Dialect::MariaDb;
    let mut collations = connection.query(if is_mariadb { pairs } else { all }).await;
    if is_mariadb && collations.as_ref().is_err_and(|error| error.code == "mysql.query") {
        collations = connection.query(all).await;
    }
    let collations = collations?.into_iter().filter_map(|row| {
        let mut values = row.into_iter();
        Some((values.next()??.parse().ok()?, values.next()??))
    });
    let mut charsets = Vec::new();
    for row in connection.query("SELECT CHARACTER_SET_NAME, MAXLEN FROM information_schema.CHARACTER_SETS").await? {
        let [Some(name), Some(max_length)] = row.as_slice() else { continue };
        if max_length != "1" || name == "binary" {
            charsets.extend(Charset::multi_byte(name));
            continue;
        }
        let table = read_single_byte_table(connection, name).await?;
        charsets.extend(Charset::single_byte(name, table));
    }
    Ok(Charsets::new(charsets, collations.collect()))
}
