//! Live runs: the components that the workers of the cluster run, each with its tasks on all
//! workers. The rows of the workers in Kafka say who runs what; the rates and the lag are those of
//! the workers that have answered.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::cluster::cluster_status;
use super::components::workers;
use super::{ClusterWorker, ComponentStatus, History, Served, TaskStatus};
use crate::checkpoint::{RunState, TaskRow, WorkerTasks};
use crate::plan::Pipeline;
use crate::replay::listing::{person, time_text};

/// The time left is computed from the lag over this time: long enough for commits that are
/// seconds apart.
const CATCH_UP_SECONDS: u64 = 60;

/// A component that workers run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LiveRun {
    /// `live`.
    pub kind: String,
    /// `{pipeline}.{component}`.
    pub id: String,
    /// The pipeline.
    pub pipeline: String,
    /// The component.
    pub component: String,
    /// `source`, `transform` or `sink`.
    pub component_kind: String,
    /// `running`, `waiting`, `pausing`, `paused`, `stopping`, `stopped`, `done` or `failed`.
    pub state: String,
    /// The error of a task that has failed.
    pub error: Option<String>,
    /// Where a sink writes, if the worker that answers runs it, too.
    pub destination: Option<String>,
    /// Records that are not committed, as far as known.
    pub lag_records: Option<u64>,
    /// Bytes that were not read, as far as known.
    pub lag_bytes: Option<u64>,
    /// Age of the oldest change that was not read, as far as known.
    pub lag_seconds: Option<f64>,
    /// Records that it received per second, over the last 10 seconds.
    pub records_per_second: Option<f64>,
    /// Seconds until the lag is zero, if it continues to shrink as in the last minute.
    pub seconds_left: Option<u64>,
    /// What its tasks have counted since they were started.
    pub counters: Option<ComponentStatus>,
    /// When the first of its workers was started.
    pub started: Option<String>,
    /// Who started its workers, and where.
    pub started_by: Vec<String>,
    /// Number of its tasks on all workers.
    pub tasks: usize,
    /// These tasks.
    pub task_list: Vec<LiveRunTask>,
}

/// A task of a live run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LiveRunTask {
    /// The worker's id.
    pub worker: String,
    /// The worker's machine.
    pub node: String,
    /// Number of the task of the component in that worker.
    pub task: u32,
    /// `waiting`, `running`, `paused`, `done` or `failed`.
    pub state: String,
    /// The error of a task that has failed, or of its last failure.
    pub error: Option<String>,
    /// Records that are not committed, as far as known.
    pub lag_records: Option<u64>,
    /// Bytes that were not read, as far as known.
    pub lag_bytes: Option<u64>,
    /// Records that it received per second.
    pub records_per_second: Option<f64>,
    /// Seconds since its last commit.
    pub since_commit_seconds: Option<f64>,
}

impl LiveRun {
    /// The lag for people: `12 records`.
    pub fn lag(&self) -> Option<String> {
        let parts = [(self.lag_records, "records"), (self.lag_bytes, "bytes")];
        let known: Vec<String> =
            parts.into_iter().filter_map(|(count, unit)| Some(format!("{} {unit}", count?))).collect();
        (!known.is_empty()).then(|| known.join(", "))
    }
}

/// A task with the worker that runs it.
struct Seen<'a> {
    id: &'a str,
    worker: &'a WorkerTasks,
    row: &'a TaskRow,
    status: Option<&'a TaskStatus>,
}

/// The live runs of the cluster, as this worker knows them.
pub(super) async fn live_runs(served: &Arc<Served>) -> Vec<LiveRun> {
    let status = cluster_status(served, false).await;
    let view = served.control.view();
    let workers = workers(served, &view);
    let mut runs = of_workers(&workers, &status.workers, |pipeline, component| view.state(pipeline, component));
    let pipelines = served.overview.pipelines();
    for run in &mut runs {
        run.destination = destination(&pipelines, run);
    }
    runs
}

/// The components of these workers. `answers` are the workers that have answered; `wanted` is what
/// people want of a component.
pub fn of_workers(
    workers: &BTreeMap<String, WorkerTasks>,
    answers: &[ClusterWorker],
    wanted: impl Fn(&str, &str) -> RunState,
) -> Vec<LiveRun> {
    let mut components: BTreeMap<(&str, &str), Vec<Seen<'_>>> = BTreeMap::new();
    for (id, worker) in workers {
        let answer = answers.iter().find(|answer| answer.worker == *id).and_then(|answer| answer.status.as_ref());
        for row in &worker.tasks {
            let is_row = |task: &&TaskStatus| {
                task.pipeline == row.pipeline && task.component == row.component && task.task == row.task
            };
            let status = answer.and_then(|answer| answer.tasks.iter().find(is_row));
            components.entry((&row.pipeline, &row.component)).or_default().push(Seen { id, worker, row, status });
        }
    }
    components.into_iter().map(|((pipeline, component), seen)| run_of(&seen, wanted(pipeline, component))).collect()
}

