//! Runs that several processes share, replays of transforms over single records, the comparison of
//! topics, and moves of sources.

use std::fs;
use std::time::{Duration, Instant};

use rdkafka::config::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use serde_json::Value;
use trunkline_tests::{BrokerKind, Case, Exit, Kafka, LogWriter, Mysql, Reader, need, repetitions, test_plugin, wait};

use crate::shop::{self, Shop};
use crate::{LONG, access_logs, stop};

on_each_broker!(a_run_is_shared_by_processes_and_survives_the_death_of_one, log_files_are_read_again_from_a_byte,);

fn new_case(test: &str, kafka: &Kafka) -> Case {
    let case = Case::new(test, kafka);
    for command in ["replay", "offsets"] {
        fs::create_dir_all(case.path(&format!("data-{command}/plugins"))).unwrap();
    }
    case
}

fn runs(case: &Case) -> Vec<Value> {
    let listed = case.ask_worker("runs", "replay", &["--kind", "replay", "--json"], LONG);
    serde_json::from_str(&listed.stdout).unwrap_or_default()
}

fn replay(case: &Case, arguments: &[&str]) -> Exit {
    case.run_command("replay", &[], &[&[case.name()], arguments].concat(), LONG)
}

/// Writes what a worker on another machine writes while it is busy.
struct BusyWorker {
    producer: BaseProducer,
    key: String,
    partitions: i32,
}

impl BusyWorker {
    const ROWS: &str = "_trunkline.checkpoints";

    fn new(kafka: &Kafka, cluster: &str) -> Self {
        let producer: BaseProducer = ClientConfig::new().set("bootstrap.servers", kafka.brokers()).create().unwrap();
        let metadata = producer.client().fetch_metadata(Some(Self::ROWS), LONG).unwrap();
        let partitions = metadata.topics()[0].partitions().len() as i32;
        Self { producer, key: format!("alive/{cluster}/elsewhere"), partitions }
    }

    fn show(&self, busy: &[String]) {
        let row = serde_json::json!({ "node": "elsewhere", "busy": busy }).to_string();
        for partition in 0..self.partitions {
            let record = BaseRecord::to(Self::ROWS).partition(partition).key(&self.key).payload(&row);
            self.producer.send(record).map_err(|(error, _)| error).unwrap();
        }
        wait::until("the rows are written", LONG, || {
            self.producer.poll(Duration::ZERO);
            (self.producer.in_flight_count() == 0).then_some(())
        });
    }
}

#[test]
fn a_run_yields_to_a_busy_component_of_its_pipeline() {
    let (kafka, reader) = (need!(Kafka::any()), need!(Reader::find()));
    let case = new_case("replay-yields", kafka);
    let mut log = LogWriter::new(case.path("logs/app.log"), 731);
    log.append(60_000);
    case.pipeline("access", &access_logs());
    case.until_idle("a", LONG);
    let worker = BusyWorker::new(kafka, case.name());
    let busy = [format!("{}.lake", case.name())];
    worker.show(&busy);
    let into = format!("url=\"file://{}\"", case.path("shadow").display());
    let run = case.start_command("replay", &[], &[case.name(), "--from", "earliest", "--into", &into]);
    wait::until("the run yields", LONG, || {
        worker.show(&busy);
        run.stderr().contains(&format!("`{}` is busy: the run reads for a tenth of the time", busy[0])).then_some(())
    });
    worker.show(&[]);
    let exit = run.wait(LONG);
    assert_eq!(exit.code, Some(0), "{}", exit.describe());
    assert!(exit.stderr.contains("live work is not busy any more"), "{}", exit.describe());
    let found = reader.read(&case.path("shadow"), &["path"]);
    assert_eq!((found.rows, found.distinct), (log.lines(), Some(log.lines())));
}

