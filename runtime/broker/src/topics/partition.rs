//! A partition: its log, and the fetches that wait for it.
//!
//! A fetch registers a [`Notify`] before it reads, so that it cannot miss an append between reading
//! and waiting. `read_committed` readers are woken only when the last stable offset moves: inside a
//! transaction they would see no new records.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};

use kafka_protocol::ResponseError;
use tokio::sync::Notify;

use super::config::TopicConfig;
use crate::error::ApiError;
use crate::log::batch::{BatchHeader, Marker};
use crate::log::durability::Durability;
use crate::log::{Appended, Isolation, PartitionLog};
use crate::sync::lock;

#[derive(Debug)]
struct Inner {
    log: PartitionLog,
    is_closed: bool,
    end_waiters: Vec<Arc<Notify>>,
    stable_waiters: Vec<Arc<Notify>>,
}

/// One partition of a topic.
#[derive(Debug)]
pub(crate) struct Partition {
    pub(crate) topic: String,
    pub(crate) index: i32,
    inner: Mutex<Inner>,
    /// Tracks the synced part of the log, with [`FlushPolicy::Always`](crate::FlushPolicy::Always).
    durability: Option<Arc<Durability>>,
    /// Held during checkpoints and compaction: both need stable files.
    pub(crate) maintenance: Mutex<()>,
}

impl Partition {
    pub(crate) fn open(topic: &str, index: i32, directory: &Path, sync_each_append: bool) -> io::Result<Self> {
        let log = PartitionLog::open(directory, sync_each_append)?;
        let durability = log.durability();
        let inner = Inner { log, is_closed: false, end_waiters: Vec::new(), stable_waiters: Vec::new() };
        Ok(Self { topic: topic.to_owned(), index, inner: Mutex::new(inner), durability, maintenance: Mutex::new(()) })
    }

    /// Appends a batch and wakes the waiting readers. Acknowledge it after
    /// [`Partition::wait_durable`].
    pub(crate) fn append(
        &self,
        header: &BatchHeader,
        records: &[u8],
        config: &TopicConfig,
    ) -> Result<Appended, ApiError> {
        self.change(|log| log.append(header, records, config))
    }

    /// Writes the marker that ends a producer's transaction in this partition.
    pub(crate) fn end_transaction(
        &self,
        producer_id: i64,
        producer_epoch: i16,
        marker: Marker,
        config: &TopicConfig,
    ) -> Result<(), ApiError> {
        let end_offset = self.change(|log| log.end_transaction(producer_id, producer_epoch, marker, config))?;
        self.wait_durable(end_offset)
    }

    /// Returns when all records before `offset` are durable according to the flush policy. Then
    /// readers see them.
    pub(crate) fn wait_durable(&self, offset: i64) -> Result<(), ApiError> {
        let Some(durability) = &self.durability else { return Ok(()) };
        let settled = durability.wait_durable(offset);
        let mut inner = lock(&self.inner);
        wake(&mut inner.end_waiters);
        wake(&mut inner.stable_waiters);
        settled
            .map_err(|error| ApiError::new(ResponseError::KafkaStorageError, format!("cannot sync the log: {error}")))
    }

    fn change<T>(&self, work: impl FnOnce(&mut PartitionLog) -> Result<T, ApiError>) -> Result<T, ApiError> {
        let mut inner = lock(&self.inner);
        if inner.is_closed {
            return Err(ApiError::new(ResponseError::UnknownTopicOrPartition, "the topic was deleted"));
        }
        let before = (inner.log.end_offset(), inner.log.last_stable_offset());
        let result = work(&mut inner.log);
        let after = (inner.log.end_offset(), inner.log.last_stable_offset());
        if before.0 != after.0 {
            wake(&mut inner.end_waiters);
        }
        if before.1 != after.1 {
            wake(&mut inner.stable_waiters);
        }
        result
    }

    /// Runs `work` on the log.
    pub(crate) fn with_log<T>(&self, work: impl FnOnce(&mut PartitionLog) -> T) -> T {
        work(&mut lock(&self.inner).log)
    }

    pub(crate) fn is_closed(&self) -> bool {
        lock(&self.inner).is_closed
    }

    /// Wakes `waiter` at the next change that readers at `isolation` see.
    pub(crate) fn register(&self, isolation: Isolation, waiter: &Arc<Notify>) {
        let mut inner = lock(&self.inner);
        inner.waiters(isolation).push(Arc::clone(waiter));
    }

    /// Removes `waiter`.
    pub(crate) fn unregister(&self, isolation: Isolation, waiter: &Arc<Notify>) {
        lock(&self.inner).waiters(isolation).retain(|other| !Arc::ptr_eq(other, waiter));
    }

    /// Refuses further writes: the topic is being deleted.
    pub(crate) fn close(&self) {
        let mut inner = lock(&self.inner);
        inner.is_closed = true;
        wake(&mut inner.end_waiters);
        wake(&mut inner.stable_waiters);
    }

    /// Compacts the log, if it is worth its cost.
    pub(crate) fn compact(&self, config: &TopicConfig) -> io::Result<()> {
        let _maintenance = lock(&self.maintenance);
        let Some(plan) = self.with_log(|log| log.plan_compaction(config)) else { return Ok(()) };
        let compacted = plan.run()?;
        self.with_log(|log| log.install(compacted))?;
        // Until this is written, a start does not recognise the new segments and reads the whole
        // log.
        self.checkpoint_in_maintenance()
    }

    /// Changes the front of the log while no compaction reads it, and persists the new start.
    pub(crate) fn move_start<T, E: From<io::Error>>(
        &self,
        work: impl FnOnce(&mut PartitionLog) -> Result<T, E>,
    ) -> Result<T, E> {
        let _maintenance = lock(&self.maintenance);
        let before = self.with_log(|log| log.start_offset());
        let result = self.with_log(work);
        if self.with_log(|log| log.start_offset()) != before {
            self.checkpoint_in_maintenance()?;
        }
        result
    }

    /// Syncs the log and shortens the next start.
    pub(crate) fn checkpoint(&self) -> io::Result<()> {
        let _maintenance = lock(&self.maintenance);
        self.checkpoint_in_maintenance()
    }

    /// The same for a caller that holds `maintenance`.
    pub(crate) fn checkpoint_in_maintenance(&self) -> io::Result<()> {
        if self.is_closed() {
            return Ok(());
        }
        let checkpoint = self.with_log(PartitionLog::prepare_checkpoint)?;
        let written = checkpoint.write();
        if written.is_err() {
            self.with_log(PartitionLog::checkpoint_failed);
            if self.is_closed() {
                return Ok(());
            }
        }
        written
    }
}

impl Inner {
    fn waiters(&mut self, isolation: Isolation) -> &mut Vec<Arc<Notify>> {
        match isolation {
            Isolation::Uncommitted => &mut self.end_waiters,
            Isolation::Committed => &mut self.stable_waiters,
        }
    }
}

fn wake(waiters: &mut Vec<Arc<Notify>>) {
    for waiter in waiters.drain(..) {
        waiter.notify_one();
    }
}
