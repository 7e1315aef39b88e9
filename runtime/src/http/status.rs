//! The status of a worker, as JSON.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Served;
use super::process::ProcessUsage;
use super::samples::{History, Rates, Samples};
use crate::checkpoint::{ComponentCounters, DeadLetterCodes};
use crate::stage::{Durations, StageStatus, Work};
use crate::worker::Overview;

/// A task with a lag that has committed nothing for this long makes no progress.
const STALLED_SECONDS: u64 = 300;

/// The status of a worker.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct WorkerStatus {
    /// The worker's id.
    pub worker: String,
    /// The name of its cluster.
    pub cluster: String,
    /// The version of Trunkline.
    pub version: String,
    /// Seconds since the worker was started.
    pub uptime_seconds: u64,
    /// Whether the topics are prepared and the tasks started.
    pub running: bool,
    /// Resident memory of the process.
    #[serde(default)]
    pub memory_bytes: Option<u64>,
    /// What is used of the byte budget of the tasks' buffers (I6).
    #[serde(default)]
    pub budget_used_bytes: Option<u64>,
    /// The limit of the byte budget.
    #[serde(default)]
    pub budget_bytes: Option<u64>,
    /// Processors that the process kept busy during the last 10 seconds.
    #[serde(default)]
    pub processors: Option<f64>,
    /// The tasks of this worker, in the order of their pipelines and of the records.
    pub tasks: Vec<TaskStatus>,
}

/// The status of one task.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TaskStatus {
    /// The pipeline.
    pub pipeline: String,
    /// The component.
    pub component: String,
    /// Number of this task of the component in this worker, from 0.
    pub task: u32,
    /// `source`, `transform` or `sink`.
    pub kind: String,
    /// `waiting`, `running`, `paused`, `done` or `failed`.
    pub state: String,
    /// Records that this worker has not committed, as far as known.
    pub lag_records: Option<u64>,
    /// Bytes that were not read, as far as known.
    pub lag_bytes: Option<u64>,
    /// Age of the oldest change that was not read, as far as known.
    pub lag_seconds: Option<f64>,
    /// How long the external system still keeps that change.
    pub retention_left_seconds: Option<f64>,
    /// The largest state of a topic partition, of a transform that keeps state.
    pub state_bytes: Option<u64>,
    /// The limit of this state, or of the table.
    #[serde(default)]
    pub state_limit_bytes: Option<u64>,
    /// Entries of all states of the task.
    #[serde(default)]
    pub state_entries: Option<u64>,
    /// Bytes of these states on disk.
    #[serde(default)]
    pub state_disk_bytes: Option<u64>,
    /// How long their restores took since the task started.
    #[serde(default)]
    pub state_restore_seconds: Option<f64>,
    /// Records of the changelog that the restores read.
    #[serde(default)]
    pub state_restored_records: Option<u64>,
    /// Bytes of the byte budget that the task held at its last batch.
    #[serde(default)]
    pub memory_bytes: u64,
    /// How long its commits of the last 10 seconds took, on average.
    #[serde(default)]
    pub commit_seconds: Option<f64>,
    /// Seconds since the last commit of this worker.
    pub since_commit_seconds: Option<f64>,
    /// Failures since the process started, or the plan changed.
    pub failures: u64,
    /// The error of the last failure, if nothing was committed since.
    pub last_error: Option<String>,
    /// Counters since then, of the component and of the transforms that run in its task.
    pub components: BTreeMap<String, ComponentStatus>,
    /// The last minutes, if the request asks for them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub history: Option<History>,
    /// For the metrics; not part of the JSON.
    #[serde(skip)]
    pub(super) commits: Durations,
    /// For the metrics, too.
    #[serde(skip)]
    pub(super) work: Work,
    /// For the metrics, too.
    #[serde(skip)]
    pub(super) dead_letter_codes: DeadLetterCodes,
}

/// Counters of a component; `in + extra = out + dropped + dead_lettered`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ComponentStatus {
    /// Records that it received.
    #[serde(rename = "in")]
    pub records_in: u64,
    /// Records that it passed on.
    pub out: u64,
    /// Records that it dropped on purpose.
    pub dropped: u64,
    /// Records that it sent to the dead letters.
    pub dead_lettered: u64,
    /// Records that it added.
    pub extra: u64,
    /// Records per second, over the last 10 seconds; absent right after a start.
    #[serde(default)]
    pub per_second: Option<Rates>,
}

impl WorkerStatus {
    pub(super) fn of(served: &Served) -> Self {
        Self::measured(&served.worker, &served.cluster, &served.overview, &served.samples)
    }

    /// The status of a worker with these names.
    pub(super) fn measured(worker: &str, cluster: &str, overview: &Overview, samples: &Samples) -> Self {
        let tasks = overview.tasks();
        let budget = overview.budget();
        Self {
            worker: worker.to_owned(),
            cluster: cluster.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_seconds: overview.uptime().as_secs(),
            running: overview.is_running(),
            memory_bytes: ProcessUsage::resident_bytes(),
            budget_used_bytes: budget.map(|(used, _)| used as u64),
            budget_bytes: budget.map(|(_, limit)| limit as u64),
            processors: samples.processors(),
            tasks: tasks.iter().map(|(number, status)| TaskStatus::of(*number, status, samples)).collect(),
        }
    }

