//! `trunkline broker`: the log on stderr, and the options.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, ConfigResource, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::{ClientConfig, FromClientConfig};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

const TIMEOUT: Duration = Duration::from_secs(30);

struct Broker {
    child: Child,
    address: String,
}

impl Broker {
    fn start(data: &Path, arguments: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_trunkline"));
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("TRUNKLINE_")) {
            command.env_remove(name);
        }
        command.args(["broker", "--listen", "127.0.0.1:0", "--data"]).arg(data).args(arguments);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut address = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut address).unwrap();
        assert!(!address.is_empty(), "the broker did not start");
        Self { child, address: address.trim().to_owned() }
    }

    /// `kill -9`. The lines on stderr.
    fn kill(&mut self) -> String {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        let mut log = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
        log
    }

    fn config(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.address);
        config
    }

    fn admin(&self) -> AdminClient<DefaultClientContext> {
        AdminClient::from_config(&self.config()).unwrap()
    }

    fn create(&self, topic: &str) {
        let new = NewTopic::new(topic, -1, TopicReplication::Fixed(1));
        let created = block_on(self.admin().create_topics(&[new], &AdminOptions::new())).unwrap();
        assert!(created[0].is_ok(), "{created:?}");
    }

    fn end_offset(&self, topic: &str) -> i64 {
        let consumer: BaseConsumer = self.config().create().unwrap();
        consumer.fetch_watermarks(topic, 0, TIMEOUT).unwrap().1
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(TIMEOUT, future).await.unwrap() })
}

#[test]
fn a_log_that_was_cut_is_reported_at_the_next_start() {
    let folder = tempfile::tempdir().unwrap();
    let mut broker = Broker::start(folder.path(), &[]);
    broker.create("cut");
    let producer: BaseProducer = broker.config().set("linger.ms", "0").create().unwrap();
    for number in 0..10 {
        let value = number.to_string();
        producer.send(BaseRecord::to("cut").key("k").payload(&value)).map_err(|(error, _)| error).unwrap();
        let deadline = Instant::now() + TIMEOUT;
        while producer.in_flight_count() > 0 {
            assert!(Instant::now() < deadline, "the record is not delivered");
            producer.poll(Duration::from_millis(5));
        }
    }
    assert_eq!(broker.end_offset("cut"), 10);
    let log = broker.kill();
    assert!(log.contains("INFO") && log.contains("broker started"), "{log}");

    let path = folder.path().join("topics/cut/0/00000000000000000000.log");
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.set_len(file.metadata().unwrap().len() - 37).unwrap();
    let mut broker = Broker::start(folder.path(), &["--log", "warn"]);
    assert_eq!(broker.end_offset("cut"), 9);
    let log = broker.kill();
    let line = log.lines().find(|line| line.contains(&path.display().to_string())).unwrap_or_default();
    assert!(line.contains("WARN") && line.contains("torn") && line.contains("end_offset=9"), "{log}");
    assert!(!log.contains("INFO"), "{log}");
}

#[test]
fn options_reach_the_broker() {
    let folder = tempfile::tempdir().unwrap();
    let arguments = [
        "--advertised",
        "localhost:1234",
        "--partitions",
        "3",
        "--max-message-bytes",
        "200MiB",
        "--auto-create-topics",
        "--retention-check-interval",
        "1m",
        "--flush",
        "always",
    ];
    let broker = Broker::start(folder.path(), &arguments[2..]);
    broker.create("three");
    let described: Vec<ConfigResource> =
        block_on(broker.admin().describe_configs(&[ResourceSpecifier::Broker(1)], &AdminOptions::new()))
            .unwrap()
            .into_iter()
            .map(Result::unwrap)
            .collect();
    for (name, expected) in [
        ("message.max.bytes", "209715200"),
        ("num.partitions", "3"),
        ("auto.create.topics.enable", "true"),
        ("log.retention.check.interval.ms", "60000"),
        ("log.flush.interval.messages", "1"),
    ] {
        assert_eq!(described[0].get(name).unwrap().value.as_deref(), Some(expected), "{name}");
    }
    drop(broker);

    let broker = Broker::start(folder.path(), &arguments);
    let consumer: BaseConsumer = broker.config().create().unwrap();
    let metadata = consumer.fetch_metadata(Some("three"), TIMEOUT).unwrap();
    assert_eq!(metadata.topics()[0].partitions().len(), 3);
    assert_eq!((metadata.brokers()[0].host(), metadata.brokers()[0].port()), ("localhost", 1234));
}

#[test]
fn invalid_options_are_refused() {
    for arguments in [
        ["--log", "much=loud"],
        ["--advertised", "nowhere"],
        ["--partitions", "0"],
        ["--flush", "never"],
        // Without --insecure.
        ["--listen", "0.0.0.0:0"],
    ] {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_trunkline"));
        let output = command.args(["broker", "--data"]).arg(folder.path()).args(arguments).output().unwrap();
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {message}");
        assert!(message.contains(arguments[0]), "{message}");
    }
}

#[test]
fn only_the_owner_can_enter_the_data_directory() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let _broker = Broker::start(&data, &["--insecure"]);
    assert_eq!(data.metadata().unwrap().permissions().mode() & 0o777, 0o700);
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
