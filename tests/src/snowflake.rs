//! A stand-in for Snowflake.

use serde_json::json;

use crate::server::Server;
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

    /// Options of a sink that loads into tables of the schema `DB.RAW`, with its stage in `bucket`.
    pub fn options(&self, s3: &S3, bucket: &str) -> String {
        format!(
            "connector = \"snowflake\"\naccount = \"xy12345\"\nurl = \"http://127.0.0.1:{}\"\nuser = \"fake\"\npassword = \"snow\"\n\
             warehouse = \"LOADING\"\ndatabase = \"DB\"\nschema = \"RAW\"\n\
             stage = {{ url = \"s3://{bucket}/stage\", endpoint = \"http://{}\", path_style = true, region = \"{}\", \
             access_key_id = \"{}\", secret_access_key = \"{}\" }}\n",
            self.0.port(),
            s3.address(),
            S3::REGION,
            S3::CREDENTIALS[0].1,
            S3::CREDENTIALS[1].1,
        )
    }

    /// The rows of a query in the schema `DB.RAW`: values joined by tabs.
    pub fn query(&self, sql: &str) -> Vec<String> {
        self.try_query(sql).unwrap_or_else(|answer| panic!("{sql} answered {answer}"))
    }

    /// Like [`Snowflake::query`]; the error is the server's answer.
    pub fn try_query(&self, sql: &str) -> Result<Vec<String>, String> {
        let body = json!({"database": "DB", "schema": "RAW", "sql": sql});
        let (status, answer) = self.0.call("POST", "/__ctl", &body.to_string());
        if status != 200 {
            return Err(answer.to_string());
        }
        let rows: Vec<Vec<Option<String>>> = serde_json::from_value(answer["rows"].clone()).unwrap();
        let value = |value: Option<String>| value.unwrap_or_else(|| "NULL".to_owned());
        Ok(rows.into_iter().map(|row| row.into_iter().map(value).collect::<Vec<_>>().join("\t")).collect())
    }

    /// Ends all sessions; their transactions are rolled back.
    pub fn kill_sessions(&self) {
        let (status, answer) = self.0.call("POST", "/__ctl", "{\"kill\":true}");
        assert_eq!(status, 200, "{answer}");
    }
}
