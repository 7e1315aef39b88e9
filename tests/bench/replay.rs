//! Replays: their speed, CPU and memory against those of the same sink fed live; what they cost a
//! live sink on the same machine; and how long the range of a replay takes to be found.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use trunkline_tests::{Case, Exit, Kafka, KafkaClient, wait};

use crate::client::{self, LIMIT, PARTITIONS, StoredRecord};
use crate::measure::{Sampling, rows_in};
use crate::pipeline::{Run, SAMPLE, backlog, run};
use crate::records::Lines;
use crate::table::{Row, Target};

/// The rows, in the table's order.
pub(crate) const ROWS: [&str; 4] = ["replay", "replay-beside", "replay-seek", "replay-plan"];

/// Records of the topic in which a time is looked up. The target is stated for 100 million.
const SEEK_RECORDS: u64 = 20_000_000;
/// Sets another number.
const SEEK_VARIABLE: &str = "TRUNKLINE_BENCH_SEEK_RECORDS";

/// Partitions of the topic whose range is planned.
const PLAN_PARTITIONS: i32 = 1_000;

/// Time between two records of the topic in which a time is looked up, in milliseconds. All of them
/// are younger than the retention of a topic.
const STEP_MS: i64 = 1;

pub(crate) fn add(
    table: &mut crate::table::Table,
    kafka: &Kafka,
    sampling: Sampling,
    is_selected: impl Fn(&str) -> bool,
) {
    if is_selected("replay") {
        table.add(speed_rows(kafka, sampling));
    }
    if is_selected("replay-beside") {
        table.add([beside_row(kafka, sampling)]);
    }
    if is_selected("replay-seek") {
        table.add([seek_row(kafka, sampling)]);
    }
    if is_selected("replay-plan") {
        table.add([plan_row(kafka, sampling)]);
    }
}

fn sample() -> Vec<StoredRecord> {
    let lines = Lines::json(11, SAMPLE / 10, 8);
    lines.records().zip(0..).map(|(line, number)| StoredRecord::new(number % PARTITIONS, line.to_vec())).collect()
}

/// A pipeline whose sink reads a topic.
fn lake(case: &Case, topic: &str) {
    let text = format!(
        "name = \"$NAME\"\n[sinks.lake]\nconnector = \"s3\"\ninputs = [\"topic:{topic}\"]\nurl = \"file://$DIR/lake\"\n"
    );
    case.pipeline("bench", &text);
}

fn replay(case: &Case, arguments: &[&str]) -> Exit {
    let exit = case.run_command("replay", &[], &[&[case.name()], arguments].concat(), LIMIT);
    assert_eq!(exit.code, Some(0), "{}", exit.describe());
    exit
}

/// The live sink over the whole topic, and then a replay of it.
fn both(kafka: &Kafka, topic: &str, records: u64) -> (Run, Run) {
    let case = Case::new("bench-replay", kafka);
    lake(&case, topic);
    let exit = run(&case);
    assert_eq!(exit.summary().of(case.name(), "lake").output, records);
    let live = Run::of(records, &exit, &run(&case));
    let into = |folder: &str| format!("url=\"file://{}\"", case.path(folder).display());
    // One record in each partition: it measures the start and the end.
    let ends: Vec<String> = (0..PARTITIONS).map(|partition| format!("{partition}:1")).collect();
    let idle = replay(&case, &["--from", "earliest", "--to", &ends.join(","), "--into", &into("idle")]);
    let exit = replay(&case, &["--from", "earliest", "--into", &into("shadow")]);
    assert_eq!(rows_in(&case.path("shadow")), records);
    (live, Run::of(records, &exit, &idle))
}

fn speed_rows(kafka: &Kafka, sampling: Sampling) -> Vec<Row> {
    eprintln!("replay into Parquet files");
    let sample = sample();
    let probe = backlog(kafka, "bench-replay-probe", &sample, SAMPLE);
    let (first, _) = both(kafka, &probe, SAMPLE);
    client::delete_topic(kafka.brokers(), &probe);
    let records = sampling.records(first.per_second());
    let topic = backlog(kafka, "bench-replay", &sample, records);
    let (mut live, mut replays) = (Vec::new(), Vec::new());
    for _ in 0..sampling.rounds {
        let (one, other) = both(kafka, &topic, records);
        live.push(one.report("live", sampling));
        replays.push(other.report("replay", sampling));
    }
    client::delete_topic(kafka.brokers(), &topic);
    let row = |name: &str, unit, value: fn(&Run) -> f64, target| Row {
        name: format!("replay of a sink, {name}"),
        unit,
        reference: live.iter().map(value).collect(),
        measured: replays.iter().map(value).collect(),
        target,
    };
    vec![
        row("speed", "k/s", |run| run.per_second() / 1e3, Target::Share(0.9)),
        row("CPU", "s/M", Run::cpu_per_million, Target::AtMostShare(1.1)),
        row("memory", "MB", Run::megabytes, Target::AtMostAbove(30.0)),
    ]
}

