//! Connectors that are created, changed and deleted by REST. Each is a pipeline of one component,
//! stored in the topic of the cluster's control, so that all workers run it and it outlives them.
//!
//! Everyone who can read that topic sees the configurations. So a secret must be a reference, which
//! each worker resolves by itself.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use trunkline_connector::Result;

use super::super::answer::{blocking, json_ok, json_with};
use super::super::components::{ComponentInfo, all};
use super::super::shown_options::{MASK, shown};
use super::super::{HTTPS, Served};
use super::{failure, info, not_found, refused};
use crate::checkpoint::{ConnectorRow, RunState};
use crate::plan::{ConnectorFile, FlatConfig, KeyProblem, Registry};

type Shared = State<Arc<Served>>;

/// The answer of a request that was refused.
type Refusal = Box<Response>;

/// The body of `POST /connectors`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewConnector {
    name: String,
    config: Map<String, Value>,
    #[serde(default)]
    initial_state: Option<InitialState>,
}

/// The state in which a connector begins.
#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
enum InitialState {
    Running,
    Paused,
    Stopped,
}

/// `POST /connectors`.
pub(super) async fn create(State(served): Shared, headers: HeaderMap, body: Bytes) -> Response {
    let new: NewConnector = match read(&body) {
        Ok(new) => new,
        Err(refusal) => return *refusal,
    };
    if find(&served, &new.name).is_some() {
        return failure(StatusCode::CONFLICT, &format!("Connector {} already exists", new.name));
    }
    let stored = texts(&new.config, &FlatConfig::new());
    let initial = match new.initial_state {
        None | Some(InitialState::Running) => RunState::Running,
        Some(InitialState::Paused) => RunState::Paused,
        Some(InitialState::Stopped) => RunState::Stopped,
    };
    let new = NewRow { name: &new.name, config: stored, initial };
    store(served, headers.get(header::HOST), new, StatusCode::CREATED).await
}

/// `PUT /connectors/{name}/config`: creates the connector, or replaces its configuration.
pub(super) async fn put_config(
    State(served): Shared,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let config: Map<String, Value> = match read(&body) {
        Ok(config) => config,
        Err(refusal) => return *refusal,
    };
    let known = served.control.view().connectors().get(&name).map(|row| row.config.clone());
    if known.is_none() && find(&served, &name).is_some() {
        return of_a_file(&name);
    }
    let status = if known.is_some() { StatusCode::OK } else { StatusCode::CREATED };
    let stored = texts(&config, &known.unwrap_or_default());
    store(served, headers.get(header::HOST), NewRow { name: &name, config: stored, initial: RunState::Running }, status)
        .await
}

/// `PATCH /connectors/{name}/config`: changes some keys; a null removes one.
pub(super) async fn patch_config(State(served): Shared, Path(name): Path<String>, body: Bytes) -> Response {
    let changes: Map<String, Value> = match read(&body) {
        Ok(changes) => changes,
        Err(refusal) => return *refusal,
    };
    let mut known = match stored(&served, &name) {
        Ok(row) => row.config,
        Err(refusal) => return *refusal,
    };
    let mut config = texts(&changes, &known);
    changes.iter().filter(|(_, value)| value.is_null()).for_each(|(key, _)| drop(known.remove(key)));
    known.append(&mut config);
    store(served, None, NewRow { name: &name, config: known, initial: RunState::Running }, StatusCode::OK).await
}

/// `DELETE /connectors/{name}`: its positions stay in Kafka.
pub(super) async fn delete(State(served): Shared, Path(name): Path<String>) -> Response {
    if let Err(refusal) = stored(&served, &name) {
        return *refusal;
    }
    let written =
        blocking(move || served.control.store_connector(&name, None, RunState::Running, json!({ "name": name })));
    written.await.map_or_else(|error| refused(&error), |()| StatusCode::NO_CONTENT.into_response())
}

