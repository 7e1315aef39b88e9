//! MySQL and MariaDB to topics: workers and servers are killed at any moment, and then the topics, folded, hold what the tables hold, row by row.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use trunkline_tests::{Case, Kafka, Mysql, Random, Reader, Record, Summary, Worker, need, wait};

use crate::LONG;

/// Small chunks: many moments in which to be killed.
pub(crate) fn source(mysql: &Mysql, more: &str) -> String {
    format!(
        "name = \"$NAME\"\n[sources.shop]\nconnector = \"mysql\"\nurl = \"{}\"\ntables = [\"shop.*\", \"!shop.audit_*\"]\n{more}\n",
        mysql.url()
    )
}

pub(crate) fn case(test: &str, kafka: &Kafka) -> Case {
    let mut case = Case::new(test, kafka);
    case.set(Mysql::PASSWORD.0, Mysql::PASSWORD.1);
    case
}

pub(crate) fn create(mysql: &Mysql, rows: u32) {
    mysql.run(&format!(
        "/*!80000 SET cte_max_recursion_depth = 1000000 */; /*M! SET max_recursive_iterations = 1000000 */; CREATE DATABASE shop; USE shop; CREATE TABLE orders (id INT PRIMARY KEY, v INT NOT NULL, note VARCHAR(300));
         CREATE TABLE people (name VARCHAR(20) PRIMARY KEY, v INT NOT NULL); CREATE TABLE audit_log (id INT PRIMARY KEY);
         INSERT INTO orders SELECT seq, seq, REPEAT('n', seq % 200) FROM (WITH RECURSIVE q (seq) AS (SELECT 1 UNION ALL SELECT seq + 1 FROM q WHERE seq < {rows}) SELECT seq FROM q) t;
         INSERT INTO people SELECT CONCAT('p', seq), seq FROM (WITH RECURSIVE q (seq) AS (SELECT 1 UNION ALL SELECT seq + 1 FROM q WHERE seq < {rows}) SELECT seq FROM q) t"
    ));
}

/// Transactions of one writer, some of them large, some rolled back.
pub(crate) fn writes(random: &mut Random, rows: u64, transactions: u64) -> String {
    let mut sql = "USE shop;\n".to_owned();
    for _ in 0..transactions {
        sql.push_str("BEGIN;\n");
        for _ in 0..=random.below(4) {
            let (id, v) = (random.below(rows * 2), random.below(1_000_000));
            let _ = match random.below(7) {
                0 => writeln!(sql, "INSERT IGNORE INTO orders VALUES ({id}, {v}, 'new');"),
                1 => writeln!(sql, "UPDATE orders SET v = {v} WHERE id BETWEEN {id} AND {};", id + random.below(200)),
                2 => writeln!(sql, "DELETE FROM orders WHERE id = {id};"),
                3 => writeln!(sql, "UPDATE IGNORE orders SET id = {} WHERE id = {id};", random.below(rows * 2)),
                4 => writeln!(sql, "REPLACE INTO people VALUES ('p{id}', {v});"),
                5 => writeln!(sql, "DELETE FROM people WHERE name = 'p{id}';"),
                _ => writeln!(sql, "INSERT IGNORE INTO audit_log VALUES ({id});"),
            };
        }
        sql.push_str(if random.below(8) == 0 { "ROLLBACK;\n" } else { "COMMIT;\n" });
    }
    sql
}

