//! Side outputs: schema changes and transaction markers.

#![allow(clippy::unwrap_used, reason = "a test says by panicking that something is wrong")]

mod common;

use std::collections::BTreeMap;
use std::time::Duration;

use common::{Bench, PATIENCE, Seen, Server, SideOutput};
use serde_json::{Value, json};
use trunkline_connector::Fill;

fn statements(others: &[SideOutput]) -> Vec<&str> {
    others.iter().map(|other| other.value["ddl"].as_str().unwrap()).collect()
}

#[test]
fn schema_changes_are_emitted_once_and_in_order_and_no_other_statement_is() {
    let Some(server) = Server::shared() else { return };
    let (database, elsewhere) = (server.database(), server.database());
    server.run(&format!("USE {database}; CREATE TABLE o (id INT PRIMARY KEY, v INT); INSERT INTO o VALUES (1, 1)"));
    let options = format!("{}ddl = true", server.options(&format!("\"{database}.*\"")));
    let mut bench = Bench::new(&options);
    bench.read();
    assert!(bench.side_outputs.is_empty(), "a snapshot defines nothing");
    bench.take();
    let begin = bench.position.clone();
    server.run(&format!(
        "USE {database}; INSERT INTO o VALUES (2, 2); ALTER TABLE o ADD COLUMN w INT DEFAULT 7; INSERT INTO o VALUES (3, 3, 3);
         CREATE USER IF NOT EXISTS 'spy_{database}'@'%' IDENTIFIED BY 'very secret'; GRANT SELECT ON *.* TO 'spy_{database}'@'%';
         ALTER USER 'spy_{database}'@'%' IDENTIFIED BY 'more secret'; SET PASSWORD FOR 'spy_{database}'@'%' = 'most secret'; DROP USER 'spy_{database}'@'%';
         CREATE TABLE `c` SELECT id FROM o; CREATE TABLE {elsewhere}.x (id INT); ALTER TABLE {elsewhere}.x ADD y INT; DROP TABLE {elsewhere}.x;
         USE {elsewhere}; CREATE UNIQUE INDEX i ON {database}.c (id); CREATE TABLE elsewhere_only (id INT);
         USE {database}; SET NAMES latin1; CREATE TABLE `té` (id INT, n VARCHAR(9) DEFAULT 'é'); SET NAMES utf8mb4;
         CREATE TEMPORARY TABLE tmp (id INT); DROP TEMPORARY TABLE tmp; TRUNCATE c; RENAME TABLE c TO d; DROP TABLE d;
         CREATE TABLE f (id INT) COMMENT 'CONNECTION=mysql://u:hidden@h/d/t'; DROP TABLE f;
         CREATE PROCEDURE p() SELECT 'body'; DROP PROCEDURE p; CREATE VIEW v AS SELECT 1; DROP VIEW v; FLUSH TABLES; ANALYZE TABLE o;
         ALTER DATABASE CHARACTER SET latin1; INSERT INTO o VALUES (4, 4, 4)"
    ));
    bench.read();
    let whole = std::mem::take(&mut bench.side_outputs);
    let kinds: Vec<String> = statements(&whole)
        .iter()
        .map(|ddl| ddl.replace(&database, "DB").split_whitespace().take(3).collect::<Vec<_>>().join(" "))
        .collect();
    assert_eq!(
        kinds,
        [
            "ALTER TABLE o",
            "CREATE TABLE `c`",
            "CREATE UNIQUE INDEX",
            "CREATE TABLE `tÃ©`",
            "TRUNCATE c",
            "RENAME TABLE c",
            "DROP TABLE `d`",
            "DROP TABLE `f`",
            "ALTER DATABASE CHARACTER",
        ],
        "{whole:#?}"
    );
    assert_eq!(bench.dropped, 1, "what may hold a password of another server");
    assert!(!format!("{whole:?}").contains("secret"));
    let (alter, value) = (&whole[0], &whole[0].value);
    assert_eq!((alter.port, &alter.key), ("ddl", &json!({"databaseName": database})));
    assert_eq!(alter.headers["trunkline.database"], database);
    assert_eq!(
        (&value["databaseName"], &value["ddl"]),
        (&json!(database), &json!("ALTER TABLE o ADD COLUMN w INT DEFAULT 7"))
    );
    assert_eq!((&value["source"]["db"], &value["source"]["table"]), (&json!(database), &json!("o")));
    assert_eq!((&value["schemaName"], &value["tableChanges"]), (&Value::Null, &json!([])));
    assert!(value["ts_ms"].as_i64() >= value["source"]["ts_ms"].as_i64());
    let database_wide = &whole[8].value["source"];
    assert_eq!((&database_wide["db"], &database_wide["table"]), (&json!(database), &Value::Null));
    // In order with the rows around them, by their binlog positions.
    let place = |source: &Value| (source["file"].as_str().unwrap().to_owned(), source["pos"].as_u64().unwrap());
    let rows: Vec<_> =
        bench.seen.iter().filter_map(|record| record.value.as_ref()).map(|value| place(&value["source"])).collect();
    let altered = place(&value["source"]);
    assert!(rows[0] < altered && altered < rows[1], "{rows:?} {altered:?}");

    // Once, also after a stop at every fill, and with rows of the same transaction after them.
    let text = |others: &[SideOutput]| others.iter().map(|other| other.value["ddl"].to_string()).collect::<Vec<_>>();
    for max_records in [1, 2, 3] {
        let mut again = Bench::new(&options);
        again.position = begin.clone();
        again.max_records = max_records;
        while again.fill(PATIENCE).unwrap() != Fill::CaughtUp {
            again.stop();
        }
        assert_eq!(text(&again.side_outputs), text(&whole), "in batches of {max_records}");
        // A table that the source did not find when it opened may have no rows: its TRUNCATE has no
        // record.
        let rows = |seen: &[Seen]| seen.iter().filter(|record| record.op() != "t").count();
        assert_eq!(rows(&again.seen), rows(&bench.seen));
    }
}

