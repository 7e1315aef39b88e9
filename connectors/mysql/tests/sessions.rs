//! Session variables: whatever a server or its `init_connect` set, snapshot and stream are complete
//! and equal.

#![allow(clippy::unwrap_used, reason = "a test says by panicking that something is wrong")]

mod common;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use common::{Bench, PATIENCE, Seen, Server, fold};
use serde_json::Value;

/// A session of the test, which undoes the global variables.
const PLAIN: &str = "SET autocommit = 1, sql_select_limit = 18446744073709551615, max_join_size = 18446744073709551615, \
                     sql_big_selects = 1, sql_safe_updates = 0, sql_mode = '', time_zone = '+00:00';";

/// Sets hostile global variables.
fn set_hostile(server: &Server) {
    let (isolation, limits) = match server.is_mariadb() {
        true => ("tx_isolation", "max_statement_time = 0.001, idle_transaction_timeout = 1"),
        false => ("transaction_isolation", "max_execution_time = 1"),
    };
    server.run(&format!(
        "SET GLOBAL autocommit = 0, sql_select_limit = 3, max_join_size = 1, sql_safe_updates = 1, completion_type = 1, \
         {isolation} = 'READ-UNCOMMITTED', sql_mode = 'ANSI_QUOTES,PAD_CHAR_TO_FULL_LENGTH', time_zone = '+09:00', \
         max_sort_length = 8, wait_timeout = 1, net_write_timeout = 1, lock_wait_timeout = 1, character_set_results = 'latin1', \
         {limits}"
    ));
    // It also undoes what a client sets before it.
    server.run(
        "SET GLOBAL init_connect = \"SET SESSION autocommit = 0, sql_select_limit = 2; SET SESSION time_zone = '-05:00'; \
         START TRANSACTION\"",
    );
}

fn numbers(count: usize) -> String {
    format!(
        "(WITH RECURSIVE q (seq) AS (SELECT 1 UNION ALL SELECT seq + 1 FROM q WHERE seq < {count}) SELECT seq FROM q) t"
    )
}

#[test]
fn hostile_session_variables_truncate_and_change_nothing() {
    for server in Server::start_each("") {
        let database = server.database();
        let columns: Vec<String> = (0..201).map(|number| format!("c{number} CHAR(3) DEFAULT 'é'")).collect();
        server.run(
            &format!(
                "SET cte_max_recursion_depth = 100000; USE {database}; CREATE TABLE k (v INT, t VARCHAR(200));
             INSERT INTO k SELECT seq, REPEAT('é', 100) FROM {};
             CREATE TABLE w (id INT PRIMARY KEY, at TIMESTAMP(3) NULL, {});
             INSERT INTO w (id, at) SELECT seq, '2026-03-01 02:30:00.125' FROM {}",
                numbers(20_000),
                columns.join(", "),
                numbers(40),
            )
            .replace(
                "SET cte_max_recursion_depth",
                if server.is_mariadb() { "SET max_recursive_iterations" } else { "SET cte_max_recursion_depth" },
            ),
        );
        set_hostile(&server);
        let mut bench = Bench::new(&format!("{}chunk_rows = 7", server.options(&format!("\"{database}.*\""))));
        bench.read();
        let of = |records: &[Seen], table: &str| -> Vec<Value> {
            let name = format!("{database}.{table}");
            let of_table = records.iter().filter(|record| record.table == name);
            of_table.map(|record| record.after().clone()).collect()
        };
        assert_eq!(of(&bench.seen, "k").len(), 20_000);
        let wide = of(&bench.seen, "w");
        assert_eq!((wide.len(), wide[0].as_object().unwrap().len()), (40, 203));
        bench.take();
        let limit = if server.is_mariadb() { "SET max_statement_time = 0;" } else { "" };
        server.run(&format!(
            "{PLAIN} {limit} UPDATE {database}.w SET c7 = 'x'; INSERT INTO {database}.k VALUES (0, 'new')"
        ));
        bench.read();
        let streamed = of(&bench.seen, "w");
        assert_eq!(streamed.len(), 40);
        // The snapshot and the stream agree on padding and times.
        for (before, after) in wide.iter().zip(&streamed) {
            let mut expected = before.clone();
            expected["c7"] = "x".into();
            assert_eq!((&expected, &after["c0"]), (after, &"é".into()));
        }
        assert_eq!(of(&bench.seen, "k").len(), 1);
    }
}

