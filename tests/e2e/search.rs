//! Log files and tables through Kafka to OpenSearch: every line is one document, and every index
//! equals its table, whatever is killed (I2 c).

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::fs;
use std::sync::Mutex;
use std::time::Duration;

use trunkline_tests::{
    Case, Kafka, LogWriter, Mysql, OpenSearch, Random, SearchStub, need, only_long, repository, wait,
};

use crate::mysql::kill_repeatedly;
use crate::shop::{SMALL_CHUNKS, Shop, case, writes};
use crate::{LONG, SOURCE};

/// A worker that lives shorter than this has hardly joined its groups.
const LONGEST_LIFE_MS: u64 = 3_000;

/// The sink of `pipelines/web-logs-to-search.toml`, with small requests, so that there are many
/// moments in which to be killed.
fn pipeline(search: &OpenSearch) -> String {
    let file = fs::read_to_string(repository().join("pipelines/web-logs-to-search.toml")).unwrap();
    let (_, sink) = file.split_once("[sinks.search]").unwrap();
    assert!(sink.contains("http://127.0.0.1:9200"));
    let sink = sink.replace("http://127.0.0.1:9200", &search.url());
    assert!(sink.contains("\"web-logs-to-search/"));
    let folder = repository().join("pipelines/web-logs-to-search");
    let sink = sink.replace("\"web-logs-to-search/", &format!("\"{}/", folder.display()));
    format!("{SOURCE}\n[sinks.search]{sink}commit = {{ records = 500 }}\n")
}

fn assert_every_line_once(search: &OpenSearch, case: &Case, lines: u64) {
    let summary = case.until_idle("a", LONG);
    let counters = summary.of(case.name(), "search");
    assert_eq!((counters.input, counters.output, counters.dead_lettered), (lines, lines, 0), "{counters:?}");
    let (documents, paths) = search.count("logs-web-*", "path");
    assert_eq!((documents, paths), (lines, lines), "documents and different lines");
    // The fields of log views, of the index template that the sink creates.
    let query = r#"{"size":1,"fields":["@timestamp","message"]}"#;
    let found = search.call("POST", "/logs-web-*/_search", query);
    let fields = &found["hits"]["hits"][0]["fields"];
    assert!(fields["@timestamp"].is_array() && fields["message"].is_array(), "{found}");
}

#[test]
fn killed_workers_index_every_line_once() {
    let (kafka, search) = (need!(Kafka::any()), need!(OpenSearch::start()));
    let case = Case::new("search-kills", kafka);
    case.pipeline("search", &pipeline(&search));
    let mut log = LogWriter::new(case.path("logs/access.log"), 310);
    let mut random = Random::new(310);
    for _ in 0..6 {
        log.append(3_000);
        let life = Duration::from_millis(random.below(LONGEST_LIFE_MS));
        let exit = case.start("a", &[]).kill9_after(life);
        assert_eq!(exit.signal, Some(libc::SIGKILL), "it ended by itself: {}", exit.describe());
    }
    log.append(3_000);
    assert_every_line_once(&search, &case, log.lines());
    // A trace ends at the document.
    let record = &kafka.read(&format!("{}.web", case.name()))[0];
    let place = format!("{}.web:{}:{}", case.name(), record.partition, record.offset);
    let traced = case.run_command("trace", &[], &[case.name(), "--record", &place, "--json"], LONG);
    let found: serde_json::Value = serde_json::from_str(&traced.stdout).unwrap_or_default();
    let document = found["stages"][0]["documents"][0].as_str().unwrap_or_else(|| panic!("{}", traced.describe()));
    // A line that was sent again after a kill has a higher version.
    let id = format!("/{}.web+{}+{}: version ", case.name(), record.partition, record.offset);
    assert!(document.contains("logs-web-") && document.contains(&id), "{document}");
    an_audit_names_missing_documents(&search, &case);
}

