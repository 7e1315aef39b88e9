//! Components and tasks in Kafka Connect's JSON.

use serde_json::{Map, Value, json};

use crate::checkpoint::RunState;
use crate::http::components::{ComponentInfo, TaskInfo};
use crate::http::shown_options::flat;
use crate::plan::TopicSelector;

/// All connectors are parts of the binary.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// `GET /connectors/{name}`.
pub(super) fn info(component: &ComponentInfo) -> Value {
    let name = &component.name;
    let tasks: Vec<Value> = shown_tasks(component).map(|task| json!({ "connector": name, "task": task.id })).collect();
    json!({ "name": name, "config": config(component), "tasks": tasks, "type": kind(component) })
}

/// `GET /connectors/{name}/config`: the options of the pipeline file as texts, with Connect's names
/// for what both have.
pub(super) fn config(component: &ComponentInfo) -> Map<String, Value> {
    let mut config = flat(&component.options);
    config.remove("connector");
    let mut set = |name: &str, value: String| config.insert(name.to_owned(), Value::String(value));
    set("name", component.name.clone());
    set("connector.class", component.connector.clone());
    set("tasks.max", component.max_tasks.to_string());
    if component.kind != "source" {
        let exact = component.topics.iter().filter_map(|topic| match topic {
            TopicSelector::Exact(name) => Some(name.as_str()),
            TopicSelector::Pattern(_) => None,
        });
        let exact: Vec<&str> = exact.collect();
        let patterns = component.topics.iter().filter_map(|topic| match topic {
            TopicSelector::Exact(_) => None,
            TopicSelector::Pattern(pattern) => Some(pattern.as_str()),
        });
        let patterns: Vec<&str> = patterns.collect();
        if !exact.is_empty() {
            set("topics", exact.join(","));
        }
        if !patterns.is_empty() {
            set("topics.regex", patterns.join("|"));
        }
    }
    config
}

/// `GET /connectors/{name}/status`.
pub(super) fn status(component: &ComponentInfo) -> Value {
    let worker = component.tasks.first().map(TaskInfo::worker_id).unwrap_or_default();
    let state = match component.wanted {
        RunState::Stopped => "STOPPED",
        RunState::Paused => "PAUSED",
        RunState::Running if component.tasks.is_empty() => "UNASSIGNED",
        RunState::Running => "RUNNING",
    };
    json!({
        "name": component.name,
        "connector": { "state": state, "worker_id": worker, "version": VERSION },
        "tasks": shown_tasks(component).map(task_status).collect::<Vec<_>>(),
        "type": kind(component),
    })
}

/// A stopped connector has no tasks.
pub(super) fn shown_tasks(component: &ComponentInfo) -> impl Iterator<Item = &TaskInfo> {
    component.tasks.iter().filter(|task| component.wanted != RunState::Stopped || task.state == "running")
}

/// `GET /connectors/{name}/tasks/{task}/status`.
pub(super) fn task_status(task: &TaskInfo) -> Value {
    let state = match task.state.as_str() {
        "running" => "RUNNING",
        "failed" => "FAILED",
        "paused" => "PAUSED",
        "restarting" => "RESTARTING",
        "done" => "STOPPED",
        _ => "UNASSIGNED",
    };
    let mut shown = json!({ "id": task.id, "state": state, "worker_id": task.worker_id(), "version": VERSION });
    if let Some(error) = &task.error {
        shown["trace"] = json!(error);
    }
    shown
}

/// An element of `GET /connectors/{name}/tasks`.
pub(super) fn task_info(component: &ComponentInfo, task: &TaskInfo) -> Value {
    json!({ "id": { "connector": component.name, "task": task.id }, "config": config(component) })
}

/// Connect knows no transforms with topics of their own.
fn kind(component: &ComponentInfo) -> &str {
    match component.kind.as_str() {
        "transform" => "unknown",
        kind => kind,
    }
}
