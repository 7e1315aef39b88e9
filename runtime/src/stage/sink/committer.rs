//! How a kind of sink commits output and offsets together.

use std::time::{Duration, Instant};

use trunkline_connector::{Batch, Buffered, Rejections, Result, TopicPartition};

use super::transactions::Transactions;
use crate::checkpoint::{IntentRecord, IntentState};
use crate::stage::status::StageStatus;

/// The protocol of one kind of sink. The stage's loop decides when to call what.
pub(super) trait Committer {
    /// Settles what earlier owners of these topic partitions left. Returns for how many there was
    /// something to settle.
    fn assign(&mut self, transactions: &mut Transactions<'_>, assigned: &[Assignment]) -> Result<usize>;

    /// Adds records of one topic partition, in order.
    fn write(&mut self, partition: &TopicPartition, records: &Batch, rejected: &mut Rejections) -> Result<()>;

    /// The record that was written last is complete. Called after each record if the stage works
    /// record by record.
    fn end_record(&mut self, _: &mut Transactions<'_>, _: &TopicPartition) {}

    /// What is buffered for a topic partition.
    fn buffered(&self, partition: &TopicPartition) -> Buffered;

    /// Commits these topic partitions, and advances the commits that are under way. Called in each
    /// round of the loop.
    fn commit(&mut self, transactions: &mut Transactions<'_>, due: &[TopicPartition]) -> Result<()>;

    /// Commits everything that is pending, and waits for it.
    fn flush(&mut self, transactions: &mut Transactions<'_>) -> Result<()>;

    /// A topic partition was revoked: its uncommitted output is dropped.
    fn revoke(&mut self, partition: &TopicPartition);

    /// Bytes of memory in use.
    fn memory_bytes(&self) -> usize;

    /// When the oldest record was written to its topic that left the state of its topic partition
    /// and is not committed.
    fn oldest(&self, _: &TopicPartition) -> Option<Instant> {
        None
    }

    /// Moves buffers to disk.
    fn spill(&mut self) -> Result<()>;

    /// The longest wait for records after which `commit` has something to do.
    fn wake_in(&self) -> Duration {
        Duration::MAX
    }

    /// Another poll may add records. `false` holds the topic partitions back until output was
    /// delivered.
    fn accepts_more(&self) -> bool {
        true
    }
}

/// A topic partition that was assigned to the task.
pub(super) struct Assignment {
    pub(super) partition: TopicPartition,
    /// The group's committed offset; -1 if there is none.
    pub(super) committed: i64,
    /// The row that the last owner wrote.
    pub(super) intent: Option<IntentRecord>,
}

impl Assignment {
    /// The offset for a transaction that advances none: the committed one, or the row's where
    /// nothing was committed yet.
    pub(super) fn current_offset(&self, row: &IntentRecord) -> i64 {
        if self.committed >= 0 { self.committed } else { row.next }
    }

    /// Warns if the group's offset is not where the last owner left it.
    pub(super) fn warn_of_moved_offsets(&self, status: &StageStatus) {
        let Some(row) = self.intent.as_ref().filter(|row| row.state != IntentState::Planned) else { return };
        if self.committed >= 0 && row.next != self.committed {
            tracing::warn!(
                stage = status.name(),
                topic = %self.partition.topic,
                partition = self.partition.partition,
                recorded = row.next,
                committed = self.committed,
                "consumer offsets were changed externally; continuing from the committed offset"
            );
        }
    }
}
