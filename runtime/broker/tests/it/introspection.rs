//! Active producers and transactions (KIP-664), which an administrator needs to find a hanging
//! transaction.

use kafka_protocol::ResponseError;
use kafka_protocol::messages::describe_producers_request::TopicRequest;
use kafka_protocol::messages::describe_producers_response::ProducerState;
use kafka_protocol::messages::describe_transactions_response::TransactionState;
use kafka_protocol::messages::{
    DescribeProducersRequest, DescribeTransactionsRequest, ListTransactionsRequest, ListTransactionsResponse,
    ProducerId, TopicName, TransactionalId,
};
use rdkafka::producer::Producer;

use crate::common::{LONG, TestBroker, drain, eventually, send, unique};
use crate::raw::Raw;
use kafka_protocol::messages::WriteTxnMarkersRequest;
use kafka_protocol::messages::write_txn_markers_request::{WritableTxnMarker, WritableTxnMarkerTopic};

fn describe(raw: &mut Raw, id: &str) -> TransactionState {
    let request =
        DescribeTransactionsRequest::default().with_transactional_ids(vec![TransactionalId(id.to_owned().into())]);
    raw.call(0, &request).transaction_states.remove(0)
}

/// The producers of a partition, or the error.
fn producers(raw: &mut Raw, topic: &str, partition: i32) -> Result<Vec<ProducerState>, i16> {
    let topic =
        TopicRequest::default().with_name(TopicName(topic.to_owned().into())).with_partition_indexes(vec![partition]);
    let mut response = raw.call(0, &DescribeProducersRequest::default().with_topics(vec![topic]));
    let partition = response.topics.remove(0).partitions.remove(0);
    if partition.error_code == 0 { Ok(partition.active_producers) } else { Err(partition.error_code) }
}

fn ids(response: &ListTransactionsResponse) -> Vec<&str> {
    response.transaction_states.iter().map(|state| state.transactional_id.as_str()).collect()
}

#[test]
fn transactions_and_producers_are_described() {
    let broker = TestBroker::any();
    let topic = broker.topic("described", 2, &[]);
    let mut raw = Raw::connect(&broker.address);
    let unknown = ResponseError::TransactionalIdNotFound.code();
    eventually("the coordinator answers", || describe(&mut raw, &unique("no-such")).error_code == unknown);
    let missing = ResponseError::UnknownTopicOrPartition.code();
    assert_eq!(producers(&mut raw, &topic, 7), Err(missing));
    assert_eq!(producers(&mut raw, &unique("no-such"), 0), Err(missing));
    assert_eq!(producers(&mut raw, &topic, 0), Ok(vec![]));

    let id = unique("described");
    let producer = broker.transactional(&id, &[("transaction.timeout.ms", "54321")]);
    let idle = describe(&mut raw, &id);
    assert_eq!((idle.error_code, &*idle.transaction_state), (0, "Empty"));
    assert_eq!((idle.transaction_timeout_ms, idle.transaction_start_time_ms), (54321, -1));
    assert!(idle.topics.is_empty());

    producer.begin_transaction().unwrap();
    send(&producer, &topic, 0, "k", "before");
    drain(&producer);
    producer.commit_transaction(LONG).unwrap();
    eventually("it is committed", || &*describe(&mut raw, &id).transaction_state == "CompleteCommit");

    producer.begin_transaction().unwrap();
    for partition in [0, 1] {
        send(&producer, &topic, partition, "k", "open");
    }
    drain(&producer);
    let open = describe(&mut raw, &id);
    assert_eq!((&*open.transaction_state, open.producer_id), ("Ongoing", idle.producer_id));
    assert_eq!(open.topics.len(), 1);
    let mut partitions = open.topics[0].partitions.clone();
    partitions.sort_unstable();
    assert_eq!((open.topics[0].topic.as_str(), partitions), (topic.as_str(), vec![0, 1]));
    assert!(open.transaction_start_time_ms > 0);
    // After the record and the marker of the first transaction in partition 0; at the start of
    // partition 1.
    for (partition, start, sequence) in [(0, 2, 1), (1, 0, 0)] {
        let found = producers(&mut raw, &topic, partition).unwrap();
        assert_eq!(found.len(), 1);
        let state = &found[0];
        assert_eq!((state.producer_id, state.producer_epoch), (open.producer_id, i32::from(open.producer_epoch)));
        assert_eq!((state.current_txn_start_offset, state.last_sequence), (start, sequence), "{partition}");
        assert!(state.last_timestamp > 0);
    }

    let mut list = |states: &[&str], producer_ids: &[ProducerId], duration: i64| {
        let request = ListTransactionsRequest::default()
            .with_state_filters(states.iter().map(|state| (*state).to_owned().into()).collect())
            .with_producer_id_filters(producer_ids.to_vec())
            .with_duration_filter(duration);
        raw.call(1, &request)
    };
    let mine = [open.producer_id];
    assert!(ids(&list(&[], &[], -1)).contains(&id.as_str()));
    assert_eq!(ids(&list(&[], &mine, -1)), [id.as_str()]);
    assert_eq!(ids(&list(&["Ongoing", "Empty"], &mine, -1)), [id.as_str()]);
    assert!(ids(&list(&["Empty"], &mine, -1)).is_empty());
    assert!(ids(&list(&[], &mine, 3_600_000)).is_empty());
    assert_eq!(ids(&list(&[], &mine, 0)), [id.as_str()]);
    assert_eq!(&*list(&[], &mine, -1).transaction_states[0].transaction_state, "Ongoing");
    let nonsense = list(&["Ongoing", "Nonsense"], &mine, -1);
    assert_eq!(nonsense.unknown_state_filters.iter().map(|state| state.as_str()).collect::<Vec<_>>(), ["Nonsense"]);
    assert_eq!(ids(&nonsense), [id.as_str()]);
    // A filter with only unknown states still filters.
    assert!(ids(&list(&["Nonsense"], &mine, -1)).is_empty());

    producer.abort_transaction(LONG).unwrap();
    eventually("it is aborted", || &*describe(&mut raw, &id).transaction_state == "CompleteAbort");
    assert_eq!(producers(&mut raw, &topic, 0).unwrap()[0].current_txn_start_offset, -1);
    let over = describe(&mut raw, &id);
    assert!(over.topics.is_empty(), "{over:?}");
    drop(producer);
}

