//! The suite that every idempotent sink runs, and the behaviour of real servers on which the sink
//! relies.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test reports a failure by panicking")]

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;

use common::fake::Fake;
use common::server::Server;
use common::{Setup, deliver_within, delivery, http, numbered, pending, rejections, with_schema};
use serde_json::json;
use trunkline_connector::conformance::{SinkFixture, check_idempotent_sink};
use trunkline_connector::{SinkConnector, SinkSpec, SwitchPlan};
use trunkline_elasticsearch::ElasticsearchConnector;

struct Cluster<'a> {
    server: &'a Server,
    data_streams: bool,
}

impl Cluster<'_> {
    /// Indices are new for each run of the tests: a named server keeps those of the last run.
    fn index(&self, destination: &str) -> String {
        let kind = if self.data_streams { "stream" } else { "index" };
        format!("conformance-{kind}-{}-{}", std::process::id(), destination.to_lowercase())
    }
}

impl SinkFixture for Cluster<'_> {
    fn connector(&self) -> Box<dyn SinkConnector> {
        Box::new(ElasticsearchConnector)
    }

    fn options(&self, destination: &str) -> String {
        let key = if self.data_streams { "data_stream" } else { "index" };
        format!("url = \"http://{}\"\n{key} = \"{}\"", self.server.address, self.index(destination))
    }

    fn bad_options(&self) -> Vec<&'static str> {
        vec!["url = \"search:9200\"", "url = []", "in_flight = 1000", "compression = \"zstd\"", "flush = \"1s\""]
    }

    fn bad_values(&self) -> Vec<Option<Vec<u8>>> {
        let values: [&[u8]; 15] = [
            b"[1]",
            b"17",
            b"null",
            b"\"text\"",
            b"",
            b" \n",
            b"{\"number\":",
            b"{\"number\":1} x",
            b"{\"number\":1}{\"number\":2}",
            b"{\"text\":\"\xff\xfe\"}",
            // The server finds what a walk over the structure does not.
            b"{\"text\":tru}",
            b"{\"text\":\"\\q\"}",
            b"{\"number\":01}",
            b"{\"number\":{\"a\":1}}",
            b"{\"number\":1,\"number\":2}",
        ];
        values.iter().map(|value| Some(value.to_vec())).chain([None]).collect()
    }

    fn rows(&self, destination: &str) -> BTreeMap<i32, Vec<i64>> {
        let mut rows: BTreeMap<i32, Vec<i64>> = BTreeMap::new();
        for (_, _, document) in self.server.documents(&self.index(destination), &["partition", "number"]) {
            let number = |name: &str| document[name].as_i64().unwrap();
            rows.entry(number("partition") as i32).or_default().push(number("number"));
        }
        rows
    }
}

/// All checks of one server, one after the other: two servers at once need much memory.
fn check_server(name: &str) {
    let Some(server) = Server::find(name) else { return };
    the_fake_server_answers_as_the_real_one(&server);
    check_idempotent_sink(&Cluster { server: &server, data_streams: false });
    let template = json!({"index_patterns": ["conformance-stream-*"], "data_stream": {}, "priority": 200});
    server.call("PUT", "/_index_template/conformance", &template.to_string());
    check_idempotent_sink(&Cluster { server: &server, data_streams: true });
    older_versions_never_overwrite_newer_ones(&server);
    blocked_indices_are_retried(&server);
    missing_things_are_reported(&server);
    updates_merge_fields(&server);
    binlog_positions_decide(&server);
    templates_are_never_replaced_by_older_ones(&server);
    prerequisites_are_checked(&server);
    options_generate_a_template(&server);
    schemas_decide_field_types(&server);
    documents_are_counted_by_offset(&server);
    an_alias_moves_to_a_shadow_that_was_compared(&server);
}

#[test]
fn opensearch_passes_the_suite() {
    check_server("opensearch");
}

#[test]
fn elasticsearch_passes_the_suite() {
    check_server("elasticsearch");
}

fn event(op: &str, row: &str) -> String {
    format!("{{\"before\":null,\"after\":{row},\"source\":{{}},\"op\":\"{op}\"}}")
}

