//! MySQL and MariaDB to topics: workers and servers are killed, and then the change events of the
//! topics result in the rows of the tables.

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use trunkline_tests::{BrokerKind, Case, Kafka, Mysql, Random, Reader, Record, Summary, need, repetitions, wait};

use crate::shop::{OnDrop, SMALL_CHUNKS, Shop, case, writes};
use crate::{LONG, stop};

// The commit protocol with the largest transactions. Chaos kills the other paths on both brokers.
on_each_broker!(kills_within_transactions_lose_and_duplicate_nothing);

#[test]
fn each_table_has_a_topic_with_its_rows_and_changes() {
    let kafka = need!(Kafka::any());
    let shop = Shop::create(need!(Mysql::shared()), 1_000);
    let case = case("mysql", kafka);
    case.pipeline("shop", &shop.source(""));
    let summary = case.until_idle("a", LONG);
    assert_eq!(summary.of(case.name(), "shop").output, 2_000);
    shop.run("UPDATE orders SET v = -1 WHERE id <= 10; DELETE FROM people WHERE name = 'p7'; INSERT INTO audit_log VALUES (1); UPDATE people SET name = 'new' WHERE name = 'p8'");
    let summary = case.until_idle("a", LONG);
    assert_eq!(summary.of(case.name(), "shop").output, 2_000 + 10 + 2 + 3);
    assert_eq!(shop.assert_topics_match(&case, kafka), 2_015);
    assert_eq!(kafka.count(&shop.topic(&case, "audit_log")), 0);
    let record = &kafka.read(&shop.topic(&case, "orders"))[0];
    assert_eq!(
        (record.header("trunkline.database"), record.header("trunkline.table")),
        (shop.database.clone(), "orders".into())
    );
    assert_eq!(record.header("trunkline.schema").len(), 16);
    let packed = format!("database={}&table=orders&schema=", shop.database);
    assert!(record.header("trunkline").starts_with(&packed), "{}", record.header("trunkline"));
    let exit = case.start("a", &["--until-idle"]).wait(LONG);
    assert!(!exit.stderr.contains(Mysql::PASSWORD.1), "{}", exit.stderr);

    // A source whose template gives the topic of another component stops before its first record.
    let topic = format!("topic = \"$NAME.{}.{{@table}}\"", shop.database);
    let copy = shop.source_of(&["orders"], &topic).replace("\"$NAME\"", "\"$NAME-2\"");
    case.pipeline("copy", &copy.replace("sources.shop", "sources.copy"));
    let exit = case.start("a", &["--until-idle"]).wait(LONG);
    assert!(exit.code == Some(1) && exit.stderr.contains("stage.topic_taken"), "{}", exit.describe());
    assert!(exit.stderr.contains("`copy` of the pipeline") && exit.stderr.contains("`shop` of the pipeline"));
    case.remove_pipeline("copy");
    assert_eq!(shop.assert_topics_match(&case, kafka), 2_015);

    // Names with characters that Kafka does not accept have topics of their own.
    shop.run("CREATE TABLE `a$b c` (id INT PRIMARY KEY); INSERT INTO `a$b c` VALUES (1); CREATE TABLE `a.b` (id INT PRIMARY KEY); INSERT INTO `a.b` VALUES (1)");
    case.until_idle("a", LONG);
    assert_eq!(kafka.count(&shop.topic(&case, "a--24b--20c")), 1);
    // Two tables with the same joined name stop the source, whose position is kept.
    let other = format!("{}.a", shop.database);
    shop.run(&format!(
        "CREATE DATABASE `{other}`; CREATE TABLE `{other}`.b (id INT PRIMARY KEY); INSERT INTO `{other}`.b VALUES (1)"
    ));
    let tables = format!("tables = [\"{}*.b\", ", shop.database);
    case.pipeline("shop", &shop.source("").replace("tables = [", &tables));
    let exit = case.start("a", &["--until-idle"]).wait(LONG);
    shop.run(&format!("DROP DATABASE `{other}`"));
    assert!(exit.code == Some(1) && exit.stderr.contains("source.shared_topic"), "{}", exit.describe());
    assert_eq!(kafka.count(&shop.topic(&case, "a.b")), 1);
}

/// How often a test kills its worker.
fn kills() -> u64 {
    repetitions(6, 30)
}

