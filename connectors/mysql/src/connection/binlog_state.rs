//! The state of the server's binlog, compared with the position of a source.

use trunkline_connector::{Error, Result};

use super::dialect::{Dialect, ServerFlavor};
use super::query::QueryConnection;
use super::quote::string_literal;
use super::server_info::unusable;
use crate::gtid::{Domains, GtidSet, UuidSet};
use crate::position::{BinlogPosition, StreamPosition};

/// The end of the server's binlog, and MySQL's set of executed GTIDs.
pub(crate) async fn binlog_end(connection: &mut QueryConnection) -> Result<(BinlogPosition, Option<String>)> {
    // MariaDB, and MySQL before 8.2, know only the second statement.
    let mut answer = connection.query("SHOW BINARY LOG STATUS").await;
    if answer.as_ref().is_err_and(|error| error.code == "mysql.query") {
        answer = connection.query("SHOW MASTER STATUS").await;
    }
    let row = answer?.into_iter().next();
    let row = row.ok_or_else(|| unusable(connection, "the binlog is off; start the server with `log_bin`"))?;
    let text = |index: usize| row.get(index).cloned().flatten().unwrap_or_default();
    let end = BinlogPosition { file: text(0), pos: text(1).parse().unwrap_or(0) };
    Ok((end, row.get(4).cloned().flatten()))
}

/// The GTIDs in MariaDB's binlog.
async fn mariadb_gtids(connection: &mut QueryConnection) -> Result<String> {
    Ok(connection.query_one("SELECT @@GLOBAL.gtid_binlog_pos").await?.unwrap_or_default())
}

/// Parses GTIDs in the notation of the server's flavor.
pub(crate) fn parse_gtids(connection: &QueryConnection, flavor: ServerFlavor, text: &str) -> Result<Option<GtidSet>> {
    let set = match flavor {
        ServerFlavor::MySqlWithoutGtids => return Ok(None),
        ServerFlavor::MySql => UuidSet::parse(text).map(GtidSet::MySql),
        ServerFlavor::MariaDb => Domains::parse(text).map(GtidSet::MariaDb),
    };
    let invalid = || {
        let server = connection.server_label();
        Error::internal("mysql.gtid", format!("{server}: cannot parse the GTIDs `{text}`"))
    };
    set.map(Some).ok_or_else(invalid)
}

/// The position of a source that starts now. It excludes transactions that are in the binlog but
/// not committed; the stream will contain them. (MariaDB reports everything in its binlog,
/// committed or not. A snapshot waits until its queries see all of it: see `snapshot::reader`.)
pub(crate) async fn current_position(connection: &mut QueryConnection, flavor: ServerFlavor) -> Result<StreamPosition> {
    let (end, executed) = match flavor {
        ServerFlavor::MariaDb => {
            let gtids = mariadb_gtids(connection).await?;
            (binlog_end(connection).await?.0, Some(gtids))
        }
        _ => binlog_end(connection).await?,
    };
    let processed = parse_gtids(connection, flavor, executed.as_deref().unwrap_or_default())?;
    Ok(StreamPosition { processed, end, partial: None, anchor: None, epoch: None })
}

