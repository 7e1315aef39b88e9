//! Replays are separate runs (I9): they fill a shadow exactly once, survive kill -9, and leave the
//! live run alone. Positions are moved on request only, and an audit finds what is missing.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use trunkline_tests::{BrokerKind, Case, Exit, Kafka, LogWriter, Reader, S3, need, test_plugin, wait};

use crate::status::{address, send};
use crate::{LONG, access_logs, access_logs_to_s3, assert_every_line_once, stop, wait_for_rows};

on_each_broker!(
    a_killed_replay_fills_a_shadow_once_while_live_records_arrive,
    a_range_in_the_middle_is_replayed_and_its_destination_is_protected,
    a_position_is_moved_only_while_nothing_runs
);

const SHADOW: &str = "url=\"file://$DIR/shadow\"";

/// A case whose commands keep compiled plugins.
fn new_case(test: &str, kafka: &Kafka) -> Case {
    let case = Case::new(test, kafka);
    for command in ["replay", "offsets", "audit", "dlq", "trace"] {
        fs::create_dir_all(case.path(&format!("data-{command}/plugins"))).unwrap();
    }
    case
}

fn shadow(case: &Case) -> String {
    SHADOW.replace("$DIR", case.path("").to_str().unwrap().trim_end_matches('/'))
}

fn replay(case: &Case, arguments: &[&str]) -> Exit {
    case.run_command("replay", &[], &[&[case.name()], arguments].concat(), LONG)
}

/// The only run of the cluster, as `trunkline runs` shows it.
fn only_run(case: &Case) -> Value {
    let listed = case.ask_worker("runs", "replay", &["--kind", "replay", "--json"], LONG);
    assert_eq!(listed.code, Some(0), "{}", listed.describe());
    let runs: Vec<Value> = serde_json::from_str(&listed.stdout).unwrap();
    assert_eq!(runs.len(), 1, "{}", listed.stdout);
    runs[0].clone()
}

/// The paths of the records in the range of a run.
fn paths_in(kafka: &Kafka, topic: &str, run: &Value) -> BTreeSet<String> {
    let ranges: BTreeMap<i64, (i64, i64)> = run["ranges"]
        .as_array()
        .unwrap()
        .iter()
        .map(|range| {
            let number = |key: &str| range[key].as_i64().unwrap();
            (number("partition"), (number("from"), number("to")))
        })
        .collect();
    let is_in = |partition: i32, offset: i64| {
        ranges.get(&i64::from(partition)).is_some_and(|(from, to)| (*from..*to).contains(&offset))
    };
    let records = kafka.read(topic).into_iter().filter(|record| is_in(record.partition, record.offset));
    records.map(|record| record.json()["path"].as_str().unwrap().to_owned()).collect()
}

fn parquet_files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        match entry.is_dir() {
            true => found.extend(parquet_files(&entry)),
            false if entry.extension().is_some_and(|extension| extension == "parquet") => found.push(entry),
            false => {}
        }
    }
    found.sort();
    found
}

fn a_killed_replay_fills_a_shadow_once_while_live_records_arrive(kind: BrokerKind) {
    let (kafka, reader) = (need!(Kafka::shared(kind)), need!(Reader::find()));
    let case = new_case("replay", kafka);
    let mut log = LogWriter::new(case.path("logs/access.log"), 700);
    log.append(4_000);
    case.pipeline("access", &access_logs());
    case.until_idle("a", LONG);
    let live = case.start("a", &[]);
    let into = shadow(&case);
    let arguments = [case.name(), "--from", "earliest", "--into", &into, "--json"];
    for rows in [0, 1, 1_000] {
        // Slow enough to be killed in the middle.
        let killed = case.start_command("replay", &[], &[&arguments[..], &["--rate", "700"]].concat());
        wait::until("a run with rows", LONG, || {
            let listed = case.ask_worker("runs", "replay", &["--kind", "replay", "--json"], LONG);
            let runs: Vec<Value> = serde_json::from_str(&listed.stdout).unwrap_or_default();
            runs.first()?["counters"]["out"].as_u64().filter(|out| *out >= rows)
        });
        log.append(500);
        killed.kill9();
    }
    assert_ne!(only_run(&case)["state"], "finished");

    let last = case.run_command("replay", &[], &arguments, LONG);

    assert_eq!(last.code, Some(0), "{}", last.describe());
    let run = only_run(&case);
    assert_eq!((&run["state"], &run["offsets_done"]), (&"finished".into(), &run["offsets_total"]));
    let expected = paths_in(kafka, &format!("{}.web", case.name()), &run).len() as u64;
    // Records that arrived after the start are not part of the run.
    assert!((4_000..4_500).contains(&expected), "{expected}");
    let found = reader.read(&case.path("shadow"), &["path"]);
    assert_eq!((found.rows, found.distinct), (expected, Some(expected)));
    assert_eq!(run["counters"]["out"].as_u64(), Some(expected));

    log.append(500);
    wait_for_rows(&reader, &case.path("lake"), log.lines());
    stop(live);
    case.until_idle("a", LONG);
    assert_every_line_once(&reader, &case.path("lake"), &log);
}

