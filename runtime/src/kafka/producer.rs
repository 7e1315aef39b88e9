//! The transactional producer: the only way Trunkline writes to Kafka.
//!
//! `init_transactions` fences the earlier producer with the same transactional id (I4) and
//! completes its open transaction. A task that has a producer may therefore read its committed
//! state and continue from there.

use std::collections::HashMap;
use std::mem;
use std::time::{Duration, Instant};

use trunkline_connector::{Error, Result, Retry, TopicPartition, failpoint};

use super::client::Cluster;
use super::packed_headers::{LastPacked, pack};
use super::topic_limits::{Limit, MAX_RECORD_BYTES, SendError, check, is_larger_than};
use super::wire::produce::{Codec, GroupMetadata, SendBuffer, TransactionalClient};

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
    client: TransactionalClient,
    in_transaction: bool,
    bytes: usize,
    /// Limit on the bytes of unacknowledged records.
    max_in_flight_bytes: usize,
    /// Whether the client compresses at least as well as lz4.
    compresses: bool,
    batch_bytes: usize,
    /// The limits of the topics to which this producer sends large records.
    limits: HashMap<String, Option<Limit>>,
    /// The headers of the record that is being sent.
    packed: LastPacked,
}

/// Batches of less than this would compress worse.
const MIN_BATCH_BYTES: usize = 256 << 10;

/// Time for a group coordinator to accept offsets. It may be moving to another node.
const OFFSETS_LIMIT: Duration = Duration::from_secs(20);

/// A step is repeated for this long while the brokers do not answer. By then the broker has aborted
/// the transaction (`transaction.timeout.ms`), so waiting longer is useless.
const STEP_LIMIT: Duration = Duration::from_secs(45);

