//! Compacted topics read as key-value tables: checkpoints, intents, schemas. A read returns
//! everything that was committed before the call.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use trunkline_connector::Result;

use super::client::Cluster;
use super::reader::Reader;
use super::wire::fetch::Isolation;

/// A table's rows: the last value of each key, without removed keys.
pub type Rows = BTreeMap<Vec<u8>, Vec<u8>>;

/// Reads the rows whose keys start with `prefix`. With `partition` only that partition is read.
pub fn read(cluster: &Cluster, topic: &str, partition: Option<i32>, prefix: &[u8]) -> Result<Rows> {
    read_isolated(cluster, topic, partition, prefix, Isolation::Committed)
}

/// The same for rows that are written outside of transactions. It does not wait for the open
/// transactions of other rows in the partition.
pub fn read_uncommitted(cluster: &Cluster, topic: &str, partition: Option<i32>, prefix: &[u8]) -> Result<Rows> {
    read_isolated(cluster, topic, partition, prefix, Isolation::Uncommitted)
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
    let mut reader = Reader::new(cluster, Isolation::Uncommitted);
    let (low, high) = reader.watermarks(topic, partition)?;
    let from = from.max(low);
    let mut next = from.max(high);
    if high > from {
        reader.read_partition(topic, partition, (from, high), |record| {
            next = next.max(record.entry().offset + 1);
            if let Some(key) = record.key() {
                each(key, record.value());
            }
            Ok(ControlFlow::Continue(()))
        })?;
    }
    Ok(next)
}

fn read_isolated(
    cluster: &Cluster,
    topic: &str,
    partition: Option<i32>,
    prefix: &[u8],
    isolation: Isolation,
) -> Result<Rows> {
    let mut reader = Reader::new(cluster, isolation);
    let partitions = match partition {
        Some(partition) => vec![partition],
        None => reader.partitions_of(topic)?,
    };
    let mut rows = Rows::new();
    for partition in partitions {
        let (low, high) = reader.all_watermarks(topic, partition)?;
        if high > low {
            reader.read_partition(topic, partition, (low, high), |record| {
                if let Some(key) = record.key().filter(|key| key.starts_with(prefix)) {
                    match record.value() {
                        Some(value) => drop(rows.insert(key.to_vec(), value.to_vec())),
                        None => drop(rows.remove(key)),
                    }
                }
                Ok(ControlFlow::Continue(()))
            })?;
        }
    }
    Ok(rows)
}
