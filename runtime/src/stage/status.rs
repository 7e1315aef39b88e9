//! The status of a stage. Its health is its progress (lag, age of the last commit), not its state.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use trunkline_connector::SourceLag;

use super::durations::Durations;
use crate::checkpoint::Counters;

/// Kind of component, in the order that records take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum StageKind {
    /// Writes to topics.
    Source,
    /// Topic to topic.
    Transform,
    /// Reads from topics.
    Sink,
}

impl StageKind {
    /// `source`, `transform` or `sink`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Transform => "transform",
            Self::Sink => "sink",
        }
    }
}

/// The state of a stage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StageState {
    /// Waiting for its lease or for a retry.
    Waiting,
    /// Running.
    Running,
    /// All existing records were processed (`--until-idle`), or the stage was stopped.
    Done,
    /// The stage needs a person. The message says what to change.
    Failed(String),
}

/// The status of one stage.
pub struct StageStatus {
    /// The pipeline.
    pub pipeline: String,
    /// The component.
    pub component: String,
    /// Its kind.
    pub kind: StageKind,
    inner: Mutex<Inner>,
    version: AtomicU64,
}

struct Inner {
    state: StageState,
    /// Its component is paused: the stage does not start.
    paused: bool,
    /// Since the process started, or its plan changed; the totals since the pipeline began are in
    /// Kafka.
    counters: Counters,
    lag: SourceLag,
    state_bytes: Option<u64>,
    state_limit: Option<u64>,
    plugin_state: Option<StateFigures>,
    memory_bytes: u64,
    last_commit: Option<Instant>,
    commits: Durations,
    work: Work,
    last_error: Option<String>,
    failures: u64,
}

/// The state of the topic partitions of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StateFigures {
    /// Number of entries.
    pub entries: u64,
    /// Bytes of its files.
    pub disk_bytes: u64,
    /// How long restores took since the task started.
    pub restore: Duration,
    /// Records of the changelog that they read.
    pub restored_records: u64,
}

/// What the batches of a stage cost, for the metrics.
#[derive(Debug, Clone)]
pub struct Work {
    /// Bytes of the records that it read.
    pub bytes_in: u64,
    /// Bytes of the records that it wrote to topics; 0 for a sink.
    pub bytes_out: u64,
    /// How long each batch took: transforms, and writing to the producer or the sink.
    pub batches: Durations,
    /// The time from the topic of a sink's or transform's oldest record of a commit to the commit.
    pub end_to_end: Durations,
    /// The time that plugins ran, by transform.
    pub plugins: BTreeMap<String, Duration>,
}

impl Default for Work {
    fn default() -> Self {
        let (batches, end_to_end) = (Durations::new(Durations::BATCHES), Durations::new(Durations::END_TO_END));
        Self { bytes_in: 0, bytes_out: 0, batches, end_to_end, plugins: BTreeMap::new() }
    }
}

/// The status of a stage at one moment.
#[derive(Debug, Clone)]
pub struct StageSnapshot {
    /// Its state by the name that users see.
    pub state: &'static str,
    /// The error of a failed stage.
    pub error: Option<String>,
    /// What it committed since the process started, or its plan changed.
    pub counters: Counters,
    /// What it has not read, or read and not committed.
    pub lag: SourceLag,
    /// The largest state of a topic partition, if its plugin keeps state.
    pub state_bytes: Option<u64>,
    /// The limit of this state, in bytes.
    pub state_limit: Option<u64>,
    /// The state of its topic partitions, if its plugin keeps state.
    pub state_figures: Option<StateFigures>,
    /// Bytes of the byte budget (I6) that it held at its last batch.
    pub memory_bytes: u64,
    /// The time since its last commit.
    pub since_commit: Option<Duration>,
    /// How long its commits took.
    pub commits: Durations,
    /// What its batches cost.
    pub work: Work,
    /// The error of its last failure, if it has committed nothing since.
    pub last_error: Option<String>,
    /// The number of its failures.
    pub failures: u64,
}

