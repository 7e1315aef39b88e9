//! [`QueryConnection`]: a connection for SQL, and the meaning of its errors.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};

use sqlx::mysql::{MySqlConnectOptions, MySqlConnection, MySqlDatabaseError, MySqlRow, MySqlSslMode};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, Row as _};
use trunkline_connector::tls::{TlsIdentity, handshake_problem};
use trunkline_connector::{Error, Result};

use super::dialect::Dialect;
use super::options::{ConnectionOptions, Tls};
use super::tls::tls_error;
use super::{call_with_deadline, session};

/// The code of an error of a server that accepts no more connections.
pub(crate) const NO_CONNECTION: &str = "mysql.connections";

/// Rows of a query as text; `None` is null.
pub(crate) type TextRows = Vec<Vec<Option<String>>>;

/// A connection for queries.
pub(crate) struct QueryConnection {
    connection: MySqlConnection,
    options: Arc<ConnectionOptions>,
    dialect: Dialect,
    /// The session computes virtual columns as a session of an application does.
    is_application: bool,
}

impl QueryConnection {
    /// Connects. Times are in UTC, and the SQL mode is empty, so that every stored value can be
    /// read.
    pub(crate) async fn open(options: &Arc<ConnectionOptions>) -> Result<Self> {
        let connect = connect_options(options)?;
        let connection = call_with_deadline(options, connect.connect()).await?;
        let connection = connection.map_err(|error| query_error(options, "connect", &error))?;
        let mut opened =
            Self { connection, options: Arc::clone(options), dialect: Dialect::MySql, is_application: false };
        opened.execute(&session::common_statements().join("; ")).await?;
        let version = opened.query_one("SELECT VERSION()").await?.unwrap_or_default();
        opened.dialect = Dialect::of_version(&version);
        opened.execute(&session::vendor_statements(opened.dialect).join("; ")).await?;
        Ok(opened)
    }

    /// The vendor of the server.
    pub(crate) fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// The beginning of every message about the server.
    pub(crate) fn server_label(&self) -> String {
        self.options.server_label()
    }

    /// Selects the session that computes virtual columns as a session of an application does, or
    /// the neutral one.
    pub(crate) async fn set_application_session(&mut self, is_application: bool) -> Result<()> {
        if self.is_application != is_application {
            let sql = match is_application {
                true => {
                    let sql_mode = self.query_one("SELECT @@GLOBAL.sql_mode").await?.unwrap_or_default();
                    session::application_statement(&sql_mode)
                }
                false => session::NEUTRAL_STATEMENT.to_owned(),
            };
            self.execute(&sql).await?;
            self.is_application = is_application;
        }
        Ok(())
    }

    /// Runs a statement and discards its result.
    pub(crate) async fn execute(&mut self, sql: &str) -> Result<()> {
        self.try_execute(sql).await.map_err(|error| self.error(sql, &error))
    }

    /// As [`execute`](QueryConnection::execute), with the error of the driver.
    pub(crate) async fn try_execute(&mut self, sql: &str) -> Result<(), sqlx::Error> {
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut self.connection).await.map(drop)
    }

    /// The rows of a query as text.
    pub(crate) async fn query(&mut self, sql: &str) -> Result<TextRows> {
        let rows = sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).fetch_all(&mut self.connection).await;
        let rows = rows.map_err(|error| self.error(sql, &error))?;
        let text = |row: &MySqlRow, index: usize| -> Option<String> {
            let bytes: Option<&[u8]> = row.try_get_unchecked(index).ok()?;
            bytes.map(|bytes| String::from_utf8_lossy(bytes).into_owned())
        };
        Ok(rows.iter().map(|row| (0..row.len()).map(|index| text(row, index)).collect()).collect())
    }

    /// The first value of a query.
    pub(crate) async fn query_one(&mut self, sql: &str) -> Result<Option<String>> {
        Ok(self.query(sql).await?.into_iter().next().and_then(|row| row.into_iter().next().flatten()))
    }

    /// The rows of a prepared statement, as the server sends them.
    pub(crate) fn fetch(&mut self, sql: &str) -> RowStream<'_> {
        let mut rows = sqlx::query(AssertSqlSafe(sql.to_owned())).persistent(false).fetch(&mut self.connection);
        RowStream { poll: Box::new(move |context| rows.as_mut().poll_next(context)) }
    }

    /// The meaning of a failed statement. `action` completes "could not ..".
    pub(crate) fn error(&self, action: &str, error: &sqlx::Error) -> Error {
        query_error(&self.options, action, error)
    }

    /// Closes the connection, ignoring errors: the server may have closed it already.
    pub(crate) async fn close(self) {
        let _ = self.connection.close().await;
    }
}

