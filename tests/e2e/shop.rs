//! A database that sources read in tests: three tables, seeded writes, and a comparison of topics
//! with tables.

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU32, Ordering};

use trunkline_tests::{Case, Kafka, KafkaClient, Mysql, Process, Random, Record, wait};

use crate::LONG;

/// Options for many small chunks and commits: more moments at which a kill matters.
pub(crate) const SMALL_CHUNKS: &str = "chunk_rows = 50\ncommit_interval = \"20ms\"";

/// A database of one test with the tables `orders`, `people` and `audit_log`, on a server of its
/// own or on a shared one.
pub(crate) struct Shop<M: Borrow<Mysql>> {
    pub(crate) server: M,
    /// The name of the database, unique on the server.
    pub(crate) database: String,
}

impl<M: Borrow<Mysql>> Shop<M> {
    /// Creates the database, with `rows` rows each in `orders` and `people`.
    pub(crate) fn create(server: M, rows: u32) -> Self {
        static CREATED: AtomicU32 = AtomicU32::new(0);
        let database = format!("shop{}", CREATED.fetch_add(1, Ordering::Relaxed));
        let sequence = format!(
            "(WITH RECURSIVE q (seq) AS (SELECT 1 UNION ALL SELECT seq + 1 FROM q WHERE seq < {rows}) SELECT seq FROM q) t"
        );
        server.borrow().run(&format!(
            "/*!80000 SET cte_max_recursion_depth = 1000000 */; /*M! SET max_recursive_iterations = 1000000 */;
             CREATE DATABASE {database}; USE {database};
             CREATE TABLE orders (id INT PRIMARY KEY, v INT NOT NULL, note VARCHAR(300));
             CREATE TABLE people (name VARCHAR(20) PRIMARY KEY, v INT NOT NULL);
             CREATE TABLE audit_log (id INT PRIMARY KEY);
             INSERT INTO orders SELECT seq, seq, REPEAT('n', seq % 200) FROM {sequence};
             INSERT INTO people SELECT CONCAT('p', seq), seq FROM {sequence}"
        ));
        Self { server, database }
    }

    /// Runs statements in the database.
    pub(crate) fn run(&self, statements: &str) -> Vec<String> {
        self.server.borrow().run(&format!("USE {}; {statements}", self.database))
    }

    /// The number of rows of a table.
    pub(crate) fn rows(&self, table: &str) -> u64 {
        self.run(&format!("SELECT COUNT(*) FROM {table}"))[0].parse().unwrap()
    }

    /// A pipeline file with a source of all tables except `audit_log`. `more` are more options.
    pub(crate) fn source(&self, more: &str) -> String {
        self.source_of(&["*", "!audit_*"], more)
    }

    /// A pipeline file with a source of these tables of the database; `!` excludes one.
    pub(crate) fn source_of(&self, tables: &[&str], more: &str) -> String {
        let globs = tables.iter().map(|table| match table.strip_prefix('!') {
            Some(excluded) => format!("\"!{}.{excluded}\"", self.database),
            None => format!("\"{}.{table}\"", self.database),
        });
        format!(
            "name = \"$NAME\"\n[sources.shop]\nconnector = \"mysql\"\nurl = \"{}\"\ntables = [{}]\n{more}\n",
            self.server.borrow().url(),
            globs.collect::<Vec<_>>().join(", ")
        )
    }

    /// The topic of a table.
    pub(crate) fn topic(&self, case: &Case, table: &str) -> String {
        format!("{}.{}.{table}", case.name(), self.database)
    }

    /// Waits until the topic of a table has at least `count` records.
    pub(crate) fn wait_for_records(
        &self,
        case: &Case,
        kafka: &KafkaClient,
        worker: &mut Process,
        table: &str,
        count: u64,
    ) {
        let topic = self.topic(case, table);
        wait::until(&format!("{count} records in {topic}"), LONG, || {
            assert!(worker.is_running(), "{}", worker.stderr());
            (kafka.count(&topic) >= count).then_some(())
        });
    }

    /// Checks that the topics of `orders` and `people` result in the tables' rows; returns the
    /// number of records.
    pub(crate) fn assert_topics_match(&self, case: &Case, kafka: &KafkaClient) -> u64 {
        ["orders", "people"].iter().map(|table| self.assert_topic_matches(case, kafka, table)).sum()
    }