impl StageStatus {
    /// The status of a stage that has not started.
    pub fn new(pipeline: &str, component: &str, kind: StageKind) -> Self {
        let inner = Inner {
            state: StageState::Waiting,
            paused: false,
            counters: Counters::default(),
            lag: SourceLag::default(),
            state_bytes: None,
            state_limit: None,
            plugin_state: None,
            memory_bytes: 0,
            last_commit: None,
            commits: Durations::default(),
            work: Work::default(),
            last_error: None,
            failures: 0,
        };
        Self {
            pipeline: pipeline.to_owned(),
            component: component.to_owned(),
            kind,
            inner: Mutex::new(inner),
            version: AtomicU64::new(0),
        }
    }

    /// Changes with each change of the state, and with each failure.
    pub(crate) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// `{pipeline}.{component}`.
    pub fn name(&self) -> String {
        format!("{}.{}", self.pipeline, self.component)
    }

    /// Its state.
    pub fn state(&self) -> StageState {
        self.lock().state.clone()
    }

    /// The stage writes no further records: it is done, has failed, or is paused.
    pub fn is_over(&self) -> bool {
        let inner = self.lock();
        match inner.state {
            StageState::Done | StageState::Failed(_) => true,
            StageState::Waiting => inner.paused,
            StageState::Running => false,
        }
    }

    /// Whether its component is paused.
    pub fn is_paused(&self) -> bool {
        self.lock().paused
    }

    /// Pauses or resumes it. Returns whether that is a change.
    pub(crate) fn set_paused(&self, paused: bool) -> bool {
        let was_paused = std::mem::replace(&mut self.lock().paused, paused);
        if was_paused != paused {
            self.version.fetch_add(1, Ordering::AcqRel);
        }
        was_paused != paused
    }

    /// Its state by the name that users see, and the error of a failed stage. A stage is paused
    /// once it has stopped.
    pub fn shown_state(&self) -> (&'static str, Option<String>) {
        let inner = self.lock();
        shown(&inner.state, inner.paused)
    }

    pub(crate) fn set_state(&self, state: StageState) {
        self.lock().state = state;
        self.version.fetch_add(1, Ordering::AcqRel);
    }

    /// A commit succeeded that covered these records.
    pub(crate) fn committed(&self, counters: &Counters) {
        let mut inner = self.lock();
        inner.counters.add(counters);
        inner.last_commit = Some(Instant::now());
        inner.last_error = None;
    }

    /// A transaction that committed records took this long.
    pub(crate) fn commit_took(&self, took: Duration) {
        self.lock().commits.add(took);
    }

    /// It has processed a batch of this many bytes in this time.
    pub(crate) fn processed(&self, bytes: usize, took: Duration) {
        let mut inner = self.lock();
        inner.work.bytes_in += bytes as u64;
        inner.work.batches.add(took);
    }

    /// It has committed this many bytes to topics.
    pub(super) fn sent(&self, bytes: usize) {
        self.lock().work.bytes_out += bytes as u64;
    }

    /// A commit had a record that had been in its topic for this long.
    pub(crate) fn arrived_after(&self, age: Duration) {
        self.lock().work.end_to_end.add(age);
    }

    /// A plugin of a transform ran for this long.
    pub(crate) fn plugin_ran(&self, transform: &str, took: Duration) {
        let mut inner = self.lock();
        match inner.work.plugins.get_mut(transform) {
            Some(total) => *total += took,
            None => drop(inner.work.plugins.insert(transform.to_owned(), took)),
        }
    }

    /// The largest state of a topic partition, or the table, has this size and this limit.
    pub(super) fn set_plugin_state(&self, largest: Option<(u64, u64)>, figures: Option<StateFigures>) {
        let mut inner = self.lock();
        (inner.state_bytes, inner.state_limit) = largest.unzip();
        inner.plugin_state = figures;
    }

    /// It holds this many bytes of the byte budget.
    pub(super) fn set_memory_bytes(&self, bytes: usize) {
        self.lock().memory_bytes = bytes as u64;
    }

    pub(super) fn set_lag(&self, lag: SourceLag) {
        self.lock().lag = lag;
    }

    pub(crate) fn failed(&self, error: &str) {
        let mut inner = self.lock();
        inner.last_error = Some(error.to_owned());
        inner.failures += 1;
        self.version.fetch_add(1, Ordering::AcqRel);
    }