/// `PUT /connector-plugins/{class}/config/validate`.
pub(super) async fn validate(State(served): Shared, Path(class): Path<String>, body: Bytes) -> Response {
    let config: Map<String, Value> = match read(&body) {
        Ok(config) => config,
        Err(refusal) => return *refusal,
    };
    let mut config = texts(&config, &FlatConfig::new());
    let given = config.entry("connector.class".to_owned()).or_insert_with(|| class.clone());
    if *given != class {
        let message = format!("the configuration is of the connector `{given}`, not of `{class}`");
        return failure(StatusCode::BAD_REQUEST, &message);
    }
    let name = config.get("name").cloned().unwrap_or_else(|| "new.connector".to_owned());
    let checked = config.clone();
    let problems = blocking(move || Ok(problems(&served, &name, &checked))).await;
    let problems = match problems {
        Ok(problems) => problems,
        Err(error) => return refused(&error),
    };
    let Some(keys) = super::admin::option_keys(&class) else {
        return failure(StatusCode::NOT_FOUND, &format!("Unknown plugin {class}."));
    };
    json_ok(&validated(&class, &keys, &config, &problems))
}

/// The definition of each known or given key, with its value and its problems.
fn validated(class: &str, keys: &[Value], config: &FlatConfig, problems: &[KeyProblem]) -> Value {
    let of = |key: &str| {
        let value = config.get(key).map(|value| shown(&json!({ key: value }))[key].clone());
        let errors: Vec<&str> =
            problems.iter().filter(|problem| problem.key == key).map(|problem| problem.message.as_str()).collect();
        json!({ "name": key, "value": value, "recommended_values": [], "errors": errors, "visible": true })
    };
    let name_of = |definition: &Value| definition["name"].as_str().unwrap_or_default().to_owned();
    let known = keys.iter().map(|definition| json!({ "definition": definition, "value": of(&name_of(definition)) }));
    let is_known = |key: &str| keys.iter().any(|definition| definition["name"] == key);
    let others = config.keys().chain(problems.iter().map(|problem| &problem.key));
    let others: std::collections::BTreeSet<&String> = others.filter(|key| !is_known(key)).collect();
    let others = others.into_iter().map(|key| json!({ "definition": null, "value": of(key) }));
    let configs: Vec<Value> = known.chain(others).collect();
    json!({ "name": class, "error_count": problems.len(), "groups": [], "configs": configs })
}

fn read<T: for<'de> Deserialize<'de>>(body: &[u8]) -> Result<T, Refusal> {
    serde_json::from_slice(body)
        .map_err(|error| Box::new(failure(StatusCode::BAD_REQUEST, &format!("the body is not valid: {error}"))))
}

/// The values as texts. A masked secret, as the answers show it, stands for the `known` value.
fn texts(config: &Map<String, Value>, known: &FlatConfig) -> FlatConfig {
    let text = |key: &str, value: &Value| match value {
        Value::Null => None,
        Value::String(text) if text.contains(MASK) && known.contains_key(key) => known.get(key).cloned(),
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    };
    config.iter().filter_map(|(key, value)| Some((key.clone(), text(key, value)?))).collect()
}

/// The component that a worker runs or is about to run.
fn find(served: &Served, name: &str) -> Option<ComponentInfo> {
    all(served).into_iter().find(|component| component.name == name)
}

fn stored(served: &Served, name: &str) -> Result<ConnectorRow, Refusal> {
    match served.control.view().connectors().get(name) {
        Some(row) => Ok(row.clone()),
        None if find(served, name).is_some() => Err(Box::new(of_a_file(name))),
        None => Err(Box::new(failure(StatusCode::NOT_FOUND, &not_found(name)))),
    }
}

fn of_a_file(name: &str) -> Response {
    let message = format!(
        "Connector {name} is defined in a pipeline file: change or delete the file, and send SIGHUP to the worker"
    );
    failure(StatusCode::METHOD_NOT_ALLOWED, &message)
}

