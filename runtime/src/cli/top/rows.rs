//! The rows of `trunkline top`: one for each task of the cluster, and their order.

use std::cmp::Ordering;

use crate::cli::output::columns;
use crate::http::{ClusterStatus, ClusterWorker, ComponentInfo, LiveTask, Rates, TaskStatus};
use crate::units::{bytes, count, counted, duration, milliseconds};

/// A task, or a component without tasks.
#[derive(Debug, Clone)]
pub(super) struct Row {
    /// `{pipeline}.{component}`.
    pub(super) component: String,
    /// The same, with the number of the task if the component has several.
    pub(super) name: String,
    pub(super) kind: String,
    pub(super) state: String,
    /// `running`, `paused` or `stopped`.
    pub(super) wanted: &'static str,
    /// The machine, and the worker's id.
    pub(super) node: String,
    pub(super) worker: String,
    pub(super) rates: Option<Rates>,
    pub(super) error: Option<String>,
    /// The status, if the worker answered.
    pub(super) status: Option<TaskStatus>,
}

/// The rows of a cluster, in the order of the components.
pub(super) fn rows(cluster: &ClusterStatus) -> Vec<Row> {
    let mut found = Vec::new();
    for component in &cluster.components {
        let tasks: Vec<LiveTask<'_>> = cluster.tasks(component).collect();
        if tasks.is_empty() {
            found.push(without_tasks(component));
        }
        let several = tasks.len() > 1;
        found.extend(tasks.iter().map(|task| of_task(task, several)));
    }
    found
}

fn without_tasks(component: &ComponentInfo) -> Row {
    Row {
        component: component.name.clone(),
        name: component.name.clone(),
        kind: component.kind.clone(),
        state: "-".to_owned(),
        wanted: component.wanted.name(),
        node: "-".to_owned(),
        worker: String::new(),
        rates: None,
        error: None,
        status: None,
    }
}

fn of_task(task: &LiveTask<'_>, is_one_of_several: bool) -> Row {
    let component = task.component;
    let own = task.status.and_then(|status| status.components.get(&component.component));
    let number = if is_one_of_several { format!("/{}", task.info.id) } else { String::new() };
    Row {
        name: format!("{}{number}", component.name),
        state: task.state().to_owned(),
        node: task.info.node.clone(),
        worker: task.info.worker.clone(),
        rates: own.and_then(|own| own.per_second),
        error: task.error().map(str::to_owned),
        status: task.status.cloned(),
        ..without_tasks(component)
    }
}

/// The order of the rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Sort {
    Name,
    In,
    Out,
    Lag,
    Age,
    Commit,
    Memory,
    Failures,
}

impl Sort {
    pub(super) const ALL: [Self; 8] =
        [Self::Name, Self::In, Self::Out, Self::Lag, Self::Age, Self::Commit, Self::Memory, Self::Failures];

    /// The heading of its column.
    pub(super) fn heading(self) -> &'static str {
        match self {
            Self::Name => "TASK",
            Self::In => "IN/S",
            Self::Out => "OUT/S",
            Self::Lag => "LAG",
            Self::Age => "AGE",
            Self::Commit => "COMMIT",
            Self::Memory => "MEMORY",
            Self::Failures => "FAIL",
        }
    }

    /// The next or previous order.
    pub(super) fn step(self, forward: bool) -> Self {
        let index = Self::ALL.iter().position(|sort| *sort == self).unwrap_or(0);
        let step = if forward { 1 } else { Self::ALL.len() - 1 };
        Self::ALL[(index + step) % Self::ALL.len()]
    }

    /// Sorts rows: by name upwards, by everything else the largest first. Unknown values are last.
    pub(super) fn sort(self, rows: &mut [Row], is_reversed: bool) {
        rows.sort_by(|left, right| {
            let by_name = left.name.cmp(&right.name);
            let order = match (self.value(left), self.value(right)) {
                (Some(left), Some(right)) => right.total_cmp(&left),
                (Some(_), None) => return Ordering::Less,
                (None, Some(_)) => return Ordering::Greater,
                (None, None) if self == Self::Name => by_name,
                (None, None) => return by_name,
            };
            let order = if is_reversed { order.reverse() } else { order };
            order.then(by_name)
        });
    }

    fn value(self, row: &Row) -> Option<f64> {
        let status = row.status.as_ref();
        match self {
            Self::Name => None,
            Self::In => row.rates.map(|rates| rates.records_in),
            Self::Out => row.rates.map(|rates| rates.out),
            Self::Lag => status.and_then(|status| status.lag_records.or(status.lag_bytes)).map(|lag| lag as f64),
            Self::Age => status.and_then(|status| status.lag_seconds),
            Self::Commit => status.and_then(|status| status.commit_seconds),
            Self::Memory => status.map(|status| status.memory_bytes as f64),
            Self::Failures => status.map(|status| status.failures as f64),
        }
    }
}

