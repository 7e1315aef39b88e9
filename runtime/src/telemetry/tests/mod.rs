//! Exports to a collector in the process that answers, refuses, hangs, or is not there.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Instant;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap as Headers, StatusCode};
use axum::routing::post;
use prost::Message as _;
use tokio::runtime::Runtime;

use super::messages::{MetricsRequest, TracesRequest, any_value, metric};
use super::*;
use crate::config::Settings;
use crate::http::Measured;
use crate::stage::{StageKind, StageStatus};
use crate::worker::Overview;

const LIMIT: Duration = Duration::from_secs(30);

/// The requests that a collector has accepted.
#[derive(Default)]
struct Collector {
    traces: Mutex<Vec<(Headers, TracesRequest)>>,
    metrics: Mutex<Vec<(Headers, MetricsRequest)>>,
    /// The status of each answer; 0 means that it never answers.
    status: AtomicU16,
    requests: AtomicU16,
}

impl Collector {
    async fn answer(&self) -> StatusCode {
        self.requests.fetch_add(1, Ordering::Relaxed);
        match self.status.load(Ordering::Relaxed) {
            0 => std::future::pending().await,
            status => StatusCode::from_u16(status).unwrap(),
        }
    }
}

fn body(headers: &Headers, body: &Bytes) -> Vec<u8> {
    let mut plain = Vec::new();
    match headers.get("content-encoding") {
        Some(_) => flate2::read::GzDecoder::new(&body[..]).read_to_end(&mut plain).map(drop).unwrap(),
        None => plain.extend_from_slice(body),
    }
    plain
}

async fn traces(State(collector): State<Arc<Collector>>, headers: Headers, bytes: Bytes) -> StatusCode {
    let status = collector.answer().await;
    if status.is_success() {
        let request = TracesRequest::decode(&body(&headers, &bytes)[..]).unwrap();
        collector.traces.lock().unwrap().push((headers, request));
    }
    status
}

async fn metrics(State(collector): State<Arc<Collector>>, headers: Headers, bytes: Bytes) -> StatusCode {
    let status = collector.answer().await;
    if status.is_success() {
        let request = MetricsRequest::decode(&body(&headers, &bytes)[..]).unwrap();
        collector.metrics.lock().unwrap().push((headers, request));
    }
    status
}

struct Fixture {
    runtime: Runtime,
    collector: Arc<Collector>,
    telemetry: Telemetry,
    counts: Arc<Counts>,
    measured: Measured,
    stage: Arc<StageStatus>,
}

/// An export to a collector that answers with this status, or to no collector.
fn fixture(status: Option<u16>, more: &[(&'static str, &str)]) -> Fixture {
    // The binary has installed it already.
    let _ = tokio_rustls::rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let collector = Arc::new(Collector { status: AtomicU16::new(status.unwrap_or(200)), ..Collector::default() });
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    match status {
        Some(_) => {
            let router = Router::new().route("/v1/traces", post(traces)).route("/v1/metrics", post(metrics));
            let router = router.with_state(collector.clone());
            runtime.spawn(async move { axum::serve(listener, router).await.unwrap() });
        }
        None => drop(listener),
    }
    let mut values = BTreeMap::from([("otlp.endpoint", endpoint.as_str()), ("otlp.sample_ratio", "1")]);
    values.extend(more.iter().copied());
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("trunkline.toml");
    let line = |(key, value): (&&str, &&str)| match value.parse::<f64>() {
        Ok(number) => format!("{key} = {number}\n"),
        Err(_) => format!("{key} = {value:?}\n"),
    };
    std::fs::write(&file, values.iter().map(line).collect::<String>()).unwrap();
    let settings = Settings::load(Some(&file), &Vec::new()).unwrap_or_else(|problems| panic!("{}", problems[0]));
    let counts = Arc::new(Counts::default());
    let stage = Arc::new(StageStatus::new("shop", "lake", StageKind::Sink));
    let overview = Overview::new();
    overview.show(stage.clone(), trunkline_connector::MemoryBudget::new(1));
    let measured = Measured {
        worker: "w".to_owned(),
        cluster: "c".to_owned(),
        overview,
        export: Some(counts.clone()),
        broker: None,
    };
    let observed = Observed { worker: "w", cluster: "c", node: "n" };
    let shown = measured.clone();
    let telemetry =
        Telemetry::start(runtime.handle(), &settings.otlp, &observed, counts.clone(), move || shown.points()).unwrap();
    Fixture { runtime, collector, telemetry, counts, measured, stage }
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < LIMIT, "{what}");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

fn attribute<'a>(resource: &'a Resource, key: &str) -> Option<&'a str> {
    let found = resource.attributes.iter().find(|attribute| attribute.key == key)?;
    match found.value.as_ref()?.value.as_ref()? {
        any_value::Value::Text(text) => Some(text),
        any_value::Value::Integer(_) => None,
    }
}

