//! The transactional producer: the only way Trunkline writes to Kafka.
//!
//! `init_transactions` fences the earlier producer with the same transactional id (I4) and
//! completes its open transaction. A task that has a producer may therefore read its committed
//! state and continue from there.

use std::collections::HashMap;
use std::mem;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::consumer::ConsumerGroupMetadata;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, Producer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use trunkline_connector::{Error, Result, Retry, TopicPartition, failpoint};

use super::client::{Cluster, close_in_background};
use super::delivery::{DeliveryContext, check_delivery, failed, poll};
use super::enqueue::TopicHandles;
use super::flush::FlushSchedule;
use super::logins::LoginLease;
use super::packed_headers::pack;
use super::topic_limits::{BATCH_BYTES, Limit, MAX_RECORD_BYTES, SendError, check, is_larger_than};

/// A record to be written to a topic.
pub struct ProducerRecord<'a> {
    /// The topic.
    pub topic: &'a str,
    /// The partition. Trunkline always chooses it, because order depends on it (I5).
    pub partition: i32,
    /// Milliseconds since the epoch; `None` = now.
    pub timestamp: Option<i64>,
    /// The key.
    pub key: Option<&'a [u8]>,
    /// The value; `None` = tombstone.
    pub value: Option<&'a [u8]>,
    /// Headers as a batch encodes them. Those of Trunkline become one header.
    pub headers: &'a [u8],
    /// Further headers.
    pub more_headers: &'a [(&'a str, &'a [u8])],
}

/// A producer with a transactional id, initialised.
pub struct TransactionalProducer {
    /// Dropped before the client.
    _login: LoginLease,
    /// Dropped before the client.
    topics: TopicHandles,
    producer: Arc<BaseProducer<DeliveryContext>>,
    in_transaction: bool,
    /// A call into the client has not returned in time: the client cannot be used any more.
    abandoned: bool,
    bytes: usize,
    records: usize,
    /// Limit on unacknowledged bytes.
    max_in_flight_bytes: usize,
    /// Bytes sent since the limit was last checked.
    bytes_since_check: usize,
    flush: FlushSchedule,
    /// When the last transaction ended.
    last_end: Option<Instant>,
    /// Whether the client compresses at least as well as lz4.
    compresses: bool,
    batch_bytes: usize,
    /// The limits of the topics to which this producer sends large records.
    limits: HashMap<String, Option<Limit>>,
    /// The headers of the record that is being sent.
    packed: Vec<u8>,
}

/// Time that one attempt of a step waits for the brokers.
const STEP_TIMEOUT: Duration = Duration::from_secs(5);

/// Room for the encoding of the largest record: librdkafka aborts the process when a batch exceeds
/// its limit.
const ENCODING_BYTES: usize = 1 << 20;

/// Time between two looks at the client's events during a step.
const SERVE_INTERVAL: Duration = Duration::from_millis(100);

/// Events that are served before a transaction begins, and after an error.
const EVENTS_AT_ONCE: usize = 8;

/// Minimum time between the end of a transaction and the begin of the next. The broker completes
/// the old one after it has answered, and until then refuses the first request of the new one,
/// which librdkafka repeats only after 20 ms.
const MIN_TXN_GAP: Duration = Duration::from_millis(2);

/// Time for a group coordinator to accept offsets. It may be moving to another node.
const OFFSETS_LIMIT: Duration = Duration::from_secs(20);

/// Time for a transaction coordinator to begin or end a transaction. It exceeds [`STEP_LIMIT`],
/// because it applies only to a client whose call does not return.
const END_LIMIT: Duration = Duration::from_secs(60);

/// A step is repeated for this long while the brokers do not answer. By then the broker has aborted
/// the transaction (`transaction.timeout.ms`), so waiting longer is useless.
const STEP_LIMIT: Duration = Duration::from_secs(45);

