//! Reads topics outside of any group: all records of a topic or a range, single records, and the
//! ends of partitions.
//!
//! The markers of a transaction reach its partitions one by one, so the last stable offset of one
//! partition may lag behind a commit that another partition already shows. A reader therefore waits
//! until every transaction up to the high watermark that it saw at its start is completed.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Headers as _, Message};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use trunkline_connector::{Batch, Error, RecordRef, Result, TopicPartition};

use super::client::{CALL_TIMEOUT, ClientLog, Cluster, close_in_background};
use super::logins::LoginLease;
use super::packed_headers::{PACKED, unpack};

/// A read waits this long for open transactions: longer than `transaction.timeout.ms` of our
/// producers.
const COMPLETION_LIMIT: Duration = Duration::from_secs(60);

/// Time that one poll waits for records.
const POLL: Duration = Duration::from_millis(100);

/// The ends of a topic's partitions, by their numbers; none if the topic does not exist.
pub fn ends(cluster: &Cluster, topic: &str) -> Result<Vec<i64>> {
    let reader = Reader::new(cluster, "read_uncommitted")?;
    let mut partitions = reader.partitions_of(topic)?;
    partitions.sort_unstable();
    partitions.into_iter().map(|partition| Ok(reader.watermarks(topic, partition)?.1)).collect()
}

/// The id of the Kafka cluster.
pub fn cluster_id(cluster: &Cluster) -> Result<Option<String>> {
    let reader = Reader::new(cluster, "read_committed")?;
    Ok(reader.consumer.client().fetch_cluster_id(CALL_TIMEOUT))
}