fn a_range_in_the_middle_is_replayed_and_its_destination_is_protected(kind: BrokerKind) {
    let (kafka, reader) = (need!(Kafka::shared(kind)), need!(Reader::find()));
    let case = new_case("replay-range", kafka);
    let mut log = LogWriter::new(case.path("logs/access.log"), 701);
    log.append(3_000);
    case.pipeline("access", &access_logs());
    case.until_idle("a", LONG);
    let topic = format!("{}.web", case.name());
    let mut ends: BTreeMap<i32, i64> = BTreeMap::new();
    for record in kafka.read(&topic) {
        ends.insert(record.partition, record.offset + 1);
    }
    let positions = |position: &dyn Fn(i64) -> i64| {
        ends.iter().map(|(partition, end)| format!("{partition}:{}", position(*end))).collect::<Vec<_>>().join(",")
    };
    let (from, to) = (positions(&|end| end / 4), positions(&|end| end * 3 / 4));
    let into = shadow(&case);
    let range = ["--from", &from, "--to", &to];

    // Nothing is written into the live destination.
    let refused = replay(&case, &range);
    assert!(refused.stderr.contains("[replay.live_destination]"), "{}", refused.describe());
    let inside = into.replace("shadow", "lake/v2");
    let refused = replay(&case, &[&range[..], &["--into", &inside]].concat());
    assert!(refused.stderr.contains("[replay.live_destination]"), "{}", refused.describe());

    let planned = replay(&case, &[&range[..], &["--into", &into, "--dry-run"]].concat());
    assert_eq!(planned.code, Some(0), "{}", planned.describe());
    assert!(planned.stdout.contains("New files are added"), "{}", planned.describe());
    assert!(!case.path("shadow").exists());
    assert_eq!(case.ask_worker("runs", "replay", &["--kind", "replay", "--json"], LONG).stdout.trim(), "[]");

    // A run that is not finished keeps others out of its destination.
    let slow = [&range[..], &["--into", &into, "--rate", "1"]].concat();
    let running = case.start_command("replay", &[], &[&[case.name()], &slow[..]].concat());
    wait::until("the run", LONG, || {
        let listed = case.ask_worker("runs", "replay", &["--kind", "replay", "--json"], LONG);
        (listed.stdout.trim() != "[]").then_some(())
    });
    let other = replay(&case, &["--from", "earliest", "--into", &into]);
    assert!(other.stderr.contains("[replay.destination_in_use]"), "{}", other.describe());
    let id = only_run(&case)["id"].as_str().unwrap().to_owned();
    wait::until("the run's member", LONG, || (only_run(&case)["state"] == "running").then_some(()));
    let stopped = case.ask_worker("runs", "replay", &["stop", &id], LONG);
    assert_eq!(stopped.code, Some(0), "{}", stopped.describe());
    let exit = running.wait(LONG);
    assert_eq!(exit.code, Some(1), "{}", exit.describe());
    assert_eq!(only_run(&case)["state"], "stopped");

    let resumed = replay(&case, &["--resume", &id]);
    assert_eq!(resumed.code, Some(0), "{}", resumed.describe());
    let run = only_run(&case);
    assert_eq!(run["state"], "finished");
    let expected = paths_in(kafka, &topic, &run).len() as u64;
    assert!(expected > 1_000, "{expected}");
    let found = reader.read(&case.path("shadow"), &["path"]);
    assert_eq!((found.rows, found.distinct), (expected, Some(expected)));

    let again = replay(&case, &["--from", "earliest", "--into", &into]);
    assert!(again.stderr.contains("[replay.output_exists]"), "{}", again.describe());
    let empty = replay(&case, &["--from", "latest", "--into", &into]);
    assert!(empty.stderr.contains("[replay.empty]"), "{}", empty.describe());
    a_shadow_is_compared_with_the_live_files(&case, log.lines());
    assert_every_line_once(&reader, &case.path("lake"), &log);
}

