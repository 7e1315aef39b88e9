//! MySQL to a topic, by snapshot and by binlog, each with a limit of the same round; the latency of
//! a change; and Debezium as a peer.
//!
//! | path | its limit |
//! |---|---|
//! | snapshot → topic | the same rows read with sqlx, and dropped |
//! | snapshot, two readers on two processors | one reader on one; both discard the rows |
//! | binlog → topic | a bare transactional producer of the same records, with keys |
//!
//! MySQL, Kafka and the worker share the machine's processors. Filling tables and binlogs takes
//! long and is not timed. Every run of the binlog reads the same changes: its source ran before
//! they were written, to commit its position, and was stopped.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rdkafka::consumer::BaseConsumer;
use sqlx::{AssertSqlSafe, Connection as _, MySqlConnection};
use trunkline_connector::conformance::configure_source;
use trunkline_connector::{Fill, MemoryBudget, SourceBatch, SourceContext};
use trunkline_mysql::MysqlConnector;
use trunkline_tests::{BrokerKind, Case, Kafka, Mysql, Process, worker_binary};

use crate::client::{self, LIMIT, PARTITIONS};
use crate::debezium::Debezium;
use crate::latency::{end, reader};
use crate::measure::{Sampling, cpu_seconds_of};
use crate::pipeline::{self, PathTargets, Run, alternate, compare_with_peer, run, timed};
use crate::table::{Row, Table, Target};

/// Rows of one transaction.
const TRANSACTION: u64 = 1_000;
/// Rows of a short run, which determines the rows of long runs.
pub(crate) const SHORT: u64 = 500_000;
/// Peak RSS in MB under constant load, and during a transaction of a gigabyte.
const MAX_MEMORY_MB: f64 = 120.0;
const MAX_MEMORY_MB_LARGE: f64 = 150.0;
const STARTS: usize = 5;

/// About 190 bytes per row: numbers, a decimal, times, texts.
const COLUMNS: &str = "id BIGINT PRIMARY KEY, customer INT UNSIGNED NOT NULL, status TINYINT NOT NULL, price DECIMAL(10,2) NOT NULL, placed DATETIME(6) NOT NULL, \
                       changed TIMESTAMP(3) NOT NULL, email VARCHAR(100) NOT NULL, note VARCHAR(300) NOT NULL";
const ROW: &str = "id % 100000, id % 5, id / 7, '2026-01-02 03:04:05.678901', '2026-01-02 03:04:05.678', CONCAT('customer.', id, '@example.org'), \
                   REPEAT('n', 120 + id % 20)";
const ROW_BYTES: u64 = 190;

/// The names of its rows.
pub(crate) const ROWS: [&str; 8] = [
    "mysql-snapshot",
    "mysql-readers",
    "mysql-binlog",
    "mysql-latency",
    "mysql-start",
    "mysql-transaction",
    "debezium-snapshot",
    "debezium-binlog",
];

