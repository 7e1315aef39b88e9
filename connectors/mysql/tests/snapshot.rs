//! Snapshots under writers: a reader of the topics ends with the content of the tables.

#![allow(clippy::unwrap_used, reason = "a test says by panicking that something is wrong")]

mod common;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::{Bench, OnDrop, Random, Seen, Server, fold};
use serde_json::Value;
use trunkline_connector::{Fill, SnapshotRequest};

fn key(number: u64) -> String {
    // A case-insensitive collation, and characters that sort differently from their bytes.
    let letters = ["a", "B", "é", "z", "Ä", "_"];
    format!("{}{}", letters[(number % 6) as usize], number / 6)
}

/// The statements of a writer.
fn writes(seed: u64, database: &str, count: usize) -> String {
    let mut random = Random(seed);
    let mut sql = format!("USE {database};\n");
    let mut open = 0;
    for _ in 0..count {
        if open == 0 && random.below(4) == 0 {
            sql.push_str("BEGIN;\n");
            open = 1 + random.below(5);
        }
        let (id, value) = (random.below(600), random.below(1_000_000));
        let name = key(random.below(600));
        let _ = match random.below(9) {
            0 => writeln!(sql, "INSERT IGNORE INTO n VALUES ({id}, {value}, REPEAT('x', {}));", value % 300),
            1 => writeln!(sql, "UPDATE n SET v = {value} WHERE id BETWEEN {id} AND {};", id + 3),
            2 => writeln!(sql, "DELETE FROM n WHERE id = {id};"),
            3 => writeln!(sql, "UPDATE IGNORE n SET id = {} WHERE id = {id};", random.below(600)),
            4 => writeln!(sql, "INSERT IGNORE INTO s VALUES ('{name}', {}, {value});", random.below(3)),
            5 => writeln!(sql, "UPDATE s SET v = {value} WHERE k = '{name}';"),
            6 => writeln!(sql, "DELETE FROM s WHERE k = '{name}' AND e < 2;"),
            7 => writeln!(sql, "UPDATE IGNORE s SET k = UPPER(k), v = {value} WHERE k = '{name}';"),
            _ => writeln!(sql, "REPLACE INTO s VALUES ('{name}', {}, {value});", random.below(3)),
        };
        if open > 0 {
            open -= 1;
            if open == 0 {
                sql.push_str(if random.below(6) == 0 { "ROLLBACK;\n" } else { "COMMIT;\n" });
            }
        }
    }
    sql + "COMMIT;\n"
}

fn create(server: &Server, database: &str) {
    server.run(&format!(
        "USE {database}; CREATE TABLE n (id INT PRIMARY KEY, v INT, t TEXT);
         CREATE TABLE s (k VARCHAR(20), e ENUM('zz','mm','aa') , v INT, PRIMARY KEY (k, e));
         INSERT INTO n SELECT seq * 2, seq, REPEAT('t', seq) FROM (WITH RECURSIVE q (seq) AS (SELECT 1 UNION ALL SELECT seq + 1 FROM q WHERE seq < 300) SELECT seq FROM q) t;\n{}",
        (0..600).filter(|number| number % 2 == 0).fold(String::new(), |mut sql, number| {
            let _ = writeln!(sql, "INSERT IGNORE INTO s VALUES ('{}', {}, 0);", key(number), 1 + number % 3);
            sql
        })
    ));
}

/// The content of the tables, from a snapshot without writers.
fn tables(server: &Server, options: &str) -> BTreeMap<(String, String), Value> {
    let _ = server;
    let mut bench = Bench::new(options);
    bench.read();
    fold(&bench.seen)
}

