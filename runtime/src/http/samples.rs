//! Samples of the tasks of this worker: rates over the last seconds, and the last minutes for
//! plots. A worker samples its tasks all the time, so that one answer is enough to know a rate.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::process::ProcessUsage;
use crate::checkpoint::ComponentCounters;
use crate::stage::StageSnapshot;
use crate::worker::Overview;

/// Time between two samples.
pub(super) const INTERVAL: Duration = Duration::from_secs(2);

/// Rates are those of the last intervals, as many as this: 10 seconds.
const RATE_INTERVALS: usize = 5;

/// Points of a plot: three minutes.
const POINTS: usize = 90;

/// A task: pipeline, component and number.
type TaskKey = (String, String, u32);

/// The samples of a worker.
#[derive(Default)]
pub struct Samples {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    tasks: BTreeMap<TaskKey, TaskSamples>,
    /// When the processor time of the process was read, and its seconds.
    processor: VecDeque<(Instant, f64)>,
}

#[derive(Default)]
struct TaskSamples {
    recent: VecDeque<Sample>,
    history: History,
}

/// A task at one moment.
struct Sample {
    at: Instant,
    counters: BTreeMap<String, ComponentCounters>,
    commits: u64,
    commit_time: Duration,
}

/// Records of a component in a second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Rates {
    /// Records that it received.
    #[serde(rename = "in")]
    pub records_in: f64,
    /// Records that it passed on.
    pub out: f64,
    /// Records that it sent to the dead letters.
    pub dead_lettered: f64,
}

/// What a task did during the last seconds.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct TaskRates {
    /// By component: of the task's own, and of the transforms that run in it.
    pub(super) components: BTreeMap<String, Rates>,
    /// How long its commits took, on average.
    pub(super) commit_seconds: Option<f64>,
}

/// The last minutes of a task, oldest first.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct History {
    /// Seconds between two points.
    pub interval_seconds: u64,
    /// Records per second that it read and committed.
    pub rate: VecDeque<f64>,
    /// Records that were not committed; bytes that were not read, if the source counts bytes.
    pub lag: VecDeque<Option<u64>>,
    /// Milliseconds that a commit took, on average; absent without a commit.
    #[serde(default)]
    pub commit_ms: VecDeque<Option<f64>>,
}

impl Samples {
    /// Takes a sample of every task.
    pub(super) fn take(&self, overview: &Overview, now: Instant) {
        let tasks = overview.tasks();
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let mut known = std::mem::take(&mut inner.tasks);
        for (number, status) in tasks {
            let key = (status.pipeline.clone(), status.component.clone(), number);
            let mut samples = known.remove(&key).unwrap_or_default();
            samples.add(&status.component, &status.snapshot(), now);
            // The samples of a task that does not exist any more are dropped.
            inner.tasks.insert(key, samples);
        }
        if let Some(seconds) = ProcessUsage::now().cpu_seconds {
            push(&mut inner.processor, (now, seconds), RATE_INTERVALS + 1);
        }
    }

    /// The rates of a task, once there are two samples.
    pub(super) fn rates(&self, pipeline: &str, component: &str, task: u32) -> Option<TaskRates> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.tasks.get(&(pipeline.to_owned(), component.to_owned(), task))?.rates()
    }

    pub(super) fn history(&self, pipeline: &str, component: &str, task: u32) -> Option<History> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.tasks.get(&(pipeline.to_owned(), component.to_owned(), task)).map(|samples| samples.history.clone())
    }

    /// Processors that the process kept busy: 1.5 is one and a half.
    pub(super) fn processors(&self) -> Option<f64> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let ((start, first), (end, last)) = (inner.processor.front()?, inner.processor.back()?);
        let seconds = end.saturating_duration_since(*start).as_secs_f64();
        (seconds > 0.0).then(|| (last - first).max(0.0) / seconds)
    }
}

impl TaskSamples {
    fn add(&mut self, component: &str, snapshot: &StageSnapshot, now: Instant) {
        let sample = Sample {
            at: now,
            counters: snapshot.counters.0.clone(),
            commits: snapshot.commits.count,
            commit_time: snapshot.commits.sum,
        };
        // The task was replaced: its counters begin again.
        if self.recent.back().is_some_and(|last| is_less(&sample, last)) {
            self.recent.clear();
        }
        let own = self.recent.back().and_then(|last| rates_between(last, &sample).remove(component));
        let rate = own.unwrap_or_default().records_in;
        let commit = self.recent.back().and_then(|last| commit_seconds(last, &sample));
        self.history.interval_seconds = INTERVAL.as_secs();
        push(&mut self.history.commit_ms, commit.map(|seconds| (seconds * 1e4).round() / 10.0), POINTS);
        push(&mut self.history.rate, (rate * 10.0).round() / 10.0, POINTS);
        push(&mut self.history.lag, snapshot.lag.records.or(snapshot.lag.bytes), POINTS);
        push(&mut self.recent, sample, RATE_INTERVALS + 1);
    }

