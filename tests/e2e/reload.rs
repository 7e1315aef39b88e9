//! Reloading pipeline files while a worker runs: stages whose configuration changed restart at
//! their position, and all others continue.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use trunkline_tests::{BrokerKind, Case, Kafka, LogWriter, Mysql, Process, Random, Reader, need, wait};

use crate::shop::{OnDrop, SMALL_CHUNKS, Shop, writes};
use crate::worker_log::{self, Reload};
use crate::{LONG, MASK, access_logs, assert_counted, assert_every_line_once, stop, wait_for_rows};

on_each_broker!(a_reload_waits_for_brokers_that_are_down, two_workers_share_new_stages_after_a_reload);

/// Checks how often each stage of a pipeline was started by the worker.
fn assert_starts(worker: &Process, pipeline: &str, expected: &[(&str, usize)]) {
    let log = worker.stderr();
    for (component, starts) in expected {
        let stage = format!("{pipeline}.{component}");
        assert_eq!(worker_log::starts(&log, &stage), *starts, "starts of {stage}:\n{log}");
    }
}

/// The names of a pipeline's stages.
fn stages<const N: usize>(pipeline: &str, components: [&str; N]) -> [String; N] {
    components.map(|component| format!("{pipeline}.{component}"))
}

/// The pipeline `$NAME-more`, which reads the same logs into the folder `more`.
fn more_access_logs() -> String {
    access_logs().replace("$NAME", "$NAME-more").replace("$DIR/lake", "$DIR/more")
}

#[test]
fn an_added_table_is_read_while_other_tables_continue() {
    let (kafka, reader) = (need!(Kafka::any()), need!(Reader::find()));
    let shop = Shop::create(need!(Mysql::shared()), 3_000);
    let case = crate::shop::case("reload-table", kafka);
    case.pipeline("shop", &shop.source_of(&["orders"], SMALL_CHUNKS));
    let logs = format!("{}-logs", case.name());
    case.pipeline("logs", &access_logs().replace("$NAME", "$NAME-logs"));
    let mut log = LogWriter::new(case.path("logs/access.log"), 800);
    log.append(1_000);
    let mut worker = case.start("a", &[]);
    shop.wait_for_records(&case, kafka, &mut worker, "orders", 3_000);
    wait_for_rows(&reader, &case.path("lake"), 1_000);

    let random = Mutex::new(Random::new(801));
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                drop(shop.run(&writes(&mut random.lock().unwrap(), 3_000, 20)));
            }
        });
        // The writer must stop when an assertion fails, or the scope would wait for it forever.
        let _over = OnDrop(|| is_over.store(true, Ordering::Relaxed));
        case.pipeline("shop", &shop.source_of(&["orders", "people"], SMALL_CHUNKS));
        worker.sighup();
        Reload::restarting(&stages(case.name(), ["shop"]), &stages(&logs, ["web", "lake"])).wait_for(&mut worker);
        shop.wait_for_records(&case, kafka, &mut worker, "people", 3_000);
        log.append(1_000);
        wait_for_rows(&reader, &case.path("lake"), 2_000);
    });
    assert_starts(&worker, case.name(), &[("shop", 2)]);
    assert_starts(&worker, &logs, &[("web", 1), ("lake", 1)]);
    stop(worker);

    let summary = case.until_idle("a", LONG);
    let records = shop.assert_topics_match(&case, kafka);
    assert_eq!(summary.of(case.name(), "shop").output, records);
    assert_eq!(summary.of(&logs, "lake").output, log.lines());
    assert_every_line_once(&reader, &case.path("lake"), &log);
}

