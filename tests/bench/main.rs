//! Benchmarks: see `tests/bench/run`. Every figure stands beside a limit or a peer that was measured in the same run, because absolute ones mean
//! little on a shared machine.

// A benchmark that meets an error has nothing to measure.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod broker;
mod change_latency;
mod client;
mod debezium;
mod encode;
mod latency;
mod measure;
mod mysql;
mod parser;
mod peer;
mod pipeline;
mod plugin;
mod records;
mod scaling;
mod table;

use std::process::ExitCode;
use std::time::Duration;

use trunkline_tests::Kafka;

use crate::measure::Sizes;
use crate::records::LINE_BYTES;
use crate::table::Table;

/// The rows of log pipelines, in the table's order; `pipeline` stands for the first six. Those of MySQL come after them.
const ROWS: [&str; 9] =
    ["none", "combined", "parquet", "mask", "parser", "plugin", "latency", "bento-log", "bento-lake"];
const USAGE: &str = "usage: tests/bench/run [all | ROW..] [--seconds N] [--rounds N]
       tests/bench/run scaling [GROUP..]
       tests/bench/run broker [RECORDS]";

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
        rows => parse(rows).map(|(rows, sizes)| table(&rows, sizes)),
    };
    ran.unwrap_or_else(|| {
        eprintln!(
            "{USAGE}\nROW: pipeline (all until plugin), mysql (all from mysql-snapshot) or {}\nGROUP: {}",
            [ROWS.as_slice(), &mysql::ROWS].concat().join(", "),
            scaling::GROUPS.join(", ")
        );
        ExitCode::from(2)
    })
}

/// The rows that are wanted, and how long they are measured.
fn parse<'a>(mut words: &[&'a str]) -> Option<(Vec<&'a str>, Sizes)> {
    let mut rows = Vec::new();
    let mut sizes = Sizes { run: Duration::from_secs(30), rounds: 3 };
    loop {
        words = match words {
            [] => break,
            ["--seconds", seconds, rest @ ..] => {
                sizes.run = Duration::from_secs(seconds.parse().ok().filter(|seconds| *seconds > 0)?);
                rest
            }
            ["--rounds", rounds, rest @ ..] => {
                sizes.rounds = rounds.parse().ok().filter(|rounds| *rounds > 0)?;
                rest
            }
            ["all", rest @ ..] => {
                rows.extend(ROWS);
                rows.extend(mysql::ROWS);
                rest
            }
            ["mysql", rest @ ..] => {
                rows.extend(mysql::ROWS);
                rest
            }
            ["pipeline", rest @ ..] => {
                rows.extend(&ROWS[..6]);
                rest
            }
            [row, rest @ ..] => {
                rows.push(*ROWS.iter().chain(&mysql::ROWS).find(|known| *known == row)?);
                rest
            }
        };
    }
    if rows.is_empty() {
        rows.extend(ROWS);
        rows.extend(mysql::ROWS);
    }
    Some((rows, sizes))
}

fn table(rows: &[&str], sizes: Sizes) -> ExitCode {
    let wanted = |row: &str| rows.contains(&row);
    let mut table = Table::default();
    if rows.iter().any(|row| !["parser", "plugin"].contains(row)) {
        let kafka = Kafka::start().unwrap_or_else(|skip| panic!("{skip}"));
        if ["none", "combined", "parquet", "mask"].into_iter().any(wanted) {
            table.add(pipeline::rows(&kafka, sizes, wanted));
        }
        if wanted("latency") {
            table.add(latency::rows(&kafka, sizes));
        }
        if ["bento-log", "bento-lake"].into_iter().any(wanted) {
            match peer::rows(&kafka, sizes, wanted) {
                Ok(rows) => table.add(rows),
                Err(reason) => table.skip("Bento", &reason),
            }
        }
        if mysql::ROWS.into_iter().any(wanted) {
            mysql::add(&mut table, &kafka, sizes, wanted);
        }
    }
    // Without a broker beside them: they measure one core.
    if wanted("parser") {
        table.add([parser::row(sizes)]);
    }
    if wanted("plugin") {
        table.add([plugin::row(sizes)]);
    }
    println!(
        "lines of {LINE_BYTES} bytes; {} processors; runs of {:?}, {} rounds in turns: median (lowest-highest); A/A: the highest over the lowest of equal runs",
        std::thread::available_parallelism().unwrap(),
        sizes.run,
        sizes.rounds
    );
    table.show()
}
