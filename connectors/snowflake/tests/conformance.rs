//! The suite that every two-phase sink runs, on the stand-in for Snowflake.

#![allow(clippy::unwrap_used, reason = "a test reports a failure by panicking")]

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use common::Account;
use trunkline_connector::SinkConnector;
use trunkline_connector::conformance::{
    SinkFixture, check_options_are_read, check_options_table, check_two_phase_sink,
};
use trunkline_snowflake::SnowflakeConnector;

/// Each destination is a schema.
struct Schemas(Account);

impl SinkFixture for Schemas {
    fn connector(&self) -> Box<dyn SinkConnector> {
        Box::new(SnowflakeConnector)
    }

    fn options(&self, destination: &str) -> String {
        self.0.options(&schema(destination), "append")
    }

    fn bad_options(&self) -> Vec<&'static str> {
        vec![
            "account = \"https://xy12345.snowflakecomputing.com\"",
            "account = \"xy12345.snowflakecomputing.com\"",
            "url = \"xy12345.snowflakecomputing.com\"",
            "user = \"\"",
            "oauth_token = \"also\"",
            "private_key = \"/run/secrets/loader.p8\"",
            "private_key_passphrase = \"without a key\"",
            "names = \"lower\"",
            "mode = \"merge\"",
            "statement_timeout = \"0s\"",
            "lock_timeout = \"2d\"",
            "stage = \"s3://lake/stage\"",
            "stage = { url = \"s3://lake/stage\", storage_integration = 1 }",
            "unknown = true",
        ]
    }

    fn bad_values(&self) -> Vec<Option<Vec<u8>>> {
        let values: [&[u8]; 8] = [
            b"[1]",
            b"17",
            b"null",
            b"\"text\"",
            b"",
            b"{\"number\":",
            b"{\"number\":1} x",
            b"{\"text\":\"\xff\xfe\"}",
        ];
        values.iter().map(|value| Some(value.to_vec())).chain([None]).collect()
    }

    fn rows(&self, destination: &str) -> BTreeMap<i32, Vec<i64>> {
        let sql = "SELECT \"PARTITION\", \"NUMBER\" FROM \"ROWS\" ORDER BY \"_PARTITION\", \"_OFFSET\"";
        let mut rows: BTreeMap<i32, Vec<i64>> = BTreeMap::new();
        for row in self.0.server.query("DB", &schema(destination), sql).unwrap_or_default() {
            let mut numbers = row.into_iter().map(|value| value.unwrap().parse::<i64>().unwrap());
            let partition = i32::try_from(numbers.next().unwrap()).unwrap();
            rows.entry(partition).or_default().push(numbers.next().unwrap());
        }
        rows
    }

    fn leftovers(&self, destination: &str) -> Vec<String> {
        self.0.staged_files(&schema(destination))
    }
}

fn schema(destination: &str) -> String {
    destination.to_uppercase().replace('-', "_")
}

#[test]
fn the_sink_passes_the_suite() {
    let Some(account) = Account::start() else { return };
    check_two_phase_sink(&Schemas(account));
}

#[test]
fn the_page_has_the_declared_options() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/connectors/snowflake.md");
    check_options_table(&page, SnowflakeConnector.options());
}

#[test]
fn every_declared_option_is_read() {
    check_options_are_read(SnowflakeConnector.options(), |section| drop(SnowflakeConnector.configure(section, &[])));
}
