//! State of transforms: workers are killed and partitions move in the middle of a pipeline that
//! removes duplicates and aggregates. The output is compared with a truth that the test computes.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, SystemTime};

use trunkline_tests::{Case, Kafka, LogWriter, Random, need, wait};

use crate::LONG;

const PIPELINE: &str = r#"
name = "$NAME"

[sources.readings]
connector = "logfile"
paths = ["$DIR/logs/*.log"]
parser = "json"
apply = ["by_device"]
partitions = 3

[transforms.by_device]
plugin = "rekey.wasm"
config = { fields = ["device"] }

[transforms.clock]
inputs = ["readings"]
plugin = "timestamp.wasm"
config = { field = "at", from = "unix_ms", set_timestamp = true }

[transforms.unique]
inputs = ["clock"]
plugin = "dedupe.wasm"
config = { fields = ["id"], within = "1h" }
partitions = 3

[transforms.minutes]
inputs = ["unique"]
plugin = "aggregate.wasm"
config = { group_by = ["device"], window = "1m", aggregates = { n = "count()", total = "sum(row.celsius)" } }
topic = "$NAME.minutes"
state = { max_bytes = "8MiB" }

[transforms.watch]
inputs = ["unique"]
plugin = "absence.wasm"
config = { fields = ["device"], after = "3s", take = ["device"] }
topic = "$NAME.watch"
partitions = 3
"#;

/// A device that has no reading for this time is silent.
const SILENCE: i64 = 3_000;

const DEVICES: u64 = 12;
const MINUTE: i64 = 60_000;

/// Readings of devices, each of them written once or several times.
struct Readings {
    random: Random,
    log: LogWriter,
    /// The time of the next reading.
    now: i64,
    next_id: u64,
    recent: Vec<String>,
    /// Count and sum in hundredths, by device and start of the window.
    truth: BTreeMap<(String, i64), (u64, i64)>,
    /// The time of the last reading of each device.
    last: BTreeMap<String, i64>,
    /// The devices that were silent, and the last reading before that.
    silent: Vec<(String, i64)>,
    duplicates: u64,
}

impl Readings {
    fn append(&mut self, count: u64) {
        let mut lines = String::new();
        for _ in 0..count {
            self.now += self.random.below(200) as i64;
            if !self.recent.is_empty() && self.random.below(5) == 0 {
                let at = self.random.below(self.recent.len() as u64) as usize;
                lines.push_str(&self.recent[at]);
                self.duplicates += 1;
                continue;
            }
            let device = format!("d{}", self.random.below(DEVICES));
            let hundredths = self.random.below(10_000) as i64 - 5_000;
            let window = self.truth.entry((device.clone(), self.now - self.now % MINUTE)).or_default();
            *window = (window.0 + 1, window.1 + hundredths);
            lines.push_str(&self.line(&device, hundredths));
        }
        self.log.append_raw(lines.as_bytes());
    }

    fn line(&mut self, device: &str, hundredths: i64) -> String {
        let (sign, digits) = (if hundredths < 0 { "-" } else { "" }, hundredths.abs());
        let celsius = format!("{sign}{}.{:02}", digits / 100, digits % 100);
        let id = self.next_id;
        self.next_id += 1;
        let line = format!("{{\"id\":{id},\"device\":\"{device}\",\"celsius\":{celsius},\"at\":{}}}\n", self.now);
        let last = self.last.insert(device.to_owned(), self.now);
        self.silent.extend(last.filter(|last| self.now - last >= SILENCE).map(|last| (device.to_owned(), last)));
        // A duplicate must not be so late that its window is closed: it repeats a recent line.
        if self.recent.len() == 50 {
            self.recent.remove(0);
        }
        self.recent.push(line.clone());
        line
    }

    /// Closes all windows: one reading of each device, which is not part of the truth.
    fn close(&mut self) {
        self.now += 10 * MINUTE;
        for device in 0..DEVICES {
            let line = self.line(&format!("d{device}"), 0);
            self.log.append_raw(line.as_bytes());
        }
    }
}