fn read_while_written(server: &Server, seed: u64, chunk_rows: usize, threads: usize, stops: bool) {
    let database = server.database();
    create(server, &database);
    let tables_option = format!("\"{database}.*\"");
    let options = format!("{}chunk_rows = {chunk_rows}\n", server.options_with_threads(&tables_option, threads));
    let mut writers = Vec::new();
    for writer in 0..3 {
        let mut client = server.client();
        let mut input = client.stdin.take().unwrap();
        let sql = writes(seed * 10 + writer, &database, 600);
        writers.push(std::thread::spawn(move || {
            // A deadlock of two writers ends a transaction, not the writer.
            for line in sql.lines() {
                if input.write_all(line.as_bytes()).and_then(|()| input.write_all(b"\n")).is_err() {
                    break;
                }
            }
            drop(input);
            client.wait_with_output().unwrap()
        }));
    }
    let mut bench = Bench::new(&options);
    bench.max_records = 50;
    let mut random = Random(seed);
    while writers.iter().any(|writer| !writer.is_finished()) {
        bench.fill(Duration::from_millis(20)).unwrap();
        if stops && random.below(6) == 0 {
            bench.stop();
        }
    }
    writers.into_iter().for_each(|writer| drop(writer.join()));
    bench.read();
    let snapshot = bench.seen.iter().filter(|record| record.op() == "r").count();
    assert!(snapshot > 100, "{snapshot} rows of the snapshot");
    assert_eq!(fold(&bench.seen), tables(server, &options), "seed {seed}, chunks of {chunk_rows}, {threads} readers");
}

#[test]
fn a_snapshot_under_writers_is_exact() {
    for server in Server::shared_each() {
        for (seed, chunk_rows, threads) in [(1, 7, 1), (2, 40, 2), (3, 4096, 8), (4, 13, 8)] {
            read_while_written(server, seed, chunk_rows, threads, false);
        }
    }
}

#[test]
fn a_snapshot_that_is_stopped_repeatedly_is_exact() {
    for server in Server::shared_each() {
        for (seed, chunk_rows, threads) in [(11, 9, 8), (12, 60, 1), (13, 200, 2)] {
            read_while_written(server, seed, chunk_rows, threads, true);
        }
    }
}

#[test]
fn a_snapshot_without_gtids_is_exact() {
    let Some(server) = Server::start("--gtid-mode=OFF --enforce-gtid-consistency=OFF") else { return };
    for (seed, chunk_rows, threads, stops) in [(21, 11, 8, false), (22, 50, 2, true)] {
        read_while_written(&server, seed, chunk_rows, threads, stops);
    }
}

/// The number of occurrences of each row of a table without a key.
fn count(rows: impl Iterator<Item = String>) -> BTreeMap<String, i64> {
    rows.fold(BTreeMap::new(), |mut counts, row| {
        *counts.entry(row).or_default() += 1;
        counts
    })
}

#[test]
fn a_table_without_key_is_exact_row_by_row() {
    for server in Server::shared_each() {
        let database = server.database();
        server.run(&format!(
            "USE {database}; CREATE TABLE k (v INT);
             INSERT INTO k SELECT seq % 50 FROM (WITH RECURSIVE q (seq) AS (SELECT 1 UNION ALL SELECT seq + 1 FROM q WHERE seq < 900) SELECT seq FROM q) t"
        ));
        let mut sql = format!("USE {database};\n");
        let mut random = Random(7);
        for _ in 0..4000 {
            let (a, b) = (random.below(60), random.below(60));
            let _ = match random.below(3) {
                0 => writeln!(sql, "INSERT INTO k VALUES ({a}), ({b});"),
                1 => writeln!(sql, "UPDATE k SET v = {a} WHERE v = {b} LIMIT 2;"),
                _ => writeln!(sql, "DELETE FROM k WHERE v = {a} LIMIT 2;"),
            };
        }
        let options = server.options(&format!("\"{database}.*\""));
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| server.run(&sql));
            // Many snapshots during the writes; each source continues to the end.
            let mut sources: Vec<Bench> = Vec::new();
            while !writer.is_finished() && sources.len() < 40 {
                let mut bench = Bench::new(&options);
                bench.max_records = 37;
                while !bench.position.contains_key(&format!("table/{database}.k")) {
                    bench.fill(Duration::from_millis(20)).unwrap();
                }
                bench.stop();
                sources.push(bench);
            }
            writer.join().unwrap();
            let rows = count(server.run(&format!("SELECT v FROM {database}.k")).lines().map(str::to_owned));
            assert!(sources.len() > 1, "{} snapshots", sources.len());
            let sources_len = sources.len();
            for (number, bench) in sources.iter_mut().enumerate() {
                bench.read();
                bench.stop();
                let mut counts: BTreeMap<String, i64> = BTreeMap::new();
                for record in &bench.seen {
                    let value = record.value.as_ref().unwrap();
                    for (image, change) in [("before", -1), ("after", 1)] {
                        if !value[image].is_null() {
                            *counts.entry(value[image]["v"].to_string()).or_default() += change;
                        }
                    }
                }
                counts.retain(|_, count| *count != 0);
                assert_eq!(counts, rows, "source {number} of {}", sources_len);
            }
        });
    }
}