type PollRow<'a> = dyn FnMut(&mut Context<'_>) -> Poll<Option<Result<MySqlRow, sqlx::Error>>> + Send + 'a;

/// Rows in the order in which the server sends them.
pub(crate) struct RowStream<'a> {
    poll: Box<PollRow<'a>>,
}

impl RowStream<'_> {
    pub(crate) async fn next(&mut self) -> Option<Result<MySqlRow, sqlx::Error>> {
        poll_fn(|context| (self.poll)(context)).await
    }
}

fn connect_options(options: &ConnectionOptions) -> Result<MySqlConnectOptions> {
    let address = &options.address;
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
    if let Some(authorities) = options.files.authorities()? {
        connect = connect.ssl_ca_from_pem(authorities);
    }
    if let Some(TlsIdentity { certificate, key }) = options.files.identity()? {
        connect = connect.ssl_client_cert_from_pem(certificate).ssl_client_key_from_pem(key);
    }
    Ok(connect.disable_statement_logging())
}

/// Whether the server reported the error with this number.
pub(crate) fn is_server_error(error: &sqlx::Error, number: u16) -> bool {
    error
        .as_database_error()
        .and_then(|error| error.try_downcast_ref::<MySqlDatabaseError>())
        .is_some_and(|error| error.number() == number)
}

fn query_error(options: &ConnectionOptions, action: &str, error: &sqlx::Error) -> Error {
    const ACCESS_DENIED: u16 = 1045;
    const NO_DATABASE_GRANT: u16 = 1044;
    const NO_TABLE_GRANT: u16 = 1142;
    const NO_PRIVILEGE: u16 = 1227;
    // Of the server; of the user, by `max_user_connections`; of the user, by the account's limits.
    const TOO_MANY_CONNECTIONS: [u16; 3] = [1040, 1203, 1226];
    let server = options.server_label();
    let user = &options.address.user;
    if is_server_error(error, ACCESS_DENIED) {
        let message = format!(
            "{server} rejected the user `{user}`: {error}; correct `url`, or the user's password; if \
             the user must present a certificate (REQUIRE X509), set `tls_cert` and `tls_key`"
        );
        return Error::config("mysql.access_denied", message);
    }
    if [NO_DATABASE_GRANT, NO_TABLE_GRANT, NO_PRIVILEGE].iter().any(|number| is_server_error(error, *number)) {
        let message = format!(
            "{server}: the user `{user}` lacks a privilege for: {action}: {error}; run `trunkline validate --check` for the GRANT"
        );
        return Error::config("mysql.privilege", message);
    }
    if TOO_MANY_CONNECTIONS.iter().any(|number| is_server_error(error, *number)) {
        let message = format!(
            "{server} accepts no more connections of the user `{user}`: {error}; raise `max_connections` or the user's limit, or \
             lower `snapshot_threads`"
        );
        return Error::external(NO_CONNECTION, message);
    }
    if let Some(problem) = handshake_problem(error) {
        return tls_error(options, &problem);
    }
    match error {
        sqlx::Error::Configuration(why) if why.to_string().contains("RSA") => Error::config(
            "mysql.tls",
            format!(
                "{server} has not cached the password of `{user}`, and accepts it over TLS only; set `tls` to \"require\" or a \
                 stricter value"
            ),
        ),
        sqlx::Error::Database(_) => Error::external("mysql.query", format!("{server}: {action}: {error}")),
        sqlx::Error::Tls(_) => tls_error(options, &format!("{error}; check the options `tls` and `tls_ca`")),
        _ => Error::external("mysql.unreachable", format!("{server}: {action}: {error}")),
    }
}
