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
use crate::iam::Login;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// For catalog queries and counts. COPY and DML have the server's `statement_timeout`.
const QUERY_TIMEOUT: Duration = Duration::from_secs(300);
/// The longest load of one statement.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(3600);

/// How messages about a login begin.
const CONNECTING: &str = "connect to";
/// The next step if no connection can be had.
const UNREACHABLE: &str = "check host and port in `url`, the security group, and whether the cluster is paused";

/// The code of an error that says that the connection was lost or cannot be had.
const UNAVAILABLE: &str = "redshift.unavailable";
/// The codes of errors of statements that the server does not know or does not allow.
const REFUSED: &str = "redshift.refused";
pub(crate) const PERMISSION_DENIED: &str = "redshift.permission_denied";
/// The code of an error that says that the user or the password is wrong.
pub(crate) const LOGIN_REFUSED: &str = "redshift.login";
/// The code of an error that says that a value was refused.
const DATA_REFUSED: &str = "redshift.data_refused";

/// The codes of COPY's errors that are about a value (`Load error reference` in the Redshift
/// manual). Others are about the file or its columns.
const VALUE_ERRORS: [&str; 14] =
    ["1204", "1205", "1206", "1207", "1208", "1209", "1210", "1213", "1215", "1218", "1219", "1220", "1223", "1224"];

