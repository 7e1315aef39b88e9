//! Kafka Connect's `/connector-plugins` and `/admin/loggers`.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{Path, RawQuery, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Map, Value, json};
use trunkline_connector::config::{OptionDefault, OptionSpec};

use super::super::Served;
use super::super::answer::{json_ok, query};
use super::super::log_levels::{Level, LevelError};
use super::failure;
use crate::plan::{Registry, bundled, options};

/// The connectors of this binary; with `connectorsOnly=false` its bundled transforms, too.
pub(super) async fn plugins(RawQuery(parameters): RawQuery) -> Response {
    let with_transforms = query(parameters.as_deref(), "connectorsOnly") == Some("false");
    let registry = Registry::new();
    let shown = |name: &str, kind: &str| json!({ "class": name, "type": kind, "version": env!("CARGO_PKG_VERSION") });
    let sources = registry.source_names().into_iter().map(|name| shown(name, "source"));
    let sinks = registry.sink_names().into_iter().map(|name| shown(name, "sink"));
    let transforms = bundled::PLUGINS.iter().filter(|_| with_transforms);
    let transforms = transforms.map(|plugin| shown(plugin.name, "transformation"));
    json_ok(&sources.chain(sinks).chain(transforms).collect::<Vec<_>>())
}

/// The options of a connector or bundled transform.
pub(super) async fn plugin_config(Path(name): Path<String>) -> Response {
    let shown = option_keys(&name);
    shown.map_or_else(|| failure(StatusCode::NOT_FOUND, &format!("Unknown plugin {name}.")), |keys| json_ok(&keys))
}

/// The options of a connector or bundled transform, as elements of Connect's `/config`.
pub(super) fn option_keys(name: &str) -> Option<Vec<Value>> {
    let registry = Registry::new();
    let source = registry.source(name).map(|connector| (connector.options(), options::SOURCE));
    let sink = registry.sink(name).map(|connector| (connector.options(), options::SINK));
    let plugin = bundled::find(name).map(|plugin| (plugin.options, options::TRANSFORM));
    let (own, shared) = source.or(sink).or(plugin)?;
    Some(shared.iter().chain(own).zip(0..).map(|(option, order)| option_key(option, order)).collect())
}

/// An option as an element of Connect's `/config`. The types of options have no names in Connect.
fn option_key(option: &OptionSpec, order: u32) -> Value {
    let default = match option.default {
        OptionDefault::Value(value) => json!(value.trim_matches('"')),
        OptionDefault::Required | OptionDefault::Words(_) => Value::Null,
    };
    let required = option.default == OptionDefault::Required;
    json!({
        "name": option.key, "type": "STRING", "required": required, "default_value": default,
        "importance": if required { "HIGH" } else { "MEDIUM" },
        "documentation": format!("{} ({})", option.doc, option.value_type), "group": null, "width": "NONE",
        "display_name": option.key, "dependents": [], "order_in_group": order,
    })
}

type Shared = State<Arc<Served>>;

fn shown(level: &Level) -> Value {
    json!({ "level": level.name, "last_modified": level.changed })
}

/// All loggers that have a level.
pub(super) async fn loggers(State(served): Shared) -> Response {
    let levels = served.log_levels.all();
    let levels = levels.iter().map(|(logger, level)| (logger.clone(), shown(level)));
    json_ok(&levels.collect::<Map<_, _>>())
}

/// One logger.
pub(super) async fn logger(State(served): Shared, Path(name): Path<String>) -> Response {
    match served.log_levels.all().get(&name) {
        Some(level) => json_ok(&shown(level)),
        None => failure(StatusCode::NOT_FOUND, &format!("Logger {name} not found.")),
    }
}

/// Changes the level of a logger of this worker. Returns the changed loggers.
pub(super) async fn set_logger(
    State(served): Shared,
    Path(name): Path<String>,
    RawQuery(parameters): RawQuery,
    body: Bytes,
) -> Response {
    if query(parameters.as_deref(), "scope").is_some_and(|scope| scope.eq_ignore_ascii_case("cluster")) {
        let message = "log levels are those of one worker: send the request to each, without `scope=cluster`";
        return failure(StatusCode::BAD_REQUEST, message);
    }
    let body: Value = match serde_json::from_slice(&body) {
        Ok(body) => body,
        Err(error) => return failure(StatusCode::BAD_REQUEST, &format!("the body is not JSON: {error}")),
    };
    let Some(level) = body["level"].as_str() else {
        return failure(StatusCode::BAD_REQUEST, "Desired 'level' parameter was not specified in request.");
    };
    match served.log_levels.set(&name, level) {
        Ok(()) => {
            tracing::info!(logger = name, level, "the log level was changed by REST");
            json_ok(&[name])
        }
        Err(LevelError::Unknown) => failure(StatusCode::NOT_FOUND, &format!("invalid log level '{level}'.")),
        Err(LevelError::Refused(reason)) => failure(StatusCode::BAD_REQUEST, &reason),
    }
}
