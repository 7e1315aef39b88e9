//! Benchmarks: see `tests/bench/run`. Each figure is measured together with a limit, a peer or a
//! baseline in the same run, because absolute figures mean little on a shared machine.

// A benchmark that meets an error has no result.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod baseline;
mod broker;
mod change_latency;
mod client;
mod debezium;
mod encode;
mod latency;
mod loads;
mod logfile;
mod measure;
mod mysql;
mod opensearch;
mod operations;
mod parser;
mod peer;
mod pipeline;
mod plugin;
mod records;
mod replay;
mod scaling;
mod search;
mod table;
mod tls;
mod transforms;
mod warehouse;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use trunkline_tests::{BrokerKind, Kafka};

use crate::measure::Sampling;
use crate::records::LINE_BYTES;
use crate::table::Table;

/// The worker's allocator: what a benchmark runs in its own process, a limit or a source, is
/// compared with the worker.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// The rows of log pipelines, in the table's order. The first six are `pipeline`. The rows of
/// MySQL, of warehouses and of replays follow them.
const ROWS: [&str; 24] = [
    "none",
    "combined",
    "parquet",
    "mask",
    "parser",
    "plugin",
    "state",
    "parsers",
    "latency",
    "multiline",
    "tail",
    "operations",
    "bento-log",
    "bento-lake",
    "search",
    "search-busy",
    "search-latency",
    "opensearch",
    "bento-search",
    "bento-filter",
    "bento-project",
    "streams-count",
    "tls",
    "start",
];
const USAGE: &str = "usage: tests/bench/run [all | ROW..] [--seconds N] [--rounds N]
       tests/bench/run --baseline FOLDER [ROW..] [--seconds N] [--rounds N]
       tests/bench/run scaling [GROUP..]
       tests/bench/run broker [RECORDS]
       tests/bench/run figure (parser | plugin) [--seconds N] [--rounds N]";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let ran = match words.as_slice() {
        ["broker"] => Some(broker::run_all(2_000_000)),
        ["broker", records] => records.replace('_', "").parse().ok().map(broker::run_all),
        ["scaling"] => Some(scaling::run_all(&scaling::GROUPS)),
        ["scaling", groups @ ..] if groups.iter().all(|group| scaling::GROUPS.contains(group)) => {
            Some(scaling::run_all(groups))
        }
        ["scaling", ..] => None,
        ["figure", row, rest @ ..] => Selection::parse(rest).and_then(|selection| figure(row, selection.sampling)),
        rows => Selection::parse(rows).and_then(|selection| match &selection.baseline {
            Some(folder) => baseline::run(folder, &selection.rows, selection.sampling),
            None => Some(run(&selection.rows_or_all(), selection.sampling)),
        }),
    };
    ran.unwrap_or_else(|| {
        eprintln!(
            "{USAGE}\nROW: pipeline (the first six), mysql (all from mysql-snapshot), warehouse (its five), or {}\nROW with --baseline: {}\nGROUP: {}",
            all_rows().collect::<Vec<_>>().join(", "),
            baseline::ROWS.join(", "),
            scaling::GROUPS.join(", ")
        );
        ExitCode::from(2)
    })
}

/// The rows and options of a command line.
struct Selection<'a> {
    rows: Vec<&'a str>,
    sampling: Sampling,
    /// The folder with the binaries of the baseline.
    baseline: Option<PathBuf>,
}

impl<'a> Selection<'a> {
    fn parse(mut words: &[&'a str]) -> Option<Self> {
        let sampling = Sampling { run: Duration::from_secs(30), rounds: 3 };
        let mut this = Self { rows: Vec::new(), sampling, baseline: None };
        loop {
            words = match words {
                [] => return Some(this),
                ["--seconds", seconds, rest @ ..] => {
                    this.sampling.run = Duration::from_secs(seconds.parse().ok().filter(|seconds| *seconds > 0)?);
                    rest
                }
                ["--rounds", rounds, rest @ ..] => {
                    this.sampling.rounds = rounds.parse().ok().filter(|rounds| *rounds > 0)?;
                    rest
                }
                ["--baseline", folder, rest @ ..] => {
                    this.baseline = Some(PathBuf::from(folder));
                    rest
                }
                ["all", rest @ ..] => {
                    this.rows.extend(all_rows());
                    rest
                }
                ["mysql", rest @ ..] => {
                    this.rows.extend(mysql::ROWS);
                    rest
                }
                ["warehouse", rest @ ..] => {
                    this.rows.extend(warehouse::ROWS);
                    rest
                }
                ["pipeline", rest @ ..] => {
                    this.rows.extend(&ROWS[..6]);
                    rest
                }
                [row, rest @ ..] => {
                    this.rows.push(all_rows().find(|known| known == row)?);
                    rest
                }
            };
        }
    }

    fn rows_or_all(&self) -> Vec<&'a str> {
        if self.rows.is_empty() { all_rows().collect() } else { self.rows.clone() }
    }
}

