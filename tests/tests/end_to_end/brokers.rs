//! What can happen between a worker and its brokers while both are well: a worker that hangs until another has its work, a transaction
//! that the broker gave up, leaders and coordinators that move to another node. (A broker that is gone for a while: `outages.rs`.)

use std::time::Duration;

use trunkline_tests::{Case, Kafka, KafkaClient, KafkaCluster, LogWriter, Reader, need, wait};

use crate::{LONG, access_logs, assert_all_arrives, wait_for_rows};

/// The broker aborts a transaction after `transaction.timeout.ms`, 30 s, and looks for such ones now and then.
const ABORTED: Duration = Duration::from_secs(60);

/// Moves of work and of leaders are matters of seconds: the sessions of workers last 10 s, those of the cluster's nodes 4 s.
const MOVED: Duration = Duration::from_secs(30);

/// Attempts to stop a worker in the middle of a transaction: each may come too late.
const ATTEMPTS: usize = 10;

/// Waits until a transaction with records of this topic is open: from then on until the worker's next commit, a stop is in the middle.
fn sees_open_transaction(kafka: &KafkaClient, topic: &str, limit: Duration) -> bool {
    let is_open = || {
        let ends = kafka.ends(topic);
        (ends.written > ends.decided).then_some(())
    };
    wait::within(limit, is_open).is_some()
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
    let (path, lake, topic) = (case.path("logs/access.log"), case.path("lake"), format!("{}.web", case.name()));
    let mut log = LogWriter::new(&path, 700);
    log.append(5_000);
    case.pipeline("access", &access_logs());
    let mut workers = vec![case.start("a", &[]), case.start("b", &[])];
    wait_for_rows(&reader, &lake, 5_000);
    wait::until("each has partitions of the sink", MOVED, || {
        workers.iter().all(|worker| worker.stderr().contains("claimed")).then_some(())
    });
    log.append(5_000);
    let reading =
        wait::until("one of them reads the log", LONG, || workers.iter().position(|worker| worker.has_open(&path)));
    let mut zombie = workers.remove(reading);
    let mut other = workers.remove(0);

    // Its transaction holds lines that it will want to commit, and that the other one must write again. It is open for a while only if the
    // last one was committed a moment ago, and it may be committed just before the stop: then once more.
    let mut caught = false;
    for _ in 0..ATTEMPTS {
        wait::until("what was read is committed", LONG, || (kafka.count(&topic) == log.lines()).then_some(()));
        log.append(5_000);
        if !sees_open_transaction(kafka, &topic, MOVED) {
            continue;
        }
        zombie.sigstop();
        caught = kafka.count(&topic) < log.lines();
        if caught {
            break;
        }
        zombie.sigcont();
    }
    assert!(caught, "the worker was to be stopped before it had committed all of {} lines", log.lines());
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
    case.set("TRUNKLINE_COMMIT_INTERVAL", "5s");
    let (lake, topic) = (case.path("lake"), format!("{}.web", case.name()));
    let mut log = LogWriter::new(case.path("logs/access.log"), 701);
    log.append(1);
    case.pipeline("access", &access_logs());
    let mut worker = case.start("a", &[]);
    // What comes first is committed at once.
    wait::until("the first line is committed", LONG, || (kafka.count(&topic) == 1).then_some(()));
    log.append(5_000);
    assert!(sees_open_transaction(kafka, &topic, LONG), "no transaction is open");
    worker.sigstop();

    wait::until("the broker aborts the transaction", ABORTED, || {
        let ends = kafka.ends(&topic);
        (ends.written > 0 && ends.written == ends.decided).then_some(())
    });
    // Without this the test would pass when the transaction was committed just before the stop.
    assert_eq!(kafka.count(&topic), 1, "it was to be aborted");
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