/// A fused transform gets its own topic when a second component reads it, and loses it when that
/// one is removed.
#[test]
fn past_records_are_not_written_again_when_a_transform_becomes_a_stage() {
    let (kafka, reader) = (need!(Kafka::any()), need!(Reader::find()));
    let case = Case::new("reload-second-reader", kafka);
    let mut log = LogWriter::new(case.path("logs/access.log"), 806);
    log.append(500);
    let sink = |name: &str, transform: &str| {
        format!("[sinks.{name}]\nconnector = \"s3\"\ninputs = [\"{transform}\"]\nurl = \"file://$DIR/{name}\"\n")
    };
    case.pipeline("access", &access_logs());
    case.until_idle("a", LONG);
    case.pipeline("access", &[access_logs(), sink("copy", "clean")].concat());
    let refused = case.start("a", &["--until-idle"]).wait(LONG);
    assert_eq!(refused.code, Some(1), "{}", refused.describe());
    let said = format!("`{0}.lake` has processed the topic `{0}.web`, and reads `{0}.clean` now", case.name());
    assert!(
        refused.stderr.contains(&said) && refused.stderr.contains("[stage.repeated_inputs]"),
        "{}",
        refused.describe()
    );
    assert_every_line_once(&reader, &case.path("lake"), &log);
    assert_eq!(reader.read(&case.path("copy"), &["path"]).rows, 500, "the second sink has the past");

    // The removal of the second sink fuses the transform again.
    log.append(100);
    let with_own = [access_logs(), sink("copy2", "other"), MASK.replace("clean", "other")].concat();
    for pipeline in [access_logs(), with_own] {
        case.pipeline("access", &pipeline);
        case.until_idle("a", LONG);
        assert_every_line_once(&reader, &case.path("lake"), &log);
    }
    assert_eq!(reader.read(&case.path("copy2"), &["path"]).rows, 600);

    // The other direction: the sink has begun in the topic of the transform.
    let separate = access_logs().replace("[transforms.clean]", "[transforms.clean]\nfuse = false");
    let other = |text: &str| text.replace("$NAME", "$NAME-b").replace("$DIR/lake", "$DIR/b");
    case.pipeline("access", &other(&separate));
    case.until_idle("a", LONG);
    case.pipeline("access", &other(&access_logs()));
    let refused = case.start("a", &["--until-idle"]).wait(LONG);
    assert!(refused.stderr.contains(&format!("topic = \"{}-b.clean\"", case.name())), "{}", refused.describe());
    assert_every_line_once(&reader, &case.path("b"), &log);
}

#[test]
fn watched_pipeline_files_are_reloaded_and_settings_are_not() {
    let (kafka, reader) = (need!(Kafka::any()), need!(Reader::find()));
    let case = Case::new("reload-watch", kafka);
    let settings = case.path("settings.toml");
    std::fs::write(&settings, "memory = \"200MiB\"\n").unwrap();
    case.pipeline("access", &access_logs());
    let mut log = LogWriter::new(case.path("logs/access.log"), 802);
    log.append(1_000);
    let mut worker = case.start("a", &["--watch", "--config", settings.to_str().unwrap()]);
    wait_for_rows(&reader, &case.path("lake"), 1_000);

    let [web, lake] = stages(case.name(), ["web", "lake"]);
    case.pipeline("access", &access_logs().replace("day={timestamp:%Y-%m-%d}", "day={timestamp:%Y-%m}"));
    Reload::restarting([&lake], [&web]).wait_for(&mut worker);
    // Until the sink is assigned its partitions again, it may still write buffered records to the
    // old path.
    wait::until("the sink is assigned its partitions again", LONG, || {
        (worker_log::starts(&worker.stderr(), &lake) == 2).then_some(())
    });
    log.append(1_000);
    wait_for_rows(&reader, &case.path("lake"), 2_000);
    let mut folders = std::fs::read_dir(case.path("lake")).unwrap().flatten();
    assert!(folders.any(|folder| folder.file_name() == "day=2026-03"), "the lake has no file at the new path");

    std::fs::write(&settings, "memory = \"100MiB\"\ncommit_interval = \"1s\"\n").unwrap();
    worker_log::wait_for("the settings that need a restart", &mut worker, |log| {
        log.contains("memory, commit_interval")
    });
    Reload::restarting([], [&web, &lake]).wait_for(&mut worker);

    // Add a pipeline and remove the first one.
    case.pipeline("more", &more_access_logs());
    case.remove_pipeline("access");
    worker_log::wait_for("the first pipeline is stopped", &mut worker, |log| {
        worker_log::reloads(log).any(|reload| reload.stopped == [web.clone(), lake.clone()].into())
    });
    wait_for_rows(&reader, &case.path("more"), 2_000);
    assert_starts(&worker, case.name(), &[("web", 1)]);
    stop(worker);

    case.remove_pipeline("more");
    case.pipeline("access", &access_logs());
    let summary = case.until_idle("a", LONG);
    assert_counted(&summary, &case, log.lines(), 0);
    assert_every_line_once(&reader, &case.path("lake"), &log);
}

