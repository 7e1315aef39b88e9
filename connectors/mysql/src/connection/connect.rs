//! Connections: sqlx's for queries, our own for the replication protocol ([`crate::replication`]), with the same address and the same TLS; and what their failures mean.

use std::path::Path;
use std::time::Duration;

use sqlx::mysql::{MySqlConnectOptions, MySqlConnection, MySqlSslMode};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, Row as _};
use trunkline_connector::{Error, Result};

use crate::config::{MysqlOptions, Tls};
use crate::replication::{Connection, Failure};

/// A server that does not answer in this time is down.
const PATIENCE: Duration = Duration::from_secs(10);

/// What every error says first.
pub(crate) fn server(options: &MysqlOptions) -> String {
    format!("MySQL at {}:{}", options.url.host, options.url.port)
}

/// A connection for queries. Times are in UTC, and no SQL mode of the server's stands in the way of what its tables hold.
pub(crate) async fn query_connection(options: &MysqlOptions) -> Result<MySqlConnection> {
    let address = &options.url;
    let mut connect = MySqlConnectOptions::new()
        .host(&address.host)
        .port(address.port)
        .username(&address.user)
        .statement_cache_capacity(0)
        .ssl_mode(match options.tls {
            Tls::Disable => MySqlSslMode::Disabled,
            Tls::Prefer => MySqlSslMode::Preferred,
            Tls::Require => MySqlSslMode::Required,
            Tls::VerifyCa => MySqlSslMode::VerifyCa,
            Tls::VerifyIdentity => MySqlSslMode::VerifyIdentity,
        });
    if let Some(password) = &address.password {
        connect = connect.password(password);
    }
    if let Some(path) = &options.tls_ca {
        connect = connect.ssl_ca_from_pem(read_ca(path)?);
    }
    connect = connect.disable_statement_logging();
    let mut connection = match tokio::time::timeout(PATIENCE, connect.connect()).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => return Err(query_error(options, "connect", &error)),
        Err(_) => return Err(no_answer(options)),
    };
    execute(options, &mut connection, "SET SESSION sql_mode = '', time_zone = '+00:00'").await?;
    Ok(connection)
}

fn no_answer(options: &MysqlOptions) -> Error {
    Error::external("mysql.unreachable", format!("{} did not answer within {PATIENCE:?}", server(options)))
}

pub(crate) fn read_ca(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|error| {
        Error::config("mysql.tls_ca", format!("`tls_ca`: cannot read {}: {error}; name a PEM file", path.display()))
    })
}

/// Runs a statement without result.
pub(crate) async fn execute(options: &MysqlOptions, connection: &mut MySqlConnection, sql: &str) -> Result<()> {
    let done = sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(connection).await;
    done.map(drop).map_err(|error| query_error(options, sql, &error))
}

/// Rows of a query as text; what is null is `None`.
pub(crate) async fn query(
    options: &MysqlOptions,
    connection: &mut MySqlConnection,
    sql: &str,
) -> Result<Vec<Vec<Option<String>>>> {
    let rows = sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).fetch_all(connection).await;
    let rows = rows.map_err(|error| query_error(options, sql, &error))?;
    let text = |row: &sqlx::mysql::MySqlRow, index: usize| -> Option<String> {
        let bytes: Option<&[u8]> = row.try_get_unchecked(index).ok()?;
        bytes.map(|bytes| String::from_utf8_lossy(bytes).into_owned())
    };
    Ok(rows.iter().map(|row| (0..row.len()).map(|index| text(row, index)).collect()).collect())
}

/// The first value of a query.
pub(crate) async fn query_one(
    options: &MysqlOptions,
    connection: &mut MySqlConnection,
    sql: &str,
) -> Result<Option<String>> {
    Ok(query(options, connection, sql).await?.into_iter().next().and_then(|row| row.into_iter().next().flatten()))
}

/// Is it an error of the server with this number?
pub(crate) fn is_server_error(error: &sqlx::Error, number: u16) -> bool {
    error
        .as_database_error()
        .and_then(|error| error.try_downcast_ref::<sqlx::mysql::MySqlDatabaseError>())
        .is_some_and(|error| error.number() == number)
}

