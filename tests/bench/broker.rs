//! The embedded broker beside Apache Kafka: the same client, settings and bytes against each, in turns, in the same run.

use std::net::TcpStream;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::message::Message;
use rdkafka::producer::Producer;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use trunkline_tests::{Kafka, memory_of, wait};

use crate::client::{self, LIMIT, PARTITIONS};
use crate::measure::{cpu_seconds_of, median, percentile};
use crate::records::{LINE_BYTES, Lines};

/// How often every throughput is measured, each broker in its turn.
const ROUNDS: usize = 5;
/// By so much the medians of two measurements of one broker differ.
const NOISE: f64 = 0.03;
/// Bytes on disk of the restart measurements.
const STORED_BYTES: u64 = 1 << 30;
const WARM_UP: &str = "warm-up";
const STORED: &str = "stored";
/// What is written between a start and a kill.
const LATER: &str = "later";

/// What one measurement gave, of one broker.
#[derive(Default)]
struct Values(Vec<f64>);

/// A line of the table: what was measured of Apache Kafka and of the embedded broker, and what is demanded of the latter.
struct Row {
    name: &'static str,
    unit: &'static str,
    kafka: Values,
    embedded: Values,
    demand: Demand,
}

/// What the embedded broker must reach.
enum Demand {
    /// As much as Apache Kafka, within the noise of a median: where the client is the limit, both are as fast.
    NoLess,
    /// More than Apache Kafka.
    More,
    /// At most this share of Apache Kafka's.
    Share(f64),
    /// At most this, and less than Apache Kafka.
    Most(f64),
}

impl Row {
    fn new(name: &'static str, unit: &'static str, demand: Demand) -> Self {
        Self { name, unit, kafka: Values::default(), embedded: Values::default(), demand }
    }

    fn add(&mut self, which: usize, value: f64) {
        if which == 0 { self.kafka.0.push(value) } else { self.embedded.0.push(value) }
    }

