//! Pipeline files that are read again while a worker runs: what changed starts anew where it was, and the rest does not notice.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use trunkline_tests::{Case, Kafka, LogWriter, Mysql, Random, Reader, Worker, need, wait};

use crate::mysql::{OnDrop, SMALL_CHUNKS, assert_same, create, source, wait_for_records, writes};
use crate::{LONG, access_logs, assert_counted, assert_every_line_once, wait_for_rows};

/// Waits until the worker has said something so many times.
fn says(worker: &mut Worker, what: &str, times: usize) {
    let said = wait::within(LONG, || {
        assert!(worker.runs(), "{}", worker.stderr());
        (worker.stderr().matches(what).count() >= times).then_some(())
    });
    assert!(said.is_some(), "it does not say `{what}` {times} times:\n{}", worker.stderr());
}

/// How often a stage was started, as a source that has its lease or as a sink that has partitions.
fn starts(worker: &Worker, stage: &str) -> usize {
    let stage = format!("\"{stage}\"");
    let is_start = |line: &&str| line.contains("starting: this worker owns its lease") || line.contains("claimed");
    worker.stderr().lines().filter(is_start).filter(|line| line.contains(&stage)).count()
}

fn stop(mut worker: Worker) {
    worker.sigterm();
    let exit = worker.wait(LONG);
    assert_eq!(exit.code, Some(0), "{}", exit.describe());
}

#[test]
fn a_table_that_is_added_is_read_while_the_rest_goes_on() {
    let (kafka, mysql, reader) = (need!(Kafka::shared()), need!(Mysql::start()), need!(Reader::find()));
    let mut case = Case::new("reload-table", kafka);
    case.set(Mysql::PASSWORD.0, Mysql::PASSWORD.1);
    create(&mysql, 3_000);
    let both = source(&mysql, SMALL_CHUNKS);
    let tables = "\"shop.*\", \"!shop.audit_*\"";
    case.pipeline("shop", &both.replace(tables, "\"shop.orders\""));
    let logs = format!("{}-logs", case.name());
    case.pipeline("logs", &access_logs().replace("$NAME", "$NAME-logs"));
    let mut log = LogWriter::new(case.path("logs/access.log"), 800);
    log.append(1_000);
    let mut worker = case.start("a", &[]);
    wait_for_records(&case, kafka, &mut worker, "orders", 3_000);
    wait_for_rows(&reader, &case.path("lake"), 1_000);

    let random = Mutex::new(Random::new(801));
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                drop(mysql.run(&writes(&mut random.lock().unwrap(), 3_000, 20)));
            }
        });
        // A failed assertion must not leave the writer at it.
        let _over = OnDrop(|| is_over.store(true, Ordering::Relaxed));
        case.pipeline("shop", &both.replace(tables, "\"shop.orders\", \"shop.people\""));
        worker.sighup();
        says(&mut worker, &format!("restarted=[{}.shop] stopped=[] unchanged=[", case.name()), 1);
        wait_for_records(&case, kafka, &mut worker, "people", 3_000);
        log.append(1_000);
        wait_for_rows(&reader, &case.path("lake"), 2_000);
    });
    assert_eq!(starts(&worker, &format!("{}.shop", case.name())), 2, "{}", worker.stderr());
    for stage in ["web", "lake"] {
        assert_eq!(starts(&worker, &format!("{logs}.{stage}")), 1, "{stage}:\n{}", worker.stderr());
    }
    stop(worker);

    let summary = case.until_idle("a", LONG);
    let records = assert_same(&case, kafka, &mysql);
    assert_eq!(summary.of(case.name(), "shop").output, records);
    assert_eq!(summary.of(&logs, "lake").output, log.lines());
    assert_every_line_once(&reader, &case.path("lake"), &log);
}