fn older_versions_never_overwrite_newer_ones(server: &Server) {
    let setup = Setup::new();
    let index = format!("rows-{}", std::process::id());
    let sink = setup.open(&format!("url = \"http://{}\"\nindex = \"{index}\"\ntimestamp = \"at\"", server.address));
    let key = |id: i64| format!("{{\"id\":{id}}}");
    let row = |id: i64, name: &str| format!("{{\"id\":{id},\"name\":\"{name}\",\"at\":\"2026-03-01T00:00:00Z\"}}");
    let (one, two, three) = (key(1), key(2), key(3));
    let created = [event("c", &row(1, "a")), event("c", &row(2, "b")), event("r", &row(3, "c"))];
    let (updated, deleted) = (event("u", &row(1, "a2")), event("d", "null"));
    let records = [
        (10, Some(one.as_str()), Some(created[0].as_str())),
        (11, Some(&two), Some(&created[1])),
        (12, Some(&three), Some(&created[2])),
        (13, Some(&one), Some(&updated)),
        (14, Some(&two), Some(&deleted)),
        (15, Some(&two), None),
    ];
    // The newest first, then everything, then a part again: as retries with several deliveries in
    // flight may do.
    for part in [&records[3..], &records[..], &records[..3], &records[1..4]] {
        let mut delivery = delivery(part);
        sink.deliver(&mut delivery).unwrap();
        assert!(rejections(&delivery).is_empty());
        let found = server.documents(&index, &["id"]);
        let names: Vec<_> =
            found.iter().map(|(id, version, row)| (id.as_str(), *version, row["name"].as_str().unwrap())).collect();
        let newest = [("1", 13, "a2"), ("3", 12, "c")];
        assert!(names == newest || (names == newest[..1] && part.len() == 3), "{names:?}");
        assert_eq!(found[0].2["@timestamp"], "2026-03-01T00:00:00Z");
    }
}

