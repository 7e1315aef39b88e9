//! Replays of warehouse sinks: rows of a range are replaced in one transaction of the destination,
//! and a shadow table is filled once, whatever is killed while live records arrive.

use std::fs;

use serde_json::Value;
use trunkline_tests::{Case, Exit, Kafka, LogWriter, Redshift, S3, Snowflake, need, wait};

use crate::{LONG, SOURCE, stop};

const MASK: &str =
    "[transforms.today]\ninputs = [\"web\"]\nplugin = \"mask.wasm\"\nconfig = { fields = [\"remote_addr\"] }\n";
const FILTER: &str = "[transforms.today]\ninputs = [\"web\"]\nplugin = \"filter.wasm\"\n\
                      config = { condition = \"!value.path.endsWith('7')\" }\n";

const LINES: u64 = 2_000;

/// The rows of a table of the warehouse, and its different paths.
type Count<'a> = &'a dyn Fn(&str) -> (u64, u64);

fn replay(case: &Case, arguments: &[&str]) -> Exit {
    case.run_command("replay", &[], &[&[case.name(), "--from", "earliest"], arguments].concat(), LONG)
}

fn runs(case: &Case) -> Vec<Value> {
    let listed = case.ask_worker("runs", "replay", &["--kind", "replay", "--json"], LONG);
    serde_json::from_str(&listed.stdout).unwrap_or_default()
}

fn a_trace_ends_at_a_row(case: &Case) {
    let shown = replay(case, &["--to-stdout", "--limit", "1"]);
    let line: Value = serde_json::from_str(&shown.stdout).unwrap();
    let place = format!("{}:{}:{}", line["topic"].as_str().unwrap(), line["partition"], line["offset"]);
    let traced = case.run_command("trace", &[], &[case.name(), "--record", &place, "--json"], LONG);
    let found: Value = serde_json::from_str(&traced.stdout).unwrap_or_default();
    let rows = &found["stages"][0]["rows"];
    assert!(
        rows[0][0].as_str().is_some_and(|table| table.to_lowercase().trim_end_matches('"').ends_with("lines")),
        "{found}"
    );
    assert_eq!((&rows[0][1], rows.as_array().map(Vec::len)), (&1.into(), Some(1)), "{found}");
}

/// Replaces rows and fills a shadow, with the options of a sink.
fn a_killed_replay_replaces_rows(case: &Case, options: &str, count: Count<'_>) {
    for command in ["replay", "audit", "trace"] {
        fs::create_dir_all(case.path(&format!("data-{command}/plugins"))).unwrap();
    }
    let pipeline = |transform: &str, table: &str| {
        let sink = format!("[sinks.dw]\ninputs = [\"today\"]\n{options}table = \"{table}\"\n");
        format!("{SOURCE}\n{transform}\n{sink}commit = {{ records = 400, age = \"300ms\", idle = \"300ms\" }}\n")
    };
    let mut log = LogWriter::new(case.path("logs/access.log"), 730);
    log.append(LINES);
    case.pipeline("lines", &pipeline(MASK, "lines"));
    let live = case.start("a", &[]);
    let wait_for = |rows: u64| {
        wait::until(&format!("{rows} rows"), LONG, || (count("lines").0 >= rows).then_some(()));
    };
    wait_for(LINES);
    // Today's transforms drop some records. The worker has not read the file again.
    case.pipeline("lines", &pipeline(FILTER, "lines"));

    let planned = replay(case, &["--supersede", "--dry-run"]);
    assert!(planned.stdout.contains(&format!("Replaces {LINES} rows of ")), "{}", planned.describe());
    let arguments = [case.name(), "--from", "earliest", "--supersede"];
    let killed = case.start_command("replay", &[], &[&arguments[..], &["--rate", "400"]].concat());
    wait::until("a run with rows", LONG, || runs(case).first()?["counters"]["out"].as_u64().filter(|out| *out > 0));
    killed.kill9();
    assert_eq!(count("lines"), (LINES, LINES), "nothing is replaced yet");
    log.append(300);
    let last = replay(case, &["--supersede"]);
    assert_eq!(last.code, Some(0), "{}", last.describe());
    assert!(last.stderr.contains("replaced in one transaction"), "{}", last.describe());
    let run = runs(case).remove(0);
    assert_eq!((&run["state"], &run["supersede"]["rows"]), (&"finished".into(), &LINES.into()), "{run}");
    let dropped = LINES - run["counters"]["out"].as_u64().unwrap();
    assert!(dropped > 100 && dropped < LINES / 2, "{dropped} of {LINES} records are dropped");
    let expected = LINES + 300 - dropped;
    wait_for(expected);
    stop(live);
    assert_eq!(count("lines"), (expected, expected));
    let audited = case.run_command("audit", &[], &[&format!("{}.dw", case.name())], LONG);
    assert_eq!(audited.code, Some(0), "{}", audited.describe());
    a_trace_ends_at_a_row(case);

    let refused = replay(case, &[]);
    assert!(refused.stderr.contains("[replay.live_destination]"), "{}", refused.describe());
    let into = ["--into", "table=\"lines_v2\"", "--json"];
    let filled = replay(case, &into);
    assert_eq!(filled.code, Some(0), "{}", filled.describe());
    let result: Value = serde_json::from_str(filled.stdout.lines().last().unwrap()).unwrap();
    let out = result["counters"]["out"].as_u64().unwrap();
    assert!(out > LINES && out < LINES + 300, "{out} rows");
    assert_eq!(count("lines_v2"), (out, out));
    let again = replay(case, &into);
    assert!(again.stderr.contains("[replay.output_exists]"), "{}", again.describe());
    assert_eq!(count("lines"), (expected, expected), "the live table is as it was");
    let id = result["run"].as_str().unwrap();
    // Of the live lines, those after the range are as the earlier transforms made them.
    let equal = LINES - dropped;
    let diff = case.run_command("replay", &["diff"], &[id, "--key", &key(case), "--json"], LONG);
    assert_eq!(diff.code, Some(1), "{}", diff.describe());
    let found: Value = serde_json::from_str(&diff.stdout).unwrap();
    let counts = ["equal", "changed", "only_live", "only_shadow"].map(|name| found[name].as_u64().unwrap());
    assert_eq!(counts, [equal, out - equal, expected - out, 0], "{found}");
    a_shadow_becomes_the_live_table(case, &mut log, id, (out, expected), count);
}

