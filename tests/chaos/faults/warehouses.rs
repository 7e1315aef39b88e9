//! Faults of warehouses: sessions that end, statements that are lost, refused or slow, and workers
//! that resume a load after another one has taken over.

use std::time::{Duration, Instant};

use trunkline_connector::failpoint::{FAILPOINTS, Reached};
use trunkline_tests::{Process, Skip, wait};

use super::steps::wait_for_death_with;
use crate::fixture::{Fixture, LIMIT, last_lines};
use crate::plan::Path;
use crate::warehouse::{StatementFault, TokenExpiry, Warehouse};

/// The beginnings of the statements that claim and load topic partitions.
const STATEMENTS: [&str; 6] =
    ["COMMIT", "COPY ", "INSERT INTO", "UPDATE \"trunkline_offsets", "BEGIN", "SELECT COUNT(*)"];

/// Attempts of a load before the stage waits; see `trunkline_warehouse`.
const ATTEMPTS: u32 = 5;

/// The step at which a worker has uploaded files and has not recorded its intent.
const UPLOADED: &str = "warehouse.upload.after";

/// Lines per log before each step of [`refused`]: one of them is refused.
const REFUSED_LINES: u64 = 100;

/// A search for refused rows has at least this many probes.
const PROBES: u64 = 20;

/// The steps from the end of a search until the other rows are loaded. The numbers say when a
/// worker passes them for the first load that was refused.
const READ_AGAIN: [(&str, u64); 15] = [
    ("sink.assign.before", 2),
    ("sink.abort.before", 1),
    ("sink.abort.after", 1),
    ("sink.assign.after", 2),
    ("sink.seal.recorded", 2),
    ("sink.prepare.after", 1),
    ("sink.intent.before", 1),
    ("sink.intent.written", 1),
    ("sink.intent.after", 1),
    ("warehouse.begin.after", 1),
    ("warehouse.apply.after", 1),
    ("warehouse.commit.before", 1),
    ("warehouse.commit.after", 1),
    ("sink.commit.after", 1),
    ("sink.done.after", 1),
];

fn warehouse<'g>(fixture: &'g Fixture<'_>) -> &'g Warehouse<'g> {
    fixture.warehouse.as_ref().expect("a path with a warehouse")
}

/// Loses statements, or only their replies. Sometimes the worker is killed before it can decide
/// whether the statement was executed.
pub(crate) fn lost_replies(fixture: &mut Fixture<'_>) -> Result<(), Skip> {
    let mut worker = Some(fixture.start("a"));
    for statement in STATEMENTS.iter().take(fixture.plan.times(1, u64::MAX) as usize) {
        for fault in [StatementFault::ReplyLost, StatementFault::Lost] {
            super::running(fixture, &mut worker);
            let since = Instant::now();
            break_statement(fixture, statement, fault);
            if fixture.random.below(3) == 0 {
                fixture.kill(worker.take().expect("it was just started"));
            }
            fixture.wait_for_recovery(since, &mut [super::running(fixture, &mut worker)]);
        }
    }
    stop(fixture, worker)
}

/// Other transactions are in the way of each statement, a few times and many times.
pub(crate) fn conflicts(fixture: &mut Fixture<'_>) -> Result<(), Skip> {
    refuse_each(fixture, [1, ATTEMPTS + 2], StatementFault::Conflict)
}

/// The role lacks a privilege for a while.
pub(crate) fn denied(fixture: &mut Fixture<'_>) -> Result<(), Skip> {
    refuse_each(fixture, [1, 3], StatementFault::Denied)
}

/// The queue of the warehouse is full for a while.
pub(crate) fn busy(fixture: &mut Fixture<'_>) -> Result<(), Skip> {
    refuse_each(fixture, [1, 3], StatementFault::Busy)
}

fn refuse_each(fixture: &mut Fixture<'_>, times: [u32; 2], fault: fn(u32) -> StatementFault) -> Result<(), Skip> {
    let mut worker = fixture.start("a");
    for statement in STATEMENTS.iter().take(fixture.plan.times(2, u64::MAX) as usize) {
        for times in times {
            let since = Instant::now();
            break_statement(fixture, statement, fault(times));
            fixture.wait_for_recovery(since, &mut [&mut worker]);
        }
    }
    stop(fixture, Some(worker))
}

/// Statements take seconds. Sometimes the worker is killed meanwhile.
pub(crate) fn slow(fixture: &mut Fixture<'_>) -> Result<(), Skip> {
    let mut worker = Some(fixture.start("a"));
    for statement in STATEMENTS.iter().take(fixture.plan.times(2, u64::MAX) as usize) {
        super::running(fixture, &mut worker);
        let since = Instant::now();
        break_statement(fixture, statement, StatementFault::Slow);
        if fixture.random.below(3) == 0 {
            fixture.kill(worker.take().expect("it was just started"));
        }
        fixture.wait_for_recovery(since, &mut [super::running(fixture, &mut worker)]);
    }
    stop(fixture, worker)
}

/// Ends all sessions at random moments.
pub(crate) fn killed_sessions(fixture: &mut Fixture<'_>) -> Result<(), Skip> {
    at_moments(fixture, |warehouse, _| warehouse.end_sessions())
}

/// Lets the tokens of all sessions expire at random moments.
pub(crate) fn expired_tokens(fixture: &mut Fixture<'_>) -> Result<(), Skip> {
    let ways = [TokenExpiry::Renewed, TokenExpiry::Final, TokenExpiry::OtherSession];
    at_moments(fixture, move |warehouse, round| warehouse.expire_tokens(ways[round as usize % ways.len()]))
}

