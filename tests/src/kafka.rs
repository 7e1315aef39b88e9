//! The Kafka that tests run on, and what is in its topics: Apache Kafka, or with `TRUNKLINE_TEST_BROKER=embedded` Trunkline's own broker.

use std::collections::BTreeMap;
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
use crate::{Skip, repository, wait};

/// How long reading a whole topic may take.
const READ_LIMIT: Duration = Duration::from_secs(120);

/// The controller forgets a killed node's session after 3 s.
const QUICK_RESTART: [(&str, &str); 1] =
    [("KAFKA_EXTRA", "broker.session.timeout.ms=3000 broker.heartbeat.interval.ms=500")];

/// A broker in a process of its own, through `tests/services/kafka` or `tests/services/embedded`. It is used like its client.
pub struct Kafka {
    server: Server,
    client: KafkaClient,
}

impl Kafka {
    /// The server that the tests of this process share; their topics have different names.
    pub fn shared() -> Result<&'static Self, Skip> {
        static SHARED: OnceLock<Result<Kafka, Skip>> = OnceLock::new();
        SHARED.get_or_init(|| Self::with(&[])).as_ref().map_err(Skip::clone)
    }

    /// A server for one test, that may be stopped and killed. It comes back from a kill in 5 s rather than 14.
    pub fn start() -> Result<Self, Skip> {
        Self::with(&QUICK_RESTART)
    }

    /// Apache Kafka, whatever the other tests run on, as [`Kafka::start`] has it.
    pub fn start_apache() -> Result<Self, Skip> {
        Ok(Self::of(Server::start("kafka", &QUICK_RESTART, 1)?))
    }

    /// Apache Kafka with its own defaults, whatever the tests run on.
    pub fn apache() -> Result<Self, Skip> {
        Ok(Self::of(Server::start("kafka", &[], 1)?))
    }

    /// Trunkline's own broker, whatever the tests run on.
    pub fn embedded() -> Result<Self, Skip> {
        let binary = repository::worker_binary();
        Ok(Self::of(Server::start("embedded", &[("TRUNKLINE_BIN", &binary.to_string_lossy())], 1)?))
    }

    fn with(settings: &[(&str, &str)]) -> Result<Self, Skip> {
        if is_embedded() { Self::embedded() } else { Ok(Self::of(Server::start("kafka", settings, 1)?)) }
    }

    fn of(server: Server) -> Self {
        let client = KafkaClient::new(format!("127.0.0.1:{}", server.port()));
        Self { server, client }
    }

    /// The port for clients, on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.server.port()
    }

    /// Its process; none while it is stopped.
    pub fn pid(&self) -> Option<u32> {
        self.server.pid()
    }

    /// A clean stop.
    pub fn stop(&mut self) {
        self.server.end(libc::SIGTERM);
    }

    /// A crash.
    pub fn kill9(&mut self) {
        self.server.end(libc::SIGKILL);
    }

    /// Starts it again with its data; stops it before, if it still runs.
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

/// Three nodes of Apache Kafka, through `tests/services/kafka-cluster`: whatever one of them leads or coordinates, another one can take over.
/// It is used like its client.
pub struct KafkaCluster {
    server: Server,
    client: KafkaClient,
}

/// The brokers that lead and follow one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replicas {
    /// The node that leads it; -1 if none does.
    pub leader: i32,
    /// All nodes that have it.
    pub all: Vec<i32>,
    /// Those of them that are up to date.
    pub in_sync: Vec<i32>,
}

impl KafkaCluster {
    /// The nodes' ids.
    pub const NODES: [i32; 3] = [1, 2, 3];

    /// A cluster for one test. Its nodes go down and come back one by one.
    pub fn start() -> Result<Self, Skip> {
        if is_embedded() {
            return Err(Skip::new("Trunkline's own broker has no replicas: nothing can move to another node"));
        }
        let server = Server::start("kafka-cluster", &[], 3)?;
        let brokers = Self::NODES.map(|node| format!("127.0.0.1:{}", i32::from(server.port()) + 2 * (node - 1)));
        let client = KafkaClient::new(brokers.join(","));
        Ok(Self { server, client })
    }

    /// A crash of one node.
    pub fn kill9(&mut self, node: i32) {
        self.server.end_one(Self::index(node), libc::SIGKILL);
    }

