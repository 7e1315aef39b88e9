//! A bare Kafka client with the worker's settings: the limit of a worker's speed, and the load that
//! compares brokers.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::bindings;
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use trunkline_tests::{KafkaClient, Record};

pub(crate) const PARTITIONS: i32 = 4;
pub(crate) const COMMIT_INTERVAL: Duration = Duration::from_millis(200);
/// More than any measurement takes.
pub(crate) const LIMIT: Duration = Duration::from_secs(900);

/// An initialised transactional producer.
pub(crate) fn transactional_producer(brokers: &str, id: &str, more: &[(&str, &str)]) -> BaseProducer {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", brokers)
        .set("transactional.id", id)
        .set("acks", "all")
        .set("compression.type", "lz4")
        // Batches fill up, and `wait_for_delivery` flushes the last ones. With a short linger,
        // librdkafka's thread would spin (see the worker's producer).
        .set("linger.ms", "250")
        .set("batch.size", "1000000")
        .set("queue.buffering.max.messages", "500000");
    more.iter().for_each(|(key, value)| {
        config.set(*key, *value);
    });
    let producer: BaseProducer = config.create().unwrap();
    producer.init_transactions(LIMIT).unwrap();
    producer
}

/// Waits until all records are acknowledged, as the worker's producer does: librdkafka sends full
/// batches by itself, and the last ones are flushed. It does not use rdkafka's `flush`, which waits
/// in steps of 100 ms.
pub(crate) fn wait_for_delivery(producer: &BaseProducer) {
    /// Fewer records than a batch has.
    const REST: i32 = 3000;
    let (mut least, mut shrunk) = (i32::MAX, Instant::now());
    loop {
        let left = producer.in_flight_count();
        if left == 0 {
            return;
        }
        if left < least {
            (least, shrunk) = (left, Instant::now());
        }
        if left <= REST || shrunk.elapsed() > Duration::from_millis(10) {
            // SAFETY: the pointer is that of a client that is borrowed here.
            unsafe { bindings::rd_kafka_flush(producer.client().native_ptr(), 20) };
            producer.poll(Duration::ZERO);
        } else {
            pause(producer);
        }
    }
}

/// Waits without a poll, because a poll with a short timeout would spin.
fn pause(producer: &BaseProducer) {
    producer.poll(Duration::ZERO);
    std::thread::park_timeout(Duration::from_millis(1));
}

/// Passes a record to the producer, and waits while the queue is full.
pub(crate) fn send(producer: &BaseProducer, topic: &str, partition: i32, value: &[u8]) {
    send_record(producer, BaseRecord::to(topic).partition(partition).payload(value));
}

fn send_record(producer: &BaseProducer, mut record: BaseRecord<'_, [u8], [u8]>) {
    loop {
        match producer.send(record) {
            Ok(()) => return,
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), returned)) => {
                record = returned;
                pause(producer);
            }
            Err((error, _)) => panic!("{error}"),
        }
    }
}

/// Produces the records in transactions of 200 ms, a thousand at a time to each partition; returns
/// the elapsed time.
pub(crate) fn produce<'a>(producer: &BaseProducer, topic: &str, records: impl Iterator<Item = &'a [u8]>) -> Duration {
    let started = Instant::now();
    in_transactions(producer, records, |number, record| {
        send(producer, topic, (number / 1000) as i32 % PARTITIONS, record);
    });
    started.elapsed()
}

/// A record of a topic.
pub(crate) struct StoredRecord {
    partition: i32,
    key: Option<Vec<u8>>,
    pub(crate) value: Vec<u8>,
    headers: Vec<(String, Vec<u8>)>,
}

impl StoredRecord {
    /// A record without key and headers.
    pub(crate) fn new(partition: i32, value: Vec<u8>) -> Self {
        Self { partition, key: None, value, headers: Vec::new() }
    }

    /// The record with a key.
    pub(crate) fn with_key(self, key: impl Into<Vec<u8>>) -> Self {
        Self { key: Some(key.into()), ..self }
    }
}

