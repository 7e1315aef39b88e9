//! The page, and the status of the cluster.

use tokio_stream::StreamExt as _;

use super::*;

const HTML: (&str, &str) = ("accept", "text/html,application/xhtml+xml;q=0.9,*/*;q=0.8");

impl Fixture {
    /// The page at a path, as a browser asks for it.
    fn page(&self, path: &str) -> (u16, axum::http::HeaderMap, String) {
        let answer = self.send("GET", path, &[HTML], "");
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        let body = self.runtime.block_on(to_bytes(answer.into_body(), 1 << 20)).unwrap();
        let text = String::from_utf8(body.to_vec()).unwrap();
        assert!(!text.contains("marker-of-the-secret"), "{path}");
        (status, headers, text)
    }

    /// The first event of a path.
    fn event(&self, path: &str) -> Value {
        let answer = self.send("GET", path, &[], "");
        assert_eq!(answer.headers()["content-type"], "text/event-stream");
        let mut body = answer.into_body().into_data_stream();
        let first = self.runtime.block_on(body.next()).unwrap().unwrap();
        let text = String::from_utf8(first.to_vec()).unwrap();
        serde_json::from_str(text.strip_prefix("data: ").unwrap().trim_end()).unwrap()
    }
}

#[test]
fn browsers_get_a_page_that_loads_nothing_from_elsewhere() {
    let fixture = fixture();
    let (status, headers, page) = fixture.page("/");
    assert_eq!((status, &headers["content-type"]), (200, &"text/html; charset=utf-8".parse().unwrap()));
    let policy = headers["content-security-policy"].to_str().unwrap();
    assert!(policy.starts_with("default-src 'none'") && policy.contains("frame-ancestors 'none'"), "{policy}");
    let (_, nonce) = policy.split_once("script-src 'nonce-").unwrap();
    let nonce = nonce.split('\'').next().unwrap();
    assert_eq!(page.matches(&format!("nonce=\"{nonce}\"")).count(), 2, "the style and the script");
    for part in ["<svg", "shop.lake", "no bucket", "(this one)", "href=\"/ui/pipelines/shop\"", "only its own machine"]
    {
        assert!(page.contains(part), "{part}: {page}");
    }
    for foreign in ["src=", "href=\"http", "@import", "url(", " style=", " onclick="] {
        assert!(!page.contains(foreign), "{foreign}");
    }
    let (_, other, _) = fixture.page("/");
    assert_ne!(headers["content-security-policy"], other["content-security-policy"], "a nonce is used once");
    assert_eq!(fixture.get("/")["commit"], "unknown", "clients of Kafka Connect get JSON");
    let (status, _, page) = fixture.page("/ui/pipelines/shop");
    assert!(status == 200 && page.contains("shop.dead-letters"), "{page}");
}

#[test]
fn texts_are_escaped_on_every_page() {
    let hostile = "<script>alert(1)</script>";
    let fixture = fixture();
    let status = StageStatus::new("shop", "lake", StageKind::Sink);
    status.set_state(StageState::Failed(hostile.to_owned()));
    fixture.served.overview.set_tasks(std::iter::once((0, Arc::new(status))));
    let (_, _, page) = fixture.page("/");
    assert!(!page.contains(hostile) && page.contains("&lt;script&gt;alert(1)&lt;/script&gt;"), "{page}");
    for path in ["/ui/pipelines/", "/ui/tap/", "/ui/dead-letters/"] {
        let (status, _, page) = fixture.page(&format!("{path}%3Cscript%3Ealert(1)%3C%2Fscript%3E"));
        assert_eq!(status, 404, "{path}");
        assert!(!page.contains(hostile) && page.contains("&lt;script&gt;"), "{path}: {page}");
    }
}

#[test]
fn events_have_the_live_values_of_their_page() {
    let fixture = fixture();
    for (path, events) in [("/", "/ui/events"), ("/ui/pipelines/shop", "/ui/events?pipeline=shop")] {
        let (_, _, page) = fixture.page(path);
        let event = fixture.event(events);
        assert!(page.contains(&format!("data-shape=\"{}\"", event["shape"].as_str().unwrap())), "{path}");
        let elements = page.split("<main").nth(1).unwrap().split("</main>").next().unwrap().matches(" data-v").count();
        assert_eq!(event["values"].as_array().unwrap().len(), elements, "{path}");
    }
    // The state of a task is not a live value: the page is loaded again.
    let before = fixture.event("/ui/events?pipeline=shop");
    fixture.served.overview.set_tasks(std::iter::empty());
    fixture.served.viewers.forget();
    fixture.served.others.forget();
    assert_ne!(before["shape"], fixture.event("/ui/events?pipeline=shop")["shape"]);
}