/// What a reader of a topic ends with, by key; that no record contradicts the ones before it is checked on the way.
fn fold(records: &[Record]) -> BTreeMap<String, i64> {
    let mut rows: BTreeMap<String, i64> = BTreeMap::new();
    // The records of one key are in one partition, in order.
    for record in records {
        let key = String::from_utf8(record.key.clone().expect("a key")).unwrap();
        if record.value.is_none() {
            assert!(!rows.contains_key(&key), "a tombstone of a row that is there: {key}");
            continue;
        }
        let value = record.json();
        let v = value["after"]["v"].as_i64();
        let before = value["before"]["v"].as_i64();
        match value["op"].as_str().unwrap() {
            "r" => {
                let known = rows.insert(key.clone(), v.unwrap());
                assert!(
                    known.is_none_or(|known| Some(known) == v),
                    "a row of the snapshot is older than a change: {key}"
                );
            }
            "c" => assert_eq!(rows.insert(key.clone(), v.unwrap()), None, "created twice: {key}"),
            // A row whose chunk was not read yet may change first.
            "u" => assert!(
                rows.insert(key.clone(), v.unwrap()).is_none_or(|known| Some(known) == before),
                "lost a change: {key}"
            ),
            "d" => assert!(rows.remove(&key).is_none_or(|known| Some(known) == before), "lost a change: {key}"),
            other => panic!("op {other}"),
        }
    }
    rows
}

/// Checks that the topics hold what the tables hold; gives how many records there are.
pub(crate) fn assert_same(case: &Case, kafka: &Kafka, mysql: &Mysql) -> u64 {
    ["orders", "people"].iter().map(|table| assert_same_table(case, kafka, mysql, table)).sum()
}

fn assert_same_table(case: &Case, kafka: &Kafka, mysql: &Mysql, table: &str) -> u64 {
    let key = if table == "people" { "CONCAT('{\"name\":\"', name, '\"}')" } else { "CONCAT('{\"id\":', id, '}')" };
    let records = kafka.read(&format!("{}.shop.{table}", case.name()));
    let rows = mysql.run(&format!("SELECT {key}, v FROM shop.{table}"));
    let rows: BTreeMap<String, i64> = rows
        .iter()
        .map(|line| line.split_once('\t').unwrap())
        .map(|(key, v)| (key.to_owned(), v.parse().unwrap()))
        .collect();
    assert_eq!(fold(&records), rows, "{table}");
    records.len() as u64
}

#[test]
fn rows_and_their_changes_reach_a_topic_a_table() {
    let (kafka, mysql) = (need!(Kafka::shared()), need!(Mysql::start()));
    let case = case("mysql", kafka);
    create(&mysql, 1_000);
    case.pipeline("shop", &source(&mysql, ""));
    let summary = case.until_idle("a", LONG);
    assert_eq!(summary.of(case.name(), "shop").output, 2_000);
    mysql.run("USE shop; UPDATE orders SET v = -1 WHERE id <= 10; DELETE FROM people WHERE name = 'p7'; INSERT INTO audit_log VALUES (1); UPDATE people SET name = 'new' WHERE name = 'p8'");
    let summary = case.until_idle("a", LONG);
    assert_eq!(summary.of(case.name(), "shop").output, 2_000 + 10 + 2 + 3);
    assert_eq!(assert_same(&case, kafka, &mysql), 2_015);
    assert_eq!(kafka.count(&format!("{}.shop.audit_log", case.name())), 0);
    let record = &kafka.read(&format!("{}.shop.orders", case.name()))[0];
    assert_eq!(
        (record.header("trunkline.database"), record.header("trunkline.table")),
        ("shop".into(), "orders".into())
    );
    assert_eq!(record.header("trunkline.schema").len(), 16);
    let exit = case.start("a", &["--until-idle"]).wait(LONG);
    let said = exit.describe();
    let said = said.split_once("it said:").expect("what it said").1;
    assert!(!said.contains(Mysql::PASSWORD.1), "{said}");
}

/// How often a test kills its worker: seldom enough for every day, unless somebody asks for more.
fn kills() -> u64 {
    std::env::var("TRUNKLINE_TEST_KILLS").map_or(6, |count| count.parse().expect("a number in TRUNKLINE_TEST_KILLS"))
}

