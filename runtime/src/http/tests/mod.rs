//! The answers of all paths, without a server and without Kafka.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::io::Read as _;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use axum::body::{Body, to_bytes};
use axum::http::{Request, Response};
use serde_json::{Value, json};
use tower_service::Service as _;
use trunkline_connector::MemoryBudget;
use trunkline_transform_host::{Host, HostOptions};

use super::*;
use crate::checkpoint::{ControlRow, TaskRow, WorkerTasks};
use crate::config::Settings;
use crate::plan::{Registry, load_each};
use crate::stage::{StageKind, StageState, StageStatus};
use crate::worker::control::{Connection, RowStore, View};

mod created;
mod page;
mod tls;

const PIPELINE: &str = r#"
    name = "shop"
    [sources.web]
    connector = "logfile"
    paths = ["/a.log"]
    [sinks.lake]
    connector = "s3"
    inputs = ["web"]
    url = "s3://lake/v1"
    access_key_id = "AKIA"
    secret_access_key = "marker-of-the-secret"
    tasks = 2
"#;

/// Keeps the rows instead of writing them to Kafka.
#[derive(Clone, Default)]
struct Rows(Arc<Mutex<Vec<ControlRow>>>);

impl RowStore for Rows {
    fn write(&self, rows: &[ControlRow]) -> Result<Vec<i64>> {
        let mut written = self.0.lock().unwrap();
        let offsets = (written.len()..written.len() + rows.len()).map(|offset| offset as i64);
        written.extend_from_slice(rows);
        Ok(offsets.collect())
    }
}

/// A worker `w` that runs the pipeline, and the worker `x` of another node.
struct Fixture {
    runtime: tokio::runtime::Runtime,
    rows: Rows,
    served: Arc<Served>,
    on_loopback: bool,
}

