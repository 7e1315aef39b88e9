//! MySQL to a topic, by snapshot and by binlog, each beside a limit of the same round.
//!
//! | path | its limit |
//! |---|---|
//! | snapshot → topic | the same rows read with sqlx, and dropped |
//! | binlog → topic | a bare transactional producer of the very same records, headers too (but without keys) |
//!
//! MySQL, Kafka and the worker share the machine's processors.

use std::process::ExitCode;
use std::time::Instant;

use sqlx::{AssertSqlSafe, Connection as _, MySqlConnection};
use trunkline_tests::{Case, Kafka, Mysql};

use crate::client::{self, PARTITIONS};
use crate::pipeline::{Path, ROUNDS, measured, run};

/// Rows of one transaction.
const TRANSACTION: u64 = 1_000;

/// About 190 bytes a row: numbers, a decimal, times, texts.
const COLUMNS: &str = "id BIGINT PRIMARY KEY, customer INT UNSIGNED NOT NULL, status TINYINT NOT NULL, price DECIMAL(10,2) NOT NULL, placed DATETIME(6) NOT NULL, \
                       changed TIMESTAMP(3) NOT NULL, email VARCHAR(100) NOT NULL, note VARCHAR(300) NOT NULL";

pub(crate) fn run_all(rows: u64) -> ExitCode {
    let kafka = Kafka::start().unwrap_or_else(|skip| panic!("{skip}"));
    let mysql = Mysql::start().unwrap_or_else(|skip| panic!("{skip}"));
    mysql.run(&format!(
        "SET cte_max_recursion_depth = {rows}; CREATE DATABASE bench; USE bench; CREATE TABLE base ({COLUMNS});
         INSERT INTO base SELECT seq, seq % 100000, seq % 5, seq / 7, '2026-01-02 03:04:05.678901', '2026-01-02 03:04:05.678', CONCAT('somebody.', seq, '@example.org'), \
         REPEAT('n', 120 + seq % 20) FROM (WITH RECURSIVE q (seq) AS (SELECT 1 UNION ALL SELECT seq + 1 FROM q WHERE seq < {rows}) SELECT seq FROM q) t; ANALYZE TABLE base"
    ));
    println!(
        "{rows} rows; {} processors; {ROUNDS} rounds: rows/s, median (lowest-highest)",
        std::thread::available_parallelism().unwrap()
    );
    let mut paths = [Path::new("snapshot -> topic", 0.7, 3.0, 120.0), Path::new("binlog -> topic", 0.6, 3.0, 120.0)];
    for round in 0..ROUNDS {
        paths[0].limits.push(read(&mysql, rows));
        let case = case(&kafka, &mysql, "bench-rows", "base");
        let exit = run(&case);
        assert_eq!(exit.summary().of(case.name(), "shop").output, rows);
        paths[0].runs.push(measured(&exit, &run(&case)));

        mysql.run(&format!("CREATE TABLE bench.orders{round} LIKE bench.base"));
        let case = self::case(&kafka, &mysql, "bench-changes", &format!("orders{round}"));
        run(&case);
        let idle = run(&case);
        let mut inserts = "USE bench;".to_owned();
        for first in (1..=rows).step_by(TRANSACTION as usize) {
            inserts += &format!(
                "INSERT INTO orders{round} SELECT * FROM base WHERE id BETWEEN {first} AND {};",
                first + TRANSACTION - 1
            );
        }
        mysql.run(&inserts);
        let exit = run(&case);
        assert_eq!(exit.summary().of(case.name(), "shop").output, rows);
        paths[1].runs.push(measured(&exit, &idle));
        let records = client::load(&kafka, &format!("{}.bench.orders{round}", case.name()));
        let topic = format!("limit-{round}");
        kafka.create_topic(&topic, PARTITIONS);
        let producer = client::transactional_producer(kafka.brokers(), &topic, &[]);
        paths[1].limits.push(client::produce_again(&producer, &topic, &records).as_secs_f64());
        mysql.run(&format!("DROP TABLE bench.orders{round}"));
    }
    Path::show_all(&paths, rows)
}

fn case(kafka: &Kafka, mysql: &Mysql, test: &str, table: &str) -> Case {
    let mut case = Case::new(test, kafka);
    case.set(Mysql::PASSWORD.0, Mysql::PASSWORD.1);
    let url = mysql.url();
    case.pipeline(
        "bench",
        &format!(
            "name = \"$NAME\"\n[sources.shop]\nconnector = \"mysql\"\nurl = \"{url}\"\ntables = [\"bench.{table}\"]\n"
        ),
    );
    case
}

/// The limit of a snapshot: the rows as sqlx reads them.
fn read(mysql: &Mysql, rows: u64) -> f64 {
    let url = mysql.url().replace(&format!("${{env:{}}}", Mysql::PASSWORD.0), Mysql::PASSWORD.1);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut connection = MySqlConnection::connect(&url).await.unwrap();
        let begun = Instant::now();
        let mut stream = sqlx::query(AssertSqlSafe("SELECT * FROM bench.base")).fetch(&mut connection);
        let mut count = 0;
        while let Some(row) = std::future::poll_fn(|context| stream.as_mut().poll_next(context)).await {
            row.unwrap();
            count += 1;
        }
        assert_eq!(count, rows);
        begun.elapsed().as_secs_f64()
    })
}
