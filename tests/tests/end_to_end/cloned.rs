//! A data directory that was copied: two workers with one id.

use std::fs;

use trunkline_tests::{Case, Kafka, LogWriter, Worker, need, wait};

use crate::{LONG, SOURCE};

#[test]
fn two_workers_with_one_id_are_reported_and_one_of_them_stops() {
    let kafka = need!(Kafka::shared());
    let case = Case::new("cloned", kafka);
    LogWriter::new(case.path("logs/access.log"), 800).append(100);
    case.pipeline("web", SOURCE);
    let owns_its_lease =
        |worker: &Worker| worker.stderr().contains("starting: this worker owns its lease").then_some(());
    let mut first = case.start("a", &[]);
    wait::until("the first worker owns its lease", LONG, || owns_its_lease(&first));
    fs::create_dir(case.path("data-b")).unwrap();
    fs::copy(case.path("data-a/worker-id"), case.path("data-b/worker-id")).unwrap();
    let mut second = case.start("b", &[]);
    wait::until("one worker stops", LONG, || (!first.runs() || !second.runs()).then_some(()));
    let (stopped, mut running, name) = if first.runs() { (second, first, "b") } else { (first, second, "a") };
    let exit = stopped.wait(LONG);
    assert_eq!(exit.code, Some(2), "{}", exit.describe());
    let last = exit.stderr.lines().last().unwrap_or_default();
    assert!(last.contains("--new-worker-id") && last.contains("another worker uses this worker's id"), "{last}");

    // With a new id, both run.
    let mut renamed = case.start(name, &["--new-worker-id"]);
    let id = |name: &str| fs::read_to_string(case.path(&format!("data-{name}/worker-id"))).unwrap_or_default();
    wait::until("the worker has a new id", LONG, || (id("a") != id("b")).then_some(()));
    wait::until("the new worker has joined", LONG, || {
        let members = kafka.members(case.name())?;
        members.values().any(|count| *count == 2).then_some(())
    });
    assert!(running.runs() && renamed.runs(), "{}\n{}", running.stderr(), renamed.stderr());
    for mut worker in [running, renamed] {
        worker.sigterm();
        let exit = worker.wait(LONG);
        assert_eq!(exit.code, Some(0), "{}", exit.describe());
    }
}