#[test]
fn keys_of_every_type_are_read_in_the_servers_order() {
    for server in Server::shared_each() {
        let database = server.database();
        for (index, (kind, values)) in [
            ("DATE", "('2026-01-01'),('0000-00-00'),('2026-00-00'),('1999-12-31'),('2026-02-01')"),
            (
                "DATETIME(6)",
                "('2026-01-01 00:00:00.000001'),('2026-01-01 00:00:00.000002'),('0000-00-00'),('1000-01-01')",
            ),
            ("TIMESTAMP(3)", "('2026-01-01 00:00:00.001'),('1970-01-01 12:00:01'),('2038-01-19 03:14:07.5')"),
            ("TIME(2)", "('-838:59:59'),('-00:00:00.01'),('00:00:00'),('12:00:00.25'),('838:59:59')"),
            ("DECIMAL(30,10)", "(-1.5),(-1.4999999999),(0),(12345678901234567890.0123456789)"),
            ("BIGINT UNSIGNED", "(0),(9223372036854775807),(9223372036854775808),(18446744073709551615)"),
            ("DOUBLE", "(-1e300),(-0.1),(0.1),(0.30000000000000004),(1e300)"),
            ("FLOAT", "(-1.1),(0.1),(16777216),(3e38)"),
            ("BIT(12)", "(b'0'),(b'1'),(b'101010101010'),(b'111111111111')"),
            ("ENUM('z','m','a')", "('z'),('m'),('a'),('')"),
            ("SET('z','m','a')", "('z'),('m'),('a'),('z,a'),('')"),
            ("YEAR", "(0),(1901),(2000),(2155)"),
            ("BINARY(4)", "(x'00'),(x'01'),(x'0100ff'),(x'ff')"),
            ("VARBINARY(9)", "(x''),(x'00'),(x'0000'),(x'ff')"),
            ("VARCHAR(9) CHARACTER SET latin1", "('a'),('b'),('é'),('Z'),('')"),
            ("VARCHAR(9) CHARACTER SET utf16", "('a'),('日'),('😀'),('')"),
            (
                if server.is_mariadb() {
                    "VARCHAR(9) COLLATE utf8mb4_uca1400_as_cs"
                } else {
                    "VARCHAR(9) COLLATE utf8mb4_0900_as_cs"
                },
                "('a'),('A'),('á'),('b'),('''')",
            ),
            ("CHAR(3) CHARACTER SET sjis", "('a'),('日本'),('')"),
            (
                if server.is_mariadb() { "UUID" } else { "CHAR(36)" },
                "('f81d4fae-7dec-11d0-a765-00a0c91e6bf6'),('01890a5d-ac96-774b-bcce-b302099a8057'),('00000000-0000-0000-0000-000000000000')",
            ),
        ]
        .into_iter()
        .enumerate()
        {
            server.run(&format!("SET sql_mode=''; USE {database}; CREATE TABLE k{index} (k {kind} PRIMARY KEY); INSERT INTO k{index} VALUES {values}"));
        }
        let mut bench = Bench::new(&format!(
            "{}chunk_rows = 1\nzero_dates = \"string\"",
            server.options(&format!("\"{database}.*\""))
        ));
        bench.max_records = 1;
        bench.read();
        for index in 0..19 {
            let rows = server.run(&format!("SELECT COUNT(*) FROM {database}.k{index}"));
            let table = format!("{database}.k{index}");
            let keys: Vec<_> =
                bench.seen.iter().filter(|record| record.table == table).map(|record| record.key.clone()).collect();
            assert_eq!(keys.len().to_string(), rows, "{table}: {keys:?}");
        }
    }
}

