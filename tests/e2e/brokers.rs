//! Workers and brokers that are all available, but out of step: a worker that hangs until another
//! one has its tasks, a transaction that the broker aborts, leaders and coordinators that move to
//! another node. (`outages.rs` has brokers that are down.)

use std::path::Path;
use std::time::Duration;

use trunkline_tests::{BrokerKind, Case, Kafka, KafkaClient, KafkaCluster, LogWriter, Process, Reader, need, wait};

use crate::worker_log::{is_assigned, was_fenced};
use crate::{LONG, access_logs, assert_all_arrives, stop, wait_for_rows};

on_each_broker!(a_hung_worker_is_fenced_when_it_resumes, a_timed_out_transaction_is_written_again);

/// The broker aborts a transaction some time after `transaction.timeout.ms`, 30 s.
const ABORT_LIMIT: Duration = Duration::from_secs(60);

/// Tasks and leaders move within seconds: a worker's session lasts 10 s, a cluster node's 4 s.
const MOVE_LIMIT: Duration = Duration::from_secs(30);

/// Has workers send records at once instead of with the commit: a transaction is then open on the
/// broker from its first record on.
fn send_at_once(case: &mut Case) {
    case.set("TRUNKLINE_KAFKA_BATCH_SIZE", "10000");
}

/// Suspends the worker that reads the log in the middle of a transaction that it will try to
/// commit.
///
/// The log is written to continuously, so that a transaction is open most of the time, even on a
/// slow machine. Returns the worker's index and the number of committed records.
fn suspend_in_transaction(
    workers: &mut [Process],
    kafka: &KafkaClient,
    topic: &str,
    log: &mut LogWriter,
    path: &Path,
) -> (usize, u64) {
    wait::until("a worker is suspended in the middle of a transaction", LONG, || {
        log.append(100);
        let reading = workers.iter().position(|worker| worker.has_open(path))?;
        if !kafka.end_offsets(topic).has_open_transaction() {
            return None;
        }
        workers[reading].sigstop();
        // A commit that the worker had already sent is complete when this is counted.
        let committed = kafka.count(topic);
        if kafka.end_offsets(topic).has_open_transaction() {
            return Some((reading, committed));
        }
        workers[reading].sigcont();
        None
    })
}

/// The number of partitions of a topic that a node leads.
fn partitions_led_by(cluster: &KafkaCluster, node: i32, topic: &str) -> usize {
    let partitions = wait::until("a broker answers", MOVE_LIMIT, || cluster.replicas());
    partitions.iter().filter(|((of, _), replicas)| of == topic && replicas.leader == node).count()
}

fn a_hung_worker_is_fenced_when_it_resumes(kind: BrokerKind) {
    let (kafka, reader) = (need!(Kafka::shared(kind)), need!(Reader::find()));
    let mut case = Case::new("zombie", kafka);
    // A long transaction gives time to suspend the worker in the middle of it.
    case.set("TRUNKLINE_COMMIT_INTERVAL", "3s");
    send_at_once(&mut case);
    let (path, lake, topic) = (case.path("logs/access.log"), case.path("lake"), format!("{}.web", case.name()));
    let mut log = LogWriter::new(&path, 700);
    log.append(5_000);
    case.pipeline("access", &access_logs());
    let mut workers = vec![case.start("a", &[]), case.start("b", &[])];
    wait_for_rows(&reader, &lake, 5_000);
    let sink = format!("{}.lake", case.name());
    wait::until("each worker has partitions of the sink", MOVE_LIMIT, || {
        workers.iter().all(|worker| is_assigned(&worker.stderr(), &sink)).then_some(())
    });

    // The open transaction holds lines that the other worker must write again.
    let (reading, _) = suspend_in_transaction(&mut workers, kafka, &topic, &mut log, &path);
    let mut zombie = workers.remove(reading);
    let other = workers.remove(0);
    log.append(5_000);
    wait_for_rows(&reader, &lake, log.lines());

    zombie.sigcont();
    log.append(5_000);
    wait_for_rows(&reader, &lake, log.lines());
    // The worker learns from its group or its transaction that it is fenced. It logs that, and
    // continues.
    let fenced = wait::within(MOVE_LIMIT, || was_fenced(&zombie.stderr()).then_some(()));
    assert!(fenced.is_some(), "the worker does not log that it was fenced:\n{}", zombie.stderr());
    log.append(5_000);
    wait_for_rows(&reader, &lake, log.lines());
    stop(zombie);
    stop(other);

    assert_all_arrives(&case, &reader, &log);
    assert_eq!(kafka.count(&topic), log.lines());
}

