//! `trunkline status`: what the worker of a data directory does.

use serde::Deserialize;

use super::output::{Exit, columns, print_data, print_error, report_error};
use super::worker_api::WorkerApi;
use crate::config::Settings;
use crate::http::{ComponentInfo, ComponentStatus, TaskStatus, WorkerStatus, gone_line};
use crate::units::duration;

/// Runs the verb. The exit code is 1 if a task makes no progress.
pub(super) fn status(as_json: bool, of_cluster: bool, settings: &Settings) -> Exit {
    if of_cluster {
        return cluster_status(as_json, settings);
    }
    let (status, json): (WorkerStatus, String) = match WorkerApi::connect(settings).and_then(|api| api.get("status")) {
        Ok(read) => read,
        Err(error) => return report_error(&error),
    };
    let printed = print_data(&if as_json { format!("{json}\n") } else { table(&status) });
    if status.problems().is_empty() { printed } else { Exit::Runtime }
}

/// Shows the tasks of all workers. The exit code is 1 if a task has failed, or a worker is gone.
fn cluster_status(as_json: bool, settings: &Settings) -> Exit {
    let asked = WorkerApi::connect(settings).and_then(|api| {
        let (components, json): (Vec<ComponentInfo>, String) = api.get("components")?;
        let (workers, _): (Vec<Listed>, String) = api.get("workers")?;
        Ok((components, json, workers))
    });
    let (components, json, workers) = match asked {
        Ok(asked) => asked,
        Err(error) => return report_error(&error),
    };
    let gone: Vec<String> = workers.iter().filter_map(Listed::problem).collect();
    let printed = if as_json {
        // The list of components stays as it is for scripts.
        gone.iter().for_each(|line| print_error(format_args!("{line}")));
        print_data(&format!("{json}\n"))
    } else {
        print_data(&(cluster_table(&components) + &gone.iter().map(|line| format!("{line}\n")).collect::<String>()))
    };
    let has_failed = |component: &ComponentInfo| component.tasks.iter().any(|task| task.state == "failed");
    if !gone.is_empty() || components.iter().any(has_failed) { Exit::Runtime } else { printed }
}

/// A worker in the answer of a worker.
#[derive(Deserialize)]
struct Listed {
    worker: String,
    node: String,
    #[serde(default)]
    gone_seconds: Option<u64>,
}

impl Listed {
    fn problem(&self) -> Option<String> {
        Some(gone_line(&self.worker, &self.node, self.gone_seconds?))
    }
}

/// One line per task, in columns, and then the errors.
fn cluster_table(components: &[ComponentInfo]) -> String {
    let mut rows = vec![["COMPONENT", "KIND", "WANTED", "STATE", "NODE", "WORKER", "TASK"].map(str::to_owned)];
    let mut errors = String::new();
    for component in components {
        let ComponentInfo { name, kind, wanted, tasks, .. } = component;
        let row = |state: &str, node: &str, worker: &str, task: &str| {
            [name, kind, wanted.name(), state, node, worker, task].map(str::to_owned)
        };
        if tasks.is_empty() {
            rows.push(row("-", "-", "-", "-"));
        }
        for task in tasks {
            rows.push(row(&task.state, &task.node, &task.worker, &task.task.to_string()));
            if let Some(error) = &task.error {
                errors.push_str(&format!("{name} on {}: {error}\n", task.node));
            }
        }
    }
    columns(&rows, &[6]) + &errors
}

/// One line per task, in columns.
fn table(status: &WorkerStatus) -> String {
    let header = ["TASK", "KIND", "STATE", "IN", "OUT", "DROPPED", "DEAD", "LAG", "LAST COMMIT", "FAILURES"];
    let mut rows = vec![header.map(str::to_owned)];
    rows.extend(status.tasks.iter().map(row));
    let mut text = format!(
        "worker {} of cluster {}, version {}, up {}\n",
        status.worker,
        status.cluster,
        status.version,
        duration(status.uptime_seconds as f64)
    );
    text.push_str(&columns(&rows, &[3, 4, 5, 6]));
    let errors = status.tasks.iter().filter(|task| task.state != "failed");
    let errors = errors.filter_map(|task| Some(format!("{}: {}", task.name(), task.last_error.as_ref()?)));
    for line in errors.chain(status.problems()) {
        text.push_str(&line);
        text.push('\n');
    }
    text
}

fn row(task: &TaskStatus) -> [String; 10] {
    let own = task.components.get(&task.component).cloned().unwrap_or_default();
    let ComponentStatus { records_in, out, dropped, dead_lettered, extra: _, per_second: _ } = own;
    [
        task.name(),
        task.kind.clone(),
        task.state.clone(),
        records_in.to_string(),
        out.to_string(),
        dropped.to_string(),
        dead_lettered.to_string(),
        lag(task),
        task.since_commit_seconds.map_or_else(|| "-".to_owned(), |since| format!("{} ago", duration(since))),
        task.failures.to_string(),
    ]
}

fn lag(task: &TaskStatus) -> String {
    let parts: Vec<String> = [(task.lag_records, "records"), (task.lag_bytes, "bytes")]
        .into_iter()
        .filter_map(|(count, unit)| count.map(|count| format!("{count} {unit}")))
        .collect();
    if parts.is_empty() { "-".to_owned() } else { parts.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_the_cluster_has_a_line_for_each_task() {
        let components = r#"[
            {"name": "shop.db", "pipeline": "shop", "component": "db", "connector": "mysql", "kind": "source",
             "wanted": "paused", "tasks": []},
            {"name": "shop.lake", "pipeline": "shop", "component": "lake", "connector": "s3", "kind": "sink",
             "wanted": "running", "tasks": [
                {"id": 0, "worker": "w1", "node": "a", "http": null, "task": 0, "state": "running", "error": null},
                {"id": 1, "worker": "w2", "node": "b", "http": null, "task": 1, "state": "failed",
                 "error": "no bucket"}]}]"#;
        let expected = "\
            COMPONENT  KIND    WANTED   STATE    NODE  WORKER  TASK\n\
            shop.db    source  paused   -        -     -          -\n\
            shop.lake  sink    running  running  a     w1         0\n\
            shop.lake  sink    running  failed   b     w2         1\n\
            shop.lake on b: no bucket\n";
        assert_eq!(cluster_table(&serde_json::from_str::<Vec<_>>(components).unwrap()), expected);
    }

    #[test]
    fn only_workers_that_are_gone_are_reported() {
        let workers =
            r#"[{"worker": "w1", "node": "a", "tasks": 2}, {"worker": "w2", "node": "b", "gone_seconds": 4}]"#;
        let workers: Vec<Listed> = serde_json::from_str(workers).unwrap();
        let lines: Vec<String> = workers.iter().filter_map(Listed::problem).collect();
        assert_eq!(lines, ["worker w2 on b is gone: it was killed or lost Kafka 4 s ago"]);
    }
}
