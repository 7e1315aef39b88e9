//! Replays as they are listed: each row with what Kafka knows of the run now.

use jiff::Timestamp;
use serde_json::{Value, json};
use trunkline_connector::Result;

use super::execution::{Progress, Watch};
use super::run::{Run, RunState, Runs};
use crate::checkpoint::{Counters, Intents, Positions};
use crate::kafka::Cluster;

/// A run with what Kafka knows of it now.
pub struct ListedRun {
    /// The stored run.
    pub run: Run,
    /// The stored state, `interrupted`, or `pausing`.
    pub state: &'static str,
    /// How far it is.
    pub progress: Progress,
    /// Tasks that execute it, in all processes.
    pub tasks: usize,
}

/// The replays of the cluster with this name, in the order of their ids.
pub fn list(cluster: &Cluster, name: &str) -> Result<Vec<ListedRun>> {
    let runs = Runs::new(cluster, name).list()?;
    let watches = runs.iter().map(|run| Watch::new(cluster, name, run)).collect::<Result<Vec<_>>>()?;
    // One pass over each of the topics, however many runs there are.
    let prefixes = |is_transform: bool| {
        let chosen = runs.iter().zip(&watches).filter(move |(run, _)| run.transform == is_transform);
        chosen.map(|(_, watch)| watch.prefix().to_owned()).collect::<Vec<_>>()
    };
    let (sinks, transforms) = (prefixes(false), prefixes(true));
    let totals = |prefixes: &[String], read: fn(&Cluster, &[String]) -> Result<Vec<Counters>>| match prefixes {
        [] => Ok(Vec::new()),
        prefixes => read(cluster, prefixes),
    };
    let mut of_sinks = totals(&sinks, Intents::totals)?.into_iter();
    let mut of_transforms = totals(&transforms, Positions::totals)?.into_iter();
    let listed = runs.iter().zip(&watches).map(|(run, watch)| {
        let counters = if run.transform { of_transforms.next() } else { of_sinks.next() };
        ListedRun::of(run, watch, counters.unwrap_or_default())
    });
    listed.collect()
}

/// The replay with this id.
pub fn get(cluster: &Cluster, name: &str, id: &str) -> Result<ListedRun> {
    let run = Runs::new(cluster, name).get(id)?;
    let watch = Watch::new(cluster, name, &run)?;
    ListedRun::of(&run, &watch, watch.counters()?)
}

impl ListedRun {
    fn of(run: &Run, watch: &Watch<'_>, counters: Counters) -> Result<Self> {
        let tasks = if run.is_unfinished() { watch.tasks()? } else { 0 };
        let state = match run.state {
            RunState::Running | RunState::Stopping if tasks == 0 => "interrupted",
            RunState::Paused if tasks > 0 => "pausing",
            state => state.name(),
        };
        Ok(Self { run: run.clone(), state, progress: watch.progress(counters)?, tasks })
    }

    /// Offsets per second, and the seconds that are left, while it is executed.
    pub fn speed(&self) -> Option<(f64, u64)> {
        let Progress { done, total, .. } = self.progress;
        let executed = self.run.executed.filter(|_| self.state == "running")?;
        executed.speed(done, total.saturating_sub(done), Timestamp::now().as_millisecond())
    }

    /// Offsets that are not committed.
    pub fn offsets_left(&self) -> u64 {
        self.progress.total.saturating_sub(self.progress.done)
    }

    /// Who started it, and where.
    pub fn started_by(&self) -> String {
        person(&self.run.user, &self.run.node)
    }

    /// Committed offsets out of a hundred.
    pub fn percent(&self) -> u64 {
        (self.progress.done * 100).checked_div(self.progress.total).unwrap_or(100)
    }

    /// For `--json` and REST.
    pub fn json(&self) -> Value {
        let Self { run, state, progress, tasks } = self;
        let speed = self.speed();
        json!({
            "kind": "replay", "id": run.id, "pipeline": run.pipeline, "sink": run.sink, "transform": run.transform,
            "state": state, "error": run.error,
            "destination": run.destination, "from": run.request.from, "to": run.request.to, "ranges": run.ranges,
            "dead_letters_only": run.request.dead_letters, "pipeline_file": run.request.pipeline_file,
            "node": run.node, "user": run.user, "rate": run.rate, "tasks": tasks,
            "offsets_per_second": speed.map(|(rate, _)| rate as u64), "seconds_left": speed.map(|(_, left)| left),
            "started": time_text(run.started), "ended": run.ended.map(time_text),
            "offsets_done": progress.done, "offsets_total": progress.total, "counters": progress.counters,
            "supersede": run.supersede, "switch": run.switch,
        })
    }
}

/// A user of a machine; the machine alone if the user is not known.
pub fn person(user: &str, node: &str) -> String {
    if user.is_empty() { node.to_owned() } else { format!("{user}@{node}") }
}

/// A time in milliseconds since the Unix epoch, as text.
pub fn time_text(milliseconds: i64) -> String {
    let time = Timestamp::from_millisecond(milliseconds);
    time.map_or_else(|_| milliseconds.to_string(), |time| time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
}

/// Seconds for people: `3h 12m`, `4m 5s`, `7s`.
pub fn time_left(seconds: u64) -> String {
    match (seconds / 3_600, seconds / 60 % 60, seconds % 60) {
        (0, 0, seconds) => format!("{seconds}s"),
        (0, minutes, seconds) => format!("{minutes}m {seconds}s"),
        (hours, minutes, _) => format!("{hours}h {minutes}m"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_that_are_left_have_two_units() {
        for (seconds, text) in [(0, "0s"), (59, "59s"), (60, "1m 0s"), (3_599, "59m 59s"), (90_061, "25h 1m")] {
            assert_eq!(time_left(seconds), text);
        }
    }
}
