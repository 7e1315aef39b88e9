//! The worker's HTTP server: its status for people and scripts, metrics for Prometheus, and probes
//! for Kubernetes. It only reads: nothing here changes a pipeline.
//!
//! | path | answer |
//! |---|---|
//! | `/health` | 200 while the worker's main loop runs, else 503 |
//! | `/ready` | 200 while all tasks make progress, else 503 with the reasons |
//! | `/metrics` | Prometheus' text format 0.0.4 |
//! | `/api/v1/status` | the [`WorkerStatus`] as JSON |
//!
//! The server listens on loopback. Any other address needs a token, because the status names
//! tables, files and errors. A web page in a browser on this machine could reach loopback through a
//! host name that it controls (DNS rebinding): such a `Host` is refused.

mod metrics;
mod status;

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::runtime::Handle;
use trunkline_connector::{Error, Result};

pub use self::status::{ComponentStatus, TaskStatus, WorkerStatus};
use crate::worker::Overview;

/// A main loop that did not pass its beginning for this long hangs. Its longest call to Kafka takes
/// 30 s.
const HUNG: Duration = Duration::from_secs(120);

/// What the server answers from.
pub struct Served {
    /// The worker's id.
    pub worker: String,
    /// The cluster's name.
    pub cluster: String,
    /// The token that `/metrics` and `/api` require.
    pub token: Option<String>,
    /// The worker.
    pub overview: Overview,
}

/// Whether an address is reachable from this machine only.
pub fn is_loopback(address: &SocketAddr) -> bool {
    address.ip().is_loopback()
}

/// Starts the server on an address. Returns the address that it listens on: with port 0, a free
/// one.
pub fn start(runtime: &Handle, address: SocketAddr, served: Served) -> Result<SocketAddr> {
    let failed = |error: std::io::Error| {
        let message = format!(
            "the HTTP server cannot listen on {address}: {error}; choose another address with the setting `http`, or \
             `http = \"off\"`"
        );
        Error::external("worker.http", message)
    };
    let listener = TcpListener::bind(address).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    let listener = {
        let _entered = runtime.enter();
        tokio::net::TcpListener::from_std(listener).map_err(failed)?
    };
    let router = router(Arc::new(served), is_loopback(&bound));
    runtime.spawn(async move {
        // It serves as long as the process lives, and has no error that ends it.
        let _ = axum::serve(listener, router).await;
    });
    Ok(bound)
}

fn router(served: Arc<Served>, on_loopback: bool) -> Router {
    let guarded = Router::new()
        .route("/metrics", get(metrics))
        .route("/api/v1/status", get(worker_status))
        .layer(from_fn_with_state(served.clone(), require_token));
    let open = Router::new().route("/health", get(health)).route("/ready", get(ready));
    let router = guarded.merge(open).with_state(served);
    if on_loopback { router.layer(axum::middleware::from_fn(require_local_host)) } else { router }
}

async fn health(State(served): State<Arc<Served>>) -> Response {
    let since = served.overview.since_last_pass();
    if since < HUNG {
        return text(StatusCode::OK, "ok\n".to_owned());
    }
    text(StatusCode::SERVICE_UNAVAILABLE, format!("the worker's main loop has not run for {} s\n", since.as_secs()))
}

async fn ready(State(served): State<Arc<Served>>) -> Response {
    let problems = WorkerStatus::of(&served).problems();
    if problems.is_empty() {
        return text(StatusCode::OK, "ready\n".to_owned());
    }
    text(StatusCode::SERVICE_UNAVAILABLE, problems.iter().map(|problem| format!("{problem}\n")).collect())
}

async fn metrics(State(served): State<Arc<Served>>) -> Response {
    let body = metrics::render(&WorkerStatus::of(&served), &served.overview);
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], body).into_response()
}

async fn worker_status(State(served): State<Arc<Served>>) -> Response {
    match serde_json::to_vec(&WorkerStatus::of(&served)) {
        Ok(body) => ([(header::CONTENT_TYPE, "application/json")], body).into_response(),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

/// Refuses requests without the token, if there is one.
async fn require_token(State(served): State<Arc<Served>>, request: Request, next: Next) -> Response {
    match &served.token {
        Some(token) if !has_token(request.headers(), token) => {
            let message = "send the token of the setting `http_token`: Authorization: Bearer TOKEN\n".to_owned();
            ([(header::WWW_AUTHENTICATE, "Bearer")], text(StatusCode::UNAUTHORIZED, message)).into_response()
        }
        _ => next.run(request).await,
    }
}

fn has_token(headers: &HeaderMap, token: &str) -> bool {
    let given = headers.get(header::AUTHORIZATION).map(|value| value.as_bytes()).unwrap_or_default();
    let given = given.strip_prefix(b"Bearer ").unwrap_or_default();
    // The time does not depend on how many bytes are right.
    let differences = given.iter().zip(token.as_bytes()).fold(0, |sum, (left, right)| sum | (left ^ right));
    given.len() == token.len() && differences == 0
}

/// Refuses host names that are not of this machine.
async fn require_local_host(request: Request, next: Next) -> Response {
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    if is_local(host) {
        return next.run(request).await;
    }
    text(StatusCode::FORBIDDEN, "this server answers to `localhost` and to addresses only\n".to_owned())
}

/// Whether a `Host` is `localhost` or an address, with or without a port.
fn is_local(host: &str) -> bool {
    let is_port = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit());
    let name = host.rsplit_once(':').filter(|(_, port)| is_port(port)).map_or(host, |(name, _)| name);
    let address = name.trim_start_matches('[').trim_end_matches(']');
    name == "localhost" || address.parse::<IpAddr>().is_ok()
}

fn text(status: StatusCode, body: String) -> Response {
    (status, [(header::CONTENT_TYPE, "text/plain; charset=utf-8")], body).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_and_localhost_are_local() {
        for host in ["localhost", "localhost:8083", "127.0.0.1:8083", "127.0.0.1", "[::1]:8083", "[::1]"] {
            assert!(is_local(host), "{host}");
        }
        for host in ["", "evil.example", "evil.example:8083", "localhost.evil.example", "127.0.0.1.evil.example:80"] {
            assert!(!is_local(host), "{host}");
        }
    }

    #[test]
    fn a_token_must_be_equal() {
        let with = |value: &str| HeaderMap::from_iter([(header::AUTHORIZATION, value.parse().unwrap())]);
        assert!(has_token(&with("Bearer abc"), "abc"));
        for wrong in ["Bearer abd", "Bearer ab", "Bearer abcd", "abc", "Basic abc", "Bearer "] {
            assert!(!has_token(&with(wrong), "abc"), "{wrong}");
        }
        assert!(!has_token(&HeaderMap::new(), "abc"));
    }
}
