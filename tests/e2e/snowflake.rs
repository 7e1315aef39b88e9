//! MySQL and log files through Kafka to a stand-in for Snowflake: tables stay equal, and every line
//! is one row, whatever is killed (I2, I4).

use std::borrow::Borrow;
use std::time::Duration;

use trunkline_tests::{Case, Kafka, LogWriter, Mysql, Random, S3, Snowflake, need};

use crate::shop::{self, SMALL_CHUNKS, Shop};
use crate::{LONG, SOURCE};

/// Most workers have only just joined their groups after this time.
const MAX_LIFE_MS: u64 = 4_000;

const ROWS: u32 = 100;

/// A worker that was killed in a load leaves a session with locks, which the next one ends.
const TAKEOVER: &str = "takeover_timeout = \"1s\"\n";

/// The rows of `orders` and `people`, as both sides print them.
fn assert_tables_match<M: Borrow<Mysql>>(shop: &Shop<M>, snowflake: &Snowflake) {
    for (table, columns) in [("orders", "id, v, note, added"), ("people", "name, v")] {
        let mut expected = shop.run(&format!("SELECT {columns} FROM {table}"));
        let mut found = snowflake.query(&format!("SELECT {columns} FROM {table} WHERE deleted_at IS NULL"));
        expected.sort();
        found.sort();
        assert_eq!(found.len(), expected.len(), "rows of {table}");
        assert_eq!(found, expected, "{table}");
    }
}

#[test]
fn tables_stay_equal_through_kills() {
    let (kafka, mysql, s3) = (need!(Kafka::any()), need!(Mysql::shared()), need!(S3::shared()));
    let snowflake = need!(Snowflake::start(s3));
    let case = shop::case("snowflake-tables", kafka);
    s3.bucket(case.name());
    let shop = Shop::create(mysql, ROWS);
    let sink = snowflake.options(s3, case.name());
    case.pipeline(
        "shop",
        &format!(
            "{}\n[sinks.dw]\ninputs = [\"shop\"]\n{sink}table = \"{{@table}}\"\nmode = \"upsert\"\ndeletes = \"soft\"\nevery = \"200ms\"\n{TAKEOVER}",
            shop.source(SMALL_CHUNKS)
        ),
    );
    let mut random = Random::new(401);
    for round in 0..3 {
        shop.run(&shop::writes(&mut random, u64::from(ROWS), 20));
        if round == 1 {
            shop.run("ALTER TABLE orders ADD COLUMN added DECIMAL(12,3), MODIFY note VARCHAR(2000)");
            shop.run(
                "UPDATE orders SET added = 1.125, note = REPEAT('w', 1500), v = v + 1 WHERE id < 9; TRUNCATE people",
            );
        }
        let life = Duration::from_millis(random.below(MAX_LIFE_MS));
        let worker = case.start("a", &[]);
        if round % 2 == 1 {
            snowflake.kill_sessions();
        }
        let exit = worker.kill9_after(life);
        assert_eq!(exit.signal, Some(libc::SIGKILL), "it ended by itself: {}", exit.describe());
    }
    shop.run(&shop::writes(&mut random, u64::from(ROWS), 20));
    let summary = case.until_idle("a", LONG);
    let counters = summary.of(case.name(), "dw");
    assert_eq!((counters.output, counters.dead_lettered), (counters.input, 0), "{counters:?}");
    assert_tables_match(&shop, &snowflake);
}

#[test]
fn every_line_is_appended_once_through_kills() {
    let (kafka, s3) = (need!(Kafka::any()), need!(S3::shared()));
    let snowflake = need!(Snowflake::start(s3));
    let case = Case::new("snowflake-lines", kafka);
    s3.bucket(case.name());
    let sink = snowflake.options(s3, case.name());
    case.pipeline(
        "lines",
        &format!("{SOURCE}\n[sinks.dw]\ninputs = [\"web\"]\n{sink}table = \"lines\"\ncommit = {{ records = 500, age = \"200ms\" }}\n{TAKEOVER}"),
    );
    let mut log = LogWriter::new(case.path("logs/access.log"), 402);
    let mut random = Random::new(402);
    for _ in 0..3 {
        log.append(1_000);
        let exit = case.start("a", &[]).kill9_after(Duration::from_millis(random.below(MAX_LIFE_MS)));
        assert_eq!(exit.signal, Some(libc::SIGKILL), "it ended by itself: {}", exit.describe());
    }
    log.append(1_000);
    let summary = case.until_idle("a", LONG);
    let counters = summary.of(case.name(), "dw");
    assert_eq!(
        (counters.input, counters.output, counters.dead_lettered),
        (log.lines(), log.lines(), 0),
        "{counters:?}"
    );
    let lines = log.lines();
    assert_eq!(snowflake.query("SELECT COUNT(*), COUNT(DISTINCT path) FROM lines"), [format!("{lines}\t{lines}")]);
}