    /// How long it has worked on batches since the process started. A stage that waits for records
    /// does not work.
    pub(crate) fn worked(&self) -> Duration {
        self.lock().work.batches.sum
    }

    /// What it committed since the process started.
    pub fn counters(&self) -> Counters {
        self.lock().counters.clone()
    }

    /// The time of the last commit.
    pub fn last_commit(&self) -> Option<Instant> {
        self.lock().last_commit
    }

    /// Everything about it at this moment.
    pub fn snapshot(&self) -> StageSnapshot {
        let inner = self.lock();
        let (state, error) = shown(&inner.state, inner.paused);
        StageSnapshot {
            state,
            error,
            counters: inner.counters.clone(),
            lag: inner.lag,
            state_bytes: inner.state_bytes,
            state_limit: inner.state_limit,
            state_figures: inner.plugin_state,
            memory_bytes: inner.memory_bytes,
            since_commit: inner.last_commit.map(|at| at.elapsed()),
            commits: inner.commits.clone(),
            work: inner.work.clone(),
            last_error: inner.last_error.clone(),
            failures: inner.failures,
        }
    }

    /// One line for the log.
    pub fn line(&self) -> String {
        let mut inner = self.lock();
        let own = *inner.counters.of(&self.component);
        let mut line = format!("{}: {} in, {} out", self.name(), own.records_in, own.out);
        if own.dead_lettered > 0 {
            line.push_str(&format!(", {} dead-lettered", own.dead_lettered));
        }
        let SourceLag { bytes, records, retention_left, .. } = inner.lag;
        let lag = [(bytes, "bytes"), (records, "records")];
        let lag = lag.map(|(count, unit)| count.filter(|count| *count > 0).map(|count| format!("{count} {unit}")));
        let lag: Vec<String> = lag.into_iter().flatten().collect();
        if !lag.is_empty() {
            line.push_str(&format!(", {} behind", lag.join(" and ")));
            if let Some(left) = retention_left {
                line.push_str(&format!(", which are kept for {:.1} more hours", left.as_secs_f64() / 3600.0));
            }
        }
        if let Some(error) = &inner.last_error {
            line.push_str(&format!("; failed {} times, last: {error}", inner.failures));
        }
        line
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn shown(state: &StageState, paused: bool) -> (&'static str, Option<String>) {
    match state {
        StageState::Waiting if paused => ("paused", None),
        StageState::Waiting => ("waiting", None),
        StageState::Running => ("running", None),
        StageState::Done => ("done", None),
        StageState::Failed(error) => ("failed", Some(error.clone())),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_paused_stage_is_over_once_it_has_stopped() {
        let status = StageStatus::new("p", "lake", StageKind::Sink);
        let shown = |status: &StageStatus| (status.shown_state().0, status.is_over());
        status.set_state(StageState::Running);
        assert!(status.set_paused(true) && !status.set_paused(true));
        assert_eq!(shown(&status), ("running", false));
        status.set_state(StageState::Waiting);
        assert_eq!(shown(&status), ("paused", true));
        assert!(status.set_paused(false));
        assert_eq!(shown(&status), ("waiting", false));
        status.set_state(StageState::Failed("no bucket".to_owned()));
        status.set_paused(true);
        assert_eq!(status.shown_state(), ("failed", Some("no bucket".to_owned())));
    }

    #[test]
    fn the_line_shows_lag_and_retention() {
        let status = StageStatus::new("p", "shop", StageKind::Source);
        let lag = |bytes, retention_left| SourceLag { bytes: Some(bytes), retention_left, ..SourceLag::default() };
        let retention_left = Some(Duration::from_secs(90 * 60));
        status.set_lag(lag(0, retention_left));
        assert_eq!(status.line(), "p.shop: 0 in, 0 out");
        status.set_lag(lag(7, retention_left));
        assert_eq!(status.line(), "p.shop: 0 in, 0 out, 7 bytes behind, which are kept for 1.5 more hours");
        status.set_lag(lag(7, None));
        assert_eq!(status.line(), "p.shop: 0 in, 0 out, 7 bytes behind");
    }
}