fn a_shadow_is_compared_with_the_live_files(case: &Case, lines: u64) {
    let into = shadow(case).replace("shadow", "compared");
    let filled = replay(case, &["--from", "earliest", "--into", &into, "--json"]);
    assert_eq!(filled.code, Some(0), "{}", filled.describe());
    let last: Value = serde_json::from_str(filled.stdout.lines().last().unwrap()).unwrap();
    let id = last["run"].as_str().unwrap();
    let diff = |more: &[&str]| case.run_command("replay", &["diff"], &[&[id, "--key", "path"], more].concat(), LONG);
    let same = diff(&[]);
    assert_eq!(same.code, Some(0), "{}", same.describe());
    assert!(same.stdout.contains(&format!("{lines} rows are equal, 0 changed")), "{}", same.describe());
    let files = parquet_files(&case.path("compared"));
    fs::remove_file(&files[0]).unwrap();
    let different = diff(&["--json", "--samples", "2"]);
    assert!(different.code == Some(1) && different.stderr.contains("[replay.different]"), "{}", different.describe());
    let found: Value = serde_json::from_str(&different.stdout).unwrap();
    let missing = found["only_live"].as_u64().unwrap();
    assert_eq!((found["equal"].as_u64().unwrap() + missing, &found["changed"]), (lines, &0.into()));
    assert!(missing > 0 && found["samples"][1]["live"]["path"].is_string(), "{found}");
}

fn a_position_is_moved_only_while_nothing_runs(kind: BrokerKind) {
    let (kafka, reader) = (need!(Kafka::shared(kind)), need!(Reader::find()));
    let case = new_case("offsets", kafka);
    let mut log = LogWriter::new(case.path("logs/access.log"), 702);
    log.append(1_000);
    case.pipeline("access", &access_logs());
    let live = case.start("a", &[]);
    wait_for_rows(&reader, &case.path("lake"), 1_000);
    let sink = format!("{}.lake", case.name());
    let offsets =
        |verb: &str, name: &str, more: &[&str]| case.run_command("offsets", &[verb], &[&[name], more].concat(), LONG);

    let refused = offsets("reset", &sink, &["--yes"]);
    assert!(refused.stderr.contains("[offsets.in_use]"), "{}", refused.describe());
    stop(live);
    let refused = offsets("reset", &sink, &[]);
    assert!(refused.stderr.contains("[offsets.not_confirmed]"), "{}", refused.describe());
    let refused = offsets("set", &format!("{}.web", case.name()), &["--to", "earliest", "--yes"]);
    assert!(refused.stderr.contains("[offsets.bad_position]"), "{}", refused.describe());
    let shown = offsets("show", case.name(), &["--json"]);
    let shown: Value = serde_json::from_str(&shown.stdout).unwrap();
    assert_eq!((&shown[0]["kind"], &shown[1]["kind"]), (&"source".into(), &"sink".into()));
    assert!(shown[0]["positions"][0]["position"].to_string().contains(&log.size().to_string()), "{shown}");
    case.until_idle("a", LONG);
    assert_eq!(reader.read(&case.path("lake"), &["path"]).rows, 1_000, "the refused commands changed nothing");

    let reset = offsets("reset", &sink, &["--yes", "--json"]);
    assert_eq!(reset.code, Some(0), "{}", reset.describe());
    let changes: Vec<Value> = serde_json::from_str(&reset.stdout).unwrap();
    assert!(changes.iter().all(|change| change["after"] == 0), "{}", reset.stdout);
    assert!(changes.iter().any(|change| change["before"].as_i64() > Some(0)), "{}", reset.stdout);
    let summary = case.until_idle("a", LONG);
    assert_eq!(summary.of(case.name(), "lake").output, 2_000);
    let found = reader.read(&case.path("lake"), &["path"]);
    assert_eq!((found.rows, found.distinct), (2_000, Some(1_000)));
    // The counters hold both deliveries: the ranges show that they overlap.
    let audited = case.run_command("audit", &[], &[&sink], LONG);
    assert_eq!(audited.code, Some(1), "{}", audited.describe());
    assert!(audited.stdout.contains("overlap"), "{}", audited.describe());

    let set = offsets("set", &sink, &["--to", "latest", "--yes"]);
    assert_eq!(set.code, Some(0), "{}", set.describe());
    assert_eq!(case.until_idle("a", LONG), summary);
}

