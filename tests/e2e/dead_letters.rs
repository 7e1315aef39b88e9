//! Records that cannot be processed go to the dead letter topic, and all others continue.

use std::collections::BTreeMap;
use std::time::Duration;

use rdkafka::config::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use trunkline_tests::{Case, Kafka, LogWriter, Reader, need, test_plugin, wait};

use crate::{LONG, SOURCE, access_logs, assert_counted, assert_every_line_once, stop};

#[test]
fn malformed_lines_go_to_the_dead_letter_topic() {
    let (kafka, reader) = (need!(Kafka::any()), need!(Reader::find()));
    let case = Case::new("bad-line", kafka);
    let path = case.path("logs/access.log");
    let mut log = LogWriter::new(&path, 200);
    log.append(500);
    let first = (log.size(), b"this is no access log\\ \x01 \"".as_slice());
    log.append_raw(&[first.1, b"\n"].concat());
    log.append(500);
    let second =
        (log.size(), b"10.0.0.1 - - [99/Xyz/2026:00:00:00 +0000] \"GET / HTTP/1.1\" 200 5 \"-\" \"-\"".as_slice());
    log.append_raw(&[second.1, b"\n"].concat());
    log.append(500);
    case.pipeline("access", &access_logs());

    let summary = case.until_idle("a", LONG);

    assert_counted(&summary, &case, log.lines() + 2, 2);
    assert_every_line_once(&reader, &case.path("lake"), &log);
    let dead_letters = kafka.read(&format!("{}.dead-letters", case.name()));
    for (offset, bytes) in [first, second] {
        let letter = dead_letters
            .iter()
            .find(|letter| letter.value.as_deref() == Some(bytes))
            .expect("a dead letter with the line's bytes");
        assert_eq!(letter.header("trunkline.path"), path.to_str().unwrap());
        assert_eq!(letter.header("trunkline.offset"), offset.to_string());
        assert!(!letter.header("__connect.errors.exception.message").is_empty());
        assert!(letter.header("__connect.errors.connector.name").contains("web"), "{:?}", letter.headers);
    }
    assert_eq!(dead_letters.len(), 2);
}

