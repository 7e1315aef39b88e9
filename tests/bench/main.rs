//! Lines a second, processor seconds and memory of both halves of the log pipeline, beside what a bare Kafka client does with the same
//! bytes in the same run: the limit that no worker can pass.
//!
//! `tests/bench/run [LINES]` builds everything in release and runs this. Kafka runs on the same machine and takes its share of the
//! processors, from the limit as much as from the worker.

// A benchmark that meets an error has nothing to measure.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::{Duration, Instant};
use std::{env, mem};

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use trunkline_tests::{Case, Exit, Kafka, LogWriter, Reader};

const LINE_BYTES: usize = 300;
const PARTITIONS: i32 = 4;
const COMMIT_INTERVAL: Duration = Duration::from_millis(200);
const LIMIT: Duration = Duration::from_secs(900);

/// One line of the result.
struct Measured {
    seconds: f64,
    cpu: f64,
    peak_rss: Option<u64>,
}

fn main() {
    let lines =
        env::args().nth(1).map_or(2_000_000, |argument| argument.replace('_', "").parse().expect("a number of lines"));
    let kafka = Kafka::start().unwrap_or_else(|skip| panic!("{skip}"));
    let log = Log::write(lines);
    println!("{lines} lines of {LINE_BYTES} bytes; {} processors", std::thread::available_parallelism().unwrap());
    println!("{:<44}{:>12}{:>9}{:>14}{:>11}{:>13}", "", "lines/s", "MB/s", "CPU-s/million", "peak RSS", "of the limit");
    let show = |name: &str, measured: &Measured, limit: Option<&Measured>| {
        let rate = lines as f64 / measured.seconds;
        let megabytes = rate * LINE_BYTES as f64 / 1e6;
        let cpu = measured.cpu / lines as f64 * 1e6;
        let rss = measured.peak_rss.map_or(String::new(), |bytes| format!("{} MB", bytes / 1_000_000));
        let ratio = limit.map_or(String::new(), |limit| format!("{:.2}", limit.seconds / measured.seconds));
        println!("{name:<44}{rate:>12.0}{megabytes:>9.0}{cpu:>14.2}{rss:>11}{ratio:>13}");
    };

    // The broker's first second is slow, until its code is compiled: that would be a limit of nothing.
    produce(&kafka, &log, "bench-warm-up", lines / 4);
    let produce = produce(&kafka, &log, "bench-limit", lines);
    show("limit: bare transactional producer", &produce, None);
    for parser in ["none", "combined"] {
        let (case, source) = read_log(&kafka, &log, parser, lines);
        show(&format!("log file -> topic, parser {parser}"), &source, Some(&produce));
        if parser == "none" {
            continue;
        }
        let topic = format!("{}.web", case.name());
        let consume = consume(&kafka, &topic, lines);
        show("limit: bare consumer, committed records", &consume, None);
        for (name, mask) in [("without a transform", false), ("with the plugin mask", true)] {
            let sink = write_lake(&kafka, &topic, mask, lines);
            show(&format!("topic -> Parquet, {name}"), &sink, Some(&consume));
        }
    }
}

/// The log file that is read, also as the lines that the bare producer sends.
struct Log {
    _folder: tempfile::TempDir,
    path: std::path::PathBuf,
    bytes: Vec<u8>,
}

impl Log {
    /// Generated lines, each brought to the same length by its last field.
    fn write(lines: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (generated, path) = (folder.path().join("generated.log"), folder.path().join("access.log"));
        let mut writer = LogWriter::new(&generated, 1);
        writer.append(lines);
        let mut file = BufWriter::new(File::create(&path).unwrap());
        for line in fs::read(&generated).unwrap().split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let short = (LINE_BYTES - 1).checked_sub(line.len()).expect("generated lines are shorter");
            file.write_all(&line[..line.len() - 1]).unwrap();
            file.write_all(
                &b" (compatible; padding of a fixed text, as long as most agents' names are these days)".repeat(4)
                    [..short],
            )
            .unwrap();
            file.write_all(b"\"\n").unwrap();
        }
        file.into_inner().unwrap();
        fs::remove_file(generated).unwrap();
        let bytes = fs::read(&path).unwrap();
        assert_eq!(bytes.len(), lines as usize * LINE_BYTES);
        Self { _folder: folder, path, bytes }
    }

    /// Puts it where a case reads it.
    fn link(&self, folder: &Path) {
        fs::hard_link(&self.path, folder.join("access.log")).unwrap();
    }
}

/// Log file to topic.
fn read_log(kafka: &Kafka, log: &Log, parser: &str, lines: u64) -> (Case, Measured) {
    let case = Case::new(&format!("bench-{parser}"), kafka);
    let text = format!(
        "name = \"$NAME\"\n[sources.web]\nconnector = \"logfile\"\npaths = [\"$DIR/logs/*.log\"]\nparser = \"{parser}\"\n"
    );
    case.pipeline("bench", &text);
    // With nothing to do yet: what a worker needs to start and to see that it is idle is not part of a rate.
    let idle = run(&case);
    log.link(&case.path("logs"));
    let exit = run(&case);
    assert_eq!(exit.summary().of(case.name(), "web").output, lines);
    (case, measured(&exit, &idle))
}

