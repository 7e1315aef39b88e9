//! A stand-in for Redshift.

use std::sync::OnceLock;
use std::sync::mpsc::{Sender, channel};

use sqlx::postgres::{PgConnectOptions, PgConnection, PgSslMode};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Row as _, ValueRef as _};

use crate::server::Server;
use crate::{S3, Skip};

/// PostgreSQL behind the proxy of `tests/services/redshift`, which has Redshift's restrictions and
/// its COPY from an S3 server.
pub struct Redshift {
    server: Server,
    /// The host and port of the S3 server.
    s3: String,
}

impl Redshift {
    /// The stand-in that all tests of this process share. Their schemas have different names.
    pub fn shared() -> Result<&'static Self, Skip> {
        static SHARED: OnceLock<Result<Redshift, Skip>> = OnceLock::new();
        SHARED.get_or_init(|| Self::start(S3::shared()?)).as_ref().map_err(Skip::clone)
    }

    /// Starts an empty database, which loads from buckets of `s3`.
    pub fn start(s3: &S3) -> Result<Self, Skip> {
        let endpoint = format!("http://{}", s3.address());
        Ok(Self { server: Server::start("redshift", &[("S3_ENDPOINT", &endpoint)], 1)?, s3: s3.address() })
    }

    /// Its port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.server.port()
    }

    /// The options of a sink that loads the schema through the bucket `bucket`: url, TLS and stage.
    /// `port` is the stand-in's or that of a proxy.
    pub fn sink_options(&self, port: u16, schema: &str, bucket: &str) -> String {
        self.options_with_stage_at(port, schema, bucket, &self.s3)
    }

    /// The same with the stage at another host and port: a proxy of the S3 server.
    pub fn options_with_stage_at(&self, port: u16, schema: &str, bucket: &str, s3: &str) -> String {
        format!(
            "url = \"postgres://rs:rspass1@127.0.0.1:{port}/dev\"\ntls = \"disable\"\nschema = \"{schema}\"\n\
             stage = {{ url = \"s3://{bucket}/stage\", endpoint = \"http://{s3}\", region = \"{}\", path_style = true, \
             access_key_id = \"AKTEST\", secret_access_key = \"SKTESTSK\" }}\n",
            S3::REGION
        )
    }

    /// Ends all sessions of applications whose names begin with this text; their transactions are
    /// rolled back.
    pub fn end_sessions(&self, application: &str) {
        self.run(&format!(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE starts_with(application_name, '{application}')"
        ));
    }

    /// Runs statements one after the other in one session of the stand-in, with its restrictions
    /// and its COPY.
    pub fn run_as_client(&self, statements: &[String]) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut connection = login(self.server.port()).extra_float_digits(None).connect().await.unwrap();
            for sql in statements {
                let done = sqlx::raw_sql(AssertSqlSafe(sql.clone())).execute(&mut connection).await;
                done.unwrap_or_else(|error| panic!("{error}\n{sql}"));
            }
        });
    }

    /// Runs a statement in PostgreSQL, without the stand-in's restrictions; returns the rows, each
    /// with its columns separated by tabs, null as `\N`.
    pub fn run(&self, sql: &str) -> Vec<String> {
        self.try_run(sql).unwrap_or_else(|error| panic!("{error}\n{sql}"))
    }

    /// Opens a session that runs nothing yet.
    pub fn session(&self) -> HeldSession {
        let ((send, statements), (answer, process)) = (channel::<String>(), channel());
        let login = login(self.server.port() + 1);
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let mut connection: PgConnection = login.connect().await.unwrap();
                let row = sqlx::raw_sql("SELECT pg_backend_pid()::text").fetch_one(&mut connection).await.unwrap();
                answer.send(row.try_get_raw(0).unwrap().as_str().unwrap().to_owned()).unwrap();
                for sql in statements {
                    // The server may have ended it.
                    let done = sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await;
                    answer.send(format!("{done:?}")).unwrap_or_default();
                }
            });
        });
        HeldSession { process: process.recv().unwrap(), statements: send, answers: process }
    }

    /// Like [`Redshift::run`]; the error is the server's message.
    pub fn try_run(&self, sql: &str) -> Result<Vec<String>, String> {
        rows_of(&login(self.server.port() + 1), sql)
    }
}

/// A session that stays open, with its transaction, until it is dropped.
pub struct HeldSession {
    /// Its process id.
    pub process: String,
    statements: Sender<String>,
    answers: std::sync::mpsc::Receiver<String>,
}

impl HeldSession {
    /// Runs statements; returns the outcome.
    pub fn run(&self, sql: &str) -> String {
        self.statements.send(sql.to_owned()).unwrap();
        self.answers.recv().unwrap()
    }
}

/// The rows of a statement in a schema of a real cluster, as [`Redshift::run`] returns them, with
/// null as `NULL`.
pub fn query_redshift(url: &str, schema: &str, sql: &str) -> Result<Vec<String>, String> {
    let options: PgConnectOptions = url.parse().map_err(|error: sqlx::Error| error.to_string())?;
    let rows = rows_of(&options.extra_float_digits(None), &format!("SET search_path TO {schema}; {sql}"))?;
    Ok(rows.iter().map(|row| row.replace("\\N", "NULL")).collect())
}

fn rows_of(login: &PgConnectOptions, sql: &str) -> Result<Vec<String>, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let found = runtime.block_on(async {
        let mut connection: PgConnection = login.connect().await?;
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).fetch_all(&mut connection).await
    });
    let rows = found.map_err(|error| error.to_string())?;
    let text = |row: &sqlx::postgres::PgRow, index: usize| {
        let value = row.try_get_raw(index).unwrap();
        if value.is_null() { "\\N".to_owned() } else { value.as_str().unwrap().to_owned() }
    };
    Ok(rows.iter().map(|row| (0..row.len()).map(|index| text(row, index)).collect::<Vec<_>>().join("\t")).collect())
}

/// The login at a port.
fn login(port: u16) -> PgConnectOptions {
    PgConnectOptions::new_without_pgpass()
        .host("127.0.0.1")
        .port(port)
        .username("rs")
        .password("rspass1")
        .database("dev")
        .ssl_mode(PgSslMode::Disable)
}