fn a_timed_out_transaction_is_written_again(kind: BrokerKind) {
    let (kafka, reader) = (need!(Kafka::shared(kind)), need!(Reader::find()));
    let mut case = Case::new("timed-out", kafka);
    case.set("TRUNKLINE_COMMIT_INTERVAL", "3s");
    send_at_once(&mut case);
    let (path, lake, topic) = (case.path("logs/access.log"), case.path("lake"), format!("{}.web", case.name()));
    let mut log = LogWriter::new(&path, 701);
    log.append(1);
    case.pipeline("access", &access_logs());
    let mut workers = [case.start("a", &[])];
    let (_, committed) = suspend_in_transaction(&mut workers, kafka, &topic, &mut log, &path);
    let [mut worker] = workers;

    wait::until("the broker aborts the transaction", ABORT_LIMIT, || {
        let ends = kafka.end_offsets(&topic);
        (ends.high_watermark > 0 && !ends.has_open_transaction()).then_some(())
    });
    // Otherwise the transaction was committed just before the worker was suspended.
    assert_eq!(kafka.count(&topic), committed, "the transaction was not aborted");
    worker.sigcont();
    log.append(5_000);
    wait_for_rows(&reader, &lake, log.lines());
    stop(worker);

    assert_all_arrives(&case, &reader, &log);
    assert_eq!(kafka.count(&topic), log.lines());
}

/// Apache Kafka only: the embedded broker has no replicas.
#[test]
fn every_line_arrives_once_when_leaders_and_coordinators_move() {
    let (mut cluster, reader) = (need!(KafkaCluster::start()), need!(Reader::find()));
    let mut case = Case::new("cluster", &cluster);
    case.set("TRUNKLINE_TOPICS_REPLICATION", "3");
    let (lake, topic) = (case.path("lake"), format!("{}.web", case.name()));
    let mut log = LogWriter::new(case.path("logs/access.log"), 702);
    log.append(5_000);
    case.pipeline("access", &access_logs());
    let worker = case.start("a", &[]);
    wait_for_rows(&reader, &lake, log.lines());

    // Kill every node once: each leader of the worker's partitions, and each coordinator of its
    // groups and transactions (the leaders of Kafka's internal topics), must move.
    for node in KafkaCluster::NODES {
        let moving = [topic.as_str(), "__consumer_offsets", "__transaction_state"];
        let before = moving.map(|topic| partitions_led_by(&cluster, node, topic));
        log.append(5_000);
        cluster.kill9(node);
        log.append(5_000);
        wait_for_rows(&reader, &lake, log.lines());
        eprintln!("node {node} led {before:?} partitions of {moving:?}");
        assert!(before[0] > 0, "node {node} leads no partition of {topic}");
        wait::until(&format!("other nodes lead the partitions of node {node}"), MOVE_LIMIT, || {
            (moving.map(|topic| partitions_led_by(&cluster, node, topic)) == [0, 0, 0]).then_some(())
        });
        cluster.restart(node);
    }
    log.append(5_000);
    wait_for_rows(&reader, &lake, log.lines());
    stop(worker);

    assert_all_arrives(&case, &reader, &log);
    assert_eq!(cluster.count(&topic), log.lines());
}
