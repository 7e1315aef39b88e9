//! Brokers for tests, Apache Kafka and Trunkline's embedded broker, and clients that read topics.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Deref;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{Headers, Message};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use crate::server::Server;
use crate::{Skip, paths, wait};

/// How long reading a whole topic may take.
const READ_LIMIT: Duration = Duration::from_secs(120);

/// The controller ends the session of a killed node after 3 s.
pub(crate) const QUICK_RESTART: [(&str, &str); 1] =
    [("KAFKA_EXTRA", "broker.session.timeout.ms=3000 broker.heartbeat.interval.ms=500")];

/// A kind of broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum BrokerKind {
    /// Apache Kafka.
    Apache,
    /// Trunkline's embedded broker.
    Embedded,
}

impl fmt::Display for BrokerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Apache => "apache",
            Self::Embedded => "embedded",
        })
    }
}

/// A broker in its own process, started by `tests/services/kafka` or `tests/services/embedded`. It
/// dereferences to its client.
pub struct Kafka {
    server: Server,
    client: KafkaClient,
}

impl Kafka {
    /// The shared broker for tests whose subject does not depend on the kind of broker.
    pub fn any() -> Result<&'static Self, Skip> {
        Self::shared(BrokerKind::Embedded)
    }

    /// The broker of this kind that all tests of this process share. Their topics have different
    /// names.
    pub fn shared(kind: BrokerKind) -> Result<&'static Self, Skip> {
        static APACHE: OnceLock<Result<Kafka, Skip>> = OnceLock::new();
        static EMBEDDED: OnceLock<Result<Kafka, Skip>> = OnceLock::new();
        let shared = match kind {
            BrokerKind::Apache => &APACHE,
            BrokerKind::Embedded => &EMBEDDED,
        };
        shared.get_or_init(|| Self::start(kind)).as_ref().map_err(Skip::clone)
    }

    /// Starts a broker with its default settings.
    pub fn start(kind: BrokerKind) -> Result<Self, Skip> {
        Self::start_with(kind, &[])
    }

    /// Starts a broker that a test may kill: Apache Kafka restarts in 5 s instead of 14.
    pub fn start_for_crashes(kind: BrokerKind) -> Result<Self, Skip> {
        Self::start_with(kind, &QUICK_RESTART)
    }

    fn start_with(kind: BrokerKind, settings: &[(&str, &str)]) -> Result<Self, Skip> {
        let server = match kind {
            BrokerKind::Apache => Server::start("kafka", settings, 1)?,
            BrokerKind::Embedded => {
                let binary = paths::worker_binary();
                Server::start("embedded", &[("TRUNKLINE_BIN", &binary.to_string_lossy())], 1)?
            }
        };
        let client = KafkaClient::new(format!("127.0.0.1:{}", server.port()));
        Ok(Self { server, client })
    }

    /// The port for clients, on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.server.port()
    }

    /// Its process id; `None` while it is stopped.
    pub fn pid(&self) -> Option<u32> {
        self.server.pid()
    }

    /// Stops it cleanly.
    pub fn stop(&mut self) {
        self.server.end(libc::SIGTERM);
    }

    /// Kills it.
    pub fn kill9(&mut self) {
        self.server.end(libc::SIGKILL);
    }

    /// Starts it again on its data, after a clean stop if it runs.
    pub fn restart(&mut self) {
        self.stop();
        self.server.start_again();
    }
}

impl Deref for Kafka {
    type Target = KafkaClient;

    fn deref(&self) -> &KafkaClient {
        &self.client
    }
}

/// Three nodes of Apache Kafka, started by `tests/services/kafka-cluster`: when one node is down,
/// another one leads its partitions and coordinates its groups. It dereferences to its client.
pub struct KafkaCluster {
    server: Server,
    client: KafkaClient,
}

/// The brokers of one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replicas {
    /// The leader's id; -1 if the partition has none.
    pub leader: i32,
    /// The ids of all replicas.
    pub all: Vec<i32>,
    /// The ids of the replicas in sync.
    pub in_sync: Vec<i32>,
}

impl KafkaCluster {
    /// The nodes' ids.
    pub const NODES: [i32; 3] = [1, 2, 3];

    /// Starts a cluster for one test.
    pub fn start() -> Result<Self, Skip> {
        let server = Server::start("kafka-cluster", &[], 3)?;
        let brokers = Self::NODES.map(|node| format!("127.0.0.1:{}", i32::from(server.port()) + 2 * (node - 1)));
        let client = KafkaClient::new(brokers.join(","));
        Ok(Self { server, client })
    }

    /// Kills one node.
    pub fn kill9(&mut self, node: i32) {
        self.server.end_process(Self::index(node), libc::SIGKILL);
    }

    /// Starts a killed node again on its data, and waits until all replicas are in sync: only then
    /// may a test kill the next node.
    pub fn restart(&mut self, node: i32) {
        self.server.start_again();
        wait::until(&format!("node {node} is in sync"), Duration::from_secs(60), || {
            let partitions = self.replicas()?;
            partitions.values().all(|partition| partition.in_sync.len() == partition.all.len()).then_some(())
        });
    }

