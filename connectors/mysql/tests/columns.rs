//! Excluded and masked columns, and skipped operations.

#![allow(clippy::unwrap_used, reason = "a test says by panicking that something is wrong")]

mod common;

use std::time::Duration;

use common::{Bench, Seen, Server};
use serde_json::{Value, json};
use trunkline_connector::Domain;

/// The rows after the changes, in order.
fn rows(records: &[Seen]) -> Vec<Value> {
    records.iter().filter(|record| record.value.is_some()).map(|record| record.after().clone()).collect()
}

#[test]
fn snapshot_and_stream_exclude_and_mask_the_same_columns() {
    let Some(server) = Server::shared() else { return };
    let database = server.database();
    let create = |table: &str| {
        format!(
            "CREATE TABLE {table} (id INT, mail VARCHAR(40) CHARACTER SET latin1, born DATE, card CHAR(16), n DECIMAL(9,2), j JSON, secret BLOB,
             PRIMARY KEY (id, mail));"
        )
    };
    let insert = |table: &str| {
        format!(
            "INSERT INTO {table} VALUES (1, 'é@x.org', '1999-12-31', '1234567812345678', 1.50, '{{\"a\": \"\\\\\"\"}}', 'never seen'), (2, 'b', NULL, NULL, NULL, NULL, NULL);"
        )
    };
    server.run(&format!("USE {database}; {} {}", create("p"), insert("p")));
    let options = format!(
        "{}columns = [\"*.p.*\", \"!*.*.secret\", \"!{database}.p.id\"]
         masks = [
            {{ columns = [\"*.p.mail\", \"*.p.j\"], hash = \"sha256\", salt = \"s\" }},
            {{ columns = [\"*.p.born\"], truncate = 4 }},
            {{ columns = [\"*.*.card\", \"*.*.n\"], fixed = \"***\" }},
         ]\n",
        server.options(&format!("\"{database}.p\""))
    );
    // printf 's%s' 'é@x.org' | sha256sum
    let mail = "c939ab845819ddcaf272af0482d06c0432b06da9d29a3336d04b0612906373ab";
    let j = "91d95be1b6df025454760aecca4c7406871fe3ba08c772bb691997735a64227c";
    let b = "b831b33e0c05b45e15bbdd9b3bfa43825fee0aa0b6e5a54e31e2bd8b073b76b7";
    let expected = [
        json!({"id": 1, "mail": mail, "born": "1999", "card": "***", "n": "***", "j": j}),
        json!({"id": 2, "mail": b, "born": null, "card": null, "n": null, "j": null}),
    ];
    let mut bench = Bench::new(&options);
    bench.read();
    assert_eq!(rows(&bench.seen), expected);
    assert_eq!(
        bench.seen[0].key.as_deref(),
        Some(format!("{{\"id\":1,\"mail\":\"{mail}\"}}").as_str()),
        "a key is masked too"
    );
    let snapshot = bench.take();
    server.run(&format!("USE {database}; TRUNCATE p; {}", insert("p")));
    bench.read();
    let streamed: Vec<Seen> = bench.take().into_iter().filter(|record| record.op() == "c").collect();
    assert_eq!(rows(&streamed), expected);
    let of = |record: &Seen| (record.key.clone(), record.headers.clone());
    assert_eq!(
        streamed.iter().map(of).collect::<Vec<_>>(),
        snapshot.iter().map(of).collect::<Vec<_>>(),
        "keys and schemas"
    );
    for schema in bench.schemas.values() {
        assert!(!schema.contains("secret"), "{schema}");
    }

    // A masked value may change before its chunk is read: both records have the same key.
    server.run(&format!("USE {database}; UPDATE p SET secret = 'other' WHERE id = 1; DELETE FROM p WHERE id = 2"));
    bench.read();
    let update = bench.seen[0].value.clone().unwrap();
    assert_eq!((&update["before"], &update["after"], &update["op"]), (&expected[0], &expected[0], &json!("u")));
    assert_eq!(bench.seen[1].value.as_ref().unwrap()["before"], expected[1]);
    let text = format!("{:?}{:?}", bench.seen, snapshot);
    assert!(!text.contains("never seen") && !text.contains("x.org") && !text.contains("12345678"));
}

#[test]
fn updates_of_excluded_columns_are_skipped_and_counted() {
    let Some(server) = Server::shared() else { return };
    let database = server.database();
    server.run(&format!(
        "USE {database}; CREATE TABLE o (id INT PRIMARY KEY, v INT, hidden INT, j JSON, t CHAR(5)); INSERT INTO o VALUES (1, 0, 0, '{{\"a\": 1, \"b\": \"xxxxxxxxxxxxxxxxxxxxxx\"}}', 'a'), (2, 0, 0, NULL, NULL)"
    ));
    let options = format!("{}columns = [\"!*.*.hidden\"]\n", server.options(&format!("\"{database}.o\"")));
    let mut all = Bench::new(&options);
    let mut bench = Bench::new(&format!("{options}skip_unchanged = true"));
    all.read();
    bench.read();
    bench.take();
    server.run(&format!(
        "USE {database}; UPDATE o SET hidden = 1; UPDATE o SET v = 1, hidden = 2 WHERE id = 1; UPDATE o SET t = 'b', hidden = 3 WHERE id = 2; UPDATE o SET hidden = 4 WHERE id = 2; \
         SET binlog_row_value_options = 'PARTIAL_JSON'; UPDATE o SET j = JSON_SET(j, '$.a', 2) WHERE id = 1; DELETE FROM o WHERE id = 2; INSERT INTO o (id) VALUES (3); UPDATE o SET id = 4 WHERE id = 3"
    ));
    all.read();
    bench.max_records = 1;
    while bench.fill(Duration::from_millis(300)).unwrap() != trunkline_connector::Fill::CaughtUp {
        bench.stop();
    }
    let ops: Vec<&str> = bench.seen.iter().map(Seen::op).collect();
    assert_eq!(ops, ["u", "u", "u", "d", "tombstone", "c", "d", "tombstone", "c"]);
    assert_eq!((bench.dropped, all.seen.len()), (3, 2 + 3 + ops.len()));

    // Rows with such a change during the read of their chunk come from the chunk.
    server.run(&format!("USE {database}; INSERT INTO o (id) SELECT seq + 10 FROM (WITH RECURSIVE q (seq) AS (SELECT 1 UNION ALL SELECT seq + 1 FROM q WHERE seq < 400) SELECT seq FROM q) t"));
    let mut bench = Bench::new(&format!("{options}skip_unchanged = true\nchunk_rows = 5"));
    bench.max_records = 5;
    while bench.fill(Duration::from_millis(300)).unwrap() != trunkline_connector::Fill::CaughtUp {
        server.run(&format!("UPDATE {database}.o SET hidden = COALESCE(hidden, 0) + 1"));
        bench.max_records = 200;
    }
    let read: std::collections::BTreeSet<_> = bench.seen.iter().map(|record| record.key.clone()).collect();
    assert_eq!((bench.seen.len(), read.len()), (402, 402));
    assert!(bench.dropped >= 402);
}

#[test]
fn a_mask_that_merges_keys_stops_the_source() {
    let Some(server) = Server::shared() else { return };
    let database = server.database();
    server.run(&format!("USE {database}; CREATE TABLE k (mail VARCHAR(40) PRIMARY KEY)"));
    let mask = "masks = [{ columns = [\"*.*.mail\"], fixed = \"x\" }]";
    let error = Bench::new(&format!("{}{mask}", server.options(&format!("\"{database}.k\"")))).try_read().unwrap_err();
    assert_eq!((error.code, error.domain), ("mysql.mask", Domain::Config), "{error}");
    assert!(error.message().contains("`mail`") && error.message().contains("hash"), "{error}");
}

#[test]
fn skipped_operations_are_counted_and_remove_no_row_from_the_snapshot() {
    let Some(server) = Server::shared() else { return };
    let database = server.database();
    server.run(&format!(
        "USE {database}; CREATE TABLE o (id INT PRIMARY KEY, v INT); INSERT INTO o VALUES (1, 0), (2, 0), (3, 0)"
    ));
    let options =
        |skipped: &str| format!("{}skipped_operations = [{skipped}]", server.options(&format!("\"{database}.o\"")));
    let changes = format!(
        "USE {database}; BEGIN; INSERT INTO o VALUES (4, 0); UPDATE o SET v = v + 1 WHERE id <= 2; UPDATE o SET id = 5 WHERE id = 4; \
         DELETE FROM o WHERE id = 3; COMMIT"
    );
    for (skipped, left, dropped) in
        [("\"u\", \"t\"", ["c", "d"].as_slice(), 4), ("\"c\", \"d\"", &["u", "u", "d", "c", "t"], 2)]
    {
        let mut bench = Bench::new(&options(skipped));
        bench.read();
        assert_eq!(bench.take().len(), 3);
        server.run(&changes);
        // Wherever the source stops, a skipped operation is counted once.
        bench.max_records = 1;
        server.run(&format!("USE {database}; TRUNCATE o"));
        loop {
            bench.stop();
            if bench.fill(Duration::from_millis(300)).unwrap() == trunkline_connector::Fill::CaughtUp {
                break;
            }
        }
        let ops: Vec<&str> = bench.seen.iter().map(Seen::op).filter(|op| *op != "tombstone").collect();
        assert_eq!((ops.as_slice(), bench.dropped), (left, dropped), "{skipped}");
        server.run(&format!("USE {database}; INSERT INTO o VALUES (1, 0), (2, 0), (3, 0)"));
    }

    // Rows that change during the read of their chunk: the updates are skipped, the rows are not.
    server.run(&format!("USE {database}; INSERT INTO o SELECT seq + 10, 0 FROM (WITH RECURSIVE q (seq) AS (SELECT 1 UNION ALL SELECT seq + 1 FROM q WHERE seq < 400) SELECT seq FROM q) t"));
    let mut bench = Bench::new(&format!("{}\nchunk_rows = 5", options("\"u\"")));
    bench.max_records = 5;
    while bench.fill(Duration::from_millis(300)).unwrap() != trunkline_connector::Fill::CaughtUp {
        server.run(&format!("UPDATE {database}.o SET v = v + 1"));
        bench.max_records = 200;
    }
    let read: std::collections::BTreeSet<_> = bench.seen.iter().map(|record| record.key.clone()).collect();
    assert_eq!((bench.seen.len(), read.len()), (403, 403));
    assert!(bench.dropped >= 403);
}
