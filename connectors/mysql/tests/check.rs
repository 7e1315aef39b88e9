//! `validate --check`: reports each unmet prerequisite with a statement that fixes it.

#![allow(clippy::unwrap_used, reason = "a test says by panicking that something is wrong")]

mod common;

use common::{Bench, Kind, Server};
use trunkline_connector::PreflightIssue;

fn check(options: &str) -> Vec<PreflightIssue> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    Bench::new(options).spec().preflight("tests.check.source", runtime.handle())
}

fn codes(issues: &[PreflightIssue]) -> Vec<&str> {
    issues.iter().map(|issue| issue.code.trim_start_matches("mysql.")).collect()
}

#[test]
fn issues_of_a_mysql_are_fixed_by_their_statements() {
    let Some(server) = Server::start(
        "--binlog-row-image=MINIMAL --binlog-row-metadata=MINIMAL --binlog-format=MIXED \
         --gtid-mode=OFF --binlog-expire-logs-seconds=3600",
    ) else {
        return;
    };
    let database = server.database();
    server.run(&format!("CREATE TABLE {database}.a (id INT); CREATE USER poor IDENTIFIED BY 'x'"));
    let poor = format!("url = \"mysql://poor:x@127.0.0.1:{}\"\ntables = [\"{database}.*\"]\n", server.port);
    let settings =
        ["check.binlog_format", "check.row_image", "check.row_metadata", "check.gtid_mode", "check.retention"];
    let grants = ["check.replication_client", "check.replication_slave"];
    let issues = check(&poor);
    // A server that logs statements is rejected before its tables are read.
    assert_eq!(codes(&issues), [&settings[..], &grants[..], &["server"]].concat(), "{issues:#?}");
    for issue in &issues {
        if let Some(fix) = &issue.fix {
            server.run(fix);
        }
    }
    let issues = check(&poor);
    assert_eq!(codes(&issues), ["check.tables"], "{issues:#?}");
    server.run(issues[0].fix.as_ref().unwrap());
    let issues = check(&poor);
    assert_eq!(codes(&issues), ["check.lock_tables"], "{issues:#?}");
    server.run(issues[0].fix.as_ref().unwrap());
    assert_eq!(check(&poor), []);
    Bench::new(&poor).read();

    assert_eq!(codes(&check(&format!("{poor}query = true"))), ["check.query"]);
    server.run(&format!("ALTER TABLE {database}.a ADD PRIMARY KEY (id); CREATE USER reader IDENTIFIED BY 'x'; GRANT SELECT, REPLICATION SLAVE, REPLICATION CLIENT ON *.* TO reader"));
    let reader = poor.replace("poor:", "reader:");
    assert_eq!(check(&reader), []);
    assert_eq!(codes(&check(&format!("{reader}snapshot_mode = \"exact\""))), ["check.lock_tables"]);

    let id = server.run("SELECT @@server_id");
    assert_eq!(codes(&check(&format!("{poor}server_id = {id}"))), ["check.server_id"]);
    assert_eq!(codes(&check(&poor.replace(":x@", ":y@"))), ["access_denied"]);
}

#[test]
fn a_server_without_binlog_is_reported() {
    let Some(server) = Server::start("--skip-log-bin --gtid-mode=OFF --enforce-gtid-consistency=OFF") else { return };
    assert_eq!(codes(&check(&server.options("\"a.*\""))), ["check.log_bin"]);
}

#[test]
fn issues_of_a_mariadb_are_fixed_by_their_statements() {
    let options = "--binlog-row-image=MINIMAL --binlog-row-metadata=MINIMAL --gtid-strict-mode=OFF --binlog-expire-logs-seconds=3600";
    let Some(server) = Server::start_kind(Kind::MariaDb, options) else { return };
    let database = server.database();
    server.run(&format!("CREATE TABLE {database}.a (id INT); CREATE USER poor IDENTIFIED BY 'x'"));
    let poor = format!("url = \"mysql://poor:x@127.0.0.1:{}\"\ntables = [\"{database}.*\"]\n", server.port);
    let issues = check(&poor);
    let expected = [
        "check.row_image",
        "check.row_metadata",
        "check.gtid_strict_mode",
        "check.retention",
        "check.replication_client",
        "check.replication_slave",
        "check.tables",
    ];
    assert_eq!(codes(&issues), expected, "{issues:#?}");
    for issue in &issues {
        server.run(issue.fix.as_ref().unwrap());
    }
    let issues = check(&poor);
    assert_eq!(codes(&issues), ["check.lock_tables"], "{issues:#?}");
    server.run(issues[0].fix.as_ref().unwrap());
    assert_eq!(check(&poor), []);
    Bench::new(&poor).read();
    let id = server.run("SELECT @@server_id");
    assert_eq!(codes(&check(&format!("{poor}server_id = {id}"))), ["check.server_id"]);
}
