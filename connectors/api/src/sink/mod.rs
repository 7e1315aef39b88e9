//! What a sink connector implements.
//!
//! A connector formats records and calls its destination. The runtime owns everything else:
//! batching, timers, retry with backoff, memory, order, and the Kafka transactions that move the
//! consumer offsets. A connector chooses the kind that fits its destination ([`Sink`]):
//!
//! | kind | for | what the author writes |
//! |---|---|---|
//! | [`IdempotentSink`] | destinations where repeated writes change nothing | `deliver` |
//! | [`TwoPhaseSink`] | object stores, staged loads | `write` .. `commit`, `abort` |
//!
//! `docs/connectors/writing-a-sink.md` walks through an example of each kind
//! (`connectors/api/examples`).

mod commit_policy;
mod idempotent;
mod two_phase;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::batch::Batch;
use crate::budget::MemoryBudget;
use crate::config::{OptionSpec, Section};
use crate::error::{Error, Result};
use crate::schema::{Schema, SchemaId};
use crate::source::PreflightIssue;
use crate::template::Template;

pub use commit_policy::{Buffered, CommitPolicy};
pub use idempotent::{Delivery, IdempotentSink, InFlight, PartitionRecords, PendingRecord, RecordIndex};
pub use two_phase::{ErasedTwoPhaseSink, SinkWriter, TwoPhaseSink};

/// A kind of sink, as the registry lists it.
pub trait SinkConnector: Send + Sync {
    /// Its name in pipeline files: `connector = "name"`.
    fn name(&self) -> &'static str;

    /// What it reads or writes, in one line for `trunkline connectors`.
    fn summary(&self) -> &'static str;

    /// Declares the connector's own options; the runtime adds those that all sinks share.
    fn options(&self) -> &'static [OptionSpec];

    /// Reads the component's section and adds every problem to its report; returns `None` if there
    /// was one. `template_variables` are the names after `@` that templates may use for records of
    /// this sink's inputs. Does not contact the destination.
    fn configure(&self, section: &Section<'_>, template_variables: &[&str]) -> Option<Box<dyn SinkSpec>>;
}

/// Reads the newest records of a sink's inputs, without those of topics whose records pass
/// transforms in the sink.
pub type RecordSample<'a> = dyn FnMut() -> Result<Batch> + 'a;

/// A configured sink. The runtime opens it once for each task, and again after a failure.
pub trait SinkSpec: Send + Sync {
    /// Connects, and checks that the destination can be written to.
    fn open(&self, context: SinkContext) -> Result<Sink>;

    /// The defaults of the option `commit = { bytes, records, age, idle }`, which the runtime
    /// parses and applies.
    fn commit_policy(&self) -> CommitPolicy {
        CommitPolicy::default()
    }

    /// Checks the destination and reports every prerequisite of this sink that it does not meet.
    /// Changes nothing there that stays. `name` is the value that [`SinkContext::name`] will have.
    fn preflight(&self, name: &str, runtime: &tokio::runtime::Handle) -> Vec<PreflightIssue> {
        let _ = (name, runtime);
        Vec::new()
    }

    /// Checks that records such as the newest ones of the sink's inputs, which `records` reads, can
    /// be written to what the destination has, and reports each reason why not. Changes nothing
    /// there.
    fn preflight_records(&self, context: SinkContext, records: &mut RecordSample<'_>) -> Vec<PreflightIssue> {
        let _ = (context, records);
        Vec::new()
    }

    /// The option whose value makes a repeated delivery visible, and what a reader then sees;
    /// `None` if every record is written exactly once in effect. `trunkline validate` warns of it.
    fn at_least_once(&self) -> Option<(&'static str, &'static str)> {
        None
    }

    /// The place that the sink writes to. Equal places have equal names, and the name of a place
    /// inside of another one starts with that one's name and a slash. `None`: places cannot be
    /// compared, so that the sink cannot be replayed.
    fn destination(&self) -> Option<String> {
        None
    }

    /// Records that are delivered again, at any later time, leave the destination as it is.
    fn repeats_change_nothing(&self) -> bool {
        false
    }

    /// The committed output at the destination, as its own metadata describe it; `None` if the
    /// sink's output does not name the records in it.
    fn list_output(&self, runtime: &tokio::runtime::Handle) -> Result<Option<OutputListing>> {
        let _ = runtime;
        Ok(None)
    }

