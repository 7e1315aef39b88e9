//! Components are paused, resumed and restarted while workers run.

use serde_json::{Value, json};
use trunkline_tests::{Case, Kafka, LogWriter, Process, Reader, need, wait};

use crate::status::{address, send, send_json};
use crate::{LONG, access_logs, assert_every_line_once, stop, wait_for_rows};

/// Runs a command on the cluster; returns its JSON.
fn ask(case: &Case, name: &str, arguments: &[&str]) -> Value {
    let exit = case.ask_worker(name, "a", &[arguments, &["--json"]].concat(), LONG);
    assert_eq!(exit.code, Some(0), "{}", exit.describe());
    serde_json::from_str(&exit.stdout).unwrap()
}

/// The task of a component in the status of a worker.
fn task(case: &Case, worker: &str, component: &str) -> Option<Value> {
    let exit = case.ask_worker("status", worker, &["--json"], LONG);
    let status: Value = serde_json::from_str(&exit.stdout).ok()?;
    status["tasks"].as_array()?.iter().find(|task| task["component"] == component).cloned()
}

fn wait_for_state(case: &Case, worker: &mut Process, name: &str, component: &str, state: &str) {
    wait::until(&format!("{component} is {state}"), LONG, || {
        assert!(worker.is_running(), "{}", worker.stderr());
        (task(case, name, component)?["state"] == state).then_some(())
    });
}

#[test]
fn a_pause_holds_for_all_workers_and_outlives_them() {
    let (kafka, reader) = (need!(Kafka::any()), need!(Reader::find()));
    let case = Case::new("pause", kafka);
    let mut log = LogWriter::new(case.path("logs/access.log"), 960);
    log.append(1_000);
    case.pipeline("access", &access_logs());
    let (mut first, mut second) = (case.start("a", &[]), case.start("b", &[]));
    wait_for_rows(&reader, &case.path("lake"), 1_000);
    wait_for_state(&case, &mut first, "a", "lake", "running");

    let lake = format!("{}.lake", case.name());
    let paused = wait::until("the workers show their tasks", LONG, || {
        let exit = case.ask_worker("pause", "a", &[&lake, "--json"], LONG);
        serde_json::from_str::<Value>(&exit.stdout).ok()
    });
    assert_eq!(paused, json!({ "request": "paused", "components": [lake] }));
    wait_for_state(&case, &mut first, "a", "lake", "paused");
    wait_for_state(&case, &mut second, "b", "lake", "paused");
    let unknown = case.ask_worker("pause", "a", &[&format!("{}.lak", case.name())], LONG);
    assert_eq!(unknown.code, Some(2), "{}", unknown.describe());
    assert!(unknown.stderr.contains("its stages: lake, web."), "{}", unknown.describe());

    stop(first);
    stop(second);
    log.append(500);
    // A job leaves the paused sink out, and its source works.
    let summary = case.until_idle("a", LONG);
    assert_eq!((summary.of(case.name(), "web").output, summary.of(case.name(), "lake").input), (1_500, 1_000));
    let mut worker = case.start("a", &[]);
    wait_for_state(&case, &mut worker, "a", "lake", "paused");
    wait_for_state(&case, &mut worker, "a", "web", "running");
    assert_eq!(reader.read(&case.path("lake"), &["path"]).rows, 1_000);

    let records = case.run_command("tap", &[&lake], &["--from", "earliest", "--no-follow", "--limit", "3"], LONG);
    assert_eq!(records.code, Some(0), "{}", records.describe());
    let first: Value = serde_json::from_str(records.stdout.lines().next().unwrap()).unwrap();
    assert!(first["value"]["path"].is_string(), "{first}");
    assert_eq!((records.stdout.lines().count(), &first["topic"]), (3, &format!("{}.web", case.name()).into()));

    let sample = ["--from", "earliest", "--no-follow", "--where", "value.path.startsWith('/')", "--sample", "1/100"];
    let sampled = case.run_command("tap", &[&lake], &sample, LONG);
    assert_eq!((sampled.code, sampled.stdout.lines().count()), (Some(0), 15), "{}", sampled.describe());

    let address = address(&worker);
    let resume = format!("/connectors/{lake}/resume");
    assert_eq!(send(&address, "PUT", &resume, "Origin: http://evil.example\r\n").0, 403);
    assert_eq!(send(&address, "PUT", &resume, "Host: evil.example\r\n").0, 403);
    let (code, status) = send(&address, "GET", &format!("/connectors/{lake}/status"), "");
    assert_eq!(code, 200, "{status}");
    let status: Value = serde_json::from_str(&status).unwrap();
    assert_eq!((&status["connector"]["state"], &status["tasks"][0]["state"]), (&"PAUSED".into(), &"PAUSED".into()));
    assert_eq!(send(&address, "PUT", &resume, "").0, 202);
    wait_for_rows(&reader, &case.path("lake"), 1_500);
    let (_, offsets) = send(&address, "GET", &format!("/connectors/{lake}/offsets"), "");
    assert!(offsets.contains("kafka_offset"), "{offsets}");
    let (_, root) = send(&address, "GET", "/", "");
    assert!(!root.contains("\"kafka_cluster_id\":null"), "{root}");
    assert_eq!(ask(&case, "runs", &["stop", &lake]), json!({ "request": "stopped", "components": [lake] }));
    wait::until("the live run is stopped", LONG, || {
        (ask(&case, "runs", &["show", &lake])["state"] == "stopped").then_some(())
    });
    assert_eq!(ask(&case, "runs", &["resume", &lake]), json!({ "request": "resumed", "components": [lake] }));
    wait_for_state(&case, &mut worker, "a", "lake", "running");
    ask(&case, "restart", &[&lake]);
    wait::until("the sink has started again", LONG, || {
        let task = task(&case, "a", "lake")?;
        (task["state"] == "running" && task["components"]["lake"]["in"] == 0).then_some(())
    });
    log.append(100);
    wait_for_rows(&reader, &case.path("lake"), 1_600);
    stop(worker);
    assert_every_line_once(&reader, &case.path("lake"), &log);
}

