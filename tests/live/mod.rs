//! The sinks `snowflake` and `redshift` on real accounts, which environment variables name: see
//! `README.md` in this folder. Without them, the tests skip.

use std::borrow::Borrow;
use std::time::Duration;

use trunkline_tests::{Case, Kafka, LogWriter, Mysql, Random, Skip, SnowflakeReader, need, query_redshift, repository};

use crate::shop::{self, SMALL_CHUNKS, Shop};
use crate::{LONG, SOURCE};

/// A load of a real warehouse takes seconds, and a worker that lives shorter loads nothing.
const LONGEST_LIFE_MS: u64 = 30_000;

/// Initial rows of each table.
const ROWS: u32 = 1_000;

/// Runs a statement; returns the rows, their columns separated by tabs.
type Run = Box<dyn Fn(&str) -> Vec<String>>;

/// A real warehouse.
struct Warehouse {
    /// The options of a sink, without inputs and tables.
    options: String,
    /// Runs a statement in the sink's schema.
    run: Run,
}

/// The value of a variable, or the skip that names it.
fn variable(name: &str) -> Result<String, Skip> {
    std::env::var(name).map_err(|_| Skip::new(format!("no account: {name} is not set, see tests/live/README.md")))
}

fn snowflake() -> Result<Warehouse, Skip> {
    let mut options = "connector = \"snowflake\"\n".to_owned();
    for key in ["ACCOUNT", "USER", "WAREHOUSE", "DATABASE", "SCHEMA"] {
        variable(&format!("LIVE_SNOWFLAKE_{key}"))?;
        options += &format!("{} = \"${{env:LIVE_SNOWFLAKE_{key}}}\"\n", key.to_lowercase());
    }
    for key in ["PASSWORD", "PRIVATE_KEY", "ROLE", "URL"] {
        if std::env::var_os(format!("LIVE_SNOWFLAKE_{key}")).is_some() {
            options += &format!("{} = \"${{env:LIVE_SNOWFLAKE_{key}}}\"\n", key.to_lowercase());
        }
    }
    options += &format!("stage = {}\n", variable("LIVE_SNOWFLAKE_STAGE")?);
    // Snowflake's own connector reads the tables.
    let reader = SnowflakeReader::find()?;
    let script = repository().join("tests/live/read_snowflake.py");
    let run = move |sql: &str| reader.run(&script, sql);
    Ok(Warehouse { options, run: Box::new(run) })
}

fn redshift() -> Result<Warehouse, Skip> {
    let (url, schema) = (variable("LIVE_REDSHIFT_URL")?, variable("LIVE_REDSHIFT_SCHEMA")?);
    let mut options = "connector = \"redshift\"\nurl = \"${env:LIVE_REDSHIFT_URL}\"\n".to_owned();
    options += &format!("schema = \"{schema}\"\nstage = {}\n", variable("LIVE_REDSHIFT_STAGE")?);
    if std::env::var_os("LIVE_REDSHIFT_TLS").is_some() {
        options += "tls = \"${env:LIVE_REDSHIFT_TLS}\"\n";
    }
    let run = move |sql: &str| query_redshift(&url, &schema, sql).unwrap_or_else(|error| panic!("{error}\n{sql}"));
    Ok(Warehouse { options, run: Box::new(run) })
}

impl Warehouse {
    /// The sink's section. The tables' names begin with `prefix`.
    fn sink(&self, inputs: &str, prefix: &str, table: &str, mode: &str) -> String {
        format!(
            "\n[sinks.dw]\ninputs = [\"{inputs}\"]\ntable = \"{prefix}_{table}\"\nmode = \"{mode}\"\nevery = \"5s\"\n{}",
            self.options
        )
    }

    fn run(&self, sql: &str) -> Vec<String> {
        (self.run)(sql)
    }

    /// Removes the tables of a test, and those that the sink has for itself.
    fn clean(&self, case: &Case, tables: &[String]) {
        let offsets = self.run(&format!(
            "SELECT table_name FROM information_schema.tables WHERE LOWER(table_name) LIKE 'trunkline_%{}%'",
            prefix_of(case)
        ));
        for table in tables.iter().chain(&offsets) {
            self.run(&format!("DROP TABLE IF EXISTS {table}"));
        }
    }
}

/// A prefix of names that no other run uses.
fn prefix_of(case: &Case) -> String {
    case.name().replace('-', "_")
}

