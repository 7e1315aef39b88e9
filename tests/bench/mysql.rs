//! MySQL to a topic, by snapshot and by binlog, each beside a limit of the same round; how late a change can be read; and Debezium beside it.
//!
//! | path | its limit |
//! |---|---|
//! | snapshot → topic | the same rows read with sqlx, and dropped |
//! | binlog → topic | a bare transactional producer of the very same records, keys and headers too |
//!
//! MySQL, Kafka and the worker share the machine's processors. What takes long, filling tables and binlogs, is not timed. Every run of the binlog
//! reads the same changes: its source was started before they were written, to remember where it was, and stopped again.

use std::time::{Duration, Instant};

use rdkafka::consumer::BaseConsumer;
use sqlx::{AssertSqlSafe, Connection as _, MySqlConnection};
use trunkline_tests::{Case, Kafka, Mysql, Worker};

use crate::client::{self, LIMIT, PARTITIONS};
use crate::debezium::Debezium;
use crate::latency::{end, reader};
use crate::measure::Sizes;
use crate::pipeline::{self, Path, Run, beside_peer, in_turns, run, timed};
use crate::table::{Demand, Row, Table};

/// Rows of one transaction.
const TRANSACTION: u64 = 1_000;
/// Rows of the short runs that say how many the long ones take.
const SHORT: u64 = 500_000;
/// Peak RSS at steady work, in MB; and through a transaction of a gigabyte.
const MOST_MEMORY: f64 = 120.0;
const MOST_MEMORY_OF_LARGE: f64 = 150.0;
const STARTS: usize = 5;

/// About 190 bytes a row: numbers, a decimal, times, texts.
const COLUMNS: &str = "id BIGINT PRIMARY KEY, customer INT UNSIGNED NOT NULL, status TINYINT NOT NULL, price DECIMAL(10,2) NOT NULL, placed DATETIME(6) NOT NULL, \
                       changed TIMESTAMP(3) NOT NULL, email VARCHAR(100) NOT NULL, note VARCHAR(300) NOT NULL";
const ROW: &str = "id % 100000, id % 5, id / 7, '2026-01-02 03:04:05.678901', '2026-01-02 03:04:05.678', CONCAT('somebody.', id, '@example.org'), \
                   REPEAT('n', 120 + id % 20)";
const ROW_BYTES: u64 = 190;

/// The names of its rows.
pub(crate) const ROWS: [&str; 7] = [
    "mysql-snapshot",
    "mysql-binlog",
    "mysql-latency",
    "mysql-start",
    "mysql-transaction",
    "debezium-snapshot",
    "debezium-binlog",
];

/// Adds the rows that are wanted.
pub(crate) fn add(table: &mut Table, kafka: &Kafka, sizes: Sizes, wanted: impl Fn(&str) -> bool) {
    let server = match Mysql::start() {
        Ok(mysql) => mysql,
        Err(reason) => return table.skip("MySQL", &reason),
    };
    let bench = Bench { kafka, mysql: &server };
    server.run(&format!(
        "CREATE DATABASE bench; USE bench; SET cte_max_recursion_depth = {SHORT}; CREATE TABLE base ({COLUMNS});
         INSERT INTO base SELECT id, {ROW} FROM (WITH RECURSIVE q (id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM q WHERE id < {SHORT}) SELECT id FROM q) t; \
         ANALYZE TABLE base"
    ));
    let debezium = if wanted("debezium-snapshot") || wanted("debezium-binlog") {
        Debezium::find(kafka, &server).map_err(|reason| table.skip("Debezium", &reason)).ok()
    } else {
        None
    };
    if wanted("mysql-snapshot") || debezium.is_some() && wanted("debezium-snapshot") {
        let rows = sizes.records(bench.snapshot("base", SHORT).a_second());
        bench.fill("stock", rows);
        if wanted("mysql-snapshot") {
            table.add(
                Path {
                    name: "MySQL snapshot -> topic",
                    unit: "rows/s",
                    share: 0.7,
                    cpu: Demand::None,
                    memory: MOST_MEMORY,
                }
                .measure(sizes, |_| bench.read("stock", rows), || bench.snapshot("stock", rows)),
            );
        }
        if let Some(debezium) = debezium.as_ref().filter(|_| wanted("debezium-snapshot")) {
            let name = "Debezium: MySQL snapshot -> topic";
            eprintln!("{name}");
            let theirs = sizes.records(debezium.snapshot("base", SHORT).a_second()).min(rows);
            bench.fill("theirs", theirs);
            let arms = in_turns(
                sizes,
                |_| debezium.snapshot("theirs", theirs).told("Debezium", sizes),
                |_| bench.snapshot("stock", rows).told("worker", sizes),
            );
            table.add(beside_peer(name, "rows/s", Demand::Share(5.0), &arms));
        }
        server.run("DROP TABLE bench.stock");
    }
    if wanted("mysql-binlog") || debezium.is_some() && wanted("debezium-binlog") {
        bench.binlog(table, sizes, debezium.as_ref().filter(|_| wanted("debezium-binlog")), wanted("mysql-binlog"));
    }
    if wanted("mysql-latency") {
        table.add(bench.latencies("Apache Kafka", sizes));
        match Kafka::embedded() {
            Ok(kafka) => {
                table.add(Bench { kafka: &kafka, mysql: &server }.latencies("embedded broker", sizes));
            }
            Err(reason) => table.skip("the embedded broker", &reason),
        }
    }
    if wanted("mysql-start") {
        table.add([bench.starts()]);
    }
    if wanted("mysql-transaction") {
        table.add([bench.large_transaction()]);
    }
}