#[test]
fn kills_and_moves_keep_state_exactly_once() {
    let kafka = need!(Kafka::any());
    let mut case = Case::new("state", kafka);
    case.set("TRUNKLINE_COMMIT_INTERVAL", "100ms");
    case.pipeline("readings", PIPELINE);
    let seed = 1801;
    let hour_ago = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis() as i64 - 60 * MINUTE;
    let mut readings = Readings {
        random: Random::new(seed),
        log: LogWriter::new(case.path("logs/readings.log"), seed),
        now: hour_ago,
        next_id: 0,
        recent: Vec::new(),
        truth: BTreeMap::new(),
        last: BTreeMap::new(),
        silent: Vec::new(),
        duplicates: 0,
    };
    let output = format!("{}.minutes", case.name());
    for _ in 0..2 {
        readings.append(3_000);
        let life = Duration::from_millis(500 + readings.random.below(1_000));
        let exit = case.start("a", &[]).kill9_after(life);
        assert_eq!(exit.signal, Some(libc::SIGKILL), "{}", exit.describe());
    }
    // The partitions move to a second worker, and back when it leaves.
    let first = case.start("a", &[]);
    readings.append(3_000);
    let mut second = case.start("b", &[]);
    let group = format!("{}.{}.", case.name(), case.name());
    wait::until("both workers own partitions", LONG, || {
        let members = kafka.group_members(&group)?;
        ["unique", "minutes"].iter().all(|name| members.get(&format!("{group}{name}")) == Some(&2)).then_some(())
    });
    readings.append(3_000);
    let before = kafka.count(&output);
    wait::until("later results", LONG, || (kafka.count(&output) > before).then_some(()));
    second.sigterm();
    assert_eq!(second.wait(LONG).code, Some(0));
    let exit = first.kill9();
    assert_eq!(exit.signal, Some(libc::SIGKILL), "{}", exit.describe());
    readings.close();

    let summary = case.until_idle("a", LONG);

    let unique = summary.of(case.name(), "unique");
    assert_eq!(unique.dropped, readings.duplicates);
    let mut found = BTreeMap::new();
    for record in kafka.read(&output) {
        let value = record.json();
        let key = (value["device"].as_str().unwrap().to_owned(), value["window_start"].as_i64().unwrap());
        let total = (value["total"].as_f64().unwrap() * 100.0).round() as i64;
        let repeated = found.insert(key.clone(), (value["n"].as_u64().unwrap(), total));
        assert_eq!(repeated, None, "a second result of {key:?}");
    }
    assert!(readings.truth.len() > 100, "{} windows", readings.truth.len());
    assert_eq!(found, readings.truth, "seed {seed}");
    // Timers: each silence once, in the order of each device.
    let mut found: Vec<(String, i64)> = Vec::new();
    for record in kafka.read(&format!("{}.watch.absent", case.name())) {
        let value = record.json();
        found.push((value["device"].as_str().unwrap().to_owned(), value["last_seen"].as_i64().unwrap()));
    }
    assert!(readings.silent.len() > 100, "{}", readings.silent.len());
    found.sort();
    readings.silent.sort();
    assert_eq!(found, readings.silent, "seed {seed}");
}

const IDLE: &str = r#"
name = "$NAME"

[sources.beats]
connector = "logfile"
paths = ["$DIR/logs/*.log"]
parser = "json"
partitions = 1

[transforms.clock]
inputs = ["beats"]
plugin = "timestamp.wasm"
config = { field = "at", from = "unix_ms", set_timestamp = true }

[transforms.watch]
inputs = ["clock"]
plugin = "absence.wasm"
config = { fields = ["device"], after = "500ms" }
topic = "$NAME.watch"
timers = { idle = "1s" }

[transforms.windows]
inputs = ["clock"]
plugin = "aggregate.wasm"
config = { group_by = ["device"], window = "100ms", aggregates = { n = "count()" } }
topic = "$NAME.windows"
timers = { idle = "1s" }
"#;

/// The timers of a partition without records fire by the clock, once, also around a kill.
#[test]
fn timers_of_an_idle_partition_fire_once() {
    let kafka = need!(Kafka::any());
    let case = Case::new("state-idle", kafka);
    case.pipeline("beats", IDLE);
    let (absent, windows) = (format!("{}.watch.absent", case.name()), format!("{}.windows", case.name()));
    let mut log = LogWriter::new(case.path("logs/beats.log"), 1803);
    let mut beat = |device: &str| {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis();
        log.append_raw(format!("{{\"device\":\"{device}\",\"at\":{now}}}\n").as_bytes());
    };
    let devices_in = |topic: &str| -> Vec<String> {
        let records = kafka.read(topic);
        records.iter().map(|record| record.json()["device"].as_str().unwrap().to_owned()).collect()
    };
    let devices = || match [&absent, &windows].map(|topic| kafka.has_topic(topic)) {
        [true, true] => [devices_in(&absent), devices_in(&windows)],
        _ => [Vec::new(), Vec::new()],
    };
    let both = |names: &[&str]| {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        [names.clone(), names]
    };
    beat("a");
    let worker = case.start("a", &[]);
    wait::until("the first device is missed", LONG, || (devices() == both(&["a"])).then_some(()));
    beat("b");
    let killed = worker.kill9();
    assert_eq!(killed.signal, Some(libc::SIGKILL), "{}", killed.describe());
    let worker = case.start("a", &[]);
    wait::until("the second device is missed", LONG, || (devices() == both(&["a", "b"])).then_some(()));
    worker.kill9();
    let summary = case.until_idle("a", LONG);
    assert_eq!(devices(), both(&["a", "b"]));
    let of = |component: &str| summary.of(case.name(), component);
    let (watch, windows) = (of("watch"), of("windows"));
    assert_eq!((watch.input, watch.output, watch.extra), (2, 4, 2));
    assert_eq!((windows.input, windows.output, windows.extra, windows.dropped), (2, 2, 2, 2));
}

