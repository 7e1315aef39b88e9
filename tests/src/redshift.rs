//! A stand-in for Redshift.

use std::sync::OnceLock;

use sqlx::postgres::{PgConnectOptions, PgConnection, PgSslMode};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Row as _, ValueRef as _};

use crate::server::Server;
use crate::{S3, Skip};

/// PostgreSQL behind the proxy of `tests/services/redshift`, which has Redshift's restrictions and
/// its COPY from the shared S3 server.
pub struct Redshift(Server);

impl Redshift {
    /// The stand-in that all tests of this process share. Their schemas have different names.
    pub fn shared() -> Result<&'static Self, Skip> {
        static SHARED: OnceLock<Result<Redshift, Skip>> = OnceLock::new();
        SHARED.get_or_init(Self::start).as_ref().map_err(Skip::clone)
    }

    fn start() -> Result<Self, Skip> {
        let endpoint = format!("http://{}", S3::shared()?.address());
        Ok(Self(Server::start("redshift", &[("S3_ENDPOINT", &endpoint)], 1)?))
    }

    /// Its port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.0.port()
    }

    /// The options of a sink that loads the schema through the bucket `bucket`: url, TLS and stage.
    /// `port` is the stand-in's or that of a proxy.
    pub fn sink_options(&self, port: u16, schema: &str, bucket: &str) -> String {
        let s3 = S3::shared().expect("the stand-in needs it").address();
        format!(
            "url = \"postgres://rs:rspass1@127.0.0.1:{port}/dev\"\ntls = \"disable\"\nschema = \"{schema}\"\n\
             stage = {{ url = \"s3://{bucket}/stage\", endpoint = \"http://{s3}\", region = \"{}\", path_style = true, \
             access_key_id = \"AKTEST\", secret_access_key = \"SKTESTSK\" }}\n",
            S3::REGION
        )
    }

    /// Runs a statement in PostgreSQL, without the stand-in's restrictions; returns the rows, each
    /// with its columns separated by tabs, null as `\N`.
    pub fn run(&self, sql: &str) -> Vec<String> {
        self.try_run(sql).unwrap_or_else(|error| panic!("{error}\n{sql}"))
    }

    /// Like [`Redshift::run`]; the error is the server's message.
    pub fn try_run(&self, sql: &str) -> Result<Vec<String>, String> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let found = runtime.block_on(async {
            let mut connection: PgConnection = PgConnectOptions::new_without_pgpass()
                .host("127.0.0.1")
                .port(self.0.port() + 1)
                .username("rs")
                .password("rspass1")
                .database("dev")
                .ssl_mode(PgSslMode::Disable)
                .connect()
                .await?;
            sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).fetch_all(&mut connection).await
        });
        let rows = found.map_err(|error| error.to_string())?;
        let text = |row: &sqlx::postgres::PgRow, index: usize| {
            let value = row.try_get_raw(index).unwrap();
            if value.is_null() { "\\N".to_owned() } else { value.as_str().unwrap().to_owned() }
        };
        Ok(rows.iter().map(|row| (0..row.len()).map(|index| text(row, index)).collect::<Vec<_>>().join("\t")).collect())
    }
}
