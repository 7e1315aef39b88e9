//! The embedded broker compared with Apache Kafka: the same client, settings and bytes on each,
//! alternating in one run.

use std::net::TcpStream;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::message::Message;
use rdkafka::producer::Producer;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use trunkline_tests::{BrokerKind, Kafka, memory_of, wait};

use crate::client::{self, LIMIT, PARTITIONS};
use crate::measure::{cpu_seconds_of, median, percentile};
use crate::records::{LINE_BYTES, Lines};

/// The number of rounds; each round measures both brokers.
const ROUNDS: usize = 5;
/// By how much the medians of two measurements of one broker may differ.
const NOISE: f64 = 0.03;
/// Stored bytes in the restart measurements.
const STORED_BYTES: u64 = 1 << 30;
const WARM_UP: &str = "warm-up";
const STORED: &str = "stored";
/// The topic that is written between a start and a kill.
const LATER: &str = "later";

/// The values of one broker.
#[derive(Default)]
struct Values(Vec<f64>);

/// A line of the table: the values of both brokers, and the target of the embedded broker.
struct Row {
    name: &'static str,
    unit: &'static str,
    kafka: Values,
    embedded: Values,
    target: Target,
}

/// The target of the embedded broker.
enum Target {
    /// As much as Apache Kafka, within [`NOISE`]: where the client is the limit, both are equally
    /// fast.
    NoLess,
    /// More than Apache Kafka.
    More,
    /// At most this share of Apache Kafka's.
    Share(f64),
    /// At most this, and less than Apache Kafka.
    AtMost(f64),
}

impl Row {
    fn new(name: &'static str, unit: &'static str, target: Target) -> Self {
        Self { name, unit, kafka: Values::default(), embedded: Values::default(), target }
    }

    fn add(&mut self, which: usize, value: f64) {
        if which == 0 { self.kafka.0.push(value) } else { self.embedded.0.push(value) }
    }

    /// Prints the line; returns whether the target is met.
    fn show(&self) -> bool {
        let (kafka, embedded) = (median(&self.kafka.0), median(&self.embedded.0));
        let (target, met) = match self.target {
            Target::NoLess => (format!("no less +-{:.0} %", NOISE * 100.0), embedded >= (1.0 - NOISE) * kafka),
            Target::More => ("more".to_owned(), embedded > kafka),
            Target::Share(share) => (format!("<= {share} of Kafka"), embedded <= share * kafka),
            Target::AtMost(most) => (format!("<= {most}, less"), embedded <= most && embedded < kafka),
        };
        let spread = |values: &Values| {
            let (low, high) = (percentile(&values.0, 0.0), percentile(&values.0, 1.0));
            format!("{} ({}-{})", figure(median(&values.0)), figure(low), figure(high))
        };
        let (left, right) = (spread(&self.kafka), spread(&self.embedded));
        let verdict = if met { "met" } else { "NOT MET" };
        println!(
            "| {:<42} | {:<11} | {left:>24} | {right:>24} | {:>6.2} | {target:<14} | {verdict:<7} |",
            self.name,
            self.unit,
            embedded / kafka
        );
        met
    }
}

fn figure(value: f64) -> String {
    if value >= 1000.0 {
        format!("{:.0}k", value / 1000.0)
    } else if value >= 20.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.2}")
    }
}