    /// Starts a node again with its data, and waits until it has caught up with the others: only then may the next one go down.
    pub fn restart(&mut self, node: i32) {
        self.server.start_again();
        wait::until(&format!("node {node} is in sync again"), Duration::from_secs(60), || {
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

fn is_embedded() -> bool {
    match std::env::var("TRUNKLINE_TEST_BROKER").as_deref() {
        Ok("embedded") => true,
        Err(_) | Ok("kafka") => false,
        Ok(other) => panic!("TRUNKLINE_TEST_BROKER={other}: use kafka or embedded"),
    }
}

/// What tests ask and tell a Kafka, with a client of their own for each call.
pub struct KafkaClient {
    brokers: String,
}

/// How far a topic was written, over all its partitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    /// The sum of the high watermarks: everything written.
    pub written: i64,
    /// The sum of the last stable offsets: everything that is committed or aborted, and followed by nothing open.
    pub decided: i64,
}

impl KafkaClient {
    /// For brokers that a test started by itself.
    pub fn new(brokers: String) -> Self {
        Self { brokers }
    }

    /// Hosts and ports, as clients want them.
    pub fn brokers(&self) -> &str {
        &self.brokers
    }

    /// Creates a topic.
    pub fn create_topic(&self, topic: &str, partitions: i32) {
        let admin: AdminClient<DefaultClientContext> =
            ClientConfig::new().set("bootstrap.servers", &self.brokers).create().unwrap();
        let new = NewTopic::new(topic, partitions, TopicReplication::Fixed(1));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let created = runtime.block_on(admin.create_topics([&new], &AdminOptions::new())).unwrap();
        assert!(created.iter().all(Result::is_ok), "{created:?}");
    }

    /// Whether a topic exists.
    pub fn has_topic(&self, topic: &str) -> bool {
        partitions(&self.consumer("read_committed"), topic) > 0
    }

    /// All records of a topic that a reader of committed transactions sees. A topic that does not exist has none.
    pub fn read(&self, topic: &str) -> Vec<Record> {
        let mut records = Vec::new();
        self.each(topic, |record| {
            let headers = record.headers().map(|headers| {
                headers
                    .iter()
                    .map(|header| (header.key.to_owned(), header.value.unwrap_or_default().to_vec()))
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

    /// How many records of a topic a reader of committed transactions sees.
    pub fn count(&self, topic: &str) -> u64 {
        let mut count = 0;
        self.each(topic, |_| count += 1);
        count
    }

    /// How far a topic was written, and how far that is decided. Both are 0 while there is no such topic, or a leader does not answer.
    pub fn ends(&self, topic: &str) -> Ends {
        let sum = |isolation: &str| {
            let consumer = self.consumer(isolation);
            let end = |partition| consumer.fetch_watermarks(topic, partition, Duration::from_secs(5)).ok();
            (0..partitions(&consumer, topic)).map(|partition| Some(end(partition)?.1)).sum::<Option<i64>>()
        };
        // In this order: what is decided in between must not look as if it were open.
        let (written, decided) = (sum("read_uncommitted"), sum("read_committed"));
        written.zip(decided).map_or(Ends { written: 0, decided: 0 }, |(written, decided)| Ends { written, decided })
    }

    /// The consumer groups whose names begin so, with how many members each has; `None` while no broker answers.
    pub fn members(&self, prefix: &str) -> Option<BTreeMap<String, usize>> {
        let groups = self.consumer("read_uncommitted").fetch_group_list(None, Duration::from_secs(5)).ok()?;
        let ours = groups.groups().iter().filter(|group| group.name().starts_with(prefix));
        Some(ours.map(|group| (group.name().to_owned(), group.members().len())).collect())
    }

    /// Who leads and follows each partition of each topic, Kafka's own topics included; `None` while no broker answers.
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
            .set("group.id", "trunkline-tests") // rdkafka wants one; nothing is committed under it
            .set("enable.auto.commit", "false")
            .set("isolation.level", isolation)
            .set("enable.partition.eof", "true")
            .set("fetch.queue.backoff.ms", "5")
            // The end of a partition shows when a fetch comes back empty.
            .set("fetch.wait.max.ms", "20")
            .create()
            .unwrap()
    }

    fn each(&self, topic: &str, mut visit: impl FnMut(&rdkafka::message::BorrowedMessage<'_>)) {
        let consumer = self.consumer("read_committed");
        let partitions = partitions(&consumer, topic);
        if partitions == 0 {
            return;
        }
        let mut assignment = TopicPartitionList::new();
        for partition in 0..partitions {
            assignment.add_partition_offset(topic, partition, Offset::Beginning).unwrap();
        }
        consumer.assign(&assignment).unwrap();

        // A topic that is written to all the time need not show its end ever: what was decided when the reading began will do.
        let end = |partition| consumer.fetch_watermarks(topic, partition, Duration::from_secs(5)).map(|(_, end)| end);
        let mut open: BTreeMap<i32, Option<i64>> =
            (0..partitions).map(|partition| (partition, end(partition).ok())).collect();
        let deadline = Instant::now() + READ_LIMIT;
        while !open.is_empty() {
            assert!(Instant::now() < deadline, "reading {topic} took more than {READ_LIMIT:?}; left: {open:?}");
            match consumer.poll(Duration::from_millis(100)) {
                Some(Ok(record)) => {
                    visit(&record);
                    open.retain(|partition, end| {
                        *partition != record.partition() || end.is_none_or(|end| record.offset() + 1 < end)
                    });
                }
                Some(Err(KafkaError::PartitionEOF(partition))) => drop(open.remove(&partition)),
                // The client goes on by itself after these; what does not pass ends at the deadline.
                Some(Err(error)) => eprintln!("reading {topic}: {error}"),
                None => {}
            }
        }
    }
}

/// The number of partitions of a topic; 0 if there is no such topic.
fn partitions(consumer: &BaseConsumer, topic: &str) -> i32 {
    // All topics, not this one: asking for a topic by name creates it where the broker does that.
    wait::until("the broker tells its topics", Duration::from_secs(60), || {
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
    /// Its offset there.
    pub offset: i64,
    /// Its key.
    pub key: Option<Vec<u8>>,
    /// Its value; none in a tombstone.
    pub value: Option<Vec<u8>>,
    /// Its headers.
    pub headers: BTreeMap<String, Vec<u8>>,
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