/// The files below a folder for unfinished output.
fn staged_files(case: &Case) -> usize {
    let mut count = 0;
    for folder in fs::read_dir(case.path("lake/.trunkline-staging")).unwrap() {
        count += fs::read_dir(folder.unwrap().path()).unwrap().count();
    }
    count
}

#[test]
fn a_killed_replay_replaces_files_while_live_records_arrive() {
    let (kafka, reader) = (need!(Kafka::any()), need!(Reader::find()));
    let case = new_case("supersede", kafka);
    let mut log = LogWriter::new(case.path("logs/access.log"), 708);
    log.append(3_000);
    case.pipeline("access", &access_logs());
    let live = case.start("a", &[]);
    wait_for_rows(&reader, &case.path("lake"), 3_000);
    let before = parquet_files(&case.path("lake"));
    // Today's transforms drop some records. The worker has not read the file again.
    let mask = "plugin = \"mask.wasm\"\nconfig = { fields = [\"remote_addr\"] }";
    let filter = "plugin = \"filter.wasm\"\nconfig = { condition = \"!value.path.endsWith('7')\" }";
    assert!(access_logs().contains(mask));
    case.pipeline("access", &access_logs().replace(mask, filter));

    let arguments = [case.name(), "--from", "earliest", "--supersede"];
    let planned = case.run_command("replay", &[], &[&arguments[..], &["--dry-run"]].concat(), LONG);
    let sentence = format!("Replaces {} files with 3000 rows", before.len());
    assert!(planned.stdout.contains(&sentence), "{}", planned.describe());
    let both = replay(&case, &["--from", "earliest", "--supersede", "--dead-letters"]);
    assert_eq!(both.code, Some(2), "{}", both.describe());

    let killed = case.start_command("replay", &[], &[&arguments[..], &["--rate", "1200"]].concat());
    wait::until("a run with rows", LONG, || {
        let listed = case.ask_worker("runs", "replay", &["--kind", "replay", "--json"], LONG);
        let runs: Vec<Value> = serde_json::from_str(&listed.stdout).unwrap_or_default();
        runs.first()?["counters"]["out"].as_u64().filter(|out| *out > 0)
    });
    log.append(500);
    killed.kill9();
    assert!(before.iter().all(|file| file.exists()) && staged_files(&case) > 0, "nothing is replaced yet");
    let second = replay(&case, &["--from", "-1d", "--supersede"]);
    assert!(second.stderr.contains("[replay.destination_in_use]"), "{}", second.describe());

    let last = case.run_command("replay", &[], &arguments, LONG);
    assert_eq!(last.code, Some(0), "{}", last.describe());
    assert!(last.stderr.contains("files replaced; readers may have seen"), "{}", last.describe());
    let run = only_run(&case);
    assert_eq!((&run["state"], &run["supersede"]["step"]), (&"finished".into(), &"done".into()), "{run}");
    assert!(before.iter().all(|file| !file.exists()), "{before:?}");
    let replayed = paths_in(kafka, &format!("{}.web", case.name()), &run);
    let dropped = replayed.iter().filter(|path| path.ends_with('7')).count() as u64;
    assert!(replayed.len() >= 3_000 && dropped > 100, "{} records, {dropped} dropped", replayed.len());
    log.append(200);
    let expected = log.lines() - dropped;
    wait_for_rows(&reader, &case.path("lake"), expected);
    stop(live);
    let found = reader.read(&case.path("lake"), &["path"]);
    assert_eq!((found.rows, found.distinct), (expected, Some(expected)));
    assert_eq!(staged_files(&case), 0);
    let audited = case.run_command("audit", &[], &[&format!("{}.lake", case.name())], LONG);
    assert_eq!(audited.code, Some(0), "{}", audited.describe());
    a_run_is_given_up(&case);
}