fn fixture() -> Fixture {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("shop.toml");
    std::fs::write(&file, PIPELINE).unwrap();
    let host = Host::new(HostOptions::default()).unwrap();
    let loaded = load_each(&[file], &host, &Settings::load(None, &Vec::new()).unwrap(), &Registry::new());
    assert!(loaded.problems.is_empty(), "{}", loaded.problems[0]);

    let status = |component: &str, kind, state| {
        let status = StageStatus::new("shop", component, kind);
        status.set_state(state);
        Arc::new(status)
    };
    let failed = || StageState::Failed("no bucket".to_owned());
    let tasks = [
        (0, status("web", StageKind::Source, StageState::Running)),
        (0, status("lake", StageKind::Sink, StageState::Running)),
        (1, status("lake", StageKind::Sink, failed())),
    ];
    let overview = Overview::new();
    overview.show(tasks[0].1.clone(), MemoryBudget::new(1));
    overview.set_pipelines(loaded.pipelines);
    overview.set_tasks(tasks.into_iter());

    let control = Control::default();
    control.set_http(Some("127.0.0.1:8083".to_owned()));
    let rows = Rows::default();
    let started = (String::new(), 0);
    let connection = Connection { store: Box::new(rows.clone()), node: "n1".to_owned(), started, kafka: None };
    control.connect(View::default(), connection);
    let other = TaskRow {
        pipeline: "shop".to_owned(),
        component: "lake".to_owned(),
        kind: "sink".to_owned(),
        task: 0,
        state: "running".to_owned(),
        error: None,
    };
    let other = WorkerTasks {
        node: "n2".to_owned(),
        http: Some("127.0.0.1:8084".to_owned()),
        user: "ada".to_owned(),
        started: Some(1_764_395_000_000),
        tasks: vec![other],
    };
    control.apply(ControlRow::Beat("x".to_owned(), true));
    control.apply(ControlRow::Tasks("x".to_owned(), Some(other)));
    let served = Served {
        worker: "w".to_owned(),
        cluster: "c".to_owned(),
        secrets: None,
        connectors: None,
        token: None,
        tls: None,
        overview,
        control,
        samples: Samples::default(),
        others: Others::default(),
        loaded: LoadedComponents::default(),
        answers: SharedAnswers::default(),
        viewers: Viewers::default(),
        log_levels: Arc::new(LogLevels::new("info", Box::new(|_| Ok(())))),
        export: None,
        broker: None,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    Fixture { runtime, rows, served: Arc::new(served), on_loopback: true }
}

impl Fixture {
    fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Response<Body> {
        let mut request = Request::builder().method(method).uri(path);
        if !headers.iter().any(|(name, _)| *name == "host") {
            request = request.header("host", "127.0.0.1:8083");
        }
        if !body.is_empty() {
            request = request.header("content-type", "application/json").header("content-length", body.len());
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Body::from(body.to_owned())).unwrap();
        let mut router = router(self.served.clone(), self.on_loopback);
        self.runtime.block_on(router.call(request)).unwrap()
    }

    /// The status code, and the body as JSON if it is JSON.
    fn ask(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        let answer = self.send(method, path, &[], body);
        let status = answer.status().as_u16();
        let body = self.runtime.block_on(to_bytes(answer.into_body(), 1 << 20)).unwrap();
        assert!(!String::from_utf8_lossy(&body).contains("marker-of-the-secret"), "{method} {path}");
        (status, serde_json::from_slice(&body).unwrap_or(Value::Null))
    }

    fn get(&self, path: &str) -> Value {
        let (status, body) = self.ask("GET", path, "");
        assert_eq!(status, 200, "{path}: {body}");
        body
    }

    /// The rows that were written since the last call: their names and the wanted states.
    fn written(&self) -> Vec<String> {
        let rows = std::mem::take(&mut *self.rows.0.lock().unwrap());
        let shown = rows.iter().map(|row| match row {
            ControlRow::State(target, row) => {
                format!("{target} {}", row.as_ref().map_or(Value::Null, |row| json!(row.state)))
            }
            ControlRow::Restart(target, Some(row)) => {
                let task = row.task.as_ref().map(|task| format!(" {}/{}", task.worker, task.number));
                format!("{target} restart {}{}", row.failed_only, task.unwrap_or_default())
            }
            other => format!("{other:?}"),
        });
        shown.collect()
    }
}

#[test]
fn components_are_shown_with_the_tasks_of_all_workers() {
    let fixture = fixture();
    let task = |id: u32, worker: &str, node: &str, http: &str, task: u32, state: &str, error: Value| {
        json!({
            "id": id, "worker": worker, "node": node, "http": http, "task": task, "state": state, "error": error,
        })
    };
    let own = "127.0.0.1:8083";
    let lake = json!({
        "name": "shop.lake", "pipeline": "shop", "component": "lake", "kind": "sink", "connector": "s3",
        "wanted": "running",
        "tasks": [
            task(0, "w", "n1", own, 0, "running", Value::Null),
            task(1, "w", "n1", own, 1, "failed", json!("no bucket")),
            task(2, "x", "n2", "127.0.0.1:8084", 0, "running", Value::Null),
        ],
    });
    assert_eq!(fixture.get("/api/v1/components/shop.lake"), lake);
    let components = fixture.get("/api/v1/components");
    assert_eq!(components[1], lake);
    assert_eq!(components[0]["tasks"], json!([task(0, "w", "n1", own, 0, "running", Value::Null)]));
    let pipeline = json!({ "name": "shop", "dead_letter_topic": "shop.dead-letters", "components": components });
    assert_eq!(fixture.get("/api/v1/pipelines/shop"), pipeline);
    assert_eq!(fixture.get("/api/v1/pipelines"), json!([pipeline]));
    let tasks = fixture.get("/api/v1/tasks");
    assert_eq!(tasks.as_array().unwrap().len(), 4);
    assert_eq!((&tasks[3]["component"], &tasks[3]["kind"]), (&json!("shop.lake"), &json!("sink")));
    let workers = json!([
        { "worker": "w", "node": "n1", "http": own, "tasks": 3, "is_this": true, "gone_seconds": null },
        { "worker": "x", "node": "n2", "http": "127.0.0.1:8084", "tasks": 1, "is_this": false, "gone_seconds": null },
    ]);
    assert_eq!(fixture.get("/api/v1/workers"), workers);
    assert_eq!(fixture.get("/api/v1/status")["tasks"][2]["state"], "failed");
}

#[test]
fn a_row_that_is_read_late_does_not_undo_a_request() {
    let fixture = fixture();
    let wanted = || fixture.get("/api/v1/components/shop.lake")["wanted"].clone();
    for request in ["pause", "resume", "pause"] {
        assert_eq!(fixture.ask("POST", &format!("/api/v1/components/shop.lake/{request}"), "").0, 202);
    }
    let rows = fixture.rows.0.lock().unwrap().clone();
    for (offset, row) in (0..).zip(rows) {
        fixture.served.control.read(offset, row);
        assert_eq!(wanted(), "paused", "the row at offset {offset} was read");
    }
    fixture.served.control.read(3, ControlRow::State("shop.lake".to_owned(), None));
    assert_eq!(wanted(), "running", "another worker wrote later");
}

#[test]
fn components_are_paused_resumed_and_restarted() {
    let fixture = fixture();
    let accepted = json!({ "components": ["shop.lake"] });
    assert_eq!(fixture.ask("POST", "/api/v1/components/shop.lake/pause", ""), (202, accepted.clone()));
    assert_eq!(fixture.get("/api/v1/components/shop.lake")["wanted"], "paused");
    assert_eq!(fixture.ask("POST", "/api/v1/components/shop.lake/resume", "{}"), (202, accepted.clone()));
    let failed_only = r#"{"failed_only":true}"#;
    assert_eq!(fixture.ask("POST", "/api/v1/components/shop.lake/restart", failed_only), (202, accepted));
    let both = json!({ "components": ["shop.lake", "shop.web"] });
    assert_eq!(fixture.ask("POST", "/api/v1/pipelines/shop/restart", ""), (202, both.clone()));
    assert_eq!(fixture.ask("POST", "/api/v1/pipelines/shop/pause", ""), (202, both));
    let expected = [
        "shop.lake \"paused\"",
        "shop.lake null",
        "shop.lake restart true",
        "shop.lake restart false",
        "shop.web restart false",
        "shop \"paused\"",
    ];
    assert_eq!(fixture.written(), expected);

    let refused = |path: &str, body: &str| {
        let (status, body) = fixture.ask("POST", path, body);
        (status, body["code"].as_str().unwrap_or_default().to_owned())
    };
    let expected = |status: u16, code: &str| (status, code.to_owned());
    assert_eq!(refused("/api/v1/pipelines/shp/pause", ""), expected(404, "cli.unknown_pipeline"));
    assert_eq!(refused("/api/v1/components/shop.lak/pause", ""), expected(404, "cli.unknown_component"));
    assert_eq!(refused("/api/v1/components/shop/pause", ""), expected(404, "cli.unknown_component"));
    assert_eq!(refused("/api/v1/pipelines/shop/explode", ""), expected(404, "http.unknown_action"));
    let restart = "/api/v1/pipelines/shop/restart";
    assert_eq!(refused(restart, r#"{"failed":true}"#), expected(400, "http.bad_body"));
    assert_eq!(refused(restart, "{"), expected(400, "http.bad_body"));
    assert_eq!(fixture.ask("GET", "/api/v1/components/shop", "").0, 404);
    assert_eq!(fixture.ask("GET", "/api/v1/pipelines/shp", "").0, 404);
    assert!(fixture.written().is_empty());
}

#[test]
fn a_worker_without_kafka_says_so() {
    let fixture = fixture();
    let served = Served { control: Control::default(), ..Arc::into_inner(fixture.served).unwrap() };
    let fixture = Fixture { served: Arc::new(served), ..fixture };
    let (status, body) = fixture.ask("POST", "/api/v1/pipelines/shop/pause", "");
    assert_eq!((status, &body["code"]), (503, &json!("control.not_connected")));
    let (status, body) = fixture.ask("PUT", "/connectors/shop.lake/pause", "");
    assert_eq!((status, &body["error_code"]), (503, &json!(503)));
    assert_eq!(fixture.ask("GET", "/connectors/shop.lake/offsets", "").0, 503);
    assert_eq!(fixture.get("/")["kafka_cluster_id"], Value::Null);
}

#[test]
fn connectors_have_the_shapes_of_kafka_connect() {
    let fixture = fixture();
    assert_eq!(fixture.get("/connectors"), json!(["shop.web", "shop.lake"]));
    let (own, other, version) = ("n1:8083", "n2:8084", env!("CARGO_PKG_VERSION"));
    let status = json!({
        "name": "shop.lake",
        "connector": { "state": "RUNNING", "worker_id": own, "version": version },
        "tasks": [
            { "id": 0, "state": "RUNNING", "worker_id": own, "version": version },
            { "id": 1, "state": "FAILED", "worker_id": own, "version": version, "trace": "no bucket" },
            { "id": 2, "state": "RUNNING", "worker_id": other, "version": version },
        ],
        "type": "sink",
    });
    assert_eq!(fixture.get("/connectors/shop.lake/status"), status);
    let config = json!({
        "name": "shop.lake", "connector.class": "s3", "tasks.max": "2", "topics": "shop.web", "url": "s3://lake/v1",
        "access_key_id": "AKIA", "secret_access_key": "***",
    });
    assert_eq!(fixture.get("/connectors/shop.lake/config"), config);
    let task = |id: u32| json!({ "connector": "shop.lake", "task": id });
    let info = json!({
        "name": "shop.lake", "config": config, "tasks": [task(0), task(1), task(2)], "type": "sink",
    });
    assert_eq!(fixture.get("/connectors/shop.lake"), info);
    let expanded = fixture.get("/connectors?expand=status&expand=info");
    assert_eq!(expanded["shop.lake"], json!({ "status": status, "info": info }));
    assert_eq!(fixture.get("/connectors?expand=status")["shop.web"].as_object().unwrap().len(), 1);
    let tasks = fixture.get("/connectors/shop.lake/tasks");
    assert_eq!((&tasks[2]["id"], &tasks[2]["config"]["connector.class"]), (&task(2), &json!("s3")));
    assert_eq!(fixture.get("/connectors/shop.lake/tasks/1/status"), status["tasks"][1]);
    assert_eq!(fixture.get("/connectors/shop.lake/topics"), json!({ "shop.lake": { "topics": ["shop.web"] } }));
    assert_eq!(fixture.get("/connectors/shop.x/topics"), json!({ "shop.x": { "topics": [] } }));
    assert_eq!(fixture.get("/connectors?expand=x"), json!({ "shop.lake": {}, "shop.web": {} }));
    let plugins = fixture.get("/connector-plugins");
    assert!(plugins.as_array().unwrap().iter().any(|plugin| plugin["class"] == "s3" && plugin["type"] == "sink"));
    let with_transforms = fixture.get("/connector-plugins?connectorsOnly=false");
    assert!(with_transforms.as_array().unwrap().len() > plugins.as_array().unwrap().len());
    let options = fixture.get("/connector-plugins/s3/config");
    assert!(options.as_array().unwrap().iter().any(|option| option["name"] == "url" && option["required"] == true));
}

#[test]
fn the_health_has_the_form_of_kafka_connect() {
    let health = fixture().get("/health");
    assert_eq!((&health["status"], health["message"].is_string()), (&json!("healthy"), true));
}

#[test]
fn connectors_are_paused_stopped_and_restarted() {
    let fixture = fixture();
    let code = |method: &str, path: &str| fixture.ask(method, path, "").0;
    assert_eq!(code("PUT", "/connectors/shop.lake/pause"), 202);
    assert_eq!(fixture.get("/connectors/shop.lake/status")["connector"]["state"], "PAUSED");
    assert_eq!(code("PUT", "/connectors/shop.lake/resume"), 202);
    assert_eq!(code("PUT", "/connectors/shop.lake/stop"), 204);
    assert_eq!(fixture.get("/connectors/shop.lake/status")["connector"]["state"], "STOPPED");
    assert_eq!(code("PUT", "/connectors/shop.lake/resume"), 202);
    assert_eq!(code("POST", "/connectors/shop.lake/restart"), 204);
    let (status, body) = fixture.ask("POST", "/connectors/shop.lake/restart?includeTasks=true&onlyFailed=true", "");
    let states: Vec<&Value> = body["tasks"].as_array().unwrap().iter().map(|task| &task["state"]).collect();
    assert_eq!((status, states), (202, vec![&json!("RUNNING"), &json!("RESTARTING"), &json!("RUNNING")]));
    assert_eq!(code("POST", "/connectors/shop.lake/tasks/2/restart"), 204);
    let expected = [
        "shop.lake \"paused\"",
        "shop.lake null",
        "shop.lake \"stopped\"",
        "shop.lake null",
        "shop.lake restart false",
        "shop.lake restart true",
        "shop.lake restart false x/0",
    ];
    assert_eq!(fixture.written(), expected);
}

#[test]
fn connect_errors_have_a_code_and_a_message() {
    let fixture = fixture();
    let refused = |method: &str, path: &str, body: &str| {
        let (status, body) = fixture.ask(method, path, body);
        assert_eq!(body["error_code"], status, "{method} {path}: {body}");
        (status, body["message"].as_str().unwrap().to_owned())
    };
    for path in ["", "/config", "/status", "/tasks", "/tasks/0/status", "/offsets"] {
        let (status, message) = refused("GET", &format!("/connectors/shop.x{path}"), "");
        assert_eq!((status, message.contains("shop.x")), (404, true), "{path}: {message}");
    }
    for (method, path) in [("PUT", "pause"), ("PUT", "resume"), ("PUT", "stop"), ("POST", "restart")] {
        assert_eq!(refused(method, &format!("/connectors/shop.x/{path}"), "").0, 404, "{path}");
    }
    assert_eq!(refused("GET", "/connectors/shop.lake/tasks/9/status", "").0, 404);
    assert_eq!(refused("POST", "/connectors/shop.lake/tasks/9/restart", "").0, 404);
    assert_eq!(refused("GET", "/connector-plugins/x/config", ""), (404, "Unknown plugin x.".to_owned()));
    assert_eq!(refused("GET", "/nothing", ""), (404, "HTTP 404 Not Found".to_owned()));
    assert_eq!(refused("POST", "/connectors/shop.lake/status", ""), (405, "HTTP 405 Method Not Allowed".to_owned()));
    let of_the_file = [
        ("PUT", "/connectors/shop.lake/config"),
        ("PATCH", "/connectors/shop.lake/config"),
        ("DELETE", "/connectors/shop.lake"),
        ("PUT", "/connectors/shop.lake/topics/reset"),
    ];
    for (method, path) in of_the_file {
        let (status, message) = refused(method, path, "{}");
        assert_eq!((status, message.contains("pipeline file")), (405, true), "{method} {path}: {message}");
    }
    assert!(fixture.written().is_empty());
}

#[test]
fn log_levels_are_shown_and_changed() {
    let fixture = fixture();
    assert_eq!(fixture.get("/admin/loggers"), json!({ "root": { "level": "INFO", "last_modified": null } }));
    let path = "/admin/loggers/trunkline::stage";
    assert_eq!(fixture.ask("GET", path, "").0, 404);
    assert_eq!(fixture.ask("PUT", path, r#"{"level":"debug"}"#), (200, json!(["trunkline::stage"])));
    assert_eq!(fixture.get(path)["level"], "DEBUG");
    assert!(fixture.get(path)["last_modified"].is_i64());
    for (path, body, expected) in [
        (path, r#"{"level":"loud"}"#, 404),
        (path, "{}", 400),
        (path, "no JSON", 400),
        ("/admin/loggers/root?scope=cluster", r#"{"level":"INFO"}"#, 400),
        ("/admin/loggers/a=b", r#"{"level":"INFO"}"#, 400),
    ] {
        let (status, answer) = fixture.ask("PUT", path, body);
        assert_eq!((status, &answer["error_code"]), (expected, &json!(expected)), "{body}");
    }
}

#[test]
fn other_hosts_and_sites_are_refused() {
    let fixture = fixture();
    let code =
        |method: &str, path: &str, headers: &[(&str, &str)]| fixture.send(method, path, headers, "").status().as_u16();
    let pause = "/connectors/shop.lake/pause";
    for path in ["/api/v1/status", "/connectors", "/metrics", "/", "/nothing"] {
        assert_eq!(code("GET", path, &[("host", "evil.example")]), 403, "{path}");
        assert_ne!(code("GET", path, &[("origin", "http://evil.example")]), 403, "{path}");
    }
    for (method, path) in [("PUT", pause), ("POST", "/api/v1/pipelines/shop/pause"), ("POST", "/connectors")] {
        assert_eq!(code(method, path, &[("host", "evil.example")]), 403, "{path}");
        assert_eq!(code(method, path, &[("origin", "http://evil.example")]), 403, "{path}");
        assert_eq!(code(method, path, &[("content-type", "text/plain")]), 415, "{path}");
    }
    assert!(fixture.written().is_empty());
    assert_eq!(code("PUT", pause, &[("origin", "http://127.0.0.1:8083")]), 202);
}

#[test]
fn a_token_is_required_beyond_loopback() {
    let fixture = Fixture { on_loopback: false, ..fixture() };
    let pause = "/connectors/shop.lake/pause";
    assert_eq!(fixture.ask("PUT", pause, "").0, 403, "there is no token");
    let served = Served { token: Some("t".to_owned()), ..Arc::into_inner(fixture.served).unwrap() };
    let fixture = Fixture { served: Arc::new(served), ..fixture };
    for (method, path) in [("PUT", pause), ("GET", "/connectors"), ("GET", "/metrics"), ("GET", "/api/v1/status")] {
        assert_eq!(fixture.ask(method, path, "").0, 401, "{path}");
        let allowed = fixture.send(method, path, &[("authorization", "Bearer t"), ("host", "worker.example")], "");
        assert!(allowed.status().is_success(), "{path}");
    }
    assert_eq!(fixture.ask("GET", "/health", "").0, 200);
    assert_eq!(fixture.ask("GET", "/ready", "").0, 503, "a task has failed");
}

#[test]
fn another_worker_reads_the_status_with_a_signature() {
    let fixture = fixture();
    let served = Served { token: Some("t".to_owned()), ..Arc::into_inner(fixture.served).unwrap() };
    let fixture = Fixture { served: Arc::new(served), on_loopback: false, ..fixture };
    let code = |method: &str, path: &str, token: &str, address: &str| {
        let signature = peer::sign(token, address, SystemTime::now());
        fixture.send(method, path, &[("authorization", &signature)], "").status().as_u16()
    };
    let own = "127.0.0.1:8083";
    assert_eq!(code("GET", peer::PATH, "t", own), 200);
    assert_eq!(code("GET", peer::PATH, "wrong", own), 401);
    assert_eq!(code("GET", peer::PATH, "t", "127.0.0.1:8084"), 401, "it is for another worker");
    for (method, path) in [
        ("GET", "/api/v1/status"),
        ("GET", "/api/v1/cluster"),
        ("POST", peer::PATH),
        ("PUT", "/connectors/shop.lake/pause"),
    ] {
        assert_eq!(code(method, path, "t", own), 401, "{method} {path}");
    }
}

#[test]
fn other_workers_do_not_receive_the_token() {
    let _ = tokio_rustls::rustls::crypto::ring::default_provider().install_default();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let fixture = fixture();
    let other = WorkerTasks { node: "n1".to_owned(), http: Some(address.clone()), ..WorkerTasks::default() };
    fixture.served.control.apply(ControlRow::Tasks("x".to_owned(), Some(other)));
    let served = Served { token: Some("hunter2".to_owned()), ..Arc::into_inner(fixture.served).unwrap() };
    let fixture = Fixture { served: Arc::new(served), ..fixture };
    let answer = fixture.send("GET", "/api/v1/cluster", &[("authorization", "Bearer hunter2")], "");
    assert_eq!(answer.status().as_u16(), 200);
    // It has asked and given up; the request waits to be read.
    listener.set_nonblocking(true).unwrap();
    let (mut stream, _) = listener.accept().unwrap();
    let mut request = vec![0; 4096];
    let length = stream.read(&mut request).unwrap();
    let request = String::from_utf8(request[..length].to_vec()).unwrap();
    assert!(request.starts_with(&format!("GET {} HTTP/1.1", peer::PATH)), "{request}");
    let signature = request.lines().find_map(|line| line.strip_prefix("authorization: ")).unwrap();
    assert!(peer::is_signed(signature, "hunter2", &[address], SystemTime::now()), "{request}");
    assert!(!request.contains("hunter2"), "{request}");
}

#[test]
fn live_runs_are_listed_shown_and_controlled() {
    let fixture = fixture();
    let runs = fixture.get("/api/v1/runs?kind=live");
    let shown = runs.as_array().unwrap().iter().map(|run| json!([run["id"], run["state"], run["tasks"], run["kind"]]));
    let expected = json!([["shop.lake", "failed", 3, "live"], ["shop.web", "running", 1, "live"]]);
    assert_eq!(shown.collect::<Value>(), expected);
    let lake = fixture.get("/api/v1/runs/shop.lake");
    assert_eq!((&lake["error"], &lake["destination"]), (&"no bucket".into(), &"s3://lake/v1".into()), "{lake}");
    assert_eq!(lake["started_by"], json!(["ada@n2", "n1"]));
    let workers: Vec<_> = lake["task_list"].as_array().unwrap().iter().map(|task| task["worker"].clone()).collect();
    assert_eq!(workers, ["w", "w", "x"]);
    for (action, state, written) in [
        ("pause", "paused", "shop.lake \"paused\""),
        ("stop", "stopped", "shop.lake \"stopped\""),
        ("resume", "running", "shop.lake null"),
    ] {
        let (status, answer) = fixture.ask("POST", &format!("/api/v1/runs/shop.lake/{action}"), "");
        assert_eq!(
            (status, &answer),
            (202, &json!({ "id": "shop.lake", "state": state, "components": ["shop.lake"] }))
        );
        assert_eq!(fixture.written(), [written]);
    }
    assert_eq!(fixture.ask("POST", "/api/v1/runs/shop/pause", "").1["components"], json!(["shop.lake", "shop.web"]));
    let refused = |method: &str, path: &str| {
        let (status, answer) = fixture.ask(method, path, "");
        (status, answer["code"].as_str().unwrap_or_default().to_owned())
    };
    let expected = |status: u16, code: &str| (status, code.to_owned());
    assert_eq!(refused("GET", "/api/v1/runs/shop.nope"), expected(404, "replay.unknown_run"));
    assert_eq!(refused("POST", "/api/v1/runs/shop.nope/pause"), expected(404, "cli.unknown_component"));
    assert_eq!(refused("POST", "/api/v1/runs/shop.lake/restart"), expected(404, "http.unknown_action"));
    assert_eq!(refused("GET", "/api/v1/runs?kind=other"), expected(400, "http.bad_parameter"));
    // Replays are in Kafka, which this worker does not have.
    assert_eq!(refused("GET", "/api/v1/runs"), expected(503, "control.not_connected"));
    assert_eq!(refused("POST", "/api/v1/runs/202611291310-19d6/stop"), expected(503, "control.not_connected"));
}

#[test]
fn the_openapi_document_describes_the_paths_of_the_router() {
    let fixture = fixture();
    let document = fixture.get("/api/v1/openapi.json");
    let mut described = BTreeSet::new();
    for (path, operations) in document["paths"].as_object().unwrap() {
        for method in operations.as_object().unwrap().keys() {
            let has_component = path.contains("components") || path.contains("runs");
            let asked = path.replace("{name}", if has_component { "shop.lake" } else { "shop" });
            let (status, _) = fixture.ask(&method.to_uppercase(), &asked.replace("{action}", "pause"), "");
            assert!(![404, 405].contains(&status), "{method} {path}");
            described.insert((method.clone(), path.clone()));
        }
    }
    let routes = include_str!("../api.rs").lines().filter_map(|line| {
        let (path, rest) = line.trim().strip_prefix(".route(\"")?.split_once("\", ")?;
        Some((rest.split('(').next()?.to_owned(), path.to_owned()))
    });
    let routes: BTreeSet<(String, String)> = routes.collect();
    let own = described.iter().filter(|(_, path)| path.starts_with("/api/")).cloned();
    assert_eq!(own.collect::<BTreeSet<_>>(), routes);
    assert_references_resolve(&document, &document);
}

fn assert_references_resolve(value: &Value, document: &Value) {
    match value {
        Value::Object(members) => {
            if let Some(reference) = members.get("$ref").and_then(Value::as_str) {
                let pointer = reference.strip_prefix('#').unwrap();
                assert!(document.pointer(pointer).is_some(), "{reference}");
            }
            members.values().for_each(|value| assert_references_resolve(value, document));
        }
        Value::Array(items) => items.iter().for_each(|value| assert_references_resolve(value, document)),
        _ => {}
    }
}

#[test]
fn the_reference_lists_every_path() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reference/rest.md");
    let page = std::fs::read_to_string(page).unwrap();
    let sources =
        [include_str!("../api.rs"), include_str!("../connect/mod.rs"), include_str!("../page/mod.rs")].concat();
    let routes =
        sources.split(".route(").skip(1).filter_map(|rest| rest.trim_start().strip_prefix('"')?.split('"').next());
    for path in routes {
        let shown = path.replace("{action}", "pause");
        assert!(
            page.contains(&format!(" {shown}`")) || page.contains(&format!("`{shown}`")),
            "{path} is not in rest.md"
        );
    }
}

#[test]
fn an_answer_is_made_once_for_a_moment_and_again_after_a_change() {
    let fixture = fixture();
    let served = &fixture.served;
    let made = Cell::new(0);
    let ask = |key: &str| {
        let make = || {
            made.set(made.get() + 1);
            made.get().to_string().into_bytes()
        };
        fixture.runtime.block_on(served.answers.connectors.get(served, key, make))
    };
    // On a busy machine, the moment may pass between two requests.
    let is_shared = (0..100).any(|_| ask("") == ask(""));
    assert!(is_shared, "{} answers", made.get());
    let is_made = |change: &dyn Fn()| {
        let before = ask("");
        change();
        ask("") != before
    };
    let (_, task) = served.overview.tasks().remove(0);
    assert!(is_made(&|| task.set_state(StageState::Done)), "a task is done");
    assert!(is_made(&|| task.failed("no bucket")), "a task has failed");
    assert!(is_made(&|| assert!(task.set_paused(true))), "a task is paused");
    assert!(is_made(&|| served.overview.set_pipelines(Vec::new())), "other pipelines run");
    assert!(is_made(&|| served.overview.set_tasks(std::iter::empty())), "other tasks run");
    assert!(is_made(&|| served.control.apply(ControlRow::Beat("x".to_owned(), true))), "a row was read");
    assert!(ask("expand=status") != ask("expand=info"), "the requests differ");
}
