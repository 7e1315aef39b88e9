//! The sink `redshift` in a worker, on the stand-in: its memory at any size of a load and with a
//! hundred tables, and the latency of a change. `loads` has staging and loads without a worker.
//!
//! The stand-in converts Parquet to text in Python: it is the limit of these pipelines, so their
//! speed has no target.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use trunkline_tests::{Case, Kafka, Mysql, Redshift, S3, Skip, wait, worker_binary};

use crate::client::{self, LIMIT, StoredRecord};
use crate::latency::end;
use crate::measure::{Sampling, percentile};
use crate::table::{Row, Table, Target};
use crate::{loads, mysql, pipeline};

/// Peak RSS, in MB: with one table at any size of a load, and with [`TABLES`].
pub(crate) const MAX_MEMORY_MB: f64 = 150.0;
const MAX_MEMORY_MB_TABLES: f64 = 200.0;
const TABLES: usize = 100;
/// Rows of each of the tables.
const ROWS_EACH: usize = 2_000;
/// Rows of the run of each size.
const ROWS_OF_SIZE: usize = 500_000;
/// The most records of a load, in thousands.
const SIZES: [usize; 3] = [10, 100, 500];
/// Sessions of a task: one, and another one while a load runs.
const MAX_SESSIONS: f64 = 2.0;
/// From the insert in MySQL to the row in the warehouse, p99, in seconds, with `every = "5s"`.
const MAX_LATENCY: f64 = 8.0;
/// The interval between two inserts.
const INTERVAL: Duration = Duration::from_millis(100);
/// The latency needs several loads.
const MIN_INSERTS: Duration = Duration::from_secs(20);

/// The names of its rows.
pub(crate) const ROWS: [&str; 5] =
    ["warehouse-staging", "warehouse-load", "warehouse-tables", "warehouse-memory", "warehouse-latency"];

/// Adds the selected rows.
pub(crate) fn add(table: &mut Table, kafka: &Kafka, sampling: Sampling, is_selected: impl Fn(&str) -> bool) {
    if let Err(reason) = try_add(table, kafka, sampling, is_selected) {
        table.skip("warehouse", &reason);
    }
}

fn try_add(
    table: &mut Table,
    kafka: &Kafka,
    sampling: Sampling,
    is_selected: impl Fn(&str) -> bool,
) -> Result<(), Skip> {
    let s3 = S3::start()?;
    let redshift = Redshift::start(&s3)?;
    if is_selected("warehouse-staging") {
        table.add(loads::staging_rows(&redshift, &s3, sampling));
    }
    if is_selected("warehouse-load") {
        table.add([loads::load_row(&redshift, &s3, sampling)]);
    }
    let worker = Worker { kafka, redshift: &redshift, s3: &s3 };
    if is_selected("warehouse-tables") {
        table.add(worker.many_tables());
    }
    if is_selected("warehouse-memory") {
        table.add(worker.sizes());
    }
    if is_selected("warehouse-latency") {
        table.add([worker.latency(&Mysql::start()?, sampling)]);
    }
    Ok(())
}

/// The servers of a worker.
struct Worker<'a> {
    kafka: &'a Kafka,
    redshift: &'a Redshift,
    s3: &'a S3,
}

