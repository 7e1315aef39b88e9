//! A transactional producer that is closed while it is not used: a client has four threads, which
//! wake every second.

use std::time::{Duration, Instant};

use trunkline_connector::Result;

use super::client::Cluster;
use super::producer::TransactionalProducer;

/// The time without use after which a worker closes a producer. Opening one takes about a tenth of
/// a second.
pub const PRODUCER_IDLE_TIME: Duration = Duration::from_secs(30);

/// A transactional producer, opened again at its next use.
///
/// Each opening fences the last producer with the same transactional id, also that of a newer task.
/// A task must therefore not rely on its producer alone after that (I4). A sink's transactions
/// carry the generation of its group, which fences an older task. A source checks its position when
/// the producer was opened again: see [`ReopeningProducer::get_with`].
pub struct ReopeningProducer {
    cluster: Cluster,
    transactional_id: String,
    /// A topic that exists.
    topic: String,
    buffer_bytes: usize,
    /// Closed after this time without use.
    idle_time: Duration,
    producer: Option<TransactionalProducer>,
    last_use: Instant,
}

impl ReopeningProducer {
    /// Opens the producer as [`TransactionalProducer::new`] does. It is closed after `idle_time`.
    pub fn open(
        cluster: &Cluster,
        transactional_id: &str,
        topic: &str,
        buffer_bytes: usize,
        idle_time: Duration,
    ) -> Result<Self> {
        let mut this = Self {
            cluster: cluster.clone(),
            transactional_id: transactional_id.to_owned(),
            topic: topic.to_owned(),
            buffer_bytes,
            idle_time,
            producer: None,
            last_use: Instant::now(),
        };
        this.get()?;
        Ok(this)
    }

    /// The producer.
    pub fn get(&mut self) -> Result<&mut TransactionalProducer> {
        self.get_with(|| Ok(()))
    }

    /// The producer. If it is opened for this, `check` runs before its first use; after an error
    /// of `check`, it is closed again.
    pub fn get_with(&mut self, check: impl FnOnce() -> Result<()>) -> Result<&mut TransactionalProducer> {
        self.last_use = Instant::now();
        let producer = match self.producer.take() {
            Some(producer) => producer,
            None => {
                let (cluster, id) = (&self.cluster, &self.transactional_id);
                let producer = TransactionalProducer::new(cluster, id, &self.topic, self.buffer_bytes)?;
                check()?;
                producer
            }
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

    /// Bytes sent in the open transaction.
    pub fn transaction_bytes(&self) -> usize {
        self.producer.as_ref().map_or(0, TransactionalProducer::transaction_bytes)
    }

    /// Time until [`ReopeningProducer::close_if_idle`] closes the producer.
    pub fn until_idle(&self) -> Duration {
        let is_idle = self.is_open() && !self.in_transaction();
        if is_idle { self.idle_time.saturating_sub(self.last_use.elapsed()) } else { Duration::MAX }
    }

    /// Aborts the open transaction, if there is one.
    pub fn abort(&mut self) -> Result<()> {
        self.producer.as_mut().map_or(Ok(()), TransactionalProducer::abort)
    }

    /// Closes the producer if it was not used for a while.
    pub fn close_if_idle(&mut self) {
        if self.until_idle().is_zero()
            && let Some(producer) = self.producer.take()
        {
            producer.close();
        }
    }
}
