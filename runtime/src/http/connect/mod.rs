//! Kafka Connect's paths with its JSON and status codes. Each component is a connector
//! `{pipeline}.{component}`.
//!
//! Connectors of pipeline files are not changed or deleted here; others are created (`created.rs`).
//! Pausing and stopping are the same: the tasks end, and the position stays. A connector has no
//! instance besides its tasks, so a restart always includes them.

mod admin;
mod created;
mod offsets;
mod shapes;

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post, put};
use serde_json::{Map, Value, json};
use trunkline_connector::Error;

use self::offsets::{NewOffset, NewOffsets};
use self::shapes::{info, shown_tasks, status, task_info, task_status};
use super::Served;
use super::answer::{blocking, json_ok, json_with, parameters, query, status_of};
use super::components::{ComponentInfo, all, names};
use super::page;
use crate::checkpoint::{POSITION_IN_USE, RunState, TaskRef};
use crate::kafka::{GroupOffsets, topic_reader};
use crate::plan::TopicSelector;
use crate::stage::component_name;
use crate::worker::control::{Request, Target};

pub(super) fn routes() -> Router<Arc<Served>> {
    Router::new()
        .route("/", get(root))
        .route("/connectors", get(connectors).post(created::create))
        .route("/connectors/{name}", get(connector).delete(created::delete))
        .route("/connectors/{name}/config", get(config).put(created::put_config).patch(created::patch_config))
        .route("/connectors/{name}/status", get(connector_status))
        .route("/connectors/{name}/tasks", get(tasks))
        .route("/connectors/{name}/tasks/{task}/status", get(one_task))
        .route("/connectors/{name}/tasks/{task}/restart", post(restart_task))
        .route("/connectors/{name}/topics", get(topics))
        .route("/connectors/{name}/topics/reset", put(|| read_only("the topics are those of the pipeline file")))
        .route("/connectors/{name}/pause", put(pause))
        .route("/connectors/{name}/resume", put(resume))
        .route("/connectors/{name}/stop", put(stop))
        .route("/connectors/{name}/restart", post(restart))
        .route("/connectors/{name}/offsets", get(offsets).patch(patch_offsets).delete(delete_offsets))
        .route("/connector-plugins", get(admin::plugins))
        .route("/connector-plugins/{name}/config", get(admin::plugin_config))
        .route("/connector-plugins/{name}/config/validate", put(created::validate))
        .route("/admin/loggers", get(admin::loggers))
        .route("/admin/loggers/{name}", get(admin::logger).put(admin::set_logger))
}

type Shared = State<Arc<Served>>;

/// An error in Connect's form.
pub(super) fn failure(status: StatusCode, message: &str) -> Response {
    json_with(status, &json!({ "error_code": status.as_u16(), "message": message }))
}

fn refused(error: &Error) -> Response {
    failure(status_of(error), &error.to_string())
}

async fn read_only(message: &'static str) -> Response {
    failure(StatusCode::METHOD_NOT_ALLOWED, message)
}

/// No handler has this path.
pub(super) async fn unknown_path() -> Response {
    failure(StatusCode::NOT_FOUND, "HTTP 404 Not Found")
}

/// The path has no handler for this method.
pub(super) async fn unknown_method() -> Response {
    failure(StatusCode::METHOD_NOT_ALLOWED, "HTTP 405 Method Not Allowed")
}

/// The component of a connector, or Connect's answer.
fn find(served: &Served, name: &str, unknown: &str) -> Result<ComponentInfo, Box<Response>> {
    let found = all(served).into_iter().find(|component| component.name == name);
    found.ok_or_else(|| Box::new(failure(StatusCode::NOT_FOUND, unknown)))
}

fn not_found(name: &str) -> String {
    format!("Connector {name} not found")
}

/// The page for a browser, and Connect's root for its clients.
async fn root(State(served): Shared, headers: HeaderMap) -> Response {
    if page::is_browser(&headers) {
        return page::overview(served).await;
    }
    let control = served.control.clone();
    let id = blocking(move || topic_reader::cluster_id(&control.kafka()?.0)).await.ok().flatten();
    json_ok(&json!({ "version": env!("CARGO_PKG_VERSION"), "commit": "unknown", "kafka_cluster_id": id }))
}

async fn connectors(State(served): Shared, RawQuery(query): RawQuery) -> Response {
    let query = query.unwrap_or_default();
    served.answers.connectors.json(&served, &query, || shown_connectors(&served, &query)).await
}

