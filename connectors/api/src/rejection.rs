//! Records that a component cannot take, each with its reason. The stage decides by the component's `on_error` whether they go to the
//! dead letter topic, stop the stage or are counted and left out; a connector or plugin host only sets them aside.

use crate::batch::{Batch, RecordRef, RecordWriter};

/// Why a record was set aside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason {
    /// A stable code such as `parse.combined` or `plugin.trap`.
    pub code: String,
    /// What was found and what was expected, for a person.
    pub message: String,
}

impl Reason {
    /// A reason.
    pub fn new(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self { code: code.into(), message: message.into() }
    }
}

/// Records set aside: a batch, and a reason for each of its records.
#[derive(Debug, Default)]
pub struct Rejections {
    /// The records as they came: original bytes, headers and origin.
    pub records: Batch,
    /// One for each record of `records`.
    pub reasons: Vec<Reason>,
}

impl Rejections {
    /// Sets a record of another batch aside.
    pub fn push(&mut self, record: RecordRef<'_>, reason: Reason) {
        self.records.push_copy(record);
        self.reasons.push(reason);
    }

    /// Sets aside a record that was never in a batch: `write` fills it in, without calling finish.
    pub fn push_with(&mut self, reason: Reason, write: impl FnOnce(&mut RecordWriter<'_>)) {
        let mut record = self.records.record();
        write(&mut record);
        record.finish();
        self.reasons.push(reason);
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.reasons.len()
    }

    /// None?
    pub fn is_empty(&self) -> bool {
        self.reasons.is_empty()
    }

    /// Forgets them all and keeps the memory.
    pub fn clear(&mut self) {
        self.records.clear();
        self.reasons.clear();
    }

    /// Each record with its reason.
    pub fn iter(&self) -> impl Iterator<Item = (RecordRef<'_>, &Reason)> {
        self.records.iter().zip(&self.reasons)
    }
}
