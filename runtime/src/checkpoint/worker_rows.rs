//! The rows of workers: what each of them runs (`worker/agreement.rs`).

use std::time::Duration;

use trunkline_connector::Result;

use super::{CHECKPOINTS, partition_of};
use crate::kafka::{Cluster, RowWriter, table};

/// Time for the brokers to accept a row.
const WRITE_LIMIT: Duration = Duration::from_secs(5);

/// The rows `workers/{cluster}/{worker}` of a cluster's workers, in one partition.
pub struct WorkerRows {
    cluster: Cluster,
    topic: String,
    partition: i32,
    prefix: String,
    own_key: Vec<u8>,
    writer: RowWriter,
}

impl WorkerRows {
    /// The rows of the cluster `name`, of which `worker` is a worker.
    pub fn new(cluster: &Cluster, name: &str, worker: &str) -> Result<Self> {
        let prefix = format!("workers/{name}/");
        Ok(Self {
            topic: cluster.own_topic(CHECKPOINTS),
            partition: partition_of(name),
            own_key: format!("{prefix}{worker}").into_bytes(),
            prefix,
            writer: RowWriter::new(cluster, &format!("{name}.{worker}")),
            cluster: cluster.clone(),
        })
    }

    /// The rows of all workers but this one. A task that was killed may have left an open
    /// transaction in the partition, and the task that ends it starts only after this call.
    pub fn read_others(&self) -> Result<table::Rows> {
        let mut rows =
            table::read_uncommitted(&self.cluster, &self.topic, Some(self.partition), self.prefix.as_bytes())?;
        rows.remove(&self.own_key);
        Ok(rows)
    }

    /// The worker of a row.
    pub fn worker_of(&self, key: &[u8]) -> String {
        String::from_utf8_lossy(&key[self.prefix.len().min(key.len())..]).into_owned()
    }

    /// Writes the row of this worker.
    pub fn write(&self, value: &[u8]) -> Result<()> {
        self.writer.write(&self.topic, self.partition, &self.own_key, Some(value), WRITE_LIMIT)?;
        Ok(())
    }

    /// Removes the row of another worker.
    pub fn remove(&self, key: &[u8]) -> Result<()> {
        self.writer.write(&self.topic, self.partition, key, None, WRITE_LIMIT)?;
        Ok(())
    }

    /// Removes the row of this worker.
    pub fn remove_own(&self, limit: Duration) -> Result<()> {
        self.writer.write(&self.topic, self.partition, &self.own_key, None, limit)?;
        Ok(())
    }
}