fn blocked_indices_are_retried(server: &Server) {
    let setup = Setup::new();
    let index = format!("blocked-{}", std::process::id());
    let sink = setup.open(&format!("url = \"http://{}\"\nindex = \"{index}\"", server.address));
    sink.deliver(&mut numbered(0..3)).unwrap();
    let settings = format!("/{index}/_settings");
    server.call("PUT", &settings, r#"{"index.blocks.read_only_allow_delete":true}"#);
    let mut delivery = numbered(2..5);
    let error = sink.deliver(&mut delivery).unwrap_err();
    assert_eq!((error.code, pending(&delivery)), ("elasticsearch.index_blocked", vec![2, 3, 4]), "{error}");
    server.call("PUT", &settings, r#"{"index.blocks.read_only_allow_delete":null}"#);
    server.call("POST", &format!("/{index}/_close"), "");
    let error = sink.deliver(&mut delivery).unwrap_err();
    assert_eq!((error.code, pending(&delivery)), ("elasticsearch.index_closed", vec![2, 3, 4]), "{error}");
    server.call("POST", &format!("/{index}/_open"), "");
    // The shards of an opened index need a moment.
    deliver_within(sink.as_ref(), &mut delivery, 20);
    assert_eq!(server.documents(&index, &["n"]).len(), 5);
}

fn missing_things_are_reported(server: &Server) {
    let setup = Setup::new();
    let url = format!("url = \"http://{}\"\n", server.address);
    server.call("PUT", "/_cluster/settings", r#"{"persistent":{"action.auto_create_index":"false"}}"#);
    let sink = setup.open(&format!("{url}index = \"missing-{}\"", std::process::id()));
    let mut delivery = numbered(0..2);
    let error = sink.deliver(&mut delivery).unwrap_err();
    assert_eq!((error.code, pending(&delivery)), ("elasticsearch.index_missing", vec![0, 1]), "{error}");
    server.call("PUT", "/_cluster/settings", r#"{"persistent":{"action.auto_create_index":"true"}}"#);
    deliver_within(sink.as_ref(), &mut delivery, 3);

    // The node of Elasticsearch that the tests start has no handlers for its version, data streams
    // and ingest pipelines.
    if http(&server.address, "GET", "/", "").0 == 200 {
        let prefix = setup.try_open(&url.replace("\"\n", "/wrong/path\"\nindex = \"a\"\n")).err().unwrap();
        assert_eq!(prefix.code, "elasticsearch.not_a_search_server", "{prefix}");
        let stream =
            setup.try_open(&format!("{url}data_stream = \"untemplated-{}\"", std::process::id())).err().unwrap();
        assert_eq!(stream.code, "elasticsearch.no_data_stream_template", "{stream}");
        assert!(stream.message().contains("PUT _index_template/untemplated-"), "{stream}");
        let pipeline = setup.try_open(&format!("{url}index = \"a\"\npipeline = \"none\"")).err().unwrap();
        assert_eq!(pipeline.code, "elasticsearch.pipeline_missing", "{pipeline}");
    }
}

fn updates_merge_fields(server: &Server) {
    let (setup, index) = (Setup::new(), format!("merged-{}", std::process::id()));
    let options =
        format!("url = \"http://{}\"\nindex = \"{index}\"\nmode = \"update\"\nid = \"key\"\n", server.address);
    let sink = setup.open(&options);
    let records = [(1, Some("k"), Some("{\"a\":1,\"b\":1}")), (2, Some("k"), Some("{\"b\":2}")), (3, Some("x"), None)];
    for _ in 0..2 {
        sink.deliver(&mut delivery(&records)).unwrap();
    }
    let merged: Vec<_> = server.documents(&index, &["a"]).into_iter().map(|(id, _, row)| (id, row)).collect();
    assert_eq!(merged, [("k".to_owned(), json!({"a": 1, "b": 2}))]);
    let existing = setup.open(&format!("{options}upsert = false\n"));
    let mut missing = delivery(&[(4, Some("none"), Some("{\"a\":1}")), (5, Some("k"), Some("{\"a\":5}"))]);
    existing.deliver(&mut missing).unwrap();
    assert_eq!(rejections(&missing), [(4, "elasticsearch.document_missing".to_owned())]);
    assert_eq!(server.documents(&index, &["a"])[0].2["a"], 5);
    // An index in place of an alias.
    let alias =
        setup.open(&format!("url = \"http://{}\"\nindex = \"{index}\"\nrequire_alias = true\n", server.address));
    let error = alias.deliver(&mut numbered(0..1)).unwrap_err();
    assert_eq!(error.code, "elasticsearch.alias_missing", "{error}");
    server.call(
        "POST",
        "/_aliases",
        &json!({"actions": [{"add": {"index": index, "alias": format!("{index}-alias")}}]}).to_string(),
    );
    let alias = format!(
        "url = \"http://{}\"\nindex = \"{index}-alias\"\nrequire_alias = true\nid = \"none\"\n",
        server.address
    );
    setup.open(&alias).deliver(&mut numbered(0..2)).unwrap();
    assert_eq!(server.documents(&index, &["n"]).len(), 3);
}

fn binlog_positions_decide(server: &Server) {
    let (setup, index) = (Setup::new(), format!("positions-{}", std::process::id()));
    let options = format!("url = \"http://{}\"\nindex = \"{index}\"\nversion = \"source\"\n", server.address);
    let sink = setup.open(&options);
    let event = |op: &str, pos: i64, n: i64| {
        let after = if op == "d" { "null".to_owned() } else { format!("{{\"n\":{n}}}") };
        format!(r#"{{"before":{{}},"after":{after},"source":{{"file":"b.000007","pos":{pos}}},"op":"{op}"}}"#)
    };
    let values = [event("r", 100, 1), event("u", 200, 2), event("u", 200, 3), event("d", 150, 0), event("d", 300, 0)];
    let k = Some("k");
    // The last of several changes at one position stays, and an older delete has no effect.
    for _ in 0..2 {
        let records = [
            (1, k, Some(values[0].as_str())),
            (2, k, Some(&values[1])),
            (3, k, Some(&values[2])),
            (4, k, Some(&values[3])),
        ];
        sink.deliver(&mut delivery(&records)).unwrap();
        let found = server.documents(&index, &["n"]);
        assert_eq!((found.len(), &found[0].2["n"]), (1, &json!(3)));
    }
    // The delete and its tombstone.
    sink.deliver(&mut delivery(&[(5, k, Some(&values[4])), (6, k, None)])).unwrap();
    assert!(server.documents(&index, &["n"]).is_empty());
    // A replay wins with a higher epoch.
    setup.open(&format!("{options}version_epoch = 1\n")).deliver(&mut delivery(&[(7, k, Some(&values[0]))])).unwrap();
    assert_eq!(server.documents(&index, &["n"])[0].2["n"], 1);
}

fn templates_are_never_replaced_by_older_ones(server: &Server) {
    let (setup, name) = (Setup::new(), format!("shipped-{}", std::process::id()));
    let options = |version: &str, replicas: u32| {
        let body = json!({"index_patterns": [format!("{name}-*")], "priority": 7, "template": {"settings": {"number_of_replicas": replicas}}});
        let mut body = body;
        if let Ok(version) = version.parse::<i64>() {
            body["version"] = version.into();
        }
        format!(
            "url = \"http://{}\"\nindex = \"a\"\ntemplate = {{ name = \"{name}\", inline = '{body}' }}\n",
            server.address
        )
    };
    let installed = || {
        let found = server.call("GET", &format!("/_index_template/{name}"), "");
        let template = &found["index_templates"][0]["index_template"];
        (
            template["version"].as_i64(),
            template["template"]["settings"]["index"]["number_of_replicas"].as_str().unwrap().to_owned(),
        )
    };
    let replicas = |count: &str| count.to_owned();
    for (version, count, expected) in [
        ("none", 1, (None, replicas("1"))),
        ("none", 2, (None, replicas("1"))),
        ("2", 3, (Some(2), replicas("3"))),
        ("1", 4, (Some(2), replicas("3"))),
        ("2", 5, (Some(2), replicas("3"))),
        ("3", 6, (Some(3), replicas("6"))),
    ] {
        setup.open(&options(version, count));
        assert_eq!(installed(), expected, "after version {version}");
    }
    let refused = options("9", 0).replace("number_of_replicas", "no_such_setting");
    assert_eq!(setup.try_open(&refused).err().unwrap().code, "elasticsearch.template_refused");
}

fn prerequisites_are_checked(server: &Server) {
    let setup = Setup::new();
    let options = |option: &str| format!("url = \"http://{}\"\n{option}\n", server.address);
    let codes =
        |option: &str| -> Vec<&str> { setup.preflight(&options(option)).iter().map(|issue| issue.code).collect() };
    let (index, id) = (format!("checked-{}", std::process::id()), std::process::id());
    assert_eq!(codes(&format!("index = \"{index}\"")), [""; 0]);
    server.call("PUT", "/_cluster/settings", r#"{"persistent":{"action.auto_create_index":"-checked-*,+*"}}"#);
    assert_eq!(codes(&format!("index = \"{index}\"")), ["elasticsearch.index_missing"]);
    assert_eq!(codes("index = \"checked-{day}\""), ["elasticsearch.index_missing"]);
    assert_eq!(codes("index = \"other-{day}\""), [""; 0]);
    // The fix that is printed.
    server.call("PUT", &format!("/{index}"), "");
    assert_eq!(codes(&format!("index = \"{index}\"")), [""; 0]);
    server.call("PUT", &format!("/{index}/_settings"), r#"{"index.blocks.write":true}"#);
    assert_eq!(codes(&format!("index = \"{index}\"")), ["elasticsearch.index_blocked"]);
    server.call("PUT", &format!("/{index}/_settings"), r#"{"index.blocks.write":null}"#);
    assert_eq!(codes(&format!("index = \"{index}\"\nrequire_alias = true")), ["elasticsearch.alias_missing"]);
    assert!(server.documents(&index, &["_doc"]).is_empty(), "a check writes no document");
    server.call("PUT", "/_cluster/settings", r#"{"persistent":{"action.auto_create_index":"true"}}"#);
    // The node of Elasticsearch that the tests start has no data streams and pipelines to ask for.
    if http(&server.address, "GET", "/", "").0 != 200 {
        return;
    }
    assert_eq!(codes(&format!("data_stream = \"checked-stream-{id}\"")), ["elasticsearch.no_data_stream_template"]);
    let stream = format!("conformance-stream-checked-{id}");
    assert_eq!(codes(&format!("data_stream = \"{stream}\"")), [""; 0]);
    setup.open(&options(&format!("data_stream = \"{stream}\""))).deliver(&mut numbered(0..1)).unwrap();
    assert_eq!(codes(&format!("data_stream = \"{stream}\"")), [""; 0]);
    assert_eq!(codes(&format!("index = \"{stream}\"")), ["elasticsearch.is_data_stream"]);
    assert_eq!(server.documents(&stream, &["n"]).len(), 1, "a check writes no document");
    assert_eq!(codes("index = \"other\"\npipeline = \"none\""), ["elasticsearch.pipeline_missing"]);
}

fn options_generate_a_template(server: &Server) {
    let (setup, name) = (Setup::new(), format!("generated-{}", std::process::id()));
    let options = |template: &str| {
        format!(
            "url = \"http://{}\"\nindex = \"{name}-{{n}}\"\ntemplate = {{ name = \"{name}\", {template} }}",
            server.address
        )
    };
    let setting = |index: &str, setting: &str| {
        let found = server.call("GET", &format!("/{index}/_settings?flat_settings=true"), "");
        found[index]["settings"][setting].as_str().unwrap_or_default().to_owned()
    };
    let sink = setup.open(&options("shards = 2, replicas = 0, refresh_interval = \"7s\""));
    sink.deliver(&mut numbered(1..2)).unwrap();
    let first = format!("{name}-1");
    assert_eq!(setting(&first, "index.number_of_shards"), "2");
    assert_eq!(setting(&first, "index.number_of_replicas"), "0");
    assert_eq!(setting(&first, "index.refresh_interval"), "7000ms");
    // The template is replaced after the options change.
    setup.open(&options("shards = 3")).deliver(&mut numbered(2..3)).unwrap();
    assert_eq!(setting(&format!("{name}-2"), "index.number_of_shards"), "3");

    // An alias that rolls over. Opening the sink again changes nothing.
    let alias = format!("rolling-{}", std::process::id());
    let options = format!(
        "url = \"http://{}\"\nindex = \"{alias}\"\nrequire_alias = true\ntemplate = {{ rollover = true, shards = 2 }}",
        server.address
    );
    assert!(setup.preflight(&options).is_empty());
    for first in [0, 3] {
        setup.open(&options).deliver(&mut numbered(first..first + 3)).unwrap();
    }
    assert_eq!(server.documents(&alias, &["n"]).len(), 6);
    assert_eq!(setting(&format!("{alias}-000001"), "index.number_of_shards"), "2");
}

fn schemas_decide_field_types(server: &Server) {
    let (setup, index) = (Setup::new(), format!("typed-{}", std::process::id()));
    let field = |name: &str, kind: &str| json!({"name": name, "type": kind, "nullable": true});
    let fields =
        [field("n", "int64"), field("code", "utf8"), field("price", "decimal(10,2)"), field("at", "timestamp(us)")];
    let (old, new) = (setup.publish(&json!(fields[..3])), setup.publish(&json!(fields)));
    let options = |template: &str| {
        format!(
            "url = \"http://{}\"\nindex = \"{index}\"\ntemplate = {{ field_types = \"schema\"{template} }}",
            server.address
        )
    };
    let types = || {
        let found = server.call("GET", &format!("/{index}/_mapping"), "");
        let properties = &found[&index]["mappings"]["properties"];
        ["n", "code", "price", "at"].map(|name| properties[name]["type"].as_str().unwrap_or_default().to_owned())
    };
    let sink = setup.open(&options(""));
    sink.deliver(&mut with_schema(&old, 0, &[r#"{"n":1,"code":"17","price":"1.50"}"#])).unwrap();
    assert_eq!(types(), ["long", "keyword", "keyword", ""]);
    sink.deliver(&mut with_schema(
        &new,
        1,
        &[r#"{"n":2,"code":"18","price":"2.50","at":"2026-03-01T00:00:00.123456"}"#],
    ))
    .unwrap();
    assert_eq!(types(), ["long", "keyword", "keyword", "date"]);
    // Another task, and an index that exists: nothing changes.
    setup
        .open(&options(", decimals = \"double\""))
        .deliver(&mut with_schema(&new, 2, &[r#"{"n":3,"price":"3.50"}"#]))
        .unwrap();
    assert_eq!(types(), ["long", "keyword", "keyword", "date"]);
    assert_eq!(server.documents(&index, &["n"]).len(), 3);

    // The next index of an alias gets the fields from the template.
    let alias = format!("{index}-rolling");
    let options = format!(
        "url = \"http://{}\"\nindex = \"{alias}\"\ntemplate = {{ rollover = true, field_types = \"schema\" }}",
        server.address
    );
    setup.open(&options).deliver(&mut with_schema(&new, 0, &[r#"{"n":1}"#])).unwrap();
    server.call("POST", &format!("/{alias}/_rollover"), "");
    let found = server.call("GET", &format!("/{alias}-000002/_mapping"), "");
    assert_eq!(found[format!("{alias}-000002")]["mappings"]["properties"]["at"]["type"], "date");
}

/// The status of requests and of each item.
fn the_fake_server_answers_as_the_real_one(server: &Server) {
    let (fake, index) = (Fake::start(), format!("compared-{}", std::process::id()));
    let document = |action: &str, id: &str, more: &str, n: i64| {
        format!("{{\"{action}\":{{\"_index\":\"{index}\",\"_id\":\"{id}\"{more}}}}}\n{{\"n\":{n}}}\n")
    };
    let delete = |id: &str, more: &str| format!("{{\"delete\":{{\"_index\":\"{index}\",\"_id\":\"{id}\"{more}}}}}\n");
    let version = |kind: &str, version: i64| format!(",\"version\":{version},\"version_type\":\"{kind}\"");
    let requests = [
        // New, again, and created twice.
        document("index", "a", "", 1) + &document("index", "a", "", 2) + &document("create", "a", "", 3),
        document("create", "b", "", 4) + &document("create", "b", "", 5),
        // A newer, an older and the same version.
        [5, 4, 5, 6].map(|n| document("index", "c", &version("external", n), n)).concat(),
        [5, 5, 4].map(|n| document("index", "d", &version("external_gte", n), n)).concat(),
        // Deletes: of a document, of none, with versions, and an older version after a delete.
        delete("a", "") + &delete("none", "") + &document("create", "a", "", 6),
        delete("c", &version("external", 5)) + &delete("c", &version("external", 7)),
        document("index", "c", &version("external", 6), 6) + &document("index", "c", &version("external", 8), 8),
        delete("e", &version("external", 3)) + &document("index", "e", &version("external", 3), 3),
    ];
    for body in requests {
        let statuses = |address: &str| {
            let (status, answer) = http(address, "POST", "/_bulk?refresh=true", &body);
            let items: Vec<_> = answer["items"]
                .as_array()
                .unwrap()
                .iter()
                .map(|item| item.as_object().unwrap().values().next().unwrap()["status"].as_u64().unwrap())
                .collect();
            (status, items)
        };
        assert_eq!(statuses(&fake.address), statuses(&server.address), "{body}");
    }
    // An action line that a server refuses: nothing of the request is written.
    fake.refuse_requests_with(77);
    let body = document("index", "f", "", 70) + &document("index", "g", ",\"unknown\":1", 77);
    for address in [&fake.address, &server.address] {
        assert_eq!(http(address, "POST", "/_bulk?refresh=true", &body).0, 400, "{address}");
    }
    let written: Vec<i64> =
        server.documents(&index, &["n"]).iter().map(|(.., document)| document["n"].as_i64().unwrap()).collect();
    assert_eq!(written, fake.numbers());
    assert!(!written.contains(&70));
}

fn documents_are_counted_by_offset(server: &Server) {
    let (setup, index) = (Setup::new(), format!("counted-{}", std::process::id()));
    let options = |more: &str| format!("url = \"http://{}\"\nindex = \"{index}{more}", server.address);
    let by_offset = options("\"\n");
    assert!(setup.count(&by_offset, 100).unwrap().partitions.is_empty(), "no index has no documents");
    let sink = setup.open(&options("-{n}\"\n"));
    sink.deliver(&mut numbered(3..5)).unwrap();
    let sink = setup.open(&by_offset);
    sink.deliver(&mut numbered(5..12_000)).unwrap();
    let id = "web+3+7000";
    server.call("DELETE", &format!("/{index}/_doc/{}", id.replace('+', "%2B")), "");
    let counts = setup.count(&by_offset, 100_000).unwrap();
    let found = &counts.partitions[0];
    assert_eq!((found.rows, found.offsets, found.extremes), (11_994, 11_994, (5, 11_999)));
    assert_eq!((found.gaps.as_slice(), counts.unnamed), (&[(7_000, 7_000)][..], 0));
    // The names of a template.
    let all = setup.count(&options("-{n}\"\n"), 100_000).unwrap();
    assert_eq!((all.partitions[0].rows, all.partitions[0].extremes), (2, (3, 4)));
    let keyed = format!("{index}-keyed");
    let options = format!("url = \"http://{}\"\nindex = \"{keyed}\"\n", server.address);
    setup.open(&options).deliver(&mut delivery(&[(1, Some("k"), Some(&event("c", "{\"n\":1}")))])).unwrap();
    let refused = setup.count(&options, 10).unwrap_err();
    assert_eq!(refused.code, "audit.unsupported", "{refused}");
    assert!(setup.count(&format!("{options}id = \"key\"\n"), 10).is_err());
}

/// A shadow is compared with the live index, and takes its place behind the alias.
fn an_alias_moves_to_a_shadow_that_was_compared(server: &Server) {
    let setup = Setup::new();
    let options = |index: &str| format!("url = \"http://{}\"\nindex = \"{index}\"\n", server.address);
    let topics = [Arc::from("web")];
    let (live, shadow, plain) =
        (setup.spec(&options("web")), setup.spec(&options("web-v2")), setup.spec(&options("web-v1")));
    let plan = |from: &dyn SinkSpec, to: &dyn SinkSpec| from.plan_switch(&topics, to, setup.runtime());
    http(&server.address, "DELETE", "/web-v1,web-v2?ignore_unavailable=true", "");
    server.call("PUT", "/web-v1", r#"{"aliases":{"web":{"is_write_index":true}}}"#);
    let missing = plan(live.as_ref(), shadow.as_ref()).unwrap_err();
    assert_eq!(missing.code, "elasticsearch.missing_index", "{missing}");
    setup.open(&options("web")).deliver(&mut numbered(0..1_500)).unwrap();
    setup.open(&options("web-v2")).deliver(&mut numbered(0..1_200)).unwrap();
    server.call("PUT", "/web-v2/_doc/extra", r#"{"list":[1],"text":"x"}"#);

    let rows = |of: &dyn SinkSpec, other: &dyn SinkSpec| {
        let mut rows = Vec::new();
        let read = of.read_contents(&BTreeMap::new(), other, setup.runtime(), &mut |index, row| {
            rows.push(format!("{index} {row:?}"));
            Ok(())
        });
        assert_eq!(read.unwrap(), 0);
        rows.sort();
        rows
    };
    let (of_live, of_shadow) = (rows(live.as_ref(), shadow.as_ref()), rows(shadow.as_ref(), live.as_ref()));
    assert_eq!((of_live.len(), of_shadow.len()), (1_500, 1_201));
    assert!(of_live.iter().all(|row| row.starts_with("web-v1 [(\"_id\", ")), "{}", of_live[0]);
    let extra = r#"web-v2 [("_id", "extra"), ("list", "[1]"), ("text", "x")]"#;
    assert!(of_shadow.iter().any(|row| row == extra), "{:?}", of_shadow.first());

    assert!(matches!(plan(plain.as_ref(), shadow.as_ref()).unwrap(), SwitchPlan::ByHand(_)), "it is an index");
    let Ok(SwitchPlan::Steps { effect, .. }) = plan(live.as_ref(), shadow.as_ref()) else { panic!("no steps") };
    assert!(effect.contains("web-v2 instead of web-v1"), "{effect}");
    for _ in 0..2 {
        live.switch(&topics, shadow.as_ref(), "run", setup.runtime()).unwrap();
        let alias = server.call("GET", "/_alias/web", "");
        assert_eq!(alias, json!({"web-v2": {"aliases": {"web": {"is_write_index": true}}}}));
    }
    assert_eq!(rows(live.as_ref(), plain.as_ref()).len(), 1_201);
}
