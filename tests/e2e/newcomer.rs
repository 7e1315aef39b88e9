//! Mistakes of new users: a job must say what it did, and a wrong configuration is not a data
//! error.

use trunkline_tests::{Case, Kafka, LogWriter, Reader, need};

use crate::{LONG, SOURCE, access_logs};

const BAD_LINE: &[u8] = b"this is not a line of an access log\n";

#[test]
fn a_job_prints_the_counts_of_this_run_and_the_totals_apart() {
    let kafka = need!(Kafka::any());
    let case = Case::new("this-run", kafka);
    let mut log = LogWriter::new(case.path("logs/access.log"), 900);
    log.append(1_000);
    case.pipeline("access", &access_logs());
    let run = || {
        let exit = case.start("a", &["--until-idle"]).wait(LONG);
        assert_eq!(exit.code, Some(0), "{}", exit.describe());
        exit.stdout
    };
    let name = case.name();
    let first = run();
    assert!(first.starts_with(&format!("{name} (this run): web 1000 in, 1000 out")), "{first}");
    assert_eq!(first.lines().count(), 1, "the totals of a first run are its counts: {first}");
    let idle = run();
    assert!(idle.starts_with(&format!("{name} (this run): web 0 in, 0 out")), "{idle}");
    assert!(idle.contains(&format!("\n{name} (since it began): web 1000 in, 1000 out")), "{idle}");
    log.append(500);
    let third = run();
    assert!(third.contains("(this run): web 500 in") && third.contains("lake 500 in, 500 out"), "{third}");
    assert!(third.contains("(since it began): web 1500 in"), "{third}");
}

#[test]
fn a_job_names_its_dead_letters_and_fails_on_request() {
    let kafka = need!(Kafka::any());
    let case = Case::new("names-letters", kafka);
    let mut log = LogWriter::new(case.path("logs/access.log"), 901);
    log.append(100);
    log.append_raw(&BAD_LINE.repeat(3));
    log.append(100);
    case.pipeline("access", &access_logs());
    let exit = case.start("a", &["--until-idle"]).wait(LONG);
    assert_eq!(exit.code, Some(0), "{}", exit.describe());
    let last = exit.stderr.lines().last().unwrap();
    let topic = format!("{}.dead-letters", case.name());
    assert!(last.contains("web rejected 3 of 203 records") && last.contains(&topic), "{}", exit.describe());
    assert_eq!(kafka.count(&topic), 3);

    // Only this run counts.
    let exit = case.start("a", &["--until-idle", "--fail-on-dead-letters"]).wait(LONG);
    assert_eq!(exit.code, Some(0), "{}", exit.describe());
    log.append_raw(&BAD_LINE.repeat(2));
    let exit = case.start("a", &["--until-idle", "--fail-on-dead-letters=3"]).wait(LONG);
    assert_eq!(exit.code, Some(0), "{}", exit.describe());
    log.append_raw(&BAD_LINE.repeat(2));
    let exit = case.start("a", &["--until-idle", "--fail-on-dead-letters=2"]).wait(LONG);
    assert_eq!(exit.code, Some(1), "{}", exit.describe());
    assert!(exit.stderr.contains("error: 2 records went to the dead letters in this run"), "{}", exit.describe());
}

/// A wrong parser: nothing is dead-lettered, and the corrected pipeline reads everything.
#[test]
fn a_source_whose_first_records_all_fail_stops_before_it_commits_them() {
    let kafka = need!(Kafka::any());
    let case = Case::new("all-fail", kafka);
    std::fs::write(case.path("logs/access.log"), BAD_LINE.repeat(5_000)).unwrap();
    case.pipeline("access", SOURCE);
    let exit = case.start("a", &["--until-idle"]).wait(LONG);
    assert_eq!(exit.code, Some(1), "{}", exit.describe());
    let said = "stopped: `web` rejected all of its first";
    assert!(
        exit.stderr.contains(said) && exit.stderr.contains("configuration is probably wrong"),
        "{}",
        exit.describe()
    );
    assert_eq!(kafka.count(&format!("{}.dead-letters", case.name())), 0);

    case.pipeline("access", &SOURCE.replace("parser = \"combined\"", "parser = \"none\""));
    let summary = case.until_idle("a", LONG);
    let web = summary.of(case.name(), "web");
    assert_eq!((web.input, web.output, web.dead_lettered), (5_000, 5_000, 0));
}

#[test]
fn the_check_of_first_records_can_be_turned_off() {
    let kafka = need!(Kafka::any());
    let mut case = Case::new("all-fail-off", kafka);
    case.set("TRUNKLINE_MAX_INITIAL_FAILURES", "0");
    std::fs::write(case.path("logs/access.log"), BAD_LINE.repeat(5_000)).unwrap();
    case.pipeline("access", SOURCE);
    let summary = case.until_idle("a", LONG);
    assert_eq!(summary.of(case.name(), "web").dead_lettered, 5_000);
    assert_eq!(kafka.count(&format!("{}.dead-letters", case.name())), 5_000);
}

