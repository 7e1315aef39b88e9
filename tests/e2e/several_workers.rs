//! Several workers on one pipeline, and several pipelines in one worker.

use std::time::Duration;

use trunkline_tests::{
    BrokerKind, BusyWriter, Case, Fault, Kafka, LogWriter, Process, Reader, S3, S3Faults, need, wait,
};

use crate::{LONG, access_logs, access_logs_to_s3, assert_counted, assert_every_line_once, stop, wait_for_rows};

on_each_broker!(
    the_other_worker_continues_when_one_is_killed,
    a_stopped_worker_leaves_its_groups,
    a_single_worker_continues_after_its_session_ended,
    a_worker_starts_while_other_tasks_commit_continuously,
);

fn the_other_worker_continues_when_one_is_killed(kind: BrokerKind) {
    let (kafka, reader) = (need!(Kafka::shared(kind)), need!(Reader::find()));
    let case = Case::new("two-workers", kafka);
    let mut log = LogWriter::new(case.path("logs/access.log"), 600);
    log.append(5_000);
    case.pipeline("access", &access_logs());
    let mut first = case.start("a", &[]);
    let mut second = case.start("b", &[]);
    wait_for_rows(&reader, &case.path("lake"), 5_000);
    log.append(10_000);
    wait_for_rows(&reader, &case.path("lake"), 5_001);
    assert!(first.is_running() && second.is_running(), "{}\n{}", first.stderr(), second.stderr());
    first.kill9();

    log.append(5_000);
    wait_for_rows(&reader, &case.path("lake"), log.lines());
    stop(second);

    let summary = case.until_idle("b", LONG);
    assert_counted(&summary, &case, log.lines(), 0);
    assert_every_line_once(&reader, &case.path("lake"), &log);
    assert_eq!(kafka.count(&format!("{}.web", case.name())), log.lines());
}

/// A static member that only closes its consumer stays in its groups until its session ends, after
/// 10 s. Until then its partitions are unassigned.
fn a_stopped_worker_leaves_its_groups(kind: BrokerKind) {
    const BEFORE_THE_SESSION_ENDS: Duration = Duration::from_secs(7);
    let (kafka, reader) = (need!(Kafka::shared(kind)), need!(Reader::find()));
    let case = Case::new("leaving", kafka);
    let mut log = LogWriter::new(case.path("logs/access.log"), 602);
    log.append(1_000);
    case.pipeline("access", &access_logs());
    let worker = case.start("a", &[]);
    wait_for_rows(&reader, &case.path("lake"), 1_000);
    let members = || kafka.group_members(case.name());
    let joined = wait::until("the broker lists the groups", LONG, members);
    assert!(joined.len() == 2 && joined.values().all(|count| *count == 1), "{joined:?}");
    stop(worker);
    let are_empty = || members()?.values().all(|count| *count == 0).then_some(());
    wait::until("the groups have no members", BEFORE_THE_SESSION_ENDS, are_empty);
}

/// When its session ends, no other worker takes its tasks: they are assigned to it again.
fn a_single_worker_continues_after_its_session_ended(kind: BrokerKind) {
    let kafka = need!(Kafka::shared(kind));
    let case = Case::new("single", kafka);
    let mut text = "name = \"$NAME\"\n".to_owned();
    // Several sources: some have stopped before others receive the request to stop.
    let sources = ["one", "two", "three", "four"];
    for name in sources {
        text += &format!("[sources.{name}]\nconnector = \"logfile\"\npaths = [\"$DIR/logs/{name}.log\"]\n");
    }
    case.pipeline("single", &text);
    let mut logs = sources.map(|name| LogWriter::new(case.path(&format!("logs/{name}.log")), 1));
    let wait_until_read = |logs: &[LogWriter], worker: &mut Process| {
        wait::until("all lines are in their topics", LONG, || {
            assert!(worker.is_running(), "{}", worker.stderr());
            let mut pairs = sources.iter().zip(logs);
            pairs.all(|(name, log)| kafka.count(&format!("{}.{name}", case.name())) == log.lines()).then_some(())
        });
    };
    let mut worker = case.start("a", &[]);
    logs.iter_mut().for_each(|log| log.append(100));
    wait_until_read(&logs, &mut worker);
    worker.sigstop();
    let tasks = format!("{}.tasks", case.name());
    let members = || Some(kafka.group_members(&tasks)?.values().sum::<usize>());
    wait::until("the worker's session has ended", LONG, || (members()? == 0).then_some(()));
    worker.sigcont();
    // It joins again after it has given up its leases. The lines must come after that.
    wait::until("the worker has joined again", LONG, || (members()? == 1).then_some(()));
    logs.iter_mut().for_each(|log| log.append(100));
    wait_until_read(&logs, &mut worker);
    stop(worker);
}

