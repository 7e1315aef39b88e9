//! Bento and the worker, alternating on the same broker and the same lines: a log file to a topic,
//! and a topic to Parquet.
//!
//! Bento's settings follow its documentation for large batches and parallel work; few others were
//! tried. File to topic: batches of 5,000, 10 of them in flight, lz4, a client buffer of 100,000
//! records. Topic to Parquet: batches of 100,000 rows as files, encoded by two threads, zstd,
//! fetches of 16 MiB, a buffer for the records of four files.
//!
//! Bento's messages have no headers, it delivers at least once, and its configuration lists the
//! columns. The worker's records have path, offset and schema as headers, it delivers exactly once,
//! and infers the columns.
//!
//! Each moves as many lines as fill the time of a run. Rows are counted at the destination.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use trunkline_tests::{Exit, Kafka, Process, Skip, Tool, wait, worker_binary};

use crate::client::{self, LIMIT, PARTITIONS, StoredRecord};
use crate::measure::{Sampling, files_in, rows_of};
use crate::pipeline::{self, Run, SAMPLE, alternate, compare_with_peer};
use crate::records::{Lines, Log};
use crate::table::{Row, Target};

/// Lines of the short run that determines the lines of a long one.
const SHORT: u64 = 600_000;

/// Rows of a file. The number of lines is a multiple of it, because Bento would wait for a last
/// batch to fill.
const FILE_ROWS: u64 = 100_000;

/// The fields of the combined parser, as columns.
const COLUMNS: [(&str, &str); 10] = [
    ("remote_addr", "UTF8"),
    ("remote_user", "UTF8"),
    ("timestamp", "UTF8"),
    ("method", "UTF8"),
    ("path", "UTF8"),
    ("protocol", "UTF8"),
    ("status", "INT32"),
    ("bytes", "INT64"),
    ("referer", "UTF8"),
    ("user_agent", "UTF8"),
];

/// The peer.
pub(crate) struct Bento<'a> {
    tool: Tool,
    /// The folder of its configuration files.
    folder: tempfile::TempDir,
    kafka: &'a Kafka,
}

/// The selected rows of `bento-log` and `bento-lake`.
pub(crate) fn rows(kafka: &Kafka, sampling: Sampling, is_selected: impl Fn(&str) -> bool) -> Result<Vec<Row>, Skip> {
    let bento = Bento::find(kafka)?;
    let lines = Lines::generate(1, SAMPLE);
    let (topic, _) = pipeline::read_log(kafka, &worker_binary(), &Log::write(&lines, SAMPLE), "combined", SAMPLE);
    let sample = client::load(kafka, &topic);
    client::delete_topic(kafka.brokers(), &topic);
    let mut rows = Vec::new();

    if is_selected("bento-log") {
        let short = Log::write(&lines, SHORT);
        let theirs = sampling.records(bento.read_log(&short, SHORT).per_second());
        let (topic, worker) = pipeline::read_log(kafka, &worker_binary(), &short, "none", SHORT);
        client::delete_topic(kafka.brokers(), &topic);
        let ours = sampling.records(worker.per_second());
        let (their_log, our_log) = (Log::write(&lines, theirs), Log::write(&lines, ours));
        let name = "Bento: log file -> topic";
        eprintln!("{name}");
        let arms = alternate(
            sampling,
            |_| bento.read_log(&their_log, theirs).report("Bento", sampling),
            |_| {
                let (topic, run) = pipeline::read_log(kafka, &worker_binary(), &our_log, "none", ours);
                client::consume(&client::consumer(kafka.brokers(), "count", &[]), &topic, ours);
                client::delete_topic(kafka.brokers(), &topic);
                run.report("worker", sampling)
            },
        );
        rows.extend(compare_with_peer(name, "lines/s", Target::None, &arms));
    }
    if is_selected("bento-lake") {
        let short = pipeline::backlog(kafka, "bento-short", &sample, SHORT);
        let theirs = sampling.records(bento.write_lake(&short, SHORT).per_second());
        let ours = sampling.records(pipeline::write_lake(kafka, &worker_binary(), &short, false, SHORT).per_second());
        let (their_topic, our_topic) = backlogs(kafka, &sample, theirs, ours);
        let name = "Bento: topic -> Parquet zstd";
        eprintln!("{name}");
        let arms = alternate(
            sampling,
            |_| bento.write_lake(&their_topic, theirs).report("Bento", sampling),
            |_| pipeline::write_lake(kafka, &worker_binary(), &our_topic, false, ours).report("worker", sampling),
        );
        rows.extend(compare_with_peer(name, "lines/s", Target::None, &arms));
    }
    Ok(rows)
}

fn backlogs(kafka: &Kafka, sample: &[StoredRecord], theirs: u64, ours: u64) -> (String, String) {
    let theirs = pipeline::backlog(kafka, "bento-theirs", sample, theirs);
    (theirs, pipeline::backlog(kafka, "bento-ours", sample, ours))
}

