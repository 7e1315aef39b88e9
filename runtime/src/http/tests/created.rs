//! Connectors that are created, changed and deleted by REST, changed offsets, and bodies of any
//! kind.

use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::*;

const SINK: &str = r#"{"connector.class":"s3","topics":"orders","url":"file:///tmp/lake","tasks.max":"2"}"#;

fn message(body: &Value) -> &str {
    body["message"].as_str().unwrap_or_default()
}

#[test]
fn connectors_are_created_changed_and_deleted() {
    let fixture = fixture();
    let new = format!(r#"{{"name":"orders.lake","config":{SINK}}}"#);
    let config = json!({
        "name": "orders.lake", "connector.class": "s3", "topics": "orders", "url": "file:///tmp/lake", "tasks.max": "2",
    });
    let shown = json!({ "name": "orders.lake", "config": config, "tasks": [], "type": "sink" });
    assert_eq!(fixture.ask("POST", "/connectors", &new), (201, shown.clone()));
    assert_eq!(fixture.get("/connectors/orders.lake"), shown);
    assert_eq!(fixture.get("/connectors/orders.lake/status")["connector"]["state"], "UNASSIGNED");
    assert_eq!(fixture.ask("POST", "/connectors", &new).0, 409);

    let changed = r#"{"connector.class":"s3","topics":"orders","url":"file:///tmp/other"}"#;
    let (status, body) = fixture.ask("PUT", "/connectors/orders.lake/config", changed);
    assert_eq!((status, &body["config"]["url"]), (200, &json!("file:///tmp/other")));
    let (status, body) =
        fixture.ask("PATCH", "/connectors/orders.lake/config", r#"{"compression":"snappy","url":"file:///tmp/third"}"#);
    assert_eq!(
        (status, &body["config"]["compression"], &body["config"]["url"]),
        (200, &json!("snappy"), &json!("file:///tmp/third"))
    );
    let (_, body) = fixture.ask("PATCH", "/connectors/orders.lake/config", r#"{"compression":null}"#);
    assert_eq!((body["config"].get("compression"), &body["config"]["topics"]), (None, &json!("orders")));
    assert_eq!(
        fixture.ask("PUT", "/connectors/web.log/config", r#"{"connector.class":"logfile","paths":"/a.log"}"#).0,
        201
    );

    assert_eq!(fixture.ask("DELETE", "/connectors/orders.lake", "").0, 204);
    assert_eq!(fixture.ask("DELETE", "/connectors/orders.lake", "").0, 404);
    assert_eq!(fixture.ask("GET", "/connectors/orders.lake", "").0, 404);
    assert_eq!(fixture.get("/connectors"), json!(["shop.web", "shop.lake", "web.log"]));
    // A new connector runs: the wanted state of an earlier one is removed with it.
    assert_eq!(fixture.written().len(), 8);
}

#[test]
fn connectors_begin_in_the_state_of_the_request() {
    let fixture = fixture();
    for (name, initial, shown) in
        [("a.one", "STOPPED", "STOPPED"), ("a1.one", "PAUSED", "PAUSED"), ("a2.one", "RUNNING", "UNASSIGNED")]
    {
        let new = format!(r#"{{"name":"{name}","config":{SINK},"initial_state":"{initial}"}}"#);
        let answer = fixture.send("POST", "/connectors", &[], &new);
        assert_eq!(answer.status().as_u16(), 201);
        let location = format!("http://127.0.0.1:8083/connectors/{name}");
        assert_eq!(answer.headers()["location"], location.as_str());
        assert_eq!(fixture.get(&format!("/connectors/{name}/status"))["connector"]["state"], shown);
    }
    let (status, _) =
        fixture.ask("POST", "/connectors", &format!(r#"{{"name":"b.c","config":{SINK},"initial_state":"x"}}"#));
    assert_eq!(status, 400);
    assert_eq!(fixture.written().len(), 6);
}

/// Workers end the tasks of a deleted connector a second later.
#[test]
fn a_deleted_connector_is_not_shown_while_its_tasks_end() {
    let fixture = fixture();
    let folder = fixture.served.overview.pipelines()[0].file.parent().unwrap().to_owned();
    let served = Served { connectors: Some(folder), ..Arc::into_inner(fixture.served).unwrap() };
    let fixture = Fixture { served: Arc::new(served), ..fixture };
    assert_eq!(fixture.get("/connectors"), json!([]));
    assert_eq!(fixture.get("/api/v1/pipelines"), json!([]));
    assert_eq!(fixture.ask("PUT", "/connectors/shop.lake/pause", "").0, 404);
}

#[test]
fn invalid_connectors_are_refused_with_the_key() {
    let fixture = fixture();
    let create = |name: &str, config: &str| {
        let (status, body) = fixture.ask("POST", "/connectors", &format!(r#"{{"name":"{name}","config":{config}}}"#));
        (status, message(&body).to_owned())
    };
    for (name, config, status, part) in [
        ("orders.lake", r#"{"connector.class":"s3","topics":"orders"}"#, 400, "url"),
        (
            "orders.lake",
            r#"{"connector.class":"s3","topics":"a","url":"s3://a","rotate.age":"soon"}"#,
            400,
            "rotate.age: ",
        ),
        ("orders.lake", "{}", 400, "connector.class: "),
        ("orders", SINK, 400, "PIPELINE.COMPONENT"),
        ("shop.lake", SINK, 409, "already exists"),
        ("orders.lake", r#"{"name":"other.lake","connector.class":"s3"}"#, 400, "doesn't match"),
        ("shop.other", SINK, 409, "has other components"),
    ] {
        let (found, message) = create(name, config);
        assert_eq!((found, message.contains(part)), (status, true), "{name} {config}: {message}");
    }
    let unknown = format!(r#"{{"name":"a.b","config":{SINK},"bogus":1}}"#);
    for body in ["", "{", "[]", r#"{"name":"a.b"}"#, r#"{"name":1,"config":{}}"#, &unknown] {
        assert_eq!(fixture.ask("POST", "/connectors", body).0, 400, "{body}");
    }
    assert_eq!(fixture.ask("PATCH", "/connectors/no.one/config", "{}").0, 404);
    assert!(fixture.written().is_empty());
}

#[test]
fn secrets_of_connectors_are_references() {
    let fixture = fixture();
    let config = |secret: &str| {
        format!(
            r#"{{"connector.class":"s3","topics":"a","url":"s3://a","region":"eu-central-1","access_key_id":"AKIA","secret_access_key":"{secret}"}}"#
        )
    };
    let path = "/connectors/orders.lake/config";
    let (status, body) = fixture.ask("PUT", path, &config("marker-of-the-secret"));
    assert_eq!((status, message(&body).contains("secret_access_key: a secret would be stored")), (400, true), "{body}");
    assert!(fixture.written().is_empty());
    let (status, body) = fixture.ask("PUT", path, &config("${env:PATH}"));
    assert_eq!((status, &body["config"]["secret_access_key"]), (201, &json!("${env:PATH}")), "{body}");
    // Clients send the whole configuration back, as they have read it.
    let url =
        |login: &str| format!(r#"{{"connector.class":"mysql","tables":"a.*","url":"mysql://cdc:{login}@db:3306"}}"#);
    assert_eq!(fixture.ask("PUT", "/connectors/db.shop/config", &url("${env:CARGO_PKG_VERSION}")).0, 201);
    assert_eq!(fixture.ask("PUT", "/connectors/db.shop/config", &url("marker-of-the-secret")).0, 400);
}

#[test]
fn configurations_are_validated_by_key() {
    let fixture = fixture();
    let path = "/connector-plugins/s3/config/validate";
    let (status, body) = fixture.ask(
        "PUT",
        path,
        r#"{"connector.class":"s3","topics":"a","url":"s3://a","rotate.age":"soon","nonsense":"1"}"#,
    );
    assert_eq!((status, &body["name"]), (200, &json!("s3")));
    assert!(body["error_count"].as_u64().unwrap() >= 2, "{body}");
    let errors = |key: &str| {
        let found = body["configs"].as_array().unwrap().iter().find(|config| config["value"]["name"] == key);
        found.map(|config| config["value"]["errors"].as_array().unwrap().len())
    };
    assert_eq!((errors("rotate.age"), errors("nonsense"), errors("compression")), (Some(1), Some(1), Some(0)));
    let (_, body) = fixture.ask("PUT", path, r#"{"topics":"a","url":"file:///tmp/lake"}"#);
    assert_eq!(body["error_count"], 0, "{body}");
    assert_eq!(fixture.ask("PUT", path, r#"{"connector.class":"mysql"}"#).0, 400);
    assert_eq!(fixture.ask("PUT", "/connector-plugins/x/config/validate", "{}").0, 404);
}

#[test]
fn offsets_of_stopped_sinks_only_are_changed() {
    let fixture = fixture();
    let path = "/connectors/shop.lake/offsets";
    let offsets =
        r#"{"offsets":[{"partition":{"kafka_topic":"shop.web","kafka_partition":0},"offset":{"kafka_offset":5}}]}"#;
    for (method, body) in [("PATCH", offsets), ("DELETE", "")] {
        let (status, body) = fixture.ask(method, path, body);
        assert_eq!((status, message(&body).contains("STOPPED state")), (400, true), "{body}");
        assert_eq!(fixture.ask(method, "/connectors/shop.x/offsets", offsets).0, 404);
    }
    assert_eq!(fixture.ask("PUT", "/connectors/shop.lake/stop", "").0, 204);
    for body in ["{}", r#"{"offsets":[]}"#, r#"{"offsets":[{"partition":{},"offset":{}}]}"#, "no JSON"] {
        assert_eq!(fixture.ask("PATCH", path, body).0, 400, "{body}");
    }
    // This worker has no connection to Kafka.
    assert_eq!(fixture.ask("PATCH", path, offsets).0, 503);
}

/// No body is a failure of the server, and no answer has the secret of a pipeline file.
#[test]
fn any_body_has_an_answer() {
    let fixture = fixture();
    let requests = prop::sample::select(vec![
        ("POST", "/connectors"),
        ("PUT", "/connectors/new.one/config"),
        ("PATCH", "/connectors/new.one/config"),
        ("PATCH", "/connectors/shop.lake/offsets"),
        ("PUT", "/connector-plugins/s3/config/validate"),
        ("PUT", "/connector-plugins/logfile/config/validate"),
        ("PUT", "/admin/loggers/a"),
        ("POST", "/api/v1/components/shop.lake/restart"),
    ]);
    let bodies = prop_oneof![
        "\\PC{0,60}",
        "[\\[\\]{}\":,0-9a-z$.]{0,60}",
        ("[a-z.\"\\n=\\[\\]]{0,12}", "[ -~\\n]{0,40}", "[ -~\\n]{0,40}").prop_map(|(key, value, paths)| {
            json!({ "connector.class": "logfile", "paths": paths, key: value }).to_string()
        }),
        ("[a-z.]{0,8}", "[ -~]{0,30}").prop_map(|(name, url)| {
            json!({ "name": name, "config": { "connector.class": "s3", "topics": "a", "url": url } }).to_string()
        }),
    ];
    let mut runner = TestRunner::new(ProptestConfig::with_cases(256));
    let outcome = runner.run(&(requests, bodies), |((method, path), body)| {
        let (status, answer) = fixture.ask(method, path, &body);
        prop_assert!(status < 500, "{method} {path} {body}: {status} {answer}");
        Ok(())
    });
    outcome.unwrap();
}
