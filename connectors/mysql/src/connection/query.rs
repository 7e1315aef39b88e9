//! [`QueryConnection`]: a connection for SQL, and the meaning of its errors.

use std::sync::Arc;

use trunkline_connector::{Error, Result};

use super::dialect::Dialect;
use super::options::ConnectionOptions;
use super::protocol::client::Client;
use super::protocol::handshake::{self, KeyUse};
use super::protocol::result_set::Row;
use super::protocol::{ProtocolError, ServerError};
use super::tls::{ServerStream, password_needs_tls, tls_error};
use super::{call_with_deadline, session};

/// The code of an error of a server that accepts no more connections.
pub(crate) const NO_CONNECTION: &str = "mysql.connections";

/// Rows of a query as text; `None` is null.
pub(crate) type TextRows = Vec<Vec<Option<String>>>;

/// A connection for queries.
pub(crate) struct QueryConnection {
    client: Client<ServerStream>,
    options: Arc<ConnectionOptions>,
    dialect: Dialect,
    /// The session computes virtual columns as a session of an application does.
    is_application: bool,
}

impl QueryConnection {
    /// Connects. Times are in UTC, and the SQL mode is empty, so that every stored value can be
    /// read.
    pub(crate) async fn open(options: &Arc<ConnectionOptions>) -> Result<Self> {
        let connected = call_with_deadline(options, handshake::connect(options, KeyUse::Refused)).await?;
        let (packets, dialect) = connected.map_err(|error| query_error(options, "connect", error))?;
        let client = Client::new(packets);
        let mut opened = Self { client, options: Arc::clone(options), dialect, is_application: false };
        for sql in session::common_statements().into_iter().chain(session::vendor_statements(dialect)) {
            opened.execute(&sql).await?;
        }
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
        self.try_execute(sql).await.map_err(|error| self.error(sql, error))
    }

    /// As [`execute`](QueryConnection::execute), with the error of the connection.
    pub(crate) async fn try_execute(&mut self, sql: &str) -> Result<(), ProtocolError> {
        self.client.query(sql).await?;
        self.client.skip_rows().await
    }

    /// The rows of a query as text.
    pub(crate) async fn query(&mut self, sql: &str) -> Result<TextRows> {
        self.try_query(sql).await.map_err(|error| self.error(sql, error))
    }

    async fn try_query(&mut self, sql: &str) -> Result<TextRows, ProtocolError> {
        self.client.query(sql).await?;
        let mut rows = Vec::new();
        while let Some(row) = self.client.next_text().await? {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            rows.push(row.values().map(|value| value.map(text)).collect());
        }
        Ok(rows)
    }

    /// The first value of a query.
    pub(crate) async fn query_one(&mut self, sql: &str) -> Result<Option<String>> {
        Ok(self.query(sql).await?.into_iter().next().and_then(|row| row.into_iter().next().flatten()))
    }

    /// Executes a prepared statement, whose rows [`next_row`](QueryConnection::next_row) returns. A
    /// prepared statement is a single one, whatever the text contains.
    pub(crate) async fn select(&mut self, sql: &str) -> Result<(), ProtocolError> {
        self.client.execute(sql).await
    }

    /// The next row, as soon as the server sends it.
    #[inline]
    pub(crate) async fn next_row(&mut self) -> Result<Option<Row<'_>>, ProtocolError> {
        self.client.next_binary().await
    }

    /// Receives and drops the remaining rows.
    pub(crate) async fn skip_rows(&mut self) -> Result<(), ProtocolError> {
        self.client.skip_rows().await
    }

    /// The meaning of a failed statement. `action` completes "could not ..".
    pub(crate) fn error(&self, action: &str, error: ProtocolError) -> Error {
        query_error(&self.options, action, error)
    }

    /// Closes the connection, ignoring errors: the server may have closed it already.
    pub(crate) async fn close(self) {
        let _ = self.client.quit().await;
    }
}

fn query_error(options: &ConnectionOptions, action: &str, error: ProtocolError) -> Error {
    match error {
        ProtocolError::Server(error) => error_of_server(options, action, &error),
        ProtocolError::Broken(why) => {
            Error::external("mysql.unreachable", format!("{}: {action}: {why}", options.server_label()))
        }
        ProtocolError::Tls(why) => tls_error(options, &why),
        ProtocolError::PasswordNeedsTls => password_needs_tls(options),
        ProtocolError::Connector(error) => error,
    }
}

fn error_of_server(options: &ConnectionOptions, action: &str, error: &ServerError) -> Error {
    const ACCESS_DENIED: u16 = 1045;
    const NO_DATABASE_GRANT: u16 = 1044;
    const NO_TABLE_GRANT: u16 = 1142;
    const NO_PRIVILEGE: u16 = 1227;
    // Of the server; of the user, by `max_user_connections`; of the user, by the account's limits.
    const TOO_MANY_CONNECTIONS: [u16; 3] = [1040, 1203, 1226];
    let (server, user) = (options.server_label(), &options.address.user);
    match error.number {
        ACCESS_DENIED => {
            let message = format!(
                "{server} rejected the user `{user}`: {error}; correct `url`, or the user's password; if \
                 the user must present a certificate (REQUIRE X509), set `tls_cert` and `tls_key`"
            );
            Error::config("mysql.access_denied", message)
        }
        NO_DATABASE_GRANT | NO_TABLE_GRANT | NO_PRIVILEGE => {
            let message = format!(
                "{server}: the user `{user}` lacks a privilege for: {action}: {error}; run `trunkline validate --check` for \
                 the GRANT"
            );
            Error::config("mysql.privilege", message)
        }
        number if TOO_MANY_CONNECTIONS.contains(&number) => {
            let message = format!(
                "{server} accepts no more connections of the user `{user}`: {error}; raise `max_connections` or the user's \
                 limit, or lower `snapshot_threads`"
            );
            Error::external(NO_CONNECTION, message)
        }
        _ => Error::external("mysql.query", format!("{server}: {action}: {error}")),
    }
}
