//! `trunkline validate --check`: each prerequisite that a cluster does not meet is reported with
//! its fix. `conformance.rs` checks the same on real servers.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test reports a failure by panicking")]

mod common;

use common::Setup;
use common::fake::Fake;
use serde_json::{Value, json};
use trunkline_connector::PreflightIssue;

fn elasticsearch(number: &str) -> Value {
    json!({"version": {"number": number}})
}

fn check(fake: &Fake, options: &str) -> Vec<PreflightIssue> {
    Setup::new().preflight(&format!("url = \"http://{}\"\n{options}\n", fake.address))
}

fn codes(issues: &[PreflightIssue]) -> Vec<&str> {
    issues.iter().map(|issue| issue.code.trim_start_matches("elasticsearch.")).collect()
}

/// The only issue: code and fix.
fn only(issues: &[PreflightIssue]) -> (&str, &str) {
    let [issue] = issues else { panic!("{issues:#?}") };
    (issue.code.trim_start_matches("elasticsearch."), issue.fix.as_deref().unwrap_or_default())
}

#[test]
fn each_node_that_cannot_be_used_is_reported() {
    let (old, denying, good) = (Fake::start(), Fake::start(), Fake::start());
    old.answer("GET /", 200, elasticsearch("6.8.23"));
    denying.answer("GET /", 401, json!({}));
    let dead = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let dead_address = dead.local_addr().unwrap().to_string();
    drop(dead);
    let urls = |addresses: &[&str]| {
        let urls: Vec<String> = addresses.iter().map(|address| format!("\"http://{address}\"")).collect();
        format!("url = [{}]\nindex = \"a\"\n", urls.join(", "))
    };
    let setup = Setup::new();
    let issues = setup.preflight(&urls(&[&old.address, &denying.address, &dead_address]));
    assert_eq!(codes(&issues), ["old_version", "unauthorized", "unreachable"], "{issues:#?}");
    assert!(issues.iter().all(|issue| issue.fix.is_some()), "{issues:#?}");
    // With a node that answers, the others are reported, too.
    good.answer("GET /a/_settings", 200, json!({"a": {"settings": {}}}));
    assert_eq!(codes(&setup.preflight(&urls(&[&dead_address, &good.address]))), ["unreachable"]);
    assert_eq!(setup.preflight(&urls(&[&good.address])), []);
    assert!(good.numbers().is_empty(), "a check writes nothing");
}

#[test]
fn indices_that_cannot_be_created_are_reported() {
    let fake = Fake::start();
    assert_eq!(check(&fake, "index = \"a\""), [], "by default documents create their index");
    fake.answer("GET /_cluster/settings", 200, json!({"persistent": {"action.auto_create_index": "false"}}));
    assert_eq!(only(&check(&fake, "index = \"a\"")), ("index_missing", "PUT a"));
    let (code, fix) = {
        let issues = check(&fake, "index = \"logs-{timestamp:%Y}\"");
        (codes(&issues)[0].to_owned(), issues[0].fix.clone().unwrap())
    };
    assert_eq!((code.as_str(), fix.contains("\"+logs-*,false\"")), ("index_missing", true), "{fix}");
    // A template may allow it.
    let allows = json!({"index_template": {"index_patterns": ["logs-*"], "allow_auto_create": true}});
    fake.answer("GET /_index_template", 200, json!({"index_templates": [allows]}));
    assert_eq!(check(&fake, "index = \"logs-{timestamp:%Y}\""), []);
    fake.answer("GET /a/_settings", 200, json!({"a": {"settings": {"index.blocks.write": "true"}}}));
    assert_eq!(
        only(&check(&fake, "index = \"a\"")),
        ("index_blocked", "PUT a/_settings {\"index.blocks.write\": null}")
    );
    let issues = check(&fake, "index = \"b\"\nrequire_alias = true");
    assert_eq!(only(&issues).0, "alias_missing");
    assert!(only(&issues).1.contains("\"is_write_index\": true"));
    fake.answer("GET /_data_stream/c", 200, json!({"data_streams": [{"name": "c"}]}));
    assert_eq!(only(&check(&fake, "index = \"c\"")).0, "is_data_stream");
}