impl Worker<'_> {
    /// The section of a sink that loads the schema of the case.
    fn sink(&self, case: &Case, inputs: &str, more: &str) -> String {
        let schema = case.name().replace('-', "_");
        self.s3.bucket(case.name());
        self.redshift.run(&format!("CREATE SCHEMA {schema}"));
        let options = self.redshift.sink_options(self.redshift.port(), &schema, case.name());
        format!("\n[sinks.dw]\nconnector = \"redshift\"\ninputs = [\"{inputs}\"]\n{more}\n{options}")
    }

    fn query(&self, case: &Case, sql: &str) -> Result<Vec<String>, String> {
        self.redshift.try_run(&sql.replace("$S", &case.name().replace('-', "_")))
    }

    /// A worker that loads a topic until it is idle: peak RSS in MB, and the most sessions that the
    /// warehouse had.
    fn load(&self, case: &Case, rows: usize) -> (f64, f64) {
        let mut worker = case.start("a", &["--until-idle", "--json"]);
        let application = format!("trunkline {}", case.name());
        let count =
            format!("SELECT COUNT(*) FROM pg_stat_activity WHERE starts_with(application_name, '{application}')");
        let mut sessions: f64 = 0.0;
        wait::until("the worker is idle", LIMIT, || {
            sessions = sessions.max(self.redshift.run(&count)[0].parse().unwrap());
            (!worker.is_running()).then_some(())
        });
        let exit = worker.wait(LIMIT);
        assert_eq!(exit.code, Some(0), "{}", exit.describe());
        assert_eq!(exit.summary().of(case.name(), "dw").output, rows as u64);
        (exit.peak_rss as f64 / 1e6, sessions)
    }

    /// A hundred tables in one sink.
    fn many_tables(&self) -> [Row; 2] {
        let name = format!("{TABLES} tables in one sink");
        eprintln!("{name}");
        let topic = "bench-tables";
        self.kafka.create_topic(topic, 1);
        let record = |number: usize| {
            let text = "n".repeat(100);
            let value = format!("{{\"id\":{number},\"to\":\"t{}\",\"note\":\"{text}\"}}", number % TABLES);
            StoredRecord::new(0, value.into_bytes())
        };
        let records: Vec<StoredRecord> = (0..TABLES * ROWS_EACH).map(record).collect();
        let producer = client::transactional_producer(self.kafka.brokers(), topic, &[]);
        client::produce_copies(&producer, topic, records.iter());
        let case = Case::new("bench-tables", self.kafka).with_binary(worker_binary());
        let sink = self.sink(&case, &format!("topic:{topic}"), "table = \"{to}\"\ntasks = 1");
        case.pipeline("bench", &format!("name = \"$NAME\"{sink}"));
        let (memory, sessions) = self.load(&case, records.len());
        let tables =
            self.query(&case, "SELECT COUNT(*) FROM information_schema.tables WHERE table_schema = '$S'").unwrap();
        assert_eq!(tables, [(TABLES + 1).to_string()], "tables, with the offsets table");
        client::delete_topic(self.kafka.brokers(), topic);
        [
            single(&name, "MB, peak RSS", memory, Target::AtMost(MAX_MEMORY_MB_TABLES)),
            single("  sessions", "", sessions, Target::AtMost(MAX_SESSIONS)),
        ]
    }

    /// The worker's memory with small and large loads.
    fn sizes(&self) -> Vec<Row> {
        let lines = crate::records::Lines::generate(1, ROWS_OF_SIZE as u64);
        let log = crate::records::Log::write(&lines, ROWS_OF_SIZE as u64);
        let (topic, _) = pipeline::read_log(self.kafka, &worker_binary(), &log, "combined", ROWS_OF_SIZE as u64);
        let mut rows = Vec::new();
        for thousands in SIZES {
            eprintln!("loads of {thousands} k rows");
            let case = Case::new("bench-sizes", self.kafka).with_binary(worker_binary());
            let commit = format!(
                "table = \"lines\"\ncommit = {{ records = {}, bytes = \"4GiB\", age = \"10m\", idle = \"10s\" }}",
                thousands * 1000
            );
            let sink = self.sink(&case, &format!("topic:{topic}"), &commit);
            case.pipeline("bench", &format!("name = \"$NAME\"{sink}"));
            let (memory, _) = self.load(&case, ROWS_OF_SIZE);
            assert_eq!(self.query(&case, "SELECT COUNT(*) FROM $S.lines").unwrap(), [ROWS_OF_SIZE.to_string()]);
            let name = format!("topic -> Redshift, loads of {thousands} k rows");
            rows.push(single(&name, "MB, peak RSS", memory, Target::AtMost(MAX_MEMORY_MB)));
        }
        client::delete_topic(self.kafka.brokers(), &topic);
        rows
    }

    /// From an insert in MySQL to its row in the warehouse.
    fn latency(&self, server: &Mysql, sampling: Sampling) -> Row {
        eprintln!("MySQL insert -> row in Redshift");
        server.run("CREATE DATABASE bench; CREATE TABLE bench.late (id BIGINT PRIMARY KEY, note VARCHAR(100))");
        let mut case = Case::new("bench-late", self.kafka).with_binary(worker_binary());
        case.set(Mysql::PASSWORD.0, Mysql::PASSWORD.1);
        let sink = self.sink(&case, "shop", "table = \"{@table}\"\nmode = \"upsert\"\nevery = \"5s\"");
        case.pipeline("bench", &(mysql::source(server, "bench.late") + &sink));
        let mut worker = case.start("a", &[]);
        let found = |first: usize| -> Vec<usize> {
            // Before the first load there is no table.
            let rows = self.query(&case, &format!("SELECT id FROM $S.late WHERE id >= {first}")).unwrap_or_default();
            rows.iter().map(|id| id.parse().unwrap()).collect()
        };
        server.run("INSERT INTO bench.late VALUES (0, 'warm up')");
        wait::until("the first row is loaded", LIMIT, || (found(0).len() == 1).then_some(()));
        let during = sampling.run.max(MIN_INSERTS);
        let count = (during.as_secs_f64() / INTERVAL.as_secs_f64()) as usize;
        let inserted: Mutex<BTreeMap<usize, Instant>> = Mutex::default();
        let mut late = Vec::with_capacity(count);
        let started = Instant::now();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for id in 1..=count {
                    server.run(&format!("INSERT INTO bench.late VALUES ({id}, 'row {id}')"));
                    inserted.lock().unwrap().insert(id, Instant::now());
                    std::thread::park_timeout((INTERVAL * id as u32).saturating_sub(started.elapsed()));
                }
            });
            while late.len() < count {
                assert!(started.elapsed() < LIMIT && worker.is_running(), "{} rows: {}", late.len(), worker.stderr());
                let first = inserted.lock().unwrap().keys().next().copied();
                let Some(first) = first else {
                    std::thread::park_timeout(Duration::from_millis(10));
                    continue;
                };
                let seen = Instant::now();
                for id in found(first) {
                    // A row may be seen before its insert is noted.
                    let at = inserted.lock().unwrap().remove(&id);
                    late.extend(at.map(|at| seen.saturating_duration_since(at).as_secs_f64()));
                }
                std::thread::park_timeout(Duration::from_millis(20));
            }
        });
        end(worker);
        single(
            "MySQL insert -> row in Redshift, every 5 s, p99",
            "s",
            percentile(&late, 0.99),
            Target::AtMost(MAX_LATENCY),
        )
    }
}

fn single(name: &str, unit: &'static str, measured: f64, target: Target) -> Row {
    Row { name: name.to_owned(), unit, reference: Vec::new(), measured: vec![measured], target }
}
