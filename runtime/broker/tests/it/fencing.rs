//! Fencing: only the producer that a transactional id belongs to may use its epoch.
//!
//! Each test is a sequence of single requests with the answers of Apache Kafka 4.3.

use kafka_protocol::ResponseError;
use kafka_protocol::messages::add_partitions_to_txn_request::AddPartitionsToTxnTopic;
use kafka_protocol::messages::{
    AddPartitionsToTxnRequest, ApiVersionsRequest, EndTxnRequest, FindCoordinatorRequest, InitProducerIdRequest,
    ProducerId, TopicName, TransactionalId,
};

use crate::common::{TestBroker, eventually, unique};
use crate::raw::{From, Raw, batch, produce, produce_in};

/// A producer id and an epoch.
type Identity = (i64, i16);

const NONE: Identity = (-1, -1);

/// InitProducerId by a producer that names `identity`. The error code and the new identity.
pub(crate) fn init(raw: &mut Raw, version: i16, id: &str, identity: Identity) -> (i16, Identity) {
    let request = InitProducerIdRequest::default()
        .with_transactional_id(Some(TransactionalId(id.to_owned().into())))
        .with_transaction_timeout_ms(60_000)
        .with_producer_id(ProducerId(identity.0))
        .with_producer_epoch(identity.1);
    // Apache Kafka creates the topic of the coordinator when a client looks for it.
    let find = FindCoordinatorRequest::default().with_key_type(1).with_coordinator_keys(vec![id.to_owned().into()]);
    raw.call(4, &find);
    let mut answer = (-1, NONE);
    let retriable = [
        ResponseError::ConcurrentTransactions,
        ResponseError::CoordinatorNotAvailable,
        ResponseError::CoordinatorLoadInProgress,
        ResponseError::NotCoordinator,
    ];
    eventually("the coordinator answers", || {
        let response = raw.call(version, &request);
        answer = (response.error_code, (response.producer_id.0, response.producer_epoch));
        retriable.iter().all(|error| error.code() != answer.0)
    });
    answer
}

fn add_partition(raw: &mut Raw, id: &str, identity: Identity, topic: &str) -> i16 {
    let topic =
        AddPartitionsToTxnTopic::default().with_name(TopicName(topic.to_owned().into())).with_partitions(vec![0]);
    let request = AddPartitionsToTxnRequest::default()
        .with_v3_and_below_transactional_id(TransactionalId(id.to_owned().into()))
        .with_v3_and_below_producer_id(ProducerId(identity.0))
        .with_v3_and_below_producer_epoch(identity.1)
        .with_v3_and_below_topics(vec![topic]);
    let mut error = -1;
    eventually("the coordinator answers", || {
        let response = raw.call(3, &request);
        error = response.results_by_topic_v3_and_below[0].results_by_partition[0].partition_error_code;
        error != ResponseError::ConcurrentTransactions.code()
    });
    error
}

fn end(raw: &mut Raw, id: &str, identity: Identity, committed: bool) -> i16 {
    let request = EndTxnRequest::default()
        .with_transactional_id(TransactionalId(id.to_owned().into()))
        .with_producer_id(ProducerId(identity.0))
        .with_producer_epoch(identity.1)
        .with_committed(committed);
    raw.call(3, &request).error_code
}

fn first_batch(identity: Identity) -> Vec<u8> {
    let (producer_id, epoch) = identity;
    batch(From { producer_id, epoch, sequence: 0, is_transactional: true }, 1)
}