fn a_run_is_shared_by_processes_and_survives_the_death_of_one(kind: BrokerKind) {
    const LOGS: u64 = 4;
    let (kafka, reader) = (need!(Kafka::shared(kind)), need!(Reader::find()));
    let case = new_case("replay-join", kafka);
    let mut lines = 0;
    for number in 0..LOGS {
        // The logs are in different partitions.
        let mut log =
            LogWriter::starting_at(case.path(&format!("logs/app{number}.log")), 720 + number, number * 10_000);
        log.append(1_000);
        lines += log.lines();
    }
    case.pipeline("access", &access_logs());
    case.until_idle("a", LONG);
    let into = format!("url=\"file://{}\"", case.path("shadow").display());
    let arguments = [case.name(), "--from", "earliest", "--into", &into, "--rate", "500"];
    let begun = Instant::now();
    let owner = case.start_command("replay", &[], &arguments);
    let executed = wait::until("a run with rows", LONG, || {
        runs(&case).into_iter().find(|run| run["counters"]["out"].as_u64() > Some(0))
    });
    let id = executed["id"].as_str().unwrap().to_owned();
    assert_eq!((&executed["rate"], &executed["tasks"]), (&500.into(), &1.into()), "{executed}");
    assert!(!executed["user"].as_str().unwrap().is_empty(), "{executed}");

    let joined = case.start_command("replay", &[], &[case.name(), "--join", &id]);
    wait::until("a run with two members", LONG, || {
        runs(&case).into_iter().find(|run| run["tasks"] == 2 && run["offsets_per_second"].is_u64())
    });
    // Neither order of the deaths loses or repeats a record.
    let (dead, left) = if kind == BrokerKind::Apache { (owner, joined) } else { (joined, owner) };
    wait::until("progress of both", LONG, || {
        runs(&case).into_iter().find(|run| run["counters"]["out"].as_u64() > Some(800))
    });
    dead.kill9();
    let last = left.wait(LONG);

    assert_eq!(last.code, Some(0), "{}", last.describe());
    let run = runs(&case).remove(0);
    assert_eq!((&run["state"], run["counters"]["out"].as_u64()), (&"finished".into(), Some(lines)), "{run}");
    let found = reader.read(&case.path("shadow"), &["path"]);
    assert_eq!((found.rows, found.distinct), (lines, Some(lines)));
    // The rate was shared: two processes were not faster than one may be.
    assert!(begun.elapsed() >= Duration::from_secs(lines / 500 - 2), "{run}");
    let refused = replay(&case, &["--join", &id]);
    assert!(refused.stderr.contains("[replay.finished]"), "{}", refused.describe());
    let left_behind = fs::read_dir(case.path("data-replay/replays")).unwrap().count();
    assert_eq!(left_behind, 0, "folders of processes");
}

fn log_files_are_read_again_from_a_byte(kind: BrokerKind) {
    let kafka = need!(Kafka::shared(kind));
    let case = new_case("offsets-file", kafka);
    let mut log = LogWriter::new(case.path("logs/access.log"), 730);
    log.append(600);
    let half = log.size();
    log.append(400);
    case.pipeline("access", &access_logs());
    let live = case.start("a", &[]);
    let (topic, source) = (format!("{}.web", case.name()), format!("{}.web", case.name()));
    wait::until("all records", LONG, || (kafka.count(&topic) == 1_000).then_some(()));
    let offsets =
        |verb: &str, more: &[&str]| case.run_command("offsets", &[verb], &[&[&source[..]], more].concat(), LONG);
    let path = case.path("logs/access.log").display().to_string();
    let to = format!("{path}:{half}");

    wait::until("the worker shows that it runs the source", LONG, || {
        offsets("set", &["--to", &to]).stderr.contains("[offsets.in_use]").then_some(())
    });
    let paused = case.ask_worker("pause", "a", &[&source], LONG);
    assert_eq!(paused.code, Some(0), "{}", paused.describe());
    let inside = format!("{path}:{}", half + 3);
    let beyond = format!("{path}:99999999");
    let neighbours = format!("lines begin at {half} and ");
    let refusals: [(&str, &str, &str); 4] = [
        (&inside, "[offsets.bad_position]", &neighbours),
        (&beyond, "[offsets.bad_position]", "fewer bytes"),
        ("earliest", "[offsets.bad_position]", "PATH:BYTE"),
        ("/no/such.log:0", "[offsets.position_gone]", "no such file"),
    ];
    for (to, code, text) in refusals {
        let refused = wait::until("the pause", LONG, || {
            let refused = offsets("set", &["--to", to, "--yes"]);
            (!refused.stderr.contains("[offsets.in_use]")).then_some(refused)
        });
        assert!(refused.stderr.contains(code) && refused.stderr.contains(text), "{}", refused.describe());
    }
    let refused = offsets("set", &["--to", &to]);
    assert!(refused.stderr.contains("[offsets.not_confirmed]"), "{}", refused.describe());
    let moved = offsets("set", &["--to", &to, "--yes", "--json"]);
    assert_eq!(moved.code, Some(0), "{}", moved.describe());
    let changes: Value = serde_json::from_str(&moved.stdout).unwrap();
    let expected = (format!("byte {}", log.size()), format!("byte {half}"));
    assert_eq!(
        (changes[0]["before"].as_str(), changes[0]["after"].as_str()),
        (Some(&expected.0[..]), Some(&expected.1[..]))
    );
    // The worker has not noticed anything, and continues at the new position.
    assert_eq!(case.ask_worker("resume", "a", &[&source], LONG).code, Some(0));
    wait::until("the records again", LONG, || (kafka.count(&topic) == 1_400).then_some(()));
    stop(live);

    // A worker that starts at the same moment neither loses the move nor takes it back.
    let mut expected = 1_400;
    for _ in 0..repetitions(2, 20) {
        let command = case.start_command("offsets", &["set"], &[&source, "--to", &to, "--yes"]);
        let worker = case.start("a", &["--until-idle"]);
        let (command, worker) = (command.wait(LONG), worker.wait(LONG));
        assert_eq!(worker.code, Some(0), "{}", worker.describe());
        case.until_idle("a", LONG);
        expected += if command.code == Some(0) { 400 } else { 0 };
        assert_eq!(kafka.count(&topic), expected, "{}\n{}", command.describe(), worker.describe());
    }
    let reset = offsets("reset", &["--yes"]);
    assert_eq!(reset.code, Some(0), "{}", reset.describe());
    case.until_idle("a", LONG);
    assert_eq!(kafka.count(&topic), expected + 1_000);
}