impl TransactionalProducer {
    /// Connects and fences the earlier producer with this id. `buffer_bytes` limits the bytes that
    /// wait to be sent (I6).
    pub fn new(cluster: &Cluster, transactional_id: &str, buffer_bytes: usize) -> Result<Self> {
        let settings = Settings::of(cluster, transactional_id);
        // A batch that is filled is not larger than what may wait to be sent: many pipelines share
        // the memory.
        let largest = buffer_bytes.max(MIN_BATCH_BYTES);
        let batch_bytes = cluster.limits().batch_bytes().min(settings.batch_bytes).min(largest);
        let buffer = SendBuffer::new(settings.codec, batch_bytes, settings.batch_records);
        failpoint!("producer.init.before")?;
        let client = TransactionalClient::new(
            cluster,
            (transactional_id, &settings.client_id),
            settings.transaction_timeout_ms,
            (buffer, batch_bytes),
            Instant::now() + STEP_LIMIT,
        )?;
        failpoint!("producer.init.after")?;
        Ok(Self {
            client,
            in_transaction: false,
            bytes: 0,
            max_in_flight_bytes: buffer_bytes,
            compresses: matches!(settings.codec, Codec::Lz4(_) | Codec::Zstd(_) | Codec::Gzip(_)),
            batch_bytes,
            limits: HashMap::new(),
            packed: LastPacked::default(),
        })
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
        self.in_transaction = true;
        let mut packed = mem::take(&mut self.packed);
        let record = ProducerRecord { headers: pack(record.headers, &mut packed), ..*record };
        let bytes = record.key.map_or(0, <[u8]>::len) + record.value.map_or(0, <[u8]>::len) + record.headers.len();
        let has_full_batch = self.client.append(&record);
        self.packed = packed;
        self.bytes += bytes;
        let is_full = self.client.buffered_bytes() > self.max_in_flight_bytes;
        if has_full_batch || is_full {
            self.make_room()?;
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
        let limit = self.client.cluster().limits().get(topic);
        if limit.is_some_and(|limit| limit.bytes < self.batch_bytes) {
            let message =
                format!("topic `{topic}` accepts less than a batch of this producer: a new producer is needed");
            return Err(Error::external("kafka.small_topic", message).retry(Retry::After(Duration::ZERO)));
        }
        self.limits.insert(topic.to_owned(), limit);
        Ok(limit)
    }

    /// Sends full batches. While the unacknowledged bytes exceed their limit, sends the larger ones
    /// of the other batches, too, and waits for acknowledgements.
    fn make_room(&mut self) -> Result<()> {
        let limit = self.max_in_flight_bytes;
        self.advance_until(|client| {
            let is_full = client.buffered_bytes() > limit;
            if is_full {
                client.seal_largest(limit / 2);
            }
            !is_full
        })
    }

    /// Sends batches and takes answers until `is_done`, at least once. Waits for answers in
    /// between.
    fn advance_until(&mut self, mut is_done: impl FnMut(&mut TransactionalClient) -> bool) -> Result<()> {
        let started = Instant::now();
        loop {
            let deadline = started.max(self.client.last_progress()) + STEP_LIMIT;
            self.client.advance(deadline)?;
            if is_done(&mut self.client) {
                return Ok(());
            }
            if Instant::now() >= deadline || self.client.cluster().connection().is_hopeless() {
                let message = "the brokers did not acknowledge the records of a transaction within 45 s";
                return Err(self.client.cluster().connection().explain(Error::external("kafka.unreachable", message)));
            }
            if !self.client.has_sendable() {
                self.client.wait(deadline.min(Instant::now() + LOOK_INTERVAL));
            }
        }
    }

    /// Adds consumer offsets to the open transaction; begins one if there is none (I2). Each item
    /// is a partition and the offset of the next record to read. The group's generation fences
    /// members that lost their partitions (KIP-447).
    pub fn send_offsets<'p>(
        &mut self,
        next_offsets: impl IntoIterator<Item = (&'p TopicPartition, i64)>,
        group: &GroupMetadata,
    ) -> Result<()> {
        let next_offsets: Vec<_> = next_offsets.into_iter().collect();
        self.in_transaction = true;
        failpoint!("producer.offsets.before")?;
        self.client.add_offsets(&next_offsets, group, Instant::now() + OFFSETS_LIMIT)?;
        failpoint!("producer.offsets.after")
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
        self.client.end(true, Instant::now() + STEP_LIMIT)?;
        self.reset_transaction();
        failpoint!("producer.commit.after")
    }

    /// Aborts the open transaction, if there is one.
    pub fn abort(&mut self) -> Result<()> {
        if !self.in_transaction {
            return Ok(());
        }
        failpoint!("producer.abort.before")?;
        self.client.end(false, Instant::now() + STEP_LIMIT)?;
        self.reset_transaction();
        failpoint!("producer.abort.after")
    }

    fn reset_transaction(&mut self) {
        self.in_transaction = false;
        self.bytes = 0;
    }

    /// Waits until every record is acknowledged.
    fn wait_for_delivery(&mut self) -> Result<()> {
        self.client.seal_all();
        self.advance_until(|client| client.is_delivered())
    }
}

/// Time between two looks at a connection that may be hopeless.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// The properties of a producer.
struct Settings {
    client_id: String,
    codec: Codec,
    batch_bytes: usize,
    batch_records: i32,
    transaction_timeout_ms: i32,
}

impl Settings {
    fn of(cluster: &Cluster, transactional_id: &str) -> Self {
        let config = cluster.config(&[
            // Brokers name it in their logs and quotas.
            ("client.id", transactional_id),
            // The open transaction of a dead task delays readers for at most this time.
            ("transaction.timeout.ms", "30000"),
        ]);
        // librdkafka has checked each value.
        let number = |name: &str, default: i32| config.get(name).and_then(|text| text.parse().ok()).unwrap_or(default);
        let codec = ["compression.type", "compression.codec"].iter().find_map(|name| config.get(name));
        Self {
            client_id: config.get("client.id").unwrap_or(transactional_id).to_owned(),
            codec: Codec::of(codec.unwrap_or("lz4"), number("compression.level", -1)),
            batch_bytes: usize::try_from(number("batch.size", i32::MAX)).unwrap_or(usize::MAX),
            batch_records: number("batch.num.messages", 10_000),
            transaction_timeout_ms: number("transaction.timeout.ms", 30_000),
        }
    }
}
