//! What a source connector implements.
//!
//! A source returns records *together with* the change of its position that covers them; the stage
//! commits both in one Kafka transaction (I1). A position is a set of keyed values, for example one
//! for each file, so that a source with thousands of files writes only the values that changed. A
//! source that is opened with the committed values continues with exactly the next record.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::batch::{Batch, RecordRef};
use crate::budget::MemoryBudget;
use crate::config::{OptionSpec, Section};
use crate::error::Result;
use crate::position_moves::PositionMoves;
use crate::rejection::Rejections;
use crate::schema::Schema;

/// A kind of source, as the registry lists it.
pub trait SourceConnector: Send + Sync {
    /// Its name in pipeline files: `connector = "name"`.
    fn name(&self) -> &'static str;

    /// What it reads or writes, in one line for `trunkline connectors`.
    fn summary(&self) -> &'static str;

    /// Declares the connector's own options; the runtime adds those that all sources share.
    fn options(&self) -> &'static [OptionSpec];

    /// Reads the component's section and adds every problem to its report; returns `None` if there
    /// was one. Does not contact external systems: files and servers may be absent while a pipeline
    /// file is checked.
    fn configure(&self, section: &Section<'_>) -> Option<Box<dyn SourceSpec>>;
}

/// A configured source. The runtime opens it once for each task, and again after a failure.
pub trait SourceSpec: Send + Sync {
    /// The template variables that the source adds, without the `@`: for log files `path`. Each is
    /// a header `trunkline.{name}` of every record.
    fn template_variables(&self) -> &'static [&'static str];

    /// The default topic after `{pipeline}.`: a template of the source's
    /// [`template_variables`](SourceSpec::template_variables). `None`: the component's name.
    fn default_topic(&self) -> Option<&'static str> {
        None
    }

    /// Names of the side outputs; the first has the port number 1. Each has a topic, by default
    /// `{pipeline}.{port}`, which the option `topics` changes and `inputs = ["shop.ddl"]` reads.
    /// Their records are in [`SourceBatch::side_outputs`].
    fn ports(&self) -> Vec<&'static str> {
        Vec::new()
    }

    /// The fields that its records can have, as dotted paths, if the configuration fixes them;
    /// `None` if they depend on the data. The plan checks field names in templates and plugin
    /// configurations against them.
    fn fields(&self) -> Option<Vec<String>> {
        None
    }

    /// The data sets (tables) that the configuration names exactly, each as the headers that all of
    /// its records have. Two components whose named data sets have the same topic are refused.
    fn named_data_sets(&self) -> Vec<Vec<(&'static str, String)>> {
        Vec::new()
    }

    /// Which workers run the source.
    fn placement(&self) -> Placement;

    /// Schemas known before the first record; each is published before the source starts.
    fn schemas(&self) -> Vec<Arc<Schema>>;

    /// Checks the external system and reports every prerequisite of this source that it does not
    /// meet. Changes nothing there. `task` is the value that [`SourceContext::task`] will have.
    fn preflight(&self, task: &str, runtime: &tokio::runtime::Handle) -> Vec<PreflightIssue> {
        let _ = (task, runtime);
        Vec::new()
    }

    /// Incremental snapshots, for a source that supports them: re-reads of existing data while the
    /// source keeps streaming changes.
    fn snapshots(&self) -> Option<&dyn IncrementalSnapshots> {
        None
    }

    /// Other positions that people may choose, for a source that supports them.
    fn position_moves(&self) -> Option<&dyn PositionMoves> {
        None
    }

    /// The data in another node's committed `position` that this node has too, each part described
    /// for a message. Before the first start of a node, the runtime warns of such data: the node
    /// was probably renamed.
    fn shared_data(&self, position: &[(String, Vec<u8>)]) -> Vec<String> {
        let _ = position;
        Vec::new()
    }

    /// Parses data that the source has rejected once more, with this configuration. `None`: the
    /// source does not support it.
    fn reparser(&self) -> Option<Box<dyn Reparser>> {
        None
    }

    /// Opens it at a position.
    fn open(&self, context: SourceContext) -> Result<Box<dyn Source>>;
}