    /// Passes the rows of a file of [`SinkSpec::list_output`] to `each`: the columns with a value,
    /// in the order of their names, with the value as text. `scratch` is a folder for temporary
    /// files.
    fn read_rows(
        &self,
        file: &OutputFile,
        scratch: &Path,
        runtime: &tokio::runtime::Handle,
        each: EachRow<'_>,
    ) -> Result<()> {
        let _ = (file, scratch, runtime, each);
        Err(Error::internal("sink.read_rows", "the connector lists files, and cannot read them"))
    }

    /// The folder of a file of [`SinkSpec::list_output`], relative to the destination.
    fn folder_of(&self, file: &OutputFile) -> String {
        let _ = file;
        String::new()
    }

    /// Counts the rows at the destination that hold records of these offsets (from the first to the
    /// one before the last), where rows name their records. `None` where they do not. At most
    /// `gaps` ranges of offsets without a row are listed for each partition.
    fn count_rows(
        &self,
        ranges: &OffsetRanges,
        gaps: usize,
        runtime: &tokio::runtime::Handle,
    ) -> Result<Option<RowCounts>> {
        let _ = (ranges, gaps, runtime);
        Ok(None)
    }

    /// What the destination has of records that the sink has written, where each record is a
    /// document with a separate id: one text for each record of `records`, which are as the sink
    /// receives them today. `None` where it cannot be looked up.
    fn find_documents(&self, records: &Batch, runtime: &tokio::runtime::Handle) -> Result<Option<Vec<String>>> {
        let _ = (records, runtime);
        Ok(None)
    }

    /// Rows at the destination that a replay of these offsets must not meet, because it would write
    /// them again or over newer ones: what they are, for a message.
    fn rows_in_the_way(&self, ranges: &OffsetRanges, runtime: &tokio::runtime::Handle) -> Result<Option<String>> {
        let _ = (ranges, runtime);
        Ok(None)
    }

    /// How a replay can take the place of what the sink wrote before (`trunkline replay
    /// --supersede`).
    fn supersede(&self) -> Supersede {
        Supersede::Refused("the connector cannot replace what it wrote")
    }

    /// Checks that files of [`SinkSpec::list_output`] may be removed. Required for
    /// [`Supersede::Files`].
    fn check_removal(&self, files: &[OutputFile], runtime: &tokio::runtime::Handle) -> Result<()> {
        let _ = (files, runtime);
        Err(removal_unsupported())
    }

    /// Removes files of [`SinkSpec::list_output`]; a missing file is no error. Each call returns
    /// within a minute or so, and may be repeated. Required for [`Supersede::Files`].
    fn remove_output(&self, files: &[OutputFile], runtime: &tokio::runtime::Handle) -> Result<()> {
        let _ = (files, runtime);
        Err(removal_unsupported())
    }

    /// How rows or documents at the destination are compared, if [`SinkSpec::read_contents`] reads
    /// them. `None` if the output is files, or if it cannot be read by offsets.
    fn contents(&self) -> Option<Contents> {
        None
    }

    /// Passes the rows or documents that hold records of these offsets to `each`, in any order: the
    /// columns with a value, in the order of their names, as text. Output that does not name its
    /// records is passed as a whole. `other` is the sink whose output is compared with this one,
    /// and is left out. Returns the number of rows that hold later records than those of the
    /// ranges.
    fn read_contents(
        &self,
        ranges: &OffsetRanges,
        other: &dyn SinkSpec,
        runtime: &tokio::runtime::Handle,
        each: EachContent<'_>,
    ) -> Result<u64> {
        let _ = (ranges, other, runtime, each);
        Err(Error::internal("sink.read_contents", "the connector declares contents, and cannot read them"))
    }

    /// The places that records of these topics are written to, each one as the connector names it;
    /// `None` if they depend on more than the topic.
    fn places(&self, topics: &[Arc<str>]) -> Option<Vec<String>> {
        let _ = topics;
        None
    }