pub(crate) struct Bench<'a> {
    pub(crate) kafka: &'a Kafka,
    pub(crate) mysql: &'a Mysql,
}

impl Bench<'_> {
    /// A table of so many rows, from those of `base`.
    fn fill(&self, table: &str, rows: u64) {
        let insert = |first: u64| {
            let most = (rows - first).min(SHORT);
            format!("INSERT INTO {table} SELECT {first} + id, {ROW} FROM base WHERE id <= {most};")
        };
        let inserts: String = (0..rows).step_by(SHORT as usize).map(insert).collect();
        self.mysql.run(&format!(
            "USE bench; DROP TABLE IF EXISTS {table}; CREATE TABLE {table} LIKE base; SET sql_log_bin = 0; {inserts} ANALYZE TABLE {table}"
        ));
    }

    /// Inserts of so many rows into a table, in transactions of [`TRANSACTION`].
    fn change(&self, table: &str, rows: u64) {
        let mut inserts = "USE bench;".to_owned();
        for first in (0..rows).step_by(TRANSACTION as usize) {
            let from = first % SHORT;
            inserts += &format!(
                "INSERT INTO {table} SELECT {} + id, {ROW} FROM base WHERE id BETWEEN {} AND {};",
                first - from,
                from + 1,
                from + TRANSACTION
            );
        }
        self.mysql.run(&inserts);
    }

    pub(crate) fn case(&self, test: &str, table: &str, more: &str) -> Case {
        let mut case = Case::new(test, self.kafka);
        case.set(Mysql::PASSWORD.0, Mysql::PASSWORD.1);
        let url = self.mysql.url();
        case.pipeline(
            "bench",
            &format!(
                "name = \"$NAME\"\n[sources.shop]\nconnector = \"mysql\"\nurl = \"{url}\"\ntables = [\"bench.{table}\"]\n{more}\n"
            ),
        );
        case
    }

    /// A topic's records counted by a client of its own, and the topic deleted.
    fn check(&self, case: &Case, table: &str, rows: u64) {
        let topic = format!("{}.bench.{table}", case.name());
        client::consume(&client::consumer(self.kafka.brokers(), "count", &[]), &topic, rows);
        client::delete_topic(self.kafka.brokers(), &topic);
    }

    /// The limit of a snapshot: the rows as sqlx reads them.
    fn read(&self, table: &str, rows: u64) -> Run {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        timed(|| {
            runtime.block_on(async {
                let mut connection = MySqlConnection::connect(&self.mysql.plain_url()).await.unwrap();
                let select = format!("SELECT * FROM bench.{table}");
                let mut stream = sqlx::query(AssertSqlSafe(select)).fetch(&mut connection);
                let mut count = 0;
                while let Some(row) = std::future::poll_fn(|context| stream.as_mut().poll_next(context)).await {
                    row.unwrap();
                    count += 1;
                }
                assert_eq!(count, rows);
                count
            })
        })
    }

    /// A table's rows to a topic.
    fn snapshot(&self, table: &str, rows: u64) -> Run {
        let case = self.case("bench-rows", table, "");
        let exit = run(&case);
        assert_eq!(exit.summary().of(case.name(), "shop").output, rows);
        let idle = run(&case);
        self.check(&case, table, rows);
        Run::of(rows, &exit, &idle)
    }

    fn binlog(&self, table: &mut Table, sizes: Sizes, debezium: Option<&Debezium<'_>>, alone: bool) {
        self.mysql.run("CREATE TABLE bench.short LIKE bench.base; CREATE TABLE bench.changes LIKE bench.base");
        let short = Follower::new(self, "short");
        self.change("short", SHORT);
        let speed = short.follow(SHORT).a_second();
        let sample = client::load(self.kafka, &short.topic());
        let rows = sizes.records(speed);
        // One each round and arm: a source reads the changes once.
        let count = sizes.rounds * (usize::from(alone) + usize::from(debezium.is_some()));
        let mut followers: Vec<Follower<'_>> = (0..count).map(|_| Follower::new(self, "changes")).collect();
        self.change("changes", rows);
        let mut follow = || {
            let follower = followers.pop().unwrap();
            let run = follower.follow(rows);
            self.check(&follower.case, "changes", rows);
            run
        };
        if alone {
            let path = Path {
                name: "MySQL binlog -> topic",
                unit: "rows/s",
                share: 0.6,
                cpu: Demand::Most(3.0),
                memory: MOST_MEMORY,
            };
            let limit = |round| pipeline::produce(self.kafka, &format!("limit-changes-{round}"), &sample, sizes);
            table.add(path.measure(sizes, limit, &mut follow));
        }
        if let Some(debezium) = debezium {
            let name = "Debezium: MySQL binlog -> topic";
            eprintln!("{name}");
            // It has its own changes: fewer, for it takes longer.
            self.mysql.run("CREATE TABLE bench.short2 LIKE bench.base; CREATE TABLE bench.theirs2 LIKE bench.base");
            let short = debezium.follower("short2");
            self.change("short2", SHORT);
            let theirs = sizes.records(debezium.follow(&short, SHORT).a_second()).min(rows);
            let mut names: Vec<_> = (0..sizes.rounds).map(|_| debezium.follower("theirs2")).collect();
            self.change("theirs2", theirs);
            let arms = in_turns(
                sizes,
                |_| debezium.follow(&names.pop().unwrap(), theirs).told("Debezium", sizes),
                |_| follow().told("worker", sizes),
            );
            table.add(beside_peer(name, "rows/s", Demand::Share(5.0), &arms));
        }
        self.mysql.run("DROP TABLE bench.changes; RESET BINARY LOGS AND GTIDS");
    }

    /// A worker that follows a table, and a reader of its topic that waits for records: a first row has been through.
    pub(crate) fn following(&self, case: &Case, table: &str) -> (Worker, BaseConsumer) {
        let topic = format!("{}.bench.{table}", case.name());
        self.kafka.create_topic(&topic, PARTITIONS);
        let consumer = reader(self.kafka, &topic);
        self.mysql.run(&format!("INSERT INTO bench.{table} VALUES (-1, 'warm up')"));
        let mut worker = case.start("a", &[]);
        let mut changes = 0;
        // Of the snapshot, and then of the binlog: the row itself, its change.
        while changes < 2 {
            assert!(worker.runs(), "{}", worker.stderr());
            if let Some(Ok(_)) = consumer.poll(Duration::from_millis(100)) {
                changes += 1;
                self.mysql.run(&format!("UPDATE bench.{table} SET note = 'warm up {changes}' WHERE id = -1"));
            }
        }
        // The last change of those.
        while !matches!(consumer.poll(Duration::from_millis(100)), Some(Ok(_))) {
            assert!(worker.runs(), "{}", worker.stderr());
        }
        (worker, consumer)
    }

    /// Milliseconds from starting a worker that was stopped, with a change to read, until its record can be read.
    fn starts(&self) -> Row {
        let mut measured = Vec::new();
        for number in 0..STARTS {
            let table = format!("start{number}");
            self.mysql.run(&format!("CREATE TABLE bench.{table} (id BIGINT PRIMARY KEY, note VARCHAR(100))"));
            let case = self.case("bench-start", &table, "");
            let (worker, consumer) = self.following(&case, &table);
            end(worker);
            self.mysql.run(&format!("INSERT INTO bench.{table} VALUES (1, 'written while nobody looked')"));
            let started = Instant::now();
            let mut worker = case.start("a", &[]);
            while !matches!(consumer.poll(Duration::from_millis(1)), Some(Ok(_))) {
                assert!(started.elapsed() < LIMIT && worker.runs(), "no record: {}", worker.stderr());
            }
            measured.push(started.elapsed().as_secs_f64() * 1e3);
            end(worker);
        }
        Row {
            name: "worker started -> first change".to_owned(),
            unit: "ms",
            beside: Vec::new(),
            measured,
            demand: Demand::Most(500.0),
        }
    }

    /// The worker's peak memory through one transaction of a gigabyte.
    fn large_transaction(&self) -> Row {
        let rows = 1_000_000_000 / ROW_BYTES;
        self.mysql.run("CREATE TABLE bench.large LIKE bench.base");
        let follower = Follower::new(self, "large");
        let inserts: String = (0..rows)
            .step_by(SHORT as usize)
            .map(|first| {
                format!(
                    "INSERT INTO large SELECT {first} + id, {ROW} FROM base WHERE id <= {};",
                    (rows - first).min(SHORT)
                )
            })
            .collect();
        self.mysql.run(&format!("USE bench; BEGIN; {inserts} COMMIT"));
        let run = follower.follow(rows);
        self.check(&follower.case, "large", rows);
        Row {
            name: "one transaction of 1 GB, peak RSS".to_owned(),
            unit: "MB",
            beside: Vec::new(),
            measured: vec![run.megabytes()],
            demand: Demand::Most(MOST_MEMORY_OF_LARGE),
        }
    }
}

/// A source that knows where the binlog ended when this was made.
struct Follower<'a> {
    case: Case,
    table: &'a str,
    idle: trunkline_tests::Exit,
}

impl<'a> Follower<'a> {
    fn new(bench: &Bench<'_>, table: &'a str) -> Self {
        let case = bench.case("bench-changes", table, "");
        run(&case);
        let idle = run(&case);
        Self { case, table, idle }
    }

    fn topic(&self) -> String {
        format!("{}.bench.{}", self.case.name(), self.table)
    }

    /// Reads so many changes.
    fn follow(&self, rows: u64) -> Run {
        let exit = run(&self.case);
        assert_eq!(exit.summary().of(self.case.name(), "shop").output, rows);
        Run::of(rows, &exit, &self.idle)
    }
}