/// A run that has not published anything leaves no trace.
fn a_run_is_given_up(case: &Case) {
    let before = parquet_files(&case.path("lake"));
    let slow = [case.name(), "--from", "earliest", "--supersede", "--rate", "500"];
    let running = case.start_command("replay", &[], &slow);
    let unfinished = || -> Option<Value> {
        let listed = case.ask_worker("runs", "replay", &["--kind", "replay", "--json"], LONG);
        let runs: Vec<Value> = serde_json::from_str(&listed.stdout).unwrap_or_default();
        runs.into_iter().find(|run| run["supersede"]["step"] == "staging")
    };
    let id = wait::until("staged rows", LONG, || {
        let run = unfinished()?;
        run["counters"]["out"].as_u64().filter(|out| *out > 0)?;
        run["id"].as_str().map(str::to_owned)
    });
    let stopped = case.ask_worker("runs", "replay", &["stop", &id], LONG);
    assert_eq!(stopped.code, Some(0), "{}", stopped.describe());
    assert_eq!(running.wait(LONG).code, Some(1));
    assert!(staged_files(case) > 0);

    let discarded = case.run_command("replay", &[], &[case.name(), "--discard", &id], LONG);

    assert_eq!(discarded.code, Some(0), "{}", discarded.describe());
    assert_eq!((parquet_files(&case.path("lake")), staged_files(case)), (before, 0));
    let refused = case.run_command("replay", &[], &[case.name(), "--resume", &id], LONG);
    assert!(refused.stderr.contains("[replay.finished]"), "{}", refused.describe());
}

#[test]
fn a_replay_whose_records_are_deleted_stops_and_skips_nothing() {
    let kafka = need!(Kafka::any());
    let case = new_case("replay-deleted", kafka);
    let mut log = LogWriter::new(case.path("logs/access.log"), 706);
    log.append(2_000);
    case.pipeline("access", &access_logs());
    case.until_idle("a", LONG);
    let (topic, into) = (format!("{}.web", case.name()), shadow(&case));
    // All lines of a file are in one partition.
    let partition = kafka.read(&topic)[0].partition;
    let from = format!("{partition}:0");
    let arguments = ["--from", &from, "--into", &into];
    let running = case.start_command("replay", &[], &[&[case.name()], &arguments[..], &["--rate", "100"]].concat());
    wait::until("a run with rows", LONG, || {
        let listed = case.ask_worker("runs", "replay", &["--kind", "replay", "--json"], LONG);
        let runs: Vec<Value> = serde_json::from_str(&listed.stdout).unwrap_or_default();
        runs.first()?["counters"]["out"].as_u64().filter(|out| *out > 0)
    });
    running.kill9();
    kafka.delete_records(&topic, partition, 1_990);

    let failed = replay(&case, &arguments);

    assert_eq!(failed.code, Some(1), "{}", failed.describe());
    assert!(failed.stderr.contains("[replay.deleted]"), "{}", failed.describe());
    let run = only_run(&case);
    assert_eq!(run["state"], "failed");
    assert!(run["counters"]["out"].as_u64().unwrap() < 1_990, "{run}");
    // A new range must not begin with deleted records, by offset or by time.
    let other = into.replace("shadow", "other");
    for from in [&from[..], "-7d"] {
        let refused = replay(&case, &["--from", from, "--into", &other]);
        assert!(refused.stderr.contains("[replay.deleted]"), "{}", refused.describe());
        assert!(refused.stderr.contains("1990"), "{}", refused.describe());
    }
}

#[test]
fn an_audit_names_missing_and_repeated_ranges() {
    let (kafka, reader) = (need!(Kafka::any()), need!(Reader::find()));
    let case = new_case("audit", kafka);
    let mut log = LogWriter::new(case.path("logs/access.log"), 703);
    case.pipeline("access", &access_logs());
    // Each run ends with a file.
    for _ in 0..2 {
        log.append(2_500);
        case.until_idle("a", LONG);
    }
    assert_every_line_once(&reader, &case.path("lake"), &log);
    let sink = format!("{}.lake", case.name());
    let audit = || {
        let exit = case.run_command("audit", &[], &[&sink, "--json"], LONG);
        let audit: Value = serde_json::from_str(&exit.stdout).unwrap_or_else(|_| panic!("{}", exit.describe()));
        (exit.code, audit)
    };
    let lists = |audit: &Value, list: &str| -> Vec<Value> {
        let partitions = audit["partitions"].as_array().unwrap().iter();
        partitions.flat_map(|partition| partition[list].as_array().unwrap().clone()).collect()
    };
    let (code, complete) = audit();
    assert_eq!((code, &complete["complete"]), (Some(0), &true.into()), "{complete}");
    let files = parquet_files(&case.path("lake"));
    assert!(files.len() > 1, "{files:?}");

    // The first and the last offset are in the name.
    let victim = &files[0];
    let name = victim.file_name().unwrap().to_str().unwrap().to_owned();
    let offsets: Vec<&str> = name.rsplit('+').next().unwrap().split('-').collect();
    let (first, last): (i64, i64) = (offsets[0].parse().unwrap(), offsets[1].parse().unwrap());
    let moved = case.path("moved.parquet");
    fs::rename(victim, &moved).unwrap();
    let (code, missing) = audit();
    assert_eq!(code, Some(1));
    let covers = |gap: &Value| gap[0].as_i64().unwrap() <= first && gap[1].as_i64().unwrap() >= last;
    assert!(lists(&missing, "gaps").iter().any(covers), "{first} to {last} in {missing}");

    fs::rename(&moved, victim).unwrap();
    fs::copy(victim, victim.with_file_name("copy.parquet")).unwrap();
    fs::write(case.path("lake/README"), "not a Parquet file").unwrap();
    let (code, repeated) = audit();
    assert_eq!((code, lists(&repeated, "copies").len()), (Some(1), 1), "{repeated}");
    assert!(!lists(&repeated, "overlaps").is_empty() && lists(&repeated, "gaps").is_empty(), "{repeated}");
    assert!(repeated["foreign"][0].as_str().unwrap().ends_with("README"), "{repeated}");
    fs::remove_file(victim.with_file_name("copy.parquet")).unwrap();
    assert_eq!(audit().0, Some(0));
}