/// Adds the selected rows.
pub(crate) fn add(table: &mut Table, kafka: &Kafka, sampling: Sampling, is_selected: impl Fn(&str) -> bool) {
    let server = match Mysql::start() {
        Ok(mysql) => mysql,
        Err(reason) => return table.skip("MySQL", &reason),
    };
    let bench = Bench::new(kafka, &server);
    let debezium = if is_selected("debezium-snapshot") || is_selected("debezium-binlog") {
        Debezium::find(kafka, &server).map_err(|reason| table.skip("Debezium", &reason)).ok()
    } else {
        None
    };
    if is_selected("mysql-snapshot") || debezium.is_some() && is_selected("debezium-snapshot") {
        let rows = sampling.records(bench.snapshot("base", SHORT).per_second());
        bench.fill("stock", rows);
        if is_selected("mysql-snapshot") {
            table.add(
                PathTargets {
                    name: "MySQL snapshot -> topic",
                    unit: "rows/s",
                    share: 0.7,
                    cpu: Target::None,
                    memory: MAX_MEMORY_MB,
                }
                .measure(sampling, |_| bench.read("stock", rows), || bench.snapshot("stock", rows)),
            );
        }
        if let Some(debezium) = debezium.as_ref().filter(|_| is_selected("debezium-snapshot")) {
            let name = "Debezium: MySQL snapshot -> topic";
            eprintln!("{name}");
            let theirs = sampling.records(debezium.snapshot("base", SHORT).per_second()).min(rows);
            bench.fill("theirs", theirs);
            let arms = alternate(
                sampling,
                |_| debezium.snapshot("theirs", theirs).report("Debezium", sampling),
                |_| bench.snapshot("stock", rows).report("worker", sampling),
            );
            table.add(compare_with_peer(name, "rows/s", Target::Share(5.0), &arms));
        }
        server.run("DROP TABLE bench.stock");
    }
    if is_selected("mysql-readers") {
        table.add(bench.readers(sampling));
    }
    if is_selected("mysql-binlog") || debezium.is_some() && is_selected("debezium-binlog") {
        bench.binlog(
            table,
            sampling,
            debezium.as_ref().filter(|_| is_selected("debezium-binlog")),
            is_selected("mysql-binlog"),
        );
    }
    if is_selected("mysql-latency") {
        table.add(bench.latencies("Apache Kafka", sampling));
        match Kafka::start(BrokerKind::Embedded) {
            Ok(kafka) => {
                table.add(Bench { kafka: &kafka, mysql: &server }.latencies("embedded broker", sampling));
            }
            Err(reason) => table.skip("the embedded broker", &reason),
        }
    }
    if is_selected("mysql-start") {
        table.add([bench.starts()]);
    }
    if is_selected("mysql-transaction") {
        table.add([bench.large_transaction()]);
    }
}

/// A pipeline file with a source of this table.
pub(crate) fn source(server: &Mysql, table: &str) -> String {
    let url = server.url();
    format!("name = \"$NAME\"\n[sources.shop]\nconnector = \"mysql\"\nurl = \"{url}\"\ntables = [\"{table}\"]\n")
}