#[test]
fn schema_changes_during_a_snapshot_lose_no_row() {
    for server in Server::shared_each() {
        let database = server.database();
        create(server, &database);
        let options = format!("{}chunk_rows = 5\n", server.options(&format!("\"{database}.*\"")));
        let mut sql = format!("USE {database};\n");
        for number in 0..30 {
            let _ = writeln!(
                sql,
                "ALTER TABLE n ADD COLUMN c{number} INT DEFAULT {number}; UPDATE n SET v = {number} WHERE id % 50 = {number};"
            );
            if number % 5 == 4 {
                let _ = writeln!(
                    sql,
                    "ALTER TABLE n DROP COLUMN c{}; ALTER TABLE n MODIFY v BIGINT; TRUNCATE s; INSERT INTO s VALUES ('after', 1, {number});",
                    number - 2
                );
            }
        }
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| server.run(&sql));
            let mut bench = Bench::new(&options);
            while !writer.is_finished() {
                bench.fill(Duration::from_millis(20)).unwrap();
            }
            writer.join().unwrap();
            bench.read();
            let mut kept: Vec<Seen> = Vec::new();
            for record in bench.take() {
                if record.op() == "t" {
                    kept.retain(|before| before.table != record.table);
                } else {
                    kept.push(record);
                }
            }
            let keys = |rows: BTreeMap<(String, String), Value>| rows.into_keys().collect::<Vec<_>>();
            let latest: BTreeMap<_, _> = kept
                .iter()
                .filter(|record| record.value.is_some())
                .map(|record| ((record.table.clone(), record.key.clone().unwrap()), record.after()["v"].clone()))
                .collect();
            let expected = tables(server, &options);
            assert_eq!(latest.keys().cloned().collect::<Vec<_>>(), keys(expected.clone()));
            expected.iter().for_each(|(key, row)| assert_eq!(row["v"], latest[key], "{key:?}"));
        });
    }
}

#[test]
fn snapshot_policies_and_tables_added_later() {
    for server in Server::shared_each() {
        let database = server.database();
        create(server, &database);
        let options = |tables: &str, more: &str| format!("{}{more}\n", server.options(tables));
        let of_n = format!("\"{database}.n\"");
        let mut bench = Bench::new(&options(&of_n, "snapshot = \"never\""));
        bench.read();
        assert!(bench.seen.is_empty());
        server.run(&format!("UPDATE {database}.n SET v = -1 WHERE id = 2"));
        bench.read();
        assert_eq!(bench.take().len(), 1);

        let mut bench = Bench::new(&options(&of_n, "snapshot = \"only\""));
        bench.read();
        assert_eq!(bench.take().len(), 300);
        server.run(&format!("UPDATE {database}.n SET v = -2 WHERE id = 2"));
        assert_eq!(bench.fill(Duration::from_millis(50)).unwrap(), Fill::CaughtUp);
        assert!(bench.seen.is_empty());

        bench.set_options(&options(&of_n, ""));
        bench.read();
        assert_eq!(bench.take().len(), 1, "the change since then");
        bench.set_options(&options(&format!("{of_n}, \"{database}.s\""), ""));
        bench.read();
        let added = bench.take();
        assert!(added.len() > 100 && added.iter().all(|record| record.op() == "r" && record.table.ends_with(".s")));

        // A table created while the source runs is emitted by its changes only.
        bench.set_options(&options(&format!("\"{database}.*\""), ""));
        bench.until_idle = false;
        bench.read();
        server
            .run(&format!("USE {database}; CREATE TABLE late (id INT PRIMARY KEY); INSERT INTO late VALUES (1), (2)"));
        while bench.seen.len() < 2 {
            bench.fill(Duration::from_millis(200)).unwrap();
        }
        bench.stop();
        bench.read();
        assert_eq!(bench.take().iter().map(Seen::op).collect::<Vec<_>>(), ["c", "c"]);

        // The same for a table created while the source is stopped.
        bench.stop();
        server.run(&format!(
            "USE {database}; CREATE TABLE later (id INT PRIMARY KEY); INSERT INTO later VALUES (1), (2), (3)"
        ));
        bench.until_idle = true;
        bench.read();
        assert_eq!(bench.take().iter().map(Seen::op).collect::<Vec<_>>(), ["c", "c", "c"]);
        bench.stop();
        bench.read();
        assert!(bench.seen.is_empty());
    }
}

