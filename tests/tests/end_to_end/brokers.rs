//! What can happen between a worker and its brokers while both are well: a worker that hangs until another has its work, a transaction
//! that the broker gave up, leaders and coordinators that move to another node. (A broker that is gone for a while: `outages.rs`.)

use std::path::Path;
use std::time::Duration;

use trunkline_tests::{Case, Kafka, KafkaClient, KafkaCluster, LogWriter, Reader, Worker, need, wait};

use crate::{LONG, access_logs, assert_all_arrives, wait_for_rows};

/// The broker aborts a transaction after `transaction.timeout.ms`, 30 s, and looks for such ones now and then.
const ABORTED: Duration = Duration::from_secs(60);

/// Moves of work and of leaders are matters of seconds: the sessions of workers last 10 s, those of the cluster's nodes 4 s.
const MOVED: Duration = Duration::from_secs(30);

/// Records go to the broker at once, and not first with the commit: a transaction is open there from its first record on.
fn send_at_once(case: &mut Case) {
    case.set("TRUNKLINE_KAFKA_LINGER_MS", "5");
}

/// Stops (SIGSTOP) the one of the workers that reads the log, in the middle of a transaction that it will want to commit. The log is written to
/// all the while, so that a transaction is open nearly all the time, however slow the machine. Gives the worker's place, and how many records are
/// committed.
fn stop_in_a_transaction(
    workers: &mut [Worker],
    kafka: &KafkaClient,
    topic: &str,
    log: &mut LogWriter,
    path: &Path,
) -> (usize, u64) {
    let is_open = || {
        let ends = kafka.ends(topic);
        ends.written > ends.decided
    };
    wait::until("a worker is stopped in the middle of a transaction", LONG, || {
        log.append(100);
        let reading = workers.iter().position(|worker| worker.has_open(path))?;
        if !is_open() {
            return None;
        }
        workers[reading].sigstop();
        // A commit that was on its way is through when this is counted.
        let committed = kafka.count(topic);
        if is_open() {
            return Some((reading, committed));
        }
        workers[reading].sigcont();
        None
    })
}

/// How many partitions of a topic a node leads.
fn led_by(cluster: &KafkaCluster, node: i32, topic: &str) -> usize {
    let partitions = wait::until("a broker answers", MOVED, || cluster.replicas());
    partitions.iter().filter(|((of, _), replicas)| of == topic && replicas.leader == node).count()
}

#[test]
fn a_worker_that_hangs_is_fenced_when_it_comes_back() {
    let (kafka, reader) = (need!(Kafka::shared()), need!(Reader::find()));
    let mut case = Case::new("zombie", kafka);
    // Time to be stopped in the middle.
    case.set("TRUNKLINE_COMMIT_INTERVAL", "3s");
    send_at_once(&mut case);
    let (path, lake, topic) = (case.path("logs/access.log"), case.path("lake"), format!("{}.web", case.name()));
    let mut log = LogWriter::new(&path, 700);
    log.append(5_000);
    case.pipeline("access", &access_logs());
    let mut workers = vec![case.start("a", &[]), case.start("b", &[])];
    wait_for_rows(&reader, &lake, 5_000);
    wait::until("each has partitions of the sink", MOVED, || {
        workers.iter().all(|worker| worker.stderr().contains("claimed")).then_some(())
    });

    // Its transaction holds lines that the other one must write again.
    let (reading, _) = stop_in_a_transaction(&mut workers, kafka, &topic, &mut log, &path);
    let mut zombie = workers.remove(reading);
    let mut other = workers.remove(0);
    log.append(5_000);
    wait_for_rows(&reader, &lake, log.lines());

    zombie.sigcont();
    log.append(5_000);
    wait_for_rows(&reader, &lake, log.lines());
    // Whether it learns it from its group or from its transaction, it says so; and it goes on as the second one of two.
    let told = wait::within(MOVED, || zombie.stderr().contains("has taken over").then_some(()));
    assert!(told.is_some(), "it does not say that another one has taken over:\n{}", zombie.stderr());
    log.append(5_000);
    wait_for_rows(&reader, &lake, log.lines());
    for worker in [&mut zombie, &mut other] {
        assert!(worker.runs(), "{}", worker.stderr());
        worker.sigterm();
    }
    for worker in [zombie, other] {
        let exit = worker.wait(LONG);
        assert_eq!(exit.code, Some(0), "{}", exit.describe());
    }

    assert_all_arrives(&case, &reader, &log);
    assert_eq!(kafka.count(&topic), log.lines());
}

