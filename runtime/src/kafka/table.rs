//! Compacted topics read as key-value tables: checkpoints, intents, schemas. A read returns
//! everything that was committed before the call.

use std::collections::BTreeMap;

use rdkafka::message::Message as _;
use trunkline_connector::Result;

use super::client::{Cluster, close_in_background};
use super::topic_reader::Reader;

/// A table's rows: the last value of each key, without removed keys.
pub type Rows = BTreeMap<Vec<u8>, Vec<u8>>;

/// Reads the rows whose keys start with `prefix`. With `partition` only that partition is read.
pub fn read(cluster: &Cluster, topic: &str, partition: Option<i32>, prefix: &[u8]) -> Result<Rows> {
    let committed = Reader::new(cluster, "read_committed")?;
    let uncommitted = Reader::new(cluster, "read_uncommitted")?;
    let partitions = match partition {
        Some(partition) => vec![partition],
        None => committed.partitions_of(topic)?,
    };
    let mut rows = Rows::new();
    for partition in partitions {
        let (low, high) = uncommitted.watermarks(topic, partition)?;
        if high > low {
            committed.read_partition(topic, partition, (low, high), |message| {
                if let Some(key) = message.key().filter(|key| key.starts_with(prefix)) {
                    match message.payload() {
                        Some(value) => drop(rows.insert(key.to_vec(), value.to_vec())),
                        None => drop(rows.remove(key)),
                    }
                }
                Ok(())
            })?;
        }
    }
    // A starting stage need not wait for this.
    let _ = close_in_background((committed, uncommitted));
    Ok(rows)
}
