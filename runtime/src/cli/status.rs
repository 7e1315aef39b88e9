//! `trunkline status`: what the worker of a data directory does.

use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use trunkline_connector::{Error, Result};

use super::addresses::running_worker;
use super::output::{Exit, columns, print_data, report_error};
use crate::config::Settings;
use crate::http::{ComponentStatus, TaskStatus, WorkerStatus};

/// Time for the worker to answer.
const ANSWER: Duration = Duration::from_secs(10);

/// Runs the verb. The exit code is 1 if a task makes no progress.
pub(super) fn status(as_json: bool, of_cluster: bool, settings: &Settings) -> Exit {
    if of_cluster {
        return cluster_status(as_json, settings);
    }
    let (status, json): (WorkerStatus, String) = match read(settings, "status") {
        Ok(read) => read,
        Err(error) => return report_error(&error),
    };
    let printed = print_data(&if as_json { format!("{json}\n") } else { table(&status) });
    if status.problems().is_empty() { printed } else { Exit::Runtime }
}

/// Shows the tasks of all workers. The exit code is 1 if one has failed.
fn cluster_status(as_json: bool, settings: &Settings) -> Exit {
    let (components, json): (Vec<ClusterComponent>, String) = match read(settings, "components") {
        Ok(read) => read,
        Err(error) => return report_error(&error),
    };
    let printed = print_data(&if as_json { format!("{json}\n") } else { cluster_table(&components) });
    let has_failed = |component: &ClusterComponent| component.tasks.iter().any(|task| task.state == "failed");
    if components.iter().any(has_failed) { Exit::Runtime } else { printed }
}

/// A component in the answer of a worker.
#[derive(Deserialize)]
struct ClusterComponent {
    name: String,
    kind: String,
    wanted: String,
    tasks: Vec<ClusterTask>,
}

#[derive(Deserialize)]
struct ClusterTask {
    worker: String,
    node: String,
    task: u32,
    state: String,
    error: Option<String>,
}

/// One line per task, in columns, and then the errors.
fn cluster_table(components: &[ClusterComponent]) -> String {
    let mut rows = vec![["COMPONENT", "KIND", "WANTED", "STATE", "NODE", "WORKER", "TASK"].map(str::to_owned)];
    let mut errors = String::new();
    for component in components {
        let ClusterComponent { name, kind, wanted, tasks } = component;
        let row = |state: &str, node: &str, worker: &str, task: &str| {
            [name, kind, wanted, state, node, worker, task].map(str::to_owned)
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

/// An answer below `/api/v1`, and its JSON.
fn read<T: DeserializeOwned>(settings: &Settings, path: &str) -> Result<(T, String)> {
    let Some(address) = running_worker(settings)?.http else {
        let message = "the worker runs without its HTTP server: remove the setting `http = \"off\"`, and restart it";
        return Err(Error::config("worker.http_off", message));
    };
    let failed = |error: &dyn std::fmt::Display| {
        Error::external("worker.no_answer", format!("the worker at http://{address} does not answer: {error}"))
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| failed(&error))?;
    runtime.block_on(async {
        let client = reqwest::Client::builder().no_proxy().timeout(ANSWER).build().map_err(|error| failed(&error))?;
        let mut request = client.get(format!("http://{address}/api/v1/{path}"));
        if let Some(token) = &settings.http_token {
            request = request.bearer_auth(token);
        }
        let answer = request.send().await.map_err(|error| failed(&error))?;
        let code = answer.status();
        let body = answer.text().await.map_err(|error| failed(&error))?;
        if !code.is_success() {
            return Err(failed(&format!("{code}: {}", body.trim())));
        }
        let status = serde_json::from_str(&body).map_err(|error| failed(&error))?;
        Ok((status, body))
    })
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
    let ComponentStatus { records_in, out, dropped, dead_lettered, extra: _ } = own;
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

fn duration(seconds: f64) -> String {
    let whole = seconds as u64;
    match whole {
        0..10 => format!("{seconds:.1} s"),
        10..120 => format!("{whole} s"),
        120..7_200 => format!("{} min", whole / 60),
        7_200..172_800 => format!("{} h", whole / 3_600),
        _ => format!("{} d", whole / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_the_cluster_has_a_line_for_each_task() {
        let components = r#"[
            {"name": "shop.db", "kind": "source", "wanted": "paused", "tasks": []},
            {"name": "shop.lake", "kind": "sink", "wanted": "running", "tasks": [
                {"worker": "w1", "node": "a", "task": 0, "state": "running", "error": null},
                {"worker": "w2", "node": "b", "task": 1, "state": "failed", "error": "no bucket"}]}]"#;
        let expected = "\
            COMPONENT  KIND    WANTED   STATE    NODE  WORKER  TASK\n\
            shop.db    source  paused   -        -     -          -\n\
            shop.lake  sink    running  running  a     w1         0\n\
            shop.lake  sink    running  failed   b     w2         1\n\
            shop.lake on b: no bucket\n";
        assert_eq!(cluster_table(&serde_json::from_str::<Vec<_>>(components).unwrap()), expected);
    }

    #[test]
    fn durations_have_one_unit() {
        let shown = [0.04, 9.99, 61.0, 150.0, 10_000.0, 200_000.0].map(duration);
        assert_eq!(shown, ["0.0 s", "10.0 s", "61 s", "2 min", "2 h", "2 d"]);
    }
}
