//! Bento beside the worker, in turns, on the same broker and the same lines: a log file to a topic, and a topic to Parquet.
//!
//! **Its settings**, large batches and all that lets it work in parallel, by its documentation; few others were tried. File to topic: batches of 5,000, 10 of them in flight, lz4, room for 100,000 records in the
//! client. Topic to Parquet: batches of 100,000 rows as files, encoded by two threads, zstd, fetches of 16 MiB, room for the records of four files. Its messages carry
//! no headers, it delivers at least once, and its columns are told beforehand; the worker's have path, offset and schema as headers, it
//! delivers exactly once, and finds the columns itself.
//!
//! Each has as many lines as it moves in the time of a run. Rows are counted at the destination.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use trunkline_tests::{Exit, Kafka, Skip, Tool, wait};

use crate::client::{self, LIMIT, PARTITIONS, Stored};
use crate::measure::{Sizes, files_in, rows_of};
use crate::pipeline::{self, Run, SAMPLE, beside_peer, in_turns};
use crate::records::{Lines, Log};
use crate::table::{Demand, Row};

/// Lines of the short run that says how many a long one takes.
const SHORT: u64 = 600_000;

/// Rows of a file. All lines are a multiple of it, so that nothing waits for a last batch that does not fill.
const FILE_ROWS: u64 = 100_000;

/// What the combined parser writes, as columns.
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

struct Bento<'a> {
    tool: Tool,
    /// For its configuration files.
    folder: tempfile::TempDir,
    kafka: &'a Kafka,
}

/// The rows that are wanted: `bento-log`, `bento-lake`.
pub(crate) fn rows(kafka: &Kafka, sizes: Sizes, wanted: impl Fn(&str) -> bool) -> Result<Vec<Row>, Skip> {
    let bento = Bento { tool: Tool::find("bento")?, folder: tempfile::tempdir().unwrap(), kafka };
    let lines = Lines::generate(1, SAMPLE);
    let (topic, _) = pipeline::read_log(kafka, &Log::write(&lines, SAMPLE), "combined", SAMPLE);
    let sample = client::load(kafka, &topic);
    client::delete_topic(kafka.brokers(), &topic);
    let mut rows = Vec::new();

    if wanted("bento-log") {
        let short = Log::write(&lines, SHORT);
        let theirs = sizes.records(bento.read_log(&short, SHORT).a_second());
        let (topic, worker) = pipeline::read_log(kafka, &short, "none", SHORT);
        client::delete_topic(kafka.brokers(), &topic);
        let ours = sizes.records(worker.a_second());
        let (their_log, our_log) = (Log::write(&lines, theirs), Log::write(&lines, ours));
        let name = "Bento: log file -> topic";
        eprintln!("{name}");
        let arms = in_turns(
            sizes,
            |_| bento.read_log(&their_log, theirs).told("Bento", sizes),
            |_| {
                let (topic, run) = pipeline::read_log(kafka, &our_log, "none", ours);
                client::consume(&client::consumer(kafka.brokers(), "count", &[]), &topic, ours);
                client::delete_topic(kafka.brokers(), &topic);
                run.told("worker", sizes)
            },
        );
        rows.extend(beside_peer(name, "lines/s", Demand::None, &arms));
    }
    if wanted("bento-lake") {
        let short = pipeline::backlog(kafka, "bento-short", &sample, SHORT);
        let theirs = sizes.records(bento.write_lake(&short, SHORT).a_second());
        let ours = sizes.records(pipeline::write_lake(kafka, &short, false, SHORT).a_second());
        let (their_topic, our_topic) = backlogs(kafka, &sample, theirs, ours);
        let name = "Bento: topic -> Parquet zstd";
        eprintln!("{name}");
        let arms = in_turns(
            sizes,
            |_| bento.write_lake(&their_topic, theirs).told("Bento", sizes),
            |_| pipeline::write_lake(kafka, &our_topic, false, ours).told("worker", sizes),
        );
        rows.extend(beside_peer(name, "lines/s", Demand::None, &arms));
    }
    Ok(rows)
}

fn backlogs(kafka: &Kafka, sample: &[Stored], theirs: u64, ours: u64) -> (String, String) {
    let theirs = pipeline::backlog(kafka, "bento-theirs", sample, theirs);
    (theirs, pipeline::backlog(kafka, "bento-ours", sample, ours))
}

impl Bento<'_> {
    /// Log file to topic. It ends by itself at the end of the file.
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

    /// Topic to Parquet files. It never ends by itself: it is stopped when all rows are there, and that is when the time ends.
    fn write_lake(&self, topic: &str, lines: u64) -> Run {
        let folder = tempfile::tempdir().unwrap();
        let columns: String = COLUMNS
            .iter()
            .map(|(name, kind)| format!("          - {{ name: {name}, type: {kind}, optional: true }}\n"))
            .collect();
        let config = format!(
            "input:\n  kafka_franz:\n    seed_brokers: [ {} ]\n    topics: [ {topic} ]\n    consumer_group: {}\n    checkpoint_limit: 400000\n    \
             auto_replay_nacks: false\n    fetch_max_partition_bytes: 16MiB\n    batching: {{ count: {FILE_ROWS}, period: 10s }}\n\
             pipeline:\n  threads: 2\n  processors:\n    - parquet_encode:\n        default_compression: zstd\n        schema:\n{columns}\
             output:\n  file:\n    path: '{}/${{! uuid_v4() }}.parquet'\n    codec: all-bytes\n",
            self.kafka.brokers(),
            unique("bento"),
            folder.path().display()
        );
        let idle = self.run_to_end("input:\n  generate: { count: 1, mapping: 'root = {}' }\noutput:\n  drop: {}\n");
        let path = self.write(&config);
        let started = Instant::now();
        let mut process = self.tool.start(&["-c", path.to_str().unwrap()]);
        let mut known: BTreeMap<PathBuf, u64> = BTreeMap::new();
        wait::until("Bento has written all rows", LIMIT, || {
            assert!(process.runs(), "Bento ended: {}", process.stderr());
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

    fn run_to_end(&self, config: &str) -> Exit {
        let path = self.write(config);
        let exit = self.tool.start(&["-c", path.to_str().unwrap()]).wait(LIMIT);
        assert_eq!(exit.code, Some(0), "{}", exit.describe());
        exit
    }

    fn write(&self, config: &str) -> PathBuf {
        let path = self.folder.path().join(unique("bento")).with_extension("yaml");
        fs::write(&path, format!("http: {{ enabled: false }}\nlogger: {{ level: WARN }}\n{config}")).unwrap();
        path
    }
}

/// A name that nothing else has in this run.
fn unique(prefix: &str) -> String {
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    format!("{prefix}-{}", NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed))
}
