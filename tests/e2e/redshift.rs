//! MySQL through Kafka to Redshift: the tables of the warehouse equal those of the source, whatever
//! is killed.

use std::fs;
use std::path::Path;
use std::time::Duration;

use trunkline_tests::{
    Case, Kafka, LogWriter, Mysql, Random, Redshift, RedshiftFault, RedshiftFaults, S3, need, repetitions, repository,
    wait,
};

use crate::shop::{SMALL_CHUNKS, Shop, case, writes};
use crate::{LONG, SOURCE, stop};

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

/// Log lines in JSON that are loaded into the table `t`, in small loads.
fn lines_to_table(options: &str) -> String {
    let source = SOURCE.replace("combined", "json").replace("[sources.web]", "[sources.web]\npartitions = 1");
    format!(
        "{source}[sinks.dw]\nconnector = \"redshift\"\ninputs = [\"web\"]\ntable = \"t\"\n\
         commit = {{ records = 200, age = \"1s\", idle = \"500ms\" }}\n{options}"
    )
}

/// Redshift refuses two rows for a reason that the sink does not check: they are dead letters,
/// once, and all others are rows, once. The stand-in refuses texts such as `refuse:1220:why`.
#[test]
fn refused_rows_are_dead_letters_and_the_others_are_loaded() {
    let (kafka, s3, redshift) = (need!(Kafka::any()), need!(S3::shared()), need!(Redshift::shared()));
    s3.bucket("refusals");
    redshift.run("CREATE SCHEMA refusals");
    let case = Case::new("refusals", kafka);
    let mut log = LogWriter::new(case.path("logs/app.log"), 207);
    let line = |id: u32| match id {
        40 | 333 => format!("{{\"id\":{id},\"text\":\"refuse:1220:bad code point\"}}\n"),
        _ => format!("{{\"id\":{id},\"text\":\"fine\"}}\n"),
    };
    (0..400).for_each(|id| log.append_raw(line(id).as_bytes()));
    case.pipeline("refusals", &lines_to_table(&redshift.sink_options(redshift.port(), "refusals", "refusals")));
    // Sometimes it dies in the search for the refused rows.
    let exit = case.start("a", &[]).kill9_after(Duration::from_millis(2_500));
    assert_eq!(exit.signal, Some(libc::SIGKILL), "it ended by itself: {}", exit.describe());
    let summary = case.until_idle("a", LONG);
    let counters = summary.of(case.name(), "dw");
    assert_eq!((counters.input, counters.output, counters.dead_lettered), (400, 398, 2), "{counters:?}");
    let rows = redshift.run("SELECT COUNT(*), COUNT(DISTINCT id) FROM refusals.t");
    assert_eq!(rows, ["398\t398"]);
    let mut dead_letters = kafka.read(&format!("{}.dead-letters", case.name()));
    dead_letters.sort_by_key(|letter| letter.json()["id"].as_u64());
    let ids: Vec<u64> = dead_letters.iter().map(|letter| letter.json()["id"].as_u64().unwrap()).collect();
    assert_eq!(ids, [40, 333]);
    let letter = &dead_letters[0];
    assert_eq!(letter.header("__connect.errors.exception.class.name"), "warehouse.row_refused");
    let reason = letter.header("__connect.errors.exception.message");
    assert!(reason.ends_with("column `text`: bad code point (load error 1220)"), "{reason}");
}

/// A pipeline without records wakes no warehouse.
#[test]
fn an_idle_pipeline_runs_no_statement() {
    let (kafka, s3, redshift) = (need!(Kafka::any()), need!(S3::shared()), need!(Redshift::shared()));
    let stage = s3.bucket("idle").join("stage");
    redshift.run("CREATE SCHEMA idle");
    let proxy = RedshiftFaults::start(redshift.port());
    let case = Case::new("idle", kafka);
    let mut log = LogWriter::new(case.path("logs/app.log"), 208);
    log.append_raw(b"{\"id\":1}\n");
    case.pipeline("idle", &lines_to_table(&redshift.sink_options(proxy.port(), "idle", "idle")));
    let worker = case.start("a", &[]);
    let is_loaded = || redshift.try_run("SELECT id FROM idle.t").is_ok_and(|rows| rows == ["1"]);
    // Its file is removed at the end of a load.
    let is_over = || is_loaded() && !has_files(&stage);
    wait::until("the row is loaded", LONG, || is_over().then_some(()));
    proxy.break_at("", RedshiftFault::Unsent);
    let sent = wait::within(Duration::from_secs(4), || proxy.is_done().then_some(()));
    assert!(sent.is_none(), "a statement was sent without a record");
    log.append_raw(b"{\"id\":2}\n");
    wait::until("a record needs a statement", LONG, || proxy.is_done().then_some(()));
    stop(worker);
}

fn has_files(folder: &Path) -> bool {
    let entries = fs::read_dir(folder).map(|entries| entries.map(|entry| entry.unwrap().path()).collect::<Vec<_>>());
    entries.is_ok_and(|entries| entries.iter().any(|path| path.is_file() || has_files(path)))
}