/// Starts and kills workers while the tables are written to; the last worker runs until it is idle.
/// `prepare` is called with the number of each worker before it starts.
pub(crate) fn kill_repeatedly(
    case: &Case,
    seed: u64,
    max_life_ms: u64,
    writes: &(dyn Fn() + Sync),
    prepare: impl Fn(u64),
) -> Summary {
    let mut random = Random::new(seed);
    let mut lives = Vec::new();
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                writes();
            }
        });
        // The writer must stop when an assertion fails, or the scope would wait for it forever.
        let _over = OnDrop(|| is_over.store(true, Ordering::Relaxed));
        for number in 0..kills() {
            prepare(number);
            let life = Duration::from_millis(200 + random.below(max_life_ms));
            let exit = case.start("a", &[]).kill9_after(life);
            assert_eq!(exit.signal, Some(libc::SIGKILL), "the worker ended by itself: {}", exit.describe());
            lives.push(life.as_millis());
        }
    });
    eprintln!("seed {seed}: the workers ran for {lives:?} ms");
    case.until_idle("a", LONG)
}

/// Kills workers while they read a snapshot and concurrent changes.
fn kill_in_the_snapshot(test: &str, shop: &Shop<impl Borrow<Mysql> + Sync>, seed: u64) {
    let kafka = need!(Kafka::any());
    let case = case(test, kafka);
    case.pipeline("shop", &shop.source(SMALL_CHUNKS));
    let random = Mutex::new(Random::new(seed));
    let writes = || drop(shop.run(&writes(&mut random.lock().unwrap(), 5_000, 100)));
    let summary = kill_repeatedly(&case, seed, 2_000, &writes, |_| {});
    let count = shop.assert_topics_match(&case, kafka);
    assert_eq!(summary.of(case.name(), "shop").output, count);
}

#[test]
fn kills_in_the_snapshot_lose_and_duplicate_nothing() {
    kill_in_the_snapshot("mysql-kills", &Shop::create(need!(Mysql::shared()), 5_000), 900);
}

#[test]
fn kills_in_the_snapshot_of_a_mariadb_lose_and_duplicate_nothing() {
    kill_in_the_snapshot("mariadb-kills", &Shop::create(need!(Mysql::start_mariadb()), 5_000), 903);
}

/// Each worker reads one more table, so that each table has a moment at which its snapshot ends and
/// only the binlog remains.
#[test]
fn kills_at_the_end_of_snapshots_lose_and_duplicate_nothing() {
    let kafka = need!(Kafka::any());
    let shop = Shop::create(need!(Mysql::shared()), 100);
    let case = case("mysql-hand-off", kafka);
    let tables: Vec<String> = (0..kills()).map(|number| format!("t{number}")).collect();
    for table in &tables {
        shop.run(&format!(
            "CREATE TABLE {table} (id INT PRIMARY KEY, v INT NOT NULL); INSERT INTO {table} SELECT id, v FROM orders"
        ));
    }
    let random = Mutex::new(Random::new(901));
    let writes = || {
        let mut random = random.lock().unwrap();
        let mut sql = String::new();
        for table in &tables {
            let (id, v) = (random.below(200), random.below(1_000_000));
            let _ = writeln!(
                sql,
                "BEGIN; UPDATE {table} SET v = {v} WHERE id BETWEEN {id} AND {}; REPLACE INTO {table} VALUES ({id}, {v}); COMMIT; DELETE FROM {table} WHERE id = {};",
                id + 9,
                random.below(200)
            );
        }
        drop(shop.run(&sql));
    };
    let pipeline = |number: u64| {
        let selected: Vec<&str> = tables.iter().take(number as usize + 1).map(String::as_str).collect();
        shop.source_of(&selected, SMALL_CHUNKS)
    };
    let summary = kill_repeatedly(&case, 901, 900, &writes, |number| case.pipeline("shop", &pipeline(number)));
    let count: u64 = tables.iter().map(|table| shop.assert_topic_matches(&case, kafka, table)).sum();
    assert_eq!(summary.of(case.name(), "shop").output, count);
}

