//! A transactional producer over the requests of a transaction and the delivery of batches.

use std::time::{Duration, Instant};

use trunkline_connector::{Result, TopicPartition};

use super::delivery::Delivery;
use super::send_buffer::SendBuffer;
use super::transaction::{GroupMetadata, Transaction};
use crate::kafka::client::Cluster;
use crate::kafka::producer::ProducerRecord;
use crate::kafka::wire::brokers::Brokers;

/// An aborted transaction waits this long for the answers of its requests.
const DISCARD_LIMIT: Duration = Duration::from_secs(5);

/// A producer with a transactional id.
pub(in crate::kafka) struct TransactionalClient {
    delivery: Delivery,
    transaction: Transaction,
}

impl TransactionalClient {
    /// Fences the earlier producer with the same transactional id, and ends its transaction.
    pub(in crate::kafka) fn new(
        cluster: &Cluster,
        (transactional_id, client_id): (&str, &str),
        timeout_ms: i32,
        (buffer, batch_bytes): (SendBuffer, usize),
        deadline: Instant,
    ) -> Result<Self> {
        let mut brokers = Brokers::new(cluster, client_id);
        let transaction = Transaction::init(&mut brokers, transactional_id, timeout_ms, deadline)?;
        let delivery = Delivery::new(brokers, buffer, transactional_id, batch_bytes);
        Ok(Self { delivery, transaction })
    }

    pub(in crate::kafka) fn cluster(&self) -> &Cluster {
        self.delivery.brokers.cluster()
    }

    /// Appends a record to its partition's batch. Returns whether a batch became full.
    pub(in crate::kafka) fn append(&mut self, record: &ProducerRecord<'_>) -> bool {
        self.delivery.buffer.append(record)
    }

    /// Memory of all records that are not acknowledged, in bytes.
    pub(in crate::kafka) fn buffered_bytes(&self) -> usize {
        self.delivery.buffer.bytes()
    }

    /// Whether every record is acknowledged.
    pub(in crate::kafka) fn is_delivered(&self) -> bool {
        self.delivery.buffer.is_empty()
    }

    /// When a broker acknowledged a batch last.
    pub(in crate::kafka) fn last_progress(&self) -> Instant {
        self.delivery.last_progress()
    }

    /// Closes all batches, so that [`TransactionalClient::advance`] sends them.
    pub(in crate::kafka) fn seal_all(&mut self) {
        self.delivery.buffer.seal_all();
    }

    /// Closes the larger batches, until the open ones have at most `bytes`.
    pub(in crate::kafka) fn seal_largest(&mut self, bytes: usize) {
        self.delivery.buffer.seal_largest(bytes);
    }

    /// Sends closed batches and takes the answers that have arrived. Waits only for the coordinator
    /// to add partitions to the transaction, at most until `deadline`. Fails if a batch was
    /// refused.
    pub(in crate::kafka) fn advance(&mut self, deadline: Instant) -> Result<()> {
        let (found, topics) = self.delivery.not_added();
        if !found.is_empty() {
            self.transaction.add_partitions(&mut self.delivery.brokers, &topics, deadline)?;
            self.delivery.buffer.set_added(&found);
        }
        self.delivery.advance(self.transaction.identity());
        self.delivery.check()
    }

    /// Whether a batch can be sent without waiting for an answer.
    pub(in crate::kafka) fn has_sendable(&self) -> bool {
        self.delivery.has_sendable()
    }

    /// Waits until a broker has answered or a batch may be sent again, at most until `deadline`.
    pub(in crate::kafka) fn wait(&self, deadline: Instant) {
        self.delivery.wait(deadline);
    }

    /// Adds the positions of a group to the transaction.
    pub(in crate::kafka) fn add_offsets(
        &mut self,
        next_offsets: &[(&TopicPartition, i64)],
        group: &GroupMetadata,
        deadline: Instant,
    ) -> Result<()> {
        self.transaction.add_offsets(&mut self.delivery.brokers, next_offsets, group, deadline)
    }

    /// Commits the transaction, whose records must be delivered, or aborts it.
    pub(in crate::kafka) fn end(&mut self, is_commit: bool, deadline: Instant) -> Result<()> {
        let mut is_uncertain = false;
        if !is_commit {
            is_uncertain = self.delivery.discard(deadline.min(Instant::now() + DISCARD_LIMIT));
        }
        let brokers = &mut self.delivery.brokers;
        self.transaction.end(brokers, is_commit, deadline)?;
        self.delivery.buffer.end_transaction();
        if is_uncertain {
            // A batch may have been stored or not: with a new epoch, the numbers start again.
            self.transaction.raise_epoch(brokers, deadline)?;
            self.delivery.buffer.restart_sequences();
        }
        Ok(())
    }
}
