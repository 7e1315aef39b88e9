//! Unknown outcomes: clients retry requests without a response, and the broker executes them once.

use std::time::{Duration, Instant};

use kafka_protocol::ResponseError;
use rdkafka::consumer::{CommitMode, Consumer};
use rdkafka::producer::Producer;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use trunkline_broker::{ApiKey, Fault};

use crate::common::{LONG, TestBroker, drain, is_foreign, send, unique};

#[test]
fn transactions_survive_every_lost_response() {
    if is_foreign() {
        return;
    }
    let broker = TestBroker::own(|_| {});
    let topic = broker.topic("lost", 1, &[]);
    let group = unique("group");
    let consumer = broker.consumer(&[("group.id", &group)]);
    let producer = broker.transactional(&unique("tx"), &[]);
    let mut expected = Vec::new();
    let retriable = ResponseError::CoordinatorNotAvailable.code();
    let cases = [
        (ApiKey::Produce, Fault::DropReply),
        (ApiKey::Produce, Fault::Error(ResponseError::NotLeaderOrFollower.code())),
        (ApiKey::Produce, Fault::Delay(Duration::from_millis(300))),
        (ApiKey::AddPartitionsToTxn, Fault::DropReply),
        (ApiKey::AddPartitionsToTxn, Fault::Error(retriable)),
        (ApiKey::AddOffsetsToTxn, Fault::DropReply),
        (ApiKey::TxnOffsetCommit, Fault::DropReply),
        (ApiKey::TxnOffsetCommit, Fault::Error(retriable)),
        (ApiKey::EndTxn, Fault::DropReply),
        (ApiKey::EndTxn, Fault::Error(retriable)),
    ];
    for (round, (api, fault)) in cases.into_iter().enumerate() {
        broker.handle().faults().inject(api, 1, fault);
        producer.begin_transaction().unwrap();
        for number in 0..10 {
            send(&producer, &topic, 0, "k", &format!("{round}-{number}"));
            expected.push(format!("{round}-{number}"));
        }
        drain(&producer);
        let mut offsets = TopicPartitionList::new();
        offsets.add_partition_offset(&topic, 0, Offset::Offset(round as i64)).unwrap();
        let metadata = consumer.group_metadata().unwrap();
        producer.send_offsets_to_transaction(&offsets, &metadata, LONG).unwrap();
        producer.commit_transaction(LONG).unwrap();
        assert_eq!(broker.handle().faults().pending(), 0, "{api:?} {fault:?} did not happen");
        assert_eq!(broker.values(&topic, 0, "read_committed"), expected, "{api:?} {fault:?}");
        let mut wanted = TopicPartitionList::new();
        wanted.add_partition(&topic, 0);
        let committed = consumer.committed_offsets(wanted, LONG).unwrap();
        assert_eq!(committed.elements()[0].offset(), Offset::Offset(round as i64));
    }
}

#[test]
fn an_offset_commit_survives_its_lost_response() {
    if is_foreign() {
        return;
    }
    let broker = TestBroker::own(|_| {});
    let topic = broker.topic("commit", 1, &[]);
    let consumer = broker.consumer(&[("group.id", &unique("group"))]);
    broker.handle().faults().inject(ApiKey::OffsetCommit, 1, Fault::DropReply);
    let mut offsets = TopicPartitionList::new();
    offsets.add_partition_offset(&topic, 0, Offset::Offset(5)).unwrap();
    let begun = Instant::now();
    let _ = consumer.commit(&offsets, CommitMode::Sync);
    assert!(begun.elapsed() < LONG);
    let mut wanted = TopicPartitionList::new();
    wanted.add_partition(&topic, 0);
    let committed = consumer.committed_offsets(wanted, LONG).unwrap();
    assert_eq!(committed.elements()[0].offset(), Offset::Offset(5));
}
