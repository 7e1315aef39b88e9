//! The transaction coordinator (KIP-98).
//!
//! ```text
//! Empty --add partitions--> Ongoing --EndTxn, timeout, fence--> PrepareCommit | PrepareAbort --> CompleteCommit | CompleteAbort
//! ```
//!
//! The outcome is decided by one frame of the internal log, the one that says *Prepare*. Everything after it only carries
//! the decision out, can be repeated, and is repeated at the next start or tick if it was cut short: a marker in each
//! partition that the transaction wrote to, then one frame that moves the pending offsets and says *Complete*.
//!
//! The lock of a transactional id is held over each step, and over each append of its producer: a batch is either in the
//! log before its transaction ends, or refused. So no transaction can hang (the server side of KIP-890).
//!
//! A producer is fenced by its epoch. InitProducerId gives a higher one to the new producer, and a transaction that runs
//! into its timeout is aborted with a higher one as well, so whatever the old producer sends from then on is refused.

mod registry;

use std::collections::BTreeSet;
use std::time::Instant;

use kafka_protocol::ResponseError;
use serde::{Deserialize, Serialize};

pub(crate) use self::registry::{Coordinator, Requester};
use crate::clock::now_ms;

/// The highest epoch a producer id is used with; after it comes a new producer id.
const MAX_EPOCH: i16 = i16::MAX - 1;
pub(crate) const NO_PRODUCER_ID: i64 = -1;
pub(crate) const NO_EPOCH: i16 = -1;

/// Where a transaction is.
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

    /// As ListTransactions writes it.
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

    /// The outcome was decided and is being carried out.
    fn is_ending(self) -> bool {
        matches!(self, Self::PrepareCommit | Self::PrepareAbort)
    }
}

/// The state of one transactional id. Serialised as it is into the internal log.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Transaction {
    pub(crate) producer_id: i64,
    pub(crate) epoch: i16,
    /// The epoch before the last InitProducerId, so that its retry is recognised (KIP-360).
    last_epoch: i16,
    pub(crate) timeout_ms: i32,
    pub(crate) phase: Phase,
    pub(crate) partitions: BTreeSet<(String, i32)>,
    pub(crate) groups: BTreeSet<String>,
    /// When the first partition or group was added; -1 when there is none.
    pub(crate) started_ms: i64,
    updated_ms: i64,
}

impl Transaction {
    fn new(producer_id: i64, timeout_ms: i32) -> Self {
        Self {
            producer_id,
            epoch: 0,
            last_epoch: NO_EPOCH,
            timeout_ms,
            phase: Phase::Empty,
            partitions: BTreeSet::new(),
            groups: BTreeSet::new(),
            started_ms: -1,
            updated_ms: now_ms(),
        }
    }

    /// Whether this is the producer that the transactional id belongs to now.
    fn check_producer(&self, producer_id: i64, epoch: i16) -> Result<(), ResponseError> {
        if producer_id != self.producer_id {
            return Err(ResponseError::InvalidProducerIdMapping);
        }
        if epoch != self.epoch {
            return Err(ResponseError::ProducerFenced);
        }
        Ok(())
    }

    /// Whether a batch may be appended to a partition.
    fn check_append(&self, producer_id: i64, epoch: i16, topic: &str, partition: i32) -> Result<(), ResponseError> {
        self.check_producer(producer_id, epoch).map_err(|error| match error {
            // What Produce has answered since before there was a code of its own.
            ResponseError::ProducerFenced => ResponseError::InvalidProducerEpoch,
            other => other,
        })?;
        let is_part = self.phase == Phase::Ongoing && self.partitions.contains(&(topic.to_owned(), partition));
        if is_part { Ok(()) } else { Err(ResponseError::InvalidTxnState) }
    }

    /// Adds what the producer is about to write to. The caller saves the result.
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

    /// What a request to end the transaction leads to: nothing to do any more, or the decision to be saved.
    fn ending(&self, commit: bool) -> Result<Option<Self>, ResponseError> {
        match (self.phase, commit) {
            (Phase::Ongoing, _) => Ok(Some(self.decided(commit))),
            // The answer to the first request was lost.
            (Phase::CompleteCommit, true) | (Phase::CompleteAbort, false) => Ok(None),
            (Phase::PrepareCommit, true) | (Phase::PrepareAbort, false) => Err(ResponseError::ConcurrentTransactions),
            _ => Err(ResponseError::InvalidTxnState),
        }
    }

    fn decided(&self, commit: bool) -> Self {
        let phase = if commit { Phase::PrepareCommit } else { Phase::PrepareAbort };
        Self { phase, ..self.clone() }
    }

    /// The decision to abort, in the name of an epoch that fences the producer.
    fn fenced(&self) -> Self {
        Self { epoch: self.epoch.saturating_add(1), last_epoch: NO_EPOCH, ..self.decided(false) }
    }

    fn completed(&self) -> Self {
        let phase = if self.phase == Phase::PrepareCommit { Phase::CompleteCommit } else { Phase::CompleteAbort };
        Self { phase, partitions: BTreeSet::new(), groups: BTreeSet::new(), started_ms: -1, ..self.clone() }
    }

    fn has_timed_out(&self, now: i64) -> bool {
        self.phase == Phase::Ongoing && now - self.started_ms >= i64::from(self.timeout_ms)
    }
}

/// A [`Transaction`] and what is only in memory.
#[derive(Debug)]
pub(crate) struct Cell {
    pub(crate) transaction: Transaction,
    /// Removed from the registry: whoever holds it has to look again.
    is_removed: bool,
    /// When carrying out a decision failed last; the next tick tries again.
    failed_at: Option<Instant>,
}
