//! Tests `lookup`, and the sketches and sessions of `aggregate`, with the SDK's mock host.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use serde_json::{Value, json};
use standard::Standard;
use trunkline_plugin::testing::{Input, MockHost, Outcome};

fn start(config: Value) -> MockHost<Standard> {
    MockHost::start(config).unwrap_or_else(|error| panic!("{error}"))
}

fn rejected_key(config: Value) -> Option<String> {
    MockHost::<Standard>::start(config).unwrap_err().key
}

/// The number of entries, without the one that has the options.
fn entries(host: &MockHost<Standard>) -> usize {
    host.state().iter().filter(|(key, _)| key != b"options\0").count()
}

/// The outcomes of a batch: the texts of the results, `drop`, or the code of the rejection.
fn batch(host: &mut MockHost<Standard>, inputs: &[Input]) -> Vec<String> {
    let shown = |outcome: &Outcome| match outcome {
        Outcome::Passed(output) if output.port == "default" => output.text().unwrap_or("null").to_owned(),
        Outcome::Passed(output) => format!("{}: {}", output.port, output.text().unwrap_or("null")),
        Outcome::Dropped => "drop".to_owned(),
        Outcome::Emitted(outputs) => {
            outputs.iter().map(|output| output.text().unwrap_or("null")).collect::<Vec<_>>().join(" ")
        }
        Outcome::Rejected { code, .. } => code.clone(),
    };
    host.process(inputs).unwrap().iter().map(shown).collect()
}

