//! The conformance suite of sources, and the declared options.

#![allow(clippy::unwrap_used, reason = "a test that cannot set up its tables has failed")]

mod common;

use std::path::{Path, PathBuf};

use common::Server;
use trunkline_connector::SourceConnector;
use trunkline_connector::conformance::{SourceFixture, check_options_are_read, check_options_table, source_suite};
use trunkline_mysql::MysqlConnector;

struct Tables {
    server: &'static Server,
    database: String,
}

impl SourceFixture for Tables {
    fn connector(&self) -> &dyn SourceConnector {
        &MysqlConnector
    }

    fn create(&mut self) -> u64 {
        let rows =
            "WITH RECURSIVE q (seq) AS (SELECT 1 UNION ALL SELECT seq + 1 FROM q WHERE seq < 20) SELECT seq FROM q";
        self.server.run(&format!(
            "SET sql_mode = ''; USE {}; CREATE TABLE a (id INT PRIMARY KEY, v VARCHAR(600), d DATE); CREATE TABLE b (k VARCHAR(9) PRIMARY KEY, v INT);
             INSERT INTO a SELECT seq, REPEAT('v', 30 * seq), IF(seq % 7 = 0, '2026-00-00', '2026-01-01') FROM ({rows}) t; INSERT INTO b SELECT CONCAT('k', seq), seq FROM ({rows}) t",
            self.database
        ));
        40
    }

    fn append(&mut self) -> u64 {
        self.server
            .run(&format!("INSERT INTO {0}.b VALUES ('new', 1); DELETE FROM {0}.b WHERE k = 'k3'", self.database));
        2
    }

    /// The bare row, because the envelope contains the time of the read.
    fn options(&self) -> String {
        let options = self.server.options(&format!("\"{}.*\"", self.database));
        format!("{options}envelope = \"row\"\nchunk_rows = 4\nzero_dates = \"error\"")
    }

    fn base(&self) -> PathBuf {
        PathBuf::from("/")
    }

    fn bad_options(&self) -> Vec<(String, &'static str)> {
        let good = "url = \"mysql://u:p@h\"\ntables = [\"a.b\"]\n";
        let mut bad = vec![
            ("tables = [\"a.b\"]".to_owned(), "config.missing_key"),
            ("url = \"mysql://u:p@h\"".to_owned(), "config.missing_key"),
            (format!("{good}server-id = 1"), "config.unknown_key"),
            (format!("{good}masks = [{{ truncate = 1 }}]"), "config.missing_key"),
            (format!("{good}masks = [{{ columns = [\"a.b.c\"], truncate = 1, size = 2 }}]"), "config.unknown_key"),
        ];
        let wrong = "config.wrong_value";
        for line in ["url = \"postgres://u:p@h\"", "url = \"mysql://h\"", "url = \"mysql://u:p@h/db\"", "url = 1"] {
            bad.push((format!("{line}\ntables = [\"a.b\"]"), wrong));
        }
        for line in ["tables = []", "tables = [\"orders\"]", "tables = [\"!a.b\"]", "tables = [\"a.[\"]"] {
            bad.push((format!("{line}\nurl = \"mysql://u:p@h\""), wrong));
        }
        for line in [
            "columns = [\"a.b\"]",
            "masks = \"sha256\"",
            "masks = [\"a.b.c\"]",
            "masks = [{ columns = [\"a.b.c\"] }]",
            "masks = [{ columns = [\"a.b\"], truncate = 1 }]",
            "masks = [{ columns = [\"a.b.c\"], truncate = 1, fixed = \"x\" }]",
            "masks = [{ columns = [\"a.b.c\"], hash = \"md5\" }]",
            "masks = [{ columns = [\"a.b.c\"], salt = \"x\" }]",
            "skipped_operations = [\"r\"]",
            "snapshot = \"when_needed\"\non_purged = \"stop\"",
            "server_id = 0",
            "server_id = 4294967296",
            "snapshot = \"always\"",
            "chunk_rows = 0",
            "on_purged = \"ignore\"",
            "envelope = \"flat\"",
            "tombstones = \"no\"",
            "decimals = \"double\"",
            "binary = \"octal\"",
            "zero_dates = \"1970\"",
            "transaction_markers = true\nenvelope = \"row\"",
            "query = true\nenvelope = \"row\"",
            "ddl = \"yes\"",
            "snapshot_mode = \"locked\"",
            "times = \"seconds\"",
            "times = \"epoch_ms\"\nzero_dates = \"string\"",
            "tls = \"maybe\"",
            "tls_ca = 5",
        ] {
            bad.push((format!("{good}{line}"), wrong));
        }
        bad
    }
}

#[test]
fn the_source_passes_the_conformance_suite() {
    let Some(server) = Server::shared() else { return };
    source_suite(|| Tables { server, database: server.database() });
}

#[test]
fn the_readme_and_the_code_have_the_declared_options() {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    check_options_table(&readme, MysqlConnector.options());
    check_options_are_read(MysqlConnector.options(), |section| drop(MysqlConnector.configure(section)));
}
