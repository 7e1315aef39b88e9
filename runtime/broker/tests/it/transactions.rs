//! Transactions: readers see committed records only, and fenced producers cannot write.

use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerGroupMetadata};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, Producer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use crate::common::{LONG, TestBroker, drain, eventually, pause, send, unique};

fn commit(producer: &BaseProducer) -> Result<(), KafkaError> {
    drain(producer);
    producer.commit_transaction(LONG)
}

fn abort(producer: &BaseProducer) {
    drain(producer);
    producer.abort_transaction(LONG).unwrap();
}

/// The committed offset of a group, as a transactional application reads it.
fn committed(broker: &TestBroker, group: &str, topic: &str, partition: i32) -> Offset {
    let consumer = broker.consumer(&[("group.id", group), ("isolation.level", "read_committed")]);
    let mut wanted = TopicPartitionList::new();
    wanted.add_partition(topic, partition);
    let found = consumer.committed_offsets(wanted, LONG).unwrap();
    found.elements()[0].offset()
}

fn offsets(topic: &str, partition: i32, offset: i64) -> TopicPartitionList {
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, partition, Offset::Offset(offset)).unwrap();
    list
}

#[test]
fn read_committed_sees_neither_open_nor_aborted_records() {
    let broker = TestBroker::any();
    let topic = broker.topic("isolation", 2, &[]);
    let producer = broker.transactional(&unique("tx"), &[]);
    producer.begin_transaction().unwrap();
    for partition in 0..2 {
        send(&producer, &topic, partition, "k", "committed");
    }
    commit(&producer).unwrap();
    producer.begin_transaction().unwrap();
    for partition in 0..2 {
        send(&producer, &topic, partition, "k", "aborted");
    }
    abort(&producer);
    let plain = broker.producer(&[]);
    send(&plain, &topic, 0, "k", "plain");
    drain(&plain);
    producer.begin_transaction().unwrap();
    send(&producer, &topic, 0, "k", "open");
    drain(&producer);
    send(&plain, &topic, 0, "k", "behind");
    drain(&plain);
    // committed 0, marker 1, aborted 2, marker 3, plain 4, open 5, behind 6
    assert_eq!(broker.values(&topic, 0, "read_committed"), ["committed", "plain"]);
    assert_eq!(broker.values(&topic, 1, "read_committed"), ["committed"]);
    assert_eq!(broker.values(&topic, 0, "read_uncommitted"), ["committed", "aborted", "plain", "open", "behind"]);
    assert_eq!(broker.watermarks(&topic, 0, "read_committed"), (0, 5));
    assert_eq!(broker.watermarks(&topic, 0, "read_uncommitted"), (0, 7));
    commit(&producer).unwrap();
    assert_eq!(broker.values(&topic, 0, "read_committed"), ["committed", "plain", "open", "behind"]);
    assert_eq!(broker.watermarks(&topic, 0, "read_committed"), (0, 8));
}

#[test]
fn interleaved_transactions_are_kept_apart() {
    let broker = TestBroker::any();
    let topic = broker.topic("interleaved", 1, &[]);
    let producers: Vec<BaseProducer> =
        (0..4).map(|_| broker.transactional(&unique("tx"), &[("linger.ms", "0")])).collect();
    let mut expected = Vec::new();
    for round in 0..12 {
        for producer in &producers {
            producer.begin_transaction().unwrap();
        }
        for part in 0..3 {
            for (number, producer) in producers.iter().enumerate() {
                let value = format!("{round}-{number}-{part}");
                send(producer, &topic, 0, "k", &value);
                drain(producer);
                if (round + number) % 3 != 0 {
                    expected.push(value);
                }
            }
        }
        for (number, producer) in producers.iter().enumerate() {
            if (round + number) % 3 == 0 { abort(producer) } else { commit(producer).unwrap() }
        }
    }
    assert_eq!(broker.values(&topic, 0, "read_committed"), expected);
    let seen_from_middle: Vec<_> = broker.read(&topic, 0, 80, "read_committed");
    let all = broker.read(&topic, 0, 0, "read_committed");
    let tail: Vec<_> = all.iter().filter(|message| rdkafka::Message::offset(*message) >= 80).collect();
    assert_eq!(seen_from_middle.len(), tail.len());
}

