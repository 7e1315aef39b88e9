//! Timestamps: the clock they come from, and offsets found by them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kafka_protocol::ResponseError;
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::{BrokerId, ListOffsetsRequest, ProduceRequest, TopicName};
use rdkafka::message::{Message, Timestamp};
use rdkafka::producer::{BaseProducer, BaseRecord};

use crate::common::{TestBroker, drain, pause, unique};
use crate::raw::{From, Raw, batch};

const LATEST: i64 = -1;
const EARLIEST: i64 = -2;
const MAX_TIMESTAMP: i64 = -3;
const EARLIEST_LOCAL: i64 = -4;
const LATEST_TIERED: i64 = -5;

const START: i64 = 1_700_000_000_000;

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64
}

/// The answer of ListOffsets: error, timestamp, offset.
fn list(raw: &mut Raw, topic: &str, partition: i32, timestamp: i64) -> (i16, i64, i64) {
    let partition = ListOffsetsPartition::default().with_partition_index(partition).with_timestamp(timestamp);
    let topic =
        ListOffsetsTopic::default().with_name(TopicName(topic.to_owned().into())).with_partitions(vec![partition]);
    let request = ListOffsetsRequest::default().with_replica_id(BrokerId(-1)).with_topics(vec![topic]);
    let response = raw.call(9, &request);
    let partition = &response.topics[0].partitions[0];
    (partition.error_code, partition.timestamp, partition.offset)
}

/// Sends records with these timestamps as one batch.
fn send_at(producer: &BaseProducer, topic: &str, timestamps: &[i64]) {
    for timestamp in timestamps {
        let record = BaseRecord::to(topic).partition(0).key("k").payload("v").timestamp(*timestamp);
        producer.send(record).map_err(|(error, _)| error).unwrap();
    }
    drain(producer);
}

#[test]
fn max_timestamp_finds_the_newest_record() {
    let broker = TestBroker::any();
    let topic = broker.topic("newest", 1, &[("retention.ms", "-1")]);
    let mut raw = Raw::connect(&broker.address);
    assert_eq!(list(&mut raw, &topic, 0, MAX_TIMESTAMP), (0, -1, -1));
    assert_eq!(list(&mut raw, &topic, 0, START), (0, -1, -1));
    assert_eq!(list(&mut raw, &topic, 0, EARLIEST), (0, -1, 0));
    assert_eq!(list(&mut raw, &topic, 0, LATEST), (0, -1, 0));
    for (codec, first) in [("none", 0), ("lz4", 6)] {
        let producer = broker.producer(&[("linger.ms", "100"), ("compression.type", codec)]);
        let at = START + first * 1000;
        send_at(&producer, &topic, &[at + 10, at + 50, at + 50, at + 30]);
        assert_eq!(list(&mut raw, &topic, 0, MAX_TIMESTAMP), (0, at + 50, first + 1), "{codec}");
        // A later batch with older timestamps changes nothing.
        send_at(&producer, &topic, &[at + 20, at + 40]);
        assert_eq!(list(&mut raw, &topic, 0, MAX_TIMESTAMP), (0, at + 50, first + 1), "{codec}");
        assert_eq!(list(&mut raw, &topic, 0, at), (0, at + 10, first), "{codec}");
        assert_eq!(list(&mut raw, &topic, 0, at + 11), (0, at + 50, first + 1), "{codec}");
        assert_eq!(list(&mut raw, &topic, 0, at + 51), (0, -1, -1), "{codec}");
    }
    assert_eq!(list(&mut raw, &topic, 0, 0), (0, START + 10, 0));
    assert_eq!(list(&mut raw, &topic, 0, EARLIEST_LOCAL), (0, -1, 0));
    assert_eq!(list(&mut raw, &topic, 0, LATEST_TIERED), (0, -1, -1));
    assert_eq!(list(&mut raw, &topic, 0, LATEST), (0, -1, 12));
    let unknown = ResponseError::UnknownTopicOrPartition.code();
    assert_eq!(list(&mut raw, &topic, 1, LATEST).0, unknown);
    assert_eq!(list(&mut raw, &unique("no-such"), 0, LATEST).0, unknown);
}

#[test]
fn log_append_time_uses_the_brokers_clock() {
    let broker = TestBroker::any();
    let configs = [("message.timestamp.type", "LogAppendTime")];
    let topic = broker.topic("append-time", 1, &configs);
    for (codec, first) in [("none", 0), ("zstd", 3)] {
        let producer = broker.producer(&[("linger.ms", "100"), ("compression.type", codec)]);
        let before = now();
        // Out of range, and refused with CreateTime.
        send_at(&producer, &topic, &[START, START + 7_000_000_000_000, 1]);
        let after = now();
        let found = broker.read(&topic, 0, first, "read_committed");
        assert_eq!(found.len(), 3, "{codec}");
        let Timestamp::LogAppendTime(appended) = found[0].timestamp() else {
            panic!("{:?}", found[0].timestamp());
        };
        assert!((before..=after).contains(&appended), "{codec}: {before} {appended} {after}");
        assert!(found.iter().all(|message| message.timestamp() == Timestamp::LogAppendTime(appended)), "{codec}");

        let mut raw = Raw::connect(&broker.address);
        assert_eq!(list(&mut raw, &topic, 0, before), (0, appended, first), "{codec}");
        assert_eq!(list(&mut raw, &topic, 0, appended + 1), (0, -1, -1), "{codec}");
        assert_eq!(list(&mut raw, &topic, 0, MAX_TIMESTAMP), (0, appended, first), "{codec}");
        // The next batch gets its own time.
        pause(Duration::from_millis(5));
    }

    // The response has the append time only with LogAppendTime.
    let plain = From { producer_id: -1, epoch: -1, sequence: -1, is_transactional: false };
    let append_time = |topic: &str| {
        let partition = PartitionProduceData::default().with_records(Some(batch(plain, 1).into()));
        let data = TopicProduceData::default()
            .with_name(TopicName(topic.to_owned().into()))
            .with_partition_data(vec![partition]);
        let request = ProduceRequest::default().with_acks(-1).with_timeout_ms(5000).with_topic_data(vec![data]);
        let response = Raw::connect(&broker.address).call(9, &request);
        let answer = &response.responses[0].partition_responses[0];
        assert_eq!(answer.error_code, 0);
        answer.log_append_time_ms
    };
    let before = now();
    assert!((before..=now() + 1).contains(&append_time(&topic)));
    assert_eq!(append_time(&broker.topic("create-time", 1, &[])), -1);
}