#[test]
fn a_fenced_producer_cannot_take_the_identity_of_its_successor() {
    let broker = TestBroker::any();
    let topic = broker.topic("fenced", 1, &[]);
    let mut raw = Raw::connect(&broker.address);
    for (version, fenced) in [(3, ResponseError::InvalidProducerEpoch), (4, ResponseError::ProducerFenced)] {
        let id = unique("tx");
        let (_, zombie) = init(&mut raw, version, &id, NONE);
        let (_, successor) = init(&mut raw, version, &id, NONE);
        assert_eq!((successor.0, successor.1 > zombie.1), (zombie.0, true));
        assert_eq!(init(&mut raw, version, &id, zombie), (fenced.code(), NONE), "version {version}");
        // Nothing that the fenced producer sends makes the successor's first batch a duplicate.
        assert_eq!(add_partition(&mut raw, &id, successor, &topic), 0);
        let stale = produce(&mut raw, &topic, Some(&id), first_batch(zombie));
        assert_eq!(stale.0, ResponseError::InvalidProducerEpoch.code());
        let end_offset = broker.watermarks(&topic, 0, "read_uncommitted").1;
        assert_eq!(produce(&mut raw, &topic, Some(&id), first_batch(successor)), (0, end_offset));
        assert_eq!(end(&mut raw, &id, successor, true), 0);
        eventually("the successor's record is committed", || {
            broker.watermarks(&topic, 0, "read_committed").1 == end_offset + 2
        });
    }
    assert_eq!(broker.values(&topic, 0, "read_committed").len(), 2);
}

#[test]
fn a_producer_can_repeat_its_own_init_producer_id() {
    let broker = TestBroker::any();
    let id = unique("tx");
    let mut raw = Raw::connect(&broker.address);
    let (_, first) = init(&mut raw, 4, &id, NONE);
    let (error, second) = init(&mut raw, 4, &id, first);
    assert_eq!((error, second), (0, (first.0, first.1 + 1)));
    // The response was lost: the same request gets the same answer.
    assert_eq!(init(&mut raw, 4, &id, first), (0, second));
    // Another producer takes over: neither identity is valid any more.
    let (_, successor) = init(&mut raw, 4, &id, NONE);
    for stale in [first, second] {
        assert_eq!(init(&mut raw, 4, &id, stale).0, ResponseError::ProducerFenced.code(), "{stale:?}");
    }
    assert_eq!(init(&mut raw, 4, &id, successor), (0, (successor.0, successor.1 + 1)));
}

#[test]
fn a_fenced_producer_stays_fenced_after_a_restart() {
    if crate::common::is_foreign() {
        return;
    }
    let mut broker = TestBroker::own(|_| {});
    let id = unique("tx");
    let mut raw = Raw::connect(&broker.address);
    let (_, zombie) = init(&mut raw, 4, &id, NONE);
    let (_, successor) = init(&mut raw, 4, &id, NONE);
    broker.restart(|_| {});
    let mut raw = Raw::connect(&broker.address);
    assert_eq!(init(&mut raw, 4, &id, zombie).0, ResponseError::ProducerFenced.code());
    assert_eq!(init(&mut raw, 4, &id, successor), (0, (successor.0, successor.1 + 1)));
    assert_eq!(init(&mut raw, 4, &id, successor), (0, (successor.0, successor.1 + 1)));
}

/// EndTxn of `transaction.version` 2: the error code and the identity for the next transaction.
fn end_2(raw: &mut Raw, id: &str, identity: Identity, committed: bool) -> (i16, Identity) {
    let request = EndTxnRequest::default()
        .with_transactional_id(TransactionalId(id.to_owned().into()))
        .with_producer_id(ProducerId(identity.0))
        .with_producer_epoch(identity.1)
        .with_committed(committed);
    let mut answer = (-1, NONE);
    eventually("the markers of the transaction are written", || {
        let response = raw.call(5, &request);
        answer = (response.error_code, (response.producer_id.0, response.producer_epoch));
        answer.0 != ResponseError::ConcurrentTransactions.code()
    });
    answer
}

/// Produces with `transaction.version` 2, which adds the partition to the transaction.
fn produce_2(raw: &mut Raw, topic: &str, id: &str, identity: Identity) -> i16 {
    let mut error = -1;
    eventually("the transaction before is completed", || {
        error = produce_in(12, raw, topic, Some(id), first_batch(identity)).0;
        error != ResponseError::ConcurrentTransactions.code()
    });
    error
}

