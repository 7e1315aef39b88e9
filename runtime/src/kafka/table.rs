//! Compacted topics read as key-value tables: checkpoints, intents, schemas.
//!
//! A read returns everything that was committed before the call. The markers of a transaction reach
//! its partitions one by one, so the last stable offset of one partition may lag behind a commit
//! that another partition already shows. The reader therefore waits until every transaction up to
//! the high watermark that it saw at its start is completed.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use trunkline_connector::{Error, Result};

use super::client::{CALL_TIMEOUT, ClientLog, Cluster, classify, close_in_background};

/// A table's rows: the last value of each key, without removed keys.
pub type Rows = BTreeMap<Vec<u8>, Vec<u8>>;

/// A read waits this long for open transactions: longer than `transaction.timeout.ms` of our
/// producers.
const COMPLETION_LIMIT: Duration = Duration::from_secs(60);

/// Reads the rows whose keys start with `prefix`. With `partition` only that partition is read.
pub fn read(cluster: &Cluster, topic: &str, partition: Option<i32>, prefix: &[u8]) -> Result<Rows> {
    let reader = reader(cluster, "read_committed")?;
    let probe = self::reader(cluster, "read_uncommitted")?;
    let partitions = match partition {
        Some(partition) => vec![partition],
        None => partitions_of(&reader, topic)?,
    };
    let mut rows = Rows::new();
    for partition in partitions {
        let (low, high) = watermarks(&probe, topic, partition)?;
        if high > low {
            read_partition(&reader, topic, partition, (low, high), &mut |key, value| {
                if key.starts_with(prefix) {
                    match value {
                        Some(value) => drop(rows.insert(key.to_vec(), value.to_vec())),
                        None => drop(rows.remove(key)),
                    }
                }
            })?;
        }
    }
    // A starting stage need not wait for this.
    let _ = close_in_background((reader, probe));
    Ok(rows)
}

/// Reads the ends of partitions. The end offset alone does not show whether records are left:
/// markers of transactions and aborted records have offsets too.
pub struct EndProbe {
    committed: BaseConsumer<ClientLog>,
    uncommitted: BaseConsumer<ClientLog>,
}

impl EndProbe {
    /// Connects when it is first used.
    pub fn new(cluster: &Cluster) -> Result<Self> {
        Ok(Self { committed: reader(cluster, "read_committed")?, uncommitted: reader(cluster, "read_uncommitted")? })
    }

    /// The high watermark: every record written so far, committed or not, lies before it.
    pub fn high(&self, topic: &str, partition: i32) -> Result<i64> {
        Ok(watermarks(&self.uncommitted, topic, partition)?.1)
    }

    /// Whether every transaction before `target` is completed and no record is left to read from
    /// `offset` to `target`.
    pub fn is_drained(&self, topic: &str, partition: i32, offset: i64, target: i64) -> Result<bool> {
        let (low, stable) = watermarks(&self.committed, topic, partition)?;
        let from = offset.max(low);
        if stable < target || from >= target {
            return Ok(from >= target);
        }
        assign(&self.committed, topic, partition, from)?;
        let started = Instant::now();
        while started.elapsed() < CALL_TIMEOUT {
            match self.committed.poll(Duration::from_millis(100)) {
                Some(Ok(message)) => return Ok(message.offset() >= target),
                Some(Err(KafkaError::PartitionEOF(_))) => return Ok(true),
                Some(Err(error)) => tracing::debug!(%error, topic, "reading continues after an error"),
                None => {}
            }
        }
        Err(Error::external(
            "kafka.unreachable",
            format!("topic `{topic}` partition {partition} could not be read to its end within 30 s"),
        ))
    }
}

fn watermarks(reader: &BaseConsumer<ClientLog>, topic: &str, partition: i32) -> Result<(i64, i64)> {
    reader
        .fetch_watermarks(topic, partition, CALL_TIMEOUT)
        .map_err(|error| classify(&format!("reading the end offsets of topic `{topic}`"), &error))
}

fn read_partition(
    reader: &BaseConsumer<ClientLog>,
    topic: &str,
    partition: i32,
    (low, high): (i64, i64),
    on_row: &mut impl FnMut(&[u8], Option<&[u8]>),
) -> Result<()> {
    let started = Instant::now();
    let mut next = low;
    loop {
        // Before reading: if every transaction is completed now, one read up to here returns all
        // records.
        let (_, stable) = watermarks(reader, topic, partition)?;
        // A new assignment each round: the client reports the end once per assignment.
        assign(reader, topic, partition, next)?;
        loop {
            match reader.poll(Duration::from_millis(100)) {
                Some(Ok(message)) => {
                    next = message.offset() + 1;
                    if let Some(key) = message.key() {
                        on_row(key, message.payload());
                    }
                    // The end may never be reported: the client reports it after an empty fetch,
                    // and while many tasks commit no fetch is empty.
                    if next >= stable {
                        break;
                    }
                }
                Some(Err(KafkaError::PartitionEOF(_))) => break,
                Some(Err(error)) => tracing::debug!(%error, topic, "reading continues after an error"),
                None => {}
            }
            if started.elapsed() > COMPLETION_LIMIT {
                let message = format!(
                    "topic `{topic}` partition {partition} could not be read to its end within 60 s: find hanging \
                     transactions in it with Kafka's `kafka-transactions.sh find-hanging`"
                );
                return Err(Error::external("kafka.undecided", message));
            }
        }
        if stable >= high {
            return reader.unassign().map_err(|error| classify(&format!("reading topic `{topic}`"), &error));
        }
    }
}

fn assign(reader: &BaseConsumer<ClientLog>, topic: &str, partition: i32, from: i64) -> Result<()> {
    let mut assignment = TopicPartitionList::with_capacity(1);
    assignment
        .add_partition_offset(topic, partition, Offset::Offset(from))
        .and_then(|()| reader.assign(&assignment))
        .map_err(|error| classify(&format!("reading topic `{topic}`"), &error))
}

fn partitions_of(reader: &BaseConsumer<ClientLog>, topic: &str) -> Result<Vec<i32>> {
    let metadata = reader
        .fetch_metadata(Some(topic), CALL_TIMEOUT)
        .map_err(|error| classify(&format!("looking up topic `{topic}`"), &error))?;
    let found = metadata.topics().iter().find(|found| found.name() == topic && found.error().is_none());
    Ok(found.map(|found| found.partitions().iter().map(|partition| partition.id()).collect()).unwrap_or_default())
}

fn reader(cluster: &Cluster, isolation: &str) -> Result<BaseConsumer<ClientLog>> {
    let mut config = cluster.config(&[
        ("fetch.queue.backoff.ms", "5"),
        ("fetch.wait.max.ms", "20"),
        ("queued.max.messages.kbytes", "4096"),
    ]);
    config
        .set("group.id", "trunkline-reader") // The client requires one. The group is never joined.
        .set("isolation.level", isolation)
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true");
    cluster.create(&config, cluster.client_log())
}