const STOPS: &str = r#"
name = "$NAME"

[sources.numbers]
connector = "logfile"
paths = ["$DIR/logs/*.log"]
parser = "json"
partitions = 1

[transforms.clock]
inputs = ["numbers"]
plugin = "timestamp.wasm"
config = { field = "at", from = "unix_ms", set_timestamp = true }

[transforms.sums]
inputs = ["clock"]
plugin = "aggregate.wasm"
config = { window = "1d", emit = "updates", aggregates = { n = "count()", sum = "sum(row.n)" } }
topic = "$NAME.sums"
on_error = "stop"
"#;

/// The records before a rejected one change the state once, however often the stage runs.
#[test]
fn a_rejected_record_stops_a_stage_with_the_state_before_it() {
    let kafka = need!(Kafka::any());
    let case = Case::new("state-stop", kafka);
    case.pipeline("sums", STOPS);
    let sums = || {
        let records = kafka.read(&format!("{}.sums", case.name()));
        records
            .iter()
            .map(|record| record.json())
            .map(|it| (it["n"].as_u64().unwrap(), it["sum"].as_u64().unwrap()))
            .collect::<Vec<_>>()
    };
    let expected = |count: u64| (1..=count).map(|n| (n, n * (n + 1) / 2)).collect::<Vec<_>>();
    let mut lines: String = (1..=20).map(|n| format!("{{\"n\":{n},\"at\":1700000000000}}\n")).collect();
    lines.push_str("{\"n\":\"text\",\"at\":1700000000000}\n");
    lines.extend((21..=40).map(|n| format!("{{\"n\":{n},\"at\":1700000000000}}\n")));
    std::fs::write(case.path("logs/a.log"), &lines).unwrap();
    for _ in 0..2 {
        let exit = case.start("a", &["--until-idle"]).wait(LONG);
        assert_eq!(exit.code, Some(1), "{}", exit.describe());
        assert!(exit.stderr.contains("`sums` rejected the record at offset 20"), "{}", exit.describe());
        assert_eq!(sums(), expected(20));
    }
    case.pipeline("sums", &STOPS.replace("\"stop\"", "\"skip\""));
    let summary = case.until_idle("a", LONG);
    assert_eq!(sums(), expected(40));
    assert_eq!(summary.of(case.name(), "sums").dropped, 1);
}

