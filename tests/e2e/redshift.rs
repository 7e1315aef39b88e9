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

/// The table of all types, with its rows.
fn create_types(shop: &Shop<&Mysql>) {
    let file = fs::read_to_string(repository().join("connectors/mysql/tests/types.sql")).unwrap();
    let (from, to) = (file.find("CREATE TABLE ty").unwrap(), file.find("UPDATE ty").unwrap());
    shop.run(&file[from..to]);
}

/// Changes of rows of all types, different in each round.
fn type_changes(round: u64) -> String {
    let id = 100 + round;
    format!(
        "INSERT INTO ty (id, vc, tm6) VALUES ({id}, 'round {round}', '-00:00:00.25'); \
         INSERT INTO ty (id, vc, de, js) SELECT {id} + 50, vc, de, js FROM ty WHERE id = 1; \
         UPDATE ty SET vc = 'r{round}', js = JSON_SET(js, '$.b', {round}), bl = UNHEX(SHA2({round}, 256)), db = db * 3 WHERE id = 1; \
         UPDATE ty SET id = {id} + 100 WHERE id = {id}; DELETE FROM ty WHERE id = {id} + 49;"
    )
}

/// How a column of the types is compared: its expression at each side, and the values.
enum Compared {
    Text,
    /// Zeros at the end of a fraction say nothing.
    Time,
    Json,
}

/// The columns of the table of all types: as texts at both sides.
fn type_columns() -> Vec<(&'static str, String, String, Compared)> {
    let mut columns = Vec::new();
    for name in
        "ti tiu si siu mi miu i iu bi biu de deu boo nu vg sg inv ch vc chl vcl vsj vu16 tx txl lt en enl st".split(' ')
    {
        columns.push((name, name.to_owned(), format!("{name}::text"), Compared::Text));
    }
    for name in ["yr", "fl", "db", "bt"] {
        let (mysql, redshift) = match name {
            "fl" | "db" => (format!("{name} + 0e0"), format!("{name}::float8::text")),
            _ => (format!("{name} + 0"), format!("{name}::text")),
        };
        columns.push((name, mysql, redshift, Compared::Text));
    }
    columns.push(("bt1", "bt1 + 0".to_owned(), "bt1::int::text".to_owned(), Compared::Text));
    for name in ["d", "dt", "dt3", "dt6", "ts", "ts6"] {
        // A date that does not exist is null.
        let mysql = format!("IF(CAST({name} AS CHAR) LIKE '%-00%', NULL, CAST({name} AS CHAR))");
        let zone = if name.starts_with("ts") { " AT TIME ZONE 'UTC'" } else { "" };
        columns.push((name, mysql, format!("({name}{zone})::text"), Compared::Time));
    }
    for name in ["tm", "tm2", "tm6"] {
        columns.push((name, name.to_owned(), format!("{name}::text"), Compared::Time));
    }
    for name in ["bl", "tbl", "lbl", "bn", "vb"] {
        columns.push((name, format!("HEX({name})"), format!("upper(encode({name}, 'hex'))"), Compared::Text));
    }
    for name in ["ge", "po"] {
        let redshift = format!("upper({name}->>'wkb')");
        columns.push((name, format!("SUBSTRING(HEX({name}), 9)"), redshift, Compared::Text));
        columns.push((name, format!("ST_SRID({name})"), format!("{name}->>'srid'"), Compared::Text));
    }
    columns.push(("js", "js".to_owned(), "js::text".to_owned(), Compared::Json));
    columns
}

/// Compares a table of all types, column by column. `condition` selects the rows at the warehouse.
fn assert_types_match(shop: &Shop<&Mysql>, redshift: &Redshift, table: &str, condition: &str) {
    for (name, mysql, expression, compared) in type_columns() {
        let mut expected = shop.run(&format!("SET time_zone = '+00:00'; SELECT id, {mysql} FROM ty"));
        let mut found = redshift.run(&format!("SELECT id, {expression} FROM {table} WHERE {condition}"));
        expected.iter_mut().for_each(|row| *row = row.replace("\tNULL", "\t\\N"));
        let normal = |row: &String| {
            let (id, value) = row.split_once('\t').unwrap();
            let value = match compared {
                Compared::Time if value.contains('.') => value.trim_end_matches('0').trim_end_matches('.').to_owned(),
                Compared::Json if value != "\\N" => normal_json(serde_json::from_str(value).unwrap()).to_string(),
                _ => value.to_owned(),
            };
            (id.parse::<u64>().unwrap(), value)
        };
        let (mut expected, mut found): (Vec<_>, Vec<_>) =
            (expected.drain(..).map(|row| normal(&row)).collect(), found.drain(..).map(|row| normal(&row)).collect());
        expected.sort();
        found.sort();
        assert_eq!(found, expected, "{table}.{name}");
    }
}

