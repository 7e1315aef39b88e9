//! The sink `elasticsearch` with a real OpenSearch node on the same machine.
//!
//! | row | its limit or peer |
//! |---|---|
//! | topic → OpenSearch, 1.1 kB documents with ids | a loader of prebuilt bodies; Bento |
//! | line written → found by a search | none |
//!
//! All arms write the same documents with the same ids, each run to an index of its own with the
//! same settings and mapping. The node is warmed by a run of each arm. The speed is that of a
//! steady state: from the moment when the index has its first documents until it has all. So the
//! start of a process counts for no arm. Requests are not compressed.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use trunkline_tests::{Case, Kafka, OpenSearch, Skip, wait, worker_binary};

use crate::client::{LIMIT, PARTITIONS, StoredRecord};
use crate::latency;
use crate::measure::{Sampling, percentile};
use crate::peer::Bento;
use crate::pipeline::{self, Run, alternate};
use crate::table::{Row, Target};

/// Different documents.
const SAMPLE: usize = 50_000;

/// Bytes of a document.
const DOCUMENT_BYTES: usize = 1_100;

/// Documents of a body of the loader: 5 MB.
const BODY_DOCUMENTS: usize = 4_500;

/// Documents of a request of Bento. Larger ones are slower: batches of 10,000 took six times the
/// processor time.
const BENTO_DOCUMENTS: usize = 1_000;

/// Connections of the loader.
const CONNECTIONS: usize = 4;

/// Documents of a run that warms the node up.
const WARM_UP: u64 = 150_000;

/// Loads that warm the node up. The processor time of a document falls until the tenth load or so.
const MIN_WARM_UPS: usize = 12;
const MAX_WARM_UPS: usize = 20;

/// Megabytes of the node's heap. With half a gigabyte, a quarter of its processor time are
/// collections.
const HEAP: u32 = 2_048;

/// The topic of the documents.
const TOPIC: &str = "search-backlog";

/// The interval between two lines.
const INTERVAL: Duration = Duration::from_millis(20);

/// Longest time until a line is found, at the 99th percentile.
const MAX_LATENCY_MS: f64 = 1_500.0;

/// The selected rows of `opensearch` and `bento-search`.
pub(crate) fn rows(kafka: &Kafka, sampling: Sampling, is_selected: impl Fn(&str) -> bool) -> Result<Vec<Row>, Skip> {
    let server = OpenSearch::start_with_heap(HEAP)?;
    let loader = Loader::new();
    let per_second = warm_up(&loader, &server);
    let count = documents_of(sampling, per_second);
    let backlog = pipeline::backlog(kafka, TOPIC, &loader.sample(), count);
    let worker = |_| write_index(kafka, &server, &backlog, count).report("worker", sampling);
    write_index(kafka, &server, &pipeline::backlog(kafka, "search-short", &loader.sample(), WARM_UP), WARM_UP);
    let mut rows = Vec::new();

    if is_selected("opensearch") {
        let name = "topic -> OpenSearch, 1.1 kB documents";
        eprintln!("{name}");
        let limit = |_| loader.load(&server, count).report("limit", sampling);
        rows.extend(compare(name, &alternate(sampling, limit, worker), Target::Share(0.8), Target::None));
    }
    if is_selected("bento-search") {
        let bento = Bento::find(kafka)?;
        bento_index(&bento, &server, "search-short", WARM_UP);
        let name = "Bento: topic -> OpenSearch";
        eprintln!("{name}");
        let peer = |_| bento_index(&bento, &server, &backlog, count).report("Bento", sampling);
        rows.extend(compare(name, &alternate(sampling, peer, worker), Target::Share(2.0), Target::AtMostShare(0.25)));
    }
    Ok(rows)
}

/// The rows of `search-latency`.
pub(crate) fn latency_rows(kafka: &Kafka, sampling: Sampling) -> Result<[Row; 2], Skip> {
    let server = OpenSearch::start()?;
    let count = (sampling.run.as_secs_f64() / INTERVAL.as_secs_f64()) as usize;
    let rounds: Vec<Vec<f64>> = (0..sampling.rounds).map(|round| lines(kafka, &server, round, count)).collect();
    let row = |name: &str, share, target| Row {
        name: name.to_owned(),
        unit: "ms",
        reference: Vec::new(),
        measured: rounds.iter().map(|values| percentile(values, share)).collect(),
        target,
    };
    Ok([
        row("line written -> found by a search, p50", 0.5, Target::None),
        row("  p99", 0.99, Target::AtMost(MAX_LATENCY_MS)),
    ])
}