    fn index(node: i32) -> usize {
        Self::NODES.iter().position(|known| *known == node).expect("a node's id")
    }
}

impl Deref for KafkaCluster {
    type Target = KafkaClient;

    fn deref(&self) -> &KafkaClient {
        &self.client
    }
}

/// Reads and administers a broker. Each call uses a new librdkafka client.
pub struct KafkaClient {
    brokers: String,
}

/// How far a topic is written, summed over its partitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndOffsets {
    /// The high watermarks: all records.
    pub high_watermark: i64,
    /// The last stable offsets: records before the first open transaction.
    pub last_stable: i64,
}

impl EndOffsets {
    /// Whether the topic has records of an open transaction.
    pub fn has_open_transaction(&self) -> bool {
        self.high_watermark > self.last_stable
    }
}

impl KafkaClient {
    /// A client of these bootstrap servers.
    pub fn new(brokers: String) -> Self {
        Self { brokers }
    }

    /// The bootstrap servers.
    pub fn brokers(&self) -> &str {
        &self.brokers
    }

    /// Creates a topic.
    pub fn create_topic(&self, topic: &str, partitions: i32) {
        self.create_topic_with(topic, partitions, &[]);
    }

    /// Creates a topic with settings.
    pub fn create_topic_with(&self, topic: &str, partitions: i32, settings: &[(&str, &str)]) {
        let admin: AdminClient<DefaultClientContext> =
            ClientConfig::new().set("bootstrap.servers", &self.brokers).create().unwrap();
        let mut new = NewTopic::new(topic, partitions, TopicReplication::Fixed(1));
        for (name, value) in settings {
            new = new.set(name, value);
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let created = runtime.block_on(admin.create_topics([&new], &AdminOptions::new())).unwrap();
        assert!(created.iter().all(Result::is_ok), "{created:?}");
    }

    /// Whether a topic exists.
    pub fn has_topic(&self, topic: &str) -> bool {
        partition_count(&self.consumer("read_committed"), topic) > 0
    }

    /// All committed records of a topic. A topic that does not exist has none.
    pub fn read(&self, topic: &str) -> Vec<Record> {
        let mut records = Vec::new();
        self.for_each(topic, |record| {
            let headers = record.headers().map(|headers| {
                headers
                    .iter()
                    .map(|header| (header.key.to_owned(), header.value.unwrap_or_default().to_vec()))
                    .flat_map(with_packed)
                    .collect()
            });
            records.push(Record {
                partition: record.partition(),
                offset: record.offset(),
                key: record.key().map(<[u8]>::to_vec),
                value: record.payload().map(<[u8]>::to_vec),
                headers: headers.unwrap_or_default(),
            });
        });
        records
    }

    /// The number of committed records of a topic.
    pub fn count(&self, topic: &str) -> u64 {
        let mut count = 0;
        self.for_each(topic, |_| count += 1);
        count
    }

    /// The end offsets of a topic. Both are 0 if the topic does not exist or a leader does not
    /// answer.
    pub fn end_offsets(&self, topic: &str) -> EndOffsets {
        let sum = |isolation: &str| {
            let consumer = self.consumer(isolation);
            let end = |partition| consumer.fetch_watermarks(topic, partition, Duration::from_secs(5)).ok();
            (0..partition_count(&consumer, topic)).map(|partition| Some(end(partition)?.1)).sum::<Option<i64>>()
        };
        // In this order: a transaction that ends between the two must not look open.
        let (high_watermark, last_stable) = (sum("read_uncommitted"), sum("read_committed"));
        match high_watermark.zip(last_stable) {
            Some((high_watermark, last_stable)) => EndOffsets { high_watermark, last_stable },
            None => EndOffsets { high_watermark: 0, last_stable: 0 },
        }
    }

    /// Deletes the records of a partition before an offset, as retention does.
    pub fn delete_records(&self, topic: &str, partition: i32, before: i64) {
        let mut offsets = TopicPartitionList::new();
        offsets.add_partition_offset(topic, partition, Offset::Offset(before)).unwrap();
        let admin: AdminClient<DefaultClientContext> =
            ClientConfig::new().set("bootstrap.servers", self.brokers()).create().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let deleted = runtime.block_on(admin.delete_records(&offsets, &AdminOptions::new())).unwrap();
        assert!(deleted.elements().iter().all(|element| element.error().is_ok()), "{deleted:?}");
    }

    /// The number of members of each consumer group whose name begins with `prefix`; `None` if no
    /// broker answers.
    pub fn group_members(&self, prefix: &str) -> Option<BTreeMap<String, usize>> {
        let groups = self.consumer("read_uncommitted").fetch_group_list(None, Duration::from_secs(5)).ok()?;
        let matching = groups.groups().iter().filter(|group| group.name().starts_with(prefix));
        Some(matching.map(|group| (group.name().to_owned(), group.members().len())).collect())
    }

    /// The replicas of each partition, of Kafka's internal topics too; `None` if no broker answers.
    pub fn replicas(&self) -> Option<BTreeMap<(String, i32), Replicas>> {
        let metadata = self.consumer("read_uncommitted").fetch_metadata(None, Duration::from_secs(5)).ok()?;
        let mut found = BTreeMap::new();
        for topic in metadata.topics() {
            for partition in topic.partitions() {
                let replicas = Replicas {
                    leader: partition.leader(),
                    all: partition.replicas().to_vec(),
                    in_sync: partition.isr().to_vec(),
                };
                found.insert((topic.name().to_owned(), partition.id()), replicas);
            }
        }
        Some(found)
    }

    fn consumer(&self, isolation: &str) -> BaseConsumer {
        ClientConfig::new()
            .set("bootstrap.servers", &self.brokers)
            .set("group.id", "trunkline-tests") // rdkafka requires one; nothing is committed under it
            .set("enable.auto.commit", "false")
            .set("isolation.level", isolation)
            .set("enable.partition.eof", "true")
            .set("fetch.queue.backoff.ms", "5")
            // An empty fetch signals the end of a partition: return it soon.
            .set("fetch.wait.max.ms", "20")
            .create()
            .unwrap()
    }

    fn for_each(&self, topic: &str, mut visit: impl FnMut(&rdkafka::message::BorrowedMessage<'_>)) {
        let consumer = self.consumer("read_committed");
        let partitions = partition_count(&consumer, topic);
        if partitions == 0 {
            return;
        }
        let mut assignment = TopicPartitionList::new();
        for partition in 0..partitions {
            assignment.add_partition_offset(topic, partition, Offset::Beginning).unwrap();
        }
        consumer.assign(&assignment).unwrap();

        // A topic that is written to continuously may never signal its end: read up to the last
        // stable offset at the beginning.
        let end = |partition| consumer.fetch_watermarks(topic, partition, Duration::from_secs(5)).map(|(_, end)| end);
        let mut open: BTreeMap<i32, Option<i64>> =
            (0..partitions).map(|partition| (partition, end(partition).ok())).collect();
        let deadline = Instant::now() + READ_LIMIT;
        while !open.is_empty() {
            assert!(Instant::now() < deadline, "reading {topic} took more than {READ_LIMIT:?}; unfinished: {open:?}");
            match consumer.poll(Duration::from_millis(100)) {
                Some(Ok(record)) => {
                    visit(&record);
                    open.retain(|partition, end| {
                        *partition != record.partition() || end.is_none_or(|end| record.offset() + 1 < end)
                    });
                }
                Some(Err(KafkaError::PartitionEOF(partition))) => drop(open.remove(&partition)),
                // librdkafka retries; a permanent error ends at the deadline.
                Some(Err(error)) => eprintln!("reading {topic}: {error}"),
                None => {}
            }
        }
    }
}

/// The number of partitions of a topic; 0 if it does not exist.
fn partition_count(consumer: &BaseConsumer, topic: &str) -> i32 {
    // The metadata of all topics: a request for one topic creates it where the broker auto-creates.
    wait::until("the broker returns metadata", Duration::from_secs(60), || {
        let metadata = consumer.fetch_metadata(None, Duration::from_secs(5)).ok()?;
        let found = metadata.topics().iter().find(|found| found.name() == topic);
        Some(found.map_or(0, |found| found.partitions().len() as i32))
    })
}

/// One record of a topic.
#[derive(Clone, Debug)]
pub struct Record {
    /// Its partition.
    pub partition: i32,
    /// Its offset in the partition.
    pub offset: i64,
    /// Its key.
    pub key: Option<Vec<u8>>,
    /// Its value; `None` in a tombstone.
    pub value: Option<Vec<u8>>,
    /// Its headers.
    pub headers: BTreeMap<String, Vec<u8>>,
}

/// A header, and the headers that are packed in it as `trunkline.NAME`.
fn with_packed((name, value): (String, Vec<u8>)) -> Vec<(String, Vec<u8>)> {
    let pairs = (name == "trunkline").then(|| url::form_urlencoded::parse(&value).into_owned()).into_iter().flatten();
    let mut headers: Vec<_> = pairs.map(|(name, value)| (format!("trunkline.{name}"), value.into_bytes())).collect();
    headers.push((name, value));
    headers
}

impl Record {
    /// The value as JSON.
    pub fn json(&self) -> serde_json::Value {
        let value = self.value.as_deref().expect("a value");
        serde_json::from_slice(value).unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(value)))
    }

    /// A header as text.
    pub fn header(&self, name: &str) -> String {
        let value = self.headers.get(name).unwrap_or_else(|| panic!("no header {name} in {:?}", self.headers.keys()));
        String::from_utf8_lossy(value).into_owned()
    }
}