/// The time that a live sink takes for a topic, alone and beside a replay of the same topic that
/// runs until the live sink is done.
fn beside_row(kafka: &Kafka, sampling: Sampling) -> Row {
    eprintln!("a live sink beside a replay");
    let sample = sample();
    let probe = backlog(kafka, "bench-beside-probe", &sample, SAMPLE);
    let (first, _) = both(kafka, &probe, SAMPLE);
    client::delete_topic(kafka.brokers(), &probe);
    let records = sampling.records(first.per_second());
    let topic = backlog(kafka, "bench-beside", &sample, records);
    let (mut alone, mut beside) = (Vec::new(), Vec::new());
    for _ in 0..sampling.rounds {
        for (has_replay, speeds) in [(false, &mut alone), (true, &mut beside)] {
            let case = Case::new("bench-beside", kafka);
            lake(&case, &topic);
            let into = format!("url=\"file://{}\"", case.path("shadow").display());
            let replay = has_replay.then(|| {
                // The state topics exist, and the replay has begun, before the live sink starts.
                let arguments = [case.name(), "--from", "earliest", "--into", &into];
                let process = case.start_command("replay", &[], &arguments);
                wait::until("the replay reads", LIMIT, || {
                    let listed = case.ask_worker("runs", "replay", &["--kind", "replay", "--json"], LIMIT);
                    listed.stdout.contains("\"tasks\":1").then_some(())
                });
                process
            });
            let exit = run(&case);
            if let Some(replay) = replay {
                replay.kill9();
            }
            let run =
                Run::of(records, &exit, &run(&case)).report(if has_replay { "beside" } else { "alone" }, sampling);
            speeds.push(run.per_second() / 1e3);
        }
    }
    client::delete_topic(kafka.brokers(), &topic);
    Row {
        name: "live sink beside a replay on the same machine".to_owned(),
        unit: "k/s",
        reference: alone,
        measured: beside,
        target: Target::Share(0.9),
    }
}

/// The time that a command needs longer to find a range by time than the whole range.
fn seek_row(kafka: &Kafka, sampling: Sampling) -> Row {
    let records = std::env::var(SEEK_VARIABLE).ok().and_then(|text| text.replace('_', "").parse().ok());
    let records: u64 = records.unwrap_or(SEEK_RECORDS);
    let topic = "bench-seek";
    kafka.create_topic(topic, 1);
    let begun = Instant::now();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64;
    client::produce_timed(kafka.brokers(), topic, records, |number| now - (records - number) as i64 * STEP_MS);
    eprintln!("seek by time: wrote {records} records in {:?}", begun.elapsed());
    let case = Case::new("bench-seek", kafka);
    lake(&case, topic);
    let plan = |from: &str| {
        let into = format!("url=\"file://{}\"", case.path("shadow").display());
        let started = Instant::now();
        replay(&case, &["--from", from, "--into", &into, "--dry-run"]);
        started.elapsed()
    };
    plan("earliest");
    let mut measured = Vec::new();
    for round in 0..sampling.rounds.max(5) {
        // Another part of the topic each time: the brokers have not looked there.
        let back = records / 10 * (round as u64 * 7 % 9 + 1);
        let time = format!("-{}s", back as i64 * STEP_MS / 1_000);
        let (whole, by_time) = (plan("earliest"), plan(&time));
        measured.push(by_time.saturating_sub(whole).as_secs_f64() * 1_000.0);
    }
    client::delete_topic(kafka.brokers(), topic);
    Row {
        name: format!("seek by time among {} M records, one partition", records / 1_000_000),
        unit: "ms",
        reference: Vec::new(),
        measured,
        target: Target::AtMost(100.0),
    }
}

/// The whole command, with the start of the process.
fn plan_row(kafka: &Kafka, sampling: Sampling) -> Row {
    let topic = "bench-plan";
    kafka.create_topic(topic, PLAN_PARTITIONS);
    fill(kafka, topic);
    let case = Case::new("bench-plan", kafka);
    lake(&case, topic);
    let into = format!("url=\"file://{}\"", case.path("shadow").display());
    let mut measured = Vec::new();
    for _ in 0..sampling.rounds.max(3) {
        let started = Instant::now();
        let planned = replay(&case, &["--from", "2020-01-01", "--into", &into, "--dry-run", "--json"]);
        measured.push(started.elapsed().as_secs_f64());
        assert_eq!(
            planned.stdout.matches("\"partition\":").count(),
            PLAN_PARTITIONS as usize,
            "{}",
            planned.describe()
        );
    }
    client::delete_topic(kafka.brokers(), topic);
    Row {
        name: format!("replay --dry-run over {PLAN_PARTITIONS} partitions, by time"),
        unit: "s",
        reference: Vec::new(),
        measured,
        target: Target::AtMost(2.0),
    }
}

/// A record in each partition.
fn fill(kafka: &KafkaClient, topic: &str) {
    let producer = client::transactional_producer(kafka.brokers(), topic, &[]);
    let records: Vec<StoredRecord> =
        (0..PLAN_PARTITIONS).map(|partition| StoredRecord::new(partition, b"{\"id\":1}".to_vec())).collect();
    client::produce_copies(&producer, topic, records.iter());
}