/// Transactions of several rows and tables, and transactions without markers among them.
fn transactions(server: &Server, database: &str) {
    server.run(&format!(
        "USE {database};
         BEGIN; INSERT INTO a VALUES (1, 0), (2, 0), (3, 0); INSERT INTO b VALUES (1, 0); UPDATE a SET v = 1; UPDATE a SET id = 10 WHERE id = 1; INSERT INTO b VALUES (2, 0); \
         DELETE FROM a WHERE id = 2; COMMIT;
         INSERT INTO left_out VALUES (1);
         BEGIN; INSERT INTO left_out VALUES (2); INSERT INTO b VALUES (3, 0); COMMIT;
         BEGIN; INSERT INTO a VALUES (99, 0); ROLLBACK;
         XA START 'm'; INSERT INTO a VALUES (20, 0), (21, 0); XA END 'm'; XA PREPARE 'm'; XA COMMIT 'm';
         ALTER TABLE a ADD COLUMN w INT; TRUNCATE b;
         CREATE TABLE c (id INT PRIMARY KEY) SELECT id FROM a;
         INSERT INTO a SELECT 1000 + seq, seq, 0 FROM (WITH RECURSIVE s (seq) AS (SELECT 1 UNION ALL SELECT seq + 1 FROM s WHERE seq < 60) SELECT seq FROM s) t"
    ));
}

/// Checks that the markers match the changes between them. Returns the count of each transaction.
fn check(bench: &Bench) -> Vec<u64> {
    let mut changes: BTreeMap<String, Vec<&Seen>> = BTreeMap::new();
    for record in &bench.seen {
        let Some(value) = &record.value else { continue };
        if let Some(id) = value["transaction"]["id"].as_str() {
            changes.entry(id.to_owned()).or_default().push(record);
        } else {
            assert!(matches!(value["op"].as_str(), Some("r" | "t")), "{value}");
            assert_eq!(value["transaction"], Value::Null);
            assert!(value.as_object().unwrap().contains_key("transaction"));
        }
    }
    let mut ended = Vec::new();
    let mut open: Option<String> = None;
    for marker in bench.side_outputs.iter().filter(|other| other.port == "transaction") {
        let value = &marker.value;
        let id = value["id"].as_str().unwrap().to_owned();
        assert_eq!(marker.key, json!({"id": id}));
        assert!(value["ts_ms"].as_i64().unwrap() > 1_700_000_000_000);
        if value["status"] == json!("BEGIN") {
            assert_eq!((&value["event_count"], &value["data_collections"]), (&Value::Null, &Value::Null));
            assert_eq!(open.replace(id), None, "one begins before another has ended");
            continue;
        }
        assert_eq!((value["status"].as_str(), open.take()), (Some("END"), Some(id.clone())));
        let of_it = changes.remove(&id).unwrap_or_default();
        let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
        for (index, record) in of_it.iter().enumerate() {
            let count = counts.entry(&record.table).or_default();
            *count += 1;
            let expected = json!({"id": id, "total_order": index + 1, "data_collection_order": *count});
            assert_eq!(record.value.as_ref().unwrap()["transaction"], expected);
        }
        let collections: Vec<Value> =
            counts.iter().map(|(table, count)| json!({"data_collection": table, "event_count": count})).collect();
        assert_eq!(value["event_count"], json!(of_it.len()), "{id}");
        assert_eq!(value["data_collections"], json!(collections));
        ended.push(of_it.len() as u64);
    }
    assert!(open.is_none() && changes.is_empty(), "{open:?} {changes:?}");
    ended
}

