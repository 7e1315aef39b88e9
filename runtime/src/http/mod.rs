//! The worker's HTTP server: status, metrics, probes, and requests to pause, resume and restart.
//!
//! | path | answer |
//! |---|---|
//! | `/health` | 200 while the worker's main loop runs, else 503 |
//! | `/ready` | 200 while all tasks make progress, else 503 with the reasons |
//! | `/metrics` | Prometheus' text format 0.0.4 |
//! | `/api/v1` | JSON: `api.rs`, described by `openapi.rs` |
//! | `/`, `/connectors`, `/connector-plugins`, `/admin` | Kafka Connect's REST: `connect` |
//! | `/` for browsers, `/ui` | a page: `page` |
//!
//! `guard.rs` decides who may ask. Every worker answers for the whole cluster from the rows that
//! `worker/control` follows.

mod answer;
mod api;
mod cluster;
mod components;
mod connect;
mod flow;
mod guard;
mod live_runs;
mod log_levels;
mod metrics;
mod openapi;
mod page;
mod peer;
mod process;
mod runs;
mod samples;
mod shared_answers;
mod shown_options;
mod status;
mod tls;

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::middleware::{from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::json;
use tokio::runtime::Handle;
use trunkline_broker::BrokerStats;
use trunkline_connector::{Error, Result};

pub use self::cluster::{ClusterStatus, ClusterWorker, LiveTask, Others, gone_line};
pub use self::components::{ComponentInfo, LoadedComponents, TaskInfo};
pub use self::flow::{Edge, EdgeStatus, Flow, Node, NodeKind};
pub use self::live_runs::{LiveRun, LiveRunTask, of_workers};
pub use self::log_levels::{LogLevels, Reload};
pub use self::metrics::Measured;
pub use self::page::Viewers;
pub use self::samples::{History, Rates, Samples};
pub use self::shared_answers::SharedAnswers;
pub use self::status::{ComponentStatus, TaskStatus, WorkerStatus};
pub use self::tls::HttpTls;
use self::tls::{Client, TlsListener};
pub(crate) use self::tls::{HTTPS, client_of_own_worker};
use crate::telemetry::Counts;
use crate::worker::Overview;
use crate::worker::control::Control;

/// A main loop that did not pass its beginning for this long hangs. Its longest call to Kafka takes
/// 30 s.
const HUNG: Duration = Duration::from_secs(120);

/// What the server answers from.
pub struct Served {
    /// The worker's id.
    pub worker: String,
    /// The cluster's name.
    pub cluster: String,
    /// The file of the setting `secrets`, for references in new connectors.
    pub secrets: Option<PathBuf>,
    /// The folder with the pipeline files of connectors that were created by REST.
    pub connectors: Option<PathBuf>,
    /// The token that `/metrics` and `/api` require.
    pub token: Option<String>,
    /// The certificate of the server, if it speaks HTTPS.
    pub tls: Option<HttpTls>,
    /// The worker.
    pub overview: Overview,
    /// The control of its cluster.
    pub control: Control,
    /// The samples of its tasks; [`start`] takes them.
    pub samples: Samples,
    /// The other workers of the cluster.
    pub others: Others,
    /// The components of its pipelines.
    pub loaded: LoadedComponents,
    /// Answers that many clients ask for.
    pub answers: SharedAnswers,
    /// The viewers of its page.
    pub viewers: Viewers,
    /// The levels of its log.
    pub log_levels: Arc<LogLevels>,
    /// The export to OpenTelemetry, if there is one.
    pub export: Option<Arc<Counts>>,
    /// The embedded broker, if there is one.
    pub broker: Option<BrokerStats>,
}

impl Served {
    /// Whether clients can prove who they are, by the token or a certificate.
    fn has_authentication(&self) -> bool {
        self.token.is_some() || self.tls.as_ref().is_some_and(HttpTls::knows_clients)
    }

    /// Changes with the states of tasks, with the rows of the cluster's control, and when a worker
    /// falls silent.
    fn version(&self) -> (u64, u64, usize) {
        (self.overview.version(), self.control.changes(), self.control.alive_workers())
    }

    fn measured(&self) -> Measured {
        Measured {
            worker: self.worker.clone(),
            cluster: self.cluster.clone(),
            overview: self.overview.clone(),
            export: self.export.clone(),
            broker: self.broker.clone(),
        }
    }
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
    let tls = served.tls.clone();
    let served = Arc::new(served);
    let router = router(served.clone(), is_loopback(&bound));
    runtime.spawn(async move {
        let mut interval = tokio::time::interval(samples::INTERVAL);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let now = interval.tick().await;
            served.samples.take(&served.overview, now.into_std());
        }
    });
    // They serve as long as the process lives, and have no error that ends them.
    match tls {
        Some(tls) => {
            let listener = {
                let _entered = runtime.enter();
                TlsListener::start(listener, tls).map_err(failed)?
            };
            let service = router.into_make_service_with_connect_info::<Client>();
            runtime.spawn(async move { drop(axum::serve(listener, service).await) });
        }
        None => drop(runtime.spawn(async move { drop(axum::serve(listener, router).await) })),
    }
    Ok(bound)
}

fn router(served: Arc<Served>, on_loopback: bool) -> Router {
    let guarded = Router::new()
        .route("/metrics", get(metrics))
        .merge(api::routes())
        .merge(connect::routes())
        .merge(page::routes())
        .fallback(connect::unknown_path)
        .method_not_allowed_fallback(connect::unknown_method)
        .layer(from_fn_with_state((served.clone(), on_loopback), guard::protect_writes))
        .layer(from_fn_with_state(served.clone(), guard::require_proof));
    let open = Router::new().route("/health", get(health)).route("/ready", get(ready));
    let router = guarded.merge(open).with_state(served);
    if on_loopback { router.layer(from_fn(guard::require_local_host)) } else { router }
}

async fn health(State(served): State<Arc<Served>>) -> Response {
    let since = served.overview.since_last_pass();
    // In the form of Kafka Connect's `/health`.
    let (code, status, message) = if since < HUNG {
        (StatusCode::OK, "healthy", "the worker's main loop runs".to_owned())
    } else {
        let message = format!("the worker's main loop has not run for {} s", since.as_secs());
        (StatusCode::SERVICE_UNAVAILABLE, "unhealthy", message)
    };
    answer::json_with(code, &json!({ "status": status, "message": message }))
}

async fn ready(State(served): State<Arc<Served>>) -> Response {
    let problems = WorkerStatus::of(&served).problems();
    if problems.is_empty() {
        return text(StatusCode::OK, "ready\n".to_owned());
    }
    text(StatusCode::SERVICE_UNAVAILABLE, problems.iter().map(|problem| format!("{problem}\n")).collect())
}

async fn metrics(State(served): State<Arc<Served>>) -> Response {
    let body = served.answers.metrics.get(&served, "", || served.measured().text().into_bytes()).await;
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], body).into_response()
}

fn text(status: StatusCode, body: String) -> Response {
    (status, [(header::CONTENT_TYPE, "text/plain; charset=utf-8")], body).into_response()
}

#[cfg(test)]
pub(crate) use self::flow::tests as test_flow;

#[cfg(test)]
mod tests;