/// Parses data that a source has rejected.
pub trait Reparser {
    /// Adds to `out` what becomes of rejected data: records, a rejection, or a number of dropped
    /// records. `rejected` is as the source has passed it to [`SourceBatch::rejected`], with the
    /// time of the rejection, and `code` is the reason.
    fn reparse(&mut self, rejected: RecordRef<'_>, code: &str, out: &mut SourceBatch) -> Result<()>;
}

/// Re-reads selected tables of a source while the source keeps streaming changes (`trunkline
/// snapshot`).
pub trait IncrementalSnapshots {
    /// The changes of the committed `position` that make the source read the requested tables
    /// again.
    fn request(&self, request: &SnapshotRequest<'_>, position: &[(String, Vec<u8>)]) -> Result<Vec<PositionChange>>;

    /// Asks the external system whether it accepts `condition` for the tables at these
    /// `position_keys`. An error of the domain `external` means that the system could not be
    /// reached.
    fn check_condition(&self, position_keys: &[&str], condition: &str, runtime: &tokio::runtime::Handle) -> Result<()>;

    /// The headers that all records of the table at this key of the position have in common.
    fn record_headers(&self, position_key: &str) -> Vec<(&'static str, String)>;

    /// Adds the records that delete a row which a snapshot did not find. `last` is the last record
    /// of the row; if it is a deletion itself, there is nothing to add. `now` is in milliseconds
    /// since the Unix epoch.
    fn delete(&self, last: RecordRef<'_>, now: i64, out: &mut Batch);
}

/// Which tables to read again, and which of their rows.
#[derive(Debug, Clone, Copy)]
pub struct SnapshotRequest<'a> {
    /// Globs of table names.
    pub tables: &'a [String],
    /// Restricts the rows: for a database the SQL condition that follows WHERE.
    pub condition: Option<&'a str>,
}

/// Which workers run a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placement {
    /// One task in the cluster, on any worker (databases).
    Anywhere,
    /// One task on each node, which reads that node's data (log files).
    EveryNode,
}

/// A prerequisite that the external system does not meet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreflightIssue {
    /// A stable code such as `mysql.check.row_image`.
    pub code: &'static str,
    /// What is missing, and why the connector needs it.
    pub message: String,
    /// How to fix it; for a database, the SQL statement.
    pub fix: Option<String>,
}

/// What a source is opened with.
pub struct SourceContext {
    /// The task's name: unique in the cluster, and the same on every worker.
    pub task: String,
    /// The committed position: the last value of every key that was not removed.
    pub position: Vec<(String, Vec<u8>)>,
    /// The run ends when all existing data was read (`--until-idle`).
    pub until_idle: bool,
    /// The process-wide byte budget (I6), for memory outside the batches.
    pub budget: MemoryBudget,
    /// For connectors that speak to servers; a source's thread may block on it.
    pub runtime: tokio::runtime::Handle,
    /// Scratch space of this task, empty at start; nothing in it is needed after a restart.
    pub scratch: PathBuf,
}

/// A running source. It is called from threads of its stage, one at a time, and may block them, but
/// not past the deadline of a call.
pub trait Source: Send {
    /// Adds records to `out` until it is [full](SourceBatch::is_full), the deadline has passed, or
    /// no data is available. Without data it waits for data until the deadline, or for
    /// [`SourceBatch::max_wait`] if that is longer and the source has a [`waker`](Source::waker).
    /// After an error, the records that were added before it are still delivered.
    fn fill(&mut self, out: &mut SourceBatch, deadline: Instant) -> Result<Fill>;

    /// Ends the current wait of [`fill`](Source::fill), or the next one, from another thread. With
    /// it, the runtime lets the source wait longer: it need not look for a stop in between.
    fn waker(&self) -> Option<SourceWaker> {
        None
    }

    /// Acknowledges that the records up to this position are committed in Kafka, so that the
    /// external system may discard them (a replication slot, a message queue). `position` holds the
    /// keys that the commit changed. The runtime calls it after the Kafka transaction committed and
    /// before the next [`fill`](Source::fill); after a crash the call is lost, and the next commit
    /// covers it.
    fn committed(&mut self, position: &[PositionChange]) -> Result<()> {
        let _ = position;
        Ok(())
    }

    /// How far the source is behind the external system.
    fn lag(&self) -> SourceLag;
}

/// Ends the wait of a source, from any thread.
pub type SourceWaker = Arc<dyn Fn() + Send + Sync>;

/// The result of [`Source::fill`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fill {
    /// More data may be available.
    More,
    /// All data that existed at the call was returned.
    CaughtUp,
}