/// Passes the committed records of a topic that exist now, partition by partition, in order.
pub fn scan(cluster: &Cluster, topic: &str, each: &mut dyn FnMut(RecordRef<'_>) -> Result<()>) -> Result<()> {
    for (partition, end) in (0..).zip(ends(cluster, topic)?) {
        scan_range(cluster, topic, partition, (0, end), each)?;
    }
    Ok(())
}

/// Passes the committed records of a partition in a range of offsets, in order.
pub fn scan_range(
    cluster: &Cluster,
    topic: &str,
    partition: i32,
    (from, end): (i64, i64),
    each: &mut dyn FnMut(RecordRef<'_>) -> Result<()>,
) -> Result<()> {
    scan_range_until(cluster, topic, partition, (from, end), &mut |record| {
        each(record)?;
        Ok(ControlFlow::Continue(()))
    })
}

/// The same, until `each` breaks.
pub fn scan_range_until(
    cluster: &Cluster,
    topic: &str,
    partition: i32,
    (from, end): (i64, i64),
    each: &mut dyn FnMut(RecordRef<'_>) -> Result<ControlFlow<()>>,
) -> Result<()> {
    let reader = Reader::new(cluster, "read_committed")?;
    reader.scan(topic, partition, (from, end), each)
}

/// Reads whole partitions, one after the other, with the same clients.
pub struct PartitionScanner {
    committed: Reader,
    /// For the ends of partitions: it sees open transactions.
    uncommitted: Reader,
}

impl PartitionScanner {
    /// Connects when it is first used.
    pub fn new(cluster: &Cluster) -> Result<Self> {
        let reader = |isolation| Reader::new(cluster, isolation);
        Ok(Self { committed: reader("read_committed")?, uncommitted: reader("read_uncommitted")? })
    }

    /// The partitions of a topic; none if it does not exist.
    pub fn partitions_of(&self, topic: &str) -> Result<Vec<i32>> {
        self.committed.partitions_of(topic)
    }

    /// The first offset and the end of a partition, with open transactions; `None` if it does not
    /// exist.
    pub fn bounds(&self, topic: &str, partition: i32) -> Result<Option<(i64, i64)>> {
        if !self.partitions_of(topic)?.contains(&partition) {
            return Ok(None);
        }
        self.uncommitted.watermarks(topic, partition).map(Some)
    }

    /// Passes the committed records of a partition in a range of offsets, in order. Waits for open
    /// transactions before the end.
    pub fn scan_range(
        &self,
        topic: &str,
        partition: i32,
        range: (i64, i64),
        each: &mut dyn FnMut(RecordRef<'_>) -> Result<()>,
    ) -> Result<()> {
        self.committed.scan(topic, partition, range, &mut |record| {
            each(record)?;
            Ok(ControlFlow::Continue(()))
        })
    }

    /// Passes the committed records that a partition has now, in order. Returns the offset after
    /// them; `None` if the partition does not exist.
    pub fn scan(
        &self,
        topic: &str,
        partition: i32,
        each: &mut dyn FnMut(RecordRef<'_>) -> Result<()>,
    ) -> Result<Option<i64>> {
        let Some((_, end)) = self.bounds(topic, partition)? else { return Ok(None) };
        self.scan_range(topic, partition, (0, end), each)?;
        Ok(Some(end))
    }

    /// Closes the clients. A starting stage need not wait for this.
    pub fn close(self) {
        let _ = close_in_background(self);
    }
}

/// Adds a message to a batch.
fn copy(message: &BorrowedMessage<'_>, batch: &mut Batch) {
    let topic = batch.topic_index(message.topic());
    let mut record = batch.record();
    record.read_from(topic, message.partition(), message.offset());
    if let Some(timestamp) = message.timestamp().to_millis() {
        record.timestamp(timestamp);
    }
    if let Some(key) = message.key() {
        record.key(key);
    }
    if let Some(value) = message.payload() {
        record.value(value);
    }
    for header in message.headers().into_iter().flat_map(|headers| headers.iter()) {
        match header.value {
            Some(value) if header.key == PACKED && record.header_block_with(|block| unpack(value, block)) => {}
            value => {
                record.header(header.key, value);
            }
        }
    }
    record.finish();
}

/// Follows partitions from their offsets on.
pub struct Tail {
    reader: Reader,
}

/// What a [`Tail`] has seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tailed {
    /// A record at this offset.
    Record(i64),
    /// All committed records of one of the partitions have been read.
    End,
    /// Nothing within the time.
    Nothing,
}

impl Tail {
    /// Starts at these offsets.
    pub fn new(cluster: &Cluster, starts: &BTreeMap<TopicPartition, i64>) -> Result<Self> {
        let reader = Reader::with_wait(cluster, "read_committed", "200")?;
        let mut assignment = TopicPartitionList::with_capacity(starts.len());
        let failed = |error: KafkaError| reader.failed("reading topics", &error);
        for (partition, start) in starts {
            let added = assignment.add_partition_offset(&partition.topic, partition.partition, Offset::Offset(*start));
            added.map_err(failed)?;
        }
        reader.consumer.assign(&assignment).map_err(failed)?;
        Ok(Self { reader })
    }

    /// Waits at most this long, and passes on the next record.
    pub fn next(&self, wait: Duration, each: impl FnOnce(RecordRef<'_>)) -> Result<Tailed> {
        match self.reader.consumer.poll(wait) {
            Some(Ok(message)) => {
                let mut batch = Batch::default();
                copy(&message, &mut batch);
                each(batch.get(0));
                Ok(Tailed::Record(message.offset()))
            }
            Some(Err(error)) if is_denied(&error) => Err(self.reader.failed("reading topics", &error)),
            Some(Err(KafkaError::PartitionEOF(_))) => Ok(Tailed::End),
            Some(Err(error)) => {
                tracing::debug!(%error, "reading continues after an error");
                Ok(Tailed::Nothing)
            }
            None => Ok(Tailed::Nothing),
        }
    }
}

/// Reads single records by their offsets.
pub struct RecordReader {
    reader: Reader,
}

impl RecordReader {
    /// Connects when it is first used.
    pub fn new(cluster: &Cluster) -> Result<Self> {
        Ok(Self { reader: Reader::new(cluster, "read_committed")? })
    }

    /// Passes on the record at an offset. `false` if there is none, or no longer.
    pub fn read(&self, topic: &str, partition: i32, offset: i64, each: impl FnOnce(RecordRef<'_>)) -> Result<bool> {
        let (low, high) = self.reader.watermarks(topic, partition)?;
        if !(low..high).contains(&offset) {
            return Ok(false);
        }
        self.reader.assign(topic, partition, offset)?;
        let started = Instant::now();
        while started.elapsed() < CALL_TIMEOUT {
            match self.reader.consumer.poll(POLL) {
                Some(Ok(message)) if message.offset() == offset => {
                    let mut batch = Batch::default();
                    copy(&message, &mut batch);
                    each(batch.get(0));
                    return Ok(true);
                }
                Some(Ok(_) | Err(KafkaError::PartitionEOF(_))) => return Ok(false),
                Some(Err(error)) if is_denied(&error) => {
                    return Err(self.reader.failed(&format!("reading topic `{topic}`"), &error));
                }
                Some(Err(error)) => tracing::debug!(%error, topic, "reading continues after an error"),
                None => {}
            }
        }
        let message =
            format!("the record at offset {offset} of topic `{topic}` partition {partition} could not be read");
        Err(Error::external("kafka.unreachable", message))
    }
}

/// Reads the ends of partitions. The end offset alone does not show whether records are left:
/// markers of transactions and aborted records have offsets too.
pub struct EndProbe {
    committed: Reader,
    uncommitted: Reader,
}

impl EndProbe {
    /// Connects when it is first used.
    pub fn new(cluster: &Cluster) -> Result<Self> {
        let reader = |isolation| Reader::new(cluster, isolation);
        Ok(Self { committed: reader("read_committed")?, uncommitted: reader("read_uncommitted")? })
    }

    /// The high watermark: every record written so far, committed or not, lies before it.
    pub fn high(&self, topic: &str, partition: i32) -> Result<i64> {
        Ok(self.uncommitted.watermarks(topic, partition)?.1)
    }

    /// Whether every transaction before `target` is completed and no record is left to read from
    /// `offset` to `target`.
    pub fn is_drained(&self, topic: &str, partition: i32, offset: i64, target: i64) -> Result<bool> {
        let (low, stable) = self.committed.watermarks(topic, partition)?;
        let from = offset.max(low);
        if stable < target || from >= target {
            return Ok(from >= target);
        }
        self.committed.assign(topic, partition, from)?;
        let started = Instant::now();
        while started.elapsed() < CALL_TIMEOUT {
            match self.committed.consumer.poll(POLL) {
                Some(Ok(message)) => return Ok(message.offset() >= target),
                Some(Err(KafkaError::PartitionEOF(_))) => return Ok(true),
                Some(Err(error)) if is_denied(&error) => {
                    return Err(self.committed.failed(&format!("reading topic `{topic}`"), &error));
                }
                Some(Err(error)) => tracing::debug!(%error, topic, "reading continues after an error"),
                None => {}
            }
        }
        let message = format!("topic `{topic}` partition {partition} could not be read to its end within 30 s");
        Err(Error::external("kafka.unreachable", message))
    }
}

/// The right to read is missing: reading again does not help.
pub(super) fn is_denied(error: &KafkaError) -> bool {
    error.rdkafka_error_code() == Some(RDKafkaErrorCode::TopicAuthorizationFailed)
}

/// A consumer outside any group.
pub(super) struct Reader {
    /// Dropped before the client.
    _login: LoginLease,
    consumer: BaseConsumer<ClientLog>,
    cluster: Cluster,
}

impl Reader {
    /// Connects when it is first used. `isolation` is `read_committed` or `read_uncommitted`.
    pub(super) fn new(cluster: &Cluster, isolation: &str) -> Result<Self> {
        Self::with_wait(cluster, isolation, "20")
    }

    /// The same; the brokers wait this long for records, in milliseconds.
    fn with_wait(cluster: &Cluster, isolation: &str, wait: &str) -> Result<Self> {
        let mut config = cluster.config(&[
            ("fetch.queue.backoff.ms", "5"),
            ("fetch.wait.max.ms", wait),
            ("queued.max.messages.kbytes", "4096"),
        ]);
        config
            .set("group.id", "trunkline-reader") // The client requires one. The group is never joined.
            .set("isolation.level", isolation)
            .set("enable.auto.commit", "false")
            .set("enable.partition.eof", "true");
        let consumer: BaseConsumer<ClientLog> = cluster.create(&config, cluster.client_log())?;
        // SAFETY: the lease is dropped before the client.
        let login = unsafe { cluster.attach_login(consumer.client().native_ptr()) };
        Ok(Self { _login: login, consumer, cluster: cluster.clone() })
    }

    /// The first offset and the end of a partition.
    pub(super) fn watermarks(&self, topic: &str, partition: i32) -> Result<(i64, i64)> {
        self.consumer
            .fetch_watermarks(topic, partition, CALL_TIMEOUT)
            .map_err(|error| self.failed(&format!("reading the end offsets of topic `{topic}`"), &error))
    }

    /// Passes the records of a partition in a range of offsets, in order, until `each` breaks.
    fn scan(
        &self,
        topic: &str,
        partition: i32,
        (from, end): (i64, i64),
        each: &mut dyn FnMut(RecordRef<'_>) -> Result<ControlFlow<()>>,
    ) -> Result<()> {
        let (low, _) = self.watermarks(topic, partition)?;
        if low.max(from) >= end {
            return Ok(());
        }
        let mut batch = Batch::default();
        self.read_partition(topic, partition, (low.max(from), end), |message| {
            // The reader returns what follows the range too.
            if message.offset() >= end {
                return Ok(ControlFlow::Break(()));
            }
            batch.clear();
            copy(message, &mut batch);
            each(batch.get(0))
        })
    }

    /// Passes all records from `low` to `high`, in order, and perhaps some after them, until `each`
    /// breaks.
    pub(super) fn read_partition(
        &self,
        topic: &str,
        partition: i32,
        (low, high): (i64, i64),
        mut each: impl FnMut(&BorrowedMessage<'_>) -> Result<ControlFlow<()>>,
    ) -> Result<()> {
        let mut last_progress = Instant::now();
        let doing = format!("reading topic `{topic}`");
        let mut next = low;
        loop {
            // Before reading: if every transaction is completed now, one read up to here returns
            // all records.
            let (_, stable) = self.watermarks(topic, partition)?;
            // A new assignment each round: the client reports the end once per assignment.
            self.assign(topic, partition, next)?;
            let is_ended = loop {
                match self.consumer.poll(POLL) {
                    Some(Ok(message)) => {
                        next = message.offset() + 1;
                        last_progress = Instant::now();
                        if each(&message)?.is_break() {
                            break true;
                        }
                        // The end may never be reported: the client reports it after an empty
                        // fetch, and while many tasks commit no fetch is empty.
                        if next >= stable {
                            break false;
                        }
                    }
                    Some(Err(KafkaError::PartitionEOF(_))) => break false,
                    Some(Err(error)) if is_denied(&error) => return Err(self.failed(&doing, &error)),
                    Some(Err(error)) => tracing::debug!(%error, topic, "reading continues after an error"),
                    None => {}
                }
                if last_progress.elapsed() > COMPLETION_LIMIT {
                    let message = format!(
                        "topic `{topic}` partition {partition} could not be read to its end within 60 s: find hanging \
                         transactions in it with Kafka's `kafka-transactions.sh find-hanging`"
                    );
                    return Err(Error::external("kafka.undecided", message));
                }
            };
            if is_ended || stable >= high {
                return self
                    .consumer
                    .unassign()
                    .map_err(|error| self.failed(&format!("reading topic `{topic}`"), &error));
            }
        }
    }

    fn assign(&self, topic: &str, partition: i32, from: i64) -> Result<()> {
        let mut assignment = TopicPartitionList::with_capacity(1);
        assignment
            .add_partition_offset(topic, partition, Offset::Offset(from))
            .and_then(|()| self.consumer.assign(&assignment))
            .map_err(|error| self.failed(&format!("reading topic `{topic}`"), &error))
    }

    /// The partitions of a topic; none if it does not exist.
    pub(super) fn partitions_of(&self, topic: &str) -> Result<Vec<i32>> {
        let metadata = self
            .consumer
            .fetch_metadata(Some(topic), CALL_TIMEOUT)
            .map_err(|error| self.failed(&format!("looking up topic `{topic}`"), &error))?;
        let found = metadata.topics().iter().find(|found| found.name() == topic && found.error().is_none());
        Ok(found.map(|found| found.partitions().iter().map(|partition| partition.id()).collect()).unwrap_or_default())
    }

    fn failed(&self, doing: &str, error: &KafkaError) -> Error {
        // The reason of a failed connection waits in the client's queue.
        let _ = self.consumer.poll(Duration::ZERO);
        self.cluster.failed(doing, error)
    }
}
