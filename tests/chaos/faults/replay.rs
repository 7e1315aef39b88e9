//! Replays that replace the output of the live sink, killed at each step while live records arrive.
//! An independent reader finds each record once in the end, as after all faults.

use std::time::Instant;

use trunkline_connector::failpoint::{FAILPOINTS, Reached};
use trunkline_tests::{Process, Skip, wait};

use super::steps::is_reachable;
use crate::fixture::{Fixture, LIMIT};
use crate::warehouse::Warehouse;

/// Lines per log before and after each kill.
const LINES: u64 = 100;

/// Steps before the first new output is visible, at which a run may be given up.
const STAGING: [&str; 7] = [
    "sink.seal.recorded",
    "sink.prepare.after",
    "sink.intent.written",
    "sink.intent.after",
    "warehouse.upload.before",
    "warehouse.upload.after",
    "replay.publish.before",
];

/// Steps inside of the publication.
const COMMITS: [&str; 12] = [
    "directory.rename.after",
    "directory.remove.before",
    "s3.complete.before",
    "s3.complete.after",
    "warehouse.begin.before",
    "warehouse.begin.after",
    "warehouse.offsets.after",
    "warehouse.copy.before",
    "warehouse.copy.after",
    "warehouse.apply.after",
    "warehouse.commit.before",
    "warehouse.commit.after",
];

/// The step between the removals of files: rows are removed by the transaction that adds others.
const OF_FILES: &str = "replay.remove.part";

/// Kills a replay at each step; the same command must complete it, or give it up.
pub(crate) fn kill_at_each(fixture: &mut Fixture<'_>) -> Result<(), Skip> {
    let mut steps = steps(fixture);
    for last in (1..steps.len()).rev() {
        steps.swap(last, fixture.random.below(last as u64 + 1) as usize);
    }
    steps.truncate(usize::try_from(fixture.plan.times(3, u64::MAX)).unwrap_or(usize::MAX));
    let since = Instant::now();
    fixture.append(LINES);
    let mut live = fixture.start("a");
    fixture.wait_for_recovery(since, &mut [&mut live]);
    for step in steps {
        let before = fixture.warehouse.as_ref().map(Warehouse::last_load);
        let killed = start(fixture, &["--from", "earliest", "--supersede"], &format!("{step}=kill"));
        fixture.append(LINES);
        let exit = killed.wait(LIMIT);
        assert!(exit.signal == Some(libc::SIGABRT) && exit.stderr.contains(step), "{}", exit.describe());
        fixture.tally.kills += 1;
        let id = exit.stderr.split("run ").nth(1).and_then(|rest| rest.split(':').next()).unwrap().to_owned();
        if STAGING.contains(&step) && fixture.random.below(2) == 0 {
            give_up(fixture, &id);
        } else {
            let exit = start(fixture, &["--from", "earliest", "--supersede"], "").wait(LIMIT);
            assert_eq!(exit.code, Some(0), "after {step}: {}", exit.describe());
            if let (Some(warehouse), Some(before)) = (&fixture.warehouse, before) {
                assert_eq!(warehouse.loaded_until(&before), 0, "after {step}: rows that were not replaced");
            }
        }
        let since = Instant::now();
        fixture.append(LINES);
        fixture.wait_for_recovery(since, &mut [&mut live]);
    }
    fixture.stop(live);
    Ok(())
}

/// The steps that a replay into the destination of the path passes.
fn steps(fixture: &Fixture<'_>) -> Vec<&'static str> {
    let path = fixture.plan.path;
    let replay = FAILPOINTS.iter().filter(|point| point.reached == Reached::Replay).map(|point| point.name);
    let others = FAILPOINTS.iter().filter(|point| is_reachable(point, path)).map(|point| point.name);
    let others = others.filter(|name| STAGING.contains(name) || COMMITS.contains(name));
    replay.chain(others).filter(|name| *name != OF_FILES || !path.ends_in_warehouse()).collect()
}

/// The run is given up as soon as the brokers have noticed the death of its process.
fn give_up(fixture: &Fixture<'_>, id: &str) {
    let mut last = String::new();
    let is_given_up = wait::within(LIMIT, || {
        let exit = start(fixture, &["--discard", id], "").wait(LIMIT);
        last = exit.describe();
        (exit.code == Some(0)).then_some(())
    });
    assert!(is_given_up.is_some(), "{last}");
}

fn start(fixture: &Fixture<'_>, arguments: &[&str], failpoints: &str) -> Process {
    let name = fixture.case.name().to_owned();
    let arguments = [&[name.as_str()], arguments].concat();
    fixture.case.start_command_with("replay", &arguments, &[("TRUNKLINE_FAILPOINTS", failpoints)])
}
