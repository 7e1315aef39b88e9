//! The export of traces and metrics to OpenTelemetry, off by default.
//!
//! Tasks trace their commits and deliveries (`tracer.rs`). Metrics are those of `/metrics`, written
//! by the same code (`http/metrics`). `export.rs` sends both, and nothing waits for it.

mod counts;
mod export;
pub(crate) mod messages;
mod tracer;

use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use tokio::runtime::Handle;
use tokio::sync::mpsc::channel;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use trunkline_connector::tls::{TlsCodes, TlsIdentity, TlsOptions};
use trunkline_connector::{Error, Result};

pub use self::counts::{Counts, CountsSnapshot};
use self::export::{Report, Sender, without_login};
use self::messages::{Metric, Resource, text};
pub use self::tracer::Tracer;
pub(crate) use self::tracer::{Trace, nanoseconds};
use crate::config::OtlpSettings;

/// Traces that wait for being sent. A trace has one to six spans of about 500 bytes.
const QUEUE: usize = 1_024;

/// Time for the last requests when a worker stops.
const LAST_REQUESTS: Duration = Duration::from_secs(2);

const TLS_CODES: TlsCodes = TlsCodes { ca: "otlp.tls", cert: "otlp.tls" };

/// A running export. The default one sends nothing.
#[derive(Default)]
pub struct Telemetry {
    tracer: Tracer,
    running: Option<Running>,
}

struct Running {
    stop: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
}

/// The process that is observed.
pub struct Observed<'a> {
    /// The worker's id.
    pub worker: &'a str,
    /// Its cluster.
    pub cluster: &'a str,
    /// Its machine.
    pub node: &'a str,
}

impl Telemetry {
    /// Starts the export that the settings ask for. `metrics` returns those of this moment.
    pub(crate) fn start(
        runtime: &Handle,
        settings: &OtlpSettings,
        observed: &Observed<'_>,
        counts: Arc<Counts>,
        metrics: impl Fn() -> Vec<Metric> + Send + Sync + 'static,
    ) -> Result<Self> {
        let (traces_url, metrics_url) = (settings.traces_url(), settings.metrics_url());
        for reason in &settings.ignored_variables {
            tracing::warn!(code = "otlp.variable", "the variables `OTEL_*` have no effect: {reason}");
        }
        if traces_url.is_none() && metrics_url.is_none() {
            return Ok(Self::default());
        }
        let client = client(settings)?;
        let resource = resource(settings, observed);
        let sender = |url: String, signal| Sender {
            client: client.clone(),
            url,
            signal,
            is_compressed: settings.gzip,
            resource: resource.clone(),
            counts: counts.clone(),
            report: Report::default(),
        };
        let (stop, stopped) = watch::channel(false);
        let (mut tracer, mut tasks) = (Tracer::default(), Vec::new());
        let shown = |url: &Option<String>| url.as_deref().map_or_else(|| "off".to_owned(), without_login);
        tracing::info!(traces = shown(&traces_url), metrics = shown(&metrics_url), "exporting to OpenTelemetry");
        if let Some(url) = traces_url {
            let (queue, spans) = channel(QUEUE);
            tracer = Tracer::new(queue, counts.clone(), settings.sample_ratio);
            tasks.push(runtime.spawn(sender(url, "traces").export_spans(spans, stopped.clone())));
        }
        if let Some(url) = metrics_url {
            tasks.push(runtime.spawn(sender(url, "metrics").export_metrics(metrics, settings.interval, stopped)));
        }
        Ok(Self { tracer, running: Some(Running { stop, tasks }) })
    }

    /// Whether anything is exported.
    pub fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// What traces the work of tasks.
    pub fn tracer(&self) -> Tracer {
        self.tracer.clone()
    }

