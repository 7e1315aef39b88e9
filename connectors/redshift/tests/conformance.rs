//! The suite that every two-phase sink runs, on the stand-in for Redshift.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test reports a failure by panicking")]

use std::collections::BTreeMap;
use std::path::Path;

use trunkline_connector::SinkConnector;
use trunkline_connector::conformance::{
    SinkFixture, check_options_are_read, check_options_table, check_two_phase_sink,
};
use trunkline_redshift::RedshiftConnector;
use trunkline_tests::{Redshift, S3, need};

/// Each destination is a table.
struct Warehouse {
    redshift: &'static Redshift,
    bucket: std::path::PathBuf,
}

const BUCKET: &str = "conformance";

impl Warehouse {
    fn table(&self, destination: &str) -> String {
        destination.to_lowercase().replace('-', "_")
    }
}

impl SinkFixture for Warehouse {
    fn connector(&self) -> Box<dyn SinkConnector> {
        Box::new(RedshiftConnector)
    }

    fn options(&self, destination: &str) -> String {
        let options = self.redshift.sink_options(self.redshift.port(), "conformance", BUCKET);
        // One stage for each destination, so that a check finds only its own leftovers.
        let options = options.replace("/stage\"", &format!("/stage/{destination}\""));
        format!("{options}table = \"{}\"", self.table(destination))
    }

    fn bad_options(&self) -> Vec<&'static str> {
        vec![
            "url = \"mysql://a:b@c/d\"",
            "url = \"postgres://host/\"",
            "url = \"postgres://a:b@host/db?sslmode=disable\"",
            "mode = \"merge\"",
            "deletes = \"soft\"",
            "every = \"0s\"",
            "tls = \"prefer\"",
            "table = \"{\"",
            "stage = \"file:///tmp\"",
            "stage = { url = \"s3://b\", access_key_id = \"x\" }",
            "stage = { url = \"s3://b\", bucket = \"x\" }",
        ]
    }

    fn bad_values(&self) -> Vec<Option<Vec<u8>>> {
        let values: [&[u8]; 9] = [
            b"[1]",
            b"17",
            b"null",
            b"\"text\"",
            b"",
            b"{\"number\":",
            b"{\"number\":1} x",
            b"{\"text\":\"\xff\xfe\"}",
            b"{\"text\":\"\\u0000\"}",
        ];
        let long = format!("{{\"text\":\"{}\"}}", "x".repeat(65_536));
        values.iter().map(|value| Some(value.to_vec())).chain([Some(long.into_bytes()), None]).collect()
    }

    fn rows(&self, destination: &str) -> BTreeMap<i32, Vec<i64>> {
        let table = self.table(destination);
        let sql = format!("SELECT _partition, number FROM conformance.{table} ORDER BY _partition, _offset");
        let found = match self.redshift.try_run(&sql) {
            Ok(found) => found,
            Err(error) if error.contains("does not exist") => return BTreeMap::new(),
            Err(error) => panic!("{error}"),
        };
        let mut rows: BTreeMap<i32, Vec<i64>> = BTreeMap::new();
        for row in found {
            let (partition, number) = row.split_once('\t').unwrap();
            rows.entry(partition.parse().unwrap()).or_default().push(number.parse().unwrap());
        }
        rows
    }

    fn memory_bound(&self) -> usize {
        24 << 20
    }

    fn leftovers(&self, destination: &str) -> Vec<String> {
        let mut found = Vec::new();
        files_below(&self.bucket.join("stage").join(destination), &mut found);
        found
    }
}

fn files_below(folder: &Path, found: &mut Vec<String>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten() {
        let entry = entry.unwrap();
        match entry.file_type().unwrap().is_dir() {
            true => files_below(&entry.path(), found),
            false => found.push(entry.path().display().to_string()),
        }
    }
}

#[test]
fn the_sink_passes_the_suite() {
    let (s3, redshift) = (need!(S3::shared()), need!(Redshift::shared()));
    redshift.run("CREATE SCHEMA conformance");
    check_two_phase_sink(&Warehouse { redshift, bucket: s3.bucket(BUCKET) });
}

#[test]
fn the_documented_options_are_those_of_the_code() {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/connectors/redshift.md");
    check_options_table(&readme, RedshiftConnector.options());
    check_options_are_read(RedshiftConnector.options(), |section| drop(RedshiftConnector.configure(section, &[])));
}
