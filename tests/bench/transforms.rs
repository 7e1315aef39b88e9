//! Transforms and their peers, alternating on the same broker, and the start of plugins.
//!
//! | row | what both do |
//! |---|---|
//! | `bento-filter` | JSON lines of a file → a condition on one member → topic |
//! | `bento-project` | JSON lines of a file → three members → topic |
//! | `streams-count` | topic → final counts of each key and second → topic, exactly once |
//! | `start` | a compiled plugin of each language, until its first call has returned |
//!
//! Bento: a mapping in one pipeline with as many threads as processors, and the settings of
//! `peer.rs`. It delivers at least once. Kafka Streams: `exactly_once_v2`, see
//! `tests/services/clients/java-streams/WindowedCount.java`. The target is the processor time: a
//! fifth of the peer's.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use serde_json::json;
use trunkline_connector::{Batch, Rejections};
use trunkline_tests::{Case, Exit, Kafka, Skip, Tool, test_plugin, worker_binary};
use trunkline_transform_host::{Host, HostOptions, Limits};

use crate::client::{self, LIMIT, PARTITIONS, StoredRecord};
use crate::measure::{Sampling, median};
use crate::peer::Bento;
use crate::pipeline::{self, Run, alternate};
use crate::plugin::sample;
use crate::table::{Row, Target};

/// The rows with peers.
pub(crate) const PEERS: [&str; 3] = ["bento-filter", "bento-project", "streams-count"];

/// Records of the short run that determines the records of a long one.
const SHORT: u64 = 300_000;
/// Different records.
const SAMPLE: u64 = 60_000;
/// Share of the peer's processor time.
const TARGET: Target = Target::AtMostShare(0.2);
/// Starts of a plugin in a round.
const STARTS: usize = 20;

/// A transform, in both languages.
struct Mapping {
    name: &'static str,
    /// The plugin and its `config`.
    plugin: (&'static str, &'static str),
    /// Bento's mapping.
    bloblang: &'static str,
    /// Of 20 records, those that pass.
    passes: u64,
}

const FILTER: Mapping = Mapping {
    name: "Bento: filter, lines -> topic",
    plugin: ("filter.wasm", "{ condition = \"value.status >= 500\" }"),
    bloblang: "root = if this.status < 500 { deleted() }",
    passes: 5,
};

const PROJECT: Mapping = Mapping {
    name: "Bento: project three members, lines -> topic",
    plugin: ("project.wasm", "{ fields = [\"id\", \"status\", \"user.name\"] }"),
    bloblang: "root.id = this.id\nroot.status = this.status\nroot.user.name = this.user.name",
    passes: 20,
};

