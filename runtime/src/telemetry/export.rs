//! Sends traces and metrics to a collector, by OTLP over HTTP.
//!
//! Two async tasks do that. Traces wait in a bounded queue; metrics are read when they are sent. A
//! collector that is slow or down costs spans, which are counted, and nothing else: metrics are
//! cumulative, so the next request has what the last one lacked.

use std::fmt::Display;
use std::io::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use flate2::Compression;
use flate2::write::GzEncoder;
use prost::Message;
use reqwest::header::{CONTENT_ENCODING, CONTENT_TYPE, RETRY_AFTER};
use tokio::sync::mpsc::Receiver;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, sleep};

use super::counts::Counts;
use super::messages::{
    ExportResponse, Metric, MetricsRequest, PartialSuccess, Resource, ResourceMetrics, ResourceSpans, ScopeMetrics,
    ScopeSpans, Span, TracesRequest, metric, scope,
};
use crate::backoff::{Backoff, jitter};

/// Spans wait this long for others of the same request.
const BATCH_DELAY: Duration = Duration::from_secs(5);

/// Spans of one request.
const BATCH_SPANS: usize = 512;

/// Attempts to send the spans of one request, and the waits between them.
const ATTEMPTS: u32 = 5;
const FIRST_WAIT: Duration = Duration::from_secs(1);
const MAX_WAIT: Duration = Duration::from_secs(30);

/// Time between two warnings about the same failure.
const REPEAT_WARNING: Duration = Duration::from_secs(60);

/// Sends requests of one kind to one address.
pub(super) struct Sender {
    pub(super) client: reqwest::Client,
    pub(super) url: String,
    /// `traces` or `metrics`.
    pub(super) signal: &'static str,
    pub(super) is_compressed: bool,
    pub(super) resource: Resource,
    pub(super) counts: Arc<Counts>,
    pub(super) report: Report,
}

/// Decides when a failure is logged.
#[derive(Default)]
pub(super) struct Report {
    warned: Option<Instant>,
}

/// Why a request failed.
struct Failure {
    reason: String,
    /// Another attempt may succeed, after this time if the collector names one.
    retry: Option<Option<Duration>>,
}

impl Sender {
    /// Sends spans until all tracers are dropped, or the worker stops.
    pub(super) async fn export_spans(mut self, mut queue: Receiver<Vec<Span>>, mut stop: watch::Receiver<bool>) {
        loop {
            let (spans, is_last) = collect(&mut queue, &mut stop).await;
            for spans in batches(spans) {
                self.send_spans(spans, &mut stop).await;
            }
            if is_last {
                return;
            }
        }
    }

    /// Sends what `collect` returns after each interval, and once more when the worker stops.
    pub(super) async fn export_metrics(
        mut self,
        collect: impl Fn() -> Vec<Metric> + Send + Sync + 'static,
        interval: Duration,
        mut stop: watch::Receiver<bool>,
    ) {
        let collect = Arc::new(collect);
        let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + interval, interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let is_last = tokio::select! {
                _ = ticks.tick() => false,
                // An error means that nobody is left who could stop it.
                _ = stop.changed() => true,
            };
            let collect = collect.clone();
            // The metrics of hundreds of tasks take milliseconds.
            if let Ok(metrics) = tokio::task::spawn_blocking(move || collect()).await {
                self.send_metrics(metrics).await;
            }
            if is_last {
                return;
            }
        }
    }

    async fn send_spans(&mut self, spans: Vec<Span>, stop: &mut watch::Receiver<bool>) {
        let count = spans.len() as u64;
        let scope_spans = vec![ScopeSpans { scope: Some(scope()), spans }];
        let spans = ResourceSpans { resource: Some(self.resource.clone()), scope_spans };
        let body = TracesRequest { resource_spans: vec![spans] }.encode_to_vec();
        let mut backoff = Backoff::new(FIRST_WAIT, MAX_WAIT);
        for attempt in 1..=ATTEMPTS {
            let failure = match self.post(&body).await {
                Ok(rejected) => {
                    self.counts.drop_spans(rejected.min(count));
                    self.counts.send_spans(count - rejected.min(count));
                    return;
                }
                Err(failure) => failure,
            };
            self.counts.fail_traces();
            self.report.failed(self.signal, &self.url, &failure.reason);
            let Some(wait) = failure.retry else { break };
            if attempt == ATTEMPTS || *stop.borrow() {
                break;
            }
            let wait = wait.map_or_else(|| jitter(backoff.advance()), |wait| wait.min(MAX_WAIT));
            tokio::select! {
                () = sleep(wait) => {}
                _ = stop.changed() => {}
            }
        }
        self.counts.drop_spans(count);
    }

    async fn send_metrics(&mut self, metrics: Vec<Metric>) {
        let count = metrics.iter().map(points).sum::<u64>();
        let scope_metrics = vec![ScopeMetrics { scope: Some(scope()), metrics }];
        let metrics = ResourceMetrics { resource: Some(self.resource.clone()), scope_metrics };
        let body = MetricsRequest { resource_metrics: vec![metrics] }.encode_to_vec();
        match self.post(&body).await {
            Ok(rejected) => self.counts.send_points(count - rejected.min(count)),
            Err(failure) => {
                self.counts.fail_metrics();
                self.report.failed(self.signal, &self.url, &failure.reason);
            }
        }
    }

    /// Sends a request. Returns how many of its spans or data points the collector did not accept.
    async fn post(&mut self, body: &[u8]) -> Result<u64, Failure> {
        let mut request = self.client.post(&self.url).header(CONTENT_TYPE, "application/x-protobuf");
        request = match self.is_compressed.then(|| compressed(body)).flatten() {
            Some(body) => request.header(CONTENT_ENCODING, "gzip").body(body),
            None => request.body(body.to_vec()),
        };
        let broken = |error: &reqwest::Error| Failure { reason: root_cause(error), retry: Some(None) };
        let answer = request.send().await.map_err(|error| broken(&error))?;
        let status = answer.status();
        if !status.is_success() {
            let after = answer.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
            let is_retried = matches!(status.as_u16(), 429 | 502 | 503 | 504);
            let reason = format!("the collector answers {status}");
            return Err(Failure { reason, retry: is_retried.then(|| after.map(Duration::from_secs)) });
        }
        let body = answer.bytes().await.map_err(|error| broken(&error))?;
        // A collector may answer nothing, or another form: it has accepted everything.
        let partial = ExportResponse::decode(body).ok().and_then(|answer| answer.partial_success);
        let rejected = partial.as_ref().map_or(0, |partial| u64::try_from(partial.rejected).unwrap_or(0));
        match partial {
            Some(PartialSuccess { error_message, .. }) if rejected > 0 => {
                let reason = format!("the collector has not accepted {rejected} of them: {error_message}");
                self.report.failed(self.signal, &self.url, &reason);
            }
            _ => self.report.succeeded(self.signal),
        }
        Ok(rejected)
    }
}