/// All records of a topic.
pub(crate) fn load(kafka: &KafkaClient, topic: &str) -> Vec<StoredRecord> {
    let records = kafka.read(topic).into_iter();
    let stored = |record: Record| StoredRecord {
        partition: record.partition,
        key: record.key,
        value: record.value.unwrap_or_default(),
        headers: stored_headers(record.headers),
    };
    records.map(stored).collect()
}

/// The headers as they are in the topic: without those that the reader unpacked from `trunkline`.
fn stored_headers(headers: BTreeMap<String, Vec<u8>>) -> Vec<(String, Vec<u8>)> {
    let is_packed = headers.contains_key("trunkline");
    headers.into_iter().filter(|(name, _)| !is_packed || !name.starts_with("trunkline.")).collect()
}

/// Produces the same records to another topic; returns their number.
pub(crate) fn produce_copies<'a>(
    producer: &BaseProducer,
    topic: &str,
    records: impl Iterator<Item = &'a StoredRecord>,
) -> u64 {
    in_transactions(producer, records, |_, stored| {
        let mut headers = OwnedHeaders::new_with_capacity(stored.headers.len());
        for (key, value) in &stored.headers {
            headers = headers.insert(Header { key, value: Some(value) });
        }
        let record =
            BaseRecord::to(topic).partition(stored.partition).payload(stored.value.as_slice()).headers(headers);
        send_record(
            producer,
            match &stored.key {
                Some(key) => record.key(key.as_slice()),
                None => record,
            },
        );
    })
}

/// Produces small records to the partition 0 of a topic, each with the time that `time` gives for
/// its number, in milliseconds.
pub(crate) fn produce_timed(brokers: &str, topic: &str, records: u64, time: impl Fn(u64) -> i64) {
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("enable.idempotence", "true")
        .set("compression.type", "lz4")
        .set("linger.ms", "50")
        .set("batch.size", "1000000")
        .set("queue.buffering.max.messages", "500000")
        .create()
        .unwrap();
    for number in 0..records {
        let value = number.to_string();
        let record: BaseRecord<'_, [u8], [u8]> = BaseRecord::to(topic).partition(0);
        send_record(&producer, record.payload(value.as_bytes()).timestamp(time(number)));
        if number % 1000 == 0 {
            producer.poll(Duration::ZERO);
        }
    }
    wait_for_delivery(&producer);
}

fn in_transactions<T>(producer: &BaseProducer, items: impl Iterator<Item = T>, mut send: impl FnMut(usize, T)) -> u64 {
    let mut records = 0;
    producer.begin_transaction().unwrap();
    let mut begun = Instant::now();
    for (number, item) in items.enumerate() {
        send(number, item);
        records += 1;
        if number % 1000 == 0 {
            producer.poll(Duration::ZERO);
            if begun.elapsed() >= COMMIT_INTERVAL {
                wait_for_delivery(producer);
                producer.commit_transaction(LIMIT).unwrap();
                producer.begin_transaction().unwrap();
                begun = Instant::now();
            }
        }
    }
    wait_for_delivery(producer);
    producer.commit_transaction(LIMIT).unwrap();
    records
}

/// Repeats the items for a time.
pub(crate) fn repeat_for<T>(items: &[T], run: Duration) -> impl Iterator<Item = &T> {
    let started = Instant::now();
    items
        .iter()
        .cycle()
        .enumerate()
        .take_while(move |(number, _)| number % 1000 != 0 || started.elapsed() < run)
        .map(|(_, item)| item)
}

/// Deletes a topic after its measurement, to free its disk space.
pub(crate) fn delete_topic(brokers: &str, topic: &str) {
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", brokers).create().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let deleted = runtime.block_on(admin.delete_topics(&[topic], &AdminOptions::new())).unwrap();
    assert!(deleted.iter().all(Result::is_ok), "{deleted:?}");
}