/// The transactions are so large that most kills are within one. Their markers also show that no
/// transaction is missing or duplicated.
fn kills_within_transactions_lose_and_duplicate_nothing(kind: BrokerKind) {
    let kafka = need!(Kafka::shared(kind));
    let shop = Shop::create(need!(Mysql::shared()), 3_000);
    let case = case("mysql-stream", kafka);
    case.pipeline("shop", &shop.source(&format!("{SMALL_CHUNKS}\ntransaction_markers = true")));
    let random = Mutex::new(Random::new(902));
    let writes = || {
        let mut random = random.lock().unwrap();
        let (step, least) = (1 + random.below(9), random.below(1_000));
        shop.run(&format!(
            "BEGIN; UPDATE orders SET v = v + {step} WHERE id > {least}; UPDATE people SET v = v + 1; REPLACE INTO people VALUES ('new{step}', {least}); \
             UPDATE IGNORE orders SET id = id + 100000 * {step} WHERE id BETWEEN {least} AND {}; COMMIT",
            least + 50
        ));
    };
    let summary = kill_repeatedly(&case, 902, 2_000, &writes, |_| {});
    let records = shop.assert_topics_match(&case, kafka);
    let mut changes: BTreeMap<String, u64> = BTreeMap::new();
    for table in ["orders", "people"] {
        for record in kafka.read(&shop.topic(&case, table)) {
            let id = record.value.as_ref().and_then(|_| record.json()["transaction"]["id"].as_str().map(str::to_owned));
            id.into_iter().for_each(|id| *changes.entry(id).or_default() += 1);
        }
    }
    let markers = kafka.read(&format!("{}.transaction", case.name()));
    let (mut begun, mut ended) = (BTreeMap::new(), BTreeMap::new());
    for marker in &markers {
        let marker = marker.json();
        let id = marker["id"].as_str().unwrap().to_owned();
        let is_duplicate = match marker["status"].as_str() {
            Some("BEGIN") => begun.insert(id, ()).is_some(),
            _ => ended.insert(id, marker["event_count"].as_u64().unwrap()).is_some(),
        };
        assert!(!is_duplicate, "duplicate marker: {marker}");
    }
    assert_eq!(ended, changes);
    assert!(begun.keys().eq(ended.keys()));
    assert_eq!(summary.of(case.name(), "shop").output, records + markers.len() as u64);
}

#[test]
fn a_server_that_crashes_is_followed_again() {
    let kafka = need!(Kafka::any());
    let mut shop = Shop::create(need!(Mysql::start()), 500);
    let case = case("mysql-down", kafka);
    case.pipeline("shop", &shop.source(""));
    let mut worker = case.start("a", &[]);
    shop.wait_for_records(&case, kafka, &mut worker, "orders", 500);
    for round in 1..=3 {
        shop.run(&format!("UPDATE orders SET v = v + {round}"));
        let reported = worker.stderr().matches("mysql.unreachable").count();
        if round % 2 == 0 {
            shop.server.stop()
        } else {
            shop.server.kill9()
        }
        wait::until("the worker reports that the server is unreachable", LONG, || {
            (worker.stderr().matches("mysql.unreachable").count() > reported).then_some(())
        });
        shop.server.restart();
        shop.wait_for_records(&case, kafka, &mut worker, "orders", 500 * (round + 1));
    }
    stop(worker);
    case.until_idle("a", LONG);
    assert_eq!(shop.assert_topics_match(&case, kafka), 500 + 500 * 4);
}

#[test]
fn a_requested_snapshot_reads_tables_again_while_a_worker_follows() {
    let kafka = need!(Kafka::any());
    let shop = Shop::create(need!(Mysql::shared()), 400);
    let case = case("mysql-again", kafka);
    case.pipeline("shop", &shop.source("chunk_rows = 50"));
    let source = format!("{}.shop", case.name());
    let (orders, people) = (format!("{}.orders", shop.database), format!("{}.people", shop.database));
    let snapshot = |tables: &str| case.run_command("snapshot", &[&source], &["--tables", tables], LONG);
    let too_early = snapshot(&orders);
    assert_eq!(too_early.code, Some(2), "{}", too_early.describe());
    let mut worker = case.start("a", &[]);
    shop.wait_for_records(&case, kafka, &mut worker, "orders", 400);
    shop.wait_for_records(&case, kafka, &mut worker, "people", 400);
    let unknown = snapshot(&format!("{}.nothing", shop.database));
    assert_eq!(unknown.code, Some(2), "{}", unknown.describe());
    assert!(unknown.stderr.contains(&format!("{orders}, {people}")), "{}", unknown.describe());
    shop.run("UPDATE people SET v = v + 1");
    let requested = snapshot(&format!("{}.ord*", shop.database));
    assert_eq!(requested.code, Some(0), "{}", requested.describe());
    assert_eq!(requested.stdout.trim(), orders);
    shop.run("UPDATE orders SET v = v + 1 WHERE id <= 100; DELETE FROM people WHERE v % 2 = 0");
    let left = shop.rows("people");
    // A row that changes while its chunk is read has only the record of the change.
    shop.wait_for_records(&case, kafka, &mut worker, "orders", 400 + 300 + 100);
    let people_records = 400 + 400 + 2 * (400 - left);
    shop.wait_for_records(&case, kafka, &mut worker, "people", people_records);
    // A condition selects rows. MySQL checks it before the request is stored.
    let snapshot_where =
        |condition: &str| case.run_command("snapshot", &[&source], &["--tables", &people, "--where", condition], LONG);
    for invalid in ["nothing = 1", "v = 1; DROP TABLE people"] {
        let refused = snapshot_where(invalid);
        assert_eq!(refused.code, Some(2), "{}", refused.describe());
        assert!(refused.stderr.contains(invalid), "{}", refused.describe());
    }
    let tenth = left / 10;
    let condition = format!("v IN (SELECT v FROM (SELECT v FROM {people} ORDER BY name LIMIT {tenth}) few)");
    let requested = snapshot_where(&condition);
    assert_eq!(requested.code, Some(0), "{}", requested.describe());
    let people_records = people_records + tenth;
    shop.wait_for_records(&case, kafka, &mut worker, "people", people_records);
    stop(worker);
    let summary = case.until_idle("a", LONG);
    let count = shop.assert_topics_match(&case, kafka);
    assert_eq!(summary.of(case.name(), "shop").output, count);
    assert!((800..=900).contains(&(count - people_records)), "{count}, {people_records} of them people");
}