impl Report {
    fn failed(&mut self, signal: &str, url: &str, reason: &dyn Display) {
        if self.warned.is_some_and(|warned| warned.elapsed() < REPEAT_WARNING) {
            return;
        }
        self.warned = Some(Instant::now());
        let url = without_login(url);
        tracing::warn!(code = "otlp.failed", "{signal} cannot be sent to {url}: {reason}. The pipelines continue");
    }

    fn succeeded(&mut self, signal: &str) {
        if self.warned.take().is_some() {
            tracing::info!("{signal} are accepted by the collector again");
        }
    }
}

/// Waits for spans: for a whole request, or until the first has waited long enough. The second
/// value is true if no others will come.
async fn collect(queue: &mut Receiver<Vec<Span>>, stop: &mut watch::Receiver<bool>) -> (Vec<Span>, bool) {
    let mut spans = Vec::new();
    let mut is_stopped = *stop.borrow();
    let mut until = None;
    while spans.len() < BATCH_SPANS && !is_stopped {
        let waited = async {
            match until {
                Some(until) => tokio::time::sleep_until(until).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            more = queue.recv() => match more {
                Some(more) => {
                    spans.extend(more);
                    until.get_or_insert_with(|| tokio::time::Instant::now() + BATCH_DELAY);
                }
                None => return (spans, true),
            },
            () = waited => break,
            _ = stop.changed() => is_stopped = true,
        }
    }
    while is_stopped && let Ok(more) = queue.try_recv() {
        spans.extend(more);
    }
    (spans, is_stopped)
}

/// Spans in portions of a request.
fn batches(spans: Vec<Span>) -> Vec<Vec<Span>> {
    let mut batches = Vec::new();
    let mut spans = spans.into_iter().peekable();
    while spans.peek().is_some() {
        batches.push(spans.by_ref().take(BATCH_SPANS).collect());
    }
    batches
}

fn points(metric: &Metric) -> u64 {
    let count = match &metric.data {
        Some(metric::Data::Gauge(gauge)) => gauge.data_points.len(),
        Some(metric::Data::Sum(sum)) => sum.data_points.len(),
        Some(metric::Data::Histogram(histogram)) => histogram.data_points.len(),
        None => 0,
    };
    count as u64
}

/// The body in gzip's format; `None` if that fails, which writing to memory does not.
fn compressed(body: &[u8]) -> Option<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(body).ok()?;
    encoder.finish().ok()
}

/// The address without a user and password (I8).
pub(super) fn without_login(url: &str) -> String {
    match url::Url::parse(url) {
        Ok(mut url) => {
            // It fails for addresses without a host, which have no login.
            let _ = url.set_username("").and_then(|()| url.set_password(None));
            url.to_string()
        }
        Err(_) => "the collector".to_owned(),
    }
}

/// The cause of a failed request. The outer errors repeat the address, which may have a password.
fn root_cause(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "no answer within the time of `otlp.timeout`".to_owned();
    }
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