/// The names of the connectors, or what the parameters expand.
fn shown_connectors(served: &Served, query: &str) -> Value {
    let found = all(served);
    let expand: Vec<&str> =
        parameters(Some(query)).filter(|(key, _)| *key == "expand").map(|(_, value)| value).collect();
    if expand.is_empty() {
        return found.into_iter().map(|component| component.name).collect();
    }
    let mut shown = Map::new();
    for component in &found {
        let mut parts = Map::new();
        if expand.contains(&"status") {
            parts.insert("status".to_owned(), status(component));
        }
        if expand.contains(&"info") {
            parts.insert("info".to_owned(), info(component));
        }
        shown.insert(component.name.clone(), Value::Object(parts));
    }
    Value::Object(shown)
}

async fn connector(State(served): Shared, Path(name): Path<String>) -> Response {
    find(&served, &name, &not_found(&name)).map_or_else(|refused| *refused, |found| json_ok(&info(&found)))
}

async fn config(State(served): Shared, Path(name): Path<String>) -> Response {
    let found = find(&served, &name, &not_found(&name));
    found.map_or_else(|refused| *refused, |found| json_ok(&shapes::config(&found)))
}

async fn connector_status(State(served): Shared, Path(name): Path<String>) -> Response {
    let found = find(&served, &name, &format!("No status found for connector {name}"));
    found.map_or_else(|refused| *refused, |found| json_ok(&status(&found)))
}

async fn tasks(State(served): Shared, Path(name): Path<String>) -> Response {
    let found = find(&served, &name, &not_found(&name));
    let shown = |found: &ComponentInfo| shown_tasks(found).map(|task| task_info(found, task)).collect::<Vec<_>>();
    found.map_or_else(|refused| *refused, |found| json_ok(&shown(&found)))
}

async fn one_task(State(served): Shared, Path((name, task)): Path<(String, String)>) -> Response {
    let unknown = || failure(StatusCode::NOT_FOUND, &format!("No status found for task {name}-{task}"));
    let found = all(&served).into_iter().find(|component| component.name == name);
    let found = found.and_then(|component| component.tasks.into_iter().find(|found| found.id.to_string() == task));
    found.map_or_else(unknown, |found| json_ok(&task_status(&found)))
}

async fn pause(State(served): Shared, Path(name): Path<String>) -> Response {
    act(served, &name, Request::Pause, StatusCode::ACCEPTED).await
}

async fn resume(State(served): Shared, Path(name): Path<String>) -> Response {
    act(served, &name, Request::Resume, StatusCode::ACCEPTED).await
}

async fn stop(State(served): Shared, Path(name): Path<String>) -> Response {
    act(served, &name, Request::Stop, StatusCode::NO_CONTENT).await
}

/// Makes a request of one connector. Returns an answer without a body.
async fn act(served: Arc<Served>, name: &str, request: Request, status: StatusCode) -> Response {
    if let Err(refused) = find(&served, name, &format!("Unknown connector {name}")) {
        return *refused;
    }
    let target = Target::parse(name);
    match blocking(move || served.control.request(&request, &target, &names(&served))).await {
        Ok(_) => status.into_response(),
        Err(error) => refused(&error),
    }
}

/// Connect answers 204 to a restart without options, and else 202 with the restarting tasks.
async fn restart(State(served): Shared, Path(name): Path<String>, RawQuery(parameters): RawQuery) -> Response {
    let is_set = |name| query(parameters.as_deref(), name).is_some_and(|value| value.eq_ignore_ascii_case("true"));
    let (failed_only, include_tasks) = (is_set("onlyFailed"), is_set("includeTasks"));
    let mut found = match find(&served, &name, &format!("Unknown connector: {name}")) {
        Ok(found) => found,
        Err(refused) => return *refused,
    };
    let request = Request::Restart { failed_only, task: None };
    if !failed_only && !include_tasks {
        return act(served, &name, request, StatusCode::NO_CONTENT).await;
    }
    let answer = act(served, &name, request, StatusCode::ACCEPTED).await;
    if answer.status() != StatusCode::ACCEPTED {
        return answer;
    }
    if found.wanted == RunState::Running {
        let restarting = found.tasks.iter_mut().filter(|task| !failed_only || task.state == "failed");
        restarting.for_each(|task| task.state = "restarting".to_owned());
    }
    json_with(StatusCode::ACCEPTED, &status_of_restart(&found, failed_only))
}

fn status_of_restart(found: &ComponentInfo, failed_only: bool) -> Value {
    let mut shown = status(found);
    if !failed_only {
        shown["connector"]["state"] = json!("RESTARTING");
    }
    shown
}