    fn rates(&self) -> Option<TaskRates> {
        let (first, last) = (self.recent.front()?, self.recent.back()?);
        if last.at <= first.at {
            return None;
        }
        Some(TaskRates { components: rates_between(first, last), commit_seconds: commit_seconds(first, last) })
    }
}

fn is_less(sample: &Sample, last: &Sample) -> bool {
    let counted = |sample: &Sample| sample.counters.values().map(|counters| counters.records_in).sum::<u64>();
    counted(sample) < counted(last) || sample.commits < last.commits
}

fn commit_seconds(first: &Sample, last: &Sample) -> Option<f64> {
    let commits = last.commits.saturating_sub(first.commits);
    let took = last.commit_time.saturating_sub(first.commit_time);
    (commits > 0).then(|| took.as_secs_f64() / commits as f64)
}

fn rates_between(first: &Sample, last: &Sample) -> BTreeMap<String, Rates> {
    let seconds = last.at.saturating_duration_since(first.at).as_secs_f64();
    let rates = last.counters.iter().map(|(component, now)| {
        let before = first.counters.get(component).copied().unwrap_or_default();
        let rate = |now: u64, before: u64| {
            if seconds > 0.0 { now.saturating_sub(before) as f64 / seconds } else { 0.0 }
        };
        let rates = Rates {
            records_in: rate(now.records_in, before.records_in),
            out: rate(now.out, before.out),
            dead_lettered: rate(now.dead_lettered, before.dead_lettered),
        };
        (component.clone(), rates)
    });
    rates.collect()
}

fn push<T>(into: &mut VecDeque<T>, value: T, limit: usize) {
    if into.len() == limit {
        into.pop_front();
    }
    into.push_back(value);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Counters;
    use crate::stage::CommitDurations;

    fn snapshot(records: u64, commits: u64) -> StageSnapshot {
        let mut counters = Counters::default();
        let own = counters.of("lake");
        (own.records_in, own.out, own.dead_lettered) = (records, records, records / 10);
        let commits =
            CommitDurations { count: commits, sum: Duration::from_millis(20 * commits), ..Default::default() };
        let lag = trunkline_connector::SourceLag { records: Some(7), ..Default::default() };
        StageSnapshot {
            state: "running",
            error: None,
            counters,
            lag,
            state_bytes: None,
            state_limit: None,
            state_figures: None,
            memory_bytes: 0,
            since_commit: None,
            commits,
            last_error: None,
            failures: 0,
        }
    }

    #[test]
    fn rates_are_those_of_the_last_intervals() {
        let start = Instant::now();
        let mut samples = TaskSamples::default();
        samples.add("lake", &snapshot(0, 0), start);
        assert_eq!(samples.rates(), None, "one sample has no rate");
        for second in 1..=20_u64 {
            // 100 a second, and 300 a second from the tenth second on.
            let records = 100 * second + 200 * second.saturating_sub(10);
            samples.add("lake", &snapshot(records, second), start + INTERVAL * u32::try_from(second).unwrap() / 2);
        }
        let rates = samples.rates().unwrap();
        assert_eq!(rates.components["lake"], Rates { records_in: 300.0, out: 300.0, dead_lettered: 30.0 });
        assert_eq!(rates.commit_seconds, Some(0.02));
        assert_eq!((samples.history.rate.len(), samples.history.rate[20]), (21, 300.0));
        assert_eq!(samples.history.lag[0], Some(7));
        assert_eq!((samples.history.commit_ms[0], samples.history.commit_ms[20]), (None, Some(20.0)));
    }

    #[test]
    fn a_task_that_was_replaced_has_no_negative_rate() {
        let start = Instant::now();
        let mut samples = TaskSamples::default();
        samples.add("lake", &snapshot(1_000, 9), start);
        samples.add("lake", &snapshot(10, 1), start + INTERVAL);
        assert_eq!((samples.rates(), samples.history.rate.back()), (None, Some(&0.0)));
        samples.add("lake", &snapshot(30, 2), start + INTERVAL * 2);
        assert_eq!(samples.rates().unwrap().components["lake"].records_in, 10.0);
    }

    #[test]
    fn the_history_is_bounded() {
        let start = Instant::now();
        let mut samples = TaskSamples::default();
        for index in 0..200 {
            samples.add("lake", &snapshot(0, 0), start + INTERVAL * index);
        }
        assert_eq!((samples.history.rate.len(), samples.history.lag.len()), (POINTS, POINTS));
        assert_eq!(samples.recent.len(), RATE_INTERVALS + 1);
    }
}
