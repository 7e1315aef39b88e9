//! Schema changes while writers and a source are active.

#![allow(clippy::unwrap_used, reason = "a test says by panicking that something is wrong")]

mod common;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::{Bench, OnDrop, Random, Seen, Server};
use serde_json::Value;

fn create(server: &Server, database: &str) {
    server.run(&format!(
        "USE {database}; CREATE TABLE o (id INT PRIMARY KEY, v INT NOT NULL, n VARCHAR(20) CHARACTER SET latin1);
         INSERT INTO o SELECT seq, 0, 'é' FROM (WITH RECURSIVE q (seq) AS (SELECT 1 UNION ALL SELECT seq + 1 FROM q WHERE seq < 300) SELECT seq FROM q) t"
    ));
}

/// Row changes that are compatible with every schema change here. `v` only grows.
fn writes(database: &str, seed: u64) -> String {
    let mut random = Random(seed);
    let mut sql = format!("USE {database};\n");
    for _ in 0..40 {
        let id = random.below(400);
        let _ = match random.below(4) {
            0 => writeln!(sql, "INSERT IGNORE INTO o (id, v) VALUES ({id}, 1000000);"),
            1 => writeln!(sql, "DELETE FROM o WHERE id = {id} AND v > 3;"),
            2 => writeln!(sql, "UPDATE o SET v = v + 1 WHERE id BETWEEN {id} AND {};", id + 5),
            _ => writeln!(
                sql,
                "BEGIN; UPDATE o SET v = v + 1 WHERE id = {id}; UPDATE o SET v = v + 1 WHERE id = {}; COMMIT;",
                id + 1
            ),
        };
    }
    sql
}

/// `v` of each row at the end of the topic. Column names change. Checks that no record is older
/// than the one before it.
fn fold(records: &[Seen], table: &str) -> BTreeMap<String, i64> {
    let mut rows: BTreeMap<String, i64> = BTreeMap::new();
    for record in records.iter().filter(|record| record.table == table) {
        let key = record.key.clone().unwrap();
        let Some(value) = &record.value else { continue };
        let v = value["after"]["v"].as_i64();
        match record.op() {
            "d" => drop(rows.remove(&key)),
            "r" => {
                let known = rows.insert(key.clone(), v.unwrap());
                assert!(
                    known.is_none_or(|known| Some(known) == v),
                    "a row of the snapshot is older than a change: {key}"
                );
            }
            "c" => assert_eq!(rows.insert(key.clone(), v.unwrap()), None, "created twice: {key}"),
            _ => {
                let known = rows.insert(key.clone(), v.unwrap());
                assert!(known.is_none_or(|known| Some(known) == value["before"]["v"].as_i64()), "lost a change: {key}");
            }
        }
    }
    rows
}

/// Runs statements; again after a deadlock with a writer.
fn run_at_last(server: &Server, database: &str, sql: &str) {
    for _ in 0..20 {
        match server.try_run(&format!("USE {database}; {sql}")) {
            Ok(_) => return,
            Err(error) => assert!(error.contains("Deadlock"), "{error}\n{sql}"),
        }
    }
    panic!("a deadlock 20 times: {sql}");
}

/// Reads while two writers and `definitions` run, then to the end. With `stops`, the source is
/// stopped repeatedly.
fn read_meanwhile(server: &Server, database: &str, options: &str, definitions: &[String], stops: bool) -> Bench {
    let is_over = AtomicBool::new(false);
    let mut bench = Bench::new(options);
    bench.max_records = 60;
    std::thread::scope(|scope| {
        for writer in 0..2 {
            let is_over = &is_over;
            scope.spawn(move || {
                for seed in 0.. {
                    if is_over.load(Ordering::Relaxed) {
                        break;
                    }
                    // A deadlock ends only this round of the writer.
                    let _ = server.try_run(&writes(database, 2 * seed + writer));
                }
            });
        }
        // A failed assertion must stop the writers.
        let over = OnDrop(|| is_over.store(true, Ordering::Relaxed));
        let definer = scope.spawn(|| definitions.iter().for_each(|sql| run_at_last(server, database, sql)));
        let mut random = Random(3);
        while !definer.is_finished() {
            bench.fill(Duration::from_millis(20)).unwrap();
            if stops && random.below(8) == 0 {
                bench.stop();
            }
        }
        definer.join().unwrap();
        drop(over);
    });
    bench.read();
    bench
}

fn assert_same(server: &Server, database: &str, bench: &Bench) {
    let rows = server.run(&format!("SELECT CONCAT('{{\"id\":', id, '}}'), v FROM {database}.o"));
    let rows: BTreeMap<String, i64> = rows
        .lines()
        .filter_map(|line| line.split_once('\t'))
        .map(|(key, v)| (key.to_owned(), v.parse().unwrap()))
        .collect();
    assert_eq!(fold(&bench.seen, &format!("{database}.o")), rows);
}