    /// The same, with the last minutes of each task.
    pub(super) fn with_history(served: &Served) -> Self {
        let mut status = Self::of(served);
        for task in &mut status.tasks {
            task.history = served.samples.history(&task.pipeline, &task.component, task.task);
        }
        status
    }

    /// Why the worker is not ready: one line for each reason.
    pub fn problems(&self) -> Vec<String> {
        if !self.running {
            return vec!["the pipelines are not started yet".to_owned()];
        }
        let uptime = self.uptime_seconds;
        self.tasks.iter().filter_map(|task| task.problem(uptime)).collect()
    }
}

impl TaskStatus {
    pub(super) fn of(task: u32, stage: &StageStatus, samples: &Samples) -> Self {
        let snapshot = stage.snapshot();
        let mut components: BTreeMap<String, ComponentStatus> =
            snapshot.counters.0.iter().map(|(name, counters)| (name.clone(), ComponentStatus::of(counters))).collect();
        components.entry(stage.component.clone()).or_default();
        let rates = samples.rates(&stage.pipeline, &stage.component, task);
        for (name, component) in &mut components {
            component.per_second = rates.as_ref().map(|rates| rates.components.get(name).copied().unwrap_or_default());
        }
        let lag = snapshot.lag;
        Self {
            pipeline: stage.pipeline.clone(),
            component: stage.component.clone(),
            task,
            kind: stage.kind.name().to_owned(),
            state: snapshot.state.to_owned(),
            lag_records: lag.records,
            lag_bytes: lag.bytes,
            lag_seconds: lag.age.map(|age| age.as_secs_f64()),
            retention_left_seconds: lag.retention_left.map(|left| left.as_secs_f64()),
            state_bytes: snapshot.state_bytes,
            state_limit_bytes: snapshot.state_limit,
            state_entries: snapshot.state_figures.map(|state| state.entries),
            state_disk_bytes: snapshot.state_figures.map(|state| state.disk_bytes),
            state_restore_seconds: snapshot.state_figures.map(|state| state.restore.as_secs_f64()),
            state_restored_records: snapshot.state_figures.map(|state| state.restored_records),
            memory_bytes: snapshot.memory_bytes,
            commit_seconds: rates.and_then(|rates| rates.commit_seconds),
            since_commit_seconds: snapshot.since_commit.map(|since| since.as_secs_f64()),
            failures: snapshot.failures,
            last_error: snapshot.error.or(snapshot.last_error),
            components,
            history: None,
            commits: snapshot.commits,
            work: snapshot.work,
            dead_letter_codes: snapshot.counters.1,
        }
    }

    /// `{pipeline}.{component}`, with the number of the task if it is not the first one.
    pub fn name(&self) -> String {
        let number = if self.task > 0 { format!("/{}", self.task) } else { String::new() };
        format!("{}.{}{number}", self.pipeline, self.component)
    }

    /// Why the task makes no progress.
    fn problem(&self, uptime: u64) -> Option<String> {
        if self.state == "failed" {
            let error = self.last_error.as_deref().unwrap_or("no reason is known");
            return Some(format!("{} has failed: {error}", self.name()));
        }
        let has_lag = self.lag_records.unwrap_or(0) > 0 || self.lag_bytes.unwrap_or(0) > 0;
        let idle = self.since_commit_seconds.map_or(uptime, |since| since as u64);
        if self.state != "running" || !has_lag || idle < STALLED_SECONDS {
            return None;
        }
        let error = self.last_error.as_deref().map(|error| format!("; its last error: {error}")).unwrap_or_default();
        Some(format!("{} is behind and has committed nothing for {idle} s{error}", self.name()))
    }
}

impl ComponentStatus {
    fn of(counters: &ComponentCounters) -> Self {
        let ComponentCounters { records_in, out, dropped, dead_lettered, extra, unchanged: _ } = *counters;
        Self { records_in, out, dropped, dead_lettered, extra, per_second: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(state: &str, lag: u64, since_commit: Option<f64>) -> TaskStatus {
        TaskStatus {
            task: 0,
            pipeline: "p".to_owned(),
            component: "lake".to_owned(),
            kind: "sink".to_owned(),
            state: state.to_owned(),
            lag_records: Some(lag),
            lag_bytes: None,
            lag_seconds: None,
            retention_left_seconds: None,
            state_bytes: None,
            state_limit_bytes: None,
            state_entries: None,
            state_disk_bytes: None,
            state_restore_seconds: None,
            state_restored_records: None,
            memory_bytes: 0,
            commit_seconds: None,
            since_commit_seconds: since_commit,
            failures: 1,
            last_error: Some("S3 is down".to_owned()),
            components: BTreeMap::new(),
            history: None,
            commits: Durations::default(),
            work: Work::default(),
            dead_letter_codes: DeadLetterCodes::default(),
        }
    }

    #[test]
    fn only_tasks_that_failed_or_stand_still_behind_are_problems() {
        assert_eq!(task("running", 0, None).problem(1_000), None);
        assert_eq!(task("running", 5, Some(10.0)).problem(1_000), None);
        assert_eq!(task("running", 5, None).problem(10), None);
        assert_eq!(task("waiting", 5, None).problem(1_000), None);
        assert_eq!(task("failed", 0, None).problem(1).unwrap(), "p.lake has failed: S3 is down");
        assert_eq!(
            task("running", 5, Some(301.0)).problem(1_000).unwrap(),
            "p.lake is behind and has committed nothing for 301 s; its last error: S3 is down"
        );
    }
}
