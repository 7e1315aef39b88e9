//! A transactional producer that is closed while it is not used: a client has four threads, which
//! wake every second.

use std::time::{Duration, Instant};

use trunkline_connector::Result;

use super::client::Cluster;
use super::producer::TransactionalProducer;

/// A producer that was not used for this long is closed. Opening one takes about a tenth of a
/// second.
pub(super) const IDLE_TIME: Duration = Duration::from_secs(30);

/// A transactional producer, opened again at its next use.
///
/// Each opening fences the last producer with the same transactional id. Use it only where this
/// cannot take the place of a newer task: a sink's id is that of a group member, and the group's
/// generation fences the task itself (I4).
pub struct ReopeningProducer {
    cluster: Cluster,
    transactional_id: String,
    /// A topic that exists.
    topic: String,
    buffer_bytes: usize,
    producer: Option<TransactionalProducer>,
    pub(super) last_use: Instant,
}

impl ReopeningProducer {
    /// Opens the producer as [`TransactionalProducer::new`] does.
    pub fn open(cluster: &Cluster, transactional_id: &str, topic: &str, buffer_bytes: usize) -> Result<Self> {
        let mut this = Self {
            cluster: cluster.clone(),
            transactional_id: transactional_id.to_owned(),
            topic: topic.to_owned(),
            buffer_bytes,
            producer: None,
            last_use: Instant::now(),
        };
        this.get()?;
        Ok(this)
    }

    /// The producer.
    pub fn get(&mut self) -> Result<&mut TransactionalProducer> {
        self.last_use = Instant::now();
        let producer = match self.producer.take() {
            Some(producer) => producer,
            None => TransactionalProducer::new(&self.cluster, &self.transactional_id, &self.topic, self.buffer_bytes)?,
        };
        Ok(self.producer.insert(producer))
    }

    /// Whether the client exists.
    pub fn is_open(&self) -> bool {
        self.producer.is_some()
    }

    /// Whether a transaction is open.
    pub fn in_transaction(&self) -> bool {
        self.producer.as_ref().is_some_and(TransactionalProducer::in_transaction)
    }

    /// Aborts the open transaction, if there is one.
    pub fn abort(&mut self) -> Result<()> {
        self.producer.as_mut().map_or(Ok(()), TransactionalProducer::abort)
    }

    /// Closes the producer if it was not used for a while.
    pub fn close_if_idle(&mut self) {
        if self.last_use.elapsed() < IDLE_TIME || self.in_transaction() {
            return;
        }
        if let Some(producer) = self.producer.take() {
            producer.close();
        }
    }
}