/// Topic to Parquet files.
fn write_lake(kafka: &Kafka, topic: &str, mask: bool, lines: u64) -> Measured {
    let case = Case::new(if mask { "bench-mask" } else { "bench-plain" }, kafka);
    let transform = "[transforms.clean]\ninputs = [\"topic:TOPIC\"]\nplugin = \"mask.wasm\"\nconfig = { fields = [\"remote_addr\"] }\n";
    let sink = "[sinks.lake]\nconnector = \"s3\"\ninputs = [\"INPUT\"]\nurl = \"file://$DIR/lake\"\npath = \"day={timestamp:%Y-%m-%d}\"\n";
    let text =
        if mask { [transform, &sink.replace("INPUT", "clean")].concat() } else { sink.replace("INPUT", "topic:TOPIC") };
    case.pipeline("bench", &format!("name = \"$NAME\"\n{}", text.replace("TOPIC", topic)));
    let exit = run(&case);
    assert_eq!(exit.summary().of(case.name(), "lake").output, lines);
    if let Ok(reader) = Reader::find() {
        assert_eq!(reader.read(&case.path("lake"), &["path"]).distinct, Some(lines));
    }
    // Its own start-up, with everything read already.
    measured(&exit, &run(&case))
}

fn run(case: &Case) -> Exit {
    let exit = case.start("a", &["--until-idle", "--json"]).wait(LIMIT);
    assert_eq!(exit.code, Some(0), "{}", exit.describe());
    exit
}

fn measured(exit: &Exit, idle: &Exit) -> Measured {
    Measured {
        seconds: exit.elapsed.saturating_sub(idle.elapsed).as_secs_f64(),
        cpu: exit.cpu.saturating_sub(idle.cpu).as_secs_f64(),
        peak_rss: Some(exit.peak_rss),
    }
}

/// The limit of writing: the same lines, with the settings of the worker's producer, and nothing else.
fn produce(kafka: &Kafka, log: &Log, topic: &str, lines: u64) -> Measured {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", kafka.brokers());
    let admin: AdminClient<DefaultClientContext> = config.create().unwrap();
    let new = NewTopic::new(topic, PARTITIONS, TopicReplication::Fixed(1));
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let created = runtime.block_on(admin.create_topics([&new], &AdminOptions::new())).unwrap();
    assert!(created.iter().all(Result::is_ok), "{created:?}");

    let producer: BaseProducer = config
        .set("transactional.id", topic)
        .set("acks", "all")
        .set("compression.type", "lz4")
        .set("linger.ms", "5")
        .set("batch.size", "1000000")
        .set("queue.buffering.max.messages", "500000")
        .create()
        .unwrap();
    producer.init_transactions(LIMIT).unwrap();
    let commit = || {
        // Never flush(), which commit_transaction() calls: with anything in flight it waits in steps of 100 ms.
        while producer.in_flight_count() > 0 {
            producer.poll(Duration::from_millis(1));
        }
        producer.commit_transaction(LIMIT).unwrap();
    };

    let (started, cpu) = (Instant::now(), cpu_seconds());
    producer.begin_transaction().unwrap();
    let mut begun = Instant::now();
    for (number, line) in log.bytes.chunks(LINE_BYTES).take(lines as usize).enumerate() {
        let partition = (number / 1000) as i32 % PARTITIONS;
        let mut record = BaseRecord::<(), [u8]>::to(topic).partition(partition).payload(line);
        loop {
            match producer.send(record) {
                Ok(()) => break,
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), returned)) => {
                    record = returned;
                    producer.poll(Duration::from_millis(1));
                }
                Err((error, _)) => panic!("{error}"),
            }
        }
        if number % 1000 == 0 {
            producer.poll(Duration::ZERO);
            if begun.elapsed() >= COMMIT_INTERVAL {
                commit();
                producer.begin_transaction().unwrap();
                begun = Instant::now();
            }
        }
    }
    commit();
    let measured = Measured { seconds: started.elapsed().as_secs_f64(), cpu: cpu_seconds() - cpu, peak_rss: None };
    assert_eq!(kafka.count(topic), lines);
    measured
}

/// The limit of reading: all records of the topic, with the settings of the worker's consumer.
fn consume(kafka: &Kafka, topic: &str, lines: u64) -> Measured {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", kafka.brokers())
        .set("group.id", "bench-limit")
        .set("enable.auto.commit", "false")
        .set("isolation.level", "read_committed")
        .set("enable.partition.eof", "true")
        .set("fetch.queue.backoff.ms", "5")
        .set("queued.min.messages", "400000")
        .create()
        .unwrap();
    let metadata = consumer.fetch_metadata(Some(topic), LIMIT).unwrap();
    let partitions = metadata.topics()[0].partitions().len() as i32;
    let mut assignment = TopicPartitionList::new();
    for partition in 0..partitions {
        assignment.add_partition_offset(topic, partition, Offset::Beginning).unwrap();
    }

    let (started, cpu) = (Instant::now(), cpu_seconds());
    consumer.assign(&assignment).unwrap();
    let (mut count, mut open) = (0, partitions);
    while open > 0 {
        assert!(started.elapsed() < LIMIT, "{count} of {lines} records");
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(_)) => count += 1,
            Some(Err(KafkaError::PartitionEOF(_))) => open -= 1,
            Some(Err(error)) => panic!("{error}"),
            None => {}
        }
    }
    assert_eq!(count, lines);
    Measured { seconds: started.elapsed().as_secs_f64(), cpu: cpu_seconds() - cpu, peak_rss: None }
}

/// Processor seconds of this process, user and system.
fn cpu_seconds() -> f64 {
    // SAFETY: rusage is plain numbers, and getrusage fills it.
    let usage = unsafe {
        let mut usage: libc::rusage = mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &mut usage);
        usage
    };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}
