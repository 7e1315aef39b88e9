//! What a sink task knows of a partition that it owns.

use std::time::Instant;

use serde_json::Value;

use super::dead_letters::DeadLetters;
use crate::checkpoint::{Counters, IntentRecord, IntentState};

/// See the module's header.
#[derive(Default)]
pub(super) struct Claimed {
    /// Committed totals.
    pub(super) totals: Counters,
    /// Counted since.
    pub(super) pending: Counters,
    /// Dead letters since.
    pub(super) letters: DeadLetters,
    /// The group's committed offset; -1 if there is none.
    pub(super) committed: i64,
    /// First offset that is pending.
    pub(super) first: i64,
    /// The offset after the last one processed; equal to `first` when nothing is pending.
    pub(super) next: i64,
    /// When the first pending record came.
    pub(super) since: Option<Instant>,
}

impl Claimed {
    /// Is there anything to publish or to commit?
    pub(super) fn has_pending(&self) -> bool {
        self.since.is_some()
    }

    /// The offset for a transaction that is to move none.
    pub(super) fn unmoved(&self) -> i64 {
        // Before the first commit nothing lies below the first record.
        if self.committed >= 0 { self.committed } else { self.first }
    }

    /// The row once what is pending is promised (`intent` given) or published (none).
    pub(super) fn row(&self, intent: Option<&Value>) -> IntentRecord {
        let mut counters = self.totals.clone();
        counters.add(&self.pending);
        IntentRecord {
            state: if intent.is_some() { IntentState::Prepared } else { IntentState::Committed },
            payload: intent.cloned().unwrap_or(Value::Null),
            first: self.first,
            next: self.next,
            counters,
        }
    }
}

/// The offset to settle a claim with that an earlier task left: the committed one, or where nothing was committed yet the row's own.
pub(super) fn unmoved(committed: i64, row: &IntentRecord) -> i64 {
    if committed >= 0 { committed } else { row.next }
}