/// Applies the position changes of `trunkline snapshot` to a stopped source.
fn request(bench: &mut Bench, tables: &[&str]) -> Result<(), trunkline_connector::Error> {
    request_where(bench, tables, None)
}

fn request_where(
    bench: &mut Bench,
    tables: &[&str],
    condition: Option<&str>,
) -> Result<(), trunkline_connector::Error> {
    bench.stop();
    let names: Vec<String> = tables.iter().map(|name| (*name).to_owned()).collect();
    let position: Vec<_> = bench.position.clone().into_iter().collect();
    let request = SnapshotRequest { tables: &names, condition };
    for change in bench.spec().snapshots().unwrap().request(&request, &position)? {
        bench.position.insert(change.key, change.value.unwrap());
    }
    Ok(())
}

#[test]
fn requested_tables_are_read_again_while_the_stream_continues() {
    for server in Server::shared_each() {
        let database = server.database();
        let rows = |count: u32| {
            format!(
                "SELECT seq, 0 FROM (WITH RECURSIVE q (seq) AS (SELECT 1 UNION ALL SELECT seq + 1 FROM q WHERE seq < {count}) SELECT seq FROM q) t"
            )
        };
        server.run(&format!(
            "USE {database}; CREATE TABLE a (id INT PRIMARY KEY, v INT); CREATE TABLE b LIKE a; CREATE TABLE k (id INT, v INT);
             INSERT INTO a {}; INSERT INTO b {}; INSERT INTO k {}",
            rows(50),
            rows(10),
            rows(3)
        ));
        let [a, b, k] = ["a", "b", "k"].map(|table| format!("{database}.{table}"));
        let options = format!("{}chunk_rows = 7", server.options(&format!("\"{database}.*\"")));
        let mut bench = Bench::new(&options);
        assert_eq!(request(&mut bench, &[&a]).unwrap_err().code, "mysql.not_begun");
        bench.read();
        assert_eq!(bench.take().len(), 63);
        for wrong in [format!("{database}.none"), "other.*".to_owned(), "a".to_owned()] {
            let error = request(&mut bench, &[&a, &wrong]).unwrap_err();
            assert_eq!((error.code, error.domain), ("mysql.tables", trunkline_connector::Domain::Config));
            assert!(error.message().contains(&wrong), "{error}");
        }

        server.run(&format!(
            "USE {database}; UPDATE a SET v = 1 WHERE id <= 20; UPDATE b SET v = 1; DELETE FROM a WHERE id = 50"
        ));
        request(&mut bench, &[&a]).unwrap();
        bench.max_records = 5;
        // A stop after every batch resumes after the last key.
        while bench.fill(Duration::from_millis(300)).unwrap() != Fill::CaughtUp {
            bench.stop();
        }
        let seen = bench.take();
        let count =
            |table: &str, op: &str| seen.iter().filter(|record| record.table == table && record.op() == op).count();
        assert_eq!([count(&a, "r"), count(&a, "u"), count(&a, "d")], [49, 20, 1]);
        assert_eq!([count(&b, "r"), count(&b, "u"), count(&k, "r")], [0, 10, 0]);
        assert!(seen.iter().filter(|record| record.op() == "r").all(|record| {
            let after = record.after();
            after["v"].as_i64() == Some(i64::from(after["id"].as_i64().unwrap() <= 20))
        }));
        bench.max_records = 1000;
        bench.stop();
        assert!(bench.read().take().is_empty(), "once, and not again");

        request(&mut bench, &[&format!("{database}.[bk]")]).unwrap();
        let seen = bench.read().take();
        assert_eq!(seen.iter().filter(|record| record.op() == "r").count(), 13);
        assert_eq!(seen.len(), 13);

        // A source without snapshots reads exactly the requested tables.
        let mut bench = Bench::new(&format!("{options}\nsnapshot = \"never\""));
        bench.read();
        assert!(request(&mut bench, &[&format!("{database}.*")]).is_err(), "it knows of no table");
        request(&mut bench, &[&b]).unwrap();
        let seen = bench.read().take();
        assert_eq!((seen.len(), seen.iter().all(|record| record.table == b && record.op() == "r")), (10, true));
    }
}

