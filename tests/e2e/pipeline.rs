//! The pipeline of the README, without faults.

use std::fs;
use std::time::{Duration, Instant};

use trunkline_tests::{BrokerKind, Case, Kafka, LogWriter, Reader, S3, need, repository, sample_access_log, wait};

use crate::{
    LONG, access_logs, access_logs_to_s3, assert_all_arrives, assert_counted, assert_every_line_once, wait_for_rows,
};

on_each_broker!(an_existing_topic_is_kept_and_its_differences_are_reported);

/// Malformed lines of the sample: one lacks the last quote.
const MALFORMED: u64 = 1;

#[test]
fn a_real_log_arrives_line_by_line() {
    let (kafka, reader, sample) = (need!(Kafka::any()), need!(Reader::find()), need!(sample_access_log()));
    let case = Case::new("real-log", kafka);
    fs::copy(&sample, case.path("logs/access.log")).unwrap();
    case.pipeline("access", &access_logs());

    let summary = case.until_idle("a", LONG);

    let lines = fs::read(&sample).unwrap().split_inclusive(|byte| *byte == b'\n').count() as u64;
    assert_eq!(lines, 10_000);
    assert_counted(&summary, &case, lines, MALFORMED);
    let found = reader.compare(&case.path("lake"), &[&sample]);
    assert_eq!((found.missing_total, found.extra_total), (Some(0), Some(0)), "{found:?}");
    assert_eq!((found.rows, found.unparsed), (lines - MALFORMED, Some(MALFORMED)));

    assert_eq!(found.partitions["day"], ["2015-05-17", "2015-05-18", "2015-05-19", "2015-05-20"]);
    assert_eq!(
        (found.types["status"].as_slice(), found.types["bytes"].as_slice()),
        (&["int32".to_owned()][..], &["int64".to_owned()][..])
    );
    assert!(found.types["timestamp"].iter().all(|kind| kind.starts_with("timestamp[")), "{:?}", found.types);

    // The topic has clear addresses, the lake has masked ones.
    let topic = kafka.read(&format!("{}.web", case.name()));
    assert_eq!(topic.len() as u64, lines - MALFORMED);
    let is_address = |text: &str| text.parse::<std::net::IpAddr>().is_ok();
    assert!(topic.iter().any(|record| record.json()["remote_addr"].as_str().is_some_and(is_address)));
    let masked = reader.read_with_values(&case.path("lake"), "remote_addr").values;
    assert!(!masked.is_empty() && !masked.iter().any(|value| is_address(value)), "{masked:?}");

    // A second run without new lines adds nothing.
    assert_eq!(case.until_idle("a", LONG), summary);
    assert_eq!(reader.read(&case.path("lake"), &[]).rows, lines - MALFORMED);
}

#[test]
fn the_pipeline_of_the_readme_runs() {
    let (kafka, reader) = (need!(Kafka::any()), need!(Reader::find()));
    let case = Case::new("readme", kafka);
    let sample = repository().join("pipelines");
    let pipeline = fs::read_to_string(sample.join("access-logs.toml")).unwrap();
    let lake = "file:///tmp/trunkline-lake";
    assert!(pipeline.contains(lake));
    case.pipeline("access-logs", &pipeline.replace(lake, "file://$DIR/lake"));
    let log = case.path("pipelines/access-logs/access.log");
    fs::create_dir(log.parent().unwrap()).unwrap();
    fs::copy(sample.join("access-logs/access.log"), &log).unwrap();

    let summary = case.until_idle("a", LONG);

    let web = summary.of("access-logs", "web");
    assert_eq!((web.input, web.output, web.dead_lettered), (2_000, 1_999, 1));
    assert_eq!(summary.of("access-logs", "lake").output, 1_999);
    let found = reader.compare(&case.path("lake"), &[&log]);
    assert_eq!((found.missing_total, found.extra_total, found.unparsed), (Some(0), Some(0), Some(1)), "{found:?}");
    assert_eq!(kafka.count("access-logs.dead-letters"), 1);
    // The pipeline masks before the topic.
    let topic = kafka.read("access-logs.web");
    assert_eq!(topic.len(), 1_999);
    assert!(topic.iter().all(|record| record.json()["remote_addr"] == "***"), "the topic has clear addresses");
}

