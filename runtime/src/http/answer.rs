//! Answers as JSON, and calls to Kafka from async handlers.

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use serde::Serialize;
use serde_json::json;
use trunkline_connector::{Domain, Error, Result};

/// An answer as JSON.
pub(super) fn json_with(status: StatusCode, body: &impl Serialize) -> Response {
    match serde_json::to_vec(body) {
        Ok(body) => (status, [(header::CONTENT_TYPE, "application/json")], body).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

/// The answer 200 as JSON.
pub(super) fn json_ok(body: &impl Serialize) -> Response {
    json_with(StatusCode::OK, body)
}

/// The status code of an error.
pub(super) fn status_of(error: &Error) -> StatusCode {
    match error.code {
        "cli.unknown_pipeline" | "cli.unknown_component" | "http.unknown_action" | "replay.unknown_run" => {
            StatusCode::NOT_FOUND
        }
        _ => match error.domain {
            Domain::Config => StatusCode::BAD_REQUEST,
            Domain::External => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        },
    }
}

/// An error of `/api/v1`: its code and message.
pub(super) fn refused(error: &Error) -> Response {
    let body = json!({ "code": error.code, "message": error.message() });
    json_with(status_of(error), &body)
}

/// Runs a call that waits for Kafka.
pub(super) async fn blocking<T: Send + 'static>(call: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let panicked = |_| Error::internal("worker.panic", "a thread of the worker panicked (please report this)");
    tokio::task::spawn_blocking(call).await.map_err(panicked).flatten()
}

/// The value of a parameter after the `?`. Its values are plain words here.
pub(super) fn query<'q>(query: Option<&'q str>, name: &str) -> Option<&'q str> {
    parameters(query).find(|(key, _)| *key == name).map(|(_, value)| value)
}

/// All parameters after the `?`.
pub(super) fn parameters(query: Option<&str>) -> impl Iterator<Item = (&str, &str)> {
    let pairs = query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
    pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")))
}