/// Lets workers live and die while the tables are written to; the last one finishes. Before each life `prepare` is told its number.
fn live_and_die(case: &Case, seed: u64, longest: u64, writes: &(dyn Fn() + Sync), prepare: impl Fn(u64)) -> Summary {
    let mut random = Random::new(seed);
    let mut lives = Vec::new();
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                writes();
            }
        });
        // A failed assertion must not leave the writer at it.
        let _over = OnDrop(|| is_over.store(true, Ordering::Relaxed));
        for life in 0..kills() {
            prepare(life);
            let lived = Duration::from_millis(200 + random.below(longest));
            let exit = case.start("a", &[]).kill9_after(lived);
            assert_eq!(exit.signal, Some(libc::SIGKILL), "it ended by itself: {}", exit.describe());
            lives.push(lived.as_millis());
        }
    });
    eprintln!("seed {seed}: the workers lived {lives:?} ms");
    case.until_idle("a", LONG)
}

pub(crate) struct OnDrop<F: Fn()>(pub(crate) F);

impl<F: Fn()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

pub(crate) const SMALL_CHUNKS: &str = "chunk_rows = 50\ncommit_interval = \"20ms\"";

/// Workers are killed while they read a snapshot and what comes meanwhile.
fn kill_in_the_snapshot(test: &str, mysql: &Mysql, seed: u64) {
    let kafka = need!(Kafka::shared());
    let case = case(test, kafka);
    create(mysql, 5_000);
    case.pipeline("shop", &source(mysql, SMALL_CHUNKS));
    let random = Mutex::new(Random::new(seed));
    let writes = || drop(mysql.run(&writes(&mut random.lock().unwrap(), 5_000, 100)));
    let summary = live_and_die(&case, seed, 2_000, &writes, |_| {});
    let count = assert_same(&case, kafka, mysql);
    assert_eq!(summary.of(case.name(), "shop").output, count);
}

/// In each life another table is read, so that each has the moment in which its snapshot ends and the stream goes on alone.
#[test]
fn kills_in_the_snapshot_lose_and_double_nothing() {
    kill_in_the_snapshot("mysql-kills", &need!(Mysql::start()), 900);
}

#[test]
fn kills_in_the_snapshot_of_a_mariadb_lose_and_double_nothing() {
    kill_in_the_snapshot("mariadb-kills", &need!(Mysql::start_mariadb()), 903);
}

#[test]
fn kills_at_the_hand_off_lose_and_double_nothing() {
    let (kafka, mysql) = (need!(Kafka::shared()), need!(Mysql::start()));
    let case = case("mysql-hand-off", kafka);
    create(&mysql, 100);
    let tables: Vec<String> = (0..kills()).map(|number| format!("t{number}")).collect();
    for table in &tables {
        mysql.run(&format!("USE shop; CREATE TABLE {table} (id INT PRIMARY KEY, v INT NOT NULL); INSERT INTO {table} SELECT id, v FROM orders"));
    }
    let random = Mutex::new(Random::new(901));
    let writes = || {
        let mut random = random.lock().unwrap();
        let mut sql = "USE shop;\n".to_owned();
        for table in &tables {
            let (id, v) = (random.below(200), random.below(1_000_000));
            let _ = writeln!(
                sql,
                "BEGIN; UPDATE {table} SET v = {v} WHERE id BETWEEN {id} AND {}; REPLACE INTO {table} VALUES ({id}, {v}); COMMIT; DELETE FROM {table} WHERE id = {};",
                id + 9,
                random.below(200)
            );
        }
        drop(mysql.run(&sql));
    };
    let taken = |life: u64| {
        let some: Vec<String> = (0..=life).map(|number| format!("\"shop.t{number}\"")).collect();
        source(&mysql, SMALL_CHUNKS).replace("\"shop.*\", \"!shop.audit_*\"", &some.join(", "))
    };
    let summary = live_and_die(&case, 901, 900, &writes, |life| case.pipeline("shop", &taken(life)));
    let count: u64 = tables.iter().map(|table| assert_same_table(&case, kafka, &mysql, table)).sum();
    assert_eq!(summary.of(case.name(), "shop").output, count);
}

