//! Log files and tables through Kafka to OpenSearch: every line is one document, and every index
//! equals its table, whatever is killed (I2 c).

use std::collections::BTreeMap;
use std::fs;
use std::sync::Mutex;
use std::time::Duration;

use trunkline_tests::{Case, Kafka, LogWriter, Mysql, OpenSearch, Random, need, repository, wait};

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
    let id = format!("/{}.web+{}+{}: version 1", case.name(), record.partition, record.offset);
    assert!(document.contains("logs-web-") && document.ends_with(&id), "{document}");
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
    for (table, key) in [("orders", "id"), ("people", "name")] {
        let lines = shop.run(&format!("SELECT {key}, v FROM {table}"));
        let columns = lines.iter().map(|line| line.split_once('\t').unwrap());
        let rows: BTreeMap<String, i64> = columns.map(|(key, v)| (key.to_owned(), v.parse().unwrap())).collect();
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
        let listed = case.ask_worker("runs", "replay", &["--json"], LONG);
        let runs: Vec<serde_json::Value> = serde_json::from_str(&listed.stdout).unwrap_or_default();
        runs.first()?["counters"]["out"].as_u64().filter(|out| *out > 0)
    });
    killed.kill9();
    let last = case.run_command("replay", &[], &arguments, LONG);
    assert_eq!(last.code, Some(0), "{}", last.describe());
    assert_eq!(index_rows(search, "offsets-orders"), before);
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