#[test]
fn a_collector_receives_spans_and_the_metrics_of_prometheus() {
    let more = [
        ("otlp.compression", "gzip"),
        ("otlp.headers.api-key", "marker-of-the-secret"),
        ("otlp.resource.\"service.name\"", "feed"),
    ];
    let fixture = fixture(Some(200), &more);
    let mut counters = crate::checkpoint::Counters::default();
    counters.of("lake").records_in = 5;
    counters.of("lake").out = 5;
    fixture.stage.committed(&counters);
    let mut trace = fixture.telemetry.tracer().begin("commit", &fixture.stage);
    trace.step("seal");
    trace.add_records(&counters, "lake");
    trace.finish(&Ok(()));
    let text = fixture.measured.text();
    // A stop sends everything at once.
    fixture.telemetry.stop(&fixture.runtime);
    let traces = fixture.collector.traces.lock().unwrap();
    let [(headers, request)] = &traces[..] else { panic!("{traces:?}") };
    assert_eq!(headers["api-key"], "marker-of-the-secret");
    assert_eq!(headers["content-type"], "application/x-protobuf");
    let spans = &request.resource_spans[0];
    let resource = spans.resource.as_ref().unwrap();
    assert_eq!(attribute(resource, "service.name"), Some("feed"));
    assert_eq!(attribute(resource, "service.instance.id"), Some("w"));
    assert_eq!(attribute(resource, "trunkline.cluster"), Some("c"));
    let names: Vec<&str> = spans.scope_spans[0].spans.iter().map(|span| span.name.as_str()).collect();
    assert_eq!(names, ["commit", "seal"]);

    let metrics = fixture.collector.metrics.lock().unwrap();
    let [(_, request)] = &metrics[..] else { panic!("{metrics:?}") };
    let found = &request.resource_metrics[0].scope_metrics[0].metrics;
    let records = found.iter().find(|metric| metric.name == "trunkline_records_total").unwrap();
    let Some(metric::Data::Sum(sum)) = &records.data else { panic!("{records:?}") };
    let shown: Vec<f64> = text
        .lines()
        .filter(|line| line.starts_with("trunkline_records_total{"))
        .map(|line| line.rsplit(' ').next().unwrap().parse().unwrap())
        .collect();
    let sent: Vec<f64> = sum.data_points.iter().map(|point| point.as_double.unwrap()).collect();
    assert_eq!((sent.as_slice(), sent[0]), (shown.as_slice(), 5.0));
    let snapshot = fixture.counts.snapshot();
    assert_eq!((snapshot.spans, snapshot.spans_dropped, snapshot.trace_failures), (2, 0, 0));
    assert!(snapshot.points > 20);
}

#[test]
fn a_refusal_drops_spans_and_counts_them() {
    for (status, requests) in [(Some(400), 1), (Some(500), 1), (Some(503), 1), (None, 0)] {
        let fixture = fixture(status, &[("otlp.metrics_endpoint", "off")]);
        fixture.telemetry.tracer().begin("commit", &fixture.stage).finish(&Ok(()));
        fixture.telemetry.stop(&fixture.runtime);
        let snapshot = fixture.counts.snapshot();
        assert_eq!((snapshot.spans, snapshot.spans_dropped, snapshot.trace_failures), (0, 1, 1), "{status:?}");
        assert_eq!(fixture.collector.requests.load(Ordering::Relaxed), requests, "{status:?}");
        assert!(fixture.measured.text().contains("trunkline_otlp_failures_total{signal=\"traces\"} 1\n"), "{status:?}");
    }
}

#[test]
fn metrics_are_sent_again_after_a_failure() {
    let fixture = fixture(Some(503), &[("otlp.interval", "1s"), ("otlp.traces_endpoint", "off")]);
    until("the metrics are refused", || fixture.counts.snapshot().metric_failures > 0);
    fixture.collector.status.store(200, Ordering::Relaxed);
    until("the metrics are accepted", || fixture.counts.snapshot().points > 0);
    fixture.telemetry.stop(&fixture.runtime);
}

/// Neither tasks nor the stop of a worker wait for a collector that does not answer.
#[test]
fn nothing_waits_for_a_collector_that_hangs() {
    let fixture = fixture(Some(0), &[("otlp.timeout", "1h")]);
    let tracer = fixture.telemetry.tracer();
    let started = Instant::now();
    let traces = 4 * QUEUE as u64;
    for _ in 0..traces {
        tracer.begin("commit", &fixture.stage).finish(&Ok(()));
    }
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    let dropped = fixture.counts.snapshot().spans_dropped;
    assert!((1..traces).contains(&dropped), "{dropped}");
    let stopping = Instant::now();
    fixture.telemetry.stop(&fixture.runtime);
    assert!(stopping.elapsed() < LAST_REQUESTS + Duration::from_secs(2), "{:?}", stopping.elapsed());
    fixture.runtime.shutdown_background();
}

#[test]
fn wrong_settings_are_reported_without_their_secrets() {
    let settings = |line: &str| {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("trunkline.toml");
        std::fs::write(&file, format!("[otlp]\n{line}\n")).unwrap();
        Settings::load(Some(&file), &Vec::new()).map_err(|problems| problems[0].to_string())
    };
    for (line, part) in [
        ("endpoint = \"collector:4317\"", "such as `http://localhost:4318`"),
        ("protocol = \"grpc\"", "4318"),
        ("sample_ratio = 1.5", "a number from 0 to 1"),
        ("interval = \"5ms\"", "at least `1s`"),
        ("endpont = \"x\"", "did you mean `endpoint`"),
    ] {
        let problem = settings(line).unwrap_err();
        assert!(problem.contains(part), "{problem}");
    }
    let runtime = Runtime::new().unwrap();
    let start = |line: &str| {
        let settings = settings(&format!("endpoint = \"https://localhost:1\"\n{line}")).unwrap();
        assert!(!format!("{settings:?}").contains("marker"), "{settings:?}");
        let observed = Observed { worker: "w", cluster: "c", node: "n" };
        let started = Telemetry::start(runtime.handle(), &settings.otlp, &observed, Arc::default(), Vec::new);
        started.err().unwrap()
    };
    for (line, code) in [
        ("headers = { \"a b\" = \"marker\" }", "otlp.header"),
        ("headers = { key = \"marker\\u0001\" }", "otlp.header"),
        ("tls_ca = \"/none.pem\"", "otlp.tls"),
        ("tls_cert = \"/none.pem\"", "otlp.tls"),
    ] {
        let error = start(line);
        assert_eq!((error.code, error.message().contains("marker")), (code, false), "{error}");
    }
}
