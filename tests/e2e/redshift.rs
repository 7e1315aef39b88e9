//! MySQL through Kafka to Redshift: the tables of the warehouse equal those of the source, whatever
//! is killed.

use std::fs;
use std::time::Duration;

use trunkline_tests::{Kafka, Mysql, Random, Redshift, S3, need, repetitions, repository};

use crate::LONG;
use crate::shop::{SMALL_CHUNKS, Shop, case, writes};

/// A worker that lives shorter than this has hardly joined its groups.
const LONGEST_LIFE_MS: u64 = 4_000;

/// The sink of `pipelines/shop-to-warehouse.toml` with the stand-in's addresses, and with small
/// loads, so that there are many moments in which to be killed.
fn sink(redshift: &Redshift, schema: &str) -> String {
    let file = fs::read_to_string(repository().join("pipelines/shop-to-warehouse.toml")).unwrap();
    let (_, sink) = file.split_once("[sinks.dw]").unwrap();
    let (sink, stage) = sink.split_once("[sinks.dw.stage]").unwrap();
    let s3 = format!("http://{}", S3::shared().unwrap().address());
    let own = [
        ("127.0.0.1:5439", format!("127.0.0.1:{}", redshift.port())),
        ("http://127.0.0.1:9000", s3),
        ("s3://lake/stage", format!("s3://{schema}/stage")),
        ("every = \"5s\"", format!("schema = \"{schema}\"\ncommit = {{ records = 300, age = \"1s\", idle = \"1s\" }}")),
    ];
    let text = format!("[sinks.dw]{sink}[sinks.dw.stage]{stage}");
    own.iter().fold(text, |text, (from, to)| {
        assert!(text.contains(from), "the pipeline file has no {from}");
        text.replace(from, to)
    })
}

#[test]
fn killed_workers_keep_the_warehouse_equal_to_the_source() {
    let (kafka, s3, redshift) = (need!(Kafka::any()), need!(S3::shared()), need!(Redshift::shared()));
    let shop = Shop::create(need!(Mysql::shared()), 1_000);
    s3.bucket("warehouse");
    redshift.run("CREATE SCHEMA warehouse");
    let case = case("redshift", kafka);
    case.pipeline("shop", &(shop.source(SMALL_CHUNKS) + &sink(redshift, "warehouse")));
    let mut random = Random::new(320);
    for _ in 0..repetitions(5, 30) {
        let worker = case.start("a", &[]);
        shop.run(&writes(&mut random, 1_000, 50));
        let exit = worker.kill9_after(Duration::from_millis(random.below(LONGEST_LIFE_MS)));
        assert_eq!(exit.signal, Some(libc::SIGKILL), "it ended by itself: {}", exit.describe());
    }
    shop.run(
        "ALTER TABLE orders ADD COLUMN added DECIMAL(12,3); UPDATE orders SET added = 1.5, v = v + 1 WHERE id < 50",
    );
    let summary = case.until_idle("a", LONG);
    let counters = summary.of(case.name(), "dw");
    assert_eq!((counters.input, counters.dead_lettered), (counters.output, 0), "{counters:?}");
    for (table, columns) in [("orders", "id, v, note, added"), ("people", "name, v")] {
        let mut expected = shop.run(&format!("SELECT {columns} FROM {table}"));
        let mut found = redshift.run(&format!("SELECT {columns} FROM warehouse.{table}"));
        expected.iter_mut().for_each(|row| *row = row.replace("NULL", "\\N"));
        expected.sort_unstable();
        found.sort_unstable();
        assert!(found == expected, "{table}: {} rows found, {} expected", found.len(), expected.len());
    }
}
