//! Servers whose binlog lacks changes, was reset, or changes its GTIDs; and names of tables that
//! match nothing.

#![allow(clippy::unwrap_used, reason = "a test says by panicking that something is wrong")]

mod common;

use std::time::{Duration, Instant};

use common::{Bench, Kind, Server};
use trunkline_connector::{Domain, Fill, PreflightIssue};

fn check(options: &str) -> Vec<PreflightIssue> {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    Bench::new(options).spec().preflight("tests.check.source", runtime.handle())
}

fn reset(server: &Server) {
    server.run(if server.is_mariadb() { "RESET MASTER" } else { "RESET BINARY LOGS AND GTIDS" });
}

/// Waits until the server's clock shows another second. Binlog files with the same name differ
/// only in the second of their creation.
fn next_second(server: &Server) {
    let now = || server.run("SELECT UNIX_TIMESTAMP()");
    let (begun, limit) = (now(), Instant::now() + Duration::from_secs(30));
    while now() == begun {
        assert!(Instant::now() < limit, "the server's clock stands still");
    }
}

fn inserts(database: &str, from: u32, count: u32) -> String {
    (from..from + count).map(|id| format!("INSERT INTO {database}.t VALUES ({id});")).collect()
}

#[test]
fn changes_of_another_server_are_newer_although_its_positions_are_lower() {
    let (Some(first), Some(second)) = (Server::start(""), Server::start("")) else { return };
    let database = first.database();
    let create = format!("CREATE TABLE {database}.t (id INT PRIMARY KEY, v INT)");
    first.run(&create);
    first.run("FLUSH BINARY LOGS; FLUSH BINARY LOGS; FLUSH BINARY LOGS");
    let tables = format!("\"{database}.*\"");
    let mut bench = Bench::new(&first.options(&tables));
    bench.read();
    first.run(&format!("INSERT INTO {database}.t VALUES (1, 1), (2, 2)"));
    bench.read().stop();
    let epoch = |bench: &Bench| {
        let stream: serde_json::Value = serde_json::from_slice(&bench.position["stream"]).unwrap();
        stream["epoch"]["number"].as_u64().unwrap()
    };
    let before = epoch(&bench);
    // An ordinary restart keeps the epoch.
    first.run(&format!("UPDATE {database}.t SET v = 3 WHERE id = 1"));
    bench.read().stop();
    assert_eq!(epoch(&bench), before);
    // A replica is promoted.
    let executed = first.run("SELECT @@GLOBAL.gtid_executed").replace("\\n", "");
    reset(&second);
    second.run(&format!(
        "SET GLOBAL gtid_purged = '{executed}'; SET sql_log_bin = 0; CREATE DATABASE {database}; {create}; \
         INSERT INTO {database}.t VALUES (1, 3), (2, 2)"
    ));
    second.run(&format!("UPDATE {database}.t SET v = 4 WHERE id = 1; DELETE FROM {database}.t WHERE id = 2"));
    bench.set_options(&second.options(&tables));
    bench.take();
    // The bench compares the order of each record with that of the one before it.
    let records = bench.read().take();
    assert_eq!(records.len(), 3, "{records:#?}");
    assert!(epoch(&bench) > before);
    bench.stop();
}

#[test]
fn a_binlog_that_was_reset_stops_the_source_however_far_it_is() {
    for (kind, options) in
        [(Kind::MySql, ""), (Kind::MySql, "--gtid-mode=OFF --enforce-gtid-consistency=OFF"), (Kind::MariaDb, "")]
    {
        let Some(server) = Server::start_kind(kind, options) else { continue };
        let database = server.database();
        let options = server.options(&format!("\"{database}.*\""));
        server.run(&format!("CREATE TABLE {database}.t (id INT PRIMARY KEY)"));
        // With transactions that the source has followed, and without any.
        for (followed, index) in [(true, 0u32), (false, 100)] {
            reset(&server);
            let mut bench = Bench::new(&options);
            if followed {
                bench.read();
            }
            server.run(&inserts(&database, index, 5));
            bench.read().take();
            bench.stop();
            bench.read();
            assert!(bench.take().is_empty(), "an unchanged history");
            bench.stop();
            let position = bench.position.clone();
            // Behind the position, at the same numbers and offsets, and beyond it.
            for count in [3, 2, 5] {
                if count == 3 {
                    next_second(&server);
                    reset(&server);
                }
                server.run(
                    &format!("DELETE FROM {database}.t WHERE id >= {index}")
                        .replace("DELETE", "SET sql_log_bin = 0; DELETE"),
                );
                server.run(&inserts(&database, index, count));
                let error = bench.try_read().unwrap_err();
                assert_eq!(
                    (error.code, error.domain),
                    ("mysql.history", Domain::Data),
                    "{kind:?} {followed} {count}: {error}"
                );
                assert!(error.message().contains("resnapshot"), "{error}");
                assert_eq!((bench.seen.len(), &bench.position), (0, &position));
            }
            // A new snapshot begins in the new history.
            bench.set_options(&format!("{options}on_purged = \"resnapshot\"\n"));
            bench.read();
            let rows = server.run(&format!("SELECT COUNT(*) FROM {database}.t"));
            assert_eq!(bench.take().len().to_string(), rows);
            server.run(&inserts(&database, index + 50, 1));
            bench.read();
            assert_eq!(bench.seen.len(), 1);
        }
    }
}