/// Loads documents until the node becomes no faster: its compiler takes minutes to make the code of
/// these requests fast. Returns the speed.
fn warm_up(loader: &Loader, server: &OpenSearch) -> f64 {
    let mut fastest = loader.load(server, WARM_UP).per_second();
    for loads in 2..=MAX_WARM_UPS {
        let speed = loader.load(server, WARM_UP).per_second();
        if loads >= MIN_WARM_UPS && speed < fastest * 1.05 {
            break;
        }
        fastest = fastest.max(speed);
    }
    fastest
}

/// Speed and processor time of two arms: a limit or a peer, and the worker.
fn compare(name: &str, [reference, worker]: &[Vec<Run>; 2], speed: Target, cpu: Target) -> [Row; 2] {
    let row = |name: &str, unit, value: fn(&Run) -> f64, target| Row {
        name: name.to_owned(),
        unit,
        reference: reference.iter().map(value).collect(),
        measured: worker.iter().map(value).collect(),
        target,
    };
    [row(name, "documents/s", Run::per_second, speed), row("  processor", "s per million", Run::cpu_per_million, cpu)]
}

/// The documents of a run that takes its whole time.
fn documents_of(sampling: Sampling, per_second: f64) -> u64 {
    let documents = (per_second * sampling.run.as_secs_f64()) as u64;
    documents.max(WARM_UP).next_multiple_of(BODY_DOCUMENTS as u64)
}

/// Runs `work`, which writes these documents to an index. Returns its value, and the time that all
/// documents take at the speed of the time after the first ones.
fn steady<T: Send>(server: &OpenSearch, index: &str, documents: u64, work: impl FnOnce() -> T + Send) -> (T, Duration) {
    let indexed = || {
        let stats = server.call("GET", &format!("/{index}/_stats/indexing"), "");
        stats["_all"]["primaries"]["indexing"]["index_total"].as_u64().unwrap()
    };
    std::thread::scope(|scope| {
        let work = scope.spawn(work);
        let first = wait::until("the first documents", LIMIT, || Some(indexed()).filter(|count| *count > 0));
        let started = Instant::now();
        wait::until("all documents", LIMIT, || (indexed() >= documents).then_some(()));
        let elapsed = started.elapsed();
        let share = (documents - first) as f64 / documents as f64;
        (work.join().unwrap(), elapsed.div_f64(share))
    })
}

fn document(number: usize) -> String {
    const TEXT: &str = "The quick brown fox jumps over the lazy dog, and nothing in this text is ever searched for. ";
    let mut text =
        format!("{{\"n\":{number},\"status\":{},\"path\":\"/items/{}\",\"text\":\"", number % 500, number % 9_973);
    while text.len() < DOCUMENT_BYTES - 2 {
        let rest = DOCUMENT_BYTES - 2 - text.len();
        text.push_str(&TEXT[..rest.min(TEXT.len())]);
    }
    text + "\"}"
}

/// Creates an index for the documents, and returns its name.
fn create_index(server: &OpenSearch) -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let name = format!("bench-{}", NEXT.fetch_add(1, Ordering::Relaxed));
    let body = json!({
        "settings": {"number_of_shards": 1, "number_of_replicas": 0},
        "mappings": {"properties": {
            "n": {"type": "long"}, "status": {"type": "short"}, "path": {"type": "keyword"}, "text": {"type": "text"},
        }},
    });
    server.call("PUT", &format!("/{name}"), &body.to_string());
    name
}

fn delete_index(server: &OpenSearch, index: &str, documents: u64) {
    assert_eq!(server.documents(index), documents, "documents of {index}");
    server.call("DELETE", &format!("/{index}"), "");
}

