//! Compares the worker with the worker of a baseline, in the same run: both move the same records,
//! round by round, and the first one alternates. The verdict uses the ratio of each pair of runs,
//! because two runs of a pair share the state of the machine.
//!
//! The baseline is a folder with the release binaries `trunkline` and `trunkline-bench` of another
//! version. `trunkline-bench` measures the rows `parser` and `plugin`, which have no worker.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use trunkline_tests::{BrokerKind, Kafka, Mysql, worker_binary};

use crate::client;
use crate::measure::{Sampling, median, percentile};
use crate::mysql::{Bench, Follower, SHORT};
use crate::pipeline::{Run, SAMPLE, backlog, read_log, warm_up, write_lake};
use crate::records::{Lines, Log};
use crate::table::{Figure, floor, spread};

/// The rows that can be compared.
pub(crate) const ROWS: [&str; 7] = ["none", "combined", "parquet", "mask", "parser", "plugin", "mysql-binlog"];

/// The new version must reach this share of the baseline's speed.
const MIN_RATIO: f64 = 0.97;

/// The binaries of one version.
struct Version {
    worker: PathBuf,
    bench: PathBuf,
}

/// A figure of both versions, one pair per round.
struct Row {
    name: &'static str,
    unit: &'static str,
    /// Whether less is better. The ratio is then that of the inverse values.
    is_cost: bool,
    /// Whether the ratio decides about the exit code.
    is_required: bool,
    baseline: Vec<f64>,
    new: Vec<f64>,
}

/// Compares the selected rows, or all. `None` if a row cannot be compared.
pub(crate) fn run(folder: &Path, rows: &[&str], sampling: Sampling) -> Option<ExitCode> {
    if !rows.iter().all(|row| ROWS.contains(row)) {
        return None;
    }
    let is_selected = |row: &str| rows.is_empty() || rows.contains(&row);
    let new = Version { worker: worker_binary(), bench: std::env::current_exe().unwrap() };
    let baseline = Version { worker: folder.join("trunkline"), bench: folder.join("trunkline-bench") };
    for binary in [&baseline.worker, &baseline.bench] {
        assert!(binary.exists(), "{} does not exist: build the baseline in release", binary.display());
    }
    let versions = [baseline, new];
    let mut compared = Vec::new();
    if ROWS.into_iter().any(|row| is_selected(row) && !["parser", "plugin"].contains(&row)) {
        let kafka = Kafka::start(BrokerKind::Apache).unwrap_or_else(|skip| panic!("{skip}"));
        compared.extend(compare_pipelines(&kafka, &versions, sampling, is_selected));
        if is_selected("mysql-binlog") {
            compared.extend(compare_binlog(&kafka, &versions, sampling));
        }
    }
    for (name, unit, is_cost) in [("parser", "lines/s", false), ("plugin", "ns per record", true)] {
        if is_selected(name) {
            compared.push(compare_process(name, unit, is_cost, &versions, sampling));
        }
    }
    println!("{}", crate::conditions(sampling));
    println!("| | unit | baseline | A/A | new | A/A | ratio of pairs | required | |");
    println!("|---|---|---|---|---|---|---|---|---|");
    let missed = compared.iter().map(Row::show).filter(|met| *met == Some(false)).count();
    println!("{missed} rows below {MIN_RATIO} of the baseline");
    Some(ExitCode::from(u8::from(missed > 0)))
}

/// Runs both versions in each round; the one that runs first alternates.
fn pairs(name: &str, sampling: Sampling, mut run: impl FnMut(usize) -> Run) -> [Vec<Run>; 2] {
    eprintln!("{name}");
    let mut runs = [Vec::new(), Vec::new()];
    for round in 0..sampling.rounds {
        for version in [round % 2, 1 - round % 2] {
            runs[version].push(run(version).report(["baseline", "new"][version], sampling));
        }
    }
    runs
}

fn rows_of(name: &'static str, unit: &'static str, [baseline, new]: &[Vec<Run>; 2]) -> [Row; 3] {
    let row = |name, unit, is_cost, is_required, value: fn(&Run) -> f64| Row {
        name,
        unit,
        is_cost,
        is_required,
        baseline: baseline.iter().map(value).collect(),
        new: new.iter().map(value).collect(),
    };
    [
        row(name, unit, false, true, Run::per_second),
        row("  processor", "s per million", true, false, Run::cpu_per_million),
        row("  peak RSS", "MB", true, false, Run::megabytes),
    ]
}