/// Where no schema is known, a misspelled field shows at the end of the run.
#[test]
fn a_mask_that_matches_nothing_is_reported_at_the_end() {
    let kafka = need!(Kafka::any());
    let case = Case::new("matches-nothing", kafka);
    std::fs::write(case.path("logs/a.log"), "{\"card\":\"4111\"}\n".repeat(50)).unwrap();
    let pipeline = |field: &str| {
        let apply = format!(
            "parser = \"json\"\napply = [\"mask\"]\n[transforms.mask]\nplugin = \"mask.wasm\"\nconfig = {{ fields = [\"{field}\"] }}\n"
        );
        case.pipeline("a", &SOURCE.replace("parser = \"combined\"\n", &apply));
    };
    let matched = "mask matched 0 of 50 records";
    pipeline("crad");
    let exit = case.start("a", &["--until-idle"]).wait(LONG);
    assert_eq!(exit.code, Some(0), "{}", exit.describe());
    assert!(exit.stderr.contains(matched), "{}", exit.describe());

    pipeline("card");
    std::fs::write(case.path("logs/b.log"), "{\"card\":\"4222\"}\n".repeat(50)).unwrap();
    let exit = case.start("a", &["--until-idle"]).wait(LONG);
    assert!(exit.code == Some(0) && !exit.stderr.contains(matched), "{}", exit.describe());
}

/// The position of log files belongs to a node. Another name must not read everything again
/// unnoticed.
#[test]
fn a_renamed_node_is_reported_with_its_files() {
    let kafka = need!(Kafka::any());
    let mut case = Case::new("renamed-node", kafka);
    let path = case.path("logs/access.log");
    let mut log = LogWriter::new(&path, 902);
    log.append(10);
    case.pipeline("access", SOURCE);
    case.set("TRUNKLINE_NODE", "rack-1");
    case.until_idle("a", LONG);
    let read_again = |worker: &str| {
        let exit = case.start_with(worker, &["--until-idle"], &[("TRUNKLINE_NODE", "rack-2")]).wait(LONG);
        assert_eq!(exit.code, Some(0), "{}", exit.describe());
        exit.stderr
    };
    // The data directory knows the last name. A new one (a replaced pod) does not.
    let log_text = read_again("a");
    assert!(log_text.contains("`node` was `rack-1` and is now `rack-2`"), "{log_text}");
    let warning = format!("what the node `rack-1` has read: {} ({} bytes)", path.display(), log.size());
    assert!(log_text.contains(&warning), "{log_text}");
    let log_text = read_again("b");
    assert!(!log_text.contains("rack-1"), "rack-2 has its own position now: {log_text}");
}

/// Types do not depend on which values a run happens to read.
#[test]
fn inferred_types_are_remembered_across_restarts() {
    let (kafka, reader) = (need!(Kafka::any()), need!(Reader::find()));
    let case = Case::new("types", kafka);
    let lake = "[sinks.lake]\nconnector = \"s3\"\ninputs = [\"web\"]\nurl = \"file://$DIR/lake\"\ncolumns = { pinned = \"double\" }\n";
    case.pipeline(
        "web",
        &[&SOURCE.replace("combined", "json").replace("[sources.web]", "[sources.web]\npartitions = 1"), lake].concat(),
    );
    for (number, (v, o)) in [("\"x\"", "\"s\""), ("1", "{\"a\":1}"), ("1.5", "[1]")].into_iter().enumerate() {
        let line = format!("{{\"v\":{v},\"o\":{o},\"pinned\":{number},\"n\":\"{number}\"}}\n");
        std::fs::write(case.path(&format!("logs/{number}.log")), line).unwrap();
        let summary = case.until_idle(&format!("worker-{number}"), LONG);
        assert_eq!(summary.of(case.name(), "lake").dead_lettered, 0);
    }
    let found = reader.read(&case.path("lake"), &["n"]);
    assert_eq!((found.files, found.rows, found.distinct), (3, 3, Some(3)));
    for column in ["v", "o", "pinned"] {
        assert_eq!(found.types[column].len(), 1, "{column} has one type: {:?}", found.types);
    }
}

/// New state and an old destination: all records would be written again.
#[test]
fn a_sink_without_state_does_not_repeat_its_earlier_output() {
    let (kafka, reader) = (need!(Kafka::any()), need!(Reader::find()));
    let case = Case::new("new-state", kafka);
    let mut log = LogWriter::new(case.path("logs/access.log"), 903);
    log.append(300);
    case.pipeline("access", &access_logs());
    case.until_idle("a", LONG);
    let other_cluster = format!("{}-other", case.name());
    let run = |arguments: &[&str]| {
        let arguments = [&["--until-idle"], arguments].concat();
        case.start_with("b", &arguments, &[("TRUNKLINE_CLUSTER", &other_cluster)]).wait(LONG)
    };
    let rows = || reader.read(&case.path("lake"), &["path"]).rows;
    let exit = run(&[]);
    assert_eq!(exit.code, Some(1), "{}", exit.describe());
    for part in ["was written by this sink", "/lake/day=", "--append", "[sink.output_exists]"] {
        assert!(exit.stderr.contains(part), "{}", exit.describe());
    }
    assert_eq!(rows(), 300);
    let exit = run(&["--append"]);
    assert_eq!(exit.code, Some(0), "{}", exit.describe());
    assert_eq!(rows(), 300 + 600, "the topic has the lines of both clusters");
    // From now on there is state.
    let exit = run(&[]);
    assert_eq!(exit.code, Some(0), "{}", exit.describe());
    assert_eq!(rows(), 900);
}
