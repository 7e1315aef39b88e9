//! A topic that is written to continuously.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rdkafka::config::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

use crate::{KafkaClient, wait};

/// Writes a record to each partition of a topic every few milliseconds, until it is dropped.
///
/// A reader of such a topic receives no end-of-partition event: librdkafka sends one when a fetch
/// returns no records, and here each fetch returns some.
pub struct BusyWriter {
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl BusyWriter {
    /// Starts writing; returns when the first records are acknowledged.
    pub fn start(kafka: &KafkaClient, topic: &str, partitions: i32) -> Self {
        let producer: BaseProducer =
            ClientConfig::new().set("bootstrap.servers", kafka.brokers()).set("linger.ms", "0").create().unwrap();
        let topic = topic.to_owned();
        let write = move || {
            for partition in 0..partitions {
                let record = BaseRecord::<str, str>::to(&topic).partition(partition).key("busy").payload("record");
                producer.send(record).unwrap();
            }
            wait::until("the records are acknowledged", Duration::from_secs(60), || {
                producer.poll(Duration::from_millis(1));
                (producer.in_flight_count() == 0).then_some(())
            });
        };
        write();
        let is_over = Arc::new(AtomicBool::new(false));
        let over = is_over.clone();
        let thread = std::thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                write();
            }
        });
        Self { is_over, thread: Some(thread) }
    }
}

impl Drop for BusyWriter {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let outcome = thread.join();
            // A failing test must keep its own message.
            assert!(outcome.is_ok() || std::thread::panicking(), "the writer failed");
        }
    }
}