/// A read_committed consumer.
pub(crate) fn consumer(brokers: &str, group: &str, more: &[(&str, &str)]) -> BaseConsumer {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", brokers)
        .set("group.id", group)
        .set("enable.auto.commit", "false")
        .set("isolation.level", "read_committed")
        .set("auto.offset.reset", "earliest")
        .set("enable.partition.eof", "true")
        .set("fetch.queue.backoff.ms", "5")
        .set("queued.min.messages", "400000");
    more.iter().for_each(|(key, value)| {
        config.set(*key, *value);
    });
    config.create().unwrap()
}

/// Assigns partitions of a topic to the consumer, from their beginning.
pub(crate) fn assign(consumer: &BaseConsumer, topic: &str, partitions: i32) {
    let mut assignment = TopicPartitionList::new();
    for partition in 0..partitions {
        assignment.add_partition_offset(topic, partition, Offset::Beginning).unwrap();
    }
    consumer.assign(&assignment).unwrap();
}

/// Reads a topic of `records` records to its end; returns the time since the first record, because
/// before it the client waits for its own timers.
pub(crate) fn consume(consumer: &BaseConsumer, topic: &str, records: u64) -> Duration {
    let metadata = consumer.fetch_metadata(Some(topic), LIMIT).unwrap();
    let partitions = metadata.topics()[0].partitions().len() as i32;
    let mut started = Instant::now();
    assign(consumer, topic, partitions);
    let mut queue = BatchQueue::of(consumer);
    let (mut count, mut open) = (0, partitions);
    while open > 0 {
        assert!(started.elapsed() < LIMIT, "{count} of {records} records");
        let batch = queue.next(Duration::from_millis(100));
        if count == 0 {
            started = Instant::now();
        }
        count += batch.records;
        open -= batch.ends;
    }
    assert_eq!(count, records);
    started.elapsed()
}

/// Reads a consumer's records in batches. One by one, the client's processor time per record would
/// hide the broker's.
struct BatchQueue<'a> {
    queue: *mut bindings::rd_kafka_queue_t,
    messages: Vec<*mut bindings::rd_kafka_message_t>,
    _consumer: &'a BaseConsumer,
}

/// The counts of a batch.
struct BatchCounts {
    records: u64,
    /// The number of partitions whose end was reached.
    ends: i32,
}

impl<'a> BatchQueue<'a> {
    const MAX_MESSAGES: usize = 10_000;

    fn of(consumer: &'a BaseConsumer) -> Self {
        // SAFETY: the handle is alive as long as the consumer.
        let queue = unsafe { bindings::rd_kafka_queue_get_consumer(consumer.client().native_ptr()) };
        assert!(!queue.is_null(), "not a consumer");
        Self { queue, messages: vec![std::ptr::null_mut(); Self::MAX_MESSAGES], _consumer: consumer }
    }

    fn next(&mut self, wait: Duration) -> BatchCounts {
        use bindings::rd_kafka_resp_err_t::{RD_KAFKA_RESP_ERR__PARTITION_EOF, RD_KAFKA_RESP_ERR_NO_ERROR};
        // SAFETY: this value owns the queue, and `messages` has room for MAX_MESSAGES pointers.
        let count = unsafe {
            bindings::rd_kafka_consume_batch_queue(
                self.queue,
                wait.as_millis() as i32,
                self.messages.as_mut_ptr(),
                Self::MAX_MESSAGES,
            )
        };
        let mut batch = BatchCounts { records: 0, ends: 0 };
        for message in &self.messages[..usize::try_from(count).expect("the queue is valid")] {
            // SAFETY: the first `count` pointers are messages; the caller owns them and destroys
            // each once.
            let error = unsafe {
                let error = (**message).err;
                bindings::rd_kafka_message_destroy(*message);
                error
            };
            match error {
                RD_KAFKA_RESP_ERR_NO_ERROR => batch.records += 1,
                RD_KAFKA_RESP_ERR__PARTITION_EOF => batch.ends += 1,
                error => panic!("{error:?}"),
            }
        }
        batch
    }
}

impl Drop for BatchQueue<'_> {
    fn drop(&mut self) {
        // SAFETY: this value owns the queue, and is dropped.
        unsafe { bindings::rd_kafka_queue_destroy(self.queue) };
    }
}
