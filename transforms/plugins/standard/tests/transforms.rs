//! Tests each transform with the SDK's mock host.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use serde_json::{Value, json};
use standard::Standard;
use trunkline_plugin::testing::{Input, MockHost, Outcome, Output};

fn run(config: Value, inputs: &[Input]) -> Vec<Outcome> {
    MockHost::<Standard>::start(config).unwrap_or_else(|error| panic!("{error}")).process(inputs).unwrap()
}

/// The outcome of a value: its new text, `PORT: text` for another port, `drop`, or the rejection.
fn outcome(config: &Value, value: &str) -> String {
    shown(&run(config.clone(), &[Input::value(value)])[0])
}

fn shown(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Passed(output) => match output.port.as_str() {
            "default" => output.text().unwrap_or("null").to_owned(),
            port => format!("{port}: {}", output.text().unwrap_or("null")),
        },
        Outcome::Dropped => "drop".to_owned(),
        Outcome::Emitted(outputs) => {
            outputs.iter().map(|output| output.text().unwrap_or("null")).collect::<Vec<_>>().join(" ")
        }
        Outcome::Rejected { code, message } => format!("{code}: {message}"),
    }
}

fn rejected_config(config: Value) -> (Option<String>, String) {
    let error = MockHost::<Standard>::start(config).unwrap_err();
    (error.key, error.message)
}

/// The result of an expression for a value, as JSON.
fn computed(expression: &str, value: &str) -> String {
    let outcome = outcome(&json!({ "project": { "fields": [], "compute": { "x": expression } } }), value);
    outcome.strip_prefix("{\"x\":").and_then(|rest| rest.strip_suffix('}')).map_or(outcome.clone(), str::to_owned)
}

const ORDER: &str = r#"{"id":7,"amount":12.50,"big":12345678901234567890.10,"text":"0.1","name":"Ada Lovelace","items":[{"n":1},{"n":2}],"tags":["a","b"],"none":null,"yes":true,"at":{"city":"Ulm"}}"#;

#[test]
fn expressions_are_exact_and_follow_cel() {
    let cases = [
        ("value.amount", "12.50"),
        ("value.big", "12345678901234567890.10"),
        ("value.big + 0.05", "12345678901234567890.15"),
        ("0.1 + 0.2", "0.3"),
        ("decimal(value.text) + 0.2 == 0.3", "true"),
        ("value.amount * 3", "37.50"),
        ("7 / 2", "3.5"),
        // Berlin to Paris, and a point to itself.
        (
            "geo.distance(52.52, 13.405, 48.8566, 2.3522) / 1000 > 877 && geo.distance(52.52, 13.405, 48.8566, 2.3522) < 878000",
            "true",
        ),
        ("geo.distance(48.4, 9.99, 48.4, 9.99)", "0.0"),
        ("-7 % 4", "-3"),
        ("value.amount > 12 && value.amount <= 12.5", "true"),
        ("value.amount == 12.5 ? 'same' : 'other'", "\"same\""),
        ("value.name.startsWith('Ada') || value.missing == 1", "true"),
        ("value.missing == 1 || value.yes", "true"),
        ("!has(value.missing) && has(value.at.city)", "true"),
        ("value.name.matches('^[A-Z][a-z]+ ')", "true"),
        ("value.name.lowerAscii() + '!'", "\"ada lovelace!\""),
        ("value.name.split(' ')[1]", "\"Lovelace\""),
        ("value.name.substring(0, 3)", "\"Ada\""),
        ("value.name.indexOf('L')", "4"),
        ("size(value.name) + value.items.size()", "14"),
        ("value.at.city in ['Ulm', 'Bonn']", "true"),
        ("'city' in value.at", "true"),
        ("value.items.exists(item, item.n == 2)", "true"),
        ("value.items.all(item, item.n > 1)", "false"),
        ("value.items.exists_one(item, item.n > 1)", "true"),
        ("value.items.map(item, item.n * 10)", "[10,20]"),
        ("value.items.filter(item, item.n > 1)", "[{\"n\":2}]"),
        ("value.items.map(item, value.tags.map(tag, tag + string(item.n)))", "[[\"a1\",\"b1\"],[\"a2\",\"b2\"]]"),
        ("value.tags.join('-')", "\"a-b\""),
        ("value.tags + ['c']", "[\"a\",\"b\",\"c\"]"),
        ("value.tags == ['a', 'b']", "true"),
        ("{'id': value.id, 'city': value.at.city}", "{\"id\":7,\"city\":\"Ulm\"}"),
        ("value.none == null", "true"),
        ("value.id == '7'", "false"),
        ("string(value.id) + 'x'", "\"7x\""),
        ("int(value.amount)", "12"),
        ("math.round(value.amount / 7, 2)", "1.79"),
        ("math.greatest(1, value.amount, 3)", "12.50"),
        ("math.abs(-1.5)", "1.5"),
        ("value['id']", "7"),
        ("row.id + 1", "8"),
    ];
    for (expression, expected) in cases {
        assert_eq!(computed(expression, ORDER), expected, "{expression}");
    }
}