pub(crate) fn run_all(records: u64) -> ExitCode {
    let mut brokers = [Kafka::start(BrokerKind::Apache), Kafka::start(BrokerKind::Embedded)]
        .map(|broker| broker.unwrap_or_else(|skip| panic!("{skip}")));
    let log = Lines::generate(1, records);
    println!(
        "{records} records of {LINE_BYTES} bytes, lz4, acks=all, {PARTITIONS} partitions; {} processors; {ROUNDS} alternating rounds: median (lowest-highest)",
        thread::available_parallelism().unwrap()
    );
    // The JVM is slow in its first seconds, because its code is not compiled yet.
    for broker in &brokers {
        produce(broker, &log, WARM_UP, records / 2);
        consume(broker, WARM_UP, records / 2);
    }
    let mut rows = Vec::new();
    rows.extend(throughput(&brokers, &log, records));
    rows.extend(latency(&brokers));
    rows.extend(end_txn_latency(&brokers));
    rows.extend(first_member(&brokers));
    rows.extend(restarts(&mut brokers));
    println!(
        "| {:<42} | {:<11} | {:>24} | {:>24} | {:>6} | {:<14} |         |",
        "", "", "Apache Kafka", "embedded", "ratio", "target"
    );
    println!("|---|---|---|---|---|---|---|");
    let met = rows.iter().map(Row::show).filter(|met| *met).count();
    println!("{met} of {} targets met", rows.len());
    ExitCode::from(u8::from(met < rows.len()))
}

fn produce(broker: &Kafka, log: &Lines, topic: &str, records: u64) -> f64 {
    broker.create_topic(topic, PARTITIONS);
    let producer = client::transactional_producer(broker.brokers(), topic, &[]);
    client::produce(&producer, topic, log.records().take(records as usize)).as_secs_f64()
}

fn consume(broker: &Kafka, topic: &str, records: u64) -> f64 {
    let consumer = client::consumer(broker.brokers(), "bench", &[]);
    client::consume(&consumer, topic, records).as_secs_f64()
}

fn cpu_of(broker: &Kafka) -> f64 {
    cpu_seconds_of(broker.pid().unwrap())
}

fn throughput(brokers: &[Kafka], log: &Lines, records: u64) -> [Row; 5] {
    let mut rows = [
        Row::new("transactional produce, commit each 200 ms", "records/s", Target::More),
        Row::new("  broker CPU", "us per record", Target::Share(0.5)),
        Row::new("consume, read_committed", "records/s", Target::NoLess),
        Row::new("  broker CPU", "us per record", Target::Share(1.0)),
        Row::new("two consumers at once", "records/s", Target::More),
    ];
    for round in 0..ROUNDS {
        for (which, broker) in alternate(brokers, round) {
            let topic = format!("throughput-{round}");
            let cpu = cpu_of(broker);
            rows[0].add(which, records as f64 / produce(broker, log, &topic, records));
            rows[1].add(which, (cpu_of(broker) - cpu) / records as f64 * 1e6);
            let cpu = cpu_of(broker);
            rows[2].add(which, records as f64 / consume(broker, &topic, records));
            rows[3].add(which, (cpu_of(broker) - cpu) / records as f64 * 1e6);
            let started = Instant::now();
            thread::scope(|scope| {
                (0..2).for_each(|_| drop(scope.spawn(|| consume(broker, &topic, records))));
            });
            rows[4].add(which, 2.0 * records as f64 / started.elapsed().as_secs_f64());
        }
    }
    rows
}

/// Both brokers; the first one alternates.
fn alternate(brokers: &[Kafka], round: usize) -> impl Iterator<Item = (usize, &Kafka)> {
    let first = round % 2;
    [first, 1 - first].into_iter().map(|which| (which, &brokers[which]))
}