#[test]
fn positions_without_an_anchor_are_still_accepted() {
    for server in Server::shared_each() {
        let database = server.database();
        server.run(&format!("CREATE TABLE {database}.t (id INT PRIMARY KEY)"));
        let mut bench = Bench::new(&server.options(&format!("\"{database}.*\"")));
        bench.read();
        bench.stop();
        let mut stream: serde_json::Value = serde_json::from_slice(&bench.position["stream"]).unwrap();
        assert!(stream["anchor"]["created"].as_u64().unwrap() > 1_700_000_000, "{stream}");
        stream.as_object_mut().unwrap().remove("anchor");
        bench.position.insert("stream".to_owned(), serde_json::to_vec(&stream).unwrap());
        server.run(&inserts(&database, 1, 2));
        bench.read();
        assert_eq!(bench.seen.len(), 2);
        let stream: serde_json::Value = serde_json::from_slice(&bench.position["stream"]).unwrap();
        assert!(stream["anchor"]["transaction"]["pos"].as_u64().is_some(), "{stream}");
    }
}

#[test]
fn a_binlog_that_excludes_databases_is_rejected() {
    for server in Server::start_each("--binlog-ignore-db=shop --binlog-ignore-db=other") {
        server.run("CREATE DATABASE shop; CREATE TABLE shop.t (id INT PRIMARY KEY); CREATE DATABASE crm; CREATE TABLE crm.t (id INT PRIMARY KEY)");
        let error = Bench::new(&server.options("\"shop.*\", \"crm.*\"")).try_read().unwrap_err();
        assert_eq!((error.code, error.domain), ("mysql.unlogged", Domain::Config), "{error}");
        assert!(error.message().contains("databases shop,") && error.message().contains("binlog-ignore-db"), "{error}");
        let issues = check(&server.options("\"shop.*\""));
        assert_eq!(
            issues.iter().map(|issue| issue.code).collect::<Vec<_>>(),
            ["mysql.check.binlog_filter"],
            "{issues:#?}"
        );
        assert_eq!(check(&server.options("\"crm.*\"")), []);
        Bench::new(&server.options("\"crm.*\"")).read();
        // What a snapshot alone reads is complete.
        Bench::new(&format!("{}snapshot = \"only\"", server.options("\"shop.*\""))).read();
    }
    for server in Server::start_each("--binlog-do-db=crm") {
        server.run("CREATE DATABASE shop; CREATE TABLE shop.t (id INT PRIMARY KEY)");
        let error = Bench::new(&server.options("\"shop.*\"")).try_read().unwrap_err();
        assert_eq!(error.code, "mysql.unlogged", "{error}");
        assert!(error.message().contains("binlog-do-db"), "{error}");
    }
}

#[test]
fn a_replica_that_does_not_log_its_changes_is_rejected() {
    for (kind, option) in [(Kind::MySql, "--log-replica-updates=OFF"), (Kind::MariaDb, "--log-slave-updates=OFF")] {
        let Some(replica) = Server::start_kind(kind, option) else { continue };
        let database = replica.database();
        replica.run(&format!("CREATE TABLE {database}.t (id INT PRIMARY KEY)"));
        let options = replica.options(&format!("\"{database}.*\""));
        assert_eq!(check(&options), [], "a server that replicates nothing");
        replica.run(if kind == Kind::MySql {
            "CHANGE REPLICATION SOURCE TO SOURCE_HOST = '127.0.0.1', SOURCE_PORT = 1, SOURCE_USER = 'x'"
        } else {
            "RESET MASTER; SET GLOBAL gtid_slave_pos = '7-8-9'"
        });
        let issues = check(&options);
        assert_eq!(
            issues.iter().map(|issue| issue.code).collect::<Vec<_>>(),
            ["mysql.check.log_replica_updates"],
            "{issues:#?}"
        );
        let error = Bench::new(&options).try_read().unwrap_err();
        assert_eq!((error.code, error.domain), ("mysql.unlogged", Domain::Config), "{error}");
    }
}