#[test]
fn expressions_that_fail_say_what_is_wrong() {
    let cases = [
        ("value.missing", "there is no member `missing`; test it with has(..)"),
        ("value.text > 1", "a text and a number cannot be compared; convert the text with decimal(..)"),
        ("value.text * 2", "a text is not a number; convert it with decimal(..)"),
        ("1 / 0", "the divisor is 0"),
        ("value.tags[5]", "the list has 2 items; the index is out of range"),
        ("value.id.city", "a number has no member `city`"),
        ("decimal(value.name)", "the text \"Ada Lovelace\" is not a number of up to 38 digits"),
        ("value.items.all(item, item.missing)", "there is no member `missing`; test it with has(..)"),
    ];
    for (expression, problem) in cases {
        let expected = format!("project.failed: the record cannot be projected: `compute.x`: {problem}");
        assert_eq!(computed(expression, ORDER), expected, "{expression}");
    }
}

#[test]
fn errors_in_expressions_have_a_column() {
    let error = |condition: &str| rejected_config(json!({ "filter": { "condition": condition } }));
    let cases = [
        ("value.a > ", 11),
        ("value.amount == 1 && amount > 3", 22),
        ("size(value.a) > 1 && lenght(value.b) == 2", 22),
        ("value.a.matches('(')", 9),
        ("value.a.matches(value.b)", 9),
        ("size() > 1", 1),
    ];
    for (condition, column) in cases {
        let (key, message) = error(condition);
        assert_eq!(key.as_deref(), Some("condition"));
        assert!(message.starts_with(&format!("column {column}: ")), "{condition}: {message}");
    }
    assert!(error("amount > 3").1.contains("a member of the value is `value.amount`"));
}

