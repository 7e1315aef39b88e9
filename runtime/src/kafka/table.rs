//! Compacted topics read as key-value tables: checkpoints, intents, schemas. A read returns
//! everything that was committed before the call.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use rdkafka::message::Message as _;
use trunkline_connector::Result;

use super::client::{Cluster, close_in_background};
use super::topic_reader::Reader;

/// A table's rows: the last value of each key, without removed keys.
pub type Rows = BTreeMap<Vec<u8>, Vec<u8>>;

/// Reads the rows whose keys start with `prefix`. With `partition` only that partition is read.
pub fn read(cluster: &Cluster, topic: &str, partition: Option<i32>, prefix: &[u8]) -> Result<Rows> {
    read_isolated(cluster, topic, partition, prefix, "read_committed")
}

/// The same for rows that are written outside of transactions. It does not wait for the open
/// transactions of other rows in the partition.
pub fn read_uncommitted(cluster: &Cluster, topic: &str, partition: Option<i32>, prefix: &[u8]) -> Result<Rows> {
    read_isolated(cluster, topic, partition, prefix, "read_uncommitted")
}

/// Passes the rows of a partition from the offset `from` on, in order, each with its key and its
/// value (`None` removes it). Returns the offset after them. Rows of open transactions are
/// included.
pub fn read_on(
    cluster: &Cluster,
    topic: &str,
    partition: i32,
    from: i64,
    mut each: impl FnMut(&[u8], Option<&[u8]>),
) -> Result<i64> {
    let reader = Reader::new(cluster, "read_uncommitted")?;
    let (low, high) = reader.watermarks(topic, partition)?;
    let from = from.max(low);
    let mut next = from.max(high);
    if high > from {
        reader.read_partition(topic, partition, (from, high), |message| {
            next = next.max(message.offset() + 1);
            if let Some(key) = message.key() {
                each(key, message.payload());
            }
            Ok(ControlFlow::Continue(()))
        })?;
    }
    // A stage that starts need not wait for this.
    let _ = close_in_background(reader);
    Ok(next)
}

fn read_isolated(
    cluster: &Cluster,
    topic: &str,
    partition: Option<i32>,
    prefix: &[u8],
    isolation: &str,
) -> Result<Rows> {
    let reader = Reader::new(cluster, isolation)?;
    let uncommitted = Reader::new(cluster, "read_uncommitted")?;
    let partitions = match partition {
        Some(partition) => vec![partition],
        None => reader.partitions_of(topic)?,
    };
    let mut rows = Rows::new();
    for partition in partitions {
        let (low, high) = uncommitted.watermarks(topic, partition)?;
        if high > low {
            reader.read_partition(topic, partition, (low, high), |message| {
                if let Some(key) = message.key().filter(|key| key.starts_with(prefix)) {
                    match message.payload() {
                        Some(value) => drop(rows.insert(key.to_vec(), value.to_vec())),
                        None => drop(rows.remove(key)),
                    }
                }
                Ok(ControlFlow::Continue(()))
            })?;
        }
    }
    // A starting stage need not wait for this.
    let _ = close_in_background((reader, uncommitted));
    Ok(rows)
}
