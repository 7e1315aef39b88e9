//! The transaction coordinator (KIP-98).
//!
//! ```text
//! Empty --add partitions--> Ongoing --EndTxn, timeout, fence--> Prepare* --markers--> Complete*
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
//! Clients with `transaction.version` 2 also get a new epoch with every end of a transaction
//! (KIP-890 part 2).

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

/// A producer id and an epoch.
type Identity = (i64, i16);

/// The client's side of the feature `transaction.version`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) enum TransactionVersion {
    /// The client adds partitions before it writes to them. Its epoch changes only by
    /// InitProducerId.
    #[default]
    V1,
    /// Writing to a partition adds it. Every end of a transaction increments the epoch (KIP-890).
    V2,
}

impl TransactionVersion {
    /// The version of a client that sends a request in `version`. `first` is the first version of
    /// this request with `transaction.version` 2.
    pub(crate) fn of(version: i16, first: i16) -> Self {
        if version >= first { Self::V2 } else { Self::V1 }
    }
}

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
    /// The producer id and epoch that the current producer named in the request that gave it the
    /// current ones: a retry of that request names them again (KIP-360). `None` if that request
    /// named no producer. The previous identity then belongs to another producer, which must stay
    /// fenced.
    #[serde(default)]
    last_identity: Option<Identity>,
    /// The producer id after the end of this transaction, when the epochs are used up.
    #[serde(default)]
    next_producer_id: Option<i64>,
    /// How the producer ends its transactions.
    #[serde(default)]
    version: TransactionVersion,
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
            next_producer_id: None,
            version: TransactionVersion::V1,
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

    /// Whether a partition is part of the open transaction.
    fn has_partition(&self, topic: &str, partition: i32) -> bool {
        self.phase == Phase::Ongoing && self.partitions.contains(&(topic.to_owned(), partition))
    }

    /// Whether the offsets of a group are part of the open transaction.
    fn has_group(&self, group: &str) -> bool {
        self.phase == Phase::Ongoing && self.groups.contains(group)
    }

    /// The state with added partitions and groups. The caller persists it.
    fn extended(
        &self,
        partitions: impl IntoIterator<Item = (String, i32)>,
        group: Option<String>,
        version: TransactionVersion,
    ) -> Result<Self, ResponseError> {
        if self.phase.is_ending() {
            return Err(ResponseError::ConcurrentTransactions);
        }
        let mut next = self.clone();
        if next.phase != Phase::Ongoing {
            next.phase = Phase::Ongoing;
            // The producer uses its identity, so it repeats no request with the previous one.
            next.last_identity = None;
            next.started_ms = now_ms();
            next.partitions.clear();
            next.groups.clear();
        }
        next.partitions.extend(partitions);
        next.groups.extend(group);
        next.version = version;
        Ok(next)
    }

    /// The state after EndTxn, to be persisted. `None`: the transaction already ended this way.
    fn ending(
        &self,
        requester: Identity,
        commit: bool,
        version: TransactionVersion,
    ) -> Result<Option<Self>, ResponseError> {
        let is_current = requester == (self.producer_id, self.epoch);
        let has_ended = !matches!(self.phase, Phase::Empty | Phase::Ongoing);
        let is_retry = match version {
            // The epoch stays the same: a retry looks like the first request.
            TransactionVersion::V1 => has_ended && is_current,
            // Not any request with the previous epoch: it may belong to a fenced producer.
            TransactionVersion::V2 => has_ended && self.last_identity == Some(requester),
        };
        let is_same_outcome = match self.phase {
            Phase::PrepareCommit | Phase::CompleteCommit => commit,
            _ => !commit,
        };
        match self.phase {
            Phase::Ongoing if is_current => Ok(Some(self.decided(commit, version))),
            Phase::PrepareCommit | Phase::PrepareAbort if is_retry && is_same_outcome => {
                Err(ResponseError::ConcurrentTransactions)
            }
            // The first response was lost.
            Phase::CompleteCommit | Phase::CompleteAbort if is_retry && is_same_outcome => Ok(None),
            // Version 2 aborts to get a new epoch, also before the transaction has partitions.
            Phase::Empty | Phase::CompleteCommit | Phase::CompleteAbort
                if is_current && !commit && version == TransactionVersion::V2 =>
            {
                Ok(Some(self.decided(false, version)))
            }
            _ if is_retry => Err(ResponseError::InvalidTxnState),
            _ => self.check_producer(requester.0, requester.1).and(Err(ResponseError::InvalidTxnState)),
        }
    }

    /// The decision. With version 2 the producer continues with the next epoch, so that its late
    /// requests cannot reach the next transaction (KIP-890).
    fn decided(&self, commit: bool, version: TransactionVersion) -> Self {
        let phase = if commit { Phase::PrepareCommit } else { Phase::PrepareAbort };
        match version {
            TransactionVersion::V1 => Self { phase, ..self.clone() },
            TransactionVersion::V2 => Self {
                phase,
                epoch: self.epoch.saturating_add(1),
                last_identity: Some((self.producer_id, self.epoch)),
                ..self.clone()
            },
        }
    }

    /// The decision to abort for another producer, with an epoch that fences the current one.
    fn fenced(&self) -> Self {
        Self { epoch: self.epoch.saturating_add(1), last_identity: None, ..self.decided(false, TransactionVersion::V1) }
    }

    /// The decision to abort after the timeout. A producer with version 2 may learn of the abort
    /// and continue with the next epoch; one with version 1 is fenced.
    fn timed_out(&self) -> Self {
        match self.version {
            TransactionVersion::V1 => self.fenced(),
            TransactionVersion::V2 => self.decided(false, TransactionVersion::V2),
        }
    }

    /// Whether the decision has used up the epochs of a producer that continues: it needs a new
    /// producer id.
    fn needs_producer_id(&self) -> bool {
        self.epoch > MAX_EPOCH && self.last_identity.is_some()
    }

    fn completed(&self) -> Self {
        let phase = if self.phase == Phase::PrepareCommit { Phase::CompleteCommit } else { Phase::CompleteAbort };
        let (producer_id, epoch) = self.next_producer_id.map_or((self.producer_id, self.epoch), |next| (next, 0));
        Self {
            producer_id,
            epoch,
            next_producer_id: None,
            phase,
            partitions: BTreeSet::new(),
            groups: BTreeSet::new(),
            started_ms: -1,
            ..self.clone()
        }
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