fn lookup(options: Value) -> MockHost<Standard> {
    let mut host = start(json!({ "lookup": options }));
    host.set_state("table", "7", br#"{"name":"Ada","limit":100.50,"none":null}"#);
    host.set_state("table", "8", br#"{"before":null,"after":{"name":"Bo"},"op":"u"}"#);
    host.set_state("table", "9", br#"{"before":{"name":"Cy"},"after":null,"op":"d"}"#);
    host.set_state("table", r#"{"id":7}"#, br#"{"name":"Ada"}"#);
    host.set_state("table", "text", b"not json");
    host
}

#[test]
fn lookup_adds_the_row_with_the_key_of_the_record() {
    let mut host = lookup(json!({ "fields": ["account"], "into": "holder", "take": ["name", "limit"] }));
    let value = |account: &str| Input::value(format!("{{\"id\":1,\"account\":{account},\"holder\":0}}"));
    let inputs = [
        value("7"),
        value("\"8\""),
        value("9"),
        value("null"),
        Input::default(),
        Input::value("{}"),
        value("\"text\""),
    ];
    let expected = [
        r#"{"id":1,"account":7,"holder":{"name":"Ada","limit":100.50}}"#,
        r#"{"id":1,"account":"8","holder":{"name":"Bo"}}"#,
        // A deleted row, and a record without a key.
        r#"{"id":1,"account":9,"holder":null}"#,
        r#"{"id":1,"account":null,"holder":null}"#,
        "null",
        "lookup.no_key",
        "lookup.bad_row",
    ];
    assert_eq!(batch(&mut host, &inputs), expected);
    assert_eq!(host.state().len(), 5, "the table is not changed");
}

#[test]
fn lookup_merges_rows_and_uses_other_keys() {
    let mut host = lookup(json!({ "merge": true }));
    let inputs = [Input::value(r#"{"name":"x","id":1}"#).key("7"), Input::value(r#"{"name":"x"}"#).key("0")];
    let merged = r#"{"id":1,"name":"Ada","limit":100.50,"none":null}"#;
    assert_eq!(batch(&mut host, &inputs), [merged, r#"{"name":"x"}"#]);
    let event = r#"{"before":{"id":7},"after":{"id":7,"n":1},"op":"u"}"#;
    let enriched =
        r#"{"before":{"id":7,"holder":{"name":"Ada"}},"after":{"id":7,"n":1,"holder":{"name":"Ada"}},"op":"u"}"#;
    let mut host = lookup(json!({ "fields": ["id"], "format": "json", "into": "holder" }));
    assert_eq!(batch(&mut host, &[Input::value(event)]), [enriched]);
    let mut host = lookup(json!({ "expression": "value.a + value.b", "into": "h", "take": ["name"] }));
    assert_eq!(batch(&mut host, &[Input::value(r#"{"a":3,"b":4}"#)]), [r#"{"a":3,"b":4,"h":{"name":"Ada"}}"#]);
}

#[test]
fn lookup_passes_drops_or_rejects_records_without_a_row() {
    let missing = [("drop", "drop"), ("reject", "lookup.missing"), ("port", r#"missing: {"id":1}"#)];
    for (option, expected) in missing {
        let mut host = lookup(json!({ "fields": ["id"], "into": "holder", "missing": option }));
        assert_eq!(batch(&mut host, &[Input::value(r#"{"id":1}"#)]), [expected]);
    }
    let mut host = lookup(json!({ "expression": "'7'", "into": "holder" }));
    assert_eq!(batch(&mut host, &[Input::value("[1]")]), ["lookup.not_json"]);
    assert_eq!(rejected_key(json!({ "lookup": { "into": "x", "merge": true } })).as_deref(), Some("into"));
    assert_eq!(rejected_key(json!({ "lookup": { "into": "x", "take": [] } })).as_deref(), Some("take"));
    assert_eq!(rejected_key(json!({ "lookup": { "fields": ["id"] } })), None);
}

#[test]
fn aggregate_counts_distinct_values_and_estimates_percentiles() {
    let config = json!({ "aggregate": { "window": "1h", "emit": "updates", "aggregates": {
        "users": "distinct(row.user)", "p0": "percentile(row.ms, 0)", "p90": "percentile(math.abs(row.ms), 90)",
    } } });
    let mut host = start(config);
    let inputs: Vec<Input> = (1..=1000)
        .map(|ms| Input::value(format!("{{\"user\":{},\"ms\":-{ms}.5}}", ["1", "1.0", "\"1\"", "null"][ms % 4])).at(5))
        .collect();
    for inputs in inputs.chunks(300) {
        batch(&mut host, inputs);
        host.restart().unwrap();
    }
    let last = batch(&mut host, &[Input::value(r#"{"user":2,"ms":-1.5}"#).at(6)]).remove(0);
    let last: Value = serde_json::from_str(&last).unwrap();
    assert_eq!((last["users"].as_u64(), last["p0"].as_f64()), (Some(3), Some(-1000.5)));
    let p90 = last["p90"].as_f64().unwrap();
    assert!((p90 / 900.5 - 1.0).abs() < 0.011, "{p90}");
    for text in ["distinct()", "percentile(row.ms)", "percentile(row.ms, 101)", "percentile(, 5)"] {
        let config = json!({ "aggregate": { "window": "1h", "aggregates": { "x": text } } });
        assert_eq!(rejected_key(config).as_deref(), Some("aggregates.x"), "{text}");
    }
}

#[test]
fn a_record_that_one_aggregate_rejects_changes_no_window() {
    // The sum is the last aggregate, and each record is in two windows.
    let mut host = start(json!({ "aggregate": { "window": "20s", "advance": "10s",
        "aggregates": { "a": "count()", "b": "max(row.v)", "c": "sum(row.v)" } } }));
    let record = |v: &str, seconds: i64| Input::value(format!("{{\"v\":{v}}}")).at(seconds * 1000);
    let verdicts = batch(&mut host, &[record("\"x\"", 100), record("1", 101), record("\"y\"", 102), record("2", 103)]);
    assert_eq!(verdicts, ["aggregate.failed", "drop", "aggregate.failed", "drop"]);
    // No record of these windows is counted, so none of them is output.
    assert_eq!(batch(&mut host, &[record("\"z\"", 140)]), ["aggregate.failed"]);
    host.advance_time(900_000).unwrap();
    let window = |start: i64| {
        let (start, end) = (start * 1000, (start + 20) * 1000);
        format!("{{\"window_start\":{start},\"window_end\":{end},\"a\":2,\"b\":2,\"c\":3}}")
    };
    assert_eq!(closed(&mut host), [window(90), window(100)]);
}

const SESSIONS: &str = r#"{ "aggregate": { "group_by": ["user"], "session": "10s", "lateness": "5s", "late": "port",
    "aggregates": { "n": "count()", "sum": "sum(row.v)", "first": "first(row.v)", "last": "last(row.v)",
                    "min": "min(row.v)", "avg": "avg(row.v)", "values": "distinct(row.v)", "top": "percentile(row.v, 100)" } } }"#;

fn visit(user: &str, v: i64, seconds: i64) -> Input {
    Input::value(format!("{{\"user\":\"{user}\",\"v\":{v}}}")).at(seconds * 1000)
}

fn session(user: &str, (start, end): (i64, i64), values: &[i64], ordered: [i64; 2]) -> String {
    let sum: i64 = values.iter().sum();
    format!(
        "{{\"user\":\"{user}\",\"window_start\":{},\"window_end\":{},\"avg\":{},\"first\":{},\"last\":{},\"min\":{},\"n\":{},\
         \"sum\":{sum},\"top\":{},\"values\":{}}}",
        start * 1000,
        end * 1000,
        sum / values.len() as i64,
        ordered[0],
        ordered[1],
        values.iter().min().unwrap(),
        values.len(),
        values.iter().max().unwrap(),
        values.len(),
    )
}

/// The results of the sessions that timers have closed.
fn closed(host: &mut MockHost<Standard>) -> Vec<String> {
    let fired = host.take_fired();
    fired.iter().flat_map(|timer| timer.emitted()).map(|output| output.text().unwrap().to_owned()).collect()
}

#[test]
fn sessions_end_with_a_pause_and_merge() {
    let mut host = start(serde_json::from_str(SESSIONS).unwrap());
    // Two sessions of `a`: at 100, and at 112.
    assert_eq!(batch(&mut host, &[visit("a", 1, 100), visit("b", 5, 101), visit("a", 5, 112)]), ["drop"; 3]);
    host.restart().unwrap();
    // A record between them joins both. One that is older than the gap starts a session.
    assert_eq!(batch(&mut host, &[visit("a", 3, 105)]), ["drop"]);
    let late = r#"late: {"user":"b","v":9}"#;
    let closing = batch(&mut host, &[visit("c", 0, 116), visit("b", 9, 101), visit("b", 9, 100)]);
    assert_eq!(closing, ["drop", late, late]);
    assert_eq!(closed(&mut host), [session("b", (101, 101), &[5], [5, 5])]);
    assert_eq!(batch(&mut host, &[visit("c", 0, 126), visit("c", 0, 127)]), ["drop"; 2]);
    assert_eq!(closed(&mut host), [session("a", (100, 112), &[1, 3, 5], [1, 5])]);
    // The records of `c` at 116 and at 126 are in two sessions: the pause is as long as the gap.
    let c = [session("c", (116, 116), &[0], [0, 0]), session("c", (126, 127), &[0, 0], [0, 0])];
    let c = c.map(|session| session.replace("\"top\":0,\"values\":2", "\"top\":0,\"values\":1"));
    assert_eq!(batch(&mut host, &[visit("d", 1, 900)]), ["drop"]);
    assert_eq!(closed(&mut host), c);
    // Without records, event time closes the last session.
    assert_eq!(entries(&host), 1);
    host.advance_time(915_000).unwrap();
    assert_eq!((closed(&mut host), entries(&host)), (vec![session("d", (900, 900), &[1], [1, 1])], 0));
    assert_eq!(batch(&mut host, &[visit("b", 9, 900), visit("d", 1, 901)]), [late.to_owned(), "drop".to_owned()]);
}

#[test]
fn sessions_agree_with_a_sorted_list() {
    // Records in a random order within the lateness, in batches of random sizes.
    let mut seed = 1u64;
    let mut random = |below: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % below
    };
    let mut records: Vec<(i64, u64)> = Vec::new();
    let mut now = 1_000;
    for _ in 0..2_000 {
        now += random(9) as i64;
        records.push((now + random(5) as i64, random(4)));
    }
    let mut expected: Vec<(u64, i64, i64, u64)> = Vec::new();
    let mut sorted = records.clone();
    sorted.sort_unstable();
    for (time, user) in &sorted {
        let open = expected.iter_mut().rev().find(|(known, ..)| known == user);
        match open.filter(|(_, _, end, _)| time - *end < 10) {
            Some((_, _, end, n)) => (*end, *n) = (*time, *n + 1),
            None => expected.push((*user, *time, *time, 1)),
        }
    }
    let config = json!({ "aggregate": { "group_by": ["user"], "session": "10s", "lateness": "5s",
                                        "aggregates": { "n": "count()" } } });
    let mut host = start(config);
    let mut found: Vec<(u64, i64, i64, u64)> = Vec::new();
    let mut rest = records.as_slice();
    while !rest.is_empty() {
        let (now, later) = rest.split_at((1 + random(40) as usize).min(rest.len()));
        rest = later;
        let inputs: Vec<Input> =
            now.iter().map(|(time, user)| Input::value(format!("{{\"user\":{user}}}")).at(time * 1000)).collect();
        batch(&mut host, &inputs);
        host.restart().unwrap();
    }
    host.advance_time((now + 1_000) * 1000).unwrap();
    for result in closed(&mut host) {
        let result: Value = serde_json::from_str(&result).unwrap();
        let number = |name: &str| result[name].as_i64().unwrap();
        let (start, end) = (number("window_start") / 1000, number("window_end") / 1000);
        found.push((number("user") as u64, start, end, number("n") as u64));
    }
    found.sort_unstable();
    expected.sort_unstable();
    assert!(expected.len() > 100, "{}", expected.len());
    assert_eq!((found, entries(&host)), (expected, 0));
}

#[test]
fn session_options_are_checked() {
    let cases = [
        (json!({ "session": "0s" }), Some("session")),
        (json!({ "session": "1m", "window": "1m" }), Some("session")),
        (json!({ "session": "1m", "advance": "1m" }), Some("advance")),
        (json!({}), None),
    ];
    for (mut options, key) in cases {
        options["aggregates"] = json!({ "n": "count()" });
        assert_eq!(rejected_key(json!({ "aggregate": options })).as_deref(), key);
    }
    let config = json!({ "aggregate": { "session": "10s", "emit": "updates", "aggregates": { "n": "count()" } } });
    let mut host = start(config);
    let updates = batch(&mut host, &[visit("a", 1, 1), visit("a", 1, 5)]);
    let expected =
        [r#"{"window_start":1000,"window_end":1000,"n":1}"#, r#"{"window_start":1000,"window_end":5000,"n":2}"#];
    assert_eq!(updates, expected);
    host.advance_time(15_000).unwrap();
    assert_eq!((closed(&mut host), entries(&host)), (Vec::new(), 0));
}

#[test]
fn previous_adds_the_last_record_of_the_key() {
    let config = json!({ "previous": { "fields": ["car"], "into": "before", "take": ["x", "at"], "within": "10s" } });
    let mut host = start(config);
    let at = |car: &str, x: &str, seconds: i64| {
        Input::value(format!("{{\"car\":{car},\"before\":1,\"x\":{x}}}")).at(seconds * 1000)
    };
    let shown = |car: &str, x: &str, before: &str| format!("{{\"car\":{car},\"x\":{x},\"before\":{before}}}");
    let inputs = [at("1", "1.50", 1), at("2", "7", 1), at("1", "2", 3), at("null", "0", 3)];
    let expected = [
        shown("1", "1.50", "null"),
        shown("2", "7", "null"),
        shown("1", "2", r#"{"x":1.50}"#),
        shown("null", "0", "null"),
    ];
    assert_eq!(batch(&mut host, &inputs), expected);
    host.restart().unwrap();
    // An older record has no previous one, and is none. After a pause, there is none either.
    let inputs = [at("1", "3", 2), at("1", "4", 4), at("1", "5", 14), Input::default(), Input::value("[]").at(1)];
    let expected = [
        shown("1", "3", "null"),
        shown("1", "4", r#"{"x":2}"#),
        shown("1", "5", "null"),
        "null".to_owned(),
        "previous.no_key".to_owned(),
    ];
    assert_eq!(batch(&mut host, &inputs), expected);
    let mut host = start(json!({ "previous": { "into": "before" } }));
    let inputs = [Input::value(r#"{"a":1}"#).key("k"), Input::value(r#"{"a":2}"#).key("k"), Input::value("7").key("k")];
    let expected = [r#"{"a":1,"before":null}"#, r#"{"a":2,"before":{"a":1}}"#, "previous.not_json"];
    assert_eq!(batch(&mut host, &inputs), expected);
    assert_eq!(rejected_key(json!({ "previous": { "into": "" } })).as_deref(), Some("into"));
    assert_eq!(rejected_key(json!({ "previous": { "into": "x", "within": "0s" } })).as_deref(), Some("within"));
}

/// The timers that have fired: their output, as `key: value`.
fn fired(host: &mut MockHost<Standard>) -> Vec<String> {
    let fired = host.take_fired();
    let outputs = fired.iter().flat_map(|timer| timer.emitted());
    let shown = outputs.map(|output| {
        assert_eq!(output.port, "absent");
        format!("{}: {}", String::from_utf8_lossy(output.record.key.as_deref().unwrap()), output.text().unwrap())
    });
    shown.collect()
}

#[test]
fn absence_reports_a_key_once_when_it_has_been_silent() {
    let mut host = start(json!({ "absence": { "fields": ["bus"], "after": "10s", "take": ["bus", "lat"] } }));
    let at = |bus: &str, lat: f64, seconds: i64| {
        Input::value(format!("{{\"bus\":\"{bus}\",\"lat\":{lat},\"x\":1}}")).at(seconds * 1000)
    };
    let inputs = [at("a", 1.5, 1), at("b", 2.5, 2), at("a", 3.5, 5), at("b", 4.5, 14)];
    assert_eq!(batch(&mut host, &inputs).len(), 4);
    // `b` was silent from 2 to 12, `a` is not until 15.
    assert_eq!(fired(&mut host), [r#"b: {"bus":"b","lat":2.5,"last_seen":2000}"#]);
    host.restart().unwrap();
    // A late position neither ends the silence nor hides it.
    batch(&mut host, &[at("a", 9.5, 3), at("c", 0.5, 15)]);
    assert_eq!(fired(&mut host), [r#"a: {"bus":"a","lat":3.5,"last_seen":5000}"#]);
    batch(&mut host, &[at("c", 0.5, 23)]);
    assert_eq!(fired(&mut host), [""; 0]);
    host.advance_time(40_000).unwrap();
    let last = [r#"b: {"bus":"b","lat":4.5,"last_seen":14000}"#, r#"c: {"bus":"c","lat":0.5,"last_seen":23000}"#];
    assert_eq!(fired(&mut host), last);
    host.advance_time(99_000).unwrap();
    assert_eq!((fired(&mut host), entries(&host)), (Vec::new(), 0));
}

#[test]
fn absence_passes_records_and_ends_with_a_tombstone() {
    let mut host = start(json!({ "absence": { "after": "1s" } }));
    let keyed = |value: &str| Input::value(value).key("k").at(1000);
    let inputs = [keyed(r#"{"n":1,"last_seen":0}"#), Input::value("{}"), keyed("[]"), Input::value("{}").key("k")];
    assert_eq!(batch(&mut host, &inputs), [r#"{"n":1,"last_seen":0}"#, "{}", "absence.not_json", "{}"]);
    let gone = Input { value: None, ..Input::value("").key("k").at(1500) };
    assert_eq!(batch(&mut host, &[gone]), ["null"]);
    host.advance_time(9_000).unwrap();
    assert_eq!(fired(&mut host), [""; 0]);
    batch(&mut host, &[Input::value(r#"{"n":2,"last_seen":0}"#).key("k").at(9_500)]);
    host.advance_time(99_000).unwrap();
    assert_eq!(fired(&mut host), [r#"k: {"n":2,"last_seen":9500}"#]);
    for (options, key) in [
        (json!({ "after": "0s" }), "after"),
        (json!({ "after": "soon" }), "after"),
        (json!({ "after": "1s", "into": "" }), "into"),
        (json!({ "after": "1s", "fields": ["a"], "expression": "key" }), "expression"),
    ] {
        assert_eq!(rejected_key(json!({ "absence": options })).as_deref(), Some(key));
    }
    let mut by_field = start(json!({ "absence": { "fields": ["a"], "after": "1s" } }));
    assert_eq!(batch(&mut by_field, &[Input::value("{}").at(1)]), ["absence.no_key"]);
}

#[test]
fn state_of_other_options_stops_the_stage() {
    let dedupe = |fields: &[&str], within: &str| json!({ "dedupe": { "fields": fields, "within": within } });
    let previous = |options: Value| {
        let mut options = options;
        options["into"] = json!("before");
        json!({ "previous": options })
    };
    let absence = |fields: &[&str]| json!({ "absence": { "fields": fields, "after": "10s" } });
    let aggregate = |options: Value| {
        let mut config = json!({ "group_by": ["a"], "aggregates": { "n": "count()" } });
        config.as_object_mut().unwrap().extend(options.as_object().unwrap().clone());
        json!({ "aggregate": config })
    };
    let window = || aggregate(json!({ "window": "1m" }));
    let cases = [
        (dedupe(&["a"], "10s"), dedupe(&["b"], "10s"), "`fields = [\"a\"]`, and it is `[\"b\"]` now"),
        (dedupe(&["a"], "10s"), dedupe(&["a"], "1m"), ""),
        (
            previous(json!({ "fields": ["a"] })),
            previous(json!({ "expression": "row.a" })),
            "and with `fields = [\"a\"]`",
        ),
        (previous(json!({ "fields": ["a"] })), previous(json!({ "fields": ["a"], "take": ["b"], "within": "1m" })), ""),
        (absence(&["a"]), absence(&["b"]), "`fields = [\"a\"]`"),
        (window(), aggregate(json!({ "window": "5m" })), "`window = \"1m\"`, and it is `\"5m\"` now"),
        (window(), aggregate(json!({ "session": "1m" })), "`window = \"1m\"`, and the option is absent now"),
        (aggregate(json!({ "session": "1m" })), window(), "no `window`"),
        (window(), aggregate(json!({ "window": "1m", "advance": "30s" })), "no `advance`"),
        (window(), aggregate(json!({ "window": "1m", "group_by": ["b"] })), "`group_by = [\"a\"]`"),
        (window(), aggregate(json!({ "window": "1m", "aggregates": { "m": "max(row.b)" } })), "`aggregates = "),
        (window(), aggregate(json!({ "window": "1m", "lateness": "1m", "emit": "updates" })), ""),
    ];
    let record = |seconds: i64| Input::value(r#"{"a":1,"b":2}"#).at(seconds * 1000);
    for (before, after, problem) in cases {
        let mut host = start(before.clone());
        host.process(&[record(1)]).unwrap();
        host.restart_with(after.clone()).unwrap();
        if problem.is_empty() {
            host.process(&[record(2)]).unwrap();
            continue;
        }
        let message = host.process(&[record(2)]).unwrap_err();
        assert!(message.starts_with("stop: its state was made with ") && message.contains(problem), "{message}");
        assert!(message.contains("another name"), "{message}");
        // The options are restored, and the entries are those of before.
        host.restart_with(before).unwrap();
        host.process(&[record(2)]).unwrap();
        if after["aggregate"].is_object() {
            // When all windows are closed, other options may be used.
            host.advance_time(1_000_000).unwrap();
            assert_eq!(entries(&host), 0);
            host.restart_with(after).unwrap();
            host.process(&[record(2_000)]).unwrap();
        }
    }
    // Timers of other options do not fire.
    let mut host = start(aggregate(json!({ "window": "1m" })));
    host.process(&[record(1)]).unwrap();
    host.restart_with(aggregate(json!({ "session": "1m" }))).unwrap();
    assert!(host.advance_time(1_000_000).unwrap_err().starts_with("stop: "));
}