/// Runs a worker that writes a topic to an index.
fn write_index(kafka: &Kafka, server: &OpenSearch, topic: &str, documents: u64) -> Run {
    let case = Case::new("bench-opensearch", kafka).with_binary(worker_binary());
    let (index, url) = (create_index(server), server.url());
    case.pipeline(
        "bench",
        &format!(
            "name = \"$NAME\"\n[sinks.search]\nconnector = \"elasticsearch\"\ninputs = [\"topic:{topic}\"]\nurl = \"{url}\"\n\
             index = \"{index}\"\ncompression = \"none\"\n"
        ),
    );
    let (exit, elapsed) = steady(server, &index, documents, || pipeline::run(&case));
    assert_eq!(exit.summary().of(case.name(), "search").output, documents);
    // A second run has no records to read: it measures the processor time of the start.
    let idle = pipeline::run(&case);
    delete_index(server, &index, documents);
    Run { seconds: elapsed.as_secs_f64(), ..Run::of(documents, &exit, &idle) }
}

/// Runs Bento, which writes a topic to an index. It does not exit by itself: it is stopped when the
/// index has all documents.
fn bento_index(bento: &Bento<'_>, server: &OpenSearch, topic: &str, documents: u64) -> Run {
    let (index, url) = (create_index(server), server.url());
    let id = "${! @kafka_topic }+${! @kafka_partition }+${! @kafka_offset }";
    let output = format!(
        "output:\n  opensearch:\n    urls: [ {url} ]\n    index: {index}\n    action: index\n    id: '{id}'\n    max_in_flight: 4\n    \
         batching: {{ count: {BENTO_DOCUMENTS}, period: 200ms }}\n"
    );
    let config = bento.read_topic(topic, 200_000) + &output;
    let idle = bento.run_to_end("input:\n  generate: { count: 1, mapping: 'root = {}' }\noutput:\n  drop: {}\n");
    let process = bento.start(&config);
    let (mut process, elapsed) = steady(server, &index, documents, || process);
    assert!(process.is_running(), "Bento ended: {}", process.stderr());
    process.sigterm();
    let exit = process.wait(Duration::from_secs(60));
    delete_index(server, &index, documents);
    Run { seconds: elapsed.as_secs_f64(), ..Run::of(documents, &exit, &idle) }
}

/// The limit: a client that only sends bodies, over connections that stay open.
struct Loader {
    documents: Vec<String>,
    /// Partition and offset of each document.
    places: Vec<(i32, u64)>,
    /// Documents in each partition.
    in_partition: Vec<u64>,
}

impl Loader {
    fn new() -> Self {
        let mut in_partition = vec![0; PARTITIONS as usize];
        let place = |number: i32| {
            let partition = number / 1_000 % PARTITIONS;
            let offset: &mut u64 = &mut in_partition[partition as usize];
            *offset += 1;
            (partition, *offset - 1)
        };
        let places = (0..SAMPLE as i32).map(place).collect();
        Self { documents: (0..SAMPLE).map(document).collect(), places, in_partition }
    }

    /// The records of the topic, which [`pipeline::backlog`] repeats.
    fn sample(&self) -> Vec<StoredRecord> {
        let record =
            |((partition, _), text): (&(i32, u64), &String)| StoredRecord::new(*partition, text.as_bytes().to_vec());
        self.places.iter().zip(&self.documents).map(record).collect()
    }

    /// Writes the body of a request with the ids that the worker gives.
    fn body(&self, documents: std::ops::Range<u64>, body: &mut String) {
        body.clear();
        for number in documents {
            let (round, sample) = (number / SAMPLE as u64, number as usize % SAMPLE);
            let (partition, offset) = self.places[sample];
            let offset = round * self.in_partition[partition as usize] + offset;
            // Writing to a string cannot fail.
            let _ = writeln!(
                body,
                "{{\"index\":{{\"_id\":\"{TOPIC}+{partition}+{offset}\"}}}}\n{}",
                self.documents[sample]
            );
        }
    }