fn run_of(seen: &[Seen<'_>], wanted: RunState) -> LiveRun {
    let row = seen[0].row;
    // A source waits on all workers but one.
    let is_active = |seen: &&Seen<'_>| seen.state() != "waiting";
    let mut active: Vec<&Seen<'_>> = seen.iter().filter(is_active).collect();
    if active.is_empty() {
        active = seen.iter().collect();
    }
    let mut started_by: Vec<String> = active.iter().map(|seen| person(&seen.worker.user, &seen.worker.node)).collect();
    started_by.sort();
    started_by.dedup();
    let statuses = || seen.iter().filter_map(|seen| seen.status);
    let lag_seconds = statuses().filter_map(|status| status.lag_seconds).max_by(f64::total_cmp);
    LiveRun {
        kind: "live".to_owned(),
        id: format!("{}.{}", row.pipeline, row.component),
        pipeline: row.pipeline.clone(),
        component: row.component.clone(),
        component_kind: row.kind.clone(),
        state: state_of(seen, wanted).to_owned(),
        error: seen.iter().filter(|seen| seen.state() == "failed").find_map(Seen::error),
        destination: None,
        lag_records: sum(statuses().map(|status| status.lag_records)),
        lag_bytes: sum(statuses().map(|status| status.lag_bytes)),
        lag_seconds,
        records_per_second: seen.iter().filter_map(Seen::rate).reduce(|sum, rate| sum + rate),
        seconds_left: seconds_left(statuses()),
        counters: counters(statuses()),
        started: active.iter().filter_map(|seen| seen.worker.started).min().map(time_text),
        started_by,
        tasks: seen.len(),
        task_list: seen.iter().map(Seen::shown).collect(),
    }
}

impl Seen<'_> {
    fn state(&self) -> &str {
        self.status.map_or(&self.row.state, |status| &status.state)
    }

    fn error(&self) -> Option<String> {
        self.status.map_or_else(|| self.row.error.clone(), |status| status.last_error.clone())
    }

    fn rate(&self) -> Option<f64> {
        let status = self.status?;
        Some(status.components.get(&status.component)?.per_second?.records_in)
    }

    fn shown(&self) -> LiveRunTask {
        LiveRunTask {
            worker: self.id.to_owned(),
            node: self.worker.node.clone(),
            task: self.row.task,
            state: self.state().to_owned(),
            error: self.error(),
            lag_records: self.status.and_then(|status| status.lag_records),
            lag_bytes: self.status.and_then(|status| status.lag_bytes),
            records_per_second: self.rate(),
            since_commit_seconds: self.status.and_then(|status| status.since_commit_seconds),
        }
    }
}

/// The state of a component: a failure of any task, else what people want, else what its tasks do.
fn state_of(seen: &[Seen<'_>], wanted: RunState) -> &'static str {
    let has = |state: &str| seen.iter().any(|seen| seen.state() == state);
    match wanted {
        _ if has("failed") => "failed",
        RunState::Paused if has("running") => "pausing",
        RunState::Stopped if has("running") => "stopping",
        RunState::Paused | RunState::Stopped => wanted.name(),
        RunState::Running if has("running") => "running",
        // Tasks that are still paused are about to start.
        RunState::Running if has("waiting") || has("paused") => "waiting",
        RunState::Running => "done",
    }
}

fn sum(values: impl Iterator<Item = Option<u64>>) -> Option<u64> {
    values.flatten().reduce(|sum, value| sum.saturating_add(value))
}

fn counters<'a>(statuses: impl Iterator<Item = &'a TaskStatus>) -> Option<ComponentStatus> {
    let own = statuses.filter_map(|status| status.components.get(&status.component));
    own.cloned().reduce(|sum, task| ComponentStatus {
        records_in: sum.records_in + task.records_in,
        out: sum.out + task.out,
        dropped: sum.dropped + task.dropped,
        dead_lettered: sum.dead_lettered + task.dead_lettered,
        extra: sum.extra + task.extra,
        per_second: None,
    })
}

/// The time until the last task has caught up; `None` if no task is behind, or the lag of one does
/// not shrink.
fn seconds_left<'a>(statuses: impl Iterator<Item = &'a TaskStatus>) -> Option<u64> {
    let mut longest = None;
    for status in statuses.filter(|status| status.lag_records.or(status.lag_bytes).is_some_and(|lag| lag > 0)) {
        longest = longest.max(Some(catch_up(status.history.as_ref()?)?));
    }
    longest
}

