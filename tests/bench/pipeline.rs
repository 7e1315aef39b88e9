//! Lines a second, processor seconds and memory of both halves of the log pipeline, beside what a bare Kafka client does with the same
//! bytes in the same run: the limit that no worker can pass.
//!
//! Kafka runs on the same machine and takes its share of the processors, from the limit as much as from the worker.

use trunkline_tests::{Case, Exit, Kafka, Reader};

use crate::client::{self, LIMIT, PARTITIONS};
use crate::measure::cpu_seconds;
use crate::records::{LINE_BYTES, Log};

/// One line of the result.
struct Measured {
    seconds: f64,
    cpu: f64,
    peak_rss: Option<u64>,
}

pub(crate) fn run_all(lines: u64) {
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
    kafka.create_topic(topic, PARTITIONS);
    let producer = client::transactional_producer(kafka.brokers(), topic, &[]);
    let cpu = cpu_seconds();
    let seconds = client::produce(&producer, topic, log.records().take(lines as usize)).as_secs_f64();
    let measured = Measured { seconds, cpu: cpu_seconds() - cpu, peak_rss: None };
    assert_eq!(kafka.count(topic), lines);
    measured
}

/// The limit of reading: all records of the topic, with the settings of the worker's consumer.
fn consume(kafka: &Kafka, topic: &str, lines: u64) -> Measured {
    let consumer = client::consumer(kafka.brokers(), "bench-limit", &[]);
    let cpu = cpu_seconds();
    let seconds = client::consume(&consumer, topic, lines).as_secs_f64();
    Measured { seconds, cpu: cpu_seconds() - cpu, peak_rss: None }
}
