//! Both halves of the log pipeline, each with a limit that is measured in the same round: the bare
//! libraries with the same bytes and settings.
//!
//! | path | its limit |
//! |---|---|
//! | log file → topic | a bare transactional producer of the same records, with their headers |
//! | topic → Parquet | a bare consumer, then arrow-json and `ArrowWriter` on one thread |
//! | topic → mask → Parquet | the same, plus the same mask as a call in this process |
//!
//! * Runs are long (30 s, or `--seconds`). The backlog repeats a million distinct lines; a short
//!   run determines how many lines fill the time. A limit runs until the time is over.
//! * The arms alternate, and so does the first one of a round. The table shows the spread of equal
//!   runs (A/A).
//! * Rows are counted at the destination: the records of a topic by another client, the rows of
//!   files by their footers.
//!
//! Kafka runs on the same machine. It takes processor time from the limits as much as from the
//! worker.

use std::path::Path;
use std::time::{Duration, Instant};

use trunkline_tests::{Case, Exit, Kafka, KafkaClient, worker_binary};

use crate::client::{self, LIMIT, PARTITIONS, StoredRecord};
use crate::encode;
use crate::measure::{Sampling, cpu_seconds_of, rows_in};
use crate::records::{Lines, Log};
use crate::table::{Row, Target};

/// Distinct lines.
pub(crate) const SAMPLE: u64 = 1_000_000;

/// Peak RSS under load, in MB.
const MAX_MEMORY_MB: f64 = 150.0;

/// A path of the pipeline, and the targets of its figures.
pub(crate) struct PathTargets {
    pub(crate) name: &'static str,
    pub(crate) unit: &'static str,
    /// Share of the limit's speed.
    pub(crate) share: f64,
    /// Processor seconds for a million records.
    pub(crate) cpu: Target,
    /// Peak RSS, in MB.
    pub(crate) memory: f64,
}

/// One run of an arm. A worker's run excludes its start, and the time until it notices that it is
/// idle.
pub(crate) struct Run {
    pub(crate) records: u64,
    pub(crate) seconds: f64,
    pub(crate) cpu: f64,
    pub(crate) peak_rss: u64,
}

impl Run {
    pub(crate) fn per_second(&self) -> f64 {
        self.records as f64 / self.seconds
    }

    pub(crate) fn cpu_per_million(&self) -> f64 {
        self.cpu / self.records as f64 * 1e6
    }

    pub(crate) fn megabytes(&self) -> f64 {
        self.peak_rss as f64 / 1e6
    }

    /// The run of a process that moved records; `idle` is a run of the same process without
    /// records.
    pub(crate) fn of(records: u64, exit: &Exit, idle: &Exit) -> Self {
        Self {
            records,
            seconds: exit.elapsed.saturating_sub(idle.elapsed).as_secs_f64(),
            cpu: exit.cpu.saturating_sub(idle.cpu).as_secs_f64(),
            peak_rss: exit.peak_rss,
        }
    }

    /// Prints the run as progress; returns it.
    pub(crate) fn report(self, what: &str, sampling: Sampling) -> Self {
        // A limit always uses its whole time.
        let is_short = what != "limit" && self.seconds < sampling.run.as_secs_f64();
        let short = if is_short { " (shorter than requested: the short run before was slower)" } else { "" };
        eprintln!(
            "  {what}: {} records in {:.1} s, {:.0}k/s, {:.2} CPU-s per million{short}",
            self.records,
            self.seconds,
            self.per_second() / 1e3,
            self.cpu_per_million()
        );
        self
    }
}

fn values(runs: &[Run], value: impl Fn(&Run) -> f64) -> Vec<f64> {
    runs.iter().map(value).collect()
}

impl PathTargets {
    /// Runs both arms alternately. `limit` receives the number of the round.
    pub(crate) fn measure(
        self,
        sampling: Sampling,
        mut limit: impl FnMut(usize) -> Run,
        mut worker: impl FnMut() -> Run,
    ) -> [Row; 3] {
        eprintln!("{}", self.name);
        let [limits, workers] = alternate(
            sampling,
            |round| limit(round).report("limit", sampling),
            |_| worker().report("worker", sampling),
        );
        let row = |name: &str, unit, value: fn(&Run) -> f64, target| Row {
            name: name.to_owned(),
            unit,
            reference: values(&limits, value),
            measured: values(&workers, value),
            target,
        };
        let memory = Row {
            name: "  peak RSS".to_owned(),
            unit: "MB",
            reference: Vec::new(),
            measured: values(&workers, Run::megabytes),
            target: Target::AtMost(self.memory),
        };
        [
            row(self.name, self.unit, Run::per_second, Target::Share(self.share)),
            row("  processor", "s per million", Run::cpu_per_million, self.cpu),
            memory,
        ]
    }
}