#[test]
fn a_watched_file_that_changes_is_taken_and_settings_are_not() {
    let (kafka, reader) = (need!(Kafka::shared()), need!(Reader::find()));
    let case = Case::new("reload-watch", kafka);
    let settings = case.path("settings.toml");
    std::fs::write(&settings, "memory = \"200MiB\"\n").unwrap();
    case.pipeline("access", &access_logs());
    let mut log = LogWriter::new(case.path("logs/access.log"), 802);
    log.append(1_000);
    let mut worker = case.start("a", &["--watch", "--config", settings.to_str().unwrap()]);
    wait_for_rows(&reader, &case.path("lake"), 1_000);

    case.pipeline("access", &access_logs().replace("day={timestamp:%Y-%m-%d}", "day={timestamp:%Y-%m}"));
    says(&mut worker, &format!("started=[] restarted=[{0}.lake] stopped=[] unchanged=[{0}.web]\n", case.name()), 1);
    // What the sink has in its hands when it is told to stop still goes where it went before.
    wait::until("the sink has its partitions again", LONG, || {
        (starts(&worker, &format!("{}.lake", case.name())) == 2).then_some(())
    });
    log.append(1_000);
    wait_for_rows(&reader, &case.path("lake"), 2_000);
    let mut folders = std::fs::read_dir(case.path("lake")).unwrap().flatten();
    assert!(
        folders.any(|folder| folder.file_name().len() == "day=2026-03".len()),
        "nothing is where the new path puts it"
    );

    std::fs::write(&settings, "memory = \"100MiB\"\ncommit_interval = \"1s\"\n").unwrap();
    says(&mut worker, "changed settings take effect when the worker restarts: memory, commit_interval", 1);
    says(&mut worker, &format!("restarted=[] stopped=[] unchanged=[{0}.web, {0}.lake]\n", case.name()), 1);

    // Another pipeline, and the first one is gone.
    case.pipeline("more", &access_logs().replace("$NAME", "$NAME-more").replace("$DIR/lake", "$DIR/more"));
    case.remove_pipeline("access");
    says(&mut worker, &format!(" stopped=[{0}.web, {0}.lake] unchanged=[]\n", case.name()), 1);
    wait_for_rows(&reader, &case.path("more"), 2_000);
    assert_eq!(starts(&worker, &format!("{}.web", case.name())), 1, "{}", worker.stderr());
    stop(worker);

    case.remove_pipeline("more");
    case.pipeline("access", &access_logs());
    let summary = case.until_idle("a", LONG);
    assert_counted(&summary, &case, log.lines(), 0);
    assert_every_line_once(&reader, &case.path("lake"), &log);
}