#[test]
fn a_transaction_that_timed_out_is_written_again() {
    let (kafka, reader) = (need!(Kafka::shared()), need!(Reader::find()));
    let mut case = Case::new("timed-out", kafka);
    case.set("TRUNKLINE_COMMIT_INTERVAL", "3s");
    send_at_once(&mut case);
    let (path, lake, topic) = (case.path("logs/access.log"), case.path("lake"), format!("{}.web", case.name()));
    let mut log = LogWriter::new(&path, 701);
    log.append(1);
    case.pipeline("access", &access_logs());
    let mut workers = [case.start("a", &[])];
    let (_, committed) = stop_in_a_transaction(&mut workers, kafka, &topic, &mut log, &path);
    let [mut worker] = workers;

    wait::until("the broker aborts the transaction", ABORTED, || {
        let ends = kafka.ends(&topic);
        (ends.written > 0 && ends.written == ends.decided).then_some(())
    });
    // Without this the test would pass when the transaction was committed just before the stop.
    assert_eq!(kafka.count(&topic), committed, "it was to be aborted");
    worker.sigcont();
    log.append(5_000);
    wait_for_rows(&reader, &lake, log.lines());
    assert!(worker.runs(), "{}", worker.stderr());
    worker.sigterm();
    let exit = worker.wait(LONG);
    assert_eq!(exit.code, Some(0), "{}", exit.describe());

    assert_all_arrives(&case, &reader, &log);
    assert_eq!(kafka.count(&topic), log.lines());
}

#[test]
fn leaders_and_coordinators_that_move() {
    let (mut cluster, reader) = (need!(KafkaCluster::start()), need!(Reader::find()));
    let mut case = Case::new("cluster", &cluster);
    case.set("TRUNKLINE_TOPICS_REPLICATION", "3");
    let (lake, topic) = (case.path("lake"), format!("{}.web", case.name()));
    let mut log = LogWriter::new(case.path("logs/access.log"), 702);
    log.append(5_000);
    case.pipeline("access", &access_logs());
    let mut worker = case.start("a", &[]);
    wait_for_rows(&reader, &lake, log.lines());

    // One node after the other, all of them: whichever leads the worker's partitions, or coordinates its groups and transactions (that is,
    // leads a partition of Kafka's two internal topics), has to hand that over once.
    for node in KafkaCluster::NODES {
        let moving = [topic.as_str(), "__consumer_offsets", "__transaction_state"];
        let before = moving.map(|topic| led_by(&cluster, node, topic));
        log.append(5_000);
        cluster.kill9(node);
        log.append(5_000);
        wait_for_rows(&reader, &lake, log.lines());
        eprintln!("node {node} led so many partitions of {moving:?}: {before:?}");
        assert!(before[0] > 0, "node {node} leads nothing of {topic}");
        wait::until(&format!("others lead what node {node} led"), MOVED, || {
            (moving.map(|topic| led_by(&cluster, node, topic)) == [0, 0, 0]).then_some(())
        });
        cluster.restart(node);
    }
    assert!(worker.runs(), "{}", worker.stderr());
    log.append(5_000);
    wait_for_rows(&reader, &lake, log.lines());
    worker.sigterm();
    let exit = worker.wait(LONG);
    assert_eq!(exit.code, Some(0), "{}", exit.describe());

    assert_all_arrives(&case, &reader, &log);
    assert_eq!(cluster.count(&topic), log.lines());
}
