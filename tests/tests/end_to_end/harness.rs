//! Kafka as the tests use it: what they take for granted of it, without a worker.

use std::time::Duration;

use rdkafka::config::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use trunkline_tests::{BusyWriter, Kafka, need, wait};

#[test]
fn readers_see_what_was_committed_also_after_a_crash() {
    let mut kafka = need!(Kafka::start());
    kafka.create_topic("harness", 1);
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", kafka.brokers())
        .set("transactional.id", "harness")
        .create()
        .unwrap();
    let limit = Duration::from_secs(60);
    producer.init_transactions(limit).unwrap();
    let send = |value: &str| producer.send(BaseRecord::<(), str>::to("harness").payload(value)).unwrap();
    let drain = || {
        wait::until("the broker acknowledges", limit, || {
            producer.poll(Duration::from_millis(1));
            (producer.in_flight_count() == 0).then_some(())
        });
    };

    producer.begin_transaction().unwrap();
    (0..50).for_each(|n| send(&format!("committed {n}")));
    drain();
    producer.commit_transaction(limit).unwrap();
    producer.begin_transaction().unwrap();
    (0..50).for_each(|n| send(&format!("aborted {n}")));
    drain();
    producer.abort_transaction(limit).unwrap();

    let values = || {
        let records = kafka.read("harness");
        let mut values = records
            .iter()
            .map(|record| String::from_utf8_lossy(record.value.as_ref().unwrap()).into_owned())
            .collect::<Vec<_>>();
        values.sort();
        values
    };
    let before = values();
    assert_eq!(before.len(), 50);
    assert!(before.iter().all(|value| value.starts_with("committed ")));
    assert_eq!(kafka.count("harness"), 50);
    assert_eq!(kafka.count("no-such-topic"), 0);

    kafka.kill9();
    kafka.restart();
    assert_eq!(kafka.count("harness"), 50);
    kafka.stop();
    kafka.restart();
    assert_eq!(kafka.count("harness"), 50);
}

#[test]
fn a_topic_that_is_written_to_all_the_time_can_be_read() {
    let kafka = need!(Kafka::shared());
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
