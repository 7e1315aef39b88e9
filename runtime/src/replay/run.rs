//! The rows of runs, and the rules by which runs start and end.
//!
//! A row is a part of the position `{cluster}.!runs` in `_trunkline.checkpoints`. Every change is a
//! transaction of one transactional id, whose producer is initialised before the rows are read: of
//! two commands that start a run at once, one is fenced and reads the row of the other.

use std::num::NonZeroU64;
use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use trunkline_connector::{Domain, Error, PositionChange, Result, TopicPartition};

use crate::checkpoint::{CHECKPOINTS, Positions, or_empty};
use crate::kafka::{Cluster, TransactionalProducer};

/// A change is one row.
const BUFFER_BYTES: usize = 1 << 20;

/// Attempts of a change that another command fences.
const ATTEMPTS: u32 = 20;

/// A run, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Its id.
    pub id: String,
    /// The pipeline.
    pub pipeline: String,
    /// The sink, or the transform.
    pub sink: String,
    /// It replays a transform.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub transform: bool,
    /// Where it writes, as the sink names it.
    pub destination: String,
    /// The options that replace those of the sink, as written.
    pub into: String,
    /// The range, as written.
    pub request: Request,
    /// The range in offsets.
    pub ranges: Vec<PartitionRange>,
    /// How far it is with files that it replaces; `None` if it replaces none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub supersede: Option<Superseding>,
    /// How its shadow became the live destination; `None` if it did not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub switch: Option<Switching>,
    /// The state.
    pub state: RunState,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The machine on which it was started.
    pub node: String,
    /// Who started it, as the audit log names people; empty if an earlier version stored the run.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub user: String,
    /// Records per second, at most, of all processes that execute it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<NonZeroU64>,
    /// Since when it is executed without a pause.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub executed: Option<Execution>,
    /// When it was started, in milliseconds since the Unix epoch.
    pub started: i64,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<i64>,
}

/// The begin of the last uninterrupted execution of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Execution {
    /// In milliseconds since the Unix epoch.
    pub since: i64,
    /// Offsets that were committed then.
    pub done: u64,
}

impl Execution {
    /// Offsets per second until `now`, and the seconds that `left` offsets take with this speed;
    /// `None` if nothing was committed yet.
    pub fn speed(&self, done: u64, left: u64, now: i64) -> Option<(f64, u64)> {
        let seconds = (now - self.since).max(1) as f64 / 1_000.0;
        let rate = done.checked_sub(self.done).filter(|done| *done > 0)? as f64 / seconds;
        Some((rate, (left as f64 / rate).ceil() as u64))
    }
}

/// The range, as the user wrote it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// The option `--from`.
    pub from: String,
    /// The option `--to`.
    pub to: String,
    /// The option `--by`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// The option `--partitions`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partitions: Option<Vec<i32>>,
    /// The option `--dead-letters`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dead_letters: bool,
    /// The option `--pipeline-file`, as an absolute path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pipeline_file: Option<PathBuf>,
    /// The option `--supersede`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub supersede: bool,
    /// The option `--append`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub append: bool,
}

/// How far a run is with the files that it replaces.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Superseding {
    /// The step that is under way.
    pub step: Step,
    /// Number of files that are replaced, from `Publishing` on. For rows: the number of partitions
    /// with such rows.
    #[serde(default)]
    pub files: usize,
    /// Number of rows that are replaced in one transaction of the destination, from `Publishing`
    /// on; `None` if files are replaced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<u64>,
    /// When the first new file could be visible, in milliseconds since the Unix epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub visible: Option<i64>,
    /// When the last earlier file was removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub removed: Option<i64>,
    /// What changes in each partition, from `Publishing` on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub partitions: Vec<RowChange>,
}

/// A step of a run that replaces files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// New files are prepared. Nothing is visible, and the run can be given up.
    #[default]
    Staging,
    /// New files become visible. From here on the run only goes forward.
    Publishing,
    /// Earlier files are removed.
    Removing,
    /// The new files have taken the place of the earlier ones.
    Done,
}

impl Superseding {
    /// Output is being replaced: readers may see earlier and new files, or either the earlier or
    /// the new rows.
    pub fn is_between(&self) -> bool {
        matches!(self.step, Step::Publishing | Step::Removing)
    }

    /// How long readers may have seen earlier and new files, in milliseconds.
    pub fn overlap(&self) -> Option<i64> {
        self.removed.zip(self.visible).map(|(removed, visible)| (removed - visible).max(0))
    }
}

/// How a shadow becomes the live destination.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Switching {
    /// The step that is under way.
    pub step: SwitchStep,
    /// Where the live sink was when the switch began.
    pub before: Vec<PartitionPosition>,
    /// What changes in each partition, if the output is rows that are counted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub partitions: Vec<RowChange>,
    /// When it was complete, in milliseconds since the Unix epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub done: Option<i64>,
}

