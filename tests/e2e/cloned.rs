//! A data directory that was copied: two workers with one id.

use std::fs;

use trunkline_tests::{BrokerKind, Case, Kafka, LogWriter, Process, need, wait};

use crate::worker_log::starts;
use crate::{LONG, SOURCE, stop};

on_each_broker!(two_workers_with_one_id_are_reported_and_one_of_them_stops);

fn two_workers_with_one_id_are_reported_and_one_of_them_stops(kind: BrokerKind) {
    let kafka = need!(Kafka::shared(kind));
    let case = Case::new("cloned", kafka);
    LogWriter::new(case.path("logs/access.log"), 800).append(100);
    case.pipeline("web", SOURCE);
    let source = format!("{}.web", case.name());
    let has_started = |worker: &Process| (starts(&worker.stderr(), &source) > 0).then_some(());
    let mut first = case.start("a", &[]);
    wait::until("the first worker runs the source", LONG, || has_started(&first));
    fs::create_dir(case.path("data-b")).unwrap();
    fs::copy(case.path("data-a/worker-id"), case.path("data-b/worker-id")).unwrap();
    let mut second = case.start("b", &[]);
    wait::until("one worker stops", LONG, || (!first.is_running() || !second.is_running()).then_some(()));
    let (stopped, mut running, name) = if first.is_running() { (second, first, "b") } else { (first, second, "a") };
    let exit = stopped.wait(LONG);
    assert_eq!(exit.code, Some(2), "{}", exit.describe());
    let last = exit.stderr.lines().last().unwrap_or_default();
    assert!(last.contains("--new-worker-id") && last.contains("another worker uses this worker's id"), "{last}");

    // With a new id, both run.
    let mut renamed = case.start(name, &["--new-worker-id"]);
    let id = |name: &str| fs::read_to_string(case.path(&format!("data-{name}/worker-id"))).unwrap_or_default();
    wait::until("the worker has a new id", LONG, || (id("a") != id("b")).then_some(()));
    wait::until("the new worker has joined", LONG, || {
        let members = kafka.group_members(case.name())?;
        members.values().any(|count| *count == 2).then_some(())
    });
    assert!(running.is_running() && renamed.is_running(), "{}\n{}", running.stderr(), renamed.stderr());
    stop(running);
    stop(renamed);
}
