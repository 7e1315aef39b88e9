//! What is asked of the server when a source opens: its kind, its character sets, whether it has GTIDs, where its binlog ends, and whether it still has
//! what follows the position.

use std::sync::Arc;
use std::time::Duration;

use sqlx::mysql::MySqlConnection;
use trunkline_connector::{Domain, Error, Result};

use crate::config::MysqlOptions;
use crate::connection::connect::{query, query_one, server};
use crate::gtid::{Domains, GtidSet, UuidSet};
use crate::position::{Place, StreamPosition};
use crate::schema::charset::{Charset, Charsets};
use crate::snapshot::select::literal;

/// How a server numbers transactions. It also says whose server it is: MariaDB always does, and in its own way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gtids {
    None,
    MySql,
    MariaDb,
}

impl Gtids {
    /// Of a set of this kind, in the server's notation.
    fn parse(self, options: &MysqlOptions, text: &str) -> Result<Option<GtidSet>> {
        let set = match self {
            Self::None => return Ok(None),
            Self::MySql => UuidSet::parse(text).map(GtidSet::MySql),
            Self::MariaDb => Domains::parse(text).map(GtidSet::MariaDb),
        };
        let unreadable =
            || Error::internal("mysql.gtid", format!("{}: `{text}` cannot be read as GTIDs", server(options)));
        set.map(Some).ok_or_else(unreadable)
    }

    /// An error in the words of the server: MariaDB's settings are kept in its configuration file alone.
    pub(crate) fn in_its_words(self, error: Error) -> Error {
        if self != Self::MariaDb || !error.message().contains("SET PERSIST") {
            return error;
        }
        let message = error.message().replace("SET PERSIST", "SET GLOBAL");
        let same = match error.domain {
            Domain::Config => Error::config(error.code, message),
            Domain::Data => Error::data(error.code, message),
            Domain::External => Error::external(error.code, message),
            Domain::Fenced => Error::fenced(error.code, message),
            Domain::Internal => Error::internal(error.code, message),
        };
        same.retry(error.retry)
    }
}

/// Whose server is it?
pub(crate) async fn is_mariadb(options: &MysqlOptions, connection: &mut MySqlConnection) -> Result<bool> {
    Ok(query_one(options, connection, "SELECT VERSION()").await?.is_some_and(|version| version.contains("MariaDB")))
}

/// What a source needs to know of its server.
pub(crate) struct Server {
    pub(crate) charsets: Arc<Charsets>,
    pub(crate) gtids: Gtids,
    pub(crate) server_id: u32,
    /// How long the binlog is kept; `None` if until somebody purges it.
    pub(crate) retention: Option<Duration>,
}