impl TransactionalProducer {
    /// Connects, by looking up an existing `topic`, and fences the earlier producer with this id.
    /// `buffer_bytes` limits the bytes that wait to be sent (I6).
    pub fn new(cluster: &Cluster, transactional_id: &str, topic: &str, buffer_bytes: usize) -> Result<Self> {
        // With room for little more than a batch, one full batch is sent without a flush, and the
        // rest waits for one (`FlushSchedule`).
        let max_in_flight_bytes =
            if buffer_bytes < 2 * BATCH_BYTES { buffer_bytes.min(BATCH_BYTES / 10 * 9) } else { buffer_bytes };
        let batch_bytes = cluster.limits().batch_bytes();
        let config = producer_config(cluster, transactional_id, max_in_flight_bytes, batch_bytes);
        // The user may have chosen another codec.
        let compresses = matches!(config.get("compression.type"), Some("lz4" | "zstd" | "gzip"));
        let context = DeliveryContext::new(cluster, &config, batch_bytes);
        let producer: BaseProducer<DeliveryContext> = cluster.create(&config, context)?;
        // SAFETY: the lease is dropped before the client.
        let login = unsafe { cluster.attach_login(producer.client().native_ptr()) };
        let mut this = Self {
            _login: login,
            topics: TopicHandles::default(),
            producer: Arc::new(producer),
            in_transaction: false,
            abandoned: false,
            bytes: 0,
            records: 0,
            max_in_flight_bytes,
            bytes_since_check: 0,
            flush: FlushSchedule::new(),
            last_end: None,
            compresses,
            batch_bytes,
            limits: HashMap::new(),
            packed: Vec::new(),
        };
        this.connect(topic);
        failpoint!("producer.init.before")?;
        let doing = format!("initialising the transactional id `{transactional_id}`");
        this.call_with_deadline(&doing, END_LIMIT, |producer| producer.init_transactions(STEP_TIMEOUT))?;
        failpoint!("producer.init.after")?;
        Ok(this)
    }

    /// Waits for a connection. `init_transactions` looks for the coordinator at once, and without a
    /// connection again only after 500 ms. The second look-up is needed because the first answer
    /// makes the client replace the configured address by the one that the broker advertises.
    fn connect(&mut self, topic: &str) {
        let topic = topic.to_owned();
        let look_up = move |producer: &BaseProducer<DeliveryContext>| {
            let client = producer.client();
            client.fetch_metadata(Some(&topic), STEP_TIMEOUT)?;
            client.fetch_metadata(Some(&topic), STEP_TIMEOUT).map(drop)
        };
        // A failure here also fails the next step, which reports it.
        let _ = self.call_with_deadline("connecting", END_LIMIT, look_up);
    }

    /// Closes the client, without waiting for it.
    pub fn close(self) {
        drop(close_in_background(self));
    }

    /// Bytes sent in the open transaction.
    pub fn transaction_bytes(&self) -> usize {
        self.bytes
    }

    /// Whether a transaction is open.
    pub fn in_transaction(&self) -> bool {
        self.in_transaction
    }

    /// Sends a record in the open transaction; begins one if there is none. Waits while the send
    /// buffer is full. A record that is too large for its topic is refused before anything is sent,
    /// and the transaction can continue without it.
    pub fn send(&mut self, record: &ProducerRecord<'_>) -> Result<(), SendError> {
        self.check(record)?;
        self.begin()?;
        if self.bytes_since_check >= self.max_in_flight_bytes / 8 {
            self.bytes_since_check = 0;
            self.wait_for_room()?;
        }
        let mut packed = mem::take(&mut self.packed);
        let sent = self.enqueue(&ProducerRecord { headers: pack(record.headers, &mut packed), ..*record });
        self.packed = packed;
        sent?;
        let bytes = record.key.map_or(0, <[u8]>::len) + record.value.map_or(0, <[u8]>::len) + record.headers.len();
        self.bytes += bytes;
        self.bytes_since_check += bytes;
        self.records += 1;
        self.flush.note_sent();
        if self.records.is_multiple_of(1024) {
            poll(&self.producer, Duration::ZERO);
            self.check_delivery()?;
        }
        Ok(())
    }

    /// Checks that a record is not too large for its topic.
    pub fn check(&mut self, record: &ProducerRecord<'_>) -> Result<(), SendError> {
        if is_larger_than(record, self.batch_bytes) {
            check(record, self.limit_of(record.topic)?, self.compresses).map_err(SendError::TooLarge)?;
        }
        Ok(())
    }

