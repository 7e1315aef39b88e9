//! The answers of a worker with 200 pipelines, one of which reads 200,000 lines per second: a
//! scrape of its metrics, its status, and its page. Percentiles are those of one round's requests.
//!
//! Before that, the same worker is idle: its memory and processor time, and the processor time that
//! 50 clients add, as a share of a whole processor. A worker at full speed uses at least one, so
//! that is the highest share of throughput that they can cost. The cost is measured on the idle
//! worker, because a percent of throughput is less than the difference of two equal runs, and of
//! the threads that answer, because a percent of a processor is less than the difference of two
//! equal times of all threads.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use trunkline_tests::{Case, Kafka, Process, memory_of, wait};

use crate::client::LIMIT;
use crate::latency::end;
use crate::measure::{Sampling, cpu_seconds_of, cpu_seconds_of_threads, percentile};
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

/// The clients of each kind: open pages with live numbers, clients of REST, and Prometheus.
const PAGES: usize = 30;
const REST_CLIENTS: usize = 18;
const SCRAPERS: usize = 2;

/// Time between two requests of a client of REST, and between two scrapes.
const REST_INTERVAL: Duration = Duration::from_secs(2);
const SCRAPE_INTERVAL: Duration = Duration::from_secs(15);

/// Time until a started worker is at rest: sinks without records close their producers after 30 s.
const SETTLE: Duration = Duration::from_secs(40);

/// The prefix of the names of the threads that answer requests. In an idle worker they do hardly
/// anything else.
const ANSWERING: &str = "tokio";

/// Runs of the command `status`.
const COMMANDS: usize = 10;

pub(crate) fn rows(kafka: &Kafka, sampling: Sampling) -> Vec<Row> {
    let case = Case::new("bench-operations", kafka);
    for number in 0..PIPELINES {
        let text = format!(
            "name = \"$NAME-{number}\"\n[sources.web]\nconnector = \"logfile\"\npaths = [\"$DIR/logs/{number}/*.log\"]\n\
             topic = \"$NAME-{number}\"\npartitions = 1\n[sinks.lake]\nconnector = \"s3\"\ninputs = [\"web\"]\n\
             url = \"file://$DIR/lake/{number}\"\n"
        );
        case.pipeline(&format!("p{number}"), &text);
        // An idle source follows a folder without new lines, not one that does not exist.
        fs::create_dir_all(case.path(&format!("logs/{number}"))).unwrap();
    }
    let worker = case.start("a", &[]);
    let address = address(&worker);
    wait_for_tasks(&address);
    let mut rows = idle(&worker, &address, sampling);
    rows.push(commands(&case, sampling));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| append(&case.path("logs/0/busy.log"), &stop));
        start_clients(scope, &address, &stop);
        rows.extend(measure(&case, &address, sampling));
        stop.store(true, Ordering::Relaxed);
        end(worker);
        rows
    })
}

fn wait_for_tasks(address: &str) {
    wait::until("all pipelines run", LIMIT, || {
        let page = get(address, "/metrics", "").1;
        let running = page.lines().filter(|line| line.contains("state=\"running\"} 1")).count();
        (running == 2 * PIPELINES).then_some(())
    });
}

/// The memory and processor time of the idle worker, and what clients add.
fn idle(worker: &Process, address: &str, sampling: Sampling) -> Vec<Row> {
    let pid = worker.pid();
    let share = |time: Duration| {
        let before = cpu_seconds_of(pid.unsigned_abs());
        std::thread::park_timeout(time);
        (cpu_seconds_of(pid.unsigned_abs()) - before) / time.as_secs_f64() * 100.0
    };
    let answering = |time| cpu_seconds_of_threads(pid.unsigned_abs(), ANSWERING, time) / time.as_secs_f64() * 100.0;
    std::thread::park_timeout(SETTLE);
    let memory = memory_of(pid, "VmRSS").unwrap_or_default() as f64 / 1e6;
    let (mut alone, mut added) = (Vec::new(), Vec::new());
    for _ in 0..sampling.rounds {
        let time = sampling.run.max(SCRAPE_INTERVAL);
        alone.push(share(time));
        let without_clients = answering(time);
        let stop = AtomicBool::new(false);
        let with_clients = std::thread::scope(|scope| {
            start_clients(scope, address, &stop);
            let with_clients = answering(time);
            stop.store(true, Ordering::Relaxed);
            with_clients
        });
        added.push(with_clients - without_clients);
    }
    let row = |name: &str, unit, measured, target| Row {
        name: name.to_owned(),
        unit,
        reference: Vec::new(),
        measured,
        target,
    };
    vec![
        row("200 idle pipelines (log -> topic -> file): RSS", "MB", vec![memory], Target::AtMost(300.0)),
        row("200 idle pipelines: processor", "% of one", alone, Target::AtMost(5.0)),
        row("50 clients: processor of the threads that answer", "% of one", added, Target::AtMost(1.0)),
    ]
}