#[test]
fn a_hundred_thousand_lines_arrive() {
    let (kafka, reader) = (need!(Kafka::any()), need!(Reader::find()));
    let case = Case::new("100k", kafka);
    let mut log = LogWriter::new(case.path("logs/access.log"), 100);
    log.append(100_000);
    case.pipeline("access", &access_logs());

    let summary = case.until_idle("a", LONG);

    assert_counted(&summary, &case, log.lines(), 0);
    let found = assert_every_line_once(&reader, &case.path("lake"), &log);
    assert_eq!(found.partitions["day"], ["2026-03-01", "2026-03-02", "2026-03-03"]);
    assert_eq!(kafka.count(&format!("{}.web", case.name())), log.lines());
}

#[test]
fn lines_arrive_in_a_bucket() {
    let (kafka, reader, s3) = (need!(Kafka::any()), need!(Reader::find()), need!(S3::shared()));
    let case = Case::new("bucket", kafka);
    let bucket = s3.bucket(case.name());
    let mut log = LogWriter::new(case.path("logs/access.log"), 101);
    log.append(20_000);
    case.pipeline("access", &access_logs_to_s3(&s3.address()));

    let summary = case.until_idle("a", LONG);

    assert_counted(&summary, &case, log.lines(), 0);
    assert_every_line_once(&reader, &bucket.join("logs"), &log);
}

#[test]
fn a_worker_follows_the_log_and_stops_within_10_seconds() {
    let (kafka, reader) = (need!(Kafka::any()), need!(Reader::find()));
    let case = Case::new("follow", kafka);
    let mut log = LogWriter::new(case.path("logs/access.log"), 102);
    log.append(1_000);
    case.pipeline("access", &access_logs());
    let mut worker = case.start("a", &[]);
    wait_for_rows(&reader, &case.path("lake"), 1_000);
    log.append(1_000);
    wait_for_rows(&reader, &case.path("lake"), 2_000);

    // Stop the worker while these lines are between the topic and the lake.
    log.append(30_000);
    let topic = format!("{}.web", case.name());
    wait::until("the topic has some of the lines", LONG, || (kafka.count(&topic) > 2_000).then_some(()));
    assert!(worker.is_running(), "{}", worker.stderr());
    worker.sigterm();
    let signalled = Instant::now();
    let exit = worker.wait(Duration::from_secs(30));
    assert_eq!(exit.code, Some(0), "{}", exit.describe());
    assert!(signalled.elapsed() < Duration::from_secs(10), "the worker took {:?} to stop", signalled.elapsed());

    // The next worker reads the lines that were written while no worker ran.
    log.append(1_000);
    assert_all_arrives(&case, &reader, &log);
}

fn an_existing_topic_is_kept_and_its_differences_are_reported(kind: BrokerKind) {
    let (kafka, reader) = (need!(Kafka::shared(kind)), need!(Reader::find()));
    let case = Case::new("existing", kafka);
    let topic = format!("{}.web", case.name());
    kafka.create_topic(&topic, 2);
    let mut log = LogWriter::new(case.path("logs/access.log"), 105);
    log.append(100);
    case.pipeline("access", &access_logs());

    let exit = case.start("a", &["--until-idle"]).wait(LONG);
    assert_eq!(exit.code, Some(0), "{}", exit.describe());
    let difference = format!("topic `{topic}` has 2 partitions, not 4");
    assert!(exit.stderr.contains(&difference), "{}", exit.describe());
    assert_every_line_once(&reader, &case.path("lake"), &log);
}

#[test]
fn a_memory_budget_of_4_mib_does_not_stop_the_pipeline() {
    let (kafka, reader) = (need!(Kafka::any()), need!(Reader::find()));
    let mut case = Case::new("budget", kafka);
    // Less than one row group, and less than the prefetched records.
    case.set("TRUNKLINE_MEMORY", "4MiB");
    let mut log = LogWriter::new(case.path("logs/access.log"), 106);
    log.append(100_000);
    case.pipeline("access", &access_logs().replace("records = 2_000", "records = 1_000_000"));

    let exit = case.start("a", &["--until-idle", "--json"]).wait(LONG);
    assert_eq!(exit.code, Some(0), "{}", exit.describe());
    assert_counted(&exit.summary(), &case, log.lines(), 0);
    assert_every_line_once(&reader, &case.path("lake"), &log);
    // Most of the limit is independent of the data: code, compiled plugins, threads and clients.
    assert!((1..200 << 20).contains(&exit.peak_rss), "{} MiB resident", exit.peak_rss >> 20);
}