#[test]
fn without_autocommit_each_chunk_sees_the_newest_rows() {
    for server in Server::start_each("") {
        let database = server.database();
        server.run(&format!(
            "SET SESSION {} = 100000; USE {database}; CREATE TABLE t (id INT PRIMARY KEY, v INT); INSERT INTO t SELECT seq, 0 FROM {}",
            if server.is_mariadb() { "max_recursive_iterations" } else { "cte_max_recursion_depth" },
            numbers(4000)
        ));
        server.run("SET GLOBAL autocommit = 0");
        let mut bench = Bench::new(&format!("{}chunk_rows = 20", server.options(&format!("\"{database}.*\""))));
        bench.max_records = 50;
        let begun = Instant::now();
        while bench.seen.len() < 200 {
            assert!(begun.elapsed() < PATIENCE);
            bench.fill(Duration::from_millis(50)).unwrap();
        }
        server.run(&format!("{PLAIN} UPDATE {database}.t SET v = 1"));
        bench.read();
        let rows = fold(&bench.seen);
        let stale = rows.values().filter(|row| row["v"] != 1).count();
        assert_eq!((rows.len(), stale), (4000, 0));
        // No transaction of the reader holds a lock on the table's definition.
        server.run(&format!("{PLAIN} SET lock_wait_timeout = 5; ALTER TABLE {database}.t ADD COLUMN w INT"));
    }
}

#[test]
fn virtual_columns_are_computed_as_the_server_computes_them() {
    for server in Server::start_each("--default-time-zone=+09:00") {
        let database = server.database();
        server.run("SET GLOBAL sql_mode = 'PAD_CHAR_TO_FULL_LENGTH'");
        // MariaDB computes dates of a TIMESTAMP in the time zone of the session too.
        server.run(&format!(
            "USE {database}; CREATE TABLE v (id INT PRIMARY KEY, ts TIMESTAMP(2) NULL, c CHAR(5),
               d DATE AS (DATE(ts)) VIRTUAL, p VARCHAR(9) AS (CONCAT(c, '|')) VIRTUAL);
             CREATE TABLE s (ts TIMESTAMP PRIMARY KEY, d DATE AS (DATE(ts)) VIRTUAL)"
        ));
        let insert = format!(
            "USE {database}; INSERT INTO v (id, ts, c) VALUES (1, '2026-03-01 02:30:00.25', 'a'), (2, NULL, 'bb'), (3, '2026-06-30 23:59:59', '');
             INSERT INTO s (ts) VALUES ('2026-03-01 02:30:00'), ('2026-03-02 10:00:00')"
        );
        let options = format!("{}chunk_rows = 1", server.options(&format!("\"{database}.*\"")));
        let mut stream = Bench::new(&options);
        stream.read();
        server.run(&insert);
        stream.read();
        let mut snapshot = Bench::new(&options);
        snapshot.read();
        let rows = |bench: &Bench| -> BTreeMap<String, Value> {
            let row = |record: &Seen| (record.key.clone().unwrap(), record.after().clone());
            bench.seen.iter().map(row).collect()
        };
        assert_eq!(rows(&stream), rows(&snapshot));
        // Independently: the server's own session.
        let printed = server.run(&format!("SELECT d, REPLACE(p, ' ', '_') FROM {database}.v WHERE id = 1"));
        let row = &rows(&snapshot)["{\"id\":1}"];
        let own = format!("{}\t{}", row["d"].as_str().unwrap(), row["p"].as_str().unwrap().replace(' ', "_"));
        assert_eq!((printed.as_str(), row["ts"].as_str().unwrap()), (own.as_str(), "2026-02-28T17:30:00.25Z"));
        assert_eq!(row["c"], "a");
    }
}

#[test]
fn a_consistent_read_that_fails_repeatedly_stops() {
    let Some(server) = Server::start("") else { return };
    let database = server.database();
    server.run(&format!(
        "SET cte_max_recursion_depth = 1000000; USE {database}; CREATE TABLE k (v INT, t VARCHAR(900)); INSERT INTO k SELECT seq, REPEAT('x', 900) FROM {}",
        numbers(60_000)
    ));
    let mut bench = Bench::new(&server.options(&format!("\"{database}.*\"")));
    bench.max_records = 100;
    // The query is killed each time.
    let mut failures = Vec::new();
    let begun = Instant::now();
    while failures.len() < 4 {
        assert!(begun.elapsed() < 2 * PATIENCE, "{failures:?}");
        match bench.fill(Duration::from_millis(50)) {
            Ok(_) if bench.seen.len() > 100 => {
                bench.seen.clear();
                let threads = server.run(
                    "SELECT id FROM information_schema.PROCESSLIST WHERE user = 'cdc' AND info LIKE 'SELECT%900%' OR user = 'cdc' AND info LIKE '%`k`%'",
                );
                threads.lines().for_each(|id| drop(server.try_run(&format!("KILL {id}"))));
            }
            Ok(_) => {}
            Err(error) => {
                bench.stop();
                failures.push((error.code, error.domain));
                if error.code == "mysql.snapshot_failed" {
                    break;
                }
            }
        }
    }
    assert_eq!(failures.last().unwrap(), &("mysql.snapshot_failed", trunkline_connector::Domain::Data), "{failures:?}");
    assert_eq!(failures.len(), 3, "{failures:?}");
    // It stays stopped until the snapshot is requested again.
    assert_eq!(bench.fill(Duration::ZERO).unwrap_err().code, "mysql.snapshot_failed");
}