#[test]
fn transaction_version_2_is_announced() {
    let broker = TestBroker::any();
    let mut raw = Raw::connect(&broker.address);
    let name = || "raw".to_string().into();
    let request = ApiVersionsRequest::default().with_client_software_name(name()).with_client_software_version(name());
    for version in [3, 4] {
        let response = raw.call(version, &request);
        let level = response.finalized_features.iter().find(|feature| &*feature.name == "transaction.version");
        assert_eq!(level.map(|feature| feature.max_version_level), Some(2), "version {version}");
    }
    assert!(raw.call(0, &request).finalized_features.is_empty());
}

#[test]
fn version_2_gives_every_transaction_its_own_epoch() {
    let broker = TestBroker::any();
    let topic = broker.topic("epochs", 1, &[]);
    let id = unique("tx");
    let mut raw = Raw::connect(&broker.address);
    let (_, first) = init(&mut raw, 5, &id, NONE);
    let next = |identity: Identity| (identity.0, identity.1 + 1);
    assert_eq!(produce_2(&mut raw, &topic, &id, first), 0);
    let (error, second) = end_2(&mut raw, &id, first, true);
    assert_eq!((error, second), (0, next(first)));
    assert_eq!(end_2(&mut raw, &id, first, true), (0, second), "the response was lost");
    assert_eq!(end_2(&mut raw, &id, first, false).0, ResponseError::InvalidTxnState.code());
    // Late requests of the first transaction do not reach the second one.
    assert_eq!(produce_2(&mut raw, &topic, &id, second), 0);
    assert_eq!(produce_2(&mut raw, &topic, &id, first), ResponseError::InvalidProducerEpoch.code());
    assert_eq!(end_2(&mut raw, &id, first, true).0, ResponseError::ProducerFenced.code());
    let (error, third) = end_2(&mut raw, &id, second, false);
    assert_eq!((error, third), (0, next(second)));
    // An abort without records gives a new epoch as well; a commit needs records.
    assert_eq!(end_2(&mut raw, &id, third, true).0, ResponseError::InvalidTxnState.code());
    let (error, fourth) = end_2(&mut raw, &id, third, false);
    assert_eq!((error, fourth), (0, next(third)));
    // A successor fences all of them.
    let (_, successor) = init(&mut raw, 5, &id, NONE);
    assert_eq!(successor, next(fourth));
    for stale in [first, second, third, fourth] {
        assert_eq!(end_2(&mut raw, &id, stale, true).0, ResponseError::ProducerFenced.code(), "{stale:?}");
        let error = produce_2(&mut raw, &topic, &id, stale);
        assert_eq!(error, ResponseError::InvalidProducerEpoch.code(), "{stale:?}");
    }
    eventually("the first transaction is visible", || broker.values(&topic, 0, "read_committed") == ["v"]);
}

#[test]
fn version_2_continues_after_a_transaction_timeout() {
    let broker = TestBroker::any();
    let topic = broker.topic("timeout", 1, &[]);
    let id = unique("tx");
    let mut raw = Raw::connect(&broker.address);
    let request = InitProducerIdRequest::default()
        .with_transactional_id(Some(TransactionalId(id.clone().into())))
        .with_transaction_timeout_ms(300)
        .with_producer_id(ProducerId(-1))
        .with_producer_epoch(-1);
    init(&mut raw, 5, &unique("other"), NONE);
    let mut first = NONE;
    eventually("a producer id", || {
        let response = raw.call(5, &request);
        first = (response.producer_id.0, response.producer_epoch);
        response.error_code == 0
    });
    assert_eq!(produce_2(&mut raw, &topic, &id, first), 0);
    eventually("aborted", || broker.watermarks(&topic, 0, "read_committed") == (0, 2));
    assert_eq!(produce_2(&mut raw, &topic, &id, first), ResponseError::InvalidProducerEpoch.code());
    let (error, second) = end_2(&mut raw, &id, first, false);
    assert_eq!((error, second), (0, (first.0, first.1 + 1)));
    assert_eq!(produce_2(&mut raw, &topic, &id, second), 0);
    assert_eq!(end_2(&mut raw, &id, second, true).0, 0);
    eventually("the second transaction is visible", || broker.values(&topic, 0, "read_committed") == ["v"]);
}
