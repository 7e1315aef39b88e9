//! Starts a broker for a test, and clients for it.

use std::io::Write;
use std::sync::{Mutex, OnceLock, mpsc};
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::{ClientConfig, FromClientConfig};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Message, OwnedMessage};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tempfile::TempDir;
use trunkline_broker::{Broker, BrokerHandle, BrokerOptions};

/// Upper limit for each step of a test.
pub(crate) const LONG: Duration = Duration::from_secs(30);

/// A test's broker: started by the test, or named by the environment.
pub(crate) struct TestBroker {
    pub(crate) address: String,
    runtime: tokio::runtime::Runtime,
    own: Option<BrokerHandle>,
    directory: TempDir,
}

/// Whether the tests run against another broker.
pub(crate) fn is_foreign() -> bool {
    std::env::var_os("TRUNKLINE_TEST_BROKERS").is_some()
}

impl TestBroker {
    /// A broker for a test that every Kafka broker passes.
    pub(crate) fn any() -> Self {
        match std::env::var("TRUNKLINE_TEST_BROKERS") {
            Ok(address) => Self { address, runtime: runtime(), own: None, directory: tempfile::tempdir().unwrap() },
            Err(_) => Self::own(|_| {}),
        }
    }

    /// Starts a broker with options. Check [`is_foreign`] first.
    pub(crate) fn own(configure: impl FnOnce(&mut BrokerOptions)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut options = BrokerOptions::new(directory.path());
        configure(&mut options);
        let runtime = runtime();
        let handle = runtime.block_on(Broker::start(options)).unwrap();
        Self { address: handle.address().to_string(), runtime, own: Some(handle), directory }
    }

    #[cfg(feature = "fault-injection")]
    pub(crate) fn handle(&self) -> &BrokerHandle {
        self.own.as_ref().unwrap()
    }

    pub(crate) fn data_dir(&self) -> &std::path::Path {
        self.directory.path()
    }

    /// Restarts the broker with its data and address.
    pub(crate) fn restart(&mut self, configure: impl FnOnce(&mut BrokerOptions)) {
        self.stop();
        self.start_again(configure);
    }

    pub(crate) fn stop(&mut self) {
        let handle = self.own.take().unwrap();
        self.runtime.block_on(handle.stop()).unwrap();
    }

    pub(crate) fn start_again(&mut self, configure: impl FnOnce(&mut BrokerOptions)) {
        let mut options = BrokerOptions::new(self.directory.path());
        options.listen = self.address.parse().unwrap();
        configure(&mut options);
        self.own = Some(self.runtime.block_on(Broker::start(options)).unwrap());
    }

    pub(crate) fn directory_is_without(&self, topic: &str) -> bool {
        !self.data_dir().join("topics").join(topic).exists()
    }