/// The column of the path.
fn key(case: &Case) -> String {
    if case.name().contains("snowflake") { "PATH".to_owned() } else { "path".to_owned() }
}

/// Records that the sink has written since the replay are in the shadow, too, after the switch.
fn a_shadow_becomes_the_live_table(
    case: &Case,
    log: &mut LogWriter,
    id: &str,
    (shadow, live): (u64, u64),
    count: Count<'_>,
) {
    let switch = |more: &[&str]| case.run_command("replay", &["switch"], &[&[id], more].concat(), LONG);
    log.append(200);
    case.until_idle("a", LONG);
    let loaded = count("lines").0;
    assert!(loaded > live + 150, "{loaded} rows");
    let unconfirmed = switch(&[]);
    assert!(unconfirmed.stderr.contains("[offsets.not_confirmed]"), "{}", unconfirmed.describe());
    let planned = switch(&["--dry-run"]);
    assert!(planned.stdout.contains("exchange their names"), "{}", planned.describe());
    assert_eq!(count("lines").0, loaded, "nothing has changed yet");
    let switched = switch(&["--yes", "--json"]);
    assert_eq!(switched.code, Some(0), "{}", switched.describe());
    assert_eq!((count("lines"), count("lines_v2")), ((shadow, shadow), (loaded, loaded)));
    let again = switch(&["--yes"]);
    assert!(again.code == Some(0) && again.stderr.contains("already"), "{}", again.describe());
    assert_eq!(count("lines"), (shadow, shadow), "a repeated switch changes nothing");
    let summary = case.until_idle("a", LONG);
    assert_eq!(summary.of(case.name(), "dw").dead_lettered, 0);
    let rows = count("lines");
    assert_eq!(rows.0, shadow + loaded - live, "each record after the end of the shadow is there");
    assert_eq!(rows.0, rows.1, "no record is there twice");
    let audited = case.run_command("audit", &[], &[&format!("{}.dw", case.name())], LONG);
    assert_eq!(audited.code, Some(0), "{}", audited.describe());
}

