//! A topic to the sink `elasticsearch`, against a server on loopback that reads and discards: the
//! speed and the cost of the worker alone. Requests are not compressed, because the link is not the
//! limit.
//!
//! The server answers as OpenSearch does, and counts the documents. It runs in this process, so its
//! processor time is not the worker's.

use trunkline_tests::{Case, Kafka, SearchStub, worker_binary};

use crate::client;
use crate::measure::Sampling;
use crate::pipeline::{self, Run, SAMPLE};
use crate::records::{Lines, Log};
use crate::table::{Row, Target};

/// Documents that the worker writes on one core in a second.
const DOCUMENTS_PER_SECOND: f64 = 300_000.0;

/// Processor seconds for a million documents.
const CPU_PER_MILLION: f64 = 3.0;

/// Peak RSS, in MB.
const MAX_MEMORY_MB: f64 = 150.0;

/// The share of documents that a busy server answers with 429, in percent.
const BUSY_PERCENT: u64 = 30;

/// Least share of the speed with a busy server.
const BUSY_SPEED: f64 = 0.6;

/// The rows of `search`.
pub(crate) fn rows(kafka: &Kafka, sampling: Sampling) -> [Row; 3] {
    let server = SearchStub::discarding(0);
    let (backlog, count) = backlog(kafka, &server, sampling, "backlog-search");
    let name = "topic -> search server that discards";
    eprintln!("{name}");
    let run = |_| index(kafka, &server, &backlog, count).report("worker", sampling);
    let runs: Vec<Run> = (0..sampling.rounds).map(run).collect();
    client::delete_topic(kafka.brokers(), &backlog);
    let row = |name: &str, unit, value: fn(&Run) -> f64, target| Row {
        name: name.to_owned(),
        unit,
        reference: Vec::new(),
        measured: runs.iter().map(value).collect(),
        target,
    };
    [
        row(name, "documents/s", Run::per_second, Target::AtLeast(DOCUMENTS_PER_SECOND)),
        row("  processor", "s per million", Run::cpu_per_million, Target::AtMost(CPU_PER_MILLION)),
        row("  peak RSS", "MB", Run::megabytes, Target::AtMost(MAX_MEMORY_MB)),
    ]
}

/// The row of `search-busy`: its limit is the same server with room for all documents.
pub(crate) fn busy_row(kafka: &Kafka, sampling: Sampling) -> Row {
    let (idle, busy) = (SearchStub::discarding(0), SearchStub::discarding(BUSY_PERCENT));
    let (backlog, count) = backlog(kafka, &idle, sampling, "backlog-busy");
    let name = "30 % of documents answered with 429";
    eprintln!("{name}");
    let [limits, workers] = pipeline::alternate(
        sampling,
        |_| index(kafka, &idle, &backlog, count).report("without 429", sampling),
        |_| index(kafka, &busy, &backlog, count).report("worker", sampling),
    );
    client::delete_topic(kafka.brokers(), &backlog);
    Row {
        name: name.to_owned(),
        unit: "documents/s",
        reference: limits.iter().map(Run::per_second).collect(),
        measured: workers.iter().map(Run::per_second).collect(),
        target: Target::Share(BUSY_SPEED),
    }
}

/// A topic with the records of a run, and their number.
fn backlog(kafka: &Kafka, server: &SearchStub, sampling: Sampling, name: &str) -> (String, u64) {
    let lines = Lines::generate(1, SAMPLE);
    let (topic, _) = pipeline::read_log(kafka, &worker_binary(), &Log::write(&lines, SAMPLE), "combined", SAMPLE);
    let sample = client::load(kafka, &topic);
    let count = sampling.records(index(kafka, server, &topic, SAMPLE).per_second());
    client::delete_topic(kafka.brokers(), &topic);
    (pipeline::backlog(kafka, name, &sample, count), count)
}

/// Runs a worker that writes the records of a topic as documents.
fn index(kafka: &Kafka, server: &SearchStub, topic: &str, records: u64) -> Run {
    let case = Case::new("bench-search", kafka).with_binary(worker_binary());
    let url = server.url();
    case.pipeline(
        "bench",
        &format!(
            "name = \"$NAME\"\n[sinks.search]\nconnector = \"elasticsearch\"\ninputs = [\"topic:{topic}\"]\nurl = \"{url}\"\n\
             index = \"bench\"\ncompression = \"none\"\n"
        ),
    );
    let before = server.accepted();
    let exit = pipeline::run(&case);
    assert_eq!(exit.summary().of(case.name(), "search").output, records);
    assert_eq!(server.accepted() - before, records);
    // A second run has no records to read: it measures the start.
    Run::of(records, &exit, &pipeline::run(&case))
}