#[test]
fn a_source_continues_at_a_chosen_transaction() {
    let kafka = need!(Kafka::any());
    for server in [Mysql::start(), Mysql::start_mariadb()] {
        binlog_positions(kafka, &Shop::create(need!(server), 20));
    }
}

fn binlog_positions(kafka: &Kafka, shop: &Shop<Mysql>) {
    let is_mariadb = shop.run("SELECT VERSION()")[0].contains("MariaDB");
    let case = shop::case(if is_mariadb { "offsets-mariadb" } else { "offsets-mysql" }, kafka);
    fs::create_dir_all(case.path("data-offsets/plugins")).unwrap();
    case.pipeline("shop", &shop.source(""));
    let records = || case.until_idle("a", LONG).of(case.name(), "shop").output;
    let first = records();
    let set = |to: &str| {
        let name = format!("{}.shop", case.name());
        case.run_command("offsets", &["set"], &[&name, "--to", to, "--yes"], LONG)
    };
    let gtids = || match is_mariadb {
        true => shop.run("SELECT @@GLOBAL.gtid_binlog_pos")[0].clone(),
        false => shop.run("SELECT REPLACE(@@GLOBAL.gtid_executed, '\n', '')")[0].clone(),
    };
    let place = || {
        let files = shop.run("SHOW BINARY LOGS");
        let words: Vec<&str> = files.last().unwrap().split('\t').collect();
        (words[0].to_owned(), words[1].parse::<u64>().unwrap())
    };
    let (before, (file, position)) = (gtids(), place());
    shop.run("UPDATE orders SET v = -1 WHERE id <= 7");
    let middle = gtids();
    shop.run("UPDATE orders SET v = -2 WHERE id <= 5");
    assert_eq!(records(), first + 12);

    for (to, again) in [(before.clone(), 12), (middle, 5), (format!("{file}:{position}"), 12), ("latest".to_owned(), 0)]
    {
        let start = records();
        let moved = set(&to);
        assert_eq!(moved.code, Some(0), "{}", moved.describe());
        assert_eq!(records(), start + again, "{to}: {}", moved.describe());
    }
    let inside = set(&format!("{file}:{}", position + 1));
    assert!(inside.stderr.contains("[offsets.bad_position]"), "{}", inside.describe());
    assert!(inside.stderr.contains(&format!("{file}:{position}")), "{}", inside.describe());
    let unknown = if is_mariadb { "0-1-999999".to_owned() } else { before.replace(":1-", ":1-99999") };
    for to in [&unknown[..], "nonsense", "binlog.999999:4"] {
        let refused = set(to);
        assert!(refused.stderr.contains("[offsets.bad_position]"), "{to}: {}", refused.describe());
    }

    shop.run("FLUSH BINARY LOGS");
    wait::until("the server has purged its binlog", LONG, || {
        shop.run("PURGE BINARY LOGS BEFORE NOW() + INTERVAL 1 DAY");
        (shop.run("SHOW BINARY LOGS").len() == 1).then_some(())
    });
    for to in [before, format!("{file}:{position}")] {
        let refused = set(&to);
        assert!(refused.stderr.contains("[offsets.position_gone]"), "{to}: {}", refused.describe());
        assert!(refused.stderr.contains("trunkline snapshot"), "{}", refused.describe());
    }
    let moved = set("earliest");
    assert_eq!(moved.code, Some(0), "{}", moved.describe());
    records();
}

/// A separate transform in front of the lake.
fn separate(text: &str) -> String {
    let text = text.replace("[transforms.clean]", "[transforms.clean]\ntopic = \"$NAME.clean\"");
    assert!(text.contains("topic = \"$NAME.clean\""), "{text}");
    text
}