/// `rejected` is a line of `--to-stdout`.
fn trace_shows_where_records_ended(case: &Case, rejected: &Value, letters: usize) {
    let place = |line: &Value| format!("{}:{}:{}", line["topic"].as_str().unwrap(), line["partition"], line["offset"]);
    let trace = |place: &str| case.run_command("trace", &[], &[case.name(), "--record", place, "--json"], LONG);
    let stage_of = |place: &str| -> Value {
        let traced = trace(place);
        assert_eq!(traced.code, Some(0), "{}", traced.describe());
        let traced: Value = serde_json::from_str(&traced.stdout).unwrap();
        assert_eq!(traced["stages"].as_array().unwrap().len(), 1, "{traced}");
        assert!(traced["record"]["headers"]["trunkline.path"].is_string(), "{traced}");
        traced["stages"][0].clone()
    };
    let stage = stage_of(&place(rejected));
    assert_eq!((&stage["steps"][0]["verdict"], &stage["is_processed"]), (&"rejected".into(), &true.into()), "{stage}");
    let code = &stage["dead_letters"][0]["code"];
    assert_eq!((code, &stage["files"]), (&rejected["rejected"], &Value::Array(Vec::new())), "{stage}");
    // The first record that was not rejected is in a file.
    let all = replay(case, &["--from", "earliest", "--to-stdout"]);
    let lines: Vec<Value> = all.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.iter().filter(|line| line["rejected"].is_string()).count(), letters, "{}", all.describe());
    let passed = lines.iter().find(|line| line["rejected"].is_null()).unwrap();
    let stage = stage_of(&place(passed));
    assert_eq!((stage["files"].as_array().unwrap().len(), &stage["results"]), (1, &1.into()), "{stage}");
    // Back from the row: it is the first of its file or a later one, as its offset says.
    let file = stage["files"][0].as_str().unwrap();
    let found = case.run_command("trace", &[], &[case.name(), "--file", file, "--row", "0", "--json"], LONG);
    assert_eq!(found.code, Some(0), "{}", found.describe());
    let found: Value = serde_json::from_str(&found.stdout).unwrap();
    assert_eq!(found["record"]["offset"], passed["offset"], "{found}");
    let host_or_path = &found["origin"]["path"];
    assert!(host_or_path.as_str().unwrap().ends_with("access.log") && found["origin"]["byte"].is_u64(), "{found}");
    let missing = trace(&format!("{}:{}:999999", passed["topic"].as_str().unwrap(), passed["partition"]));
    assert!(missing.stderr.contains("[cli.no_record]"), "{}", missing.describe());
}

#[test]
fn commands_say_that_no_worker_has_run() {
    let kafka = need!(Kafka::any());
    let mut case = new_case("no-worker", kafka);
    // No state topics have this prefix.
    case.set("TRUNKLINE_PREFIX", "no-worker-");
    case.pipeline("access", &access_logs());
    let sink = format!("{}.lake", case.name());
    let on_pipelines = |name: &str, before: &[&str], argument: &str| case.run_command(name, before, &[argument], LONG);
    let outcomes = [
        ("not committed anything yet", on_pipelines("audit", &[], &sink)),
        ("no positions yet", on_pipelines("offsets", &["show"], case.name())),
        ("no dead letters", case.run_command("dlq", &["list"], &[], LONG)),
        ("", case.run_command("dlq", &["redrive", case.name()], &[], LONG)),
        ("no runs", case.ask_worker("runs", "replay", &[], LONG)),
    ];
    for (expected, exit) in outcomes {
        assert_eq!(exit.code, Some(0), "{}", exit.describe());
        assert!(exit.stderr.contains(expected) && !exit.stderr.contains("error"), "{}", exit.describe());
    }
}