/// From passing a record to the producer until the consumer returns it, at 200 records per second.
fn latency(brokers: &[Kafka]) -> [Row; 2] {
    const PAUSE: Duration = Duration::from_millis(5);
    const RECORDS: u64 = 600;
    let mut rows = [
        Row::new("produce -> consume at 200/s, linger 0, p50", "ms", Target::AtMost(0.4)),
        Row::new("  p99", "ms", Target::AtMost(2.0)),
    ];
    for round in 0..ROUNDS {
        for (which, broker) in alternate(brokers, round) {
            let topic = format!("latency-{round}");
            broker.create_topic(&topic, 1);
            let started = Instant::now();
            let consumer = reader_from_beginning(broker, &topic);
            let addresses = broker.brokers().to_owned();
            let sender = thread::spawn(move || {
                let producer: rdkafka::producer::BaseProducer = rdkafka::ClientConfig::new()
                    .set("bootstrap.servers", &addresses)
                    .set("acks", "all")
                    .set("linger.ms", "0")
                    .create()
                    .unwrap();
                for number in 0..RECORDS {
                    let due = started + Duration::from_millis(500) + PAUSE * number as u32;
                    while Instant::now() < due {
                        producer.poll(due.saturating_duration_since(Instant::now()));
                    }
                    client::send(&producer, &topic, 0, &started.elapsed().as_nanos().to_be_bytes());
                }
                client::wait_for_delivery(&producer);
            });
            let mut latencies = Vec::new();
            while latencies.len() < RECORDS as usize {
                assert!(started.elapsed() < LIMIT, "{} records", latencies.len());
                let Some(Ok(record)) = consumer.poll(Duration::from_millis(100)) else { continue };
                let sent = u128::from_be_bytes(record.payload().unwrap().try_into().unwrap());
                latencies.push((started.elapsed().as_nanos() - sent) as f64 / 1e6);
            }
            sender.join().unwrap();
            // The first records include the time to connect.
            let latencies = &latencies[50..];
            rows[0].add(which, percentile(latencies, 0.5));
            rows[1].add(which, percentile(latencies, 0.99));
        }
    }
    rows
}

fn reader_from_beginning(broker: &Kafka, topic: &str) -> BaseConsumer {
    let consumer = client::consumer(broker.brokers(), "bench", &[("enable.partition.eof", "false")]);
    client::assign(&consumer, topic, 1);
    consumer
}

/// The time of a commit after all records are acknowledged.
fn end_txn_latency(brokers: &[Kafka]) -> [Row; 4] {
    const TRANSACTIONS: usize = 300;
    let mut rows = [
        Row::new("EndTxn after 1 record, p50", "ms", Target::AtMost(0.4)),
        Row::new("  p99", "ms", Target::AtMost(2.0)),
        Row::new("EndTxn after 100 records, p50", "ms", Target::AtMost(0.4)),
        Row::new("  p99", "ms", Target::AtMost(2.0)),
    ];
    for round in 0..ROUNDS {
        for (which, broker) in alternate(brokers, round) {
            for (first_row, records) in [(0, 1), (2, 100)] {
                let topic = format!("ends-{round}-{records}");
                broker.create_topic(&topic, PARTITIONS);
                let producer = client::transactional_producer(broker.brokers(), &topic, &[("linger.ms", "0")]);
                let mut latencies = Vec::new();
                for _ in 0..TRANSACTIONS {
                    producer.begin_transaction().unwrap();
                    (0..records)
                        .for_each(|number| client::send(&producer, &topic, number % PARTITIONS, &[b'x'; LINE_BYTES]));
                    client::wait_for_delivery(&producer);
                    let started = Instant::now();
                    producer.commit_transaction(LIMIT).unwrap();
                    latencies.push(started.elapsed().as_secs_f64() * 1e3);
                }
                rows[first_row].add(which, percentile(&latencies, 0.5));
                rows[first_row + 1].add(which, percentile(&latencies, 0.99));
            }
        }
    }
    rows
}

/// From subscribing as the only member of a group until the first record. It includes timers of
/// librdkafka: 50 ms before it connects to a second broker, and another 100 ms before it requests
/// the start of a partition without a committed offset.
fn first_member(brokers: &[Kafka]) -> [Row; 2] {
    const GROUPS: usize = 3;
    let mut rows = [
        Row::new("first group member has its records", "ms", Target::AtMost(100.0)),
        Row::new("  in a group without offsets", "ms", Target::Share(1.0)),
    ];
    for round in 0..ROUNDS {
        for (which, broker) in alternate(brokers, round) {
            for number in 0..GROUPS {
                let group = format!("member-{round}-{number}");
                let new = subscribe(broker, &group);
                let mut offsets = TopicPartitionList::new();
                for partition in 0..PARTITIONS {
                    offsets.add_partition_offset(WARM_UP, partition, Offset::Offset(1)).unwrap();
                }
                client::consumer(broker.brokers(), &group, &[]).commit(&offsets, CommitMode::Sync).unwrap();
                rows[0].add(which, subscribe(broker, &group));
                rows[1].add(which, new);
            }
        }
    }
    rows
}

