//! Records that a component cannot process, each with its reason. The component's `on_error`
//! decides whether the stage sends them to the dead letter topic, stops, or counts and drops them.

use crate::batch::{Batch, RecordRef, RecordWriter};

/// Why a record was rejected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason {
    /// A stable code such as `parse.combined` or `plugin.trap`.
    pub code: String,
    /// What was found and what was expected.
    pub message: String,
}

impl Reason {
    /// A reason with this code and message.
    pub fn new(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self { code: code.into(), message: message.into() }
    }
}

/// Rejected records: a batch, and a reason for each of its records.
#[derive(Debug, Default)]
pub struct Rejections {
    /// The records with their original bytes, headers and origin.
    pub records: Batch,
    /// One for each record of `records`.
    pub reasons: Vec<Reason>,
}

impl Rejections {
    /// Rejects a record of another batch.
    pub fn push(&mut self, record: RecordRef<'_>, reason: Reason) {
        self.records.push_copy(record);
        self.reasons.push(reason);
    }

    /// Rejects a record that was never in a batch: `write` sets its parts and does not call finish.
    pub fn push_with(&mut self, reason: Reason, write: impl FnOnce(&mut RecordWriter<'_>)) {
        let mut record = self.records.record();
        write(&mut record);
        record.finish();
        self.reasons.push(reason);
    }

    /// Number of rejected records.
    pub fn len(&self) -> usize {
        self.reasons.len()
    }

    /// No record was rejected.
    pub fn is_empty(&self) -> bool {
        self.reasons.is_empty()
    }

    /// Removes all records and keeps the memory.
    pub fn clear(&mut self) {
        self.records.clear();
        self.reasons.clear();
    }

    /// Each record with its reason.
    pub fn iter(&self) -> impl Iterator<Item = (RecordRef<'_>, &Reason)> {
        self.records.iter().zip(&self.reasons)
    }
}