#[test]
fn columns_are_added_dropped_and_changed_under_load() {
    let Some(server) = Server::shared() else { return };
    for stops in [false, true] {
        let database = server.database();
        create(server, &database);
        let mut definitions = Vec::new();
        for round in 0..4 {
            definitions.push(format!(
                "ALTER TABLE o ADD COLUMN e INT DEFAULT {round} AFTER id; ALTER TABLE o MODIFY e BIGINT UNSIGNED; ALTER TABLE o RENAME COLUMN e TO f; \
                 ALTER TABLE o MODIFY f VARCHAR(20) CHARACTER SET utf16; ALTER TABLE o MODIFY n VARCHAR(40) CHARACTER SET utf8mb4; ALTER TABLE o MODIFY v BIGINT NOT NULL; \
                 ALTER TABLE o MODIFY n VARCHAR(40) CHARACTER SET latin1 FIRST; ALTER TABLE o MODIFY v INT NOT NULL; ALTER TABLE o DROP COLUMN f;"
            ));
        }
        definitions.push("ALTER TABLE o ADD COLUMN last DECIMAL(9,2) DEFAULT 1.5, ADD INDEX (v)".to_owned());
        let options = format!("{}chunk_rows = 5\n", server.options(&format!("\"{database}.*\"")));
        let mut bench = read_meanwhile(server, &database, &options, &definitions, stops);
        assert_same(server, &database, &bench);
        // After another write, each row equals the one of a snapshot.
        bench.take();
        server.run(&format!("UPDATE {database}.o SET v = v + 1"));
        bench.read();
        let whole = |records: &[Seen]| -> BTreeMap<_, Value> {
            records.iter().map(|record| (record.key.clone().unwrap(), record.after().clone())).collect()
        };
        assert_eq!(whole(&bench.seen), whole(&Bench::new(&options).read().seen));
        assert_eq!(bench.seen[0].after()["last"], Value::from("1.50"));
    }
}

/// The end of an online schema change (gh-ost, pt-online-schema-change): a copy of the table takes
/// its name.
#[test]
fn a_table_replaced_by_its_copy_under_load_is_followed() {
    let Some(server) = Server::shared() else { return };
    for stops in [false, true] {
        let database = server.database();
        create(server, &database);
        let mut definitions = Vec::new();
        for round in 0..3 {
            let columns = "id, v, n";
            // Deletions first: the swap would restore a row that another trigger copied before its
            // deletion.
            definitions.push(format!(
                "CREATE TABLE _o_gho LIKE o; ALTER TABLE _o_gho ADD COLUMN c{round} BIGINT NOT NULL DEFAULT {round} AFTER id, MODIFY v BIGINT NOT NULL;
                 CREATE TRIGGER d AFTER DELETE ON o FOR EACH ROW DELETE FROM _o_gho WHERE id = OLD.id;
                 CREATE TRIGGER u AFTER UPDATE ON o FOR EACH ROW REPLACE INTO _o_gho ({columns}) VALUES (NEW.id, NEW.v, NEW.n);
                 CREATE TRIGGER i AFTER INSERT ON o FOR EACH ROW REPLACE INTO _o_gho ({columns}) VALUES (NEW.id, NEW.v, NEW.n);"
            ));
            for from in (0..400).step_by(50) {
                definitions.push(format!(
                    "INSERT IGNORE INTO _o_gho ({columns}) SELECT {columns} FROM o WHERE id >= {from} AND id < {} LOCK IN SHARE MODE;",
                    from + 50
                ));
            }
            definitions.push("RENAME TABLE o TO _o_del, _o_gho TO o; DROP TABLE _o_del".to_owned());
        }
        let tables = format!("\"{database}.*\", \"!{database}._*\"");
        let options = format!("{}chunk_rows = 5\n", server.options(&tables));
        let mut bench = read_meanwhile(server, &database, &options, &definitions, stops);
        assert_same(server, &database, &bench);
        assert!(bench.seen.iter().all(|record| record.table == format!("{database}.o")));
        bench.take();
        server.run(&format!("UPDATE {database}.o SET v = v + 1 WHERE id = (SELECT id FROM (SELECT MIN(id) AS id FROM {database}.o) least)"));
        bench.read();
        let after = bench.seen[0].after().as_object().unwrap();
        let columns: Vec<&str> =
            ["id", "c2", "c1", "c0", "v", "n"].into_iter().filter(|name| after.contains_key(*name)).collect();
        assert_eq!((columns.len(), after.len()), (6, 6), "{after:?}");
    }
}