#[test]
fn offsets_move_with_the_transaction_and_only_with_it() {
    let broker = TestBroker::any();
    let topic = broker.topic("offsets", 1, &[]);
    let plain = broker.producer(&[]);
    for number in 0..10 {
        send(&plain, &topic, 0, "k", &number.to_string());
    }
    drain(&plain);
    let group = unique("group");
    let consumer = joined(&broker, &topic, &group, &[]);
    let metadata = consumer.group_metadata().unwrap();
    let producer = broker.transactional(&unique("tx"), &[]);
    assert_eq!(committed(&broker, &group, &topic, 0), Offset::Invalid);
    producer.begin_transaction().unwrap();
    producer.send_offsets_to_transaction(&offsets(&topic, 0, 5), &metadata, LONG).unwrap();
    producer.abort_transaction(LONG).unwrap();
    assert_eq!(committed(&broker, &group, &topic, 0), Offset::Invalid);
    producer.begin_transaction().unwrap();
    producer.send_offsets_to_transaction(&offsets(&topic, 0, 7), &metadata, LONG).unwrap();
    producer.commit_transaction(LONG).unwrap();
    assert_eq!(committed(&broker, &group, &topic, 0), Offset::Offset(7));
}

/// A consumer with an assignment.
fn joined(broker: &TestBroker, topic: &str, group: &str, settings: &[(&str, &str)]) -> BaseConsumer {
    let base = [
        ("group.id", group),
        ("session.timeout.ms", "6000"),
        ("heartbeat.interval.ms", "500"),
        ("isolation.level", "read_committed"),
        ("partition.assignment.strategy", "cooperative-sticky"),
    ];
    let consumer = broker.consumer(&[&base[..], settings].concat());
    consumer.subscribe(&[topic]).unwrap();
    eventually("assigned", || {
        let _ = consumer.poll(Duration::from_millis(50));
        consumer.assignment().unwrap().count() > 0
    });
    consumer
}

#[test]
fn stable_reads_wait_for_pending_offsets() {
    let broker = TestBroker::any();
    let topic = broker.topic("unstable", 1, &[]);
    let group = unique("group");
    let consumer = joined(&broker, &topic, &group, &[]);
    let metadata = consumer.group_metadata().unwrap();
    let producer = broker.transactional(&unique("tx"), &[]);
    producer.begin_transaction().unwrap();
    producer.send_offsets_to_transaction(&offsets(&topic, 0, 3), &metadata, LONG).unwrap();
    let reader = broker.consumer(&[("group.id", &group), ("isolation.level", "read_committed")]);
    let mut wanted = TopicPartitionList::new();
    wanted.add_partition(&topic, 0);
    // librdkafka retries while the offset is unstable, so a short timeout expires.
    let early = reader.committed_offsets(wanted.clone(), Duration::from_millis(1500));
    assert!(early.is_err(), "{early:?}");
    producer.commit_transaction(LONG).unwrap();
    let found = reader.committed_offsets(wanted, LONG).unwrap();
    assert_eq!(found.elements()[0].offset(), Offset::Offset(3));
}

#[test]
fn a_second_producer_with_the_same_id_fences_the_first() {
    let broker = TestBroker::any();
    let topic = broker.topic("fencing", 1, &[]);
    let id = unique("tx");
    let first = broker.transactional(&id, &[]);
    first.begin_transaction().unwrap();
    send(&first, &topic, 0, "k", "zombie");
    drain(&first);
    let second = broker.transactional(&id, &[]);
    // The initialisation of the second producer aborted the transaction.
    assert_eq!(broker.values(&topic, 0, "read_committed"), Vec::<String>::new());
    second.begin_transaction().unwrap();
    send(&second, &topic, 0, "k", "successor");
    commit(&second).unwrap();
    let error = first.commit_transaction(LONG).unwrap_err();
    let KafkaError::Transaction(error) = error else { panic!("{error}") };
    assert!(error.is_fatal(), "{error}");
    assert_eq!(broker.values(&topic, 0, "read_committed"), ["successor"]);
}