/// Aborts a producer's transaction in one partition, as `kafka-transactions abort` does. Returns
/// the error.
fn abort(raw: &mut Raw, topic: &str, partition: i32, producer_id: ProducerId, epoch: i16) -> i16 {
    let topic = WritableTxnMarkerTopic::default()
        .with_name(TopicName(topic.to_owned().into()))
        .with_partition_indexes(vec![partition]);
    let marker = WritableTxnMarker::default()
        .with_producer_id(producer_id)
        .with_producer_epoch(epoch)
        .with_transaction_result(false)
        .with_topics(vec![topic]);
    let response = raw.call(1, &WriteTxnMarkersRequest::default().with_markers(vec![marker]));
    assert_eq!(response.markers[0].producer_id, producer_id);
    response.markers[0].topics[0].partitions[0].error_code
}

#[test]
fn write_txn_markers_ends_a_hanging_transaction_in_one_partition() {
    let broker = TestBroker::any();
    let topic = broker.topic("hangs", 2, &[]);
    let producer = broker.transactional(&unique("hangs"), &[]);
    producer.begin_transaction().unwrap();
    for partition in [0, 1] {
        send(&producer, &topic, partition, "k", "hangs");
    }
    drain(&producer);
    let plain = broker.producer(&[]);
    send(&plain, &topic, 0, "k", "behind it");
    drain(&plain);
    assert!(broker.values(&topic, 0, "read_committed").is_empty());

    let mut raw = Raw::connect(&broker.address);
    let open = producers(&mut raw, &topic, 0).unwrap();
    let open = open.iter().find(|state| state.current_txn_start_offset == 0).unwrap();
    let (id, epoch) = (open.producer_id, open.producer_epoch as i16);
    let missing = ResponseError::UnknownTopicOrPartition.code();
    assert_eq!(abort(&mut raw, &unique("no-such"), 0, id, epoch), missing);
    if epoch > 0 {
        assert_eq!(abort(&mut raw, &topic, 0, id, epoch - 1), ResponseError::InvalidProducerEpoch.code());
    }
    assert_eq!(abort(&mut raw, &topic, 0, id, epoch), 0);
    eventually("what is behind it is seen", || broker.values(&topic, 0, "read_committed") == ["behind it"]);
    assert!(broker.values(&topic, 1, "read_committed").is_empty());
    // The coordinator does not know of the abort, and ends the transaction where it is still open.
    producer.commit_transaction(LONG).unwrap();
    eventually("the rest is committed", || broker.values(&topic, 1, "read_committed") == ["hangs"]);
    assert_eq!(broker.values(&topic, 0, "read_committed"), ["behind it"]);
}