#[test]
fn requested_rows_match_the_condition() {
    let Some(server) = Server::shared() else { return };
    let database = server.database();
    server.run(&format!(
        "USE {database}; CREATE TABLE a (id INT PRIMARY KEY, v INT, n VARCHAR(9)); CREATE TABLE k (id INT, v INT, n VARCHAR(9));
         INSERT INTO a SELECT seq, seq % 10, 'it''s' FROM (WITH RECURSIVE q (seq) AS (SELECT 1 UNION ALL SELECT seq + 1 FROM q WHERE seq < 300) SELECT seq FROM q) t; INSERT INTO k SELECT * FROM a"
    ));
    let [a, k] = ["a", "k"].map(|table| format!("{database}.{table}"));
    let options = format!("{}chunk_rows = 7", server.options(&format!("\"{database}.*\"")));
    let mut bench = Bench::new(&options);
    bench.read().take();
    for wrong in ["v = 1; DROP TABLE a", "v) OR (v", "v = 1 -- x", ""] {
        let error = request_where(&mut bench, &[&a], Some(wrong)).unwrap_err();
        assert_eq!((error.code, error.domain), ("mysql.where", trunkline_connector::Domain::Config), "{wrong}");
    }
    // Errors that only the server can detect.
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let part = format!("table/{a}");
    let check =
        |condition: &str| bench.spec().snapshots().unwrap().check_condition(&[&part], condition, runtime.handle());
    check("v = 1 AND n = 'it''s'").unwrap();
    for wrong in ["vv = 1", "v = ", "v IN (SELECT x FROM nowhere.y)"] {
        let error = check(wrong).unwrap_err();
        assert_eq!(
            (error.code, error.domain),
            ("mysql.where", trunkline_connector::Domain::Config),
            "{wrong}: {error}"
        );
    }

    // A stop after every batch keeps the condition.
    request_where(&mut bench, &[&a, &k], Some("v IN (3, 4) OR id = 1 AND n = 'it''s'")).unwrap();
    server.run(&format!("UPDATE {k} SET v = 99 WHERE id = 2; UPDATE {a} SET v = 99 WHERE id = 2"));
    bench.max_records = 100;
    while bench.fill(Duration::from_millis(300)).unwrap() != Fill::CaughtUp {
        bench.max_records = 5;
        if !bench.position[&format!("table/{a}")].starts_with(b"\"done") && bench.seen.len() > 70 {
            bench.stop();
        }
    }
    let seen = bench.take();
    let ids = |table: &str| {
        let mut ids: Vec<i64> = seen
            .iter()
            .filter(|record| record.table == table && record.op() == "r")
            .map(|record| record.after()["id"].as_i64().unwrap())
            .collect();
        ids.sort_unstable();
        ids
    };
    let chosen: Vec<i64> = (1..=300).filter(|id| matches!(id % 10, 3 | 4) || *id == 1).collect();
    assert_eq!(ids(&a), chosen);
    assert_eq!(ids(&k), chosen);
    // Changes of rows outside the condition are still emitted, for the table without a key too.
    let updates: Vec<&str> =
        seen.iter().filter(|record| record.op() == "u").map(|record| record.table.as_str()).collect();
    assert_eq!(updates, [k.as_str(), a.as_str()]);
    bench.stop();
    assert!(bench.read().take().is_empty(), "once, and not again");

    // A condition that the server rejects skips the table, and the stream continues.
    for wrong in ["vv = 1", "v = (SELECT id FROM a)"] {
        request_where(&mut bench, &[&a, &k], Some(&wrong.replace("FROM a", &format!("FROM {a}")))).unwrap();
        server.run(&format!("UPDATE {a} SET v = v + 1 WHERE id = 300"));
        let seen = bench.read().take();
        assert_eq!(seen.iter().map(Seen::op).collect::<Vec<_>>(), ["u"], "{wrong}");
        assert!(
            bench.position.iter().filter(|(key, _)| key.starts_with("table/")).all(|(_, value)| value == b"\"done\"")
        );
    }
}