#[test]
fn pages_need_kafka_only_for_records_and_runs() {
    let fixture = fixture();
    for path in ["/ui/tap/shop.lake", "/ui/dead-letters/shop", "/ui/runs"] {
        let (status, _, page) = fixture.page(path);
        assert!(status == 503 && page.contains("control.not_connected"), "{path}: {page}");
    }
    assert!(fixture.page("/ui/runs").2.contains("<tr><td>shop.lake<td class=\"failed\">failed"), "live runs need none");
    assert_eq!(fixture.page("/").0, 200);
}

#[test]
fn the_page_has_the_guard_of_rest() {
    let fixture = fixture();
    for path in ["/", "/ui/events", "/ui/runs", "/ui/tap/shop.lake", "/ui/pipelines/shop"] {
        let answer = fixture.send("GET", path, &[HTML, ("host", "evil.example")], "");
        assert_eq!(answer.status().as_u16(), 403, "{path}");
    }
    let served = Served { token: Some("t".to_owned()), ..Arc::into_inner(fixture.served).unwrap() };
    let fixture = Fixture { served: Arc::new(served), on_loopback: false, ..fixture };
    for path in ["/", "/ui/events", "/ui/runs"] {
        let refused = fixture.send("GET", path, &[HTML], "");
        assert_eq!(refused.status().as_u16(), 401, "{path}");
        assert_eq!(refused.headers()["www-authenticate"], "Basic realm=\"trunkline\"", "a browser asks for it");
    }
    assert_eq!(fixture.send("GET", "/connectors", &[], "").headers()["www-authenticate"], "Bearer");
    // user:t
    let allowed = fixture.send("GET", "/", &[HTML, ("authorization", "Basic dXNlcjp0")], "");
    assert_eq!(allowed.status().as_u16(), 200);
}

#[test]
fn other_workers_are_asked_for_their_status() {
    // The process does so when it starts. Another test may have done it.
    let _ = tokio_rustls::rustls::crypto::ring::default_provider().install_default();
    let fixture = fixture();
    let other = Served { worker: "x".to_owned(), ..Arc::into_inner(super::fixture().served).unwrap() };
    let address = start(fixture.runtime.handle(), "127.0.0.1:0".parse().unwrap(), other).unwrap();
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for (worker, http) in [("x", address.to_string()), ("y", closed.to_string())] {
        let row = WorkerTasks { node: "n1".to_owned(), http: Some(http), ..WorkerTasks::default() };
        fixture.served.control.apply(ControlRow::Beat(worker.to_owned(), true));
        fixture.served.control.apply(ControlRow::Tasks(worker.to_owned(), Some(row)));
    }
    let now = std::time::Instant::now();
    fixture.served.samples.take(&fixture.served.overview, now);
    fixture.served.samples.take(&fixture.served.overview, now + samples::INTERVAL);
    let cluster = fixture.get("/api/v1/cluster?history=true");
    let workers: Vec<(&str, usize, bool)> = cluster["workers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|worker| {
            let tasks = worker["status"]["tasks"].as_array().map_or(0, Vec::len);
            (worker["worker"].as_str().unwrap(), tasks, worker["error"].is_string())
        })
        .collect();
    assert_eq!(workers, [("w", 3, false), ("x", 3, false), ("y", 0, true)]);
    let task = &cluster["workers"][0]["status"]["tasks"][1];
    assert_eq!(task["components"]["lake"]["per_second"], json!({ "in": 0.0, "out": 0.0, "dead_lettered": 0.0 }));
    assert_eq!(task["history"]["lag"], json!([null, null]));
    let without = fixture.get("/api/v1/cluster");
    let workers = without["workers"].as_array().unwrap().iter();
    let tasks = workers.filter_map(|worker| worker["status"]["tasks"].as_array()).flatten();
    assert_eq!(tasks.filter(|task| task.get("history").is_none()).count(), 6);
    assert_eq!(fixture.get("/api/v1/status")["tasks"][1].get("history"), None);
}