#[test]
fn data_streams_without_a_template_are_reported() {
    let fake = Fake::start();
    fake.answer("GET /_index_template", 200, json!({"index_templates": []}));
    let issues = check(&fake, "data_stream = \"logs-web\"");
    assert_eq!(only(&issues).0, "no_data_stream_template");
    assert!(only(&issues).1.starts_with("PUT _index_template/logs-web "), "{issues:#?}");
    let own = "template = { inline = '{\"index_patterns\": [\"logs-*\"], \"data_stream\": {}}' }";
    assert_eq!(check(&fake, &format!("data_stream = \"logs-web\"\n{own}")), []);
    let stream = json!({"index_template": {"index_patterns": ["logs-*"], "priority": 5, "data_stream": {}}});
    fake.answer("GET /_index_template", 200, json!({"index_templates": [stream]}));
    assert_eq!(check(&fake, "data_stream = \"logs-web\""), []);
    fake.answer("GET /_index_template/x", 403, json!({}));
    let named = own.replace("inline", "name = \"x\", inline");
    assert_eq!(only(&check(&fake, &format!("data_stream = \"logs-web\"\n{named}"))).0, "template_forbidden");
}

#[test]
fn missing_privileges_and_pipelines_are_reported() {
    let fake = Fake::start();
    fake.answer("GET /a/_settings", 200, json!({"a": {"settings": {}}}));
    let denied =
        json!({"error": {"type": "security_exception", "reason": "no permissions for [indices:data/write/bulk]"}});
    fake.answer("POST /_bulk", 403, denied.clone());
    let issues = check(&fake, "index = \"a\"");
    assert_eq!(only(&issues).0, "forbidden");
    assert!(issues[0].message.contains("no permissions") && only(&issues).1.contains("\"crud\""), "{issues:#?}");
    let item = json!({"items": [{"index": {"status": 403, "error": denied["error"]}}]});
    fake.answer("POST /_bulk", 200, item);
    assert_eq!(only(&check(&fake, "index = \"a\"")).0, "forbidden");
    fake.answer("POST /_bulk", 200, json!({"items": [{"index": {"status": 409, "error": {}}}]}));
    assert_eq!(only(&check(&fake, "index = \"a\"\npipeline = \"geoip\"")).0, "pipeline_missing");

    let fake = Fake::start();
    fake.answer("GET /", 200, elasticsearch("8.19.21"));
    let privileges = |write: bool| json!({"index": {"logs-*": {"create_index": true, "write": write}}});
    fake.answer("POST /_security/user/_has_privileges", 200, privileges(false));
    let issues = check(&fake, "index = \"logs-{timestamp:%Y}\"");
    assert_eq!(only(&issues).0, "forbidden");
    assert!(
        issues[0].message.ends_with("`logs-*`: `write`") && only(&issues).1.starts_with("give it a role"),
        "{issues:#?}"
    );
    fake.answer("POST /_security/user/_has_privileges", 200, privileges(true));
    assert_eq!(check(&fake, "index = \"logs-{timestamp:%Y}\""), []);
}

#[test]
fn policies_that_do_not_apply_are_reported() {
    let setup = Setup::new();
    for (root, path, code, good, bad) in [
        (elasticsearch("8.19.0"), "GET /_ilm/policy/p", "policy_missing", json!({"p": {}}), None),
        (
            json!({"version": {"distribution": "opensearch", "number": "2.19.1"}}),
            "GET /_plugins/_ism/policies/p",
            "policy_missing",
            json!({"policy": {"ism_template": [{"index_patterns": ["a*"]}]}}),
            Some(json!({"policy": {"ism_template": null}})),
        ),
    ] {
        let fake = Fake::start();
        fake.answer("GET /", 200, root);
        fake.answer("PUT /_index_template/pipeline.test", 200, json!({}));
        let options =
            format!("url = \"http://{}\"\nindex = \"a\"\ntemplate = {{ lifecycle_policy = \"p\" }}\n", fake.address);
        let opened = || setup.try_open(&options).err().map(|error| error.code.trim_start_matches("elasticsearch."));
        assert_eq!((codes(&setup.preflight(&options)), opened()), (vec![code], Some(code)));
        if let Some(bad) = bad {
            fake.answer(path, 200, bad);
            let expected = "policy_not_attached";
            assert_eq!((codes(&setup.preflight(&options)), opened()), (vec![expected], Some(expected)));
        }
        fake.answer(path, 200, good);
        assert_eq!((setup.preflight(&options), opened()), (Vec::new(), None), "{path}");
    }
}
