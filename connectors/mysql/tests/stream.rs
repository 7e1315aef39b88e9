//! The stream: the records of each kind of change, and stops anywhere without loss or duplicates.

#![allow(clippy::unwrap_used, reason = "a test says by panicking that something is wrong")]

mod common;

use std::time::Duration;

use common::{Bench, PATIENCE, Seen, Server, fold};
use serde_json::json;
use trunkline_connector::{Domain, Fill};

fn ops(records: &[Seen]) -> Vec<String> {
    let key = |record: &Seen| record.key.clone().unwrap_or_else(|| "-".to_owned());
    records.iter().map(|record| format!("{} {}", record.op(), key(record))).collect()
}

#[test]
fn changes_become_debeziums_records() {
    for server in Server::shared_each() {
        let database = server.database();
        let tables = format!("\"{database}.*\", \"!{database}.audit_*\"");
        server.run(&format!(
            "USE {database}; CREATE TABLE o (a INT, b VARCHAR(9), n INT, PRIMARY KEY (b, a)); CREATE TABLE audit_x (id INT PRIMARY KEY);
             CREATE TABLE keyless (n INT); INSERT INTO o VALUES (1, 'x', 1)"
        ));
        let mut bench = Bench::new(&server.options(&tables));
        bench.read();
        bench.take();
        server.run(&format!(
            "USE {database}; INSERT INTO o VALUES (2, 'y', 1); INSERT INTO audit_x VALUES (1); UPDATE o SET n = 2 WHERE a = 1; UPDATE o SET b = 'z' WHERE a = 2;
             DELETE FROM o WHERE a = 1; INSERT INTO keyless VALUES (1), (1); UPDATE keyless SET n = 2 LIMIT 1; DELETE FROM keyless WHERE n = 2; TRUNCATE o; \
             TRUNCATE TABLE `{database}`.`audit_x`"
        ));
        bench.read();
        let records = bench.take();
        let [x, y, z] = [r#"{"b":"x","a":1}"#, r#"{"b":"y","a":2}"#, r#"{"b":"z","a":2}"#];
        assert_eq!(
            ops(&records),
            [
                format!("c {y}"),
                format!("u {x}"),
                format!("d {y}"),
                format!("tombstone {y}"),
                format!("c {z}"),
                format!("d {x}"),
                format!("tombstone {x}"),
                "c -".to_owned(),
                "c -".to_owned(),
                "u -".to_owned(),
                "d -".to_owned(),
                "t -".to_owned(),
            ]
        );
        let update = records[1].value.as_ref().unwrap();
        assert_eq!(update["before"], json!({"a": 1, "b": "x", "n": 1}));
        assert_eq!(update["after"], json!({"a": 1, "b": "x", "n": 2}));
        let source = &update["source"];
        assert_eq!(
            (&source["db"], &source["table"], &source["connector"]),
            (&json!(database), &json!("o"), &json!("mysql"))
        );
        assert!(
            source["gtid"].as_str().unwrap().contains(if server.is_mariadb() { '-' } else { ':' })
                && source["pos"].as_u64().unwrap() > 0
        );
        assert!(
            source["ts_ms"].as_i64().unwrap() > 1_700_000_000_000
                && source["thread"].as_u64().is_some() != server.is_mariadb()
        );
        assert_eq!(records[2].headers["__debezium.newkey"], z);
        assert_eq!(records[4].headers["__debezium.oldkey"], y);
        assert!(
            !records[3].headers.contains_key("trunkline.schema") && records[4].headers.contains_key("trunkline.schema")
        );
        let schema = &bench.schemas[&records[1].headers["trunkline.schema"]];
        assert!(schema.contains(r#""primary_key":"b,a""#), "{schema}");
    }
}

/// Transactions of every kind, with 100 and more rows, and rolled back ones among them.
fn transactions(server: &Server, database: &str) {
    let set = |setting: &str| if server.is_mariadb() { String::new() } else { format!("SET {setting};") };
    let [compressed, plain] = ["ON", "OFF"].map(|value| match server.is_mariadb() {
        true => format!("SET GLOBAL log_bin_compress = {value}, GLOBAL log_bin_compress_min_len = 10;"),
        false => set(&format!("binlog_transaction_compression = {value}")),
    });
    let [tagged, untagged] = ["AUTOMATIC:mytag", "AUTOMATIC"].map(|value| set(&format!("gtid_next = '{value}'")));
    let queries = set("binlog_rows_query_log_events = ON");
    server.run(&format!(
        "USE {database};
         BEGIN; INSERT INTO a VALUES (1, 'a'), (2, 'b'), (3, 'c'); UPDATE a SET v = 'bb' WHERE id = 2; INSERT INTO b VALUES (1, 'x'); DELETE FROM a WHERE id = 1; COMMIT;
         BEGIN; INSERT INTO a VALUES (10, 'no'); ROLLBACK;
         BEGIN; INSERT INTO a VALUES (11, 'yes'); SAVEPOINT s; INSERT INTO a VALUES (12, 'no'); ROLLBACK TO SAVEPOINT s; INSERT INTO a VALUES (13, 'yes'); COMMIT;
         XA START 'x1'; INSERT INTO a VALUES (20, 'xa'), (21, 'xa'); XA END 'x1'; XA PREPARE 'x1'"
    ));
    // A MariaDB session with a prepared transaction cannot run anything else.
    server.run(&format!(
        "USE {database}; INSERT INTO a VALUES (22, 'between');
         XA COMMIT 'x1';
         XA START 'x2'; INSERT INTO a VALUES (23, 'no'); XA END 'x2'; XA PREPARE 'x2'; XA ROLLBACK 'x2';
         XA START 'x3'; INSERT INTO a VALUES (24, 'one phase'); XA END 'x3'; XA COMMIT 'x3' ONE PHASE;
         {compressed}
         BEGIN; INSERT INTO a VALUES (30, REPEAT('z', 200)); UPDATE a SET id = 31 WHERE id = 30; INSERT INTO b VALUES (2, 'zstd'); COMMIT;
         {plain}
         {tagged} INSERT INTO a VALUES (40, 'tagged'); {untagged}
         {queries} UPDATE a SET v = 'again' WHERE id = 40;
         CREATE TABLE c (id INT PRIMARY KEY) SELECT id FROM a;
         ALTER TABLE a ADD COLUMN w INT DEFAULT 5 AFTER id, ALGORITHM=INSTANT;
         UPDATE a SET v = 'after ddl' WHERE id > 20;
         ALTER TABLE a DROP COLUMN v; INSERT INTO a VALUES (50, 6);
         RENAME TABLE b TO b_old, c TO b; INSERT INTO b VALUES (99);
         INSERT INTO a SELECT 1000 + seq, seq FROM (WITH RECURSIVE s (seq) AS (SELECT 1 UNION ALL SELECT seq + 1 FROM s WHERE seq < 100) SELECT seq FROM s) t;
         DELETE FROM a WHERE id > 1050"
    ));
}

fn create(server: &Server, database: &str) {
    server.run(&format!("USE {database}; CREATE TABLE a (id INT PRIMARY KEY, v VARCHAR(200)); CREATE TABLE b (id INT PRIMARY KEY, v VARCHAR(9))"));
}

#[test]
fn a_stop_after_any_record_resumes_with_exactly_the_rest() {
    // Separate servers: an XA transaction that is prepared before another test's source starts
    // stops that source.
    for server in &Server::start_each("").collect::<Vec<_>>() {
        let database = server.database();
        create(server, &database);
        // A renamed table is a new table, with a snapshot.
        let options = server.options(&format!("\"{database}.*\", \"!{database}.b_old\""));
        let mut bench = Bench::new(&options);
        bench.read();
        let begin = bench.position.clone();
        transactions(server, &database);
        let mut whole = Bench::new(&options);
        whole.position = begin.clone();
        whole.read();
        let expected: Vec<(String, String)> = whole.seen.iter().map(comparable).collect();
        assert_eq!(
            expected.len(),
            7 + 2 + 1 + 2 + 1 + 5 + 1 + 1 + 10 + 5 + 1 + 1 + 100 + 100,
            "{:#?}",
            ops(&whole.seen)
        );

        // A stop after every fill, with small batches of every size.
        for max_records in [1, 2, 3, 7] {
            let mut bench = Bench::new(&options);
            bench.position = begin.clone();
            bench.max_records = max_records;
            let mut fills = 0;
            // MariaDB delays the first events of a connection until its first heartbeat.
            while bench.fill(PATIENCE).unwrap() != Fill::CaughtUp {
                fills += 1;
                if max_records > 2 || fills % 5 == 0 {
                    bench.stop();
                }
            }
            let seen: Vec<_> = bench.seen.iter().map(comparable).collect();
            assert_eq!(seen, expected, "in batches of {max_records}");
        }
        let rows = fold(&whole.seen);
        let of_a: Vec<_> =
            server.run(&format!("SELECT id, w FROM {database}.a ORDER BY id")).lines().map(str::to_owned).collect();
        let mut folded: Vec<(i64, String)> = rows
            .iter()
            .filter(|((table, _), _)| *table == format!("{database}.a"))
            .map(|(_, row)| {
                (row["id"].as_i64().unwrap(), format!("{}\t{}", row["id"], row.get("w").unwrap_or(&json!(5))))
            })
            .collect();
        folded.sort();
        assert_eq!(folded.into_iter().map(|(_, line)| line).collect::<Vec<_>>(), of_a);
    }
}

/// A record without its creation time.
fn comparable(record: &Seen) -> (String, String) {
    let mut value = record.value.clone();
    if let Some(value) = &mut value {
        value["ts_ms"] = json!(0);
    }
    (format!("{} {:?} {:?}", record.table, record.key, record.headers), format!("{value:?}"))
}

#[test]
fn incomplete_binlogs_stop_the_source_with_a_remedy() {
    for server in Server::shared_each() {
        for (setting, code, mend) in [
            ("binlog_row_image = 'MINIMAL'", "mysql.row_image", "binlog_row_image = 'FULL'"),
            ("binlog_row_image = 'NOBLOB'", "mysql.row_image", "binlog_row_image = 'FULL'"),
            ("binlog_format = 'STATEMENT'", "mysql.statement", "binlog_format = 'ROW'"),
        ] {
            let database = server.database();
            server.run(&format!("USE {database}; CREATE TABLE j (id INT PRIMARY KEY, j JSON, b TEXT); INSERT INTO j VALUES (1, '{{\"a\": [1, 2, 3], \"b\": \"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\"}}', 'b')"));
            let mut bench = Bench::new(&server.options(&format!("\"{database}.j\"")));
            bench.read();
            bench.take();
            server.run(&format!("USE {database}; INSERT INTO j VALUES (2, NULL, NULL); SET {setting}; UPDATE j SET j = JSON_SET(j, '$.a[1]', 5), id = id WHERE id = 1"));
            for _ in 0..2 {
                let error = bench.try_read().unwrap_err();
                assert_eq!((error.code, error.domain), (code, Domain::Data), "{setting}: {error}");
                let set = if server.is_mariadb() { "SET GLOBAL" } else { "SET PERSIST" };
                assert!(error.message().contains(&format!("{set} {mend}")), "{error}");
                bench.stop();
            }
            assert_eq!(ops(&bench.seen), ["c {\"id\":2}"], "{setting}: rows before the error are emitted once");
        }
    }
}

#[test]
fn an_idle_source_advances_and_receives_changes_at_once() {
    let Some(server) = Server::start("") else { return };
    let database = server.database();
    create(&server, &database);
    let mut bench = Bench::new(&server.options(&format!("\"{database}.a\"")));
    bench.until_idle = false;
    bench.read();
    let begun = std::time::Instant::now();
    assert_eq!(bench.fill(Duration::from_millis(300)).unwrap(), Fill::CaughtUp);
    assert!(begun.elapsed() >= Duration::from_millis(290));
    // A fill that ends with a heartbeat has found nothing. Otherwise heartbeats could keep fills
    // with the same period from ever being caught up.
    let begun = std::time::Instant::now();
    while begun.elapsed() < Duration::from_secs(1) {
        assert_eq!(bench.fill(Duration::ZERO).unwrap(), Fill::CaughtUp);
    }
    let before = bench.position.clone();
    server.run(&format!("INSERT INTO {database}.b VALUES (1, 'x')"));
    for _ in 0..30 {
        bench.fill(Duration::from_millis(200)).unwrap();
    }
    assert_ne!(bench.position["stream"], before["stream"], "changes of other tables move the position too");
    server.run(&format!("INSERT INTO {database}.a VALUES (1, 'x')"));
    let begun = std::time::Instant::now();
    while bench.seen.is_empty() {
        bench.fill(Duration::from_secs(5)).unwrap();
    }
    assert!(begun.elapsed() < Duration::from_secs(2));
}

#[test]
fn json_encoded_as_differences_is_restored() {
    let Some(server) = Server::shared() else { return };
    let database = server.database();
    server.run(&format!(
        r#"USE {database}; CREATE TABLE j (id INT PRIMARY KEY, a JSON, t TEXT, b JSON);
        INSERT INTO j VALUES (1, '{{"a": [1, 2.5, "é", {{"x": null}}], "bb": {{"c": 1, "d.e": [true]}}, "long": "{0}"}}', 't', '[1, [2, 3], "{0}"]'), (2, NULL, NULL, '{{"k": "{0}"}}')"#,
        "x".repeat(300)
    ));
    let options = server.options(&format!("\"{database}.j\""));
    let mut bench = Bench::new(&options);
    bench.read();
    let mut expected = bench.seen.len();
    for change in [
        "a = JSON_SET(a, '$.a[1]', 7, '$.bb.c', CAST('2026-01-02 03:04:05' AS DATETIME))",
        "a = JSON_SET(a, '$.b', 'new', '$.bb.\"d.e\"[0]', false), t = 'u'",
        "a = JSON_REMOVE(a, '$.a[0]', '$.bb.c'), b = JSON_SET(b, '$[1][0]', 'two')",
        "a = JSON_ARRAY_INSERT(a, '$.a[1]', JSON_OBJECT('y', 1)), b = JSON_REMOVE(b, '$[0]')",
        "b = JSON_ARRAY_APPEND(b, '$[0]', 18446744073709551615), a = JSON_REPLACE(a, '$.long', REPEAT('y', 70000))",
        "a = NULL",
        "a = '{}'",
    ] {
        server.run(&format!(
            "USE {database}; SET binlog_row_value_options = 'PARTIAL_JSON'; UPDATE j SET {change} WHERE id = 1"
        ));
        bench.read();
        expected += 1;
        assert_eq!(bench.seen.len(), expected);
        let mut snapshot = Bench::new(&options);
        snapshot.read();
        assert_eq!(bench.seen.last().unwrap().after(), snapshot.seen[0].after(), "{change}");
    }
    let status = server.run("SHOW BINARY LOG STATUS");
    let events = server.run(&format!("SHOW BINLOG EVENTS IN '{}'", status.split('\t').next().unwrap()));
    let partial = events.lines().filter(|line| line.contains("Update_rows_partial")).count();
    assert!(partial >= 7, "{partial} events with differences");
}
