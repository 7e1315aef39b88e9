//! Apache Kafka, and what is in its topics.

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{Headers, Message};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use crate::server::Server;
use crate::{Skip, wait};

/// How long reading a whole topic may take.
const READ_LIMIT: Duration = Duration::from_secs(120);

/// A real Apache Kafka with one node, through `tests/services/kafka`.
pub struct Kafka(Server);

impl Kafka {
    /// The server that the tests of this process share; their topics have different names.
    pub fn shared() -> Result<&'static Self, Skip> {
        static SHARED: OnceLock<Result<Kafka, Skip>> = OnceLock::new();
        SHARED.get_or_init(|| Ok(Self(Server::start("kafka", &[])?))).as_ref().map_err(Skip::clone)
    }

    /// A server for one test, that may be stopped and killed. It comes back from a kill in 5 s rather than 14.
    pub fn start() -> Result<Self, Skip> {
        let sessions = "broker.session.timeout.ms=3000 broker.heartbeat.interval.ms=500";
        Ok(Self(Server::start("kafka", &[("KAFKA_EXTRA", sessions)])?))
    }

    /// Host and port, as clients want it.
    pub fn brokers(&self) -> String {
        format!("127.0.0.1:{}", self.0.port())
    }

    /// A clean stop.
    pub fn stop(&mut self) {
        self.0.end(libc::SIGTERM);
    }

    /// A crash.
    pub fn kill9(&mut self) {
        self.0.end(libc::SIGKILL);
    }

    /// Starts it again with its data; stops it before, if it still runs.
    pub fn restart(&mut self) {
        self.0.restart();
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

    fn each(&self, topic: &str, mut visit: impl FnMut(&rdkafka::message::BorrowedMessage<'_>)) {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", self.brokers())
            .set("group.id", "trunkline-tests") // rdkafka wants one; nothing is committed under it
            .set("enable.auto.commit", "false")
            .set("isolation.level", "read_committed")
            .set("enable.partition.eof", "true")
            .set("fetch.queue.backoff.ms", "5")
            .create()
            .unwrap();
        let partitions = partitions(&consumer, topic);
        if partitions == 0 {
            return;
        }
        let mut assignment = TopicPartitionList::new();
        for partition in 0..partitions {
            assignment.add_partition_offset(topic, partition, Offset::Beginning).unwrap();
        }
        consumer.assign(&assignment).unwrap();

        let mut open = partitions;
        let deadline = Instant::now() + READ_LIMIT;
        while open > 0 {
            assert!(Instant::now() < deadline, "reading {topic} took more than {READ_LIMIT:?}");
            match consumer.poll(Duration::from_millis(100)) {
                Some(Ok(record)) => visit(&record),
                Some(Err(KafkaError::PartitionEOF(_))) => open -= 1,
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
