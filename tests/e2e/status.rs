//! What a worker shows of itself while it runs: `trunkline status`, metrics and probes.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

use trunkline_tests::{Case, Exit, Kafka, LogWriter, Process, Reader, Skip, need, wait};

use crate::{LONG, access_logs, stop, wait_for_rows};

/// Sends a GET request with these headers. Returns the status code and the body.
fn get(address: &str, path: &str, headers: &str) -> (u16, String) {
    send(address, "GET", path, headers)
}

/// Sends a request without a body.
pub(crate) fn send(address: &str, method: &str, path: &str, headers: &str) -> (u16, String) {
    send_with_body(address, method, path, headers, "")
}

/// The same with a body in JSON.
pub(crate) fn send_json(address: &str, method: &str, path: &str, body: &str) -> (u16, String) {
    let headers = format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len());
    send_with_body(address, method, path, &headers, body)
}

fn send_with_body(address: &str, method: &str, path: &str, headers: &str, body: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    let host = if headers.contains("Host:") { String::new() } else { format!("Host: {address}\r\n") };
    write!(stream, "{method} {path} HTTP/1.1\r\n{host}{headers}Connection: close\r\n\r\n{body}").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

/// The address of a worker's HTTP server, from its log.
pub(crate) fn address(worker: &Process) -> String {
    wait::until("the worker logs its address", LONG, || {
        let log = worker.stderr();
        let (_, rest) = log.split_once("metrics: http://")?;
        Some(rest.split_once("/metrics")?.0.to_owned())
    })
}

fn status(case: &Case, arguments: &[&str]) -> Exit {
    case.ask_worker("status", "a", arguments, LONG)
}

/// The value of a metric with these labels.
fn metric(page: &str, name: &str) -> f64 {
    let line = page.lines().find(|line| line.starts_with(&format!("{name} ")));
    let line = line.unwrap_or_else(|| panic!("no {name} in\n{page}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

#[test]
fn counters_and_lag_of_a_running_worker_are_shown() {
    let (kafka, reader) = (need!(Kafka::any()), need!(Reader::find()));
    let case = Case::new("status", kafka);
    let mut log = LogWriter::new(case.path("logs/access.log"), 950);
    log.append(1_000);
    log.append_raw(b"not a line of an access log\n");
    case.pipeline("access", &access_logs());
    assert_eq!(status(&case, &[]).code, Some(3), "no worker runs yet");
    let worker = case.start("a", &[]);
    let address = address(&worker);
    wait_for_rows(&reader, &case.path("lake"), 1_000);
    let lake = format!("{{pipeline=\"{}\",component=\"lake\",task=\"0\"", case.name());
    let page = wait::until("nothing is behind", LONG, || {
        let (code, page) = get(&address, "/metrics", "");
        assert_eq!(code, 200);
        (metric(&page, &format!("trunkline_lag_records{lake}}}")) == 0.0).then_some(page)
    });
    assert_eq!(metric(&page, &format!("trunkline_records_total{lake},outcome=\"out\"}}")), 1_000.0);
    let web = format!("{{pipeline=\"{}\",component=\"web\",task=\"0\"", case.name());
    assert_eq!(metric(&page, &format!("trunkline_records_total{web},outcome=\"dead_lettered\"}}")), 1.0);
    assert!(metric(&page, &format!("trunkline_commit_seconds_count{lake}}}")) >= 1.0);
    assert_eq!(metric(&page, &format!("trunkline_task_state{lake},state=\"running\"}}")), 1.0);
    assert_eq!(get(&address, "/health", "").0, 200);
    assert_eq!(get(&address, "/ready", ""), (200, "ready\n".to_owned()));
    // A page in a browser could send such a host.
    assert_eq!(get(&address, "/api/v1/status", "Host: evil.example\r\n").0, 403);

    let shown = status(&case, &[]);
    assert_eq!(shown.code, Some(0), "{}", shown.describe());
    let line = shown.stdout.lines().find(|line| line.starts_with(&format!("{}.lake ", case.name()))).unwrap();
    let columns: Vec<&str> = line.split_whitespace().collect();
    assert_eq!(columns[1..7], ["sink", "running", "1000", "1000", "0", "0"], "{line}");
    let json: serde_json::Value = serde_json::from_str(&status(&case, &["--json"]).stdout).unwrap();
    let tasks: Vec<&str> =
        json["tasks"].as_array().unwrap().iter().map(|task| task["component"].as_str().unwrap()).collect();
    assert_eq!(tasks, ["web", "lake"]);
    assert_eq!(json["tasks"][0]["components"]["web"]["in"], 1_001);
    assert_eq!(json["tasks"][1]["components"]["clean"]["out"], 1_000);

    drop(worker.kill9());
    let gone = status(&case, &[]);
    assert_eq!(gone.code, Some(3));
    assert!(gone.stderr.contains("no worker runs with the data directory"), "{}", gone.describe());
}

#[test]
fn a_killed_worker_is_reported_within_five_seconds() {
    const LIMIT: Duration = Duration::from_secs(5);
    let (kafka, reader) = (need!(Kafka::any()), need!(Reader::find()));
    let case = Case::new("killed-worker", kafka);
    LogWriter::new(case.path("logs/access.log"), 953).append(1_000);
    case.pipeline("access", &access_logs());
    let (first, second) = (case.start("a", &[]), case.start("b", &[]));
    let address = address(&first);
    wait_for_rows(&reader, &case.path("lake"), 1_000);
    let cluster = || serde_json::from_str::<serde_json::Value>(&get(&address, "/api/v1/cluster", "").1).ok();
    wait::until("both workers answer with their tasks", LONG, || {
        let workers = cluster()?["workers"].as_array()?.clone();
        let answers =
            workers.iter().filter(|worker| worker["status"]["tasks"].as_array().is_some_and(|it| it.len() == 2));
        (answers.count() == 2).then_some(())
    });
    let shown = case.ask_worker("top", "a", &["--once"], LONG);
    assert_eq!(shown.code, Some(0), "{}", shown.describe());
    assert!(
        shown.stdout.starts_with(&format!("cluster {}: 2 workers, 3 tasks, 0 failed", case.name())),
        "{}",
        shown.stdout
    );
    assert!(shown.stdout.contains(&format!("{}.lake/1 ", case.name())), "{}", shown.stdout);
    let pipelines = case.path("pipelines");
    let graph = case.ask_worker("graph", "a", &[pipelines.to_str().unwrap(), "--live"], LONG);
    for part in ["\nfused transform clean ", " sink lake ", "RECORDS/S"] {
        assert!(graph.stdout.contains(part), "{part}: {}", graph.describe());
    }
    let (code, page) = get(&address, "/", "Accept: text/html\r\n");
    assert!(code == 200 && page.contains("<svg") && page.contains(&format!("{}.lake", case.name())), "{page}");
    let (code, page) = get(&address, &format!("/ui/tap/{}.lake", case.name()), "Accept: text/html\r\n");
    assert!(code == 200 && page.contains("&quot;path&quot;"), "{page}");

    let lake = wait::until("the sink has caught up", LONG, || {
        Some(live_lake(&case, "a")).filter(|lake| lake["lag_records"] == 0)
    });
    assert_eq!((&lake["state"], &lake["tasks"]), (&"running".into(), &2.into()), "{lake}");
    let (out, people) = (&lake["counters"]["out"], &lake["started_by"]);
    assert_eq!((out, people.as_array().map(Vec::len)), (&1_000.into(), Some(1)), "{lake}");
    // Where no worker runs, the brokers know who runs what.
    let lake = live_lake(&case, "elsewhere");
    assert_eq!((&lake["tasks"], &lake["lag_records"]), (&2.into(), &serde_json::Value::Null), "{lake}");

    drop(second.kill9());
    let killed = Instant::now();
    let workers = || serde_json::from_str::<Vec<serde_json::Value>>(&get(&address, "/api/v1/workers", "").1).unwrap();
    let is_gone = |worker: &&serde_json::Value| worker["gone_seconds"].is_u64();
    wait::until("the killed worker is gone", LONG, || (workers().iter().filter(is_gone).count() == 1).then_some(()));
    assert!(killed.elapsed() < LIMIT, "{:?}", killed.elapsed());
    let shown = status(&case, &["--all-workers"]);
    assert!(shown.stdout.contains("is gone: it was killed or lost Kafka"), "{}", shown.describe());
    assert_eq!(shown.code, Some(1), "{}", shown.describe());
    // The rows of the dead worker are still there.
    assert_eq!(live_lake(&case, "elsewhere")["tasks"], 1);
    stop(first);
    let ended = case.ask_worker("runs", "elsewhere", &["show", &format!("{}.lake", case.name())], LONG);
    assert!(ended.code == Some(2) && ended.stderr.contains("[replay.unknown_run]"), "{}", ended.describe());
}

/// The live run of the sink, as `trunkline runs` shows it with this data directory.
fn live_lake(case: &Case, data: &str) -> serde_json::Value {
    let listed = case.ask_worker("runs", data, &["--kind", "live", "--json"], LONG);
    assert_eq!(listed.code, Some(0), "{}", listed.describe());
    let runs: Vec<serde_json::Value> = serde_json::from_str(&listed.stdout).unwrap();
    runs.into_iter().find(|run| run["component"] == "lake").unwrap()
}

#[test]
fn a_stage_that_stands_still_is_not_ready() {
    let kafka = need!(Kafka::any());
    let case = Case::new("not-ready", kafka);
    LogWriter::new(case.path("logs/access.log"), 951).append_raw(b"not a line of an access log\n");
    case.pipeline("access", &access_logs().replace("parser =", "on_error = \"stop\"\nparser ="));
    let mut worker = case.start("a", &[]);
    let address = address(&worker);
    let reasons = wait::until("the source fails", LONG, || {
        let (code, body) = get(&address, "/ready", "");
        (code == 503 && body.contains("has failed")).then_some(body)
    });
    assert!(reasons.starts_with(&format!("{}.web has failed: ", case.name())), "{reasons}");
    assert_eq!(get(&address, "/health", "").0, 200, "a restart would not help");
    let shown = status(&case, &[]);
    assert_eq!(shown.code, Some(1), "{}", shown.describe());
    assert!(shown.stdout.contains(reasons.trim()), "{}", shown.describe());
    worker.sigterm();
    let exit = worker.wait(LONG);
    assert_eq!(exit.code, Some(1), "a stage has failed: {}", exit.describe());
}

#[test]
fn other_machines_need_a_token() {
    let kafka = need!(Kafka::any());
    let mut case = Case::new("token", kafka);
    LogWriter::new(case.path("logs/access.log"), 952).append(1);
    case.pipeline("access", &access_logs());
    case.set("TRUNKLINE_HTTP", "0.0.0.0:0");
    let refused = case.start("a", &[]).wait(Duration::from_secs(30));
    assert_eq!(refused.code, Some(2), "{}", refused.describe());
    assert!(refused.stderr.contains("http_token"), "{}", refused.describe());

    case.set("TRUNKLINE_HTTP_TOKEN", "marker-of-the-token");
    let worker = case.start("a", &[]);
    let port = address(&worker).rsplit_once(':').unwrap().1.to_owned();
    let address = format!("127.0.0.1:{port}");
    assert_eq!(get(&address, "/health", "").0, 200);
    assert_eq!(get(&address, "/metrics", "").0, 401);
    assert_eq!(get(&address, "/api/v1/status", "Authorization: Bearer wrong\r\n").0, 401);
    assert_eq!(get(&address, "/metrics", "Authorization: Bearer marker-of-the-token\r\n").0, 200);
    assert!(!worker.stderr().contains("marker-of-the-token"), "{}", worker.stderr());
    stop(worker);
}

/// A self-signed certificate for workers, and its key. It has no name by which they are reached.
fn certificate(case: &Case) -> Result<(String, String), Skip> {
    let path = |name: &str| case.path(name).display().to_string();
    let (certificate, key) = (path("worker.pem"), path("worker.key"));
    let arguments = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=workers";
    let mut openssl = Command::new("openssl");
    openssl.args(arguments.split(' ')).args(["-keyout", &key, "-out", &certificate]);
    match openssl.output() {
        Ok(output) if output.status.success() => Ok((certificate, key)),
        _ => Err(Skip::new("openssl cannot make certificates")),
    }
}

#[test]
fn workers_and_commands_use_https() {
    let kafka = need!(Kafka::any());
    let mut case = Case::new("https", kafka);
    let (certificate, key) = need!(certificate(&case));
    LogWriter::new(case.path("logs/access.log"), 954).append(10);
    case.pipeline("access", &access_logs());
    for (setting, value) in [
        ("HTTP", "0.0.0.0:0"),
        ("HTTP_TLS_CERT", certificate.as_str()),
        ("HTTP_TLS_KEY", key.as_str()),
        ("HTTP_TOKEN", "marker"),
    ] {
        case.set(&format!("TRUNKLINE_{setting}"), value);
    }
    let (first, second) = (case.start("a", &[]), case.start("b", &[]));
    // `top` asks one worker over HTTPS, and that one asks the other.
    wait::until("both workers answer over HTTPS", LONG, || {
        let shown = case.ask_worker("top", "a", &["--once"], LONG);
        (shown.code == Some(0) && shown.stdout.contains(": 2 workers, 3 tasks, 0 failed")).then_some(())
    });
    let shown = status(&case, &[]);
    assert_eq!(shown.code, Some(0), "{}", shown.describe());
    let log = first.stderr();
    assert!(log.contains("metrics: https://") && !log.contains("has no TLS") && !log.contains("marker"), "{log}");
    stop(first);
    stop(second);
}