    /// How what a replay has written to `shadow` can take the place of what this sink has written
    /// for the topics. Changes nothing.
    fn plan_switch(
        &self,
        topics: &[Arc<str>],
        shadow: &dyn SinkSpec,
        runtime: &tokio::runtime::Handle,
    ) -> Result<SwitchPlan> {
        let _ = (topics, shadow, runtime);
        Ok(SwitchPlan::ByHand(
            "set the options of the sink to those of the shadow, and let the readers use it".to_owned(),
        ))
    }

    /// Carries out [`SwitchPlan::Steps`] while no task of the sink runs. `run` names the switch. A
    /// repeated call with the same name completes one that was interrupted, and changes nothing if
    /// it was complete.
    fn switch(
        &self,
        topics: &[Arc<str>],
        shadow: &dyn SinkSpec,
        run: &str,
        runtime: &tokio::runtime::Handle,
    ) -> Result<()> {
        let _ = (topics, shadow, run, runtime);
        Err(Error::internal("sink.switch", "the connector plans a switch, and cannot carry it out"))
    }

    /// Removes what [`SinkSpec::switch`] needs to be repeated: it will not be. May be repeated
    /// itself.
    fn finish_switch(
        &self,
        topics: &[Arc<str>],
        shadow: &dyn SinkSpec,
        run: &str,
        runtime: &tokio::runtime::Handle,
    ) -> Result<()> {
        let _ = (topics, shadow, run, runtime);
        Ok(())
    }

    /// The templates that every record must have a value for, each with its option. The plan checks
    /// the fields that they use where the fields of the records are known.
    fn templates(&self) -> Vec<(&'static str, &Template)> {
        Vec::new()
    }
}

fn removal_unsupported() -> Error {
    Error::internal("sink.removal", "the connector declares replaceable files, and cannot remove them")
}

/// Receives the name of a table or index, and a row or document as [`EachRow`] does.
pub type EachContent<'a> = &'a mut dyn FnMut(&str, &[(&str, &str)]) -> Result<()>;

/// How the rows or documents of a destination are compared.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Contents {
    /// The columns that identify a row, unless others are asked for.
    pub key: Vec<String>,
    /// Columns that differ in each delivery, such as the time of the load.
    pub ignored: Vec<String>,
}

/// How a shadow can take the place of the live output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SwitchPlan {
    /// By these statements or requests, all of which [`SinkSpec::switch`] makes.
    Steps {
        /// What changes for readers, in one sentence.
        effect: String,
        /// The statements or requests.
        statements: Vec<String>,
    },
    /// By hand: what to do.
    ByHand(String),
}

/// Receives the columns of a row that have a value, in the order of their names, with the values as
/// text.
pub type EachRow<'a> = &'a mut dyn FnMut(&[(&str, &str)]) -> Result<()>;

/// How a replay can take the place of what a sink wrote before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Supersede {
    /// It cannot, for this reason.
    Refused(&'static str),
    /// Output consists of files that name their records ([`SinkSpec::list_output`]). The stage
    /// collects prepared output of the replay ([`TwoPhaseSink`]) until the range is complete. Then
    /// it commits all of it, and removes the earlier files.
    Files,
    /// Output consists of rows that name their records ([`SinkSpec::count_rows`]). The stage
    /// collects prepared output of the replay ([`TwoPhaseSink`]) until the range is complete. Then
    /// one call of [`TwoPhaseSink::commit`] with all of it removes the earlier rows of
    /// [`SinkReplay::ranges`] and adds the new ones, in one transaction of the destination.
    Rows {
        /// Rows belong to keys, which later records change, too. The range must reach the position
        /// of the live sink, and `commit` fails with [`LIVE_AHEAD`] if that has moved since: the
        /// range is extended then.
        up_to_live: bool,
    },
    /// A record that is delivered again by a sink with [`SinkReplay::supersedes`] replaces what was
    /// written for it, unless a later record has replaced that since ([`IdempotentSink`]).
    Documents {
        /// A later record may have deleted a document, which the replay of an earlier one creates
        /// again: the range must reach the position of the live sink.
        up_to_live: bool,
    },
}

/// The replay that a sink runs for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SinkReplay {
    /// The id of the run.
    pub run: String,
    /// The replay takes the place of what the live sink wrote. The live sink runs at the same time
    /// with the same [`SinkContext::name`].
    pub supersedes: bool,
    /// The offsets that it replays.
    pub ranges: OffsetRanges,
    /// Topic partitions of the range whose topics have records before it. Known when the output is
    /// committed.
    pub earlier: BTreeSet<TopicPartition>,
}