/// A step of a switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SwitchStep {
    /// The destination may have changed, and the position of the sink, too.
    Begun,
    /// Both have.
    Done,
}

/// The position of a sink in one partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionPosition {
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// The next offset; `None` before the first record.
    pub offset: Option<i64>,
}

impl PartitionPosition {
    /// Whether it is that of this topic partition.
    pub fn is(&self, partition: &TopicPartition) -> bool {
        *self.topic == *partition.topic && self.partition == partition.partition
    }
}

/// What a run changes in one partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowChange {
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// Rows of the files that it removes.
    pub removed: u64,
    /// Rows that it writes.
    pub added: u64,
    /// Those of them that transforms emitted in addition to the records that they read.
    pub extra: u64,
}

/// The offsets of one partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionRange {
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// The first offset.
    pub from: i64,
    /// The offset after the last one.
    pub to: i64,
}

impl PartitionRange {
    /// The topic partition.
    pub fn topic_partition(&self) -> TopicPartition {
        TopicPartition::new(self.topic.as_str(), self.partition)
    }
}

/// The state of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunState {
    /// A command executes it, or was killed while it did.
    Running,
    /// It is asked to stop.
    Stopping,
    /// It waits until it is resumed. A command may wait with it.
    Paused,
    /// It was stopped, and can continue.
    Stopped,
    /// It failed, and can continue once the cause is removed.
    Failed,
    /// It has processed its range.
    Finished,
    /// It was given up before it had changed anything at its destination.
    Discarded,
}

impl RunState {
    /// The name, as it is stored.
    pub fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Stopping => "stopping",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
            Self::Finished => "finished",
            Self::Discarded => "discarded",
        }
    }
}

impl Run {
    /// Whether this is the run of a request: of a pipeline, a sink and a destination.
    pub fn is_request(&self, target: &[&str; 3], request: &Request) -> bool {
        [self.pipeline.as_str(), &self.sink, &self.destination] == *target && self.request == *request
    }

    /// Its range has not been processed, and can be.
    pub fn is_unfinished(&self) -> bool {
        !matches!(self.state, RunState::Finished | RunState::Discarded)
    }

    /// Whether both are of the same sink.
    pub fn is_of(&self, other: &Run) -> bool {
        !self.transform && self.pipeline == other.pipeline && self.sink == other.sink
    }

    /// The rows that it has removed from the live destination, and added to it.
    pub fn row_changes(&self) -> Vec<RowChange> {
        let superseding = self.supersede.as_ref().filter(|superseding| superseding.step == Step::Done);
        let switch = self.switch.as_ref().filter(|switch| switch.step == SwitchStep::Done);
        let changes = superseding.map(|superseding| &superseding.partitions).into_iter();
        changes.chain(switch.map(|switch| &switch.partitions)).flatten().cloned().collect()
    }

    /// Its output is being replaced: it must be continued.
    pub fn is_between(&self) -> bool {
        self.supersede.as_ref().is_some_and(Superseding::is_between)
    }
}

/// An id that sorts by the time of the start.
pub fn new_id(now: Timestamp) -> String {
    let random = uuid::Uuid::new_v4().simple().to_string();
    format!("{}-{}", now.strftime("%Y%m%d%H%M"), &random[..4])
}

/// Whether a text has the form of an id, so that it is no name of a pipeline or component.
pub fn is_id(text: &str) -> bool {
    let parts = text.split_once('-');
    parts.is_some_and(|(time, random)| {
        time.len() == 12
            && time.bytes().all(|byte| byte.is_ascii_digit())
            && random.len() == 4
            && random.bytes().all(|byte| byte.is_ascii_hexdigit())
    })
}

/// Whether one of two destinations is, or contains, the other.
pub fn overlap(one: &str, other: &str) -> bool {
    let contains = |outer: &str, inner: &str| {
        inner.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    contains(one, other) || contains(other, one)
}

/// The runs of a Trunkline cluster.
pub struct Runs<'a> {
    cluster: &'a Cluster,
    owner: String,
}

impl<'a> Runs<'a> {
    /// The runs of the cluster with this name.
    pub fn new(cluster: &'a Cluster, name: &str) -> Self {
        Self { cluster, owner: format!("{name}.!runs") }
    }

    /// All runs, in the order of their ids.
    pub fn list(&self) -> Result<Vec<Run>> {
        or_empty(Positions::load(self.cluster, &self.owner, &self.owner).and_then(|positions| parse(&positions)))
    }

    /// The run with this id.
    pub fn get(&self, id: &str) -> Result<Run> {
        find(&self.list()?, id)
    }

    /// Writes the row that `decide` makes of all rows. It is called again if another command
    /// changes a row at the same time.
    pub fn change(&self, decide: impl FnMut(&[Run]) -> Result<Run>) -> Result<Run> {
        self.change_with(decide, |_, _| Ok(()))
    }