/// Restricts all threads of a process to the first `processors`.
fn restrict(pid: u32, processors: usize) {
    let list = format!("0-{}", processors - 1);
    let output = Command::new("taskset").args(["--all-tasks", "--cpu-list", "--pid", &list, &pid.to_string()]).output();
    let output = output.unwrap_or_else(|error| panic!("cannot run `taskset` of util-linux: {error}"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

pub(crate) struct Bench<'a> {
    pub(crate) kafka: &'a Kafka,
    pub(crate) mysql: &'a Mysql,
}

impl<'a> Bench<'a> {
    /// Creates the database `bench` with the table `base`.
    pub(crate) fn new(kafka: &'a Kafka, mysql: &'a Mysql) -> Self {
        mysql.run(&format!(
            "CREATE DATABASE bench; USE bench; SET cte_max_recursion_depth = {SHORT}; CREATE TABLE base ({COLUMNS});
             INSERT INTO base SELECT id, {ROW} FROM (WITH RECURSIVE q (id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM q WHERE id < {SHORT}) SELECT id FROM q) t; \
             ANALYZE TABLE base"
        ));
        Self { kafka, mysql }
    }

    /// Creates empty tables like `base`.
    pub(crate) fn create_tables(&self, tables: &[&str]) {
        let create: String =
            tables.iter().map(|table| format!("CREATE TABLE bench.{table} LIKE bench.base; ")).collect();
        self.mysql.run(&create);
    }

    /// Creates a table of `rows` rows from those of `base`.
    fn fill(&self, table: &str, rows: u64) {
        let insert = |first: u64| {
            let count = (rows - first).min(SHORT);
            format!("INSERT INTO {table} SELECT {first} + id, {ROW} FROM base WHERE id <= {count};")
        };
        let inserts: String = (0..rows).step_by(SHORT as usize).map(insert).collect();
        self.mysql.run(&format!(
            "USE bench; DROP TABLE IF EXISTS {table}; CREATE TABLE {table} LIKE base; SET sql_log_bin = 0; {inserts} ANALYZE TABLE {table}"
        ));
    }

    /// Inserts `rows` rows into a table, in transactions of [`TRANSACTION`] rows.
    pub(crate) fn change(&self, table: &str, rows: u64) {
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
        case.pipeline("bench", &format!("{}{more}\n", source(self.mysql, &format!("bench.{table}"))));
        case
    }

    /// Counts a topic's records with another client, and deletes the topic.
    fn check(&self, case: &Case, table: &str, rows: u64) {
        let topic = format!("{}.bench.{table}", case.name());
        client::consume(&client::consumer(self.kafka.brokers(), "count", &[]), &topic, rows);
        client::delete_topic(self.kafka.brokers(), &topic);
    }

    /// The limit of a snapshot: sqlx reads the rows.
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

    /// Runs a worker that reads a table's rows into a topic.
    fn snapshot(&self, table: &str, rows: u64) -> Run {
        let case = self.case("bench-rows", table, "");
        let exit = run(&case);
        assert_eq!(exit.summary().of(case.name(), "shop").output, rows);
        let idle = run(&case);
        self.check(&case, table, rows);
        Run::of(rows, &exit, &idle)
    }

    /// Two readers on two processors, compared with one reader on one. The server shares these
    /// processors, so that its work is halved, too. The last row is the speed at which source and
    /// server would use both processors all the time, with the processor time per row that they
    /// have together.
    fn readers(&self, sampling: Sampling) -> [Row; 3] {
        let name = "MySQL snapshot, two readers on two processors";
        eprintln!("{name}");
        let rows = sampling.records(self.discard("base", SHORT, 1).per_second());
        self.fill("stock", rows);
        let mut bounds = Vec::new();
        let [one, two] = alternate(
            sampling,
            |_| self.discard_on(1, "stock", rows).0.report("one processor", sampling),
            |_| {
                let (run, server_cpu) = self.discard_on(2, "stock", rows);
                bounds.push(2.0 * rows as f64 / (run.cpu + server_cpu));
                run.report("two processors", sampling)
            },
        );
        self.mysql.run("DROP TABLE bench.stock");
        let row = |name: &str, unit, value: fn(&Run) -> f64, target| Row {
            name: name.to_owned(),
            unit,
            reference: one.iter().map(value).collect(),
            measured: two.iter().map(value).collect(),
            target,
        };
        [
            row(name, "rows/s", Run::per_second, Target::Share(1.8)),
            row("  processor", "s per million", Run::cpu_per_million, Target::AtMostShare(1.15)),
            Row {
                name: "  both processors always busy".to_owned(),
                unit: "rows/s",
                reference: one.iter().map(Run::per_second).collect(),
                measured: bounds,
                target: Target::None,
            },
        ]
    }

    /// [`Bench::discard`] with this process and the server on the first `processors`, one reader on
    /// each. Also returns the processor seconds of the server.
    fn discard_on(&self, processors: usize, table: &str, rows: u64) -> (Run, f64) {
        let server = self.mysql.pid().unwrap();
        let pids = [std::process::id(), server];
        let all = std::thread::available_parallelism().unwrap().get();
        pids.into_iter().for_each(|pid| restrict(pid, processors));
        let cpu = cpu_seconds_of(server);
        let run = self.discard(table, rows, processors);
        let cpu = cpu_seconds_of(server) - cpu;
        pids.into_iter().for_each(|pid| restrict(pid, all));
        (run, cpu)
    }

    /// Reads a table's rows with the connector in this process, and discards the batches.
    fn discard(&self, table: &str, rows: u64, threads: usize) -> Run {
        const BATCH_BYTES: usize = 1 << 20;
        const BATCH_RECORDS: usize = 10_000;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let options = format!(
            "url = \"{}\"\ntables = [\"bench.{table}\"]\nsnapshot = \"only\"\nsnapshot_threads = {threads}\n",
            self.mysql.plain_url()
        );
        let (spec, problems) = configure_source(&MysqlConnector, &options, Path::new("/"));
        assert!(problems.is_empty(), "{problems:?}");
        let scratch = tempfile::tempdir().unwrap();
        timed(|| {
            let context = SourceContext {
                task: "bench.readers".to_owned(),
                position: Vec::new(),
                until_idle: true,
                budget: MemoryBudget::new(256 << 20),
                runtime: runtime.handle().clone(),
                scratch: scratch.path().to_owned(),
            };
            let mut source = spec.unwrap().open(context).unwrap();
            let mut batch = SourceBatch::with_limits(BATCH_BYTES, BATCH_RECORDS);
            let (mut count, started) = (0, Instant::now());
            loop {
                let fill = source.fill(&mut batch, Instant::now() + Duration::from_millis(100)).unwrap();
                count += batch.records.len() as u64;
                batch.clear();
                assert!(started.elapsed() < LIMIT, "{count} rows of {rows}");
                if fill == Fill::CaughtUp {
                    break;
                }
            }
            assert_eq!(count, rows);
            count
        })
    }

    fn binlog(&self, table: &mut Table, sampling: Sampling, debezium: Option<&Debezium<'_>>, alone: bool) {
        self.create_tables(&["short", "changes"]);
        let worker = worker_binary();
        let short = Follower::new(self, &worker, "short");
        self.change("short", SHORT);
        let speed = short.follow(SHORT).per_second();
        let sample = client::load(self.kafka, &short.topic());
        let rows = sampling.records(speed);
        // One follower per run: a source reads the changes once.
        let count = sampling.rounds * (usize::from(alone) + usize::from(debezium.is_some()));
        let mut followers: Vec<Follower<'_>> = (0..count).map(|_| Follower::new(self, &worker, "changes")).collect();
        self.change("changes", rows);
        let mut follow = || followers.pop().unwrap().follow_and_check(self, rows);
        if alone {
            let path = PathTargets {
                name: "MySQL binlog -> topic",
                unit: "rows/s",
                share: 0.6,
                cpu: Target::AtMost(3.0),
                memory: MAX_MEMORY_MB,
            };
            let limit = |round| pipeline::produce(self.kafka, &format!("limit-changes-{round}"), &sample, sampling);
            table.add(path.measure(sampling, limit, &mut follow));
        }
        if let Some(debezium) = debezium {
            let name = "Debezium: MySQL binlog -> topic";
            eprintln!("{name}");
            // It is slower, so that it has its own, fewer changes.
            self.create_tables(&["short2", "theirs2"]);
            let short = debezium.follower("short2");
            self.change("short2", SHORT);
            let theirs = sampling.records(debezium.follow(&short, SHORT).per_second()).min(rows);
            let mut names: Vec<_> = (0..sampling.rounds).map(|_| debezium.follower("theirs2")).collect();
            self.change("theirs2", theirs);
            let arms = alternate(
                sampling,
                |_| debezium.follow(&names.pop().unwrap(), theirs).report("Debezium", sampling),
                |_| follow().report("worker", sampling),
            );
            table.add(compare_with_peer(name, "rows/s", Target::Share(5.0), &arms));
        }
        self.mysql.run("DROP TABLE bench.changes; RESET BINARY LOGS AND GTIDS");
    }

    /// A worker that follows a table, and a reader at the end of its topic. A first row has passed
    /// both.
    pub(crate) fn following(&self, case: &Case, table: &str) -> (Process, BaseConsumer) {
        let topic = format!("{}.bench.{table}", case.name());
        self.kafka.create_topic(&topic, PARTITIONS);
        let consumer = reader(self.kafka, &topic);
        self.mysql.run(&format!("INSERT INTO bench.{table} VALUES (-1, 'warm up')"));
        let mut worker = case.start("a", &[]);
        let mut changes = 0;
        // First the row of the snapshot, then its change from the binlog.
        while changes < 2 {
            assert!(worker.is_running(), "{}", worker.stderr());
            if let Some(Ok(_)) = consumer.poll(Duration::from_millis(100)) {
                changes += 1;
                self.mysql.run(&format!("UPDATE bench.{table} SET note = 'warm up {changes}' WHERE id = -1"));
            }
        }
        // The last of these changes.
        while !matches!(consumer.poll(Duration::from_millis(100)), Some(Ok(_))) {
            assert!(worker.is_running(), "{}", worker.stderr());
        }
        (worker, consumer)
    }

    /// Milliseconds from starting a worker that was stopped, with a change to read, until its
    /// record can be read.
    fn starts(&self) -> Row {
        let mut measured = Vec::new();
        for number in 0..STARTS {
            let table = format!("start{number}");
            self.mysql.run(&format!("CREATE TABLE bench.{table} (id BIGINT PRIMARY KEY, note VARCHAR(100))"));
            let case = self.case("bench-start", &table, "");
            let (worker, consumer) = self.following(&case, &table);
            end(worker);
            self.mysql.run(&format!("INSERT INTO bench.{table} VALUES (1, 'written while the worker was stopped')"));
            let started = Instant::now();
            let mut worker = case.start("a", &[]);
            while !matches!(consumer.poll(Duration::from_millis(1)), Some(Ok(_))) {
                assert!(started.elapsed() < LIMIT && worker.is_running(), "no record: {}", worker.stderr());
            }
            measured.push(started.elapsed().as_secs_f64() * 1e3);
            end(worker);
        }
        Row {
            name: "worker started -> first change".to_owned(),
            unit: "ms",
            reference: Vec::new(),
            measured,
            target: Target::AtMost(500.0),
        }
    }

    /// The worker's peak memory during one transaction of a gigabyte.
    fn large_transaction(&self) -> Row {
        let rows = 1_000_000_000 / ROW_BYTES;
        self.create_tables(&["large"]);
        let follower = Follower::new(self, &worker_binary(), "large");
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
        let run = follower.follow_and_check(self, rows);
        Row {
            name: "one transaction of 1 GB, peak RSS".to_owned(),
            unit: "MB",
            reference: Vec::new(),
            measured: vec![run.megabytes()],
            target: Target::AtMost(MAX_MEMORY_MB_LARGE),
        }
    }
}

/// A source that has committed its position in the binlog.
pub(crate) struct Follower<'a> {
    case: Case,
    table: &'a str,
    idle: trunkline_tests::Exit,
}

impl<'a> Follower<'a> {
    pub(crate) fn new(bench: &Bench<'_>, worker: &Path, table: &'a str) -> Self {
        let case = bench.case("bench-changes", table, "").with_binary(worker.to_owned());
        run(&case);
        let idle = run(&case);
        let follower = Self { case, table, idle };
        // Versions create topics with different numbers of partitions, on which the cost depends:
        // more partitions have more records in flight, which leave the processor's cache.
        bench.kafka.create_topic(&follower.topic(), PARTITIONS);
        follower
    }

    fn topic(&self) -> String {
        format!("{}.bench.{}", self.case.name(), self.table)
    }

    /// Reads the changes since its position, which must be `rows`.
    pub(crate) fn follow(&self, rows: u64) -> Run {
        let exit = run(&self.case);
        assert_eq!(exit.summary().of(self.case.name(), "shop").output, rows);
        Run::of(rows, &exit, &self.idle)
    }

    /// Reads the changes, and counts the records of the topic with another client.
    pub(crate) fn follow_and_check(&self, bench: &Bench<'_>, rows: u64) -> Run {
        let run = self.follow(rows);
        bench.check(&self.case, self.table, rows);
        run
    }
}