/// The selected rows with peers, and the reasons of those that this machine cannot measure.
pub(crate) fn rows(
    kafka: &Kafka,
    sampling: Sampling,
    is_selected: impl Fn(&str) -> bool,
) -> (Vec<Row>, Vec<(&'static str, Skip)>) {
    let (mut rows, mut skipped) = (Vec::new(), Vec::new());
    for (key, mapping) in [("bento-filter", FILTER), ("bento-project", PROJECT)] {
        if is_selected(key) {
            match mapping_rows(kafka, sampling, &mapping) {
                Ok(found) => rows.extend(found),
                Err(reason) => skipped.push((key, reason)),
            }
        }
    }
    if is_selected("streams-count") {
        match count_rows(kafka, sampling) {
            Ok(found) => rows.extend(found),
            Err(reason) => skipped.push(("streams-count", reason)),
        }
    }
    (rows, skipped)
}

fn compare(name: &str, [peer, worker]: &[Vec<Run>; 2]) -> [Row; 2] {
    let row = |name: &str, unit, value: fn(&Run) -> f64, target| Row {
        name: name.to_owned(),
        unit,
        reference: peer.iter().map(value).collect(),
        measured: worker.iter().map(value).collect(),
        target,
    };
    [
        row(name, "records/s", Run::per_second, Target::None),
        row("  processor", "s per million", Run::cpu_per_million, TARGET),
    ]
}

fn mapping_rows(kafka: &Kafka, sampling: Sampling, mapping: &Mapping) -> Result<[Row; 2], Skip> {
    let bento = Bento::find(kafka)?;
    let folder = tempfile::tempdir().unwrap();
    let short = log(folder.path(), "short", SHORT);
    let theirs = sampling.records(bento_mapping(&bento, kafka, mapping, &short, SHORT).per_second());
    let ours = sampling.records(worker_mapping(kafka, mapping, &short, SHORT).per_second());
    let (their_log, our_log) = (log(folder.path(), "theirs", theirs), log(folder.path(), "ours", ours));
    eprintln!("{}", mapping.name);
    let arms = alternate(
        sampling,
        |_| bento_mapping(&bento, kafka, mapping, &their_log, theirs).report("Bento", sampling),
        |_| worker_mapping(kafka, mapping, &our_log, ours).report("worker", sampling),
    );
    Ok(compare(mapping.name, &arms))
}

/// A file of JSON lines.
fn log(folder: &Path, name: &str, lines: u64) -> PathBuf {
    let path = folder.join(name).with_extension("log");
    let sample: Vec<String> = (0..SAMPLE).map(|number| sample::value(number as usize)).collect();
    let mut text = String::new();
    for line in sample.iter().cycle().take(lines as usize) {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{line}");
    }
    fs::write(&path, text).unwrap();
    path
}

fn expected(mapping: &Mapping, lines: u64) -> u64 {
    lines / 20 * mapping.passes
}

fn worker_mapping(kafka: &Kafka, mapping: &Mapping, log: &Path, lines: u64) -> Run {
    let case = Case::new("bench-transform", kafka).with_binary(worker_binary());
    let (plugin, config) = mapping.plugin;
    case.pipeline(
        "bench",
        &format!(
            "name = \"$NAME\"\n[sources.web]\nconnector = \"logfile\"\npaths = [\"$DIR/logs/*.log\"]\nparser = \"json\"\n\
             apply = [\"map\"]\n[transforms.map]\nplugin = \"{plugin}\"\nconfig = {config}\n"
        ),
    );
    fs::create_dir_all(case.path("logs")).unwrap();
    let idle = pipeline::run(&case);
    fs::hard_link(log, case.path("logs/access.log")).unwrap();
    let exit = pipeline::run(&case);
    assert_eq!(exit.summary().of(case.name(), "map").output, expected(mapping, lines));
    client::delete_topic(kafka.brokers(), &format!("{}.web", case.name()));
    Run::of(lines, &exit, &idle)
}

fn bento_mapping(bento: &Bento<'_>, kafka: &Kafka, mapping: &Mapping, log: &Path, lines: u64) -> Run {
    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().join("empty.log");
    fs::write(&empty, "").unwrap();
    let topic = unique("bento-mapped");
    kafka.create_topic(&topic, PARTITIONS);
    let bloblang = mapping.bloblang.replace('\n', "\n        ");
    let config = |path: &Path| {
        format!(
            "input:\n  file:\n    paths: [ {} ]\n    scanner: {{ lines: {{}} }}\n    auto_replay_nacks: false\n\
             pipeline:\n  threads: -1\n  processors:\n    - mapping: |\n        {bloblang}\n\
             output:\n  kafka_franz:\n    seed_brokers: [ {} ]\n    topic: {topic}\n    compression: lz4\n    max_in_flight: 10\n    \
             max_buffered_records: 100000\n    batching: {{ count: 5000, period: 100ms }}\n",
            path.display(),
            kafka.brokers()
        )
    };
    let idle = bento.run_to_end(&config(&empty));
    let exit = bento.run_to_end(&config(log));
    client::consume(&client::consumer(kafka.brokers(), "count", &[]), &topic, expected(mapping, lines));
    client::delete_topic(kafka.brokers(), &topic);
    Run::of(lines, &exit, &idle)
}

fn count_rows(kafka: &Kafka, sampling: Sampling) -> Result<[Row; 2], Skip> {
    let streams = Tool::find("kafka-streams")?;
    let sample: Vec<StoredRecord> = (0..SAMPLE)
        .map(|number| {
            let status = 200 + (number % 20) * 20;
            let partition = (number % 20) as i32 % PARTITIONS;
            StoredRecord::new(partition, sample::value(number as usize).into_bytes()).with_key(status.to_string())
        })
        .collect();
    let short = pipeline::backlog(kafka, "count-short", &sample, SHORT);
    let theirs = sampling.records(streams_count(&streams, kafka, &short, SHORT).per_second());
    let ours = sampling.records(worker_count(kafka, &short, SHORT).per_second());
    let their_topic = pipeline::backlog(kafka, "count-theirs", &sample, theirs);
    let our_topic = pipeline::backlog(kafka, "count-ours", &sample, ours);
    let name = "Kafka Streams: windowed count";
    eprintln!("{name}");
    let arms = alternate(
        sampling,
        |_| streams_count(&streams, kafka, &their_topic, theirs).report("Kafka Streams", sampling),
        |_| worker_count(kafka, &our_topic, ours).report("worker", sampling),
    );
    Ok(compare(name, &arms))
}

fn worker_count(kafka: &Kafka, topic: &str, records: u64) -> Run {
    let case = Case::new("bench-count", kafka).with_binary(worker_binary());
    case.pipeline(
        "bench",
        &format!(
            "name = \"$NAME\"\n[transforms.count]\ninputs = [\"topic:{topic}\"]\nplugin = \"aggregate.wasm\"\n\
             topic = \"$NAME.counts\"\n[transforms.count.config]\ngroup_by = [\"status\"]\nwindow = \"1s\"\n\
             aggregates = {{ n = \"count()\" }}\n"
        ),
    );
    let exit = pipeline::run(&case);
    let summary = exit.summary();
    let counted = summary.of(case.name(), "count");
    assert_eq!(counted.input, records, "{}", exit.describe());
    // The records of the short run may all be in one window, which stays open.
    assert!(counted.output > 0 || records == SHORT, "{}", exit.describe());
    // A second run has no records to read: it measures the start.
    Run::of(records, &exit, &pipeline::run(&case))
}

fn streams_count(streams: &Tool, kafka: &Kafka, topic: &str, records: u64) -> Run {
    let folder = tempfile::tempdir().unwrap();
    let run = |records: u64| -> Exit {
        let output = unique("streams-counts");
        kafka.create_topic(&output, PARTITIONS);
        let (count, state) = (records.to_string(), folder.path().join(&output));
        let state = state.to_str().unwrap();
        let exit =
            streams.start(&["WindowedCount", kafka.brokers(), topic, &output, &count, state, "1000"]).wait(LIMIT);
        assert_eq!(exit.code, Some(0), "{}", exit.describe());
        client::delete_topic(kafka.brokers(), &output);
        exit
    };
    let idle = run(0);
    Run::of(records, &run(records), &idle)
}

/// The start of a compiled plugin of each language. Python and JavaScript need their toolchains.
pub(crate) fn start_rows(sampling: Sampling) -> (Vec<Row>, Vec<(&'static str, Skip)>) {
    let folder = tempfile::tempdir().unwrap();
    let mut skipped = Vec::new();
    let mut rows = vec![start_row("start of a cached plugin, Rust", &test_plugin(), 5.0, &folder, sampling)];
    for (language, name) in
        [("python", "start of a cached plugin, Python"), ("js", "start of a cached plugin, JavaScript")]
    {
        match build(language, folder.path()) {
            Ok(plugin) => rows.push(start_row(name, &plugin, 20.0, &folder, sampling)),
            Err(reason) => skipped.push((name, reason)),
        }
    }
    (rows, skipped)
}

/// Builds the plugin that `trunkline transform new` creates.
fn build(language: &str, folder: &Path) -> Result<PathBuf, Skip> {
    let project = folder.join(language);
    let transform = |arguments: &[&str]| {
        let output =
            Command::new(worker_binary()).arg("transform").args(arguments).current_dir(folder).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.success() { Ok(()) } else { Err(Skip::new(stderr.trim().to_owned())) }
    };
    transform(&["new", language, "--lang", language])?;
    if language == "js" {
        // Without a network or npm, the build states what is missing.
        let _ = Command::new("npm").args(["install", "--silent"]).current_dir(&project).status();
    }
    transform(&["build", language])?;
    Ok(project.join(format!("{language}.wasm")))
}

/// Each start has a new host, as a new process has.
fn start_row(name: &str, plugin: &Path, most: f64, folder: &tempfile::TempDir, sampling: Sampling) -> Row {
    let cache = vec![folder.path().join("compiled")];
    let start = || {
        let host = Host::new(HostOptions { cache_dirs: cache.clone() }).unwrap();
        let begun = Instant::now();
        let loaded = host.load(plugin).unwrap();
        let config = if loaded.config_schema().is_some() { json!({ "over": 100 }) } else { json!({}) };
        let mut instance = loaded.start(&config, &Limits::default()).unwrap();
        let mut batch = Batch::default();
        let mut record = batch.record();
        record.value(br#"{"id":1,"amount":"250.00"}"#);
        record.finish();
        instance.process(&mut batch, &mut Rejections::default()).unwrap();
        begun.elapsed().as_secs_f64() * 1e3
    };
    start(); // compiles it
    let measured = (0..sampling.rounds).map(|_| median(&(0..STARTS).map(|_| start()).collect::<Vec<_>>()));
    Row {
        name: name.to_owned(),
        unit: "ms",
        reference: Vec::new(),
        measured: measured.collect(),
        target: Target::AtMost(most),
    }
}

/// A name that is unique in this run.
fn unique(prefix: &str) -> String {
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    format!("{prefix}-{}", NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed))
}