/// A table with one row for each path, which a replay rebuilds while live records arrive.
#[test]
fn rows_of_keys_are_rebuilt_in_redshift() {
    let (kafka, s3, redshift) = (need!(Kafka::any()), need!(S3::shared()), need!(Redshift::shared()));
    s3.bucket("rebuilds");
    redshift.run("CREATE SCHEMA rebuilds");
    let case = Case::new("replay-keys", kafka);
    fs::create_dir_all(case.path("data-replay/plugins")).unwrap();
    let options = redshift.sink_options(redshift.port(), "rebuilds", "rebuilds");
    let pipeline = |transform: &str| {
        format!(
            "{SOURCE}\n{transform}\n[sinks.dw]\nconnector = \"redshift\"\ninputs = [\"today\"]\n{options}table = \"lines\"\n\
             mode = \"upsert\"\nkey = [\"path\"]\ncommit = {{ records = 300, age = \"300ms\", idle = \"300ms\" }}\n"
        )
    };
    let count = |condition: &str| {
        let found =
            redshift.try_run(&format!("SELECT COUNT(*), COUNT(DISTINCT path) FROM rebuilds.lines WHERE {condition}"));
        found.map_or((0, 0), |rows| numbers(&rows[0]))
    };
    let mut log = LogWriter::new(case.path("logs/access.log"), 731);
    log.append(1_000);
    case.pipeline("lines", &pipeline(MASK));
    let live = case.start("a", &[]);
    wait::until("the first rows", LONG, || (count("TRUE").0 >= 1_000).then_some(()));
    case.pipeline("lines", &pipeline(FILTER));
    let shown = replay(&case, &["--to-stdout", "--limit", "1"]);
    let line: Value = serde_json::from_str(&shown.stdout).unwrap();
    let early = replay(&case, &["--to", &format!("{}:5", line["partition"]), "--supersede"]);
    assert!(early.stderr.contains("Leave --to out"), "{}", early.describe());
    let planned = replay(&case, &["--supersede", "--dry-run"]);
    let sentence = "rows that today's transforms no longer produce are removed";
    assert!(planned.stdout.contains(sentence), "{}", planned.describe());
    let arguments = [case.name(), "--from", "earliest", "--supersede", "--rate", "300"];
    let killed = case.start_command("replay", &[], &arguments);
    wait::until("a run with rows", LONG, || runs(&case).first()?["counters"]["out"].as_u64().filter(|out| *out > 0));
    killed.kill9();
    assert_eq!(count("TRUE"), (1_000, 1_000), "nothing is replaced yet");
    log.append(200);
    wait::until("live rows", LONG, || (count("TRUE").0 >= 1_200).then_some(()));
    let last = replay(&case, &["--supersede"]);
    assert_eq!(last.code, Some(0), "{}", last.describe());
    let run = runs(&case).remove(0);
    let out = run["counters"]["out"].as_u64().unwrap();
    assert_eq!(run["supersede"]["rows"], 1_200, "the run has followed the live sink: {run}");
    assert_eq!(count("TRUE"), (out, out));
    assert_eq!(count("path LIKE '%7'"), (0, 0), "rows that are no longer produced are gone");
    log.append(100);
    wait::until("later rows", LONG, || (count("TRUE").0 >= out + 100).then_some(()));
    stop(live);
    assert_eq!(count("TRUE"), (out + 100, out + 100), "the live sink has continued with its transforms");
}

fn numbers(row: &str) -> (u64, u64) {
    let (rows, paths) = row.split_once('\t').unwrap();
    (rows.parse().unwrap(), paths.parse().unwrap())
}

#[test]
fn rows_are_replaced_in_redshift() {
    let (kafka, s3, redshift) = (need!(Kafka::any()), need!(S3::shared()), need!(Redshift::shared()));
    s3.bucket("replays");
    redshift.run("CREATE SCHEMA replays");
    let case = Case::new("replay-redshift", kafka);
    let sink = format!("connector = \"redshift\"\n{}", redshift.sink_options(redshift.port(), "replays", "replays"));
    let count = |table: &str| {
        let found = redshift.try_run(&format!("SELECT COUNT(*), COUNT(DISTINCT path) FROM replays.{table}"));
        found.map_or((0, 0), |rows| numbers(&rows[0]))
    };
    a_killed_replay_replaces_rows(&case, &sink, &count);
}

#[test]
fn rows_are_replaced_in_snowflake() {
    let (kafka, s3) = (need!(Kafka::any()), need!(S3::shared()));
    let snowflake = need!(Snowflake::start(s3));
    let case = Case::new("replay-snowflake", kafka);
    s3.bucket(case.name());
    let count = |table: &str| {
        let found = snowflake.try_query("DB", "RAW", &format!("SELECT COUNT(*), COUNT(DISTINCT path) FROM {table}"));
        found.map_or((0, 0), |rows| numbers(&rows[0]))
    };
    a_killed_replay_replaces_rows(&case, &snowflake.options(s3, case.name()), &count);
}
