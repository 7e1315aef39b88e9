//! What a source connector implements.
//!
//! A source hands out records *together with* the change of its position that covers them; the stage commits both in one Kafka
//! transaction (I1). A position is a set of keyed values (for log files one a file, for a database one in all), so that a source with
//! thousands of files writes only what moved. Started again with the committed values, a source goes on with exactly the record
//! that follows.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::batch::Batch;
use crate::budget::MemoryBudget;
use crate::config::Section;
use crate::error::{Error, Result};
use crate::rejection::Rejections;
use crate::schema::Schema;

/// A kind of source, as the registry lists it.
pub trait SourceConnector: Send + Sync {
    /// Its name in pipeline files: `connector = "name"`.
    fn name(&self) -> &'static str;

    /// Reads the component's section. Problems go to the section's report, all of them; `None` if there was one. Touches nothing
    /// outside: files and servers may be absent while a pipeline file is checked.
    fn configure(&self, section: &Section<'_>) -> Option<Box<dyn SourceSpec>>;
}

/// A source as configured, ready to be opened any number of times.
pub trait SourceSpec: Send + Sync {
    /// The names that its records may be addressed by in templates, without the `@`: for log files `path`. Each is a header
    /// `trunkline.{name}` of every record.
    fn at_names(&self) -> &'static [&'static str];

    /// What follows `{pipeline}.` in the topic of a source that names none: a template of its [`at_names`](SourceSpec::at_names) for a source
    /// whose records belong to several topics. `None`: the component's name.
    fn default_topic(&self) -> Option<&'static str> {
        None
    }

    /// What comes out of it besides its records, each on a topic of its own: names of output ports, the first of which has the number 1. Readers
    /// name them (`inputs = ["shop.ddl"]`), `topics` names their topics, and `{pipeline}.{port}` is their topic by default. Their records are in
    /// [`SourceBatch::others`].
    fn ports(&self) -> Vec<&'static str> {
        Vec::new()
    }

    /// Which workers run it.
    fn placement(&self) -> Placement;

    /// Schemas known before the first record; each is published before the source starts.
    fn schemas(&self) -> Vec<Arc<Schema>>;

    /// Looks at the system outside and says what it lacks for this source to work well; changes nothing there. `task` is what
    /// [`SourceContext::task`] will be.
    fn check(&self, task: &str, runtime: &tokio::runtime::Handle) -> Vec<Lack> {
        let _ = (task, runtime);
        Vec::new()
    }

    /// How a committed position changes so that what somebody wants (for a database tables) is read once more, beside what comes.
    fn read_again(&self, wanted: &ReadAgain<'_>, position: &[(String, Vec<u8>)]) -> Result<Vec<PositionChange>> {
        let _ = (wanted, position);
        let message = "this source takes no snapshots: what it has read is not asked for again";
        Err(Error::config("source.no_snapshot", message))
    }

    /// Asks the system outside whether it can read these parts (keys of the position) by this condition. An error of the domain `external` says that
    /// it could not be asked.
    fn check_condition(&self, parts: &[&str], condition: &str, runtime: &tokio::runtime::Handle) -> Result<()> {
        let _ = (parts, condition, runtime);
        Ok(())
    }

    /// Opens it at a position.
    fn open(&self, context: SourceContext) -> Result<Box<dyn Source>>;
}

/// What a source is to read once more.
#[derive(Debug, Clone, Copy)]
pub struct ReadAgain<'a> {
    /// What chooses the parts: for a database globs of tables.
    pub names: &'a [String],
    /// Of these parts only what fulfils this, in the words of the system: for a database what follows WHERE.
    pub condition: Option<&'a str>,
}

/// Which workers run a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placement {
    /// One task in the cluster, on any worker: a database.
    Anywhere,
    /// One task on every node, each reading what is there: log files.
    EveryNode,
}

/// Something that a system outside lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lack {
    /// A stable code such as `mysql.check.row_image`.
    pub code: &'static str,
    /// What is missing, and what it is for.
    pub message: String,
    /// What mends it: for a database the statement.
    pub mend: Option<String>,
}