/// The headings of [`Row::cells`].
pub(super) const HEADINGS: [&str; 13] =
    ["TASK", "KIND", "STATE", "IN/S", "OUT/S", "DEAD", "LAG", "AGE", "COMMIT", "LAST COMMIT", "MEMORY", "FAIL", "NODE"];

/// The columns that hold numbers.
pub(super) const NUMBERS: [usize; 9] = [3, 4, 5, 6, 7, 8, 9, 10, 11];

impl Row {
    pub(super) fn cells(&self) -> [String; 13] {
        let unknown = || "-".to_owned();
        let status = self.status.as_ref();
        let dead = status.map(|status| {
            let own = status.components.values().map(|component| component.dead_lettered).sum::<u64>();
            own.to_string()
        });
        let shown = if self.wanted == "running" || self.state == self.wanted {
            self.state.clone()
        } else {
            // The worker has not followed yet, or no worker runs it.
            format!("{} ({})", self.state, self.wanted)
        };
        [
            self.name.clone(),
            self.kind.clone(),
            shown,
            self.rates.map_or_else(unknown, |rates| count(rates.records_in)),
            self.rates.map_or_else(unknown, |rates| count(rates.out)),
            dead.unwrap_or_else(unknown),
            status.and_then(lag).unwrap_or_else(unknown),
            status.and_then(|status| status.lag_seconds).map_or_else(unknown, duration),
            status.and_then(|status| status.commit_seconds).map_or_else(unknown, milliseconds),
            status.and_then(|status| status.since_commit_seconds).map_or_else(unknown, duration),
            status.map_or_else(unknown, |status| bytes(status.memory_bytes)),
            status.map_or_else(unknown, |status| status.failures.to_string()),
            self.node.clone(),
        ]
    }
}

/// The lag in records, or in bytes.
pub(super) fn lag(status: &TaskStatus) -> Option<String> {
    status.lag_records.map(|records| count(records as f64)).or_else(|| status.lag_bytes.map(bytes))
}

/// One line about the cluster.
pub(super) fn summary(cluster: &ClusterStatus, rows: &[Row]) -> String {
    let alive = cluster.workers.iter().filter(|worker| worker.gone_seconds.is_none());
    let alive: Vec<&ClusterWorker> = alive.collect();
    let of_kind = |kind: &str, rate: fn(&Rates) -> f64| {
        let rows = rows.iter().filter(|row| row.kind == kind);
        rows.filter_map(|row| row.rates.as_ref().map(rate)).sum::<f64>()
    };
    let statuses = alive.iter().filter_map(|worker| worker.status.as_ref());
    let memory: u64 = statuses.clone().filter_map(|status| status.memory_bytes).sum();
    let processors: f64 = statuses.filter_map(|status| status.processors).sum();
    let failed = rows.iter().filter(|row| row.state == "failed").count();
    format!(
        "cluster {}: {}, {}, {failed} failed; sources {}/s, sinks {}/s; memory {}, processors {processors:.2}",
        cluster.cluster,
        counted(alive.len(), "worker"),
        counted(rows.iter().filter(|row| !row.worker.is_empty()).count(), "task"),
        count(of_kind("source", |rates| rates.out)),
        count(of_kind("sink", |rates| rates.out)),
        bytes(memory),
    )
}