impl Server {
    pub(crate) async fn ask(options: &MysqlOptions, connection: &mut MySqlConnection) -> Result<Self> {
        let is_mariadb = is_mariadb(options, connection).await?;
        let gtid_mode = if is_mariadb { "NULL" } else { "@@GLOBAL.gtid_mode" };
        let settings = format!("SELECT @@GLOBAL.log_bin, {gtid_mode}, @@GLOBAL.server_id, @@GLOBAL.binlog_format");
        let row = query(options, connection, &settings).await?.into_iter().next().unwrap_or_default();
        let setting = |index: usize| row.get(index).and_then(Option::as_deref).unwrap_or_default();
        if setting(0) != "1" {
            return Err(refused(options, "it keeps no binlog; start it with `log_bin`"));
        }
        if setting(3) != "ROW" {
            let set = if is_mariadb { "SET GLOBAL" } else { "SET PERSIST" };
            let what = format!("binlog_format is {}; {set} binlog_format = 'ROW'", setting(3));
            return Err(refused(options, &what));
        }
        Ok(Self {
            charsets: Arc::new(charsets(options, connection, is_mariadb).await?),
            gtids: match setting(1) {
                _ if is_mariadb => Gtids::MariaDb,
                "ON" => Gtids::MySql,
                _ => Gtids::None,
            },
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

async fn charsets(options: &MysqlOptions, connection: &mut MySqlConnection, is_mariadb: bool) -> Result<Charsets> {
    // MariaDB has collations that fit several character sets, and a number for each of the pairs. Not all versions tell it there.
    let all = "SELECT ID, CHARACTER_SET_NAME FROM information_schema.COLLATIONS";
    let pairs = "SELECT ID, CHARACTER_SET_NAME FROM information_schema.COLLATION_CHARACTER_SET_APPLICABILITY";
    let mut collations = query(options, connection, if is_mariadb { pairs } else { all }).await;
    if is_mariadb && collations.as_ref().is_err_and(|error| error.code == "mysql.query") {
        collations = query(options, connection, all).await;
    }
    let collations = collations?;
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

/// Where the server's binlog ends, and which transactions are committed (MySQL).
pub(crate) async fn binlog_end(
    options: &MysqlOptions,
    connection: &mut MySqlConnection,
) -> Result<(Place, Option<String>)> {
    // The second is what MariaDB understands, and MySQL before 8.2.
    let mut answer = query(options, connection, "SHOW BINARY LOG STATUS").await;
    if answer.as_ref().is_err_and(|error| error.code == "mysql.query") {
        answer = query(options, connection, "SHOW MASTER STATUS").await;
    }
    let row =
        answer?.into_iter().next().ok_or_else(|| refused(options, "it keeps no binlog; start it with `log_bin`"))?;
    let text = |index: usize| row.get(index).cloned().flatten().unwrap_or_default();
    Ok((Place { file: text(0), pos: text(1).parse().unwrap_or(0) }, row.get(4).cloned().flatten()))
}

/// What is in MariaDB's binlog.
async fn mariadb_gtids(options: &MysqlOptions, connection: &mut MySqlConnection) -> Result<String> {
    Ok(query_one(options, connection, "SELECT @@GLOBAL.gtid_binlog_pos").await?.unwrap_or_default())
}

/// The position of a source that begins now. Transactions that are in the binlog and not yet committed are not in it: they will be
/// streamed. (MariaDB tells what is in the binlog, committed or not: a query that sees what comes after waits for them, see
/// `snapshot::reader`.)
pub(crate) async fn beginning(
    options: &MysqlOptions,
    connection: &mut MySqlConnection,
    gtids: Gtids,
) -> Result<StreamPosition> {
    let (place, executed) = match gtids {
        Gtids::MariaDb => {
            let known = mariadb_gtids(options, connection).await?;
            (binlog_end(options, connection).await?.0, Some(known))
        }
        _ => binlog_end(options, connection).await?,
    };
    let done = gtids.parse(options, executed.as_deref().unwrap_or_default())?;
    Ok(StreamPosition { done, place, part: None })
}

/// Has the server everything that was handed out already? If not, it is a replica that lags behind, or it lost something: what it
/// would send from here on might not be what followed.
pub(crate) async fn check_not_behind(
    options: &MysqlOptions,
    connection: &mut MySqlConnection,
    gtids: Gtids,
    position: &StreamPosition,
) -> Result<()> {
    if (gtids == Gtids::MariaDb) != matches!(position.done, Some(GtidSet::MariaDb(_))) {
        let message = format!(
            "{} is of another kind than the server that this source followed: MySQL and MariaDB number transactions in different ways. Begin anew with a source \
             of another name",
            server(options)
        );
        return Err(Error::data("mysql.other_server", message));
    }
    let Some(done) = &position.done else { return Ok(()) };
    let executed = match gtids {
        Gtids::MariaDb => mariadb_gtids(options, connection).await?,
        _ => query_one(options, connection, "SELECT @@GLOBAL.gtid_executed").await?.unwrap_or_default(),
    };
    if gtids.parse(options, &executed)?.is_some_and(|has| has.contains_all(done)) {
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
        Some(done @ GtidSet::MySql(_)) => {
            let purged = query_one(options, connection, "SELECT @@GLOBAL.gtid_purged").await?.unwrap_or_default();
            Ok(Gtids::MySql.parse(options, &purged)?.is_some_and(|purged| done.contains_all(&purged)))
        }
        Some(done @ GtidSet::MariaDb(_)) => {
            // The oldest file begins with what was before it.
            let files = query(options, connection, "SHOW BINARY LOGS").await?;
            let oldest = files.first().and_then(|row| row.first().cloned().flatten()).unwrap_or_default();
            let ask = format!("SELECT BINLOG_GTID_POS({}, 4)", literal(&oldest));
            let purged = query_one(options, connection, &ask).await?.unwrap_or_default();
            Ok(Gtids::MariaDb.parse(options, &purged)?.is_some_and(|purged| done.contains_all(&purged)))
        }
        None => {
            let files = query(options, connection, "SHOW BINARY LOGS").await?;
            Ok(files.iter().any(|row| row.first().and_then(Option::as_deref) == Some(position.place.file.as_str())))
        }
    }
}