/// Rows that vanished without a change event: the binlog lacks the statement.
#[test]
fn a_snapshot_with_deletes_deletes_the_rows_that_it_does_not_find() {
    let kafka = need!(Kafka::any());
    let shop = Shop::create(need!(Mysql::shared()), 300);
    let case = case("mysql-deletes", kafka);
    case.pipeline("shop", &shop.source("chunk_rows = 50"));
    let source = format!("{}.shop", case.name());
    let orders = format!("{}.orders", shop.database);
    let mut worker = case.start("a", &[]);
    shop.wait_for_records(&case, kafka, &mut worker, "orders", 300);
    shop.wait_for_records(&case, kafka, &mut worker, "people", 300);
    shop.run("DELETE FROM orders WHERE id = 1");
    shop.run("SET SESSION sql_log_bin = 0; DELETE FROM orders WHERE id <= 100; DELETE FROM people WHERE v <= 10");
    let requested = case.run_command("snapshot", &[&source], &["--tables", &orders, "--with-deletes"], LONG);
    assert_eq!(requested.code, Some(0), "{}", requested.describe());
    shop.run("UPDATE orders SET v = v + 1 WHERE id > 290; INSERT INTO orders VALUES (1000, 1, NULL)");
    // One deletion in the stream and 99 others, each with its tombstone. A row that changes while
    // its chunk is read has only the record of the change.
    let records = 300 + 2 + 200 + 2 * 99;
    shop.wait_for_records(&case, kafka, &mut worker, "orders", records);
    stop(worker);
    let summary = case.until_idle("a", LONG);
    let count = shop.assert_topic_matches(&case, kafka, "orders");
    assert!((records..=records + 12).contains(&count), "{count}");
    assert_eq!(kafka.count(&shop.topic(&case, "people")), 300, "no snapshot of `people` was requested");
    assert_eq!(summary.of(case.name(), "shop").output, count + 300);
    let deleted: Vec<Record> = kafka.read(&shop.topic(&case, "orders"));
    let last = deleted.iter().rfind(|record| record.value.is_some() && record.json()["op"] == "d").unwrap();
    assert_eq!(last.header("trunkline.table"), "orders");
    assert_eq!(last.header("trunkline.schema").len(), 16);

    let refused =
        case.run_command("snapshot", &[&source], &["--tables", &orders, "--with-deletes", "--where", "v = 1"], LONG);
    assert_eq!(refused.code, Some(2), "a condition does not find all rows: {}", refused.describe());
}

/// The binlog after the position was purged: the new snapshot deletes what it does not find.
#[test]
fn a_snapshot_after_a_gap_deletes_the_rows_that_it_does_not_find() {
    let kafka = need!(Kafka::any());
    let shop = Shop::create(need!(Mysql::start_mariadb()), 200);
    let case = case("mysql-gap", kafka);
    case.pipeline("shop", &shop.source("on_purged = \"resnapshot\""));
    case.until_idle("a", LONG);
    shop.run(
        "DELETE FROM orders WHERE id % 2 = 0; DELETE FROM people WHERE v <= 50; INSERT INTO people VALUES ('new', 7)",
    );
    shop.run("FLUSH BINARY LOGS");
    // The server notices a closed connection late, and keeps the files that it reads.
    wait::until("the server has purged its binlog", LONG, || {
        shop.run("PURGE BINARY LOGS BEFORE NOW() + INTERVAL 1 DAY");
        (shop.run("SHOW BINARY LOGS").len() == 1).then_some(())
    });
    let summary = case.until_idle("a", LONG);
    let count = shop.assert_topics_match(&case, kafka);
    assert_eq!(count, 400 + (100 + 151) + 2 * (100 + 50));
    assert_eq!(summary.of(case.name(), "shop").output, count);
    let again = case.until_idle("a", LONG);
    assert_eq!(again.of(case.name(), "shop").output, count, "the deletes are not repeated");
}

