//! Several workers on one pipeline, and several pipelines in one worker.

use std::time::Duration;

use trunkline_tests::{BusyWriter, Case, Fault, Kafka, LogWriter, Reader, S3, S3Faults, Worker, need, wait};

use crate::{LONG, access_logs, access_logs_to_s3, assert_counted, assert_every_line_once, wait_for_rows};

#[test]
fn two_workers_share_a_pipeline_and_one_is_killed() {
    let (kafka, reader) = (need!(Kafka::shared()), need!(Reader::find()));
    let case = Case::new("two-workers", kafka);
    let mut log = LogWriter::new(case.path("logs/access.log"), 600);
    log.append(5_000);
    case.pipeline("access", &access_logs());
    let mut first = case.start("a", &[]);
    let mut second = case.start("b", &[]);
    wait_for_rows(&reader, &case.path("lake"), 5_000);
    log.append(10_000);
    wait_for_rows(&reader, &case.path("lake"), 5_001);
    assert!(first.runs() && second.runs(), "{}\n{}", first.stderr(), second.stderr());
    first.kill9();

    // The other one takes all over, without being told.
    log.append(5_000);
    wait_for_rows(&reader, &case.path("lake"), log.lines());
    second.sigterm();
    let exit = second.wait(LONG);
    assert_eq!(exit.code, Some(0), "{}", exit.describe());

    let summary = case.until_idle("b", LONG);
    assert_counted(&summary, &case, log.lines(), 0);
    assert_every_line_once(&reader, &case.path("lake"), &log);
    assert_eq!(kafka.count(&format!("{}.web", case.name())), log.lines());
}

/// A static member that only closes is kept in its groups for 10 s, in which nobody has its partitions.
#[test]
fn a_worker_that_is_stopped_leaves_its_groups() {
    const BEFORE_THE_SESSION_ENDS: Duration = Duration::from_secs(7);
    let (kafka, reader) = (need!(Kafka::shared()), need!(Reader::find()));
    let case = Case::new("leaving", kafka);
    let mut log = LogWriter::new(case.path("logs/access.log"), 602);
    log.append(1_000);
    case.pipeline("access", &access_logs());
    let mut worker = case.start("a", &[]);
    wait_for_rows(&reader, &case.path("lake"), 1_000);
    let members = || kafka.members(case.name());
    let joined = wait::until("the groups can be seen", LONG, members);
    assert!(joined.len() == 2 && joined.values().all(|count| *count == 1), "{joined:?}");
    worker.sigterm();
    let exit = worker.wait(LONG);
    assert_eq!(exit.code, Some(0), "{}", exit.describe());
    let nobody = || members()?.values().all(|count| *count == 0).then_some(());
    wait::until("nobody is in a group", BEFORE_THE_SESSION_ENDS, nobody);
}

/// Its session runs out, and nobody is there to take its tasks over: they come back to it, and it goes on with all of them.
#[test]
fn a_lone_worker_that_hung_goes_on_where_it_was() {
    let kafka = need!(Kafka::shared());
    let case = Case::new("lone", kafka);
    let mut text = "name = \"$NAME\"\n".to_owned();
    // Of several that are stopped together some have stopped before others are asked.
    let sources = ["one", "two", "three", "four"];
    for name in sources {
        text += &format!("[sources.{name}]\nconnector = \"logfile\"\npaths = [\"$DIR/logs/{name}.log\"]\n");
    }
    case.pipeline("lone", &text);
    let mut logs = sources.map(|name| LogWriter::new(case.path(&format!("logs/{name}.log")), 1));
    let arrive = |logs: &[LogWriter], worker: &Worker| {
        wait::until("all lines are in their topics", LONG, || {
            let mut pairs = sources.iter().zip(logs);
            pairs.all(|(name, log)| kafka.count(&format!("{}.{name}", case.name())) == log.lines()).then_some(())
        });
        worker.stderr()
    };
    let mut worker = case.start("a", &[]);
    logs.iter_mut().for_each(|log| log.append(100));
    arrive(&logs, &worker);
    worker.sigstop();
    let tasks = format!("{}.tasks", case.name());
    let nobody = || kafka.members(&tasks)?.values().all(|count| *count == 0).then_some(());
    wait::until("its session is over", LONG, nobody);
    worker.sigcont();
    // Not what it had in its hands when it was stopped: what comes after it has been told.
    wait::until("it hears that its leases are gone", LONG, || {
        worker.stderr().contains("its lease is gone").then_some(())
    });
    logs.iter_mut().for_each(|log| log.append(100));
    let said = arrive(&logs, &worker);
    assert!(worker.runs(), "{said}");
    worker.sigterm();
    let exit = worker.wait(LONG);
    assert_eq!(exit.code, Some(0), "{}", exit.describe());
}

