//! A crash or an error at each step that has a failpoint (see `trunkline_connector::failpoint`).

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use trunkline_connector::failpoint::{FAILPOINTS, Failpoint, Reached};
use trunkline_tests::{Exit, Process, Skip, wait};

use crate::fixture::{Fixture, LIMIT};
use crate::plan::Path;

/// Lines per log, or changes per table, before each step.
const LINES: u64 = 200;

/// How long a worker may take to reach a repeated step several times.
const REPEAT_LIMIT: Duration = Duration::from_secs(20);

/// Steps of sinks of the two-phase kind, which all paths except `search` have.
const TWO_PHASE: [&str; 5] = ["sink.seal.", "sink.prepare.", "sink.intent.", "sink.commit.", "sink.done."];

/// Kills a worker at each step; the next worker must recover.
pub(crate) fn kill_at_each(fixture: &mut Fixture<'_>) -> Result<(), Skip> {
    check_names(fixture);
    let points = reachable_steps(fixture, short_steps(fixture));
    for point in points {
        fixture.append(LINES);
        if point.reached == Reached::Snapshot {
            fixture.request_snapshot();
        }
        // A recovery step is reached only after a crash at an earlier step.
        if let Reached::After(earlier) = point.reached {
            let worker = fixture.start_with("a", &format!("{earlier}=kill"));
            wait_for_death(fixture, worker, earlier, LIMIT);
        }
        let nth = if is_repeated(&point) { 1 + fixture.random.below(4) } else { 1 };
        let needs_new_worker = point.name.starts_with("worker.id");
        let name = if needs_new_worker { format!("new-{}", fixture.tally.kills) } else { "a".to_owned() };
        let worker = fixture.start_with(&name, &format!("{}=kill@{nth}", point.name));
        let limit = if nth == 1 { LIMIT } else { REPEAT_LIMIT };
        let died = wait_for_death(fixture, worker, point.name, limit);
        assert!(died || nth > 1, "the worker never reached {}", point.name);

        let since = Instant::now();
        let mut worker = fixture.start("a");
        fixture.wait_for_recovery(since, &mut [&mut worker]);
        fixture.stop(worker);
    }
    Ok(())
}

/// Makes each step fail once, some as if the disk were full, in a worker that must recover by
/// itself.
pub(crate) fn fail_at_each(fixture: &mut Fixture<'_>) -> Result<(), Skip> {
    let points = reachable_steps(fixture, short_steps(fixture));
    for point in points.into_iter().filter(|point| !point.name.starts_with("worker.id")) {
        fixture.append(LINES);
        if point.reached == Reached::Snapshot {
            fixture.request_snapshot();
        }
        if let Reached::After(earlier) = point.reached {
            let worker = fixture.start_with("a", &format!("{earlier}=kill"));
            wait_for_death(fixture, worker, earlier, LIMIT);
        }
        let nth = if is_repeated(&point) { 1 + fixture.random.below(4) } else { 1 };
        let action = if fixture.random.below(4) == 0 { "full" } else { "error" };
        let since = Instant::now();
        let mut worker = fixture.start_with("a", &format!("{}={action}@{nth}", point.name));
        fixture.wait_for_recovery(since, &mut [&mut worker]);
        fixture.tally.faults += 1;
        fixture.stop(worker);
    }
    Ok(())
}

/// Whether a worker passes the step more than once.
fn is_repeated(point: &Failpoint) -> bool {
    let once =
        ["worker.", "producer.init", "source.assign", "transform.assign", "sink.assign", "mysql.begin", "mysql.binlog"];
    !matches!(point.reached, Reached::After(_)) && once.iter().all(|prefix| !point.name.starts_with(prefix))
}