fn check_markers_of_whole_transactions(server: &Server, with_xa: bool) {
    let database = server.database();
    server.run(&format!(
        "USE {database}; CREATE TABLE a (id INT PRIMARY KEY, v INT); CREATE TABLE b (id INT PRIMARY KEY, v INT); CREATE TABLE left_out (id INT PRIMARY KEY); \
         INSERT INTO a VALUES (500, 0)"
    ));
    let tables = format!("\"{database}.*\", \"!{database}.left_out\"");
    let options = format!("{}transaction_markers = true\nddl = true", server.options(&tables));
    let mut bench = Bench::new(&options);
    bench.read();
    assert_eq!(check(&bench), [0u64; 0], "a snapshot has no transactions");
    bench.take();
    let begin = bench.position.clone();
    if with_xa {
        transactions(server, &database);
    } else {
        server.run(&format!("USE {database}; BEGIN; INSERT INTO a VALUES (1, 0), (2, 0); INSERT INTO b VALUES (1, 0), (2, 0); UPDATE a SET v = 1; COMMIT"));
    }
    bench.read();
    let expected: &[u64] = if with_xa { &[3 + 1 + 4 + 2 + 1 + 1, 1, 2, 5, 60] } else { &[7] };
    assert_eq!(check(&bench), expected);
    let ddl = bench.side_outputs.iter().filter(|other| other.port == "ddl").count();
    // Wherever the source stops, the counts cover the whole transaction, and each marker appears
    // once.
    for max_records in [1, 2, 3, 7] {
        let mut again = Bench::new(&options);
        again.position = begin.clone();
        again.max_records = max_records;
        while again.fill(PATIENCE).unwrap() != Fill::CaughtUp {
            again.stop();
        }
        assert_eq!(check(&again), expected, "in batches of {max_records}");
        assert_eq!(again.side_outputs.iter().filter(|other| other.port == "ddl").count(), ddl);
    }
}

#[test]
fn markers_count_the_changes_of_a_transaction() {
    let Some(server) = Server::start("") else { return };
    check_markers_of_whole_transactions(&server, true);
}

#[test]
fn markers_without_gtids_count_the_changes_of_a_transaction() {
    let Some(server) = Server::start("--gtid-mode=OFF --enforce-gtid-consistency=OFF") else { return };
    check_markers_of_whole_transactions(&server, false);
}

#[test]
fn markers_enabled_within_a_transaction_start_with_the_next_one() {
    let Some(server) = Server::shared() else { return };
    let database = server.database();
    server.run(&format!("USE {database}; CREATE TABLE a (id INT PRIMARY KEY)"));
    let options = server.options(&format!("\"{database}.a\""));
    let mut bench = Bench::new(&options);
    bench.read();
    server.run(&format!("USE {database}; BEGIN; INSERT INTO a VALUES (1), (2), (3), (4), (5), (6), (7); COMMIT; INSERT INTO a VALUES (8)"));
    bench.max_records = 2;
    while bench.seen.is_empty() {
        bench.fill(Duration::from_millis(100)).unwrap();
    }
    assert!(bench.seen.len() < 7);
    bench.set_options(&format!("{options}transaction_markers = true"));
    bench.read();
    assert_eq!((bench.seen.len(), bench.side_outputs.len()), (8, 2));
    assert_eq!(bench.side_outputs[1].value["event_count"], json!(1));
    assert_eq!(bench.seen[6].value.as_ref().unwrap()["transaction"], Value::Null);
}

#[test]
fn changes_contain_their_statement_if_the_server_logs_it() {
    let Some(server) = Server::shared() else { return };
    let database = server.database();
    server.run(&format!(
        "USE {database}; CREATE TABLE a (id INT PRIMARY KEY, v VARCHAR(9)); INSERT INTO a VALUES (1, 'x')"
    ));
    let mut bench = Bench::new(&format!("{}query = true", server.options(&format!("\"{database}.a\""))));
    bench.read();
    server.run(&format!(
        "USE {database}; INSERT INTO a VALUES (2, 'y'); SET binlog_rows_query_log_events = ON; BEGIN; UPDATE a SET v = '\"é\"' /* why */; DELETE FROM a WHERE id = 1; COMMIT; \
         XA START 'q'; INSERT INTO a VALUES (3, 'z'); XA END 'q'; XA PREPARE 'q'; XA COMMIT 'q'; SET binlog_rows_query_log_events = OFF; DELETE FROM a WHERE id = 3"
    ));
    // One record per batch: the statement of an event survives the end of a batch.
    bench.max_records = 1;
    while bench.fill(PATIENCE).unwrap() != Fill::CaughtUp {
        bench.stop();
    }
    let queries: Vec<Value> = bench
        .seen
        .iter()
        .filter_map(|record| record.value.as_ref())
        .map(|value| json!([value["op"], value["source"]["query"]]))
        .collect();
    let update = "UPDATE a SET v = '\"é\"' /* why */";
    assert_eq!(
        queries,
        [
            json!(["r", null]),
            json!(["c", null]),
            json!(["u", update]),
            json!(["u", update]),
            json!(["d", "DELETE FROM a WHERE id = 1"]),
            json!(["c", "INSERT INTO a VALUES (3, 'z')"]),
            json!(["d", null]),
        ]
    );
}
