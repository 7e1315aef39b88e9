//! Retention, compaction and DeleteRecords, as clients see them.

use std::time::Duration;

use rdkafka::admin::AdminOptions;
use rdkafka::message::Message;
use rdkafka::producer::{BaseRecord, Producer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use trunkline_broker::BrokerOptions;

use crate::common::{LONG, TestBroker, drain, eventually, is_foreign, send, unique};

/// Retention and compaction run ten times a second.
fn often(options: &mut BrokerOptions) {
    options.retention_check_interval = Duration::from_millis(100);
    options.compaction_interval = Duration::from_millis(100);
}

fn cleaning() -> Option<TestBroker> {
    (!is_foreign()).then(|| TestBroker::own(often))
}

#[test]
fn retention_by_size_keeps_the_newest_segments() {
    let Some(mut broker) = cleaning() else { return };
    let topic = broker.topic("size", 1, &[("internal.segment.bytes", "10000"), ("retention.bytes", "30000")]);
    let producer = broker.producer(&[("linger.ms", "0")]);
    for number in 0..200 {
        send(&producer, &topic, 0, "k", &format!("{number} {}", "x".repeat(900)));
        drain(&producer);
    }
    eventually("old segments are gone", || broker.watermarks(&topic, 0, "read_committed").0 > 150);
    let (start, end) = broker.watermarks(&topic, 0, "read_committed");
    assert_eq!(end, 200);
    let found = broker.read(&topic, 0, start, "read_committed");
    assert_eq!(found.len() as i64, end - start);
    assert!(found.len() >= 25);
    broker.restart(|_| {});
    assert_eq!(broker.watermarks(&topic, 0, "read_committed"), (start, end));
}

#[test]
fn retention_by_time_empties_a_log_and_offsets_continue() {
    let Some(mut broker) = cleaning() else { return };
    let topic = broker.topic("time", 1, &[("retention.ms", "1000")]);
    let producer = broker.producer(&[]);
    for number in 0..10 {
        send(&producer, &topic, 0, "k", &number.to_string());
    }
    drain(&producer);
    eventually("expired", || broker.watermarks(&topic, 0, "read_committed") == (10, 10));
    broker.restart(|_| {});
    assert_eq!(broker.watermarks(&topic, 0, "read_committed"), (10, 10));
    send(&producer, &topic, 0, "k", "next");
    drain(&producer);
    let found = broker.read(&topic, 0, 10, "read_committed");
    assert_eq!(found[0].offset(), 10);
}

#[test]
fn compaction_keeps_the_last_value_of_each_key() {
    let Some(mut broker) = cleaning() else { return };
    let configs = [
        ("cleanup.policy", "compact"),
        ("internal.segment.bytes", "20000"),
        ("min.cleanable.dirty.ratio", "0.1"),
        ("delete.retention.ms", "0"),
    ];
    let topic = broker.topic("compact", 1, &configs);
    let producer = broker.transactional(&unique("tx"), &[("compression.type", "zstd")]);
    for round in 0..40 {
        producer.begin_transaction().unwrap();
        for key in 0..20 {
            // Not compressible, so that segments fill.
            let value = format!("{round}-{key}-{}", uuid::Uuid::new_v4().simple().to_string().repeat(4));
            send(&producer, &topic, 0, &format!("key {key}"), &value);
        }
        if round == 5 {
            let tombstone: BaseRecord<'_, str, str> = BaseRecord::to(&topic).partition(0).key("gone");
            producer.send(tombstone).map_err(|(error, _)| error).unwrap();
        } else if round < 5 {
            send(&producer, &topic, 0, "gone", "not yet");
        }
        drain(&producer);
        if round % 5 == 4 {
            producer.abort_transaction(LONG).unwrap()
        } else {
            producer.commit_transaction(LONG).unwrap()
        }
    }
    let last = |broker: &TestBroker| {
        let mut last = std::collections::BTreeMap::new();
        let found = broker.read(&topic, 0, 0, "read_committed");
        for message in &found {
            let key = String::from_utf8_lossy(message.key().unwrap()).into_owned();
            match message.payload() {
                Some(value) => last.insert(key, String::from_utf8_lossy(value).into_owned()),
                None => last.remove(&key),
            };
        }
        (found.len(), last)
    };
    eventually("compacted", || last(&broker).0 < 300);
    let (_, values) = last(&broker);
    assert_eq!(values.len(), 20);
    assert!(values.iter().all(|(key, value)| value.starts_with(&format!("38-{}-", &key[4..]))), "{values:?}");
    let end = broker.watermarks(&topic, 0, "read_committed").1;
    broker.restart(often);
    assert_eq!(last(&broker).1, values);
    assert_eq!(broker.watermarks(&topic, 0, "read_committed").1, end);
}

#[test]
fn max_compaction_lag_forces_compaction() {
    let Some(broker) = cleaning() else { return };
    let configs = [
        ("cleanup.policy", "compact"),
        // The dirty ratio never reaches this: the active segment is not compacted.
        ("min.cleanable.dirty.ratio", "1.0"),
        ("max.compaction.lag.ms", "300"),
    ];
    let topic = broker.topic("lag", 1, &configs);
    let producer = broker.producer(&[("linger.ms", "0")]);
    let mut round = 0;
    // The first record after the lag rolls the active segment, so send one in every round.
    eventually("old values are gone", || {
        round += 1;
        send(&producer, &topic, 0, "k", &round.to_string());
        drain(&producer);
        let found = broker.read(&topic, 0, 0, "read_committed");
        assert_eq!(found.last().unwrap().payload().unwrap(), round.to_string().as_bytes());
        round > 10 && found.len() < round / 2
    });
}

#[test]
fn compacted_topics_refuse_records_without_key() {
    let broker = TestBroker::any();
    let topic = broker.topic("keys", 1, &[("cleanup.policy", "compact")]);
    for codec in ["none", "lz4", "gzip", "snappy", "zstd"] {
        let producer = broker.producer(&[("compression.type", codec)]);
        let record: BaseRecord<'_, (), str> = BaseRecord::to(&topic).partition(0).payload("no key");
        producer.send(record).map_err(|(error, _)| error).unwrap();
        drain(&producer);
        send(&producer, &topic, 0, "key", codec);
        drain(&producer);
    }
    assert_eq!(broker.values(&topic, 0, "read_committed"), ["none", "lz4", "gzip", "snappy", "zstd"]);
}

#[test]
fn deleted_records_stay_deleted() {
    let mut broker = TestBroker::any();
    let topic = broker.topic("deleted", 1, &[]);
    let producer = broker.producer(&[]);
    for number in 0..100 {
        send(&producer, &topic, 0, "k", &number.to_string());
    }
    drain(&producer);
    let admin = broker.admin();
    let mut until = TopicPartitionList::new();
    until.add_partition_offset(&topic, 0, Offset::Offset(42)).unwrap();
    broker.block_on(admin.delete_records(&until, &AdminOptions::new())).unwrap();
    assert_eq!(broker.watermarks(&topic, 0, "read_committed"), (42, 100));
    assert_eq!(broker.values(&topic, 0, "read_committed")[0], "42");
    if !is_foreign() {
        broker.restart(|_| {});
        assert_eq!(broker.watermarks(&topic, 0, "read_committed"), (42, 100));
    }
}

#[test]
fn expired_records_stay_until_the_next_retention_check() {
    if is_foreign() {
        return;
    }
    let mut broker = TestBroker::own(|options| options.compaction_interval = Duration::from_millis(100));
    let old = broker.topic("old", 1, &[]);
    let compacted = broker.topic("compacted", 1, &[("cleanup.policy", "compact"), ("internal.segment.bytes", "500")]);
    let producer = broker.producer(&[("linger.ms", "0")]);
    let eight_days_ago = std::time::SystemTime::now() - Duration::from_secs(8 * 86_400);
    let timestamp = eight_days_ago.duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as i64;
    let record = BaseRecord::to(&old).partition(0).key("k").payload("old").timestamp(timestamp);
    producer.send(record).map_err(|(error, _)| error).unwrap();
    for round in 0..50 {
        send(&producer, &compacted, 0, "k", &round.to_string());
        drain(&producer);
    }
    // Compaction has its own, shorter interval.
    eventually("compacted", || broker.values(&compacted, 0, "read_committed").len() < 50);
    assert_eq!(broker.values(&old, 0, "read_committed"), ["old"]);
    broker.restart(often);
    eventually("removed", || broker.watermarks(&old, 0, "read_committed") == (1, 1));
}
