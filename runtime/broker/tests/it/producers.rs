//! Idempotent producers, with single requests: a batch sent twice is stored once.

use kafka_protocol::ResponseError;
use kafka_protocol::messages::add_partitions_to_txn_request::AddPartitionsToTxnTopic;
use kafka_protocol::messages::{
    AddPartitionsToTxnRequest, EndTxnRequest, InitProducerIdRequest, ProducerId, TopicName, TransactionalId,
};

use crate::common::{TestBroker, eventually, unique};
use crate::raw::{From, Raw, batch, produce};

fn code(error: ResponseError) -> i16 {
    error.code()
}

fn init(raw: &mut Raw, transactional_id: Option<&str>) -> (i64, i16) {
    let request = InitProducerIdRequest::default()
        .with_transactional_id(transactional_id.map(|id| TransactionalId(id.to_string().into())))
        .with_transaction_timeout_ms(60_000);
    // A server that has just started may not have loaded its coordinator.
    let mut found = (-1, -1);
    eventually("a producer id", || {
        let response = raw.call(4, &request);
        found = (response.producer_id.0, response.producer_epoch);
        response.error_code == 0
    });
    found
}

#[test]
fn a_batch_sent_twice_is_stored_once_and_a_gap_is_refused() {
    let broker = TestBroker::any();
    let topic = broker.topic("idempotent", 1, &[]);
    let mut raw = Raw::connect(&broker.address);
    let (producer_id, epoch) = init(&mut raw, None);
    let from = |sequence| From { producer_id, epoch, sequence, is_transactional: false };
    assert_eq!(produce(&mut raw, &topic, None, batch(from(0), 3)), (0, 0));
    assert_eq!(produce(&mut raw, &topic, None, batch(from(3), 2)), (0, 3));
    assert_eq!(produce(&mut raw, &topic, None, batch(from(0), 3)), (0, 0));
    assert_eq!(produce(&mut raw, &topic, None, batch(from(3), 2)), (0, 3));
    let gap = produce(&mut raw, &topic, None, batch(from(6), 1));
    assert_eq!(gap.0, code(ResponseError::OutOfOrderSequenceNumber));
    assert_eq!(produce(&mut raw, &topic, None, batch(from(5), 1)), (0, 5));
    let newer = From { epoch: epoch + 1, ..from(0) };
    assert_eq!(produce(&mut raw, &topic, None, batch(newer, 1)), (0, 6));
    let fenced = produce(&mut raw, &topic, None, batch(from(6), 1));
    assert_eq!(fenced.0, code(ResponseError::InvalidProducerEpoch));
    assert_eq!(broker.watermarks(&topic, 0, "read_uncommitted"), (0, 7));
}

#[test]
fn producer_state_survives_a_restart() {
    if crate::common::is_foreign() {
        return;
    }
    let mut broker = TestBroker::own(|_| {});
    let topic = broker.topic("restart", 1, &[]);
    let mut raw = Raw::connect(&broker.address);
    let (producer_id, epoch) = init(&mut raw, None);
    let from = |sequence| From { producer_id, epoch, sequence, is_transactional: false };
    assert_eq!(produce(&mut raw, &topic, None, batch(from(0), 3)), (0, 0));
    broker.restart(|_| {});
    let mut raw = Raw::connect(&broker.address);
    assert_eq!(produce(&mut raw, &topic, None, batch(from(0), 3)), (0, 0));
    assert_eq!(produce(&mut raw, &topic, None, batch(from(3), 1)), (0, 3));
    let (other, _) = init(&mut raw, None);
    assert_ne!(other, producer_id);
}

#[test]
fn batches_outside_their_transaction_are_refused() {
    let broker = TestBroker::any();
    let topic = broker.topic("verified", 1, &[]);
    let id = unique("tx");
    let mut raw = Raw::connect(&broker.address);
    let (producer_id, epoch) = init(&mut raw, Some(&id));
    let from = |sequence| From { producer_id, epoch, sequence, is_transactional: true };
    let outside = produce(&mut raw, &topic, Some(&id), batch(from(0), 1));
    assert_eq!(outside.0, code(ResponseError::InvalidTxnState));
    let add = AddPartitionsToTxnRequest::default()
        .with_v3_and_below_transactional_id(TransactionalId(id.clone().into()))
        .with_v3_and_below_producer_id(ProducerId(producer_id))
        .with_v3_and_below_producer_epoch(epoch)
        .with_v3_and_below_topics(vec![
            AddPartitionsToTxnTopic::default().with_name(TopicName(topic.clone().into())).with_partitions(vec![0]),
        ]);
    let mut error = -1;
    eventually("added", || {
        let response = raw.call(2, &add);
        error = response.results_by_topic_v3_and_below[0].results_by_partition[0].partition_error_code;
        error != code(ResponseError::ConcurrentTransactions)
    });
    assert_eq!(error, 0);
    assert_eq!(produce(&mut raw, &topic, Some(&id), batch(from(0), 1)).0, 0);
    let end = |epoch, committed| {
        EndTxnRequest::default()
            .with_transactional_id(TransactionalId(id.clone().into()))
            .with_producer_id(ProducerId(producer_id))
            .with_producer_epoch(epoch)
            .with_committed(committed)
    };
    assert_eq!(raw.call(3, &end(epoch + 1, true)).error_code, code(ResponseError::ProducerFenced));
    assert_eq!(raw.call(3, &end(epoch, true)).error_code, 0);
    // A retry gets the same answer; the other outcome is refused.
    eventually("ended", || raw.call(3, &end(epoch, true)).error_code == 0);
    assert_eq!(raw.call(3, &end(epoch, false)).error_code, code(ResponseError::InvalidTxnState));
    let after = produce(&mut raw, &topic, Some(&id), batch(from(1), 1));
    assert_eq!(after.0, code(ResponseError::InvalidTxnState));
    assert_eq!(broker.values(&topic, 0, "read_committed"), ["v"]);
}

#[test]
fn damaged_batches_are_refused() {
    let broker = TestBroker::any();
    let topic = broker.topic("damaged", 1, &[]);
    let mut raw = Raw::connect(&broker.address);
    let plain = From { producer_id: -1, epoch: -1, sequence: -1, is_transactional: false };
    let mut flipped = batch(plain, 2);
    let last = flipped.len() - 1;
    flipped[last] ^= 1;
    assert_eq!(produce(&mut raw, &topic, None, flipped).0, code(ResponseError::CorruptMessage));
    let twice = [batch(plain, 1), batch(plain, 1)].concat();
    assert_eq!(produce(&mut raw, &topic, None, twice).0, code(ResponseError::InvalidRecord));
    assert_eq!(produce(&mut raw, &topic, None, batch(plain, 2)), (0, 0));
}