#[test]
fn a_change_of_gtid_mode_stops_the_source_with_the_remedy() {
    let Some(server) = Server::start("--gtid-mode=ON_PERMISSIVE") else { return };
    let database = server.database();
    server.run(&format!("CREATE TABLE {database}.t (id INT PRIMARY KEY)"));
    let set = |mode: &str| drop(server.run(&format!("SET GLOBAL gtid_mode = {mode}")));
    // Transactions without GTIDs are pending when GTIDs become mandatory.
    ["OFF_PERMISSIVE", "OFF"].into_iter().for_each(set);
    let mut bench = Bench::new(&server.options(&format!("\"{database}.*\"")));
    bench.read();
    bench.stop();
    server.run(&inserts(&database, 1, 3));
    ["OFF_PERMISSIVE", "ON_PERMISSIVE", "ON"].into_iter().for_each(set);
    let error = bench.try_read().unwrap_err();
    assert_eq!((error.code, error.domain), ("mysql.gtid_mode", Domain::Data), "{error}");
    assert!(error.message().contains("ON_PERMISSIVE"), "{error}");
    bench.stop();
    set("ON_PERMISSIVE");
    bench.read();
    assert_eq!(bench.take().len(), 3);
    bench.stop();
    set("ON");
    server.run(&inserts(&database, 4, 1));
    bench.read();
    assert_eq!(bench.take().len(), 1);
    // GTIDs are turned off again.
    let mut bench = Bench::new(&server.options(&format!("\"{database}.*\"")));
    bench.read().take();
    bench.stop();
    ["ON_PERMISSIVE", "OFF_PERMISSIVE", "OFF"].into_iter().for_each(set);
    let error = bench.try_read().unwrap_err();
    assert_eq!((error.code, error.domain), ("mysql.gtid_mode", Domain::Data), "{error}");
    assert!(error.message().contains("turned off"), "{error}");
    ["OFF_PERMISSIVE", "ON_PERMISSIVE", "ON"].into_iter().for_each(set);
    server.run(&inserts(&database, 9, 1));
    bench.read();
    assert_eq!(bench.take().len(), 1);
}

#[test]
fn a_position_without_gtids_continues_with_gtids() {
    let Some(server) = Server::start("--gtid-mode=ON_PERMISSIVE") else { return };
    let set = |mode: &str| drop(server.run(&format!("SET GLOBAL gtid_mode = {mode}")));
    let has_gtids = |bench: &Bench| String::from_utf8_lossy(&bench.position["stream"]).contains("\"gtids\"");
    for stops in [false, true] {
        let database = server.database();
        server.run(&format!("CREATE TABLE {database}.t (id INT PRIMARY KEY)"));
        ["ON_PERMISSIVE", "OFF_PERMISSIVE", "OFF"].into_iter().for_each(set);
        let mut bench = Bench::new(&server.options(&format!("\"{database}.*\"")));
        bench.max_records = 1;
        let read = |bench: &mut Bench| {
            // A source that stops after any record continues with the next one.
            let begun = Instant::now();
            loop {
                if stops {
                    bench.stop();
                }
                if bench.fill(Duration::from_millis(300)).unwrap() == Fill::CaughtUp {
                    return;
                }
                assert!(begun.elapsed() < common::PATIENCE);
            }
        };
        // Transactions without GTIDs and with them, in every mode on the way. GTIDs become
        // mandatory when the source has read the others.
        server.run(&inserts(&database, 1, 2));
        set("OFF_PERMISSIVE");
        server.run(&inserts(&database, 3, 2));
        set("ON_PERMISSIVE");
        server.run(&inserts(&database, 5, 2));
        server.run(&format!("SET gtid_next = 'ANONYMOUS'; INSERT INTO {database}.t VALUES (7)"));
        read(&mut bench);
        assert!(!has_gtids(&bench), "anonymous transactions may follow");
        set("ON");
        server.run(&inserts(&database, 8, 2));
        read(&mut bench);
        assert!(has_gtids(&bench), "{}", String::from_utf8_lossy(&bench.position["stream"]));
        // The GTIDs are the whole position.
        bench.stop();
        let text = String::from_utf8_lossy(&bench.position["stream"]).into_owned();
        let executed = server.run("SELECT REPLACE(@@GLOBAL.gtid_executed, '\n', '')");
        assert!(text.contains(&format!("\"gtids\":\"{executed}\"")), "{text} {executed}");
        server.run("FLUSH BINARY LOGS");
        server.run(&inserts(&database, 10, 3));
        read(&mut bench);
        let ids: Vec<u64> = bench.seen.iter().map(|record| record.after()["id"].as_u64().unwrap()).collect();
        assert_eq!(ids, (1..=12).collect::<Vec<u64>>(), "stops: {stops}");
    }
}

#[test]
fn globs_that_match_no_table_are_reported_with_a_hint() {
    let Some(server) = Server::shared() else { return };
    let database = server.database();
    server.run(&format!("CREATE TABLE {database}.orders (id INT PRIMARY KEY)"));
    let fixes = |tables: &str| -> Vec<String> {
        let issues = check(&server.options(tables));
        issues
            .into_iter()
            .map(|issue| {
                assert_eq!(issue.code, "mysql.check.tables", "{issue:?}");
                issue.fix.unwrap()
            })
            .collect()
    };
    let upper = database.to_uppercase();
    assert_eq!(
        fixes(&format!("\"{upper}.*\"")),
        [format!("write the database's name as the server does: `{database}.*`")]
    );
    assert_eq!(
        fixes(&format!("\"{database}.*\", \"{database}.order\"")),
        [format!("did you mean `{database}.orders`?")]
    );
    assert_eq!(fixes(&format!("\"{database}.*\", \"crm.people\"")), ["GRANT SELECT ON *.* TO 'cdc'@'%';"]);
    assert!(fixes(&format!("\"{database}.o*\"")).is_empty());
}