/// Texts of errors about a value that have only a general code: COPY of columnar files, JSON_PARSE.
const VALUE_MESSAGES: [&str; 3] = ["longer than the length defined in the table", "JSON parsing error", "Invalid JSON"];

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
        login: &Login,
        schema: &str,
        application: &str,
        secrets: Vec<String>,
        runtime: &Handle,
    ) -> Result<Self> {
        let mut options = PgConnectOptions::new_without_pgpass()
            .host(&server.host)
            .port(server.port)
            .username(&login.user)
            .password(&login.password)
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
        let doing = format!("{CONNECTING} {}:{}", server.host, server.port);
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

/// What a system table says of a failed COPY.
struct LoadError {
    code: String,
    reason: String,
    column: String,
}

impl RedshiftSession {
    /// The error with the reason that a system table has. The session is not used again after it.
    fn explained(&mut self, error: Error) -> Error {
        let message = error.message();
        if !message.contains("stl_load_errors") && !message.contains("sys_load_error_detail") {
            return error;
        }
        match self.last_load_error() {
            Ok(Some(LoadError { code, reason, column })) => {
                let reason = without(&reason, &self.secrets);
                let message = format!("{message}: column `{column}`: {reason} (load error {code})");
                let is_value = VALUE_ERRORS.contains(&code.as_str()) || is_about_value(&reason);
                if is_value { Error::data(DATA_REFUSED, message) } else { Error::external(REFUSED, message) }
            }
            Ok(None) => error,
            Err(unknown) => {
                tracing::debug!(error = %unknown, "the reason of a failed COPY could not be read");
                error
            }
        }
    }

    fn last_load_error(&mut self) -> Result<Option<LoadError>> {
        // A failed transaction answers no query.
        let rolled_back = sqlx::raw_sql("ROLLBACK").execute(&mut self.connection);
        drop(self.runtime.block_on(async { tokio::time::timeout(QUERY_TIMEOUT, rolled_back).await }));
        let live = "SELECT CAST(err_code AS VARCHAR(16)), err_reason, colname FROM stl_load_errors \
                    WHERE session = pg_backend_pid() ORDER BY starttime DESC LIMIT 1";
        // Serverless workgroups have only this view.
        let other = "SELECT CAST(error_code AS VARCHAR(16)), error_message, column_name FROM sys_load_error_detail \
                     WHERE session_id = pg_backend_pid() ORDER BY start_time DESC LIMIT 1";
        let rows = match self.query(live) {
            Err(error) if matches!(error.code, REFUSED | PERMISSION_DENIED) => self.query(other)?,
            rows => rows?,
        };
        Ok(rows.into_iter().next().map(|row| {
            let mut values = row.into_iter().map(|value| value.unwrap_or_default().trim().to_owned());
            let mut next = || values.next().unwrap_or_default();
            LoadError { code: next(), reason: next(), column: next() }
        }))
    }
}

fn is_about_value(message: &str) -> bool {
    VALUE_MESSAGES.iter().any(|text| message.contains(text))
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
            Ok(Err(error)) => {
                let error = failed(&purpose(sql), &error, &self.secrets);
                Err(if error.code == REFUSED { self.explained(error) } else { error })
            }
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
    let next = if doing.starts_with(CONNECTING) { UNREACHABLE } else { "the whole load is tried again" };
    Error::external("redshift.timeout", format!("cannot {doing}: no answer in {} s; {next}", limit.as_secs()))
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
        other => {
            let next = if doing.starts_with(CONNECTING) { UNREACHABLE } else { "a new session is opened" };
            Error::external(UNAVAILABLE, format!("cannot {doing}: {other}; {next}"))
        }
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
        "28000" | "28P01" => Error::config(LOGIN_REFUSED, format!("{text}; check user and password in `url`")),
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
        // Data exceptions, and null in a column that is NOT NULL.
        "23502" => Error::data(DATA_REFUSED, text),
        _ if sqlstate.starts_with("22") || is_about_value(message) || detail.contains("JSON parsing error") => {
            Error::data(DATA_REFUSED, text)
        }
        // An administrator ended the session, or the cluster restarts or resumes.
        _ if sqlstate.starts_with("57P") || sqlstate.starts_with("08") => {
            Error::external(UNAVAILABLE, format!("{text}; a new session is opened"))
        }
        _ if message.contains("S3ServiceException") => Error::external(
            REFUSED,
            format!(
                "{text}; the role or key with which Redshift reads `stage` needs s3:GetObject and s3:ListBucket on the bucket"
            ),
        ),
        _ if message.contains("not authorized to assume IAM Role") => Error::external(
            REFUSED,
            format!(
                "{text}; attach the role of `stage.iam_role` to the cluster, and let it trust redshift.amazonaws.com"
            ),
        ),
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
        for (state, message) in [
            ("22003", "integer out of range"),
            ("22P02", "invalid input syntax for type json"),
            (
                "XX000",
                "The length of the data column a is longer than the length defined in the table. Table: 8, Data: 9",
            ),
            ("XX000", "JSON parsing error"),
        ] {
            assert_eq!(code(state, message), "redshift.data_refused", "{message}");
        }
        assert_eq!(code("57P01", "terminating connection due to administrator command"), "redshift.unavailable");
        for (state, message) in [
            ("XX000", "Spectrum Scan Error: file has an incompatible Parquet schema for column 's3://b/k.a'"),
            ("42703", "column \"a\" does not exist"),
            ("XX000", "S3ServiceException: Access Denied"),
            ("XX000", "User arn:x is not authorized to assume IAM Role arn:y"),
        ] {
            assert_eq!(code(state, message), "redshift.refused", "{message}");
        }
    }

    #[test]
    fn tls_faults_are_not_repeated_by_a_job() {
        let error = failed("connect to b:5439", &sqlx::Error::Tls("invalid certificate".into()), &[]);
        assert_eq!((error.code, error.retry), ("redshift.tls", Retry::Never));
        assert!(error.message().contains("`tls_ca`"), "{error}");
        let broken = failed("connect", &sqlx::Error::Io(std::io::ErrorKind::ConnectionReset.into()), &[]);
        assert_eq!((broken.code, broken.retry), ("redshift.unavailable", Retry::Backoff));
        let unreachable =
            failed("connect to b:5439", &sqlx::Error::Io(std::io::ErrorKind::ConnectionRefused.into()), &[]);
        assert!(unreachable.message().contains("whether the cluster is paused"), "{unreachable}");
    }

    #[test]
    fn messages_name_a_statement_without_its_credentials() {
        assert_eq!(
            purpose("COPY \"t\" FROM 's3://b/k' ACCESS_KEY_ID 'id' SECRET_ACCESS_KEY 'hidden'"),
            "run `COPY \"t\" FROM ..`"
        );
    }
}