    /// Checks that the topic of a table results in its rows; returns the number of records.
    pub(crate) fn assert_topic_matches(&self, case: &Case, kafka: &KafkaClient, table: &str) -> u64 {
        let key = if table == "people" { "CONCAT('{\"name\":\"', name, '\"}')" } else { "CONCAT('{\"id\":', id, '}')" };
        let records = kafka.read(&self.topic(case, table));
        let rows = self.run(&format!("SELECT {key}, v FROM {table}"));
        let rows: BTreeMap<String, i64> = rows
            .iter()
            .map(|line| line.split_once('\t').unwrap())
            .map(|(key, v)| (key.to_owned(), v.parse().unwrap()))
            .collect();
        assert_eq!(fold(&records), rows, "{table}");
        records.len() as u64
    }
}

/// A new case whose workers know the password of a source.
pub(crate) fn case(test: &str, kafka: &Kafka) -> Case {
    let mut case = Case::new(test, kafka);
    case.set(Mysql::PASSWORD.0, Mysql::PASSWORD.1);
    case
}

/// Seeded transactions of one writer on the tables of a shop; some are large, some are rolled back.
pub(crate) fn writes(random: &mut Random, rows: u64, transactions: u64) -> String {
    let mut sql = String::new();
    for _ in 0..transactions {
        sql.push_str("BEGIN;\n");
        for _ in 0..=random.below(4) {
            let (id, v) = (random.below(rows * 2), random.below(1_000_000));
            let _ = match random.below(7) {
                0 => writeln!(sql, "INSERT IGNORE INTO orders (id, v, note) VALUES ({id}, {v}, 'new');"),
                1 => writeln!(sql, "UPDATE orders SET v = {v} WHERE id BETWEEN {id} AND {};", id + random.below(200)),
                2 => writeln!(sql, "DELETE FROM orders WHERE id = {id};"),
                3 => writeln!(sql, "UPDATE IGNORE orders SET id = {} WHERE id = {id};", random.below(rows * 2)),
                4 => writeln!(sql, "REPLACE INTO people VALUES ('p{id}', {v});"),
                5 => writeln!(sql, "DELETE FROM people WHERE name = 'p{id}';"),
                _ => writeln!(sql, "INSERT IGNORE INTO audit_log VALUES ({id});"),
            };
        }
        sql.push_str(if random.below(8) == 0 { "ROLLBACK;\n" } else { "COMMIT;\n" });
    }
    sql
}

/// Applies the change events of a topic in order; returns the last version of each row by key.
/// Checks that no event contradicts the events before it.
fn fold(records: &[Record]) -> BTreeMap<String, i64> {
    let mut rows: BTreeMap<String, i64> = BTreeMap::new();
    // The records of one key are in one partition, in order.
    for record in records {
        let key = String::from_utf8(record.key.clone().expect("a key")).unwrap();
        if record.value.is_none() {
            assert!(!rows.contains_key(&key), "a tombstone of an existing row: {key}");
            continue;
        }
        let value = record.json();
        let v = value["after"]["v"].as_i64();
        let before = value["before"]["v"].as_i64();
        match value["op"].as_str().unwrap() {
            "r" => {
                let known = rows.insert(key.clone(), v.unwrap());
                assert!(
                    known.is_none_or(|known| Some(known) == v),
                    "a row of the snapshot is older than a change: {key}"
                );
            }
            "c" => assert_eq!(rows.insert(key.clone(), v.unwrap()), None, "created twice: {key}"),
            // A row may change before the snapshot has read its chunk.
            "u" => assert!(
                rows.insert(key.clone(), v.unwrap()).is_none_or(|known| Some(known) == before),
                "a change is missing: {key}"
            ),
            "d" => assert!(rows.remove(&key).is_none_or(|known| Some(known) == before), "a change is missing: {key}"),
            other => panic!("op {other}"),
        }
    }
    rows
}

/// Calls a function when it is dropped, also by a panic.
pub(crate) struct OnDrop<F: Fn()>(pub(crate) F);

impl<F: Fn()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}
