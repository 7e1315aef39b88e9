//! Sessions over sqlx with the simple query protocol: COPY and prepared statements do not go
//! together on Redshift.

use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgConnection, PgSslMode};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Row as _, ValueRef as _};
use tokio::runtime::Handle;
use trunkline_connector::tls::{TlsIdentity, handshake_problem};
use trunkline_connector::{Error, Result, Retry};
use trunkline_warehouse::Session;

use crate::config::{Server, Tls};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// For catalog queries and counts. COPY and DML have the server's `statement_timeout`.
const QUERY_TIMEOUT: Duration = Duration::from_secs(300);
/// The longest load of one statement.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(3600);

/// The codes of errors of statements that the server does not know or does not allow.
const REFUSED: &str = "redshift.refused";
pub(crate) const PERMISSION_DENIED: &str = "redshift.permission_denied";

/// See the module's header. No `Debug`: it holds secrets (I8).
pub(crate) struct RedshiftSession {
    connection: PgConnection,
    runtime: Handle,
    /// See [`Session::id`]: `{process id}@{start}`.
    id: Option<String>,
    /// Part of each COPY. A server may repeat a statement in its error.
    secrets: Vec<String>,
}

impl RedshiftSession {
    /// Logs in and selects the schema; `schema` is quoted. `application` names the sink for
    /// administrators. `secrets` are those of statements.
    pub(crate) fn connect(
        server: &Server,
        schema: &str,
        application: &str,
        secrets: Vec<String>,
        runtime: &Handle,
    ) -> Result<Self> {
        let mut options = PgConnectOptions::new_without_pgpass()
            .host(&server.host)
            .port(server.port)
            .username(&server.user)
            .password(&server.password)
            .database(&server.database)
            .application_name(application)
            .statement_cache_capacity(0)
            // Redshift accepts at most 2.
            .extra_float_digits(None)
            .ssl_mode(match server.tls {
                Tls::VerifyFull => PgSslMode::VerifyFull,
                Tls::VerifyCa => PgSslMode::VerifyCa,
                Tls::Require => PgSslMode::Require,
                Tls::Disable => PgSslMode::Disable,
            })
            .disable_statement_logging();
        if let Some(authorities) = server.files.authorities()? {
            options = options.ssl_root_cert_from_pem(authorities);
        }
        if let Some(TlsIdentity { certificate, key }) = server.files.identity()? {
            options = options.ssl_client_cert_from_pem(certificate).ssl_client_key_from_pem(key);
        }
        let doing = format!("connect to {}:{}", server.host, server.port);
        let connected = runtime.block_on(async { tokio::time::timeout(CONNECT_TIMEOUT, options.connect()).await });
        let connection = match connected {
            Ok(connected) => connected.map_err(|error| failed(&doing, &error, &secrets))?,
            Err(_) => return Err(timed_out(&doing, CONNECT_TIMEOUT)),
        };
        let mut session = Self { connection, runtime: runtime.clone(), id: None, secrets };
        session.execute(&format!("SET search_path TO {schema}"))?;
        session.execute(&format!("SET statement_timeout TO {}", STATEMENT_TIMEOUT.as_millis()))?;
        session.id = session.find_id()?;
        Ok(session)
    }

    fn find_id(&mut self) -> Result<Option<String>> {
        let found = self.query("SELECT pg_backend_pid()")?;
        let Some(process) = first_value(found) else { return Ok(None) };
        Ok(self.start_of(&process)?.map(|start| format!("{process}@{start}")))
    }

    /// When the session with this process id began; `None` if there is none that this user may see.
    fn start_of(&mut self, process: &str) -> Result<Option<String>> {
        let live = format!("SELECT CAST(starttime AS VARCHAR(64)) FROM stv_sessions WHERE process = {process}");
        // Serverless workgroups have only this view.
        let history = format!(
            "SELECT CAST(start_time AS VARCHAR(64)) FROM sys_session_history WHERE session_id = {process} AND status = 'active'"
        );
        let found = self.query(&live).or_else(|error| match error.code {
            REFUSED | PERMISSION_DENIED => self.query(&history),
            _ => Err(error),
        });
        match found {
            // Without this view, the session cannot be ended by others.
            Err(error) if matches!(error.code, REFUSED | PERMISSION_DENIED) => Ok(None),
            found => Ok(first_value(found?)),
        }
    }
}

fn first_value(rows: Vec<Vec<Option<String>>>) -> Option<String> {
    rows.into_iter().next()?.into_iter().next()?
}

impl Session for RedshiftSession {
    fn execute(&mut self, sql: &str) -> Result<u64> {
        let statement = sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut self.connection);
        // A little longer than the server's own limit: a server that is gone answers nothing.
        let limit = STATEMENT_TIMEOUT + Duration::from_secs(60);
        match self.runtime.block_on(async { tokio::time::timeout(limit, statement).await }) {
            Ok(Ok(done)) => Ok(done.rows_affected()),
            Ok(Err(error)) => Err(failed(&purpose(sql), &error, &self.secrets)),
            Err(_) => Err(timed_out(&purpose(sql), limit)),
        }
    }

    fn query(&mut self, sql: &str) -> Result<Vec<Vec<Option<String>>>> {
        let query = sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).fetch_all(&mut self.connection);
        let rows = match self.runtime.block_on(async { tokio::time::timeout(QUERY_TIMEOUT, query).await }) {
            Ok(rows) => rows.map_err(|error| failed(&purpose(sql), &error, &self.secrets))?,
            Err(_) => return Err(timed_out(&purpose(sql), QUERY_TIMEOUT)),
        };
        let text = |row: &sqlx::postgres::PgRow, index: usize| {
            let value = row.try_get_raw(index).map_err(|error| failed(&purpose(sql), &error, &self.secrets))?;
            if value.is_null() {
                return Ok(None);
            }
            let text = value.as_str().map_err(|error| {
                Error::external(
                    "redshift.bad_answer",
                    format!("cannot {}: the answer is not text: {error}", purpose(sql)),
                )
            })?;
            Ok(Some(text.to_owned()))
        };
        rows.iter().map(|row| (0..row.len()).map(|index| text(row, index)).collect()).collect()
    }

    fn transaction(&mut self, statements: &[String]) -> Result<()> {
        self.execute(&in_one_message(statements)).map(drop)
    }

    fn id(&self) -> Option<&str> {
        self.id.as_deref()
    }

    fn end_session(&mut self, id: &str) -> Result<bool> {
        let Some((process, start)) = id.split_once('@').filter(|(process, _)| process.parse::<u32>().is_ok()) else {
            return Ok(false);
        };
        // Another session may have the process id by now.
        if self.start_of(process)?.as_deref() != Some(start) {
            return Ok(false);
        }
        self.query(&format!("SELECT pg_terminate_backend({process})")).map(|_| true)
    }
}

