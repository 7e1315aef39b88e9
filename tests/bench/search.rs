//! A topic to the sink `elasticsearch`, against a server on loopback that reads and discards: the
//! speed and the cost of the worker alone. Requests are not compressed, because the link is not the
//! limit.
//!
//! The server answers as OpenSearch does, and counts the documents. It runs in this process, so its
//! processor time is not the worker's.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use trunkline_tests::{Case, Kafka, Random, worker_binary};

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
    let server = Discard::start(0);
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
    let (idle, busy) = (Discard::start(0), Discard::start(BUSY_PERCENT));
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
fn backlog(kafka: &Kafka, server: &Discard, sampling: Sampling, name: &str) -> (String, u64) {
    let lines = Lines::generate(1, SAMPLE);
    let (topic, _) = pipeline::read_log(kafka, &worker_binary(), &Log::write(&lines, SAMPLE), "combined", SAMPLE);
    let sample = client::load(kafka, &topic);
    let count = sampling.records(index(kafka, server, &topic, SAMPLE).per_second());
    client::delete_topic(kafka.brokers(), &topic);
    (pipeline::backlog(kafka, name, &sample, count), count)
}

/// Runs a worker that writes the records of a topic as documents.
fn index(kafka: &Kafka, server: &Discard, topic: &str, records: u64) -> Run {
    let case = Case::new("bench-search", kafka).with_binary(worker_binary());
    let url = format!("http://{}", server.address);
    case.pipeline(
        "bench",
        &format!(
            "name = \"$NAME\"\n[sinks.search]\nconnector = \"elasticsearch\"\ninputs = [\"topic:{topic}\"]\nurl = \"{url}\"\n\
             index = \"bench\"\ncompression = \"none\"\n"
        ),
    );
    let before = server.documents();
    let exit = pipeline::run(&case);
    assert_eq!(exit.summary().of(case.name(), "search").output, records);
    assert_eq!(server.documents() - before, records);
    // A second run has no records to read: it measures the start.
    Run::of(records, &exit, &pipeline::run(&case))
}

/// A server that discards what it is sent.
struct Discard {
    address: String,
    documents: Arc<AtomicU64>,
}

impl Discard {
    /// A server that answers this share of the documents with 429.
    fn start(busy_percent: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let documents = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&documents);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (counter, stream) = (Arc::clone(&counter), stream.unwrap());
                std::thread::spawn(move || serve(stream, &counter, busy_percent));
            }
        });
        Self { address, documents }
    }

    fn documents(&self) -> u64 {
        self.documents.load(Ordering::Relaxed)
    }
}

/// The answers for a document that was written, and for one that found the server busy.
const WRITTEN: &str = r#"{"index":{"status":201}}"#;
const BUSY: &str =
    r#"{"index":{"status":429,"error":{"type":"rejected_execution_exception","reason":"the queue is full"}}}"#;

/// Answers the requests of a connection until the worker closes it.
fn serve(stream: TcpStream, documents: &AtomicU64, busy_percent: u64) {
    // As servers do: otherwise a short answer waits for the acknowledgement of its head.
    stream.set_nodelay(true).unwrap();
    let mut random = Random::new(1);
    let mut reader = BufReader::with_capacity(1 << 20, stream);
    let mut body = Vec::new();
    loop {
        let mut line = String::new();
        // A worker that ends may reset its connections.
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        let is_bulk = line.starts_with("POST /_bulk");
        let mut length = 0;
        loop {
            let mut header = String::new();
            reader.read_line(&mut header).unwrap();
            match header.trim().to_ascii_lowercase().split_once(':') {
                Some(("content-length", value)) => length = value.trim().parse().unwrap(),
                Some(_) => {}
                None => break,
            }
        }
        body.resize(length, 0);
        reader.read_exact(&mut body).unwrap();
        let answer = if is_bulk {
            // An action line and a document each.
            let count = body.iter().filter(|byte| **byte == b'\n').count() / 2;
            let item = |_| if busy_percent > 0 && random.below(100) < busy_percent { BUSY } else { WRITTEN };
            let items: Vec<&str> = (0..count).map(item).collect();
            let busy = items.iter().filter(|item| **item == BUSY).count();
            documents.fetch_add((count - busy) as u64, Ordering::Relaxed);
            format!("{{\"errors\":{},\"items\":[{}]}}", busy > 0, items.join(","))
        } else {
            "{\"version\":{\"distribution\":\"opensearch\",\"number\":\"2.19.1\"}}".to_owned()
        };
        let head =
            format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n", answer.len());
        let stream = reader.get_mut();
        if stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(answer.as_bytes())).is_err() {
            return;
        }
    }
}
