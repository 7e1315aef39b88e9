//! The product against real servers: pipelines run, workers and servers are killed, and then everything is counted at the destination.
//! (`clients` is about the broker alone, and what programs that nobody here wrote get from it.)
//!
//! What each test checks besides its own subject: I3, conservation, in every summary that is parsed; and that the lake holds every line
//! once, by counting rows, different paths (each line has its own) and the sum of a column with programs that are not ours.

// Tests fail by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod brokers;
mod clients;
mod cloned;
mod crashes;
mod dead_letters;
mod harness;
mod mysql;
mod newcomer;
mod outages;
mod pipeline;
mod reload;
mod rotation;
mod secured;
mod several;
mod transforms;
mod unknown_outcomes;

use std::path::Path;
use std::time::Duration;

use trunkline_tests::{Case, Found, LogWriter, Reader, S3, Summary, wait};

/// More than any single step should take, on a machine that is busy with other things.
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

// Files are closed early, so that there are many of them, and many moments in which to be killed.
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

/// The same, into a bucket of an S3 server or of a proxy before it.
fn access_logs_to_s3(address: &str) -> String {
    let url = format!(
        "url = \"s3://lake/logs\"\nendpoint = \"http://{address}\"\nregion = \"{}\"\npath_style = true",
        S3::REGION
    );
    access_logs().replace(r#"url = "file://$DIR/lake""#, &url)
}

/// Checks that the lake has every line of the log once.
fn assert_every_line_once(reader: &Reader, lake: &Path, log: &LogWriter) -> Found {
    let found = reader.read_with_sums(lake, &["path"], &["bytes"]);
    let (lines, bytes) = (log.lines(), log.bytes());
    assert_eq!(
        (found.rows, found.distinct, found.sums["bytes"]),
        (lines, Some(lines), bytes),
        "rows, lines, bytes of {found:?}"
    );
    found
}

/// Runs a worker to the end of the log, and checks that every line is in the lake once, and was counted once.
fn assert_all_arrives(case: &Case, reader: &Reader, log: &LogWriter) {
    let summary = case.until_idle("a", LONG);
    assert_counted(&summary, case, log.lines(), 0);
    assert_every_line_once(reader, &case.path("lake"), log);
}

/// Waits until the lake has so many rows. That it has no more, and none twice, is checked when the worker has stopped.
fn wait_for_rows(reader: &Reader, lake: &Path, rows: u64) {
    wait::until(&format!("{rows} rows in the lake"), LONG, || {
        (reader.read(lake, &["path"]).rows >= rows).then_some(())
    });
}

/// Checks that the mask pipeline took so many lines from end to end, `bad` of them to the dead letters.
fn assert_counted(summary: &Summary, case: &Case, lines: u64, bad: u64) {
    let web = summary.of(case.name(), "web");
    assert_eq!((web.kind.as_str(), web.input, web.output, web.dead_lettered), ("source", lines, lines - bad, bad));
    let clean = summary.of(case.name(), "clean");
    assert_eq!((clean.kind.as_str(), clean.input, clean.output), ("transform", lines - bad, lines - bad));
    let lake = summary.of(case.name(), "lake");
    assert_eq!((lake.kind.as_str(), lake.input, lake.output), ("sink", lines - bad, lines - bad));
}