/// How far a source is behind the external system. `None` means unknown, or not measured in this
/// unit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SourceLag {
    /// Bytes that were not read yet.
    pub bytes: Option<u64>,
    /// Records (rows, lines) that were not read yet.
    pub records: Option<u64>,
    /// Age of the oldest change that was not read yet.
    pub age: Option<Duration>,
    /// How long the external system still keeps the oldest change that was not read yet.
    pub retention_left: Option<Duration>,
}

impl SourceLag {
    /// Nothing is left to read, as far as the source knows.
    pub fn is_caught_up(&self) -> bool {
        self.bytes.unwrap_or(0) == 0 && self.records.unwrap_or(0) == 0
    }
}

/// The records of one [`Source::fill`], with the position that covers them.
#[derive(Default)]
pub struct SourceBatch {
    /// Records, in order, each with its [ordering key](crate::batch::Entry::ordering_key).
    pub records: Batch,
    /// Records of the source's side outputs ([`SourceSpec::ports`]), each with its
    /// [`port`](crate::batch::Entry::port). The transforms in `apply` do not see them.
    pub side_outputs: Batch,
    /// Data that could not be turned into a record.
    pub rejected: Rejections,
    /// Records that a named rule of the source dropped (I3).
    pub dropped: u64,
    /// Changes of the position, committed with all of the above; a later change of a key replaces
    /// an earlier one.
    pub position: Vec<PositionChange>,
    /// Schemas that records of this batch name for the first time.
    pub schemas: Vec<Arc<Schema>>,
    /// Data sets (tables) that the source reads from this batch on: the headers that all records of
    /// one have in common. Two of them never share a topic whose template distinguishes them.
    pub data_sets: Vec<Vec<(&'static str, String)>>,
    /// Tables, by their keys in the position, whose snapshot starts again with this batch. At its
    /// end the runtime deletes the rows that it did not find.
    pub snapshot_begins: Vec<String>,
    /// Tables, by their keys in the position, whose snapshot is complete with this batch.
    pub snapshot_ends: Vec<String>,
    /// Size limit of the batch in bytes.
    pub max_bytes: usize,
    /// Limit on the number of records.
    pub max_records: usize,
    /// How long a source without data waits that has a [`waker`](Source::waker). Zero: until the
    /// deadline.
    pub max_wait: Duration,
}

/// A keyed value of a source's position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PositionChange {
    /// Which part of the source, for example a file's identity.
    pub key: String,
    /// Its new value; `None` removes the key.
    pub value: Option<Vec<u8>>,
}

impl SourceBatch {
    /// An empty batch with limits.
    pub fn with_limits(max_bytes: usize, max_records: usize) -> Self {
        Self { max_bytes, max_records, ..Self::default() }
    }

    /// A limit is reached.
    pub fn is_full(&self) -> bool {
        self.bytes() >= self.max_bytes
            || self.records.len() + self.side_outputs.len() + self.rejected.len() >= self.max_records
    }

    /// Bytes of all records, as the byte budget counts them (I6).
    pub fn bytes(&self) -> usize {
        self.records.bytes() + self.side_outputs.bytes() + self.rejected.records.bytes()
    }

    /// There is nothing in it that the runtime has to handle.
    pub fn carries_nothing(&self) -> bool {
        let no_tables = self.snapshot_begins.is_empty() && self.snapshot_ends.is_empty() && self.data_sets.is_empty();
        self.is_empty() && self.schemas.is_empty() && no_tables
    }

    /// The batch has no records and no change of the position.
    pub fn is_empty(&self) -> bool {
        let no_records = self.records.is_empty() && self.side_outputs.is_empty() && self.rejected.is_empty();
        no_records && self.position.is_empty() && self.dropped == 0
    }

    /// Sets one value of the position.
    pub fn set_position(&mut self, key: &str, value: Option<Vec<u8>>) {
        match self.position.iter_mut().find(|change| change.key == key) {
            Some(change) => change.value = value,
            None => self.position.push(PositionChange { key: key.to_owned(), value }),
        }
    }

    /// Removes all content and keeps the memory.
    pub fn clear(&mut self) {
        self.records.clear();
        self.side_outputs.clear();
        self.rejected.clear();
        self.dropped = 0;
        self.position.clear();
        self.schemas.clear();
        self.data_sets.clear();
        self.snapshot_begins.clear();
        self.snapshot_ends.clear();
    }
}