/// What a failed query means.
pub(crate) fn query_error(options: &MysqlOptions, doing: &str, error: &sqlx::Error) -> Error {
    const ACCESS_DENIED: u16 = 1045;
    const NO_DATABASE_GRANT: u16 = 1044;
    const NO_TABLE_GRANT: u16 = 1142;
    const NO_PRIVILEGE: u16 = 1227;
    let server = server(options);
    if is_server_error(error, ACCESS_DENIED) {
        let message =
            format!("{server} refused the user `{}`: {error}; mend `url`, or the user's password", options.url.user);
        return Error::config("mysql.access_denied", message);
    }
    if [NO_DATABASE_GRANT, NO_TABLE_GRANT, NO_PRIVILEGE].iter().any(|number| is_server_error(error, *number)) {
        let message = format!(
            "{server} does not let `{}` do this: {doing}: {error}; see `trunkline validate --check`",
            options.url.user
        );
        return Error::config("mysql.privilege", message);
    }
    match error {
        sqlx::Error::Configuration(why) if why.to_string().contains("RSA") => Error::config(
            "mysql.tls",
            format!(
                "{server} does not take a password without TLS that it has not in its cache; set `tls` to \"require\" or more"
            ),
        ),
        sqlx::Error::Database(_) => Error::external("mysql.query", format!("{server}: {doing}: {error}")),
        sqlx::Error::Tls(_) => {
            Error::external("mysql.tls", format!("{server}: {error}; see the options `tls` and `tls_ca`"))
        }
        _ => Error::external("mysql.unreachable", format!("{server}: {doing}: {error}")),
    }
}

/// A connection for the replication protocol.
pub(crate) async fn replication_connection(options: &MysqlOptions) -> Result<Connection> {
    in_time(options, Connection::open(options)).await
}

/// A step of the replication protocol, which a server that is there answers in time.
pub(crate) async fn in_time<T>(options: &MysqlOptions, step: impl Future<Output = Result<T, Failure>>) -> Result<T> {
    match tokio::time::timeout(PATIENCE, step).await {
        Ok(done) => done.map_err(|failure| replication_error(options, failure)),
        Err(_) => Err(no_answer(options)),
    }
}

/// What a failure of the replication protocol means.
pub(crate) fn replication_error(options: &MysqlOptions, failure: Failure) -> Error {
    let server = server(options);
    let (code, message) = match failure {
        Failure::Server { code, message } => (code, message),
        Failure::Broken(why) => {
            return Error::external("mysql.unreachable", format!("{server}: the binlog's connection broke: {why}"));
        }
        Failure::Closed => {
            return Error::external("mysql.unreachable", format!("{server}: the server closed the binlog"));
        }
        Failure::Tls(why) => {
            return Error::external("mysql.tls", format!("{server}: {why}; see the options `tls` and `tls_ca`"));
        }
        Failure::Checksum { kind, ends_at } => {
            let message = format!(
                "{server}: an event of type {kind} that ends at {ends_at} arrived damaged: its checksum does not fit"
            );
            return Error::external("mysql.checksum", message);
        }
        Failure::Malformed(error) => {
            return Error::data("mysql.malformed", format!("{server}: an event: {error} (please report this)"));
        }
        Failure::Payload { file, ends_at, why } => {
            let message = format!(
                "{server}: the compressed transaction that ends at {file}:{ends_at} cannot be unpacked: {why}. If it stays so, \
                 SET PERSIST binlog_transaction_compression = OFF, and begin anew with a source of another name"
            );
            return Error::data("mysql.payload", message);
        }
        Failure::Scratch(why) => {
            return Error::external("mysql.scratch", format!("{server}: {why}; make room for up to 1 GiB there"));
        }
        Failure::Told(error) => return error,
    };
    replied(options, code, &message)
}

/// What an error means that the server sent.
fn replied(options: &MysqlOptions, code: u16, answer: &str) -> Error {
    let server = server(options);
    const NO_PRIVILEGE: [u16; 2] = [1227, 1045];
    // One number for everything that ends a replica's connection: only the text tells.
    const REPLICATION: u16 = 1236;
    let says = |text: &str| answer.contains(text);
    if NO_PRIVILEGE.contains(&code) {
        let message = format!(
            "{server}: {answer}; grant it: GRANT REPLICATION SLAVE, REPLICATION CLIENT ON *.* TO '{}'@'%'",
            options.url.user
        );
        return Error::config("mysql.privilege", message);
    }
    // The last of these is MariaDB's, which tells a position that its binlog does not have from one that it begins after.
    let is_behind = ["has more GTIDs", "more GTIDs than", "is not in the master's binlog"].into_iter().any(says);
    if code == REPLICATION && is_behind {
        let message = format!(
            "{server} has not got transactions that were handed out already: {answer}. It lost data, or is another server than before. Point `url` at a \
             server that has them, or begin anew with a source of another name"
        );
        return Error::data("mysql.behind_position", message);
    }
    if code == REPLICATION && says("required binlog files have been purged") {
        let message = format!(
            "{server} has purged the binlog that follows this source's position: changes are lost: {answer}. Set `on_purged = \"resnapshot\"` to begin anew with a snapshot"
        );
        return Error::data("mysql.purged", message);
    }
    if code == REPLICATION && says("same server_uuid/server_id") {
        let message = format!(
            "{server}: another replica has taken over the connection: {answer}. If it is not this source on another worker, set another `server_id`"
        );
        return Error::external("mysql.server_id", message);
    }
    Error::external("mysql.binlog", format!("{server}: error {code}: {answer}"))
}

/// Closes a connection; that the server may be gone already does not matter.
pub(crate) async fn close(connection: MySqlConnection) {
    let _ = connection.close().await;
}