    pub(crate) fn config(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.address).set("message.timeout.ms", "20000");
        // Reconnect quickly: tests restart their brokers.
        config.set("reconnect.backoff.ms", "10").set("reconnect.backoff.max.ms", "200");
        config
    }

    pub(crate) fn admin(&self) -> AdminClient<DefaultClientContext> {
        AdminClient::from_config(&self.config()).unwrap()
    }

    pub(crate) fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(async { tokio::time::timeout(LONG, future).await.expect("the step timed out") })
    }

    /// Creates a topic with a unique name.
    pub(crate) fn topic(&self, name: &str, partitions: i32, configs: &[(&str, &str)]) -> String {
        let name = unique(name);
        let mut topic = NewTopic::new(&name, partitions, TopicReplication::Fixed(1));
        for (key, value) in configs {
            topic = topic.set(key, value);
        }
        let admin = self.admin();
        let results = self.block_on(admin.create_topics(&[topic], &AdminOptions::new())).unwrap();
        assert_eq!(results, vec![Ok(name.clone())]);
        name
    }

    pub(crate) fn producer(&self, settings: &[(&str, &str)]) -> BaseProducer {
        let mut config = self.config();
        config.set("linger.ms", "5");
        for (key, value) in settings {
            config.set(*key, *value);
        }
        config.create().unwrap()
    }

    pub(crate) fn transactional(&self, id: &str, settings: &[(&str, &str)]) -> BaseProducer {
        let producer = self.producer(&[&[("transactional.id", id)], settings].concat());
        producer.init_transactions(LONG).unwrap();
        producer
    }

    /// A consumer with a unique group.
    pub(crate) fn consumer(&self, settings: &[(&str, &str)]) -> BaseConsumer {
        let mut config = self.config();
        config
            .set("group.id", unique("reader"))
            .set("enable.auto.commit", "false")
            .set("auto.offset.reset", "earliest")
            .set("fetch.queue.backoff.ms", "5")
            .set("fetch.wait.max.ms", "100")
            .set("enable.partition.eof", "false");
        for (key, value) in settings {
            config.set(*key, *value);
        }
        config.create().unwrap()
    }

    /// All records of a partition from an offset on that a reader with this isolation level sees.
    pub(crate) fn read(&self, topic: &str, partition: i32, from: i64, isolation: &str) -> Vec<OwnedMessage> {
        let consumer = self.consumer(&[("isolation.level", isolation), ("enable.partition.eof", "true")]);
        let mut assignment = TopicPartitionList::new();
        assignment.add_partition_offset(topic, partition, Offset::Offset(from)).unwrap();
        consumer.assign(&assignment).unwrap();
        let mut found = Vec::new();
        let deadline = Instant::now() + LONG;
        loop {
            assert!(Instant::now() < deadline, "no end of {topic}/{partition} after {} records", found.len());
            match consumer.poll(Duration::from_millis(100)) {
                None => {}
                Some(Ok(message)) => found.push(message.detach()),
                Some(Err(KafkaError::PartitionEOF(_))) => return found,
                // librdkafka reports a lost connection and reconnects: another test may have used
                // up the descriptors of this process.
                Some(Err(error)) if is_transient(&error) => {}
                Some(Err(error)) => panic!("{error}"),
            }
        }
    }

    /// The same, as strings.
    pub(crate) fn values(&self, topic: &str, partition: i32, isolation: &str) -> Vec<String> {
        self.read(topic, partition, 0, isolation).iter().map(value).collect()
    }

    /// The (first, last) offsets that a client with this isolation level gets.
    pub(crate) fn watermarks(&self, topic: &str, partition: i32, isolation: &str) -> (i64, i64) {
        let consumer = self.consumer(&[("isolation.level", isolation)]);
        consumer.fetch_watermarks(topic, partition, LONG).unwrap()
    }
}

fn is_transient(error: &KafkaError) -> bool {
    let code = error.rdkafka_error_code();
    matches!(code, Some(RDKafkaErrorCode::AllBrokersDown | RDKafkaErrorCode::BrokerTransportFailure))
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

/// A unique name, also on a server with older topics.
pub(crate) fn unique(name: &str) -> String {
    format!("{name}-{}", uuid::Uuid::new_v4().simple())
}

pub(crate) fn value(message: &OwnedMessage) -> String {
    String::from_utf8_lossy(message.payload().unwrap_or(b"null")).into_owned()
}

/// Sends a record.
pub(crate) fn send(producer: &BaseProducer, topic: &str, partition: i32, key: &str, value: &str) {
    let record = BaseRecord::to(topic).partition(partition).key(key).payload(value);
    producer.send(record).map_err(|(error, _)| error).unwrap();
}

/// Waits for the delivery of all records.
pub(crate) fn drain(producer: &BaseProducer) {
    let deadline = Instant::now() + LONG;
    while producer.in_flight_count() > 0 {
        assert!(Instant::now() < deadline, "records are not delivered");
        producer.poll(Duration::from_millis(5));
    }
}

/// Waits until a condition holds.
pub(crate) fn eventually(what: &str, mut is_true: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !is_true() {
        assert!(Instant::now() < deadline, "still not: {what}");
        pause(Duration::from_millis(20));
    }
}

/// Waits.
pub(crate) fn pause(duration: Duration) {
    let (_sender, receiver) = mpsc::channel::<()>();
    let _ = receiver.recv_timeout(duration);
}

/// The warnings and errors of all brokers in this process.
static LOG: Mutex<Vec<u8>> = Mutex::new(Vec::new());

struct LogWriter;

impl Write for LogWriter {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        LOG.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Starts to collect the warnings of brokers.
pub(crate) fn collect_log() {
    static STARTED: OnceLock<()> = OnceLock::new();
    STARTED.get_or_init(|| {
        let subscriber = tracing_subscriber::fmt().with_max_level(tracing::Level::WARN).with_ansi(false);
        subscriber.with_writer(|| LogWriter).init();
    });
}

/// The collected lines that contain a text, such as a test's own directory.
pub(crate) fn logged(text: &str) -> Vec<String> {
    let log = LOG.lock().unwrap();
    String::from_utf8_lossy(&log).lines().filter(|line| line.contains(text)).map(str::to_owned).collect()
}
