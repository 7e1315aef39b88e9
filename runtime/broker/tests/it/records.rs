//! Records are read as they were written.

use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Header, Headers, Message, OwnedHeaders};
use rdkafka::producer::BaseRecord;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use crate::common::{LONG, TestBroker, drain, is_foreign, send};

#[test]
fn codecs_headers_and_tombstones_are_preserved() {
    let broker = TestBroker::any();
    let topic = broker.topic("codecs", 1, &[]);
    let codecs = ["none", "gzip", "snappy", "lz4", "zstd"];
    for codec in codecs {
        let producer = broker.producer(&[("compression.type", codec)]);
        for number in 0..50 {
            let value = format!("{codec} {number} {}", "x".repeat(100));
            let header = Header { key: "codec", value: Some(codec) };
            let null = Header { key: "null", value: None::<&str> };
            let headers = OwnedHeaders::new().insert(header).insert(null);
            let record = BaseRecord::to(&topic).key("key").payload(&value).headers(headers).partition(0);
            producer.send(record).map_err(|(error, _)| error).unwrap();
        }
        let tombstone: BaseRecord<'_, str, str> = BaseRecord::to(&topic).key("gone").partition(0);
        producer.send(tombstone).map_err(|(error, _)| error).unwrap();
        drain(&producer);
    }
    let found = broker.read(&topic, 0, 0, "read_committed");
    assert_eq!(found.len(), 51 * codecs.len());
    for (at, message) in found.iter().enumerate() {
        let (codec, number) = (codecs[at / 51], at % 51);
        assert_eq!(message.offset(), at as i64);
        if number == 50 {
            assert_eq!((message.key(), message.payload()), (Some(&b"gone"[..]), None));
            continue;
        }
        assert!(message.payload().unwrap().starts_with(format!("{codec} {number} ").as_bytes()));
        let headers = message.headers().unwrap();
        assert_eq!((headers.get(0).key, headers.get(0).value), ("codec", Some(codec.as_bytes())));
        assert_eq!((headers.get(1).key, headers.get(1).value), ("null", None));
    }
    assert_eq!(broker.watermarks(&topic, 0, "read_committed"), (0, 255));
}

#[test]
fn max_message_bytes_limits_batches() {
    let broker = TestBroker::any();
    let large = "x".repeat(5 << 20);
    let topic = broker.topic("large", 1, &[("max.message.bytes", "6000000")]);
    let producer = broker.producer(&[("message.max.bytes", "10000000")]);
    send(&producer, &topic, 0, "k", &large);
    drain(&producer);
    // Readers have their own limits, but get at least one batch.
    assert_eq!(broker.read(&topic, 0, 0, "read_committed")[0].payload().unwrap().len(), 5 << 20);
    let strict = broker.topic("strict", 1, &[("max.message.bytes", "1000")]);
    send(&producer, &strict, 0, "k", &large);
    drain(&producer);
    send(&producer, &strict, 0, "k", "small");
    drain(&producer);
    assert_eq!(broker.values(&strict, 0, "read_uncommitted"), ["small"]);
}

#[test]
fn a_record_of_64_mebibytes_fits_by_default() {
    if is_foreign() {
        return;
    }
    let broker = TestBroker::own(|_| {});
    let topic = broker.topic("default-limit", 1, &[]);
    let value = "x".repeat(64 << 20);
    let producer = broker.producer(&[("message.max.bytes", "100000000"), ("linger.ms", "0")]);
    send(&producer, &topic, 0, "k", &value);
    drain(&producer);
    let found = broker.read(&topic, 0, 0, "read_committed");
    assert_eq!(found.iter().map(|message| message.payload().unwrap().len()).collect::<Vec<_>>(), [64 << 20]);
}

#[test]
fn fetches_start_in_the_middle_of_a_batch() {
    let broker = TestBroker::any();
    let topic = broker.topic("middle", 1, &[]);
    let producer = broker.producer(&[("linger.ms", "200"), ("compression.type", "lz4")]);
    for number in 0..1000 {
        send(&producer, &topic, 0, "k", &number.to_string());
    }
    drain(&producer);
    for from in [0, 1, 17, 500, 998, 999, 1000] {
        let found = broker.read(&topic, 0, from, "read_committed");
        let offsets: Vec<i64> = found.iter().map(|message| message.offset()).collect();
        assert_eq!(offsets, (from..1000).collect::<Vec<_>>(), "from {from}");
    }
}

#[test]
fn offsets_are_found_by_time() {
    let broker = TestBroker::any();
    let topic = broker.topic("times", 1, &[("retention.ms", "-1")]);
    let producer = broker.producer(&[("linger.ms", "100"), ("compression.type", "zstd")]);
    let start = 1_700_000_000_000;
    for number in 0..100 {
        let record = BaseRecord::to(&topic).partition(0).key("k").payload("v").timestamp(start + number * 10);
        producer.send(record).map_err(|(error, _)| error).unwrap();
        if number == 49 {
            drain(&producer);
        }
    }
    drain(&producer);
    let consumer = broker.consumer(&[]);
    let find = |timestamp: i64| {
        let mut wanted = TopicPartitionList::new();
        wanted.add_partition_offset(&topic, 0, Offset::Offset(timestamp)).unwrap();
        let found = consumer.offsets_for_times(wanted, LONG).unwrap();
        found.elements()[0].offset()
    };
    assert_eq!(find(start), Offset::Offset(0));
    assert_eq!(find(start - 1000), Offset::Offset(0));
    assert_eq!(find(start + 370), Offset::Offset(37));
    assert_eq!(find(start + 371), Offset::Offset(38));
    assert_eq!(find(start + 990), Offset::Offset(99));
    assert_eq!(find(start + 991), Offset::End);
}

/// Waits for one record and returns the time it took.
fn poll_one(consumer: &BaseConsumer) -> Duration {
    let begun = Instant::now();
    while begun.elapsed() < LONG {
        if let Some(message) = consumer.poll(Duration::from_millis(100)) {
            message.unwrap();
            return begun.elapsed();
        }
    }
    panic!("no record");
}

#[test]
fn appends_wake_waiting_fetches() {
    let broker = TestBroker::any();
    let topic = broker.topic("wake", 1, &[]);
    for isolation in ["read_committed", "read_uncommitted"] {
        let consumer = broker.consumer(&[("fetch.wait.max.ms", "10000"), ("isolation.level", isolation)]);
        let mut assignment = TopicPartitionList::new();
        assignment.add_partition_offset(&topic, 0, Offset::End).unwrap();
        consumer.assign(&assignment).unwrap();
        assert!(consumer.poll(Duration::from_millis(1500)).is_none());
        let producer = broker.producer(&[("linger.ms", "0")]);
        let mut slowest = Duration::ZERO;
        for _ in 0..20 {
            send(&producer, &topic, 0, "k", "v");
            producer.poll(Duration::ZERO);
            slowest = slowest.max(poll_one(&consumer));
        }
        assert!(slowest < Duration::from_secs(2), "{isolation}: {slowest:?}");
    }
}

#[test]
fn offsets_out_of_range_reset_the_reader() {
    let broker = TestBroker::any();
    let topic = broker.topic("range", 1, &[]);
    let producer = broker.producer(&[]);
    for number in 0..10 {
        send(&producer, &topic, 0, "k", &number.to_string());
    }
    drain(&producer);
    // auto.offset.reset=earliest: an offset out of range resets to the start.
    let found = broker.read(&topic, 0, 1000, "read_committed");
    assert_eq!(found.len(), 10);
}
