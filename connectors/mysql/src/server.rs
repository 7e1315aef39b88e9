//! What is asked of the server when a source opens: its character sets, whether it has GTIDs, where its binlog ends, and whether it still has
//! what follows the position.

use std::sync::Arc;
use std::time::Duration;

use sqlx::mysql::MySqlConnection;
use trunkline_connector::{Error, Result};

use crate::charset::{Charset, Charsets};
use crate::config::MysqlOptions;
use crate::connect::{query, query_one, server};
use crate::gtid::GtidSet;
use crate::position::{Place, StreamPosition};

/// What a source needs to know of its server.
pub(crate) struct Server {
    pub(crate) charsets: Arc<Charsets>,
    pub(crate) has_gtids: bool,
    pub(crate) server_id: u32,
    /// How long the binlog is kept; `None` if until somebody purges it.
    pub(crate) retention: Option<Duration>,
}

impl Server {
    pub(crate) async fn ask(options: &MysqlOptions, connection: &mut MySqlConnection) -> Result<Self> {
        let settings = "SELECT @@GLOBAL.log_bin, @@GLOBAL.gtid_mode, @@GLOBAL.server_id, @@GLOBAL.binlog_format";
        let row = query(options, connection, settings).await?.into_iter().next().unwrap_or_default();
        let setting = |index: usize| row.get(index).and_then(Option::as_deref).unwrap_or_default();
        if setting(0) != "1" {
            return Err(refused(options, "it keeps no binlog; start it with `log_bin`"));
        }
        if setting(3) != "ROW" {
            let what = format!("binlog_format is {}; SET PERSIST binlog_format = 'ROW'", setting(3));
            return Err(refused(options, &what));
        }
        Ok(Self {
            charsets: Arc::new(charsets(options, connection).await?),
            has_gtids: setting(1) == "ON",
            server_id: setting(2).parse().unwrap_or(0),
            retention: retention(options, connection).await?,
        })
    }
}

fn refused(options: &MysqlOptions, what: &str) -> Error {
    Error::config("mysql.server", format!("{} cannot be followed: {what}", server(options)))
}

async fn retention(options: &MysqlOptions, connection: &mut MySqlConnection) -> Result<Option<Duration>> {
    // Not all servers have both.
    let sql =
        "SHOW GLOBAL VARIABLES WHERE Variable_name IN ('binlog_expire_logs_seconds', 'binlog_expire_logs_auto_purge')";
    let rows = query(options, connection, sql).await?;
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

async fn charsets(options: &MysqlOptions, connection: &mut MySqlConnection) -> Result<Charsets> {
    let collations = "SELECT ID, CHARACTER_SET_NAME FROM information_schema.COLLATIONS";
    let collations = query(options, connection, collations).await?;
    let collations = collations.into_iter().filter_map(|row| {
        let mut values = row.into_iter();
        Some((values.next()??.parse().ok()?, values.next()??))
    });
    let names = "SELECT CHARACTER_SET_NAME, MAXLEN FROM information_schema.CHARACTER_SETS";
    let mut charsets = Vec::new();
    for row in query(options, connection, names).await? {
        let [Some(name), Some(longest)] = row.as_slice() else { continue };
        if longest != "1" || name == "binary" {
            charsets.extend(Charset::multi_byte(name));
            continue;
        }
        // The server itself says what each of the 256 bytes means. Names of charsets are the server's own words, no user's.
        let bytes: String = (0..=255u8).map(|byte| format!("{byte:02x}")).collect();
        let ask = format!("SELECT CONVERT(CONVERT(x'{bytes}' USING {name}) USING utf8mb4)");
        let table = query_one(options, connection, &ask).await?.unwrap_or_default();
        charsets.extend(Charset::single_byte(name, table.chars().collect()));
    }
    Ok(Charsets::new(charsets, collations.collect()))
}

/// Where the server's binlog ends, and which transactions are committed.
pub(crate) async fn binlog_end(
    options: &MysqlOptions,
    connection: &mut MySqlConnection,
) -> Result<(Place, Option<String>)> {
    // The second is what servers before 8.2 understand.
    let mut answer = query(options, connection, "SHOW BINARY LOG STATUS").await;
    if answer.as_ref().is_err_and(|error| error.code == "mysql.query") {
        answer = query(options, connection, "SHOW MASTER STATUS").await;
    }
    let row =
        answer?.into_iter().next().ok_or_else(|| refused(options, "it keeps no binlog; start it with `log_bin`"))?;
    let text = |index: usize| row.get(index).cloned().flatten().unwrap_or_default();
    Ok((Place { file: text(0), pos: text(1).parse().unwrap_or(0) }, row.get(4).cloned().flatten()))
}

/// The position of a source that begins now. Transactions that are in the binlog and not yet committed are not in it: they will be
/// streamed.
pub(crate) async fn beginning(
    options: &MysqlOptions,
    connection: &mut MySqlConnection,
    has_gtids: bool,
) -> Result<StreamPosition> {
    let (place, gtids) = binlog_end(options, connection).await?;
    let done = if has_gtids { Some(gtid_set(options, gtids.as_deref().unwrap_or_default())?) } else { None };
    Ok(StreamPosition { done, place, part: None })
}

pub(crate) fn gtid_set(options: &MysqlOptions, text: &str) -> Result<GtidSet> {
    GtidSet::parse(text)
        .ok_or_else(|| Error::bug("mysql.gtid", format!("{}: `{text}` cannot be read as a GTID set", server(options))))
}

/// Has the server everything that was handed out already? If not, it is a replica that lags behind, or it lost something: what it
/// would send from here on might not be what followed.
pub(crate) async fn check_not_behind(
    options: &MysqlOptions,
    connection: &mut MySqlConnection,
    position: &StreamPosition,
) -> Result<()> {
    let Some(done) = &position.done else { return Ok(()) };
    let executed = query_one(options, connection, "SELECT @@GLOBAL.gtid_executed").await?.unwrap_or_default();
    if gtid_set(options, &executed)?.contains_all(done) {
        return Ok(());
    }
    let message = format!(
        "{} has not got transactions that were handed out already: it has {executed}, handed out are {done}. If it is a replica that lags behind, the source \
         goes on when it has them; if it lost them, point `url` at a server that has them, or begin anew with a source of another name",
        server(options)
    );
    Err(Error::external("mysql.behind_position", message))
}

/// Has the server still got everything after the position?
pub(crate) async fn still_has(
    options: &MysqlOptions,
    connection: &mut MySqlConnection,
    position: &StreamPosition,
) -> Result<bool> {
    match &position.done {
        Some(done) => {
            let purged = query_one(options, connection, "SELECT @@GLOBAL.gtid_purged").await?.unwrap_or_default();
            Ok(done.contains_all(&gtid_set(options, &purged)?))
        }
        None => {
            let files = query(options, connection, "SHOW BINARY LOGS").await?;
            Ok(files.iter().any(|row| row.first().and_then(Option::as_deref) == Some(position.place.file.as_str())))
        }
    }
}