    /// The size of the largest record that a topic accepts: key, value, headers and their encoding.
    /// A record whose size is at most this is never refused, however badly it compresses.
    pub fn max_record_bytes(&mut self, topic: &str) -> Result<usize> {
        Ok(self.limit_of(topic)?.map_or(MAX_RECORD_BYTES, |limit| limit.bytes.min(MAX_RECORD_BYTES)))
    }

    /// The limit of a topic. Fails if this producer's batches are too large for the topic: the
    /// stage starts over, and its new producer has smaller ones.
    fn limit_of(&mut self, topic: &str) -> Result<Option<Limit>> {
        if let Some(limit) = self.limits.get(topic) {
            return Ok(*limit);
        }
        let limit = self.cluster().limits().get(topic);
        if limit.is_some_and(|limit| limit.bytes < self.batch_bytes) {
            let message =
                format!("topic `{topic}` accepts less than a batch of this producer: a new producer is needed");
            return Err(Error::external("kafka.small_topic", message).retry(Retry::After(Duration::ZERO)));
        }
        self.limits.insert(topic.to_owned(), limit);
        Ok(limit)
    }

    /// Passes a record to the client, and waits while the client's queue is full.
    fn enqueue(&mut self, record: &ProducerRecord<'_>) -> Result<()> {
        let mut full_since = None;
        loop {
            // SAFETY: the client lives as long as `self`.
            match unsafe { self.topics.enqueue(self.producer.client().native_ptr(), record) } {
                Ok(()) => return Ok(()),
                Err(KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull))
                    if full_since.get_or_insert_with(Instant::now).elapsed() < STEP_LIMIT =>
                {
                    self.flush.note_in_flight(self.in_flight());
                    let since = *full_since.get_or_insert_with(Instant::now);
                    self.flush_or_wait(self.flush.for_room(), room_poll_interval(since));
                    self.check_delivery()?;
                }
                Err(error) => {
                    // The reason of a failed transaction waits in the client's queue.
                    (0..EVENTS_AT_ONCE).for_each(|_| poll(&self.producer, Duration::ZERO));
                    return Err(self.failed(&format!("sending to topic `{}`", record.topic), &error));
                }
            }
        }
    }

    /// Adds consumer offsets to the open transaction; begins one if there is none (I2). Each item
    /// is a partition and the offset of the next record to read. The group's generation fences
    /// members that lost their partitions (KIP-447).
    pub fn send_offsets<'p>(
        &mut self,
        next_offsets: impl IntoIterator<Item = (&'p TopicPartition, i64)>,
        group: ConsumerGroupMetadata,
    ) -> Result<()> {
        let mut offsets = TopicPartitionList::new();
        for (partition, next) in next_offsets {
            offsets
                .add_partition_offset(&partition.topic, partition.partition, Offset::Offset(next))
                .map_err(|error| Error::internal("kafka.offsets", format!("{next} is not an offset: {error}")))?;
        }
        self.begin()?;
        failpoint!("producer.offsets.before")?;
        self.call_with_deadline("committing consumer offsets in a transaction", OFFSETS_LIMIT, move |producer| {
            producer.send_offsets_to_transaction(&offsets, &group, STEP_TIMEOUT)
        })?;
        failpoint!("producer.offsets.after")
    }

    /// Runs a step, repeated while it is retriable, in a separate thread, and abandons it after
    /// `limit`. librdkafka 2.12 ignores its timeout in some cases and waits forever if a
    /// coordinator is removed from the cluster's metadata meanwhile (librdkafka issues 5456 and
    /// 5511). Every later call of an abandoned producer fails. The stage starts over with a new
    /// producer, which completes the transaction.
    fn call_with_deadline(
        &mut self,
        doing: &str,
        limit: Duration,
        mut step: impl FnMut(&BaseProducer<DeliveryContext>) -> Result<(), KafkaError> + Send + 'static,
    ) -> Result<()> {
        let producer = self.producer.clone();
        let (sender, outcome) = sync_channel(1);
        let context = doing.to_owned();
        let call = move || {
            let outcome = retry(&producer, &context, || step(&producer));
            // Before the outcome is sent: the last reference closes the client, which takes time.
            drop(producer);
            // Without a receiver, the call took too long.
            let _ = sender.send(outcome);
        };
        std::thread::Builder::new()
            .name("kafka-step".to_owned())
            .spawn(call)
            .map_err(|error| Error::external("kafka.thread", format!("cannot start a thread: {error}")))?;
        let started = Instant::now();
        loop {
            match outcome.recv_timeout(SERVE_INTERVAL) {
                Ok(outcome) => return outcome,
                // The reason of a failed connection waits in the client's queue.
                Err(_) => poll(&self.producer, Duration::ZERO),
            }
            if started.elapsed() > limit {
                self.abandoned = true;
                let message = format!("{doing}: the coordinator did not answer in time; a new producer is needed");
                return Err(self.cluster().connection().explain(Error::external("kafka.stuck", message)));
            }
        }
    }

    fn cluster(&self) -> &Cluster {
        self.producer.context().cluster()
    }

    /// Commits the open transaction, if there is one. After an error the transaction is aborted or
    /// will be, and none of its records becomes visible.
    pub fn commit(&mut self) -> Result<()> {
        if !self.in_transaction {
            return Ok(());
        }
        failpoint!("producer.commit.before")?;
        self.wait_for_delivery()?;
        failpoint!("producer.commit.delivered")?;
        self.call_with_deadline("committing a transaction", END_LIMIT, |producer| {
            producer.commit_transaction(STEP_TIMEOUT)
        })?;
        self.reset_transaction();
        failpoint!("producer.commit.after")
    }

    /// Aborts the open transaction, if there is one.
    pub fn abort(&mut self) -> Result<()> {
        if !self.in_transaction {
            return Ok(());
        }
        if self.abandoned {
            return Err(Error::external("kafka.stuck", "the producer was abandoned after a call did not return"));
        }
        failpoint!("producer.abort.before")?;
        self.call_with_deadline("aborting a transaction", END_LIMIT, |producer| {
            producer.abort_transaction(STEP_TIMEOUT)
        })?;
        self.reset_transaction();
        failpoint!("producer.abort.after")
    }

    fn begin(&mut self) -> Result<()> {
        if !self.in_transaction {
            if let Some(left) = self.last_end.and_then(|at| MIN_TXN_GAP.checked_sub(at.elapsed())) {
                std::thread::park_timeout(left);
            }
            // The client was not polled since the last transaction and may have lost its brokers.
            // Each call serves one event.
            (0..EVENTS_AT_ONCE).for_each(|_| poll(&self.producer, Duration::ZERO));
            self.producer.begin_transaction().map_err(|error| self.failed("beginning a transaction", &error))?;
            self.in_transaction = true;
        }
        Ok(())
    }

    fn reset_transaction(&mut self) {
        self.in_transaction = false;
        self.last_end = Some(Instant::now());
        self.bytes = 0;
        self.records = 0;
        self.producer.context().reset();
    }

    /// Waits until the unacknowledged bytes are within their limit, estimated from the mean size of
    /// records.
    fn wait_for_room(&mut self) -> Result<()> {
        let mean = self.bytes / self.records.max(1);
        let started = Instant::now();
        loop {
            let in_flight = self.in_flight();
            self.flush.note_in_flight(in_flight);
            if in_flight * mean <= self.max_in_flight_bytes || in_flight <= 1 {
                return Ok(());
            }
            self.flush_or_wait(self.flush.for_room(), room_poll_interval(started));
            self.check_delivery()?;
            if started.elapsed() > STEP_LIMIT {
                return Err(unacknowledged());
            }
        }
    }

    /// Waits until every record is acknowledged. Committing would wait too, but in steps of 100 ms.
    fn wait_for_delivery(&mut self) -> Result<()> {
        let started = Instant::now();
        loop {
            let in_flight = self.in_flight();
            self.flush.note_in_flight(in_flight);
            if in_flight == 0 {
                return self.check_delivery();
            }
            self.flush_or_wait(self.flush.for_commit(), commit_poll_interval(started));
            if started.elapsed() > STEP_LIMIT {
                return Err(unacknowledged());
            }
        }
    }

    /// Number of unacknowledged records.
    fn in_flight(&self) -> usize {
        usize::try_from(self.producer.in_flight_count()).unwrap_or(0)
    }

    /// Flushes for some milliseconds, or waits without flushing.
    fn flush_or_wait(&mut self, flush: Option<i32>, wait: Duration) {
        if let Some(milliseconds) = flush {
            // SAFETY: the pointer is the client's, which lives as long as `self`. Any thread may
            // make the call.
            unsafe { rdkafka::bindings::rd_kafka_flush(self.producer.client().native_ptr(), milliseconds) };
            self.flush.note_flush();
        } else {
            // A poll with a short timeout would spin: rdkafka calls the client again and again
            // during the last fraction of a millisecond.
            std::thread::park_timeout(wait);
        }
        poll(&self.producer, Duration::ZERO);
    }

    fn check_delivery(&self) -> Result<()> {
        check_delivery(&self.producer)
    }

    fn failed(&self, doing: &str, error: &KafkaError) -> Error {
        failed(&self.producer, doing, error)
    }
}