/// Seconds until the lag is zero, if it continues to shrink as in the last minute.
fn catch_up(history: &History) -> Option<u64> {
    let interval = history.interval_seconds.max(1);
    let points = usize::try_from(CATCH_UP_SECONDS / interval).unwrap_or(usize::MAX);
    let begin = history.lag.len().saturating_sub(points + 1);
    let mut known = history.lag.iter().enumerate().skip(begin).filter_map(|(at, lag)| Some((at, (*lag)?)));
    // The lag that was greatest is where it began to shrink: more records may have arrived before.
    let (first, greatest) = known.clone().max_by_key(|(at, lag)| (*lag, *at))?;
    let (last, lag) = known.next_back()?;
    let seconds = (last - first) as u64 * interval;
    let gone = greatest.checked_sub(lag).filter(|gone| *gone > 0)?;
    Some((lag as f64 * seconds as f64 / gone as f64).ceil() as u64)
}

/// Where the sink of a run writes, if it is one of these pipelines.
fn destination(pipelines: &[Pipeline], run: &LiveRun) -> Option<String> {
    let pipeline = pipelines.iter().find(|pipeline| pipeline.name == run.pipeline)?;
    pipeline.sinks.iter().find(|sink| sink.name == run.component)?.spec.destination()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(component: &str, kind: &str, state: &str) -> TaskRow {
        TaskRow {
            pipeline: "shop".to_owned(),
            component: component.to_owned(),
            kind: kind.to_owned(),
            task: 0,
            state: state.to_owned(),
            error: (state == "failed").then(|| "no bucket".to_owned()),
        }
    }

    fn worker(node: &str, user: &str, started: i64, tasks: Vec<TaskRow>) -> (String, WorkerTasks) {
        let row =
            WorkerTasks { node: node.to_owned(), user: user.to_owned(), started: Some(started), tasks, http: None };
        (format!("w-{node}"), row)
    }

    fn history(lag: &[Option<u64>]) -> History {
        History { interval_seconds: 2, lag: lag.iter().copied().collect(), ..History::default() }
    }

    #[test]
    fn a_component_is_one_run_on_all_its_workers() {
        let tasks = |web| vec![row("web", "source", web), row("lake", "sink", "running")];
        let workers =
            BTreeMap::from([worker("a", "ada", 2_000, tasks("waiting")), worker("b", "bob", 1_000, tasks("running"))]);
        let runs = of_workers(&workers, &[], |_, component| match component {
            "lake" => RunState::Paused,
            _ => RunState::Running,
        });
        let shown: Vec<_> =
            runs.iter().map(|run| (run.id.as_str(), run.state.as_str(), run.started_by.join(" "), run.tasks)).collect();
        // The source runs on one worker; the other one waits for its lease.
        let expected =
            [("shop.lake", "pausing", "ada@a bob@b".to_owned(), 2), ("shop.web", "running", "bob@b".to_owned(), 2)];
        assert_eq!(shown, expected);
        assert_eq!(runs[0].started.as_deref(), Some("1970-01-01T00:00:01Z"));
        // No worker has answered.
        assert!(runs[0].lag_records.is_none() && runs[0].records_per_second.is_none() && runs[0].counters.is_none());
    }

    #[test]
    fn the_state_is_a_failure_or_else_what_people_want() {
        use RunState::{Paused, Running, Stopped};
        let state = |wanted, states: &[&str]| {
            let tasks = states.iter().map(|state| row("lake", "sink", state)).collect();
            of_workers(&BTreeMap::from([worker("a", "", 0, tasks)]), &[], |_, _| wanted).remove(0)
        };
        for (wanted, states, expected) in [
            (Running, &["running", "waiting"][..], "running"),
            (Running, &["paused"], "waiting"),
            (Running, &["done"], "done"),
            (Running, &["running", "failed"], "failed"),
            (Paused, &["running", "paused"], "pausing"),
            (Paused, &["paused"], "paused"),
            (Stopped, &["running"], "stopping"),
            (Stopped, &["paused"], "stopped"),
        ] {
            let run = state(wanted, states);
            assert_eq!(run.state, expected, "{states:?}");
            assert_eq!(run.error.is_some(), expected == "failed");
        }
        assert_eq!(state(Running, &["running"]).started_by, ["a"], "a worker of an earlier version names no user");
    }

    #[test]
    fn a_run_that_catches_up_has_a_time_left() {
        assert_eq!(catch_up(&history(&[Some(900), Some(600), Some(300)])), Some(2));
        // Records have arrived first.
        assert_eq!(catch_up(&history(&[Some(0), Some(900), Some(450)])), Some(2));
        assert_eq!(catch_up(&history(&[None, Some(500), None, Some(400)])), Some(16));
        for stands_still in [&[Some(5), Some(5)][..], &[Some(5), Some(9)], &[None], &[]] {
            assert_eq!(catch_up(&history(stands_still)), None, "{stands_still:?}");
        }
        // Only the last minute counts.
        let mut lag = vec![Some(1_000_000)];
        lag.extend([Some(1_000); 40]);
        assert_eq!(catch_up(&history(&lag)), None);
    }
}
