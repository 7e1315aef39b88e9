//! The option `commit = { bytes, records, age, idle }` of a sink.

use std::time::Duration;

use trunkline_connector::CommitPolicy;
use trunkline_connector::config::{ByteSize, FromNode, Mismatch, Section};

/// The limits that the pipeline file names.
#[derive(Default)]
pub(super) struct CommitOptions {
    bytes: Option<u64>,
    records: Option<u64>,
    age: Option<Duration>,
    idle: Option<Duration>,
}

impl CommitOptions {
    /// Reads the option; problems go to the section's report.
    pub(super) fn read(section: &Section<'_>) -> Self {
        let Some(commit) = section.section("commit") else { return Self::default() };
        let options = Self {
            bytes: positive(&commit, "bytes", |size: &ByteSize| size.0 > 0).map(|size| size.0),
            records: positive(&commit, "records", |records: &u64| *records > 0),
            age: positive(&commit, "age", |age: &Duration| !age.is_zero()),
            idle: positive(&commit, "idle", |idle: &Duration| !idle.is_zero()),
        };
        commit.finish();
        options
    }

    /// Replaces the limits of the connector's policy by those that the pipeline file sets.
    pub(super) fn apply(&self, policy: CommitPolicy) -> CommitPolicy {
        CommitPolicy {
            bytes: self.bytes.unwrap_or(policy.bytes),
            records: self.records.unwrap_or(policy.records),
            age: self.age.unwrap_or(policy.age),
            idle: self.idle.unwrap_or(policy.idle),
            max_open_files: policy.max_open_files,
        }
    }
}

fn positive<T: FromNode>(section: &Section<'_>, key: &'static str, is_positive: fn(&T) -> bool) -> Option<T> {
    let value = section.optional::<T>(key)?;
    if is_positive(&value) {
        return Some(value);
    }
    if let Some(node) = section.node(key) {
        section.mismatch(key, node, Mismatch::new("is zero"), format!("{} above zero", T::expected()));
    }
    None
}
