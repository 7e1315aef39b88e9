//! Several readers of one snapshot: the rows are exact whichever reader fails, stops or is refused.

#![allow(clippy::unwrap_used, reason = "a test says by panicking that something is wrong")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Write as _;
use std::time::{Duration, Instant};

use common::{Bench, PATIENCE, Random, Seen, Server, fold, options};
use serde_json::Value;
use trunkline_connector::{Domain, MemoryBudget};

/// Rows of the table whose numbers are all in use.
const ROWS: u32 = 4000;

/// Creates tables with bounds of every kind: computed (`dense`), looked up because of gaps (`gaps`)
/// or because the key is text with a collation (`words`), and no bound (`small`).
fn create(server: &Server, database: &str) {
    let numbers = |count: u32| {
        format!(
            "(WITH RECURSIVE q (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM q WHERE n < {count}) SELECT n FROM q) t"
        )
    };
    let limit = if server.is_mariadb() { "max_recursive_iterations" } else { "cte_max_recursion_depth" };
    server.run(&format!(
        "USE {database}; SET {limit} = 100000; CREATE TABLE dense (id INT PRIMARY KEY, v INT, t VARCHAR(100));
         CREATE TABLE gaps (id BIGINT PRIMARY KEY, v INT); CREATE TABLE small (id INT PRIMARY KEY, v INT);
         CREATE TABLE words (k VARCHAR(20), n INT, v INT, PRIMARY KEY (k, n));
         INSERT INTO dense SELECT n, n, REPEAT('t', 50) FROM {}; INSERT INTO gaps SELECT IF(n < 500, n, n * 1000000007), n FROM {};
         INSERT INTO words SELECT CONCAT(ELT(1 + n % 5, 'a', 'B', 'é', 'Z', '_'), n % 400), n, n FROM {}; INSERT INTO small VALUES (1, 1), (2, 2)",
        numbers(ROWS),
        numbers(1500),
        numbers(1500),
    ));
}

/// Statements that change rows of every table.
fn writes(database: &str, seed: u64, count: usize) -> String {
    let mut random = Random(seed);
    let mut sql = format!("USE {database};\n");
    for _ in 0..count {
        let (id, other, value) = (random.below(4200), random.below(4200), random.below(1_000_000));
        let _ = match random.below(8) {
            0 => writeln!(sql, "UPDATE dense SET v = {value} WHERE id BETWEEN {id} AND {};", id + 5),
            1 => writeln!(sql, "DELETE FROM dense WHERE id = {id};"),
            2 => writeln!(sql, "REPLACE INTO dense VALUES ({id}, {value}, 'new');"),
            3 => writeln!(sql, "UPDATE IGNORE dense SET id = {other} WHERE id = {id};"),
            4 => writeln!(sql, "REPLACE INTO gaps VALUES ({}, {value});", id * id * 77),
            5 => writeln!(sql, "UPDATE gaps SET v = {value} WHERE id % 97 = {};", id % 97),
            6 => writeln!(sql, "UPDATE words SET v = {value} WHERE n = {};", id % 1500),
            _ => {
                writeln!(sql, "BEGIN; DELETE FROM words WHERE n = {}; UPDATE small SET v = {value}; COMMIT;", id % 1500)
            }
        };
    }
    sql
}

/// The content of the tables, read by another client.
fn rows(server: &Server, database: &str) -> BTreeMap<String, BTreeSet<String>> {
    let table = |name: &str, columns: &str| {
        let rows = server.run(&format!("SELECT CONCAT_WS(' ', {columns}) FROM {database}.{name}"));
        (name.to_owned(), rows.lines().map(str::to_owned).collect())
    };
    [table("dense", "id, v, t"), table("gaps", "id, v"), table("words", "k, n, v"), table("small", "id, v")].into()
}

