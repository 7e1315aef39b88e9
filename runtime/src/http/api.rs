//! `/api/v1`: the pipelines, components and tasks of the cluster, and requests to pause, resume and
//! restart them. `runs.rs` has its runs, and `openapi.rs` describes all paths.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, RawQuery, State};
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::{get, post};
use serde::Deserialize;
use serde_json::{Value, json};
use trunkline_connector::{Error, Result};

use super::answer::{blocking, json_ok, json_with, query, refused};
use super::cluster::cluster_status;
use super::components::{ComponentInfo, all, names, shown_pipelines, workers};
use super::shared_answers::json_body;
use super::{Served, WorkerStatus, openapi, runs};
use crate::worker::control::{Request, Target};

/// `openapi.rs` describes each of these paths.
pub(super) fn routes() -> Router<Arc<Served>> {
    Router::new()
        .route("/api/v1/status", get(status))
        .route("/api/v1/cluster", get(cluster))
        .route("/api/v1/openapi.json", get(async || json_ok(&openapi::document())))
        .route("/api/v1/pipelines", get(pipelines))
        .route("/api/v1/pipelines/{name}", get(pipeline))
        .route("/api/v1/pipelines/{name}/{action}", post(act_on_pipeline))
        .route("/api/v1/components", get(components))
        .route("/api/v1/components/{name}", get(component))
        .route("/api/v1/components/{name}/{action}", post(act_on_component))
        .route("/api/v1/runs", get(runs::runs))
        .route("/api/v1/runs/{name}", get(runs::run))
        .route("/api/v1/runs/{name}/{action}", post(runs::act_on_run))
        .route("/api/v1/tasks", get(tasks))
        .route("/api/v1/workers", get(cluster_workers))
}

type Shared = State<Arc<Served>>;

/// Whether the last minutes of each task are asked for.
fn asks_for_history(parameters: Option<&str>) -> bool {
    query(parameters, "history").is_some_and(|value| value == "true")
}

async fn status(State(served): Shared, RawQuery(parameters): RawQuery) -> Response {
    let with_history = asks_for_history(parameters.as_deref());
    let make = if with_history { WorkerStatus::with_history } else { WorkerStatus::of };
    served.answers.status[usize::from(with_history)].json(&served, "", || make(&served)).await
}

/// The status of all workers.
async fn cluster(State(served): Shared, RawQuery(parameters): RawQuery) -> Response {
    json_body(cluster_status(&served, asks_for_history(parameters.as_deref())).await.json())
}

async fn pipelines(State(served): Shared) -> Response {
    json_ok(&by_pipeline(&served))
}

async fn pipeline(State(served): Shared, Path(name): Path<String>) -> Response {
    let target = Target { pipeline: name, component: None };
    if let Err(error) = target.among(&names(&served)) {
        return refused(&error);
    }
    let found = by_pipeline(&served).into_iter().find(|pipeline| pipeline["name"] == *target.pipeline);
    json_ok(&found)
}

/// The pipelines with their components, in the order of the components.
fn by_pipeline(served: &Served) -> Vec<Value> {
    let mut components: BTreeMap<String, Vec<ComponentInfo>> = BTreeMap::new();
    for component in all(served) {
        components.entry(component.pipeline.clone()).or_default().push(component);
    }
    let (plans, view) = (served.overview.pipelines(), served.control.view());
    let shown = shown_pipelines(served, &view, &plans).map(|plan| {
        json!({
            "name": plan.name,
            "dead_letter_topic": plan.dead_letters,
            "components": components.remove(&plan.name).unwrap_or_default(),
        })
    });
    shown.collect()
}

async fn components(State(served): Shared) -> Response {
    json_ok(&all(&served))
}

async fn component(State(served): Shared, Path(name): Path<String>) -> Response {
    if let Err(error) = Target::parse(&name).among(&names(&served)) {
        return refused(&error);
    }
    match all(&served).into_iter().find(|component| component.name == name) {
        Some(component) => json_ok(&component),
        None => refused(&no_component(&name)),
    }
}

/// The tasks of all components, each with the name of its component.
async fn tasks(State(served): Shared) -> Response {
    let mut found: Vec<Value> = Vec::new();
    for component in all(&served) {
        for task in &component.tasks {
            let mut task = json!(task);
            task["component"] = json!(component.name);
            task["kind"] = json!(component.kind);
            found.push(task);
        }
    }
    json_ok(&found)
}

async fn cluster_workers(State(served): Shared) -> Response {
    let view = served.control.view();
    let workers = workers(&served, &view);
    let alive = workers.iter().map(|(worker, row)| {
        json!({
            "worker": worker, "node": row.node, "http": row.http, "tasks": row.tasks.len(),
            "is_this": *worker == served.worker, "gone_seconds": Value::Null,
        })
    });
    let gone = view.gone(Instant::now()).filter(|(worker, ..)| *worker != served.worker);
    let gone = gone.map(|(worker, row, silence)| {
        json!({
            "worker": worker, "node": row.node, "http": row.http, "tasks": 0, "is_this": false,
            "gone_seconds": silence.as_secs(),
        })
    });
    json_ok(&alive.chain(gone).collect::<Vec<_>>())
}

async fn act_on_pipeline(State(served): Shared, Path((name, action)): Path<(String, String)>, body: Bytes) -> Response {
    act(served, Ok(Target { pipeline: name, component: None }), &action, &body).await
}

async fn act_on_component(
    State(served): Shared,
    Path((name, action)): Path<(String, String)>,
    body: Bytes,
) -> Response {
    let target = Target::parse(&name);
    let target = if target.component.is_some() { Ok(target) } else { Err(no_component(&name)) };
    act(served, target, &action, &body).await
}

fn no_component(name: &str) -> Error {
    Error::config("cli.unknown_component", format!("`{name}` names no component: write PIPELINE.COMPONENT"))
}

/// The body of a restart.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RestartBody {
    #[serde(default)]
    failed_only: bool,
}

async fn act(served: Arc<Served>, target: Result<Target>, action: &str, body: &[u8]) -> Response {
    let request = match request(action, body) {
        Ok(request) => request,
        Err(error) => return refused(&error),
    };
    let outcome = blocking(move || served.control.request(&request, &target?, &names(&served)));
    match outcome.await {
        Ok(named) => {
            let names: Vec<String> =
                named.iter().map(|(pipeline, component)| format!("{pipeline}.{component}")).collect();
            json_with(StatusCode::ACCEPTED, &json!({ "components": names }))
        }
        Err(error) => refused(&error),
    }
}

/// The request of an action.
fn request(action: &str, body: &[u8]) -> Result<Request> {
    Ok(match action {
        "pause" => Request::Pause,
        "resume" => Request::Resume,
        "restart" => {
            let body = if body.is_empty() { Ok(RestartBody::default()) } else { serde_json::from_slice(body) };
            let body = body.map_err(|error| {
                let message = format!("the body is not valid: {error}; an example is {{\"failed_only\": true}}");
                Error::config("http.bad_body", message)
            })?;
            Request::Restart { failed_only: body.failed_only, task: None }
        }
        _ => {
            let message = format!("`{action}` is not an action: use pause, resume or restart");
            return Err(Error::config("http.unknown_action", message));
        }
    })
}