#[test]
fn a_connector_that_is_created_by_rest_outlives_its_worker() {
    let (kafka, reader) = (need!(Kafka::any()), need!(Reader::find()));
    let case = Case::new("created", kafka);
    let mut log = LogWriter::new(case.path("logs/access.log"), 961);
    log.append(1_000);
    case.pipeline("access", &access_logs());
    let worker = case.start("a", &[]);
    wait_for_rows(&reader, &case.path("lake"), 1_000);

    let (name, copy) = (format!("{}-copy.lake", case.name()), case.path("copy"));
    let url = format!("file://{}", copy.display());
    let config = json!({ "connector.class": "s3", "topics": format!("{}.web", case.name()), "url": url });
    let new = json!({ "name": name, "config": config }).to_string();
    let (code, body) = send_json(&address(&worker), "POST", "/connectors", &new);
    assert_eq!(code, 201, "{body}");
    wait_for_rows(&reader, &copy, 1_000);

    worker.kill9();
    log.append(500);
    let mut worker = case.start("a", &[]);
    wait_for_rows(&reader, &copy, 1_500);
    let address = address(&worker);
    let (_, status) = send(&address, "GET", &format!("/connectors/{name}/status"), "");
    assert!(status.contains(r#""state":"RUNNING""#), "{status}");
    assert_eq!(send(&address, "PUT", &format!("/connectors/{name}/stop"), "").0, 204);
    let offsets = format!("/connectors/{name}/offsets");
    wait::until("the stopped sink is moved to the start", LONG, || {
        assert!(worker.is_running(), "{}", worker.stderr());
        (send(&address, "DELETE", &offsets, "").0 == 200).then_some(())
    });
    let (_, moved) = send(&address, "GET", &offsets, "");
    let moved: Value = serde_json::from_str(&moved).unwrap();
    let at: Vec<&Value> = moved["offsets"].as_array().unwrap().iter().map(|at| &at["offset"]["kafka_offset"]).collect();
    assert!(!at.is_empty() && at.iter().all(|at| **at == 0), "{moved}");

    assert_eq!(send(&address, "DELETE", &format!("/connectors/{name}"), "").0, 204);
    wait::until("no task of the deleted connector runs", LONG, || {
        let exit = case.ask_worker("status", "a", &["--json"], LONG);
        (exit.code == Some(0) && !exit.stdout.contains("-copy")).then_some(())
    });
    stop(worker);
    assert_every_line_once(&reader, &copy, &log);
    assert_every_line_once(&reader, &case.path("lake"), &log);
}
