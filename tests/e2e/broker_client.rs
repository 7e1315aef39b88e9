//! The broker properties that the other tests rely on, without a worker.

use std::time::Duration;

use rdkafka::config::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use trunkline_tests::{BrokerKind, BusyWriter, Kafka, need, wait};

on_each_broker!(committed_records_survive_a_crash, a_topic_that_is_written_continuously_can_be_read);

fn committed_records_survive_a_crash(kind: BrokerKind) {
    let mut kafka = need!(Kafka::start_for_crashes(kind));
    kafka.create_topic("harness", 1);
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", kafka.brokers())
        .set("transactional.id", "harness")
        .create()
        .unwrap();
    let limit = Duration::from_secs(60);
    producer.init_transactions(limit).unwrap();
    let send = |value: &str| producer.send(BaseRecord::<(), str>::to("harness").payload(value)).unwrap();
    let wait_for_delivery = || {
        wait::until("the broker acknowledges", limit, || {
            producer.poll(Duration::from_millis(1));
            (producer.in_flight_count() == 0).then_some(())
        });
    };

    producer.begin_transaction().unwrap();
    (0..50).for_each(|n| send(&format!("committed {n}")));
    wait_for_delivery();
    producer.commit_transaction(limit).unwrap();
    producer.begin_transaction().unwrap();
    (0..50).for_each(|n| send(&format!("aborted {n}")));
    wait_for_delivery();
    producer.abort_transaction(limit).unwrap();

    let records = kafka.read("harness");
    assert_eq!(records.len(), 50);
    assert!(records.iter().all(|record| record.value.as_ref().unwrap().starts_with(b"committed ")));
    assert_eq!(kafka.count("harness"), 50);
    assert_eq!(kafka.count("no-such-topic"), 0);

    kafka.kill9();
    kafka.restart();
    assert_eq!(kafka.count("harness"), 50);
    kafka.stop();
    kafka.restart();
    assert_eq!(kafka.count("harness"), 50);
}

fn a_topic_that_is_written_continuously_can_be_read(kind: BrokerKind) {
    let kafka = need!(Kafka::shared(kind));
    let topic = "harness-busy";
    kafka.create_topic(topic, 1);
    let _busy = BusyWriter::start(kafka, topic, 1);
    let mut seen = 0;
    while seen < 100 {
        let count = kafka.count(topic);
        assert!(count >= seen, "{count} records after {seen}");
        seen = count;
    }
}