    /// Prints the line; whether the demand is met.
    fn show(&self) -> bool {
        let (kafka, embedded) = (median(&self.kafka.0), median(&self.embedded.0));
        let (demand, met) = match self.demand {
            Demand::NoLess => (format!("no less +-{:.0} %", NOISE * 100.0), embedded >= (1.0 - NOISE) * kafka),
            Demand::More => ("more".to_owned(), embedded > kafka),
            Demand::Share(share) => (format!("<= {share} of it"), embedded <= share * kafka),
            Demand::Most(most) => (format!("<= {most}, less"), embedded <= most && embedded < kafka),
        };
        let spread = |values: &Values| {
            let (low, high) = (percentile(&values.0, 0.0), percentile(&values.0, 1.0));
            format!("{} ({}-{})", figure(median(&values.0)), figure(low), figure(high))
        };
        let (left, right) = (spread(&self.kafka), spread(&self.embedded));
        let verdict = if met { "met" } else { "NOT MET" };
        println!(
            "| {:<42} | {:<11} | {left:>24} | {right:>24} | {:>6.2} | {demand:<14} | {verdict:<7} |",
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
    let mut brokers = [Kafka::apache(), Kafka::embedded()].map(|broker| broker.unwrap_or_else(|skip| panic!("{skip}")));
    let log = Lines::generate(1, records);
    println!(
        "{records} records of {LINE_BYTES} bytes, lz4, acks=all, {PARTITIONS} partitions; {} processors; {ROUNDS} rounds in turns: median (lowest-highest)",
        thread::available_parallelism().unwrap()
    );
    // The JVM's first seconds are slow, until its code is compiled: that would be a comparison with nothing.
    for broker in &brokers {
        produce(broker, &log, WARM_UP, records / 2);
        consume(broker, WARM_UP, records / 2);
    }
    let mut rows = Vec::new();
    rows.extend(throughput(&brokers, &log, records));
    rows.extend(latency(&brokers));
    rows.extend(ends_of_transactions(&brokers));
    rows.extend(first_member(&brokers));
    rows.extend(restarts(&mut brokers));
    println!(
        "| {:<42} | {:<11} | {:>24} | {:>24} | {:>6} | {:<14} |         |",
        "", "", "Apache Kafka", "embedded", "ratio", "demanded"
    );
    println!("|---|---|---|---|---|---|---|");
    let met = rows.iter().map(Row::show).filter(|met| *met).count();
    println!("{met} of {} demands met", rows.len());
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
        Row::new("transactional produce, commit each 200 ms", "records/s", Demand::More),
        Row::new("  broker CPU of it", "us a record", Demand::Share(0.5)),
        Row::new("consume, read_committed", "records/s", Demand::NoLess),
        Row::new("  broker CPU of it", "us a record", Demand::Share(1.0)),
        Row::new("two consumers at once", "records/s", Demand::More),
    ];
    for round in 0..ROUNDS {
        for (which, broker) in in_turns(brokers, round) {
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

/// Both brokers, the one that goes first changing from round to round.
fn in_turns(brokers: &[Kafka], round: usize) -> impl Iterator<Item = (usize, &Kafka)> {
    let first = round % 2;
    [first, 1 - first].into_iter().map(|which| (which, &brokers[which]))
}

/// From handing a record to the producer to having it from the consumer, at 200 records a second.
fn latency(brokers: &[Kafka]) -> [Row; 2] {
    const PAUSE: Duration = Duration::from_millis(5);
    const RECORDS: u64 = 600;
    let mut rows = [
        Row::new("produce -> consume at 200/s, linger 0, p50", "ms", Demand::Most(0.4)),
        Row::new("  p99", "ms", Demand::Most(2.0)),
    ];
    for round in 0..ROUNDS {
        for (which, broker) in in_turns(brokers, round) {
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
                client::settle(&producer);
            });
            let mut latencies = Vec::new();
            while latencies.len() < RECORDS as usize {
                assert!(started.elapsed() < LIMIT, "{} records", latencies.len());
                let Some(Ok(record)) = consumer.poll(Duration::from_millis(100)) else { continue };
                let sent = u128::from_be_bytes(record.payload().unwrap().try_into().unwrap());
                latencies.push((started.elapsed().as_nanos() - sent) as f64 / 1e6);
            }
            sender.join().unwrap();
            // The first ones pay for connections.
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

/// How long a commit takes once all records are acknowledged.
fn ends_of_transactions(brokers: &[Kafka]) -> [Row; 4] {
    const TRANSACTIONS: usize = 300;
    let mut rows = [
        Row::new("EndTxn after 1 record, p50", "ms", Demand::Most(0.4)),
        Row::new("  p99", "ms", Demand::Most(2.0)),
        Row::new("EndTxn after 100 records, p50", "ms", Demand::Most(0.4)),
        Row::new("  p99", "ms", Demand::Most(2.0)),
    ];
    for round in 0..ROUNDS {
        for (which, broker) in in_turns(brokers, round) {
            for (first_row, records) in [(0, 1), (2, 100)] {
                let topic = format!("ends-{round}-{records}");
                broker.create_topic(&topic, PARTITIONS);
                let producer = client::transactional_producer(broker.brokers(), &topic, &[("linger.ms", "0")]);
                let mut latencies = Vec::new();
                for _ in 0..TRANSACTIONS {
                    producer.begin_transaction().unwrap();
                    (0..records)
                        .for_each(|number| client::send(&producer, &topic, number % PARTITIONS, &[b'x'; LINE_BYTES]));
                    client::settle(&producer);
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

/// From subscribing, the first and only member of a group, to having a record. librdkafka waits for timers of its own in between: 50 ms before
/// it connects to a second broker, another 100 ms before it asks where a partition begins that the group has no offset of.
fn first_member(brokers: &[Kafka]) -> [Row; 2] {
    const GROUPS: usize = 3;
    let mut rows = [
        Row::new("first group member has its records", "ms", Demand::Most(100.0)),
        Row::new("  in a group without offsets", "ms", Demand::Share(1.0)),
    ];
    for round in 0..ROUNDS {
        for (which, broker) in in_turns(brokers, round) {
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

/// Milliseconds until a new member has a record. It leaves afterwards.
fn subscribe(broker: &Kafka, group: &str) -> f64 {
    let consumer = client::consumer(broker.brokers(), group, &[]);
    let started = Instant::now();
    consumer.subscribe(&[WARM_UP]).unwrap();
    while !matches!(consumer.poll(Duration::from_millis(1)), Some(Ok(_))) {
        assert!(started.elapsed() < LIMIT, "no record");
    }
    started.elapsed().as_secs_f64() * 1e3
}

/// From the start of the process to the first answer about data, with a gigabyte stored.
fn restarts(brokers: &mut [Kafka]) -> [Row; 3] {
    let mut rows = [
        Row::new("start on 1 GB, after a clean stop", "s", Demand::Most(0.3)),
        Row::new("start on 1 GB, after kill -9", "s", Demand::Most(0.5)),
        Row::new("peak RSS, 1 GB in and out", "MB", Demand::Most(60.0)),
    ];
    for (which, broker) in brokers.iter_mut().enumerate() {
        // Processes of their own for this, so that their memory is what this load takes.
        broker.restart();
        let count = store(broker);
        consume(broker, STORED, count);
        rows[2].add(which, memory_of(broker.pid().unwrap() as i32, "VmHWM").unwrap() as f64 / 1e6);
        for _ in 0..3 {
            broker.stop();
            rows[0].add(which, start(broker, count));
            // Something to recover: what was written since the start.
            more(broker);
            broker.kill9();
            rows[1].add(which, start(broker, count));
        }
    }
    rows
}

/// A gigabyte as it lies on disk: values that do not compress, not compressed.
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

fn more(broker: &Kafka) {
    let producer = client::transactional_producer(broker.brokers(), LATER, &[]);
    client::produce(&producer, LATER, (0..100_000).map(|_| [b'x'; LINE_BYTES].as_slice()));
}

/// Starts a stopped broker; how long until it says where the stored topic ends.
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
                // The client waits for long after a connection that was refused.
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