#[test]
fn ddl_and_transaction_markers_go_to_side_topics() {
    let kafka = need!(Kafka::any());
    let shop = Shop::create(need!(Mysql::shared()), 50);
    let case = case("mysql-ports", kafka);
    let more = "ddl = true\ntransaction_markers = true\napply = [\"mask\"]\n[transforms.mask]\nplugin = \"mask.wasm\"\nconfig = { fields = [\"ddl\"] }";
    case.pipeline("shop", &shop.source(more));
    let mut worker = case.start("a", &[]);
    shop.wait_for_records(&case, kafka, &mut worker, "people", 50);
    shop.run(
        "ALTER TABLE orders ADD w INT; BEGIN; UPDATE orders SET w = 1 WHERE id <= 3; DELETE FROM people WHERE name = 'p1'; COMMIT; CREATE USER x IDENTIFIED BY 'secret'",
    );
    shop.wait_for_records(&case, kafka, &mut worker, "people", 52);
    stop(worker);
    let summary = case.until_idle("a", LONG);
    let ddl = kafka.read(&format!("{}.ddl", case.name()));
    let statements: Vec<_> = ddl.iter().map(|record| record.json()["ddl"].as_str().unwrap().to_owned()).collect();
    assert_eq!(statements, ["ALTER TABLE orders ADD w INT"]);
    let markers: Vec<_> = kafka.read(&format!("{}.transaction", case.name())).iter().map(Record::json).collect();
    assert_eq!((markers[0]["status"].as_str(), markers[1]["event_count"].as_u64()), (Some("BEGIN"), Some(4)));
    let records = shop.assert_topics_match(&case, kafka);
    assert_eq!((markers.len(), summary.of(case.name(), "shop").output), (2, records + 3));
}

#[test]
fn another_node_continues_at_the_position_of_the_last_one() {
    let kafka = need!(Kafka::any());
    let shop = Shop::create(need!(Mysql::shared()), 500);
    let mut case = case("mysql-nodes", kafka);
    case.pipeline("shop", &shop.source(""));
    case.set("TRUNKLINE_NODE", "node-a");
    let mut first = case.start("a", &[]);
    shop.wait_for_records(&case, kafka, &mut first, "people", 500);
    case.set("TRUNKLINE_NODE", "node-b");
    let mut second = case.start("b", &[]);
    shop.run("UPDATE people SET v = v + 1");
    shop.wait_for_records(&case, kafka, &mut first, "people", 1_000);
    first.kill9();
    shop.run("UPDATE people SET v = v + 1; DELETE FROM people WHERE v % 2 = 0");
    let people_records = 1_500 + 2 * (500 - shop.rows("people"));
    shop.wait_for_records(&case, kafka, &mut second, "people", people_records);
    stop(second);
    assert_eq!(shop.assert_topics_match(&case, kafka), 500 + people_records);
}

#[test]
fn typed_rows_reach_the_lake() {
    let (kafka, reader) = (need!(Kafka::any()), need!(Reader::find()));
    let shop = Shop::create(need!(Mysql::shared()), 300);
    let case = case("mysql-lake", kafka);
    shop.run("ALTER TABLE orders ADD price DECIMAL(20,4), ADD big BIGINT UNSIGNED, ADD at DATETIME(6), ADD d DATE, ADD raw VARBINARY(9);
               UPDATE orders SET price = id / 7, big = 18446744073709551615, at = '2026-01-02 03:04:05.678901', d = '2026-01-02', raw = x'00ff'");
    let lake = "[sinks.lake]\nconnector = \"s3\"\ninputs = [\"shop\"]\nurl = \"file://$DIR/lake\"\npath = \"table={@table}\"\nrotate = { idle = \"500ms\" }\n";
    case.pipeline("shop", &(shop.source("envelope = \"row\"") + lake));
    let summary = case.until_idle("a", LONG);
    let written = summary.of(case.name(), "lake");
    assert_eq!((written.output, written.dead_lettered), (600, 0), "{written:?}");
    let found = reader.read_with_sums(&case.path("lake"), &["v"], &["v"]);
    assert_eq!((found.rows, found.sums["v"]), (600, 2 * (1..=300).sum::<i64>()));
}
