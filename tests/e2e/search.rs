//! Log files through Kafka to OpenSearch: every line is one document, whatever is killed (I2 c).

use std::fs;
use std::time::Duration;

use trunkline_tests::{Case, Kafka, LogWriter, OpenSearch, Random, need, repository};

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
    format!("{SOURCE}\n[sinks.search]{sink}commit = {{ records = 500 }}\n")
}

/// Creates the index template that the pipeline file names.
fn create_template(search: &OpenSearch) {
    let template = repository().join("pipelines/web-logs-to-search/index-template.json");
    search.call("PUT", "/_index_template/logs-web", &fs::read_to_string(template).unwrap());
}

fn assert_every_line_once(search: &OpenSearch, case: &Case, lines: u64) {
    let summary = case.until_idle("a", LONG);
    let counters = summary.of(case.name(), "search");
    assert_eq!((counters.input, counters.output, counters.dead_lettered), (lines, lines, 0), "{counters:?}");
    let (documents, paths) = search.count("logs-web-*", "path");
    assert_eq!((documents, paths), (lines, lines), "documents and different lines");
}

#[test]
fn killed_workers_index_every_line_once() {
    let (kafka, search) = (need!(Kafka::any()), need!(OpenSearch::start()));
    create_template(&search);
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
}

#[test]
fn a_killed_server_gets_every_line_once() {
    let (kafka, mut search) = (need!(Kafka::any()), need!(OpenSearch::start()));
    create_template(&search);
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
