//! The producer when requests fail or their answers are lost.

use trunkline_broker::{ApiKey, Fault};

use super::*;

/// Errors of brokers that pass: NOT_LEADER_OR_FOLLOWER, REQUEST_TIMED_OUT, NOT_ENOUGH_REPLICAS,
/// COORDINATOR_LOAD_IN_PROGRESS, NOT_COORDINATOR, CONCURRENT_TRANSACTIONS.
const LEADER_ERRORS: [i16; 3] = [6, 7, 19];
const COORDINATOR_ERRORS: [i16; 3] = [14, 16, 51];

fn start() -> (Fixture, Cluster) {
    let fixture = Fixture::start();
    let cluster = fixture.cluster();
    Admin::new(&cluster).unwrap().ensure(&[spec("a", 1, &[])]).unwrap();
    (fixture, cluster)
}

fn values(cluster: &Cluster) -> Vec<String> {
    keys(cluster, "a")
}

fn inject(fixture: &Fixture, api: ApiKey, nth: u64, fault: Fault) {
    fixture.broker.as_ref().unwrap().faults().inject(api, nth, fault);
}

#[test]
fn batches_are_stored_once_in_their_order_after_errors_and_lost_answers() {
    let (fixture, _) = start();
    let address = fixture.broker.as_ref().unwrap().address().to_string();
    let settings = BTreeMap::from([("batch.size".to_owned(), "300".to_owned())]);
    let cluster = Cluster::new(&address, &settings).unwrap();
    let mut producer = TransactionalProducer::new(&cluster, "p", 1 << 20).unwrap();
    for (nth, error) in LEADER_ERRORS.into_iter().enumerate() {
        inject(&fixture, ApiKey::Produce, 2 + 3 * nth as u64, Fault::Error(error));
    }
    inject(&fixture, ApiKey::Produce, 12, Fault::DropReply);
    inject(&fixture, ApiKey::Produce, 15, Fault::DropReply);
    let sent: Vec<String> = (0..40).map(|at| format!("{at:02}")).collect();
    for key in &sent {
        producer.send(&record("a", key.as_bytes(), &noise(150))).unwrap();
    }
    producer.commit().unwrap();
    let mut found = Vec::new();
    let mut note = |record: trunkline_connector::RecordRef<'_>| {
        found.push(String::from_utf8(record.key().unwrap().to_vec()).unwrap());
        Ok(())
    };
    topic_reader::scan(&cluster, "a", &mut note).unwrap();
    assert_eq!(found, sent);
}

#[test]
fn requests_to_coordinators_are_repeated() {
    let (fixture, cluster) = start();
    let apis = [ApiKey::InitProducerId, ApiKey::AddPartitionsToTxn, ApiKey::EndTxn];
    for api in apis {
        for (nth, error) in COORDINATOR_ERRORS.into_iter().enumerate() {
            inject(&fixture, api, 1 + nth as u64, Fault::Error(error));
        }
        inject(&fixture, api, 4, Fault::DropReply);
    }
    let mut producer = TransactionalProducer::new(&cluster, "p", 1 << 20).unwrap();
    producer.send(&record("a", b"1", b"1")).unwrap();
    producer.commit().unwrap();
    assert_eq!(values(&cluster), ["1"]);
    producer.send(&record("a", b"2", b"2")).unwrap();
    producer.abort().unwrap();
    producer.send(&record("a", b"3", b"3")).unwrap();
    producer.commit().unwrap();
    assert_eq!(values(&cluster), ["1", "3"]);
}

/// The next sequence number is unknown: the producer needs a new epoch.
#[test]
fn a_producer_continues_after_it_aborted_a_transaction_whose_batches_may_be_stored() {
    let (fixture, cluster) = start();
    let mut producer = TransactionalProducer::new(&cluster, "p", 1 << 20).unwrap();
    producer.send(&record("a", b"first", b"1")).unwrap();
    producer.commit().unwrap();
    // A record that the topic refuses: its batch fails for good (INVALID_RECORD).
    inject(&fixture, ApiKey::Produce, 1, Fault::Error(87));
    producer.send(&record("a", b"refused", b"2")).unwrap();
    let error = producer.commit().unwrap_err();
    assert!(error.to_string().contains("not delivered to topic `a`"), "{error}");
    producer.abort().unwrap();
    producer.send(&record("a", b"last", b"3")).unwrap();
    producer.commit().unwrap();
    assert_eq!(values(&cluster), ["first", "last"]);
}

#[test]
fn a_replaced_producer_is_fenced_at_each_step() {
    let (_fixture, cluster) = start();
    let steps: [fn(&mut TransactionalProducer) -> trunkline_connector::Result<()>; 3] = [
        |producer| producer.commit(),
        |producer| producer.abort(),
        |producer| {
            // A record of another partition's batch needs the coordinator.
            producer.send(&record("a", b"2", b"2")).map_err(trunkline_connector::Error::from)?;
            producer.commit()
        },
    ];
    for step in steps {
        let mut old = TransactionalProducer::new(&cluster, "p", 1 << 20).unwrap();
        old.send(&record("a", b"old", &noise(2_000_000))).unwrap();
        old.send(&record("a", b"old", b"1")).unwrap();
        let mut new = TransactionalProducer::new(&cluster, "p", 1 << 20).unwrap();
        let error = step(&mut old).unwrap_err();
        assert_eq!((error.domain, error.code), (Domain::Fenced, "kafka.fenced"), "{error}");
        new.send(&record("a", b"new", b"1")).unwrap();
        new.commit().unwrap();
    }
    assert_eq!(values(&cluster), ["new"]);
}