/// A single frame as text.
pub(super) fn text(cluster: &ClusterStatus, sort: Option<Sort>) -> String {
    let mut rows = rows(cluster);
    let mut text = summary(cluster, &rows);
    text.push('\n');
    if let Some(sort) = sort {
        sort.sort(&mut rows, false);
    }
    let mut table = vec![HEADINGS.map(str::to_owned)];
    table.extend(rows.iter().map(Row::cells));
    text.push_str(&columns(&table, &NUMBERS));
    let errors = rows.iter().filter_map(|row| Some(format!("{}: {}", row.name, row.error.as_ref()?)));
    for line in errors.chain(cluster.problems()) {
        text.push_str(&line);
        text.push('\n');
    }
    text
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A cluster with a source, a sink of two tasks on two workers, and a paused sink. One worker
    /// does not answer, one is gone.
    pub(in crate::cli::top) fn cluster() -> ClusterStatus {
        let counters = |records: u64, rate: f64| {
            format!(
                r#"{{"in":{records},"out":{records},"dropped":0,"dead_lettered":2,"extra":0,
                   "per_second":{{"in":{rate},"out":{rate},"dead_lettered":0}}}}"#
            )
        };
        let task = |component: &str, task: u32, rest: &str, counters: &str| {
            format!(
                r#"{{"pipeline":"shop","component":"{component}","task":{task},"kind":"x","failures":1,
                   "since_commit_seconds":0.4,{rest},"components":{{"{component}":{counters}}}}}"#
            )
        };
        let web = task("web", 0, r#""state":"running","memory_bytes":65536"#, &counters(120_041, 12_345.0));
        let lake = task(
            "lake",
            0,
            r#""state":"running","lag_records":4711,"lag_seconds":2.5,"commit_seconds":0.031,"memory_bytes":2000000,
               "history":{"interval_seconds":2,"rate":[0,5,9],"lag":[1,null,3]}"#,
            &counters(120_040, 950.0),
        );
        let info = |worker: &str, node: &str, id: u32, state: &str| {
            format!(
                r#"{{"id":{id},"worker":"{worker}","node":"{node}","http":null,"task":0,"state":"{state}","error":null}}"#
            )
        };
        let component = |name: &str, kind: &str, wanted: &str, tasks: &str| {
            format!(
                r#"{{"name":"shop.{name}","pipeline":"shop","component":"{name}","kind":"{kind}","connector":"c",
                   "wanted":"{wanted}","tasks":[{tasks}]}}"#
            )
        };
        let json = format!(
            r#"{{"cluster":"c","components":[{},{},{}],"workers":[
                {{"worker":"w1","node":"n1","http":"127.0.0.1:1","is_this":true,"gone_seconds":null,"error":null,
                  "status":{{"worker":"w1","cluster":"c","version":"1","uptime_seconds":5,"running":true,
                  "memory_bytes":80000000,"processors":0.5,"tasks":[{web},{lake}]}}}},
                {{"worker":"w2","node":"n2","http":null,"is_this":false,"gone_seconds":null,"status":null,
                  "error":"its HTTP server is off"}},
                {{"worker":"w3","node":"n3","http":null,"is_this":false,"gone_seconds":4,"status":null,"error":null}}]}}"#,
            component("web", "source", "running", &info("w1", "n1", 0, "running")),
            component(
                "lake",
                "sink",
                "running",
                &[info("w1", "n1", 0, "running"), info("w2", "n2", 1, "failed")].join(",")
            ),
            component("copy", "sink", "paused", ""),
        );
        serde_json::from_str(&json).unwrap()
    }

    #[test]
    fn a_frame_has_a_line_for_each_task_and_each_problem() {
        let expected = "\
cluster c: 2 workers, 3 tasks, 1 failed; sources 12.3k/s, sinks 950/s; memory 80.0 MB, processors 0.50
TASK         KIND    STATE        IN/S  OUT/S  DEAD   LAG    AGE  COMMIT  LAST COMMIT   MEMORY  FAIL  NODE
shop.web     source  running     12.3k  12.3k     2     -      -       -        0.4 s  65.5 kB     1  n1
shop.lake/0  sink    running       950    950     2  4711  2.5 s   31 ms        0.4 s   2.0 MB     1  n1
shop.lake/1  sink    failed          -      -     -     -      -       -            -        -     -  n2
shop.copy    sink    - (paused)      -      -     -     -      -       -            -        -     -  -
worker w2 on n2 does not answer, so its rates are unknown: its HTTP server is off
worker w3 on n3 is gone: it was killed or lost Kafka 4 s ago
";
        assert_eq!(text(&cluster(), None), expected);
    }

    #[test]
    fn rows_are_sorted_with_the_largest_first_and_unknown_values_last() {
        let names = |sort: Sort, is_reversed| {
            let mut rows = rows(&cluster());
            sort.sort(&mut rows, is_reversed);
            rows.into_iter().map(|row| row.name.trim_start_matches("shop.").to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(names(Sort::Name, false), ["copy", "lake/0", "lake/1", "web"]);
        assert_eq!(names(Sort::Name, true), ["web", "lake/1", "lake/0", "copy"]);
        assert_eq!(names(Sort::In, false), ["web", "lake/0", "copy", "lake/1"]);
        assert_eq!(names(Sort::In, true), ["lake/0", "web", "copy", "lake/1"]);
        assert_eq!(names(Sort::Lag, false)[0], "lake/0");
        assert_eq!(names(Sort::Memory, false)[..2], ["lake/0", "web"]);
        let all = (0..8).scan(Sort::Name, |sort, _| Some(std::mem::replace(sort, sort.step(true))));
        assert_eq!(all.collect::<Vec<_>>(), Sort::ALL);
        assert_eq!(Sort::Name.step(false), Sort::Failures);
    }
}
