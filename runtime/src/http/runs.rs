//! `/api/v1/runs`: the live runs and the replays of the cluster, and requests to pause, resume and
//! stop them.

use std::sync::Arc;

use axum::extract::{Path, RawQuery, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Value, json};
use trunkline_connector::{Error, Result};

use super::Served;
use super::answer::{blocking, json_ok, json_with, query, refused};
use super::components::names;
use super::live_runs::live_runs;
use crate::replay::listing::{self, ListedRun};
use crate::replay::requests::RunRequest;
use crate::replay::run::is_id;
use crate::worker::control::{Request, Target};

type Shared = State<Arc<Served>>;

/// All runs; with `?kind=live` or `?kind=replay` those of one kind.
pub(super) async fn runs(State(served): Shared, RawQuery(parameters): RawQuery) -> Response {
    let kind = query(parameters.as_deref(), "kind");
    if let Some(kind) = kind.filter(|kind| !["live", "replay"].contains(kind)) {
        let message = format!("`{kind}` is no kind of run: use live or replay");
        return refused(&Error::config("http.bad_parameter", message));
    }
    let replays = match kind {
        Some("live") => Ok(Vec::new()),
        _ => replays(&served).await,
    };
    let replays = match replays {
        Ok(replays) => replays,
        Err(error) => return refused(&error),
    };
    let live = if kind == Some("replay") { Vec::new() } else { live_runs(&served).await };
    let all: Vec<Value> = live.iter().map(|run| json!(run)).chain(replays.iter().map(ListedRun::json)).collect();
    json_ok(&all)
}

/// The replays of the cluster.
pub(super) async fn replays(served: &Arc<Served>) -> Result<Vec<ListedRun>> {
    // A list needs clients of Kafka.
    let _permit = served.viewers.reader().await;
    let served = served.clone();
    blocking(move || {
        let (cluster, name) = served.control.kafka()?;
        listing::list(&cluster, &name)
    })
    .await
}

/// One run, by the id of a replay or by PIPELINE.COMPONENT.
pub(super) async fn run(State(served): Shared, Path(name): Path<String>) -> Response {
    if !is_id(&name) {
        return match live_runs(&served).await.into_iter().find(|run| run.id == name) {
            Some(run) => json_ok(&run),
            None => refused(&unknown(&name)),
        };
    }
    let found = blocking(move || {
        let (cluster, cluster_name) = served.control.kafka()?;
        listing::get(&cluster, &cluster_name, &name)
    });
    match found.await {
        Ok(found) => json_ok(&found.json()),
        Err(error) => refused(&error),
    }
}

/// A request to a replay, or to a live run: a pipeline or component.
pub(super) async fn act_on_run(State(served): Shared, Path((name, action)): Path<(String, String)>) -> Response {
    let (request, live_request) = match action.as_str() {
        "pause" => (RunRequest::Pause, Request::Pause),
        "resume" => (RunRequest::Resume, Request::Resume),
        "stop" => (RunRequest::Stop, Request::Stop),
        _ => {
            let message = format!("`{action}` is not an action of runs: use pause, resume or stop");
            return refused(&Error::config("http.unknown_action", message));
        }
    };
    let outcome = blocking(move || match is_id(&name) {
        true => act_on_replay(&served, request, &name),
        false => {
            let named = served.control.request(&live_request, &Target::parse(&name), &names(&served))?;
            let names: Vec<String> =
                named.iter().map(|(pipeline, component)| format!("{pipeline}.{component}")).collect();
            let state = match live_request {
                Request::Pause => "paused",
                Request::Stop => "stopped",
                Request::Resume | Request::Restart { .. } => "running",
            };
            Ok(json!({ "id": name, "state": state, "components": names }))
        }
    });
    match outcome.await {
        Ok(answer) => json_with(StatusCode::ACCEPTED, &answer),
        Err(error) => refused(&error),
    }
}

fn act_on_replay(served: &Served, request: RunRequest, id: &str) -> Result<Value> {
    let (cluster, name) = served.control.kafka()?;
    // An unknown run is an error, and no entry.
    listing::get(&cluster, &name, id)?;
    served.control.audit(request.name(), json!({ "id": id }))?;
    let (run, _) = request.write(&cluster, &name, id)?;
    Ok(json!({
        "id": run.id, "state": run.state.name(), "components": [format!("{}.{}", run.pipeline, run.sink)],
    }))
}

fn unknown(name: &str) -> Error {
    let message = format!(
        "no worker of the cluster runs `{name}`: name a live run by PIPELINE.COMPONENT and a replay by its id; \
         `/api/v1/runs` lists them"
    );
    Error::config("replay.unknown_run", message)
}