/// How long the command `status` takes.
fn commands(case: &Case, sampling: Sampling) -> Row {
    let measure = |_| {
        let times = (0..COMMANDS).map(|_| {
            let started = Instant::now();
            let exit = case.ask_worker("status", "a", &[], LIMIT);
            assert_eq!(exit.code, Some(0), "{}", exit.describe());
            started.elapsed().as_secs_f64() * 1_000.0
        });
        percentile(&times.collect::<Vec<_>>(), 0.5)
    };
    let measured = (0..sampling.rounds).map(measure).collect();
    let name = "`status` as a command, 200 pipelines, p50".to_owned();
    Row { name, unit: "ms", reference: Vec::new(), measured, target: Target::AtMost(100.0) }
}

/// Starts the clients; they end when `stop` is set.
fn start_clients<'scope>(
    scope: &'scope std::thread::Scope<'scope, '_>,
    address: &'scope str,
    stop: &'scope AtomicBool,
) {
    for _ in 0..PAGES {
        scope.spawn(move || watch(address, stop));
    }
    let ask = move |path: &'static str, interval: Duration| {
        while !stop.load(Ordering::Relaxed) {
            assert_eq!(get(address, path, "").0, 200, "{path}");
            let until = Instant::now() + interval;
            while Instant::now() < until && !stop.load(Ordering::Relaxed) {
                std::thread::park_timeout(PAUSE);
            }
        }
    };
    for number in 0..REST_CLIENTS {
        let paths = ["/api/v1/status", "/connectors?expand=status&expand=info", "/api/v1/cluster"];
        let path = paths[number % paths.len()];
        scope.spawn(move || ask(path, REST_INTERVAL));
    }
    for _ in 0..SCRAPERS {
        scope.spawn(move || ask("/metrics", SCRAPE_INTERVAL));
    }
}

/// An open page: reads its events.
fn watch(address: &str, stop: &AtomicBool) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PAUSE)).unwrap();
    write!(stream, "GET /ui/events HTTP/1.1\r\nHost: {address}\r\n\r\n").unwrap();
    let mut buffer = vec![0; 1 << 16];
    while !stop.load(Ordering::Relaxed) {
        match stream.read(&mut buffer) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) => assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{error}"),
        }
    }
}

fn measure(case: &Case, address: &str, sampling: Sampling) -> Vec<Row> {
    let busy = format!("trunkline_records_total{{pipeline=\"{}-0\"", case.name());
    wait::until("all pipelines run, and one is busy", LIMIT, || {
        let page = get(address, "/metrics", "").1;
        let running = page.lines().filter(|line| line.contains("state=\"running\"} 1"));
        let is_busy = page.lines().any(|line| line.starts_with(&busy) && !line.ends_with(" 0"));
        (running.count() == 2 * PIPELINES && is_busy).then_some(())
    });
    let paths = [
        ("scrape of 200 pipelines, one busy, 50 clients, p99", "/metrics", "", Target::AtMost(50.0)),
        ("status of 200 pipelines, one busy, 50 clients, p99", "/api/v1/status", "", Target::AtMost(10.0)),
        ("page of 200 pipelines, one busy, 50 clients, p99", "/", "Accept: text/html\r\n", Target::None),
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