/// All rows, in the table's order.
fn all_rows<'a>() -> impl Iterator<Item = &'a str> {
    ROWS.into_iter().chain(mysql::ROWS).chain(warehouse::ROWS).chain(replay::ROWS)
}

/// Prints the figures of a row that measures this process, one per round: for `--baseline`.
fn figure(row: &str, sampling: Sampling) -> Option<ExitCode> {
    let row = match row {
        "parser" => parser::row(sampling),
        "plugin" => plugin::row(sampling),
        _ => return None,
    };
    row.measured.iter().for_each(|value| println!("{value}"));
    Some(ExitCode::SUCCESS)
}

fn run(rows: &[&str], sampling: Sampling) -> ExitCode {
    let is_selected = |row: &str| rows.contains(&row);
    let mut table = Table::default();
    if rows.iter().any(|row| !["parser", "parsers", "plugin", "state", "tls", "start"].contains(row)) {
        let kafka = Kafka::start(BrokerKind::Apache).unwrap_or_else(|skip| panic!("{skip}"));
        if ["none", "combined", "parquet", "mask"].into_iter().any(is_selected) {
            table.add(pipeline::rows(&kafka, sampling, is_selected));
        }
        if is_selected("latency") {
            table.add(latency::rows(&kafka, sampling));
        }
        if is_selected("multiline") {
            table.add([logfile::multiline_row(&kafka, sampling)]);
        }
        if is_selected("tail") {
            table.add([logfile::tail_row(&kafka, sampling)]);
        }
        if is_selected("operations") {
            table.add(operations::rows(&kafka, sampling));
        }
        if ["bento-log", "bento-lake"].into_iter().any(is_selected) {
            match peer::rows(&kafka, sampling, is_selected) {
                Ok(rows) => table.add(rows),
                Err(reason) => table.skip("Bento", &reason),
            }
        }
        if is_selected("search") {
            table.add(search::rows(&kafka, sampling));
        }
        if is_selected("search-busy") {
            table.add([search::busy_row(&kafka, sampling)]);
        }
        if is_selected("search-latency") {
            match opensearch::latency_rows(&kafka, sampling) {
                Ok(rows) => table.add(rows),
                Err(reason) => table.skip("search-latency", &reason),
            }
        }
        if ["opensearch", "bento-search"].into_iter().any(is_selected) {
            match opensearch::rows(&kafka, sampling, is_selected) {
                Ok(rows) => table.add(rows),
                Err(reason) => table.skip("opensearch", &reason),
            }
        }
        if transforms::PEERS.into_iter().any(is_selected) {
            let (rows, skipped) = transforms::rows(&kafka, sampling, is_selected);
            table.add(rows);
            skipped.iter().for_each(|(name, reason)| table.skip(name, reason));
        }
        if mysql::ROWS.into_iter().any(is_selected) {
            mysql::add(&mut table, &kafka, sampling, is_selected);
        }
        if warehouse::ROWS.into_iter().any(is_selected) {
            warehouse::add(&mut table, &kafka, sampling, is_selected);
        }
        if replay::ROWS.into_iter().any(is_selected) {
            replay::add(&mut table, &kafka, sampling, is_selected);
        }
    }
    // After that broker has stopped: this row has its own, and the others measure one core.
    if is_selected("tls") {
        match tls::rows(sampling) {
            Ok(rows) => table.add(rows),
            Err(reason) => table.skip("tls", &reason),
        }
    }
    if is_selected("parser") {
        table.add([parser::row(sampling)]);
    }
    if is_selected("parsers") {
        table.add(parser::rows(sampling));
    }
    if is_selected("plugin") {
        table.add(plugin::rows(sampling));
    }
    if is_selected("state") {
        table.add(plugin::state_rows(sampling));
    }
    if is_selected("start") {
        let (rows, skipped) = transforms::start_rows(sampling);
        table.add(rows);
        skipped.iter().for_each(|(name, reason)| table.skip(name, reason));
    }
    println!("{}", conditions(sampling));
    table.show()
}

/// The conditions of a measurement, for the head of its table.
fn conditions(sampling: Sampling) -> String {
    format!(
        "lines of {LINE_BYTES} bytes; {} processors; runs of {:?}, {} alternating rounds: median (lowest-highest); A/A: the highest over the lowest of equal runs",
        std::thread::available_parallelism().unwrap(),
        sampling.run,
        sampling.rounds
    )
}