async fn restart_task(State(served): Shared, Path((name, task)): Path<(String, String)>) -> Response {
    let found = match find(&served, &name, &format!("Unknown connector: {name}")) {
        Ok(found) => found,
        Err(refused) => return *refused,
    };
    let Some(found) = found.tasks.iter().find(|found| found.id.to_string() == task) else {
        return failure(StatusCode::NOT_FOUND, &format!("Unknown task: {name}-{task}"));
    };
    let only = TaskRef { worker: found.worker.clone(), number: found.task };
    act(served, &name, Request::Restart { failed_only: false, task: Some(only) }, StatusCode::NO_CONTENT).await
}

/// The topics that exist now, of those that the component reads or a source writes. Connect knows
/// no topics of a connector that it does not know.
async fn topics(State(served): Shared, Path(name): Path<String>) -> Response {
    let Some(found) = all(&served).into_iter().find(|component| component.name == name) else {
        return json_ok(&json!({ name: { "topics": [] } }));
    };
    let known = found.topics.iter().filter_map(|topic| match topic {
        TopicSelector::Exact(name) => Some(name.clone()),
        TopicSelector::Pattern(_) => None,
    });
    let mut topics: Vec<String> = known.collect();
    if topics.len() < found.topics.len() {
        let existing = blocking(move || {
            let (cluster, group) = served.control.kafka()?;
            let offsets = GroupOffsets::new(&cluster, &group)?;
            offsets.partitions(|topic| found.topics.iter().any(|selector| selector.selects(topic)))
        });
        match existing.await {
            Ok(partitions) => topics.extend(partitions.iter().map(|partition| partition.topic.to_string())),
            Err(error) => return refused(&error),
        }
    }
    topics.sort_unstable();
    topics.dedup();
    json_ok(&json!({ name: { "topics": topics } }))
}

async fn offsets(State(served): Shared, Path(name): Path<String>) -> Response {
    let found = match find(&served, &name, &not_found(&name)) {
        Ok(found) => found,
        Err(refused) => return *refused,
    };
    let read = move || {
        let (cluster, group) = served.control.kafka()?;
        offsets::read(&cluster, &component_name(&group, &found.pipeline, &found.component), &found)
    };
    match blocking(read).await {
        Ok(offsets) => json_ok(&json!({ "offsets": offsets })),
        Err(error) => refused(&error),
    }
}

/// Moves a stopped sink or transform to the given offsets.
async fn patch_offsets(State(served): Shared, Path(name): Path<String>, body: Bytes) -> Response {
    let new: NewOffsets = match serde_json::from_slice(&body) {
        Ok(new) => new,
        Err(error) => return failure(StatusCode::BAD_REQUEST, &format!("the body is not valid: {error}")),
    };
    let Some(offsets) = new.offsets.filter(|offsets| !offsets.is_empty()) else {
        let message = "Partitions / offsets need to be provided for an alter offsets request";
        return failure(StatusCode::BAD_REQUEST, message);
    };
    change_offsets(served, &name, Some(offsets), "altered").await
}

/// Moves a stopped sink or transform to the first records that its topics still have.
async fn delete_offsets(State(served): Shared, Path(name): Path<String>) -> Response {
    change_offsets(served, &name, None, "reset").await
}

async fn change_offsets(served: Arc<Served>, name: &str, new: Option<Vec<NewOffset>>, verb: &str) -> Response {
    let found = match find(&served, name, &not_found(name)) {
        Ok(found) => found,
        Err(refused) => return *refused,
    };
    if found.wanted != RunState::Stopped {
        let message = format!(
            "Connectors must be in the STOPPED state before their offsets can be modified. This can be done for the specified \
             connector by issuing a 'PUT' request to the '/connectors/{name}/stop' endpoint"
        );
        return failure(StatusCode::BAD_REQUEST, &message);
    }
    let change = move || {
        let (cluster, group) = served.control.kafka()?;
        let task = component_name(&group, &found.pipeline, &found.component);
        served.control.audit("offsets set", json!({ "name": found.name, "offsets": new }))?;
        offsets::change(&cluster, &task, &found, new)
    };
    match blocking(change).await {
        Ok(_) => {
            json_ok(&json!({ "message": format!("The offsets for this connector have been {verb} successfully") }))
        }
        // The tasks are still stopping: clients try again.
        Err(error) if error.code == POSITION_IN_USE => failure(StatusCode::CONFLICT, &error.to_string()),
        Err(error) => refused(&error),
    }
}