/// Runs two arms; the first one of a round alternates. Both receive the number of the round.
pub(crate) fn alternate(
    sampling: Sampling,
    mut one: impl FnMut(usize) -> Run,
    mut other: impl FnMut(usize) -> Run,
) -> [Vec<Run>; 2] {
    let mut arms = [Vec::new(), Vec::new()];
    for round in 0..sampling.rounds {
        for arm in [round % 2, 1 - round % 2] {
            arms[arm].push(if arm == 0 { one(round) } else { other(round) });
        }
    }
    arms
}

/// The rows of a worker and a peer, or of two ways to run it. Only the speed may have a target.
pub(crate) fn compare_with_peer(
    name: &str,
    unit: &'static str,
    speed: Target,
    [peer, worker]: &[Vec<Run>; 2],
) -> [Row; 3] {
    let row = |name: &str, unit, value: fn(&Run) -> f64, target| Row {
        name: name.to_owned(),
        unit,
        reference: values(peer, value),
        measured: values(worker, value),
        target,
    };
    [
        row(name, unit, Run::per_second, speed),
        row("  processor", "s per million", Run::cpu_per_million, Target::None),
        row("  peak RSS", "MB", Run::megabytes, Target::None),
    ]
}

/// Writes a topic and deletes it. In its first seconds the broker is slow, because its code is not
/// compiled yet.
pub(crate) fn warm_up(kafka: &KafkaClient, lines: &Lines) {
    kafka.create_topic("warm-up", PARTITIONS);
    client::produce(&client::transactional_producer(kafka.brokers(), "warm-up", &[]), "warm-up", lines.records());
    client::delete_topic(kafka.brokers(), "warm-up");
}

/// The selected rows of `none`, `combined`, `parquet` and `mask`.
pub(crate) fn rows(kafka: &Kafka, sampling: Sampling, is_selected: impl Fn(&str) -> bool) -> Vec<Row> {
    let lines = Lines::generate(1, SAMPLE);
    warm_up(kafka, &lines);
    let worker = worker_binary();

    let mut rows = Vec::new();
    for (name, parser, share) in
        [("log file -> topic, parser none", "none", 0.7), ("log file -> topic, parser combined", "combined", 0.5)]
    {
        let files = |row: &str| parser == "combined" && is_selected(row);
        if !is_selected(parser) && !files("parquet") && !files("mask") {
            continue;
        }
        let (topic, short) = read_log(kafka, &worker, &Log::write(&lines, SAMPLE), parser, SAMPLE);
        let sample = client::load(kafka, &topic);
        if is_selected(parser) {
            let count = sampling.records(short.per_second());
            let log = Log::write(&lines, count);
            let limit = |round| produce(kafka, &format!("limit-{parser}-{round}"), &sample, sampling);
            let read_log = || {
                let (topic, run) = read_log(kafka, &worker, &log, parser, count);
                client::consume(&client::consumer(kafka.brokers(), "count", &[]), &topic, count);
                client::delete_topic(kafka.brokers(), &topic);
                run
            };
            let path = PathTargets { name, unit: "lines/s", share, cpu: Target::AtMost(3.0), memory: MAX_MEMORY_MB };
            rows.extend(path.measure(sampling, limit, read_log));
        }
        for (name, mask, cpu) in [
            ("topic -> Parquet zstd", false, Target::AtMost(2.5)),
            ("topic -> plugin mask -> Parquet zstd", true, Target::None),
        ] {
            if !files(if mask { "mask" } else { "parquet" }) {
                continue;
            }
            let count = sampling.records(write_lake(kafka, &worker, &topic, mask, SAMPLE).per_second());
            let backlog = backlog(kafka, &format!("backlog-{mask}"), &sample, count);
            let limit = |_| {
                let consumed = timed(|| {
                    client::consume(&client::consumer(kafka.brokers(), "limit", &[]), &backlog, count);
                    count
                });
                let rest = sampling.run.saturating_sub(Duration::from_secs_f64(consumed.seconds)).max(sampling.run / 2);
                let encoded = timed(|| encode::rows(&sample, mask, rest));
                // Adds the time of consuming as many records as were encoded.
                let share = encoded.records as f64 / count as f64;
                Run {
                    seconds: encoded.seconds + consumed.seconds * share,
                    cpu: encoded.cpu + consumed.cpu * share,
                    ..encoded
                }
            };
            let write_lake = || write_lake(kafka, &worker, &backlog, mask, count);
            let path = PathTargets { name, unit: "lines/s", share: 0.7, cpu, memory: MAX_MEMORY_MB };
            rows.extend(path.measure(sampling, limit, write_lake));
            client::delete_topic(kafka.brokers(), &backlog);
        }
        client::delete_topic(kafka.brokers(), &topic);
    }
    rows
}

