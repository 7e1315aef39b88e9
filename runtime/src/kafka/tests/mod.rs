//! The Kafka layer on the embedded broker.

mod fetching;
mod groups;
mod moved_controller;
mod producer_faults;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;
use trunkline_broker::{Broker, BrokerHandle, BrokerOptions};
use trunkline_connector::{Domain, Retry, TopicPartition};

use super::*;

/// A broker with its data in a temporary folder.
struct Fixture {
    runtime: Runtime,
    broker: Option<BrokerHandle>,
    _folder: tempfile::TempDir,
}

impl Fixture {
    fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let broker = runtime.block_on(Broker::start(BrokerOptions::new(folder.path()))).unwrap();
        Self { runtime, broker: Some(broker), _folder: folder }
    }

    /// A cluster that knows nothing of the broker's topics yet.
    fn cluster(&self) -> Cluster {
        self.cluster_with(&[])
    }

    /// The same with settings.
    fn cluster_with(&self, settings: &[(&str, &str)]) -> Cluster {
        let address = self.broker.as_ref().unwrap().address().to_string();
        let settings = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Cluster::new(&address, &settings).unwrap()
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        if let Some(broker) = self.broker.take() {
            let _ = self.runtime.block_on(broker.stop());
        }
    }
}

fn spec(name: &str, partitions: i32, config: &[(&str, &str)]) -> TopicSpec {
    let config = config.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    TopicSpec { name: name.to_owned(), partitions, replication: 1, config }
}

fn record<'a>(topic: &'a str, key: &'a [u8], value: &'a [u8]) -> ProducerRecord<'a> {
    ProducerRecord {
        topic,
        partition: 0,
        timestamp: None,
        key: Some(key),
        value: Some(value),
        headers: &[],
        more_headers: &[],
    }
}

/// Bytes that no algorithm compresses.
fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    std::iter::repeat_with(next).take(bytes).collect()
}

fn keys(cluster: &Cluster, topic: &str) -> Vec<String> {
    let rows = table::read(cluster, topic, Some(0), &[]).unwrap();
    rows.into_keys().map(|key| String::from_utf8(key).unwrap()).collect()
}

#[test]
fn missing_topics_are_created_and_existing_ones_are_compared() {
    let fixture = Fixture::start();
    let admin = Admin::new(&fixture.cluster()).unwrap();
    assert_eq!(admin.partitions("a").unwrap(), None);
    let specs = [spec("a", 2, &[]), spec("b", 3, &[("cleanup.policy", "compact")])];
    let created = admin.ensure(&specs).unwrap();
    assert_eq!(created.partitions, BTreeMap::from([("a".to_owned(), 2), ("b".to_owned(), 3)]));
    assert_eq!(created.differences, [""; 0]);
    assert_eq!(admin.ensure(&specs).unwrap(), created);
    assert_eq!(admin.partitions("b").unwrap(), Some(3));

    let other = admin.ensure(&[spec("a", 4, &[("max.message.bytes", "7")]), spec("c", 1, &[])]).unwrap();
    assert_eq!(other.partitions, BTreeMap::from([("a".to_owned(), 2), ("c".to_owned(), 1)]));
    let expected = [
        "topic `a` has 2 partitions, not 4: it is not altered",
        "topic `a` has max.message.bytes=67108864, not 7: it is not altered",
    ];
    assert_eq!(other.differences, expected);
    assert_eq!(admin.ensure(&[]).unwrap(), EnsuredTopics::default());
}