/// All tasks of a cluster share the state topics. A starting task must find its own state while
/// other tasks write to them.
fn a_worker_starts_while_other_tasks_commit_continuously(kind: BrokerKind) {
    const BEFORE_THE_READ_TIMEOUT: Duration = Duration::from_secs(50);
    // A separate broker, because the records of the busy writer are not valid state.
    let (kafka, reader) = (need!(Kafka::start(kind)), need!(Reader::find()));
    let case = Case::new("busy-state", &kafka);
    let mut log = LogWriter::new(case.path("logs/access.log"), 604);
    log.append(1_000);
    case.pipeline("access", &access_logs());
    case.until_idle("a", LONG);

    let _busy = ["_trunkline.checkpoints", "_trunkline.intents"].map(|topic| BusyWriter::start(&kafka, topic, 8));
    log.append(1_000);
    let summary = case.until_idle("a", BEFORE_THE_READ_TIMEOUT);
    assert_counted(&summary, &case, log.lines(), 0);
    assert_every_line_once(&reader, &case.path("lake"), &log);
}

#[test]
fn a_failing_sink_does_not_affect_other_sinks_and_pipelines() {
    let (kafka, reader, s3) = (need!(Kafka::any()), need!(Reader::find()), need!(S3::shared()));
    let case = Case::new("two-pipelines", kafka);
    let bucket = s3.bucket(case.name());
    let faults = S3Faults::start(&s3.address());
    let refusal = faults.from_now("", "", Fault::Status(403));
    let mut log = LogWriter::new(case.path("logs/access.log"), 601);
    log.append(5_000);
    // The first pipeline has a failing sink and a working one; the second reads the same files.
    let working = "[sinks.copy]\nconnector = \"s3\"\ninputs = [\"clean\"]\nurl = \"file://$DIR/copy\"\nrotate = { idle = \"500ms\" }\n";
    case.pipeline("first", &(access_logs_to_s3(faults.address()) + working));
    case.pipeline("second", &access_logs().replace("$NAME", "$NAME-second"));

    let mut worker = case.start("a", &[]);
    wait_for_rows(&reader, &case.path("lake"), 5_000);
    wait_for_rows(&reader, &case.path("copy"), 5_000);
    wait::until("the sink has failed several times", LONG, || (faults.broken() >= 3).then_some(()));
    assert_eq!(reader.read(&bucket.join("logs"), &[]).rows, 0);
    log.append(5_000);
    wait_for_rows(&reader, &case.path("lake"), 10_000);
    assert!(worker.is_running(), "{}", worker.stderr());

    refusal.end();
    wait_for_rows(&reader, &bucket.join("logs"), 10_000);
    stop(worker);

    let summary = case.until_idle("a", LONG);
    // Two sinks read `clean`, which is therefore a separate stage, and counts each record once.
    let clean = summary.of(case.name(), "clean");
    assert_eq!((clean.input, clean.output), (log.lines(), log.lines()));
    assert_eq!(summary.of(case.name(), "lake").output, log.lines());
    assert_eq!(summary.of(case.name(), "copy").output, log.lines());
    assert_eq!(summary.of(&format!("{}-second", case.name()), "lake").output, log.lines());
    for lake in [case.path("lake"), case.path("copy"), bucket.join("logs")] {
        assert_every_line_once(&reader, &lake, &log);
    }
}

/// A worker with other pipeline files runs nothing that another worker runs differently.
#[test]
fn two_versions_of_a_component_never_run_at_the_same_time() {
    let kafka = need!(Kafka::any());
    let case = Case::new("agreement", kafka);
    let mut log = LogWriter::new(case.path("logs/access.log"), 605);
    let first = access_logs().replace("[transforms.clean]", "[transforms.clean]\ntopic = \"$NAME.clean\"");
    let second = first.replace("\"remote_addr\"", "\"path\"");
    let topic = format!("{}.clean", case.name());
    let wait_for = |lines: u64| {
        wait::until("all lines are transformed", LONG, || (kafka.count(&topic) == lines).then_some(()));
    };
    let is_masked = |record: &trunkline_tests::Record, field: &str| record.json()[field] == "***";

    case.pipeline("access", &first);
    let mut old = case.start("a", &[]);
    log.append(1_000);
    wait_for(1_000);
    case.pipeline("access", &second);
    let new = case.start("b", &[]);
    wait::until("the worker with the new file reports it", LONG, || {
        new.stderr().contains("runs another version of this component").then_some(())
    });
    let status = case.ask_worker("status", "b", &[], LONG);
    assert!(status.stdout.contains("worker.plans_differ"), "{}", status.describe());
    let refused = |stderr: &str| stderr.matches("worker.plans_differ").count();
    assert_eq!((refused(&new.stderr()), refused(&old.stderr())), (1, 0), "{}", new.stderr());
    log.append(1_000);
    wait_for(2_000);
    assert!(kafka.read(&topic).iter().all(|record| is_masked(record, "remote_addr") && !is_masked(record, "path")));

    // The update of the last worker starts the new version.
    old.sighup();
    wait::until("the new version runs", LONG, || {
        log.append(50);
        kafka.read(&topic).iter().any(|record| is_masked(record, "path")).then_some(())
    });
    stop(old);
    log.append(1_000);
    wait_for(log.lines());
    stop(new);
    let mut partitions = std::collections::BTreeMap::new();
    for record in kafka.read(&topic) {
        let is_new = is_masked(&record, "path");
        assert_ne!(is_new, is_masked(&record, "remote_addr"), "each record is masked by one version");
        let was_new = partitions.insert(record.partition, is_new).unwrap_or(false);
        assert!(is_new || !was_new, "the old version ran after the new one");
    }
}
