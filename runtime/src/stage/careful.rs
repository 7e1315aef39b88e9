//! `on_error = "stop"`: the records before the rejected one are committed, and the position is at
//! the rejected one.
//!
//! A source or transform produces many records in one transaction, and the rejection of one ends
//! them all. The stage then runs once more from its committed position, record by record: it
//! commits the records before the rejected one, and ends with the same error. Sinks have [stop
//! points](super::sink) instead.

use trunkline_connector::{Batch, RecordRef, Result};

use super::dead_letters::DeadLetters;
use super::stop_signal::StopSignal;
use crate::checkpoint::Counters;

/// The code of the error with which `on_error = "stop"` ends a stage.
pub(super) const RECORD_REJECTED: &str = "stage.record_rejected";

/// Runs a stage, and after a rejection once more, record by record. `run` takes whether it works
/// record by record.
pub(super) fn run_until_rejection(stop: &StopSignal, run: impl Fn(bool) -> Result<()>) -> Result<()> {
    match run(false) {
        Err(error) if error.code == RECORD_REJECTED && !stop.is_set() => run(true),
        outcome => outcome,
    }
}

/// A batch of one record.
pub(super) fn single(record: RecordRef<'_>) -> Batch {
    let mut batch = Batch::default();
    batch.push_copy(record);
    batch
}

/// What was pending before a record.
pub(super) struct Mark {
    counters: Counters,
    dead_letters: usize,
}

impl Mark {
    pub(super) fn of(counters: &Counters, dead_letters: &DeadLetters) -> Self {
        Self { counters: counters.clone(), dead_letters: dead_letters.len() }
    }

    /// Takes back a rejected record. `delivered` is the number of records that it became before the
    /// rejection (a transform may emit several). Returns whether nothing of it is pending, so that
    /// the records before it can be committed.
    pub(super) fn undo(self, delivered: u64, counters: &mut Counters, dead_letters: &DeadLetters) -> bool {
        *counters = self.counters;
        delivered == 0 && dead_letters.len() == self.dead_letters
    }
}
