//! The log source beyond a single file of single lines: what joining lines to events costs, and
//! what a thousand files cost that grow slowly.

use std::fs::OpenOptions;
use std::io::Write;
use std::time::{Duration, Instant};

use trunkline_tests::{Case, Kafka};

use crate::client::{self, LIMIT, PARTITIONS};
use crate::latency::end;
use crate::measure::{Sampling, cpu_seconds_of};
use crate::pipeline::{self, Run, SAMPLE};
use crate::records::{Lines, Log};
use crate::table::{Row, Target};

/// Most processor time of lines that are joined to events, as a share of that of plain lines.
const MULTILINE_COST: f64 = 1.3;

const TAILED_FILES: usize = 1_000;

/// One file grows by a line in each interval, in turn.
const APPEND_INTERVAL: Duration = Duration::from_millis(10);

/// Most processor time for the tailed files, in percent of a core.
const TAIL_PERCENT: f64 = 3.0;

/// The row of `multiline`. Each line is an event, so that both arms write the same records: the
/// difference is the test of each line.
pub(crate) fn multiline_row(kafka: &Kafka, sampling: Sampling) -> Row {
    let name = "log file -> topic, multiline = \"java\" and without, processor";
    eprintln!("{name}");
    let lines = Lines::generate(1, SAMPLE);
    pipeline::warm_up(kafka, &lines);
    let short = read(kafka, &Log::write(&lines, SAMPLE), SAMPLE, "");
    let count = sampling.records(short.per_second());
    let log = Log::write(&lines, count);
    let [plain, joined] = pipeline::alternate(
        sampling,
        |_| read(kafka, &log, count, "").report("without", sampling),
        |_| read(kafka, &log, count, "multiline = \"java\"\n").report("multiline", sampling),
    );
    Row {
        name: name.to_owned(),
        unit: "s per million",
        reference: plain.iter().map(Run::cpu_per_million).collect(),
        measured: joined.iter().map(Run::cpu_per_million).collect(),
        target: Target::AtMostShare(MULTILINE_COST),
    }
}

/// Runs a worker that reads a log file into a topic, which is deleted.
fn read(kafka: &Kafka, log: &Log, lines: u64, options: &str) -> Run {
    let case = source(kafka, "bench-multiline", options);
    let idle = pipeline::run(&case);
    log.link(&case.path("logs"), "access.log");
    let exit = pipeline::run(&case);
    assert_eq!(exit.summary().of(case.name(), "web").output, lines);
    client::delete_topic(kafka.brokers(), &format!("{}.web", case.name()));
    Run::of(lines, &exit, &idle)
}

fn source(kafka: &Kafka, name: &str, options: &str) -> Case {
    let case = Case::new(name, kafka);
    let text =
        format!("name = \"$NAME\"\n[sources.web]\nconnector = \"logfile\"\npaths = [\"$DIR/logs/*.log\"]\n{options}");
    case.pipeline("bench", &text);
    case
}

/// The row of `tail`.
pub(crate) fn tail_row(kafka: &Kafka, sampling: Sampling) -> Row {
    let name = format!("{TAILED_FILES} files, 100 lines/s in sum");
    eprintln!("{name}");
    let measured = (0..sampling.rounds).map(|_| tail(kafka, sampling.run)).collect();
    Row { name, unit: "% of a core", reference: Vec::new(), measured, target: Target::AtMost(TAIL_PERCENT) }
}

/// The processor time of a worker while the files grow, in percent of a core.
fn tail(kafka: &Kafka, run: Duration) -> f64 {
    let case = source(kafka, "bench-tail", "");
    let append = |number: usize| {
        let path = case.path(&format!("logs/{}.log", number % TAILED_FILES));
        let mut file = OpenOptions::new().create(true).append(true).open(path).unwrap();
        writeln!(file, "line {number} of a service that says little, and says it slowly").unwrap();
    };
    (0..TAILED_FILES).for_each(append);
    let topic = format!("{}.web", case.name());
    kafka.create_topic(&topic, PARTITIONS);
    let consumer = client::consumer(kafka.brokers(), "count", &[]);
    client::assign(&consumer, &topic, PARTITIONS);
    let mut records = 0;
    let mut all_read = |lines: usize| {
        let started = Instant::now();
        while records < lines {
            assert!(started.elapsed() < LIMIT, "{records} of {lines} records");
            records += usize::from(matches!(consumer.poll(Duration::from_millis(100)), Some(Ok(_))));
        }
    };
    let worker = case.start("a", &[]);
    all_read(TAILED_FILES);
    let (started, cpu) = (Instant::now(), cpu_seconds_of(worker.pid() as u32));
    let mut number = TAILED_FILES;
    while started.elapsed() < run {
        append(number);
        number += 1;
        let due = APPEND_INTERVAL * (number - TAILED_FILES) as u32;
        std::thread::park_timeout(due.saturating_sub(started.elapsed()));
    }
    let percent = (cpu_seconds_of(worker.pid() as u32) - cpu) / started.elapsed().as_secs_f64() * 100.0;
    all_read(number);
    end(worker);
    percent
}