/// Transfers between a table with a key and one without.
fn moves(database: &str, seed: u64, count: usize) -> String {
    let mut random = Random(seed);
    let mut sql = format!("USE {database};\n");
    for _ in 0..count {
        let (from, to, amount) = (random.below(200), random.below(40), random.below(100));
        let (a, b) = if random.below(2) == 0 { ('-', '+') } else { ('+', '-') };
        let _ = writeln!(
            sql,
            "BEGIN; UPDATE a SET m = m {a} {amount} WHERE id = {from}; UPDATE b SET m = m {b} {amount} WHERE id = {to}; COMMIT;"
        );
    }
    sql
}

fn money(server: &Server, database: &str) -> i64 {
    server.run(&format!(
        "USE {database}; CREATE TABLE a (id INT PRIMARY KEY, m BIGINT); CREATE TABLE b (id INT, m BIGINT);
         INSERT INTO a SELECT seq, 1000 FROM (WITH RECURSIVE q (seq) AS (SELECT 0 UNION ALL SELECT seq + 1 FROM q WHERE seq < 199) SELECT seq FROM q) t; INSERT INTO b SELECT * FROM a WHERE id < 40"
    ));
    240_000
}

/// The position in the binlog.
fn stream_position(bench: &Bench) -> String {
    String::from_utf8(bench.position["stream"].clone()).unwrap()
}

#[test]
fn an_exact_snapshot_of_several_tables_is_consistent() {
    let Some(server) = Server::shared() else { return };
    let count = std::env::var("TRUNKLINE_TEST_SNAPSHOTS").map_or(12, |count| count.parse().unwrap());
    check_exact_snapshots(server, count);
}

#[test]
fn an_exact_snapshot_without_gtids_is_consistent() {
    let Some(server) = Server::start("--gtid-mode=OFF --enforce-gtid-consistency=OFF") else { return };
    check_exact_snapshots(&server, 4);
}

fn check_exact_snapshots(server: &Server, count: usize) {
    let database = server.database();
    let all = money(server, &database);
    let options = |mode: &str| format!("{}snapshot_mode = \"{mode}\"", server.options(&format!("\"{database}.*\"")));
    let mut sources = Vec::new();
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for writer in 0..3 {
            let (database, is_over) = (&database, &is_over);
            scope.spawn(move || {
                for seed in 0.. {
                    if is_over.load(Ordering::Relaxed) {
                        break;
                    }
                    server.run(&moves(database, 3 * seed + writer, 100));
                }
            });
        }
        // A failed assertion must stop the writers.
        let _over = OnDrop(|| is_over.store(true, Ordering::Relaxed));
        for number in 0..count {
            let mut bench = Bench::new(&options("exact"));
            bench.max_records = 50;
            while !bench.position.contains_key(&format!("table/{database}.b")) {
                match bench.fill(Duration::from_millis(20)) {
                    // On a busy machine, writers may hold off the lock. Nothing was emitted then.
                    Err(error) if error.code == "mysql.lock" => {
                        eprintln!("snapshot {number}: {error}");
                        bench.stop();
                    }
                    filled => drop(filled.unwrap()),
                }
            }
            let rows: Vec<&Seen> = bench.seen.iter().filter(|record| record.op() == "r").collect();
            let sum: i64 = rows.iter().map(|record| record.after()["m"].as_i64().unwrap()).sum();
            assert_eq!((rows.len(), sum), (240, all), "snapshot {number}");
            bench.stop();
            sources.push(bench);
        }
    });
    let positions: std::collections::BTreeSet<String> = sources.iter().map(stream_position).collect();
    assert_eq!(positions.len(), count, "each has its own point in time");
    // The changes after each snapshot lead to the content of the tables.
    let of_a = |records: &[Seen]| {
        fold(&records.iter().filter(|record| record.table.ends_with(".a")).cloned().collect::<Vec<_>>())
    };
    let expected = of_a(&Bench::new(&options("chunks")).read().seen);
    let in_b: i64 = server.run(&format!("SELECT SUM(m) FROM {database}.b")).parse().unwrap();
    for bench in sources.iter_mut().step_by(3) {
        bench.read();
        assert_eq!(of_a(&bench.seen), expected);
        let of_b =
            bench.seen.iter().filter(|record| record.table.ends_with(".b")).filter_map(|record| record.value.as_ref());
        let sum: i64 = of_b
            .map(|value| value["after"]["m"].as_i64().unwrap_or(0) - value["before"]["m"].as_i64().unwrap_or(0))
            .sum();
        assert_eq!(sum, in_b);
    }
}

