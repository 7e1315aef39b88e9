//! How late a line can be read after it was written, how soon a worker has its first record, and what it holds while nothing comes.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use arrow::array::AsArray;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use rdkafka::consumer::BaseConsumer;
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use trunkline_tests::{Case, Kafka, Worker, memory_of, wait};

use crate::client::{self, LIMIT, PARTITIONS};
use crate::measure::{median, percentile};

/// Lines are written so far apart.
const PAUSE: Duration = Duration::from_millis(20);
const LINES: usize = 500;
const STARTS: usize = 5;

pub(crate) fn run_all() -> ExitCode {
    let kafka = Kafka::start().unwrap_or_else(|skip| panic!("{skip}"));
    let (first_records, idle) = starts(&kafka);
    let (in_topic, in_files) = lines(&kafka);
    println!("{LINES} lines, one each {PAUSE:?}; {STARTS} starts; default commit interval; files with rotate age 1 s");
    let rows = [
        ("line written -> record readable, p50", percentile(&in_topic, 0.5), f64::INFINITY, "ms"),
        ("line written -> record readable, p99", percentile(&in_topic, 0.99), 250.0, "ms"),
        ("line written -> row in a published file, p50", percentile(&in_files, 0.5), f64::INFINITY, "ms"),
        ("line written -> row in a published file, p99", percentile(&in_files, 0.99), 1500.0, "ms"),
        ("worker started -> first record readable", median(&first_records), 300.0, "ms"),
        ("idle worker, RSS", idle / 1e6, 40.0, "MB"),
    ];
    println!("| | measured | demanded | |");
    println!("|---|---|---|---|");
    let mut met = 0;
    for (name, value, most, unit) in rows {
        let verdict = if value <= most { "met" } else { "NOT MET" };
        met += usize::from(value <= most);
        let demanded = if most.is_finite() { format!("<= {most} {unit}") } else { String::new() };
        println!("| {name:<46} | {value:>6.0} {unit} | {demanded:<10} | {verdict} |");
    }
    println!("{met} of {} demands met", rows.len());
    ExitCode::from(u8::from(met < rows.len()))
}

/// Milliseconds from starting a worker, with a line to read, until its record can be read; and the memory of one that has nothing to do.
fn starts(kafka: &Kafka) -> (Vec<f64>, f64) {
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
            assert!(started.elapsed() < LIMIT && worker.runs(), "no record: {}", worker.stderr());
        }
        first_records.push(started.elapsed().as_secs_f64() * 1e3);
        // Until what was needed to start was given back.
        let settled = Instant::now();
        wait::until("the worker is at rest", LIMIT, || (settled.elapsed() > Duration::from_secs(2)).then_some(()));
        idle.push(memory_of(worker.pid(), "VmRSS").unwrap() as f64);
        end(worker);
    }
    (first_records, median(&idle))
}

/// Milliseconds from writing each line until its record can be read, and until its row is in a file.
fn lines(kafka: &Kafka) -> (Vec<f64>, Vec<f64>) {
    let sink =
        "[sinks.lake]\nconnector = \"s3\"\ninputs = [\"web\"]\nurl = \"file://$DIR/lake\"\nrotate = { age = \"1s\" }\n";
    let case = source(kafka, "bench-latency", sink);
    let topic = format!("{}.web", case.name());
    kafka.create_topic(&topic, PARTITIONS);
    let consumer = reader(kafka, &topic);
    let log = case.path("logs/a.log");
    append(&log, "warm up");
    let mut worker = case.start("a", &[]);
    let mut files = BTreeSet::new();
    wait::until("the first line is in a file", LIMIT, || new_rows(&case.path("lake"), &mut files).pop());
    while !matches!(consumer.poll(Duration::from_millis(100)), Some(Ok(_))) {
        assert!(worker.runs(), "{}", worker.stderr());
    }

    let started = Instant::now();
    let (mut written, mut in_topic, mut in_files) = (Vec::new(), Vec::new(), Vec::new());
    let since = |sent: Duration| (started.elapsed() - sent).as_secs_f64() * 1e3;
    while in_files.len() < LINES || in_topic.len() < LINES {
        assert!(
            started.elapsed() < LIMIT && worker.runs(),
            "{} and {}: {}",
            in_topic.len(),
            in_files.len(),
            worker.stderr()
        );
        if written.len() < LINES && started.elapsed() >= PAUSE * written.len() as u32 {
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

fn end(mut worker: Worker) {
    worker.sigterm();
    worker.wait(LIMIT);
}

fn append(log: &Path, line: &str) {
    let mut file = OpenOptions::new().create(true).append(true).open(log).unwrap();
    file.write_all(format!("{line}\n").as_bytes()).unwrap();
}

/// Reads all partitions of a topic from where they are now.
fn reader(kafka: &Kafka, topic: &str) -> BaseConsumer {
    let consumer = client::consumer(kafka.brokers(), "bench", &[]);
    client::assign(&consumer, topic, PARTITIONS);
    // Waiting for records, all connected, before anything is timed.
    let mut ends = 0;
    wait::until("the reader is at the end of the topic", LIMIT, || {
        ends += i32::from(matches!(consumer.poll(Duration::from_millis(100)), Some(Err(KafkaError::PartitionEOF(_)))));
        (ends == PARTITIONS).then_some(())
    });
    consumer
}

/// The messages in files that were not there before.
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