/// The AWS credentials of this process, in place of those of the tests' S3 server.
fn with_own_credentials(mut case: Case) -> Case {
    for name in ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"] {
        if let Ok(value) = std::env::var(name) {
            case.set(name, &value);
        }
    }
    case
}

/// Every prerequisite is met, and each line is loaded once while workers are killed.
fn every_line_is_loaded_once(warehouse: &Warehouse, kafka: &Kafka) {
    let case = with_own_credentials(Case::new("live", kafka));
    let prefix = prefix_of(&case);
    case.pipeline("lines", &(SOURCE.to_owned() + &warehouse.sink("web", &prefix, "lines", "append")));
    let checked = case.run_command("validate", &[], &["--check"], LONG);
    assert_eq!(checked.code, Some(0), "{}", checked.describe());
    let mut log = LogWriter::new(case.path("logs/access.log"), 501);
    let mut random = Random::new(501);
    for _ in 0..3 {
        log.append(2_000);
        let exit = case.start("a", &[]).kill9_after(Duration::from_millis(random.below(LONGEST_LIFE_MS)));
        assert_eq!(exit.signal, Some(libc::SIGKILL), "it ended by itself: {}", exit.describe());
    }
    log.append(2_000);
    let summary = case.until_idle("a", 2 * LONG);
    let (lines, counters) = (log.lines(), summary.of(case.name(), "dw"));
    assert_eq!((counters.input, counters.output, counters.dead_lettered), (lines, lines, 0), "{counters:?}");
    let table = format!("{prefix}_lines");
    let found = warehouse.run(&format!("SELECT COUNT(*), COUNT(DISTINCT path), SUM(bytes) FROM {table}"));
    assert_eq!(found, [format!("{lines}\t{lines}\t{}", log.bytes())], "rows, distinct lines, sum of bytes");
    warehouse.clean(&case, &[table]);
}

/// The tables equal those of MySQL after writes of all kinds, a changed schema, and kills.
fn tables_stay_equal<M: Borrow<Mysql>>(warehouse: &Warehouse, kafka: &Kafka, server: M) {
    let shop = Shop::create(server, ROWS);
    let case = with_own_credentials(shop::case("live-shop", kafka));
    let prefix = prefix_of(&case);
    let sink = warehouse.sink("shop", &prefix, "{@table}", "upsert");
    case.pipeline("shop", &(shop.source(SMALL_CHUNKS) + &sink));
    let mut random = Random::new(502);
    for _ in 0..3 {
        let worker = case.start("a", &[]);
        shop.run(&shop::writes(&mut random, u64::from(ROWS), 50));
        let exit = worker.kill9_after(Duration::from_millis(random.below(LONGEST_LIFE_MS)));
        assert_eq!(exit.signal, Some(libc::SIGKILL), "it ended by itself: {}", exit.describe());
    }
    shop.run("ALTER TABLE orders ADD COLUMN added DECIMAL(12,3); UPDATE orders SET added = 1.5 WHERE id < 50");
    let counters = case.until_idle("a", 2 * LONG).of(case.name(), "dw").clone();
    assert_eq!((counters.output, counters.dead_lettered), (counters.input, 0), "{counters:?}");
    let tables = [("orders", "id, v, note, added"), ("people", "name, v")];
    for (table, columns) in tables {
        let mut expected = shop.run(&format!("SELECT {columns} FROM {table}"));
        let mut found = warehouse.run(&format!("SELECT {columns} FROM {prefix}_{table}"));
        expected.sort_unstable();
        found.sort_unstable();
        assert!(found == expected, "{table}: {} rows found, {} expected", found.len(), expected.len());
    }
    warehouse.clean(&case, &tables.map(|(table, _)| format!("{prefix}_{table}")));
}

#[test]
fn snowflake_loads_every_line_once() {
    let (warehouse, kafka) = (need!(snowflake()), need!(Kafka::any()));
    every_line_is_loaded_once(&warehouse, kafka);
}

#[test]
fn snowflake_tables_stay_equal() {
    let (warehouse, kafka) = (need!(snowflake()), need!(Kafka::any()));
    tables_stay_equal(&warehouse, kafka, need!(Mysql::shared()));
}

#[test]
fn redshift_loads_every_line_once() {
    let (warehouse, kafka) = (need!(redshift()), need!(Kafka::any()));
    every_line_is_loaded_once(&warehouse, kafka);
}

#[test]
fn redshift_tables_stay_equal() {
    let (warehouse, kafka) = (need!(redshift()), need!(Kafka::any()));
    tables_stay_equal(&warehouse, kafka, need!(Mysql::shared()));
}