#[test]
fn a_record_that_traps_the_plugin_goes_to_the_dead_letter_topic() {
    let (kafka, reader, plugin) = (need!(Kafka::any()), need!(Reader::find()), test_plugin());
    let case = Case::new("trap", kafka);
    let mut log = LogWriter::new(case.path("logs/access.log"), 201);
    log.append(3_000);
    let poisoned = r#"config = { trap_on = '"/item/1234"' }"#;
    let pipeline = access_logs().replace(r#"config = { fields = ["remote_addr"] }"#, poisoned);
    case.pipeline("access", &pipeline.replace("mask.wasm", plugin.to_str().unwrap()));

    let summary = case.until_idle("a", LONG);

    let clean = summary.of(case.name(), "clean");
    assert_eq!((clean.input, clean.output, clean.dead_lettered), (3_000, 2_999, 1));
    assert_eq!(summary.of(case.name(), "lake").output, 2_999);
    let found = reader.read(&case.path("lake"), &["path"]);
    assert_eq!((found.rows, found.distinct), (2_999, Some(2_999)));

    let dead_letters = kafka.read(&format!("{}.dead-letters", case.name()));
    assert_eq!(dead_letters.len(), 1);
    let letter = &dead_letters[0];
    assert_eq!(letter.json()["path"], "/item/1234");
    assert_eq!(letter.header("__connect.errors.topic"), format!("{}.web", case.name()));
    assert!(letter.header("__connect.errors.connector.name").contains("clean"), "{:?}", letter.headers);
    assert!(!letter.header("__connect.errors.exception.message").is_empty());
}

const TWO_SINKS: &str = r#"
[transforms.clean]
inputs = ["web"]
plugin = "$PLUGIN"
config = { reject_on = '/bad"' }

[sinks.lake]
connector = "s3"
inputs = ["clean"]
url = "file://$DIR/lake"

[sinks.copy]
connector = "s3"
inputs = ["clean"]
url = "file://$DIR/copy"
"#;

/// A transform with two readers runs once: 39 rejected records are 39 dead letters, not 78.
#[test]
fn a_transform_with_two_sinks_dead_letters_each_record_once() {
    const BAD: u64 = 39;
    let (kafka, reader, plugin) = (need!(Kafka::any()), need!(Reader::find()), test_plugin());
    let case = Case::new("two-sinks", kafka);
    let mut log = LogWriter::new(case.path("logs/access.log"), 202);
    log.append(1_000);
    for _ in 0..BAD {
        log.append_raw(b"10.0.0.1 - - [01/Mar/2026:00:00:00 +0000] \"GET /bad HTTP/1.1\" 200 5 \"-\" \"-\"\n");
    }
    case.pipeline("access", &[SOURCE, TWO_SINKS].concat().replace("$PLUGIN", plugin.to_str().unwrap()));

    let summary = case.until_idle("a", LONG);

    let clean = summary.of(case.name(), "clean");
    assert_eq!((clean.input, clean.output, clean.dead_lettered), (1_000 + BAD, 1_000, BAD));
    assert_eq!(kafka.count(&format!("{}.dead-letters", case.name())), BAD);
    assert_eq!(kafka.count(&format!("{}.clean", case.name())), 1_000);
    for sink in ["lake", "copy"] {
        let counters = summary.of(case.name(), sink);
        assert_eq!((counters.input, counters.output, counters.dead_lettered), (1_000, 1_000, 0), "{sink}");
        assert_every_line_once(&reader, &case.path(sink), &log);
    }
}

const STOPS: &str = r#"
[transforms.split]
inputs = ["web"]
plugin = "$PLUGIN"
topic = "$NAME.split"
config = { reject_on = "poison" }
on_error = "stop"

[sinks.lake]
connector = "s3"
inputs = ["split"]
url = "file://$DIR/lake"
on_error = "stop"
"#;

/// `on_error = "stop"` stops at the bad record: the good records before it are processed, once.
#[test]
fn a_stage_stops_at_the_bad_record_and_keeps_the_good_ones_before_it() {
    let (kafka, plugin) = (need!(Kafka::any()), test_plugin());
    let case = Case::new("stop-at", kafka);
    let source = SOURCE
        .replace("combined", "json")
        .replace("[sources.web]", "[sources.web]\npartitions = 1\non_error = \"stop\"");
    let pipeline = [&source, STOPS].concat().replace("$PLUGIN", plugin.to_str().unwrap());
    let count = |name: &str| kafka.count(&format!("{}.{name}", case.name()));
    let mut lines = String::new();
    let mut add = |line: &str| {
        (0..20).for_each(|number| lines.push_str(&format!("{{\"n\":{number}}}\n")));
        lines.push_str(line);
        std::fs::write(case.path("logs/a.log"), &lines).unwrap();
    };
    let run = |expected: Option<&str>, pipeline: &str| {
        case.pipeline("stop", pipeline);
        let exit = case.start("a", &["--until-idle", "--json"]).wait(LONG);
        assert_eq!(exit.code, Some(i32::from(expected.is_some())), "{}", exit.describe());
        assert!(exit.stderr.contains(expected.unwrap_or_default()), "{}", exit.describe());
        exit
    };
    let skipping = |component: &str| {
        let at = pipeline.find(component).unwrap();
        [&pipeline[..at], &pipeline[at..].replacen("\"stop\"", "\"skip\"", 1)].concat()
    };
    let written = || {
        let exit = run(None, &skipping("[sinks.lake]"));
        exit.summary().of(case.name(), "lake").output
    };

    // A line that is not JSON stops the source.
    add("not JSON\n");
    run(Some("`web` rejected the line at byte"), &pipeline);
    assert_eq!((count("web"), count("split")), (20, 20));
    run(None, &skipping("[sources.web]"));

    // A record that the plugin rejects stops the transform.
    add("{\"poison\":1}\n");
    run(Some("`split` rejected the record at offset"), &pipeline);
    assert_eq!((count("web"), count("split")), (41, 40));
    run(None, &skipping("[transforms.split]"));

    // A record that is not a row stops the sink.
    add("{\"n\":\"\\ud83d\"}\n");
    let stopped = Some("`lake` rejected the record at offset");
    run(stopped, &pipeline);
    let exit = run(stopped, &pipeline);
    assert_eq!((count("web"), count("split")), (62, 61));
    assert_eq!(exit.summary().of(case.name(), "lake").output, 60, "{}", exit.describe());
    assert_eq!(written(), 60);
    assert_eq!(count("dead-letters"), 0);
}

/// The pipeline of most tests, whose transform rejects the records that contain a text.
fn rejecting(text: &str) -> String {
    let plugin = test_plugin();
    let config = format!("config = {{ reject_on = '{text}' }}");
    let pipeline = access_logs().replace(r#"config = { fields = ["remote_addr"] }"#, &config);
    pipeline.replace("mask.wasm", plugin.to_str().unwrap())
}

#[test]
fn a_killed_redrive_returns_every_record_once() {
    let (kafka, reader) = (need!(Kafka::any()), need!(Reader::find()));
    let case = Case::new("redrive", kafka);
    let mut log = LogWriter::new(case.path("logs/access.log"), 203);
    log.append(3_000);
    case.pipeline("access", &rejecting("/item/1"));
    let rejected = case.until_idle("a", LONG).of(case.name(), "clean").dead_lettered;
    assert!(rejected > 1_000, "{rejected}");
    let listed = case.run_command("dlq", &["list"], &["--json"], LONG);
    let groups: serde_json::Value = serde_json::from_str(&listed.stdout).unwrap();
    assert_eq!((&groups[0]["component"], groups[0]["count"].as_u64()), (&"clean".into(), Some(rejected)));
    let shown = case.run_command("dlq", &["show", case.name()], &["--limit", "1", "--json"], LONG);
    let letter: serde_json::Value = serde_json::from_str(shown.stdout.trim()).unwrap();
    assert_eq!(letter["origin"]["topic"], format!("{}.web", case.name()));
    assert!(letter["value"].as_str().unwrap().contains("/item/1"), "{letter}");

    case.pipeline("access", &access_logs());
    let plan = case.run_command("dlq", &["redrive", case.name()], &["--dry-run"], LONG);
    let expected = format!("{rejected} of `clean` with ");
    assert!(plan.stdout.starts_with(&expected) && plan.stdout.contains("would be redriven"), "{}", plan.describe());
    for delay in [20, 60, 100, 150, 200, 250, 300, 400] {
        drop(case.start_command("dlq", &["redrive", case.name()], &[]).kill9_after(Duration::from_millis(delay)));
    }
    let last = case.run_command("dlq", &["redrive", case.name()], &[], LONG);
    assert_eq!(last.code, Some(0), "{}", last.describe());
    let again = case.run_command("dlq", &["redrive", case.name()], &[], LONG);
    assert!(again.stdout.contains("no dead letter is left"), "{}", again.describe());

    assert_eq!(kafka.count(&format!("{}.web", case.name())), 3_000 + rejected);
    case.until_idle("a", LONG);
    assert_every_line_once(&reader, &case.path("lake"), &log);
}

/// A plugin changes, drops or rejects the records of dead letters before they return. The count of
/// attempts goes with them, whatever the plugin does to their headers.
#[test]
fn a_redrive_passes_records_through_a_plugin() {
    let (kafka, plugin) = (need!(Kafka::any()), test_plugin());
    let case = Case::new("through", kafka);
    let mut log = LogWriter::new(case.path("logs/access.log"), 205);
    for path in ["/keep", "/noise", "/poison", "/twice"] {
        log.append_raw(format!("not an access log {path}\n").as_bytes());
    }
    case.pipeline("access", &access_logs());
    assert_eq!(case.until_idle("a", LONG).of(case.name(), "web").dead_lettered, 4);
    let topic = format!("{}.fixed", case.name());
    kafka.create_topic(&topic, 1);
    let file = plugin.to_str().unwrap();
    let config = r#"{"drop_on": "/noise", "reject_on": "/poison", "rekey_on": "/keep", "upper_on": "/keep", "port_on": "/twice"}"#;
    let redrive = ["redrive", case.name()];
    let run = |more: &[&str]| {
        let after = [&["--to-topic", &topic, "--through", file, "--through-config", config], more].concat();
        case.run_command("dlq", &redrive, &after, LONG)
    };
    let plan = run(&["--dry-run"]);
    assert_eq!(plan.code, Some(1), "{}", plan.describe());
    assert!(
        plan.stdout.contains("1 of `web` with parse.combined would be dropped by the plugin"),
        "{}",
        plan.describe()
    );
    assert_eq!(kafka.count(&topic), 0);
    let result = run(&["--json"]);
    let report: serde_json::Value = serde_json::from_str(&result.stdout).unwrap();
    assert_eq!((&report["redriven"][0]["count"], &report["dropped"][0]["count"]), (&1.into(), &1.into()), "{report}");
    let skipped: Vec<&str> =
        report["skipped"].as_array().unwrap().iter().filter_map(|item| item["reason"].as_str()).collect();
    assert_eq!(skipped.len(), 2, "{report}");
    assert!(skipped.iter().any(|reason| reason.contains("testing.rejected")), "{report}");
    assert!(skipped.iter().any(|reason| reason.contains("another port")), "{report}");
    let records = kafka.read(&topic);
    assert_eq!(records.len(), 1);
    assert_eq!(records[0].header("trunkline.redrive.attempts"), "1");
    // Only the two that stayed are left.
    let again = case.run_command("dlq", &redrive, &["--to-topic", &topic, "--dry-run"], LONG);
    assert!(again.stdout.starts_with("2 of `web` with parse.combined would be redriven"), "{}", again.describe());
    let wrong = case.run_command("dlq", &redrive, &["--through", "nothing.wasm"], LONG);
    assert!(wrong.code != Some(0) && wrong.stderr.contains("plugin.load"), "{}", wrong.describe());
}

/// A second sink reads the topic without the transform: it has these records already.
const RAW: &str = r#"
[sinks.raw]
connector = "s3"
inputs = ["web"]
url = "file://$DIR/raw"
"#;

/// `--to-all-readers` repeats the records for both readers; `--through-stage` passes them through
/// the transform, whose topic nothing else reads.
#[test]
fn a_redrive_into_a_topic_with_several_readers_is_refused() {
    let (kafka, reader) = (need!(Kafka::any()), need!(Reader::find()));
    for (name, flag) in [("readers", "--to-all-readers"), ("straight", "--through-stage")] {
        redrive_with_two_readers(kafka, &reader, name, flag);
    }
}

fn redrive_with_two_readers(kafka: &Kafka, reader: &Reader, name: &str, flag: &str) {
    let case = Case::new(name, kafka);
    let mut log = LogWriter::new(case.path("logs/access.log"), 204);
    log.append(20);
    let is_separate = flag == "--through-stage";
    let pipeline = |base: String| {
        let separate = "[transforms.clean]\ntopic = \"$NAME.cleaned\"";
        let base = if is_separate { base.replace("[transforms.clean]", separate) } else { base };
        [base, RAW.to_owned()].concat()
    };
    case.pipeline("access", &pipeline(rejecting("/item/1")));
    let rejected = case.until_idle("a", LONG).of(case.name(), "clean").dead_lettered;
    assert!(rejected > 1);
    case.pipeline("access", &pipeline(access_logs()));
    let refused = case.run_command("dlq", &["redrive", case.name()], &[], LONG);
    assert_eq!(refused.code, Some(1), "{}", refused.describe());
    assert!(refused.stdout.contains("--to-all-readers") && refused.stdout.contains(".raw`"), "{}", refused.describe());
    let redriven = case.run_command("dlq", &["redrive", case.name()], &[flag], LONG);
    assert_eq!(redriven.code, Some(0), "{}", redriven.describe());
    case.until_idle("a", LONG);
    assert_every_line_once(reader, &case.path("lake"), &log);
    let repeated = if is_separate { 0 } else { rejected };
    assert_eq!(reader.read(&case.path("raw"), &["path"]).rows, 20 + repeated);
}

/// Lines that a source rejected were in no topic: they pass its parser as it is today, each once.
#[test]
fn a_killed_redrive_passes_rejected_lines_through_the_source_once() {
    let (kafka, reader) = (need!(Kafka::any()), need!(Reader::find()));
    let case = Case::new("redrive-source", kafka);
    let mut log = LogWriter::new(case.path("logs/access.log"), 206);
    log.append(900);
    case.pipeline("access", &access_logs().replace("combined", "json"));
    assert_eq!(case.until_idle("a", LONG).of(case.name(), "web").dead_lettered, 900);
    let redrive = ["redrive", case.name()];
    let run = |more: &[&str]| case.run_command("dlq", &redrive, more, LONG);
    let refused = run(&[]);
    assert_eq!(refused.code, Some(1), "{}", refused.describe());
    assert!(refused.stdout.contains("900 stay: `web` rejects it today, too (parse.json)"), "{}", refused.describe());

    case.pipeline("access", &access_logs());
    let wrong = run(&["--where", "cod == \"parse.json\""]);
    assert!(wrong.code == Some(2) && wrong.stderr.contains("column 1"), "{}", wrong.describe());
    let plan = run(&["--where", "code == \"parse.json\" && value.contains(\"/item/10 \")", "--dry-run"]);
    let expected = format!("1 of `web` with parse.json would be redriven to topic `{}.web`", case.name());
    assert!(plan.stdout.starts_with(&expected), "{}", plan.describe());
    for delay in [20, 80, 160, 280] {
        drop(case.start_command("dlq", &redrive, &[]).kill9_after(Duration::from_millis(delay)));
    }
    let last = run(&[]);
    assert_eq!(last.code, Some(0), "{}", last.describe());
    assert!(run(&[]).stdout.contains("no dead letter is left"));
    assert_eq!(kafka.count(&format!("{}.web", case.name())), 900);
    case.until_idle("a", LONG);
    assert_every_line_once(&reader, &case.path("lake"), &log);
}

/// `stop_after`: too many rejected lines stop the source before any of them is committed.
#[test]
fn too_many_rejected_lines_stop_the_source() {
    let kafka = need!(Kafka::any());
    let case = Case::new("stop-after", kafka);
    let lines: String =
        (0..100).map(|n| if n % 5 == 0 { "bad\n".to_owned() } else { format!("{{\"n\":{n}}}\n") }).collect();
    std::fs::write(case.path("logs/a.log"), lines).unwrap();
    let run = |limit: &str| {
        let stops = format!("[sources.web]\nstop_after = {{ {limit} }}");
        case.pipeline("stop", &SOURCE.replace("combined", "json").replace("[sources.web]", &stops));
        case.start("a", &["--until-idle", "--json"]).wait(LONG)
    };
    let stopped = run("errors = 20, of = 100");
    assert_eq!(stopped.code, Some(1), "{}", stopped.describe());
    assert!(stopped.stderr.contains("stage.too_many_errors"), "{}", stopped.describe());
    let count = |topic: &str| kafka.count(&format!("{}.{topic}", case.name()));
    assert_eq!((count("web"), count("dead-letters")), (0, 0));
    let allowed = run("errors = 21, of = 100");
    assert_eq!(allowed.code, Some(0), "{}", allowed.describe());
    assert_eq!((count("web"), count("dead-letters")), (80, 20));
}

const SPLIT: &str = r#"
name = "$NAME"
[transforms.split]
inputs = ["topic:$NAME.in"]
plugin = "$PLUGIN"
topic = "$NAME.split"
config = { reject_on = "bad" }
"#;

/// The worker rejects the records again while a redrive returns them. They keep the order of each
/// key, and stay after the fifth attempt.
#[test]
fn records_are_redriven_in_order_while_the_worker_runs_and_stay_after_five_attempts() {
    const RECORDS: usize = 120;
    const KEYS: usize = 7;
    let (kafka, plugin) = (need!(Kafka::any()), test_plugin());
    let case = Case::new("attempts", kafka);
    let input = format!("{}.in", case.name());
    kafka.create_topic(&input, 3);
    let producer: BaseProducer = ClientConfig::new().set("bootstrap.servers", kafka.brokers()).create().unwrap();
    for number in 0..RECORDS {
        let (key, value) = (format!("k{}", number % KEYS), format!("{{\"n\":{number},\"bad\":true}}"));
        // Three redrives have failed before.
        let header = Header { key: "trunkline.redrive.attempts", value: Some("3") };
        let headers = OwnedHeaders::new().insert(header);
        producer.send(BaseRecord::to(&input).key(&key).payload(&value).headers(headers)).unwrap();
    }
    wait::until("the records are sent", LONG, || {
        producer.poll(Duration::from_millis(1));
        (producer.in_flight_count() == 0).then_some(())
    });
    case.pipeline("split", &SPLIT.replace("$PLUGIN", plugin.to_str().unwrap()));
    let worker = case.start("a", &[]);
    let letters = format!("{}.dead-letters", case.name());
    let wait_for_letters = |count: usize| {
        wait::until("the dead letters", LONG, || (kafka.count(&letters) == count as u64).then_some(()));
    };
    let redrive = || case.run_command("dlq", &["redrive", case.name()], &[], LONG);
    wait_for_letters(RECORDS);
    for round in 2..=3 {
        let redriven = redrive();
        assert_eq!(redriven.code, Some(0), "{}", redriven.describe());
        assert!(redriven.stdout.starts_with(&format!("{RECORDS} of `split`")), "{}", redriven.stdout);
        wait_for_letters(round * RECORDS);
    }
    let refused = redrive();
    assert_eq!(refused.code, Some(1), "{}", refused.describe());
    let expected = format!("{RECORDS} stay: it was redriven 5 times, and failed each time");
    assert!(refused.stdout.contains(&expected), "{}", refused.stdout);
    stop(worker);

    let mut of_key: BTreeMap<Vec<u8>, Vec<usize>> = BTreeMap::new();
    let mut attempts: BTreeMap<String, usize> = BTreeMap::new();
    for record in kafka.read(&input) {
        *attempts.entry(record.header("trunkline.redrive.attempts")).or_default() += 1;
        let number = record.json()["n"].as_u64().unwrap() as usize;
        of_key.entry(record.key.unwrap()).or_default().push(number);
    }
    assert_eq!(attempts, ["3", "4", "5"].map(|attempt| (attempt.to_owned(), RECORDS)).into());
    for (key, numbers) in of_key {
        let mut once = numbers.clone();
        once.sort_unstable();
        once.dedup();
        assert_eq!(numbers, once.repeat(3), "{}", String::from_utf8_lossy(&key));
    }
}