/// Milliseconds until a new member has a record. The member then leaves.
fn subscribe(broker: &Kafka, group: &str) -> f64 {
    let consumer = client::consumer(broker.brokers(), group, &[]);
    let started = Instant::now();
    consumer.subscribe(&[WARM_UP]).unwrap();
    while !matches!(consumer.poll(Duration::from_millis(1)), Some(Ok(_))) {
        assert!(started.elapsed() < LIMIT, "no record");
    }
    started.elapsed().as_secs_f64() * 1e3
}

/// From the start of the process until it returns the end offsets, with a gigabyte stored.
fn restarts(brokers: &mut [Kafka]) -> [Row; 3] {
    let mut rows = [
        Row::new("start on 1 GB, after a clean stop", "s", Target::AtMost(0.3)),
        Row::new("start on 1 GB, after kill -9", "s", Target::AtMost(0.5)),
        Row::new("peak RSS, 1 GB in and out", "MB", Target::AtMost(60.0)),
    ];
    for (which, broker) in brokers.iter_mut().enumerate() {
        // A new process, whose memory is that of this load alone.
        broker.restart();
        let count = store(broker);
        consume(broker, STORED, count);
        rows[2].add(which, memory_of(broker.pid().unwrap() as i32, "VmHWM").unwrap() as f64 / 1e6);
        for _ in 0..3 {
            broker.stop();
            rows[0].add(which, start(broker, count));
            // Records since the start, which need recovery after the kill.
            write_later(broker);
            broker.kill9();
            rows[1].add(which, start(broker, count));
        }
    }
    rows
}

/// Writes a gigabyte on disk, without compression; returns the number of records.
fn store(broker: &Kafka) -> u64 {
    const VALUE_BYTES: usize = 1000;
    broker.create_topic(STORED, PARTITIONS);
    broker.create_topic(LATER, PARTITIONS);
    let producer = client::transactional_producer(broker.brokers(), STORED, &[("compression.type", "none")]);
    let values: Vec<[u8; VALUE_BYTES]> = (0..=255).map(|byte| [byte; VALUE_BYTES]).collect();
    let count = STORED_BYTES / VALUE_BYTES as u64;
    client::produce(&producer, STORED, (0..count).map(|number| values[number as usize % 256].as_slice()));
    count
}

fn write_later(broker: &Kafka) {
    let producer = client::transactional_producer(broker.brokers(), LATER, &[]);
    client::produce(&producer, LATER, (0..100_000).map(|_| [b'x'; LINE_BYTES].as_slice()));
}

/// Starts a stopped broker; returns the seconds until it returns the end offsets of the stored
/// topic.
fn start(broker: &mut Kafka, count: u64) -> f64 {
    let addresses = broker.brokers().to_owned();
    let started = Instant::now();
    thread::scope(|scope| {
        let asking = scope.spawn(move || {
            let consumer: BaseConsumer = rdkafka::ClientConfig::new()
                .set("bootstrap.servers", &addresses)
                .set("reconnect.backoff.ms", "2")
                .set("reconnect.backoff.max.ms", "2")
                .set("log_level", "0")
                .create()
                .unwrap();
            wait::until("the broker answers", LIMIT, || {
                // After a refused connection, the client waits long before the next one.
                TcpStream::connect(&addresses).ok()?;
                let end = |partition| consumer.fetch_watermarks(STORED, partition, Duration::from_millis(100));
                let ends = (0..PARTITIONS).map(end).collect::<Result<Vec<_>, _>>().ok()?;
                (ends.iter().map(|(_, high)| *high as u64).sum::<u64>() >= count).then_some(())
            });
            started.elapsed().as_secs_f64()
        });
        broker.restart();
        asking.join().unwrap()
    })
}