/// All tasks of a cluster share the topics in which their state is: one that starts must find its own while others write all the time.
#[test]
fn a_worker_starts_while_others_write_all_the_time() {
    const BEFORE_READING_IS_GIVEN_UP: Duration = Duration::from_secs(50);
    let (kafka, reader) = (need!(Kafka::start()), need!(Reader::find()));
    let case = Case::new("beside-others", &kafka);
    let mut log = LogWriter::new(case.path("logs/access.log"), 604);
    log.append(1_000);
    case.pipeline("access", &access_logs());
    case.until_idle("a", LONG);

    let _busy = ["_trunkline.checkpoints", "_trunkline.intents"].map(|topic| BusyWriter::start(&kafka, topic, 8));
    log.append(1_000);
    let summary = case.until_idle("a", BEFORE_READING_IS_GIVEN_UP);
    assert_counted(&summary, &case, log.lines(), 0);
    assert_every_line_once(&reader, &case.path("lake"), &log);
}

#[test]
fn a_failing_sink_leaves_all_others_alone() {
    let (kafka, reader, s3) = (need!(Kafka::shared()), need!(Reader::find()), need!(S3::start()));
    let case = Case::new("two-pipelines", kafka);
    let bucket = s3.bucket("lake");
    let faults = S3Faults::start(&s3.address());
    let refused = faults.from_now("", "", Fault::Status(403));
    let mut log = LogWriter::new(case.path("logs/access.log"), 601);
    log.append(5_000);
    // The first pipeline has a sink that fails beside one that works; the second one reads the same files.
    let beside = "[sinks.copy]\nconnector = \"s3\"\ninputs = [\"clean\"]\nurl = \"file://$DIR/copy\"\nrotate = { idle = \"500ms\" }\n";
    case.pipeline("first", &(access_logs_to_s3(faults.address()) + beside));
    case.pipeline("second", &access_logs().replace("$NAME", "$NAME-second"));

    let mut worker = case.start("a", &[]);
    wait_for_rows(&reader, &case.path("lake"), 5_000);
    wait_for_rows(&reader, &case.path("copy"), 5_000);
    wait::until("the sink has failed several times", LONG, || (faults.broken() >= 3).then_some(()));
    assert_eq!(reader.read(&bucket.join("logs"), &[]).rows, 0);
    log.append(5_000);
    wait_for_rows(&reader, &case.path("lake"), 10_000);
    assert!(worker.runs(), "{}", worker.stderr());

    refused.lift();
    wait_for_rows(&reader, &bucket.join("logs"), 10_000);
    worker.sigterm();
    let exit = worker.wait(LONG);
    assert_eq!(exit.code, Some(0), "{}", exit.describe());

    let summary = case.until_idle("a", LONG);
    // Two sinks read `clean`, which is therefore a separate stage and counts each record once.
    let clean = summary.of(case.name(), "clean");
    assert_eq!((clean.input, clean.output), (log.lines(), log.lines()));
    assert_eq!(summary.of(case.name(), "lake").output, log.lines());
    assert_eq!(summary.of(case.name(), "copy").output, log.lines());
    assert_eq!(summary.of(&format!("{}-second", case.name()), "lake").output, log.lines());
    for lake in [case.path("lake"), case.path("copy"), bucket.join("logs")] {
        assert_every_line_once(&reader, &lake, &log);
    }
}