    /// Writes documents to an index.
    fn load(&self, server: &OpenSearch, documents: u64) -> Run {
        let index = create_index(server);
        let next = AtomicU64::new(0);
        let send = || {
            let mut connection = Connection::open(&server.address());
            let mut body = String::new();
            loop {
                let first = next.fetch_add(BODY_DOCUMENTS as u64, Ordering::Relaxed);
                if first >= documents {
                    return;
                }
                self.body(first..documents.min(first + BODY_DOCUMENTS as u64), &mut body);
                connection.bulk(&index, &body);
            }
        };
        let run = || {
            pipeline::timed(|| {
                std::thread::scope(|scope| (0..CONNECTIONS).for_each(|_| drop(scope.spawn(send))));
                documents
            })
        };
        let (run, elapsed) = steady(server, &index, documents, run);
        delete_index(server, &index, documents);
        Run { seconds: elapsed.as_secs_f64(), ..run }
    }
}

/// A connection that stays open.
struct Connection(BufReader<TcpStream>);

impl Connection {
    fn open(address: &str) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        Self(BufReader::new(stream))
    }

    fn bulk(&mut self, index: &str, body: &str) {
        let head = format!(
            "POST /{index}/_bulk?filter_path=errors HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-ndjson\r\n\
             Content-Length: {}\r\n\r\n",
            body.len()
        );
        let stream = self.0.get_mut();
        stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes())).unwrap();
        let (mut status, mut length) = (String::new(), 0);
        self.0.read_line(&mut status).unwrap();
        loop {
            let mut header = String::new();
            self.0.read_line(&mut header).unwrap();
            match header.trim().to_ascii_lowercase().split_once(':') {
                Some(("content-length", value)) => length = value.trim().parse().unwrap(),
                Some(_) => {}
                None => break,
            }
        }
        let mut answer = vec![0; length];
        self.0.read_exact(&mut answer).unwrap();
        let answer = String::from_utf8_lossy(&answer);
        assert!(status.contains(" 200 ") && answer.contains("\"errors\":false"), "{status}{answer}");
    }
}

/// The milliseconds from writing each line until a search finds it.
fn lines(kafka: &Kafka, server: &OpenSearch, round: usize, count: usize) -> Vec<f64> {
    let case = Case::new(&format!("bench-found-{round}"), kafka).with_binary(worker_binary());
    let (index, url) = (create_index(server), server.url());
    case.pipeline(
        "bench",
        &format!(
            "name = \"$NAME\"\n[sources.web]\nconnector = \"logfile\"\npaths = [\"$DIR/logs/*.log\"]\nparser = \"json\"\n\
             [sinks.search]\nconnector = \"elasticsearch\"\ninputs = [\"web\"]\nurl = \"{url}\"\nindex = \"{index}\"\n"
        ),
    );
    let log = case.path("logs/a.log");
    let append = |number: usize| {
        let mut file = OpenOptions::new().create(true).append(true).open(&log).unwrap();
        writeln!(file, "{{\"n\":{number}}}").unwrap();
    };
    // The lines from `from` on that a search finds.
    let found = |from: usize| -> Vec<usize> {
        let query = json!({"size": 1_000, "_source": ["n"], "query": {"range": {"n": {"gte": from}}}, "sort": ["n"]});
        let answer = server.call("POST", &format!("/{index}/_search"), &query.to_string());
        let hits = answer["hits"]["hits"].as_array().unwrap();
        hits.iter().map(|hit| hit["_source"]["n"].as_u64().unwrap() as usize).collect()
    };
    append(0);
    let worker = case.start("a", &[]);
    wait::until("the first line is found", LIMIT, || found(0).pop());
    let started = Instant::now();
    // When each line was written, and when it was found.
    let mut written: Vec<Duration> = Vec::new();
    let mut at: BTreeMap<usize, f64> = BTreeMap::new();
    let mut lowest = 1;
    while at.len() < count {
        assert!(started.elapsed() < LIMIT, "{} of {count} lines: {}", at.len(), worker.stderr());
        while written.len() < count && started.elapsed() >= INTERVAL * written.len() as u32 {
            append(written.len() + 1);
            written.push(started.elapsed());
        }
        for number in found(lowest) {
            at.entry(number).or_insert_with(|| (started.elapsed() - written[number - 1]).as_secs_f64() * 1e3);
        }
        while at.contains_key(&lowest) {
            lowest += 1;
        }
    }
    latency::end(worker);
    server.call("DELETE", &format!("/{index}"), "");
    at.into_values().collect()
}