#[test]
fn an_invalid_file_changes_nothing_and_a_removed_file_stops_its_pipeline() {
    let (kafka, reader) = (need!(Kafka::any()), need!(Reader::find()));
    let case = Case::new("reload-invalid", kafka);
    let second = access_logs().replace("$NAME", "$NAME-second").replace("$DIR/lake", "$DIR/second");
    let second_name = format!("{}-second", case.name());
    case.pipeline("first", &access_logs());
    case.pipeline("second", &second);
    let mut log = LogWriter::new(case.path("logs/access.log"), 803);
    log.append(1_000);
    let mut worker = case.start("a", &[]);
    wait_for_rows(&reader, &case.path("lake"), 1_000);
    wait_for_rows(&reader, &case.path("second"), 1_000);
    let [web, lake] = stages(case.name(), ["web", "lake"]);
    let [second_web, second_lake] = stages(&second_name, ["web", "lake"]);

    // An invalid file does not prevent the reload of a valid one.
    case.pipeline("first", &access_logs().replace("records = 2_000", "recods = 1_000"));
    case.pipeline("second", &second.replace("records = 2_000", "records = 1_000"));
    worker.sighup();
    Reload::restarting([&second_lake], [&web, &lake, &second_web]).wait_for(&mut worker);
    let said = worker.stderr();
    assert!(said.contains("pipelines/first.toml:19:12") && said.contains("did you mean `records`?"), "{said}");
    log.append(1_000);
    wait_for_rows(&reader, &case.path("lake"), 2_000);
    wait_for_rows(&reader, &case.path("second"), 2_000);
    case.pipeline("first", &access_logs());
    worker.sighup();
    Reload::restarting([], [&web, &lake, &second_web, &second_lake]).wait_for(&mut worker);

    case.remove_pipeline("second");
    worker.sighup();
    Reload::stopping([&second_web, &second_lake], [&web, &lake]).wait_for(&mut worker);
    for stage in [&second_web, &second_lake] {
        worker_log::wait_for("the stage has stopped", &mut worker, |log| worker_log::has_stopped(log, stage));
    }
    log.append(1_000);
    wait_for_rows(&reader, &case.path("lake"), 3_000);
    assert_starts(&worker, case.name(), &[("web", 1), ("lake", 1)]);
    assert_eq!(kafka.count(&format!("{second_name}.web")), 2_000);

    // Remove the last pipeline, and add both again.
    case.remove_pipeline("first");
    worker.sighup();
    Reload::stopping([&web, &lake], []).wait_for(&mut worker);
    for stage in [&web, &lake] {
        worker_log::wait_for("the stage has stopped", &mut worker, |log| worker_log::has_stopped(log, stage));
    }
    case.pipeline("first", &access_logs());
    case.pipeline("second", &second);
    worker.sighup();
    wait_for_rows(&reader, &case.path("second"), 3_000);
    stop(worker);
    let summary = case.until_idle("a", LONG);
    assert_counted(&summary, &case, log.lines(), 0);
    assert_eq!(summary.of(&second_name, "lake").output, log.lines());
    for lake in ["lake", "second"] {
        assert_every_line_once(&reader, &case.path(lake), &log);
    }
}