#[test]
fn timed_out_transactions_are_aborted() {
    let broker = TestBroker::any();
    let topic = broker.topic("timeout", 1, &[]);
    let producer =
        broker.transactional(&unique("tx"), &[("transaction.timeout.ms", "1000"), ("message.timeout.ms", "900")]);
    producer.begin_transaction().unwrap();
    send(&producer, &topic, 0, "k", "late");
    drain(&producer);
    assert_eq!(broker.watermarks(&topic, 0, "read_committed"), (0, 0));
    // Apache Kafka checks every ten seconds.
    eventually("aborted", || broker.watermarks(&topic, 0, "read_committed") == (0, 2));
    assert_eq!(broker.values(&topic, 0, "read_committed"), Vec::<String>::new());
    assert!(producer.commit_transaction(LONG).is_err());
}

#[test]
fn offsets_of_an_old_generation_are_refused() {
    let broker = TestBroker::any();
    let topic = broker.topic("generation", 2, &[]);
    let group = unique("group");
    let first = joined(&broker, &topic, &group, &[]);
    let stale: ConsumerGroupMetadata = first.group_metadata().unwrap();
    let second = broker.consumer(&[
        ("group.id", &group),
        ("session.timeout.ms", "6000"),
        ("heartbeat.interval.ms", "500"),
        ("partition.assignment.strategy", "cooperative-sticky"),
    ]);
    second.subscribe(&[&topic]).unwrap();
    eventually("both have a partition", || {
        let _ = first.poll(Duration::from_millis(20));
        let _ = second.poll(Duration::from_millis(20));
        first.assignment().unwrap().count() == 1 && second.assignment().unwrap().count() == 1
    });
    let producer = broker.transactional(&unique("tx"), &[]);
    producer.begin_transaction().unwrap();
    let error = producer.send_offsets_to_transaction(&offsets(&topic, 0, 1), &stale, LONG).unwrap_err();
    assert_eq!(error.rdkafka_error_code(), Some(RDKafkaErrorCode::IllegalGeneration), "{error}");
    producer.abort_transaction(LONG).unwrap();
    producer.begin_transaction().unwrap();
    let current = first.group_metadata().unwrap();
    producer.send_offsets_to_transaction(&offsets(&topic, 0, 2), &current, LONG).unwrap();
    producer.commit_transaction(LONG).unwrap();
    assert_eq!(committed(&broker, &group, &topic, 0), Offset::Offset(2));
}

#[test]
fn a_transaction_survives_a_clean_restart_of_the_broker() {
    if crate::common::is_foreign() {
        return;
    }
    let mut broker = TestBroker::own(|_| {});
    let topic = broker.topic("restart", 1, &[]);
    let id = unique("tx");
    let producer = broker.transactional(&id, &[]);
    producer.begin_transaction().unwrap();
    send(&producer, &topic, 0, "k", "before");
    drain(&producer);
    broker.restart(|_| {});
    assert_eq!(broker.watermarks(&topic, 0, "read_committed"), (0, 0));
    send(&producer, &topic, 0, "k", "after");
    commit(&producer).unwrap();
    assert_eq!(broker.values(&topic, 0, "read_committed"), ["before", "after"]);
    broker.restart(|_| {});
    assert_eq!(broker.values(&topic, 0, "read_committed"), ["before", "after"]);
    producer.begin_transaction().unwrap();
    send(&producer, &topic, 0, "k", "more");
    commit(&producer).unwrap();
    pause(Duration::from_millis(10));
    assert_eq!(broker.values(&topic, 0, "read_committed"), ["before", "after", "more"]);
}