#[test]
fn an_audit_reads_the_footers_of_a_bucket() {
    let (kafka, s3) = (need!(Kafka::any()), need!(S3::shared()));
    let case = new_case("audit-s3", kafka);
    let bucket = s3.bucket(case.name());
    let mut log = LogWriter::new(case.path("logs/access.log"), 705);
    log.append(3_000);
    case.pipeline("access", &access_logs_to_s3(&s3.address()));
    case.until_idle("a", LONG);
    let sink = format!("{}.lake", case.name());
    let complete = case.run_command("audit", &[], &[&sink], LONG);
    assert_eq!(complete.code, Some(0), "{}", complete.describe());
    assert!(complete.stdout.contains(" 3000 "), "{}", complete.describe());
    let files = parquet_files(&bucket.join("logs"));
    let lost = files.last().unwrap().file_name().unwrap().to_str().unwrap().to_owned();
    fs::remove_file(files.last().unwrap()).unwrap();
    let incomplete = case.run_command("audit", &[], &[&sink], LONG);
    assert_eq!(incomplete.code, Some(1), "{}", incomplete.describe());
    assert!(incomplete.stdout.contains("gap: no file has the offsets"), "{lost} in {}", incomplete.describe());
}

#[test]
fn dead_letters_of_a_replay_carry_the_run_and_are_not_redriven() {
    let (kafka, plugin) = (need!(Kafka::any()), test_plugin());
    let case = new_case("replay-letters", kafka);
    let mut log = LogWriter::new(case.path("logs/access.log"), 704);
    log.append(300);
    case.pipeline("access", &access_logs());
    case.until_idle("a", LONG);
    let rejecting =
        access_logs().replace(r#"config = { fields = ["remote_addr"] }"#, "config = { reject_on = '/item/1' }");
    case.pipeline("access", &rejecting.replace("mask.wasm", plugin.to_str().unwrap()));

    // Today's transforms apply.
    let done = replay(&case, &["--from", "-1d", "--into", &shadow(&case)]);
    assert_eq!(done.code, Some(0), "{}", done.describe());

    let id = only_run(&case)["id"].as_str().unwrap().to_owned();
    let letters = kafka.read(&format!("{}.dead-letters", case.name()));
    assert!(!letters.is_empty() && letters.iter().all(|letter| letter.header("trunkline.replay") == id));
    let redriven = case.run_command("dlq", &["redrive", case.name()], &[], LONG);
    assert_eq!(redriven.code, Some(1), "{}", redriven.describe());
    assert!(redriven.stdout.contains(&format!("stay: the replay {id}")), "{}", redriven.describe());
}

#[test]
fn rejected_records_are_inspected_and_replayed_alone_and_a_run_is_paused() {
    let (kafka, reader, plugin) = (need!(Kafka::any()), need!(Reader::find()), test_plugin());
    let case = new_case("replay-failed", kafka);
    let mut log = LogWriter::new(case.path("logs/access.log"), 707);
    log.append(300);
    let text = access_logs().replace("inputs = [\"clean\"]", "inputs = [\"clean\"]\nreplay.rate = 100");
    case.pipeline("access", &text);
    fs::rename(case.path("pipelines/access.toml"), case.path("earlier.toml")).unwrap();
    let rejecting = text.replace(r#"config = { fields = ["remote_addr"] }"#, "config = { reject_on = '/item/1' }");
    case.pipeline("access", &rejecting.replace("mask.wasm", plugin.to_str().unwrap()));
    case.until_idle("a", LONG);
    let letters = kafka.read(&format!("{}.dead-letters", case.name())).len();
    assert!((1..300).contains(&letters), "{letters}");

    // The result of the transforms, without a run.
    let inspected = replay(&case, &["--from", "earliest", "--to-stdout", "--where", "value.path.contains('/item/1')"]);
    assert_eq!(inspected.code, Some(0), "{}", inspected.describe());
    let lines: Vec<Value> = inspected.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(
        lines.len() == letters && lines.iter().all(|line| line["component"] == "clean"),
        "{}",
        inspected.describe()
    );
    trace_shows_where_records_ended(&case, &lines[0], letters);
    let earlier = case.path("earlier.toml").display().to_string();
    let failed = ["--from", "earliest", "--dead-letters", "--pipeline-file", &earlier];
    let inspected = replay(&case, &[&failed[..], &["--to-stdout", "--limit", "1"]].concat());
    let line: Value = serde_json::from_str(&inspected.stdout).unwrap();
    assert!(line["rejected"].is_null() && line["value"]["remote_addr"] == "***", "{}", inspected.describe());
    assert_eq!(case.ask_worker("runs", "replay", &["--kind", "replay", "--json"], LONG).stdout.trim(), "[]");

    let into = shadow(&case);
    // Slow enough for the pause: the rate counts the records that are replayed.
    let run = [&[case.name()], &failed[..], &["--into", &into, "--rate", "2"]].concat();
    let running = case.start_command("replay", &[], &run);
    let state = |expected: &str| (only_run(&case)["state"] == expected).then_some(());
    wait::until("a run with records", LONG, || {
        let listed = case.ask_worker("runs", "replay", &["--kind", "replay", "--json"], LONG);
        let runs: Vec<Value> = serde_json::from_str(&listed.stdout).unwrap_or_default();
        runs.first().filter(|run| run["state"] == "running").map(|_| ())
    });
    let id = only_run(&case)["id"].as_str().unwrap().to_owned();
    let change = |verb: &str| case.ask_worker("runs", "replay", &[verb, &id], LONG);
    assert_eq!(change("pause").code, Some(0));
    wait::until("the pause", LONG, || state("paused"));
    let done = only_run(&case)["offsets_done"].clone();
    assert!(done.as_u64() < only_run(&case)["offsets_total"].as_u64(), "{}", only_run(&case));
    running.kill9();
    // The same command waits, and continues when the run is resumed.
    let running = case.start_command("replay", &[], &run[..run.len() - 2]);
    wait::until("the command that waits", LONG, || running.stderr().contains("is paused").then_some(()));
    assert_eq!(only_run(&case)["offsets_done"], done);
    assert_eq!(change("resume").code, Some(0));
    let exit = running.wait(LONG);
    assert_eq!(exit.code, Some(0), "{}", exit.describe());
    assert_eq!(only_run(&case)["counters"]["in"].as_u64(), Some(letters as u64), "{}", only_run(&case));
    let found = reader.read(&case.path("shadow"), &["path"]);
    assert_eq!((found.rows, found.distinct), (letters as u64, Some(letters as u64)));
    let refused = change("pause");
    assert!(refused.stderr.contains("[replay.finished]"), "{}", refused.describe());
    a_worker_acts_on_a_replay(&case, &failed, &id);
}

/// Each worker pauses, resumes and stops the replays of its cluster by REST.
fn a_worker_acts_on_a_replay(case: &Case, range: &[&str], finished: &str) {
    let worker = case.start_with("a", &[], &[("TRUNKLINE_HTTP", "127.0.0.1:0")]);
    let address = address(&worker);
    let into = format!("url=\"file://{}\"", case.path("stopped").display());
    let arguments = [&[case.name()], range, &["--into", &into, "--rate", "2"]].concat();
    let replay = case.start_command("replay", &[], &arguments);
    let get = |path: &str| -> Value { serde_json::from_str(&send(&address, "GET", path, "").1).unwrap_or_default() };
    let run = wait::until("the run in the list", LONG, || {
        let runs = get("/api/v1/runs?kind=replay");
        runs.as_array()?.iter().find(|run| run["state"] == "running").cloned()
    });
    let path = format!("/api/v1/runs/{}", run["id"].as_str().unwrap());
    for (action, state) in [("pause", "paused"), ("resume", "running"), ("stop", "stopped")] {
        let (status, answer) = send(&address, "POST", &format!("{path}/{action}"), "Content-Length: 0\r\n");
        assert_eq!(status, 202, "{action}: {answer}");
        wait::until(state, LONG, || (get(&path)["state"] == state).then_some(()));
    }
    let exit = replay.wait(LONG);
    assert!(exit.stderr.contains("--resume"), "{}", exit.describe());
    let refused = send(&address, "POST", &format!("/api/v1/runs/{finished}/pause"), "Content-Length: 0\r\n");
    assert!(refused.0 == 400 && refused.1.contains("replay.finished"), "{refused:?}");
    stop(worker);
}