/// Every document that the sink has committed is counted by its id; a deleted one is named.
fn an_audit_names_missing_documents(search: &OpenSearch, case: &Case) {
    fs::create_dir_all(case.path("data-audit/plugins")).unwrap();
    let audit = || case.run_command("audit", &[], &[&format!("{}.search", case.name())], LONG);
    let complete = audit();
    assert_eq!(complete.code, Some(0), "{}", complete.describe());
    let found = search.call("POST", "/logs-web-*/_search", r#"{"size":1}"#);
    let hit = &found["hits"]["hits"][0];
    let (index, id) = (hit["_index"].as_str().unwrap(), hit["_id"].as_str().unwrap());
    search.call("DELETE", &format!("/{index}/_doc/{}?refresh=true", id.replace('+', "%2B")), "");
    let incomplete = audit();
    assert_eq!(incomplete.code, Some(1), "{}", incomplete.describe());
    let (place, offset) = id.rsplit_once('+').unwrap();
    let gap = format!("{}: gap: no row has the offsets {offset} to {offset}", place.replace('+', "-"));
    assert!(incomplete.stdout.contains(&gap), "{gap}: {}", incomplete.describe());
}

#[test]
fn a_killed_server_gets_every_line_once() {
    let (kafka, mut search) = (need!(Kafka::any()), need!(OpenSearch::start()));
    let case = Case::new("search-restart", kafka);
    case.pipeline("search", &pipeline(&search));
    let mut log = LogWriter::new(case.path("logs/access.log"), 311);
    log.append(10_000);
    let worker = case.start("a", &[]);
    trunkline_tests::wait::until("the first documents", LONG, || {
        let indices = search.call("GET", "/_cat/indices?format=json", "");
        indices.as_array().is_some_and(|indices| !indices.is_empty()).then_some(())
    });
    search.restart();
    log.append(10_000);
    drop(worker.kill9());
    assert_every_line_once(&search, &case, log.lines());
}

/// One of two nodes dies while records are written: the other one takes over its shards and its
/// requests. Later the alias rolls over to a second index.
#[test]
fn half_of_the_nodes_die_and_every_line_is_there_once() {
    need!(only_long());
    let (kafka, mut search) = (need!(Kafka::any()), need!(OpenSearch::start_cluster()));
    let case = Case::new("search-nodes", kafka);
    let sink = format!(
        "[sinks.search]\nconnector = \"elasticsearch\"\ninputs = [\"web\"]\nurl = [\"{}\", \"{}\"]\nindex = \"lines\"\n\
         require_alias = true\ntemplate = {{ rollover = true, shards = 2, replicas = 1 }}\ncommit = {{ records = 500 }}\n",
        search.second_url(),
        search.url()
    );
    case.pipeline("search", &format!("{SOURCE}\n{sink}"));
    let mut log = LogWriter::new(case.path("logs/access.log"), 315);
    log.append(5_000);
    let worker = case.start("a", &[]);
    wait::until("the first documents", LONG, || {
        let indices = search.call("GET", "/_cat/indices/lines-*?format=json", "");
        let is_green = search.call("GET", "/_cluster/health", "")["status"] == "green";
        (is_green && indices.as_array().is_some_and(|indices| !indices.is_empty())).then_some(())
    });
    search.kill_second();
    log.append(10_000);
    // Without the node, all lines arrive.
    wait::until("all lines", LONG, || (search.documents("lines") == log.lines()).then_some(()));
    search.restart_second();
    search.call("POST", "/lines/_rollover", "");
    log.append(2_000);
    drop(worker.kill9());
    let counters = case.until_idle("a", LONG).of(case.name(), "search").clone();
    assert_eq!((counters.input, counters.output, counters.dead_lettered), (17_000, 17_000, 0), "{counters:?}");
    assert_eq!(search.count("lines", "path.keyword"), (17_000, 17_000));
    assert_eq!(search.documents("lines-000002"), 2_000);
    let settings = search.call("GET", "/lines-000002/_settings?flat_settings=true", "");
    assert_eq!(settings["lines-000002"]["settings"]["index.number_of_replicas"], "1");
}

/// Two sinks that write each table to an index: one with versions by offset, one by binlog
/// position.
const TABLES: &str = r#"
[sinks.offsets]
connector = "elasticsearch"
inputs = ["shop"]
url = "$URL"
index = "offsets-{@table}"
commit = { records = 200 }

[sinks.positions]
connector = "elasticsearch"
inputs = ["shop"]
url = "$URL"
index = "positions-{@table}"
version = "source"
commit = { records = 200 }
"#;

/// The column `v` of the documents of an index, by id.
fn index_rows(search: &OpenSearch, index: &str) -> BTreeMap<String, i64> {
    search.call("POST", &format!("/{index}/_refresh"), "");
    let found = search.call("POST", &format!("/{index}/_search"), r#"{"size":10000}"#);
    let hits = found["hits"]["hits"].as_array().unwrap();
    hits.iter().map(|hit| (hit["_id"].as_str().unwrap().to_owned(), hit["_source"]["v"].as_i64().unwrap())).collect()
}

/// Random inserts, updates, deletes and changed keys, a snapshot in small chunks alongside, and
/// workers that are killed: each index ends as its table.
#[test]
fn indices_equal_the_tables_after_kills() {
    let (kafka, search) = (need!(Kafka::any()), need!(OpenSearch::start()));
    let shop = Shop::create(need!(Mysql::shared()), 1_000);
    let case = case("search-tables", kafka);
    case.pipeline("shop", &format!("{}{}", shop.source(SMALL_CHUNKS), TABLES.replace("$URL", &search.url())));
    let seed = 312;
    let random = Mutex::new(Random::new(seed));
    let writes = || drop(shop.run(&writes(&mut random.lock().unwrap(), 1_000, 50)));
    let summary = kill_repeatedly(&case, seed, 3_000, &writes, |_| {});
    for table in ["orders", "people"] {
        let rows = table_rows(&shop, table);
        assert!(rows.len() > 100, "{table} has {} rows", rows.len());
        assert_eq!(index_rows(&search, &format!("offsets-{table}")), rows, "{table}, versions by offset");
        assert_eq!(index_rows(&search, &format!("positions-{table}")), rows, "{table}, versions by position");
    }
    let written = summary.of(case.name(), "shop").output;
    for sink in ["offsets", "positions"] {
        let counters = summary.of(case.name(), sink);
        assert_eq!((counters.input, counters.output, counters.dead_lettered), (written, written, 0), "{sink}");
    }
    a_killed_replay_replaces_documents(&search, &case);
}

/// The server of the source fails, and its replica, whose binlog positions are lower, takes its
/// place. The sink that orders changes by offset continues. The sink that orders them by position
/// holds the changes of the replica until its epoch is raised. Both indices end as the tables.
#[test]
fn indices_equal_the_tables_after_a_failover_of_mysql() {
    need!(only_long());
    let (kafka, search) = (need!(Kafka::any()), need!(OpenSearch::start()));
    let (primary, replica) = (need!(Mysql::start()), need!(Mysql::start()));
    // Both begin without transactions. The positions of the first server are higher.
    replica.run("RESET BINARY LOGS AND GTIDS");
    primary.run(&["RESET BINARY LOGS AND GTIDS", &"; FLUSH BINARY LOGS".repeat(5)].concat());
    replica.run(&format!(
        "CHANGE REPLICATION SOURCE TO SOURCE_HOST = '127.0.0.1', SOURCE_PORT = {}, SOURCE_USER = 'root', SOURCE_SSL = 1, \
         SOURCE_AUTO_POSITION = 1; START REPLICA",
        primary.port()
    ));
    let mut shop = Shop::create(primary, 200);
    let case = case("search-failover", kafka);
    let sinks = TABLES.replace("$URL", &search.url());
    case.pipeline("shop", &format!("{}{sinks}", shop.source(SMALL_CHUNKS)));
    let mut random = Random::new(313);
    case.until_idle("a", LONG);
    shop.run(&writes(&mut random, 200, 100));
    case.until_idle("a", LONG);
    let executed = shop.run("SELECT @@GLOBAL.gtid_executed").concat().replace("\\n", "");
    assert_eq!(replica.run(&format!("SELECT WAIT_FOR_EXECUTED_GTID_SET('{executed}', 60)")), ["0"]);
    shop.server.kill9();
    replica.run("STOP REPLICA; RESET REPLICA ALL");

    let shop = Shop { server: replica, database: shop.database };
    shop.run(&writes(&mut random, 200, 100));
    case.pipeline("shop", &format!("{}{sinks}", shop.source(SMALL_CHUNKS)));
    let worker = case.start("a", &[]);
    wait::until("the failover is reported, and the other sink continues", LONG, || {
        let is_equal = |table| index_rows(&search, &format!("offsets-{table}")) == table_rows(&shop, table);
        (worker.stderr().contains("elasticsearch.failover") && is_equal("orders") && is_equal("people")).then_some(())
    });
    assert_ne!(index_rows(&search, "positions-orders"), table_rows(&shop, "orders"), "the changes are held");
    worker.kill9();
    let raised = sinks.replace("version = \"source\"", "version = \"source\"\nversion_epoch = 1");
    case.pipeline("shop", &format!("{}{raised}", shop.source(SMALL_CHUNKS)));
    case.until_idle("a", LONG);
    for table in ["orders", "people"] {
        assert_eq!(index_rows(&search, &format!("positions-{table}")), table_rows(&shop, table), "{table}");
    }
}

/// The column `v` of the rows of a table, by key.
fn table_rows<M: Borrow<Mysql>>(shop: &Shop<M>, table: &str) -> BTreeMap<String, i64> {
    let key = if table == "people" { "name" } else { "id" };
    let lines = shop.run(&format!("SELECT {key}, v FROM {table}"));
    let columns = lines.iter().map(|line| line.split_once('\t').unwrap());
    columns.map(|(key, v)| (key.to_owned(), v.parse().unwrap())).collect()
}

/// Documents with other contents and the versions of the sink are replaced by a replay that is
/// killed; the others, of which later records deleted some, end as they were.
fn a_killed_replay_replaces_documents(search: &OpenSearch, case: &Case) {
    fs::create_dir_all(case.path("data-replay/plugins")).unwrap();
    let before = index_rows(search, "offsets-orders");
    for id in before.keys().step_by(7) {
        let version = &search.call("GET", &format!("/offsets-orders/_doc/{id}"), "")["_version"];
        let target = format!("/offsets-orders/_doc/{id}?version={version}&version_type=external_gte");
        search.call("PUT", &target, r#"{"id":1,"v":-1,"note":"wrong"}"#);
    }
    assert_ne!(index_rows(search, "offsets-orders"), before);
    let arguments = [case.name(), "--sink", "offsets", "--from", "earliest", "--supersede"];
    let killed = case.start_command("replay", &[], &[&arguments[..], &["--rate", "600"]].concat());
    wait::until("a run with documents", LONG, || {
        let listed = case.ask_worker("runs", "replay", &["--kind", "replay", "--json"], LONG);
        let runs: Vec<serde_json::Value> = serde_json::from_str(&listed.stdout).unwrap_or_default();
        runs.first()?["counters"]["out"].as_u64().filter(|out| *out > 0)
    });
    killed.kill9();
    let last = case.run_command("replay", &[], &arguments, LONG);
    assert_eq!(last.code, Some(0), "{}", last.describe());
    assert_eq!(index_rows(search, "offsets-orders"), before);
}

/// A server answers 30 % of the documents with 429: every change is written, the last one of each
/// key stays, also where no version protects it, and refused documents join later requests. With
/// versions, no document ever goes back in time.
#[test]
fn a_busy_server_gets_the_changes_of_each_key_in_order() {
    const CHANGES: i64 = 12_000;
    const KEYS: i64 = 500;
    let (kafka, search) = (need!(Kafka::any()), SearchStub::storing(30));
    let case = Case::new("search-busy", kafka);
    let sink = |name: &str, version: &str| {
        format!(
            "[sinks.{name}]\nconnector = \"elasticsearch\"\ninputs = [\"web\"]\nurl = \"{}\"\nindex = \"{name}\"\n\
             id = \"{{k}}\"\nversion = \"{version}\"\ncompression = \"none\"\ncommit = {{ records = 400 }}\n",
            search.url()
        )
    };
    case.pipeline(
        "busy",
        &format!(
            "name = \"$NAME\"\n[sources.web]\nconnector = \"logfile\"\npaths = [\"$DIR/logs/*.log\"]\nparser = \"json\"\n{}{}",
            sink("versions", "offset"),
            sink("order", "none")
        ),
    );
    let key = |n: i64| format!("key-{}", (n * 7 + n / 3) % KEYS);
    let lines = (0..CHANGES).map(|n| format!("{{\"k\":\"{}\",\"n\":{n}}}\n", key(n)));
    fs::write(case.path("logs/changes.log"), lines.collect::<String>()).unwrap();
    let newest: BTreeMap<String, i64> = (0..CHANGES).map(|n| (key(n), n)).collect();

    let summary = case.until_idle("a", LONG);
    let changes = CHANGES as u64;
    for index in ["versions", "order"] {
        let counters = summary.of(case.name(), index);
        assert_eq!((counters.input, counters.output, counters.dead_lettered), (changes, changes, 0), "{index}");
        assert_eq!(search.numbers(index), newest, "{index}");
    }
    assert_eq!(search.regressions("versions"), [""; 0]);
    // Each document of a request of 400 that is refused alone needs four more requests on average.
    let requests = search.requests();
    assert!(requests < 2 * changes / 40, "{requests} requests");
}

#[test]
fn a_check_reports_what_the_destinations_lack() {
    let case = Case::new("search-check", need!(Kafka::any()));
    let unused = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = unused.local_addr().unwrap();
    drop(unused);
    let file = case.path("logs/a-file");
    fs::write(&file, "").unwrap();
    case.pipeline(
        "check",
        &format!(
            "{SOURCE}\n[sinks.search]\nconnector = \"elasticsearch\"\ninputs = [\"web\"]\nurl = \"http://{address}\"\n\
             index = \"a\"\nid = \"none\"\n[sinks.lake]\nconnector = \"s3\"\ninputs = [\"web\"]\nurl = \"file://{}/lake\"\n",
            file.display()
        ),
    );
    let exit = case.run_command("validate", &["--check"], &[], LONG);
    let printed = format!("{}{}", exit.stdout, exit.stderr);
    assert_eq!(exit.code, Some(3), "{}", exit.describe());
    for expected in ["elasticsearch.unreachable", "`sinks.search`", "`sinks.lake`", "plan.at_least_once"] {
        assert!(printed.contains(expected), "{expected}: {}", exit.describe());
    }
}

/// The destination rejects one document of a request: the documents before it are committed, those
/// after it are not, and `on_error` decides about it when the stage runs again. The documents
/// before it are delivered in batches: one by one they would take minutes.
#[test]
fn a_stop_on_a_refused_document_commits_the_documents_before_it() {
    let (kafka, search) = (need!(Kafka::any()), need!(OpenSearch::start()));
    let mut case = Case::new("search-stop", kafka);
    search.call("PUT", &format!("/{}", case.name()), r#"{"mappings":{"properties":{"n":{"type":"integer"}}}}"#);
    let lines =
        (0..8_000).map(|n| if n == 6_000 { "{\"n\":\"bad\"}\n".to_owned() } else { format!("{{\"n\":{n}}}\n") });
    fs::write(case.path("logs/numbers.log"), lines.collect::<String>()).unwrap();
    let pipeline = |on_error: &str| {
        format!(
            "name = \"$NAME\"\n[sources.web]\nconnector = \"logfile\"\npaths = [\"$DIR/logs/*.log\"]\nparser = \"json\"\n\
             [sinks.search]\nconnector = \"elasticsearch\"\ninputs = [\"web\"]\nurl = \"{}\"\nindex = \"$NAME\"\n\
             on_error = \"{on_error}\"\ncommit = {{ records = 250 }}\n",
            search.url()
        )
    };
    case.set("TRUNKLINE_TOPICS_PARTITIONS", "1");
    case.pipeline("search", &pipeline("stop"));
    let exit = case.start("a", &["--until-idle", "--json"]).wait(LONG);
    assert_eq!(exit.code, Some(1), "{}", exit.describe());
    let counters = exit.summary().of(case.name(), "search").clone();
    assert_eq!((counters.input, counters.output, counters.dead_lettered), (6_000, 6_000, 0), "{}", exit.describe());

    case.pipeline("search", &pipeline("dead_letter"));
    let counters = case.until_idle("a", LONG).of(case.name(), "search").clone();
    assert_eq!((counters.input, counters.output, counters.dead_lettered), (8_000, 7_999, 1), "{counters:?}");
    assert_eq!(search.count(case.name(), "n"), (7_999, 7_999));
}