/// The content of the tables, as a reader of the topics has it.
fn rows_of_topics(seen: &[Seen]) -> BTreeMap<String, BTreeSet<String>> {
    let mut tables: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for ((table, _), row) in fold(seen) {
        let name = table.split_once('.').unwrap().1.to_owned();
        let columns: &[&str] = match name.as_str() {
            "dense" => &["id", "v", "t"],
            "words" => &["k", "n", "v"],
            _ => &["id", "v"],
        };
        let text = |column: &&str| match &row[*column] {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        tables.entry(name).or_default().insert(columns.iter().map(text).collect::<Vec<_>>().join(" "));
    }
    tables
}

/// No row of the snapshot is emitted twice.
fn assert_no_duplicates(seen: &[Seen]) {
    let mut keys = BTreeSet::new();
    for record in seen.iter().filter(|record| record.op() == "r") {
        assert!(keys.insert((&record.table, &record.key)), "the snapshot emitted a row twice: {record:?}");
    }
}

/// A user with a limit of connections (0 for none).
fn create_user(server: &Server, database: &str, connections: u32) -> String {
    let user = format!("u_{database}");
    server.run(&format!(
        "CREATE USER IF NOT EXISTS {user} IDENTIFIED BY 'x'; ALTER USER {user} WITH MAX_USER_CONNECTIONS {connections};
         GRANT REPLICATION SLAVE, REPLICATION CLIENT, SELECT, LOCK TABLES ON *.* TO {user}"
    ));
    user
}

fn connections(server: &Server, user: &str) -> Vec<String> {
    let ids = server.run(&format!("SELECT ID FROM information_schema.PROCESSLIST WHERE USER = '{user}' ORDER BY ID"));
    ids.lines().map(str::to_owned).collect()
}

#[test]
fn a_snapshot_with_eight_readers_is_exact_after_stops_and_failures() {
    for server in Server::shared_each() {
        let database = server.database();
        create(server, &database);
        let user = create_user(server, &database, 0);
        let tables = format!("\"{database}.*\"");
        // The number of readers may change at each start.
        let with_threads = |threads: u32| {
            let source = options(server.port, &format!("{user}:x"), &tables);
            format!("{source}snapshot_threads = {threads}\nchunk_rows = 60\n")
        };
        let mut bench = Bench::new(&with_threads(8));
        bench.max_records = 150;
        let mut writer = server.client();
        let mut input = writer.stdin.take().unwrap();
        let sql = writes(&database, 5, 600);
        let writing = std::thread::spawn(move || {
            input.write_all(sql.as_bytes()).unwrap();
            drop(input);
            writer.wait_with_output().unwrap()
        });
        let mut random = Random(3);
        let (mut most, mut stops, mut failures) = (0, 0, 0);
        let begun = Instant::now();
        let is_done = |bench: &Bench| {
            ["dense", "gaps", "words", "small"].iter().all(|table| {
                bench.position.get(&format!("table/{database}.{table}")).is_some_and(|it| it == b"\"done\"")
            })
        };
        while !is_done(&bench) {
            assert!(begun.elapsed() < PATIENCE, "{} records", bench.seen.len());
            if let Err(error) = bench.fill(Duration::from_millis(20)) {
                assert_eq!(error.domain, Domain::External, "{error}");
                failures += 1;
                bench.stop();
            }
            match random.below(8) {
                0 if stops < 8 => {
                    stops += 1;
                    bench.set_options(&with_threads([8, 2, 8, 1][stops % 4]));
                }
                1 if failures < 3 => {
                    // The last connection is a reader's, if there are more than two.
                    let ids = connections(server, &user);
                    most = most.max(ids.len());
                    if let Some(id) = ids.get(2..).and_then(<[String]>::last) {
                        // It may have ended by itself.
                        let _ = server.try_run(&format!("KILL {id}"));
                    }
                }
                _ => {}
            }
        }
        let written = writing.join().unwrap();
        assert!(written.status.success(), "{}", String::from_utf8_lossy(&written.stderr));
        bench.read();
        assert!(most > 4, "at most {most} connections");
        assert!(stops > 3 && failures > 0, "{stops} stops, {failures} failures");
        assert_no_duplicates(&bench.seen);
        assert_eq!(rows_of_topics(&bench.seen), rows(server, &database));
        // A stop ends every reader.
        bench.stop();
        let begun = Instant::now();
        while !connections(server, &user).is_empty() {
            assert!(begun.elapsed() < PATIENCE, "connections remain");
        }
    }
}

#[test]
fn readers_that_the_server_refuses_leave_the_snapshot_to_the_others() {
    let Some(server) = Server::shared() else { return };
    let database = server.database();
    create(server, &database);
    let tables = format!("\"{database}.*\"");
    // The source has two connections, and each reader another one.
    let user = create_user(server, &database, 2);
    let source =
        format!("{}snapshot_threads = 8\nchunk_rows = 100\n", options(server.port, &format!("{user}:x"), &tables));
    let mut bench = Bench::new(&source);
    let error = bench.try_read().unwrap_err();
    assert_eq!((error.code, error.domain), ("mysql.connections", Domain::External), "{error}");
    assert!(error.message().contains("snapshot_threads") && bench.seen.is_empty(), "{error}");
    bench.stop();
    for limit in [3, 5] {
        create_user(server, &database, limit);
        let mut bench = Bench::new(&source);
        bench.max_records = 200;
        bench.read();
        assert_no_duplicates(&bench.seen);
        assert_eq!(rows_of_topics(&bench.seen), rows(server, &database), "at most {limit} connections");
        assert!(connections(server, &user).len() <= limit as usize);
        bench.stop();
        let begun = Instant::now();
        while !connections(server, &user).is_empty() {
            assert!(begun.elapsed() < PATIENCE, "connections remain");
        }
    }
}

#[test]
fn a_chunk_of_unexpectedly_large_rows_ends_early() {
    let Some(server) = Server::shared() else { return };
    let database = server.database();
    // The first rows suggest chunks of thousands of rows.
    server.run(&format!(
        "USE {database}; SET cte_max_recursion_depth = 10000; CREATE TABLE wide (id INT PRIMARY KEY, v MEDIUMTEXT);
         INSERT INTO wide SELECT n, IF(n < 2500, 'x', REPEAT('y', 40000)) FROM \
         (WITH RECURSIVE q (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM q WHERE n < 4000) SELECT n FROM q) t"
    ));
    for (threads, budget, limit) in [(1, 256 << 20, 40 << 20), (8, 4 << 20, 2 << 20)] {
        let mut bench = Bench::new(&server.options_with_threads(&format!("\"{database}.*\""), threads));
        bench.budget = MemoryBudget::new(budget);
        let mut most = 0;
        let begun = Instant::now();
        while bench.seen.len() < 4000 {
            assert!(begun.elapsed() < PATIENCE, "{} records", bench.seen.len());
            bench.fill(Duration::from_millis(20)).unwrap();
            most = most.max(bench.budget.used());
        }
        let ids: Vec<u64> = bench.seen.iter().map(|record| record.after()["id"].as_u64().unwrap()).collect();
        assert_eq!(ids, (1..=4000).collect::<Vec<_>>(), "{threads} readers");
        // All rows together take 60 MB. Half of a small budget remains for the stage.
        assert!(most > 0 && most <= limit, "{threads} readers reserved {most} bytes");
    }
}