/// Transactions so large that most moments are within one. Their markers tell too that none was lost or came twice.
#[test]
fn kills_within_transactions_lose_and_double_nothing() {
    let (kafka, mysql) = (need!(Kafka::shared()), need!(Mysql::start()));
    let case = case("mysql-stream", kafka);
    create(&mysql, 3_000);
    case.pipeline("shop", &source(&mysql, &format!("{SMALL_CHUNKS}\ntransaction_markers = true")));
    let random = Mutex::new(Random::new(902));
    let writes = || {
        let mut random = random.lock().unwrap();
        let (step, least) = (1 + random.below(9), random.below(1_000));
        mysql.run(&format!(
            "USE shop; BEGIN; UPDATE orders SET v = v + {step} WHERE id > {least}; UPDATE people SET v = v + 1; REPLACE INTO people VALUES ('new{step}', {least}); \
             UPDATE IGNORE orders SET id = id + 100000 * {step} WHERE id BETWEEN {least} AND {}; COMMIT",
            least + 50
        ));
    };
    let summary = live_and_die(&case, 902, 2_000, &writes, |_| {});
    let rows = assert_same(&case, kafka, &mysql);
    let mut changes: BTreeMap<String, u64> = BTreeMap::new();
    for table in ["orders", "people"] {
        for record in kafka.read(&format!("{}.shop.{table}", case.name())) {
            let id = record.value.as_ref().and_then(|_| record.json()["transaction"]["id"].as_str().map(str::to_owned));
            id.into_iter().for_each(|id| *changes.entry(id).or_default() += 1);
        }
    }
    let markers = kafka.read(&format!("{}.transaction", case.name()));
    let (mut begun, mut ended) = (BTreeMap::new(), BTreeMap::new());
    for marker in &markers {
        let marker = marker.json();
        let id = marker["id"].as_str().unwrap().to_owned();
        let before = match marker["status"].as_str() {
            Some("BEGIN") => begun.insert(id, ()).is_some(),
            _ => ended.insert(id, marker["event_count"].as_u64().unwrap()).is_some(),
        };
        assert!(!before, "a marker came twice: {marker}");
    }
    assert_eq!(ended, changes);
    assert!(begun.keys().eq(ended.keys()));
    assert_eq!(summary.of(case.name(), "shop").output, rows + markers.len() as u64);
}

pub(crate) fn wait_for_records(case: &Case, kafka: &Kafka, worker: &mut Worker, topic: &str, count: u64) {
    let topic = format!("{}.shop.{topic}", case.name());
    wait::until(&format!("{count} records in {topic}"), LONG, || {
        assert!(worker.runs(), "{}", worker.stderr());
        (kafka.count(&topic) >= count).then_some(())
    });
}

#[test]
fn a_server_that_crashes_and_comes_back() {
    let (kafka, mut mysql) = (need!(Kafka::shared()), need!(Mysql::start()));
    let case = case("mysql-down", kafka);
    create(&mysql, 500);
    case.pipeline("shop", &source(&mysql, ""));
    let mut worker = case.start("a", &[]);
    wait_for_records(&case, kafka, &mut worker, "orders", 500);
    for round in 1..=3 {
        mysql.run(&format!("USE shop; UPDATE orders SET v = v + {round}"));
        if round % 2 == 0 {
            mysql.stop()
        } else {
            mysql.kill9()
        }
        wait::until("the worker tells that the server is gone", LONG, || {
            worker.stderr().contains("mysql.unreachable").then_some(())
        });
        mysql.restart();
        wait_for_records(&case, kafka, &mut worker, "orders", 500 * (round + 1));
    }
    worker.sigterm();
    let exit = worker.wait(LONG);
    assert_eq!(exit.code, Some(0), "{}", exit.describe());
    case.until_idle("a", LONG);
    assert_eq!(assert_same(&case, kafka, &mysql), 500 + 500 * 4);
}