#[test]
fn an_interrupted_exact_snapshot_restarts_and_completes() {
    let Some(server) = Server::shared() else { return };
    let database = server.database();
    let all = money(server, &database);
    let options = format!("{}snapshot_mode = \"exact\"", server.options(&format!("\"{database}.*\"")));
    let mut bench = Bench::new(&options);
    bench.max_records = 30;
    let mut random = Random(5);
    let mut stops = 0;
    while !bench.position.contains_key(&format!("table/{database}.b")) {
        let before = bench.seen.len();
        bench.fill(Duration::from_millis(100)).unwrap();
        if bench.seen.len() > before && stops < 4 && random.below(4) == 0 {
            bench.stop();
            stops += 1;
            // Emitted rows change and disappear.
            server.run(&format!(
                "{} BEGIN; SELECT @m := m FROM a WHERE id = {stops}; DELETE FROM a WHERE id = {stops}; UPDATE b SET m = m + @m WHERE id = 1; COMMIT",
                moves(&database, stops, 30)
            ));
        }
    }
    assert_eq!(stops, 4);
    bench.read();
    let of_a: Vec<Seen> = bench.seen.iter().filter(|record| record.table.ends_with(".a")).cloned().collect();
    // Only the last attempt is complete.
    let last: Vec<&Seen> = bench.seen.iter().rev().filter(|record| record.op() == "r").take(240 - 4).collect();
    let sum: i64 = last.iter().map(|record| record.after()["m"].as_i64().unwrap()).sum();
    assert_eq!(sum, all);
    let rows = fold(&of_a);
    let folded: i64 = rows.values().map(|row| row["m"].as_i64().unwrap()).sum();
    let held: i64 = server.run(&format!("SELECT SUM(m) FROM {database}.a")).parse().unwrap();
    assert_eq!((rows.len(), folded), (196, held));
}

#[test]
fn an_exact_snapshot_waits_for_a_lock_and_reports_it() {
    let Some(server) = Server::shared() else { return };
    let database = server.database();
    money(server, &database);
    let options = format!("{}snapshot_mode = \"exact\"", server.options(&format!("\"{database}.*\"")));
    let mut writer = server.client();
    let mut input = writer.stdin.take().unwrap();
    // A lock signals that the row is written and the transaction open.
    writeln!(input, "USE {database}; BEGIN; UPDATE b SET m = m + 5 WHERE id = 1; DO GET_LOCK('{database}', 10);")
        .unwrap();
    input.flush().unwrap();
    let begun = std::time::Instant::now();
    while server.run(&format!("SELECT IS_USED_LOCK('{database}') IS NULL")) == "1" {
        assert!(begun.elapsed() < common::PATIENCE);
    }
    let mut bench = Bench::new(&options);
    let error = bench.try_read().unwrap_err();
    assert_eq!((error.code, error.domain), ("mysql.lock", trunkline_connector::Domain::External), "{error}");
    assert!(error.message().contains("could not lock 2 tables") && bench.seen.is_empty(), "{error}");
    bench.stop();
    writeln!(input, "COMMIT;").unwrap();
    drop(input);
    assert!(writer.wait().unwrap().success());
    bench.read();
    let sum: i64 = bench.seen.iter().map(|record| record.after()["m"].as_i64().unwrap()).sum();
    assert_eq!((bench.seen.len(), sum), (240, 240_005));
}