#[test]
fn a_file_with_a_mistake_changes_nothing_and_one_that_is_gone_stops() {
    let (kafka, reader) = (need!(Kafka::shared()), need!(Reader::find()));
    let case = Case::new("reload-mistake", kafka);
    let second = access_logs().replace("$NAME", "$NAME-second").replace("$DIR/lake", "$DIR/second");
    let second_name = format!("{}-second", case.name());
    case.pipeline("first", &access_logs());
    case.pipeline("second", &second);
    let mut log = LogWriter::new(case.path("logs/access.log"), 803);
    log.append(1_000);
    let mut worker = case.start("a", &[]);
    wait_for_rows(&reader, &case.path("lake"), 1_000);
    wait_for_rows(&reader, &case.path("second"), 1_000);

    // What is good of the same moment is taken.
    case.pipeline("first", &access_logs().replace("records = 2_000", "recods = 1_000"));
    case.pipeline("second", &second.replace("records = 2_000", "records = 1_000"));
    worker.sighup();
    says(&mut worker, &format!("restarted=[{second_name}.lake] stopped=[] unchanged=["), 1);
    let said = worker.stderr();
    assert!(said.contains("pipelines/first.toml:19:12") && said.contains("did you mean `records`?"), "{said}");
    assert!(
        said.contains(&format!("pipelines with invalid files keep their previous plan: {}\n", case.name())),
        "{said}"
    );
    log.append(1_000);
    wait_for_rows(&reader, &case.path("lake"), 2_000);
    wait_for_rows(&reader, &case.path("second"), 2_000);
    case.pipeline("first", &access_logs());
    worker.sighup();
    says(&mut worker, "started=[] restarted=[] stopped=[] unchanged=[", 1);

    case.remove_pipeline("second");
    worker.sighup();
    says(&mut worker, &format!("stopped=[{second_name}.web, {second_name}.lake] unchanged=["), 1);
    let group = format!("{second_name}.lake");
    let left = || {
        let groups = kafka.members(case.name())?;
        groups.iter().filter(|(name, _)| name.ends_with(&group)).all(|(_, count)| *count == 0).then_some(())
    };
    wait::until("nobody is in the group of the sink that is gone", LONG, left);
    log.append(1_000);
    wait_for_rows(&reader, &case.path("lake"), 3_000);
    for stage in ["web", "lake"] {
        assert_eq!(starts(&worker, &format!("{}.{stage}", case.name())), 1, "{stage}:\n{}", worker.stderr());
    }
    assert_eq!(kafka.count(&format!("{second_name}.web")), 2_000);

    // The last one, and both again.
    case.remove_pipeline("first");
    worker.sighup();
    says(&mut worker, &format!("started=[] restarted=[] stopped=[{0}.web, {0}.lake] unchanged=[]\n", case.name()), 1);
    let empty = || kafka.members(case.name())?.values().all(|count| *count == 0).then_some(());
    wait::until("nobody is in a group", LONG, empty);
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
fn a_stage_that_failed_is_tried_again_when_somebody_asks() {
    let (kafka, reader) = (need!(Kafka::shared()), need!(Reader::find()));
    let case = Case::new("reload-failed", kafka);
    let bad = case.path("logs/bad.log");
    std::fs::write(&bad, "this is no line of an access log\n").unwrap();
    case.pipeline("access", &access_logs().replace("parser = ", "on_error = \"stop\"\nparser = "));
    let mut worker = case.start("a", &[]);
    says(&mut worker, "stopped; its position is kept", 1);
    // Mended outside of the pipeline's file, which does not change.
    std::fs::remove_file(&bad).unwrap();
    let mut log = LogWriter::new(case.path("logs/access.log"), 804);
    log.append(1_000);
    worker.sighup();
    says(&mut worker, &format!("started=[] restarted=[{0}.web] stopped=[] unchanged=[{0}.lake]\n", case.name()), 1);
    wait_for_rows(&reader, &case.path("lake"), 1_000);
    stop(worker);
    assert_every_line_once(&reader, &case.path("lake"), &log);
}

#[test]
fn brokers_that_are_away_keep_nothing_from_being_taken_later() {
    let (mut kafka, reader) = (need!(Kafka::start()), need!(Reader::find()));
    let case = Case::new("reload-away", &kafka);
    case.pipeline("access", &access_logs());
    let mut log = LogWriter::new(case.path("logs/access.log"), 805);
    log.append(1_000);
    let mut worker = case.start("a", &[]);
    wait_for_rows(&reader, &case.path("lake"), 1_000);
    kafka.kill9();
    case.pipeline("more", &access_logs().replace("$NAME", "$NAME-more").replace("$DIR/lake", "$DIR/more"));
    worker.sighup();
    says(&mut worker, "cannot prepare topics; trying again; the running pipelines stay unchanged until then", 1);
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

#[test]
fn two_workers_that_are_told_share_what_is_new() {
    let (kafka, reader) = (need!(Kafka::shared()), need!(Reader::find()));
    let case = Case::new("reload-two", kafka);
    case.pipeline("access", &access_logs());
    let mut log = LogWriter::new(case.path("logs/access.log"), 806);
    log.append(1_000);
    let mut workers = [case.start("a", &[]), case.start("b", &[])];
    wait_for_rows(&reader, &case.path("lake"), 1_000);
    case.pipeline("access", &access_logs().replace("records = 2_000", "records = 500"));
    case.pipeline("more", &access_logs().replace("$NAME", "$NAME-more").replace("$DIR/lake", "$DIR/more"));
    log.append(1_000);
    for worker in &mut workers {
        worker.sighup();
        log.append(1_000);
        says(worker, &format!("started=[] restarted=[{0}.lake] stopped=[] unchanged=[{0}.web]\n", case.name()), 1);
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
