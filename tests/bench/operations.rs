//! The answers of a worker with 200 pipelines, one of which reads 200,000 lines per second: a
//! scrape of its metrics, its status, and its page. Percentiles are those of one round's requests.

use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use trunkline_tests::{Case, Kafka, Process, wait};

use crate::client::LIMIT;
use crate::latency::end;
use crate::measure::{Sampling, percentile};
use crate::records::Lines;
use crate::table::{Row, Target};

const PIPELINES: usize = 200;

/// Requests to each path in a round.
const REQUESTS: usize = 100;

/// Time between two requests: viewers and scrapers do not send one after another.
const PAUSE: Duration = Duration::from_millis(50);

/// The lines of the busy pipeline: this number is appended in each interval.
const LINES: u64 = 10_000;
const LINE_BYTES: usize = 100;
const APPEND_INTERVAL: Duration = Duration::from_millis(50);

pub(crate) fn rows(kafka: &Kafka, sampling: Sampling) -> Vec<Row> {
    let case = Case::new("bench-operations", kafka);
    for number in 0..PIPELINES {
        let text = format!(
            "name = \"$NAME-{number}\"\n[sources.web]\nconnector = \"logfile\"\npaths = [\"$DIR/logs/{number}/*.log\"]\n\
             topic = \"$NAME-{number}\"\npartitions = 1\n"
        );
        case.pipeline(&format!("p{number}"), &text);
    }
    let worker = case.start("a", &[]);
    let address = address(&worker);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| append(&case.path("logs/0/busy.log"), &stop));
        let rows = measure(&case, &address, sampling);
        stop.store(true, Ordering::Relaxed);
        end(worker);
        rows
    })
}

fn measure(case: &Case, address: &str, sampling: Sampling) -> Vec<Row> {
    let busy = format!("trunkline_records_total{{pipeline=\"{}-0\"", case.name());
    wait::until("all pipelines run, and one is busy", LIMIT, || {
        let page = get(address, "/metrics", "").1;
        let running = page.lines().filter(|line| line.contains("state=\"running\"} 1"));
        let is_busy = page.lines().any(|line| line.starts_with(&busy) && !line.ends_with(" 0"));
        (running.count() == PIPELINES && is_busy).then_some(())
    });
    let paths = [
        ("scrape of 200 pipelines, one busy, p99", "/metrics", "", Target::AtMost(50.0)),
        ("status of 200 pipelines, one busy, p99", "/api/v1/status", "", Target::AtMost(10.0)),
        ("page of 200 pipelines, one busy, p99", "/", "Accept: text/html\r\n", Target::None),
    ];
    let rows = paths.map(|(name, path, headers, target)| {
        let measured = (0..sampling.rounds).map(|_| percentile(&milliseconds(address, path, headers), 0.99)).collect();
        Row { name: name.to_owned(), unit: "ms", reference: Vec::new(), measured, target }
    });
    rows.into()
}

/// Appends lines to a log until it is stopped.
fn append(log: &Path, stop: &AtomicBool) {
    let lines = Lines::of_length(7, LINES, LINE_BYTES);
    std::fs::create_dir_all(log.parent().unwrap()).unwrap();
    let mut file = OpenOptions::new().create(true).append(true).open(log).unwrap();
    let mut due = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        file.write_all(lines.text().as_bytes()).unwrap();
        due += APPEND_INTERVAL;
        std::thread::park_timeout(due.saturating_duration_since(Instant::now()));
    }
}

/// How long requests to a path took.
fn milliseconds(address: &str, path: &str, headers: &str) -> Vec<f64> {
    let mut measured = Vec::new();
    for _ in 0..REQUESTS {
        std::thread::park_timeout(PAUSE);
        let started = Instant::now();
        let (code, body) = get(address, path, headers);
        measured.push(started.elapsed().as_secs_f64() * 1_000.0);
        assert!(code == 200 && body.len() > PIPELINES, "{path}: {code}");
    }
    measured
}

fn get(address: &str, path: &str, headers: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\n{headers}Connection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

/// The address of a worker's HTTP server, from its log.
fn address(worker: &Process) -> String {
    wait::until("the worker logs its address", LIMIT, || {
        let log = worker.stderr();
        let (_, rest) = log.split_once("metrics: http://")?;
        Some(rest.split_once("/metrics")?.0.to_owned())
    })
}
