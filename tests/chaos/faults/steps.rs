//! Death, or an error, at each step that has a name: see `trunkline_connector::failpoint`.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use trunkline_connector::failpoint::{FAILPOINTS, Failpoint, Reached};
use trunkline_tests::{Skip, Worker, wait};

use crate::ground::{Ground, LONG};
use crate::plan::Path;

/// Lines of each log, or changes for each table, before each step.
const LINES: u64 = 200;

/// How long a step may let itself be waited for that comes round again and again.
const COMES_ROUND: Duration = Duration::from_secs(20);

/// Kills a worker at each step; the next one has to bring everything to its end.
pub(crate) fn kill_at_each(ground: &mut Ground<'_>) -> Result<(), Skip> {
    check_names(ground);
    let points = chosen(ground, ground.plan.times(6, u64::MAX));
    for point in points {
        ground.append(LINES);
        if point.reached == Reached::Snapshot {
            ground.read_again();
        }
        // Recovery is a step of its own: it takes a death before it.
        if let Reached::After(earlier) = point.reached {
            let worker = ground.start_with("a", &format!("{earlier}=kill"));
            dies(ground, worker, earlier, LONG);
        }
        let nth = if comes_round(&point) { 1 + ground.random.below(4) } else { 1 };
        let first = point.name.starts_with("worker.id");
        let name = if first { format!("new-{}", ground.tally.kills) } else { "a".to_owned() };
        let worker = ground.start_with(&name, &format!("{}=kill@{nth}", point.name));
        let limit = if nth == 1 { LONG } else { COMES_ROUND };
        let died = dies(ground, worker, point.name, limit);
        assert!(died || nth > 1, "{} was never passed", point.name);

        let since = Instant::now();
        let mut worker = ground.start("a");
        ground.recover(since, &mut [&mut worker]);
        ground.stop(worker);
    }
    Ok(())
}

/// Makes each step fail once, or as if the disk were full, in a worker that has to go on by itself.
pub(crate) fn fail_at_each(ground: &mut Ground<'_>) -> Result<(), Skip> {
    let points = chosen(ground, ground.plan.times(6, u64::MAX));
    for point in points.into_iter().filter(|point| !point.name.starts_with("worker.id")) {
        ground.append(LINES);
        if point.reached == Reached::Snapshot {
            ground.read_again();
        }
        if let Reached::After(earlier) = point.reached {
            let worker = ground.start_with("a", &format!("{earlier}=kill"));
            dies(ground, worker, earlier, LONG);
        }
        let nth = if comes_round(&point) { 1 + ground.random.below(4) } else { 1 };
        let action = if ground.random.below(4) == 0 { "full" } else { "error" };
        let since = Instant::now();
        let mut worker = ground.start_with("a", &format!("{}={action}@{nth}", point.name));
        ground.recover(since, &mut [&mut worker]);
        ground.tally.faults += 1;
        ground.stop(worker);
    }
    Ok(())
}

/// Steps that a worker passes more than once while it lives.
fn comes_round(point: &Failpoint) -> bool {
    let once =
        ["worker.", "producer.init", "source.claim", "transform.claim", "sink.claim", "mysql.begin", "mysql.binlog"];
    !matches!(point.reached, Reached::After(_)) && once.iter().all(|prefix| !point.name.starts_with(prefix))
}

/// Can this step be passed on this path by a worker that is alone?
pub(crate) fn is_reachable(point: &Failpoint, path: Path) -> bool {
    match point.reached {
        Reached::Always => true,
        Reached::Bucket => path.ends_in_bucket(),
        Reached::Database | Reached::Snapshot => path.begins_with_tables(),
        Reached::Directory | Reached::Transform => path == Path::Topics,
        // No path has a sink of the idempotent kind yet.
        Reached::Rebalance | Reached::Delivery => false,
        Reached::After(earlier) => {
            // Giving up an upload takes an upload.
            let bucket = point.name.starts_with("s3.");
            (!bucket || path.ends_in_bucket())
                && FAILPOINTS.iter().any(|other| other.name == earlier && is_reachable(other, path))
        }
    }
}

/// The reachable ones in a seeded order, at most so many.
fn chosen(ground: &mut Ground<'_>, most: u64) -> Vec<Failpoint> {
    let path = ground.plan.path;
    let mut points: Vec<Failpoint> = FAILPOINTS.iter().filter(|point| is_reachable(point, path)).copied().collect();
    for last in (1..points.len()).rev() {
        points.swap(last, ground.random.below(last as u64 + 1) as usize);
    }
    points.truncate(usize::try_from(most).unwrap_or(usize::MAX));
    points
}

/// Waits for a worker's death at a step; writes lines meanwhile, so that the step comes round. Gives up after `limit`, and stops it.
fn dies(ground: &mut Ground<'_>, mut worker: Worker, step: &str, limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    while Instant::now() < deadline {
        if wait::within(Duration::from_millis(500), || (!worker.runs()).then_some(())).is_some() {
            let exit = worker.wait(LONG);
            assert!(exit.signal == Some(libc::SIGABRT) && exit.stderr.contains(step), "{}", exit.describe());
            ground.ended(&exit);
            ground.tally.kills += 1;
            return true;
        }
        ground.append(20);
    }
    ground.stop(worker);
    false
}

/// Every step on the list that a pipeline passes when nothing goes wrong is passed indeed. That the others are shows when a worker is to
/// die there.
fn check_names(ground: &mut Ground<'_>) {
    let seen = ground.case.path("seen");
    ground.append(LINES);
    let since = Instant::now();
    // A new one: it makes itself an id.
    let mut worker = ground.case.start_with("new", &[], &[("TRUNKLINE_FAILPOINTS_SEEN", seen.to_str().unwrap())]);
    ground.recover(since, &mut [&mut worker]);
    let path = ground.plan.path;
    let always = |point: &&Failpoint| is_reachable(point, path) && !matches!(point.reached, Reached::After(_));
    let mut missing = BTreeSet::new();
    let all = wait::within(Duration::from_secs(20), || {
        let text = fs::read_to_string(&seen).unwrap_or_default();
        let passed: BTreeSet<&str> = text.lines().collect();
        missing =
            FAILPOINTS.iter().filter(always).map(|point| point.name).filter(|name| !passed.contains(name)).collect();
        missing.is_empty().then_some(())
    });
    assert!(all.is_some(), "steps that are listed and that nothing passes: {missing:?}");
    ground.stop(worker);
}
