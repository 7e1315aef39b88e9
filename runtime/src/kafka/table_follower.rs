//! Follows the rows of one partition of a compacted topic, outside of groups.

use std::cell::RefCell;
use std::ops::ControlFlow;
use std::sync::Arc;

use trunkline_connector::{Result, TopicPartition};

use super::client::Cluster;
use super::reader::Reader;
use super::wire::fetch::Isolation;

/// A reader of rows that were written outside of transactions.
pub struct TableFollower {
    reader: RefCell<Reader>,
    partition: TopicPartition,
}

impl TableFollower {
    /// Connects when it is first used.
    pub fn new(cluster: &Cluster, topic: &str, partition: i32) -> Self {
        let reader = RefCell::new(Reader::new(cluster, Isolation::Uncommitted));
        Self { reader, partition: TopicPartition { topic: Arc::from(topic), partition } }
    }

    /// Passes the rows that exist now: an offset, a key, and its value if the row was not removed.
    /// Later rows are left to [`TableFollower::poll`].
    pub fn load(&self, mut each: impl FnMut(i64, &[u8], Option<&[u8]>)) -> Result<()> {
        let mut reader = self.reader.borrow_mut();
        let TopicPartition { topic, partition } = &self.partition;
        let (low, high) = reader.all_watermarks(topic, *partition)?;
        let mut next = low;
        if high > low {
            reader.read_partition(topic, *partition, (low, high), |record| {
                let offset = record.entry().offset;
                next = offset + 1;
                each(offset, record.key().unwrap_or_default(), record.value());
                Ok(ControlFlow::Continue(()))
            })?;
        }
        reader.start(&self.partition, next.max(high));
        Ok(())
    }

    /// Passes the rows that have arrived since the last call. Does not wait.
    pub fn poll(&self, mut each: impl FnMut(i64, &[u8], Option<&[u8]>)) {
        let read = self.reader.borrow_mut().read(&mut |record| {
            each(record.entry().offset, record.key().unwrap_or_default(), record.value());
            Ok(ControlFlow::Continue(()))
        });
        if let Err(error) = read {
            // The reader connects again, and continues where it was.
            tracing::debug!(%error, topic = %self.partition.topic, "reading continues after an error");
        }
    }
}