/// A topic with `count` records, which repeat the sample.
pub(crate) fn backlog(kafka: &Kafka, topic: &str, sample: &[StoredRecord], count: u64) -> String {
    kafka.create_topic(topic, PARTITIONS);
    let producer = client::transactional_producer(kafka.brokers(), topic, &[]);
    client::produce_copies(&producer, topic, sample.iter().cycle().take(count as usize));
    topic.to_owned()
}

/// Runs a worker that reads a log file into a topic; also returns the topic.
pub(crate) fn read_log(kafka: &Kafka, worker: &Path, log: &Log, parser: &str, lines: u64) -> (String, Run) {
    read_log_with(kafka, &Settings::new(), worker, log, parser, lines)
}

/// Settings of a worker, as variables of its environment.
pub(crate) type Settings = Vec<(&'static str, String)>;

/// The same with settings.
pub(crate) fn read_log_with(
    kafka: &KafkaClient,
    settings: &Settings,
    worker: &Path,
    log: &Log,
    parser: &str,
    lines: u64,
) -> (String, Run) {
    let mut case = Case::new(&format!("bench-{parser}"), kafka).with_binary(worker.to_owned());
    settings.iter().for_each(|(name, value)| case.set(name, value));
    let text = format!(
        "name = \"$NAME\"\n[sources.web]\nconnector = \"logfile\"\npaths = [\"$DIR/logs/*.log\"]\nparser = \"{parser}\"\n"
    );
    case.pipeline("bench", &text);
    let idle = run(&case);
    log.link(&case.path("logs"), "access.log");
    let exit = run(&case);
    assert_eq!(exit.summary().of(case.name(), "web").output, lines);
    (format!("{}.web", case.name()), Run::of(lines, &exit, &idle))
}

/// Runs a worker that writes a topic to Parquet files.
pub(crate) fn write_lake(kafka: &Kafka, worker: &Path, topic: &str, mask: bool, lines: u64) -> Run {
    let case = Case::new(if mask { "bench-mask" } else { "bench-plain" }, kafka).with_binary(worker.to_owned());
    let transform = "[transforms.clean]\ninputs = [\"topic:TOPIC\"]\nplugin = \"mask.wasm\"\nconfig = { fields = [\"remote_addr\"] }\n";
    let sink = "[sinks.lake]\nconnector = \"s3\"\ninputs = [\"INPUT\"]\nurl = \"file://$DIR/lake\"\n";
    let text =
        if mask { [transform, &sink.replace("INPUT", "clean")].concat() } else { sink.replace("INPUT", "topic:TOPIC") };
    case.pipeline("bench", &format!("name = \"$NAME\"\n{}", text.replace("TOPIC", topic)));
    let exit = run(&case);
    assert_eq!(exit.summary().of(case.name(), "lake").output, lines);
    assert_eq!(rows_in(&case.path("lake")), lines);
    // A second run has no records to read: it measures the start.
    Run::of(lines, &exit, &run(&case))
}

/// Runs a worker until it is idle.
pub(crate) fn run(case: &Case) -> Exit {
    let exit = case.start("a", &["--until-idle", "--json"]).wait(LIMIT);
    assert_eq!(exit.code, Some(0), "{}", exit.describe());
    exit
}

/// Measures work of this process; `work` returns its number of records.
pub(crate) fn timed(work: impl FnOnce() -> u64) -> Run {
    let (started, cpu) = (Instant::now(), cpu_seconds_of(std::process::id()));
    let records = work();
    Run {
        records,
        seconds: started.elapsed().as_secs_f64(),
        cpu: cpu_seconds_of(std::process::id()) - cpu,
        peak_rss: 0,
    }
}

/// The limit of writing to a topic: a bare producer of the same records with the worker's settings.
pub(crate) fn produce(kafka: &Kafka, topic: &str, sample: &[StoredRecord], sampling: Sampling) -> Run {
    kafka.create_topic(topic, PARTITIONS);
    let producer = client::transactional_producer(kafka.brokers(), topic, &[]);
    let run = timed(|| client::produce_copies(&producer, topic, client::repeat_for(sample, sampling.run)));
    client::delete_topic(kafka.brokers(), topic);
    run
}