#[test]
fn tables_are_read_again_while_a_worker_follows() {
    let (kafka, mysql) = (need!(Kafka::shared()), need!(Mysql::start()));
    let case = case("mysql-again", kafka);
    create(&mysql, 400);
    case.pipeline("shop", &source(&mysql, "chunk_rows = 50"));
    let snapshot =
        |tables: &str| case.run_verb("snapshot", &[&format!("{}.shop", case.name())], &["--tables", tables], LONG);
    let too_early = snapshot("shop.orders");
    assert_eq!(too_early.code, Some(2), "{}", too_early.describe());
    let mut worker = case.start("a", &[]);
    wait_for_records(&case, kafka, &mut worker, "orders", 400);
    wait_for_records(&case, kafka, &mut worker, "people", 400);
    let wrong = snapshot("shop.nothing");
    assert_eq!(wrong.code, Some(2), "{}", wrong.describe());
    assert!(wrong.describe().contains("shop.orders, shop.people"), "{}", wrong.describe());
    mysql.run("USE shop; UPDATE people SET v = v + 1");
    let asked = snapshot("shop.ord*");
    assert_eq!(asked.code, Some(0), "{}", asked.describe());
    assert_eq!(asked.stdout.trim(), "shop.orders");
    mysql.run("USE shop; UPDATE orders SET v = v + 1 WHERE id <= 100; DELETE FROM people WHERE v % 2 = 0");
    let left: u64 = mysql.run("SELECT COUNT(*) FROM shop.people")[0].parse().unwrap();
    // A row that changes while its chunk is read comes as that change alone.
    wait_for_records(&case, kafka, &mut worker, "orders", 400 + 300 + 100);
    let people = 400 + 400 + 2 * (400 - left);
    wait_for_records(&case, kafka, &mut worker, "people", people);
    // Some of the rows, by a condition that MySQL is asked about before anything is changed.
    let chosen = |condition: &str| {
        let source = format!("{}.shop", case.name());
        case.run_verb("snapshot", &[&source], &["--tables", "shop.people", "--where", condition], LONG)
    };
    for wrong in ["nothing = 1", "v = 1; DROP TABLE people"] {
        let refused = chosen(wrong);
        assert_eq!(refused.code, Some(2), "{}", refused.describe());
        assert!(refused.describe().contains(wrong), "{}", refused.describe());
    }
    let tenth = left / 10;
    let asked = chosen(&format!("v IN (SELECT v FROM (SELECT v FROM shop.people ORDER BY name LIMIT {tenth}) few)"));
    assert_eq!(asked.code, Some(0), "{}", asked.describe());
    let people = people + tenth;
    wait_for_records(&case, kafka, &mut worker, "people", people);
    worker.sigterm();
    let exit = worker.wait(LONG);
    assert_eq!(exit.code, Some(0), "{}", exit.describe());
    let summary = case.until_idle("a", LONG);
    let count = assert_same(&case, kafka, &mysql);
    assert_eq!(summary.of(case.name(), "shop").output, count);
    assert!((800..=900).contains(&(count - people)), "{count}, {people} of them people");
}