/// Checks that the server has every transaction that the source has processed. A server that lacks
/// some is a replica that lags behind, or lost data: its next transactions might not be the ones
/// that follow the position.
pub(crate) async fn check_contains(
    connection: &mut QueryConnection,
    flavor: ServerFlavor,
    position: &StreamPosition,
) -> Result<()> {
    let server = connection.server_label();
    if (flavor.dialect() == Dialect::MariaDb) != matches!(position.processed, Some(GtidSet::MariaDb(_))) {
        let message = format!(
            "{server} is not from the vendor whose server this source followed; the GTIDs of MySQL and MariaDB are \
             incompatible; create a source with another name"
        );
        return Err(Error::data("mysql.other_server", message));
    }
    let Some(processed) = &position.processed else { return Ok(()) };
    if flavor == ServerFlavor::MySqlWithoutGtids {
        let message = format!(
            "{server}: gtid_mode was turned off, and the position of this source consists of GTIDs; turn it on again (SET PERSIST \
             gtid_mode in the steps OFF_PERMISSIVE, ON_PERMISSIVE, ON), or create a source with another name"
        );
        return Err(Error::data("mysql.gtid_mode", message));
    }
    let executed = match flavor {
        ServerFlavor::MariaDb => mariadb_gtids(connection).await?,
        _ => connection.query_one("SELECT @@GLOBAL.gtid_executed").await?.unwrap_or_default(),
    };
    if parse_gtids(connection, flavor, &executed)?.is_some_and(|executed| executed.contains_all(processed)) {
        return Ok(());
    }
    let message = format!(
        "{server} lacks transactions that this source has processed: the server has {executed}, the source has {processed}; if the \
         server is a replica that lags behind, the source resumes when it has them; if it lost them, point `url` to a server \
         that has them, or create a source with another name"
    );
    Err(Error::external("mysql.behind_position", message))
}

/// The GTIDs of all transactions before a binlog file, if all transactions from its start on have
/// GTIDs: `gtid_mode` is ON, and each change of it starts another file than the newest one.
pub(crate) async fn gtids_before(connection: &mut QueryConnection, file: &str) -> Result<Option<GtidSet>> {
    if connection.query_one("SELECT @@GLOBAL.gtid_mode").await?.as_deref() != Some("ON") {
        return Ok(None);
    }
    // The mode was read first: a later change of it would have started another file.
    if binlog_end(connection).await?.0.file != file || file.contains(['\'', '\\']) {
        return Ok(None);
    }
    // The statement accepts no literal with a character set.
    let events = connection.query(&format!("SHOW BINLOG EVENTS IN '{file}' LIMIT 2")).await?;
    let text = |row: &Vec<Option<String>>, index: usize| row.get(index).cloned().flatten().unwrap_or_default();
    match events.iter().find(|row| text(row, 2) == "Previous_gtids") {
        Some(row) => parse_gtids(connection, ServerFlavor::MySql, &text(row, 5).replace(char::is_whitespace, "")),
        None => Ok(None),
    }
}

/// Whether the server still has the binlog after the position.
pub(crate) async fn has_binlog_after(connection: &mut QueryConnection, position: &StreamPosition) -> Result<bool> {
    match &position.processed {
        Some(processed @ GtidSet::MySql(_)) => {
            let purged = connection.query_one("SELECT @@GLOBAL.gtid_purged").await?.unwrap_or_default();
            let purged = parse_gtids(connection, ServerFlavor::MySql, &purged)?;
            Ok(purged.is_some_and(|purged| processed.contains_all(&purged)))
        }
        Some(processed @ GtidSet::MariaDb(_)) => {
            // The state at the beginning of the oldest file.
            let files = connection.query("SHOW BINARY LOGS").await?;
            let oldest = files.first().and_then(|row| row.first().cloned().flatten()).unwrap_or_default();
            let sql = format!("SELECT BINLOG_GTID_POS({}, 4)", string_literal(&oldest));
            let purged = connection.query_one(&sql).await?.unwrap_or_default();
            let purged = parse_gtids(connection, ServerFlavor::MariaDb, &purged)?;
            Ok(purged.is_some_and(|purged| processed.contains_all(&purged)))
        }
        None => {
            let files = connection.query("SHOW BINARY LOGS").await?;
            Ok(files.iter().any(|row| row.first().and_then(Option::as_deref) == Some(position.end.file.as_str())))
        }
    }
}

/// The error of a position whose following binlog is purged.
pub(crate) fn purged(connection: &QueryConnection, position: &StreamPosition) -> Error {
    let server = connection.server_label();
    let BinlogPosition { file, pos } = &position.end;
    let keep = connection.dialect().set_global("binlog_expire_logs_seconds = 604800");
    let message = format!(
        "{server} has purged the binlog after the position of this source ({file}:{pos}), so changes are lost; set `on_purged = \
         \"resnapshot\"` to restart with a snapshot, and keep the binlog longer: {keep}"
    );
    Error::data("mysql.purged", message)
}