/// Whether a single worker can pass the step on this path.
pub(crate) fn is_reachable(point: &Failpoint, path: Path) -> bool {
    match point.reached {
        Reached::Always => path != Path::Search || TWO_PHASE.iter().all(|prefix| !point.name.starts_with(prefix)),
        Reached::Bucket => path.ends_in_bucket(),
        Reached::Database | Reached::Snapshot => path.begins_with_tables(),
        Reached::Directory | Reached::Transform => matches!(path, Path::Topics | Path::State),
        Reached::State => path == Path::State,
        Reached::Delivery => path == Path::Search,
        Reached::Warehouse => path.ends_in_warehouse(),
        Reached::Rebalance | Reached::Replay | Reached::Refused => false,
        Reached::After(earlier) => {
            // A step that aborts an upload needs an upload.
            let bucket = point.name.starts_with("s3.");
            (!bucket || path.ends_in_bucket())
                && FAILPOINTS.iter().any(|other| other.name == earlier && is_reachable(other, path))
        }
    }
}

/// The reachable steps in a random order, at most `limit`.
fn reachable_steps(fixture: &mut Fixture<'_>, limit: u64) -> Vec<Failpoint> {
    let path = fixture.plan.path;
    let mut points: Vec<Failpoint> = FAILPOINTS.iter().filter(|point| is_reachable(point, path)).copied().collect();
    for last in (1..points.len()).rev() {
        points.swap(last, fixture.random.below(last as u64 + 1) as usize);
    }
    if path.ends_in_warehouse() && fixture.plan.short {
        // The others are those of the path `bucket`, too.
        points.retain(|point| point.reached == Reached::Warehouse);
    }
    points.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
    points
}

/// The number of steps that a run has at most.
fn short_steps(fixture: &Fixture<'_>) -> u64 {
    fixture.plan.times(if fixture.plan.path.ends_in_warehouse() { 2 } else { 6 }, u64::MAX)
}

/// Waits until a worker dies at a step, and writes records so that it reaches the step. After
/// `limit`, stops the worker, and returns false.
fn wait_for_death(fixture: &mut Fixture<'_>, worker: Process, step: &str, limit: Duration) -> bool {
    wait_for_death_with(fixture, worker, step, limit, 20).is_some()
}

/// The same with this number of lines, or changes, twice in a second. Returns how the worker died.
pub(super) fn wait_for_death_with(
    fixture: &mut Fixture<'_>,
    mut worker: Process,
    step: &str,
    limit: Duration,
    lines: u64,
) -> Option<Exit> {
    let deadline = Instant::now() + limit;
    while Instant::now() < deadline {
        if wait::within(Duration::from_millis(500), || (!worker.is_running()).then_some(())).is_some() {
            let exit = worker.wait(LIMIT);
            assert!(exit.signal == Some(libc::SIGABRT) && exit.stderr.contains(step), "{}", exit.describe());
            fixture.record_exit(&exit);
            fixture.tally.kills += 1;
            return Some(exit);
        }
        fixture.append(lines);
    }
    fixture.stop(worker);
    None
}

/// Checks that a pipeline without faults passes every step that the list says it does. (For the
/// other steps, a worker that does not die there shows an error in the list.)
fn check_names(fixture: &mut Fixture<'_>) {
    let seen = fixture.case.path("seen");
    fixture.append(LINES);
    let since = Instant::now();
    // A new worker, because it creates its id.
    let mut worker = fixture.case.start_with("new", &[], &[("TRUNKLINE_FAILPOINTS_SEEN", seen.to_str().unwrap())]);
    fixture.wait_for_recovery(since, &mut [&mut worker]);
    let path = fixture.plan.path;
    let always = |point: &&Failpoint| is_reachable(point, path) && !matches!(point.reached, Reached::After(_));
    let mut missing = BTreeSet::new();
    let all = wait::within(Duration::from_secs(20), || {
        let text = fs::read_to_string(&seen).unwrap_or_default();
        let passed: BTreeSet<&str> = text.lines().collect();
        missing =
            FAILPOINTS.iter().filter(always).map(|point| point.name).filter(|name| !passed.contains(name)).collect();
        missing.is_empty().then_some(())
    });
    assert!(all.is_some(), "the worker did not pass these listed steps: {missing:?}");
    fixture.stop(worker);
}