/// librdkafka continues at its position after a pause or a rebalance. The position must not pass a
/// record that was not returned.
#[test]
fn records_written_after_a_pause_at_the_end_are_returned() {
    let fixture = Fixture::start();
    let cluster = fixture.cluster();
    Admin::new(&cluster).unwrap().ensure(&[spec("a", 1, &[])]).unwrap();
    let mut producer = TransactionalProducer::new(&cluster, "p", 1 << 20).unwrap();
    let consumer = GroupConsumer::join(&cluster, "g", "g-1", &["a".to_owned()], 1 << 20).unwrap();
    let mut batches = PartitionBatches::default();
    let mut read = Vec::new();
    let partition = TopicPartition { topic: Arc::from("a"), partition: 0 };
    let mut fill = |wait| {
        let limits = FillLimits { records: 10, bytes: 1 << 20, wait: Duration::from_millis(wait) };
        consumer.fill(&limits, &mut batches).unwrap();
        consumer.rebalance_events();
        for (_, batch) in batches.iter_mut() {
            read.extend(batch.iter().map(|record| record.value().unwrap()[0]));
            batch.clear();
        }
    };
    for round in 0..3_u8 {
        producer.send(&record("a", b"k", &[round])).unwrap();
        producer.commit().unwrap();
        // The record, and the marker behind it.
        let end = 2 * (i64::from(round) + 1);
        let position = || consumer.positions([&partition])[0];
        let begun = Instant::now();
        while position().is_none_or(|position| position < end) {
            assert!(begun.elapsed() < Duration::from_secs(30), "round {round}: {:?}", position());
            fill(100);
        }
        // Longer than an empty fetch, after which the client notices the end.
        fill(500);
        assert_eq!((position(), consumer.high_watermark(&partition)), (Some(end), Some(end)));
        consumer.pause();
        consumer.resume();
    }
    assert_eq!(read, [0, 1, 2]);
}

#[test]
fn an_interruption_ends_a_wait_for_records() {
    let fixture = Fixture::start();
    let cluster = fixture.cluster();
    Admin::new(&cluster).unwrap().ensure(&[spec("a", 1, &[])]).unwrap();
    let consumer = GroupConsumer::join(&cluster, "g", "g-1", &["a".to_owned()], 1 << 20).unwrap();
    let mut batches = PartitionBatches::default();
    let mut fill = |wait| {
        let limits = FillLimits { records: 10, bytes: 1 << 20, wait: Duration::from_secs(wait) };
        let begun = Instant::now();
        consumer.fill(&limits, &mut batches).unwrap();
        consumer.rebalance_events();
        begun.elapsed()
    };
    // The assignment of the partition ends a wait, too.
    while fill(2) < Duration::from_secs(2) {}
    let wake = consumer.waker();
    let waker = std::thread::spawn(move || {
        std::thread::park_timeout(Duration::from_millis(100));
        wake();
        wake
    });
    assert!(fill(60) < Duration::from_secs(30));
    // An interruption between two waits ends the next one, and no more.
    let wake = waker.join().unwrap();
    wake();
    assert!(fill(60) < Duration::from_secs(30));
    assert!(fill(1) >= Duration::from_secs(1));
    drop(consumer);
    wake();
}

#[test]
fn a_refused_topic_has_the_brokers_own_explanation() {
    let fixture = Fixture::start();
    let admin = Admin::new(&fixture.cluster()).unwrap();
    let error = admin.ensure(&[spec("fine", 1, &[]), spec("huge", 20_000, &[])]).unwrap_err();
    assert_eq!((error.domain, error.retry), (Domain::External, Retry::Never));
    let message = error.to_string();
    assert!(message.contains("`huge`: ") && message.contains("10000"), "{message}");
    // The other topic was created in the same request.
    assert_eq!(admin.partitions("fine").unwrap(), Some(1));
}

