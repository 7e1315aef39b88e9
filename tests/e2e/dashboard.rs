//! The queries of the dashboard and the alert rules, evaluated by Prometheus on a worker that it
//! scrapes.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};

use serde_json::Value;
use trunkline_tests::{Case, Kafka, LogWriter, Reader, Tool, need, repository, wait};

use crate::status::address;
use crate::{LONG, access_logs, stop, wait_for_rows};

/// Metrics that the worker of this test does not have: it has no database, no state, and no export,
/// and its records are not rejected.
const ABSENT: [&str; 9] = [
    "trunkline_retention_left_seconds",
    "trunkline_state_",
    "trunkline_dead_letters_total",
    "trunkline_otlp_",
    // The embedded broker is another process here.
    "trunkline_broker_",
    // Only while records are behind.
    "trunkline_since_commit_seconds{instance=~\".*\", pipeline=~\".*\"} and",
    // Quantiles of a time without commits are no numbers, and are left out.
    "histogram_quantile",
    "trunkline_memory_",
    "trunkline_task_memory_bytes",
];

/// Sends a GET request in HTTP 1.0, which has no chunks. Returns the status code and the JSON.
fn get(address: &str, path: &str) -> (u16, Value) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    // A server that is starting answers with text.
    (head.split(' ').nth(1).unwrap().parse().unwrap(), serde_json::from_str(body).unwrap_or_default())
}

/// The answer of Prometheus to a query: its series.
fn query(prometheus: &str, expression: &str) -> Vec<Value> {
    let encoded: String = expression.bytes().map(|byte| format!("%{byte:02X}")).collect();
    let (code, answer) = get(prometheus, &format!("/api/v1/query?query={encoded}"));
    assert_eq!((code, &answer["status"]), (200, &Value::from("success")), "{expression}: {answer}");
    answer["data"]["result"].as_array().unwrap().clone()
}

#[test]
fn every_query_of_the_dashboard_has_an_answer() {
    let (kafka, reader, tool) = (need!(Kafka::any()), need!(Reader::find()), need!(Tool::find("prometheus")));
    let case = Case::new("dashboard", kafka);
    let mut log = LogWriter::new(case.path("logs/access.log"), 995);
    log.append(1_000);
    case.pipeline("access", &access_logs());
    let worker = case.start("a", &[]);
    let address = address(&worker);
    wait_for_rows(&reader, &case.path("lake"), 1_000);

    let rules = repository().join("deploy/prometheus/alerts.yml");
    let config = format!(
        "global: {{ scrape_interval: 1s, evaluation_interval: 1s }}\nrule_files: [{:?}]\n\
         scrape_configs: [{{ job_name: trunkline, static_configs: [{{ targets: [{address:?}] }}] }}]\n",
        rules.display().to_string()
    );
    std::fs::write(case.path("prometheus.yml"), config).unwrap();
    // The port is free again when the listener is dropped.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let prometheus = format!("127.0.0.1:{port}");
    let arguments = [
        "prometheus".to_owned(),
        format!("--config.file={}", case.path("prometheus.yml").display()),
        format!("--storage.tsdb.path={}", case.path("tsdb").display()),
        format!("--web.listen-address={prometheus}"),
    ];
    let server = tool.start(&arguments.each_ref().map(String::as_str));
    wait::until("Prometheus has scraped the worker", LONG, || {
        TcpStream::connect(&prometheus).ok()?;
        // It is starting.
        if get(&prometheus, "/-/ready").0 != 200 {
            return None;
        }
        (query(&prometheus, "count_over_time(trunkline_uptime_seconds[1m])").first()?["value"][1]
            .as_str()?
            .parse::<u32>()
            .ok()?
            >= 3)
            .then_some(())
    });
    let dashboard = std::fs::read_to_string(repository().join("deploy/grafana/trunkline.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&dashboard).unwrap();
    let targets = dashboard["panels"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    let mut empty = BTreeSet::new();
    let mut count = 0;
    for target in targets {
        let expression = target["expr"].as_str().unwrap();
        let expression =
            expression.replace("$instance", ".*").replace("$pipeline", ".*").replace("$__rate_interval", "10s");
        count += 1;
        if query(&prometheus, &expression).is_empty() && !ABSENT.iter().any(|absent| expression.contains(absent)) {
            empty.insert(expression);
        }
    }
    assert!(count > 25 && empty.is_empty(), "{empty:#?}");
    let (_, answer) = get(&prometheus, "/api/v1/rules");
    for rule in answer["data"]["groups"][0]["rules"].as_array().unwrap() {
        assert!(rule["health"] == "ok" || rule["health"] == "unknown", "{rule}");
        assert_eq!(rule["state"], "inactive", "{rule}");
    }
    drop(server.kill9());
    stop(worker);
}
