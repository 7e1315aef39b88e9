//! A stand-in for Snowflake.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::server::{Server, fetch};
use crate::{S3, Skip};

/// A stand-in for Snowflake of this test, through `tests/services/snowflake`. Its stages are on an
/// S3 server.
pub struct Snowflake(Server);

impl Snowflake {
    /// Starts an empty account, whose external stages are buckets of `s3`.
    pub fn start(s3: &S3) -> Result<Self, Skip> {
        let (root, endpoint) = (s3.root(), format!("http://{}", s3.address()));
        let settings = [("S3_ROOT", root.to_str().unwrap()), ("S3_ENDPOINT", endpoint.as_str())];
        Ok(Self(Server::start("snowflake", &settings, 1)?))
    }

    /// Its port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.0.port()
    }

    /// Options of a sink that loads into tables of the schema `DB.RAW`, with its stage in `bucket`.
    pub fn options(&self, s3: &S3, bucket: &str) -> String {
        self.options_with_stage_at("RAW", bucket, &s3.address())
    }

    /// The same with another schema, and with the stage at this host and port: a proxy of the S3
    /// server.
    pub fn options_with_stage_at(&self, schema: &str, bucket: &str, s3: &str) -> String {
        format!(
            "connector = \"snowflake\"\naccount = \"xy12345\"\nurl = \"http://127.0.0.1:{}\"\nuser = \"fake\"\npassword = \"snow\"\n\
             warehouse = \"LOADING\"\ndatabase = \"DB\"\nschema = \"{schema}\"\n\
             stage = {{ url = \"s3://{bucket}/stage\", endpoint = \"http://{s3}\", path_style = true, region = \"{}\", \
             access_key_id = \"{}\", secret_access_key = \"{}\" }}\n",
            self.0.port(),
            S3::REGION,
            S3::CREDENTIALS[0].1,
            S3::CREDENTIALS[1].1,
        )
    }

    /// The rows of a query in the schema `DB.RAW`: values joined by tabs.
    pub fn query(&self, sql: &str) -> Vec<String> {
        self.try_query("DB", "RAW", sql).unwrap_or_else(|error| panic!("{sql} answered {error}"))
    }

    /// The rows of a query in a schema, or the server's message.
    pub fn try_query(&self, database: &str, schema: &str, sql: &str) -> Result<Vec<String>, String> {
        let body = json!({"database": database, "schema": schema, "sql": sql});
        let (status, answer) = self.0.call("POST", "/__ctl", &body.to_string());
        if status != 200 {
            return Err(answer["error"].to_string());
        }
        let rows: Vec<Vec<Option<String>>> = serde_json::from_value(answer["rows"].clone()).unwrap();
        let value = |value: Option<String>| value.unwrap_or_else(|| "NULL".to_owned());
        Ok(rows.into_iter().map(|row| row.into_iter().map(value).collect::<Vec<_>>().join("\t")).collect())
    }

    /// Asks for a fault that `tests/services/standins/snowflake_standin.py` lists; returns the
    /// number of faults that have not happened yet.
    pub fn control(&self, fault: &Value) -> u64 {
        let (status, answer) = self.0.call("POST", "/__ctl", &fault.to_string());
        assert_eq!(status, 200, "{fault} answered {answer}");
        answer["left"].as_u64().unwrap()
    }

    /// Ends all sessions; their transactions are rolled back.
    pub fn kill_sessions(&self) {
        self.control(&json!({"kill": true}));
    }
}

/// A client that shares no code with the product: Snowflake's own connector for Python.
pub struct SnowflakeReader {
    python: String,
}

impl SnowflakeReader {
    /// Finds or downloads it.
    pub fn find() -> Result<Self, Skip> {
        Ok(Self { python: fetch("snowflake", &[])? })
    }

    /// Runs a script with this argument; returns the lines that it prints.
    pub fn run(&self, script: &Path, argument: &str) -> Vec<String> {
        let output = Command::new(&self.python).arg(script).arg(argument).output().unwrap();
        assert!(output.status.success(), "{argument}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
    }
}
