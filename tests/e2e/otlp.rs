//! Traces and metrics that a worker exports, received and decoded by OpenTelemetry's own
//! definitions of the protocol.

use std::collections::BTreeMap;

use serde_json::Value;
use trunkline_tests::{Case, Kafka, LogWriter, Process, Reader, Tool, need, wait};

use crate::status::{address, send};
use crate::{LONG, access_logs, stop, wait_for_rows};

/// The requests that the receiver has printed.
fn requests(receiver: &Process, path: &str) -> Vec<Value> {
    let printed = receiver.stdout();
    // The last line may be incomplete.
    let lines = printed.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|request| request["path"] == path).collect()
}

#[test]
fn a_collector_receives_the_metrics_of_prometheus_and_spans_of_commits() {
    let (kafka, reader, tool) = (need!(Kafka::any()), need!(Reader::find()), need!(Tool::find("otlp")));
    let receiver = tool.start(&[]);
    let port = wait::until("the receiver listens", LONG, || {
        Some(receiver.stdout().lines().next()?.strip_prefix("port=")?.to_owned())
    });
    let mut case = Case::new("otlp", kafka);
    case.set("OTEL_EXPORTER_OTLP_ENDPOINT", &format!("http://127.0.0.1:{port}"));
    case.set("OTEL_EXPORTER_OTLP_HEADERS", "api-key=marker-of-the-secret");
    case.set("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip");
    case.set("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test");
    case.set("TRUNKLINE_OTLP_SAMPLE_RATIO", "1");
    case.set("TRUNKLINE_OTLP_INTERVAL", "1s");
    LogWriter::new(case.path("logs/access.log"), 970).append(1_000);
    case.pipeline("access", &access_logs());
    let worker = case.start("a", &[]);
    wait_for_rows(&reader, &case.path("lake"), 1_000);
    let (code, page) = send(&address(&worker), "GET", "/metrics", "");
    assert_eq!(code, 200);
    let lines = page.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.rsplit_once(' '));
    let shown: BTreeMap<&str, f64> = lines.map(|(name, value)| (name, value.parse().unwrap())).collect();
    // What stays as it is while no record is written.
    let is_stable = |name: &&str| {
        ["trunkline_records_total", "trunkline_dead_letters_total", "trunkline_task_state", "trunkline_commit_seconds"]
            .iter()
            .any(|prefix| name.starts_with(prefix))
    };
    let metrics = wait::until("the metrics are those of /metrics", LONG, || {
        let request = requests(&receiver, "/v1/metrics").pop()?;
        let is_equal = |(name, value): (&&str, &f64)| request["samples"][*name].as_f64() == Some(*value);
        shown.iter().filter(|(name, _)| is_stable(name)).all(is_equal).then_some(request)
    });
    let names: Vec<&String> = metrics["samples"].as_object().unwrap().keys().collect();
    assert_eq!(names.len(), shown.len());
    assert!(shown.contains_key("trunkline_otlp_failures_total{signal=\"traces\"}"), "{page}");
    assert_eq!(metrics["key"], "marker-of-the-secret");
    assert_eq!(metrics["resource"]["service.name"], "trunkline");
    assert_eq!(metrics["resource"]["trunkline.cluster"], case.name());
    assert_eq!(metrics["resource"]["deployment.environment.name"], "test");

    let log = worker.stderr();
    assert!(log.contains("exporting to OpenTelemetry") && !log.contains("marker-of-the-secret"), "{log}");
    stop(worker);
    let spans: Vec<Value> = requests(&receiver, "/v1/traces")
        .iter()
        .flat_map(|request| request["spans"].as_array().unwrap().clone())
        .collect();
    let commits = |component: &str| {
        let spans = spans.iter().filter(|span| span["name"] == "commit");
        spans.filter(|span| span["attributes"]["trunkline.component"] == component).collect::<Vec<_>>()
    };
    for component in ["web", "lake"] {
        let found = commits(component);
        let records = found.iter().map(|span| span["attributes"]["trunkline.records.out"].as_u64().unwrap());
        assert_eq!(records.sum::<u64>(), 1_000, "{component}: {spans:#?}");
    }
    let commit = commits("lake")[0];
    let steps: Vec<&str> = spans
        .iter()
        .filter(|span| span["parent"] == commit["id"] && span["trace"] == commit["trace"])
        .map(|span| span["name"].as_str().unwrap())
        .collect();
    let expected = ["seal", "record the plan", "prepare", "record the intent", "commit output", "record the commit"];
    assert_eq!(steps, expected);
    drop(receiver.kill9());
}