#[test]
fn a_transform_is_inspected_compared_and_replayed_over_failed_records() {
    let (kafka, plugin) = (need!(Kafka::any()), test_plugin());
    let case = new_case("transform-runs", kafka);
    let mut log = LogWriter::new(case.path("logs/access.log"), 740);
    log.append(400);
    let masking = separate(&access_logs());
    case.pipeline("access", &masking);
    fs::rename(case.path("pipelines/access.toml"), case.path("earlier.toml")).unwrap();
    let rejecting = masking.replace(r#"config = { fields = ["remote_addr"] }"#, "config = { reject_on = '/item/1' }");
    case.pipeline("access", &rejecting.replace("mask.wasm", plugin.to_str().unwrap()));
    case.until_idle("a", LONG);
    let letters = kafka.read(&format!("{}.dead-letters", case.name())).len() as u64;
    assert!((1..400).contains(&letters), "{letters}");
    let (clean, earlier) = (format!("{}.clean", case.name()), case.path("earlier.toml").display().to_string());
    assert_eq!(kafka.count(&clean), 400 - letters);

    // The results, without a run.
    let transform = ["--transform", "clean", "--from", "earliest"];
    let shown =
        replay(&case, &[&transform[..], &["--to-stdout", "--where", "value.path.contains('/item/2')"]].concat());
    assert_eq!(shown.code, Some(0), "{}", shown.describe());
    let lines: Vec<Value> = shown.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let passed = lines.iter().find(|line| line["rejected"].is_null()).unwrap();
    assert_eq!(
        (passed["written_to"].as_str(), passed["topic"].as_str()),
        (Some(&clean[..]), Some(&format!("{}.web", case.name())[..]))
    );
    let failed = [&transform[..], &["--dead-letters", "--pipeline-file", &earlier]].concat();
    let shown = replay(&case, &[&failed[..], &["--to-stdout"]].concat());
    assert_eq!(shown.stdout.lines().count() as u64, letters, "{}", shown.describe());
    assert!(runs(&case).is_empty());

    // Only the records that failed, with the earlier transform.
    let done = replay(&case, &[&failed[..], &["--into", "topic=\"failed-again\"", "--json"]].concat());
    assert_eq!(done.code, Some(0), "{}", done.describe());
    assert_eq!(kafka.count("failed-again"), letters);

    // The shadow of today's transform is equal, and that of the earlier one is not.
    let fill = |topic: &str, more: &[&str]| -> String {
        let into = format!("topic=\"{}-{topic}\"", case.name());
        let done = replay(&case, &[&transform[..], &["--into", &into, "--json"], more].concat());
        assert_eq!(done.code, Some(0), "{}", done.describe());
        let last: Value = serde_json::from_str(done.stdout.lines().last().unwrap()).unwrap();
        last["run"].as_str().unwrap().to_owned()
    };
    let diff = |id: &str, more: &[&str]| case.run_command("replay", &["diff"], &[&[id, "--json"], more].concat(), LONG);
    let same = diff(&fill("same", &[]), &[]);
    assert_eq!(same.code, Some(0), "{}", same.describe());
    let found: Value = serde_json::from_str(&same.stdout).unwrap();
    assert_eq!(
        (&found["equal"], &found["folders"][0]["folder"]),
        (&(400 - letters).into(), &clean.as_str().into()),
        "{found}"
    );
    let last = kafka.read(&format!("{}.web", case.name())).pop().unwrap();
    log.append(50);
    case.until_idle("a", LONG);
    // All lines of a file are in one partition.
    let to = format!("{}:{}", last.partition, last.offset + 1);
    let other = fill("earlier", &["--pipeline-file", &earlier, "--to", &to]);
    let different = diff(&other, &["--key", "path", "--samples", "1"]);
    assert!(different.code == Some(1) && different.stderr.contains("[replay.different]"), "{}", different.describe());
    let found: Value = serde_json::from_str(&different.stdout).unwrap();
    // Later live records are not part of the range.
    assert_eq!((&found["changed"], &found["only_live"]), (&(400 - letters).into(), &0.into()), "{found}");
    assert_eq!(found["only_shadow"], letters, "{found}");
    assert_eq!(found["samples"][0]["shadow"]["value"]["remote_addr"], "***", "{found}");
    let ignored = diff(&other, &["--key", "path", "--ignore", "remote_addr"]);
    let found: Value = serde_json::from_str(&ignored.stdout).unwrap();
    assert_eq!((&found["changed"], &found["only_shadow"]), (&0.into(), &letters.into()), "{found}");
}