#[test]
fn a_record_that_is_too_large_is_refused_and_the_transaction_continues() {
    let fixture = Fixture::start();
    let cluster = fixture.cluster();
    let admin = Admin::new(&cluster).unwrap();
    admin.ensure(&[spec("large", 1, &[]), spec("small", 1, &[("max.message.bytes", "1048576")])]).unwrap();
    let mut producer = TransactionalProducer::new(&cluster, "writer", 4 << 20).unwrap();

    let two_megabytes = noise(2 << 20);
    producer.send(&record("small", b"first", b"x")).unwrap();
    match producer.send(&record("small", b"too-large", &two_megabytes)) {
        Err(SendError::TooLarge(refused)) => {
            assert_eq!((refused.topic.as_str(), refused.limit), ("small", 1 << 20));
            assert!(refused.bytes > 2 << 20, "{refused}");
        }
        other => panic!("{other:?}"),
    }
    // It compresses to less than the limit.
    producer.send(&record("small", b"compressible", &[b'x'; 8 << 20])).unwrap();
    let limit = producer.max_record_bytes("small").unwrap();
    producer.send(&record("small", b"fits", &noise(limit - 1000))).unwrap();
    producer.send(&record("large", b"two-megabytes", &two_megabytes)).unwrap();
    producer.commit().unwrap();
    assert_eq!(keys(&cluster, "small"), ["compressible", "first", "fits"]);

    // The largest record passes through the client and the broker.
    let largest = noise(producer.max_record_bytes("large").unwrap() - 1000);
    assert!(largest.len() > 60 << 20);
    producer.send(&record("large", b"largest", &largest)).unwrap();
    producer.commit().unwrap();
    let rows = table::read(&cluster, "large", Some(0), b"largest").unwrap();
    assert!(rows.values().next().unwrap() == &largest);
}

#[test]
fn a_refusal_that_was_not_foreseen_is_foreseen_by_the_next_producer() {
    let fixture = Fixture::start();
    let admin = Admin::new(&fixture.cluster()).unwrap();
    admin.ensure(&[spec("small", 1, &[("max.message.bytes", "1048576")])]).unwrap();
    // As if the right to read the topic's configuration were missing.
    let cluster = fixture.cluster();
    let mut producer = TransactionalProducer::new(&cluster, "writer", 4 << 20).unwrap();
    let large = noise(2 << 20);
    let sent = producer.send(&record("small", b"large", &large)).map_err(Into::into).and_then(|()| producer.commit());
    let error = sent.unwrap_err();
    assert_eq!((error.domain, error.code), (Domain::External, "kafka.record_too_large"));
    producer.abort().unwrap();
    drop(producer);
    let mut producer = TransactionalProducer::new(&cluster, "writer", 4 << 20).unwrap();
    assert!(matches!(producer.send(&record("small", b"large", &large)), Err(SendError::TooLarge(_))));
    producer.send(&record("small", b"fine", b"x")).unwrap();
    producer.commit().unwrap();
    assert_eq!(keys(&cluster, "small"), ["fine"]);
}

#[test]
fn batches_of_small_records_fit_a_topic_with_a_small_limit() {
    let fixture = Fixture::start();
    let cluster = fixture.cluster();
    let admin = Admin::new(&cluster).unwrap();
    admin.ensure(&[spec("small", 1, &[("max.message.bytes", "100000")])]).unwrap();
    let mut producer = TransactionalProducer::new(&cluster, "writer", 4 << 20).unwrap();
    let value = noise(5_000);
    for number in 0..500 {
        producer.send(&record("small", format!("{number:03}").as_bytes(), &value)).unwrap();
    }
    producer.commit().unwrap();
    assert_eq!(keys(&cluster, "small").len(), 500);
}

#[test]
fn looking_up_brokers_ends_soon_after_an_interrupt() {
    // It accepts connections and never answers.
    let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let cluster = Cluster::new(&address, &BTreeMap::new()).unwrap().with_interrupt(|| true);
    let begun = Instant::now();
    let error = Admin::new(&cluster).unwrap().connect().unwrap_err();
    assert_eq!(error.domain, Domain::External);
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}