#[test]
fn filter_passes_records_that_meet_the_condition() {
    let config = json!({ "filter": { "condition": "value.amount >= 100 && headers.source == 'web'" } });
    let web = |value: &str| Input::value(value).header("source", "web");
    let outcomes = run(config, &[web(r#"{"amount":100.0}"#), web(r#"{"amount":99.99}"#), web("{}"), Input::default()]);
    let outcomes: Vec<String> = outcomes.iter().map(shown).collect();
    let missing = "filter.condition: the condition has no value: there is no member `amount`; test it with has(..)";
    assert_eq!(outcomes, [r#"{"amount":100.0}"#, "drop", missing, "null"]);
    for (tombstones, expected) in [("drop", "drop"), ("test", "drop"), ("keep", "null")] {
        let config = json!({ "filter": { "condition": "value.a == 1", "tombstones": tombstones } });
        assert_eq!(shown(&run(config, &[Input::default()])[0]), expected);
    }
    let by_key = json!({ "filter": { "condition": "key == 'a'", "tombstones": "test" } });
    assert_eq!(shown(&run(by_key, &[Input::default().key("a")])[0]), "null");
}

#[test]
fn project_selects_renames_casts_drops_and_computes() {
    let project = |config: Value, value: &str| outcome(&json!({ "project": config }), value);
    let nested = r#"{"id":1,"customer":{"name":"Ada","mail":"a@b","since":"2020"},"lines":[{"n":1,"x":2}],"z":3}"#;
    assert_eq!(
        project(json!({ "fields": ["id", "customer.name", "lines.n"] }), nested),
        r#"{"id":1,"customer":{"name":"Ada"},"lines":[{"n":1}]}"#
    );
    assert_eq!(project(json!({ "fields": ["customer"] }), r#"{"customer":{"a":1},"b":2}"#), r#"{"customer":{"a":1}}"#);
    assert_eq!(
        project(json!({ "drop": ["customer", "lines.x"], "rename": { "z": "last" } }), nested),
        r#"{"id":1,"lines":[{"n":1}],"last":3}"#
    );
    let casts = json!({ "cast": { "a": "number", "b": "integer", "c": "string", "d": "boolean", "e": "number" } });
    assert_eq!(
        project(casts.clone(), r#"{"a":"007.50","b":"12.9","c":1.50,"d":"true","e":null}"#),
        r#"{"a":7.50,"b":12,"c":"1.50","d":true,"e":null}"#
    );
    assert_eq!(
        project(casts, r#"{"a":"x"}"#),
        "project.failed: the record cannot be projected: `a`: \"x\" is not a number of up to 38 digits"
    );
    let compute = json!({ "compute": { "total": "row.price * row.count", "price": "decimal(row.price)" } });
    assert_eq!(project(compute, r#"{"price":10.10,"count":3}"#), r#"{"count":3,"price":10.10,"total":30.30}"#);
    assert_eq!(project(json!({ "drop": ["a"] }), "[1]").split(':').next(), Some("project.failed"));
}

#[test]
fn project_sets_and_drops_headers() {
    let config = json!({ "project": {
        "headers": { "country": "value.country", "gone": "null", "kept": "headers.old + '!'" },
        "drop_headers": ["old"],
    } });
    let input = |value: &str| Input::value(value).header("old", "1").header("gone", "2").header("other", "3");
    let headers = |outcome: &Outcome| {
        let record = &outcome.passed().unwrap().record;
        record
            .headers
            .iter()
            .map(|(name, value)| format!("{name}={}", String::from_utf8_lossy(value.as_ref().unwrap())))
            .collect::<Vec<_>>()
    };
    let tombstone = Input { value: None, ..input("") };
    let outcomes = run(config, &[input(r#"{"country":"DE"}"#), tombstone, input("{}")]);
    assert_eq!(headers(&outcomes[0]), ["other=3", "country=DE", "kept=1!"]);
    assert_eq!(outcomes[0].passed().unwrap().text(), Some(r#"{"country":"DE"}"#));
    assert_eq!(headers(&outcomes[1]), ["other=3", "kept=1!"]);
    assert!(shown(&outcomes[2]).starts_with("project.failed: the record cannot be projected: `headers.country`: "));
    let both = json!({ "project": { "fields": ["a"], "headers": { "b": "value.b" } } });
    let outcomes = run(both, &[Input::value(r#"{"a":1,"b":2}"#)]);
    assert_eq!((shown(&outcomes[0]), headers(&outcomes[0])), (r#"{"a":1}"#.to_owned(), vec!["b=2".to_owned()]));
}

const UPDATE: &str =
    r#"{"before":{"id":1,"n":1.0},"after":{"id":1,"n":2.0},"source":{"table":"t","ts_ms":5},"op":"u","ts_ms":9}"#;
const DELETE: &str = r#"{"before":{"id":1,"n":1.0},"after":null,"source":{"table":"t"},"op":"d"}"#;

#[test]
fn rows_of_change_events_are_projected() {
    let config = json!({ "project": { "fields": ["n"], "compute": { "twice": "row.n * 2" } } });
    assert_eq!(
        outcome(&config, UPDATE),
        r#"{"before":{"n":1.0,"twice":2.0},"after":{"n":2.0,"twice":4.0},"source":{"table":"t","ts_ms":5},"op":"u","ts_ms":9}"#
    );
    let filter = json!({ "filter": { "condition": "row.n == 2" } });
    assert_eq!((outcome(&filter, UPDATE).as_str(), outcome(&filter, DELETE).as_str()), (UPDATE, "drop"));
}

#[test]
fn route_takes_the_first_port_whose_condition_holds() {
    let config = json!({ "route": {
        "routes": [{ "port": "eu", "when": "value.country in ['DE', 'FR']" }, { "port": "large", "when": "value.n > 5" }],
        "otherwise": "drop",
    } });
    let route = |value: &str| outcome(&config, value);
    assert_eq!(route(r#"{"country":"DE","n":9}"#), r#"eu: {"country":"DE","n":9}"#);
    assert_eq!(route(r#"{"country":"US","n":9}"#), r#"large: {"country":"US","n":9}"#);
    assert_eq!(route(r#"{"country":"US","n":1}"#), "drop");
    assert!(route("{}").starts_with("route.condition: "));
    let (key, message) = rejected_config(json!({ "route": { "routes": [{ "port": "a", "when": "valu.x" }] } }));
    assert!(key.as_deref() == Some("routes[0].when") && message.starts_with("column 1: "), "{message}");
    let condition = |text: &str| rejected_config(json!({ "filter": { "condition": text } })).1;
    assert!(condition("value.a + 1").starts_with("is always a number or a text; expected a condition"));
    assert!(condition("'yes'").starts_with("is always a text"));
    assert!(condition("value.a >").starts_with("column 10: the expression ends here, and lacks a value; expected"));
    assert!(condition("value.a &&\n  (valu.b").starts_with("column 21: "), "{}", condition("value.a &&\n  (valu.b"));
    assert!(condition("value.a &&\n  valu.b").starts_with("column 14: there is no variable `valu`"));
    let sum = json!({ "aggregate": { "window": "1m", "aggregates": { "n": " sum( valu.x)" } } });
    assert!(rejected_config(sum).1.starts_with("column 7: there is no variable `valu`"));
    let otherwise = json!({ "route": { "routes": [{ "port": "a", "when": "true" }], "otherwise": "b" } });
    assert_eq!(rejected_config(otherwise).0.as_deref(), Some("otherwise"));
}

#[test]
fn flatten_moves_members_to_the_top() {
    let value = r#"{"a":{"b":{"c":1.50},"d":[1,{"e":2}]},"f":null,"g":{}}"#;
    assert_eq!(outcome(&json!({ "flatten": {} }), value), r#"{"a.b.c":1.50,"a.d":[1,{"e":2}],"f":null}"#);
    let config = json!({ "flatten": { "separator": "_", "arrays": "index" } });
    assert_eq!(outcome(&config, value), r#"{"a_b_c":1.50,"a_d_0":1,"a_d_1_e":2,"f":null}"#);
    assert!(outcome(&config, "1").starts_with("flatten.not_json: "));
    assert_eq!(outcome(&config, r#"{"op":"c","after":{"a":{"b":1}}}"#), r#"{"op":"c","after":{"a_b":1}}"#);
}

#[test]
fn unwrap_envelope_makes_rows_of_change_events() {
    let modes = [
        ("tombstone", r#"{"id":1,"n":2.0}"#, "drop", "null"),
        ("drop", r#"{"id":1,"n":2.0}"#, "drop", "drop"),
        ("delete_to_tombstone", r#"{"id":1,"n":2.0}"#, "null", "drop"),
        ("rewrite", r#"{"id":1,"n":2.0,"__deleted":false}"#, r#"{"id":1,"n":1.0,"__deleted":true}"#, "drop"),
        (
            "rewrite_with_tombstone",
            r#"{"id":1,"n":2.0,"__deleted":false}"#,
            r#"{"id":1,"n":1.0,"__deleted":true}"#,
            "null",
        ),
    ];
    for (mode, update, delete, tombstone) in modes {
        let config = json!({ "unwrap_envelope": { "deletes": mode } });
        let outcomes = run(config, &[Input::value(UPDATE), Input::value(DELETE), Input::default()]);
        let outcomes: Vec<String> = outcomes.iter().map(shown).collect();
        assert_eq!(outcomes, [update, delete, tombstone], "{mode}");
    }
    let added =
        json!({ "unwrap_envelope": { "add_fields": ["op", "table", "source.ts_ms", "deleted"], "prefix": "_" } });
    assert_eq!(
        outcome(&added, UPDATE),
        r#"{"id":1,"n":2.0,"_op":"u","_table":"t","_source_ts_ms":5,"_deleted":false}"#
    );
    assert!(outcome(&added, r#"{"id":1}"#).starts_with("unwrap_envelope.not_an_event: "));
    let with_schema = format!(r#"{{"schema":{{"type":"struct"}},"payload":{UPDATE}}}"#);
    assert_eq!(outcome(&json!({ "unwrap_envelope": {} }), &with_schema), r#"{"id":1,"n":2.0}"#);
    let keep = json!({ "unwrap_envelope": { "others": "keep" } });
    assert_eq!(outcome(&keep, r#"{"id":1}"#), r#"{"id":1}"#);
}

#[test]
fn explode_makes_a_record_of_each_item() {
    let value = r#"{"id":1,"items":[{"sku":"a"},{"sku":"b","id":2}]}"#;
    let explode = |config: Value, value: &str| outcome(&json!({ "explode": config }), value);
    assert_eq!(
        explode(json!({ "field": "items", "into": "item", "index": "position" }), value),
        r#"{"id":1,"item":{"sku":"a"},"position":0} {"id":1,"item":{"sku":"b","id":2},"position":1}"#
    );
    assert_eq!(explode(json!({ "field": "items", "merge": true }), value), r#"{"id":1,"sku":"a"} {"sku":"b","id":2}"#);
    for empty in [r#"{"items":[]}"#, "{}", r#"{"items":null}"#] {
        assert_eq!(explode(json!({ "field": "items" }), empty), empty);
        assert_eq!(explode(json!({ "field": "items", "empty": "drop" }), empty), "drop");
    }
    assert!(explode(json!({ "field": "id" }), value).starts_with("explode.not_array: "));
}

#[test]
fn timestamps_are_converted() {
    let converted = |config: Value, value: &str| outcome(&json!({ "timestamp": config }), value);
    let cases = [
        (json!({ "field": "t", "from": "unix_ms", "to": "iso" }), "1700000000123", "\"2023-11-14T22:13:20.123Z\""),
        (json!({ "field": "t", "from": "unix_s", "to": "unix_ms" }), "1700000000.5", "1700000000500"),
        (json!({ "field": "t", "to": "unix_ns" }), "\"2023-11-14T22:13:20.123456789Z\"", "1700000000123456789"),
        (json!({ "field": "t", "to": "unix_s", "zone": "+02:00" }), "\"2023-11-15T00:13:20\"", "1700000000"),
        (json!({ "field": "t", "from": "%d.%m.%Y", "to": "%Y-%m-%d" }), "\"14.11.2023\"", "\"2023-11-14\""),
        (
            json!({ "field": "t", "from": "unix_s", "to": "iso", "zone": "-03:30" }),
            "0",
            "\"1969-12-31T20:30:00-03:30\"",
        ),
        (json!({ "field": "t", "from": "unix_ms", "to": "unix_s" }), "-1", "-1"),
        (json!({ "field": "t", "to": "unix_s" }), "null", "null"),
    ];
    for (config, value, expected) in cases {
        let shown = format!("{config}");
        assert_eq!(converted(config, &format!("{{\"t\":{value}}}")), format!("{{\"t\":{expected}}}"), "{shown}");
    }
    let invalid = converted(json!({ "field": "t", "to": "unix_s" }), r#"{"t":"soon"}"#);
    assert!(invalid.starts_with("timestamp.invalid: the field `t`: `soon` is not a point in time"), "{invalid}");
    let config = json!({ "timestamp": { "field": "a.t", "from": "unix_s", "set_timestamp": true } });
    let outcomes = run(config, &[Input::value(r#"{"a":{"t":1700000000}}"#)]);
    assert_eq!(outcomes[0].passed().unwrap().record.timestamp, Some(1_700_000_000_000));
    assert_eq!(rejected_config(json!({ "timestamp": { "field": "t", "to": "%&" } })).0.as_deref(), Some("to"));
    assert_eq!(
        rejected_config(json!({ "timestamp": { "field": "t", "to": "iso", "zone": "CET" } })).0.as_deref(),
        Some("zone")
    );
}

#[test]
fn rekey_sets_the_key_from_fields_or_an_expression() {
    let key = |config: Value, value: &str| {
        let outcomes = run(json!({ "rekey": config }), &[Input::value(value).key("old")]);
        match &outcomes[0] {
            Outcome::Passed(output) => {
                output.record.key.as_ref().map_or("null".to_owned(), |key| String::from_utf8_lossy(key).into_owned())
            }
            other => shown(other),
        }
    };
    let value = r#"{"id":7,"name":"A","at":{"city":"Ulm"},"none":null}"#;
    assert_eq!(key(json!({ "fields": ["name"] }), value), "A");
    assert_eq!(key(json!({ "fields": ["id"] }), value), "7");
    assert_eq!(key(json!({ "fields": ["none"] }), value), "null");
    assert_eq!(key(json!({ "fields": ["id", "at.city"] }), value), r#"{"id":7,"at.city":"Ulm"}"#);
    assert_eq!(key(json!({ "fields": ["id"], "format": "json" }), value), r#"{"id":7}"#);
    assert_eq!(key(json!({ "expression": "value.name + '-' + key" }), value), "A-old");
    assert_eq!(key(json!({ "fields": ["id"] }), DELETE), "1");
    assert_eq!(key(json!({ "fields": ["x"] }), value), "rekey.no_key: the record has no key: there is no field `x`");
    assert_eq!(shown(&run(json!({ "rekey": { "fields": ["id"] } }), &[Input::default()])[0]), "null");
}

#[test]
fn misspelt_options_are_reported_at_their_key() {
    let (key, message) = rejected_config(json!({ "filter": { "conditon": "true" } }));
    assert_eq!(key.as_deref(), Some("conditon"));
    assert!(message.ends_with("did you mean `condition`?"), "{message}");
    let (key, message) = rejected_config(json!({ "project": { "cast": { "a": "text" } } }));
    assert!(key.as_deref() == Some("cast.a") && message.contains("expected one of `string`"), "{key:?} {message}");
    for config in [json!({ "project": {} }), json!({ "rekey": {} }), json!({ "timestamp": { "field": "t" } })] {
        assert_eq!(rejected_config(config).0, None);
    }
}

/// The outputs of a batch: `value@timestamp` of each record, `drop`, or the rejection.
fn batch(host: &mut MockHost<Standard>, inputs: &[Input]) -> Vec<String> {
    host.process(inputs).unwrap().iter().map(shown).collect()
}

#[test]
fn dedupe_drops_records_whose_key_was_seen_within_the_time() {
    let config = json!({ "dedupe": { "fields": ["id"], "within": "10s" } });
    let mut host = MockHost::<Standard>::start(config).unwrap();
    let reading = |id: u32, at: i64| Input::value(format!(r#"{{"id":{id}}}"#)).at(at);
    let inputs = [reading(1, 1_000), reading(2, 1_000), reading(1, 10_999), Input::default(), Input::value("{}")];
    let missing = "dedupe.no_key: the record has no key: there is no field `id`";
    assert_eq!(batch(&mut host, &inputs), [r#"{"id":1}"#, r#"{"id":2}"#, "drop", "null", missing]);
    // The state outlives the instance.
    host.restart().unwrap();
    assert_eq!(batch(&mut host, &[reading(1, 10_999), reading(1, 11_000)]), ["drop", r#"{"id":1}"#]);
    // The time starts at the record that passed last; an older one is no duplicate of it.
    assert_eq!(batch(&mut host, &[reading(1, 20_999), reading(1, 900)]), ["drop", r#"{"id":1}"#]);
    // Keys expire.
    batch(&mut host, &[reading(3, 50_000)]);
    let keys: Vec<_> = host.state().into_iter().map(|(key, _)| String::from_utf8(key).unwrap()).collect();
    assert_eq!(keys, ["options\u{0}", "passed\u{0}3"]);
}

#[test]
fn dedupe_takes_the_key_of_the_record_by_default() {
    let mut host = MockHost::<Standard>::start(json!({ "dedupe": { "within": "1d" } })).unwrap();
    let inputs = [Input::value("1").key("a"), Input::value("2").key("a"), Input::value("3"), Input::value("4")];
    assert_eq!(batch(&mut host, &inputs), ["1", "drop", "3", "4"]);
    let cases = [
        (json!({ "within": "0s" }), "within"),
        (json!({ "within": "10" }), "within"),
        (json!({ "within": "1d", "expression": "valu.x" }), "expression"),
    ];
    for (config, key) in cases {
        assert_eq!(rejected_config(json!({ "dedupe": config })).0.as_deref(), Some(key));
    }
}

/// The number of entries, without the one that has the options.
fn entries(host: &MockHost<Standard>) -> usize {
    host.state().iter().filter(|(key, _)| key != b"options\0").count()
}

/// The results of the windows that timers have closed.
fn closed(host: &mut MockHost<Standard>) -> Vec<Output> {
    host.take_fired().iter().flat_map(|timer| timer.emitted().to_vec()).collect()
}

fn texts(outputs: &[Output]) -> Vec<&str> {
    outputs.iter().map(|output| output.text().unwrap()).collect()
}

#[test]
fn aggregate_outputs_the_results_of_closed_windows() {
    let config = json!({ "aggregate": {
        "group_by": ["device"], "window": "1m", "lateness": "10s", "late": "port",
        "aggregates": {
            "n": "count()", "sum": "sum(row.c)", "avg": "avg(row.c)", "min": "min(row.c)", "max": "max(row.c)",
            "first": "first(row.c)", "last": "last(row.c)", "named": "count(has(row.name) ? row.name : null)",
        },
    } });
    let mut host = MockHost::<Standard>::start(config).unwrap();
    let reading = |device: &str, c: &str, at: i64| Input::value(format!(r#"{{"device":"{device}","c":{c}}}"#)).at(at);
    let first = [reading("a", "0.1", 1_000), reading("b", "7", 2_000), reading("a", "0.20", 30_000)];
    assert_eq!(batch(&mut host, &first), ["drop", "drop", "drop"]);
    host.restart().unwrap();
    // Out of order, then event time advances, but not past the lateness.
    assert_eq!(batch(&mut host, &[reading("a", "-1", 500), reading("a", "5", 69_999)]), ["drop", "drop"]);
    assert_eq!(closed(&mut host), []);
    let closing = [reading("a", "6", 70_000), reading("a", "9", 59_999)];
    assert_eq!(batch(&mut host, &closing), ["drop", r#"late: {"device":"a","c":9}"#]);
    let results = closed(&mut host);
    assert_eq!(
        texts(&results),
        [
            r#"{"device":"a","window_start":0,"window_end":60000,"avg":-0.23333333333333333333,"first":-1,"last":0.20,"max":0.20,"min":-1,"n":3,"named":0,"sum":-0.70}"#,
            r#"{"device":"b","window_start":0,"window_end":60000,"avg":7,"first":7,"last":7,"max":7,"min":7,"n":1,"named":0,"sum":7}"#
        ]
    );
    assert_eq!((results[0].record.key.as_deref(), results[0].record.timestamp), (Some(&b"a"[..]), Some(30_000)));
    // Only the open window is left. Without records, event time closes it, too.
    assert_eq!(entries(&host), 1);
    host.advance_time(130_000).unwrap();
    assert_eq!((closed(&mut host).len(), entries(&host)), (1, 0));
    let late = [reading("b", "1", 119_999), reading("b", "2", 120_000)];
    assert_eq!(batch(&mut host, &late), [r#"late: {"device":"b","c":1}"#, "drop"]);
}

#[test]
fn aggregate_closes_any_number_of_windows_at_once() {
    let config = json!({ "group_by": ["device"], "window": "1m", "aggregates": { "n": "count()" } });
    let mut host = MockHost::<Standard>::start(json!({ "aggregate": config })).unwrap();
    let count = 20_500;
    let readings: Vec<Input> = (0..count).map(|n| Input::value(format!("{{\"device\":{n}}}")).at(n % 60_000)).collect();
    batch(&mut host, &readings);
    host.advance_time(60_000).unwrap();
    let timers = host.take_fired();
    let results: Vec<&Output> = timers.iter().flat_map(|timer| timer.emitted()).collect();
    let devices: std::collections::BTreeSet<_> = results.iter().map(|output| output.record.key.clone()).collect();
    assert_eq!((results.len(), devices.len(), entries(&host)), (count as usize, count as usize, 0));
    assert!(timers.len() > 1, "each call emits a limited number");
}

#[test]
fn aggregate_applies_a_changed_lateness_to_open_windows() {
    let config = |lateness: &str| {
        let config = json!({ "window": "1m", "lateness": lateness, "late": "port", "aggregates": { "n": "count()" } });
        json!({ "aggregate": config })
    };
    let mut host = MockHost::<Standard>::start(config("10s")).unwrap();
    batch(&mut host, &[Input::value("{}").at(5_000)]);
    host.restart_with(config("30s")).unwrap();
    assert_eq!(batch(&mut host, &[Input::value("{}").at(80_000), Input::value("{}").at(6_000)]), ["drop", "drop"]);
    assert_eq!(closed(&mut host), []);
    host.advance_time(90_000).unwrap();
    assert_eq!(texts(&closed(&mut host)), [r#"{"window_start":0,"window_end":60000,"n":2}"#]);
}

#[test]
fn aggregate_counts_a_record_in_each_of_its_hopping_windows() {
    let config = json!({ "aggregate": {
        "window": "3m", "advance": "1m", "aggregates": { "n": "count()" },
    } });
    let mut host = MockHost::<Standard>::start(config).unwrap();
    let at = |seconds: i64| Input::value("{}").at(seconds * 1000);
    assert_eq!(batch(&mut host, &[at(150), at(179)]), ["drop", "drop"]);
    let window = |start: i64, n: u64| {
        format!(r#"{{"window_start":{},"window_end":{},"n":{n}}}"#, start * 1000, (start + 180) * 1000)
    };
    // The first window is closed; the record at 170 belongs to the other two.
    assert_eq!(batch(&mut host, &[at(180), at(170)]), ["drop", "drop"]);
    assert_eq!(texts(&closed(&mut host)), [window(0, 2)]);
    host.restart().unwrap();
    assert_eq!(batch(&mut host, &[at(600), at(100)]), ["drop", "drop"]);
    assert_eq!(texts(&closed(&mut host)), [window(60, 4), window(120, 4), window(180, 1)]);
    for advance in ["0s", "4m", "1s"] {
        let config = json!({ "window": "3m", "advance": advance, "aggregates": { "n": "count()" } });
        assert_eq!(rejected_config(json!({ "aggregate": config })).0.as_deref(), Some("advance"));
    }
}

#[test]
fn aggregate_outputs_updates_and_rejects_what_it_cannot_add() {
    let config = json!({ "aggregate": {
        "window": "1h", "aggregates": { "total": "sum(row.amount)" }, "emit": "updates",
    } });
    let mut host = MockHost::<Standard>::start(config).unwrap();
    let payment = |amount: &str, at: i64| Input::value(format!(r#"{{"amount":{amount}}}"#)).at(at);
    let inputs = [payment("0.1", 1), payment("0.2", 2), payment("\"x\"", 3), payment("1", 3_600_000), payment("5", 4)];
    let window = |start: i64, total: &str| {
        format!(r#"{{"window_start":{start},"window_end":{},"total":{total}}}"#, start + 3_600_000)
    };
    let failed = "aggregate.failed: the record cannot be aggregated: `aggregates.total`: a text is not a number; convert it \
                  with decimal(..)";
    let expected = [window(0, "0.1"), window(0, "0.3"), failed.to_owned(), window(3_600_000, "1"), "drop".to_owned()];
    assert_eq!(batch(&mut host, &inputs), expected);
    let without_time = Input::value(r#"{"amount":1}"#);
    assert!(batch(&mut host, &[without_time])[0].ends_with("the record has no timestamp"));
    let cases = [
        (json!({ "window": "0m", "aggregates": { "n": "count()" } }), "window"),
        (json!({ "window": "1m", "aggregates": {} }), "aggregates"),
        (json!({ "window": "1m", "aggregates": { "n": "median(row.x)" } }), "aggregates.n"),
        (json!({ "window": "1m", "aggregates": { "n": "sum()" } }), "aggregates.n"),
        (json!({ "window": "1m", "aggregates": { "window_end": "count()" } }), "aggregates.window_end"),
    ];
    for (config, key) in cases {
        assert_eq!(rejected_config(json!({ "aggregate": config })).0.as_deref(), Some(key));
    }
}

/// A pseudo-random number below a limit.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % limit
    }

    fn of<'a>(&mut self, choices: &[&'a str]) -> &'a str {
        choices[self.below(choices.len())]
    }

    /// A value that is JSON most of the time.
    fn document(&mut self, depth: usize) -> String {
        let members = (0..self.below(4)).map(|_| {
            let key = self.of(&["a", "a", "b", "\\u0061", "op", "after", "before"]);
            let value = match self.below(8) {
                0 | 1 if depth < 2 => self.document(depth + 1),
                2 => self.of(&["\"x\"", "\"u\"", "\"\"", "\"x\\u0021\"", "\"5\"", "\"y\"", "\"é\""]).to_owned(),
                3 => self.of(&["null", "true", "false", "[1]", "{}", "", "nul"]).to_owned(),
                _ => self
                    .of(&["5", "5.0", "-5", "4.99", "5e0", "50", "05", "1e400", "5.", "123456789012345678901"])
                    .to_owned(),
            };
            format!("{}\"{key}\"{}:{value}", self.of(&["", "", "", " "]), self.of(&["", "", "", " "]))
        });
        let members: Vec<String> = members.collect();
        let end = self.of(&["}", "}", "}", "}", "}", "} ", "}x", ""]);
        format!("{{{}{end}", members.join(self.of(&[",", ",", ",", ", ", "  ", ";"])))
    }
}

/// A comparison of a member with a literal has a fast form; a literal in a conditional expression
/// does not.
#[test]
fn comparisons_of_members_agree_with_the_general_evaluation() {
    let mut random = Random(7);
    let mut outcomes = std::collections::BTreeMap::new();
    for _ in 0..400 {
        let member = random.of(&["value.a", "row.a", "value.a.b", "row.after.a", "value.b.a.a"]);
        let operator = random.of(&["==", "!=", "<", "<=", ">", ">="]);
        let literal = random.of(&["5", "5.00", "-5", "4.995", "'x'", "'x!'", "'é'", "'5'", "true", "null"]);
        let fast = json!({ "filter": { "condition": format!("{member} {operator} {literal}") } });
        let general = format!("{member} {operator} (true ? {literal} : {literal})");
        let inputs: Vec<Input> = (0..50).map(|_| Input::value(random.document(0))).collect();
        let expected = run(json!({ "filter": { "condition": &general } }), &inputs);
        let found = run(fast, &inputs);
        for ((input, found), expected) in inputs.iter().zip(found).zip(expected) {
            let value = String::from_utf8_lossy(input.value.as_deref().unwrap_or_default()).into_owned();
            assert_eq!(found, expected, "{general} of {value}");
            let kind = match found {
                Outcome::Passed(_) => "passed",
                Outcome::Dropped => "dropped",
                _ => "rejected",
            };
            *outcomes.entry(kind).or_insert(0) += 1;
        }
    }
    assert!(outcomes.len() == 3 && outcomes.values().all(|count| *count > 300), "{outcomes:?}");
}