fn producer_config(
    cluster: &Cluster,
    transactional_id: &str,
    max_in_flight_bytes: usize,
    batch_bytes: usize,
) -> ClientConfig {
    // librdkafka never accepts a record that is larger than its buffer. `send` therefore keeps the
    // limit itself.
    let buffer = ((max_in_flight_bytes + 2 * MAX_RECORD_BYTES) / 1024).to_string();
    let mut config = cluster.config(&[
        // Brokers name it in their logs and quotas.
        ("client.id", transactional_id),
        ("compression.type", "lz4"),
        // Full batches are sent at once; a commit or a full send buffer flushes the rest
        // (`TransactionalProducer::flush_or_wait`). A short time would not make a record visible
        // earlier, because readers see it after the commit. But librdkafka's thread spins while a
        // request is in flight and the queued records are older than this: more than half of its
        // processor time with a slow broker, and every processor of the machine with a hundred such
        // producers.
        ("linger.ms", "10000"),
        ("batch.size", &batch_bytes.to_string()),
        ("batch.num.messages", "10000"),
        ("message.max.bytes", &(MAX_RECORD_BYTES + ENCODING_BYTES).to_string()),
        ("queue.buffering.max.kbytes", &buffer),
        ("queue.buffering.max.messages", "500000"),
        // A report for each delivered record costs a tenth of the processor time, and only the
        // commit matters.
        ("delivery.report.only.error", "true"),
        // The open transaction of a dead task delays readers for at most this time.
        ("transaction.timeout.ms", "30000"),
    ]);
    config.set("transactional.id", transactional_id).set("acks", "all").set("enable.idempotence", "true");
    config
}