/// The code of the error of a commit that comes before the live sink: see [`Supersede::Rows`].
/// Nothing was changed.
pub const LIVE_AHEAD: &str = "sink.live_ahead";

/// The code of the data error of a [`prepare`](TwoPhaseSink::prepare) whose destination refused
/// records that the sink no longer has. The stage opens the sink again at the committed offsets,
/// and its `write` rejects them. Each such error must be about records that no earlier one was
/// about.
pub const READ_AGAIN: &str = "sink.read_again";

/// The code of the error of a commit of a range that does not have what its keys need, with the
/// next step. Nothing was changed.
pub const NOT_REBUILT: &str = "sink.not_rebuilt";

/// The first offset of topic partitions, and the one after the last.
pub type OffsetRanges = BTreeMap<TopicPartition, (i64, i64)>;

/// The rows of a destination that hold records of topic partitions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RowCounts {
    /// Rows by table and topic partition. Those without rows are left out.
    pub partitions: Vec<RowCount>,
    /// Rows of the tables that do not name their records.
    pub unnamed: u64,
}

/// The rows of a table that hold records of one topic partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowCount {
    /// The table.
    pub table: String,
    /// The topic partition.
    pub partition: TopicPartition,
    /// Number of the rows.
    pub rows: u64,
    /// Number of different offsets in them.
    pub offsets: u64,
    /// The first and the last offset in them.
    pub extremes: (i64, i64),
    /// Ranges of offsets between these that have no row, the longest first.
    pub gaps: Vec<(i64, i64)>,
}

/// The visible files of a destination.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OutputListing {
    /// Files that a sink has written.
    pub files: Vec<OutputFile>,
    /// Names of other files.
    pub foreign: Vec<String>,
}

/// A file that a sink has written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutputFile {
    /// Its path or key.
    pub name: String,
    /// Its identity: two files with the same id are copies.
    pub id: String,
    /// The sink, as [`SinkContext::name`].
    pub sink: String,
    /// The topic partition of its records.
    pub partition: TopicPartition,
    /// The offset of its first record.
    pub first: i64,
    /// The offset of its last record.
    pub last: i64,
    /// Number of its rows.
    pub records: u64,
}

/// A running sink, by the way in which its destination makes writes safe to repeat.
pub enum Sink {
    /// Repeated deliveries change nothing at the destination (I2 c).
    Idempotent(Box<dyn IdempotentSink>),
    /// Output becomes visible in a second step, which may be repeated (I2 a).
    TwoPhase(Box<dyn ErasedTwoPhaseSink>),
}

/// What a sink is opened with.
pub struct SinkContext {
    /// `{pipeline}.{sink}`, unique in the cluster: names scratch files, marks objects.
    pub name: String,
    /// The replay that the sink runs for; `None` for a live sink.
    pub replay: Option<SinkReplay>,
    /// The process-wide byte budget (I6); the runtime reserves [`SinkWriter::memory_bytes`] from
    /// it.
    pub budget: MemoryBudget,
    /// For connectors that speak to servers; a sink's thread may block on it.
    pub runtime: tokio::runtime::Handle,
    /// Scratch space of this task, empty at start; nothing in it is needed after a restart.
    pub scratch: PathBuf,
    /// Looks up a schema by the id in a record's header `trunkline.schema`.
    pub schemas: Arc<dyn SchemaLookup>,
}

/// Finds published schemas.
pub trait SchemaLookup: Send + Sync {
    /// The schema with this id; `Ok(None)` if no such schema was ever published. May block to read
    /// recently published schemas.
    fn schema(&self, id: SchemaId) -> Result<Option<Arc<Schema>>>;
}

/// A partition of a topic.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicPartition {
    /// The topic.
    pub topic: Arc<str>,
    /// The partition.
    pub partition: i32,
}

impl TopicPartition {
    /// The partition of a topic.
    pub fn new(topic: impl Into<Arc<str>>, partition: i32) -> Self {
        Self { topic: topic.into(), partition }
    }
}

impl std::fmt::Display for TopicPartition {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}-{}", self.topic, self.partition)
    }
}