#[test]
fn definitions_and_markers_have_topics_of_their_own() {
    let (kafka, mysql) = (need!(Kafka::shared()), need!(Mysql::start()));
    let case = case("mysql-ports", kafka);
    create(&mysql, 50);
    let more = "ddl = true\ntransaction_markers = true\napply = [\"mask\"]\n[transforms.mask]\nplugin = \"mask.wasm\"\nconfig = { fields = [\"ddl\"] }";
    case.pipeline("shop", &source(&mysql, more));
    let mut worker = case.start("a", &[]);
    wait_for_records(&case, kafka, &mut worker, "people", 50);
    mysql.run(
        "USE shop; ALTER TABLE orders ADD w INT; BEGIN; UPDATE orders SET w = 1 WHERE id <= 3; DELETE FROM people WHERE name = 'p1'; COMMIT; CREATE USER x IDENTIFIED BY 'secret'",
    );
    wait_for_records(&case, kafka, &mut worker, "people", 52);
    worker.sigterm();
    let exit = worker.wait(LONG);
    assert_eq!(exit.code, Some(0), "{}", exit.describe());
    let summary = case.until_idle("a", LONG);
    let ddl = kafka.read(&format!("{}.ddl", case.name()));
    let told: Vec<_> = ddl.iter().map(|record| record.json()["ddl"].as_str().unwrap().to_owned()).collect();
    assert_eq!(told, ["ALTER TABLE orders ADD w INT"]);
    let markers: Vec<_> = kafka.read(&format!("{}.transaction", case.name())).iter().map(Record::json).collect();
    assert_eq!((markers[0]["status"].as_str(), markers[1]["event_count"].as_u64()), (Some("BEGIN"), Some(4)));
    let rows = assert_same(&case, kafka, &mysql);
    assert_eq!((markers.len(), summary.of(case.name(), "shop").output), (2, rows + 3));
}

#[test]
fn another_node_takes_over_where_the_last_one_was() {
    let (kafka, mysql) = (need!(Kafka::shared()), need!(Mysql::start()));
    let mut case = case("mysql-nodes", kafka);
    create(&mysql, 500);
    case.pipeline("shop", &source(&mysql, ""));
    case.set("TRUNKLINE_NODE", "node-a");
    let mut first = case.start("a", &[]);
    wait_for_records(&case, kafka, &mut first, "people", 500);
    case.set("TRUNKLINE_NODE", "node-b");
    let mut second = case.start("b", &[]);
    mysql.run("USE shop; UPDATE people SET v = v + 1");
    wait_for_records(&case, kafka, &mut first, "people", 1_000);
    first.kill9();
    mysql.run("USE shop; UPDATE people SET v = v + 1; DELETE FROM people WHERE v % 2 = 0");
    let left: u64 = mysql.run("SELECT COUNT(*) FROM shop.people")[0].parse().unwrap();
    let all = 1_500 + 2 * (500 - left);
    wait_for_records(&case, kafka, &mut second, "people", all);
    second.sigterm();
    let exit = second.wait(LONG);
    assert_eq!(exit.code, Some(0), "{}", exit.describe());
    assert_eq!(assert_same(&case, kafka, &mysql), 500 + all);
}

#[test]
fn typed_rows_reach_the_lake() {
    let (kafka, mysql, reader) = (need!(Kafka::shared()), need!(Mysql::start()), need!(Reader::find()));
    let case = case("mysql-lake", kafka);
    create(&mysql, 300);
    mysql.run("USE shop; ALTER TABLE orders ADD price DECIMAL(20,4), ADD big BIGINT UNSIGNED, ADD at DATETIME(6), ADD d DATE, ADD raw VARBINARY(9);
               UPDATE orders SET price = id / 7, big = 18446744073709551615, at = '2026-01-02 03:04:05.678901', d = '2026-01-02', raw = x'00ff'");
    let lake = "[sinks.lake]\nconnector = \"s3\"\ninputs = [\"shop\"]\nurl = \"file://$DIR/lake\"\npath = \"table={@table}\"\nrotate = { idle = \"500ms\" }\n";
    case.pipeline("shop", &(source(&mysql, "envelope = \"row\"") + lake));
    let summary = case.until_idle("a", LONG);
    let written = summary.of(case.name(), "lake");
    assert_eq!((written.output, written.dead_lettered), (600, 0), "{written:?}");
    let found = reader.read_with_sums(&case.path("lake"), &["v"], &["v"]);
    assert_eq!((found.rows, found.sums["v"]), (600, 2 * (1..=300).sum::<i64>()));
}