/// Time between two checks for room in the send buffer. It grows with the wait, because a hundred
/// waiting producers would keep a busy machine busy. The rest of the buffer is being sent
/// meanwhile.
fn room_poll_interval(since: Instant) -> Duration {
    (since.elapsed() / 2).clamp(Duration::from_millis(1), Duration::from_millis(20))
}

/// Time between two checks before a commit, which readers wait for.
fn commit_poll_interval(since: Instant) -> Duration {
    (since.elapsed() / 8).clamp(Duration::from_millis(1), Duration::from_millis(10))
}

fn unacknowledged() -> Error {
    Error::external("kafka.unreachable", "the brokers did not acknowledge the records of a transaction within 45 s")
}

/// Repeats a step while its error is retriable.
fn retry(
    producer: &BaseProducer<DeliveryContext>,
    doing: &str,
    mut step: impl FnMut() -> Result<(), KafkaError>,
) -> Result<()> {
    let started = Instant::now();
    loop {
        match step() {
            Ok(()) => return Ok(()),
            Err(KafkaError::Transaction(inner))
                if inner.is_retriable()
                    && started.elapsed() < STEP_LIMIT
                    && !producer.context().cluster().connection().is_hopeless() =>
            {
                // Also serves delivery reports, which the step may be waiting for.
                poll(producer, Duration::from_millis(20));
            }
            Err(error) => return Err(failed(producer, doing, &error)),
        }
    }
}