    /// Sends what is left, for at most two seconds.
    pub fn stop(self, runtime: &tokio::runtime::Runtime) {
        let Some(Running { stop, tasks }) = self.running else { return };
        // It fails if both tasks have ended.
        let _ = stop.send(true);
        let finish = async {
            for task in tasks {
                // A task that panicked has been logged.
                let _ = task.await;
            }
        };
        let _ = runtime.block_on(async { tokio::time::timeout(LAST_REQUESTS, finish).await });
    }
}

/// The client for all requests.
fn client(settings: &OtlpSettings) -> Result<reqwest::Client> {
    let mut headers = HeaderMap::new();
    for (name, value) in &settings.headers {
        // The message must not contain the value (I8).
        let wrong = || Error::config("otlp.header", format!("`otlp.headers`: `{name}` is not a header of HTTP"));
        let header = name.parse::<HeaderName>().map_err(|_| wrong())?;
        let mut value = HeaderValue::from_str(value).map_err(|_| wrong())?;
        value.set_sensitive(true);
        headers.insert(header, value);
    }
    let mut builder = reqwest::Client::builder()
        .default_headers(headers)
        // A redirect would send the headers elsewhere.
        .redirect(reqwest::redirect::Policy::none())
        .timeout(settings.timeout)
        .pool_idle_timeout(Duration::from_secs(20))
        .user_agent(concat!("trunkline/", env!("CARGO_PKG_VERSION")));
    let urls = [settings.traces_url(), settings.metrics_url()];
    if urls.iter().flatten().all(|url| url.starts_with("http://")) {
        // Loading the system's certificates would fail where there are none.
        builder = builder.tls_certs_only(Vec::new());
    } else {
        builder = with_tls(builder, settings)?;
    }
    builder.build().map_err(|error| {
        let message =
            format!("no HTTP client can be made: {error}; check the settings `otlp.tls_ca` and `otlp.tls_cert`");
        Error::config("otlp.tls", message)
    })
}

fn with_tls(mut builder: reqwest::ClientBuilder, settings: &OtlpSettings) -> Result<reqwest::ClientBuilder> {
    if settings.tls_cert.is_some() != settings.tls_key.is_some() {
        let message = "`otlp.tls_cert` and `otlp.tls_key` are given together: name the certificate and its private key";
        return Err(Error::config(TLS_CODES.cert, message));
    }
    let identity = settings.tls_cert.as_deref().zip(settings.tls_key.as_deref());
    let tls = TlsOptions::of_files(TLS_CODES, "otlp.", settings.tls_ca.as_deref(), identity);
    let unusable = |name: &str, error: &reqwest::Error| {
        Error::config(TLS_CODES.ca, format!("`otlp.{name}` cannot be used: {error}; name a file in PEM format"))
    };
    if let Some(pem) = tls.authorities()? {
        let certificates = reqwest::Certificate::from_pem_bundle(&pem).map_err(|error| unusable("tls_ca", &error))?;
        builder = builder.tls_certs_merge(certificates);
    }
    if let Some(TlsIdentity { certificate, key }) = tls.identity()? {
        let identity = reqwest::Identity::from_pem(&[certificate, key].join(&b'\n'));
        builder = builder.identity(identity.map_err(|error| unusable("tls_cert", &error))?);
    }
    Ok(builder)
}

/// The attributes of the process. Those of the settings override them.
fn resource(settings: &OtlpSettings, observed: &Observed<'_>) -> Resource {
    let own = [
        ("service.name", "trunkline"),
        ("service.version", env!("CARGO_PKG_VERSION")),
        ("service.instance.id", observed.worker),
        ("host.name", observed.node),
        ("trunkline.cluster", observed.cluster),
    ];
    let own = own.into_iter().filter(|(key, _)| !settings.resource.contains_key(*key));
    let given = settings.resource.iter().map(|(key, value)| (key.as_str(), value.as_str()));
    Resource { attributes: own.chain(given).map(|(key, value)| text(key, value)).collect() }
}

#[cfg(test)]
mod tests;