impl<'a> Bento<'a> {
    /// Bento, if this machine has it.
    pub(crate) fn find(kafka: &'a Kafka) -> Result<Self, Skip> {
        Ok(Self { tool: Tool::find("bento")?, folder: tempfile::tempdir().unwrap(), kafka })
    }

    /// The input that reads a topic; `unacknowledged` is the most records in flight.
    pub(crate) fn read_topic(&self, topic: &str, unacknowledged: u64) -> String {
        format!(
            "input:\n  kafka_franz:\n    seed_brokers: [ {} ]\n    topics: [ {topic} ]\n    consumer_group: {}\n    \
             checkpoint_limit: {unacknowledged}\n    auto_replay_nacks: false\n    fetch_max_partition_bytes: 16MiB\n",
            self.kafka.brokers(),
            unique("bento")
        )
    }

    /// Starts it with a configuration.
    pub(crate) fn start(&self, config: &str) -> Process {
        let path = self.write(config);
        self.tool.start(&["-c", path.to_str().unwrap()])
    }

    /// Reads a log file into a topic. Bento exits at the end of the file.
    fn read_log(&self, log: &Log, lines: u64) -> Run {
        let folder = tempfile::tempdir().unwrap();
        let empty = folder.path().join("empty.log");
        fs::write(&empty, "").unwrap();
        let topic = unique("bento-topic");
        self.kafka.create_topic(&topic, PARTITIONS);
        let config = |path: &std::path::Path| {
            format!(
                "input:\n  file:\n    paths: [ {} ]\n    scanner: {{ lines: {{}} }}\n    auto_replay_nacks: false\n\
                 output:\n  kafka_franz:\n    seed_brokers: [ {} ]\n    topic: {topic}\n    compression: lz4\n    max_in_flight: 10\n    \
                 max_buffered_records: 100000\n    batching: {{ count: 5000, period: 100ms }}\n",
                path.display(),
                self.kafka.brokers()
            )
        };
        let idle = self.run_to_end(&config(&empty));
        let exit = self.run_to_end(&config(log.path()));
        client::consume(&client::consumer(self.kafka.brokers(), "count", &[]), &topic, lines);
        client::delete_topic(self.kafka.brokers(), &topic);
        Run::of(lines, &exit, &idle)
    }

    /// Writes a topic to Parquet files. Bento does not exit by itself: the time ends when all rows
    /// are published, and then Bento is stopped.
    fn write_lake(&self, topic: &str, lines: u64) -> Run {
        let folder = tempfile::tempdir().unwrap();
        let columns: String = COLUMNS
            .iter()
            .map(|(name, kind)| format!("          - {{ name: {name}, type: {kind}, optional: true }}\n"))
            .collect();
        let config = self.read_topic(topic, 400_000)
            + &format!(
                "    batching: {{ count: {FILE_ROWS}, period: 10s }}\n\
                 pipeline:\n  threads: 2\n  processors:\n    - parquet_encode:\n        default_compression: zstd\n        schema:\n{columns}\
                 output:\n  file:\n    path: '{}/${{! uuid_v4() }}.parquet'\n    codec: all-bytes\n",
                folder.path().display()
            );
        let idle = self.run_to_end("input:\n  generate: { count: 1, mapping: 'root = {}' }\noutput:\n  drop: {}\n");
        let started = Instant::now();
        let mut process = self.start(&config);
        let mut known: BTreeMap<PathBuf, u64> = BTreeMap::new();
        wait::until("Bento has written all rows", LIMIT, || {
            assert!(process.is_running(), "Bento ended: {}", process.stderr());
            for file in files_in(folder.path()) {
                if !known.contains_key(&file)
                    && let Some(rows) = rows_of(&file)
                {
                    known.insert(file, rows);
                }
            }
            (known.values().sum::<u64>() >= lines).then_some(())
        });
        let elapsed = started.elapsed();
        process.sigterm();
        let exit = Exit { elapsed, ..process.wait(Duration::from_secs(60)) };
        assert_eq!(files_in(folder.path()).iter().filter_map(|file| rows_of(file)).sum::<u64>(), lines);
        Run::of(lines, &exit, &idle)
    }

    /// Runs it with a configuration that ends.
    pub(crate) fn run_to_end(&self, config: &str) -> Exit {
        let exit = self.start(config).wait(LIMIT);
        assert_eq!(exit.code, Some(0), "{}", exit.describe());
        exit
    }

    fn write(&self, config: &str) -> PathBuf {
        let path = self.folder.path().join(unique("bento")).with_extension("yaml");
        fs::write(&path, format!("http: {{ enabled: false }}\nlogger: {{ level: WARN }}\n{config}")).unwrap();
        path
    }
}

/// A name that is unique in this run.
fn unique(prefix: &str) -> String {
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    format!("{prefix}-{}", NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed))
}