fn at_moments(fixture: &mut Fixture<'_>, fault: impl Fn(&Warehouse<'_>, u64)) -> Result<(), Skip> {
    let mut worker = fixture.start("a");
    for round in 0..fixture.plan.times(3, 12) {
        fixture.append(300);
        let moment = fixture.random_delay(Duration::from_millis(1_500));
        super::let_run(moment);
        fault(warehouse(fixture), round);
        fixture.tally.faults += 1;
        let since = Instant::now();
        fixture.append(300);
        fixture.wait_for_recovery(since, &mut [&mut worker]);
    }
    stop(fixture, Some(worker))
}

/// COPY refuses rows. A worker dies at each step from there until the other rows are loaded, and
/// each step of the search fails once.
pub(crate) fn refused(fixture: &mut Fixture<'_>) -> Result<(), Skip> {
    fixture.refuse_rows();
    let search = FAILPOINTS.iter().filter(|point| point.reached == Reached::Refused).map(|point| point.name);
    let search: Vec<&str> = search.collect();
    let mut steps: Vec<(&str, &str, u64)> = READ_AGAIN.iter().map(|(step, nth)| (*step, "kill", *nth)).collect();
    for step in search {
        for action in ["kill", "error"] {
            let nth = if step.contains("probe") { 1 + fixture.random.below(PROBES) } else { 1 };
            steps.push((step, action, nth));
        }
    }
    for last in (1..steps.len()).rev() {
        steps.swap(last, fixture.random.below(last as u64 + 1) as usize);
    }
    steps.truncate(usize::try_from(fixture.plan.times(1, u64::MAX)).unwrap_or(usize::MAX));
    for (step, action, nth) in steps {
        // Its first load has refused lines, because they are there when it starts.
        fixture.append(REFUSED_LINES);
        let mut since = Instant::now();
        let mut worker = fixture.start_with("a", &format!("{step}={action}@{nth}"));
        if action == "kill" {
            let exit = wait_for_death_with(fixture, worker, step, LIMIT, 0);
            let exit = exit.unwrap_or_else(|| panic!("the worker never reached {step} {nth} times"));
            let is_in_search = step.starts_with("warehouse.search") || step.starts_with("warehouse.probe");
            assert!(
                is_in_search || exit.stderr.contains("[sink.read_again]"),
                "no row was refused: {}",
                exit.describe()
            );
            since = Instant::now();
            worker = fixture.start("a");
        }
        fixture.wait_for_recovery(since, &mut [&mut worker]);
        fixture.tally.faults += u64::from(action == "error");
        fixture.stop(worker);
    }
    warehouse(fixture).accept_rows();
    Ok(())
}

/// A worker hangs at each step of a load until another one has taken over, and then resumes with
/// its old epoch: its load is known as committed, or the warehouse refuses it.
pub(crate) fn zombie(fixture: &mut Fixture<'_>) -> Result<(), Skip> {
    let steps = FAILPOINTS.iter().filter(|point| point.reached == Reached::Warehouse).map(|point| point.name);
    let others: Vec<&str> = steps.filter(|step| *step != UPLOADED).collect();
    // The short run has the step at which Kafka cannot know yet that the worker is late.
    let steps = [UPLOADED].into_iter().chain(others).take(fixture.plan.times(1, u64::MAX) as usize);
    // The other worker takes over after the hung one's session with Kafka has ended. It ends the
    // hung one's session with the warehouse, which holds the locks of the load.
    fixture.case.set("TRUNKLINE_KAFKA_SESSION_TIMEOUT_MS", "6000");
    for step in steps {
        let mut zombie = fixture.start_with("a", &format!("{step}=stop@1"));
        wait_for(fixture, &format!("the worker hangs at {step}"), |_| zombie.is_suspended());
        fixture.append(100);
        let mut other = fixture.start("b");
        fixture.wait_for_recovery(Instant::now(), &mut [&mut other]);
        fixture.tally.faults += 1;
        zombie.sigcont();
        fixture.append(100);
        fixture.wait_for_recovery(Instant::now(), &mut [&mut other, &mut zombie]);
        // The stand-in for Snowflake closes idle connections, so that the zombie asks Kafka first.
        if step == UPLOADED && fixture.plan.path == Path::Redshift {
            let log = zombie.stderr();
            assert!(log.contains("[warehouse.fenced]"), "the zombie was not fenced:\n{}", last_lines(&log, 20));
        }
        fixture.stop(other);
        fixture.stop(zombie);
    }
    Ok(())
}

/// Applies a fault, and writes records until it has happened.
fn break_statement(fixture: &mut Fixture<'_>, statement: &str, fault: StatementFault) {
    let has_fault = warehouse(fixture).break_at(statement, fault);
    assert!(has_fault, "{} has no {fault:?}", fixture.plan.path);
    wait_for(fixture, &format!("{fault:?} of {statement}"), |fixture| warehouse(fixture).is_broken());
    fixture.tally.faults += 1;
}

/// Writes records until a condition holds.
fn wait_for(fixture: &mut Fixture<'_>, what: &str, mut holds: impl FnMut(&Fixture<'_>) -> bool) {
    let since = Instant::now();
    fixture.append(50);
    while wait::within(Duration::from_millis(500), || holds(fixture).then_some(())).is_none() {
        assert!(since.elapsed() < LIMIT, "after {LIMIT:?} not yet: {what}");
        fixture.append(20);
    }
}

fn stop(fixture: &mut Fixture<'_>, worker: Option<Process>) -> Result<(), Skip> {
    if let Some(worker) = worker {
        fixture.stop(worker);
    }
    Ok(())
}