/// The problems of a configuration.
fn problems(served: &Served, name: &str, config: &FlatConfig) -> Vec<KeyProblem> {
    let registry = Registry::new();
    let mut found = match ConnectorFile::new(name, config, &registry) {
        Ok(file) => file.problems(served.secrets.as_deref(), &registry),
        Err(problem) => return vec![problem],
    };
    for (key, value) in config {
        let (key, value) = (key.as_str(), Value::from(value.as_str()));
        if shown(&json!({ key: value }))[key] != value {
            let message = "a secret would be stored in a topic: write a reference that each worker resolves, such as \
                           `${env:NAME}` or `${file:/run/secrets/name}`";
            found.push(KeyProblem { key: key.to_owned(), message: message.to_owned() });
        }
    }
    found
}

/// The pipeline that a connector would belong to, if it has components already.
fn taken_pipeline(served: &Served, name: &str) -> Option<String> {
    let (pipeline, _) = name.split_once('.')?;
    let is_other = |component: &ComponentInfo| component.pipeline == pipeline && component.name != name;
    all(served).iter().any(is_other).then(|| pipeline.to_owned())
}

/// A configuration to store.
struct NewRow<'a> {
    name: &'a str,
    config: FlatConfig,
    /// The state in which a new connector begins.
    initial: RunState,
}

/// Checks a configuration and stores it. Returns the connector.
async fn store(served: Arc<Served>, host: Option<&HeaderValue>, new: NewRow<'_>, status: StatusCode) -> Response {
    let NewRow { name, mut config, initial } = new;
    if let Some(other) = config.get("name").filter(|given| *given != name) {
        let message =
            format!("Connector name configuration ({other}) doesn't match connector name in the URL ({name})");
        return failure(StatusCode::BAD_REQUEST, &message);
    }
    if let Some(pipeline) = taken_pipeline(&served, name) {
        let message = format!(
            "the pipeline `{pipeline}` has other components: each connector that is created here is a separate pipeline, so \
             choose another name before the dot"
        );
        return failure(StatusCode::CONFLICT, &message);
    }
    config.insert("name".to_owned(), name.to_owned());
    let owned = name.to_owned();
    let written = blocking({
        let (served, config) = (served.clone(), config.clone());
        move || {
            let problems = problems(&served, &owned, &config);
            if problems.is_empty() {
                let shown = shown(&json!(config));
                served.control.store_connector(
                    &owned,
                    Some(ConnectorRow { config }),
                    initial,
                    json!({ "name": owned, "config": shown }),
                )?;
            }
            Ok(problems)
        }
    });
    match written.await {
        Ok(problems) if problems.is_empty() => {}
        Ok(problems) => return failure(StatusCode::BAD_REQUEST, &invalid(&problems)),
        Err(error) => return refused(&error),
    }
    let Some(found) = find(&served, name) else { return failure(StatusCode::NOT_FOUND, &not_found(name)) };
    let host = host.and_then(|host| host.to_str().ok()).unwrap_or_default();
    let scheme = if served.tls.is_some() { HTTPS } else { "http://" };
    let location = if host.is_empty() { String::new() } else { format!("{scheme}{host}") };
    let location = [(header::LOCATION, format!("{location}/connectors/{name}"))];
    match status {
        StatusCode::CREATED => (location, json_with(status, &info(&found))).into_response(),
        _ => json_with(status, &info(&found)),
    }
}

/// Problems in Kafka Connect's words.
fn invalid(problems: &[KeyProblem]) -> String {
    let lines: Vec<String> = problems.iter().map(|problem| format!("{}: {}", problem.key, problem.message)).collect();
    format!(
        "Connector configuration is invalid and contains the following {} error(s):\n{}\nYou can also find the above list \
         of errors at the endpoint `/connector-plugins/{{connectorType}}/config/validate`",
        lines.len(),
        lines.join("\n")
    )
}
