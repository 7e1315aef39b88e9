//! When the runtime commits the buffered records of a topic partition.

use std::time::{Duration, Instant};

/// The option `commit = { bytes, records, age, idle }` of a sink: a topic partition is committed
/// when one of the limits is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommitPolicy {
    /// Bytes of one output (a file, a request), compared with [`Buffered::bytes`].
    pub bytes: u64,
    /// Records of one output, compared with [`Buffered::records`].
    pub records: u64,
    /// Time since the first buffered record of the topic partition.
    pub age: Duration,
    /// Time since the last buffered record of the topic partition.
    pub idle: Duration,
    /// Open outputs of all topic partitions of a task: above this number the topic partition with
    /// the largest output is committed.
    pub max_open_files: usize,
}

impl Default for CommitPolicy {
    /// For destinations that are fast to write to and that people wait for: small requests, sent
    /// soon.
    fn default() -> Self {
        Self {
            bytes: 4 << 20,
            records: 10_000,
            age: Duration::from_millis(200),
            idle: Duration::from_millis(100),
            max_open_files: usize::MAX,
        }
    }
}

impl CommitPolicy {
    /// One output has reached a size limit.
    pub fn is_full(&self, buffered: &Buffered) -> bool {
        buffered.bytes >= self.bytes || buffered.records >= self.records
    }

    /// When the age or the idle limit is reached, given the times of the first and the last
    /// buffered record.
    pub fn due_at(&self, first: Instant, last: Instant) -> Instant {
        (first + self.age).min(last + self.idle)
    }
}

/// What a sink has buffered for one topic partition and not sealed or delivered yet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Buffered {
    /// Bytes of the largest output, encoded as it will be written.
    pub bytes: u64,
    /// Records of the output with the most records.
    pub records: u64,
    /// Open outputs that hold a file descriptor or a connection.
    pub open_files: usize,
}

impl Buffered {
    /// Nothing is buffered.
    pub fn is_empty(&self) -> bool {
        self.records == 0
    }
}