fn compare_pipelines(
    kafka: &Kafka,
    versions: &[Version; 2],
    sampling: Sampling,
    is_selected: impl Fn(&str) -> bool,
) -> Vec<Row> {
    let mut rows = Vec::new();
    if !["none", "combined", "parquet", "mask"].into_iter().any(&is_selected) {
        return rows;
    }
    let lines = Lines::generate(1, SAMPLE);
    warm_up(kafka, &lines);
    let worker = |version: usize| versions[version].worker.as_path();
    for (parser, name) in
        [("none", "log file -> topic, parser none"), ("combined", "log file -> topic, parser combined")]
    {
        if !is_selected(parser) {
            continue;
        }
        let (topic, short) = read_log(kafka, worker(1), &Log::write(&lines, SAMPLE), parser, SAMPLE);
        client::delete_topic(kafka.brokers(), &topic);
        let count = sampling.records(short.per_second());
        let log = Log::write(&lines, count);
        let runs = pairs(name, sampling, |version| {
            let (topic, run) = read_log(kafka, worker(version), &log, parser, count);
            client::consume(&client::consumer(kafka.brokers(), "count", &[]), &topic, count);
            client::delete_topic(kafka.brokers(), &topic);
            run
        });
        rows.extend(rows_of(name, "lines/s", &runs));
    }
    if !is_selected("parquet") && !is_selected("mask") {
        return rows;
    }
    // Each version reads a topic in the format that its own log source writes. A version that does
    // not know the other's headers would infer the columns, and the work would differ.
    let samples = [0, 1].map(|version| {
        let (topic, _) = read_log(kafka, worker(version), &Log::write(&lines, SAMPLE), "combined", SAMPLE);
        let sample = client::load(kafka, &topic);
        client::delete_topic(kafka.brokers(), &topic);
        sample
    });
    for (row, mask, name) in
        [("parquet", false, "topic -> Parquet zstd"), ("mask", true, "topic -> plugin mask -> Parquet zstd")]
    {
        if !is_selected(row) {
            continue;
        }
        let short = backlog(kafka, &format!("short-{row}"), &samples[1], SAMPLE);
        let count = sampling.records(write_lake(kafka, worker(1), &short, mask, SAMPLE).per_second());
        client::delete_topic(kafka.brokers(), &short);
        let backlogs = [0, 1].map(|version| {
            backlog(kafka, &format!("backlog-{row}-{}", ["baseline", "new"][version]), &samples[version], count)
        });
        let runs = pairs(name, sampling, |version| write_lake(kafka, worker(version), &backlogs[version], mask, count));
        rows.extend(rows_of(name, "lines/s", &runs));
        for topic in &backlogs {
            client::delete_topic(kafka.brokers(), topic);
        }
    }
    rows
}

fn compare_binlog(kafka: &Kafka, versions: &[Version; 2], sampling: Sampling) -> Vec<Row> {
    let server = match Mysql::start() {
        Ok(server) => server,
        Err(reason) => {
            println!("skipped: mysql-binlog: {reason}");
            return Vec::new();
        }
    };
    let bench = Bench::new(kafka, &server);
    bench.create_tables(&["short", "changes"]);
    let short = Follower::new(&bench, &versions[1].worker, "short");
    bench.change("short", SHORT);
    let rows = sampling.records(short.follow(SHORT).per_second());
    // One follower per run: a source reads the changes once.
    let mut followers = versions.each_ref().map(|version| {
        (0..sampling.rounds).map(|_| Follower::new(&bench, &version.worker, "changes")).collect::<Vec<_>>()
    });
    bench.change("changes", rows);
    let name = "MySQL binlog -> topic";
    let runs = pairs(name, sampling, |version| followers[version].pop().unwrap().follow_and_check(&bench, rows));
    rows_of(name, "rows/s", &runs).into()
}

/// Compares a row without a worker: each version's benchmark program measures its own code.
fn compare_process(
    row: &'static str,
    unit: &'static str,
    is_cost: bool,
    versions: &[Version; 2],
    sampling: Sampling,
) -> Row {
    eprintln!("{row}");
    let figure = |version: usize| {
        let seconds = sampling.run.as_secs().to_string();
        let output = Command::new(&versions[version].bench)
            .args(["figure", row, "--rounds", "1", "--seconds", &seconds])
            .output()
            .unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {error}", versions[version].bench.display());
        let value: f64 = String::from_utf8_lossy(&output.stdout).trim().parse().unwrap();
        eprintln!("  {}: {}", ["baseline", "new"][version], Figure(value));
        value
    };
    let mut values = [Vec::new(), Vec::new()];
    for round in 0..sampling.rounds {
        for version in [round % 2, 1 - round % 2] {
            values[version].push(figure(version));
        }
    }
    let [baseline, new] = values;
    Row { name: row, unit, is_cost, is_required: true, baseline, new }
}

impl Row {
    /// Prints the line; returns whether the requirement is met, if the row has one.
    fn show(&self) -> Option<bool> {
        let ratio = |(baseline, new): (&f64, &f64)| if self.is_cost { baseline / new } else { new / baseline };
        let ratios: Vec<f64> = self.baseline.iter().zip(&self.new).map(ratio).collect();
        let middle = median(&ratios);
        let met = self.is_required.then_some(middle >= MIN_RATIO);
        let verdict = match met {
            None => "",
            Some(true) => "met",
            Some(false) => "NOT MET",
        };
        let required = if self.is_required { format!(">= {MIN_RATIO}") } else { String::new() };
        println!(
            "| {:<38} | {:<13} | {:>20} | {:>4} | {:>20} | {:>4} | {middle:.3} ({:.3}-{:.3}) | {required:<7} | {verdict} |",
            self.name,
            self.unit,
            spread(&self.baseline),
            floor(&self.baseline),
            spread(&self.new),
            floor(&self.new),
            percentile(&ratios, 0.0),
            percentile(&ratios, 1.0),
        );
        met
    }
}