/// Numbers with a fraction as the nearest float, without a sign of zero.
fn normal_json(value: serde_json::Value) -> serde_json::Value {
    use serde_json::Value;
    match value {
        Value::Array(items) => items.into_iter().map(normal_json).collect(),
        Value::Object(members) => {
            Value::Object(members.into_iter().map(|(key, value)| (key, normal_json(value))).collect())
        }
        Value::Number(number) if number.as_u64().is_none() && number.as_i64().is_none() => {
            Value::from(number.as_f64().unwrap_or_default() + 0.0)
        }
        other => other,
    }
}

#[test]
fn killed_workers_keep_the_warehouse_equal_to_the_source() {
    let (kafka, s3, redshift) = (need!(Kafka::any()), need!(S3::shared()), need!(Redshift::shared()));
    let shop = Shop::create(need!(Mysql::shared()), 1_000);
    s3.bucket("warehouse");
    redshift.run("CREATE SCHEMA warehouse; CREATE SCHEMA versions");
    create_types(&shop);
    shop.run("ALTER TABLE orders ADD COLUMN gone INT DEFAULT 7");
    let case = case("redshift", kafka);
    let newest = sink(redshift, "warehouse");
    let versions = newest.replace("sinks.dw", "sinks.versions").replace("\"upsert\"", "\"history\"");
    let versions = versions.replace("schema = \"warehouse\"", "schema = \"versions\"");
    case.pipeline("shop", &[shop.source(SMALL_CHUNKS), newest, versions].concat());
    let mut random = Random::new(320);
    let rounds = repetitions(4, 30);
    for round in 0..rounds {
        let worker = case.start("a", &[]);
        shop.run(&writes(&mut random, 1_000, 50));
        shop.run(&type_changes(round));
        if round == rounds / 2 {
            shop.run("TRUNCATE people; ALTER TABLE people MODIFY v BIGINT NOT NULL; REPLACE INTO people VALUES ('p1', 5000000000)");
            shop.run("ALTER TABLE orders DROP COLUMN gone, MODIFY note VARCHAR(2000); UPDATE orders SET note = REPEAT('w', 1500) WHERE id = 7");
        }
        let exit = worker.kill9_after(Duration::from_millis(random.below(LONGEST_LIFE_MS)));
        assert_eq!(exit.signal, Some(libc::SIGKILL), "it ended by itself: {}", exit.describe());
    }
    shop.run(
        "ALTER TABLE orders ADD COLUMN added DECIMAL(12,3); UPDATE orders SET added = 1.5, v = v + 1 WHERE id < 50",
    );
    let summary = case.until_idle("a", LONG);
    for component in ["dw", "versions"] {
        let counters = summary.of(case.name(), component);
        assert_eq!((counters.input, counters.dead_lettered), (counters.output, 0), "{component}: {counters:?}");
    }
    assert_types_match(&shop, redshift, "warehouse.ty", "TRUE");
    assert_types_match(&shop, redshift, "versions.ty", "is_current");
    for (table, columns) in [("orders", "id, v, note, added"), ("people", "name, v")] {
        let mut expected = shop.run(&format!("SELECT {columns} FROM {table}"));
        expected.iter_mut().for_each(|row| *row = row.replace("NULL", "\\N"));
        expected.sort_unstable();
        for (source, condition) in [("warehouse", "TRUE"), ("versions", "is_current")] {
            let mut found = redshift.run(&format!("SELECT {columns} FROM {source}.{table} WHERE {condition}"));
            found.sort_unstable();
            let (rows, wanted) = (found.len(), expected.len());
            assert!(found == expected, "{source}.{table}: {rows} rows found, {wanted} expected");
        }
    }
}
