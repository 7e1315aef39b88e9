//! End-to-end tests: pipelines run on real servers, workers and servers are killed, and the records
//! are counted at the destination.
//!
//! Besides its own subject, each test checks conservation (I3) in every summary, and that the lake
//! has every line exactly once: independent readers count rows, distinct paths (each line has a
//! unique one) and the sum of a column.
//!
//! # Brokers
//!
//! Tests whose subject involves the broker run on Apache Kafka and on the embedded broker
//! ([`on_each_broker!`]): the commit protocol, fencing, consumer groups, broker outages, topic
//! administration, and Kafka clients. All other tests run once, on the embedded broker
//! ([`Kafka::any`]).
//!
//! Tests share one broker of each kind, one S3 server and one MySQL. A test that stops or kills a
//! server starts its own.

// Tests fail by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used)]

/// Runs tests on both kinds of brokers: `fn NAME(kind: BrokerKind)` becomes the tests
/// `apache::NAME` and `embedded::NAME`.
macro_rules! on_each_broker {
    ($($name:ident),+ $(,)?) => {
        mod apache {
            $(#[test] fn $name() { super::$name(trunkline_tests::BrokerKind::Apache) })+
        }
        mod embedded {
            $(#[test] fn $name() { super::$name(trunkline_tests::BrokerKind::Embedded) })+
        }
    };
}

mod broker_client;
mod brokers;
mod clients;
mod cloned;
mod connect_rest;
mod control;
mod crashes;
mod dashboard;
mod dead_letters;
mod guide;
mod lost_replies;
mod mysql;
mod newcomer;
mod otlp;
mod outages;
mod oversized;
mod page;
mod payments;
mod pipeline;
mod redshift;
mod reload;
mod replay;
mod replay_runs;
mod replay_warehouse;
mod rotation;
mod sample_warehouses;
mod search;
mod secured;
mod secured_broker;
mod secured_matrix;
mod several_workers;
mod shop;
mod snowflake;
mod state;
mod status;
mod transforms;
mod worker_log;

#[path = "../live/mod.rs"]
mod live;

use std::path::Path;
use std::time::Duration;

use trunkline_tests::{Case, LakeContents, LogWriter, Process, Reader, S3, Summary, wait};

/// More than any single step needs, even on a busy machine.
const LONG: Duration = Duration::from_secs(180);

const SOURCE: &str = r#"
name = "$NAME"

[sources.web]
connector = "logfile"
paths = ["$DIR/logs/*.log"]
parser = "combined"
"#;

const MASK: &str = r#"
[transforms.clean]
inputs = ["web"]
plugin = "mask.wasm"
config = { fields = ["remote_addr"] }
"#;

// The sink closes files early: more files give more moments at which a kill matters.
const LAKE: &str = r#"
[sinks.lake]
connector = "s3"
inputs = ["clean"]
url = "file://$DIR/lake"
path = "day={timestamp:%Y-%m-%d}"
rotate = { records = 2_000, age = "2s", idle = "500ms" }
"#;

/// The pipeline of most tests: log files, masked, to Parquet files in a local folder.
fn access_logs() -> String {
    [SOURCE, MASK, LAKE].concat()
}

/// The same pipeline into the bucket `$NAME` of an S3 server or of a proxy.
fn access_logs_to_s3(address: &str) -> String {
    let url = format!(
        "url = \"s3://$NAME/logs\"\nendpoint = \"http://{address}\"\nregion = \"{}\"\npath_style = true",
        S3::REGION
    );
    access_logs().replace(r#"url = "file://$DIR/lake""#, &url)
}

/// Checks that the lake has every line of the log exactly once.
fn assert_every_line_once(reader: &Reader, lake: &Path, log: &LogWriter) -> LakeContents {
    let found = reader.read_with_sums(lake, &["path"], &["bytes"]);
    let (lines, bytes) = (log.lines(), log.bytes());
    assert_eq!(
        (found.rows, found.distinct, found.sums["bytes"]),
        (lines, Some(lines), bytes),
        "rows, distinct lines, sum of bytes in {found:?}"
    );
    found
}

/// Runs a worker to the end of the log, and checks that every line is in the lake once and counted
/// once.
fn assert_all_arrives(case: &Case, reader: &Reader, log: &LogWriter) {
    let summary = case.until_idle("a", LONG);
    assert_counted(&summary, case, log.lines(), 0);
    assert_every_line_once(reader, &case.path("lake"), log);
}

/// Waits until the lake has at least `rows` rows. Tests check for duplicates after the worker
/// stopped.
fn wait_for_rows(reader: &Reader, lake: &Path, rows: u64) {
    wait::until(&format!("{rows} rows in the lake"), LONG, || {
        (reader.read(lake, &["path"]).rows >= rows).then_some(())
    });
}

/// Checks the counters of the mask pipeline: `lines` lines, of which `bad` are dead letters.
fn assert_counted(summary: &Summary, case: &Case, lines: u64, bad: u64) {
    let web = summary.of(case.name(), "web");
    assert_eq!((web.kind.as_str(), web.input, web.output, web.dead_lettered), ("source", lines, lines - bad, bad));
    let clean = summary.of(case.name(), "clean");
    assert_eq!((clean.kind.as_str(), clean.input, clean.output), ("transform", lines - bad, lines - bad));
    let lake = summary.of(case.name(), "lake");
    assert_eq!((lake.kind.as_str(), lake.input, lake.output), ("sink", lines - bad, lines - bad));
}

/// Sends SIGTERM to a running worker, and checks that it exits with 0.
fn stop(mut worker: Process) {
    assert!(worker.is_running(), "{}", worker.stderr());
    worker.sigterm();
    let exit = worker.wait(LONG);
    assert_eq!(exit.code, Some(0), "{}", exit.describe());
}
