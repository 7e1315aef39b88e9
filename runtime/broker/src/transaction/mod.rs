//! The transaction coordinator (KIP-98).
//!
//! ```text
//! Empty --add partitions--> Ongoing --EndTxn, timeout, fence--> Prepare* --markers written--> Complete*
//! ```
//!
//! One frame of the internal log, *Prepare*, decides the outcome. The steps after it are
//! repeatable, and the next start or tick repeats them if they were interrupted: a marker in each
//! partition of the transaction, then one frame that moves the pending offsets and says *Complete*.
//!
//! The lock of a transactional id is held over each step and over each append of its producer. A
//! batch is either in the log before its transaction ends, or refused, so no transaction hangs (the
//! server side of KIP-890).
//!
//! The epoch fences producers. InitProducerId increments it for the new producer, and so does the
//! abort of a transaction that timed out. Every later request with the old epoch is refused.

mod registry;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::time::Instant;

use kafka_protocol::ResponseError;
use serde::{Deserialize, Serialize};

pub(crate) use self::registry::{Coordinator, Requester};
use crate::clock::now_ms;

/// The highest epoch of a producer id. After it the transactional id gets a new producer id.
const MAX_EPOCH: i16 = i16::MAX - 1;
pub(crate) const NO_PRODUCER_ID: i64 = -1;
pub(crate) const NO_EPOCH: i16 = -1;

/// The state of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Phase {
    Empty,
    Ongoing,
    PrepareCommit,
    PrepareAbort,
    CompleteCommit,
    CompleteAbort,
}

impl Phase {
    pub(crate) const ALL: [Self; 6] = [
        Self::Empty,
        Self::Ongoing,
        Self::PrepareCommit,
        Self::PrepareAbort,
        Self::CompleteCommit,
        Self::CompleteAbort,
    ];

    /// The name in ListTransactions.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Empty => "Empty",
            Self::Ongoing => "Ongoing",
            Self::PrepareCommit => "PrepareCommit",
            Self::PrepareAbort => "PrepareAbort",
            Self::CompleteCommit => "CompleteCommit",
            Self::CompleteAbort => "CompleteAbort",
        }
    }

    /// The outcome is decided and not completed.
    fn is_ending(self) -> bool {
        matches!(self, Self::PrepareCommit | Self::PrepareAbort)
    }
}

/// The state of one transactional id, as stored in the internal log.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Transaction {
    pub(crate) producer_id: i64,
    pub(crate) epoch: i16,
    /// The producer id and epoch that the current producer named in the request that gave it the current
    /// ones: a retry of that request names them again (KIP-360). `None` if that request named no
    /// producer. The previous identity then belongs to another producer, which must stay fenced.
    #[serde(default)]
    last_identity: Option<(i64, i16)>,
    pub(crate) timeout_ms: i32,
    pub(crate) phase: Phase,
    pub(crate) partitions: BTreeSet<(String, i32)>,
    pub(crate) groups: BTreeSet<String>,
    /// When the first partition or group was added; -1 without an open transaction.
    pub(crate) started_ms: i64,
    updated_ms: i64,
}

impl Transaction {
    fn new(producer_id: i64, timeout_ms: i32) -> Self {
        Self {
            producer_id,
            epoch: 0,
            last_identity: None,
            timeout_ms,
            phase: Phase::Empty,
            partitions: BTreeSet::new(),
            groups: BTreeSet::new(),
            started_ms: -1,
            updated_ms: now_ms(),
        }
    }

    /// Checks that the request comes from the current producer of the transactional id.
    fn check_producer(&self, producer_id: i64, epoch: i16) -> Result<(), ResponseError> {
        if producer_id != self.producer_id {
            return Err(ResponseError::InvalidProducerIdMapping);
        }
        if epoch != self.epoch {
            return Err(ResponseError::ProducerFenced);
        }
        Ok(())
    }

    /// Checks that the producer may append to a partition.
    fn check_append(&self, producer_id: i64, epoch: i16, topic: &str, partition: i32) -> Result<(), ResponseError> {
        self.check_producer(producer_id, epoch).map_err(|error| match error {
            // Produce has used this code since before PRODUCER_FENCED existed.
            ResponseError::ProducerFenced => ResponseError::InvalidProducerEpoch,
            other => other,
        })?;
        let is_part = self.phase == Phase::Ongoing && self.partitions.contains(&(topic.to_owned(), partition));
        if is_part { Ok(()) } else { Err(ResponseError::InvalidTxnState) }
    }

    /// The state with added partitions and groups. The caller persists it.
    fn extended(
        &self,
        partitions: impl IntoIterator<Item = (String, i32)>,
        group: Option<String>,
    ) -> Result<Self, ResponseError> {
        if self.phase.is_ending() {
            return Err(ResponseError::ConcurrentTransactions);
        }
        let mut next = self.clone();
        if next.phase != Phase::Ongoing {
            next.phase = Phase::Ongoing;
            next.started_ms = now_ms();
            next.partitions.clear();
            next.groups.clear();
        }
        next.partitions.extend(partitions);
        next.groups.extend(group);
        Ok(next)
    }

    /// The state after EndTxn, to be persisted. `None`: the transaction already ended this way.
    fn ending(&self, commit: bool) -> Result<Option<Self>, ResponseError> {
        match (self.phase, commit) {
            (Phase::Ongoing, _) => Ok(Some(self.decided(commit))),
            // A retry: the first response was lost.
            (Phase::CompleteCommit, true) | (Phase::CompleteAbort, false) => Ok(None),
            (Phase::PrepareCommit, true) | (Phase::PrepareAbort, false) => Err(ResponseError::ConcurrentTransactions),
            _ => Err(ResponseError::InvalidTxnState),
        }
    }

    fn decided(&self, commit: bool) -> Self {
        let phase = if commit { Phase::PrepareCommit } else { Phase::PrepareAbort };
        Self { phase, ..self.clone() }
    }

    /// The decision to abort, with an epoch that fences the producer.
    fn fenced(&self) -> Self {
        Self { epoch: self.epoch.saturating_add(1), last_identity: None, ..self.decided(false) }
    }

    fn completed(&self) -> Self {
        let phase = if self.phase == Phase::PrepareCommit { Phase::CompleteCommit } else { Phase::CompleteAbort };
        Self { phase, partitions: BTreeSet::new(), groups: BTreeSet::new(), started_ms: -1, ..self.clone() }
    }

    fn has_timed_out(&self, now: i64) -> bool {
        self.phase == Phase::Ongoing && now - self.started_ms >= i64::from(self.timeout_ms)
    }
}

/// A [`Transaction`] with its volatile state.
#[derive(Debug)]
pub(crate) struct TransactionSlot {
    pub(crate) transaction: Transaction,
    /// Removed from the registry: look the transactional id up again.
    is_removed: bool,
    /// When completing the transaction last failed. The next tick retries.
    failed_at: Option<Instant>,
}
