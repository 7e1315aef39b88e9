//! Benchmarks: `tests/bench/run pipeline [LINES]`, `mysql [ROWS]`, `latency` and `broker [RECORDS]`. Every figure stands beside a limit or a peer
//! that was measured in the same run, because absolute ones mean little on a shared machine.

// A benchmark that meets an error has nothing to measure.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod broker;
mod client;
mod encode;
mod latency;
mod measure;
mod mysql;
mod pipeline;
mod records;

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let count = |default: u64| arguments.get(1).map_or(Some(default), |text| text.replace('_', "").parse().ok());
    match (arguments.first().map(String::as_str), count(2_000_000)) {
        (Some("pipeline"), Some(lines)) => pipeline::run_all(lines),
        (Some("mysql"), Some(rows)) => mysql::run_all(rows),
        (Some("latency"), _) => latency::run_all(),
        (Some("broker"), Some(records)) => broker::run_all(records),
        _ => {
            eprintln!("usage: tests/bench/run pipeline [LINES] | mysql [ROWS] | latency | broker [RECORDS]");
            ExitCode::from(2)
        }
    }
}