#[test]
fn two_tasks_with_the_same_joined_name_do_not_share_a_position() {
    use crate::checkpoint::{Counters, Positions, TaskOwner, system_topics};
    let fixture = Fixture::start();
    let cluster = fixture.cluster();
    Admin::new(&cluster).unwrap().ensure(&system_topics(&cluster, 1)).unwrap();
    let owner = |cluster: &str, pipeline: &str, component: &str, node: Option<&str>| TaskOwner {
        cluster: cluster.to_owned(),
        pipeline: pipeline.to_owned(),
        component: component.to_owned(),
        node: node.map(str::to_owned),
    };
    let task = "a.web.logs.x.y";
    let load = || Positions::load(&cluster, task, task).unwrap();
    let first = owner("a", "web", "logs", Some("x.y"));
    let mut positions = load();
    positions.claim(first.clone()).unwrap();
    let mut producer = TransactionalProducer::new(&cluster, task, 1 << 20).unwrap();
    positions.write(&mut producer, &[], &Counters::default()).unwrap();
    producer.commit().unwrap();

    load().claim(first).unwrap();
    for other in [owner("a.web", "logs", "x", Some("y")), owner("a.web.logs", "x", "y", None)] {
        let error = load().claim(other).unwrap_err();
        assert_eq!((error.domain, error.code), (Domain::Config, "stage.name_taken"));
        assert!(error.message().contains("`a.web.logs.x.y`") && error.message().contains("node `x.y`"), "{error}");
    }
}

#[test]
fn a_topic_belongs_to_the_component_that_claims_it_first() {
    use crate::checkpoint::{TaskOwner, TopicClaim, TopicOwners, system_topics};

    let fixture = Fixture::start();
    let cluster = fixture.cluster();
    Admin::new(&cluster).unwrap().ensure(&system_topics(&cluster, 1)).unwrap();
    let claims = |name: &str, component: &str, topics: &[&str]| -> Vec<TopicClaim> {
        let owner = TaskOwner {
            cluster: name.to_owned(),
            pipeline: "p".to_owned(),
            component: component.to_owned(),
            node: None,
        };
        topics.iter().map(|topic| TopicClaim { topic: (*topic).to_owned(), owner: owner.clone() }).collect()
    };
    let worker = || TopicOwners::new(&cluster, "c");
    let (first, second) = (worker(), worker());
    first.claim(&claims("c", "a", &["x", "y"]), false).unwrap();
    first.claim(&claims("c", "a", &["x"]), false).unwrap();
    second.claim(&claims("c", "b", &["z"]), false).unwrap();
    // The other worker and one that starts later find the owner.
    for owners in [&first, &second, &worker()] {
        let error = owners.claim(&claims("c", "b", &["z", "y"]), false).unwrap_err();
        assert_eq!((error.domain, error.code), (Domain::Config, "stage.topic_taken"));
        for part in ["`y`", "`a` of the pipeline `p`", "`b` of the pipeline `p`", "--append"] {
            assert!(error.message().contains(part), "{error}");
        }
        owners.claim(&claims("c", "b", &["z"]), false).unwrap();
        owners.claim(&claims("c", "a", &["x", "y"]), false).unwrap();
    }
    // Each cluster has separate owners.
    TopicOwners::new(&cluster, "d").claim(&claims("d", "b", &["x"]), false).unwrap();

    // Of components that claim a topic at the same time, one gets it.
    for round in 0..5 {
        let topic = format!("t{round}");
        let barrier = std::sync::Barrier::new(3);
        let results: Vec<bool> = std::thread::scope(|scope| {
            let start = |component: &'static str| {
                let (barrier, claims, owners) = (&barrier, claims("c", component, &[&topic]), worker());
                scope.spawn(move || {
                    barrier.wait();
                    owners.claim(&claims, false).is_ok()
                })
            };
            ["a", "b", "d"].map(start).map(|thread| thread.join().unwrap()).to_vec()
        });
        assert_eq!(results.iter().filter(|won| **won).count(), 1, "{results:?}");
        let again = ["a", "b", "d"].map(|component| worker().claim(&claims("c", component, &[&topic]), false).is_ok());
        assert_eq!(again.to_vec(), results);
    }

    // A component that no longer exists is replaced on request.
    second.claim(&claims("c", "b", &["x"]), true).unwrap();
    for owners in [&second, &worker()] {
        owners.claim(&claims("c", "b", &["x"]), false).unwrap();
        let error = owners.claim(&claims("c", "a", &["x"]), false).unwrap_err();
        assert_eq!(error.code, "stage.topic_taken");
        owners.claim(&claims("c", "a", &["y"]), false).unwrap();
    }
}
