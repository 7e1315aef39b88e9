//! The suite that every sink runs, on a directory and on a bucket.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test says by panicking that something is wrong")]

mod common;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use common::s3::Server;
use common::{BAD_OPTIONS, bad_values, hidden_files, numbers, read_directory};
use trunkline_connector::SinkConnector;
use trunkline_connector::conformance::{
    SinkFixture, check_options_are_read, check_options_table, check_two_phase_sink,
};
use trunkline_s3::S3Connector;

struct Directory(tempfile::TempDir);

impl Directory {
    fn root(&self, destination: &str) -> PathBuf {
        self.0.path().join(destination)
    }
}

impl SinkFixture for Directory {
    fn connector(&self) -> Box<dyn SinkConnector> {
        Box::new(S3Connector)
    }

    fn options(&self, destination: &str) -> String {
        format!("url = \"file://{}\"\npath = \"day={{@timestamp:%Y-%m-%d}}\"", self.root(destination).display())
    }

    fn bad_options(&self) -> Vec<&'static str> {
        BAD_OPTIONS.into_iter().chain(["endpoint = \"http://only.for.s3\""]).collect()
    }

    fn bad_values(&self) -> Vec<Option<Vec<u8>>> {
        bad_values()
    }

    fn rows(&self, destination: &str) -> BTreeMap<i32, Vec<i64>> {
        numbers(&read_directory(&self.root(destination)))
    }

    fn leftovers(&self, destination: &str) -> Vec<String> {
        hidden_files(&self.root(destination))
    }
}

struct Bucket {
    server: Server,
    buckets: Mutex<HashMap<String, String>>,
}

impl Bucket {
    fn bucket(&self, destination: &str) -> String {
        let mut buckets = self.buckets.lock().unwrap();
        buckets.entry(destination.to_owned()).or_insert_with(|| self.server.bucket()).clone()
    }
}

impl SinkFixture for Bucket {
    fn connector(&self) -> Box<dyn SinkConnector> {
        Box::new(S3Connector)
    }

    fn options(&self, destination: &str) -> String {
        // Small parts, so that objects have several.
        format!("{}part_size = \"5MiB\"", self.server.options(&self.bucket(destination)))
    }

    fn bad_options(&self) -> Vec<&'static str> {
        let only_here = [
            "part_size = \"1MiB\"",
            "checksum = \"md5\"",
            "endpoint = \"minio:9000\"",
            "server_side_encryption = \"kms\"",
            "path_style = \"yes\"",
            "url = \"s3://bucket/../other\"",
        ];
        BAD_OPTIONS.into_iter().chain(only_here).collect()
    }

    fn bad_values(&self) -> Vec<Option<Vec<u8>>> {
        bad_values()
    }

    fn rows(&self, destination: &str) -> BTreeMap<i32, Vec<i64>> {
        numbers(&self.server.read(&self.bucket(destination)))
    }

    fn leftovers(&self, destination: &str) -> Vec<String> {
        self.server.uploads(&self.bucket(destination))
    }

    fn memory_bound(&self) -> usize {
        48 << 20
    }
}

#[test]
fn a_directory_passes_the_suite() {
    check_two_phase_sink(&Directory(tempfile::tempdir().unwrap()));
}

#[test]
fn a_bucket_passes_the_suite() {
    let Some(server) = Server::find() else { return };
    check_two_phase_sink(&Bucket { server, buckets: Mutex::default() });
}

#[test]
fn the_readme_has_the_declared_options() {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    check_options_table(&readme, S3Connector.options());
}

#[test]
fn every_declared_option_is_read() {
    check_options_are_read(S3Connector.options(), |section| drop(S3Connector.configure(section, &[])));
}