/// What a source is opened with.
pub struct SourceContext {
    /// The task's name, unlike any other in the cluster and the same wherever it runs.
    pub task: String,
    /// The committed position: the last value of every key that was not removed.
    pub position: Vec<(String, Vec<u8>)>,
    /// The run ends when everything there is has been read (`--until-idle`).
    pub until_idle: bool,
    /// The process-wide byte budget, for what a source keeps beside its batches.
    pub budget: MemoryBudget,
    /// For connectors that speak to servers; a source's thread may block on it.
    pub runtime: tokio::runtime::Handle,
    /// Scratch space of this task, empty at start; nothing in it is needed after a restart.
    pub scratch: PathBuf,
}

/// A running source. It has a thread of its own and may block there, but never past the deadline it is given.
pub trait Source: Send {
    /// Adds records to `out` until it is [full](SourceBatch::is_full), the deadline has passed, or nothing is at hand. With nothing at
    /// hand it waits for something to come until the deadline. On an error, what was added before it is kept and delivered.
    fn fill(&mut self, out: &mut SourceBatch, deadline: Instant) -> Result<Fill>;

    /// How far behind it is.
    fn progress(&self) -> SourceProgress;
}

/// What [`Source::fill`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fill {
    /// There may be more.
    More,
    /// Everything that was there at this call has been handed out.
    CaughtUp,
}

/// How far a source is behind what it reads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SourceProgress {
    /// Bytes (or whatever the source counts in) not read yet.
    pub behind: u64,
    /// Things it reads from: files, tables.
    pub parts: u64,
    /// How much longer the system outside keeps what was not read yet; `None` if it does not throw it away by itself, or nobody knows.
    pub headroom: Option<Duration>,
}

/// What a source hands out in one go.
#[derive(Default)]
pub struct SourceBatch {
    /// Records, in order. Their [`partition`](crate::batch::Entry::partition) is the lane.
    pub records: Batch,
    /// Records of the source's other [ports](SourceSpec::ports), each with its [`port`](crate::batch::Entry::port). They are not for the transforms
    /// that the source applies.
    pub others: Batch,
    /// What could not be made a record.
    pub rejected: Rejections,
    /// Records that a named rule of the source left out (counted as dropped, I3).
    pub dropped: u64,
    /// How the position moves when all of the above is committed; a later change of a key replaces an earlier one.
    pub position: Vec<PositionChange>,
    /// Schemas that records of this batch name for the first time.
    pub schemas: Vec<Arc<Schema>>,
    /// The batch is full at so many bytes.
    pub max_bytes: usize,
    /// The batch is full at so many records.
    pub max_records: usize,
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

    /// No room for more?
    pub fn is_full(&self) -> bool {
        self.bytes() >= self.max_bytes
            || self.records.len() + self.others.len() + self.rejected.len() >= self.max_records
    }

    /// Bytes of everything in it, as the byte budget counts them (I6).
    pub fn bytes(&self) -> usize {
        self.records.bytes() + self.others.bytes() + self.rejected.records.bytes()
    }

    /// Nothing in it, not even a move of the position?
    pub fn is_empty(&self) -> bool {
        let no_records = self.records.is_empty() && self.others.is_empty() && self.rejected.is_empty();
        no_records && self.position.is_empty() && self.dropped == 0
    }

    /// Records the move of one part of the position.
    pub fn set_position(&mut self, key: &str, value: Option<Vec<u8>>) {
        match self.position.iter_mut().find(|change| change.key == key) {
            Some(change) => change.value = value,
            None => self.position.push(PositionChange { key: key.to_owned(), value }),
        }
    }

    /// Empties it and keeps the memory.
    pub fn clear(&mut self) {
        self.records.clear();
        self.others.clear();
        self.rejected.clear();
        self.dropped = 0;
        self.position.clear();
        self.schemas.clear();
    }
}