/// Statements of a transaction as one message: the server runs them to the end, also if the client
/// hangs.
pub(crate) fn in_one_message(statements: &[String]) -> String {
    format!("BEGIN; {}; COMMIT", statements.join("; "))
}

/// What a statement does, for messages: its first words. A COPY holds credentials further on (I8).
fn purpose(sql: &str) -> String {
    let words: Vec<&str> = sql.split_whitespace().take(3).collect();
    format!("run `{} ..`", words.join(" "))
}

fn timed_out(doing: &str, limit: Duration) -> Error {
    Error::external("redshift.timeout", format!("cannot {doing}: no answer in {} s", limit.as_secs()))
}

/// The meaning of an error, without the secrets of its statement (I8).
fn failed(doing: &str, error: &sqlx::Error, secrets: &[String]) -> Error {
    // A job does not repeat it: only other files, options or certificates help.
    let of_tls =
        |problem: &str| Error::external("redshift.tls", format!("cannot {doing}: {problem}")).retry(Retry::Never);
    if let Some(problem) = handshake_problem(error) {
        return of_tls(&problem);
    }
    match error {
        sqlx::Error::Database(database) => {
            let sqlstate = database.code().unwrap_or_default();
            let detail = detail(database.as_ref()).map(|detail| without(&detail, secrets));
            refused(doing, &sqlstate, &without(database.message(), secrets), detail.as_deref())
        }
        sqlx::Error::Tls(cause) => of_tls(&format!("{cause}; check `tls`, `tls_ca` and `tls_cert`")),
        other => Error::external("redshift.unavailable", format!("cannot {doing}: {other}; a new session is opened")),
    }
}

/// A server's text without these secrets.
fn without(text: &str, secrets: &[String]) -> String {
    let is_secret = |secret: &&String| !secret.is_empty();
    secrets.iter().filter(is_secret).fold(text.to_owned(), |text, secret| text.replace(secret.as_str(), "***"))
}

fn detail(error: &dyn sqlx::error::DatabaseError) -> Option<String> {
    let error = error.try_downcast_ref::<sqlx::postgres::PgDatabaseError>()?;
    error.detail().map(str::to_owned)
}

/// An error that the server reports.
fn refused(doing: &str, sqlstate: &str, message: &str, detail: Option<&str>) -> Error {
    let detail = detail.map(|detail| format!(" ({detail})")).unwrap_or_default();
    let text = format!("cannot {doing}: {message}{detail} [{sqlstate}]");
    match sqlstate {
        "28000" | "28P01" => Error::config("redshift.login", format!("{text}; check user and password in `url`")),
        "3D000" => Error::config("redshift.no_database", format!("{text}; check the database in `url`")),
        "3F000" => Error::config("redshift.no_schema", format!("{text}; create the schema, or correct `schema`")),
        "42501" => Error::external(
            PERMISSION_DENIED,
            format!("{text}; grant USAGE and CREATE on the schema, and all rights on the tables, to the user"),
        ),
        // Redshift reports its serialisation conflicts as XX000 with its own number.
        "40001" | "40P01" => Error::external("warehouse.conflict", text),
        _ if message.contains("Serializable isolation violation") || message.starts_with("1023") => {
            Error::external("warehouse.conflict", text)
        }
        _ => Error::external(REFUSED, text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_classified() {
        let code = |state: &str, message: &str| refused("load", state, message, None).code;
        assert_eq!(code("28P01", "password authentication failed"), "redshift.login");
        assert_eq!(code("40001", "could not serialize"), "warehouse.conflict");
        assert_eq!(code("XX000", "1023 DETAIL: Serializable isolation violation on table - 1"), "warehouse.conflict");
        assert_eq!(code("XX000", "disk full"), "redshift.refused");
    }

    #[test]
    fn tls_faults_are_not_repeated_by_a_job() {
        let error = failed("connect to b:5439", &sqlx::Error::Tls("invalid certificate".into()), &[]);
        assert_eq!((error.code, error.retry), ("redshift.tls", Retry::Never));
        assert!(error.message().contains("`tls_ca`"), "{error}");
        let broken = failed("connect", &sqlx::Error::Io(std::io::ErrorKind::ConnectionReset.into()), &[]);
        assert_eq!((broken.code, broken.retry), ("redshift.unavailable", Retry::Backoff));
    }

    #[test]
    fn messages_name_a_statement_without_its_credentials() {
        assert_eq!(
            purpose("COPY \"t\" FROM 's3://b/k' ACCESS_KEY_ID 'id' SECRET_ACCESS_KEY 'hidden'"),
            "run `COPY \"t\" FROM ..`"
        );
    }
}