#[test]
fn a_failed_stage_is_restarted_by_a_reload_on_request() {
    let (kafka, reader) = (need!(Kafka::any()), need!(Reader::find()));
    let case = Case::new("reload-failed", kafka);
    let bad = case.path("logs/bad.log");
    std::fs::write(&bad, "this is no line of an access log\n").unwrap();
    case.pipeline("access", &access_logs().replace("parser = ", "on_error = \"stop\"\nparser = "));
    let mut worker = case.start("a", &[]);
    let [web, lake] = stages(case.name(), ["web", "lake"]);
    worker_log::wait_for("the source has failed", &mut worker, |log| worker_log::has_failed(log, &web));
    // The cause is fixed outside of the pipeline file, which does not change.
    std::fs::remove_file(&bad).unwrap();
    let mut log = LogWriter::new(case.path("logs/access.log"), 804);
    log.append(1_000);
    worker.sighup();
    Reload::restarting([&web], [&lake]).wait_for(&mut worker);
    wait_for_rows(&reader, &case.path("lake"), 1_000);
    stop(worker);
    assert_every_line_once(&reader, &case.path("lake"), &log);
}

fn a_reload_waits_for_brokers_that_are_down(kind: BrokerKind) {
    let (mut kafka, reader) = (need!(Kafka::start_for_crashes(kind)), need!(Reader::find()));
    let case = Case::new("reload-down", &kafka);
    case.pipeline("access", &access_logs());
    let mut log = LogWriter::new(case.path("logs/access.log"), 805);
    log.append(1_000);
    let mut worker = case.start("a", &[]);
    wait_for_rows(&reader, &case.path("lake"), 1_000);
    kafka.kill9();
    case.pipeline("more", &more_access_logs());
    worker.sighup();
    worker_log::wait_for("the brokers are down", &mut worker, worker_log::waits_for_brokers);
    kafka.restart();
    wait_for_rows(&reader, &case.path("more"), 1_000);
    log.append(1_000);
    wait_for_rows(&reader, &case.path("lake"), 2_000);
    stop(worker);
    let summary = case.until_idle("a", LONG);
    assert_counted(&summary, &case, log.lines(), 0);
    assert_every_line_once(&reader, &case.path("lake"), &log);
    assert_every_line_once(&reader, &case.path("more"), &log);
}

fn two_workers_share_new_stages_after_a_reload(kind: BrokerKind) {
    let (kafka, reader) = (need!(Kafka::shared(kind)), need!(Reader::find()));
    let case = Case::new("reload-two", kafka);
    case.pipeline("access", &access_logs());
    let mut log = LogWriter::new(case.path("logs/access.log"), 806);
    log.append(1_000);
    let mut workers = [case.start("a", &[]), case.start("b", &[])];
    wait_for_rows(&reader, &case.path("lake"), 1_000);
    let [web, lake] = stages(case.name(), ["web", "lake"]);
    let more = stages(&format!("{}-more", case.name()), ["web", "lake"]);
    case.pipeline("access", &access_logs().replace("records = 2_000", "records = 500"));
    case.pipeline("more", &more_access_logs());
    log.append(1_000);
    for worker in &mut workers {
        worker.sighup();
        log.append(1_000);
        let reload = Reload { started: more.iter().cloned().collect(), ..Reload::restarting([&lake], [&web]) };
        reload.wait_for(worker);
    }
    wait_for_rows(&reader, &case.path("more"), log.lines());
    wait_for_rows(&reader, &case.path("lake"), log.lines());
    workers.into_iter().for_each(stop);
    let summary = case.until_idle("a", LONG);
    assert_counted(&summary, &case, log.lines(), 0);
    assert_eq!(summary.of(&format!("{}-more", case.name()), "lake").output, log.lines());
    assert_every_line_once(&reader, &case.path("lake"), &log);
    assert_every_line_once(&reader, &case.path("more"), &log);
}