    /// The same, with further rows that `write` writes in the same transaction.
    pub fn change_with(
        &self,
        mut decide: impl FnMut(&[Run]) -> Result<Run>,
        mut write: impl FnMut(&Run, &mut TransactionalProducer) -> Result<()>,
    ) -> Result<Run> {
        let mut attempt = 1;
        loop {
            match self.change_once(&mut decide, &mut write) {
                Err(error) if error.domain == Domain::Fenced && attempt < ATTEMPTS => attempt += 1,
                outcome => return outcome,
            }
        }
    }

    /// Changes the row of one run, unless `change` refuses.
    pub fn update(&self, id: &str, mut change: impl FnMut(&mut Run) -> Result<()>) -> Result<Run> {
        self.change(|runs| {
            let mut run = find(runs, id)?;
            change(&mut run)?;
            Ok(run)
        })
    }

    fn change_once(
        &self,
        decide: &mut dyn FnMut(&[Run]) -> Result<Run>,
        write: &mut dyn FnMut(&Run, &mut TransactionalProducer) -> Result<()>,
    ) -> Result<Run> {
        let mut producer = TransactionalProducer::new(self.cluster, &self.owner, BUFFER_BYTES)?;
        let positions = Positions::load(self.cluster, &self.owner, &self.owner)?;
        let run = decide(&parse(&positions)?)?;
        let value = serde_json::to_vec(&run).map_err(|error| Error::internal("replay.encode", error.to_string()))?;
        let change = PositionChange { key: run.id.clone(), value: Some(value) };
        positions.write(&mut producer, &[change], &positions.counters)?;
        write(&run, &mut producer)?;
        producer.commit()?;
        Ok(run)
    }
}

fn find(runs: &[Run], id: &str) -> Result<Run> {
    runs.iter().find(|run| run.id == id).cloned().ok_or_else(|| {
        let message = format!("the cluster has no run `{id}`: `trunkline runs` lists them");
        Error::config("replay.unknown_run", message)
    })
}

fn parse(positions: &Positions) -> Result<Vec<Run>> {
    let mut runs: Vec<Run> = Vec::new();
    for (id, value) in &positions.parts {
        runs.push(serde_json::from_slice(value).map_err(|error| {
            let message = format!(
                "the row of the run `{id}` in topic `{CHECKPOINTS}` cannot be read ({error}): was it written by a newer version?"
            );
            Error::data("checkpoint.unreadable", message)
        })?);
    }
    Ok(runs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_earlier_versions_are_read() {
        let request: Request = serde_json::from_str(r#"{"from":"earliest","to":"latest"}"#).unwrap();
        assert_eq!((request.dead_letters, &request.pipeline_file), (false, &None));
        assert_eq!(serde_json::to_string(&request).unwrap(), r#"{"from":"earliest","to":"latest"}"#);
    }

    #[test]
    fn a_run_without_files_to_replace_has_no_step() {
        let row = r#"{"id":"r","pipeline":"p","sink":"s","destination":"d","into":"","request":{"from":"earliest","to":"latest"},
            "ranges":[],"state":"running","node":"n","started":1}"#;
        let run: Run = serde_json::from_str(row).unwrap();
        assert!(run.supersede.is_none() && !run.request.supersede && !run.is_between());
        let step = |step: &str| serde_json::from_str::<Superseding>(&format!(r#"{{"step":"{step}"}}"#)).unwrap();
        assert!(step("publishing").is_between() && step("removing").is_between());
        assert!(!step("staging").is_between() && !step("done").is_between());
    }

    #[test]
    fn the_speed_is_that_since_the_last_pause() {
        let executed = Execution { since: 1_000, done: 400 };
        assert_eq!(executed.speed(900, 250, 3_000), Some((250.0, 1)));
        assert_eq!(executed.speed(900, 251, 3_000), Some((250.0, 2)));
        assert_eq!(executed.speed(400, 250, 3_000), None);
        assert_eq!(executed.speed(300, 250, 3_000), None, "the brokers have lost the position");
    }

    #[test]
    fn ids_have_a_form_of_their_own() {
        assert!(is_id(&new_id(Timestamp::now())) && is_id("202611291310-19d6"));
        for name in
            ["orders", "orders.lake", "202611291310", "202611291310-19d", "202611291310-19dg", "x02611291310-19d6"]
        {
            assert!(!is_id(name), "{name}");
        }
    }

    #[test]
    fn a_destination_overlaps_with_itself_and_what_it_contains() {
        assert!(overlap("s3://lake/orders", "s3://lake/orders"));
        assert!(overlap("s3://lake/orders", "s3://lake/orders/v2") && overlap("s3://lake/a/b", "s3://lake"));
        assert!(!overlap("s3://lake/orders", "s3://lake/orders-v2"));
    }

    #[test]
    fn the_names_of_states_are_those_that_are_stored() {
        use RunState::{Discarded, Failed, Finished, Paused, Running, Stopped, Stopping};
        for state in [Running, Stopping, Paused, Stopped, Failed, Finished, Discarded] {
            assert_eq!(serde_json::to_string(&state).unwrap(), format!("\"{}\"", state.name()));
        }
    }
}
