//! The latency of a line from the log to the topic and to a file (with the default commit interval,
//! and files of 1 s), the time from a worker's start to its first record, and the memory of an idle
//! worker. Percentiles are those of one round's lines.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use arrow::array::AsArray;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use rdkafka::consumer::BaseConsumer;
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use trunkline_tests::{Case, Kafka, Process, memory_of, wait};

use crate::client::{self, LIMIT, PARTITIONS};
use crate::measure::{Sampling, percentile};
use crate::table::{Row, Target};

/// The interval between two lines.
const INTERVAL: Duration = Duration::from_millis(20);
const STARTS: usize = 5;

pub(crate) fn rows(kafka: &Kafka, sampling: Sampling) -> Vec<Row> {
    let (first_records, idle) = starts(kafka);
    let (mut in_topic, mut in_files) = (Vec::new(), Vec::new());
    for round in 0..sampling.rounds {
        let (topic, files) = lines(kafka, round, (sampling.run.as_secs_f64() / INTERVAL.as_secs_f64()) as usize);
        in_topic.push(topic);
        in_files.push(files);
    }
    let row = |name: &str, unit, measured, target| Row {
        name: name.to_owned(),
        unit,
        reference: Vec::new(),
        measured,
        target,
    };
    let each = |rounds: &[Vec<f64>], share| rounds.iter().map(|values| percentile(values, share)).collect::<Vec<_>>();
    vec![
        row("line written -> record readable, p50", "ms", each(&in_topic, 0.5), Target::None),
        row("  p99", "ms", each(&in_topic, 0.99), Target::AtMost(250.0)),
        row("line written -> row in a file, p50", "ms", each(&in_files, 0.5), Target::None),
        row("  p99", "ms", each(&in_files, 0.99), Target::AtMost(1500.0)),
        row("worker started -> first record", "ms", first_records, Target::AtMost(300.0)),
        row("idle worker, RSS", "MB", idle, Target::AtMost(40.0)),
    ]
}

/// The milliseconds from a worker's start, with one line to read, until its record can be read, and
/// the memory of the idle worker.
fn starts(kafka: &Kafka) -> (Vec<f64>, Vec<f64>) {
    let mut first_records = Vec::new();
    let mut idle = Vec::new();
    for number in 0..STARTS {
        let case = source(kafka, &format!("bench-start-{number}"), "");
        append(&case.path("logs/a.log"), "first");
        let topic = format!("{}.web", case.name());
        kafka.create_topic(&topic, PARTITIONS);
        let consumer = reader(kafka, &topic);
        let started = Instant::now();
        let mut worker = case.start("a", &[]);
        while !matches!(consumer.poll(Duration::from_millis(1)), Some(Ok(_))) {
            assert!(started.elapsed() < LIMIT && worker.is_running(), "no record: {}", worker.stderr());
        }
        first_records.push(started.elapsed().as_secs_f64() * 1e3);
        // The worker returns the memory that its start needed.
        let read = Instant::now();
        wait::until("the worker is idle", LIMIT, || (read.elapsed() > Duration::from_secs(2)).then_some(()));
        idle.push(memory_of(worker.pid(), "VmRSS").unwrap() as f64 / 1e6);
        end(worker);
    }
    (first_records, idle)
}

/// The milliseconds from writing each line until its record can be read, and until its row is in a
/// file.
fn lines(kafka: &Kafka, round: usize, count: usize) -> (Vec<f64>, Vec<f64>) {
    let sink =
        "[sinks.lake]\nconnector = \"s3\"\ninputs = [\"web\"]\nurl = \"file://$DIR/lake\"\nrotate = { age = \"1s\" }\n";
    let case = source(kafka, &format!("bench-latency-{round}"), sink);
    let topic = format!("{}.web", case.name());
    kafka.create_topic(&topic, PARTITIONS);
    let consumer = reader(kafka, &topic);
    let log = case.path("logs/a.log");
    append(&log, "warm up");
    let mut worker = case.start("a", &[]);
    let mut files = BTreeSet::new();
    wait::until("the first line is in a file", LIMIT, || new_rows(&case.path("lake"), &mut files).pop());
    while !matches!(consumer.poll(Duration::from_millis(100)), Some(Ok(_))) {
        assert!(worker.is_running(), "{}", worker.stderr());
    }

    let started = Instant::now();
    let (mut written, mut in_topic, mut in_files) = (Vec::new(), Vec::new(), Vec::new());
    let since = |sent: Duration| (started.elapsed() - sent).as_secs_f64() * 1e3;
    while in_files.len() < count || in_topic.len() < count {
        assert!(
            started.elapsed() < LIMIT && worker.is_running(),
            "{} and {}: {}",
            in_topic.len(),
            in_files.len(),
            worker.stderr()
        );
        if written.len() < count && started.elapsed() >= INTERVAL * written.len() as u32 {
            append(&log, &written.len().to_string());
            written.push(started.elapsed());
        }
        if let Some(Ok(record)) = consumer.poll(Duration::from_millis(1)) {
            let value: serde_json::Value = serde_json::from_slice(record.payload().unwrap()).unwrap();
            let number: usize = value["message"].as_str().unwrap().parse().unwrap();
            in_topic.push(since(written[number]));
        }
        for text in new_rows(&case.path("lake"), &mut files) {
            let number: usize = text.parse().unwrap();
            in_files.push(since(written[number]));
        }
    }
    end(worker);
    (in_topic, in_files)
}

fn source(kafka: &Kafka, name: &str, more: &str) -> Case {
    let case = Case::new(name, kafka);
    let text =
        format!("name = \"$NAME\"\n[sources.web]\nconnector = \"logfile\"\npaths = [\"$DIR/logs/*.log\"]\n{more}");
    case.pipeline("bench", &text);
    case
}

pub(crate) fn end(mut worker: Process) {
    worker.sigterm();
    worker.wait(LIMIT);
}

fn append(log: &Path, line: &str) {
    let mut file = OpenOptions::new().create(true).append(true).open(log).unwrap();
    file.write_all(format!("{line}\n").as_bytes()).unwrap();
}

/// A consumer at the end of all partitions of a topic.
pub(crate) fn reader(kafka: &Kafka, topic: &str) -> BaseConsumer {
    let consumer = client::consumer(kafka.brokers(), "bench", &[]);
    client::assign(&consumer, topic, PARTITIONS);
    // It is connected and waits for records before the measurement begins.
    let mut ends = 0;
    wait::until("the reader is at the end of the topic", LIMIT, || {
        ends += i32::from(matches!(consumer.poll(Duration::from_millis(100)), Some(Err(KafkaError::PartitionEOF(_)))));
        (ends == PARTITIONS).then_some(())
    });
    consumer
}

/// The messages in new files.
fn new_rows(lake: &Path, known: &mut BTreeSet<std::path::PathBuf>) -> Vec<String> {
    let mut rows = Vec::new();
    for entry in fs::read_dir(lake).unwrap() {
        let path = entry.unwrap().path();
        let published = path.extension().is_some_and(|extension| extension == "parquet");
        if !published || !known.insert(path.clone()) {
            continue;
        }
        let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(&path).unwrap()).unwrap().build().unwrap();
        for batch in reader {
            let batch = batch.unwrap();
            let messages = batch.column_by_name("message").unwrap().as_string::<i32>();
            rows.extend(messages.iter().flatten().map(str::to_owned));
        }
    }
    rows
}