/// A replay has a state of its range, which it keeps through kills; the live transform is not
/// disturbed, and no topic of the live pipelines gets the records again.
#[test]
fn a_killed_replay_of_a_transform_fills_a_shadow_topic_once() {
    let kafka = need!(Kafka::any());
    let mut case = Case::new("state-replay", kafka);
    case.set("TRUNKLINE_COMMIT_INTERVAL", "100ms");
    fs::create_dir_all(case.path("data-replay/plugins")).unwrap();
    case.pipeline("sums", STOPS);
    let count = 3_000;
    let lines: String = (1..=count).map(|n| format!("{{\"n\":{n},\"at\":1700000000000}}\n")).collect();
    let mut log = LogWriter::new(case.path("logs/numbers.log"), 1802);
    log.append_raw(lines.as_bytes());
    case.until_idle("a", LONG);
    let shadow = format!("{}.sums-v2", case.name());
    let sums = |topic: &str| {
        let records = kafka.read(topic);
        let values = records.iter().map(|record| record.json());
        values.map(|it| (it["n"].as_u64().unwrap(), it["sum"].as_u64().unwrap())).collect::<Vec<_>>()
    };
    let live = sums(&format!("{}.sums", case.name()));
    let arguments = [case.name(), "--transform", "sums", "--from", "earliest"];
    let replay = |more: &[&str]| case.run_command("replay", &[], &[&arguments[..], more].concat(), LONG);
    let runs = || -> Vec<serde_json::Value> {
        let listed = case.ask_worker("runs", "replay", &["--kind", "replay", "--json"], LONG);
        serde_json::from_str(&listed.stdout).unwrap_or_default()
    };
    let refused = replay(&[]);
    assert!(refused.stderr.contains("[replay.live_destination]"), "{}", refused.describe());
    let appended = replay(&["--append", "--dry-run"]);
    assert!(appended.stdout.contains("all of its readers get them"), "{}", appended.describe());
    let into = format!("topic=\"{shadow}\"");
    let planned = replay(&["--into", &into, "--dry-run"]);
    assert!(planned.stdout.contains("builds it from the range"), "{}", planned.describe());
    assert!(!kafka.has_topic(&shadow) && runs().is_empty());

    for done in [0, 800] {
        let slow = [&arguments[..], &["--into", &into, "--rate", "700"]].concat();
        let killed = case.start_command("replay", &[], &slow);
        wait::until("a run with records", LONG, || {
            runs().first()?["counters"]["out"].as_u64().filter(|out| *out > done)
        });
        killed.kill9();
    }
    let last = replay(&["--into", &into]);

    assert_eq!(last.code, Some(0), "{}", last.describe());
    let run = runs().remove(0);
    assert_eq!(
        (&run["state"], &run["transform"], &run["counters"]["out"]),
        (&"finished".into(), &true.into(), &count.into())
    );
    assert_eq!(sums(&shadow), (1..=count).map(|n| (n, n * (n + 1) / 2)).collect::<Vec<_>>());
    assert_eq!(sums(&format!("{}.sums", case.name())), live);
    let id = run["id"].as_str().unwrap();
    let state = format!("_trunkline.state.{0}.-replay.{id}.{0}.sums", case.name());
    wait::until("the state of the run to be removed", LONG, || (!kafka.has_topic(&state)).then_some(()));
    let again = replay(&["--into", &into]);
    assert!(again.stderr.contains("[replay.output_exists]"), "{}", again.describe());
}

const UNIQUE: &str = r#"
name = "$NAME"

[sources.numbers]
connector = "logfile"
paths = ["$DIR/logs/*.log"]
parser = "json"
partitions = 1

[transforms.unique]
inputs = ["numbers"]
plugin = "dedupe.wasm"
config = { fields = ["n"], within = "30d" }
topic = "$NAME.unique"
"#;

/// A worker that starts again reads what its copy of the state lacks. Without the copy, it reads
/// everything, and the result is the same.
#[test]
fn a_restart_restores_only_the_difference() {
    let kafka = need!(Kafka::any());
    let case = Case::new("state-copy", kafka);
    case.pipeline("unique", UNIQUE);
    let mut log = LogWriter::new(case.path("logs/numbers.log"), 1803);
    let lines = |from: u32, to: u32| (from..to).map(|n| format!("{{\"n\":{n}}}\n")).collect::<String>();
    log.append_raw(lines(0, 5_000).as_bytes());
    case.until_idle("a", LONG);
    let unique = format!("{}.unique", case.name());
    let restored = || {
        let worker = case.start("a", &[]);
        let records = wait::until("the state is restored", LONG, || {
            let exit = case.ask_worker("status", "a", &["--json"], LONG);
            let status: serde_json::Value = serde_json::from_str(&exit.stdout).ok()?;
            let task = status["tasks"].as_array()?.iter().find(|task| task["component"] == "unique")?.clone();
            assert!(task["state_entries"].as_u64()? >= 5_000, "{task}");
            task["state_restored_records"].as_u64()
        });
        (worker, records)
    };

    let (worker, after_end) = restored();
    // At most the last transaction is read again.
    assert!(after_end < 2_500, "{after_end} records were read after a clean end");
    log.append_raw(lines(4_000, 5_500).as_bytes());
    wait::until("the new numbers", LONG, || (kafka.count(&unique) == 5_500).then_some(()));
    worker.kill9();
    let (worker, after_kill) = restored();
    assert!(after_kill < 4_500, "{after_kill} records were read after a kill");
    worker.kill9();
    fs::remove_dir_all(case.path("data-a/state")).unwrap();
    let (worker, without_copy) = restored();
    assert!(without_copy >= 5_500, "{without_copy} records were read without a copy");
    worker.kill9();

    log.append_raw(lines(0, 6_000).as_bytes());
    let summary = case.until_idle("a", LONG);
    assert_eq!(kafka.count(&unique), 6_000);
    assert_eq!(summary.of(case.name(), "unique").dropped, 1_000 + 5_500);
}
